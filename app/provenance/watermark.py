"""A badge that anybody can see: "AI", small, in a corner of every frame."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from einops import reduce
from torch import Tensor

from dit.request import CORNERS

SHARE = 18  # of the shorter side: what the letters are high
LEAST_HEIGHT = 6  # of the letters in pixels: lower ones are not legible
FINER = 8  # how many times finer than the frame the badge is drawn
LETTERS, PLATE, OPACITY = 0.92, -0.85, 0.72  # white and black short of the extremes; how much of the plate is seen


def mark(pieces: Iterable[Tensor], corner: str = CORNERS[0]) -> Iterator[Tensor]:
    """Stamp the badge on frames (3, F, Y, X) in [-1, 1], piece by piece as they come; no other pixel changes.

    Raises ValueError for a corner that there is not.
    """
    if corner not in CORNERS:
        raise ValueError(f"a badge must be in one of the corners {', '.join(CORNERS)}; got {corner!r}; choose one")
    return (_stamped(piece, corner) for piece in pieces)


def _stamped(piece: Tensor, corner: str) -> Tensor:
    _, _, rows, columns = piece.shape
    colour, cover = (part.to(piece) for part in badge(rows, columns))
    down, across = cover.shape
    margin = max(0, min(max(2, min(rows, columns) // 32), (rows - down) // 2, (columns - across) // 2))
    top = margin if corner.startswith("top") else rows - margin - down
    left = margin if corner.endswith("left") else columns - margin - across
    stamped = piece.clone()
    place = stamped[:, :, top : top + down, left : left + across]
    place.copy_(torch.lerp(place, colour.expand_as(place), cover))
    return stamped


def badge(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Draw the badge for frames of a size: its colour (Y, X) in [-1, 1], and how much it covers (Y, X), 0 to 1.

    It is a plate with round corners and two letters; where the frame is smaller than the plate, what fits of it.
    """
    height = max(LEAST_HEIGHT, round(min(rows, columns) / SHARE))
    stroke, space = max(1, round(height / 6)), max(2, round(height / 2.6))
    wide = round(height * 0.95) // 2 * 2 + stroke % 2  # so that the A's tip is on whole pixels
    down, across = height + 2 * space, wide + 3 * stroke + 2 * space
    y, x = ((torch.arange(side * FINER, dtype=torch.float32) + 0.5) / FINER - space for side in (down, across))
    y, x = y[:, None], x[None]
    lean = (wide - stroke) / 2 / height
    left, right = (height - y) * lean, wide - stroke - (height - y) * lean
    inside = (y >= 0) & (y <= height)
    legs = inside & (((x >= left) & (x <= left + stroke)) | ((x >= right) & (x <= right + stroke)))
    bar_top = round(height * 0.6)
    bar = (y >= bar_top) & (y <= bar_top + stroke) & (x >= left) & (x <= right + stroke)
    second = wide + 2 * stroke
    letters = (legs | bar | (inside & (x >= second) & (x <= second + stroke))).float()
    radius = down / 4
    far_y = ((y - height / 2).abs() - (down / 2 - radius)).clamp(min=0)
    far_x = ((x - (across / 2 - space)).abs() - (across / 2 - radius)).clamp(min=0)
    plate = (far_y.square() + far_x.square() <= radius**2).float()
    letters, plate = (
        reduce(part, "(y a) (x b) -> y x", "mean", a=FINER, b=FINER)[:rows, :columns] for part in (letters, plate)
    )
    cover = torch.maximum(letters, plate * OPACITY)
    colour = torch.where(cover > 0, (letters * LETTERS + (cover - letters) * PLATE) / cover.clamp(min=1e-6), 0)
    return colour, cover
