"""Light, sky and ground: what a ray sees where it meets no solid. All colours are linear light; z is up.

Lights are kept mild, so that a coloured sun cannot turn one colour word into another. The pattern of the ground is
averaged in closed form over each pixel's footprint (as in Inigo Quilez, "Filtering procedural textures"): no shimmer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .scene import GROUNDS, Scene

Colour = tuple[float, float, float]
TABLE = 8192  # entries of the tone curve


@dataclass(frozen=True)
class Light:
    """The sun (the moon at night), the sky, and how bright the film is exposed."""

    sun: tuple[float, float, float]  # unit vector towards it
    sunlight: Colour
    ambient: Colour
    zenith: Colour
    horizon: Colour
    exposure: float
    clouds: float  # 0: none, 1: the sky is full of them
    phases: tuple[float, float, float]  # where hills and clouds are


@dataclass(frozen=True)
class Ground:
    """The floor: its colour and the place and angle of its pattern."""

    name: str
    colour: Colour
    angle: float
    shift: tuple[float, float]


# elevation of the sun in degrees, sunlight, ambient, zenith, horizon, exposure
TIMES_OF_DAY: dict[str, tuple[float, Colour, Colour, Colour, Colour, float]] = {
    "morning": (32, (1.05, 0.95, 0.80), (0.30, 0.32, 0.38), (0.22, 0.42, 0.80), (0.80, 0.82, 0.86), 0.92),
    "noon": (58, (1.05, 1.03, 0.98), (0.32, 0.34, 0.38), (0.10, 0.30, 0.80), (0.60, 0.76, 0.95), 0.95),
    "sunset": (20, (1.15, 0.86, 0.62), (0.36, 0.32, 0.36), (0.26, 0.22, 0.46), (1.00, 0.52, 0.26), 0.92),
    "night": (46, (0.70, 0.77, 0.90), (0.25, 0.27, 0.35), (0.006, 0.010, 0.035), (0.035, 0.050, 0.11), 0.95),
}


def light_of(scene: Scene, rng: np.random.Generator) -> Light:
    """Light a scene by its time and sky; the sun stands behind the camera's left or right shoulder."""
    elevation, sunlight, ambient, zenith, horizon, exposure = TIMES_OF_DAY[scene.time]
    azimuth = math.radians(float(rng.uniform(25, 65)) * (1 if rng.random() < 0.5 else -1))
    height = math.radians(elevation + float(rng.uniform(-4, 4)))
    sun = (math.sin(azimuth) * math.cos(height), -math.cos(azimuth) * math.cos(height), math.sin(height))
    if scene.sky == "cloudy":  # a veiled sun: softer contrast, a paler sky
        grey = tuple(0.75 * sum(horizon) / 3 + 0.05 for _ in range(3))
        sunlight = tuple(0.42 * s + 0.08 * sum(sunlight) / 3 for s in sunlight)
        ambient = tuple(1.1 * a + 0.22 * sum(ambient) / 3 + 0.08 for a in ambient)
        zenith = tuple(0.25 * z + 0.75 * g for z, g in zip(zenith, grey, strict=True))
        horizon = tuple(0.55 * h + 0.45 * g for h, g in zip(horizon, grey, strict=True))
    phases = tuple(float(p) for p in rng.uniform(0, 2 * math.pi, 3))
    return Light(sun, sunlight, ambient, zenith, horizon, exposure, 1.0 if scene.sky == "cloudy" else 0.25, phases)


def ground_of(scene: Scene, rng: np.random.Generator) -> Ground:
    """Lay the ground of a scene at a drawn place and angle."""
    shift = rng.uniform(0, 8, 2)
    return Ground(
        scene.ground, GROUNDS[scene.ground], float(rng.uniform(-0.6, 0.6)), (float(shift[0]), float(shift[1]))
    )


def sky_colour(light: Light, d: Tensor, footprint: float) -> Tensor:
    """Paint the sky (3, N) along directions d (3, N) of any length, whose pixels are `footprint` radians wide."""
    height = d[2] / (d[0] * d[0] + d[1] * d[1] + d[2] * d[2]).sqrt()
    bearing = torch.atan2(d[0], d[1])
    hill, puff, drift = light.phases
    paint = gradient(light, height)
    blobs = torch.sin(9 * bearing + puff) + torch.sin(17 * bearing + 30 * height + drift)
    cloud = light.clouds * 0.5 * ((blobs - 0.2).clamp(0, 1) * (height * 14).clamp(0, 1))
    bright = max(light.horizon) * 0.95 + 0.02
    crest = 0.026 + 0.010 * torch.sin(5 * bearing + hill) + 0.007 * torch.sin(13 * bearing + drift)
    ridge = ((crest - height) / footprint + 0.5).clamp(0, 1)
    far = paint.new_tensor([0.55 * h * k for h, k in zip(light.horizon, (0.62, 0.74, 0.80), strict=True)])[:, None]
    paint = paint + cloud * (bright - paint)
    return paint + ridge * (far - paint)


def gradient(light: Light, height: Tensor) -> Tensor:
    """Paint a sky without hills or clouds (3, N) at heights (N), the sines of elevations."""
    low, high = (height.new_tensor(c)[:, None] for c in (light.horizon, light.zenith))
    return low + (high - low) * (height.clamp(0, 1) * 1.6).clamp(max=1).sqrt()


def _squares(p: Tensor, width: Tensor, pitch: float) -> Tensor:
    """Average a square wave of -1 and 1, each `pitch` metres long, over `width` metres around p."""
    w = width / pitch
    q = p / pitch

    def triangle(x: Tensor) -> Tensor:
        x = 0.5 * x
        return (x - x.floor() - 0.5).abs()

    return 2 * (triangle(q - 0.5 * w) - triangle(q + 0.5 * w)) / w


def _waves(p: Tensor, width: Tensor, length: float) -> Tensor:
    """Average a sine of the given wave length over about `width` metres around p."""
    k = 2 * math.pi / length
    return torch.sin(k * p) * (1 - (k * width).square() / 24).clamp_min(0)


def pattern(ground: Ground, x: Tensor, y: Tensor, wide: Tensor, deep: Tensor) -> Tensor:
    """Draw the ground's pattern around 0, at places x, y and over footprints of wide x deep metres along the axes."""
    c, s = math.cos(ground.angle), math.sin(ground.angle)
    a, b = c * x + s * y + ground.shift[0], c * y - s * x + ground.shift[1]
    da, db = abs(c) * wide + abs(s) * deep, abs(s) * wide + abs(c) * deep
    if ground.name == "wood":  # long planks
        return 0.22 * _squares(a, da + 0.06, 0.55) + 0.10 * _squares(b, db + 0.06, 2.2)
    if ground.name == "sand":  # ripples
        return 0.16 * _waves(a + 0.25 * torch.sin(1.3 * b), da, 1.3) + 0.08 * _waves(b, db, 2.9)
    if ground.name == "grass":  # mown patches
        return 0.24 * _waves(a, da, 2.1) * _waves(b, db, 2.1) + 0.12 * _squares(a, da + 0.15, 1.6)
    pitch, depth = (1.1, 0.17) if ground.name == "concrete" else (0.9, 0.26)
    return depth * _squares(a, da + 0.06, pitch) * _squares(b, db + 0.06, pitch)


def develop(linear: Tensor, exposure: float) -> Tensor:
    """Turn linear light into uint8 pixels: exposure, a soft shoulder above 0.7, and a display gamma of 2.2.

    The curve is read from a table over the square root of the light, at most 4.
    """
    levels = torch.linspace(0, 1, TABLE, dtype=torch.float64).square() * 4
    curve = torch.where(levels < 0.7, levels, 1 - 0.3 * torch.exp((0.7 - levels) / 0.3)) ** (1 / 2.2)
    table = (curve * 255 + 0.5).to(torch.uint8).to(linear.device)
    place = (linear * (exposure / 4)).clamp_(0, 1).sqrt_().mul_(TABLE - 1).add_(0.5)
    return table.index_select(0, place.int().view(-1)).view(linear.shape)
