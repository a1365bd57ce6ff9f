"""The gallery lists clips and uploads, and makes a clip again from its own file; votes and storyboards are stored."""

import io
import json
import re

import pytest
import torch
from PIL import Image

from app.queue.worker import run_worker
from app.studio.votes import VOTES_FILE, append_line
from dit.request import Request
from tests.studio_client import StudioClient, image_bytes

pytestmark = pytest.mark.slow


@pytest.fixture
def client(tmp_path, tiny_model, monkeypatch):
    client = StudioClient(tmp_path / "queue", tiny_model)
    monkeypatch.chdir(client.queue.folder)  # the working directory of the server and its workers
    return client


def test_an_unchanged_gallery_is_answered_with_304(client):
    (card,) = client.submit()
    first = client.get("/studio/clips")
    tag = {"If-None-Match": first.headers["etag"]}
    assert client.get("/studio/clips", headers=tag).status_code == 304
    client.patch(f"/studio/clips/{card['id']}", json={"favourite": True})
    again = client.get("/studio/clips", headers=tag)
    assert again.status_code == 200 and again.json()["cards"][0]["favourite"]
    assert again.headers["etag"] != first.headers["etag"]


def test_a_clip_is_made_again_from_its_own_file_bit_for_bit(client):
    (clip,) = client.generate(seed=3, guidance=1.5, negative_prompt="a cube", watermark="top-left")
    assert clip["request"]["guidance"] == 1.5 and clip["missing"] == []
    (again,) = client.generate(**clip["request"])
    assert again["request"] == clip["request"] and again["id"] != clip["id"]
    assert client.get(again["content"]).content == client.get(clip["content"]).content


@pytest.mark.slow
def test_an_uploaded_clip_brings_its_request_and_finds_its_inputs(client, tmp_path, tiny_model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    elsewhere = StudioClient(tmp_path / "elsewhere", tiny_model)
    monkeypatch.chdir(elsewhere.queue.folder)
    sent = elsewhere.upload(image_bytes())["card"]["id"]
    (source,) = elsewhere.generate(seed=1)
    (clip,) = elsewhere.generate(mode="remix", clip=source["id"], prompt="a blue cube")
    (still,) = elsewhere.generate(image=sent)
    clips = {one["id"]: elsewhere.get(one["content"]).content for one in (source, clip, still)}
    monkeypatch.chdir(client.queue.folder)
    found = client.upload(clips[clip["id"]])
    assert (found["card"]["mode"], found["card"]["prompt"]) == ("remix", "a blue cube")
    assert "clip" not in found["request"] and "is not among your clips" in found["missing"][0]
    original = client.upload(clips[source["id"]])
    assert (original["request"]["prompt"], original["request"]["seed"], original["missing"]) == (
        *("a red ball bounces", 1),
        [],
    )
    found = client.upload(clips[clip["id"]])
    assert found["request"]["clip"] == original["card"]["id"] and found["missing"] == []
    (again,) = client.generate(**found["request"])
    assert again["parents"] == [original["card"]["id"]]
    assert _frames(client.get(again["content"]).content) == _frames(clips[clip["id"]])
    assert "image" not in client.upload(clips[still["id"]])["request"]
    mine = client.upload(image_bytes())["card"]["id"]
    assert client.details(client.upload(clips[still["id"]])["card"]["id"])["request"]["image"] == mine


def _frames(content):
    """Return the bytes of a film's frames, without the words around them."""
    return re.findall(rb"mdat.*", content, re.DOTALL)[0][:2000]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_an_uploaded_image_is_stored_and_listed_without_a_request(client, kind):
    found = client.upload(image_bytes(kind=kind))
    assert found["request"] is None and found["missing"]
    card = found["card"]
    assert (card["kind"], card["still"], card["size"]) == ("upload", True, "96x64")
    assert Image.open(io.BytesIO(client.get(card["poster"]).content)).size == (96, 64)
    assert client.get(card["content"]).content == image_bytes(kind=kind)
    assert client.list_ids() == client.list_ids(kind="upload") == [card["id"]] and client.list_ids(kind="job") == []


@pytest.mark.parametrize("content", [b"", b"<svg onload=alert(1)>", b"PK\3\4", b"\0\0\0\x18ftypmp42" + b"\0" * 99])
def test_a_file_that_is_no_clip_or_image_is_not_stored(client, content):
    answer = client.post("/studio/read", files={"file": ("x.mp4", content)})
    assert answer.status_code == 400 and "Traceback" not in answer.text
    assert client.list_ids() == []


def test_a_changed_file_is_reported_as_tampered(client):
    (clip,) = client.generate()
    path = client.queue.job(clip["id"]).output
    content = bytearray(path.read_bytes())
    content[-len(content) // 3] ^= 1
    path.write_bytes(content)
    assert clip["credentials"] == "trusted"
    assert client.details(clip["id"])["credentials"] == "tampered"


def test_a_broken_file_gives_an_error_and_the_gallery_still_lists(client):
    clip, *_ = client.generate(variations=2)
    path = client.queue.job(clip["id"]).output
    path.write_bytes(path.read_bytes()[:2000])
    sentence = client.refused(f"/studio/clips/{clip['id']}", None, "GET")
    assert f"clips/{clip['id']}.mp4" in sentence and f"/clips/{clip['id']}.mp4" not in sentence
    assert client.get(f"/studio/clips/{clip['id']}/poster").status_code == 400
    assert len(client.list_ids()) == 2


def test_clips_have_favourites_and_notes_and_are_found_by_their_words(client):
    ball, cube, loop = (
        client.submit(prompt=prompt, **more)[0]["id"]
        for prompt, more in (
            ("a Red ball bounces", {}),
            ("a blue cube", {"mode": "text-to-image"}),
            ("ÄRGER", {"mode": "loop", "seconds": 2}),
        )
    )
    card = client.patch(f"/studio/clips/{cube}", json={"favourite": True, "note": "für Ärzte"}).json()
    assert (card["favourite"], card["note"]) == (True, "für Ärzte")
    assert client.patch(f"/studio/clips/{cube}", json={"favourite": True}).json()["note"] == "für Ärzte"
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
        assert client.list_ids(**sought) == found, sought
    for wrong in ({"favourite": 1}, {"note": None}, {"owner": "x"}, {"note": "x" * 2001}):
        client.refused(f"/studio/clips/{cube}", wrong, "PATCH")
    assert client.get("/studio/clips", params={"kind": "x"}).status_code == 400


def test_uploads_and_clips_share_one_list_in_pages(client):
    ids = []
    for n in range(6):
        ids.append(client.submit()[0]["id"] if n % 2 else client.upload(image_bytes((n, 0, 0)))["card"]["id"])
    pages, after = [], None
    while page := client.list_ids(limit=2, **({"after": after} if after else {})):
        pages, after = pages + page, page[-1]
    assert pages == ids[::-1]


def test_an_input_cannot_be_removed_until_its_clips_are_done(client):
    sent = client.upload(image_bytes())["card"]["id"]
    (made,) = client.submit(image=sent)
    assert "must stay until the clips that use it are done" in client.refused(f"/studio/clips/{sent}", None, "DELETE")
    run_worker(client.queue, "cpu", until_empty=True)
    assert client.details(made["id"])["parents"] == [sent]
    assert client.delete(f"/studio/clips/{sent}").json()["deleted"]
    found = client.details(made["id"])
    assert "image" not in found["request"] and len(found["missing"]) == 1


def test_votes_are_lines_of_json_with_both_requests_and_content_hashes(client):
    one, two = client.generate(variations=2)
    (still,) = client.generate(mode="text-to-image")
    vote = {"left": one["id"], "right": two["id"], "looks": "left", "motion": "tie", "prompt": "right"}
    assert client.post("/studio/votes", json=vote).json()["count"] == 1
    with open(client.queue.folder / VOTES_FILE, "a") as file:
        file.write('{"half a line of one who')  # died
    assert client.post("/studio/votes", json=vote | {"right": still["id"]}).json()["count"] == 2
    lines = (client.queue.folder / VOTES_FILE).read_text().splitlines()
    assert len(lines) == 3
    first = json.loads(lines[0])
    assert (first["looks"], first["motion"], first["prompt"]) == ("left", "tie", "right")
    for side, clip in (("left", one), ("right", two)):
        assert Request.from_dict(first[side]["request"]).seed == clip["request"]["seed"]
        assert first[side]["request"]["model_hash"] == clip["model_hash"] and len(first[side]["sha256"]) == 64
    assert first["left"]["sha256"] != first["right"]["sha256"]
    (waits,) = client.submit()
    for wrong in (
        {"right": one["id"]},
        {"right": waits["id"]},
        {"right": "0" * 24},
        {"right": None},
        {"looks": "better"},
        {"motion": None},
        {"owner": "me"},
        {"left": client.upload(image_bytes())["card"]["id"]},
    ):
        client.refused("/studio/votes", vote | wrong)
    found = client.get("/studio/votes").json()
    assert found["count"] == 2 and found["latest"][1]["left"] == one["id"]


def test_concurrent_votes_are_all_whole_lines(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as threads:
        list(
            threads.map(lambda n: append_line(tmp_path / VOTES_FILE, json.dumps({"n": n, "x": "y" * 5000})), range(200))
        )
    lines = (tmp_path / VOTES_FILE).read_text().splitlines()
    assert sorted(json.loads(line)["n"] for line in lines) == list(range(200))


def test_a_storyboard_is_read_from_yaml_and_written_as_yaml(client):
    sent = client.upload(image_bytes())["card"]["id"]
    moments = [{"at": 0.0, "prompt": "红球 a ball"}, {"at": 1.0, "prompt": "it stops", "image": sent}]
    fields = {"mode": "storyboard", "seconds": 2.125, "size": "64x64", "seed": 7, "moments": moments}
    text = client.post("/studio/storyboard/text", json={"request": fields}).json()["text"]
    assert "红球" in text and text.startswith("mode: storyboard")
    found = client.post("/studio/storyboard", json={"text": text}).json()
    assert found["missing"] == [] and {name: found["request"][name] for name in fields} == fields
    (clip,) = client.generate(**found["request"] | {"prompt": ""})
    assert [one["prompt"] for one in clip["request"]["moments"]] == ["红球 a ball", "it stops"]
    elsewhere = "- {at: 0, prompt: a ball}\n- {at: 1, prompt: a cube, image: /etc/passwd, clip: ../../x.mp4}"
    found = client.post("/studio/storyboard", json={"text": elsewhere}).json()
    assert len(found["missing"]) == 2 and "image" not in found["request"]["moments"][1]
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
        client.refused("/studio/storyboard", {"text": wrong})
    for wrong in (None, {}, {"moments": []}, {"prompt": "x"}, {"moments": [{"at": "x"}]}):
        client.refused("/studio/storyboard/text", {"request": wrong})


def test_a_prompt_is_upsampled_where_an_upsampler_is_shipped(client, tmp_path, monkeypatch):
    monkeypatch.setattr("app.registry.UPSAMPLER", tmp_path / "none")
    assert "needs the shipped upsampler" in client.refused("/studio/upsample", {"prompt": "a ball", "seed": 1})
    from captioning.upsampler import TrainedUpsampler, UpsamplerModel, save_upsampler, train_upsampler_tokenizer

    torch.manual_seed(0)
    texts = ["A red ball bounces.", "a red ball"]
    tokenizer = train_upsampler_tokenizer(texts, 300, 64)
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    assert isinstance(end, int) and isinstance(pad, int)
    shape = {"vocabulary": len(tokenizer), "context": 64, "width": 32, "heads": 2, "layers": 1}
    writer = UpsamplerModel(
        **shape,
        min_log_prob=-99.0,
        min_gain=-99.0,
        end_id=end,
        pad_id=pad,
    )
    save_upsampler(TrainedUpsampler(tokenizer, writer), tmp_path / "upsampler")
    monkeypatch.setattr("app.registry.UPSAMPLER", tmp_path / "upsampler")
    asked = {"prompt": "a red ball", "seed": 1, "still": False}
    first, second = (client.post("/studio/upsample", json=asked) for _ in range(2))
    assert first.status_code == 200 and first.json() == second.json() and first.json()["upsampled_prompt"]
    assert "must say something" in client.refused("/studio/upsample", {"prompt": " "})
    assert "policy standard" in client.refused("/studio/upsample", {"prompt": "a nude person"})
