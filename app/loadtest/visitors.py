"""Let many visitors at once use one studio: request a clip, reload while it is made, and check that each gets its own.

python -m app.loadtest.visitors
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

from app.render import read_request

POLL_SECONDS = 0.5  # of a visitor
TIMEOUT_SECONDS = 1800.0  # until the last visitor has its clip
CHROMIUM = "/usr/bin/chromium"
CHROMIUM_FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)


@dataclass
class VisitorLog:
    """What one visitor measured.

    `served` and `wrong`: it got a clip, and it was another's. `reloads_queued` and `reloads_running` count reloads of
    the page by the state of the clip, `strangers` the clips of other visitors that it was shown.
    """

    number: int
    token: str
    served: bool = False
    wrong: bool = False
    reloads_queued: int = 0
    reloads_running: int = 0
    strangers: int = 0
    response_seconds: list[float] = field(default_factory=list)
    error: str = ""

    @property
    def prompt(self) -> str:
        return f"a large red ball bounces on the grass, number {self.number}"

    def count_reload(self, status: str) -> None:
        """Count a reload of the page."""
        self.reloads_queued += status == "queued"
        self.reloads_running += status == "in_progress"

    def check(self, path: Path) -> None:
        """Check whether a file is the clip that was requested."""
        request = read_request(path)
        self.served, self.wrong = True, (request.prompt, request.seed) != (self.prompt, self.number)


@contextmanager
def running_studio(folder: Path, tokens: list[str], model: str | None, workers: int | None) -> Iterator[str]:
    """Run a studio at a free port; yield its address."""
    command = [sys.executable, "-m", "app.cli", "studio", str(folder), "--port", "0"]
    command += (["--model", model] if model else []) + (["--workers", str(workers)] if workers else [])
    environment = os.environ | {"LONGTAKE_TOKEN": ",".join(tokens)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


class HttpVisitor:
    """A visitor without a browser: it signs in, opens the page, and sends the requests that the page sends."""

    def __init__(self, log: VisitorLog, address: str, downloads: Path, steps: int):
        self.log, self.address, self.downloads, self.steps = log, address, downloads, steps

    def __call__(self) -> None:
        try:
            self.visit()
        except Exception as error:  # reported in the log; the other visitors go on
            self.log.error = f"{type(error).__name__}: {error}".splitlines()[0]

    def visit(self) -> None:
        """Request a clip, reload once while it waits and once while it is made, and download it."""
        log, client = self.log, self.open_page()
        body = {"prompt": log.prompt, "seed": log.number, "steps": self.steps}
        id = self.call(client, "POST", "/studio/generate", json=body).json()["cards"][0]["id"]
        deadline, tag, card = time.monotonic() + TIMEOUT_SECONDS, "", {"status": "queued"}
        while card["status"] in ("queued", "in_progress"):
            assert time.monotonic() < deadline, "a clip must be completed in time"
            time.sleep(POLL_SECONDS)
            answer = self.call(client, "GET", "/studio/clips", headers={"If-None-Match": tag} if tag else {})
            if answer.status_code == 304:
                continue
            tag, cards = answer.headers["etag"], answer.json()["cards"]
            log.strangers += sum(one["id"] != id for one in cards)
            card = next(one for one in cards if one["id"] == id)
            if not {"queued": log.reloads_queued, "in_progress": log.reloads_running}.get(card["status"], 1):
                log.count_reload(card["status"])
                client.close()
                client, tag = self.open_page(), ""
        path = self.downloads / f"{log.number}.mp4"
        path.write_bytes(self.call(client, "GET", card["content"]).content)
        log.check(path)
        client.close()

    def open_page(self) -> httpx.Client:
        """Sign in like a browser without cookies."""
        client = httpx.Client(base_url=self.address, timeout=120, follow_redirects=True)
        self.call(client, "POST", "/studio/sign-in", data={"token": self.log.token})
        return client

    def call(self, client: httpx.Client, method: str, path: str, **more: Any) -> httpx.Response:
        started = time.monotonic()
        answer = client.request(method, path, **more)
        self.log.response_seconds.append(time.monotonic() - started)
        if answer.status_code != 304:
            answer.raise_for_status()
        return answer


async def visit_in_browsers(logs: list[VisitorLog], address: str, downloads: Path, steps: int, chromium: str) -> None:
    """Let each visitor use a browser window of its own."""
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=list(CHROMIUM_FLAGS))
        await asyncio.gather(*(visit_in_browser(log, browser, address, downloads, steps) for log in logs))
        await browser.close()


async def visit_in_browser(log: VisitorLog, browser: Any, address: str, downloads: Path, steps: int) -> None:
    """Do in a browser what an HttpVisitor does."""
    context = await browser.new_context()
    try:
        draft = json.dumps({"seed": log.number, "lock": True, "steps": steps})  # as if it had been here before
        await context.add_init_script(f"localStorage['longtake.draft'] ??= {json.dumps(draft)}")
        page = await context.new_page()
        page.set_default_timeout(TIMEOUT_SECONDS * 1000)
        page.on("requestfinished", lambda one: log.response_seconds.append(max(0.0, one.timing["responseEnd"]) / 1000))
        await page.goto(f"{address}/studio/")
        await page.fill("input[name=token]", log.token)
        await page.press("input[name=token]", "Enter")
        await page.wait_for_selector("html[data-ready]")
        await page.fill("#f-prompt textarea", log.prompt)
        await page.click("#b-generate")
        tile = await page.wait_for_selector("article.tile")
        id, status = await tile.get_attribute("data-id"), "queued"
        while status in ("queued", "in_progress"):
            mine = f'article.tile[data-id="{id}"]'
            status = await (await page.wait_for_selector(mine)).get_attribute("data-status")
            log.strangers += await page.locator("article.tile").count() - 1
            if not {"queued": log.reloads_queued, "in_progress": log.reloads_running}.get(status, 1):
                log.count_reload(status)
                await page.reload()
            await asyncio.sleep(POLL_SECONDS)
        path = downloads / f"{log.number}.mp4"
        path.write_bytes(await (await context.request.get(f"{address}/v1/videos/{id}/content")).body())
        log.check(path)
    except Exception as error:  # reported in the log; the other visitors go on
        log.error = f"{type(error).__name__}: {error}".splitlines()[0]
    finally:
        await context.close()


def run_visitors(
    folder: Path,
    visitors: int = 20,
    browsers: bool = False,
    model: str | None = None,
    workers: int | None = None,
    steps: int = 60,
    chromium: str = CHROMIUM,
) -> dict[str, Any]:
    """Let visitors use a studio at once; return totals and response times."""
    logs = [VisitorLog(number, secrets.token_urlsafe()) for number in range(visitors)]
    downloads = folder / "downloads"
    downloads.mkdir(parents=True)
    with running_studio(folder / "queue", [log.token for log in logs], model, workers) as address:
        httpx.get(f"{address}/studio/sign-in", timeout=120).raise_for_status()
        started = time.monotonic()
        if browsers:
            asyncio.run(visit_in_browsers(logs, address, downloads, steps, chromium))
        else:
            with ThreadPoolExecutor(visitors) as threads:
                list(threads.map(lambda log: HttpVisitor(log, address, downloads, steps)(), logs))
        seconds = time.monotonic() - started
    responses = sorted(seconds for log in logs for seconds in log.response_seconds) or [0.0]
    totals = ("served", "wrong", "strangers", "reloads_queued", "reloads_running")
    return {
        "visitors": visitors,
        **{name: sum(asdict(log)[name] for log in logs) for name in totals},
        "responses": len(responses),
        "median_response_seconds": round(responses[len(responses) // 2], 3),
        "slowest_response_seconds": round(responses[-1], 2),
        "seconds": round(seconds),
        "errors": [log.error for log in logs if log.error],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser("app.loadtest.visitors", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--visitors", type=int, default=20)
    parser.add_argument("--browsers", action="store_true", help="each with a Chromium window, through Playwright")
    parser.add_argument("--chromium", default=CHROMIUM, metavar="FILE", help=f"default {CHROMIUM}")
    parser.add_argument("--model", help="a shipped model or a model folder")
    parser.add_argument("--workers", type=int, metavar="N", help="default: that of longtake studio")
    parser.add_argument("--steps", type=int, default=60, help="of each clip (default 60)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = run_visitors(
            Path(folder),
            args.visitors,
            args.browsers,
            args.model,
            args.workers,
            args.steps,
            args.chromium,
        )
        print(json.dumps(found))
        sys.exit(0 if found["served"] == found["visitors"] and not found["wrong"] + found["strangers"] else 1)
