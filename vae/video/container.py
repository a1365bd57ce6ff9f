"""Open video files: which containers and codecs are allowed, the best video stream, and its frames by time stamps.

FFmpeg gets a Python file object and can therefore open no other file. Interlaced frames are deinterlaced as they are
decoded, so that nobody sees the combs.
"""

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import av.error
import av.filter
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vae.video.pixels import DiskError, MediaError
from vae.video.write import reason, refuse_addresses

MAX_FRAME_PIXELS = 2**26  # of a frame or image: 8192 x 8192, above most cameras and below a decompression bomb
MILLISECOND = Fraction(1, 1000)  # time base of Matroska and WebM, the coarsest that Longtake writes
MAX_STREAM_FPS = 60  # that count when streams are compared; formats that know no rate state absurd ones

# Allowed demuxers and decoders, by FFmpeg's names. Playlists, streams and scripts are not among them.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,gif,avi,mpegts,mpeg,flv"
CODECS = (
    "h264,hevc,av1,libdav1d,vp8,vp9,libvpx,libvpx-vp9,mpeg4,mpeg1video,mpeg2video,h263,flv,vp6,vp6f,mjpeg,prores,ffv1,"
    "gif,png,qtrle"
)
AUDIO_CODECS = "aac,mp3,mp3float,opus,libopus,vorbis,flac,alac,ac3,eac3,mp2,mp2float,amrnb,amrwb"  # and any PCM
SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif"),
    *(".mts", ".m2ts", ".ts", ".mpg", ".mpeg", ".vob", ".flv", ".3gp", ".3g2"),
)
GUESSED_DURATIONS = ("mpeg", "mpegts", "flv")  # containers whose duration FFmpeg guesses from parts of the file
STILL_CODECS = ("mjpeg", "png", "gif")  # of covers and thumbnails, where a file has another stream as well
NO_FILM = (
    Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image | Disposition.dependent
)  # streams that are no film, as the file itself says


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

    allowed = {"format_whitelist": CONTAINERS, "codec_whitelist": f"{CODECS},{AUDIO_CODECS},{_pcm_codecs()}"}
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
        kinds = "mp4, mov, mkv, webm, gif, avi, ts, mpg, flv, 3gp"
        remedy = "export it again as mp4 with H.264"
        raise MediaError(f"{path} cannot be read as a video ({kinds}): {reason(error)}; {remedy}") from error


def _pcm_codecs() -> str:
    return ",".join(name for name in sorted(av.codecs_available) if name.startswith("pcm_"))


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
        if container.format.name == "flv":  # Adobe's specification 10.1, annex E: each tag's size follows the tag
            size = int.from_bytes(tail[-4:], "big")
            if not 11 <= size < actual_size:
                return True
            file.seek(actual_size - 4 - size)
            return file.read(1) not in (b"\x08", b"\x09", b"\x12")
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
    """Return the stream with the film: not a cover or thumbnails, and the one with most pixels per second.

    Raises MediaError if there is none, or its codec or size is not allowed.
    """
    streams = [stream for stream in container.streams.video if not stream.disposition & NO_FILM]
    if not streams:
        raise MediaError(f"{path} must hold a video stream; got none; choose another file")
    stream = max(streams, key=_film_rank)
    codec = _codec(stream)
    if codec not in CODECS.split(","):
        raise MediaError(f"{path} must use a codec among {CODECS}; got {codec}; export it again as mp4 with H.264")
    if stream.width * stream.height > MAX_FRAME_PIXELS:
        got = f"{stream.width} x {stream.height}"
        raise MediaError(f"{path} must have at most {MAX_FRAME_PIXELS} pixels per frame; got {got}; shrink it first")
    stream.codec_context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}
    stream.thread_type = "AUTO"
    return stream


def select_audio_stream(container: InputContainer) -> AudioStream | None:
    """Return the first soundtrack that the file prefers and that can be decoded; None where there is none."""
    allowed = AUDIO_CODECS.split(",")
    tracks = [
        track
        for track in container.streams.audio
        if track.codec_context and (track.codec_context.name in allowed or track.codec_context.name.startswith("pcm_"))
    ]
    return max(tracks, key=lambda track: bool(track.disposition & Disposition.default), default=None)


def _codec(stream: VideoStream) -> str:
    return stream.codec_context.name if stream.codec_context else "unknown"


def _film_rank(stream: VideoStream) -> tuple:
    """Return a key by which the film is the greatest of a file's streams; of equal ones, the first."""
    codec = _codec(stream)
    pixels = stream.width * stream.height if stream.codec_context else 0
    rate = min(stream.average_rate or stream.guessed_rate or Fraction(1), MAX_STREAM_FPS)
    moving = stream.frames != 1 and codec not in STILL_CODECS
    return codec in CODECS.split(","), moving, pixels * rate, bool(stream.disposition & Disposition.default)


def decode_frames(container: InputContainer, stream: VideoStream) -> Iterator[tuple[Fraction, Fraction, VideoFrame]]:
    """Yield (begin, end, frame) for each frame, in seconds from the first frame; interlaced ones are deinterlaced."""
    rate = stream.guessed_rate or stream.average_rate
    default_duration = 1 / rate if rate else Fraction(0)
    origin, end = None, Fraction(0)
    for frame in _deinterlace(container.decode(stream)):
        start = end
        if frame.pts is not None and frame.time_base is not None:
            stamp = frame.pts * frame.time_base
            origin = stamp if origin is None else origin
            start = stamp - origin
        end = start + (frame.duration * frame.time_base if frame.duration and frame.time_base else default_duration)
        yield start, end, frame


def _deinterlace(frames: Iterable[VideoFrame]) -> Iterator[VideoFrame]:
    """Pass frames on, from the first interlaced one through FFmpeg's bwdif: one frame for each, of both its fields.

    Progressive frames leave the filter as they enter it. A frame of another size or format gets a filter of its own.
    """
    graph, shape = None, None
    for frame in frames:
        if graph is not None and shape != (frame.width, frame.height, frame.format.name):
            yield from _drain(graph, last=True)
            graph = None
        if graph is None and not frame.interlaced_frame:
            yield frame
            continue
        if graph is None:
            shape = (frame.width, frame.height, frame.format.name)
            graph = av.filter.Graph()
            source = graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or MILLISECOND
            )
            graph.link_nodes(
                source, graph.add("bwdif", mode="send_frame", deint="interlaced"), graph.add("buffersink")
            ).configure()
        graph.vpush(frame)
        yield from _drain(graph)
    if graph is not None:
        yield from _drain(graph, last=True)


def _drain(graph: av.filter.Graph, last: bool = False) -> Iterator[VideoFrame]:
    if last:
        graph.vpush(None)
    while True:
        try:
            yield graph.vpull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return


def resample_frames(
    frames: Iterable[tuple[Fraction, Fraction, VideoFrame]], fps: Fraction, seconds: float | Fraction | None = None
) -> Iterator[VideoFrame]:
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


def stream_seconds(container: InputContainer, stream: VideoStream) -> float | None:
    """Return the duration of a stream in seconds, from the header; None where that states none, or FFmpeg guesses."""
    if container.format.name in GUESSED_DURATIONS:
        return None
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if container.duration and not container.streams.audio:  # sound may last longer
        return container.duration / 1e6  # FFmpeg counts microseconds
    return None


def count_seconds(container: InputContainer, stream: VideoStream) -> float | None:
    """Return the duration of a stream in seconds by the time stamps of its packets, without decoding; None if none.

    A browser records WebM without a duration.
    """
    begin, end = None, Fraction(0)
    rate = stream.average_rate or stream.guessed_rate
    for packet in container.demux(stream):
        if packet.pts is None or packet.time_base is None:
            continue
        stamp = packet.pts * packet.time_base
        duration = packet.duration * packet.time_base if packet.duration else (1 / rate if rate else Fraction(0))
        begin = stamp if begin is None else min(begin, stamp)
        end = max(end, stamp + duration)
    return float(end - begin) if begin is not None and end > begin else None
