"""Thresholds of the scores of clips: what each would drop, and which clips were asked to be dropped for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from training.prepare.manifest import PrepareError, Row

ALL = "all"  # thresholds, where one is named to drop by


class Threshold(NamedTuple):
    """The least and the most that a clip may have of a score."""

    least: float = -np.inf
    most: float = np.inf

    def drops(self, values: np.ndarray) -> np.ndarray:
        """Say which values it drops."""
        return (values < self.least) | (values > self.most)

    def at(self, value: float) -> Threshold:
        """Return one of the same side at another value."""
        return Threshold(least=value) if np.isfinite(self.least) else Threshold(most=value)

    def __str__(self) -> str:
        return f"< {self.least:g}" if np.isfinite(self.least) else f"> {self.most:g}"


THRESHOLDS = {
    "motion": Threshold(least=0.001),
    "sharpness": Threshold(least=0.0003),
    "brightness": Threshold(least=0.05),
    "clipped": Threshold(most=0.5),
    "letterbox": Threshold(most=0.02),
    "text": Threshold(most=0.02),
    "duplicate": Threshold(most=0.5),
    "match": Threshold(least=0.2),  # or what `match.py` says of a model
    "aesthetics": Threshold(least=0.3),
}


def thresholds_at(values: Mapping[str, float]) -> dict[str, Threshold]:
    """Return all thresholds, those of some names at other values; raises PrepareError for a wrong name or value."""
    for name, value in values.items():
        if name == ALL or not named((name,)):
            raise PrepareError(f"a threshold must be one of {', '.join(THRESHOLDS)}; got {name!r}")
        if not np.isfinite(value):
            raise PrepareError(f"a threshold must be a finite number; got {value:g} for {name}")
    return {name: one.at(values[name]) if name in values else one for name, one in THRESHOLDS.items()}


def named(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names of thresholds, of which `all` means every one; raises PrepareError for a wrong one."""
    names = tuple(names)
    for name in names:
        if name not in (*THRESHOLDS, ALL):
            raise PrepareError(f"a threshold must be one of {', '.join(THRESHOLDS)}; got {name!r}")
    return tuple(name for name in THRESHOLDS if name in names or ALL in names)


def counts(name: str, row: Row) -> bool:
    """Say whether a clip has a score that its threshold may judge: of what has one frame alone, none judges motion."""
    return name in row.scores and not (name == "motion" and row.frames == 1)


def failing(row: Row, names: Iterable[str], thresholds: Mapping[str, Threshold]) -> list[str]:
    """List those of some thresholds that a clip fails."""
    return [name for name in names if counts(name, row) and thresholds[name].drops(np.array(row.scores[name]))]
