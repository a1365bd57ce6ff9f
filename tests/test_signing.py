"""Every file is signed as it is written; it is the same file each time, and for all who hash it the unsigned one."""

import hashlib
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from app.batch.names import hash_file
from app.cli import main
from app.provenance.certificate import anchors, certificate
from app.provenance.credentials import TRUSTED, UNSIGNED, credentials_of, sign_here
from app.provenance.signing import signed
from app.render import request_in
from dit.inputs import keep_latents, kept_latents
from tests.test_provenance import REQUEST, SUFFIXES, judged, written
from vae.video.credentials import find_manifest_store, hash_of_contents
from vae.video.read import read_image


@pytest.fixture
def longtake(tiny_model, capsys):
    """Run a command with the tiny model; return its exit code and what it said."""

    def run(command, *words):
        given = [] if command in ("again", "sign") else ["--model", tiny_model, "--steps", 2]
        code = main([str(word) for word in (command, *words, *given)])
        return code, capsys.readouterr().err

    return run


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_hash_of_a_file_is_the_same_before_and_after_signing_and_changes_with_any_other_byte(tmp_path, suffix):
    path = written(tmp_path / f"clip{suffix}")
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    assert hash_of_contents(path) == hash_file(str(path)) == before
    for request in (REQUEST, replace(REQUEST, seed=8)):  # signed again, with other words
        sign_here(path, request, certificate(), anchors())
        assert hash_of_contents(path) == before
    data, place = path.read_bytes(), find_manifest_store(path.read_bytes())
    assert (place is None) == (suffix in (".webm", ".mkv"))
    begin, end = (place.begin, place.end) if place else (0, 0)
    draw, inside = random.Random(suffix), data.find(place.store[:200]) if place else 0
    around = [*range(begin, inside), *([end - 1] if suffix in (".png", ".gif") else [])]  # elsewhere nothing is behind
    outside = [draw.randrange(len(data)) for _ in range(60)] + [0, len(data) - 1, *range(8, 24)]
    for at in (*around, *(at for at in outside if not begin <= at < end)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert hash_of_contents(path) != before, at


def test_an_empty_file_has_a_hash(tmp_path):
    (tmp_path / "empty.mp4").touch()
    assert hash_of_contents(tmp_path / "empty.mp4") == hashlib.sha256(b"").hexdigest()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_is_signed_the_same_each_time_whatever_its_name(tmp_path, suffix):
    picture = written(tmp_path / "cube.png")
    sign_here(picture, REQUEST, certificate(), anchors())
    for request in (REQUEST, replace(REQUEST, mode="image-to-video", image=str(picture))):
        paths = [written(tmp_path / f"{name}{suffix}", request) for name in ("one", "another")]
        for path in paths:
            sign_here(path, request, certificate(), anchors())
        one, another = (credentials_of(path).read_bytes() for path in paths)
        assert one == another and judged(paths[0]).state == TRUSTED
    assert judged(paths[0]).ingredients == (("cube.png", "signed"),)
    other = replace(request, seed=9)
    sign_here(paths[0], other, certificate(), anchors())
    assert credentials_of(paths[0]).read_bytes() != another


def test_what_a_clip_was_made_from_is_told_all_the_way(longtake, tiny_model, tmp_path):
    cube, spin, longer, green = (tmp_path / name for name in ("cube.png", "spin.mp4", "longer.webm", "green.gif"))
    assert longtake("text-to-image", "a blue cube", "-o", cube)[0] == 0
    assert longtake("image-to-video", "it spins", "--image", cube, "-o", spin)[0] == 0
    assert longtake("extend", "it spins on", "--clip", spin, "--seconds", 1, "-o", longer)[0] == 0
    assert longtake("remix", "a green cube", "--clip", longer, "-o", green)[0] == 0
    found = [judged(path) for path in (cube, spin, longer, green)]
    assert {one.state for one in found} == {TRUSTED} and all(one.by_model for one in found)
    assert {(one.model, one.model_hash) for one in found} == {(str(tiny_model), request_in(cube).model_hash)}
    names = [one.ingredients for one in found]
    assert names == [(), (("cube.png", "signed"),), (("spin.mp4", "signed"),), (("longer.webm", "signed"),)]
    assert longtake("again", longer, "-o", tmp_path / "again.webm")[0] == 0
    for name in ("{}.webm", "{}.webm.c2pa"):
        assert (tmp_path / name.format("again")).read_bytes() == (tmp_path / name.format("longer")).read_bytes()


def test_sheets_and_previews_are_signed_and_a_sheet_tells_of_its_clips(longtake, tmp_path):
    sheet, preview = tmp_path / "sheet.png", tmp_path / "preview.png"
    words = ("a ball", "a cube", "--sheet", sheet, "--preview", preview, "-o", tmp_path / "clip.mp4")
    assert longtake("generate", *words)[0] == 0
    assert judged(sheet).state == judged(preview).state == TRUSTED
    assert judged(sheet).ingredients == (("clip-01.mp4", "signed"), ("clip-02.mp4", "signed"))
    assert judged(preview).ingredients == () and judged(preview).by_model
    assert judged(sheet).model_hash == judged(preview).model_hash == request_in(tmp_path / "clip-01.mp4").model_hash
    assert min(read_image(sheet).shape[2:]) > 100


def test_a_batch_is_signed(tmp_path, tiny_model, capsys):
    (tmp_path / "jobs.txt").write_text("a red ball\n")
    words = ["render", str(tmp_path / "jobs.txt"), "-o", str(tmp_path), "--workers", "0", "--set", "steps=2"]
    for more, state in (["--unsigned"], UNSIGNED), ([], TRUSTED):
        assert main([*words, "--set", "mode=text-to-image", "--set", f"model={tiny_model}", *more]) == 0
        (path,) = map(Path, capsys.readouterr().out.split())
        assert judged(path).state == state and not list(tmp_path.glob("*.part"))
        path.unlink()


def test_unsigned_is_the_same_file_without_credentials_and_is_said(longtake, tmp_path, monkeypatch):
    path = tmp_path / "clip.webm"
    assert longtake("generate", "a ball", "-o", path)[0] == 0
    assert judged(path).state == TRUSTED
    code, said = longtake("generate", "a ball", "--unsigned", "-o", path)
    assert code == 0 and "nothing here is signed, as was asked" in said
    assert judged(path).state == UNSIGNED and not credentials_of(path).exists()
    assert longtake("generate", "a ball", "-o", tmp_path / "clip.mp4")[0] == 0
    assert judged(tmp_path / "clip.mp4").state == TRUSTED  # the next is signed again
    monkeypatch.setenv("LONGTAKE_SIGN", "off")
    assert longtake("again", tmp_path / "clip.mp4", "-o", tmp_path / "plain.mp4")[0] == 0
    plain = hashlib.sha256((tmp_path / "plain.mp4").read_bytes()).hexdigest()
    assert judged(tmp_path / "plain.mp4").state == UNSIGNED and plain == hash_of_contents(tmp_path / "clip.mp4")
    monkeypatch.setenv("LONGTAKE_SIGN", "perhaps")
    code, said = longtake("generate", "a ball", "-o", path)
    assert code == 2 and "LONGTAKE_SIGN must be on or off; got 'perhaps'" in said


def test_what_was_made_from_a_clip_still_finds_it_when_it_was_signed_later(longtake, tiny_model, tmp_path):
    from dit.pipeline import Pipeline

    clip, longer, vae = tmp_path / "clip.mp4", tmp_path / "longer.mp4", Pipeline.from_pretrained(tiny_model).vae
    assert longtake("generate", "a ball", "--unsigned", "-o", clip)[0] == 0
    assert longtake("extend", "it rolls", "--clip", clip, "--seconds", 1, "-o", longer)[0] == 0
    keep_latents(clip, torch.zeros(4, 5, 8, 8), vae)
    assert judged(longer).ingredients == (("clip.mp4", UNSIGNED),)
    assert longtake("sign", clip)[0] == 0
    assert kept_latents(clip, vae) is not None
    assert longtake("again", longer, "-o", tmp_path / "again.mp4")[0] == 0
    assert judged(tmp_path / "again.mp4").ingredients == (("clip.mp4", "signed"),)
    assert hash_of_contents(tmp_path / "again.mp4") == hash_of_contents(longer)


def test_where_no_certificate_can_be_made_nothing_is_begun_unless_unsigned_is_asked_for(
    longtake, tmp_path, monkeypatch
):
    from dit.pipeline import Pipeline

    (tmp_path / "file").touch()
    monkeypatch.setenv("LONGTAKE_HOME", str(tmp_path / "file" / "home"))
    with monkeypatch.context() as closed:
        closed.setattr(Pipeline, "from_pretrained", lambda folder: pytest.fail("the model was loaded"))
        code, said = longtake("generate", "a ball", "-o", tmp_path / "clip.mp4")
    assert code == 2 and "got Not a directory; set LONGTAKE_HOME to a folder of yours, or give --unsigned" in said
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert longtake("generate", "a ball", "--unsigned", "-o", tmp_path / "clip.mp4")[0] == 0


def test_until_a_file_is_signed_its_place_is_as_it_was(tmp_path):
    path = tmp_path / "clip.png"
    path.write_text("before")
    with pytest.raises(ValueError, match="meanwhile"), signed(path, REQUEST) as draft:
        written(draft)
        raise ValueError("meanwhile")
    assert path.read_text() == "before" and [one.name for one in tmp_path.iterdir()] == ["clip.png"]
    with signed(path, REQUEST) as draft:
        written(draft)
        assert path.read_text() == "before"
    assert judged(path).state == TRUSTED and [one.name for one in tmp_path.iterdir()] == ["clip.png"]
