"""Fit scaling laws to the runs of a study, with bootstrap intervals, under three ways of counting parameters.

The held-out run is never fitted: it is predicted, and the fit says by how much that missed.

longtake scale fit STUDY
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from training.scaling.laws import (
    LossSurface,
    bootstrap_surfaces,
    fit_power_law,
    fit_surface,
    interval,
    isoflop_parabola,
    optimum,
    power_of,
)
from training.scaling.results import LawData, RungResult, check_comparable, fitted_runs, held_out_runs, read_results
from training.scaling.rungs import Rung
from training.scaling.shapes import COUNTINGS
from vae.files import atomic_write

FIT, PREDICTION = "fit.json", "prediction.json"
SAMPLES = 100  # bootstrap resamples
NUMBERS = ("E", "A", "alpha", "B", "beta", "size_exponent")


def fit_study(folder: Path, samples: int = SAMPLES) -> dict[str, Any]:
    """Fit all laws of a study, write `folder` / fit.json, and return it.

    Raises ValueError if its runs cannot be compared, or are too few.
    """
    results = read_results(folder)
    check_comparable(results)
    found: dict[str, Any] = {"facts": results[0].facts, "countings": {}}
    for counting in COUNTINGS:
        found["countings"][counting] = fit_counting(fitted_runs(results, counting), held_out_runs(results), samples)
    data = fitted_runs(results, "all")
    found["runs"] = len(data.results)
    found["envelope"] = _envelope(data)
    frozen = folder / PREDICTION
    if frozen.exists():
        found["predicted_in_advance"] = _compare(json.loads(frozen.read_text()), held_out_runs(results))
    with atomic_write(folder / FIT) as draft:
        draft.write_text(json.dumps(found, indent=1))
    return found


def fit_counting(data: LawData, held_out: list[RungResult], samples: int) -> dict[str, Any]:
    """Fit the surface under one way of counting parameters."""
    surface = fit_surface(data.parameters, data.tokens, data.loss)
    others = bootstrap_surfaces(data.parameters, data.tokens, data.loss, samples)
    expected = surface.loss(data.parameters, data.tokens)
    relative = data.loss / expected - 1
    return {
        "surface": {name: getattr(surface, name) for name in NUMBERS},
        "intervals": {name: interval([getattr(one, name) for one in others]) for name in NUMBERS} if others else {},
        "bootstrap": [[one.E, one.A, one.alpha, one.B, one.beta] for one in others],
        "flops_per_token": [data.parameters.tolist(), (data.flops / data.tokens).tolist()],
        "residuals": {
            one.rung.name: [one.loss, float(value), float(difference)]
            for one, value, difference in zip(data.results, expected, relative, strict=True)
        },
        "residual_rms": float(np.sqrt(np.mean(relative**2))),
        "isoflops": [
            {"flops": parabola.flops, "parameters": parabola.parameters, "loss": parabola.loss,
             "coefficients": parabola.coefficients}
            for parabola in parabolas(data)
        ],
        "held_out": [
            predict_rung(surface, others, relative, one.rung, data.counting) | {"measured": one.loss}
            for one in held_out
        ],
    }  # fmt: skip


def parabolas(data: LawData):
    """Return the isoFLOP parabola of each budget that has three sizes and a minimum."""
    found = []
    for budget in np.unique(data.budgets):
        rows = data.budgets == budget
        found.append(isoflop_parabola(float(budget), data.parameters[rows], data.loss[rows]))
    return [one for one in found if one is not None]


def predict_rung(
    surface: LossSurface, others: list[LossSurface], relative: np.ndarray, rung: Rung, counting: str
) -> dict[str, Any]:
    """Predict the loss of a run with its 95 % interval: of the bootstrap, with a residual of the fit added to each."""
    parameters, tokens = rung.parameters[counting], rung.tokens
    draws = np.random.default_rng(0).choice(relative, size=len(others)) if others else np.zeros(0)
    losses = [float(one.loss(parameters, tokens) * (1 + draw)) for one, draw in zip(others, draws, strict=True)]
    predicted = float(surface.loss(parameters, tokens))
    low, high = interval(losses) if losses else (predicted, predicted)
    return {"name": rung.name, "flops": rung.flops, "predicted": predicted, "low": low, "high": high}


def freeze_prediction(folder: Path, rungs: list[Rung]) -> bool:
    """Write the prediction of held-out rungs before they are trained, once; return whether there is one."""
    path = folder / PREDICTION
    if path.exists() or not rungs:
        return path.exists()
    try:
        results = read_results(folder)
        check_comparable(results)
        data = fitted_runs(results, "all")
        surface = fit_surface(data.parameters, data.tokens, data.loss)
    except (ValueError, FileNotFoundError):
        return False
    others = bootstrap_surfaces(data.parameters, data.tokens, data.loss, SAMPLES)
    relative = data.loss / surface.loss(data.parameters, data.tokens) - 1
    found = [predict_rung(surface, others, relative, rung, "all") for rung in rungs]
    with atomic_write(path) as draft:
        draft.write_text(
            json.dumps({"fitted": [one.rung.name for one in data.results], "predictions": found}, indent=1)
        )
    return True


def _compare(frozen: dict[str, Any], held_out: list[RungResult]) -> list[dict[str, Any]]:
    """Return what was predicted before a run with what it gave."""
    measured = {one.rung.name: one.loss for one in held_out}
    return [
        row | {"measured": measured[row["name"]], "missed": measured[row["name"]] / row["predicted"] - 1}
        for row in frozen["predictions"]
        if row["name"] in measured
    ]


def _envelope(data: LawData) -> dict[str, Any]:
    """Fit the loss of each budget's best run as a law of compute, where there are four budgets."""
    best = [int(np.flatnonzero(data.budgets == b)[data.loss[data.budgets == b].argmin()]) for b in set(data.budgets)]
    points = sorted((float(data.flops[row]), float(data.loss[row])) for row in best)
    found: dict[str, Any] = {"points": points}
    if len(points) >= 4:
        compute, loss = np.array(points).T
        found["law"] = fit_power_law(compute, loss)._asdict()
    return found


def surface_of(fit: dict[str, Any], counting: str) -> LossSurface:
    """Return the fitted surface of a way of counting."""
    numbers = fit["countings"][counting]["surface"]
    return LossSurface(**{name: numbers[name] for name in NUMBERS[:5]})


def predict_compute(fit: dict[str, Any], compute: float, counting: str = "all") -> dict[str, Any]:
    """Return the compute-optimal model of a budget and its loss, with 95 % intervals of the bootstrap.

    Also how many decades beyond the largest fitted run it lies. Raises ValueError for compute that is not a number
    above 0.
    """
    if not np.isfinite(compute) or compute <= 0:
        raise ValueError(f"compute must be a number of FLOPs above 0; got {compute:g}")
    chosen = fit["countings"][counting]
    per_token = power_of(*map(np.array, chosen["flops_per_token"]))
    best = optimum(surface_of(fit, counting), compute, per_token)
    others = [optimum(LossSurface(*numbers), compute, per_token) for numbers in chosen["bootstrap"]]
    ends = {
        name: interval([getattr(one, name) for one in others]) if others else (getattr(best, name),) * 2
        for name in best._fields
    }
    largest = max(flops for flops, _ in fit["envelope"]["points"])
    return {
        "compute": compute,
        "counting": counting,
        **best._asdict(),
        "intervals": ends,
        "decades_beyond": float(max(0.0, np.log10(compute / largest))),
    }


def read_fit(folder: Path) -> dict[str, Any]:
    """Read a fit; raises FileNotFoundError if there is none."""
    path = folder / FIT
    if not path.exists():
        raise FileNotFoundError(f"a study must be fitted first; {folder} has no {FIT}, so longtake scale fit {folder}")
    return json.loads(path.read_text())


def fit_lines(fit: dict[str, Any]) -> list[str]:
    """Return a fit as lines."""
    lines = [f"{fit['runs']} runs fitted to L = E + A N^-alpha + B D^-beta, 95 % intervals of the bootstrap"]
    for counting, found in fit["countings"].items():
        numbers = []
        for name in NUMBERS:
            low, high = found["intervals"].get(name, (found["surface"][name],) * 2)
            label = "a of N_opt ~ C^a" if name == "size_exponent" else name
            numbers.append(f"{label} {found['surface'][name]:.4g} [{low:.4g}, {high:.4g}]")
        lines.append(f"parameters counted as {counting}: {', '.join(numbers)}; residuals {found['residual_rms']:.2%}")
        for row in found["held_out"]:
            lines.append(
                f"  {row['name']}, not fitted: predicted {row['predicted']:.4f} [{row['low']:.4f}, {row['high']:.4f}], "
                f"measured {row['measured']:.4f}, {row['measured'] / row['predicted'] - 1:+.2%}"
            )
    for row in fit.get("predicted_in_advance", []):
        lines.append(
            f"predicted before it was trained: {row['name']} {row['predicted']:.4f} "
            f"[{row['low']:.4f}, {row['high']:.4f}]; measured {row['measured']:.4f}, {row['missed']:+.2%}"
        )
    lines.append("isoFLOP minima are in fit.json and drawn, but biased (arXiv 2603.22339): trust the surface")
    return lines
