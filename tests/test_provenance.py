"""What longtake writes says who made it, with what and from what; and a changed byte shows, wherever it is."""

import argparse
import io
import json
import random
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import av
import c2pa
import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from PIL import Image

from app import provenance
from app.badge import badge, mark
from app.certificate import AUTHORITY, CHAIN, FOLDER, KEY, ProvenanceError, anchors, certificate
from app.cli import main
from app.prepare import PARTLY
from app.provenance import (
    TAMPERED,
    TRUSTED,
    UNSIGNED,
    VALID,
    Verdict,
    check_signing,
    credentials_of,
    sign,
    sign_here,
    verify,
    verify_here,
)
from app.verify import add_verify
from dit.request import CORNERS, Moment, Request
from dit.request import KEY as WORDS
from tests.test_media import smooth_clip
from vae.media import read_metadata, read_picture, read_video, write_picture, write_video
from vae.pixels import MediaError

SUFFIXES = (".mp4", ".webm", ".mkv", ".gif", ".png", ".webp")
REQUEST = Request(
    prompt='一只红色的球 "rolls" 🎬', seed=7, model="first", model_hash="0a1b2c3d", size=(64, 64), seconds=2.0
)


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def at_home(monkeypatch, ours):
    """Keep the certificate of whoever runs the tests out of them, and them out of their folders."""
    for name in ("CERTIFICATE", "KEY", "TRUST"):
        monkeypatch.delenv(f"LONGTAKE_{name}", raising=False)
    monkeypatch.setenv("LONGTAKE_HOME", str(ours))


def written(path: Path, request: Request = REQUEST) -> Path:
    """Write a clip of 17 frames or a picture, with its words, as rendering does; not signed yet."""
    clip, words = smooth_clip()[:, :17], {WORDS: request.to_json()}
    if path.suffix == ".webp":
        Image.fromarray(((clip[:, 0] + 1) * 127.5).byte().permute(1, 2, 0).numpy()).save(path, lossless=True)
    elif path.suffix == ".png":
        write_picture(path, clip[:, 0], metadata=words)
    else:
        write_video(path, clip, 8, metadata=words)
    return path


def signed(path: Path, request: Request = REQUEST) -> Path:
    sign_here(written(path, request), request, certificate(), anchors())
    return path


def judged(path: Path) -> Verdict:
    return Verdict(**verify_here(path, anchors()))


def shown(path: Path) -> str:
    """Return what a changed file is found to be: its state, or broken where it cannot even be read."""
    try:
        return judged(path).state
    except (ProvenanceError, MediaError) as error:
        assert str(path.name) in str(error) and "\n" not in str(error)
        return "broken"


def flipped(path: Path, places, bit: int = 1) -> set[str]:
    """Return what is shown of a file with one byte changed, over all places; the file itself stays as it is."""
    whole, found = path.read_bytes(), set()
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
        found |= {(shown(path if path.suffix != ".c2pa" else path.with_suffix("")), place)}
    path.write_bytes(whole)
    assert {state for state, _ in found} <= {TAMPERED}, found
    return {state for state, _ in found}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_signed_is_trusted_here_and_says_who_made_it_with_what(tmp_path, suffix):
    path = signed(tmp_path / f"clip{suffix}")
    found = judged(path)
    assert (found.state, found.why, found.by_model) == (TRUSTED, None, True)
    assert found.signer.startswith("longtake ") and found.signer.endswith(" (self-made)")
    assert found.program.split()[0] == "longtake"
    assert (found.model, found.model_hash, found.ingredients) == ("first", "0a1b2c3d", ())
    for word in ("signed by longtake", "made by an AI model", "model first 0a1b2c3d"):
        assert word in found.sentence
    inside = suffix not in (".webm", ".mkv")
    assert credentials_of(path) == (path if inside else tmp_path / f"clip{suffix}.c2pa")
    assert not [left for left in tmp_path.iterdir() if left.name.endswith(".part")]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_signing_changes_no_pixel_and_no_word(tmp_path, suffix):
    path = written(tmp_path / f"clip{suffix}")
    see = read_picture if suffix in (".png", ".webp") else lambda path: read_video(path).video
    words = (lambda path: None) if suffix == ".webp" else read_metadata
    before = see(path), words(path)
    sign_here(path, REQUEST, certificate(), anchors())
    assert torch.equal(see(path), before[0]) and words(path) == before[1]


def test_signing_and_verifying_in_a_child_are_the_same(tmp_path):
    path, other = written(tmp_path / "clip.mp4"), written(tmp_path / "other.webm")
    assert verify(path).state == UNSIGNED
    assert sign(path, REQUEST) == path
    assert verify(path) == judged(path) and verify(path).state == TRUSTED
    assert sign(other, replace(REQUEST, mode="extend", clip=str(path))) == credentials_of(other)
    assert judged(other).state == TRUSTED and judged(other).ingredients == (("clip.mp4", "signed"),)
    with pytest.raises(MediaError):
        verify(tmp_path / "missing.mp4")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_one_changed_byte_shows_wherever_it_is(tmp_path, suffix):
    path = signed(tmp_path / f"clip{suffix}")
    size, draw = path.stat().st_size, random.Random(suffix)
    assert flipped(path, (0, size - 1, *(draw.randrange(size) for _ in range(24)))) == {TAMPERED}
    assert flipped(path, (draw.randrange(size) for _ in range(8)), bit=128) == {TAMPERED}
    assert judged(path).state == TRUSTED


@pytest.mark.parametrize("suffix", [".webm", ".mkv"])
def test_one_changed_byte_of_the_credentials_beside_a_file_shows(tmp_path, suffix):
    beside = credentials_of(signed(tmp_path / f"clip{suffix}"))
    size, draw = beside.stat().st_size, random.Random(suffix)
    flipped(beside, (0, size - 1, *(draw.randrange(size) for _ in range(24))))
    (tmp_path / f"other{suffix}").write_bytes((tmp_path / f"clip{suffix}").read_bytes() + b"\0")
    beside.rename(tmp_path / f"other{suffix}.c2pa")  # credentials of another file
    assert judged(tmp_path / f"other{suffix}").state == TAMPERED


def overlooked(data: bytes) -> dict[str, int]:
    """Find bytes that C2PA's own hashes leave out, by what they are."""
    return {
        "the size of all": data.index(b"jumb") - 4,
        "the name of one box": data.index(b"\x03c2pa.assertions\0") + 3,
        "the name of another": data.index(b"\x03c2pa.signature\0") + 3,
        "padding": data.rindex(b"cpadY") + 200,
    }


@pytest.mark.parametrize("suffix", [".mp4", ".png", ".webp"])
def test_a_changed_byte_that_c2pa_overlooks_shows_as_well(tmp_path, suffix):
    path = signed(tmp_path / f"clip{suffix}")
    data = path.read_bytes()
    places = overlooked(data)
    if suffix == ".mp4":
        places |= {"its first box": 9, "what frames the credentials": data.index(b"manifest\0") + 12}
    if suffix == ".png":
        begin = data.index(b"caBX")
        places["a checksum"] = begin + 4 + int.from_bytes(data[begin - 4 : begin], "big") + 1
    kind, settings = provenance.KINDS[suffix], provenance._context(anchors())
    for what, place in places.items():
        changed = io.BytesIO(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        assert c2pa.Reader(kind, changed, context=settings).get_validation_state() == "Trusted", what  # by the letter
    flipped(path, places.values())
    flipped(path, (data.index(b"\x13longtake.rest\0"), data.index(b"\x13c2pa.actions")), bit=64)  # flags of no meaning


def test_a_name_is_no_part_of_what_is_signed(tmp_path):
    for suffix, other in ((".mp4", ".mov"), (".png", ".mp4"), (".gif", ".png"), (".webp", ".webp.txt")):
        path = signed(tmp_path / f"clip{suffix}")
        assert judged(path.rename(tmp_path / f"renamed{other}")).state == TRUSTED


def test_a_remux_shows(tmp_path):
    for suffix, state in ((".mp4", UNSIGNED), (".webm", TAMPERED), (".mkv", TAMPERED)):
        path, other = signed(tmp_path / f"clip{suffix}"), tmp_path / f"remux{suffix}"
        with av.open(str(path)) as source, av.open(str(other), "w") as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    target.mux(packet)
        if credentials_of(path) != path:
            credentials_of(path).rename(credentials_of(other))
        assert judged(other).state == state


def test_an_edit_shows(tmp_path):
    film = signed(tmp_path / "clip.mp4")
    data = film.read_bytes()
    film.write_bytes(data.replace(b'"seed": 7', b'"seed": 8'))
    assert read_metadata(film) and judged(film).state == TAMPERED
    film.write_bytes(data + b"\0\0\0\x08free")
    assert judged(film).state == TAMPERED
    moving = signed(tmp_path / "clip.gif")
    words = moving.with_name("clip.gif.json")
    words.write_text(words.read_text("utf-8").replace("red", "blue"), "utf-8")
    assert judged(moving).state == TRUSTED  # there was no such word
    words.write_text(words.read_text("utf-8").replace("rolls", "falls"), "utf-8")
    assert judged(moving).state == TAMPERED
    words.unlink()  # a GIF may travel without
    assert judged(moving).state == TRUSTED
    picture = signed(tmp_path / "clip.png")
    Image.open(picture).save(picture)
    assert judged(picture).state == UNSIGNED


def test_inputs_are_ingredients_with_their_own_credentials(tmp_path):
    names = ("film.mp4", "beside.webm", "moving.gif", "still.png")
    film, beside, moving, still = (signed(tmp_path / name) for name in names)
    plain, changed, torn = (tmp_path / name for name in ("plain.mkv", "changed.png", "torn.mp4"))
    written(plain)
    changed.write_bytes(still.read_bytes()[:-20] + b"x" + still.read_bytes()[-19:])
    torn.write_bytes(film.read_bytes()[: film.stat().st_size // 2])
    pictures = enumerate(map(str, (still, moving, changed, torn, beside, plain, tmp_path / "gone.png", still)))
    made = signed(tmp_path / "made.mp4", replace(REQUEST, mode="keyframes", pictures=tuple(pictures)))
    assert judged(made).state == TRUSTED
    assert dict(judged(made).ingredients) == {
        "still.png": "signed",
        "moving.gif": "signed",
        "beside.webm": "signed",
        "plain.mkv": UNSIGNED,
        "changed.png": TAMPERED,
        "torn.mp4": TAMPERED,
        "gone.png": "gone",
    }
    assert len(judged(made).ingredients) == 7 and "from gone.png (gone), still.png (signed)" in judged(made).sentence
    report = json.loads(c2pa.Reader("video/mp4", io.BytesIO(made.read_bytes())).json())
    active = report["manifests"][report["active_manifest"]]
    (actions,) = (one["data"]["actions"] for one in active["assertions"] if one["label"] == "c2pa.actions.v2")
    assert [one["action"] for one in actions] == ["c2pa.created", "c2pa.edited"]
    assert actions[0]["digitalSourceType"].endswith("/trainedAlgorithmicMedia")
    assert len(actions[1]["parameters"]["ingredients"]) == 7
    draw = random.Random(0)
    begin = made.read_bytes().index(b"jumb")
    flipped(made, (draw.randrange(begin, begin + 30_000) for _ in range(24)))
    again = signed(tmp_path / "again.webm", replace(REQUEST, mode="extend", clip=str(made)))
    assert judged(again).ingredients == (("made.mp4", "signed"),)


def test_every_file_that_a_mode_reads_is_an_ingredient_and_no_other(tmp_path):
    for number, name in enumerate("abcdef"):
        write_picture(tmp_path / f"{name}.png", torch.full((3, 8, 8), number / 10))
    a, b, c, d, e, f = (str(tmp_path / f"{name}.png") for name in "abcdef")
    moments = (Moment(0, "a ball", image=d), Moment(1, "a cube", clip=e), Moment(2, "a ball", image=d))
    whole = replace(REQUEST, image=a, clip=b, other=c, mask=f, pictures=((0.0, d),), moments=moments)
    for mode, names in (
        ("text-to-video", ""),
        ("image-to-video", "a"),
        ("connect", "bc"),
        ("inpaint", "bf"),
        ("keyframes", "d"),
        ("storyboard", "de"),
    ):
        sources = [path.stem for path, _, _ in provenance._sources(replace(whole, mode=mode))]
        assert sources == list(names), mode


def test_a_clip_that_replaced_its_own_input_tells_that_it_is_gone(tmp_path):
    path = written(tmp_path / "clip.png")
    digest = next(iter(provenance._sources(replace(REQUEST, mode="image-to-video", image=str(path)))))[1]
    request = replace(REQUEST, mode="image-to-video", image=str(path), hashes=((str(path), "0" * 64),))
    assert signed(path, request) and judged(path).ingredients == (("clip.png", "gone"),)
    assert digest != "sha256:" + "0" * 64


def test_who_does_not_know_the_signer_finds_a_file_valid_and_who_trusts_its_authority_trusted(
    tmp_path, monkeypatch, ours
):
    path = signed(tmp_path / "clip.mp4")
    monkeypatch.setenv("LONGTAKE_HOME", str(tmp_path / "elsewhere"))
    assert judged(path).state == VALID and not (tmp_path / "elsewhere").exists()
    monkeypatch.setenv("LONGTAKE_TRUST", str(ours / FOLDER / AUTHORITY))
    assert judged(path).state == TRUSTED
    (tmp_path / "none.pem").write_text("none")
    monkeypatch.setenv("LONGTAKE_TRUST", str(tmp_path / "none.pem"))
    with pytest.raises(ProvenanceError, match=r"none.pem must hold certificates as PEM: .*; correct LONGTAKE_TRUST"):
        anchors()


def test_a_certificate_is_made_once_and_privately_also_by_many_at_once(tmp_path, monkeypatch):
    home = tmp_path / "deep" / "home"
    monkeypatch.setenv("LONGTAKE_HOME", str(home))
    code = "from app.certificate import certificate; print(certificate())"
    many = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(6)]
    assert len({one.communicate()[0] for one in many} | {f"{certificate()}\n"}) == 1
    assert [path.name for path in home.iterdir()] == [FOLDER]
    assert (home / FOLDER).stat().st_mode & 0o777 == home.stat().st_mode & 0o777 == 0o700
    assert (home / FOLDER / KEY).stat().st_mode & 0o777 == 0o600
    before = {path.name: path.read_bytes() for path in (home / FOLDER).iterdir()}
    assert set(before) == {CHAIN, KEY, AUTHORITY} and certificate() == certificate()
    assert before == {path.name: path.read_bytes() for path in (home / FOLDER).iterdir()}
    (home / FOLDER / KEY).unlink()
    with pytest.raises(ProvenanceError, match=r"remove .*certificate, and another is made"):
        certificate()


def test_a_certificate_lies_in_the_data_folder_where_no_home_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("LONGTAKE_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    certificate()
    assert (tmp_path / "longtake" / FOLDER / KEY).is_file()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LONGTAKE_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(ProvenanceError, match="set LONGTAKE_HOME to a folder of yours"):
        certificate()


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Write a certificate of one's own, as an authority would give it, and configure it."""

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


def test_ones_own_certificate_signs_and_is_trusted_where_its_authority_is(tmp_path, monkeypatch, own):
    keys = (
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP384R1()),
        rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate(),
    )
    for key in keys:
        own(key)
        monkeypatch.delenv("LONGTAKE_TRUST", raising=False)
        check_signing()
        path = signed(tmp_path / "clip.png")
        assert (judged(path).state, judged(path).signer) == (VALID, "Jane Roe (ACME)")
        monkeypatch.setenv("LONGTAKE_TRUST", str(tmp_path / "root.pem"))
        assert judged(path).state == TRUSTED
        flipped(path, overlooked(path.read_bytes()).values())


def test_a_certificate_that_cannot_sign_is_refused_in_one_sentence(tmp_path, monkeypatch, own):
    def refused(sentence: str) -> None:
        with pytest.raises(ProvenanceError, match=sentence) as raised:
            check_signing()
        assert "\n" not in str(raised.value)

    own(ends=timedelta(seconds=-1))
    refused(rf"valid today; .*own.pem expired on {datetime.now(UTC):%Y}.*; set LONGTAKE_CERTIFICATE")
    own(begins=timedelta(hours=1))
    refused("valid today; .*own.pem is valid from")
    own(alone=True)
    refused("must be signed by an authority; .*own.pem is signed by itself")
    own()
    leaf = (tmp_path / "own.pem").read_text().split("-----BEGIN")[1]
    key = (tmp_path / "own.key").read_bytes()
    own()
    (tmp_path / "own.pem").write_text(f"-----BEGIN{leaf}" + (tmp_path / "root.pem").read_text())
    (tmp_path / "own.key").write_bytes(key)
    refused("must be signed by the next, one's own first; those in .*own.pem are not")
    own(usage="SERVER_AUTH")
    refused("emailProtection; got .*own.pem: ")
    own()
    key = (tmp_path / "own.key").read_bytes()
    own()
    (tmp_path / "own.key").write_bytes(key)
    refused("a certificate must fit its key; .*own.pem and .*own.key are not a pair")
    (tmp_path / "own.key").write_text("none")
    refused("own.key must hold a private key as PEM")
    (tmp_path / "own.pem").unlink()
    refused("own.pem must hold certificates as PEM: No such file")
    monkeypatch.delenv("LONGTAKE_KEY")
    refused("LONGTAKE_CERTIFICATE without LONGTAKE_KEY; set both")


def test_a_signature_outlives_its_certificate_as_valid_only(tmp_path, monkeypatch, own):
    own(ends=timedelta(seconds=4))
    end = time.monotonic() + 4
    monkeypatch.setenv("LONGTAKE_TRUST", str(tmp_path / "root.pem"))
    path = signed(tmp_path / "clip.png")
    time.sleep(max(0, end - time.monotonic()) + 1)
    assert (judged(path).state, judged(path).why) == (VALID, "its certificate has expired")
    flipped(path, (20, path.stat().st_size - 20))


def test_a_file_that_cannot_be_signed_stays_as_it_was(tmp_path, own):
    path = written(tmp_path / "clip.mp4")
    before = path.read_bytes()
    own(usage="SERVER_AUTH")
    left = sorted(tmp_path.iterdir())
    with pytest.raises(ProvenanceError, match=r"clip.mp4 cannot be signed: .*; it stays as it was"):
        sign_here(path, REQUEST, certificate(), anchors())
    assert path.read_bytes() == before and sorted(tmp_path.iterdir()) == left
    with pytest.raises(ProvenanceError, match="must end in one of"):
        sign(tmp_path / "clip.avi", REQUEST)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_without_credentials_is_unsigned_and_a_torn_one_is_never_whole(tmp_path, suffix):
    path = written(tmp_path / f"clip{suffix}")
    assert judged(path) == Verdict(UNSIGNED) and judged(path).sentence == ""
    sign_here(path, REQUEST, certificate(), anchors())
    whole = path.read_bytes()
    for share in (0.01, 0.3, 0.6, 0.99):
        path.write_bytes(whole[: int(share * len(whole))])
        assert shown(path) in (TAMPERED, "broken")
    path.write_bytes(whole[:-1])
    assert shown(path) == TAMPERED


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".jpg", ".txt"])
def test_what_is_no_film_or_picture_is_refused_in_one_sentence(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    path.write_text("no film, no picture\n" * 9)
    with pytest.raises(ProvenanceError, match=rf"clip{suffix} must be a film or picture, .*; choose another"):
        judged(path)
    path.write_text("")
    with pytest.raises(MediaError, match="is empty"):
        judged(path)
    with pytest.raises(MediaError, match="folder"):
        judged(tmp_path)


def test_broken_credentials_beside_a_file_are_refused_in_one_sentence(tmp_path):
    path = signed(tmp_path / "clip.webm")
    beside = credentials_of(path)
    for text in ("no credentials", '{"format": "c2pa"}'):
        beside.write_text(text)
        with pytest.raises(ProvenanceError, match=r"clip.webm.c2pa must hold the credentials of clip.webm; .*; fetch"):
            judged(path)
    beside.write_text("")
    with pytest.raises(MediaError, match=r"clip.webm.c2pa is empty"):
        judged(path)
    beside.unlink()
    assert judged(path).state == UNSIGNED


def test_an_address_in_a_file_is_not_called(tmp_path):
    called = []

    class Listener(BaseHTTPRequestHandler):
        def do_GET(self):
            called.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Listener) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        claim = {"actions": [{"action": "c2pa.created", "digitalSourceType": provenance.BY_MODEL}]}
        builder = c2pa.Builder({"assertions": [{"label": "c2pa.actions.v2", "data": claim}]})
        builder.set_no_embed()
        builder.set_remote_url(f"http://127.0.0.1:{server.server_port}/elsewhere.c2pa")
        path = written(tmp_path / "clip.png")
        with provenance._signer(certificate()) as signer, path.open("rb") as source:
            found = io.BytesIO()
            builder.sign(signer, "image/png", source, found)
        path.write_bytes(found.getvalue())
        verdict = judged(path)
        server.shutdown()
    assert verdict.state == UNSIGNED and "elsewhere.c2pa, which were not fetched" in verdict.why and not called


def command(*words) -> int:
    top = argparse.ArgumentParser()
    add_verify(top.add_subparsers())
    chosen = top.parse_args(["verify", *map(str, words)])
    return chosen.act(chosen)


def test_the_command_says_a_line_for_each_file(tmp_path, capsys):
    one, two = signed(tmp_path / "one.png"), signed(tmp_path / "two.webm")
    assert command(one, two) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[:2] for line in lines] == [[str(one), TRUSTED], [str(two), TRUSTED]]
    assert all("made by an AI model; model first 0a1b2c3d" in line for line in lines)
    plain = written(tmp_path / "plain\n.png")
    two.write_bytes(two.read_bytes() + b"\0")
    assert command(one, plain, two, tmp_path / "missing.png") == PARTLY
    printed = capsys.readouterr()
    states = [line.split("\t")[1] for line in printed.out.splitlines()]
    assert states == [TRUSTED, UNSIGNED, TAMPERED] and r"plain\n.png" in printed.out
    assert printed.err.startswith("longtake: ") and "missing.png" in printed.err and printed.err.count("\n") == 1
    assert command(one, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["file"], found["state"], found["model"]) == (str(one), TRUSTED, "first")


def test_the_command_signs_what_carries_its_request(tmp_path, capsys):
    path, bare = written(tmp_path / "clip.mp4"), tmp_path / "bare.mp4"
    write_video(bare, smooth_clip()[:, :5], 8)
    assert main(["sign", str(path)]) == 0 and capsys.readouterr().out.strip() == str(path)
    assert verify(path).state == TRUSTED and verify(path).model_hash == REQUEST.model_hash
    before = path.read_bytes()
    assert main(["sign", str(path), str(bare)]) == 2 and "carries none" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_the_command_imports_nothing_heavy_before_it_is_called():
    heavy = {"c2pa", "cryptography", "torch", "av", "numpy"}
    code = f"import sys, app.verify, app.provenance; print(sorted({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (360, 640), (16, 16), (7, 5), (1, 1)])
def test_a_badge_covers_a_corner_and_nothing_else(size):
    rows, columns = size
    for corner in CORNERS:
        clip = torch.rand(3, 5, rows, columns, generator=torch.Generator().manual_seed(0)) * 2 - 1
        before = clip.clone()
        (first, second) = mark(iter(clip.split([2, 3], dim=1)), corner)
        stamped = torch.cat([first, second], dim=1)
        assert torch.equal(clip, before) and stamped.shape == clip.shape and stamped.abs().max() <= 1
        _, _, y, x = (stamped != clip).nonzero(as_tuple=True)
        if min(size) >= 48:
            assert len(y) and (y.max() - y.min() < rows / 3) and (x.max() - x.min() < columns / 3)
            assert y.min() > rows / 2 if corner.startswith("bottom") else y.max() < rows / 2
            assert x.min() > columns / 2 if corner.endswith("right") else x.max() < columns / 2


@pytest.mark.parametrize("size", [(64, 64), (128, 96), (360, 640)])
@pytest.mark.parametrize("ground", [-1.0, 0.0, 1.0])
def test_a_badge_can_be_read_on_any_ground_and_through_the_codec(tmp_path, size, ground):
    rows, columns = size
    _, cover = badge(rows, columns)
    letters, plate = cover > 0.95, (cover > 0.5) & (cover < 0.75)
    down, across = cover.shape
    still = torch.full((3, 5, rows, columns), ground)
    write_video(tmp_path / "clip.mp4", mark([still]), 8)
    seen = read_video(tmp_path / "clip.mp4").video.mean((0, 1))
    margin = max(2, min(size) // 32)
    place = seen[rows - margin - down : rows - margin, columns - margin - across : columns - margin]
    assert place[letters].mean() - place[plate].mean() > 0.8  # of 2 from black to white
    columns_of_letters = letters.any(0).int()
    gaps = (columns_of_letters.diff() == 1).sum()
    assert gaps == 2  # two letters, with space between them


def test_a_badge_has_a_corner_that_there_is():
    with pytest.raises(ValueError, match=r"one of the corners bottom-right, .*; got 'middle'"):
        mark([torch.zeros(3, 1, 64, 64)], "middle")
