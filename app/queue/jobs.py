"""The queue: requests that wait, are being made, or are done, in one SQLite file that outlives every process.

A job is a row; its clip is a file beside it. Rows change in single transactions, each on the disk before it is told
(write-ahead log, synchronous=FULL), so a power cut loses no job. Here is what people do with a queue; `shift.py` is
what workers do.
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

from dit.request import Request

QUEUED, RUNNING, DONE, FAILED, CANCELLED, INTERRUPTED = STATES = (
    *("queued", "running", "done", "failed", "cancelled", "interrupted"),
)
WAITING = (QUEUED, INTERRUPTED)  # an interrupted job is taken up again in its place
ENDED = (DONE, FAILED, CANCELLED)
VERSION = 1  # of the tables
UPLOADS = "uploads"  # the folder, in a queue's, of what clients of its server sent
BUSY_SECONDS = 60.0  # how long a process waits for the others' transactions

TABLES = """
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
    """What cannot be done with a job: the rule, the job, the remedy."""


class Crowded(JobError):
    """More jobs than one owner may have in line."""


@dataclass(frozen=True)
class Job:
    """A request on its way to a file. Times are seconds since 1970; `eta` is in seconds from now, None where nobody can
    know it yet; `ahead` is how many jobs come before a waiting one.

    `owner` says for whom it is, "" for whoever asks; `sentence` why it failed, or what happened to it on the way.
    """

    id: str
    request: Request
    output: Path
    state: str
    owner: str = ""
    latents: bool = False
    phase: str = ""
    step: int = 0
    steps: int = 0
    sentence: str = ""
    tries: int = 0
    cancelling: bool = False
    submitted: float = 0.0
    began: float | None = None
    ended: float | None = None
    eta: float | None = None
    ahead: int | None = None


@dataclass(frozen=True)
class Pause:
    """Why nothing is begun; if for want of room, how many free bytes end it."""

    reason: str
    least_bytes: int = 0


class Queue:
    """All jobs of one folder: `jobs.sqlite`, the clips in `clips/`, the workers' locks in `workers/`.

    Any number of threads and processes of one machine may hold the same queue. Raises JobError where the folder's
    tables are of a later version.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.clips, self.locks = folder / "clips", folder / "workers"
        for path in (folder, self.clips, self.locks):
            path.mkdir(parents=True, exist_ok=True)
        self.local = threading.local()
        with self.transaction() as rows:
            (version,) = rows.execute("PRAGMA user_version").fetchone()
            if version == 0:
                for statement in TABLES.split(";")[:-1]:
                    rows.execute(statement)
                rows.execute(f"PRAGMA user_version = {VERSION}")
            elif version != VERSION:
                raise JobError(
                    f"a queue must have tables of version {VERSION}; {folder} has {version}, "
                    "so use the longtake that made it, or another folder"
                )

    @property
    def rows(self) -> sqlite3.Connection:
        """This thread's connection."""
        if not hasattr(self.local, "rows"):
            rows = sqlite3.connect(self.folder / "jobs.sqlite", timeout=BUSY_SECONDS, isolation_level=None)
            rows.row_factory = sqlite3.Row
            rows.execute("PRAGMA journal_mode = WAL")
            rows.execute("PRAGMA synchronous = FULL")
            self.local.rows = rows
        return self.local.rows

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Let several statements happen together or not at all, before or after those of others."""
        rows = self.rows
        rows.execute("BEGIN IMMEDIATE")
        try:
            yield rows
        except BaseException:
            rows.execute("ROLLBACK")
            raise
        rows.execute("COMMIT")

    def close(self) -> None:
        """Close this thread's connection."""
        if hasattr(self.local, "rows"):
            self.local.rows.close()
            del self.local.rows

    def submit(
        self,
        requests: Sequence[Request],
        suffix: str = ".mp4",
        outputs: Sequence[Path] | None = None,
        owner: str = "",
        latents: bool = False,
        most: int | None = None,
    ) -> list[Job]:
        """Put requests at the end of the line, all or none; each gets a file in `clips/` unless `outputs` names
        others. Raises Crowded where the owner would have more than `most` in line.
        """
        ids = new_ids(len(requests))
        paths = outputs or [self.clips / f"{id}{suffix}" for id in ids]
        with self.transaction() as rows:
            (in_line,) = rows.execute(
                f"SELECT count(*) FROM jobs WHERE owner = ? AND state IN {(*WAITING, RUNNING)}", (owner,)
            ).fetchone()
            if most is not None and in_line + len(ids) > most:
                raise Crowded(f"at most {most} videos of yours may wait here; there are {in_line}, so ask again later")
            _insert(rows, ids, requests, paths, owner, latents)
        return [self.job(id) for id in ids]

    def submit_missing(
        self, requests: Sequence[Request], outputs: Sequence[Path], owner: str = "", latents: bool = False
    ) -> list[Job]:
        """Put those requests at the end of the line whose outputs no waiting or running job makes already; returns the
        jobs of all.

        Where no worker is at work, waiting jobs for other outputs are those of a run that was given up: they are
        cancelled.
        """
        asked = {str(output): request for output, request in zip(outputs, requests, strict=True)}
        with self.transaction() as rows:
            open_states = (*WAITING, RUNNING)
            found = rows.execute(f"SELECT output, id FROM jobs WHERE state IN {open_states}").fetchall()
            ids: dict[str, str] = {row["output"]: row["id"] for row in found}
            if not rows.execute("SELECT * FROM workers").fetchall():
                given_up = [(CANCELLED, time.time(), id) for output, id in ids.items() if output not in asked]
                rows.executemany("UPDATE jobs SET state = ?, ended = ? WHERE id = ?", given_up)
            missing = [output for output in asked if output not in ids]
            fresh = dict(zip(missing, new_ids(len(missing)), strict=True))
            requests = [asked[output] for output in fresh]
            _insert(rows, list(fresh.values()), requests, [Path(output) for output in fresh], owner, latents)
        return [self.job((ids | fresh)[output]) for output in asked]

    def job(self, id: str) -> Job:
        """Return a job as it stands; raises JobError for one that is not there."""
        row = self.rows.execute(f"SELECT *, {AHEAD} FROM jobs WHERE id = ?", (id,)).fetchone()
        if row is None:
            raise JobError(f"a job must be one of this queue; it has no {id!r}")
        return job_of(row)

    def jobs(
        self,
        states: Sequence[str] = STATES,
        owner: str | None = None,
        most: int = 100,
        after: str | None = None,
        earliest: bool = False,
    ) -> list[Job]:
        """List jobs, the latest submitted first, or the `earliest`; at most `most`, only those that are listed behind
        the one named `after`.
        """
        behind, order = (">", "ASC") if earliest else ("<", "DESC")
        found = self.rows.execute(
            f"SELECT *, {AHEAD} FROM jobs WHERE state IN (SELECT value FROM json_each(:states)) "
            "AND (:owner IS NULL OR owner = :owner) "
            f"AND (:after IS NULL OR id {behind} :after) ORDER BY id {order} LIMIT :most",
            {"states": json.dumps(states), "owner": owner, "after": after, "most": most},
        )
        return [job_of(row) for row in found]

    def ended(self, ids: Sequence[str]) -> list[Job]:
        """Return those of some jobs that have ended."""
        found = self.rows.execute(
            f"SELECT *, {AHEAD} FROM jobs WHERE id IN (SELECT value FROM json_each(?)) AND state IN {ENDED}",
            (json.dumps(ids),),
        )
        return [job_of(row) for row in found]

    def workers(self) -> list[tuple[str, float]]:
        """List the workers at this queue: the device of each, and for how many seconds nothing was heard of it."""
        found = self.rows.execute("SELECT device, beat FROM workers ORDER BY id").fetchall()
        return [(row["device"], time.time() - row["beat"]) for row in found]

    def counts(self) -> dict[str, int]:
        """Return how many jobs are in each state."""
        found = dict(self.rows.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall())
        return {state: found.get(state, 0) for state in STATES}

    def cancel(self, id: str) -> Job:
        """Cancel a job: at once if it waits, after its worker's next step if it is being made. One that has ended stays
        as it is.
        """
        with self.transaction() as rows:
            rows.execute(
                f"UPDATE jobs SET state = ?, ended = ?, phase = '' WHERE id = ? AND state IN {WAITING}",
                (CANCELLED, time.time(), id),
            )
            rows.execute("UPDATE jobs SET cancelling = 1 WHERE id = ? AND state = ?", (id, RUNNING))
        return self.job(id)

    def forget(self, id: str) -> Job:
        """Strike out a job that has ended, whose files are the caller's; raises JobError for one that has not."""
        job = self.job(id)
        if not self.rows.execute(f"DELETE FROM jobs WHERE id = ? AND state IN {ENDED}", (id,)).rowcount:
            raise JobError(f"a job to forget must have ended; {id} is {job.state}, so cancel it first")
        return job

    def retry(self, id: str) -> Job:
        """Put a job that failed or was cancelled at the end of the line again; raises JobError for any other."""
        with self.transaction() as rows:
            changed = rows.execute(
                "UPDATE jobs SET state = ?, place = (SELECT max(place) + 1 FROM jobs), phase = '', step = 0, "
                "steps = 0, sentence = '', worker = NULL, tries = 0, cancelling = 0, whole = 0, began = NULL, "
                "ended = NULL WHERE id = ? AND state IN (?, ?)",
                (QUEUED, id, FAILED, CANCELLED),
            ).rowcount
        job = self.job(id)
        if not changed:
            raise JobError(f"a job to try again must have failed or been cancelled; {id} is {job.state}")
        return job

    def move(self, id: str, ahead: int, among: str | None = None) -> Job:
        """Move a waiting job to where `ahead` others come before it, 0 being the front; `among` an owner's jobs, only
        these change their places with each other, and it comes as near to that as they allow. Raises JobError for one
        that does not wait.
        """
        with self.transaction() as rows:
            line = rows.execute(f"SELECT id, place, owner FROM jobs WHERE state IN {WAITING} ORDER BY place").fetchall()
            if id not in [row["id"] for row in line]:
                raise JobError(f"a job to move must be waiting; {id} is {self.job(id).state}")
            own = [(n, row) for n, row in enumerate(line) if among in (None, row["owner"])]
            spot = next((spot for spot, (n, _) in enumerate(own) if n >= ahead), len(own) - 1)
            order = [row["id"] for _, row in own if row["id"] != id]
            order.insert(spot, id)
            places = [row["place"] for _, row in own]
            changed = [
                (place, one) for place, one, (_, row) in zip(places, order, own, strict=True) if row["id"] != one
            ]
            rows.executemany("UPDATE jobs SET place = ? WHERE id = ?", changed)
        return self.job(id)

    def pause(self, reason: str, least_bytes: int = 0) -> None:
        """Begin nothing more, and hold still what is being made, until `resume`."""
        with self.transaction() as rows:
            rows.execute("DELETE FROM pause")
            rows.execute("INSERT INTO pause VALUES (?, ?)", (reason, least_bytes))

    def resume(self) -> None:
        """End a pause."""
        with self.transaction() as rows:
            rows.execute("DELETE FROM pause")

    @property
    def paused(self) -> Pause | None:
        """The pause there is, if any."""
        row = self.rows.execute("SELECT reason, least_bytes FROM pause").fetchone()
        return Pause(*row) if row else None


AHEAD = (
    f"CASE WHEN state IN {WAITING} THEN (SELECT count(*) FROM jobs AS other WHERE other.state IN {WAITING} "
    "AND other.place < jobs.place) END AS ahead"
)


def _insert(
    rows: sqlite3.Connection,
    ids: Sequence[str],
    requests: Sequence[Request],
    outputs: Sequence[Path],
    owner: str,
    latents: bool,
) -> None:
    """Put jobs at the end of the line."""
    (last,) = rows.execute("SELECT coalesce(max(place), 0) FROM jobs").fetchone()
    jobs = zip(ids, requests, outputs, strict=True)
    rows.executemany(
        "INSERT INTO jobs (id, place, state, request, output, owner, latents, submitted) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (id, last + n, QUEUED, request.to_json(), str(output), owner, latents, time.time())
            for n, (id, request, output) in enumerate(jobs, 1)
        ],
    )


def new_ids(count: int) -> list[str]:
    """Return names that nobody else has, in the order of time and of their sorting."""
    now = time.time_ns()
    return [f"{now + n:016x}{secrets.token_hex(4)}" for n in range(count)]


def job_of(row: sqlite3.Row) -> Job:
    """Return the job that a row of the table is, `ahead` counted."""
    return Job(
        id=row["id"],
        request=Request.from_json(row["request"]),
        output=Path(row["output"]),
        state=row["state"],
        owner=row["owner"],
        latents=bool(row["latents"]),
        phase=row["phase"],
        step=row["step"],
        steps=row["steps"],
        sentence=row["sentence"],
        tries=row["tries"],
        cancelling=bool(row["cancelling"]),
        submitted=row["submitted"],
        began=row["began"],
        ended=row["ended"],
        eta=_eta(row),
        ahead=row["ahead"],
    )


def _eta(row: sqlite3.Row) -> float | None:
    """Return the seconds that the present phase will last at the pace so far."""
    if row["state"] != RUNNING or not row["step"]:
        return None
    return (time.time() - row["phase_began"]) / row["step"] * (row["steps"] - row["step"])
