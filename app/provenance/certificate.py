"""Load the signing certificate and the trust anchors; issue a certificate once per user where none is configured.

LONGTAKE_CERTIFICATE and LONGTAKE_KEY name the user's own certificate and key. LONGTAKE_TRUST names files of additional
trusted authorities. LONGTAKE_HOME is the private folder. `cryptography` is imported only where it is used.
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

from app.home import HOME, home, make_private_folder

if TYPE_CHECKING:
    from cryptography import x509

CERTIFICATE_VARIABLE, KEY_VARIABLE, TRUST_VARIABLE = "LONGTAKE_CERTIFICATE", "LONGTAKE_KEY", "LONGTAKE_TRUST"
CERTIFICATE_FOLDER, CHAIN_FILE, KEY_FILE, AUTHORITY_FILE = "certificate", "certificate.pem", "key.pem", "authority.pem"
VALID_YEARS = 20  # there is no trusted timestamp, so a signature is trusted no longer than its certificate is valid
CLOCK_SKEW = timedelta(days=1)  # the verifying machine's clock may be late


class ProvenanceError(ValueError):
    """A certificate or file is unusable; the message names the rule, the value given and the remedy."""


@dataclass(frozen=True)
class Certificate:
    """A certificate chain (PEM, leaf first), its private key (PEM), and C2PA's name for the signature algorithm."""

    chain: str
    key: str
    algorithm: str


def load_certificate() -> Certificate:
    """Load the certificate to sign with: the configured one, or this user's own, issued on first use.

    Raises ProvenanceError where only the certificate or only the key is configured, where they do not match, where the
    certificate has expired, and where none can be issued.
    """
    chain, key = os.environ.get(CERTIFICATE_VARIABLE), os.environ.get(KEY_VARIABLE)
    if bool(chain) != bool(key):
        given, missing = (CERTIFICATE_VARIABLE, KEY_VARIABLE) if chain else (KEY_VARIABLE, CERTIFICATE_VARIABLE)
        raise ProvenanceError(f"a certificate needs its key; got {given} without {missing}; set both")
    if chain and key:
        return _load_checked(
            Path(chain), Path(key), f"set {CERTIFICATE_VARIABLE} and {KEY_VARIABLE} to others, or unset both"
        )
    folder = _own_folder()
    return _load_checked(folder / CHAIN_FILE, folder / KEY_FILE, f"remove {folder} to have a new one issued")


def trust_anchors() -> str:
    """Return the trusted authorities as PEM: this machine's own, and those in the files named in LONGTAKE_TRUST.

    Raises ProvenanceError for a file without certificates.
    """
    own = home() / CERTIFICATE_FOLDER / AUTHORITY_FILE
    configured = [Path(path) for path in os.environ.get(TRUST_VARIABLE, "").split(os.pathsep) if path]
    remedies = {own: f"remove {own.parent} to have a new one issued"}
    remedy = f"correct {TRUST_VARIABLE}, a list of files separated by {os.pathsep!r}"
    chains = [_read_chain(path, remedies.get(path, remedy)) for path in ([own] if own.exists() else []) + configured]
    return "".join(_pem(certificate) for chain in chains for certificate in chain)


def _own_folder() -> Path:
    """Return the folder of this user's certificate; issue the certificate where there is none.

    The folder is renamed into place when it is complete. Of two processes that issue one at the same time, the later
    finds the folder of the earlier and uses it.
    """
    folder = home() / CERTIFICATE_FOLDER
    if folder.exists():
        return folder
    temporary = None
    try:
        make_private_folder(folder.parent)
        temporary = Path(tempfile.mkdtemp(prefix=f".{CERTIFICATE_FOLDER}-", dir=folder.parent))  # with mode 0700
        for name, text in _issue().items():
            with os.fdopen(os.open(temporary / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        try:
            os.rename(temporary, folder)
        except OSError:  # rename never replaces a folder with content
            if not folder.is_dir():
                raise
    except OSError as error:
        rule = f"signing needs a certificate, which is issued once, in {folder.parent}"
        raise ProvenanceError(f"{rule}; got {error.strerror or error}; set {HOME} to a folder of yours") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _issue() -> dict[str, str]:
    """Issue a certificate under an authority of its own; return file contents by name.

    C2PA refuses self-signed certificates, so an authority is needed. Its key is not stored: it signs only this
    certificate. Source: C2PA specification 2.2, certificate profile.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    authority_key, own_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    key_id = x509.SubjectKeyIdentifier.from_public_key(own_key.public_key()).digest.hex()[:8]
    organization = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "self-made")
    authority = x509.Name([organization, x509.NameAttribute(NameOID.COMMON_NAME, f"longtake authority {key_id}")])
    subject = x509.Name([organization, x509.NameAttribute(NameOID.COMMON_NAME, f"longtake {key_id}")])
    begin = datetime.now(UTC) - CLOCK_SKEW
    no_usage = dict.fromkeys(
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

    def signed(name: x509.Name, key: ec.EllipticCurvePublicKey, extensions: list) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder(issuer_name=authority, subject_name=name, public_key=key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + timedelta(days=365.25 * VALID_YEARS))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
            )
        )
        for extension in extensions:
            critical = not isinstance(extension, x509.ExtendedKeyUsage)
            builder = builder.add_extension(extension, critical)
        return builder.sign(authority_key, hashes.SHA256())

    root_extensions = [
        x509.BasicConstraints(ca=True, path_length=0),
        x509.KeyUsage(**no_usage | {"key_cert_sign": True}),
    ]
    leaf_extensions = [
        x509.BasicConstraints(ca=False, path_length=None),
        x509.KeyUsage(**no_usage | {"digital_signature": True}),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]),
    ]
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return {
        CHAIN_FILE: _pem(signed(subject, own_key.public_key(), leaf_extensions)),
        KEY_FILE: own_key.private_bytes(pem, pkcs8, serialization.NoEncryption()).decode(),
        AUTHORITY_FILE: _pem(signed(authority, authority_key.public_key(), root_extensions)),
    }


def _load_checked(chain: Path, key: Path, remedy: str) -> Certificate:
    """Load a certificate chain and its key; raises ProvenanceError where they cannot be used to sign."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import serialization

    certificates = _read_chain(chain, remedy)
    try:
        private_key = serialization.load_pem_private_key(key.read_bytes(), None)
    except Exception as error:  # of many types: a missing file, a password, an unknown kind of key
        reason = getattr(error, "strerror", None) or "it is none, or it is encrypted with a password"
        raise ProvenanceError(f"{key} must hold a private key as PEM: {reason}; {remedy}") from error
    der, spki = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    if certificates[0].public_key().public_bytes(der, spki) != private_key.public_key().public_bytes(der, spki):
        raise ProvenanceError(f"a certificate must match its key; {chain} and {key} do not match; {remedy}")
    now = datetime.now(UTC)
    for certificate in certificates:
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if not begin <= now <= end:
            got = f"{chain} expired on {end:%Y-%m-%d}" if now > end else f"{chain} is valid from {begin:%Y-%m-%d} on"
            raise ProvenanceError(f"a certificate must be valid today; {got}; {remedy}")
    if certificates[0].issuer == certificates[0].subject:
        raise ProvenanceError(f"a certificate must be signed by an authority; {chain} is signed by itself; {remedy}")
    try:
        for certificate, issuer in pairwise(certificates):
            certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError) as error:
        rule = "each certificate of a chain must be signed by the next, the leaf first"
        raise ProvenanceError(f"{rule}; those in {chain} are not; {remedy}") from error
    unencrypted = serialization.NoEncryption()
    pem = private_key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, unencrypted).decode()
    # The root is left out: a verifier has it already, or has no reason to trust it.
    embedded = [certificate for certificate in certificates if certificate.issuer != certificate.subject]
    return Certificate("".join(map(_pem, embedded)), pem, _c2pa_algorithm(private_key, key, remedy))


def _c2pa_algorithm(private_key: object, key: Path, remedy: str) -> str:
    """Return C2PA's signature algorithm for a private key (specification 2.2, digital signatures)."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(private_key, ec.EllipticCurvePrivateKey):
        algorithm = {256: "es256", 384: "es384", 521: "es512"}.get(private_key.curve.key_size)
    else:
        algorithm = "ps256" if isinstance(private_key, rsa.RSAPrivateKey) else None
        algorithm = "ed25519" if isinstance(private_key, ed25519.Ed25519PrivateKey) else algorithm
    if algorithm is None:
        raise ProvenanceError(f"a key must be EC (P-256, P-384, P-521), RSA or Ed25519; {key} is not; {remedy}")
    return algorithm


def _read_chain(path: Path, remedy: str) -> list[x509.Certificate]:
    """Read the certificates in a PEM file; raises ProvenanceError where it holds none."""
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it holds none"
        raise ProvenanceError(f"{path} must hold certificates as PEM: {reason}; {remedy}") from error


def _pem(certificate: x509.Certificate) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM).decode()
