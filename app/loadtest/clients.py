"""Let many clients at once request images from one server; check that each gets its own, and measure the memory held.

python -m app.loadtest.clients
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import httpx
import psutil

from app.queue.jobs import Queue
from app.render import read_request

POLL_SECONDS = 0.5
TIMEOUT_SECONDS = 120.0  # of one response
AVERAGED_JOBS = 100  # jobs at each end over which memory is averaged


@dataclass
class ClientLog:
    """What all clients measured.

    `submit_seconds` of each submission; `places` in line as the server reported them, `unplaced` the reports without
    one; `files` with the seed each was requested with; memory of the worker and the server, in bytes, after each job.
    """

    submit_seconds: list[float] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    files: dict[Path, int] = field(default_factory=dict)
    unplaced: int = 0
    worker_bytes: list[int] = field(default_factory=list)
    server_bytes: list[int] = field(default_factory=list)


@contextmanager
def running_server(folder: Path, model: str | None = None) -> Iterator[tuple[str, psutil.Process]]:
    """Run a server with one worker at a free port; yield its address and its process."""
    command = [sys.executable, "-m", "app.cli", "serve", str(folder), "--port", "0", "--workers", "1"]
    process = subprocess.Popen(command + (["--model", model] if model else []), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip(), psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def request_image(
    log: ClientLog, address: str, folder: Path, worker: psutil.Process, server: psutil.Process, seed: int
) -> None:
    """Submit one image, poll until it is completed, and download it."""
    with httpx.Client(base_url=address, timeout=TIMEOUT_SECONDS) as client:
        body: dict[str, Any] = {"mode": "text-to-image", "prompt": f"a red ball {seed}", "seed": seed, "steps": 1}
        started = time.monotonic()
        video = client.post("/v1/videos", json=body).raise_for_status().json()
        log.submit_seconds.append(time.monotonic() - started)
        while video["status"] in ("queued", "in_progress"):
            if video["status"] == "queued":
                placed = video["ahead"] is not None
                log.places += [video["ahead"]] * placed
                log.unplaced += not placed
            time.sleep(POLL_SECONDS)
            video = client.get(f"/v1/videos/{video['id']}").raise_for_status().json()
        path = folder / f"{seed}.png"
        path.write_bytes(client.get(video["content"]).raise_for_status().content)
        log.files[path] = seed
        log.worker_bytes.append(worker.memory_info().rss)
        log.server_bytes.append(server.memory_info().rss)


def run_clients(folder: Path, clients: int, jobs: int, model: str | None = None) -> dict[str, Any]:
    """Let `clients` at once make `jobs` images in all; return counts, seconds, and MiB held."""
    log, downloads = ClientLog(), folder / "downloads"
    downloads.mkdir(parents=True)
    with running_server(folder / "queue", model) as (address, server):
        find_workers = "SELECT pid FROM workers"
        while not (pids := [row["pid"] for row in Queue(folder / "queue").connection.execute(find_workers)]):
            time.sleep(POLL_SECONDS)
        httpx.get(f"{address}/v1/models", timeout=TIMEOUT_SECONDS).raise_for_status()
        started = time.monotonic()
        client = partial(request_image, log, address, downloads, psutil.Process(pids[0]), server)
        with ThreadPoolExecutor(clients) as threads:
            list(threads.map(client, range(jobs)))
        seconds = time.monotonic() - started
    wrong = sum(read_request(path).seed != seed for path, seed in log.files.items())
    found = {"jobs": jobs, "clients": clients, "files": len(log.files), "wrong": wrong, "seconds": round(seconds)}
    found |= {
        "slowest_submit_seconds": round(max(log.submit_seconds), 2),
        "most_ahead": max(log.places, default=0),
        "unplaced": log.unplaced,
    }
    for name, held in (("worker", log.worker_bytes), ("server", log.server_bytes)):
        ends = held[:AVERAGED_JOBS], held[-AVERAGED_JOBS:]
        found |= {f"{name}_MiB": [round(fmean(end) / 2**20, 1) for end in ends]}
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser("app.loadtest.clients", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=50)
    parser.add_argument("--model", help="a shipped model or a model folder")
    args = parser.parse_args()
    os.environ.pop("LONGTAKE_TOKEN", None)
    with tempfile.TemporaryDirectory() as folder:
        print(run_clients(Path(folder), args.clients, args.jobs, args.model))
