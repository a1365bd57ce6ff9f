"""Check the bytes that C2PA's own hashes do not cover, in files that longtake signed.

A C2PA validator ignores padding, the labels and sizes of some JUMBF boxes, checksums, and the MP4 boxes ftyp, free,
skip and mfra. The content of those MP4 boxes is hashed here, and the hash is signed as an assertion; the other bytes
are compared with the only values that longtake writes.
Sources: C2PA specification 2.2 (boxes, padding), ISO/IEC 19566-5 (JUMBF), RFC 8949 (CBOR).
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator
from pathlib import Path

from vae.video.credentials import STORE_PREFIX, file_kind, find_manifest_store, iter_boxes, jumbf_description

UNHASHED_BOXES = (b"ftyp", b"free", b"skip", b"mfra")  # of an MP4
SALTED_FLAGS = 0x13  # JUMBF description flags: requestable, has a label, has a private box (the salt)
SALT_HEADER = (24).to_bytes(4, "big") + b"c2sh"  # size and type of the salt box
PART_TYPES = {"c2pa.assertions": b"c2as", "c2pa.claim.v2": b"c2cl", "c2pa.signature": b"c2cs"}
TRACES = (STORE_PREFIX[8:32], b"\x03c2pa.assertions\0", b"\x03c2pa.signature\0")  # one changed byte leaves two of them


def has_credential_traces(path: Path) -> bool:
    """Return whether a file holds credentials or remains of damaged ones."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return any(data.find(trace) >= 0 for trace in TRACES)


def uncovered_hash(path: Path) -> str | None:
    """Return the SHA-256 (hexadecimal) of the content that C2PA does not hash; None where there is none.

    That is `UNHASHED_BOXES` of an MP4, and of a GIF the metadata, which is in a JSON sidecar file.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        kind = file_kind(data[:8])
        if kind == "gif":
            metadata = path.with_name(path.name + ".json")
            return hashlib.sha256(metadata.read_bytes()).hexdigest() if metadata.is_file() else None
        if kind != "mp4":
            return None
        digest = hashlib.sha256()
        for kind, begin, _, end in iter_boxes(data, 0, len(data)):
            if kind in UNHASHED_BOXES:
                digest.update(data[begin:end])
    return digest.hexdigest()


def is_unaltered(path: Path, credentials: Path, own_labels: set[str]) -> bool:
    """Return whether the credentials of a file have their original bytes where C2PA does not hash them.

    `credentials` is the file that holds them: `path` itself or its sidecar. `own_labels` are the labels of the
    manifests that longtake signed; manifests of other programs are not checked.
    """
    try:
        if credentials != path:
            return _is_store_unaltered(credentials.read_bytes(), own_labels)
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            location = find_manifest_store(data)
        return location is not None and _is_store_unaltered(location.store, own_labels)
    except (ValueError, IndexError):  # not a box, or cut short
        return False


def jumbf_boxes(data: bytes | bytearray, begin: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the consecutive boxes in a range: the type of each, and where its content begins and ends.

    Raises ValueError for a box that does not end within the range.
    """
    while begin < end:
        size = int.from_bytes(data[begin : begin + 4], "big")
        if not 8 <= size <= end - begin:
            raise ValueError("a box must end within the box that contains it")
        yield bytes(data[begin + 4 : begin + 8]), begin + 8, begin + size
        begin += size


def _is_store_unaltered(store: bytes, own_labels: set[str]) -> bool:
    """Compare the superboxes' descriptions and the padding of a manifest store with what longtake writes."""
    ((kind, begin, end),) = jumbf_boxes(store, 0, len(store))
    (_, *span), *manifests = jumbf_boxes(store, begin, end)
    if kind != b"jumb" or store[slice(*span)] != jumbf_description(b"c2pa", "c2pa") or not manifests:
        return False
    label = ""
    for number, (kind, begin, end) in enumerate(manifests, start=1):
        (_, *span), *parts = jumbf_boxes(store, begin, end)
        label = box_label(store, *span)
        if label not in own_labels:
            continue
        if kind != b"jumb" or store[slice(*span)] != jumbf_description(b"c2ma", label):
            return False
        part_labels = []
        for kind, begin, end in parts:
            (_, *span), *contents = jumbf_boxes(store, begin, end)
            part = box_label(store, *span)
            part_labels.append(part)
            if kind != b"jumb" or store[slice(*span)] != jumbf_description(PART_TYPES.get(part, b""), part):
                return False
            if part == "c2pa.assertions" and not all(_is_salted_assertion(store, *content) for content in contents):
                return False
            if part == "c2pa.signature" and number == len(
                manifests
            ):  # earlier signatures are hashed by later manifests
                ((kind, begin, end),) = contents
                if kind != b"cbor" or not _has_zero_padding(store[begin:end]):
                    return False
        if sorted(part_labels) != sorted(PART_TYPES):
            return False
    return label in own_labels


def box_label(store: bytes | bytearray, begin: int, end: int) -> str:
    """Return the label in a JUMBF description box, given where its content begins and where the label ends."""
    return store[begin + 17 : end - 1].decode("ascii", "replace")


def _is_salted_assertion(store: bytes, kind: bytes, begin: int, end: int) -> bool:
    """Return whether an assertion's description is as longtake writes it: CBOR, with a label and a salt."""
    (_, begin, end), *_ = jumbf_boxes(store, begin, end)
    salt = end - 24
    description = jumbf_description(b"cbor", box_label(store, begin, salt), SALTED_FLAGS)
    return kind == b"jumb" and store[begin:salt] == description and store[salt : salt + 8] == SALT_HEADER


def cbor_head(major: int, number: int) -> bytes:
    """Encode the head of a CBOR value: its major type, and its size in the fewest bytes possible."""
    if number < 24:
        return bytes([major << 5 | number])
    width = next(width for width in (1, 2, 4, 8) if number < 256**width)
    return bytes([major << 5 | 23 + width.bit_length()]) + number.to_bytes(width, "big")


def read_cbor_string(data: bytes | bytearray, begin: int, major: int) -> tuple[bytes, int]:
    """Read a CBOR string (major type 2: bytes, 3: text); return its content and where it ends.

    Raises ValueError for any other value, and for a size that is not encoded in the fewest bytes.
    """
    short = data[begin] & 31
    size = short if short < 24 else int.from_bytes(data[begin + 1 : begin + 1 + 2 ** (short - 24)], "big")
    head = cbor_head(major, size)
    end = begin + len(head) + size
    if data[begin : begin + len(head)] != head or end > len(data):
        raise ValueError("a string must begin with its type and size")
    return bytes(data[begin + len(head) : end]), end


def _has_zero_padding(signature: bytes) -> bool:
    """Return whether the unprotected header of a COSE_Sign1 (RFC 9052) holds padding of zeros and nothing else."""
    if signature[:2] != b"\xd2\x84":  # tag 18, an array of four
        return False
    _, at = read_cbor_string(signature, 2, 2)
    entries, at = signature[at] - cbor_head(5, 0)[0], at + 1
    if entries not in (1, 2):
        return False
    for name in (b"pad", b"pad2")[:entries]:
        key, at = read_cbor_string(signature, at, 3)
        zeros, at = read_cbor_string(signature, at, 2)
        if key != name or zeros.strip(b"\0"):
            return False
    if signature[at : at + 1] != b"\xf6":  # null: the payload is detached
        return False
    _, at = read_cbor_string(signature, at + 1, 2)
    return at == len(signature)
