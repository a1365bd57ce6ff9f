"""Policies: what prompts may ask for and clips may show, by the choice of whoever owns the machine.

`off` is for one's own machine: it leaves the one rule that always holds, no sexual content with minors. `standard`
refuses what most hosts forbid, `strict` also what a school or a company would. The rules for prompts are words and
patterns in `policies.toml`, English and Chinese, and a find is named; made clips are looked at by an image classifier
where one is chosen, and by nobody else.

A list of words is a fence, not a wall. It leans to precision: "grape", "a shooting star" and "a bomb-shaped cake" pass,
and so does what is asked for in a roundabout way or in another language, and any name it does not know. It does not
understand "no" either: what is unwanted belongs into the negative prompt, which nobody minds, unless the guidance is
below 1 and so leads towards it.
"""

from __future__ import annotations

import argparse
import re
import tomllib
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from dit.request import Request

if TYPE_CHECKING:
    from torch import Tensor

    from app.policy.classifier import Classifier

OFF, STANDARD, STRICT = POLICIES = ("off", "standard", "strict")
LISTS = Path(__file__).parent / "policies.toml"
MOST_SHOWN = 60  # letters of what was found that a sentence repeats

# Letters of other scripts that look like Latin ones, and signs that are typed for them.
TWINS = str.maketrans("абвеіјкмнорѕстухԁԛѡαβεικνορτυχɡıł", "abbeijkmhopsctyxdqwabeikvoptuxgil")
SIGNS = str.maketrans("013457@$!|", "oieastasii")
SPELT = re.compile(r"(?<![a-z0-9@$])(?:[a-z0-9@$][ .*·,]{1,2}){2,}[a-z0-9@$](?![a-z0-9@$])")  # n u d e, n.u.d.e
BETWEEN_HAN = re.compile(r"(?<=[㐀-鿿])[\s.*·_-]{1,2}(?=[㐀-鿿])")


class PolicyError(ValueError):
    """A prompt or a clip that a policy refuses; `rule` is the name of the rule that fired."""

    rule = ""


@dataclass(frozen=True)
class Rule:
    """One rule: from which policy on it holds, why, and what it seeks, as in `policies.toml`."""

    name: str
    policy: str
    why: str
    words: re.Pattern[str]
    cased: re.Pattern[str]
    exempt: re.Pattern[str]
    needs: str | None = None

    def find(self, text: str) -> str | None:
        """Return what fires this rule in a text, if anything does."""
        for view in views(text):
            if found := self.words.search(self.exempt.sub(".", view)):
                return found[0]
        found = self.cased.search(self.exempt.sub(".", " ".join(text.split())))
        return found[0] if found else None


@cache
def rules() -> dict[str, Rule]:
    """Read the rules, by name, in their order."""
    found = {}
    for rule in tomllib.loads(LISTS.read_text("utf-8"))["rules"]:
        words = f"(?<![a-z0-9])(?:{_any(rule.get('words'))})(?![a-z0-9])|{_any(rule.get('han'))}"
        patterns = (re.compile(words), re.compile(_any(rule.get("cased"))), re.compile(_any(rule.get("except"))))
        found[rule["name"]] = Rule(rule["name"], rule["from"], rule["why"], *patterns, rule.get("needs"))
    return found


def _any(patterns: list[str] | None) -> str:
    return "|".join(patterns or ["(?!)"])  # the latter matches nothing


@lru_cache(maxsize=64)
def views(text: str) -> tuple[str, ...]:
    """Return a text as it may be meant: in small letters without accents, and with what hides words undone."""
    plain = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", text).casefold())
    plain = "".join(letter for letter in plain if unicodedata.category(letter) not in ("Mn", "Cf"))
    plain = re.sub(r"[\s_/‐-―-]+", " ", BETWEEN_HAN.sub("", plain.translate(TWINS))).strip()
    joined = SPELT.sub(_joined, plain)
    lettered = re.sub(r"[a-z0-9@$!|]+", _lettered, joined)
    squeezed = (re.sub(r"([a-z])\1{2,}", kept, lettered) for kept in (r"\1", r"\1\1"))
    return tuple(dict.fromkeys((plain, joined, lettered, *squeezed)))


def _joined(found: re.Match[str]) -> str:
    """Write a word that was spelt as one; what begins it may be a word of its own, a or i."""
    word = re.sub(r"[ .*·,]", "", found[0])
    return f"{word} {word[1:]}" if word[0] in "ai" else word


def _lettered(found: re.Match[str]) -> str:
    """Read signs among letters as the letters that they look like."""
    word = found[0]
    return word.rstrip("!|").translate(SIGNS) if re.search("[a-z]", word) else word


def check_prompt(request: Request, policy: str) -> None:
    """Raise PolicyError, naming the rule that fired, where a policy refuses what a request asks for.

    Looks at the prompt, what was written of it and every moment; at the negative prompt only where the guidance leads
    towards it.
    """
    strictness = _strictness(policy)
    texts = {"prompt": request.prompt, "written prompt": request.written or ""}
    texts |= {f"moment at {moment.at:g} s": moment.prompt for moment in request.moments or ()}
    if request.guidance is not None and not request.guidance >= 1:
        texts["negative prompt, which a guidance below 1 leads to"] = request.negative or ""
    for rule in rules().values():
        if POLICIES.index(rule.policy) > strictness:
            continue
        finds = ((place, found) for place, text in texts.items() if text and (found := rule.find(text)))
        place, found = next(finds, (None, ""))
        if place and (rule.needs is None or any(rules()[rule.needs].find(text) for text in texts.values())):
            shown = found if len(found) <= MOST_SHOWN else f"{found[:MOST_SHOWN]}..."
            raise _refusal(policy, rule.name, rule.why, f"got {shown!r} in the {place}; ask for something else")


def check_output(frames: Tensor, policy: str, classifier: Classifier | None) -> None:
    """Raise PolicyError, naming what was seen, where a policy refuses to keep frames (3, F, Y, X) in [-1, 1].

    Without a classifier, or under `off`, nothing is looked at. `strict` wants half the certainty.
    """
    if classifier is None or not _strictness(policy):
        return
    threshold = classifier.threshold / (2 if policy == STRICT else 1)
    label, share = classifier.worst(frames)
    if share >= threshold:
        got = f"got a frame that {classifier.name} is {share:.0%} sure of, {threshold:.0%} being enough"
        raise _refusal(policy, label, "as a classifier sees it", f"{got}; ask for something else")


def _refusal(policy: str, rule: str, why: str, got: str) -> PolicyError:
    error = PolicyError(f"policy {policy}, rule {rule}: {why}; {got}")
    error.rule = rule
    return error


def _strictness(policy: str) -> int:
    if policy not in POLICIES:
        raise PolicyError(f"a policy must be one of {', '.join(POLICIES)}; got {policy!r}")
    return POLICIES.index(policy)


@dataclass(frozen=True)
class Watch:
    """What the owner of a machine lets pass: a policy, and a classifier to look at clips, if any."""

    policy: str = OFF
    classifier: Classifier | None = None

    def read(self, *requests: Request) -> None:
        """Raise PolicyError for the first request that may not be made."""
        for request in requests:
            check_prompt(request, self.policy)

    def look(self, pieces: Iterable[Tensor], fps: float) -> Iterator[Tensor]:
        """Let the pieces (3, F, Y, X) of a clip pass while about one frame a second is looked at, the first and the
        last among them; raises PolicyError in place of the piece that may not be kept.
        """
        if self.classifier is None:
            yield from pieces
            return
        every, seen, last = max(1, round(fps)), 0, None
        for piece in pieces:
            frames = piece.shape[1]
            looked = [n for n in range(frames) if (seen + n) % every == 0]
            if looked:
                check_output(piece[:, looked], self.policy, self.classifier)
            seen, last = seen + frames, None if frames - 1 in looked else piece[:, -1:]
            yield piece
        if last is not None:
            check_output(last, self.policy, self.classifier)


def refused(request: Request | None, policy: str) -> str | None:
    """Return why a policy refuses a request, None where it does not."""
    try:
        return check_prompt(request, policy) if request else None
    except PolicyError as error:
        return str(error)


def add_policy(command: argparse.ArgumentParser, default: str = OFF) -> None:
    """Add the flags of a policy to a command."""
    whose = "this is your machine" if default == OFF else "others ask here"
    command.add_argument(
        "--policy", choices=POLICIES, default=default, help=f"what may not be asked for (default {default}: {whose})"
    )
    command.add_argument(
        "--classifier", metavar="NAME", help="an image classifier of transformers, by name or folder, to look at clips"
    )
    command.add_argument("--refuse", nargs="+", metavar="LABEL", help="its labels that may not be seen")
    command.add_argument("--threshold", type=float, default=0.5, help="how sure it must be, 0 to 1 (default 0.5)")


def watch_of(chosen: argparse.Namespace) -> Watch:
    """Return what a command's flags ask for; raises PolicyError where they do not fit together."""
    _check_flags(chosen)
    if chosen.classifier is None:
        return Watch(chosen.policy)
    from app.policy.classifier import Classifier

    return Watch(chosen.policy, Classifier(chosen.classifier, chosen.refuse, chosen.threshold))


def _check_flags(chosen: argparse.Namespace) -> None:
    if chosen.classifier is None and chosen.refuse:
        raise PolicyError("labels to refuse are a classifier's; got none, so give --classifier")
    if chosen.classifier is not None and chosen.policy == OFF:
        raise PolicyError("a classifier serves a policy; got off, so give --policy standard or strict")


def words_of(chosen: argparse.Namespace) -> list[str]:
    """Return the flags of a policy as another process of longtake is to be given them; raises PolicyError as
    `watch_of` does.
    """
    _check_flags(chosen)
    words = ["--policy", chosen.policy, "--threshold", str(chosen.threshold)]
    words += ["--classifier", chosen.classifier] if chosen.classifier else []
    return words + (["--refuse", *chosen.refuse] if chosen.refuse else [])
