"""The referee: checks that a simulation shows its scene. Each event, the relations and visibility have a test."""

from __future__ import annotations

import numpy as np

from .scene import Scene
from .simulation import Simulation, check_frames, contacts

SEEN = 0.6  # of the subject, in most frames
BYSTANDER_SEEN = 0.5  # of a bystander, in the first frame
FASTEST = 9.0  # metres per simulated second; a fall from the top of the frame ends at about 7


def find_fault(scene: Scene, simulation: Simulation, ease: float = 0.0) -> str | None:
    """Return what a simulation gets wrong, or None. With `ease`, less visibility is required."""
    rows = int(scene.seconds / simulation.row_seconds) + 1
    slow, fast = _slow(scene), scene.speed > scene.rules.speeds["normal"][1]
    odd = fast or scene.things[0].size in scene.rules.range_sizes
    touched = [(first, after, a, b) for first, after, a, b in contacts(simulation) if first < rows]
    fault = (
        _unwanted_contact(scene, touched) or _wrong_relation(scene, simulation) or _implausible_speed(simulation, rows)
    )
    if fault is None and not slow:  # a slow clip may end before its event does
        fault = _EVENTS[scene.event](scene, simulation, rows, touched)
    return fault or _poor_visibility(scene, simulation, slow or odd, ease)


def _slow(scene: Scene) -> bool:
    return scene.speed < scene.rules.speeds["normal"][0]


def _unwanted_contact(scene: Scene, touched) -> str | None:
    standing = {n for n, thing in enumerate(scene.things) if thing.relation is not None}
    for first, _, a, b in touched:
        if (
            a >= 0
            and first == 0
            and not (scene.event == "topple" and 0 < a < len(scene.things))
            and scene.event != "edge"
        ):
            return f"{a} and {b} touch in the first frame"
        if a >= 0 and (a in standing or b in standing) and not (scene.event == "collide" and a != 0):
            return f"bystander touched: {a}, {b}"
    return None


def _implausible_speed(simulation: Simulation, rows: int) -> str | None:
    speed = np.linalg.norm(np.diff(simulation.positions[:rows, : simulation.things], axis=0), axis=-1).max()
    return "something is shot away" if speed > FASTEST * simulation.time_scale * simulation.row_seconds else None


def _wrong_relation(scene: Scene, simulation: Simulation) -> str | None:
    camera, positions, _ = check_frames(scene, simulation)
    line = positions[0, 0, :2] - camera.eyes[0, :2]
    line = line / np.linalg.norm(line)
    for number, thing in enumerate(scene.things):
        if thing.relation is None:
            continue
        offset = positions[0, number, :2] - positions[0, 0, :2]
        ahead, right = offset @ line, offset @ [line[1], -line[0]]
        along = {"left of": -right, "right of": right, "behind": ahead, "in front of": -ahead}[thing.relation]
        if along < 0.9 * np.hypot(*offset) * np.cos(np.pi / 4):
            return f"{number} is not {thing.relation} the subject"
    return None


def _poor_visibility(scene: Scene, simulation: Simulation, odd: bool, ease: float) -> str | None:
    subject, start = simulation.visible[:, 0], simulation.visible[0]
    share = max(1 - 0.3 * ease - 0.15 * odd, 0)
    if scene.event == "occlude":
        if not _slow(scene):
            behind = subject <= 0.02
            first = int(np.argmax(behind))
            frames = int(np.argmin(behind[first:])) or len(subject) - first
            if not behind.any() or (frames < 2 and not odd):
                return "never hidden"
            if min(subject[:first].max(initial=0), subject[first + frames :].max(initial=0)) < max(0.5 * share, 0.03):
                return "not seen on both sides of the wall"
    elif (subject >= SEEN * share).mean() < 0.75 * share:
        return f"subject out of sight: {np.round(subject, 2)}"
    if scene.event != "throw" and start[0] < 0.5 * share:
        return "subject starts out of sight"
    for number, thing in enumerate(scene.things[1:], start=1):
        if start[number] < BYSTANDER_SEEN * share * (0.5 if thing.relation is None else 1):
            return f"thing {number} out of sight: {start[number]:.2f}"
    return None


def _height(simulation: Simulation, number: int = 0) -> np.ndarray:
    """Return the height of a thing's lowest point in every row."""
    solid, positions = simulation.solids[number], simulation.positions[:, number]
    x, _, z = solid.half
    rotations = simulation.poses_at(np.arange(len(positions)) * simulation.row_seconds)[1][:, number]
    down = np.abs(rotations[:, 2])  # how far each own axis points up or down
    reach = {
        "ball": x + 0 * down[:, 0],
        "cube": x * down.sum(1),
        "cylinder": x * np.hypot(down[:, 0], down[:, 1]) + z * down[:, 2],
        "capsule": x + z * down[:, 2],
    }[solid.shape]
    return positions[:, 2] - reach


def _moved(simulation: Simulation, rows: int, number: int = 0) -> np.ndarray:
    return simulation.positions[rows - 1, number] - simulation.positions[0, number]


def _turned(simulation: Simulation, rows: int) -> np.ndarray:
    """Return the angle in radians, with sign, by which the subject has turned about the vertical after each row."""
    rotations = simulation.poses_at(np.arange(rows) * simulation.row_seconds)[1][:, 0]
    column = 0 if abs(rotations[0, 2, 0]) < 0.7 else 1
    if simulation.solids[0].shape in ("cylinder", "capsule"):
        column = 2
    heading = np.unwrap(np.arctan2(rotations[:, 1, column], rotations[:, 0, column]))
    return heading - heading[0]


def _rest(scene, simulation, rows, touched):
    return "moves" if np.abs(simulation.positions[:rows, 0] - simulation.positions[0, 0]).max() > 0.03 else None


def _travels(scene, simulation, rows, touched):
    way = 1 if scene.direction == "right" else -1
    return "hardly moves" if way * _moved(simulation, rows)[0] < (0.9 if scene.edition == 1 else 0.75) else None


def _roll(scene, simulation, rows, touched):
    late = 0.25 if scene.edition == 1 else 0.5  # simulated seconds
    ends = simulation.poses_at(np.array([0, late / simulation.time_scale]))[1][:, 0]
    cosine = (np.trace(ends[0].T @ ends[1]) - 1) / 2
    return "does not roll" if cosine > 0.97 else _travels(scene, simulation, rows, touched)


def _slide(scene, simulation, rows, touched):
    rotations = simulation.poses_at(np.linspace(0, scene.seconds, 5))[1][:, 0]
    return "turns" if np.abs(rotations - rotations[0]).max() > 0.1 else _travels(scene, simulation, rows, touched)


def _spin(scene, simulation, rows, touched):
    if np.abs(_moved(simulation, rows)[:2]).max() > 0.1:
        return "wanders"
    return "spins too little" if abs(_turned(simulation, rows)[-1]) < np.radians(270) else None


def _fall(scene, simulation, rows, touched):
    height = _height(simulation)
    late = int(0.7 * rows)
    if height[0] < 0.9 or height[late:rows].max() > 0.06:
        return "does not fall to the ground"
    speed = np.abs(np.diff(simulation.positions[late:rows, 0], axis=0)).max() / (
        simulation.row_seconds * simulation.time_scale
    )
    return "does not come to rest" if speed > 0.25 else None


def _bounce(scene, simulation, rows, touched):
    return "bounces too little" if len(rebounds(simulation, rows)) < 2 else None


def rebounds(simulation: Simulation, rows: int) -> list[int]:
    """List the rows at which the subject leaves the ground to rise again by 0.15 m or more."""
    height = _height(simulation)[:rows]
    found = []
    for first, after, a, b in contacts(simulation):
        if (a, b) == (-1, 0) and first > 0 and after < rows:
            following = height[after:]
            fall = np.flatnonzero(np.diff(following) < 0)
            if following[: fall[0] + 1 if len(fall) else None].max() > 0.15:
                found.append(after)
    return found


def _throw(scene, simulation, rows, touched):
    centre = simulation.positions[:rows, 0, 2]
    if centre.max() < centre[0] + 0.6 or _height(simulation)[rows - 1] > 0.1:
        return "no arc"
    return _travels(scene, simulation, rows, touched)


def _swing(scene, simulation, rows, touched):
    x = simulation.positions[:rows, 0, 0]
    step = np.sign(np.diff(x))
    if (step[1:] * step[:-1] < 0).sum() < 2 or np.ptp(x) < 1.4:
        return "does not swing both ways"
    return None


def _edge(scene, simulation, rows, touched):
    platform = len(simulation.solids) - 1
    top = 2 * simulation.solids[platform].half[2]
    height = _height(simulation)[:rows]
    if height[0] < top - 0.05 or height[rows - 1] > 0.3 * top:
        return "does not drop off the edge"
    return _travels(scene, simulation, rows, touched)


def _collide(scene, simulation, rows, touched):
    hits = [(first, b) for first, _, a, b in touched if a == 0]
    if (
        not hits
        or hits[0][1] != 1
        or hits[0][0] * simulation.row_seconds * simulation.time_scale < 0.25
        or hits[0][0] > 0.7 * rows
    ):
        return "hits the wrong thing, too early, too late or nothing"
    return "what is hit hardly moves" if np.hypot(*_moved(simulation, rows, 1)[:2]) < 0.45 else None


def _topple(scene, simulation, rows, touched):
    top = len(scene.things) - 1
    small = 2 * scene.things[top].extent
    if (
        abs(
            simulation.positions[int(0.1 / simulation.time_scale / simulation.row_seconds), top, 2]
            - simulation.positions[0, top, 2]
        )
        > 0.02
    ):
        return "the stack is not stable"
    return "the stack does not fall" if _moved(simulation, rows, top)[2] > -0.6 * small else None


_EVENTS = {
    "rest": _rest,
    "roll": _roll,
    "slide": _slide,
    "spin": _spin,
    "fall": _fall,
    "bounce": _bounce,
    "throw": _throw,
    "swing": _swing,
    "occlude": lambda scene, simulation, rows, touched: _travels(scene, simulation, rows, touched),
    "edge": _edge,
    "collide": _collide,
    "topple": _topple,
}
