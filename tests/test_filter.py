"""Filters: each score says what it claims to, nothing is dropped, and the report counts."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

from app.cli import main
from tests.test_prepare import shot
from training.prepare.clips import ClipsRun, clips
from training.prepare.filter import NEAR, FilterRun, duplicates, filter_clips, perceptual_hash
from training.prepare.manifest import Journal, read_manifest
from vae.recorder import write_picture, write_video


def titled(clip):
    """A clip with two lines of white letters at its foot."""
    _, _, rows, columns = clip.shape
    page = Image.new("L", (columns, rows))
    pen = ImageDraw.Draw(page)
    for line, words in enumerate(("THE QUICK BROWN FOX", "JUMPS OVER THE DOG")):
        pen.text((columns // 10, rows * 7 // 10 + 18 * line), words, fill=255, font=ImageFont.load_default(16))
    letters = torch.from_numpy(np.asarray(page).astype(np.float32) / 255)
    return clip * (1 - letters) + letters


def soft(clip, side=9):
    pictures = F.pad(clip.transpose(0, 1), [side // 2] * 4, mode="replicate")
    return F.avg_pool2d(pictures, side, stride=1).transpose(0, 1)


def boxed(clip, share=6):
    clip = clip.clone()
    rows = clip.shape[2]
    clip[:, :, : rows // share], clip[:, :, -(rows // share) :] = -1, -1
    return clip


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """The scores of clips that differ in one thing each, by their source."""
    raw, folder = (tmp_path_factory.mktemp(name) for name in ("raw", "done"))
    clip = shot(0.5, 16, 192, 256, speed=8)
    still = clip[:, :1].expand(-1, 16, -1, -1)
    films = {
        "plain": clip, "still": still, "soft": soft(clip), "dark": clip * 0.02 - 0.97, "boxed": boxed(clip),
        "titled": titled(clip), "other": shot(2.5, 16, 192, 256, speed=3).flip(2),
    }  # fmt: skip
    for name, film in films.items():
        write_video(raw / f"{name}.mp4", film, 8)
    write_video(raw / "again.webm", F.interpolate(clip.transpose(0, 1), scale_factor=0.75).transpose(0, 1), 8)
    write_picture(raw / "picture.png", clip[:, :1])
    clips(ClipsRun(str(raw), folder, engine="here"))
    report = filter_clips(FilterRun(folder, engine="here"))
    return {row.source.split(".")[0]: row.scores for row in read_manifest(folder)}, report, folder


def test_each_score_tells_what_differs(scored):
    by, _, _ = scored
    others = lambda name: [value for key, value in by.items() if key not in (name, "picture")]
    assert by["still"]["motion"] < 0.001 < min(score["motion"] for score in others("still"))
    assert by["soft"]["sharpness"] < 0.5 * by["plain"]["sharpness"]
    assert by["dark"]["brightness"] < 0.05 < min(score["brightness"] for score in others("dark"))
    assert by["boxed"]["letterbox"] == pytest.approx(1 / 3, abs=0.02)
    assert max(by[name]["letterbox"] for name in ("plain", "still", "soft", "titled")) == 0
    assert by["titled"]["text"] > 0.02 > max(score["text"] for score in others("titled"))
    assert by["picture"]["motion"] == 0


def test_a_clip_coded_again_at_another_size_is_a_duplicate_and_another_is_not(scored):
    by, _, folder = scored
    hashes = {line["clip"]: np.array(line["hashes"], np.uint64) for line in Journal(folder, "scores").lines()}
    own = {row.source: hashes[row.clip] for row in read_manifest(folder)}
    assert np.bitwise_count(own["plain.mp4"] ^ own["again.webm"]).mean() <= NEAR
    assert duplicates({"first": own["plain.mp4"], "second": own["again.webm"]}) == {"second"}
    assert by["other"]["duplicate"] == 0


def test_similar_pictures_have_near_hashes_and_others_far_ones():
    rng = np.random.default_rng(0)
    pictures = [(rng.random((6, 8)) * 255).astype(np.uint8) for _ in range(8)]
    large = [np.asarray(Image.fromarray(one).resize((160, 120), Image.Resampling.BICUBIC)) for one in pictures]
    noisy = [np.clip(one + rng.normal(0, 6, one.shape), 0, 255).astype(np.uint8) for one in large]
    near = [(perceptual_hash(a) ^ perceptual_hash(b)).bit_count() for a, b in zip(large, noisy, strict=True)]
    far = [(perceptual_hash(a) ^ perceptual_hash(b)).bit_count() for n, a in enumerate(large) for b in large[:n]]
    assert max(near) <= 6 < 16 <= min(far)


def test_nothing_is_dropped_and_the_report_says_what_would_be(scored):
    by, report, folder = scored
    assert len(read_manifest(folder)) == 9
    for name, found in report.items():
        values = np.array([scores[name] for scores in by.values()])
        assert found["clips"] == 9 and found["least"] == values.min() and found["most"] == values.max()
    assert report["letterbox"]["dropped"] == sum(scores["letterbox"] > 0.02 for scores in by.values())
    journal = folder / "journal" / "scores.jsonl"
    before = journal.read_bytes()
    assert filter_clips(FilterRun(folder, engine="here")) == report and journal.read_bytes() == before


def test_the_command_prepares_a_folder_and_exits_with_3_where_a_part_failed(tmp_path, capsys):
    raw = tmp_path / "raw"
    raw.mkdir()
    write_video(raw / "film.mp4", shot(0, 16), 8)
    words = ["prepare", "clips", str(raw), str(tmp_path / "done"), "--engine", "here"]
    assert main(words) == 0 and "1 clips" in capsys.readouterr().out
    (raw / "broken.mp4").write_bytes(b"nothing")
    assert main(words) == 3 and "broken.mp4" in capsys.readouterr().err
    (raw / "broken.mp4").unlink()
    write_video(raw / "long.mp4", shot(1, 40, 64, 64), 8)
    assert main(["prepare", "all", str(raw), str(tmp_path / "done"), "--engine", "here"]) == 0
    assert "latents: 2 clips, 0 done before, 1 too short, 2 samples" in capsys.readouterr().out
    assert main(["prepare", "filter", str(tmp_path / "done"), "--engine", "here"]) == 0
    assert "motion" in capsys.readouterr().out
    assert main(["prepare", "filter", str(tmp_path / "nothing")]) == 2
    assert "longtake prepare clips" in capsys.readouterr().err
