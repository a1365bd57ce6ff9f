"""The framing experiment: the subject is found by its hue, and its mask agrees with the true boxes."""

from itertools import islice

import numpy as np
import pytest
import torch

from training.config import WorldRun
from training.dataset import make_world, open_bucket, uint8_to_float
from training.experiments.framing import (
    SQUARE,
    WIDE,
    crop_left,
    cut_share,
    framing_scores,
    has_hue,
    make_crops,
    subject_mask,
)
from training.world import make_clip
from training.world.scene import sample_scene


def single_object_scenes():
    scenes = (sample_scene(0, "train", index) for index in range(60))
    return (scene for scene in scenes if len(scene.things) == 1 and has_hue(scene))


@pytest.mark.parametrize("scene", list(islice(single_object_scenes(), 4)), ids=lambda scene: scene.things[0].colour)
def test_the_subject_mask_agrees_with_the_true_box(scene):
    columns, rows, frames = WIDE
    clip = make_clip(0, "train", scene.index, rows=rows, columns=columns, frames=frames)
    found = subject_mask(uint8_to_float(clip.video), scene.things[0].colour)
    for frame in range(frames):
        if clip.truth.visible[frame, 0] < 0.5:
            continue
        left, _, right, _ = clip.truth.boxes[frame, 0].clip(0, columns)
        across = np.nonzero(found[frame].any(0).numpy())[0]
        assert abs(across[0] - left) < 3 and abs(across[-1] + 1 - right) < 3


def test_a_subject_at_the_border_is_cut_and_an_absent_one_is_not_seen():
    def clip(left):
        frame = torch.full((3, 48, 80), 0.0)
        frame[:, 20:30, left : left + 10] = torch.tensor([0.9, -0.8, -0.8])[:, None, None]
        return frame

    inside, edge, none = clip(40), clip(0), torch.zeros(3, 48, 80)
    assert cut_share(torch.stack([inside, inside, edge, none], 1), "red") == pytest.approx(1 / 3)
    assert cut_share(torch.stack([inside], 1), "blue") is None
    clips = [torch.stack([frame] * 2, 1) for frame in (inside, edge, edge, none)]
    found = framing_scores(clips, ["red"] * 4)
    assert found["cut or not seen"] == 0.75 and found["not seen"] == 0.25
    ground = torch.full((3, 2, 48, 80), 0.0)
    ground[:, :, 30:] = torch.tensor([0.9, -0.8, -0.8])[:, None, None, None]
    assert cut_share(ground, "red") is None


def test_crops_are_squares_of_the_clips_with_the_same_captions_and_scenes(tmp_path):
    make_world(WorldRun(folder=tmp_path / "wide", formats=(WIDE,), clips=(2,), workers=1))
    make_crops(tmp_path / "wide", tmp_path / "square")
    wide, square = open_bucket(tmp_path / "wide", WIDE), open_bucket(tmp_path / "square", SQUARE)
    for clip in range(2):
        assert np.array_equal(square.pixels[clip], wide.pixels[clip, ..., crop_left(clip) : crop_left(clip) + 48])
    lefts = [crop_left(clip) for clip in range(500)]
    assert min(lefts) == 0 and max(lefts) == 32 and abs(np.mean(lefts) - 16) < 1.5
    assert square.captions == wide.captions and square.scene(1) == wide.scene(1)
