"""Mixing of each token with its neighbours in time, row and column: a depthwise convolution over packed clips."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dit.packing import Pack, grid_of

NEIGHBOURS = 6  # before and after along time, row and column


def find_neighbours(pack: Pack) -> Tensor:
    """Return the index of each token's neighbours in the pack, (NEIGHBOURS, N); N stands for none.

    The order is before and after in time, in the row axis, in the column axis.
    """
    device, token_lens = pack.position_ids.device, torch.tensor(pack.token_lens, device=pack.position_ids.device)
    grids = torch.tensor([grid_of(shape, pack.patch) for shape in pack.shapes], device=device)
    grids = grids.repeat_interleave(token_lens, dim=0)
    N = len(pack.position_ids)
    token = torch.arange(N, device=device)
    neighbours = []
    for axis, stride in enumerate((grids[:, 1] * grids[:, 2], grids[:, 2], torch.ones_like(token))):
        position = pack.position_ids[:, axis]
        neighbours.append(torch.where(position > 0, token - stride, N))
        neighbours.append(torch.where(position < grids[:, axis] - 1, token + stride, N))
    return torch.stack(neighbours)


def depthwise_mix(x: Tensor, weights: Tensor, neighbour_index: Tensor) -> Tensor:
    """Add to each token (N, D) its six neighbours, scaled by weights (NEIGHBOURS, D): a depthwise convolution.

    It works on clips of any size in one pack. Depthwise convolutions in the blocks: Mix-FFN (SANA, arXiv 2410.10629).
    """
    return DepthwiseMix.apply(x, weights, neighbour_index)  # type: ignore[return-value]


class DepthwiseMix(torch.autograd.Function):
    """`depthwise_mix` with its own gradient: a gather from the opposite neighbours, where autograd would scatter."""

    @staticmethod
    def forward(ctx, x: Tensor, weights: Tensor, neighbour_index: Tensor) -> Tensor:
        ctx.save_for_backward(x, weights, neighbour_index)
        return _add_neighbours(x, weights, neighbour_index)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        x, weights, neighbour_index = ctx.saved_tensors
        padded = F.pad(x, (0, 0, 0, 1))
        opposite = weights.unflatten(0, (NEIGHBOURS // 2, 2)).flip(1).flatten(0, 1)
        grad_weights = torch.stack([(grad * padded.index_select(0, index)).sum(0) for index in neighbour_index])
        return _add_neighbours(grad, opposite, neighbour_index), grad_weights, None


def _add_neighbours(x: Tensor, weights: Tensor, neighbour_index: Tensor) -> Tensor:
    padded, total = F.pad(x, (0, 0, 0, 1)), x.clone()
    for weight, index in zip(weights, neighbour_index, strict=True):
        total.addcmul_(weight, padded.index_select(0, index))
    return total
