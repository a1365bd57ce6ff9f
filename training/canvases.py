"""Random canvases for training: the same paintings that the modes make, so that every mode is in distribution."""

from __future__ import annotations

import numpy as np

# Shares of the paintings. The blank one is text-to-video; a prefix of one latent is image-to-video.
PAINTINGS = {"blank": 0.8, "prefix": 0.1, "suffix": 0.02, "both": 0.03, "window": 0.02, "region": 0.03}
SOFT = 0.2  # of the canvases that are not blank: what would be kept is half forgotten instead


def draw_denoise_mask(rng: np.random.Generator, shape: tuple[int, int, int], patch: tuple[int, int, int]) -> np.ndarray:
    """Draw a level (T, H, W) for a clip of latents: 1 where it is dreamed, 0 where it is kept, between where it is
    edited.

    Somewhere it is always dreamed. Regions end at patches. A single frame is blank or has a region.
    """
    T, H, W = shape
    names = list(PAINTINGS) if T > 1 else ["blank", "region"]
    shares = np.array([PAINTINGS[name] for name in names])
    painting = str(rng.choice(names, p=shares / shares.sum()))
    level = np.zeros(shape, dtype=np.float32)
    begin, end = _stretch(rng, T)
    if painting == "blank":
        level[:] = 1
    elif painting == "prefix":
        level[1 if rng.random() < 0.7 else int(rng.integers(1, T)) :] = 1
    elif painting == "suffix":
        level[: int(rng.integers(1, T))] = 1
    elif painting == "both":
        level[1:-1] = 1
        if T == 2:
            level[1:] = 1
    elif painting == "window":
        level[begin:end] = 1
    else:
        (top, bottom), (left, right) = (
            _stretch(rng, side // step) for side, step in zip((H, W), patch[1:], strict=True)
        )
        inside = np.zeros(shape, dtype=bool)
        inside[:, top * patch[1] : bottom * patch[1], left * patch[2] : right * patch[2]] = True
        level[inside if rng.random() < 0.5 or inside.all() else ~inside] = 1
    if painting != "blank" and rng.random() < SOFT:
        level[level == 0] = rng.uniform(0.1, 0.95)
    return level


def _stretch(rng: np.random.Generator, length: int) -> tuple[int, int]:
    """Draw a stretch of at least one place within `length`."""
    begin, end = sorted(int(place) for place in rng.choice(length + 1, 2, replace=False))
    return begin, end
