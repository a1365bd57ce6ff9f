"""The API validates requests and never opens a path or a URL from a client: without a running server."""

import json
import re
import socket
from pathlib import Path

import pytest
from openai._qs import Querystring
from starlette.testclient import TestClient

from app.cli import main
from app.queue.jobs import Queue
from app.server.parsing import parse_form, parse_json, request_fields
from app.server.service import Service, served_models
from dit.request import RequestError
from tests.serving import OTHER_TOKEN, TOKEN


@pytest.fixture(scope="module")
def local_api(tmp_path_factory, tiny_model):
    """A client of a server without tokens and workers, in this process."""
    from app.server.api import create_app

    queue = Queue(tmp_path_factory.mktemp("local_api"))
    service = Service(queue, served_models(queue, [str(tiny_model)]))
    return TestClient(create_app(service), base_url="http://127.0.0.1:8000", raise_server_exceptions=False)


def test_an_owner_at_the_job_limit_is_refused_and_others_are_served(tmp_path, tiny_model):
    from app.server.api import create_app

    queue = Queue(tmp_path)
    api = TestClient(
        create_app(Service(queue, served_models(queue, [str(tiny_model)]), max_open_jobs=2), [TOKEN, OTHER_TOKEN])
    )
    ask = lambda token: api.post("/v1/videos", json={"prompt": "a ball"}, headers={"Authorization": f"Bearer {token}"})
    first, second, third = [ask(TOKEN) for _ in range(3)]
    assert (first.status_code, second.status_code, third.status_code) == (200, 200, 429)
    assert third.json()["error"]["message"] == (
        "at most 2 videos of yours may wait here; there are 2, so ask again later"
    )
    assert ask(OTHER_TOKEN).status_code == 200
    queue.cancel(first.json()["id"])
    assert ask(TOKEN).status_code == 200


@pytest.mark.parametrize("arguments", [["--host", "0.0.0.0"], ["--host", "::"], ["--token", "short"], ["--port", "-1"]])
def test_a_server_open_to_anybody_does_not_start(arguments, capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("LONGTAKE_TOKEN", raising=False)
    assert main(["serve", str(tmp_path / "queue"), *arguments]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and ("must" in message)
    assert not (tmp_path / "queue").exists()


@pytest.mark.parametrize(
    "headers", [{"host": "evil.example"}, {"host": ""}, {"origin": "http://evil.example"}, {"origin": "null"}]
)
def test_pages_of_other_sites_cannot_use_a_server_without_tokens(local_api, headers):
    assert local_api.get("/v1/videos").status_code == 200
    assert local_api.get("/v1/videos", headers={"origin": "http://127.0.0.1:8000"}).status_code == 200
    assert local_api.get("/v1/videos", headers=headers).status_code == 403


@pytest.fixture
def url_probe():
    """A URL of this machine, and a function that tells whether it was ever fetched."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)

        def was_fetched():
            try:
                return listening.accept()
            except BlockingIOError:
                return None

        yield f"http://127.0.0.1:{listening.getsockname()[1]}/x.png", was_fetched


NAMES = ("/etc/passwd", "../../../etc/passwd", "file:///etc/passwd", "~/x.png", "uploads/x.png", "jobs.sqlite", "\0")


@pytest.mark.parametrize(
    "field", ["image", "clip", "other", "mask", "input_reference", "video", "keyframes", "moments"]
)
def test_paths_and_urls_from_clients_are_never_opened(local_api, url_probe, field):
    url, was_fetched = url_probe
    for name in (*NAMES, url, "file-" + "0" * 64, f"file-{'0' * 61}/..", 7, ["x"], {"id": "x"}):
        for value in (name, {"image_url": name}, {"file_id": name}):
            fields = {"mode": "storyboard", "seconds": 2, "moments": [{"at": 0, "prompt": "a ball"}], field: value}
            if field == "keyframes":
                fields["keyframes"] = [[0, value]]
            if field == "moments":
                fields["moments"] = [{"at": 0, "prompt": "a ball", "image": value}]
            response = local_api.post("/v1/videos", json=fields)
            message = response.json()["error"]["message"]
            assert response.status_code == 400 and re.search(
                "URLs and paths are not opened|must be|file's name", message
            )
            assert str(local_api.app.state.service.queue.folder) not in message and "Traceback" not in message
    assert was_fetched() is None
    assert local_api.get("/v1/videos").json()["data"] == []


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/videos/..%2f..%2fjobs.sqlite/content", "/v1/videos/%2fetc%2fpasswd/content", "/v1/files/..%2fx"),
        *("/static-offline-docs/..%2f..%2fcore.py", "/static-offline-docs/%2e%2e/core.py", "/clips/x", "/uploads/x"),
        *("/tools/gradio_api/file=/etc/passwd", "/tools/gradio_api/file=http://127.0.0.1/", "/tools/", "/tools"),
        *("/tools/gradio_api/proxy=http://127.0.0.1/", "/tools/gradio_api/upload", "/tools/static/x", "/nowhere"),
    ],
)
def test_no_route_opens_a_path_or_a_url(local_api, path):
    response = local_api.get(path)
    assert response.status_code == 404
    if "static" not in path or "tools" in path:
        assert response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "a ball", "size": "64x66"}, "size must be one this model was trained for: 64x64"),
        ({"prompt": "a ball", "size": "wide"}, "size must be COLUMNSxROWS"),
        ({"prompt": "a ball", "seconds": "soon"}, "seconds must be a number"),
        ({"prompt": "a ball", "model": "/srv/models/secret"}, "model must be one of tiny"),
        ({"prompt": "a ball", "model": ["tiny"]}, "model must be one of tiny"),
        ({"prompt": "a ball", "upsample": "http://127.0.0.1:1/v1#m"}, "upsample must be none or auto here"),
        ({"prompt": "a ball", "upsample": "/srv/upsampler"}, "upsample must be none or auto here"),
        ({"prompt": "a ball", "hashes": [["/etc/passwd", "00"]]}, "a video request has the fields mode"),
        ({"prompt": "a ball", "made_with": "x"}, "a video request has the fields mode"),
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
def test_an_invalid_request_is_refused_in_one_sentence(local_api, fields, message):
    response = local_api.post("/v1/videos", content=json.dumps(fields), headers={"content-type": "application/json"})
    assert response.status_code == 400 and message in response.json()["error"]["message"]
    assert "\n" not in response.json()["error"]["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b'{"seed": NaN}', b"9" * 5000])
def test_a_malformed_body_is_refused_in_one_sentence(local_api, body):
    for kind in ("application/json", "multipart/form-data; boundary=x", "multipart/form-data", "text/plain"):
        response = local_api.post("/v1/videos", content=body, headers={"content-type": kind})
        assert response.status_code == 400 and len(response.json()["error"]["message"]) < 300


def test_a_body_over_the_limit_is_refused(local_api, monkeypatch):
    monkeypatch.setattr("app.server.auth.MAX_JSON_BYTES", 1000)
    body = {"prompt": "ball " * 300}
    assert local_api.post("/v1/videos", json=body).status_code == 413
    chunks = (b" " * 100 for _ in range(20))
    assert local_api.post("/v1/videos", content=chunks).status_code == 413  # without Content-Length


def test_a_form_is_parsed_like_json():
    fields = {
        "prompt": "a ball",
        "seed": 7,
        "size": "64x64",
        "window": [0.5, 1],
        "box": [0, 1, 2, 3],
        "keyframes": [[0, "file-a"], [1.5, "file-b"]],
        "moments": [{"at": 0, "prompt": "a ball"}, {"at": 1, "prompt": "2"}],
        "video": {"id": "x"},
    }
    form = parse_form(Querystring(array_format="brackets").stringify_items(fields))
    assert request_fields(form) == request_fields(parse_json(json.dumps(fields).encode()))
    assert request_fields({"moments": json.dumps(fields["moments"])})["moments"] == fields["moments"]
    for pairs in (
        [("seed", "1"), ("seed", "2")],
        [("a[][b]", "1"), ("a[][c]", "1"), ("a[][c]", "2")],
        [("a[b]", "1"), ("a[]", "1")],
        [("a", "1"), ("a[b]", "1")],
        [("a[b][c][d]", "1")],
        [("a[b", "1")] * 2,
    ):
        with pytest.raises(RequestError):
            request_fields(parse_form(pairs))


def test_field_names_of_version_0_1_are_still_read():
    old = {"negative": "fog", "method": "heun", "rescale": "0.5", "interval": ["0", 1], "pictures": [["0", "file-a"]]}
    assert request_fields(old) == {
        "negative_prompt": "fog",
        "sampler": "heun",
        "guidance_rescale": 0.5,
        "guidance_interval": [0, 1],
        "keyframes": [[0, "file-a"]],
    }
    with pytest.raises(RequestError, match="negative is now named negative_prompt"):
        request_fields({"negative": "fog", "negative_prompt": "rain"})


def test_the_docs_page_needs_no_network_and_its_examples_are_valid(local_api):
    page = local_api.get("/").text
    parts = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(parts) >= 3 and all(local_api.get(part).status_code == 200 for part in parts)
    assert "http" not in page and '"validatorUrl": null' in page
    schema = local_api.get("/openapi.json").json()
    paths = {f"{method} {path}" for path, methods in schema["paths"].items() for method in methods}
    assert {"post /v1/videos", "get /v1/videos/{video_id}/content", "post /v1/videos/{video_id}/remix"} <= paths
    (create,) = (schema["paths"]["/v1/videos"]["post"]["requestBody"]["content"][k] for k in ("application/json",))
    for example in create["examples"].values():
        assert set(example["value"]) <= set(create["schema"]["properties"])
        fields = request_fields(dict(example["value"])) | {"model": None}
        assert local_api.post("/v1/videos", json=fields).status_code == 200
    for video in local_api.get("/v1/videos").json()["data"]:
        assert local_api.delete(f"/v1/videos/{video['id']}").json()["deleted"]


def test_gradio_is_never_given_a_file_or_a_url(local_api, url_probe):
    url, was_fetched = url_probe
    file = {"path": url, "url": url, "meta": {"_type": "gradio.FileData"}}
    for value in (file, [file], {"x": [file]}, {"path": "/etc/passwd"}, {"meta": {"_type": "gradio.FileData"}}):
        call = {"data": [value], "fn_index": 0, "session_hash": "x"}
        assert local_api.post("/tools/gradio_api/queue/join", json=call).status_code == 400
        tool = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}
        tool["params"] = {"name": "make_video", "arguments": {"prompt": value}}
        assert local_api.post("/tools/gradio_api/mcp/", json=tool).status_code == 400
    assert was_fetched() is None
    assert local_api.post("/tools/gradio_api/queue/join", content=b"[" * 100_000).status_code == 400
    assert local_api.post("/tools/gradio_api/queue/join", content=b"1" * 2**21).status_code == 413
    assert local_api.post("/tools/gradio_api/run/make_video", json={}).status_code == 404


def test_a_model_is_served_under_its_name_not_its_folder(local_api, tiny_model):
    service = local_api.app.state.service
    assert {name: model.name for name, model in service.models.items()} == {"tiny": "models/tiny"}
    assert (service.queue.folder / "models" / "tiny").resolve() == tiny_model.resolve()
    with pytest.raises(RequestError, match="two named tiny"):
        served_models(service.queue, [str(tiny_model), str(tiny_model)])
    assert "first" in served_models(service.queue, [])
    message = service.hide_paths(
        f"{service.queue.folder}/clips/a.mp4 and {Path.cwd()}/x/y.mp4 and/or 1/2 fail: /dev/shm/z"
    )
    assert message == "clips/a.mp4 and y.mp4 and/or 1/2 fail: z"
