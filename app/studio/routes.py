"""The studio's routes: JSON for its page. Who asks was told by the gate, and sees and moves what is theirs alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from app.queue.jobs import JobError
from app.queue.previews import preview_path
from app.server.api import NOSNIFF, OwnerDep, read_body
from app.server.parsing import parse_json, short_repr
from app.studio import actions as ask
from app.studio.gallery import Item, check_kind
from app.studio.options import offered
from app.studio.remake import again
from app.studio.views import Cards
from app.studio.votes import Ballots
from dit.request import Request as Clip
from dit.request import RequestError

READERS = CapacityLimiter(4)  # files that are read at a time; who waits for that keeps no thread
WRITER = CapacityLimiter(1)  # prompts that are written out at a time
MOST_LISTED = 100
FOREVER = {"Cache-Control": "private, max-age=31536000, immutable", "Vary": "Cookie, Authorization"}
FRESH = {"Cache-Control": "private, no-cache", "Vary": "Cookie, Authorization"}
MARKS = {"favourite": bool, "note": str}  # what may be said of a clip
PAUSED = "paused in the studio"


def routes(cards: Cards, alone: bool) -> APIRouter:
    """Return all routes of a studio; `alone` where there are no tokens, and one person has it to themselves."""
    router = APIRouter(prefix="/studio", include_in_schema=False)
    add_gallery(router, cards)
    add_line(router, cards, alone)
    add_asking(router, cards, alone)
    add_reading(router, cards)
    add_votes(router, Ballots(cards.shelf))
    return router


async def read(work: Callable[..., Any], *args: Any) -> Any:
    """Do what reads a file in a child, a few at a time."""
    return await to_thread.run_sync(work, *args, limiter=READERS)


def add_gallery(router: APIRouter, cards: Cards) -> None:
    """Add the gallery, and the details, poster and preview of a clip."""
    shelf, queue = cards.shelf, cards.service.queue

    @router.get("/clips")
    def listed(
        request: Request,
        owner: OwnerDep,
        search: Annotated[str, Query(max_length=200)] = "",
        favourites: bool = False,
        kind: str | None = None,
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=MOST_LISTED)] = 50,
    ):
        items = shelf.items(owner, search, favourites, check_kind(kind), after, limit + 1)
        counts, pause = queue.counts(), queue.paused
        found = {
            "cards": [cards.card(item) for item in items[:limit]],
            "more": len(items) > limit,
            "paused": cards.service.hide_paths(pause.reason) if pause else None,
            "counts": {"queued": counts["queued"] + counts["interrupted"], "running": counts["running"]},
        }
        body = json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode()
        tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=FRESH | {"ETag": tag})
        return Response(body, media_type="application/json", headers=FRESH | {"ETag": tag})

    @router.get("/clips/{id}")
    async def details(id: str, owner: OwnerDep):
        return await read(cards.details, id, owner)

    @router.patch("/clips/{id}")
    async def mark(id: str, request: Request, owner: OwnerDep):
        found = parse_json(await request.body())
        for name, value in found.items():
            if name not in MARKS or type(value) is not MARKS[name]:
                rule = "of a clip one may say favourite, true or false, and note, a text"
                raise RequestError(f"{rule}; got {short_repr(name)}: {short_repr(value)}")
        return await run_in_threadpool(lambda: cards.card(shelf.mark(id, owner, **found)))

    @router.delete("/clips/{id}")
    def remove(id: str, owner: OwnerDep):
        return {"id": id, "deleted": shelf.drop(id, owner)}

    def poster_of(id: str, owner: str) -> Path:
        shelf.learn(shelf.item(id, owner))
        return shelf.poster_of(id)

    @router.get("/clips/{id}/poster")
    async def poster(id: str, owner: OwnerDep):
        return FileResponse(await read(poster_of, id, owner), media_type="image/webp", headers=NOSNIFF | FOREVER)

    @router.get("/clips/{id}/preview")
    def preview(id: str, owner: OwnerDep):
        job = cards.service.job(id, owner)
        try:
            picture = preview_path(queue.folder, job.id).read_bytes()
        except FileNotFoundError:
            return Response(status_code=204, headers=NOSNIFF | FRESH)  # the clip was finished meanwhile
        return Response(picture, media_type="image/webp", headers=NOSNIFF | FOREVER)


def add_line(router: APIRouter, cards: Cards, alone: bool) -> None:
    """Add what is done with clips that wait or are being made."""
    service, queue = cards.service, cards.service.queue

    def card(id: str, owner: str) -> dict[str, Any]:
        return cards.card(cards.shelf.item(id, owner))

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
            raise RequestError(f"ahead must be how many are to come before it, from 0; got {short_repr(ahead)}")

        def moved() -> dict[str, Any]:
            queue.move(service.job(id, owner).id, ahead, owner=None if alone else owner)
            return card(id, owner)

        return await run_in_threadpool(moved)

    def check_alone() -> None:
        if not alone:
            raise JobError(
                "a queue that several share is paused by whoever runs it: longtake jobs FOLDER --pause REASON"
            )

    @router.post("/pause")
    async def pause(request: Request, owner: OwnerDep):
        body = await request.body()
        reason = parse_json(body).get("reason") if body.strip() else None
        if not isinstance(reason, str | None) or len(reason or "") > 200:
            raise RequestError(f"reason must be a text of at most 200 letters; got {short_repr(reason)}")
        check_alone()
        await run_in_threadpool(queue.pause, (reason or "").strip() or PAUSED)
        return {"paused": (reason or "").strip() or PAUSED}

    @router.post("/resume")
    def resume(owner: OwnerDep):
        check_alone()
        queue.resume()
        return {"paused": None}


def add_asking(router: APIRouter, cards: Cards, alone: bool) -> None:
    """Add what there is to ask for, what that would take, and the asking."""
    service, shelf = cards.service, cards.shelf

    @router.get("/offer")
    def offer(owner: OwnerDep):
        return offered(service, alone)

    @router.post("/ask")
    async def submit(request: Request, owner: OwnerDep):
        found = await read_body(request, service, owner)

        def queued() -> list[dict[str, Any]]:
            return [cards.card(Item(job)) for job in ask.submit(service, found, owner)]

        return {"cards": await run_in_threadpool(queued)}

    @router.post("/estimate")
    async def estimate(request: Request, owner: OwnerDep):
        found = await read_body(request, service, owner)
        return await read(ask.estimate, service, cards.forecast, found, owner)

    @router.post("/upsample")
    async def upsample(request: Request, owner: OwnerDep):
        found = parse_json(await request.body())
        given = (found.get("prompt"), found.get("seed", 0), found.get("still", False), found.get("model"))
        written = await to_thread.run_sync(ask.written_out, service, *given, limiter=WRITER)
        return {"upsampled_prompt": written}

    @router.post("/storyboard")
    async def board(request: Request, owner: OwnerDep):
        text = parse_json(await request.body()).get("text")
        fields, missing = await run_in_threadpool(ask.board_in, text, shelf, owner)
        return {"request": fields, "missing": missing}

    @router.post("/storyboard/text")
    async def board_text(request: Request, owner: OwnerDep):
        return {"text": ask.board_text(parse_json(await request.body()).get("request"))}


def add_reading(router: APIRouter, cards: Cards) -> None:
    """Add the place where files are dropped."""
    service, shelf = cards.service, cards.shelf

    def told(id: str, owner: str) -> dict[str, Any]:
        item = shelf.learn(shelf.item(id, owner))
        assert item.known, "it was learned"
        request: Clip | None = item.known.request
        fields, missing = again(request, shelf, owner) if request else (None, ["the file carries no request"])
        return {"card": cards.card(item), "request": fields, "missing": missing}

    @router.post("/read")
    async def dropped(request: Request, owner: OwnerDep):
        async with request.form(max_files=1, max_fields=10) as sent:
            file = sent.get("file")
            if not isinstance(file, UploadFile):
                raise RequestError("a form must have the file in its part named file; got none")
            id = await read(service.store_upload, file.file, owner)
        return await read(told, id, owner)


def add_votes(router: APIRouter, ballots: Ballots) -> None:
    """Add the votes."""

    @router.get("/votes")
    def votes(owner: OwnerDep):
        return ballots.of(owner)

    @router.post("/votes")
    async def vote(request: Request, owner: OwnerDep):
        found = parse_json(await request.body())
        await read(ballots.vote, found, owner)
        return await run_in_threadpool(ballots.of, owner)
