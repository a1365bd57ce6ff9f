"""Films and pictures as people have them: turned, mirrored, anamorphic, HDR, interlaced, without a duration."""

import io
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition
from PIL import Image, ImageCms

from vae.video.convert import measure_peak
from vae.video.image import read_image
from vae.video.pixels import MediaError, to_uint8
from vae.video.read import read_duration, read_info, read_sampled_frames, read_video
from vae.video.tonemap import SDR_WHITE, compress_light, pq_code, pq_light, to_bt709

ROWS, COLUMNS = 32, 48


def picture(number: int = 0, rows: int = ROWS, columns: int = COLUMNS) -> np.ndarray:
    """A grey picture with a yellow mark at the top left and a red bar that moves to the right."""
    pixels = np.full((rows, columns, 3), 90, np.uint8)
    pixels[2:8, 2:14] = (240, 220, 30)
    pixels[rows // 2 : rows // 2 + 8, 4 + 2 * number : 12 + 2 * number] = (220, 40, 40)
    return pixels


def write_film(
    path, pictures, codec="libx264", pix_fmt="yuv420p", fps=24, options=None, tags=None, convert=None, **settings
):
    """Write a film as other programs do; `tags` are attributes of the encoder, `settings` those of the container."""
    with av.open(str(path), "w", **settings) as out:
        stream = out.add_stream(codec, rate=fps, options=options or ({"crf": "4"} if codec == "libx264" else {}))
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pix_fmt
        for key, value in (tags or {}).items():
            setattr(stream.codec_context, key, value)
        for number, pixels in enumerate(pictures):
            layout = "rgb48le" if pixels.dtype == np.uint16 else "rgb24"
            frame = av.VideoFrame.from_ndarray(pixels, format=layout)
            frame = convert(frame) if convert else frame
            frame.pts = number
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def set_display_matrix(path, matrix):
    """Write a display matrix (a, b, c, d) into the track header of an mp4 (ISO/IEC 14496-12)."""
    a, b, c, d = matrix
    content = bytearray(path.read_bytes())
    at = content.find(b"tkhd") + 4 + 4 + 20 + 16
    for index, value in enumerate((a, b, 0, c, d, 0, 0, 0, 1)):
        struct.pack_into(">i", content, at + 4 * index, value << (30 if index % 3 == 2 else 16))
    path.write_bytes(content)


def placed(pixels: np.ndarray, matrix) -> np.ndarray:
    """Move each pixel (x, y) to (a x + c y, b x + d y), as a player does, and shift the result to the origin."""
    a, b, c, d = matrix
    y, x = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
    across, down = a * x + c * y, b * x + d * y
    shown = np.zeros((np.ptp(down) + 1, np.ptp(across) + 1, 3), np.uint8)
    shown[down - down.min(), across - across.min()] = pixels
    return shown


def first_frame(path, **settings) -> np.ndarray:
    return to_uint8(read_video(path, **settings).video)[:, 0].permute(1, 2, 0).numpy()


def difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


MATRICES = [(1, 0, 0, 1), (-1, 0, 0, -1), (0, 1, -1, 0), (0, -1, 1, 0)]  # rotations
MATRICES += [(-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0)]  # mirrored


@pytest.mark.parametrize("matrix", MATRICES)
def test_a_film_is_shown_as_each_of_the_eight_display_matrices_says(tmp_path, matrix):
    path = write_film(tmp_path / "phone.mp4", [picture()])
    set_display_matrix(path, matrix)
    expected = placed(picture(), matrix)
    assert difference(first_frame(path), expected) < 3
    rows, columns, *_ = expected.shape
    assert read_info(path)[:2] == (rows, columns) == read_sampled_frames(path, 1, 999).shape[2:]


@pytest.mark.parametrize(("aspect", "size"), [(Fraction(2), (32, 96)), (Fraction(1, 2), (64, 48)), (1, (32, 48))])
def test_pixels_that_are_not_square_become_square_and_no_detail_is_lost(tmp_path, aspect, size):
    path = write_film(tmp_path / "tape.mp4", [picture()], tags={"sample_aspect_ratio": Fraction(aspect)})
    rows, columns = size
    stretched = np.asarray(Image.fromarray(picture()).resize((columns, rows), Image.Resampling.BICUBIC))
    assert first_frame(path).shape == (rows, columns, 3) and difference(first_frame(path), stretched) < 4
    assert difference(first_frame(path, size=(16, 24)), np.asarray(_fitted(stretched, 24, 16))) < 6
    set_display_matrix(path, (0, 1, -1, 0))
    assert first_frame(path).shape == (columns, rows, 3)


def _fitted(pixels, columns, rows):
    """Crop at the center and resize, by Pillow."""
    height, width = pixels.shape[:2]
    kept = min(width, round(height * columns / rows)), min(height, round(width * rows / columns))
    left, top = (width - kept[0]) // 2, (height - kept[1]) // 2
    cropped = Image.fromarray(pixels[top : top + kept[1], left : left + kept[0]])
    return cropped.resize((columns, rows), Image.Resampling.BICUBIC)


BT2020_OF_BT709 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])


def chart() -> np.ndarray:
    """A ramp of greys over four colours, (64, 96, 3) in [0, 1], of BT.709 with a gamma of 2.4."""
    colours = np.zeros((64, 96, 3))
    colours[:32] = np.linspace(0, 1, 96)[None, :, None]
    for index, colour in enumerate([(0.9, 0.1, 0.1), (0.1, 0.8, 0.1), (0.1, 0.2, 0.9), (0.9, 0.8, 0.2)]):
        colours[32:, 24 * index : 24 * index + 24] = colour
    return colours


def pq_of(light):
    return pq_code(light)


def hlg_of(light):
    """Return HLG codes of the light of a display of 1,000 cd/m2 (BT.2100)."""
    luma = (light @ np.array([0.2627, 0.6780, 0.0593]))[..., None] / 1000
    scene = np.clip(light / 1000 * np.maximum(luma, 1e-9) ** (1 / 1.2 - 1), 0, 1)
    upper = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), upper)


def sdr_of(light):
    return (light / SDR_WHITE) ** (1 / 2.4)


@pytest.mark.parametrize(("transfer", "code"), [(16, pq_of), (18, hlg_of), (14, sdr_of)])
def test_pictures_in_pq_hlg_and_bt2020_look_like_the_same_picture_in_sdr(tmp_path, transfer, code):
    light = (chart() ** 2.4 @ BT2020_OF_BT709.T) * SDR_WHITE
    pixels = (code(light) * 65535).round().astype(np.uint16)
    path = write_film(
        tmp_path / "hdr.mp4",
        [pixels] * 3,
        "libx265",
        "yuv420p10le",
        options={"x265-params": "log-level=none:crf=4"},
        tags={"color_primaries": 9, "color_trc": transfer, "colorspace": 9, "color_range": 1},
        convert=lambda frame: frame.reformat(format="yuv420p10le", dst_colorspace=9, dst_color_range=1),
    )
    shown, wanted = first_frame(path), (chart() * 255).round()
    assert difference(shown[:30], wanted[:30]) < 3  # greys
    for index in range(4):  # away from the edges, where colour is stored at half the resolution
        centre = slice(24 * index + 6, 24 * index + 18)
        assert np.abs(shown[40:60, centre].mean((0, 1)) - wanted[40:60, centre].mean((0, 1))).max() < 8
    assert read_info(path).remarks == (
        "its colours are HDR or wide, and are tone-mapped to those of a usual screen (BT.709)",
    )
    assert transfer != 16 or SDR_WHITE <= measure_peak(path) < 1.1 * SDR_WHITE


def test_the_tone_curve_keeps_shadows_rises_and_ends_at_white():
    light = torch.linspace(0, 1000, 500)
    shown = compress_light(light, 1000.0)
    assert torch.allclose(shown[light < 80], light[light < 80], rtol=1e-3, atol=0.05)
    assert (shown.diff() > -1e-3).all() and shown[-1] == pytest.approx(SDR_WHITE, rel=1e-3)
    assert pq_light(pq_code(np.array([0.0, 1, 203, 10_000]))) == pytest.approx([0.0, 1, 203, 10_000], rel=1e-6)
    bright = torch.full((1, 1, 3), round(float(pq_code(np.array(1000.0))) * 65535))
    assert to_bt709(bright, 16, 9, 1000.0).tolist() == [[[255, 255, 255]]]


@pytest.mark.parametrize(("colour_range", "matrix"), [(1, 1), (2, 1), (1, 5), (2, 9)])
def test_range_and_matrix_are_read_as_the_file_says(tmp_path, colour_range, matrix):
    convert = lambda frame: frame.reformat(format="yuv444p", dst_colorspace=matrix, dst_color_range=colour_range)
    path = write_film(
        tmp_path / "film.mkv",
        [picture()],
        "ffv1",
        "yuv444p",
        tags={"color_range": colour_range, "colorspace": matrix, "color_primaries": 1, "color_trc": 1},
        convert=convert,
    )
    assert difference(first_frame(path), picture()) < 2


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
@pytest.mark.parametrize("top_first", [True, False])
def test_an_interlaced_film_is_deinterlaced_frame_for_frame(tmp_path, codec, top_first):
    fields = [picture(number) for number in range(16)]
    for pixels in fields:
        pixels[8:] = 90
        pixels[:8] = 90
    for number, pixels in enumerate(fields):  # a tall bar moves two columns a field
        pixels[4:28, 4 + 2 * number : 12 + 2 * number] = (220, 40, 40)
    woven = []
    for number in range(8):
        both = fields[2 * number].copy()
        both[int(top_first) :: 2] = fields[2 * number + 1][int(top_first) :: 2]
        woven.append(both)
    if codec == "libx264":
        options = {"crf": "4", "x264-params": f"interlaced=1:{'tff' if top_first else 'bff'}=1"}
        path = write_film(tmp_path / "tape.mp4", woven, codec, options=options, fps=25)
    else:
        options = {"flags": "+ildct+ilme", "qscale": "2", "b": "4M", "top": str(int(top_first))}
        path = write_film(tmp_path / "tape.mpg", woven, codec, options=options, fps=25, format="mpeg")
    video = read_video(path)
    assert (
        video.video.shape[1] == 8
        and video.fps == 25
        and "it is interlaced, and is deinterlaced" in read_info(path).remarks
    )
    red = to_uint8(video.video)[0, 1:-1].float()

    def combs(rows):
        return float((rows[:, 1:-1] - (rows[:, :-2] + rows[:, 2:]) / 2).abs().mean())

    stored = torch.from_numpy(np.stack(woven)[1:-1, ..., 0]).float()
    assert combs(red[:, 8:24]) < 0.35 * combs(stored[:, 8:24])


def test_the_film_is_read_and_not_the_thumbnails_or_the_cover_before_it(tmp_path):
    for name, disposition in (("thumbs.mkv", Disposition.default), ("cover.mp4", Disposition.attached_pic)):
        with av.open(str(tmp_path / name), "w") as out:
            small, film = out.add_stream("mjpeg", rate=1), out.add_stream("libx264", rate=24)
            small.width = small.height = 120 if name == "cover.mp4" else 32
            small.pix_fmt, small.disposition = "yuvj420p", disposition
            film.width, film.height, film.pix_fmt = COLUMNS, ROWS, "yuv420p"
            for number in range(4 if name == "thumbs.mkv" else 1):
                frame = av.VideoFrame.from_ndarray(np.full((small.height, small.width, 3), 200, np.uint8))
                frame = frame.reformat(format="yuvj420p")
                frame.pts = number
                out.mux(small.encode(frame))
            for number in range(12):
                frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
                frame.pts = number
                out.mux(film.encode(frame))
            for stream in (small, film):
                out.mux(stream.encode(None))
        assert read_video(tmp_path / name).video.shape == (3, 12, ROWS, COLUMNS), name


def test_a_webm_without_a_duration_is_counted(tmp_path):
    path = write_film(
        *(tmp_path / "recorded.webm", [picture(number) for number in range(12)], "libvpx"),
        options={"deadline": "realtime", "cpu-used": "8", "b": "400k"},
        format="webm",
        container_options={"live": "1"},
    )
    with av.open(str(path)) as container:
        assert container.duration is None
    assert read_duration(path) == pytest.approx(0.5, abs=0.01) and read_video(path, 24).video.shape[1] == 12


@pytest.mark.parametrize(
    ("name", "muxer", "codec"),
    [
        *(("camera.MTS", "mpegts", "libx264"), ("tv.ts", "mpegts", "mpeg2video"), ("tape.mpg", "mpeg", "mpeg2video")),
        *(("old.flv", "flv", "libx264"), ("older.flv", "flv", "flv"), ("phone.3gp", "3gp", "libx264")),
        *(("first.3gp", "3gp", "h263"), ("disc.vob", "vob", "mpeg2video"), ("early.mpg", "mpeg", "mpeg1video")),
    ],
)
def test_films_of_cameras_tapes_and_old_phones_are_read_whole(tmp_path, name, muxer, codec):
    rows, columns = (96, 128) if codec == "h263" else (ROWS, COLUMNS)  # H.263 has five sizes, with pixels of 12:11
    pictures = [picture(number, rows, columns) for number in range(12)]
    options = {"b": "3M", "qscale": "2"} if codec != "libx264" else None
    path = write_film(tmp_path / name, pictures, codec, fps=25, options=options, format=muxer)
    video = to_uint8(read_video(path, 25, size=(rows, columns)).video)
    assert video.shape == (3, 12, rows, columns) and read_duration(path) == pytest.approx(12 / 25, abs=0.021)
    assert difference(video.permute(1, 2, 3, 0).numpy(), np.stack(pictures)) < (12 if codec == "h263" else 6)


def test_a_truncated_flv_is_refused(tmp_path):
    path = write_film(tmp_path / "whole.flv", [picture(number) for number in range(12)], format="flv")
    (tmp_path / "cut.flv").write_bytes(path.read_bytes()[:-300])
    with pytest.raises(MediaError, match=r"cut\.flv ends before its last frame"):
        read_video(tmp_path / "cut.flv")


def matrix_profile(red, green, blue) -> bytes:
    """Return an ICC profile of three colorants in XYZ at D50 and a gamma of 2.2 (ICC.1:2001-04)."""
    number = lambda value: struct.pack(">i", round(value * 65536))
    xyz = lambda values: b"XYZ \0\0\0\0" + b"".join(map(number, values))
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(2.2 * 256)) + b"\0\0"
    tags = [
        (b"desc", b"desc\0\0\0\0" + struct.pack(">I", 2) + b"W\0" + b"\0" * 79),
        (b"cprt", b"text\0\0\0\0none\0\0\0\0"),
    ]
    tags += [(b"wtpt", xyz((0.9642, 1, 0.8249))), (b"rXYZ", xyz(red)), (b"gXYZ", xyz(green)), (b"bXYZ", xyz(blue))]
    tags += [(name, curve) for name in (b"rTRC", b"gTRC", b"bTRC")]
    table, body, begin = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags:
        table += name + struct.pack(">II", begin + len(body), len(content))
        body += content + b"\0" * (-len(content) % 4)
    size = begin + len(body)
    head = (
        struct.pack(">I", size)
        + b"\0\0\0\0"
        + b"\x02\x40\0\0"
        + b"mntrRGB XYZ "
        + struct.pack(">6H", 2026, 1, 1, 0, 0, 0)
    )
    head += b"acsp" + b"\0" * 28 + b"".join(map(number, (0.9642, 1, 0.8249))) + b"\0" * 48
    return head + struct.pack(">I", len(tags)) + table + body


DISPLAY_P3 = matrix_profile((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))


@pytest.mark.parametrize("name", ["wide.png", "wide.jpg", "wide.webp", "wide.tif", "wide.heic"])
def test_a_picture_in_display_p3_has_the_colours_of_the_same_picture_in_srgb(tmp_path, name):
    import pillow_heif

    pillow_heif.register_heif_opener()
    srgb, p3 = ImageCms.createProfile("sRGB"), ImageCms.ImageCmsProfile(io.BytesIO(DISPLAY_P3))
    wide = ImageCms.profileToProfile(Image.fromarray(picture()), srgb, p3, outputMode="RGB")
    assert wide is not None and difference(np.asarray(wide), picture()) > 1
    quality = {} if name.endswith((".png", ".tif")) else {"quality": 100}
    wide.save(tmp_path / name, icc_profile=DISPLAY_P3, **quality)
    shown = to_uint8(read_image(tmp_path / name))[:, 0].permute(1, 2, 0).numpy()
    bar = (slice(18, 22), slice(6, 10))
    assert np.abs(shown[bar].astype(int) - (220, 40, 40)).max() <= (2 if not quality else 12)
    assert difference(shown, picture()) < (1 if not quality else 5)


def test_a_heic_picture_needs_no_right_suffix(tmp_path):
    import pillow_heif

    pillow_heif.register_heif_opener()
    Image.fromarray(picture()).save(tmp_path / "phone.HEIC", "HEIF", quality=90)
    shown = to_uint8(read_image(tmp_path / "phone.HEIC"))[:, 0].permute(1, 2, 0).numpy()
    assert difference(shown, picture()) < 5
    (tmp_path / "renamed.jpg").write_bytes((tmp_path / "phone.HEIC").read_bytes())
    assert torch.equal(read_image(tmp_path / "renamed.jpg"), read_image(tmp_path / "phone.HEIC"))


def test_a_damaged_profile_and_one_of_another_kind_leave_the_picture_as_it_is(tmp_path):
    for name, profile in (("broken.png", b"no profile"), ("cut.png", DISPLAY_P3[:200])):
        Image.fromarray(picture()).save(tmp_path / name, icc_profile=profile)
        assert np.array_equal(to_uint8(read_image(tmp_path / name))[:, 0].permute(1, 2, 0).numpy(), picture())
    Image.fromarray(picture()).convert("L").save(tmp_path / "grey.png", icc_profile=DISPLAY_P3)
    assert to_uint8(read_image(tmp_path / "grey.png"))[0, 0].float().std() > 1


def test_that_a_cut_out_is_shown_on_black_is_said(tmp_path):
    pixels = np.dstack([picture(), np.full((ROWS, COLUMNS), 255, np.uint8)])
    Image.fromarray(pixels).save(tmp_path / "solid.png")
    assert read_info(tmp_path / "solid.png") == (ROWS, COLUMNS, None, None, False, ())
    pixels[:4, :, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "cut.png")
    assert read_info(tmp_path / "cut.png").remarks == ("its transparent parts are shown on black",)
    assert not to_uint8(read_image(tmp_path / "cut.png"))[:, 0, :4].any()
