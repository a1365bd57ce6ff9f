"""English phrases: the parts of sentences that `grammar_en.py` joins into captions."""

from __future__ import annotations

import re
from collections.abc import Sequence, Set

from .facts import STATIONARY_EVENTS, attributes, bystanders, patients
from .lexicon import OTHER_SIDE, WordPicker
from .scene import Scene, Thing
from .words_en import (
    DIRECTION_PHRASES,
    NUMBERS,
    RELATION_TO_SUBJECT,
    STACKS,
    STATIC_SHOTS,
    SUBJECT_RELATION,
    WORDS,
    inflect,
)

APPEARANCE = frozenset(("colour", "shape", "size", "material"))
LATERAL = ("left of", "right of")
GROUND_PREPOSITIONS = {
    "roll": ("on", "across", "over"),
    "slide": ("on", "across", "over"),
    "fall": ("onto",),
    "throw": ("over",),
}
GROUND_PREPOSITIONS |= {"swing": ("above", "over")}  # everything else happens on the ground
LONG_EVENTS = (
    "fall",
    "throw",
    "occlude",
    "edge",
    "collide",
    "topple",
)  # bystanders cannot be mentioned after these verbs
AIRBORNE_EVENTS = ("fall", "throw", "bounce", "swing", "edge")  # a still may show these away from the ground
STILL_CONTEXT = {
    "swing": " hanging on a string",
    "edge": " by a platform",
    "occlude": " near a wall",
}  # what a still shows
GROUND_NAMES = {"concrete": "concrete floor", "sand": "sandy ground", "wood": "wooden floor", "grass": "grassy ground"}
GROUND_NAMES |= {"slate": "slate floor"}


def with_article(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def capitalise(text: str) -> str:
    return text[0].upper() + text[1:]


def join_list(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def brief_attributes(picker: WordPicker) -> set[str]:
    """Choose the attributes that a brief mention names: colour, shape and sometimes others."""
    return {"colour", "shape"} | {name for name in ("size", "material") if picker.chance(picker.detail_probability)}


def material_and_colour(thing: Thing, picker: WordPicker) -> str:
    """Name material and colour: "matte blue"."""
    if "material" in picker.excluded:
        return picker.word("colour", thing.colour)
    return picker.phrase("material", thing.material).format(picker.word("colour", thing.colour))


def noun_phrase(thing: Thing, named: Set[str], picker: WordPicker) -> str:
    """Name a thing by the attributes in `named`: "large red metal ball"."""
    named = named - picker.excluded
    colour = picker.word("colour", thing.colour) if "colour" in named else ""
    surface = picker.phrase("material", thing.material).format(colour) if "material" in named else colour
    size = picker.word("size", thing.size) if "size" in named else ""
    shape = picker.word("shape", thing.shape) if "shape" in named else "object"
    return " ".join(f"{size} {surface} {shape}".split())


def brief_mention(thing: Thing, picker: WordPicker) -> str:
    """Name a thing with an article and a few attributes: "a blue cube"."""
    return with_article(noun_phrase(thing, brief_attributes(picker), picker))


def definite_name(scene: Scene, text: str) -> str:
    """Refer to the subject again: "the ball", or "the red ball" where there is another one."""
    first = scene.things[0]
    found = {word: re.search(rf"\b{word}\b", text) for word in WORDS["shape"][first.shape]}
    shape = min((match.start(), number, word) for number, (word, match) in enumerate(found.items()) if match)[2]
    alone = all(thing.shape != first.shape for thing in scene.things[1:])
    return f"the {shape}" if alone else f"the {first.colour} {shape}"


def relation_phrase(thing: Thing, name: str, picker: WordPicker) -> str:
    """Describe where a thing is relative to the subject: "behind the ball", "to its left"."""
    relation = thing.relation or ""
    if name == "it" and relation in LATERAL:
        return f"{picker.pick(('to', 'on'))} its {relation.split()[0]}"
    return picker.pick(RELATION_TO_SUBJECT[relation]).format(it=name)


def bystander_list(others: Sequence[Thing], picker: WordPicker) -> str:
    """List things with their relations: "a blue cube behind it and a red can to its left"."""
    return join_list([f"{brief_mention(thing, picker)} {relation_phrase(thing, 'it', picker)}" for thing in others])


def attach_bystanders(scene: Scene, subject: str, form: str, picker: WordPicker) -> tuple[str, str, str]:
    """Mention the bystanders; return the subject, the words after its verb, and the words at the end.

    Nothing is put before a participle: "a ball with a cube behind it rolling" could be a rolling cube.
    """
    others = bystanders(scene)
    if not others:
        return subject, "", ""
    behind = [] if scene.event in LONG_EVENTS else ["trail", "after"]
    places = behind if form == "participle" else ["with", *behind, "beside"]
    place = picker.pick(places if len(others) == 1 else [place for place in places if place in ("with", "trail")])
    if place == "with":
        return f"{subject} with {bystander_list(others, picker)}", "", ""
    if place == "trail":
        return subject, "", ", " + bystander_list(others, picker)
    name = brief_mention(others[0], picker)
    if place == "beside":
        return f"{subject} {picker.pick(SUBJECT_RELATION[others[0].relation or ''])} {name}", "", ""
    near = ("next to", "beside") if others[0].relation in LATERAL else SUBJECT_RELATION[others[0].relation or ""]
    return subject, f" {picker.pick(near)} {name}", ""


def patient_phrase(scene: Scene, full: bool, picker: WordPicker, stacked: bool = True) -> str:
    """Name the patients of the event: "a blue cube", "a stack of three cubes"; "three cubes" if no longer `stacked`."""
    things = patients(scene)
    if scene.event != "topple":
        return with_article(noun_phrase(things[0], APPEARANCE if full else brief_attributes(picker), picker))
    sized = (full or picker.chance(picker.detail_probability)) and "size" not in picker.excluded
    size = picker.word("size", things[0].size) + " " if sized else ""
    text = (f"a {picker.pick(STACKS)} of " if stacked else "") + f"{NUMBERS[len(things)]} {size}cubes"
    coloured = not full and picker.chance(max(0.3, picker.detail_probability))
    return f"{text} in {join_list([picker.word('colour', cube.colour) for cube in things])}" if coloured else text


def event_phrase(scene: Scene, named: Set[str], form: str, full: bool, last: bool, picker: WordPicker) -> str:
    """Write the verb phrase of the event, with direction and speed if `named` has them; `last` if nothing follows."""
    side = scene.direction or ""
    words = picker.event_phrase(scene.event, directed := bool(side) and "direction" in named)
    way = picker.pick(DIRECTION_PHRASES) if directed else ""
    if way == "{side}" and not re.search(r"{heading} and|~\w+ {way}$" if last else "{heading} and", words):
        way = DIRECTION_PHRASES[0]
    words = words.replace(" {way}", way and f" {way}").replace("{heading}", way)
    if scene.event == "edge" and scene.things[0].shape == "cube":
        words = words.replace("~roll", "~slide")
    if "{object}" in words:
        words = words.replace("{object}", patient_phrase(scene, full, picker))
    words = inflect(words, form).format(side=side, other=OTHER_SIDE.get(side, ""))
    adverb = speed_adverb(scene, named, picker)
    return f"is{adverb} {words[3:]}" if words.startswith("is ") else f"{adverb} {words}".strip()


def speed_adverb(scene: Scene, named: Set[str], picker: WordPicker) -> str:
    """Return the adverb of speed if `named` has it and the speed is not normal: " slowly"."""
    pace = attributes(scene).get("speed", "normal") if "speed" in named else "normal"
    return "" if pace == "normal" else " " + picker.phrase("speed", pace)


def still_phrase(scene: Scene, named: Set[str], moving: bool, full: bool, picker: WordPicker) -> str:
    """Name the subject and the patients of its event, without motion, and the bystanders unless `full`."""
    text = with_article(noun_phrase(scene.things[0], named, picker))
    if not moving:
        text += STILL_CONTEXT.get(scene.event, "") if full or picker.chance(0.5) else ""
    else:
        way = (
            " " + DIRECTION_PHRASES[0].format(side=scene.direction) if "direction" in named and scene.direction else ""
        )
        adverb = speed_adverb(scene, named, picker)
        text += f" moving{way}{adverb}" if way or adverb else ""
    others = [] if full else bystanders(scene)
    if others and not moving and scene.event not in STATIONARY_EVENTS:
        text += f" with {join_list([brief_mention(thing, picker) for thing in others])} nearby"
    elif len(others) == 1 and picker.chance(0.5):
        text += f" {SUBJECT_RELATION[others[0].relation or ''][0]} {brief_mention(others[0], picker)}"
    elif others:
        text += " with " + bystander_list(others, picker)
    if patients(scene):
        text += (", and " if others else picker.pick((" and ", " near "))) + patient_phrase(
            scene, full, picker, stacked=False
        )
    return text


def ground_attributes(scene: Scene, picker: WordPicker) -> set[str]:
    """Return the attributes of the ground that a dense caption names."""
    return ({"ground", "wetness"} if scene.rules.wet_share else {"ground"}) - picker.excluded


def ground_phrase(scene: Scene, preposition: str, named: Set[str], picker: WordPicker) -> str:
    """Name the ground: "on a wet wooden floor"; "on the ground" if `named` has neither ground nor wetness."""
    name = (
        picker.phrase("ground", scene.ground) if "ground" in named else "ground" if "wetness" in named else "the ground"
    )
    if "wetness" in named:
        name = re.sub("^(a |the )?", rf"\g<0>{picker.word('wetness', scene.wetness)} ", name, count=1)
    return f" {preposition} {name}"


def light_phrase(scene: Scene, named: Set[str], picker: WordPicker) -> str:
    """Name time of day and sky: "at noon under a clear sky"."""
    time, sky = picker.word("time", scene.time), with_article(picker.word("sky", scene.sky))
    when = f"in the {time}" if time == "morning" else f"at {time}"
    if "sky" not in named:
        return when
    if "time" not in named:
        return f"under {sky} sky"
    whole = [f"on {sky} {time}"] if time in ("morning", "night") else []
    return picker.pick([*whole, f"{when} under {sky} sky", f"under {sky} {time} sky"])


def camera_phrase(scene: Scene, form: str, picker: WordPicker) -> str:
    """Describe the camera move: "the camera orbits to the left", "camera orbiting to the left"."""
    move, _, side = scene.camera.partition(" ")
    move, side = (move, side) if side in OTHER_SIDE else (scene.camera, "")
    words = inflect(picker.phrase("camera", move), form).format(side=side)
    return f"camera {words}" if form == "participle" else f"the camera {words}"


def add_camera(text: str, scene: Scene, form: str, picker: WordPicker) -> str:
    """Add the camera move before or after the text; `form` is that of the text's verb."""
    if scene.camera == "still" and picker.chance(0.6) and not picker.use_reserved:
        shot = picker.pick(STATIC_SHOTS)
        return f"{STATIC_SHOTS[0]} of {text}" if form == "participle" and picker.chance(0.3) else f"{text}, {shot}"
    joint = picker.pick([" while ", ", ", "participle", "front", *([" as "] if form != "participle" else [])])
    if joint == "front":
        return f"{camera_phrase(scene, 'participle', picker)}, {text}"
    if joint == "participle":
        return f"{text}, {camera_phrase(scene, 'participle', picker)}"
    return text + joint + camera_phrase(scene, "finite", picker)
