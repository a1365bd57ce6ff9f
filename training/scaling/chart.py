"""Line charts as images: logarithmic or linear axes, lines, points, intervals and a legend, drawn with Pillow."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageFont

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")  # Okabe and Ito 2008
SIZE, SCALE = (900, 560), 2  # pixels of the image, and how much larger it is drawn
LEFT, TOP, RIGHT, BOTTOM = 80, 40, 210, 56  # margins
Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """Points that are joined by a line, marked, or both; `bars` are intervals of y at each point."""

    label: str
    points: tuple[Point, ...]
    colour: str
    line: bool = True
    marks: bool = True
    dashed: bool = False
    bars: tuple[tuple[float, float], ...] = ()


@dataclass
class Chart:
    """A chart that series are added to, and drawn when complete."""

    title: str
    x_label: str
    y_label: str
    log_x: bool = True
    log_y: bool = False
    series: list[Series] = field(default_factory=list)

    def add(self, label: str, points: Sequence[Point], number: int | None = None, **style) -> None:
        """Add a series; points that are no numbers, or that a logarithmic axis has no place for, are left out."""
        kept = tuple((float(x), float(y)) for x, y in points if self._fits(x, y))
        colour = COLOURS[(len(self.series) if number is None else number) % len(COLOURS)]
        if kept:
            self.series.append(Series(label, kept, colour, **style))

    def _fits(self, x: float, y: float) -> bool:
        return math.isfinite(x) and math.isfinite(y) and (x > 0 or not self.log_x) and (y > 0 or not self.log_y)

    def draw(self) -> Image.Image:
        """Return the image; a chart without points says so."""
        width, height = (SCALE * size for size in SIZE)
        page = Image.new("RGB", (width, height), "white")
        draw = ImageDraw.Draw(page)
        small, large = (ImageFont.load_default(SCALE * size) for size in (12, 15))
        draw.text((SCALE * LEFT, SCALE * 12), self.title, fill="black", font=large)
        if not self.series:
            draw.text((SCALE * LEFT, height // 2), "no runs to show", fill="grey", font=large)
            return page.resize(SIZE, Image.Resampling.LANCZOS)
        xs = [x for one in self.series for x, _ in one.points]
        ys = [y for one in self.series for _, y in one.points] + [
            end for one in self.series for bar in one.bars for end in bar if math.isfinite(end)
        ]
        horizontal, vertical = _Axis.around(xs, self.log_x), _Axis.around(ys, self.log_y)
        box = (SCALE * LEFT, SCALE * TOP, width - SCALE * RIGHT, height - SCALE * BOTTOM)
        place = lambda x, y: (
            box[0] + horizontal.share(x) * (box[2] - box[0]),
            box[3] - vertical.share(y) * (box[3] - box[1]),
        )
        for tick in horizontal.ticks():
            x = place(tick, ys[0])[0]
            draw.line([(x, box[1]), (x, box[3])], fill="#e6e6e6", width=SCALE)
            draw.text((x, box[3] + 6 * SCALE), _write(tick), fill="black", font=small, anchor="ma")
        for tick in vertical.ticks():
            y = place(xs[0], tick)[1]
            draw.line([(box[0], y), (box[2], y)], fill="#e6e6e6", width=SCALE)
            draw.text((box[0] - 6 * SCALE, y), _write(tick), fill="black", font=small, anchor="rm")
        draw.rectangle(box, outline="black", width=SCALE)
        draw.text(((box[0] + box[2]) / 2, height - 22 * SCALE), self.x_label, fill="black", font=small, anchor="ma")
        draw.text((6 * SCALE, box[1] - 16 * SCALE), self.y_label, fill="black", font=small)
        for number, one in enumerate(self.series):
            self._draw_series(draw, one, place)
            y = box[1] + (8 + 17 * number) * SCALE
            if one.label and y < height - 20 * SCALE:
                draw.line([(box[2] + 10 * SCALE, y), (box[2] + 26 * SCALE, y)], fill=one.colour, width=3 * SCALE)
                draw.text((box[2] + 32 * SCALE, y), one.label[:26], fill="black", font=small, anchor="lm")
        return page.resize(SIZE, Image.Resampling.LANCZOS)

    def _draw_series(self, draw: ImageDraw.ImageDraw, one: Series, place) -> None:
        points = [place(*point) for point in one.points]
        if one.line:
            for number, (start, end) in enumerate(itertools.pairwise(points)):
                if not one.dashed or number % 2 == 0:
                    draw.line([start, end], fill=one.colour, width=2 * SCALE)
        for (x, _), (low, high) in zip(one.points, one.bars, strict=False):
            draw.line([place(x, low), place(x, high)], fill=one.colour, width=2 * SCALE)
        radius = 4 * SCALE
        for x, y in points if one.marks else ():
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=one.colour, outline="white")


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    log: bool

    @classmethod
    def around(cls, values: Sequence[float], log: bool) -> _Axis:
        """Return the axis that holds all values with some room."""
        scaled = [math.log10(value) if log else value for value in values]
        room = 0.05 * (max(scaled) - min(scaled)) or (0.1 if log else 0.05 * abs(scaled[0]) or 1.0)
        return cls(min(scaled) - room, max(scaled) + room, log)

    def share(self, value: float) -> float:
        return ((math.log10(value) if self.log else value) - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Return about six round numbers; of a logarithmic axis powers of ten, and multiples where these are few."""
        if self.log:
            powers = range(math.floor(self.low), math.ceil(self.high) + 1)
            for multiples in ((1,), (1, 3), (1, 2, 5), tuple(range(1, 10))):
                found = [
                    m * 10.0**p for p in powers for m in multiples if self.low <= math.log10(m * 10.0**p) <= self.high
                ]
                if len(found) >= 3:
                    return found[:: max(1, len(found) // 7)]
        low, high = (10**self.low, 10**self.high) if self.log else (self.low, self.high)
        step = 10 ** math.floor(math.log10(high - low))
        step *= next(m for m in (0.1, 0.2, 0.5, 1, 2) if (high - low) / (m * step) <= 8)
        return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _write(value: float) -> str:
    return f"{value:.4g}".replace("e+", "e").replace("e0", "e")
