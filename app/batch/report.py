"""What a batch reports: a line for each clip on standard output and, once, in the manifest."""

from __future__ import annotations

import json
import sys
from functools import cached_property
from typing import TYPE_CHECKING, Any

from app.batch.batch import EXISTS, Batch
from app.batch.manifest import DONE, Manifest, stamp
from app.batch.sweeps import BatchItem

if TYPE_CHECKING:
    from app.queue.jobs import Job


class Report:
    """Report the items of a batch; `failures` counts those that were not made."""

    def __init__(self, batch: Batch, manifest: Manifest, as_json: bool):
        self.batch, self.manifest, self.as_json, self.failures = batch, manifest, as_json, 0

    def failed(self, item: BatchItem, message: str) -> None:
        """Report an item that cannot be made."""
        self._note(self._line(item, "failed", message=message))
        self.failures += 1

    def existing(self, item: BatchItem) -> None:
        """Report an item whose clip exists, and note it where a run that was killed did not."""
        if item.name not in self.manifest.files:
            job = self._done_jobs.get(self.batch.real_path(item).as_posix())
            self.manifest.append(self._line(item, DONE, job, **self._file(item)))
        self._print(self._line(item, EXISTS))

    def ended(self, item: BatchItem, job: Job) -> None:
        """Report an item whose job has ended."""
        self.failures += job.state != DONE
        message = {"message": job.message} if job.message else {}
        file = self._file(item) if job.state == DONE else {}
        self._note(self._line(item, job.state, job, **message, **file))

    def _line(self, item: BatchItem, state: str, job: Job | None = None, **more: Any) -> dict[str, Any]:
        line: dict[str, Any] = {"row": item.row, "part": item.part, "state": state, "output": item.name or None}
        if job:
            line["seconds"] = round((job.finished or 0) - (job.started or 0), 2)
            line |= {"job": job.id} if job.id else {}
        return line | more

    def _file(self, item: BatchItem) -> dict[str, Any]:
        """Return what lets the next run know the file without reading it."""
        return {"digest": item.digest, "file": stamp(self.batch.real_path(item))}

    def _note(self, line: dict[str, Any]) -> None:
        self.manifest.append(line)
        self._print(line)

    def _print(self, line: dict[str, Any]) -> None:
        from tqdm import tqdm

        if self.as_json:
            tqdm.write(json.dumps(line, ensure_ascii=False))
        elif line["state"] in (DONE, EXISTS):
            tqdm.write(str(self.batch.folder / line["output"]))
        if message := line.get("message"):
            tqdm.write(f"longtake: row {line['row']}: {message}", file=sys.stderr)

    @cached_property
    def _done_jobs(self) -> dict[str, Job]:
        """The latest finished job of each clip, by its path."""
        from app.queue.jobs import DATABASE, Queue

        if not (self.batch.queue_folder / DATABASE).is_file():
            return {}
        return {job.output.as_posix(): job for job in Queue(self.batch.queue_folder).done_jobs()}
