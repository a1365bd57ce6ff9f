"""Coded clips: what is on the shelf is what the VAE says of the clip, and a model trains on it."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import webdataset

from tests.test_prepare import shot
from training.dataset import DataError
from training.prepare.clips import ClipsRun, clips
from training.prepare.latents import LatentsRun, Shelf, encoder_of, fit, latents
from training.prepare.manifest import Row, read_manifest
from vae.media import read_picture, read_video
from vae.pixels import fit_picture
from vae.recorder import write_picture, write_video

FORMATS = ((64, 64, 9), (64, 64, 17), (80, 48, 9), (64, 64, 1))


@pytest.fixture
def prepared(tmp_path, parts, vae_run):
    """A prepared folder: three films, one of them too short, and a picture; and the run that codes them."""
    raw, folder = tmp_path / "raw", tmp_path / "done"
    raw.mkdir()
    for name, film in {"long": shot(0, 38, 64, 64), "wide": shot(1, 12, 96, 160), "short": shot(2, 8, 64, 64)}.items():
        write_video(raw / f"{name}.mp4", film, 8)
        (raw / f"{name}.txt").write_text(f"a {name} film")
    (raw / "still.txt").write_text("very " * 500 + "long words")
    write_picture(raw / "still.png", shot(3, 1, 80, 64))
    clips(ClipsRun(str(raw), folder, engine="here"))
    return LatentsRun(folder, vae_run.out / "vae", FORMATS, engine="here")


def test_a_clip_goes_to_the_format_that_is_nearest_to_it(prepared):
    fitting = {row.source: fit(row, FORMATS, 8.0) for row in read_manifest(prepared.folder)}
    assert fitting == {"long.mp4": (64, 64, 17), "wide.mp4": (80, 48, 9), "short.mp4": None, "still.png": (64, 64, 1)}


def test_samples_are_what_the_vae_says_of_the_clip_and_webdataset_reads_the_same(prepared):
    assert latents(prepared) == {"clips": 4, "done before": 0, "too short": 1, "samples": 4, "failed": 0}
    vae, rows = encoder_of(prepared.vae), {row.source: row for row in read_manifest(prepared.folder)}
    stamp = vae.encoder_hash()
    film = read_video(prepared.folder / rows["long.mp4"].file).video
    shelf = Shelf(prepared.folder, (64, 64, 17), stamp, 8.0)
    assert len(shelf) == 2 and shelf.captions == [{"moving": ["a long film"]}] * 2
    for part in (0, 1):
        wanted = vae.encode(film[None, :, 17 * part : 17 * part + 17])[0].to(torch.float16).numpy()
        assert np.array_equal(shelf[part], wanted) and shelf.shape[1:] == wanted.shape
    still = Shelf(prepared.folder, (64, 64, 1), stamp, 8.0)
    picture = fit_picture(read_picture(prepared.folder / rows["still.png"].file), 64, 64)
    assert np.array_equal(still[0], vae.encode(picture[None])[0].to(torch.float16).numpy())
    assert still.captions == [{"still": ["very " * 500 + "long words"]}]
    tars = {str(path.relative_to(prepared.folder)) for path in prepared.folder.rglob("*.tar")}
    assert tars == {f"shards/{stamp}/{name}/000000.tar" for name in ("64p/1-1/17", "48p/5-3/9", "64p/1-1/1")}
    tar = prepared.folder / f"shards/{stamp}/64p/1-1/17/000000.tar"
    read = list(webdataset.WebDataset(str(tar), shardshuffle=False))
    assert [json.loads(one["json"])["captions"] for one in read] == [["a long film"]] * 2
    assert np.array_equal(np.load(io.BytesIO(read[1]["latents.npy"])), shelf[1])


def test_what_is_coded_is_not_coded_again_and_another_vae_codes_anew(prepared, vae_run, tmp_path):
    from training.train_vae import train

    latents(prepared)
    before = {path: path.stat().st_mtime_ns for path in prepared.folder.rglob("*.tar")}
    assert latents(prepared)["done before"] == 3
    assert {path: path.stat().st_mtime_ns for path in prepared.folder.rglob("*.tar")} == before
    other = replace(vae_run, out=tmp_path / "other", seed=1)
    train(other)
    run = replace(prepared, vae=other.out / "vae")
    with pytest.raises(DataError, match="so longtake prepare latents"):
        Shelf(run.folder, (64, 64, 17), encoder_of(run.vae).encoder_hash(), 8.0)
    assert latents(run)["done before"] == 0 and len(list(prepared.folder.rglob("*.tar"))) == 2 * len(before)


def test_a_tar_that_is_lost_is_made_again_and_no_other_is_written_over(prepared):
    latents(prepared)
    first, *_ = sorted((prepared.folder / "shards").rglob("64p/1-1/17/*.tar"))
    first.unlink()
    (first.parent / ".000009.tar").write_bytes(b"half")
    assert latents(prepared)["done before"] == 2
    assert sorted(path.name for path in first.parent.iterdir()) == ["000001.tar"]
    shelf = Shelf(prepared.folder, (64, 64, 17), encoder_of(prepared.vae).encoder_hash(), 8.0)
    assert len(shelf) == 2 and np.isfinite(shelf[1]).all()


@pytest.mark.parametrize(("frames", "fps"), [(49, 24), (50, 24), (51, 25), (17, 8), (16, 8), (121, 60), (127, 60)])
def test_a_clip_fits_a_format_exactly_when_it_is_read_as_so_many_frames(tmp_path, frames, fps):
    write_video(tmp_path / "film.mp4", shot(0, frames, 16, 16), fps)
    row = Row("", "film.mp4", "", "", "", 0.0, frames / fps, frames, fps, 16, 16, False)
    shown = read_video(tmp_path / "film.mp4", 8).video.shape[1]
    assert (fit(row, ((64, 64, 17),), 8.0) is not None) == (shown >= 17)


def test_a_clip_that_is_gone_is_told_and_done_when_it_is_back(prepared):
    (row,) = (row for row in read_manifest(prepared.folder) if row.source == "wide.mp4")
    kept = (prepared.folder / row.file).read_bytes()
    (prepared.folder / row.file).unlink()
    assert latents(prepared)["failed"] == 1
    (prepared.folder / row.file).write_bytes(kept)
    assert latents(prepared) == {"clips": 4, "done before": 2, "too short": 1, "samples": 4, "failed": 0}
    assert not list(prepared.folder.rglob(".*.tar"))


def test_a_model_trains_on_a_prepared_folder(prepared, dit_run):
    from training.train_dit import train

    latents(prepared)
    formats = ((64, 64, 17), (64, 64, 1))
    run = replace(dit_run, data=prepared.folder, held_out=prepared.folder, formats=formats, clips=(2, 2))
    report = train(run)
    assert np.isfinite(report["validation"]) and (run.out / "model" / "transformer").is_dir()
