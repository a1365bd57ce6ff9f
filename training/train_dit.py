"""Train the diffusion transformer on packs of clips of every format, with random denoise masks.

longtake train dit --preset tiny
accelerate launch -m training.command dit --preset tiny
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from captioning.learned_words import read_learned_words
from captioning.prompt_encoder import PromptEncoder
from captioning.text_encoder import (
    TextEmbeddings,
    embedding_dim,
    load_text_encoder,
    load_tokenizer,
    train_tokenizer,
)
from dit.flops import count_parameters, forward_flops
from dit.flow import make_scheduler
from dit.model import DiT, DiTConfig
from dit.packing import Pack
from dit.pipeline import Pipeline
from dit.request import Request
from dit.settings import Settings
from training.caption_words import learned_words_of, unheard_attributes
from training.config import DiTRun, Format
from training.dataset import Bucket, data_hash
from training.evaluation.sensitivity import per_clip_loss, sensitivity
from training.examples import LatentSource, TrainingExample, pack_noisy, token_count, video_formats
from training.latent_dataset import clips_of_other_formats
from training.loop import (
    TrainLoop,
    average_gradients,
    build_adamw,
    create_accelerator,
    lr_at,
    optimizer_step,
    write_run_description,
)
from training.low_precision import LowPrecisionCopy
from training.manifest import MANIFEST_FILE
from training.muon import build_muon
from training.step_plan import StepPlan, batch_sizes_for
from training.text_cache import TextCache
from training.text_conditioned import CaptionTokens, TextConditionedDiT
from training.train_dit_step import Text, backpropagate, draw_micro_batches, flow_matching_loss
from training.transfer import transfer_scales
from vae.model import VideoVAE
from vae.video.pixels import contact_sheet
from vae.video.write import write_image
from vae.weights import convert_to_float16, load_strictly

SENSITIVITY_SIGMAS = (1.0, 0.8)  # noise levels at which words are exchanged while training
TIME_STRATA = 8  # equal intervals of the uniform number that sets the time; each is validated separately
TOKEN_PIXELS = 16  # rows and columns of pixels that a token covers
CONTEXT_LENGTH = 256  # most tokens of a prompt, for a text encoder that is trained here
CAPTION_TOKENS = 32  # of a typical caption, for estimates of FLOPs

Result = TypeVar("Result")


def train(run: DiTRun) -> dict:
    """Train a DiT; write the model folder `run.out` / "model", and return the final validation losses.

    Raises ValueError if formats and batch sizes do not fit each other, or the model to continue from does not fit.
    """
    check_formats(run)
    accelerator = create_accelerator(run)
    vae = load_strictly(VideoVAE, run.vae).to(accelerator.device)
    encoder_hash = vae.encoder_hash()
    with accelerator.main_process_first():
        sources = {
            format: LatentSource.open(run, run.data, format, vae, encoder_hash, run.horizontal_flip)
            for format in run.formats
        }
        held_out = LatentSource.open(run, run.held_out, video_formats(run.formats)[0], vae, encoder_hash)
    # A frozen encoder is loaded before the seed is set, since to build one draws random numbers.
    frozen = None if run.prompt_encoder_layers else load_text_encoder(run.text_encoder)
    torch.manual_seed(run.seed)
    tokenizer, text_encoder = frozen or build_prompt_encoder(run, accelerator, sources)
    if frozen:
        text_encoder.requires_grad_(False).to(accelerator.device)
    dit = build_model(run, dit_config_for(run, vae.stride, vae.channels, embedding_dim(text_encoder)))
    config = dit.dit_config
    master = TextConditionedDiT(dit, text_encoder if isinstance(text_encoder, PromptEncoder) else None)
    initial_weights = [value.detach().clone() for value in master.parameters()] if run.interpolate_back else []
    run, plan = plan_steps(run, sources, config, accelerator.num_processes)
    flops = sum(count * each for count, each in zip(plan.batch_sizes, plan.flops, strict=True))
    facts: dict[str, Any] = {"data": data_hash(run.data, video_formats(run.formats)), "encoder": encoder_hash}
    buckets = bucket_lines(run, plan, sources, encoder_hash)
    if accelerator.is_main_process:
        print(*buckets, sep="\n", file=sys.stderr)
    facts |= {"processes": plan.processes, "buckets": buckets, "parameters": count_parameters(config)}
    write_run_description(run, accelerator, **facts, flops_a_step=flops)
    master.to(accelerator.device)
    if run.optimizer == "muon":
        scales = transfer_scales(dit, run.base_width, run.base_depth)
        optimizer = build_muon(master.muon_params(), master, run, scales)
    else:
        optimizer = build_adamw(master, run)
    ema = EMAModel(master.parameters(), decay=run.ema_decay, foreach=True)
    ema.to(accelerator.device)
    low_precision = LowPrecisionCopy(master) if run.precision == "bf16-weights" else None
    if low_precision:
        model, optimizer = low_precision.model, accelerator.prepare(optimizer)
    else:
        model, optimizer = accelerator.prepare(master, optimizer)
    loop = TrainLoop("train dit", run, accelerator, {"model": master, "ema": ema, "optimizer": optimizer})
    scheduler = make_scheduler(run.base_tokens, run.sample_shift)
    pipeline = Pipeline(dit, vae, text_encoder, tokenizer, scheduler, pipeline_settings(run))
    if master.prompt_encoder is None:
        text_cache = TextCache(tokenizer, text_encoder, (run.data, run.held_out))
    else:
        text_cache = CaptionTokens(tokenizer, accelerator.device)
    validation = validation_packs(run, held_out, config, text_cache)
    read_words = partial(log_sensitivity, master, held_out, config, text_cache, run.sensitivity_clips)

    for step in loop:
        micro_batches = draw_micro_batches(
            run,
            [sources[format] for format in run.formats],
            config,
            plan.micro_batches(step, accelerator.process_index),
        )
        if low_precision:
            low_precision.load_master()
        loss, camera = backpropagate(run, config, accelerator, model, micro_batches, text_cache.encode, low_precision)
        if low_precision:
            average_gradients(accelerator, master)
        grad_norm = optimizer_step(
            accelerator,
            master,
            optimizer,
            loss if camera is None else loss + run.camera_loss_weight * camera,
            lr_at(step, run),
            run.max_grad_norm,
            has_gradients=True,
        )
        if grad_norm is not None:
            ema.step(master.parameters())
        loop.record(
            step, grad_norm, loss=loss, **({} if camera is None or not run.camera_ratio else {"camera_loss": camera})
        )
        if step % run.validate_every == run.validate_every - 1:
            report = with_ema_weights(master, ema, lambda: validate(master, validation) | read_words())
            loop.log(step + 1, report)
        if step % run.sample_every == run.sample_every - 1 and accelerator.is_main_process:
            with_ema_weights(master, ema, lambda done=step + 1: write_samples(pipeline, run, held_out, done))

    ema.copy_to(master.parameters())
    for value, initial in zip(master.parameters() if initial_weights else (), initial_weights, strict=True):
        value.data.lerp_(initial.to(value), run.interpolate_back)
    report = validate(master.eval(), validation) | read_words()
    if accelerator.is_main_process:
        learned = learned_words_of(sources[format].bucket for format in video_formats(run.formats))
        learned = replace(learned, unheard=unheard_attributes(report))
        pipeline.learned_words = learned.merged(read_learned_words(run.text_encoder) if run.init_from else None)
        save_model(pipeline, run)
        (run.out / "report.json").write_text(json.dumps(report, indent=2))
    accelerator.end_training()
    return report


def plan_steps(
    run: DiTRun, sources: dict[Format, LatentSource], config: DiTConfig, processes: int
) -> tuple[DiTRun, StepPlan]:
    """Return how samples are dealt to processes, and the run with its batch sizes derived where it asks for that."""
    tokens = tuple(token_count(sources[format], config) for format in run.formats)
    if run.tokens_per_step:
        clips = [len(sources[format].bucket) for format in run.formats]
        run = replace(run, batch_sizes=batch_sizes_for(run.tokens_per_step, clips, tokens))
    flops = tuple(3 * forward_flops(config, count, CAPTION_TOKENS) for count in tokens)
    return run, StepPlan(run.batch_sizes, tokens, flops, processes, run.max_tokens)


def bucket_lines(run: DiTRun, plan: StepPlan, sources: dict[Format, LatentSource], encoder_hash: str) -> list[str]:
    """Say what each format holds and gives to a step, and which encoded clips are of other formats."""
    lines = []
    for format, count, tokens in zip(run.formats, plan.batch_sizes, plan.tokens, strict=True):
        clips = len(sources[format].bucket)
        epochs = run.steps * count / clips
        name = "x".join(map(str, format))
        lines.append(f"{name}: {clips} clips of {tokens} tokens, {count} a step, {epochs:.2f} times each")
    if (run.data / MANIFEST_FILE).exists():
        others = clips_of_other_formats(run.data, encoder_hash, run.fps, run.formats)
        lines += [f"{'x'.join(map(str, format))}: {count} clips, not trained on" for format, count in others.items()]
    return lines


def check_formats(run: DiTRun) -> None:
    """Raise ValueError if formats and batch sizes, or optimizer and transfer rules, do not fit each other."""
    if not run.tokens_per_step and len(run.batch_sizes) != len(run.formats):
        raise ValueError(
            f"batch_sizes must be one number for each of the {len(run.formats)} formats; got {len(run.batch_sizes)}"
        )
    sizes = {format[:2] for format in video_formats(run.formats)}
    for columns, rows, _ in run.formats:
        if (columns, rows) not in sizes:
            raise ValueError(f"images are frames of clips, so {columns}x{rows} needs a format of more than one frame")
    if run.optimizer != "muon" and (run.base_width or run.base_depth):
        raise ValueError(f"base_width and base_depth need --optimizer muon; got {run.optimizer}, so set them to 0")


def dit_config_for(run: DiTRun, stride: tuple[int, int, int], channels: int, text_dim: int) -> DiTConfig:
    """Return the config of the model: its depth from the run, the rest from the VAE and the text encoder.

    A token is TOKEN_PIXELS wide and high, whatever the VAE's stride. The run may set width and head_dim; raises
    ValueError where one does not divide the other.
    """
    patch = (1, max(1, TOKEN_PIXELS // stride[1]), max(1, TOKEN_PIXELS // stride[2]))
    config = DiTConfig.from_depth(
        run.depth, channels=channels, patch=patch, text_dim=text_dim, camera=run.camera_ratio > 0
    )
    config = replace(config, width=run.width or config.width, head_dim=run.head_dim or config.head_dim)
    if config.width % config.head_dim or config.head_dim % 2:
        raise ValueError(
            f"width must be a multiple of head_dim, an even number; got {config.width} and {config.head_dim}"
        )
    return config


def build_prompt_encoder(
    run: DiTRun, accelerator, sources: dict[Format, LatentSource]
) -> tuple[PreTrainedTokenizerFast, PromptEncoder]:
    """Return the text encoder to train with the transformer, and its tokenizer, learned from the captions at first.

    A transformer that is continued keeps the text encoder it was trained with, the one in `run.text_encoder`. Raises
    ValueError if that folder has none.
    """
    if run.init_from is not None:
        tokenizer, trained = load_text_encoder(run.text_encoder)
        if not isinstance(trained, PromptEncoder):
            raise ValueError(
                "init_from with prompt_encoder_layers needs the text encoder that was trained with that transformer; "
                f"{run.text_encoder} has a {type(trained).__name__}, so give its model folder as --text-encoder"
            )
        return tokenizer, trained.train()
    with accelerator.main_process_first():
        folder = run.out / "tokenizer"
        if not folder.exists():
            captions = (
                caption
                for format in video_formats(run.formats)
                for clip in sources[format].bucket.captions
                for caption in dict.fromkeys(text for texts in clip.values() for text in texts)
            )
            train_tokenizer(captions, run.vocab_size, CONTEXT_LENGTH).save_pretrained(folder)
        tokenizer = load_tokenizer(folder)
    encoder = PromptEncoder(
        len(tokenizer),
        CONTEXT_LENGTH,
        run.prompt_encoder_width,
        run.prompt_encoder_width // 32,
        run.prompt_encoder_layers,
        tokenizer.pad_token_id,
    )
    return tokenizer, encoder


def build_model(run: DiTRun, config: DiTConfig) -> DiT:
    """Return the model to train: a fresh one, or the one in `run.init_from` grown to the run's depth.

    If that one was trained with another text encoder, the layers that read text are fresh.
    Raises ValueError if it reads other latents, or, without `prompt_encoder_layers`, other text embeddings.
    """
    if run.init_from is None:
        return DiT.from_dit_config(config)
    trained = load_strictly(DiT, run.init_from)
    fixed = ("channels", "patch") if run.prompt_encoder_layers else ("channels", "patch", "text_dim")
    for name in fixed:
        wanted, found = getattr(config, name), getattr(trained.dit_config, name)
        if wanted != found:
            raise ValueError(
                f"init_from must have {name} {wanted}, as the VAE and the text encoder; {run.init_from} has {found}"
            )
    return trained.with_text_dim(config.text_dim, config.camera).grow_depth(run.depth)


ValidationPack = tuple[Pack, Tensor, Tensor, Text]  # noisy clips, target velocity, loss mask, captions


def validation_packs(
    run: DiTRun, source: LatentSource, config: DiTConfig, text_cache: TextCache | CaptionTokens
) -> list[ValidationPack]:
    """Return fixed packs of held-out clips, one per stratum of time, with everything to denoise."""
    count = min(run.validation_clips, len(source.bucket))
    seed = run.seed if run.validation_seed is None else run.validation_seed
    packs = []
    for stratum in range(TIME_STRATA):
        examples = []
        for clip in range(count):
            rng = np.random.default_rng([seed, 5, stratum, clip])
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
def validate(model: TextConditionedDiT, packs: list[ValidationPack]) -> dict[str, float]:
    """Return the validation loss, in all and by stratum of time."""
    losses = [float(flow_matching_loss(model, *pack)[0]) for pack in packs]
    return {"validation": float(np.mean(losses))} | {f"validation_t{n}": loss for n, loss in enumerate(losses)}


def log_sensitivity(
    model: TextConditionedDiT,
    source: LatentSource,
    config: DiTConfig,
    text_cache: TextCache | CaptionTokens,
    clips: int,
) -> dict[str, float]:
    """Return by how much exchanged words raise the validation loss, per attribute, at SENSITIVITY_SIGMAS.

    Only clips of the world have known attributes; for other data, and for 0 clips, there is nothing to return.
    """
    if not clips or not isinstance(source.bucket, Bucket) or not isinstance(source.latents, np.ndarray):
        return {}

    def losses(batch: Pack, target: Tensor, captions: list[str]) -> Tensor:
        text = text_cache.encode(captions)
        inputs, token_counts = (text, text.token_counts) if isinstance(text, TextEmbeddings) else text
        return per_clip_loss(model(batch, inputs, token_counts)[0], target, batch.token_lens)

    found = sensitivity(losses, source.bucket, source.latents, config.patch, clips=clips, sigmas=SENSITIVITY_SIGMAS)
    return {
        f"sensitivity_{name.replace(' ', '_')}_{sigma}": difference.mean
        for name, row in found.items()
        for sigma, difference in row.items()
    }


def with_ema_weights(model: nn.Module, ema: EMAModel, function: Callable[[], Result]) -> Result:
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
