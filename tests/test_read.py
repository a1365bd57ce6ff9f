"""Reading videos and images: formats of other programs, resampling, and refusals in one sentence."""

import math
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from einops import rearrange, repeat
from PIL import Image

from vae.video.pixels import MediaError, exact_fps, fit_image, from_uint8, to_uint8
from vae.video.read import read_image, read_metadata, read_sampled_frames, read_video
from vae.video.write import check_writable, write_image, write_video

VIDEOS = (".mp4", ".webm", ".mkv", ".gif")


def smooth_clip(frames: int = 17, rows: int = 64, columns: int = 64) -> torch.Tensor:
    """A smooth clip in which frames, colour channels, left and right, and top and bottom all differ."""
    f = torch.linspace(0, 1, frames)[:, None, None]
    y = torch.linspace(0, 1, rows)[:, None]
    x = torch.linspace(0, 1, columns)
    red, green, blue = torch.sin(3 * x + 2 * f) * (1 - y), torch.cos(2 * y + f) * x, torch.sin(2 * (y - x) - 3 * f)
    return torch.stack([t.expand(frames, rows, columns) for t in (red, green, blue)]) * 0.9


def noise_clip(frames: int = 17, rows: int = 64, columns: int = 64) -> torch.Tensor:
    return torch.rand(3, frames, rows, columns, generator=torch.Generator().manual_seed(0)) * 2 - 1


def psnr(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return 10 * math.log10(4 / max((ours - theirs).square().mean().item(), 1e-12))


def encode_video(path, clip, encoder, pixels, stamps=None, rate=24, rotation=0, options=None):
    """Write a video as other programs do: any encoder, pixel format, time stamps in 1/1000 s and rotation."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=rate, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *clip.shape[2:], pixels
        stream.codec_context.time_base = Fraction(1, 1000) if stamps else Fraction(1, rate)
        if rotation:
            stream.set_display_rotation(rotation)
        for index, image in enumerate(rearrange(to_uint8(clip), "c f y x -> f y x c").contiguous().numpy()):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pixels)
            frame.pts = stamps[index] if stamps else index
            frame.time_base = stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def grey_clip(levels: list[float]) -> torch.Tensor:
    return torch.tensor(levels)[None, :, None, None].expand(3, len(levels), 32, 32).contiguous()


def levels(video: torch.Tensor) -> list[float]:
    return [round(level, 1) for level in video.mean(dim=(0, 2, 3)).tolist()]


def test_uint8_survives_conversion_to_float_and_back():
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(every)), every)
    assert to_uint8(torch.tensor([-7.0, -1.0, 0.001, 1.0, 9.0])).tolist() == [0, 0, 128, 255, 255]  # clamped
    with pytest.raises(MediaError, match="NaN"):
        to_uint8(torch.tensor([math.nan]))


def test_ntsc_frame_rates_are_exact():
    rates = [exact_fps(fps) for fps in (23.976, 23.98, 29.97, 59.94, 24.0, 12.5, 30, Fraction(24000, 1001), 2.0)]
    assert [str(rate) for rate in rates] == [
        *("24000/1001", "24000/1001", "30000/1001", "60000/1001", "24", "25/2", "30", "24000/1001", "2")
    ]
    for wrong in (0, -1, math.nan, math.inf, 1e9, "fast"):
        with pytest.raises(MediaError, match="fps must be"):
            exact_fps(wrong)


@pytest.mark.parametrize("rotation", [90, -90, 180])
def test_a_video_is_rotated_by_its_display_matrix(tmp_path, rotation):
    clip = smooth_clip(3, 48, 80)
    encode_video(tmp_path / "phone.mp4", clip, "libx264", "yuv420p", rotation=rotation, options={"crf": "5"})
    upright = torch.rot90(clip, rotation // 90, dims=(2, 3))
    back = read_video(tmp_path / "phone.mp4").video
    assert back.shape == upright.shape
    assert psnr(back, upright) > 30  # written with default chroma resampling, as by most programs


def test_a_video_of_variable_rate_is_resampled_to_the_nearest_frame_and_held_frames_stay(tmp_path):
    encode_video(
        tmp_path / "uneven.mp4", grey_clip([-0.8, -0.4, 0.0, 0.4, 0.8]), "libx264", "yuv420p", [0, 90, 210, 1000, 1100]
    )
    video = read_video(tmp_path / "uneven.mp4", fps=10).video
    assert levels(video) == [-0.8, -0.4, *[0.0] * 8, 0.4]  # 1.14 s are 11 tenths
    assert levels(read_video(tmp_path / "uneven.mp4").video) == [-0.8, -0.4, 0.0, 0.4, 0.8]  # frame for frame


@pytest.mark.parametrize(("fps", "picked"), [(30, [0, 2, 4, 6]), (60, range(8)), (15, [0, 4]), (120, [0, 0, 1, 1, 2])])
def test_resampling_picks_the_nearest_frames(tmp_path, fps, picked):
    grey = [index / 5 - 0.7 for index in range(8)]
    write_video(tmp_path / "steps.webm", grey_clip(grey), 60)
    video = read_video(tmp_path / "steps.webm", fps=fps).video
    assert video.shape[1] == 8 * fps // 60
    assert video.mean(dim=(0, 2, 3)).tolist()[: len(picked)] == pytest.approx([grey[i] for i in picked], abs=0.05)


@pytest.mark.parametrize("fps", [None, 12, 24])
def test_the_first_seconds_are_cut_exactly(tmp_path, fps):
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
def test_videos_of_other_encoders_are_read(tmp_path, name, encoder, pixels):
    clip = smooth_clip(5, 65 if name == "odd.webm" else 66, 67 if name == "odd.webm" else 66)
    options = {"libx265": {"x265-params": "log-level=none:crf=5"}, "libsvtav1": {"crf": "8", "preset": "8"}}
    encode_video(tmp_path / name, clip, encoder, pixels, options=options.get(encoder, {"qscale": "2", "crf": "5"}))
    back = read_video(tmp_path / name)
    assert (back.video.shape, back.fps) == (clip.shape, 24)
    assert psnr(back.video, clip) > 28  # coarse chroma and an unsigned matrix; swapped red and blue would give 8 dB


def test_alpha_is_composited_over_black(tmp_path):
    colours = np.zeros((8, 8, 4), np.uint8)
    colours[:, :, 0], colours[:, :4, 3], colours[:, 4:, 3] = (
        200,
        255,
        51,
    )  # red, solid on the left, a fifth on the right
    Image.fromarray(colours).save(tmp_path / "glass.png")
    image = to_uint8(read_image(tmp_path / "glass.png"))
    assert image.shape == (3, 1, 8, 8)
    assert image[:, 0, 0].tolist() == [[200] * 4 + [40] * 4, [0] * 8, [0] * 8]
    with av.open(str(tmp_path / "glass.mov"), "w") as container:
        stream = container.add_stream("qtrle", rate=24)
        stream.height, stream.width, stream.pix_fmt = 8, 8, "argb"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(colours, format="rgba").reformat(format="argb")))
        container.mux(stream.encode(None))
    assert torch.equal(to_uint8(read_video(tmp_path / "glass.mov", 24).video), image)


def test_images_of_every_format_and_mode_are_read(tmp_path):
    ramp = np.linspace(0, 255, 64 * 48).reshape(48, 64).astype(np.uint8)
    grey = from_uint8(torch.from_numpy(ramp)).expand(3, 1, 48, 64)
    for name, mode in (("l.png", "L"), ("p.png", "P"), ("rgb.bmp", "RGB"), ("la.png", "LA"), ("rgb.tiff", "RGB")):
        Image.fromarray(ramp).convert(mode).save(tmp_path / name)
        assert torch.equal(read_image(tmp_path / name), grey), name
    for name, mode in (("rgb.jpg", "RGB"), ("cmyk.jpg", "CMYK"), ("rgb.webp", "RGB")):
        Image.fromarray(ramp).convert(mode).save(tmp_path / name, quality=95)
        assert psnr(read_image(tmp_path / name), grey) > 35, name
    Image.fromarray(ramp.astype(np.uint16) * 257).save(tmp_path / "deep.png")  # 257 x 255 = 65535
    assert torch.allclose(read_image(tmp_path / "deep.png"), grey, atol=1e-6)


def test_an_image_is_rotated_by_its_exif_tag(tmp_path):
    image = Image.fromarray(rearrange(to_uint8(smooth_clip(1, 16, 24)), "c 1 y x -> y x c").numpy())
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: the camera stood on its left side
    image.save(tmp_path / "phone.png", exif=exif)
    upright = torch.rot90(smooth_clip(1, 16, 24), -1, dims=(2, 3))
    assert torch.equal(to_uint8(read_image(tmp_path / "phone.png")), to_uint8(upright))


@pytest.mark.parametrize("suffix", VIDEOS)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9, 0.999])
def test_a_truncated_video_is_refused(tmp_path, suffix, share):
    write_video(tmp_path / f"whole{suffix}", noise_clip(9), 24)
    whole = (tmp_path / f"whole{suffix}").read_bytes()
    (tmp_path / f"cut{suffix}").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(MediaError, match=rf"cut\{suffix} .*; (copy|export)"):
        read_video(tmp_path / f"cut{suffix}")


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_truncated_image_is_refused(tmp_path, suffix, share):
    Image.fromarray(rearrange(to_uint8(noise_clip(1)), "c 1 y x -> y x c").numpy()).save(tmp_path / f"whole{suffix}")
    whole = (tmp_path / f"whole{suffix}").read_bytes()
    (tmp_path / f"cut{suffix}").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(MediaError, match="cannot be read as an image"):
        read_image(tmp_path / f"cut{suffix}")


@pytest.mark.parametrize("read", [read_video, read_image, read_metadata])
@pytest.mark.parametrize(
    "name", ["text.mp4", "text.png", "list.mp4", "empty.mp4", "empty.png", "none.mp4", "folder.mp4"]
)
def test_a_file_that_is_no_video_or_image_is_refused_by_name(tmp_path, read, name):
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
    for use in (read_video, read_image, read_metadata, check_writable):
        with pytest.raises(MediaError, match="file on this machine"):
            use(address)


def test_audio_is_ignored_and_audio_alone_is_no_video(tmp_path):
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
    with pytest.raises(MediaError, match="video stream"):
        read_video(tmp_path / "song.mp4")


def test_only_the_listed_containers_and_codecs_are_opened(tmp_path):
    encode_video(tmp_path / "stream.asf", smooth_clip(3), "mpeg4", "yuv420p")
    (tmp_path / "stream.asf").rename(tmp_path / "stream.mp4")
    with pytest.raises(MediaError, match=r"stream.mp4 cannot be read as a video \(mp4, mov"):
        read_video(tmp_path / "stream.mp4")
    encode_video(tmp_path / "rare.avi", smooth_clip(3), "huffyuv", "yuv422p")
    with pytest.raises(MediaError, match=r"rare.avi must use a codec among .*; got huffyuv"):
        read_video(tmp_path / "rare.avi")


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    write_video(tmp_path / "large.mp4", smooth_clip(9), 24)
    write_image(tmp_path / "large.png", smooth_clip(1))
    monkeypatch.setattr("vae.video.read.MAX_CLIP_PIXELS", 8 * 64 * 64)
    with pytest.raises(MediaError, match="too large"):
        read_video(tmp_path / "large.mp4")
    assert read_video(tmp_path / "large.mp4", size=(32, 32)).video.shape == (3, 9, 32, 32)
    for module in ("container", "image"):
        monkeypatch.setattr(f"vae.video.{module}.MAX_FRAME_PIXELS", 63 * 64)
    for read, name in ((read_video, "large.mp4"), (read_image, "large.png")):
        with pytest.raises(MediaError, match="at most 4032 pixels"):
            read(tmp_path / name)


def test_fit_image_crops_at_the_center_and_resizes():
    stripes = torch.full((3, 2, 32, 96), -1.0)
    stripes[..., 32:64] = 1.0
    assert torch.equal(fit_image(stripes, 16, 16), torch.ones(3, 2, 16, 16))
    assert fit_image(stripes, 32, 96) is stripes
    assert fit_image(noise_clip(1), 8, 8).std() < 0.1  # 0.58 / 8 by averaging 8 x 8; without antialiasing it stays
    assert fit_image(torch.zeros(3, 1, 1, 100_000), 64, 64).shape == (3, 1, 64, 64)
    assert psnr(fit_image(smooth_clip(2, 96, 64), 48, 32), smooth_clip(2, 48, 32)) > 35


def test_reading_at_a_size_equals_reading_and_fit_image(tmp_path):
    write_video(tmp_path / "wide.mp4", smooth_clip(3, 48, 80), 24)
    fitted = fit_image(read_video(tmp_path / "wide.mp4").video, 32, 32)
    assert torch.allclose(read_video(tmp_path / "wide.mp4", size=(32, 32)).video, fitted, atol=1e-6)


def test_sampled_frames_are_spread_evenly_over_a_video_of_any_length(tmp_path):
    frames = 300
    video = repeat(torch.linspace(-1, 1, frames), "f -> c f 24 40", c=3).contiguous()
    write_video(tmp_path / "long.mkv", video, 25)
    values = to_uint8(video[0, :, 0, 0]).int()
    seen = to_uint8(read_sampled_frames(tmp_path / "long.mkv", 8, 512)[0, :, 0, 0]).int()
    assert len(seen) == 8 and seen[0] == values[0] and seen[-1] == values[-1]
    indices = torch.tensor([(values - value).abs().argmin() for value in seen])
    wanted = torch.linspace(0, frames - 1, 8)
    assert (indices - wanted).abs().max() <= frames / 8 / 4  # a quarter of the spacing
    whole = read_sampled_frames(tmp_path / "long.mkv", 400, 512)
    assert torch.equal(whole, read_video(tmp_path / "long.mkv").video)


def test_sampled_frames_are_limited_in_size_and_keep_their_aspect_ratio(tmp_path):
    write_video(tmp_path / "video.mp4", torch.rand(3, 5, 48, 96) * 2 - 1, 8)
    write_image(tmp_path / "tall.png", torch.rand(3, 1, 200, 20) * 2 - 1)
    assert read_sampled_frames(tmp_path / "video.mp4", 3, 32).shape == (3, 3, 16, 32)
    assert read_sampled_frames(tmp_path / "video.mp4", 8, 512).shape == (3, 5, 48, 96)
    assert read_sampled_frames(tmp_path / "tall.png", 8, 50).shape == (3, 1, 50, 5)
