"""Scaling laws: loss as a function of parameters and data, by variable projection; loss as a function of compute.

The surface is L(N, D) = E + A N^-alpha + B D^-beta (Hoffmann et al. 2022, arXiv 2203.15556, equation 2). For given
exponents it is linear in E, A and B, so only two numbers are searched for and the others solved (variable projection,
Golub and Pereyra 1973; for scaling laws arXiv 2603.22339, which shows that the minima of isoFLOP parabolas are biased
even without noise). Residuals are relative to the loss and weighted as Huber's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

DELTA = 1e-3  # relative residual at which Huber's loss turns from square to linear
EXPONENTS = (0.02, 2.0)  # range that is searched
GRID, ZOOMS = 13, 12  # values an axis, and how often the grid shrinks around its best point by a factor of 3
REWEIGHTINGS = 15
SUPPORTS = ((0, 1, 2), (1, 2), (0, 1), (0, 2), (1,), (2,))  # coefficients that may be above zero
FEWEST_RUNS = 6  # of a surface, which has five numbers

Array = np.ndarray


@dataclass(frozen=True)
class LossSurface:
    """L(N, D) = E + A N^-alpha + B D^-beta."""

    E: float
    A: float
    alpha: float
    B: float
    beta: float

    def loss(self, parameters: Array | float, tokens: Array | float) -> Array:
        """Return the loss of models of N parameters after D tokens."""
        return self.E + self.A * np.power(parameters, -self.alpha) + self.B * np.power(tokens, -self.beta)

    @property
    def size_exponent(self) -> float:
        """a in N_opt ~ C^a."""
        return self.beta / (self.alpha + self.beta)


class Optimum(NamedTuple):
    """The compute-optimal model of a budget."""

    parameters: float
    tokens: float
    loss: float


class PowerLaw(NamedTuple):
    """L(C) = E + K C^-gamma."""

    E: float
    K: float
    gamma: float

    def loss(self, compute: Array | float) -> Array:
        return self.E + self.K * np.power(compute, -self.gamma)


class Parabola(NamedTuple):
    """The isoFLOP curve of a budget: a parabola of the loss in log N, its coefficients and its minimum."""

    flops: float
    coefficients: tuple[float, float, float]
    parameters: float
    loss: float


def solve_linear(basis: Array, loss: Array) -> tuple[Array, Array]:
    """Fit non-negative coefficients of bases (G, n, k) to losses (n,) by Huber's loss of the relative residuals.

    Iteratively reweighted least squares. Returns coefficients (G, k) and objectives (G,).
    """
    scaled = basis / loss[:, None]
    size = basis.shape[-1]
    best, coefficients = np.full(len(basis), np.inf), np.zeros((len(basis), size))
    supports: tuple[tuple[int, ...], ...] = SUPPORTS if size == 3 else ((0, 1), (1,))
    for support in supports:
        rows = np.flatnonzero(np.isinf(best))  # smaller supports are for what larger ones could not fit
        if not len(rows):
            break
        columns = scaled[rows][..., list(support)]
        weight = np.ones(columns.shape[:2])
        for _ in range(REWEIGHTINGS):
            gram = np.einsum("gni,gn,gnj->gij", columns, weight, columns)
            gram += 1e-13 * np.trace(gram, axis1=1, axis2=2)[:, None, None] * np.eye(len(support))
            found = np.linalg.solve(gram, np.einsum("gni,gn->gi", columns, weight)[..., None])[..., 0]
            residual = np.abs(np.einsum("gni,gi->gn", columns, found) - 1)
            weight = np.minimum(1, DELTA / np.maximum(residual, 1e-12))
        huber = np.where(residual < DELTA, residual**2 / 2, DELTA * (residual - DELTA / 2)).sum(1)
        fits = found.min(1) >= 0
        best[rows[fits]] = huber[fits]
        coefficients[np.ix_(rows[fits], np.array(support))] = found[fits]
    return coefficients, best


def fit_surface(parameters: Array, tokens: Array, loss: Array) -> LossSurface:
    """Fit the surface to runs (n,). Raises ValueError for too few runs, or where sizes or data do not differ."""
    N, D, L = (np.asarray(values, dtype=float) for values in (parameters, tokens, loss))
    check_runs(N, D, L)
    n0, d0 = np.exp(np.log(N).mean()), np.exp(np.log(D).mean())

    def evaluate(exponents: Array) -> tuple[Array, Array]:
        columns = [np.ones((len(exponents), len(N))), (N / n0) ** -exponents[:, :1], (D / d0) ** -exponents[:, 1:]]
        return solve_linear(np.stack(columns, axis=-1), L)

    (alpha, beta), (E, A, B) = _search(evaluate, 2)
    return LossSurface(float(E), float(A * n0**alpha), float(alpha), float(B * d0**beta), float(beta))


def fit_power_law(compute: Array, loss: Array) -> PowerLaw:
    """Fit the loss of the best runs as a function of compute, in the same way; at least four points."""
    C, L = np.asarray(compute, dtype=float), np.asarray(loss, dtype=float)
    if len(C) < 4 or len(np.unique(C)) < 3:
        raise ValueError(f"a law of compute needs the best runs of four budgets; got {len(C)}, so plan more --budgets")
    c0 = np.exp(np.log(C).mean())

    def evaluate(exponents: Array) -> tuple[Array, Array]:
        return solve_linear(np.stack([np.ones((len(exponents), len(C))), (C / c0) ** -exponents], axis=-1), L)

    (gamma,), (E, K) = _search(evaluate, 1)
    return PowerLaw(float(E), float(K * c0**gamma), float(gamma))


def _search(evaluate: Callable[[Array], tuple[Array, Array]], axes: int) -> tuple[Array, Array]:
    """Minimise over exponents on a grid that shrinks around its best point; return exponents and coefficients."""
    low, high = np.full(axes, np.log(EXPONENTS[0])), np.full(axes, np.log(EXPONENTS[1]))
    bounds = low[0], high[0]
    exponents, coefficients, objective = np.exp(low), np.zeros(axes + 1), np.inf
    for _ in range(ZOOMS):
        grid = np.meshgrid(*(np.linspace(a, b, GRID) for a, b in zip(low, high, strict=True)), indexing="ij")
        points = np.exp(np.stack([one.ravel() for one in grid], axis=1))
        solved, objectives = evaluate(points)
        best = int(objectives.argmin())
        if objectives[best] < objective:
            exponents, coefficients, objective = points[best], solved[best], objectives[best]
        reach = (high - low) / 6
        low = np.maximum(np.log(exponents) - reach, bounds[0])
        high = np.minimum(np.log(exponents) + reach, bounds[1])
    return exponents, coefficients


def check_runs(N: Array, D: Array, L: Array) -> None:
    """Raise ValueError where runs cannot determine a surface."""
    if not (np.isfinite(L).all() and (L > 0).all()):
        raise ValueError(f"losses must be numbers above 0; {int((~np.isfinite(L) | (L <= 0)).sum())} runs have others")
    if len(L) < FEWEST_RUNS:
        raise ValueError(f"a surface needs {FEWEST_RUNS} runs or more; got {len(L)}, so run more rungs")
    if len(np.unique(N)) < 3 or len(np.unique(D)) < 3:
        raise ValueError(
            f"a surface needs three sizes and three amounts of data; got {len(np.unique(N))} and {len(np.unique(D))}"
        )


def optimum(surface: LossSurface, compute: float, flops_per_token: Callable[[Array], Array]) -> Optimum:
    """Return the model of least loss for `compute`; `flops_per_token` maps parameters to training FLOPs per token."""
    sizes = np.exp(np.linspace(np.log(1e3), np.log(1e13), 4001))
    tokens = compute / flops_per_token(sizes)
    losses = surface.loss(sizes, tokens)
    best = int(losses.argmin())
    return Optimum(float(sizes[best]), float(tokens[best]), float(losses[best]))


def power_of(x: Array, y: Array) -> Callable[[Array], Array]:
    """Return the power law y(x) that fits best in logarithms; through one point, proportional."""
    log_x, log_y = np.log(np.asarray(x, dtype=float)), np.log(np.asarray(y, dtype=float))
    slope = np.polyfit(log_x, log_y, 1)[0] if np.ptp(log_x) > 0 else 1.0
    offset = log_y.mean() - slope * log_x.mean()
    return lambda values: np.exp(offset + slope * np.log(values))


def resamples(count: int, samples: int, seed: int = 0) -> Iterator[Array]:
    """Yield bootstrap resamples of run numbers, with replacement."""
    rng = np.random.default_rng(seed)
    for _ in range(samples):
        yield rng.integers(count, size=count)


def bootstrap_surfaces(parameters: Array, tokens: Array, loss: Array, samples: int) -> list[LossSurface]:
    """Fit the surface to resampled runs; resamples that cannot determine one are left out."""
    found = []
    for rows in resamples(len(loss), samples):
        try:
            found.append(fit_surface(parameters[rows], tokens[rows], loss[rows]))
        except ValueError:
            continue
    return found


def interval(values: Array | list[float], share: float = 0.95) -> tuple[float, float]:
    """Return the central interval that holds a share of the values."""
    low, high = np.quantile(np.asarray(values, dtype=float), [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def isoflop_parabola(flops: float, parameters: Array, loss: Array) -> Parabola | None:
    """Fit a parabola in log N to the runs of a budget; None with fewer than three sizes or no minimum."""
    x = np.log(parameters)
    if len(np.unique(x)) < 3:
        return None
    square, linear, constant = np.polyfit(x, loss, 2)
    if square <= 0:
        return None
    lowest = -linear / (2 * square)
    return Parabola(
        flops, (float(square), float(linear), float(constant)), float(np.exp(lowest)),
        float(constant - linear**2 / (4 * square)),
    )  # fmt: skip


class Jump(NamedTuple):
    """The largest step in a measure against log compute, and how often smooth data would show one as large."""

    after: float  # compute before the step
    size: float
    probability: float


def largest_jump(compute: Array, values: Array, simulations: int = 500) -> Jump | None:
    """Test whether a measure jumps: a straight line in log compute against a line with one step.

    The statistic is the share of the line's squared residuals that the best step explains; its distribution without a
    step is simulated from the fitted line with normal residuals. None with fewer than six points.
    """
    if len(values) < 6:
        return None
    order = np.argsort(compute)
    x, y = np.log(np.asarray(compute, dtype=float))[order], np.asarray(values, dtype=float)[order]
    breaks = [(a + b) / 2 for a, b in pairwise(x[1:-1]) if b > a]
    if not breaks:
        return None
    line = np.stack([np.ones_like(x), x], axis=1)
    bases = [np.concatenate([line, (x > at).astype(float)[:, None]], axis=1) for at in breaks]
    projections = [np.eye(len(x)) - base @ np.linalg.pinv(base) for base in bases]
    residual_of = np.eye(len(x)) - line @ np.linalg.pinv(line)

    def statistic(many: Array) -> tuple[Array, Array]:
        total = ((many @ residual_of) ** 2).sum(1)
        left = np.stack([((many @ one) ** 2).sum(1) for one in projections])
        return 1 - left.min(0) / np.maximum(total, 1e-300), left.argmin(0)

    (found,), (place,) = statistic(y[None])
    residual = residual_of @ y
    spread = residual.std() * np.sqrt(len(x) / max(1, len(x) - 2))
    noise = np.random.default_rng(0).standard_normal((simulations, len(x))) * max(spread, 1e-12)
    step = np.linalg.lstsq(bases[place], y, rcond=None)[0][-1]
    probability = float((statistic(noise)[0] >= found).mean())
    return Jump(float(np.exp(x[x < breaks[place]].max())), float(step), probability)
