"""Handle pixels in memory: numbers and bytes, frames a second, size and shape, and the contact sheet."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from einops import rearrange, repeat
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

MAX_FPS = 1000  # Matroska and WebM stamp frames in milliseconds
MARGIN, LETTER_HEIGHT, LETTERS = 4, 13, 300  # of a contact sheet: in pixels, and how much of a caption may be read


class MediaError(ValueError):
    """A file that cannot be read, or a request to write that cannot be met: bad input."""


class DiskError(OSError):
    """A file that could not be written although the request was right, as when the disk is full: a failure."""


def to_uint8(video: Tensor) -> Tensor:
    """Turn pixels in [-1, 1] into uint8, clamped and rounded; uint8 passes as it is. Raises MediaError on NaN."""
    if video.dtype == torch.uint8:
        return video
    if video.isnan().any():
        raise MediaError("pixels must be numbers; got NaN; the model that made them has diverged")
    return ((video.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def from_uint8(video: Tensor) -> Tensor:
    """Turn uint8 into float32 in [-1, 1]; `to_uint8` gives the same bytes back."""
    return video.float() / 127.5 - 1


def exact_fps(fps: float | Fraction) -> Fraction:
    """Name the exact frames a second that a number stands for: 23.976 and 23.98 are 24000/1001."""
    try:
        rate = Fraction(fps)
    except (TypeError, ValueError, OverflowError) as error:
        raise MediaError(f"fps must be a number; got {fps}; give one such as 24") from error
    if isinstance(fps, float) and rate.denominator > 1:
        television = Fraction(round(rate) * 1000, 1001)
        is_television = abs(rate - television) < Fraction(5, 1000)  # half of the last digit in 23.98
        rate = television if is_television else rate.limit_denominator(1001)
    if not 0 < rate <= MAX_FPS:
        raise MediaError(f"fps must be above 0 and at most {MAX_FPS}; got {fps}; give one such as 24")
    return rate


def fit_image(video: Tensor, rows: int, columns: int) -> Tensor:
    """Fill rows x columns with the middle of (3, F, Y, X), cut to shape and resized with antialiasing.

    The cut comes first, so a picture that is long and thin never grows; one of the right size is returned as it is.
    """
    _, frames, height, width = video.shape
    if (height, width) == (rows, columns):
        return video
    kept_rows = min(height, max(1, round(width * rows / columns)))
    kept_columns = min(width, max(1, round(height * columns / rows)))
    top, left = (height - kept_rows) // 2, (width - kept_columns) // 2
    middle = video[:, :, top : top + kept_rows, left : left + kept_columns]
    pictures = rearrange(middle.float(), "c f y x -> f c y x")
    resized = functional.interpolate(pictures, (rows, columns), mode="bicubic", antialias=True).clamp(-1, 1)
    return rearrange(resized, "f c y x -> c f y x", f=frames).contiguous()


def contact_sheet(
    clips: Sequence[Tensor],
    *,
    captions: Sequence[str] | None = None,
    columns: int = 6,
    scale: int = 3,
    font: str | Path | None = None,
) -> Tensor:
    """Print clips (3, F, Y, X) as rows of `columns` evenly spaced frames: uint8 (3, Y, X), for `write_image`.

    Pixels are enlarged `scale` times without smoothing. Captions stand below their rows, numbered, so that rows can be
    told apart even where letters fail: Pillow's own font has only English ones and draws a box for any other. For
    Chinese give `font`, a TrueType or OpenType file.
    """
    if not clips or columns < 1 or scale < 1:
        raise MediaError(f"a contact sheet needs a clip, a column and a scale; got {len(clips)}, {columns}, {scale}")
    if captions is not None and len(captions) != len(clips):
        raise MediaError(f"captions must be as many as clips; got {len(captions)} for {len(clips)}; give '' for none")
    letters = _letters(font)
    strips = []
    for clip in clips:
        _, frames, _, _ = clip.shape
        places = torch.linspace(0, frames - 1, min(columns, frames)).round().long()
        cells = repeat(to_uint8(clip[:, places.to(clip.device)]), "c f y x -> c f (y a) (x b)", a=scale, b=scale).cpu()
        cells = functional.pad(cells, (0, MARGIN, 0, MARGIN), value=255)
        strips.append(rearrange(cells, "c f y x -> c y (f x)"))
    width = max(strip.shape[2] for strip in strips)
    rows = []
    for number, strip in enumerate(strips, start=1):
        rows.append(functional.pad(strip, (0, width - strip.shape[2]), value=255))
        if captions is not None:
            rows.append(_caption(f"{number}  {captions[number - 1]}", width, letters))
    return functional.pad(torch.cat(rows, dim=1), (MARGIN, 0, MARGIN, 0), value=255)


def _letters(font: str | Path | None) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    try:
        return ImageFont.load_default(LETTER_HEIGHT) if font is None else ImageFont.truetype(str(font), LETTER_HEIGHT)
    except OSError as error:
        raise MediaError(
            f"font must be a TrueType or OpenType file; got {font}; leave it out or name another"
        ) from error


def _caption(text: str, width: int, letters: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> Tensor:
    """Draw one line of text on white, as (3, Y, X) in uint8, its end replaced by dots where it does not fit."""
    text = shown = " ".join(text.split())[:LETTERS]
    while len(text) > 1 and letters.getlength(shown) > width - MARGIN:
        text = text[:-1]
        shown = f"{text.rstrip()}..."
    page = Image.new("RGB", (width, 2 * LETTER_HEIGHT), "white")
    ImageDraw.Draw(page).text((0, 0), shown, font=letters, fill="black")
    return rearrange(torch.from_numpy(np.array(page)), "y x c -> c y x")
