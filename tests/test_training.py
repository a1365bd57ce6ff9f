"""Training: resuming is exact, checkpoints are whole, what is not finite is skipped, data are functions of numbers
alone.
"""

import json
import signal
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from training.canvases import draw_denoise_mask
from training.config import DiTRun, WorldRun
from training.dataset import (
    DataError,
    encode_latents,
    make_world,
    open_bucket,
    sample_order,
    shard_samples,
    weighted_sample_order,
)
from training.loop import Checkpoints, Stopped, TrainLoop, adamw, create_accelerator, lr_at, optimizer_step
from vae.model import VideoVAE
from vae.weights import WEIGHTS

SQUARE = (64, 64, 17)


def weights(run):
    return load_file(run.out / "model" / "transformer" / WEIGHTS)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_resuming_gives_the_same_weights_as_not_stopping(dit_run, tmp_path, monkeypatch):
    from training import train_dit

    train_dit.train(dit_run)
    broken = replace(dit_run, out=tmp_path / "broken", checkpoint_minutes=0)
    calls = []

    def die_once(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("killed")
        return optimizer_step(*args, **kwargs)

    monkeypatch.setattr(train_dit, "optimizer_step", die_once)
    with pytest.raises(RuntimeError, match="killed"):
        train_dit.train(broken)
    train_dit.train(broken)
    assert len(calls) == 4 + 3  # three steps were saved; three were left
    assert same(weights(broken), weights(dit_run))


def test_a_run_does_not_go_on_as_another(vae_run, parts, world):
    from training.train_vae import train

    before = (vae_run.out / "run.json").read_bytes()
    for other in (replace(vae_run, seed=1), replace(vae_run, widths=(16, 48)), replace(vae_run, data=world / "test")):
        with pytest.raises(ValueError, match="a run must go on as it began"):
            train(other)
    assert (vae_run.out / "run.json").read_bytes() == before


def test_a_vae_resumes_to_the_same_weights_too(vae_run, parts, tmp_path):
    from training.train_vae import train

    first = replace(vae_run, out=tmp_path / "vae")
    train(replace(first, steps=2, decay_steps=0))
    report = train(first)
    wanted = load_file(vae_run.out / "vae" / WEIGHTS)
    assert {"psnr", "ssim", "linear_psnr"} <= report["formats"]["64x64x17"].keys()
    assert same(load_file(first.out / "vae" / WEIGHTS), wanted)
    again = replace(vae_run, out=tmp_path / "again")
    train(again)
    assert same(load_file(again.out / "vae" / WEIGHTS), wanted)


def test_a_decoder_trained_alone_leaves_latents_as_they_are(vae_run, parts):
    from training.train_vae import train as train_vae

    run = replace(vae_run, init_from=vae_run.out / "vae", freeze_encoder=True, out=vae_run.out.parent / "vae-decoder")
    train_vae(run)
    before, after = (VideoVAE.from_pretrained(folder / "vae") for folder in (vae_run.out, run.out))
    assert before.encoder_hash() == after.encoder_hash()
    clip = torch.rand(1, 3, 5, 64, 64) * 2 - 1
    assert torch.equal(before.encode(clip), after.encode(clip))
    assert not torch.equal(before.decode(before.encode(clip)), after.decode(before.encode(clip)))
    with torch.no_grad():
        after.latent_mean[0] += 1e-3
    assert before.encoder_hash() != after.encoder_hash()
    with pytest.raises(ValueError, match="decoder_only needs a VAE"):
        train_vae(replace(run, init_from=None, out=vae_run.out.parent / "vae-none"))


def test_a_latent_channel_is_as_loud_as_its_share_of_the_picture(vae_run):
    from training.dataset import open_bucket
    from training.train_vae import loudness, measure_latents

    bucket = open_bucket(vae_run.data, vae_run.formats[0])
    vae = VideoVAE.from_pretrained(vae_run.out / "vae").eval()
    with torch.no_grad():
        vae.decoder.exit.weight.zero_(), vae.decoder.exit.bias.zero_()  # what is left is linear
        measure_latents(vae, [bucket])
        clips = bucket.load_clips(range(len(bucket)))
        variance = vae.encode(clips).var((0, 2, 3, 4))
        columns = vae.linear_decoder.weight.square().mean(0)
        raw, _, _ = vae.posterior(clips)
        shown = columns * raw.var((0, 2, 3, 4))
        assert torch.allclose(loudness(vae, bucket).mean(), torch.tensor(1.0))
    assert torch.allclose(variance, shown / shown.mean(), rtol=0.1)
    assert variance.max() > 5 * variance.min()


def test_a_trained_model_folder_makes_clips(dit_run):
    from dit.pipeline import Pipeline
    from dit.request import Request
    from training.train_dit import train

    report = train(dit_run)
    assert {"validation", "validation_t0", "validation_t7"} <= report.keys()
    pipeline = Pipeline.from_pretrained(dit_run.out / "model")
    (dream,) = pipeline.generate([Request(prompt="a red ball", steps=1)])
    assert pipeline.pixels(dream).shape == (3, 17, 64, 64)
    assert (dit_run.out / "sample-000006.png").stat().st_size > 1000
    described = json.loads((dit_run.out / "run.json").read_text())
    assert described["config"]["steps"] == 6 and described["data"] and described["parameters"] > 0
    assert list((dit_run.out / "log").rglob("events*"))


class Toy:
    """One weight that follows a rate, as any trainer drives it."""

    def __init__(self, run):
        self.run, self.accelerator = run, create_accelerator(run)
        torch.manual_seed(0)
        self.model = nn.Linear(2, 1)
        self.optimizer = adamw(self.model, run)
        self.course = TrainLoop("toy", run, self.accelerator, {"model": self.model, "optimizer": self.optimizer})

    def train(self, spoil=(), stop_at=None):
        for step in self.course:
            x = torch.tensor([[float(step), 1.0]])
            loss = (self.model(x) - 1).square().sum() * (float("nan") if step in spoil else 1)
            norm = optimizer_step(self.accelerator, self.model, self.optimizer, loss, lr_at(step, self.run), 1.0)
            self.course.note(step, norm, loss=loss)
            if step == stop_at:
                signal.raise_signal(signal.SIGTERM)
        return self.model.weight.detach().clone()


@pytest.fixture
def toy_run(tmp_path):
    return DiTRun(out=tmp_path / "toy", steps=60, warmup_steps=2, decay_steps=5, checkpoint_minutes=1e9)


def test_a_run_asked_to_stop_saves_and_goes_on_from_there(toy_run, tmp_path):
    with pytest.raises(Stopped, match="stopped at step 8 of 60"):
        Toy(toy_run).train(stop_at=7)
    again = Toy(toy_run)
    assert again.course.start == 8
    assert torch.equal(again.train(), Toy(replace(toy_run, out=tmp_path / "other")).train())


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(toy_run):
    toy = Toy(toy_run)
    before = {}
    for step in toy.course:
        loss = toy.model(torch.ones(1, 2)).sum() * (float("inf") if step == 3 else 1)
        before[step] = toy.model.weight.detach().clone()
        toy.course.note(step, optimizer_step(toy.accelerator, toy.model, toy.optimizer, loss, 1e-2, 1.0))
        assert torch.equal(toy.model.weight, before[step]) == (step == 3)
    assert toy.course.skipped == 1


def test_a_run_that_is_never_finite_gives_up(toy_run):
    with pytest.raises(FloatingPointError, match="50 steps in a row were not finite"):
        Toy(toy_run).train(spoil=range(100))


def test_the_rate_rises_stays_and_falls_to_zero(toy_run):
    rates = [lr_at(step, toy_run) / toy_run.lr for step in range(61)]
    assert rates[0] == 0.5 and rates[1:55] == [1.0] * 54
    assert rates[60] == 0 and all(a > b for a, b in pairwise(rates[55:]))


def test_a_checkpoint_that_is_damaged_is_passed_over(tmp_path, capsys):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2):
        checkpoints.save(step, {"model": {"w": torch.full((3,), float(step))}}, {})
    path = tmp_path / "step-00000002" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    notes, tensors = checkpoints.latest()
    assert notes["step"] == 1 and tensors["model"]["w"][0] == 1
    assert "is damaged" in capsys.readouterr().err


def test_old_checkpoints_go_only_when_the_new_one_is_whole(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, {"model": {"w": torch.ones(3)}}, {})
    monkeypatch.setattr(Checkpoints, "whole", lambda self, state: False)
    with pytest.raises(OSError, match="must read back as it was written"):
        checkpoints.save(2, {"model": {"w": torch.ones(3)}}, {})
    monkeypatch.undo()
    assert [path.name for path in checkpoints.steps()] == ["step-00000001"]
    checkpoints.save(3, {"model": {"w": torch.ones(3)}}, {})
    assert [path.name for path in checkpoints.steps()] == ["step-00000003"]


def test_a_world_interrupted_goes_on_to_the_same_clips(world, tmp_path, monkeypatch):
    from training import dataset

    run = WorldRun(folder=tmp_path / "data", clips=(6,), workers=1)
    monkeypatch.setattr(dataset, "CHUNK", 2)
    real = dataset.caption

    def die(scene, *args, **kwargs):
        if scene.index == 3:
            raise KeyboardInterrupt
        return real(scene, *args, **kwargs)

    monkeypatch.setattr(dataset, "caption", die)
    with pytest.raises(KeyboardInterrupt):
        make_world(run)
    with pytest.raises(DataError, match="has 2 of 6"):
        len(open_bucket(run.folder, SQUARE))
    monkeypatch.setattr(dataset, "caption", real)
    make_world(run)
    a, b = open_bucket(run.folder, SQUARE), open_bucket(world / "train", SQUARE)
    assert np.array_equal(a.pixels, b.pixels) and a.captions == b.captions


def test_a_data_set_of_other_clips_is_not_overwritten(world):
    with pytest.raises(DataError, match="holds other clips"):
        make_world(WorldRun(folder=world / "train", seed=1, clips=(6,), workers=1))


def test_a_missing_data_set_is_named(tmp_path):
    with pytest.raises(DataError, match="has none, so make them: longtake world"):
        len(open_bucket(tmp_path, SQUARE))


def test_latents_are_coded_once_for_each_vae(world):
    bucket = open_bucket(world / "train", SQUARE)
    calls = []

    def encode(clips):
        calls.append(len(clips))
        return clips[:, :, ::4, ::8, ::8]

    first = np.array(encode_latents(bucket, encode, "aaaa", still=False, batch=4))
    assert calls == [4, 2] and first.shape == (6, 3, 5, 8, 8)
    encode_latents(bucket, encode, "aaaa", still=False)
    assert calls == [4, 2]
    encode_latents(bucket, encode, "bbbb", still=True)
    assert calls == [4, 2, 6] and bucket.load_latents("bbbb", True).shape == (6, 3, 1, 8, 8)


def test_the_order_of_clips_is_a_shuffle_of_each_epoch_and_a_function_of_the_number():
    clip_of = sample_order(0, "x", 10)
    epochs = [[clip_of(n) for n in range(start, start + 10)] for start in (0, 10)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10)) and epochs[0] != epochs[1]
    assert sample_order(0, "x", 10)(17) == epochs[1][7]
    assert [sample_order(1, "x", 10)(n) for n in range(10)] != epochs[0]


def test_clips_of_several_things_are_drawn_more_often_where_that_is_asked(world):
    bucket = open_bucket(world / "train", SQUARE)
    things = [len(bucket.scene(clip).things) for clip in range(len(bucket))]
    assert len(set(things)) > 1
    for crowds in (0, 1, 2):
        clip_of, often = weighted_sample_order(bucket, 0, "x", crowds), [n**crowds for n in things]
        epochs = [[clip_of(n) for n in range(start, start + sum(often))] for start in (0, sum(often))]
        assert [epochs[0].count(clip) for clip in range(len(bucket))] == often
        assert sorted(epochs[0]) == sorted(epochs[1]) and epochs[0] != epochs[1]


def test_processes_share_a_step_without_gaps_whatever_their_number():
    for world in (1, 2, 4):
        assert [n for rank in range(world) for n in shard_samples(8, 3, rank, world)] == list(range(24, 32))
    with pytest.raises(ValueError, match="multiple of the 3 processes; got 8"):
        list(shard_samples(8, 0, 0, 3))


def test_canvases_always_leave_something_to_dream_and_show_every_painting():
    seen = {"blank": 0, "prefix": 0, "image": 0, "soft": 0, "region": 0}
    for number in range(2000):
        level = draw_denoise_mask(np.random.default_rng(number), (5, 8, 8), (1, 2, 2))
        assert level.shape == (5, 8, 8) and level.max() == 1 and level.min() >= 0
        flat = level.reshape(5, -1)
        seen["blank"] += bool((level == 1).all())
        seen["image"] += bool((flat[0] == 0).all() and (flat[1:] == 1).all())
        seen["soft"] += bool(((level > 0) & (level < 1)).any())
        seen["region"] += bool((flat.min(1) != flat.max(1)).any())
        patches = level.reshape(5, 4, 2, 4, 2)
        assert (patches == patches[:, :, :1, :, :1]).all()  # no token is partly kept
    assert 0.75 < seen["blank"] / 2000 < 0.85
    assert min(count for name, count in seen.items() if name != "prefix") > 30
