"""Pixels in memory: float and uint8, frame rates, resizing, and contact sheets."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from einops import rearrange, repeat
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

MAX_FPS = 1000  # Matroska and WebM have time stamps in milliseconds
MARGIN, FONT_HEIGHT, MAX_CHARACTERS = 4, 13, 300  # of a contact sheet, in pixels; and of a caption that is drawn


class MediaError(ValueError):
    """Bad input: a file that cannot be read, or arguments that cannot be written."""


class DiskError(OSError):
    """A failure to write a file with valid arguments, such as a full disk."""


def to_uint8(video: Tensor) -> Tensor:
    """Convert pixels in [-1, 1] to uint8, clamped and rounded; uint8 stays as it is. Raises MediaError on NaN."""
    if video.dtype == torch.uint8:
        return video
    if video.isnan().any():
        raise MediaError("pixels must be numbers; got NaN; the model that made them has diverged")
    return ((video.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def from_uint8(video: Tensor) -> Tensor:
    """Convert uint8 pixels to float32 in [-1, 1]; `to_uint8` restores the same bytes."""
    return video.float() / 127.5 - 1


def exact_fps(fps: float | Fraction) -> Fraction:
    """Return the exact frame rate that a number stands for: 23.976 and 23.98 are 24000/1001.

    Raises MediaError if it is no number, not above 0, or above MAX_FPS.
    """
    try:
        rate = Fraction(fps)
    except (TypeError, ValueError, OverflowError) as error:
        raise MediaError(f"fps must be a number; got {fps}; give one such as 24") from error
    if isinstance(fps, float) and rate.denominator > 1:
        ntsc = Fraction(round(rate) * 1000, 1001)
        is_ntsc = abs(rate - ntsc) < Fraction(5, 1000)  # half of the last digit in 23.98
        rate = ntsc if is_ntsc else rate.limit_denominator(1001)
    if not 0 < rate <= MAX_FPS:
        raise MediaError(f"fps must be above 0 and at most {MAX_FPS}; got {fps}; give one such as 24")
    return rate


def fit_image(video: Tensor, rows: int, columns: int, pixel_aspect: Fraction | int = 1) -> Tensor:
    """Crop (3, F, Y, X) at the center to the aspect ratio of rows x columns, and resize it with antialiasing.

    Cropping comes first, so that a long, thin image never grows. An image of the right size is returned unchanged.
    `pixel_aspect` is the width of the given pixels by their height; those that are returned are square.
    """
    _, frames, height, width = video.shape
    if (height, width) == (rows, columns) and pixel_aspect == 1:
        return video
    kept_rows, kept_columns = crop_size(height, width, rows, columns, pixel_aspect)
    top, left = (height - kept_rows) // 2, (width - kept_columns) // 2
    cropped = video[:, :, top : top + kept_rows, left : left + kept_columns]
    images = rearrange(cropped.float(), "c f y x -> f c y x")
    resized = functional.interpolate(images, (rows, columns), mode="bicubic", antialias=True).clamp(-1, 1)
    return rearrange(resized, "f c y x -> c f y x", f=frames).contiguous()


def crop_size(height: int, width: int, rows: int, columns: int, pixel_aspect: Fraction | int = 1) -> tuple[int, int]:
    """Return the rows and columns of an image (height, width) that `fit_image` keeps for a frame of rows x columns."""
    aspect = Fraction(columns, rows) / pixel_aspect  # of the stored pixels
    return min(height, max(1, round(width / aspect))), min(width, max(1, round(height * aspect)))


def contact_sheet(
    clips: Sequence[Tensor],
    *,
    captions: Sequence[str] | None = None,
    columns: int = 6,
    scale: int = 3,
    font: str | Path | None = None,
) -> Tensor:
    """Arrange clips (3, F, Y, X) as rows of `columns` evenly spaced frames; return uint8 (3, Y, X) for `write_image`.

    Pixels are enlarged `scale` times without smoothing. Captions are drawn below their rows, numbered, because Pillow's
    default font has only Latin letters and draws a box for others; for Chinese, give `font`, a TrueType or OpenType
    file. Raises MediaError for a wrong number of captions or a wrong font.
    """
    if not clips or columns < 1 or scale < 1:
        raise MediaError(f"a contact sheet needs a clip, a column and a scale; got {len(clips)}, {columns}, {scale}")
    if captions is not None and len(captions) != len(clips):
        raise MediaError(f"captions must be as many as clips; got {len(captions)} for {len(clips)}; give '' for none")
    loaded_font = _load_font(font)
    strips = []
    for clip in clips:
        _, frames, _, _ = clip.shape
        indices = torch.linspace(0, frames - 1, min(columns, frames)).round().long()
        cells = repeat(to_uint8(clip[:, indices.to(clip.device)]), "c f y x -> c f (y a) (x b)", a=scale, b=scale).cpu()
        cells = functional.pad(cells, (0, MARGIN, 0, MARGIN), value=255)
        strips.append(rearrange(cells, "c f y x -> c y (f x)"))
    width = max(strip.shape[2] for strip in strips)
    rows = []
    for number, strip in enumerate(strips, start=1):
        rows.append(functional.pad(strip, (0, width - strip.shape[2]), value=255))
        if captions is not None:
            rows.append(_draw_caption(f"{number}  {captions[number - 1]}", width, loaded_font))
    return functional.pad(torch.cat(rows, dim=1), (MARGIN, 0, MARGIN, 0), value=255)


def _load_font(font: str | Path | None) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    try:
        return ImageFont.load_default(FONT_HEIGHT) if font is None else ImageFont.truetype(str(font), FONT_HEIGHT)
    except OSError as error:
        raise MediaError(
            f"font must be a TrueType or OpenType file; got {font}; leave it out or name another"
        ) from error


def _draw_caption(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> Tensor:
    """Draw one line of text on white as uint8 (3, Y, X); text that does not fit ends in dots."""
    text = drawn = " ".join(text.split())[:MAX_CHARACTERS]
    while len(text) > 1 and font.getlength(drawn) > width - MARGIN:
        text = text[:-1]
        drawn = f"{text.rstrip()}..."
    page = Image.new("RGB", (width, 2 * FONT_HEIGHT), "white")
    ImageDraw.Draw(page).text((0, 0), drawn, font=font, fill="black")
    return rearrange(torch.from_numpy(np.array(page)), "y x c -> c y x")
