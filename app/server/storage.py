"""What each client has on the disk, in finished videos and uploads, and which of its files are still needed."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from app.queue.jobs import DONE, RUNNING, WAITING, Queue
from app.server.limits import GIGABYTE

FRESH_SECONDS = 20.0  # for which a client's sum is reused


class QuotaExceeded(ValueError):
    """A client that has as much on the disk as it may."""


class Storage:
    """Adds up the bytes of each client's finished videos and uploads; the sum of a moment ago, plus what came since."""

    def __init__(self, queue: Queue, owner_bytes: float):
        self.queue, self.owner_bytes, self.lock = queue, owner_bytes, threading.Lock()
        self.sums: dict[str, tuple[float, int]] = {}

    def check_room(self, owner: str, uploads: Path) -> None:
        """Raise QuotaExceeded for an owner whose videos and uploads, the latter in a folder, take too much."""
        used = self.used(owner, uploads)
        if used >= self.owner_bytes:
            rule = f"your videos and files may take {self.owner_bytes / GIGABYTE:g} GB here"
            raise QuotaExceeded(f"{rule}; they take {used / GIGABYTE:.3g} GB, so delete some")

    def used(self, owner: str, uploads: Path) -> int:
        """Return the bytes that an owner has on the disk."""
        with self.lock:
            stored_at, total = self.sums.get(owner, (-FRESH_SECONDS, 0))
        if time.monotonic() - stored_at >= FRESH_SECONDS:
            rows = self.queue.connection.execute(
                "SELECT id FROM jobs WHERE owner = ? AND state = ?", (owner, DONE)
            ).fetchall()
            finished = {row["id"] for row in rows}
            total = _bytes_in(self.queue.clips, finished) + _bytes_in(uploads)
            with self.lock:
                self.sums[owner] = time.monotonic(), total
        return total

    def add(self, owner: str, more: int) -> None:
        """Count bytes that came since an owner's sum was made, or, negative, went."""
        with self.lock:
            if owner in self.sums:
                stored_at, total = self.sums[owner]
                self.sums[owner] = stored_at, total + more


def _bytes_in(folder: Path, stems: Collection[str] | None = None) -> int:
    """Add up the sizes of the files of a folder; with `stems`, only of those whose names begin with one and a dot."""
    total = 0
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if stems is None or entry.name.partition(".")[0] in stems:
                with suppress(FileNotFoundError):  # it was removed meanwhile
                    total += entry.stat().st_size
    return total


def list_files(folder: Path) -> list[Path]:
    """Return the files of a folder, the latest first; hidden ones, which are incomplete, are left out."""
    found = []
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                if not entry.name.startswith("."):
                    found.append((entry.stat().st_mtime_ns, entry.name))
    return [folder / name for _, name in sorted(found, reverse=True)]


def unfinished_users(connection: sqlite3.Connection, owner: str, path: str, id: str) -> int:
    """Return how many of an owner's unfinished jobs, but for the job `id`, name a file in their requests."""
    named = json.dumps(path, ensure_ascii=False)  # as it stands in a request
    return connection.execute(
        f"SELECT count(*) FROM jobs WHERE owner = ? AND state IN {(*WAITING, RUNNING)} AND id <> ? "
        "AND instr(request, ?)",
        (owner, id, named),
    ).fetchone()[0]
