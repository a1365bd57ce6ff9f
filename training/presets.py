"""Named runs: functions that return configs. A ladder of sizes, the same code.

"tiny" makes a model from nothing on a laptop in a quarter of an hour (`make train-tiny`); "first" made the model that
is shipped.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from training.config import CaptionerRun, DiTRun, JudgeRun, Recipe, Run, TextRun, UpsamplerRun, VAERun, WorldRun

TINY, FIRST = Path("runs/tiny"), Path("runs/first")


def world_tiny() -> WorldRun:
    return WorldRun(folder=Path("data/tiny"), clips=(800,))


def world_tiny_test() -> WorldRun:
    return replace(world_tiny(), folder=Path("data/tiny-test"), split="test", clips=(64,))


def vae_tiny() -> VAERun:
    return VAERun(
        out=TINY / "vae",
        steps=300,
        rate=2e-3,
        warmup_steps=30,
        decay_steps=120,
        adversarial_from=280,
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
        batch=32,
        video_width=128,
        video_layers=3,
        validate_every=50,
    )


def captioner_tiny() -> CaptionerRun:
    return CaptionerRun(
        out=TINY / "captioner",
        text=TINY / "text" / "text",
        steps=300,
        short_steps=60,
        rate=2e-3,
        warmup_steps=20,
        decay_steps=100,
        watcher_width=24,
        watcher_layers=1,
        decoder_layers=2,
        queries=16,
        validate_every=100,
        validation_clips=32,
    )


def upsampler_tiny() -> UpsamplerRun:
    return UpsamplerRun(
        out=TINY / "upsampler",
        steps=200,
        rate=2e-3,
        warmup_steps=20,
        decay_steps=80,
        width=128,
        heads=4,
        layers=2,
        batch=16,
        validate_every=100,
        prompts=10,
    )


def dit_tiny() -> DiTRun:
    return DiTRun(
        out=TINY / "dit",
        vae=TINY / "vae" / "vae",
        text=TINY / "text" / "text",
        depth=4,
        steps=400,
        rate=2e-3,
        warmup_steps=40,
        decay_steps=160,
        ema_decay=0.99,
        validate_every=200,
        show_every=400,
    )


WIDE, TALL = (80, 48, 17), (48, 80, 17)
SQUARE, LONG, LONGER, LARGE = (64, 64, 17), (64, 64, 33), (64, 64, 65), (128, 128, 17)
STILL, LARGE_STILL = (64, 64, 1), (128, 128, 1)


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
        rate=2e-3,
        warmup_steps=50,
        decay_steps=300,
        adversarial_from=720,
        validate_every=200,
    )


def vae_first_on() -> VAERun:
    """Go on from `vae_first`, which AdamW took to 31.8 dB."""
    return replace(
        vae_first(),
        optimizer="muon",
        start=FIRST / "vae" / "vae",
        out=FIRST / "vae-on",
        steps=1_100,
        rate=1.5e-3,
        warmup_steps=20,
        decay_steps=550,
        adversarial_from=1_050,
    )


def vae_first_decoder() -> VAERun:
    """Go on with the decoder alone, beside the DiT, which needs only the encoder."""
    return replace(
        vae_first_on(),
        start=FIRST / "vae-on" / "vae",
        decoder_only=True,
        out=FIRST / "vae-decoder",
        steps=850,
        rate=1e-3,
        decay_steps=350,
        adversarial_from=830,
    )


def text_first() -> TextRun:
    return TextRun(
        data=Path("data/first"),
        held_out=Path("data/first-test"),
        out=FIRST / "text",
        steps=450,
        rate=1.5e-3,
        warmup_steps=40,
        decay_steps=150,
        batch=64,
        video_width=128,
        video_layers=3,
        validate_every=75,
    )


def captioner_first() -> CaptionerRun:
    return CaptionerRun(
        data=Path("data/first"),
        held_out=Path("data/first-test"),
        out=FIRST / "captioner",
        text=FIRST / "text" / "text",
        steps=12_000,
        short_steps=1_000,
        crowds=2,
        rate=2e-3,
        warmup_steps=100,
        decay_steps=2_500,
        validate_every=500,
        save_minutes=5,
    )


def upsampler_first() -> UpsamplerRun:
    return UpsamplerRun(
        data=Path("data/first"),
        held_out=Path("data/first-test"),
        out=FIRST / "upsampler",
        steps=9_000,
        rate=2e-3,
        warmup_steps=100,
        decay_steps=3_000,
        validate_every=500,
        save_minutes=5,
    )


def dit_first() -> DiTRun:
    return DiTRun(
        data=Path("data/first"),
        held_out=Path("data/first-test"),
        out=FIRST / "dit",
        vae=FIRST / "vae-decoder" / "vae",
        text=FIRST / "text" / "text",
        depth=4,
        steps=21_950,
        rate=5e-3,
        ema_decay=0.998,
        emphasis=4.0,
        shift=2.0,
        guidance=5.0,
        warmup_steps=100,
        decay_steps=3_000,
        formats=(SQUARE, WIDE, TALL, LONG, LARGE, STILL, LARGE_STILL),
        clips=(30, 2, 2, 2, 2, 24, 2),
        validate_every=250,
        show_every=1_000,
        save_minutes=5,
    )


def dit_first_deep() -> DiTRun:
    """Go on from `dit_first` with half as many blocks again, and see clips in a mirror too."""
    return replace(
        dit_first(),
        start=FIRST / "dit" / "model" / "transformer",
        out=FIRST / "dit-deep",
        depth=6,
        mirror=True,
        steps=3_100,
        decay_steps=1_900,
    )


def dit_first_long() -> DiTRun:
    """Go on from `dit_first_deep`, and see what stands far behind a clip's first picture, as in long ones."""
    return replace(
        dit_first(),
        start=FIRST / "dit-deep" / "model" / "transformer",
        back=0.5,
        out=FIRST / "dit-long",
        depth=6,
        formats=(SQUARE, WIDE, TALL, LONG, LONGER, LARGE, STILL, LARGE_STILL),
        clips=(20, 2, 2, 2, 8, 2, 12, 2),
        window=LONG[2],
        rate=2.5e-3,
        steps=900,
        warmup_steps=30,
        decay_steps=600,
        ema_decay=0.99,
    )


def dit_first_longer() -> DiTRun:
    """Go on from `dit_first_long` in the same way, for longer, and keep more of it."""
    return replace(
        dit_first_long(),
        start=FIRST / "dit-long" / "model" / "transformer",
        out=FIRST / "dit-longer",
        back=0.25,
        steps=1_500,
        decay_steps=800,
    )


def dit_probe() -> DiTRun:
    """Return a short run between the shipped model's VAE and text tower, for experiments to change in what they
    compare.
    """
    shipped = Path("app/models/first")
    return DiTRun(
        vae=shipped / "vae",
        text=shipped,
        depth=4,
        steps=800,
        rate=5e-3,
        warmup_steps=50,
        decay_steps=300,
        ema_decay=0.99,
        guidance=5.0,
        shift=2.0,
        formats=(SQUARE,),
        clips=(24,),
    )


def judge_first() -> JudgeRun:
    return JudgeRun(
        data=Path("data/first"),
        held_out=Path("data/first-test"),
        out=FIRST / "judge",
        coder=FIRST / "vae-decoder" / "vae",
        steps=6_500,
        rate=2e-3,
        batch=16,
        warmup_steps=100,
        decay_steps=600,
        validate_every=300,
    )


PRESETS = {
    "world": {
        "tiny": world_tiny,
        "tiny-test": world_tiny_test,
        "first": world_first,
        "first-test": world_first_test,
        "first-combinations": world_first_combinations,
    },
    "vae": {"tiny": vae_tiny, "first": vae_first, "first-on": vae_first_on, "first-decoder": vae_first_decoder},
    "text": {"tiny": text_tiny, "first": text_first},
    "captioner": {"tiny": captioner_tiny, "first": captioner_first},
    "upsampler": {"tiny": upsampler_tiny, "first": upsampler_first},
    "dit": {
        "tiny": dit_tiny,
        "first": dit_first,
        "first-deep": dit_first_deep,
        "first-long": dit_first_long,
        "first-longer": dit_first_longer,
    },
    "judge": {"first": judge_first},
    "recipe": {"tiny": Recipe, "first": lambda: Recipe("first")},
}


def run_of(kind: str, args: list[str] | None = None) -> Run | WorldRun:
    """Read a run from command-line words: `--preset NAME`, then any field of it, such as `--steps 100`.

    `--dry-run` prints the resolved config and what it will cost, and exits.
    """
    import argparse

    import tyro

    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--preset", default=next(iter(PRESETS[kind])), choices=sorted(PRESETS[kind]))
    first.add_argument("--dry-run", action="store_true")
    known, others = first.parse_known_args(args)
    preset = PRESETS[kind][known.preset]()
    command = "longtake world" if kind == "world" else f"longtake train {kind}"
    names = ", ".join(sorted(PRESETS[kind]))
    run = tyro.cli(
        type(preset),
        default=preset,
        args=others,
        prog=f"{command} --preset {known.preset}",
        description=f"--preset NAME chooses what to start from ({names}).\n\n"
        "The flags below change it. --dry-run prints the run and what it will cost, and stops.",
    )
    if known.dry_run:
        from training.cost import describe_cost

        print(describe_cost(run))
        raise SystemExit(0)
    return run
