"""Rectified flow: the straight line between a clip and noise, and the velocity along it.

Said once, used everywhere: t = 0 is data, t = 1 is noise, x_t = (1 - t) data + t noise, v = noise - data.
Rectified flow: Liu et al. 2022 (arXiv 2209.03003). Logit-normal times and the shift with size: Esser et al. 2024 (arXiv
2403.03206).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def interpolate(data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Put `data` on its way to `noise`: at t = 0 exactly data, at t = 1 exactly noise. Shapes broadcast."""
    return (1 - t) * data + t * noise


def velocity(data: Tensor, noise: Tensor) -> Tensor:
    """Return the direction of travel, dx/dt, the same at every t: what the model learns to predict."""
    return noise - data


def data_from(x: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """Return the clip that a velocity at (x, t) points back to."""
    return x - t * v


def shift_for(tokens: int, base_tokens: int, base_shift: float) -> float:
    """Return how far to move times towards noise for a clip of `tokens` tokens: a larger clip hides its noise better.

    The square root of the ratio of tokens, equation 23 of arXiv 2403.03206, times the shift that suits `base_tokens`.
    """
    return base_shift * math.sqrt(tokens / base_tokens)


def shift_times(t: Tensor, shift: float | Tensor) -> Tensor:
    """Move times in [0, 1] towards noise, keeping both ends: t' = s t / (1 + (s - 1) t), equation 23 of arXiv
    2403.03206.
    """
    return shift * t / (1 + (shift - 1) * t)


def sample_times(uniform: Tensor, shift: float | Tensor = 1.0, mean: float = 0.0, spread: float = 1.0) -> Tensor:
    """Turn uniform numbers in (0, 1) into training times, logit-normal (section 3.1 of arXiv 2403.03206) and then
    shifted.

    Takes the uniform numbers rather than drawing them, so that a sample's time is a function of its index alone.
    """
    normal = torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6))
    return shift_times(torch.sigmoid(mean + spread * normal), shift)


def schedule(scheduler, steps: int, tokens: int) -> Tensor:
    """Return the `steps` + 1 times a sampler visits on a clip of `tokens` tokens, from 1 down to 0, shifted towards
    noise.

    `scheduler` is diffusers' FlowMatchEulerDiscreteScheduler; its `base_image_seq_len` and `base_shift` say how far.
    Raises ValueError for fewer than one step.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1; got {steps}")
    shift = shift_for(tokens, scheduler.config.base_image_seq_len, scheduler.config.base_shift)
    even = torch.linspace(1, 0, steps + 1)[:-1].tolist()
    scheduler.set_timesteps(sigmas=even, mu=math.log(shift))  # exponential in mu is the same shift as `shift_times`
    return scheduler.sigmas.clone()


def scheduler_for(base_tokens: int, base_shift: float):
    """Return the diffusers scheduler that carries a model's shift in its folder."""
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_image_seq_len=base_tokens, base_shift=base_shift, time_shift_type="exponential"
    )
