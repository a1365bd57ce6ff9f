"""Draw short clips for `filter_benchmark.py`: each filter gets clips that it must find and clips that look like them.

Clips are uint8 (F, Y, X, 3), all from one seed. A property that is not named in `Drawn.has` is one that a clip lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFont

FRAMES, FPS = 32, 16
SIZES = ((144, 256), (120, 160), (192, 108), (90, 160))  # rows, columns
WORDS = (
    "A",
    "QUICK",
    "brown",
    "Fox",
    "JUMPS",
    "over",
    "THE",
    "lazy",
    "Dog",
    "WHILE",
    "Rain",
    "falls",
    "ON",
    "Green",
    "hills",
)


class Drawn(NamedTuple):
    """A drawn clip: its name, the filter that it tries, its properties ("letterbox", "text", "cut", ...), its pixels.

    Of a pair, `original` is the name of the other clip; `has` has "duplicate" if this one is a copy of it.
    """

    name: str
    tries: str
    has: frozenset[str]
    clip: np.ndarray
    original: str = ""


def texture(rng: Generator, rows: int, columns: int, cells: int = 8, low: int = 40, high: int = 170) -> np.ndarray:
    """Draw smooth random ground of about `cells` patches across, (Y, X, 3) in float."""
    small = rng.uniform(low, high, (max(2, cells * rows // columns), cells, 3)).astype(np.float32)
    grain = rng.normal(0, 0.06 * (high - low), (rows // 2 + 1, columns // 2 + 1, 1)).repeat(2, 0).repeat(2, 1)
    smooth = cv2.resize(small, (columns, rows), interpolation=cv2.INTER_CUBIC)
    return (smooth + grain[:rows, :columns]).clip(low, high)


def scene(rng: Generator, rows: int, columns: int, frames: int = FRAMES, low: int = 40, high: int = 170) -> np.ndarray:
    """Draw a ground that pans slowly, and two discs that move."""
    ground = texture(rng, rows + 16, columns + 64, int(rng.integers(5, 14)), low, high)
    y, x = np.mgrid[:rows, :columns]
    things = [
        (rng.uniform(0.2, 0.8, 2), rng.uniform(-0.4, 0.4, 2), rng.uniform(0.08, 0.2), rng.uniform(0, 1, 3))
        for _ in range(2)
    ]
    pan, images = rng.uniform(-1, 1), []
    for frame in range(frames):
        shift = int(32 + 28 * pan * frame / frames)
        image = ground[8 : 8 + rows, shift : shift + columns].copy()
        for place, speed, radius, colour in things:
            cy, cx = (place + speed * frame / frames) * (rows, columns)
            image[(y - cy) ** 2 + (x - cx) ** 2 < (radius * rows) ** 2] = low + colour * (1.3 * high - low)
        images.append(image)
    return np.stack(images).clip(0, 255).astype(np.uint8)


def with_bars(rng: Generator, number: int) -> np.ndarray:
    """Draw a scene under bars: above and below, at the sides, or all around; now and then dark or faded in."""
    rows, columns = SIZES[number % len(SIZES)]
    dark = number % 5 == 4
    clip = scene(rng, rows, columns, low=8 if dark else 30, high=90 if dark else 200)
    if number % 7 == 3:  # fades in from black
        clip = (clip * np.linspace(0, 1, len(clip))[:, None, None, None]).astype(np.uint8)
    share = rng.uniform(0.05, 0.28)
    for axis, size in ((1, rows), (2, columns)):
        if number % 3 in (axis - 1, 2):
            lines = max(2, round(size * (share if number % 3 < 2 else share / 2)))
            bars = np.moveaxis(clip, axis, 0)
            bars[:lines] = bars[size - lines :] = int(rng.choice([0, 0, 0, 16]))
    return clip


def without_bars(rng: Generator, number: int) -> np.ndarray:
    """Draw what is dark at the borders and has no bars: night, lamp, stage, dusk, horizon, tunnel."""
    rows, columns = SIZES[number % len(SIZES)]
    y, x = np.mgrid[:rows, :columns]
    dark = rng.uniform(0, 14, 3)
    images = np.empty((FRAMES, rows, columns, 3))
    kind, width, top = number % 6, rng.uniform(0.2, 0.55), rng.uniform(0.3, 0.65)
    town = texture(rng, rows, columns, 24, 20, 160)
    skyline = (rows * (top + 0.08 * rng.random(columns // 4 + 1))).repeat(4)[:columns]
    for frame in range(FRAMES):
        images[frame] = dark
        part = frame / FRAMES
        if kind == 0:  # a night sky over a town with one straight roof line
            images[frame, int(rows * top) :] = town[int(rows * top) :]
            images[frame, int(rows * 0.85) : int(rows * 0.92), int(columns * part * 0.8) :][:, :12] = (240, 200, 90)
        elif kind == 1:  # a lamp
            distance = (x - columns * (0.3 + 0.3 * part)) ** 2 + (y - rows * top) ** 2
            images[frame] += np.exp(-distance / (width * rows) ** 2)[..., None] * (220, 170, 90)
        elif kind == 2:  # a thing on a black stage
            left = int(columns * (1 - width) * part)
            images[frame, rows // 4 : 3 * rows // 4, left : left + int(columns * width)] = (230, 80, 60)
        elif kind == 3:  # dusk: a sky that brightens slowly towards the middle, and ground that darkens
            rise = 1 - np.abs(np.linspace(-1, 1, rows)) ** rng.uniform(0.7, 2)
            images[frame] += rise[:, None, None] * (170, 110, 60)
        elif kind == 4:  # a skyline before a dark street
            lit = (y > skyline) & (y < rows * 0.8)
            images[frame][lit] = np.roll(town, frame // 4, 1)[lit]
        else:  # the end of a tunnel
            inside = (x - columns / 2) ** 2 + (y - rows / 2) ** 2 < (rows * (0.2 + 0.2 * part)) ** 2
            images[frame][inside] = town[inside]
    return images.clip(0, 255).astype(np.uint8)


def write_words(rng: Generator, clip: np.ndarray, size: int, words: int, row: float) -> np.ndarray:
    """Write a line of words into every frame of a clip, light or dark, `row` of the way down."""
    _, rows, columns, _ = clip.shape
    text = " ".join(rng.choice(WORDS, words, replace=False))
    font = ImageFont.load_default(size)
    while font.getlength(text) > 0.94 * columns and " " in text:
        text = text.rsplit(" ", 1)[0]
    page = Image.new("L", (columns, rows))
    place = (rng.uniform(0.02, 0.98) * max(0, columns - font.getlength(text)), row * (rows - 1.4 * size))
    ImageDraw.Draw(page).text(place, text, fill=255, font=font)
    ink = np.asarray(page)[..., None] / 255
    colour = rng.choice([[250, 250, 245], [250, 230, 60]]) if clip.mean() < 130 else np.array([5, 5, 10])
    return (clip * (1 - ink) + ink * colour).astype(np.uint8)


def with_text(rng: Generator, number: int) -> np.ndarray:
    """Draw subtitles, titles and cards, of one line to three, on grounds that move or stand."""
    rows, columns = SIZES[number % 2]
    kind = number % 3
    clip = scene(rng, rows, columns) if kind else np.zeros((FRAMES, rows, columns, 3), np.uint8)
    if kind == 0:
        clip[:] = rng.integers(0, 60, 3) if number % 2 else rng.integers(190, 250, 3)
    elif number % 4 == 1:
        clip = np.repeat(clip[:1], FRAMES, 0)
    size = int(rng.integers(rows // 9, rows // 6))
    for line in range(1 + number % 2):
        row = (0.25 if kind == 0 else 0.62) + line * 1.5 * size / (rows - 1.4 * size)
        clip = write_words(rng, clip, size, 4, min(1, row))
    return clip


def without_text(rng: Generator, number: int) -> np.ndarray:
    """Draw what repeats and is no text: windows, fence, keyboard, bricks, blinds, keys, tiles, branches and more."""
    rows, columns = SIZES[number % 2]
    image = np.full((rows, columns, 3), rng.integers(30, 160), np.uint8)
    light, dark = (int(rng.integers(200, 255)), int(rng.integers(0, 40)))
    step, thick = int(rng.integers(7, 15)), int(rng.integers(2, 4))
    kind = number % 12
    if kind in (0, 1):  # windows, all lit or some
        image[:] = 60
        for y in range(8, rows - 30, step + 8):
            for x in range(8, columns - 12, step):
                if kind == 0 or rng.random() < 0.6:
                    image[y : y + step - 3, x : x + step - 4] = (250, 230, 150)
    elif kind == 2:  # a fence
        image[20 : rows // 2, ::step], image[20 : rows // 2, 1::step] = dark, dark
        image[rows // 3 : rows // 3 + 3] = dark
    elif kind == 3:  # a keyboard, with some wide keys
        image[:] = dark
        for y in range(20, rows - 30, step + 4):
            x = 14 + int(rng.integers(0, 8))
            while x < columns - 30:
                wide = step * int(rng.choice([1, 1, 1, 2]))
                image[y : y + step, x : x + wide - 3] = light
                x += wide
    elif kind == 4:  # bricks
        image[:] = (170, 80, 60)
        for row in range(0, rows * 2 // 3, step):
            image[row : row + 2] = 230
            image[row : row + step, (row // step % 2) * step :: 2 * step] = 230
    elif kind == 5:  # blinds
        for shift in range(thick):
            image[10 + shift : rows * 2 // 3 : step] = dark
    elif kind == 6:  # the keys of a piano
        image[rows // 4 : rows // 2] = light
        for at in range(0, columns, step):
            image[rows // 4 : rows // 2, at] = dark
            if at // step % 7 not in (2, 6):
                image[rows // 4 : rows * 3 // 8, at - 2 : at + 3] = dark
    elif kind == 7:  # tiles
        y, x = np.mgrid[:rows, :columns]
        image[(y // step + x // step) % 2 == 0] = light
    elif kind == 8:  # a barcode, or books on a shelf
        x = 10
        while x < columns - 10:
            wide = int(rng.integers(2, step))
            image[rows // 4 : rows // 4 + int(rng.integers(20, 30)), x : x + wide] = rng.integers(0, 255, 3)
            x += wide + int(rng.integers(1, 4))
    elif kind == 9:  # branches
        for _ in range(60):
            begin = rng.uniform(0, 1, 2) * (columns, rows * 0.7)
            end = begin + rng.uniform(-30, 30, 2)
            cv2.line(image, tuple(map(int, begin)), tuple(map(int, end)), (dark, dark, dark), int(rng.integers(1, 3)))
    elif kind == 10:  # lamps in a row
        for at in range(step, columns, step + 4):
            cv2.circle(image, (at, rows // 3), step // 2 - 1, (light, light, 150), -1)
    else:  # a lattice
        y, x = np.mgrid[: rows * 2 // 3, :columns]
        image[: rows * 2 // 3][((x + y) % step < thick - 1) | ((x - y) % step < thick - 1)] = dark
    clip = np.repeat(image[None], FRAMES, 0)
    for frame in range(FRAMES):
        left = int(frame / FRAMES * (columns - 24))
        clip[frame, rows - 26 : rows - 8, left : left + 20] = (220, 40, 40)
    return clip


def with_cut(rng: Generator, number: int) -> np.ndarray:
    """Draw two or three different scenes one after the other, now and then with a flash between them."""
    rows, columns = SIZES[number % len(SIZES)]
    scenes = [scene(rng, rows, columns, FRAMES, *rng.permutation([(20, 120), (60, 200), (100, 230)])[0]) for _ in "12"]
    if number % 4 == 0:
        scenes.insert(1, np.full((2, rows, columns, 3), 250, np.uint8))
    return np.concatenate(scenes)


def without_cut(rng: Generator, number: int) -> np.ndarray:
    """Draw one shot with what looks like a cut: flashes, lightning, a strobe, a fast pan, a thing that comes near."""
    rows, columns = SIZES[number % len(SIZES)]
    clip = scene(rng, rows, columns, 2 * FRAMES)
    kind, at = number % 6, int(rng.integers(FRAMES // 2, FRAMES))
    if kind in (0, 1):  # a flash of one frame to three, white, black or coloured
        clip[at : at + 1 + number % 3] = [(250, 250, 250), (0, 0, 0), (255, 220, 170)][number % 3]
    elif kind == 2:  # lightning that fades
        for step, level in enumerate((0.9, 0.6, 0.25)):
            clip[at + step] = clip[at + step] * (1 - level) + 250 * level
    elif kind == 3:  # a strobe
        for begin in range(at, at + 16, 5):
            clip[begin : begin + 2] = 248
    elif kind == 4:  # a fast pan
        ground = texture(rng, rows, 4 * columns, 24, 30, 220)
        for frame in range(len(clip)):
            left = int(2.5 * columns * min(1, max(0, (frame - at) / 12)))
            clip[frame] = ground[:, left : left + columns]
    else:  # an overexposed picture for two frames
        clip[at : at + 2] = (clip[at : at + 2] * 2.5 + 60).clip(0, 255)
    return clip


def copies(rng: Generator, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a clip and a copy of it: smaller, brighter, trimmed or cropped."""
    rows, columns = SIZES[number % 2]
    clip = scene(rng, rows, columns, 2 * FRAMES)
    if number % 5 == 4:  # between pillars
        clip[:, :, : columns // 4] = clip[:, :, -(columns // 4) :] = 0
    change: Callable[[np.ndarray], np.ndarray] = [
        lambda one: one[:, ::2, ::2],
        lambda one: (one * 1.1 + 8).clip(0, 255).astype(np.uint8),
        lambda one: one[8:],
        lambda one: one[:, 2:-2, 4:-4],
        lambda one: one[:-10],
    ][number % 5]
    return clip, np.ascontiguousarray(change(clip))


def lookalikes(rng: Generator, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw two clips that are no copies: flat, of other hues, between pillars, cards, dark."""
    rows, columns = SIZES[number % 2]
    kind = number % 6
    pair = []
    colours = rng.permutation([(200, 30, 40), (20, 115, 30), (60, 70, 210), (150, 80, 10)])
    for one in range(2):
        clip = np.full((FRAMES, rows, columns, 3), 90, np.uint8)
        if kind == 0:  # flat
            clip[:] = colours[one]
        elif kind == 1:  # the same motion in another hue
            for frame in range(FRAMES):
                left = int(frame / FRAMES * columns * 0.6)
                clip[frame, rows // 3 : 2 * rows // 3, left : left + rows // 3] = colours[one]
        elif kind == 2:  # between pillars
            clip[:] = 0
            inner = scene(rng, rows, columns // 4)
            clip[:, :, 3 * columns // 8 : 3 * columns // 8 + inner.shape[2]] = inner
        elif kind == 3:  # cards
            clip[:] = 0
            clip = write_words(np.random.default_rng(int(rng.integers(10**9))), clip, rows // 9, 3, 0.45)
        elif kind == 4:  # night, with little lights
            clip[:] = (8, 8, 14)
            for _ in range(12):
                y, x = rng.integers(rows // 2, rows - 6), rng.integers(0, columns - 6)
                clip[:, y : y + 5, x : x + 5] = rng.integers(80, 255, 3)
        else:  # the same ground under other things
            ground = texture(np.random.default_rng(number), rows, columns, 3, 80, 120)
            clip = np.repeat(ground[None].astype(np.uint8), FRAMES, 0)
            for frame in range(FRAMES):
                part = frame / FRAMES
                y, x = (part, 0.5) if one else (0.5, part)
                y, x = int(y * rows * 0.6), int(x * columns * 0.6)
                clip[frame, y : y + rows // 3, x : x + rows // 3] = colours[one]
        pair.append(clip)
    return pair[0], pair[1]


def levels(rng: Generator, number: int, has: str) -> np.ndarray:
    """Draw a scene that is still, blurred, dark or clipped, or (an empty name) one that nearly is."""
    rows, columns = SIZES[number % 2]
    clip = scene(rng, rows, columns, low=60, high=200)
    if has == "motion":
        return np.repeat(clip[:1], FRAMES, 0)
    if has == "sharpness":
        return np.stack([cv2.GaussianBlur(one, (0, 0), rows / 12) for one in clip])
    if has == "brightness":
        return (clip * 0.04).astype(np.uint8)
    if has == "clipped":
        return np.where(clip.mean(-1, keepdims=True) > 100, 255, 0).repeat(3, -1).astype(np.uint8)
    if number % 3 == 0:
        return (clip * 0.3).astype(np.uint8)
    if number % 3 == 1:
        return np.where(clip > 150, 255, clip).astype(np.uint8)
    return np.stack([np.roll(clip[0], 2 * frame, 1) for frame in range(FRAMES)])


def draw_set(clips_per_kind: int = 18, seed: int = 0) -> Iterator[Drawn]:
    """Draw the whole set: of each filter as many clips that it must find as clips that look like them."""
    single: dict[str, tuple[Callable, Callable]] = {
        "letterbox": (with_bars, without_bars),
        "text": (with_text, without_text),
        "cut": (with_cut, without_cut),
    }
    for number in range(clips_per_kind):
        for place, (tries, draw) in enumerate(single.items()):
            for trap in range(2):
                clip = draw[trap](np.random.default_rng([seed, place, trap, number]), number)
                yield Drawn(_name(tries, trap, number), tries, frozenset([tries][trap:]), clip)
        if number % 2:
            continue
        for trap, draw_pair in enumerate((copies, lookalikes)):
            pair = draw_pair(np.random.default_rng([seed, 3, trap, number]), number // 2)
            other = also_has(trap, number // 2)
            name = _name("duplicate", trap, number)
            yield Drawn(f"{name}a", "", frozenset(other), pair[0])
            yield Drawn(f"{name}b", "duplicate", frozenset([*other, *["duplicate"][trap:]]), pair[1], f"{name}a")
        for place, tries in enumerate(("motion", "sharpness", "brightness", "clipped")):
            for trap in range(2):
                rng = np.random.default_rng([seed, 4 + place, trap, number])
                clip = levels(rng, number // 2, "" if trap else tries)
                yield Drawn(_name(tries, trap, number), tries, frozenset([tries][trap:]), clip)


def also_has(trap: int, number: int) -> list[str]:
    """Return what else a pair of `copies` (0) or `lookalikes` (1) has: pillars are bars, and cards are text."""
    if trap:
        return {2: ["letterbox"], 3: ["text"]}.get(number % 6, [])
    return ["letterbox"] if number % 5 == 4 else []


def _name(tries: str, trap: int, number: int) -> str:
    return f"{tries}-{'trap' if trap else 'true'}-{number:03d}"
