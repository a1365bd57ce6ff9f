"""Find raw videos and images: in folders, globs, lists of files, and WebDataset tars."""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
import tarfile
import tempfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from glob import glob
from itertools import takewhile
from pathlib import Path, PurePosixPath

from captioning.text_files import decode_text
from training.manifest import PrepareError
from training.prepare.sidecars import FolderSidecars, Siblings
from vae.video.container import SUFFIXES as VIDEO_SUFFIXES
from vae.video.container import check_readable
from vae.video.image import IMAGE_SUFFIXES
from vae.video.pixels import MediaError

SUFFIXES = (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES, ".tar")
SYSTEM_FILES = ("thumbs.db", "desktop.ini")  # and what begins with a dot; not counted as left out
NO_STAMP = (-1, -1)  # the stamp of a file that cannot be examined
COPY_BYTES = 1 << 20  # copied at a time
TAR_ERRORS = (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error)  # raised while a damaged tar is read


@dataclass(frozen=True)
class SourceFile:
    """A raw video or image: a file, or the `member` of a tar.

    `name` is its name in the manifest, `path` absolute. `stamp` is its size in bytes and its modification time in
    nanoseconds. `captions` came with it (`sidecars.py`). `outside` is true for a link that leads out of a list's folder
    and is not followed.
    """

    name: str
    path: str
    stamp: tuple[int, int]
    member: str | None = None
    captions: tuple[str, ...] = ()
    outside: bool = False

    @property
    def key(self) -> str:
        """The place of the source, by which the journal knows it."""
        return self.path if self.member is None else f"{self.path}::{self.member}"

    @property
    def sidecar(self) -> str | list[str] | None:
        """Its captions as the journal has them: nothing, one, or a list."""
        return list(self.captions) if len(self.captions) > 1 else next(iter(self.captions), None)

    @property
    def is_image(self) -> bool:
        """Whether its suffix is that of an image."""
        return self.name.lower().endswith(IMAGE_SUFFIXES)


@dataclass
class Survey:
    """What a place holds: sources in order, files left out by suffix, and captions that cannot be read, by file."""

    sources: list[SourceFile] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    errors: dict[str, str] = field(default_factory=dict)

    def leave_out(self, names: Iterable[str]) -> None:
        """Count files that are neither sources nor captions of sources."""
        for name in names:
            if not name.startswith(".") and name.lower() not in SYSTEM_FILES:
                self.left_out[PurePosixPath(name).suffix.lower() or "without suffix"] += 1


def find_sources(given: str, follow: bool = False) -> list[SourceFile]:
    """List the sources of a place, as `survey_sources` does."""
    return survey_sources(given, follow).sources


def survey_sources(given: str, follow: bool = False, encoding: str = "") -> Survey:
    """List the sources in a folder, a glob, a .txt with one file per line, or a tar, in order, with their captions.

    Symbolic links that lead out of the folder, or out of the fixed part of a glob, are left out unless `follow`. Files
    of a list, and files that cannot be examined, are always listed: reading them gives the error. `encoding` is that of
    captions that are neither UTF-8 nor UTF-16. Raises PrepareError where nothing is found.
    """
    path, survey = Path(given), Survey()
    sidecars = FolderSidecars(encoding, follow)
    if path.is_dir():
        survey.sources += _in_folder(path, follow, sidecars, survey)
    elif path.suffix == ".txt" and path.is_file():
        listed = (line.strip().strip('"') for line in decode_text(path.read_bytes(), given, encoding).splitlines())
        named = (Path(line) for line in listed if line)
        survey.sources += [one for name in named for one in _in_list(name, path.parent, follow, sidecars, survey)]
    elif path.is_file():
        survey.sources += _in_file(path, path.name, follow, sidecars, survey)
    else:
        matches = [Path(name) for name in sorted(glob(given, recursive=True)) if not Path(name).is_dir()]
        top = Path(*takewhile(lambda part: not set(part) & set("*?["), Path(given).parent.parts))
        films = [match for match in matches if match.name.lower().endswith(SUFFIXES)]
        survey.sources += [one for film in films for one in _in_file(film, str(film), follow, sidecars, survey, top)]
        survey.leave_out(match.name for match in set(matches) - set(films) if not sidecars.is_used(match))
    survey.errors |= sidecars.errors()
    if not survey.sources:
        kinds = ", ".join(suffix[1:] for suffix in (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES))
        others = ", ".join(f"{count} {suffix}" for suffix, count in sorted(survey.left_out.items()))
        got = f"{given}, which has {others}" if others else given
        raise PrepareError(f"a source must be a folder, a glob, a .txt list or a .tar of {kinds}; got {got}")
    return survey


def _in_list(named: Path, folder: Path, follow: bool, sidecars: FolderSidecars, survey: Survey) -> Iterator[SourceFile]:
    """List one line of a list.

    A link in the list's folder may lead anywhere within that folder; any other link, within its own folder. Slashes
    may be those of Windows.
    """
    path = Path(os.path.abspath(folder / named))
    if not path.exists() and "\\" in str(named):
        path = Path(os.path.abspath(folder / str(named).replace("\\", "/")))
    top = folder if path.is_relative_to(os.path.abspath(folder)) else path.parent
    if follow or _is_within(path, top):
        yield from _in_file(path, str(named), follow, sidecars, survey, top)
    else:
        yield SourceFile(str(named), str(path), NO_STAMP, outside=True)


def _in_folder(folder: Path, follow: bool, sidecars: FolderSidecars, survey: Survey) -> Iterator[SourceFile]:
    top, seen, errors, others = folder.resolve(), set(), [], []
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
                yield from _in_file(path, str(path.relative_to(folder)), follow, sidecars, survey, top)
            else:
                others.append(path)
    for error in errors:
        yield SourceFile(os.path.relpath(error.filename, folder), os.path.abspath(error.filename), NO_STAMP)
    survey.leave_out(path.name for path in others if not sidecars.is_used(path))


def _in_file(
    path: Path, name: str, follow: bool, sidecars: FolderSidecars, survey: Survey, top: Path | None = None
) -> Iterator[SourceFile]:
    """List a file, or the members of a tar, unless it is a link out of `top`, by default its own folder."""
    if follow or _is_within(path, top or path.parent):
        if path.suffix.lower() == ".tar":
            yield from _in_tar(path, name, sidecars.encoding, survey)
        else:
            stamp = _stamp(path)
            captions = () if stamp == NO_STAMP else sidecars.captions_of(path, top or path.parent)
            yield SourceFile(name, os.path.abspath(path), stamp, captions=captions)


def _is_within(path: Path, top: Path) -> bool:
    try:
        return path.resolve().is_relative_to(top.resolve())
    except (OSError, RuntimeError):  # a link to itself
        return False


def _in_tar(path: Path, name: str, encoding: str, survey: Survey) -> Iterator[SourceFile]:
    """List the videos and images in a tar. A truncated or damaged tar lists its intact members, then the tar itself."""
    damage = "it is no file"
    try:
        modified = path.stat().st_mtime_ns
        if path.is_file():
            with tarfile.open(path) as tar:
                members, damage = _intact_members(tar)
                files = {member.name: member for member in members if member.isfile()}
                siblings = _tar_siblings(tar, files, encoding)
                films = [inner for inner in files if inner.lower().endswith((*VIDEO_SUFFIXES, *IMAGE_SUFFIXES))]
                for inner in films:
                    folder, _, own = inner.rpartition("/")
                    captions = tuple(siblings[folder].captions_of(own))
                    stamp = files[inner].size, modified
                    yield SourceFile(f"{name}/{inner}", os.path.abspath(path), stamp, inner, captions)
                others = (inner.rpartition("/") for inner in files.keys() - set(films))
                survey.leave_out(own for folder, _, own in others if not siblings[folder].has_read(own))
                for folder, one in siblings.items():
                    place = f"{name}/{folder}" if folder else name
                    survey.errors |= {f"{place}/{file}": why for file, why in one.errors.items()}
    except (*TAR_ERRORS, OSError) as error:
        damage = str(error)
    if damage:
        yield SourceFile(name, os.path.abspath(path), _stamp(path))


def _tar_siblings(tar: tarfile.TarFile, files: dict[str, tarfile.TarInfo], encoding: str) -> dict[str, Siblings]:
    """Return the files of each folder in a tar."""
    folders: dict[str, dict[str, int]] = defaultdict(dict)
    for inner, member in files.items():
        folder, _, own = inner.rpartition("/")
        folders[folder][own] = member.size

    def reader(folder: str) -> Callable[[str], bytes]:
        def read(own: str) -> bytes:
            content = tar.extractfile(files[f"{folder}/{own}" if f"{folder}/{own}" in files else own])
            assert content is not None, "only files are listed"
            return content.read()

        return read

    return {folder: Siblings(sizes, reader(folder), encoding) for folder, sizes in folders.items()}


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
