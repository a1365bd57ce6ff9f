"""Nobody comes into a studio, or reaches another's clips, a path, an address or a traceback, and no job is lost."""

import io
import json
import os
import re
import signal
import time

import httpx
import pytest
from PIL import Image
from starlette.testclient import TestClient

from app.cli import main
from app.commands.studio import studio
from app.loadtest.visitors import run_visitors
from app.queue.jobs import Queue
from app.queue.worker import run_worker
from app.server.auth import COOKIE
from app.server.service import Service, served_models
from tests.serving import OTHER_TOKEN, TOKEN, running_server

HERE = "http://127.0.0.1:8000"
HTML = {"accept": "text/html,application/xhtml+xml"}


def studio_in(folder, tiny_model):
    queue = Queue(folder)
    return studio(Service(queue, served_models(queue, [str(tiny_model)])), [TOKEN, OTHER_TOKEN])


@pytest.fixture
def shared(tmp_path, tiny_model, monkeypatch):
    """A studio of two people's."""
    app = studio_in(tmp_path / "queue", tiny_model)
    monkeypatch.chdir(tmp_path / "queue")
    return app


@pytest.fixture(scope="module")
def quiet(tmp_path_factory, tiny_model):
    """A studio of two people's in which nothing is ever made."""
    app = studio_in(tmp_path_factory.mktemp("quiet"), tiny_model)
    yield app
    assert app.state.service.queue.jobs() == []


def browser(app, token=None, **more):
    """Return a browser, signed in where it has a token."""
    visitor = TestClient(app, base_url=HERE, raise_server_exceptions=False, follow_redirects=False, **more)
    if token:
        answer = visitor.post("/studio/sign-in", data={"token": token}, headers={"origin": HERE})
        assert answer.status_code == 303 and answer.headers["location"] == "/studio/"
    return visitor


def picture(colour="red"):
    file = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(file, "PNG")
    return file.getvalue()


def until(found, seconds=120.0):
    """Wait until something is found, and return it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := found():
            return result
        time.sleep(0.1)
    raise TimeoutError


def asks(visitor, **found):
    return visitor.post("/studio/ask", json={"prompt": "a ball", "steps": 1} | found).raise_for_status().json()["cards"]


def test_a_browser_signs_in_once_and_no_script_can_read_what_it_keeps(quiet):
    visitor = browser(quiet)
    for path in ("/studio/", "/studio", "/studio/clips", "/anywhere"):
        answer = visitor.get(path, headers=HTML)
        assert (answer.status_code, answer.headers["location"]) == (303, "/studio/sign-in")
    door = visitor.get("/studio/sign-in", headers=HTML)
    assert door.status_code == 200 and "frame-ancestors 'none'" in door.headers["content-security-policy"]
    assert not re.search(r"(src|href)=|http", door.text)
    wrong = visitor.post("/studio/sign-in", data={"token": "not-a-known-token-at-all"})
    assert wrong.status_code == 401 and "set-cookie" not in wrong.headers and "not known" in wrong.text
    kept = visitor.post("/studio/sign-in", data={"token": f" {TOKEN} "}).headers["set-cookie"].lower()
    assert {"httponly", "samesite=strict", "path=/"} <= set(kept.split("; ")) and "secure" not in kept
    assert visitor.get("/studio/", headers=HTML).status_code == 200
    assert visitor.get("/studio/clips").json()["cards"] == []
    away = visitor.post("/studio/sign-out", headers={"origin": HERE})
    assert away.status_code == 303 and visitor.get("/studio/clips").status_code == 401


def test_a_cookie_is_sent_over_safe_lines_only_where_there_is_one(quiet):
    answer = browser(quiet).post("/studio/sign-in", data={"token": TOKEN}, headers={"x-forwarded-proto": "https"})
    assert "secure" in answer.headers["set-cookie"].lower()


@pytest.mark.parametrize("told", [{}, {"token": ""}, {"token": "x" * 9999}, {"tokens": TOKEN}, {"token": "é\0"}])
def test_no_other_token_opens_the_door(quiet, told):
    answer = browser(quiet).post("/studio/sign-in", data=told)
    assert answer.status_code in (400, 401) and "set-cookie" not in answer.headers and "Traceback" not in answer.text


@pytest.mark.parametrize("cookie", ["", "x", f"{TOKEN}x", OTHER_TOKEN[:-1], f'"{TOKEN}', "a b", "\\"])
def test_no_other_cookie_opens_the_door(quiet, cookie):
    assert browser(quiet).get("/studio/clips", headers={"cookie": f"{COOKIE}={cookie}"}).status_code == 401


DEEDS = [
    *(("post", "/studio/ask"), ("post", "/studio/estimate"), ("post", "/studio/read"), ("post", "/studio/votes")),
    *(("post", "/studio/clips/x/cancel"), ("patch", "/studio/clips/x"), ("delete", "/studio/clips/x")),
    *(("post", "/studio/sign-out"), ("post", "/studio/sign-in"), ("post", "/v1/videos"), ("post", "/studio/pause")),
]


@pytest.mark.parametrize(
    "foreign", [{"origin": "http://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}]
)
def test_no_page_of_another_site_does_anything_with_a_cookie(shared, foreign):
    visitor = browser(shared, TOKEN)
    for method, path in DEEDS:
        answer = visitor.request(method, path, headers=foreign, content=b"{}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "wrong_origin"), path
    assert visitor.get("/studio/clips").json()["cards"] == []
    header = {"authorization": f"Bearer {TOKEN}"}  # which no page can know
    program = browser(shared).post("/studio/ask", json={"prompt": "a ball"}, headers=header | foreign)
    assert program.status_code == 200


def test_nothing_says_that_other_sites_may_read_it(quiet):
    visitor = browser(quiet, TOKEN)
    for path in ("/studio/", "/studio/config", "/studio/theme.css", "/studio/clips", "/studio/offer"):
        answer = visitor.get(path, headers={"origin": "http://evil.example"})
        assert answer.status_code == 200
        assert not [name for name in answer.headers if name.startswith("access-control-")], path


def test_nobody_sees_or_touches_what_is_anothers(shared):
    one, other = browser(shared, TOKEN), browser(shared, OTHER_TOKEN)
    waits, made = (card["id"] for card in asks(one, variations=2))
    queue = shared.state.service.queue
    queue.move(made, 0)
    sent = one.post("/studio/read", files={"file": ("x.png", picture())}).json()["card"]["id"]
    run_worker(queue, "cpu", until_empty=True)
    own = asks(one)[0]["id"]
    for id in (waits, made, sent, own):
        for method, path, found in (
            ("get", "", None),
            ("get", "/poster", None),
            ("get", "/preview", None),
            ("patch", "", {"favourite": True}),
            ("patch", "", {"note": "mine"}),
            ("delete", "", None),
            ("post", "/cancel", {}),
            ("post", "/retry", {}),
            ("post", "/move", {"ahead": 0}),
        ):
            answer = other.request(method, f"/studio/clips/{id}{path}", json=found)
            assert answer.status_code == 404, (method, path, answer.text)
            nobodys = f"file-{'0' * 64}" if id == sent else "0" * 24
            absent = other.request(method, f"/studio/clips/{nobodys}{path}", json=found).json()
            assert answer.text.replace(id, nobodys) == json.dumps(absent, separators=(",", ":"))  # nor that it exists
        assert (
            other.get(f"/v1/files/{id}/content").status_code == other.get(f"/v1/videos/{id}/content").status_code == 404
        )
        vote = {"left": id, "right": "0" * 24, "looks": "tie", "motion": "tie", "prompt": "tie"}
        assert other.post("/studio/votes", json=vote).status_code == 404
        assert other.post("/studio/ask", json={"prompt": "a ball", "mode": "remix", "clip": id}).status_code == 400
        assert other.get("/studio/clips", params={"search": id}).json()["cards"] == []
    content = one.get(f"/v1/videos/{made}/content").content
    assert other.post("/studio/read", files={"file": content}).json()["card"]["id"] not in (made, own)
    assert one.get("/studio/clips").json()["cards"][0]["id"] == own
    assert one.get(f"/studio/clips/{own}").json()["status"] == "queued"
    assert all(one.get(f"/studio/clips/{id}").json()["favourite"] is False for id in (made, sent))
    assert other.post("/studio/pause").status_code == other.post("/studio/resume").status_code == 400
    assert queue.paused is None


def test_the_same_file_of_two_people_is_of_each_alone(shared):
    one, other = browser(shared, TOKEN), browser(shared, OTHER_TOKEN)
    ids = [who.post("/studio/read", files={"file": picture()}).json()["card"]["id"] for who in (one, other)]
    assert ids[0] == ids[1]
    one.patch(f"/studio/clips/{ids[0]}", json={"note": "one's"})
    assert other.get(f"/studio/clips/{ids[0]}").json()["note"] == ""
    assert one.delete(f"/studio/clips/{ids[0]}").json()["deleted"]
    assert other.get(f"/studio/clips/{ids[0]}/poster").status_code == 200
    assert one.get(f"/studio/clips/{ids[0]}").status_code == 404


def test_ones_jobs_wait_no_shorter_at_anothers_cost(shared):
    one, other = browser(shared, TOKEN), browser(shared, OTHER_TOKEN)
    first, later, last = asks(one)[0]["id"], asks(other)[0]["id"], asks(other)[0]["id"]
    moved = other.post(f"/studio/clips/{last}/move", json={"ahead": 0}).json()
    assert moved["ahead"] == 1 and one.get(f"/studio/clips/{first}").json()["ahead"] == 0
    assert other.get(f"/studio/clips/{later}").json()["ahead"] == 2


@pytest.mark.parametrize(
    "path",
    [
        *("/studio/look/../serve.py", "/studio/look/..%2fserve.py", "/studio/look/%2e%2e/serve.py", "/studio/look/"),
        *("/studio/static/../../../app.py", "/studio/assets/..%2f..%2froutes.py", "/studio/static/%2fetc%2fpasswd"),
        *(
            "/studio/gradio_api/file=/etc/passwd",
            "/studio/file=/etc/passwd",
            "/studio/gradio_api/upload",
            "/studio/login",
        ),
        *("/studio/gradio_api/proxy=http://127.0.0.1:1/x", "/studio/gradio_api/queue/join", "/studio/monitoring"),
        *(
            "/studio/gradio_api/queue/data?session_hash=x",
            "/studio/gradio_api/deep_link?session_hash=x",
            "/studio/svelte/x",
        ),
        *(
            "/studio/gradio_api/info",
            "/studio/gradio_api/startup-events",
            "/studio/gradio_api/stream/a/b/c/playlist-file",
        ),
        *(
            "/studio/clips/..%2f..%2fjobs.sqlite",
            "/studio/clips/%2fetc%2fpasswd/poster",
            "/studio/clips/../posters/x/poster",
        ),
        *("/studio/clips/file-..%2f..%2fx/poster", "/studio/clips/file-%2a/poster", "/v1/files/file-%2a/content"),
        *(
            "/studio/jobs.sqlite",
            "/studio/shelf.sqlite",
            "/studio/votes.jsonl",
            "/studio/runs",
            "/studio/gradio_api/runs",
        ),
    ],
)
def test_no_route_of_the_studio_leads_to_a_path_or_an_address(quiet, path):
    visitor = browser(quiet, TOKEN)
    for method in ("get", "post", "head"):
        answer = visitor.request(method, path)
        assert answer.status_code in (404, 405), (method, answer.text)
        assert "root:" not in answer.text and "Traceback" not in answer.text and "SQLite" not in answer.text


def test_a_link_that_names_a_file_of_gradios_is_shown_the_page_and_no_file(quiet):
    visitor = browser(quiet, TOKEN)
    plain = visitor.get("/studio/").text
    assert visitor.get("/studio/?deep_link=../../../../etc/passwd&__theme=dark").text == plain


@pytest.mark.parametrize("field", ["image", "clip", "other", "mask", "input_reference", "video"])
@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../jobs.sqlite", "file:///etc/passwd", "http://127.0.0.1:1/x", "clips/x.mp4"]
)
def test_no_path_and_no_address_is_taken_from_a_form(quiet, field, name):
    visitor = browser(quiet, TOKEN)
    for path in ("/studio/ask", "/studio/estimate"):
        answer = visitor.post(path, json={"prompt": "a ball", "mode": "inpaint", "box": [0, 0, 8, 8], field: name})
        assert answer.status_code == 400 and re.search(
            "URLs and paths are not opened", answer.json()["error"]["message"]
        )


def test_a_request_in_a_strangers_file_opens_nothing(shared, tmp_path):
    """A file that was made to look as if longtake had made it from the files of this server."""
    import torch

    from dit.request import METADATA_KEY
    from vae.video.credentials import hash_of_contents
    from vae.video.write import write_video

    visitor = browser(shared, TOKEN)
    theirs = asks(browser(shared, OTHER_TOKEN))[0]["id"]
    for n, path in enumerate(
        ("/etc/passwd", "../../jobs.sqlite", f"clips/{theirs}.mp4", "http://127.0.0.1:1/x", "\\\\x\\y")
    ):
        request = {"mode": "remix", "prompt": "<script>alert(1)</script>", "clip": path, "model": "../../../etc"}
        write_video(
            tmp_path / "x.mp4", torch.zeros(3, 9, 64, 64) + n / 9, 8, metadata={METADATA_KEY: json.dumps(request)}
        )
        told = visitor.post("/studio/read", files={"file": (tmp_path / "x.mp4").read_bytes()}).json()
        assert "clip" not in told["request"] and "model" not in told["request"] and len(told["missing"]) == 2
        assert "root:" not in json.dumps(told)
    mine = asks(visitor)[0]["id"]
    run_worker(shared.state.service.queue, "cpu", until_empty=True)
    path = f"clips/{mine}.mp4"  # which is another's on the machine that the file came from
    for digest, found in (("0" * 64, None), (hash_of_contents(path), mine)):
        request = {"mode": "remix", "prompt": "a cube", "clip": path, "hashes": [[path, digest]]}
        write_video(tmp_path / "x.mp4", torch.ones(3, 9, 64, 64), 8, metadata={METADATA_KEY: json.dumps(request)})
        told = visitor.post("/studio/read", files={"file": (tmp_path / "x.mp4").read_bytes()}).json()
        assert told["request"].get("clip") == found and len(told["missing"]) == (found is None)
    for wrong in ('{"mode": 5}', "[" * 9999, "null", '{"seed": 1e999}', '"x"', '{"moments": [5]}'):
        write_video(tmp_path / "x.mp4", torch.zeros(3, 9, 64, 64), 8, metadata={METADATA_KEY: wrong})
        told = visitor.post("/studio/read", files={"file": (tmp_path / "x.mp4").read_bytes()}).json()
        assert told["request"] is None and told["missing"] == ["the file carries no request"]
    assert len(visitor.get("/studio/clips", params={"search": "script"}).json()["cards"]) >= 5


def test_bodies_that_are_none_are_refused_in_one_sentence(shared):
    visitor = browser(shared, TOKEN)
    (card,) = asks(visitor)
    for path in ("ask", "estimate", "upsample", "storyboard", "storyboard/text", "votes", f"clips/{card['id']}/move"):
        for content in (b"", b"{", b"\xff", b"[]", b"null", b"[" * 100_000, b'{"seed": NaN}', b"9" * 5000):
            answer = visitor.post(f"/studio/{path}", content=content, headers={"content-type": "application/json"})
            assert answer.status_code == 400, (path, content[:9])
            assert "\n" not in answer.json()["error"]["message"] and len(answer.text) < 1000
    for content, kind in ((b"x", "multipart/form-data; boundary=x"), (b"{}", "application/json"), (b"", "")):
        assert visitor.post("/studio/read", content=content, headers={"content-type": kind}).status_code == 400
    assert len(visitor.get("/studio/clips").json()["cards"]) == 1


def test_a_studio_that_anybody_could_use_is_not_begun(capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("LONGTAKE_TOKEN", raising=False)
    assert main(["studio", str(tmp_path / "queue"), "--host", "0.0.0.0"]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "queue").exists()


@pytest.fixture(scope="module")
def served(tmp_path_factory, tiny_model):
    with running_server("studio", tmp_path_factory.mktemp("served") / "queue", tiny_model) as server:
        yield server


def person(served, token):
    visitor = httpx.Client(base_url=served[0], timeout=60)
    visitor.post("/studio/sign-in", data={"token": token})
    return visitor


def test_a_worker_killed_in_the_middle_loses_no_job_and_the_page_never_notices(served):
    one, other = person(served, TOKEN), person(served, OTHER_TOKEN)
    (clip,) = asks(one, steps=1000, mode="long", seconds=20)
    (next_one,) = asks(other)
    look = lambda who, id: who.get(f"/studio/clips/{id}").raise_for_status().json()
    until(lambda: look(one, clip["id"])["phase"] == "sampling" and look(one, clip["id"])["step"] > 20)
    with Image.open(io.BytesIO(one.get(until(lambda: look(one, clip["id"])["preview"])).content)) as moving:
        assert moving.format == "WEBP" and moving.n_frames > 1
    (pid,) = (row["pid"] for row in Queue(served[1]).connection.execute("SELECT pid FROM workers"))
    os.kill(pid, signal.SIGKILL)
    again = until(lambda: (told := look(one, clip["id"]))["tries"] == 2 and told)
    assert again["status"] == "in_progress"
    assert look(other, next_one["id"])["status"] == "queued"  # in its place
    one.post(f"/studio/clips/{clip['id']}/cancel")
    assert until(lambda: (told := look(other, next_one["id"]))["status"] == "completed" and told)["error"] is None
    assert until(lambda: look(one, clip["id"])["status"] == "cancelled")
    assert one.post(f"/studio/clips/{clip['id']}/retry").json()["status"] == "queued"
    one.delete(f"/studio/clips/{clip['id']}")


def test_a_job_whose_worker_was_killed_is_made_all_the_same(served):
    one = person(served, TOKEN)
    (clip,) = asks(one, steps=400)
    look = lambda: one.get(f"/studio/clips/{clip['id']}").raise_for_status().json()
    until(lambda: look()["phase"] == "sampling" and look()["step"])
    (pid,) = (row["pid"] for row in Queue(served[1]).connection.execute("SELECT pid FROM workers"))
    os.kill(pid, signal.SIGKILL)
    made = until(lambda: (told := look())["status"] == "completed" and told)
    assert made["tries"] == 2 and made["credentials"] == "trusted" and made["request"]["steps"] == 400
    assert one.get(made["content"]).content[4:8] == b"ftyp"


def test_many_visitors_at_once_come_anew_in_the_middle_and_find_their_clips(tmp_path, tiny_model):
    found = run_visitors(tmp_path, 6, model=str(tiny_model), workers=1, steps=150)
    assert (found["served"], found["wrong"], found["strangers"], found["troubles"]) == (6, 0, 0, [])
    assert found["while_waiting"] >= 3 and found["while_made"] >= 3


def test_the_page_is_served_with_all_that_it_is_made_of_and_asks_nobody_else(served):
    one = person(served, TOKEN)
    page = one.get("/studio/")
    assert page.status_code == 200 and "connect-src 'self'" in page.headers["content-security-policy"]
    parts = {*re.findall(r'(?:src|href)="(\./[^"]+)"', page.text), *re.findall(r"/studio/look/[\w.-]+", page.text)}
    assert len(parts) > 3
    for part in parts:
        answer = one.get(f"/studio/{part.removeprefix('./')}" if part.startswith(".") else part)
        assert answer.status_code == 200, part
        assert ("immutable" in answer.headers["cache-control"]) == ("assets/" in part)  # who reloads asks for few
    assert one.get("/", follow_redirects=False).headers["location"] == "/studio/"
    assert one.get("/docs").status_code == 200
