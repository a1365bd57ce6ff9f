"""What `filter.py` measures in the frames of a clip: bars, letters, motion.

All take grey frames (F, Y, X) in 0..255 of one clip, reduced to at most 256 columns. `filter_benchmark.py` draws
clips with and without each property and prints the precision and recall of each measure.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from training.manifest import ClipRow

# Bars. Levels are of 0..255.
MAX_BAR_LEVEL = 40  # limited range's black read as full range is 16, and encoders add noise
BAR_NOISE = 12  # between the darkest and the brightest tenth of a line's pixels, over the whole clip
RINGING = 36  # of single pixels beside the edge, where encoders leave waves
EDGE_LINES = 2  # that the edge of a bar may take once frames are reduced
EDGE_STEP = 10  # between a bar and the image beside it
EDGE_COVERAGE = 0.7  # of a bar's edge with such a step, in a fifth of the frames
MAX_BARS = 0.8  # of the frame; 2.39:1 within 9:16 leaves 0.76
MIN_BOXED_AREA = 0.4  # of an image with bars on all sides; 4:3 within 16:9 within 4:3 leaves 0.56

# Letters.
STRONG_EDGE = 80  # of a morphological gradient
MIN_LETTERS = 3  # parts of a line
SHAPE_SIDE = 12  # parts are compared at this size
ALIKE = 0.8  # intersection over union of two parts that count as one shape
MAX_ALIKE = 0.4  # of the pairs of parts; windows, keys and posts repeat, letters seldom do
SOLID = 0.85  # share of its box that a part fills; windows, bricks and bars do, most letters do not
MAX_SOLID = 0.6  # of the parts
MAX_PERIODIC = 0.8  # autocorrelation of the ink of columns; a fence has 1
MAX_SURROUND = 0.5  # strong edges just above and below a line, against those in it


class Bars(NamedTuple):
    """The bars at the two ends of one axis: the lines that they take and their level."""

    first: int
    last: int
    level: float


def letterbox_share(grey: np.ndarray) -> float:
    """Return the share of rows or columns of (F, Y, X) under black bars, the larger one; 0 where there are none.

    A bar is dark, the same everywhere and in every frame, opposite to one of about its size, and ends in one straight
    sharp edge along the whole image. A night sky, a dark room and a thing on black lack one of these.
    """
    rows = find_bars(grey)
    columns = find_bars(grey.transpose(0, 2, 1))
    height, width = grey.shape[1:]
    shares = [0.0]
    if rows and has_edges(grey, rows):
        shares.append((rows.first + rows.last) / height)
    if columns and has_edges(grey.transpose(0, 2, 1), columns):
        shares.append((columns.first + columns.last) / width)
    if rows and columns and len(shares) < 3:
        inner_rows = slice(rows.first, height - rows.last)
        inner_columns = slice(columns.first, width - columns.last)
        area = grey[0, inner_rows, inner_columns].size / grey[0].size
        if (
            area >= MIN_BOXED_AREA
            and has_edges(grey[:, :, inner_columns], rows)
            and has_edges(grey[:, inner_rows].transpose(0, 2, 1), columns)
        ):
            shares += [(rows.first + rows.last) / height, (columns.first + columns.last) / width]
    return float(max(shares))


def find_bars(grey: np.ndarray) -> Bars | None:
    """Find dark lines at both ends of the second axis of (F, Y, X) that never change; None where there are none."""
    low, middle, high, highest = np.percentile(grey, (10, 50, 90, 99), axis=(0, 2))
    still = (high - low <= BAR_NOISE) & (highest - middle <= RINGING) & (middle <= MAX_BAR_LEVEL)
    if still.all() or not (still[0] and still[-1]):
        return None
    ends = []
    for run, level in ((still, middle), (still[::-1], middle[::-1])):
        same = run & (np.abs(level - level[0]) <= BAR_NOISE / 2)
        ends.append(int(np.argmin(same)))
    first, last = ends
    similar = abs(first - last) <= max(EDGE_LINES, 0.05 * len(still)) and abs(middle[0] - middle[-1]) <= BAR_NOISE / 2
    if not similar or first + last > MAX_BARS * len(still):
        return None
    return Bars(first, last, float(middle[0]))


def has_edges(grey: np.ndarray, bars: Bars) -> bool:
    """Return whether both bars of (F, Y, X) end in a straight sharp edge along the whole second axis."""
    return _is_sharp(grey, bars.first) and _is_sharp(grey[:, ::-1], bars.last)


def _is_sharp(grey: np.ndarray, lines: int) -> bool:
    """Return whether (F, Y, X) has a sharp edge after its first lines, and no slow rise as of a glow or a sky."""
    if lines + 2 * EDGE_LINES >= grey.shape[1]:
        return False
    before, after, beyond = (grey[:, lines + n * EDGE_LINES - (n == 0)].astype(float) for n in range(3))
    near = np.abs(grey[:, lines : lines + EDGE_LINES].astype(float) - before[:, None]).max(1)
    covered = (near >= EDGE_STEP).mean(1)
    step, rise = after - before, beyond - after
    slow = (np.sign(step) == np.sign(rise)) & (np.abs(rise) >= 0.4 * np.abs(step)) & (np.abs(step) >= EDGE_STEP)
    share = slow.sum() / max(1, (np.abs(step) >= EDGE_STEP).sum())
    return bool(np.quantile(covered, 0.8) >= EDGE_COVERAGE and share < 0.6)


def text_share(grey: np.ndarray) -> float:
    """Return the share of the frame (F, Y, X) under probable lines of letters that stand in every frame.

    A line of letters is a region of close edges, much wider than high, that many strokes cross, and whose parts have
    different shapes (`is_writing`): bricks, fences, keyboards and rows of windows repeat one.
    """
    kernel = np.ones((3, 3), np.uint8)
    edges = np.min([cv2.morphologyEx(one, cv2.MORPH_GRADIENT, kernel) for one in grey], axis=0)
    strong = (edges > STRONG_EDGE).astype(np.uint8)
    lines = cv2.morphologyEx(strong, cv2.MORPH_CLOSE, np.ones((1, 9), np.uint8))
    count, _, stats, _ = cv2.connectedComponentsWithStats(lines)
    still = np.median(grey, axis=0).astype(np.uint8)
    area = 0
    for left, top, width, height, inside in stats[1:count]:
        box = strong[top : top + height, left : left + width]
        crossings = np.abs(np.diff(box.astype(int), axis=1)).sum(1).max(initial=0)
        wide = width >= 3 * height and height >= 4 and inside > 0.4 * width * height and crossings >= 6
        if wide and is_writing(still[top : top + height, left : left + width]):
            area += width * height
    return area / edges.size


def is_writing(line: np.ndarray) -> bool:
    """Return whether an image (Y, X) of a line has parts of different shapes, as letters and words are.

    Tried with both polarities: light on dark and dark on light.
    """
    _, light = cv2.threshold(line, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    return any(_has_letters(ink) for ink in (light, 1 - light))


def _has_letters(ink: np.ndarray) -> bool:
    """Return whether ink (Y, X) of 0 and 1 has parts of different shapes and no period."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(ink, connectivity=8)
    tall = [n for n in range(1, count) if stats[n, cv2.CC_STAT_HEIGHT] >= max(3, 0.35 * ink.shape[0])]
    if not 0.08 <= ink.mean() <= 0.7 or len(tall) < MIN_LETTERS or _period(ink) > MAX_PERIODIC:
        return False
    shapes, solid = [], 0
    for n in tall:
        x, y, width, height, size = stats[n]
        part = (labels[y : y + height, x : x + width] == n).astype(np.float32)
        side = max(width, height)
        square = np.zeros((side, side), np.float32)
        square[:height, :width] = part
        shapes.append(cv2.resize(square, (SHAPE_SIDE, SHAPE_SIDE), interpolation=cv2.INTER_AREA) > 0.5)
        solid += size >= SOLID * width * height
    pairs = [
        (one & other).sum() >= ALIKE * max(1, (one | other).sum())
        for n, one in enumerate(shapes)
        for other in shapes[:n]
    ]
    return bool(np.mean(pairs) <= MAX_ALIKE and solid <= MAX_SOLID * len(tall))


def _period(ink: np.ndarray) -> float:
    """Return the highest autocorrelation of the ink of columns (Y, X) at a shift of 3 columns to half the width."""
    profile = ink.sum(0) - ink.sum(0).mean()
    width = len(profile)
    best = 0.0
    for shift in range(3, width // 2):
        one, other = profile[shift:], profile[:-shift]
        norm = np.sqrt((one**2).sum() * (other**2).sum())
        best = max(best, float((one * other).sum() / norm)) if norm else best
    return best


def block_motion(vectors: np.ndarray, row: ClipRow) -> float:
    """Return the mean length of a frame's motion vectors per frame of distance, weighted by area, in frame widths.

    Intra-coded blocks have no vector and count as still.
    """
    scale = np.maximum(vectors["motion_scale"], 1)
    lengths = np.hypot(vectors["motion_x"] / scale, vectors["motion_y"] / scale)
    lengths = lengths / np.maximum(np.abs(vectors["source"]), 1)
    areas = vectors["w"].astype(float) * vectors["h"]
    return float((lengths * areas).sum() / (row.columns * row.rows) / row.columns)


def optical_flow(before: np.ndarray, after: np.ndarray) -> float:
    """Return the mean length of the optical flow between two RGB images (Y, X, 3), in frame widths (Farneback 2003)."""
    first, second = (cv2.cvtColor(one, cv2.COLOR_RGB2GRAY) for one in (before, after))
    flow = cv2.calcOpticalFlowFarneback(
        first, second, np.zeros((*first.shape, 2), np.float32), 0.5, 3, 15, 3, 5, 1.2, 0
    )
    return float(np.hypot(flow[..., 0], flow[..., 1]).mean() / before.shape[1])
