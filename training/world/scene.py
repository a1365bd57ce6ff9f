"""Scenes of the procedural world: attributes of a clip, drawn from (seed, split, index) alone.

A `Scene` has attributes, no coordinates. `physics.py` simulates it, `words.py` writes its captions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .editions import EDITIONS, Edition

# Linear-light albedo of each colour word. Chosen far apart, so that a coloured light cannot turn one into another.
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.75, 0.03, 0.03),
    "orange": (0.90, 0.28, 0.01),
    "yellow": (0.85, 0.70, 0.03),
    "green": (0.03, 0.40, 0.06),
    "blue": (0.02, 0.08, 0.70),
    "purple": (0.26, 0.03, 0.50),
    "pink": (0.90, 0.28, 0.45),
    "white": (0.88, 0.88, 0.88),
    "black": (0.015, 0.015, 0.015),
}
SHAPES = ("ball", "cube", "cylinder", "capsule")
SIZES = EDITIONS[1].sizes  # metres, half the extent
RANGE_SIZES = EDITIONS[1].range_sizes  # never seen in training
MATERIALS = ("matte", "glossy", "metal")
GROUNDS: dict[str, tuple[float, float, float]] = {
    "concrete": (0.30, 0.30, 0.31),
    "sand": (0.52, 0.40, 0.24),
    "wood": (0.30, 0.17, 0.09),
    "grass": (0.14, 0.24, 0.08),
    "slate": (0.10, 0.12, 0.16),
}
SKIES = ("clear", "cloudy")
TIMES = ("morning", "noon", "sunset", "night")
CAMERAS = (
    "still",
    "orbit left",
    "orbit right",
    "pan left",
    "pan right",
    "crane up",
    "crane down",
    "zoom in",
    "zoom out",
)
# The shapes of each event's subject. A ball that slides or spins looks like one that rolls or rests: left out.
EVENTS: dict[str, tuple[str, ...]] = {
    "rest": SHAPES,
    "roll": ("ball", "cylinder", "capsule"),
    "slide": ("cube", "cylinder"),
    "spin": ("cube", "cylinder", "capsule"),
    "fall": SHAPES,
    "bounce": SHAPES,
    "throw": SHAPES,
    "swing": SHAPES,
    "occlude": SHAPES,  # passes behind a wall and comes out
    "edge": SHAPES,  # rolls (a cube slides) off the edge of a platform
    "collide": SHAPES,  # runs into a second object that was at rest
    "topple": ("ball", "cube"),  # knocks over a stack of two or three cubes
}
SOLO_EVENTS = tuple(event for event in EVENTS if event not in ("collide", "topple"))
DIRECTED_EVENTS = ("roll", "slide", "throw", "occlude", "edge", "collide", "topple")  # events that have a direction
RELATIONS = ("left of", "right of", "behind", "in front of")  # as the camera sees the first frame
SPEEDS = EDITIONS[1].speeds["normal"]  # times the event's usual speed, in training
RANGE_SPEEDS = EDITIONS[1].range_speeds  # never seen in training
WETNESS = ("dry", "wet")  # of the ground, from edition 2 on

SPLITS = ("train", "test", "combinations", "range")
# Pairs never seen together in training: the split "combinations" is made of them.
HELD_OUT = frozenset(
    {
        ("green", "cylinder"),
        ("orange", "capsule"),
        ("purple", "cube"),
        ("white", "ball"),
        ("yellow", "swing"),
        ("blue", "spin"),
        ("pink", "throw"),
        ("black", "roll"),
        ("cube", "throw"),
        ("capsule", "fall"),
    }
)


@dataclass(frozen=True)
class Thing:
    """One object. `extent` is half its size in metres; `relation` is its place relative to the subject."""

    shape: str
    colour: str
    size: str
    material: str
    extent: float
    relation: str | None = None


@dataclass(frozen=True)
class Scene:
    """Attributes of a clip: `things[0]` is the subject of `event`; the others rest at their `relation` to it.

    In "collide" things[1] is what is hit; in "topple" things[1:] are the stack, all cubes, from the bottom up.
    `direction` is "left" or "right" as the camera sees it for events in TRAVELS, else None. `speed` is a factor.
    `seconds` is how long the event is given. `wetness` is one of WETNESS.
    """

    seed: int
    split: str
    index: int
    things: tuple[Thing, ...]
    event: str
    direction: str | None
    speed: float
    camera: str
    ground: str
    sky: str
    time: str
    seconds: float
    wetness: str = "dry"
    edition: int = 1

    @property
    def rules(self) -> Edition:
        """Return the constants of the scene's edition."""
        return EDITIONS[self.edition]


def event_seconds(edition: int, frames: int, fps: float) -> float:
    """Return the duration of an event: two seconds, or from edition 2 on the clip's duration if that is longer."""
    return 2.0 if edition == 1 else max(2.0, (frames - 1) / fps)


def attribute_pairs(scene: Scene) -> set[tuple[str, str]]:
    """Return the attribute pairs of a scene: (colour, shape) of every thing, (colour, event) and (shape, event) of the
    subject; from edition 2 on also (ground, time).
    """
    subject = scene.things[0]
    setting = {(scene.ground, scene.time)} if scene.rules.held_out_settings else set()
    return (
        setting
        | {(thing.colour, thing.shape) for thing in scene.things}
        | {
            (subject.colour, scene.event),
            (subject.shape, scene.event),
        }
    )


def held_out_pairs(scene: Scene) -> set[tuple[str, str]]:
    """Return the attribute pairs of a scene that never occur in training."""
    return attribute_pairs(scene) & (HELD_OUT | scene.rules.held_out_settings)


def clip_rng(seed: int, split: str, index: int, purpose: int = 0) -> np.random.Generator:
    """Return the random generator of a clip: the same on every machine, independent between clips and purposes."""
    return np.random.default_rng([seed, SPLITS.index(split), index, purpose])


def sample_scene(seed: int, split: str, index: int, seconds: float = 2.0, edition: int = 1) -> Scene:
    """Draw the scene of clip `index` of a split; the same arguments give the same scene on every machine.

    "train" and "test" share a distribution without the HELD_OUT pairs, "combinations" shows at least one such pair, and
    "range" has a subject with a size or a speed that training never shows. Raises ValueError for an unknown split or
    edition.
    """
    if edition not in EDITIONS:
        raise ValueError(f"edition must be one of {', '.join(map(str, EDITIONS))}; got {edition!r}")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    rng = clip_rng(seed, split, index)
    while True:
        scene = _propose(rng, seed, split, index, seconds, edition)
        if bool(held_out_pairs(scene)) == (split == "combinations"):
            return scene


def _propose(rng: np.random.Generator, seed: int, split: str, index: int, seconds: float, edition: int) -> Scene:
    rules = EDITIONS[edition]

    def choose(options):
        return str(rng.choice(list(options)))

    count = int(rng.choice([1, 2, 3, 4], p=list(rules.counts)))
    if count == 1:
        event = choose(SOLO_EVENTS)
    elif count == 2:
        event = choose(["collide"] * 5 + list(SOLO_EVENTS))
    else:
        event = choose(["topple"] * 4 + ["collide"] * 2 + list(SOLO_EVENTS))
    out_of_range = choose(["size", "speed"]) if split == "range" else None
    if out_of_range == "speed" and rules.slow_events and event not in rules.slow_events:
        out_of_range = "size"
    colours = [str(c) for c in rng.permutation(list(COLOURS))]  # no two things of a clip share a colour
    relations = [str(r) for r in rng.permutation(list(RELATIONS))]
    things = []
    for number in range(count):
        subject, stacked = number == 0, event == "topple" and number > 0
        shape = choose(EVENTS[event]) if subject else "cube" if stacked else choose(SHAPES)
        if subject and event in ("roll", "bounce") and rng.random() < 0.4:
            shape = "ball"
        size = choose(rules.sizes)
        extent = rules.sizes[size]
        if subject and out_of_range == "size":
            cramped = rules.small_subject_events and event in ("swing", *rules.small_subject_events)
            size = "tiny" if cramped else choose(rules.range_sizes)
            extent = rules.range_sizes[size]
        elif subject and event in rules.small_subject_events and size == "large":  # no room in the frame
            size = choose(("small", "medium"))
            extent = rules.sizes[size]
        elif event == "topple":
            size, extent = ("medium", rules.sizes["medium"]) if subject else ("small", rules.sizes["small"])
        relation = None if subject or stacked or (event == "collide" and number == 1) else relations.pop()
        extent *= float(rng.uniform(1 - rules.size_jitter, 1 + rules.size_jitter))
        things.append(Thing(shape, colours.pop(), size, choose(MATERIALS), extent, relation))
    low, high = (
        rules.range_speeds[int(rng.integers(2))]
        if out_of_range == "speed"
        else rules.speeds[_sample_speed_class(rng, rules, event)]
    )
    return Scene(
        seed=seed,
        split=split,
        index=index,
        things=tuple(things),
        event=event,
        direction=choose(["left", "right"]) if event in DIRECTED_EVENTS else None,
        speed=float(rng.uniform(low, high)),
        camera="still" if rng.random() < 0.3 else choose(CAMERAS[1:]),
        ground=choose(GROUNDS),
        sky=choose(SKIES),
        time=choose(TIMES),
        seconds=seconds,
        wetness="wet" if rules.wet_share and rng.random() < rules.wet_share else "dry",
        edition=edition,
    )


def _sample_speed_class(rng: np.random.Generator, rules: Edition, event: str) -> str:
    """Draw a speed class that suits the event; an edition of one class draws nothing."""
    if len(rules.speeds) == 1:
        return "normal"
    able = {"slow": rules.slow_events, "normal": None, "fast": rules.fast_events}
    return str(rng.choice([pace for pace in rules.speeds if (events := able[pace]) is None or event in events]))
