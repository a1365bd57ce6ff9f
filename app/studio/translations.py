"""Read the texts of the studio's page in every language of its interface."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from pathlib import Path

TRANSLATIONS = Path(__file__).with_name("translations.toml")
LANGUAGES = ("en", "zh")  # in the order of the texts in a line of the file
PLACEHOLDER = re.compile(r"\{(\w+)\}")  # replaced by a value


@cache
def read_translations(path: Path = TRANSLATIONS) -> dict[str, dict[str, str]]:
    """Read the texts as {language: {key: text}}; a key is a group and a name, such as compose.title.

    Raises ValueError for a key without a text in each language, and where the placeholders of the languages differ.
    """
    translations: dict[str, dict[str, str]] = {language: {} for language in LANGUAGES}
    for group, lines in tomllib.loads(path.read_text(encoding="utf-8")).items():
        for name, texts in lines.items():
            if len(texts) != len(LANGUAGES) or not all(texts):
                raise ValueError(f"{group}.{name} must have a text in {' and '.join(LANGUAGES)}; got {texts!r}")
            if any(sorted(PLACEHOLDER.findall(text)) != sorted(PLACEHOLDER.findall(texts[0])) for text in texts):
                raise ValueError(f"{group}.{name} must have the same placeholders in every language; got {texts!r}")
            for language, text in zip(LANGUAGES, texts, strict=True):
                translations[language][f"{group}.{name}"] = text
    return translations
