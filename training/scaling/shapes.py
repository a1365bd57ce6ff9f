"""The sizes of a ladder of transformers, their parameters counted in three ways, and their training FLOPs."""

from __future__ import annotations

from dataclasses import dataclass

from dit.flops import count_parameters, forward_flops
from dit.model import FOURIER_FREQUENCIES, DiTConfig

COUNTINGS = ("all", "blocks", "flops")  # ways of counting parameters: a law's exponents depend on it


@dataclass(frozen=True)
class ModelShape:
    """Depth, width and width of an attention head."""

    depth: int
    width: int
    head_dim: int


# Width is 64 times depth throughout, so that no two depths share a width. From the third on, heads are divisible by 8,
# as sequence parallelism over 8 processes needs.
SHAPES = (
    ModelShape(1, 64, 32),
    ModelShape(2, 128, 32),
    ModelShape(3, 192, 24),
    ModelShape(4, 256, 32),
    ModelShape(6, 384, 48),
    ModelShape(8, 512, 64),
    ModelShape(10, 640, 80),
    ModelShape(12, 768, 96),
    ModelShape(16, 1024, 64),
    ModelShape(20, 1280, 80),
    ModelShape(24, 1536, 64),
    ModelShape(32, 2048, 128),
    ModelShape(40, 2560, 64),
    ModelShape(48, 3072, 128),
    ModelShape(64, 4096, 128),
)


def shape_of_depth(depth: int) -> ModelShape:
    """Return the shape of a depth; raises ValueError, which lists the depths, if there is none."""
    for shape in SHAPES:
        if shape.depth == depth:
            return shape
    raise ValueError(
        f"a rung must have a depth of the ladder, {', '.join(str(shape.depth) for shape in SHAPES)}; got {depth}"
    )


def parameter_counts(config: DiTConfig, tokens: int, text_tokens: int) -> dict[str, float]:
    """Count the parameters of a DiT in each of COUNTINGS.

    "all": every weight. "blocks": the matrices of the blocks. "flops": a sixth of the training FLOPs per token of clips
    of `tokens` tokens, attention included.
    """
    D = config.width
    block = (4 + 2 * config.mlp_ratio) * D * D + 2 * config.text_dim * D
    return {
        "all": float(count_parameters(config)),
        "blocks": float(config.depth * block),
        "flops": training_flops(config, tokens, text_tokens) / tokens / 6,
    }


def training_flops(config: DiTConfig, tokens: int, text_tokens: int, noise_levels: int = 1) -> int:
    """Return the FLOPs of the forward and backward pass over one clip.

    The backward pass costs two forward passes, without the gradients of the model's inputs, which nobody needs: below a
    width of 100 they are several percent.
    """
    D = config.width
    inputs = tokens * (config.patch_values + 4 * FOURIER_FREQUENCIES + 7 * config.camera) * D
    conditions = noise_levels * 2 * FOURIER_FREQUENCIES * D + 4 * D
    return 3 * forward_flops(config, tokens, text_tokens, noise_levels) - 2 * (inputs + conditions)
