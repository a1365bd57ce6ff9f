"""What clients send is kept if it is what it seems and small enough; else nothing of it is left, and one sentence."""

import io
import os
import struct
import time
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from app.server.uploads import HALF, Caps, UploadError, keep_upload, sniffed
from vae.video.read import read_video
from vae.video.write import write_video

KINDS = (".mp4", ".webm", ".mkv", ".gif", ".png", ".jpg", ".webp")


def bytes_of(kind: str, folder: Path, frames: int = 5) -> bytes:
    """Make a small file of a kind."""
    path = folder / f"made{kind}"
    if kind in (".png", ".jpg", ".webp"):
        Image.radial_gradient("L").resize((32, 24)).convert("RGB").save(path)
    else:
        write_video(path, [torch.rand(3, frames, 24, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1], 12)
    return path.read_bytes()


def refused(content: bytes, folder: Path, sentence: str, caps: Caps | None = None) -> None:
    """Check that content is refused in one sentence, which tells nothing of this machine, and that nothing is left."""
    with pytest.raises(UploadError, match=sentence) as raised:
        keep_upload(io.BytesIO(content), folder, caps)
    assert str(folder) not in str(raised.value) and HALF not in str(raised.value) and "\n" not in str(raised.value)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_kept_under_its_content_and_its_type_once(tmp_path, kind):
    content, folder = bytes_of(kind, tmp_path), tmp_path / "kept"
    kept = keep_upload(io.BytesIO(content), folder)
    assert kept.suffix == kind and kept.parent == folder and kept.read_bytes() == content
    assert keep_upload(io.BytesIO(content), folder) == kept
    assert list(folder.iterdir()) == [kept]


def test_a_films_brand_says_whether_it_is_mov(tmp_path):
    content, folder = bytes_of(".mp4", tmp_path), tmp_path / "kept"
    kept = keep_upload(io.BytesIO(content[:8] + b"qt  " + content[12:]), folder)
    assert kept.suffix == ".mov" and read_video(kept).video.shape == (3, 5, 24, 32)


def archive() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("../../outside", "x")
    return packed.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n",
        b"ffconcat version 1.0\nfile /etc/hostname\n",
        b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://127.0.0.1:9/a.png"/></svg>',
        b"RIFF\x24\0\0\0AVI LIST",
        b"\0\0\0\x18ftypavif\0\0\0\0avifmif1",
        b"\x1a\x45\xdf\xa3\x8b\x42\x82\x88somebody",
        archive(),
        b"%PDF-1.7\n",
        b"x",
    ],
)
def test_what_is_no_picture_or_film_by_its_bytes_is_refused(tmp_path, content):
    refused(content, tmp_path, "an upload must be mp4, mov, webm")


@pytest.mark.parametrize("head", [b"\0\0\0\x10ftypisom\0\0\0\0", b"GIF89a", b"\x1a\x45\xdf\xa3\x8b\x42\x82\x84webm"])
def test_a_playlist_that_begins_as_a_film_is_not_followed(tmp_path, head):
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(bytes_of(".mp4", tmp_path))
    for script in (f"\n#EXTM3U\n#EXTINF:1,\nfile://{secret}\n", f"\nffconcat version 1.0\nfile {secret}\n"):
        refused(head + script.encode(), tmp_path / "kept", "the upload (cannot be read as|ends before)")


def test_a_film_that_says_its_pictures_lie_elsewhere_is_read_from_itself_alone(tmp_path):
    content = bytes_of(".mp4", tmp_path)
    entry = b"\0\0\0\x0curl \0\0\0\x01"  # a data reference, ISO/IEC 14496-12: in this very file
    assert content.count(entry) == 1
    kept = keep_upload(io.BytesIO(content.replace(entry, entry[:-1] + b"\0")), tmp_path / "kept")
    assert read_video(kept).video.shape == (3, 5, 24, 32)


def test_a_polyglot_is_only_what_its_first_bytes_say(tmp_path):
    picture = bytes_of(".png", tmp_path)
    kept = keep_upload(io.BytesIO(picture + archive()), tmp_path / "kept")
    assert kept.suffix == ".png"
    refused(archive() + picture, tmp_path / "other", "an upload must be mp4, mov, webm")
    matroska = bytes_of(".webm", tmp_path)
    refused(struct.pack(">I", 32) + b"ftypisom" + bytes(20) + matroska, tmp_path / "other", "the upload ")


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_cut_short_is_refused(tmp_path, kind):
    content = bytes_of(kind, tmp_path)
    refused(content[: len(content) // 2], tmp_path / "kept", "the upload ")


@pytest.mark.parametrize(
    ("kind", "caps", "sentence"),
    [
        (".png", Caps(bytes=100), "an upload must have at most 100 bytes; this one has more"),
        (".png", Caps(pixels=767), "at most 767 pixels in a frame; got 768"),
        (".mp4", Caps(pixels=767), "at most 767 pixels in a frame; got 768"),
        (".mp4", Caps(frames=4), "at most 4 frames; got 5"),
        (".webm", Caps(seconds=0.3), r"at most 0\.3 seconds; got 0\.3"),
        (".gif", Caps(seconds=0.3), r"at most 0\.3 seconds; got 0\.3"),
    ],
)
def test_what_is_beyond_the_caps_is_refused(tmp_path, kind, caps, sentence):
    refused(bytes_of(kind, tmp_path), tmp_path / "kept", sentence, caps)


class Endless(io.RawIOBase):
    """A source that never ends, and counts what was taken from it."""

    taken = 0

    def read(self, size: int = -1) -> bytes:
        self.taken += size
        return bytes(size)


def test_an_endless_upload_is_refused_once_it_is_too_long(tmp_path):
    source = Endless()
    with pytest.raises(UploadError, match="this one has more"):
        keep_upload(source, tmp_path, Caps(bytes=3 * 2**20))
    assert source.taken == 4 * 2**20 and list(tmp_path.iterdir()) == []


class Broken(io.BytesIO):
    """A source that breaks off."""

    def read(self, size: int | None = -1) -> bytes:
        if self.tell():
            raise ConnectionResetError("gone")
        return super().read(64)


def test_a_source_that_breaks_off_leaves_nothing_behind(tmp_path):
    with pytest.raises(ConnectionResetError):
        keep_upload(Broken(bytes_of(".png", tmp_path)), tmp_path / "kept")
    assert list((tmp_path / "kept").iterdir()) == []


def test_half_uploads_of_the_dead_are_cleared_and_those_of_the_living_are_not(tmp_path):
    content, folder = bytes_of(".png", tmp_path), tmp_path / "kept"
    folder.mkdir()
    for name, age in (("dead", 7200), ("living", 60)):
        (folder / f"{HALF}{name}").write_bytes(b"x")
        os.utime(folder / f"{HALF}{name}", (time.time() - age,) * 2)
    kept = keep_upload(io.BytesIO(content), folder)
    assert set(folder.iterdir()) == {kept, folder / f"{HALF}living"}


def test_an_empty_upload_is_refused(tmp_path):
    refused(b"", tmp_path, "this one is empty")
    with pytest.raises(UploadError):
        sniffed(b"")
