"""Kill workers at random moments until a long queue is done, and count the jobs that were lost or made twice.

Then the same with two batches in one folder, with a worker in another directory, and with full disks of three sorts.

python -m app.loadtest.kill
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from app.loadtest.batches import fill_disk, kill_and_work_elsewhere, kill_two_batches
from app.queue.jobs import DONE, STATES, Queue
from app.render import read_request
from dit.request import Request

WORK = (sys.executable, "-m", "app.cli", "work")


def kill_workers(
    folder: Path, jobs: int, kills: int, workers: int, pack_size: int = 1, seed: int = 0
) -> dict[str, int]:
    """Queue images, and kill one of the workers at `kills` random moments; return counts and the seconds it took.

    The counts: jobs in each state, kills, jobs, files, and files that hold another job's image. The kills are spread
    over the whole queue; a killed worker is replaced. Workers make up to `pack_size` images as one pack.
    """
    queue, rng = Queue(folder), random.Random(seed)
    requests = [Request(mode="text-to-image", prompt=f"a red ball {n}", seed=n, steps=1) for n in range(jobs)]
    submitted = queue.submit(requests, suffix=".png")
    started = time.monotonic()
    command = [*WORK, str(folder), "--until-empty", "--pack-size", str(pack_size)]
    processes = [subprocess.Popen(command) for _ in range(workers)]
    killed = 0
    while (done := queue.counts()[DONE]) < jobs:
        due = killed < kills and done >= jobs * killed / (kills + 1)
        for n, process in enumerate(processes):
            if due and n == killed % workers and process.poll() is None:
                time.sleep(rng.uniform(0, 0.5))
                process.send_signal(signal.SIGKILL)
                process.wait()
                killed, due = killed + 1, False
            if process.poll() is not None:
                processes[n] = subprocess.Popen(command)
        time.sleep(0.05)
    for process in processes:
        process.wait()
    files = Counter(path.name for path in queue.clips.iterdir())
    wrong = sum(read_request(job.output).seed != job.request.seed for job in submitted)
    states = {state: count for state, count in queue.counts().items() if state in STATES and count}
    counts = {"killed": killed, "jobs": jobs, "files": len(files), "wrong": wrong}
    return states | counts | {"seconds": round(time.monotonic() - started)}


def checks(args: argparse.Namespace) -> dict[str, Callable[[Path], dict[str, int]]]:
    """Return what is checked, by name."""
    found: dict[str, Callable[[Path], dict[str, int]]] = {
        "workers": lambda folder: kill_workers(folder, args.jobs, args.kills, args.workers, args.pack_size),
        "two batches": lambda folder: kill_two_batches(folder, args.clips, args.batch_kills),
        "work elsewhere": lambda folder: kill_and_work_elsewhere(folder, args.clips),
    }
    for sort in ("own", "sub-folder", "staging"):
        found[f"full disk, {sort}"] = lambda folder, sort=sort: fill_disk(folder, sort, args.clips)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser("app.loadtest.kill", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pack-size", type=int, default=4, metavar="N", help="up to N as one pack (default 4)")
    parser.add_argument("--clips", type=int, default=60, help="of each batch (default 60)")
    parser.add_argument("--batch-kills", type=int, default=10, help="of one of two batches (default 10)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="such as 'two batches'; full disks need root")
    args = parser.parse_args()
    for name, check in checks(args).items():
        if not args.only or name in args.only:
            with tempfile.TemporaryDirectory() as folder:
                print(f"{name}: {check(Path(folder))}", flush=True)
