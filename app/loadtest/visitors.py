"""Let many visitors at once come to one studio, ask for a clip, reload while it is made, and find their own again.

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

from app.render import request_in

LOOK_SECONDS = 0.5  # between two looks of a visitor
MOST_SECONDS = 1800.0  # until the last visitor has its clip
CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)


@dataclass
class Visit:
    """What one visitor lived through: whether its clip was there and its own, how often it came anew while the clip
    waited and while it was made, cards of others that it was shown, and the seconds of each answer.
    """

    number: int
    token: str
    served: bool = False
    wrong: bool = False
    while_waiting: int = 0
    while_made: int = 0
    strangers: int = 0
    answers: list[float] = field(default_factory=list)
    trouble: str = ""

    @property
    def prompt(self) -> str:
        return f"a large red ball bounces on the grass, number {self.number}"

    def count(self, status: str) -> None:
        """Count that it came anew."""
        self.while_waiting += status == "queued"
        self.while_made += status == "in_progress"

    def judge(self, path: Path) -> None:
        """See whether a file is the clip that was asked for."""
        request = request_in(path)
        self.served, self.wrong = True, (request.prompt, request.seed) != (self.prompt, self.number)


@contextmanager
def served(folder: Path, tokens: list[str], model: str | None, workers: int | None) -> Iterator[str]:
    """Have a studio at a free port; yields its address."""
    words = [sys.executable, "-m", "app.cli", "studio", str(folder), "--port", "0"]
    words += (["--model", model] if model else []) + (["--workers", str(workers)] if workers else [])
    environ = os.environ | {"LONGTAKE_TOKEN": ",".join(tokens)}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environ)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


class Plain:
    """A visitor without a browser: it signs in, opens the page, and asks what the page asks."""

    def __init__(self, visit: Visit, address: str, home: Path, steps: int):
        self.visit, self.address, self.home, self.steps = visit, address, home, steps

    def __call__(self) -> None:
        try:
            self.come()
        except Exception as error:  # which is told, and leaves the others at it
            self.visit.trouble = f"{type(error).__name__}: {error}".splitlines()[0]

    def come(self) -> None:
        """Ask for a clip, come anew once while it waits and once while it is made, and take it home."""
        visit, client = self.visit, self.arrive()
        asked = {"prompt": visit.prompt, "seed": visit.number, "steps": self.steps}
        id = self.call(client, "POST", "/studio/ask", json=asked).json()["cards"][0]["id"]
        until, tag, card = time.monotonic() + MOST_SECONDS, "", {"status": "queued"}
        while card["status"] in ("queued", "in_progress"):
            assert time.monotonic() < until, "a clip must be there in time"
            time.sleep(LOOK_SECONDS)
            answer = self.call(client, "GET", "/studio/clips", headers={"If-None-Match": tag} if tag else {})
            if answer.status_code == 304:
                continue
            tag, cards = answer.headers["etag"], answer.json()["cards"]
            visit.strangers += sum(one["id"] != id for one in cards)
            card = next(one for one in cards if one["id"] == id)
            if not {"queued": visit.while_waiting, "in_progress": visit.while_made}.get(card["status"], 1):
                visit.count(card["status"])
                client.close()
                client, tag = self.arrive(), ""
        path = self.home / f"{visit.number}.mp4"
        path.write_bytes(self.call(client, "GET", card["content"]).content)
        visit.judge(path)
        client.close()

    def arrive(self) -> httpx.Client:
        """Open the page as a browser that was never there."""
        client = httpx.Client(base_url=self.address, timeout=120, follow_redirects=True)
        self.call(client, "POST", "/studio/sign-in", data={"token": self.visit.token})
        return client

    def call(self, client: httpx.Client, method: str, path: str, **more: Any) -> httpx.Response:
        begun = time.monotonic()
        answer = client.request(method, path, **more)
        self.visit.answers.append(time.monotonic() - begun)
        if answer.status_code != 304:
            answer.raise_for_status()
        return answer


async def browse(visits: list[Visit], address: str, home: Path, steps: int, chromium: str) -> None:
    """Let each visitor come with a browser window of its own."""
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        await asyncio.gather(*(look_around(visit, browser, address, home, steps) for visit in visits))
        await browser.close()


async def look_around(visit: Visit, browser: Any, address: str, home: Path, steps: int) -> None:
    """Do in a browser what a plain visitor does."""
    context = await browser.new_context()
    try:
        draft = json.dumps({"seed": visit.number, "lock": True, "steps": steps})  # as if it had been here before
        await context.add_init_script(f"localStorage['longtake.draft'] ??= {json.dumps(draft)}")
        page = await context.new_page()
        page.set_default_timeout(MOST_SECONDS * 1000)
        page.on("requestfinished", lambda one: visit.answers.append(max(0.0, one.timing["responseEnd"]) / 1000))
        await page.goto(f"{address}/studio/")
        await page.fill("input[name=token]", visit.token)
        await page.press("input[name=token]", "Enter")
        await page.wait_for_selector("html[data-ready]")
        await page.fill("#f-prompt textarea", visit.prompt)
        await page.click("#b-make")
        tile = await page.wait_for_selector("article.tile")
        id, status = await tile.get_attribute("data-id"), "queued"
        while status in ("queued", "in_progress"):
            mine = f'article.tile[data-id="{id}"]'
            status = await (await page.wait_for_selector(mine)).get_attribute("data-status")
            visit.strangers += await page.locator("article.tile").count() - 1
            if not {"queued": visit.while_waiting, "in_progress": visit.while_made}.get(status, 1):
                visit.count(status)
                await page.reload()
            await asyncio.sleep(LOOK_SECONDS)
        path = home / f"{visit.number}.mp4"
        path.write_bytes(await (await context.request.get(f"{address}/v1/videos/{id}/content")).body())
        visit.judge(path)
    except Exception as error:  # which is told, and leaves the others at it
        visit.trouble = f"{type(error).__name__}: {error}".splitlines()[0]
    finally:
        await context.close()


def crowd(
    folder: Path,
    visitors: int = 20,
    browsers: bool = False,
    model: str | None = None,
    workers: int | None = None,
    steps: int = 60,
    chromium: str = CHROMIUM,
) -> dict[str, Any]:
    """Let so many visitors come at once; returns what came of it."""
    visits = [Visit(number, secrets.token_urlsafe()) for number in range(visitors)]
    home = folder / "taken"
    home.mkdir(parents=True)
    with served(folder / "queue", [visit.token for visit in visits], model, workers) as address:
        httpx.get(f"{address}/studio/sign-in", timeout=120).raise_for_status()
        begun = time.monotonic()
        if browsers:
            asyncio.run(browse(visits, address, home, steps, chromium))
        else:
            with ThreadPoolExecutor(visitors) as threads:
                list(threads.map(lambda visit: Plain(visit, address, home, steps)(), visits))
        seconds = time.monotonic() - begun
    answers = sorted(one for visit in visits for one in visit.answers) or [0.0]
    totals = ("served", "wrong", "strangers", "while_waiting", "while_made")
    return {
        "visitors": visitors,
        **{name: sum(asdict(visit)[name] for visit in visits) for name in totals},
        "answers": len(answers),
        "middle_answer": round(answers[len(answers) // 2], 3),
        "longest_answer": round(answers[-1], 2),
        "seconds": round(seconds),
        "troubles": [visit.trouble for visit in visits if visit.trouble],
    }


if __name__ == "__main__":
    words = argparse.ArgumentParser("app.loadtest.visitors", description=(__doc__ or "").splitlines()[0])
    words.add_argument("--visitors", type=int, default=20)
    words.add_argument("--browsers", action="store_true", help="each with a window of Chromium, by Playwright")
    words.add_argument("--chromium", default=CHROMIUM, metavar="FILE", help=f"default {CHROMIUM}")
    words.add_argument("--model", help="a shipped model or a model folder")
    words.add_argument("--workers", type=int, metavar="N", help="default: as longtake studio has")
    words.add_argument("--steps", type=int, default=60, help="of each clip (default 60)")
    chosen = words.parse_args()
    with tempfile.TemporaryDirectory() as place:
        found = crowd(
            Path(place),
            chosen.visitors,
            chosen.browsers,
            chosen.model,
            chosen.workers,
            chosen.steps,
            chosen.chromium,
        )
        print(json.dumps(found))
        sys.exit(0 if found["served"] == found["visitors"] and not found["wrong"] + found["strangers"] else 1)
