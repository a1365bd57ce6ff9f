"""An upload is stored if its content is of an allowed type and within the limits; otherwise nothing is left of it."""

import io
import os
import struct
import time
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from app.server.uploads import PARTIAL_PREFIX, UploadError, UploadLimits, inspect_file, sniff_suffix, store_upload
from app.studio.probe import probe_file
from tests.test_media import picture, write_film
from vae.video.pixels import MediaError
from vae.video.read import read_video
from vae.video.sandbox import run_sandboxed
from vae.video.write import write_video

SUFFIXES = (".mp4", ".webm", ".mkv", ".gif", ".png", ".jpg", ".webp")


def bytes_of(suffix: str, folder: Path, frames: int = 5) -> bytes:
    """Return the content of a small file of a type, by suffix."""
    path = folder / f"made{suffix}"
    if suffix in (".png", ".jpg", ".webp"):
        Image.radial_gradient("L").resize((32, 24)).convert("RGB").save(path)
    else:
        write_video(path, [torch.rand(3, frames, 24, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1], 12)
    return path.read_bytes()


def check_refused(content: bytes, folder: Path, message: str, limits: UploadLimits | None = None) -> None:
    """Check that content is refused in one sentence without paths of this machine, and that no file is left."""
    with pytest.raises(UploadError, match=message) as raised:
        store_upload(io.BytesIO(content), folder, limits)
    assert (
        str(folder) not in str(raised.value)
        and PARTIAL_PREFIX not in str(raised.value)
        and "\n" not in str(raised.value)
    )
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_is_stored_once_named_by_its_content_and_type(tmp_path, suffix):
    content, folder = bytes_of(suffix, tmp_path), tmp_path / "stored"
    stored = store_upload(io.BytesIO(content), folder)
    assert stored.suffix == suffix and stored.parent == folder and stored.read_bytes() == content
    assert store_upload(io.BytesIO(content), folder) == stored
    assert list(folder.iterdir()) == [stored]


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("photo.HEIC", ".heic"),
        ("a.MTS", ".ts"),
        ("b.m2ts", ".ts"),
        ("c.mpg", ".mpg"),
        ("d.flv", ".flv"),
        ("e.3gp", ".mp4"),
    ],
)
def test_what_phones_cameras_and_tapes_write_is_stored(tmp_path, name, suffix):
    path, pictures = tmp_path / name, [picture(number) for number in range(4)]
    if suffix == ".heic":
        import pillow_heif

        pillow_heif.register_heif_opener()
        Image.fromarray(pictures[0]).save(path, "HEIF")
    else:
        codec, muxer = ("mpeg2video", "mpeg") if suffix == ".mpg" else ("libx264", None)
        settings = {"format": muxer or {".ts": "mpegts", ".flv": "flv", ".mp4": "3gp"}[suffix]}
        settings |= {"container_options": {"mpegts_m2ts_mode": "1"}} if name == "b.m2ts" else {}
        write_film(path, pictures * 3, codec, fps=25, **settings)
    stored = store_upload(io.BytesIO(path.read_bytes()), tmp_path / "stored")
    assert stored.suffix == suffix
    found = run_sandboxed(probe_file, stored)
    assert (found["columns"], found["rows"], found["frames"]) == (48, 32, 1 if suffix == ".heic" else 12)


def test_the_brand_of_a_video_tells_mov_from_mp4(tmp_path):
    content, folder = bytes_of(".mp4", tmp_path), tmp_path / "stored"
    stored = store_upload(io.BytesIO(content[:8] + b"qt  " + content[12:]), folder)
    assert stored.suffix == ".mov" and read_video(stored).video.shape == (3, 5, 24, 32)


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
        b"RIFF\x24\0\0\0WAVEfmt ",
        b"\0\0\0\x18ftypavif\0\0\0\0avifmif1",
        b"\x1a\x45\xdf\xa3\x8b\x42\x82\x88somebody",
        archive(),
        b"%PDF-1.7\n",
        b"x",
    ],
)
def test_content_that_is_no_image_or_video_is_refused(tmp_path, content):
    check_refused(content, tmp_path, "an upload must be mp4, mov, webm")


@pytest.mark.parametrize("head", [b"\0\0\0\x10ftypisom\0\0\0\0", b"GIF89a", b"\x1a\x45\xdf\xa3\x8b\x42\x82\x84webm"])
def test_a_playlist_that_begins_as_a_video_is_not_followed(tmp_path, head):
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(bytes_of(".mp4", tmp_path))
    for script in (f"\n#EXTM3U\n#EXTINF:1,\nfile://{secret}\n", f"\nffconcat version 1.0\nfile {secret}\n"):
        check_refused(head + script.encode(), tmp_path / "stored", "the upload (cannot be read as|ends before)")


def test_a_video_with_an_external_data_reference_is_read_from_itself_only(tmp_path):
    content = bytes_of(".mp4", tmp_path)
    entry = b"\0\0\0\x0curl \0\0\0\x01"  # a data reference, ISO/IEC 14496-12: in this very file
    assert content.count(entry) == 1
    stored = store_upload(io.BytesIO(content.replace(entry, entry[:-1] + b"\0")), tmp_path / "stored")
    assert read_video(stored).video.shape == (3, 5, 24, 32)


def test_a_polyglot_is_treated_as_its_first_bytes_say(tmp_path):
    image = bytes_of(".png", tmp_path)
    stored = store_upload(io.BytesIO(image + archive()), tmp_path / "stored")
    assert stored.suffix == ".png"
    check_refused(archive() + image, tmp_path / "other", "an upload must be mp4, mov, webm")
    matroska = bytes_of(".webm", tmp_path)
    check_refused(struct.pack(">I", 32) + b"ftypisom" + bytes(20) + matroska, tmp_path / "other", "the upload ")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_truncated_file_is_refused(tmp_path, suffix):
    content = bytes_of(suffix, tmp_path)
    check_refused(content[: len(content) // 2], tmp_path / "stored", "the upload ")


@pytest.mark.parametrize(
    ("suffix", "limits", "message"),
    [
        (".png", UploadLimits(bytes=100), "an upload must have at most 100 bytes; this one has more"),
        (".png", UploadLimits(pixels=767), "at most 767 pixels in a frame; got 768"),
        (".mp4", UploadLimits(pixels=767), "at most 767 pixels in a frame; got 768"),
        (".mp4", UploadLimits(frames=4), "at most 4 frames; got 5"),
        (".webm", UploadLimits(seconds=0.3), r"at most 0\.3 seconds; got 0\.3"),
        (".gif", UploadLimits(seconds=0.3), r"at most 0\.3 seconds; got 0\.3"),
    ],
)
def test_a_file_over_a_limit_is_refused(tmp_path, suffix, limits, message):
    check_refused(bytes_of(suffix, tmp_path), tmp_path / "stored", message, limits)


def test_a_file_whose_header_says_that_it_is_far_too_long_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = tmp_path / "long.mp4"
    path.write_bytes(bytes_of(".mp4", tmp_path, frames=9))
    monkeypatch.setattr("app.server.uploads.decode_frames", lambda *args: pytest.fail("it is decoded"))
    for limits, message in (
        (UploadLimits(frames=4), "at most 4 frames; got 9"),
        (UploadLimits(seconds=0.3), "got 0.75"),
    ):
        with pytest.raises(MediaError, match=message):
            inspect_file(path, ".mp4", limits)


class EndlessSource(io.RawIOBase):
    """A source without end that counts the bytes read."""

    bytes_read = 0

    def read(self, size: int = -1) -> bytes:
        self.bytes_read += size
        return bytes(size)


def test_an_endless_upload_is_refused_at_the_size_limit(tmp_path):
    source = EndlessSource()
    with pytest.raises(UploadError, match="this one has more"):
        store_upload(source, tmp_path, UploadLimits(bytes=3 * 2**20))
    assert source.bytes_read == 4 * 2**20 and list(tmp_path.iterdir()) == []


class FailingSource(io.BytesIO):
    """A source that fails after its first bytes."""

    def read(self, size: int | None = -1) -> bytes:
        if self.tell():
            raise ConnectionResetError("gone")
        return super().read(64)


def test_nothing_is_left_of_an_upload_whose_source_fails(tmp_path):
    with pytest.raises(ConnectionResetError):
        store_upload(FailingSource(bytes_of(".png", tmp_path)), tmp_path / "stored")
    assert list((tmp_path / "stored").iterdir()) == []


def test_abandoned_partial_uploads_are_removed_and_active_ones_are_not(tmp_path):
    content, folder = bytes_of(".png", tmp_path), tmp_path / "stored"
    folder.mkdir()
    for name, age in (("abandoned", 7200), ("active", 60)):
        (folder / f"{PARTIAL_PREFIX}{name}").write_bytes(b"x")
        os.utime(folder / f"{PARTIAL_PREFIX}{name}", (time.time() - age,) * 2)
    stored = store_upload(io.BytesIO(content), folder)
    assert set(folder.iterdir()) == {stored, folder / f"{PARTIAL_PREFIX}active"}


def test_an_empty_upload_is_refused(tmp_path):
    check_refused(b"", tmp_path, "an upload must not be empty")
    with pytest.raises(UploadError):
        sniff_suffix(b"")
