"""Bring films and pictures from disk to tensors, (3, F, Y, X) in [-1, 1], and be the one door to `vae`'s media."""

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import av.error
import numpy as np
import torch
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, Interpolation
from av.video.stream import VideoStream
from einops import rearrange, repeat
from PIL import Image, ImageOps
from torch import Tensor

from vae.video.pixels import DiskError, MediaError, exact_fps, fit_image, from_uint8
from vae.video.write import CONTAINER_KEYS, read_sidecar, reason, refuse_addresses

MAX_FRAME_PIXELS = 2**26  # one frame or picture: 8192 x 8192, beyond most cameras and short of a decompression bomb
MAX_CLIP_PIXELS = 2**30  # a whole clip: 12 GiB as float32, for example 500 frames of 1080p
MILLISECOND = Fraction(1, 1000)  # the time stamps of Matroska and WebM, the coarsest that we write
UNSPECIFIED = 2  # ITU-T H.273: no colour matrix is named

# What may be opened, by the names of FFmpeg's demuxers and decoders: playlists, streams and scripts are not among them.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,gif,avi"
CODECS = "h264,hevc,av1,libdav1d,vp8,vp9,libvpx,libvpx-vp9,mpeg4,mpeg2video,mjpeg,prores,ffv1,gif,png,qtrle"
PICTURES = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
STILLS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")  # a file of another name is a film

# Chroma is interpolated: by default swscale repeats it, which costs 13 dB on a smooth clip of 64 x 64.
EXACT = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
    | Interpolation.BITEXACT
)


class DecodedVideo(NamedTuple):
    """What `read_video` returns: video (3, F, Y, X) in [-1, 1] and its frames a second."""

    video: Tensor
    fps: Fraction


def read_video(
    path: str | Path,
    fps: float | Fraction | None = None,
    seconds: float | None = None,
    *,
    size: tuple[int, int] | None = None,
) -> DecodedVideo:
    """Read a video as (3, F, Y, X) in [-1, 1], at `fps`, or frame for frame; the first `seconds`, or all of it.

    At `fps`, each moment shows the frame with the nearest time stamp, but none more than half a moment early, so that
    a still which lasts stays. Frame for frame, an uneven film plays evenly at its average rate. Frames are turned as
    the camera was held, and alpha is laid over black (VP8's and VP9's is ignored). `size` is (rows, columns) for
    `fit_image`, done frame by frame.
    Raises MediaError naming the file, and the codec when that is the reason.
    """
    if seconds is not None and not seconds > 0:
        raise MediaError(f"seconds must be above 0; got {seconds}; leave it out to read the whole video")
    rate = None if fps is None else exact_fps(fps)
    pictures: list[Tensor] = []
    with open_video(path) as container:
        stream = select_video_stream(container, path)
        ends: list[Fraction] = []
        shown = decode_frames(container, stream)
        chosen = _frame_for_frame(shown, seconds, ends) if rate is None else _resampled(shown, rate, seconds)
        last = None
        for frame in chosen:
            picture = pictures[-1] if frame is last else frame_to_tensor(frame, size)
            last = frame
            if pictures and picture.shape != pictures[0].shape:
                raise MediaError(
                    f"{path} changes its size midway; give size=(rows, columns) to bring all frames to one"
                )
            pictures.append(picture)
            if len(pictures) * picture[0].numel() > MAX_CLIP_PIXELS:
                raise MediaError(f"{path} is too large to hold in memory; give fewer seconds, a lower fps or a size")
        if not pictures:
            raise MediaError(f"{path} holds no frame that can be decoded; export it again")
        rate = rate or frame_rate(container, stream, len(pictures), ends[-1])
    channels, rows, columns = pictures[0].shape
    video = torch.empty(channels, len(pictures), rows, columns)
    for index, picture in enumerate(pictures):
        video[:, index] = from_uint8(picture) if picture.dtype == torch.uint8 else picture
    return DecodedVideo(video, rate)


def read_image(path: str | Path) -> Tensor:
    """Read a picture as (3, 1, Y, X) in [-1, 1], turned as the camera was held, alpha over black, 16 bits kept.

    Raises MediaError naming the file when it is missing, broken, cut short, too large or no picture.
    """
    check_readable(path)
    try:
        with Image.open(path, formats=PICTURES) as image:
            if image.width * image.height > MAX_FRAME_PIXELS:
                raise MediaError(
                    f"{path} must have at most {MAX_FRAME_PIXELS} pixels; got {image.size}; shrink it first"
                )
            image.load()
            image = ImageOps.exif_transpose(image)
            if image.mode == "F":
                raise MediaError(f"{path} must hold whole numbers; got floating point; save it as PNG with 16 bits")
            if image.mode.startswith("I"):
                grey = torch.from_numpy(np.asarray(image).astype(np.float32)) / 65535 * 2 - 1
                return repeat(grey.clamp(-1, 1), "y x -> c 1 y x", c=3).contiguous()
            if image.has_transparency_data:
                image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))
            pixels = torch.from_numpy(np.array(image.convert("RGB")))
    except MediaError:
        raise
    except Exception as error:  # Pillow raises nearly anything on a broken file
        kinds = ", ".join(PICTURES)
        raise MediaError(f"{path} cannot be read as a picture ({kinds}): {error}; save it again as PNG") from error
    return from_uint8(rearrange(pixels, "y x c -> c 1 y x").contiguous())


def read_sampled_frames(path: str | Path, frames: int, side: int) -> Tensor:
    """Read `frames` spread evenly over a film of any duration, or a picture, as (3, F, Y, X) in [-1, 1] with no side
    longer than `side`; of a film that has no more, all.

    Raises MediaError naming the file when it cannot be decoded.
    """
    if str(path).lower().endswith(STILLS):
        picture = read_image(path)
        return fit_image(picture, *_at_most(side, *picture.shape[2:]))
    kept: dict[int, Tensor] = {}
    every, number, size, last = 1, -1, None, None  # `every` grows with the film, of which nobody knows how long it is
    with open_video(path) as container:
        stream = select_video_stream(container, path)
        for number, (_, _, last) in enumerate(decode_frames(container, stream)):
            size = size or _at_most(side, *frame_to_tensor(last, None).shape[1:])
            if number % every == 0:
                kept[number] = frame_to_tensor(last, size)
            if len(kept) == 4 * frames:  # of which the nearest to where a frame is wanted will do
                every *= 2
                kept = {place: picture for place, picture in kept.items() if place % every == 0}
        if last is None:
            raise MediaError(f"{path} holds no frame that can be decoded; export it again")
        kept[number] = frame_to_tensor(last, size)
    wanted = torch.linspace(0, number, min(frames, number + 1)).tolist()
    chosen = [kept[min(kept, key=lambda place: abs(place - want))] for want in wanted]
    return torch.stack([from_uint8(one) if one.dtype == torch.uint8 else one for one in chosen], 1)


def _at_most(side: int, rows: int, columns: int) -> tuple[int, int]:
    share = min(1.0, side / max(rows, columns))
    return max(1, round(rows * share)), max(1, round(columns * share))


def read_metadata(path: str | Path) -> dict[str, str]:
    """Read the texts that travel inside a video or PNG, or beside a GIF in `<file>.json`; their keys in lower case."""
    path = check_readable(path)
    if path.suffix.lower() == ".gif":
        return read_sidecar(path)
    if path.suffix.lower() == ".png":
        try:
            with Image.open(path, formats=["PNG"]) as image:
                image.load()
                found = dict(getattr(image, "text", {}))
        except Exception as error:  # as in `read_image`
            raise MediaError(f"{path} cannot be read as PNG: {error}; save it again as PNG") from error
    else:
        with open_video(path) as container:
            found = dict(container.metadata)
    return {key.lower(): str(text) for key, text in found.items() if key.lower() not in CONTAINER_KEYS}


def read_duration(path: str | Path) -> dict[str, float]:
    """Read how many seconds a film says that it lasts; raises MediaError for one that does not say."""
    with open_video(path) as container:
        stream = select_video_stream(container, path)
        if stream.duration and stream.time_base:
            return {"seconds": float(stream.duration * stream.time_base)}
        if container.duration:
            return {"seconds": container.duration / 1e6}  # FFmpeg counts microseconds
    raise MediaError(f"{path} must say how long it lasts; it does not; export it again as mp4 with H.264")


def check_readable(path: str | Path) -> Path:
    """Return the path of a file that is there and holds something; raises MediaError with the reason otherwise."""
    refuse_addresses(path)
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise MediaError(f"{path} cannot be opened: {reason(error)}; check the name and the folder") from error
    if not stat.S_ISREG(status.st_mode):
        raise MediaError(f"{path} must be a file; got a folder or a device; give the file itself")
    if status.st_size == 0:
        raise MediaError(f"{path} is empty; copy or download it again")
    return Path(path)


@contextmanager
def open_video(path: str | Path) -> Iterator[InputContainer]:
    """Open a whole video through a Python file, so that FFmpeg reaches that file and nothing else."""
    path = check_readable(path)

    def refuse(address: str, flags: int, options: dict) -> None:
        raise MediaError(f"{path} must be one file; it points to {address}; export it as one file")

    allowed = {"format_whitelist": CONTAINERS, "codec_whitelist": CODECS}
    try:
        with (
            path.open("rb") as file,
            av.open(file, "r", container_options=allowed, metadata_errors="replace", io_open=refuse) as container,
        ):
            if _is_cut_short(path, container):
                raise MediaError(f"{path} ends before its last frame; copy or download it again")
            yield container
    except DiskError:  # of a file that is written meanwhile
        raise
    except (av.error.FFmpegError, OSError) as error:
        kinds = "mp4, mov, mkv, webm, gif, avi"
        remedy = "export it again as mp4 with H.264"
        raise MediaError(f"{path} cannot be read as a video ({kinds}): {reason(error)}; {remedy}") from error


def _is_cut_short(path: Path, container: InputContainer) -> bool:
    """Compare what the file declares with what is there: FFmpeg hands out the frames of a cut file without a word."""
    there = path.stat().st_size
    if "mp4" in container.format.name:
        return any(entry.pos + entry.size > there for stream in container.streams for entry in stream.index_entries)
    with path.open("rb") as file:
        head = file.read(4096)
        file.seek(max(0, there - 64))
        tail = file.read()
    if container.format.name == "gif":
        return not tail.rstrip(b"\0\r\n").endswith(b";")  # GIF89a's trailer, and what careless programs add to it
    if "matroska" in container.format.name:  # RFC 9559: an EBML header, then a Segment that knows its size or says not
        size, begin = _ebml_size(head, 4)
        segment = begin + (size or 0)
        if head[segment : segment + 4] == b"\x18\x53\x80\x67":
            size, begin = _ebml_size(head, segment + 4)
            return size is not None and begin + size > there
    return False


def _ebml_size(head: bytes, at: int) -> tuple[int | None, int]:
    """Read a variable-size integer of RFC 8794 and where it ends; None stands for unknown, all ones."""
    width = 9 - head[at].bit_length()
    unknown = (1 << 7 * width) - 1
    size = int.from_bytes(head[at : at + width]) & unknown
    return (None if size == unknown else size), at + width


def select_video_stream(container: InputContainer, path: str | Path) -> VideoStream:
    """Choose the moving pictures of a file; raises MediaError where there are none that may be read."""
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise MediaError(f"{path} must hold moving pictures; got none; choose another file")
    stream = streams[0]
    codec = stream.codec_context.name if stream.codec_context else "unknown"
    if codec not in CODECS.split(","):
        raise MediaError(f"{path} must use a codec among {CODECS}; got {codec}; export it again as mp4 with H.264")
    if stream.width * stream.height > MAX_FRAME_PIXELS:
        got = f"{stream.width} x {stream.height}"
        raise MediaError(f"{path} must have at most {MAX_FRAME_PIXELS} pixels a frame; got {got}; shrink it first")
    stream.codec_context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}
    stream.thread_type = "AUTO"
    return stream


def decode_frames(container: InputContainer, stream: VideoStream) -> Iterator[tuple[Fraction, Fraction, VideoFrame]]:
    """Decode: when each frame appears and disappears, in seconds from the first, and the frame."""
    rate = stream.guessed_rate or stream.average_rate
    step = 1 / rate if rate else Fraction(0)
    origin, end = None, Fraction(0)
    for frame in container.decode(stream):
        start = end
        if frame.pts is not None and frame.time_base is not None:
            stamp = frame.pts * frame.time_base
            origin = stamp if origin is None else origin
            start = stamp - origin
        end = start + (frame.duration * frame.time_base if frame.duration and frame.time_base else step)
        yield start, end, frame


def _frame_for_frame(shown: Iterable, seconds: float | None, ends: list[Fraction]) -> Iterator[VideoFrame]:
    for start, end, frame in shown:
        if seconds is not None and start + MILLISECOND >= seconds:
            return
        ends.append(end)
        yield frame


def _resampled(shown: Iterable, fps: Fraction, seconds: float | None) -> Iterator[VideoFrame]:
    """Choose the nearest frame for each tick of 1/fps, of two the earlier, and none more than half a tick early."""
    last = None if seconds is None else max(1, int(Fraction(seconds) * fps + Fraction(1, 2)))
    tick, held, held_place, finish = 0, None, Fraction(0), Fraction(0)
    for start, end, frame in shown:
        place = start * fps
        while held is not None and tick < place and tick != last:
            yield frame if place - tick < min(tick - held_place, Fraction(1, 2)) else held
            tick += 1
        if tick == last:
            return
        held, held_place, finish = frame, place, end * fps
    while held is not None and tick != last and (tick == 0 or tick + Fraction(1, 2) <= finish):
        yield held
        tick += 1


def frame_rate(container: InputContainer, stream: VideoStream, frames: int, seconds: Fraction) -> Fraction:
    """Believe the declared rate where it agrees with the stamps, else take the simplest that does."""
    declared = [stream.guessed_rate, stream.average_rate] if container.format.name != "gif" else []  # GIFs have none
    for rate in declared:
        if rate and abs(seconds * rate - frames) < Fraction(1, 2):
            return rate
    if not seconds:
        raise MediaError("a video must say how long its frames last; this one does not; give fps")
    precision = stream.time_base or MILLISECOND
    for denominator in range(1, 1002):
        rate = Fraction(round(frames / seconds * denominator), denominator)
        if rate and abs(frames / rate - seconds) <= precision:
            return rate
    return frames / seconds


def frame_to_tensor(frame: VideoFrame, size: tuple[int, int] | None) -> Tensor:
    """Turn a decoded frame into (3, Y, X): uint8, or float32 when it was fitted to `size`."""
    matrix = None
    if frame.colorspace == UNSPECIFIED and not frame.format.is_rgb:  # as players guess: BT.709 from high definition on
        matrix = Colorspace.ITU709 if frame.width >= 1280 or frame.height > 576 else Colorspace.ITU601
    has_alpha = any(component.is_alpha for component in frame.format.components)
    layout = "rgba" if has_alpha else "rgb24"
    pixels = torch.from_numpy(frame.to_ndarray(format=layout, interpolation=EXACT, src_colorspace=matrix))
    if has_alpha:
        pixels = (pixels[..., :3].float() * pixels[..., 3:] / 255).round().to(torch.uint8)
    picture = rearrange(torch.rot90(pixels, round(frame.rotation / 90)), "y x c -> c y x").contiguous()
    if size is None:
        return picture
    return fit_image(from_uint8(picture)[:, None], *size)[:, 0]
