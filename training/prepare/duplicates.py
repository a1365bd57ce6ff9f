"""Find near-duplicate clips by perceptual hashes: encoded again, brightened, resized, cropped or trimmed copies.

A clip has HASHES_PER_SECOND hashes of what is within its bars or around its letters (`content_box`), and as many coarse
colours. Two clips are near-duplicates where, at some time shift, they overlap by at least half of the shorter one,
overlapping hashes differ in at most MAX_DISTANCE bits on average, and colours agree (`same_colours`): a hash sees no
hue, and nothing in a flat image. Locality-sensitive hashing (Indyk and Motwani 1998) finds the pairs and shifts to
compare, so that time does not grow with all pairs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set

import cv2
import numpy as np

HASHES_PER_SECOND = 8  # a copy may begin between two hashes, and is then off by at most 1/16 s
MAX_HASHES = 60 * HASHES_PER_SECOND  # per clip
DCT_SIDE = 12  # a hash is the signs of the DCT_SIDE x DCT_SIDE lowest frequencies
HASH_BYTES = DCT_SIDE * DCT_SIDE // 8
COLOUR_SIDE = 4  # colours are the mean Cb and Cr of so many cells in a row and a column
COLOUR_BYTES = 2 * COLOUR_SIDE * COLOUR_SIDE + 3  # and of the whole its grain (`grain`), mean brightness, and deviation
# Of 1,999,000 pairs of 2,000 world clips, which share their grounds and skies, the nearest differ in 29.8 and 30.8
# bits. Of 60 copies, those that were encoded again, reduced, brightened or trimmed differ in 11 at most, those cropped
# by 5 % in the middle in 21, those with a bar at the bottom in 22. Cropped by 5 % at the left, nine of ten differ in 28
# at most; at a corner, one of four.
MAX_DISTANCE = 28
LSH_TABLES, LSH_BITS = 16, 20  # tables, and sampled bits per table
LSH_PARTNERS = (
    16  # hashes in a bucket are compared with this many of its first ones, so that a large bucket stays cheap
)


# Colours. Levels are of 0..255.
MAX_COLOUR_DISTANCE = 12  # of hue; copies differ by 7
MAX_BRIGHTNESS_DISTANCE = 32  # copies are brightened by some 20
MAX_GRAIN_DISTANCE = 28  # copies differ by 6, a fence and blinds by 194
FLAT = 4  # deviation under which an image has nothing but its colour
MAX_FLAT_DISTANCE = 6  # of hue and of brightness between flat images
# The border around the content.
BORDER_NOISE = 12  # between the pixels of a line that is no content
BORDER_DRIFT = 0.04  # of a side, that the content of most frames may differ from the usual place
LEAST_CONTENT = 8  # pixels


def fingerprints(images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes (N, HASH_BYTES) and the colours (N, COLOUR_BYTES) of N RGB images (Y, X, 3) of one clip."""
    if not images:
        return np.empty((0, HASH_BYTES), np.uint8), np.empty((0, COLOUR_BYTES), np.uint8)
    rows, columns = content_box([cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in images])
    inner = [cv2.cvtColor(image[rows, columns], cv2.COLOR_RGB2YCrCb) for image in images]
    colours = [
        np.append(
            cv2.resize(one, (COLOUR_SIDE,) * 2, interpolation=cv2.INTER_AREA)[..., 1:],
            (grain(light), light.mean(), light.std()),
        )
        for one, light in ((image, image[..., 0]) for image in inner)
    ]
    return np.stack([perceptual_hash(one[..., 0]) for one in inner]), np.stack(colours).round().astype(np.uint8)


def grain(light: np.ndarray) -> float:
    """Return whether an image (Y, X) changes more along columns (over 128) or along rows, 32 for a factor of two.

    A hash is too coarse for a fence and blinds.
    """
    across, down = (np.abs(np.diff(light.astype(int), axis=axis)).mean() + 1 for axis in (1, 0))
    return float(np.clip(128 + 32 * np.log2(across / down), 0, 255))


def content_box(grey: Sequence[np.ndarray]) -> tuple[slice, slice]:
    """Return the rows and columns of grey images (Y, X) within borders of one level that stand still.

    Bars and the plain ground around letters are left out. Where the content moves over a plain ground, its place says
    what moves, so all is kept.
    """
    boxes = np.array([_ends(image, 1) + _ends(image, 0) for image in grey if np.ptp(image) > BORDER_NOISE])
    height, width = grey[0].shape
    if len(boxes):
        box = np.median(boxes, axis=0).astype(int)
        drift = (np.abs(boxes - box) / (height, height, width, width)).max(1)
        if np.quantile(drift, 0.8) <= BORDER_DRIFT and min(box[1] - box[0], box[3] - box[2]) >= LEAST_CONTENT:
            return slice(box[0], box[1]), slice(box[2], box[3])
    return slice(0, height), slice(0, width)


def _ends(image: np.ndarray, axis: int) -> tuple[int, int]:
    """Return where the content of (Y, X) begins and ends among its lines, each of which runs along `axis`."""
    low, high = image.min(axis).astype(int), image.max(axis).astype(int)
    content = lambda first: (high - low > BORDER_NOISE) | (np.abs(low - low[first]) > BORDER_NOISE / 2)
    begin, end = np.flatnonzero(content(0)), np.flatnonzero(content(-1))
    return (int(begin[0]), int(end[-1]) + 1) if len(begin) and len(end) else (0, len(low))


def same_colours(one: np.ndarray, other: np.ndarray, shift: int) -> bool:
    """Return whether the colours (N, COLOUR_BYTES) of two clips agree where the second begins `shift` moments later.

    Compares the cell that differs most on average. Brightness counts only where it differs much more than that of a
    brightened copy, except in flat clips, which have nothing else.
    """
    upper, lower = overlap(one, other, shift)
    apart = np.abs(upper.astype(int) - lower)
    hue, brightness = np.hypot(apart[:, 0:-3:2], apart[:, 1:-3:2]).mean(0).max(), apart[:, -2].mean()
    if max(upper[:, -1].mean(), lower[:, -1].mean()) < FLAT:
        return bool(max(hue, brightness) <= MAX_FLAT_DISTANCE)
    like = hue <= MAX_COLOUR_DISTANCE and brightness <= MAX_BRIGHTNESS_DISTANCE
    return bool(like and apart[:, -3].mean() <= MAX_GRAIN_DISTANCE)


def perceptual_hash(grey: np.ndarray) -> np.ndarray:
    """Return the perceptual hash (HASH_BYTES,) of an image (Y, X): similar images share most bits.

    The bits are the signs of the lowest DCT frequencies about their median (pHash, Zauner 2010).
    """
    small = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small)[:DCT_SIDE, :DCT_SIDE].ravel()
    return np.packbits(low > np.median(low))


def hamming_distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the number of bits in which hashes (..., HASH_BYTES) differ."""
    return np.bitwise_count(first ^ second).sum(-1, dtype=np.int64)


def find_duplicates(
    hashes: dict[str, np.ndarray], worse: Set[str] = frozenset(), colours: Mapping[str, np.ndarray] | None = None
) -> set[str]:
    """Return the clips that duplicate a better clip, given the hashes (N, HASH_BYTES) of all clips, and their colours.

    A clip outside `worse` is better than one in it; then the longer one is better, then the first by name. A clip
    counts only against clips that are no duplicates themselves. An image never duplicates a video.
    """
    clips = sorted(hashes, key=lambda clip: (clip in worse, -len(hashes[clip]), clip))
    near: defaultdict[int, set[int]] = defaultdict(set)
    for one, other, shift in candidate_pairs([hashes[clip] for clip in clips]):
        if one in near[other] or not are_duplicates(hashes[clips[one]], hashes[clips[other]], shift):
            continue
        if colours is None or same_colours(colours[clips[one]], colours[clips[other]], shift):
            near[other].add(one)
    found: set[int] = set()
    for other in sorted(near):
        if near[other] - found:
            found.add(other)
    return {clips[number] for number in found}


def are_duplicates(one: np.ndarray, other: np.ndarray, shift: int) -> bool:
    """Return whether two clips are near-duplicates where the second begins `shift` hashes after the first."""
    if (len(one) == 1) != (len(other) == 1):
        return False
    upper, lower = overlap(one, other, shift)
    enough = 2 * len(upper) >= min(len(one), len(other))
    return bool(enough and hamming_distance(upper, lower).mean() <= MAX_DISTANCE)


def overlap(one: np.ndarray, other: np.ndarray, shift: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the moments that two clips share where the second begins `shift` moments after the first."""
    upper, lower = one[max(0, shift) :], other[max(0, -shift) :]
    common = min(len(upper), len(lower))
    return upper[:common], lower[:common]


def candidate_pairs(clips: list[np.ndarray]) -> Iterator[tuple[int, int, int]]:
    """Yield pairs of clips, by ascending index, with the shift of the second, where two of their hashes are similar.

    Similar hashes agree in all bits of one LSH table and differ in at most MAX_DISTANCE bits.
    """
    if not clips:
        return
    every = np.concatenate(clips)
    owner = np.repeat(np.arange(len(clips)), [len(one) for one in clips])
    at = np.concatenate([np.arange(len(one)) for one in clips])
    changed = (at == 0) | (every != np.roll(every, 1, axis=0)).any(1)  # a still stretch is looked up once
    every, owner, at = every[changed], owner[changed], at[changed]
    bits, rng = np.unpackbits(every, axis=1), np.random.default_rng(0)
    # The lowest frequencies change the least between copies.
    lowest = np.flatnonzero(np.add.outer(np.arange(DCT_SIDE), np.arange(DCT_SIDE)).ravel() < DCT_SIDE)
    seen = np.empty(0, np.int64)
    shifts = 2 * MAX_HASHES + 1
    for _ in range(LSH_TABLES):
        keys = bits[:, rng.choice(lowest, LSH_BITS, replace=False)] @ (1 << np.arange(LSH_BITS))
        order = np.argsort(keys, kind="stable")
        begins = np.flatnonzero(np.diff(keys[order], prepend=-1))
        begin = np.repeat(begins, np.diff(begins, append=len(order)))
        pairs = []
        for rank in range(LSH_PARTNERS):
            later = np.flatnonzero(np.arange(len(order)) > begin + rank)
            first, second = order[begin[later] + rank], order[later]
            similar = (owner[first] < owner[second]) & (hamming_distance(every[first], every[second]) <= MAX_DISTANCE)
            first, second = first[similar], second[similar]
            pairs.append((owner[first] * len(clips) + owner[second]) * shifts + at[first] - at[second] + MAX_HASHES)
        seen = np.union1d(seen, np.concatenate(pairs))
    for number in seen.tolist():
        pair, shift = divmod(number, shifts)
        yield *divmod(pair, len(clips)), shift - MAX_HASHES
