"""The job queue: requests that wait, run or are finished, in one SQLite file that outlives every process.

A job is a row; its clip is a file in `clips/`. Rows change in single transactions, each on the disk before the call
returns (write-ahead log, synchronous=FULL), so a power failure loses no job. This module is the clients' side of the
queue; `lease.py` is the workers'.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.home import make_private_file, make_private_folder, tighten
from app.queue.database import connect
from app.queue.line import LAST_PLACE, count_waiting, move_in_line, places_in_line
from app.queue.schema import (
    CANCELLED,
    CLIPS,
    DONE,
    FAILED,
    FINISHED,
    QUEUED,
    RUNNING,
    SCHEMA_VERSION,
    STATES,
    WAITING,
    output_path,
    prepare_tables,
    real_output,
    stored_output,
)
from app.queue.schema import INTERRUPTED as INTERRUPTED
from dit.request import Request, RequestError

LOADING, ENCODING, SAMPLING, WRITING = PHASES = (  # of a running job, after "starting"
    *("loading the model", "encoding the prompt", "sampling", "writing"),
)
DATABASE = "jobs.sqlite"
UPLOADS = "uploads"  # subfolder with the files that clients of a server sent
PARTS = (CLIPS, "workers", "runs", UPLOADS, "previews", "posters", "shelf.sqlite*", "votes.jsonl")  # what it may hold
LAST_ID = "\U0010ffff"  # sorts after every id


class JobError(ValueError):
    """An operation that a job's state forbids: the rule, the job, the remedy."""


class QueueFull(JobError):
    """More open jobs than one owner may have."""


@dataclass(frozen=True)
class Job:
    """A request on its way to a file.

    Times are seconds since 1970. `eta` is in seconds from now, None where it is not known yet. `ahead` is the number of
    jobs before a waiting one, None for any other. `owner` is the client that submitted the job, "" where clients are
    not told apart. `message` is the reason of a failure, or a remark on how the job went. A job whose row cannot be
    read is `unreadable`: its request is an empty one, and its message says what is wrong. `worker` is the id of the
    worker that makes it.
    """

    id: str
    request: Request
    output: Path
    state: str
    owner: str = ""
    keep_latents: bool = False
    phase: str = ""
    step: int = 0
    steps: int = 0
    message: str = ""
    attempts: int = 0
    cancel_requested: bool = False
    submitted: float = 0.0
    started: float | None = None
    finished: float | None = None
    eta: float | None = None
    ahead: int | None = None
    unreadable: bool = False
    worker: str | None = None


@dataclass(frozen=True)
class Pause:
    """Why no job is started.

    A pause for lack of space ends once `min_free_bytes` are free on the disk of `folder`, "" being the queue's. They
    are 0 for any other pause.
    """

    reason: str
    min_free_bytes: int = 0
    folder: str = ""


class Queue:
    """All jobs of one folder: `jobs.sqlite`, the clips in `clips/`, the workers' lock files in `workers/`.

    Any number of threads and processes of one machine may open the same queue. Other users of the machine read nothing
    of it. Raises JobError where the database has a later schema version, and QueueDamaged where it cannot be read.
    """

    def __init__(self, folder: Path):
        self.folder = folder = Path(os.path.realpath(folder))  # one name, whatever it was called
        self.clips, self.locks = folder / CLIPS, folder / "workers"
        was_open = [make_private_folder(path) for path in (folder, self.clips, self.locks)]
        make_private_file(folder / DATABASE)  # SQLite gives its other files the same mode
        tighten(folder.glob(f"{DATABASE}-*"))
        if any(was_open):  # as version 0.1 left it
            tighten(path for part in PARTS for path in folder.glob(part))
        self._thread_local = threading.local()
        with self.transaction() as connection:
            later = prepare_tables(connection, folder)
        if later:
            raise JobError(
                f"a queue must have tables of version {SCHEMA_VERSION}; {folder} has {later}, "
                "so use the longtake that made it, or another folder"
            )

    @property
    def connection(self) -> sqlite3.Connection:
        """The database connection of this thread."""
        if not hasattr(self._thread_local, "connection"):
            self._thread_local.connection = connect(self.folder / DATABASE)
        return self._thread_local.connection

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run several statements as one transaction; roll back on any exception."""
        connection = self.connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:  # a full disk ends it at once
                connection.execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Close this thread's connection."""
        if hasattr(self._thread_local, "connection"):
            self._thread_local.connection.close()
            del self._thread_local.connection

    def submit(
        self,
        requests: Sequence[Request],
        suffix: str = ".mp4",
        outputs: Sequence[Path] | None = None,
        owner: str = "",
        keep_latents: bool = False,
        max_open: int | None = None,
        within: Callable[[sqlite3.Connection, list[str]], None] | None = None,
    ) -> list[Job]:
        """Append requests to the line, all or none; each gets a file in `clips/` unless `outputs` names others.

        `within` is called in the same transaction, with the connection and the ids of the jobs. Raises QueueFull where
        the owner would have more than `max_open` unfinished jobs, and what `within` raises.
        """
        ids = new_ids(len(requests))
        paths = outputs or [self.clips / f"{id}{suffix}" for id in ids]
        with self.transaction() as connection:
            (open_jobs,) = connection.execute(
                f"SELECT count(*) FROM jobs WHERE owner = ? AND state IN {(*WAITING, RUNNING)}", (owner,)
            ).fetchone()
            if max_open is not None and open_jobs + len(ids) > max_open:
                raise QueueFull(
                    f"at most {max_open} videos of yours may wait here; there are {open_jobs}, so ask again later"
                )
            if within:
                within(connection, ids)
            return insert(connection, self.folder, ids, requests, paths, owner, keep_latents)

    def job(self, id: str) -> Job:
        """Return a job in its present state; raises JobError for an unknown id."""
        row = self.connection.execute("SELECT * FROM jobs WHERE id = ?", (id,)).fetchone()
        if row is None:
            raise JobError(f"a job must be one of this queue; it has no {id!r}")
        return self._jobs_from_rows([row])[0]

    def jobs(
        self,
        states: Sequence[str] = STATES,
        owner: str | None = None,
        limit: int = 100,
        after: str | None = None,
        oldest_first: bool = False,
    ) -> list[Job]:
        """List at most `limit` jobs, the latest submitted first unless `oldest_first`.

        `after` is the id of the last job of the page before. No other rows are read, however long the queue is.
        """
        comparison, order = (">", "ASC") if oldest_first else ("<", "DESC")
        if after is None:
            after = "" if oldest_first else LAST_ID
        owned = "" if owner is None else "owner = :owner AND "
        page = f"id {comparison} :after ORDER BY id {order} LIMIT :limit"
        if set(states) >= set(STATES):
            query = f"SELECT * FROM jobs WHERE {owned}{page}"
        else:  # a page of each state, each found by an index
            numbers = range(len(states))
            pages = (f"SELECT * FROM (SELECT id FROM jobs WHERE {owned}state = :state{n} AND {page})" for n in numbers)
            query = f"SELECT * FROM jobs WHERE id IN ({' UNION ALL '.join(pages)}) ORDER BY id {order} LIMIT :limit"
        values = {f"state{n}": state for n, state in enumerate(states)}
        values |= {"owner": owner, "after": after, "limit": limit}
        return self._jobs_from_rows(self.connection.execute(query, values).fetchall() if states else [])

    def finished(self, ids: Collection[str], since: float | None = None) -> list[Job]:
        """Return those of the given jobs that are finished; with `since`, only those that ended from that time on."""
        if since is None:
            found = self.connection.execute(
                f"SELECT * FROM jobs WHERE id IN (SELECT value FROM json_each(?)) AND state IN {FINISHED}",
                (json.dumps(list(ids)),),
            ).fetchall()
        else:
            rows = self.connection.execute(
                f"SELECT * FROM jobs WHERE ended IS NOT NULL AND ended >= ? AND state IN {FINISHED}", (since,)
            )
            found = [row for row in rows if row["id"] in ids]
        return [job_from_row(row, self.folder) for row in found]

    def done_jobs(self) -> list[Job]:
        """Return all jobs that are done, the latest finished last."""
        found = self.connection.execute("SELECT * FROM jobs WHERE state = ? ORDER BY ended", (DONE,))
        return [job_from_row(row, self.folder) for row in found]

    def _jobs_from_rows(self, rows: Sequence[sqlite3.Row]) -> list[Job]:
        places = places_in_line(self.connection, rows)
        return [job_from_row(row, self.folder, places.get(row["id"])) for row in rows]

    def workers(self) -> list[tuple[str, float]]:
        """List the registered workers: the device of each, and the seconds since its last heartbeat."""
        found = self.connection.execute("SELECT device, beat FROM workers ORDER BY id").fetchall()
        return [(row["device"], time.time() - row["beat"]) for row in found]

    def counts(self) -> dict[str, int]:
        """Return the number of jobs in each state."""
        found = dict(self.connection.execute("SELECT state, sum(jobs) FROM tally GROUP BY state").fetchall())
        return {state: found.get(state, 0) for state in STATES}

    def cancel(self, id: str) -> Job:
        """Cancel a job: at once if it waits, after the worker's next step if it runs. A finished job stays as it is."""
        with self.transaction() as connection:
            connection.execute(
                f"UPDATE jobs SET state = ?, ended = ?, phase = '' WHERE id = ? AND state IN {WAITING}",
                (CANCELLED, time.time(), id),
            )
            connection.execute("UPDATE jobs SET cancelling = 1 WHERE id = ? AND state = ?", (id, RUNNING))
        return self.job(id)

    def delete(self, id: str) -> Job:
        """Delete the row of a finished job and return the job; its files are the caller's to remove.

        Raises JobError for a job that is not finished.
        """
        job = self.job(id)
        if not self.connection.execute(f"DELETE FROM jobs WHERE id = ? AND state IN {FINISHED}", (id,)).rowcount:
            raise JobError(f"a job to delete must be finished; {id} is {job.state}, so cancel it first")
        return job

    def retry(self, id: str) -> Job:
        """Append a failed or cancelled job to the line again; raises JobError for any other."""
        with self.transaction() as connection:
            changed = connection.execute(
                f"UPDATE jobs SET state = ?, place = 1 + ({LAST_PLACE}), phase = '', step = 0, "
                "steps = 0, sentence = '', worker = NULL, tries = 0, cancelling = 0, whole = 0, began = NULL, "
                "ended = NULL WHERE id = ? AND state IN (?, ?)",
                (QUEUED, id, FAILED, CANCELLED),
            ).rowcount
        job = self.job(id)
        if not changed:
            raise JobError(f"a job to retry must have failed or been cancelled; {id} is {job.state}")
        return job

    def move(self, id: str, ahead: int, owner: str | None = None) -> Job:
        """Move a waiting job to where `ahead` others come before it, 0 being the front.

        With `owner`, only the owner's jobs trade places, and the job comes as near to `ahead` as they allow. Raises
        JobError for a job that does not wait.
        """
        with self.transaction() as connection:
            if not move_in_line(connection, id, max(0, ahead), owner):
                raise JobError(f"a job to move must be waiting; {id} is {self.job(id).state}")
        return self.job(id)

    def pause(self, reason: str, min_free_bytes: int = 0, folder: str = "") -> None:
        """Start no further job and hold the running ones, until `resume`, or until the disk of `folder` has space."""
        with self.transaction() as connection:
            connection.execute("DELETE FROM pause")
            connection.execute("INSERT INTO pause VALUES (?, ?, ?)", (reason, min_free_bytes, folder))

    def resume(self) -> None:
        """End a pause."""
        with self.transaction() as connection:
            connection.execute("DELETE FROM pause")

    @property
    def paused(self) -> Pause | None:
        """The present pause, if any."""
        row = self.connection.execute("SELECT reason, least_bytes, folder FROM pause").fetchone()
        return Pause(*row) if row else None


def insert(
    connection: sqlite3.Connection,
    folder: Path,
    ids: Sequence[str],
    requests: Sequence[Request],
    outputs: Sequence[Path],
    owner: str,
    keep_latents: bool,
) -> list[Job]:
    """Append jobs to the line of the queue in `folder`, within a transaction; return them."""
    (last,) = connection.execute(LAST_PLACE).fetchone()
    ahead = count_waiting(connection)
    now, folders = time.time(), {parent: real_output(parent / "x").parent for parent in {one.parent for one in outputs}}
    jobs = [
        Job(id, request, folders[one.parent] / one.name, QUEUED, owner, keep_latents, submitted=now, ahead=ahead + n)
        for n, (id, request, one) in enumerate(zip(ids, requests, outputs, strict=True))
    ]
    connection.executemany(
        "INSERT INTO jobs (id, place, state, request, output, owner, latents, submitted) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            (
                job.id,
                last + n,
                QUEUED,
                job.request.to_json(),
                stored_output(job.output, folder),
                owner,
                keep_latents,
                now,
            )
            for n, job in enumerate(jobs, 1)
        ),
    )
    return jobs


def new_ids(count: int) -> list[str]:
    """Return unique ids that sort by the time of this call."""
    now = time.time_ns()
    return [f"{now + n:016x}{secrets.token_hex(4)}" for n in range(count)]


def job_from_row(row: sqlite3.Row, folder: Path, ahead: int | None = None) -> Job:
    """Convert a row of the table of the queue in `folder` to a Job. A row that cannot be read is no error."""
    request, message, unreadable = Request(), row["sentence"], False
    try:
        request = Request.from_json(row["request"])
    except (RequestError, TypeError) as error:
        message, unreadable = f"the request in this row cannot be read, so queue it again: {error}", True
    return Job(
        id=row["id"],
        request=request,
        output=output_path(str(row["output"]), folder),
        state=row["state"],
        owner=row["owner"],
        keep_latents=bool(row["latents"]),
        phase=row["phase"],
        step=row["step"],
        steps=row["steps"],
        message=message,
        attempts=row["tries"],
        cancel_requested=bool(row["cancelling"]),
        submitted=row["submitted"],
        started=row["began"],
        finished=row["ended"],
        eta=_seconds_left(row),
        ahead=ahead,
        unreadable=unreadable,
        worker=row["worker"],
    )


def _seconds_left(row: sqlite3.Row) -> float | None:
    """Extrapolate the rest of the present phase from its steps so far."""
    if row["state"] != RUNNING or not row["step"]:
        return None
    return (time.time() - row["phase_began"]) / row["step"] * (row["steps"] - row["step"])
