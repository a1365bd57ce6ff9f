"""Thresholds of the scores of clips: what each would drop, and which clips are dropped for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from training.manifest import ClipRow, PrepareError

ALL = "all"  # every threshold, where names are given


class Threshold(NamedTuple):
    """The lowest and the highest score that a clip may have; one of them is infinite."""

    lowest: float = -np.inf
    highest: float = np.inf

    def rejects(self, values: np.ndarray) -> np.ndarray:
        """Return which values are outside, as bool."""
        return (values < self.lowest) | (values > self.highest)

    def moved_to(self, value: float) -> Threshold:
        """Return a threshold of the same side at another value."""
        return Threshold(lowest=value) if np.isfinite(self.lowest) else Threshold(highest=value)

    def __str__(self) -> str:
        return f"< {self.lowest:g}" if np.isfinite(self.lowest) else f"> {self.highest:g}"


THRESHOLDS = {
    "motion": Threshold(lowest=0.001),
    "sharpness": Threshold(lowest=0.0003),
    "brightness": Threshold(lowest=0.05),
    "clipped": Threshold(highest=0.5),
    "letterbox": Threshold(highest=0.02),
    "text": Threshold(highest=0.02),
    "duplicate": Threshold(highest=0.5),
    "match": Threshold(lowest=0.2),  # unless `match.py` has one for the model
    "aesthetics": Threshold(lowest=0.3),
}


def thresholds_with(values: Mapping[str, float]) -> dict[str, Threshold]:
    """Return all thresholds, some of them moved to other values. Raises PrepareError for a wrong name or value."""
    for name, value in values.items():
        if name == ALL or not threshold_names((name,)):
            raise PrepareError(f"a threshold must be one of {', '.join(THRESHOLDS)}; got {name!r}")
        if not np.isfinite(value):
            raise PrepareError(f"a threshold must be a finite number; got {value:g} for {name}")
    return {name: one.moved_to(values[name]) if name in values else one for name, one in THRESHOLDS.items()}


def threshold_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return the thresholds that are named, in order; `all` names every one. Raises PrepareError for a wrong name."""
    names = tuple(names)
    for name in names:
        if name not in (*THRESHOLDS, ALL):
            raise PrepareError(f"a threshold must be one of {', '.join(THRESHOLDS)}; got {name!r}")
    return tuple(name for name in THRESHOLDS if name in names or ALL in names)


def applies(name: str, row: ClipRow) -> bool:
    """Return whether a threshold applies to a clip: it needs the score, and motion is not judged in images."""
    return name in row.scores and not (name == "motion" and row.frames == 1)


def failed_thresholds(row: ClipRow, names: Iterable[str], thresholds: Mapping[str, Threshold]) -> list[str]:
    """List those of some thresholds that a clip fails."""
    return [name for name in names if applies(name, row) and thresholds[name].rejects(np.array(row.scores[name]))]
