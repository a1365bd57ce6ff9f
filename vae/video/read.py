"""Read videos and images from disk as tensors (3, F, Y, X) in [-1, 1]."""

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

MAX_FRAME_PIXELS = 2**26  # of a frame or image: 8192 x 8192, above most cameras and below a decompression bomb
MAX_CLIP_PIXELS = 2**30  # of a whole clip: 12 GiB as float32, for example 500 frames of 1080p
MILLISECOND = Fraction(1, 1000)  # time base of Matroska and WebM, the coarsest that Longtake writes
UNSPECIFIED = 2  # ITU-T H.273: no color matrix given

# Allowed demuxers and decoders, by FFmpeg's names. Playlists, streams and scripts are not among them.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,gif,avi"
CODECS = "h264,hevc,av1,libdav1d,vp8,vp9,libvpx,libvpx-vp9,mpeg4,mpeg2video,mjpeg,prores,ffv1,gif,png,qtrle"
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")  # any other suffix is a video

# Interpolate chroma: swscale repeats it by default, which costs 13 dB on a smooth clip of 64 x 64.
EXACT = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
    | Interpolation.BITEXACT
)


class DecodedVideo(NamedTuple):
    """The result of `read_video`: pixels (3, F, Y, X) in [-1, 1] and the frame rate."""

    video: Tensor
    fps: Fraction


def read_video(
    path: str | Path,
    fps: float | Fraction | None = None,
    seconds: float | None = None,
    *,
    size: tuple[int, int] | None = None,
) -> DecodedVideo:
    """Read a video as (3, F, Y, X) in [-1, 1]: the first `seconds` or all of it, resampled to `fps` or frame by frame.

    Resampling picks the frame with the nearest time stamp for each tick of 1 / fps, but none more than half a tick
    early, so that a held frame stays. Without `fps`, every frame is returned, and the rate is the average one if frame
    times are uneven. Frames are rotated as the file says, and alpha is composited over black (VP8's and VP9's alpha is
    ignored). `size` is (rows, columns) for `fit_image`, applied to each frame.

    Raises MediaError naming the file, and the codec if that is the reason.
    """
    if seconds is not None and not seconds > 0:
        raise MediaError(f"seconds must be above 0; got {seconds}; leave it out to read the whole video")
    rate = None if fps is None else exact_fps(fps)
    images: list[Tensor] = []
    with open_video(path) as container:
        stream = select_video_stream(container, path)
        ends: list[Fraction] = []
        frames = decode_frames(container, stream)
        selected = _every_frame(frames, seconds, ends) if rate is None else _resample(frames, rate, seconds)
        last = None
        for frame in selected:
            image = images[-1] if frame is last else frame_to_tensor(frame, size)
            last = frame
            if images and image.shape != images[0].shape:
                raise MediaError(
                    f"{path} changes its size midway; give size=(rows, columns) to bring all frames to one"
                )
            images.append(image)
            if len(images) * image[0].numel() > MAX_CLIP_PIXELS:
                raise MediaError(f"{path} is too large to hold in memory; give fewer seconds, a lower fps or a size")
        if not images:
            raise MediaError(f"{path} holds no frame that can be decoded; export it again")
        rate = rate or frame_rate(container, stream, len(images), ends[-1])
    channels, rows, columns = images[0].shape
    video = torch.empty(channels, len(images), rows, columns)
    for index, image in enumerate(images):
        video[:, index] = from_uint8(image) if image.dtype == torch.uint8 else image
    return DecodedVideo(video, rate)


def read_image(path: str | Path) -> Tensor:
    """Read an image as (3, 1, Y, X) in [-1, 1], rotated by its EXIF tag, alpha over black, 16-bit values kept.

    Raises MediaError naming the file if it is missing, broken, truncated, too large or no image.
    """
    check_readable(path)
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
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
        kinds = ", ".join(IMAGE_FORMATS)
        raise MediaError(f"{path} cannot be read as an image ({kinds}): {error}; save it again as PNG") from error
    return from_uint8(rearrange(pixels, "y x c -> c 1 y x").contiguous())


def read_sampled_frames(path: str | Path, frames: int, side: int) -> Tensor:
    """Read evenly spaced frames of a video of any duration, or an image, as (3, F, Y, X) in [-1, 1].

    Returns `frames` frames, or all if there are fewer, scaled down so that no side is longer than `side` pixels. Raises
    MediaError naming the file if it cannot be decoded.
    """
    if str(path).lower().endswith(IMAGE_SUFFIXES):
        image = read_image(path)
        return fit_image(image, *_limit_size(side, *image.shape[2:]))
    kept: dict[int, Tensor] = {}
    interval, number, size, last = 1, -1, None, None  # the number of frames is unknown, so `interval` doubles
    with open_video(path) as container:
        stream = select_video_stream(container, path)
        for number, (_, _, last) in enumerate(decode_frames(container, stream)):
            size = size or _limit_size(side, *frame_to_tensor(last, None).shape[1:])
            if number % interval == 0:
                kept[number] = frame_to_tensor(last, size)
            if len(kept) == 4 * frames:  # so each wanted frame has one within a quarter of the spacing
                interval *= 2
                kept = {index: image for index, image in kept.items() if index % interval == 0}
        if last is None:
            raise MediaError(f"{path} holds no frame that can be decoded; export it again")
        kept[number] = frame_to_tensor(last, size)
    wanted = torch.linspace(0, number, min(frames, number + 1)).tolist()
    nearest = [kept[min(kept, key=lambda index: abs(index - position))] for position in wanted]
    return torch.stack([from_uint8(image) if image.dtype == torch.uint8 else image for image in nearest], 1)


def _limit_size(side: int, rows: int, columns: int) -> tuple[int, int]:
    scale = min(1.0, side / max(rows, columns))
    return max(1, round(rows * scale)), max(1, round(columns * scale))


def read_metadata(path: str | Path) -> dict[str, str]:
    """Read the metadata texts of a video or PNG, or of a GIF from `<file>.json`; keys are lower case.

    Raises MediaError if the file cannot be read.
    """
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


def read_duration(path: str | Path) -> float:
    """Read the duration of a video in seconds from its header. Raises MediaError if it has none."""
    with open_video(path) as container:
        stream = select_video_stream(container, path)
        if stream.duration and stream.time_base:
            return float(stream.duration * stream.time_base)
        if container.duration:
            return container.duration / 1e6  # FFmpeg counts microseconds
    raise MediaError(f"{path} must say how long it lasts; it does not; export it again as mp4 with H.264")


def check_readable(path: str | Path) -> Path:
    """Return the path if it is a file that is not empty. Raises MediaError otherwise."""
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
    """Open a complete video through a Python file object, so that FFmpeg can access that file only.

    Raises MediaError if it cannot be opened or decoded, is truncated, or refers to other files.
    """
    path = check_readable(path)

    def refuse(address: str, flags: int, options: dict) -> None:
        raise MediaError(f"{path} must be one file; it points to {address}; export it as one file")

    allowed = {"format_whitelist": CONTAINERS, "codec_whitelist": CODECS}
    try:
        with (
            path.open("rb") as file,
            av.open(file, "r", container_options=allowed, metadata_errors="replace", io_open=refuse) as container,
        ):
            if _is_truncated(path, container):
                raise MediaError(f"{path} ends before its last frame; copy or download it again")
            yield container
    except DiskError:  # from a file that is written within the block
        raise
    except (av.error.FFmpegError, OSError) as error:
        kinds = "mp4, mov, mkv, webm, gif, avi"
        remedy = "export it again as mp4 with H.264"
        raise MediaError(f"{path} cannot be read as a video ({kinds}): {reason(error)}; {remedy}") from error


def _is_truncated(path: Path, container: InputContainer) -> bool:
    """Compare the sizes in the file with its own size: FFmpeg decodes a truncated file without an error."""
    actual_size = path.stat().st_size
    if "mp4" in container.format.name:
        return any(
            entry.pos + entry.size > actual_size for stream in container.streams for entry in stream.index_entries
        )
    with path.open("rb") as file:
        head = file.read(4096)
        file.seek(max(0, actual_size - 64))
        tail = file.read()
    if container.format.name == "gif":
        return not tail.rstrip(b"\0\r\n").endswith(b";")  # GIF89a's trailer, and bytes that some programs append
    if "matroska" in container.format.name:  # RFC 9559: an EBML header, then a Segment of known or unknown size
        size, begin = _ebml_size(head, 4)
        segment = begin + (size or 0)
        if head[segment : segment + 4] == b"\x18\x53\x80\x67":
            size, begin = _ebml_size(head, segment + 4)
            return size is not None and begin + size > actual_size
    return False


def _ebml_size(head: bytes, at: int) -> tuple[int | None, int]:
    """Read a variable-size integer (RFC 8794); return it, or None for the unknown size (all ones), and its end."""
    width = 9 - head[at].bit_length()
    unknown = (1 << 7 * width) - 1
    size = int.from_bytes(head[at : at + width]) & unknown
    return (None if size == unknown else size), at + width


def select_video_stream(container: InputContainer, path: str | Path) -> VideoStream:
    """Return the first video stream. Raises MediaError if there is none, or its codec or size is not allowed."""
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise MediaError(f"{path} must hold a video stream; got none; choose another file")
    stream = streams[0]
    codec = stream.codec_context.name if stream.codec_context else "unknown"
    if codec not in CODECS.split(","):
        raise MediaError(f"{path} must use a codec among {CODECS}; got {codec}; export it again as mp4 with H.264")
    if stream.width * stream.height > MAX_FRAME_PIXELS:
        got = f"{stream.width} x {stream.height}"
        raise MediaError(f"{path} must have at most {MAX_FRAME_PIXELS} pixels per frame; got {got}; shrink it first")
    stream.codec_context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}
    stream.thread_type = "AUTO"
    return stream


def decode_frames(container: InputContainer, stream: VideoStream) -> Iterator[tuple[Fraction, Fraction, VideoFrame]]:
    """Yield (begin, end, frame) for each frame, in seconds from the first frame."""
    rate = stream.guessed_rate or stream.average_rate
    default_duration = 1 / rate if rate else Fraction(0)
    origin, end = None, Fraction(0)
    for frame in container.decode(stream):
        start = end
        if frame.pts is not None and frame.time_base is not None:
            stamp = frame.pts * frame.time_base
            origin = stamp if origin is None else origin
            start = stamp - origin
        end = start + (frame.duration * frame.time_base if frame.duration and frame.time_base else default_duration)
        yield start, end, frame


def _every_frame(frames: Iterable, seconds: float | None, ends: list[Fraction]) -> Iterator[VideoFrame]:
    """Yield all frames of the first `seconds`; append their end times to `ends`."""
    for start, end, frame in frames:
        if seconds is not None and start + MILLISECOND >= seconds:
            return
        ends.append(end)
        yield frame


def _resample(frames: Iterable, fps: Fraction, seconds: float | None) -> Iterator[VideoFrame]:
    """Yield the nearest frame for each tick of 1 / fps: the earlier of two, and none more than half a tick early."""
    ticks = None if seconds is None else max(1, int(Fraction(seconds) * fps + Fraction(1, 2)))
    tick, previous, previous_position, end_position = 0, None, Fraction(0), Fraction(0)
    for start, end, frame in frames:
        position = start * fps
        while previous is not None and tick < position and tick != ticks:
            yield frame if position - tick < min(tick - previous_position, Fraction(1, 2)) else previous
            tick += 1
        if tick == ticks:
            return
        previous, previous_position, end_position = frame, position, end * fps
    while previous is not None and tick != ticks and (tick == 0 or tick + Fraction(1, 2) <= end_position):
        yield previous
        tick += 1


def frame_rate(container: InputContainer, stream: VideoStream, frames: int, seconds: Fraction) -> Fraction:
    """Return the declared frame rate if it agrees with the time stamps, else the simplest rate that does.

    Raises MediaError if the duration is 0.
    """
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
    """Convert a decoded frame to (3, Y, X), rotated upright: uint8, or float32 if it is fitted to `size`."""
    matrix = None
    if frame.colorspace == UNSPECIFIED and not frame.format.is_rgb:  # as players do: BT.709 for high definition
        matrix = Colorspace.ITU709 if frame.width >= 1280 or frame.height > 576 else Colorspace.ITU601
    has_alpha = any(component.is_alpha for component in frame.format.components)
    layout = "rgba" if has_alpha else "rgb24"
    pixels = torch.from_numpy(frame.to_ndarray(format=layout, interpolation=EXACT, src_colorspace=matrix))
    if has_alpha:
        pixels = (pixels[..., :3].float() * pixels[..., 3:] / 255).round().to(torch.uint8)
    image = rearrange(torch.rot90(pixels, round(frame.rotation / 90)), "y x c -> c y x").contiguous()
    if size is None:
        return image
    return fit_image(from_uint8(image)[:, None], *size)[:, 0]
