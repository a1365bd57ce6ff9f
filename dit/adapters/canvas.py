"""A canvas that also has the images themselves, for models that read given frames as pixels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dit.canvas import Canvas


@dataclass(frozen=True)
class GivenCanvas(Canvas):
    """A canvas with `images`: (video frame, pixels (3, Y, X) in [-1, 1]) of the images that were placed on it."""

    images: tuple[tuple[int, Tensor], ...] = ()

    @property
    def kept_frames(self) -> list[int]:
        """The latent frames that are kept whole."""
        return [frame for frame, mask in enumerate(self.denoise_mask) if not mask.any()]


def given_video(canvas: GivenCanvas, vae) -> tuple[Tensor, Tensor]:
    """Return pixels (3, F, Y, X) in [-1, 1], gray where nothing is given, and which frames (F,) are given.

    An image is placed on its one frame. What is kept without an image, such as a clip's latents, is decoded.
    """
    time, down, across = vae.stride
    _, T, H, W = canvas.clean_latents.shape
    pixels = torch.zeros(3, vae.frame_count(T), H * down, W * across, device=canvas.clean_latents.device)
    given = torch.zeros(pixels.shape[1], dtype=torch.bool, device=pixels.device)
    covered = {-(-frame // time) for frame, _ in canvas.images}
    rest = [frame for frame in canvas.kept_frames if frame not in covered]
    if rest:
        decoded = vae.decode(canvas.clean_latents[None])[0]
        for frame in rest:
            span = slice(max(0, 1 + (frame - 1) * time), 1 + frame * time)
            pixels[:, span], given[span] = decoded[:, span].to(pixels), True
    for frame, image in canvas.images:
        if frame < len(given):
            pixels[:, frame], given[frame] = image.to(pixels), True
    return pixels, given
