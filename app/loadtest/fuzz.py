"""Feed what strangers send with altered, torn and hostile inputs, and count what is taken, refused and broken.

python -m app.loadtest.fuzz --inputs 20000 --seed 0

| kind | what is fed |
|---|---|
| request | JSON and named values to the parser of requests; what is taken must survive being written and read again |
| rows | .jsonl, .csv, .tsv, .txt, .yaml and .json files of rows, and the names of the clips that they would make |
| board | storyboards in YAML and JSON |
| file | pictures and films to what reads uploads, one after another in one process with an upload's limits |
| upload | pictures and films to `keep_upload`, each in a child process of its own |

An input is broken that raises anything but its own kind of ValueError, says more than one line or a path of this
machine, takes too long or too much memory, or brings its process down (of a file: none of these but the errors, since
the process is there to be brought down). Every input is a function of the seed, its kind and its number.
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

from app.loadtest.feeds import BYTES, DATA, EXAMPLES, REFUSED, TAKEN, feed
from app.server.uploads import CHILD_SECONDS
from vae.video.sandbox import hide_main_module

SHARES = {"request": 0.4, "rows": 0.15, "board": 0.15, "file": 0.2, "upload": 0.1}
SECONDS = 10.0  # of a processor that one input may take
HUNG_SECONDS, STARTING_SECONDS = 60.0, 120.0  # by the clock, for one input and for a process to begin, if it is busy
ELSEWHERE = "elsewhere"  # in the sandbox: where nothing may be written


@dataclass
class Tally:
    """How the inputs of a kind went."""

    counts: Counter[str] = field(default_factory=Counter)
    broken: dict[int, str] = field(default_factory=dict)  # what broke, by the input's number
    slowest: float = 0.0  # seconds
    grown: int = 0  # bytes


def fuzz(kind: str, inputs: int, seed: int, sandbox: Path) -> Tally:
    """Feed so many inputs of a kind to warm processes, another whenever one dies or hangs."""
    tally, number = Tally(), 0
    seconds = CHILD_SECONDS + HUNG_SECONDS if kind in ("file", "upload") else HUNG_SECONDS
    while number < inputs:
        context: Any = get_context("spawn")
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=feed, args=(kind, seed, range(number, inputs), sandbox, there))
        with hide_main_module():
            process.start()
        there.close()
        for said in _heard(here, number, inputs, seconds):
            number, went, took, grown = said
            known = went in (TAKEN, REFUSED)
            fallen = went in ("hung", "crashed") and kind == "file"
            late = known and took > SECONDS
            tally.counts[went if known or fallen else "broken"] += 1
            if late or not (known or fallen):
                tally.broken[number] = f"took {took:.1f} s" if late else went
            tally.slowest, tally.grown = max(tally.slowest, took), max(tally.grown, grown)
        number += 1
        process.kill()
        process.join()
    if kind != "file" and tally.grown > BYTES:
        tally.broken[-1] = f"{tally.grown:,} bytes of memory"
    if inputs and not (tally.counts[TAKEN] and tally.counts[REFUSED]):
        tally.broken[-2] = "an example must be taken and a spoilt one refused, now and then"
    return tally


def _heard(here: Connection, number: int, inputs: int, seconds: float) -> Iterator[tuple[int, str, float, int]]:
    """Yield what a process says of each input, until it has said all, dies or hangs."""
    first = True
    while number < inputs:
        try:
            if not here.poll(seconds + (STARTING_SECONDS if first else 0.0)):  # the first has imports to wait for
                yield number, "hung", seconds, 0
                return
            yield here.recv()
        except EOFError:
            yield number, "crashed", 0.0, 0
            return
        number, first = number + 1, False


def make_sandbox(folder: Path) -> None:
    """Fill a folder with examples of files, a place for data, and a place that nobody may touch."""
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
        write_video(folder / EXAMPLES / f"film{suffix}", [clip], 12, metadata={"longtake": '{"prompt": "a red ball"}'})


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Return all that lies in a folder, its bytes and when they were changed, but for the data."""
    found = {str(path.relative_to(folder)): path.stat() for path in folder.rglob("*")}
    return {name: (at.st_size, at.st_mtime_ns) for name, at in found.items() if not name.startswith(DATA)}


def campaign(inputs: int, seed: int, kinds: tuple[str, ...] = tuple(SHARES)) -> dict[str, Tally]:
    """Feed so many inputs, each kind its share of all; returns how they went. A file that was written where none may
    be is told under "files".
    """
    tallies = {}
    with tempfile.TemporaryDirectory() as name:
        sandbox = Path(name)
        make_sandbox(sandbox)
        before = tree(sandbox)
        for kind in kinds:
            begun = time.monotonic()
            tallies[kind] = fuzz(kind, round(inputs * SHARES[kind]), seed, sandbox)
            print(f"{line(kind, tallies[kind])}, {time.monotonic() - begun:.0f} s", file=sys.stderr)
        if (after := tree(sandbox)) != before:
            changed = sorted(name for name, _ in before.items() ^ after.items())
            tallies["files"] = Tally(broken={-1: f"written where nothing may be: {', '.join(changed)}"})
    return tallies


def line(kind: str, tally: Tally) -> str:
    """Say how the inputs of a kind went."""
    counts = ", ".join(f"{count} {went}" for went, count in sorted(tally.counts.items()))
    return f"{kind}: {counts}, {len(tally.broken)} broken, slowest {tally.slowest:.2f} s, {tally.grown / 2**20:.0f} MiB"


if __name__ == "__main__":
    words = argparse.ArgumentParser("app.loadtest.fuzz", description=(__doc__ or "").splitlines()[0])
    words.add_argument("--inputs", type=int, default=20_000)
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--kinds", nargs="+", choices=SHARES, default=list(SHARES))
    chosen = words.parse_args()
    found = campaign(chosen.inputs, chosen.seed, tuple(chosen.kinds))
    for kind, tally in found.items():
        print(line(kind, tally))
        for number, what in list(tally.broken.items())[:20]:
            print(f"  {kind} {number}: {what!r}")
    sys.exit(1 if any(tally.broken for tally in found.values()) else 0)
