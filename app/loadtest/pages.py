"""Measure a queue and a gallery of many clips: submit them, and list pages of them, as the server and the studio do.

python -m app.loadtest.pages
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from app.queue.jobs import DONE, FAILED, QUEUED, WAITING, Job, Queue
from app.queue.lease import Lease
from app.server.service import Service
from app.studio.gallery import Gallery
from dit.request import Request

ROWS = (100, 1_000, 20_000, 100_000)
PAGE, REPEATS = 50, 5
OBJECTS = ("ball", "cube", "cylinder", "capsule")


def requests_of(rows: int) -> list[Request]:
    """Return requests of different prompts and seeds."""
    return [Request(prompt=f"a red {OBJECTS[n % 4]} bounces {n}", seed=n) for n in range(rows)]


def milliseconds(action: Callable[[], Any]) -> float:
    """Return the median time of a call in milliseconds, after one that is not counted."""
    action()
    taken = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        action()
        taken.append(1000 * (time.perf_counter() - started))
    return round(median(taken), 2)


def measure(folder: Path, rows: int) -> Iterator[dict[str, Any]]:
    """Measure a queue of so many waiting jobs, and a gallery of as many finished clips.

    Yields what was measured: seconds for all rows, also those of the processor alone, and milliseconds for the slowest
    of several pages, for one job, for a claim, and for a move to the front of the line.
    """
    queue, requests = Queue(folder / "queue"), requests_of(rows)
    started, processor = time.perf_counter(), time.process_time()
    jobs = queue.submit(requests)
    found: dict[str, Any] = {"rows": rows, "submit s": round(time.perf_counter() - started, 2)}
    found["processor s"] = round(time.process_time() - processor, 2)
    found["page ms"] = max(milliseconds(lambda page=page: list(page())) for page in queue_pages(queue, jobs))
    found["job ms"] = milliseconds(lambda: queue.job(jobs[rows // 2].id))
    found["counts ms"] = milliseconds(queue.counts)
    found["move ms"] = milliseconds(lambda: queue.move(jobs[rows // 2].id, 0))
    with Lease(queue, "cpu") as lease:
        found["claim ms"] = milliseconds(lease.claim)
    yield found
    with queue.transaction() as connection:
        connection.execute(
            f"UPDATE jobs SET state = '{DONE}', ended = submitted WHERE state IN {(*WAITING, 'running')}"
        )
    gallery = Gallery(Service(queue, {}))
    with queue.transaction():
        for job in jobs[:: max(1, rows // 100)]:
            gallery.mark(job.id, "", favourite=True, note="a note")
    add_uploads(gallery.service.upload_folder(""), min(rows, 5_000))
    found = {"clips": rows, "uploads": min(rows, 5_000)}
    listed = lambda **settings: lambda: gallery.list_items("", limit=PAGE + 1, **settings)
    for name, settings in {
        "first ms": {},
        "middle ms": {"after": jobs[rows // 2].id},
        "last ms": {"after": jobs[min(rows - 1, PAGE)].id},
        "favourites ms": {"favourites": True},
        "uploads ms": {"kind": "upload"},
        "search ms": {"search": f"capsule {rows - 1}"},
    }.items():
        found[name] = milliseconds(listed(**settings))
    yield found


def queue_pages(queue: Queue, jobs: list[Job]) -> list[Callable[[], list[Job]]]:
    """Return functions that list pages from the ends and the middle of a queue, of all owners or one, in any state."""
    found: list[Callable[[], list[Job]]] = []
    for owner in (None, ""):
        for states in (None, WAITING, (QUEUED,), (FAILED,)):
            chosen = {"owner": owner, "limit": PAGE} | ({"states": states} if states else {})
            for after in (None, jobs[len(jobs) // 2].id, jobs[0].id):
                for oldest_first in (False, True):
                    page = {**chosen, "after": after, "oldest_first": oldest_first}
                    found.append(lambda page=page: queue.jobs(**page))
    return found


def add_uploads(folder: Path, count: int) -> None:
    """Write small files as a server stores uploads."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        path = folder / f"{number:064x}.png"
        path.write_bytes(b"image")
        os.utime(path, (number, number))
    os.utime(folder, (count, count))  # as a folder that nothing was sent to for a while


def as_table(rows: list[dict[str, Any]]) -> str:
    """Return measurements as a table in Markdown."""
    lines = [list(rows[0]), ["---:"] * len(rows[0]), *([f"{value:,}" for value in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser("app.loadtest.pages", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help=f"how many (default {ROWS})")
    args = parser.parse_args()
    measured = []
    for rows in args.rows:
        with tempfile.TemporaryDirectory() as folder:
            measured.append(list(measure(Path(folder), rows)))
    print("\n\n".join(as_table(list(table)) for table in zip(*measured, strict=True)))
