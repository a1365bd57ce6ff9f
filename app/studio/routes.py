"""The JSON routes of the studio's page. `app.server.auth` finds the owner; each route sees the owner's items alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from app.queue.jobs import JobError
from app.queue.previews import preview_path
from app.server.api import NOSNIFF, OwnerDep, read_body
from app.server.limits import ClientGate
from app.server.parsing import parse_json, short_repr
from app.server.service import Service
from app.studio import actions
from app.studio.gallery import GalleryItem, check_kind
from app.studio.options import studio_options
from app.studio.remake import fields_to_remake
from app.studio.views import StudioViews
from app.studio.votes import Votes
from dit.request import RequestError

UPSAMPLE_GATE = ClientGate(per_client=1, total=1)  # prompts that are upsampled at a time
MAX_LIMIT = 100  # items of a response
CACHE_FOREVER = {"Cache-Control": "private, max-age=31536000, immutable", "Vary": "Cookie, Authorization"}
REVALIDATE = {"Cache-Control": "private, no-cache", "Vary": "Cookie, Authorization"}
MARKS = {"favourite": bool, "note": str}  # fields that a client may set
PAUSE_REASON = "paused in the studio"


def studio_routes(views: StudioViews, single_user: bool) -> APIRouter:
    """Return all routes of a studio; `single_user` where there are no tokens."""
    router = APIRouter(prefix="/studio", include_in_schema=False)
    add_gallery_routes(router, views)
    add_queue_routes(router, views, single_user)
    add_generation_routes(router, views, single_user)
    add_upload_routes(router, views)
    add_vote_routes(router, Votes(views.gallery), views.service)
    return router


def add_gallery_routes(router: APIRouter, views: StudioViews) -> None:
    """Add the gallery, and the details, poster and preview of a clip."""
    gallery, queue = views.gallery, views.service.queue

    @router.get("/clips")
    def list_clips(
        request: Request,
        owner: OwnerDep,
        search: Annotated[str, Query(max_length=200)] = "",
        favourites: bool = False,
        kind: str | None = None,
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = 50,
    ):
        items = gallery.list_items(owner, search, favourites, check_kind(kind), after, limit + 1)
        counts, pause = queue.counts(), queue.paused
        content = {
            "cards": [views.card(item) for item in items[:limit]],
            "more": len(items) > limit,
            "paused": views.service.hide_paths(pause.reason) if pause else None,
            "counts": {"queued": counts["queued"] + counts["interrupted"], "running": counts["running"]},
        }
        body = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
        tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=REVALIDATE | {"ETag": tag})
        return Response(body, media_type="application/json", headers=REVALIDATE | {"ETag": tag})

    @router.get("/clips/{id}")
    async def details(id: str, owner: OwnerDep):
        return await views.service.reading.run(owner, views.details, id, owner)

    @router.patch("/clips/{id}")
    async def mark(id: str, request: Request, owner: OwnerDep):
        marks = parse_json(await request.body())
        for name, value in marks.items():
            if name not in MARKS or type(value) is not MARKS[name]:
                rule = "a clip's fields to set are favourite, true or false, and note, a text"
                raise RequestError(f"{rule}; got {short_repr(name)}: {short_repr(value)}")
        return await run_in_threadpool(lambda: views.card(gallery.mark(id, owner, **marks)))

    @router.delete("/clips/{id}")
    def remove(id: str, owner: OwnerDep):
        return {"id": id, "deleted": gallery.remove(id, owner)}

    def probed_poster(id: str, owner: str) -> Path:
        gallery.probe(gallery.item(id, owner))
        return gallery.poster_path(id)

    @router.get("/clips/{id}/poster")
    async def poster(id: str, owner: OwnerDep):
        path = await views.service.reading.run(owner, probed_poster, id, owner)
        return FileResponse(path, media_type="image/webp", headers=NOSNIFF | CACHE_FOREVER)

    @router.get("/clips/{id}/preview")
    def preview(id: str, owner: OwnerDep):
        job = views.service.job(id, owner)
        try:
            image = preview_path(queue.folder, job.id).read_bytes()
        except FileNotFoundError:
            return Response(status_code=204, headers=NOSNIFF | REVALIDATE)  # the clip was finished meanwhile
        return Response(image, media_type="image/webp", headers=NOSNIFF | CACHE_FOREVER)


def add_queue_routes(router: APIRouter, views: StudioViews, single_user: bool) -> None:
    """Add the routes that cancel, retry and reorder jobs, and pause the queue."""
    service, queue = views.service, views.service.queue

    def card(id: str, owner: str) -> dict[str, Any]:
        return views.card(views.gallery.item(id, owner))

    @router.post("/clips/{id}/cancel")
    def cancel(id: str, owner: OwnerDep):
        queue.cancel(service.job(id, owner).id)
        return card(id, owner)

    @router.post("/clips/{id}/retry")
    def retry(id: str, owner: OwnerDep):
        queue.retry(service.job(id, owner).id)
        return card(id, owner)

    @router.post("/clips/{id}/move")
    async def move(id: str, request: Request, owner: OwnerDep):
        ahead = parse_json(await request.body()).get("ahead")
        if type(ahead) is not int or not 0 <= ahead < 2**31:
            raise RequestError(f"ahead must be the number of jobs before it, from 0; got {short_repr(ahead)}")

        def move_job() -> dict[str, Any]:
            queue.move(service.job(id, owner).id, ahead, owner=None if single_user else owner)
            return card(id, owner)

        return await run_in_threadpool(move_job)

    def check_single_user() -> None:
        if not single_user:
            raise JobError("a shared queue is paused on the server, with longtake jobs FOLDER --pause REASON")

    @router.post("/pause")
    async def pause(request: Request, owner: OwnerDep):
        body = await request.body()
        reason = parse_json(body).get("reason") if body.strip() else None
        if not isinstance(reason, str | None) or len(reason or "") > 200:
            raise RequestError(f"reason must be a text of at most 200 characters; got {short_repr(reason)}")
        check_single_user()
        await run_in_threadpool(queue.pause, (reason or "").strip() or PAUSE_REASON)
        return {"paused": (reason or "").strip() or PAUSE_REASON}

    @router.post("/resume")
    def resume(owner: OwnerDep):
        check_single_user()
        queue.resume()
        return {"paused": None}


def add_generation_routes(router: APIRouter, views: StudioViews, single_user: bool) -> None:
    """Add the options of the form, estimates, upsampling, storyboards, and the route that queues clips."""
    service, gallery = views.service, views.gallery

    @router.get("/options")
    def options(owner: OwnerDep):
        return studio_options(service, single_user)

    @router.post("/generate")
    async def generate(request: Request, owner: OwnerDep):
        fields = await read_body(request, service, owner, (actions.VARIATIONS,))

        def submit() -> list[dict[str, Any]]:
            return [views.card(GalleryItem(job)) for job in actions.submit(service, fields, owner)]

        return {"cards": await service.estimating.run(owner, submit)}

    @router.post("/estimate")
    async def estimate(request: Request, owner: OwnerDep):
        fields = await read_body(request, service, owner, (actions.VARIATIONS,))
        return await service.estimating.run(owner, actions.estimate, service, views.forecast, fields, owner)

    @router.post("/upsample")
    async def upsample(request: Request, owner: OwnerDep):
        body = parse_json(await request.body())
        args = (body.get("prompt"), body.get("seed", 0), body.get("still", False), body.get("model"))
        return await UPSAMPLE_GATE.run(owner, actions.upsample_prompt, service, *args)

    @router.post("/words")
    async def words(request: Request, owner: OwnerDep):
        return await run_in_threadpool(actions.unlearned_words, service, parse_json(await request.body()))

    @router.post("/storyboard")
    async def storyboard(request: Request, owner: OwnerDep):
        text = parse_json(await request.body()).get("text")
        fields, missing = await service.estimating.run(owner, actions.storyboard_from_yaml, text, gallery, owner)
        return {"request": fields, "missing": missing}

    @router.post("/storyboard/text")
    async def storyboard_text(request: Request, owner: OwnerDep):
        fields = parse_json(await request.body()).get("request")
        return {"text": await service.estimating.run(owner, actions.storyboard_to_yaml, fields)}


def add_upload_routes(router: APIRouter, views: StudioViews) -> None:
    """Add the route that stores an upload and returns the request in its metadata."""
    service, gallery = views.service, views.gallery

    def describe_upload(id: str, owner: str) -> dict[str, Any]:
        item = gallery.probe(gallery.item(id, owner))
        assert item.info, "probe sets it"
        fields, missing = None, ["the file carries no request"]
        if item.info.request:
            fields, missing = fields_to_remake(item.info.request, gallery, owner)
        return {"card": views.card(item), "request": fields, "missing": missing}

    @router.post("/read")
    async def store_upload(request: Request, owner: OwnerDep):
        async with request.form(max_files=1, max_fields=10) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise RequestError("a form must have the file in its part named file; got none")
            id = await service.reading.run(owner, service.store_upload, file.file, owner)
        return await service.reading.run(owner, describe_upload, id, owner)


def add_vote_routes(router: APIRouter, votes: Votes, service: Service) -> None:
    """Add the routes that list and store votes."""

    @router.get("/votes")
    def list_votes(owner: OwnerDep):
        return votes.of_owner(owner)

    @router.post("/votes")
    async def add_vote(request: Request, owner: OwnerDep):
        fields = parse_json(await request.body())
        await service.reading.run(owner, votes.add, fields, owner)
        return await run_in_threadpool(votes.of_owner, owner)
