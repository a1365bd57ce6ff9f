"""Match and aesthetic scores of the clips of a prepared folder."""

import pytest
import torch

from app.cli import main
from captioning.caption import CaptionError
from captioning.matching import OpenClipMatcher, load_matcher
from tests.test_captions import COLOURS, painted, painter, small  # noqa: F401
from training.dataset import open_bucket, select_captions
from training.manifest import read_manifest
from training.prepare.clips import ClipsRun, cut_clips
from training.prepare.filter import FilterRun, failed_scores, filter_clips
from training.prepare.journal import Journal
from training.prepare.match import (
    DEFAULT_MATCH_THRESHOLD,
    MATCH_THRESHOLDS,
    MATCHES,
    default_match_threshold,
    measure_match_threshold,
)
from vae.video.write import write_video


@pytest.fixture
def prepared(tmp_path):
    """Clips of one colour each: a true caption for red, a false one for blue, none for green."""
    raw = tmp_path / "raw"
    raw.mkdir()
    for colour, caption in (("Red.", "Red."), ("Blue.", "Green."), ("Green.", None)):
        write_video(raw / f"{colour}mp4", painted(colour, 16, 64, 64), 8)
        if caption:
            (raw / f"{colour}txt").write_text(caption)
    cut_clips(ClipsRun(str(raw), tmp_path / "done", engine="serial"))
    return tmp_path / "done"


def scores(folder):
    return {row.source.split(".")[0]: row.scores for row in read_manifest(folder)}


def test_a_true_caption_scores_higher_than_a_false_one(prepared, painter, tmp_path):  # noqa: F811
    painter.save(tmp_path / "captioner")
    report = filter_clips(FilterRun(prepared, matcher=str(tmp_path / "captioner"), engine="serial"))
    found = scores(prepared)
    assert found["Red"]["match"] > found["Blue"]["match"] + 0.2
    assert "match" not in found["Green"] and report["match"]["clips"] == 2 and "motion" in found["Green"]
    assert "aesthetics" not in found["Red"]  # which a captioner cannot score


def test_the_default_threshold_is_that_of_the_matcher(prepared, painter, small, tmp_path):  # noqa: F811
    painter.save(tmp_path / "captioner")
    report = filter_clips(FilterRun(prepared, matcher=str(tmp_path / "captioner"), engine="serial", drop=("match",)))
    threshold = MATCH_THRESHOLDS["longtake captioner"]
    assert threshold != DEFAULT_MATCH_THRESHOLD and report["match"]["threshold"] == f"< {threshold:g}"
    dropped = {row.source for row in read_manifest(prepared) if row.dropped}
    assert dropped == {f"{name}.mp4" for name, found in scores(prepared).items() if found.get("match", 1) < threshold}
    assert filter_clips(FilterRun(prepared, engine="serial"))["match"]["threshold"] == f"< {threshold:g}"
    custom = filter_clips(FilterRun(prepared, engine="serial", thresholds={"match": -0.5}))
    assert custom["match"]["threshold"] == "< -0.5" and custom["match"]["dropped"] == 0
    other = filter_clips(FilterRun(prepared, matcher=":".join(map(str, small)), engine="serial"))
    assert other["match"]["threshold"] == f"< {DEFAULT_MATCH_THRESHOLD:g}"


def test_the_match_threshold_is_measured_on_true_captions(painter, world, tmp_path):  # noqa: F811
    painter.save(tmp_path / "captioner")
    bucket = open_bucket(world / "test", (64, 64, 17))
    texts = [select_captions(captions, "dense")[0] for captions in bucket.captions]
    wanted = painter.match(bucket.load_clips(range(6)), texts).diag()
    assert measure_match_threshold(tmp_path / "captioner", world / "test", 6, 0.0) == pytest.approx(
        float(wanted.min()), abs=1e-4
    )
    assert measure_match_threshold(tmp_path / "captioner", world / "test", 6, 1.0) == pytest.approx(
        float(wanted.max()), abs=1e-4
    )


def test_a_score_of_an_old_caption_is_ignored_and_computed_again(prepared, painter, tmp_path):  # noqa: F811
    painter.save(tmp_path / "captioner")
    run = FilterRun(prepared, matcher=str(tmp_path / "captioner"), engine="serial")
    filter_clips(run)
    before = (prepared / "journal" / "matches.jsonl").read_text()
    filter_clips(run)
    assert (prepared / "journal" / "matches.jsonl").read_text() == before
    (blue,) = (row for row in read_manifest(prepared) if row.source.startswith("Blue"))
    with Journal(prepared, "captions").appending() as append:
        append({"clip": blue.clip, "source": "someone", "version": "1", "text": "Red.", "parts": {}})
    filter_clips(FilterRun(prepared, engine="serial"))
    assert "match" not in scores(prepared)["Blue"] and "match" in scores(prepared)["Red"]
    filter_clips(run)
    after = (prepared / "journal" / "matches.jsonl").read_text()
    assert "match" in scores(prepared)["Blue"] and after.count("\n") == before.count("\n") + 1


def test_a_model_of_open_clip_also_gives_aesthetic_scores(small, prepared):  # noqa: F811
    name = ":".join(map(str, small))
    matcher = load_matcher(name)
    assert isinstance(matcher, OpenClipMatcher)
    videos = torch.stack([painted(colour, 3, 20, 30) for colour in COLOURS])
    cosines, aesthetics = matcher.match(videos, ["one thing", "quite another"]), matcher.aesthetic_scores(videos)
    assert (
        cosines.shape == (3, 2) and (cosines.abs() <= 1).all() and len({round(float(c), 6) for c in cosines[:, 0]}) > 1
    )
    assert aesthetics.shape == (3,) and ((aesthetics > 0) & (aesthetics < 1)).all()
    filter_clips(FilterRun(prepared, matcher=name, engine="serial"))
    assert scores(prepared)["Red"].keys() >= {"match", "aesthetics"}


@pytest.mark.parametrize("name", ["nobody", "ViT-B-32:nowhere", "no-such-architecture:openai"])
def test_what_is_no_matcher_is_refused_before_a_clip_is_read(name, prepared, capsys):
    with pytest.raises(CaptionError, match="must be a captioner's folder, or ARCHITECTURE:WEIGHTS"):
        load_matcher(name)
    assert main(["prepare", "filter", str(prepared), "--matcher", name, "--engine", "serial"]) == 2
    assert "ARCHITECTURE:WEIGHTS" in capsys.readouterr().err
    assert not (prepared / "journal" / "scores.jsonl").exists()


def test_a_clip_that_cannot_be_scored_is_reported_and_others_are_scored(prepared, painter, tmp_path, capsys):  # noqa: F811
    painter.save(tmp_path / "captioner")
    run = FilterRun(prepared, matcher=str(tmp_path / "captioner"), engine="serial")
    filter_clips(FilterRun(prepared, engine="serial"))
    (red,) = (row for row in read_manifest(prepared) if row.source.startswith("Red"))
    (prepared / red.file).write_bytes(b"broken")
    filter_clips(run)
    assert [file for file, _ in failed_scores(run)] == [red.file] and "match" in scores(prepared)["Blue"]


def test_a_matcher_that_only_failed_does_not_set_the_threshold(tmp_path):
    with Journal(tmp_path, MATCHES).appending() as append:
        append({"clip": "a", "by": "longtake captioner", "scores": {"match": 0.5}})
        append({"clip": "a", "by": "open_clip", "error": "no such file"})
    assert default_match_threshold(tmp_path) == MATCH_THRESHOLDS["longtake captioner"]
    with Journal(tmp_path, MATCHES).appending() as append:
        append({"clip": "a", "by": "open_clip", "scores": {"match": 0.1}})
    assert default_match_threshold(tmp_path) == DEFAULT_MATCH_THRESHOLD
