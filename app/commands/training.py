"""The only door from `app` to `training`: commands that train, measure or prepare, imported when they are called.

A machine that only renders never imports training code.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib import import_module

from app.exit_codes import BAD_INPUT

PARTS = ("vae", "text", "captioner", "upsampler", "dit", "judge", "recipe")  # of `longtake train`
# What commands call, by the name they use: a module of `training` and its function.
FUNCTIONS = {
    "train": ("training.command", "main"),
    "evaluate": ("training.evaluation.wide", "evaluate_model"),
    "sensitivity": ("training.evaluation.sensitivity", "report"),
    "bench_long": ("training.evaluation.bench", "bench_long"),
    "bench_drift": ("training.evaluation.bench", "bench_drift"),
    "prepare": ("training.prepare.command", "prepare"),
    "scale": ("training.scaling.command", "main"),
}


def load(name: str) -> Callable:
    """Import and return a function of `training` by its name in the table."""
    module, function = FUNCTIONS[name]
    return getattr(import_module(module), function)


def add_training(commands) -> None:
    """Add the commands that make the procedural world and train models."""
    world = commands.add_parser("world", help="render captioned clips of the procedural world", add_help=False)
    world.set_defaults(run=_train, part="world")
    train = commands.add_parser(
        "train",
        help="train a part (vae, text, captioner, upsampler, dit, judge), or all of them in order (recipe)",
        add_help=False,
    )
    train.add_argument("part", choices=PARTS, nargs="?", help="then longtake train PART --help explains its presets")
    train.set_defaults(run=_train, usage=train)
    scale = commands.add_parser(
        "scale",
        help="scaling laws: plan, run, fit, predict, report; costs compares with published runs",
        add_help=False,
    )
    scale.add_argument("step", nargs="?", help="then longtake scale STEP --help explains its options")
    scale.set_defaults(run=_scale, usage=scale)


def _scale(args: argparse.Namespace) -> int:
    return load("scale")([*([args.step] if args.step else []), *args.rest])


def _train(args: argparse.Namespace) -> None:
    if args.part is None:
        args.usage.print_help(sys.stdout if args.rest else sys.stderr)
        sys.exit(0 if args.rest else BAD_INPUT)
    load("train")([args.part, *args.rest])
