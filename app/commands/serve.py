"""`longtake serve`: an HTTP server and its workers, on a durable queue."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from app.batch.batch import crew, crew_for
from app.policy.policy import STANDARD, add_policy_flags, check_prompt
from app.provenance.signing import prepare_signing

if TYPE_CHECKING:
    from fastapi import FastAPI

    from app.server.service import Service
    from dit.request import Request

    AppFor = Callable[[Service, Sequence[str], str], FastAPI]  # for tokens, on a device

TOKEN = "LONGTAKE_TOKEN"  # a variable: tokens, with commas between them
HOST, PORT = "127.0.0.1", 8000
MOST_JOBS, MOST_SECONDS = 1000, 600.0  # that a client may have in line, and of a clip
LOOK_SECONDS = 1.0  # between two looks whether workers live
LEAVE_SECONDS = 5  # for requests that are being answered when the server is told to stop


def add_serve(commands) -> None:
    """Add the command that serves a queue."""
    add_server(
        commands,
        "serve",
        "serve the video API, for openai's client, gradio_client and tools",
        "Serve the video API on a queue that outlives the server. Its page is at /docs.",
    )


def add_server(commands, name: str, line: str, about: str, app_for: AppFor | None = None, page: str = "/docs") -> None:
    """Add a command that serves a queue by an app of its own, whose page lies at `page`."""
    serve = commands.add_parser(
        name,
        help=line,
        description=about,
        epilog=f"Tokens are better given in {TOKEN}, with commas between them, where no list of processes shows them.",
    )
    serve.add_argument(
        "folder", type=Path, nargs="?", metavar="QUEUE_FOLDER", help="for jobs and clips (default: the user's own)"
    )
    serve.add_argument("--host", default=HOST, help=f"the interface (default {HOST}, which only this machine reaches)")
    serve.add_argument("--port", type=int, default=PORT, help=f"default {PORT}; 0 takes a free one")
    serve.add_argument(
        "--token", action="append", default=[], help="who has it may come in; several, whose jobs are kept apart"
    )
    serve.add_argument(
        "--model", action="append", default=[], metavar="NAME", help="a shipped model or a model folder to offer"
    )
    serve.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes (default: one a GPU, or one a CPU core); with 0 others join by longtake work",
    )
    serve.add_argument(
        "--most-jobs",
        type=int,
        default=MOST_JOBS,
        metavar="N",
        help=f"that one token has in line (default {MOST_JOBS})",
    )
    serve.add_argument(
        "--most-seconds", type=float, default=MOST_SECONDS, metavar="S", help=f"of a clip (default {MOST_SECONDS:g})"
    )
    add_policy_flags(serve, STANDARD)
    serve.set_defaults(act=_serve, app_for=app_for, page=page)


def _serve(chosen: argparse.Namespace) -> None:
    from app.server.auth import check_host

    tokens = [*chosen.token, *filter(None, (one.strip() for one in os.environ.get(TOKEN, "").split(",")))]
    check_host(chosen.host, tokens)
    if not 0 <= chosen.port < 2**16:
        raise ValueError(f"port must lie between 0 and 65535; got {chosen.port}")
    most = {"most_jobs": chosen.most_jobs, "most_seconds": chosen.most_seconds}
    if not all(number > 0 for number in most.values()):
        got = f"--most-jobs {chosen.most_jobs} --most-seconds {chosen.most_seconds:g}"
        raise ValueError(f"a client must be allowed something; got {got}")
    ways = {"app_for": chosen.app_for, "page": chosen.page} | most
    serve(chosen.folder, chosen.host, chosen.port, tokens, chosen.model, chosen.workers, chosen, **ways)


def serve(
    folder: Path | None = None,
    host: str = HOST,
    port: int = PORT,
    tokens: list[str] | None = None,
    models: list[str] | None = None,
    workers: int | None = None,
    policy: argparse.Namespace | None = None,
    most_jobs: int = MOST_JOBS,
    most_seconds: float = MOST_SECONDS,
    app_for: AppFor | None = None,
    page: str = "/docs",
) -> None:
    """Serve a queue with so many workers until told to stop; prints the address on stdout once it is bound. `policy`
    has the flags of a policy, for prompts before they are queued and for workers. A client has at most `most_jobs` in
    line, each of `most_seconds` at most. `app_for` returns the app, by default the video API's.

    Raises ValueError for what cannot be served, OSError where the address is not to be had.
    """
    from app.home import home
    from app.queue.jobs import Queue
    from app.server.service import Service, offers_of

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # the workers are told on the way out
    workers, devices = crew_for(workers)
    prepare_signing()
    queue = Queue((folder or home() / "queue").resolve())
    offers = offers_of(queue, models or [])
    os.chdir(queue.folder)  # as workers do, since requests name files as they are seen from there
    named = [offer.model for offer in offers.values()]
    check = check_for(policy.policy if policy else STANDARD, devices[0], named, most_seconds)
    service = Service(queue, offers, check, most_jobs=most_jobs)
    with bound(host, port) as listening, lasting(queue.folder, workers, devices, policy):
        import uvicorn

        from app.server.api import server

        app = app_for(service, tokens or [], devices[0]) if app_for else server(service, tokens or [])
        address = f"[{host}]" if ":" in host else host
        print(f"http://{address}:{listening.getsockname()[1]}", flush=True)
        print(f"longtake: serving {queue.folder}; see {page} there; Ctrl+C stops it", file=sys.stderr)
        settings = {"log_level": "warning", "server_header": False, "timeout_graceful_shutdown": LEAVE_SECONDS}
        uvicorn.Server(uvicorn.Config(app, **settings)).run([listening])


def check_for(
    policy: str, device: str, models: Iterable[str] = (), most_seconds: float = MOST_SECONDS
) -> Callable[[Request], None]:
    """Return what refuses a request before it is queued: the policy, the model, the memory of a device, and how long a
    clip may be. `models` are read here, others when they are first asked for.
    """
    from app.queue.estimate import Estimator, outline_of
    from dit.request import RequestError
    from vae.video.pixels import MediaError

    estimator, at_estimate = Estimator(device), threading.Lock()  # requests come in many threads
    for model in models:
        outline_of(model)

    def check(request: Request) -> None:
        check_prompt(request, policy)
        try:  # of an estimate words are no part, so the model is asked whether it can read them
            outline_of(request.model).pipeline.resolve(replace(request, upsample=None))
            with at_estimate:
                cost = estimator.check_fits(request).cost
        except (RequestError, MediaError):
            raise
        except ValueError as error:  # of a tokenizer, whose sentence it is
            raise RequestError(str(error)) from error
        seconds = cost.frames / (cost.request.fps or 1.0)
        if seconds > most_seconds and cost.frames > 1:
            raise RequestError(f"a clip must last at most {most_seconds:g} s here; got {seconds:g}, so ask for less")

    return check


@contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """Have a socket at an address; raises OSError, naming it, where it is not to be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"a server must have an address of its own; {host}:{port} is not to be had: {reason}") from error
    with listening:
        yield listening


@contextmanager
def lasting(queue: Path, workers: int, devices: tuple[str, ...], policy: argparse.Namespace | None) -> Iterator[None]:
    """Have worker processes at a queue, each replaced when it dies."""
    if not workers:
        yield
        return
    done = threading.Event()
    with crew(queue, workers, devices, policy, lasting=True) as alive:
        thread = threading.Thread(target=_watch, args=(alive, done))
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def _watch(alive: Callable[[], bool], done: threading.Event) -> None:
    while not done.wait(LOOK_SECONDS):
        alive()
