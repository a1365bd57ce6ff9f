"""Training a DiT with a text encoder of its own, a camera input and bf16 weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from captioning.prompt_encoder import PromptEncoder
from dit.model import DiT, DiTConfig
from dit.pipeline import Pipeline
from dit.request import Request
from training.config import DiTRun, WorldRun
from training.cost import describe_cost
from training.dataset import make_world
from training.loop import TrainingStopped
from training.train_dit import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(world, parts, tmp_path_factory) -> DiTRun:
    folder = tmp_path_factory.mktemp("edition-2")
    for split in ("train", "test"):
        make_world(WorldRun(folder=folder / split, split=split, clips=(6,), workers=1, edition=2))
    return DiTRun(
        data=folder / "train",
        held_out=folder / "test",
        out=folder / "dit",
        vae=world / "vae" / "vae",
        prompt_encoder_layers=1,
        prompt_encoder_width=32,
        vocab_size=300,
        camera_ratio=0.5,
        depth=2,
        formats=((64, 64, 17), (64, 64, 1)),
        batch_sizes=(4, 2),
        horizontal_flip=True,
        high_noise_ratio=0.4,
        pure_noise_ratio=0.1,
        precision="bf16-weights",
        steps=6,
        warmup_steps=1,
        decay_steps=2,
        validate_every=3,
        sample_every=100,
        validation_clips=4,
        sensitivity_clips=4,
    )


@pytest.fixture(scope="module")
def report(run):
    return train(run)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    pipeline = Pipeline.from_pretrained(folder)
    named = {"dit": pipeline.transformer, "text": pipeline.text_encoder}
    return {f"{part}.{name}": value for part, module in named.items() for name, value in module.state_dict().items()}


def test_the_model_that_is_written_has_its_own_text_encoder_and_generates(run, report):
    pipeline = Pipeline.from_pretrained(run.out / "model")
    assert isinstance(pipeline.text_encoder, PromptEncoder) and pipeline.transformer.dit_config.camera
    (sample,) = pipeline.generate([Request(prompt="a red ball bounces", steps=2)])
    assert sample.latents.isfinite().all()
    assert {"validation", "sensitivity_ground_1", "sensitivity_camera_0.8"} <= report.keys()


def test_text_encoder_transformer_and_camera_input_all_learn(run, report):
    model = Pipeline.from_pretrained(run.out / "model")
    assert model.transformer.camera_in.weight.any()  # it begins at zero
    assert model.text_encoder.blocks[0].attn_out.weight.any()
    assert model.text_encoder.camera_head[-1].bias.any()


def test_resuming_gives_the_same_weights_as_not_stopping(run, report, tmp_path, monkeypatch):
    from training import loop

    stopped = replace(run, out=tmp_path / "dit")
    step = loop.TrainLoop.record

    def stop_after_three(self, number, *values, **named):
        step(self, number, *values, **named)
        self.stop_requested = number == 2

    monkeypatch.setattr(loop.TrainLoop, "record", stop_after_three)
    with pytest.raises(TrainingStopped):
        train(stopped)
    monkeypatch.setattr(loop.TrainLoop, "record", step)
    train(stopped)
    once, twice = weights_of(run.out / "model"), weights_of(stopped.out / "model")
    assert once.keys() == twice.keys() and all(torch.equal(once[name], twice[name]) for name in once)


def test_a_continued_transformer_keeps_the_text_encoder_it_was_trained_with(run, report, world, tmp_path):
    model = run.out / "model"
    more = replace(run, out=tmp_path / "more", init_from=model / "transformer", text_encoder=model, steps=1, lr=0.0)
    train(more)
    before, after = weights_of(model), weights_of(more.out / "model")
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(ValueError, match="needs the text encoder that was trained with that transformer"):
        train(replace(more, out=tmp_path / "other", text_encoder=world / "text" / "text"))


def test_the_cost_of_such_a_run_needs_no_text_encoder(run):
    assert "parameters" in describe_cost(replace(run, text_encoder=Path("nowhere")))


def test_a_transformer_of_another_text_encoder_is_continued_with_fresh_text_layers():
    torch.manual_seed(0)
    first = DiT.from_dit_config(DiTConfig.from_depth(2, text_dim=32))
    torch.nn.init.normal_(first.proj_out.weight, std=0.1)
    second = first.with_text_dim(48, camera=True)
    assert second.dit_config.text_dim == 48 and not second.camera_in.weight.any()
    fresh = {
        name
        for name, value in second.state_dict().items()
        if not torch.equal(value, first.state_dict().get(name, value[:0]))
    }
    assert fresh and all("text_" in name or name == "camera_in.weight" for name in fresh)
    assert first.with_text_dim(32) is first
