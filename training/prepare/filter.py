"""Score clips, and report what each threshold would drop. The scores go into the manifest.

Nothing is dropped unless asked for, and a dropped clip is not deleted: the manifest names the thresholds that it
failed, and it is neither captioned nor encoded nor trained on.

| score | what it is | its threshold would drop |
|---|---|---|
| motion | how far a video moves, in frame widths per second: by the codec's motion vectors, or optical flow | < 0.001 |
| sharpness | variance of the Laplacian of grey in [0, 1], at 256 columns | < 0.0003 |
| brightness | mean of grey in [0, 1] | < 0.05 |
| clipped | share of pixels that are fully black or white | > 0.5 |
| letterbox | share of rows or columns under black bars that never change and end sharply (`measures.py`) | > 0.02 |
| text | share of the frame under lines of letters that do not move, of shapes that differ | > 0.02 |
| duplicate | 1 for a near-duplicate of another clip, or of a part of it (`duplicates.py`), else 0 | > 0.5 |

With a model of images and texts, `match.py` adds match and aesthetic scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from av.codec.context import Flags2

from training.manifest import ClipRow, read_manifest
from training.prepare.duplicates import (
    COLOUR_BYTES,
    HASH_BYTES,
    HASHES_PER_SECOND,
    MAX_HASHES,
    find_duplicates,
    fingerprints,
)
from training.prepare.engine import PrepareRun
from training.prepare.journal import Journal, clip_rows, locked_folder, rebuild_manifest
from training.prepare.match import MatchRun, cached_matcher, default_match_threshold, failed_matches, match_clips
from training.prepare.measures import block_motion, letterbox_share, optical_flow, text_share
from training.prepare.thresholds import Threshold, applies, failed_thresholds, threshold_names, thresholds_with
from vae.video.pixels import to_uint8
from vae.video.read import decode_frames, open_video, read_image, select_video_stream

VERSION = 4  # of the meaning of the scores
COLUMNS = 256  # clips are reduced to this width before they are scored
HASHED_COLUMNS = 128  # and to this width before they are hashed
MAX_SCORED_FRAMES = 48  # per clip, evenly spaced


@dataclass(frozen=True)
class FilterRun(PrepareRun):
    """Score the clips of a prepared folder, with `matcher` also by that model (`match.py`).

    `thresholds` are values by name, instead of the defaults. `drop` names the thresholds that clips are dropped for;
    `all` names every one.
    """

    folder: Path = Path("prepared")
    matcher: str = ""
    thresholds: Mapping[str, float] = field(default_factory=dict)
    drop: tuple[str, ...] = ()

    @property
    def match_run(self) -> MatchRun:
        """The run of the matcher."""
        return MatchRun(
            engine=self.engine, workers=self.workers, timeout=self.timeout, folder=self.folder, matcher=self.matcher
        )


class ScoreTask(NamedTuple):
    """One clip to score."""

    row: ClipRow
    folder: Path


def check_filter(run: FilterRun) -> None:
    """Raise PrepareError for a wrong threshold, and CaptionError where the matcher cannot be loaded."""
    threshold_names(run.drop)
    thresholds_with(run.thresholds)
    if run.matcher:
        cached_matcher(run.match_run)


def filter_clips(run: FilterRun) -> dict[str, dict]:
    """Score all clips that have no current scores, and drop what is asked for.

    Returns for each score its spread, its threshold, and the number of clips that the threshold would drop. Raises
    PrepareError for a wrong threshold, and CaptionError where the matcher cannot be loaded.
    """
    check_filter(run)
    with locked_folder(run.folder):
        rows = clip_rows(run.folder, required=True)
        journal = Journal(run.folder, "scores")
        latest = {entry["clip"]: entry for entry in journal.entries()}
        todo = [row for row in rows if not is_scored(latest.get(row.clip), row)]
        with journal.appending() as append:
            for outcome in run.map(score_clip, [ScoreTask(row, run.folder) for row in todo]):
                row = todo[outcome.number]
                about = {"clip": row.clip, "sha256": row.sha256, "version": VERSION}
                append(about | outcome.journal_entry())
        if run.matcher:
            match_clips(run.match_run, rows)
        thresholds = thresholds_with({"match": default_match_threshold(run.folder)} | dict(run.thresholds))
        drop = threshold_names(run.drop)
        others = [name for name in drop if name != "duplicate"]
        record_duplicates(journal, clip_rows(run.folder), others, thresholds)
        record_drops(run.folder, clip_rows(run.folder), drop, thresholds)
        return threshold_report(rebuild_manifest(run.folder), thresholds)


def record_duplicates(
    journal: Journal, rows: list[ClipRow], names: Iterable[str], thresholds: Mapping[str, Threshold]
) -> None:
    """Update the score "duplicate" of all clips in the journal.

    A clip that fails one of the named thresholds is no reason to drop a good one that it duplicates.
    """
    latest = {entry["clip"]: entry for entry in journal.entries()}
    scored = {row.clip: latest[row.clip] for row in rows if is_scored(latest.get(row.clip), row)}
    worse = {row.clip for row in rows if failed_thresholds(row, names, thresholds)}
    hashes = {clip: stored_hashes(entry) for clip, entry in scored.items()}
    colours = {clip: stored_colours(entry) for clip, entry in scored.items()}
    duplicates = find_duplicates(hashes, worse, colours)
    with journal.appending() as append:
        for clip, entry in scored.items():
            duplicate = float(clip in duplicates)
            if entry["scores"]["duplicate"] != duplicate:
                append(entry | {"scores": entry["scores"] | {"duplicate": duplicate}})


def record_drops(folder: Path, rows: list[ClipRow], names: Iterable[str], thresholds: Mapping[str, Threshold]) -> None:
    """Record which clips are dropped, and for which of the named thresholds, unless nothing changed."""
    dropped = {row.clip: failed for row in rows if (failed := failed_thresholds(row, names, thresholds))}
    if dropped != {row.clip: row.dropped for row in rows if row.dropped}:
        with Journal(folder, "dropped").appending() as append:
            append({"dropped": dropped})


def is_scored(entry: dict | None, row: ClipRow) -> bool:
    """Return whether a journal entry holds the scores of a clip as it is now."""
    if entry is None or "error" in entry:
        return False
    return entry["sha256"] == row.sha256 and entry["version"] == VERSION


def stored_hashes(entry: dict) -> np.ndarray:
    """Return the perceptual hashes (N, HASH_BYTES) in a journal entry."""
    return np.frombuffer(bytes.fromhex(entry["hashes"]), np.uint8).reshape(-1, HASH_BYTES)


def stored_colours(entry: dict) -> np.ndarray:
    """Return the colours (N, COLOUR_BYTES) in a journal entry."""
    return np.frombuffer(bytes.fromhex(entry["colours"]), np.uint8).reshape(-1, COLOUR_BYTES)


def failed_scores(run: FilterRun) -> list[tuple[str, str]]:
    """List the clips that could not be scored, each with the error."""
    latest = {entry["clip"]: entry for entry in Journal(run.folder, "scores").entries()}
    rows = clip_rows(run.folder)
    failed = [(row.file, latest[row.clip]["error"]) for row in rows if "error" in latest.get(row.clip, {})]
    return failed + (failed_matches(run.match_run, rows) if run.matcher else [])


def dropped_summary(folder: Path) -> str:
    """Return a sentence with the number of dropped clips."""
    rows = read_manifest(folder)
    dropped = [row for row in rows if row.dropped]
    return f"{len(dropped)} of {len(rows)} clips are dropped" + ("" if dropped else " (--drop NAME drops some)")


def threshold_report(rows: list[ClipRow], thresholds: Mapping[str, Threshold]) -> dict[str, dict]:
    """Return for each score its spread, and the number of clips that its threshold would drop."""
    report = {}
    for name, threshold in thresholds.items():
        values = np.array([row.scores[name] for row in rows if applies(name, row)])
        if len(values):
            report[name] = {
                "min": float(values.min()),
                "median": float(np.median(values)),
                "max": float(values.max()),
                "threshold": str(threshold),
                "dropped": int(threshold.rejects(values).sum()),
                "clips": len(values),
            }
    return report


def score_clip(task: ScoreTask) -> dict:
    """Return the scores of one clip, and its perceptual hashes and colours in hexadecimal digits."""
    path = task.folder / task.row.file
    if path.suffix == ".png":
        frames, motion = [shrink(to_uint8(read_image(path)[:, 0]).permute(1, 2, 0).contiguous().numpy())], 0.0
        hashed = frames
    else:
        frames, motion, hashed = read_frames(path, task.row)
    hashes, colours = fingerprints([shrink(image, HASHED_COLUMNS) for image in hashed])
    grey = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames])
    scores = {
        "motion": motion,
        "sharpness": float(np.median([cv2.Laplacian(one / 255.0, cv2.CV_64F).var() for one in grey])),
        "brightness": float(grey.mean() / 255),
        "clipped": float(((grey <= 2) | (grey >= 253)).mean()),
        "letterbox": letterbox_share(grey),
        "text": text_share(grey),
        "duplicate": 0.0,  # until `record_duplicates` compares all clips
    }
    return {"scores": scores, "hashes": hashes.tobytes().hex(), "colours": colours.tobytes().hex()}


def read_frames(path: Path, row: ClipRow) -> tuple[list[np.ndarray], float, list[np.ndarray]]:
    """Decode a clip; return up to MAX_SCORED_FRAMES frames, its motion, and HASHES_PER_SECOND frames to hash.

    Frames are RGB (Y, X, 3), COLUMNS wide, those to hash HASHED_COLUMNS. Motion is in frame widths per second.
    """
    every = max(1, -(-row.frames // MAX_SCORED_FRAMES))
    frames, moved, hashed = [], [], []
    with open_video(path) as container:
        stream = select_video_stream(container, path)
        stream.codec_context.flags2 |= Flags2.export_mvs
        stream.codec_context.thread_count = 1  # several threads leave out vectors, other ones each time
        for number, (_, end, frame) in enumerate(decode_frames(container, stream)):
            vectors = frame.side_data.get("MOTION_VECTORS")
            if vectors is not None:
                moved.append(block_motion(vectors.to_ndarray(), row))
            # Image number n to hash is the frame on screen at n / HASHES_PER_SECOND seconds.
            due = max(1, min(MAX_HASHES, math.ceil(end * HASHES_PER_SECOND)))
            if number % every == 0 or len(hashed) < due:
                upright = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                image = shrink(np.ascontiguousarray(upright))
                hashed += [shrink(image, HASHED_COLUMNS)] * (due - len(hashed))
                if number % every == 0:
                    frames.append(image)
    if not moved:
        pairs = zip(frames, islice(frames, 1, None), strict=False)
        moved = [optical_flow(before, after) / every for before, after in pairs]
    return frames, float(np.mean(moved or [0.0])) * row.fps, hashed


def shrink(image: np.ndarray, columns: int = COLUMNS) -> np.ndarray:
    """Reduce an image (Y, X, 3) to so many columns, if it has more."""
    scale = min(1.0, columns / image.shape[1])
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
