"""Edition 2 of the procedural world: differences that can be seen, wet ground, and the velocity of the camera."""

import json
from itertools import pairwise

import numpy as np
import torch

from training.config import WorldRun
from training.dataset import caption_kinds, make_world, open_bucket
from training.world import make_clip
from training.world.camera import VELOCITY_UNITS, CameraPlacement, camera_velocity, mirror_velocity
from training.world.clip import render_scene
from training.world.editions import EDITIONS
from training.world.scene import CAMERAS, Scene, Thing, sample_scene

CPU = torch.device("cpu")


def second_scene(thing: Thing, **setting) -> Scene:
    """Write a scene of edition 2 by hand: one thing at rest on dry concrete at noon."""
    usual = {"camera": "still", "ground": "concrete", "sky": "clear", "time": "noon", "seconds": 2.0}
    return Scene(0, "test", 3, (thing,), "rest", None, 1.0, **usual | setting, edition=2)


def second_thing(size: str = "medium", shape: str = "ball", colour: str = "red", material: str = "matte") -> Thing:
    return Thing(shape, colour, size, material, EDITIONS[2].sizes[size])


def test_the_sizes_and_speeds_of_edition_2_differ_enough_to_be_seen():
    widths = []
    for size in ("small", "medium", "large"):
        boxes = render_scene(second_scene(second_thing(size)), 32, 32, 5, 8.0, CPU).truth.boxes[:, 0]
        widths.append(float((boxes[:, 2] - boxes[:, 0]).mean()))
    assert widths[1] > 1.5 * widths[0] and widths[2] > 1.5 * widths[1]
    ranges = [EDITIONS[2].speeds[name] for name in ("slow", "normal", "fast")]
    assert all(later[0] > 1.75 * sooner[1] for sooner, later in pairwise(ranges))


def test_edition_2_draws_as_many_things_as_it_says():
    counts = np.bincount([len(sample_scene(0, "train", index, edition=2).things) for index in range(2000)])[1:] / 2000
    assert np.allclose(counts, EDITIONS[2].counts, atol=0.04)  # 3 standard errors are 0.033


def test_wet_ground_mirrors_what_stands_on_it_and_dry_ground_does_not():
    clips = {}
    for wetness in ("dry", "wet"):
        for colour in ("red", "green"):
            scene = second_scene(second_thing("medium", colour=colour), wetness=wetness)
            clips[wetness, colour] = render_scene(scene, 64, 64, 1, 8.0, CPU)
    left, top, right, bottom = clips["wet", "red"].truth.boxes[0, 0].round().astype(int)
    below = (slice(None), 0, slice(bottom + 1, bottom + (bottom - top)), slice(left, right))
    wet, dry = (
        (clips[wetness, "red"].video[below].int() - clips[wetness, "green"].video[below].int()).abs().amax(0)
        for wetness in ("wet", "dry")
    )
    assert (wet > 20).double().mean() > 0.3 and (dry > 20).double().mean() < 0.02  # levels of 255


def test_the_camera_velocity_of_a_clip_integrates_to_the_way_the_camera_went():
    for move in CAMERAS:
        truth = render_scene(second_scene(second_thing(), camera=move), 8, 8, 33, 16.0, CPU).truth
        velocity = truth.camera * VELOCITY_UNITS
        mean = (velocity[1:] + velocity[:-1]) / 2 / 16.0  # the trapezoidal rule
        rotations = np.einsum("fij,fkj->fik", truth.axes[:-1], truth.axes[1:])
        assert np.allclose(mean[:, 4], rotations[:, 0, 2], atol=1e-3) and np.allclose(
            mean[:, 3], rotations[:, 1, 2], atol=1e-3
        )
        assert np.allclose(mean[:, 5], rotations[:, 0, 1], atol=1e-3)
        kind, _, way = move.partition(" ")
        column = {"orbit": 0, "pan": 4, "crane": 1, "zoom": 2}.get(kind)
        if column is None:
            assert not velocity.any()
        else:
            sign = -1 if way in ("left", "down", "out") else 1
            assert (sign * truth.camera[:, column] > 0.3).all() and np.abs(truth.camera).max() < 3
    assert not make_clip(0, "train", 0, rows=8, columns=8, frames=1, edition=2).truth.camera.any()


def test_the_camera_velocity_of_a_mirror_image_is_that_of_the_mirrored_move():
    placement, progress = CameraPlacement(6.0, 0.3, 0.0, 1.0, 0.1), np.linspace(0, 1, 5)
    for way, other in (("orbit left", "orbit right"), ("pan left", "pan right"), ("crane up", "crane up")):
        assert np.allclose(
            mirror_velocity(camera_velocity(way, placement, progress, 2.0)),
            camera_velocity(other, placement, progress, 2.0),
        )


def test_a_longer_clip_of_edition_2_moves_as_fast():
    for index in range(4):
        short, long = (make_clip(2, "train", index, rows=8, columns=8, frames=f, fps=8.0, edition=2) for f in (17, 25))
        assert short.truth.time_scale == long.truth.time_scale and long.scene.seconds == 3.0


def test_a_dataset_of_edition_2_keeps_camera_velocity_scenes_and_captions_with_each_clip(tmp_path):
    run = WorldRun(folder=tmp_path, formats=((16, 16, 5),), clips=(3,), workers=1, edition=2)
    make_world(run)
    bucket = open_bucket(tmp_path, (16, 16, 5))
    records = [json.loads(line) for line in (bucket.folder / "scenes.jsonl").read_text().splitlines()]
    for index in range(3):
        clip = make_clip(0, "train", index, rows=16, columns=16, frames=5, edition=2)
        assert np.array_equal(bucket.pixels[index], clip.video) and bucket.scene(index) == clip.scene
        assert np.array_equal(bucket.camera[index], clip.truth.camera)
        assert records[index]["things"][0]["colour"] == clip.scene.things[0].colour
        assert len(records[index]["physics_events"]) == len(clip.truth.physics_events)
        for image in (False, True):
            texts = bucket.captions[index]["still" if image else "moving"]
            kinds = caption_kinds(texts, image)
            assert 0.16 < sum(language == "zh" for _, language in kinds) / len(kinds) < 0.34
