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
Named = tuple[int, str | None]  # where in a text a thing is spoken of, and its colour and shape if those are said
SEVERAL = ("colour", "shape", "size", "material", "thing", "relation", "place")  # of which a clip may have many
OPPOSITE = {"behind": "in front of", "in front of": "behind", "left of": "right of", "right of": "left of"}
FROM = ("behind", "left of")  # of two relations that say the same of two things, the one that is kept
OF = ("it", "the", "left", "right")  # how a relation ends that says from what: "behind the" ball, "to its left"
BREAKS = (",", ".", "and")  # what parts a thing from a relation that is not said of it
STANDS = "有是着"  # how a relation ends in Chinese where the thing that it is said of comes next


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
        """Say whether every word of a text is known, and something is said by them, of places all."""
        phrases = [(phrase, meanings) for phrase, meanings in self.read(text) if phrase[0].isalnum() or meanings]
        said = [name for _, meanings in phrases for name, _ in meanings]
        placed = len(self.said(text).get("place", ()))
        return bool(said) and said.count("relation") == placed and all(phrase in self.meanings for phrase, _ in phrases)

    def said(self, text: str) -> Said:
        """Read a text: for every attribute that is spoken of, the canonical values it is given.

        "thing" is every colour that is bound to a shape ("red ball"), "place" where one thing stands from another
        ("red ball behind blue cube"), "stack" the shape of those that are only counted ("a tower of two cubes"), and
        "count" the number of things and of those, where none is left without a name.
        """
        found: Said = {}
        phrases = list(self.read(text))
        named: list[Named] = []
        colour, stacked = None, 0
        for place, (phrase, meanings) in enumerate(phrases):
            if not meanings and phrase[0] not in self.fillers:
                colour = None
            if not meanings and "".join(phrase) in self.objects:
                named.append((place, None))
            for attribute, value in meanings:
                if attribute == "stack":
                    stacked = int(value)
                    continue
                found.setdefault(attribute, set()).add(value)
                if attribute == "colour":
                    colour = value
                elif attribute == "shape":
                    name = f"{colour} {value}" if colour else None
                    if name:
                        found.setdefault("thing", set()).add(name)
                    elif stacked and found.setdefault("stack", {value}) == {value}:
                        continue
                    colour, same = None, (one for _, one in named if one and one.endswith(f" {value}"))
                    named.append((place, name or next(same, None)))
        count = len(found.get("thing", ())) + stacked
        if count and all(name for _, name in named):
            found["count"] = {str(count)}
        if places := self._places(phrases, named):
            found["place"] = places
        return found

    def _places(self, phrases: list[Phrase], named: list[Named]) -> set[str]:
        """List which thing stands where from which other: each relation is said of the nearest one before or after it,
        and from the first one of which none is said.
        """
        relations = {at: value for at, (_, means) in enumerate(phrases) for name, value in means if name == "relation"}
        stands = [(value, figure) for at, value in relations.items() if (figure := self._figure(phrases, at, named))]
        figures = {at for _, (at, _) in stands}, {name for _, (_, name) in stands}
        ground = next((name for at, name in named if at not in figures[0] and name not in figures[1]), None)
        return {place_of(figure, value, ground) for value, (_, figure) in stands if figure and ground}

    def _figure(self, phrases: list[Phrase], place: int, named: list[Named]) -> Named | None:
        """Find the thing that a relation is said of."""
        phrase = phrases[place][0]
        before, after = [one for one in named if one[0] < place], [one for one in named if one[0] > place]
        if self.letters:
            nearest = after[:1] if phrase[-1] in STANDS else before[-1:]
        elif before and phrase[-1] in OF and not any(words[0] in BREAKS for words, _ in phrases[before[-1][0] : place]):
            nearest = before[-1:]  # "a ball stands behind the cube"
        else:
            nearest = after[1:] if phrase[-1] == "the" else after  # "behind the cube stands a ball"
        return nearest[0] if nearest else None


def place_of(figure: str, relation: str, ground: str) -> str:
    """Say that a thing stands behind or left of another, also where it is said of the other one."""
    return f"{figure} {relation} {ground}" if relation in FROM else f"{ground} {OPPOSITE[relation]} {figure}"


def verdicts(told: Said, found: Said) -> dict[str, bool]:
    """Say of each attribute that was told whether it is found: the same values, and where there are several things
    these among others: which of several things has a size or material is not compared. Those of a stack may be named
    by their colours alone.
    """
    stacked = {f"{colour} {shape}" for colour in found.get("colour", ()) for shape in found.get("stack", ())}
    found = found | {"thing": found.get("thing", set()) | stacked}
    alone = told.get("count") == {"1"}
    return {
        name: values <= found.get(name, set()) if name in SEVERAL and not alone else values == found.get(name)
        for name, values in told.items()
    }


@dataclass(frozen=True)
class Glossary:
    """What words mean in `captions`, and in prompts of each language."""

    captions: Lexicon
    prompts: dict[str, Lexicon]

    def keeps(self, prompt: str, caption: str) -> bool:
        """Say whether a caption keeps all that a prompt says, as far as their words are known."""
        found = self.captions.said(caption)
        return all(all(verdicts(lexicon.said(prompt), found).values()) for lexicon in self.prompts.values())

    def knows(self, prompt: str) -> bool:
        """Say whether all words of a prompt are known, in one language."""
        return any(lexicon.knows(prompt) for lexicon in self.prompts.values())

    def save(self, path: Path) -> None:
        """Write a file of phrases by their meanings, which `load_glossary` reads."""
        listed = {name: _listed(lexicon) for name, lexicon in self.prompts.items()}
        told = {"captions": _listed(self.captions), "prompts": listed}
        path.write_text(json.dumps(told, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def load_glossary(path: Path) -> Glossary:
    """Read what `Glossary.save` wrote. Raises WeightsError naming the file where it is something else."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        prompts = {str(name): _lexicon(part) for name, part in told["prompts"].items()}
        return Glossary(_lexicon(told["captions"]), prompts)
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
