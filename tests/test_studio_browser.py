"""The studio in a browser: clips are generated, edited and made again; no request leaves this machine.

Needs Chromium and Playwright (`make test-browser`), and skips itself without them.
"""

import json
from pathlib import Path

import pytest

from app.registry import DEFAULT_MODEL, model_folder
from app.studio.translations import read_translations
from dit.modes import MODES
from dit.settings import SETTINGS, read_settings
from tests.studio_browser import (
    CHROMIUM,
    NO_CHROMIUM,
    SLOW,
    TIMEOUT_MS,
    compose,
    fetch,
    opened,
    tile,
    typed,
)
from tests.studio_client import image_bytes

sync_api = pytest.importorskip("playwright.sync_api")
pytest_plugins = ["tests.studio_fixtures"]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)]


def test_a_prompt_becomes_a_playing_video(visit):
    with visit() as page:
        page.wait_for_selector(".greeting")  # of an empty gallery
        compose(page, "a large red ball bounces on the grass")
        video = tile(page, "a large red ball").locator("video")
        page.wait_for_function("video => video.currentTime > 0 && !video.paused", arg=video.element_handle())
        assert video.evaluate("video => [video.videoWidth, video.muted, video.loop]") == [64, True, True]


def test_a_reload_during_sampling_loses_nothing(visit):
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


def test_queued_clips_show_their_place_and_are_cancelled(visit):
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
            sync_api.expect(stops).to_have_count(left, timeout=TIMEOUT_MS)
        page.wait_for_function("document.querySelectorAll('.tile[data-status=cancelled]').length == 3")
        tile(page, "a white cone falls", "cancelled").get_by_role("button", name="Remove").click()
        page.wait_for_function("document.querySelectorAll('.tile[data-status=cancelled]').length == 2")


def test_the_form_has_only_formats_the_model_was_trained_for(visit):
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


def test_a_storyboard_is_edited_saved_and_opened(visit, tmp_path):
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
        page.click("#b-generate")
        details = opened(page, "a purple ball rests")
        assert "1.5 s: a purple ball bounces" in details.locator(".quote").first.inner_text()


def test_every_mode_starts_from_a_clip(visit):
    with visit() as page:
        compose(page, "a yellow cube slides")
        source = tile(page, "a yellow cube slides")
        begun = [mode for mode in MODES if "clip" in MODES[mode].reads or mode in ("image-to-video", "keyframes")]
        for mode in begun:
            source.get_by_role("button", name="Use this").click()
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
            page.click("#b-generate")
            page.locator(".tile", has_text=f"{mode}: a red cube").first.wait_for()
        for mode in begun:
            tile(page, f"{mode}: a red cube")
        cards = {card["prompt"]: card for card in fetch(page, "/studio/clips?limit=100").json()["cards"]}
        for mode in begun:
            card = cards[f"{mode}: a red cube"]
            assert card["mode"] == mode and source.get_attribute("data-id") in source_ids(card, cards)
        assert page.locator(".tile[data-status=failed]").count() == 0


def source_ids(card: dict, cards: dict) -> list[str]:
    """Return what a clip was made from; a frame of a clip was uploaded as an image, and counts as the clip."""
    source = cards["a yellow cube slides"]["id"]
    return [source if id.startswith("file-") else id for id in card["parents"]]


def titles() -> dict[str, str]:
    return {mode: read_translations()["en"][f"modes.{mode}"] for mode in MODES}


def paint(page) -> None:
    """Paint a mask, and wait until it is stored."""
    canvas = page.locator(".paint")
    canvas.hover(position={"x": 60, "y": 60})  # hover waits until the element is stable
    page.mouse.down()
    canvas.hover(position={"x": 200, "y": 200})
    page.mouse.up()
    page.wait_for_selector("text=/% of the frame/")


def details_of(page, id: str) -> dict:
    return fetch(page, f"/studio/clips/{id}").json()


def test_keyframes_of_a_draft_of_version_0_1_are_restored(visit):
    with visit() as page:
        file = {"name": "x.png", "mimeType": "image/png", "buffer": image_bytes(size=(64, 64))}
        id = fetch(page, "/studio/read", method="POST", multipart={"file": file}).json()["card"]["id"]
        old = json.dumps({"mode": "keyframes", "keyframes": [{"at": 1.5, "picture": id}]})
        page.evaluate("draft => localStorage['longtake.draft'] = draft", old)
        page.reload()
        page.wait_for_selector("html[data-ready]")
        assert page.locator(".card .slot.full img").get_attribute("src") == f"/studio/clips/{id}/poster"
        page.fill("#f-prompt textarea", "a red ball")
        page.wait_for_function("JSON.parse(localStorage['longtake.draft']).prompt === 'a red ball'")
        assert json.loads(page.evaluate("localStorage['longtake.draft']"))["keyframes"] == [{"at": 1.5, "image": id}]


def test_a_clip_is_dragged_in_and_made_again(visit):
    with visit() as page:
        page.fill("#f-negative_prompt textarea", "fog")
        compose(page, "a cyan capsule topples")
        id = tile(page, "a cyan capsule topples").get_attribute("data-id")
        request = details_of(page, id)["request"]
        page.evaluate("id => fetch(`/v1/videos/${id}/content`).then(async (one) => window.clip = await one.blob())", id)
        fetch(page, f"/studio/clips/{id}", method="DELETE")
        page.fill("#f-prompt textarea", "something else")
        page.fill("#f-negative_prompt textarea", "")
        page.evaluate(
            """() => {
                const dataTransfer = new DataTransfer();
                dataTransfer.items.add(new File([window.clip], "elsewhere.mp4", { type: "video/mp4" }));
                for (const kind of ["dragover", "drop"]) {
                    const event = new DragEvent(kind, { dataTransfer, bubbles: true, cancelable: true });
                    document.body.dispatchEvent(event);
                }
            }"""
        )
        page.wait_for_selector(".details .credentials.trusted")
        assert typed(page)["prompt"] == "something else"  # opening the details changes no form
        page.click(".details .accent >> text=Make again")
        page.wait_for_function("document.querySelector('#f-negative_prompt textarea').value === 'fog'")
        assert typed(page) == {
            "prompt": "a cyan capsule topples",
            "negative_prompt": "fog",
            "seed": str(request["seed"]),
        }
        page.click("#b-generate")
        again = details_of(page, tile(page, "a cyan capsule topples").get_attribute("data-id"))
        assert {**again["request"], **request} == again["request"]
        page.click("text=Undo")
        page.wait_for_function("document.querySelector('#f-prompt textarea').value === 'something else'")


def test_a_prompt_is_upsampled_edited_and_reset(visit):
    with visit() as page:
        page.fill("#f-prompt textarea", "ruby ball hops")
        page.click("#a-upsampling button >> nth=0")
        page.click("#b-upsample_now")
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
