"""The cost of a run before it starts, as --dry-run prints it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from training.config import CaptionerRun, DiTRun, Recipe, Run, TextRun, UpsamplerRun, VAERun, WorldRun


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
    from captioning.text_encoder import embedding_dim, load_text_encoder
    from dit.flops import count_parameters, forward_flops, training_bytes
    from dit.packing import grid_of
    from training.train_dit import CAPTION_TOKENS, build_model, dit_config_for
    from vae.model import VideoVAE
    from vae.weights import load_strictly

    vae = load_strictly(VideoVAE, run.vae)
    trained_here = run.prompt_encoder_layers and run.init_from is None
    text_dim = run.prompt_encoder_width if trained_here else embedding_dim(load_text_encoder(run.text_encoder)[1])
    config = build_model(run, dit_config_for(run, vae.stride, vae.channels, text_dim)).dit_config
    tokens = flops = 0
    for (columns, rows, frames), count in zip(run.formats, run.batch_sizes, strict=True):
        T, H, W = grid_of(vae.latent_shape(frames, rows, columns), config.patch)
        tokens += count * T * H * W
        flops += 3 * count * forward_flops(config, T * H * W, CAPTION_TOKENS)
    return [
        f"parameters {count_parameters(config):,}",
        f"tokens a step {tokens:,}",
        f"FLOPs a step {flops:.3g}, in all {training_time(flops * run.steps)}",
        f"memory about {training_bytes(config, tokens) / 2**30:.1f} GiB",
    ]


def _vae_lines(run: VAERun) -> list[str]:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from vae.model import VideoVAE

    with torch.device("meta"):
        vae = VideoVAE(run.channels, run.patch, run.widths, run.downsample, run.encoder_blocks, run.decoder_blocks)
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
