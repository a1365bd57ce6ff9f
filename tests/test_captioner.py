"""Captioning: answers over real HTTP, retries and errors; captioners trained here; the command and its folders."""

import base64
import io
import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from app.cli import main
from captioning.caption import PARTS, SHOWN_FRAMES, CaptionError, VideoCaption, even_indices, request_caption
from captioning.captioner import EndpointCaptioner, load_captioner
from captioning.coca import CoCaCaptioner, VideoCoCa
from captioning.text_encoder import train_tokenizer
from tests.chat_server import DESCRIPTION, ChatServer
from tests.test_prepare import shot
from training.manifest import PrepareError, read_manifest
from training.prepare.captions import CaptionsRun, cached_captioner, caption_clips, failed_captions
from training.prepare.clips import ClipsRun, cut_clips
from training.prepare.filter import FilterRun, filter_clips
from vae.video.write import write_image, write_video
from vae.weights import CONFIG, WEIGHTS, original_name

FOUND = VideoCaption(DESCRIPTION["caption"], {part: DESCRIPTION[part] for part in PARTS})


def test_an_endpoint_gets_evenly_spaced_frames_and_the_schema():
    video = shot(0, 21)
    with ChatServer(DESCRIPTION) as server:
        found = EndpointCaptioner(server.url, "eye").describe(video)
    assert found == FOUND
    (request,) = server.requests
    images = [part["image_url"]["url"] for part in request["messages"][1]["content"]]
    assert len(images) == SHOWN_FRAMES and request["response_format"]["json_schema"]["strict"]
    last = Image.open(io.BytesIO(base64.b64decode(images[-1].split(",", 1)[1])))
    expected = ((video[:, -1] + 1) * 127.5).round().byte()
    assert torch.equal(
        torch.tensor(list(last.tobytes()), dtype=torch.uint8).reshape(48, 64, 3).permute(2, 0, 1), expected
    )
    assert (
        even_indices(3, 3) == [0, 1, 2]
        and even_indices(21, 8)[0] == 0
        and even_indices(21, 8)[-1] == 20
        and even_indices(1, 3) == [0, 0, 0]
    )


@pytest.mark.parametrize(
    "first",
    ["no JSON", json.dumps(DESCRIPTION | {"mood": "calm"}), json.dumps(DESCRIPTION | {"caption": " "}), "", 500, 429],
)
def test_an_answer_that_does_not_fit_and_a_busy_server_are_retried(first):
    with ChatServer(first, "```json\n" + json.dumps(DESCRIPTION) + "\n```") as server:
        assert EndpointCaptioner(server.url, "eye").describe(shot(0, 2)) == FOUND
    assert len(server.requests) == 2
    if isinstance(first, str):
        assert "does not fit the schema" in server.requests[1]["messages"][-1]["content"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("never JSON", "answered 2 times with something else than asked for: answer: Invalid JSON"),
        (401, "refused with status 401"),
        (500, "refused with status 500"),
        ("slow", "gave no answer in 0.5 seconds"),
    ],
)
def test_a_failing_endpoint_raises_one_sentence(answer, reason):
    with ChatServer(answer) as server, pytest.raises(CaptionError, match=reason):
        EndpointCaptioner(server.url, "eye", seconds=0.5, tries=2).describe(shot(0, 2))


def test_an_unreachable_endpoint_and_a_bad_address_are_refused():
    with ChatServer(DESCRIPTION) as server:
        url = server.url
    with pytest.raises(CaptionError, match=r"eye at 127\.0\.0\.1 cannot be reached"):
        EndpointCaptioner(url, "eye", tries=1).describe(shot(0, 2))
    with pytest.raises(CaptionError, match="an endpoint must be an address"):
        EndpointCaptioner("localhost:8000", "eye")


def test_captions_are_added_to_the_manifest_after_those_of_the_source(tmp_path):
    raw, folder = tmp_path / "raw", tmp_path / "done"
    raw.mkdir()
    write_video(raw / "video.mp4", shot(0, 16), 8)
    (raw / "video.txt").write_text("a disc\n")
    write_image(raw / "image.png", shot(3, 1))
    cut_clips(ClipsRun(str(raw), folder, engine="serial"))
    with ChatServer("never JSON", "never JSON", "never JSON", DESCRIPTION) as server:
        run = CaptionsRun(folder, server.url, "eye", engine="serial")
        assert caption_clips(run) == {"clips": 2, "done before": 0, "failed": 1}
        assert "something else than asked for" in failed_captions(run)[0][1]
        assert caption_clips(run) == {"clips": 2, "done before": 1, "failed": 0} and len(server.requests) == 5
    rows = {row.source: row for row in read_manifest(folder)}
    assert [caption.source for caption in rows["video.mp4"].captions] == ["sidecar", "eye at 127.0.0.1"]
    assert rows["video.mp4"].captions[0].text == "a disc"
    assert rows["image.png"].captions[-1].text == DESCRIPTION["caption"]
    assert rows["image.png"].captions[-1].parts["camera"] == "still"
    with pytest.raises(PrepareError, match="captions need a model"):
        caption_clips(CaptionsRun(folder))


def test_rejected_answers_are_sent_back_with_their_reasons():
    answers, calls = iter(["hm", json.dumps(DESCRIPTION | {"light": ""}), json.dumps(DESCRIPTION)]), []

    def answer(rejected):
        calls.append(list(rejected))
        return next(answers)

    assert request_caption("eye", answer, 3) == FOUND
    assert [len(rejected) for rejected in calls] == [0, 1, 2]
    (first, reason), (_, light) = calls[-1]
    assert first == "hm" and "Invalid JSON" in reason and "light: String should have at least 1 character" in light
    with pytest.raises(CaptionError, match="eye answered 2 times with something else than asked for: answer: Invalid"):
        request_caption("eye", lambda rejected: "hm", 2)


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
        (
            {"name": "app/models/first"},
            "a captioner must be the folder of a trained one, or a vision-language model",
        ),
    ],
)
def test_what_is_no_captioner_is_refused_with_the_rule(given, rule):
    with pytest.raises(CaptionError, match=rule):
        load_captioner(**given)


@pytest.fixture(scope="session")
def own(tmp_path_factory):
    """The folder of a tiny, untrained captioner."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["a white disc slides to the right"], 300, 32)
    model = VideoCoCa(
        vocabulary=len(tokenizer),
        context=32,
        width=32,
        heads=2,
        layers=1,
        decoder_layers=1,
        video_width=16,
        video_layers=1,
        queries=4,
        end_id=tokenizer.eos_token_id,
        pad_id=tokenizer.pad_token_id,
    )
    folder = tmp_path_factory.mktemp("own")
    CoCaCaptioner(model, tokenizer).save(folder)
    return folder


@pytest.fixture
def files(tmp_path):
    """A video, an image, and a file that is neither."""
    write_video(tmp_path / "video.mp4", shot(0, 16), 8)
    write_image(tmp_path / "image.png", shot(3, 1))
    (tmp_path / "broken.mp4").write_text("no video")
    return tmp_path


def test_a_captioner_is_loaded_from_its_folder_and_from_the_model_subfolder(own):
    video = shot(0, 16)
    found = [load_captioner(folder) for folder in (own, own / "captioner")]
    assert found[0].name == found[1].name and found[0].version == found[1].version
    assert found[0].describe(video) == found[1].describe(video) and not found[0].describe(video).parts


def test_a_captioner_folder_with_old_names_loads(own, tmp_path):
    folder = shutil.copytree(own, tmp_path / "own")
    path = folder / "captioner" / WEIGHTS
    old = {original_name(name, VideoCoCa.old_weight_names): value for name, value in load_file(path).items()}
    assert {"coca.visual.enter.mix.weight", "coca.visual.pool_once.query", "coca.visual.places.0"} <= old.keys()
    save_file(old, path)
    config_path = folder / "captioner" / CONFIG
    config = json.loads(config_path.read_text())
    config |= {old: config.pop(new) for old, new in VideoCoCa.old_config_names.items()}
    config_path.write_text(json.dumps(config))
    assert load_captioner(folder).describe(shot(0, 16)) == load_captioner(own).describe(shot(0, 16))


def test_the_command_prints_one_line_per_file(files, own, capsys):
    video, image = str(files / "video.mp4"), str(files / "image.png")
    assert main(["caption", video, image, "--captioner", str(own)]) == 0
    printed = capsys.readouterr()
    assert [line.split("\t")[0] for line in printed.out.splitlines()] == [video, image] and "captioning" in printed.err
    answer = DESCRIPTION | {"caption": "Two\nlines\tof words."}
    with ChatServer(answer) as server:
        flags = ["--endpoint", server.url, "--model", "eye"]
        assert main(["caption", video, *flags]) == 0
        assert capsys.readouterr().out == f"{video}\tTwo lines of words.\n"
        assert main(["caption", image, video, "--json", *flags]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["file"] for line in lines] == [image, video]
    assert lines[0]["caption"] == answer["caption"] and lines[0]["parts"] == FOUND.parts
    assert (lines[0]["source"], lines[0]["version"]) == ("eye at 127.0.0.1", EndpointCaptioner.version)


def test_the_command_continues_after_a_bad_file_and_exits_with_3(files, capsys):
    bad = [str(files / name) for name in ("gone.mp4", "broken.mp4", ".")]
    with ChatServer(DESCRIPTION) as server:
        flags = ["--endpoint", server.url, "--model", "eye"]
        assert main(["caption", *bad, str(files / "video.mp4"), *flags]) == 3
    printed = capsys.readouterr()
    assert printed.out == f"{files / 'video.mp4'}\t{DESCRIPTION['caption']}\n"
    errors = [line for line in printed.err.splitlines() if line.startswith("longtake: ")]
    assert len(errors) == 3 and all(name in line for name, line in zip(bad, errors, strict=True))
    assert "Traceback" not in printed.err
    with ChatServer(401) as server:
        assert main(["caption", str(files / "video.mp4"), "--endpoint", server.url, "--model", "eye"]) == 3
    printed = capsys.readouterr()
    assert (
        not printed.out and f"longtake: {files / 'video.mp4'}: eye at 127.0.0.1 refused with status 401" in printed.err
    )


def test_a_name_of_any_bytes_is_printed_on_one_line(files, capsys):
    odd = files / "two\nlines\udcff.png"
    (files / "image.png").rename(odd)
    with ChatServer(DESCRIPTION) as server:
        flags = ["--endpoint", server.url, "--model", "eye"]
        assert main(["caption", str(odd), *flags]) == 0
        assert capsys.readouterr().out.splitlines() == [f"{files}/two\\nlines\\udcff.png\t{DESCRIPTION['caption']}"]
        assert main(["caption", str(odd), "--json", *flags]) == 0
        assert json.loads(capsys.readouterr().out)["file"] == str(odd)


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (["--endpoint", "http://x/v1"], "give a captioner, or an endpoint and the model there"),
        (["--captioner", "app/models/first"], "a captioner must be the folder of a trained one"),
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
    assert main(["caption", str(files / "image.png")]) == 0
    assert capsys.readouterr().out.startswith(f"{files / 'image.png'}\t")


def test_preparing_captions_uses_the_shipped_captioner_unless_another_is_given(prepared, own, monkeypatch, capsys):
    monkeypatch.setattr("app.registry.CAPTIONER", own)
    words = ["prepare", "captions", str(prepared), "--engine", "serial"]
    with ChatServer(DESCRIPTION) as server:
        assert main([*words, "--endpoint", server.url, "--model", "eye"]) == 0
    assert {caption.source for row in read_manifest(prepared) for caption in row.captions}.isdisjoint(
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


def test_preparing_captions_needs_a_captioner_if_none_is_shipped(prepared, tmp_path, monkeypatch, capsys):
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


def test_clips_are_captioned_once_and_the_captioner_is_loaded_once(prepared, own):
    cached_captioner.cache_clear()
    run = CaptionsRun(prepared, captioner=str(own), engine="serial")
    assert caption_clips(run) == {"clips": 2, "done before": 0, "failed": 0}
    assert caption_clips(run) == {"clips": 2, "done before": 2, "failed": 0}
    assert cached_captioner.cache_info().misses == 1
    captioner = load_captioner(own)
    for row in read_manifest(prepared):
        (caption,) = row.captions
        assert (caption.source, caption.version, caption.parts) == (captioner.name, captioner.version, {})
    with ChatServer(DESCRIPTION) as server:
        caption_clips(CaptionsRun(prepared, server.url, "eye", engine="serial"))
    assert [len(row.captions) for row in read_manifest(prepared)] == [2, 2]


def test_a_dropped_clip_is_captioned_when_it_is_kept_again(prepared, own):
    run = CaptionsRun(prepared, captioner=str(own), engine="serial")
    filter_clips(FilterRun(prepared, engine="serial", thresholds={"motion": 99.0}, drop=("motion",)))
    assert caption_clips(run) == {"clips": 1, "done before": 0, "failed": 0}  # the image, which has no motion
    filter_clips(FilterRun(prepared, engine="serial", thresholds={"motion": -1.0}, drop=("motion",)))
    assert caption_clips(run) == {"clips": 2, "done before": 1, "failed": 0}


@pytest.mark.slow
def test_pool_workers_load_their_own_captioner(prepared, own):
    run = CaptionsRun(prepared, captioner=str(own), workers=1)
    assert run.memory_bytes is None  # a model that runs in it may need any number of bytes
    assert caption_clips(run) == {"clips": 2, "done before": 0, "failed": 0}


@pytest.mark.slow
def test_preparing_continues_after_endpoint_errors_and_another_run_completes_it(prepared, capsys):
    with ChatServer("slow") as server:
        words = ["prepare", "captions", str(prepared), "--engine", "serial", "--endpoint", server.url, "--model", "eye"]
        assert main([*words, "--answer-timeout", "0.2"]) == 3
        printed = capsys.readouterr()
        assert "0 done before, 2 failed" in printed.out and printed.err.count("gave no answer in 0.2 seconds") == 2
        server.answers = [401, DESCRIPTION]
        assert main(words) == 3
        printed = capsys.readouterr()
        assert "0 done before, 1 failed" in printed.out and printed.err.count("refused with status 401") == 1
        assert main(words) == 0
        assert "1 done before, 0 failed" in capsys.readouterr().out
    assert main(words) == 0  # although the server is down
    assert "2 done before, 0 failed" in capsys.readouterr().out
    assert main([*words, "--captioner", "own"]) == 2
    assert "got captioner own and endpoint" in capsys.readouterr().err
