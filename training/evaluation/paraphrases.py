"""Paraphrases: words that no training reads, to measure what a model makes of words that it never met.

They are the RESERVED words of the world, and more. The grammar of captions never writes them, nor does any table of
synonyms that the upsampler learns; a test compares them all. Nothing that trains a model may import this file.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from training.world.grammar_en import plain
from training.world.lexicon import Table, WordPicker
from training.world.scene import Scene
from training.world.words_en import RESERVED, WETNESS, WORDS, build_lexicon

MORE_WORDS: Table = {
    "colour": {
        "red": ("vermilion", "brick-red"),
        "orange": ("persimmon",),
        "yellow": ("buttercup", "saffron"),
        "green": ("moss-green", "malachite"),
        "blue": ("cerulean", "ultramarine"),
        "purple": ("amethyst", "aubergine"),
        "pink": ("flamingo-pink", "carnation"),
        "white": ("alabaster", "pearly"),
        "black": ("obsidian", "raven-black"),
    },
    "shape": {
        "ball": ("spheroid",),
        "cube": ("hexahedron",),
        "cylinder": ("keg",),
        "capsule": ("pastille",),
    },
    "size": {
        "small": ("diminutive", "pint-sized"),
        "medium": ("moderate",),
        "large": ("oversized", "hulking"),
    },
    "material": {
        "matte": ("unpolished {}", "{} felt"),
        "glossy": ("varnished {}", "glassy {}"),
        "metal": ("{} titanium",),
    },
    "speed": {"slow": ("unhurriedly",), "fast": ("hastily", "hurriedly")},
    "event": {
        "rest": ("~stay stock-still", "~stay immobile"),
        "roll": ("~barrel along {way}",),
        "slide": ("~coast {way}",),
        "spin": ("~gyrate",),
        "fall": ("~plop down",),
        "bounce": ("~ricochet up and down",),
        "throw": ("~be catapulted {way}",),
        "swing": ("~wobble to and fro on a cord",),
        "occlude": ("~slip {way} behind a partition and ~resurface",),
        "edge": ("~teeter {way} off the rim of a platform",),
        "collide": ("~clobber {object}", "~travel {heading} and ~clobber {object}"),
        "topple": ("~upend {object}", "~travel {heading} and ~upend {object}"),
    },
    "camera": {
        "still": ("~stay unmoving",),
        "orbit": ("~loop to the {side}",),
        "pan": ("~pivot to the {side}",),
        "crane up": ("~levitate",),
        "crane down": ("~dip downward",),
        "zoom in": ("~enlarge the view",),
        "zoom out": ("~shrink the view",),
    },
    "ground": {
        "concrete": ("asphalt",),
        "sand": ("a sandpit",),
        "wood": ("hardwood", "plywood"),
        "grass": ("a pasture",),
        "slate": ("shale",),
    },
    "wetness": {"wet": ("waterlogged",), "dry": ("bone-dry",)},
    "sky": {"clear": ("unclouded",), "cloudy": ("leaden",)},
    "time": {"noon": ("lunchtime",), "sunset": ("eventide",)},
}
PARAPHRASES: Table = {
    attribute: {
        value: (*RESERVED.get(attribute, {}).get(value, ()), *MORE_WORDS.get(attribute, {}).get(value, ()))
        for value in values
    }
    for attribute, values in (WORDS | WETNESS).items()
}
LEXICON = build_lexicon((WORDS, WETNESS, PARAPHRASES))


def write_paraphrase(scene: Scene, rng: np.random.Generator, mention: Iterable[str]) -> str:
    """Write an English prompt that names the attributes in `mention`, in paraphrases wherever there are any."""
    return plain(scene, set(mention), True, WordPicker(rng, WORDS | WETNESS, PARAPHRASES, use_reserved=True))
