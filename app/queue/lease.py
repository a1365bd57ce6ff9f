"""A shift: what a worker does at a queue, from the moment it comes until it leaves or dies.

A worker holds a lock on a file for as long as it lives, and the kernel lets it go when it dies, however it dies. So
what a dead worker was at is found by its lock, not by a clock, and nobody takes a job from one that only sleeps.

A clip is made in a folder beside its place. When all of it is on the disk, the job is marked as whole; then the files
are moved, then the job is done. Whoever finds a job that is whole and whose worker is dead moves what is still to be
moved: so a clip is made once, whenever the power fails.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Literal

from app.queue.jobs import (
    CANCELLED,
    DONE,
    ENDED,
    FAILED,
    INTERRUPTED,
    QUEUED,
    RUNNING,
    WAITING,
    Job,
    Queue,
    job_of,
    new_ids,
)
from app.queue.previews import clear
from dit.modes import MODES
from dit.request import Request

TRIES = 3  # times that a job may bring its worker down
NOTED_SECONDS = 0.2  # between two notes of the same phase on the disk
BEGIN = (  # of a row that a worker takes
    "UPDATE jobs SET state = ?, worker = ?, tries = tries + 1, began = ?, ended = NULL, whole = 0, "
    "phase = 'starting', step = 0, steps = 0"
)
LOOKED_AT = 64  # how many of the line are looked at for company

Wish = Literal["go", "hold", "stop"]  # what a worker is to do after its step


class Superseded(Exception):
    """A job that is no longer this worker's."""


class Shift:
    """A worker at a queue, one job at a time or several of like cost. On leaving, what it was at waits again."""

    def __init__(self, queue: Queue, device: str):
        self.queue, self.device = queue, device
        (self.name,) = new_ids(1)
        self.noted: dict[str, tuple[float, str]] = {}  # of each job at work, when and which phase

    def __enter__(self) -> Shift:
        self.lock = open(self.queue.locks / self.name, "w")
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        with self.queue.transaction() as rows:
            rows.execute("INSERT INTO workers VALUES (?, ?, ?, ?)", (self.name, os.getpid(), self.device, time.time()))
        return self

    def __exit__(self, *error) -> None:
        _bury(self.queue, self.name)
        self.lock.close()

    def beat(self) -> None:
        """Say that this worker lives, for those who look on."""
        self.queue.rows.execute("UPDATE workers SET beat = ? WHERE id = ?", (time.time(), self.name))

    def claim(self) -> Job | None:
        """Take the first waiting job; None where there is none, or while the queue is paused."""
        with self.queue.transaction() as rows:
            found = rows.execute(
                f"{BEGIN} WHERE id = (SELECT id FROM jobs WHERE state IN {WAITING} AND "
                "NOT EXISTS (SELECT * FROM pause) ORDER BY place LIMIT 1) RETURNING *, NULL AS ahead",
                (RUNNING, self.name, time.time()),
            ).fetchall()
        self.noted = {}
        return job_of(found[0]) if found else None

    def claim_company(self, job: Job, most: int) -> list[Job]:
        """Take further waiting jobs that can be made in one pack with a job just claimed, `most` with it, but no more
        than leaves the other workers theirs; returns all.

        A job that was begun before is made alone: it may be what brought its worker down.
        """
        if most < 2 or job.tries > 1 or company_of(job.request) is None:
            return [job]
        with self.queue.transaction() as rows:
            line = rows.execute(
                f"SELECT *, NULL AS ahead FROM jobs WHERE state IN {WAITING} AND NOT EXISTS (SELECT * FROM pause) "
                "ORDER BY place LIMIT ?",
                (LOOKED_AT,),
            ).fetchall()
            (workers,) = rows.execute("SELECT max(1, count(*)) FROM workers").fetchone()
            share = min(most, -(-(len(line) + 1) // workers))
            alike = [
                job_of(row)
                for row in line
                if not row["tries"] and company_of(Request.from_json(row["request"])) == company_of(job.request)
            ][: share - 1]
            rows.executemany(
                f"{BEGIN} WHERE id = ?",
                [(RUNNING, self.name, time.time(), other.id) for other in alike],
            )
        return [job, *alike]

    def note(self, job: Job, phase: str, step: int = 0, steps: int = 0) -> Wish:
        """Note how far a job is; returns what is wished: "stop" it, "hold" still, or "go" on.

        Raises Superseded where the job is no longer this worker's.
        """
        mine = "id = :id AND worker = :worker AND state = :running"
        names = {"id": job.id, "worker": self.name, "running": RUNNING}
        found = self.queue.rows.execute(
            f"SELECT cancelling, EXISTS (SELECT * FROM pause) AS held FROM jobs WHERE {mine}", names
        ).fetchone()
        if found is None:
            raise Superseded(job.id)
        now, (last, before) = time.time(), self.noted.get(job.id, (0.0, ""))
        if phase != before or not step or now - last >= NOTED_SECONDS or found["held"]:
            self.queue.rows.execute(
                "UPDATE jobs SET phase_began = CASE WHEN phase = :phase AND :step THEN phase_began ELSE :now END, "
                f"phase = :phase, step = :step, steps = :steps WHERE {mine}",
                names | {"phase": phase, "step": step, "steps": steps, "now": now},
            )
            self.noted[job.id] = now, phase
        return "stop" if found["cancelling"] else "hold" if found["held"] else "go"

    def keep(self, job: Job, sentence: str = "") -> None:
        """Move a clip that is whole from where it was made to its place, and note that its job is done: both, or
        neither yet, whenever the power fails.

        Raises Superseded where the job is no longer this worker's.
        """
        folder = staging(job)
        _sync(*folder.iterdir(), folder)
        changed = self.queue.rows.execute(
            "UPDATE jobs SET whole = 1, sentence = ? WHERE id = ? AND worker = ? AND state = ?",
            (sentence, job.id, self.name, RUNNING),
        ).rowcount
        if not changed:
            raise Superseded(job.id)
        deliver(job)
        self.end(job, DONE, sentence)

    def end(self, job: Job, state: str, sentence: str = "") -> None:
        """Note how a job ended, or, with QUEUED, that it waits again as if it had not begun.

        Raises Superseded where the job is no longer this worker's.
        """
        changed = self.queue.rows.execute(
            "UPDATE jobs SET state = :state, sentence = :sentence, ended = :ended, phase = '', worker = NULL, "
            "tries = tries - (:state = :queued) WHERE id = :id AND worker = :worker AND state = :running",
            {
                **{"state": state, "sentence": sentence, "ended": time.time() if state in ENDED else None},
                **{"id": job.id, "worker": self.name, "running": RUNNING, "queued": QUEUED},
            },
        ).rowcount
        if not changed:
            raise Superseded(job.id)


def company_of(request: Request) -> tuple | None:
    """Return what requests share that can be made in one pack at like cost; None where one is made alone."""
    if request.mode not in MODES or MODES[request.mode].free:  # of any length, and so perhaps in many windows
        return None
    names = ("model", "model_hash", "mode", "size", "seconds", "fps", "steps", "method")
    return tuple(getattr(request, name) for name in names)


def recover(queue: Queue) -> int:
    """Let jobs of workers that have died wait again, or be done where they were whole; returns how many workers had.

    A job that brought TRIES workers down has failed.
    """
    dead = [
        row["id"] for row in queue.rows.execute("SELECT id FROM workers").fetchall() if not _lives(queue, row["id"])
    ]
    for name in dead:
        _bury(queue, name)
    return len(dead)


def _lives(queue: Queue, worker: str) -> bool:
    try:
        with open(queue.locks / worker) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def _bury(queue: Queue, worker: str) -> None:
    died = f"a job must not bring its worker down; it did {TRIES} times, so ask for less, or see the worker's log"
    with queue.transaction() as rows:
        found = rows.execute(
            "SELECT *, NULL AS ahead FROM jobs WHERE worker = ? AND state = ?", (worker, RUNNING)
        ).fetchall()
        for row in found:
            state, sentence = INTERRUPTED, row["sentence"]
            if row["whole"]:
                deliver(job_of(row))
                state = DONE
            elif row["cancelling"]:
                state = CANCELLED
            elif row["tries"] >= TRIES:
                state, sentence = FAILED, died
            rows.execute(
                "UPDATE jobs SET state = ?, sentence = ?, ended = ?, phase = '', step = 0, worker = NULL WHERE id = ?",
                (state, sentence, time.time() if state in ENDED else None, row["id"]),
            )
        rows.execute("DELETE FROM workers WHERE id = ?", (worker,))
    for row in found:
        clear(queue.folder, row["id"])
    (queue.locks / worker).unlink(missing_ok=True)


def staging(job: Job) -> Path:
    """Return the folder where a job's files lie until they are whole, beside where they will be."""
    return job.output.parent / f".making-{job.id}"


def deliver(job: Job) -> None:
    """Move what lies whole in a job's staging folder to its place; done again, it changes nothing."""
    folder = staging(job)
    if folder.is_dir():
        for path in folder.iterdir():
            os.replace(path, job.output.parent / path.name)
        _sync(job.output.parent)
        folder.rmdir()


def _sync(*paths: Path) -> None:
    """Have files, or a folder's names, on the disk."""
    for path in paths:
        opened = os.open(path, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
