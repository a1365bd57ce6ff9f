"""Writing videos and images: round trips, reproducible bytes, interruptions, and refusals in one sentence."""

import json
import math
import os
import resource
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from tests.test_read import VIDEOS, grey_clip, noise_clip, psnr, smooth_clip
from vae.video.pixels import DiskError, MediaError, contact_sheet, exact_fps, to_uint8
from vae.video.read import read_image, read_metadata, read_video
from vae.video.write import check_writable, write_image, write_video

REQUEST = {
    "longtake": json.dumps(
        {"prompt": '一只红色的球 "rolls"\\\n\r\n\tfür 🎬', "long": "x" * 20_000}, ensure_ascii=False, indent=1
    ),
    "title": "单镜头 = [1]; #2",
}


# 45 dB is measured for mp4 and webm; a GIF has 256 colours.
@pytest.mark.parametrize(("suffix", "min_psnr"), [(".mp4", 40), (".webm", 40), (".mkv", 50), (".gif", 24)])
def test_a_smooth_clip_survives_writing_and_reading(tmp_path, suffix, min_psnr):
    clip = smooth_clip()
    write_video(tmp_path / f"clip{suffix}", clip, 24)
    back = read_video(tmp_path / f"clip{suffix}")
    assert back.video.shape == clip.shape
    assert back.video.dtype == torch.float32
    assert back.fps == 24
    assert psnr(back.video, clip) > min_psnr
    assert psnr(back.video[:, 1:], clip[:, :-1]) < psnr(back.video[:, 1:], clip[:, 1:])  # no frame is early or late


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_subsampled_chroma_is_not_shifted(tmp_path, suffix):
    write_video(tmp_path / f"clip{suffix}", smooth_clip(), 24, crf=1)
    assert (
        psnr(read_video(tmp_path / f"clip{suffix}").video, smooth_clip()) > 46.5
    )  # 48; 45 with colour half a pixel off


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".mkv"])
@pytest.mark.parametrize("fps", [8, 12.5, 29.97, 60])
def test_frames_and_rate_are_exact(tmp_path, suffix, fps):
    path = tmp_path / f"clip{suffix}"
    for frames in (1, 17):
        write_video(path, smooth_clip(frames, 16, 16), fps)
        back = read_video(path)
        assert (back.video.shape[1], back.fps) == (frames, exact_fps(fps))
        assert read_video(path, fps).video.shape[1] == frames
    with av.open(str(path)) as container:
        assert container.duration / av.time_base == pytest.approx(17 / float(exact_fps(fps)), abs=0.001)


@pytest.mark.parametrize("fps", [8, 10, 24, 30, 50])
def test_a_gif_keeps_frames_and_rate_if_frames_are_equal(tmp_path, fps):
    write_video(tmp_path / "still.gif", grey_clip([0.2] * 17), fps)
    back = read_video(tmp_path / "still.gif")
    assert (back.video.shape[1], back.fps) == (17, fps)


def test_matroska_is_lossless_even_for_noise_of_odd_size(tmp_path):
    clip = noise_clip(9, 45, 67)
    write_video(tmp_path / "noise.mkv", clip, 24)
    assert torch.equal(to_uint8(read_video(tmp_path / "noise.mkv").video), to_uint8(clip))


def test_pixels_out_of_range_are_clamped_not_wrapped(tmp_path):
    write_video(tmp_path / "loud.mkv", noise_clip(3) * 40, 24)
    assert torch.equal(to_uint8(read_video(tmp_path / "loud.mkv").video), to_uint8(noise_clip(3) * 40))


def test_an_mp4_plays_in_browsers(tmp_path):
    path = tmp_path / "clip.mp4"
    write_video(path, smooth_clip(), 24, metadata=REQUEST)
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        tags = (context.color_range, context.color_primaries, context.color_trc, context.colorspace)
        assert (context.name, context.pix_fmt, context.profile) == ("h264", "yuv420p", "High")
        assert tags == (1, 1, 1, 1)  # limited range, BT.709
    whole = path.read_bytes()
    assert whole.index(b"moov") < whole.index(b"mdat")  # playback starts before the download ends


@pytest.mark.parametrize("suffix", VIDEOS)
def test_metadata_survives_in_every_container(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    write_video(path, smooth_clip(3), 24, metadata=REQUEST)
    assert read_metadata(path) == REQUEST
    write_video(path, smooth_clip(3), 24)
    assert read_metadata(path) == {}  # nothing of an older video


def test_metadata_and_pixels_survive_in_an_image(tmp_path):
    write_image(tmp_path / "still.png", noise_clip(1), metadata=REQUEST)
    assert read_metadata(tmp_path / "still.png") == REQUEST
    assert torch.equal(to_uint8(read_image(tmp_path / "still.png")), to_uint8(noise_clip(1)))


@pytest.mark.parametrize("metadata", [{"Title": "x"}, {"a b": "x"}, {"encoder": "x"}, {"a": ""}, {"a": "\0"}, {"a": 1}])
def test_metadata_that_a_container_would_lose_is_refused(tmp_path, metadata):
    with pytest.raises(MediaError, match="metadata"):
        write_video(tmp_path / "clip.mp4", smooth_clip(1), 24, metadata=metadata)


@pytest.mark.parametrize("suffix", VIDEOS)
def test_the_same_frames_give_the_same_bytes_whole_or_in_pieces(tmp_path, suffix):
    clip = smooth_clip(13, 24, 24)
    write_video(tmp_path / f"a{suffix}", clip, 24, metadata=REQUEST)
    write_video(tmp_path / f"b{suffix}", clip, 24, metadata=REQUEST)
    write_video(tmp_path / f"c{suffix}", iter(clip.split([1, 4, 8], dim=1)), 24, metadata=REQUEST)
    whole = (tmp_path / f"a{suffix}").read_bytes()
    assert (tmp_path / f"b{suffix}").read_bytes() == whole
    assert (tmp_path / f"c{suffix}").read_bytes() == whole


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot hide cores")
@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_bytes_of_a_video_of_odd_size_do_not_depend_on_uninitialized_memory(tmp_path, suffix):
    outputs, rng = set(), np.random.default_rng(0)
    for _ in range(20):
        for count in rng.integers(1_000, 200_000, 20):  # fill memory that the encoder may get
            rng.integers(0, 255, count, dtype=np.uint8)
        write_video(tmp_path / f"a{suffix}", smooth_clip(17, 50, 38), 10)
        outputs.add((tmp_path / f"a{suffix}").read_bytes())
    assert len(outputs) == 1


def test_a_machine_with_fewer_cores_writes_the_same_bytes(tmp_path):
    clip, cores = noise_clip(5, 128, 128), os.sched_getaffinity(0)
    for name, allowed in (("many.mp4", cores), ("one.mp4", {min(cores)})):
        os.sched_setaffinity(0, allowed)
        try:
            write_video(tmp_path / name, clip, 24)
        finally:
            os.sched_setaffinity(0, cores)
    assert (tmp_path / "many.mp4").read_bytes() == (tmp_path / "one.mp4").read_bytes()


def test_crf_and_preset_change_the_size_within_the_encoders_limits(tmp_path):
    write_video(tmp_path / "good.mp4", noise_clip(5), 24)
    write_video(tmp_path / "small.mp4", noise_clip(5), 24, crf=35, preset="veryfast")
    assert (tmp_path / "small.mp4").stat().st_size < (tmp_path / "good.mp4").stat().st_size / 2
    for suffix, wrong in (
        (".mp4", {"crf": 0}),
        (".mp4", {"preset": "x"}),
        (".mkv", {"crf": 9}),
        (".webm", {"crf": 64}),
    ):
        with pytest.raises(MediaError, match="must"):
            write_video(tmp_path / f"clip{suffix}", smooth_clip(1), 24, **wrong)


class Stop(Exception):
    pass


@pytest.mark.parametrize("suffix", VIDEOS)
@pytest.mark.parametrize("interruption", [Stop, KeyboardInterrupt])
def test_an_interrupted_video_leaves_the_folder_as_it_was(tmp_path, suffix, interruption):
    def frames():
        yield smooth_clip(9, 32, 32)
        raise interruption

    with pytest.raises(interruption):
        write_video(tmp_path / f"clip{suffix}", frames(), 24, metadata=REQUEST)
    assert not list(tmp_path.iterdir())
    write_video(tmp_path / f"clip{suffix}", smooth_clip(3, 32, 32), 24, metadata=REQUEST)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(interruption):
        write_video(tmp_path / f"clip{suffix}", frames(), 24)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("suffix", [*VIDEOS, ".png"])
def test_a_failing_write_raises_one_sentence(tmp_path, suffix):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, limits[1]))  # the kernel refuses writes, as on a full disk
    try:
        with pytest.raises(DiskError, match=rf"clip\{suffix} could not be written: [^\n]+; ") as caught:
            if suffix == ".png":
                write_image(tmp_path / "clip.png", noise_clip(1), metadata=REQUEST)
            else:
                write_video(tmp_path / f"clip{suffix}", noise_clip(), 24, metadata=REQUEST)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [*VIDEOS, ".png"])
def test_a_full_disk_is_reported_as_full(tmp_path, monkeypatch, suffix):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError, match=r"disk is full; .* free some space"):
        if suffix == ".png":
            write_image(tmp_path / "clip.png", noise_clip(1))
        else:
            write_video(tmp_path / f"clip{suffix}", noise_clip(2), 24)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("none/clip.mp4", "folder .*none must exist"),
        ("folder.mp4", "folder or a device"),
        ("clip.avi", "must end in"),
        ("clip", "must end in"),
        ("x" * 300 + ".mp4", "too long"),
        ("file.mp4/clip.mp4", "folder .*file.mp4 must exist"),
        ("nul\0.mp4", "null"),
    ],
)
def test_a_path_that_cannot_be_written_is_refused_before_rendering(tmp_path, name, rule):
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file.mp4").touch()

    def frames():
        raise AssertionError("a frame was rendered")
        yield

    with pytest.raises(MediaError, match=rule):
        write_video(tmp_path / name, frames(), 24)


def test_a_folder_without_write_permission_is_refused(tmp_path):
    if os.geteuid() == 0:
        folder = Path("/proc/self")  # nobody may write there, not even root
    else:
        folder = tmp_path / "closed"
        folder.mkdir(mode=0o555)
    with pytest.raises(MediaError, match=r"cannot be written: .*; choose another"):
        check_writable(folder / "clip.mp4")


def test_check_writable_leaves_no_file_and_follows_links(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "link.mp4").symlink_to(tmp_path / "far" / "clip.mp4")
    assert check_writable(tmp_path / "link.mp4") == tmp_path / "far" / "clip.mp4"
    assert not list((tmp_path / "far").iterdir())
    write_video(tmp_path / "link.mp4", smooth_clip(1), 24)
    assert (tmp_path / "link.mp4").is_symlink()
    assert read_video(tmp_path / "link.mp4").video.shape[1] == 1


@pytest.mark.parametrize(
    ("name", "frames", "fps", "rule"),
    [
        ("clip.mp4", torch.zeros(3, 2, 63, 64), 24, "even rows and columns; got 63 x 64"),
        ("clip.mp4", torch.zeros(3, 0, 64, 64), 24, "at least one frame"),
        ("clip.mp4", torch.zeros(1, 2, 64, 64), 24, "3 x F x Y x X"),
        ("clip.mp4", [], 24, "at least one frame"),
        ("clip.mp4", [torch.zeros(3, 2, 64, 64), torch.zeros(3, 2, 32, 64)], 24, "all pieces"),
        ("clip.mp4", torch.full((3, 2, 64, 64), math.nan), 24, "NaN"),
        ("clip.gif", torch.zeros(3, 2, 64, 64), 60, "at most 50"),
        ("clip.png", torch.zeros(3, 2, 64, 64), 24, "write_image"),
    ],
)
def test_frames_that_cannot_be_written_are_refused(tmp_path, name, frames, fps, rule):
    with pytest.raises(MediaError, match=rule):
        write_video(tmp_path / name, frames, fps)
    assert not list(tmp_path.iterdir())


def test_a_contact_sheet_shows_enlarged_frames_and_captions(tmp_path):
    clips = [smooth_clip(17, 16, 24), noise_clip(2, 8, 8)]
    sheet = contact_sheet(clips, captions=["a red ball " * 90, "红色的球"], columns=3, scale=2)
    assert sheet.dtype == torch.uint8
    frame = sheet[:, 4 : 4 + 32, 4 + 52 : 4 + 52 + 48]  # the second cell of the first row: 48 and a margin of 4 further
    assert torch.equal(frame[:, ::2, ::2], to_uint8(clips[0][:, 8]))
    assert torch.equal(frame[:, 1::2, 1::2], to_uint8(clips[0][:, 8]))
    captions = [sheet[:, 4 + 36 : 4 + 36 + 20], sheet[:, -26:]]
    assert all((caption == 0).any() for caption in captions)  # drawn
    write_image(tmp_path / "sheet.png", sheet)
    assert torch.equal(to_uint8(read_image(tmp_path / "sheet.png"))[:, 0], sheet)
    for wrong in ({"captions": ["one"]}, {"columns": 0}, {"font": tmp_path / "none.ttf"}):
        with pytest.raises(MediaError):
            contact_sheet(clips, **wrong)
