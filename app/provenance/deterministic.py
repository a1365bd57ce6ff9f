"""The same file, signed by the same certificate, is the same file: what a signer draws at random is drawn from the key
and the contents instead.

C2PA's library gives each statement of a manifest a random salt, and the manifest a random name. Here the salts are
drawn anew, as RFC 6979 draws the random number of a signature, then the hashes that cover them and the signature. So
nobody who lacks the key can guess a salt, and nothing else changes.
Sources: C2PA specification 2.2 (hashed URIs, claims), RFC 9052 (COSE_Sign1), RFC 6979.
"""

from __future__ import annotations

import hashlib
import hmac
import uuid
from typing import BinaryIO

from app.provenance.certificate import Certificate
from app.provenance.seal import SALT, boxes, head_of, label_of, string
from vae.video.credentials import find_manifest_store, wrap_manifest_store

RANDOM = ("ps256",)  # ways of signing that are never the same twice
HASHES = {"es256": "SHA256", "es384": "SHA384", "es512": "SHA512"}


def label_for(*parts: bytes) -> str:
    """Return the name of a manifest: C2PA asks for a UUID, which is drawn from all that is said in it."""
    drawn = hashlib.sha256()
    for part in parts:
        drawn.update(len(part).to_bytes(8, "big") + part)
    return f"urn:c2pa:{uuid.UUID(bytes=drawn.digest()[:16], version=4)}"


def settle(signed: BinaryIO, by: Certificate) -> None:
    """Leave nothing random in the credentials that a file was just given, as `settled` does."""
    signed.seek(0)
    place = find_manifest_store(signed.read())
    if place is not None:
        signed.seek(place.begin)
        signed.write(wrap_manifest_store(place.kind, settled(place.store, by)))
        signed.flush()


def settled(store: bytes, by: Certificate) -> bytes:
    """Return credentials that were just signed with nothing random left in them, signed again; as they are where a
    certificate's signatures are random themselves, or where they are built in a way that is not known here.
    """
    from cryptography.exceptions import UnsupportedAlgorithm  # by an OpenSSL before 3.2

    if by.algorithm in RANDOM:
        return store
    try:
        return _settled(bytearray(store), by)
    except (ValueError, IndexError, KeyError, UnsupportedAlgorithm):
        return store


def _settled(store: bytearray, by: Certificate) -> bytes:
    ((_, begin, end),) = boxes(store, 0, len(store))
    *_, (_, begin, end) = boxes(store, begin, end)  # the last manifest is the one that was just signed
    parts = {}
    for _, inner, after in list(boxes(store, begin, end))[1:]:
        (_, *described), *contents = boxes(store, inner, after)
        parts[label_of(store, *described)] = contents
    ((_, *claim),), ((_, *signature),) = parts["c2pa.claim.v2"], parts["c2pa.signature"]
    statements = [(inner, after) for _, inner, after in parts["c2pa.assertions"]]
    hashes = [hashlib.sha256(store[inner:after]).digest() for inner, after in statements]
    for (inner, after), before in zip(statements, hashes, strict=True):  # in order: each speaks of those before it only
        (_, _, salt), *_ = boxes(store, inner, after)
        if store[salt - 24 : salt - 16] != SALT or store.find(before, begin, end) < 0:
            raise ValueError("a statement must have a salt, and its hash be in the claim")
        store[salt - 16 : salt] = bytes(16)
        store[salt - 16 : salt] = hmac.digest(by.key.encode(), store[inner:after], "sha256")[:16]
        store[begin:end] = store[begin:end].replace(before, hashlib.sha256(store[inner:after]).digest())
    _sign(store, slice(*claim), *signature, by)
    return bytes(store)


def _sign(store: bytearray, claim: slice, begin: int, end: int, by: Certificate) -> None:
    """Write the signature of a claim where there is one already, at the end of its box."""
    protected, _ = string(store, begin + 2, 2)
    told = ((3, b"Signature1"), (2, protected), (2, b""), (2, bytes(store[claim])))  # text, then bytes
    made = _signature(b"\x84" + b"".join(head_of(major, len(part)) + part for major, part in told), by)
    if store[end - len(made) - 2 : end - len(made)] != head_of(2, len(made)):
        raise ValueError("a signature must have the size of the one before")
    store[end - len(made) : end] = made


def _signature(told: bytes, by: Certificate) -> bytes:
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

    key = serialization.load_pem_private_key(by.key.encode(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(told)
    way = ec.ECDSA(getattr(hashes, HASHES[by.algorithm])(), deterministic_signing=True)
    width = (key.curve.key_size + 7) // 8
    return b"".join(number.to_bytes(width, "big") for number in decode_dss_signature(key.sign(told, way)))
