"""English grammar: joins the words of `words_en.py` into labels, plain captions and dense captions."""

from __future__ import annotations

from collections.abc import Set

from .facts import STATIONARY_EVENTS, attributes, bystanders, patients
from .lexicon import WordPicker
from .phrases_en import (
    AIRBORNE_EVENTS,
    APPEARANCE,
    GROUND_NAMES,
    GROUND_PREPOSITIONS,
    LONG_EVENTS,
    STILL_CONTEXT,
    add_camera,
    attach_bystanders,
    camera_phrase,
    capitalise,
    definite_name,
    event_phrase,
    ground_attributes,
    ground_phrase,
    join_list,
    light_phrase,
    material_and_colour,
    noun_phrase,
    relation_phrase,
    still_phrase,
    with_article,
)
from .scene import DIRECTED_EVENTS, Scene
from .words_en import (
    SPEED_NAMES,
)

MAX_WORDS = 75  # of a dense caption: under 100 tokens, full stops and commas included
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
    """List the things by colour and shape: "red ball, blue cube"."""
    return ", ".join(noun_phrase(thing, {"colour", "shape"}, picker) for thing in scene.things)


def plain(scene: Scene, named: Set[str], moving: bool, picker: WordPicker) -> str:
    """Write a caption of one line that names the attributes in `named` and the bystanders, as a user types it."""
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
    """Write a caption of several sentences and at most MAX_WORDS words that names all attributes."""
    text = dense_sentences(scene, moving, picker)
    while len(text.split()) > MAX_WORDS:
        text = dense_sentences(scene, moving, picker)
    return text


def dense_sentences(scene: Scene, moving: bool, picker: WordPicker) -> str:
    """Write the sentences of a dense caption: event, appearance, then bystanders, setting and camera in any order."""
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


def appearance_sentence(scene: Scene, missing: Set[str], name: str, picker: WordPicker) -> str:
    """Name the size or the material that the first sentence left out."""
    thing = scene.things[0]
    size, made = picker.options("size", thing.size)[0], picker.pick(MATERIAL_CLAUSES[thing.material])
    subject = name if patients(scene) else picker.pick((name, "it"))
    if "size" not in missing:
        return f"{subject} {made}"
    return f"{subject} is {size}" + (f" and {made.removeprefix('is ')}" if "material" in missing else "")


def speed_sentence(pace: str, name: str, picker: WordPicker) -> str:
    """Name the speed that the first sentence left out."""
    if pace == "normal":
        return picker.pick((f"{name} moves {SPEED_NAMES[pace]}", f"everything happens {SPEED_NAMES[pace]}"))
    return picker.pick((f"the motion is {SPEED_NAMES[pace]}", f"{name} moves {picker.phrase('speed', pace)}"))


def bystander_sentences(scene: Scene, name: str, moving: bool, picker: WordPicker) -> list[str]:
    """Describe where the bystanders are; in an image of a moving subject, only that they are there."""
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
    """Describe the ground and the light that `named` does not have yet."""
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
