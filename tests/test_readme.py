"""What the README and the model card say is run, and the shipped model is what they say."""

import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from app.cli import main
from app.render import DEFAULT_MODEL, MODELS, model_folder, request_in
from vae.media import read_video

HOUSE = Path(__file__).parents[1]
README = (HOUSE / "README.md").read_text(encoding="utf-8")
MOST_BYTES = 24 * 2**20  # of a shipped model


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_readmes_commands_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    commands = [shlex.split(line) for block in blocks("sh") for line in block.splitlines()]
    assert len(commands) >= 5
    for words in commands:
        assert words[0] == "longtake"
        assert main(words[1:]) == 0, capsys.readouterr().err
        if "-o" in words:
            named = Path(words[words.index("-o") + 1])
            made = sorted(tmp_path.glob(f"{named.stem}*{named.suffix}"))
            assert made and all(request_in(path).prompt in words for path in made)


def test_the_readmes_python_runs(monkeypatch):
    monkeypatch.chdir(HOUSE)
    for block in blocks("python"):
        names: dict = {}
        exec(block, names)
        assert names["video"].shape == (3, 17, 64, 64) and names["video"].std() > 0.05


@pytest.mark.parametrize("path", ["README.md", "app/models/first/README.md", "training/NOTES.md", "training/GPU.md"])
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


def test_the_shipped_model_shows_the_colours_and_shapes_it_is_asked_for(tmp_path):
    from training.evaluate import SETS, evaluate

    report = evaluate(model_folder(DEFAULT_MODEL), MODELS / "judge", tmp_path, prompts=24, sets=SETS[:1])
    found = report["sets"]["one object"]
    for name in ("colour", "shape"):
        assert found["model"][name]["mean"] > found["shuffled prompts"][name]["mean"] + 0.2
        assert found["model"][name]["mean"] > found["untrained"][name]["mean"] + 0.2
    assert json.loads((tmp_path / "report.json").read_text())["sets"] == report["sets"]
    assert Image.open(tmp_path / "report.png").width > 600


def test_the_demo_makes_a_video_and_a_contact_sheet(tmp_path):
    prompt = re.search(r"PROMPT \?= (.+)", (HOUSE / "Makefile").read_text())
    assert prompt is not None
    assert main(["generate", prompt[1], "-o", str(tmp_path / "demo.mp4"), "--sheet", str(tmp_path / "demo.png")]) == 0
    video = read_video(tmp_path / "demo.mp4", fps=8.0)
    assert video.shape == (3, 17, 64, 64) and video.std() > 0.05
    assert Image.open(tmp_path / "demo.png").width > 300
