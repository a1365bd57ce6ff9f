"""Light, sky and ground: the radiance of rays that hit no solid. All colours are linear light; z is up.

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

Colour = tuple[float, ...]  # red, green, blue
TABLE = 8192  # entries of the tone curve


@dataclass(frozen=True)
class Light:
    """The sun (the moon at night), the sky, and the exposure."""

    sun: tuple[float, float, float]  # unit vector towards it
    sunlight: Colour
    ambient: Colour
    zenith: Colour
    horizon: Colour
    exposure: float
    clouds: float  # 0: none, 1: the sky is full of them
    phases: tuple[float, ...]  # of the hills and clouds
    haze: float = 75.0  # metres after which 63 % of what the ground shows is the horizon's light
    edition: int = 1
    stars: float = 0.0  # how bright they are


@dataclass(frozen=True)
class Ground:
    """The ground plane: its albedo, and the offset and angle of its pattern."""

    name: str
    colour: Colour
    angle: float
    shift: tuple[float, float]
    edition: int = 1
    wet: bool = False


# elevation of the sun in degrees, sunlight, ambient, zenith, horizon, exposure
TIMES_OF_DAY: dict[str, tuple[float, Colour, Colour, Colour, Colour, float]] = {
    "morning": (32, (1.05, 0.95, 0.80), (0.30, 0.32, 0.38), (0.22, 0.42, 0.80), (0.80, 0.82, 0.86), 0.92),
    "noon": (58, (1.05, 1.03, 0.98), (0.32, 0.34, 0.38), (0.10, 0.30, 0.80), (0.60, 0.76, 0.95), 0.95),
    "sunset": (20, (1.15, 0.86, 0.62), (0.36, 0.32, 0.36), (0.26, 0.22, 0.46), (1.00, 0.52, 0.26), 0.92),
    "night": (46, (0.70, 0.77, 0.90), (0.25, 0.27, 0.35), (0.006, 0.010, 0.035), (0.035, 0.050, 0.11), 0.95),
}

# the same for edition 2, with larger differences, and the haze in metres
TIMES_OF_DAY_2: dict[str, tuple[float, Colour, Colour, Colour, Colour, float, float]] = {
    "morning": (27, (1.12, 0.98, 0.72), (0.36, 0.36, 0.38), (0.50, 0.66, 0.84), (1.10, 0.98, 0.66), 0.95, 50.0),
    "noon": (60, (1.20, 1.18, 1.12), (0.34, 0.36, 0.40), (0.03, 0.20, 0.80), (0.34, 0.66, 1.05), 0.97, 140.0),
    "sunset": (17, (1.26, 0.90, 0.62), (0.38, 0.31, 0.35), (0.34, 0.14, 0.40), (1.25, 0.42, 0.10), 0.92, 110.0),
    "night": (42, (0.54, 0.61, 0.79), (0.14, 0.16, 0.24), (0.004, 0.006, 0.028), (0.018, 0.030, 0.085), 0.95, 90.0),
}
# linear-light albedo, unlike one another and every colour word
GROUND_COLOURS_2: dict[str, Colour] = {
    "concrete": (0.46, 0.46, 0.44),
    "sand": (0.66, 0.49, 0.25),
    "wood": (0.25, 0.11, 0.045),
    "grass": (0.10, 0.25, 0.04),
    "slate": (0.07, 0.09, 0.13),
}
WET_BRIGHTNESS = 0.5  # how bright a ground is when wet, compared with dry
STARS = 26.0  # cells of the sky per radian, with at most one star each


def make_light(scene: Scene, rng: np.random.Generator) -> Light:
    """Return the light of a scene's time and sky; the sun is behind the camera, to its left or right."""
    elevation, sunlight, ambient, zenith, horizon, exposure, *haze = (
        TIMES_OF_DAY if scene.edition == 1 else TIMES_OF_DAY_2
    )[scene.time]
    azimuth = math.radians(float(rng.uniform(25, 65)) * (1 if rng.random() < 0.5 else -1))
    height = math.radians(elevation + float(rng.uniform(-4, 4)))
    sun = (math.sin(azimuth) * math.cos(height), -math.cos(azimuth) * math.cos(height), math.sin(height))
    if scene.sky == "cloudy" and scene.edition > 1:  # no sun: soft faint shadows, a grey sky
        grey = tuple(0.62 * sum(horizon) / 3 + 0.30 * h + 0.01 for h in horizon)
        sunlight = tuple(0.26 * s + 0.08 * sum(sunlight) / 3 for s in sunlight)
        ambient = tuple(1.0 * a + 0.24 * sum(sunlight) / 3 + 0.10 * sum(ambient) for a in ambient)
        zenith = tuple(0.12 * z + 0.62 * g for z, g in zip(zenith, grey, strict=True))
        horizon = tuple(0.35 * h + 0.60 * g for h, g in zip(horizon, grey, strict=True))
    elif scene.sky == "cloudy":  # a veiled sun: softer contrast, a paler sky
        grey = tuple(0.75 * sum(horizon) / 3 + 0.05 for _ in range(3))
        sunlight = tuple(0.42 * s + 0.08 * sum(sunlight) / 3 for s in sunlight)
        ambient = tuple(1.1 * a + 0.22 * sum(ambient) / 3 + 0.08 for a in ambient)
        zenith = tuple(0.25 * z + 0.75 * g for z, g in zip(zenith, grey, strict=True))
        horizon = tuple(0.55 * h + 0.45 * g for h, g in zip(horizon, grey, strict=True))
    phases = tuple(float(p) for p in rng.uniform(0, 2 * math.pi, 3))
    if scene.edition == 1:
        return Light(sun, sunlight, ambient, zenith, horizon, exposure, 1.0 if scene.sky == "cloudy" else 0.25, phases)
    clear = scene.sky == "clear"
    stars = 0.55 if clear and scene.time == "night" else 0.0
    return Light(
        sun, sunlight, ambient, zenith, horizon, exposure, 0.0 if clear else 1.0, phases, haze[0], scene.edition, stars
    )


def make_ground(scene: Scene, rng: np.random.Generator) -> Ground:
    """Return the ground of a scene with a random offset and angle."""
    shift = rng.uniform(0, 8, 2)
    place = float(rng.uniform(-0.6, 0.6)), (float(shift[0]), float(shift[1]))
    if scene.edition == 1:
        return Ground(scene.ground, GROUNDS[scene.ground], *place)
    wet = scene.wetness == "wet"
    colour = tuple((WET_BRIGHTNESS if wet else 1.0) * c for c in GROUND_COLOURS_2[scene.ground])
    return Ground(scene.ground, colour, *place, scene.edition, wet)


def sky_colour(light: Light, d: Tensor, footprint: float) -> Tensor:
    """Return the sky's radiance (3, N) along directions d (3, N) of any length; pixels are `footprint` radians wide."""
    height = d[2] / (d[0] * d[0] + d[1] * d[1] + d[2] * d[2]).sqrt()
    bearing = torch.atan2(d[0], d[1])
    if light.edition > 1:
        return _sky_of_edition_2(light, height, bearing, footprint)
    hill, puff, drift = light.phases
    paint = sky_gradient(light, height)
    blobs = torch.sin(9 * bearing + puff) + torch.sin(17 * bearing + 30 * height + drift)
    cloud = light.clouds * 0.5 * ((blobs - 0.2).clamp(0, 1) * (height * 14).clamp(0, 1))
    bright = max(light.horizon) * 0.95 + 0.02
    crest = 0.026 + 0.010 * torch.sin(5 * bearing + hill) + 0.007 * torch.sin(13 * bearing + drift)
    ridge = ((crest - height) / footprint + 0.5).clamp(0, 1)
    far = paint.new_tensor([0.55 * h * k for h, k in zip(light.horizon, (0.62, 0.74, 0.80), strict=True)])[:, None]
    paint = paint + cloud * (bright - paint)
    return paint + ridge * (far - paint)


def _sky_of_edition_2(light: Light, height: Tensor, bearing: Tensor, footprint: float) -> Tensor:
    """Return the sky of edition 2 (3, N): clouds if it is cloudy, stars on a clear night, low hills."""
    hill, puff, drift = light.phases
    paint = sky_gradient(light, height)
    if light.clouds:  # pale heaps with dark undersides
        wave = torch.sin(11 * bearing + puff) + 0.7 * torch.sin(23 * bearing + 20 * height + drift)
        wave = wave + 0.8 * torch.sin(34 * height - 5 * bearing + hill)
        pale = ((wave - 0.1) * 1.2).clamp(0, 1)
        dark = ((-wave - 0.5) * 1.2).clamp(0, 1) * 0.45
        bright = paint.new_tensor([1.25 * max(light.horizon) + 0.02] * 3)[:, None]
        paint = (paint + pale * (bright - paint) * 0.75) * (1 - dark)
    if light.stars:
        a, b = STARS * bearing, STARS * height
        cell_a, cell_b = a.floor(), b.floor()
        noise = [
            torch.sin(cell_a * x + cell_b * y + drift) * 43758.5453 for x, y in ((12.9898, 78.233), (39.346, 11.135))
        ]
        across, along = (n - n.floor() for n in noise)
        off = (a - cell_a - 0.2 - 0.6 * across).square() + (b - cell_b - 0.2 - 0.6 * along).square()
        wide = (STARS * footprint) ** 2 * 0.35 + 0.002
        glow = torch.exp(-off / wide) * (across + along > 1.15) * (height > 0.03)
        paint = paint + light.stars * min(1.0, 0.01 / wide + 0.35) * glow
    crest = 0.020 + 0.010 * torch.sin(5 * bearing + hill) + 0.006 * torch.sin(13 * bearing + drift)
    ridge = ((crest - height) / footprint + 0.5).clamp(0, 1)
    far = paint.new_tensor([0.5 * h * k for h, k in zip(light.horizon, (0.62, 0.74, 0.84), strict=True)])[:, None]
    return paint + ridge * (far - paint)


def sky_gradient(light: Light, height: Tensor) -> Tensor:
    """Return the sky without hills or clouds (3, N) at heights (N), the sines of elevations."""
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


def ground_pattern(ground: Ground, x: Tensor, y: Tensor, wide: Tensor, deep: Tensor) -> Tensor:
    """Return the ground's pattern around 0, at points x, y and over footprints of wide x deep metres along the axes."""
    c, s = math.cos(ground.angle), math.sin(ground.angle)
    a, b = c * x + s * y + ground.shift[0], c * y - s * x + ground.shift[1]
    da, db = abs(c) * wide + abs(s) * deep, abs(s) * wide + abs(c) * deep
    if ground.edition > 1:
        return _pattern_of_edition_2(ground.name, a, b, da, db)
    if ground.name == "wood":  # long planks
        return 0.22 * _squares(a, da + 0.06, 0.55) + 0.10 * _squares(b, db + 0.06, 2.2)
    if ground.name == "sand":  # ripples
        return 0.16 * _waves(a + 0.25 * torch.sin(1.3 * b), da, 1.3) + 0.08 * _waves(b, db, 2.9)
    if ground.name == "grass":  # mown patches
        return 0.24 * _waves(a, da, 2.1) * _waves(b, db, 2.1) + 0.12 * _squares(a, da + 0.15, 1.6)
    pitch, depth = (1.1, 0.17) if ground.name == "concrete" else (0.9, 0.26)
    return depth * _squares(a, da + 0.06, pitch) * _squares(b, db + 0.06, pitch)


def _pattern_of_edition_2(name: str, a: Tensor, b: Tensor, da: Tensor, db: Tensor) -> Tensor:
    """Return the ground patterns of edition 2: slabs, dunes, planks, tufts, tiles."""
    if name == "wood":  # long planks with dark joints and a fine grain
        return 0.30 * _squares(a, da + 0.05, 0.5) + 0.16 * _waves(a + 0.05 * torch.sin(2 * b), da, 0.17)
    if name == "sand":  # dunes
        bend = a + 0.35 * torch.sin(1.1 * b) + 0.12 * torch.sin(2.7 * b)
        return 0.22 * _waves(bend, da, 0.9) + 0.10 * _waves(b, db, 3.1)
    if name == "grass":  # tufts
        tufts = _waves(a + 0.3 * torch.sin(1.7 * b), da, 0.62) * _waves(b + 0.3 * torch.sin(2.3 * a), db, 0.55)
        return 0.55 * tufts + 0.25 * _waves(a + 0.6 * b, da + 0.6 * db, 1.9)
    if name == "concrete":  # wide slabs between thin dark joints
        joints = torch.maximum(_joints(a, da, 2.4), _joints(b, db, 2.4))
        return 0.05 * _waves(a, da, 5.3) - 0.5 * joints
    return 0.45 * _squares(a, da + 0.06, 0.8) * _squares(b, db + 0.06, 0.8)  # slate: tiles of two tones


def _joints(p: Tensor, width: Tensor, pitch: float, wide: float = 0.07) -> Tensor:
    """Average lines `wide` metres wide, one every `pitch` metres, over `width` metres around p."""
    off = (p / pitch - (p / pitch).round()).abs() * pitch
    half = 0.5 * (wide + width)
    return ((half - off) / width.clamp_min(1e-3)).clamp(0, 1) * (wide / torch.maximum(width, p.new_tensor(wide)))


def puddles(ground: Ground, x: Tensor, y: Tensor, size: Tensor) -> Tensor:
    """Return the depth of water on a wet ground, from 0.5 to 1, over footprints of `size` metres."""
    c, s = math.cos(ground.angle + 0.5), math.sin(ground.angle + 0.5)
    a, b = c * x + s * y + ground.shift[1], c * y - s * x + ground.shift[0]
    depth = _waves(a + 0.4 * torch.sin(1.3 * b), size, 2.6) + _waves(b + 0.4 * torch.sin(1.1 * a), size, 2.1)
    return 0.5 + 0.5 * (0.5 + 1.1 * (depth + 0.5)).clamp(0, 1)


def tone_map(linear: Tensor, exposure: float) -> Tensor:
    """Tone-map linear light to uint8 pixels: exposure, a soft shoulder above 0.7, and a display gamma of 2.2.

    The curve is read from a table over the square root of the light, at most 4.
    """
    levels = torch.linspace(0, 1, TABLE, dtype=torch.float64).square() * 4
    curve = torch.where(levels < 0.7, levels, 1 - 0.3 * torch.exp((0.7 - levels) / 0.3)) ** (1 / 2.2)
    table = (curve * 255 + 0.5).to(torch.uint8).to(linear.device)
    place = (linear * (exposure / 4)).clamp_(0, 1).sqrt_().mul_(TABLE - 1).add_(0.5)
    return table.index_select(0, place.int().view(-1)).view(linear.shape)
