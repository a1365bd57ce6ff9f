"""Preparing meets bad input: what cannot be done is told with the reason, the rest is done, and nothing else is touched."""

import pytest
import torch

from app.cli import main
from tests.test_prepare import run_of, shot
from training.prepare.clips import clips, rows_of
from training.prepare.manifest import Journal
from vae.recorder import write_video


@pytest.fixture
def raw(tmp_path):
    """A folder with one sound film of one shot."""
    folder = tmp_path / "raw"
    folder.mkdir()
    write_video(folder / "sound.mp4", shot(0, 16), 8)
    return folder


def test_shots_that_are_too_short_are_counted_and_are_no_failures(raw, tmp_path, capsys):
    write_video(raw / "flash.mp4", shot(1, 4), 8)
    write_video(raw / "two.mp4", torch.cat([shot(0, 16), shot(2.2, 4)], 1), 8)
    words = ["prepare", "clips", str(raw), str(tmp_path / "done"), "--engine", "here"]
    for before in (0, 3):
        assert main(words) == 0
        said = capsys.readouterr().out
        assert said == f"3 sources, {before} done before, 2 clips, 2 shots too short, 0 failed\n"
    assert {row.source for row in rows_of(tmp_path / "done")} == {"sound.mp4", "two.mp4"}
    short = {line["key"].rsplit("/", 1)[1]: line["short"] for line in Journal(tmp_path / "done", "clips").lines()}
    assert short == {"flash.mp4": [[0, 0.5]], "two.mp4": [[2, 2.5]], "sound.mp4": []}
    assert clips(run_of(raw, tmp_path, shortest=0.4))["shots too short"] == 0
