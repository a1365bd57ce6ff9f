"""What a model costs, from its structure: parameters, arithmetic, memory. Equal to torch's FlopCounterMode; only matrix
products count.
"""

from __future__ import annotations

from dit.model import FREQUENCIES, SIDES, DiTConfig


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


def forward_flops(shape: DiTConfig, tokens: int, words: int, rows: int = 1) -> int:
    """Return the floating-point operations of one forward pass over one clip; training costs three times as much.

    `rows` is the number of distinct noise levels among the clip's tokens. For several clips, add them up.
    """
    D, P, text = shape.width, shape.patch_values, shape.words_width
    block = tokens * (4 + 2 * shape.expansion) * D * D + words * 2 * text * D + 2 * tokens * (tokens + words) * D
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
