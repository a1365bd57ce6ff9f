"""Where the shots of a film begin and end."""

from __future__ import annotations

import math
import zlib
from bisect import bisect_left
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vae.video.pixels import MediaError
from vae.video.read import decode_frames, frame_rate, open_video, select_video_stream

DETECTORS = ("adaptive", "content")
SLOWEST = 1001  # seconds a frame, and the largest denominator of a rate, which is that of NTSC
SMALL = 160  # columns at which shots are looked for


class Look(NamedTuple):
    """What is known of a film's frames: when each begins, in seconds and as its time stamp, whether it is a keyframe,
    and a checksum of its picture; when the last ends; the frame rate; and the frames that begin a shot, beside the
    first.
    """

    begins: list[Fraction]
    stamps: list[int | None]
    keys: list[bool]
    checks: list[int]
    end: Fraction
    fps: Fraction
    cuts: list[int]

    def time(self, frame: int) -> Fraction:
        """Return when a frame begins, or where there is none, the end."""
        return self.begins[frame] if frame < len(self.begins) else self.end

    def rate(self, first: int, last: int) -> Fraction:
        """Return the frame rate of a stretch: the film's, or its own where that differs by more than a hundredth.

        Raises MediaError where it is too slow to be a film's.
        """
        seconds = self.time(last) - self.time(first)
        own = (last - first) / seconds if seconds else self.fps
        if own * SLOWEST < 1:
            raise MediaError(
                f"a frame must last at most {SLOWEST} seconds; got {float(1 / own):g}; export the film again"
            )
        return self.fps if abs(own / self.fps - 1) < 0.01 else own.limit_denominator(SLOWEST)


def look_at(path: Path, detector: str) -> Look:
    """Decode a film once, frame by frame, to learn when its frames and shots begin.

    Raises MediaError for what cannot be read, and for a film that changes its size.
    """
    import cv2
    from scenedetect import AdaptiveDetector, ContentDetector, FrameTimecode

    kind = AdaptiveDetector if detector == "adaptive" else ContentDetector
    judge = kind(min_scene_len=2)
    begins, stamps, keys, checks, cuts, size, last = [], [], [], [], [], None, Fraction(0)
    with open_video(path) as container:
        stream = select_video_stream(container, path)
        for begin, end, frame in decode_frames(container, stream):
            if size not in (None, (frame.width, frame.height)):
                raise MediaError(f"{path} changes its size midway; export it again at one size")
            size = (frame.width, frame.height)
            share, picture = min(1.0, SMALL / frame.width), frame.to_ndarray(format="bgr24")
            small = cv2.resize(picture, None, fx=share, fy=share, interpolation=cv2.INTER_AREA)
            moment = FrameTimecode(len(begins), 24.0)  # counted in frames: the rate is not known before the end
            cuts += [found.frame_num for found in judge.process_frame(moment, small)]
            begins.append(begin)
            stamps.append(frame.pts)
            keys.append(bool(frame.key_frame))
            checks.append(check_of(picture))
            last = end
        if not begins:
            raise MediaError(f"{path} holds no frame that can be decoded; export it again")
        cuts += [found.frame_num for found in judge.post_process(FrameTimecode(len(begins) - 1, 24.0))]
        fps = Fraction(frame_rate(container, stream, len(begins), last))
    return Look(begins, stamps, keys, checks, last, fps, sorted(set(cuts)))


def parted(look: Look, longest: float) -> list[tuple[int, int]]:
    """Return a film's shots as (first frame, frame behind the last), those over `longest` seconds parted evenly, but
    no frame itself.
    """
    found = []
    for first, last in pairwise([0, *look.cuts, len(look.begins)]):
        begin, end = look.time(first), look.time(last)
        parts = min(max(1, math.ceil((end - begin) / longest - 1e-6)), max(1, last - first))
        inner = (bisect_left(look.begins, begin + (end - begin) * part / parts) for part in range(1, parts))
        found += [(a, b) for a, b in pairwise([first, *inner, last]) if b > a]
    return found


def check_of(picture: np.ndarray) -> int:
    """Return a checksum of a picture."""
    return zlib.crc32(np.ascontiguousarray(picture))
