"""Coded clips: what is on the shelf is what the VAE says of the clip, and a model trains on it."""

import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import webdataset

from captioning.text_encoder import TextTower, encode_prompts, load_text_encoder, train_tokenizer
from tests.test_prepare import shot
from training.dataset import DataError
from training.latent_dataset import LatentDataset
from training.manifest import ClipRow, read_manifest
from training.prepare.clips import ClipsRun, cut_clips
from training.prepare.filter import FilterRun, filter_clips
from training.prepare.journal import Journal, clip_rows
from training.prepare.latents import (
    LatentsRun,
    cached_vae,
    encode_latents,
    failed_latents,
    nearest_format,
    rewrite_stale_shards,
)
from training.text_cache import TextCache, cached_text_encoder
from vae.video.pixels import fit_image
from vae.video.read import read_image, read_video
from vae.video.write import write_image, write_video
from vae.weights import WEIGHTS

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
    write_image(raw / "still.png", shot(3, 1, 80, 64))
    cut_clips(ClipsRun(str(raw), folder, engine="serial"))
    return LatentsRun(folder, vae_run.out / "vae", vae_run.out.parent / "text" / "text", FORMATS, engine="serial")


def test_a_clip_goes_to_the_format_that_is_nearest_to_it(prepared):
    fitting = {row.source: nearest_format(row, FORMATS, 8.0) for row in read_manifest(prepared.folder)}
    assert fitting == {"long.mp4": (64, 64, 17), "wide.mp4": (80, 48, 9), "short.mp4": None, "still.png": (64, 64, 1)}


def test_samples_are_what_the_vae_says_of_the_clip_and_webdataset_reads_the_same(prepared):
    assert encode_latents(prepared) == {
        "clips": 4,
        "done before": 0,
        "too short": 1,
        "samples": 4,
        "told anew": 0,
        "captions": 4,
        "failed": 0,
    }
    vae, rows = cached_vae(prepared.vae), {row.source: row for row in read_manifest(prepared.folder)}
    stamp = vae.encoder_hash()
    film = read_video(prepared.folder / rows["long.mp4"].file).video
    shelf = LatentDataset(prepared.folder, (64, 64, 17), stamp, 8.0)
    assert len(shelf) == 2 and shelf.captions == [{"moving": ["a long film"]}] * 2
    for part in (0, 1):
        wanted = vae.encode(film[None, :, 17 * part : 17 * part + 17])[0].to(torch.float16).numpy()
        assert np.array_equal(shelf[part], wanted) and shelf.shape[1:] == wanted.shape
    still = LatentDataset(prepared.folder, (64, 64, 1), stamp, 8.0)
    picture = fit_image(read_image(prepared.folder / rows["still.png"].file), 64, 64)
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

    encode_latents(prepared)
    before = {path: path.stat().st_mtime_ns for path in prepared.folder.rglob("*.tar")}
    assert encode_latents(prepared)["done before"] == 3
    assert {path: path.stat().st_mtime_ns for path in prepared.folder.rglob("*.tar")} == before
    other = replace(vae_run, out=tmp_path / "other", seed=1)
    train(other)
    run = replace(prepared, vae=other.out / "vae")
    with pytest.raises(DataError, match="so longtake prepare latents"):
        LatentDataset(run.folder, (64, 64, 17), cached_vae(run.vae).encoder_hash(), 8.0)
    assert encode_latents(run)["done before"] == 0 and len(list(prepared.folder.rglob("*.tar"))) == 2 * len(before)


def test_a_tar_that_is_lost_is_made_again_and_no_other_is_written_over(prepared):
    encode_latents(prepared)
    first, *_ = sorted((prepared.folder / "shards").rglob("64p/1-1/17/*.tar"))
    first.unlink()
    (first.parent / ".000009.tar").write_bytes(b"half")
    assert encode_latents(prepared)["done before"] == 2
    assert sorted(path.name for path in first.parent.iterdir()) == ["000001.tar"]
    shelf = LatentDataset(prepared.folder, (64, 64, 17), cached_vae(prepared.vae).encoder_hash(), 8.0)
    assert len(shelf) == 2 and np.isfinite(shelf[1]).all()


def told(run):
    """Say for each clip what captions the tars of a prepared folder hold; no sample may be there twice."""
    paths = sorted(map(str, run.folder.rglob("*.tar")))
    read = [(one["__key__"], json.loads(one["json"])) for one in webdataset.WebDataset(paths, shardshuffle=False)]
    assert len({key for key, _ in read}) == len(read)
    return {about["clip"]: about["captions"] for _, about in read}


def now(run):
    """Say for each clip that is coded what captions it has."""
    return {row.clip: [said.text for said in row.captions] for row in read_manifest(run.folder) if row.latents}


def reworded(run, tmp_path, text="other words than before"):
    """Give the long film other words, and take away the films themselves, so that none can be coded."""
    (tmp_path / "raw" / "long.txt").write_text(text)
    assert cut_clips(ClipsRun(str(tmp_path / "raw"), run.folder, engine="serial"))["done before"] == 3
    for film in (run.folder / "clips").rglob("*.mp4"):
        film.unlink()


def test_a_tar_tells_the_captions_that_its_clips_have_now_and_nothing_is_coded_for_it(prepared, tmp_path):
    encode_latents(prepared)
    open_before = LatentDataset(prepared.folder, (64, 64, 17), cached_vae(prepared.vae).encoder_hash(), 8.0)
    before = {path: path.read_bytes() for path in prepared.folder.rglob("*.tar")}
    assert told(prepared) == now(prepared)
    reworded(prepared, tmp_path)
    again = encode_latents(prepared)
    assert (again["done before"], again["told anew"], again["failed"]) == (3, 2, 0)
    assert told(prepared) == now(prepared) and ["other words than before"] in told(prepared).values()
    shelf = LatentDataset(prepared.folder, (64, 64, 17), cached_vae(prepared.vae).encoder_hash(), 8.0)
    assert shelf.captions == [{"moving": ["other words than before"]}] * 2
    assert all(np.array_equal(open_before[n], shelf[n]) for n in (0, 1))  # the tar of the first is gone
    after = {path: path.read_bytes() for path in prepared.folder.rglob("*.tar")}
    assert len(after) == 3 and len(before.items() & after.items()) == 2
    assert encode_latents(prepared)["told anew"] == 0


def test_a_run_that_dies_while_it_writes_tars_anew_leaves_a_folder_to_train_on_and_is_completed(prepared, tmp_path):
    encode_latents(prepared)
    stamp = cached_vae(prepared.vae).encoder_hash()
    before = LatentDataset(prepared.folder, (64, 64, 17), stamp, 8.0)
    reworded(prepared, tmp_path)
    with Journal(prepared.folder, "latents").appending() as note:  # and no further: the manifest is that of before
        assert rewrite_stale_shards(prepared.folder, clip_rows(prepared.folder), note)[0] == 2
    between = LatentDataset(prepared.folder, (64, 64, 17), stamp, 8.0)
    assert len(between) == 2 and all(np.array_equal(between[n], before[n]) for n in (0, 1))
    assert encode_latents(prepared)["failed"] == 0 and told(prepared) == now(prepared)
    assert len(list(prepared.folder.rglob("*.tar"))) == 3


def test_the_manifest_says_where_the_latents_of_each_clip_are(prepared):
    encode_latents(prepared)
    stamp = cached_vae(prepared.vae).encoder_hash()
    rows = {row.source: row for row in read_manifest(prepared.folder)}
    assert {source: len(row.latents) for source, row in rows.items()} == {
        "long.mp4": 2,
        "wide.mp4": 1,
        "short.mp4": 0,
        "still.png": 1,
    }
    shelf = LatentDataset(prepared.folder, (64, 64, 17), stamp, 8.0)
    for number, sample in enumerate(rows["long.mp4"].latents):
        assert (sample.encoder, sample.fps, sample.format) == (stamp, 8.0, (64, 64, 17))
        stored = (prepared.folder / sample.shard).read_bytes()[sample.offset : sample.offset + sample.bytes]
        assert np.array_equal(np.frombuffer(stored, np.float16).reshape(sample.shape), shelf[number])
    filter_clips(FilterRun(prepared.folder, engine="serial"))  # which makes the manifest anew
    assert {row.source: row.latents for row in read_manifest(prepared.folder)} == {
        s: r.latents for s, r in rows.items()
    }


def test_a_tar_that_is_cut_short_is_made_again(prepared):
    encode_latents(prepared)
    first, *_ = sorted((prepared.folder / "shards").rglob("64p/1-1/17/*.tar"))
    first.write_bytes(first.read_bytes()[:2000])
    with pytest.raises(DataError, match="so longtake prepare latents"):
        LatentDataset(prepared.folder, (64, 64, 17), cached_vae(prepared.vae).encoder_hash(), 8.0)
    assert encode_latents(prepared)["done before"] == 2
    assert len(LatentDataset(prepared.folder, (64, 64, 17), cached_vae(prepared.vae).encoder_hash(), 8.0)) == 2


@pytest.mark.parametrize(("frames", "fps"), [(49, 24), (50, 24), (51, 25), (17, 8), (16, 8), (121, 60), (127, 60)])
def test_a_clip_fits_a_format_exactly_when_it_is_read_as_so_many_frames(tmp_path, frames, fps):
    write_video(tmp_path / "film.mp4", shot(0, frames, 16, 16), fps)
    row = ClipRow("", "film.mp4", "", "", "", 0.0, frames / fps, frames, fps, 16, 16, False)
    shown = read_video(tmp_path / "film.mp4", 8).video.shape[1]
    assert (nearest_format(row, ((64, 64, 17),), 8.0) is not None) == (shown >= 17)


def test_a_clip_that_is_gone_is_told_and_done_when_it_is_back(prepared):
    (row,) = (row for row in read_manifest(prepared.folder) if row.source == "wide.mp4")
    kept = (prepared.folder / row.file).read_bytes()
    (prepared.folder / row.file).unlink()
    assert encode_latents(prepared)["failed"] == 1
    (prepared.folder / row.file).write_bytes(kept)
    assert encode_latents(prepared) == {
        "clips": 4,
        "done before": 2,
        "too short": 1,
        "samples": 4,
        "told anew": 0,
        "captions": 4,
        "failed": 0,
    }
    assert not list(prepared.folder.rglob(".*.tar"))


def test_a_model_trains_on_a_prepared_folder(prepared, dit_run):
    from training.train_dit import train

    encode_latents(prepared)
    formats = ((64, 64, 17), (64, 64, 1))
    run = replace(dit_run, data=prepared.folder, held_out=prepared.folder, formats=formats, batch_sizes=(2, 2))
    report = train(run)
    assert np.isfinite(report["validation"]) and (run.out / "model" / "transformer").is_dir()


class Heard(list):
    """How many prompts the text encoder is given at a time, while this is open."""

    def __enter__(self):
        def note(module, given):
            if isinstance(module, TextTower):
                self.append(len(given[0]))

        self.hook = torch.nn.modules.module.register_module_forward_pre_hook(note)
        return self

    def __exit__(self, *_):
        self.hook.remove()


def same(ours, theirs):
    """Say whether words are alike: how many prompts are encoded at once moves the last bits of float32."""
    assert (
        ours.token_counts == theirs.token_counts
        and ours.token_embeddings.dtype == theirs.token_embeddings.dtype == torch.float32
    )
    near = [torch.allclose(getattr(ours, n), getattr(theirs, n), atol=1e-5) for n in ("features", "pooled")]
    return all(near)


def test_captions_are_looked_up_as_the_text_encoder_says_them(prepared):
    encode_latents(prepared)
    captions = [said.text for row in read_manifest(prepared.folder) for said in row.captions if row.latents] + [""]
    assert max(map(len, captions)) > 2000  # which is cut
    tokenizer, encoder = load_text_encoder(prepared.text)
    encoder.requires_grad_(False)
    wanted = encode_prompts(captions, tokenizer, encoder, truncate=True)
    glossary = TextCache(tokenizer, encoder, (prepared.folder,))
    with Heard() as heard:
        assert same(glossary.encode(captions), wanted) and not heard
        strange = ["a caption that nobody wrote", *captions, "another one"]
        assert same(glossary.encode(strange), encode_prompts(strange, tokenizer, encoder, truncate=True))
    assert heard == [2, len(strange)]
    assert same(TextCache(tokenizer, encoder, ()).encode(captions), wanted)


def test_features_of_other_words_encoders_and_tokenizers_are_not_used(prepared, tmp_path):
    encode_latents(prepared)
    files = {path: path.stat().st_mtime_ns for path in (prepared.folder / "words").rglob("*.safetensors")}
    assert encode_latents(prepared)["captions"] == 4
    assert {path: path.stat().st_mtime_ns for path in (prepared.folder / "words").rglob("*.safetensors")} == files
    tokenizer, encoder = load_text_encoder(prepared.text)
    glossary = TextCache(tokenizer, encoder, (prepared.folder,))
    reworded(prepared, tmp_path)
    with Heard() as heard:
        glossary.encode(["other words than before"])
        assert len(heard) == 1 and encode_latents(prepared)["captions"] == 4 and heard == [1, 1]  # the new one alone
        TextCache(tokenizer, encoder, (prepared.folder,)).encode(["other words than before"])
        assert len(heard) == 2
    others = (
        (train_tokenizer(["a film of other words"], 400, tokenizer.model_max_length), encoder),
        (tokenizer, TextTower(**{name: encoder.config[name] for name in ("vocabulary", "context", "width", "heads")})),
    )
    assert not any(TextCache(*other, (prepared.folder,)).known for other in others)
    tokenizer.model_max_length -= 1  # where captions are cut
    assert not TextCache(tokenizer, encoder, (prepared.folder,)).known


def test_a_damaged_file_of_features_is_not_used_and_made_again(prepared):
    encode_latents(prepared)
    (path,) = (prepared.folder / "words").rglob("*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    path.with_name(".half.safetensors").write_bytes(b"half")
    assert not TextCache(*load_text_encoder(prepared.text), (prepared.folder,)).known
    assert encode_latents(prepared)["captions"] == 4 and path.read_bytes() == whole
    assert list(path.parent.iterdir()) == [path]


def test_captions_that_cannot_be_encoded_are_told_and_encoded_the_next_time(prepared):
    prepared.folder.joinpath("words").mkdir()
    stamp = cached_text_encoder(prepared.text)[2]
    (prepared.folder / "words" / stamp).touch()  # where a folder must be
    assert encode_latents(prepared)["failed"] == 3
    assert all("its captions cannot be encoded" in error for _, error in failed_latents(prepared))
    (prepared.folder / "words" / stamp).unlink()
    found = encode_latents(prepared)
    assert (found["done before"], found["captions"], found["failed"]) == (3, 4, 0)


def test_a_model_trains_to_the_same_weights_without_its_text_encoder(prepared, dit_run):
    from safetensors.torch import load_file

    from training.train_dit import train

    encode_latents(prepared)
    run = replace(dit_run, data=prepared.folder, held_out=prepared.folder, text_encoder=prepared.text, precision="no")
    run = replace(run, sample_every=100, caption_dropout=0.3)
    with Heard() as heard:
        looked_up = train(run)
        assert not heard
        shutil.rmtree(prepared.folder / "words")
        asked = train(replace(run, out=run.out.parent / "asked"))
        assert len(heard) >= run.steps
    assert looked_up == pytest.approx(asked, rel=1e-4)
    ours, theirs = (load_file(out / "model" / "transformer" / WEIGHTS) for out in (run.out, run.out.parent / "asked"))
    for name, value in ours.items():  # which are stored in 16 bits
        assert torch.allclose(value.float(), theirs[name].float(), atol=1e-3), name
