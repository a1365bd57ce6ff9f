"""The HTTP API: the video routes of the `openai` client, uploads and models."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from anyio import to_thread
from fastapi import Depends, FastAPI, Query, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, RedirectResponse
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from PIL import Image
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from app.policy.errors import PolicyError
from app.queue.jobs import QueueFull
from app.server.auth import AuthMiddleware, error_response
from app.server.downloads import download_name
from app.server.idempotency import HEADER, IdempotencyKey, KeyReused
from app.server.mcp import AllowlistMiddleware, add_tools
from app.server.parsing import CLIP_ALIAS, FILE_FIELDS, parse_form, parse_json, short_repr
from app.server.schemas import (
    DESCRIPTION,
    ERROR_RESPONSES,
    EXAMPLES,
    PURPOSE,
    Deleted,
    FileList,
    FileObject,
    Model,
    ModelList,
    Video,
    VideoList,
    body_schema,
)
from app.server.service import CLIENT_ERRORS, MAX_MESSAGE_CHARS, NotFound, Service
from app.server.storage import QuotaExceeded, list_files
from dit.request import RequestError
from vae.video.pixels import contact_sheet, to_uint8
from vae.video.sandbox import read_sampled_frames

MAX_FORM_FILES, MAX_FORM_FIELDS = 6, 2000
SPRITE_SIDE, SPRITE_FRAMES = 256, 6  # pixels of a spritesheet's frame, and its frames
POLL_MS, MAX_POLL_MS = 500, 5000  # how soon to poll again: later, the more jobs are ahead
NOSNIFF = {"X-Content-Type-Options": "nosniff"}


def create_app(
    service: Service,
    tokens: Sequence[str] = (),
    add_routes: Callable[[FastAPI], None] | None = None,
    login_path: str = "",
) -> FastAPI:
    """Create the ASGI app that serves a queue to holders of the tokens, or, without tokens, to this machine only.

    `add_routes` adds routes that take precedence over the API's; `login_path` is the page where browsers enter a token.
    """
    app = FastAPIOffline(
        redoc_url=None,
        title="Longtake",
        version="1",
        description=DESCRIPTION,
        responses=ERROR_RESPONSES,
        swagger_ui_parameters={"validatorUrl": None},  # it is on another site
    )
    app.state.service = service
    add_error_handlers(app)
    if add_routes:
        add_routes(app)
    add_videos(app)
    add_uploads(app)
    add_models(app)
    add_tools(app, service)
    app.add_middleware(AllowlistMiddleware)
    app.add_middleware(AuthMiddleware, tokens=tokens, login_path=login_path)  # added last, so outermost
    return app


def add_error_handlers(app: FastAPI) -> None:
    """Answer every error with one sentence, in the format of the OpenAI API."""

    def bad_request(request: Request, error: Exception) -> Response:
        code = "content_policy_violation" if isinstance(error, PolicyError) else "invalid_value"
        return error_response(400, short_repr(error, MAX_MESSAGE_CHARS), code)

    for kind in CLIENT_ERRORS:
        app.add_exception_handler(kind, bad_request)

    @app.exception_handler(QueueFull)
    def queue_full(request: Request, error: QueueFull) -> Response:
        return error_response(429, short_repr(error, MAX_MESSAGE_CHARS), "rate_limit_exceeded")

    @app.exception_handler(QuotaExceeded)
    def no_room(request: Request, error: QuotaExceeded) -> Response:
        return error_response(429, str(error), "insufficient_quota")

    @app.exception_handler(KeyReused)
    def key_reused(request: Request, error: KeyReused) -> Response:
        return error_response(422, str(error), "idempotency_key_reused")

    @app.exception_handler(NotFound)
    def not_found(request: Request, error: NotFound) -> Response:
        return error_response(404, short_repr(error, MAX_MESSAGE_CHARS), "not_found")

    @app.exception_handler(HTTPException)
    def http_error(request: Request, error: HTTPException) -> Response:
        return error_response(error.status_code, f"{request.method} {short_repr(request.url.path)}: {error.detail}")

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        name = str(first["loc"][-1])
        message = f"{name}: {first['msg']}; got {short_repr(first.get('input'))}"
        return error_response(400, message, "invalid_value", name)

    @app.exception_handler(ClientDisconnect)
    def disconnected(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=499)  # nobody receives it

    @app.exception_handler(Exception)
    def internal_error(request: Request, error: Exception) -> Response:
        return error_response(500, "the server failed; its log says more", "server_error")


def _service(request: Request) -> Service:
    return request.app.state.service


def _owner(request: Request, token: Annotated[Any, Security(HTTPBearer(auto_error=False))]) -> str:
    """Return the owner that the middleware found; `token` is declared so that the docs page has a field for it."""
    return request.state.owner


ServiceDep = Annotated[Service, Depends(_service)]
OwnerDep = Annotated[str, Depends(_owner)]


async def read_body(
    request: Request, service: Service, owner: str, besides: tuple[str, ...] = (), **fixed: Any
) -> dict[str, Any]:
    """Read the fields of a body: JSON, or a form, whose files are stored and replaced by their ids.

    The fields of a form are checked first, with the `fixed` ones of the route, but for those `besides` a Request's.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("multipart/form-data", "application/x-www-form-urlencoded"):
        return parse_json(await request.body())
    form = await request.form(max_files=MAX_FORM_FILES, max_fields=MAX_FORM_FIELDS)
    try:
        parts = form.multi_items()
        files = [(name, value) for name, value in parts if isinstance(value, UploadFile)]
        found, names = parse_form((name, value) for name, value in parts if isinstance(value, str)), set[str]()
        for name, _ in files:
            if name not in FILE_FIELDS or name in found or name in names:
                raise RequestError(f"a form's files are {', '.join(FILE_FIELDS)}, each once; got {short_repr(name)}")
            names.add(name)
        if files:
            fields = {name: value for name, value in (fixed | found).items() if name not in besides}
            await service.estimating.run(owner, service.check_fields, fields, owner, names)
        for name, file in files:
            found[name] = await service.reading.run(owner, service.store_upload, file.file, owner)
        return found
    finally:
        await form.close()


async def submit_body(request: Request, service: Service, owner: str, **fixed: Any) -> dict[str, Any]:
    """Queue the request in a body and return its video object; `fixed` fields come from the route."""
    found = await read_body(request, service, owner, **fixed) | fixed
    header = request.headers.get(HEADER)
    key = None if header is None else IdempotencyKey.of(owner, header, request.url.path, found)
    return await service.estimating.run(owner, lambda: service.video(service.submit(found, owner, key)))


def add_videos(app: FastAPI) -> None:
    """Add the routes of videos."""

    @app.post("/v1/videos", response_model=Video, tags=["videos"], openapi_extra=body_schema((), EXAMPLES))
    async def create(request: Request, service: ServiceDep, owner: OwnerDep):
        """Queue a video."""
        return await submit_body(request, service, owner)

    edit_example = {"edit": {"value": {"prompt": "a large green ball bounces", "video": {"id": "VIDEO"}}}}
    extension_example = {
        "extension": {"value": {"prompt": "the ball bounces on", "seconds": "2", "video": {"id": "VIDEO"}}}
    }

    @app.post(
        "/v1/videos/edits",
        response_model=Video,
        tags=["videos"],
        openapi_extra=body_schema(("prompt", "video"), edit_example),
    )
    async def edit(request: Request, service: ServiceDep, owner: OwnerDep):
        """Queue an edit of a video with another prompt (SDEdit)."""
        return await submit_body(request, service, owner, mode="edit")

    @app.post(
        "/v1/videos/extensions",
        response_model=Video,
        tags=["videos"],
        openapi_extra=body_schema(("prompt", "video"), extension_example),
    )
    async def extend(request: Request, service: ServiceDep, owner: OwnerDep):
        """Queue an extension of a video; seconds are the seconds to add, and in the answer those of the whole."""
        return await submit_body(request, service, owner, mode="extend")

    @app.post(
        "/v1/videos/{video_id}/remix",
        response_model=Video,
        tags=["videos"],
        openapi_extra=body_schema(("prompt",), {"prompt": {"value": {"prompt": "a large green ball bounces"}}}, ()),
    )
    async def remix(video_id: str, request: Request, service: ServiceDep, owner: OwnerDep):
        """Queue a remix of a video: an edit of high strength, which keeps little but the layout."""
        await service.estimating.run(owner, service.completed_job, video_id, owner)
        return await submit_body(request, service, owner, mode="remix", **{CLIP_ALIAS: video_id})

    @app.get("/v1/videos", response_model=VideoList, tags=["videos"])
    def list_videos(
        service: ServiceDep,
        owner: OwnerDep,
        after: Annotated[str | None, Query(description="the last id of the previous page")] = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
    ):
        """List your videos, newest first."""
        if after:
            service.job(after, owner)
        jobs = service.queue.jobs(owner=owner, limit=limit + 1, after=after, oldest_first=order == "asc")
        data = [service.video(job) for job in jobs[:limit]]
        ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {}
        return {"data": data, "has_more": len(jobs) > limit, **ends}

    @app.get("/v1/videos/{video_id}", response_model=Video, tags=["videos"])
    def retrieve(video_id: str, service: ServiceDep, owner: OwnerDep, response: Response):
        """Return the state and progress of a video."""
        video = service.video(service.job(video_id, owner))
        poll_ms = min(MAX_POLL_MS, POLL_MS + 100 * (video["ahead"] or 0))
        response.headers["openai-poll-after-ms"] = str(poll_ms)
        return video

    @app.delete("/v1/videos/{video_id}", response_model=Deleted, tags=["videos"])
    def delete(video_id: str, service: ServiceDep, owner: OwnerDep):
        """Delete a video; one that is being generated is cancelled."""
        return {"id": video_id, "deleted": service.delete(video_id, owner)}

    @app.get(
        "/v1/videos/{video_id}/content",
        tags=["videos"],
        response_class=Response,
        responses={200: {"description": "The file.", "content": {"video/mp4": {}, "image/webp": {}, "image/png": {}}}},
    )
    async def content(
        video_id: str,
        service: ServiceDep,
        owner: OwnerDep,
        variant: Literal["video", "thumbnail", "spritesheet"] = "video",
    ):
        """Download the file of a video, its thumbnail, or a spritesheet of six frames."""

        def file_of() -> tuple[Path, str]:
            job = service.completed_job(video_id, owner)
            if not job.output.is_file():
                raise NotFound(f"a video must have its file; that of {video_id} was removed by hand; make it again")
            return job.output, download_name(job.request, job.output.suffix)

        path, name = await to_thread.run_sync(file_of)
        if variant == "video":
            return FileResponse(path, filename=name, headers=NOSNIFF)
        image = await service.reading.run(owner, still_image, path, variant)
        return Response(image, media_type="image/webp", headers=NOSNIFF)


def still_image(path: Path, variant: str) -> bytes:
    """Return the thumbnail (first frame) or spritesheet (a row of frames) of a clip, as WebP."""
    frames = read_sampled_frames(path, 1 if variant == "thumbnail" else SPRITE_FRAMES, SPRITE_SIDE)
    if variant == "thumbnail":
        pixels = to_uint8(frames[:, 0])
    else:
        pixels = contact_sheet([frames], columns=SPRITE_FRAMES, scale=1)
    image = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(image, "WEBP")
    return image.getvalue()


def add_uploads(app: FastAPI) -> None:
    """Add the routes of uploads, which later requests name by their ids."""

    def file_object(path: Path) -> dict[str, Any]:
        status = path.stat()
        fields = {"bytes": status.st_size, "created_at": int(status.st_mtime), "filename": path.name}
        return {"id": f"file-{path.stem}"} | fields

    file = {"type": "string", "format": "binary"}
    schema = {"type": "object", "required": ["file"], "properties": {"file": file, "purpose": {"type": "string"}}}
    form = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}

    @app.post("/v1/files", response_model=FileObject, tags=["files"], openapi_extra=form)
    async def upload(request: Request, service: ServiceDep, owner: OwnerDep):
        """Upload an image or a clip, to name it in requests."""
        async with request.form(max_files=1, max_fields=10) as fields:
            file = fields.get("file")
            if not isinstance(file, UploadFile):
                raise RequestError("a form must have the file in its part named file; got none")
            id = await service.reading.run(owner, service.store_upload, file.file, owner)
        return file_object(service.upload_path(id, owner))

    @app.get("/v1/files", response_model=FileList, tags=["files"])
    def list_uploads(
        service: ServiceDep,
        owner: OwnerDep,
        after: Annotated[str | None, Query(description="the last id of the previous page")] = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
        order: Literal["asc", "desc"] = "desc",
        purpose: Annotated[str | None, Query(description="of the files to list")] = None,
    ):
        """List the files that you uploaded, newest first."""
        paths = list_files(service.upload_folder(owner)) if purpose in (None, PURPOSE) else []
        paths = paths if order == "desc" else paths[::-1]
        if after:
            paths = paths[paths.index(service.upload_path(after, owner)) + 1 :]
        with suppress(FileNotFoundError):  # where one was deleted meanwhile, the list ends before it
            data = list[dict[str, Any]]()
            for path in paths[:limit]:
                data.append(file_object(path))
        ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {}
        return {"data": data, "has_more": len(paths) > limit, **ends}

    @app.get("/v1/files/{file_id}", response_model=FileObject, tags=["files"])
    def retrieve_file(file_id: str, service: ServiceDep, owner: OwnerDep):
        """Describe a file that you uploaded."""
        return file_object(service.upload_path(file_id, owner))

    @app.get(
        "/v1/files/{file_id}/content",
        tags=["files"],
        response_class=Response,
        responses={200: {"description": "The file.", "content": {"video/mp4": {}, "image/png": {}}}},
    )
    def file_content(file_id: str, service: ServiceDep, owner: OwnerDep):
        """Download a file that you uploaded."""
        path = service.upload_path(file_id, owner)
        return FileResponse(path, filename=path.name, headers=NOSNIFF)

    @app.delete("/v1/files/{file_id}", response_model=Deleted, tags=["files"])
    def delete_file(file_id: str, service: ServiceDep, owner: OwnerDep):
        """Delete a file that you uploaded."""
        service.delete_upload(file_id, owner)
        return {"id": file_id, "object": "file", "deleted": True}


def add_models(app: FastAPI) -> None:
    """Add the list of models, and the redirect from / to the docs."""

    @app.get("/v1/models", response_model=ModelList, tags=["models"])
    def list_models(service: ServiceDep, owner: OwnerDep):
        """List the models."""
        return {"data": [Model(id=name) for name in service.models]}

    @app.get("/v1/models/{model}", response_model=Model, tags=["models"])
    def retrieve_model(model: str, service: ServiceDep, owner: OwnerDep):
        """Describe a model."""
        if model not in service.models:
            raise NotFound(f"model must be one of {', '.join(service.models)}; got {short_repr(model)}")
        return Model(id=model)

    @app.get("/", include_in_schema=False)
    def redirect_to_docs():
        return RedirectResponse("/docs")
