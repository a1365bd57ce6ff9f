"""What is written can be read back, every time, and what cannot be read or written is refused in one sentence."""

import json
import math
import os
import resource
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from einops import rearrange, repeat
from PIL import Image

from vae.media import (
    DiskError,
    MediaError,
    check_writable,
    contact_sheet,
    exact_rate,
    fit_picture,
    from_bytes,
    read_glimpse,
    read_metadata,
    read_picture,
    read_video,
    to_bytes,
    write_picture,
    write_video,
)

VIDEOS = (".mp4", ".webm", ".mkv", ".gif")
REQUEST = {
    "longtake": json.dumps(
        {"prompt": '一只红色的球 "rolls"\\\n\r\n\tfür 🎬', "long": "x" * 20_000}, ensure_ascii=False, indent=1
    ),
    "title": "单镜头 = [1]; #2",
}


def smooth_clip(frames: int = 17, rows: int = 64, columns: int = 64) -> torch.Tensor:
    """Colours that drift: every frame differs from the last, red from blue, left from right and up from down."""
    f = torch.linspace(0, 1, frames)[:, None, None]
    y = torch.linspace(0, 1, rows)[:, None]
    x = torch.linspace(0, 1, columns)
    red, green, blue = torch.sin(3 * x + 2 * f) * (1 - y), torch.cos(2 * y + f) * x, torch.sin(2 * (y - x) - 3 * f)
    return torch.stack([t.expand(frames, rows, columns) for t in (red, green, blue)]) * 0.9


def noise_clip(frames: int = 17, rows: int = 64, columns: int = 64) -> torch.Tensor:
    return torch.rand(3, frames, rows, columns, generator=torch.Generator().manual_seed(0)) * 2 - 1


def psnr(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return 10 * math.log10(4 / max((ours - theirs).square().mean().item(), 1e-12))


def film(path, clip, encoder, pixels, stamps=None, rate=24, rotation=0, options=None):
    """Write a film as other programs do: any encoder, pixel format, time stamps in 1/1000 s and rotation."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=rate, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *clip.shape[2:], pixels
        stream.codec_context.time_base = Fraction(1, 1000) if stamps else Fraction(1, rate)
        if rotation:
            stream.set_display_rotation(rotation)
        for index, picture in enumerate(rearrange(to_bytes(clip), "c f y x -> f y x c").contiguous().numpy()):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels)
            frame.pts = stamps[index] if stamps else index
            frame.time_base = stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def grey_clip(levels: list[float]) -> torch.Tensor:
    return torch.tensor(levels)[None, :, None, None].expand(3, len(levels), 32, 32).contiguous()


def levels(video: torch.Tensor) -> list[float]:
    return [round(level, 1) for level in video.mean(dim=(0, 2, 3)).tolist()]


def test_every_byte_survives_the_way_to_float_and_back():
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(from_bytes(every)), every)
    assert to_bytes(torch.tensor([-7.0, -1.0, 0.001, 1.0, 9.0])).tolist() == [0, 0, 128, 255, 255]  # clamped
    with pytest.raises(MediaError, match="NaN"):
        to_bytes(torch.tensor([math.nan]))


def test_television_rates_are_exact():
    rates = [exact_rate(fps) for fps in (23.976, 23.98, 29.97, 59.94, 24.0, 12.5, 30, Fraction(24000, 1001), 2.0)]
    assert [str(rate) for rate in rates] == [
        *("24000/1001", "24000/1001", "30000/1001", "60000/1001", "24", "25/2", "30", "24000/1001", "2")
    ]
    for wrong in (0, -1, math.nan, math.inf, 1e9, "fast"):
        with pytest.raises(MediaError, match="fps must be"):
            exact_rate(wrong)


# 45 dB is measured for mp4 and webm; a GIF has 256 colours.
@pytest.mark.parametrize(("suffix", "least"), [(".mp4", 40), (".webm", 40), (".mkv", 50), (".gif", 24)])
def test_a_smooth_clip_comes_back_as_it_was(tmp_path, suffix, least):
    clip = smooth_clip()
    write_video(tmp_path / f"clip{suffix}", clip, 24)
    back = read_video(tmp_path / f"clip{suffix}")
    assert back.video.shape == clip.shape
    assert back.video.dtype == torch.float32
    assert back.fps == 24
    assert psnr(back.video, clip) > least
    assert psnr(back.video[:, 1:], clip[:, :-1]) < psnr(back.video[:, 1:], clip[:, 1:])  # no frame is early or late


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_colour_stays_where_it_was_although_it_is_stored_at_half_the_size(tmp_path, suffix):
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
        assert (back.video.shape[1], back.fps) == (frames, exact_rate(fps))
        assert read_video(path, fps).video.shape[1] == frames
    with av.open(str(path)) as container:
        assert container.duration / av.time_base == pytest.approx(17 / float(exact_rate(fps)), abs=0.001)


@pytest.mark.parametrize("fps", [8, 10, 24, 30, 50])
def test_a_gif_keeps_frames_and_rate_even_where_nothing_moves(tmp_path, fps):
    write_video(tmp_path / "still.gif", grey_clip([0.2] * 17), fps)
    back = read_video(tmp_path / "still.gif")
    assert (back.video.shape[1], back.fps) == (17, fps)


def test_matroska_is_lossless_even_for_noise_of_odd_size(tmp_path):
    clip = noise_clip(9, 45, 67)
    write_video(tmp_path / "noise.mkv", clip, 24)
    assert torch.equal(to_bytes(read_video(tmp_path / "noise.mkv").video), to_bytes(clip))


def test_pixels_out_of_range_are_clamped_not_wrapped(tmp_path):
    write_video(tmp_path / "loud.mkv", noise_clip(3) * 40, 24)
    assert torch.equal(to_bytes(read_video(tmp_path / "loud.mkv").video), to_bytes(noise_clip(3) * 40))


def test_an_mp4_plays_in_browsers(tmp_path):
    path = tmp_path / "clip.mp4"
    write_video(path, smooth_clip(), 24, metadata=REQUEST)
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        tags = (context.color_range, context.color_primaries, context.color_trc, context.colorspace)
        assert (context.name, context.pix_fmt, context.profile) == ("h264", "yuv420p", "High")
        assert tags == (1, 1, 1, 1)  # limited range, BT.709
    whole = path.read_bytes()
    assert whole.index(b"moov") < whole.index(b"mdat")  # it starts before it has arrived


@pytest.mark.parametrize("suffix", VIDEOS)
def test_words_survive_in_every_container(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    write_video(path, smooth_clip(3), 24, metadata=REQUEST)
    assert read_metadata(path) == REQUEST
    write_video(path, smooth_clip(3), 24)
    assert read_metadata(path) == {}  # nothing of an older film


def test_words_and_pixels_survive_in_a_picture(tmp_path):
    write_picture(tmp_path / "still.png", noise_clip(1), metadata=REQUEST)
    assert read_metadata(tmp_path / "still.png") == REQUEST
    assert torch.equal(to_bytes(read_picture(tmp_path / "still.png")), to_bytes(noise_clip(1)))


@pytest.mark.parametrize("metadata", [{"Title": "x"}, {"a b": "x"}, {"encoder": "x"}, {"a": ""}, {"a": "\0"}, {"a": 1}])
def test_words_that_a_container_would_lose_are_refused(tmp_path, metadata):
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


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot hide cores")
def test_a_machine_with_fewer_cores_writes_the_same_bytes(tmp_path):
    clip, cores = noise_clip(5, 128, 128), os.sched_getaffinity(0)
    for name, allowed in (("many.mp4", cores), ("one.mp4", {min(cores)})):
        os.sched_setaffinity(0, allowed)
        try:
            write_video(tmp_path / name, clip, 24)
        finally:
            os.sched_setaffinity(0, cores)
    assert (tmp_path / "many.mp4").read_bytes() == (tmp_path / "one.mp4").read_bytes()


def test_quality_is_the_callers_choice_within_the_encoders(tmp_path):
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


@pytest.mark.parametrize("rotation", [90, -90, 180])
def test_a_film_is_turned_as_the_camera_was_held(tmp_path, rotation):
    clip = smooth_clip(3, 48, 80)
    film(tmp_path / "phone.mp4", clip, "libx264", "yuv420p", rotation=rotation, options={"crf": "5"})
    upright = torch.rot90(clip, rotation // 90, dims=(2, 3))
    back = read_video(tmp_path / "phone.mp4").video
    assert back.shape == upright.shape
    assert psnr(back, upright) > 30  # this film is written with coarse chroma, as most programs do


def test_an_uneven_film_is_sampled_at_the_nearest_stamp_and_stills_are_held(tmp_path):
    film(
        tmp_path / "uneven.mp4", grey_clip([-0.8, -0.4, 0.0, 0.4, 0.8]), "libx264", "yuv420p", [0, 90, 210, 1000, 1100]
    )
    video = read_video(tmp_path / "uneven.mp4", fps=10).video
    assert levels(video) == [-0.8, -0.4, *[0.0] * 8, 0.4]  # 1.14 s are 11 tenths
    assert levels(read_video(tmp_path / "uneven.mp4").video) == [-0.8, -0.4, 0.0, 0.4, 0.8]  # frame for frame


@pytest.mark.parametrize(("fps", "picked"), [(30, [0, 2, 4, 6]), (60, range(8)), (15, [0, 4]), (120, [0, 0, 1, 1, 2])])
def test_a_film_is_resampled_to_the_frames_that_lie_nearest(tmp_path, fps, picked):
    grey = [index / 5 - 0.7 for index in range(8)]
    write_video(tmp_path / "steps.webm", grey_clip(grey), 60)
    video = read_video(tmp_path / "steps.webm", fps=fps).video
    assert video.shape[1] == 8 * fps // 60
    assert video.mean(dim=(0, 2, 3)).tolist()[: len(picked)] == pytest.approx([grey[i] for i in picked], abs=0.05)


@pytest.mark.parametrize("fps", [None, 12, 24])
def test_the_first_seconds_are_counted_exactly(tmp_path, fps):
    write_video(tmp_path / "clip.mp4", smooth_clip(33, 16, 16), 24)
    for frames in (1, 12, 33, 99):
        back = read_video(tmp_path / "clip.mp4", fps, seconds=frames / 24)
        assert back.video.shape[1] == max(1, int(min(frames, 33) / 24 * (fps or 24) + 0.5))
    with pytest.raises(MediaError, match="seconds"):
        read_video(tmp_path / "clip.mp4", seconds=0)


@pytest.mark.parametrize(
    ("name", "encoder", "pixels"),
    [
        ("deep.mkv", "libx265", "yuv420p10le"),
        ("deep.mov", "prores_ks", "yuv422p10le"),
        ("old.avi", "mpeg4", "yuv420p"),
        ("odd.webm", "libvpx-vp9", "yuv420p"),
        ("full.mov", "mjpeg", "yuvj420p"),
        ("new.mp4", "libsvtav1", "yuv420p10le"),
    ],
)
def test_films_of_other_programs_are_read(tmp_path, name, encoder, pixels):
    clip = smooth_clip(5, 65 if name == "odd.webm" else 66, 67 if name == "odd.webm" else 66)
    options = {"libx265": {"x265-params": "log-level=none:crf=5"}, "libsvtav1": {"crf": "8", "preset": "8"}}
    film(tmp_path / name, clip, encoder, pixels, options=options.get(encoder, {"qscale": "2", "crf": "5"}))
    back = read_video(tmp_path / name)
    assert (back.video.shape, back.fps) == (clip.shape, 24)
    assert psnr(back.video, clip) > 28  # coarse chroma and an unsigned matrix; swapped red and blue would give 8 dB


def test_the_alpha_of_films_and_pictures_is_laid_over_black(tmp_path):
    colours = np.zeros((8, 8, 4), np.uint8)
    colours[:, :, 0], colours[:, :4, 3], colours[:, 4:, 3] = (
        200,
        255,
        51,
    )  # red, solid on the left, a fifth on the right
    Image.fromarray(colours).save(tmp_path / "glass.png")
    picture = to_bytes(read_picture(tmp_path / "glass.png"))
    assert picture.shape == (3, 1, 8, 8)
    assert picture[:, 0, 0].tolist() == [[200] * 4 + [40] * 4, [0] * 8, [0] * 8]
    with av.open(str(tmp_path / "glass.mov"), "w") as container:
        stream = container.add_stream("qtrle", rate=24)
        stream.height, stream.width, stream.pix_fmt = 8, 8, "argb"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(colours, format="rgba").reformat(format="argb")))
        container.mux(stream.encode(None))
    assert torch.equal(to_bytes(read_video(tmp_path / "glass.mov", 24).video), picture)


def test_pictures_of_every_kind_are_read(tmp_path):
    ramp = np.linspace(0, 255, 64 * 48).reshape(48, 64).astype(np.uint8)
    grey = from_bytes(torch.from_numpy(ramp)).expand(3, 1, 48, 64)
    for name, mode in (("l.png", "L"), ("p.png", "P"), ("rgb.bmp", "RGB"), ("la.png", "LA"), ("rgb.tiff", "RGB")):
        Image.fromarray(ramp).convert(mode).save(tmp_path / name)
        assert torch.equal(read_picture(tmp_path / name), grey), name
    for name, mode in (("rgb.jpg", "RGB"), ("cmyk.jpg", "CMYK"), ("rgb.webp", "RGB")):
        Image.fromarray(ramp).convert(mode).save(tmp_path / name, quality=95)
        assert psnr(read_picture(tmp_path / name), grey) > 35, name
    Image.fromarray(ramp.astype(np.uint16) * 257).save(tmp_path / "deep.png")  # 257 x 255 = 65535
    assert torch.allclose(read_picture(tmp_path / "deep.png"), grey, atol=1e-6)


def test_a_picture_is_turned_as_the_camera_was_held(tmp_path):
    image = Image.fromarray(rearrange(to_bytes(smooth_clip(1, 16, 24)), "c 1 y x -> y x c").numpy())
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: the camera stood on its left side
    image.save(tmp_path / "phone.png", exif=exif)
    upright = torch.rot90(smooth_clip(1, 16, 24), -1, dims=(2, 3))
    assert torch.equal(to_bytes(read_picture(tmp_path / "phone.png")), to_bytes(upright))


@pytest.mark.parametrize("suffix", VIDEOS)
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.9, 0.999])
def test_a_film_cut_short_is_refused(tmp_path, suffix, kept):
    write_video(tmp_path / f"whole{suffix}", noise_clip(9), 24)
    whole = (tmp_path / f"whole{suffix}").read_bytes()
    (tmp_path / f"cut{suffix}").write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(MediaError, match=rf"cut\{suffix} .*; (copy|export)"):
        read_video(tmp_path / f"cut{suffix}")


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.99])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_picture_cut_short_is_refused(tmp_path, suffix, kept):
    Image.fromarray(rearrange(to_bytes(noise_clip(1)), "c 1 y x -> y x c").numpy()).save(tmp_path / f"whole{suffix}")
    whole = (tmp_path / f"whole{suffix}").read_bytes()
    (tmp_path / f"cut{suffix}").write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(MediaError, match="cannot be read as a picture"):
        read_picture(tmp_path / f"cut{suffix}")


@pytest.mark.parametrize("read", [read_video, read_picture, read_metadata])
@pytest.mark.parametrize(
    "name", ["text.mp4", "text.png", "list.mp4", "empty.mp4", "empty.png", "none.mp4", "folder.mp4"]
)
def test_what_is_no_film_or_picture_is_refused_by_name(tmp_path, read, name):
    (tmp_path / "text.mp4").write_text("a red ball\n" * 99)
    (tmp_path / "text.png").write_text("a red ball\n" * 99)
    write_video(tmp_path / "real.mp4", smooth_clip(1), 24)
    (tmp_path / "list.mp4").write_text(f"#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:1,\n{tmp_path}/real.mp4\n#EXT-X-ENDLIST\n")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(MediaError, match=name):
        read(tmp_path / name)


@pytest.mark.parametrize(
    "address", ["https://host/a.mp4", "file:///tmp/a.mp4", "concat:/tmp/a.mp4", "rtmp://host/a.gif"]
)
def test_addresses_are_refused(tmp_path, monkeypatch, address):
    monkeypatch.chdir(tmp_path)
    for use in (read_video, read_picture, read_metadata, check_writable):
        with pytest.raises(MediaError, match="file on this machine"):
            use(address)


def test_sound_is_passed_over_and_sound_alone_is_no_film(tmp_path):
    sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
    sound.sample_rate = 44100
    for name in ("song.mp4", "talkie.mp4"):
        with av.open(str(tmp_path / name), "w") as container:
            voice = container.add_stream("aac", rate=44100)
            if name == "talkie.mp4":
                stream = container.add_stream("libx264", rate=24)
                stream.height, stream.width = 32, 32
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))))
                container.mux(stream.encode(None))
            container.mux(voice.encode(sound))
            container.mux(voice.encode(None))
    assert read_video(tmp_path / "talkie.mp4").video.shape == (3, 1, 32, 32)
    with pytest.raises(MediaError, match="moving pictures"):
        read_video(tmp_path / "song.mp4")


def test_only_the_listed_containers_and_codecs_are_opened(tmp_path):
    film(tmp_path / "stream.ts", smooth_clip(3), "libx264", "yuv420p")
    (tmp_path / "stream.ts").rename(tmp_path / "stream.mp4")
    with pytest.raises(MediaError, match=r"stream.mp4 cannot be read as a video \(mp4, mov"):
        read_video(tmp_path / "stream.mp4")
    film(tmp_path / "rare.avi", smooth_clip(3), "huffyuv", "yuv422p")
    with pytest.raises(MediaError, match=r"rare.avi must use a codec among .*; got huffyuv"):
        read_video(tmp_path / "rare.avi")


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    write_video(tmp_path / "large.mp4", smooth_clip(9), 24)
    write_picture(tmp_path / "large.png", smooth_clip(1))
    monkeypatch.setattr("vae.media.MOST_CLIP_PIXELS", 8 * 64 * 64)
    with pytest.raises(MediaError, match="too large"):
        read_video(tmp_path / "large.mp4")
    assert read_video(tmp_path / "large.mp4", size=(32, 32)).video.shape == (3, 9, 32, 32)
    monkeypatch.setattr("vae.media.MOST_FRAME_PIXELS", 63 * 64)
    for read, name in ((read_video, "large.mp4"), (read_picture, "large.png")):
        with pytest.raises(MediaError, match="at most 4032 pixels"):
            read(tmp_path / name)


def test_fitting_fills_the_frame_with_the_middle():
    stripes = torch.full((3, 2, 32, 96), -1.0)
    stripes[..., 32:64] = 1.0
    assert torch.equal(fit_picture(stripes, 16, 16), torch.ones(3, 2, 16, 16))
    assert fit_picture(stripes, 32, 96) is stripes
    assert fit_picture(noise_clip(1), 8, 8).std() < 0.1  # 0.58 / 8 by averaging 8 x 8; without antialiasing it stays
    assert fit_picture(torch.zeros(3, 1, 1, 100_000), 64, 64).shape == (3, 1, 64, 64)
    assert psnr(fit_picture(smooth_clip(2, 96, 64), 48, 32), smooth_clip(2, 48, 32)) > 35


def test_reading_to_a_size_equals_reading_and_fitting(tmp_path):
    write_video(tmp_path / "wide.mp4", smooth_clip(3, 48, 80), 24)
    fitted = fit_picture(read_video(tmp_path / "wide.mp4").video, 32, 32)
    assert torch.allclose(read_video(tmp_path / "wide.mp4", size=(32, 32)).video, fitted, atol=1e-6)


class Stop(Exception):
    pass


@pytest.mark.parametrize("suffix", VIDEOS)
@pytest.mark.parametrize("interruption", [Stop, KeyboardInterrupt])
def test_an_interrupted_film_leaves_the_folder_as_it_was(tmp_path, suffix, interruption):
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
def test_a_disk_that_takes_no_more_is_one_sentence(tmp_path, suffix):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, limits[1]))  # the kernel refuses writes, as a full disk does
    try:
        with pytest.raises(DiskError, match=rf"clip\{suffix} could not be written: [^\n]+; ") as caught:
            if suffix == ".png":
                write_picture(tmp_path / "clip.png", noise_clip(1), metadata=REQUEST)
            else:
                write_video(tmp_path / f"clip{suffix}", noise_clip(), 24, metadata=REQUEST)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [*VIDEOS, ".png"])
def test_a_full_disk_is_called_full(tmp_path, monkeypatch, suffix):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError, match=r"disk is full; .* free some space"):
        if suffix == ".png":
            write_picture(tmp_path / "clip.png", noise_clip(1))
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
def test_a_place_that_cannot_be_written_is_refused_before_any_work(tmp_path, name, rule):
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file.mp4").touch()

    def frames():
        raise AssertionError("a frame was rendered")
        yield

    with pytest.raises(MediaError, match=rule):
        write_video(tmp_path / name, frames(), 24)


def test_a_closed_folder_is_refused(tmp_path):
    if os.geteuid() == 0:
        folder = Path("/proc/self")  # nobody may write there, not even root
    else:
        folder = tmp_path / "closed"
        folder.mkdir(mode=0o555)
    with pytest.raises(MediaError, match=r"cannot be written: .*; choose another"):
        check_writable(folder / "clip.mp4")


def test_checking_a_place_leaves_no_trace_and_follows_links(tmp_path):
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
        ("clip.png", torch.zeros(3, 2, 64, 64), 24, "write_picture"),
    ],
)
def test_frames_that_cannot_be_written_are_refused(tmp_path, name, frames, fps, rule):
    with pytest.raises(MediaError, match=rule):
        write_video(tmp_path / name, frames, fps)
    assert not list(tmp_path.iterdir())


def test_a_contact_sheet_shows_the_frames_enlarged_and_named(tmp_path):
    clips = [smooth_clip(17, 16, 24), noise_clip(2, 8, 8)]
    sheet = contact_sheet(clips, captions=["a red ball " * 90, "红色的球"], columns=3, scale=2)
    assert sheet.dtype == torch.uint8
    frame = sheet[:, 4 : 4 + 32, 4 + 52 : 4 + 52 + 48]  # the second cell of the first row: 48 and a margin of 4 further
    assert torch.equal(frame[:, ::2, ::2], to_bytes(clips[0][:, 8]))
    assert torch.equal(frame[:, 1::2, 1::2], to_bytes(clips[0][:, 8]))
    captions = [sheet[:, 4 + 36 : 4 + 36 + 20], sheet[:, -26:]]
    assert all((caption == 0).any() for caption in captions)  # ink
    write_picture(tmp_path / "sheet.png", sheet)
    assert torch.equal(to_bytes(read_picture(tmp_path / "sheet.png"))[:, 0], sheet)
    for wrong in ({"captions": ["one"]}, {"columns": 0}, {"font": tmp_path / "none.ttf"}):
        with pytest.raises(MediaError):
            contact_sheet(clips, **wrong)


def test_a_glimpse_is_spread_evenly_over_a_film_however_long(tmp_path):
    frames = 300
    film = repeat(torch.linspace(-1, 1, frames), "f -> c f 24 40", c=3).contiguous()
    write_video(tmp_path / "long.mkv", film, 25)
    bytes_of = to_bytes(film[0, :, 0, 0]).int()
    seen = to_bytes(read_glimpse(tmp_path / "long.mkv", 8, 512)[0, :, 0, 0]).int()
    assert len(seen) == 8 and seen[0] == bytes_of[0] and seen[-1] == bytes_of[-1]
    places = torch.tensor([(bytes_of - byte).abs().argmin() for byte in seen])
    wanted = torch.linspace(0, frames - 1, 8)
    assert (places - wanted).abs().max() <= frames / 8 / 4  # of the spacing, a quarter: four times as many are kept
    whole = read_glimpse(tmp_path / "long.mkv", 400, 512)
    assert torch.equal(whole, read_video(tmp_path / "long.mkv").video)


def test_a_glimpse_is_no_larger_than_asked_and_of_the_same_shape(tmp_path):
    write_video(tmp_path / "film.mp4", torch.rand(3, 5, 48, 96) * 2 - 1, 8)
    write_picture(tmp_path / "tall.png", torch.rand(3, 1, 200, 20) * 2 - 1)
    assert read_glimpse(tmp_path / "film.mp4", 3, 32).shape == (3, 3, 16, 32)
    assert read_glimpse(tmp_path / "film.mp4", 8, 512).shape == (3, 5, 48, 96)
    assert read_glimpse(tmp_path / "tall.png", 8, 50).shape == (3, 1, 50, 5)
