"""The cost of a model from its config: parameters, FLOPs, memory.

FLOPs count matrix products only, and equal torch's FlopCounterMode.
"""

from __future__ import annotations

import math

from captioning.camera import CAMERA_VALUES
from dit.model import FOURIER_FREQUENCIES, DiTConfig
from dit.neighbours import NEIGHBOURS
from vae.model import VideoVAE


def count_parameters(config: DiTConfig) -> int:
    """Return the number of parameters of a DiT."""
    D, E, P, text = config.width, config.head_dim, config.patch_values, config.text_dim
    linear = lambda inputs, outputs, bias=True: inputs * outputs + bias * outputs
    conditioning = (
        (linear(2 * FOURIER_FREQUENCIES, D) + linear(D, D))
        + (2 * text + linear(text, D))
        + (linear(4, D) + linear(D, D))
    )
    embeddings = linear(P, D) + linear(4 * FOURIER_FREQUENCIES, D, False) + linear(D, D)
    embeddings += config.camera * linear(CAMERA_VALUES, D, False)
    modulation, output = linear(D, 4 * D), linear(D, D) + linear(D, P)
    block = (
        3 * D * D + 2 * text * D + 2 * text + 2 * E + D * D + 2 * config.mlp_ratio * D * D + (4 + 2 * NEIGHBOURS) * D
    )
    return conditioning + embeddings + modulation + output + config.depth * block


def forward_flops(
    config: DiTConfig, tokens: int, text_tokens: int, noise_levels: int = 1, padded_text_tokens: int = 0
) -> int:
    """Return the FLOPs of one forward pass over one clip; a training step costs three times as much.

    `noise_levels` is the number of distinct sigmas among the clip's tokens, `padded_text_tokens` the length its text is
    padded to in a pack. For a pack, add up its clips.
    """
    D, P, text_dim = config.width, config.patch_values, config.text_dim
    keys = tokens + max(text_tokens, padded_text_tokens)
    block = tokens * (4 + 2 * config.mlp_ratio) * D * D + text_tokens * 2 * text_dim * D + 2 * tokens * keys * D
    conditioning = noise_levels * (2 * FOURIER_FREQUENCIES * D + D * D) + text_dim * D + 4 * D + D * D
    modulation = noise_levels * (D * D + 4 * D * D + D * D)
    in_and_out = tokens * (P * D + 4 * FOURIER_FREQUENCIES * D + D * P + config.camera * CAMERA_VALUES * D)
    return 2 * (config.depth * block + conditioning + modulation + in_and_out)


def training_bytes(config: DiTConfig, tokens: int) -> int:
    """Estimate the memory of training on packs of `tokens` tokens, in fp32.

    Counts weights, gradients, AdamW's two moments and the EMA; and per token and block about 20 activations of the
    model's width, plus the MLP's.
    """
    activations = tokens * config.depth * (20 + 3 * config.mlp_ratio) * config.width
    return 4 * (5 * count_parameters(config) + activations)


def forward_bytes(config: DiTConfig, tokens: int) -> int:
    """Estimate the peak memory of a forward pass, weights not included, in fp32: it lies in a block's MLP."""
    return 4 * tokens * ((6 + 3 * config.mlp_ratio) * config.width + config.head_dim + config.patch_values)


def stage_positions(vae: VideoVAE, T: int, H: int, W: int) -> list[int]:
    """Return the number of positions in each stage of a VAE for latents (T, H, W), the finest stage first."""
    positions = [T * H * W]
    for time, down, across in reversed(list(vae.config["downs"])):
        T, H, W = T * time - (time - 1), H * down, W * across
        positions.append(T * H * W)
    return positions[::-1]


def encode_flops(vae: VideoVAE, T: int, H: int, W: int) -> int:
    """Return the FLOPs of encoding a clip to latents (T, H, W)."""
    config, positions = vae.config, stage_positions(vae, T, H, W)
    widths, downs = config["widths"], config["downs"]
    products = positions[0] * 9 * 3 * math.prod(config["patch"]) * widths[0]
    products += sum(
        n * blocks * 12 * width**2 for n, blocks, width in zip(positions, config["encoder_blocks"], widths, strict=True)
    )
    for n, finer, coarser, down in zip(positions[1:], widths, widths[1:], downs, strict=False):
        products += n * finer * math.prod(down) * coarser
    return 2 * (products + positions[-1] * vae.channels * (2 * widths[-1] + 3 * math.prod(vae.stride)))


def decode_flops(vae: VideoVAE, T: int, H: int, W: int) -> int:
    """Return the FLOPs of decoding latents (T, H, W), in pieces or as a whole."""
    config, positions = vae.config, stage_positions(vae, T, H, W)
    widths, downs = config["widths"], config["downs"]
    products = positions[-1] * 9 * vae.channels * widths[-1]
    products += positions[0] * 9 * widths[0] * 3 * math.prod(config["patch"])
    products += sum(
        n * blocks * 12 * width**2 for n, blocks, width in zip(positions, config["decoder_blocks"], widths, strict=True)
    )
    for n, finer, coarser, down in zip(positions[1:], widths, widths[1:], downs, strict=False):
        products += n * coarser * math.prod(down) * finer
    return 2 * products + linear_preview_flops(vae, T, H, W)


def linear_preview_flops(vae: VideoVAE, T: int, H: int, W: int) -> int:
    """Return the FLOPs of the VAE's linear preview of latents (T, H, W)."""
    return 2 * T * H * W * vae.channels * 3 * math.prod(vae.stride)


def decode_bytes(vae: VideoVAE, latent_frames: int, H: int, W: int) -> int:
    """Estimate the peak memory of decoding a piece of `latent_frames`, weights not included, in fp32.

    Counts the streaming state of every block, of this piece and of the one before, and the larger of the finest stage's
    convolution over time and the pixels.
    """
    config, pixels = vae.config, 3 * math.prod(vae.stride) * latent_frames * H * W
    values = [n * width for n, width in zip(stage_positions(vae, latent_frames, H, W), config["widths"], strict=True)]
    state = sum(
        2 * blocks * stage * (latent_frames + 2) // latent_frames
        for blocks, stage in zip(config["decoder_blocks"], values, strict=True)
    )
    return 4 * (state + max(9 * values[0] + 2 * pixels, 5 * pixels))
