"""Idempotency keys: a POST that is sent again with the same key makes no second video.

The key is stored in the transaction that queues the job, so neither a crash nor two calls at once make two. The header
is that of the Internet-Draft draft-ietf-httpapi-idempotency-key-header, and of the `openai` client.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from dataclasses import dataclass
from typing import Any

from app.queue.jobs import Queue
from dit.request import RequestError

HEADER = "idempotency-key"
MAX_KEY_CHARACTERS = 255
KEPT_SECONDS = 24 * 3600.0

TABLE = """CREATE TABLE IF NOT EXISTS idempotency (
    owner TEXT NOT NULL, key TEXT NOT NULL, fingerprint TEXT NOT NULL, job TEXT NOT NULL, stored REAL NOT NULL,
    PRIMARY KEY (owner, key)
) WITHOUT ROWID"""


class KeyReused(ValueError):
    """A key that was sent with another request before."""


@dataclass(frozen=True)
class IdempotencyKey:
    """A client's key, and the fingerprint of the request that it came with."""

    owner: str
    key: str
    fingerprint: str

    @classmethod
    def of(cls, owner: str, key: str, route: str, found: dict[str, Any]) -> IdempotencyKey:
        """Return a client's key for a request's route and fields, in which files are named by their contents.

        Raises RequestError for a key that is empty or too long.
        """
        if not 0 < len(key) <= MAX_KEY_CHARACTERS:
            rule = f"an Idempotency-Key must have 1 to {MAX_KEY_CHARACTERS} characters"
            raise RequestError(f"{rule}; got {len(key)}, so send another")
        text = json.dumps([route, found], sort_keys=True, default=str)
        return cls(owner, key, hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest())

    def find(self, queue: Queue) -> str | None:
        """Return the id of the job that was queued with this key; raises KeyReused where it was another request's."""
        prepare(queue.connection)
        row = queue.connection.execute(
            "SELECT fingerprint, job FROM idempotency WHERE owner = ? AND key = ? AND stored > ?",
            (self.owner, self.key, time.time() - KEPT_SECONDS),
        ).fetchone()
        if row is None:
            return None
        if row["fingerprint"] != self.fingerprint:
            raise KeyReused("an Idempotency-Key belongs to one request; got it with another one, so send a new key")
        return row["job"]

    def store(self, connection: sqlite3.Connection, job: str) -> bool:
        """Store a job's id under this key, within a transaction; False where there is one already."""
        connection.execute("DELETE FROM idempotency WHERE stored <= ?", (time.time() - KEPT_SECONDS,))
        values = (self.owner, self.key, self.fingerprint, job, time.time())
        return bool(
            connection.execute("INSERT INTO idempotency VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", values).rowcount
        )


def prepare(connection: sqlite3.Connection) -> None:
    """Create the table where it is missing."""
    connection.execute(TABLE)
