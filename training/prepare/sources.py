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
BLOCK = 1 << 20
MOST_WORDS = 1 << 16  # bytes of a .txt beside a film


@dataclass(frozen=True)
class Source:
    """A file, or the member of a tar. `name` is how it is called in the manifest; `stamp`, size and time of change,
    tells whether it is still what it was. `words` are those of the .txt beside it.
    """

    name: str
    path: str
    stamp: tuple[int, int]
    member: str | None = None
    words: str | None = None

    @property
    def still(self) -> bool:
        """Say whether it is a picture."""
        return self.name.lower().endswith(PICTURES)


def sources(given: str, follow: bool = False) -> list[Source]:
    """List what a folder, a glob, a .txt with a file on each line, or a tar holds, in order.

    Symbolic links that lead out of a folder are left out, unless `follow`. Raises PrepareError where nothing is found.
    """
    path = Path(given)
    if path.is_dir():
        found = list(_in_folder(path, follow))
    elif path.suffix == ".txt" and path.is_file():
        listed = (Path(line.strip()) for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
        found = [_file(one if one.is_absolute() else path.parent / one, str(one)) for one in listed]
    elif path.suffix == ".tar" and path.is_file():
        found = list(_in_tar(path))
    elif path.is_file():
        found = [_file(path, path.name)]
    else:
        found = [one for name in sorted(glob(given, recursive=True)) for one in sources(name, follow)]
    if not found:
        kinds = ", ".join(kind[1:] for kind in (*FILMS, *PICTURES))
        raise PrepareError(f"a source must be a folder, a glob, a .txt list or a .tar of {kinds}; got {given}")
    return found


def _file(path: Path, name: str) -> Source:
    try:
        status = path.stat()
    except OSError:
        return Source(name, str(path), (-1, -1))  # reading it will say why
    beside = path.with_suffix(".txt")
    words = _words(beside.read_bytes()) if beside.is_file() and beside.stat().st_size <= MOST_WORDS else None
    return Source(name, str(path), (status.st_size, status.st_mtime_ns), words=words)


def _words(written: bytes) -> str | None:
    return written.decode("utf-8", errors="replace").strip() or None


def _in_folder(folder: Path, follow: bool) -> Iterator[Source]:
    top = folder.resolve()
    for place, folders, names in os.walk(folder, followlinks=follow):
        folders.sort()
        for name in sorted(names):
            path = Path(place) / name
            if path.suffix.lower() in (*FILMS, *PICTURES) and (follow or path.resolve().is_relative_to(top)):
                yield _file(path, str(path.relative_to(folder)))
            elif path.suffix == ".tar" and (follow or path.resolve().is_relative_to(top)):
                yield from _in_tar(path)


def _in_tar(path: Path) -> Iterator[Source]:
    try:
        with tarfile.open(path) as tar:
            files = {member.name: member for member in tar if member.isfile()}
            for name, member in files.items():
                if name.lower().endswith((*FILMS, *PICTURES)):
                    beside = files.get(str(Path(name).with_suffix(".txt")))
                    written = tar.extractfile(beside) if beside and beside.size <= MOST_WORDS else None
                    words = _words(written.read()) if written else None
                    stamp = (member.size, path.stat().st_mtime_ns)
                    yield Source(f"{path.name}/{name}", str(path), stamp, name, words)
    except (tarfile.TarError, OSError):
        yield _file(path, path.name)  # reading it will say that it is no film


@contextmanager
def at_hand(source: Source) -> Iterator[Path]:
    """Have a source as a file: itself, or a member of a tar as a passing copy."""
    if source.member is None:
        yield Path(source.path)
        return
    with tempfile.TemporaryDirectory() as folder:
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
