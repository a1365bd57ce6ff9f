"""The HTTP server's routes: videos as the `openai` client asks for them, uploads, and the models on offer."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Query, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, RedirectResponse
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from app.policy.errors import PolicyError
from app.queue.jobs import Crowded
from app.server.auth import Gate, answer
from app.server.mcp import Screen, add_tools
from app.server.parsing import CLIP, SENDABLE, read_form, read_json, shown
from app.server.schemas import ABOUT, EXAMPLES, FAILURES, Model, Models, Removed, Upload, Video, Videos, body
from app.server.service import LONGEST_SENTENCE, REFUSALS, NotFound, Service
from dit.request import RequestError
from vae.video.pixels import contact_sheet, to_uint8
from vae.video.sandbox import read_sampled_frames

MOST_FILES, MOST_FIELDS = 6, 2000  # of a form
GLIMPSE_SIDE, GLIMPSES = 256, 6  # pixels and frames of a spritesheet
POLL_MS, MOST_POLL_MS = 500, 5000  # how soon to ask again: the later the more are ahead
SAFE = {"X-Content-Type-Options": "nosniff"}


def server(
    service: Service, tokens: Sequence[str] = (), add_rooms: Callable[[FastAPI], None] | None = None, sign_in: str = ""
) -> FastAPI:
    """Return the ASGI app that serves a queue to whoever has one of the tokens, or, with none, to this machine.

    `add_rooms` adds routes before those that all servers have; `sign_in` is the page where browsers bring a token.
    """
    app = FastAPIOffline(
        redoc_url=None,
        title="Longtake",
        version="1",
        description=ABOUT,
        responses=FAILURES,
        swagger_ui_parameters={"validatorUrl": None},  # which is elsewhere
    )
    app.state.service = service
    add_answers_to_errors(app)
    if add_rooms:
        add_rooms(app)
    add_videos(app)
    add_uploads(app)
    add_models(app)
    add_tools(app, service)
    app.add_middleware(Screen)
    app.add_middleware(Gate, tokens=tokens, sign_in=sign_in)  # the outermost
    return app


def add_answers_to_errors(app: FastAPI) -> None:
    """Answer every error with one sentence in the shape that clients know."""

    def refused(request: Request, error: Exception) -> Response:
        code = "content_policy_violation" if isinstance(error, PolicyError) else "invalid_value"
        return answer(400, shown(error, LONGEST_SENTENCE), code)

    for kind in REFUSALS:
        app.add_exception_handler(kind, refused)

    @app.exception_handler(Crowded)
    def crowded(request: Request, error: Crowded) -> Response:
        return answer(429, shown(error, LONGEST_SENTENCE), "rate_limit_exceeded")

    @app.exception_handler(NotFound)
    def missing(request: Request, error: NotFound) -> Response:
        return answer(404, shown(error, LONGEST_SENTENCE), "not_found")

    @app.exception_handler(HTTPException)
    def other(request: Request, error: HTTPException) -> Response:
        return answer(error.status_code, f"{request.method} {shown(request.url.path)}: {error.detail}")

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        name = str(first["loc"][-1])
        return answer(400, f"{name}: {first['msg']}; got {shown(first.get('input'))}", "invalid_value", name)

    @app.exception_handler(ClientDisconnect)
    def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=499)  # to nobody

    @app.exception_handler(Exception)
    def failed(request: Request, error: Exception) -> Response:
        return answer(500, "the server failed; its log says more", "server_error")


def _service(request: Request) -> Service:
    return request.app.state.service


def _owner(request: Request, token: Annotated[Any, Security(HTTPBearer(auto_error=False))]) -> str:
    """The gate has looked at the token; it is named here so that the page has a field for it."""
    return request.state.owner


Here, Owner = Annotated[Service, Depends(_service)], Annotated[str, Depends(_owner)]


async def asked(request: Request, service: Service, owner: str) -> dict[str, Any]:
    """Read a body: JSON, or a form whose files are kept and named by their ids."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("multipart/form-data", "application/x-www-form-urlencoded"):
        return read_json(await request.body())
    form = await request.form(max_files=MOST_FILES, max_fields=MOST_FIELDS)
    try:
        parts = form.multi_items()
        files = [(name, value) for name, value in parts if isinstance(value, UploadFile)]
        found = read_form((name, value) for name, value in parts if isinstance(value, str))
        for name, file in files:
            if name not in SENDABLE or name in found:
                raise RequestError(f"a form's files are {', '.join(SENDABLE)}, each once; got {shown(name)}")
            found[name] = await run_in_threadpool(service.keep, file.file, owner)
        return found
    finally:
        await form.close()


async def submitted(request: Request, service: Service, owner: str, **fixed: Any) -> dict[str, Any]:
    """Queue what a body asks for; `fixed` are the fields that the route itself says."""
    found = await asked(request, service, owner)
    return await run_in_threadpool(lambda: service.video(service.submit(found | fixed, owner)))


def add_videos(app: FastAPI) -> None:
    """Add the routes of videos."""

    @app.post("/v1/videos", response_model=Video, tags=["videos"], openapi_extra=body((), EXAMPLES))
    async def create(request: Request, service: Here, owner: Owner):
        """Ask for a video."""
        return await submitted(request, service, owner)

    changed = {"changed": {"value": {"prompt": "a large green ball bounces", "video": {"id": "VIDEO"}}}}
    longer = {"longer": {"value": {"prompt": "the ball bounces on", "seconds": "2", "video": {"id": "VIDEO"}}}}

    @app.post(
        "/v1/videos/edits", response_model=Video, tags=["videos"], openapi_extra=body(("prompt", "video"), changed)
    )
    async def edit(request: Request, service: Here, owner: Owner):
        """Ask for a video again, altered by new words."""
        return await submitted(request, service, owner, mode="edit")

    @app.post(
        "/v1/videos/extensions", response_model=Video, tags=["videos"], openapi_extra=body(("prompt", "video"), longer)
    )
    async def extend(request: Request, service: Here, owner: Owner):
        """Ask for more of a video; seconds are those to add."""
        return await submitted(request, service, owner, mode="extend")

    @app.post(
        "/v1/videos/{video_id}/remix",
        response_model=Video,
        tags=["videos"],
        openapi_extra=body(("prompt",), {"words": {"value": {"prompt": "a large green ball bounces"}}}, ()),
    )
    async def remix(video_id: str, request: Request, service: Here, owner: Owner):
        """Ask for a video told in other words."""
        await run_in_threadpool(service.finished, video_id, owner)
        return await submitted(request, service, owner, mode="remix", **{CLIP: video_id})

    @app.get("/v1/videos", response_model=Videos, tags=["videos"])
    def listed(
        service: Here,
        owner: Owner,
        after: Annotated[str | None, Query(description="the last id of the page before")] = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
    ):
        """List your videos, the latest first."""
        if after:
            service.job(after, owner)
        jobs = service.queue.jobs(owner=owner, most=limit + 1, after=after, earliest=order == "asc")
        data = [service.video(job) for job in jobs[:limit]]
        ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {}
        return {"data": data, "has_more": len(jobs) > limit, **ends}

    @app.get("/v1/videos/{video_id}", response_model=Video, tags=["videos"])
    def retrieve(video_id: str, service: Here, owner: Owner, response: Response):
        """Say how far a video is."""
        found = service.video(service.job(video_id, owner))
        wait = min(MOST_POLL_MS, POLL_MS + 100 * (found["ahead"] or 0))
        response.headers["openai-poll-after-ms"] = str(wait)
        return found

    @app.delete("/v1/videos/{video_id}", response_model=Removed, tags=["videos"])
    def delete(video_id: str, service: Here, owner: Owner):
        """Remove a video; one that is being made is stopped."""
        return {"id": video_id, "deleted": service.drop(video_id, owner)}

    @app.get(
        "/v1/videos/{video_id}/content",
        tags=["videos"],
        response_class=Response,
        responses={200: {"description": "The file.", "content": {"video/mp4": {}, "image/webp": {}, "image/png": {}}}},
    )
    def content(
        video_id: str,
        service: Here,
        owner: Owner,
        variant: Literal["video", "thumbnail", "spritesheet"] = "video",
    ):
        """Take the file of a video, or a picture of it: its first frame, or six frames in a row."""
        path = service.finished(video_id, owner).output
        if not path.is_file():
            raise NotFound(f"a video must have its file; that of {video_id} was removed by hand; make it again")
        if variant == "video":
            return FileResponse(path, filename=path.name, headers=SAFE)
        return Response(look(path, variant), media_type="image/webp", headers=SAFE)


def look(path: Path, variant: str) -> bytes:
    """Return a picture of a clip, as WebP: its first frame, or a row of frames."""
    seen = read_sampled_frames(path, 1 if variant == "thumbnail" else GLIMPSES, GLIMPSE_SIDE)
    pixels = to_uint8(seen[:, 0]) if variant == "thumbnail" else contact_sheet([seen], columns=GLIMPSES, scale=1)
    picture = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(picture, "WEBP")
    return picture.getvalue()


def add_uploads(app: FastAPI) -> None:
    """Add the routes of files that are sent once and named often."""

    def described(path: Path) -> dict[str, Any]:
        status = path.stat()
        told = {"bytes": status.st_size, "created_at": int(status.st_mtime), "filename": path.name}
        return {"id": f"file-{path.stem}"} | told

    file = {"type": "string", "format": "binary"}
    schema = {"type": "object", "required": ["file"], "properties": {"file": file, "purpose": {"type": "string"}}}
    form = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}

    @app.post("/v1/files", response_model=Upload, tags=["files"], openapi_extra=form)
    async def send(request: Request, service: Here, owner: Owner):
        """Send a picture or a clip, to name it in requests."""
        async with request.form(max_files=1, max_fields=10) as sent:
            file = sent.get("file")
            if not isinstance(file, UploadFile):
                raise RequestError("a form must have the file in its part named file; got none")
            id = await run_in_threadpool(service.keep, file.file, owner)
        return described(service.file(id, owner))

    @app.get("/v1/files/{file_id}", response_model=Upload, tags=["files"])
    def sent(file_id: str, service: Here, owner: Owner):
        """Describe a file that you sent."""
        return described(service.file(file_id, owner))

    @app.get(
        "/v1/files/{file_id}/content",
        tags=["files"],
        response_class=Response,
        responses={200: {"description": "The file.", "content": {"video/mp4": {}, "image/png": {}}}},
    )
    def sent_content(file_id: str, service: Here, owner: Owner):
        """Take a file that you sent."""
        path = service.file(file_id, owner)
        return FileResponse(path, filename=path.name, headers=SAFE)

    @app.delete("/v1/files/{file_id}", response_model=Removed, tags=["files"])
    def remove(file_id: str, service: Here, owner: Owner):
        """Remove a file that you sent."""
        service.file(file_id, owner).unlink(missing_ok=True)
        return {"id": file_id, "object": "file", "deleted": True}


def add_models(app: FastAPI) -> None:
    """Add the list of models on offer, and the way to the page that explains all this."""

    @app.get("/v1/models", response_model=Models, tags=["models"])
    def models(service: Here, owner: Owner):
        """List the models on offer."""
        return {"data": [Model(id=name) for name in service.offers]}

    @app.get("/", include_in_schema=False)
    def page():
        return RedirectResponse("/docs")
