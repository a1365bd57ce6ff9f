"""Rectified flow: the straight path from data to noise, and its velocity.

The convention of the whole code: t = 0 is data, t = 1 is noise, x_t = (1 - t) data + t noise, v = noise - data. On this
path the noise level sigma equals t. Rectified flow: Liu et al. 2022 (arXiv 2209.03003). Logit-normal timesteps and the
resolution-dependent shift: Esser et al. 2024 (arXiv 2403.03206).
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor


def interpolate(data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Return x_t on the path from data to noise: exactly data at t = 0, exactly noise at t = 1. Shapes broadcast."""
    return (1 - t) * data + t * noise


def velocity(data: Tensor, noise: Tensor) -> Tensor:
    """Return the velocity dx/dt of the path, the same at every t: the model's training target."""
    return noise - data


def denoised_from_velocity(x: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """Return the data prediction (denoised latents) of a velocity v at (x, t)."""
    return x - t * v


def timestep_shift(tokens: int, base_tokens: int, base_shift: float) -> float:
    """Return the timestep shift for a clip of `tokens` tokens: equation 23 of arXiv 2403.03206.

    Larger clips need more noise for the same loss of information. The shift is `base_shift`, which suits `base_tokens`,
    times the square root of the ratio of token counts.
    """
    return base_shift * math.sqrt(tokens / base_tokens)


def shift_timesteps(t: Tensor, shift: float | Tensor) -> Tensor:
    """Shift timesteps in [0, 1] towards noise: t' = s t / (1 + (s - 1) t), equation 23 of arXiv 2403.03206.

    0 and 1 stay fixed.
    """
    return shift * t / (1 + (shift - 1) * t)


def sample_timesteps(uniform: Tensor, shift: float | Tensor = 1.0, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Map uniform numbers in (0, 1) to training timesteps: logit-normal (section 3.1 of arXiv 2403.03206), shifted.

    The uniform numbers are an argument, not drawn here, so that a sample's timestep depends on its index alone.
    """
    normal = torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6))
    return shift_timesteps(torch.sigmoid(mean + std * normal), shift)


def sigma_schedule(scheduler, steps: int, tokens: int) -> Tensor:
    """Return the noise levels of a sampler, (steps + 1,) from 1 to 0, shifted for a clip of `tokens` tokens.

    `scheduler` is diffusers' FlowMatchEulerDiscreteScheduler; its config gives `base_image_seq_len` and `base_shift`.
    Raises ValueError for fewer than one step.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1; got {steps}")
    shift = timestep_shift(tokens, scheduler.config.base_image_seq_len, scheduler.config.base_shift)
    even = torch.linspace(1, 0, steps + 1)[:-1].tolist()
    # The scheduler's exponential shift by mu equals `shift_timesteps` by exp(mu).
    scheduler = copy.copy(scheduler)  # of which other threads may ask another schedule
    scheduler.set_timesteps(sigmas=even, mu=math.log(shift))
    return scheduler.sigmas.clone()


def make_scheduler(base_tokens: int, base_shift: float):
    """Return the diffusers scheduler that stores a model's shift in its folder."""
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_image_seq_len=base_tokens, base_shift=base_shift, time_shift_type="exponential"
    )
