"""Training: exact resuming, intact checkpoints, skipped steps, and data as functions of the sample index."""

import importlib
import json
import re
import signal
from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file
from torch import nn

from dit.pipeline import Pipeline
from dit.request import Request
from training import dataset, train_dit
from training.canvases import draw_denoise_mask
from training.checkpoints import Checkpoints
from training.command import TRAINERS, parse_run
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
from training.loop import (
    RENAMED_FIELDS,
    TrainingStopped,
    TrainLoop,
    build_adamw,
    create_accelerator,
    lr_at,
    optimizer_step,
    write_run_description,
)
from training.presets import PRESETS
from training.train_vae import channel_importance, set_latent_statistics
from training.train_vae import train as train_vae
from vae.model import VideoVAE
from vae.weights import WEIGHTS

SQUARE = (64, 64, 17)


def same_weights(folder, other):
    found, wanted = load_file(folder / WEIGHTS), load_file(other / WEIGHTS)
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_resuming_gives_the_same_weights_as_not_stopping(trained_dit, tmp_path, monkeypatch):
    whole, _ = trained_dit
    broken = replace(whole, out=tmp_path / "broken", checkpoint_minutes=0)
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
    assert same_weights(broken.out / "model" / "transformer", whole.out / "model" / "transformer")


def test_a_run_resumes_only_with_its_own_seed_shape_and_data(vae_run, parts, world):
    before = (vae_run.out / "run.json").read_bytes()
    for other in (replace(vae_run, seed=1), replace(vae_run, widths=(16, 48)), replace(vae_run, data=world / "test")):
        with pytest.raises(ValueError, match="a run must resume as it began"):
            train_vae(other)
    assert (vae_run.out / "run.json").read_bytes() == before


def test_resuming_a_vae_gives_the_same_weights_too(vae_run, parts, tmp_path):
    resumed = replace(vae_run, out=tmp_path / "vae")
    train_vae(replace(resumed, steps=2, decay_steps=0))
    report = train_vae(resumed)
    assert {"psnr", "ssim", "linear_psnr"} <= report["formats"]["64x64x17"].keys()
    assert same_weights(resumed.out / "vae", vae_run.out / "vae")


def test_training_with_a_frozen_encoder_leaves_latents_unchanged(vae_run, parts):
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
    with pytest.raises(ValueError, match="freeze_encoder needs a trained encoder"):
        train_vae(replace(run, init_from=None, out=vae_run.out.parent / "vae-none"))


def test_the_variance_of_a_latent_channel_is_its_importance_in_the_pixels(vae_run):
    bucket = open_bucket(vae_run.data, vae_run.formats[0])
    vae = VideoVAE.from_pretrained(vae_run.out / "vae").eval()
    with torch.no_grad():
        vae.decoder.conv_out.weight.zero_(), vae.decoder.conv_out.bias.zero_()  # only the linear decoder is left
        set_latent_statistics(vae, [bucket])
        clips = bucket.load_clips(range(len(bucket)))
        variance = vae.encode(clips).var((0, 2, 3, 4))
        columns = vae.linear_decoder.weight.square().mean(0)
        raw, _, _ = vae.posterior(clips)
        shown = columns * raw.var((0, 2, 3, 4))
        assert torch.allclose(channel_importance(vae, bucket).mean(), torch.tensor(1.0))
    assert torch.allclose(variance, shown / shown.mean(), rtol=0.1)
    assert variance.max() > 5 * variance.min()


def test_a_trained_model_folder_makes_clips(trained_dit):
    run, report = trained_dit
    assert {"validation", "validation_t0", "validation_t7"} <= report.keys()
    pipeline = Pipeline.from_pretrained(run.out / "model")
    (sample,) = pipeline.generate([Request(prompt="a red ball", steps=1)])
    assert pipeline.pixels(sample).shape == (3, 17, 64, 64)
    assert (run.out / "sample-000006.png").stat().st_size > 1000
    description = json.loads((run.out / "run.json").read_text())
    assert description["config"]["steps"] == 6 and description["data"] and description["parameters"] > 0
    assert list((run.out / "log").rglob("events*"))


class Toy:
    """A linear layer with an optimizer in a TrainLoop, driven as every trainer drives its model."""

    def __init__(self, run):
        self.run, self.accelerator = run, create_accelerator(run)
        torch.manual_seed(0)
        self.model = nn.Linear(2, 1)
        self.optimizer = build_adamw(self.model, run)
        self.loop = TrainLoop("toy", run, self.accelerator, {"model": self.model, "optimizer": self.optimizer})

    def train(self, non_finite=(), stop_at=None):
        for step in self.loop:
            x = torch.tensor([[float(step), 1.0]])
            loss = (self.model(x) - 1).square().sum() * (float("nan") if step in non_finite else 1)
            norm = optimizer_step(self.accelerator, self.model, self.optimizer, loss, lr_at(step, self.run), 1.0)
            self.loop.record(step, norm, loss=loss)
            if step == stop_at:
                signal.raise_signal(signal.SIGTERM)
        return self.model.weight.detach().clone()


@pytest.fixture
def toy_run(tmp_path):
    return DiTRun(out=tmp_path / "toy", steps=60, warmup_steps=2, decay_steps=5, checkpoint_minutes=1e9)


def test_a_run_that_is_asked_to_stop_writes_a_checkpoint_and_resumes_from_it(toy_run, tmp_path):
    with pytest.raises(TrainingStopped, match="stopped at step 8 of 60"):
        Toy(toy_run).train(stop_at=7)
    again = Toy(toy_run)
    assert again.loop.start == 8
    assert torch.equal(again.train(), Toy(replace(toy_run, out=tmp_path / "other")).train())


def test_a_non_finite_step_changes_nothing_and_is_counted(toy_run):
    toy = Toy(toy_run)
    before = {}
    for step in toy.loop:
        loss = toy.model(torch.ones(1, 2)).sum() * (float("inf") if step == 3 else 1)
        before[step] = toy.model.weight.detach().clone()
        toy.loop.record(step, optimizer_step(toy.accelerator, toy.model, toy.optimizer, loss, 1e-2, 1.0))
        assert torch.equal(toy.model.weight, before[step]) == (step == 3)
    assert toy.loop.skipped == 1


def test_a_run_of_non_finite_steps_gives_up(toy_run):
    with pytest.raises(FloatingPointError, match="50 steps in a row were not finite"):
        Toy(toy_run).train(non_finite=range(100))


def test_the_learning_rate_warms_up_stays_and_decays_to_zero(toy_run):
    relative = [lr_at(step, toy_run) / toy_run.lr for step in range(61)]
    assert relative[0] == 0.5 and relative[1:55] == [1.0] * 54
    assert relative[60] == 0 and all(a > b for a, b in pairwise(relative[55:]))


def test_a_damaged_checkpoint_is_skipped(tmp_path, capsys):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2):
        checkpoints.save(step, {"model": {"w": torch.full((3,), float(step))}}, {})
    path = tmp_path / "step-00000002" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    notes, tensors = checkpoints.load_latest()
    assert notes["step"] == 1 and tensors["model"]["w"][0] == 1
    assert "is damaged" in capsys.readouterr().err


def test_old_checkpoints_are_removed_only_after_the_new_one_reads_back(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, {"model": {"w": torch.ones(3)}}, {})
    monkeypatch.setattr(Checkpoints, "is_intact", lambda self, checkpoint: False)
    with pytest.raises(OSError, match="must read back as it was written"):
        checkpoints.save(2, {"model": {"w": torch.ones(3)}}, {})
    monkeypatch.undo()
    assert [path.name for path in checkpoints.paths()] == ["step-00000001"]
    checkpoints.save(3, {"model": {"w": torch.ones(3)}}, {})
    assert [path.name for path in checkpoints.paths()] == ["step-00000003"]


def test_an_interrupted_world_resumes_to_the_same_clips(world, tmp_path, monkeypatch):
    run = WorldRun(folder=tmp_path / "data", clips=(6,), workers=1)
    monkeypatch.setattr(dataset, "FLUSH_EVERY", 2)
    real = dataset.write_caption

    def die(scene, *args, **kwargs):
        if scene.index == 3:
            raise KeyboardInterrupt
        return real(scene, *args, **kwargs)

    monkeypatch.setattr(dataset, "write_caption", die)
    with pytest.raises(KeyboardInterrupt):
        make_world(run)
    with pytest.raises(DataError, match="has 2 of 6"):
        len(open_bucket(run.folder, SQUARE))
    monkeypatch.setattr(dataset, "write_caption", real)
    make_world(run)
    a, b = open_bucket(run.folder, SQUARE), open_bucket(world / "train", SQUARE)
    assert np.array_equal(a.pixels, b.pixels) and a.captions == b.captions


def test_a_dataset_of_other_clips_is_not_overwritten(world):
    with pytest.raises(DataError, match="holds other clips"):
        make_world(WorldRun(folder=world / "train", seed=1, clips=(6,), workers=1))


def test_a_missing_dataset_is_named(tmp_path):
    with pytest.raises(DataError, match="has none, so render them: longtake world"):
        len(open_bucket(tmp_path, SQUARE))


def test_latents_are_encoded_once_per_vae(world):
    bucket = open_bucket(world / "train", SQUARE)
    calls = []

    def encode(clips):
        calls.append(len(clips))
        return clips[:, :, ::4, ::8, ::8]

    first = np.array(encode_latents(bucket, encode, "aaaa", image=False, batch_size=4))
    assert calls == [4, 2] and first.shape == (6, 3, 5, 8, 8)
    encode_latents(bucket, encode, "aaaa", image=False)
    assert calls == [4, 2]
    encode_latents(bucket, encode, "bbbb", image=True)
    assert calls == [4, 2, 6] and bucket.load_latents("bbbb", True).shape == (6, 3, 1, 8, 8)


def test_the_sample_order_is_a_shuffle_per_epoch_and_a_function_of_the_index():
    clip_of = sample_order(0, "x", 10)
    epochs = [[clip_of(n) for n in range(start, start + 10)] for start in (0, 10)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10)) and epochs[0] != epochs[1]
    assert sample_order(0, "x", 10)(17) == epochs[1][7]
    assert [sample_order(1, "x", 10)(n) for n in range(10)] != epochs[0]


def test_clips_of_more_objects_occur_more_often_with_an_object_count_power(world):
    bucket = open_bucket(world / "train", SQUARE)
    counts = [len(bucket.scene(clip).things) for clip in range(len(bucket))]
    assert len(set(counts)) > 1
    for power in (0, 1, 2):
        clip_of, repeats = weighted_sample_order(bucket, 0, "x", power), [n**power for n in counts]
        epochs = [[clip_of(n) for n in range(start, start + sum(repeats))] for start in (0, sum(repeats))]
        assert [epochs[0].count(clip) for clip in range(len(bucket))] == repeats
        assert sorted(epochs[0]) == sorted(epochs[1]) and epochs[0] != epochs[1]


def test_any_number_of_processes_shards_a_step_without_gaps():
    for size in (1, 2, 4):
        assert [n for rank in range(size) for n in shard_samples(8, 3, rank, size)] == list(range(24, 32))
    with pytest.raises(ValueError, match="multiple of the 3 processes; got 8"):
        list(shard_samples(8, 0, 0, 3))


def test_denoise_masks_always_denoise_something_and_are_of_every_kind():
    counts = {"full": 0, "prefix": 0, "image": 0, "soft": 0, "region": 0}
    for seed in range(2000):
        mask = draw_denoise_mask(np.random.default_rng(seed), (5, 8, 8), (1, 2, 2))
        assert mask.shape == (5, 8, 8) and mask.max() == 1 and mask.min() >= 0
        frames = mask.reshape(5, -1)
        counts["full"] += bool((mask == 1).all())
        counts["image"] += bool((frames[0] == 0).all() and (frames[1:] == 1).all())
        counts["soft"] += bool(((mask > 0) & (mask < 1)).any())
        counts["region"] += bool((frames.min(1) != frames.max(1)).any())
        patches = mask.reshape(5, 4, 2, 4, 2)
        assert (patches == patches[:, :, :1, :, :1]).all()  # no token is partly kept
    assert 0.75 < counts["full"] / 2000 < 0.85
    assert min(count for name, count in counts.items() if name != "prefix") > 30


def test_help_explains_every_field_of_every_run(capsys):
    for kind, presets in PRESETS.items():
        with pytest.raises(SystemExit):
            parse_run(kind, ["--help"])
        text = " ".join(re.sub("[│╭╰─╮╯]", " ", capsys.readouterr().out).split())
        for field in fields(next(iter(presets.values()))()):
            option = re.search(rf"--{field.name.replace('_', '-')}\b(?!-)(.*?)\(default:", text)
            assert option, (kind, field.name)
            words = [word for word in option[1].split() if re.fullmatch(r"[a-z][\w'-]+[,;:.]?", word)]
            assert len(words) > 1, (kind, field.name)  # beyond the metavar, which is in capitals or brackets


def test_every_kind_of_preset_has_a_trainer():
    assert PRESETS.keys() == TRAINERS.keys()
    for module, function in TRAINERS.values():
        assert callable(getattr(importlib.import_module(module), function))


def test_a_run_of_version_0_1_resumes(toy_run):
    """Its run.json has the old field names, its checkpoint the old name of the averaged weights."""
    accelerator = create_accelerator(toy_run)
    model = nn.Linear(2, 1)
    ema = EMAModel(model.parameters())
    write_run_description(toy_run, accelerator)
    TrainLoop("toy", toy_run, accelerator, {"model": model, "ema": ema}).save(7)
    path = toy_run.out / "run.json"
    description = json.loads(path.read_text())
    old_names = {new: old for old, new in RENAMED_FIELDS.items()}
    assert description["config"].keys() & old_names.keys() >= {"lr", "batch_sizes", "text_encoder", "init_from"}
    description["config"] = {old_names.get(name, name): value for name, value in description["config"].items()}
    path.write_text(json.dumps(description))
    (checkpoint,) = (toy_run.out / "checkpoints").iterdir()
    (checkpoint / "ema.safetensors").rename(checkpoint / "average.safetensors")
    state = json.loads((checkpoint / "state.json").read_text())
    state["sha256"]["average"] = state["sha256"].pop("ema")
    (checkpoint / "state.json").write_text(json.dumps(state))

    write_run_description(toy_run, accelerator)
    fresh = nn.Linear(2, 1)
    averaged = EMAModel(fresh.parameters())
    assert TrainLoop("toy", toy_run, accelerator, {"model": fresh, "ema": averaged}).start == 7
    assert torch.equal(averaged.shadow_params[0], ema.shadow_params[0]) and torch.equal(fresh.weight, model.weight)
    path.write_text(json.dumps(description))
    with pytest.raises(ValueError, match=r"checkpoints with caption_dropout 0\.1, got 0\.2"):
        write_run_description(replace(toy_run, caption_dropout=0.2), accelerator)
