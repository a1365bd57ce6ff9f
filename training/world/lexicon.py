"""Tables of phrases with one meaning each, and the random choice among them."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable, Sequence, Set
from itertools import accumulate

import numpy as np

Table = dict[str, dict[str, tuple[str, ...]]]  # attribute -> canonical value -> phrases, the most usual first
OTHER_SIDE = {"left": "right", "right": "left"}  # each side with the other one
DIRECTED = ("{heading}", "{side}", "{other}")  # placeholders that must be filled with a direction
DIRECTABLE = (*DIRECTED, "{way}")  # and those that may be
DEFAULT_WORD_PROBABILITY = 0.8  # probability of the most common word over its synonyms
CUMULATIVE_WEIGHTS = list(
    accumulate(1 / k for k in range(1, 33))
)  # how much the first k of many phrases weigh together


class WordPicker:
    """Chooses phrases at random; with `use_reserved` those that are held out of training.

    A plain caption names the size and the material of a bystander with `detail_probability` each. Attributes in
    `excluded` are never named.
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
        """Return the phrases of a value: the reserved ones if they are wanted and exist."""
        reserved = self.reserved.get(attribute, {}).get(value, ()) if self.use_reserved else ()
        return reserved or self.table[attribute][value]

    def phrase(self, attribute: str, value: str) -> str:
        """Choose one of several equally good phrases."""
        return self.pick(self.options(attribute, value))

    def word(self, attribute: str, value: str) -> str:
        """Choose the most common word with DEFAULT_WORD_PROBABILITY, else a synonym."""
        usual, *synonyms = self.options(attribute, value)
        return self.pick(synonyms) if synonyms and not self.chance(DEFAULT_WORD_PROBABILITY) else usual

    def event_phrase(self, event: str, directed: bool) -> str:
        """Choose an event's phrase: one with a direction if it is `directed`, else without one."""
        marks = DIRECTABLE if directed else DIRECTED
        options = self.options("event", event)
        return self.pick([words for words in options if any(mark in words for mark in marks) == directed])
