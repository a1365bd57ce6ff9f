"""Shade the points where rays meet solids in edition 2: matte, glossy and metal can be distinguished at 64 pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from .light import Ground, Light, sky_gradient
from .solids import Solid, dot

WINDOWS = 2.0  # bright and dark bands per radian around the horizon that a metal mirrors, as in a studio


def shade_solids(
    solids: tuple[Solid, ...],
    light: Light,
    ground: Ground,
    owner: Tensor,
    albedo: Tensor,
    normal: Tensor,
    d: Tensor,
    lit: Tensor,
) -> Tensor:
    """Return the radiance (3, N) of points with normals (3, N) seen along d (3, N); `owner` (N) numbers the solids,
    `lit` (N) is 0 in a shadow. Matte is diffuse only; glossy adds a clear coat with a small white highlight; metal
    reflects an environment of bright and dark bands in its own colour.
    """

    def three(colour: tuple[float, ...]) -> Tensor:
        return d.new_tensor(colour)[:, None]

    kinds = [solid.material for solid in solids]
    glossy, metal = (d.new_tensor([kind == name for kind in kinds])[owner] for name in ("glossy", "metal"))
    sun = three(light.sun)
    facing = dot(normal, sun).clamp_min_(0) * lit
    ambient, floor = three(light.ambient), three(ground.colour)
    bounce = floor * (three(light.sunlight) * light.sun[2] + ambient)
    from_sky = 0.5 + 0.5 * normal[2]
    diffuse = albedo * (three(light.sunlight) * facing + ambient * from_sky + 0.4 * bounce * (1 - from_sky))

    view = d / dot(d, d).sqrt()
    cosine = dot(view, normal)
    mirror = view - 2 * cosine * normal
    graze = (1 + cosine).clamp(0, 1).pow(4)
    above = (mirror[2] * 6 + 0.5).clamp(0, 1)  # a soft horizon: reflections must not flicker
    around = bounce + above * (sky_gradient(light, mirror[2]) - bounce)
    peak = dot(mirror, sun).clamp_min(0)
    white = three(light.sunlight) * lit
    power = (white.mean(0) + 0.35 * sum(light.ambient) / 3).clamp_min(0.3)

    coat = (1 - 0.1 * graze) * diffuse + (0.05 + 0.25 * graze) * around + 2.2 * power * peak.pow(60)

    bearing = torch.atan2(mirror[0], mirror[1])
    height = mirror[2].clamp(-1, 1)
    windows = 0.5 + 0.5 * torch.sin(WINDOWS * bearing + 0.9)
    upper = (height * 5 + 0.3).clamp(0, 1) * (1.25 - 0.5 * height)
    lower = (-height * 2.2 - 0.1).clamp(0, 1) * 1.0
    level = power * (0.06 + (upper + lower) * (0.35 + 0.9 * windows))  # what the metal mirrors: dark at the horizon
    tint = albedo + 0.045 + (0.7 - albedo) * 0.5 * graze
    steel = 0.2 * diffuse + tint * level + 1.2 * white * peak.pow(16) * (0.25 + albedo)
    return diffuse + glossy * (coat - diffuse) + metal * (steel - diffuse)
