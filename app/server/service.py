"""The server's operations, shared by all its protocols: one queue, with each owner's videos kept apart.

Clients name files only by the ids of their own videos and uploads. In a queued request these become paths relative to
the queue's folder, which is the workers' working directory, so that no generated file reveals the server's paths.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from app.formats import IMAGE_SUFFIXES
from app.home import make_private_folder
from app.policy.errors import PolicyError
from app.queue.jobs import (
    CANCELLED,
    DONE,
    ENCODING,
    FAILED,
    FINISHED,
    INTERRUPTED,
    LOADING,
    QUEUED,
    RUNNING,
    SAMPLING,
    UPLOADS,
    WRITING,
    Job,
    JobError,
    Queue,
)
from app.registry import DEFAULT_MODEL, MODELS, model_folder, resolve_upsampler
from app.server.parsing import IMAGE_ALIAS, request_fields, short_repr
from app.server.uploads import IMAGE_FORMATS, UploadError, UploadLimits, store_upload
from dit.modes import MODES, mode_of
from dit.request import Request, RequestError, check_values
from dit.settings import SETTINGS, Settings, read_settings
from vae.video.pixels import MediaError

LINKED_MODELS = "models"  # a subfolder of the queue's folder, with links to models that are not shipped
SHARED_OWNER = "everybody"  # the owner of uploads where there are no tokens
UPLOAD_ID = re.compile(r"file-([0-9a-f]{64})")
IMAGE_FIELDS = ("image", "mask", "keyframes")  # fields that take images; a mask may be a clip as well
STATUS = {QUEUED: "queued", INTERRUPTED: "queued", RUNNING: "in_progress", DONE: "completed"}
STATUS |= {FAILED: "failed", CANCELLED: "failed"}
PHASE_PERCENT = {LOADING: (1, 3), ENCODING: (3, 5), SAMPLING: (5, 90), WRITING: (90, 99)}
CLIENT_ERRORS = (RequestError, UploadError, JobError, MediaError, PolicyError)  # whose messages are sent to clients
MAX_MESSAGE_CHARS = 600
UPLOAD_SLOTS = threading.BoundedSemaphore(4)  # uploads that are decoded at a time


class NotFound(ValueError):
    """An id is unknown or belongs to another owner; clients cannot tell which."""


@dataclass(frozen=True)
class ServedModel:
    """A model that clients may use: its name in a queued request, and the settings it was trained for."""

    name: str
    settings: Settings


@dataclass(frozen=True)
class Service:
    """A queue, the served models and the limits for clients.

    `models` has the models by the names that clients use; the first is the default. `check_request` is called before a
    request is queued, and raises PolicyError where the policy refuses it. `max_open_jobs` limits an owner's unfinished
    jobs.
    """

    queue: Queue
    models: dict[str, ServedModel]
    check_request: Callable[[Request], None] = lambda request: None
    upload_limits: UploadLimits = field(default_factory=UploadLimits)
    max_open_jobs: int | None = None

    def submit(self, found: dict[str, Any], owner: str) -> Job:
        """Queue the request that a client's fields describe.

        Raises RequestError, UploadError, NotFound, QueueFull, and what `check_request` raises.
        """
        request = self.build_request(found, owner)
        still = mode_of(request).still
        return self.queue.submit(
            [request], IMAGE_SUFFIXES[0] if still else ".mp4", owner=owner, max_open=self.max_open_jobs
        )[0]

    def build_request(self, found: dict[str, Any], owner: str) -> Request:
        """Build a Request from a client's fields, checked as far as possible without loading the model."""
        fields = request_fields(self._with_stored_image(found, owner))
        name = fields.pop("model", next(iter(self.models)))
        if not isinstance(name, str) or name not in self.models:
            raise RequestError(f"model must be one of {', '.join(self.models)}; got {short_repr(name)}")
        model = self.models[name]
        request = self._with_paths(Request.from_dict(fields | {"model": model.name}), owner)
        mode, size = mode_of(request), request.size or model.settings.size
        if not request.prompt.strip() and not (request.moments and "moments" in mode.reads):
            raise RequestError("a prompt must say something; got none, so describe the clip in a sentence")
        for name in mode.needs:
            if not getattr(request, name):
                raise RequestError(f"{request.mode} needs {name}; got none, so send it")
        check_values(replace(request, size=size))
        sizes = [(columns, rows) for columns, rows, frames in model.settings.formats if mode.still == (frames == 1)]
        if size not in sizes:
            listed = ", ".join(dict.fromkeys(f"{columns}x{rows}" for columns, rows in sizes))
            raise RequestError(f"size must be one this model was trained for: {listed}; got {size[0]}x{size[1]}")
        resolve_upsampler(request.upsample)
        self.check_request(request)
        return request

    def job(self, id: str, owner: str) -> Job:
        """Return an owner's job; raises NotFound for an unknown id or another owner's."""
        with suppress(JobError):
            job = self.queue.job(id)
            if job.owner == owner:
                return job
        raise NotFound(f"a video must be one of yours; there is none named {short_repr(id)}; see GET /v1/videos")

    def completed_job(self, id: str, owner: str) -> Job:
        """Return an owner's job whose clip is complete; raises NotFound as `job` does, RequestError before that."""
        job = self.job(id, owner)
        if job.state != DONE:
            raise RequestError(f"a video must be completed for that; {id} is {self.video(job)['status']}")
        return job

    def delete(self, id: str, owner: str) -> bool:
        """Delete a video and its files and return True; cancel it and return False where it is being generated."""
        self.job(id, owner)
        job = self.queue.cancel(id)
        if job.state not in FINISHED:
            return False
        self.queue.delete(id)
        for path in self.queue.clips.glob(f"{job.id}*"):
            path.unlink(missing_ok=True)
        return True

    def store_upload(self, source: BinaryIO, owner: str) -> str:
        """Store an upload and return its id; raises UploadError."""
        with UPLOAD_SLOTS:
            return f"file-{store_upload(source, self.upload_folder(owner), self.upload_limits).stem}"

    def upload_folder(self, owner: str) -> Path:
        """Return the folder of an owner's uploads."""
        return self.queue.folder / UPLOADS / (owner or SHARED_OWNER)

    def upload_path(self, id: str, owner: str) -> Path:
        """Return the file of an owner's upload; raises NotFound for an unknown id or another owner's."""
        match = UPLOAD_ID.fullmatch(id)
        found = next(self.upload_folder(owner).glob(f"{match[1]}.*"), None) if match else None
        if found is None:
            raise NotFound(
                f"a file must be one that you sent; there is none named {short_repr(id)}; see POST /v1/files"
            )
        return found

    def _with_stored_image(self, found: dict[str, Any], owner: str) -> dict[str, Any]:
        """Store the image in a data: URL and put its id in its place; no other URL is read."""
        reference = found.get(IMAGE_ALIAS)
        url = reference.get("image_url") if isinstance(reference, dict) else None
        if not isinstance(url, str) or not url.startswith("data:"):
            return found
        head, comma, text = url.partition(",")
        try:
            image = base64.b64decode(text if comma and head.endswith(";base64") else "?", validate=True)
        except binascii.Error:
            raise UploadError("a data: URL must hold base64; this one does not; send the image itself") from None
        return found | {IMAGE_ALIAS: self.store_upload(io.BytesIO(image), owner)}

    def _with_paths(self, request: Request, owner: str) -> Request:
        """Replace ids of files by paths relative to the queue's folder."""
        path = lambda id, field: id and self.relative_path(id, field, owner)
        fields = {name: path(getattr(request, name), name) for name in ("image", "clip", "other", "mask")}
        keyframes = request.keyframes and tuple((at, path(id, "keyframes")) for at, id in request.keyframes)
        moments = request.moments and tuple(
            replace(one, image=path(one.image, "image"), clip=path(one.clip, "clip")) for one in request.moments
        )
        return replace(request, **fields, keyframes=keyframes, moments=moments)

    def relative_path(self, id: str, field: str, owner: str) -> str:
        """Return the path of an upload or completed video, relative to the queue's folder.

        Raises RequestError for an unknown id, for a video that is not completed, and for an image where `field` takes a
        clip, or the reverse.
        """
        try:
            found = self.upload_path(id, owner) if UPLOAD_ID.fullmatch(id) else self.completed_job(id, owner).output
        except NotFound:
            rule = f"{field} must be an upload, or the id of a video or file of yours"
            raise RequestError(f"{rule}; got {short_repr(id)}: URLs and paths are not opened") from None
        is_image = found.suffix in IMAGE_FORMATS
        if field != "mask" and is_image != (field in IMAGE_FIELDS):
            needed, got = ("an image", "a clip") if field in IMAGE_FIELDS else ("a clip", "an image")
            raise RequestError(f"{field} must be {needed}; {short_repr(id)} is {got}")
        return os.path.relpath(found, self.queue.folder)

    def video(self, job: Job) -> dict[str, Any]:
        """Describe a job as the API's video object; `ahead` to `content` are Longtake's additions."""
        request, name = job.request, Path(job.request.model or "").name
        settings = self.models[name].settings if name in self.models else Settings()
        columns, rows = request.size or settings.size
        source = Path(request.clip or "")
        failed = job.state in (FAILED, CANCELLED)
        message = self.hide_paths(job.message)
        if job.state not in FINISHED and (pause := self.queue.paused):
            message = self.hide_paths(f"the queue is paused: {pause.reason}")
        return {
            "id": job.id,
            "object": "video",
            "model": name,
            "status": STATUS[job.state],
            "progress": progress_percent(job),
            "created_at": int(job.submitted),
            "completed_at": int(job.finished) if job.finished and not failed else None,
            "expires_at": None,
            "prompt": request.prompt,
            "seconds": "0"
            if request.mode in MODES and MODES[request.mode].still
            else f"{request.seconds or settings.seconds:g}",
            "size": f"{columns}x{rows}",
            "remixed_from_video_id": source.stem if source.parent.name == self.queue.clips.name else None,
            "error": {"code": job.state, "message": message or "the video was cancelled"} if failed else None,
            "ahead": job.ahead,
            "eta": job.eta,
            "phase": "cancelling" if job.cancel_requested else job.phase,
            "mode": request.mode,
            "seed": request.seed,
            "note": None if failed else message or None,
            "content": f"/v1/videos/{job.id}/content",
        }

    def hide_paths(self, message: str) -> str:
        """Return a worker's message without the folders of this machine; only file names stay."""
        for folder in (self.queue.folder, MODELS):
            message = message.replace(f"{folder}/", "")
        return re.sub(r"(?<![\w/:.])(/[\w.+@-]+)+/", "", message)


def progress_percent(job: Job) -> int:
    """Return the progress of a job, 0 to 100."""
    low, high = (100, 100) if job.state == DONE else PHASE_PERCENT.get(job.phase, (0, 0))
    return round(low + (high - low) * job.step / job.steps) if job.steps else low


def served_models(queue: Queue, models: list[str]) -> dict[str, ServedModel]:
    """Return the models to serve by name, by default all shipped ones.

    `models` has names of shipped models and folders of others. A folder gets a link in the queue's folder, so that
    requests do not contain its path. Raises RequestError for a folder without a model, and for two models of one name.
    """
    shipped = sorted(
        (path.parent.name for path in MODELS.glob("*/model_index.json")), key=lambda name: name != DEFAULT_MODEL
    )
    make_private_folder(queue.folder / UPLOADS)
    served: dict[str, ServedModel] = {}
    for name in models or shipped:
        folder = model_folder(name).resolve()
        if folder.name in served:
            raise RequestError(f"served models must have different names; got two named {folder.name}")
        request_name = folder.name
        if folder.parent != MODELS.resolve():
            link = queue.folder / LINKED_MODELS / folder.name
            make_private_folder(link.parent)
            link.unlink(missing_ok=True)
            link.symlink_to(folder, target_is_directory=True)
            request_name = f"{LINKED_MODELS}/{folder.name}"
        served[folder.name] = ServedModel(request_name, read_settings(folder / SETTINGS))
    return served
