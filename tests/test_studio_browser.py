"""The studio in a browser: what people do there works, nothing is lost, and no request leaves this machine.

Needs Chromium and Playwright (`make test-browser`), and skips itself without them. STUDIO_PICTURES names a folder into
which the README's pictures are taken anew.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.registry import DEFAULT_MODEL, model_folder
from dit.modes import MODES
from dit.settings import SETTINGS, read_settings

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed; see make test-browser")

QUIET = ("no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking")
QUIET += ("disable-component-update", "disable-sync")
DESK, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
SOON_MS = 30_000
FEW = 3  # steps of a clip that is soon there
SLOW = {"steps": 100, "seconds": 4.125}  # a clip that is worth watching
WIDTHS = "[document.documentElement.scrollWidth, innerWidth]"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A studio as people start it, with the shipped model and one worker."""
    folder = tmp_path_factory.mktemp("studio") / "queue"
    process = subprocess.Popen(
        [sys.executable, "-m", "app.cli", "studio", str(folder), "--port", "0", "--workers", "1"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "LONGTAKE_TOKEN": ""},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process.stdout.readline().strip()
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=[f"--{flag}" for flag in QUIET])
        yield started
        started.close()


@pytest.fixture
def visit(browser, address):
    """How somebody opens the studio who was never here: what goes wrong in their browser fails the test."""

    @contextmanager
    def visited(draft: dict | None = None, **settings) -> Iterator:
        wrong = []
        context = browser.new_context(**{"viewport": DESK, "locale": "en-US", "base_url": address} | settings)
        context.set_default_timeout(SOON_MS)
        kept = json.dumps({"steps": FEW} | (draft or {}))
        context.add_init_script(f"localStorage['longtake.draft'] ??= {json.dumps(kept)}")
        page = context.new_page()
        page.on("console", lambda said: said.type == "error" and wrong.append(said.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: is_far(request.url, address) and wrong.append(request.url))
        page.goto("/studio/")
        page.wait_for_selector("html[data-ready]")
        yield page
        assert wrong == []
        context.close()

    return visited


def is_far(url: str, address: str) -> bool:
    return not url.startswith((f"{address}/", "data:", f"blob:{address}/"))


def compose(page, prompt: str) -> None:
    """Ask for a clip with the keyboard."""
    page.fill("#f-prompt textarea", prompt)
    page.keyboard.press("Control+Enter")


def tile(page, words: str, status: str = "completed"):
    """Wait for a clip in the gallery, and return it."""
    found = page.locator(f".tile[data-status={status}]", has_text=words).first
    found.wait_for()
    return found


def ask(page, path: str, **options):
    """Ask the server as the page does."""
    answer = page.request.fetch(path, **options)
    assert answer.ok, answer.text()
    return answer


def opened(page, words: str):
    """Open the details of a clip and wait until its file has been read."""
    tile(page, words).locator(".view").click()
    page.wait_for_selector(".details .credentials")
    return page.locator("dialog.details")


def typed(page) -> dict[str, str]:
    """Return what stands in the form."""
    fields = {"prompt": "#f-prompt textarea", "negative_prompt": "#f-negative_prompt textarea", "seed": "#f-seed input"}
    return {name: page.input_value(field) for name, field in fields.items()}


def test_a_prompt_becomes_a_playing_video(visit):
    with visit() as page:
        page.wait_for_selector(".greeting")  # of an empty gallery
        compose(page, "a large red ball bounces on the grass")
        film = tile(page, "a large red ball").locator("video")
        page.wait_for_function("film => film.currentTime > 0 && !film.paused", arg=film.element_handle())
        assert film.evaluate("film => [film.videoWidth, film.muted, film.loop]") == [64, True, True]


def test_an_example_of_the_greeting_runs_by_one_click(visit):
    with visit(locale="zh-CN") as page:
        ask(page, "/studio/clips")
        page.fill("#search", "nothing has these words")
        page.wait_for_selector(".nothing")
        page.evaluate("import('/studio/look/greeting.js').then(({ greet }) => greet(document.getElementById('none')))")
        page.click(".example >> nth=2")
        page.fill("#search", "")
        assert tile(page, "一个小的黄色胶囊落下").locator("video").count() == 1


def test_a_reload_in_mid_render_loses_nothing(visit):
    with visit(SLOW) as page:
        page.fill("#f-negative_prompt textarea", "grey")
        compose(page, "a blue cube spins on sand")
        running = tile(page, "a blue cube spins", "in_progress")
        page.wait_for_function("tile => tile.querySelector('.preview')?.src", arg=running.element_handle())
        before = typed(page)
        page.reload()
        page.wait_for_selector("html[data-ready]")
        again = tile(page, "a blue cube spins", "in_progress")
        assert "/100" in again.locator(".phase").inner_text()
        assert typed(page) == before | {"prompt": "a blue cube spins on sand", "negative_prompt": "grey"}
        tile(page, "a blue cube spins")


def test_what_waits_says_its_place_and_is_cancelled(visit):
    with visit(SLOW) as page:
        page.fill("#f-variations input[type=number]", "3")
        page.keyboard.press("Tab")
        compose(page, "a white cone falls")
        tile(page, "a white cone falls", "in_progress")
        waiting = page.locator(".tile[data-status=queued]", has_text="a white cone falls")
        waiting.filter(has_text="1 ahead").wait_for()
        assert waiting.filter(has_text="Next in line").count() == 1
        stops = page.get_by_role("button", name="Cancel", disabled=False)
        for left in (2, 1, 0):
            stops.first.click()
            sync_api.expect(stops).to_have_count(left, timeout=SOON_MS)
        page.wait_for_function("document.querySelectorAll('.tile[data-status=cancelled]').length == 3")
        tile(page, "a white cone falls", "cancelled").get_by_role("button", name="Remove").click()
        page.wait_for_function("document.querySelectorAll('.tile[data-status=cancelled]').length == 2")


def test_only_what_the_model_was_trained_for_is_offered(visit):
    formats = read_settings(model_folder(DEFAULT_MODEL) / SETTINGS).formats
    values = "all => all.map((one) => one.value)"
    with visit() as page:
        for mode in MODES:
            page.click(f".mode[data-mode={mode}]")
            page.wait_for_function("mode => document.documentElement.dataset.mode === mode", arg=mode)
            page.wait_for_timeout(120)
            known = {f"{columns}x{rows}" for columns, rows, frames in formats if (frames == 1) == MODES[mode].still}
            assert set(page.eval_on_selector_all("#f-size input", values)) == known
            fixed = page.is_visible("#f-seconds")
            assert fixed == (MODES[mode].timed and not MODES[mode].still and not MODES[mode].any_length)
        page.click(".mode[data-mode=text-to-video]")
        for size in sorted({f"{columns}x{rows}" for columns, rows, frames in formats if frames > 1}):
            page.check(f"#f-size input[value='{size}']", force=True)
            seconds = {frames / 8 for columns, rows, frames in formats if frames > 1 and f"{columns}x{rows}" == size}
            labels = "all => all.map((one) => one.textContent.trim())"
            page.wait_for_function(
                "many => document.querySelectorAll('#f-seconds label:has(input)').length === many", arg=len(seconds)
            )
            shown = page.eval_on_selector_all("#f-seconds label:has(input)", labels)
            assert shown == [f"{one:.1f} s" for one in sorted(seconds)]


def test_a_storyboard_is_told_opened_and_saved(visit, tmp_path):
    with visit() as page:
        page.click(".mode[data-mode=storyboard]")
        page.fill(".card textarea >> nth=0", "a green ball rests on the grass")
        page.fill(".card textarea >> nth=1", "a green ball bounces on the grass")
        page.locator(".ruler .handle").first.press("ArrowLeft")
        with page.expect_download() as saved:
            page.click("text=Save as a file")
        text = Path(saved.value.path()).read_text()
        assert "at: 1.5" in text and "a green ball bounces" in text
        (tmp_path / "board.yaml").write_text(text.replace("green", "purple"))
        with page.expect_file_chooser() as chooser:
            page.click("text=Open a file")
        chooser.value.set_files(tmp_path / "board.yaml")
        page.wait_for_function("document.querySelector('.card textarea').value.includes('purple')")
        page.click("#b-make")
        details = opened(page, "a purple ball rests")
        assert "1.5 s: a purple ball bounces" in details.locator(".quote").first.inner_text()


def test_every_mode_is_made_from_a_clip(visit):
    with visit() as page:
        compose(page, "a yellow cube slides")
        source = tile(page, "a yellow cube slides")
        begun = [mode for mode in MODES if "clip" in MODES[mode].reads or mode in ("image-to-video", "keyframes")]
        for mode in begun:
            source.get_by_role("button", name="Make from this").click()
            page.locator(".menu button", has=page.locator(f"text=/^{titles()[mode]}$/")).click()
            page.wait_for_function("mode => document.documentElement.dataset.mode === mode", arg=mode)
            page.wait_for_selector(".slot.full")
            page.fill("#f-prompt textarea", f"{mode}: a red cube")
            if mode == "connect":
                page.click(".slot:not(.full) .slot-view")
                page.click(".choice-one >> nth=0")
                page.wait_for_function("document.querySelectorAll('.slot.full').length == 2")
            if mode == "inpaint":
                paint(page)
            page.wait_for_function("!document.querySelector('#estimate .hint')")
            page.click("#b-make")
            page.locator(".tile", has_text=f"{mode}: a red cube").first.wait_for()
        for mode in begun:
            tile(page, f"{mode}: a red cube")
        cards = {card["prompt"]: card for card in ask(page, "/studio/clips?limit=100").json()["cards"]}
        for mode in begun:
            card = cards[f"{mode}: a red cube"]
            assert card["mode"] == mode and source.get_attribute("data-id") in lineage(card, cards)
        assert page.locator(".tile[data-status=failed]").count() == 0


def lineage(card: dict, cards: dict) -> list[str]:
    """Return what a clip was made from; a frame of a clip was sent as a picture, and stands for the clip."""
    source = cards["a yellow cube slides"]["id"]
    return [source if id.startswith("file-") else id for id in card["parents"]]


def titles() -> dict[str, str]:
    from app.studio.translations import read_words

    return {mode: read_words()["en"][f"modes.{mode}"] for mode in MODES}


def paint(page) -> None:
    """Paint a mask, and wait until it is kept."""
    canvas = page.locator(".paint")
    canvas.hover(position={"x": 60, "y": 60})  # which waits until nothing moves beneath the hand
    page.mouse.down()
    canvas.hover(position={"x": 200, "y": 200})
    page.mouse.up()
    page.wait_for_selector("text=/% of the frame/")


def details_of(page, id: str) -> dict:
    return ask(page, f"/studio/clips/{id}").json()


def test_a_clip_from_elsewhere_is_dragged_in_and_made_again(visit):
    with visit() as page:
        page.fill("#f-negative_prompt textarea", "fog")
        compose(page, "a cyan capsule topples")
        id = tile(page, "a cyan capsule topples").get_attribute("data-id")
        request = details_of(page, id)["request"]
        page.evaluate("id => fetch(`/v1/videos/${id}/content`).then(async (one) => window.film = await one.blob())", id)
        ask(page, f"/studio/clips/{id}", method="DELETE")
        page.fill("#f-prompt textarea", "something else")
        page.fill("#f-negative_prompt textarea", "")
        page.evaluate(
            """() => {
                const dataTransfer = new DataTransfer();
                dataTransfer.items.add(new File([window.film], "elsewhere.mp4", { type: "video/mp4" }));
                for (const kind of ["dragover", "drop"]) {
                    const event = new DragEvent(kind, { dataTransfer, bubbles: true, cancelable: true });
                    document.body.dispatchEvent(event);
                }
            }"""
        )
        page.wait_for_selector(".details .credentials.trusted")
        assert typed(page)["prompt"] == "something else"  # nobody asked for more than a look
        page.click(".details .accent >> text=Make again")
        page.wait_for_function("document.querySelector('#f-negative_prompt textarea').value === 'fog'")
        assert typed(page) == {"prompt": "a cyan capsule topples", "negative_prompt": "fog", "seed": str(request["seed"])}
        page.click("#b-make")
        again = details_of(page, tile(page, "a cyan capsule topples").get_attribute("data-id"))
        assert {**again["request"], **request} == again["request"]
        page.click("text=Undo")
        page.wait_for_function("document.querySelector('#f-prompt textarea').value === 'something else'")


def test_looking_at_details_changes_no_form(visit):
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


def test_favourites_notes_and_search_are_kept(visit):
    with visit() as page:
        compose(page, "a pink cylinder swings")
        opened(page, "a pink cylinder swings")
        page.fill(".note textarea", "for the opening")
        page.wait_for_selector("text=kept")
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


def test_a_prompt_is_written_out_to_be_read_changed_and_undone(visit):
    with visit() as page:
        page.fill("#f-prompt textarea", "ruby ball hops")
        page.click("#a-writing button >> nth=0")
        page.click("#b-write")
        page.wait_for_function("document.querySelector('#f-upsampled_prompt textarea').value")
        assert page.is_checked("#f-upsample input[value=auto]")
        page.fill("#f-upsampled_prompt textarea", "A large red ball bounces up and down on the grass.")
        page.keyboard.press("Control+Enter")
        details = opened(page, "ruby ball hops")
        quotes = details.locator(".quote p").all_inner_texts()
        assert "ruby ball hops" in quotes and "A large red ball bounces up and down on the grass." in quotes
        page.keyboard.press("Escape")
        page.check("#f-upsample input[value=none]")
        page.fill("#f-upsampled_prompt textarea", "")
        compose(page, "ruby ball hops, undone")
        quotes = opened(page, "ruby ball hops, undone").locator(".quote p").all_inner_texts()
        assert quotes == ["ruby ball hops, undone"]


def test_two_variations_are_compared_in_step_and_voted_on(visit):
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
        count = ask(page, "/studio/votes").json()["count"]
        page.click("#top-tools >> text=Vote")
        for quality, answer in (("looks", "left"), ("motion", "tie"), ("prompt", "right")):
            page.check(f"input[name=vote-{quality}][value={answer}]", force=True)
        page.click("text=Cast the vote")
        page.wait_for_selector(f"text={count + 1} votes")
        votes = ask(page, "/studio/votes").json()
        assert votes["count"] == count + 1 and votes["latest"][0]["motion"] == "tie"


def test_words_are_chinese_for_who_reads_chinese_and_english_at_a_click(visit):
    with visit(locale="zh-CN") as page:
        assert page.inner_text("#b-make") == "生成" and page.inner_text("#presets h1") == "创作"
        assert page.get_attribute("html", "lang") == "zh-CN"
        compose(page, "一个大红球在草地上弹跳")
        tile(page, "一个大红球在草地上弹跳")
        page.click("#language")
        page.wait_for_function("document.querySelector('#b-make').innerText === 'Make the clip'")
        page.reload()
        page.wait_for_selector("html[data-ready]")
        assert page.inner_text("#presets h1") == "Compose"


def test_it_is_dark_and_at_a_click_light_and_stays_so(visit):
    ground = "getComputedStyle(document.body).backgroundColor"
    with visit() as page:
        assert page.evaluate(ground) == "rgb(15, 16, 19)"
        page.click("#light")
        assert page.evaluate(ground) == "rgb(246, 244, 240)"
        page.reload()
        page.wait_for_selector("html[data-ready]")
        assert page.evaluate(ground) == "rgb(246, 244, 240)"


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


def test_what_is_typed_is_never_read_as_html(visit):
    hostile = "<img src=x onerror=alert(1)> <b>ball</b> ${1}"
    with visit() as page:
        page.on("dialog", lambda dialog: pytest.fail("a prompt ran as a script"))
        compose(page, hostile)
        tile(page, hostile)
        assert hostile in opened(page, hostile).inner_text()
        assert page.locator(".says b, .quote b, [onerror]").count() == 0


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


@pytest.mark.skipif("STUDIO_PICTURES" not in os.environ, reason="STUDIO_PICTURES names no folder")
def test_pictures_for_the_readme_are_taken(visit):
    prompts = [
        "a small yellow capsule falls",
        "a large purple ball rolls on wood",
        "a white cube slides on the grass",
        "an orange ball bounces on concrete",
        "a blue cube spins on sand while the camera orbits to the left",
        "a large red ball bounces on the grass",
    ]
    with visit({"steps": 30}) as page:
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
    with visit({"mode": "storyboard", "moments": moments, "length": 4.5}, locale="zh-CN") as page:
        page.click("#light")
        page.wait_for_selector(".card >> nth=2")
        page.wait_for_function("!document.querySelector('.tile[data-status=queued], .tile[data-status=in_progress]')")
        page.wait_for_timeout(1500)
        take(page, "storyboard")


def take(page, name: str) -> None:
    """Take a picture of the page."""
    page.screenshot(path=Path(os.environ["STUDIO_PICTURES"]) / f"{name}.jpg", type="jpeg", quality=84)
