"""Captions of a scene in English and Chinese: written by a grammar, and read back by the lexicon it speaks from."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from . import grammar_en, grammar_zh, words_en, words_zh
from .facts import MOTION, attributes
from .lexicon import SIDES, Voice
from .scene import Scene

__all__ = ["KINDS", "LANGUAGES", "RESERVED", "attributes", "caption", "in_a_mirror", "language_of", "prompt", "said"]

KINDS = ("label", "plain", "dense")
GRAMMARS = {"en": grammar_en, "zh": grammar_zh}
TABLES = {"en": words_en, "zh": words_zh}
LANGUAGES = tuple(GRAMMARS)
RESERVED = words_en.RESERVED  # English words that `caption` never says; the Chinese ones are words_zh.RESERVED
OTHER_SIDE = SIDES | {words_zh.HANDS[side]: words_zh.HANDS[other] for side, other in SIDES.items()}
LEXICONS = {language: table.build_lexicon() for language, table in TABLES.items()}

# How often a plain caption says each of these; a still camera and an ordinary speed are seldom worth a word.
PLAIN = {"size": 0.5, "material": 0.4, "direction": 0.6, "camera": 0.6, "speed": 0.15}
SETTING = 0.3  # how often a plain caption says something of ground, sky and time
STILL_CAMERA = 0.12

# From edition 2 on a plain caption says everything, but for one clause in DROPPED of the captions, so that a model
# learns what each of them changes; that a ground is dry is worth a word in DRY of them.
DROPPED = 0.1
DRY = 0.25
CLAUSES = ("size", "material", "direction", "speed", "camera", "ground", "wetness", "sky", "time")
SHORT = {
    "event": 0.9,
    "size": 0.3,
    "material": 0.2,
    "direction": 0.4,
    "camera": 0.2,
    "ground": 0.3,
    "time": 0.25,
    "sky": 0.15,
}
SHORT |= {"speed": 0.3}


def in_a_mirror(text: str) -> str:
    """Exchange left and right in a caption."""
    return re.sub(r"\b(?:left|right)|[左右]", lambda side: OTHER_SIDE[side[0]], text)


def caption(scene: Scene, kind: str, language: str = "en", *, moving: bool = True, rng: np.random.Generator) -> str:
    """Describe a scene by a "label", in a "plain" line as somebody types it, or "dense": all that is true of it.

    From edition 2 on there is also "short", a plain line that says little; "plain" and "dense" say everything but for
    one clause in DROPPED of the captions. `moving=False` describes a picture of any one moment. The same arguments and
    random state give the same words.
    Raises ValueError for an unknown kind or language.
    """
    kinds = KINDS if scene.edition == 1 else (*KINDS, "short")
    if kind not in kinds:
        raise ValueError(f"kind must be one of {', '.join(kinds)}; got {kind!r}")
    if scene.edition > 1 and kind != "label":
        return _thorough(scene, kind, language, moving, rng)
    voice = _voice(language, rng)
    grammar = GRAMMARS[language]
    if kind == "label":
        return grammar.label(scene, voice)
    if kind == "dense":
        return grammar.dense(scene, moving, voice)
    chances = PLAIN | ({"camera": STILL_CAMERA} if scene.camera == "still" else {})
    says = {"colour", "shape", "event"} | {name for name, chance in chances.items() if voice.chance(chance)}
    if voice.chance(SETTING):
        says |= set(voice.shuffle(("ground", "sky", "time"))[: voice.rng.integers(1, 4)])
    return grammar.plain(scene, says if moving else says.difference(MOTION), moving, voice)


def _thorough(scene: Scene, kind: str, language: str, moving: bool, rng: np.random.Generator) -> str:
    """Write the "short", "plain" and "dense" captions of edition 2 and later."""
    grammar = GRAMMARS[language]
    if kind == "short":
        says = {"colour", "shape"} | {name for name, chance in SHORT.items() if rng.random() < chance}
        says |= {"wetness"} & ({"wetness"} if scene.wetness == "wet" and rng.random() < 0.5 else set())
        if scene.camera == "still":
            says -= {"camera"}
        voice = _voice(language, rng, detail=0.05)
        return grammar.plain(scene, says if moving else says.difference(MOTION), moving, voice)
    without = set()
    if scene.wetness == "dry" and rng.random() > DRY:
        without.add("wetness")
    clauses = [*CLAUSES, "event", "colour", "shape"] if kind == "plain" else CLAUSES
    if rng.random() < DROPPED:
        without.add(str(rng.choice([name for name in clauses if moving or name not in MOTION])))
    voice = _voice(language, rng, detail=scene.rules.detail, without=frozenset(without))
    if kind == "dense":
        return grammar.dense(scene, moving, voice)
    says = {"colour", "shape", "event", *CLAUSES} - without
    return grammar.plain(scene, says if moving else says.difference(MOTION), moving, voice)


def prompt(
    scene: Scene,
    language: str = "en",
    *,
    rng: np.random.Generator,
    mention: Iterable[str] = ("colour", "shape", "size", "event", "camera"),
    reserved: bool = False,
) -> str:
    """Write a plain caption that says, of the subject and its surroundings, just the attributes in `mention`.

    The other things are named as in any plain caption. With `reserved`, RESERVED words are used
    wherever there are some. Raises ValueError for an unknown attribute.
    """
    mention = set(mention)
    if unknown := mention - {"colour", "shape", "size", "material", "ground", "wetness", "sky", "time", *MOTION}:
        raise ValueError(f"mention must name attributes of a scene, see `attributes`; got {', '.join(sorted(unknown))}")
    return GRAMMARS[language].plain(scene, mention, True, _voice(language, rng, reserved))


def said(text: str, language: str = "en") -> dict[str, set[str]]:
    """Read a caption back: for every attribute that is spoken of, the canonical values it is given.

    Besides the keys of `attributes`: "relation", and those of `Lexicon.read_attributes`.
    """
    return LEXICONS[language].read_attributes(text)


def language_of(text: str) -> str:
    """Return the language of a text, "en" or "zh": English texts are ASCII."""
    return "en" if text.isascii() else "zh"


def _voice(language: str, rng: np.random.Generator, use_reserved: bool = False, **options) -> Voice:
    if language not in LANGUAGES:
        raise ValueError(f"language must be one of {', '.join(LANGUAGES)}; got {language!r}")
    return Voice(rng, TABLES[language].WORDS, TABLES[language].RESERVED, use_reserved, **options)
