"""Captions of a scene in English and Chinese: written by a grammar, and read back by the lexicon of its words."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from . import grammar_en, grammar_zh, words_en, words_zh
from .facts import MOTION_ATTRIBUTES, attributes
from .lexicon import OTHER_SIDE, WordPicker
from .scene import Scene

__all__ = [
    "CAPTION_KINDS",
    "LANGUAGES",
    "RESERVED",
    "attributes",
    "language_of",
    "mirror_caption",
    "read_caption",
    "write_caption",
    "write_prompt",
]

CAPTION_KINDS = ("label", "plain", "dense")
GRAMMARS = {"en": grammar_en, "zh": grammar_zh}
TABLES = {"en": words_en, "zh": words_zh}
LANGUAGES = tuple(GRAMMARS)
RESERVED = words_en.RESERVED  # English words that `write_caption` never uses; the Chinese ones: words_zh.RESERVED
MIRRORED_WORDS = OTHER_SIDE | {
    words_zh.SIDE_WORDS[side]: words_zh.SIDE_WORDS[other] for side, other in OTHER_SIDE.items()
}
LEXICONS = {language: table.build_lexicon() for language, table in TABLES.items()}

# Probability that a plain caption names each of these.
ATTRIBUTE_PROBABILITY = {"size": 0.5, "material": 0.4, "direction": 0.6, "camera": 0.6, "speed": 0.15}
SETTING_PROBABILITY = 0.3  # probability that a plain caption names any of ground, sky and time
STATIC_CAMERA_PROBABILITY = 0.12

# From edition 2 on a plain caption names all attributes, except one with CLAUSE_DROP_PROBABILITY, so that a model
# learns the effect of each. Dryness is named with DRY_PROBABILITY.
CLAUSE_DROP_PROBABILITY = 0.1
DRY_PROBABILITY = 0.25
CLAUSES = ("size", "material", "direction", "speed", "camera", "ground", "wetness", "sky", "time")
SHORT_ATTRIBUTE_PROBABILITY = {
    "event": 0.9,
    "size": 0.3,
    "material": 0.2,
    "direction": 0.4,
    "camera": 0.2,
    "ground": 0.3,
    "time": 0.25,
    "sky": 0.15,
}
SHORT_ATTRIBUTE_PROBABILITY |= {"speed": 0.3}


def mirror_caption(text: str) -> str:
    """Exchange left and right in a caption, as a horizontal flip of the clip does."""
    return re.sub(r"\b(?:left|right)|[左右]", lambda side: MIRRORED_WORDS[side[0]], text)


def write_caption(
    scene: Scene, kind: str, language: str = "en", *, moving: bool = True, rng: np.random.Generator
) -> str:
    """Write a caption: a "label", a "plain" line as a user types it, or a "dense" one that names every attribute.

    From edition 2 on there is also "short", a plain line with few attributes; "plain" and "dense" name all,
    except one with CLAUSE_DROP_PROBABILITY. `moving=False` describes a single frame. The same arguments and
    random state give the same words.
    Raises ValueError for an unknown kind or language.
    """
    kinds = CAPTION_KINDS if scene.edition == 1 else (*CAPTION_KINDS, "short")
    if kind not in kinds:
        raise ValueError(f"kind must be one of {', '.join(kinds)}; got {kind!r}")
    if scene.edition > 1 and kind != "label":
        return _write_edition_2(scene, kind, language, moving, rng)
    picker = _make_picker(language, rng)
    grammar = GRAMMARS[language]
    if kind == "label":
        return grammar.label(scene, picker)
    if kind == "dense":
        return grammar.dense(scene, moving, picker)
    chances = ATTRIBUTE_PROBABILITY | ({"camera": STATIC_CAMERA_PROBABILITY} if scene.camera == "still" else {})
    named = {"colour", "shape", "event"} | {name for name, chance in chances.items() if picker.chance(chance)}
    if picker.chance(SETTING_PROBABILITY):
        named |= set(picker.shuffle(("ground", "sky", "time"))[: picker.rng.integers(1, 4)])
    return grammar.plain(scene, named if moving else named.difference(MOTION_ATTRIBUTES), moving, picker)


def _write_edition_2(scene: Scene, kind: str, language: str, moving: bool, rng: np.random.Generator) -> str:
    """Write the "short", "plain" and "dense" captions of edition 2 and later."""
    grammar = GRAMMARS[language]
    if kind == "short":
        named = {"colour", "shape"} | {
            name for name, chance in SHORT_ATTRIBUTE_PROBABILITY.items() if rng.random() < chance
        }
        named |= {"wetness"} & ({"wetness"} if scene.wetness == "wet" and rng.random() < 0.5 else set())
        if scene.camera == "still":
            named -= {"camera"}
        picker = _make_picker(language, rng, detail_probability=0.05)
        return grammar.plain(scene, named if moving else named.difference(MOTION_ATTRIBUTES), moving, picker)
    excluded = set()
    if scene.wetness == "dry" and rng.random() > DRY_PROBABILITY:
        excluded.add("wetness")
    clauses = [*CLAUSES, "event", "colour", "shape"] if kind == "plain" else CLAUSES
    if rng.random() < CLAUSE_DROP_PROBABILITY:
        excluded.add(str(rng.choice([name for name in clauses if moving or name not in MOTION_ATTRIBUTES])))
    picker = _make_picker(
        language, rng, detail_probability=scene.rules.detail_probability, excluded=frozenset(excluded)
    )
    if kind == "dense":
        return grammar.dense(scene, moving, picker)
    named = {"colour", "shape", "event", *CLAUSES} - excluded
    return grammar.plain(scene, named if moving else named.difference(MOTION_ATTRIBUTES), moving, picker)


def write_prompt(
    scene: Scene,
    language: str = "en",
    *,
    rng: np.random.Generator,
    mention: Iterable[str] = ("colour", "shape", "size", "event", "camera"),
    reserved: bool = False,
) -> str:
    """Write a plain caption that names, of the subject and its surroundings, just the attributes in `mention`.

    The other things are named as in any plain caption. With `reserved`, RESERVED words are used
    wherever there are any. Raises ValueError for an unknown attribute.
    """
    mention = set(mention)
    if unknown := mention - {
        "colour",
        "shape",
        "size",
        "material",
        "ground",
        "wetness",
        "sky",
        "time",
        *MOTION_ATTRIBUTES,
    }:
        raise ValueError(f"mention must name attributes of a scene, see `attributes`; got {', '.join(sorted(unknown))}")
    return GRAMMARS[language].plain(scene, mention, True, _make_picker(language, rng, reserved))


def read_caption(text: str, language: str = "en") -> dict[str, set[str]]:
    """Return the canonical values of every attribute that a caption names.

    Besides the keys of `attributes`: "relation", and those of `Lexicon.read_attributes`.
    """
    return LEXICONS[language].read_attributes(text)


def language_of(text: str) -> str:
    """Return the language of a text, "en" or "zh": English texts are ASCII."""
    return "en" if text.isascii() else "zh"


def _make_picker(language: str, rng: np.random.Generator, use_reserved: bool = False, **options) -> WordPicker:
    if language not in LANGUAGES:
        raise ValueError(f"language must be one of {', '.join(LANGUAGES)}; got {language!r}")
    table = TABLES[language]
    return WordPicker(rng, table.WORDS | table.WETNESS, table.RESERVED, use_reserved, **options)
