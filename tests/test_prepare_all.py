"""`longtake prepare all`: from a folder of mixed files to a model, by one command and a few training steps."""

import tarfile

import numpy as np
import pytest
import torch

from app.cli import main
from tests.test_latents import TextEncoderCalls
from tests.test_prepare import shot
from training.config import DiTRun
from training.examples import LatentSource, draw_examples
from training.manifest import read_manifest
from training.train_dit import train
from vae.model import VideoVAE
from vae.video.write import write_image, write_video
from vae.weights import load_strictly

pytestmark = pytest.mark.slow

FORMATS = ((64, 64, 9), (64, 64, 1))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A folder of mixed files: videos of four formats, one of two shots, an image, a tar, and a broken video."""
    raw = tmp_path_factory.mktemp("mixed")
    (raw / "holidays").mkdir()
    write_video(raw / "two.mp4", torch.cat([shot(0, 12, 64, 64), shot(2.2, 20, 64, 64)], 1), 8)
    write_video(raw / "holidays" / "wide.webm", shot(1, 15, 48, 80), 12)
    write_video(raw / "holidays" / "high.mkv", shot(2, 36, 80, 64), 24)
    write_video(raw / "odd.gif", shot(3, 20, 51, 65), 10)
    write_image(raw / "still.png", shot(4, 1, 70, 90))
    with tarfile.open(raw / "videos.tar", "w") as tar:
        for number in (0, 1):
            path = raw.with_name(f"{raw.name}-{number}.mp4")
            write_video(path, shot(5 + number, 10, 64, 64), 8)
            tar.add(path, f"{number}.mp4")
    (raw / "broken.mp4").write_bytes((raw / "two.mp4").read_bytes()[:-2000])
    for name, caption in {"two": "a disc on two backgrounds", "holidays/high": "a disc in a high video"}.items():
        (raw / f"{name}.txt").write_text(caption)
    return raw


def prepare(mixed, folder, model):
    """Prepare a folder by one command; return its exit code."""
    formats = ["x".join(map(str, format)) for format in FORMATS]
    command = ["prepare", "all", str(mixed), str(folder), "--engine", "serial", "--vae", str(model / "vae")]
    return main([*command, "--text-encoder", str(model), "--formats", *formats])


@pytest.fixture(scope="module")
def prepared(mixed, tiny_model, tmp_path_factory):
    """What the command makes of the folder, and its exit code."""
    folder = tmp_path_factory.mktemp("done") / "prepared"
    return folder, prepare(mixed, folder, tiny_model)


def test_one_command_prepares_everything_intact_and_a_second_run_completes_it(prepared, mixed, tiny_model, capsys):
    folder, code = prepared
    assert code == 3
    sources = [row.source for row in read_manifest(folder)]
    intact = ["videos.tar/0.mp4", "videos.tar/1.mp4", "holidays/high.mkv", "holidays/wide.webm", "odd.gif", "still.png"]
    assert sorted(sources) == sorted([*intact, "two.mp4", "two.mp4"])
    assert all(row.latents and row.scores["sharpness"] > 0 for row in read_manifest(folder))
    assert prepare(mixed, folder, tiny_model) == 3
    printed = capsys.readouterr()
    assert "8 sources, 7 done before, 8 clips, 0 shots too short, 1 failed" in printed.out
    assert "8 clips, 8 done before" in printed.out
    assert printed.err.strip().splitlines()[-1].startswith("longtake: broken.mp4: ")
    (mixed / "broken.mp4").write_bytes((mixed / "two.mp4").read_bytes())
    assert prepare(mixed, folder, tiny_model) == 0
    assert len(read_manifest(folder)) == 8


def test_a_model_trains_on_every_clip_of_the_prepared_folder(prepared, tiny_model, tmp_path):
    folder, _ = prepared
    run = DiTRun(
        data=folder,
        held_out=folder,
        out=tmp_path / "dit",
        vae=tiny_model / "vae",
        text_encoder=tiny_model,
        formats=FORMATS,
        batch_sizes=(2, 1),
        depth=1,
        steps=4,
        warmup_steps=1,
        decay_steps=1,
        validate_every=2,
        sample_every=100,
        validation_clips=2,
    )
    with TextEncoderCalls() as calls:
        report = train(run)
    assert not calls and all(np.isfinite(loss) for loss in report.values())
    assert (run.out / "model" / "transformer").is_dir()
    vae, rows = load_strictly(VideoVAE, run.vae), read_manifest(folder)
    seen = set()
    for format, count in zip(run.formats, run.batch_sizes, strict=True):
        source = LatentSource.open(run, folder, format, vae, vae.encoder_hash())
        fitting = [row for row in rows for entry in row.latents if entry.format == format]
        examples = [
            one
            for step in range(run.steps)
            for one in draw_examples(run, source, (1, 2, 2), range(step * count, step * count + count))
        ]
        for one in examples:
            same = (n for n in range(len(fitting)) if np.array_equal(source.latents[n], one.latents.numpy()))
            row = fitting[next(same)]
            assert one.caption in ["", *(caption.text for caption in row.captions)]
            seen.add(row.clip)
    assert seen == {row.clip for row in rows}
