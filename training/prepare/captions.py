"""Caption clips: what a source says of itself is kept, and a vision-language model adds its own words."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from captioning.captioner import LONGEST_SIDE, MOST_FRAMES, Captioner, load_captioner
from training.prepare.clips import remake_manifest, rows_of
from training.prepare.engine import Where
from training.prepare.manifest import Journal, PrepareError, Row, alone
from vae.video.read import read_sampled_frames
from vae.video.sandbox import MAX_MEMORY_BYTES


@dataclass(frozen=True)
class CaptionsRun(Where):
    """Which prepared folder to caption: by the `captioner` of a name or folder, or by `model` behind the
    OpenAI-compatible `endpoint`; its key is in the environment variable `key`, and `answer` the seconds for one answer.
    """

    folder: Path = Path("prepared")
    endpoint: str = ""
    model: str = ""
    key: str = "OPENAI_API_KEY"
    answer: float = 60.0
    captioner: str = ""

    @property
    def memory(self) -> int | None:
        """Bytes that a worker may take: a model that runs in it may need any number."""
        return None if self.captioner else MAX_MEMORY_BYTES


class Task(NamedTuple):
    """A clip, and the run that it is captioned for."""

    row: Row
    run: CaptionsRun


def captions(run: CaptionsRun) -> dict[str, int]:
    """Caption all clips that are not dropped and that this model has not captioned yet; returns how many there are,
    were done and failed.

    Raises PrepareError for what cannot be begun, and CaptionError where there is no such captioner.
    """
    if not (run.captioner or (run.endpoint and run.model)):
        raise PrepareError("captions need a model; give --captioner, or --endpoint and --model")
    asked = captioner_of(run)
    with alone(run.folder):
        rows = [row for row in rows_of(run.folder, begun=True) if not row.dropped]
        journal = Journal(run.folder, "captions")
        own = asked.name, asked.version
        todo = [row for row in rows if own not in ((said.source, said.version) for said in row.captions)]
        with journal.adding() as note:
            for outcome in run.each(describe, [Task(row, run) for row in todo]):
                about = {"clip": todo[outcome.number].clip, "source": asked.name, "version": asked.version}
                note(about | outcome.told())
        remake_manifest(run.folder)
        return {
            "clips": len(rows),
            "done before": len(rows) - len(todo),
            "failed": len(failed_captions(run)),
        }


def failed_captions(run: CaptionsRun) -> list[tuple[str, str]]:
    """List the clips that this model could not caption, and why."""
    name = captioner_of(run).name
    noted = {line["clip"]: line for line in Journal(run.folder, "captions").lines() if line["source"] == name}
    rows = [row for row in rows_of(run.folder) if not row.dropped]
    return [(row.file, noted[row.clip]["error"]) for row in rows if "error" in noted.get(row.clip, {})]


@cache
def captioner_of(run: CaptionsRun) -> Captioner:
    """Return the captioner that a run asks, loaded once in each process."""
    return load_captioner(run.captioner, run.endpoint, run.model, os.environ.get(run.key), run.answer)


def describe(task: Task) -> dict:
    """Ask for one clip's description; returns its text and its parts."""
    row, run = task
    found = captioner_of(run).describe(read_sampled_frames(run.folder / row.file, MOST_FRAMES, LONGEST_SIDE))
    return {"text": found.text, "parts": found.parts}
