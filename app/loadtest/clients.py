"""Let many clients at once ask one server for pictures, and see that each gets its own, and what memory becomes of it.

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
from app.render import request_in

POLL_SECONDS = 0.5
MOST_SECONDS = 120.0  # for an answer
STRETCH = 100  # jobs at each end over which memory is averaged


@dataclass
class Tale:
    """What clients lived through: seconds until each answer to a submission, places in line that they were told, the
    seeds asked for by where the file came to lie, and the bytes that the worker and the server held after each.
    """

    answers: list[float] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    files: dict[Path, int] = field(default_factory=dict)
    untold: int = 0
    worker: list[int] = field(default_factory=list)
    server: list[int] = field(default_factory=list)


@contextmanager
def served(folder: Path, model: str | None = None) -> Iterator[tuple[str, psutil.Process]]:
    """Have a server with one worker at a free port; yields its address and its process."""
    words = [sys.executable, "-m", "app.cli", "serve", str(folder), "--port", "0", "--workers", "1"]
    process = subprocess.Popen(words + (["--model", model] if model else []), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip(), psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def ask(tale: Tale, address: str, folder: Path, worker: psutil.Process, server: psutil.Process, seed: int) -> None:
    """Be one client: submit a picture, ask until it is there, take it home."""
    with httpx.Client(base_url=address, timeout=MOST_SECONDS) as client:
        found: dict[str, Any] = {"mode": "text-to-image", "prompt": f"a red ball {seed}", "seed": seed, "steps": 1}
        begun = time.monotonic()
        video = client.post("/v1/videos", json=found).raise_for_status().json()
        tale.answers.append(time.monotonic() - begun)
        while video["status"] in ("queued", "in_progress"):
            if video["status"] == "queued":
                told = video["ahead"] is not None
                tale.places += [video["ahead"]] * told
                tale.untold += not told
            time.sleep(POLL_SECONDS)
            video = client.get(f"/v1/videos/{video['id']}").raise_for_status().json()
        path = folder / f"{seed}.png"
        path.write_bytes(client.get(video["content"]).raise_for_status().content)
        tale.files[path] = seed
        tale.worker.append(worker.memory_info().rss)
        tale.server.append(server.memory_info().rss)


def crowd(folder: Path, clients: int, jobs: int, model: str | None = None) -> dict[str, Any]:
    """Let so many clients at once make so many pictures in all; returns what came of it, seconds, and MiB held."""
    tale, home = Tale(), folder / "taken"
    home.mkdir(parents=True)
    with served(folder / "queue", model) as (address, server):
        while not (pids := [row["pid"] for row in Queue(folder / "queue").rows.execute("SELECT pid FROM workers")]):
            time.sleep(POLL_SECONDS)
        httpx.get(f"{address}/v1/models", timeout=MOST_SECONDS).raise_for_status()
        begun = time.monotonic()
        be_client = partial(ask, tale, address, home, psutil.Process(pids[0]), server)
        with ThreadPoolExecutor(clients) as threads:
            list(threads.map(be_client, range(jobs)))
        seconds = time.monotonic() - begun
    wrong = sum(request_in(path).seed != seed for path, seed in tale.files.items())
    found = {"jobs": jobs, "clients": clients, "files": len(tale.files), "wrong": wrong, "seconds": round(seconds)}
    found |= {
        "slowest_answer": round(max(tale.answers), 2),
        "furthest_back": max(tale.places, default=0),
        "untold": tale.untold,
    }
    for name, held in (("worker", tale.worker), ("server", tale.server)):
        ends = held[:STRETCH], held[-STRETCH:]
        found |= {f"{name}_MiB": [round(fmean(end) / 2**20, 1) for end in ends]}
    return found


if __name__ == "__main__":
    words = argparse.ArgumentParser("app.loadtest.clients", description=(__doc__ or "").splitlines()[0])
    words.add_argument("--clients", type=int, default=50)
    words.add_argument("--jobs", type=int, default=50)
    words.add_argument("--model", help="a shipped model or a model folder")
    chosen = words.parse_args()
    os.environ.pop("LONGTAKE_TOKEN", None)
    with tempfile.TemporaryDirectory() as folder:
        print(crowd(Path(folder), chosen.clients, chosen.jobs, chosen.model))
