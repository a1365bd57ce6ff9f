"""Train the diffusion transformer on packs of clips of every format, on random canvases.

longtake train dit --preset tiny
accelerate launch -m training.command dit --preset tiny
"""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers.training_utils import EMAModel
from einops import rearrange
from torch import Tensor

from captioning.text_encoder import TextEmbeddings, embedding_dim, load_text_encoder
from dit.flops import count_parameters, forward_flops
from dit.flow import interpolate, make_scheduler, sample_timesteps, timestep_shift, velocity
from dit.model import DiT, DiTConfig
from dit.packing import Pack, grid_of, pack, patchify
from dit.pipeline import Pipeline
from dit.request import Request
from dit.settings import Settings
from training.canvases import draw_denoise_mask
from training.config import MANIFEST_FILE, DiTRun, Format
from training.dataset import Bucket, data_hash, encode_latents, open_bucket, sample_order, shard_samples
from training.loop import TrainLoop, adamw, create_accelerator, describe, lr_at, optimizer_step
from training.muon import muon
from training.prepare.text_cache import Glossary
from training.world.words import in_a_mirror
from vae.model import VideoVAE
from vae.video.pixels import contact_sheet
from vae.video.write import write_image
from vae.weights import halve, load_strictly

if TYPE_CHECKING:
    from training.prepare.latents import Shelf

STRATA = 8  # of time, in the validation table
TOKEN_PIXELS = 16
WORDS = 32  # of a usual caption, for estimates of work
GOLDEN = (5**0.5 - 1) / 2  # its multiples fill [0, 1) evenly, however many: so do a step's times


def train(run: DiTRun) -> dict:
    """Train a DiT from a preset; leaves a whole model folder in `run.out` / "model" and returns the last validation."""
    check(run)
    accelerator = create_accelerator(run)
    vae = load_strictly(VideoVAE, run.vae).to(accelerator.device)
    tokenizer, text_encoder = load_text_encoder(run.text_encoder)
    text_encoder.requires_grad_(False).to(accelerator.device)
    stamp = vae.encoder_hash()
    with accelerator.main_process_first():
        sources = {
            format: LatentSource.open(run, run.data, format, vae, stamp, run.horizontal_flip) for format in run.formats
        }
        held_out = LatentSource.open(run, run.held_out, real_formats(run.formats)[0], vae, stamp)
    torch.manual_seed(run.seed)
    model = begin(run, shape_of(run, vae.stride, vae.channels, embedding_dim(text_encoder)))
    shape, begun = model.dit_config, [value.detach().clone() for value in model.parameters()] if run.interpolate_back else []
    work = sum(
        count * forward_flops(shape, tokens_of(sources[format], shape), WORDS)
        for format, count in zip(run.formats, run.batch_sizes, strict=True)
    )
    facts = {"data": data_hash(run.data, real_formats(run.formats)), "encoder": stamp}
    describe(run, accelerator, **facts, parameters=count_parameters(shape), flops_a_step=3 * work)
    optimizer = muon(model.muon_params(), model, run) if run.optimizer == "muon" else adamw(model, run)
    average = EMAModel(model.parameters(), decay=run.ema_decay, foreach=True)
    model, optimizer = accelerator.prepare(model, optimizer)
    average.to(accelerator.device)
    course = TrainLoop("train dit", run, accelerator, {"model": model, "average": average, "optimizer": optimizer})
    bare = accelerator.unwrap_model(model)
    pipeline = Pipeline(
        bare, vae, text_encoder, tokenizer, make_scheduler(run.base_tokens, run.sample_shift), settings(run)
    )
    glossary = Glossary(tokenizer, text_encoder, (run.data, run.held_out))
    table = validation_table(run, held_out, shape, glossary)

    for step in course:
        examples = [
            e
            for format, count in zip(run.formats, run.batch_sizes, strict=True)
            for e in draw(run, sources[format], shape.patch, count, step, accelerator)
        ]
        words = glossary.encode([example.caption for example in examples])
        batch, target, mask = noised(examples, shape, run, accelerator.device)
        weight = mask * weights_of(examples, batch, run.saliency_weight)
        dreamed = accelerator.reduce(mask.sum(), reduction="mean")  # so that the processes' mean is the step's
        loss = flow_loss(model, batch, target, weight, words, dreamed)
        norm = optimizer_step(accelerator, model, optimizer, loss, lr_at(step, run), run.max_grad_norm)
        if norm is not None:
            average.step(bare.parameters())
        course.note(step, norm, loss=loss)
        if step % run.validate_every == run.validate_every - 1:
            course.log(step + 1, with_average(bare, average, lambda: validate(bare, table)))
        if step % run.sample_every == run.sample_every - 1 and accelerator.is_main_process:
            with_average(bare, average, lambda shown=step + 1: show(pipeline, run, held_out, shown))

    average.copy_to(bare.parameters())
    for value, before in zip(bare.parameters() if begun else (), begun, strict=True):
        value.data.lerp_(before.to(value), run.interpolate_back)
    report = validate(bare.eval(), table)
    if accelerator.is_main_process:
        save(pipeline, run)
        (run.out / "report.json").write_text(json.dumps(report, indent=2))
    accelerator.end_training()
    return report


def check(run: DiTRun) -> None:
    """Raise ValueError for formats and clips that do not fit each other."""
    if len(run.batch_sizes) != len(run.formats):
        raise ValueError(
            f"clips must be one number for each of the {len(run.formats)} formats; got {len(run.batch_sizes)}"
        )
    sizes = {format[:2] for format in real_formats(run.formats)}
    for columns, rows, _ in run.formats:
        if (columns, rows) not in sizes:
            raise ValueError(f"pictures are frames of clips, so {columns}x{rows} needs a format of more than one frame")


@dataclass(frozen=True)
class LatentSource:
    """Where a format's latents and captions come from: clips of that format, or single frames of clips of the same
    size.
    """

    bucket: Bucket | Shelf
    latents: np.ndarray | Shelf
    kind: str
    fps: float
    shape: tuple[int, int, int, int]  # (C, T, H, W), as many latents of a clip as are seen
    mirrored: np.ndarray | None = None  # the same latents with left and right exchanged

    def usual(self, clip: int) -> str:
        """Return the caption that a clip is validated and shown with: the second, in the world the first plain one."""
        said = self.bucket.captions[clip][self.kind]
        return said[min(1, len(said) - 1)]

    @classmethod
    def open(
        cls, run: DiTRun, data: Path, format: Format, vae: VideoVAE, stamp: str, mirror: bool = False
    ) -> LatentSource:
        """Code a format's clips if that is not done yet, and open them, `mirror` images beside them if asked; those of
        a prepared folder are coded, and raise ValueError for mirror images.
        """
        still = format[2] == 1
        if (data / MANIFEST_FILE).exists():
            from training.prepare.latents import Shelf

            if mirror:
                raise ValueError(f"mirror needs clips of the world, whose words are known; {data} was prepared")
            shelf = Shelf(data, format, stamp, run.fps)
            return cls(shelf, shelf, "still" if still else "moving", run.fps, seen(shelf.shape, run, vae))
        formats = run.formats
        bucket = open_bucket(data, next(f for f in real_formats(formats) if f[:2] == format[:2]) if still else format)

        @torch.no_grad()
        def latents(mirrored: bool) -> np.ndarray:
            return encode_latents(bucket, lambda clips: vae.encode(clips.to(vae.device)).cpu(), stamp, still, mirrored)

        kind, plain = "still" if still else "moving", latents(False)
        shape = seen(plain.shape, run, vae)
        return cls(bucket, plain, kind, bucket.state["fps"], shape, latents(True) if mirror else None)

    def stretch(self, rng: np.random.Generator) -> np.ndarray:
        """Draw which time steps of a clip are seen: all, or the first, a picture, and as many in a row as fit."""
        steps, seen = self.latents.shape[2], self.shape[1]
        begin = int(rng.integers(1, steps - seen + 2)) if seen < steps else 1
        return np.r_[0, begin : begin + seen - 1]


def seen(shape: tuple[int, ...], run: DiTRun, vae: VideoVAE) -> tuple[int, int, int, int]:
    """Return (C, T, H, W) of what is seen of clips with latents (N, C, T, H, W)."""
    _, channels, steps, height, width = shape
    most = vae.latent_shape(run.window_frames, *vae.stride[1:])[0] if run.window_frames else steps
    return channels, min(steps, most), height, width


def tokens_of(source: LatentSource, shape: DiTConfig) -> int:
    """Return how many tokens a clip of a source has."""
    return math.prod(grid_of(source.shape[1:], shape.patch))


@dataclass(frozen=True)
class Example:
    """One clip as a step sees it: latents and noise (C, T, H, W), level (T, H, W), the uniform number that sets its
    time.
    """

    latents: Tensor
    noise: Tensor
    level: Tensor
    uniform: float
    caption: str
    fps: float


def real_formats(formats: tuple[Format, ...]) -> tuple[Format, ...]:
    """List the formats that are rendered; images are taken from these."""
    return tuple(format for format in formats if format[2] > 1)


def shape_of(run: DiTRun, stride: tuple[int, int, int], channels: int, text_dim: int) -> DiTConfig:
    """Return the model's shape: its depth from the run, the rest from the VAE and the text encoder.

    A token is TOKEN_PIXELS across, whatever the VAE's stride.
    """
    patch = (1, max(1, TOKEN_PIXELS // stride[1]), max(1, TOKEN_PIXELS // stride[2]))
    return DiTConfig.from_depth(run.depth, channels=channels, patch=patch, text_dim=text_dim)


def begin(run: DiTRun, shape: DiTConfig) -> DiT:
    """Return the model to train: fresh, or the one in `run.init_from`, made deeper. Raises ValueError where that one reads
    other latents or words.
    """
    if run.init_from is None:
        return DiT.from_dit_config(shape)
    trained = load_strictly(DiT, run.init_from)
    for name in ("channels", "patch", "text_dim"):
        ours, theirs = getattr(shape, name), getattr(trained.dit_config, name)
        if ours != theirs:
            raise ValueError(
                f"start must have {name} {ours}, as the VAE and the text encoder; {run.init_from} has {theirs}"
            )
    return trained.grow_depth(run.depth)


def draw(run: DiTRun, source: LatentSource, patch, count: int, step: int, accelerator) -> list[Example]:
    """Return a step's examples of one format: functions of the seed and each sample's number alone."""
    stream = f"dit {source.bucket.folder.name} {source.kind}"
    clip_of = sample_order(run.seed, stream, len(source.bucket))
    phase = float(np.random.default_rng([run.seed, *stream.encode()]).random())
    examples = []
    for number in shard_samples(count, step, accelerator.process_index, accelerator.num_processes):
        rng = np.random.default_rng([run.seed, *stream.encode(), number])
        clip = clip_of(number)
        caption = str(rng.choice(source.bucket.captions[clip][source.kind]))
        noise = torch.from_numpy(rng.standard_normal(source.shape, dtype=np.float32))
        level = torch.from_numpy(draw_denoise_mask(rng, source.shape[1:], patch))
        silent = rng.random() < run.caption_dropout
        place = source.stretch(rng)
        if place[-1] >= len(place):  # a picture from long before is always given, as when a long clip is dreamed
            level[0] = 0
            level[1:] = level[1:] if level.any() else 1
        latents = source.latents
        if source.mirrored is not None and rng.random() < 0.5:
            latents, caption = source.mirrored, in_a_mirror(caption)
        examples.append(
            Example(
                latents=torch.from_numpy(latents[clip][:, place].astype(np.float32)),
                noise=noise,
                level=level,
                uniform=(phase + number * GOLDEN) % 1,
                caption="" if silent else caption,
                fps=source.fps,
            )
        )
    return examples


def noised(examples: list[Example], shape: DiTConfig, run: DiTRun, device) -> tuple[Pack, Tensor, Tensor]:
    """Return a pack of noisy clips, the velocity (N, P) to predict, and a mask (N, P): 1 where something is to be
    dreamed.
    """
    xs, levels, targets, masks = [], [], [], []
    for example in examples:
        tokens = math.prod(grid_of(tuple(example.level.shape), shape.patch))
        shift = timestep_shift(tokens, run.base_tokens, run.train_shift)
        level = example.level * sample_timesteps(torch.tensor(example.uniform, dtype=torch.float64), shift).float()
        xs.append(interpolate(example.latents, example.noise, level))
        levels.append(level)
        targets.append(patchify(velocity(example.latents, example.noise), shape.patch))
        masks.append(patchify((example.level > 0).float().expand_as(example.latents), shape.patch))
    batch = pack(
        [x.to(device) for x in xs], [level.to(device) for level in levels], [e.fps for e in examples], shape.patch
    )
    return batch, torch.cat(targets).to(device), torch.cat(masks).to(device)


def weights_of(examples: list[Example], batch: Pack, emphasis: float) -> Tensor:
    """Return how much each token of a pack counts (N, 1), on average 1 over what is to be dreamed: what stands out
    counts for more, the less noise there is.

    Under much noise nobody knows yet where it will be, and a weight that depends on it would make it more likely.
    """
    share = emphasis * (1 - batch.sigma[:, None])
    found = []
    for example, level in zip(examples, batch.sigma.split(batch.token_lens), strict=True):
        out, dreamed = saliency(example.latents, batch.patch).to(level), (level > 0)[:, None]
        usual = (out * dreamed).sum() / dreamed.sum()
        found.append(out / usual if usual > 0 else torch.ones_like(out))
    return (1 + share * torch.cat(found)) / (1 + share)


def saliency(latents: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """Return how far each token of a clip's latents (C, T, H, W) is from what is usual in its rows, (N, 1): its mean
    square distance from the median over columns and time.
    """
    usual = rearrange(latents, "C T H W -> C H (T W)").median(-1).values
    return patchify(latents - usual[:, None, :, None], patch).square().mean(-1, keepdim=True)


def flow_loss(
    model, batch: Pack, target: Tensor, weight: Tensor, words: TextEmbeddings, dreamed: Tensor | None = None
) -> Tensor:
    """Return the mean squared error of the velocity, over what is to be dreamed: equation 1 of arXiv 2209.03003.

    `weight` (N, P) is 0 where nothing is; `dreamed` is the sum to divide by, where it is not this pack's weight.
    """
    found = model(batch, words.token_embeddings, words.pooled, words.token_counts)
    return ((found.float() - target).square() * weight).sum() / (weight.sum() if dreamed is None else dreamed)


def validation_table(run: DiTRun, source: LatentSource, shape: DiTConfig, glossary: Glossary) -> list[tuple]:
    """Return fixed held-out packs, one a stratum of time, on blank canvases: (pack, target, mask, words)."""
    count = min(run.validation_clips, len(source.bucket))
    table = []
    for stratum in range(STRATA):
        examples = []
        for clip in range(count):
            rng = np.random.default_rng([run.seed, 5, stratum, clip])
            latents = torch.from_numpy(source.latents[clip].astype(np.float32))
            noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32))
            uniform = (stratum + float(rng.random())) / STRATA
            level = torch.ones(latents.shape[1:])
            examples.append(Example(latents, noise, level, uniform, source.usual(clip), source.fps))
        words = glossary.encode([example.caption for example in examples])
        table.append((*noised(examples, shape, run, glossary.device), words))
    return table


@torch.no_grad()
def validate(model: DiT, table: list[tuple]) -> dict[str, float]:
    """Return the validation loss, in all and by stratum of time."""
    losses = [float(flow_loss(model, *row)) for row in table]
    return {"validation": float(np.mean(losses))} | {f"validation_t{n}": loss for n, loss in enumerate(losses)}


def with_average(model: DiT, average: EMAModel, act):
    """Do something with the averaged weights in the model's place."""
    average.store(model.parameters())
    average.copy_to(model.parameters())
    try:
        return act()
    finally:
        average.restore(model.parameters())


def settings(run: DiTRun) -> Settings:
    """Return what a pipeline must know of a run."""
    columns, rows, frames = real_formats(run.formats)[0]
    trained = tuple(dict.fromkeys((x, y, min(most, run.window_frames or most)) for x, y, most in run.formats))
    return Settings(trained, run.fps, (columns, rows), frames / run.fps, run.sample_steps, run.guidance)


def show(pipeline: Pipeline, run: DiTRun, source: LatentSource, step: int, clips: int = 8) -> None:
    """Dream held-out prompts, those that a prompt may be as long as, and keep the picture."""
    prompts = [source.usual(clip) for clip in range(min(clips, len(source.bucket)))]
    requests = []
    for number, prompt in enumerate(prompts):
        with suppress(ValueError):
            requests.append(pipeline.resolve(Request(prompt=prompt, seed=number)))
    videos = [pipeline.pixels(dream) for dream in pipeline.generate(requests)]
    if videos:
        write_image(run.out / f"sample-{step:06d}.png", contact_sheet(videos, captions=[r.prompt for r in requests]))


def save(pipeline: Pipeline, run: DiTRun) -> None:
    """Write the model folder that `Pipeline.from_pretrained` loads, its weights in 16 bits."""
    pipeline.save_pretrained(run.out / "model")
    for part in ("transformer", "vae", "text_encoder"):
        halve(run.out / "model" / part)
