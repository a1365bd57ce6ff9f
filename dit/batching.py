"""Clips to be made, and which of them may be dreamed as one pack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dit.canvas import Canvas
from dit.request import Request
from dit.sampler import seeded_noise
from dit.windows import beginning


@dataclass(frozen=True)
class Job:
    """A clip to be made: its request, resolved, the canvas, how many time steps of it are dreamed at once, and how many
    the longest clip of training has at its size.
    """

    number: int
    request: Request
    canvas: Canvas
    window: int
    longest: int

    @property
    def looks(self) -> int:
        """How often the sampler looks at the clip."""
        return (self.request.steps or 0) * (2 if beginning(self.canvas, self.window) else 1)

    @property
    def whole(self) -> bool:
        """Whether the clip is dreamed in one window."""
        return self.window == self.canvas.latent_frames and not self.canvas.periodic

    def noise(self, steps: int = 0) -> Tensor:
        """Return the noise (C, T, H, W) of the whole clip, and of so many more time steps.

        Behind the longest clip of training, half of it is that of the steps of one such clip, over and over, since like
        noise becomes a like picture, as in PYoCo (arXiv 2305.10474) and FreeNoise (arXiv 2310.15169): things stay what
        they are, and do not move in circles yet.
        """
        channels, T, *sides = self.canvas.clean_latents.shape
        noise = seeded_noise(self.request.seed, (channels, T + steps, *sides)).to(self.canvas.clean_latents)
        if self.canvas.periodic or self.longest >= T:
            return noise
        behind = torch.arange(self.longest, T + steps)
        again = noise[:, 1 + (behind - 1) % (self.longest - 1)]
        return torch.cat([noise[:, : self.longest], (noise[:, self.longest :] + again) / 2**0.5], 1)

    def fits(self, other: Job) -> bool:
        """Say whether both may be dreamed as one pack: each in one window, in as many steps of one method."""
        ways = {(job.request.steps, job.request.sampler) for job in (self, other)}
        return self.whole and other.whole and len(ways) == 1


def packed(jobs: Sequence[Job], together: int) -> list[list[Job]]:
    """Part jobs into runs of at most `together` neighbours that fit each other; raises ValueError for fewer than 1."""
    if together < 1:
        raise ValueError(f"together must be at least 1; got {together}")
    packs: list[list[Job]] = []
    for job in jobs:
        if packs and len(packs[-1]) < together and packs[-1][0].fits(job):
            packs[-1].append(job)
        else:
            packs.append([job])
    return packs
