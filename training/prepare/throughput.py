"""Measure the throughput of `longtake prepare` with one worker and two, and what is lost when workers are killed.

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

from training.manifest import ClipRow, read_manifest
from training.prepare.clips import ClipsRun, cut_clips
from training.prepare.filter import FilterRun, filter_clips
from training.world.clip import make_clip
from vae.video.write import write_video

ROWS, COLUMNS, FRAMES, FPS = 144, 256, 48, 24.0  # of one shot
SHOTS = 2  # per video


def write_videos(folder: Path, count: int) -> None:
    """Write videos of the procedural world with SHOTS shots each."""
    for number in tqdm(range(count), "videos"):
        shots = [
            make_clip(0, "train", SHOTS * number + shot, rows=ROWS, columns=COLUMNS, frames=FRAMES, fps=FPS).video
            for shot in range(SHOTS)
        ]
        write_video(folder / f"{number:04d}.mp4", torch.cat(shots, dim=1), FPS)


def timed_prepare(source: Path, folder: Path, workers: int, engine: str) -> tuple[float, list[ClipRow]]:
    """Cut videos into clips and score these; return the seconds that it took, and the rows of the manifest."""
    start = time.monotonic()
    cut_clips(ClipsRun(str(source), folder, engine=engine, workers=workers))
    filter_clips(FilterRun(folder, engine=engine, workers=workers))
    return time.monotonic() - start, read_manifest(folder)


def worker_processes() -> list[psutil.Process]:
    """List the worker processes: the children of the pool's fork server, and the map tasks of Ray."""
    found = []
    for server in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            is_ray = server.name() in ("raylet", "gcs_server")
            found += [
                child for child in server.children() if not is_ray or child.cmdline()[:1] == ["ray::Map(_run_on_ray)"]
            ]
    return found


@contextmanager
def killing_workers(every: float, most: int | None = None, seed: int = 0) -> Iterator[list[int]]:
    """Kill a random worker every so many seconds, and `most` of them in all; yield the list of killed process ids."""
    rng, killed, over = random.Random(seed), [], threading.Event()

    def kill() -> None:
        while len(killed) != most and not over.wait(every):
            if workers := worker_processes():
                victim = rng.choice(workers)
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


def measure_throughput(
    folder: Path, count: int, every: float, engine: str = "pool", most: int | None = None
) -> dict[str, float]:
    """Prepare the same videos with one worker, with two, and with two while workers are killed.

    At most `most` workers are killed, one every so many seconds. Returns videos per minute of the three runs, the
    number of workers killed, and how many clips of the last run are lost, changed or doubled against the first.
    """
    source = folder / "videos"
    source.mkdir()
    write_videos(source, count)
    timed_prepare(source, folder / "warm", 1, engine)  # imports and file caches, which later runs find ready
    one, expected = timed_prepare(source, folder / "one", 1, engine)
    two, rows = timed_prepare(source, folder / "two", 2, engine)
    if rows != expected:
        raise RuntimeError("two workers must make what one makes, and made something else")
    with killing_workers(every, most) as killed:
        disturbed, found = timed_prepare(source, folder / "killed", 2, engine)
    return {
        "videos": count,
        "clips": len(expected),
        "per minute, one worker": round(60 * count / one, 1),
        "per minute, two workers": round(60 * count / two, 1),
        "per minute, killed": round(60 * count / disturbed, 1),
        "killed": len(killed),
        "lost or changed": len({row.clip for row in expected} ^ {row.clip for row in found})
        + sum(row not in found for row in expected),
        "doubled": len(found) - len({row.clip for row in found}),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser("training.prepare.throughput", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--videos", type=int, default=24, help="how many to prepare (default 24)")
    parser.add_argument("--every", type=float, default=3.0, help="seconds between two kills (default 3)")
    parser.add_argument("--engine", choices=("pool", "ray"), default="pool")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = measure_throughput(Path(folder), arguments.videos, arguments.every, arguments.engine)
    for name, number in report.items():
        print(f"{name:22} {number}")
