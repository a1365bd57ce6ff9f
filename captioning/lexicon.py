"""What the phrases of a language mean, and whether one text keeps what another says.

A writer that learned from examples is right most of the time. Where the words are known, what it wrote can be read, and
compared with what was asked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vae.weights import WeightsError

Meaning = tuple[str, str]  # attribute, canonical value
Said = dict[str, set[str]]  # attribute -> the canonical values it is given
Phrase = tuple[tuple[str, ...], frozenset[Meaning]]  # its tokens, and what it means
SEVERAL = ("colour", "shape", "size", "material", "thing", "look", "place", "relation")  # of which a clip may have many
LOOKS = ("size", "material")
OPPOSITE = {"behind": "in front of", "in front of": "behind", "left of": "right of", "right of": "left of"}
FROM = ("behind", "left of")  # of two relations that say the same of two things, the one that is kept
OF = ("it", "the", "left", "right")  # how a relation ends that says from what: "behind the" ball, "to its left"
BREAKS = (",", ".", "and")  # what parts a thing from a relation that is not said of it
STOPS = (".", "。")
STANDS = "有是着"  # how a relation ends in Chinese where the thing that it is said of comes next
ARTICLES = ("a", "an", "the")
UPON = ("on", "onto", "in", "into", "inside", "under", "over", "above", "across", "from", "at", "上", "下", "里", "中")


@dataclass
class Thing:
    """A thing that is spoken of: at which phrase, and what is said of it."""

    at: int
    shape: str | None
    colour: str | None
    number: int  # of those alike, where they are counted
    looks: set[str]

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

    def knows(self, text: str) -> bool:
        """Say whether every word of a text is known and something is said by them, of places all."""
        phrases = list(self.read(text))
        things, said = self._things(phrases), [name for _, meanings in phrases for name, _ in meanings]
        return (
            bool(said)
            and all(phrase in self.meanings or not phrase[0].isalnum() for phrase, _ in phrases)
            and said.count("relation") == len(self._places(phrases, things))
            and not any(self._put(phrases, thing) for thing in things)
        )

    def said(self, text: str) -> Said:
        """Read a text: for every attribute that is spoken of, the canonical values it is given.

        "thing" is every colour that is bound to a shape ("red ball"), "look" what is said of its size and material
        ("large red ball"), "place" where one thing stands from another ("red ball behind blue cube"), "stack" the shape
        of those that are counted ("a tower of two cubes"), and "count" the number of things and of those, where none is
        left without a name.
        """
        phrases = list(self.read(text))
        things = self._things(phrases)
        stacks = {thing.shape: thing.number for thing in reversed(things) if thing.number and thing.shape}
        single = {thing.name for thing in things if thing.name and not thing.number}
        found: Said = {
            "thing": {thing.name for thing in things if thing.name},
            "look": {f"{look} {thing.name}" for thing in things if thing.name for look in thing.looks},
            "place": self._places(phrases, things),
            "stack": set(stacks),
        }
        if all(thing.name or thing.number for thing in things) and (count := len(single) + sum(stacks.values())):
            found["count"] = {str(count)}
        for _, meanings in phrases:
            for attribute, value in meanings:
                if attribute != "stack":
                    found.setdefault(attribute, set()).add(value)
        return {attribute: values for attribute, values in found.items() if values}

    def _things(self, phrases: list[Phrase]) -> list[Thing]:
        """List the things that are spoken of, in order. Looks are those of the next one, or of the last in the
        sentence, or else of the first of all ("it is large").
        """
        things: list[Thing] = []
        colour, number, looks, sentence = None, 0, set(), 0
        for at, (phrase, meanings) in enumerate([*phrases, ((STOPS[0],), frozenset())]):
            if phrase[0] in STOPS:
                for thing in things[sentence:][-1:] or things[:1]:
                    thing.looks |= looks
                looks, sentence = set(), len(things)
            if not meanings:
                colour = colour if phrase[0] in self.fillers else None
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
                    if not colour and not number and (self.letters or (at and phrases[at - 1][0][-1] == "the")):
                        same = [thing for thing in things if thing.shape == value]  # of which it is said again
                        many = self.letters or phrase[-1].endswith("s")
                        same = [thing for thing in same if thing.number and many] or same
                        colour, number = (same[-1].colour, same[-1].number) if same else (None, 0)
                    things.append(Thing(at, value, colour, number, looks))
                    colour, number, looks = None, 0, set()
        return things

    def _places(self, phrases: list[Phrase], things: list[Thing]) -> set[str]:
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

    def _put(self, phrases: list[Phrase], thing: Thing) -> bool:
        """Say whether a thing is where something else is put, as no caption says it: "on a blue cube"."""
        if self.letters:
            return any(phrase in {(word,) for word in UPON} for phrase, _ in phrases[thing.at + 1 : thing.at + 2])
        before = (one for one in reversed(phrases[: thing.at]) if not {*LOOKS, "colour"} & dict(one[1]).keys())
        phrase, meanings = next((one for one in before if one[0][0] not in ARTICLES), ((".",), frozenset()))
        return not meanings and phrase[0] in UPON


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
    }


@dataclass(frozen=True)
class Glossary:
    """What words mean in `captions`, and in prompts of each language; `props` are meanings that bring a wall or the
    like into the picture.
    """

    captions: Lexicon
    prompts: dict[str, Lexicon]
    props: tuple[Meaning, ...] = ()

    def keeps(self, prompt: str, caption: str) -> bool:
        """Say whether a caption keeps all that a prompt says, as far as their words are known, and adds no props."""
        found, told = self.captions.said(caption), [lexicon.said(prompt) for lexicon in self.prompts.values()]
        added = [(name, value) for name, value in self.props if value in found.get(name, ())]
        asked = all(any(value in said.get(name, ()) for said in told) for name, value in added)
        return asked and all(all(verdicts(said, found).values()) for said in told)

    def knows(self, prompt: str) -> bool:
        """Say whether all words of a prompt are known, in one language."""
        return any(lexicon.knows(prompt) for lexicon in self.prompts.values())

    def save(self, path: Path) -> None:
        """Write a file of phrases by their meanings, which `load_glossary` reads."""
        listed = {name: _listed(lexicon) for name, lexicon in self.prompts.items()}
        told = {"captions": _listed(self.captions), "prompts": listed, "props": self.props}
        path.write_text(json.dumps(told, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def load_glossary(path: Path) -> Glossary:
    """Read what `Glossary.save` wrote. Raises WeightsError naming the file where it is something else."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        prompts = {str(name): _lexicon(part) for name, part in told["prompts"].items()}
        props = tuple((str(attribute), str(value)) for attribute, value in told["props"])
        return Glossary(_lexicon(told["captions"]), prompts, props)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise WeightsError(f"{path} must hold the meanings of phrases; it does not ({error!r})") from error


def _listed(lexicon: Lexicon) -> dict:
    phrases: dict[str, list[str]] = {}
    for phrase, meanings in lexicon.meanings.items():
        meant = "; ".join(sorted(f"{attribute}={value}" for attribute, value in meanings))
        phrases.setdefault(meant, []).append(("" if lexicon.letters else " ").join(phrase))
    return {
        "letters": lexicon.letters,
        "fillers": lexicon.fillers,
        "objects": lexicon.objects,
        "phrases": phrases,
    }


def _lexicon(listed: dict) -> Lexicon:
    lexicon = Lexicon(bool(listed["letters"]), tuple(listed["fillers"]), tuple(listed["objects"]))
    for meant, phrases in listed["phrases"].items():
        meanings = [(attribute, value) for attribute, value in (one.split("=") for one in meant.split("; ") if one)]
        for phrase in phrases:
            lexicon.add(phrase, *meanings)
    return lexicon
