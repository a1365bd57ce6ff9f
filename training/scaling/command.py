"""The command line of the laboratory: plan, run, fit, predict, report, costs.

longtake scale plan --preset tiny --depths 1 2 3 4 --budgets 1e13 1e14 1e15 -o plan.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from training.options import add_options, read_options
from training.presets import PRESETS
from training.scaling.fit import COUNTINGS, fit_lines, fit_study, predict_compute, read_fit
from training.scaling.hardware import MFU, Cluster, run_cost
from training.scaling.plan import ScaleOptions, write_plan
from training.scaling.published import ComparedCost, cost_lines
from training.scaling.results import read_results
from training.scaling.rungs import ScalingPlan

SOME_FAILED = 3  # exit code
STEPS = ("plan", "run", "fit", "predict", "report", "costs")
PROMPTS = ("a red ball bounces on the grass", "a large blue cube slides on a wooden floor")


def main(words: list[str]) -> int:
    """Run one step of the laboratory and return its exit code."""
    parser = argparse.ArgumentParser("longtake scale", description="Plan, run and fit scaling studies.")
    parser.add_argument("step", choices=STEPS, help="then longtake scale STEP --help lists its options")
    step = parser.parse_args(words[:1]).step
    return {"plan": _plan, "run": _run, "fit": _fit, "predict": _predict, "report": _report, "costs": _costs}[step](
        words[1:]
    )


def _plan(words: list[str]) -> int:
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    presets = PRESETS["dit"]
    first.add_argument("--preset", default=next(iter(presets)), choices=sorted(presets), help="the base run")
    first.add_argument("-o", "--output", type=Path, help="JSON file of the plan")
    preset = presets[first.parse_known_args(words)[0].preset]()
    parser = argparse.ArgumentParser("longtake scale plan", parents=[first], allow_abbrev=False)
    add_options(parser.add_argument_group("the study"), ScaleOptions())  # type: ignore[arg-type]
    add_options(parser.add_argument_group("the base run"), preset)  # type: ignore[arg-type]
    args = parser.parse_args(words)
    print(*write_plan(read_options(args, preset), read_options(args, ScaleOptions()), args.output), sep="\n")
    return 0


def _run(words: list[str]) -> int:
    from training.scaling.run import run_study

    parser = argparse.ArgumentParser("longtake scale run", description="Train a plan's rungs; again to resume.")
    parser.add_argument("plan", type=Path, help="JSON file of longtake scale plan")
    parser.add_argument("--study", type=Path, required=True, help="folder of the results")
    parser.add_argument("--engine", choices=("here", "accelerate", "ray"), default="here", help="what trains a rung")
    parser.add_argument("--processes", type=int, default=1, help="processes of accelerate launch (default: 1)")
    parser.add_argument("--grids", nargs="+", default=(), help="only rungs of these grids of the plan")
    args = parser.parse_args(words)
    if args.processes < 1 or (args.processes > 1 and args.engine != "accelerate"):
        raise ValueError(f"processes must be 1, or more with --engine accelerate; got {args.processes}")
    counts = run_study(ScalingPlan.read(args.plan), args.study, args.engine, args.processes, tuple(args.grids))
    print(json.dumps(counts))
    return SOME_FAILED if counts["failed"] else 0


def _study(name: str, words: list[str], *more) -> argparse.Namespace:
    parser = argparse.ArgumentParser(f"longtake scale {name}")
    parser.add_argument("study", type=Path, help="folder of longtake scale run")
    for flags, settings in more:
        parser.add_argument(*flags, **settings)
    return parser.parse_args(words)


_SAMPLES = (("--samples",), {"type": int, "default": 100, "help": "bootstrap resamples (default: 100)"})


def _fit(words: list[str]) -> int:
    args = _study("fit", words, _SAMPLES)
    print(*fit_lines(fit_study(args.study, args.samples)), sep="\n")
    return 0


def _predict(words: list[str]) -> int:
    args = _study(
        "predict",
        words,
        (("--compute",), {"type": float, "required": True, "help": "training FLOPs"}),
        (("--counting",), {"choices": COUNTINGS, "default": "all", "help": "how parameters are counted"}),
        (("--gpus",), {"default": "64xH100", "help": "cluster (default: 64xH100)"}),
        (("--mfu",), {"type": float, "default": MFU, "help": f"share of peak FLOP/s that is used (default: {MFU})"}),
    )
    found = predict_compute(read_fit(args.study), args.compute, args.counting)
    cluster = Cluster.parse(args.gpus, args.mfu)
    cost = run_cost(args.compute, cluster)
    ends = found["intervals"]
    for name, unit in (("parameters", ""), ("tokens", ""), ("loss", "")):
        low, high = ends[name]
        print(f"{name}{unit} {found[name]:.4g} [{low:.4g}, {high:.4g}]")
    print(
        f"cost {cost.petaflop_days:.3g} PF-days, {cost.gpu_hours:.3g} GPU-hours, {cost.dollars:,.0f} dollars, "
        f"{cost.wall_hours:.3g} h"
    )
    print(f"assumed: {cluster.assumptions()}")
    if found["decades_beyond"] > 1:
        print(
            f"warning: {found['decades_beyond']:.1f} decades beyond the largest fitted run; the intervals hold only if "
            "the law does, and they say nothing about that",
            file=sys.stderr,
        )
    return 0


def _report(words: list[str]) -> int:
    from training.scaling.report import write_report
    from training.scaling.samples import write_samples

    args = _study(
        "report",
        words,
        _SAMPLES,
        (("--prompts",), {"nargs": "*", "help": "also generate these, side by side at 1, 4 and 32 times the compute"}),
        (("--steps",), {"type": int, "help": "sampler steps of these"}),
    )
    if args.prompts is not None:
        write_samples(args.study, args.prompts or list(PROMPTS), steps=args.steps)
    print(write_report(args.study, args.samples))
    return 0


def _costs(words: list[str]) -> int:
    parser = argparse.ArgumentParser("longtake scale costs", description="The cost model against published runs.")
    parser.add_argument("--study", type=Path, help="also against the runs of this study")
    parser.add_argument("--gpus", default="2xCPU", help="what the study ran on (default: 2xCPU)")
    parser.add_argument("--mfu", type=float, default=1.0, help="share of its peak FLOP/s (default: 1)")
    args = parser.parse_args(words)
    own = []
    if args.study is not None:
        cluster = Cluster.parse(args.gpus, args.mfu)
        for one in read_results(args.study):
            hours = run_cost(one.rung.flops, cluster).wall_hours
            own.append(ComparedCost(one.rung.name, "hours", one.seconds / 3600, hours, f"measured on {one.device}"))
    print(*cost_lines(own), sep="\n")
    return 0
