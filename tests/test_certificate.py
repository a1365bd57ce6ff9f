"""Signing uses a certificate issued here once, or the user's own; verifying trusts the configured authorities."""

import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from app.provenance.certificate import (
    AUTHORITY_FILE,
    CERTIFICATE_FOLDER,
    CHAIN_FILE,
    KEY_FILE,
    ProvenanceError,
    load_certificate,
    trust_anchors,
)
from app.provenance.credentials import check_signing, sign, sign_in_process
from app.provenance.verification import TRUSTED, VALID
from tests.test_provenance import (
    REQUEST,
    states_after_flips,
    unhashed_offsets,
    verdict_of,
    write_signed,
    write_unsigned,
)


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def isolated_home(monkeypatch, shared_home):
    """Isolate the tests from the certificate and the folders of whoever runs them."""
    for name in ("CERTIFICATE", "KEY", "TRUST"):
        monkeypatch.delenv(f"LONGTAKE_{name}", raising=False)
    monkeypatch.setenv("LONGTAKE_HOME", str(shared_home))


def test_a_file_is_valid_where_its_signer_is_unknown_and_trusted_where_its_authority_is(
    tmp_path, monkeypatch, shared_home
):
    path = write_signed(tmp_path / "clip.mp4")
    monkeypatch.setenv("LONGTAKE_HOME", str(tmp_path / "elsewhere"))
    assert verdict_of(path).state == VALID and not (tmp_path / "elsewhere").exists()
    monkeypatch.setenv("LONGTAKE_TRUST", str(shared_home / CERTIFICATE_FOLDER / AUTHORITY_FILE))
    assert verdict_of(path).state == TRUSTED
    (tmp_path / "none.pem").write_text("none")
    monkeypatch.setenv("LONGTAKE_TRUST", str(tmp_path / "none.pem"))
    with pytest.raises(ProvenanceError, match=r"none.pem must hold certificates as PEM: .*; correct LONGTAKE_TRUST"):
        trust_anchors()


def test_a_certificate_is_issued_once_and_privately_even_by_many_processes_at_once(tmp_path, monkeypatch):
    home = tmp_path / "deep" / "home"
    monkeypatch.setenv("LONGTAKE_HOME", str(home))
    code = "from app.provenance.certificate import load_certificate; print(load_certificate())"
    many = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(6)]
    assert len({one.communicate()[0] for one in many} | {f"{load_certificate()}\n"}) == 1
    assert [path.name for path in home.iterdir()] == [CERTIFICATE_FOLDER]
    assert (home / CERTIFICATE_FOLDER).stat().st_mode & 0o777 == home.stat().st_mode & 0o777 == 0o700
    assert (home / CERTIFICATE_FOLDER / KEY_FILE).stat().st_mode & 0o777 == 0o600
    before = {path.name: path.read_bytes() for path in (home / CERTIFICATE_FOLDER).iterdir()}
    assert set(before) == {CHAIN_FILE, KEY_FILE, AUTHORITY_FILE} and load_certificate() == load_certificate()
    assert before == {path.name: path.read_bytes() for path in (home / CERTIFICATE_FOLDER).iterdir()}
    (home / CERTIFICATE_FOLDER / KEY_FILE).unlink()
    with pytest.raises(ProvenanceError, match=r"remove .*certificate to have a new one issued"):
        load_certificate()


def test_the_certificate_is_in_the_data_folder_where_no_home_is_set(tmp_path, monkeypatch):
    monkeypatch.delenv("LONGTAKE_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    load_certificate()
    assert (tmp_path / "longtake" / CERTIFICATE_FOLDER / KEY_FILE).is_file()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LONGTAKE_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(ProvenanceError, match="set LONGTAKE_HOME to a folder of yours"):
        load_certificate()


@pytest.fixture
def own_certificate(tmp_path, monkeypatch):
    """Write and configure a user's own certificate, as an authority would issue it."""

    def write(key=None, ends=timedelta(days=9), begins=timedelta(days=-1), usage="EMAIL_PROTECTION", alone=False):
        now, key, above = datetime.now(UTC), key or ec.generate_private_key(ec.SECP256R1()), None
        chain = []
        for name, secret in (("Root", ec.generate_private_key(ec.SECP256R1())), ("Jane Roe", key)):
            top = name == "Root"
            signer, issuer = (secret, name) if top or alone else above
            builder = (
                x509.CertificateBuilder(
                    *(
                        x509.Name(
                            [
                                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "ACME"),
                                x509.NameAttribute(NameOID.COMMON_NAME, who),
                            ]
                        )
                        for who in (issuer, name)
                    )
                )
                .public_key(secret.public_key())
                .serial_number(x509.random_serial_number())
                .not_valid_before(now + begins)
                .not_valid_after(now + (timedelta(days=99) if top else ends))
                .add_extension(x509.BasicConstraints(top, None), True)
                .add_extension(x509.SubjectKeyIdentifier.from_public_key(secret.public_key()), False)
                .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False)
                .add_extension(x509.KeyUsage(not top, *(False,) * 4, top, *(False,) * 3), True)
            )
            if not top:
                builder = builder.add_extension(x509.ExtendedKeyUsage([getattr(ExtendedKeyUsageOID, usage)]), False)
            chain.insert(0, builder.sign(signer, hashes.SHA256()))
            above = secret, name
        pem = serialization.Encoding.PEM
        (tmp_path / "own.pem").write_bytes(b"".join(one.public_bytes(pem) for one in chain))
        (tmp_path / "root.pem").write_bytes(chain[-1].public_bytes(pem))
        plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        (tmp_path / "own.key").write_bytes(key.private_bytes(pem, *plain))
        monkeypatch.setenv("LONGTAKE_CERTIFICATE", str(tmp_path / "own.pem"))
        monkeypatch.setenv("LONGTAKE_KEY", str(tmp_path / "own.key"))

    return write


def test_a_users_own_certificate_signs_and_is_trusted_where_its_authority_is(tmp_path, monkeypatch, own_certificate):
    keys = (
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP384R1()),
        rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate(),
    )
    for key in keys:
        own_certificate(key)
        monkeypatch.delenv("LONGTAKE_TRUST", raising=False)
        check_signing()
        path = write_signed(tmp_path / "clip.png")
        assert (verdict_of(path).state, verdict_of(path).signer) == (VALID, "Jane Roe (ACME)")
        monkeypatch.setenv("LONGTAKE_TRUST", str(tmp_path / "root.pem"))
        assert verdict_of(path).state == TRUSTED
        states_after_flips(path, unhashed_offsets(path.read_bytes()).values())


def test_a_certificate_that_cannot_sign_is_refused_in_one_sentence(tmp_path, monkeypatch, own_certificate):
    def refused(sentence: str) -> None:
        with pytest.raises(ProvenanceError, match=sentence) as raised:
            check_signing()
        assert "\n" not in str(raised.value)

    own_certificate(ends=timedelta(seconds=-1))
    refused(rf"valid today; .*own.pem expired on {datetime.now(UTC):%Y}.*; set LONGTAKE_CERTIFICATE")
    own_certificate(begins=timedelta(hours=1))
    refused("valid today; .*own.pem is valid from")
    own_certificate(alone=True)
    refused("must be signed by an authority; .*own.pem is signed by itself")
    own_certificate()
    leaf = (tmp_path / "own.pem").read_text().split("-----BEGIN")[1]
    key = (tmp_path / "own.key").read_bytes()
    own_certificate()
    (tmp_path / "own.pem").write_text(f"-----BEGIN{leaf}" + (tmp_path / "root.pem").read_text())
    (tmp_path / "own.key").write_bytes(key)
    refused("must be signed by the next, the leaf first; those in .*own.pem are not")
    own_certificate(usage="SERVER_AUTH")
    refused("emailProtection; got .*own.pem: ")
    own_certificate()
    key = (tmp_path / "own.key").read_bytes()
    own_certificate()
    (tmp_path / "own.key").write_bytes(key)
    refused("a certificate must match its key; .*own.pem and .*own.key do not match")
    (tmp_path / "own.key").write_text("none")
    refused("own.key must hold a private key as PEM")
    (tmp_path / "own.pem").unlink()
    refused("own.pem must hold certificates as PEM: No such file")
    monkeypatch.delenv("LONGTAKE_KEY")
    refused("LONGTAKE_CERTIFICATE without LONGTAKE_KEY; set both")


@pytest.mark.slow
def test_a_signature_is_valid_but_not_trusted_after_its_certificate_expires(tmp_path, monkeypatch, own_certificate):
    own_certificate(ends=timedelta(seconds=4))
    end = time.monotonic() + 4
    monkeypatch.setenv("LONGTAKE_TRUST", str(tmp_path / "root.pem"))
    path = write_signed(tmp_path / "clip.png")
    time.sleep(max(0, end - time.monotonic()) + 1)
    assert (verdict_of(path).state, verdict_of(path).why) == (VALID, "its certificate has expired")
    states_after_flips(path, (20, path.stat().st_size - 20))


def test_a_file_that_cannot_be_signed_is_unchanged(tmp_path, own_certificate):
    path = write_unsigned(tmp_path / "clip.mp4")
    before = path.read_bytes()
    own_certificate(usage="SERVER_AUTH")
    left = sorted(tmp_path.iterdir())
    with pytest.raises(ProvenanceError, match=r"clip.mp4 cannot be signed: .*; it stays as it was"):
        sign_in_process(path, REQUEST, load_certificate(), trust_anchors())
    assert path.read_bytes() == before and sorted(tmp_path.iterdir()) == left
    with pytest.raises(ProvenanceError, match="must end in one of"):
        sign(tmp_path / "clip.avi", REQUEST)


def test_signing_is_deterministic_with_every_key_except_rsa(tmp_path, own_certificate):
    curves = (ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1())
    keys = [*map(ec.generate_private_key, curves), ed25519.Ed25519PrivateKey.generate()]
    for key in (*keys, rsa.generate_private_key(65537, 2048)):
        own_certificate(key)
        one, another = (write_signed(tmp_path / "clip.png").read_bytes() for _ in range(2))
        assert (one == another) == (key in keys) and verdict_of(tmp_path / "clip.png").state == VALID
