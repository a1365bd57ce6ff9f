"""Find clips that show what another shows, coded anew, brighter, resized, cropped or trimmed, by perceptual hashes.

A clip has RATE hashes a second, from its beginning. Two clips are near where, at some shift, one lies over half of the
shorter or more, and hashes on top of one another differ in NEAR bits on average or fewer. Which shifts of which clips
are worth a look is found by sampling bits (Indyk and Motwani 1998), so that time does not grow with the pairs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Set

import cv2
import numpy as np

RATE = 8  # hashes a second: a copy may begin between two, and is then 1/16 s off at most
LONGEST = 60 * RATE  # hashes of a clip
SIDE = 12  # of the square of lowest frequencies whose signs are a hash
BYTES = SIDE * SIDE // 8
# Of 1,999,000 pairs of 2,000 world clips, which have their grounds and skies in common, the nearest differ in 29.8 and
# 30.8 bits. Of 60 copies, those coded again, smaller, brighter or trimmed differ in 11 at most, those cropped by 5 % in
# the middle in 21, with a bar at the foot in 22. Cropped by 5 % at the left, nine of ten differ in 28 at most, at a
# corner one of four.
NEAR = 28
TABLES, SAMPLED = 16, 20  # how often hashes are sorted, each time by so many of their bits
CROWD = 16  # hashes that agree in those bits are compared with so many of them, in order


def perceptual_hash(grey: np.ndarray) -> np.ndarray:
    """Return BYTES bytes of bits that similar pictures share: the signs, about their median, of the lowest frequencies
    of a picture (Y, X) (pHash, Zauner 2010).
    """
    small = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small)[:SIDE, :SIDE].ravel()
    return np.packbits(low > np.median(low))


def away(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return in how many bits hashes (..., BYTES) differ."""
    return np.bitwise_count(first ^ second).sum(-1, dtype=np.int64)


def duplicates(hashes: dict[str, np.ndarray], worse: Set[str] = frozenset()) -> set[str]:
    """Return the clips whose hashes (N, BYTES) are near those of another that is no duplicate itself: of one that is
    not among the `worse`, or else longer, or else named before. Pictures and films are no duplicates of one another.
    """
    clips = sorted(hashes, key=lambda clip: (clip in worse, -len(hashes[clip]), clip))
    near: defaultdict[int, set[int]] = defaultdict(set)
    for one, other, shift in candidates([hashes[clip] for clip in clips]):
        if one not in near[other] and are_near(hashes[clips[one]], hashes[clips[other]], shift):
            near[other].add(one)
    found: set[int] = set()
    for other in sorted(near):
        if near[other] - found:
            found.add(other)
    return {clips[number] for number in found}


def are_near(one: np.ndarray, other: np.ndarray, shift: int) -> bool:
    """Say whether hashes are near those of another clip that begins `shift` of them after it."""
    if (len(one) == 1) != (len(other) == 1):
        return False
    upper, lower = one[max(0, shift) :], other[max(0, -shift) :]
    common = min(len(upper), len(lower))
    return 2 * common >= min(len(one), len(other)) and away(upper[:common], lower[:common]).mean() <= NEAR


def candidates(clips: list[np.ndarray]) -> Iterator[tuple[int, int, int]]:
    """Yield two clips, by number and in order, and how much later the second begins, where hashes of theirs agree in
    all bits of a sample and differ in NEAR at most.
    """
    if not clips:
        return
    every = np.concatenate(clips)
    owner = np.repeat(np.arange(len(clips)), [len(one) for one in clips])
    at = np.concatenate([np.arange(len(one)) for one in clips])
    fresh = (at == 0) | (every != np.roll(every, 1, axis=0)).any(1)  # what stands still is looked up once
    every, owner, at = every[fresh], owner[fresh], at[fresh]
    bits, rng = np.unpackbits(every, axis=1), np.random.default_rng(0)
    lowest = np.flatnonzero(np.add.outer(np.arange(SIDE), np.arange(SIDE)).ravel() < SIDE)  # which change the least
    seen = np.empty(0, np.int64)
    reach = 2 * LONGEST + 1
    for _ in range(TABLES):
        keys = bits[:, rng.choice(lowest, SAMPLED, replace=False)] @ (1 << np.arange(SAMPLED))
        order = np.argsort(keys, kind="stable")
        begins = np.flatnonzero(np.diff(keys[order], prepend=-1))
        begin = np.repeat(begins, np.diff(begins, append=len(order)))
        pairs = []
        for rank in range(CROWD):
            later = np.flatnonzero(np.arange(len(order)) > begin + rank)
            first, second = order[begin[later] + rank], order[later]
            apart = (owner[first] < owner[second]) & (away(every[first], every[second]) <= NEAR)
            first, second = first[apart], second[apart]
            pairs.append((owner[first] * len(clips) + owner[second]) * reach + at[first] - at[second] + LONGEST)
        seen = np.union1d(seen, np.concatenate(pairs))
    for number in seen.tolist():
        pair, shift = divmod(number, reach)
        yield *divmod(pair, len(clips)), shift - LONGEST
