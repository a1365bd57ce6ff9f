"""A clip of the procedural world: pixels, scene and ground truth."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from .camera import camera_path, camera_velocity
from .light import make_ground, make_light
from .physics import simulate
from .render import Shot, render
from .scene import Scene, clip_rng, event_seconds, sample_scene
from .simulation import PhysicsEvent, Simulation, physics_events
from .solids import visible_fractions

STILL_TIME = 0.4  # share of the event at which an image (frames = 1) is taken
HIDDEN_FRACTION = 0.02  # visible fraction up to which a thing counts as hidden


@dataclass(frozen=True)
class Truth:
    """Ground truth of each frame, in metres, seconds of the clip, and pixels (x to the right, y down, from the top
    left).

    positions (F, B, 3) and rotations (F, B, 3, 3) are of all `bodies`: things first, then wall, platform or string. Of
    things only: pixels (F, B, 2), the centre; boxes (F, B, 4) as left, top, right and bottom of the whole silhouette,
    also outside of the frame; visible (F, B), the part of the silhouette that is in the frame and not hidden. The
    camera: eyes (F, 3), axes (F, 3, 3) with rows right, up, forward, and fields of view (F), degrees across the smaller
    dimension. camera (F, 6) is its velocity as `camera.camera_velocity` defines it. `time_scale` simulated seconds pass
    in a second of the clip, so that gravity looks like 9.81 time_scale^2.
    """

    seconds: np.ndarray
    bodies: tuple[str, ...]
    positions: np.ndarray
    rotations: np.ndarray
    pixels: np.ndarray
    boxes: np.ndarray
    visible: np.ndarray
    eyes: np.ndarray
    axes: np.ndarray
    fields_of_view: np.ndarray
    camera: np.ndarray
    time_scale: float
    physics_events: tuple[PhysicsEvent, ...]

    def to_json(self) -> dict:
        """Return the truth as lists, numbers and strings."""
        plain = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(self).items()}
        return plain | {"bodies": list(self.bodies), "physics_events": [asdict(event) for event in self.physics_events]}


@dataclass(frozen=True)
class Clip:
    """A video as uint8 (3, F, Y, X), its scene and its ground truth."""

    video: Tensor
    scene: Scene
    truth: Truth


def make_clip(
    seed: int,
    split: str,
    index: int,
    *,
    rows: int = 64,
    columns: int = 64,
    frames: int = 17,
    fps: float = 8.0,
    device: str | torch.device = "cpu",
    edition: int = 1,
) -> Clip:
    """Render clip `index` of a split; the same arguments give the same bytes on the same machine.

    Size, frames and fps do not change what happens (from edition 2 on, a longer clip gives its event longer). The
    smaller image dimension covers the action, and a camera move takes the whole clip. With frames = 1 the image shows
    one time of the event at which the subject is visible. Raises ValueError for an empty video or an unknown split,
    RuntimeError for a scene that cannot be played.
    """
    if min(rows, columns, frames) < 1 or fps <= 0:
        given = f"{rows}, {columns}, {frames} and {fps}"
        raise ValueError(f"rows, columns, frames and fps of a clip must be above 0; got {given}")
    scene = sample_scene(seed, split, index, event_seconds(edition, frames, fps), edition)
    return render_scene(scene, rows, columns, frames, fps, torch.device(device))


def render_scene(scene: Scene, rows: int, columns: int, frames: int, fps: float, device: torch.device) -> Clip:
    """Render any scene, as make_clip does; what the scene leaves open is drawn from its seed, split and index."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the same order of summation for any number of workers
    try:
        return _render(scene, rows, columns, frames, fps, device)
    finally:
        torch.set_num_threads(threads)


def _render(scene: Scene, rows: int, columns: int, frames: int, fps: float, device: torch.device) -> Clip:
    duration = (frames - 1) / fps
    simulation = simulate(scene, duration)
    seconds = np.arange(frames) / fps if frames > 1 else np.array([_still_time(simulation) * scene.seconds])
    progress = seconds / (duration if frames > 1 else scene.seconds)
    camera = camera_path(scene.camera, simulation.placement, progress)
    positions, rotations = simulation.poses_at(seconds)
    float32 = partial(torch.as_tensor, dtype=torch.float32, device=device)
    poses = float32(positions), float32(rotations)
    view = float32(camera.eyes), float32(camera.axes), float32(camera.slopes)
    rng = clip_rng(scene.seed, scene.split, scene.index, 1)
    shot = Shot(simulation.solids, simulation.things, *poses, *view, make_light(scene, rng), make_ground(scene, rng))

    half = np.array([columns, rows]) / 2
    scale = half.min() * np.array([1, -1])  # from u and v to pixels
    edge = (columns / min(rows, columns), rows / min(rows, columns))
    boxes, visible = (
        t.cpu().double().numpy()
        for t in visible_fractions(simulation.solids, simulation.things, *poses, *view, edge=edge)
    )
    u, v, _ = camera.project(np.moveaxis(positions[:, : simulation.things], 1, 0))
    truth = Truth(
        seconds=seconds,
        bodies=tuple(solid.name for solid in simulation.solids),
        positions=positions,
        rotations=rotations,
        pixels=half + scale * np.stack([u.T, v.T], axis=-1),
        boxes=np.concatenate([half + scale * boxes[..., [0, 3]], half + scale * boxes[..., [2, 1]]], axis=-1),
        visible=visible,
        eyes=camera.eyes,
        axes=camera.axes,
        fields_of_view=np.degrees(2 * np.arctan(camera.slopes)),
        camera=camera_velocity(scene.camera, simulation.placement, progress, duration),
        time_scale=simulation.time_scale,
        physics_events=_clip_events(simulation, seconds, visible),
    )
    return Clip(render(shot, rows, columns), scene, truth)


def _still_time(simulation: Simulation) -> float:
    """Return the time, as a share of the event, that an image shows: near STILL_TIME, with the subject visible."""
    parts, sight = np.linspace(0, 1, len(simulation.visible)), simulation.visible[:, 0]
    return float(parts[np.argmin(np.abs(parts - STILL_TIME) + 10 * (sight < min(0.6, sight.max())))])


def _clip_events(simulation: Simulation, seconds: np.ndarray, visible: np.ndarray) -> tuple[PhysicsEvent, ...]:
    """Return the physics events of a clip, and when a thing becomes "hidden" from the camera or "seen" again."""
    found = [event for event in physics_events(simulation) if event.seconds <= seconds[-1]]
    for number in range(visible.shape[1]):
        change = np.diff((visible[:, number] <= HIDDEN_FRACTION).astype(int), prepend=0)
        for frame in np.flatnonzero(change):
            name = "hidden" if change[frame] > 0 else "seen"
            found.append(PhysicsEvent(name, float(seconds[frame]), (simulation.solids[number].name,)))
    return tuple(sorted(found, key=lambda event: event.seconds))


def make_clips(
    indices: Iterable[int], seed: int = 0, split: str = "train", workers: int = 2, **options
) -> Iterator[Clip]:
    """Render clips in order in `workers` processes; options are make_clip's. The bytes do not depend on `workers`.

    Like everything that starts processes, a script calls this under `if __name__ == "__main__"`.
    """
    if workers < 2:
        yield from (make_clip(seed, split, index, **options) for index in indices)
        return
    make = partial(_make, seed=seed, split=split, options=options)
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for clip in pool.imap(make, indices, chunksize=2):
            yield replace(clip, video=torch.from_numpy(clip.video))


def _make(index: int, seed: int, split: str, options: dict) -> Clip:
    clip = make_clip(seed, split, index, **options)
    return replace(clip, video=clip.video.cpu().numpy())  # a tensor would travel as an open file
