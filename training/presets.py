"""Presets: named functions that return runs.

"tiny" trains a model from nothing on a laptop in 15 minutes (`make train-tiny`); "first" trained the shipped model.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from training.config import CaptionerRun, DiTRun, JudgeRun, Recipe, TextRun, UpsamplerRun, VAERun, WorldRun

TINY, FIRST = Path("runs/tiny"), Path("runs/first")


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


SECOND = Path("runs/second")
SQUARE_12, LARGE_12 = (64, 64, 33), (128, 128, 33)  # 2.75 seconds at 12 frames per second


def world_second() -> WorldRun:
    return WorldRun(folder=Path("data/second"), formats=(SQUARE_12,), clips=(6_500,), fps=12.0, edition=2)


def world_second_test() -> WorldRun:
    return replace(world_second(), folder=Path("data/second-test"), split="test", clips=(400,))


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


def dit_second() -> DiTRun:
    """From nothing, with a text encoder of its own, and times near pure noise, where ground and light are decided."""
    return DiTRun(
        data=Path("data/second"),
        held_out=Path("data/second-test"),
        out=SECOND / "dit",
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
        steps=40_000,
        lr=4e-3,
        warmup_steps=100,
        decay_steps=8_000,
        ema_decay=0.999,
        precision="bf16-weights",
        validate_every=500,
        sample_every=1_000,
        sensitivity_clips=72,
        checkpoint_minutes=5,
    )


PRESETS = {
    "world": {
        "tiny": world_tiny,
        "tiny-test": world_tiny_test,
        "first": world_first,
        "first-test": world_first_test,
        "first-combinations": world_first_combinations,
        "second": world_second,
        "second-test": world_second_test,
        "second-vae": world_second_vae,
        "second-vae-test": world_second_vae_test,
    },
    "vae": {
        "tiny": vae_tiny,
        "first": vae_first,
        "first-continued": vae_first_continued,
        "first-decoder": vae_first_decoder,
        "second": vae_second,
    },
    "text": {"tiny": text_tiny, "first": text_first},
    "captioner": {"tiny": captioner_tiny, "first": captioner_first},
    "upsampler": {"tiny": upsampler_tiny, "first": upsampler_first},
    "dit": {
        "tiny": dit_tiny,
        "first": dit_first,
        "first-deep": dit_first_deep,
        "first-long": dit_first_long,
        "first-longer": dit_first_longer,
        "second": dit_second,
    },
    "judge": {"first": judge_first},
    "recipe": {"tiny": Recipe, "first": lambda: Recipe("first")},
}
