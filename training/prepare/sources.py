"""Find raw videos and images: in folders, globs, lists of files, and WebDataset tars."""

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

from training.manifest import PrepareError
from vae.video.container import SUFFIXES as VIDEO_SUFFIXES
from vae.video.container import check_readable
from vae.video.image import IMAGE_SUFFIXES
from vae.video.pixels import MediaError

SUFFIXES = (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES, ".tar")
NO_STAMP = (-1, -1)  # the stamp of a file that cannot be examined
COPY_BYTES = 1 << 20  # copied at a time
MAX_SIDECAR_BYTES = 1 << 16
TAR_ERRORS = (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error)  # raised while a damaged tar is read


@dataclass(frozen=True)
class SourceFile:
    """A raw video or image: a file, or the `member` of a tar.

    `name` is its name in the manifest, `path` absolute. `stamp` is its size in bytes and its modification time in
    nanoseconds. `sidecar` is the text of the .txt file with the same stem, a caption. `outside` is true for a link that
    leads out of a list's folder and is not followed.
    """

    name: str
    path: str
    stamp: tuple[int, int]
    member: str | None = None
    sidecar: str | None = None
    outside: bool = False

    @property
    def key(self) -> str:
        """The place of the source, by which the journal knows it."""
        return self.path if self.member is None else f"{self.path}::{self.member}"

    @property
    def is_image(self) -> bool:
        """Whether its suffix is that of an image."""
        return self.name.lower().endswith(IMAGE_SUFFIXES)


def find_sources(given: str, follow: bool = False) -> list[SourceFile]:
    """List the sources in a folder, a glob, a .txt with one file per line, or a tar, in order.

    Symbolic links that lead out of the folder, or out of the fixed part of a glob, are left out unless `follow`. Files
    of a list, and files that cannot be examined, are always listed: reading them gives the error. Raises PrepareError
    where nothing is found.
    """
    path = Path(given)
    if path.is_dir():
        found = list(_in_folder(path, follow))
    elif path.suffix == ".txt" and path.is_file():
        listed = (Path(line.strip()) for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
        found = [source for named in listed for source in _in_list(named, path.parent, follow)]
    elif path.is_file():
        found = list(_in_file(path, path.name, follow))
    else:
        matches = (Path(name) for name in sorted(glob(given, recursive=True)) if name.lower().endswith(SUFFIXES))
        top = Path(*takewhile(lambda part: not set(part) & set("*?["), Path(given).parent.parts))
        found = [one for match in matches if not match.is_dir() for one in _in_file(match, str(match), follow, top)]
    if not found:
        kinds = ", ".join(suffix[1:] for suffix in (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES))
        raise PrepareError(f"a source must be a folder, a glob, a .txt list or a .tar of {kinds}; got {given}")
    return found


def _in_list(named: Path, folder: Path, follow: bool) -> Iterator[SourceFile]:
    """List one line of a list.

    A link in the list's folder may lead anywhere within that folder; any other link, within its own folder.
    """
    path = Path(os.path.abspath(folder / named))
    top = folder if path.is_relative_to(os.path.abspath(folder)) else path.parent
    if follow or _is_within(path, top):
        yield from _in_file(path, str(named), follow, top)
    else:
        yield SourceFile(str(named), str(path), NO_STAMP, outside=True)


def _in_folder(folder: Path, follow: bool) -> Iterator[SourceFile]:
    top, seen, errors = folder.resolve(), set(), []
    for place, folders, names in os.walk(folder, followlinks=follow, onerror=errors.append):
        real = os.path.realpath(place)
        if real in seen:  # links can lead in a circle
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for name in sorted(names):
            path = Path(place) / name
            if name.lower().endswith(SUFFIXES):
                yield from _in_file(path, str(path.relative_to(folder)), follow, top)
    for error in errors:
        yield SourceFile(os.path.relpath(error.filename, folder), os.path.abspath(error.filename), NO_STAMP)


def _in_file(path: Path, name: str, follow: bool, top: Path | None = None) -> Iterator[SourceFile]:
    """List a file, or the members of a tar, unless it is a link out of `top`, by default its own folder."""
    if follow or _is_within(path, top or path.parent):
        if path.suffix.lower() == ".tar":
            yield from _in_tar(path, name, follow, top)
        else:
            yield _source_file(path, name, follow, top)


def _is_within(path: Path, top: Path) -> bool:
    try:
        return path.resolve().is_relative_to(top.resolve())
    except (OSError, RuntimeError):  # a link to itself
        return False


def _source_file(path: Path, name: str, follow: bool, top: Path | None = None) -> SourceFile:
    text, sidecar, stamp = path.with_suffix(".txt"), None, _stamp(path)
    try:
        if (
            stamp != NO_STAMP
            and text.is_file()
            and text.stat().st_size <= MAX_SIDECAR_BYTES
            and (follow or _is_within(text, top or path.parent))
        ):
            sidecar = _decode_sidecar(text.read_bytes())
    except OSError:
        pass
    return SourceFile(name, os.path.abspath(path), stamp, sidecar=sidecar)


def _decode_sidecar(content: bytes) -> str | None:
    return content.decode("utf-8", errors="replace").strip() or None


def _in_tar(path: Path, name: str, follow: bool, top: Path | None) -> Iterator[SourceFile]:
    """List the videos and images in a tar. A truncated or damaged tar lists its intact members, then the tar itself."""
    damage = "it is no file"
    try:
        modified = path.stat().st_mtime_ns
        if path.is_file():
            with tarfile.open(path) as tar:
                members, damage = _intact_members(tar)
                files = {member.name: member for member in members if member.isfile()}
                for inner, member in files.items():
                    if inner.lower().endswith((*VIDEO_SUFFIXES, *IMAGE_SUFFIXES)):
                        text = files.get(inner.rsplit(".", 1)[0] + ".txt")
                        content = tar.extractfile(text) if text and text.size <= MAX_SIDECAR_BYTES else None
                        sidecar = _decode_sidecar(content.read()) if content else None
                        stamp = member.size, modified
                        yield SourceFile(f"{name}/{inner}", os.path.abspath(path), stamp, inner, sidecar)
    except (*TAR_ERRORS, OSError) as error:
        damage = str(error)
    if damage:
        yield _source_file(path, name, follow, top)


def _intact_members(tar: tarfile.TarFile) -> tuple[list[tarfile.TarInfo], str]:
    """Return the complete members of a tar, and what is wrong after them, if anything."""
    members, damage = [], ""
    try:
        for member in tar:
            members.append(member)
        if _bytes_at(tar, tar.offset, tarfile.BLOCKSIZE).strip(b"\0"):
            damage = f"what is at byte {tar.offset} is no file"
    except (*TAR_ERRORS, OSError) as error:
        damage = str(error)
        try:
            last = members[-1].offset_data + members[-1].size if members else 0
            if last and not _bytes_at(tar, last - 1, 1):
                members.pop()
        except (*TAR_ERRORS, OSError):
            members.pop()
    return members, damage


def _bytes_at(tar: tarfile.TarFile, offset: int, count: int) -> bytes:
    assert tar.fileobj is not None, "it is open"
    tar.fileobj.seek(offset)
    return tar.fileobj.read(count)


@contextmanager
def ensure_unchanged(source: SourceFile) -> Iterator[None]:
    """Check that a source does not change within the block.

    Raises MediaError where it is missing, is a link that is not followed, or changes.
    """
    if source.outside:
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
        return NO_STAMP
    return status.st_size, status.st_mtime_ns


@contextmanager
def local_file(source: SourceFile, temporary: Path) -> Iterator[Path]:
    """Yield a path to a source: its own file, or a copy of a tar's member in the `temporary` folder.

    Raises MediaError for a tar itself, which is listed only if it is damaged, and for a member that is gone.
    """
    if source.member is None:
        if source.path.lower().endswith(".tar"):
            raise MediaError(f"{source.name} must be a whole tar; {_damage(source)}; copy or download it again")
        yield Path(source.path)
        return
    temporary.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=temporary) as folder:
        copy = Path(folder) / f"member{Path(source.member).suffix.lower()}"
        _copy_member(source, source.member, copy)
        yield copy


def _damage(source: SourceFile) -> str:
    """Describe what is wrong with a tar."""
    try:
        with tarfile.open(source.path) as tar:
            return _intact_members(tar)[1] or "it changed meanwhile"
    except TAR_ERRORS as error:
        return str(error).splitlines()[0].rstrip(":")


def _copy_member(source: SourceFile, inner: str, copy: Path) -> None:
    try:
        with tarfile.open(source.path) as tar, open(copy, "wb") as out:
            members = {member.name: member for member in _intact_members(tar)[0] if member.isfile()}
            content = tar.extractfile(members[inner])
            assert content is not None, "only files are listed"
            shutil.copyfileobj(content, out, COPY_BYTES)
    except (*TAR_ERRORS, KeyError) as error:
        raise MediaError(f"{source.name} is not in its tar any more; run again to see what is") from error


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
