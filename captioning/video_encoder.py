"""A small convolutional video encoder: convolutions within frames, and residual mixing between neighbouring frames."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def conv_stages(width: int) -> nn.Sequential:
    """Return the layers that map (B, F, width, H, W) to (B, F, 3 width, H / 4, W / 4)."""
    return nn.Sequential(
        FrameConv(width, width, 3, 1),
        FrameConv(width, 2 * width, 3, 2),
        TemporalConv(2 * width),
        FrameConv(2 * width, 2 * width, 3, 1),
        TemporalConv(2 * width),
        FrameConv(2 * width, 3 * width, 3, 2),
        TemporalConv(3 * width),
    )


class FrameConv(nn.Module):
    """Convolve each frame of (B, F, D, H, W); then batch norm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int):
        super().__init__()
        padding = (kernel_size - stride + 1) // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=padding)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.conv(rearrange(x, "B F D H W -> (B F) D H W"))))
        return rearrange(y, "(B F) D H W -> B F D H W", B=len(x))


class TemporalConv(nn.Module):
    """Convolve over five frames of (B, F, D, H, W), pixel by pixel; then batch norm and ReLU, as a residual."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(5 * width, width, 1)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (0, 0, 0, 0, 0, 0, 2, 2))
        window = torch.cat([padded[:, offset : offset + x.shape[1]] for offset in range(5)], dim=2)
        y = F.relu(self.norm(self.conv(rearrange(window, "B F D H W -> (B F) D H W"))))
        return x + rearrange(y, "(B F) D H W -> B F D H W", B=len(x))
