"""Decoded frames as upright RGB with square pixels in BT.709: orientation, shape of pixels, colour, alpha."""

from __future__ import annotations

from fractions import Fraction
from itertools import islice
from pathlib import Path

import av.error
import numpy as np
import torch
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, Interpolation
from av.video.stream import VideoStream
from einops import rearrange
from torch import Tensor

from vae.video.container import MAX_FRAME_PIXELS, open_video, select_video_stream, stream_seconds
from vae.video.pixels import fit_image, from_uint8, to_uint8
from vae.video.tonemap import BT2020, HLG, HLG_PEAK, PQ, SDR_WHITE, UNSPECIFIED, needs_conversion, to_bt709, to_light

BT2020_MATRICES = (9, 10)  # ITU-T H.273: with and without constant luminance
MAX_PIXEL_ASPECT = 10  # a pixel of a stranger shape is a wrong header
PEAK_SAMPLES, PEAK_COLUMNS = 16, 256  # places of a film whose brightest light is measured, and their width

# Interpolate chroma: swscale repeats it by default, which costs 13 dB on a smooth clip of 64 x 64.
EXACT = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
    | Interpolation.BITEXACT
)


class FrameConverter:
    """Convert the frames of one stream to (3, Y, X): uint8, or float32 in [-1, 1] if they are fitted to `size`.

    `path` is the stream's file, whose brightest light is measured once if it is HDR.
    """

    def __init__(self, path: str | Path, stream: VideoStream, size: tuple[int, int] | None = None):
        self.path, self.size, self.pixel_aspect = path, size, pixel_aspect(stream)
        self.peak: float | None = None

    def __call__(self, frame: VideoFrame) -> Tensor:
        flipped = orient(self._colours(frame), frame)
        image = rearrange(flipped, "y x c -> c y x").contiguous()
        aspect = 1 / self.pixel_aspect if is_transposed(frame) else self.pixel_aspect
        if self.size is not None:
            rows, columns = self.size
            return fit_image(from_uint8(image)[:, None], rows, columns, aspect)[:, 0]
        if aspect == 1:
            return image
        _, height, width = image.shape
        rows, columns = square_size(height, width, aspect)
        return to_uint8(fit_image(from_uint8(image)[:, None], rows, columns, aspect)[:, 0])

    def _colours(self, frame: VideoFrame) -> Tensor:
        """Return a frame as it is stored, (Y, X, 3) in uint8: of BT.709, over black."""
        transfer, primaries = frame.color_trc, frame_primaries(frame)
        if needs_conversion(transfer, primaries):
            if self.peak is None:
                self.peak = measure_peak(self.path) if transfer in (PQ, HLG) else SDR_WHITE
            return to_bt709(_to_rgb(frame, "rgb48le"), transfer, primaries, self.peak)
        if not has_alpha(frame):
            return _to_rgb(frame, "rgb24")
        pixels = _to_rgb(frame, "rgba")
        return (pixels[..., :3].float() * pixels[..., 3:] / 255).round().to(torch.uint8)


def _to_rgb(frame: VideoFrame, layout: str, columns: int | None = None) -> Tensor:
    """Convert the colours of a frame by its matrix and range: (Y, X, channels) of the layout's type."""
    matrix = None
    if frame.format.is_rgb:
        pass
    elif frame.colorspace in BT2020_MATRICES:
        matrix = Colorspace.BT2020
    elif frame.colorspace == UNSPECIFIED:
        if needs_conversion(frame.color_trc, frame.color_primaries):
            matrix = Colorspace.BT2020
        else:  # as players do: BT.709 for high definition
            matrix = Colorspace.ITU709 if frame.width >= 1280 or frame.height > 576 else Colorspace.ITU601
    rows = None if columns is None else max(1, round(frame.height * columns / frame.width))
    pixels = frame.to_ndarray(format=layout, interpolation=EXACT, src_colorspace=matrix, width=columns, height=rows)
    return torch.from_numpy(pixels.astype(np.int32) if pixels.dtype == np.uint16 else pixels)


def has_alpha(frame: VideoFrame) -> bool:
    """Say whether a frame has an alpha channel."""
    return any(component.is_alpha for component in frame.format.components)


def frame_primaries(frame: VideoFrame) -> int:
    """Return the code of a frame's colour primaries; where none is given, BT.2020's matrix stands for its primaries."""
    if frame.color_primaries in (0, UNSPECIFIED) and frame.colorspace in BT2020_MATRICES:
        return BT2020
    return frame.color_primaries


def display_matrix(frame: VideoFrame) -> tuple[int, int, int, int]:
    """Return the linear part (a, b, c, d) of a frame's display matrix: x' = a x + c y, y' = b x + d y."""
    found = frame.side_data.get("DISPLAYMATRIX")
    if found is None:
        return 1, 0, 0, 1
    values = np.frombuffer(bytes(found), np.int32)
    return int(values[0]), int(values[1]), int(values[3]), int(values[4])


def is_transposed(frame: VideoFrame) -> bool:
    """Say whether rows and columns of a frame change places when it is shown."""
    a, b, c, d = display_matrix(frame)
    return abs(b) + abs(c) > abs(a) + abs(d)


def is_mirrored(frame: VideoFrame) -> bool:
    """Say whether a frame is shown as in a mirror, which no rotation does."""
    a, b, c, d = display_matrix(frame)
    return a * d < b * c


def orient(pixels: Tensor, frame: VideoFrame) -> Tensor:
    """Turn and mirror (Y, X, C) as the display matrix of its frame says: the nearest of the eight right angles."""
    a, b, c, d = display_matrix(frame)
    if is_transposed(frame):
        pixels = pixels.transpose(0, 1)
        a, d = c, b
    mirrored = [axis for axis, value in ((0, d), (1, a)) if value < 0]
    return pixels.flip(mirrored) if mirrored else pixels


def pixel_aspect(stream: VideoStream) -> Fraction:
    """Return the width of a stream's stored pixels by their height; 1 where none or a wrong one is given."""
    aspect = stream.sample_aspect_ratio
    if not aspect or not 1 / Fraction(MAX_PIXEL_ASPECT) <= aspect <= MAX_PIXEL_ASPECT:
        return Fraction(1)
    rows, columns = square_size(stream.height, stream.width, Fraction(aspect))
    return Fraction(aspect) if rows * columns <= MAX_FRAME_PIXELS else Fraction(1)


def square_size(rows: int, columns: int, aspect: Fraction) -> tuple[int, int]:
    """Return the rows and columns of a picture with square pixels: its short side is enlarged, so no detail is lost."""
    return (rows, round(columns * aspect)) if aspect > 1 else (round(rows / aspect), columns)


def shown_size(stream: VideoStream, frame: VideoFrame) -> tuple[int, int]:
    """Return the rows and columns of a frame as it is shown."""
    rows, columns = square_size(frame.height, frame.width, pixel_aspect(stream))
    return (columns, rows) if is_transposed(frame) else (rows, columns)


def is_plain(stream: VideoStream, frame: VideoFrame) -> bool:
    """Say whether a player that knows nothing but rotation shows a stream right: square pixels, SDR, not mirrored."""
    wide = needs_conversion(frame.color_trc, frame_primaries(frame))
    return not wide and not is_mirrored(frame) and pixel_aspect(stream) == 1


def measure_peak(path: str | Path) -> float:
    """Return the brightest light of an HDR film in cd/m2, at PEAK_SAMPLES places; at least the white of SDR.

    Of headers that state it, many are wrong.
    """
    peak = SDR_WHITE
    with open_video(path) as container:
        stream = select_video_stream(container, path)
        seconds = stream_seconds(container, stream)
        if seconds is None:
            return HLG_PEAK
        for sample in range(PEAK_SAMPLES):
            try:
                if sample:
                    container.seek(int(seconds * sample / PEAK_SAMPLES * 1e6))
                frame = next(islice(container.decode(stream), 1), None)
            except av.error.FFmpegError:  # of a container that cannot seek
                return max(peak, HLG_PEAK)
            if frame is not None and frame.color_trc in (PQ, HLG):
                small = _to_rgb(frame, "rgb48le", min(PEAK_COLUMNS, frame.width))
                peak = max(peak, float(to_light(small, frame.color_trc).max()))
    return peak
