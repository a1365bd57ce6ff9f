"""Rungs: the runs of a scaling plan as data. A plan is one JSON file, and every rung has a hash of what it trains."""

from __future__ import annotations

import hashlib
import json
import types
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from training.config import DiTRun
from vae.files import atomic_write

PLAN_VERSION = 1
# Fields of a run that do not change what it learns, and so are no part of a rung's hash.
REPORTING = ("out", "checkpoint_minutes", "keep_checkpoints", "max_tokens", "validate_every", "sample_every")
PATHS = ("data", "held_out", "vae", "text_encoder")  # may move; hashes of their contents are compared when they run


@dataclass(frozen=True)
class Rung:
    """One run: what differs from the plan's base run, and what follows from it.

    `grids` name what it is for: isoflop, ladder, rate, batch. A rung that is `held_out` is predicted and never fitted.
    With `trunk`, a name, it shares the steps up to its decay with the other rungs of that name.
    """

    name: str
    grids: tuple[str, ...]
    depth: int
    width: int
    head_dim: int
    steps: int
    warmup_steps: int
    decay_steps: int
    lr: float
    batch_sizes: tuple[int, ...]
    ema_decay: float
    seed: int
    tokens: float  # seen in training
    flops: float
    parameters: dict[str, float]
    epochs: float  # over the data; 0 where their number is not known
    held_out: bool = False
    trunk: str = ""

    @property
    def budget(self) -> float:
        """Compute to two digits: rungs of one isoFLOP curve have the same."""
        return float(f"{self.flops:.1e}")


@dataclass(frozen=True)
class ScalingPlan:
    """A base run and its rungs. `assumptions` are lines for people."""

    base: DiTRun
    rungs: tuple[Rung, ...]
    assumptions: tuple[str, ...] = ()
    warnings: tuple[str, ...] = field(default=())

    def run_of(self, rung: Rung, out: Path) -> DiTRun:
        """Return the training run of a rung."""
        names = ("depth", "width", "head_dim", "steps", "warmup_steps", "decay_steps", "lr", "batch_sizes")
        changes = {name: getattr(rung, name) for name in (*names, "ema_decay", "seed")}
        return replace(
            self.base,
            **changes,
            out=out,
            validate_every=max(1, rung.steps // 10),
            sample_every=rung.steps + 1,
        )

    def hash_of(self, rung: Rung) -> str:
        """Return 12 hexadecimal digits of what a rung trains: equal for rungs that train the same."""
        config = run_to_json(self.run_of(rung, Path()))
        kept = {name: value for name, value in config.items() if name not in (*REPORTING, *PATHS)}
        kept["trunk"] = bool(rung.trunk)
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]

    def write(self, path: Path) -> None:
        """Write the plan as JSON."""
        rungs = [asdict(rung) | {"hash": self.hash_of(rung)} for rung in self.rungs]
        plan = {"version": PLAN_VERSION, "base": run_to_json(self.base), "assumptions": self.assumptions}
        plan |= {"warnings": self.warnings, "rungs": rungs}
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as draft:
            draft.write_text(json.dumps(plan, indent=1))

    @classmethod
    def read(cls, path: Path) -> ScalingPlan:
        """Read a plan; raises ValueError for a file that is none, or that a newer version wrote."""
        plan = _read_plan(path)
        try:
            rungs = tuple(rung_from_json(row) for row in plan["rungs"])
            return cls(run_from_json(plan["base"]), rungs, tuple(plan["assumptions"]), tuple(plan["warnings"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"a scaling plan must have what longtake scale plan writes; {path} lacks or has another {error}, "
                "so plan again"
            ) from None


def _read_plan(path: Path) -> dict[str, Any]:
    """Read the JSON of a plan and check its version."""
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        version = plan["version"]
    except FileNotFoundError:
        raise FileNotFoundError(f"a scaling plan must be there; {path} is not, so longtake scale plan -o it") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"a scaling plan must be a JSON file of longtake scale plan; {path} is none") from None
    if version != PLAN_VERSION:
        raise ValueError(f"a scaling plan must be of version {PLAN_VERSION}; {path} is of {version}, so plan again")
    return plan


def rung_from_json(row: dict[str, Any]) -> Rung:
    """Read a rung from plain values; keys that a rung does not have are left out."""
    kept: dict[str, Any] = {one.name: row[one.name] for one in fields(Rung) if one.name in row}
    kept |= {"grids": tuple(row["grids"]), "batch_sizes": tuple(row["batch_sizes"])}
    return Rung(**kept)


def run_to_json(run: DiTRun) -> dict[str, Any]:
    """Return a run as plain values."""
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(run).items()}
    return json.loads(json.dumps(plain))


def run_from_json(config: dict[str, Any]) -> DiTRun:
    """Read a run from plain values; raises KeyError for a field that a run does not have."""
    kinds = get_type_hints(DiTRun)
    return DiTRun(**{name: _typed(kinds[name], value) for name, value in config.items()})


def _typed(kind: Any, value: Any) -> Any:
    if value is None:
        return None
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(part for part in get_args(kind) if part is not type(None))
    if kind is Path:
        return Path(value)
    if isinstance(value, list):
        return tuple(tuple(one) if isinstance(one, list) else one for one in value)
    return value


def command_words(run: DiTRun) -> list[str]:
    """Return the words of `python -m training.command dit` that make this run."""
    words = []
    for one in fields(run):
        value, name = getattr(run, one.name), one.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
            continue
        values = value if isinstance(value, tuple) else (value,)
        flat = [part for item in values for part in (item if isinstance(item, tuple) else (item,))]
        words += [f"--{name}", *("none" if part is None else str(part) for part in flat)]
    return words
