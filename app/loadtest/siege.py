"""Besiege a server: stalled heads, long clips and prompts, a worker that is stopped, a server that is killed.

python -m app.loadtest.siege

While each kind of attack goes on, a visitor reads its list of videos again and again; the slowest answer is what an
attack costs others.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil

from app.queue.hung import HUNG_SECONDS

TIMEOUT_SECONDS = 120.0
PAUSE_SECONDS = 0.05  # between two requests of the visitor
HALF_HEAD = b"GET /v1/videos HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "
LONG_CLIPS = (
    {"prompt": "a red ball bounces", "mode": "long", "seconds": 30_000},
    {"prompt": "a red ball bounces", "mode": "loop", "seconds": 999_999},
    {"prompt": "a red ball bounces", "mode": "long", "seconds": 599, "steps": 1000, "sampler": "heun"},
    {"prompt": "a red ball bounces " * 100_000},
    {"prompt": "", "mode": "long", "seconds": 500, "moments": [{"at": n * 2, "prompt": f"a {n}"} for n in range(240)]},
)


@contextmanager
def besieged_server(folder: Path, log: Path, model: str | None, workers: int) -> Iterator[tuple[str, psutil.Process]]:
    """Run a server at a free port, its log in a file; yield its address and its process."""
    command = [sys.executable, "-m", "app.cli", "serve", str(folder), "--port", "0", "--workers", str(workers)]
    command += ["--model", model] if model else []
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            httpx.get(f"{address}/v1/models", timeout=TIMEOUT_SECONDS).raise_for_status()
            yield address, psutil.Process(process.pid)
        finally:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            process.wait()


def slowest_answer(address: str, attack: Callable[[], Any], seconds: float = 0.0) -> tuple[Any, dict[str, Any]]:
    """Let a visitor read its list during an attack, and for `seconds` at least; return the result and its times."""
    times: list[float] = []
    failed: Counter[str] = Counter()
    done = threading.Event()

    def visit() -> None:
        with httpx.Client(base_url=address, timeout=TIMEOUT_SECONDS) as client:
            while not done.is_set():
                started = time.monotonic()
                try:
                    status = client.get("/v1/videos", params={"limit": 1}).status_code
                except httpx.HTTPError as error:
                    status = type(error).__name__
                times.append(time.monotonic() - started)
                if status != 200:
                    failed[str(status)] += 1
                time.sleep(PAUSE_SECONDS)

    visitor, until = threading.Thread(target=visit), time.monotonic() + seconds
    visitor.start()
    try:
        result = attack()
        time.sleep(max(0.0, until - time.monotonic()))
    finally:
        done.set()
        visitor.join()
    times.sort()
    found = {"gets": len(times), "median_seconds": round(times[len(times) // 2], 3)}
    return result, found | {"slowest_seconds": round(times[-1], 2), "failed": dict(failed)}


def stall_heads(address: str, heads: int, stack: ExitStack) -> int:
    """Open connections that send half a head and no more; return how many the server closed at once."""
    host, port = urlsplit(address).hostname, urlsplit(address).port
    opened = []
    for _ in range(heads):
        with suppress(OSError):
            connection = stack.enter_context(socket.create_connection((host, port), timeout=10))
            connection.sendall(HALF_HEAD)
            opened.append(connection)
    time.sleep(1)
    closed = heads - len(opened)
    for connection in opened:
        connection.setblocking(False)
        try:
            closed += connection.recv(1, socket.MSG_PEEK) != b""
        except BlockingIOError:
            pass
        except OSError:
            closed += 1
    return closed


def ask_for_long_clips(address: str, clips: int) -> dict[str, int]:
    """Ask for clips that are too long, or long to estimate, all at once; return how they were answered."""

    def ask(number: int) -> int:
        return httpx.post(
            f"{address}/v1/videos",
            json=LONG_CLIPS[number % len(LONG_CLIPS)] | {"seed": number},
            timeout=TIMEOUT_SECONDS,
        ).status_code

    with ThreadPoolExecutor(clips) as threads:
        return {str(status): count for status, count in Counter(threads.map(ask, range(clips))).items()}


def stop_worker(address: str, server: psutil.Process) -> dict[str, Any]:
    """Stop a worker while it makes a clip; return after how many seconds that was told and the clip was another's."""
    with httpx.Client(base_url=address, timeout=TIMEOUT_SECONDS) as client:
        for old in client.get("/v1/videos", params={"limit": 100}).raise_for_status().json()["data"]:
            client.delete(f"/v1/videos/{old['id']}")
        body = {"prompt": "a red ball bounces", "mode": "long", "seconds": 60, "steps": 200}
        id = client.post("/v1/videos", json=body).raise_for_status().json()["id"]
        state = lambda: client.get(f"/v1/videos/{id}").raise_for_status().json()
        wait(lambda: state()["phase"] == "sampling")
        workers = [child for child in server.children() if "work" in child.cmdline()]
        workers[0].send_signal(signal.SIGSTOP)
        stopped = time.monotonic()
        told = wait(lambda: "has not answered" in (state()["note"] or "")) - stopped
        given = wait(lambda: state()["phase"] == "sampling" and not state()["note"]) - stopped
        client.delete(f"/v1/videos/{id}")
        cancelled = wait(lambda: state()["status"] == "failed") - stopped
    replaced = {child.pid for child in server.children() if "work" in child.cmdline()} != {one.pid for one in workers}
    found = {"told_seconds": told, "given_to_another_seconds": given, "cancelled_seconds": cancelled}
    return {name: round(seconds, 1) for name, seconds in found.items()} | {"replaced": replaced}


def wait(condition: Callable[[], bool], seconds: float = 4 * HUNG_SECONDS + TIMEOUT_SECONDS) -> float:
    """Wait until a condition holds; return the time. Raises TimeoutError."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("a condition must come true in time")
        time.sleep(0.25)
    return time.monotonic()


def besiege(folder: Path, heads: int, clips: int, model: str | None = None) -> dict[str, Any]:
    """Run all attacks on one server after another; return what each cost, and what was left of the server."""
    log, found = folder / "server.log", dict[str, Any]()
    with besieged_server(folder / "queue", log, model, workers=1) as (address, server), ExitStack() as stack:
        _, found["quiet"] = slowest_answer(address, lambda: None, seconds=5)
        closed, visits = slowest_answer(address, lambda: stall_heads(address, heads, stack), seconds=20)
        found["stalled_heads"] = {"heads": heads, "closed_at_once": closed} | visits
        answers, visits = slowest_answer(address, lambda: ask_for_long_clips(address, clips))
        found["long_clips"] = {"clips": clips, "answers": answers} | visits
        stopped, visits = slowest_answer(address, lambda: stop_worker(address, server))
        found["stopped_worker"] = stopped | visits
        workers = [child for child in server.children() if "work" in child.cmdline()]
        if workers:
            workers[0].send_signal(signal.SIGSTOP)
        started = time.monotonic()
        server.send_signal(signal.SIGTERM)
        server.wait()
        found["shutdown_seconds"] = round(time.monotonic() - started, 1)
        _, alive = psutil.wait_procs(workers, timeout=1)
        found["left_after_shutdown"] = len(alive)
    with besieged_server(folder / "second", folder / "second.log", model, workers=2) as (_, server):
        workers = [child for child in server.children() if "work" in child.cmdline()]
        started = time.monotonic()
        server.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs(workers, timeout=TIMEOUT_SECONDS)
        found["killed_server"] = {"workers": len(workers), "orphans_left": len(alive)}
        found["killed_server"] |= {"seconds": round(time.monotonic() - started, 1)}
    text = log.read_text(errors="replace")
    return found | {"log_bytes": len(text), "tracebacks": text.count("Traceback")}


if __name__ == "__main__":
    parser = argparse.ArgumentParser("app.loadtest.siege", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--heads", type=int, default=400, help="stalled connections (default 400)")
    parser.add_argument("--clips", type=int, default=50, help="long clips that are asked for at once (default 50)")
    parser.add_argument("--model", help="a shipped model or a model folder")
    args = parser.parse_args()
    os.environ.pop("LONGTAKE_TOKEN", None)
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(besiege(Path(name), args.heads, args.clips, args.model)))
