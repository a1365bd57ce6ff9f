"""Camera velocities: six numbers per latent frame that a prompt can name, a person can set, and training measures.

Translation to the right, up and forward, then rotation up (pitch), to the right (yaw) and clockwise (roll), in the
camera's own axes. Each number is in units of a usual move (`VELOCITY_UNITS` in `training/world/camera.py`).
"""

from __future__ import annotations

CAMERA_AXES = ("right", "up", "forward", "pitch", "yaw", "roll")
CAMERA_VALUES = len(CAMERA_AXES) + 1  # and 1 where the velocity is known; where it is not, all are 0
