"""Constants of the editions of the world: edition 1 is that of the first models, edition 2 that of the next.

Clips of an edition never change, so that published figures can be reproduced; a change needs a new edition.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Edition:
    """The constants of one edition of the world; lengths are metres, angles radians.

    `counts` are the shares of scenes with 1 to 4 things. `sizes` maps a size word to half the extent of a thing, which
    differs by a factor of up to 1 +- `size_jitter`. `speeds` are the ranges of the speed factor in training, and a
    factor below `slow` or above `fast` is named so. `proportions` are the half sizes of each shape at extent 1.
    `held_out_settings` are pairs of ground and time of day that training never shows together.
    """

    counts: tuple[float, float, float, float]
    sizes: dict[str, float]
    range_sizes: dict[str, float]
    size_jitter: float
    speeds: dict[str, tuple[float, float]]
    range_speeds: tuple[tuple[float, float], tuple[float, float]]
    slow: float
    fast: float
    slow_events: tuple[str, ...] | None  # the events that can be slow; None: all
    fast_events: tuple[str, ...] | None  # the events that can be fast; None: all
    small_subject_events: tuple[str, ...]  # the events whose subject is not large
    wet_share: float
    held_out_settings: frozenset[tuple[str, str]]
    proportions: dict[str, tuple[float, float, float]]
    distance: float  # from the camera to its aim
    half_view: float  # half of what the smaller image dimension covers at the aim
    elevation: tuple[float, float]
    orbit: float  # to either side
    pan: float  # to either side
    crane: float  # up and down
    zoom: tuple[float, float]  # factors of the view
    camera_jitter: tuple[float, float]  # factors of the extent of a camera move
    max_separation: float  # how far from the subject bystanders may stand, beyond touching
    detail_probability: float  # how often a plain caption names the size and the material of a bystander


EDITIONS: dict[int, Edition] = {
    1: Edition(
        counts=(0.6, 0.2, 0.12, 0.08),
        sizes={"small": 0.36, "medium": 0.56, "large": 0.86},  # each 1.55 times the last
        range_sizes={"tiny": 0.26, "huge": 1.15},
        size_jitter=0.06,
        speeds={"normal": (0.8, 1.25)},
        range_speeds=((0.4, 0.55), (1.8, 2.4)),
        slow=0.9,
        fast=1.12,
        slow_events=None,
        fast_events=None,
        small_subject_events=(),
        wet_share=0.0,
        held_out_settings=frozenset(),
        proportions={
            "ball": (1, 1, 1),
            "cube": (0.82, 0.82, 0.82),
            "cylinder": (0.68, 0.68, 0.92),
            "capsule": (0.54, 0.54, 0.74),
        },
        distance=6.0,
        half_view=2.35,
        elevation=(15.0, 20.0),
        orbit=math.radians(21),
        pan=math.radians(8.5),
        crane=1.1,
        zoom=(0.86, 1.38),
        camera_jitter=(1.0, 1.0),
        max_separation=1.6,
        detail_probability=0.2,
    ),
    2: Edition(
        counts=(0.35, 0.3, 0.2, 0.15),
        sizes={"small": 0.40, "medium": 0.66, "large": 1.08},  # each 1.64 times the last
        range_sizes={"tiny": 0.26, "huge": 1.5},
        size_jitter=0.03,
        speeds={"slow": (0.47, 0.53), "normal": (0.95, 1.05), "fast": (1.9, 2.1)},
        range_speeds=((0.28, 0.34), (2.7, 3.1)),
        slow=0.75,
        fast=1.5,
        slow_events=("roll", "slide", "spin", "fall", "swing"),
        fast_events=("roll", "slide", "spin", "fall", "swing", "bounce", "throw", "collide", "topple"),
        small_subject_events=("occlude",),
        wet_share=0.3,
        held_out_settings=frozenset({("slate", "sunset"), ("wood", "night")}),
        proportions={
            "ball": (1, 1, 1),
            "cube": (0.84, 0.84, 0.84),
            "cylinder": (0.70, 0.70, 1.0),
            "capsule": (0.60, 0.60, 0.82),
        },
        distance=7.0,
        half_view=2.35,
        elevation=(8.5, 11.5),
        orbit=math.radians(26),
        pan=math.radians(10.0),
        crane=1.5,
        zoom=(0.84, 1.46),
        camera_jitter=(0.85, 1.15),
        max_separation=1.0,
        detail_probability=0.97,
    ),
}
