"""How many films a minute are prepared by one worker and by two, and what is lost when workers are killed.

python -m training.prepare.pace
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from tqdm import tqdm

from training.prepare.clips import ClipsRun, clips
from training.prepare.filter import FilterRun, filter_clips
from training.prepare.manifest import Row, read_manifest
from training.world.clip import make_clip
from vae.recorder import write_video

ROWS, COLUMNS, FRAMES, FPS = 144, 256, 48, 24.0  # of a shot
SHOTS = 2  # in a film


def films(folder: Path, count: int) -> None:
    """Write films of the procedural world, of some shots each."""
    for number in tqdm(range(count), "films"):
        shots = [
            make_clip(0, "train", SHOTS * number + shot, rows=ROWS, columns=COLUMNS, frames=FRAMES, fps=FPS).video
            for shot in range(SHOTS)
        ]
        write_video(folder / f"{number:04d}.mp4", torch.cat(shots, dim=1), FPS)


def prepared(source: Path, folder: Path, workers: int) -> tuple[float, list[Row]]:
    """Cut films into clips and score these; returns the seconds that took, and the manifest's rows."""
    begun = time.monotonic()
    clips(ClipsRun(str(source), folder, workers=workers))
    filter_clips(FilterRun(folder, workers=workers))
    return time.monotonic() - begun, read_manifest(folder)


@contextmanager
def killing(every: float, seed: int = 0) -> Iterator[list[int]]:
    """Kill one of this process's workers, whichever it is, every so many seconds; yields the list of those killed."""
    chance, killed, over = random.Random(seed), [], threading.Event()

    def kill() -> None:
        while not over.wait(every):
            # The workers of a pool are the children of its server, which lives on.
            workers = [two for one in psutil.Process().children() for two in one.children()]
            if workers:
                victim = chance.choice(workers)
                try:
                    victim.kill()
                except psutil.NoSuchProcess:
                    continue
                killed.append(victim.pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def pace(folder: Path, count: int, every: float) -> dict[str, float]:
    """Prepare the same films three times; returns films a minute by one worker, by two, and by two that are killed
    every so many seconds, how many were killed, and how many clips of the first run differ or are missing then.
    """
    source = folder / "films"
    source.mkdir()
    films(source, count)
    prepared(source, folder / "warm", 1)  # the first run of a machine pays for what the later ones find in memory
    alone, wanted = prepared(source, folder / "one", 1)
    together, rows = prepared(source, folder / "two", 2)
    if rows != wanted:
        raise RuntimeError("two workers must make what one makes, and made something else")
    with killing(every) as killed:
        disturbed, found = prepared(source, folder / "killed", 2)
    return {
        "films": count,
        "clips": len(wanted),
        "a minute, one worker": round(60 * count / alone, 1),
        "a minute, two": round(60 * count / together, 1),
        "a minute, killed": round(60 * count / disturbed, 1),
        "killed": len(killed),
        "lost or changed": len({row.clip for row in wanted} ^ {row.clip for row in found})
        + sum(row not in found for row in wanted),
        "doubled": len(found) - len({row.clip for row in found}),
    }


if __name__ == "__main__":
    words = argparse.ArgumentParser("training.prepare.pace", description=(__doc__ or "").splitlines()[0])
    words.add_argument("--films", type=int, default=24)
    words.add_argument("--every", type=float, default=3.0, help="seconds between two kills")
    chosen = words.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, number in pace(Path(folder), chosen.films, chosen.every).items():
            print(f"{name:22} {number}")
