"""A lease: what a worker holds of a queue, from the moment it registers until it leaves or dies.

A worker holds a lock on a file for as long as it lives, and the kernel releases it when the process dies, however it
dies. So the jobs of a dead worker are found by its lock, not by a timeout, and no job is taken from a worker that only
sleeps.

A clip is written to a staging folder of its worker's own, in the folder of its output. When all of it is on the disk,
the job is marked as whole; then the files are moved, the clip itself last, then the job is done. Whoever finds a whole
job of a dead worker moves what is still in the staging folder: so a clip is made once, whenever the power fails, and a
clip that is there has all that belongs to it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, Literal, TypeVar

from app.home import private_opener, tighten
from app.queue.database import QueueDiskFull
from app.queue.disk import is_disk_full, when_there_is_room
from app.queue.jobs import (
    CANCELLED,
    DONE,
    FAILED,
    FINISHED,
    INTERRUPTED,
    QUEUED,
    RUNNING,
    WAITING,
    Job,
    Queue,
    job_from_row,
    new_ids,
)
from app.queue.previews import remove_preview
from dit.modes import MODES
from dit.request import Request
from vae.files import sync

MAX_ATTEMPTS = 3  # after so many crashes of its workers a job has failed
REPORT_SECONDS = 0.2  # between two progress reports of the same phase on the disk
CLAIM = (
    "UPDATE jobs SET state = ?, worker = ?, tries = tries + 1, began = ?, ended = NULL, whole = 0, "
    "phase = 'starting', step = 0, steps = 0"
)
REGISTERED = "EXISTS (SELECT * FROM workers WHERE id = ?)"
LOOKAHEAD = 64  # waiting jobs that are searched for similar ones

Order = Literal["continue", "hold", "cancel"]  # what a worker is to do after its step


class LeaseLost(Exception):
    """A job that is no longer this worker's."""


Method = TypeVar("Method", bound=Callable[..., Any])


def waits_for_room(method: Method) -> Method:
    """Let a method of a lease wait while the queue's own disk is full, until there is room or the worker stops."""

    @wraps(method)
    def waiting(self, *args, **named):
        return when_there_is_room(lambda: method(self, *args, **named), self.queue.folder, self.stop, QueueDiskFull)

    return waiting  # pyright: ignore[reportReturnType]


class Lease:
    """A worker's hold on a queue: one job at a time, or several of similar cost. On exit, its jobs wait again.

    Its methods wait while the queue's disk is full; once `stop` is set, they raise QueueDiskFull.
    """

    def __init__(self, queue: Queue, device: str, stop: threading.Event | None = None):
        self.queue, self.device, self.stop = queue, device, stop or threading.Event()
        (self.id,) = new_ids(1)
        self.lost = False  # taken for hung by others, who removed it from the queue
        self.awaited_bytes: dict[str, int] = {}  # free space that was waited for, for each job that lacked it
        self._reported: dict[str, tuple[float, str]] = {}  # time and phase of each job's last report

    @waits_for_room
    def __enter__(self) -> Lease:
        self.lock = open(self.queue.locks / self.id, "w", opener=private_opener)
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        with self.queue.transaction() as connection:
            connection.execute(
                "INSERT INTO workers VALUES (?, ?, ?, ?)", (self.id, os.getpid(), self.device, time.time())
            )
        return self

    def __exit__(self, *error) -> None:
        with suppress(QueueDiskFull):  # then the next worker finds the lock released
            release(self.queue, self.id)
        self.lock.close()

    def heartbeat(self) -> None:
        """Record that this worker lives, for those who list the workers, or that they gave it up (`lost`)."""
        with suppress(QueueDiskFull):
            beat = "UPDATE workers SET beat = ? WHERE id = ?"
            self.lost = not self.queue.connection.execute(beat, (time.time(), self.id)).rowcount

    @waits_for_room
    def claim(self) -> Job | None:
        """Take the first waiting job; None where there is none, while the queue is paused, or for a lost lease.

        A job whose row cannot be read fails, and the next one is taken.
        """
        with self.queue.transaction() as connection:
            found = connection.execute(
                f"{CLAIM} WHERE id = (SELECT id FROM jobs WHERE state IN {WAITING} AND "
                f"NOT EXISTS (SELECT * FROM pause) AND {REGISTERED} ORDER BY place LIMIT 1) RETURNING *, NULL AS ahead",
                (RUNNING, self.id, time.time(), self.id),
            ).fetchall()
        self._reported = {}
        job = job_from_row(found[0], self.queue.folder) if found else None
        if job and job.unreadable:
            self.finish(job, FAILED, job.message)
            return self.claim()
        return job

    @waits_for_room
    def claim_similar(self, job: Job, pack_size: int) -> list[Job]:
        """Take further waiting jobs that fit in one pack with the job just claimed; return all, at most `pack_size`.

        The other workers are left their share of the line. A job that was started before runs alone: it may be what
        crashed its worker.
        """
        if pack_size < 2 or job.attempts > 1 or packing_key(job.request) is None:
            return [job]
        with self.queue.transaction() as connection:
            line = connection.execute(
                f"SELECT *, NULL AS ahead FROM jobs WHERE state IN {WAITING} AND NOT EXISTS (SELECT * FROM pause) "
                "ORDER BY place LIMIT ?",
                (LOOKAHEAD,),
            ).fetchall()
            (workers,) = connection.execute("SELECT max(1, count(*)) FROM workers").fetchone()
            share = min(pack_size, -(-(len(line) + 1) // workers))
            others = [job_from_row(row, self.queue.folder) for row in line if not row["tries"]]
            similar = [
                other
                for other in others
                if not other.unreadable and packing_key(other.request) == packing_key(job.request)
            ][: share - 1]
            connection.executemany(
                f"{CLAIM} WHERE id = ? AND {REGISTERED}",
                [(RUNNING, self.id, time.time(), other.id, self.id) for other in similar],
            )
        return [job, *(replace(other, worker=self.id) for other in similar)]

    @waits_for_room
    def report(self, job: Job, phase: str, step: int = 0, steps: int = 0) -> Order:
        """Record a job's progress; return what to do next: "cancel" it, "hold" it, or "continue".

        Raises LeaseLost where the job is no longer this worker's.
        """
        mine = "id = :id AND worker = :worker AND state = :running"
        values = {"id": job.id, "worker": self.id, "running": RUNNING}
        found = self.queue.connection.execute(
            f"SELECT cancelling, EXISTS (SELECT * FROM pause) AS held FROM jobs WHERE {mine}", values
        ).fetchone()
        if found is None:
            raise LeaseLost(job.id)
        now, (last, last_phase) = time.time(), self._reported.get(job.id, (0.0, ""))
        if phase != last_phase or not step or now - last >= REPORT_SECONDS or found["held"]:
            self.queue.connection.execute(
                "UPDATE jobs SET phase_began = CASE WHEN phase = :phase AND :step THEN phase_began ELSE :now END, "
                f"phase = :phase, step = :step, steps = :steps WHERE {mine}",
                values | {"phase": phase, "step": step, "steps": steps, "now": now},
            )
            self._reported[job.id] = now, phase
        return "cancel" if found["cancelling"] else "hold" if found["held"] else "continue"

    @waits_for_room
    def complete(self, job: Job, message: str = "") -> None:
        """Move a whole clip from its staging folder to its output and mark the job as done.

        A power failure at any moment leaves both done, or both to be done by `recover`. Raises LeaseLost where the job
        is no longer this worker's.
        """
        folder = staging_folder(job)
        if folder.is_dir():  # it was moved already where only the end could not be noted for lack of space
            if job.output.is_relative_to(self.queue.folder):  # elsewhere the user's umask holds
                tighten(folder.iterdir())
            sync(*folder.iterdir(), folder)
        elif not job.output.is_file():
            raise FileNotFoundError(f"{job.output} must stay while it is written; it was removed, so make it again")
        changed = self.queue.connection.execute(
            "UPDATE jobs SET whole = 1, sentence = ? WHERE id = ? AND worker = ? AND state = ?",
            (message, job.id, self.id, RUNNING),
        ).rowcount
        if not changed:
            raise LeaseLost(job.id)
        publish(job)
        self.finish(job, DONE, message)

    @waits_for_room
    def finish(self, job: Job, state: str, message: str = "") -> None:
        """Set the state in which a job ends, or, with QUEUED, put it back as if it had not been started.

        Raises LeaseLost where the job is no longer this worker's.
        """
        changed = self.queue.connection.execute(
            "UPDATE jobs SET state = :state, sentence = :message, ended = :ended, phase = '', worker = NULL, "
            "tries = tries - (:state = :queued) WHERE id = :id AND worker = :worker AND state = :running",
            {
                **{"state": state, "message": message, "ended": time.time() if state in FINISHED else None},
                **{"id": job.id, "worker": self.id, "running": RUNNING, "queued": QUEUED},
            },
        ).rowcount
        if not changed:
            raise LeaseLost(job.id)


def packing_key(request: Request) -> tuple | None:
    """Return what requests must share to be made in one pack at similar cost; None for one that is made alone."""
    if request.mode not in MODES or MODES[request.mode].any_length:  # of any duration, and so perhaps in many windows
        return None
    names = ("model", "model_hash", "mode", "size", "seconds", "fps", "steps", "sampler")
    return tuple(getattr(request, name) for name in names)


def recover(queue: Queue) -> int:
    """Put jobs of dead workers back in line, or finish those that were whole; return the number of dead workers.

    A job that crashed its workers MAX_ATTEMPTS times has failed.
    """
    registered = [row["id"] for row in queue.connection.execute("SELECT id FROM workers").fetchall()]
    dead = [worker for worker in registered if not _is_alive(queue, worker)]
    for worker in dead:
        release(queue, worker)
    return len(dead)


def _is_alive(queue: Queue, worker: str) -> bool:
    try:
        with open(queue.locks / worker) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def release(queue: Queue, worker: str, counted: bool = True) -> None:
    """Remove a worker from a queue and decide what becomes of its jobs.

    Their attempts are `counted` unless the worker was ended by those who started it.
    """
    crashed = f"a job must not crash its worker; it did {MAX_ATTEMPTS} times, so ask for less, or read the worker's log"
    with queue.transaction() as connection:
        found = connection.execute(
            "SELECT *, NULL AS ahead FROM jobs WHERE worker = ? AND state = ?", (worker, RUNNING)
        ).fetchall()
        for row in found:
            job = job_from_row(row, queue.folder)
            state, message = _publish_late(job) if row["whole"] else (INTERRUPTED, row["sentence"])
            if not row["whole"]:
                shutil.rmtree(staging_folder(job), ignore_errors=True)  # before it can be another worker's job
            if state == INTERRUPTED and row["cancelling"]:
                state = CANCELLED
            elif state == INTERRUPTED and not counted:
                state = QUEUED
            elif state == INTERRUPTED and row["tries"] >= MAX_ATTEMPTS:
                state, message = FAILED, crashed
            connection.execute(
                "UPDATE jobs SET state = ?, sentence = ?, ended = ?, phase = '', step = 0, worker = NULL, "
                "tries = tries - ? WHERE id = ?",
                (state, message, time.time() if state in FINISHED else None, state == QUEUED, row["id"]),
            )
        connection.execute("DELETE FROM workers WHERE id = ?", (worker,))
    for row in found:
        remove_preview(queue.folder, row["id"])
    (queue.locks / worker).unlink(missing_ok=True)


def _publish_late(job: Job) -> tuple[str, str]:
    """Publish a whole clip of a dead worker; return the state and the message in which its job ends."""
    try:
        publish(job)
    except OSError as error:
        if is_disk_full(error):
            raise
        return FAILED, f"{job.output} could not be written: {error.strerror or error}; make it again elsewhere"
    return (DONE, job.message) if job.output.is_file() else (INTERRUPTED, "")


def staging_folder(job: Job) -> Path:
    """Return the folder, next to a job's output, in which its worker writes its files.

    Another worker of the same job has another one, so that neither removes or mixes up the files of the other.
    """
    return job.output.parent / f".making-{job.id}{f'-{job.worker}' if job.worker else ''}"


def publish(job: Job) -> None:
    """Move the whole files of a job's staging folder to its output's folder, the clip itself last; idempotent."""
    folder = staging_folder(job)
    if folder.is_dir():
        for path in sorted(folder.iterdir(), key=lambda path: path.name == job.output.name):
            os.replace(path, job.output.parent / path.name)
        sync(job.output.parent)
        folder.rmdir()
