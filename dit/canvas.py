"""The one mechanism: what is given, and one noise map.

A mode is a painting. `level` 0 keeps what is given, 1 dreams it, between edits it. At time s of a sampler a latent's
noise is tau = level * s; where level is 0 nothing ever moves, so what is given comes out bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dit.flow import interpolate


@dataclass(frozen=True)
class Canvas:
    """given (C, T, H, W) latents and level (T, H, W) in [0, 1]; fps, frames a second of the clip to be.

    Raises ValueError where the two disagree in size or a level lies outside [0, 1].
    """

    given: Tensor
    level: Tensor
    fps: float

    def __post_init__(self):
        if self.given.shape[1:] != self.level.shape:
            raise ValueError(
                f"a canvas needs one level for each latent; "
                f"got latents {tuple(self.given.shape)} and levels {tuple(self.level.shape)}"
            )
        if not ((self.level >= 0) & (self.level <= 1)).all():
            raise ValueError(f"levels must lie in [0, 1]; got {self.level.min():.3g} to {self.level.max():.3g}")

    def start(self, noise: Tensor) -> Tensor:
        """Return the latents a sampler starts from: as much noise (C, T, H, W) as each level says."""
        return interpolate(self.given, noise, self.level)


def blank(shape: tuple[int, int, int, int], fps: float, device=None) -> Canvas:
    """Return a canvas (C, T, H, W) on which everything is to be dreamed."""
    return Canvas(torch.zeros(shape, device=device), torch.ones(shape[1:], device=device), fps)
