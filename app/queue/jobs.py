"""The job queue: requests that wait, run or are finished, in one SQLite file that outlives every process.

A job is a row; its clip is a file in `clips/`. Rows change in single transactions, each on the disk before the call
returns (write-ahead log, synchronous=FULL), so a power failure loses no job. This module is the clients' side of the
queue; `lease.py` is the workers'.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.home import make_private_file, make_private_folder, tighten
from dit.request import Request

QUEUED, RUNNING, DONE, FAILED, CANCELLED, INTERRUPTED = STATES = (
    *("queued", "running", "done", "failed", "cancelled", "interrupted"),
)
WAITING = (QUEUED, INTERRUPTED)  # an interrupted job is resumed at its old place in line
FINISHED = (DONE, FAILED, CANCELLED)
LOADING, ENCODING, SAMPLING, WRITING = PHASES = (  # of a running job, after "starting"
    *("loading the model", "encoding the prompt", "sampling", "writing"),
)
SCHEMA_VERSION = 1
DATABASE = "jobs.sqlite"
UPLOADS = "uploads"  # subfolder with the files that clients of a server sent
PARTS = ("clips", "workers", UPLOADS, "previews", "posters", "shelf.sqlite*", "votes.jsonl")  # what a queue may hold
BUSY_SECONDS = 60.0  # how long a process waits for the transactions of others

SCHEMA = """
CREATE TABLE jobs (
    id TEXT PRIMARY KEY, place REAL NOT NULL, state TEXT NOT NULL, request TEXT NOT NULL, output TEXT NOT NULL,
    owner TEXT NOT NULL, latents INTEGER NOT NULL, phase TEXT NOT NULL DEFAULT '', step INTEGER NOT NULL DEFAULT 0,
    steps INTEGER NOT NULL DEFAULT 0, sentence TEXT NOT NULL DEFAULT '', worker TEXT, tries INTEGER NOT NULL DEFAULT 0,
    cancelling INTEGER NOT NULL DEFAULT 0, whole INTEGER NOT NULL DEFAULT 0,
    submitted REAL NOT NULL, began REAL, phase_began REAL, ended REAL
);
CREATE INDEX line ON jobs (state, place);
CREATE TABLE workers (id TEXT PRIMARY KEY, pid INTEGER NOT NULL, device TEXT NOT NULL, beat REAL NOT NULL);
CREATE TABLE pause (reason TEXT NOT NULL, least_bytes INTEGER NOT NULL);
"""


class JobError(ValueError):
    """An operation that a job's state forbids: the rule, the job, the remedy."""


class QueueFull(JobError):
    """More open jobs than one owner may have."""


@dataclass(frozen=True)
class Job:
    """A request on its way to a file.

    Times are seconds since 1970. `eta` is in seconds from now, None where it is not known yet. `ahead` is the number of
    jobs before a waiting one, None for any other. `owner` is the client that submitted the job, "" where clients are
    not told apart. `message` is the reason of a failure, or a remark on how the job went.
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


@dataclass(frozen=True)
class Pause:
    """Why no job is started; `min_free_bytes` on the disk end a pause for lack of space, 0 for any other pause."""

    reason: str
    min_free_bytes: int = 0


class Queue:
    """All jobs of one folder: `jobs.sqlite`, the clips in `clips/`, the workers' lock files in `workers/`.

    Any number of threads and processes of one machine may open the same queue. Other users of the machine read nothing
    of it. Raises JobError where the database has another schema version.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.clips, self.locks = folder / "clips", folder / "workers"
        was_open = [make_private_folder(path) for path in (folder, self.clips, self.locks)]
        make_private_file(folder / DATABASE)  # SQLite gives its other files the same mode
        tighten(folder.glob(f"{DATABASE}-*"))
        if any(was_open):  # as version 0.1 left it
            tighten(path for part in PARTS for path in folder.glob(part))
        self._thread_local = threading.local()
        with self.transaction() as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                for statement in SCHEMA.split(";")[:-1]:
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            elif version != SCHEMA_VERSION:
                raise JobError(
                    f"a queue must have tables of version {SCHEMA_VERSION}; {folder} has {version}, "
                    "so use the longtake that made it, or another folder"
                )

    @property
    def connection(self) -> sqlite3.Connection:
        """The database connection of this thread."""
        if not hasattr(self._thread_local, "connection"):
            connection = sqlite3.connect(self.folder / DATABASE, timeout=BUSY_SECONDS, isolation_level=None)
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            self._thread_local.connection = connection
        return self._thread_local.connection

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run several statements as one transaction; roll back on any exception."""
        connection = self.connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")

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
    ) -> list[Job]:
        """Append requests to the line, all or none; each gets a file in `clips/` unless `outputs` names others.

        Raises QueueFull where the owner would have more than `max_open` unfinished jobs.
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
            _insert(connection, ids, requests, paths, owner, keep_latents)
        return [self.job(id) for id in ids]

    def submit_missing(
        self, requests: Sequence[Request], outputs: Sequence[Path], owner: str = "", keep_latents: bool = False
    ) -> list[Job]:
        """Append the requests whose outputs no waiting or running job makes already; return the jobs of all.

        Where no worker is registered, waiting jobs for other outputs belong to an abandoned run: they are cancelled.
        """
        wanted = {str(output): request for output, request in zip(outputs, requests, strict=True)}
        with self.transaction() as connection:
            open_states = (*WAITING, RUNNING)
            found = connection.execute(f"SELECT output, id FROM jobs WHERE state IN {open_states}").fetchall()
            ids: dict[str, str] = {row["output"]: row["id"] for row in found}
            if not connection.execute("SELECT * FROM workers").fetchall():
                abandoned = [(CANCELLED, time.time(), id) for output, id in ids.items() if output not in wanted]
                connection.executemany("UPDATE jobs SET state = ?, ended = ? WHERE id = ?", abandoned)
            missing = [output for output in wanted if output not in ids]
            added = dict(zip(missing, new_ids(len(missing)), strict=True))
            requests = [wanted[output] for output in added]
            paths = [Path(output) for output in added]
            _insert(connection, list(added.values()), requests, paths, owner, keep_latents)
        return [self.job((ids | added)[output]) for output in wanted]

    def job(self, id: str) -> Job:
        """Return a job in its present state; raises JobError for an unknown id."""
        row = self.connection.execute(f"SELECT *, {AHEAD} FROM jobs WHERE id = ?", (id,)).fetchone()
        if row is None:
            raise JobError(f"a job must be one of this queue; it has no {id!r}")
        return job_from_row(row)

    def jobs(
        self,
        states: Sequence[str] = STATES,
        owner: str | None = None,
        limit: int = 100,
        after: str | None = None,
        oldest_first: bool = False,
    ) -> list[Job]:
        """List at most `limit` jobs, the latest submitted first unless `oldest_first`.

        `after` is the id of the last job of the page before.
        """
        comparison, order = (">", "ASC") if oldest_first else ("<", "DESC")
        found = self.connection.execute(
            f"SELECT *, {AHEAD} FROM jobs WHERE state IN (SELECT value FROM json_each(:states)) "
            "AND (:owner IS NULL OR owner = :owner) "
            f"AND (:after IS NULL OR id {comparison} :after) ORDER BY id {order} LIMIT :limit",
            {"states": json.dumps(states), "owner": owner, "after": after, "limit": limit},
        )
        return [job_from_row(row) for row in found]

    def finished(self, ids: Sequence[str]) -> list[Job]:
        """Return those of the given jobs that are finished."""
        found = self.connection.execute(
            f"SELECT *, {AHEAD} FROM jobs WHERE id IN (SELECT value FROM json_each(?)) AND state IN {FINISHED}",
            (json.dumps(ids),),
        )
        return [job_from_row(row) for row in found]

    def workers(self) -> list[tuple[str, float]]:
        """List the registered workers: the device of each, and the seconds since its last heartbeat."""
        found = self.connection.execute("SELECT device, beat FROM workers ORDER BY id").fetchall()
        return [(row["device"], time.time() - row["beat"]) for row in found]

    def counts(self) -> dict[str, int]:
        """Return the number of jobs in each state."""
        found = dict(self.connection.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall())
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
                "UPDATE jobs SET state = ?, place = (SELECT max(place) + 1 FROM jobs), phase = '', step = 0, "
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
            line = connection.execute(
                f"SELECT id, place, owner FROM jobs WHERE state IN {WAITING} ORDER BY place"
            ).fetchall()
            if id not in [row["id"] for row in line]:
                raise JobError(f"a job to move must be waiting; {id} is {self.job(id).state}")
            movable = [(n, row) for n, row in enumerate(line) if owner in (None, row["owner"])]
            target = next((slot for slot, (n, _) in enumerate(movable) if n >= ahead), len(movable) - 1)
            order = [row["id"] for _, row in movable if row["id"] != id]
            order.insert(target, id)
            places = [row["place"] for _, row in movable]
            changed = [
                (place, moved)
                for place, moved, (_, row) in zip(places, order, movable, strict=True)
                if row["id"] != moved
            ]
            connection.executemany("UPDATE jobs SET place = ? WHERE id = ?", changed)
        return self.job(id)

    def pause(self, reason: str, min_free_bytes: int = 0) -> None:
        """Start no further job and hold the running ones, until `resume`."""
        with self.transaction() as connection:
            connection.execute("DELETE FROM pause")
            connection.execute("INSERT INTO pause VALUES (?, ?)", (reason, min_free_bytes))

    def resume(self) -> None:
        """End a pause."""
        with self.transaction() as connection:
            connection.execute("DELETE FROM pause")

    @property
    def paused(self) -> Pause | None:
        """The present pause, if any."""
        row = self.connection.execute("SELECT reason, least_bytes FROM pause").fetchone()
        return Pause(*row) if row else None


AHEAD = (
    f"CASE WHEN state IN {WAITING} THEN (SELECT count(*) FROM jobs AS other WHERE other.state IN {WAITING} "
    "AND other.place < jobs.place) END AS ahead"
)


def _insert(
    connection: sqlite3.Connection,
    ids: Sequence[str],
    requests: Sequence[Request],
    outputs: Sequence[Path],
    owner: str,
    keep_latents: bool,
) -> None:
    """Append jobs to the line."""
    (last,) = connection.execute("SELECT coalesce(max(place), 0) FROM jobs").fetchone()
    jobs = zip(ids, requests, outputs, strict=True)
    connection.executemany(
        "INSERT INTO jobs (id, place, state, request, output, owner, latents, submitted) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (id, last + n, QUEUED, request.to_json(), str(output), owner, keep_latents, time.time())
            for n, (id, request, output) in enumerate(jobs, 1)
        ],
    )


def new_ids(count: int) -> list[str]:
    """Return unique ids that sort by the time of this call."""
    now = time.time_ns()
    return [f"{now + n:016x}{secrets.token_hex(4)}" for n in range(count)]


def job_from_row(row: sqlite3.Row) -> Job:
    """Convert a row of the table, with `ahead` computed, to a Job."""
    return Job(
        id=row["id"],
        request=Request.from_json(row["request"]),
        output=Path(row["output"]),
        state=row["state"],
        owner=row["owner"],
        keep_latents=bool(row["latents"]),
        phase=row["phase"],
        step=row["step"],
        steps=row["steps"],
        message=row["sentence"],
        attempts=row["tries"],
        cancel_requested=bool(row["cancelling"]),
        submitted=row["submitted"],
        started=row["began"],
        finished=row["ended"],
        eta=_seconds_left(row),
        ahead=row["ahead"],
    )


def _seconds_left(row: sqlite3.Row) -> float | None:
    """Extrapolate the rest of the present phase from its steps so far."""
    if row["state"] != RUNNING or not row["step"]:
        return None
    return (time.time() - row["phase_began"]) / row["step"] * (row["steps"] - row["step"])
