"""The words of the studio's page, in every language that it speaks."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from pathlib import Path

WORDS = Path(__file__).with_name("translations.toml")
LANGUAGES = ("en", "zh")  # in the order in which a line of the file has them
GAP = re.compile(r"\{(\w+)\}")  # where a value goes into a sentence


@cache
def read_words(path: Path = WORDS) -> dict[str, dict[str, str]]:
    """Read the words of each language by their names, such as compose.make.

    Raises ValueError for a name that a language has no words for, or words with other gaps than those of the first.
    """
    found: dict[str, dict[str, str]] = {language: {} for language in LANGUAGES}
    for group, lines in tomllib.loads(path.read_text(encoding="utf-8")).items():
        for name, told in lines.items():
            if len(told) != len(LANGUAGES) or not all(told):
                raise ValueError(f"{group}.{name} must be told in {' and '.join(LANGUAGES)}; got {told!r}")
            if any(sorted(GAP.findall(words)) != sorted(GAP.findall(told[0])) for words in told):
                raise ValueError(f"{group}.{name} must have the same gaps in every language; got {told!r}")
            for language, words in zip(LANGUAGES, told, strict=True):
                found[language][f"{group}.{name}"] = words
    return found
