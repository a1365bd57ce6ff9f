"""Make many clips as a batch, some of them by a process each, and say how many an hour each way makes; then make them
again in other shards, and compare the bytes.

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
THINGS = ("ball", "cube", "cylinder", "capsule")


def pace(folder: Path, rows: int, sample: int, shards: int, settings: list[str], words: list[str]) -> dict[str, float]:
    """Return clips an hour of a batch, and of one process after another that makes a clip with all cores, and the ratio
    of the two; and how many files have other bytes where the batch was made in shards.

    `settings` are FIELD=VALUE of all clips, `words` further ones of `longtake render`. A batch's time is all of it,
    from the command to its end.
    """
    jobs = folder / "jobs.txt"
    jobs.write_text("".join(f"a red {THINGS[n % len(THINGS)]} bounces {n}\n" for n in range(rows)))
    flags = [flag for setting in settings for flag in ("--set", setting)]
    render = lambda output, *more: timed("render", str(jobs), "-o", str(output), *flags, *words, *more)
    hours = render(folder / "whole") / 3600
    for n in range(1, shards + 1):
        render(folder / "parts", "--shard", f"{n}/{shards}")
    whole, parts = digests(folder / "whole"), digests(folder / "parts")
    asked = [json.loads(line) for line in (folder / "whole" / "manifest.jsonl").read_text().splitlines()]
    chosen = asked[:: max(1, rows // sample)][:sample] if sample else []
    alone = 0.0
    for number, line in enumerate(chosen):
        output = folder / f"{number}{Path(line['output']).suffix}"
        prompt = jobs.read_text().splitlines()[line["row"] - 1]
        given = [flag for setting in settings for flag in _flag(setting)]
        alone += timed("generate", prompt, *given, "-o", str(output)) / 3600
    found = {"rows": len(whole), "an hour": round(len(whole) / hours), "shards": shards}
    found["other bytes in shards"] = (
        sum(parts.get(name) != value for name, value in whole.items()) + len(parts) - len(whole)
    )
    if chosen:
        each = len(chosen) / alone
        found |= {"a process each, an hour": round(each), "times": round(len(whole) / hours / each, 1)}
    return found


def timed(*words: str) -> float:
    """Run a command of longtake; return its seconds."""
    begun = time.monotonic()
    subprocess.run([*LONGTAKE, *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - begun


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every clip in a batch's folder, by name."""
    clips = [path for path in folder.iterdir() if path.suffix in (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES)]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in clips}


def _flag(setting: str) -> list[str]:
    name, _, value = setting.partition("=")
    return [f"--{name.replace('_', '-')}", value]


if __name__ == "__main__":
    words = argparse.ArgumentParser("app.loadtest.throughput", description=(__doc__ or "").splitlines()[0])
    words.add_argument("--rows", type=int, default=200)
    words.add_argument("--sample", type=int, default=5, help="how many are made by a process each")
    words.add_argument("--shards", type=int, default=4)
    words.add_argument("--set", nargs="*", default=["steps=30"], metavar="FIELD=VALUE", help="of all clips")
    chosen, more = words.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        print(pace(Path(folder), chosen.rows, chosen.sample, chosen.shards, chosen.set, more))
