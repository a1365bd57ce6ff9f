"""Captioning: over real HTTP, what fits is kept, and what does not is asked again or told; and by a command."""

import base64
import io
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from PIL import Image

from app.cli import main
from captioning.caption import PARTS, SHOWN_FRAMES, CaptionError, VideoCaption, even_indices, request_caption
from captioning.captioner import EndpointCaptioner, load_captioner
from tests.test_prepare import shot
from training.manifest import PrepareError, read_manifest
from training.prepare.captions import CaptionsRun, cached_captioner, caption_clips, failed_captions
from training.prepare.clips import ClipsRun, cut_clips
from training.prepare.filter import FilterRun, filter_clips
from vae.video.write import write_image, write_video

GOOD = {
    "subject": "a white disc",
    "action": "it slides to the right",
    "camera": "still",
    "light": "even",
    "style": "drawing",
    "caption": "A white disc slides to the right over a coloured ground.",
}
FOUND = VideoCaption(GOOD["caption"], {part: GOOD[part] for part in PARTS})


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
        found = EndpointCaptioner(server.url, "eye").describe(video)
    assert found == FOUND
    (asked,) = server.asked
    pictures = [part["image_url"]["url"] for part in asked["messages"][1]["content"]]
    assert len(pictures) == SHOWN_FRAMES and asked["response_format"]["json_schema"]["strict"]
    last = Image.open(io.BytesIO(base64.b64decode(pictures[-1].split(",", 1)[1])))
    expected = ((video[:, -1] + 1) * 127.5).round().byte()
    assert torch.equal(
        torch.tensor(list(last.tobytes()), dtype=torch.uint8).reshape(48, 64, 3).permute(2, 0, 1), expected
    )
    assert even_indices(3, 3) == [0, 1, 2] and even_indices(21, 8)[0] == 0 and even_indices(21, 8)[-1] == 20 and even_indices(1, 3) == [0, 0, 0]


@pytest.mark.parametrize(
    "first", ["no JSON", json.dumps(GOOD | {"mood": "calm"}), json.dumps(GOOD | {"caption": " "}), "", 500, 429]
)
def test_what_does_not_fit_or_is_busy_is_asked_again(first):
    with Server(first, "```json\n" + json.dumps(GOOD) + "\n```") as server:
        assert EndpointCaptioner(server.url, "eye").describe(shot(0, 2)) == FOUND
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
        EndpointCaptioner(server.url, "eye", seconds=0.5, tries=2).describe(shot(0, 2))


def test_an_endpoint_that_is_gone_or_is_no_address_is_told_of():
    with Server(GOOD) as server:
        url = server.url
    with pytest.raises(CaptionError, match=r"eye at 127\.0\.0\.1 cannot be reached"):
        EndpointCaptioner(url, "eye", tries=1).describe(shot(0, 2))
    with pytest.raises(CaptionError, match="an endpoint must be an address"):
        EndpointCaptioner("localhost:8000", "eye")


def test_captions_go_into_the_manifest_beside_those_that_came_with_the_source(tmp_path):
    raw, folder = tmp_path / "raw", tmp_path / "done"
    raw.mkdir()
    write_video(raw / "film.mp4", shot(0, 16), 8)
    (raw / "film.txt").write_text("a disc\n")
    write_image(raw / "still.png", shot(3, 1))
    cut_clips(ClipsRun(str(raw), folder, engine="serial"))
    with Server("never JSON", "never JSON", "never JSON", GOOD) as server:
        run = CaptionsRun(folder, server.url, "eye", engine="serial")
        assert caption_clips(run) == {"clips": 2, "done before": 0, "failed": 1}
        assert "something else than asked for" in failed_captions(run)[0][1]
        assert caption_clips(run) == {"clips": 2, "done before": 1, "failed": 0} and len(server.asked) == 5
    rows = {row.source: row for row in read_manifest(folder)}
    assert [caption.source for caption in rows["film.mp4"].captions] == ["sidecar", "eye at 127.0.0.1"]
    assert rows["film.mp4"].captions[0].text == "a disc"
    assert rows["still.png"].captions[-1].text == GOOD["caption"]
    assert rows["still.png"].captions[-1].parts["camera"] == "still"
    with pytest.raises(PrepareError, match="captions need a model"):
        caption_clips(CaptionsRun(folder))


def test_whoever_is_asked_is_told_what_did_not_fit_and_why():
    answers, told = iter(["hm", json.dumps(GOOD | {"light": ""}), json.dumps(GOOD)]), []

    def answer(wrong):
        told.append(list(wrong))
        return next(answers)

    assert request_caption("eye", answer, 3) == FOUND
    assert [len(wrong) for wrong in told] == [0, 1, 2]
    (first, why), (_, light) = told[-1]
    assert first == "hm" and "Invalid JSON" in why and "light: String should have at least 1 character" in light
    with pytest.raises(CaptionError, match="eye answered 2 times with something else than asked for: answer: Invalid"):
        request_caption("eye", lambda wrong: "hm", 2)


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({}, "give a captioner, or an endpoint and the model there; got none of them"),
        ({"endpoint": "http://x/v1"}, "got endpoint http://x/v1"),
        ({"model": "eye"}, "got model eye"),
        (
            {"name": "own", "endpoint": "http://x/v1", "model": "eye"},
            "got captioner own and endpoint http://x/v1 and mod",
        ),
        ({"endpoint": "x", "model": "eye"}, "an endpoint must be an address"),
        ({"endpoint": "http://x/v1", "model": "eye", "seconds": 0.0}, "seconds for an answer must be above 0; got 0"),
        ({"name": "app/models/first"}, "a captioner must be a folder of our own, or a vision-language model"),
    ],
)
def test_a_captioner_that_is_none_is_refused_with_the_rule(given, rule):
    with pytest.raises(CaptionError, match=rule):
        load_captioner(**given)


@pytest.fixture(scope="session")
def own(tmp_path_factory):
    """The folder of our own captioner, as small as it can be and untrained."""
    from captioning.coca import CoCaCaptioner, VideoCoCa
    from captioning.text_encoder import train_tokenizer

    torch.manual_seed(0)
    words = train_tokenizer(["a white disc slides to the right"], 300, 32)
    model = VideoCoCa(
        vocabulary=len(words),
        context=32,
        width=32,
        heads=2,
        layers=1,
        decoder_layers=1,
        video_width=16,
        video_layers=1,
        queries=4,
        end_id=words.eos_token_id,
        pad_id=words.pad_token_id,
    )
    folder = tmp_path_factory.mktemp("own")
    CoCaCaptioner(model, words).save(folder)
    return folder


@pytest.fixture
def files(tmp_path):
    """A film, a picture, and a file that is neither."""
    write_video(tmp_path / "film.mp4", shot(0, 16), 8)
    write_image(tmp_path / "still.png", shot(3, 1))
    (tmp_path / "broken.mp4").write_text("no film")
    return tmp_path


def test_our_own_captioner_is_found_by_its_folder_and_by_the_one_within(own):
    video = shot(0, 16)
    found = [load_captioner(folder) for folder in (own, own / "captioner")]
    assert found[0].name == found[1].name and found[0].version == found[1].version
    assert found[0].describe(video) == found[1].describe(video) and not found[0].describe(video).parts


def test_the_command_prints_a_line_a_file(files, own, capsys):
    film, still = str(files / "film.mp4"), str(files / "still.png")
    assert main(["caption", film, still, "--captioner", str(own)]) == 0
    printed = capsys.readouterr()
    assert [line.split("\t")[0] for line in printed.out.splitlines()] == [film, still] and "captioning" in printed.err
    answer = GOOD | {"caption": "Two\nlines\tof words."}
    with Server(answer) as server:
        asking = ["--endpoint", server.url, "--model", "eye"]
        assert main(["caption", film, *asking]) == 0
        assert capsys.readouterr().out == f"{film}\tTwo lines of words.\n"
        assert main(["caption", still, film, "--json", *asking]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["file"] for one in said] == [still, film]
    assert said[0]["caption"] == answer["caption"] and said[0]["parts"] == FOUND.parts
    assert (said[0]["source"], said[0]["version"]) == ("eye at 127.0.0.1", EndpointCaptioner.version)


def test_the_command_goes_on_after_a_bad_file_and_exits_with_3(files, capsys):
    bad = [str(files / name) for name in ("gone.mp4", "broken.mp4", ".")]
    with Server(GOOD) as server:
        asking = ["--endpoint", server.url, "--model", "eye"]
        assert main(["caption", *bad, str(files / "film.mp4"), *asking]) == 3
    printed = capsys.readouterr()
    assert printed.out == f"{files / 'film.mp4'}\t{GOOD['caption']}\n"
    told = [line for line in printed.err.splitlines() if line.startswith("longtake: ")]
    assert len(told) == 3 and all(name in line for name, line in zip(bad, told, strict=True))
    assert "Traceback" not in printed.err
    with Server(401) as server:
        assert main(["caption", str(files / "film.mp4"), "--endpoint", server.url, "--model", "eye"]) == 3
    printed = capsys.readouterr()
    assert (
        not printed.out and f"longtake: {files / 'film.mp4'}: eye at 127.0.0.1 refused with status 401" in printed.err
    )


def test_a_name_of_any_bytes_is_printed_on_one_line(files, capsys):
    odd = files / "two\nlines\udcff.png"
    (files / "still.png").rename(odd)
    with Server(GOOD) as server:
        asking = ["--endpoint", server.url, "--model", "eye"]
        assert main(["caption", str(odd), *asking]) == 0
        assert capsys.readouterr().out.splitlines() == [f"{files}/two\\nlines\\udcff.png\t{GOOD['caption']}"]
        assert main(["caption", str(odd), "--json", *asking]) == 0
        assert json.loads(capsys.readouterr().out)["file"] == str(odd)


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (["--endpoint", "http://x/v1"], "give a captioner, or an endpoint and the model there"),
        (["--captioner", "app/models/first"], "a captioner must be a folder of our own"),
        (["--endpoint", "x", "--model", "eye"], "an endpoint must be an address"),
        (["--endpoint", "http://x/v1", "--model", "eye", "--answer-timeout", "0"], "must be above 0"),
        (["--answer-timeout", "soon"], "invalid float value: 'soon'"),
        ([], "a captioner must be named where none is shipped; give --captioner"),
    ],
)
def test_the_command_refuses_bad_arguments_before_it_opens_a_file(words, rule, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("app.registry.CAPTIONER", tmp_path / "none")
    try:
        code = main(["caption", str(tmp_path / "gone.mp4"), *words])
    except SystemExit as stop:  # argparse's own
        code = stop.code
    printed = capsys.readouterr()
    assert code == 2 and not printed.out and rule in printed.err and "gone.mp4" not in printed.err


def test_the_shipped_captioner_is_the_default(files, own, monkeypatch, capsys):
    monkeypatch.setattr("app.registry.CAPTIONER", own)
    assert main(["caption", str(files / "still.png")]) == 0
    assert capsys.readouterr().out.startswith(f"{files / 'still.png'}\t")


def test_preparing_captions_by_the_shipped_captioner_too_unless_another_is_named(prepared, own, monkeypatch, capsys):
    monkeypatch.setattr("app.registry.CAPTIONER", own)
    words = ["prepare", "captions", str(prepared), "--engine", "serial"]
    with Server(GOOD) as server:
        assert main([*words, "--endpoint", server.url, "--model", "eye"]) == 0
    assert {said.source for row in read_manifest(prepared) for said in row.captions}.isdisjoint(
        {load_captioner(own).name}
    )
    assert main(words) == 0 and "2 clips, 0 done before, 0 failed" in capsys.readouterr().out.splitlines()[-1]
    assert {row.captions[-1].source for row in read_manifest(prepared)} == {load_captioner(own).name}


def test_preparing_all_writes_captions(files, own, tmp_path_factory, monkeypatch, capsys):
    monkeypatch.setattr("app.registry.CAPTIONER", own)
    (files / "broken.mp4").unlink()
    folder = tmp_path_factory.mktemp("done")
    assert main(["prepare", "all", str(files), str(folder), "--engine", "serial"]) == 0
    assert "captions: 2 clips, 0 done before, 0 failed" in capsys.readouterr().out
    assert {row.captions[0].source for row in read_manifest(folder)} == {load_captioner(own).name}


def test_preparing_captions_wants_a_captioner_named_where_none_is_shipped(prepared, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("app.registry.CAPTIONER", tmp_path / "none")
    assert main(["prepare", "captions", str(prepared), "--engine", "serial"]) == 2
    assert "a captioner must be named where none is shipped" in capsys.readouterr().err
    assert main(["prepare", "captions", str(prepared), "--engine", "serial", "--model", "eye"]) == 2


@pytest.fixture
def prepared(files, tmp_path_factory):
    """A prepared folder of two clips."""
    (files / "broken.mp4").unlink()
    folder = tmp_path_factory.mktemp("prepared")
    cut_clips(ClipsRun(str(files), folder, engine="serial"))
    return folder


def test_captions_of_our_own_are_noted_once_and_it_is_loaded_once(prepared, own):
    cached_captioner.cache_clear()
    run = CaptionsRun(prepared, captioner=str(own), engine="serial")
    assert caption_clips(run) == {"clips": 2, "done before": 0, "failed": 0}
    assert caption_clips(run) == {"clips": 2, "done before": 2, "failed": 0}
    assert cached_captioner.cache_info().misses == 1
    mine = load_captioner(own)
    for row in read_manifest(prepared):
        (said,) = row.captions
        assert (said.source, said.version, said.parts) == (mine.name, mine.version, {})
    with Server(GOOD) as server:
        caption_clips(CaptionsRun(prepared, server.url, "eye", engine="serial"))
    assert [len(row.captions) for row in read_manifest(prepared)] == [2, 2]


def test_a_clip_that_is_dropped_is_captioned_once_it_is_wanted_again(prepared, own):
    run = CaptionsRun(prepared, captioner=str(own), engine="serial")
    filter_clips(FilterRun(prepared, engine="serial", thresholds={"motion": 99.0}, drop=("motion",)))
    assert caption_clips(run) == {"clips": 1, "done before": 0, "failed": 0}  # the picture, which has no motion
    filter_clips(FilterRun(prepared, engine="serial", thresholds={"motion": -1.0}, drop=("motion",)))
    assert caption_clips(run) == {"clips": 2, "done before": 1, "failed": 0}


def test_workers_of_a_pool_caption_with_a_captioner_of_their_own(prepared, own):
    run = CaptionsRun(prepared, captioner=str(own), workers=1)
    assert run.memory is None  # a model that runs in it may need any number of bytes
    assert caption_clips(run) == {"clips": 2, "done before": 0, "failed": 0}


def test_preparing_goes_on_where_an_endpoint_fails_and_is_completed_by_another_run(prepared, capsys):
    with Server("slow") as server:
        words = ["prepare", "captions", str(prepared), "--engine", "serial", "--endpoint", server.url, "--model", "eye"]
        assert main([*words, "--answer-timeout", "0.2"]) == 3
        told = capsys.readouterr()
        assert "0 done before, 2 failed" in told.out and told.err.count("gave no answer in 0.2 seconds") == 2
        server.answers = [401, GOOD]
        assert main(words) == 3
        told = capsys.readouterr()
        assert "0 done before, 1 failed" in told.out and told.err.count("refused with status 401") == 1
        assert main(words) == 0
        assert "1 done before, 0 failed" in capsys.readouterr().out
    assert main(words) == 0  # though nobody answers any more
    assert "2 done before, 0 failed" in capsys.readouterr().out
    assert main([*words, "--captioner", "own"]) == 2
    assert "got captioner own and endpoint" in capsys.readouterr().err
