"""Where a file holds its Content Credentials, and what it is without them.

Who signs a file adds bytes to it and changes none, but for those that count bytes: the offsets in an MP4, the size of a
WebP. Taken out again, the file is the one that was signed; so a hash of its contents is the same before and after.
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

OURS = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")  # the type of the MP4 box that holds credentials
STEP = 2**20  # bytes that are hashed at a time
LEAD = {"mp4": 45, "png": 8, "webp": 8, "gif": 15}  # bytes of the frame before the credentials begin
OFFSETS = {b"stco": 4, b"co64": 8}  # boxes that say where the frames of an MP4 lie, and the bytes of a number in them
AROUND_OFFSETS = (b"moov", b"trak", b"mdia", b"minf", b"stbl")  # boxes that hold them, or each other


def jumbf_box(kind: bytes, content: bytes) -> bytes:
    """Return a box: its size, its type and what it holds."""
    return (8 + len(content)).to_bytes(4, "big") + kind + content


def jumbf_description(kind: bytes, label: str, flags: int = 3) -> bytes:
    """Return what a JUMBF description box holds: a type, flags (3: it may be asked for by its label), a label."""
    return kind + bytes.fromhex("00110010800000aa00389b71") + bytes([flags]) + label.encode() + b"\0"


STORE_PREFIX = b"jumb" + jumbf_box(
    b"jumd", jumbf_description(b"c2pa", "c2pa")
)  # how credentials begin, behind their size


class StoreLocation(NamedTuple):
    """Where the credentials of a file lie with their frame, in bytes, and what they are without it."""

    kind: str
    begin: int
    end: int
    store: bytes


def file_kind(head: bytes) -> str:
    """Name a kind of file by how it begins, since files are renamed."""
    begins = {b"\x89PNG": "png", b"GIF8": "gif", b"RIFF": "webp"}
    return "mp4" if head[4:8] == b"ftyp" else begins.get(head[:4], "other")


def wrap_manifest_store(kind: str, store: bytes) -> bytes:
    """Return credentials as a file of some kind holds them."""
    size = len(store)
    if kind == "mp4":
        return (size + 45).to_bytes(4, "big") + b"uuid" + OURS + bytes(4) + b"manifest\0" + bytes(8) + store
    if kind == "png":
        return size.to_bytes(4, "big") + b"caBX" + store + zlib.crc32(b"caBX" + store).to_bytes(4, "big")
    if kind == "webp":
        return b"C2PA" + size.to_bytes(4, "little") + store + bytes(size % 2)
    pieces = (store[at : at + 255] for at in range(0, size, 255))  # of a GIF, each behind its size
    return b"\x21\xff\x0bC2PA_GIF\x01\0\0" + b"".join(bytes([len(one)]) + one for one in pieces) + b"\0"


def find_manifest_store(data: bytes | mmap.mmap) -> StoreLocation | None:
    """Find the credentials in a file; None where it holds none, or holds them in another way than longtake writes."""
    kind = file_kind(data[:8])
    if kind not in LEAD or (found := data.find(STORE_PREFIX)) < 4 + LEAD[kind]:
        return None
    begin, size = found - 4, int.from_bytes(data[found - 4 : found], "big")
    store = data[begin : begin + size]
    if kind == "gif":
        pieces = data[begin - 1 : begin + size + (size - 1) // 255]
        store = b"".join(pieces[at + 1 : at + 256] for at in range(0, len(pieces), 256))
    begin -= LEAD[kind]
    whole = wrap_manifest_store(kind, store)
    end = begin + len(whole)
    return StoreLocation(kind, begin, end, store) if len(store) == size and data[begin:end] == whole else None


def hash_of_contents(path: str | Path) -> str:
    """Return the SHA-256 of a file without its credentials: that of the file before longtake signed it."""
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:  # which cannot be mapped
            return hashlib.sha256().hexdigest()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            digest, at = hashlib.sha256(), 0
            for begin, end, before in [*_before_signing(data), (len(data), len(data), b"")]:
                for step in range(at, begin, STEP):
                    digest.update(data[step : min(step + STEP, begin)])
                digest.update(before)
                at = end
    return digest.hexdigest()


def _before_signing(data: mmap.mmap) -> list[tuple[int, int, bytes]]:
    """Return, in order, which bytes signing added or changed, from and to, and what was there before."""
    place = find_manifest_store(data)
    if place is None:
        return []
    grown, found = place.end - place.begin, [(place.begin, place.end, b"")]
    if place.kind == "webp":
        found.append((4, 8, _less(data[4:8], grown, "little")))
    if place.kind == "mp4":
        for begin, end, width in _offsets(data, 0, len(data)):
            numbers = (data[at : at + width] for at in range(begin, end, width))
            found.append((begin, end, b"".join(_less(number, grown, "big") for number in numbers)))
    return sorted(found)


def _less(number: bytes, by: int, order) -> bytes:
    """Subtract from a number of some bytes; below zero it goes on from the top, so that no two become the same."""
    width = len(number)
    return ((int.from_bytes(number, order) - by) % 256**width).to_bytes(width, order)


def _offsets(data: mmap.mmap, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield where the offsets in an MP4 lie, from and to, and how many bytes each has."""
    for kind, _, inner, after in iter_boxes(data, begin, end):
        if kind in AROUND_OFFSETS:
            yield from _offsets(data, inner, after)
        elif width := OFFSETS.get(kind):
            first = inner + 8  # behind the version and the count
            count = int.from_bytes(data[inner + 4 : first], "big")
            if first + count * width <= after:
                yield first, first + count * width, width


def iter_boxes(data: mmap.mmap, begin: int, end: int) -> Iterator[tuple[bytes, int, int, int]]:
    """Walk through the boxes of an MP4: the type of each, where it begins, where its content does, and where it ends.
    What is no box ends the walk.
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
