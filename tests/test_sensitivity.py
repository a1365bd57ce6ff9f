"""The meter of how much each word matters to a model."""

import numpy as np
import pytest
import torch

from training.dataset import open_bucket
from training.evaluation.sensitivity import EXCHANGES, per_clip_loss, sensitivity, table
from training.world.scene import sample_scene
from training.world.words import attributes, read_caption, write_caption


@pytest.mark.parametrize("name", EXCHANGES)
def test_an_exchange_changes_one_attribute_of_the_caption_and_no_other(name):
    changed = 0
    for index in range(40):
        scene = sample_scene(0, "test", index, edition=2)
        other = EXCHANGES[name](scene, np.random.default_rng(index))
        if other is None:
            continue
        before, after = (write_caption(one, "dense", "en", rng=np.random.default_rng(7)) for one in (scene, other))
        assert before != after or name in ("sky", "time of day", "ground", "wet ground", "camera", "size", "material")
        differing = {key for key, value in attributes(scene).items() if attributes(other).get(key) != value}
        assert len(differing) <= 1 or name in ("colour", "shape", "motion")  # a name holds both; rest has no speed
        changed += before != after
    assert changed >= 5


def test_a_model_that_reads_only_the_ground_shows_it_and_nothing_else(world):
    bucket = open_bucket(world / "train", (64, 64, 17))
    latents = np.zeros((len(bucket), 4, 5, 8, 8), dtype=np.float16)
    true = [bucket.scene(number).ground for number in range(len(bucket))]

    def losses(batch, target, captions):
        wrong = [
            read_caption(text).get("ground", set()) != {ground} for text, ground in zip(captions, true, strict=True)
        ]
        return torch.tensor(wrong).float()

    found = sensitivity(losses, bucket, latents, (1, 2, 2), clips=len(bucket), sigmas=(1.0, 0.5))
    assert found["ground"]["1"].mean == 1 and found["ground"]["0.5"].mean == 1
    assert all(row["1"].mean == 0 for name, row in found.items() if name != "ground" and "1" in row)
    assert "| ground | 1.0000 (0.0000) |" in table(found)


def test_the_loss_of_each_clip_is_its_own():
    predicted, target = torch.zeros(5, 2), torch.zeros(5, 2)
    predicted[:2] = 1
    assert per_clip_loss(predicted, target, (2, 3)).tolist() == [1, 0]
