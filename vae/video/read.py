"""Read videos and images from disk as tensors (3, F, Y, X) in [-1, 1]."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import torch
from av.video.frame import VideoFrame
from PIL import Image
from torch import Tensor

from vae.video.container import (
    MILLISECOND,
    check_readable,
    count_seconds,
    decode_frames,
    frame_rate,
    open_video,
    resample_frames,
    select_audio_stream,
    select_video_stream,
    stream_seconds,
)
from vae.video.convert import FrameConverter, frame_primaries, has_alpha, shown_size
from vae.video.image import IMAGE_SUFFIXES, describe_image, read_image
from vae.video.pixels import MediaError, exact_fps, fit_image, from_uint8
from vae.video.sound import decode_sound, silence
from vae.video.tonemap import needs_conversion
from vae.video.write import CONTAINER_KEYS, read_sidecar

MAX_CLIP_PIXELS = 2**30  # of a whole clip: 12 GiB as float32, for example 500 frames of 1080p
EXPORT_AGAIN = "holds no frame that can be decoded; export it again"


class DecodedVideo(NamedTuple):
    """The result of `read_video`: pixels (3, F, Y, X) in [-1, 1] and the frame rate."""

    video: Tensor
    fps: Fraction


class MediaInfo(NamedTuple):
    """A video or image as it is shown: rows, columns and remarks on how it is read; of a video, fps and seconds too.

    `has_sound` says whether there is a soundtrack.
    """

    rows: int
    columns: int
    fps: float | None = None
    seconds: float | None = None
    has_sound: bool = False
    remarks: tuple[str, ...] = ()


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
    times are uneven. Frames are turned, mirrored and deinterlaced as the file says, have square pixels, and are BT.709:
    HDR is tone-mapped. Alpha is composited over black (VP8's and VP9's alpha is ignored). `size` is (rows, columns) for
    `fit_image`, applied to each frame.

    Raises MediaError naming the file, and the codec if that is the reason.
    """
    if seconds is not None and not seconds > 0:
        raise MediaError(f"seconds must be above 0; got {seconds}; leave it out to read the whole video")
    rate = None if fps is None else exact_fps(fps)
    images: list[Tensor] = []
    with open_video(path) as container:
        stream = select_video_stream(container, path)
        convert = FrameConverter(path, stream, size)
        ends: list[Fraction] = []
        frames = decode_frames(container, stream)
        selected = _every_frame(frames, seconds, ends) if rate is None else resample_frames(frames, rate, seconds)
        last = None
        for frame in selected:
            image = images[-1] if frame is last else convert(frame)
            last = frame
            if images and image.shape != images[0].shape:
                raise MediaError(
                    f"{path} changes its size midway; give size=(rows, columns) to bring all frames to one"
                )
            images.append(image)
            if len(images) * image[0].numel() > MAX_CLIP_PIXELS:
                raise MediaError(f"{path} is too large to hold in memory; give fewer seconds, a lower fps or a size")
        if not images:
            raise MediaError(f"{path} {EXPORT_AGAIN}")
        rate = rate or frame_rate(container, stream, len(images), ends[-1])
    channels, rows, columns = images[0].shape
    video = torch.empty(channels, len(images), rows, columns)
    for index, image in enumerate(images):
        video[:, index] = from_uint8(image) if image.dtype == torch.uint8 else image
    return DecodedVideo(video, rate)


def read_sampled_frames(path: str | Path, frames: int, side: int) -> Tensor:
    """Read evenly spaced frames of a video of any duration, or an image, as (3, F, Y, X) in [-1, 1].

    Returns `frames` frames, or all if there are fewer, scaled down so that no side is longer than `side` pixels. Raises
    MediaError naming the file if it cannot be decoded.
    """
    if str(path).lower().endswith(IMAGE_SUFFIXES):
        image = read_image(path)
        return fit_image(image, *_limit_size(side, *image.shape[2:]))
    kept: dict[int, Tensor] = {}
    interval, number, convert, last = 1, -1, None, None  # the number of frames is unknown, so `interval` doubles
    with open_video(path) as container:
        stream = select_video_stream(container, path)
        for number, (_, _, last) in enumerate(decode_frames(container, stream)):
            convert = convert or FrameConverter(path, stream, _limit_size(side, *shown_size(stream, last)))
            if number % interval == 0:
                kept[number] = convert(last)
            if len(kept) == 4 * frames:  # so each wanted frame has one within a quarter of the spacing
                interval *= 2
                kept = {index: image for index, image in kept.items() if index % interval == 0}
        if last is None or convert is None:
            raise MediaError(f"{path} {EXPORT_AGAIN}")
        kept[number] = convert(last)
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
    """Read the duration of a video in seconds from its header, or count it by time stamps where that states none.

    Raises MediaError if there are no time stamps either.
    """
    with open_video(path) as container:
        stream = select_video_stream(container, path)
        seconds = stream_seconds(container, stream) or count_seconds(container, stream)
    if seconds is None:
        raise MediaError(f"{path} must say how long it lasts; it does not; export it again as mp4 with H.264")
    return seconds


def read_sound(path: str | Path, seconds: float | None = None) -> Tensor:
    """Read the soundtrack of a video as (2, N) in [-1, 1] at SAMPLE_RATE, from its first frame on.

    Where there is none, or it cannot be decoded, it ends early. Raises MediaError where the file cannot be read.
    """
    with open_video(path) as container:
        video, audio = select_video_stream(container, path), select_audio_stream(container)
        if audio is None:
            return silence(0)
        origin = (video.start_time or 0) * (video.time_base or MILLISECOND)
        return decode_sound(container, audio, origin, seconds)


def read_info(path: str | Path, is_image: bool | None = None) -> MediaInfo:
    """Describe a video by its header and first frame, or an image; by default, the suffix tells one from the other.

    Raises MediaError where it cannot be read.
    """
    if str(path).lower().endswith(IMAGE_SUFFIXES) if is_image is None else is_image:
        image = describe_image(path)
        remarks = ("its transparent parts are shown on black",) if image.transparent else ()
        return MediaInfo(image.rows, image.columns, remarks=remarks)
    with open_video(path) as container:
        stream = select_video_stream(container, path)
        frame = next(iter(container.decode(stream)), None)
        if frame is None:
            raise MediaError(f"{path} {EXPORT_AGAIN}")
        remarks = []
        if has_alpha(frame):
            remarks.append("its transparent parts are shown on black")
        if needs_conversion(frame.color_trc, frame_primaries(frame)):
            remarks.append("its colours are HDR or wide, and are tone-mapped to those of a usual screen (BT.709)")
        if frame.interlaced_frame:
            remarks.append("it is interlaced, and is deinterlaced")
        size, rate = shown_size(stream, frame), stream.average_rate or stream.guessed_rate
        sound = select_audio_stream(container) is not None
    return MediaInfo(*size, float(rate) if rate else None, read_duration(path), sound, tuple(remarks))


def _every_frame(frames: Iterable, seconds: float | None, ends: list[Fraction]) -> Iterator[VideoFrame]:
    """Yield all frames of the first `seconds`; append their end times to `ends`."""
    for start, end, frame in frames:
        if seconds is not None and start + MILLISECOND >= seconds:
            return
        ends.append(end)
        yield frame
