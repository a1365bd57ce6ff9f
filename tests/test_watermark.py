"""A badge that anybody can see: it covers a corner, can be read, and changes nothing else."""

import pytest
import torch

from app.provenance.watermark import badge, mark
from dit.request import CORNERS
from vae.video.read import read_video
from vae.video.write import write_video


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (360, 640), (16, 16), (7, 5), (1, 1)])
def test_a_badge_covers_a_corner_and_nothing_else(size):
    rows, columns = size
    for corner in CORNERS:
        clip = torch.rand(3, 5, rows, columns, generator=torch.Generator().manual_seed(0)) * 2 - 1
        before = clip.clone()
        (first, second) = mark(iter(clip.split([2, 3], dim=1)), corner)
        stamped = torch.cat([first, second], dim=1)
        assert torch.equal(clip, before) and stamped.shape == clip.shape and stamped.abs().max() <= 1
        _, _, y, x = (stamped != clip).nonzero(as_tuple=True)
        if min(size) >= 48:
            assert len(y) and (y.max() - y.min() < rows / 3) and (x.max() - x.min() < columns / 3)
            assert y.min() > rows / 2 if corner.startswith("bottom") else y.max() < rows / 2
            assert x.min() > columns / 2 if corner.endswith("right") else x.max() < columns / 2


@pytest.mark.parametrize("size", [(64, 64), (128, 96), (360, 640)])
@pytest.mark.parametrize("ground", [-1.0, 0.0, 1.0])
def test_a_badge_can_be_read_on_any_ground_and_through_the_codec(tmp_path, size, ground):
    rows, columns = size
    _, cover = badge(rows, columns)
    letters, plate = cover > 0.95, (cover > 0.5) & (cover < 0.75)
    down, across = cover.shape
    still = torch.full((3, 5, rows, columns), ground)
    write_video(tmp_path / "clip.mp4", mark([still]), 8)
    seen = read_video(tmp_path / "clip.mp4").video.mean((0, 1))
    margin = max(2, min(size) // 32)
    place = seen[rows - margin - down : rows - margin, columns - margin - across : columns - margin]
    assert place[letters].mean() - place[plate].mean() > 0.8  # of 2 from black to white
    columns_of_letters = letters.any(0).int()
    gaps = (columns_of_letters.diff() == 1).sum()
    assert gaps == 2  # two letters, with space between them


def test_a_badge_has_a_corner_that_there_is():
    with pytest.raises(ValueError, match=r"one of the corners bottom-right, .*; got 'middle'"):
        mark([torch.zeros(3, 1, 64, 64)], "middle")
