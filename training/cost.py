"""The cost of a run before it starts, as --dry-run prints it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from training.config import CaptionerRun, DiTRun, Recipe, Run, TextRun, UpsamplerRun, VAERun, WorldRun

if TYPE_CHECKING:
    from vae.model import VideoVAE


def describe_cost(run: Run | WorldRun | Recipe) -> str:
    """Return the resolved config as JSON, then lines of parameters, FLOPs and memory, where these follow from it."""
    config = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(run).items()}
    return "\n".join([json.dumps(config, indent=2), *_cost_lines(run)])


def _cost_lines(run: Run | WorldRun | Recipe) -> list[str]:
    if isinstance(run, WorldRun):
        sizes = [
            count * 3 * columns * rows * frames
            for (columns, rows, frames), count in zip(run.formats, run.clips, strict=True)
        ]
        return [f"clips {sum(run.clips):,}", f"disk {sum(sizes) / 1e9:.2f} GB"]
    if isinstance(run, DiTRun):
        return _dit_lines(run)
    if isinstance(run, VAERun):
        return _vae_lines(run)
    if isinstance(run, UpsamplerRun):
        return [f"pairs seen {run.steps * run.batch_size:,}, each both ways"]
    if isinstance(run, TextRun | CaptionerRun):
        return [f"clips seen {run.steps * run.batch_size:,}"]
    return []


def _dit_lines(run: DiTRun) -> list[str]:
    from dit.flops import count_parameters, forward_flops, training_bytes
    from dit.packing import grid_of
    from training.step_plan import StepPlan, batch_sizes_for
    from training.train_dit import CAPTION_TOKENS, build_model, check_formats, dit_config_for

    check_formats(run)
    vae = planned_vae(run)
    config = dit_config_for(run, vae.stride, vae.channels, planned_text_dim(run))
    if run.init_from is None or not _is_planned(run.init_from):
        config = build_model(run, config).dit_config
    tokens = [
        math.prod(grid_of(vae.latent_shape(frames, rows, columns), config.patch))
        for columns, rows, frames in run.formats
    ]
    flops = [3 * forward_flops(config, count, CAPTION_TOKENS) for count in tokens]
    if run.tokens_per_step:  # as if there were equally many clips of each format: the data may not be there yet
        run = replace(run, batch_sizes=batch_sizes_for(run.tokens_per_step, [1] * len(tokens), tokens))
    plan = StepPlan(run.batch_sizes, tuple(tokens), tuple(flops), 1, run.max_tokens)
    in_a_step = sum(count * each for count, each in zip(run.batch_sizes, tokens, strict=True))
    at_once = max(sum(tokens[sample.format] for sample in batch) for batch in plan.micro_batches(0, 0))
    flops_a_step = sum(count * each for count, each in zip(run.batch_sizes, flops, strict=True))
    untrained = [str(path) for path in (run.vae, run.text_encoder, run.init_from) if path and _is_planned(path)]
    return [
        *([f"not trained yet, and taken from presets: {', '.join(untrained)}"] if untrained else []),
        f"parameters {count_parameters(config):,}",
        *(
            f"{columns}x{rows}x{frames}: {count} clips of {each} tokens a step"
            for (columns, rows, frames), count, each in zip(run.formats, run.batch_sizes, tokens, strict=True)
        ),
        f"tokens a step {in_a_step:,}, at most {at_once:,} at once on one process",
        f"FLOPs a step {flops_a_step:.3g}, in all {training_time(flops_a_step * run.steps)}",
        f"memory about {training_bytes(config, at_once) / 2**30:.1f} GiB",
    ]


def _is_planned(folder: Path) -> bool:
    """Return whether a part is not trained yet, and a preset will train it."""
    return not folder.exists() and any(folder == made for made, _ in _planned_parts())


def _planned_parts() -> Iterator[tuple[Path, VAERun | TextRun | DiTRun]]:
    """List the folders that presets leave trained parts in, each with its run."""
    from training.presets import PRESETS

    for kind, within in (("vae", "vae"), ("text", "text"), ("dit", "model"), ("dit", "model/transformer")):
        for preset in PRESETS[kind].values():
            run = preset()
            yield run.out / within, run


def planned_vae(run: DiTRun) -> VideoVAE:
    """Return the VAE of a run, or one without weights of the preset that will train it."""
    from vae.model import VideoVAE
    from vae.weights import load_strictly

    if _is_planned(run.vae):
        return _vae_without_weights(
            next(one for made, one in _planned_parts() if made == run.vae and isinstance(one, VAERun))
        )
    return load_strictly(VideoVAE, run.vae)


def planned_text_dim(run: DiTRun) -> int:
    """Return the width of a run's text embeddings."""
    from captioning.text_encoder import embedding_dim, load_text_encoder

    if run.prompt_encoder_layers and run.init_from is None:
        return run.prompt_encoder_width
    if _is_planned(run.text_encoder):
        planned = next(
            one for made, one in _planned_parts() if made == run.text_encoder and isinstance(one, TextRun | DiTRun)
        )
        return planned.prompt_encoder_width if isinstance(planned, DiTRun) else planned.width
    return embedding_dim(load_text_encoder(run.text_encoder)[1])


def _vae_without_weights(run: VAERun) -> VideoVAE:
    """Return the VAE that a run trains, on the meta device."""
    import torch

    from vae.model import VideoVAE

    with torch.device("meta"):
        return VideoVAE(run.channels, run.patch, run.widths, run.downsample, run.encoder_blocks, run.decoder_blocks)


def _vae_lines(run: VAERun) -> list[str]:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    vae = _vae_without_weights(run)
    with torch.device("meta"):
        columns, rows, frames = run.formats[0]
        pixels = torch.zeros(1, 3, min(run.frames, frames), rows, columns)
        noise = torch.zeros(1, run.channels, *vae.latent_shape(pixels.shape[2], rows, columns))
    with FlopCounterMode(display=False) as counter:
        vae(pixels, noise)
    flops = 3 * run.batch_size * counter.get_total_flops()
    return [
        f"parameters {sum(value.numel() for value in vae.parameters()):,}",
        f"stride {vae.stride}, {run.channels} channels",
        f"FLOPs a step {flops:.3g}, in all {training_time(flops * run.steps)}, without the discriminator",
    ]


def training_time(flops: float) -> str:
    """Return FLOPs with the hours they take on two ordinary CPU cores and on one large GPU."""
    return f"{flops:.3g}: {flops / 1e11 / 3600:.2g} h at 100 GFLOP/s, {flops / 3e14 / 3600:.2g} h at 300 TFLOP/s"
