"""Fixtures and helpers for tests of the studio in Chromium through Playwright."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NO_CHROMIUM = "Chromium is not installed; see make test-browser"
CHROMIUM_FLAGS = ("no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking")
CHROMIUM_FLAGS += ("disable-component-update", "disable-sync")
DESKTOP, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
TIMEOUT_MS = 30_000
FEW_STEPS = 3
SLOW = {"steps": 100, "seconds": 4.125}  # a clip that takes a while
WIDTHS = "[document.documentElement.scrollWidth, innerWidth]"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The address of a studio on the command line, with the shipped model and one worker."""
    folder = tmp_path_factory.mktemp("studio") / "queue"
    process = subprocess.Popen(
        [sys.executable, "-m", "app.cli", "studio", str(folder), "--port", "0", "--workers", "1"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "LONGTAKE_TOKEN": ""},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        yield process.stdout.readline().strip()
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=[f"--{flag}" for flag in CHROMIUM_FLAGS])
        yield started
        started.close()


@pytest.fixture
def visit(browser, address):
    """Open the studio in a new browser context; an error in its console or a request to another host fails the test."""

    @contextmanager
    def visited(draft: dict | None = None, **settings) -> Iterator:
        errors = []
        context = browser.new_context(**{"viewport": DESKTOP, "locale": "en-US", "base_url": address} | settings)
        context.set_default_timeout(TIMEOUT_MS)
        stored = json.dumps({"steps": FEW_STEPS} | (draft or {}))
        context.add_init_script(f"localStorage['longtake.draft'] ??= {json.dumps(stored)}")
        page = context.new_page()
        page.on("console", lambda message: message.type == "error" and errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: is_foreign(request.url, address) and errors.append(request.url))
        page.goto("/studio/")
        page.wait_for_selector("html[data-ready]")
        yield page
        assert errors == []
        context.close()

    return visited


def is_foreign(url: str, address: str) -> bool:
    return not url.startswith((f"{address}/", "data:", f"blob:{address}/"))


def compose(page, prompt: str) -> None:
    """Generate a clip with the keyboard."""
    page.fill("#f-prompt textarea", prompt)
    page.keyboard.press("Control+Enter")


def tile(page, words: str, status: str = "completed"):
    """Wait for a clip of the gallery, and return it."""
    found = page.locator(f".tile[data-status={status}]", has_text=words).first
    found.wait_for()
    return found


def fetch(page, path: str, **options):
    """Send a request with the cookies of the page."""
    answer = page.request.fetch(path, **options)
    assert answer.ok, answer.text()
    return answer


def opened(page, words: str):
    """Open the details of a clip and wait until its file has been read."""
    tile(page, words).locator(".view").click()
    page.wait_for_selector(".details .credentials")
    return page.locator("dialog.details")


def typed(page) -> dict[str, str]:
    """Return the values in the form."""
    fields = {"prompt": "#f-prompt textarea", "negative_prompt": "#f-negative_prompt textarea", "seed": "#f-seed input"}
    return {name: page.input_value(field) for name, field in fields.items()}
