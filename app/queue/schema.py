"""The tables of a queue, the states of its jobs, and how those of an earlier version become the present ones."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable
from pathlib import Path

QUEUED, RUNNING, DONE, FAILED, CANCELLED, INTERRUPTED = STATES = (
    *("queued", "running", "done", "failed", "cancelled", "interrupted"),
)
WAITING = (QUEUED, INTERRUPTED)  # an interrupted job is resumed at its old place in line
FINISHED = (DONE, FAILED, CANCELLED)
SCHEMA_VERSION = 2
BATCH_QUEUE = ".queue"  # the queue's folder in a batch's folder, or the beginning of its name
CLIPS = "clips"  # subfolder of the queue's folder

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
CREATE TABLE pause (reason TEXT NOT NULL, least_bytes INTEGER NOT NULL)
"""

# Since version 2. With the indexes a page of a list is found without reading other rows; `tally` counts the jobs of
# each state and each stretch of the line, and is kept by the triggers, so that no query walks the whole line.
TALLIED = 512  # places in a stretch of the line
ADDITIONS = f"""
ALTER TABLE pause ADD COLUMN folder TEXT NOT NULL DEFAULT '';
CREATE TABLE wants (run TEXT NOT NULL, job TEXT NOT NULL, PRIMARY KEY (run, job)) WITHOUT ROWID;
CREATE INDEX by_state ON jobs (state, id);
CREATE INDEX by_owner ON jobs (owner, id);
CREATE INDEX by_owner_and_state ON jobs (owner, state, id);
CREATE INDEX by_end ON jobs (ended) WHERE ended IS NOT NULL;
CREATE TABLE tally (
    state TEXT NOT NULL, stretch INTEGER NOT NULL, jobs INTEGER NOT NULL, PRIMARY KEY (state, stretch)
) WITHOUT ROWID;
INSERT INTO tally
    SELECT state, CAST(place / {TALLIED} AS INTEGER) AS stretch, count(*) FROM jobs GROUP BY state, stretch
"""
TALLY_ONE = f"""
    INSERT INTO tally VALUES (NEW.state, CAST(NEW.place / {TALLIED} AS INTEGER), 1)
        ON CONFLICT DO UPDATE SET jobs = jobs + 1;"""
TALLY_ONE_LESS = f"""
    UPDATE tally SET jobs = jobs - 1 WHERE state = OLD.state AND stretch = CAST(OLD.place / {TALLIED} AS INTEGER);"""
TRIGGERS = (
    f"CREATE TRIGGER tally_new AFTER INSERT ON jobs BEGIN {TALLY_ONE} END",
    f"CREATE TRIGGER tally_deleted AFTER DELETE ON jobs BEGIN {TALLY_ONE_LESS} END",
    "CREATE TRIGGER tally_changed AFTER UPDATE OF state, place ON jobs "
    f"WHEN OLD.state <> NEW.state OR OLD.place <> NEW.place BEGIN {TALLY_ONE_LESS} {TALLY_ONE} END",
)


def prepare_tables(connection: sqlite3.Connection, folder: Path) -> int | None:
    """Create the tables of a queue, or bring those of an earlier version up to date, within a transaction.

    Returns the version where it is a later one, whose tables stay as they are.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        return version
    if version < 1:
        _execute_all(connection, TABLES.split(";"))
    if version < SCHEMA_VERSION:
        _execute_all(connection, (*ADDITIONS.split(";"), *TRIGGERS))
        outputs = connection.execute("SELECT id, output FROM jobs").fetchall()
        changed = [(stored_output(real_output(_former_output(folder, output)), folder), id) for id, output in outputs]
        connection.executemany("UPDATE jobs SET output = ? WHERE id = ?", changed)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    return None


def _execute_all(connection: sqlite3.Connection, statements: Iterable[str]) -> None:
    for statement in statements:
        connection.execute(statement)


def stored_output(output: Path, folder: Path) -> str:
    """Return the path of a clip, as `real_output` returns it, in the form that the table holds.

    Relative to the queue's folder for clips of the queue, or of the batch that has it, so that the same clip has the
    same path from any working directory and under any name of the folder; else absolute.
    """
    top, back = (folder.parent, "../") if folder.name.startswith(BATCH_QUEUE) else (folder, "")
    path, prefix = str(output), f"{top}/"
    return back + path.removeprefix(prefix) if path.startswith(prefix) else path


def real_output(output: Path) -> Path:
    """Return the absolute path of a file that will be written, links in its folder resolved."""
    return Path(os.path.realpath(output.parent), output.name)


def output_path(stored: str, folder: Path) -> Path:
    """Return the absolute path of a clip from what the table holds."""
    return Path(os.path.normpath(folder / stored))


def _former_output(folder: Path, output: str) -> Path:
    """Return the path that version 1 stored, which was relative to the working directory of who queued the clip.

    The working directory is not known, so the queue's or batch's folder is looked for in the path.
    """
    parts = Path(output).parts
    if Path(output).is_absolute():
        return Path(output)
    if not folder.name.startswith(BATCH_QUEUE):
        return folder / CLIPS / parts[-1] if parts[-2:-1] == (CLIPS,) else Path(output)
    top = folder.parent
    after = max((n + 1 for n, part in enumerate(parts[:-1]) if part == top.name), default=0)
    return top.joinpath(*parts[after:])
