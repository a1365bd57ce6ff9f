"""Secrets stay here: what a file, a row or a model folder says sends nothing out and runs no code."""

import ast
import io
import json
import os
import shutil
import stat
import sys
from pathlib import Path

import pytest
import torch
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from app.home import make_private_folder
from app.queue.jobs import Queue
from app.queue.lease import Lease
from app.queue.previews import PREVIEWS
from app.queue.worker import empty_staging_folder, run_worker
from app.render import read_request
from app.server.auth import AuthMiddleware
from app.server.service import Service, served_models
from app.studio.gallery import Gallery
from app.studio.votes import append_line
from dit.request import METADATA_KEY, Request
from tests.chat_server import ChatServer
from tests.serving import png_bytes
from vae.video.write import write_image

REFUSED = "a file or row may name the upsamplers none and auto only"
ANSWER = json.dumps({"caption": "A red ball bounces on sand at noon."})


@pytest.fixture
def endpoint(monkeypatch):
    """A language model's endpoint that records what it is sent; this user has an API key."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with ChatServer(ANSWER) as server:
        yield server


@pytest.fixture
def made(tmp_path, tiny_model, endpoint):
    """An image whose file names the endpoint as its upsampler, with the fields given."""

    def make(**fields):
        values = {"mode": "text-to-image", "model": str(tiny_model), "steps": 1, "prompt": "a red ball"}
        request = Request(**{**values, "upsample": f"{endpoint.url}#scribe", **fields})
        write_image(tmp_path / "made.png", torch.zeros(3, 1, 64, 64), metadata={METADATA_KEY: request.to_json()})
        return tmp_path / "made.png"

    return make


def test_a_file_cannot_send_a_prompt_and_the_key_to_an_address(longtake, made, endpoint, tmp_path):
    for fields, flags in (({}, ()), ({"upsampled_prompt": "A red ball."}, ("--seed", 5))):
        code, _, err = longtake("again", made(**fields), *flags, "-o", tmp_path / "again.png")
        assert code == 2 and REFUSED in err and "give --upsample NAME on the command line" in err
        assert len(err.splitlines()) == 1 and not (tmp_path / "again.png").exists()
    assert not endpoint.requests


def test_an_upsampled_prompt_in_a_file_is_used_as_it_stands(longtake, made, endpoint, tmp_path):
    assert longtake("again", made(upsampled_prompt="A red ball."), "-o", tmp_path / "again.png")[0] == 0
    assert read_request(tmp_path / "again.png").upsampled_prompt == "A red ball." and not endpoint.requests


def test_the_command_line_may_name_an_address(longtake, made, endpoint, tmp_path):
    name = f"{endpoint.url}#scribe"
    assert longtake("again", made(), "--upsample", name, "-o", tmp_path / "again.png")[0] == 0
    assert read_request(tmp_path / "again.png").upsampled_prompt == json.loads(ANSWER)["caption"]
    assert len(endpoint.requests) == 1


def test_a_storyboard_names_no_address(generate, endpoint, tmp_path):
    board = {"moments": [], "mode": "text-to-image", "prompt": "a red ball", "upsample": f"{endpoint.url}#scribe"}
    (tmp_path / "board.json").write_text(json.dumps(board))
    code, _, err = generate("a red ball", "--moments", tmp_path / "board.json", "-o", tmp_path / "c.png")
    assert code == 2 and REFUSED in err and not endpoint.requests


@pytest.mark.parametrize("flag", ["--upsample", "--set"])
def test_a_row_names_the_upsamplers_that_the_command_line_names(longtake, tiny_model, endpoint, tmp_path, flag):
    name = f"{endpoint.url}#scribe"
    row = {"mode": "text-to-image", "model": str(tiny_model), "steps": 1, "prompt": "a red ball", "upsample": name}
    rows = [row, row | {"upsample": [name], "seed": 1}, row | {"upsampled_prompt": "A red ball.", "seed": 2}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    render = ("render", tmp_path / "rows.jsonl", "-o", tmp_path / "out", "--workers", 0)
    code, out, err = longtake(*render)
    assert code == 3 and err.count(REFUSED) == 2 and len(out.splitlines()) == 1 and not endpoint.requests
    assert longtake(*render, flag, name if flag == "--upsample" else f"upsample={name}")[0] == 0
    assert len(endpoint.requests) == 2 and len(list((tmp_path / "out").glob("*.png"))) == 3


def test_a_row_without_an_upsampler_has_that_of_the_command_line(longtake, tiny_model, endpoint, tmp_path):
    (tmp_path / "rows.txt").write_text("a red ball\n")
    settings = [word for text in (f"model={tiny_model}", "steps=1", "mode=text-to-image") for word in ("--set", text)]
    render = ("render", tmp_path / "rows.txt", "-o", tmp_path / "out", "--workers", 0, *settings)
    assert longtake(*render, "--upsample", f"{endpoint.url}#scribe")[0] == 0 and len(endpoint.requests) == 1


# The classes whose loaders read a folder's weights and configs, and know no code but their own.
CONCRETE = {"Pipeline", "DiT", "VideoVAE", "FlowMatchEulerDiscreteScheduler"}
PACKAGES = ("app", "captioning", "dit", "training", "vae")


def foreign_loaders(tree):
    """Yield the line of each loader of transformers that may run a model's own code: named, or called without False."""
    called = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ("from_pretrained", "from_config", "pipeline"):
            owner = ast.unparse(node.value)
            ours = owner in CONCRETE or (node.attr == "from_config" and "Auto" not in owner)
            if ours or (node.attr == "pipeline" and owner != "transformers"):
                continue
            call = called.get(id(node))
            given = {one.arg: ast.unparse(one.value) for one in call.keywords} if call else {}
            if given.get("trust_remote_code") != "False":
                yield node.lineno


def test_the_loaders_that_may_run_code_are_found():
    bad = "AutoModel.from_pretrained(x)\nf = AutoTokenizer.from_pretrained\ntransformers.pipeline('y')\n"
    bad += "a.AutoModel.from_pretrained(x, trust_remote_code=True)\na.AutoModel.from_config(c)\n"
    good = "DiT.from_pretrained(x)\nAutoModel.from_pretrained(x, trust_remote_code=False)\nself.pipeline.hash\n"
    assert sorted(foreign_loaders(ast.parse(bad))) == [1, 2, 3, 4, 5] and not list(foreign_loaders(ast.parse(good)))


def test_every_loader_of_transformers_refuses_remote_code():
    root = Path(__file__).parents[1]
    files = [path for name in PACKAGES for path in (root / name).rglob("*.py")]
    assert [f"{path}:{line}" for path in files for line in foreign_loaders(ast.parse(path.read_text()))] == []


@pytest.fixture
def coded(tiny_model, tmp_path):
    """A copy of the tiny model whose text encoder and tokenizer bring Python that leaves a file where it runs."""
    folder = shutil.copytree(tiny_model, tmp_path / "coded")
    for name, file in (("text_encoder", "config.json"), ("tokenizer", "tokenizer_config.json")):
        auto_map = {kind: f"code.{kind}" for kind in ("AutoConfig", "AutoModel")} | {"AutoTokenizer": ["code.T", None]}
        config = {"model_type": "strange", "tokenizer_class": "Strange", "auto_map": auto_map}
        (folder / name / file).write_text(json.dumps(config))
        (folder / name / "code.py").write_text(f"open({str(tmp_path / 'was-run')!r}, 'w')\n")
    return folder


@pytest.mark.parametrize("command", ["generate", "estimate"])
def test_a_model_folder_cannot_run_its_own_python(longtake, coded, tmp_path, monkeypatch, command):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    code, _, err = longtake(command, "a red ball", "--model", coded, "-o", tmp_path / "c.mp4")
    assert code == 2 and "Python code of its own, which is never run" in err and len(err.splitlines()) == 1
    assert sys.stdin.read() == "y\n" * 9 and not (tmp_path / "was-run").exists()


def modes(folder):
    """Return the permissions of a folder and of all that lies in it, by relative name."""
    return {str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.rglob("*"))}


@pytest.fixture
def usual_umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.usefixtures("usual_umask")
def test_a_queue_can_be_read_by_its_owner_only(tiny_model, tmp_path):
    queue = Queue(tmp_path / "queue")
    make_private_folder(queue.folder / PREVIEWS)
    service = Service(queue, served_models(queue, [str(tiny_model)]))
    gallery = Gallery(service)
    upload = service.store_upload(io.BytesIO(png_bytes()), "")
    fields = {"mode": "text-to-image", "model": str(tiny_model), "steps": 6, "prompt": "a red ball"}
    request, outside = Request(**fields), tmp_path / "outside.png"
    inside = queue.submit([request], ".png", keep_latents=True)[0]
    queue.submit([request], outputs=[outside])
    with Lease(queue, "cpu") as lease:
        seen = modes(queue.folder)
        job = lease.claim()
        folder = empty_staging_folder(job)
        (folder / job.output.name).write_bytes(png_bytes())
        seen |= modes(queue.folder)
        lease.complete(job)
        seen |= modes(queue.folder)
    queue.submit([request], ".png")
    run_worker(queue, "cpu", until_empty=True)
    gallery.probe(gallery.item(inside.id, ""))
    append_line(queue.folder / "votes.jsonl", "{}")
    seen |= modes(queue.folder)
    for part in ("clips/.making-", "clips/1", "workers/", upload[5:], "jobs.sqlite-wal", "posters/", "shelf"):
        assert any(name.startswith(part) or part in name for name in seen), part
    staged = {name for name in seen if Path(name).parent.name.startswith(".making-")}  # in a private folder
    loose = {name: oct(mode) for name, mode in seen.items() if mode & 0o077 and name not in staged}
    assert not [name for name in loose if not name.startswith("models/")]  # links to folders of the user
    assert stat.S_IMODE(outside.stat().st_mode) == 0o644  # the user named it


@pytest.mark.usefixtures("usual_umask")
def test_the_queue_of_an_older_version_is_tightened_and_nothing_else_in_its_folder(tmp_path):
    queue = Queue(tmp_path)
    queue.submit([Request(prompt="a ball")])
    queue.close()
    for name in ("uploads/everybody/a.png", "clips/b.mp4", "shelf.sqlite", "mine.txt", "mine/c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    Queue(tmp_path).close()
    loose = {name for name, mode in modes(tmp_path).items() if mode & 0o077}
    assert loose == {"mine.txt", "mine", "mine/c.txt"}


@pytest.mark.usefixtures("usual_umask")
def test_the_home_of_longtake_is_private(tmp_path, monkeypatch, tiny_model, longtake):
    monkeypatch.setenv("LONGTAKE_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "history.sqlite").touch()
    picture = ("text-to-image", "a red ball", "--model", tiny_model, "--steps", 1, "-o", tmp_path / "a.png")
    assert longtake(*picture)[0] == 0 and (tmp_path / "home" / "certificate").is_dir()
    row = {"mode": "text-to-image", "model": str(tiny_model), "steps": 1, "prompt": "a red ball"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    assert longtake("render", tmp_path / "rows.jsonl", "-o", tmp_path / "out", "--workers", 0)[0] == 0
    assert not {name: oct(mode) for name, mode in modes(tmp_path / "home").items() if mode & 0o077}
    assert not {name: oct(mode) for name, mode in modes(tmp_path / "out" / ".queue").items() if mode & 0o077}
    (clip,) = (tmp_path / "out").glob("*.png")
    assert stat.S_IMODE(clip.stat().st_mode) == 0o644


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("POST", {"sec-fetch-site": "cross-site"}, 403),
        ("POST", {"sec-fetch-site": "same-site"}, 403),
        ("DELETE", {"sec-fetch-site": "cross-site"}, 403),
        ("GET", {"origin": "http://evil.example"}, 403),
        ("POST", {"sec-fetch-site": "same-origin"}, 200),
        ("POST", {"sec-fetch-site": "none"}, 200),
        ("POST", {}, 200),
        ("POST", {"origin": "http://localhost", "sec-fetch-site": "same-origin"}, 200),
        ("GET", {"sec-fetch-site": "cross-site"}, 200),  # a link on another site
    ],
)
def test_a_server_without_tokens_refuses_what_another_sites_page_sends(method, headers, status):
    app = Starlette(routes=[Route("/", lambda request: Response("ok"), methods=["GET", "POST", "DELETE"])])
    client = TestClient(AuthMiddleware(app), base_url="http://localhost")
    assert client.request(method, "/", headers=headers).status_code == status
