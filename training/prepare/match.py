"""Score how well the captions of clips fit them, and how clips look, by a model that is named.

| score | what it is | its threshold would drop |
|---|---|---|
| match | the cosine between a clip and the caption of it that fits worst | < LEAST, by the model |
| aesthetics | how much likelier its frames are called beautiful than ugly (open_clip's models alone) | < 0.3 |
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from captioning.captioner import LONGEST_SIDE, MOST_FRAMES
from captioning.matching import Matcher, OpenClip, load_matcher
from training.dataset import open_bucket, select_captions
from training.prepare.engine import Where
from training.prepare.manifest import Journal, Row, digest_of
from vae.video.read import read_sampled_frames

JOURNAL = "matches"
# Cosines of different models cannot be compared. Below this one are 1 % of 500 held-out world clips with their first
# true dense caption, by the shipped captioner of version 81e60b7b. For other weights:
#   python -c "from training.prepare.match import least_of; print(least_of('app/models/captioner', 'data/first-test'))"
LEAST = {"longtake captioner": 0.533}
# Of open_clip's models, not measured here: as Data-Juicer's recipe for LLaVA's captions asks (0.203, by ViT-B/32 of
# OpenAI). For alt texts LAION-5B asked 0.28 by the same (Schuhmann et al. 2022, arXiv 2210.08402).
LEAST_OF_OTHERS = 0.2


@dataclass(frozen=True)
class MatchRun(Where):
    """Which prepared folder to score, and by which model: our own captioner's folder, or open_clip's
    ARCHITECTURE:WEIGHTS.
    """

    folder: Path = Path("prepared")
    matcher: str = ""

    @property
    def memory(self) -> int | None:
        """Bytes that a worker may take: a model may need any number."""
        return None


class Task(NamedTuple):
    """A clip, and the run that it is scored for."""

    row: Row
    run: MatchRun


def match_clips(run: MatchRun, rows: list[Row]) -> None:
    """Score all captioned clips that this model has not scored with the captions that they have now, in a
    folder that one has to oneself. Raises CaptionError where there is no such model.
    """
    asked, journal = matcher_of(run), Journal(run.folder, JOURNAL)
    noted = {line["clip"]: line for line in journal.lines() if "error" not in line}
    by = {"by": asked.name, "version": asked.version}
    abouts = [{"clip": row.clip, "sha256": row.sha256, "texts": digest_of(row.captions), **by} for row in rows]
    todo = [
        (row, about)
        for row, about in zip(rows, abouts, strict=True)
        if row.captions and not about.items() <= noted.get(row.clip, {}).items()
    ]
    with journal.adding() as note:
        for outcome in run.each(fit, [Task(row, run) for row, _ in todo]):
            note(todo[outcome.number][1] | outcome.told())


def failed_matches(run: MatchRun, rows: list[Row]) -> list[tuple[str, str]]:
    """List the clips that this model could not score, and why."""
    asked = matcher_of(run)
    by = {"by": asked.name, "version": asked.version}.items()
    noted = {line["clip"]: line for line in Journal(run.folder, JOURNAL).lines() if by <= line.items()}
    return [(row.file, noted[row.clip]["error"]) for row in rows if "error" in noted.get(row.clip, {})]


def least_match(folder: Path) -> float:
    """Return the cosine below which the model that scored a folder last would have captions not fit."""
    by = ""
    for line in Journal(folder, JOURNAL).lines():
        by = by if "error" in line else line["by"]
    return LEAST.get(by, LEAST_OF_OTHERS)


def least_of(matcher: str | Path, data: str | Path, clips: int = 500, share: float = 0.01) -> float:
    """Measure the cosine that a share of the true dense captions of world clips, 64x64x17, lie below by some model."""
    model, bucket = load_matcher(matcher), open_bucket(Path(data), (64, 64, 17))
    texts = [select_captions(bucket.captions[number], "dense")[0] for number in range(clips)]
    found = [float(model.match(bucket.load_clips([number]), [text])) for number, text in enumerate(texts)]
    return float(np.quantile(found, share))


@cache
def matcher_of(run: MatchRun) -> Matcher:
    """Return the model that a run asks, loaded once in each process."""
    return load_matcher(run.matcher)


def fit(task: Task) -> dict:
    """Return a clip's scores."""
    row, run = task
    matcher = matcher_of(run)
    video = read_sampled_frames(run.folder / row.file, MOST_FRAMES, LONGEST_SIDE)[None]
    scores = {"match": float(matcher.match(video, [said.text for said in row.captions]).min())}
    if isinstance(matcher, OpenClip):
        scores["aesthetics"] = float(matcher.beauty(video))
    return {"scores": scores}
