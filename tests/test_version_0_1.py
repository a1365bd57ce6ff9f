"""What version 0.1 wrote, with its names of fields and flags, is still read."""

import json
from pathlib import Path

import pytest

from app.batch.names import file_name, request_digest
from app.batch.rows import read_rows
from app.render import read_request
from app.server.parsing import request_fields
from dit.request import RENAMED, Moment, Request, RequestError
from dit.storyboard import parse_storyboard
from vae.video.read import read_metadata, read_video

CLIP = Path(__file__).parent / "data" / "clip_from_0_1.mp4"
OLD = {
    **{"prompt": "a red ball", "written": "a large red ball", "interval": [0.1, 0.9], "rescale": 0.5},
    **{"negative": "a cube", "method": "heun", "mark": "top-left", "seed": 3},
}
REQUEST = Request(
    prompt="a red ball",
    upsampled_prompt="a large red ball",
    guidance_interval=(0.1, 0.9),
    guidance_rescale=0.5,
    negative_prompt="a cube",
    sampler="heun",
    watermark="top-left",
    seed=3,
)


def test_a_clip_of_version_0_1_is_made_again(longtake, tmp_path):
    old = json.loads(read_metadata(CLIP)["longtake"])
    assert (old["method"], old["negative"], old["mark"], old["rescale"]) == ("heun", "a cube", "bottom-right", 0.5)
    code, _, err = longtake("again", CLIP, "-o", tmp_path / "again.mp4")
    assert code == 0 and "weights" not in err  # they are known to be the same, although their keys were renamed
    new = json.loads(read_metadata(tmp_path / "again.mp4")["longtake"])
    assert new | {"made_with": ""} == {RENAMED.get(name, name): value for name, value in old.items()} | {
        "made_with": ""
    }
    error = (read_video(tmp_path / "again.mp4").video - read_video(CLIP).video).square().mean()
    assert error < 1e-3  # of pixels in [-1, 1]; the last bits depend on the processor
    changes = ("--method", "dpm", "--negative", "", "--mark", "top-left", "--interval", 0, 1, "--rescale", 0)
    code, _, err = longtake("again", CLIP, *changes, "--written", "a blue ball", "-o", tmp_path / "changed.mp4")
    assert code == 0, err
    found = read_request(tmp_path / "changed.mp4")
    assert (found.sampler, found.watermark, found.guidance_interval) == ("dpm", "top-left", (0.0, 1.0))
    assert (found.guidance_rescale, found.upsampled_prompt) == (0.0, "a blue ball")


def test_help_shows_the_present_flags_alone(longtake):
    code, out, _ = longtake("generate", "--help")
    assert code == 0 and "--sampler" in out and "--keyframe " in out
    assert not {"--method", "--mark", "--picture", "--written", "--interval", "--rescale"} & set(out.split())


def test_a_batch_of_version_0_1_has_the_same_file_names():
    """These names and digests are what version 0.1 gave the same requests."""
    hashes = {"a.png": "aa" * 32, "b.png": "bb" * 32}
    images = ((0.0, "a.png"), (1.5, "b.png"))
    keyframes = Request(mode="keyframes", prompt="a ball rolls", keyframes=images, model_hash="ec5c4b4b1dc7fb19")
    assert file_name(REQUEST, hashes) == "a-red-ball-ed2f9fb9c083.mp4"
    assert request_digest(REQUEST, hashes) == "ed2f9fb9c0831379ec68fca72ace48268c65b43d6b120ad48252b941ac79061e"
    assert request_digest(keyframes, hashes) == "1abe446b2ff276423edfa1c7489ae4de417134d387be61700dd05d2c8511df75"


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".yaml"])
def test_rows_of_version_0_1_are_read(tmp_path, suffix):
    path = tmp_path / f"rows{suffix}"
    if suffix == ".csv":
        cells = [str(value) if not isinstance(value, list) else json.dumps(value) for value in OLD.values()]
        path.write_text(f"{','.join(OLD)}\n" + ",".join('"' + cell.replace('"', '""') + '"' for cell in cells))
    else:
        path.write_text(json.dumps(OLD) if suffix == ".jsonl" else json.dumps([OLD]))
    (row,) = read_rows(path)
    assert Request.from_dict(row.fields) == REQUEST


def test_http_bodies_of_version_0_1_are_read():
    assert Request.from_dict(request_fields(OLD)) == REQUEST
    assert request_fields({"pictures": [["0", "file-a"]]})["keyframes"] == [[0, "file-a"]]
    with pytest.raises(RequestError, match="mark is now named watermark; got both"):
        request_fields({"prompt": "x", "mark": "top-left", "watermark": "top-left"})


def test_storyboards_of_version_0_1_are_read():
    board = parse_storyboard("method: dpm\nnegative: a cube\nmoments:\n- {at: 0, prompt: a ball}\n")
    assert Request().altered(**board) == Request(
        sampler="dpm", negative_prompt="a cube", moments=(Moment(0.0, "a ball"),)
    )
