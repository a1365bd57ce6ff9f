"""Find where the shots of a video begin and end."""

from __future__ import annotations

import math
import zlib
from bisect import bisect_left
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

from training.prepare.flashes import THUMB_SIZE, without_flashes
from vae.video.container import decode_frames, frame_rate, open_video, select_video_stream
from vae.video.convert import is_plain
from vae.video.pixels import MediaError

DETECTORS = ("adaptive", "content")
MAX_FRAME_SECONDS = 1001  # also the largest denominator of a frame rate: that of NTSC (24000/1001)
MAX_RESAMPLED_FPS = 60  # of a clip that is cut from a video of variable rate
DETECTION_COLUMNS = 160  # frames are reduced to this width before shots are detected


class ShotScan(NamedTuple):
    """The frames and shots of a video, from one pass over it.

    Per frame: its presentation `times` in seconds and as `pts` of the stream, whether it is one of the `keyframes`, and
    a checksum of its pixels. `end` is the end of the last frame in seconds, `fps` the frame rate of the whole video,
    and `cuts` are the first frames of all shots but the first. `is_plain` is that of the first frame (`convert.py`).
    """

    times: list[Fraction]
    pts: list[int | None]
    keyframes: list[bool]
    checksums: list[int]
    end: Fraction
    fps: Fraction
    cuts: list[int]
    is_plain: bool = True

    def time(self, frame: int) -> Fraction:
        """Return when a frame begins, in seconds; beyond the last frame, the end of the video."""
        return self.times[frame] if frame < len(self.times) else self.end

    def is_even(self, first: int, end: int) -> bool:
        """Say whether each of frames [first, end) begins within half a frame of where a constant rate puts it.

        The last one must not be held either.
        """
        begin, gap = self.times[first], self._mean_gap(first, end)
        held = self.time(end) - self.times[end - 1] > gap * 3 / 2
        off = (abs(self.times[frame] - begin - (frame - first) * gap) for frame in range(first, end))
        return not held and all(away <= gap / 2 for away in off)

    def _mean_gap(self, first: int, end: int) -> Fraction:
        """Return the mean time from one of frames [first, end) to the next; files often misstate that of the last."""
        if end - first == 1:
            return self.time(end) - self.times[first]
        return (self.times[end - 1] - self.times[first]) / (end - first - 1)

    def rate(self, first: int, end: int) -> Fraction:
        """Return the frame rate of frames [first, end): the video's, or their own where it differs by over 1 %.

        The own rate of uneven frames is that of their usual gap, so that a pause does not slow the motion after it.
        Raises MediaError where a frame lasts longer than MAX_FRAME_SECONDS.
        """
        seconds = self.time(end) - self.time(first)
        own = (end - first) / seconds if seconds else self.fps
        if own * MAX_FRAME_SECONDS < 1:
            raise MediaError(
                f"a frame must last at most {MAX_FRAME_SECONDS} seconds; got {float(1 / own):g}; export the video again"
            )
        if not self.is_even(first, end):
            own = min(self._usual_rate(first, end), Fraction(MAX_RESAMPLED_FPS))
        elif end == len(self.times) and (gap := self._mean_gap(first, end)):
            own = 1 / gap
        return self.fps if abs(own / self.fps - 1) < 0.01 else own.limit_denominator(MAX_FRAME_SECONDS)

    def _usual_rate(self, first: int, end: int) -> Fraction:
        """Return the mean rate of the gaps between frames [first, end) that are within half of their median."""
        gaps = [after - before for before, after in pairwise(self.times[first:end]) if after > before]
        middle = median(gaps) if gaps else 1 / self.fps
        usual = [gap for gap in gaps if abs(gap / middle - 1) <= Fraction(1, 2)] or [middle]
        return Fraction(len(usual)) / sum(usual)


def scan_shots(path: Path, detector: str) -> ShotScan:
    """Decode a video once, frame by frame, and detect its shots.

    Raises MediaError for a video that cannot be read, and for one that changes its size.
    """
    import cv2
    from scenedetect import AdaptiveDetector, ContentDetector, FrameTimecode

    detect = (AdaptiveDetector if detector == "adaptive" else ContentDetector)(min_scene_len=2)
    times, pts, keyframes, checksums, cuts, size, last, plain = [], [], [], [], [], None, Fraction(0), True
    thumbs: list[np.ndarray] = []
    with open_video(path) as container:
        stream = select_video_stream(container, path)
        for begin, end, frame in decode_frames(container, stream):
            if size not in (None, (frame.width, frame.height)):
                raise MediaError(f"{path} changes its size midway; export it again at one size")
            plain = is_plain(stream, frame) if size is None else plain
            size = (frame.width, frame.height)
            scale, image = min(1.0, DETECTION_COLUMNS / frame.width), frame.to_ndarray(format="bgr24")
            small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            # The detector counts in frames, at any rate: the true one is not known before the end.
            timecode = FrameTimecode(len(times), 24.0)
            cuts += [cut.frame_num for cut in detect.process_frame(timecode, small)]
            thumbs.append(cv2.resize(small, THUMB_SIZE, interpolation=cv2.INTER_AREA))
            times.append(begin)
            pts.append(frame.pts)
            keyframes.append(bool(frame.key_frame))
            checksums.append(frame_checksum(image))
            last = end
        if not times:
            raise MediaError(f"{path} holds no frame that can be decoded; export it again")
        cuts += [cut.frame_num for cut in detect.post_process(FrameTimecode(len(times) - 1, 24.0))]
        fps = Fraction(frame_rate(container, stream, len(times), last))
    cuts = without_flashes(sorted(set(cuts)), times, thumbs)
    return ShotScan(times, pts, keyframes, checksums, last, fps, cuts, plain)


def split_shots(scan: ShotScan, longest: float) -> list[tuple[int, int]]:
    """Return the shots of a video as frames [first, end); those over `longest` seconds are split into even parts.

    Every part has at least one frame.
    """
    found = []
    for first, end in pairwise([0, *scan.cuts, len(scan.times)]):
        begin_time, end_time = scan.time(first), scan.time(end)
        parts = min(max(1, math.ceil((end_time - begin_time) / longest - 1e-6)), max(1, end - first))
        inner = (
            bisect_left(scan.times, begin_time + (end_time - begin_time) * part / parts) for part in range(1, parts)
        )
        found += [(a, b) for a, b in pairwise([first, *inner, end]) if b > a]
    return found


def frame_checksum(image: np.ndarray) -> int:
    """Return the CRC-32 of the pixels of a frame."""
    return zlib.crc32(np.ascontiguousarray(image).data)
