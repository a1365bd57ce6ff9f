"""From a canvas and noise to a clip: guided Euler, Heun and DPM-Solver++ along the model's velocity.

Classifier-free guidance: Ho & Salimans 2022 (arXiv 2207.12598). Heun's second-order step: Karras et al. 2022 (arXiv
2206.00364), algorithm 1. DPM-Solver++(2M): Lu et al. 2022 (arXiv 2211.01095), algorithm 2. diffusers' schedulers have
one noise level for a whole clip, where ours has one for every latent; a test holds the two together where they agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from dit.canvas import Canvas
from dit.flow import data_from
from dit.request import METHODS

# Velocity of clips, each (C, T, H, W), at noise levels, each (T, H, W); one call for all clips.
Velocity = Callable[[list[Tensor], list[Tensor]], list[Tensor]]
Heading = Callable[[int, list[Tensor]], None]


def sample(
    velocity: Velocity,
    canvases: Sequence[Canvas],
    noise: Sequence[Tensor],
    times: Sequence[Tensor],
    method: str,
    heading: Heading | None = None,
) -> Iterator[list[Tensor]]:
    """Dream all canvases together; yield the latents after each step, the last being the result.

    `times[i]` are clip i's own (steps + 1,) times from 1 to 0, equally many for all. A latent moves by
    x += (tau' - tau) v, tau = level * time, so where level is 0 it does not move at all. `heading` is told before each
    step what clean latents it moves towards.
    Raises ValueError for an unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    xs = [canvas.start(start) for canvas, start in zip(canvases, noise, strict=True)]
    behind: list[tuple[Tensor, Tensor]] = []  # each clip's clean guess, and its noise levels, a step before
    for step in range(len(times[0]) - 1):
        now, then = (
            [canvas.level * time[i] for canvas, time in zip(canvases, times, strict=True)] for i in (step, step + 1)
        )
        strides = [after - before for before, after in zip(now, then, strict=True)]
        slope = velocity(xs, now)
        clean = [data_from(x, v, level) for x, v, level in zip(xs, slope, now, strict=True)]
        if heading:
            heading(step, clean)
        if method == "dpm":
            if behind:
                slope = [bend(*one) for one in zip(slope, clean, behind, now, then, strict=True)]
            behind = list(zip(clean, now, strict=True))
        ahead = [x + stride * v for x, stride, v in zip(xs, strides, slope, strict=True)]
        if method == "heun" and step < len(times[0]) - 2:
            there = velocity(ahead, then)
            ahead = [x + stride * (v + w) / 2 for x, stride, v, w in zip(xs, strides, slope, there, strict=True)]
        xs = ahead
        yield xs


def bend(v: Tensor, clean: Tensor, behind: tuple[Tensor, Tensor], now: Tensor, then: Tensor) -> Tensor:
    """Return the velocity to where the clean guess will be halfway through a step, if it goes on as in the last.

    Progress is counted in logarithms of signal to noise. From pure noise, and on the step to none, the guess
    stays.
    """
    before, earlier = behind
    start, middle, end = (torch.logit(1 - level) for level in (earlier, now, then))
    ratio = (end - middle) / (2 * (middle - start))
    return v - torch.where(ratio.isfinite(), ratio / now, 0) * (clean - before)


def guide(conditional: Tensor, unconditional: Tensor, guidance: float | Tensor, rescale: float = 0.0) -> Tensor:
    """Go further than the prompt asks, away from what would come without it: equation 6 of arXiv 2207.12598, with w + 1
    = guidance.

    `rescale` of the way, the result is given back the spread that it had with the prompt alone: equations 14 to 16 of
    arXiv 2305.08891, without which strong guidance overexposes.
    """
    guided = unconditional + guidance * (conditional - unconditional)
    if rescale:
        guided = guided * (1 - rescale + rescale * conditional.std() / guided.std())
    return guided


def noise_for(seed: int, shape: Sequence[int]) -> Tensor:
    """Return the noise (C, T, H, W) of a seed: normal numbers, each a function of the seed and its own place alone.

    So a longer, taller or wider clip begins with the same noise, on every device. The random bits are SplitMix64's
    (Steele, Lea & Flood 2014, doi 10.1145/2660193.2660195) of a counter.
    """
    channel, time, row, column = (torch.arange(size) for size in shape)
    place = (((time[:, None, None] << 16) + row[:, None]) << 16) + column
    bits = _mix((channel[:, None, None, None] << 52) + place + _mix(torch.tensor(seed)))
    uniform = ((_shifted(bits, 11)).double() + 0.5) * 2.0**-53
    return torch.special.ndtri(uniform).float()


def _mix(z: Tensor) -> Tensor:
    """Scramble 64-bit integers: SplitMix64's increment and finaliser."""
    z = z * -7046029254386353131 - 7046029254386353131
    z = (z ^ _shifted(z, 30)) * -4658895280553007687
    z = (z ^ _shifted(z, 27)) * -7723592293110705685
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Shift right without carrying the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
