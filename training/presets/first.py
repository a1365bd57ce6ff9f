"""Presets of the model "first", and the baseline of experiments on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from training.config import CaptionerRun, DiTRun, JudgeRun, TextRun, UpsamplerRun, VAERun, WorldRun

FIRST = Path("runs/first")
WIDE, TALL = (80, 48, 17), (48, 80, 17)
SQUARE, LONG, LONGER, LARGE = (64, 64, 17), (64, 64, 33), (64, 64, 65), (128, 128, 17)
IMAGE, LARGE_IMAGE = (64, 64, 1), (128, 128, 1)


def world_first() -> WorldRun:
    return WorldRun(
        folder=Path("data/first"),
        formats=(SQUARE, WIDE, TALL, LONG, LONGER, LARGE),
        clips=(27_000, 1_500, 1_500, 1_000, 1_600, 500),
    )


def world_first_test() -> WorldRun:
    return replace(world_first(), folder=Path("data/first-test"), split="test", clips=(2_000, 64, 64, 64, 64, 64))


def world_first_combinations() -> WorldRun:
    return WorldRun(folder=Path("data/first-combinations"), split="combinations", clips=(4_000,))


def vae_first() -> VAERun:
    return VAERun(
        data=Path("data/first"),
        held_out=Path("data/first-test"),
        out=FIRST / "vae",
        optimizer="adamw",
        formats=(SQUARE, WIDE, TALL, LARGE),
        steps=800,
        lr=2e-3,
        warmup_steps=50,
        decay_steps=300,
        adversarial_start=720,
        validate_every=200,
    )


def vae_first_continued() -> VAERun:
    """Continue `vae_first`, which reached 31.8 dB with AdamW, with Muon."""
    return replace(
        vae_first(),
        optimizer="muon",
        init_from=FIRST / "vae" / "vae",
        out=FIRST / "vae-continued",
        steps=1_100,
        lr=1.5e-3,
        warmup_steps=20,
        decay_steps=550,
        adversarial_start=1_050,
    )


def vae_first_decoder() -> VAERun:
    """Continue with the decoder only, while the DiT, which needs only the encoder, is being trained."""
    return replace(
        vae_first_continued(),
        init_from=FIRST / "vae-continued" / "vae",
        freeze_encoder=True,
        out=FIRST / "vae-decoder",
        steps=850,
        lr=1e-3,
        decay_steps=350,
        adversarial_start=830,
    )


def text_first() -> TextRun:
    return TextRun(
        data=Path("data/first"),
        held_out=Path("data/first-test"),
        out=FIRST / "text",
        steps=450,
        lr=1.5e-3,
        warmup_steps=40,
        decay_steps=150,
        batch_size=64,
        video_width=128,
        video_layers=3,
        validate_every=75,
    )


def captioner_first() -> CaptionerRun:
    return CaptionerRun(
        data=Path("data/first"),
        held_out=Path("data/first-test"),
        out=FIRST / "captioner",
        text_encoder=FIRST / "text" / "text",
        steps=12_000,
        short_caption_steps=1_000,
        object_count_power=2,
        lr=2e-3,
        warmup_steps=100,
        decay_steps=2_500,
        validate_every=500,
        checkpoint_minutes=5,
    )


def upsampler_first() -> UpsamplerRun:
    return UpsamplerRun(
        data=Path("data/first"),
        held_out=Path("data/first-test"),
        out=FIRST / "upsampler",
        steps=9_000,
        lr=2e-3,
        warmup_steps=100,
        decay_steps=3_000,
        validate_every=500,
        checkpoint_minutes=5,
    )


def dit_first() -> DiTRun:
    return DiTRun(
        data=Path("data/first"),
        held_out=Path("data/first-test"),
        out=FIRST / "dit",
        vae=FIRST / "vae-decoder" / "vae",
        text_encoder=FIRST / "text" / "text",
        depth=4,
        steps=21_950,
        lr=5e-3,
        ema_decay=0.998,
        saliency_weight=4.0,
        sample_shift=2.0,
        guidance=5.0,
        warmup_steps=100,
        decay_steps=3_000,
        formats=(SQUARE, WIDE, TALL, LONG, LARGE, IMAGE, LARGE_IMAGE),
        batch_sizes=(30, 2, 2, 2, 2, 24, 2),
        validate_every=250,
        sample_every=1_000,
        checkpoint_minutes=5,
    )


def dit_first_deep() -> DiTRun:
    """Continue `dit_first` with six blocks instead of four, and with horizontal flips."""
    return replace(
        dit_first(),
        init_from=FIRST / "dit" / "model" / "transformer",
        out=FIRST / "dit-deep",
        depth=6,
        horizontal_flip=True,
        steps=3_100,
        decay_steps=1_900,
    )


def dit_first_long() -> DiTRun:
    """Continue `dit_first_deep` on windows of long clips, which start far from the first frame."""
    return replace(
        dit_first(),
        init_from=FIRST / "dit-deep" / "model" / "transformer",
        interpolate_back=0.5,
        out=FIRST / "dit-long",
        depth=6,
        formats=(SQUARE, WIDE, TALL, LONG, LONGER, LARGE, IMAGE, LARGE_IMAGE),
        batch_sizes=(20, 2, 2, 2, 8, 2, 12, 2),
        window_frames=LONG[2],
        lr=2.5e-3,
        steps=900,
        warmup_steps=30,
        decay_steps=600,
        ema_decay=0.99,
    )


def dit_first_longer() -> DiTRun:
    """Continue `dit_first_long` on the same data for longer, and keep more of the new weights."""
    return replace(
        dit_first_long(),
        init_from=FIRST / "dit-long" / "model" / "transformer",
        out=FIRST / "dit-longer",
        interpolate_back=0.25,
        steps=1_500,
        decay_steps=800,
    )


def dit_ablation() -> DiTRun:
    """Return a short run on the shipped model's VAE and text tower, the baseline that experiments vary."""
    shipped = Path("app/models/first")
    return DiTRun(
        vae=shipped / "vae",
        text_encoder=shipped,
        depth=4,
        steps=800,
        lr=5e-3,
        warmup_steps=50,
        decay_steps=300,
        ema_decay=0.99,
        guidance=5.0,
        sample_shift=2.0,
        formats=(SQUARE,),
        batch_sizes=(24,),
    )


def judge_first() -> JudgeRun:
    return JudgeRun(
        data=Path("data/first"),
        held_out=Path("data/first-test"),
        out=FIRST / "judge",
        vae=FIRST / "vae-decoder" / "vae",
        steps=6_500,
        lr=2e-3,
        batch_size=16,
        warmup_steps=100,
        decay_steps=600,
        validate_every=300,
    )
