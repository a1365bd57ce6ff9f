"""Bodies: solids with a pose and a velocity, the initial state of a simulation.

Rotations are quaternions (4) as w, x, y, z.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from .editions import EDITIONS, Edition
from .layout import Disc
from .scene import COLOURS, Thing
from .solids import Solid, half_sizes

PROPS: dict[str, tuple[float, float, float]] = {  # linear-light albedo, unlike every colour word and ground
    "wall": (0.33, 0.24, 0.20),
    "platform": (0.24, 0.20, 0.17),
    "string": (0.16, 0.12, 0.09),
}
Quat = np.ndarray


@dataclass
class Body:
    """A solid with its pose and velocities. A pendulum swings from the height `pivot` and starts at `initial_angle`."""

    solid: Solid
    position: np.ndarray
    quat: Quat
    velocity: np.ndarray = field(default_factory=lambda: np.zeros(3))
    angular_velocity: np.ndarray = field(default_factory=lambda: np.zeros(3))  # radians per second, in the world
    friction: tuple[float, float, float] = (0.8, 0.005, 0.0001)  # sliding, twisting, rolling, as in MuJoCo
    solref: tuple[float, float] = (0.02, 1.0)
    mass: float = 1.0
    fixed: bool = False
    pivot: float | None = None
    initial_angle: float = 0.0  # radians


def random_sign(rng: np.random.Generator) -> int:
    """Draw 1 or -1 with equal probability."""
    return 1 if rng.random() < 0.5 else -1


def axis_angle(axis, angle: float) -> Quat:
    """Return the quaternion of a rotation by `angle` radians about a unit axis."""
    return np.concatenate([[math.cos(angle / 2)], math.sin(angle / 2) * np.asarray(axis, dtype=float)])


def quat_multiply(second: Quat, first: Quat) -> Quat:
    """Return the product of two quaternions: the rotation `first`, then `second`."""
    w, v, u, r = second[0], second[1:], first[1:], first[0]
    return np.concatenate([[w * r - v @ u], w * u + r * v + np.cross(v, u)])


def rotate(quat: Quat, vector: np.ndarray) -> np.ndarray:
    """Rotate a vector by a quaternion."""
    return vector + 2 * np.cross(quat[1:], np.cross(quat[1:], vector) + quat[0] * vector)


def lying_quat(heading: float, phase: float) -> Quat:
    """Return the rotation of a lying body: its z axis at `heading` radians from x, rolled by `phase` about itself."""
    tip = axis_angle((-math.sin(heading), math.cos(heading), 0), math.pi / 2)
    return quat_multiply(tip, axis_angle((0, 0, 1), phase))


def make_solid(thing: Thing, name: str, rng: np.random.Generator, rules: Edition = EDITIONS[1]) -> Solid:
    """Return the solid of a thing. It has two albedos, so that its rotation is visible."""
    half = half_sizes(thing.shape, thing.extent, rules)
    albedo = COLOURS[thing.colour]
    second = tuple(c + 0.04 for c in albedo) if thing.colour == "black" else tuple(0.58 * c for c in albedo)
    if thing.shape == "cube":
        normal, offset = np.array([1, 0.25, 0.2]), 0.42 * half[0]
    else:
        normal, offset = np.array([1, 0, rng.uniform(-0.3, 0.3) if thing.shape == "ball" else 0]), 0.18 * half[0]
    normal = normal / np.linalg.norm(normal)
    return Solid(name, thing.shape, half, albedo, second, (*(float(n) for n in normal), offset), thing.material)


def make_prop(name: str, shape: str, half: tuple[float, float, float], position, quat: Quat) -> Body:
    """Return a fixed body: a wall, a platform or a string."""
    albedo = PROPS[name]
    seam = (0.0, 0.0, -1.0, 0.35 * half[2]) if name == "wall" else (0.0, 0.0, 1.0, math.inf)
    solid = Solid(name, shape, half, albedo, tuple(0.6 * c for c in albedo), seam)
    return Body(solid, np.array(position, dtype=float), quat, friction=(0, 0, 0), fixed=True)


def rest_on_ground(thing: Thing, name: str, rng: np.random.Generator, rules: Edition = EDITIONS[1]) -> Body:
    """Return a thing at rest at the origin, posed so that its shape is visible: cylinders stand, capsules lie."""
    solid = make_solid(thing, name, rng, rules)
    x, _, z = solid.half
    side = random_sign(rng)
    if thing.shape == "capsule":
        return Body(solid, np.array([0, 0, x]), lying_quat(side * rng.uniform(0.1, 0.7), rng.uniform(0, 2 * math.pi)))
    if thing.shape == "ball":
        return Body(
            solid, np.array([0, 0, x]), lying_quat(math.pi / 2 + rng.uniform(-0.5, 0.5), rng.uniform(0, 2 * math.pi))
        )
    yaw = side * rng.uniform(0.3, 0.62) + (math.pi / 2) * int(rng.integers(4))
    tilt = axis_angle((1, 0, 0), 1e-4 if thing.shape == "cylinder" else 0)  # see OFF_CENTRE in physics.py
    return Body(solid, np.array([0, 0, z]), quat_multiply(axis_angle((0, 0, 1), yaw), tilt))


def bounding_disc(body: Body) -> Disc:
    """Return the circles that a resting body covers on the ground and in the image."""
    x, y, z = body.solid.half
    standing = {"ball": x, "cube": math.hypot(x, y), "cylinder": x, "capsule": x + z}[body.solid.shape]
    lies = body.solid.shape == "cylinder" and abs(1 - 2 * (body.quat[1] ** 2 + body.quat[2] ** 2)) < 0.5
    radius = {"ball": x, "cube": 1.25 * x, "cylinder": 0.5 * (x + z), "capsule": x + 0.5 * z}[body.solid.shape]
    return Disc(math.hypot(x, z) if lies else standing, float(body.position[2]), radius)


def support_distance(body: Body, way: np.ndarray) -> float:
    """Return the extent of a body from its centre along a unit vector, in metres."""
    x, y, z = body.solid.half
    along = np.abs([rotate(body.quat, own) @ way for own in np.eye(3)])
    if body.solid.shape == "cube":
        return float(along @ (x, y, z))
    round_part = x * math.sqrt(max(1 - along[2] ** 2, 0)) if body.solid.shape == "cylinder" else x
    return float(round_part + z * along[2]) if body.solid.shape != "ball" else x
