"""The procedural world: what it films is the same everywhere, true to its scene, and drawn as geometry says."""

import hashlib
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from training.world import make_clip, make_clips
from training.world.camera import CameraPlacement, camera_path
from training.world.clip import render_scene
from training.world.light import Ground, Light
from training.world.physics import simulate
from training.world.render import Shot, render
from training.world.scene import (
    CAMERAS,
    COLOURS,
    DIRECTED_EVENTS,
    EVENTS,
    HELD_OUT,
    RANGE_SIZES,
    RANGE_SPEEDS,
    SIZES,
    SPEEDS,
    SPLITS,
    Scene,
    Thing,
    attribute_pairs,
    sample_scene,
)
from training.world.solids import Solid, half_sizes

CPU = torch.device("cpu")


def scene_of(event: str, shape: str, index: int = 0, camera: str = "still", speed: float = 1.0, size="medium") -> Scene:
    """Write a scene by hand: a red subject, and whatever else its event needs."""
    things = [Thing(shape, "red", size, "matte", SIZES[size])]
    if event == "collide":
        things.append(Thing("cube", "blue", "medium", "matte", SIZES["medium"]))
    if event == "topple":
        things += [Thing("cube", colour, "small", "matte", SIZES["small"]) for colour in ("blue", "green")]
    direction = ("left", "right")[index % 2] if event in DIRECTED_EVENTS else None
    return Scene(0, "test", index, tuple(things), event, direction, speed, camera, "concrete", "clear", "noon", 2.0)


def truth_of(scene: Scene, frames: int = 65, fps: float = 32.0):
    return render_scene(scene, 8, 8, frames, fps, CPU).truth


def shot_of(solid: Solid, position, eye, at, slope=0.4, sun=(0.6, 0.0, 0.8), rotation=None) -> Shot:
    """Point a camera from `eye` at `at`, with one solid at `place` on grey ground under a white sun."""
    eye, at = torch.tensor(eye), torch.tensor(at)
    forward = torch.nn.functional.normalize(at - eye, dim=0)
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, torch.tensor((0.0, 0.0, 1.0))), dim=0)
    axes = torch.stack((right, torch.linalg.cross(right, forward), forward))[None]
    light = Light(sun, (1.0,) * 3, (0.2,) * 3, (0.3,) * 3, (0.3,) * 3, 0.5, 0.0, (0.0, 0.0, 0.0))
    ground = Ground("concrete", (0.3, 0.3, 0.3), 0.0, (0.0, 0.0))
    rotations = (torch.eye(3) if rotation is None else rotation)[None, None]
    return Shot(
        (solid,),
        1,
        torch.tensor(position)[None, None],
        rotations,
        eye[None],
        axes,
        torch.tensor([slope]),
        light,
        ground,
    )


def plain(shape: str, half, albedo=(0.6, 0.1, 0.1)) -> Solid:
    return Solid("thing 0", shape, half, albedo, albedo, (0.0, 0.0, 1.0, math.inf))


def silhouette(shot: Shot, pixels: int) -> torch.Tensor:
    """Find how much of each pixel (Y, X) the solid covers: that much of a pixel changes with the solid's colour."""
    dark, bright = (
        render(
            replace(shot, solids=(replace(shot.solids[0], albedo=albedo, second_albedo=albedo),)), pixels, pixels
        ).float()
        for albedo in ((0.0, 0.0, 0.0), (0.9, 0.9, 0.9))
    )
    return ((bright - dark)[:, 0].amax(0) > 20).float()  # levels: a lit white and a black solid are 100 and more apart


def linear(video: torch.Tensor) -> torch.Tensor:
    return (video.double() / 255) ** 2.2


@pytest.mark.slow
def test_the_same_clip_has_the_same_bytes_in_other_processes_and_worker_counts():
    here = [make_clip(3, "train", index, rows=32, columns=32) for index in range(4)]
    for workers in (1, 2):
        for clip, other in zip(here, make_clips(range(4), seed=3, workers=workers, rows=32, columns=32), strict=True):
            assert torch.equal(clip.video, other.video)
            assert clip.scene == other.scene and clip.truth.to_json() == other.truth.to_json()
    assert not torch.equal(here[0].video, make_clip(4, "train", 0, rows=32, columns=32).video)


@pytest.mark.parametrize(("rows", "columns"), [(96, 48), (32, 64), (40, 40)])
def test_another_size_shows_the_same_event_with_the_action_inside_the_smaller_dimension(rows, columns):
    square, other = (make_clip(0, "train", 7, rows=r, columns=c) for r, c in ((64, 64), (rows, columns)))
    assert other.video.shape == (3, 17, rows, columns) and other.video.dtype == torch.uint8
    assert np.array_equal(square.truth.positions, other.truth.positions)
    assert np.array_equal(square.truth.rotations, other.truth.rotations)
    small = min(rows, columns)
    centred = (other.truth.pixels - np.array([columns, rows]) / 2) / small
    assert np.allclose(centred, (square.truth.pixels - 32) / 64)


def test_frame_rate_and_length_sample_one_and_the_same_motion():
    shapes = ((9, 4), (17, 8), (33, 8))
    coarse, fine, long = (make_clip(0, "train", 5, rows=8, columns=8, frames=f, fps=r).truth for f, r in shapes)
    assert np.allclose(coarse.positions, fine.positions[::2])
    assert np.allclose(long.positions[:17], fine.positions)
    assert np.allclose(long.eyes[[0, -1]], fine.eyes[[0, -1]])  # the camera's move takes the whole clip


def test_a_single_frame_shows_the_subject():
    for scene in (scene_of("occlude", "cube"), scene_of("throw", "ball"), scene_of("roll", "ball", camera="pan left")):
        clip = render_scene(scene, 32, 32, 1, 8.0, CPU)
        assert clip.video.shape[1] == 1 and clip.truth.visible[0, 0] >= 0.5


def test_a_ball_is_projected_as_a_conic():
    radius, eye = 0.5, (0.0, -5.0, 1.5)
    for position in ((0.0, 0.0, 1.5), (1.1, 0.5, 2.2), (-1.4, 0.0, 0.8)):
        seen = silhouette(shot_of(plain("ball", (radius,) * 3), position, eye, (0.0, 0.0, 1.5)), 256)
        offset = np.array(position) - eye
        sine = radius / np.linalg.norm(offset)
        tilt = math.acos(offset[1] / np.linalg.norm(offset))  # from the optical axis, along y
        spread = math.cos(tilt) ** 2 - sine**2
        area = math.pi * sine**2 * math.sqrt(1 - sine**2) / spread**1.5 / 0.4**2  # of the ellipse, in u and v
        centre = math.sin(tilt) * math.cos(tilt) / spread / 0.4
        assert float(seen.sum()) * (2 / 256) ** 2 == pytest.approx(area, rel=0.03)  # half a pixel of rim is 3 %
        rows, columns = torch.nonzero(seen).double().mean(0) + 0.5
        u, v = float(columns) / 128 - 1, 1 - float(rows) / 128
        assert math.hypot(u, v) == pytest.approx(centre, abs=0.01)
        if tilt:
            assert (u, v) == pytest.approx(centre * offset[[0, 2]] / math.hypot(*offset[[0, 2]]), abs=0.01)


def test_a_box_seen_straight_on_is_its_front_face():
    shot = shot_of(plain("cube", (0.6, 0.4, 0.3)), (0.0, 0.0, 1.0), (0.0, -4.0, 1.0), (0.0, 0.0, 1.0))
    rows, columns = torch.nonzero(silhouette(shot, 256)).T
    scale = 128 / (0.4 * (4.0 - 0.4))  # the nearest face is 3.6 m away
    assert int(columns.max() - columns.min()) + 1 == pytest.approx(2 * 0.6 * scale, abs=1.5)
    assert int(rows.max() - rows.min()) + 1 == pytest.approx(2 * 0.3 * scale, abs=1.5)
    assert len(rows) == pytest.approx(4 * 0.6 * 0.3 * scale**2, rel=0.03)


@pytest.mark.parametrize("shape", ["cylinder", "capsule"])
def test_a_standing_round_body_is_as_wide_as_its_axis_says_however_it_is_turned_about_it(shape):
    half, angle = half_sizes(shape, 0.8), 1.0
    rotation = torch.tensor(
        [[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1.0]]
    )
    eye, at = (0.0, -6.0, 1.2), (0.0, 0.0, 1.2)
    seen, turned = (silhouette(shot_of(plain(shape, half), at, eye, at, rotation=t), 256) for t in (None, rotation))
    assert torch.equal(seen, turned)
    width = 2 * half[0] / math.sqrt(36 - half[0] ** 2) / 0.4 * 128  # of a tube, from its tangents
    assert float(seen[128].sum()) == pytest.approx(width, abs=1.5)


def test_a_shadow_falls_away_from_the_sun():
    position, eye, at = (0.0, 0.0, 1.6), (0.0, -5.0, 4.0), (0.0, 0.0, 0.3)
    for x, y in ((0.6, 0.0), (-0.6, 0.0), (0.0, -0.6)):
        shot = shot_of(plain("ball", (0.3,) * 3), position, eye, at, sun=(x, y, 0.8))
        far = shot_of(plain("ball", (0.3,) * 3), (0.0, -50.0, 1.6), eye, at, sun=(x, y, 0.8))
        darker = (render(far, 128, 128).float() - render(shot, 128, 128).float()).amin(0)[0]
        darker[silhouette(shot, 128) > 0] = 0
        rows, columns = torch.nonzero(darker > 30).double().mean(0) + 0.5
        ground = torch.tensor([-x * 1.6 / 0.8, -y * 1.6 / 0.8, 0.0]) - torch.tensor(eye)
        right, up, depth = (shot.axes[0] @ ground).tolist()
        expected = (64 + 64 * right / depth / 0.4, 64 - 64 * up / depth / 0.4)
        assert (float(columns), float(rows)) == pytest.approx(expected, abs=1.5)


def test_a_small_image_is_the_average_of_a_large_one():
    # Where no edge is, one ray stands for the pixel; on an edge eight do, each worth an eighth of the contrast.
    rotation = torch.tensor([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1.0]])
    shot = shot_of(
        plain("cube", (0.7, 0.7, 0.7)), (0.0, 0.0, 0.7), (0.4, -5.0, 2.0), (0.0, 0.0, 0.7), rotation=rotation
    )
    small, large = linear(render(shot, 32, 32)), linear(render(shot, 256, 256))
    mean = torch.nn.functional.avg_pool2d(large[:, 0], 8)
    error = (small[:, 0] - mean).abs()
    assert float(error.mean()) < 0.003 and float(error.max()) < 0.08


def test_antialiased_pixels_are_between_the_two_sides_of_an_edge():
    # A wall of one colour before the sky: along each row, the picture goes from one to the other and not beyond.
    shot = shot_of(
        plain("cube", (2.0, 0.1, 4.0)), (-2.0, 0.0, 0.0), (0.0, -5.0, 1.0), (0.0, 0.0, 1.0), sun=(0, -0.6, 0.8)
    )
    tilt = torch.tensor([[math.cos(0.2), 0, math.sin(0.2)], [0, 1, 0], [-math.sin(0.2), 0, math.cos(0.2)]])
    red = render(replace(shot, rotations=tilt[None, None]), 48, 48)[0, 0].int()
    mixed = 0
    for row in red[:14]:  # above the horizon, where the other side is the sky
        edge = int((row[1:] - row[:-1]).abs().argmax())
        low, high = sorted((int(row[edge - 2]), int(row[edge + 3])))
        inside = row[edge - 1 : edge + 3]
        assert int(inside.min()) >= low - 1 and int(inside.max()) <= high + 1
        mixed += int(((inside > low + 4) & (inside < high - 4)).any())
    assert mixed > 7  # a slanted edge is mixed in most rows


def test_visible_fractions_agree_with_the_image():
    scene = scene_of("occlude", "ball", camera="orbit left")
    other = replace(scene, things=(replace(scene.things[0], colour="white"),))
    red, white = (render_scene(s, 96, 96, 17, 8.0, CPU) for s in (scene, other))
    shown = ((red.video.int() - white.video.int()).abs().amax(0) > 12).sum((1, 2)).double()
    left, top, right, bottom = (red.truth.boxes[:, 0, side] for side in range(4))
    whole = torch.from_numpy(math.pi / 4 * (right - left) * (bottom - top))  # a ball's silhouette is an ellipse
    assert np.allclose((shown / whole).numpy(), red.truth.visible[:, 0], atol=0.09)  # half a rim of pixels
    assert {"hidden", "seen"} <= {event.name for event in red.truth.physics_events}


@pytest.mark.parametrize("event", EVENTS)
def test_every_event_really_happens(event):
    for index, shape in enumerate(EVENTS[event]):
        size = "medium" if event == "topple" else tuple(SIZES)[index % 3]
        scene = scene_of(event, shape, index, speed=(0.8, 1.0, 1.25)[index % 3], size=size)
        truth = truth_of(scene)
        x, height = truth.positions[:, 0, 0], truth.positions[:, 0, 2]
        names = [(event.name, event.bodies) for event in truth.physics_events]
        moved = float(np.linalg.norm(truth.positions[-1, 0] - truth.positions[0, 0]))
        forward = float(x[-1] - x[0]) * (1 if scene.direction == "right" else -1)
        if scene.direction:
            assert forward > 0.5
        if event == "rest":
            assert moved < 0.01
        if event in ("roll", "slide"):
            cosines = [(np.trace(truth.rotations[0, 0].T @ later) - 1) / 2 for later in truth.rotations[:, 0]]
            assert min(cosines) < 0 if event == "roll" else min(cosines) > 0.99
        if event == "spin":
            axis = 2 if shape != "cube" else 0
            turned = np.unwrap(np.arctan2(truth.rotations[:, 0, 1, axis], truth.rotations[:, 0, 0, axis]))
            assert abs(turned[-1] - turned[0]) > math.radians(270) and moved < 0.1
        if event == "fall":
            assert (
                height[0] - height[-1] > 0.9
                and np.ptp(height[45:]) < 0.02
                and ("touch", ("thing 0", "ground")) in names
            )
        if event == "bounce":
            assert names.count(("leave", ("thing 0", "ground"))) >= 2
        if event == "throw":
            assert height.max() > height[0] + 0.6 and abs(height[-1] - height[-5]) < 0.1
        if event == "swing":
            assert names.count(("turn", ("thing 0",))) >= 2
        if event == "occlude":
            hidden = np.flatnonzero(truth.visible[:, 0] < 0.02)
            assert len(hidden) >= 4 and truth.visible[: hidden[0], 0].max() > 0.4 < truth.visible[hidden[-1] :, 0].max()
        if event == "edge":
            assert ("leave", ("thing 0", "platform")) in names and height[0] - height[-1] > 0.4
        if event == "collide":
            assert ("touch", ("thing 0", "thing 1")) in names
            assert np.linalg.norm(truth.positions[-1, 1, :2] - truth.positions[0, 1, :2]) > 0.4
        if event == "topple":
            assert truth.positions[0, 2, 2] - truth.positions[-1, 2, 2] > 0.4


def test_bystanders_stand_where_the_scene_says_as_seen_in_the_first_frame():
    checked = 0
    for index in range(60):
        scene = sample_scene(1, "train", index)
        if not any(thing.relation for thing in scene.things):
            continue
        simulation = simulate(scene)
        camera = camera_path(scene.camera, simulation.placement, np.zeros(1))
        u, _, depth = camera.project(simulation.positions[0, : simulation.things, None])
        for number, thing in enumerate(scene.things):
            if thing.relation:
                checked += 1
                assert simulation.visible[0, number] > 0.25
                if thing.relation in ("left of", "right of"):
                    assert (u[number, 0] < u[0, 0]) == (thing.relation == "left of")
                else:
                    assert (depth[number, 0] > depth[0, 0]) == (thing.relation == "behind")
    assert checked > 10


@pytest.mark.parametrize("move", CAMERAS)
def test_each_camera_move_moves_the_camera_as_named(move):
    camera = camera_path(move, CameraPlacement(6.0, 0.3, 0.1, 1.0, math.radians(8.5)), np.linspace(0, 1, 5))
    shift, rotation = camera.eyes[-1] - camera.eyes[0], camera.axes[-1, 2] - camera.axes[0, 2]
    kind, _, way = move.partition(" ")
    assert (abs(shift[0]) > 3) == (kind == "orbit") and (abs(shift[2]) > 2) == (kind == "crane")
    assert (camera.slopes[-1] != camera.slopes[0]) == (kind == "zoom")
    value = {
        "still": 0,
        "orbit": shift[0],
        "pan": rotation[0],
        "crane": shift[2],
        "zoom": camera.slopes[-1] - camera.slopes[0],
    }
    assert np.sign(value[kind]) == {"left": -1, "down": -1, "in": -1, "": 0}.get(way, 1)
    ahead = np.einsum("fw,fw->f", camera.axes[:, 2], np.array([0, 0, 1.0]) - camera.eyes)
    aim = np.linalg.norm(np.array([0, 0, 1.0]) - camera.eyes, axis=1)
    assert np.allclose(ahead, aim) or kind == "pan"  # all but a pan look at the action
    if kind == "pan":
        headings = np.unwrap(np.arctan2(camera.axes[:, 2, 0], camera.axes[:, 2, 1]))
        assert abs(headings[-1] - headings[0]) == pytest.approx(math.radians(17))


def test_held_out_pairs_are_in_every_scene_of_combinations_and_in_none_of_train():
    for index in range(300):
        assert not attribute_pairs(sample_scene(0, "train", index)) & HELD_OUT
        assert not attribute_pairs(sample_scene(0, "test", index)) & HELD_OUT
        assert attribute_pairs(sample_scene(0, "combinations", index)) & HELD_OUT


def test_the_range_split_is_out_of_range_and_train_is_not():
    for index in range(300):
        odd, usual = (sample_scene(0, split, index) for split in ("range", "train"))
        speeds = [low <= odd.speed <= high for low, high in RANGE_SPEEDS]
        assert any(speeds) != (odd.things[0].size in RANGE_SIZES)
        assert SPEEDS[0] <= usual.speed <= SPEEDS[1] and {thing.size for thing in usual.things} <= set(SIZES)


@pytest.mark.parametrize(("edition", "material"), [(1, "matte"), (2, "matte"), (2, "glossy"), (2, "metal")])
def test_no_two_colours_look_alike_in_any_light(edition, material):
    seen = {}
    for time in ("morning", "noon", "sunset", "night"):
        for colour in COLOURS:
            scene = scene_of("rest", "ball", size="large")
            thing = replace(scene.things[0], colour=colour, material=material)
            scene = replace(scene, time=time, things=(thing,), edition=edition)
            clip = render_scene(scene, 32, 32, 1, 8.0, CPU)
            x, y = clip.truth.pixels[0, 0].round().astype(int)
            seen[time, colour] = clip.video[:, 0, y - 3 : y + 4, x - 3 : x + 4].double().mean((1, 2))
        for first in COLOURS:
            for second in COLOURS:
                apart = (seen[time, first] - seen[time, second]).norm()
                assert first == second or apart > 40, (time, first, second)  # 40 of 255 levels is plain to see


def test_truth_is_plain_json():
    truth = make_clip(0, "train", 1, rows=16, columns=16, frames=3).truth
    again = json.loads(json.dumps(truth.to_json()))
    assert np.allclose(again["positions"], truth.positions) and again["bodies"] == list(truth.bodies)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="above 0"):
        make_clip(0, "train", 0, frames=0)
    with pytest.raises(ValueError, match="split"):
        make_clip(0, "validation", 0)


def test_edition_1_is_the_default_and_never_changes():
    digest = hashlib.sha256()
    for split in SPLITS:
        for index in range(3):
            clip = make_clip(5, split, index, rows=16, columns=16, frames=5)
            digest.update(np.round(clip.truth.positions, 4).tobytes())
            digest.update(
                json.dumps([clip.scene.event, clip.scene.camera, clip.scene.ground, clip.scene.time]).encode()
            )
            assert clip.scene.edition == 1 and clip.scene.wetness == "dry"
    assert digest.hexdigest()[:16] == "b464239230cc6570"  # of the world that the first models were trained on


@pytest.mark.gpu
def test_a_gpu_renders_the_same_image_but_for_rounding():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    here, there = (make_clip(0, "train", 3, device=device).video for device in ("cpu", "cuda"))
    assert float((here.int() - there.cpu().int()).abs().double().mean()) < 0.5
