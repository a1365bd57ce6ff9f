"""What can be seen in a clip of edition 2 of the world, what a prompt asks for, and how much of that was found.

A `Reading` maps keys to values. A key names the scene ("ground",), a thing by its colour ("red", "shape"), or a thing
and the one that it stands next to ("blue", "red", "relation"). No two things of a scene share a colour.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from captioning.lexicon import Attributes, canonical_relation
from training.world.facts import attributes, bystanders, patients
from training.world.lexicon import OTHER_SIDE
from training.world.scene import (
    CAMERAS,
    COLOURS,
    EVENTS,
    GROUNDS,
    MATERIALS,
    RELATIONS,
    SHAPES,
    SIZES,
    SKIES,
    TIMES,
    WETNESS,
    Scene,
)

Key = tuple[str, ...]
Reading = dict[Key, str]

PALETTE = tuple(COLOURS)
SEEN = "seen"  # the value of the key (colour, "colour")
HIT, TOPPLED = "hit", "toppled"  # the motions of what the event happens to
SCENE_CLASSES: dict[str, tuple[str, ...]] = {
    "count": ("1", "2", "3", "4"),
    "direction": ("left", "right"),
    "speed": ("slow", "normal", "fast"),
    "camera": CAMERAS,
    "ground": tuple(GROUNDS),
    "wetness": WETNESS,
    "sky": SKIES,
    "time": TIMES,
}
THING_CLASSES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "size": tuple(SIZES),
    "material": MATERIALS,
    "motion": (*EVENTS, HIT, TOPPLED),  # a bystander rests
}
PAIR_CLASSES: dict[str, tuple[str, ...]] = {"relation": RELATIONS}
CLASSES = SCENE_CLASSES | THING_CLASSES | PAIR_CLASSES
PHYSICAL_EVENTS = ("collide", "topple", "occlude")  # a thing hits, topples, or passes behind a wall and comes out
COLUMNS = (
    "colour",
    "shape",
    "size",
    "material",
    "count",
    "relation",
    "motion",
    "direction",
    "speed",
    "events",
    "camera",
    "ground",
    "wetness",
    "sky",
    "time",
)


def true_reading(scene: Scene) -> Reading:
    """Return all that a scene shows; values without a class, such as the size "huge", are left out.

    A relation is there in both orders: with the blue cube behind the red ball, the ball is in front of the cube.
    """
    subject, affected = scene.things[0], patients(scene)
    found: Reading = {(name,): value for name, value in attributes(scene).items() if name in SCENE_CLASSES}
    for thing in scene.things:
        event = scene.event if thing is subject else (HIT if scene.event == "collide" else TOPPLED)
        motion = event if thing is subject or thing in affected else "rest"
        values = {"shape": thing.shape, "size": thing.size, "material": thing.material, "motion": motion}
        found |= {(thing.colour, name): value for name, value in values.items()}
        found[thing.colour, "colour"] = SEEN
        if thing.relation:
            found[thing.colour, subject.colour, "relation"] = thing.relation
            found[subject.colour, thing.colour, "relation"] = opposite(thing.relation)
    return {key: value for key, value in found.items() if value in CLASSES.get(key[-1], (SEEN,))}


def opposite(relation: str) -> str:
    """Return the relation of b to a, given that of a to b."""
    return RELATIONS[RELATIONS.index(relation) ^ 1]


def mirror_value(value: str) -> str:
    """Return a value after a horizontal flip of the clip."""
    return " ".join(OTHER_SIDE.get(word, word) for word in value.split())


def mirror_reading(reading: Reading) -> Reading:
    """Return the reading of the mirrored clip."""
    return {key: mirror_value(value) for key, value in reading.items()}


def visible_keys(scene: Scene) -> list[Key]:
    """List the keys of all that a caption of the scene can say, each fact once."""
    truth, subject = true_reading(scene), scene.things[0]
    standing = {thing.colour for thing in bystanders(scene)}
    return [
        key
        for key in truth
        if not (key[-1] == "motion" and key[0] in standing) and not (key[-1] == "relation" and key[0] == subject.colour)
    ]


def asked_keys(scene: Scene, stated: Attributes) -> list[Key]:
    """List what a prompt asks for, given the attributes that a lexicon reads in it; what it leaves open is left out.

    A prompt names all things of its scene, so it asks for their number wherever that can be read.
    """
    subject = scene.things[0]
    names = {thing.colour: f"{thing.colour} {thing.shape}" for thing in scene.things}
    stacked = {thing.colour for thing in patients(scene)} if scene.event == "topple" else set()
    truth = true_reading(scene)

    def is_asked(key: Key) -> bool:
        column = key[-1]
        if column in SCENE_CLASSES:
            return truth[key] in stated.get(column, ())
        name = names[key[0]]
        if column == "colour":
            return key[0] in stated.get("colour", ())
        if column == "shape":
            in_stack = key[0] in stacked and key[0] in stated.get("colour", ()) and "cube" in stated.get("stack", ())
            return in_stack or name in stated.get("thing", ())
        if column == "motion":
            named = key[0] in stated.get("colour", ()) or key[0] == subject.colour
            return named and scene.event in stated.get("event", ())
        if column == "relation":
            return canonical_relation(name, truth[key], names[key[1]]) in stated.get("place", ())
        return f"{truth[key]} {name}" in stated.get("appearance", ())

    return [key for key in visible_keys(scene) if is_asked(key)]


def score(scene: Scene, found: Reading, keys: Iterable[Key], trusted: Iterable[str] = COLUMNS) -> dict[str, float]:
    """Return the share of `keys` that were found right, by column; columns without a key are left out.

    "events" is 1 if the motions of all things of a physical event are right, and "all" if all keys of the columns in
    `trusted` are. What is read of a thing counts only if a thing of its colour is seen.
    """
    truth, right, trusted = true_reading(scene), {}, set(trusted)
    correct: dict[str, list[bool]] = {}
    for key in keys:
        colours = key[:-1]
        right[key] = found.get(key) == truth[key] and all((colour, "colour") in found for colour in colours)
        correct.setdefault(key[-1], []).append(right[key])
    scores = {name: float(np.mean(values)) for name, values in correct.items()}
    if "motion" in correct and scene.event in PHYSICAL_EVENTS:
        scores["events"] = float(all(correct["motion"]))
    judged = [value for key, value in right.items() if key[-1] in trusted]
    return scores | ({"all": float(all(judged))} if judged else {})
