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
    """The velocity of a circle (C, T, H, W): what is seen in windows of `length` time steps around it, and where they
    overlap, the mean. `look` sees as many as `windows_around` says.

    `noise` (C, T, H, W) is what the pictures before the windows lie under.
    """

    def __init__(self, look: Velocity, vae: VideoVAE, length: int, noise: Tensor):
        self.look, self.vae, self.length, self.noise = look, vae, length, noise
        self.looks, self.clean = 0, noise

    def __call__(self, xs: list[Tensor], levels: list[Tensor]) -> list[Tensor]:
        (x,), (level,) = xs, levels
        period, count = x.shape[1], windows_around(x.shape[1], self.length)
        turn = math.floor(self.looks * GOLDEN % 1 * period)
        cuts = [(turn + round(number * period / count)) % period for number in range(count)]
        places = [(cut + torch.arange(-1, self.length - 1)) % period for cut in cuts]
        pictures = [self.picture(place[:1], level) for place in places]
        found = self.look(
            [torch.cat([picture, x[:, place[1:]]], 1) for picture, place in zip(pictures, places, strict=True)],
            [level[place] for place in places],
        )
        sums, seen = torch.zeros_like(x), x.new_zeros(period)
        for velocity, place in zip(found, places, strict=True):
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
    frames = vae.sketch(torch.cat([ring[:, -1:], ring], 1)[None])[0]
    each = vae.stride[0]
    change = (frames[:, 1::each] - frames[:, :-1:each]).square().mean((0, 2, 3))
    return ring.roll(-int(change.argmin()), 1)
