"""Tables of words with one meaning each, and how a phrase is chosen from them."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable, Sequence, Set
from itertools import accumulate

import numpy as np

Table = dict[str, dict[str, tuple[str, ...]]]  # attribute -> canonical value -> phrases, the most usual first
OTHER_SIDE = {"left": "right", "right": "left"}  # each side with the other one
DIRECTED = ("{heading}", "{side}", "{other}")  # marks in a phrase that must be filled with a direction
DIRECTABLE = (*DIRECTED, "{way}")  # and those that may be
DEFAULT_WORD_PROBABILITY = 0.8  # how often a word is the usual one and no synonym
CUMULATIVE_WEIGHTS = list(
    accumulate(1 / k for k in range(1, 33))
)  # how much the first k of many phrases weigh together


class WordPicker:
    """One speaker: the random numbers, and whether the words kept back for tests are used.

    `detail` is how often a plain caption names the size and the material of a thing besides the subject. Attributes in
    `without` are never named.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        table: Table,
        reserved: Table,
        use_reserved: bool = False,
        detail_probability: float = 0.2,
        excluded: Set[str] = frozenset(),
    ):
        self.rng, self.table, self.reserved, self.use_reserved = rng, table, reserved, use_reserved
        self.detail_probability, self.excluded = detail_probability, excluded

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def pick(self, options: Sequence[str]) -> str:
        """Choose a phrase; the k-th is chosen in proportion to 1/k."""
        return options[bisect(CUMULATIVE_WEIGHTS, self.rng.random() * CUMULATIVE_WEIGHTS[len(options) - 1])]

    def shuffle(self, items: Iterable) -> list:
        items = list(items)
        return [items[i] for i in self.rng.permutation(len(items))]

    def options(self, attribute: str, value: str) -> tuple[str, ...]:
        """List the phrases of a value: the reserved ones where they are wanted and exist."""
        reserved = self.reserved.get(attribute, {}).get(value, ()) if self.use_reserved else ()
        return reserved or self.table[attribute][value]

    def phrase(self, attribute: str, value: str) -> str:
        """Choose one of several equally good phrases."""
        return self.pick(self.options(attribute, value))

    def word(self, attribute: str, value: str) -> str:
        """Choose the usual word, or now and then a synonym."""
        usual, *synonyms = self.options(attribute, value)
        return self.pick(synonyms) if synonyms and not self.chance(DEFAULT_WORD_PROBABILITY) else usual

    def event_phrase(self, event: str, directed: bool) -> str:
        """Choose an event's phrase: one with room for a direction where it is `directed`, else one that needs none."""
        marks = DIRECTABLE if directed else DIRECTED
        options = self.options("event", event)
        return self.pick([words for words in options if any(mark in words for mark in marks) == directed])
