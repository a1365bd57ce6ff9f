"""A take: one performance of a scene, recorded in fine steps, and what happened in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .camera import Camera, Tripod, film
from .scene import Scene
from .solids import Solid

CHECKED = 17  # moments of a scene's own seconds at which a take is judged
PAUSE = 0.08  # simulated seconds: a shorter gap between two bodies that touch is not a parting


@dataclass(frozen=True)
class Take:
    """One performance: the solids (things first), and where they are in rows of `row_seconds` of the clip each.

    places (R, B, 3), quats (R, B, 4) as w, x, y, z, and for each row the pairs of bodies that touch; -1 is the ground.
    """

    solids: tuple[Solid, ...]
    things: int
    tripod: Tripod
    pace: float
    row_seconds: float
    places: np.ndarray
    quats: np.ndarray
    touching: list[frozenset[tuple[int, int]]]
    visible: np.ndarray  # (CHECKED, things) fractions, over the scene's own seconds

    def at(self, seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read places (F, B, 3) and rotation matrices (F, B, 3, 3) at the given moments (F) of the clip."""
        row = np.clip(np.asarray(seconds) / self.row_seconds, 0, len(self.places) - 1.001)
        first = row.astype(int)
        part = (row - first)[:, None, None]
        places = self.places[first] * (1 - part) + self.places[first + 1] * part
        a, b = self.quats[first], self.quats[first + 1]
        b = np.where((a * b).sum(-1, keepdims=True) < 0, -b, b)
        return places, matrices(a * (1 - part) + b * part)


def matrices(quats: np.ndarray) -> np.ndarray:
    """Turn quaternions (..., 4) of any length into rotation matrices (..., 3, 3)."""
    w, x, y, z = np.moveaxis(quats / np.linalg.norm(quats, axis=-1, keepdims=True), -1, 0)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


@dataclass(frozen=True)
class Happening:
    """Something that happens at a moment of the clip, between two bodies or to one."""

    name: str
    seconds: float
    bodies: tuple[str, ...]


def checked(scene: Scene, take: Take) -> tuple[Camera, np.ndarray, np.ndarray]:
    """Give camera, places and turns at the moments at which a take is judged."""
    progress = np.linspace(0, 1, CHECKED)
    return film(scene.camera, take.tripod, progress), *take.at(progress * scene.seconds)


def contacts(take: Take) -> list[tuple[int, int, int, int]]:
    """List when two bodies touch, in order: first row, row after the last, and the two bodies; -1 is the ground."""
    pause = max(1, round(PAUSE / take.pace / take.row_seconds))
    found, current = [], {}
    for row, pairs in enumerate([*take.touching, *[frozenset()] * (pause + 1)]):
        for pair in pairs:
            current[pair] = (current.get(pair, (row, 0))[0], row + 1)
        for pair in [p for p, (_, after) in current.items() if row - after >= pause]:
            first, after = current.pop(pair)
            found.append((first, after, *pair))
    return sorted(found)


def happenings(take: Take) -> list[Happening]:
    """Tell what happens in a take: "touch" and "leave" of any two bodies, and "turn" where a swing reverses."""
    names = {-1: "ground"} | {n: solid.name for n, solid in enumerate(take.solids)}
    rows, found = len(take.touching), []
    for first, after, a, b in contacts(take):
        bodies = (names[b], names[a]) if a == -1 else (names[a], names[b])
        if first > 0:
            found.append(Happening("touch", first * take.row_seconds, bodies))
        if after < rows:
            found.append(Happening("leave", after * take.row_seconds, bodies))
    if any(solid.name == "string" for solid in take.solids):
        step = np.sign(np.diff(take.places[:, 0, 0]))
        turns = np.flatnonzero(step[1:] * step[:-1] < 0) + 1
        found += [Happening("turn", float(row * take.row_seconds), (names[0],)) for row in turns]
    return sorted(found, key=lambda happening: happening.seconds)
