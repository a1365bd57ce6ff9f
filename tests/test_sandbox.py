"""Files are read in a child process, and whatever becomes of the child, one sentence comes back."""

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


def swell(path):
    return torch.zeros(2**28)


def swell_in_python(path):
    return torch.from_numpy(__import__("numpy").zeros(2**28))


def miss(path):
    raise KeyError(path)


@pytest.mark.parametrize(
    "reader, sentence",
    [
        (hang, r"f\.mp4 must be read within 0\.5 seconds; it was not; give a smaller file"),
        (crash, r"f\.mp4 cannot be read: it crashed the reader; export it again"),
        (swell, r"f\.mp4 cannot be read in 0\.5 GiB: .*; shrink it first"),
        (swell_in_python, r"f\.mp4 cannot be read in 0\.5 GiB: .*; shrink it first"),
    ],
)
def test_a_file_that_harms_its_reader_harms_nobody_else(reader, sentence):
    begun = time.monotonic()
    with pytest.raises(MediaError, match=sentence):
        run_sandboxed(reader, "f.mp4", memory=2**29, seconds=0.5 if reader is hang else 60)
    assert time.monotonic() - begun < 30


def test_a_script_that_reads_a_file_is_not_run_again_by_the_child(tmp_path):
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


def test_what_a_reader_raises_is_raised():
    with pytest.raises(KeyError, match=r"f\.mp4"):
        run_sandboxed(miss, "f.mp4")
    with pytest.raises(MediaError, match=r"no-such\.png cannot be opened"):
        sandbox.read_image("no-such.png")


def test_what_is_read_in_a_child_is_what_is_read_here(tmp_path):
    picture, film = tmp_path / "p.png", tmp_path / "f.mp4"
    Image.radial_gradient("L").convert("RGB").save(picture)
    write_video(film, [torch.rand(3, 9, 32, 48) * 2 - 1], 12, metadata={"longtake": "{}"})
    assert torch.equal(sandbox.read_image(picture), read.read_image(picture))
    there, here = sandbox.read_video(film, 8, size=(16, 16)), read.read_video(film, 8, size=(16, 16))
    assert torch.equal(there.video, here.video) and there.fps == here.fps
    assert torch.equal(sandbox.read_sampled_frames(film, 3, 16), read.read_sampled_frames(film, 3, 16))
    assert sandbox.read_metadata(film) == read.read_metadata(film) == {"longtake": "{}"}
