"""Places the subject and the bystanders: many layouts are drawn at once, and the one of least cost is taken.

Things are discs here, on the ground and in the image; the referee checks the real shapes after the simulation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .camera import Camera
from .scene import RELATIONS

PROPOSALS = 192  # layouts drawn at once
ROUNDS = 8  # rounds of proposals, unless one is good
GAP = 0.14  # metres of air between bystanders and whatever moves
MOST_HIDDEN = 0.25  # of the sum of two radii: how deep one disc may overlap another in the image


@dataclass(frozen=True)
class Disc:
    """A thing's circle on the ground (`reach`), the height of its centre, and its circle in the image (`radius`)."""

    reach: float
    height: float
    radius: float


@dataclass(frozen=True)
class Obstacle:
    """A wall or platform: a box at `centre`, relative to the subject's start, with `half` sizes along `along`."""

    centre: tuple[float, float]
    along: tuple[float, float]
    half: tuple[float, float]
    height: float


def place_bystanders(
    rng: np.random.Generator,
    camera: Camera,
    start: np.ndarray,
    path: np.ndarray,
    subject: Disc,
    bystanders: list[tuple[Disc, str]],
    obstacles: list[Obstacle],
    reach: float = 1.6,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Choose the start of the subject, near `start` (2), and the positions (2) of the bystanders.

    Bystanders stand up to `reach` metres off. `path` (F, 3) is the path of the subject's centre from the ground below
    its start, in the frames of `camera`.
    """
    least, best = np.inf, (start, [start] * len(bystanders))
    for draw in range(ROUNDS):
        cost, choice = _propose(rng, draw, camera, start, path, subject, bystanders, obstacles, reach)
        if cost < least:
            least, best = cost, choice
        if cost < 0.1:
            break
    return best


def _propose(rng, draw, camera, start, path, subject, bystanders, obstacles, reach):
    spread = np.linspace(0.05, 1 + 0.1 * draw, PROPOSALS) ** 1.5  # ever further from the plain choice
    starts = start + rng.uniform(-1, 1, (PROPOSALS, 2)) * np.stack([1.3 * spread, 0.7 * spread], axis=1)
    cost = 0.02 * spread
    track = starts[:, None, :2] + path[:, :2]  # (layouts, F, 2)
    track = np.concatenate([track, np.broadcast_to(path[:, 2:], (*track.shape[:2], 1))], axis=2)
    u, v, depth = camera.project(track)
    size = subject.radius / (depth * camera.slopes)
    weight = np.linspace(1.6, 0.25, len(path))  # leaving the frame late is better than starting outside of it
    weight /= weight.sum()
    out = np.maximum(np.maximum(np.abs(u), np.abs(v)) + 0.75 * size - 1, 0) / size
    cost += 8 * (np.maximum(out - 0.1, 0) * weight).sum(1) + 3 * np.maximum(out[:, 0] - 0.15, 0)
    stands = starts + path[0, :2]  # where a swing starts is not below its string
    ahead = stands - camera.eyes[0, :2]
    ahead /= np.linalg.norm(ahead, axis=1, keepdims=True)
    right = np.stack([ahead[:, 1], -ahead[:, 0]], axis=1)
    ways = dict(zip(RELATIONS, (-right, right, ahead, -ahead), strict=True))
    places: list[np.ndarray] = []
    for number, (disc, relation) in enumerate(bystanders):
        way = ways[relation]
        side = np.stack([way[:, 1], -way[:, 0]], axis=1)
        away = (
            subject.reach
            + disc.reach
            + GAP
            + rng.uniform(0.02, 0.7 if relation == "in front of" else reach + 0.2 * draw, PROPOSALS)
        )
        across = away * np.tan(rng.uniform(-0.72, 0.72, PROPOSALS))
        place = stands + away[:, None] * way + across[:, None] * side
        cost += _collision_cost(place, disc, track, subject, starts, obstacles)
        for other, (neighbour, _) in zip(places, bystanders[:number], strict=True):
            apart = np.linalg.norm(place - other, axis=1) - disc.reach - neighbour.reach - GAP
            cost += 20 * (apart < 0) + 2 * np.maximum(-apart, 0)
        cost += _occlusion_cost(place, disc, camera, u, v, depth, size, relation)
        for box in obstacles:
            cost += _obstacle_cost(place, disc, starts, box, camera)
        places.append(place)
    for number, (disc, _) in enumerate(bystanders):
        for other in range(number):
            cost += _overlap_cost(places[number], disc, places[other], bystanders[other][0], camera)
    best = int(np.argmin(cost))
    return float(cost[best]), (starts[best], [place[best] for place in places])


def _collision_cost(place, disc, track, subject, starts, obstacles) -> np.ndarray:
    apart = np.linalg.norm(place[:, None] - track[:, :, :2], axis=2).min(1) - disc.reach - subject.reach - GAP
    cost = 20 * (apart < 0) + 2 * np.maximum(-apart, 0)
    for box in obstacles:
        along, across = np.array(box.along), np.array([-box.along[1], box.along[0]])
        offset = place - starts - box.centre
        gap = np.stack([np.abs(offset @ along) - box.half[0], np.abs(offset @ across) - box.half[1]], axis=1)
        gap = np.linalg.norm(np.maximum(gap, 0), axis=1) - disc.reach - GAP
        cost += 20 * (gap < 0) + 2 * np.maximum(-gap, 0)
    return cost


def _project_disc(place: np.ndarray, disc: Disc, camera: Camera) -> tuple[np.ndarray, ...]:
    """Project a resting disc (layouts, 2) into every frame: u, v, depth and size, (layouts, F) each."""
    point = np.concatenate([place, np.full((len(place), 1), disc.height)], axis=1)
    u, v, depth = camera.project(np.repeat(point[:, None], len(camera.eyes), axis=1))
    return u, v, depth, disc.radius / (np.maximum(depth, 0.5) * camera.slopes)


def _occlusion_cost(place, disc, camera, u, v, depth, size, relation) -> np.ndarray:
    b_u, b_v, b_depth, b_size = _project_disc(place, disc, camera)
    out = np.maximum(np.maximum(np.abs(b_u), np.abs(b_v)) + 0.7 * b_size - 1, 0) / b_size
    cost = 9 * np.maximum(out[:, 0] - 0.1, 0) + 1.5 * np.maximum(out - 0.5, 0).mean(1)
    touching = 1 - np.hypot(b_u - u, b_v - v) / (b_size + size)  # 0 where the discs touch, 1 where they share a centre
    before = b_depth < depth
    cost += 8 * np.where(before, np.maximum(touching - MOST_HIDDEN * 0.5, 0), 0).mean(1)  # hides the subject
    cost += 8 * np.maximum(touching[:, 0] - MOST_HIDDEN, 0)
    beside = (b_u[:, 0] - u[:, 0]) / (b_size[:, 0] + size[:, 0])
    if relation == "left of":
        cost += 10 * np.maximum(beside + 0.7, 0)
    if relation == "right of":
        cost += 10 * np.maximum(0.7 - beside, 0)
    return cost


def _overlap_cost(place, disc, other, neighbour, camera) -> np.ndarray:
    (u, v, _, size), (o_u, o_v, _, o_size) = (
        _project_disc(p, d, camera) for p, d in ((place, disc), (other, neighbour))
    )
    touching = 1 - np.hypot(u[:, 0] - o_u[:, 0], v[:, 0] - o_v[:, 0]) / (size[:, 0] + o_size[:, 0])
    return 6 * np.maximum(touching - MOST_HIDDEN, 0)


def _obstacle_cost(place, disc, starts, box, camera) -> np.ndarray:
    """Return the cost of bystanders that a tall obstacle hides in the first frame."""
    if box.height < 1:
        return np.zeros(len(place))
    u, _, depth, size = (value[:, 0] for value in _project_disc(place, disc, camera))
    ends = [starts + np.array(box.centre) + way * box.half[0] * np.array(box.along) for way in (-1, 1)]
    (left, _, near), (right, _, far) = (
        camera.project(np.concatenate([end, np.full((len(end), 1), disc.height)], axis=1)[:, None])[:3] for end in ends
    )
    left, right = np.minimum(left[:, 0], right[:, 0]), np.maximum(left[:, 0], right[:, 0])
    covered = np.minimum(u + size, right) - np.maximum(u - size, left)
    return 8 * (depth > np.minimum(near[:, 0], far[:, 0])) * np.maximum(covered / (2 * size) - 0.3, 0)
