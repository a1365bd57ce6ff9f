"""What the runs of a study gave: their results on disk, as arrays, and the check that they can be compared."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.scaling.plan import LAW
from training.scaling.rungs import Rung, rung_from_json

RESULT, LOG = "result.json", "log.jsonl"
# Facts in which the runs of a law must agree, and what to say about them.
FACTS = {
    "encoder": "VAE",
    "patch": "patch",
    "data": "data",
    "held_out": "held-out data",
    "text_encoder": "text encoder",
    "validation": "validation noise",
}


@dataclass(frozen=True)
class RungResult:
    """A finished rung: its final validation loss, its log, and what it was trained with."""

    rung: Rung
    folder: Path
    loss: float
    report: dict[str, float]
    facts: dict[str, Any]
    seconds: float
    device: str

    def log(self) -> list[dict[str, float]]:
        """Read the log; a branched run starts with its trunk's."""
        path = self.folder / LOG
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]

    def curve(self, name: str = "validation") -> list[tuple[float, float]]:
        """Return a logged measure as (compute, value), ascending."""
        each = self.rung.flops / self.rung.steps
        points = {row["step"] * each: row[name] for row in self.log() if name in row}
        if name in self.report:
            points[self.rung.flops] = self.report[name]
        return sorted(points.items())


def read_results(folder: Path) -> list[RungResult]:
    """Read the results of a study, smallest compute first. Raises FileNotFoundError if there are none."""
    found = []
    for path in sorted(folder.glob(f"rungs/*/{RESULT}")):
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
            rung, loss = rung_from_json(row["rung"]), float(row["loss"])
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"a result must be what longtake scale run writes; {path} is not, so remove it") from None
        found.append(RungResult(rung, path.parent, loss, row["report"], row["facts"], row["seconds"], row["device"]))
    if not found:
        raise FileNotFoundError(f"a study must have finished runs; {folder} has none, so longtake scale run PLAN")
    return sorted(found, key=lambda result: result.rung.flops)


def check_comparable(results: list[RungResult]) -> None:
    """Raise ValueError if runs differ in VAE, patch, data, text encoder or validation noise: their losses are not of
    one law.
    """
    first = results[0]
    for other in results[1:]:
        for name, words in FACTS.items():
            if first.facts.get(name) != other.facts.get(name):
                raise ValueError(
                    f"runs of one law must have the same {words}; {first.rung.name} has {first.facts.get(name)}, "
                    f"{other.rung.name} has {other.facts.get(name)}, so fit them apart"
                )


@dataclass(frozen=True)
class LawData:
    """The runs of a law as arrays (n,)."""

    results: tuple[RungResult, ...]
    counting: str

    @property
    def parameters(self) -> np.ndarray:
        return np.array([result.rung.parameters[self.counting] for result in self.results])

    @property
    def tokens(self) -> np.ndarray:
        return np.array([result.rung.tokens for result in self.results])

    @property
    def flops(self) -> np.ndarray:
        return np.array([result.rung.flops for result in self.results])

    @property
    def budgets(self) -> np.ndarray:
        return np.array([result.rung.budget for result in self.results])

    @property
    def loss(self) -> np.ndarray:
        return np.array([result.loss for result in self.results])


def fitted_runs(results: list[RungResult], counting: str) -> LawData:
    """Return the runs that laws are fitted to: those of the laws' grids, without the held-out one."""
    chosen = [one for one in results if set(one.rung.grids) & set(LAW) and not one.rung.held_out]
    return LawData(tuple(chosen), counting)


def held_out_runs(results: list[RungResult]) -> list[RungResult]:
    """Return the runs that are predicted."""
    return [one for one in results if one.rung.held_out]
