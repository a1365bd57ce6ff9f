"""English phrases of every attribute, and the lexicon that reads them back; `grammar_en.py` joins them into captions.

Placeholders in the phrases: `~verb` is inflected, `{way}` takes an optional direction and `{heading}` a required one,
`{side}` and `{other}` are the side moved to and the one come from, `{object}` is what the event happens to, and `{}` in
a material is where the colour goes.
"""

from __future__ import annotations

import re

from captioning.lexicon import Lexicon

from .lexicon import OTHER_SIDE, Table

WORDS: Table = {
    "colour": {
        "red": ("red", "bright red"),
        "orange": ("orange", "bright orange"),
        "yellow": ("yellow", "bright yellow"),
        "green": ("green", "bright green"),
        "blue": ("blue", "deep blue"),
        "purple": ("purple", "violet"),
        "pink": ("pink", "bright pink"),
        "white": ("white", "pure white"),
        "black": ("black", "jet-black"),
    },
    "shape": {
        "ball": ("ball", "sphere", "orb"),
        "cube": ("cube", "box", "block"),
        "cylinder": ("cylinder", "drum", "can"),
        "capsule": ("capsule", "pill"),
    },
    "size": {
        "tiny": ("tiny", "minuscule"),
        "small": ("small", "little"),
        "medium": ("medium-sized", "mid-sized"),
        "large": ("large", "big"),
        "huge": ("huge", "giant"),
    },
    "material": {
        "matte": ("matte {}", "{} rubber", "matte {} rubber"),
        "glossy": ("glossy {}", "shiny {}", "shiny {} plastic", "glossy {} plastic"),
        "metal": ("{} metal", "metallic {}", "{} steel"),
    },
    "speed": {
        "very slow": ("very slowly",),
        "slow": ("slowly",),
        "fast": ("quickly", "rapidly"),
        "very fast": ("very quickly", "very rapidly"),
    },
    "event": {
        "rest": ("~sit still", "~rest", "~sit motionless", "~stand still", "~lie still", "~stay in place"),
        "roll": ("~roll {way}", "~roll along {way}", "~roll steadily {way}", "~roll smoothly {way}"),
        "slide": ("~slide {way}", "~glide {way}", "~skid {way}", "~slide along {way}", "~slide smoothly {way}"),
        "spin": ("~spin in place", "~rotate in place", "~spin around", "~twirl", "~whirl around", "~spin on the spot"),
        "fall": ("~fall from above", "~fall", "~drop from above", "~fall straight down", "~drop", "~drop from the air"),
        "bounce": (
            "~bounce up and down",
            "~bounce",
            "~hop up and down",
            "~bounce repeatedly",
            "~bounce again and again",
        ),
        "throw": (
            "~be thrown {way}",
            "~fly {way} in an arc",
            "~be tossed {way}",
            "~fly {way} through the air",
            "~sail {way} through the air",
            "~be thrown {way} through the air",
        ),
        "swing": (
            "~swing back and forth on a string",
            "~swing on a string",
            "~swing like a pendulum",
            "~swing to and fro on a string",
            "~sway on a string",
            "~hang on a string and ~swing",
        ),
        "occlude": (
            "~pass behind a wall and ~come out on the other side",
            "~move {way} behind a wall and ~come out on the other side",
            "~disappear behind a wall and ~reappear on the {side}",
            "~pass behind a wall and ~come out on the {side}",
            "~go {way} behind a wall and ~reappear",
            "~disappear behind a wall and ~reappear",
        ),
        "edge": (
            "~roll {way} off the edge of a platform",
            "~roll off the {side} edge of a platform",
            "~roll {way} over the edge of a platform",
            "~roll {way} off a ledge",
            "~tumble off the edge of a platform",
            "~roll {way} and ~drop off the edge of a platform",
        ),
        "collide": (
            "~hit {object}",
            "~move {heading} and ~hit {object}",
            "~bump into {object}",
            "~collide with {object}",
            "~crash into {object}",
            "~move {heading} and ~bump into {object}",
            "~head {heading} and ~collide with {object}",
            "~come from the {other} and ~crash into {object}",
            "~run into {object}",
        ),
        "topple": (
            "~knock over {object}",
            "~move {heading} and ~knock over {object}",
            "~topple {object}",
            "~knock down {object}",
            "~head {heading} and ~topple {object}",
            "~come from the {other} and ~knock over {object}",
            "~move {heading} and ~knock down {object}",
        ),
    },
    "camera": {
        "still": ("~hold still", "~stay fixed", "~stay in one place"),
        "orbit": ("~orbit to the {side}", "~orbit {side}", "~circle to the {side}", "~arc {side}", "~circle {side}"),
        "pan": ("~pan {side}", "~pan to the {side}", "~turn to the {side}", "~turn {side}"),
        "crane up": ("~crane up", "~rise", "~move up", "~crane upward"),
        "crane down": ("~crane down", "~sink", "~move down", "~crane downward"),
        "zoom in": ("~zoom in", "~zoom in closer", "~narrow the view"),
        "zoom out": ("~zoom out", "~zoom out wide", "~widen the view"),
    },
    "ground": {
        "concrete": ("concrete", "a concrete floor", "bare concrete"),
        "sand": ("sand", "the sand", "sandy ground"),
        "wood": ("a wooden floor", "wood", "wooden boards"),
        "grass": ("grass", "the grass", "a grassy field"),
        "slate": ("slate", "a slate floor", "dark slate"),
    },
    "sky": {"clear": ("clear",), "cloudy": ("cloudy",)},
    "time": {"morning": ("morning",), "noon": ("noon", "midday"), "sunset": ("sunset",), "night": ("night",)},
}
WETNESS: Table = {"wetness": {"wet": ("wet", "rain-soaked"), "dry": ("dry",)}}  # from edition 2 on
# Never used by `write_caption`: held out, to measure the response to words that training lacks.
RESERVED: Table = {
    "colour": {
        "red": ("crimson", "scarlet"),
        "orange": ("tangerine",),
        "yellow": ("lemon",),
        "green": ("emerald",),
        "blue": ("azure", "cobalt"),
        "purple": ("plum",),
        "pink": ("fuchsia",),
        "white": ("ivory",),
        "black": ("ebony",),
    },
    "shape": {"ball": ("globe",), "cube": ("crate",), "cylinder": ("barrel",), "capsule": ("lozenge",)},
    "size": {
        "tiny": ("teeny",),
        "small": ("petite",),
        "medium": ("average-sized",),
        "large": ("sizable",),
        "huge": ("enormous", "gigantic"),
    },
    "material": {"matte": ("rubbery {}",), "glossy": ("lacquered {}", "polished {}"), "metal": ("{} chrome",)},
    "speed": {"slow": ("sluggishly",), "fast": ("swiftly",)},
    "event": {
        "rest": ("~remain where it is",),
        "roll": ("~trundle {way}",),
        "slide": ("~slither {way}",),
        "spin": ("~pirouette",),
        "fall": ("~plummet", "~plunge"),
        "bounce": ("~jump up and down",),
        "throw": ("~be hurled {way}", "~be lobbed {way}"),
        "swing": ("~dangle and ~oscillate",),
        "occlude": ("~vanish {way} behind a wall and ~emerge again",),
        "edge": ("~trundle {way} off the brink of a platform",),
        "collide": ("~strike {object}", "~travel {heading} and ~strike {object}", "~smash into {object}"),
        "topple": ("~bowl over {object}", "~travel {heading} and ~bowl over {object}"),
    },
    "camera": {
        "still": ("~remain fixed",),
        "orbit": ("~revolve to the {side}",),
        "pan": ("~swivel to the {side}",),
        "crane up": ("~ascend",),
        "crane down": ("~descend",),
        "zoom in": ("~magnify the view",),
        "zoom out": ("~draw back",),
    },
    "ground": {"concrete": ("cement",), "wood": ("timber",), "grass": ("a lawn", "turf"), "sand": ("a beach",)},
    "wetness": {"wet": ("drenched",), "dry": ("parched",)},
    "sky": {"clear": ("cloudless",), "cloudy": ("overcast",)},
    "time": {"morning": ("dawn",), "sunset": ("dusk",), "night": ("midnight",)},
}
# A bare "left" or "right" must be last: "rolls right behind a cube" says something else.
DIRECTION_PHRASES = ("to the {side}", "{side}", "toward the {side}", "{side}ward", "from {other} to {side}")
NUMBERS = {2: "two", 3: "three"}
STACKS = ("stack", "tower")
# Relation of a thing to the subject: {it} is "it" or "the ball".
RELATION_TO_SUBJECT = {
    "behind": ("behind {it}",),
    "in front of": ("in front of {it}",),
    "left of": ("to the left of {it}", "on the left of {it}"),
    "right of": ("to the right of {it}", "on the right of {it}"),
}
# The inverse: relation of the subject to a thing that is behind it, and so on.
SUBJECT_RELATION = {
    "behind": ("in front of",),
    "in front of": ("behind",),
    "left of": ("to the right of", "right of"),
    "right of": ("to the left of", "left of"),
}
SPEED_NAMES = {
    "very slow": "very slow",
    "slow": "slow",
    "normal": "at a normal pace",
    "fast": "fast",
    "very fast": "very fast",
}
STATIC_SHOTS = ("static shot", "static camera", "fixed camera")
DOUBLING_VERBS = ("spin", "skid", "sit", "hit", "drop", "hop", "run", "pan", "swivel")


def inflect(template: str, form: str) -> str:
    """Inflect every `~verb`: it rolls ("finite"), is rolling ("progressive"), rolling ("participle"), roll it
    ("imperative").
    """

    def one(match: re.Match) -> str:
        verb = match[1]
        if form == "imperative":
            return verb
        if form == "finite":
            stem = verb[:-1] + "ie" if re.search("[^aeiou]y$", verb) else verb
            return "is" if verb == "be" else stem + ("es" if re.search("(s|sh|ch|x|z|o)$", verb) else "s")
        if verb == "lie":
            return "lying"
        stem = verb + verb[-1] if verb in DOUBLING_VERBS else re.sub("(?<=[^e])e$", "", verb) if verb != "be" else verb
        return stem + "ing"

    if form == "participle":
        template = template.replace("~be ", "")  # a ball thrown to the left
    text = re.sub(r"~(\w+)", one, template)
    return f"is {text}" if form == "progressive" else text


def build_lexicon(tables: tuple[Table, ...] = (WORDS, WETNESS, RESERVED)) -> Lexicon:
    """Return the lexicon of every phrase that the grammar can write from the tables."""
    lexicon = Lexicon()
    for side, other in OTHER_SIDE.items():
        for way in DIRECTION_PHRASES:
            lexicon.add(way.format(side=side, other=other), ("direction", side))
        lexicon.add(f"from the {other}", ("direction", side))
    for table in tables:
        for attribute, values in table.items():
            for value, phrases in values.items():
                for phrase in phrases:
                    if attribute == "event":
                        add_event(lexicon, value, phrase)
                    elif attribute == "camera":
                        add_camera(lexicon, value, phrase)
                    elif attribute == "material":
                        for word in phrase.replace("{}", "").split():
                            lexicon.add(word, (attribute, value))
                    else:
                        lexicon.add(phrase, (attribute, value))
                        if attribute == "ground" and WETNESS in tables:  # an adjective may stand after the article
                            lexicon.add(re.sub("^(a|the) ", "", phrase), (attribute, value))
                        if attribute == "shape":
                            lexicon.add("boxes" if phrase == "box" else f"{phrase}s", (attribute, value))
    for pace, words in SPEED_NAMES.items():
        lexicon.add(words, ("speed", pace))
    for words in STATIC_SHOTS:
        lexicon.add(words, ("camera", "still"))
    for number, word in NUMBERS.items():
        lexicon.add(word, ("stack", str(number)))
    for relation in RELATION_TO_SUBJECT:
        for phrase in RELATION_TO_SUBJECT[relation]:
            lexicon.add(phrase.format(it="it"), ("relation", relation))
            lexicon.add(phrase.format(it="the"), ("relation", relation))
        for phrase in SUBJECT_RELATION[relation]:
            lexicon.add(phrase, ("relation", relation))
    for side in OTHER_SIDE:
        lexicon.add(f"to its {side}", ("relation", f"{side} of"))
        lexicon.add(f"on its {side}", ("relation", f"{side} of"))
    return lexicon


def add_event(lexicon: Lexicon, event: str, template: str) -> None:
    """Add an event's phrase up to its object, in every verb form and with every phrase of direction."""
    for verb in ("~roll", "~slide") if event == "edge" else ("",):
        words = template.replace("~roll", verb) if verb else template
        words = words.split(" {object}")[0]
        for form in ("finite", "progressive", "participle", "imperative"):
            phrased = inflect(words, form).removeprefix("is ").removeprefix("being ")
            if not re.search("{side}|{other}|{heading}", phrased):
                lexicon.add(phrased.replace(" {way}", ""), ("event", event))
            if "{" in phrased:
                for side, other in OTHER_SIDE.items():
                    for way in DIRECTION_PHRASES:
                        filled = re.sub("{way}|{heading}", way, phrased).format(side=side, other=other)
                        lexicon.add(filled, ("event", event), ("direction", side))


def add_camera(lexicon: Lexicon, move: str, template: str) -> None:
    for side in OTHER_SIDE if "{side}" in template else ("",):
        for form in ("finite", "participle", "imperative"):
            lexicon.add(inflect(template, form).format(side=side), ("camera", f"{move} {side}".strip()))
