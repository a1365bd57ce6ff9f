"""The studio's page says everything in two languages, and its scripts hold no words, no addresses and no HTML."""

import re

import pytest

from app.commands.studio import FRONTEND
from app.studio.translations import GAP, read_words
from dit.modes import MODES
from dit.request import CORNERS, SIDES

SCRIPTS = sorted(FRONTEND.glob("*.js"))
MOST_LINES = 400
DRAWN = "http://www.w3.org/2000/svg"  # a name, which nobody fetches


def test_every_name_that_the_scripts_say_has_words():
    known = read_words()["en"]
    for path in SCRIPTS:
        for name in re.findall(r"\bt\(\s*\"([^\"]+)\"", path.read_text(encoding="utf-8")):
            assert name in known, f"{path.name} says {name}"


def test_all_words_are_said_somewhere():
    code = "\n".join(path.read_text(encoding="utf-8") for path in [*SCRIPTS, FRONTEND.parent / "form.py"])
    chosen = set(re.findall(r"[`\"](\w+)\.(?:\w+)?\$\{", code)) | {"side", "watermark", "upsample"}  # by what follows
    for name in read_words()["en"]:
        group, _, word = name.partition(".")
        label = re.sub(r"_(hint|info)$", "", word)
        assert f'"{name}"' in code or group in chosen or (group == "form" and f'"{label}"' in code), name


def test_modes_and_choices_have_words():
    known = read_words()["en"]
    for name in [f"{group}.{mode}" for group in ("modes", "lines") for mode in MODES]:
        assert name in known
    assert all(f"side.{side}" in known for side in SIDES) and all(f"watermark.{corner}" in known for corner in CORNERS)


def test_a_line_with_other_gaps_in_one_language_is_refused(tmp_path):
    path = tmp_path / "words.toml"
    path.write_text('[a]\nb = ["{count} clips", "没有"]\n', encoding="utf-8")
    with pytest.raises(ValueError, match="a\\.b must have the same gaps"):
        read_words(path)
    path.write_text('[a]\nb = ["clips"]\n', encoding="utf-8")
    with pytest.raises(ValueError, match="a\\.b must be told in en and zh"):
        read_words(path)


def test_chinese_is_written_in_chinese():
    for name, words in read_words()["zh"].items():
        latin = GAP.sub("", words).strip(" /·:：×%")
        assert not latin or re.search(r"[\u4e00-\u9fff]", words) or name in ("top.language", "details.kilobytes"), name


@pytest.mark.parametrize("path", [*SCRIPTS, *sorted(FRONTEND.glob("*.css"))], ids=lambda path: path.name)
def test_what_the_page_is_made_of_is_short_and_reaches_nowhere(path):
    text = path.read_text(encoding="utf-8").replace(DRAWN, "")
    assert text.count("\n") <= MOST_LINES
    assert not re.search(r"https?:|//\w+\.\w|@import|innerHTML|insertAdjacentHTML|document\.write|\beval\(", text)
    assert not re.search(r"[\u4e00-\u9fff]", text) or path.name == "top.js"  # which shows the name of the language
