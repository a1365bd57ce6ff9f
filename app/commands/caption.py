"""`longtake caption`: describe videos and images, one line each. Heavy modules are imported when it runs."""

from __future__ import annotations

import argparse
import json
import os
import sys

from app.commands.request_flags import add_flag
from app.exit_codes import PARTIAL
from app.registry import shipped_captioner

ESCAPES = str.maketrans({"\t": r"\t", "\n": r"\n", "\r": r"\r"})  # in file names, which get one line

CAPTIONER_FLAGS: dict[str, dict] = {
    "--captioner": {"metavar": "NAME", "help": "the folder of our own, or a vision-language model of transformers"},
    "--endpoint": {"help": "address of an OpenAI-compatible API, such as http://localhost:8000/v1"},
    "--model": {"help": "the model's name at the endpoint"},
    "--key": {"help": "the environment variable with the endpoint's key (default OPENAI_API_KEY)"},
    "--answer-timeout": {"type": float, "help": "timeout of one answer, in seconds (default 60)"},
}


def add_caption(commands) -> None:
    """Add the command that describes any files."""
    caption = commands.add_parser(
        "caption",
        help="describe videos and images",
        description="Describe videos and images, one line each, with the shipped captioner or the one named here.",
    )
    caption.add_argument("files", nargs="+", metavar="FILE", help="a video or image")
    for flag, settings in CAPTIONER_FLAGS.items():
        add_flag(caption, flag.removeprefix("--"), "answer" if flag == "--answer-timeout" else None, **settings)
    caption.add_argument("--json", action="store_true", help="print JSON lines, with the parts and the captioner")
    caption.set_defaults(run=_caption)


def _caption(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from captioning.caption import MAX_FRAMES, MAX_SIDE
    from captioning.captioner import load_captioner
    from vae.video.sandbox import read_sampled_frames

    name = args.captioner or ("" if args.endpoint or args.model else shipped_captioner())
    key = os.environ.get(args.key or "OPENAI_API_KEY")
    timeout = 60.0 if args.answer_timeout is None else args.answer_timeout
    captioner = load_captioner(name, args.endpoint or "", args.model or "", key, timeout)
    failed = 0
    for file in tqdm(args.files, desc="captioning", unit="file", file=sys.stderr):
        try:
            found = captioner.describe(read_sampled_frames(file, MAX_FRAMES, MAX_SIDE))
        except (ValueError, OSError) as error:  # their messages are written for users
            message = str(error) if file in str(error) else f"{file}: {error}"
            tqdm.write(f"longtake: {message}", file=sys.stderr)
            failed += 1
            continue
        if args.json:
            caption = {"caption": found.text, "parts": found.parts}
            line = json.dumps({"file": file, **caption, "source": captioner.name, "version": captioner.version})
        else:
            line = f"{_printable(file)}\t{' '.join(found.text.split())}"
        tqdm.write(line)
    return PARTIAL if failed else 0


def _printable(file: str) -> str:
    """Write a file name, which may be any bytes, on one line."""
    return file.encode("utf-8", "backslashreplace").decode().translate(ESCAPES)
