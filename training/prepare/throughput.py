"""How many films a minute are prepared by one worker and by two, and what is lost when workers are killed.

python -m training.prepare.throughput [--engine ray]
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import torch
from tqdm import tqdm

from training.prepare.clips import ClipsRun, clips
from training.prepare.filter import FilterRun, filter_clips
from training.prepare.manifest import Row, read_manifest
from training.world.clip import make_clip
from vae.video.write import write_video

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


def prepared(source: Path, folder: Path, workers: int, engine: str) -> tuple[float, list[Row]]:
    """Cut films into clips and score these; returns the seconds that took, and the manifest's rows."""
    begun = time.monotonic()
    clips(ClipsRun(str(source), folder, engine=engine, workers=workers))
    filter_clips(FilterRun(folder, engine=engine, workers=workers))
    return time.monotonic() - begun, read_manifest(folder)


def at_work() -> list[psutil.Process]:
    """List this process's workers: the children of a pool's server, which lives on, and what Ray has map."""
    found = []
    for server in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            rays = server.name() in ("raylet", "gcs_server")
            found += [one for one in server.children() if not rays or one.cmdline()[:1] == ["ray::Map(_errand)"]]
    return found


@contextmanager
def killing(every: float, most: int | None = None, seed: int = 0) -> Iterator[list[int]]:
    """Kill one of this process's workers, whichever it is, every so many seconds, and `most` of them; yields the list
    of those killed.
    """
    chance, killed, over = random.Random(seed), [], threading.Event()

    def kill() -> None:
        while len(killed) != most and not over.wait(every):
            if workers := at_work():
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


def pace(folder: Path, count: int, every: float, engine: str = "pool", most: int | None = None) -> dict[str, float]:
    """Prepare the same films three times; returns films a minute by one worker, by two, and by two of which `most` are
    killed, one every so many seconds, how many were, and how many clips of the first run differ or are missing then.
    """
    source = folder / "films"
    source.mkdir()
    films(source, count)
    prepared(source, folder / "warm", 1, engine)  # the first one pays for what the later ones find in memory
    alone, wanted = prepared(source, folder / "one", 1, engine)
    together, rows = prepared(source, folder / "two", 2, engine)
    if rows != wanted:
        raise RuntimeError("two workers must make what one makes, and made something else")
    with killing(every, most) as killed:
        disturbed, found = prepared(source, folder / "killed", 2, engine)
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
    words = argparse.ArgumentParser("training.prepare.throughput", description=(__doc__ or "").splitlines()[0])
    words.add_argument("--films", type=int, default=24)
    words.add_argument("--every", type=float, default=3.0, help="seconds between two kills")
    words.add_argument("--engine", choices=("pool", "ray"), default="pool")
    chosen = words.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, number in pace(Path(folder), chosen.films, chosen.every, chosen.engine).items():
            print(f"{name:22} {number}")
