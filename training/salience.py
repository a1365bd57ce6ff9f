"""Salient tokens of a caption: those whose words describe the scene, as the world's lexicon reads them.

Most words of a caption are style; the few that describe its scene get more weight when a model learns to write.
"""

from __future__ import annotations

import re
from collections.abc import Set
from functools import cache

import numpy as np

from captioning.lexicon import Lexicon, Meaning
from captioning.lexicon_set import LexiconSet
from training.synonyms import SHORT_EVENTS, STOP_WORDS, SYNONYMS
from training.world.words import LANGUAGES, TABLES, language_of

ARTICLES = ("the", "a", "")
PROPS = (("event", "occlude"), ("event", "edge"), ("event", "swing"))  # events that add a wall, a platform, a string


@cache
def lexicon_of(language: str) -> Lexicon:
    """Return the meanings of the words of captions and of their synonyms."""
    table = TABLES[language]
    return table.build_lexicon((table.WORDS, table.WETNESS, SYNONYMS[language]))


def build_lexicon_set() -> LexiconSet:
    """Return the meanings of words in captions, and in prompts of each language, with any article or none."""
    prompts = {}
    for language in LANGUAGES:
        table = TABLES[language]
        tables = table.WORDS, table.WETNESS, SYNONYMS[language], SHORT_EVENTS[language]
        lexicon = prompts[language] = TABLES[language].build_lexicon(tables)
        has_articles = not lexicon.per_character
        for words, meanings in list(lexicon.meanings.items()):
            for article in ARTICLES if has_articles and not any(name == "relation" for name, _ in meanings) else ():
                phrase = re.sub(r"\b(?:an?|the)\b", article, " ".join(words))
                if (tokens := tuple(lexicon.split(phrase))) and tokens not in lexicon.meanings:
                    lexicon.add(phrase, *meanings)
        for phrase in STOP_WORDS[language]:
            lexicon.add(phrase)
    english = TABLES["en"]
    return LexiconSet(english.build_lexicon((english.WORDS, english.WETNESS)), prompts, PROPS)


def meanings_of(text: str) -> frozenset[Meaning]:
    """Return all meanings of the words of a text."""
    return frozenset().union(*(meanings for _, meanings in lexicon_of(language_of(text)).read(text)))


def salient_tokens(tokenizer, text: str, about: Set[Meaning] | None = None) -> list[bool]:
    """Return which tokens of a text, without its start and end tokens, have a meaning of `about`, or any meaning."""
    salient, lower, position = np.zeros(len(text) + 1, bool), text.lower(), 0
    for phrase, meanings in lexicon_of(language_of(text)).read(text):
        start = lower.index(phrase[0], position)
        for word in phrase:
            position = lower.index(word, position) + len(word)
        salient[start:position] = bool(meanings if about is None else meanings & about)
    spans = tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
    )["offset_mapping"]
    return [bool(salient[start:end].any()) for start, end in spans]
