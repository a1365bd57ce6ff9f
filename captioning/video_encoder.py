"""How frames are looked at: convolutions within each, comparisons between them; small, and quick to learn shapes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def watching(width: int) -> nn.Sequential:
    """Return the layers from (B, F, width, H, W) to (B, F, 3 width, H / 4, W / 4), each frame seeing ever more of its
    neighbours.
    """
    return nn.Sequential(
        Within(width, width, 3, 1),
        Within(width, 2 * width, 3, 2),
        Between(2 * width),
        Within(2 * width, 2 * width, 3, 1),
        Between(2 * width),
        Within(2 * width, 3 * width, 3, 2),
        Between(3 * width),
    )


class Within(nn.Module):
    """Look around within each frame of (B, F, D, H, W)."""

    def __init__(self, before: int, after: int, side: int, stride: int):
        super().__init__()
        self.mix = nn.Conv2d(before, after, side, stride=stride, padding=(side - stride + 1) // 2)
        self.norm = nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        found = F.relu(self.norm(self.mix(rearrange(x, "B F D H W -> (B F) D H W"))))
        return rearrange(found, "(B F) D H W -> B F D H W", B=len(x))


class Between(nn.Module):
    """Compare each frame with its neighbours: a residual over five frames of (B, F, D, H, W)."""

    def __init__(self, width: int):
        super().__init__()
        self.mix = nn.Conv2d(5 * width, width, 1)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        around = F.pad(x, (0, 0, 0, 0, 0, 0, 2, 2))
        window = torch.cat([around[:, lag : lag + x.shape[1]] for lag in range(5)], dim=2)
        found = F.relu(self.norm(self.mix(rearrange(window, "B F D H W -> (B F) D H W"))))
        return x + rearrange(found, "(B F) D H W -> B F D H W", B=len(x))
