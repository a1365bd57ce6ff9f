"""Camera velocities: six numbers per latent frame that a prompt can name, a person can set, and training measures.

Translation to the right, up and forward, then rotation up (pitch), to the right (yaw) and clockwise (roll), in the
camera's own axes. Each number is in units of a usual move (`VELOCITY_UNITS` in `training/world/camera.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

CAMERA_AXES = ("right", "up", "forward", "pitch", "yaw", "roll")
CAMERA_VALUES = len(CAMERA_AXES) + 1  # and 1 where the velocity is known; where it is not, all are 0
MAX_VELOCITY = 5.0  # of any axis
# Mean velocities of the moves of edition 2 of the world (`training/world/camera.py`). An orbit and a crane keep looking
# at the action, so they turn too; a pan of a camera that looks down is partly a roll.
CAMERA_MOVES: dict[str, tuple[float, ...]] = {
    "still": (0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    "pan left": (0.0, 0.0, 0.0, 0.0, -0.4, -0.14),
    "pan right": (0.0, 0.0, 0.0, 0.0, 0.4, 0.14),
    "orbit left": (-1.12, 0.0, 0.0, 0.0, 1.12, 0.4),
    "orbit right": (1.12, 0.0, 0.0, 0.0, -1.12, -0.4),
    "crane up": (0.0, 1.02, -0.13, -1.0, 0.0, 0.0),
    "crane down": (0.0, -1.02, 0.13, 1.0, 0.0, 0.0),
    "zoom in": (0.0, 0.0, 1.04, 0.0, 0.0, 0.0),
    "zoom out": (0.0, 0.0, -1.04, 0.0, 0.0, 0.0),
}


def parse_camera(camera: str | Sequence[float]) -> str:
    """Return the usual spelling of a camera velocity: names of CAMERA_MOVES joined by " + ", or six numbers.

    Numbers may be a sequence, or text with commas or spaces between them. Raises ValueError for anything else.
    """
    given = camera if isinstance(camera, str) else ", ".join(map(str, camera))
    names = [" ".join(name.lower().split()) for name in given.split("+")]
    if all(name in CAMERA_MOVES for name in names):
        return " + ".join(names)
    try:
        numbers = [float(part) for part in given.replace(",", " ").split()]
    except ValueError:
        numbers = []
    if len(numbers) == len(CAMERA_AXES) and all(abs(number) <= MAX_VELOCITY for number in numbers):
        return ", ".join(f"{number:g}" for number in numbers)
    raise ValueError(
        f"camera must be {', '.join(CAMERA_MOVES)}, or six numbers from {-MAX_VELOCITY:g} to {MAX_VELOCITY:g} for "
        f"{', '.join(CAMERA_AXES)}; got {given[:100]!r}"
    )


def camera_velocity_of(camera: str | Sequence[float]) -> tuple[float, ...]:
    """Return the six numbers of a camera velocity, the sum where it names several moves; raises as `parse_camera`."""
    parts = parse_camera(camera)
    if parts[0].isalpha():
        return tuple(map(math.fsum, zip(*(CAMERA_MOVES[name] for name in parts.split(" + ")), strict=True)))
    return tuple(map(float, parts.split(",")))
