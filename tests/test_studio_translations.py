"""The page has every text in two languages; its scripts contain no texts, URLs or HTML."""

import re

import pytest

from app.commands.studio import FRONTEND
from app.studio.translations import PLACEHOLDER, read_translations
from dit.modes import MODES
from dit.request import CORNERS, SIDES

SCRIPTS = sorted(FRONTEND.glob("*.js"))
MAX_LINES = 400
SVG_NAMESPACE = "http://www.w3.org/2000/svg"  # an identifier that is never fetched


def test_every_text_key_in_the_scripts_has_a_translation():
    known = read_translations()["en"]
    for path in SCRIPTS:
        for name in re.findall(r"\bt\(\s*\"([^\"]+)\"", path.read_text(encoding="utf-8")):
            assert name in known, f"{path.name} uses {name}"


def test_every_translation_is_used():
    code = "\n".join(path.read_text(encoding="utf-8") for path in [*SCRIPTS, FRONTEND.parent / "form.py"])
    chosen = set(re.findall(r"[`\"](\w+)\.(?:\w+)?\$\{", code)) | {"side", "watermark", "upsample"}  # chosen by a value
    for name in read_translations()["en"]:
        group, _, key = name.partition(".")
        label = re.sub(r"_(hint|info)$", "", key)
        assert f'"{name}"' in code or group in chosen or (group == "form" and f'"{label}"' in code), name


def test_modes_and_choices_have_translations():
    known = read_translations()["en"]
    for name in [f"{group}.{mode}" for group in ("modes", "lines") for mode in MODES]:
        assert name in known
    assert all(f"side.{side}" in known for side in SIDES) and all(f"watermark.{corner}" in known for corner in CORNERS)


def test_placeholders_that_differ_between_languages_are_refused(tmp_path):
    path = tmp_path / "words.toml"
    path.write_text('[a]\nb = ["{count} clips", "没有"]\n', encoding="utf-8")
    with pytest.raises(ValueError, match="a\\.b must have the same placeholders"):
        read_translations(path)
    path.write_text('[a]\nb = ["clips"]\n', encoding="utf-8")
    with pytest.raises(ValueError, match="a\\.b must have a text in en and zh"):
        read_translations(path)


def test_chinese_texts_are_chinese():
    for name, text in read_translations()["zh"].items():
        latin = PLACEHOLDER.sub("", text).strip(" /·:：×%、")
        assert not latin or re.search(r"[\u4e00-\u9fff]", text) or name in ("top.language", "details.kilobytes"), name


@pytest.mark.parametrize("path", [*SCRIPTS, *sorted(FRONTEND.glob("*.css"))], ids=lambda path: path.name)
def test_scripts_and_styles_are_short_and_load_from_no_other_host(path):
    text = path.read_text(encoding="utf-8").replace(SVG_NAMESPACE, "")
    assert text.count("\n") <= MAX_LINES
    assert not re.search(r"https?:|//\w+\.\w|@import|innerHTML|insertAdjacentHTML|document\.write|\beval\(", text)
    assert not re.search(r"[\u4e00-\u9fff]", text) or path.name == "top.js"  # it shows the name of the language
