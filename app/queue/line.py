"""The line of waiting jobs: its end, the place of a job in it, and moving a job within it."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from app.queue.schema import STATES, TALLIED, WAITING

LAST_PLACE = (
    "SELECT coalesce(max(last), 0) FROM ("
    + " UNION ALL ".join(f"SELECT max(place) AS last FROM jobs WHERE state = '{state}'" for state in STATES)
    + ")"
)  # of any job, found by the index of each state
LINE = f"FROM jobs WHERE state IN {WAITING}"
BETWEEN = f"SELECT count(*) {LINE} AND place >= ? AND place < ?"
TALLIED_BEFORE = f"SELECT coalesce(sum(jobs), 0) FROM tally WHERE state IN {WAITING} AND stretch < ?"


def places_in_line(connection: sqlite3.Connection, rows: Sequence[sqlite3.Row]) -> dict[str, int]:
    """Return how many jobs come before each of those rows that wait."""
    found: dict[str, int] = {}
    ahead, last, last_stretch = 0, -1e300, 0
    for place, id in sorted((row["place"], row["id"]) for row in rows if row["state"] in WAITING):
        stretch = int(place / TALLIED)
        if stretch > last_stretch:  # the whole stretches before its own, from the tally
            (ahead,) = connection.execute(TALLIED_BEFORE, (stretch,)).fetchone()
            last, last_stretch = float(stretch * TALLIED), stretch
        (between,) = connection.execute(BETWEEN, (last, place)).fetchone()
        ahead, last = ahead + between, place
        found[id] = ahead
    return found


def count_waiting(connection: sqlite3.Connection) -> int:
    """Return the number of waiting jobs."""
    return connection.execute(f"SELECT coalesce(sum(jobs), 0) FROM tally WHERE state IN {WAITING}").fetchone()[0]


def move_in_line(connection: sqlite3.Connection, id: str, ahead: int, owner: str | None) -> bool:
    """Move a waiting job to where `ahead` others come before it, within a transaction; False where it does not wait.

    With `owner`, only the owner's jobs trade places, and the job comes as near to `ahead` as they allow.
    """
    place = connection.execute(f"SELECT place {LINE} AND id = ?", (id,)).fetchone()
    if place is None:
        return False
    if owner is None:
        between = connection.execute(
            f"SELECT place {LINE} AND id <> ? ORDER BY place LIMIT 2 OFFSET ?", (id, max(0, ahead - 1))
        ).fetchall()
        if ahead == 0:
            new = between[0]["place"] - 1 if between else place[0]
        elif len(between) == 2:
            new = (between[0]["place"] + between[1]["place"]) / 2
        else:
            last = connection.execute(f"SELECT place {LINE} ORDER BY place DESC LIMIT 1").fetchone()
            new = last[0] + 1
        # Where two neighbours are so close that no number is between them, jobs trade places instead.
        if len(between) < 2 or ahead == 0 or between[0]["place"] < new < between[1]["place"]:
            connection.execute("UPDATE jobs SET place = ? WHERE id = ?", (new, id))
            return True
    _trade_places(connection, id, ahead, owner)
    return True


def _trade_places(connection: sqlite3.Connection, id: str, ahead: int, owner: str | None) -> None:
    line = connection.execute(f"SELECT id, place, owner {LINE} ORDER BY place").fetchall()
    movable = [(n, row) for n, row in enumerate(line) if owner in (None, row["owner"])]
    target = next((slot for slot, (n, _) in enumerate(movable) if n >= ahead), len(movable) - 1)
    order = [row["id"] for _, row in movable if row["id"] != id]
    order.insert(target, id)
    places = [row["place"] for _, row in movable]
    changed = [
        (place, moved) for place, moved, (_, row) in zip(places, order, movable, strict=True) if row["id"] != moved
    ]
    connection.executemany("UPDATE jobs SET place = ? WHERE id = ?", changed)
