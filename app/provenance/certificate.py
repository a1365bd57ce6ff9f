"""Who signs, and whom one believes: a certificate that is made here once for each user, or one's own.

LONGTAKE_CERTIFICATE and LONGTAKE_KEY name one's own, LONGTAKE_TRUST the files of authorities to believe beside that of
this machine, and LONGTAKE_HOME the private folder. Nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from app.home import HOME, home

if TYPE_CHECKING:
    from cryptography import x509

OWN_CERTIFICATE, OWN_KEY, TRUST = "LONGTAKE_CERTIFICATE", "LONGTAKE_KEY", "LONGTAKE_TRUST"
FOLDER, CHAIN, KEY, AUTHORITY = "certificate", "certificate.pem", "key.pem", "authority.pem"
YEARS = 20  # no authority stamps the time, so a signature is believed no longer than its certificate lasts
CLOCKS_APART = timedelta(days=1)  # a file may be verified where the clock is behind


class ProvenanceError(ValueError):
    """A certificate or a file that cannot be used: the rule, what was given, the remedy."""


@dataclass(frozen=True)
class Certificate:
    """A chain as PEM, the signer's own first, its key as PEM, and C2PA's name of the way in which it signs."""

    chain: str
    key: str
    algorithm: str


def certificate() -> Certificate:
    """Return the certificate to sign with: the one that is configured, or this user's own, which is made at first.

    Raises ProvenanceError where there is only half of one, it does not fit its key, has expired or cannot be made.
    """
    chain, key = os.environ.get(OWN_CERTIFICATE), os.environ.get(OWN_KEY)
    if bool(chain) != bool(key):
        given, missing = (OWN_CERTIFICATE, OWN_KEY) if chain else (OWN_KEY, OWN_CERTIFICATE)
        raise ProvenanceError(f"one's own certificate needs its key; got {given} without {missing}; set both")
    if chain and key:
        return _checked(Path(chain), Path(key), f"set {OWN_CERTIFICATE} and {OWN_KEY} to others, or to none")
    folder = _self_made()
    return _checked(folder / CHAIN, folder / KEY, f"remove {folder}, and another is made")


def anchors() -> str:
    """Return the authorities to believe, as PEM: that of this machine, and those in the files named in LONGTAKE_TRUST.

    Raises ProvenanceError for a file that holds none.
    """
    ours = home() / FOLDER / AUTHORITY
    named = [Path(path) for path in os.environ.get(TRUST, "").split(os.pathsep) if path]
    remedies = {ours: f"remove {ours.parent}, and another is made"}
    remedy = f"correct {TRUST}, a list of files with {os.pathsep!r} between them"
    found = [_certificates(path, remedies.get(path, remedy)) for path in ([ours] if ours.exists() else []) + named]
    return "".join(_pem(one) for several in found for one in several)


def _self_made() -> Path:
    """Return the folder of this user's certificate. It appears whole, so of two processes that make one at the same
    time the later finds the earlier's, and uses it.
    """
    folder = home() / FOLDER
    if folder.exists():
        return folder
    draft = None
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{FOLDER}-", dir=folder.parent))  # which is 0700
        for name, text in _fresh().items():
            with os.fdopen(os.open(draft / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        try:
            os.rename(draft, folder)
        except OSError:  # a folder that holds something is never replaced
            if not folder.is_dir():
                raise
    except OSError as error:
        rule = f"signing needs a certificate, which is made once in {folder.parent}"
        raise ProvenanceError(f"{rule}; got {error.strerror or error}; set {HOME} to a folder of yours") from error
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
    return folder


def _fresh() -> dict[str, str]:
    """Make a certificate under an authority of its own, as C2PA asks (self-signed ones it refuses), by file name.

    The authority's key is forgotten at once: it signs this one certificate and never another.
    Source: C2PA specification 2.2, the certificate profile.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    above, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    number = x509.SubjectKeyIdentifier.from_public_key(own.public_key()).digest.hex()[:8]
    organization = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "self-made")
    authority = x509.Name([organization, x509.NameAttribute(NameOID.COMMON_NAME, f"longtake authority {number}")])
    name = x509.Name([organization, x509.NameAttribute(NameOID.COMMON_NAME, f"longtake {number}")])
    begin = datetime.now(UTC) - CLOCKS_APART
    uses = dict.fromkeys(
        [
            "digital_signature",
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "key_cert_sign",
            "crl_sign",
            "encipher_only",
            "decipher_only",
        ],
        False,
    )

    def signed(subject: x509.Name, key: ec.EllipticCurvePublicKey, extensions: list) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder(issuer_name=authority, subject_name=subject, public_key=key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + timedelta(days=365.25 * YEARS))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(above.public_key()), critical=False)
        )
        for extension in extensions:
            critical = not isinstance(extension, x509.ExtendedKeyUsage)
            builder = builder.add_extension(extension, critical)
        return builder.sign(above, hashes.SHA256())

    top = [x509.BasicConstraints(ca=True, path_length=0), x509.KeyUsage(**uses | {"key_cert_sign": True})]
    leaf = [
        x509.BasicConstraints(ca=False, path_length=None),
        x509.KeyUsage(**uses | {"digital_signature": True}),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]),
    ]
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return {
        CHAIN: _pem(signed(name, own.public_key(), leaf)),
        KEY: own.private_bytes(pem, pkcs8, serialization.NoEncryption()).decode(),
        AUTHORITY: _pem(signed(authority, above.public_key(), top)),
    }


def _checked(chain: Path, key: Path, remedy: str) -> Certificate:
    """Read a chain and its key; raises ProvenanceError where they cannot be used."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import serialization

    found = _certificates(chain, remedy)
    try:
        secret = serialization.load_pem_private_key(key.read_bytes(), None)
    except Exception as error:  # of many kinds: a missing file, a password, a key of another kind
        reason = getattr(error, "strerror", None) or "it is none, or it is locked with a password"
        raise ProvenanceError(f"{key} must hold a private key as PEM: {reason}; {remedy}") from error
    public, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    if found[0].public_key().public_bytes(public, form) != secret.public_key().public_bytes(public, form):
        raise ProvenanceError(f"a certificate must fit its key; {chain} and {key} are not a pair; {remedy}")
    now = datetime.now(UTC)
    for one in found:
        begin, end = one.not_valid_before_utc, one.not_valid_after_utc
        if not begin <= now <= end:
            got = f"{chain} expired on {end:%Y-%m-%d}" if now > end else f"{chain} is valid from {begin:%Y-%m-%d} on"
            raise ProvenanceError(f"a certificate must be valid today; {got}; {remedy}")
    if found[0].issuer == found[0].subject:
        raise ProvenanceError(f"a certificate must be signed by an authority; {chain} is signed by itself; {remedy}")
    try:
        for below, above in pairwise(found):
            below.verify_directly_issued_by(above)
    except (InvalidSignature, ValueError, TypeError) as error:
        rule = "each certificate of a chain must be signed by the next, one's own first"
        raise ProvenanceError(f"{rule}; those in {chain} are not; {remedy}") from error
    plain = serialization.NoEncryption()
    text = secret.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain).decode()
    # The root stays out: who verifies has it, or has no reason to believe it.
    sent = [one for one in found if one.issuer != one.subject]
    return Certificate("".join(map(_pem, sent)), text, _algorithm(secret, key, remedy))


def _algorithm(secret, key: Path, remedy: str) -> str:
    """Name the way of signing that C2PA has for a kind of key (specification 2.2, digital signatures)."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(secret, ec.EllipticCurvePrivateKey):
        found = {256: "es256", 384: "es384", 521: "es512"}.get(secret.curve.key_size)
    else:
        found = "ps256" if isinstance(secret, rsa.RSAPrivateKey) else None
        found = "ed25519" if isinstance(secret, ed25519.Ed25519PrivateKey) else found
    if found is None:
        raise ProvenanceError(f"a key must be of EC (P-256, P-384, P-521), RSA or Ed25519; {key} is not; {remedy}")
    return found


def _certificates(path: Path, remedy: str) -> list[x509.Certificate]:
    """Read the certificates in a PEM file; raises ProvenanceError where there are none."""
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it holds none"
        raise ProvenanceError(f"{path} must hold certificates as PEM: {reason}; {remedy}") from error


def _pem(certificate: x509.Certificate) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM).decode()
