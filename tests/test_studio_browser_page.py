"""The page in a browser: gallery, comparison, languages, themes, phones, and labels of all controls.

Needs Chromium and Playwright (`make test-browser`), and skips itself without them. STUDIO_IMAGES names a folder for new
screenshots of the README.
"""

import os
from pathlib import Path

import pytest

from dit.modes import MODES
from tests.studio_browser import (
    CHROMIUM,
    NO_CHROMIUM,
    PHONE,
    WIDTHS,
    compose,
    fetch,
    opened,
    tile,
    typed,
)

sync_api = pytest.importorskip("playwright.sync_api")
pytest_plugins = ["tests.studio_fixtures"]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)]


def test_an_example_of_the_welcome_is_generated_by_one_click(visit):
    with visit(locale="zh-CN") as page:
        fetch(page, "/studio/clips")
        page.fill("#search", "nothing has these words")
        page.wait_for_selector(".nothing")
        page.evaluate(
            "import('/studio/frontend/welcome.js')"
            ".then(({ showWelcome }) => showWelcome(document.getElementById('none')))"
        )
        page.click(".example >> nth=2")
        page.fill("#search", "")
        assert tile(page, "一个小的黄色胶囊落下").locator("video").count() == 1


def test_opening_details_changes_no_form(visit):
    with visit() as page:
        compose(page, "a grey ball rolls on wood")
        tile(page, "a grey ball rolls on wood")
        page.fill("#f-prompt textarea", "a half-written prompt")
        page.click(".mode[data-mode=loop]")
        before = typed(page), page.evaluate("localStorage['longtake.draft']")
        details = opened(page, "a grey ball rolls on wood")
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(300)
        page.keyboard.press("ArrowLeft")
        page.wait_for_selector(".details .credentials")
        assert "a grey ball" in details.inner_text()
        page.keyboard.press("Escape")
        page.wait_for_selector("dialog", state="detached")
        assert (typed(page), page.evaluate("localStorage['longtake.draft']")) == before


def test_favourites_and_notes_are_stored_and_found(visit):
    with visit() as page:
        compose(page, "a pink cylinder swings")
        opened(page, "a pink cylinder swings")
        page.fill(".note textarea", "for the opening")
        page.wait_for_selector("text=saved")
        page.keyboard.press("Escape")
        tile(page, "a pink cylinder swings").locator(".star").click()
        page.reload()
        page.wait_for_selector("html[data-ready]")
        page.keyboard.press("/")
        page.keyboard.type("opening")
        page.wait_for_function("document.querySelectorAll('.tile').length === 1")
        assert tile(page, "a pink cylinder swings").locator(".star").get_attribute("aria-pressed") == "true"
        page.fill("#search", "")
        page.click(".chip >> text=Favourites")
        page.wait_for_function("document.querySelectorAll('.tile').length === 1")


def test_two_variations_play_in_sync_and_are_voted_on(visit):
    with visit() as page:
        page.fill("#f-variations input[type=number]", "2")
        page.keyboard.press("Tab")
        compose(page, "an orange cube bounces on concrete")
        tile(page, "an orange cube bounces")
        page.wait_for_function("!document.querySelector('.tile[data-status=queued], .tile[data-status=in_progress]')")
        for one in page.locator(".tile", has_text="an orange cube bounces").all():
            one.locator(".pick").click()
        page.click("#tray .accent")
        page.wait_for_selector(".pair video")
        films = 'const [one, two] = document.querySelectorAll(".pair video");'
        together = "Math.abs(one.currentTime - two.currentTime) < 0.125 && !one.paused && !two.paused"  # a frame
        for _ in range(3):
            page.wait_for_function(f"() => {{ {films} return {together}; }}")
            moved = "two.currentTime = (one.currentTime + 1) % one.duration;"
            assert not page.evaluate(f"() => {{ {films} {moved} return {together}; }}")
        page.wait_for_function(f"() => {{ {films} return {together}; }}")
        page.keyboard.press("Escape")
        count = fetch(page, "/studio/votes").json()["count"]
        page.click("#top-tools >> text=Vote")
        for quality, answer in (("looks", "left"), ("motion", "tie"), ("prompt", "right")):
            page.check(f"input[name=vote-{quality}][value={answer}]", force=True)
        page.click("text=Submit")
        page.wait_for_selector(f"text={count + 1} votes")
        votes = fetch(page, "/studio/votes").json()
        assert votes["count"] == count + 1 and votes["latest"][0]["motion"] == "tie"


def test_the_page_is_chinese_for_a_chinese_browser_and_english_at_a_click(visit):
    with visit(locale="zh-CN") as page:
        assert page.inner_text("#b-generate") == "生成" and page.inner_text("#presets h1") == "创作"
        assert page.get_attribute("html", "lang") == "zh-CN"
        compose(page, "一个大红球在草地上弹跳")
        tile(page, "一个大红球在草地上弹跳")
        page.click("#language")
        page.wait_for_function("document.querySelector('#b-generate').innerText === 'Generate'")
        page.reload()
        page.wait_for_selector("html[data-ready]")
        assert page.inner_text("#presets h1") == "Compose"


def test_the_theme_is_the_systems_until_one_is_chosen(visit):
    ground = "getComputedStyle(document.body).backgroundColor"
    dark, light = "rgb(15, 16, 19)", "rgb(246, 244, 240)"
    with visit(color_scheme="dark") as page:
        assert page.evaluate(ground) == dark
        page.emulate_media(color_scheme="light")
        page.wait_for_function(f"{ground} === '{light}'")
        page.emulate_media(color_scheme="dark")
        page.wait_for_function(f"{ground} === '{dark}'")
        page.click("#light")
        assert page.evaluate(ground) == light
        page.reload()
        page.wait_for_selector("html[data-ready]")
        assert page.evaluate(ground) == light


def test_unlearned_words_are_named_while_typing_and_on_the_tile(visit):
    with visit() as page:
        page.fill("#f-prompt textarea", "a red Zebra")
        page.wait_for_selector("#words .unlearned")
        assert page.inner_text("#words").startswith("Not learned: Zebra.") and "balls" in page.inner_text("#words")
        page.click("#language")
        page.wait_for_function("document.querySelector('#words').innerText.startsWith('没有学过：Zebra。')")
        assert "球" in page.inner_text("#words")
        page.click("#language")
        page.keyboard.press("Control+Enter")
        made = tile(page, "a red Zebra")
        assert "Not learned: Zebra" in made.inner_text()
        made.locator("button[aria-haspopup=menu]").click()
        with page.expect_download() as download:
            page.click(".menu >> text=Download")
        assert download.value.suggested_filename.startswith("a-red-zebra-")
        page.fill("#f-prompt textarea", "a red ball")
        page.wait_for_selector("#words .unlearned", state="hidden")


def test_the_form_stays_in_sight_while_the_gallery_scrolls(visit):
    with visit() as page:
        page.evaluate("document.querySelector('#grid').style.minHeight = '3000px'")
        page.evaluate("scrollTo(0, 1500)")
        assert page.evaluate("document.querySelector('#compose').getBoundingClientRect().top") == 16


def test_nothing_is_wider_than_a_phone(visit):
    with visit(viewport=PHONE, has_touch=True) as page:
        compose(page, "a small black ball falls on sand")
        page.wait_for_selector(".tile")
        for mode in MODES:
            page.click(f".mode[data-mode={mode}]")
            page.wait_for_timeout(60)
            width, screen = page.evaluate(WIDTHS)
            assert width <= screen, mode
        opened(page, "a small black ball falls")
        inside = "[document.querySelector('dialog').scrollWidth, document.querySelector('dialog').clientWidth]"
        assert page.evaluate(inside)[0] <= page.evaluate(inside)[1] and page.evaluate(WIDTHS)[0] <= PHONE["width"]


def test_a_prompt_is_never_rendered_as_html(visit):
    html = "<img src=x onerror=alert(1)> <b>ball</b> ${1}"
    with visit() as page:
        page.on("dialog", lambda dialog: pytest.fail("a prompt ran as a script"))
        compose(page, html)
        tile(page, html)
        assert html in opened(page, html).inner_text()
        assert page.locator(".tile .prompt b, .quote b, [onerror]").count() == 0


def test_every_control_has_a_name(visit):
    nameless = """[...document.querySelectorAll("button, input, textarea, select, video")].filter((one) =>
        one.offsetParent && !(one.innerText ?? "").trim() && !one.getAttribute("aria-label") && !one.labels?.length
    ).map((one) => one.outerHTML.slice(0, 200))"""
    with visit() as page:
        compose(page, "a brown capsule rolls")
        tile(page, "a brown capsule rolls")
        for mode in ("text-to-video", "storyboard", "keyframes", "retake"):
            page.click(f".mode[data-mode={mode}]")
            page.wait_for_timeout(100)
            assert page.evaluate(nameless) == []


@pytest.mark.skipif("STUDIO_IMAGES" not in os.environ, reason="STUDIO_IMAGES names no folder")
def test_screenshots_for_the_readme_are_taken(visit):
    prompts = [
        "a small yellow capsule falls",
        "a large purple ball rolls on wood",
        "a white cube slides on the grass",
        "an orange ball bounces on concrete",
        "a blue cube spins on sand while the camera orbits to the left",
        "a large red ball bounces on the grass",
    ]
    with visit({"steps": 30}, color_scheme="dark") as page:
        for prompt in prompts:
            compose(page, prompt)
            tile(page, prompt)
        page.evaluate("localStorage['longtake.draft'] = JSON.stringify({ steps: 100, variations: 2 })")
        page.reload()
        page.wait_for_selector("html[data-ready]")
        compose(page, "a large green ball bounces on the grass")
        running = tile(page, "a large green ball", "in_progress")
        page.wait_for_function("tile => tile.querySelector('.preview')?.src", arg=running.element_handle())
        page.wait_for_timeout(1500)
        take(page, "desk")
    board = [(0, "一个大红球停在草地上"), (1.5, "一个大红球在草地上弹跳"), (3, "一个大红球滚过草地")]
    moments = [{"at": at, "prompt": prompt, "image": None, "clip": None} for at, prompt in board]
    with visit({"mode": "storyboard", "moments": moments, "length": 4.5}, locale="zh-CN", color_scheme="light") as page:
        page.wait_for_selector(".card >> nth=2")
        page.wait_for_function("!document.querySelector('.tile[data-status=queued], .tile[data-status=in_progress]')")
        page.wait_for_timeout(1500)
        take(page, "storyboard")


def take(page, name: str) -> None:
    """Take a screenshot of the page."""
    page.screenshot(path=Path(os.environ["STUDIO_IMAGES"]) / f"{name}.jpg", type="jpeg", quality=84)
