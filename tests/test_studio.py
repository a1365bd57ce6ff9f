"""In the studio nothing is lost, everything is found, and a clip can be made again from its own file."""

import io
import json
import os
import re
import time
from dataclasses import replace

import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from app.commands.serve import request_check
from app.commands.studio import studio
from app.queue.jobs import FAILED, Queue
from app.queue.lease import Lease
from app.queue.previews import PREVIEWS, preview_path, preview_writer
from app.queue.worker import run_worker
from app.server.service import Service, served_models
from app.studio.votes import VOTES, add_line
from dit.modes import MODES
from dit.request import Request

HERE = "http://127.0.0.1:8000"
MOST_JOBS = 10  # that one may have in line


class Visitor(TestClient):
    """A browser at a studio of one's own, and a worker who comes when called."""

    def __init__(self, folder, tiny_model):
        self.queue = Queue(folder)
        offers, check = served_models(self.queue, [str(tiny_model)]), request_check("standard", "cpu", [str(tiny_model)])
        service = Service(self.queue, offers, check, max_open_jobs=MOST_JOBS)
        super().__init__(studio(service), base_url=HERE, raise_server_exceptions=False)

    def asks(self, **found):
        """Ask for clips; returns their cards."""
        answer = self.post("/studio/ask", json={"prompt": "a red ball bounces", "steps": 2} | found)
        assert answer.status_code == 200, answer.text
        return answer.json()["cards"]

    def sends(self, content):
        """Drop a file on the page; returns what it is told."""
        answer = self.post("/studio/read", files={"file": ("../../x", content)})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def gets(self, **found):
        """Have clips made; returns the details of each."""
        cards = self.asks(**found)
        run_worker(self.queue, "cpu", until_empty=True)
        return [self.details(card["id"]) for card in cards]

    def details(self, id):
        return self.get(f"/studio/clips/{id}").raise_for_status().json()

    def shelf(self, **sought):
        """Return the ids of the clips that the gallery shows."""
        return [card["id"] for card in self.get("/studio/clips", params=sought).raise_for_status().json()["cards"]]

    def refused(self, path, found, method="POST"):
        """Ask for what is refused; returns the sentence."""
        answer = self.request(method, path, json=found)
        assert answer.status_code in (400, 404), answer.text
        sentence = answer.json()["error"]["message"]
        assert sentence and "\n" not in sentence and "Traceback" not in sentence
        assert str(self.queue.folder) not in sentence and "--" not in sentence
        return sentence


@pytest.fixture
def visitor(tmp_path, tiny_model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    visitor = Visitor(tmp_path / "queue", tiny_model)
    monkeypatch.chdir(visitor.queue.folder)  # where the server and its workers stand
    return visitor


def picture(colour="red", kind="PNG"):
    file = io.BytesIO()
    Image.new("RGB", (96, 64), colour).save(file, kind)
    return file.getvalue()


def test_what_is_asked_for_waits_in_line_and_is_there_when_it_is_made(visitor):
    cards = visitor.asks(variations=3, seed=5)
    assert [(card["status"], card["ahead"], card["seed"]) for card in cards] == [("queued", n, 5 + n) for n in range(3)]
    assert visitor.shelf() == [card["id"] for card in reversed(cards)]  # in another tab, at any time
    run_worker(visitor.queue, "cpu", until_empty=True)
    for card in visitor.get("/studio/clips").json()["cards"]:
        assert (card["status"], card["size"], card["seconds"], card["still"]) == ("completed", "64x64", 2.125, False)
        assert Image.open(io.BytesIO(visitor.get(card["poster"]).content)).size == (64, 64)
        content = visitor.get(card["content"], headers={"range": "bytes=4-7"})
        assert (content.status_code, content.content) == (206, b"ftyp")
        details = visitor.details(card["id"])
        assert (details["frames"], details["fps"], details["duration"]) == (17, 8.0, 2.125)
        assert details["took"] > 0 and details["credentials"] == "trusted"


def test_all_variations_are_queued_or_none(visitor):
    for many in (0, 9, 1.5, "many", True, None, [2], -1):
        visitor.refused("/studio/ask", {"prompt": "a ball", "variations": many})
    visitor.asks(variations=MOST_JOBS - 3)
    crowded = visitor.post("/studio/ask", json={"prompt": "a ball", "variations": 4})
    assert crowded.status_code == 429 and len(visitor.shelf()) == MOST_JOBS - 3
    for id in visitor.shelf():
        visitor.delete(f"/studio/clips/{id}")
    assert "seeds must lie below" in visitor.refused(
        "/studio/ask", {"prompt": "a ball", "seed": 2**63 - 2, "variations": 3}
    )
    assert visitor.shelf() == []


def test_who_looks_again_is_told_only_what_has_changed(visitor):
    (card,) = visitor.asks()
    first = visitor.get("/studio/clips")
    tag = {"If-None-Match": first.headers["etag"]}
    assert visitor.get("/studio/clips", headers=tag).status_code == 304
    visitor.patch(f"/studio/clips/{card['id']}", json={"favourite": True})
    again = visitor.get("/studio/clips", headers=tag)
    assert again.status_code == 200 and again.json()["cards"][0]["favourite"]
    assert again.headers["etag"] != first.headers["etag"]


def test_a_clip_is_made_again_from_its_own_file_bit_for_bit(visitor):
    (clip,) = visitor.gets(seed=3, guidance=1.5, negative_prompt="a cube", watermark="top-left")
    assert clip["request"]["guidance"] == 1.5 and clip["missing"] == []
    (again,) = visitor.gets(**clip["request"])
    assert again["request"] == clip["request"] and again["id"] != clip["id"]
    assert visitor.get(again["content"]).content == visitor.get(clip["content"]).content


def test_a_clip_dragged_in_from_elsewhere_brings_its_request_and_finds_what_it_was_made_from(
    visitor, tmp_path, tiny_model, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    elsewhere = Visitor(tmp_path / "elsewhere", tiny_model)
    monkeypatch.chdir(elsewhere.queue.folder)
    sent = elsewhere.sends(picture())["card"]["id"]
    (source,) = elsewhere.gets(seed=1)
    (clip,) = elsewhere.gets(mode="remix", clip=source["id"], prompt="a blue cube")
    (still,) = elsewhere.gets(image=sent)
    films = {one["id"]: elsewhere.get(one["content"]).content for one in (source, clip, still)}
    monkeypatch.chdir(visitor.queue.folder)
    told = visitor.sends(films[clip["id"]])
    assert (told["card"]["mode"], told["card"]["prompt"]) == ("remix", "a blue cube")
    assert "clip" not in told["request"] and "is not among your clips" in told["missing"][0]
    original = visitor.sends(films[source["id"]])
    assert (original["request"]["prompt"], original["request"]["seed"], original["missing"]) == (
        *("a red ball bounces", 1),
        [],
    )
    told = visitor.sends(films[clip["id"]])
    assert told["request"]["clip"] == original["card"]["id"] and told["missing"] == []
    (again,) = visitor.gets(**told["request"])
    assert again["parents"] == [original["card"]["id"]]
    assert _frames(visitor.get(again["content"]).content) == _frames(films[clip["id"]])
    assert "image" not in visitor.sends(films[still["id"]])["request"]
    mine = visitor.sends(picture())["card"]["id"]
    assert visitor.details(visitor.sends(films[still["id"]])["card"]["id"])["request"]["image"] == mine


def _frames(content):
    """Return the bytes of a film's frames, without the words around them."""
    return re.findall(rb"mdat.*", content, re.DOTALL)[0][:2000]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_that_is_dropped_is_kept_and_shown_and_carries_no_request(visitor, kind):
    told = visitor.sends(picture(kind=kind))
    assert told["request"] is None and told["missing"]
    card = told["card"]
    assert (card["kind"], card["still"], card["size"]) == ("upload", True, "96x64")
    assert Image.open(io.BytesIO(visitor.get(card["poster"]).content)).size == (96, 64)
    assert visitor.get(card["content"]).content == picture(kind=kind)
    assert visitor.shelf() == visitor.shelf(kind="upload") == [card["id"]] and visitor.shelf(kind="job") == []


@pytest.mark.parametrize("content", [b"", b"<svg onload=alert(1)>", b"PK\3\4", b"\0\0\0\x18ftypmp42" + b"\0" * 99])
def test_what_is_no_clip_is_not_kept(visitor, content):
    answer = visitor.post("/studio/read", files={"file": ("x.mp4", content)})
    assert answer.status_code == 400 and "Traceback" not in answer.text
    assert visitor.shelf() == []


def test_a_changed_file_is_known_as_tampered_with(visitor):
    (clip,) = visitor.gets()
    path = visitor.queue.job(clip["id"]).output
    content = bytearray(path.read_bytes())
    content[-len(content) // 3] ^= 1
    path.write_bytes(content)
    assert clip["credentials"] == "trusted"
    assert visitor.details(clip["id"])["credentials"] == "tampered"


def test_a_file_that_is_broken_says_so_and_the_gallery_stays(visitor):
    clip, *_ = visitor.gets(variations=2)
    path = visitor.queue.job(clip["id"]).output
    path.write_bytes(path.read_bytes()[:2000])
    sentence = visitor.refused(f"/studio/clips/{clip['id']}", None, "GET")
    assert f"clips/{clip['id']}.mp4" in sentence and f"/clips/{clip['id']}.mp4" not in sentence
    assert visitor.get(f"/studio/clips/{clip['id']}/poster").status_code == 400
    assert len(visitor.shelf()) == 2


def test_clips_are_starred_noted_and_found_by_their_words(visitor):
    ball, cube, loop = (
        visitor.asks(prompt=prompt, **more)[0]["id"]
        for prompt, more in (
            ("a Red ball bounces", {}),
            ("a blue cube", {"mode": "text-to-image"}),
            ("ÄRGER", {"mode": "loop", "seconds": 2}),
        )
    )
    card = visitor.patch(f"/studio/clips/{cube}", json={"favourite": True, "note": "für Ärzte"}).json()
    assert (card["favourite"], card["note"]) == (True, "für Ärzte")
    assert visitor.patch(f"/studio/clips/{cube}", json={"favourite": True}).json()["note"] == "für Ärzte"
    for sought, found in (
        ({"search": "red BALL"}, [ball]),
        ({"search": "ball blue"}, []),
        ({"search": "ärz"}, [cube]),
        ({"search": "ärger"}, [loop]),
        ({"search": "image"}, [cube]),
        ({"search": ball[:20]}, [ball]),
        ({"search": "%"}, []),
        ({"favourites": True}, [cube]),
        ({"kind": "job"}, [loop, cube, ball]),
        ({"limit": 2}, [loop, cube]),
        ({"limit": 2, "after": cube}, [ball]),
    ):
        assert visitor.shelf(**sought) == found, sought
    for wrong in ({"favourite": 1}, {"note": None}, {"owner": "x"}, {"note": "x" * 2001}):
        visitor.refused(f"/studio/clips/{cube}", wrong, "PATCH")
    assert visitor.get("/studio/clips", params={"kind": "x"}).status_code == 400


def test_uploads_and_clips_share_one_row_in_pages(visitor):
    ids = []
    for n in range(6):
        ids.append(visitor.asks()[0]["id"] if n % 2 else visitor.sends(picture((n, 0, 0)))["card"]["id"])
    pages, after = [], None
    while page := visitor.shelf(limit=2, **({"after": after} if after else {})):
        pages, after = pages + page, page[-1]
    assert pages == ids[::-1]


def test_nothing_is_offered_that_a_model_was_not_trained_for(visitor, tiny_model):
    offer = visitor.get("/studio/offer").json()
    (model,) = offer["models"]
    formats = json.loads((tiny_model / "longtake.json").read_text())["formats"]
    told = {
        (*map(int, size["size"].split("x")), round(seconds * model["defaults"]["fps"]))
        for size in model["sizes"]
        for seconds in size["seconds"]
    }
    assert told | {(*map(int, s["size"].split("x")), 1) for s in model["sizes"] if s["stills"]} == {
        tuple(one) for one in formats
    }
    for size in model["sizes"]:
        for seconds in size["seconds"]:
            visitor.asks(size=size["size"], seconds=seconds)
        if size["stills"]:
            visitor.asks(size=size["size"], mode="text-to-image")
    for wrong in ({"size": "64x72"}, {"seconds": 5}, {"size": "48x64", "seconds": 2.125}, {"fps": 24}, {"seconds": 0}):
        for path in ("/studio/ask", "/studio/estimate"):
            assert re.search(r"trained|above 0", visitor.refused(path, {"prompt": "a ball"} | wrong))
    assert {mode["name"] for mode in offer["modes"]} == set(MODES) and offer["alone"]
    assert offer["upsamplers"] == ["none", "auto"]


def test_how_long_it_will_take_is_told_before_and_learned_from_what_was_made(tmp_path, tiny_model, monkeypatch):
    monkeypatch.setenv("LONGTAKE_HOME", str(tmp_path / "home"))  # where nothing was made yet
    visitor = Visitor(tmp_path / "queue", tiny_model)
    monkeypatch.chdir(visitor.queue.folder)
    found = {"prompt": "a ball", "steps": 2}
    guess = visitor.post("/studio/estimate", json=found).json()
    assert guess["seconds"] >= 0 and guess["bytes"] > 0 and "a guess until one was made here" in guess["sentence"]
    four = visitor.post("/studio/estimate", json=found | {"variations": 4, "steps": 200}).json()
    assert four["bytes"] == pytest.approx(4 * guess["bytes"], abs=4) and four["seconds"] > 4 * guess["seconds"]
    visitor.gets(**found)
    monkeypatch.setattr("app.studio.forecast.LEARN_SECONDS", 0.0)
    assert "as fast as 1 clips made here" in visitor.post("/studio/estimate", json=found).json()["sentence"]
    assert "needs clip" in visitor.refused("/studio/estimate", {"prompt": "a ball", "mode": "edit"})


def test_those_who_wait_are_told_when_their_clips_will_be_there(visitor, monkeypatch):
    monkeypatch.setattr("app.studio.forecast.FRESH_SECONDS", 0.0)
    visitor.asks(variations=4, steps=300)
    look = lambda: [card["eta"] for card in visitor.get("/studio/clips").json()["cards"]][::-1]
    assert look() == [None] * 4  # nobody is at work
    with Lease(visitor.queue, "cpu") as lease:
        job = lease.claim()
        waits = look()
        assert None not in waits and waits[1] > 0 and waits[1] < waits[2] < waits[3]
        assert waits[3] - waits[2] == pytest.approx(waits[2] - waits[1], abs=1)
        lease.report(job, "sampling", 0, 300)
        time.sleep(0.3)  # longer than notes lie apart
        lease.report(job, "sampling", 3, 300)
        assert 25 < look()[0] < 300  # at its own pace: 0.3 s for 3 steps
        visitor.queue.pause("lunch")
        assert look()[1:] == [None] * 3


def test_where_a_clip_does_not_fit_the_nearest_that_does_is_named(visitor, monkeypatch):
    monkeypatch.setattr("app.queue.estimate.available_memory", lambda *_: 2**20 * 480)
    crowded = TestClient(
        studio(replace(visitor.app.state.service, check=request_check("standard", "cpu", []))), base_url=HERE
    )
    told = crowded.post("/studio/estimate", json={"prompt": "a ball", "mode": "long", "seconds": 100000, "steps": 1})
    assert told.status_code == 400
    assert re.search(r"nearest that fits is size \d+x\d+|no clip of this model fits", told.json()["error"]["message"])


def test_a_line_is_changed_by_its_owner_alone_and_others_keep_their_places(tmp_path):
    queue = Queue(tmp_path)
    owners = "abbaab"
    jobs = [queue.submit([Request(prompt="x")], owner=owner)[0].id for owner in owners]
    line = lambda: [job.id for job in sorted(queue.jobs(), key=lambda job: job.ahead)]
    assert queue.move(jobs[4], 0, owner="a").ahead == 0
    assert line() == [jobs[4], jobs[1], jobs[2], jobs[0], jobs[3], jobs[5]]
    assert queue.move(jobs[4], 1, owner="a").ahead == 3  # the first of one's own places from there on
    assert queue.move(jobs[5], 99, owner="b").ahead == 5
    assert [one for one in line() if one in (jobs[1], jobs[2], jobs[5])] == [jobs[1], jobs[2], jobs[5]]
    assert "".join(owners[jobs.index(one)] for one in line()) == owners


def test_clips_are_cancelled_tried_again_moved_and_removed(visitor):
    a, b, c = (card["id"] for card in visitor.asks(variations=3))
    act = lambda id, deed, found=None: visitor.post(f"/studio/clips/{id}/{deed}", json=found).json()
    assert act(c, "move", {"ahead": 0})["ahead"] == 0
    assert act(a, "cancel")["status"] == "cancelled" and visitor.details(a)["error"] is None
    assert act(a, "retry")["ahead"] == 2
    assert "must have failed or been cancelled" in visitor.refused(f"/studio/clips/{b}/retry", {})
    for wrong in ({"ahead": -1}, {"ahead": "0"}, {}, {"ahead": True}):
        visitor.refused(f"/studio/clips/{b}/move", wrong)
    assert visitor.delete(f"/studio/clips/{b}").json() == {"id": b, "deleted": True}
    assert visitor.shelf() == [c, a]
    run_worker(visitor.queue, "cpu", until_empty=True)
    visitor.details(c)
    assert visitor.delete(f"/studio/clips/{c}").json()["deleted"]
    assert not list(visitor.queue.folder.rglob(f"{c}*"))


def test_what_clips_are_made_from_stays_until_they_are(visitor):
    sent = visitor.sends(picture())["card"]["id"]
    (made,) = visitor.asks(image=sent)
    assert "must stay until they are" in visitor.refused(f"/studio/clips/{sent}", None, "DELETE")
    run_worker(visitor.queue, "cpu", until_empty=True)
    assert visitor.details(made["id"])["parents"] == [sent]
    assert visitor.delete(f"/studio/clips/{sent}").json()["deleted"]
    told = visitor.details(made["id"])
    assert "image" not in told["request"] and len(told["missing"]) == 1


def test_a_queue_of_ones_own_is_paused_and_the_reason_is_told(visitor):
    visitor.post("/studio/pause", json={"reason": "lunch"})
    (card,) = visitor.asks()
    told = visitor.get("/studio/clips").json()
    assert told["paused"] == "lunch" and told["cards"][0]["said"] == "the queue is paused: lunch"
    assert told["counts"] == {"queued": 1, "running": 0}
    visitor.post("/studio/resume")
    run_worker(visitor.queue, "cpu", until_empty=True)
    assert visitor.details(card["id"])["status"] == "completed"


def test_votes_are_lines_of_json_with_both_requests_and_contents(visitor):
    one, two = visitor.gets(variations=2)
    (still,) = visitor.gets(mode="text-to-image")
    vote = {"left": one["id"], "right": two["id"], "looks": "left", "motion": "tie", "prompt": "right"}
    assert visitor.post("/studio/votes", json=vote).json()["count"] == 1
    with open(visitor.queue.folder / VOTES, "a") as file:
        file.write('{"half a line of one who')  # died
    assert visitor.post("/studio/votes", json=vote | {"right": still["id"]}).json()["count"] == 2
    lines = (visitor.queue.folder / VOTES).read_text().splitlines()
    assert len(lines) == 3
    first = json.loads(lines[0])
    assert (first["looks"], first["motion"], first["prompt"]) == ("left", "tie", "right")
    for side, clip in (("left", one), ("right", two)):
        assert Request.from_dict(first[side]["request"]).seed == clip["request"]["seed"]
        assert first[side]["request"]["model_hash"] == clip["model_hash"] and len(first[side]["sha256"]) == 64
    assert first["left"]["sha256"] != first["right"]["sha256"]
    (waits,) = visitor.asks()
    for wrong in (
        {"right": one["id"]},
        {"right": waits["id"]},
        {"right": "0" * 24},
        {"right": None},
        {"looks": "better"},
        {"motion": None},
        {"owner": "me"},
        {"left": visitor.sends(picture())["card"]["id"]},
    ):
        visitor.refused("/studio/votes", vote | wrong)
    told = visitor.get("/studio/votes").json()
    assert told["count"] == 2 and told["latest"][1]["left"] == one["id"]


def test_votes_of_many_at_once_are_all_whole(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: add_line(tmp_path / VOTES, json.dumps({"n": n, "x": "y" * 5000})), range(200)))
    lines = (tmp_path / VOTES).read_text().splitlines()
    assert sorted(json.loads(line)["n"] for line in lines) == list(range(200))


def test_a_storyboard_is_read_from_its_text_and_written_as_one(visitor):
    sent = visitor.sends(picture())["card"]["id"]
    moments = [{"at": 0.0, "prompt": "红球 a ball"}, {"at": 1.0, "prompt": "it stops", "image": sent}]
    fields = {"mode": "storyboard", "seconds": 2.125, "size": "64x64", "seed": 7, "moments": moments}
    text = visitor.post("/studio/storyboard/text", json={"request": fields}).json()["text"]
    assert "红球" in text and text.startswith("mode: storyboard")
    told = visitor.post("/studio/storyboard", json={"text": text}).json()
    assert told["missing"] == [] and {name: told["request"][name] for name in fields} == fields
    (clip,) = visitor.gets(**told["request"] | {"prompt": ""})
    assert [one["prompt"] for one in clip["request"]["moments"]] == ["红球 a ball", "it stops"]
    elsewhere = "- {at: 0, prompt: a ball}\n- {at: 1, prompt: a cube, image: /etc/passwd, clip: ../../x.mp4}"
    told = visitor.post("/studio/storyboard", json={"text": elsewhere}).json()
    assert len(told["missing"]) == 2 and "image" not in told["request"]["moments"][1]
    for wrong in (
        "",
        "a: &a [1]\nb: *a",
        "[" * 9999,
        "x" * 2**19,
        "moments: 5",
        '[{"at": 0}]',
        None,
        5,
        "!!python/x 1",
    ):
        visitor.refused("/studio/storyboard", {"text": wrong})
    for wrong in (None, {}, {"moments": []}, {"prompt": "x"}, {"moments": [{"at": "x"}]}):
        visitor.refused("/studio/storyboard/text", {"request": wrong})


def test_a_prompt_is_written_out_by_the_shipped_upsampler_where_there_is_one(visitor, tmp_path, monkeypatch):
    monkeypatch.setattr("app.registry.UPSAMPLER", tmp_path / "none")
    assert "needs the shipped upsampler" in visitor.refused("/studio/upsample", {"prompt": "a ball", "seed": 1})
    from captioning.upsampler import TrainedUpsampler, UpsamplerModel, save_upsampler, train_upsampler_tokenizer

    torch.manual_seed(0)
    texts = ["A red ball bounces.", "a red ball"]
    tokenizer = train_upsampler_tokenizer(texts, 300, 64)
    shape = {"vocabulary": len(tokenizer), "context": 64, "width": 32, "heads": 2, "layers": 1}
    writer = UpsamplerModel(**shape, min_log_prob=-99.0, min_gain=-99.0, end_id=tokenizer.eos_token_id, pad_id=tokenizer.pad_token_id)
    save_upsampler(TrainedUpsampler(tokenizer, writer), tmp_path / "upsampler")
    monkeypatch.setattr("app.registry.UPSAMPLER", tmp_path / "upsampler")
    asked = {"prompt": "a red ball", "seed": 1, "still": False}
    first, second = (visitor.post("/studio/upsample", json=asked) for _ in range(2))
    assert first.status_code == 200 and first.json() == second.json() and first.json()["upsampled_prompt"]
    assert "must say something" in visitor.refused("/studio/upsample", {"prompt": " "})
    assert "policy standard" in visitor.refused("/studio/upsample", {"prompt": "a nude person"})


@pytest.mark.parametrize("together", [1, 3])
def test_who_watches_sees_a_clip_move_while_it_is_dreamed_and_not_after(visitor, together, monkeypatch):
    monkeypatch.setattr("app.queue.previews.TIME_SHARE", 1.0)
    monkeypatch.setattr("app.queue.previews.FIRST_SECONDS", 0.0)
    cards = visitor.asks(steps=40, variations=together)
    seen, report = {card["id"]: {} for card in cards}, Lease.report

    def looking(lease, job, phase, step=0, steps=0):
        for card in visitor.get("/studio/clips").json()["cards"]:
            if card["preview"] and card["preview"] not in seen[card["id"]]:
                seen[card["id"]][card["preview"]] = visitor.get(card["preview"]).content
        return report(lease, job, phase, step, steps)

    monkeypatch.setattr(Lease, "report", looking)
    run_worker(visitor.queue, "cpu", until_empty=True, pack_size=together)
    for id, previews in seen.items():
        assert len(set(previews.values())) >= 3
        with Image.open(io.BytesIO(list(previews.values())[-1])) as moving:
            assert (moving.format, moving.n_frames, moving.size) == ("WEBP", 17, (64, 64))
        assert visitor.get(f"/studio/clips/{id}/preview").status_code == 204  # and no error in a console
    assert not list((visitor.queue.folder / PREVIEWS).iterdir())


def test_previews_are_for_those_who_watch_and_take_a_small_share_of_the_time(tmp_path):
    assert preview_writer(tmp_path, ["a", "b"], 8.0) is None
    (tmp_path / PREVIEWS).mkdir()
    watched, view = preview_writer(tmp_path, ["a", "b"], 8.0), torch.zeros(3, 9, 32, 32)
    assert watched is not None
    while (elapsed := time.monotonic() - watched.begun) < 2:
        for number in (0, 1):
            watched(number, view)
    assert 0 < watched.spent < 0.4 * elapsed  # 3 %, and much room for a busy machine; nearly all, if nobody counted
    one, two = (preview_path(tmp_path, id).stat().st_mtime_ns for id in "ab")
    assert one <= two  # all that are dreamed together are shown, or none


def test_a_disk_that_takes_no_preview_stops_no_clip(visitor):
    (visitor.queue.folder / PREVIEWS).rmdir()
    os.symlink("/proc/nowhere", visitor.queue.folder / PREVIEWS)
    (clip,) = visitor.gets(steps=20)
    assert clip["status"] == "completed"


def test_a_preview_of_a_worker_that_died_is_removed_by_the_next(visitor):
    visitor.asks()
    with Lease(visitor.queue, "cpu") as lease:
        job = lease.claim()
        preview_path(visitor.queue.folder, job.id).write_bytes(b"half a dream")
    assert not preview_path(visitor.queue.folder, job.id).exists()


def test_what_failed_says_why_in_one_sentence(visitor):
    source, _ = visitor.gets(variations=2)
    (gone,) = visitor.asks(mode="remix", clip=source["id"])
    visitor.queue.job(source["id"]).output.unlink()
    run_worker(visitor.queue, "cpu", until_empty=True)
    card = visitor.details(gone["id"])
    assert (card["status"], visitor.queue.job(gone["id"]).state) == ("failed", FAILED)
    assert "\n" not in card["error"] and str(visitor.queue.folder) not in card["error"]
    assert "removed by hand" in visitor.refused(f"/studio/clips/{source['id']}", None, "GET")
    assert len(visitor.shelf()) == 3
