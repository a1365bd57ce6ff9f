"""Captions that came with films: in a file beside each (.txt, .caption, .json), or in a table of their folder.

A film `name.cam1.mp4` takes the first of `name.cam1.mp4.txt`, `name.cam1.txt`, `name.txt` that exists, as WebDataset
does by the name before the first dot. Tables are `metadata.csv`, `.tsv` and `.jsonl`, as trainers and data sets of
Hugging Face have them: a column with the file's name and one with its caption. A table of a folder above counts too.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from captioning.text_files import TextError, decode_text

TEXT_SUFFIXES = (".txt", ".caption", ".json")  # in this order
TABLES = ("metadata.csv", "metadata.tsv", "metadata.jsonl")
CAPTION_KEYS = ("caption", "text", "prompt", "captions", "texts", "prompts")  # in this order
FILE_KEYS = ("file_name", "file_path", "filename", "file", "video", "video_path", "image", "path")
MAX_SIDECAR_BYTES = 1 << 16
MAX_TABLE_BYTES = 1 << 30
MAX_NAMED = 5  # files that one sentence names
PART = re.compile(r"[A-Za-z][\w-]*")  # of a name, between dots: one that tells a camera or a version


@dataclass
class Siblings:
    """The files of one folder, or of one folder within a tar, by name: their sizes and how they are read.

    `used` collects the sidecars and tables that some film took, `errors` what cannot be read, by file.
    """

    sizes: Mapping[str, int]
    read: Callable[[str], bytes]
    encoding: str = ""
    used: set[str] = field(default_factory=set)
    errors: dict[str, str] = field(default_factory=dict)
    _tables: dict[str, dict[str, list[str]]] | None = None

    def __post_init__(self) -> None:
        self.names = {name.lower(): name for name in sorted(self.sizes, reverse=True)}

    def captions_of(self, name: str) -> list[str]:
        """Return the captions of a film, from its own file or else from the folder's table."""
        for sidecar in self.sidecars_of(name):
            self.used.add(sidecar)
            return self._read_sidecar(sidecar)
        return self.from_tables(name)

    def sidecars_of(self, name: str) -> Iterator[str]:
        """List the files that may hold the captions of a film, the longest match first."""
        parts = name.split(".")
        for kept in range(len(parts), 0, -1):
            stem, left = ".".join(parts[:kept]), parts[kept:-1]
            for suffix in TEXT_SUFFIXES:
                sidecar = self.names.get(f"{stem}{suffix}".lower())
                if sidecar and (all(map(PART.fullmatch, left)) or not self._has_film(stem, name)):
                    yield sidecar

    def _has_film(self, stem: str, name: str) -> bool:
        """Return whether another file than `name` has a stem of its own, such as `Track 2` beside `Track 2.0`."""
        others = (other for other in self.sizes if other != name and not other.lower().endswith(TEXT_SUFFIXES))
        return any(other.rsplit(".", 1)[0].lower() == stem.lower() for other in others)

    def from_tables(self, path: str) -> list[str]:
        """Return the captions that the folder's tables give a file, by its path below the folder."""
        if self._tables is None:
            self._tables = {name: self._read_table(name) for low, name in self.names.items() if low in TABLES}
        key = _table_key(path)
        for name, rows in self._tables.items():
            if key in rows:
                self.used.add(name)
                return rows[key]
        return []

    def has_read(self, name: str) -> bool:
        """Return whether a file gave some film its captions, or cannot be read."""
        return name in self.used or name in self.errors

    def missing(self, exists: Callable[[str], bool]) -> None:
        """Record as errors the files that tables name and that do not exist."""
        for name, rows in (self._tables or {}).items():
            lost = [file for file in rows if not exists(file)]
            if lost:
                named = ", ".join(lost[:MAX_NAMED]) + (" and others" if len(lost) > MAX_NAMED else "")
                self.errors[name] = f"{name} names {len(lost)} files that are not there: {named}; correct its rows"

    def _read_sidecar(self, name: str) -> list[str]:
        try:
            if self.sizes[name] > MAX_SIDECAR_BYTES:
                limit = f"a caption must be at most {MAX_SIDECAR_BYTES} bytes"
                raise TextError(f"{limit}; {name} has {self.sizes[name]}; shorten it")
            text = decode_text(self.read(name), name, self.encoding)
            if not name.lower().endswith(".json"):
                return _texts(text)
            return next(_captions_in(json.loads(text)), [])
        except (TextError, OSError) as error:
            self.errors[name] = str(error)
        except ValueError as error:
            self.errors[name] = f"{name} must be JSON; {error}; correct it"
        return []

    def _read_table(self, name: str) -> dict[str, list[str]]:
        try:
            if self.sizes[name] > MAX_TABLE_BYTES:
                raise TextError(f"a table must be at most {MAX_TABLE_BYTES} bytes; {name} has {self.sizes[name]}")
            text = decode_text(self.read(name), name, self.encoding)
            lines = _json_rows(text, name) if name.lower().endswith(".jsonl") else _csv_rows(text, name)
            found: dict[str, list[str]] = {}
            for row in lines:
                file = next((row[key] for key in FILE_KEYS if row.get(key)), None)
                captions = next(_captions_in(row), [])
                if isinstance(file, str) and captions:
                    found.setdefault(_table_key(file), []).extend(captions)
            if not found:
                keys = f"{FILE_KEYS[0]} and {CAPTION_KEYS[1]}"
                raise TextError(f"{name} must have columns such as {keys}, and rows with both; it has none; correct it")
            return found
        except (TextError, OSError) as error:
            self.errors[name] = str(error)
        return {}


@dataclass
class FolderSidecars:
    """The siblings of every folder on the disk that was asked for, each read once.

    `encoding` is that of files that are neither UTF-8 nor UTF-16. Links that lead out of the source are not read unless
    `follow`.
    """

    encoding: str = ""
    follow: bool = False
    _folders: dict[Path, Siblings] = field(default_factory=dict)

    def captions_of(self, path: Path, top: Path) -> tuple[str, ...]:
        """Return the captions of a film: its own, or those of a table of its folder or of one above, up to `top`."""
        own = self.siblings(path.parent, top).captions_of(path.name)
        folder = path.parent
        while not own and folder != top and folder.resolve() != top.resolve() and folder != folder.parent:
            folder = folder.parent
            if not folder.resolve().is_relative_to(top.resolve()):
                break
            own = self.siblings(folder, top).from_tables(path.relative_to(folder).as_posix())
        return tuple(own)

    def siblings(self, folder: Path, top: Path) -> Siblings:
        """Return the files of a folder."""
        if folder not in self._folders:
            sizes = {}
            for path in folder.iterdir():
                name = path.name.lower()
                if name.endswith(TEXT_SUFFIXES) or name in TABLES:
                    if path.is_file() and (self.follow or path.resolve().is_relative_to(top.resolve())):
                        sizes[path.name] = path.stat().st_size
                else:
                    sizes[path.name] = 0
            self._folders[folder] = Siblings(sizes, lambda name: (folder / name).read_bytes(), self.encoding)
        return self._folders[folder]

    def is_used(self, path: Path) -> bool:
        """Return whether a file gave some film its captions, or cannot be read."""
        siblings = self._folders.get(path.parent)
        return siblings is not None and siblings.has_read(path.name)

    def errors(self) -> dict[str, str]:
        """Return what cannot be read, and the rows of tables whose files do not exist, by file."""
        found = {}
        for folder, siblings in self._folders.items():
            siblings.missing(lambda file, folder=folder: (folder / file).exists())
            found |= {str(folder / name): error for name, error in siblings.errors.items()}
        return found


def _csv_rows(text: str, name: str) -> Iterator[dict[str, Any]]:
    """List the rows of a table with a head, between commas, semicolons or tabs."""
    head = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=head.count)
    try:
        rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        for row in rows:
            yield {str(key).strip().lower(): value for key, value in row.items() if key}
    except csv.Error as error:
        raise TextError(f"{name} must be a table of CSV; {error}; correct it") from error


def _json_rows(text: str, name: str) -> Iterator[dict[str, Any]]:
    """List the objects of JSON lines."""
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise TextError(f"{name} must have one JSON object per line; line {number}: {error}") from error
            if isinstance(row, dict):
                yield {str(key).lower(): value for key, value in row.items()}


def _captions_in(about: Any) -> Iterator[list[str]]:
    """Yield the captions under each known key of a JSON object."""
    if isinstance(about, dict):
        lower = {str(key).lower(): value for key, value in about.items()}
        for key in CAPTION_KEYS:
            given = lower.get(key)
            texts = [text for one in (given if isinstance(given, list) else [given]) for text in _texts(one)]
            if texts:
                yield texts


def _texts(given: Any) -> list[str]:
    """Return a caption without spaces around it; nothing for an empty one, or one that is no text."""
    return [given.strip()] if isinstance(given, str) and given.strip() else []


def _table_key(path: str) -> str:
    """Return the path of a file as a table names it, with any slashes."""
    return str(PurePosixPath(path.strip().replace("\\", "/")))
