"""Captioning by a model elsewhere, over real HTTP: what fits is kept, what does not is asked again or told."""

import base64
import io
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from PIL import Image

from captioning.captioner import FRAMES, CaptionError, Description, Endpoint, spread
from tests.test_prepare import shot
from training.prepare.captions import CaptionsRun, captions, failed_captions
from training.prepare.clips import ClipsRun, clips
from training.prepare.manifest import PrepareError, read_manifest
from vae.recorder import write_picture, write_video

GOOD = {
    "subject": "a white disc",
    "action": "it slides to the right",
    "camera": "still",
    "light": "even",
    "style": "drawing",
    "caption": "A white disc slides to the right over a coloured ground.",
}


class Server:
    """Answers as OpenAI's API does, with one of `answers` after the other, the last for ever."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                outer.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                answer = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                if answer == "slow":
                    time.sleep(3)
                    return
                status = answer if isinstance(answer, int) else 200
                text = answer if isinstance(answer, str) else json.dumps(answer)
                message = {"role": "assistant", "content": text}
                choice = {"index": 0, "finish_reason": "stop", "message": message}
                body = {"id": "1", "object": "chat.completion", "created": 0, "model": "eye", "choices": [choice]}
                if status != 200:
                    body = {"error": {"message": "no", "type": "refused"}}
                sent = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(sent)))
                self.end_headers()
                self.wfile.write(sent)

            def log_message(self, *words):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.http.server_port}/v1"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()


def test_a_clip_is_described_by_what_is_shown_of_it():
    video = shot(0, 21)
    with Server(GOOD) as server:
        found = Endpoint(server.url, "eye").describe(video)
    assert found == Description(**GOOD)
    (asked,) = server.asked
    pictures = [part["image_url"]["url"] for part in asked["messages"][1]["content"]]
    assert len(pictures) == FRAMES and asked["response_format"]["json_schema"]["strict"]
    last = Image.open(io.BytesIO(base64.b64decode(pictures[-1].split(",", 1)[1])))
    expected = ((video[:, -1] + 1) * 127.5).round().byte()
    assert torch.equal(
        torch.tensor(list(last.tobytes()), dtype=torch.uint8).reshape(48, 64, 3).permute(2, 0, 1), expected
    )
    assert spread(3) == [0, 1, 2] and spread(21)[0] == 0 and spread(21)[-1] == 20


@pytest.mark.parametrize(
    "first", ["no JSON", json.dumps(GOOD | {"mood": "calm"}), json.dumps(GOOD | {"caption": " "}), "", 500, 429]
)
def test_what_does_not_fit_or_is_busy_is_asked_again(first):
    with Server(first, "```json\n" + json.dumps(GOOD) + "\n```") as server:
        assert Endpoint(server.url, "eye").describe(shot(0, 2)) == Description(**GOOD)
    assert len(server.asked) == 2
    if isinstance(first, str):
        assert "does not fit the schema" in server.asked[1]["messages"][-1]["content"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("never JSON", "answered 2 times with something else than asked for: answer: Invalid JSON"),
        (401, "refused with status 401"),
        (500, "refused with status 500"),
        ("slow", "gave no answer in 0.5 seconds"),
    ],
)
def test_a_model_that_cannot_describe_is_told_of_in_a_sentence(answer, reason):
    with Server(answer) as server, pytest.raises(CaptionError, match=reason):
        Endpoint(server.url, "eye", seconds=0.5, tries=2).describe(shot(0, 2))


def test_an_endpoint_that_is_gone_or_is_no_address_is_told_of():
    with Server(GOOD) as server:
        url = server.url
    with pytest.raises(CaptionError, match=r"eye at 127\.0\.0\.1 cannot be reached"):
        Endpoint(url, "eye", tries=1).describe(shot(0, 2))
    with pytest.raises(CaptionError, match="an endpoint must be an address"):
        Endpoint("localhost:8000", "eye")


def test_captions_go_into_the_manifest_beside_those_that_came_with_the_source(tmp_path):
    raw, folder = tmp_path / "raw", tmp_path / "done"
    raw.mkdir()
    write_video(raw / "film.mp4", shot(0, 16), 8)
    (raw / "film.txt").write_text("a disc\n")
    write_picture(raw / "still.png", shot(3, 1))
    clips(ClipsRun(str(raw), folder, engine="here"))
    with Server("never JSON", "never JSON", "never JSON", GOOD) as server:
        run = CaptionsRun(folder, server.url, "eye", engine="here")
        assert captions(run) == {"clips": 2, "done before": 0, "failed": 1}
        assert "something else than asked for" in failed_captions(run)[0][1]
        assert captions(run) == {"clips": 2, "done before": 1, "failed": 0} and len(server.asked) == 5
    rows = {row.source: row for row in read_manifest(folder)}
    assert [caption.source for caption in rows["film.mp4"].captions] == ["sidecar", "eye at 127.0.0.1"]
    assert rows["film.mp4"].captions[0].text == "a disc"
    assert rows["still.png"].captions[-1].text == GOOD["caption"]
    assert rows["still.png"].captions[-1].parts["camera"] == "still"
    with pytest.raises(PrepareError, match="captions need a model"):
        captions(CaptionsRun(folder))
