"""Kill workers at random moments until a long queue is done, and count what was lost or made twice.

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
from pathlib import Path

from app.queue.jobs import DONE, STATES, Queue
from app.render import request_in
from dit.request import Request

WORK = (sys.executable, "-m", "app.cli", "work")


def siege(folder: Path, jobs: int, kills: int, workers: int, together: int = 1, seed: int = 0) -> dict[str, int]:
    """Queue pictures and kill one of the workers, which make up to `together` as a pack, at so many random moments;
    returns how many jobs are in each state, how many files there are of how many jobs, how many hold another job's
    picture, and the seconds it took.

    The kills are spread over the whole queue. A worker that is killed is replaced.
    """
    queue, chance = Queue(folder), random.Random(seed)
    asked = [Request(mode="text-to-image", prompt=f"a red ball {n}", seed=n, steps=1) for n in range(jobs)]
    made = queue.submit(asked, suffix=".png")
    begun = time.monotonic()
    work = [*WORK, str(folder), "--until-empty", "--together", str(together)]
    crew = [subprocess.Popen(work) for _ in range(workers)]
    killed = 0
    while (done := queue.counts()[DONE]) < jobs:
        due = killed < kills and done >= jobs * killed / (kills + 1)
        for n, worker in enumerate(crew):
            if due and n == killed % workers and worker.poll() is None:
                time.sleep(chance.uniform(0, 0.5))
                worker.send_signal(signal.SIGKILL)
                worker.wait()
                killed, due = killed + 1, False
            if worker.poll() is not None:
                crew[n] = subprocess.Popen(work)
        time.sleep(0.05)
    for worker in crew:
        worker.wait()
    files = Counter(path.name for path in queue.clips.iterdir())
    wrong = sum(request_in(job.output).seed != job.request.seed for job in made)
    states = {state: count for state, count in queue.counts().items() if state in STATES and count}
    told = {"killed": killed, "jobs": jobs, "files": len(files), "wrong": wrong}
    return states | told | {"seconds": round(time.monotonic() - begun)}


if __name__ == "__main__":
    words = argparse.ArgumentParser("app.loadtest.kill", description=(__doc__ or "").splitlines()[0])
    words.add_argument("--jobs", type=int, default=1000)
    words.add_argument("--kills", type=int, default=50)
    words.add_argument("--workers", type=int, default=2)
    words.add_argument("--together", type=int, default=4, metavar="N", help="up to N as one pack (default 4)")
    chosen = words.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(siege(Path(folder), chosen.jobs, chosen.kills, chosen.workers, chosen.together))
