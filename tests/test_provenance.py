"""Signed files state their signer, model and inputs, and any changed byte is detected."""

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

from app.cli import main
from app.commands.verify import add_verify
from app.exit_codes import PARTIAL
from app.provenance import credentials
from app.provenance.certificate import ProvenanceError, load_certificate, trust_anchors
from app.provenance.credentials import sign, sign_in_process
from app.provenance.manifest import GENERATED, MEDIA_TYPES, c2pa_context, credentials_path
from app.provenance.verification import TAMPERED, TRUSTED, UNSIGNED, Verdict, verify, verify_in_process
from dit.request import METADATA_KEY, Moment, Request
from tests.test_read import smooth_clip
from vae.video.pixels import MediaError
from vae.video.read import read_image, read_metadata, read_video
from vae.video.write import write_image, write_video

SUFFIXES = (".mp4", ".webm", ".mkv", ".gif", ".png", ".webp")
REQUEST = Request(
    prompt='一只红色的球 "rolls" 🎬', seed=7, model="first", model_hash="0a1b2c3d", size=(64, 64), seconds=2.0
)


def write_unsigned(path: Path, request: Request = REQUEST) -> Path:
    """Write a clip of 17 frames or an image with its metadata, as rendering does, but unsigned."""
    clip, metadata = smooth_clip()[:, :17], {METADATA_KEY: request.to_json()}
    if path.suffix == ".webp":
        Image.fromarray(((clip[:, 0] + 1) * 127.5).byte().permute(1, 2, 0).numpy()).save(path, lossless=True)
    elif path.suffix == ".png":
        write_image(path, clip[:, 0], metadata=metadata)
    else:
        write_video(path, clip, 8, metadata=metadata)
    return path


def write_signed(path: Path, request: Request = REQUEST) -> Path:
    sign_in_process(write_unsigned(path, request), request, load_certificate(), trust_anchors())
    return path


def verdict_of(path: Path) -> Verdict:
    return Verdict(**verify_in_process(path, trust_anchors()))


def state_of(path: Path) -> str:
    """Return the state of a changed file, or "broken" where it cannot be read."""
    try:
        return verdict_of(path).state
    except (ProvenanceError, MediaError) as error:
        assert str(path.name) in str(error) and "\n" not in str(error)
        return "broken"


def states_after_flips(path: Path, offsets, bit: int = 1) -> set[str]:
    """Change one byte at each offset in turn; return the states that are found, and restore the file."""
    original, found = path.read_bytes(), set()
    for offset in offsets:
        path.write_bytes(original[:offset] + bytes([original[offset] ^ bit]) + original[offset + 1 :])
        found |= {(state_of(path if path.suffix != ".c2pa" else path.with_suffix("")), offset)}
    path.write_bytes(original)
    assert {state for state, _ in found} <= {TAMPERED}, found
    return {state for state, _ in found}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_signed_file_is_trusted_here_and_states_its_signer_and_model(tmp_path, suffix):
    path = write_signed(tmp_path / f"clip{suffix}")
    found = verdict_of(path)
    assert (found.state, found.why, found.by_model) == (TRUSTED, None, True)
    assert found.signer.startswith("longtake ") and found.signer.endswith(" (self-made)")
    assert found.program.split()[0] == "longtake"
    assert (found.model, found.model_hash, found.ingredients) == ("first", "0a1b2c3d", ())
    for phrase in ("signed by longtake", "made by an AI model", "model first 0a1b2c3d"):
        assert phrase in found.summary
    inside = suffix not in (".webm", ".mkv")
    assert credentials_path(path) == (path if inside else tmp_path / f"clip{suffix}.c2pa")
    assert not [left for left in tmp_path.iterdir() if left.name.endswith(".part")]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_signing_changes_no_pixel_and_no_metadata(tmp_path, suffix):
    path = write_unsigned(tmp_path / f"clip{suffix}")
    pixels = read_image if suffix in (".png", ".webp") else lambda path: read_video(path).video
    metadata = (lambda path: None) if suffix == ".webp" else read_metadata
    before = pixels(path), metadata(path)
    sign_in_process(path, REQUEST, load_certificate(), trust_anchors())
    assert torch.equal(pixels(path), before[0]) and metadata(path) == before[1]


def test_signing_and_verifying_in_a_child_process_give_the_same_result(tmp_path):
    path, other = write_unsigned(tmp_path / "clip.mp4"), write_unsigned(tmp_path / "other.webm")
    assert verify(path).state == UNSIGNED
    assert sign(path, REQUEST) == path
    assert verify(path) == verdict_of(path) and verify(path).state == TRUSTED
    assert sign(other, replace(REQUEST, mode="extend", clip=str(path))) == credentials_path(other)
    assert verdict_of(other).state == TRUSTED and verdict_of(other).ingredients == (("clip.mp4", "signed"),)
    with pytest.raises(MediaError):
        verify(tmp_path / "missing.mp4")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_any_changed_byte_is_detected(tmp_path, suffix):
    path = write_signed(tmp_path / f"clip{suffix}")
    size, draw = path.stat().st_size, random.Random(suffix)
    assert states_after_flips(path, (0, size - 1, *(draw.randrange(size) for _ in range(24)))) == {TAMPERED}
    assert states_after_flips(path, (draw.randrange(size) for _ in range(8)), bit=128) == {TAMPERED}
    assert verdict_of(path).state == TRUSTED


@pytest.mark.parametrize("suffix", [".webm", ".mkv"])
def test_any_changed_byte_of_a_sidecar_is_detected(tmp_path, suffix):
    sidecar = credentials_path(write_signed(tmp_path / f"clip{suffix}"))
    size, draw = sidecar.stat().st_size, random.Random(suffix)
    states_after_flips(sidecar, (0, size - 1, *(draw.randrange(size) for _ in range(24))))
    (tmp_path / f"other{suffix}").write_bytes((tmp_path / f"clip{suffix}").read_bytes() + b"\0")
    sidecar.rename(tmp_path / f"other{suffix}.c2pa")  # credentials of another file
    assert verdict_of(tmp_path / f"other{suffix}").state == TAMPERED


def unhashed_offsets(data: bytes) -> dict[str, int]:
    """Find bytes that C2PA's own hashes do not cover, by description."""
    return {
        "the size of the store": data.index(b"jumb") - 4,
        "the label of one box": data.index(b"\x03c2pa.assertions\0") + 3,
        "the label of another": data.index(b"\x03c2pa.signature\0") + 3,
        "padding": data.rindex(b"cpadY") + 200,
    }


@pytest.mark.parametrize("suffix", [".mp4", ".png", ".webp"])
def test_a_changed_byte_that_c2pa_does_not_hash_is_detected(tmp_path, suffix):
    path = write_signed(tmp_path / f"clip{suffix}")
    data = path.read_bytes()
    offsets = unhashed_offsets(data)
    if suffix == ".mp4":
        offsets |= {"its first box": 9, "the box that holds the credentials": data.index(b"manifest\0") + 12}
    if suffix == ".png":
        begin = data.index(b"caBX")
        offsets["a checksum"] = begin + 4 + int.from_bytes(data[begin - 4 : begin], "big") + 1
    media_type, context = MEDIA_TYPES[suffix], c2pa_context(trust_anchors())
    for description, offset in offsets.items():
        changed = io.BytesIO(data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :])
        # C2PA's own validator does not see the change
        assert c2pa.Reader(media_type, changed, context=context).get_validation_state() == "Trusted", description
    states_after_flips(path, offsets.values())
    unused_flags = (data.index(b"\x13longtake.rest\0"), data.index(b"\x13c2pa.actions"))
    states_after_flips(path, unused_flags, bit=64)


def test_a_renamed_file_stays_trusted(tmp_path):
    for suffix, other in ((".mp4", ".mov"), (".png", ".mp4"), (".gif", ".png"), (".webp", ".webp.txt")):
        path = write_signed(tmp_path / f"clip{suffix}")
        assert verdict_of(path.rename(tmp_path / f"renamed{other}")).state == TRUSTED


def test_a_remux_is_detected(tmp_path):
    for suffix, state in ((".mp4", UNSIGNED), (".webm", TAMPERED), (".mkv", TAMPERED)):
        path, other = write_signed(tmp_path / f"clip{suffix}"), tmp_path / f"remux{suffix}"
        with av.open(str(path)) as source, av.open(str(other), "w") as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    target.mux(packet)
        if credentials_path(path) != path:
            credentials_path(path).rename(credentials_path(other))
        assert verdict_of(other).state == state


def test_an_edit_is_detected(tmp_path):
    video = write_signed(tmp_path / "clip.mp4")
    data = video.read_bytes()
    video.write_bytes(data.replace(b'"seed": 7', b'"seed": 8'))
    assert read_metadata(video) and verdict_of(video).state == TAMPERED
    video.write_bytes(data + b"\0\0\0\x08free")
    assert verdict_of(video).state == TAMPERED
    gif = write_signed(tmp_path / "clip.gif")
    metadata = gif.with_name("clip.gif.json")
    metadata.write_text(metadata.read_text("utf-8").replace("red", "blue"), "utf-8")
    assert verdict_of(gif).state == TRUSTED  # the prompt has no such word
    metadata.write_text(metadata.read_text("utf-8").replace("rolls", "falls"), "utf-8")
    assert verdict_of(gif).state == TAMPERED
    metadata.unlink()  # a GIF may be passed on without its metadata
    assert verdict_of(gif).state == TRUSTED
    image = write_signed(tmp_path / "clip.png")
    Image.open(image).save(image)
    assert verdict_of(image).state == UNSIGNED


def test_inputs_are_ingredients_with_their_own_credentials_and_states(tmp_path):
    names = ("video.mp4", "sidecar.webm", "moving.gif", "still.png")
    video, sidecar, moving, still = (write_signed(tmp_path / name) for name in names)
    plain, changed, torn = (tmp_path / name for name in ("plain.mkv", "changed.png", "torn.mp4"))
    write_unsigned(plain)
    changed.write_bytes(still.read_bytes()[:-20] + b"x" + still.read_bytes()[-19:])
    torn.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    keyframes = enumerate(map(str, (still, moving, changed, torn, sidecar, plain, tmp_path / "gone.png", still)))
    made = write_signed(tmp_path / "made.mp4", replace(REQUEST, mode="keyframes", keyframes=tuple(keyframes)))
    assert verdict_of(made).state == TRUSTED
    assert dict(verdict_of(made).ingredients) == {
        "still.png": "signed",
        "moving.gif": "signed",
        "sidecar.webm": "signed",
        "plain.mkv": UNSIGNED,
        "changed.png": TAMPERED,
        "torn.mp4": TAMPERED,
        "gone.png": "gone",
    }
    assert len(verdict_of(made).ingredients) == 7
    assert "from gone.png (gone), still.png (signed)" in verdict_of(made).summary
    report = json.loads(c2pa.Reader("video/mp4", io.BytesIO(made.read_bytes())).json())
    active = report["manifests"][report["active_manifest"]]
    (actions,) = (one["data"]["actions"] for one in active["assertions"] if one["label"] == "c2pa.actions.v2")
    assert [one["action"] for one in actions] == ["c2pa.created", "c2pa.edited"]
    assert actions[0]["digitalSourceType"].endswith("/trainedAlgorithmicMedia")
    assert len(actions[1]["parameters"]["ingredients"]) == 7
    draw = random.Random(0)
    begin = made.read_bytes().index(b"jumb")
    states_after_flips(made, (draw.randrange(begin, begin + 30_000) for _ in range(24)))
    again = write_signed(tmp_path / "again.webm", replace(REQUEST, mode="extend", clip=str(made)))
    assert verdict_of(again).ingredients == (("made.mp4", "signed"),)


def test_exactly_the_files_that_a_mode_reads_are_ingredients(tmp_path):
    for number, name in enumerate("abcdef"):
        write_image(tmp_path / f"{name}.png", torch.full((3, 8, 8), number / 10))
    a, b, c, d, e, f = (str(tmp_path / f"{name}.png") for name in "abcdef")
    moments = (Moment(0, "a ball", image=d), Moment(1, "a cube", clip=e), Moment(2, "a ball", image=d))
    whole = replace(REQUEST, image=a, clip=b, other=c, mask=f, keyframes=((0.0, d),), moments=moments)
    for mode, names in (
        ("text-to-video", ""),
        ("image-to-video", "a"),
        ("connect", "bc"),
        ("inpaint", "bf"),
        ("keyframes", "d"),
        ("storyboard", "de"),
    ):
        inputs = [path.stem for path, _, _ in credentials._inputs(replace(whole, mode=mode))]
        assert inputs == list(names), mode


def test_an_input_replaced_by_its_output_is_recorded_as_gone(tmp_path):
    path = write_unsigned(tmp_path / "clip.png")
    digest = next(iter(credentials._inputs(replace(REQUEST, mode="image-to-video", image=str(path)))))[1]
    request = replace(REQUEST, mode="image-to-video", image=str(path), hashes=((str(path), "0" * 64),))
    assert write_signed(path, request) and verdict_of(path).ingredients == (("clip.png", "gone"),)
    assert digest != "sha256:" + "0" * 64


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_without_credentials_is_unsigned_and_a_truncated_one_never_valid(tmp_path, suffix):
    path = write_unsigned(tmp_path / f"clip{suffix}")
    assert verdict_of(path) == Verdict(UNSIGNED) and verdict_of(path).summary == ""
    sign_in_process(path, REQUEST, load_certificate(), trust_anchors())
    whole = path.read_bytes()
    for share in (0.01, 0.3, 0.6, 0.99):
        path.write_bytes(whole[: int(share * len(whole))])
        assert state_of(path) in (TAMPERED, "broken")
    path.write_bytes(whole[:-1])
    assert state_of(path) == TAMPERED


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".jpg", ".txt"])
def test_a_file_that_is_no_video_or_image_is_refused_in_one_sentence(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    path.write_text("no video, no image\n" * 9)
    with pytest.raises(ProvenanceError, match=rf"clip{suffix} must be a video or image, .*; choose another"):
        verdict_of(path)
    path.write_text("")
    with pytest.raises(MediaError, match="is empty"):
        verdict_of(path)
    with pytest.raises(MediaError, match="folder"):
        verdict_of(tmp_path)


def test_a_broken_sidecar_is_refused_in_one_sentence(tmp_path):
    path = write_signed(tmp_path / "clip.webm")
    sidecar = credentials_path(path)
    for text in ("no credentials", '{"format": "c2pa"}'):
        sidecar.write_text(text)
        with pytest.raises(ProvenanceError, match=r"clip.webm.c2pa must hold the credentials of clip.webm; .*; fetch"):
            verdict_of(path)
    sidecar.write_text("")
    with pytest.raises(MediaError, match=r"clip.webm.c2pa is empty"):
        verdict_of(path)
    sidecar.unlink()
    assert verdict_of(path).state == UNSIGNED


def test_a_url_in_a_file_is_not_fetched(tmp_path):
    called = []

    class Listener(BaseHTTPRequestHandler):
        def do_GET(self):
            called.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Listener) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        claim = {"actions": [{"action": "c2pa.created", "digitalSourceType": GENERATED}]}
        builder = c2pa.Builder({"assertions": [{"label": "c2pa.actions.v2", "data": claim}]})
        builder.set_no_embed()
        builder.set_remote_url(f"http://127.0.0.1:{server.server_port}/elsewhere.c2pa")
        path = write_unsigned(tmp_path / "clip.png")
        with credentials._signer(load_certificate()) as signer, path.open("rb") as source:
            found = io.BytesIO()
            builder.sign(signer, "image/png", source, found)
        path.write_bytes(found.getvalue())
        verdict = verdict_of(path)
        server.shutdown()
    assert verdict.state == UNSIGNED and "elsewhere.c2pa, which were not fetched" in verdict.why and not called


def run_verify(*arguments) -> int:
    top = argparse.ArgumentParser()
    add_verify(top.add_subparsers())
    args = top.parse_args(["verify", *map(str, arguments)])
    return args.run(args)


def test_the_verify_command_prints_one_line_per_file(tmp_path, capsys):
    one, two = write_signed(tmp_path / "one.png"), write_signed(tmp_path / "two.webm")
    assert run_verify(one, two) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[:2] for line in lines] == [[str(one), TRUSTED], [str(two), TRUSTED]]
    assert all("made by an AI model; model first 0a1b2c3d" in line for line in lines)
    plain = write_unsigned(tmp_path / "plain\n.png")
    two.write_bytes(two.read_bytes() + b"\0")
    assert run_verify(one, plain, two, tmp_path / "missing.png") == PARTIAL
    printed = capsys.readouterr()
    states = [line.split("\t")[1] for line in printed.out.splitlines()]
    assert states == [TRUSTED, UNSIGNED, TAMPERED] and r"plain\n.png" in printed.out
    assert printed.err.startswith("longtake: ") and "missing.png" in printed.err and printed.err.count("\n") == 1
    assert run_verify(one, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["file"], found["state"], found["model"]) == (str(one), TRUSTED, "first")


def test_the_sign_command_signs_files_that_carry_their_request(tmp_path, capsys):
    path, bare = write_unsigned(tmp_path / "clip.mp4"), tmp_path / "bare.mp4"
    write_video(bare, smooth_clip()[:, :5], 8)
    assert main(["sign", str(path)]) == 0 and capsys.readouterr().out.strip() == str(path)
    assert verify(path).state == TRUSTED and verify(path).model_hash == REQUEST.model_hash
    before = path.read_bytes()
    assert main(["sign", str(path), str(bare)]) == 2 and "carries none" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_importing_the_commands_loads_no_heavy_library():
    heavy = {"c2pa", "cryptography", "torch", "av", "numpy"}
    modules = "app.commands.verify, app.provenance.credentials, app.provenance.verification"
    code = f"import sys, {modules}; print(sorted({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
