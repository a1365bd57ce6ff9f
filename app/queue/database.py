"""A queue's SQLite file: connections whose errors are sentences for users."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BUSY_SECONDS = 60.0  # how long a process waits for the transactions of others
DAMAGED_NAME = "jobs.sqlite.damaged"  # what a damaged file may be renamed to


class QueueDamaged(ValueError):
    """A queue's database that SQLite cannot read."""


class QueueDiskFull(OSError):
    """The disk that holds a queue is full; `filename` is the database."""


def connect(path: Path) -> sqlite3.Connection:
    """Open a queue's database, in which each transaction is on the disk before it returns.

    Its methods raise QueueDamaged and QueueDiskFull where SQLite finds the file damaged or the disk full.
    """
    with named_errors(path):
        connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, factory=_factory(path))
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
    return connection


def _factory(path: Path) -> type[sqlite3.Connection]:
    class Cursor(sqlite3.Cursor):
        def execute(self, *args) -> sqlite3.Cursor:
            with named_errors(path):
                return super().execute(*args)

        def executemany(self, *args) -> sqlite3.Cursor:
            with named_errors(path):
                return super().executemany(*args)

        def fetchone(self):
            with named_errors(path):
                return super().fetchone()

        def fetchall(self) -> list:
            with named_errors(path):
                return super().fetchall()

    class Connection(sqlite3.Connection):
        def cursor(self, factory: type[sqlite3.Cursor] = Cursor) -> sqlite3.Cursor:  # pyright: ignore[reportIncompatibleMethodOverride]
            return super().cursor(factory)

        def execute(self, *args) -> sqlite3.Cursor:
            return self.cursor().execute(*args)

        def executemany(self, *args) -> sqlite3.Cursor:
            return self.cursor().executemany(*args)

    return Connection


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Raise the errors of SQLite that a user can do something about as sentences that name the file."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the primary code of an extended one
        if code == sqlite3.SQLITE_FULL:
            raise QueueDiskFull(errno.ENOSPC, "No space left on device", str(path)) from error
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise QueueDamaged(
                f"a queue's database must be whole; {path} is damaged ({error}), so rename it, for example to "
                f"{DAMAGED_NAME}, and run the command again: clips that exist are not made again"
            ) from error
        raise
