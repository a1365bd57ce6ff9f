"""Measure clips per hour of a batch against one process per clip; then make the batch in shards and compare the bytes.

python -m app.loadtest.throughput
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from app.formats import IMAGE_SUFFIXES, VIDEO_SUFFIXES

LONGTAKE = (sys.executable, "-m", "app.cli")
OBJECTS = ("ball", "cube", "cylinder", "capsule")


def measure_batch(
    folder: Path, rows: int, single_clips: int, shards: int, settings: list[str], flags: list[str]
) -> dict[str, float]:
    """Return the clips per hour of a batch and of one process per clip with all cores, and their ratio.

    Also returns how many files differ where the batch is made in shards. `settings` are FIELD=VALUE for all clips,
    `flags` further flags of `longtake render`. The time of a batch is that of the whole command.
    """
    jobs = folder / "jobs.txt"
    jobs.write_text("".join(f"a red {OBJECTS[n % len(OBJECTS)]} bounces {n}\n" for n in range(rows)))
    flags = [*(flag for setting in settings for flag in ("--set", setting)), *flags]
    render = lambda output, *more: run_timed("render", str(jobs), "-o", str(output), *flags, *more)
    hours = render(folder / "whole") / 3600
    for n in range(1, shards + 1):
        render(folder / "parts", "--shard", f"{n}/{shards}")
    whole, parts = digests(folder / "whole"), digests(folder / "parts")
    manifest = [json.loads(line) for line in (folder / "whole" / "manifest.jsonl").read_text().splitlines()]
    samples = manifest[:: max(1, rows // single_clips)][:single_clips] if single_clips else []
    single_hours = 0.0
    for number, line in enumerate(samples):
        output = folder / f"{number}{Path(line['output']).suffix}"
        prompt = jobs.read_text().splitlines()[line["row"] - 1]
        fields = [flag for setting in settings for flag in _flag(setting)]
        single_hours += run_timed("generate", prompt, *fields, "-o", str(output)) / 3600
    found: dict[str, float] = {"rows": len(whole), "clips per hour": round(len(whole) / hours), "shards": shards}
    found["files that differ in shards"] = (
        sum(parts.get(name) != value for name, value in whole.items()) + len(parts) - len(whole)
    )
    if samples:
        single = len(samples) / single_hours
        ratio = round(len(whole) / hours / single, 1)
        found |= {"one process per clip, clips per hour": round(single), "speedup": ratio}
    return found


def run_timed(*argv: str) -> float:
    """Run a command of longtake; return its seconds."""
    started = time.monotonic()
    subprocess.run([*LONGTAKE, *argv], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - started


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every clip in a batch's folder, by name."""
    clips = [path for path in folder.iterdir() if path.suffix in (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES)]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in clips}


def _flag(setting: str) -> list[str]:
    name, _, value = setting.partition("=")
    return [f"--{name.replace('_', '-')}", value]


if __name__ == "__main__":
    parser = argparse.ArgumentParser("app.loadtest.throughput", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--single-clips", type=int, default=5, help="how many are made by a process each (default 5)")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--set", nargs="*", default=["steps=30"], metavar="FIELD=VALUE", help="of all clips")
    args, flags = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        print(measure_batch(Path(folder), args.rows, args.single_clips, args.shards, args.set, flags))
