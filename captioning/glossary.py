"""What words mean in captions and in prompts, as a file beside the weights of the upsampler that was taught by them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from captioning.lexicon import OPPOSITE, Lexicon, Meaning, verdicts
from captioning.literal import plain
from vae.weights import WeightsError


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
        """Say whether a prompt is plain, in one language."""
        return any(plain(lexicon, prompt) for lexicon in self.prompts.values())

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
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
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
    """Read a lexicon. Raises ValueError or TypeError where it is none."""
    kinds = {"letters": bool, "fillers": list, "objects": list, "phrases": dict}
    if wrong := [name for name, kind in kinds.items() if not isinstance(listed[name], kind)]:
        raise TypeError(f"{wrong[0]} must be a {kinds[wrong[0]].__name__}")
    lexicon = Lexicon(listed["letters"], tuple(listed["fillers"]), tuple(listed["objects"]))
    for meant, phrases in listed["phrases"].items():
        meanings = [(attribute, value) for attribute, value in (one.split("=") for one in meant.split("; ") if one)]
        for attribute, value in meanings:
            if not isinstance(phrases, list) or (attribute == "relation" and value not in OPPOSITE):
                raise ValueError(f"{meant} means nothing")
            if attribute == "stack":
                int(value)
        for phrase in phrases:
            lexicon.add(phrase, *meanings)
    return lexicon
