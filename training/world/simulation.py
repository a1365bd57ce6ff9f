"""A recorded simulation of a scene, and its physics events."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .camera import Camera, CameraPlacement, camera_path
from .scene import Scene
from .solids import Solid

CHECK_FRAMES = 17  # frames over the scene's own seconds that the referee checks
MIN_GAP = 0.08  # simulated seconds: a shorter gap between two contacts is ignored


@dataclass(frozen=True)
class Simulation:
    """A recorded simulation: the solids (things first) and their poses in rows of `row_seconds` of the clip each.

    positions (R, B, 3), quats (R, B, 4) as w, x, y, z, and for each row the pairs of bodies in contact; -1 is the
    ground.
    """

    solids: tuple[Solid, ...]
    things: int
    placement: CameraPlacement
    time_scale: float
    row_seconds: float
    positions: np.ndarray
    quats: np.ndarray
    touching: list[frozenset[tuple[int, int]]]
    visible: np.ndarray  # (CHECK_FRAMES, things) fractions, over the scene's own seconds

    def poses_at(self, seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return positions (F, B, 3) and rotation matrices (F, B, 3, 3) at times (F) of the clip, in seconds."""
        row = np.clip(np.asarray(seconds) / self.row_seconds, 0, len(self.positions) - 1.001)
        first = row.astype(int)
        part = (row - first)[:, None, None]
        positions = self.positions[first] * (1 - part) + self.positions[first + 1] * part
        a, b = self.quats[first], self.quats[first + 1]
        b = np.where((a * b).sum(-1, keepdims=True) < 0, -b, b)
        return positions, rotation_matrices(a * (1 - part) + b * part)


def rotation_matrices(quats: np.ndarray) -> np.ndarray:
    """Convert quaternions (..., 4) of any length to rotation matrices (..., 3, 3)."""
    w, x, y, z = np.moveaxis(quats / np.linalg.norm(quats, axis=-1, keepdims=True), -1, 0)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


@dataclass(frozen=True)
class PhysicsEvent:
    """An event at a time of the clip, between two bodies or of one."""

    name: str
    seconds: float
    bodies: tuple[str, ...]


def check_frames(scene: Scene, simulation: Simulation) -> tuple[Camera, np.ndarray, np.ndarray]:
    """Return camera, positions and rotations in the frames that the referee checks."""
    progress = np.linspace(0, 1, CHECK_FRAMES)
    return camera_path(scene.camera, simulation.placement, progress), *simulation.poses_at(progress * scene.seconds)


def contacts(simulation: Simulation) -> list[tuple[int, int, int, int]]:
    """Return the contacts in order of time: first row, row after the last, and the two bodies; -1 is the ground."""
    pause = max(1, round(MIN_GAP / simulation.time_scale / simulation.row_seconds))
    found, current = [], {}
    for row, pairs in enumerate([*simulation.touching, *[frozenset()] * (pause + 1)]):
        for pair in pairs:
            current[pair] = (current.get(pair, (row, 0))[0], row + 1)
        for pair in [p for p, (_, after) in current.items() if row - after >= pause]:
            first, after = current.pop(pair)
            found.append((first, after, *pair))
    return sorted(found)


def physics_events(simulation: Simulation) -> list[PhysicsEvent]:
    """Return the events of a simulation: "touch" and "leave" of two bodies, and "turn" where a swing reverses."""
    names = {-1: "ground"} | {n: solid.name for n, solid in enumerate(simulation.solids)}
    rows, found = len(simulation.touching), []
    for first, after, a, b in contacts(simulation):
        bodies = (names[b], names[a]) if a == -1 else (names[a], names[b])
        if first > 0:
            found.append(PhysicsEvent("touch", first * simulation.row_seconds, bodies))
        if after < rows:
            found.append(PhysicsEvent("leave", after * simulation.row_seconds, bodies))
    if any(solid.name == "string" for solid in simulation.solids):
        step = np.sign(np.diff(simulation.positions[:, 0, 0]))
        rotations = np.flatnonzero(step[1:] * step[:-1] < 0) + 1
        found += [PhysicsEvent("turn", float(row * simulation.row_seconds), (names[0],)) for row in rotations]
    return sorted(found, key=lambda event: event.seconds)
