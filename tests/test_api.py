"""The API generates videos for its clients (openai, gradio, MCP), and keeps owners apart: on a running server."""

import asyncio
import io
import json
import os
import signal

import httpx
import openai
import psutil
import pytest
from openai.types.video import Video
from PIL import Image

from app.queue.jobs import Queue
from app.queue.processes import worker_processes
from app.render import read_request
from tests.serving import OTHER_TOKEN, TOKEN, png_bytes, running_server, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")]
POLL_MS = 100


@pytest.fixture(scope="module")
def served(tmp_path_factory, tiny_model):
    with running_server("serve", tmp_path_factory.mktemp("served") / "queue", tiny_model) as server:
        yield server


@pytest.fixture
def client(served):
    return openai.OpenAI(base_url=f"{served[0]}/v1", api_key=TOKEN, max_retries=0)


@pytest.fixture
def other(served):
    return openai.OpenAI(base_url=f"{served[0]}/v1", api_key=OTHER_TOKEN, max_retries=0)


def test_the_openai_client_generates_and_downloads_a_clip(client, served, tmp_path):
    video = client.videos.create_and_poll(
        prompt="a red ball bounces",
        poll_interval_ms=POLL_MS,
        extra_body={"seed": 5, "steps": 2, "guidance": 1.5, "upsample": "auto"},
    )
    assert (video.status, video.progress, video.model, video.size) == ("completed", 100, "tiny", "64x64")
    client.videos.download_content(video.id).write_to_file(tmp_path / "clip.mp4")
    request = read_request(tmp_path / "clip.mp4")
    assert (request.prompt, request.seed, request.steps, request.guidance) == ("a red ball bounces", 5, 2, 1.5)
    assert request.upsample and request.upsampled_prompt and request.upsampled_prompt != request.prompt
    for variant, size in (("thumbnail", (64, 64)), ("spritesheet", (6 * 68, 68))):
        image = Image.open(io.BytesIO(client.videos.download_content(video.id, variant=variant).content))
        assert image.format == "WEBP" and abs(image.width - size[0]) < 32 and abs(image.height - size[1]) < 8
    assert client.videos.retrieve(video.id).status == "completed"
    assert [model.id for model in client.models.list()] == ["tiny"] and client.models.retrieve("tiny").id == "tiny"
    removed = client.videos.delete(video.id)
    assert removed.deleted and not list((served[1] / "clips").glob(f"{video.id}*"))
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(video.id)


def test_images_and_clips_are_given_as_uploads_or_by_id(client, served, tmp_path):
    sent = client.files.create(file=("../../evil.png", png_bytes()), purpose="vision")
    steps = {"steps": 1}
    fields = steps | {"seed": 1}
    clips = [
        client.videos.create(prompt="a ball", input_reference=("first.png", png_bytes()), extra_body=fields),
        client.videos.create(prompt="a ball", extra_body=fields | {"image": sent.id}),
    ]
    clips = [client.videos.poll(clip.id, poll_interval_ms=POLL_MS) for clip in clips]
    assert [clip.status for clip in clips] == ["completed"] * 2
    contents = [client.videos.download_content(clip.id).content for clip in clips]
    assert contents[0] == contents[1]  # the same image, seed and prompt
    edit = {"prompt": "a cube", "video": {"id": clips[0].id}, "strength": 0.5} | steps
    made = [
        client.videos.remix(clips[0].id, prompt="a cube", extra_body=steps),
        client.post("/videos/edits", body=edit, cast_to=Video),
        client.videos.extend(prompt="on", seconds="1", video=("it.mp4", contents[0]), extra_body=steps),
    ]
    assert [clip.remixed_from_video_id for clip in made] == [clips[0].id, clips[0].id, None]
    assert float(made[1].seconds) == pytest.approx(2.125, abs=0.1) and float(made[2].seconds) > 3
    assert sent.id in {file.id for file in client.files.list()}
    again = {client.videos.create(prompt="a", extra_headers={"Idempotency-Key": "twice"}).id for _ in range(2)}
    assert len(again) == 1 and client.videos.delete(*again)
    for clip, mode in zip(made, ("remix", "edit", "extend"), strict=True):
        done = client.videos.poll(clip.id, poll_interval_ms=POLL_MS)
        assert done.status == "completed", done.error
        (tmp_path / mode).with_suffix(".mp4").write_bytes(content := client.videos.download_content(clip.id).content)
        request = read_request((tmp_path / mode).with_suffix(".mp4"))
        assert request.mode == mode and not os.path.isabs(request.clip) and not os.path.isabs(request.model)
        assert str(served[1]).encode() not in content
    assert client.files.delete(sent.id).deleted
    with pytest.raises(openai.BadRequestError, match="URLs and paths are not opened"):
        client.videos.create(prompt="a ball", extra_body={"image": sent.id})


def test_videos_are_listed_in_pages_in_either_order(other):
    made = [other.videos.create(prompt=f"a ball {n}", extra_body={"steps": 1}).id for n in range(5)]
    assert [video.id for video in other.videos.list(limit=2)] == made[::-1]
    assert [video.id for video in other.videos.list(limit=2, order="asc")] == made
    assert [video.id for video in other.videos.list(after=made[3], limit=1).data] == [made[2]]


def test_a_running_video_is_cancelled_and_a_waiting_one_counts_those_ahead(client):
    long = client.videos.create(prompt="a ball", extra_body={"mode": "long", "seconds": 60, "steps": 1000})
    waiting = [client.videos.create(prompt="a ball", extra_body={"steps": 1}) for _ in range(2)]
    wait_for(lambda: client.videos.retrieve(long.id).status == "in_progress")
    assert [client.videos.retrieve(video.id).ahead for video in waiting] == [0, 1]
    assert client.videos.delete(waiting[0].id).deleted
    assert client.videos.retrieve(waiting[1].id).ahead == 0
    assert not client.videos.delete(long.id).deleted
    ended = client.videos.poll(long.id, poll_interval_ms=POLL_MS)
    assert (ended.status, ended.error.code) == ("failed", "cancelled")
    assert client.videos.poll(waiting[1].id, poll_interval_ms=POLL_MS).status == "completed"
    assert client.videos.delete(long.id).deleted


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "ball " * 400}, "a prompt must be at most about 47 words for this model; got 400"),
        ({"prompt": "a ball", "seconds": "3.7"}, "seconds must be one this model was trained for"),
        (
            {"prompt": "a ball", "extra_body": {"mode": "long", "seconds": 700}},
            "a clip must last at most 600 s here; got 70",
        ),
    ],
)
def test_a_request_that_the_model_cannot_fulfil_is_not_queued(client, fields, message):
    similar = client.videos.create_and_poll(prompt="a ball", poll_interval_ms=POLL_MS)  # its cost estimate is cached
    assert similar.status == "completed"
    before = len(client.videos.list().data)
    with pytest.raises(openai.BadRequestError, match=message):
        client.videos.create(**fields)
    assert len(client.videos.list().data) == before


def test_a_failed_video_gives_its_reason_without_paths_of_the_server(client, served):
    source = client.videos.create_and_poll(prompt="a ball", poll_interval_ms=POLL_MS, extra_body={"steps": 1})
    queue = Queue(served[1])
    queue.pause(f"somebody wiped {served[1]}/clips")
    gone = client.videos.remix(source.id, prompt="a cube")
    assert client.videos.retrieve(gone.id).note == "the queue is paused: somebody wiped clips"
    with pytest.raises(openai.BadRequestError, match="must stay until the clips that use it are done"):
        client.videos.delete(source.id)
    (served[1] / "clips" / f"{source.id}.mp4").unlink()  # by hand
    queue.resume()
    gone = client.videos.poll(gone.id, poll_interval_ms=POLL_MS)
    assert gone.status == "failed" and f"clips/{source.id}.mp4" in gone.error.message
    assert f"/clips/{source.id}" not in gone.error.message


def test_a_prompt_refused_by_the_policy_is_not_queued_and_the_rule_is_named(client):
    with pytest.raises(openai.BadRequestError, match="policy standard, rule sexual") as refused:
        client.videos.create(prompt="a nude person dances")
    assert refused.value.code == "content_policy_violation"
    assert "nude" not in {video.prompt for video in client.videos.list()}


def test_a_dead_worker_is_replaced(tmp_path):
    def worker_pids():
        every = (process.info for process in psutil.process_iter(["pid", "cmdline"]))  # None of those that are gone
        return {one["pid"] for one in every if str(tmp_path) in (one["cmdline"] or ())}

    with worker_processes(Queue(tmp_path).folder, 2, ("cpu",), restart=True) as alive:
        before = worker_pids()
        assert len(before) == 2 and alive() and worker_pids() == before
        os.kill(killed := min(before), signal.SIGKILL)
        wait_for(lambda: alive() and killed not in worker_pids() and len(worker_pids()) == 2)
        assert len(worker_pids() & before) == 1
    assert not worker_pids()


def test_owners_cannot_see_each_others_videos_and_a_token_is_required(client, other, served):
    video = client.videos.create_and_poll(
        prompt="a ball", poll_interval_ms=POLL_MS, extra_body={"steps": 1, "mode": "text-to-image"}
    )
    sent = client.files.create(file=png_bytes(), purpose="vision")
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
        with pytest.raises(openai.AuthenticationError, match="must carry its token"):
            ask()


def test_the_gradio_client_generates_a_clip(served, client):
    from gradio_client import Client

    tools = Client(f"{served[0]}/tools/", headers={"Authorization": f"Bearer {TOKEN}"}, verbose=False)
    video = tools.predict("a red ball", seed=3, api_name="/make_video")
    assert video["status"] == "completed" and client.videos.download_content(video["id"]).content[4:8] == b"ftyp"
    assert tools.predict(video["id"], api_name="/video_state")["seed"] == 3
    assert tools.predict(1, api_name="/list_videos")[0]["id"] == video["id"]
    with pytest.raises(Exception, match="size must be one this model was trained for"):
        tools.predict("a red ball", size="64x66", api_name="/make_video")
    with pytest.raises(Exception, match="must be one of yours"):
        tools.predict("nobody", api_name="/video_state")


def test_an_mcp_client_generates_a_clip(served, client):
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

    video, wrong = asyncio.run(use(TOKEN))
    assert video["status"] == "completed" and video["seed"] == 4
    assert client.videos.download_content(video["id"]).content[4:8] == b"ftyp"
    assert wrong.isError and "a prompt must say something" in wrong.content[0].text
    with pytest.raises(BaseExceptionGroup):
        asyncio.run(use("a-token-of-nobody"))
