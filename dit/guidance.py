"""What is said when in a clip, and how strongly."""

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
class Script:
    """What is said when in a window: prompts, how much each counts at each time step (prompts, T), and what guidance
    leads away from.
    """

    prompts: tuple[str, ...]
    shares: Tensor
    negative: str

    @classmethod
    def of(cls, request: Request, canvas: Canvas, start: int) -> Script:
        """Return the script of a canvas that stands at a time step of a request's clip."""
        told = canvas.prompt_schedule or ((0, request.effective_prompt),)
        share = prompt_weights(told, start, canvas.latent_frames)
        heard = [moment for moment in range(len(told)) if share[moment].any()]
        return cls(tuple(told[moment][1] for moment in heard), share[heard], request.negative_prompt or "")

    def blend(self, velocities: list[Tensor]) -> Tensor:
        """Return the velocity (C, T, H, W) of all prompts, each by its share of each time step."""
        if len(velocities) == 1:
            return velocities[0]
        share = self.shares.to(velocities[0])[:, None, :, None, None]
        return (torch.stack(velocities) * share).sum(0)


def strength_at(request: Request, level: Tensor) -> Tensor:
    """Return how strongly to guide each latent at its noise level (T, H, W): within the request's interval alone
    (arXiv 2404.07724).
    """
    low, high = request.guidance_interval or (0.0, 1.0)
    strength = 1.0 if request.guidance is None else request.guidance
    return torch.where((level >= low) & (level <= high), strength, 1.0)


@dataclass(frozen=True)
class Look:
    """What the model is shown of a clip: latents (C, T, H, W), their noise levels (T, H, W), and a prompt."""

    x: Tensor
    level: Tensor
    prompt: str


def plan(
    script: Script, request: Request, canvas: Canvas, noise: Tensor, x: Tensor, level: Tensor
) -> tuple[list[Look], Callable[[list[Tensor]], Tensor]]:
    """Return the looks that a clip needs at one step, and what makes one velocity of what is seen in them.

    It is looked at with each of its prompts; where it is guided, with what it is led away from; and where the frames
    that are given count for more, as if nothing were given (they under as much noise as the rest), as classifier-free
    guidance treats words (section 3 of InstructPix2Pix, arXiv 2211.09800).
    """
    strength, held = strength_at(request, level), 1.0 if request.frame_guidance is None else request.frame_guidance
    guided, kept = bool((strength != 1).any()), canvas.denoise_mask == 0
    looks = [Look(x, level, prompt) for prompt in script.prompts]
    if guided:
        looks.append(Look(x, level, script.negative))
    hold = held != 1 and bool(kept.any()) and not bool(kept.all())
    if hold:
        now = level.max()
        free = torch.where(kept, interpolate(canvas.clean_latents, noise, now), x), torch.where(kept, now, level)
        looks += [Look(*free, prompt) for prompt in script.prompts]

    def join(found: list[Tensor]) -> Tensor:
        prompts = len(script.prompts)
        asked = script.blend(found[:prompts])
        answer = classifier_free_guidance(asked, found[prompts], strength, request.guidance_rescale or 0.0) if guided else asked
        return answer + (held - 1) * (asked - script.blend(found[-prompts:])) if hold else answer

    return looks, join
