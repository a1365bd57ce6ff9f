"""What longtake writes says who made it, with what and from what; and a changed byte shows, wherever it is."""

import argparse
import io
import json
import random
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import av
import c2pa
import pytest
import torch
from PIL import Image
from tests.test_media import smooth_clip

from app.cli import main
from app.commands.verify import add_verify
from app.exit_codes import PARTIAL
from app.provenance.certificate import ProvenanceError, anchors, certificate
from app.provenance.credentials import (
    TAMPERED,
    TRUSTED,
    UNSIGNED,
    Verdict,
    credentials_of,
    sign,
    sign_here,
    verify,
    verify_here,
)
from app.provenance.credentials import credentials as provenance
from dit.request import KEY as WORDS
from dit.request import Moment, Request
from vae.video.pixels import MediaError
from vae.video.read import read_image, read_metadata, read_video
from vae.video.write import write_image, write_video

SUFFIXES = (".mp4", ".webm", ".mkv", ".gif", ".png", ".webp")
REQUEST = Request(
    prompt='一只红色的球 "rolls" 🎬', seed=7, model="first", model_hash="0a1b2c3d", size=(64, 64), seconds=2.0
)


def written(path: Path, request: Request = REQUEST) -> Path:
    """Write a clip of 17 frames or a picture, with its words, as rendering does; not signed yet."""
    clip, words = smooth_clip()[:, :17], {WORDS: request.to_json()}
    if path.suffix == ".webp":
        Image.fromarray(((clip[:, 0] + 1) * 127.5).byte().permute(1, 2, 0).numpy()).save(path, lossless=True)
    elif path.suffix == ".png":
        write_image(path, clip[:, 0], metadata=words)
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
    see = read_image if suffix in (".png", ".webp") else lambda path: read_video(path).video
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
        write_image(tmp_path / f"{name}.png", torch.full((3, 8, 8), number / 10))
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
    assert command(one, plain, two, tmp_path / "missing.png") == PARTIAL
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
    code = f"import sys, app.commands.verify, app.provenance.credentials; print(sorted({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
