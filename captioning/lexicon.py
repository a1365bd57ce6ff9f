"""What the phrases of a language mean, and whether one text keeps what another says.

A writer that learned from examples is right most of the time. Where the words are known, what it wrote can be read, and
compared with what was asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

Meaning = tuple[str, str]  # attribute, canonical value
Said = dict[str, set[str]]  # attribute -> the canonical values it is given
Phrase = tuple[tuple[str, ...], frozenset[Meaning]]  # its tokens, and what it means
# Of which a clip may have many.
SEVERAL = ("colour", "shape", "size", "material", "thing", "look", "place", "struck", "relation")
LOOKS = ("size", "material")
OPPOSITE = {"behind": "in front of", "in front of": "behind", "left of": "right of", "right of": "left of"}
FROM = ("behind", "left of")  # of two relations that say the same of two things, the one that is kept
OF = ("it", "the", "left", "right")  # how a relation ends that says from what: "behind the" ball, "to its left"
BREAKS = (",", "，", ".", "。", "and")  # what parts a thing from a relation that is not said of it
STOPS = (".", "。")
STANDS = "有是着"  # how a relation ends in Chinese where the thing that it is said of comes next
NEW = ("a", "an", "one", "another", "一个", "一只")  # what comes before a thing that was not spoken of yet


@dataclass
class Thing:
    """A thing that is spoken of: at which phrase, and what is said of it."""

    at: int
    shape: str | None
    colour: str | None
    number: int  # of those alike, where they are counted
    looks: set[str]
    again: bool = False  # it was spoken of before

    @property
    def name(self) -> str | None:
        return f"{self.colour} {self.shape}" if self.colour and self.shape else None


class Lexicon:
    """A dictionary from phrases to meanings, which may be none, read by longest match: of words, or of `letters` where
    a language puts nothing between words. `fillers` may stand between a colour and its shape, and `objects`
    stand for a thing, and do not say which.
    """

    def __init__(self, letters: bool = False, fillers: tuple[str, ...] = (), objects: tuple[str, ...] = ("object",)):
        self.letters, self.fillers, self.objects = letters, fillers, objects
        self.meanings: dict[tuple[str, ...], frozenset[Meaning]] = {}
        self.longest: dict[str, int] = {}  # how long the longest phrase with this first token is

    def split(self, text: str) -> list[str]:
        """Cut a text into its letters, or into lower-case words, hyphens kept, and punctuation marks."""
        if self.letters:
            return [letter for letter in text if not letter.isspace()]
        return re.findall(r"[a-z]+(?:-[a-z]+)*|[^a-z\s]", text.lower())

    def add(self, phrase: str, *meanings: Meaning) -> None:
        """Give a phrase its meanings. Raises ValueError where it already means something else."""
        tokens = tuple(self.split(phrase))
        known = self.meanings.setdefault(tokens, frozenset(meanings))
        if known != frozenset(meanings):
            both = f"{sorted(known)} and {sorted(meanings)}"
            raise ValueError(f"a phrase must have one meaning; {phrase!r} has {both}: change one of the phrases")
        self.longest[tokens[0]] = max(self.longest.get(tokens[0], 1), len(tokens))

    def read(self, text: str) -> Iterator[Phrase]:
        """Yield the text's phrases in order with their meanings; a token that the lexicon does not know has none."""
        tokens = self.split(text)
        start = 0
        while start < len(tokens):
            ends = range(min(len(tokens), start + self.longest.get(tokens[start], 1)), start, -1)
            phrase = next((p for end in ends if (p := tuple(tokens[start:end])) in self.meanings), (tokens[start],))
            yield phrase, self.meanings.get(phrase, frozenset())
            start += len(phrase)

    def said(self, text: str) -> Said:
        """Read a text: for every attribute that is spoken of, the canonical values it is given.

        "thing" is every colour that is bound to a shape ("red ball"), "look" what is said of its size and material
        ("large red ball"), "place" where one thing stands from another ("red ball behind blue cube"), "struck" the one
        that another one hits, "stack" the shape of those that are counted ("a tower of two cubes"), and "count" the
        number of things and of those, where none of several is left without a name.
        """
        phrases = list(self.read(text))
        things = self.things(phrases)
        first = [thing for thing in things if not thing.again]
        found: Said = {
            "thing": {thing.name for thing in things if thing.name},
            "look": {f"{look} {thing.name}" for thing in things if thing.name for look in thing.looks},
            "place": self.places(phrases, things),
            "struck": self._struck(phrases, things),
            "stack": {thing.shape for thing in first if thing.number and thing.shape},
        }
        if first and (len(first) == 1 or all(thing.name or thing.number for thing in first)):
            found["count"] = {str(sum(thing.number or 1 for thing in first))}
        for _, meanings in phrases:
            for attribute, value in meanings:
                if attribute != "stack":
                    found.setdefault(attribute, set()).add(value)
        return {attribute: values for attribute, values in found.items() if values}

    def things(self, phrases: list[Phrase]) -> list[Thing]:
        """List the things that are spoken of, in order. Looks are those of the next one, or of the last in the
        sentence, or else of the first of all ("it is large").
        """
        things: list[Thing] = []
        colour, number, looks, sentence, article = None, 0, set(), 0, ""
        for at, (phrase, meanings) in enumerate([*phrases, ((STOPS[0],), frozenset())]):
            if phrase[0] in STOPS:
                for thing in things[sentence:][-1:] or things[:1]:
                    thing.looks |= looks
                looks, sentence = set(), len(things)
            if not meanings:
                colour = colour if phrase[0] in self.fillers else None
                if phrase[0] not in self.fillers:
                    article = (article + "".join(phrase))[-2:] if self.letters else phrase[-1]
                if "".join(phrase) in self.objects:
                    things.append(Thing(at, None, None, 0, looks))
                    looks = set()
            for attribute, value in meanings:
                if attribute == "stack":
                    number = int(value)
                elif attribute == "colour":
                    colour = value
                elif attribute in LOOKS:
                    looks.add(value)
                elif attribute == "shape":
                    same = [] if number or article in NEW else [one for one in things if one.shape == value]
                    if colour:
                        same = [one for one in same if one.colour == colour]
                    elif self.letters or article == "the":
                        many = self.letters or phrase[-1].endswith("s")
                        same = [one for one in same if one.number and many] or same
                        colour, number = (same[-1].colour, same[-1].number) if same else (None, number)
                    else:
                        same = []
                    things.append(Thing(at, value, colour, number, looks, bool(same)))
                    colour, number, looks = None, 0, set()
            if meanings and not {"colour", *LOOKS} & dict(meanings).keys():
                article = phrase[-1]
        return things

    def places(self, phrases: list[Phrase], things: list[Thing]) -> set[str]:
        """List which thing stands where from which other: each relation is said of the nearest one before or after it,
        and from the first one of which none is said.
        """
        things = [thing for thing in things if not thing.number]
        relations = [
            (at, value) for at, (_, means) in enumerate(phrases) for name, value in means if name == "relation"
        ]
        stands = [(value, figure) for at, value in relations if (figure := self._figure(phrases, at, things))]
        figures, names = [figure.at for _, figure in stands], [figure.name for _, figure in stands if figure.name]
        ground = next((thing.name for thing in things if thing.at not in figures and thing.name not in names), None)
        return {place_of(figure.name, value, ground) for value, figure in stands if figure.name and ground}

    def _figure(self, phrases: list[Phrase], at: int, things: list[Thing]) -> Thing | None:
        """Find the thing that a relation is said of."""
        phrase = phrases[at][0]
        before, after = [thing for thing in things if thing.at < at], [thing for thing in things if thing.at > at]
        if self.letters:
            nearest = after[:1] if phrase[-1] in STANDS else before[-1:]
        elif before and phrase[-1] in OF and not any(words[0] in BREAKS for words, _ in phrases[before[-1].at : at]):
            nearest = before[-1:]  # "a ball stands behind the cube"
        else:
            nearest = after[1:] if phrase[-1] == "the" else after  # "behind the cube stands a ball"
        return nearest[0] if nearest else None

    def _struck(self, phrases: list[Phrase], things: list[Thing]) -> set[str]:
        """Name what is hit, which comes next."""
        hits = [at for at, (_, meanings) in enumerate(phrases) if ("event", "collide") in meanings]
        next_of = (next((thing for thing in things if thing.at > at), None) for at in hits)
        pairs = zip(hits, next_of, strict=True)
        near = [one for at, one in pairs if one and not any(words[0] in BREAKS for words, _ in phrases[at : one.at])]
        return {thing.name for thing in near if thing.name}


def place_of(figure: str, relation: str, ground: str) -> str:
    """Say that a thing stands behind or left of another, also where it is said of the other one."""
    return f"{figure} {relation} {ground}" if relation in FROM else f"{ground} {OPPOSITE[relation]} {figure}"


def verdicts(told: Said, found: Said) -> dict[str, bool]:
    """Say of each attribute that was told whether it is found: the same values, and where there are several things
    these among others. Those of a stack may be named by their colours alone.
    """
    stacked = {f"{colour} {shape}" for colour in found.get("colour", ()) for shape in found.get("stack", ())}
    found = found | {"thing": found.get("thing", set()) | stacked}
    several = SEVERAL if told.get("count") != {"1"} else ("look", "place")
    return {
        name: values <= found.get(name, set()) if name in several else values == found.get(name)
        for name, values in told.items()
        if name != "relation" or "place" not in told  # which may say it the other way round
    }
