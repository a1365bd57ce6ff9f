"""Where raw videos are: folders, globs, lists of files, and WebDataset tars."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import glob
from pathlib import Path

from training.prepare.manifest import PrepareError

FILMS = (".mp4", ".mkv", ".webm", ".mov", ".m4v", ".avi", ".gif")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
KINDS = (*FILMS, *PICTURES, ".tar")
ABSENT = (-1, -1)  # the stamp of what cannot be looked at
BLOCK = 1 << 20
MOST_WORDS = 1 << 16  # bytes of a .txt beside a film


@dataclass(frozen=True)
class Source:
    """A file, or the `member` of a tar. `name` is how it is called in the manifest, `path` absolute; `stamp`, size and
    time of change, tells whether it is still what it was. `words` are those of the .txt beside it.
    """

    name: str
    path: str
    stamp: tuple[int, int]
    member: str | None = None
    words: str | None = None

    @property
    def key(self) -> str:
        """What no other source has: where it is."""
        return self.path if self.member is None else f"{self.path}::{self.member}"

    @property
    def still(self) -> bool:
        """Say whether it is a picture."""
        return self.name.lower().endswith(PICTURES)


def sources(given: str, follow: bool = False) -> list[Source]:
    """List what a folder, a glob, a .txt with a file on each line, or a tar holds, in order.

    Symbolic links that lead out of their folder are left out, unless `follow`. What cannot be looked at is listed as
    well: reading it will say why. Raises PrepareError where nothing is found.
    """
    path = Path(given)
    if path.is_dir():
        found = list(_in_folder(path, follow))
    elif path.suffix == ".txt" and path.is_file():
        listed = (Path(line.strip()) for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
        found = [_file(one if one.is_absolute() else path.parent / one, str(one), follow) for one in listed]
    elif path.is_file():
        found = list(_at(path, path.name, follow))
    else:
        matches = (Path(name) for name in sorted(glob(given, recursive=True)) if name.lower().endswith(KINDS))
        found = [one for match in matches if not match.is_dir() for one in _at(match, str(match), follow)]
    if not found:
        kinds = ", ".join(kind[1:] for kind in (*FILMS, *PICTURES))
        raise PrepareError(f"a source must be a folder, a glob, a .txt list or a .tar of {kinds}; got {given}")
    return found


def _in_folder(folder: Path, follow: bool) -> Iterator[Source]:
    top, seen, closed = folder.resolve(), set(), []
    for place, folders, names in os.walk(folder, followlinks=follow, onerror=closed.append):
        real = os.path.realpath(place)
        if real in seen:  # links can lead in a circle
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for name in sorted(names):
            path = Path(place) / name
            if name.lower().endswith(KINDS):
                yield from _at(path, str(path.relative_to(folder)), follow, top)
    for error in closed:
        yield Source(os.path.relpath(error.filename, folder), os.path.abspath(error.filename), ABSENT)


def _at(path: Path, name: str, follow: bool, top: Path | None = None) -> Iterator[Source]:
    """List a file, or what a tar holds, unless it is a link out of `top`, by default its own folder."""
    if follow or _within(path, top or path.parent):
        yield from (_in_tar if path.suffix == ".tar" else _one)(path, name, follow, top)


def _within(path: Path, top: Path) -> bool:
    try:
        return path.resolve().is_relative_to(top.resolve())
    except (OSError, RuntimeError):  # a link to itself
        return False


def _one(path: Path, name: str, follow: bool, top: Path | None) -> Iterator[Source]:
    yield _file(path, name, follow, top)


def _file(path: Path, name: str, follow: bool, top: Path | None = None) -> Source:
    beside, words = path.with_suffix(".txt"), None
    try:
        status = path.stat()
        if beside.is_file() and beside.stat().st_size <= MOST_WORDS and (follow or _within(beside, top or path.parent)):
            words = _words(beside.read_bytes())
    except OSError:
        return Source(name, os.path.abspath(path), ABSENT)
    return Source(name, os.path.abspath(path), (status.st_size, status.st_mtime_ns), words=words)


def _words(written: bytes) -> str | None:
    return written.decode("utf-8", errors="replace").strip() or None


def _in_tar(path: Path, name: str, follow: bool, top: Path | None) -> Iterator[Source]:
    try:
        changed = path.stat().st_mtime_ns
        with tarfile.open(path) as tar:
            files = {member.name: member for member in tar if member.isfile()}
            for inner, member in files.items():
                if inner.lower().endswith((*FILMS, *PICTURES)):
                    beside = files.get(inner.rsplit(".", 1)[0] + ".txt")
                    written = tar.extractfile(beside) if beside and beside.size <= MOST_WORDS else None
                    words = _words(written.read()) if written else None
                    yield Source(f"{name}/{inner}", os.path.abspath(path), (member.size, changed), inner, words)
    except (tarfile.TarError, OSError, EOFError):
        yield _file(path, name, follow, top)


@contextmanager
def at_hand(source: Source, passing: Path) -> Iterator[Path]:
    """Have a source as a file: itself, or a member of a tar as a copy in a folder for what passes."""
    if source.member is None:
        yield Path(source.path)
        return
    passing.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=passing) as folder:
        copy = Path(folder) / f"member{Path(source.member).suffix.lower()}"
        with tarfile.open(source.path) as tar, open(copy, "wb") as out:
            member = tar.extractfile(source.member)
            assert member is not None, "only files are listed"
            shutil.copyfileobj(member, out, BLOCK)
        yield copy


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
