"""Helpers for tests of the studio in Chromium through Playwright."""

import shutil

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NO_CHROMIUM = "Chromium is not installed; see make test-browser"
CHROMIUM_FLAGS = ("no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking")
CHROMIUM_FLAGS += ("disable-component-update", "disable-sync")
DESKTOP, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
TIMEOUT_MS = 30_000
FEW_STEPS = 3
SLOW = {"steps": 100, "seconds": 4.125}  # a clip that takes a while
WIDTHS = "[document.documentElement.scrollWidth, innerWidth]"


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
