"""Keep what clients send: copied within bounds, told by its bytes, read once in a child process, named by its content.

Nothing that a client says of a file counts, neither its name nor its type nor how long it is. A file is what its first
bytes say, and is opened as that and as nothing else. What else may be hidden in it, such as an archive behind a
picture, stays where it is: so serve a kept file by its suffix, and tell browsers not to guess (`nosniff`).
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from vae.video.pixels import MediaError
from vae.video.read import decode_frames, open_video, select_video_stream
from vae.video.sandbox import run_sandboxed

PIECE_BYTES = 2**20  # read at a time
HEAD_BYTES = 4096  # by which a file's type is told
CHILD_BYTES = 4 * 2**30  # of memory for the child that reads a file: some threads' frames of the largest that may be
CHILD_SECONDS = 120.0
HALF, HALF_SECONDS = ".upload-", 3600.0  # how half uploads are named, and after how long without a byte one is dead
PICTURES = {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP"}  # and what Pillow calls them
FILMS = {".mp4": "mp4", ".mov": "mov", ".webm": "webm", ".mkv": "matroska", ".gif": "gif"}  # and FFmpeg its readers
STILL_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"mif2", b"msf1")
UPLOAD = "the upload"  # what sentences for clients call a file


class UploadError(ValueError):
    """An upload that is not kept: the rule, what was given, the remedy; never a path of this machine."""


@dataclass(frozen=True)
class Caps:
    """The most that an upload may have: bytes in all, pixels in a frame, frames, and seconds of film."""

    bytes: int = 256 * 2**20
    pixels: int = 2**24  # 4096 x 4096
    frames: int = 7200
    seconds: float = 240.0


def keep_upload(source: BinaryIO, folder: Path, caps: Caps | None = None) -> Path:
    """Keep a client's file in `folder` under the SHA-256 of its content and the suffix of its type; returns its path.

    The same content is kept once. A file that is refused, or whose source fails midway, leaves nothing behind.
    Raises UploadError for what may not be kept, OSError where the disk fails.
    """
    caps = caps or Caps()
    folder.mkdir(parents=True, exist_ok=True)
    _clear(folder)
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=HALF)
    half = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            head, digest = _copied(source, file, caps)
            file.flush()
            os.fsync(file.fileno())
        suffix = sniffed(head)
        try:
            run_sandboxed(look_through, half, suffix, caps, memory=CHILD_BYTES, seconds=CHILD_SECONDS)
        except MediaError as error:
            raise UploadError(_without_path(str(error), half)) from None
        kept = folder / f"{digest}{suffix}"
        os.replace(half, kept)
        return kept
    finally:
        half.unlink(missing_ok=True)


def sniffed(head: bytes) -> str:
    """Tell a file's type by its first bytes, as a suffix; raises UploadError for any that is not allowed."""
    brand = head[8:12]
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return ".png"
    if head.startswith(b"\xff\xd8\xff"):
        return ".jpg"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return ".gif"
    if head.startswith(b"RIFF") and brand == b"WEBP":
        return ".webp"
    if head.startswith(b"\x1a\x45\xdf\xa3"):  # RFC 9559: its DocType says which of the two
        header = head[: HEAD_BYTES // 4]
        if b"\x42\x82\x84webm" in header:
            return ".webm"
        if b"\x42\x82\x88matroska" in header:
            return ".mkv"
    if head[4:8] == b"ftyp" and brand not in STILL_BRANDS:
        return ".mov" if brand == b"qt  " else ".mp4"
    if head[4:8] in (b"moov", b"mdat", b"wide", b"free", b"skip"):  # QuickTime's, from before there were brands
        return ".mov"
    kinds = "mp4, mov, webm, mkv, gif, png, jpeg or webp"
    raise UploadError(f"an upload must be {kinds}, by its bytes; this one is something else; export it as one of these")


def look_through(path: Path, suffix: str, caps: Caps) -> dict[str, float]:
    """Read a file from end to end as what its suffix says; returns its pixels in a frame, frames and seconds.

    To be called in a child process, by `run_sandboxed`. Raises MediaError where it cannot be read so, or is beyond the caps.
    """
    try:
        return _picture(path, suffix, caps) if suffix in PICTURES else _film(path, suffix, caps)
    except (MediaError, MemoryError):
        raise
    except Exception as error:  # readers raise nearly anything on a broken file
        what = (str(error).splitlines() or [type(error).__name__])[0]
        raise MediaError(f"{path} cannot be read as {suffix[1:]}: {what}; export it again") from None


def _picture(path: Path, suffix: str, caps: Caps) -> dict[str, float]:
    with Image.open(path, formats=[PICTURES[suffix]]) as image:
        pixels, frames = image.width * image.height, getattr(image, "n_frames", 1)
        _check("pixels in a frame", pixels, caps.pixels)
        _check("frames", frames, caps.frames)
        image.load()
    return {"pixels": pixels, "frames": frames, "seconds": 0.0}


def _film(path: Path, suffix: str, caps: Caps) -> dict[str, float]:
    pixels, frames, end = 0, 0, Fraction(0)
    with open_video(path) as container:
        if FILMS[suffix] not in container.format.name.split(","):
            raise MediaError(f"{path} begins as {suffix[1:]} and goes on as another; export it again")
        stream = select_video_stream(container, path)
        _check("pixels in a frame", stream.width * stream.height, caps.pixels)
        stream.codec_context.options = {"max_pixels": str(caps.pixels)}
        for frames, (_, end, frame) in enumerate(decode_frames(container, stream), 1):
            pixels = max(pixels, frame.width * frame.height)
            _check("pixels in a frame", pixels, caps.pixels)
            _check("frames", frames, caps.frames)
            _check("seconds", float(end), caps.seconds)
    if not frames:
        raise MediaError(f"{path} holds no frame that can be decoded; export it again")
    return {"pixels": pixels, "frames": frames, "seconds": float(end)}


def _check(what: str, got: float, most: float) -> None:
    if got > most:
        raise MediaError(f"an upload must have at most {most:,.15g} {what}; got {got:,.15g}; give a smaller one")


def _copied(source: BinaryIO, file: BinaryIO, caps: Caps) -> tuple[bytes, str]:
    """Copy a source piece by piece; returns its first bytes and the SHA-256 of all, in hexadecimal."""
    head, copied, digest = b"", 0, hashlib.sha256()
    while piece := source.read(PIECE_BYTES):
        copied += len(piece)
        if copied > caps.bytes:
            raise UploadError(
                f"an upload must have at most {caps.bytes:,} bytes; this one has more; give a smaller one"
            )
        head += piece[: HEAD_BYTES - len(head)]
        digest.update(piece)
        file.write(piece)
    if not copied:
        raise UploadError("an upload must hold something; this one is empty; send it again")
    return head, digest.hexdigest()


def _clear(folder: Path) -> None:
    """Remove the half uploads of processes that were killed."""
    for half in folder.glob(f"{HALF}*"):
        with suppress(OSError):  # another process was quicker
            if time.time() - half.stat().st_mtime > HALF_SECONDS:
                half.unlink()


def _without_path(sentence: str, path: Path) -> str:
    """Say a sentence of a file as its sender knows it, in one line."""
    for name in (str(path), repr(str(path))[1:-1], path.name):
        sentence = sentence.replace(name, UPLOAD)
    return (sentence.splitlines() or [f"{UPLOAD} cannot be read; export it again"])[0]
