"""What a model costs, from its structure: parameters, arithmetic, memory. Equal to torch's FlopCounterMode; only matrix
products count.
"""

from __future__ import annotations

import math

from dit.model import FREQUENCIES, SIDES, DiTConfig
from vae.model import VideoVAE


def parameters(shape: DiTConfig) -> int:
    """Return how many weights a DiT of this shape has."""
    D, E, P, text = shape.width, shape.head_width, shape.patch_values, shape.words_width
    linear = lambda before, after, bias=True: before * after + bias * after
    condition = linear(2 * FREQUENCIES, D) + linear(D, D) + 2 * text + linear(text, D) + linear(4, D) + linear(D, D)
    outside = (
        linear(P, D) + linear(4 * FREQUENCIES, D, False) + linear(D, D) + linear(D, 4 * D) + linear(D, D) + linear(D, P)
    )
    block = 3 * D * D + 2 * text * D + 2 * text + 2 * E + D * D + 2 * shape.expansion * D * D + (4 + 2 * SIDES) * D
    return condition + outside + shape.depth * block


def forward_flops(shape: DiTConfig, tokens: int, words: int, rows: int = 1, longest: int = 0) -> int:
    """Return the floating-point operations of one forward pass over one clip; training costs three times as much.

    `rows` is the number of distinct noise levels among the clip's tokens, `longest` how many words they are padded to
    in company. For several clips, add them up.
    """
    D, P, text, keys = shape.width, shape.patch_values, shape.words_width, tokens + max(words, longest)
    block = tokens * (4 + 2 * shape.expansion) * D * D + words * 2 * text * D + 2 * tokens * keys * D
    condition = rows * (2 * FREQUENCIES * D + D * D) + text * D + 4 * D + D * D
    per_row = rows * (D * D + 4 * D * D + D * D)
    per_token = tokens * (P * D + 4 * FREQUENCIES * D + D * P)
    return 2 * (shape.depth * block + condition + per_row + per_token)


def training_bytes(shape: DiTConfig, tokens: int) -> int:
    """Estimate the memory of training on packs of `tokens` tokens: weights, gradients, AdamW's two moments and the
    average in fp32, and about 20 activations of the model's width a token and block, plus the feed-forward's.
    """
    activations = tokens * shape.depth * (20 + 3 * shape.expansion) * shape.width
    return 4 * (5 * parameters(shape) + activations)


def dreaming_bytes(shape: DiTConfig, tokens: int) -> int:
    """Estimate the memory that a forward pass fills beside the weights, in fp32: in a block's feed-forward net."""
    return 4 * tokens * ((6 + 3 * shape.expansion) * shape.width + shape.head_width + shape.patch_values)


def grids(vae: VideoVAE, T: int, H: int, W: int) -> list[int]:
    """Return how many positions each stage of a VAE has for latents (T, H, W), the finest first."""
    found = [T * H * W]
    for time, down, across in reversed(list(vae.config["downs"])):
        T, H, W = T * time - (time - 1), H * down, W * across
        found.append(T * H * W)
    return found[::-1]


def encode_flops(vae: VideoVAE, T: int, H: int, W: int) -> int:
    """Return the floating-point operations of coding a clip as latents (T, H, W)."""
    config, at = vae.config, grids(vae, T, H, W)
    widths, downs = config["widths"], config["downs"]
    work = at[0] * 9 * 3 * math.prod(config["patch"]) * widths[0]
    work += sum(
        n * blocks * 12 * width**2 for n, blocks, width in zip(at, config["encoder_blocks"], widths, strict=True)
    )
    for n, before, after, down in zip(at[1:], widths, widths[1:], downs, strict=False):
        work += n * before * math.prod(down) * after
    return 2 * (work + at[-1] * vae.channels * (2 * widths[-1] + 3 * math.prod(vae.stride)))


def decode_flops(vae: VideoVAE, T: int, H: int, W: int) -> int:
    """Return the floating-point operations of showing latents (T, H, W), in pieces or as a whole."""
    config, at = vae.config, grids(vae, T, H, W)
    widths, downs = config["widths"], config["downs"]
    work = at[-1] * 9 * vae.channels * widths[-1] + at[0] * 9 * widths[0] * 3 * math.prod(config["patch"])
    work += sum(
        n * blocks * 12 * width**2 for n, blocks, width in zip(at, config["decoder_blocks"], widths, strict=True)
    )
    for n, after, before, down in zip(at[1:], widths, widths[1:], downs, strict=False):
        work += n * before * math.prod(down) * after
    return 2 * work + sketch_flops(vae, T, H, W)


def sketch_flops(vae: VideoVAE, T: int, H: int, W: int) -> int:
    """Return the floating-point operations of showing latents (T, H, W) by the linear code alone."""
    return 2 * T * H * W * vae.channels * 3 * math.prod(vae.stride)


def decoding_bytes(vae: VideoVAE, steps: int, H: int, W: int) -> int:
    """Estimate the memory that showing a piece of so many latent time steps fills beside the weights, at most, in fp32:
    what each block knows of this piece and of the one before, and the finest stage's mix of time steps or the pixels.
    """
    config, pixels = vae.config, 3 * math.prod(vae.stride) * steps * H * W
    levels = [n * width for n, width in zip(grids(vae, steps, H, W), config["widths"], strict=True)]
    past = sum(
        2 * blocks * level * (steps + 2) // steps
        for blocks, level in zip(config["decoder_blocks"], levels, strict=True)
    )
    return 4 * (past + max(9 * levels[0] + 2 * pixels, 5 * pixels))
