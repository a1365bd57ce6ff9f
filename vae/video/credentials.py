"""Find the Content Credentials in a file, and hash the file without them.

Signing inserts a manifest store and changes no other bytes, except counts of bytes: the chunk offsets of an MP4, the
size of a WebP. Undoing both restores the unsigned file, so a hash of its contents is the same before and after signing.
Sources: C2PA specification 2.2 (embedding), ISO/IEC 19566-5 (JUMBF), ISO/IEC 14496-12 (the boxes of an MP4).
"""

from __future__ import annotations

import hashlib
import mmap
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

C2PA_UUID = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")  # of the MP4 box that holds the manifest store
READ_BYTES = 2**20  # hashed at a time
HEADER_BYTES = {"mp4": 45, "png": 8, "webp": 8, "gif": 15}  # of the wrapper before the manifest store
OFFSET_BOXES = {b"stco": 4, b"co64": 8}  # boxes with chunk offsets of an MP4, and the bytes of an offset
OFFSET_PARENTS = (b"moov", b"trak", b"mdia", b"minf", b"stbl")  # boxes that contain them


def jumbf_box(kind: bytes, content: bytes) -> bytes:
    """Build a box: its size, its type and its content."""
    return (8 + len(content)).to_bytes(4, "big") + kind + content


def jumbf_description(kind: bytes, label: str, flags: int = 3) -> bytes:
    """Build the content of a JUMBF description box: type, flags (3: requestable, with label) and label."""
    return kind + bytes.fromhex("00110010800000aa00389b71") + bytes([flags]) + label.encode() + b"\0"


STORE_PREFIX = b"jumb" + jumbf_box(
    b"jumd", jumbf_description(b"c2pa", "c2pa")
)  # start of a manifest store, after its size


class StoreLocation(NamedTuple):
    """Position of the manifest store in a file, with its wrapper, in bytes; and the store without wrapper."""

    kind: str
    begin: int
    end: int
    store: bytes


def file_kind(head: bytes) -> str:
    """Return a file's format by its first bytes, because a suffix may be wrong: mp4, png, gif, webp or other."""
    magic = {b"\x89PNG": "png", b"GIF8": "gif", b"RIFF": "webp"}
    return "mp4" if head[4:8] == b"ftyp" else magic.get(head[:4], "other")


def wrap_manifest_store(kind: str, store: bytes) -> bytes:
    """Wrap a manifest store for a file format (the result of `file_kind`)."""
    size = len(store)
    if kind == "mp4":
        return (size + 45).to_bytes(4, "big") + b"uuid" + C2PA_UUID + bytes(4) + b"manifest\0" + bytes(8) + store
    if kind == "png":
        return size.to_bytes(4, "big") + b"caBX" + store + zlib.crc32(b"caBX" + store).to_bytes(4, "big")
    if kind == "webp":
        return b"C2PA" + size.to_bytes(4, "little") + store + bytes(size % 2)
    blocks = (store[at : at + 255] for at in range(0, size, 255))  # sub-blocks of a GIF, each after its size
    return b"\x21\xff\x0bC2PA_GIF\x01\0\0" + b"".join(bytes([len(one)]) + one for one in blocks) + b"\0"


def find_manifest_store(data: bytes | mmap.mmap) -> StoreLocation | None:
    """Find the manifest store in a file; return None if there is none, or if Longtake does not embed it like this."""
    kind = file_kind(data[:8])
    if kind not in HEADER_BYTES or (found := data.find(STORE_PREFIX)) < 4 + HEADER_BYTES[kind]:
        return None
    begin, size = found - 4, int.from_bytes(data[found - 4 : found], "big")
    store = data[begin : begin + size]
    if kind == "gif":
        blocks = data[begin - 1 : begin + size + (size - 1) // 255]
        store = b"".join(blocks[at + 1 : at + 256] for at in range(0, len(blocks), 256))
    begin -= HEADER_BYTES[kind]
    wrapped = wrap_manifest_store(kind, store)
    end = begin + len(wrapped)
    return StoreLocation(kind, begin, end, store) if len(store) == size and data[begin:end] == wrapped else None


def hash_of_contents(path: str | Path) -> str:
    """Return the SHA-256 of a file without its credentials: that of the file before Longtake signed it."""
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:  # an empty file cannot be mapped
            return hashlib.sha256().hexdigest()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            digest, at = hashlib.sha256(), 0
            for begin, end, original in [*_undo_signing(data), (len(data), len(data), b"")]:
                for start in range(at, begin, READ_BYTES):
                    digest.update(data[start : min(start + READ_BYTES, begin)])
                digest.update(original)
                at = end
    return digest.hexdigest()


def _undo_signing(data: mmap.mmap) -> list[tuple[int, int, bytes]]:
    """Return the bytes that signing added or changed, in order: (begin, end, original bytes)."""
    location = find_manifest_store(data)
    if location is None:
        return []
    added, changes = location.end - location.begin, [(location.begin, location.end, b"")]
    if location.kind == "webp":
        changes.append((4, 8, _subtract(data[4:8], added, "little")))
    if location.kind == "mp4":
        for begin, end, width in _chunk_offsets(data, 0, len(data)):
            numbers = (data[at : at + width] for at in range(begin, end, width))
            changes.append((begin, end, b"".join(_subtract(number, added, "big") for number in numbers)))
    return sorted(changes)


def _subtract(number: bytes, amount: int, order) -> bytes:
    """Subtract from an unsigned integer, modulo its range, so that different numbers stay different."""
    width = len(number)
    return ((int.from_bytes(number, order) - amount) % 256**width).to_bytes(width, order)


def _chunk_offsets(data: mmap.mmap, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield the tables of chunk offsets of an MP4: (begin, end, bytes of an offset)."""
    for kind, _, inner, after in iter_boxes(data, begin, end):
        if kind in OFFSET_PARENTS:
            yield from _chunk_offsets(data, inner, after)
        elif width := OFFSET_BOXES.get(kind):
            first = inner + 8  # after the version and the count
            count = int.from_bytes(data[inner + 4 : first], "big")
            if first + count * width <= after:
                yield first, first + count * width, width


def iter_boxes(data: mmap.mmap, begin: int, end: int) -> Iterator[tuple[bytes, int, int, int]]:
    """Yield the boxes of an MP4 between two positions: (type, begin, begin of its content, end).

    Stops at the first bytes that are not a box.
    """
    while begin < end:
        size, inner = int.from_bytes(data[begin : begin + 4], "big"), begin + 8
        if size == 1:  # too long for four bytes
            size, inner = int.from_bytes(data[begin + 8 : begin + 16], "big"), begin + 16
        after = min(begin + size, end) if size else end
        if after < inner:
            return
        yield data[begin + 4 : begin + 8], begin, inner, after
        begin = after
