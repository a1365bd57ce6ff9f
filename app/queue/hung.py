"""Workers that live and do nothing, stopped by a signal or stuck in a driver; and workers whose parent is gone.

A worker sends heartbeats from a thread of its own. Whoever watches a queue gives the jobs of one that stopped sending
to others. A machine that slept is no reason: the watcher must itself have been awake for as long, or the system must
say that the process is stopped.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import psutil

from app.queue.database import QueueDiskFull
from app.queue.jobs import RUNNING, Job, Queue
from app.queue.lease import release

HUNG_SECONDS = 30.0  # without a heartbeat, after which a worker has lost its jobs
SILENT_SECONDS = 15.0  # after which those who ask are told
ORPHAN_SECONDS = 120.0  # that a worker has for its present step once its parent is gone
POLL_SECONDS = 0.25  # how often a worker looks for its parent
STOPPED = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)


class HungWorkers:
    """Finds the hung workers of a queue, by what it saw of each since it began to watch."""

    def __init__(self, queue: Queue, seconds: float = HUNG_SECONDS):
        self.queue, self.seconds = queue, seconds
        self.seen: dict[str, tuple[float, float]] = {}  # each worker's last heartbeat, and when it was first seen

    def release(self) -> list[int]:
        """Take the jobs of hung workers from them; return the workers' process ids."""
        now, found = time.monotonic(), list[int]()
        rows = self.queue.connection.execute("SELECT id, pid, beat FROM workers").fetchall()
        before = self.seen
        self.seen = {row["id"]: (row["beat"], now) for row in rows}
        for row in rows:
            if row["id"] in before and before[row["id"]][0] == row["beat"]:
                self.seen[row["id"]] = before[row["id"]]
            unchanged, silent = now - self.seen[row["id"]][1], time.time() - row["beat"]
            if unchanged >= self.seconds or (silent >= self.seconds and is_stopped(row["pid"])):
                try:
                    release(self.queue, row["id"])
                except QueueDiskFull:  # nobody's heartbeats are written
                    self.seen = {}
                    break
                found.append(row["pid"])
        return found


def is_stopped(pid: int) -> bool:
    """Return whether a process was stopped by a signal."""
    try:
        return psutil.Process(pid).status() in STOPPED
    except psutil.Error:
        return False


def silence(queue: Queue, job: Job) -> str | None:
    """Say that the worker of a running job sends no heartbeats; None where it does."""
    if job.state != RUNNING or not job.worker:
        return None
    row = queue.connection.execute("SELECT beat FROM workers WHERE id = ?", (job.worker,)).fetchone()
    seconds = time.time() - row["beat"] if row else 0.0
    if seconds < SILENT_SECONDS:
        return None
    return f"its worker has not answered for {seconds:.0f} s; after {HUNG_SECONDS:.0f} s another one makes it"


def stop_with_parent(
    parent: int, stop: threading.Event, seconds: float = ORPHAN_SECONDS, end: Callable[[int], object] = os._exit
) -> None:
    """Set `stop` once the parent process is gone, and `end` this process where it goes on for so many seconds more."""
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    stop.set()
    time.sleep(seconds)
    end(1)
