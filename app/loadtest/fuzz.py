"""Feed mutated, corrupted and hostile inputs to everything that reads what clients send; count the outcomes.

python -m app.loadtest.fuzz --inputs 20000 --seed 0

| kind | input |
|---|---|
| request | JSON and dicts, to the parser of requests; an accepted request must survive being written and read again |
| head | bytes of connections, to the server's protocol: each is answered and closed, whatever comes or does not come |
| rows | .jsonl, .csv, .tsv, .txt, .yaml and .json files of rows, and the file names of their clips |
| storyboard | storyboards in YAML and JSON |
| file | images and videos, to the upload reader, one after another in one process with an upload's limits |
| upload | images and videos, to `keep_upload`, each in a child process of its own |

An input counts as broken if it raises anything but its own kind of ValueError, if the message has more than one line or
a path of this machine, if it takes too long or too much memory, or if it crashes its process (for `file` only the
errors count, since its process is a sandbox that may crash). Every input is a function of the seed, its kind and its
number.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from app.loadtest.feeds import ACCEPTED, DATA, EXAMPLES, MAX_GROWTH_BYTES, REFUSED, feed
from app.server.uploads import SANDBOX_SECONDS
from vae.video.sandbox import hide_main_module

SHARES = {"request": 0.35, "head": 0.05, "rows": 0.15, "storyboard": 0.15, "file": 0.2, "upload": 0.1}
MAX_CPU_SECONDS = 10.0  # of one input
HUNG_SECONDS, STARTUP_SECONDS = 60.0, 120.0  # wall time, for one input and for a process to start, on a busy machine
ELSEWHERE = "elsewhere"  # subfolder of the sandbox where nothing may be written


@dataclass
class Tally:
    """The outcomes of one kind of input."""

    counts: Counter[str] = field(default_factory=Counter)
    broken: dict[int, str] = field(default_factory=dict)  # what broke, by the number of the input
    slowest_seconds: float = 0.0
    growth_bytes: int = 0


def fuzz(kind: str, inputs: int, seed: int, sandbox: Path) -> Tally:
    """Feed inputs of one kind to a child process; start another whenever it dies or hangs."""
    tally, number = Tally(), 0
    seconds = SANDBOX_SECONDS + HUNG_SECONDS if kind in ("file", "upload") else HUNG_SECONDS
    while number < inputs:
        context: Any = get_context("spawn")
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=feed, args=(kind, seed, range(number, inputs), sandbox, there))
        with hide_main_module():
            process.start()
        there.close()
        for answered, outcome, took, growth in _outcomes(here, number, inputs, seconds):
            number = answered
            handled = outcome in (ACCEPTED, REFUSED)
            contained = outcome in ("hung", "crashed") and kind == "file"
            late = handled and took > MAX_CPU_SECONDS
            tally.counts[outcome if handled or contained else "broken"] += 1
            if late or not (handled or contained):
                tally.broken[number] = f"took {took:.1f} s" if late else outcome
            tally.slowest_seconds = max(tally.slowest_seconds, took)
            tally.growth_bytes = max(tally.growth_bytes, growth)
        number += 1
        process.kill()
        process.join()
    if kind != "file" and tally.growth_bytes > MAX_GROWTH_BYTES:
        tally.broken[-1] = f"{tally.growth_bytes:,} bytes of memory"
    if inputs and not (tally.counts[ACCEPTED] and tally.counts[REFUSED]):
        tally.broken[-2] = "some inputs must be accepted and some refused"
    return tally


def _outcomes(here: Connection, number: int, inputs: int, seconds: float) -> Iterator[tuple[int, str, float, int]]:
    """Yield a child process's outcome of each input, until all are done, it dies or hangs."""
    first = True
    while number < inputs:
        try:
            if not here.poll(seconds + (STARTUP_SECONDS if first else 0.0)):  # the first has imports to wait for
                yield number, "hung", seconds, 0
                return
            yield here.recv()
        except EOFError:
            yield number, "crashed", 0.0, 0
            return
        number, first = number + 1, False


def make_sandbox(folder: Path) -> None:
    """Fill a folder with valid files, a subfolder for data, and one that must not be written to."""
    import torch
    from PIL import Image

    from vae.video.write import write_video

    for name in (EXAMPLES, DATA, ELSEWHERE):
        (folder / name).mkdir()
    (folder / ELSEWHERE / "secret.yaml").write_text("moments: [{at: 0, prompt: secret}]\n")
    shades = Image.radial_gradient("L").resize((32, 24))
    for suffix in (".png", ".jpg", ".webp"):
        shades.convert("RGB").save(folder / EXAMPLES / f"still{suffix}")
    shades.save(folder / EXAMPLES / "moving.webp", save_all=True, append_images=[shades.rotate(90)])
    clip = torch.rand(3, 5, 24, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for suffix in (".mp4", ".webm", ".mkv", ".gif"):
        write_video(folder / EXAMPLES / f"video{suffix}", [clip], 12, metadata={"longtake": '{"prompt": "a red ball"}'})


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the size and modification time of everything in a folder except the data subfolder."""
    found = {str(path.relative_to(folder)): path.stat() for path in folder.rglob("*")}
    return {name: (at.st_size, at.st_mtime_ns) for name, at in found.items() if not name.startswith(DATA)}


def run_fuzz(inputs: int, seed: int, kinds: tuple[str, ...] = tuple(SHARES)) -> dict[str, Tally]:
    """Feed inputs, each kind its share; return the outcomes by kind, and under "files" any forbidden write."""
    tallies = {}
    with tempfile.TemporaryDirectory() as name:
        sandbox = Path(name)
        make_sandbox(sandbox)
        before = snapshot(sandbox)
        for kind in kinds:
            started = time.monotonic()
            tallies[kind] = fuzz(kind, round(inputs * SHARES[kind]), seed, sandbox)
            print(f"{summary(kind, tallies[kind])}, {time.monotonic() - started:.0f} s", file=sys.stderr)
        if (after := snapshot(sandbox)) != before:
            changed = sorted(name for name, _ in before.items() ^ after.items())
            tallies["files"] = Tally(broken={-1: f"written where nothing may be written: {', '.join(changed)}"})
    return tallies


def summary(kind: str, tally: Tally) -> str:
    """Write the outcomes of one kind as a line."""
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(tally.counts.items()))
    slowest, growth = f"slowest {tally.slowest_seconds:.2f} s", f"{tally.growth_bytes / 2**20:.0f} MiB"
    return f"{kind}: {counts}, {len(tally.broken)} broken, {slowest}, {growth}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser("app.loadtest.fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=SHARES, default=list(SHARES))
    args = parser.parse_args()
    found = run_fuzz(args.inputs, args.seed, tuple(args.kinds))
    for kind, tally in found.items():
        print(summary(kind, tally))
        for number, outcome in list(tally.broken.items())[:20]:
            print(f"  {kind} {number}: {outcome!r}")
    sys.exit(1 if any(tally.broken for tally in found.values()) else 0)
