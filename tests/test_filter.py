"""`longtake prepare filter`: scores measure what they claim, nothing is dropped unasked, reports count right."""

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

from app.cli import main
from tests.test_latents import prepared  # noqa: F401
from tests.test_prepare import shot
from training.dataset import DataError, data_hash
from training.latent_dataset import LatentDataset
from training.manifest import read_manifest
from training.prepare.clips import ClipsRun, cut_clips
from training.prepare.filter import FilterRun, filter_clips
from training.prepare.latents import cached_vae, encode_latents
from vae.video.write import write_image, write_video


def with_text(clip):
    """Write two lines of white letters at the bottom of a clip."""
    _, _, rows, columns = clip.shape
    page = Image.new("L", (columns, rows))
    draw = ImageDraw.Draw(page)
    for line, text in enumerate(("THE QUICK BROWN FOX", "JUMPS OVER THE DOG")):
        draw.text((columns // 10, rows * 7 // 10 + 18 * line), text, fill=255, font=ImageFont.load_default(16))
    letters = torch.from_numpy(np.asarray(page).astype(np.float32) / 255)
    return clip * (1 - letters) + letters


def blurred(clip, side=9):
    images = F.pad(clip.transpose(0, 1), [side // 2] * 4, mode="replicate")
    return F.avg_pool2d(images, side, stride=1).transpose(0, 1)


def letterboxed(clip, share=6):
    clip = clip.clone()
    rows = clip.shape[2]
    clip[:, :, : rows // share], clip[:, :, -(rows // share) :] = -1, -1
    return clip


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """The scores, the report and the folder of clips that differ in one property each."""
    raw, folder = (tmp_path_factory.mktemp(name) for name in ("raw", "done"))
    clip = shot(0.5, 16, 192, 256, speed=8)
    still = clip[:, :1].expand(-1, 16, -1, -1)
    videos = {
        "plain": clip, "still": still, "blurred": blurred(clip), "dark": clip * 0.02 - 0.97,
        "letterboxed": letterboxed(clip), "text": with_text(clip), "other": shot(2.5, 16, 192, 256, speed=3).flip(2),
    }  # fmt: skip
    for name, video in videos.items():
        write_video(raw / f"{name}.mp4", video, 8)
    write_video(raw / "copy.webm", F.interpolate(clip.transpose(0, 1), scale_factor=0.75).transpose(0, 1), 8)
    write_image(raw / "image.png", clip[:, :1])
    cut_clips(ClipsRun(str(raw), folder, engine="serial"))
    report = filter_clips(FilterRun(folder, engine="serial"))
    return {row.source.split(".")[0]: row.scores for row in read_manifest(folder)}, report, folder


def test_each_score_measures_its_property(scored):
    by, _, _ = scored
    others = lambda name: [value for key, value in by.items() if key not in (name, "image")]
    assert by["still"]["motion"] < 0.001 < min(score["motion"] for score in others("still"))
    assert by["blurred"]["sharpness"] < 0.5 * by["plain"]["sharpness"]
    assert by["dark"]["brightness"] < 0.05 < min(score["brightness"] for score in others("dark"))
    assert by["letterboxed"]["letterbox"] == pytest.approx(1 / 3, abs=0.02)
    assert max(by[name]["letterbox"] for name in ("plain", "still", "blurred", "text")) == 0
    assert by["text"]["text"] > 0.02 > max(score["text"] for score in others("text"))
    assert by["image"]["motion"] == 0


def test_nothing_is_dropped_unasked_and_the_report_counts_what_would_be(scored):
    by, report, folder = scored
    assert len(read_manifest(folder)) == 9
    for name, row in report.items():
        values = np.array([scores[name] for source, scores in by.items() if (name, source) != ("motion", "image")])
        assert row["clips"] == len(values) == (8 if name == "motion" else 9)
        assert row["min"] == values.min() and row["max"] == values.max()
    assert report["letterbox"]["dropped"] == sum(scores["letterbox"] > 0.02 for scores in by.values())
    journal = folder / "journal" / "scores.jsonl"
    before = journal.read_bytes()
    assert filter_clips(FilterRun(folder, engine="serial")) == report and journal.read_bytes() == before
    assert not any(row.dropped for row in read_manifest(folder))


def dropped(folder):
    return {row.source.split(".")[0]: row.dropped for row in read_manifest(folder) if row.dropped}


def test_drops_follow_the_named_thresholds_and_their_values_and_end_with_them(scored, tmp_path):
    by, _, folder = scored
    folder = shutil.copytree(folder, tmp_path / "done")
    scores = (folder / "journal" / "scores.jsonl").read_bytes()
    run = FilterRun(folder, engine="serial", drop=("motion",))
    filter_clips(run)
    assert dropped(folder) == {"still": ["motion"]}  # and not the image, which cannot move
    before = (folder / "journal" / "dropped.jsonl").read_bytes()
    filter_clips(run)
    assert (folder / "journal" / "dropped.jsonl").read_bytes() == before
    highest = max(score["sharpness"] for score in by.values())
    report = filter_clips(FilterRun(folder, engine="serial", thresholds={"sharpness": highest, "motion": 0.0}))
    assert dropped(folder) == {}
    assert report["sharpness"]["dropped"] == 8 and report["sharpness"]["threshold"] == f"< {highest:g}"
    filter_clips(FilterRun(folder, engine="serial", thresholds={"text": -1.0}, drop=("all",)))
    assert set(dropped(folder)) == set(by) and dropped(folder)["letterboxed"][:2] == ["letterbox", "text"]
    assert (folder / "journal" / "scores.jsonl").read_bytes() == scores


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--threshold", "beauty=1"], "a threshold must be one of motion, sharpness"),
        (["--threshold", "motion=fast"], "a threshold must be NAME=VALUE, with a number; got 'motion=fast'"),
        (["--threshold", "motion"], "a threshold must be NAME=VALUE, with a number; got 'motion'"),
        (["--threshold", "motion=nan"], "a threshold must be a finite number; got nan for motion"),
        (["--drop", "beauty"], "a threshold must be one of motion, sharpness"),
    ],
)
def test_a_wrong_threshold_is_refused_before_any_clip_is_read(flags, error, scored, capsys):
    journal = scored[2] / "journal"
    before = sorted((path, path.stat().st_mtime_ns) for path in journal.iterdir())
    try:
        assert main(["prepare", "filter", str(scored[2]), "--engine", "serial", *flags]) == 2
    except SystemExit as stopped:  # by argparse
        assert stopped.code == 2
    assert error in capsys.readouterr().err
    assert sorted((path, path.stat().st_mtime_ns) for path in journal.iterdir()) == before


def test_the_command_drops_clips_and_prints_how_many(scored, tmp_path, capsys):
    folder = shutil.copytree(scored[2], tmp_path / "done")
    command = ["prepare", "filter", str(folder), "--engine", "serial"]
    assert (
        main([*command, "--threshold", "text=0.5", "--threshold", "motion=9", "--drop", "motion", "--drop", "text"])
        == 0
    )
    printed = capsys.readouterr().out
    assert "< 9: 8 of 8" in printed and "> 0.5: 0 of 9" in printed and "8 of 9 clips are dropped" in printed
    assert main(command) == 0 and "0 of 9 clips are dropped" in capsys.readouterr().out


def test_dropped_clips_are_neither_encoded_nor_trained_on_until_they_are_kept_again(prepared):  # noqa: F811
    encoder_hash, format = cached_vae(prepared.vae).encoder_hash(), (64, 64, 17)
    (long,) = (row for row in read_manifest(prepared.folder) if row.source == "long.mp4")
    run = FilterRun(prepared.folder, engine="serial")
    filter_clips(FilterRun(prepared.folder, engine="serial", thresholds={"motion": 99.0}, drop=("motion",)))
    counts = encode_latents(prepared)
    assert (counts["clips"], counts["too short"], counts["samples"], counts["failed"]) == (1, 0, 1, 0)
    with pytest.raises(DataError, match="has none"):
        LatentDataset(prepared.folder, format, encoder_hash, 8.0)
    without = data_hash(prepared.folder, (format,))
    filter_clips(run)
    assert (
        encode_latents(prepared)["samples"] == 4 and len(LatentDataset(prepared.folder, format, encoder_hash, 8.0)) == 2
    )
    assert data_hash(prepared.folder, (format,)) != without
    assert (prepared.folder / long.file).exists()
    filter_clips(FilterRun(prepared.folder, engine="serial", thresholds={"motion": 99.0}, drop=("motion",)))
    with pytest.raises(DataError, match="has none"):  # though it is encoded
        LatentDataset(prepared.folder, format, encoder_hash, 8.0)
    assert data_hash(prepared.folder, (format,)) == without


def test_an_older_manifest_without_drops_is_read(scored, tmp_path):
    rows = pq.read_table(scored[2] / "manifest.parquet").drop_columns("dropped")
    pq.write_table(rows, tmp_path / "manifest.parquet")
    assert read_manifest(tmp_path) == read_manifest(scored[2])


def test_the_command_prepares_a_folder_and_exits_with_3_on_partial_failure(tmp_path, capsys):
    raw = tmp_path / "raw"
    raw.mkdir()
    write_video(raw / "video.mp4", shot(0, 16), 8)
    command = ["prepare", "clips", str(raw), str(tmp_path / "done"), "--engine", "serial"]
    assert main(command) == 0 and "1 clips" in capsys.readouterr().out
    (raw / "broken.mp4").write_bytes(b"nothing")
    assert main(command) == 3 and "broken.mp4" in capsys.readouterr().err
    (raw / "broken.mp4").unlink()
    write_video(raw / "long.mp4", shot(1, 40, 64, 64), 8)
    assert main(["prepare", "all", str(raw), str(tmp_path / "done"), "--engine", "serial"]) == 0
    assert "latents: 2 clips, 0 done before, 1 too short, 2 samples" in capsys.readouterr().out
    assert main(["prepare", "filter", str(tmp_path / "done"), "--engine", "serial"]) == 0
    assert "motion" in capsys.readouterr().out
    assert main(["prepare", "filter", str(tmp_path / "nothing")]) == 2
    assert "longtake prepare clips" in capsys.readouterr().err
