"""`longtake caption`: what videos and pictures show, a line each. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from app.commands.prepare import PREPARE_CAPTIONS
from app.exit_codes import PARTIAL

SHIPPED = Path(__file__).parents[1] / "models" / "captioner"
ESCAPED = str.maketrans({"\t": r"\t", "\n": r"\n", "\r": r"\r"})  # in the name of a file, which has one line


def add_caption(commands) -> None:
    """Add the command that describes any files."""
    caption = commands.add_parser(
        "caption",
        help="say what videos and pictures show",
        description="Say what videos and pictures show, a line each: by the shipped captioner, or the one named here.",
    )
    caption.add_argument("files", nargs="+", metavar="FILE", help="a video or picture")
    for flag, settings in PREPARE_CAPTIONS.items():
        caption.add_argument(flag, **settings)
    caption.add_argument("--json", action="store_true", help="print JSON lines, with the parts and who said it")
    caption.set_defaults(act=_caption)


def _caption(chosen: argparse.Namespace) -> int:
    from tqdm import tqdm

    from captioning.caption import MAX_FRAMES, MAX_SIDE
    from captioning.captioner import load_captioner
    from vae.video.sandbox import read_sampled_frames

    name = chosen.captioner or ("" if chosen.endpoint or chosen.model else shipped())
    key = os.environ.get(chosen.key or "OPENAI_API_KEY")
    seconds = 60.0 if chosen.answer is None else chosen.answer
    captioner = load_captioner(name, chosen.endpoint or "", chosen.model or "", key, seconds)
    failed = 0
    for file in tqdm(chosen.files, desc="captioning", unit="file", file=sys.stderr):
        try:
            found = captioner.describe(read_sampled_frames(file, MAX_FRAMES, MAX_SIDE))
        except (ValueError, OSError) as error:  # which say what is the matter with a file
            sentence = str(error) if file in str(error) else f"{file}: {error}"
            tqdm.write(f"longtake: {sentence}", file=sys.stderr)
            failed += 1
            continue
        if chosen.json:
            said = {"caption": found.text, "parts": found.parts}
            line = json.dumps({"file": file, **said, "source": captioner.name, "version": captioner.version})
        else:
            line = f"{_printable(file)}\t{' '.join(found.text.split())}"
        tqdm.write(line)
    return PARTIAL if failed else 0


def shipped() -> Path:
    """Return the shipped captioner's folder; raises ValueError where none is shipped."""
    if not SHIPPED.is_dir():
        raise ValueError("a captioner must be named where none is shipped; give --captioner, or --endpoint and --model")
    return SHIPPED


def _printable(file: str) -> str:
    """Write the name of a file, which may be any bytes, on one line."""
    return file.encode("utf-8", "backslashreplace").decode().translate(ESCAPED)
