"""What a run is: flat frozen dataclasses. `presets.py` has functions that return them; the command line overrides
fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Format = tuple[int, int, int]  # columns, rows, frames


@dataclass(frozen=True)
class WorldRun:
    """A data set of world clips. `formats[i]` is (columns, rows, frames) and `clips[i]` how many clips of it there
    are.
    """

    folder: Path = Path("data/tiny")
    seed: int = 0
    split: str = "train"
    formats: tuple[Format, ...] = ((64, 64, 17),)
    clips: tuple[int, ...] = (400,)
    fps: float = 8.0
    workers: int = 2


@dataclass(frozen=True)
class Run:
    """What all trainers share.

    The rate rises over `warmup_steps`, stays, and falls to zero over the last `decay_steps`. `precision` is "auto"
    (bf16 where the processor or GPU has arithmetic for it), "no" or "bf16". Checkpoints are written every
    `save_minutes` and at the end.
    """

    data: Path = Path("data/tiny")
    held_out: Path = Path("data/tiny-test")
    out: Path = Path("runs/tiny")
    seed: int = 0
    steps: int = 1000
    rate: float = 1e-3
    warmup_steps: int = 100
    decay_steps: int = 300
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    precision: str = "auto"
    save_minutes: float = 10.0
    keep_checkpoints: int = 2
    validate_every: int = 500
    show_every: int = 1000


@dataclass(frozen=True)
class VAERun(Run):
    """A spacetime VAE. A step sees `batch` clips, all of one of the `formats`, which is drawn by its share of the data.

    With `start`, the folder of a trained VAE of the same shape, that one is trained further; with `decoder_only` as
    well, its encoder and the statistics of its latents stay, and with them all latents that were coded and every model
    that was trained on them.

    The loss is L1 + `perceptual_weight` * (1 - multi-scale SSIM) + `kl_weight` * KL + an adversarial term of
    `adversarial_weight` times the reconstruction's gradient, from step `adversarial_from` on.
    """

    optimizer: Literal["muon", "adamw"] = "muon"
    start: Path | None = None
    decoder_only: bool = False
    formats: tuple[Format, ...] = ((64, 64, 17),)
    channels: int = 16
    patch: tuple[int, int, int] = (4, 4, 4)
    widths: tuple[int, ...] = (80, 160)
    downs: tuple[tuple[int, int, int], ...] = ((1, 2, 2),)
    encoder_blocks: tuple[int, ...] = (1, 2)
    decoder_blocks: tuple[int, ...] = (2, 3)
    batch: int = 8
    frames: int = 9  # a random stretch of each clip, or one frame in `image_share` of the steps
    image_share: float = 0.1
    kl_weight: float = 1e-5
    perceptual_weight: float = 0.1
    adversarial_weight: float = 0.05
    adversarial_from: int = 800
    adversarial_rate: float = 4e-4
    discriminator_width: int = 48


@dataclass(frozen=True)
class TextRun(Run):
    """A text tower, trained contrastively against a video tower on `batch` clips and captions a step."""

    vocabulary: int = 2048
    context: int = 128
    width: int = 128
    heads: int = 4
    layers: int = 4
    video_width: int = 192
    video_layers: int = 4
    batch: int = 128


@dataclass(frozen=True)
class CaptionerRun(Run):
    """A captioner around the text tower in `text`, trained on `batch` clips a step: for `short_steps` on labels and
    single sentences, then on dense captions. `still_share` of the clips are one frame of theirs. A word's loss counts
    for `caption_weight`, and the mean of those that tell the scene for `emphasis` besides. A clip of n things
    is drawn n to the power of `crowds` times as often as a clip of one.

    With `start`, "ARCHITECTURE:WEIGHTS" of an open_clip CoCa, that one is trained further, its own tower included,
    and without emphasis.
    """

    text: Path = Path("runs/tiny/text/text")
    start: str = ""
    short_steps: int = 200
    watcher_width: int = 48
    watcher_layers: int = 2
    decoder_layers: int = 3
    queries: int = 32
    batch: int = 32
    still_share: float = 0.1
    caption_weight: float = 2.0
    emphasis: float = 4.0
    crowds: int = 0
    validation_clips: int = 128


@dataclass(frozen=True)
class UpsamplerRun(Run):
    """A writer of captions from prompts, and of prompts from captions, trained on `batch` pairs a step, each both ways.

    Its tokenizer is learned from `read` pairs, and `validation_pairs` held-out ones say when to trust it. At the end
    `prompts` prompts of each kind are written out and compared. `start` is the folder of a trained upsampler to begin
    from, with its tokenizer and shape. `written` holds the captioner's captions of the first clips of `data`, a
    line each; the others' pairs have the world's. A clip of n things is drawn n to the power of `crowds` times as
    often as a clip of one.
    """

    start: Path | None = None
    written: Path | None = None
    optimizer: Literal["muon", "adamw"] = "muon"
    vocabulary: int = 2048
    context: int = 512
    width: int = 192
    heads: int = 6
    layers: int = 4
    batch: int = 32
    crowds: int = 0
    read: int = 20_000
    validation_pairs: int = 512
    prompts: int = 125


@dataclass(frozen=True)
class DiTRun(Run):
    """A diffusion transformer. Every step's pack holds `clips[i]` clips of `formats[i]`; one frame makes an image.

    `caption_drop` of the clips are trained without words, for guidance. Images are frames of
    the clips of the same size; on which canvases clips are dreamed is drawn by `canvases.py`. Of clips of more than
    `window` frames the first picture and a stretch from anywhere are seen, as when a long one is dreamed (0 for all).
    `start` is the folder of a trained transformer to begin from, in its width; the blocks that it lacks for `depth`
    begin silent. At the end the weights go `back` so much of the way to those it began with, which keeps what it could
    before (arXiv 2109.01903).
    """

    vae: Path = Path("runs/tiny/vae")
    text: Path = Path("runs/tiny/text")
    start: Path | None = None
    back: float = 0.0
    depth: int = 6
    optimizer: Literal["muon", "adamw"] = "muon"
    formats: tuple[Format, ...] = ((64, 64, 17), (64, 64, 1))
    clips: tuple[int, ...] = (24, 24)
    window: int = 0
    fps: float = 8.0
    caption_drop: float = 0.1
    mirror: bool = False  # half of the clips are seen in a mirror, and their captions say so
    base_tokens: int = 80
    emphasis: float = 0.0  # how much more what stands out of its surroundings counts in the loss
    train_shift: float = 1.0  # of the training times, for a clip of base_tokens
    shift: float = 1.0  # of the sampler's schedule, likewise
    sample_steps: int = 30
    guidance: float = 4.0
    validation_clips: int = 64


@dataclass(frozen=True)
class JudgeRun(Run):
    """A classifier that reads a clip's attributes from its pixels (`judge.py`), trained on `data` and `more_data`;
    `coded_share` of the clips, at most half, are seen through the VAE in `coder`.
    """

    coder: Path | None = None
    coded_share: float = 0.2
    more_data: Path = Path("data/first-combinations")
    width: int = 48
    batch: int = 32


@dataclass(frozen=True)
class Recipe:
    """All presets of one name, in order (`recipe.py`)."""

    name: str = "tiny"
