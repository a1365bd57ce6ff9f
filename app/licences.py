"""The licences of models: what a model folder says of its own, and the limits of those that have any."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import yaml

CARD = "README.md"  # the model card, with metadata at its top
LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE")
UNKNOWN = "unknown"
MAX_CARD_BYTES = 1_000_000

# Limits of licences, as their texts say; the first pattern that a licence's name or link holds applies.
LIMITS: tuple[tuple[str, str], ...] = (
    (r"minimax", "not for use in the EU, the UK, South Korea and the USA"),
    (r"hunyuan", "not for use in the EU, the UK and South Korea; more than 100 million users need another licence"),
    (r"ltx", "above 10 million US dollars of yearly revenue, commercial use needs another licence"),
    (r"cogvideox", "commercial use needs a registration, and another licence above a million visits a month"),
    (r"stability|svd", "above a million US dollars of yearly revenue, commercial use needs another licence"),
    (r"nc\b|non-?commercial|research", "not for commercial use"),
    (r"openrail", "not for the uses that the licence lists as harmful"),
    (r"nvidia-open", "the safety filters of the model may not be removed without others in their place"),
)
# The licences that pipelines are usually under, where a folder has no card of its own.
USUAL: tuple[tuple[str, str], ...] = (
    (r"^Wan", "apache-2.0"),
    (r"^Hunyuan", "tencent-hunyuan-community"),
    (r"^LTX", "ltx-video-open-weights"),
    (r"^CogVideoX", "cogvideox"),
    (r"^Mochi|^Allegro", "apache-2.0"),
    (r"^StableVideo", "stability-ai-community"),
    (r"^Cosmos", "nvidia-open-model-license"),
)


@dataclass(frozen=True)
class Licence:
    """The name of a licence, where its text is, its limits in words, and whether the folder itself says so."""

    name: str
    link: str | None = None
    limits: str | None = None
    said: bool = True

    def describe(self) -> str:
        """Say on one line what the licence is, and its limits."""
        source = "" if self.said else " (usual for such a model; its folder does not say)"
        link = f", see {self.link}" if self.link else ""
        return f"{self.name}{source}{link}" + (f": {self.limits}" if self.limits else "")


def licence_of(folder: Path, pipeline_class: str) -> Licence:
    """Return the licence of a model folder: what its card or licence file says, or the usual one of its pipeline."""
    card = read_card(folder / CARD)
    name, link = str(card.get("license_name") or card.get("license") or ""), card.get("license_link")
    link = str(link) if link else None
    if name:
        return Licence(name, link, limits_of(f"{name} {link or ''}"))
    for file in LICENCE_FILES:
        if (folder / file).is_file():
            with open(folder / file, encoding="utf-8", errors="replace") as stored:
                text = stored.read(4000)
            first = next((line.strip(" #*") for line in text.splitlines() if line.strip(" #*")), UNKNOWN)
            return Licence(first[:120], file, limits_of(text[:400]))
    usual = next((licence for pattern, licence in USUAL if re.search(pattern, pipeline_class)), UNKNOWN)
    return Licence(usual, None, limits_of(usual), said=False)


def limits_of(text: str) -> str | None:
    """Return the known limits of a licence by its name or link; None where none are known."""
    return next((limits for pattern, limits in LIMITS if re.search(pattern, text, re.IGNORECASE)), None)


def read_card(path: Path) -> dict:
    """Return the metadata at the top of a model card; an empty dict where there is none that can be read."""
    if not path.is_file() or path.stat().st_size > MAX_CARD_BYTES:
        return {}
    match = re.match(r"---\s*\n(.*?)\n---", path.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    try:
        found = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}
