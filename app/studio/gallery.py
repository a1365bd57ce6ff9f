"""The shelf: what an owner made and sent, in one row, newest first, with favourites, notes and a search.

Jobs are the queue's and uploads are files; `shelf.sqlite` beside them keeps what people add (a star, a note) and what
was once read of a file: how long and large it is, the request that it carries, its credentials. What was read is read
again where the file has changed since.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from app.queue.jobs import AHEAD, BUSY_SECONDS, DONE, Job, job_from_row
from app.server.parsing import short_repr
from app.server.service import UPLOAD_ID, NotFound, Service
from app.server.uploads import PARTIAL_PREFIX
from app.studio.probe import MEMORY, SECONDS, glance
from dit.request import RENAMED, Request, RequestError
from vae.files import atomic_write
from vae.video.credentials import hash_of_contents
from vae.video.pixels import MediaError
from vae.video.sandbox import run_sandboxed

POSTERS = "posters"  # the folder, in a queue's, of first frames
LONGEST_NOTE = 2000  # letters
MOST_SEARCHED = 12  # words of a search
EVERY = 10**9  # more clips than anybody has
JOBS, UPLOADED = KINDS = ("job", "upload")

TABLES = """
CREATE TABLE IF NOT EXISTS marks (
    owner TEXT NOT NULL, id TEXT NOT NULL, favourite INTEGER NOT NULL DEFAULT 0, note TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (owner, id)
);
CREATE TABLE IF NOT EXISTS known (
    id TEXT PRIMARY KEY, stamp INTEGER NOT NULL, columns INTEGER, "rows" INTEGER, frames INTEGER, fps REAL,
    seconds REAL, told TEXT, credentials TEXT, verdict TEXT
);
CREATE TABLE IF NOT EXISTS contents (id TEXT PRIMARY KEY, stamp INTEGER NOT NULL, hash TEXT NOT NULL);
"""
OWN = "favourite", "note"  # columns of marks
READ = ("columns", "rows", "frames", "fps", "seconds")  # columns of known that say what a file is


@dataclass(frozen=True)
class Upload:
    """A file that an owner sent, and when, in seconds since 1970."""

    id: str
    path: Path
    created: float


@dataclass(frozen=True)
class Known:
    """What was read of a file: its size, frames and seconds (None of a picture), and the request that it carries."""

    columns: int
    rows: int
    frames: int
    fps: float | None
    seconds: float | None
    told: str | None = None

    @property
    def request(self) -> Request | None:
        """The request that the file carries; None where there is none that can be read."""
        return _request_in(self.told) if self.told else None


@dataclass(frozen=True)
class Item:
    """A job or an upload on the shelf, with its marks and what is known of its file."""

    made: Job | Upload
    favourite: bool = False
    note: str = ""
    known: Known | None = None


@lru_cache(maxsize=4096)
def _request_in(told: str) -> Request | None:
    try:
        return Request.from_json(told)
    except RequestError:
        return None


class Shelf:
    """All that owners made and sent at one service, each owner's apart."""

    def __init__(self, service: Service):
        self.service, self.folder, self.local = service, service.queue.folder, threading.local()
        self.posters = self.folder / POSTERS
        self.posters.mkdir(exist_ok=True)
        self.rows.executescript(TABLES)

    @property
    def rows(self) -> sqlite3.Connection:
        """This thread's connection; the queue's tables can be read there as well, and not be written."""
        if not hasattr(self.local, "rows"):
            rows = sqlite3.connect(
                (self.folder / "shelf.sqlite").as_uri(), timeout=BUSY_SECONDS, isolation_level=None, uri=True
            )
            rows.row_factory = sqlite3.Row
            rows.execute("PRAGMA journal_mode = WAL")
            rows.execute("ATTACH ? AS line", ((self.folder / "jobs.sqlite").as_uri() + "?mode=ro",))
            rows.create_function("holds", 3, _holds, deterministic=True)
            self.local.rows = rows
        return self.local.rows

    def items(
        self,
        owner: str,
        search: str = "",
        favourites: bool = False,
        kind: str | None = None,
        after: str | None = None,
        most: int = 50,
    ) -> list[Item]:
        """List an owner's jobs and uploads, the newest first, at most `most` of those behind the one named `after`;
        those that have all words of a search in what they say, or in their note, mode or id.

        Raises NotFound for an `after` that is none of the owner's uploads.
        """
        words = json.dumps(search.casefold().split()[:MOST_SEARCHED])
        moment = _moment(after, self.upload(after, owner).created if after and UPLOAD_ID.fullmatch(after) else 0.0)
        found: list[tuple[tuple[str, str], Item]] = []
        if kind in (None, JOBS):
            rows = self.rows.execute(
                f"SELECT jobs.*, {AHEAD}, favourite, note, known.* FROM jobs "
                "LEFT JOIN marks ON marks.owner = jobs.owner AND marks.id = jobs.id "
                "LEFT JOIN known ON known.id = jobs.id "
                "WHERE jobs.owner = :owner AND jobs.id < :before AND (:any OR favourite = 1) "
                "AND (:words = '[]' OR holds(:words, coalesce(told, request), jobs.id || ' ' || coalesce(note, ''))) "
                "ORDER BY jobs.id DESC LIMIT :most",
                {"owner": owner, "before": moment[0], "any": not favourites, "words": words, "most": most},
            ).fetchall()
            for row in rows:
                job = job_from_row(row)
                found.append((_moment(job.id), _item(job, row)))
        if kind in (None, UPLOADED):
            found += [
                (at, item)
                for item in self._uploaded(owner)
                if (at := _moment(item.made.id, item.made.created)) < moment  # type: ignore[union-attr]
                and (item.favourite or not favourites)
                and (words == "[]" or _holds(words, item.known and item.known.told, f"{item.made.id} {item.note}"))
            ]
        found.sort(key=lambda one: one[0], reverse=True)
        return [item for _, item in found[:most]]

    def item(self, id: str, owner: str) -> Item:
        """Return one of an owner's jobs or uploads; raises NotFound for any other."""
        made = self.upload(id, owner) if UPLOAD_ID.fullmatch(id) else self.service.job(id, owner)
        marks = self.rows.execute("SELECT * FROM marks WHERE owner = ? AND id = ?", (owner, made.id)).fetchone()
        known = self.rows.execute("SELECT * FROM known WHERE id = ?", (made.id,)).fetchone()
        item = Item(made, known=_known(known))
        return replace(item, favourite=bool(marks["favourite"]), note=marks["note"]) if marks else item

    def upload(self, id: str, owner: str) -> Upload:
        """Return an owner's upload; raises NotFound for any other."""
        path = self.service.upload_path(id, owner)
        return Upload(id, path, path.stat().st_mtime)

    def uploads(self, owner: str) -> list[Upload]:
        """List an owner's uploads, in no order."""
        folder = self.service.upload_folder(owner)
        try:
            entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(PARTIAL_PREFIX)]
        except FileNotFoundError:
            return []
        found = []
        for entry in entries:
            with suppress(FileNotFoundError):  # it was removed meanwhile
                id = f"file-{entry.name.partition('.')[0]}"
                found.append(Upload(id, folder / entry.name, entry.stat().st_mtime))
        return found

    def _uploaded(self, owner: str) -> list[Item]:
        uploads = {one.id: one for one in self.uploads(owner)}
        rows = self.rows.execute(
            "SELECT ids.value AS upload, favourite, note, known.* FROM json_each(?) AS ids "
            "LEFT JOIN marks ON marks.owner = ? AND marks.id = ids.value LEFT JOIN known ON known.id = ids.value",
            (json.dumps(list(uploads)), owner),
        )
        return [_item(uploads[row["upload"]], row) for row in rows]

    def mark(self, id: str, owner: str, favourite: bool | None = None, note: str | None = None) -> Item:
        """Star one of an owner's clips, or note something of it; None leaves what is there. Raises RequestError for a
        long note.
        """
        made = self.item(id, owner).made
        if note is not None and len(note) > LONGEST_NOTE:
            raise RequestError(f"a note must have at most {LONGEST_NOTE} letters; got {len(note)}; say less")
        self.rows.execute(
            "INSERT INTO marks (owner, id, favourite, note) VALUES (:owner, :id, coalesce(:star, 0), coalesce(:note, '"
            "')) ON CONFLICT (owner, id) DO UPDATE SET favourite = coalesce(:star, favourite), "
            "note = coalesce(:note, note)",
            {"owner": owner, "id": made.id, "star": favourite, "note": note},
        )
        return self.item(made.id, owner)

    def drop(self, id: str, owner: str) -> bool:
        """Remove one of an owner's clips, or stop it where it is being made; says whether it is gone.

        Raises RequestError for what a clip that waits or is being made is made from.
        """
        made = self.item(id, owner).made
        name = made.path.name if isinstance(made, Upload) else made.output.name
        if users := self.rows.execute(
            "SELECT count(*) FROM jobs WHERE owner = ? AND state IN ('queued', 'interrupted', 'running') AND id <> ? "
            "AND instr(request, ?)",
            (owner, made.id, f"/{name}"),
        ).fetchone()[0]:
            raise RequestError(f"a file that clips are made from must stay until they are; {users} wait for this one")
        if isinstance(made, Upload):
            made.path.unlink(missing_ok=True)
        elif not self.service.delete(made.id, owner):
            return False
        self.rows.execute("DELETE FROM marks WHERE owner = ? AND id = ?", (owner, made.id))
        if not isinstance(made, Upload):  # an upload may be another's as well
            for table in ("known", "contents"):
                self.rows.execute(f"DELETE FROM {table} WHERE id = ?", (made.id,))
            self.poster_of(made.id).unlink(missing_ok=True)
        return True

    def file_of(self, item: Item) -> Path:
        """Return where the file of a finished clip or an upload lies; raises RequestError for a clip without one."""
        made = item.made
        if isinstance(made, Upload):
            return made.path
        if made.state != DONE:
            raise RequestError(f"a clip must be completed for that; {made.id} is {made.state}")
        if not made.output.is_file():
            raise NotFound(f"a clip must have its file; that of {made.id} was removed by hand; make it again")
        return made.output

    def poster_of(self, id: str) -> Path:
        """Return where the first frame of a clip is kept, once it was looked at."""
        return self.posters / f"{id}.webp"

    def learn(self, item: Item) -> Item:
        """Return an item with what its file says, its poster kept; the file is read, in a child, where it was not yet
        or has changed.

        Raises RequestError and NotFound as `file_of`, MediaError for what cannot be read.
        """
        path, id = self.file_of(item), item.made.id
        stamp = path.stat().st_mtime_ns
        row = self.rows.execute("SELECT * FROM known WHERE id = ?", (id,)).fetchone()
        if row is None or row["stamp"] != stamp or not self.poster_of(id).is_file():
            try:
                found = run_sandboxed(glance, path, memory=MEMORY, seconds=SECONDS)
            except MediaError as error:
                raise MediaError(self.service.hide_paths(str(error))) from None
            _write_whole(self.poster_of(id), found["poster"])
            told = found["request"] if found["request"] and _request_in(found["request"]) else None
            values = {name: found[name] for name in READ} | {"id": id, "stamp": stamp, "told": told}
            self.rows.execute(
                'INSERT OR REPLACE INTO known (id, stamp, columns, "rows", frames, fps, seconds, told) '
                "VALUES (:id, :stamp, :columns, :rows, :frames, :fps, :seconds, :told)",
                values,
            )
            row = self.rows.execute("SELECT * FROM known WHERE id = ?", (id,)).fetchone()
        return replace(item, known=_known(row))

    def remembered(self, item: Item, name: str) -> Any:
        """Return what was noted of a file under a column's name, or None; the item was learned."""
        return self.rows.execute(f"SELECT {name} FROM known WHERE id = ?", (item.made.id,)).fetchone()[0]

    def remember(self, item: Item, **values: str) -> None:
        """Note more of a file that was learned."""
        for name, value in values.items():
            self.rows.execute(f"UPDATE known SET {name} = ? WHERE id = ?", (value, item.made.id))

    def contents_of(self, item: Item) -> str:
        """Return the SHA-256 of a file's contents, credentials aside; raises what `file_of` does, OSError where it
        cannot be read.
        """
        path = self.file_of(item)
        key = (item.made.id, path.stat().st_mtime_ns)
        row = self.rows.execute("SELECT hash FROM contents WHERE id = ? AND stamp = ?", key).fetchone()
        if row is None:
            row = {"hash": hash_of_contents(path)}
            self.rows.execute("INSERT OR REPLACE INTO contents VALUES (?, ?, ?)", (*key, row["hash"]))
        return row["hash"]

    def named(self, contents: str, owner: str) -> str | None:
        """Return the id of an owner's clip or upload that has such contents; None where there is none."""
        for item in [*self._uploaded(owner), *self.items(owner, kind=JOBS, most=EVERY)]:
            with suppress(ValueError, OSError):  # what is not finished, or cannot be read, is not what is sought
                if self.contents_of(item) == contents:
                    return item.made.id
        return None


def _item(made: Job | Upload, row: sqlite3.Row) -> Item:
    return Item(made, bool(row["favourite"]), row["note"] or "", _known(row))


def _known(row: sqlite3.Row | None) -> Known | None:
    if row is None or row["columns"] is None:
        return None
    return Known(row["columns"], row["rows"], row["frames"], row["fps"], row["seconds"], row["told"])


def _moment(id: str | None, created: float = 0.0) -> tuple[str, str]:
    """Return what clips are ordered by: when they were asked for, in hexadecimal nanoseconds, and their names."""
    if id is None:
        return ("g", "")  # behind every digit
    return (id, "") if not id.startswith("file-") else (f"{int(created * 1e9):016x}", id)


def _holds(words: str, told: str | None, more: str) -> bool:
    """Say whether a request in JSON, or what else is known of a clip, holds all words of a list in JSON."""
    found = {RENAMED.get(name, name): value for name, value in json.loads(told).items()} if told else {}
    moments = [one.get("prompt") for one in found.get("moments") or ()]
    texts = [found.get("prompt"), found.get("upsampled_prompt"), found.get("mode"), *moments, more]
    text = " ".join(filter(None, texts)).casefold()
    return all(word in text for word in json.loads(words))


def _write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears when it is whole."""
    with atomic_write(path, durable=False) as temporary:
        temporary.write_bytes(content)


def check_kind(kind: str | None) -> str | None:
    """Return a kind of clips to list; raises RequestError for what is none."""
    if kind and kind not in KINDS:
        raise RequestError(f"kind must be {' or '.join(KINDS)}; got {short_repr(kind)}")
    return kind or None
