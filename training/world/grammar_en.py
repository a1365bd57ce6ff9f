"""English sentences: how the words of `words_en.py` are joined into labels, plain captions and dense captions."""

from __future__ import annotations

import re
from collections.abc import Sequence, Set

from .facts import STATIONARY_EVENTS, attributes, bystanders, patients
from .lexicon import OTHER_SIDE, WordPicker
from .scene import DIRECTED_EVENTS, Scene, Thing
from .words_en import (
    DIRECTION_PHRASES,
    NUMBERS,
    RELATION_TO_SUBJECT,
    SPEED_NAMES,
    STACKS,
    STATIC_SHOTS,
    SUBJECT_RELATION,
    WORDS,
    inflect,
)

MAX_WORDS = 75  # of a dense caption: under 100 tokens, full stops and commas included
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
)  # nothing about other things fits behind these verbs
AIRBORNE_EVENTS = ("fall", "throw", "bounce", "swing", "edge")  # a still may show these away from the ground
STILL_CONTEXT = {
    "swing": " hanging on a string",
    "edge": " by a platform",
    "occlude": " near a wall",
}  # what a still shows
GROUND_NAMES = {"concrete": "concrete floor", "sand": "sandy ground", "wood": "wooden floor", "grass": "grassy ground"}
GROUND_NAMES |= {"slate": "slate floor"}
MATERIAL_CLAUSES = {
    "matte": ("has a matte surface", "is made of rubber"),
    "glossy": ("has a glossy surface", "is made of shiny plastic"),
    "metal": ("is made of metal", "has a metallic surface", "is made of steel"),
}
LIGHT_QUALITY = {"morning": "soft", "noon": "bright", "sunset": "warm", "night": "dim"}
VIDEO_OPENINGS = (
    "The video shows ",
    "In this clip, ",
    "This clip shows ",
    "In the video, ",
    "We see ",
    "The clip opens on ",
)
IMAGE_OPENINGS = ("The picture shows ", "This image shows ", "There is ", "A picture of ", "We see ")


def label(scene: Scene, picker: WordPicker) -> str:
    """Name the things: "red ball, blue cube"."""
    return ", ".join(noun_phrase(thing, {"colour", "shape"}, picker) for thing in scene.things)


def plain(scene: Scene, named: Set[str], moving: bool, picker: WordPicker) -> str:
    """Say in one line, as somebody types it, the attributes in `says` and what else is there."""
    form = picker.pick(("finite", "participle", "progressive"))
    trail = ""
    if not moving or "event" not in named:
        form = "participle"
        text = still_phrase(scene, named, moving, False, picker)
        if not moving and scene.event in AIRBORNE_EVENTS and {"ground", "wetness"} & named:
            wet = picker.word("wetness", scene.wetness) + " " if "wetness" in named else ""
            text += f", {wet}{GROUND_NAMES[scene.ground] if 'ground' in named else 'ground'}"
        elif {"ground", "wetness"} & named:
            text += ground_phrase(scene, "on", named, picker)
    else:
        if scene.event in LONG_EVENTS and bystanders(scene) and form == "participle":
            form = "finite"
        subject, after, trail = attach_bystanders(
            scene, with_article(noun_phrase(scene.things[0], named, picker)), form, picker
        )
        last = not after and not {"ground", "wetness", "sky", "time"} & named
        text = f"{subject} {event_phrase(scene, named, form, False, last, picker)}{after}"
        if {"ground", "wetness"} & named:
            text += ground_phrase(scene, picker.pick(GROUND_PREPOSITIONS.get(scene.event, ("on",))), named, picker)
        elif scene.event == "fall" and not after and picker.chance(0.4):
            text += " to the ground"
    if {"sky", "time"} & named:
        when = light_phrase(scene, named, picker)
        text = f"{when}, {text}" if picker.chance(0.3) else f"{text} {when}"
    text += trail
    if "camera" in named:
        text = add_camera(text, scene, form, picker)
    return capitalise(text) + "." if picker.chance(0.12) else text


def dense(scene: Scene, moving: bool, picker: WordPicker) -> str:
    """Say everything that is true of the scene in at most MOST_WORDS words, in the dialect of a recaptioner."""
    text = dense_sentences(scene, moving, picker)
    while len(text.split()) > MAX_WORDS:
        text = dense_sentences(scene, moving, picker)
    return text


def dense_sentences(scene: Scene, moving: bool, picker: WordPicker) -> str:
    """Say everything that is true of the scene: the event, the looks, then company, setting and camera in any order."""
    crowded = len(bystanders(scene)) > 1
    pace = attributes(scene, moving).get("speed")
    named = {"colour", "shape", "event", "direction"} | {
        name for name in ("size", "material") if crowded or picker.chance(0.6)
    }
    if pace != "normal" and picker.chance(0.7):
        named.add("speed")
    named -= picker.excluded
    pace = None if "speed" in picker.excluded else pace
    parts = ["company", "setting"] + (["camera"] if moving and "camera" not in picker.excluded else [])
    if not moving:
        text = picker.pick(IMAGE_OPENINGS) + still_phrase(scene, named, moving, True, picker)
    else:
        opening = picker.pick(VIDEO_OPENINGS) if picker.chance(0.5) else ""
        form = picker.pick(("finite", "progressive")) if opening.endswith(", ") or not opening else "participle"
        text = with_article(noun_phrase(scene.things[0], named, picker))
        text = f"{opening}{text} {event_phrase(scene, named, form, True, False, picker)}"
        if scene.event not in ("fall", "occlude") and picker.chance(0.4):
            text += ground_phrase(
                scene,
                picker.pick(GROUND_PREPOSITIONS.get(scene.event, ("on",))),
                ground_attributes(scene, picker),
                picker,
            )
            named.add("ground")
        if form != "participle" and picker.chance(0.2) and "camera" in parts:
            text += picker.pick((" while ", " as ")) + camera_phrase(scene, "finite", picker)
            parts.remove("camera")
        elif not opening and picker.chance(0.25):
            text = f"{light_phrase(scene, {'sky', 'time'} - picker.excluded, picker)}, {text}"
            named |= {"sky", "time"}
    name = definite_name(scene, text)
    sentences = [text]
    if missing := {"size", "material"} - named - picker.excluded:
        sentences.append(appearance_sentence(scene, missing, name, picker))
    if pace and "speed" not in named and (pace != "normal" or (not crowded and picker.chance(0.4))):
        sentences.append(speed_sentence(pace, name, picker))
    if scene.event == "topple":
        order = "from bottom to top, the" if moving else "the"
        sentences.append(
            f"{order} cubes are {join_list([material_and_colour(cube, picker) for cube in patients(scene)])}"
        )
    for part in picker.shuffle(parts):
        if part == "company":
            sentences += bystander_sentences(scene, name, moving, picker)
        elif part == "setting":
            sentences += setting_sentences(scene, named, picker)
        else:
            start = picker.pick(("", "meanwhile, ", "throughout the shot, "))
            sentences.append(start + camera_phrase(scene, "finite", picker))
    return " ".join(capitalise(sentence) + "." for sentence in sentences)


def with_article(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def capitalise(text: str) -> str:
    return text[0].upper() + text[1:]


def join_list(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def brief_attributes(picker: WordPicker) -> set[str]:
    """Choose what a passing look says of a thing: always its colour and shape."""
    return {"colour", "shape"} | {name for name in ("size", "material") if picker.chance(picker.detail_probability)}


def material_and_colour(thing: Thing, picker: WordPicker) -> str:
    """Say material and colour: "matte blue"."""
    if "material" in picker.excluded:
        return picker.word("colour", thing.colour)
    return picker.phrase("material", thing.material).format(picker.word("colour", thing.colour))


def noun_phrase(thing: Thing, named: Set[str], picker: WordPicker) -> str:
    """Name a thing by the attributes in `says`: "large red metal ball"."""
    named = named - picker.excluded
    colour = picker.word("colour", thing.colour) if "colour" in named else ""
    look = picker.phrase("material", thing.material).format(colour) if "material" in named else colour
    size = picker.word("size", thing.size) if "size" in named else ""
    shape = picker.word("shape", thing.shape) if "shape" in named else "object"
    return " ".join(f"{size} {look} {shape}".split())


def definite_name(scene: Scene, text: str) -> str:
    """Call the subject of a text again: "the ball", or "the red ball" where there is another one."""
    first = scene.things[0]
    named = [word for word in WORDS["shape"][first.shape] if re.search(rf"\b{word}\b", text)]
    shape = min(named, key=lambda word: re.search(rf"\b{word}\b", text).start())
    alone = all(thing.shape != first.shape for thing in scene.things[1:])
    return f"the {shape}" if alone else f"the {first.colour} {shape}"


def relation_phrase(thing: Thing, name: str, picker: WordPicker) -> str:
    """Say where a thing stands as seen from the subject: "behind the ball", "to its left"."""
    relation = thing.relation or ""
    if name == "it" and relation in LATERAL:
        return f"{picker.pick(('to', 'on'))} its {relation.split()[0]}"
    return picker.pick(RELATION_TO_SUBJECT[relation]).format(it=name)


def bystander_list(others: Sequence[Thing], picker: WordPicker) -> str:
    """List things with their places: "a blue cube behind it and a red can to its left"."""
    return join_list(
        [
            f"{with_article(noun_phrase(thing, brief_attributes(picker), picker))} {relation_phrase(thing, 'it', picker)}"
            for thing in others
        ]
    )


def attach_bystanders(scene: Scene, subject: str, form: str, picker: WordPicker) -> tuple[str, str, str]:
    """Say in one of four places what else is there: the subject, what follows its verb, and what trails behind.

    Before a participle there is no place: "a ball with a cube behind it rolling" may be read as a rolling cube.
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
    name = with_article(noun_phrase(others[0], brief_attributes(picker), picker))
    if place == "beside":
        return f"{subject} {picker.pick(SUBJECT_RELATION[others[0].relation or ''])} {name}", "", ""
    near = ("next to", "beside") if others[0].relation in LATERAL else SUBJECT_RELATION[others[0].relation or ""]
    return subject, f" {picker.pick(near)} {name}", ""


def patient_phrase(scene: Scene, full: bool, picker: WordPicker, stacked: bool = True) -> str:
    """Name what the event happens to: "a blue cube", "a stack of three cubes"; "three cubes" if no longer `stacked`."""
    things = patients(scene)
    if scene.event != "topple":
        return with_article(noun_phrase(things[0], APPEARANCE if full else brief_attributes(picker), picker))
    sized = (full or picker.chance(picker.detail_probability)) and "size" not in picker.excluded
    size = picker.word("size", things[0].size) + " " if sized else ""
    text = (f"a {picker.pick(STACKS)} of " if stacked else "") + f"{NUMBERS[len(things)]} {size}cubes"
    coloured = not full and picker.chance(max(0.3, picker.detail_probability))
    return f"{text} in {join_list([picker.word('colour', cube.colour) for cube in things])}" if coloured else text


def event_phrase(scene: Scene, named: Set[str], form: str, full: bool, last: bool, picker: WordPicker) -> str:
    """Say what the subject does, with direction and speed where `says` has them; `last` where nothing follows it."""
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
    """Say the speed, where `says` has it and it is worth a word: " slowly"."""
    pace = attributes(scene).get("speed", "normal") if "speed" in named else "normal"
    return "" if pace == "normal" else " " + picker.phrase("speed", pace)


def still_phrase(scene: Scene, named: Set[str], moving: bool, full: bool, picker: WordPicker) -> str:
    """Name the subject and what its event would happen to; and, unless `full`, what else is around."""
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
        text += f" with {join_list([with_article(noun_phrase(thing, brief_attributes(picker), picker)) for thing in others])} nearby"
    elif len(others) == 1 and picker.chance(0.5):
        text += f" {SUBJECT_RELATION[others[0].relation or ''][0]} {with_article(noun_phrase(others[0], brief_attributes(picker), picker))}"
    elif others:
        text += " with " + bystander_list(others, picker)
    if patients(scene):
        text += (", and " if others else picker.pick((" and ", " near "))) + patient_phrase(
            scene, full, picker, stacked=False
        )
    return text


def ground_attributes(scene: Scene, picker: WordPicker) -> set[str]:
    """Choose what a dense caption says of the ground."""
    return ({"ground", "wetness"} if scene.rules.wet_share else {"ground"}) - picker.excluded


def ground_phrase(scene: Scene, preposition: str, named: Set[str], picker: WordPicker) -> str:
    """Say what is underneath: "on a wet wooden floor"; "on the ground" where `says` has neither ground nor wetness."""
    name = (
        picker.phrase("ground", scene.ground) if "ground" in named else "ground" if "wetness" in named else "the ground"
    )
    if "wetness" in named:
        name = re.sub("^(a |the )?", rf"\g<0>{picker.word('wetness', scene.wetness)} ", name, count=1)
    return f" {preposition} {name}"


def light_phrase(scene: Scene, named: Set[str], picker: WordPicker) -> str:
    """Say time and sky: "at noon under a clear sky"."""
    time, sky = picker.word("time", scene.time), with_article(picker.word("sky", scene.sky))
    when = f"in the {time}" if time == "morning" else f"at {time}"
    if "sky" not in named:
        return when
    if "time" not in named:
        return f"under {sky} sky"
    whole = [f"on {sky} {time}"] if time in ("morning", "night") else []
    return picker.pick([*whole, f"{when} under {sky} sky", f"under {sky} {time} sky"])


def camera_phrase(scene: Scene, form: str, picker: WordPicker) -> str:
    """Say what the camera does: "the camera orbits to the left", "camera orbiting to the left"."""
    move, _, side = scene.camera.partition(" ")
    move, side = (move, side) if side in OTHER_SIDE else (scene.camera, "")
    words = inflect(picker.phrase("camera", move), form).format(side=side)
    return f"camera {words}" if form == "participle" else f"the camera {words}"


def add_camera(text: str, scene: Scene, form: str, picker: WordPicker) -> str:
    """Add the camera in front or behind; `form` is that of the text's verb."""
    if scene.camera == "still" and picker.chance(0.6) and not picker.use_reserved:
        shot = picker.pick(STATIC_SHOTS)
        return f"{STATIC_SHOTS[0]} of {text}" if form == "participle" and picker.chance(0.3) else f"{text}, {shot}"
    joint = picker.pick([" while ", ", ", "participle", "front", *([" as "] if form != "participle" else [])])
    if joint == "front":
        return f"{camera_phrase(scene, 'participle', picker)}, {text}"
    if joint == "participle":
        return f"{text}, {camera_phrase(scene, 'participle', picker)}"
    return text + joint + camera_phrase(scene, "finite", picker)


def appearance_sentence(scene: Scene, missing: Set[str], name: str, picker: WordPicker) -> str:
    """Say the size or the material that the first sentence left out."""
    thing = scene.things[0]
    size, made = picker.options("size", thing.size)[0], picker.pick(MATERIAL_CLAUSES[thing.material])
    subject = name if patients(scene) else picker.pick((name, "it"))
    if "size" not in missing:
        return f"{subject} {made}"
    return f"{subject} is {size}" + (f" and {made.removeprefix('is ')}" if "material" in missing else "")


def speed_sentence(pace: str, name: str, picker: WordPicker) -> str:
    """Say the speed that the first sentence left out."""
    if pace == "normal":
        return picker.pick((f"{name} moves {SPEED_NAMES[pace]}", f"everything happens {SPEED_NAMES[pace]}"))
    return picker.pick((f"the motion is {SPEED_NAMES[pace]}", f"{name} moves {picker.phrase('speed', pace)}"))


def bystander_sentences(scene: Scene, name: str, moving: bool, picker: WordPicker) -> list[str]:
    """Say where everything else stands; in a picture of an event that moves on, only that it is there."""
    others = picker.shuffle(bystanders(scene))
    if not others:
        lonely = len(scene.things) == 1 and scene.event not in STILL_CONTEXT
        return ["there are no other objects"] if lonely and picker.chance(0.6) else []
    if not moving and scene.event not in STATIONARY_EVENTS:
        things = join_list([with_article(noun_phrase(thing, APPEARANCE, picker)) for thing in others])
        verb = "is" if len(others) == 1 else "are"
        return [picker.pick((f"nearby {verb} {things}", f"{things} {verb} nearby"))]
    start = "at the start, " if moving and scene.event in DIRECTED_EVENTS and picker.chance(0.5) else ""
    place_first = picker.chance(0.5)
    parts = []
    for number, thing in enumerate(others):
        pair = [
            with_article(noun_phrase(thing, APPEARANCE, picker)),
            relation_phrase(thing, "it" if number else name, picker),
        ]
        verb = f" {picker.pick(('stands', 'is', 'sits'))} " if number == 0 else " "
        parts.append(verb.join(pair[::-1] if place_first else pair))
    return [start + join_list(parts)]


def setting_sentences(scene: Scene, named: Set[str], picker: WordPicker) -> list[str]:
    """Say what `says` does not have yet of the ground and the light."""
    time, sky = picker.word("time", scene.time), picker.word("sky", scene.sky)
    below = ground_attributes(scene, picker)
    where = f"the scene is set{ground_phrase(scene, 'on', below, picker)}"
    wet = picker.word("wetness", scene.wetness) + " " if "wetness" in below else ""
    stuff = f"{wet}{scene.ground if 'ground' in below else ''}".strip()
    floor = [] if "ground" in named or not below else [picker.pick((where, f"the ground is {stuff}"))]
    if "time" in named:
        return floor
    if floor and picker.chance(0.35):
        return [f"{where} {light_phrase(scene, {'sky', 'time'} - picker.excluded, picker)}"]
    if "time" in picker.excluded:
        return picker.shuffle([*floor, f"the sky is {sky}"])
    if "sky" in picker.excluded:
        return picker.shuffle([*floor, f"the scene is lit by the {LIGHT_QUALITY[scene.time]} light of {time}"])
    options = [
        f"it is {time}, and the sky is {sky}",
        f"the {LIGHT_QUALITY[scene.time]} light of {time} comes from {with_article(sky)} sky",
        f"everything is lit by the {LIGHT_QUALITY[scene.time]} light of {time} under {with_article(sky)} sky",
    ]
    if time in ("morning", "night"):
        options.append(f"it is {with_article(sky)} {time}")
    return picker.shuffle([*floor, picker.pick(options)])
