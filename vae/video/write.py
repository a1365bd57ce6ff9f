"""Write tensors as videos and images: atomically, with reproducible bytes, and with metadata inside the file."""

import errno
import io
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import cast

import av
import av.error
import av.filter
import numpy as np
from av.codec.context import Flags as CodecFlags
from av.container import Flags as ContainerFlags
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from einops import rearrange
from PIL import Image, PngImagePlugin
from torch import Tensor

from vae.files import atomic_write
from vae.video.pixels import DiskError, MediaError, exact_fps, to_uint8
from vae.video.sound import SoundEncoder

PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")
THREADS = 4  # fixed, because x264's output depends on it and must not depend on the machine
GIF_MAX_FPS = 50  # browsers slow down a GIF whose frames last less than 2/100 s
CONTAINER_KEYS = {"major_brand", "minor_version", "compatible_brands", "encoder", "duration", "creation_time"}

# Interpolate chroma, and place its samples on the left, as H.264 players expect. Without both, a smooth clip of 64 x 64
# loses 4 dB when it is read back.
EXACT = {"flags": "bicubic+accurate_rnd+full_chroma_int+full_chroma_inp+bitexact"}
BT709_LIMITED = {**EXACT, "out_color_matrix": "bt709", "out_range": "tv", "out_chroma_loc": "left"}
# With AVX-512, x264's lookahead reads uninitialized memory if a side is no multiple of 16: of 40 files of the same
# frames (50 x 38), 25 were equal. With cpu-independent, all are, on any processor and at the same speed.
H264 = {"chroma_sample_location": "left", "preset": "medium", "x264-params": "cpu-independent=1"}
VP9 = {"chroma_sample_location": "left", "deadline": "good", "cpu-used": "5"}
FFV1 = {"level": "3", "slices": "4", "slicecrc": "1"}  # version 3: slices are encoded in parallel, with checksums
BT709, LIMITED_RANGE = 1, 1  # ITU-T H.273's code for matrix, primaries and transfer; FFmpeg's for 16 to 235


@dataclass(frozen=True)
class FileFormat:
    """How to write a file format: FFmpeg's names, and the default and worst CRF if the encoder has one.

    `audio` is the encoder of sound; None where the format has none.
    """

    muxer: str
    encoder: str
    pix_fmt: str
    scale: dict[str, str] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    crf: int | None = None
    worst_crf: int = 0
    audio: str | None = None


# CRF 12, measured on smooth clips of 17 x 64 x 64 and 64 x 512 x 512: x264 41 and 48 dB, VP9 43 and 46 dB.
FILE_FORMATS = {
    ".mp4": FileFormat("mp4", "libx264", "yuv420p", BT709_LIMITED, H264, crf=12, worst_crf=51, audio="aac"),
    ".webm": FileFormat("webm", "libvpx-vp9", "yuv420p", BT709_LIMITED, VP9, crf=12, worst_crf=63, audio="libopus"),
    ".mkv": FileFormat("matroska", "ffv1", "bgr0", EXACT, FFV1, audio="flac"),
    ".gif": FileFormat("gif", "gif", "pal8"),
}


def check_writable(path: str | Path) -> Path:
    """Check before expensive work that a video or image can be written to a path; return the path, links resolved.

    Raises MediaError if the folder is missing or not writable, if the name is too long or that of a folder, device or
    protected file, or if the suffix is unknown. An existing file is allowed: the finished new one replaces it.
    """
    refuse_addresses(path)
    known, suffix = (*FILE_FORMATS, ".png"), Path(path).suffix.lower()
    if suffix not in known:
        raise MediaError(f"a file's name must end in one of {', '.join(known)}; got {path}; rename it")
    try:
        target = Path(os.path.realpath(path))
        if not target.parent.is_dir():
            raise MediaError(f"the folder {target.parent} must exist; it does not; make it first")
        for file in [target, _sidecar(target)] if suffix == ".gif" else [target]:
            with suppress(FileNotFoundError):
                if not stat.S_ISREG(os.stat(file).st_mode):
                    raise MediaError(f"{file} must be a file; it is a folder or a device; choose another name")
                if not os.access(file, os.W_OK):
                    raise MediaError(f"{file} must not be protected against writing; choose another name")
        tempfile.TemporaryFile(dir=target.parent).close()
    except MediaError:
        raise
    except (OSError, ValueError) as error:
        raise MediaError(f"{path} cannot be written: {reason(error)}; choose another folder or name") from error
    return target


def write_video(
    path: str | Path,
    frames: Tensor | Iterable[Tensor],
    fps: float | Fraction,
    *,
    metadata: Mapping[str, str] | None = None,
    crf: int | None = None,
    preset: str | None = None,
    sound: Tensor | None = None,
) -> None:
    """Write (3, F, Y, X), or an iterable of its pieces, as .mp4 (H.264), .webm (VP9), .mkv (FFV1, lossless) or .gif.

    The same frames and metadata give the same bytes with the same libraries. The file appears when it is complete, and
    not at all after an error or Ctrl+C. `crf` (mp4, webm) and `preset` (mp4) are those of the encoders. `sound` (2, N)
    is left and right in [-1, 1] at SAMPLE_RATE, as AAC (mp4), Opus (webm) or FLAC (mkv); it ends with the frames, and a
    GIF has none.

    Raises MediaError for wrong arguments, DiskError if the disk fails, and what `frames` raises.
    """
    target, rate, metadata = check_writable(path), exact_fps(fps), _checked_metadata(metadata)
    suffix = target.suffix.lower()
    if suffix not in FILE_FORMATS:
        raise MediaError(
            f"a video must end in one of {', '.join(FILE_FORMATS)}; got {path}; an image is for write_image"
        )
    if suffix == ".gif" and rate > GIF_MAX_FPS:
        raise MediaError(f"a GIF must have at most {GIF_MAX_FPS} frames per second; got {fps}; write .mp4")
    file_format, options = FILE_FORMATS[suffix], _encoder_options(suffix, crf, preset)
    chunks = iter([frames] if isinstance(frames, Tensor) else frames)
    first = next(chunks, None)
    if first is None:
        raise MediaError("a video must have at least one frame; got none")
    rows, columns = shape = _frame_shape(first, suffix)
    muxing = {"movflags": "+faststart+use_metadata_tags"} if suffix == ".mp4" else {}
    with _draft(target) as draft:
        with av.open(str(draft), "w", format=file_format.muxer, container_options=muxing) as container:
            container.flags |= ContainerFlags.bitexact.value
            container.metadata.update(metadata)
            encoder = _Encoder(container, file_format, rate, rows, columns, options, sound)
            for chunk in chain([first], chunks):
                if _frame_shape(chunk, suffix) != shape:
                    rule = f"all pieces of this video must be 3 x F x {rows} x {columns}"
                    raise MediaError(f"{rule}; got {tuple(chunk.shape)}; resize them first")
                for image in chunk.unbind(1):
                    encoder.add(_to_array(image))
            encoder.finish()
        if suffix == ".gif":
            _write_sidecar(target, metadata)


def write_image(path: str | Path, image: Tensor, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write (3, Y, X) or (3, 1, Y, X), in [-1, 1] or uint8, as a PNG with the metadata as iTXt, atomically.

    Raises MediaError for wrong arguments, DiskError if the disk fails.
    """
    target, metadata = check_writable(path), _checked_metadata(metadata)
    if target.suffix.lower() != ".png":
        raise MediaError(f"an image must end in .png; got {path}; rename it")
    if image.ndim == 4 and image.shape[1] == 1:
        image = image[:, 0]
    if image.ndim != 3 or image.shape[0] != 3 or not image.numel():
        raise MediaError(f"an image must be 3 x Y x X or 3 x 1 x Y x X; got {tuple(image.shape)}; take one frame")
    texts = PngImagePlugin.PngInfo()
    for key, text in metadata.items():
        texts.add_itxt(key, text)
    encoded = io.BytesIO()
    Image.fromarray(_to_array(image)).save(encoded, "PNG", pnginfo=texts)
    with _draft(target) as draft, _disk_errors(target):
        draft.write_bytes(encoded.getvalue())


def _to_array(image: Tensor) -> np.ndarray:
    return rearrange(to_uint8(image), "c y x -> y x c").contiguous().cpu().numpy()


class _Encoder:
    """Encode RGB frames one by one into a container."""

    def __init__(
        self,
        container: OutputContainer,
        file_format: FileFormat,
        fps: Fraction,
        rows: int,
        columns: int,
        options: dict[str, str],
        sound: Tensor | None,
    ):
        self.container, self.time_base, self.frames = container, 1 / fps, 0
        stream = container.add_stream(file_format.encoder, rate=fps, options=options, width=columns, height=rows)
        self.stream = cast(VideoStream, stream)
        self.stream.pix_fmt = file_format.pix_fmt
        context = self.stream.codec_context
        context.time_base, context.thread_count = self.time_base, THREADS
        context.flags |= CodecFlags.bitexact
        if file_format.scale is BT709_LIMITED:
            context.colorspace = context.color_primaries = context.color_trc = BT709
            context.color_range = LIMITED_RANGE
        graph = self.graph = av.filter.Graph()
        rgb = av.VideoFormat("rgb24", columns, rows)
        source = graph.add_buffer(width=columns, height=rows, format=rgb, time_base=self.time_base)
        sink = graph.add("buffersink")
        if file_format.pix_fmt == "pal8":  # one palette per frame allows streaming; ordered dither does not flicker
            split, palette = graph.add("split"), graph.add("palettegen", stats_mode="single", reserve_transparent="0")
            apply_palette = graph.add("paletteuse", new="1", dither="bayer")
            source.link_to(split)
            split.link_to(palette, 0, 0)
            split.link_to(apply_palette, 1, 0)
            palette.link_to(apply_palette, 0, 1)
            apply_palette.link_to(sink)
        else:
            pix_fmt = graph.add("format", pix_fmts=file_format.pix_fmt)
            graph.link_nodes(source, graph.add("scale", **file_format.scale), pix_fmt, sink)
        graph.configure()
        self.sound = (
            SoundEncoder(container, file_format.audio, sound) if file_format.audio and sound is not None else None
        )

    def add(self, pixels: np.ndarray) -> None:
        frame = VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = self.frames, self.time_base
        self.frames += 1
        self.graph.vpush(frame)
        self._drain()
        if self.sound:
            self.sound.encode_until(self.frames * self.time_base)

    def finish(self) -> None:
        self.graph.vpush(None)
        self._drain()
        self.container.mux(self.stream.encode(None))
        if self.sound:
            self.sound.finish()

    def _drain(self) -> None:
        while True:
            try:
                frame = self.graph.vpull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            self.container.mux(self.stream.encode(frame))


def _encoder_options(suffix: str, crf: int | None, preset: str | None) -> dict[str, str]:
    file_format = FILE_FORMATS[suffix]
    options = dict(file_format.options)
    if crf is not None and not 1 <= crf <= file_format.worst_crf:  # at 0, x264 writes a profile browsers cannot play
        rule = f"be 1 to {file_format.worst_crf}" if file_format.crf else "be left out"
        raise MediaError(f"crf must {rule} for {suffix}; got {crf}; lower is better and larger")
    if file_format.crf:
        options["crf"] = str(crf or file_format.crf)
    if preset is not None:
        if suffix != ".mp4" or preset not in PRESETS:
            raise MediaError(f"preset must be one of {', '.join(PRESETS)}, for .mp4; got {preset} for {suffix}")
        options["preset"] = preset
    return options


def _frame_shape(chunk: Tensor, suffix: str) -> tuple[int, int]:
    if chunk.ndim != 4 or chunk.shape[0] != 3 or not chunk.numel():
        raise MediaError(f"a video must be 3 x F x Y x X with at least one frame; got {tuple(chunk.shape)}")
    _, _, rows, columns = chunk.shape
    if suffix == ".mp4" and (rows % 2 or columns % 2):
        raise MediaError(
            f"an mp4 must have even rows and columns; got {rows} x {columns}; crop, or write .webm or .mkv"
        )
    return rows, columns


def _checked_metadata(metadata: Mapping[str, str] | None) -> dict[str, str]:
    for key, text in (metadata or {}).items():
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", key) or key in CONTAINER_KEYS:
            raise MediaError(f"a metadata key must be of a-z, 0-9, _ and not a container's own; got {key!r}; rename it")
        if not isinstance(text, str) or not text or "\0" in text or re.search("[\ud800-\udfff]", text):
            raise MediaError(f"metadata must be text without NUL or half characters; got {text!r:.80} for {key}")
    return dict(metadata or {})


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def read_sidecar(path: Path) -> dict[str, str]:
    """Read the metadata texts of a GIF from its JSON file; return none if there is no such file."""
    sidecar = _sidecar(path)
    try:
        found = json.loads(sidecar.read_text(encoding="utf-8")) if sidecar.exists() else {}
    except (OSError, ValueError) as error:
        raise MediaError(f"{sidecar} must hold a GIF's texts as JSON: {reason(error)}; delete it") from error
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise MediaError(f"{sidecar} must hold a GIF's texts as one JSON object; delete it")
    return found


def _write_sidecar(path: Path, metadata: Mapping[str, str]) -> None:
    sidecar = _sidecar(path)
    if not metadata:
        sidecar.unlink(missing_ok=True)  # metadata of an older video must not describe this one
        return
    with _draft(sidecar) as draft, _disk_errors(sidecar):
        draft.write_text(json.dumps(metadata, ensure_ascii=False, indent=1), encoding="utf-8")


@contextmanager
def _draft(target: Path) -> Iterator[Path]:
    """Call `atomic_write`; raise errors of the disk and the encoder as DiskError. Others pass through."""
    in_block = False
    try:
        with atomic_write(target) as draft:
            in_block = True
            try:
                yield draft
            except av.error.FFmpegError as error:
                raise _disk_error(target, error) from error
            in_block = False
    except OSError as error:
        if in_block:
            raise
        raise _disk_error(target, error) from error


@contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _disk_error(target, error) from error


def _disk_error(target: Path, error: BaseException) -> DiskError:
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return DiskError(
            f"{target} could not be written: the disk is full; nothing was left behind; free some space, try again"
        )
    return DiskError(f"{target} could not be written: {reason(error)}; nothing was left behind; try another folder")


def refuse_addresses(path: str | Path) -> None:
    """Raise MediaError for a path like scheme:/..., which FFmpeg could interpret as a protocol."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
        address = re.sub(r"(?<=:)/+", "//", str(path), count=1)  # of which a Path keeps one slash
        raise MediaError(f"path must be a file on this machine; got the address {address}; download it first")


def reason(error: BaseException) -> str:
    """Return the system's message of an error, without error number and file name."""
    return getattr(error, "strerror", None) or str(error)
