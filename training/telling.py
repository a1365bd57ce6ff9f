"""Which tokens of a text say something of a scene, as the world's lexicon reads it.

Most words of a caption are a matter of style; the few that tell its scene count for more where a model learns to write.
"""

from __future__ import annotations

from collections.abc import Set
from functools import cache

import numpy as np

from training.thesaurus import THESAURUS
from training.upsampling import language_of
from training.world.lexicon import Lexicon, Meaning
from training.world.words import TABLES


@cache
def lexicon_of(language: str) -> Lexicon:
    """Return what the words of captions and of the thesaurus mean."""
    table = TABLES[language]
    return table.build_lexicon((table.WORDS, THESAURUS[language]))


def meanings(text: str) -> frozenset[Meaning]:
    """List all that a text says."""
    return frozenset().union(*(meant for _, meant in lexicon_of(language_of(text)).read(text)))


def telling(tokenizer, text: str, about: Set[Meaning] | None = None) -> list[bool]:
    """Say which tokens of a text, without its start and end, tell something: of what it is `about`, or anything."""
    marked, lower, at = np.zeros(len(text) + 1, bool), text.lower(), 0
    for phrase, meant in lexicon_of(language_of(text)).read(text):
        begin = lower.index(phrase[0], at)
        for word in phrase:
            at = lower.index(word, at) + len(word)
        marked[begin:at] = bool(meant if about is None else meant & about)
    places = tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
    )["offset_mapping"]
    return [bool(marked[begin:end].any()) for begin, end in places]
