"""bf16 copies of models in training: faster than autocast on a CPU, with fp32 master weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class LowPrecisionCopy:
    """A bf16 copy of a model that computes, while the optimizer keeps fp32 master weights.

    Faster than autocast, which converts every weight at every use. Norms, losses and optimizer states stay in fp32.
    """

    def __init__(self, master: nn.Module, dtype: torch.dtype = torch.bfloat16):
        self.master, self.model = master, copy.deepcopy(master).to(dtype)
        self.pairs: list[tuple[nn.Parameter, nn.Parameter]] = list(
            zip(master.parameters(), self.model.parameters(), strict=True)
        )

    @torch.no_grad()
    def load_master(self) -> None:
        """Copy the master weights into the model, after each step of the optimizer."""
        for master, own in self.pairs:
            own.copy_(master)

    @torch.no_grad()
    def take_gradients(self) -> None:
        """Add the model's gradients to those of the master weights, in their precision."""
        for master, own in self.pairs:
            if own.grad is None:
                continue
            if master.grad is None:
                master.grad = own.grad.to(master.dtype)
            else:
                master.grad.add_(own.grad)
            own.grad = None
