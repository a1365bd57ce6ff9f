"""Record tensors to disk: whole or not at all, the same bytes every time, with the words that belong to them inside."""

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

PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")
THREADS = 4  # fixed: x264's bytes depend on how many there are, and must not depend on the machine
GIF_FASTEST_FPS = 50  # browsers slow a GIF whose frames last less than 2/100 s
CONTAINER_KEYS = {"major_brand", "minor_version", "compatible_brands", "encoder", "duration", "creation_time"}

# Chroma is interpolated, and sited on the left as H.264's players expect; without both, a smooth clip of 64 x 64 loses
# 4 dB when it is read back.
EXACT = {"flags": "bicubic+accurate_rnd+full_chroma_int+full_chroma_inp+bitexact"}
TELEVISION = {**EXACT, "out_color_matrix": "bt709", "out_range": "tv", "out_chroma_loc": "left"}
# With AVX-512, x264 looks ahead into memory that nobody wrote where sides are no multiples of 16: of 40 files of the
# same frames (50 x 38) 25 were the same. What holds on any processor is the same always, and as fast.
H264 = {"chroma_sample_location": "left", "preset": "medium", "x264-params": "cpu-independent=1"}
VP9 = {"chroma_sample_location": "left", "deadline": "good", "cpu-used": "5"}
FFV1 = {"level": "3", "slices": "4", "slicecrc": "1"}  # version 3, whose slices are coded in parallel and checked
BT709, LIMITED = 1, 1  # ITU-T H.273's code for matrix, primaries and transfer; FFmpeg's for 16 to 235


@dataclass(frozen=True)
class FileFormat:
    """How one kind of file is written: FFmpeg's names, and the range of crf where there is one."""

    muxer: str
    encoder: str
    pixels: str
    scale: dict[str, str] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    crf: int | None = None
    worst_crf: int = 0


# Measured on smooth clips of 17 x 64 x 64 and 64 x 512 x 512: x264 41 and 48 dB, VP9 43 and 46 dB.
FILE_FORMATS = {
    ".mp4": FileFormat("mp4", "libx264", "yuv420p", TELEVISION, H264, crf=12, worst_crf=51),
    ".webm": FileFormat("webm", "libvpx-vp9", "yuv420p", TELEVISION, VP9, crf=12, worst_crf=63),
    ".mkv": FileFormat("matroska", "ffv1", "bgr0", EXACT, FFV1),
    ".gif": FileFormat("gif", "gif", "pal8"),
}


def check_writable(path: str | Path) -> Path:
    """Make sure, before any expensive work, that a clip or picture can be written here; return the path it will have.

    Raises MediaError when the folder is missing or closed, the name is too long or already a folder, a device or a
    protected file, or its suffix is unknown. An existing file is fine: it is replaced when the new one is whole.
    """
    refuse_addresses(path)
    known, suffix = (*FILE_FORMATS, ".png"), Path(path).suffix.lower()
    if suffix not in known:
        raise MediaError(f"a file's name must end in one of {', '.join(known)}; got {path}; rename it")
    try:
        target = Path(os.path.realpath(path))
        if not target.parent.is_dir():
            raise MediaError(f"the folder {target.parent} must exist; it does not; make it first")
        for place in [target, _sidecar(target)] if suffix == ".gif" else [target]:
            with suppress(FileNotFoundError):
                if not stat.S_ISREG(os.stat(place).st_mode):
                    raise MediaError(f"{place} must be a file; it is a folder or a device; choose another name")
                if not os.access(place, os.W_OK):
                    raise MediaError(f"{place} must not be protected against writing; choose another name")
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
) -> None:
    """Write (3, F, Y, X), or pieces of it as they come, to .mp4 (H.264), .webm (VP9), .mkv (FFV1, lossless) or .gif.

    The same frames and metadata give the same bytes on the same stack. The file appears when it is whole; before that,
    and after any error or Ctrl+C, nothing does. `crf` (mp4, webm) and `preset` (mp4) are the encoders'.
    Raises MediaError for a wrong request, DiskError when the disk fails; what `frames` raises passes through.
    """
    target, rate, metadata = check_writable(path), exact_fps(fps), _checked_metadata(metadata)
    suffix = target.suffix.lower()
    if suffix not in FILE_FORMATS:
        raise MediaError(
            f"a video must end in one of {', '.join(FILE_FORMATS)}; got {path}; a picture is for write_image"
        )
    if suffix == ".gif" and rate > GIF_FASTEST_FPS:
        raise MediaError(f"a GIF must have at most {GIF_FASTEST_FPS} frames a second; got {fps}; write .mp4")
    recipe, options = FILE_FORMATS[suffix], _encoder_options(suffix, crf, preset)
    chunks = iter([frames] if isinstance(frames, Tensor) else frames)
    first = next(chunks, None)
    if first is None:
        raise MediaError("a video must have at least one frame; got none")
    rows, columns = shape = _frame_shape(first, suffix)
    muxing = {"movflags": "+faststart+use_metadata_tags"} if suffix == ".mp4" else {}
    with _draft(target) as draft:
        with av.open(str(draft), "w", format=recipe.muxer, container_options=muxing) as container:
            container.flags |= ContainerFlags.bitexact.value
            container.metadata.update(metadata)
            encoder = _Encoder(container, recipe, rate, rows, columns, options)
            for chunk in chain([first], chunks):
                if _frame_shape(chunk, suffix) != shape:
                    rule = f"all pieces of this video must be 3 x F x {rows} x {columns}"
                    raise MediaError(f"{rule}; got {tuple(chunk.shape)}; resize them first")
                for picture in chunk.unbind(1):
                    encoder.add(_drawn(picture))
            encoder.finish()
        if suffix == ".gif":
            _write_sidecar(target, metadata)


def write_image(path: str | Path, picture: Tensor, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write (3, Y, X) or (3, 1, Y, X), in [-1, 1] or uint8, as PNG with the metadata as iTXt; whole or not at all.

    Raises MediaError for a wrong request, DiskError when the disk fails.
    """
    target, metadata = check_writable(path), _checked_metadata(metadata)
    if target.suffix.lower() != ".png":
        raise MediaError(f"a picture must end in .png; got {path}; rename it")
    if picture.ndim == 4 and picture.shape[1] == 1:
        picture = picture[:, 0]
    if picture.ndim != 3 or picture.shape[0] != 3 or not picture.numel():
        raise MediaError(f"a picture must be 3 x Y x X or 3 x 1 x Y x X; got {tuple(picture.shape)}; take one frame")
    texts = PngImagePlugin.PngInfo()
    for key, text in metadata.items():
        texts.add_itxt(key, text)
    encoded = io.BytesIO()
    Image.fromarray(_drawn(picture)).save(encoded, "PNG", pnginfo=texts)
    with _draft(target) as draft, _disk_errors(target):
        draft.write_bytes(encoded.getvalue())


def _drawn(picture: Tensor) -> np.ndarray:
    return rearrange(to_uint8(picture), "c y x -> y x c").contiguous().cpu().numpy()


class _Encoder:
    """From RGB frames to packets in a container, one frame at a time."""

    def __init__(
        self,
        container: OutputContainer,
        recipe: FileFormat,
        fps: Fraction,
        rows: int,
        columns: int,
        options: dict[str, str],
    ):
        self.container, self.tick, self.frames = container, 1 / fps, 0
        stream = container.add_stream(recipe.encoder, rate=fps, options=options, width=columns, height=rows)
        self.stream = cast(VideoStream, stream)
        self.stream.pix_fmt = recipe.pixels
        context = self.stream.codec_context
        context.time_base, context.thread_count = self.tick, THREADS
        context.flags |= CodecFlags.bitexact
        if recipe.scale is TELEVISION:
            context.colorspace = context.color_primaries = context.color_trc = BT709
            context.color_range = LIMITED
        graph = self.graph = av.filter.Graph()
        rgb = av.VideoFormat("rgb24", columns, rows)
        source = graph.add_buffer(width=columns, height=rows, format=rgb, time_base=self.tick)
        sink = graph.add("buffersink")
        if recipe.pixels == "pal8":  # a palette for each frame, so that frames stream; ordered dither does not crawl
            split, palette = graph.add("split"), graph.add("palettegen", stats_mode="single", reserve_transparent="0")
            paint = graph.add("paletteuse", new="1", dither="bayer")
            source.link_to(split)
            split.link_to(palette, 0, 0)
            split.link_to(paint, 1, 0)
            palette.link_to(paint, 0, 1)
            paint.link_to(sink)
        else:
            layout = graph.add("format", pix_fmts=recipe.pixels)
            graph.link_nodes(source, graph.add("scale", **recipe.scale), layout, sink)
        graph.configure()

    def add(self, pixels: np.ndarray) -> None:
        frame = VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = self.frames, self.tick
        self.frames += 1
        self.graph.vpush(frame)
        self._drain()

    def finish(self) -> None:
        self.graph.vpush(None)
        self._drain()
        self.container.mux(self.stream.encode(None))

    def _drain(self) -> None:
        while True:
            try:
                frame = self.graph.vpull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            self.container.mux(self.stream.encode(frame))


def _encoder_options(suffix: str, crf: int | None, preset: str | None) -> dict[str, str]:
    recipe = FILE_FORMATS[suffix]
    options = dict(recipe.options)
    if crf is not None and not 1 <= crf <= recipe.worst_crf:  # 0 makes x264 write a profile that browsers cannot play
        rule = f"be 1 to {recipe.worst_crf}" if recipe.crf else "be left out"
        raise MediaError(f"crf must {rule} for {suffix}; got {crf}; lower is better and larger")
    if recipe.crf:
        options["crf"] = str(crf or recipe.crf)
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
    """Read the texts of a GIF from the file beside it; none when there is none."""
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
        sidecar.unlink(missing_ok=True)  # an older film's words must not describe this one
        return
    with _draft(sidecar) as draft, _disk_errors(sidecar):
        draft.write_text(json.dumps(metadata, ensure_ascii=False, indent=1), encoding="utf-8")


@contextmanager
def _draft(target: Path) -> Iterator[Path]:
    """Do `atomic_write`, with errors of the disk and of the encoder as DiskError; those of the block pass through."""
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
    """Raise MediaError for anything like scheme:/..., which FFmpeg could take for a protocol."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
        raise MediaError(f"path must be a file on this machine; got the address {path}; download it first")


def reason(error: BaseException) -> str:
    """Say in the system's words why a file failed, without numbers and names that the sentence around it gives."""
    return getattr(error, "strerror", None) or str(error)
