"""What is said when in a clip, and how strongly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dit.canvas import Canvas, shares
from dit.request import Request


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
        told = canvas.told or ((0, request.prompt),)
        share = shares(told, start, canvas.steps)
        heard = [moment for moment in range(len(told)) if share[moment].any()]
        return cls(tuple(told[moment][1] for moment in heard), share[heard], request.negative or "")

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
    low, high = request.interval or (0.0, 1.0)
    strength = 1.0 if request.guidance is None else request.guidance
    return torch.where((level >= low) & (level <= high), strength, 1.0)
