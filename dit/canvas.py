"""The one mechanism: what is given, and one noise map.

A mode is a painting. `level` 0 keeps what is given, 1 dreams it, between edits it. At time s of a sampler a latent's
noise is tau = level * s; where level is 0 nothing ever moves, so what is given comes out bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dit.flow import interpolate


@dataclass(frozen=True)
class Canvas:
    """given (C, T, H, W) latents and level (T, H, W) in [0, 1]; fps, frames a second of the clip to be.

    `told` is what is said when, (time step, prompt), where it is not one prompt throughout. On a circle, the first time
    step follows the last.
    Raises ValueError where given and level disagree in size or a level lies outside [0, 1].
    """

    given: Tensor
    level: Tensor
    fps: float
    told: tuple[tuple[int, str], ...] = ()
    circle: bool = False

    def __post_init__(self):
        if self.given.shape[1:] != self.level.shape:
            raise ValueError(
                f"a canvas needs one level for each latent; "
                f"got latents {tuple(self.given.shape)} and levels {tuple(self.level.shape)}"
            )
        if not ((self.level >= 0) & (self.level <= 1)).all():
            raise ValueError(f"levels must lie in [0, 1]; got {self.level.min():.3g} to {self.level.max():.3g}")

    @property
    def steps(self) -> int:
        """How many time steps of latents there are."""
        return self.given.shape[1]

    @property
    def dreamed(self) -> list[bool]:
        """Of which time steps something is dreamed or edited."""
        return self.level.flatten(1).any(1).tolist()

    def part(self, begin: int, end: int) -> Canvas:
        """Return some time steps of the canvas."""
        return replace(self, given=self.given[:, begin:end], level=self.level[begin:end])

    def keep(self, latents: Tensor, step: int) -> Canvas:
        """Return the canvas with latents (C, T', H, W) given from a time step on, never to move."""
        given, level = self.given.clone(), self.level.clone()
        end = step + latents.shape[1]
        if end > self.steps:
            raise ValueError(f"what is kept must end by step {self.steps}; got {step} to {end}")
        given[:, step:end], level[step:end] = latents.to(given), 0
        return replace(self, given=given, level=level)

    def tell(self, moments: Sequence[tuple[int, str]]) -> Canvas:
        """Return the canvas with words of their own from each of some rising time steps on."""
        return replace(self, told=tuple(moments))

    def to(self, device) -> Canvas:
        """Return the canvas on a device."""
        return replace(self, given=self.given.to(device), level=self.level.to(device))

    def start(self, noise: Tensor) -> Tensor:
        """Return the latents a sampler starts from: as much noise (C, T, H, W) as each level says."""
        return interpolate(self.given, noise, self.level)


def shares(told: Sequence[tuple[int, str]], first: int, steps: int) -> Tensor:
    """Return how much each moment counts at `steps` time steps from `first` on, (moments, steps); columns add up to 1.

    A moment counts from its step on, and hands over to the next across HANDOVER steps around the next one's beginning.
    """
    time = torch.arange(first, first + steps, dtype=torch.float32)
    begun = torch.stack([((time - begin) / HANDOVER + 0.5).clamp(0, 1) for begin, _ in told])
    begun[0] = 1
    return begun - torch.cat([begun[1:], torch.zeros(1, steps)])


HANDOVER = 2  # time steps of latents


def blank(shape: tuple[int, int, int, int], fps: float, device=None) -> Canvas:
    """Return a canvas (C, T, H, W) on which everything is to be dreamed."""
    return Canvas(torch.zeros(shape, device=device), torch.ones(shape[1:], device=device), fps)
