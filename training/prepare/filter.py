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
| duplicate | 1 for a clip that shows what another of the set shows, or a part of it (`duplicates.py`), else 0 | > 0.5 |

Where a model is named that sees pictures and words, `match.py` adds how well captions fit and how clips look.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np

from training.prepare.clips import remake_manifest, rows_of
from training.prepare.duplicates import BYTES, LONGEST, RATE, duplicates, perceptual_hash
from training.prepare.engine import Where
from training.prepare.manifest import Journal, Row, alone, read_manifest
from training.prepare.match import MatchRun, failed_matches, least_match, match_clips, matcher_of
from training.prepare.thresholds import Threshold, counts, failing, named, thresholds_at
from vae.video.pixels import to_uint8
from vae.video.read import decode_frames, open_video, read_image, select_video_stream

VERSION = 2  # of what the scores mean
WIDTH = 256  # columns at which clips are scored
MOST_FRAMES = 48  # that are looked at, spread over the clip


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


def check_filter(run: FilterRun) -> None:
    """Raise PrepareError for a wrong threshold, and CaptionError where there is no such matcher."""
    named(run.drop), thresholds_at(run.thresholds)
    if run.matcher:
        matcher_of(run.matching)


def filter_clips(run: FilterRun) -> dict[str, dict]:
    """Score all clips that have no scores yet, and drop what is asked for; returns for each score its spread, its
    threshold, and how many of all clips that would drop.

    Raises PrepareError for a wrong threshold, and CaptionError where there is no such matcher.
    """
    check_filter(run)
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
        if run.matcher:
            match_clips(run.matching, rows)
        thresholds = thresholds_at({"match": least_match(run.folder)} | dict(run.thresholds))
        drop = named(run.drop)
        note_duplicates(journal, rows_of(run.folder), [name for name in drop if name != "duplicate"], thresholds)
        mark(run.folder, rows_of(run.folder), drop, thresholds)
        return report(remake_manifest(run.folder), thresholds)


def note_duplicates(
    journal: Journal, rows: list[Row], names: Iterable[str], thresholds: Mapping[str, Threshold]
) -> None:
    """Note which clips show what another shows that is kept: one that fails some thresholds is no reason to drop a
    sound one.
    """
    noted = {line["clip"]: line for line in journal.lines()}
    scored = {row.clip: noted[row.clip] for row in rows if is_scored(noted.get(row.clip), row)}
    worse = {row.clip for row in rows if failing(row, names, thresholds)}
    copies = duplicates({clip: hashes_in(line) for clip, line in scored.items()}, worse)
    with journal.adding() as note:
        for clip, line in scored.items():
            again = float(clip in copies)
            if line["scores"]["duplicate"] != again:
                note(line | {"scores": line["scores"] | {"duplicate": again}})


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


def hashes_in(noted: dict) -> np.ndarray:
    """Return the perceptual hashes of a clip that was scored."""
    return np.frombuffer(bytes.fromhex(noted["hashes"]), np.uint8).reshape(-1, BYTES)


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
    """Return a clip's scores, and the perceptual hashes, in hexadecimal digits, by which duplicates are found."""
    path = task.folder / task.row.file
    if path.suffix == ".png":
        frames, motion = [narrowed(to_uint8(read_image(path)[:, 0]).permute(1, 2, 0).contiguous().numpy())], 0.0
        hashes = [hash_of(frames[0])]
    else:
        frames, motion, hashes = look(path, task.row)
    grey = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames])
    found = {
        "motion": motion,
        "sharpness": float(np.median([cv2.Laplacian(one / 255.0, cv2.CV_64F).var() for one in grey])),
        "brightness": float(grey.mean() / 255),
        "clipped": float(((grey <= 2) | (grey >= 253)).mean()),
        "letterbox": letterbox(grey),
        "text": text(grey),
        "duplicate": 0.0,  # until it is compared
    }
    return {"scores": found, "hashes": b"".join(hashes).hex()}


def look(path: Path, row: Row) -> tuple[list[np.ndarray], float, list[bytes]]:
    """Return up to MOST_FRAMES frames of a clip as RGB, WIDTH columns wide, how far it moves a second, in widths of the
    frame, and RATE hashes a second of what it shows then.
    """
    every = max(1, -(-row.frames // MOST_FRAMES))
    frames, moved, hashes = [], [], []
    with open_video(path) as container:
        stream = select_video_stream(container, path)
        stream.codec_context.flags2 |= av.codec.context.Flags2.export_mvs
        stream.codec_context.thread_count = 1  # several threads leave out vectors, other ones each time
        for number, (_, end, frame) in enumerate(decode_frames(container, stream)):
            vectors = frame.side_data.get("MOTION_VECTORS")
            if vectors is not None:
                moved.append(travel(vectors.to_ndarray(), row))
            until = max(1, min(LONGEST, math.ceil(end * RATE)))  # hashes are those of what is shown before its end
            if number % every == 0 or len(hashes) < until:
                shown = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                picture = narrowed(np.ascontiguousarray(shown))
                hashes += [hash_of(picture)] * (until - len(hashes))
                if number % every == 0:
                    frames.append(picture)
    if not moved:
        pairs = zip(frames, islice(frames, 1, None), strict=False)
        moved = [flow(before, after) / every for before, after in pairs]
    return frames, float(np.mean(moved or [0.0])) * row.fps, hashes


def hash_of(picture: np.ndarray) -> bytes:
    """Return the perceptual hash of a picture (Y, X, 3)."""
    return perceptual_hash(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)).tobytes()


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
