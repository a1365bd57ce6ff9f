"""Fixtures for tests of the studio in Chromium: a server, a browser, and a visit of the page."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.studio_browser import CHROMIUM, CHROMIUM_FLAGS, DESKTOP, FEW_STEPS, TIMEOUT_MS


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
