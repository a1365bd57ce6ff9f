"""`longtake evaluate`, `sensitivity` and `bench`: measure models. Heavy modules are imported when they run."""

from __future__ import annotations

import argparse
from pathlib import Path

from app.commands.request_flags import UPSAMPLE_HELP, add_flag
from app.commands.training import load
from app.registry import CAPTIONER, JUDGE, model_folder, resolve_upsampler

MODEL_HELP = "a shipped model or a model folder (default: the one that generate uses)"


def add_measure(commands) -> None:
    """Add the commands that measure models."""
    evaluate = commands.add_parser("evaluate", help="measure how well a model follows prompts")
    evaluate.add_argument("model", nargs="?", help=MODEL_HELP)
    evaluate.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("evaluation"),
        metavar="FOLDER",
        help="for the report and the figure (default evaluation)",
    )
    evaluate.add_argument("--prompts", type=int, help="prompts of each set (default 200; 300 for edition 2)")
    evaluate.add_argument(
        "--judge",
        type=Path,
        default=JUDGE,
        metavar="FOLDER",
        help="the network that reads the clips (default: the shipped one, which reads edition 1 of the world)",
    )
    evaluate.add_argument(
        "--sets",
        nargs="+",
        metavar="NAME",
        help="sets of prompts to run (default all), such as 'one thing' paraphrase; edition 2 also has variance",
    )
    evaluate.add_argument("--seed", type=int, default=0, help="of the prompts and the noise (default 0)")
    add_flag(
        evaluate,
        "phrasing",
        "words",
        default="plain",
        help="the wording of prompts: plain (default), synonyms, reserved, chinese, label or dense",
    )
    evaluate.add_argument("--upsample", metavar="NAME", help=UPSAMPLE_HELP)
    evaluate.set_defaults(run=_evaluate)

    sensitivity = commands.add_parser(
        "sensitivity", help="measure how much each word matters to a model: the loss with wrong words minus right ones"
    )
    sensitivity.add_argument("model", nargs="?", help=MODEL_HELP)
    sensitivity.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="held-out clips of the world")
    sensitivity.add_argument("--clips", type=int, default=192, help="how many of them (default 192)")
    sensitivity.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to this file")
    sensitivity.set_defaults(run=_sensitivity)

    bench = commands.add_parser("bench", help="measure the cost of long clips, and how far they drift")
    bench.add_argument("what", choices=("long", "drift"))
    bench.add_argument("model", nargs="?", help=MODEL_HELP)
    bench.set_defaults(run=_bench)


def _evaluate(args: argparse.Namespace) -> None:
    load("evaluate")(
        model_folder(args.model),
        args.judge,
        args.output,
        prompts=args.prompts,
        seed=args.seed,
        sets=args.sets,
        phrasing=args.phrasing,
        upsample=resolve_upsampler(args.upsample),
        captioner=CAPTIONER,
    )
    print(args.output)


def _sensitivity(args: argparse.Namespace) -> None:
    load("sensitivity")(model_folder(args.model), args.data, args.clips, args.json)


def _bench(args: argparse.Namespace) -> None:
    folder = model_folder(args.model)
    if args.what == "long":
        load("bench_long")(folder)
    else:
        load("bench_drift")(folder, JUDGE)
