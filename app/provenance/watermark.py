"""Draw a visible watermark: the letters "AI" on a dark plate, small, in a corner of every frame."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from einops import reduce
from torch import Tensor

from dit.request import CORNERS

HEIGHT_DIVISOR = 18  # the letters are the frame's shorter side divided by this high
MIN_LETTER_HEIGHT = 6  # pixels; lower letters are not legible
SUPERSAMPLING = 8  # the watermark is drawn this many times finer than the frame, then averaged
LETTER_VALUE, PLATE_VALUE, PLATE_OPACITY = 0.92, -0.85, 0.72  # white and black, short of the extremes of [-1, 1]


def add_watermark(chunks: Iterable[Tensor], corner: str = CORNERS[0]) -> Iterator[Tensor]:
    """Draw the watermark on chunks of frames, each (3, F, Y, X) in [-1, 1], as they arrive; no other pixel changes.

    Raises ValueError for an unknown corner.
    """
    if corner not in CORNERS:
        raise ValueError(f"a watermark must be in one of the corners {', '.join(CORNERS)}; got {corner!r}; choose one")
    return (_watermarked(chunk, corner) for chunk in chunks)


def _watermarked(chunk: Tensor, corner: str) -> Tensor:
    _, _, rows, columns = chunk.shape
    colour, opacity = (part.to(chunk) for part in draw_watermark(rows, columns))
    height, width = opacity.shape
    margin = max(0, min(max(2, min(rows, columns) // 32), (rows - height) // 2, (columns - width) // 2))
    top = margin if corner.startswith("top") else rows - margin - height
    left = margin if corner.endswith("left") else columns - margin - width
    watermarked = chunk.clone()
    region = watermarked[:, :, top : top + height, left : left + width]
    region.copy_(torch.lerp(region, colour.expand_as(region), opacity))
    return watermarked


def draw_watermark(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Draw the watermark for frames of this size; return its colour (Y, X) in [-1, 1] and its opacity (Y, X) in [0, 1].

    It is a plate with round corners and two letters. A frame smaller than the plate gets the top left part of it.
    """
    letter_height = max(MIN_LETTER_HEIGHT, round(min(rows, columns) / HEIGHT_DIVISOR))
    stroke, padding = max(1, round(letter_height / 6)), max(2, round(letter_height / 2.6))
    a_width = round(letter_height * 0.95) // 2 * 2 + stroke % 2  # so that the tip of the A is on whole pixels
    height, width = letter_height + 2 * padding, a_width + 3 * stroke + 2 * padding
    y, x = (
        (torch.arange(side * SUPERSAMPLING, dtype=torch.float32) + 0.5) / SUPERSAMPLING - padding
        for side in (height, width)
    )
    y, x = y[:, None], x[None]
    slope = (a_width - stroke) / 2 / letter_height
    left, right = (letter_height - y) * slope, a_width - stroke - (letter_height - y) * slope
    in_line = (y >= 0) & (y <= letter_height)
    legs = in_line & (((x >= left) & (x <= left + stroke)) | ((x >= right) & (x <= right + stroke)))
    bar_top = round(letter_height * 0.6)
    bar = (y >= bar_top) & (y <= bar_top + stroke) & (x >= left) & (x <= right + stroke)
    i_left = a_width + 2 * stroke
    letters = (legs | bar | (in_line & (x >= i_left) & (x <= i_left + stroke))).float()
    radius = height / 4
    corner_y = ((y - letter_height / 2).abs() - (height / 2 - radius)).clamp(min=0)
    corner_x = ((x - (width / 2 - padding)).abs() - (width / 2 - radius)).clamp(min=0)
    plate = (corner_y.square() + corner_x.square() <= radius**2).float()
    letters, plate = (
        reduce(part, "(y a) (x b) -> y x", "mean", a=SUPERSAMPLING, b=SUPERSAMPLING)[:rows, :columns]
        for part in (letters, plate)
    )
    opacity = torch.maximum(letters, plate * PLATE_OPACITY)
    plate_share = opacity - letters
    colour = torch.where(opacity > 0, (letters * LETTER_VALUE + plate_share * PLATE_VALUE) / opacity.clamp(min=1e-6), 0)
    return colour, opacity
