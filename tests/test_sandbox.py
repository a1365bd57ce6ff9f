"""Reading in a sandbox: a child process that fails or exceeds its limits raises one sentence."""

import os
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image

from vae.video import read, sandbox
from vae.video.pixels import MediaError
from vae.video.sandbox import run_sandboxed
from vae.video.write import write_video


def hang(path):
    time.sleep(60)


def crash(path):
    os.abort()


def allocate_tensor(path):
    return torch.zeros(2**28)


def allocate_array(path):
    return torch.from_numpy(__import__("numpy").zeros(2**28))


def raise_key_error(path):
    raise KeyError(path)


@pytest.mark.parametrize(
    "reader, sentence",
    [
        (hang, r"f\.mp4 must be read within 0\.5 seconds; it was not; give a smaller file"),
        (crash, r"f\.mp4 cannot be read: it crashed the reader; export it again"),
        (allocate_tensor, r"f\.mp4 cannot be read in 0\.5 GiB: .*; shrink it first"),
        (allocate_array, r"f\.mp4 cannot be read in 0\.5 GiB: .*; shrink it first"),
    ],
)
def test_a_reader_that_hangs_crashes_or_exceeds_memory_raises_one_sentence(reader, sentence):
    start = time.monotonic()
    with pytest.raises(MediaError, match=sentence):
        run_sandboxed(reader, "f.mp4", memory=2**29, seconds=0.5 if reader is hang else 60)
    assert time.monotonic() - start < 30


@pytest.mark.slow
def test_the_child_does_not_run_the_main_script_again(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "p.png")
    script = tmp_path / "script.py"
    script.write_text(
        f"from vae.video import sandbox\nprint(sandbox.read_image({str(tmp_path / 'p.png')!r}).shape[1:])\n"
    )
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["torch.Size([1, 8, 8])"]


def test_an_exception_of_the_reader_is_raised():
    with pytest.raises(KeyError, match=r"f\.mp4"):
        run_sandboxed(raise_key_error, "f.mp4")
    with pytest.raises(MediaError, match=r"no-such\.png cannot be opened"):
        sandbox.read_image("no-such.png")


def test_reading_in_a_child_equals_reading_here(tmp_path):
    image, video = tmp_path / "p.png", tmp_path / "f.mp4"
    Image.radial_gradient("L").convert("RGB").save(image)
    write_video(video, [torch.rand(3, 9, 32, 48) * 2 - 1], 12, metadata={"longtake": "{}"})
    assert torch.equal(sandbox.read_image(image), read.read_image(image))
    in_child, here = sandbox.read_video(video, 8, size=(16, 16)), read.read_video(video, 8, size=(16, 16))
    assert torch.equal(in_child.video, here.video) and in_child.fps == here.fps
    assert torch.equal(sandbox.read_sampled_frames(video, 3, 16), read.read_sampled_frames(video, 3, 16))
    assert sandbox.read_duration(video) == read.read_duration(video) == 0.75
    assert sandbox.read_metadata(video) == read.read_metadata(video) == {"longtake": "{}"}
