"""Clips longer than those of training: dreamed window by window, in latent space.

Each window sees the end of what is done as given latents, and before them, in place of the latent that would come
first, the last frame of that latent coded as a picture, since the first latent of every clip of training is one. That
picture is only looked at: the clip itself is never decoded and coded again, which is where long clips drift.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from torch import Tensor

from dit.canvas import Canvas
from vae.model import VideoVAE

# Dream a canvas that stands at a time step of the whole: the latents after each step of the sampler.
Dream = Callable[[Canvas, int], Iterator[Tensor]]


def window_of(steps: int, trained: list[int]) -> int:
    """Return the length of the windows for a clip of so many time steps: the longest of training that it fills.

    Raises ValueError for a clip shorter than any.
    """
    fitting = [length for length in trained if length <= steps]
    if not fitting:
        raise ValueError(f"a clip must have at least {min(trained)} time steps of latents; got {steps}")
    return max(fitting)


def next_window(level: Tensor, window: int) -> int | None:
    """Return where the next window begins, given the levels (T, H, W) of what is still to be dreamed; None at the end.

    A gap that leaves room for it stands in the middle, between what is before it and what is given behind; else the
    window's first half is what is done.
    """
    dreamed = level.flatten(1).any(1).tolist()
    if True not in dreamed:
        return None
    steps, first = len(dreamed), dreamed.index(True)
    end = dreamed.index(False, first) if False in dreamed[first:] else steps
    room, behind = window - (end - first), (window + 1) // 2
    if end < steps and room >= 2:
        behind = (room + 1) // 2
    return max(0, min(first - behind, steps - window))


def dream_long(canvas: Canvas, window: int, vae: VideoVAE, dream: Dream) -> Iterator[Tensor]:
    """Dream a canvas window by window; yields all latents after each step of each window's sampler, the last being the
    result.
    """
    found, level = canvas.given.clone(), canvas.level.clone()
    reel = Reel(vae)
    while (start := next_window(level, window)) is not None:
        end = start + window
        part = replace(canvas, given=found[:, start:end].clone(), level=level[start:end].clone())
        if start:
            part = part.keep(reel.picture(found[:, : start + 1]), 0)
        for latents in dream(part, start):
            first = 1 if start else 0
            found[:, start + first : end] = latents[:, first:]
            yield found
        level[start:end] = 0
    yield found


def dreamed_windows(canvas: Canvas, window: int) -> int:
    """Return how many windows `dream_long` will dream."""
    level, count = canvas.level.clone(), 0
    while (start := next_window(level, window)) is not None:
        level[start : start + window] = 0
        count += 1
    return count


class Reel:
    """Shows latents in order, in constant memory, for the sake of single frames."""

    def __init__(self, vae: VideoVAE):
        self.vae, self.past, self.shown = vae, None, 0

    def picture(self, latents: Tensor) -> Tensor:
        """Return the last frame of latents (C, T, H, W), coded as a picture (C, 1, H, W). What was shown before must be
        among them.
        """
        pixels = None
        while self.shown < latents.shape[1]:
            pixels, self.past = self.vae.decode_piece(latents[None, :, self.shown : self.shown + 1], self.past)
            self.shown += 1
        assert pixels is not None, "windows move on"
        return self.vae.encode(pixels[:, :, -1:])[0]
