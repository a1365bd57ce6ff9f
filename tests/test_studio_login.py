"""Without a token nobody uses a studio; no owner reaches another's clips, a path or a URL; no job is lost."""

import io
import json
import os
import re
import signal
import time

import httpx
import pytest
from PIL import Image
from PIL.WebPImagePlugin import WebPImageFile
from starlette.testclient import TestClient

from app.cli import main
from app.commands.studio import studio
from app.loadtest.visitors import run_visitors
from app.queue.jobs import Queue
from app.queue.worker import run_worker
from app.server.auth import cookie_name
from app.server.service import Service, served_models
from tests.serving import OTHER_TOKEN, TOKEN, running_server
from tests.studio_client import ADDRESS

pytestmark = pytest.mark.slow
COOKIE = cookie_name({"host": ADDRESS.partition("://")[2]})
HTML = {"accept": "text/html,application/xhtml+xml"}


def studio_in(folder, tiny_model):
    queue = Queue(folder)
    return studio(Service(queue, served_models(queue, [str(tiny_model)])), [TOKEN, OTHER_TOKEN])


@pytest.fixture
def shared(tmp_path, tiny_model, monkeypatch):
    """A studio with two tokens."""
    app = studio_in(tmp_path / "queue", tiny_model)
    monkeypatch.chdir(tmp_path / "queue")
    return app


@pytest.fixture(scope="module")
def quiet(tmp_path_factory, tiny_model):
    """A studio with two tokens in which nothing is ever generated."""
    app = studio_in(tmp_path_factory.mktemp("quiet"), tiny_model)
    yield app
    assert app.state.service.queue.jobs() == []


def browser(app, token=None, **more):
    """Return a client, signed in where it has a token."""
    visitor = TestClient(app, base_url=ADDRESS, raise_server_exceptions=False, follow_redirects=False, **more)
    if token:
        answer = visitor.post("/studio/sign-in", data={"token": token}, headers={"origin": ADDRESS})
        assert answer.status_code == 303 and answer.headers["location"] == "/studio/"
    return visitor


def image_bytes(colour="red"):
    file = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(file, "PNG")
    return file.getvalue()


def until(found, seconds=120.0):
    """Wait until a function returns something true, and return it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := found():
            return result
        time.sleep(0.1)
    raise TimeoutError


def submit(visitor, **fields):
    answer = visitor.post("/studio/generate", json={"prompt": "a ball", "steps": 1} | fields)
    return answer.raise_for_status().json()["cards"]


def test_a_browser_signs_in_once_and_no_script_can_read_its_cookie(quiet):
    visitor = browser(quiet)
    for path in ("/studio/", "/studio", "/studio/clips", "/anywhere"):
        answer = visitor.get(path, headers=HTML)
        assert (answer.status_code, answer.headers["location"]) == (303, "/studio/sign-in")
    page = visitor.get("/studio/sign-in", headers=HTML)
    assert page.status_code == 200 and "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert not re.search(r"(src|href)=|http", page.text)
    wrong = visitor.post("/studio/sign-in", data={"token": "not-a-known-token-at-all"})
    assert wrong.status_code == 401 and "set-cookie" not in wrong.headers and "not known" in wrong.text
    kept = visitor.post("/studio/sign-in", data={"token": f" {TOKEN} "}).headers["set-cookie"].lower()
    assert {"httponly", "samesite=strict", "path=/"} <= set(kept.split("; ")) and "secure" not in kept
    assert visitor.get("/studio/", headers=HTML).status_code == 200
    assert visitor.get("/studio/clips").json()["cards"] == []
    away = visitor.post("/studio/sign-out", headers={"origin": ADDRESS})
    assert away.status_code == 303 and visitor.get("/studio/clips").status_code == 401


def test_a_cookie_set_over_https_is_secure(quiet):
    answer = browser(quiet).post("/studio/sign-in", data={"token": TOKEN}, headers={"x-forwarded-proto": "https"})
    assert "secure" in answer.headers["set-cookie"].lower()


@pytest.mark.parametrize("found", [{}, {"token": ""}, {"token": "x" * 9999}, {"tokens": TOKEN}, {"token": "é\0"}])
def test_an_unknown_token_does_not_sign_in(quiet, found):
    answer = browser(quiet).post("/studio/sign-in", data=found)
    assert answer.status_code in (400, 401) and "set-cookie" not in answer.headers and "Traceback" not in answer.text


@pytest.mark.parametrize("cookie", ["", "x", f"{TOKEN}x", OTHER_TOKEN[:-1], f'"{TOKEN}', "a b", "\\"])
def test_an_unknown_cookie_is_refused(quiet, cookie):
    assert browser(quiet).get("/studio/clips", headers={"cookie": f"{COOKIE}={cookie}"}).status_code == 401


WRITES = [
    *(("post", "/studio/generate"), ("post", "/studio/estimate"), ("post", "/studio/read"), ("post", "/studio/votes")),
    *(("post", "/studio/clips/x/cancel"), ("patch", "/studio/clips/x"), ("delete", "/studio/clips/x")),
    *(("post", "/studio/sign-out"), ("post", "/studio/sign-in"), ("post", "/v1/videos"), ("post", "/studio/pause")),
]


@pytest.mark.parametrize(
    "foreign", [{"origin": "http://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}]
)
def test_requests_from_another_site_with_a_cookie_are_refused(shared, foreign):
    visitor = browser(shared, TOKEN)
    for method, path in WRITES:
        answer = visitor.request(method, path, headers=foreign, content=b"{}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "wrong_origin"), path
    assert visitor.get("/studio/clips").json()["cards"] == []
    header = {"authorization": f"Bearer {TOKEN}"}  # which no page can know
    program = browser(shared).post("/studio/generate", json={"prompt": "a ball"}, headers=header | foreign)
    assert program.status_code == 200


def test_no_response_has_cors_headers(quiet):
    visitor = browser(quiet, TOKEN)
    for path in ("/studio/", "/studio/config", "/studio/theme.css", "/studio/clips", "/studio/options"):
        answer = visitor.get(path, headers={"origin": "http://evil.example"})
        assert answer.status_code == 200
        assert not [name for name in answer.headers if name.startswith("access-control-")], path


def test_no_owner_sees_or_changes_the_items_of_another(shared):
    one, other = browser(shared, TOKEN), browser(shared, OTHER_TOKEN)
    waits, made = (card["id"] for card in submit(one, variations=2))
    queue = shared.state.service.queue
    queue.move(made, 0)
    sent = one.post("/studio/read", files={"file": ("x.png", image_bytes())}).json()["card"]["id"]
    run_worker(queue, "cpu", until_empty=True)
    own = submit(one)[0]["id"]
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
        assert other.post("/studio/generate", json={"prompt": "a ball", "mode": "remix", "clip": id}).status_code == 400
        assert other.get("/studio/clips", params={"search": id}).json()["cards"] == []
    content = one.get(f"/v1/videos/{made}/content").content
    assert other.post("/studio/read", files={"file": content}).json()["card"]["id"] not in (made, own)
    assert one.get("/studio/clips").json()["cards"][0]["id"] == own
    assert one.get(f"/studio/clips/{own}").json()["status"] == "queued"
    assert all(one.get(f"/studio/clips/{id}").json()["favourite"] is False for id in (made, sent))
    assert other.post("/studio/pause").status_code == other.post("/studio/resume").status_code == 400
    assert queue.paused is None


def test_the_same_upload_of_two_owners_is_kept_apart(shared):
    one, other = browser(shared, TOKEN), browser(shared, OTHER_TOKEN)
    ids = [who.post("/studio/read", files={"file": image_bytes()}).json()["card"]["id"] for who in (one, other)]
    assert ids[0] == ids[1]
    one.patch(f"/studio/clips/{ids[0]}", json={"note": "one's"})
    assert other.get(f"/studio/clips/{ids[0]}").json()["note"] == ""
    assert one.delete(f"/studio/clips/{ids[0]}").json()["deleted"]
    assert other.get(f"/studio/clips/{ids[0]}/poster").status_code == 200
    assert one.get(f"/studio/clips/{ids[0]}").status_code == 404


def test_moving_a_job_never_delays_another_owner(shared):
    one, other = browser(shared, TOKEN), browser(shared, OTHER_TOKEN)
    first, later, last = submit(one)[0]["id"], submit(other)[0]["id"], submit(other)[0]["id"]
    moved = other.post(f"/studio/clips/{last}/move", json={"ahead": 0}).json()
    assert moved["ahead"] == 1 and one.get(f"/studio/clips/{first}").json()["ahead"] == 0
    assert other.get(f"/studio/clips/{later}").json()["ahead"] == 2


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/studio/frontend/../serve.py",
            "/studio/frontend/..%2fserve.py",
            "/studio/frontend/%2e%2e/serve.py",
            "/studio/frontend/",
        ),
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
def test_no_route_of_the_studio_opens_a_path_or_a_url(quiet, path):
    visitor = browser(quiet, TOKEN)
    for method in ("get", "post", "head"):
        answer = visitor.request(method, path)
        assert answer.status_code in (404, 405), (method, answer.text)
        assert "root:" not in answer.text and "Traceback" not in answer.text and "SQLite" not in answer.text


def test_gradios_deep_links_open_no_file(quiet):
    visitor = browser(quiet, TOKEN)
    plain = visitor.get("/studio/").text
    assert visitor.get("/studio/?deep_link=../../../../etc/passwd&__theme=dark").text == plain


@pytest.mark.parametrize("field", ["image", "clip", "other", "mask", "input_reference", "video"])
@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../jobs.sqlite", "file:///etc/passwd", "http://127.0.0.1:1/x", "clips/x.mp4"]
)
def test_no_path_and_no_url_is_taken_from_a_form(quiet, field, name):
    visitor = browser(quiet, TOKEN)
    for path in ("/studio/generate", "/studio/estimate"):
        answer = visitor.post(path, json={"prompt": "a ball", "mode": "inpaint", "box": [0, 0, 8, 8], field: name})
        assert answer.status_code == 400 and re.search(
            "URLs and paths are not opened", answer.json()["error"]["message"]
        )


def test_a_request_in_a_strangers_file_opens_nothing(shared, tmp_path):
    """The file is forged: its metadata names files of this server."""
    import torch

    from dit.request import METADATA_KEY
    from vae.video.credentials import hash_of_contents
    from vae.video.write import write_video

    visitor = browser(shared, TOKEN)
    theirs = submit(browser(shared, OTHER_TOKEN))[0]["id"]
    for n, path in enumerate(
        ("/etc/passwd", "../../jobs.sqlite", f"clips/{theirs}.mp4", "http://127.0.0.1:1/x", "\\\\x\\y")
    ):
        request = {"mode": "remix", "prompt": "<script>alert(1)</script>", "clip": path, "model": "../../../etc"}
        write_video(
            tmp_path / "x.mp4", torch.zeros(3, 9, 64, 64) + n / 9, 8, metadata={METADATA_KEY: json.dumps(request)}
        )
        answer = visitor.post("/studio/read", files={"file": (tmp_path / "x.mp4").read_bytes()}).json()
        assert "clip" not in answer["request"] and "model" not in answer["request"] and len(answer["missing"]) == 2
        assert "root:" not in json.dumps(answer)
    mine = submit(visitor)[0]["id"]
    run_worker(shared.state.service.queue, "cpu", until_empty=True)
    path = f"clips/{mine}.mp4"  # which is another's on the machine that the file came from
    for digest, found in (("0" * 64, None), (hash_of_contents(path), mine)):
        request = {"mode": "remix", "prompt": "a cube", "clip": path, "hashes": [[path, digest]]}
        write_video(tmp_path / "x.mp4", torch.ones(3, 9, 64, 64), 8, metadata={METADATA_KEY: json.dumps(request)})
        answer = visitor.post("/studio/read", files={"file": (tmp_path / "x.mp4").read_bytes()}).json()
        assert answer["request"].get("clip") == found and len(answer["missing"]) == (found is None)
    for wrong in ('{"mode": 5}', "[" * 9999, "null", '{"seed": 1e999}', '"x"', '{"moments": [5]}'):
        write_video(tmp_path / "x.mp4", torch.zeros(3, 9, 64, 64), 8, metadata={METADATA_KEY: wrong})
        answer = visitor.post("/studio/read", files={"file": (tmp_path / "x.mp4").read_bytes()}).json()
        assert answer["request"] is None and answer["missing"] == ["the file carries no request"]
    assert len(visitor.get("/studio/clips", params={"search": "script"}).json()["cards"]) >= 5


def test_invalid_bodies_are_refused_in_one_sentence(shared):
    visitor = browser(shared, TOKEN)
    (card,) = submit(visitor)
    for path in (
        "generate",
        "estimate",
        "upsample",
        "storyboard",
        "storyboard/text",
        "votes",
        f"clips/{card['id']}/move",
    ):
        for content in (b"", b"{", b"\xff", b"[]", b"null", b"[" * 100_000, b'{"seed": NaN}', b"9" * 5000):
            answer = visitor.post(f"/studio/{path}", content=content, headers={"content-type": "application/json"})
            assert answer.status_code == 400, (path, content[:9])
            assert "\n" not in answer.json()["error"]["message"] and len(answer.text) < 1000
    for content, kind in ((b"x", "multipart/form-data; boundary=x"), (b"{}", "application/json"), (b"", "")):
        assert visitor.post("/studio/read", content=content, headers={"content-type": kind}).status_code == 400
    assert len(visitor.get("/studio/clips").json()["cards"]) == 1


def test_a_studio_on_all_interfaces_without_tokens_does_not_start(capsys, monkeypatch, tmp_path):
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


@pytest.mark.slow
def test_a_killed_worker_loses_no_job(served):
    one, other = person(served, TOKEN), person(served, OTHER_TOKEN)
    (clip,) = submit(one, steps=1000, mode="long", seconds=20)
    (next_one,) = submit(other)
    details = lambda who, id: who.get(f"/studio/clips/{id}").raise_for_status().json()
    until(lambda: details(one, clip["id"])["phase"] == "sampling" and details(one, clip["id"])["step"] > 20)
    with Image.open(io.BytesIO(one.get(until(lambda: details(one, clip["id"])["preview"])).content)) as moving:
        assert isinstance(moving, WebPImageFile) and moving.n_frames > 1
    (pid,) = (row["pid"] for row in Queue(served[1]).connection.execute("SELECT pid FROM workers"))
    os.kill(pid, signal.SIGKILL)
    again = until(lambda: (found := details(one, clip["id"]))["attempts"] == 2 and found)
    assert again["status"] == "in_progress"
    assert details(other, next_one["id"])["status"] == "queued"  # in its place
    one.post(f"/studio/clips/{clip['id']}/cancel")
    assert until(lambda: (found := details(other, next_one["id"]))["status"] == "completed" and found)["error"] is None
    assert until(lambda: details(one, clip["id"])["status"] == "cancelled")
    assert one.post(f"/studio/clips/{clip['id']}/retry").json()["status"] == "queued"
    one.delete(f"/studio/clips/{clip['id']}")


@pytest.mark.slow
def test_a_job_whose_worker_was_killed_is_completed(served):
    one = person(served, TOKEN)
    (clip,) = submit(one, steps=400)
    details = lambda: one.get(f"/studio/clips/{clip['id']}").raise_for_status().json()
    until(lambda: details()["phase"] == "sampling" and details()["step"])
    (pid,) = (row["pid"] for row in Queue(served[1]).connection.execute("SELECT pid FROM workers"))
    os.kill(pid, signal.SIGKILL)
    made = until(lambda: (found := details())["status"] == "completed" and found)
    assert made["attempts"] == 2 and made["credentials"] == "trusted" and made["request"]["steps"] == 400
    assert one.get(made["content"]).content[4:8] == b"ftyp"


@pytest.mark.slow
def test_many_visitors_reload_and_find_their_own_clips(tmp_path, tiny_model):
    found = run_visitors(tmp_path, 6, model=str(tiny_model), workers=1, steps=150)
    assert (found["served"], found["wrong"], found["strangers"], found["errors"]) == (6, 0, 0, [])
    assert found["reloads_queued"] >= 3 and found["reloads_running"] >= 3


def test_the_page_is_served_with_all_its_files_and_loads_from_no_other_host(served):
    one = person(served, TOKEN)
    page = one.get("/studio/")
    assert page.status_code == 200 and "connect-src 'self'" in page.headers["content-security-policy"]
    parts = {*re.findall(r'(?:src|href)="(\./[^"]+)"', page.text), *re.findall(r"/studio/frontend/[\w.-]+", page.text)}
    assert len(parts) > 3
    for part in parts:
        answer = one.get(f"/studio/{part.removeprefix('./')}" if part.startswith(".") else part)
        assert answer.status_code == 200, part
        assert ("immutable" in answer.headers["cache-control"]) == ("assets/" in part)  # who reloads asks for few
    assert one.get("/", follow_redirects=False).headers["location"] == "/studio/"
    assert one.get("/docs").status_code == 200
