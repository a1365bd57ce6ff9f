"""Random denoise masks for training: the same kinds that the modes make, so that every mode is in distribution."""

from __future__ import annotations

import numpy as np

# Probability of each kind of mask. "full" is text-to-video; a prefix of one latent frame is image-to-video.
MASK_PROBABILITIES = {"full": 0.8, "prefix": 0.1, "suffix": 0.02, "both": 0.03, "window": 0.02, "region": 0.03}
SOFT_PROBABILITY = 0.2  # of the masks that are not full: what would be kept gets a value between 0 and 1 instead


def draw_denoise_mask(rng: np.random.Generator, shape: tuple[int, int, int], patch: tuple[int, int, int]) -> np.ndarray:
    """Draw a denoise mask (T, H, W) for a clip of latents: 1 to denoise, 0 to keep, between to edit.

    It is 1 somewhere. Regions end at patch boundaries. A single latent frame gets a full mask or a region.
    """
    T, H, W = shape
    kinds = list(MASK_PROBABILITIES) if T > 1 else ["full", "region"]
    probabilities = np.array([MASK_PROBABILITIES[kind] for kind in kinds])
    kind = str(rng.choice(kinds, p=probabilities / probabilities.sum()))
    mask = np.zeros(shape, dtype=np.float32)
    start, end = _draw_interval(rng, T)
    if kind == "full":
        mask[:] = 1
    elif kind == "prefix":
        mask[1 if rng.random() < 0.7 else int(rng.integers(1, T)) :] = 1
    elif kind == "suffix":
        mask[: int(rng.integers(1, T))] = 1
    elif kind == "both":
        mask[1:-1] = 1
        if T == 2:
            mask[1:] = 1
    elif kind == "window":
        mask[start:end] = 1
    else:
        (top, bottom), (left, right) = (
            _draw_interval(rng, side // stride) for side, stride in zip((H, W), patch[1:], strict=True)
        )
        inside = np.zeros(shape, dtype=bool)
        inside[:, top * patch[1] : bottom * patch[1], left * patch[2] : right * patch[2]] = True
        mask[inside if rng.random() < 0.5 or inside.all() else ~inside] = 1
    if kind != "full" and rng.random() < SOFT_PROBABILITY:
        mask[mask == 0] = rng.uniform(0.1, 0.95)
    return mask


def _draw_interval(rng: np.random.Generator, size: int) -> tuple[int, int]:
    """Draw an interval [start, end) of at least one position within [0, size)."""
    start, end = sorted(int(position) for position in rng.choice(size + 1, 2, replace=False))
    return start, end
