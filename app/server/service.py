"""What a server does for its clients, whichever way they come: on one queue, each owner's videos apart.

Clients name files by ids only, of their own videos and uploads. A request in the queue names them as seen from the
queue's folder, where workers stand, so that no file that is made tells where the server keeps things.
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
from app.policy.errors import PolicyError
from app.queue.jobs import CANCELLED, DONE, ENDED, FAILED, INTERRUPTED, QUEUED, RUNNING, UPLOADS, Job, JobError, Queue
from app.registry import DEFAULT_MODEL, MODELS, model_folder, upsampler_named
from app.server.parsing import FIRST, fields_of, shown
from app.server.uploads import PICTURES as SENT_PICTURES
from app.server.uploads import Caps, UploadError, keep_upload
from dit.modes import MODES
from dit.pipeline import mode_of
from dit.request import Request, RequestError, check_values
from dit.settings import SETTINGS, Settings, read_settings
from vae.video.pixels import MediaError

MODELS_HERE = "models"  # a folder in the queue's, with links to models that are not shipped
EVERYBODY = "everybody"  # whose uploads they are where there are no tokens
FILE = re.compile(r"file-([0-9a-f]{64})")
STILLS = ("image", "mask", "keyframes")  # fields that pictures go into; a mask may be a clip as well
STATUS = {QUEUED: "queued", INTERRUPTED: "queued", RUNNING: "in_progress", DONE: "completed"}
STATUS |= {FAILED: "failed", CANCELLED: "failed"}
SPANS = {"loading the model": (1, 3), "reading the prompt": (3, 5), "dreaming": (5, 90), "writing": (90, 99)}
REFUSALS = (RequestError, UploadError, JobError, MediaError, PolicyError)  # what is said to clients as it is
LONGEST_SENTENCE = 600  # letters of it
READERS = threading.BoundedSemaphore(4)  # uploads looked through at a time


class NotFound(ValueError):
    """What is not there, or somebody else's, between which nobody can tell."""


@dataclass(frozen=True)
class Offer:
    """A model on offer: what a request calls it, and what it was trained for."""

    model: str
    settings: Settings


@dataclass(frozen=True)
class Service:
    """A queue, the models on offer by the names that clients use, the first being the default, and the rules.

    `check` is asked of every request before it is queued, and raises PolicyError where it breaks a rule. `most_jobs`
    is how many an owner may have in line.
    """

    queue: Queue
    offers: dict[str, Offer]
    check: Callable[[Request], None] = lambda request: None
    caps: Caps = field(default_factory=Caps)
    most_jobs: int | None = None

    def submit(self, found: dict[str, Any], owner: str) -> Job:
        """Queue what a client asks for, by its names for the fields; raises RequestError, UploadError, NotFound,
        Crowded, or what `check` does.
        """
        request = self.request(found, owner)
        still = mode_of(request).still
        return self.queue.submit([request], IMAGE_SUFFIXES[0] if still else ".mp4", owner=owner, most=self.most_jobs)[0]

    def request(self, found: dict[str, Any], owner: str) -> Request:
        """Return the request that a client means, checked as far as that can be done without its model."""
        fields = fields_of(self._with_picture(found, owner))
        name = fields.pop("model", next(iter(self.offers)))
        if not isinstance(name, str) or name not in self.offers:
            raise RequestError(f"model must be one of {', '.join(self.offers)}; got {shown(name)}")
        offer = self.offers[name]
        request = self._with_files(Request.from_dict(fields | {"model": offer.model}), owner)
        mode, size = mode_of(request), request.size or offer.settings.size
        if not request.prompt.strip() and not (request.moments and "moments" in mode.reads):
            raise RequestError("a prompt must say something; got none, so describe the clip in a sentence")
        for name in mode.needs:
            if not getattr(request, name):
                raise RequestError(f"{request.mode} needs {name}; got none, so send it")
        check_values(replace(request, size=size))
        known = [(columns, rows) for columns, rows, frames in offer.settings.formats if mode.still == (frames == 1)]
        if size not in known:
            sizes = ", ".join(dict.fromkeys(f"{columns}x{rows}" for columns, rows in known))
            raise RequestError(f"size must be one this model was trained for: {sizes}; got {size[0]}x{size[1]}")
        upsampler_named(request.upsample)
        self.check(request)
        return request

    def job(self, id: str, owner: str) -> Job:
        """Return an owner's job; raises NotFound for any other."""
        with suppress(JobError):
            job = self.queue.job(id)
            if job.owner == owner:
                return job
        raise NotFound(f"a video must be one of yours; there is none named {shown(id)}; see GET /v1/videos")

    def finished(self, id: str, owner: str) -> Job:
        """Return an owner's job that is done; raises RequestError for one that is not."""
        job = self.job(id, owner)
        if job.state != DONE:
            raise RequestError(f"a video must be completed for that; {id} is {self.video(job)['status']}")
        return job

    def drop(self, id: str, owner: str) -> bool:
        """Remove a video and its files, or, where it is being made, stop that; says whether it is gone."""
        self.job(id, owner)
        job = self.queue.cancel(id)
        if job.state not in ENDED:
            return False
        self.queue.forget(id)
        for path in self.queue.clips.glob(f"{job.id}*"):
            path.unlink(missing_ok=True)
        return True

    def keep(self, source: BinaryIO, owner: str) -> str:
        """Keep an upload and return its id; raises UploadError."""
        with READERS:
            return f"file-{keep_upload(source, self.shelf(owner), self.caps).stem}"

    def shelf(self, owner: str) -> Path:
        """Return the folder of an owner's uploads."""
        return self.queue.folder / UPLOADS / (owner or EVERYBODY)

    def file(self, id: str, owner: str) -> Path:
        """Return an owner's upload; raises NotFound for any other."""
        match = FILE.fullmatch(id)
        found = next(self.shelf(owner).glob(f"{match[1]}.*"), None) if match else None
        if found is None:
            raise NotFound(f"a file must be one that you sent; there is none named {shown(id)}; see POST /v1/files")
        return found

    def _with_picture(self, found: dict[str, Any], owner: str) -> dict[str, Any]:
        """Keep the picture that is spelled out in a data: address; no other address is read."""
        reference = found.get(FIRST)
        url = reference.get("image_url") if isinstance(reference, dict) else None
        if not isinstance(url, str) or not url.startswith("data:"):
            return found
        head, comma, text = url.partition(",")
        try:
            picture = base64.b64decode(text if comma and head.endswith(";base64") else "?", validate=True)
        except binascii.Error:
            raise UploadError("a data: address must hold base64; this one does not; send the picture itself") from None
        return found | {FIRST: self.keep(io.BytesIO(picture), owner)}

    def _with_files(self, request: Request, owner: str) -> Request:
        """Put paths, as seen from the queue's folder, in the place of ids."""
        path = lambda id, field: id and self.path(id, field, owner)
        fields = {name: path(getattr(request, name), name) for name in ("image", "clip", "other", "mask")}
        keyframes = request.keyframes and tuple((at, path(id, "keyframes")) for at, id in request.keyframes)
        moments = request.moments and tuple(
            replace(one, image=path(one.image, "image"), clip=path(one.clip, "clip")) for one in request.moments
        )
        return replace(request, **fields, keyframes=keyframes, moments=moments)

    def path(self, id: str, field: str, owner: str) -> str:
        """Return where the upload or the finished video of an id lies, as seen from the queue's folder."""
        try:
            found = self.file(id, owner) if FILE.fullmatch(id) else self.finished(id, owner).output
        except NotFound:
            rule = f"{field} must be an upload, or the id of a video or file of yours"
            raise RequestError(f"{rule}; got {shown(id)}: no address or path is opened") from None
        still = found.suffix in SENT_PICTURES
        if field != "mask" and still != (field in STILLS):
            needed, got = ("picture", "clip") if field in STILLS else ("clip", "picture")
            raise RequestError(f"{field} must be a {needed}; {shown(id)} is a {got}")
        return os.path.relpath(found, self.queue.folder)

    def video(self, job: Job) -> dict[str, Any]:
        """Describe a job as clients know videos; `ahead` to `note` are ours."""
        request, name = job.request, Path(job.request.model or "").name
        settings = self.offers[name].settings if name in self.offers else Settings()
        columns, rows = request.size or settings.size
        source = Path(request.clip or "")
        failed = job.state in (FAILED, CANCELLED)
        sentence = self.told(job.sentence)
        if job.state not in ENDED and (pause := self.queue.paused):
            sentence = self.told(f"the queue is paused: {pause.reason}")
        return {
            "id": job.id,
            "object": "video",
            "model": name,
            "status": STATUS[job.state],
            "progress": progress(job),
            "created_at": int(job.submitted),
            "completed_at": int(job.ended) if job.ended and not failed else None,
            "expires_at": None,
            "prompt": request.prompt,
            "seconds": "0"
            if request.mode in MODES and MODES[request.mode].still
            else f"{request.seconds or settings.seconds:g}",
            "size": f"{columns}x{rows}",
            "remixed_from_video_id": source.stem if source.parent.name == self.queue.clips.name else None,
            "error": {"code": job.state, "message": sentence or "the video was cancelled"} if failed else None,
            "ahead": job.ahead,
            "eta": job.eta,
            "phase": "cancelling" if job.cancelling else job.phase,
            "mode": request.mode,
            "seed": request.seed,
            "note": None if failed else sentence or None,
            "content": f"/v1/videos/{job.id}/content",
        }

    def told(self, sentence: str) -> str:
        """Return a worker's sentence without saying where this server keeps things."""
        for folder in (self.queue.folder, MODELS):
            sentence = sentence.replace(f"{folder}/", "")
        return re.sub(r"(?<![\w/:.])(/[\w.+@-]+)+/", "", sentence)


def progress(job: Job) -> int:
    """Return how much of a job is done, in percent."""
    low, high = (100, 100) if job.state == DONE else SPANS.get(job.phase, (0, 0))
    return round(low + (high - low) * job.step / job.steps) if job.steps else low


def offers_of(queue: Queue, models: list[str]) -> dict[str, Offer]:
    """Offer models, shipped ones by their names and others by the names of their folders, by default all that are
    shipped; a folder is linked to in the queue's folder, so that requests need not say where it is.

    Raises RequestError for what is no model, or two of one name.
    """
    shipped = sorted(
        (path.parent.name for path in MODELS.glob("*/model_index.json")), key=lambda name: name != DEFAULT_MODEL
    )
    (queue.folder / UPLOADS).mkdir(exist_ok=True)
    offers: dict[str, Offer] = {}
    for name in models or shipped:
        folder = model_folder(name).resolve()
        if folder.name in offers:
            raise RequestError(f"models on offer must have names of their own; got two named {folder.name}")
        said = folder.name
        if folder.parent != MODELS.resolve():
            link = queue.folder / MODELS_HERE / folder.name
            link.parent.mkdir(exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(folder, target_is_directory=True)
            said = f"{MODELS_HERE}/{folder.name}"
        offers[folder.name] = Offer(said, read_settings(folder / SETTINGS))
    return offers
