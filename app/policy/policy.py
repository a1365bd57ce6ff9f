"""Content policies: which prompts and clips the owner of a machine allows.

`off` is for the owner's own use and keeps one rule: no sexual content with minors. `standard` refuses what most hosts
forbid, `strict` also what a school or a company would. Prompts are matched against the words and patterns in
`policies.toml`, English and Chinese; an error names the rule that matched. Generated clips are checked by an image
classifier where one is configured, and not at all otherwise.

Word lists are a deterrent, not a guarantee. They favour precision over recall: "grape", "a shooting star" and "a
bomb-shaped cake" pass, but so do paraphrases, other languages and unknown names. Negation is not understood: unwanted
content belongs in the negative prompt, which is not checked unless the guidance is below 1 and so steers towards it.
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

from app.policy.errors import PolicyError
from dit.request import Request, RequestError, check_lengths

if TYPE_CHECKING:
    from torch import Tensor

    from app.policy.classifier import Classifier

OFF, STANDARD, STRICT = POLICIES = ("off", "standard", "strict")
RULES_FILE = Path(__file__).parent / "policies.toml"
MAX_QUOTED_CHARS = 60  # of the matched text, in an error

# Letters of other scripts that look like Latin ones, and digits and signs that are typed in their place.
HOMOGLYPHS = str.maketrans("абвеіјкмнорѕстухԁԛѡαβεικνορτυχɡıł", "abbeijkmhopsctyxdqwabeikvoptuxgil")
LEETSPEAK = str.maketrans("013457@$!|", "oieastasii")
SPACED_LETTERS = re.compile(
    r"(?<![a-z0-9@$])(?:[a-z0-9@$][ .*·,]{1,2}){2,}[a-z0-9@$](?![a-z0-9@$])"
)  # n u d e, n.u.d.e
HAN_SEPARATORS = re.compile(r"(?<=[㐀-鿿])[\s.*·_-]{1,2}(?=[㐀-鿿])")


@dataclass(frozen=True)
class Rule:
    """One rule of `policies.toml`: the weakest policy that applies it, its reason, and the patterns it matches."""

    name: str
    policy: str
    why: str
    words: re.Pattern[str]
    cased: re.Pattern[str]
    exceptions: re.Pattern[str]
    requires: str | None = None

    def find(self, text: str) -> str | None:
        """Return the part of a text that matches this rule, None where nothing does."""
        for variant in normalized_variants(text):
            if match := self.words.search(self.exceptions.sub(".", variant)):
                return match[0]
        match = self.cased.search(self.exceptions.sub(".", " ".join(text.split())))
        return match[0] if match else None


@cache
def rules() -> dict[str, Rule]:
    """Load the rules by name, in the order of the file."""
    loaded = {}
    for entry in tomllib.loads(RULES_FILE.read_text("utf-8"))["rules"]:
        words = f"(?<![a-z0-9])(?:{_alternatives(entry.get('words'))})(?![a-z0-9])|{_alternatives(entry.get('han'))}"
        cased, exceptions = _alternatives(entry.get("cased")), _alternatives(entry.get("except"))
        patterns = re.compile(words), re.compile(cased), re.compile(exceptions)
        loaded[entry["name"]] = Rule(entry["name"], entry["from"], entry["why"], *patterns, entry.get("needs"))
    return loaded


def _alternatives(patterns: list[str] | None) -> str:
    return "|".join(patterns or ["(?!)"])  # (?!) matches nothing


@lru_cache(maxsize=64)
def normalized_variants(text: str) -> tuple[str, ...]:
    """Return the readings of a text to match: lower case, without accents, and with common obfuscations undone."""
    plain = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", text).casefold())
    plain = "".join(letter for letter in plain if unicodedata.category(letter) not in ("Mn", "Cf"))
    plain = re.sub(r"[\s_/‐-―-]+", " ", HAN_SEPARATORS.sub("", plain.translate(HOMOGLYPHS))).strip()
    joined = SPACED_LETTERS.sub(_join_letters, plain)
    decoded = re.sub(r"[a-z0-9@$!|]+", _decode_leetspeak, joined)
    squeezed = (re.sub(r"([a-z])\1{2,}", kept, decoded) for kept in (r"\1", r"\1\1"))  # NUUUDE, NUUDE
    return tuple(dict.fromkeys((plain, joined, decoded, *squeezed)))


def _join_letters(match: re.Match[str]) -> str:
    """Join a word spelled letter by letter; its first letter may be a word of its own, "a" or "i"."""
    word = re.sub(r"[ .*·,]", "", match[0])
    return f"{word} {word[1:]}" if word[0] in "ai" else word


def _decode_leetspeak(match: re.Match[str]) -> str:
    """Replace digits and signs in a word with letters by the letters they look like."""
    word = match[0]
    return word.rstrip("!|").translate(LEETSPEAK) if re.search("[a-z]", word) else word


def check_prompt(request: Request, policy: str) -> None:
    """Raise PolicyError, naming the rule that matched, where a policy refuses the texts of a request.

    The prompt, the upsampled prompt and the prompt of every moment are checked; the negative prompt only where the
    guidance is below 1 and so steers towards it. Raises RequestError for texts that no model can take.
    """
    check_lengths(request)
    strictness = _strictness(policy)
    texts = {"prompt": request.prompt, "upsampled prompt": request.upsampled_prompt or ""}
    texts |= {f"moment at {moment.at:g} s": moment.prompt for moment in request.moments or ()}
    if request.guidance is not None and not request.guidance >= 1:
        texts["negative prompt, which a guidance below 1 steers towards"] = request.negative_prompt or ""
    for rule in rules().values():
        if POLICIES.index(rule.policy) > strictness:
            continue
        matches = ((field, match) for field, text in texts.items() if text and (match := rule.find(text)))
        field, match = next(matches, (None, ""))
        if field and (rule.requires is None or any(rules()[rule.requires].find(text) for text in texts.values())):
            quoted = match if len(match) <= MAX_QUOTED_CHARS else f"{match[:MAX_QUOTED_CHARS]}..."
            raise _refusal(policy, rule.name, rule.why, f"got {quoted!r} in the {field}; ask for something else")


def check_frames(frames: Tensor, policy: str, classifier: Classifier | None) -> None:
    """Raise PolicyError, naming the label, where the classifier finds refused content in frames (3, F, Y, X), [-1, 1].

    Nothing is checked without a classifier or under `off`. `strict` halves the classifier's threshold.
    """
    if classifier is None or not _strictness(policy):
        return
    threshold = classifier.threshold / (2 if policy == STRICT else 1)
    label, probability = classifier.worst(frames)
    if probability >= threshold:
        got = (
            f"got a frame with probability {probability:.0%} by {classifier.name}, the threshold being {threshold:.0%}"
        )
        raise _refusal(policy, label, "refused by the classifier", f"{got}; ask for something else")


def _refusal(policy: str, rule: str, why: str, got: str) -> PolicyError:
    error = PolicyError(f"policy {policy}, rule {rule}: {why}; {got}")
    error.rule = rule
    return error


def _strictness(policy: str) -> int:
    if policy not in POLICIES:
        raise PolicyError(f"a policy must be one of {', '.join(POLICIES)}; got {policy!r}")
    return POLICIES.index(policy)


@dataclass(frozen=True)
class ContentPolicy:
    """The owner's policy for prompts, and the classifier that checks clips, if any."""

    policy: str = OFF
    classifier: Classifier | None = None

    def check_requests(self, *requests: Request) -> None:
        """Raise PolicyError for the first request that the policy refuses."""
        for request in requests:
            check_prompt(request, self.policy)

    def check_clip(self, chunks: Iterable[Tensor], fps: float) -> Iterator[Tensor]:
        """Yield the chunks (3, F, Y, X) of a clip, classifying one frame a second, and the first and last frames.

        Raises PolicyError instead of yielding a chunk with refused content. A last frame that is not on a full second
        is classified after its chunk was yielded.
        """
        if self.classifier is None:
            yield from chunks
            return
        interval, before, last = max(1, round(fps)), 0, None
        for chunk in chunks:
            frames = chunk.shape[1]
            sampled = [n for n in range(frames) if (before + n) % interval == 0]
            if sampled:
                check_frames(chunk[:, sampled], self.policy, self.classifier)
            before, last = before + frames, None if frames - 1 in sampled else chunk[:, -1:]
            yield chunk
        if last is not None:
            check_frames(last, self.policy, self.classifier)


def refusal_reason(request: Request | None, policy: str) -> str | None:
    """Return why a policy refuses a request, None where it does not."""
    try:
        return check_prompt(request, policy) if request else None
    except (PolicyError, RequestError) as error:
        return str(error)


def add_policy_flags(parser: argparse.ArgumentParser, default: str = OFF) -> None:
    """Add the policy flags to a command's parser."""
    reason = "for your own use" if default == OFF else "for others' requests"
    parser.add_argument(
        "--policy", choices=POLICIES, default=default, help=f"content policy for prompts (default {default}: {reason})"
    )
    parser.add_argument(
        "--classifier", metavar="NAME", help="check clips with this transformers image classifier (name or folder)"
    )
    parser.add_argument("--refuse", nargs="+", metavar="LABEL", help="labels of the classifier to refuse")
    parser.add_argument("--threshold", type=float, default=0.5, help="the classifier's threshold, 0 to 1 (default 0.5)")


def policy_from_flags(flags: argparse.Namespace) -> ContentPolicy:
    """Return the policy that a command's flags describe; raises PolicyError where they contradict each other."""
    _check_flags(flags)
    if flags.classifier is None:
        return ContentPolicy(flags.policy)
    from app.policy.classifier import Classifier

    return ContentPolicy(flags.policy, Classifier(flags.classifier, flags.refuse, flags.threshold))


def _check_flags(flags: argparse.Namespace) -> None:
    if flags.classifier is None and flags.refuse:
        raise PolicyError("labels to refuse need a classifier; got none, so give --classifier")
    if flags.classifier is not None and flags.policy == OFF:
        raise PolicyError("a classifier needs a policy; got off, so give --policy standard or strict")


def policy_arguments(flags: argparse.Namespace) -> list[str]:
    """Return the policy flags as command-line arguments for a child process; raises as `policy_from_flags` does."""
    _check_flags(flags)
    arguments = ["--policy", flags.policy, "--threshold", str(flags.threshold)]
    arguments += ["--classifier", flags.classifier] if flags.classifier else []
    return arguments + (["--refuse", *flags.refuse] if flags.refuse else [])
