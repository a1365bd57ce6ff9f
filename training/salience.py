"""Which tokens of a text say something of a scene, as the world's lexicon reads it.

Most words of a caption are a matter of style; the few that tell its scene count for more where a model learns to write.
"""

from __future__ import annotations

import re
from collections.abc import Set
from functools import cache

import numpy as np

from captioning.glossary import Glossary
from captioning.lexicon import Lexicon, Meaning
from training.evaluation.upsampler import language_of
from training.synonyms import BRIEF, EMPTY, THESAURUS
from training.world.words import LANGUAGES, TABLES

ARTICLES = ("the", "a", "")
PROPS = (("event", "occlude"), ("event", "edge"), ("event", "swing"))  # walls, platforms and strings


@cache
def lexicon_of(language: str) -> Lexicon:
    """Return what the words of captions and of the thesaurus mean."""
    table = TABLES[language]
    return table.build_lexicon((table.WORDS, THESAURUS[language]))


def glossary() -> Glossary:
    """Return what words mean in captions, and in prompts of each language, also where articles are others or none."""
    table, prompts = TABLES["en"], {}
    for language in LANGUAGES:
        tables = TABLES[language].WORDS, THESAURUS[language], BRIEF[language]
        lexicon = prompts[language] = TABLES[language].build_lexicon(tables)
        spaced = not lexicon.letters
        for words, meant in list(lexicon.meanings.items()):
            for article in ARTICLES if spaced and not any(name == "relation" for name, _ in meant) else ():
                other = re.sub(r"\b(?:an?|the)\b", article, " ".join(words))
                if (tokens := tuple(lexicon.split(other))) and tokens not in lexicon.meanings:
                    lexicon.add(other, *meant)
        for phrase in EMPTY[language]:
            lexicon.add(phrase)
    return Glossary(table.build_lexicon((table.WORDS,)), prompts, PROPS)


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
