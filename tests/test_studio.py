"""The studio queues clips, estimates them, shows previews, and loses no job."""

import io
import json
import os
import re
import time
from dataclasses import replace

import pytest
import torch
from PIL import Image
from PIL.WebPImagePlugin import WebPImageFile
from starlette.testclient import TestClient

from app.commands.serve import request_check
from app.commands.studio import studio
from app.queue.jobs import FAILED, Queue
from app.queue.lease import Lease
from app.queue.previews import PREVIEWS, preview_path, preview_writer
from app.queue.worker import run_worker
from app.studio.forecast import LOAD_SECONDS
from dit.modes import MODES
from dit.request import Request
from tests.studio_client import ADDRESS, MAX_JOBS, StudioClient

pytestmark = pytest.mark.slow


@pytest.fixture
def client(tmp_path, tiny_model, monkeypatch):
    client = StudioClient(tmp_path / "queue", tiny_model)
    monkeypatch.chdir(client.queue.folder)  # the working directory of the server and its workers
    return client


def test_submitted_clips_are_queued_and_then_listed_as_completed(client):
    cards = client.submit(variations=3, seed=5)
    assert [(card["status"], card["ahead"], card["seed"]) for card in cards] == [("queued", n, 5 + n) for n in range(3)]
    assert client.list_ids() == [card["id"] for card in reversed(cards)]  # in another tab, at any time
    run_worker(client.queue, "cpu", until_empty=True)
    for card in client.get("/studio/clips").json()["cards"]:
        assert (card["status"], card["size"], card["seconds"], card["still"]) == ("completed", "64x64", 2.125, False)
        assert Image.open(io.BytesIO(client.get(card["poster"]).content)).size == (64, 64)
        content = client.get(card["content"], headers={"range": "bytes=4-7"})
        assert (content.status_code, content.content) == (206, b"ftyp")
        details = client.details(card["id"])
        assert (details["frames"], details["fps"], details["duration"]) == (17, 8.0, 2.125)
        assert details["run_seconds"] > 0 and details["credentials"] == "trusted"


def test_all_variations_are_queued_or_none(client):
    for many in (0, 9, 1.5, "many", True, None, [2], -1):
        client.refused("/studio/generate", {"prompt": "a ball", "variations": many})
    client.submit(variations=MAX_JOBS - 3)
    crowded = client.post("/studio/generate", json={"prompt": "a ball", "variations": 4})
    assert crowded.status_code == 429 and len(client.list_ids()) == MAX_JOBS - 3
    for id in client.list_ids():
        client.delete(f"/studio/clips/{id}")
    assert "seeds must lie below" in client.refused(
        "/studio/generate", {"prompt": "a ball", "seed": 2**63 - 2, "variations": 3}
    )
    assert client.list_ids() == []


def test_the_options_are_exactly_the_formats_the_model_was_trained_for(client, tiny_model):
    options = client.get("/studio/options").json()
    (model,) = options["models"]
    formats = json.loads((tiny_model / "longtake.json").read_text())["formats"]
    found = {
        (*map(int, size["size"].split("x")), round(seconds * model["defaults"]["fps"]))
        for size in model["sizes"]
        for seconds in size["seconds"]
    }
    assert found | {(*map(int, s["size"].split("x")), 1) for s in model["sizes"] if s["stills"]} == {
        tuple(one) for one in formats
    }
    for size in model["sizes"]:
        for seconds in size["seconds"]:
            client.submit(size=size["size"], seconds=seconds)
        if size["stills"]:
            client.submit(size=size["size"], mode="text-to-image")
    for wrong in ({"size": "64x72"}, {"seconds": 5}, {"size": "48x64", "seconds": 2.125}, {"fps": 24}, {"seconds": 0}):
        for path in ("/studio/generate", "/studio/estimate"):
            assert re.search(r"trained|above 0", client.refused(path, {"prompt": "a ball"} | wrong))
    assert {mode["name"] for mode in options["modes"]} == set(MODES) and options["single_user"]
    assert options["upsamplers"] == ["none", "auto"]


def test_an_estimate_is_a_guess_first_and_then_measured(tmp_path, tiny_model, monkeypatch):
    monkeypatch.setenv("LONGTAKE_HOME", str(tmp_path / "home"))  # where nothing was made yet
    client = StudioClient(tmp_path / "queue", tiny_model)
    monkeypatch.chdir(client.queue.folder)
    found = {"prompt": "a ball", "steps": 2}
    guess = client.post("/studio/estimate", json=found).json()
    assert guess["seconds"] >= 0 and guess["bytes"] > 0 and "a guess until a clip was made here" in guess["sentence"]
    four = client.post("/studio/estimate", json=found | {"variations": 4, "steps": 200}).json()
    assert four["bytes"] == pytest.approx(4 * guess["bytes"], abs=4)
    assert four["seconds"] - LOAD_SECONDS > 4 * (guess["seconds"] - LOAD_SECONDS)
    client.generate(**found)
    monkeypatch.setattr("app.studio.forecast.SPEED_SECONDS", 0.0)
    assert "measured on 1 clips made here" in client.post("/studio/estimate", json=found).json()["sentence"]
    assert "needs clip" in client.refused("/studio/estimate", {"prompt": "a ball", "mode": "edit"})


def test_queued_clips_have_an_estimated_time_of_completion(client, monkeypatch):
    monkeypatch.setattr("app.studio.forecast.CACHE_SECONDS", 0.0)
    client.submit(variations=4, steps=300)
    etas = lambda: [card["eta"] for card in client.get("/studio/clips").json()["cards"]][::-1]
    assert etas() == [None] * 4  # no worker runs
    with Lease(client.queue, "cpu") as lease:
        job = lease.claim()
        assert job
        waits = etas()
        assert None not in waits and waits[1] > 0 and waits[1] < waits[2] < waits[3]
        assert waits[3] - waits[2] == pytest.approx(waits[2] - waits[1], abs=1)
        lease.report(job, "sampling", 0, 300)
        time.sleep(0.3)  # longer than notes lie apart
        lease.report(job, "sampling", 3, 300)
        assert 25 < etas()[0] < 300  # at its own pace: 0.3 s for 3 steps
        client.queue.pause("lunch")
        assert etas()[1:] == [None] * 3


def test_the_error_for_a_clip_that_does_not_fit_names_the_nearest_that_does(client, monkeypatch):
    monkeypatch.setattr("app.queue.estimate.available_memory", lambda *_: 2**20 * 300)
    crowded = TestClient(
        studio(replace(client.app.state.service, check_request=request_check("standard", "cpu", []))), base_url=ADDRESS
    )
    found = crowded.post("/studio/estimate", json={"prompt": "a ball", "mode": "long", "seconds": 600, "steps": 1})
    assert found.status_code == 400
    assert re.search(r"nearest that fits is size \d+x\d+|no clip of this model fits", found.json()["error"]["message"])


def test_moving_a_job_keeps_the_places_of_other_owners(tmp_path):
    queue = Queue(tmp_path)
    owners = "abbaab"
    jobs = [queue.submit([Request(prompt="x")], owner=owner)[0].id for owner in owners]
    line = lambda: [job.id for job in sorted(queue.jobs(), key=lambda job: job.ahead or 0)]
    assert queue.move(jobs[4], 0, owner="a").ahead == 0
    assert line() == [jobs[4], jobs[1], jobs[2], jobs[0], jobs[3], jobs[5]]
    assert queue.move(jobs[4], 1, owner="a").ahead == 3  # the first of one's own places from there on
    assert queue.move(jobs[5], 99, owner="b").ahead == 5
    assert [one for one in line() if one in (jobs[1], jobs[2], jobs[5])] == [jobs[1], jobs[2], jobs[5]]
    assert "".join(owners[jobs.index(one)] for one in line()) == owners


def test_clips_are_cancelled_retried_moved_and_removed(client):
    a, b, c = (card["id"] for card in client.submit(variations=3))
    act = lambda id, deed, found=None: client.post(f"/studio/clips/{id}/{deed}", json=found).json()
    assert act(c, "move", {"ahead": 0})["ahead"] == 0
    assert act(a, "cancel")["status"] == "cancelled" and client.details(a)["error"] is None
    assert act(a, "retry")["ahead"] == 2
    assert "must have failed or been cancelled" in client.refused(f"/studio/clips/{b}/retry", {})
    for wrong in ({"ahead": -1}, {"ahead": "0"}, {}, {"ahead": True}):
        client.refused(f"/studio/clips/{b}/move", wrong)
    assert client.delete(f"/studio/clips/{b}").json() == {"id": b, "deleted": True}
    assert client.list_ids() == [c, a]
    run_worker(client.queue, "cpu", until_empty=True)
    client.details(c)
    assert client.delete(f"/studio/clips/{c}").json()["deleted"]
    assert not list(client.queue.folder.rglob(f"{c}*"))


def test_a_single_users_queue_can_be_paused_with_a_reason(client):
    client.post("/studio/pause", json={"reason": "lunch"})
    (card,) = client.submit()
    found = client.get("/studio/clips").json()
    assert found["paused"] == "lunch" and found["cards"][0]["message"] == "the queue is paused: lunch"
    assert found["counts"] == {"queued": 1, "running": 0}
    client.post("/studio/resume")
    run_worker(client.queue, "cpu", until_empty=True)
    assert client.details(card["id"])["status"] == "completed"


@pytest.mark.parametrize("together", [1, 3])
def test_previews_exist_while_a_clip_is_sampled_and_not_after(client, together, monkeypatch):
    monkeypatch.setattr("app.queue.previews.TIME_SHARE", 1.0)
    monkeypatch.setattr("app.queue.previews.FIRST_SECONDS", 0.0)
    cards = client.submit(steps=40, variations=together)
    seen, report = {card["id"]: {} for card in cards}, Lease.report

    def looking(lease, job, phase, step=0, steps=0):
        for card in client.get("/studio/clips").json()["cards"]:
            if card["preview"] and card["preview"] not in seen[card["id"]]:
                seen[card["id"]][card["preview"]] = client.get(card["preview"]).content
        return report(lease, job, phase, step, steps)

    monkeypatch.setattr(Lease, "report", looking)
    run_worker(client.queue, "cpu", until_empty=True, pack_size=together)
    for id, previews in seen.items():
        assert len(set(previews.values())) >= 3
        with Image.open(io.BytesIO(list(previews.values())[-1])) as moving:
            assert isinstance(moving, WebPImageFile)
            assert (moving.format, moving.n_frames, moving.size) == ("WEBP", 17, (64, 64))
        assert client.get(f"/studio/clips/{id}/preview").status_code == 204  # and no error in a console
    assert not list((client.queue.folder / PREVIEWS).iterdir())


def test_previews_take_a_small_share_of_the_time(tmp_path):
    assert preview_writer(tmp_path, ["a", "b"], 8.0) is None
    (tmp_path / PREVIEWS).mkdir()
    watched, view = preview_writer(tmp_path, ["a", "b"], 8.0), torch.zeros(3, 9, 32, 32)
    assert watched is not None
    while (elapsed := time.monotonic() - watched.started) < 2:
        for number in (0, 1):
            watched(number, view)
    assert 0 < watched.spent < 0.4 * elapsed  # 3 %, and much room for a busy machine; nearly all, if nobody counted
    one, two = (preview_path(tmp_path, id).stat().st_mtime_ns for id in "ab")
    assert one <= two  # all clips of a pack get a preview, or none


def test_a_clip_is_completed_where_previews_cannot_be_written(client):
    (client.queue.folder / PREVIEWS).rmdir()
    os.symlink("/proc/nowhere", client.queue.folder / PREVIEWS)
    (clip,) = client.generate(steps=20)
    assert clip["status"] == "completed"


def test_the_preview_of_a_dead_worker_is_removed(client):
    client.submit()
    with Lease(client.queue, "cpu") as lease:
        job = lease.claim()
        assert job
        preview_path(client.queue.folder, job.id).write_bytes(b"half a preview")
    assert not preview_path(client.queue.folder, job.id).exists()


def test_a_failed_clip_has_a_one_sentence_error(client):
    source, _ = client.generate(variations=2)
    (gone,) = client.submit(mode="remix", clip=source["id"])
    client.queue.job(source["id"]).output.unlink()
    run_worker(client.queue, "cpu", until_empty=True)
    card = client.details(gone["id"])
    assert (card["status"], client.queue.job(gone["id"]).state) == ("failed", FAILED)
    assert "\n" not in card["error"] and str(client.queue.folder) not in card["error"]
    assert "removed by hand" in client.refused(f"/studio/clips/{source['id']}", None, "GET")
    assert len(client.list_ids()) == 3
