"""Tell files that are locked from those that are broken: what would help is another thing."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from vae.video.pixels import MediaError

# ISO 14496-12: the boxes on the way to what a track's samples are, and how much stands before the boxes in them.
OUTER = {b"moov": 0, b"trak": 0, b"mdia": 0, b"minf": 0, b"stbl": 0, b"stsd": 8}
ENCRYPTED = b"encv"  # ISO 14496-12, 8.12: stands for whatever the pictures' codec is
MOST_BOXES = 4096  # side by side that are looked at
ZIP = b"PK\x03\x04"


def refuse_locked(path: Path) -> None:
    """Raise MediaError for an encrypted mp4 and for a zip archive, which may have a password, whatever it is called."""
    with path.open("rb") as file:
        head = file.read(8)
        if head[:4] == ZIP:
            kind = (
                "a zip archive with a password" if head[6:7] and head[6] & 1 else "a zip archive"
            )  # APPNOTE.TXT, 4.4.4
            raise MediaError(f"{path} must be a film or a picture; it is {kind}; unpack it first")
        if _is_encrypted(file, 0, path.stat().st_size):
            raise MediaError(f"{path} must not be encrypted; it is; decrypt it first, or get a copy that is open")


def _is_encrypted(file: BinaryIO, begin: int, end: int) -> bool:
    return any(
        kind == ENCRYPTED or (kind in OUTER and _is_encrypted(file, inner + OUTER[kind], after))
        for kind, inner, after in islice(_boxes(file, begin, end), MOST_BOXES)
    )


def _boxes(file: BinaryIO, begin: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """List the boxes of an mp4 between two places: what kind each is, and where its inside begins and ends."""
    while begin + 8 <= end:
        file.seek(begin)
        head = file.read(16)
        size, kind, inner = int.from_bytes(head[:4]), head[4:8], begin + 8
        if size == 1:  # too large for four bytes
            size, inner = int.from_bytes(head[8:]), begin + 16
        elif size == 0:  # to the end
            size = end - begin
        if begin + size < inner:
            return
        yield kind, inner, min(begin + size, end)
        begin += size
