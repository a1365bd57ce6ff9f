"""Score clips, and say what each threshold would drop. The scores go into the manifest.

Nothing is dropped unless asked for, and then nothing is removed either: the manifest says which clips are dropped for
which scores, those are not coded, and nothing trains on them.

| score | what it is | its threshold would drop |
|---|---|---|
| motion | how far a film moves, in widths a second: the codec's motion vectors, else optical flow | < 0.001 |
| sharpness | variance of the Laplacian of grey in [0, 1], at 256 columns | < 0.0003 |
| brightness | mean of grey in [0, 1] | < 0.05 |
| clipped | share of pixels that are black or white altogether | > 0.5 |
| letterbox | share of rows and columns at the borders that stay black | > 0.02 |
| text | share of the frame under lines of letters that stay where they are | > 0.02 |
| duplicate | 1 for a clip that looks like an earlier one of the set (perceptual hashes), else 0 | > 0.5 |

Where a model is named that sees pictures and words, `match.py` adds how well captions fit and how clips look.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np

from training.prepare.clips import remake_manifest, rows_of
from training.prepare.engine import Where
from training.prepare.manifest import Journal, Row, alone, read_manifest
from training.prepare.match import MatchRun, failed_matches, match_clips, matcher_of
from training.prepare.thresholds import Threshold, counts, failing, named, thresholds_at
from vae.media import opened, picture_stream, read_picture, shown_frames
from vae.pixels import to_bytes

VERSION = 1  # of what the scores mean
WIDTH = 256  # columns at which clips are scored
MOST_FRAMES = 48  # that are looked at, spread over the clip
NEAR = 10  # bits of 64, on average, in which hashes of near-duplicates differ at most
BANDS = 8  # of 8 bits, of each of the three hashes: near-duplicates share one of them


@dataclass(frozen=True)
class FilterRun(Where):
    """Which prepared folder to score; with a `matcher`, also by that model (`match.py`). `thresholds` are values by
    name, where others than the usual ones shall count; `drop` names those that clips are dropped by, or is `all`.
    """

    folder: Path = Path("prepared")
    matcher: str = ""
    thresholds: Mapping[str, float] = field(default_factory=dict)
    drop: tuple[str, ...] = ()

    @property
    def matching(self) -> MatchRun:
        """The run of that model."""
        where = {"engine": self.engine, "workers": self.workers, "limit": self.limit}
        return MatchRun(folder=self.folder, matcher=self.matcher, **where)


class Task(NamedTuple):
    """A clip, and the folder that it is in."""

    row: Row
    folder: Path


def filter_clips(run: FilterRun) -> dict[str, dict]:
    """Score all clips that have no scores yet, and drop what is asked for; returns for each score its spread, its
    threshold, and how many of all clips that would drop.

    Raises PrepareError for a wrong threshold, and CaptionError where there is no such matcher.
    """
    thresholds, drop = thresholds_at(run.thresholds), named(run.drop)
    if run.matcher:
        matcher_of(run.matching)  # so that a wrong name is refused before anything is begun
    with alone(run.folder):
        rows = rows_of(run.folder, begun=True)
        journal = Journal(run.folder, "scores")
        noted = {line["clip"]: line for line in journal.lines()}
        todo = [row for row in rows if not is_scored(noted.get(row.clip), row)]
        with journal.adding() as note:
            for outcome in run.each(score, [Task(row, run.folder) for row in todo]):
                row = todo[outcome.number]
                about = {"clip": row.clip, "sha256": row.sha256, "version": VERSION}
                note(about | outcome.told())
            scored = {line["clip"]: line for line in journal.lines() if "error" not in line}
            hashes = {clip: np.array(line["hashes"], dtype=np.uint64) for clip, line in scored.items()}
            copies = duplicates({row.clip: hashes[row.clip] for row in rows if row.clip in hashes})
            for clip, line in scored.items():
                again = float(clip in copies)
                if line["scores"].get("duplicate") != again:
                    note(line | {"scores": line["scores"] | {"duplicate": again}})
    if run.matcher:
        match_clips(run.matching, rows)
    with alone(run.folder):
        mark(run.folder, rows_of(run.folder), drop, thresholds)
        return report(remake_manifest(run.folder), thresholds)


def mark(folder: Path, rows: list[Row], names: Iterable[str], thresholds: Mapping[str, Threshold]) -> None:
    """Note which clips are dropped, by which of some thresholds, unless that is what counts already."""
    dropped = {row.clip: failed for row in rows if (failed := failing(row, names, thresholds))}
    if dropped != {row.clip: row.dropped for row in rows if row.dropped}:
        with Journal(folder, "dropped").adding() as note:
            note({"dropped": dropped})


def is_scored(noted: dict | None, row: Row) -> bool:
    """Say whether a clip was scored as it is now."""
    if noted is None or "error" in noted:
        return False
    return noted["sha256"] == row.sha256 and noted["version"] == VERSION


def failed_scores(run: FilterRun) -> list[tuple[str, str]]:
    """List the clips that cannot be scored, and why."""
    noted, rows = {line["clip"]: line for line in Journal(run.folder, "scores").lines()}, rows_of(run.folder)
    failed = [(row.file, noted[row.clip]["error"]) for row in rows if "error" in noted.get(row.clip, {})]
    return failed + (failed_matches(run.matching, rows) if run.matcher else [])


def dropped_in(folder: Path) -> str:
    """Say how many of a folder's clips are dropped."""
    rows = read_manifest(folder)
    dropped = [row for row in rows if row.dropped]
    return f"{len(dropped)} of {len(rows)} clips are dropped" + ("" if dropped else " (--drop NAME drops some)")


def report(rows: list[Row], thresholds: Mapping[str, Threshold]) -> dict[str, dict]:
    """Return for each score its spread and how many clips its threshold would drop."""
    found = {}
    for name, threshold in thresholds.items():
        values = np.array([row.scores[name] for row in rows if counts(name, row)])
        if len(values):
            found[name] = {
                "least": float(values.min()),
                "median": float(np.median(values)),
                "most": float(values.max()),
                "threshold": str(threshold),
                "dropped": int(threshold.drops(values).sum()),
                "clips": len(values),
            }
    return found


def score(task: Task) -> dict:
    """Return a clip's scores, and three perceptual hashes by which duplicates are found."""
    path = task.folder / task.row.file
    if path.suffix == ".png":
        frames, motion = [narrowed(to_bytes(read_picture(path)[:, 0]).permute(1, 2, 0).contiguous().numpy())], 0.0
    else:
        frames, motion = look(path, task.row)
    grey = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames])
    found = {
        "motion": motion,
        "sharpness": float(np.median([cv2.Laplacian(one / 255.0, cv2.CV_64F).var() for one in grey])),
        "brightness": float(grey.mean() / 255),
        "clipped": float(((grey <= 2) | (grey >= 253)).mean()),
        "letterbox": letterbox(grey),
        "text": text(grey),
    }
    third = [grey[min(len(grey) - 1, len(grey) * part // 4)] for part in (1, 2, 3)]
    return {"scores": found, "hashes": [perceptual_hash(one) for one in third]}


def look(path: Path, row: Row) -> tuple[list[np.ndarray], float]:
    """Return up to MOST_FRAMES frames of a clip as RGB, WIDTH columns wide, and how far it moves a second, in widths of
    the frame.
    """
    every = max(1, -(-row.frames // MOST_FRAMES))
    frames, moved = [], []
    with opened(path) as container:
        stream = picture_stream(container, path)
        stream.codec_context.flags2 |= av.codec.context.Flags2.export_mvs
        stream.codec_context.thread_count = 1  # several threads leave out vectors, other ones each time
        for number, (_, _, frame) in enumerate(shown_frames(container, stream)):
            vectors = frame.side_data.get("MOTION_VECTORS")
            if vectors is not None:
                moved.append(travel(vectors.to_ndarray(), row))
            if number % every == 0:
                shown = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                frames.append(narrowed(np.ascontiguousarray(shown)))
    if not moved:
        pairs = zip(frames, islice(frames, 1, None), strict=False)
        moved = [flow(before, after) / every for before, after in pairs]
    return frames, float(np.mean(moved or [0.0])) * row.fps


def narrowed(picture: np.ndarray) -> np.ndarray:
    """Shrink a picture (Y, X, 3) to WIDTH columns, if it has more."""
    share = min(1.0, WIDTH / picture.shape[1])
    return cv2.resize(picture, None, fx=share, fy=share, interpolation=cv2.INTER_AREA)


def travel(vectors: np.ndarray, row: Row) -> float:
    """Return how far a frame's blocks come from, on average over the frame, in its widths; blocks coded on their own
    count as still.
    """
    scale = np.maximum(vectors["motion_scale"], 1)
    away = np.hypot(vectors["motion_x"] / scale, vectors["motion_y"] / scale) / np.maximum(np.abs(vectors["source"]), 1)
    areas = vectors["w"].astype(float) * vectors["h"]
    return float((away * areas).sum() / (row.columns * row.rows) / row.columns)


def flow(before: np.ndarray, after: np.ndarray) -> float:
    """Return how far one frame's pixels move to be the next's, on average, in widths of the frame (Farneback 2003)."""
    first, second = (cv2.cvtColor(one, cv2.COLOR_RGB2GRAY) for one in (before, after))
    found = cv2.calcOpticalFlowFarneback(
        first, second, np.zeros((*first.shape, 2), np.float32), 0.5, 3, 15, 3, 5, 1.2, 0
    )
    return float(np.hypot(found[..., 0], found[..., 1]).mean() / before.shape[1])


def letterbox(grey: np.ndarray) -> float:
    """Return the share of rows and columns of (F, Y, X), from the borders inwards, that are black in every frame."""
    brightest = grey.max(0)
    shares = []
    for lines in (brightest.max(1), brightest.max(0)):
        lit = np.flatnonzero(lines > 24)
        shares.append(1 - (lit[-1] + 1 - lit[0]) / len(lines) if len(lit) else 1.0)
    return float(max(shares))


def text(grey: np.ndarray) -> float:
    """Return the share of the frame (F, Y, X) under what looks like lines of letters and stays where it is: edges close
    together in a row, in every frame, much wider than high.
    """
    kernel = np.ones((3, 3), np.uint8)
    edges = np.min([cv2.morphologyEx(one, cv2.MORPH_GRADIENT, kernel) for one in grey], axis=0)
    strong = (edges > 80).astype(np.uint8)
    lines = cv2.morphologyEx(strong, cv2.MORPH_CLOSE, np.ones((1, 9), np.uint8))
    count, _, stats, _ = cv2.connectedComponentsWithStats(lines)
    area = 0
    for left, top, width, height, inside in stats[1:count]:
        box = strong[top : top + height, left : left + width]
        crossings = np.abs(np.diff(box.astype(int), axis=1)).sum(1).max(initial=0)
        if width >= 3 * height and height >= 4 and inside > 0.4 * width * height and crossings >= 6:
            area += width * height
    return area / edges.size


def perceptual_hash(grey: np.ndarray) -> int:
    """Return 64 bits that similar pictures share: the signs, about their median, of the lowest frequencies of a picture
    (pHash, Zauner 2010).
    """
    small = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small)[:8, :8].ravel()
    bits = low > np.median(low)
    return int(np.packbits(bits).view(">u8")[0])


def duplicates(hashes: dict[str, np.ndarray]) -> set[str]:
    """Return the clips whose hashes, three each, are near those of an earlier clip that is no duplicate itself."""
    kept: dict[str, np.ndarray] = {}
    shelves: defaultdict[tuple[int, int, int], list[str]] = defaultdict(list)
    found = set()
    for clip, own in hashes.items():
        places = [(part, band, int(own[part]) >> 8 * band & 255) for part in range(3) for band in range(BANDS)]
        others = {other for place in places for other in shelves[place]}
        if any(np.bitwise_count(own ^ kept[other]).mean() <= NEAR for other in others):
            found.add(clip)
            continue
        kept[clip] = own
        for place in places:
            shelves[place].append(clip)
    return found
