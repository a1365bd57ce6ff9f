"""Every byte counts: check what C2PA's own hashes leave out of a file that we signed.

A validator of C2PA overlooks padding, the names and sizes of some boxes, checksums, and an MP4's boxes ftyp, free, skip
and mfra. So the latter are hashed here and their hash is signed with the rest, and the former are compared with what
they must be. Sources: C2PA specification 2.2 (boxes, padding), ISO/IEC 19566-5 (JUMBF), RFC 8949 (CBOR).
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator
from pathlib import Path

from vae.video.credentials import STORE_PREFIX, file_kind, find_manifest_store, iter_boxes, jumbf_description

OVERLOOKED = (b"ftyp", b"free", b"skip", b"mfra")
SALTED = 0x13  # flags of a JUMBF box: it may be asked for by its label, and it holds a random number
SALT = (24).to_bytes(4, "big") + b"c2sh"  # how the box of that number begins
KINDS = {"c2pa.assertions": b"c2as", "c2pa.claim.v2": b"c2cl", "c2pa.signature": b"c2cs"}
TRACES = (STORE_PREFIX[8:32], b"\x03c2pa.assertions\0", b"\x03c2pa.signature\0")  # of which one changed byte leaves two


def holds_traces(path: Path) -> bool:
    """Say whether a file holds credentials, or what is left of them."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return any(data.find(trace) >= 0 for trace in TRACES)


def rest_of(path: Path) -> str | None:
    """Return the SHA-256 of what belongs to a file but is not hashed by C2PA: some boxes of an MP4, and the words of a
    GIF, which are beside it; None where there is nothing.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        kind = file_kind(data[:8])
        if kind == "gif":
            words = path.with_name(path.name + ".json")
            return hashlib.sha256(words.read_bytes()).hexdigest() if words.is_file() else None
        if kind != "mp4":
            return None
        digest = hashlib.sha256()
        for kind, begin, _, end in iter_boxes(data, 0, len(data)):
            if kind in OVERLOOKED:
                digest.update(data[begin:end])
    return digest.hexdigest()


def is_as_written(path: Path, credentials: Path, ours: set[str]) -> bool:
    """Say whether no byte was changed among those that C2PA overlooks, in the credentials that a file holds or that lie
    beside it; `ours` are the labels of the manifests that longtake signed.
    """
    try:
        if credentials != path:
            return _store_as_written(credentials.read_bytes(), ours)
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            place = find_manifest_store(data)
        return place is not None and _store_as_written(place.store, ours)
    except (ValueError, IndexError):  # what is no box, or ends too early
        return False


def boxes(data: bytes, begin: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Walk through boxes that lie side by side: the type of each, and where its content begins and ends."""
    while begin < end:
        size = int.from_bytes(data[begin : begin + 4], "big")
        if not 8 <= size <= end - begin:
            raise ValueError("a box must end within the box around it")
        yield data[begin + 4 : begin + 8], begin + 8, begin + size
        begin += size


def _store_as_written(store: bytes, ours: set[str]) -> bool:
    """Compare the boxes that hold boxes, and the padding, with what they must be."""
    ((kind, begin, end),) = boxes(store, 0, len(store))
    (_, *described), *manifests = boxes(store, begin, end)
    if kind != b"jumb" or store[slice(*described)] != jumbf_description(b"c2pa", "c2pa") or not manifests:
        return False
    for number, (kind, begin, end) in enumerate(manifests, start=1):
        (_, *described), *parts = boxes(store, begin, end)
        label = label_of(store, *described)
        if label not in ours:
            continue
        if kind != b"jumb" or store[slice(*described)] != jumbf_description(b"c2ma", label):
            return False
        labels = []
        for kind, begin, end in parts:
            (_, *described), *contents = boxes(store, begin, end)
            labels.append(label_of(store, *described))
            is_known = store[slice(*described)] == jumbf_description(KINDS.get(labels[-1], b""), labels[-1])
            if kind != b"jumb" or not is_known:
                return False
            if labels[-1] == "c2pa.assertions" and not all(_is_salted(store, *content) for content in contents):
                return False
            if labels[-1] == "c2pa.signature" and number == len(manifests):  # the others' are hashed
                ((kind, begin, end),) = contents
                if kind != b"cbor" or not _is_padded_with_nothing(store[begin:end]):
                    return False
        if sorted(labels) != sorted(KINDS):
            return False
    return label in ours


def label_of(store: bytes, begin: int, end: int) -> str:
    return store[begin + 17 : end - 1].decode("ascii", "replace")


def _is_salted(store: bytes, kind: bytes, begin: int, end: int) -> bool:
    """Say whether an assertion is described as ours are: as CBOR, with a label and a random number."""
    (_, begin, end), *_ = boxes(store, begin, end)
    salt = end - 24
    described = jumbf_description(b"cbor", label_of(store, begin, salt), SALTED)
    return kind == b"jumb" and store[begin:salt] == described and store[salt : salt + 8] == SALT


def head_of(major: int, number: int) -> bytes:
    """Write the first bytes of a value in CBOR: its major type, and its size in as few bytes as it takes."""
    if number < 24:
        return bytes([major << 5 | number])
    width = next(width for width in (1, 2, 4, 8) if number < 256**width)
    return bytes([major << 5 | 23 + width.bit_length()]) + number.to_bytes(width, "big")


def string(data: bytes, at: int, major: int) -> tuple[bytes, int]:
    """Read a string (major type 2 of bytes, 3 of text) and where it ends; raises ValueError for anything else."""
    short = data[at] & 31
    number = short if short < 24 else int.from_bytes(data[at + 1 : at + 1 + 2 ** (short - 24)], "big")
    head = head_of(major, number)
    end = at + len(head) + number
    if data[at : at + len(head)] != head or end > len(data):
        raise ValueError("a string must begin with its type and size")
    return data[at + len(head) : end], end


def _is_padded_with_nothing(signature: bytes) -> bool:
    """Say whether a COSE_Sign1 (RFC 9052) has nothing but zeros in its unprotected header, which nothing protects."""
    if signature[:2] != b"\xd2\x84":  # tag 18, an array of four
        return False
    _, at = string(signature, 2, 2)
    entries, at = signature[at] - head_of(5, 0)[0], at + 1
    if entries not in (1, 2):
        return False
    for name in (b"pad", b"pad2")[:entries]:
        key, at = string(signature, at, 3)
        zeros, at = string(signature, at, 2)
        if key != name or zeros.strip(b"\0"):
            return False
    if signature[at : at + 1] != b"\xf6":  # the payload is elsewhere
        return False
    _, at = string(signature, at + 1, 2)
    return at == len(signature)
