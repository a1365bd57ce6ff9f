"""Every file is signed as it is written, reproducibly, and its content hash is that of the unsigned file."""

import hashlib
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from app.batch.names import hash_file
from app.cli import main
from app.provenance.certificate import load_certificate, trust_anchors
from app.provenance.credentials import sign_in_process
from app.provenance.manifest import credentials_path
from app.provenance.signing import signed_output
from app.provenance.verification import TRUSTED, UNSIGNED
from app.render import read_request
from dit.inputs import load_latents, save_latents
from tests.test_provenance import REQUEST, SUFFIXES, verdict_of, write_unsigned
from vae.video.credentials import find_manifest_store, hash_of_contents
from vae.video.read import read_image


@pytest.fixture
def longtake(tiny_model, capsys):
    """Run a command with the tiny model; return its exit code and stderr."""

    def run(command, *arguments):
        defaults = [] if command in ("again", "sign") else ["--model", tiny_model, "--steps", 2]
        code = main([str(argument) for argument in (command, *arguments, *defaults)])
        return code, capsys.readouterr().err

    return run


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_signing_keeps_the_content_hash_and_any_other_changed_byte_changes_it(tmp_path, suffix):
    path = write_unsigned(tmp_path / f"clip{suffix}")
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    assert hash_of_contents(path) == hash_file(str(path)) == before
    for request in (REQUEST, replace(REQUEST, seed=8)):  # signed again, for another request
        sign_in_process(path, request, load_certificate(), trust_anchors())
        assert hash_of_contents(path) == before
    data, location = path.read_bytes(), find_manifest_store(path.read_bytes())
    assert (location is None) == (suffix in (".webm", ".mkv"))
    begin, end = (location.begin, location.end) if location else (0, 0)
    draw, store = random.Random(suffix), data.find(location.store[:200]) if location else 0
    # the bytes that wrap the store: before it, and in PNG and GIF also after it
    wrapper = [*range(begin, store), *([end - 1] if suffix in (".png", ".gif") else [])]
    outside = [draw.randrange(len(data)) for _ in range(60)] + [0, len(data) - 1, *range(8, 24)]
    for at in (*wrapper, *(at for at in outside if not begin <= at < end)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert hash_of_contents(path) != before, at


def test_an_empty_file_has_a_hash(tmp_path):
    (tmp_path / "empty.mp4").touch()
    assert hash_of_contents(tmp_path / "empty.mp4") == hashlib.sha256(b"").hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_signing_is_deterministic_and_independent_of_the_file_name(tmp_path, suffix):
    image = write_unsigned(tmp_path / "cube.png")
    sign_in_process(image, REQUEST, load_certificate(), trust_anchors())
    for request in (REQUEST, replace(REQUEST, mode="image-to-video", image=str(image))):
        paths = [write_unsigned(tmp_path / f"{name}{suffix}", request) for name in ("one", "another")]
        for path in paths:
            sign_in_process(path, request, load_certificate(), trust_anchors())
        one, another = (credentials_path(path).read_bytes() for path in paths)
        assert one == another and verdict_of(paths[0]).state == TRUSTED
    assert verdict_of(paths[0]).ingredients == (("cube.png", "signed"),)
    other = replace(request, seed=9)
    sign_in_process(paths[0], other, load_certificate(), trust_anchors())
    assert credentials_path(paths[0]).read_bytes() != another


@pytest.mark.slow
def test_ingredients_are_recorded_along_a_chain_of_edits(longtake, tiny_model, tmp_path):
    cube, spin, longer, green = (tmp_path / name for name in ("cube.png", "spin.mp4", "longer.webm", "green.gif"))
    assert longtake("text-to-image", "a blue cube", "-o", cube)[0] == 0
    assert longtake("image-to-video", "it spins", "--image", cube, "-o", spin)[0] == 0
    assert longtake("extend", "it spins on", "--clip", spin, "--seconds", 1, "-o", longer)[0] == 0
    assert longtake("remix", "a green cube", "--clip", longer, "-o", green)[0] == 0
    found = [verdict_of(path) for path in (cube, spin, longer, green)]
    assert {one.state for one in found} == {TRUSTED} and all(one.by_model for one in found)
    assert {(one.model, one.model_hash) for one in found} == {(str(tiny_model), read_request(cube).model_hash)}
    names = [one.ingredients for one in found]
    assert names == [(), (("cube.png", "signed"),), (("spin.mp4", "signed"),), (("longer.webm", "signed"),)]
    assert longtake("again", longer, "-o", tmp_path / "again.webm")[0] == 0
    for name in ("{}.webm", "{}.webm.c2pa"):
        assert (tmp_path / name.format("again")).read_bytes() == (tmp_path / name.format("longer")).read_bytes()


@pytest.mark.slow
def test_sheets_and_previews_are_signed_and_a_sheet_lists_its_clips(longtake, tmp_path):
    sheet, preview = tmp_path / "sheet.png", tmp_path / "preview.png"
    arguments = ("a ball", "a cube", "--sheet", sheet, "--preview", preview, "-o", tmp_path / "clip.mp4")
    assert longtake("generate", *arguments)[0] == 0
    assert verdict_of(sheet).state == verdict_of(preview).state == TRUSTED
    assert verdict_of(sheet).ingredients == (("clip-01.mp4", "signed"), ("clip-02.mp4", "signed"))
    assert verdict_of(preview).ingredients == () and verdict_of(preview).by_model
    model_hash = read_request(tmp_path / "clip-01.mp4").model_hash
    assert verdict_of(sheet).model_hash == verdict_of(preview).model_hash == model_hash
    assert min(read_image(sheet).shape[2:]) > 100


def test_a_batch_is_signed_unless_disabled(tmp_path, tiny_model, capsys):
    (tmp_path / "jobs.txt").write_text("a red ball\n")
    command = ["render", str(tmp_path / "jobs.txt"), "-o", str(tmp_path), "--workers", "0", "--set", "steps=2"]
    for more, state in (["--unsigned"], UNSIGNED), ([], TRUSTED):
        assert main([*command, "--set", "mode=text-to-image", "--set", f"model={tiny_model}", *more]) == 0
        (path,) = map(Path, capsys.readouterr().out.split())
        assert verdict_of(path).state == state and not list(tmp_path.glob("*.part"))
        path.unlink()


def test_unsigned_gives_the_same_file_without_credentials_and_prints_a_note(longtake, tmp_path, monkeypatch):
    path = tmp_path / "clip.webm"
    assert longtake("generate", "a ball", "-o", path)[0] == 0
    assert verdict_of(path).state == TRUSTED
    code, stderr = longtake("generate", "a ball", "--unsigned", "-o", path)
    assert code == 0 and "signing is disabled" in stderr
    assert verdict_of(path).state == UNSIGNED and not credentials_path(path).exists()
    assert longtake("generate", "a ball", "-o", tmp_path / "clip.mp4")[0] == 0
    assert verdict_of(tmp_path / "clip.mp4").state == TRUSTED  # the next is signed again
    monkeypatch.setenv("LONGTAKE_SIGN", "off")
    assert longtake("again", tmp_path / "clip.mp4", "-o", tmp_path / "plain.mp4")[0] == 0
    plain = hashlib.sha256((tmp_path / "plain.mp4").read_bytes()).hexdigest()
    assert verdict_of(tmp_path / "plain.mp4").state == UNSIGNED and plain == hash_of_contents(tmp_path / "clip.mp4")
    monkeypatch.setenv("LONGTAKE_SIGN", "perhaps")
    code, stderr = longtake("generate", "a ball", "-o", path)
    assert code == 2 and "LONGTAKE_SIGN must be on or off; got 'perhaps'" in stderr


@pytest.mark.slow
def test_a_derived_clip_still_finds_its_input_after_the_input_was_signed(longtake, tiny_model, tmp_path):
    from dit.pipeline import Pipeline

    clip, longer, vae = tmp_path / "clip.mp4", tmp_path / "longer.mp4", Pipeline.from_pretrained(tiny_model).vae
    assert longtake("generate", "a ball", "--unsigned", "-o", clip)[0] == 0
    assert longtake("extend", "it rolls", "--clip", clip, "--seconds", 1, "-o", longer)[0] == 0
    save_latents(clip, torch.zeros(4, 5, 8, 8), vae)
    assert verdict_of(longer).ingredients == (("clip.mp4", UNSIGNED),)
    assert longtake("sign", clip)[0] == 0
    assert load_latents(clip, vae) is not None
    assert longtake("again", longer, "-o", tmp_path / "again.mp4")[0] == 0
    assert verdict_of(tmp_path / "again.mp4").ingredients == (("clip.mp4", "signed"),)
    assert hash_of_contents(tmp_path / "again.mp4") == hash_of_contents(longer)


def test_rendering_does_not_begin_where_no_certificate_can_be_issued_unless_unsigned(longtake, tmp_path, monkeypatch):
    from dit.pipeline import Pipeline

    (tmp_path / "file").touch()
    monkeypatch.setenv("LONGTAKE_HOME", str(tmp_path / "file" / "home"))
    with monkeypatch.context() as closed:
        closed.setattr(Pipeline, "from_pretrained", lambda folder: pytest.fail("the model was loaded"))
        code, stderr = longtake("generate", "a ball", "-o", tmp_path / "clip.mp4")
    assert code == 2 and "got Not a directory; set LONGTAKE_HOME to a folder of yours, or give --unsigned" in stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert longtake("generate", "a ball", "--unsigned", "-o", tmp_path / "clip.mp4")[0] == 0


def test_the_output_is_unchanged_until_the_file_is_signed(tmp_path):
    path = tmp_path / "clip.png"
    path.write_text("before")
    with pytest.raises(ValueError, match="meanwhile"), signed_output(path, REQUEST) as temporary:
        write_unsigned(temporary)
        raise ValueError("meanwhile")
    assert path.read_text() == "before" and [one.name for one in tmp_path.iterdir()] == ["clip.png"]
    with signed_output(path, REQUEST) as temporary:
        write_unsigned(temporary)
        assert path.read_text() == "before"
    assert verdict_of(path).state == TRUSTED and [one.name for one in tmp_path.iterdir()] == ["clip.png"]
