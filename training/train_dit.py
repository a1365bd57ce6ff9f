"""Train the diffusion transformer on packs of clips of every format, with random denoise masks.

longtake train dit --preset tiny
accelerate launch -m training.command dit --preset tiny
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import numpy as np
import torch
from diffusers.training_utils import EMAModel
from einops import rearrange
from torch import Tensor

from captioning.text_encoder import TextEmbeddings, embedding_dim, load_text_encoder
from dit.flops import count_parameters, forward_flops
from dit.flow import make_scheduler
from dit.model import DiT, DiTConfig
from dit.packing import Pack, patchify
from dit.pipeline import Pipeline
from dit.request import Request
from dit.settings import Settings
from training.config import DiTRun
from training.dataset import data_hash
from training.examples import LatentSource, TrainingExample, draw_examples, pack_noisy, token_count, video_formats
from training.loop import TrainLoop, build_adamw, create_accelerator, lr_at, optimizer_step, write_run_description
from training.muon import build_muon
from training.text_cache import TextCache
from vae.model import VideoVAE
from vae.video.pixels import contact_sheet
from vae.video.write import write_image
from vae.weights import convert_to_float16, load_strictly

TIME_STRATA = 8  # equal parts of the uniform number behind the time, each validated on its own
TOKEN_PIXELS = 16  # rows and columns of pixels that a token covers
CAPTION_TOKENS = 32  # of a typical caption, for estimates of FLOPs

Result = TypeVar("Result")


def train(run: DiTRun) -> dict:
    """Train a DiT; write the model folder `run.out` / "model", and return the final validation losses.

    Raises ValueError if formats and batch sizes do not fit each other, or the model to continue from does not fit.
    """
    check_formats(run)
    accelerator = create_accelerator(run)
    vae = load_strictly(VideoVAE, run.vae).to(accelerator.device)
    tokenizer, text_encoder = load_text_encoder(run.text_encoder)
    text_encoder.requires_grad_(False).to(accelerator.device)
    encoder_hash = vae.encoder_hash()
    with accelerator.main_process_first():
        sources = {
            format: LatentSource.open(run, run.data, format, vae, encoder_hash, run.horizontal_flip)
            for format in run.formats
        }
        held_out = LatentSource.open(run, run.held_out, video_formats(run.formats)[0], vae, encoder_hash)
    torch.manual_seed(run.seed)
    model = build_model(run, dit_config_for(run, vae.stride, vae.channels, embedding_dim(text_encoder)))
    config = model.dit_config
    initial_weights = [value.detach().clone() for value in model.parameters()] if run.interpolate_back else []
    flops = 3 * sum(
        count * forward_flops(config, token_count(sources[format], config), CAPTION_TOKENS)
        for format, count in zip(run.formats, run.batch_sizes, strict=True)
    )
    facts = {"data": data_hash(run.data, video_formats(run.formats)), "encoder": encoder_hash}
    write_run_description(run, accelerator, **facts, parameters=count_parameters(config), flops_a_step=flops)
    optimizer = build_muon(model.muon_params(), model, run) if run.optimizer == "muon" else build_adamw(model, run)
    ema = EMAModel(model.parameters(), decay=run.ema_decay, foreach=True)
    model, optimizer = accelerator.prepare(model, optimizer)
    ema.to(accelerator.device)
    loop = TrainLoop("train dit", run, accelerator, {"model": model, "ema": ema, "optimizer": optimizer})
    unwrapped = accelerator.unwrap_model(model)
    scheduler = make_scheduler(run.base_tokens, run.sample_shift)
    pipeline = Pipeline(unwrapped, vae, text_encoder, tokenizer, scheduler, pipeline_settings(run))
    text_cache = TextCache(tokenizer, text_encoder, (run.data, run.held_out))
    validation = validation_packs(run, held_out, config, text_cache)

    for step in loop:
        examples = [
            example
            for format, count in zip(run.formats, run.batch_sizes, strict=True)
            for example in draw_examples(run, sources[format], config.patch, count, step, accelerator)
        ]
        text = text_cache.encode([example.caption for example in examples])
        batch, target, mask = pack_noisy(examples, config, run, accelerator.device)
        weight = mask * loss_weights(examples, batch, run.saliency_weight)
        total = accelerator.reduce(
            mask.sum(), reduction="mean"
        )  # so that the mean of the processes' losses is the step's
        loss = flow_matching_loss(model, batch, target, weight, text, total)
        grad_norm = optimizer_step(accelerator, model, optimizer, loss, lr_at(step, run), run.max_grad_norm)
        if grad_norm is not None:
            ema.step(unwrapped.parameters())
        loop.record(step, grad_norm, loss=loss)
        if step % run.validate_every == run.validate_every - 1:
            loop.log(step + 1, with_ema_weights(unwrapped, ema, lambda: validate(unwrapped, validation)))
        if step % run.sample_every == run.sample_every - 1 and accelerator.is_main_process:
            with_ema_weights(unwrapped, ema, lambda done=step + 1: write_samples(pipeline, run, held_out, done))

    ema.copy_to(unwrapped.parameters())
    for value, initial in zip(unwrapped.parameters() if initial_weights else (), initial_weights, strict=True):
        value.data.lerp_(initial.to(value), run.interpolate_back)
    report = validate(unwrapped.eval(), validation)
    if accelerator.is_main_process:
        save_model(pipeline, run)
        (run.out / "report.json").write_text(json.dumps(report, indent=2))
    accelerator.end_training()
    return report


def check_formats(run: DiTRun) -> None:
    """Raise ValueError if formats and batch sizes do not fit each other."""
    if len(run.batch_sizes) != len(run.formats):
        raise ValueError(
            f"batch_sizes must be one number for each of the {len(run.formats)} formats; got {len(run.batch_sizes)}"
        )
    sizes = {format[:2] for format in video_formats(run.formats)}
    for columns, rows, _ in run.formats:
        if (columns, rows) not in sizes:
            raise ValueError(f"images are frames of clips, so {columns}x{rows} needs a format of more than one frame")


def dit_config_for(run: DiTRun, stride: tuple[int, int, int], channels: int, text_dim: int) -> DiTConfig:
    """Return the config of the model: its depth from the run, the rest from the VAE and the text encoder.

    A token is TOKEN_PIXELS wide and high, whatever the VAE's stride.
    """
    patch = (1, max(1, TOKEN_PIXELS // stride[1]), max(1, TOKEN_PIXELS // stride[2]))
    return DiTConfig.from_depth(run.depth, channels=channels, patch=patch, text_dim=text_dim)


def build_model(run: DiTRun, config: DiTConfig) -> DiT:
    """Return the model to train: a fresh one, or the one in `run.init_from` grown to the run's depth.

    Raises ValueError if that one reads other latents or text embeddings.
    """
    if run.init_from is None:
        return DiT.from_dit_config(config)
    trained = load_strictly(DiT, run.init_from)
    for name in ("channels", "patch", "text_dim"):
        wanted, found = getattr(config, name), getattr(trained.dit_config, name)
        if wanted != found:
            raise ValueError(
                f"init_from must have {name} {wanted}, as the VAE and the text encoder; {run.init_from} has {found}"
            )
    return trained.grow_depth(run.depth)


def loss_weights(examples: list[TrainingExample], batch: Pack, saliency_weight: float) -> Tensor:
    """Return the loss weight of each token of a pack (N, 1), with mean 1 over the tokens to denoise of each clip.

    Salient tokens count more, and more so at low sigma. At high sigma their position is not yet determined, and a
    weight that depends on it would bias the model towards more objects than the prompt asks for.
    """
    strength = saliency_weight * (1 - batch.sigma[:, None])
    relative = []
    for example, sigma in zip(examples, batch.sigma.split(batch.token_lens), strict=True):
        salient, denoised = saliency(example.latents, batch.patch).to(sigma), (sigma > 0)[:, None]
        mean = (salient * denoised).sum() / denoised.sum()
        relative.append(salient / mean if mean > 0 else torch.ones_like(salient))
    return (1 + strength * torch.cat(relative)) / (1 + strength)


def saliency(latents: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """Return the saliency of each token (N, 1) of a clip's latents (C, T, H, W).

    It is the token's mean square distance from the median of its rows over columns and time.
    """
    median = rearrange(latents, "C T H W -> C H (T W)").median(-1).values
    return patchify(latents - median[:, None, :, None], patch).square().mean(-1, keepdim=True)


def flow_matching_loss(
    model, batch: Pack, target: Tensor, weight: Tensor, text: TextEmbeddings, total_weight: Tensor | None = None
) -> Tensor:
    """Return the weighted mean squared error of the velocity (N, P): equation 1 of arXiv 2209.03003.

    `weight` (N, P) is 0 where nothing is denoised. The sum is divided by `total_weight`, or else by the pack's weight.
    """
    predicted = model(batch, text.token_embeddings, text.pooled, text.token_counts)
    total = weight.sum() if total_weight is None else total_weight
    return ((predicted.float() - target).square() * weight).sum() / total


ValidationPack = tuple[Pack, Tensor, Tensor, TextEmbeddings]  # noisy clips, target velocity, loss mask, captions


def validation_packs(
    run: DiTRun, source: LatentSource, config: DiTConfig, text_cache: TextCache
) -> list[ValidationPack]:
    """Return fixed packs of held-out clips, one per stratum of time, with everything to denoise."""
    count = min(run.validation_clips, len(source.bucket))
    packs = []
    for stratum in range(TIME_STRATA):
        examples = []
        for clip in range(count):
            rng = np.random.default_rng([run.seed, 5, stratum, clip])
            latents = torch.from_numpy(source.latents[clip].astype(np.float32))
            noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32))
            uniform = (stratum + float(rng.random())) / TIME_STRATA
            denoise_mask = torch.ones(latents.shape[1:])
            caption = source.validation_caption(clip)
            examples.append(TrainingExample(latents, noise, denoise_mask, uniform, caption, source.fps))
        text = text_cache.encode([example.caption for example in examples])
        packs.append((*pack_noisy(examples, config, run, text_cache.device), text))
    return packs


@torch.no_grad()
def validate(model: DiT, packs: list[ValidationPack]) -> dict[str, float]:
    """Return the validation loss, in all and by stratum of time."""
    losses = [float(flow_matching_loss(model, *pack)) for pack in packs]
    return {"validation": float(np.mean(losses))} | {f"validation_t{n}": loss for n, loss in enumerate(losses)}


def with_ema_weights(model: DiT, ema: EMAModel, function: Callable[[], Result]) -> Result:
    """Call a function while the model has the averaged weights."""
    ema.store(model.parameters())
    ema.copy_to(model.parameters())
    try:
        return function()
    finally:
        ema.restore(model.parameters())


def pipeline_settings(run: DiTRun) -> Settings:
    """Return the settings of the pipeline that samples from the trained model."""
    columns, rows, frames = video_formats(run.formats)[0]
    trained = tuple(dict.fromkeys((x, y, min(most, run.window_frames or most)) for x, y, most in run.formats))
    return Settings(trained, run.fps, (columns, rows), frames / run.fps, run.sample_steps, run.guidance)


def write_samples(pipeline: Pipeline, run: DiTRun, source: LatentSource, step: int, clips: int = 8) -> None:
    """Write a contact sheet of samples of held-out captions. Skip captions over the token limit of a prompt."""
    captions = [source.validation_caption(clip) for clip in range(min(clips, len(source.bucket)))]
    requests = []
    for seed, caption in enumerate(captions):
        with suppress(ValueError):
            requests.append(pipeline.resolve(Request(prompt=caption, seed=seed)))
    videos = [pipeline.pixels(sample) for sample in pipeline.generate(requests)]
    if videos:
        sheet = contact_sheet(videos, captions=[request.prompt for request in requests])
        write_image(run.out / f"sample-{step:06d}.png", sheet)


def save_model(pipeline: Pipeline, run: DiTRun) -> None:
    """Write the model folder that `Pipeline.from_pretrained` loads, with weights in float16."""
    pipeline.save_pretrained(run.out / "model")
    for part in ("transformer", "vae", "text_encoder"):
        convert_to_float16(run.out / "model" / part)
