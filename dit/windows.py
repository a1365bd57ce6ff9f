"""Clips longer than those of training, and loops: dreamed in latent space, in windows.

The model is shown one window after another at every look of the sampler, and where they overlap, the mean of what it
sees counts. They are cut elsewhere at every look, so that no join stays anywhere, as in Mobius (arXiv 2502.20307). The
first latent of every clip of training is one picture, so each window has one before it: that with which the clip
begins, or what is told of now, so that things stay what they are; behind what was given, the last one of it; on a
circle, that just before the window. So a clip's beginning is dreamed first, and then all of the rest at once, around
its first picture. Nothing is ever decoded and coded again, but for such pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from dit.canvas import CROSSFADE_FRAMES, Canvas
from dit.flow import denoised_from_velocity, interpolate
from dit.sampler import VelocityFn
from vae.model import VideoVAE

GOLDEN = (5**0.5 - 1) / 2  # its multiples fill a stretch evenly, however many
# The velocity of what stands on a part of a canvas that begins at a time step, and the noise it came from.
Look = Callable[[Canvas, int, Tensor], VelocityFn]


def window_of(steps: int, trained: list[int]) -> int:
    """Return the length of the windows for a clip of so many time steps: the longest of training that it fills.

    Raises ValueError for a clip shorter than any.
    """
    fitting = [length for length in trained if length <= steps]
    if not fitting:
        raise ValueError(f"a clip must have at least {min(trained)} time steps of latents; got {steps}")
    return max(fitting)


def cuts_of(canvas: Canvas, length: int, look: int) -> list[int]:
    """Return behind which time steps windows of `length` begin at a sampler's look: each is a picture and the `length`
    - 1 steps after its cut. All that is dreamed is in one or more.

    A gap that leaves room for it stands in the middle of one window, between what is given on both sides; a longer one
    begins with half a window of what is given before it.
    """
    steps, inside = canvas.latent_frames, length - 1
    turn = look * GOLDEN % 1
    if canvas.periodic:
        count = -(-steps // inside)
        return [(math.floor(turn * steps) + round(number * steps / count) - 1) % steps for number in range(count)]
    cuts: set[int] = set()
    for begin, end in _gaps(canvas):
        least, most, room = begin - 1 - inside // 2, end - 1 - (inside + 1) // 2, inside - (end - begin)
        if room >= 2:
            least = most = begin - 1 - (room + 1) // 2
        least, most = (min(max(0, cut), steps - length) for cut in (least, most))
        first = least + math.floor(turn * inside) - inside
        cuts |= {min(max(least, cut), most) for cut in range(first, most + inside, inside)}
    return sorted(cuts)


def _gaps(canvas: Canvas) -> list[tuple[int, int]]:
    """List the stretches of time steps, (first, behind the last), in which something is dreamed."""
    dreamed = [False, *canvas.denoised_frames, False]
    edges = [step for step, (before, after) in enumerate(pairwise(dreamed)) if before != after]
    return list(zip(edges[::2], edges[1::2], strict=True))


def places_of(canvas: Canvas, length: int, look: int, begun: Canvas | None = None) -> Iterator[tuple[int, Tensor]]:
    """Yield the windows of a sampler's look: the time step behind which one is cut, and its `length` time steps, of
    which the first is that whose last frame stands before it.

    That is the step of the cut on a circle; else the last up to it of which something is given, or with which a moment
    has begun, or the first behind it of which something is given, or where nothing is, the clip's first. `begun` is the
    canvas as it was, where its beginning has been dreamed since.
    """
    known = ((begun or canvas).denoise_mask.flatten(1).amin(1) < 1).nonzero().flatten().tolist()
    marks = [0, *known, *(begin + CROSSFADE_FRAMES // 2 for begin, _ in canvas.prompt_schedule[1:])]
    for cut in cuts_of(canvas, length, look):
        before = cut if canvas.periodic else max(mark for mark in marks if mark <= cut)
        if cut and not before and known and not canvas.periodic:
            before = known[0]
        inside = [(cut + step) % canvas.latent_frames for step in range(1, length)]
        yield cut, torch.tensor([before, *inside], device=canvas.denoise_mask.device)


def beginning(canvas: Canvas, length: int) -> bool:
    """Say whether a clip's first window of `length` is dreamed before the rest: where nothing is given at all."""
    return not canvas.periodic and canvas.latent_frames > length and bool((canvas.denoise_mask == 1).all())


class Windows:
    """The velocity of a canvas (C, T, H, W), seen in windows of `length` time steps, the picture before each included.

    `noise` (C, T, H, W) is what the pictures lie under. `begun` is the canvas as it was, where its beginning has been
    dreamed since.
    """

    def __init__(
        self, look: Look, vae: VideoVAE, canvas: Canvas, length: int, noise: Tensor, begun: Canvas | None = None
    ):
        self.look, self.vae, self.canvas, self.length, self.noise = look, vae, canvas, length, noise
        self.begun, self.looks, self.clean = begun, 0, torch.where(canvas.denoise_mask < 1, canvas.clean_latents, noise)

    def __call__(self, xs: list[Tensor], levels: list[Tensor]) -> list[Tensor]:
        (x,), (level,) = xs, levels
        sums, seen = torch.zeros_like(x), x.new_zeros(self.canvas.latent_frames)
        for cut, place in places_of(self.canvas, self.length, self.looks, self.begun):
            before = int(place[0])
            given, window = self.canvas.clean_latents[:, place], x[:, place]
            if before or self.canvas.periodic:  # else it is the clip's own first latent, which is a picture
                given[:, :1] = self.picture(before)
                window[:, :1] = interpolate(given[:, :1], self.noise[:, [before]], level[[before]])
            part = replace(
                self.canvas, clean_latents=given, denoise_mask=self.canvas.denoise_mask[place], periodic=False
            )
            (velocity,) = self.look(part, cut, self.noise[:, place])([window], [level[place]])
            own = 1 if cut or self.canvas.periodic else 0
            sums.index_add_(1, place[own:], velocity[:, own:])
            seen.index_add_(0, place[own:], seen.new_ones(self.length - own))
        answer = sums / seen.clamp(min=1)[:, None, None]
        self.looks, self.clean = self.looks + 1, denoised_from_velocity(x, answer, level)
        return [answer]

    def picture(self, step: int) -> Tensor:
        """Return the last frame of a time step, as far as it can be guessed by now, coded as a picture (C, 1, H, W)."""
        shown = self.vae.linear_preview(self.clean[None, :, [step, step]])[:, :, -1:]
        return self.vae.encode(shown)[0]


def cut_open(ring: Tensor, vae: VideoVAE) -> Tensor:
    """Return a circle of latents (C, T, H, W) turned so that it begins where the last frame of a time step and the
    first of the next differ least.
    """
    change, last = [], vae.stride[0]
    for step in range(ring.shape[1]):
        frames = vae.linear_preview(ring[None, :, [step - 1, step - 1, step]])[0]
        change.append(float((frames[:, last + 1] - frames[:, last]).square().mean()))
    return ring.roll(-change.index(min(change)), 1)
