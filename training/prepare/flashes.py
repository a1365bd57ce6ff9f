"""Tell flashes from cuts: after a flash of a camera, of lightning or of a strobe, the shot goes on."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

THUMB_SIZE = (16, 9)  # columns and rows of what is kept of every frame
FLASH_SECONDS = 0.34  # within which the image must be back; a strobe counts flash by flash
FLASH_LEVELS = 16  # of 255, by which a flash is brighter or darker than what is before it
FLASH_RETURN = 0.35  # most of the change that may be left when the image is back,
SAME_LEVELS, SAME_MOTION = 6, 2  # and no more levels than these, and this many times the motion before the flash
EARLIER = 3  # frames before a reported cut at which its flash may begin


def without_flashes(cuts: Sequence[int], times: Sequence[Fraction], thumbs: Sequence[np.ndarray]) -> list[int]:
    """Leave out cuts at flashes: where the image is brighter or darker for a moment, and then what it was before.

    Args:
        cuts: The first frames of shots, ascending.
        times: When every frame begins, in seconds.
        thumbs: A small image (Y, X, 3) of every frame, uint8.
    """
    kept, back = [], -1  # the frame at which the image is back after the last flash
    for cut in cuts:
        if cut <= back:
            continue
        end = flash_end(cut, times, thumbs)
        if end is None:
            kept.append(cut)
        else:
            back = end
    return kept


def flash_end(cut: int, times: Sequence[Fraction], thumbs: Sequence[np.ndarray]) -> int | None:
    """Return the frame at which the image is back after a flash that begins at a cut or just before; None for no flash.

    Detectors of shots may report only the end of a flash.
    """
    for begin in range(cut, max(0, cut - EARLIER - 1), -1):
        before = thumbs[begin - 1].astype(float)
        changes = []
        for frame in range(begin, len(thumbs)):
            if times[frame] - times[begin] > FLASH_SECONDS:
                break
            changes.append(np.abs(thumbs[frame] - before).mean())
            peak = int(np.argmax(changes))
            strong = abs((thumbs[begin + peak] - before).mean()) >= FLASH_LEVELS
            earlier = thumbs[max(0, 2 * (begin - 1) - frame)]
            motion = np.abs(before - earlier).mean()
            left = min(FLASH_RETURN * changes[peak], SAME_LEVELS + SAME_MOTION * motion)
            if frame >= cut and strong and changes[-1] <= left:
                return frame
    return None
