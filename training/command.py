"""The command line of training: a preset, changed field by field.

longtake train dit --preset tiny --steps 100
python -m training.command dit --preset tiny
accelerate launch -m training.command dit --preset tiny
"""

from __future__ import annotations

import argparse
import importlib
import sys

import tyro

from training.config import Recipe, Run, WorldRun
from training.cost import describe_cost
from training.presets import PRESETS
from training.recipe import PARTS

# The module and the function that runs each kind of preset; imported when it is called.
TRAINERS = PARTS | {
    "captioner": ("training.train_captioner", "train"),
    "upsampler": ("training.train_upsampler", "train"),
    "recipe": ("training.recipe", "train"),
}


def main(words: list[str] | None = None) -> None:
    """Run one trainer: its kind, then the words that `parse_run` reads."""
    words = sys.argv[1:] if words is None else words
    parser = argparse.ArgumentParser(prog="python -m training.command", description="Train one part of a model.")
    parser.add_argument("kind", choices=TRAINERS, help="what to train; KIND --help lists its options")
    kind = parser.parse_args(words[:1]).kind
    module, function = TRAINERS[kind]
    getattr(importlib.import_module(module), function)(parse_run(kind, words[1:]))


def parse_run(kind: str, words: list[str] | None = None) -> Run | WorldRun | Recipe:
    """Parse a run from command-line words: `--preset NAME`, then any field of it, such as `--steps 100`.

    `--dry-run` prints the resolved config with its cost and exits.
    """
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--preset", default=next(iter(PRESETS[kind])), choices=sorted(PRESETS[kind]))
    first.add_argument("--dry-run", action="store_true")
    chosen, fields = first.parse_known_args(words)
    preset = PRESETS[kind][chosen.preset]()
    command = "longtake world" if kind == "world" else f"longtake train {kind}"
    run = tyro.cli(
        type(preset),
        default=preset,
        args=fields,
        prog=f"{command} --preset {chosen.preset}",
        description=f"--preset NAME chooses the defaults ({', '.join(sorted(PRESETS[kind]))}).\n\n"
        "The options below override them. --dry-run prints the run with its cost, and exits.",
    )
    if chosen.dry_run:
        print(describe_cost(run))
        raise SystemExit(0)
    return run


if __name__ == "__main__":
    main()
