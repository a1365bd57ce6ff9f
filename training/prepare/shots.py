"""Find where the shots of a video begin and end."""

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
MAX_FRAME_SECONDS = 1001  # also the largest denominator of a frame rate: that of NTSC (24000/1001)
DETECTION_COLUMNS = 160  # frames are reduced to this width before shots are detected


class ShotScan(NamedTuple):
    """The frames and shots of a video, from one pass over it.

    Per frame: its presentation `times` in seconds and as `pts` of the stream, whether it is one of the `keyframes`, and
    a checksum of its pixels. `end` is the end of the last frame in seconds, `fps` the frame rate of the whole video,
    and `cuts` are the first frames of all shots but the first.
    """

    times: list[Fraction]
    pts: list[int | None]
    keyframes: list[bool]
    checksums: list[int]
    end: Fraction
    fps: Fraction
    cuts: list[int]

    def time(self, frame: int) -> Fraction:
        """Return when a frame begins, in seconds; beyond the last frame, the end of the video."""
        return self.times[frame] if frame < len(self.times) else self.end

    def rate(self, first: int, end: int) -> Fraction:
        """Return the frame rate of frames [first, end): the video's, or their own where it differs by over 1 %.

        Raises MediaError where a frame lasts longer than MAX_FRAME_SECONDS.
        """
        seconds = self.time(end) - self.time(first)
        own = (end - first) / seconds if seconds else self.fps
        if own * MAX_FRAME_SECONDS < 1:
            raise MediaError(
                f"a frame must last at most {MAX_FRAME_SECONDS} seconds; got {float(1 / own):g}; export the video again"
            )
        return self.fps if abs(own / self.fps - 1) < 0.01 else own.limit_denominator(MAX_FRAME_SECONDS)


def scan_shots(path: Path, detector: str) -> ShotScan:
    """Decode a video once, frame by frame, and detect its shots.

    Raises MediaError for a video that cannot be read, and for one that changes its size.
    """
    import cv2
    from scenedetect import AdaptiveDetector, ContentDetector, FrameTimecode

    detect = (AdaptiveDetector if detector == "adaptive" else ContentDetector)(min_scene_len=2)
    times, pts, keyframes, checksums, cuts, size, last = [], [], [], [], [], None, Fraction(0)
    with open_video(path) as container:
        stream = select_video_stream(container, path)
        for begin, end, frame in decode_frames(container, stream):
            if size not in (None, (frame.width, frame.height)):
                raise MediaError(f"{path} changes its size midway; export it again at one size")
            size = (frame.width, frame.height)
            scale, image = min(1.0, DETECTION_COLUMNS / frame.width), frame.to_ndarray(format="bgr24")
            small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            # The detector counts in frames, at any rate: the true one is not known before the end.
            timecode = FrameTimecode(len(times), 24.0)
            cuts += [cut.frame_num for cut in detect.process_frame(timecode, small)]
            times.append(begin)
            pts.append(frame.pts)
            keyframes.append(bool(frame.key_frame))
            checksums.append(frame_checksum(image))
            last = end
        if not times:
            raise MediaError(f"{path} holds no frame that can be decoded; export it again")
        cuts += [cut.frame_num for cut in detect.post_process(FrameTimecode(len(times) - 1, 24.0))]
        fps = Fraction(frame_rate(container, stream, len(times), last))
    return ShotScan(times, pts, keyframes, checksums, last, fps, sorted(set(cuts)))


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
