"""The camera: nine moves, and their velocities.

The camera stands about six metres from the action, on the side of negative y, and looks slightly down; x is to its
right.
"Left" is the camera's own left: in "orbit left" it travels that way around the action, in "pan left" it turns there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .editions import EDITIONS, Edition

VELOCITY_UNITS = np.array([0.3, 0.15, 0.2, 0.15, 0.3, 0.15])  # what counts as 1 in camera_velocity


@dataclass(frozen=True)
class Camera:
    """Camera pose in each frame: eyes (F, 3), axes (F, 3, 3) with rows right, up, forward, and slopes (F).

    A slope is the tangent of half the field of view across the smaller image dimension.
    """

    eyes: np.ndarray
    axes: np.ndarray
    slopes: np.ndarray

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return u and v (-1 to 1 across the smaller dimension) and depth of points (..., F, 3), one per frame."""
        offset = points - self.eyes
        side, height, depth = ((offset * self.axes[:, row]).sum(-1) for row in range(3))
        scale = 1 / (np.maximum(depth, 0.1) * self.slopes)
        return side * scale, height * scale, depth


@dataclass(frozen=True)
class CameraPlacement:
    """Camera parameters that vary between clips: position, aim, extent of each move, tangent of half the field of view.

    Angles and the extents of pan and orbit are radians, of a crane metres; a zoom has two factors of the view.
    """

    distance: float
    elevation: float
    azimuth: float
    aim: float
    pan: float
    orbit: float = EDITIONS[1].orbit
    crane: float = EDITIONS[1].crane
    zoom: tuple[float, float] = EDITIONS[1].zoom
    slope: float = EDITIONS[1].half_view / EDITIONS[1].distance


def sample_placement(rng: np.random.Generator, ease: float = 0.0, rules: Edition = EDITIONS[1]) -> CameraPlacement:
    """Draw a camera placement. With `ease` the camera is further back and pans less, so that more is visible."""
    distance = rules.distance * (1 + 0.16 * min(ease, 1.0)) * float(rng.uniform(0.96, 1.04))
    elevation = math.radians(float(rng.uniform(*rules.elevation)))
    azimuth = math.radians(float(rng.uniform(-6, 6)))
    aim = float(rng.uniform(0.92, 1.02))
    far = 1.0 if rules.camera_jitter == (1.0, 1.0) else float(rng.uniform(*rules.camera_jitter))
    return CameraPlacement(
        distance=distance,
        elevation=elevation,
        azimuth=azimuth,
        aim=aim,
        pan=far * rules.pan * (1 - 0.25 * min(ease, 2.0)),
        orbit=far * rules.orbit,
        crane=far * rules.crane,
        zoom=rules.zoom,
        slope=rules.half_view / rules.distance,
    )


def camera_path(move: str, placement: CameraPlacement, progress: np.ndarray) -> Camera:
    """Return the camera of a move at each progress (F): 0 is the first frame, 1 the last."""
    sweep = 2 * np.asarray(progress, dtype=float) - 1  # -1 to 1
    zero = np.zeros_like(sweep)
    kind, _, way = move.partition(" ")
    sign = -1 if way in ("left", "down", "in") else 1
    azimuth = placement.azimuth + (sign * placement.orbit * sweep if kind == "orbit" else zero)
    flat, high = placement.distance * math.cos(placement.elevation), placement.distance * math.sin(placement.elevation)
    lift = sign * placement.crane * sweep if kind == "crane" else zero
    aim = np.array([0, 0, placement.aim])
    eyes = aim + np.stack([flat * np.sin(azimuth), -flat * np.cos(azimuth), high + lift], axis=1)
    forward = aim - eyes
    if kind == "pan":
        turn = sign * placement.pan * sweep  # to the right is clockwise from above
        c, s = np.cos(turn), np.sin(turn)
        x, y = forward[:, 0], forward[:, 1]
        forward = np.stack([c * x + s * y, c * y - s * x, forward[:, 2]], axis=1)
    forward = forward / np.linalg.norm(forward, axis=1, keepdims=True)
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    axes = np.stack([right, np.cross(right, forward), forward], axis=1)
    near, wide = placement.zoom
    view = np.sqrt(near * wide) * (wide / near) ** (0.5 * sign * sweep) if kind == "zoom" else zero + 1
    return Camera(eyes, axes, placement.slope * view)


def camera_velocity(move: str, placement: CameraPlacement, progress: np.ndarray, duration: float) -> np.ndarray:
    """Return the velocity of the camera (F, 6) at each progress (F) of a clip of `duration` seconds; 0 for a still.

    In the camera's own axes: translation to the right, up and forward, in distances to the aim per second; then
    rotation up (pitch), to the right (yaw) and clockwise (roll), in radians per second. Each number is divided by its
    VELOCITY_UNITS, so that the moves of the world are about 1. A zoom counts as forward translation: the rate of the
    logarithm of the magnification, which at the aim is the same. A horizontal
    flip changes the sign of columns 0, 4 and 5.
    """
    progress = np.asarray(progress, dtype=float)
    if duration <= 0:
        return np.zeros((len(progress), 6), dtype=np.float32)
    small = 1e-4
    before, now, after = (camera_path(move, placement, progress + shift) for shift in (-small, 0.0, small))
    seconds = 2 * small * duration
    shift = np.einsum("fij,fj->fi", now.axes, after.eyes - before.eyes) / (placement.distance * seconds)
    shift[:, 2] -= (np.log(after.slopes) - np.log(before.slopes)) / seconds
    turn = np.einsum(
        "fij,fkj->fik", now.axes, (after.axes - before.axes) / seconds
    )  # of the axes k, seen in the axes i
    rotation = np.stack([turn[:, 1, 2], turn[:, 0, 2], turn[:, 0, 1]], axis=1)
    return (np.concatenate([shift, rotation], axis=1) / VELOCITY_UNITS).astype(np.float32)


def mirror_velocity(velocity: np.ndarray) -> np.ndarray:
    """Return the camera velocity (..., 6) of a horizontally flipped clip."""
    return velocity * np.array([-1, 1, 1, 1, -1, -1], dtype=velocity.dtype)
