"""The lexicons of captions and prompts that verify an upsampler's output, stored as a file in its folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from captioning.lexicon import OPPOSITE, Lexicon, Meaning, match_attributes
from captioning.literal import is_literal
from vae.weights import WeightsError

# Attributes that a caption may add without a contradiction, in the order in which the studio names them.
ADDABLE = ("size", "material", "direction", "speed", "camera", "ground", "wetness", "sky", "time")


@dataclass(frozen=True)
class LexiconSet:
    """Lexicons of `captions`, and of `prompts` by language.

    `props` are the meanings that imply a visible prop, such as a wall, which a caption must not add.
    """

    captions: Lexicon
    prompts: dict[str, Lexicon]
    props: tuple[Meaning, ...] = ()

    def is_faithful(self, prompt: str, caption: str) -> bool:
        """Tell whether a caption keeps all attributes of a prompt, as far as the words are known, and adds no props."""
        found = self.captions.read_attributes(caption)
        readings = [lexicon.read_attributes(prompt) for lexicon in self.prompts.values()]
        added = [(name, value) for name, value in self.props if value in found.get(name, ())]
        wanted = all(any(value in reading.get(name, ()) for reading in readings) for name, value in added)
        return wanted and all(all(match_attributes(reading, found).values()) for reading in readings)

    def is_literal(self, prompt: str) -> bool:
        """Tell whether the lexicon of one of the languages can be trusted to read a prompt."""
        return any(is_literal(lexicon, prompt) for lexicon in self.prompts.values())

    def added(self, prompt: str, caption: str) -> dict[str, str]:
        """Return the attributes that a caption adds to a prompt, each with its value."""
        found = self.captions.read_attributes(caption)
        asked = {name for lexicon in self.prompts.values() for name in lexicon.read_attributes(prompt)}
        return {name: ", ".join(sorted(found[name])) for name in ADDABLE if name in found and name not in asked}

    def save(self, path: Path) -> None:
        """Write the JSON file that `load_lexicon_set` reads: phrases by their meanings."""
        prompts = {name: _to_json(lexicon) for name, lexicon in self.prompts.items()}
        tables = {"captions": _to_json(self.captions), "prompts": prompts, "props": self.props}
        path.write_text(json.dumps(tables, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def load_lexicon_set(path: Path) -> LexiconSet:
    """Read a file that `LexiconSet.save` wrote. Raises WeightsError naming the file if it is anything else."""
    try:
        tables = json.loads(path.read_text(encoding="utf-8"))
        prompts = {str(name): _from_json(part) for name, part in tables["prompts"].items()}
        props = tuple((str(attribute), str(value)) for attribute, value in tables["props"])
        return LexiconSet(_from_json(tables["captions"]), prompts, props)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise WeightsError(f"{path} must hold the meanings of phrases; it does not ({error!r})") from error


def _to_json(lexicon: Lexicon) -> dict:
    phrases: dict[str, list[str]] = {}
    for phrase, meanings in lexicon.meanings.items():
        key = "; ".join(sorted(f"{attribute}={value}" for attribute, value in meanings))
        phrases.setdefault(key, []).append(("" if lexicon.per_character else " ").join(phrase))
    return {
        "letters": lexicon.per_character,
        "fillers": lexicon.fillers,
        "objects": lexicon.objects,
        "phrases": phrases,
    }


def _from_json(table: dict) -> Lexicon:
    """Read a lexicon. Raises ValueError or TypeError if the table is none."""
    types = {"letters": bool, "fillers": list, "objects": list, "phrases": dict}
    if wrong := [name for name, kind in types.items() if not isinstance(table[name], kind)]:
        raise TypeError(f"{wrong[0]} must be a {types[wrong[0]].__name__}")
    lexicon = Lexicon(table["letters"], tuple(table["fillers"]), tuple(table["objects"]))
    for key, phrases in table["phrases"].items():
        meanings = [(attribute, value) for attribute, value in (one.split("=") for one in key.split("; ") if one)]
        for attribute, value in meanings:
            if not isinstance(phrases, list) or (attribute == "relation" and value not in OPPOSITE):
                raise ValueError(f"{key} means nothing")
            if attribute == "stack":
                int(value)
        for phrase in phrases:
            lexicon.add(phrase, *meanings)
    return lexicon
