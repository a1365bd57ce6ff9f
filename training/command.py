"""The command line of training: a preset, changed field by field.

longtake train dit --preset tiny --steps 100
python -m training.command dit --preset tiny
accelerate launch -m training.command dit --preset tiny
"""

from __future__ import annotations

import argparse
import importlib
import sys

from training.config import Recipe, Run, WorldRun
from training.cost import describe_cost
from training.options import add_options, read_options
from training.presets import PRESETS
from training.recipe import PARTS

# The module and the function that runs each kind of preset; imported when it is called.
TRAINERS = PARTS | {
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
    presets = sorted(PRESETS[kind])
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument(
        "--preset",
        default=next(iter(PRESETS[kind])),
        choices=presets,
        metavar="NAME",
        help=f"the run whose values are the defaults below: {', '.join(presets)} (default: %(default)s)",
    )
    first.add_argument("--dry-run", action="store_true", help="print the run with its cost, and exit")
    preset = PRESETS[kind][first.parse_known_args(words)[0].preset]()
    command = "longtake world" if kind == "world" else f"longtake train {kind}"
    parser = argparse.ArgumentParser(command, usage="%(prog)s [OPTIONS]", parents=[first], allow_abbrev=False)
    add_options(parser, preset)
    args = parser.parse_args(words)
    run = read_options(args, preset)
    if args.dry_run:
        print(describe_cost(run))
        raise SystemExit(0)
    return run


if __name__ == "__main__":
    main()
