"""The visible watermark covers a corner, is legible, and changes nothing else."""

import pytest
import torch

from app.provenance.watermark import add_watermark, draw_watermark
from dit.request import CORNERS
from vae.video.read import read_video
from vae.video.write import write_video


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (360, 640), (16, 16), (7, 5), (1, 1)])
def test_a_watermark_covers_a_corner_and_nothing_else(size):
    rows, columns = size
    for corner in CORNERS:
        clip = torch.rand(3, 5, rows, columns, generator=torch.Generator().manual_seed(0)) * 2 - 1
        before = clip.clone()
        (first, second) = add_watermark(iter(clip.split([2, 3], dim=1)), corner)
        watermarked = torch.cat([first, second], dim=1)
        assert torch.equal(clip, before) and watermarked.shape == clip.shape and watermarked.abs().max() <= 1
        _, _, y, x = (watermarked != clip).nonzero(as_tuple=True)
        if min(size) >= 48:
            assert len(y) and (y.max() - y.min() < rows / 3) and (x.max() - x.min() < columns / 3)
            assert y.min() > rows / 2 if corner.startswith("bottom") else y.max() < rows / 2
            assert x.min() > columns / 2 if corner.endswith("right") else x.max() < columns / 2


@pytest.mark.parametrize("size", [(64, 64), (128, 96), (360, 640)])
@pytest.mark.parametrize("background", [-1.0, 0.0, 1.0])
def test_a_watermark_is_legible_on_any_background_and_through_the_codec(tmp_path, size, background):
    rows, columns = size
    _, opacity = draw_watermark(rows, columns)
    letters, plate = opacity > 0.95, (opacity > 0.5) & (opacity < 0.75)
    height, width = opacity.shape
    still = torch.full((3, 5, rows, columns), background)
    write_video(tmp_path / "clip.mp4", add_watermark([still]), 8)
    decoded = read_video(tmp_path / "clip.mp4").video.mean((0, 1))
    margin = max(2, min(size) // 32)
    region = decoded[rows - margin - height : rows - margin, columns - margin - width : columns - margin]
    assert region[letters].mean() - region[plate].mean() > 0.8  # of 2 from black to white
    columns_of_letters = letters.any(0).int()
    gaps = (columns_of_letters.diff() == 1).sum()
    assert gaps == 2  # two letters, with space between them


def test_an_unknown_corner_is_refused():
    with pytest.raises(ValueError, match=r"one of the corners bottom-right, .*; got 'middle'"):
        add_watermark([torch.zeros(3, 1, 64, 64)], "middle")
