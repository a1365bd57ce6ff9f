"""The renderer: an analytic ray tracer in torch, on any device and at any size.

One ray is traced per pixel; a pixel whose neighbour shows another solid, face, albedo or shadow is traced again with
SAMPLES rays. The ground's pattern and the sky are averaged in closed form and need no further rays. Tensors of rays are
(3, F, K) or (F, K), K rays in each of F frames, or (3, N) and (N) for N of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Tensor

from .light import Ground, Light, ground_pattern, puddles, sky_colour, sky_gradient, tone_map
from .materials import shade_solids
from .solids import FAR, NEAR, Solid, dot, hit_distance, image_box, intersect, project, surface, to_local, to_world

# Rays of an edge pixel, in sixteenths of a pixel from its middle: eight rooks, no two in a row or column.
SAMPLES = ((-7, -3), (-5, 5), (-3, -5), (-1, 1), (1, -7), (3, 3), (5, -1), (7, 7))
Bands = tuple[slice, slice, slice]  # of a solid, of it and its shadow, and of its mirror image in the ground
SKY_IN_WATER = 0.4  # of the sky's reflection, so that the ground's kind stays visible
RAYS = 100_000  # traced at a time: fewer cost more calls, more leave a core's cache


@dataclass(frozen=True)
class Shot:
    """Input of the renderer: solids with positions (F, B, 3) and rotations (F, B, 3, 3), a camera, light and ground.

    The first `casters` solids are things, which also darken the ground close to them.
    """

    solids: tuple[Solid, ...]
    casters: int
    positions: Tensor
    rotations: Tensor
    eyes: Tensor
    axes: Tensor
    slopes: Tensor
    light: Light
    ground: Ground

    def slice_frames(self, first: int, last: int) -> Shot:
        """Return frames first to last of the shot."""
        names = ("positions", "rotations", "eyes", "axes", "slopes")
        return replace(self, **{name: getattr(self, name)[first:last] for name in names})


@dataclass(frozen=True)
class Hits:
    """First hits of rays with solids: ray indices among F x K, and the surface there."""

    ray: Tensor  # (N)
    owner: Tensor  # (N) index of the solid
    point: Tensor  # (3, N) in the world
    normal: Tensor  # (3, N) in the world
    albedo: Tensor  # (3, N)
    mark: Tensor  # (N) differs between faces and between albedos


def render(shot: Shot, rows: int, columns: int) -> Tensor:
    """Render a shot as uint8 (3, F, Y, X), on the device of its tensors."""
    frames = len(shot.eyes)
    step = max(1, RAYS // (rows * columns))
    parts = [_render_frames(shot.slice_frames(first, first + step), rows, columns) for first in range(0, frames, step)]
    return torch.cat(parts, dim=1)


def _render_frames(shot: Shot, rows: int, columns: int) -> Tensor:
    frames, pixel = len(shot.eyes), 2 / min(rows, columns)
    number = torch.arange(rows * columns, device=shot.eyes.device)
    u = (number % columns + 0.5 - columns / 2) * pixel
    v = (rows / 2 - 0.5 - number // columns) * pixel
    colour, key = _radiance(shot, u[None], v[None], pixel, _row_bands(shot, rows, columns))
    edges = _edges(rearrange(key, "frames (y x) -> frames y x", y=rows)).flatten(1)
    counts = edges.sum(1)
    most = int(counts.max())
    if most:  # every frame gets as many places as the busiest one; the spare ones draw pixel 0 and are dropped
        used = torch.arange(most, device=u.device) < counts[:, None]
        where = torch.zeros(frames, most, dtype=torch.long, device=u.device)
        where[used] = edges.nonzero()[:, 1]
        shift = u.new_tensor(SAMPLES) * (pixel / 16)
        fine_u = rearrange(u[where][..., None] + shift[:, 0], "frames k s -> frames (k s)")
        fine_v = rearrange(v[where][..., None] + shift[:, 1], "frames k s -> frames (k s)")
        fine, _ = _radiance(shot, fine_u, fine_v, pixel, [(slice(None), slice(None), slice(None))] * len(shot.solids))
        mean = rearrange(fine, "rgb frames (k s) -> rgb frames k s", s=len(SAMPLES)).mean(-1)
        colour[:, edges] = mean[:, used]
    return tone_map(rearrange(colour, "rgb frames (y x) -> rgb frames y x", y=rows), shot.light.exposure)


def _edges(key: Tensor) -> Tensor:
    edges = torch.zeros_like(key, dtype=torch.bool)
    across, down = key[:, :, 1:] != key[:, :, :-1], key[:, 1:] != key[:, :-1]
    edges[:, :, 1:] |= across
    edges[:, :, :-1] |= across
    edges[:, 1:] |= down
    edges[:, :-1] |= down
    return edges


def _row_bands(shot: Shot, rows: int, columns: int) -> list[Bands]:
    """Return slices of pixels, whole rows, outside of which a solid is never visible, casts no shadow, and has no
    reflection.
    """
    x, y, z = shot.light.sun
    flat = (x * x + y * y) ** 0.5
    circle = torch.arange(16, dtype=torch.float32) * (2 * torch.pi / 16)
    long, wide = circle.cos() / z, circle.sin()  # the shadow of a ball of radius 1, along and across the light
    outline = torch.stack(((long * x - wide * y) / flat, (long * y + wide * x) / flat, 0 * long), dim=1)
    bands = []
    for number, solid in enumerate(shot.solids):
        position, camera = shot.positions[:, number], (shot.eyes, shot.axes, shot.slopes)
        box = image_box(solid, position, shot.rotations[:, number], *camera)
        centre = position - position[:, 2:] * position.new_tensor((x / z, y / z, 1))
        shadow = project(centre[:, None] + 1.05 * solid.radius * outline.to(position.device), *camera)[1]
        low, high = float(box[:, 1].min()), float(box[:, 3].max())
        pair = []
        image = position * position.new_tensor((1, 1, -1))
        below = image_box(
            replace(solid, shape="ball", half=(solid.radius,) * 3), image, shot.rotations[:, number], *camera
        )
        whole = (min(low, float(shadow.min())), max(high, float(shadow.max())))
        for bottom, top in ((low, high), whole, (float(below[:, 1].min()), float(below[:, 3].max()))):
            first, last = (rows / 2 - v * min(rows, columns) / 2 for v in (top, bottom))
            pair.append(slice(max(int(first) - 1, 0) * columns, max(min(int(last) + 2, rows), 1) * columns))
        bands.append((pair[0], pair[1], pair[2]))
    return bands


def _radiance(shot: Shot, u: Tensor, v: Tensor, pixel: float, bands: list[Bands]) -> tuple[Tensor, Tensor]:
    """Trace rays through u, v (F or 1, K): linear light (3, F, K), and keys (F, K) that differ across an edge."""
    light, ground = shot.light, shot.ground
    right, up, forward = rearrange(shot.axes, "frames row xyz -> row xyz frames 1")
    right, up = right * shot.slopes[:, None], up * shot.slopes[:, None]
    d = torch.addcmul(torch.addcmul(forward, right, u), up, v).contiguous()
    eyes = shot.eyes.T[..., None]

    down = d[2].clamp(max=-1e-5)  # a sky ray meets the ground too, but beyond FAR
    depth = -eyes[2] / down
    hits = _first_hits(shot, d, depth.clamp(max=FAR), bands)
    points = torch.addcmul(eyes, depth, d).contiguous()
    points.flatten(1).index_copy_(1, hits.ray, hits.point)
    owner = (depth >= FAR).int().neg_()  # -1 sky, 0 ground, 1 + number of a solid
    owner.view(-1)[hits.ray] = hits.owner.int() + 1
    lit, open_sky = _shadows(shot, points, owner, bands)

    slant = d[:2] / down  # how the place on the ground moves as a pixel's ray tilts
    size = pixel * depth * (right[:2].abs() + (up[:2] - slant * up[2]).abs())
    tile = 1 + ground_pattern(ground, points[0], points[1], size[0], size[1])
    haze = torch.exp(depth * (-1 / light.haze))
    tile *= haze
    direct, around, veil = lit * tile * light.sun[2], open_sky * tile, 1 - haze
    colour = d.new_empty(d.shape)
    for c in range(3):
        albedo = ground.colour[c]
        torch.mul(direct, albedo * light.sunlight[c], out=colour[c])
        colour[c].add_(around, alpha=albedo * light.ambient[c]).add_(veil, alpha=0.8 * light.horizon[c])
    flat = colour.flatten(1)
    above = (owner < 0).view(-1).nonzero()[:, 0]
    sky = sky_colour(light, d.flatten(1).index_select(1, above), pixel * float(shot.slopes[0]))
    flat.index_copy_(1, above, sky)
    key = owner * 32 + lit.int()
    if len(hits.ray):
        shadow = lit.view(-1)[hits.ray]
        flat.index_copy_(1, hits.ray, _shade_hits(shot, hits, d.flatten(1).index_select(1, hits.ray), shadow))
        key.view(-1)[hits.ray] += hits.mark * 2
    if ground.wet:
        _reflect(shot, d, owner, points, size, haze, pixel, bands, colour, key)
    return colour, key


def _reflect(
    shot: Shot,
    d: Tensor,
    owner: Tensor,
    points: Tensor,
    size: Tensor,
    haze: Tensor,
    pixel: float,
    bands: list[Bands],
    colour: Tensor,
    key: Tensor,
) -> None:
    """Blend the reflections of wet ground into the colour (3, F, K), and add their edges to the keys (F, K).

    A reflected ray is the ray of a camera mirrored below the ground, of height -z, through the same point. There are
    no shadows in reflections.
    """
    up = torch.stack((d[0], d[1], -d[2]))
    below = replace(shot, eyes=shot.eyes * shot.eyes.new_tensor((1, 1, -1)))
    hits = _first_hits(below, up, torch.full_like(d[0], FAR), bands, image=True)
    ground = (owner == 0).view(-1)
    where = ground.nonzero()[:, 0]
    flat_up, flat = up.flatten(1), colour.flatten(1)
    mirror = torch.zeros_like(flat)
    picked = flat_up.index_select(1, where)
    calm = replace(shot.light, stars=0.0)
    mirror.index_copy_(1, where, sky_colour(calm, picked, pixel * float(shot.slopes[0])))
    share = torch.full_like(flat[0], SKY_IN_WATER)
    number = torch.zeros_like(key).view(-1)
    if len(hits.ray):
        lit = torch.ones_like(hits.point[0])
        mirror.index_copy_(1, hits.ray, _shade_hits(shot, hits, flat_up.index_select(1, hits.ray), lit))
        share[hits.ray] = 1.0
        number[hits.ray] = hits.owner.int() * 8 + hits.mark + 1
    slope = (-d[2] / dot(d, d).sqrt()).clamp(0, 1).view(-1)  # the cosine of the angle to the vertical
    fresnel = 0.4 + 0.6 * (1 - slope).pow(4)
    water = puddles(shot.ground, points[0], points[1], size.amax(0)).view(-1)
    amount = (fresnel * water * share * haze.view(-1) * ground).clamp(0, 0.9)
    flat.add_(amount * (mirror - flat))
    key.view(-1).add_(number * ground * 1024)


def _first_hits(shot: Shot, d: Tensor, best: Tensor, bands: list[Bands], image: bool = False) -> Hits:
    """Return the rays d (3, F, K) that hit a solid before the depth `best` (F, K) of the ground; updates `best`.

    With `image` the rays are those reflected by the ground.
    """
    bands = [(band[2], band[1], band[2]) if image else band for band in bands]
    count, depths, eyes = best.shape[1], [], shot.eyes.T[..., None]
    for number, (solid, (band, *_)) in enumerate(zip(shot.solids, bands, strict=True)):
        depths.append(
            hit_distance(*intersect(solid, shot.positions[:, number], shot.rotations[:, number], eyes, d[..., band]))
        )
        torch.minimum(best[:, band], depths[-1], out=best[:, band])
    flat, distance = d.flatten(1), best.view(-1)
    parts = []
    for number, solid in enumerate(shot.solids):
        band = bands[number][0]
        frame, ray = (depths[number] == best[:, band]).nonzero().unbind(1)
        ray = ray + frame * count + (band.start or 0)
        poses = (shot.positions[:, number], shot.eyes, shot.rotations[:, number].flatten(1))
        position, eye, rotation = (pose.T.contiguous().index_select(1, frame) for pose in poses)
        point = eye + distance[ray] * flat.index_select(1, ray)
        own = torch.stack(to_local(rotation, point - position))
        normal, face = surface(solid, own)
        a, b, c, offset = solid.seam
        second = a * own[0] + b * own[1] + c * own[2] > offset
        albedo = torch.where(
            second, own.new_tensor(solid.second_albedo)[:, None], own.new_tensor(solid.albedo)[:, None]
        )
        parts.append(
            (ray, torch.full_like(ray, number), point, to_world(rotation, normal), albedo, face * 2 + second.int())
        )
    return Hits(*(torch.cat(part, dim=-1) for part in zip(*parts, strict=True)))


def _shadows(shot: Shot, points: Tensor, owner: Tensor, bands: list[Bands]) -> tuple[Tensor, Tensor]:
    """Return direct visibility of the sun and the unoccluded share of the sky at points (3, F, K), both (F, K).

    `owner` (F, K) is 1 + the index of the solid that a point lies on. A solid does not shade itself here: it is
    convex, so its own shade is where its surface turns away from the sun.
    """
    frames = points.shape[1]
    sun = points.new_tensor(shot.light.sun)[:, None, None].expand(3, frames, 1)
    lit, open_sky = torch.ones_like(owner, dtype=torch.bool), torch.ones_like(points[0])
    for number, solid in enumerate(shot.solids):
        position = shot.positions[:, number]
        band = bands[number][1]
        enter, leave = intersect(solid, position, shot.rotations[:, number], points[..., band], sun)
        lit[:, band] &= (enter >= leave) | (leave <= NEAR) | (owner[:, band] == number + 1)
        if number < shot.casters:  # the share of the sky that a ball of about this size hides, from the ground
            offset = points - position.T[..., None]
            apart = dot(offset, offset).clamp_(min=solid.radius**2 * 0.25)
            open_sky *= 1 - (0.6 * solid.half[0] ** 2 * position[:, 2, None] / (apart * apart.sqrt())).clamp_(max=0.75)
    return lit.to(points.dtype), open_sky


def _shade_hits(shot: Shot, hits: Hits, d: Tensor, lit: Tensor) -> Tensor:
    """Return the radiance (3, N) where rays d (3, N) hit solids: matte, glossy (a clear coat) or metal (a mirror)."""
    light, normal = shot.light, hits.normal
    if light.edition > 1:
        return shade_solids(shot.solids, light, shot.ground, hits.owner, hits.albedo, normal, d, lit)

    def three(colour: tuple[float, ...]) -> Tensor:
        return d.new_tensor(colour)[:, None]

    kinds = [solid.material for solid in shot.solids]
    glossy, metal = (d.new_tensor([kind == name for kind in kinds])[hits.owner] for name in ("glossy", "metal"))
    sun = three(light.sun)
    facing = dot(normal, sun).clamp_min_(0) * lit
    ambient, floor = three(light.ambient), three(shot.ground.colour)
    bounce = floor * (three(light.sunlight) * light.sun[2] + ambient)
    from_sky = 0.5 + 0.5 * normal[2]
    diffuse = hits.albedo * (three(light.sunlight) * facing + ambient * from_sky + 0.5 * bounce * (1 - from_sky))

    view = d / dot(d, d).sqrt()
    cosine = dot(view, normal)
    mirror = view - 2 * cosine * normal
    graze = (1 + cosine).clamp(0, 1).pow(4)
    above = (mirror[2] * 6 + 0.5).clamp(0, 1)  # a soft horizon: reflections must not flicker
    around = bounce + above * (sky_gradient(light, mirror[2]) - bounce)
    gleam = dot(mirror, sun).clamp_min(0).pow(24) * lit * three(light.sunlight)
    coat = diffuse + (0.05 + 0.45 * graze) * around + 0.9 * gleam
    grey = around.mean(0, keepdim=True)  # half the colour of what it mirrors is left out, so that white stays white
    sheen = hits.albedo + (0.7 - hits.albedo) * 0.5 * graze
    steel = 0.5 * diffuse + sheen * (0.4 * (around + grey) + 1.6 * gleam)
    return diffuse + glossy * (coat - diffuse) + metal * (steel - diffuse)
