"""The server speaks to clients as they are, keeps owners apart, and opens and fetches nothing that a client names."""

import asyncio
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import psutil
import pytest
from openai._qs import Querystring
from openai.types.video import Video
from PIL import Image
from starlette.testclient import TestClient

from app.batch.batch import crew
from app.cli import main
from app.queue.jobs import Queue
from app.render import request_in
from app.server.parsing import fields_of, read_form, read_json
from app.server.service import Service, offers_of
from dit.request import RequestError

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
ONE, OTHER = "a-token-of-one-person", "a-token-of-another"
SOON_MS = 100  # between two questions


@contextmanager
def serving(command, folder, model):
    """Have a server as people start it, with one worker: its address and its queue's folder."""
    words = (command, str(folder), "--port", "0", "--workers", "1", "--model", str(model))
    process = subprocess.Popen(
        [sys.executable, "-m", "app.cli", *words],
        env=os.environ | {"LONGTAKE_TOKEN": f"{ONE},{OTHER}", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process.stdout.readline().strip(), folder
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0


@pytest.fixture(scope="module")
def served(tmp_path_factory, tiny_model):
    with serving("serve", tmp_path_factory.mktemp("served") / "queue", tiny_model) as server:
        yield server


@pytest.fixture
def client(served):
    return openai.OpenAI(base_url=f"{served[0]}/v1", api_key=ONE, max_retries=0)


@pytest.fixture
def other(served):
    return openai.OpenAI(base_url=f"{served[0]}/v1", api_key=OTHER, max_retries=0)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, tiny_model):
    """What a server without tokens and without workers answers, asked within this process."""
    from app.server.api import server

    queue = Queue(tmp_path_factory.mktemp("alone"))
    service = Service(queue, offers_of(queue, [str(tiny_model)]))
    return TestClient(server(service), base_url="http://127.0.0.1:8000", raise_server_exceptions=False)


def picture(colour="red", size=(64, 64)):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def until(found, seconds=120.0):
    """Wait until something is found, and return it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := found():
            return result
        time.sleep(0.05)
    raise TimeoutError


def test_the_openai_client_makes_a_clip_and_takes_it_home(client, served, tmp_path):
    video = client.videos.create_and_poll(
        prompt="a red ball bounces",
        poll_interval_ms=SOON_MS,
        extra_body={"seed": 5, "steps": 2, "guidance": 1.5, "upsample": "auto"},
    )
    assert (video.status, video.progress, video.model, video.size) == ("completed", 100, "tiny", "64x64")
    client.videos.download_content(video.id).write_to_file(tmp_path / "clip.mp4")
    request = request_in(tmp_path / "clip.mp4")
    assert (request.prompt, request.seed, request.steps, request.guidance) == ("a red ball bounces", 5, 2, 1.5)
    assert request.upsample and request.written and request.written != request.prompt
    for variant, size in (("thumbnail", (64, 64)), ("spritesheet", (6 * 68, 68))):
        seen = Image.open(io.BytesIO(client.videos.download_content(video.id, variant=variant).content))
        assert seen.format == "WEBP" and abs(seen.width - size[0]) < 32 and abs(seen.height - size[1]) < 8
    assert client.videos.retrieve(video.id).status == "completed"
    assert [model.id for model in client.models.list()] == ["tiny"]
    removed = client.videos.delete(video.id)
    assert removed.deleted and not list((served[1] / "clips").glob(f"{video.id}*"))
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(video.id)


def test_pictures_and_clips_come_as_uploads_or_by_their_ids(client, served, tmp_path):
    sent = client.files.create(file=("../../evil.png", picture()), purpose="vision")
    steps = {"steps": 1}
    films = [
        client.videos.create(prompt="a ball", input_reference=("first.png", picture()), extra_body=steps | {"seed": 1}),
        client.videos.create(prompt="a ball", extra_body=steps | {"seed": 1, "image": sent.id}),
    ]
    films = [client.videos.poll(film.id, poll_interval_ms=SOON_MS) for film in films]
    assert [film.status for film in films] == ["completed"] * 2
    contents = [client.videos.download_content(film.id).content for film in films]
    assert contents[0] == contents[1]  # the same picture, seed and words
    asked = {"prompt": "a cube", "video": {"id": films[0].id}, "strength": 0.5} | steps
    made = [
        client.videos.remix(films[0].id, prompt="a cube", extra_body=steps),
        client.post("/videos/edits", body=asked, cast_to=Video),
        client.videos.extend(prompt="on", seconds="1", video=("it.mp4", contents[0]), extra_body=steps),
    ]
    assert [film.remixed_from_video_id for film in made] == [films[0].id, films[0].id, None]
    for film, mode in zip(made, ("remix", "edit", "extend"), strict=True):
        done = client.videos.poll(film.id, poll_interval_ms=SOON_MS)
        assert done.status == "completed", done.error
        (tmp_path / mode).with_suffix(".mp4").write_bytes(content := client.videos.download_content(film.id).content)
        request = request_in((tmp_path / mode).with_suffix(".mp4"))
        assert request.mode == mode and not os.path.isabs(request.clip) and not os.path.isabs(request.model)
        assert str(served[1]).encode() not in content
    assert client.files.delete(sent.id).deleted
    with pytest.raises(openai.BadRequestError, match="no address or path is opened"):
        client.videos.create(prompt="a ball", extra_body={"image": sent.id})


def test_videos_are_listed_in_pages_from_either_end(other):
    made = [other.videos.create(prompt=f"a ball {n}", extra_body={"steps": 1}).id for n in range(5)]
    assert [video.id for video in other.videos.list(limit=2)] == made[::-1]
    assert [video.id for video in other.videos.list(limit=2, order="asc")] == made
    assert [video.id for video in other.videos.list(after=made[3], limit=1).data] == [made[2]]


def test_a_video_that_is_being_made_is_stopped_and_one_that_waits_says_how_many_are_ahead(client):
    long = client.videos.create(prompt="a ball", extra_body={"mode": "long", "seconds": 60, "steps": 1000})
    waiting = [client.videos.create(prompt="a ball", extra_body={"steps": 1}) for _ in range(2)]
    until(lambda: client.videos.retrieve(long.id).status == "in_progress")
    assert [client.videos.retrieve(video.id).ahead for video in waiting] == [0, 1]
    assert client.videos.delete(waiting[0].id).deleted
    assert client.videos.retrieve(waiting[1].id).ahead == 0
    assert not client.videos.delete(long.id).deleted
    ended = client.videos.poll(long.id, poll_interval_ms=SOON_MS)
    assert (ended.status, ended.error.code) == ("failed", "cancelled")
    assert client.videos.poll(waiting[1].id, poll_interval_ms=SOON_MS).status == "completed"
    assert client.videos.delete(long.id).deleted


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({"prompt": "ball " * 400}, "a prompt must be at most 96 tokens"),
        ({"prompt": "a ball", "seconds": "3.7"}, "seconds must be one this model was trained for"),
        (
            {"prompt": "a ball", "extra_body": {"mode": "long", "seconds": 700}},
            "a clip must last at most 600 s here; got 70",
        ),
    ],
)
def test_what_the_model_cannot_make_is_not_queued(client, found, told):
    alike = client.videos.create_and_poll(prompt="a ball", poll_interval_ms=SOON_MS)  # whose estimate is kept
    assert alike.status == "completed"
    before = len(client.videos.list().data)
    with pytest.raises(openai.BadRequestError, match=told):
        client.videos.create(**found)
    assert len(client.videos.list().data) == before


def test_who_has_as_many_in_line_as_may_is_told_to_come_again_and_others_are_served(tmp_path, tiny_model):
    from app.server.api import server

    queue = Queue(tmp_path)
    asking = TestClient(server(Service(queue, offers_of(queue, [str(tiny_model)]), most_jobs=2), [ONE, OTHER]))
    ask = lambda token: asking.post(
        "/v1/videos", json={"prompt": "a ball"}, headers={"Authorization": f"Bearer {token}"}
    )
    first, second, third = [ask(ONE) for _ in range(3)]
    assert (first.status_code, second.status_code, third.status_code) == (200, 200, 429)
    assert third.json()["error"]["message"] == (
        "at most 2 videos of yours may wait here; there are 2, so ask again later"
    )
    assert ask(OTHER).status_code == 200
    queue.cancel(first.json()["id"])
    assert ask(ONE).status_code == 200


def test_what_fails_says_why_without_a_path_of_the_server(client, served):
    source = client.videos.create_and_poll(prompt="a ball", poll_interval_ms=SOON_MS, extra_body={"steps": 1})
    queue = Queue(served[1])
    queue.pause(f"somebody wiped {served[1]}/clips")
    gone = client.videos.remix(source.id, prompt="a cube")
    assert client.videos.retrieve(gone.id).note == "the queue is paused: somebody wiped clips"
    assert client.videos.delete(source.id).deleted
    queue.resume()
    gone = client.videos.poll(gone.id, poll_interval_ms=SOON_MS)
    assert gone.status == "failed" and f"clips/{source.id}.mp4" in gone.error.message
    assert f"/clips/{source.id}" not in gone.error.message


def test_a_prompt_that_the_policy_refuses_is_not_queued_and_the_rule_is_named(client):
    with pytest.raises(openai.BadRequestError, match="policy standard, rule sexual") as refused:
        client.videos.create(prompt="a nude person dances")
    assert refused.value.code == "content_policy_violation"
    assert "nude" not in {video.prompt for video in client.videos.list()}


def test_a_server_replaces_a_worker_that_dies(tmp_path):
    def mine():
        every = (process.info for process in psutil.process_iter(["pid", "cmdline"]))  # None of those that are gone
        return {one["pid"] for one in every if str(tmp_path) in (one["cmdline"] or ())}

    with crew(Queue(tmp_path).folder, 2, ("cpu",), lasting=True) as alive:
        before = mine()
        assert len(before) == 2 and alive() and mine() == before
        os.kill(killed := min(before), signal.SIGKILL)
        until(lambda: alive() and killed not in mine() and len(mine()) == 2)
        assert len(mine() & before) == 1
    assert not mine()


def test_nobody_sees_what_another_made_and_nobody_comes_in_without_a_token(client, other, served):
    video = client.videos.create_and_poll(
        prompt="a ball", poll_interval_ms=SOON_MS, extra_body={"steps": 1, "mode": "text-to-image"}
    )
    sent = client.files.create(file=picture(), purpose="vision")
    for ask in (other.videos.retrieve, other.videos.download_content, other.videos.delete):
        with pytest.raises(openai.NotFoundError, match="must be one of yours"):
            ask(video.id)
    assert video.id not in {one.id for one in other.videos.list()}
    with pytest.raises(openai.NotFoundError):
        other.files.retrieve(sent.id)
    for reference in (video.id, sent.id):
        with pytest.raises(openai.BadRequestError, match="image must be an upload, or the id"):
            other.videos.create(prompt="a ball", extra_body={"input_reference": {"file_id": reference}})
    assert client.videos.retrieve(video.id).status == "completed"
    nobody = openai.OpenAI(base_url=f"{served[0]}/v1", api_key="a-token-of-nobody", max_retries=0)
    for ask in (nobody.videos.list, lambda: nobody.videos.create(prompt="a ball"), nobody.models.list):
        with pytest.raises(openai.AuthenticationError, match="must bring its token"):
            ask()


@pytest.mark.parametrize("words", [["--host", "0.0.0.0"], ["--host", "::"], ["--token", "short"], ["--port", "-1"]])
def test_a_server_that_anybody_could_use_is_not_begun(words, capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("LONGTAKE_TOKEN", raising=False)
    assert main(["serve", str(tmp_path / "queue"), *words]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and ("must" in told)
    assert not (tmp_path / "queue").exists()


@pytest.mark.parametrize(
    "headers", [{"host": "evil.example"}, {"host": ""}, {"origin": "http://evil.example"}, {"origin": "null"}]
)
def test_pages_of_the_web_cannot_use_a_server_without_tokens(alone, headers):
    assert alone.get("/v1/videos").status_code == 200
    assert alone.get("/v1/videos", headers={"origin": "http://127.0.0.1:8000"}).status_code == 200
    assert alone.get("/v1/videos", headers=headers).status_code == 403


@pytest.fixture
def trap():
    """An address of this machine, and what says whether anybody ever called it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)

        def called():
            try:
                return listening.accept()
            except BlockingIOError:
                return None

        yield f"http://127.0.0.1:{listening.getsockname()[1]}/x.png", called


NAMES = ("/etc/passwd", "../../../etc/passwd", "file:///etc/passwd", "~/x.png", "uploads/x.png", "jobs.sqlite", "\0")


@pytest.mark.parametrize("field", ["image", "clip", "other", "mask", "input_reference", "video", "pictures", "moments"])
def test_no_path_and_no_address_of_a_client_is_opened(alone, trap, field):
    address, called = trap
    for name in (*NAMES, address, "file-" + "0" * 64, f"file-{'0' * 61}/..", 7, ["x"], {"id": "x"}):
        for value in (name, {"image_url": name}, {"file_id": name}):
            found = {"prompt": "a ball", "mode": "storyboard", "seconds": 2, field: value}
            if field == "pictures":
                found["pictures"] = [[0, value]]
            if field == "moments":
                found |= {"prompt": "", "moments": [{"at": 0, "prompt": "a ball", "image": value}]}
            answer = alone.post("/v1/videos", json=found)
            told = answer.json()["error"]["message"]
            assert answer.status_code == 400 and re.search("no address or path is opened|must be|file's name", told)
            assert str(alone.app.state.service.queue.folder) not in told and "Traceback" not in told
    assert called() is None
    assert alone.get("/v1/videos").json()["data"] == []


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/videos/..%2f..%2fjobs.sqlite/content", "/v1/videos/%2fetc%2fpasswd/content", "/v1/files/..%2fx"),
        *("/static-offline-docs/..%2f..%2fcore.py", "/static-offline-docs/%2e%2e/core.py", "/clips/x", "/uploads/x"),
        *("/tools/gradio_api/file=/etc/passwd", "/tools/gradio_api/file=http://127.0.0.1/", "/tools/", "/tools"),
        *("/tools/gradio_api/proxy=http://127.0.0.1/", "/tools/gradio_api/upload", "/tools/static/x", "/nowhere"),
    ],
)
def test_no_route_leads_to_a_path_or_an_address(alone, path):
    answer = alone.get(path)
    assert answer.status_code == 404
    if "static" not in path or "tools" in path:
        assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({"prompt": "a ball", "size": "64x66"}, "size must be one this model was trained for: 64x64"),
        ({"prompt": "a ball", "size": "wide"}, "size must be COLUMNSxROWS"),
        ({"prompt": "a ball", "seconds": "soon"}, "seconds must be a number"),
        ({"prompt": "a ball", "model": "/srv/models/secret"}, "model must be one of tiny"),
        ({"prompt": "a ball", "model": ["tiny"]}, "model must be one of tiny"),
        ({"prompt": "a ball", "upsample": "http://127.0.0.1:1/v1#m"}, "upsample must be none or auto here"),
        ({"prompt": "a ball", "upsample": "/srv/upsampler"}, "upsample must be none or auto here"),
        ({"prompt": "a ball", "hashes": [["/etc/passwd", "00"]]}, "a video is asked for by mode"),
        ({"prompt": "a ball", "made_with": "x"}, "a video is asked for by mode"),
        ({"prompt": "a ball", "nonsense": 1}, "got 'nonsense'"),
        ({"prompt": "a ball", "mode": "nonsense"}, "mode must be one of"),
        ({"prompt": "a ball", "mode": "edit"}, "edit needs clip"),
        ({"prompt": " "}, "a prompt must say something"),
        ({}, "a prompt must say something"),
        ({"prompt": "a ball \ud800"}, "must be text in UTF-8"),
        ({"prompt": ["a"]}, "prompt must be str"),
        ({"prompt": "a ball", "seed": True}, "seed must be int"),
        ({"prompt": "a ball", "image": "x", "input_reference": "x"}, "are the same"),
        ([], "a body must be a JSON object; got a list"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_sentence(alone, found, told):
    answer = alone.post("/v1/videos", content=json.dumps(found), headers={"content-type": "application/json"})
    assert answer.status_code == 400 and told in answer.json()["error"]["message"]
    assert "\n" not in answer.json()["error"]["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b'{"seed": NaN}', b"9" * 5000])
def test_bodies_that_are_none_are_refused_in_one_sentence(alone, body):
    for kind in ("application/json", "multipart/form-data; boundary=x", "multipart/form-data", "text/plain"):
        answer = alone.post("/v1/videos", content=body, headers={"content-type": kind})
        assert answer.status_code == 400 and len(answer.json()["error"]["message"]) < 300


def test_a_body_beyond_the_limit_is_not_taken(alone, monkeypatch):
    monkeypatch.setattr("app.server.auth.JSON_BYTES", 1000)
    body = {"prompt": "ball " * 300}
    assert alone.post("/v1/videos", json=body).status_code == 413
    pieces = (b" " * 100 for _ in range(20))
    assert alone.post("/v1/videos", content=pieces).status_code == 413  # which has no length beforehand


def test_a_form_says_what_json_says():
    found = {
        "prompt": "a ball",
        "seed": 7,
        "size": "64x64",
        "window": [0.5, 1],
        "box": [0, 1, 2, 3],
        "pictures": [[0, "file-a"], [1.5, "file-b"]],
        "moments": [{"at": 0, "prompt": "a ball"}, {"at": 1, "prompt": "2"}],
        "video": {"id": "x"},
    }
    form = read_form(Querystring(array_format="brackets").stringify_items(found))
    assert fields_of(form) == fields_of(read_json(json.dumps(found).encode()))
    assert fields_of({"moments": json.dumps(found["moments"])})["moments"] == found["moments"]
    for pairs in (
        [("seed", "1"), ("seed", "2")],
        [("a[][b]", "1"), ("a[][c]", "1"), ("a[][c]", "2")],
        [("a[b]", "1"), ("a[]", "1")],
        [("a", "1"), ("a[b]", "1")],
        [("a[b][c][d]", "1")],
        [("a[b", "1")] * 2,
    ):
        with pytest.raises(RequestError):
            fields_of(read_form(pairs))


def test_the_page_that_explains_the_api_needs_no_network(alone):
    page = alone.get("/").text
    parts = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(parts) >= 3 and all(alone.get(part).status_code == 200 for part in parts)
    assert "http" not in page and '"validatorUrl": null' in page
    told = alone.get("/openapi.json").json()
    paths = {f"{method} {path}" for path, methods in told["paths"].items() for method in methods}
    assert {"post /v1/videos", "get /v1/videos/{video_id}/content", "post /v1/videos/{video_id}/remix"} <= paths
    (create,) = (told["paths"]["/v1/videos"]["post"]["requestBody"]["content"][k] for k in ("application/json",))
    for example in create["examples"].values():
        assert set(example["value"]) <= set(create["schema"]["properties"])
        asked = fields_of(dict(example["value"])) | {"model": None}
        assert alone.post("/v1/videos", json=asked).status_code == 200
    for video in alone.get("/v1/videos").json()["data"]:
        assert alone.delete(f"/v1/videos/{video['id']}").json()["deleted"]


def test_gradios_client_makes_a_clip(served, client):
    from gradio_client import Client

    tools = Client(f"{served[0]}/tools/", headers={"Authorization": f"Bearer {ONE}"}, verbose=False)
    video = tools.predict("a red ball", seed=3, api_name="/make_video")
    assert video["status"] == "completed" and client.videos.download_content(video["id"]).content[4:8] == b"ftyp"
    assert tools.predict(video["id"], api_name="/video_state")["seed"] == 3
    assert tools.predict(1, api_name="/list_videos")[0]["id"] == video["id"]
    with pytest.raises(Exception, match="size must be one this model was trained for"):
        tools.predict("a red ball", size="64x66", api_name="/make_video")
    with pytest.raises(Exception, match="must be one of yours"):
        tools.predict("nobody", api_name="/video_state")


def test_a_model_with_tools_makes_a_clip(served, client):
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    async def use(token):
        async with (
            httpx.AsyncClient(headers={"Authorization": f"Bearer {token}"}, timeout=120) as caller,
            streamable_http_client(f"{served[0]}/tools/gradio_api/mcp/", http_client=caller) as (read, write, _),
            ClientSession(read, write) as ask,
        ):
            await ask.initialize()
            tools = (await ask.list_tools()).tools
            assert {tool.name for tool in tools} == {"make_video", "video_state", "list_videos"}
            assert all(tool.description for tool in tools)
            made = await ask.call_tool("make_video", {"prompt": "a red ball", "seed": 4})
            wrong = await ask.call_tool("make_video", {"prompt": ""})
            return json.loads(made.content[0].text), wrong

    video, wrong = asyncio.run(use(ONE))
    assert video["status"] == "completed" and video["seed"] == 4
    assert client.videos.download_content(video["id"]).content[4:8] == b"ftyp"
    assert wrong.isError and "a prompt must say something" in wrong.content[0].text
    with pytest.raises(BaseExceptionGroup):
        asyncio.run(use("a-token-of-nobody"))


def test_gradio_is_given_no_file_and_no_address(alone, trap):
    address, called = trap
    file = {"path": address, "url": address, "meta": {"_type": "gradio.FileData"}}
    for found in (file, [file], {"x": [file]}, {"path": "/etc/passwd"}, {"meta": {"_type": "gradio.FileData"}}):
        call = {"data": [found], "fn_index": 0, "session_hash": "x"}
        assert alone.post("/tools/gradio_api/queue/join", json=call).status_code == 400
        tool = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}
        tool["params"] = {"name": "make_video", "arguments": {"prompt": found}}
        assert alone.post("/tools/gradio_api/mcp/", json=tool).status_code == 400
    assert called() is None
    assert alone.post("/tools/gradio_api/queue/join", content=b"[" * 100_000).status_code == 400
    assert alone.post("/tools/gradio_api/queue/join", content=b"1" * 2**21).status_code == 413
    assert alone.post("/tools/gradio_api/run/make_video", json={}).status_code == 404


def test_a_model_is_offered_under_its_name_and_not_its_folder(alone, tiny_model):
    service = alone.app.state.service
    assert {name: offer.model for name, offer in service.offers.items()} == {"tiny": "models/tiny"}
    assert (service.queue.folder / "models" / "tiny").resolve() == tiny_model.resolve()
    with pytest.raises(RequestError, match="two named tiny"):
        offers_of(service.queue, [str(tiny_model), str(tiny_model)])
    assert "first" in offers_of(service.queue, [])
    told = service.told(f"{service.queue.folder}/clips/a.mp4 and {Path.cwd()}/x/y.mp4 and/or 1/2 fail: /dev/shm/z")
    assert told == "clips/a.mp4 and y.mp4 and/or 1/2 fail: z"
