"""Score how well captions match their clips, and how beautiful the clips are, with a model of images and texts.

| score | what it is | its threshold would drop |
|---|---|---|
| match | cosine similarity of a clip and its worst-matching caption | < that of the model (MATCH_THRESHOLDS) |
| aesthetics | probability that its frames are called beautiful rather than ugly (open_clip's models only) | < 0.3 |
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from captioning.caption import MAX_FRAMES, MAX_SIDE
from captioning.matching import Matcher, OpenClipMatcher, load_matcher
from training.dataset import open_bucket, select_captions
from training.manifest import ClipRow, captions_digest
from training.prepare.engine import PrepareRun
from training.prepare.journal import Journal
from vae.video.read import read_sampled_frames

MATCHES = "matches"  # the journal of these scores
# Cosine similarities of different models cannot be compared, so each model has its own threshold. This one drops 1 % of
# 500 held-out world clips with their first true dense caption, by the shipped captioner of version 81e60b7b. For other
# weights: from training.prepare.match import measure_match_threshold
#          measure_match_threshold("app/models/captioner", "data/first-test")
MATCH_THRESHOLDS = {"longtake captioner": 0.533}
# For open_clip's models, not measured here: the value of Data-Juicer's recipe for LLaVA's captions (0.203, by OpenAI's
# ViT-B/32). LAION-5B used 0.28 for alt texts with the same model (Schuhmann et al. 2022, arXiv 2210.08402).
DEFAULT_MATCH_THRESHOLD = 0.2


@dataclass(frozen=True)
class MatchRun(PrepareRun):
    """Score a prepared folder with `matcher`: the folder of our captioner, or open_clip's ARCHITECTURE:WEIGHTS."""

    folder: Path = Path("prepared")
    matcher: str = ""

    @property
    def memory_bytes(self) -> int | None:
        """No memory limit: a model runs in the worker."""
        return None


class MatchTask(NamedTuple):
    """One clip to score."""

    row: ClipRow
    run: MatchRun


def match_clips(run: MatchRun, rows: list[ClipRow]) -> None:
    """Score all captioned clips that this model has not scored with their current captions, in a locked folder.

    Raises CaptionError where the model cannot be loaded.
    """
    matcher, journal = cached_matcher(run), Journal(run.folder, MATCHES)
    latest = {entry["clip"]: entry for entry in journal.entries() if "error" not in entry}
    model = {"by": matcher.name, "version": matcher.version}
    abouts = [{"clip": row.clip, "sha256": row.sha256, "texts": captions_digest(row.captions), **model} for row in rows]
    todo = [
        (row, about)
        for row, about in zip(rows, abouts, strict=True)
        if row.captions and not about.items() <= latest.get(row.clip, {}).items()
    ]
    with journal.appending() as append:
        for outcome in run.map(match_clip, [MatchTask(row, run) for row, _ in todo]):
            append(todo[outcome.number][1] | outcome.journal_entry())


def failed_matches(run: MatchRun, rows: list[ClipRow]) -> list[tuple[str, str]]:
    """List the clips that this model could not score, each with the error."""
    matcher = cached_matcher(run)
    model = {"by": matcher.name, "version": matcher.version}.items()
    latest = {entry["clip"]: entry for entry in Journal(run.folder, MATCHES).entries() if model <= entry.items()}
    return [(row.file, latest[row.clip]["error"]) for row in rows if "error" in latest.get(row.clip, {})]


def default_match_threshold(folder: Path) -> float:
    """Return the default match threshold of the model that scored a folder last."""
    model = ""
    for entry in Journal(folder, MATCHES).entries():
        model = model if "error" in entry else entry["by"]
    return MATCH_THRESHOLDS.get(model, DEFAULT_MATCH_THRESHOLD)


def measure_match_threshold(matcher: str | Path, data: str | Path, clips: int = 500, share: float = 0.01) -> float:
    """Return the threshold that drops a `share` of world clips (64x64x17) with true dense captions, for some model."""
    model, bucket = load_matcher(matcher), open_bucket(Path(data), (64, 64, 17))
    texts = [select_captions(bucket.captions[number], "dense")[0] for number in range(clips)]
    cosines = [float(model.match(bucket.load_clips([number]), [text])) for number, text in enumerate(texts)]
    return float(np.quantile(cosines, share))


@cache
def cached_matcher(run: MatchRun) -> Matcher:
    """Return the model of a run, loaded once per process."""
    return load_matcher(run.matcher)


def match_clip(task: MatchTask) -> dict:
    """Return the scores of one clip."""
    row, run = task
    matcher = cached_matcher(run)
    video = read_sampled_frames(run.folder / row.file, MAX_FRAMES, MAX_SIDE)[None]
    scores = {"match": float(matcher.match(video, [caption.text for caption in row.captions]).min())}
    if isinstance(matcher, OpenClipMatcher):
        scores["aesthetics"] = float(matcher.aesthetic_scores(video))
    return {"scores": scores}
