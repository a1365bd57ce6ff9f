"""The same service for `gradio_client` and, by the Model Context Protocol, as tools of language models.

Gradio has many doors: it opens paths, and fetches addresses, that stand in what its clients send. Only those that three
functions of words and numbers need are left open (`Screen`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Set
from functools import partial
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # which gradio reads when it is imported

import gradio as gr
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.queue.jobs import ENDED
from app.server.auth import answer
from app.server.parsing import shown
from app.server.service import LONGEST_SENTENCE, REFUSALS, NotFound, Service

AT = "/tools"
DOORS = {
    *(("GET", "/config"), ("GET", "/gradio_api/info"), ("GET", "/gradio_api/queue/data")),
    *(("POST", "/gradio_api/queue/join"), ("POST", "/gradio_api/mcp"), ("POST", "/gradio_api/mcp/")),
}
MOST_BYTES = 2**20  # of a body
FILE_SIGNS = ("_type", "path")  # by which gradio knows that an object stands for a file
WAIT_SECONDS, LOOK_SECONDS = 600.0, 0.25  # how long a call waits for its video, and between two looks
LOG = logging.getLogger("longtake.serve")


def add_tools(app: FastAPI, service: Service) -> None:
    """Add the functions below to a server, under /tools."""
    with gr.Blocks(title="Longtake", analytics_enabled=False) as blocks:
        for function in functions(service):
            gr.api(function, api_name=function.__name__, queue=False, concurrency_limit=None)
    gr.mount_gradio_app(
        app,
        blocks,
        AT,
        mcp_server=True,
        show_error=False,
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        footer_links=[],
    )


def functions(service: Service) -> Iterator[Callable]:
    """Yield what clients may call; its docstrings are what they read of it."""

    async def make_video(
        prompt: str,
        mode: str = "text-to-video",
        video: str = "",
        seconds: float = 0,
        size: str = "",
        seed: int = 0,
        wait: bool = True,
        request: gr.Request = None,  # type: ignore[assignment]
    ) -> dict:
        """Make a video or a picture from words. When its status is "completed", its file is at `content` on this
        server, for the same token.

        Args:
            prompt: What is to be seen, in a sentence, such as "a large red ball bounces on the grass".
            mode: text-to-video, text-to-image, loop or long; or, of an earlier video, extend, edit or remix.
            video: The id of the earlier video, for extend, edit and remix.
            seconds: How long it is to be; 0 leaves it to the model.
            size: Columns and rows in pixels, such as 64x64; nothing leaves it to the model.
            seed: Which of all videos that fit the prompt.
            wait: Whether to answer only when the video is there; if not, ask video_state later.
        """
        given = {"video": video, "seconds": seconds, "size": size}
        found = {"prompt": prompt, "mode": mode, "seed": seed} | {key: value for key, value in given.items() if value}
        owner, until = request.state.owner, time.monotonic() + WAIT_SECONDS
        job = await said(lambda: service.submit(found, owner))
        while wait and job.state not in ENDED and time.monotonic() < until:
            await asyncio.sleep(LOOK_SECONDS)
            job = await said(partial(service.job, job.id, owner))
        return told(service.video(job), request)

    async def video_state(id: str, request: gr.Request = None) -> dict:  # type: ignore[assignment]
        """Say how far a video is: queued, in_progress, completed or failed, and how many come before it.

        Args:
            id: The id that make_video gave.
        """
        job = await said(lambda: service.job(id, request.state.owner))
        return told(service.video(job), request)

    async def list_videos(most: int = 20, request: gr.Request = None) -> list:  # type: ignore[assignment]
        """List the latest videos of this token, the latest first.

        Args:
            most: How many to list, up to 100.
        """
        jobs = await said(lambda: service.queue.jobs(owner=request.state.owner, most=max(1, min(int(most), 100))))
        return told([service.video(job) for job in jobs], request)

    yield from (make_video, video_state, list_videos)


async def said(work: Callable[[], Any]) -> Any:
    """Do something; what goes wrong is told in one sentence."""
    try:
        return await run_in_threadpool(work)
    except (NotFound, *REFUSALS) as error:
        raise gr.Error(shown(error, LONGEST_SENTENCE), print_exception=False) from None
    except Exception as error:
        LOG.error("a tool failed", exc_info=error)
        raise gr.Error("the server failed; its log says more", print_exception=False) from None


def told(found: Any, request: Any) -> Any:
    """Return data to gradio's clients, and JSON to tools, which get no gr.Request and would see Python instead."""
    return found if isinstance(request, gr.Request) else json.dumps(found, ensure_ascii=False)


class Screen:
    """Let nothing through to what is `at` some path but its few doors, and files of its folders, and nothing in a body
    that gradio would take for a file; nor a query, unless it is `asked`.
    """

    def __init__(
        self, app: ASGIApp, at: str = AT, doors: Set[tuple[str, str]] = DOORS, folders: tuple[str, ...] = (), asked=True
    ):
        self.app, self.at, self.doors, self.folders, self.asked = app, at, doors, folders, asked

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not (scope["path"] + "/").startswith(f"{self.at}/"):
            return await self.app(scope, receive, send)
        method, path = scope["method"], scope["path"].removeprefix(self.at)
        in_folder = method == "GET" and path.startswith(self.folders) and not re.search(r"\.\.|//", path)
        if (method, path) not in self.doors and not in_folder:
            refusal = answer(404, f"there is nothing of that name at {self.at}; see /docs", "not_found")
            return await refusal(scope, receive, send)
        if not self.asked:
            scope = scope | {"query_string": b""}
        if method in ("GET", "HEAD"):
            return await self.app(scope, receive, send)
        try:
            body = await whole(receive)
        except HTTPException as error:
            return await answer(error.status_code, error.detail, "too_large")(scope, receive, send)
        if not plain_json(body):
            refusal = answer(400, "a call takes words and numbers in JSON; files go to POST /v1/files", "invalid_value")
            return await refusal(scope, receive, send)
        await self.app(scope, again(body, receive), send)


async def whole(receive: Receive) -> bytes:
    """Receive a whole body; raises HTTPException for a large one."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MOST_BYTES:
            raise HTTPException(413, f"a call must have at most {MOST_BYTES:,} bytes; this one has more; send less")
    return body


def again(body: bytes, receive: Receive) -> Receive:
    """Receive a body that was received already, and then what comes."""
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive_again() -> Message:
        return next(messages, None) or await receive()

    return receive_again


def plain_json(body: bytes) -> bool:
    """Say whether a body is JSON in which nothing stands for a file."""

    def plain(value: Any) -> bool:
        if isinstance(value, dict):
            return not any(sign in value for sign in FILE_SIGNS) and all(map(plain, value.values()))
        return all(map(plain, value)) if isinstance(value, list) else True

    try:
        return plain(json.loads(body))
    except (ValueError, RecursionError):
        return False
