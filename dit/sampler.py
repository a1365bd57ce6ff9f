"""Samplers: Euler, Heun and DPM-Solver++ along the model's velocity, from noise on a canvas to latents.

Classifier-free guidance: Ho & Salimans 2022 (arXiv 2207.12598). Heun's second-order step: Karras et al. 2022 (arXiv
2206.00364), algorithm 1. DPM-Solver++(2M): Lu et al. 2022 (arXiv 2211.01095), algorithm 2. The schedulers of diffusers
have one noise level per clip, these have one per latent; a test compares the two where they agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from dit.canvas import Canvas
from dit.flow import denoised_from_velocity
from dit.request import SAMPLERS

# (latents, sigmas) -> velocities: each clip's (C, T, H, W), (T, H, W) and (C, T, H, W); one call for all clips.
VelocityFn = Callable[[list[Tensor], list[Tensor]], list[Tensor]]
StepCallback = Callable[[int, list[Tensor]], None]  # step, each clip's denoised latents


def sample(
    velocity: VelocityFn,
    canvases: Sequence[Canvas],
    noise: Sequence[Tensor],
    sigmas: Sequence[Tensor],
    sampler: str,
    callback: StepCallback | None = None,
) -> Iterator[list[Tensor]]:
    """Sample all canvases together; yield the latents after each step, the last being the result.

    `sigmas[i]` (steps + 1,) is clip i's schedule from 1 to 0; all have the same number of steps. A latent is at
    tau = denoise_mask * sigma, and a step is x += (tau' - tau) v, so where the mask is 0 the latent does not move.
    `callback` gets the denoised latents predicted in each step, before the step is made.
    Raises ValueError for an unknown sampler.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}; got {sampler!r}")
    xs = [canvas.add_noise(clip_noise) for canvas, clip_noise in zip(canvases, noise, strict=True)]
    previous_denoised, previous_sigma = [], []
    last = len(sigmas[0]) - 2
    for step in range(last + 1):
        sigma, sigma_next = (
            [canvas.denoise_mask * schedule[i] for canvas, schedule in zip(canvases, sigmas, strict=True)]
            for i in (step, step + 1)
        )
        dts = [after - before for before, after in zip(sigma, sigma_next, strict=True)]
        vs = velocity(xs, sigma)
        denoised = [denoised_from_velocity(x, v, tau) for x, v, tau in zip(xs, vs, sigma, strict=True)]
        if callback:
            callback(step, denoised)
        if sampler == "dpm":
            if step:
                clips = zip(vs, denoised, previous_denoised, previous_sigma, sigma, sigma_next, strict=True)
                vs = [dpmpp_2m_velocity(*clip) for clip in clips]
            previous_denoised, previous_sigma = denoised, sigma
        xs_next = [x + dt * v for x, dt, v in zip(xs, dts, vs, strict=True)]
        if sampler == "heun" and step < last:  # the last step, to sigma 0, stays first order: algorithm 1
            vs_next = velocity(xs_next, sigma_next)
            xs_next = [x + dt * (v + w) / 2 for x, dt, v, w in zip(xs, dts, vs, vs_next, strict=True)]
        xs = xs_next
        yield xs


def evaluated_levels(sigmas: Tensor, sampler: str) -> Tensor:
    """Return the noise level of each evaluation of the model that `sample` makes with a schedule (steps + 1,)."""
    if sampler == "heun":  # each step evaluates its beginning and its end, but for the last
        return torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2)])
    return sigmas[:-1]


def dpmpp_2m_velocity(
    v: Tensor, denoised: Tensor, previous_denoised: Tensor, previous_sigma: Tensor, sigma: Tensor, sigma_next: Tensor
) -> Tensor:
    """Return the velocity of a DPM-Solver++(2M) step: algorithm 2 of arXiv 2211.01095.

    The denoised latents are extrapolated linearly, in the logarithm of the signal-to-noise ratio, to the middle of the
    step. A step from pure noise, or to none, has no such ratio and stays first order.
    """
    previous, current, following = (torch.logit(1 - tau) for tau in (previous_sigma, sigma, sigma_next))
    ratio = (following - current) / (2 * (current - previous))
    return v - torch.where(ratio.isfinite(), ratio / sigma, 0) * (denoised - previous_denoised)


def classifier_free_guidance(
    conditional: Tensor, unconditional: Tensor, guidance: float | Tensor, rescale: float = 0.0
) -> Tensor:
    """Return the guided velocity: equation 6 of arXiv 2207.12598, with guidance = w + 1.

    `rescale` in [0, 1] mixes in the same velocity scaled to the standard deviation of the conditional one (equations 14
    to 16 of arXiv 2305.08891), without which strong guidance overexposes.
    """
    guided = unconditional + guidance * (conditional - unconditional)
    if rescale:
        guided = guided * (1 - rescale + rescale * conditional.std() / guided.std())
    return guided


def seeded_noise(seed: int, shape: Sequence[int]) -> Tensor:
    """Return standard normal noise (C, T, H, W); each number depends on the seed and on its own position alone.

    So a longer, taller or wider clip begins with the same noise, on every device. The random bits are SplitMix64's
    (Steele, Lea & Flood 2014, doi 10.1145/2660193.2660195) of a counter.
    """
    channel, time, row, column = (torch.arange(size) for size in shape)
    position = (((time[:, None, None] << 16) + row[:, None]) << 16) + column
    bits = _splitmix64((channel[:, None, None, None] << 52) + position + _splitmix64(torch.tensor(seed)))
    uniform = ((_logical_shift_right(bits, 11)).double() + 0.5) * 2.0**-53
    return torch.special.ndtri(uniform).float()


def _splitmix64(z: Tensor) -> Tensor:
    """Hash 64-bit integers: SplitMix64's increment and finaliser."""
    z = z * -7046029254386353131 - 7046029254386353131
    z = (z ^ _logical_shift_right(z, 30)) * -4658895280553007687
    z = (z ^ _logical_shift_right(z, 27)) * -7723592293110705685
    return z ^ _logical_shift_right(z, 31)


def _logical_shift_right(z: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros; torch's own shift of a signed integer repeats the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
