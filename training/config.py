"""What a training run is: flat frozen dataclasses, one per trainer.

`presets/` holds functions that return them; the command line (`command.py`) overrides single fields. The comment on
a field is its help text in `longtake train ... --help`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Format = tuple[int, int, int]  # columns, rows, frames of a clip


@dataclass(frozen=True)
class WorldRun:
    """A dataset of clips of the procedural world: `clips[i]` clips of format `formats[i]`."""

    folder: Path = Path("data/tiny")  # folder that the dataset is written to
    seed: int = 0  # seed of the scenes
    split: str = "train"  # split that the scenes are drawn from: train, test or combinations
    formats: tuple[Format, ...] = ((64, 64, 17),)  # columns, rows and frames of each format
    clips: tuple[int, ...] = (400,)  # number of clips of each format
    fps: float = 8.0  # frames per second
    workers: int = 2  # processes that render
    edition: int = 1  # edition of the world; 2 has larger differences, wet ground and camera velocities


@dataclass(frozen=True)
class Run:
    """What all trainers share.

    The learning rate rises over `warmup_steps`, stays, and falls linearly to zero over the last `decay_steps`.
    """

    data: Path = Path("data/tiny")  # folder of the training dataset
    held_out: Path = Path("data/tiny-test")  # folder of the validation dataset
    out: Path = Path("runs/tiny")  # folder for checkpoints, logs, the report and the trained model
    seed: int = 0  # seed of initialisation, data order and noise
    steps: int = 1000  # optimizer steps
    lr: float = 1e-3  # peak learning rate
    warmup_steps: int = 100  # steps over which the learning rate rises linearly
    decay_steps: int = 300  # last steps, over which the learning rate falls linearly to zero
    betas: tuple[float, float] = (0.9, 0.99)  # AdamW's decay rates of the first and second moment
    weight_decay: float = 0.01  # decoupled weight decay of matrices
    max_grad_norm: float = 1.0  # gradients of a larger norm are scaled down to it
    ema_decay: float = 0.999  # decay per step of the exponential moving average of the weights
    precision: str = "auto"  # bf16 (autocast), bf16-weights (transformer), no (fp32), auto: bf16 if hardware has it
    checkpoint_minutes: float = 10.0  # minutes between checkpoints; the last step always writes one
    keep_checkpoints: int = 2  # newest checkpoints to keep
    validate_every: int = 500  # steps between validations
    sample_every: int = 1000  # steps between sheets of samples (diffusion transformer only)


@dataclass(frozen=True)
class VAERun(Run):
    """A spacetime VAE. All clips of a step have one format, drawn in proportion to the formats' numbers of clips.

    The loss is L1 + `perceptual_weight` * (1 - multi-scale SSIM) + `kl_weight` * KL, and from step
    `adversarial_start` on an adversarial term of `adversarial_weight` times the gradient of the reconstruction loss.
    """

    optimizer: Literal["muon", "adamw"] = "muon"  # muon (hidden matrices; AdamW for all else) or adamw
    init_from: Path | None = None  # folder of a trained VAE of the same shape to continue from
    freeze_encoder: bool = False  # train the decoder only, so that latents and models on them stay valid
    formats: tuple[Format, ...] = ((64, 64, 17),)  # columns, rows and frames of each format of clips
    channels: int = 16  # latent channels
    patch: tuple[int, int, int] = (4, 4, 4)  # frames, rows and columns that the first layer folds into channels
    widths: tuple[int, ...] = (80, 160)  # channels of each stage
    downsample: tuple[tuple[int, int, int], ...] = ((1, 2, 2),)  # stride in time, rows, columns between stages
    encoder_blocks: tuple[int, ...] = (1, 2)  # residual blocks of each encoder stage
    decoder_blocks: tuple[int, ...] = (2, 3)  # residual blocks of each decoder stage
    batch_size: int = 8  # clips per step, over all processes
    frames: int = 9  # frames of the random stretch that is taken of each clip
    image_ratio: float = 0.1  # fraction of the steps that train on single frames
    kl_weight: float = 1e-5  # weight of the KL divergence from the unit Gaussian
    perceptual_weight: float = 0.1  # weight of 1 - multi-scale SSIM
    adversarial_weight: float = 0.05  # weight of the adversarial loss, relative to the reconstruction's gradient
    adversarial_start: int = 800  # step from which the discriminator takes part
    discriminator_lr: float = 4e-4  # peak learning rate of the discriminator
    discriminator_width: int = 48  # channels of the discriminator's first layer


@dataclass(frozen=True)
class TextRun(Run):
    """A text tower, trained contrastively against a video tower on clips and their captions."""

    format: Format = (64, 64, 17)  # columns, rows and frames of the clips
    vocab_size: int = 2048  # tokens of the vocabulary, which is learned from the captions
    context_length: int = 128  # most tokens of a text
    width: int = 128  # width of the text tower
    heads: int = 4  # attention heads of the text tower
    layers: int = 4  # blocks of the text tower
    video_width: int = 192  # width of the video tower
    video_layers: int = 4  # blocks of the video tower
    batch_size: int = 128  # clips per step, over all processes; each with two captions


@dataclass(frozen=True)
class CaptionerRun(Run):
    """A CoCa captioner: a video encoder and a text decoder around a frozen text tower.

    It is trained on labels and single sentences for `short_caption_steps`, then on dense captions. A checkpoint of
    open_clip (`init_from`) is fine-tuned whole, its own text tower included, and without the saliency term.
    """

    text_encoder: Path = Path("runs/tiny/text/text")  # folder of the frozen text encoder and its tokenizer
    init_from: str = ""  # open_clip CoCa to fine-tune instead, as ARCHITECTURE:WEIGHTS
    format: Format = (64, 64, 17)  # columns, rows and frames of the clips
    short_caption_steps: int = 200  # first steps, which train on labels and single sentences
    video_width: int = 48  # width of the video encoder
    video_layers: int = 2  # blocks of the video encoder
    decoder_layers: int = 3  # blocks of the multimodal text decoder
    queries: int = 32  # queries of the attentional pooler
    batch_size: int = 32  # clips per step, over all processes
    image_ratio: float = 0.1  # fraction of the clips that are a single frame, repeated
    caption_weight: float = 2.0  # weight of the captioning loss; the contrastive loss has 1
    saliency_weight: float = 4.0  # weight of the mean captioning loss of the tokens that describe the scene
    object_count_power: int = 0  # draw a clip of n objects n to this power times as often as a clip of one
    validation_clips: int = 128  # held-out clips that a validation captions


@dataclass(frozen=True)
class UpsamplerRun(Run):
    """A prompt upsampler: one language model that writes captions from prompts and prompts from captions.

    Every pair is trained in both directions.
    """

    init_from: Path | None = None  # folder of a trained upsampler to continue from, with its tokenizer and shape
    captions_file: Path | None = None  # JSON lines: the captioner's captions of the first clips of `data`
    format: Format = (64, 64, 17)  # columns, rows and frames of the clips whose captions are learned
    optimizer: Literal["muon", "adamw"] = "muon"  # muon (hidden matrices; AdamW for all else) or adamw
    vocab_size: int = 2048  # tokens of the vocabulary, which is learned from the pairs
    context_length: int = 512  # most tokens of a prompt and a caption together
    width: int = 192  # width of the language model
    heads: int = 6  # attention heads
    layers: int = 4  # transformer blocks
    batch_size: int = 32  # pairs per step, over all processes
    object_count_power: int = 0  # draw a clip of n objects n to this power times as often as a clip of one
    tokenizer_pairs: int = 20_000  # pairs that the tokenizer is learned from
    validation_pairs: int = 512  # held-out pairs for the validation losses and the thresholds of trust
    evaluation_prompts: int = 125  # prompts of each kind that the final report upsamples and scores


@dataclass(frozen=True)
class DiTRun(Run):
    """A diffusion transformer. The pack of a step holds `batch_sizes[i]` clips of `formats[i]`.

    A format of one frame is an image: a frame of the clips of the same size. Denoise masks are drawn by `canvases.py`.
    """

    vae: Path = Path("runs/tiny/vae")  # folder of the VAE that encodes the clips
    text_encoder: Path = Path("runs/tiny/text")  # folder of the text encoder and its tokenizer
    prompt_encoder_layers: int = 0  # layers of a text encoder trained with the transformer; 0: the frozen one above
    prompt_encoder_width: int = 128  # width of that text encoder
    vocab_size: int = 2048  # tokens of its vocabulary, which is learned from the captions
    camera_ratio: float = 0.0  # fraction of the clips whose camera velocity is given; 0 builds no camera input
    camera_loss_weight: float = 0.1  # weight of the loss of the camera that the text encoder reads in captions
    init_from: Path | None = None  # folder of a trained transformer to continue from; missing blocks begin as identity
    interpolate_back: float = 0.0  # final weights move this fraction back to the initial ones (arXiv 2109.01903)
    depth: int = 6  # number of transformer blocks; the width follows from it
    width: int = 0  # width of the blocks; 0 for the one that follows from the depth
    head_dim: int = 0  # width of an attention head; 0 for the one that follows from the depth
    base_width: int = 0  # width that lr was found at: rates follow the width from there (transfer.py); 0: they do not
    base_depth: int = 0  # depth that lr was found at: residual branches follow the depth from there; 0: they do not
    optimizer: Literal["muon", "adamw"] = "muon"  # muon (hidden matrices; AdamW for all else) or adamw
    formats: tuple[Format, ...] = ((64, 64, 17), (64, 64, 1))  # columns, rows and frames of each format of clips
    batch_sizes: tuple[int, ...] = (24, 24)  # clips per step of each format, over all processes
    tokens_per_step: int = 0  # batch_sizes are derived for about so many tokens a step, each clip as often; 0: as given
    max_tokens: int = 0  # most tokens that a process computes at once; it accumulates the gradients; 0 for no limit
    window_frames: int = 0  # of longer clips train on the first frame and a stretch, this many in all; 0 for no limit
    fps: float = 8.0  # frames per second of the clips
    caption_dropout: float = 0.1  # fraction of the clips without a caption, for classifier-free guidance
    horizontal_flip: bool = False  # mirror half of the clips, and the directions in their captions
    base_tokens: int = 80  # clip length in tokens at which the timestep shifts below apply as given
    saliency_weight: float = 0.0  # how much more the tokens that differ from their surroundings count in the loss
    train_shift: float = 1.0  # timestep shift of the training times, for a clip of `base_tokens`
    high_noise_ratio: float = 0.0  # fraction of the clips whose times are shifted by `high_noise_shift` instead
    high_noise_shift: float = 6.0  # timestep shift of these, for a clip of `base_tokens`
    pure_noise_ratio: float = 0.0  # fraction of the clips that are pure noise, time 1, where only the text helps
    sample_shift: float = 1.0  # timestep shift of the sampler's schedule, for a clip of `base_tokens`
    sample_steps: int = 30  # default sampler steps of the trained model
    guidance: float = 4.0  # default guidance scale of the trained model
    validation_clips: int = 64  # held-out clips of each validation pack
    validation_seed: int | None = None  # seed of the validation noise; none for that of the run
    sensitivity_clips: int = 0  # held-out clips whose words are exchanged at each validation; 0 for none


@dataclass(frozen=True)
class JudgeRun(Run):
    """A classifier that reads the attributes of a clip from its pixels (`evaluation/judge.py`)."""

    vae: Path | None = None  # folder of a VAE that reconstructs some of the training clips
    reconstructed_ratio: float = 0.2  # fraction of the training clips that the VAE reconstructs, at most half
    extra_data: Path | None = Path("data/first-combinations")  # folder of a second training dataset
    edition: int = 1  # edition of the world; from 2 on, all that captions can say is read, of every thing
    format: Format = (64, 64, 17)  # columns, rows and frames of the clips
    frame_stride: int = 1  # every n-th frame is read
    width: int = 48  # channels of the first stage
    batch_size: int = 32  # clips per step, over all processes


@dataclass(frozen=True)
class Recipe:
    """All presets of one model, trained in order (`recipe.py`)."""

    name: str = "tiny"  # first part of the presets' names
    parts: tuple[str, ...] = ("world", "vae", "judge", "text", "dit")  # what is trained, in this order
