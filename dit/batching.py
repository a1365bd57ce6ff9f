"""Clips to sample, and which of them may share a pack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dit.canvas import Canvas
from dit.request import Request
from dit.sampler import seeded_noise
from dit.windows import samples_first_window_alone


@dataclass(frozen=True)
class SamplingJob:
    """A clip to sample: the index and the resolved form of its request, and its canvas.

    `window` latent frames are sampled at once; `longest_trained` is the longest trained length at the clip's size, in
    latent frames.
    """

    index: int
    request: Request
    canvas: Canvas
    window: int
    longest_trained: int

    @property
    def steps(self) -> int:
        """Number of sampler steps, those of a first window that is sampled alone included."""
        return (self.request.steps or 0) * (2 if samples_first_window_alone(self.canvas, self.window) else 1)

    @property
    def in_one_window(self) -> bool:
        """Whether the model sees the whole clip at once."""
        return self.window == self.canvas.latent_frames and not self.canvas.periodic

    def noise(self, more_frames: int = 0) -> Tensor:
        """Return the noise (C, T, H, W) of the clip, and of `more_frames` latent frames after it.

        Beyond the longest trained length, each frame's noise is an equal mix of its own and of that of a frame of the
        first trained length, in turn. Similar noise gives similar images, as in PYoCo (arXiv 2305.10474) and FreeNoise
        (arXiv 2310.15169): subjects stay the same, and yet their motion does not repeat.
        """
        channels, T, *sides = self.canvas.clean_latents.shape
        noise = seeded_noise(self.request.seed, (channels, T + more_frames, *sides)).to(self.canvas.clean_latents)
        if self.canvas.periodic or self.longest_trained >= T:
            return noise
        beyond = torch.arange(self.longest_trained, T + more_frames)
        repeated = noise[:, 1 + (beyond - 1) % (self.longest_trained - 1)]
        mixed = (noise[:, self.longest_trained :] + repeated) / 2**0.5
        return torch.cat([noise[:, : self.longest_trained], mixed], 1)

    def can_share_pack(self, other: SamplingJob) -> bool:
        """Return whether both may be one pack: each in one window, with the same steps and sampler."""
        same = (self.request.steps, self.request.sampler) == (other.request.steps, other.request.sampler)
        return self.in_one_window and other.in_one_window and same


def make_packs(jobs: Sequence[SamplingJob], pack_size: int) -> list[list[SamplingJob]]:
    """Divide jobs, in order, into packs of at most `pack_size`; raises ValueError for a size below 1."""
    if pack_size < 1:
        raise ValueError(f"pack_size must be at least 1; got {pack_size}")
    packs: list[list[SamplingJob]] = []
    for job in jobs:
        if packs and len(packs[-1]) < pack_size and packs[-1][0].can_share_pack(job):
            packs[-1].append(job)
        else:
            packs.append([job])
    return packs
