"""A run: a command that waits for jobs of a queue. Runs of one queue leave each other's jobs alone.

A run holds a lock on a file for as long as it lives, as a worker does. A waiting job that no living run wants was left
by one that was killed or stopped, so the next run cancels it, unless it wants the same clip.
"""

from __future__ import annotations

import fcntl
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from app.home import make_private_folder, private_opener
from app.queue.jobs import CANCELLED, RUNNING, WAITING, Job, Queue, insert, job_from_row, new_ids
from app.queue.schema import real_output, stored_output
from dit.request import Request

RUNS = "runs"  # subfolder of the queue's folder with the lock files
EVERYTHING = ".all"  # ends the name of a run that wants every job


class BatchRun:
    """A command's hold on a queue: its wishes are known to other runs until it exits or dies.

    With `everything`, it wants all jobs of the queue, as a worker does that was started by hand.
    """

    def __init__(self, queue: Queue, everything: bool = False):
        self.queue = queue
        (self.id,) = new_ids(1)
        self.path = queue.folder / RUNS / f"{self.id}{EVERYTHING if everything else ''}"

    def __enter__(self) -> BatchRun:
        make_private_folder(self.path.parent)
        with self.queue.transaction():  # so that no other run finds the file before it is locked
            self.lock = open(self.path, "w", opener=private_opener)
            fcntl.flock(self.lock, fcntl.LOCK_EX)
        return self

    def __exit__(self, *error) -> None:
        with suppress(OSError, sqlite3.Error):  # the next run does it where the disk is full
            self.queue.connection.execute("DELETE FROM wants WHERE run = ?", (self.id,))
        self.path.unlink(missing_ok=True)
        self.lock.close()

    def submit_missing(
        self,
        wanted: Sequence[tuple[Request, Path]],
        is_there: Callable[[int], bool] = lambda number: False,
        keep_latents: bool = False,
    ) -> list[Job | str | None]:
        """Queue clips that do not exist and that no job makes already, all in one transaction.

        `is_there` says of a number in `wanted` whether its clip exists; no worker can finish it meanwhile, so that no
        clip is made twice. Returns for each clip its job, None where it exists, or a sentence why it cannot be made.
        """
        queue, dead = self.queue, list[Path]()
        texts = [request.to_json() for request, _ in wanted]
        folders = {folder: real_output(folder / "x").parent for folder in {output.parent for _, output in wanted}}
        outputs = [folders[output.parent] / output.name for _, output in wanted]
        found: list[Job | str | None] = [None] * len(wanted)
        with queue.transaction() as connection:
            living, dead = self._other_runs()
            kept, wanted_elsewhere = self._jobs_of(connection, living)
            rows = connection.execute(f"SELECT * FROM jobs WHERE state IN {(*WAITING, RUNNING)}").fetchall()
            open_rows, taken, new = {row["output"]: row for row in rows}, set[str](), list[int]()
            for number, output in enumerate(outputs):
                key = stored_output(output, queue.folder)
                row = open_rows.get(key)
                if key in taken:
                    found[number] = f"a clip must have a file of its own; {output} is that of another row as well"
                elif row and row["request"] == texts[number]:
                    found[number] = job_from_row(row, queue.folder)
                    kept.add(row["id"])
                    if keep_latents:
                        connection.execute("UPDATE jobs SET latents = 1 WHERE id = ?", (row["id"],))
                elif row and (wanted_elsewhere or row["id"] in kept):
                    found[number] = (
                        f"a file must be one clip's; another command is making {output} from another request now, so "
                        "take another name, or wait"
                    )
                elif not is_there(number):
                    new.append(number)
                taken.add(key)
            if not wanted_elsewhere:
                left = [(row["id"],) for row in rows if row["id"] not in kept]
                connection.executemany("UPDATE jobs SET cancelling = 1 WHERE id = ?", left)
                connection.executemany(
                    f"UPDATE jobs SET state = ?, ended = ? WHERE id = ? AND state IN {WAITING}",
                    [(CANCELLED, time.time(), id) for (id,) in left],
                )
            added = insert(
                *(connection, queue.folder, new_ids(len(new)), [wanted[number][0] for number in new]),
                *([outputs[number] for number in new], "", keep_latents),
            )
            for number, job in zip(new, added, strict=True):
                found[number] = job
            connection.executemany(
                "INSERT OR IGNORE INTO wants VALUES (?, ?)",
                [(self.id, one.id) for one in found if isinstance(one, Job)],
            )
        for path in dead:
            path.unlink(missing_ok=True)
        return found

    def _jobs_of(self, connection: sqlite3.Connection, living: Sequence[Path]) -> tuple[set[str], bool]:
        """Return the jobs that other runs want, and whether one wants all; forget what dead ones wanted."""
        names = [self.id, *(path.stem for path in living)]
        connection.execute(f"DELETE FROM wants WHERE run NOT IN ({', '.join('?' * len(names))})", names)
        rows = connection.execute("SELECT job FROM wants WHERE run <> ?", (self.id,)).fetchall()
        return {row["job"] for row in rows}, any(path.suffix == EVERYTHING for path in living)

    def _other_runs(self) -> tuple[list[Path], list[Path]]:
        """Return the lock files of other runs that live, and of those that are dead."""
        living, dead = [], []
        for path in self.path.parent.iterdir():
            if path != self.path:
                with suppress(FileNotFoundError), open(path) as lock:
                    try:
                        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        dead.append(path)
                    except BlockingIOError:
                        living.append(path)
        return living, dead
