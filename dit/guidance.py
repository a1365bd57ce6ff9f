"""Prompt schedules and guidance: which forward passes a step needs, and how their velocities become one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dit.canvas import Canvas, prompt_weights
from dit.flow import interpolate
from dit.request import Request
from dit.sampler import classifier_free_guidance


@dataclass(frozen=True)
class WeightedPrompts:
    """The prompts of a stretch of latent frames, their weights (prompts, T), and the prompt that guidance leaves."""

    prompts: tuple[str, ...]
    weights: Tensor
    negative_prompt: str

    @classmethod
    def of(cls, request: Request, canvas: Canvas, start: int) -> WeightedPrompts:
        """Return the prompts that have weight on a canvas which begins at latent frame `start` of a request's clip."""
        schedule = canvas.prompt_schedule or ((0, request.effective_prompt),)
        weights = prompt_weights(schedule, start, canvas.latent_frames)
        active = [index for index in range(len(schedule)) if weights[index].any()]
        return cls(tuple(schedule[index][1] for index in active), weights[active], request.negative_prompt or "")

    @property
    def distinct(self) -> tuple[str, ...]:
        """All prompts to encode, the negative one among them, each once and sorted."""
        return tuple(sorted({*self.prompts, self.negative_prompt}))

    def blend(self, velocities: list[Tensor]) -> Tensor:
        """Return the weighted mean of the prompts' velocities, each (C, T, H, W)."""
        if len(velocities) == 1:
            return velocities[0]
        weights = self.weights.to(velocities[0])[:, None, :, None, None]
        return (torch.stack(velocities) * weights).sum(0)


def guidance_scale(request: Request, sigma: Tensor) -> Tensor:
    """Return the guidance scale of each latent (T, H, W): the request's within its interval of noise levels, else 1.

    Guidance in a limited interval: Kynkäänniemi et al. 2024 (arXiv 2404.07724).
    """
    low, high = request.guidance_interval or (0.0, 1.0)
    scale = 1.0 if request.guidance is None else request.guidance
    return torch.where((sigma >= low) & (sigma <= high), scale, 1.0)


@dataclass(frozen=True)
class ForwardPass:
    """One input of the model: latents (C, T, H, W), their noise levels (T, H, W) and a prompt.

    It is `conditional` unless the prompt is the negative one.
    """

    latents: Tensor
    sigma: Tensor
    prompt: str
    conditional: bool = True


def plan_passes(
    prompts: WeightedPrompts, request: Request, canvas: Canvas, noise: Tensor, latents: Tensor, sigma: Tensor
) -> tuple[list[ForwardPass], Callable[[list[Tensor]], Tensor]]:
    """Return the forward passes that one step needs, and the function that combines their velocities.

    There is one pass for each prompt; with classifier-free guidance, one for the negative prompt; and with frame
    guidance, one more for each prompt, in which the kept frames are as noisy as the rest, so that the model does not
    know them. Guidance by two conditions: section 3 of InstructPix2Pix (Brooks et al. 2023, arXiv 2211.09800).
    """
    scale, frame_scale = guidance_scale(request, sigma), 1.0
    if request.frame_guidance is not None:
        frame_scale = request.frame_guidance
    guided, kept = bool((scale != 1).any()), canvas.denoise_mask == 0
    passes = [ForwardPass(latents, sigma, prompt) for prompt in prompts.prompts]
    if guided:
        passes.append(ForwardPass(latents, sigma, prompts.negative_prompt, conditional=False))
    frame_guided = frame_scale != 1 and bool(kept.any()) and not bool(kept.all())
    if frame_guided:
        highest = sigma.max()
        noised = torch.where(kept, interpolate(canvas.clean_latents, noise, highest), latents)
        unknown = noised, torch.where(kept, highest, sigma)
        passes += [ForwardPass(*unknown, prompt) for prompt in prompts.prompts]

    def combine(velocities: list[Tensor]) -> Tensor:
        count = len(prompts.prompts)
        conditional = combined = prompts.blend(velocities[:count])
        if guided:
            rescale = request.guidance_rescale or 0.0
            combined = classifier_free_guidance(conditional, velocities[count], scale, rescale)
        if frame_guided:
            combined = combined + (frame_scale - 1) * (conditional - prompts.blend(velocities[-count:]))
        return combined

    return passes, combine
