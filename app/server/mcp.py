"""Serve `gradio_client` and, by the Model Context Protocol (MCP), language models.

Gradio has many routes, and opens paths and fetches URLs that clients send. Only the routes that three functions of text
and numbers need are reachable (`AllowlistMiddleware`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Set
from functools import partial
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio reads it when it is imported

import gradio as gr
from fastapi import FastAPI
from gradio.events import api
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.queue.jobs import FINISHED
from app.server.auth import error_response
from app.server.parsing import short_repr
from app.server.service import CLIENT_ERRORS, MAX_MESSAGE_CHARS, NotFound, Service

MOUNT_PATH = "/tools"
ALLOWED_ROUTES = {
    *(("GET", "/config"), ("GET", "/gradio_api/info"), ("GET", "/gradio_api/queue/data")),
    *(("POST", "/gradio_api/queue/join"), ("POST", "/gradio_api/mcp"), ("POST", "/gradio_api/mcp/")),
}
MAX_BODY_BYTES = 2**20
FILE_KEYS = ("_type", "path")  # gradio takes an object with one of these keys for a file
WAIT_SECONDS, POLL_SECONDS = 600.0, 0.25  # how long a call waits for its video, and how often it checks
LOG = logging.getLogger("longtake.serve")


def add_tools(app: FastAPI, service: Service) -> None:
    """Mount the tool functions on a server, under /tools."""
    with gr.Blocks(title="Longtake", analytics_enabled=False) as blocks:
        for function in tool_functions(service):
            api(function, api_name=function.__name__, queue=False, concurrency_limit=None)
    gr.mount_gradio_app(
        app,
        blocks,
        MOUNT_PATH,
        mcp_server=True,
        show_error=False,
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        footer_links=[],
    )


def tool_functions(service: Service) -> Iterator[Callable]:
    """Yield the functions that clients may call; clients read their docstrings."""

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
        """Generate a video or an image from text. When its status is "completed", download its file from the path
        `content` of this server, with the same token.

        Args:
            prompt: What the video shows, in a sentence, such as "a large red ball bounces on the grass".
            mode: text-to-video, text-to-image, loop or long; or, with an earlier video, extend, edit or remix.
            video: The id of the earlier video, for extend, edit and remix.
            seconds: The duration; 0 for the model's default.
            size: Columns and rows in pixels, such as 64x64; empty for the model's default.
            seed: The seed of the noise; another seed gives another video for the same prompt.
            wait: Whether to answer only when the video is finished; if not, call video_state later.
        """
        given = {"video": video, "seconds": seconds, "size": size}
        found = {"prompt": prompt, "mode": mode, "seed": seed} | {key: value for key, value in given.items() if value}
        owner, until = request.state.owner, time.monotonic() + WAIT_SECONDS
        job = await call_service(lambda: service.submit(found, owner), lambda work: service.estimating.run(owner, work))
        while wait and job.state not in FINISHED and time.monotonic() < until:
            await asyncio.sleep(POLL_SECONDS)
            job = await call_service(partial(service.job, job.id, owner))
        return encode_result(service.video(job), request)

    async def video_state(id: str, request: gr.Request = None) -> dict:  # type: ignore[assignment]
        """Return the state of a video: queued, in_progress, completed or failed, and the number of videos before it.

        Args:
            id: The id that make_video returned.
        """
        job = await call_service(lambda: service.job(id, request.state.owner))
        return encode_result(service.video(job), request)

    async def list_videos(limit: int = 20, request: gr.Request = None) -> list:  # type: ignore[assignment]
        """List the videos of this token, newest first.

        Args:
            limit: The maximum number of videos, up to 100.
        """
        owner, within = request.state.owner, max(1, min(int(limit), 100))
        jobs = await call_service(lambda: service.queue.jobs(owner=owner, limit=within))
        return encode_result([service.video(job) for job in jobs], request)

    yield from (make_video, video_state, list_videos)


async def call_service(work: Callable[[], Any], run: Callable[..., Awaitable[Any]] = run_in_threadpool) -> Any:
    """Run `work` in a thread, by `run`; an error becomes one sentence for the client, as gr.Error."""
    try:
        return await run(work)
    except (NotFound, *CLIENT_ERRORS) as error:
        raise gr.Error(short_repr(error, MAX_MESSAGE_CHARS), print_exception=False) from None
    except Exception as error:
        LOG.error("a tool failed", exc_info=error)
        raise gr.Error("the server failed; its log says more", print_exception=False) from None


def encode_result(result: Any, request: Any) -> Any:
    """Return data for gradio's clients, JSON text for MCP tools, which have no gr.Request.

    Without that, gradio would send an MCP client the repr of the Python object.
    """
    return result if isinstance(request, gr.Request) else json.dumps(result, ensure_ascii=False)


class AllowlistMiddleware:
    """ASGI middleware: below `mount_path`, allow only some routes, files of some folders, and JSON without files.

    `routes` are (method, path below `mount_path`). `folders` are path prefixes of which all files may be fetched. With
    `pass_query` False, query strings are dropped. Gradio never sees an object in a body that it would take for a file.
    """

    def __init__(
        self,
        app: ASGIApp,
        mount_path: str = MOUNT_PATH,
        routes: Set[tuple[str, str]] = ALLOWED_ROUTES,
        folders: tuple[str, ...] = (),
        pass_query: bool = True,
    ):
        self.app, self.mount_path, self.routes = app, mount_path, routes
        self.folders, self.pass_query = folders, pass_query

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not (scope["path"] + "/").startswith(f"{self.mount_path}/"):
            return await self.app(scope, receive, send)
        method, path = scope["method"], scope["path"].removeprefix(self.mount_path)
        in_folder = method == "GET" and path.startswith(self.folders) and not re.search(r"\.\.|//", path)
        if (method, path) not in self.routes and not in_folder:
            message = f"there is nothing of that name at {self.mount_path}; see /docs"
            return await error_response(404, message, "not_found")(scope, receive, send)
        if not self.pass_query:
            scope = {**scope, "query_string": b""}
        if method in ("GET", "HEAD"):
            return await self.app(scope, receive, send)
        try:
            body = await read_whole_body(receive)
        except HTTPException as error:
            return await error_response(error.status_code, error.detail, "too_large")(scope, receive, send)
        if not is_json_without_files(body):
            message = "a call takes text and numbers in JSON; send files to POST /v1/files"
            return await error_response(400, message, "invalid_value")(scope, receive, send)
        await self.app(scope, replay_body(body, receive), send)


async def read_whole_body(receive: Receive) -> bytes:
    """Receive a whole body; raises HTTPException where it is too large."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MAX_BODY_BYTES:
            raise HTTPException(413, f"a call must have at most {MAX_BODY_BYTES:,} bytes; this one has more; send less")
    return body


def replay_body(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives a body that was read already, and then the messages of the original."""
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive_replayed() -> Message:
        return next(messages, None) or await receive()

    return receive_replayed


def is_json_without_files(body: bytes) -> bool:
    """Return whether a body is JSON and contains no object that gradio takes for a file."""

    def without_files(value: Any) -> bool:
        if isinstance(value, dict):
            return not any(key in value for key in FILE_KEYS) and all(map(without_files, value.values()))
        return all(map(without_files, value)) if isinstance(value, list) else True

    try:
        return without_files(json.loads(body))
    except (ValueError, RecursionError):
        return False
