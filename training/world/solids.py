"""The four shapes as convex solids: sizes, ray intersections, and projections into the image.

Lengths are metres. A solid's own axes have their origin in its centre; cylinders and capsules lie along their own z, as
in MuJoCo. A ray is o + t d with d of any length. A camera's axes are the rows right, up and forward; its image plane
runs from -1 to 1 across the smaller dimension, u to the right and v upwards, and `slope` is the tangent of half its
field of view.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from .editions import EDITIONS, Edition

NEAR = 1e-4  # metres: rays do not hit the surface that they start on
FAR = 1e4  # metres: no hits beyond


@dataclass(frozen=True)
class Solid:
    """A solid: half sizes along local axes, two albedos (linear light), and the plane between them."""

    name: str
    shape: str
    half: tuple[float, float, float]  # a capsule's last half size leaves out its round ends
    albedo: tuple[float, ...]
    second_albedo: tuple[float, ...]
    seam: tuple[float, ...]  # a point p has the second albedo if seam[:3] . p > seam[3]
    material: str = "matte"

    @property
    def radius(self) -> float:
        """Return the radius of the smallest sphere around the centre that holds the solid."""
        x, y, z = self.half
        return {"ball": x, "cube": math.hypot(x, y, z), "cylinder": math.hypot(x, z), "capsule": x + z}[self.shape]


def half_sizes(shape: str, extent: float, rules: Edition = EDITIONS[1]) -> tuple[float, float, float]:
    """Return the half sizes of a thing of the given extent, chosen so that all shapes look about equally large."""
    x, y, z = rules.proportions[shape]
    return x * extent, y * extent, z * extent


def _ball_span(o, d, radius: float) -> tuple[Tensor, Tensor]:
    dd, od = dot(d, d), dot(o, d)
    root = (od * od - dd * (dot(o, o) - radius * radius)).clamp_min(0).sqrt()  # 0 for a miss: in and out at once
    return (-od - root) / dd, (root - od) / dd


def _slab_span(o: Tensor, d: Tensor, half: float) -> tuple[Tensor, Tensor]:
    inverse = (d + 1e-9).reciprocal()  # a ray along the slab has a large span, not nan
    middle, reach = -o * inverse, half * inverse.abs()
    return middle - reach, middle + reach


def _tube_span(o, d, radius: float) -> tuple[Tensor, Tensor]:
    dd = (d[0] * d[0] + d[1] * d[1]).clamp_min(1e-12)
    od = o[0] * d[0] + o[1] * d[1]
    root = (od * od - dd * (o[0] * o[0] + o[1] * o[1] - radius * radius)).clamp_min(0).sqrt()
    return (-od - root) / dd, (root - od) / dd


def ray_interval(solid: Solid, o, d) -> tuple[Tensor, Tensor]:
    """Return where rays, x, y and z in local axes, enter and leave a solid; they hit it if enter < leave."""
    x, y, z = solid.half
    if solid.shape == "ball":
        return _ball_span(o, d, x)
    if solid.shape == "cube":
        spans = [_slab_span(o[axis], d[axis], half) for axis, half in enumerate((x, y, z))]
        enter = torch.maximum(torch.maximum(spans[0][0], spans[1][0]), spans[2][0])
        return enter, torch.minimum(torch.minimum(spans[0][1], spans[1][1]), spans[2][1])
    enter, leave = _tube_span(o, d, x)
    if solid.shape == "cylinder":
        low, high = _slab_span(o[2], d[2], z)
        return torch.maximum(enter, low), torch.minimum(leave, high)
    height = o[2] + enter * d[2]  # a capsule is met on its tube or, past the tube's end, on the ball there
    end = height.clamp(-z, z)
    on_end = (height != end).to(enter.dtype)
    first, last = _ball_span((o[0], o[1], o[2] - end), d, x)
    return torch.lerp(enter, first, on_end), torch.lerp(leave, last, on_end)


def surface(solid: Solid, p: Tensor) -> tuple[Tensor, Tensor]:
    """Return the outward normals (3, N) and face indices (N) at points (3, N) on a solid, in local axes."""
    x, y, z = solid.half
    face = torch.zeros(p.shape[1], dtype=torch.int32, device=p.device)
    if solid.shape == "ball":
        return p / x, face
    if solid.shape == "capsule":
        return torch.stack((p[0], p[1], p[2] - p[2].clamp(-z, z))) / x, face
    if solid.shape == "cylinder":
        side = (p[0] * p[0] + p[1] * p[1]).sqrt() / x
        cap = p[2].abs() / z > side
        tube = (~cap).to(p.dtype) / (x * side)
        return torch.stack((p[0] * tube, p[1] * tube, torch.sign(p[2]) * cap)), cap.int()
    a, b, c = p[0].abs() / x, p[1].abs() / y, p[2].abs() / z
    first = (a >= b) & (a >= c)
    second = ~first & (b >= c)
    faces = torch.stack((first, second, ~(first | second)))
    return torch.sign(p) * faces, faces[1].int() + 2 * faces[2].int()


def dot(a, b) -> Tensor:
    """Return the dot product over the first dimension of x, y and z."""
    return torch.addcmul(torch.addcmul(a[0] * b[0], a[1], b[1]), a[2], b[2])


def to_local(rotation: Tensor, v) -> tuple[Tensor, Tensor, Tensor]:
    """Rotate world vectors, x, y and z, into local axes; `rotation` has the 9 numbers of the matrices first."""
    x, y, z = (dot((rotation[own], rotation[3 + own], rotation[6 + own]), v) for own in range(3))
    return x, y, z


def to_world(rotation: Tensor, v) -> Tensor:
    """Rotate vectors (3, N) in local axes into world axes; `rotation` (9, N) has the matrices."""
    return torch.stack([dot(rotation[3 * world : 3 * world + 3], v) for world in range(3)])


def intersect(solid: Solid, position: Tensor, rotation: Tensor, origin: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Intersect rays from origin along d, (3, F, K) or (3, F, 1), with a solid of pose (F, 3) and (F, 3, 3)."""
    o = origin - position.T[..., None]
    if solid.shape == "ball":
        return ray_interval(solid, o, d)
    numbers = rotation.flatten(1).T[..., None]
    return ray_interval(solid, to_local(numbers, o), to_local(numbers, d))


def hit_distance(enter: Tensor, leave: Tensor) -> Tensor:
    """Return the distance at which rays enter a solid, or one beyond FAR if they miss it or it is behind them."""
    return enter + ((enter - leave + 1e-6).clamp_min(0) + (NEAR - enter).clamp_min(0)) * 1e12  # faster than masks


def visible_fractions(
    solids: tuple[Solid, ...],
    things: int,
    positions: Tensor,
    rotations: Tensor,
    eyes: Tensor,
    axes: Tensor,
    slopes: Tensor,
    edge: tuple[float, float] = (1.0, 1.0),
    grain: int = 16,
) -> tuple[Tensor, Tensor]:
    """Project the first `things` solids: image boxes (F, B, 4) and visible fractions (F, B).

    A box is (left, bottom, right, top) in u and v, of the whole silhouette even where it leaves the frame. The fraction
    is the part of the silhouette that is inside a frame of half sizes `edge` and not behind another solid, counted on
    grain x grain rays.
    """
    bodies = zip(solids[:things], positions.unbind(1), rotations.unbind(1), strict=False)
    boxes = torch.stack([image_box(*body, eyes, axes, slopes) for body in bodies], dim=1)
    steps = (torch.arange(grain, dtype=boxes.dtype, device=boxes.device) + 0.5) / grain
    left, bottom, right, top = rearrange(boxes, "frames b side -> side frames b 1")
    u = rearrange(left + (right - left) * steps.repeat(grain), "frames b rays -> frames (b rays)")
    v = rearrange(bottom + (top - bottom) * steps.repeat_interleave(grain), "frames b rays -> frames (b rays)")
    right_axis, up_axis, forward = (rearrange(axes[:, row], "frames xyz -> xyz frames 1") for row in range(3))
    d = forward + slopes[:, None] * (u * right_axis + v * up_axis)
    inside = rearrange((u.abs() < edge[0]) & (v.abs() < edge[1]), "frames (b rays) -> frames b rays", b=things)
    depths = []
    for number, solid in enumerate(solids):
        enter, leave = intersect(solid, positions[:, number], rotations[:, number], eyes.T[..., None], d)
        depth = hit_distance(enter, leave)
        depths.append(rearrange(depth, "frames (b rays) -> frames b rays", b=things))
    nearest = torch.stack(depths).amin(0)
    own = torch.stack([depths[number][:, number] for number in range(things)], dim=1)
    whole = own < FAR
    visible = whole & (own <= nearest) & inside
    return boxes, visible.sum(-1) / whole.sum(-1).clamp_min(1)


def image_box(solid: Solid, position: Tensor, rotation: Tensor, eyes: Tensor, axes: Tensor, slopes: Tensor) -> Tensor:
    """Return the image box (F, 4) of one solid: balls in closed form, the others from their corners or rims."""
    x, y, z = solid.half
    if solid.shape in ("ball", "capsule"):
        ends = (0.0,) if solid.shape == "ball" else (-z, z)
        parts = [_ball_box(position + end * rotation[:, :, 2], x, eyes, axes, slopes) for end in ends]
    else:
        if solid.shape == "cube":
            points = [(i * x, j * y, k * z) for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)]
        else:
            rim = [2 * math.pi * step / 24 for step in range(24)]
            points = [(x * math.cos(a), x * math.sin(a), k * z) for a in rim for k in (-1, 1)]
        u, v = project(
            position[:, None] + torch.einsum("fwo,po->fpw", rotation, position.new_tensor(points)), eyes, axes, slopes
        )
        parts = [torch.stack((u.amin(1), v.amin(1), u.amax(1), v.amax(1)), dim=1)]
    low = torch.stack([part[:, :2] for part in parts]).amin(0)
    high = torch.stack([part[:, 2:] for part in parts]).amax(0)
    return torch.cat((low, high), dim=1)


def project(points: Tensor, eyes: Tensor, axes: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """Return u and v (F, P) of points (F, P, 3); a point behind the camera lands far out."""
    side, height, depth = torch.einsum("frw,fpw->rfp", axes, points - eyes[:, None])
    scale = 1 / (depth.clamp_min(0.1) * slopes[:, None])
    return side * scale, height * scale


def _ball_box(centre: Tensor, radius: float, eyes: Tensor, axes: Tensor, slopes: Tensor) -> Tensor:
    side, height, depth = torch.einsum("frw,fw->rf", axes, centre - eyes)
    square = (depth * depth - radius * radius).clamp_min(0.01)

    def tangents(across: Tensor) -> tuple[Tensor, Tensor]:
        root = radius * (across * across + square).sqrt()
        return (across * depth - root) / (square * slopes), (across * depth + root) / (square * slopes)

    (left, right), (bottom, top) = tangents(side), tangents(height)
    return torch.stack((left, bottom, right, top), dim=1)
