"""What the README and the model card say is run, and the shipped model is what they say."""

import json
import re
import shlex
from itertools import islice
from pathlib import Path

import pytest
from PIL import Image

from app.cli import main
from app.registry import DEFAULT_MODEL, MODELS, model_folder
from app.render import read_request
from dit.modes import MODES
from dit.pipeline import Pipeline
from training.evaluation.evaluate import SETS, PromptStyle, attribute_accuracy, generate_clips, predict_clips, scenes_of
from training.evaluation.judge import Judge, true_labels
from vae.video.read import read_video
from vae.weights import load_strictly

HOUSE = Path(__file__).parents[1]
PAGES = ("README.md", "app/README.md", "training/README.md", "dit/README.md", "tests/README.md")
CARDS = ("app/models/first/README.md", "training/NOTES.md", "training/GPU.md", "CHANGELOG.md")
MOST_LINES = 150  # of the first page
MOST_BYTES = 24 * 2**20  # of a shipped model


def blocks(page: str, language: str) -> list[str]:
    text = (HOUSE / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands_of(page: str) -> list[list[str]]:
    return [shlex.split(line) for block in blocks(page, "sh") for line in block.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if commands_of(page)])
def test_the_commands_of_a_page_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for board in blocks(page, "yaml"):
        (tmp_path / "board.yaml").write_text(board)
    for prompts in blocks(page, "text"):
        (tmp_path / "prompts.txt").write_text(prompts)
    for words in commands_of(page):
        assert words[0] == "longtake"
        try:
            code = main(words[1:])
        except SystemExit as end:  # of a dry run
            code = end.code
        assert not code, capsys.readouterr().err
        if "-o" in words and words[1] != "render":
            named = Path(words[words.index("-o") + 1])
            made = [tmp_path / named] if (tmp_path / named).exists() else sorted(tmp_path.glob(f"{named.stem}-*"))
            requests = [read_request(path) for path in made]
            assert requests and all(
                request.prompt in words or words[1] in ("again", "storyboard") for request in requests
            )
    if blocks(page, "text"):
        prompts = [read_request(path).prompt for path in (tmp_path / "clips").glob("*.mp4")]
        assert sorted(prompts) == [f"a {colour} ball bounces on the grass" for colour in ("blue", "blue", "red", "red")]


def test_every_door_has_three_commands_that_are_run():
    assert len(commands_of("README.md")) == 9
    assert {page for page in PAGES if commands_of(page)} == {"README.md", "app/README.md", "training/README.md"}


def test_the_first_page_is_short():
    assert len((HOUSE / "README.md").read_text(encoding="utf-8").splitlines()) < MOST_LINES


def test_every_mode_has_an_example_that_is_run():
    named = {words[1] for words in commands_of("app/README.md")} | {"text-to-video"}  # generate's own
    assert set(MODES) <= named


def test_the_commands_that_are_only_shown_exist(capsys):
    for page in PAGES:
        for line in re.findall(r"^    (longtake .*)$", (HOUSE / page).read_text(encoding="utf-8"), re.MULTILINE):
            words = shlex.split(line.split("#")[0].rstrip("\\"))
            command = words[1:3] if words[1] in ("train", "prepare", "models", "scale") else words[1:2]
            with pytest.raises(SystemExit) as end:
                main([*command, "--help"])
            assert end.value.code == 0, line
            shown = capsys.readouterr().out
            flags = re.findall(r"(?<!\S)--[a-z-]+", line)
            assert all(flag in shown for flag in flags), line


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_the_python_of_a_page_runs(page, monkeypatch):
    monkeypatch.chdir(HOUSE)
    for block in blocks(page, "python"):
        names: dict = {}
        exec(block, names)
        assert names["video"].shape == (3, 17, 64, 64) and names["video"].std() > 0.05


@pytest.mark.parametrize("path", [*PAGES, *CARDS])
def test_every_file_that_a_page_links_to_is_there(path):
    page = HOUSE / path
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{path} links to {target}"


def test_the_shipped_model_is_small_and_has_a_card():
    folder = model_folder(DEFAULT_MODEL)
    assert sum(path.stat().st_size for path in folder.rglob("*.safetensors")) <= MOST_BYTES
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert all(word in card for word in ("longtake train recipe --preset first", "seed", "PSNR", "hours"))
    assert not list(MODELS.rglob("*.bin")) and not list(MODELS.rglob("*.pt"))


@pytest.mark.slow
def test_the_shipped_model_is_as_good_as_its_card_says():
    folder, prompts = model_folder(DEFAULT_MODEL), 48
    claimed = json.loads((folder / "evaluation.json").read_text())
    pipeline, judge = Pipeline.from_pretrained(folder), load_strictly(Judge, MODELS / "judge")
    assert claimed["model"] == pipeline.hash  # these weights, and no others, were evaluated
    scenes = list(islice(scenes_of(SETS[0], claimed["seed"]), prompts))
    readings = list(predict_clips(judge, generate_clips(pipeline, PromptStyle().requests(scenes, pipeline), "card")))
    truths = [true_labels(scene) for scene in scenes]
    found, shuffled = attribute_accuracy(readings, truths), attribute_accuracy(readings, truths[1:] + truths[:1])
    for name in ("colour", "shape"):
        mean = claimed["sets"][SETS[0].name]["model"][name]["mean"]
        error = (max(mean * (1 - mean), 1 / prompts) / prompts) ** 0.5  # one of all may fail where none did
        assert found[name]["mean"] > mean - 3 * error
        assert found[name]["mean"] > shuffled[name]["mean"]


def test_the_demo_makes_a_video_and_a_contact_sheet(tmp_path):
    prompt = re.search(r"PROMPT \?= (.+)", (HOUSE / "Makefile").read_text())
    assert prompt is not None
    assert main(["generate", prompt[1], "-o", str(tmp_path / "demo.mp4"), "--sheet", str(tmp_path / "demo.png")]) == 0
    video = read_video(tmp_path / "demo.mp4").video
    assert video.shape == (3, 17, 64, 64) and video.std() > 0.05
    assert Image.open(tmp_path / "demo.png").width > 300
