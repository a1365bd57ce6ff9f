"""The canvas: clean latents and a denoise mask, the one mechanism of all modes.

A mode fills in one canvas. Where the mask is 0 the clean latents are kept, where it is 1 they are generated, between
they are edited (SDEdit, arXiv 2108.01073). When the sampler is at noise level sigma, a latent is at mask * sigma. Where
the mask is 0 nothing ever moves, so kept latents come out bit-identical.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dit.flow import interpolate

CROSSFADE_FRAMES = 2  # latent frames over which one prompt hands over to the next


@dataclass(frozen=True)
class SoundPart:
    """A stretch of a file's soundtrack and its place: from `begin` to `end`, and in the canvas at `at`, in seconds."""

    path: str
    at: float
    begin: float
    end: float


@dataclass(frozen=True)
class Canvas:
    """Clean latents (C, T, H, W) and a denoise mask (T, H, W) in [0, 1]; `fps` is the clip's frames per second.

    `prompt_schedule` lists (latent frame, prompt), ascending; it is empty if one prompt holds throughout. On a
    `periodic` canvas the first latent frame follows the last. `trim` is how many frames at the beginning and the end
    only pad a given clip to whole latent frames, and are not shown. `sound` is what is kept of given soundtracks.
    Raises ValueError if latents and mask differ in size or the mask leaves [0, 1].
    """

    clean_latents: Tensor
    denoise_mask: Tensor
    fps: float
    prompt_schedule: tuple[tuple[int, str], ...] = ()
    periodic: bool = False
    trim: tuple[int, int] = (0, 0)
    sound: tuple[SoundPart, ...] = ()

    def __post_init__(self):
        if self.clean_latents.shape[1:] != self.denoise_mask.shape:
            raise ValueError(
                f"denoise_mask must have one value for each latent; "
                f"got latents {tuple(self.clean_latents.shape)} and a mask {tuple(self.denoise_mask.shape)}"
            )
        if not ((self.denoise_mask >= 0) & (self.denoise_mask <= 1)).all():
            lowest, highest = self.denoise_mask.min(), self.denoise_mask.max()
            raise ValueError(f"denoise_mask must lie in [0, 1]; got {lowest:.3g} to {highest:.3g}")

    @property
    def latent_frames(self) -> int:
        """Number of latent frames, T."""
        return self.clean_latents.shape[1]

    @property
    def denoised_frames(self) -> list[bool]:
        """For each latent frame, whether any of it is generated or edited."""
        return self.denoise_mask.flatten(1).any(1).tolist()

    def crop(self, start: int, end: int) -> Canvas:
        """Return the canvas of latent frames `start` to `end`, end excluded; the prompt schedule stays as it is."""
        return replace(self, clean_latents=self.clean_latents[:, start:end], denoise_mask=self.denoise_mask[start:end])

    def keep(self, latents: Tensor, start: int) -> Canvas:
        """Return the canvas with latents (C, T', H, W) kept from latent frame `start` on: their mask is 0.

        Raises ValueError if they reach past the end.
        """
        clean_latents, denoise_mask = self.clean_latents.clone(), self.denoise_mask.clone()
        end = start + latents.shape[1]
        if end > self.latent_frames:
            raise ValueError(f"kept latents must end by latent frame {self.latent_frames}; got {start} to {end}")
        clean_latents[:, start:end], denoise_mask[start:end] = latents.to(clean_latents), 0
        return replace(self, clean_latents=clean_latents, denoise_mask=denoise_mask)

    def with_prompts(self, schedule: Sequence[tuple[int, str]]) -> Canvas:
        """Attach a prompt schedule: (latent frame, prompt), ascending."""
        return replace(self, prompt_schedule=tuple(schedule))

    def to(self, device) -> Canvas:
        """Return the canvas on a device."""
        return replace(self, clean_latents=self.clean_latents.to(device), denoise_mask=self.denoise_mask.to(device))

    def add_noise(self, noise: Tensor) -> Tensor:
        """Return the latents a sampler starts from: clean latents mixed with noise (C, T, H, W) by the mask."""
        return interpolate(self.clean_latents, noise, self.denoise_mask)


def prompt_weights(prompt_schedule: Sequence[tuple[int, str]], start: int, latent_frames: int) -> Tensor:
    """Return each prompt's weight in each latent frame from `start` on, (prompts, latent_frames); columns sum to 1.

    A prompt holds from its latent frame on. It fades linearly into the next over CROSSFADE_FRAMES frames, centred on
    the next one's first frame.
    """
    frame = torch.arange(start, start + latent_frames, dtype=torch.float32)
    fade_in = torch.stack([((frame - first) / CROSSFADE_FRAMES + 0.5).clamp(0, 1) for first, _ in prompt_schedule])
    fade_in[0] = 1
    return fade_in - torch.cat([fade_in[1:], torch.zeros(1, latent_frames)])


def blank(shape: tuple[int, int, int, int], fps: float, device=None) -> Canvas:
    """Return a canvas of `shape` (C, T, H, W) on which everything is generated."""
    return Canvas(torch.zeros(shape, device=device), torch.ones(shape[1:], device=device), fps)
