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
from app.render import request_in
from dit.pipeline import Pipeline
from training.evaluation.evaluate import SETS, Asking, dreams, read, scenes_of, score
from training.evaluation.judge import Judge, truth_of
from vae.video.read import read_video
from vae.weights import load_strictly

HOUSE = Path(__file__).parents[1]
README = (HOUSE / "README.md").read_text(encoding="utf-8")
MOST_BYTES = 24 * 2**20  # of a shipped model


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_readmes_commands_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (board,) = blocks("yaml")
    (tmp_path / "board.yaml").write_text(board)
    (prompts,) = blocks("text")
    (tmp_path / "prompts.txt").write_text(prompts)
    commands = [shlex.split(line) for block in blocks("sh") for line in block.splitlines()]
    assert len(commands) >= 5
    for words in commands:
        assert words[0] == "longtake"
        assert main(words[1:]) == 0, capsys.readouterr().err
        if "-o" in words:
            named = Path(words[words.index("-o") + 1])
            made = [tmp_path / named] if (tmp_path / named).exists() else sorted(tmp_path.glob(f"{named.stem}-*"))
            if words[1] != "render":
                requests = [request_in(path) for path in made]
                assert requests and all(request.prompt in words or request.moments for request in requests)
    prompts = [request_in(path).prompt for path in (tmp_path / "clips").glob("*.mp4")]
    assert sorted(prompts) == [f"a {colour} ball bounces on the grass" for colour in ("blue", "blue", "red", "red")]


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


def test_the_shipped_model_is_as_good_as_its_card_says():
    folder, prompts = model_folder(DEFAULT_MODEL), 48
    claimed = json.loads((folder / "evaluation.json").read_text())
    pipeline, judge = Pipeline.from_pretrained(folder), load_strictly(Judge, MODELS / "judge")
    assert claimed["model"] == pipeline.hash  # these weights, and no others, were evaluated
    scenes = list(islice(scenes_of(SETS[0], claimed["seed"]), prompts))
    readings = list(read(judge, dreams(pipeline, Asking().requests(scenes, pipeline), "card")))
    truths = [truth_of(scene) for scene in scenes]
    found, shuffled = score(readings, truths), score(readings, truths[1:] + truths[:1])
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
