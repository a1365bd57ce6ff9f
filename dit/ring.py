"""Loops: a circle of latents that is dreamed as a whole.

The model knows clips with a beginning, so the circle is shown to it cut into windows, at other places at every look:
no join stays anywhere, as in Mobius (arXiv 2502.20307). The first latent of every clip of training is one picture. So
each window has one before it: the last frame before the cut, as far as it can be guessed by now, under as much noise as
the rest.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dit.flow import data_from, interpolate
from dit.sampler import Velocity
from vae.model import VideoVAE

GOLDEN = (5**0.5 - 1) / 2  # its multiples fill a circle evenly, however many


def windows_around(period: int, length: int) -> int:
    """Return how many windows of `length` time steps, the picture before each included, go around a circle."""
    return -(-period // (length - 1))


class Ring:
    """The velocity of a circle (C, T, H, W): what `look` sees in windows of `length` time steps around it, one after
    the other, and where they overlap, the mean.

    `noise` (C, T, H, W) is what the pictures before the windows lie under.
    """

    def __init__(self, look: Velocity, vae: VideoVAE, length: int, noise: Tensor):
        self.look, self.vae, self.length, self.noise = look, vae, length, noise
        self.looks, self.clean = 0, noise

    def __call__(self, xs: list[Tensor], levels: list[Tensor]) -> list[Tensor]:
        (x,), (level,) = xs, levels
        period, count = x.shape[1], windows_around(x.shape[1], self.length)
        turn = math.floor(self.looks * GOLDEN % 1 * period)
        sums, seen = torch.zeros_like(x), x.new_zeros(period)
        for number in range(count):
            cut = turn + round(number * period / count)
            place = (cut + torch.arange(-1, self.length - 1, device=x.device)) % period
            window = torch.cat([self.picture(place[:1], level), x[:, place[1:]]], 1)
            (velocity,) = self.look([window], [level[place]])
            sums.index_add_(1, place[1:], velocity[:, 1:])
            seen.index_add_(0, place[1:], seen.new_ones(self.length - 1))
        answer = sums / seen[:, None, None]
        self.looks, self.clean = self.looks + 1, data_from(x, answer, level)
        return [answer]

    def picture(self, place: Tensor, level: Tensor) -> Tensor:
        """Return the last frame of a time step, coded as a picture (C, 1, H, W), under the noise of that step."""
        shown = self.vae.sketch(self.clean[None, :, place.repeat(2)])[:, :, -1:]
        return interpolate(self.vae.encode(shown)[0], self.noise[:, place], level[place])


def cut_open(ring: Tensor, vae: VideoVAE) -> Tensor:
    """Return a circle of latents (C, T, H, W) turned so that it begins where the last frame of a time step and the
    first of the next differ least.
    """
    change, last = [], vae.stride[0]
    for step in range(ring.shape[1]):
        frames = vae.sketch(ring[None, :, [step - 1, step - 1, step]])[0]
        change.append(float((frames[:, last + 1] - frames[:, last]).square().mean()))
    return ring.roll(-change.index(min(change)), 1)
