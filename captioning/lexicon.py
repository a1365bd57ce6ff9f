"""Read the attributes of a caption or prompt by a lexicon of phrases, and compare two texts by them.

A model that rewrites prompts is right most of the time. Where all words are known, its text can be read back and
compared with the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

Meaning = tuple[str, str]  # attribute, canonical value
Attributes = dict[str, set[str]]  # attribute -> its canonical values in a text
Phrase = tuple[tuple[str, ...], frozenset[Meaning]]  # tokens, meanings
# Attributes that may have several values in one clip.
MULTI_VALUED = ("colour", "shape", "size", "material", "thing", "appearance", "place", "struck", "relation")
APPEARANCE = ("size", "material")
OPPOSITE = {"behind": "in front of", "in front of": "behind", "left of": "right of", "right of": "left of"}
CANONICAL_RELATIONS = ("behind", "left of")  # "a behind b" also stands for "b in front of a"
GROUND_NEXT = ("it", "the", "left", "right")  # last words of a relation before its ground: "behind the" ball
BREAKS = (",", "，", ".", "。", "and")  # separate a mention from a relation of another one
STOPS = (".", "。")
FIGURE_NEXT = "有是着"  # last characters of a Chinese relation whose figure comes next
INDEFINITE = ("a", "an", "one", "another", "一个", "一只")  # before the first mention of an object


@dataclass
class Mention:
    """A mention of an object: the index of its phrase, and its attributes."""

    index: int
    shape: str | None
    colour: str | None
    count: int  # of equal objects, or 0 if they are not counted
    appearance: set[str]  # sizes and materials
    repeated: bool = False  # it refers to an object mentioned before

    @property
    def name(self) -> str | None:
        """The colour and shape, such as "red ball", or None if one of them is not given."""
        return f"{self.colour} {self.shape}" if self.colour and self.shape else None


class Lexicon:
    """A dictionary from phrases to their meanings (possibly none), applied by longest match.

    Tokens are words, or single characters with `per_character`, for a language without spaces. `fillers` may stand
    between a colour and its shape; `objects` are words for an object of unknown shape.
    """

    def __init__(
        self, per_character: bool = False, fillers: tuple[str, ...] = (), objects: tuple[str, ...] = ("object",)
    ):
        self.per_character, self.fillers, self.objects = per_character, fillers, objects
        self.meanings: dict[tuple[str, ...], frozenset[Meaning]] = {}
        self.max_tokens: dict[str, int] = {}  # first token -> tokens of the longest phrase that starts with it

    def split(self, text: str) -> list[str]:
        """Split a text into characters, or into lower-case words (hyphens kept) and punctuation marks."""
        if self.per_character:
            return [character for character in text if not character.isspace()]
        return re.findall(r"[a-z]+(?:-[a-z]+)*|[^a-z\s]", text.lower())

    def add(self, phrase: str, *meanings: Meaning) -> None:
        """Add a phrase with its meanings. Raises ValueError if it has other meanings already."""
        tokens = tuple(self.split(phrase))
        known = self.meanings.setdefault(tokens, frozenset(meanings))
        if known != frozenset(meanings):
            both = f"{sorted(known)} and {sorted(meanings)}"
            raise ValueError(f"a phrase must have one meaning; {phrase!r} has {both}: change one of the phrases")
        self.max_tokens[tokens[0]] = max(self.max_tokens.get(tokens[0], 1), len(tokens))

    def read(self, text: str) -> Iterator[Phrase]:
        """Yield the phrases of a text with their meanings; an unknown token is a phrase without meanings."""
        tokens = self.split(text)
        start = 0
        while start < len(tokens):
            ends = range(min(len(tokens), start + self.max_tokens.get(tokens[start], 1)), start, -1)
            phrase = next((p for end in ends if (p := tuple(tokens[start:end])) in self.meanings), (tokens[start],))
            yield phrase, self.meanings.get(phrase, frozenset())
            start += len(phrase)

    def read_attributes(self, text: str) -> Attributes:
        """Return the attributes that a text gives, with their canonical values.

        These are the attributes of single phrases, and: "thing", a colour bound to a shape ("red ball"); "appearance",
        a size or material bound to a thing ("large red ball"); "place", a spatial relation ("red ball behind blue
        cube"); "struck", the thing that another one hits; "stack", the shape of counted objects ("a tower of two
        cubes"); and "count", the number of all objects, unless there are several and one of them has no name.
        """
        phrases = list(self.read(text))
        mentions = self.mentions(phrases)
        objects = [mention for mention in mentions if not mention.repeated]
        found: Attributes = {
            "thing": {mention.name for mention in mentions if mention.name},
            "appearance": {
                f"{value} {mention.name}" for mention in mentions if mention.name for value in mention.appearance
            },
            "place": self.places(phrases, mentions),
            "struck": self._struck(phrases, mentions),
            "stack": {mention.shape for mention in objects if mention.count and mention.shape},
        }
        if objects and (len(objects) == 1 or all(mention.name or mention.count for mention in objects)):
            found["count"] = {str(sum(mention.count or 1 for mention in objects))}
        for _, meanings in phrases:
            for attribute, value in meanings:
                if attribute != "stack":
                    found.setdefault(attribute, set()).add(value)
        return {attribute: values for attribute, values in found.items() if values}

    def mentions(self, phrases: list[Phrase]) -> list[Mention]:
        """List the mentions of objects, in order.

        A size or material belongs to the next object, or else to the last one of the sentence, or else to the first of
        the text ("it is large").
        """
        mentions: list[Mention] = []
        colour, count, appearance, sentence, article = None, 0, set(), 0, ""
        for index, (phrase, meanings) in enumerate([*phrases, ((STOPS[0],), frozenset())]):
            if phrase[0] in STOPS:
                for mention in mentions[sentence:][-1:] or mentions[:1]:
                    mention.appearance |= appearance
                appearance, sentence = set(), len(mentions)
            if not meanings:
                colour = colour if phrase[0] in self.fillers else None
                if phrase[0] not in self.fillers:
                    article = (article + "".join(phrase))[-2:] if self.per_character else phrase[-1]
                if "".join(phrase) in self.objects:
                    mentions.append(Mention(index, None, None, 0, appearance))
                    appearance = set()
            for attribute, value in meanings:
                if attribute == "stack":
                    count = int(value)
                elif attribute == "colour":
                    colour = value
                elif attribute in APPEARANCE:
                    appearance.add(value)
                elif attribute == "shape":
                    same = [] if count or article in INDEFINITE else [one for one in mentions if one.shape == value]
                    if colour:
                        same = [one for one in same if one.colour == colour]
                    elif self.per_character or article == "the":
                        plural = self.per_character or phrase[-1].endswith("s")
                        same = [one for one in same if one.count and plural] or same
                        colour, count = (same[-1].colour, same[-1].count) if same else (None, count)
                    else:
                        same = []
                    mentions.append(Mention(index, value, colour, count, appearance, bool(same)))
                    colour, count, appearance = None, 0, set()
            if meanings and not {"colour", *APPEARANCE} & dict(meanings).keys():
                article = phrase[-1]
        return mentions

    def places(self, phrases: list[Phrase], mentions: list[Mention]) -> set[str]:
        """List the spatial relations of a text, such as "red ball behind blue cube".

        The figure of a relation is the nearest object before or after it; the ground of all of them is the first
        object that is no figure.
        """
        mentions = [mention for mention in mentions if not mention.count]
        relations = [
            (index, value)
            for index, (_, meanings) in enumerate(phrases)
            for name, value in meanings
            if name == "relation"
        ]
        found = [(value, figure) for index, value in relations if (figure := self._figure(phrases, index, mentions))]
        figures, names = [figure.index for _, figure in found], [figure.name for _, figure in found if figure.name]
        grounds = (one.name for one in mentions if one.index not in figures and one.name not in names)
        ground = next(grounds, None)
        return {canonical_relation(figure.name, value, ground) for value, figure in found if figure.name and ground}

    def _figure(self, phrases: list[Phrase], index: int, mentions: list[Mention]) -> Mention | None:
        """Find the object whose place the relation at phrase `index` gives."""
        phrase = phrases[index][0]
        before = [mention for mention in mentions if mention.index < index]
        after = [mention for mention in mentions if mention.index > index]
        if self.per_character:
            nearest = after[:1] if phrase[-1] in FIGURE_NEXT else before[-1:]
        elif (
            before
            and phrase[-1] in GROUND_NEXT
            and not any(tokens[0] in BREAKS for tokens, _ in phrases[before[-1].index : index])
        ):
            nearest = before[-1:]  # "a ball stands behind the cube"
        else:
            nearest = after[1:] if phrase[-1] == "the" else after  # "behind the cube stands a ball"
        return nearest[0] if nearest else None

    def _struck(self, phrases: list[Phrase], mentions: list[Mention]) -> set[str]:
        """List the names of the objects that are hit: those that come next after a collision, in the same clause."""
        hits = [index for index, (_, meanings) in enumerate(phrases) if ("event", "collide") in meanings]
        nexts = (next((one for one in mentions if one.index > index), None) for index in hits)
        pairs = [(index, one) for index, one in zip(hits, nexts, strict=True) if one]
        near = [one for at, one in pairs if not any(tokens[0] in BREAKS for tokens, _ in phrases[at : one.index])]
        return {mention.name for mention in near if mention.name}


def canonical_relation(figure: str, relation: str, ground: str) -> str:
    """Format a spatial relation with one of CANONICAL_RELATIONS, swapping figure and ground where needed."""
    if relation in CANONICAL_RELATIONS:
        return f"{figure} {relation} {ground}"
    return f"{ground} {OPPOSITE[relation]} {figure}"


def match_attributes(wanted: Attributes, found: Attributes) -> dict[str, bool]:
    """Tell for each wanted attribute whether the found ones match it.

    The values must be equal, or, for attributes of several objects, among those found. The objects of a stack may be
    named by their colours alone.
    """
    stacked = {f"{colour} {shape}" for colour in found.get("colour", ()) for shape in found.get("stack", ())}
    found = found | {"thing": found.get("thing", set()) | stacked}
    multi_valued = MULTI_VALUED if wanted.get("count") != {"1"} else ("appearance", "place")
    return {
        name: values <= found.get(name, set()) if name in multi_valued else values == found.get(name)
        for name, values in wanted.items()
        if name != "relation" or "place" not in wanted  # a caption may give the opposite relation
    }
