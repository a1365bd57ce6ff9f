"""English sentences: how the words of `words_en.py` are joined into labels, plain captions and dense captions."""

from __future__ import annotations

import re
from collections.abc import Sequence, Set

from .facts import STAYS, attributes, bystanders, patients
from .lexicon import SIDES, Voice
from .scene import TRAVELS, Scene, Thing
from .words_en import HERE, NUMBERS, PACES, STACKS, STATIC, THERE, WAYS, WORDS, inflect

MOST_WORDS = 75  # of a dense caption: under 100 tokens, full stops and commas included
LOOKS = frozenset(("colour", "shape", "size", "material"))
SIDEWAYS = ("left of", "right of")
ONTO = {"roll": ("on", "across", "over"), "slide": ("on", "across", "over"), "fall": ("onto",), "throw": ("over",)}
ONTO |= {"swing": ("above", "over")}  # everything else happens on the ground
BUSY = ("fall", "throw", "occlude", "edge", "collide", "topple")  # nothing about other things fits behind these verbs
ALOFT = ("fall", "throw", "bounce", "swing", "edge")  # a still may show these away from the ground
PLACES = {"swing": " hanging on a string", "edge": " by a platform", "occlude": " near a wall"}  # what a still shows
BENEATH = {"concrete": "concrete floor", "sand": "sandy ground", "wood": "wooden floor", "grass": "grassy ground"}
BENEATH |= {"slate": "slate floor"}
MADE = {
    "matte": ("has a matte surface", "is made of rubber"),
    "glossy": ("has a glossy surface", "is made of shiny plastic"),
    "metal": ("is made of metal", "has a metallic surface", "is made of steel"),
}
LIGHT = {"morning": "soft", "noon": "bright", "sunset": "warm", "night": "dim"}
SHOWS = ("The video shows ", "In this clip, ", "This clip shows ", "In the video, ", "We see ", "The clip opens on ")
PICTURES = ("The picture shows ", "This image shows ", "There is ", "A picture of ", "We see ")


def label(scene: Scene, voice: Voice) -> str:
    """Name the things: "red ball, blue cube"."""
    return ", ".join(noun(thing, {"colour", "shape"}, voice) for thing in scene.things)


def plain(scene: Scene, says: Set[str], moving: bool, voice: Voice) -> str:
    """Say in one line, as somebody types it, the attributes in `says` and what else is there."""
    form = voice.pick(("finite", "participle", "progressive"))
    trail = ""
    if not moving or "event" not in says:
        form = "participle"
        text = still(scene, says, moving, False, voice)
        if not moving and scene.event in ALOFT and {"ground", "wetness"} & says:
            wet = voice.word("wetness", scene.wetness) + " " if "wetness" in says else ""
            text += f", {wet}{BENEATH[scene.ground] if 'ground' in says else 'ground'}"
        elif {"ground", "wetness"} & says:
            text += onto(scene, "on", says, voice)
    else:
        if scene.event in BUSY and bystanders(scene) and form == "participle":
            form = "finite"
        subject, after, trail = among(scene, article(noun(scene.things[0], says, voice)), form, voice)
        last = not after and not {"ground", "wetness", "sky", "time"} & says
        text = f"{subject} {deed(scene, says, form, False, last, voice)}{after}"
        if {"ground", "wetness"} & says:
            text += onto(scene, voice.pick(ONTO.get(scene.event, ("on",))), says, voice)
        elif scene.event == "fall" and not after and voice.chance(0.4):
            text += " to the ground"
    if {"sky", "time"} & says:
        when = light(scene, says, voice)
        text = f"{when}, {text}" if voice.chance(0.3) else f"{text} {when}"
    text += trail
    if "camera" in says:
        text = filmed(text, scene, form, voice)
    return capital(text) + "." if voice.chance(0.12) else text


def dense(scene: Scene, moving: bool, voice: Voice) -> str:
    """Say everything that is true of the scene in at most MOST_WORDS words, in the dialect of a recaptioner."""
    text = recaption(scene, moving, voice)
    while len(text.split()) > MOST_WORDS:
        text = recaption(scene, moving, voice)
    return text


def recaption(scene: Scene, moving: bool, voice: Voice) -> str:
    """Say everything that is true of the scene: the event, the looks, then company, setting and camera in any order."""
    crowded = len(bystanders(scene)) > 1
    pace = attributes(scene, moving).get("speed")
    says = {"colour", "shape", "event", "direction"} | {
        name for name in ("size", "material") if crowded or voice.chance(0.6)
    }
    if pace != "normal" and voice.chance(0.7):
        says.add("speed")
    says -= voice.without
    pace = None if "speed" in voice.without else pace
    parts = ["company", "setting"] + (["camera"] if moving and "camera" not in voice.without else [])
    if not moving:
        text = voice.pick(PICTURES) + still(scene, says, moving, True, voice)
    else:
        opening = voice.pick(SHOWS) if voice.chance(0.5) else ""
        form = voice.pick(("finite", "progressive")) if opening.endswith(", ") or not opening else "participle"
        text = article(noun(scene.things[0], says, voice))
        text = f"{opening}{text} {deed(scene, says, form, True, False, voice)}"
        if scene.event not in ("fall", "occlude") and voice.chance(0.4):
            text += onto(scene, voice.pick(ONTO.get(scene.event, ("on",))), beneath(scene, voice), voice)
            says.add("ground")
        if form != "participle" and voice.chance(0.2) and "camera" in parts:
            text += voice.pick((" while ", " as ")) + camera(scene, "finite", voice)
            parts.remove("camera")
        elif not opening and voice.chance(0.25):
            text = f"{light(scene, {'sky', 'time'} - voice.without, voice)}, {text}"
            says |= {"sky", "time"}
    name = called(scene, text)
    sentences = [text]
    if missing := {"size", "material"} - says - voice.without:
        sentences.append(appearance(scene, missing, name, voice))
    if pace and "speed" not in says and (pace != "normal" or (not crowded and voice.chance(0.4))):
        sentences.append(tempo(pace, name, voice))
    if scene.event == "topple":
        order = "from bottom to top, the" if moving else "the"
        sentences.append(f"{order} cubes are {series([skin(cube, voice) for cube in patients(scene)])}")
    for part in voice.shuffle(parts):
        if part == "company":
            sentences += company(scene, name, moving, voice)
        elif part == "setting":
            sentences += setting(scene, says, voice)
        else:
            start = voice.pick(("", "meanwhile, ", "throughout the shot, "))
            sentences.append(start + camera(scene, "finite", voice))
    return " ".join(capital(sentence) + "." for sentence in sentences)


def article(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def capital(text: str) -> str:
    return text[0].upper() + text[1:]


def series(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def glance(voice: Voice) -> set[str]:
    """Choose what a passing look says of a thing: always its colour and shape."""
    return {"colour", "shape"} | {name for name in ("size", "material") if voice.chance(voice.detail)}


def skin(thing: Thing, voice: Voice) -> str:
    """Say material and colour: "matte blue"."""
    if "material" in voice.without:
        return voice.word("colour", thing.colour)
    return voice.phrase("material", thing.material).format(voice.word("colour", thing.colour))


def noun(thing: Thing, says: Set[str], voice: Voice) -> str:
    """Name a thing by the attributes in `says`: "large red metal ball"."""
    says = says - voice.without
    colour = voice.word("colour", thing.colour) if "colour" in says else ""
    look = voice.phrase("material", thing.material).format(colour) if "material" in says else colour
    size = voice.word("size", thing.size) if "size" in says else ""
    shape = voice.word("shape", thing.shape) if "shape" in says else "object"
    return " ".join(f"{size} {look} {shape}".split())


def called(scene: Scene, text: str) -> str:
    """Call the subject of a text again: "the ball", or "the red ball" where there is another one."""
    first = scene.things[0]
    named = [word for word in WORDS["shape"][first.shape] if re.search(rf"\b{word}\b", text)]
    shape = min(named, key=lambda word: re.search(rf"\b{word}\b", text).start())
    alone = all(thing.shape != first.shape for thing in scene.things[1:])
    return f"the {shape}" if alone else f"the {first.colour} {shape}"


def here(thing: Thing, name: str, voice: Voice) -> str:
    """Say where a thing stands as seen from the subject: "behind the ball", "to its left"."""
    relation = thing.relation or ""
    if name == "it" and relation in SIDEWAYS:
        return f"{voice.pick(('to', 'on'))} its {relation.split()[0]}"
    return voice.pick(HERE[relation]).format(it=name)


def with_others(others: Sequence[Thing], voice: Voice) -> str:
    """List things with their places: "a blue cube behind it and a red can to its left"."""
    return series([f"{article(noun(thing, glance(voice), voice))} {here(thing, 'it', voice)}" for thing in others])


def among(scene: Scene, subject: str, form: str, voice: Voice) -> tuple[str, str, str]:
    """Say in one of four places what else is there: the subject, what follows its verb, and what trails behind.

    Before a participle there is no place: "a ball with a cube behind it rolling" may be read as a rolling cube.
    """
    others = bystanders(scene)
    if not others:
        return subject, "", ""
    behind = [] if scene.event in BUSY else ["trail", "after"]
    places = behind if form == "participle" else ["with", *behind, "beside"]
    place = voice.pick(places if len(others) == 1 else [place for place in places if place in ("with", "trail")])
    if place == "with":
        return f"{subject} with {with_others(others, voice)}", "", ""
    if place == "trail":
        return subject, "", ", " + with_others(others, voice)
    name = article(noun(others[0], glance(voice), voice))
    if place == "beside":
        return f"{subject} {voice.pick(THERE[others[0].relation or ''])} {name}", "", ""
    near = ("next to", "beside") if others[0].relation in SIDEWAYS else THERE[others[0].relation or ""]
    return subject, f" {voice.pick(near)} {name}", ""


def victim(scene: Scene, full: bool, voice: Voice, stacked: bool = True) -> str:
    """Name what the event happens to: "a blue cube", "a stack of three cubes"; "three cubes" if no longer `stacked`."""
    things = patients(scene)
    if scene.event != "topple":
        return article(noun(things[0], LOOKS if full else glance(voice), voice))
    sized = (full or voice.chance(voice.detail)) and "size" not in voice.without
    size = voice.word("size", things[0].size) + " " if sized else ""
    text = (f"a {voice.pick(STACKS)} of " if stacked else "") + f"{NUMBERS[len(things)]} {size}cubes"
    coloured = not full and voice.chance(max(0.3, voice.detail))
    return f"{text} in {series([voice.word('colour', cube.colour) for cube in things])}" if coloured else text


def deed(scene: Scene, says: Set[str], form: str, full: bool, last: bool, voice: Voice) -> str:
    """Say what the subject does, with direction and speed where `says` has them; `last` where nothing follows it."""
    side = scene.direction or ""
    words = voice.event(scene.event, directed := bool(side) and "direction" in says)
    way = voice.pick(WAYS) if directed else ""
    if way == "{side}" and not re.search(r"{heading} and|~\w+ {way}$" if last else "{heading} and", words):
        way = WAYS[0]
    words = words.replace(" {way}", way and f" {way}").replace("{heading}", way)
    if scene.event == "edge" and scene.things[0].shape == "cube":
        words = words.replace("~roll", "~slide")
    if "{object}" in words:
        words = words.replace("{object}", victim(scene, full, voice))
    words = inflect(words, form).format(side=side, other=SIDES.get(side, ""))
    adverb = hurry(scene, says, voice)
    return f"is{adverb} {words[3:]}" if words.startswith("is ") else f"{adverb} {words}".strip()


def hurry(scene: Scene, says: Set[str], voice: Voice) -> str:
    """Say the speed, where `says` has it and it is worth a word: " slowly"."""
    pace = attributes(scene).get("speed", "normal") if "speed" in says else "normal"
    return "" if pace == "normal" else " " + voice.phrase("speed", pace)


def still(scene: Scene, says: Set[str], moving: bool, full: bool, voice: Voice) -> str:
    """Name the subject and what its event would happen to; and, unless `full`, what else is around."""
    text = article(noun(scene.things[0], says, voice))
    if not moving:
        text += PLACES.get(scene.event, "") if full or voice.chance(0.5) else ""
    else:
        way = " " + WAYS[0].format(side=scene.direction) if "direction" in says and scene.direction else ""
        adverb = hurry(scene, says, voice)
        text += f" moving{way}{adverb}" if way or adverb else ""
    others = [] if full else bystanders(scene)
    if others and not moving and scene.event not in STAYS:
        text += f" with {series([article(noun(thing, glance(voice), voice)) for thing in others])} nearby"
    elif len(others) == 1 and voice.chance(0.5):
        text += f" {THERE[others[0].relation or ''][0]} {article(noun(others[0], glance(voice), voice))}"
    elif others:
        text += " with " + with_others(others, voice)
    if patients(scene):
        text += (", and " if others else voice.pick((" and ", " near "))) + victim(scene, full, voice, stacked=False)
    return text


def beneath(scene: Scene, voice: Voice) -> set[str]:
    """Choose what a dense caption says of the ground."""
    return ({"ground", "wetness"} if scene.rules.wet_share else {"ground"}) - voice.without


def onto(scene: Scene, preposition: str, says: Set[str], voice: Voice) -> str:
    """Say what is underneath: "on a wet wooden floor"; "on the ground" where `says` has neither ground nor wetness."""
    name = voice.phrase("ground", scene.ground) if "ground" in says else "ground" if "wetness" in says else "the ground"
    if "wetness" in says:
        name = re.sub("^(a |the )?", rf"\g<0>{voice.word('wetness', scene.wetness)} ", name, count=1)
    return f" {preposition} {name}"


def light(scene: Scene, says: Set[str], voice: Voice) -> str:
    """Say time and sky: "at noon under a clear sky"."""
    time, sky = voice.word("time", scene.time), article(voice.word("sky", scene.sky))
    when = f"in the {time}" if time == "morning" else f"at {time}"
    if "sky" not in says:
        return when
    if "time" not in says:
        return f"under {sky} sky"
    whole = [f"on {sky} {time}"] if time in ("morning", "night") else []
    return voice.pick([*whole, f"{when} under {sky} sky", f"under {sky} {time} sky"])


def camera(scene: Scene, form: str, voice: Voice) -> str:
    """Say what the camera does: "the camera orbits to the left", "camera orbiting to the left"."""
    move, _, side = scene.camera.partition(" ")
    move, side = (move, side) if side in SIDES else (scene.camera, "")
    words = inflect(voice.phrase("camera", move), form).format(side=side)
    return f"camera {words}" if form == "participle" else f"the camera {words}"


def filmed(text: str, scene: Scene, form: str, voice: Voice) -> str:
    """Add the camera in front or behind; `form` is that of the text's verb."""
    if scene.camera == "still" and voice.chance(0.6) and not voice.use_reserved:
        shot = voice.pick(STATIC)
        return f"{STATIC[0]} of {text}" if form == "participle" and voice.chance(0.3) else f"{text}, {shot}"
    joint = voice.pick([" while ", ", ", "participle", "front", *([" as "] if form != "participle" else [])])
    if joint == "front":
        return f"{camera(scene, 'participle', voice)}, {text}"
    if joint == "participle":
        return f"{text}, {camera(scene, 'participle', voice)}"
    return text + joint + camera(scene, "finite", voice)


def appearance(scene: Scene, missing: Set[str], name: str, voice: Voice) -> str:
    """Say the size or the material that the first sentence left out."""
    thing = scene.things[0]
    size, made = voice.options("size", thing.size)[0], voice.pick(MADE[thing.material])
    subject = name if patients(scene) else voice.pick((name, "it"))
    if "size" not in missing:
        return f"{subject} {made}"
    return f"{subject} is {size}" + (f" and {made.removeprefix('is ')}" if "material" in missing else "")


def tempo(pace: str, name: str, voice: Voice) -> str:
    """Say the speed that the first sentence left out."""
    if pace == "normal":
        return voice.pick((f"{name} moves {PACES[pace]}", f"everything happens {PACES[pace]}"))
    return voice.pick((f"the motion is {PACES[pace]}", f"{name} moves {voice.phrase('speed', pace)}"))


def company(scene: Scene, name: str, moving: bool, voice: Voice) -> list[str]:
    """Say where everything else stands; in a picture of an event that moves on, only that it is there."""
    others = voice.shuffle(bystanders(scene))
    if not others:
        lonely = len(scene.things) == 1 and scene.event not in PLACES
        return ["there are no other objects"] if lonely and voice.chance(0.6) else []
    if not moving and scene.event not in STAYS:
        things = series([article(noun(thing, LOOKS, voice)) for thing in others])
        verb = "is" if len(others) == 1 else "are"
        return [voice.pick((f"nearby {verb} {things}", f"{things} {verb} nearby"))]
    start = "at the start, " if moving and scene.event in TRAVELS and voice.chance(0.5) else ""
    place_first = voice.chance(0.5)
    parts = []
    for number, thing in enumerate(others):
        pair = [article(noun(thing, LOOKS, voice)), here(thing, "it" if number else name, voice)]
        verb = f" {voice.pick(('stands', 'is', 'sits'))} " if number == 0 else " "
        parts.append(verb.join(pair[::-1] if place_first else pair))
    return [start + series(parts)]


def setting(scene: Scene, says: Set[str], voice: Voice) -> list[str]:
    """Say what `says` does not have yet of the ground and the light."""
    time, sky = voice.word("time", scene.time), voice.word("sky", scene.sky)
    named = beneath(scene, voice)
    where = f"the scene is set{onto(scene, 'on', named, voice)}"
    wet = voice.word("wetness", scene.wetness) + " " if "wetness" in named else ""
    stuff = f"{wet}{scene.ground if 'ground' in named else ''}".strip()
    floor = [] if "ground" in says or not named else [voice.pick((where, f"the ground is {stuff}"))]
    if "time" in says:
        return floor
    if floor and voice.chance(0.35):
        return [f"{where} {light(scene, {'sky', 'time'} - voice.without, voice)}"]
    if "time" in voice.without:
        return voice.shuffle([*floor, f"the sky is {sky}"])
    if "sky" in voice.without:
        return voice.shuffle([*floor, f"the scene is lit by the {LIGHT[scene.time]} light of {time}"])
    options = [
        f"it is {time}, and the sky is {sky}",
        f"the {LIGHT[scene.time]} light of {time} comes from {article(sky)} sky",
        f"everything is lit by the {LIGHT[scene.time]} light of {time} under {article(sky)} sky",
    ]
    if time in ("morning", "night"):
        options.append(f"it is {article(sky)} {time}")
    return voice.shuffle([*floor, voice.pick(options)])
