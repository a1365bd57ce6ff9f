"""`longtake serve`: an HTTP server and its workers, on a durable queue. Heavy modules are imported when it runs."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from app.commands.request_flags import add_flag
from app.policy.policy import STANDARD, add_policy_flags, check_prompt
from app.provenance.signing import prepare_signing
from app.queue.processes import plan_workers, worker_processes

if TYPE_CHECKING:
    from fastapi import FastAPI

    from app.queue.jobs import Queue
    from app.server.service import Service
    from dit.request import Request

    AppFactory = Callable[[Service, Sequence[str], str], FastAPI]  # from a service, tokens and a device

TOKEN_VARIABLE = "LONGTAKE_TOKEN"  # tokens, separated by commas
HOST, PORT = "127.0.0.1", 8000
MAX_JOBS, MAX_SECONDS = 1000, 600.0  # unfinished jobs of a client, and the duration of a clip
MAX_GIGABYTES = 100.0  # of a client's finished videos and uploads
POLL_SECONDS = 1.0  # how often dead workers are looked for
SHUTDOWN_SECONDS = 5  # that open requests have when the server is told to stop
EXIT_SECONDS = 15.0  # that threads with files of clients have once the workers are gone


def add_serve(commands) -> None:
    """Add the command that serves a queue."""
    add_server(
        commands,
        "serve",
        "serve the video API, for openai's client, gradio_client and MCP tools",
        "Serve the video API on a queue that outlives the server. Its page is at /docs.",
    )


def add_server(
    commands, name: str, line: str, about: str, make_app: AppFactory | None = None, page: str = "/docs"
) -> None:
    """Add a command that serves a queue with the app of `make_app`, by default the video API, whose page is `page`."""
    serve = commands.add_parser(
        name,
        help=line,
        description=about,
        epilog=f"Prefer {TOKEN_VARIABLE}, tokens separated by commas, over --token: process lists show flags.",
    )
    serve.add_argument(
        "folder", type=Path, nargs="?", metavar="QUEUE_FOLDER", help="for jobs and clips (default: the user's own)"
    )
    serve.add_argument("--host", default=HOST, help=f"the interface (default {HOST}, which only this machine reaches)")
    serve.add_argument("--port", type=int, default=PORT, help=f"default {PORT}; 0 takes a free one")
    serve.add_argument(
        "--token", action="append", default=[], help="an access token; each of several has its own jobs and uploads"
    )
    serve.add_argument(
        "--model", action="append", default=[], metavar="NAME", help="a shipped model or a model folder to offer"
    )
    serve.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes (default: one per GPU, or one per CPU core); with 0 start them by longtake work",
    )
    add_flag(
        serve,
        "max-jobs",
        "most-jobs",
        type=int,
        default=MAX_JOBS,
        metavar="N",
        help=f"unfinished jobs of one token (default {MAX_JOBS})",
    )
    add_flag(
        serve,
        "max-seconds",
        "most-seconds",
        type=float,
        default=MAX_SECONDS,
        metavar="S",
        help=f"duration of a clip (default {MAX_SECONDS:g})",
    )
    serve.add_argument(
        "--max-gigabytes",
        type=float,
        default=MAX_GIGABYTES,
        metavar="GB",
        help=f"finished videos and uploads of one token on the disk (default {MAX_GIGABYTES:g})",
    )
    add_policy_flags(serve, STANDARD)
    serve.set_defaults(run=_serve, make_app=make_app, page=page)


def _serve(args: argparse.Namespace) -> None:
    from app.server.auth import check_host

    environment_tokens = (token.strip() for token in os.environ.get(TOKEN_VARIABLE, "").split(","))
    tokens = [*args.token, *filter(None, environment_tokens)]
    check_host(args.host, tokens)
    if not 0 <= args.port < 2**16:
        raise ValueError(f"port must lie between 0 and 65535; got {args.port}")
    if args.max_jobs <= 0 or not args.max_seconds > 0 or not args.max_gigabytes > 0:
        got = f"--max-jobs {args.max_jobs} --max-seconds {args.max_seconds:g} --max-gigabytes {args.max_gigabytes:g}"
        raise ValueError(f"a client must be allowed something; got {got}")
    serve(
        args.folder,
        args.host,
        args.port,
        tokens,
        args.model,
        args.workers,
        policy=args,
        max_jobs=args.max_jobs,
        max_seconds=args.max_seconds,
        max_gigabytes=args.max_gigabytes,
        make_app=args.make_app,
        page=args.page,
    )


def serve(
    folder: Path | None = None,
    host: str = HOST,
    port: int = PORT,
    tokens: list[str] | None = None,
    models: list[str] | None = None,
    workers: int | None = None,
    policy: argparse.Namespace | None = None,
    max_jobs: int = MAX_JOBS,
    max_seconds: float = MAX_SECONDS,
    max_gigabytes: float = MAX_GIGABYTES,
    make_app: AppFactory | None = None,
    page: str = "/docs",
) -> None:
    """Serve a queue with worker processes until told to stop; print the address on stdout once it is bound.

    `policy` has the flags of a policy, for prompts before they are queued and for the workers. A client has at most
    `max_jobs` unfinished jobs, each of at most `max_seconds`, and `max_gigabytes` on the disk. `make_app` returns the
    ASGI app, by default the video API's. Raises ValueError for wrong arguments, OSError where the address cannot be
    bound.
    """
    from app.home import home, make_private_folder
    from app.queue.jobs import Queue
    from app.server.limits import GIGABYTE, RequestLimits
    from app.server.service import Service, served_models

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the workers are stopped on the way out
    workers, devices = plan_workers(workers)
    prepare_signing()
    make_private_folder(home())
    queue = Queue((folder or home() / "queue").resolve())
    served = served_models(queue, models or [])
    os.chdir(queue.folder)  # as workers do, since requests name files relative to it
    offered_models = [model.name for model in served.values()]
    check = request_check(policy.policy if policy else STANDARD, devices[0], offered_models, max_seconds)
    limits = RequestLimits(seconds=max_seconds, owner_bytes=max_gigabytes * GIGABYTE)
    service = Service(queue, served, check, max_open_jobs=max_jobs, limits=limits)
    served_any = False
    try:
        with bound_socket(host, port) as listening, restarted_workers(queue.folder, workers, devices, policy):
            from app.server.api import create_app
            from app.server.connections import make_server

            app = make_app(service, tokens or [], devices[0]) if make_app else create_app(service, tokens or [])
            address = f"[{host}]" if ":" in host else host
            print(f"http://{address}:{listening.getsockname()[1]}", flush=True)
            print(f"longtake: serving {queue.folder}; see {page} there; Ctrl+C stops it", file=sys.stderr)
            served_any = True
            make_server(app, SHUTDOWN_SECONDS).run([listening])
    finally:
        if served_any:
            leave_within(EXIT_SECONDS)


def request_check(
    policy: str, device: str, models: Iterable[str] = (), max_seconds: float = MAX_SECONDS
) -> Callable[[Request], None]:
    """Return a function that refuses a request before it is queued, for its prompt, model, memory or duration.

    `models` are loaded now, others when they are first asked for.
    """
    from app.queue.estimate import Estimator, load_cost_model
    from app.server.limits import RequestLimits, check_limits, too_long
    from dit.request import RequestError
    from vae.video.pixels import MediaError

    estimator, limits = Estimator(device), RequestLimits(seconds=max_seconds)
    for model in models:
        load_cost_model(model)

    def check(request: Request) -> None:
        check_limits(request, limits)
        check_prompt(request, policy)
        try:
            pipeline = load_cost_model(request.model).pipeline
            prompts = [request.effective_prompt, *(moment.prompt for moment in request.moments or ())]
            pipeline.check_prompts([*prompts, request.negative_prompt or ""])  # on which an estimate does not depend
            cost = estimator.check_fits(request).cost
        except (RequestError, MediaError):
            raise
        except ValueError as error:  # a tokenizer's, written for users
            raise RequestError(str(error)) from error
        seconds = cost.frames / (cost.request.fps or 1.0)
        if seconds > max_seconds and cost.frames > 1:
            raise too_long(seconds, limits)

    return check


def leave_within(seconds: float) -> None:
    """End this process after so many seconds, whatever its other threads wait for."""
    timer = threading.Timer(seconds, os._exit, [0])
    timer.daemon = True
    timer.start()


@contextmanager
def bound_socket(host: str, port: int) -> Iterator[socket.socket]:
    """Bind a socket to an address; raises OSError, naming it, where that fails."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"a server must have an address of its own; {host}:{port} cannot be bound: {reason}") from error
    with listening:
        yield listening


@contextmanager
def restarted_workers(
    queue: Path, workers: int, devices: tuple[str, ...], policy: argparse.Namespace | None
) -> Iterator[None]:
    """Run worker processes at a queue, replace each that dies or hangs, and give its jobs to others.

    With 0 workers, the jobs of workers that others started are looked after all the same.
    """
    from app.queue.hung import HungWorkers
    from app.queue.jobs import Queue

    hung_workers, done = HungWorkers(Queue(queue)), threading.Event()
    running = (
        worker_processes(queue, workers, devices, policy, restart=True)
        if workers
        else nullcontext(hung_workers.release)
    )
    with running as look_after:
        thread = threading.Thread(target=_look_after, args=(Queue(queue), look_after, done))
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def _look_after(queue: Queue, look_after: Callable[[], object], done: threading.Event) -> None:
    """Look after a queue and its workers until told to stop, whatever goes wrong meanwhile."""
    from app.queue.lease import recover

    while not done.wait(POLL_SECONDS):
        try:
            recover(queue)
            look_after()
        except Exception as error:  # a full disk, say: the next look may succeed
            logging.getLogger("longtake.serve").warning("workers cannot be looked after: %s", error)
