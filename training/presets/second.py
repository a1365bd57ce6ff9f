"""Presets of the model "second", on edition 2 of the world."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from training.config import CaptionerRun, DiTRun, JudgeRun, TextRun, UpsamplerRun, VAERun, WorldRun

SECOND = Path("runs/second")
SQUARE_12, LARGE_12 = (64, 64, 33), (128, 128, 33)  # 2.75 seconds at 12 frames per second
WIDE_12, TALL_12 = (112, 64, 33), (64, 112, 33)  # the multiples of a token nearest to 16:9 and 9:16


def world_second() -> WorldRun:
    return WorldRun(
        folder=Path("data/second"),
        formats=(SQUARE_12, LARGE_12, WIDE_12, TALL_12),
        clips=(6_500, 900, 700, 700),
        fps=12.0,
        edition=2,
    )


def world_second_test() -> WorldRun:
    return replace(world_second(), folder=Path("data/second-test"), split="test", clips=(400, 60, 60, 60))


def world_second_combinations() -> WorldRun:
    """Pairs of attributes that the models never see; the judge trains on them too."""
    return replace(
        world_second(),
        folder=Path("data/second-combinations"),
        split="combinations",
        formats=(SQUARE_12,),
        clips=(1_500,),
    )


def world_second_vae() -> WorldRun:
    return replace(world_second(), folder=Path("data/second-vae"), formats=(SQUARE_12, LARGE_12), clips=(900, 160))


def world_second_vae_test() -> WorldRun:
    return replace(world_second_vae(), folder=Path("data/second-vae-test"), split="test", clips=(48, 16))


def vae_second() -> VAERun:
    """Continue the shipped VAE of `first`, which shows edition 2 of the world at 30.2 dB, on that edition."""
    return VAERun(
        data=Path("data/second-vae"),
        held_out=Path("data/second-vae-test"),
        out=SECOND / "vae",
        init_from=Path("app/models/first/vae"),
        formats=(SQUARE_12, LARGE_12),
        steps=900,
        lr=1.5e-3,
        warmup_steps=20,
        decay_steps=500,
        adversarial_start=860,
        validate_every=150,
        checkpoint_minutes=5,
    )


def dit_second_words() -> DiTRun:
    """From nothing, for its text encoder: with times near pure noise, where ground, light and camera are decided."""
    return DiTRun(
        data=Path("data/second"),
        held_out=Path("data/second-test"),
        out=SECOND / "words",
        vae=SECOND / "vae" / "vae",
        prompt_encoder_layers=2,
        prompt_encoder_width=192,
        camera_ratio=0.5,
        depth=5,
        formats=(SQUARE_12, (64, 64, 1)),
        batch_sizes=(32, 8),
        fps=12.0,
        horizontal_flip=True,
        base_tokens=144,
        high_noise_ratio=0.4,
        pure_noise_ratio=0.1,
        steps=3_235,
        lr=4e-3,
        warmup_steps=100,
        decay_steps=1,
        ema_decay=0.999,
        precision="bf16-weights",
        validate_every=500,
        sample_every=1_000,
        sensitivity_clips=72,
        checkpoint_minutes=5,
    )


def dit_second_square() -> DiTRun:
    """The transformer of `first`, which draws things, with the text encoder of `second-words`, which reads scenes."""
    return replace(
        dit_second_words(),
        out=SECOND / "square",
        init_from=Path("app/models/first/transformer"),
        text_encoder=SECOND / "words" / "model",
        depth=6,
        saliency_weight=4.0,
        steps=20_000,
    )


def dit_second() -> DiTRun:
    """Continue with frames of all shapes, and with a falling learning rate."""
    return replace(
        dit_second_square(),
        out=SECOND / "dit",
        init_from=SECOND / "square" / "model" / "transformer",
        text_encoder=SECOND / "square" / "model",
        formats=(SQUARE_12, LARGE_12, WIDE_12, TALL_12, (64, 64, 1), (128, 128, 1)),
        batch_sizes=(14, 3, 2, 2, 4, 2),
        steps=6_000,
        decay_steps=3_000,
        sensitivity_clips=48,
    )


def text_second() -> TextRun:
    """The text tower of the captioner; the transformer has an encoder of its own."""
    return TextRun(
        data=Path("data/second"),
        held_out=Path("data/second-test"),
        out=SECOND / "text",
        format=SQUARE_12,
        context_length=192,
        steps=450,
        lr=1.5e-3,
        warmup_steps=40,
        decay_steps=150,
        batch_size=64,
        video_width=128,
        video_layers=3,
        validate_every=75,
        checkpoint_minutes=5,
    )


def captioner_second() -> CaptionerRun:
    return CaptionerRun(
        data=Path("data/second"),
        held_out=Path("data/second-test"),
        out=SECOND / "captioner",
        text_encoder=SECOND / "text" / "text",
        format=SQUARE_12,
        steps=12_000,
        short_caption_steps=1_000,
        object_count_power=1,
        lr=2e-3,
        warmup_steps=100,
        decay_steps=2_500,
        validate_every=500,
        checkpoint_minutes=5,
    )


def upsampler_second() -> UpsamplerRun:
    return UpsamplerRun(
        data=Path("data/second"),
        held_out=Path("data/second-test"),
        out=SECOND / "upsampler",
        format=SQUARE_12,
        steps=9_000,
        lr=2e-3,
        warmup_steps=100,
        decay_steps=3_000,
        validate_every=500,
        checkpoint_minutes=5,
    )


def judge_second() -> JudgeRun:
    """Read everything that a caption of edition 2 can say."""
    return JudgeRun(
        data=Path("data/second"),
        held_out=Path("data/second-test"),
        out=SECOND / "judge",
        vae=SECOND / "vae" / "vae",
        extra_data=Path("data/second-combinations"),
        edition=2,
        format=SQUARE_12,
        frame_stride=2,
        width=64,
        reconstructed_ratio=0.1,
        steps=4_000,
        lr=2e-3,
        batch_size=24,
        warmup_steps=100,
        decay_steps=1_200,
        validate_every=500,
        checkpoint_minutes=5,
    )
