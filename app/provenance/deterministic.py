"""Make signing deterministic: the same content, signed with the same key, gives the same bytes.

The C2PA library gives each assertion a random salt, and each manifest a random label. Here they are derived from the
key and the content, as RFC 6979 derives a signature's nonce; the hashes that cover the salts and the signature are then
computed again. A salt cannot be guessed without the key, and nothing else in the manifest changes.
Sources: C2PA specification 2.2 (hashed URIs, claims), RFC 9052 (COSE_Sign1), RFC 6979.
"""

from __future__ import annotations

import hashlib
import hmac
import uuid
from typing import BinaryIO

from app.provenance.certificate import Certificate
from app.provenance.integrity import SALT_HEADER, box_label, cbor_head, jumbf_boxes, read_cbor_string
from vae.video.credentials import find_manifest_store, wrap_manifest_store

RANDOMIZED = ("ps256",)  # signature algorithms that give another signature each time
HASHES = {"es256": "SHA256", "es384": "SHA384", "es512": "SHA512"}


def manifest_label(*parts: bytes) -> str:
    """Return a manifest's label: the UUID that C2PA asks for, derived from the manifest's content."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return f"urn:c2pa:{uuid.UUID(bytes=digest.digest()[:16], version=4)}"


def derandomize_file(signed: BinaryIO, certificate: Certificate) -> None:
    """Replace the manifest store in a file that was just signed by its deterministic form, in place."""
    signed.seek(0)
    location = find_manifest_store(signed.read())
    if location is not None:
        signed.seek(location.begin)
        signed.write(wrap_manifest_store(location.kind, derandomize(location.store, certificate)))
        signed.flush()


def derandomize(store: bytes, certificate: Certificate) -> bytes:
    """Return a manifest store that was just signed with derived salts, signed again.

    The store is returned as it is where the signature algorithm itself is randomized, and where its structure is
    unknown.
    """
    from cryptography.exceptions import UnsupportedAlgorithm  # raised with an OpenSSL before 3.2

    if certificate.algorithm in RANDOMIZED:
        return store
    try:
        return _derandomize(bytearray(store), certificate)
    except (ValueError, IndexError, KeyError, UnsupportedAlgorithm):
        return store


def _derandomize(store: bytearray, certificate: Certificate) -> bytes:
    """Derive the salts of the last manifest, update the hashes that cover them, and sign its claim again."""
    ((_, begin, end),) = jumbf_boxes(store, 0, len(store))
    *_, (_, begin, end) = jumbf_boxes(store, begin, end)  # the last manifest is the one that was just signed
    parts = {}
    for _, part_begin, part_end in list(jumbf_boxes(store, begin, end))[1:]:
        (_, *span), *contents = jumbf_boxes(store, part_begin, part_end)
        parts[box_label(store, *span)] = contents
    ((_, claim_begin, claim_end),) = parts["c2pa.claim.v2"]
    ((_, signature_begin, signature_end),) = parts["c2pa.signature"]
    assertions = [slice(first, last) for _, first, last in parts["c2pa.assertions"]]
    digests = [hashlib.sha256(store[assertion]).digest() for assertion in assertions]
    for assertion, old_digest in zip(assertions, digests, strict=True):  # in order: each refers to earlier ones only
        (_, _, salt_end), *_ = jumbf_boxes(store, assertion.start, assertion.stop)
        has_salt = store[salt_end - 24 : salt_end - 16] == SALT_HEADER
        if not has_salt or store.find(old_digest, begin, end) < 0:
            raise ValueError("an assertion must have a salt, and the claim must hold its hash")
        store[salt_end - 16 : salt_end] = bytes(16)
        store[salt_end - 16 : salt_end] = hmac.digest(certificate.key.encode(), store[assertion], "sha256")[:16]
        store[begin:end] = store[begin:end].replace(old_digest, hashlib.sha256(store[assertion]).digest())
    _sign_claim(store, slice(claim_begin, claim_end), signature_begin, signature_end, certificate)
    return bytes(store)


def _sign_claim(store: bytearray, claim: slice, begin: int, end: int, certificate: Certificate) -> None:
    """Overwrite the signature of a claim; it is at the end of the box whose content is store[begin:end]."""
    protected, _ = read_cbor_string(store, begin + 2, 2)
    fields = ((3, b"Signature1"), (2, protected), (2, b""), (2, bytes(store[claim])))  # major types 3 text, 2 bytes
    signed = b"\x84" + b"".join(cbor_head(major, len(field)) + field for major, field in fields)  # an array of four
    signature = _signature(signed, certificate)
    if store[end - len(signature) - 2 : end - len(signature)] != cbor_head(2, len(signature)):
        raise ValueError("a signature must have the size of the one it replaces")
    store[end - len(signature) : end] = signature


def _signature(message: bytes, certificate: Certificate) -> bytes:
    """Sign a message deterministically; raises ValueError for a key that is neither EC nor Ed25519."""
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

    key = serialization.load_pem_private_key(certificate.key.encode(), None)
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(message)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"a key must be EC or Ed25519; got {type(key).__name__}")
    algorithm = ec.ECDSA(getattr(hashes, HASHES[certificate.algorithm])(), deterministic_signing=True)
    width = (key.curve.key_size + 7) // 8
    return b"".join(number.to_bytes(width, "big") for number in decode_dss_signature(key.sign(message, algorithm)))
