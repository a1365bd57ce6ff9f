"""Where raw videos are: folders, globs, lists of files, and WebDataset tars."""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import glob
from itertools import takewhile
from pathlib import Path

from training.prepare.manifest import PrepareError
from vae.video.pixels import MediaError
from vae.video.read import check_readable

FILMS = (".mp4", ".mkv", ".webm", ".mov", ".m4v", ".avi", ".gif")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
KINDS = (*FILMS, *PICTURES, ".tar")
ABSENT = (-1, -1)  # the stamp of what cannot be looked at
BLOCK = 1 << 20
MOST_WORDS = 1 << 16  # bytes of a .txt beside a film
BROKEN = (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error)  # what reading a damaged tar raises


@dataclass(frozen=True)
class Source:
    """A file, or the `member` of a tar. `name` is how it is called in the manifest, `path` absolute; `stamp`, size and
    time of change, tells whether it is still what it was. `words` are those of the .txt beside it. It is `away` where
    it is a link that is not followed.
    """

    name: str
    path: str
    stamp: tuple[int, int]
    member: str | None = None
    words: str | None = None
    away: bool = False

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

    Symbolic links that lead out of the folder, or of where a glob begins, are left out, unless `follow`. What a list
    names and what cannot be looked at is listed in any case: reading it will say why. Raises PrepareError where nothing
    is found.
    """
    path = Path(given)
    if path.is_dir():
        found = list(_in_folder(path, follow))
    elif path.suffix == ".txt" and path.is_file():
        listed = (Path(line.strip()) for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
        found = [source for one in listed for source in _listed(one, path.parent, follow)]
    elif path.is_file():
        found = list(_at(path, path.name, follow))
    else:
        matches = (Path(name) for name in sorted(glob(given, recursive=True)) if name.lower().endswith(KINDS))
        top = Path(*takewhile(lambda part: not set(part) & set("*?["), Path(given).parent.parts))
        found = [one for match in matches if not match.is_dir() for one in _at(match, str(match), follow, top)]
    if not found:
        kinds = ", ".join(kind[1:] for kind in (*FILMS, *PICTURES))
        raise PrepareError(f"a source must be a folder, a glob, a .txt list or a .tar of {kinds}; got {given}")
    return found


def _listed(named: Path, folder: Path, follow: bool) -> Iterator[Source]:
    """List what a list in a folder names: within that folder links may lead within it, elsewhere beside themselves."""
    path = Path(os.path.abspath(folder / named))
    top = folder if path.is_relative_to(os.path.abspath(folder)) else path.parent
    if follow or _within(path, top):
        yield from _at(path, str(named), follow, top)
    else:
        yield Source(str(named), str(path), ABSENT, away=True)


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
        yield from (_in_tar if path.suffix.lower() == ".tar" else _one)(path, name, follow, top)


def _within(path: Path, top: Path) -> bool:
    try:
        return path.resolve().is_relative_to(top.resolve())
    except (OSError, RuntimeError):  # a link to itself
        return False


def _one(path: Path, name: str, follow: bool, top: Path | None) -> Iterator[Source]:
    yield _file(path, name, follow, top)


def _file(path: Path, name: str, follow: bool, top: Path | None = None) -> Source:
    beside, words, stamp = path.with_suffix(".txt"), None, _stamp(path)
    try:
        if (
            stamp != ABSENT
            and beside.is_file()
            and beside.stat().st_size <= MOST_WORDS
            and (follow or _within(beside, top or path.parent))
        ):
            words = _words(beside.read_bytes())
    except OSError:
        pass
    return Source(name, os.path.abspath(path), stamp, words=words)


def _words(written: bytes) -> str | None:
    return written.decode("utf-8", errors="replace").strip() or None


def _in_tar(path: Path, name: str, follow: bool, top: Path | None) -> Iterator[Source]:
    """List the files in a tar; of one that is cut short or damaged, those before, and the tar itself."""
    trouble = "it is no file"
    try:
        changed = path.stat().st_mtime_ns
        if path.is_file():
            with tarfile.open(path) as tar:
                members, trouble = _whole(tar)
                files = {member.name: member for member in members if member.isfile()}
                for inner, member in files.items():
                    if inner.lower().endswith((*FILMS, *PICTURES)):
                        beside = files.get(inner.rsplit(".", 1)[0] + ".txt")
                        written = tar.extractfile(beside) if beside and beside.size <= MOST_WORDS else None
                        words = _words(written.read()) if written else None
                        yield Source(f"{name}/{inner}", os.path.abspath(path), (member.size, changed), inner, words)
    except (*BROKEN, OSError) as error:
        trouble = str(error)
    if trouble:
        yield _file(path, name, follow, top)


def _whole(tar: tarfile.TarFile) -> tuple[list[tarfile.TarInfo], str]:
    """Return the members of a tar that are there whole, and what is the matter behind them, if anything."""
    members, trouble = [], ""
    try:
        for member in tar:
            members.append(member)
        if _bytes_at(tar, tar.offset, tarfile.BLOCKSIZE).strip(b"\0"):
            trouble = f"what is at byte {tar.offset} is no file"
    except (*BROKEN, OSError) as error:
        trouble = str(error)
        try:
            last = members[-1].offset_data + members[-1].size if members else 0
            if last and not _bytes_at(tar, last - 1, 1):
                members.pop()
        except (*BROKEN, OSError):
            members.pop()
    return members, trouble


def _bytes_at(tar: tarfile.TarFile, place: int, count: int) -> bytes:
    assert tar.fileobj is not None, "it is open"
    tar.fileobj.seek(place)
    return tar.fileobj.read(count)


@contextmanager
def unchanged(source: Source) -> Iterator[None]:
    """See to it that a source stays what it is while it is read. Raises MediaError where it is not there, is a link
    that is not followed, or changes.
    """
    if source.away:
        rule = "links that lead out of a list's folder are not followed unless asked"
        raise MediaError(f"{rule}; got {source.name}; give --follow")
    before = _stamp(check_readable(source.path))
    changed = f"{source.name} changed while it was read; run again when it is whole"
    try:
        yield
    except Exception as error:
        if _stamp(Path(source.path)) != before:
            raise MediaError(changed) from error
        raise
    if _stamp(Path(source.path)) != before:
        raise MediaError(changed)


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return ABSENT
    return status.st_size, status.st_mtime_ns


@contextmanager
def at_hand(source: Source, passing: Path) -> Iterator[Path]:
    """Have a source as a file: itself, or a member of a tar as a copy in a folder for what passes.

    Raises MediaError for a tar itself, which is no source unless it is damaged, and for a member that is gone.
    """
    if source.member is None:
        if source.path.lower().endswith(".tar"):
            raise MediaError(f"{source.name} must be a whole tar; {_trouble(source)}; copy or download it again")
        yield Path(source.path)
        return
    passing.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=passing) as folder:
        copy = Path(folder) / f"member{Path(source.member).suffix.lower()}"
        _copy_member(source, source.member, copy)
        yield copy


def _trouble(source: Source) -> str:
    """Say what is the matter with a tar."""
    try:
        with tarfile.open(source.path) as tar:
            return _whole(tar)[1] or "it changed meanwhile"
    except BROKEN as error:
        return str(error).splitlines()[0].rstrip(":")


def _copy_member(source: Source, inner: str, copy: Path) -> None:
    try:
        with tarfile.open(source.path) as tar, open(copy, "wb") as out:
            found = {one.name: one for one in _whole(tar)[0] if one.isfile()}
            member = tar.extractfile(found[inner])
            assert member is not None, "only files are listed"
            shutil.copyfileobj(member, out, BLOCK)
    except (*BROKEN, KeyError) as error:
        raise MediaError(f"{source.name} is not in its tar any more; run again to see what is") from error


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
