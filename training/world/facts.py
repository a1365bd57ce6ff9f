"""What is true of a scene in canonical words, before any language: the floor under `words.py`."""

from __future__ import annotations

from captioning.lexicon import canonical_relation

from .editions import EDITIONS, Edition
from .scene import Scene, Thing

# Events whose subject stays where it is, so that what stands behind it at first always does.
STATIONARY_EVENTS = ("rest", "spin", "fall", "bounce")
# What a still cannot show.
MOTION_ATTRIBUTES = ("event", "direction", "speed", "camera")


def attributes(scene: Scene, moving: bool = True) -> dict[str, str]:
    """State the canonical truth about the subject and its surroundings; what a scene does not have is not a key.

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
    """Name a speed factor as a viewer would: "very slow", "slow", "normal", "fast" or "very fast"."""
    if speed <= rules.range_speeds[0][1] or speed >= rules.range_speeds[1][0]:
        return "very slow" if speed < 1 else "very fast"
    return "slow" if speed < rules.slow else "fast" if speed > rules.fast else "normal"


def bystanders(scene: Scene) -> list[Thing]:
    """List the things that stand where their `relation` says: all but the subject and what the event happens to."""
    return [thing for thing in scene.things[1:] if thing.relation]


def patients(scene: Scene) -> list[Thing]:
    """List the things that the event happens to: what is hit in "collide", the stack from the bottom up in "topple"."""
    return [thing for thing in scene.things[1:] if not thing.relation]


def places(scene: Scene) -> set[str]:
    """State who stands where, as `Lexicon.read_attributes` reads it: "red ball behind blue cube"."""
    names = [f"{thing.colour} {thing.shape}" for thing in scene.things]
    others = zip(names, scene.things, strict=True)
    return {canonical_relation(name, thing.relation, names[0]) for name, thing in others if thing.relation}


def appearances(scene: Scene) -> set[str]:
    """State the size and material of each thing, as `Lexicon.read_attributes` reads it: "large red ball"."""
    return {f"{look} {thing.colour} {thing.shape}" for thing in scene.things for look in (thing.size, thing.material)}


def struck(scene: Scene) -> set[str]:
    """State what is hit by another thing, as `Lexicon.read_attributes` reads it."""
    return {f"{thing.colour} {thing.shape}" for thing in patients(scene) if scene.event == "collide"}
