"""Presets of the model "tiny": trained from nothing on a laptop in 15 minutes (`make train-tiny`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from training.config import CaptionerRun, DiTRun, TextRun, UpsamplerRun, VAERun, WorldRun

TINY = Path("runs/tiny")


def world_tiny() -> WorldRun:
    return WorldRun(folder=Path("data/tiny"), clips=(800,))


def world_tiny_test() -> WorldRun:
    return replace(world_tiny(), folder=Path("data/tiny-test"), split="test", clips=(64,))


def vae_tiny() -> VAERun:
    return VAERun(
        out=TINY / "vae",
        steps=300,
        lr=2e-3,
        warmup_steps=30,
        decay_steps=120,
        adversarial_start=280,
        ema_decay=0.99,
        widths=(64, 128),
        encoder_blocks=(1, 1),
        decoder_blocks=(1, 2),
        frames=5,
        validate_every=150,
    )


def text_tiny() -> TextRun:
    return TextRun(
        out=TINY / "text",
        steps=100,
        warmup_steps=20,
        decay_steps=40,
        batch_size=32,
        video_width=128,
        video_layers=3,
        validate_every=50,
    )


def captioner_tiny() -> CaptionerRun:
    return CaptionerRun(
        out=TINY / "captioner",
        text_encoder=TINY / "text" / "text",
        steps=300,
        short_caption_steps=60,
        lr=2e-3,
        warmup_steps=20,
        decay_steps=100,
        video_width=24,
        video_layers=1,
        decoder_layers=2,
        queries=16,
        validate_every=100,
        validation_clips=32,
    )


def upsampler_tiny() -> UpsamplerRun:
    return UpsamplerRun(
        out=TINY / "upsampler",
        steps=200,
        lr=2e-3,
        warmup_steps=20,
        decay_steps=80,
        width=128,
        heads=4,
        layers=2,
        batch_size=16,
        validate_every=100,
        evaluation_prompts=10,
    )


def dit_tiny() -> DiTRun:
    return DiTRun(
        out=TINY / "dit",
        vae=TINY / "vae" / "vae",
        text_encoder=TINY / "text" / "text",
        depth=4,
        steps=400,
        lr=2e-3,
        warmup_steps=40,
        decay_steps=160,
        ema_decay=0.99,
        validate_every=200,
        sample_every=400,
    )
