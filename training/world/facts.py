"""Canonical attribute values of a scene, independent of any language."""

from __future__ import annotations

from captioning.lexicon import canonical_relation

from .editions import EDITIONS, Edition
from .scene import Scene, Thing

# Events whose subject stays in place, so that spatial relations hold in every frame.
STATIONARY_EVENTS = ("rest", "spin", "fall", "bounce")
# Attributes that a single frame cannot show.
MOTION_ATTRIBUTES = ("event", "direction", "speed", "camera")


def attributes(scene: Scene, moving: bool = True) -> dict[str, str]:
    """Return the canonical attributes of the subject and its surroundings; attributes that a scene lacks are left out.

    A still (`moving=False`) has no event, direction, speed or camera.
    """
    subject = scene.things[0]
    truth = {"colour": subject.colour, "shape": subject.shape, "size": subject.size, "material": subject.material}
    truth |= {"event": scene.event, "camera": scene.camera}
    truth |= {"ground": scene.ground, "sky": scene.sky, "time": scene.time, "count": str(len(scene.things))}
    if scene.direction:
        truth["direction"] = scene.direction
    if scene.event != "rest":
        truth["speed"] = speed_word(scene.speed, scene.rules)
    if scene.rules.wet_share:
        truth["wetness"] = scene.wetness
    return truth if moving else {name: value for name, value in truth.items() if name not in MOTION_ATTRIBUTES}


def speed_word(speed: float, rules: Edition = EDITIONS[1]) -> str:
    """Classify a speed factor: "very slow", "slow", "normal", "fast" or "very fast"."""
    if speed <= rules.range_speeds[0][1] or speed >= rules.range_speeds[1][0]:
        return "very slow" if speed < 1 else "very fast"
    return "slow" if speed < rules.slow else "fast" if speed > rules.fast else "normal"


def bystanders(scene: Scene) -> list[Thing]:
    """Return the things with a `relation`: all but the subject and the patients of the event."""
    return [thing for thing in scene.things[1:] if thing.relation]


def patients(scene: Scene) -> list[Thing]:
    """Return the things that the event affects: the one hit in "collide", the stack from the bottom up in "topple"."""
    return [thing for thing in scene.things[1:] if not thing.relation]


def places(scene: Scene) -> set[str]:
    """Return the spatial relations, as `Lexicon.read_attributes` reads them: "red ball behind blue cube"."""
    names = [f"{thing.colour} {thing.shape}" for thing in scene.things]
    others = zip(names, scene.things, strict=True)
    return {canonical_relation(name, thing.relation, names[0]) for name, thing in others if thing.relation}


def appearances(scene: Scene) -> set[str]:
    """Return the size and material of each thing, as `Lexicon.read_attributes` reads them: "large red ball"."""
    return {f"{word} {thing.colour} {thing.shape}" for thing in scene.things for word in (thing.size, thing.material)}


def struck(scene: Scene) -> set[str]:
    """Return the thing hit by another, as `Lexicon.read_attributes` reads it."""
    return {f"{thing.colour} {thing.shape}" for thing in patients(scene) if scene.event == "collide"}
