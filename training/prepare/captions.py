"""Caption clips with a captioner. Captions that came with the source are kept besides."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from captioning.caption import MAX_FRAMES, MAX_SIDE, Captioner
from captioning.captioner import load_captioner
from training.manifest import ClipRow, PrepareError
from training.prepare.engine import PrepareRun
from training.prepare.journal import Journal, clip_rows, locked_folder, rebuild_manifest
from vae.video.read import read_sampled_frames
from vae.video.sandbox import MAX_MEMORY_BYTES


@dataclass(frozen=True)
class CaptionsRun(PrepareRun):
    """Caption the clips of a prepared folder with `captioner`, a folder or name, or with `model` at `endpoint`.

    The endpoint speaks OpenAI's API. Its API key is in the environment variable `key`, and an answer may take
    `answer_timeout` seconds.
    """

    folder: Path = Path("prepared")
    endpoint: str = ""
    model: str = ""
    key: str = "OPENAI_API_KEY"
    answer_timeout: float = 60.0
    captioner: str = ""

    @property
    def memory_bytes(self) -> int | None:
        """The memory limit of a worker; None where a captioner runs in it."""
        return None if self.captioner else MAX_MEMORY_BYTES


class CaptionTask(NamedTuple):
    """One clip to caption."""

    row: ClipRow
    run: CaptionsRun


def caption_clips(run: CaptionsRun) -> dict[str, int]:
    """Caption all kept clips that this version of the captioner has not captioned; return counts for the report.

    Raises PrepareError where no captioner is named or the folder cannot be used, and CaptionError where the captioner
    cannot be loaded.
    """
    if not (run.captioner or (run.endpoint and run.model)):
        raise PrepareError("captions need a model; give --captioner, or --endpoint and --model")
    captioner = cached_captioner(run)
    with locked_folder(run.folder):
        rows = [row for row in clip_rows(run.folder, required=True) if not row.dropped]
        journal = Journal(run.folder, "captions")
        own = captioner.name, captioner.version
        todo = [row for row in rows if own not in ((caption.source, caption.version) for caption in row.captions)]
        with journal.appending() as append:
            for outcome in run.map(caption_clip, [CaptionTask(row, run) for row in todo]):
                about = {"clip": todo[outcome.number].clip, "source": captioner.name, "version": captioner.version}
                append(about | outcome.journal_entry())
        rebuild_manifest(run.folder)
        return {
            "clips": len(rows),
            "done before": len(rows) - len(todo),
            "failed": len(failed_captions(run)),
        }


def failed_captions(run: CaptionsRun) -> list[tuple[str, str]]:
    """List the clips that this captioner could not caption, each with the error."""
    name = cached_captioner(run).name
    entries = {entry["clip"]: entry for entry in Journal(run.folder, "captions").entries() if entry["source"] == name}
    rows = [row for row in clip_rows(run.folder) if not row.dropped]
    return [(row.file, entries[row.clip]["error"]) for row in rows if "error" in entries.get(row.clip, {})]


@cache
def cached_captioner(run: CaptionsRun) -> Captioner:
    """Return the captioner of a run, loaded once per process."""
    return load_captioner(run.captioner, run.endpoint, run.model, os.environ.get(run.key), run.answer_timeout)


def caption_clip(task: CaptionTask) -> dict:
    """Caption one clip; return the text and its parts."""
    row, run = task
    caption = cached_captioner(run).describe(read_sampled_frames(run.folder / row.file, MAX_FRAMES, MAX_SIDE))
    return {"text": caption.text, "parts": caption.parts}
