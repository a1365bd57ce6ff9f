"""Plans of the events: start and initial velocity of the subject, and the other bodies that an event needs.

A plan is written as if the subject started above the origin, with x to the camera's right and y away from it. Speeds
are in metres per simulated second, chosen so that an event at speed 1 takes its two seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from .bodies import (
    Body,
    axis_angle,
    bounding_disc,
    lying_quat,
    make_prop,
    random_sign,
    rest_on_ground,
    rotate,
    support_distance,
)
from .camera import Camera
from .layout import Obstacle
from .scene import Scene

GRAVITY = 9.81
TIME_SCALES = {"swing": 2.3}  # simulated seconds in a second of the clip, where not 1: a long string swings slowly


@dataclass
class Plan:
    """The subject, the bodies fixed relative to its path, and that path (F, 3) from the ground below the start."""

    subject: Body
    path: np.ndarray
    start: np.ndarray
    others: dict[int, Body] = field(default_factory=dict)  # things that the event needs, by index
    props: list[Body] = field(default_factory=list)
    obstacles: list[Obstacle] = field(default_factory=list)


@dataclass(frozen=True)
class PlanInputs:
    """Inputs of a plan. `times` (F) are in simulated seconds, those of the frames of `camera`.

    `ease` is 0 in the first attempt and grows with each failure.
    """

    scene: Scene
    rng: np.random.Generator
    camera: Camera
    times: np.ndarray
    ease: float = 0.0

    @property
    def speed_scale(self) -> float:
        """Return the factor of the usual speed that is left at the current `ease`."""
        return 1 - 0.2 * min(self.ease, 2.0)

    @property
    def travel_scale(self) -> float:
        """Return the factor of edition 1's speed at which things travel; edition 2 keeps fast ones in the frame."""
        return self.speed_scale * (1.0 if self.scene.edition == 1 else 0.77)

    @property
    def max_offset(self) -> float:
        """Return the maximal start offset to one side, in metres."""
        return 1.45 if self.scene.edition == 1 else 1.75

    def rest_on_ground(self, number: int) -> Body:
        """Return a thing of the scene at rest on the ground at the origin."""
        return rest_on_ground(self.scene.things[number], f"thing {number}", self.rng, self.scene.rules)


def make_plan(inputs: PlanInputs) -> Plan:
    """Make the plan of a scene's event."""
    plan = _PLANS[inputs.scene.event](inputs, inputs.rest_on_ground(0))
    plan.start = plan.start + inputs.rng.uniform(-0.15, 0.15, 2)
    return plan


def _static_path(body: Body, times: np.ndarray) -> np.ndarray:
    return np.repeat(body.position[None], len(times), axis=0)


def _choose_heading(inputs: PlanInputs, diagonal: bool) -> tuple[np.ndarray, float]:
    """Choose a heading, as vector and angle: along x, or diagonal, so that a rolling cylinder is not seen end-on."""
    angle = inputs.rng.uniform(0.62, 0.78) if diagonal else inputs.rng.uniform(0, 0.14)
    angle *= random_sign(inputs.rng)
    if inputs.scene.direction == "left":
        angle = math.pi - angle
    return np.array([math.cos(angle), math.sin(angle), 0.0]), angle


def _set_in_motion(inputs: PlanInputs, body: Body, speed: float, drag: float = 0.0) -> tuple[np.ndarray, float]:
    """Set a resting body in motion: balls, cylinders and capsules roll, cubes slide. Return heading and angle."""
    rolls = body.solid.shape != "cube"
    heading, angle = _choose_heading(inputs, body.solid.shape in ("cylinder", "capsule"))
    body.velocity = heading * speed
    if rolls:
        radius = body.solid.half[0]
        body.position[2] = radius
        body.quat = lying_quat(angle + math.pi / 2, inputs.rng.uniform(0, 2 * math.pi))
        body.angular_velocity = np.array([-heading[1], heading[0], 0]) * speed / radius
    else:
        body.friction = (drag, 0.001, 0.0001)
    return heading, angle


def _straight_path(body: Body, times: np.ndarray) -> np.ndarray:
    return body.position + body.velocity * times[:, None]


def _start_offset(velocity: np.ndarray, times: np.ndarray, max_offset: float) -> np.ndarray:
    """Return the start (2) that puts the middle of the path in the middle of the frame."""
    distance = min(float(np.linalg.norm(velocity)) * times[-1] / 2, max_offset)
    return -distance * velocity[:2] / np.linalg.norm(velocity)


def _rest(inputs: PlanInputs, body: Body) -> Plan:
    return Plan(body, _static_path(body, inputs.times), np.zeros(2))


def _roll(inputs: PlanInputs, body: Body) -> Plan:
    _set_in_motion(inputs, body, 1.3 * inputs.travel_scale)
    return Plan(body, _straight_path(body, inputs.times), _start_offset(body.velocity, inputs.times, inputs.max_offset))


def _slide(inputs: PlanInputs, body: Body) -> Plan:
    heading, _ = _choose_heading(inputs, diagonal=False)
    body.velocity = heading * 1.5 * inputs.travel_scale
    body.friction = (0.025, 0.001, 0.0001)
    return Plan(
        body, _straight_path(body, inputs.times), _start_offset(body.velocity * 0.85, inputs.times, inputs.max_offset)
    )


def _spin(inputs: PlanInputs, body: Body) -> Plan:
    if body.solid.shape == "cylinder":
        body.quat = lying_quat(inputs.rng.uniform(0, math.pi), inputs.rng.uniform(0, 2 * math.pi))
        body.position[2] = body.solid.half[0]
    body.angular_velocity = np.array([0, 0, inputs.rng.uniform(3.7, 4.2) * random_sign(inputs.rng)])
    body.friction = (0, 0, 0)
    return Plan(body, _static_path(body, inputs.times), np.zeros(2))


def _drop(body: Body, clearance: float, times: np.ndarray) -> np.ndarray:
    body.position[2] += clearance
    path = _static_path(body, times)
    path[:, 2] = np.maximum(path[:, 2] - GRAVITY / 2 * times**2, body.position[2] - clearance)
    return path


def _fall(inputs: PlanInputs, body: Body) -> Plan:
    clearance = max(2.45 - body.position[2] - 0.5 * inputs.scene.things[0].extent, 1.15)
    path = _drop(body, clearance + inputs.rng.uniform(-0.1, 0.1), inputs.times)
    body.friction, body.solref = (1.0, 0.05, 0.05), (0.012, 1.1)
    return Plan(body, path, np.array([0, 0.15]))


def _bounce(inputs: PlanInputs, body: Body) -> Plan:
    path = _drop(body, inputs.rng.uniform(1.05, 1.2), inputs.times)
    stiffness, damping = 240.0, 0.055  # radians per second and damping ratio: keeps about 0.84 of the speed
    body.friction, body.solref = (0, 0, 0), (-stiffness * stiffness, -2 * damping * stiffness)
    if body.solid.shape == "ball":
        body.angular_velocity = np.array([0, inputs.rng.uniform(1, 2) * random_sign(inputs.rng), 0])
    return Plan(body, path, np.array([0, 0.15]))


def _throw(inputs: PlanInputs, body: Body) -> Plan:
    side = 1 if inputs.scene.direction == "right" else -1
    low = body.position[2]
    body.position[2] = max(0.65, low + 0.12)
    rise = inputs.rng.uniform(4.6, 5.0) - 0.5 * max(inputs.scene.things[0].extent - 0.56, 0)
    flight = (rise + math.sqrt(rise * rise + 2 * GRAVITY * (body.position[2] - low))) / GRAVITY
    body.velocity = np.array([side * 2.9 * inputs.speed_scale / flight, inputs.rng.uniform(-0.12, 0.12), rise])
    if body.solid.shape in ("ball", "capsule"):
        body.angular_velocity = np.array([inputs.rng.uniform(-0.5, 0.5), side * inputs.rng.uniform(2.0, 3.2), 0])
    else:  # tumbles about one of its own axes by right angles, so as not to land on an edge and balance there
        quarters = (1 if body.solid.shape == "cylinder" else int(inputs.rng.integers(1, 3))) + inputs.rng.uniform(
            -0.1, 0.1
        )
        axis = max((rotate(body.quat, own) for own in np.eye(3)[:2]), key=lambda axis: abs(axis[1]))
        body.angular_velocity = axis * np.sign(axis[1]) * side * quarters * (math.pi / 2) / flight
    body.friction, body.solref = (0.9, 0.05, 0.5 if body.solid.shape == "ball" else 0.0001), (0.015, 1.1)
    path = _straight_path(body, np.minimum(inputs.times, flight * 1.1))
    path[:, 2] = np.maximum(path[:, 2] - GRAVITY / 2 * inputs.times**2, low)
    return Plan(body, path, np.array([-side * 1.8, 0.1]))


def _swing(inputs: PlanInputs, body: Body) -> Plan:
    x, _, z = body.solid.half
    top = x if body.solid.shape == "ball" else z + x * (body.solid.shape == "capsule")
    if body.solid.shape in ("ball", "capsule"):  # hangs by the end of its own z
        body.quat = axis_angle((0, 0, 1), inputs.rng.uniform(0, 2 * math.pi))
    body.position[2] = top + inputs.rng.uniform(0.12, 0.3) + 0.25 * max(0.6 - top, 0)
    body.pivot = 4.3 if inputs.scene.edition == 1 else max(4.3, body.position[2] + top + 0.4)
    length = body.pivot - body.position[2]
    body.initial_angle = math.asin(min(inputs.rng.uniform(1.15, 1.3) / length, 0.6)) * random_sign(inputs.rng)
    rate = math.sqrt(GRAVITY / length)
    initial_angle = body.initial_angle * np.cos(rate * inputs.times)
    path = _static_path(body, inputs.times) + length * np.stack(
        [np.sin(initial_angle), 0 * initial_angle, 1 - np.cos(initial_angle)], axis=1
    )
    half = (length - top) / 2
    string = make_prop("string", "capsule", (0.05, 0.05, half), (0, 0, top + half), np.array([1.0, 0, 0, 0]))
    return Plan(body, path, np.array([0, 0.1]), props=[string])


def _occlude(inputs: PlanInputs, body: Body) -> Plan:
    extent, shape = inputs.scene.things[0].extent, body.solid.shape
    part = {"ball": 1.0, "cube": 1.1, "cylinder": 0.68, "capsule": 1.08}  # of the extent: half the width, and depth
    if inputs.scene.edition > 1:
        part |= {"cube": 1.13, "cylinder": 0.70, "capsule": 1.2}
    wide = part[shape] * extent
    side = 1 if inputs.scene.direction == "right" else -1
    if shape == "capsule":
        body.quat = lying_quat(
            random_sign(inputs.rng) * inputs.rng.uniform(0.7, 0.85), inputs.rng.uniform(0, 2 * math.pi)
        )
    if shape == "ball":
        body.quat = lying_quat(math.pi / 2, inputs.rng.uniform(0, 2 * math.pi))
    near, thick = wide + 0.16, 0.09
    gap = near + thick  # between the subject's path and the wall's middle
    hold = (0.19 - 0.06 * min(inputs.ease, 1.0)) * min(inputs.times[-1], 2.5)  # simulated seconds out of sight
    half, speed = wide, 1.5
    for _ in range(4):  # the wall's size, the way to go and the speed depend on one another
        edges = [
            _sight_line(eye, way * half, -gap - thick)
            for eye, way in ((inputs.camera.eyes[0], -side), (inputs.camera.eyes[-1], side))
        ]
        first, last = abs(edges[0]) + 0.42 * wide, abs(edges[1]) + 0.5 * wide
        if inputs.scene.edition == 1:
            speed = max((first + last) / 1.62, 1.3)
        else:  # in a longer clip the subject takes longer
            speed = max((first + last) / (0.81 * inputs.times[-1]), 1.0)
        shrink = (np.linalg.norm(inputs.camera.eyes[0, :2]) - gap) / np.linalg.norm(inputs.camera.eyes[0, :2])
        half = shrink * (wide + speed * hold / 2) + 0.05
    body.velocity = np.array([side * speed, 0, 0])
    if shape == "ball":
        body.angular_velocity = np.array([0, side * speed / extent, 0])
    else:
        body.friction = (0, 0, 0)
    top = 2 * body.position[2]
    eye = inputs.camera.eyes[len(inputs.camera.eyes) // 2]
    height = top + max(eye[2] - top, 0) * (gap + wide) / abs(eye[1]) + 0.22
    wall = make_prop(
        "wall", "cube", (half, thick, height / 2), (side * first, -gap, height / 2), np.array([1.0, 0, 0, 0])
    )
    obstacle = Obstacle((side * first, -gap), (1.0, 0.0), (half, thick), height)
    path = _straight_path(body, inputs.times)
    return Plan(body, path, np.array([-side * first, 0.35]), props=[wall], obstacles=[obstacle])


def _sight_line(eye: np.ndarray, x: float, y: float) -> float:
    """Return x where the line of sight through the point x, y of the ground plane crosses y = 0."""
    return float(eye[0] + (x - eye[0]) * eye[1] / (eye[1] - y))


def _edge(inputs: PlanInputs, body: Body) -> Plan:
    extent = inputs.scene.things[0].extent
    speed = (1.25 + 0.55 * extent) if body.solid.shape == "cube" else 1.35 + 0.25 * extent
    heading, angle = _set_in_motion(inputs, body, speed, drag=0.01)
    height = inputs.rng.uniform(0.62, 0.72)
    drop = speed * 0.8  # metres to the edge
    wide = max(bounding_disc(body).reach, body.solid.half[2] if body.solid.shape == "cylinder" else 0) + 0.22
    half = (drop + wide + 0.15) / 2
    middle = heading * (drop - half)
    body.position[2] += height
    path = _straight_path(body, inputs.times)
    late = np.maximum(inputs.times - 0.9, 0)
    path[:, 2] = np.maximum(path[:, 2] - GRAVITY / 2 * late**2, body.position[2] - height)
    place = (middle[0], middle[1], height / 2)
    platform = make_prop("platform", "cube", (half, wide, height / 2), place, axis_angle((0, 0, 1), angle))
    obstacle = Obstacle((middle[0], middle[1]), (heading[0], heading[1]), (half, wide), height)
    return Plan(body, path, -heading[:2] * (drop + 0.1), props=[platform], obstacles=[obstacle])


def _collide(inputs: PlanInputs, body: Body) -> Plan:
    target = inputs.rest_on_ground(1)
    heading, angle = _set_in_motion(inputs, body, 1.75, drag=0.01)
    if target.solid.shape == "capsule":
        target.quat = lying_quat(
            angle + math.pi / 2 + inputs.rng.uniform(-0.5, 0.5), inputs.rng.uniform(0, 2 * math.pi)
        )
    radii = support_distance(body, heading) + support_distance(target, heading)
    gap = float(np.clip(2.9 - 1.15 * radii, 0.45, 1.2))
    target.position[:2] = heading[:2] * (radii + gap)
    target.friction, body.mass, body.solref = (0.18, 0.005, 0.0001), 2.2, (0.02, 0.7)
    path = _straight_path(body, np.minimum(inputs.times, (gap + 0.9) / 1.75 + 0.25 * inputs.times))
    start = -heading[:2] * (0.5 * (radii + gap) + 0.35)
    return Plan(body, path, start, others={1: target})


def _topple(inputs: PlanInputs, body: Body) -> Plan:
    # Rough cubes tip rather than slide apart; a sliding cube reaches the second one too: it comes faster and heavier.
    low = body.solid.half[2] < 0.3  # so low that it can only knock the bottom cube out
    speed, body.mass = (3.4, 10.0) if body.solid.shape == "cube" or low else (2.8, 5.0)
    heading, angle = _set_in_motion(inputs, body, speed, drag=0.15)
    body.solref = (0.01, 1.0)
    others, height = {}, 0.0
    gap = bounding_disc(body).reach + 0.42 + 1.0
    for number in range(1, len(inputs.scene.things)):
        cube = inputs.rest_on_ground(number)
        cube.quat = axis_angle((0, 0, 1), angle + inputs.rng.uniform(-0.12, 0.12))
        ahead = gap + (0.04 * (number - 1) if body.solid.shape == "cube" else 0)
        cube.position = np.array([heading[0] * ahead, heading[1] * ahead, height + cube.solid.half[2]])
        cube.friction, cube.mass = (0.15 if low else 1.5, 0.005, 0.0001), 0.6
        height += 2 * cube.solid.half[2]
        others[number] = cube
    path = _straight_path(body, np.minimum(inputs.times, 0.7 + 0.2 * inputs.times))
    return Plan(body, path, -heading[:2] * (0.5 * gap + 0.5), others=others)


_PLANS = {
    "rest": _rest,
    "roll": _roll,
    "slide": _slide,
    "spin": _spin,
    "fall": _fall,
    "bounce": _bounce,
    "throw": _throw,
    "swing": _swing,
    "occlude": _occlude,
    "edge": _edge,
    "collide": _collide,
    "topple": _topple,
}
