"""One client cannot hold up another: cheap checks come first, what is dear waits its turn, and disks have quotas."""

import base64
import threading
import time
from dataclasses import replace

import anyio
import pytest
import torch
from starlette.testclient import TestClient

from app.queue.jobs import CANCELLED, Queue
from app.queue.lease import Lease, staging_folder
from app.server.api import create_app
from app.server.limits import ClientGate, RequestLimits, TooBusy
from app.server.service import Service, served_models
from dit.request import RequestError
from tests.serving import OTHER_TOKEN, TOKEN, png_bytes, wait_for
from vae.video.write import write_video

LONG = "a red ball " * 200_000


class Api(TestClient):
    """A client of a server in this process that counts how often anything dear was begun."""

    def __init__(self, folder, model, tokens=(), **settings):
        self.queue, self.checked = Queue(folder), []
        self.service = Service(self.queue, served_models(self.queue, [str(model)]), self.checked.append, **settings)
        super().__init__(create_app(self.service, tokens), base_url="http://127.0.0.1:8000")

    def submit(self, status=200, headers=None, **fields):
        answer = self.post("/v1/videos", json={"prompt": "a ball"} | fields, headers=headers)
        assert answer.status_code == status, answer.text
        return answer.json()

    def upload(self, content=b"", status=200):
        answer = self.post("/v1/files", files={"file": content or png_bytes()})
        assert answer.status_code == status, answer.text
        return answer.json()

    def finish(self, id):
        """Let a job be done, as a worker does."""
        with Lease(self.queue, "cpu") as lease:
            job = lease.claim()
            assert job and job.id == id
            staging_folder(job).mkdir()
            write_video(staging_folder(job) / job.output.name, torch.zeros(3, 17, 64, 64), 8.0)
            lease.complete(job)


@pytest.fixture
def api(tmp_path, tiny_model):
    return Api(tmp_path / "queue", tiny_model)


def refusals():
    picture = {"image_url": f"data:image/png;base64,{base64.b64encode(png_bytes()).decode()}"}
    moments = [{"at": n / 2, "prompt": "a ball", "clip": "file-" + "0" * 64} for n in range(48)]
    yield "a long prompt", {"prompt": LONG}, "prompt must have at most 10,000 characters; got 2,200,000"
    yield "a long negative prompt", {"negative_prompt": LONG}, "negative_prompt must have at most"
    yield "a long upsampled prompt", {"upsampled_prompt": LONG}, "upsampled_prompt must have at most"
    yield "hours", {"mode": "long", "seconds": 30_000}, "a clip must last at most 600 s here; got 30000"
    yield "48 clips", {"prompt": "", "mode": "storyboard", "seconds": 30, "moments": moments}, "at most 24 input files"
    yield "a picture with too long a prompt", {"prompt": LONG, "input_reference": picture}, "prompt must have at most"
    late = {"prompt": "", "mode": "long", "seconds": 599, "moments": [{"at": 0, "prompt": LONG}]}
    yield "a moment's prompt", late, "a moment's prompt must have at most"
    many = [{"at": n / 4, "prompt": "a ball"} for n in range(500)]
    yield "500 moments", late | {"moments": many}, "at most 240 moments"
    keyframes = [[1000, "file-" + "0" * 64]]
    yield "a late keyframe", {"mode": "keyframes", "keyframes": keyframes}, "must last at most 600 s"
    yield "a seed below 0", {"seed": -1}, "seed must be a whole number from 0"


@pytest.mark.parametrize(("fields", "message"), [case[1:] for case in refusals()], ids=[case[0] for case in refusals()])
def test_what_the_fields_forbid_is_refused_before_anything_dear(api, fields, message):
    started = time.thread_time()
    assert message in api.submit(400, **fields)["error"]["message"]
    assert time.thread_time() - started < 2 and api.checked == [] and api.queue.counts()["queued"] == 0
    assert not [path for path in (api.queue.folder / "uploads").rglob("*") if path.is_file()]


def test_a_body_of_a_million_values_is_refused_without_being_parsed(api):
    started = time.thread_time()
    answer = api.post("/v1/videos", content=b'{"moments": [' + b"1," * 4_000_000 + b"1]}")
    assert answer.status_code == 400 and "at most 100,000 values" in answer.text
    assert time.thread_time() - started < 1


def test_a_form_is_checked_before_its_files_are_stored(api):
    files = {"input_reference": ("x.png", png_bytes())}
    answer = api.post("/v1/videos", data={"prompt": "a ball", "size": "64x66"}, files=files)
    assert answer.status_code == 400 and "size must be one" in answer.text
    assert not [path for path in (api.queue.folder / "uploads").rglob("*") if path.is_file()]
    assert api.post("/v1/videos", data={"prompt": "a ball"}, files=files).status_code == 200


def test_a_client_at_its_limit_of_jobs_is_refused_before_anything_dear(tmp_path, tiny_model):
    api = Api(tmp_path / "queue", tiny_model, max_open_jobs=1)
    api.submit()
    assert "at most 1 videos of yours" in api.submit(429)["error"]["message"] and len(api.checked) == 1


def test_a_long_prompt_reaches_no_policy_and_no_model_on_the_command_line(generate, tmp_path):
    started = time.thread_time()
    code, _, error = generate(LONG, "-o", tmp_path / "x.mp4")
    assert code == 2 and "prompt must have at most 10,000 characters" in error and len(error) < 1500
    assert time.thread_time() - started < 5


def test_the_calls_of_one_client_leave_threads_for_those_of_another():
    gate, running, most, order = ClientGate(per_client=2, total=3, waiting=10), [], [], []

    def work(owner):
        running.append(owner)
        most.append(running.count("greedy"))
        time.sleep(0.02)
        running.remove(owner)
        order.append(owner)

    async def main():
        async with anyio.create_task_group() as group:
            for _ in range(12):
                group.start_soon(gate.run, "greedy", work, "greedy")
            await anyio.sleep(0.01)
            with pytest.raises(TooBusy, match="at most 10 calls of yours"):
                await gate.run("greedy", work, "greedy")
            await gate.run("other", work, "other")

    anyio.run(main)
    assert max(most) == 2 and order.index("other") <= 4 and len(order) == 13 and gate.lines == {}


def test_requests_that_one_client_holds_open_have_a_limit(tmp_path, tiny_model, monkeypatch):
    monkeypatch.setattr("app.server.auth.MAX_OPEN_REQUESTS", 2)
    api, held, go_on = Api(tmp_path / "queue", tiny_model, (TOKEN, OTHER_TOKEN)), [], threading.Event()
    headers = lambda token: {"Authorization": f"Bearer {token}"}
    slow = replace(api.service, check_request=lambda request: (held.append(request), go_on.wait(20)))
    api.app.state.service = slow
    threads = [
        threading.Thread(
            target=api.post, args=("/v1/videos",), kwargs={"json": {"prompt": "a"}, "headers": headers(TOKEN)}
        )
        for _ in range(2)
    ]
    with api:  # all requests in one event loop, as in a server
        for thread in threads:
            thread.start()
        wait_for(lambda: len(held) == 2, 20)
        assert api.get("/v1/videos", headers=headers(TOKEN)).status_code == 429
        assert api.get("/v1/videos", headers=headers(OTHER_TOKEN)).status_code == 200
        go_on.set()
        for thread in threads:
            thread.join()
        assert api.get("/v1/videos", headers=headers(TOKEN)).status_code == 200


def test_a_client_with_too_much_on_the_disk_may_read_and_delete_and_no_more(tmp_path, tiny_model):
    api = Api(tmp_path / "queue", tiny_model, limits=RequestLimits(owner_bytes=100))
    sent = api.upload()["id"]
    for answer in (api.submit(429), api.upload(png_bytes("blue"), 429)):
        assert answer["error"]["code"] == "insufficient_quota" and "so delete some" in answer["error"]["message"]
    assert api.delete(f"/v1/files/{sent}").json()["deleted"]
    made = api.submit()["id"]
    api.finish(made)
    api.service.storage.sums.clear()  # as time does
    api.submit(429)
    assert api.delete(f"/v1/videos/{made}").json()["deleted"]
    api.submit()


def test_a_file_that_an_unfinished_video_needs_cannot_be_deleted(api):
    sent, source = api.upload()["id"], api.submit()["id"]
    api.finish(source)
    user = api.submit(image=sent, mode="image-to-video")["id"]
    other = api.submit(mode="remix", video={"id": source})["id"]
    for path in (f"/v1/files/{sent}", f"/v1/videos/{source}"):
        answer = api.delete(path)
        assert answer.status_code == 400 and "must stay until the clips that use it are done" in answer.text
        assert api.get(f"{path}/content").status_code == 200
    for id in (user, other):
        api.delete(f"/v1/videos/{id}")
    assert api.delete(f"/v1/files/{sent}").json()["deleted"] and api.delete(f"/v1/videos/{source}").json()["deleted"]


def test_a_video_is_not_queued_where_its_input_is_deleted_at_that_moment(api):
    sent = api.upload()["id"]
    path = api.service.upload_path(sent, "")
    racing = replace(api.service, check_request=lambda request: path.unlink())
    with pytest.raises(ValueError, match="was deleted meanwhile"):
        racing.submit({"prompt": "a ball", "image": sent}, "")
    assert api.queue.counts()["queued"] == 0


def test_a_request_sent_again_with_its_idempotency_key_makes_no_second_video(api):
    key = {"Idempotency-Key": "k1"}
    first = api.submit(headers=key, seed=3)
    assert api.submit(headers=key, seed=3)["id"] == first["id"] and api.queue.counts()["queued"] == 1
    assert api.submit(422, headers=key, seed=4)["error"]["code"] == "idempotency_key_reused"
    assert api.submit(headers={"Idempotency-Key": "k2"}, seed=3)["id"] != first["id"]
    api.submit(400, headers={"Idempotency-Key": "x" * 300})
    files, data = {"input_reference": ("x.png", png_bytes())}, {"prompt": "a ball"}
    ids = {api.post("/v1/videos", data=data, files=files, headers={"Idempotency-Key": "k3"}).json()["id"] for _ in "ab"}
    assert len(ids) == 1
    before = api.queue.counts()["queued"]
    answers, barrier = [], threading.Barrier(4)

    def send():
        barrier.wait()
        answers.append(api.submit(headers={"Idempotency-Key": "k4"})["id"])

    threads = [threading.Thread(target=send) for _ in range(4)]
    with api:  # all requests in one event loop, as in a server
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(answers) == 4 and len(set(answers)) == 1 and api.queue.counts()["queued"] == before + 1
    api.queue.cancel(first["id"])
    assert api.queue.job(first["id"]).state == CANCELLED and api.submit(headers=key, seed=3)["id"] == first["id"]


def test_files_are_listed_in_pages_and_a_model_is_described(api):
    sent = [api.upload(png_bytes((n, 0, 0)))["id"] for n in range(5)]
    list_ids = lambda **query: [one["id"] for one in api.get("/v1/files", params=query).json()["data"]]
    assert list_ids() == sent[::-1] and list_ids(order="asc", limit=2) == sent[:2]
    assert list_ids(after=sent[3], limit=2) == [sent[2], sent[1]]
    page = api.get("/v1/files", params={"limit": 2}).json()
    assert page["has_more"] and (page["first_id"], page["last_id"]) == (sent[4], sent[3])
    assert list_ids(purpose="user_data") == sent[::-1] and list_ids(purpose="fine-tune") == []
    assert api.get("/v1/files", params={"after": "file-x"}).status_code == 404
    assert api.get("/v1/models/tiny").json()["id"] == "tiny" and api.get("/v1/models/nobody").status_code == 404


def test_seconds_of_an_extension_and_an_edit_are_those_of_the_whole_clip(api, tmp_path, monkeypatch):
    monkeypatch.chdir(api.queue.folder)
    write_video(tmp_path / "clip.mp4", torch.rand(3, 25, 64, 64) * 2 - 1, 8.0)
    sent = api.upload((tmp_path / "clip.mp4").read_bytes())["id"]
    seconds = {
        mode: float(api.submit(mode=mode, clip=sent, **more)["seconds"])
        for mode, more in (("extend", {"seconds": 2}), ("edit", {}), ("remix", {}))
    }
    assert seconds == {
        "extend": pytest.approx(5.1, abs=0.6),
        "edit": pytest.approx(3.1, abs=0.5),
        "remix": seconds["edit"],
    }
    assert api.submit(mode="text-to-image")["seconds"] == "0" and api.submit()["seconds"] == "2.125"


def test_an_input_that_cannot_be_read_is_named_without_the_folders_of_this_machine(api):
    source = api.submit()["id"]
    api.finish(source)
    api.queue.job(source).output.write_text("no clip")
    message = api.submit(400, mode="remix", video={"id": source})["error"]["message"]
    assert f"clips/{source}.mp4 cannot be read" in message and str(api.queue.folder) not in message


def test_a_service_without_limits_of_its_own_has_those_of_a_server(api):
    with pytest.raises(RequestError, match="must last at most 600 s"):
        api.service.check_fields({"prompt": "a ball", "mode": "loop", "seconds": 601}, "")
