"""The camera: nine ways to move through a clip, each plain to see.

The camera stands about six metres from the action, on the side of negative y, and looks slightly down; x is to its
right.
"Left" is the camera's own left: in "orbit left" it travels that way around the action, in "pan left" it turns there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

DISTANCE = 6.0  # metres to the aim
HALF_VIEW = 2.35  # metres: half of what the smaller image dimension covers at the aim
ORBIT = math.radians(21)  # to either side
PAN = math.radians(8.5)  # to either side
CRANE = 1.1  # metres up and down
ZOOM = (0.86, 1.38)  # factors of the view; their ratio is 1.6


@dataclass(frozen=True)
class Camera:
    """Where the camera is in each frame: eyes (F, 3), axes (F, 3, 3) with rows right, up, forward, and slopes (F).

    A slope is the tangent of half the field of view across the smaller image dimension.
    """

    eyes: np.ndarray
    axes: np.ndarray
    slopes: np.ndarray

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Give u and v (-1 to 1 across the smaller dimension) and depth of points (..., F, 3), one for each frame."""
        offset = points - self.eyes
        side, height, depth = ((offset * self.axes[:, row]).sum(-1) for row in range(3))
        scale = 1 / (np.maximum(depth, 0.1) * self.slopes)
        return side * scale, height * scale, depth


@dataclass(frozen=True)
class Tripod:
    """What differs a little from clip to clip: where the camera stands, its aim, and how far a pan goes; in radians."""

    distance: float
    elevation: float
    azimuth: float
    aim: float
    pan: float


def tripod_of(rng: np.random.Generator, ease: float = 0.0) -> Tripod:
    """Draw where the camera stands; with `ease`, further back and with a smaller pan, to show more."""
    return Tripod(
        distance=DISTANCE * (1 + 0.16 * min(ease, 1.0)) * float(rng.uniform(0.96, 1.04)),
        elevation=math.radians(float(rng.uniform(15, 20))),
        azimuth=math.radians(float(rng.uniform(-6, 6))),
        aim=float(rng.uniform(0.92, 1.02)),
        pan=PAN * (1 - 0.25 * min(ease, 2.0)),
    )


def film(move: str, tripod: Tripod, progress: np.ndarray) -> Camera:
    """Move the camera: its pose at each progress (F) from 0, the first frame, to 1, the last."""
    sweep = 2 * np.asarray(progress, dtype=float) - 1  # -1 to 1
    zero = np.zeros_like(sweep)
    kind, _, way = move.partition(" ")
    sign = -1 if way in ("left", "down", "in") else 1
    azimuth = tripod.azimuth + (sign * ORBIT * sweep if kind == "orbit" else zero)
    flat, high = tripod.distance * math.cos(tripod.elevation), tripod.distance * math.sin(tripod.elevation)
    lift = sign * CRANE * sweep if kind == "crane" else zero
    aim = np.array([0, 0, tripod.aim])
    eyes = aim + np.stack([flat * np.sin(azimuth), -flat * np.cos(azimuth), high + lift], axis=1)
    forward = aim - eyes
    if kind == "pan":
        turn = sign * tripod.pan * sweep  # to the right is clockwise from above
        c, s = np.cos(turn), np.sin(turn)
        x, y = forward[:, 0], forward[:, 1]
        forward = np.stack([c * x + s * y, c * y - s * x, forward[:, 2]], axis=1)
    forward = forward / np.linalg.norm(forward, axis=1, keepdims=True)
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    axes = np.stack([right, np.cross(right, forward), forward], axis=1)
    view = np.sqrt(ZOOM[0] * ZOOM[1]) * (ZOOM[1] / ZOOM[0]) ** (0.5 * sign * sweep) if kind == "zoom" else zero + 1
    return Camera(eyes, axes, HALF_VIEW / DISTANCE * view)
