"""Caption clips: what a source says of itself is kept, and a vision-language model adds its own words."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from captioning.captioner import FRAMES, PARTS, VERSION, Endpoint
from training.prepare.clips import remake_manifest, rows_of
from training.prepare.engine import Where
from training.prepare.manifest import Journal, PrepareError, Row, alone
from vae.media import read_picture, read_video

LONGEST_SIDE = 512  # pixels of a frame that a model is shown


@dataclass(frozen=True)
class CaptionsRun(Where):
    """Which prepared folder to caption, by `model` behind the OpenAI-compatible `endpoint`; its key is in the
    environment variable `key`, and `answer` the seconds for one answer.
    """

    folder: Path = Path("prepared")
    endpoint: str = ""
    model: str = ""
    key: str = "OPENAI_API_KEY"
    answer: float = 60.0


class Task(NamedTuple):
    """A clip, and the run that it is captioned for."""

    row: Row
    run: CaptionsRun


def captions(run: CaptionsRun) -> dict[str, int]:
    """Caption all clips that this model has not captioned yet; returns how many there are, were done and failed.

    Raises PrepareError for what cannot be begun.
    """
    if not (run.endpoint and run.model):
        raise PrepareError("captions need a model and where it answers; give --endpoint and --model")
    asked = endpoint_of(run)
    with alone(run.folder):
        rows = rows_of(run.folder, begun=True)
        journal = Journal(run.folder, "captions")
        todo = [row for row in rows if not any((c.source, c.version) == (asked.name, VERSION) for c in row.captions)]
        with journal.adding() as note:
            for outcome in run.each(describe, [Task(row, run) for row in todo]):
                about = {"clip": todo[outcome.number].clip, "source": asked.name, "version": VERSION}
                note(about | outcome.told())
        remake_manifest(run.folder)
        return {
            "clips": len(rows),
            "done before": len(rows) - len(todo),
            "failed": len(failed_captions(run)),
        }


def failed_captions(run: CaptionsRun) -> list[tuple[str, str]]:
    """List the clips that this model could not caption, and why."""
    name = endpoint_of(run).name
    noted = {line["clip"]: line for line in Journal(run.folder, "captions").lines() if line["source"] == name}
    return [(row.file, noted[row.clip]["error"]) for row in rows_of(run.folder) if "error" in noted.get(row.clip, {})]


@cache
def endpoint_of(run: CaptionsRun) -> Endpoint:
    """Return the model that a run asks."""
    return Endpoint(run.endpoint, run.model, os.environ.get(run.key), run.answer)


def describe(task: Task) -> dict:
    """Ask for one clip's description; returns its text and its parts."""
    row, run = task
    path, share = run.folder / row.file, min(1.0, LONGEST_SIDE / max(row.columns, row.rows))
    if path.suffix == ".png":
        video = read_picture(path)
    else:
        size = (max(1, round(row.rows * share)), max(1, round(row.columns * share)))
        few = min(row.fps, FRAMES / max(row.end - row.begin, 1 / row.fps))
        video = read_video(path, fps=few, size=size).video
    found = endpoint_of(run).describe(video)
    return {"text": found.caption, "parts": {name: getattr(found, name) for name in PARTS}}
