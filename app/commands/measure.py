"""`longtake evaluate` and `longtake bench`: the words for measuring models. Nothing heavy is imported before it is
needed.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

UPSAMPLE_HELP = (
    "who writes a short prompt out: none (default), auto, the folder of an upsampler, a language model of "
    "transformers, or ADDRESS#MODEL of an OpenAI-compatible endpoint"
)


def add_measure(commands) -> None:
    """Add the commands that measure models."""
    evaluate = commands.add_parser("evaluate", help="measure how well a model follows prompts")
    evaluate.add_argument(
        "model", nargs="?", help="a shipped model or a model folder (default: the one that generate uses)"
    )
    evaluate.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("evaluation"),
        metavar="FOLDER",
        help="for the report and the picture (default evaluation)",
    )
    evaluate.add_argument("--prompts", type=int, default=200, help="how many prompts of each set (default 200)")
    evaluate.add_argument("--seed", type=int, default=0)
    evaluate.add_argument(
        "--words",
        default="plain",
        help="how prompts are said: plain (default), synonyms, reserved, chinese, label or dense",
    )
    evaluate.add_argument("--upsample", metavar="NAME", help=UPSAMPLE_HELP)
    evaluate.set_defaults(act=_evaluate)

    bench = commands.add_parser("bench", help="measure what long clips cost, and how far they drift")
    bench.add_argument("what", choices=("long", "drift"))
    bench.add_argument(
        "model", nargs="?", help="a shipped model or a model folder (default: the one that generate uses)"
    )
    bench.set_defaults(act=_bench)


def _evaluate(chosen: argparse.Namespace) -> None:
    from app.registry import MODELS, model_folder, upsampler_named

    evaluate = importlib.import_module("training.evaluation.evaluate").evaluate
    evaluate(
        model_folder(chosen.model),
        MODELS / "judge",
        chosen.output,
        prompts=chosen.prompts,
        seed=chosen.seed,
        words=chosen.words,
        upsample=upsampler_named(chosen.upsample),
        captioner=MODELS / "captioner",
    )
    print(chosen.output)


def _bench(chosen: argparse.Namespace) -> None:
    from app.registry import MODELS, model_folder

    folder, bench = model_folder(chosen.model), importlib.import_module("training.evaluation.bench")
    if chosen.what == "long":
        bench.long(folder)
    else:
        bench.drift(folder, MODELS / "judge")
