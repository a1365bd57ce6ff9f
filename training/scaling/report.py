"""The report of a study: one HTML page with its figures, and each figure as a PNG.

longtake scale report STUDY
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from training.scaling.chart import Chart
from training.scaling.fit import fit_lines, fit_study, surface_of
from training.scaling.laws import Jump, largest_jump, optimum, power_of
from training.scaling.plan import LAW
from training.scaling.results import RungResult, fitted_runs, held_out_runs, read_results

PAGE = "index.html"
SENSITIVITY = re.compile(r"sensitivity_(.+)_([0-9.]+)$")  # of train_dit's log: attribute, noise level
STRATUM = re.compile(r"validation_t(\d+)$")
STYLE = "body{font:16px/1.5 sans-serif;max-width:960px;margin:2em auto;padding:0 1em}"
STYLE += "td,th{padding:2px 10px;text-align:right}"
STYLE += "td:first-child,th:first-child{text-align:left}img{max-width:100%}pre{white-space:pre-wrap}"


def write_report(study: Path, samples: int = 100) -> Path:
    """Fit the study, write `study` / report with the page and its figures, and return the page."""
    fit, results = fit_study(study, samples), read_results(study)
    folder = study / "report"
    folder.mkdir(parents=True, exist_ok=True)
    law = [one for one in results if set(one.rung.grids) & set(LAW)]
    charts: dict[str, Chart] = {
        "compute": compute_chart(fit, law, results),
        "curves": curves_chart(law),
        "isoflops": isoflop_chart(fit, results),
        "rates": rate_chart([one for one in results if "rate" in one.rung.grids], "width"),
        "batches": rate_chart([one for one in results if "batch" in one.rung.grids], "batch"),
        "strata": strata_chart(law),
        **{f"sensitivity-{sigma}": chart for sigma, chart in sensitivity_charts(law)},
    }
    parts = [
        f"<h1>Scaling study {html.escape(study.name)}</h1>",
        f"<pre>{html.escape(chr(10).join(fit_lines(fit)))}</pre>",
    ]
    for name, chart in charts.items():
        if not chart.series:
            continue
        path = folder / f"{name}.png"
        chart.draw().save(path)
        data = base64.b64encode(path.read_bytes()).decode()
        parts.append(f'<h2>{html.escape(chart.title)}</h2><img alt="{name}" src="data:image/png;base64,{data}">')
    parts += ["<h2>Jumps</h2>", jumps_table(law), "<h2>Runs</h2>", runs_table(fit, results)]
    parts += [f'<h2>The same prompts and seeds</h2><img src="{path.name}">' for path in folder.glob("samples.webp")]
    page = folder / PAGE
    head = f'<!doctype html><meta charset="utf-8"><title>Scaling study</title><style>{STYLE}</style>'
    page.write_text(head + "\n".join(parts), encoding="utf-8")
    return page


def shapes_of(results: list[RungResult]) -> list[tuple[int, int]]:
    """List the sizes of runs as (depth, width)."""
    return sorted({(one.rung.depth, one.rung.width) for one in results})


def compute_chart(fit: dict[str, Any], law: list[RungResult], results: list[RungResult]) -> Chart:
    """Loss against compute: all runs, the envelope of the fitted surface, and the run that was predicted."""
    chart = Chart("Loss against compute", "training FLOPs", "validation loss", log_y=True)
    for number, (depth, width) in enumerate(shapes_of(law)):
        runs = [one for one in law if (one.rung.depth, one.rung.width) == (depth, width) and not one.rung.held_out]
        points = sorted((one.rung.flops, one.loss) for one in runs)
        chart.add(f"depth {depth}, width {width}", points, number, line=False)
    surface, chosen = surface_of(fit, "all"), fit["countings"]["all"]
    per_token = power_of(*map(np.array, chosen["flops_per_token"]))
    ends = [np.log10(edge(one.rung.flops for one in law)) for edge in (min, max)]
    budgets = np.logspace(ends[0], ends[1] + 0.5, 60)
    chart.add(
        "fitted envelope", [(c, optimum(surface, c, per_token).loss) for c in budgets], 6, marks=False, dashed=True
    )
    for row, one in zip(chosen["held_out"], held_out_runs(results), strict=True):
        chart.add("predicted, 95 %", [(row["flops"], row["predicted"])], 7, bars=((row["low"], row["high"]),))
        chart.add("and measured", [(one.rung.flops, one.loss)], 4)
    return chart


def curves_chart(law: list[RungResult]) -> Chart:
    """Validation loss during training: do longer runs end below shorter ones, without crossing?"""
    chart = Chart("Validation loss during training", "training FLOPs", "validation loss", log_y=True)
    for number, shape in enumerate(shapes_of(law)):
        for one in (one for one in law if (one.rung.depth, one.rung.width) == shape):
            known = [series.label for series in chart.series]
            label = f"depth {shape[0]}, width {shape[1]}"
            chart.add("" if label in known else label, one.curve(), number, marks=False)
    return chart


def isoflop_chart(fit: dict[str, Any], results: list[RungResult]) -> Chart:
    """Loss against parameters at each budget, with the parabolas, which are biased, and the surface."""
    chart = Chart("IsoFLOP curves (dashed: parabolas, biased)", "parameters", "validation loss", log_y=True)
    data = fitted_runs(results, "all")
    surface = surface_of(fit, "all")
    parabolas = {one["flops"]: one["coefficients"] for one in fit["countings"]["all"]["isoflops"]}
    for number, budget in enumerate(np.unique(data.budgets)):
        rows = data.budgets == budget
        N, D, L = data.parameters[rows], data.tokens[rows], data.loss[rows]
        chart.add(f"{budget:.1e} FLOPs", list(zip(N, L, strict=True)), number, line=False)
        order = np.argsort(N)
        curve = list(zip(N[order], surface.loss(N, D)[order], strict=True))
        chart.add("", curve, number, marks=False)
        if budget in parabolas:
            x = np.linspace(np.log(N.min()), np.log(N.max()), 40)
            parabola = np.polyval(parabolas[budget], x)
            chart.add("", list(zip(np.exp(x), parabola, strict=True)), number, marks=False, dashed=True)
    return chart


def rate_chart(results: list[RungResult], by: str) -> Chart:
    """Loss against the learning rate, a line for each depth and width, or each batch."""
    chart = Chart(f"Loss by learning rate and {by}", "learning rate", "validation loss")
    groups: dict[str, list[tuple[float, float]]] = {}
    for one in results:
        rung = one.rung
        name = f"depth {rung.depth}, width {rung.width}" if by == "width" else f"{sum(rung.batch_sizes)} clips a step"
        groups.setdefault(name, []).append((rung.lr, one.loss))
    for name, points in sorted(groups.items()):
        chart.add(name, sorted(points))
    return chart


def strata_chart(law: list[RungResult]) -> Chart:
    """The validation loss of each stratum of noise against compute."""
    chart = Chart("Loss by stratum of noise, best run of each budget", "training FLOPs", "loss", log_y=True)
    best = best_of_budgets(law)
    for name in sorted({name for one in best for name in one.report if STRATUM.match(name)}):
        number = int(STRATUM.match(name)[1])  # type: ignore[index]
        chart.add(f"stratum {number + 1}", [(one.rung.flops, one.report[name]) for one in best], number)
    return chart


def best_of_budgets(law: list[RungResult]) -> list[RungResult]:
    """Return the run of least loss of each budget, smallest first."""
    best: dict[float, RungResult] = {}
    for one in law:
        if one.rung.budget not in best or one.loss < best[one.rung.budget].loss:
            best[one.rung.budget] = one
    return [best[budget] for budget in sorted(best)]


def attributes(law: list[RungResult]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Return per noise level and attribute (compute, rise of the loss with another word), over all logged points of the
    runs of least loss; what it measures is continuous, so a jump is the model's and not a threshold's.
    """
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for one in best_of_budgets(law):
        names = {name for row in one.log() for name in row} | set(one.report)
        for name in names:
            if match := SENSITIVITY.match(name):
                points = found.setdefault(match[2], {}).setdefault(match[1], [])
                points += one.curve(name)
    return found


def sensitivity_charts(law: list[RungResult]) -> Iterator[tuple[str, Chart]]:
    """Yield a chart per noise level: how much each attribute's words matter, against compute."""
    for sigma, rows in sorted(attributes(law).items()):
        chart = Chart(f"How much words matter at noise {sigma}", "training FLOPs", "rise of the loss")
        for name, points in sorted(rows.items()):
            chart.add(name.replace("_", " "), sorted(points))
        yield sigma, chart


def jumps_table(law: list[RungResult]) -> str:
    """Return an HTML table of the largest jump of each attribute's sensitivity and of the loss."""
    rows: list[tuple[str, Jump]] = []
    for sigma, names in sorted(attributes(law).items()):
        for name, points in sorted(names.items()):
            compute, values = np.array(points).T
            jump = largest_jump(compute, values)
            if jump:
                rows.append((f"{name.replace('_', ' ')} at noise {sigma}", jump))
    if not rows:
        return "<p>Too few logged measures of attributes to test (train with --sensitivity-clips).</p>"
    cells = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{jump.after:.3g}</td><td>{jump.size:+.4g}</td>"
        f"<td>{jump.probability:.3f}</td></tr>"
        for name, jump in rows
    )
    return (
        "<p>A straight line in log compute against one with a step. p: how often smooth data would show as large a "
        f"step; of {len(rows)} tests, about {0.05 * len(rows):.1f} fall below 0.05 by chance.</p>"
        f"<table><tr><th>measure</th><th>after FLOPs</th><th>step</th><th>p</th></tr>{cells}</table>"
    )


def runs_table(fit: dict[str, Any], results: list[RungResult]) -> str:
    """Return an HTML table of all runs, with their residuals and the speed they ran at."""
    residuals = fit["countings"]["all"]["residuals"]
    cells = []
    for one in results:
        rung, residual = one.rung, residuals.get(one.rung.name)
        note = "predicted" if rung.held_out else f"{residual[2]:+.2%}" if residual else "not fitted"
        cells.append(
            f"<tr><td>{html.escape(rung.name)}</td><td>{rung.parameters['all']:,.0f}</td><td>{rung.tokens:.3g}</td>"
            f"<td>{rung.flops:.3g}</td><td>{rung.epochs:.1f}</td><td>{one.loss:.4f}</td><td>{note}</td>"
            f"<td>{one.seconds:,.0f}</td><td>{rung.flops / max(one.seconds, 1e-9) / 1e9:.1f}</td></tr>"
        )
    heads = ["run", "parameters", "tokens", "FLOPs", "epochs", "loss", "residual", "seconds", "GFLOP/s"]
    return f"<table><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>{''.join(cells)}</table>"
