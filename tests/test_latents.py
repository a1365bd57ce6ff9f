"""`longtake prepare latents`: the data set holds what the VAE and the text encoder give, and a model trains on it."""

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
    cut_captions,
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

pytestmark = pytest.mark.slow

FORMATS = ((64, 64, 9), (64, 64, 17), (80, 48, 9), (64, 64, 1))


@pytest.fixture
def prepared(tmp_path, parts, vae_run):
    """A run that encodes a prepared folder of three videos, one of them too short, and an image."""
    raw, folder = tmp_path / "raw", tmp_path / "done"
    raw.mkdir()
    for name, video in {"long": shot(0, 38, 64, 64), "wide": shot(1, 12, 96, 160), "short": shot(2, 8, 64, 64)}.items():
        write_video(raw / f"{name}.mp4", video, 8)
        (raw / f"{name}.txt").write_text(f"a {name} video")
    (raw / "still.txt").write_text("very " * 500 + "long captions")
    write_image(raw / "still.png", shot(3, 1, 80, 64))
    cut_clips(ClipsRun(str(raw), folder, engine="serial"))
    return LatentsRun(folder, vae_run.out / "vae", vae_run.out.parent / "text" / "text", FORMATS, engine="serial")


def test_a_clip_is_encoded_in_the_nearest_format(prepared):
    fitting = {row.source: nearest_format(row, FORMATS, 8.0) for row in read_manifest(prepared.folder)}
    assert fitting == {"long.mp4": (64, 64, 17), "wide.mp4": (80, 48, 9), "short.mp4": None, "still.png": (64, 64, 1)}


@pytest.mark.slow
def test_samples_are_the_latents_of_the_vae_and_webdataset_reads_the_same(prepared):
    assert encode_latents(prepared) == {
        "clips": 4,
        "done before": 0,
        "too short": 1,
        "samples": 4,
        "captions updated": 0,
        "captions": 4,
        "failed": 0,
        "captions cut": 1,
    }
    (cut,) = cut_captions(prepared)
    assert "still.png: its caption is cut at" in cut and "tokens" in cut
    vae, rows = cached_vae(prepared.vae), {row.source: row for row in read_manifest(prepared.folder)}
    encoder_hash = vae.encoder_hash()
    video = read_video(prepared.folder / rows["long.mp4"].file).video
    dataset = LatentDataset(prepared.folder, (64, 64, 17), encoder_hash, 8.0)
    assert len(dataset) == 2 and dataset.captions == [{"moving": ["a long video"]}] * 2
    for part in (0, 1):
        wanted = vae.encode(video[None, :, 17 * part : 17 * part + 17])[0].to(torch.float16).numpy()
        assert np.array_equal(dataset[part], wanted) and dataset.shape[1:] == wanted.shape
    still = LatentDataset(prepared.folder, (64, 64, 1), encoder_hash, 8.0)
    image = fit_image(read_image(prepared.folder / rows["still.png"].file), 64, 64)
    assert np.array_equal(still[0], vae.encode(image[None])[0].to(torch.float16).numpy())
    assert still.captions == [{"still": ["very " * 500 + "long captions"]}]
    shards = {str(path.relative_to(prepared.folder)) for path in prepared.folder.rglob("*.tar")}
    assert shards == {f"shards/{encoder_hash}/{name}/000000.tar" for name in ("64p/1-1/17", "48p/5-3/9", "64p/1-1/1")}
    shard = prepared.folder / f"shards/{encoder_hash}/64p/1-1/17/000000.tar"
    read = list(webdataset.WebDataset(str(shard), shardshuffle=False))
    assert [json.loads(one["json"])["captions"] for one in read] == [["a long video"]] * 2
    assert np.array_equal(np.load(io.BytesIO(read[1]["latents.npy"])), dataset[1])


@pytest.mark.slow
def test_clips_are_encoded_once_per_vae(prepared, vae_run, tmp_path):
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


@pytest.mark.slow
def test_a_lost_shard_is_made_again_and_no_other_is_overwritten(prepared):
    encode_latents(prepared)
    first, *_ = sorted((prepared.folder / "shards").rglob("64p/1-1/17/*.tar"))
    first.unlink()
    (first.parent / ".000009.tar").write_bytes(b"half")
    assert encode_latents(prepared)["done before"] == 2
    assert sorted(path.name for path in first.parent.iterdir()) == ["000001.tar"]
    dataset = LatentDataset(prepared.folder, (64, 64, 17), cached_vae(prepared.vae).encoder_hash(), 8.0)
    assert len(dataset) == 2 and np.isfinite(dataset[1]).all()


def shard_captions(run):
    """Return the captions in the shards of a prepared folder, by clip; no sample may be there twice."""
    paths = sorted(map(str, run.folder.rglob("*.tar")))
    read = [(one["__key__"], json.loads(one["json"])) for one in webdataset.WebDataset(paths, shardshuffle=False)]
    assert len({key for key, _ in read}) == len(read)
    return {about["clip"]: about["captions"] for _, about in read}


def manifest_captions(run):
    """Return the captions in the manifest, by encoded clip."""
    return {row.clip: [caption.text for caption in row.captions] for row in read_manifest(run.folder) if row.latents}


def change_caption(run, tmp_path, text="another caption than before"):
    """Change the caption of the long video, and remove all clips, so that none can be encoded."""
    (tmp_path / "raw" / "long.txt").write_text(text)
    assert cut_clips(ClipsRun(str(tmp_path / "raw"), run.folder, engine="serial"))["done before"] == 3
    for clip in (run.folder / "clips").rglob("*.mp4"):
        clip.unlink()


@pytest.mark.slow
def test_shards_get_the_current_captions_without_encoding_clips(prepared, tmp_path):
    encode_latents(prepared)
    open_before = LatentDataset(prepared.folder, (64, 64, 17), cached_vae(prepared.vae).encoder_hash(), 8.0)
    before = {path: path.read_bytes() for path in prepared.folder.rglob("*.tar")}
    assert shard_captions(prepared) == manifest_captions(prepared)
    change_caption(prepared, tmp_path)
    again = encode_latents(prepared)
    assert (again["done before"], again["captions updated"], again["failed"]) == (3, 2, 0)
    assert (
        shard_captions(prepared) == manifest_captions(prepared)
        and ["another caption than before"] in shard_captions(prepared).values()
    )
    dataset = LatentDataset(prepared.folder, (64, 64, 17), cached_vae(prepared.vae).encoder_hash(), 8.0)
    assert dataset.captions == [{"moving": ["another caption than before"]}] * 2
    assert all(
        np.array_equal(open_before[n], dataset[n]) for n in (0, 1)
    )  # though the shard of the first data set is removed
    after = {path: path.read_bytes() for path in prepared.folder.rglob("*.tar")}
    assert len(after) == 3 and len(before.items() & after.items()) == 2
    assert encode_latents(prepared)["captions updated"] == 0


def test_a_run_killed_while_it_rewrites_shards_leaves_a_readable_folder_and_is_completed(prepared, tmp_path):
    encode_latents(prepared)
    encoder_hash = cached_vae(prepared.vae).encoder_hash()
    before = LatentDataset(prepared.folder, (64, 64, 17), encoder_hash, 8.0)
    change_caption(prepared, tmp_path)
    with Journal(prepared.folder, "latents").appending() as append:  # and no further: the manifest is the old one
        assert rewrite_stale_shards(prepared.folder, clip_rows(prepared.folder), append)[0] == 2
    between = LatentDataset(prepared.folder, (64, 64, 17), encoder_hash, 8.0)
    assert len(between) == 2 and all(np.array_equal(between[n], before[n]) for n in (0, 1))
    assert encode_latents(prepared)["failed"] == 0 and shard_captions(prepared) == manifest_captions(prepared)
    assert len(list(prepared.folder.rglob("*.tar"))) == 3


@pytest.mark.slow
def test_the_manifest_gives_the_place_of_all_latents(prepared):
    encode_latents(prepared)
    encoder_hash = cached_vae(prepared.vae).encoder_hash()
    rows = {row.source: row for row in read_manifest(prepared.folder)}
    assert {source: len(row.latents) for source, row in rows.items()} == {
        "long.mp4": 2,
        "wide.mp4": 1,
        "short.mp4": 0,
        "still.png": 1,
    }
    dataset = LatentDataset(prepared.folder, (64, 64, 17), encoder_hash, 8.0)
    for number, entry in enumerate(rows["long.mp4"].latents):
        assert (entry.encoder, entry.fps, entry.format) == (encoder_hash, 8.0, (64, 64, 17))
        stored = (prepared.folder / entry.shard).read_bytes()[entry.offset : entry.offset + entry.bytes]
        assert np.array_equal(np.frombuffer(stored, np.float16).reshape(entry.shape), dataset[number])
    filter_clips(FilterRun(prepared.folder, engine="serial"))  # this rebuilds the manifest
    assert {row.source: row.latents for row in read_manifest(prepared.folder)} == {
        s: r.latents for s, r in rows.items()
    }


def test_a_truncated_shard_is_made_again(prepared):
    encode_latents(prepared)
    first, *_ = sorted((prepared.folder / "shards").rglob("64p/1-1/17/*.tar"))
    first.write_bytes(first.read_bytes()[:2000])
    with pytest.raises(DataError, match="so longtake prepare latents"):
        LatentDataset(prepared.folder, (64, 64, 17), cached_vae(prepared.vae).encoder_hash(), 8.0)
    assert encode_latents(prepared)["done before"] == 2
    assert len(LatentDataset(prepared.folder, (64, 64, 17), cached_vae(prepared.vae).encoder_hash(), 8.0)) == 2


@pytest.mark.parametrize(("frames", "fps"), [(49, 24), (50, 24), (51, 25), (17, 8), (16, 8), (121, 60), (127, 60)])
def test_a_clip_fits_a_format_exactly_when_enough_frames_are_read(tmp_path, frames, fps):
    write_video(tmp_path / "video.mp4", shot(0, frames, 16, 16), fps)
    row = ClipRow("", "video.mp4", "", "", "", 0.0, frames / fps, frames, fps, 16, 16, False)
    shown = read_video(tmp_path / "video.mp4", 8).video.shape[1]
    assert (nearest_format(row, ((64, 64, 17),), 8.0) is not None) == (shown >= 17)


def test_a_missing_clip_fails_and_is_encoded_when_it_is_back(prepared):
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
        "captions updated": 0,
        "captions": 4,
        "captions cut": 1,
        "failed": 0,
    }
    assert not list((prepared.folder / "shards").rglob(".*"))


def test_a_model_trains_on_a_prepared_folder(prepared, dit_run):
    from training.train_dit import train

    encode_latents(prepared)
    formats = ((64, 64, 17), (64, 64, 1))
    run = replace(dit_run, data=prepared.folder, held_out=prepared.folder, formats=formats, batch_sizes=(2, 2))
    report = train(run)
    assert np.isfinite(report["validation"]) and (run.out / "model" / "transformer").is_dir()


class TextEncoderCalls(list):
    """The batch sizes of all calls of the text encoder while this is open."""

    def __enter__(self):
        def record(module, inputs):
            if isinstance(module, TextTower):
                self.append(len(inputs[0]))

        self.hook = torch.nn.modules.module.register_module_forward_pre_hook(record)
        return self

    def __exit__(self, *_):
        self.hook.remove()


def close(ours, theirs):
    """Say whether text embeddings are equal; the batch size changes the last bits of float32."""
    assert (
        ours.token_counts == theirs.token_counts
        and ours.token_embeddings.dtype == theirs.token_embeddings.dtype == torch.float32
    )
    near = [torch.allclose(getattr(ours, n), getattr(theirs, n), atol=1e-5) for n in ("token_embeddings", "pooled")]
    return all(near)


def test_cached_captions_have_the_embeddings_of_the_text_encoder(prepared):
    encode_latents(prepared)
    captions = [caption.text for row in read_manifest(prepared.folder) for caption in row.captions if row.latents] + [
        ""
    ]
    assert max(map(len, captions)) > 2000  # and is truncated
    tokenizer, encoder = load_text_encoder(prepared.text_encoder)
    encoder.requires_grad_(False)
    wanted = encode_prompts(captions, tokenizer, encoder, truncate=True)
    cache = TextCache(tokenizer, encoder, (prepared.folder,))
    with TextEncoderCalls() as calls:
        assert close(cache.encode(captions), wanted) and not calls
        mixed = ["a caption that nobody wrote", *captions, "another one"]
        assert close(cache.encode(mixed), encode_prompts(mixed, tokenizer, encoder, truncate=True))
    assert calls == [2, len(mixed)]
    assert close(TextCache(tokenizer, encoder, ()).encode(captions), wanted)


def test_embeddings_of_other_captions_encoders_and_tokenizers_are_not_used(prepared, tmp_path):
    encode_latents(prepared)
    files = {path: path.stat().st_mtime_ns for path in (prepared.folder / "text_embeddings").rglob("*.safetensors")}
    assert encode_latents(prepared)["captions"] == 4
    assert {
        path: path.stat().st_mtime_ns for path in (prepared.folder / "text_embeddings").rglob("*.safetensors")
    } == files
    tokenizer, encoder = load_text_encoder(prepared.text_encoder)
    cache = TextCache(tokenizer, encoder, (prepared.folder,))
    change_caption(prepared, tmp_path)
    with TextEncoderCalls() as calls:
        cache.encode(["another caption than before"])
        assert len(calls) == 1 and encode_latents(prepared)["captions"] == 4 and calls == [1, 1]  # only the new one
        TextCache(tokenizer, encoder, (prepared.folder,)).encode(["another caption than before"])
        assert len(calls) == 2
    others = (
        (train_tokenizer(["a video of other words"], 400, tokenizer.model_max_length), encoder),
        (tokenizer, TextTower(**{name: encoder.config[name] for name in ("vocabulary", "context", "width", "heads")})),
    )
    assert not any(TextCache(*other, (prepared.folder,)).known for other in others)
    tokenizer.model_max_length -= 1  # where captions are truncated
    assert not TextCache(tokenizer, encoder, (prepared.folder,)).known


def test_a_damaged_cache_file_is_skipped_and_made_again(prepared):
    encode_latents(prepared)
    (path,) = (prepared.folder / "text_embeddings").rglob("*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    path.with_name(".half.safetensors").write_bytes(b"half")
    assert not TextCache(*load_text_encoder(prepared.text_encoder), (prepared.folder,)).known
    assert encode_latents(prepared)["captions"] == 4 and path.read_bytes() == whole
    assert list(path.parent.iterdir()) == [path]


def test_embeddings_that_version_0_1_cached_are_still_read(prepared):
    encode_latents(prepared)
    (prepared.folder / "text_embeddings").rename(prepared.folder / "words")
    captions = [caption.text for row in read_manifest(prepared.folder) for caption in row.captions if row.latents]
    with TextEncoderCalls() as calls:
        assert encode_latents(prepared)["captions"] == 4
        TextCache(*load_text_encoder(prepared.text_encoder), (prepared.folder,)).encode(captions)
    assert not calls and not list((prepared.folder / "text_embeddings").rglob("*.safetensors"))


def test_captions_that_cannot_be_encoded_fail_and_are_encoded_by_the_next_run(prepared):
    prepared.folder.joinpath("text_embeddings").mkdir()
    encoder_hash = cached_text_encoder(prepared.text_encoder)[2]
    (prepared.folder / "text_embeddings" / encoder_hash).touch()  # where a folder must be
    assert encode_latents(prepared)["failed"] == 3
    assert all("its captions cannot be encoded" in error for _, error in failed_latents(prepared))
    (prepared.folder / "text_embeddings" / encoder_hash).unlink()
    found = encode_latents(prepared)
    assert (found["done before"], found["captions"], found["failed"]) == (3, 4, 0)


@pytest.mark.slow
def test_a_model_trains_to_the_same_weights_from_cached_embeddings(prepared, dit_run):
    from safetensors.torch import load_file

    from training.train_dit import train

    encode_latents(prepared)
    run = replace(
        dit_run, data=prepared.folder, held_out=prepared.folder, text_encoder=prepared.text_encoder, precision="no"
    )
    run = replace(run, sample_every=100, caption_dropout=0.3)
    with TextEncoderCalls() as calls:
        cached = train(run)
        assert not calls
        shutil.rmtree(prepared.folder / "text_embeddings")
        encoded = train(replace(run, out=run.out.parent / "encoded"))
        assert len(calls) >= run.steps
    assert cached == pytest.approx(encoded, rel=1e-4)
    ours, theirs = (load_file(out / "model" / "transformer" / WEIGHTS) for out in (run.out, run.out.parent / "encoded"))
    for name, value in ours.items():  # which are stored in 16 bits
        assert torch.allclose(value.float(), theirs[name].float(), atol=1e-3), name
