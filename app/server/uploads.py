"""Store uploads: copy within limits, detect the type from the content, decode once in a sandbox, name by hash.

Nothing that a client states about a file is trusted: not its name, type or size. The first bytes decide the type, and
the file is opened as that type only. Other content may be appended, such as an archive after an image, and is kept: so
serve a stored file with the media type of its suffix, and tell browsers not to guess (`nosniff`).
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

from app.home import make_private_folder
from vae.files import sync
from vae.video.container import decode_frames, open_video, select_video_stream, stream_seconds
from vae.video.image import HEIF_BRANDS, register_heif
from vae.video.pixels import MediaError
from vae.video.sandbox import run_sandboxed

CHUNK_BYTES = 2**20  # read at a time
HEAD_BYTES = 4096  # that decide a file's type
SANDBOX_BYTES = 4 * 2**30  # memory of the child process that decodes a file: the largest frames, on several threads
SANDBOX_SECONDS = 120.0
PARTIAL_PREFIX = ".upload-"  # of the names of incomplete uploads
PARTIAL_SECONDS = 3600.0  # an incomplete upload that did not grow for so long is abandoned
IMAGE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP", ".heic": "HEIF"}  # Pillow's names by suffix
VIDEO_FORMATS = {".mp4": "mp4", ".mov": "mov", ".webm": "webm", ".mkv": "matroska", ".gif": "gif"}  # FFmpeg's names
VIDEO_FORMATS |= {".avi": "avi", ".flv": "flv", ".mpg": "mpeg", ".ts": "mpegts"}
OTHER_BRANDS = (b"avif", b"avis", b"mif2")  # of images that are not read
TS_PACKETS = ((0, 188), (4, 192))  # where MPEG-TS has its sync bytes: of broadcasts, and of cameras
UPLOAD_NAME = "the upload"  # stands for the file's path in messages to clients


class UploadError(ValueError):
    """An upload is refused; the message has the rule, the value given and the remedy, and no path of this machine."""


@dataclass(frozen=True)
class UploadLimits:
    """The largest upload that is accepted: bytes of the file, pixels of a frame, frames, and seconds of video."""

    bytes: int = 256 * 2**20
    pixels: int = 2**24  # 4096 x 4096
    frames: int = 7200
    seconds: float = 240.0


def store_upload(source: BinaryIO, folder: Path, limits: UploadLimits | None = None) -> Path:
    """Store a client's file in `folder`; its name is the SHA-256 of its content and the suffix of its type.

    Returns its path. The same content is stored once. Nothing is left of a file that is refused or whose source fails
    midway. Raises UploadError for a refused file, OSError where the disk fails.
    """
    limits = limits or UploadLimits()
    make_private_folder(folder)
    _remove_abandoned(folder)
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=PARTIAL_PREFIX)
    partial = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            head, digest = _copy(source, file, limits)
            file.flush()
            os.fsync(file.fileno())
        suffix = sniff_suffix(head)
        try:
            run_sandboxed(inspect_file, partial, suffix, limits, memory=SANDBOX_BYTES, seconds=SANDBOX_SECONDS)
        except MediaError as error:
            raise UploadError(_without_path(str(error), partial)) from None
        stored = folder / f"{digest}{suffix}"
        os.replace(partial, stored)
        sync(folder)
        return stored
    finally:
        partial.unlink(missing_ok=True)


def sniff_suffix(head: bytes) -> str:
    """Detect a file's type from its first bytes; return its suffix. Raises UploadError for a type not allowed."""
    brand = head[8:12]
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return ".png"
    if head.startswith(b"\xff\xd8\xff"):
        return ".jpg"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return ".gif"
    if head.startswith(b"RIFF") and brand == b"WEBP":
        return ".webp"
    if head.startswith(b"\x1a\x45\xdf\xa3"):  # RFC 9559: the DocType tells WebM from Matroska
        header = head[: HEAD_BYTES // 4]
        if b"\x42\x82\x84webm" in header:
            return ".webm"
        if b"\x42\x82\x88matroska" in header:
            return ".mkv"
    if head[4:8] == b"ftyp" and brand in HEIF_BRANDS:
        return ".heic"
    if head[4:8] == b"ftyp" and brand not in OTHER_BRANDS:
        return ".mov" if brand == b"qt  " else ".mp4"
    if head[4:8] in (b"moov", b"mdat", b"wide", b"free", b"skip"):  # QuickTime files older than brands
        return ".mov"
    if head.startswith(b"RIFF") and brand == b"AVI ":
        return ".avi"
    if head.startswith(b"FLV\x01"):
        return ".flv"
    if head.startswith(b"\0\0\x01\xba"):
        return ".mpg"
    if any(set(head[begin::size][:4]) == {0x47} and len(head) > begin + size for begin, size in TS_PACKETS):
        return ".ts"
    kinds = "mp4, mov, webm, mkv, avi, ts, mpg, flv, gif, png, jpeg, heic or webp"
    raise UploadError(f"an upload must be {kinds}, by its content; this one is not; export it as one of these")


def inspect_file(path: Path, suffix: str, limits: UploadLimits) -> dict[str, float]:
    """Decode a whole file as the type of its suffix; return its pixels per frame, frames and seconds.

    Call it with `run_sandboxed`, in a child process. Raises MediaError for a file that cannot be decoded or exceeds the
    limits.
    """
    try:
        return _inspect_image(path, suffix, limits) if suffix in IMAGE_FORMATS else _inspect_video(path, suffix, limits)
    except (MediaError, MemoryError):
        raise
    except Exception as error:  # decoders raise nearly anything on a broken file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise MediaError(f"{path} cannot be read as {suffix[1:]}: {reason}; export it again") from None


def _inspect_image(path: Path, suffix: str, limits: UploadLimits) -> dict[str, float]:
    if IMAGE_FORMATS[suffix] == "HEIF":
        register_heif(path)
    with Image.open(path, formats=[IMAGE_FORMATS[suffix]]) as image:
        pixels, frames = image.width * image.height, getattr(image, "n_frames", 1)
        _check("pixels in a frame", pixels, limits.pixels)
        _check("frames", frames, limits.frames)
        image.load()
    return {"pixels": pixels, "frames": frames, "seconds": 0.0}


def _inspect_video(path: Path, suffix: str, limits: UploadLimits) -> dict[str, float]:
    pixels, frames, end = 0, 0, Fraction(0)
    with open_video(path) as container:
        if VIDEO_FORMATS[suffix] not in container.format.name.split(","):
            raise MediaError(f"{path} begins as {suffix[1:]} and continues as another type; export it again")
        stream = select_video_stream(container, path)
        _check("pixels in a frame", stream.width * stream.height, limits.pixels)
        for unit, stated, limit in (  # cheap to know; a header that is a little wrong is no reason yet
            ("frames", stream.frames or 0, limits.frames),
            ("seconds", stream_seconds(container, stream) or 0.0, limits.seconds),
        ):
            _check(unit, stated if stated > 2 * limit else 0, limit)
        stream.codec_context.options = {"max_pixels": str(limits.pixels)}
        for frames, (_, end, frame) in enumerate(decode_frames(container, stream), 1):
            pixels = max(pixels, frame.width * frame.height)
            _check("pixels in a frame", pixels, limits.pixels)
            _check("frames", frames, limits.frames)
            _check("seconds", float(end), limits.seconds)
    if not frames:
        raise MediaError(f"{path} holds no frame that can be decoded; export it again")
    return {"pixels": pixels, "frames": frames, "seconds": float(end)}


def _check(unit: str, value: float, limit: float) -> None:
    if value > limit:
        raise MediaError(f"an upload must have at most {limit:,.15g} {unit}; got {value:,.15g}; send a smaller one")


def _copy(source: BinaryIO, file: BinaryIO, limits: UploadLimits) -> tuple[bytes, str]:
    """Copy a source in chunks; return its first bytes, and the SHA-256 of its content in hexadecimal."""
    head, copied, digest = b"", 0, hashlib.sha256()
    while chunk := source.read(CHUNK_BYTES):
        copied += len(chunk)
        if copied > limits.bytes:
            raise UploadError(
                f"an upload must have at most {limits.bytes:,} bytes; this one has more; send a smaller one"
            )
        head += chunk[: HEAD_BYTES - len(head)]
        digest.update(chunk)
        file.write(chunk)
    if not copied:
        raise UploadError("an upload must not be empty; this one is; send it again")
    return head, digest.hexdigest()


def _remove_abandoned(folder: Path) -> None:
    """Remove the incomplete uploads of killed processes."""
    for partial in folder.glob(f"{PARTIAL_PREFIX}*"):
        with suppress(OSError):  # another process removed it first
            if time.time() - partial.stat().st_mtime > PARTIAL_SECONDS:
                partial.unlink()


def _without_path(message: str, path: Path) -> str:
    """Return an error message in one line, with the client's name for the file in place of its path."""
    for name in (str(path), repr(str(path))[1:-1], path.name):
        message = message.replace(name, UPLOAD_NAME)
    return (message.splitlines() or [f"{UPLOAD_NAME} cannot be read; export it again"])[0]
