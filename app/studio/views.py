"""The JSON that the page gets of each clip and upload: a card for the gallery, and the details of one."""

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
from app.studio.gallery import JOB, UPLOAD, Gallery, GalleryItem, Upload
from app.studio.remake import fields_to_remake, parent_ids
from dit.modes import MODES
from dit.request import Request


@dataclass(frozen=True)
class StudioViews:
    """Describe a service's clips and uploads as the JSON of the page: a card for the gallery, and details."""

    service: Service
    gallery: Gallery
    forecast: Forecast

    def card(self, item: GalleryItem) -> dict[str, Any]:
        """Describe a clip or an upload as the gallery shows it."""
        source, info = item.source, item.info
        card = self._upload_card(source) if isinstance(source, Upload) else self._job_card(source)
        request = (info and info.request) or (None if isinstance(source, Upload) else source.request)
        if info:
            card |= {"size": f"{info.columns}x{info.rows}", "seconds": info.seconds}
        prompt = request and (request.prompt or "; ".join(moment.prompt for moment in request.moments or ()))
        return card | {
            "id": source.id,
            "mode": request and request.mode,
            "prompt": prompt or "",
            "upsampled_prompt": request and request.upsampled_prompt,
            "negative_prompt": request and request.negative_prompt,
            "seed": request and request.seed,
            "favourite": item.favourite,
            "note": item.note,
        }

    def _job_card(self, job: Job) -> dict[str, Any]:
        video = self.service.video(job)
        done = job.state == DONE
        preview = preview_version(self.service.queue.folder, job.id) if job.state == RUNNING else None
        path = f"/studio/clips/{job.id}"
        return {
            "kind": JOB,
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
            "unlearned": video["unlearned_words"],
            "message": video["note"],
            "poster": f"{path}/poster" if done else None,
            "preview": f"{path}/preview?step={preview}" if preview else None,
            "content": video["content"] if done else None,
            "parents": parent_ids(job.request),
        }

    def _upload_card(self, upload: Upload) -> dict[str, Any]:
        return {
            **{"kind": UPLOAD, "status": "completed", "phase": "", "step": 0, "steps": 0, "progress": 100},
            **{"eta": None, "ahead": None, "cancelling": False, "size": None, "seconds": None, "model": None},
            "still": upload.path.suffix in IMAGE_FORMATS,
            "created_at": int(upload.created),
            **{"error": None, "message": None, "preview": None, "unlearned": []},
            "poster": f"/studio/clips/{upload.id}/poster",
            "content": f"/v1/files/{upload.id}/content",
            "parents": [],
        }

    def details(self, id: str, owner: str) -> dict[str, Any]:
        """Describe an owner's clip or upload with all that its file contains; of an unfinished clip, its request."""
        item = self.gallery.item(id, owner)
        job = None if isinstance(item.source, Upload) else item.source
        path = None
        if job is None or job.state == DONE:
            item, path = self.gallery.probe(item), self.gallery.file_path(item)
        info = item.info if path else None
        request = info.request if info else job and job.request
        fields, missing = fields_to_remake(request, self.gallery, owner) if request else (None, [])
        state, verdict = self.credentials(item, path) if path else (None, None)
        return self.card(item) | {
            "request": fields,
            "missing": missing,
            "run_seconds": round(job.finished - job.started, 2) if job and job.finished and job.started else None,
            "attempts": job.attempts if job else 0,
            "model": fields.get("model") or _model_name(request) if fields and request else None,
            "model_hash": request and request.model_hash,
            "made_with": request and request.made_with,
            "credentials": state,
            "verdict": verdict,
            "bytes": path.stat().st_size if path else None,
            "frames": info and info.frames,
            "fps": info and info.fps,
            "duration": info and info.seconds,
        }

    def credentials(self, item: GalleryItem, path: Path) -> tuple[str, str]:
        """Return the state of a file's credentials (trusted, valid, tampered or unsigned) and a sentence; cached."""
        state = self.gallery.cached(item, "credentials")
        if state is None:
            try:
                found = verify(path)
                state, sentence = found.state, found.summary
            except ValueError as error:  # its message says why the credentials cannot be read
                state, sentence = "unsigned", str(error)
            self.gallery.cache(item, credentials=state, verdict=self.service.hide_paths(sentence))
        return state, self.gallery.cached(item, "verdict")


def _model_name(request: Request) -> str | None:
    return Path(request.model).name if request.model else None
