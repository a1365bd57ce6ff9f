"""`longtake prepare`: from raw videos to training data. Heavy modules are imported when it runs."""

from __future__ import annotations

import argparse
import errno
import sys
from pathlib import Path

from app.commands.caption import CAPTIONER_FLAGS
from app.commands.request_flags import add_flag
from app.commands.training import load
from app.exit_codes import PARTIAL
from app.registry import model_folder, shipped_captioner


def add_prepare(commands) -> None:
    """Add the steps from raw videos to what a model trains on."""
    prepare = commands.add_parser("prepare", help="turn a folder of videos into training data")
    steps = prepare.add_subparsers(dest="step", metavar="STEP", required=True)
    for name, (line, *groups) in STEPS.items():
        step = steps.add_parser(name, help=line, description=line)
        if CLIPS_FLAGS in groups:
            step.add_argument("source", help="a folder, a glob, a .txt with one file per line, or a WebDataset .tar")
        step.add_argument("folder", type=Path, help="the prepared folder; run again, it continues where it stopped")
        for flag, settings in (pair for group in (*groups, ENGINE_FLAGS) for pair in group.items()):
            add_flag(step, flag.removeprefix("--"), FORMER_FLAGS.get(flag), **settings)
        step.set_defaults(run=_prepare)


def parse_engine(text: str) -> str:
    """Return an engine's name, also for the one that "serial" had in version 0.1."""
    return "serial" if text == "here" else text


def parse_format(text: str) -> tuple[int, int, int]:
    """Parse COLUMNSxROWSxFRAMES; raises argparse's error for anything else."""
    try:
        columns, rows, frames = map(int, text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"a format must be COLUMNSxROWSxFRAMES; got {text!r}") from None
    return columns, rows, frames


def parse_threshold(text: str) -> tuple[str, float]:
    """Parse NAME=VALUE; raises argparse's error for anything else."""
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a threshold must be NAME=VALUE, with a number; got {text!r}") from None


CLIPS_FLAGS: dict[str, dict] = {
    "--detector": {"help": "of shots: adaptive, which tolerates fast camera motion (default), or content"},
    "--shortest": {"type": float, "help": "seconds; shorter shots are counted and left out (default 1)"},
    "--longest": {"type": float, "help": "seconds; longer shots are divided evenly (default 10)"},
    "--encoding": {
        "metavar": "NAME",
        "help": "of captions that are neither UTF-8 nor UTF-16, such as gb18030 (default: it is found out)",
    },
    "--follow": {"action": "store_true", "default": None, "help": "follow links that lead out of the source"},
}
FILTER_FLAGS: dict[str, dict] = {
    "--matcher": {
        "metavar": "NAME",
        "help": "the model that scores how well captions match: the folder of our own captioner, or "
        "ARCHITECTURE:WEIGHTS of open_clip",
    },
    "--threshold": {
        "action": "append",
        "type": parse_threshold,
        "dest": "thresholds",
        "metavar": "NAME=VALUE",
        "help": "the threshold of a score; any number of times",
    },
    "--drop": {
        "action": "append",
        "metavar": "NAME",
        "help": "leave out of training the clips that fail this score's threshold, or all of them (default none)",
    },
}
LATENTS_FLAGS: dict[str, dict] = {
    "--vae": {"type": Path, "help": "the folder of the VAE (default that of the shipped model)"},
    "--text-encoder": {
        "type": Path,
        "help": "the text encoder of the captions: a model's folder, or a name of transformers (default that of the "
        "shipped model)",
    },
    "--formats": {
        "nargs": "+",
        "type": parse_format,
        "metavar": "COLUMNSxROWSxFRAMES",
        "help": "sizes that clips are fitted to (default 64x64x17 80x48x17 48x80x17 64x64x1)",
    },
    "--fps": {"type": float, "help": "frames per second (default 8)"},
}
ENGINE_FLAGS: dict[str, dict] = {
    "--engine": {"type": parse_engine, "help": "pool (default), serial or ray"},
    "--workers": {"type": int, "help": "files processed at once (default 2)"},
    "--timeout": {"type": float, "help": "timeout of one file, in seconds (default 3600)"},
}
FORMER_FLAGS = {"--timeout": "limit", "--text-encoder": "text", "--answer-timeout": "answer"}  # of version 0.1
STEPS: dict[str, tuple] = {
    "clips": ("Cut raw videos into clips of one shot each.", CLIPS_FLAGS),
    "filter": ("Score all clips, and print how many each threshold would drop.", FILTER_FLAGS),
    "captions": ("Caption all clips with the shipped captioner, or the one named here.", CAPTIONER_FLAGS),
    "latents": ("Encode all clips for training, as WebDataset tars.", LATENTS_FLAGS),
    "all": (
        "All of these, one after the other; captions by the shipped captioner, or the one named here.",
        CLIPS_FLAGS,
        FILTER_FLAGS,
        CAPTIONER_FLAGS,
        LATENTS_FLAGS,
    ),
}


CONVERT = {"formats": tuple, "thresholds": dict, "drop": tuple}  # from the list of a repeated flag to the run's field


def _prepare(args: argparse.Namespace) -> int:
    try:
        prepare = load("prepare")
    except ModuleNotFoundError as error:
        raise ValueError(f"prepare needs {error.name}, of the extra data; pip install .[data]") from error
    settings = {name: value for name, value in vars(args).items() if value is not None}
    for name in ("run", "command", "step"):
        settings.pop(name)
    if LATENTS_FLAGS in STEPS[args.step]:
        settings.setdefault("vae", model_folder(None) / "vae")
        settings.setdefault("text_encoder", model_folder(None))
    if CAPTIONER_FLAGS in STEPS[args.step] and not settings.keys() & {"captioner", "endpoint", "model"}:
        settings["captioner"] = str(shipped_captioner())
    settings |= {name: convert(settings[name]) for name, convert in CONVERT.items() if name in settings}
    try:
        report, failures = prepare(args.step, **settings)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        message = f"the disk of {args.folder} is full; what is done is kept, so free disk space and run this again"
        print(f"longtake: {message}", file=sys.stderr)
        return PARTIAL
    print(report)
    for name, error in failures:
        print(f"longtake: {name}: {error}", file=sys.stderr)
    return PARTIAL if failures else 0
