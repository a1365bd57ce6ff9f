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
import sqlite3
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from app.formats import IMAGE_SUFFIXES
from app.home import make_private_folder
from app.policy.errors import PolicyError
from app.queue.hung import silence
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
    WAITING,
    WRITING,
    Job,
    JobError,
    Queue,
    QueueFull,
)
from app.registry import DEFAULT_MODEL, MODELS, model_folder, resolve_upsampler, unlearned_words
from app.server.durations import Durations
from app.server.idempotency import IdempotencyKey
from app.server.limits import ClientGate, RequestLimits, check_limits, input_paths
from app.server.parsing import IMAGE_ALIAS, request_fields, short_repr
from app.server.storage import QuotaExceeded, Storage, unfinished_users
from app.server.uploads import IMAGE_FORMATS, UploadError, UploadLimits, store_upload
from dit.camera import check_camera, folder_reads_camera
from dit.modes import mode_of
from dit.notes import size_of_inputs
from dit.request import Request, RequestError, check_values
from dit.settings import Settings
from vae.video.pixels import MediaError

LINKED_MODELS = "models"  # a subfolder of the queue's folder, with links to models that are not shipped
SHARED_OWNER = "everybody"  # the owner of uploads where there are no tokens
UPLOAD_ID = re.compile(r"file-([0-9a-f]{64})")
FILE_ID = re.compile(r"[\w-]+")  # neither a path nor an address
IMAGE_FIELDS = ("image", "mask", "keyframes")  # fields that take images; a mask may be a clip as well
STATUS = {QUEUED: "queued", INTERRUPTED: "queued", RUNNING: "in_progress", DONE: "completed"}
STATUS |= {FAILED: "failed", CANCELLED: "failed"}
PHASE_PERCENT = {LOADING: (1, 3), ENCODING: (3, 5), SAMPLING: (5, 90), WRITING: (90, 99)}
CLIENT_ERRORS = (RequestError, UploadError, JobError, MediaError, PolicyError, QuotaExceeded)  # sent to clients
MAX_MESSAGE_CHARS = 600
STORED_LATER = "a-file-of-this-request"  # stands for its id while the other fields are checked


class NotFound(ValueError):
    """An id is unknown or belongs to another owner; clients cannot tell which."""


@dataclass(frozen=True)
class ServedModel:
    """A model that clients may use: its name in a queued request, the settings it was trained for, whether it reads a
    camera velocity, and its folder. A model that is not `ours` has a rule for sizes, which it checks itself.
    """

    name: str
    settings: Settings
    camera: bool = False
    folder: Path | None = None
    ours: bool = True


@dataclass(frozen=True)
class Service:
    """A queue, the served models and the limits for clients.

    `models` has the models by the names that clients use; the first is the default. `check_request` is called before a
    request is queued, and raises PolicyError where the policy refuses it. `max_open_jobs` limits an owner's unfinished
    jobs, `limits` each of its requests and its files. What takes time is called through one of the gates: `estimating`
    for what is queued or estimated, `reading` for files that are stored or decoded.
    """

    queue: Queue
    models: dict[str, ServedModel]
    check_request: Callable[[Request], None] = lambda request: None
    upload_limits: UploadLimits = field(default_factory=UploadLimits)
    max_open_jobs: int | None = None
    limits: RequestLimits = field(default_factory=RequestLimits)
    estimating: ClientGate = field(default_factory=ClientGate)
    reading: ClientGate = field(default_factory=ClientGate)
    durations: Durations = field(default_factory=Durations)

    @cached_property
    def storage(self) -> Storage:
        """The bytes that each owner has on the disk."""
        return Storage(self.queue, self.limits.owner_bytes)

    def submit(self, found: dict[str, Any], owner: str, key: IdempotencyKey | None = None) -> Job:
        """Queue the request that a client's fields describe; with a key that was sent before, return its job.

        Raises RequestError, UploadError, NotFound, QueueFull, QuotaExceeded, KeyReused, and what `check_request`
        raises.
        """
        if key and (id := key.find(self.queue)):
            return self.job(id, owner)
        return self.queue_requests([self.build_request(found, owner)], owner, key)[0]

    def queue_requests(self, requests: list[Request], owner: str, key: IdempotencyKey | None = None) -> list[Job]:
        """Queue requests that were built here, all or none."""
        suffix = IMAGE_SUFFIXES[0] if mode_of(requests[0]).still else ".mp4"
        paths = input_paths(requests[0])

        def within(connection: sqlite3.Connection, ids: list[str]) -> None:
            if key and not key.store(connection, ids[0]):
                raise AlreadyQueued
            for path in paths:  # nobody deletes it from now on
                if not (self.queue.folder / path).is_file():
                    raise NotFound(f"an input must exist; {path} was deleted meanwhile, so send it again")

        try:
            return self.queue.submit(requests, suffix, owner=owner, max_open=self.max_open_jobs, within=within)
        except AlreadyQueued:  # by a call at the same time
            assert key, "only a key raises it"
            return [self.job(key.find(self.queue) or "", owner)]

    def check_fields(self, found: dict[str, Any], owner: str, files: Collection[str] = ()) -> None:
        """Check a client's fields, with `files` as parts of a form, before anything that takes time.

        Raises RequestError, QueueFull for an owner with too many unfinished jobs, and QuotaExceeded.
        """
        reference = found.get(IMAGE_ALIAS)
        if isinstance(reference, dict) and str(reference.get("image_url")).startswith("data:"):
            files = (*files, IMAGE_ALIAS)
        self._checked_request(request_fields(found | dict.fromkeys(files, STORED_LATER)))
        if self.max_open_jobs is not None:
            (count,) = self.queue.connection.execute(
                f"SELECT count(*) FROM jobs WHERE owner = ? AND state IN {(*WAITING, RUNNING)}", (owner,)
            ).fetchone()
            if count >= self.max_open_jobs:
                rule = f"at most {self.max_open_jobs} videos of yours may wait here"
                raise QueueFull(f"{rule}; there are {count}, so ask again later")
        self.storage.check_room(owner, self.upload_folder(owner))

    def build_request(self, found: dict[str, Any], owner: str) -> Request:
        """Build a Request from a client's fields: what is cheap to check first, what takes time last."""
        self.check_fields(found, owner)
        fields = request_fields(self._with_stored_image(found, owner))
        request = self._with_paths(self._checked_request(fields), owner)
        try:
            if request.size is None and input_paths(request):
                settings = self.models[Path(request.model or "").name].settings
                size = size_of_inputs(request, mode_of(request), settings, folder=self.queue.folder)
                request = replace(request, size=size)
            self.check_request(request)
        except MediaError as error:
            raise MediaError(self.hide_paths(str(error))) from None
        return request

    def _checked_request(self, fields: dict[str, Any]) -> Request:
        """Build a Request of typed fields, its files still named by their ids, and check it without model or files."""
        name = fields.pop("model", next(iter(self.models)))
        if not isinstance(name, str) or name not in self.models:
            raise RequestError(f"model must be one of {', '.join(self.models)}; got {short_repr(name)}")
        model = self.models[name]
        request = Request.from_dict(fields | {"model": model.name})
        mode, size = mode_of(request), request.size or model.settings.size
        if not request.prompt.strip() and not (request.moments and "moments" in mode.reads):
            raise RequestError("a prompt must say something; got none, so describe the clip in a sentence")
        for name in ("image", "clip", "other", "mask"):
            if (id := getattr(request, name)) and not FILE_ID.fullmatch(str(id)):
                raise not_an_id(name, str(id))
        for name in mode.needs:
            if not getattr(request, name):
                raise RequestError(f"{request.mode} needs {name}; got none, so send it")
        check_values(replace(request, size=size))
        check_limits(request, self.limits)
        sizes = [(columns, rows) for columns, rows, frames in model.settings.formats if mode.still == (frames == 1)]
        if size not in sizes and model.ours:
            listed = ", ".join(dict.fromkeys(f"{columns}x{rows}" for columns, rows in sizes))
            raise RequestError(f"size must be one this model was trained for: {listed}; got {size[0]}x{size[1]}")
        check_camera(request, model.camera)
        resolve_upsampler(request.upsample)
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
        """Delete a video and its files and return True; cancel it and return False where it is being generated.

        Raises RequestError for the input of a job that is not finished.
        """
        self.job(id, owner)
        job = self.queue.cancel(id)
        if job.state not in FINISHED:
            return False
        with self.queue.transaction() as connection:
            self._check_unused(connection, owner, job.output, id)
            connection.execute(f"DELETE FROM jobs WHERE id = ? AND state IN {FINISHED}", (id,))
            for path in self.queue.clips.glob(f"{job.id}*"):
                self.storage.add(owner, -path.stat().st_size)
                path.unlink(missing_ok=True)
        return True

    def delete_upload(self, id: str, owner: str) -> None:
        """Delete an owner's upload; raises NotFound, and RequestError for the input of a job that is not finished."""
        path = self.upload_path(id, owner)
        with self.queue.transaction() as connection:
            self._check_unused(connection, owner, path)
            self.storage.add(owner, -path.stat().st_size)
            path.unlink(missing_ok=True)

    def _check_unused(self, connection: sqlite3.Connection, owner: str, path: Path, id: str = "") -> None:
        """Raise RequestError for a file that unfinished jobs, but for the job `id`, need."""
        if users := unfinished_users(connection, owner, os.path.relpath(path, self.queue.folder), id):
            raise RequestError(f"an input must stay until the clips that use it are done; {users} are not; cancel them")

    def store_upload(self, source: BinaryIO, owner: str) -> str:
        """Store an upload and return its id; raises UploadError, and QuotaExceeded where the owner has too much."""
        folder = self.upload_folder(owner)
        self.storage.check_room(owner, folder)
        stored = store_upload(source, folder, self.upload_limits)
        self.storage.add(owner, stored.stat().st_size)
        return f"file-{stored.stem}"

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
            raise not_an_id(field, id) from None
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
        message = silence(self.queue, job) or message
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
            "seconds": f"{self.durations.seconds(job, settings.seconds):g}",
            "size": f"{columns}x{rows}",
            "remixed_from_video_id": source.stem if source.parent.name == self.queue.clips.name else None,
            "error": {"code": job.state, "message": message or "the video was cancelled"} if failed else None,
            "ahead": job.ahead,
            "eta": job.eta,
            "phase": "cancelling" if job.cancel_requested else job.phase,
            "mode": request.mode,
            "seed": request.seed,
            "note": None if failed else message or None,
            "unlearned_words": list(self.unlearned_words(request)),
            "content": f"/v1/videos/{job.id}/content",
        }

    def unlearned_words(self, request: Request) -> tuple[str, ...]:
        """Return the words of a request's prompts that its model never learned."""
        linked = self.queue.folder / (request.model or "")
        return unlearned_words(replace(request, model=str(linked)) if linked.is_dir() and request.model else request)

    def hide_paths(self, message: str) -> str:
        """Return a worker's message without the folders of this machine; only file names stay."""
        for folder in (self.queue.folder, MODELS):
            message = message.replace(f"{folder}/", "")
        return re.sub(r"(?<![\w/:.])(/[\w.+@-]+)+/", "", message)


def not_an_id(field: str, id: str) -> RequestError:
    """Return the error for an input that is no file or video of the client."""
    rule = f"{field} must be an upload, or the id of a video or file of yours"
    return RequestError(f"{rule}; got {short_repr(id)}: URLs and paths are not opened")


class AlreadyQueued(Exception):
    """A job with the same idempotency key was queued meanwhile."""


def progress_percent(job: Job) -> int:
    """Return the progress of a job, 0 to 100."""
    low, high = (100, 100) if job.state == DONE else PHASE_PERCENT.get(job.phase, (0, 0))
    return round(low + (high - low) * job.step / job.steps) if job.steps else low


def served_models(queue: Queue, models: list[str]) -> dict[str, ServedModel]:
    """Return the models to serve by name, by default all shipped ones.

    `models` has names of shipped models and folders of others. A folder gets a link in the queue's folder, so that
    requests do not contain its path. Raises RequestError for a folder without a model, and for two models of one name.
    """
    from dit.adapters.load import is_ours, settings_of

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
        settings = settings_of(folder)
        served[folder.name] = ServedModel(request_name, settings, folder_reads_camera(folder), folder, is_ours(folder))
    return served
