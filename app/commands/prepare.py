"""`longtake prepare`: the words for its steps. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import argparse
import errno
import importlib
import sys
from pathlib import Path

from app.exit_codes import PARTIAL


def add_prepare(commands) -> None:
    """Add the steps from raw videos to what a model trains on."""
    prepare = commands.add_parser("prepare", help="turn a folder of videos into what a model trains on")
    steps = prepare.add_subparsers(dest="step", metavar="STEP", required=True)
    for name, (line, *groups) in PREPARE.items():
        step = steps.add_parser(name, help=line, description=line)
        if PREPARE_CLIPS in groups:
            step.add_argument("source", help="a folder, a glob, a .txt with a file on each line, or a WebDataset .tar")
        step.add_argument("folder", type=Path, help="the prepared folder; run again, it goes on where it was")
        for flag, settings in (pair for group in (*groups, PREPARE_ENGINE) for pair in group.items()):
            step.add_argument(flag, **settings)
        step.set_defaults(act=_prepare)


def parse_format(words: str) -> tuple[int, int, int]:
    """Read COLUMNSxROWSxFRAMES, as argparse asks for it."""
    try:
        columns, rows, frames = map(int, words.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"a format must be COLUMNSxROWSxFRAMES; got {words!r}") from None
    return columns, rows, frames


def parse_threshold(words: str) -> tuple[str, float]:
    """Read NAME=VALUE, as argparse asks for it."""
    name, _, value = words.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a threshold must be NAME=VALUE, with a number; got {words!r}") from None


PREPARE_CLIPS: dict[str, dict] = {
    "--detector": {"help": "of shots: adaptive, which forgives fast cameras (default), or content"},
    "--shortest": {"type": float, "help": "seconds; shorter shots are counted and left out (default 1)"},
    "--longest": {"type": float, "help": "seconds; longer shots are parted evenly (default 10)"},
    "--follow": {"action": "store_true", "default": None, "help": "follow links that lead out of the source"},
}
PREPARE_FILTER: dict[str, dict] = {
    "--matcher": {
        "metavar": "NAME",
        "help": "who says how well captions fit: the folder of our own captioner, or ARCHITECTURE:WEIGHTS of open_clip",
    },
    "--threshold": {
        "action": "append",
        "type": parse_threshold,
        "dest": "thresholds",
        "metavar": "NAME=VALUE",
        "help": "where the threshold of a score lies; any number of times",
    },
    "--drop": {
        "action": "append",
        "metavar": "NAME",
        "help": "leave out of training the clips that fail this score's threshold, or all of them (default none)",
    },
}
PREPARE_CAPTIONS: dict[str, dict] = {
    "--captioner": {"metavar": "NAME", "help": "the folder of our own, or a vision-language model of transformers"},
    "--endpoint": {"help": "where a model answers as OpenAI's API does, such as http://localhost:8000/v1"},
    "--model": {"help": "its name there"},
    "--key": {"help": "the environment variable that holds its key (default OPENAI_API_KEY)"},
    "--answer": {"type": float, "help": "seconds for one answer (default 60)"},
}
PREPARE_LATENTS: dict[str, dict] = {
    "--vae": {"type": Path, "help": "the folder of the VAE (default that of the shipped model)"},
    "--text": {
        "type": Path,
        "help": "the text encoder that captions are encoded by: a model's folder, or a name of transformers (default "
        "that of the shipped model)",
    },
    "--formats": {
        "nargs": "+",
        "type": parse_format,
        "metavar": "COLUMNSxROWSxFRAMES",
        "help": "what to bring clips to (default 64x64x17 80x48x17 48x80x17 64x64x1)",
    },
    "--fps": {"type": float, "help": "frames a second (default 8)"},
}
PREPARE_ENGINE: dict[str, dict] = {
    "--engine": {"help": "pool (default), here or ray"},
    "--workers": {"type": int, "help": "how many files are worked on at once (default 2)"},
    "--limit": {"type": float, "help": "seconds for one file (default 3600)"},
}
PREPARE: dict[str, tuple] = {
    "clips": ("Cut raw videos into clips of one shot each.", PREPARE_CLIPS),
    "filter": ("Score all clips, and say how many each threshold would drop.", PREPARE_FILTER),
    "captions": ("Let a captioner describe all clips: the shipped one, or the one named here.", PREPARE_CAPTIONS),
    "latents": ("Code all clips for training, as WebDataset tars.", PREPARE_LATENTS),
    "all": (
        "All of these, one after the other; captions by the shipped captioner, or the one named here.",
        PREPARE_CLIPS,
        PREPARE_FILTER,
        PREPARE_CAPTIONS,
        PREPARE_LATENTS,
    ),
}


KINDS = {"formats": tuple, "thresholds": dict, "drop": tuple}  # of what is given as a list


def _prepare(chosen: argparse.Namespace) -> int:
    from app.commands.caption import shipped
    from app.registry import model_folder

    try:
        prepare = importlib.import_module("training.prepare.command").prepare
    except ModuleNotFoundError as error:
        raise ValueError(f"prepare needs {error.name}, of the extra data; pip install .[data]") from error
    given = {name: value for name, value in vars(chosen).items() if value is not None}
    for name in ("act", "command", "step"):
        given.pop(name)
    if PREPARE_LATENTS in PREPARE[chosen.step]:
        given.setdefault("vae", model_folder(None) / "vae")
        given.setdefault("text", model_folder(None))
    if PREPARE_CAPTIONS in PREPARE[chosen.step] and not given.keys() & {"captioner", "endpoint", "model"}:
        given["captioner"] = str(shipped())
    given |= {name: kind(given[name]) for name, kind in KINDS.items() if name in given}
    try:
        report, failures = prepare(chosen.step, **given)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        sentence = f"the disk of {chosen.folder} is full; what is done is kept, so make room and run this again"
        print(f"longtake: {sentence}", file=sys.stderr)
        return PARTIAL
    print(report)
    for name, error in failures:
        print(f"longtake: {name}: {error}", file=sys.stderr)
    return PARTIAL if failures else 0
