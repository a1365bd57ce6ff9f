"""The gallery: an owner's clips and uploads in one list, newest first, with favourites, notes and a search.

Jobs are rows of the queue and uploads are files. `shelf.sqlite` in the queue's folder stores what users add (favourite,
note) and caches what was probed in a file: its size and duration, the request in its metadata, its credentials. A file
that has changed since is probed again.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from app.home import make_private_file, make_private_folder
from app.queue.database import BUSY_SECONDS
from app.queue.jobs import DONE, Job, job_from_row
from app.queue.line import places_in_line
from app.server.parsing import short_repr
from app.server.service import UPLOAD_ID, NotFound, Service
from app.server.uploads import PARTIAL_PREFIX
from app.studio.probe import MEMORY_BYTES, TIMEOUT_SECONDS, probe_file
from dit.request import RENAMED, Request, RequestError
from vae.files import atomic_write
from vae.video.credentials import hash_of_contents
from vae.video.pixels import MediaError
from vae.video.sandbox import run_sandboxed

DATABASE = "shelf.sqlite"
POSTERS = "posters"  # a subfolder of the queue's folder, with the first frames
MAX_NOTE_CHARS = 2000
MAX_SEARCH_WORDS = 12
SETTLING_SECONDS = 2.0  # for which a folder may change again without another time of change
SEARCHED_CLIPS = 20_000  # whose texts are kept for the next search
NO_LIMIT = 10**9  # more clips than any owner has
JOB, UPLOAD = KINDS = ("job", "upload")

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
MEDIA_COLUMNS = ("columns", "rows", "frames", "fps", "seconds")  # columns of known that describe the media


# A quick test that leaves few rows for `has_words`. In ASCII alone, lower case is what a search compares.
SEARCHED = "(coalesce(told, request) || jobs.id || coalesce(note, ''))"
PERHAPS_HAS_WORD = f"(instr(lower({SEARCHED}), :word) OR length({SEARCHED}) <> length(CAST({SEARCHED} AS BLOB)))"


@dataclass(frozen=True)
class Upload:
    """A file that an owner sent; `created` is in seconds since 1970."""

    id: str
    path: Path
    created: float


@dataclass(frozen=True)
class ClipInfo:
    """What was probed in a file: its size, frames, fps and seconds (None for an image), and its request as JSON."""

    columns: int
    rows: int
    frames: int
    fps: float | None
    seconds: float | None
    request_json: str | None = None

    @property
    def request(self) -> Request | None:
        """The request in the file's metadata; None where there is no valid one."""
        return _parse_request(self.request_json) if self.request_json else None


@dataclass(frozen=True)
class GalleryItem:
    """A job or an upload, with the owner's favourite mark and note, and what was probed in its file."""

    source: Job | Upload
    favourite: bool = False
    note: str = ""
    info: ClipInfo | None = None


@lru_cache(maxsize=4096)
def _parse_request(text: str) -> Request | None:
    try:
        return Request.from_json(text)
    except RequestError:
        return None


class Gallery:
    """All clips and uploads of a service; each method sees those of one owner."""

    def __init__(self, service: Service):
        self.service, self.folder, self.local = service, service.queue.folder, threading.local()
        self.posters = self.folder / POSTERS
        self.listed_uploads: dict[Path, tuple[int, list[Upload]]] = {}  # of each folder, at its time of change
        make_private_folder(self.posters)
        make_private_file(self.folder / DATABASE)
        self.connection.executescript(TABLES)

    @property
    def connection(self) -> sqlite3.Connection:
        """This thread's connection; the queue's tables are attached read-only."""
        if not hasattr(self.local, "connection"):
            connection = sqlite3.connect(
                (self.folder / DATABASE).as_uri(), timeout=BUSY_SECONDS, isolation_level=None, uri=True
            )
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("ATTACH ? AS line", ((self.folder / "jobs.sqlite").as_uri() + "?mode=ro",))
            connection.create_function("has_words", 3, _has_words, deterministic=True)
            self.local.connection = connection
        return self.local.connection

    def list_items(
        self,
        owner: str,
        search: str = "",
        favourites: bool = False,
        kind: str | None = None,
        after: str | None = None,
        limit: int = 50,
    ) -> list[GalleryItem]:
        """List an owner's jobs and uploads, newest first: at most `limit`, from those older than the id `after`.

        A search keeps the items that contain all its words in their prompts, note, mode or id. Raises NotFound where
        `after` is an upload that the owner does not have.
        """
        words = json.dumps(search.casefold().split()[:MAX_SEARCH_WORDS])
        before = _sort_key(after, self.upload(after, owner).created if after and UPLOAD_ID.fullmatch(after) else 0.0)
        found: list[tuple[tuple[str, str], GalleryItem]] = []
        if kind in (None, JOB):
            # The favourites are few, so they are looked up among the jobs, and not the reverse.
            joined = "marks CROSS JOIN jobs" if favourites else "jobs LEFT JOIN marks"
            rows = self.connection.execute(
                f"SELECT jobs.*, favourite, note, known.* FROM {joined} "
                "ON marks.owner = jobs.owner AND marks.id = jobs.id "
                "LEFT JOIN known ON known.id = jobs.id "
                "WHERE jobs.owner = :owner AND jobs.id < :before "
                f"{'AND marks.owner = :owner AND marks.id < :before AND favourite = 1 ' if favourites else ''}"
                f"AND (:words = '[]' OR {PERHAPS_HAS_WORD} "
                "AND has_words(:words, coalesce(told, request), jobs.id || ' ' || coalesce(note, ''))) "
                f"ORDER BY {'marks' if favourites else 'jobs'}.id DESC LIMIT :limit",
                {"owner": owner, "before": before[0], "words": words, "word": _longest_ascii(words), "limit": limit},
            ).fetchall()
            places = places_in_line(self.connection, rows)
            for row in rows:
                job = job_from_row(row, self.folder, places.get(row["id"]))
                found.append((_sort_key(job.id), _item_from_row(job, row)))
        if kind in (None, UPLOAD):
            uploads = [one for one in self.uploads(owner) if _sort_key(one.id, one.created) < before]
            if favourites:
                rows = self.connection.execute("SELECT id FROM marks WHERE owner = ? AND favourite = 1", (owner,))
                marked = {row["id"] for row in rows}
                uploads = [one for one in uploads if one.id in marked]
            if words == "[]":
                del uploads[limit:]
            for upload, item in self._uploaded_items(owner, uploads):
                key, text = _sort_key(upload.id, upload.created), item.info and item.info.request_json
                if words == "[]" or _has_words(words, text, f"{upload.id} {item.note}"):
                    found.append((key, item))
        found.sort(key=lambda one: one[0], reverse=True)
        return [item for _, item in found[:limit]]

    def item(self, id: str, owner: str) -> GalleryItem:
        """Return one of an owner's jobs or uploads; raises NotFound for any other id."""
        source = self.upload(id, owner) if UPLOAD_ID.fullmatch(id) else self.service.job(id, owner)
        execute = self.connection.execute
        marks = execute("SELECT * FROM marks WHERE owner = ? AND id = ?", (owner, source.id)).fetchone()
        item = GalleryItem(source, info=self._cached_info(source.id))
        return replace(item, favourite=bool(marks["favourite"]), note=marks["note"]) if marks else item

    def upload(self, id: str, owner: str) -> Upload:
        """Return an owner's upload; raises NotFound for any other id."""
        path = self.service.upload_path(id, owner)
        return Upload(id, path, path.stat().st_mtime)

    def uploads(self, owner: str) -> list[Upload]:
        """List an owner's uploads, the latest first; files are looked at again only where their folder has changed."""
        folder = self.service.upload_folder(owner)
        try:
            stamp = folder.stat().st_mtime_ns
        except FileNotFoundError:
            return []
        known_stamp, found = self.listed_uploads.get(folder, (0, []))
        if stamp != known_stamp:
            found = sorted(_scan_uploads(folder), key=lambda one: _sort_key(one.id, one.created), reverse=True)
            settled = time.time_ns() - stamp > SETTLING_SECONDS * 1e9  # a later change has another time
            self.listed_uploads[folder] = stamp if settled else 0, found
        return list(found)

    def _uploaded_items(self, owner: str, listed: list[Upload]) -> list[tuple[Upload, GalleryItem]]:
        uploads = {upload.id: upload for upload in listed}
        rows = self.connection.execute(
            "SELECT ids.value AS upload, favourite, note, known.* FROM json_each(?) AS ids "
            "LEFT JOIN marks ON marks.owner = ? AND marks.id = ids.value LEFT JOIN known ON known.id = ids.value",
            (json.dumps(list(uploads)), owner),
        )
        return [(uploads[row["upload"]], _item_from_row(uploads[row["upload"]], row)) for row in rows]

    def mark(self, id: str, owner: str, favourite: bool | None = None, note: str | None = None) -> GalleryItem:
        """Set the favourite mark or note of an owner's item; None leaves it. Raises RequestError for a long note."""
        source = self.item(id, owner).source
        if note is not None and len(note) > MAX_NOTE_CHARS:
            raise RequestError(f"a note must have at most {MAX_NOTE_CHARS} characters; got {len(note)}; shorten it")
        self.connection.execute(
            "INSERT INTO marks (owner, id, favourite, note) VALUES (:owner, :id, coalesce(:star, 0), coalesce(:note, '"
            "')) ON CONFLICT (owner, id) DO UPDATE SET favourite = coalesce(:star, favourite), "
            "note = coalesce(:note, note)",
            {"owner": owner, "id": source.id, "star": favourite, "note": note},
        )
        return self.item(source.id, owner)

    def remove(self, id: str, owner: str) -> bool:
        """Remove one of an owner's items and return True; cancel it and return False where it is being generated.

        Raises RequestError for an input of a job that is not finished.
        """
        source = self.item(id, owner).source
        if isinstance(source, Upload):
            self.service.delete_upload(source.id, owner)
        elif not self.service.delete(source.id, owner):
            return False
        self.connection.execute("DELETE FROM marks WHERE owner = ? AND id = ?", (owner, source.id))
        if not isinstance(source, Upload):  # another owner may have the same upload
            for table in ("known", "contents"):
                self.connection.execute(f"DELETE FROM {table} WHERE id = ?", (source.id,))
            self.poster_path(source.id).unlink(missing_ok=True)
        return True

    def file_path(self, item: GalleryItem) -> Path:
        """Return the file of an upload or a completed clip; raises RequestError for a clip that is not completed."""
        source = item.source
        if isinstance(source, Upload):
            return source.path
        if source.state != DONE:
            raise RequestError(f"a clip must be completed for that; {source.id} is {source.state}")
        if not source.output.is_file():
            raise NotFound(f"a clip must have its file; that of {source.id} was removed by hand; make it again")
        return source.output

    def poster_path(self, id: str) -> Path:
        """Return the path of an item's poster; it exists once the item was probed."""
        return self.posters / f"{id}.webp"

    def probe(self, item: GalleryItem) -> GalleryItem:
        """Return an item with its media info, and write its poster.

        The file is read, in a child process, only where it was not probed yet or has changed. Raises RequestError and
        NotFound as `file_path` does, MediaError for an unreadable file.
        """
        path, id = self.file_path(item), item.source.id
        stamp = path.stat().st_mtime_ns
        row = self.connection.execute("SELECT stamp FROM known WHERE id = ?", (id,)).fetchone()
        if row is None or row["stamp"] != stamp or not self.poster_path(id).is_file():
            try:
                found = run_sandboxed(probe_file, path, memory=MEMORY_BYTES, seconds=TIMEOUT_SECONDS)
            except MediaError as error:
                raise MediaError(self.service.hide_paths(str(error))) from None
            with atomic_write(self.poster_path(id), durable=False) as temporary:
                temporary.chmod(0o600)
                temporary.write_bytes(found["poster"])
            text = found["request"] if found["request"] and _parse_request(found["request"]) else None
            self.connection.execute(
                'INSERT OR REPLACE INTO known (id, stamp, columns, "rows", frames, fps, seconds, told) '
                "VALUES (:id, :stamp, :columns, :rows, :frames, :fps, :seconds, :request)",
                {name: found[name] for name in MEDIA_COLUMNS} | {"id": id, "stamp": stamp, "request": text},
            )
        return replace(item, info=self._cached_info(id))

    def _cached_info(self, id: str) -> ClipInfo | None:
        return _info_from_row(self.connection.execute("SELECT * FROM known WHERE id = ?", (id,)).fetchone())

    def cached(self, item: GalleryItem, column: str) -> Any:
        """Return a cached value of a file that was probed, or None."""
        return self.connection.execute(f"SELECT {column} FROM known WHERE id = ?", (item.source.id,)).fetchone()[0]

    def cache(self, item: GalleryItem, **values: str) -> None:
        """Cache values of a file that was probed, by the names of columns."""
        for column, value in values.items():
            self.connection.execute(f"UPDATE known SET {column} = ? WHERE id = ?", (value, item.source.id))

    def content_hash(self, item: GalleryItem) -> str:
        """Return the SHA-256 of a file's contents without its credentials.

        Raises what `file_path` raises, and OSError for an unreadable file.
        """
        path = self.file_path(item)
        key = (item.source.id, path.stat().st_mtime_ns)
        row = self.connection.execute("SELECT hash FROM contents WHERE id = ? AND stamp = ?", key).fetchone()
        if row is not None:
            return row["hash"]
        content_hash = hash_of_contents(path)
        self.connection.execute("INSERT OR REPLACE INTO contents VALUES (?, ?, ?)", (*key, content_hash))
        return content_hash

    def find_by_hash(self, content_hash: str, owner: str) -> str | None:
        """Return the id of an owner's clip or upload with these contents, or None."""
        uploads = [item for _, item in self._uploaded_items(owner, self.uploads(owner))]
        for item in [*uploads, *self.list_items(owner, kind=JOB, limit=NO_LIMIT)]:
            with suppress(ValueError, OSError):  # clips that are not done, and unreadable files
                if self.content_hash(item) == content_hash:
                    return item.source.id
        return None


def _scan_uploads(folder: Path) -> Iterator[Upload]:
    for entry in os.scandir(folder):
        if not entry.name.startswith(PARTIAL_PREFIX):
            with suppress(FileNotFoundError):  # it was removed meanwhile
                yield Upload(f"file-{entry.name.partition('.')[0]}", folder / entry.name, entry.stat().st_mtime)


def _item_from_row(source: Job | Upload, row: sqlite3.Row) -> GalleryItem:
    return GalleryItem(source, bool(row["favourite"]), row["note"] or "", _info_from_row(row))


def _info_from_row(row: sqlite3.Row | None) -> ClipInfo | None:
    if row is None or row["columns"] is None:
        return None
    return ClipInfo(row["columns"], row["rows"], row["frames"], row["fps"], row["seconds"], row["told"])


def _sort_key(id: str | None, created: float = 0.0) -> tuple[str, str]:
    """Return the creation time in hexadecimal nanoseconds, with which a job's id begins, and an upload's id."""
    if id is None:
        return ("g", "")  # sorts after every hexadecimal digit
    return (id, "") if not id.startswith("file-") else (f"{int(created * 1e9):016x}", id)


def _has_words(words: str, request_json: str | None, more: str) -> bool:
    """Return whether a request or `more` contains all words; `words` is a JSON list."""
    return all(word in _searched_text(request_json, more) for word in _listed(words))


def _longest_ascii(words: str) -> str:
    """Return the longest word of letters and digits of ASCII, which JSON writes as they are; "" where there is none."""
    return max((word for word in _listed(words) if word.isascii() and word.isalnum()), key=len, default="")


@lru_cache(maxsize=64)
def _listed(words: str) -> tuple[str, ...]:
    return tuple(json.loads(words))


@lru_cache(maxsize=SEARCHED_CLIPS)
def _searched_text(request_json: str | None, more: str) -> str:
    """Return all words of a request and `more`, for a search; those of a request that cannot be read are left out."""
    fields: dict[str, Any] = {}
    with suppress(ValueError, AttributeError):
        fields = {RENAMED.get(str(name), str(name)): value for name, value in json.loads(request_json or "{}").items()}
    moments = fields.get("moments")
    prompts = [one.get("prompt") for one in moments or () if isinstance(one, dict)] if isinstance(moments, list) else []
    texts: list[Any] = [fields.get("prompt"), fields.get("upsampled_prompt"), fields.get("mode"), *prompts, more]
    return " ".join(text for text in texts if isinstance(text, str)).casefold()


def check_kind(kind: str | None) -> str | None:
    """Return the kind of items to list; raises RequestError for an unknown one."""
    if kind and kind not in KINDS:
        raise RequestError(f"kind must be {' or '.join(KINDS)}; got {short_repr(kind)}")
    return kind or None
