"""Cards: what the page is told of each clip and file, and the details of one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.provenance.verification import verify
from app.queue.jobs import CANCELLED, DONE, FAILED, RUNNING, Job
from app.queue.previews import preview_version
from app.server.service import Service
from app.server.uploads import IMAGE_FORMATS
from app.studio.actions import without_flags
from app.studio.forecast import Forecast
from app.studio.gallery import UPLOADED, Item, Shelf, Upload
from app.studio.remake import again, parents_of
from dit.modes import MODES
from dit.request import Request


@dataclass(frozen=True)
class Cards:
    """A service as the page sees it."""

    service: Service
    shelf: Shelf
    forecast: Forecast

    def card(self, item: Item) -> dict[str, Any]:
        """Describe a clip or a file as the gallery shows it."""
        job, known = item.made, item.known
        told = self._uploaded(item) if isinstance(job, Upload) else self._job(job)
        request = (known and known.request) or (None if isinstance(job, Upload) else job.request)
        if known:
            told |= {"size": f"{known.columns}x{known.rows}", "seconds": known.seconds}
        words = request and (request.prompt or "; ".join(one.prompt for one in request.moments or ()))
        return told | {
            "id": job.id,
            "mode": request and request.mode,
            "prompt": words or "",
            "upsampled_prompt": request and request.upsampled_prompt,
            "negative_prompt": request and request.negative_prompt,
            "seed": request and request.seed,
            "favourite": item.favourite,
            "note": item.note,
        }

    def _job(self, job: Job) -> dict[str, Any]:
        video = self.service.video(job)
        there = job.state == DONE
        preview = preview_version(self.service.queue.folder, job.id) if job.state == RUNNING else None
        at = f"/studio/clips/{job.id}"
        return {
            "kind": "job",
            "status": "cancelled" if job.state == CANCELLED else video["status"],
            "phase": job.phase,
            "step": job.step,
            "steps": job.steps,
            "progress": video["progress"],
            "eta": self.forecast.eta(job),
            "ahead": job.ahead,
            "cancelling": job.cancel_requested,
            "size": video["size"],
            "seconds": float(video["seconds"]) or None,
            "still": job.request.mode in MODES and MODES[job.request.mode].still,
            "model": video["model"],
            "created_at": video["created_at"],
            "error": without_flags(video["error"]["message"]) if job.state == FAILED else None,
            "said": video["note"],
            "poster": f"{at}/poster" if there else None,
            "preview": f"{at}/preview?step={preview}" if preview else None,
            "content": video["content"] if there else None,
            "parents": parents_of(job.request),
        }

    def _uploaded(self, item: Item) -> dict[str, Any]:
        upload = item.made
        assert isinstance(upload, Upload), "a job has a card of its own"
        return {
            **{"kind": UPLOADED, "status": "completed", "phase": "", "step": 0, "steps": 0, "progress": 100},
            **{"eta": None, "ahead": None, "cancelling": False, "size": None, "seconds": None, "model": None},
            "still": upload.path.suffix in IMAGE_FORMATS,
            "created_at": int(upload.created),
            **{"error": None, "said": None, "preview": None},
            "poster": f"/studio/clips/{upload.id}/poster",
            "content": f"/v1/files/{upload.id}/content",
            "parents": [],
        }

    def details(self, id: str, owner: str) -> dict[str, Any]:
        """Describe one clip or file with all that its file tells; of a clip that is not done, what was asked for."""
        item = self.shelf.item(id, owner)
        job = None if isinstance(item.made, Upload) else item.made
        path = None
        if job is None or job.state == DONE:
            item, path = self.shelf.learn(item), self.shelf.file_of(item)
        known = item.known if path else None
        request = known.request if known else job and job.request
        fields, missing = again(request, self.shelf, owner) if request else (None, [])
        state, verdict = self.credentials(item, path) if path else (None, None)
        return self.card(item) | {
            "request": fields,
            "missing": missing,
            "took": round(job.finished - job.started, 2) if job and job.finished and job.started else None,
            "tries": job.attempts if job else 0,
            "model": fields.get("model") or _name(request) if fields and request else None,
            "model_hash": request and request.model_hash,
            "made_with": request and request.made_with,
            "credentials": state,
            "verdict": verdict,
            "bytes": path.stat().st_size if path else None,
            "frames": known and known.frames,
            "fps": known and known.fps,
            "duration": known and known.seconds,
        }

    def credentials(self, item: Item, path: Path) -> tuple[str, str]:
        """Return whether a file is trusted, valid, tampered or unsigned, and a sentence about it; looked at once."""
        state = self.shelf.remembered(item, "credentials")
        if state is None:
            try:
                found = verify(path)
                state, sentence = found.state, found.summary
            except ValueError as error:  # which says why credentials cannot be read
                state, sentence = "unsigned", str(error)
            self.shelf.remember(item, credentials=state, verdict=self.service.hide_paths(sentence))
        return state, self.shelf.remembered(item, "verdict")


def _name(request: Request) -> str | None:
    return Path(request.model).name if request.model else None
