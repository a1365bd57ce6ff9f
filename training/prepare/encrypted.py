"""Recognise encrypted files, so that the error names the remedy and not only that they cannot be read."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from vae.video.pixels import MediaError

# ISO 14496-12: the boxes that lead to a track's sample descriptions, and the bytes before their child boxes.
PARENT_BOXES = {b"moov": 0, b"trak": 0, b"mdia": 0, b"minf": 0, b"stbl": 0, b"stsd": 8}
ENCRYPTED_VIDEO = b"encv"  # ISO 14496-12, 8.12: replaces the name of the video codec
MAX_BOXES = 4096  # siblings that are read before a file is given up
ZIP_MAGIC = b"PK\x03\x04"


def refuse_encrypted(path: Path) -> None:
    """Raise MediaError for an encrypted mp4, and for a zip archive, which may have a password, under any suffix."""
    with path.open("rb") as file:
        head = file.read(8)
        if head[:4] == ZIP_MAGIC:
            has_password = head[6:7] and head[6] & 1  # APPNOTE.TXT, 4.4.4
            kind = "a zip archive with a password" if has_password else "a zip archive"
            raise MediaError(f"{path} must be a video or an image; it is {kind}; unpack it first")
        if _is_encrypted(file, 0, path.stat().st_size):
            raise MediaError(f"{path} must not be encrypted; it is; decrypt it first, or get a copy that is open")


def _is_encrypted(file: BinaryIO, begin: int, end: int) -> bool:
    return any(
        kind == ENCRYPTED_VIDEO or (kind in PARENT_BOXES and _is_encrypted(file, content + PARENT_BOXES[kind], after))
        for kind, content, after in islice(_boxes(file, begin, end), MAX_BOXES)
    )


def _boxes(file: BinaryIO, begin: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """List the boxes of an mp4 in a byte range: their type, and where their content begins and ends."""
    while begin + 8 <= end:
        file.seek(begin)
        head = file.read(16)
        size, kind, content = int.from_bytes(head[:4]), head[4:8], begin + 8
        if size == 1:  # the size follows in eight bytes
            size, content = int.from_bytes(head[8:]), begin + 16
        elif size == 0:  # the box reaches to the end
            size = end - begin
        if begin + size < content:
            return
        yield kind, content, min(begin + size, end)
        begin += size
