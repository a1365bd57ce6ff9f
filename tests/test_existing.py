"""A clip counts as there where its file holds the row's own request, with all that belongs to it; the manifest has a
line for every clip, whatever was killed.
"""

import json
import os
from dataclasses import replace

import pytest
import torch

from app.batch.existing import Examiner
from app.batch.manifest import Manifest, stamp
from app.batch.names import with_absolute_paths
from app.batch.sweeps import BatchItem
from app.registry import model_folder
from app.render import read_request
from dit.request import METADATA_KEY, Moment, Request
from dit.settings import SETTINGS, read_settings
from tests.test_batch import batch, manifest  # noqa: F401
from vae.video.write import write_image

REQUEST = Request(mode="text-to-image", prompt="a red ball", seed=3, model_hash="abc", guidance=5.0)


def item_of(request=REQUEST, name="a.png"):
    return BatchItem(1, 1, request, name=name, digest="d" * 64)


def write_clip(path, request=REQUEST, **changes):
    """Write an image that carries a request as a pipeline resolves it, with changes."""
    settings = read_settings(model_folder(None) / SETTINGS)
    names = ("size", "steps", "guidance", "frame_guidance", "guidance_interval", "guidance_rescale", "sampler")
    given = {name: value for name in names if (value := getattr(request, name)) is not None}
    defaults = {name: getattr(settings, name) for name in names} | given | {"made_with": "x", "model_hash": "abc"}
    resolved = replace(request, **(defaults | changes))
    write_image(path, torch.zeros(3, 16, 16), metadata={METADATA_KEY: resolved.to_json()})


@pytest.fixture
def examiner(tmp_path):
    return Examiner(tmp_path, Manifest(tmp_path, writable=False))


def test_a_file_is_believed_only_where_it_holds_the_request_of_its_row(examiner, tmp_path):
    others = (
        *({"prompt": "a blue cube"}, {"seed": 4}, {"model_hash": "def"}, {"steps": 7}, {"guidance": 1.0}),
        *({"negative_prompt": "rain"}, {"upsampled_prompt": "a large red ball"}, {"watermark": "top-left"}),
        *({"mode": "text-to-video"}, {"size": (80, 48)}),
    )
    wanted = replace(REQUEST, size=(64, 64))
    for number, changes in enumerate(({}, *others)):
        write_clip(tmp_path / f"{number}.png", wanted, **changes)
    write_image(tmp_path / "plain.png", torch.zeros(3, 16, 16))
    (tmp_path / "empty.png").write_bytes(b"")
    names = [
        *(f"{number}.png" for number in range(1 + len(others))),
        "plain.png",
        "empty.png",
        "gone.png",
        "no/where.png",
    ]
    own, *found = examiner.examine([item_of(wanted, name) for name in names])
    assert own.there and not any(one.there or one.error for one in found)
    remarks = ["it held another request"] * len(others) + ["it held no request", "it was empty", None, None]
    assert [one.remark for one in found] == remarks


def test_input_files_are_compared_by_their_contents(examiner, tmp_path):
    images = [tmp_path / f"{name}.png" for name in ("one", "same", "other")]
    for image, value in zip(images, (0.0, 0.0, 1.0), strict=True):
        write_image(image, torch.full((3, 8, 8), value))
    request = replace(REQUEST, mode="image-to-video", image=str(images[0]))
    digest = examiner.hash_of(str(images[0]))
    write_clip(tmp_path / "a.png", request, hashes=((str(images[0]), digest),))
    assert examiner.is_there(item_of(replace(request, image=str(images[1]))))
    assert not examiner.is_there(item_of(replace(request, image=str(images[2]))))


def test_what_is_no_file_is_an_error_and_what_belongs_to_a_clip_must_be_there(tmp_path):
    examiner = Examiner(tmp_path, Manifest(tmp_path, writable=False), keep_latents=True)
    (tmp_path / "a.png").mkdir()
    assert "is a folder, so rename it" in examiner.examine([item_of()])[0].error
    (tmp_path / "b").write_text("a file")
    assert "cannot" in examiner.examine([item_of(name="b/c.png")])[0].error
    write_clip(tmp_path / "c.png")
    assert examiner.examine([item_of(name="c.png")])[0].remark == "its latents were not beside it"
    (tmp_path / "c.png.latents").write_text("latents")
    assert examiner.is_there(item_of(name="c.png"))
    (tmp_path / "d.webm").write_text("a clip")
    assert examiner.examine([item_of(name="d.webm")])[0].remark == "its credentials were not beside it"


def test_a_file_of_the_manifest_is_known_without_reading_it_until_it_changes(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("not read")
    written = Manifest(tmp_path)
    written.append({"row": 1, "state": "done", "output": "a.png", "job": "j", "digest": "d" * 64, "file": stamp(path)})
    written.close()
    known = Examiner(tmp_path, Manifest(tmp_path, writable=False))
    assert known.is_there(item_of()) and not known.is_there(replace(item_of(), digest="e" * 64))
    os.utime(path, (1, 1))
    assert not known.is_there(item_of())


def test_a_manifest_loses_half_a_line_and_notes_the_end_of_a_job_once(tmp_path):
    one, other = Manifest(tmp_path), Manifest(tmp_path)
    line = {"row": 1, "state": "done", "output": "a.png", "job": "j"}
    assert one.append(line) and not other.append({**line, "row": 7}) and other.append({**line, "job": "k"})
    assert one.append({**line, "state": "failed"}) and one.append({"row": 2, "state": "failed"})
    with open(tmp_path / "manifest.jsonl", "a") as file:
        file.write('{"row": 3, "sta')  # and here it is killed
    again = Manifest(tmp_path)
    again.append({"row": 3, "state": "failed"})
    text = (tmp_path / "manifest.jsonl").read_text()
    assert [json.loads(found)["row"] for found in text.splitlines()] == [1, 1, 1, 2, 3]


def test_the_files_of_a_request_are_named_by_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    request = Request(
        image="a.png", keyframes=((0.0, "b.png"),), moments=(Moment(0.0, "x", clip="c.mp4"),), model="model"
    )
    found = with_absolute_paths(request)
    assert (found.image, found.keyframes[0][1], found.moments[0].clip, found.model) == tuple(
        str(tmp_path / name) for name in ("a.png", "b.png", "c.mp4", "model")
    )
    assert with_absolute_paths(Request(model="first")).model == "first"


@pytest.mark.slow  # four runs of a batch
def test_a_batch_makes_what_is_not_there_and_has_one_line_for_each_clip(batch, capsys):  # noqa: F811
    rows = [{"prompt": f"a ball {n}", "output": f"{n}.png"} for n in range(4)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    run = lambda text: batch(text, "--workers", "0", suffix=".jsonl")
    assert run(text) == 0
    path = batch.folder / "manifest.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[:2]) + '\n{"row":')  # as a kill leaves it
    assert run(text) == 0
    assert sorted(line["row"] for line in manifest(batch.folder)) == [1, 2, 3, 4]
    assert all(line["job"] and line["seconds"] > 0 for line in manifest(batch.folder))
    (batch.folder / "0.png").write_bytes(b"")
    (batch.folder / "1.png").write_bytes((batch.folder / "2.png").read_bytes())
    os.unlink(batch.folder / "3.png")
    (batch.folder / "3.png").mkdir()
    before = stamp(batch.folder / "2.png")
    capsys.readouterr()
    assert run(text.replace("a ball 2", "a cube")) == 3
    told = capsys.readouterr().err
    assert "0.png is made anew: it was empty" in told and "1.png is made anew: it held another request" in told
    assert "3.png is a folder, so rename it" in told and "2.png is made anew: it held another" in told
    prompts = [read_request(batch.folder / f"{n}.png").prompt for n in range(3)]
    assert prompts == ["a ball 0", "a ball 1", "a cube"] and stamp(batch.folder / "2.png") != before
