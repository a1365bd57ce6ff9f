"""Muon: an optimizer whose update of each hidden matrix has all singular values near one.

Jordan et al. 2024 (kellerjordan.github.io/posts/muon). Weight decay and the scale of an update follow Moonlight (Liu et
al. 2025, arXiv 2502.16982), so that one learning rate suits Muon and AdamW. `torch.optim.Muon` does the same, but in
bf16 only, which a CPU without such instructions emulates at a tenth of the speed; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.config import Run
from training.transfer import Scales, split_groups

NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic, Jordan et al. 2024
NEWTON_SCHULZ_STEPS = 5
ADAMW_UPDATE_RMS = 0.2  # root mean square of an AdamW update at learning rate 1 (Moonlight, section 2.2)
MuonParams = Sequence[tuple[nn.Module | nn.Parameter, int]]  # layers or weights, each with its number of matrices


class Muon(torch.optim.Optimizer):
    """Muon for hidden matrices, AdamW (arXiv 1711.05101) for all else; a group's flag `muon` says which.

    A weight may hold several matrices, stacked in its rows, such as the q, k and v of attention: `matrix_counts` of a
    group gives their number for each weight, and each is orthogonalised on its own. A group's `lr_scale` is a factor of
    its learning rate, which whoever sets the rate applies, and `row_scales` are factors for each value of its weights
    (`transfer.py`).
    """

    def __init__(self, groups: list[dict], lr: float, betas: tuple[float, float], momentum: float = 0.95):
        defaults = {"lr": lr, "betas": betas, "momentum": momentum, "weight_decay": 0.0, "matrix_counts": ()}
        defaults |= {"lr_scale": 1.0, "row_scales": ()}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure=None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        assert closure is None, "a loss that is evaluated again is not supported"
        for group in self.param_groups:
            for value in group["params"]:
                if value.grad is not None:
                    value.mul_(1 - group["lr"] * group["weight_decay"])
            if group["muon"]:
                self._muon_step(group)
            else:
                row_scales = group["row_scales"] or [None] * len(group["params"])
                for value, row_scale in zip(group["params"], row_scales, strict=True):
                    if value.grad is not None:
                        self._adam_step(value, value.grad, group, row_scale)

    def _muon_step(self, group: dict) -> None:
        matrices, updates = [], []
        for value, count in zip(group["params"], group["matrix_counts"], strict=True):
            if value.grad is None:
                continue
            state = self.state[value]
            if not state:
                state["momentum"] = torch.zeros_like(value)
            momentum = state["momentum"].lerp_(value.grad, 1 - group["momentum"])
            matrices += value.chunk(count)
            updates += value.grad.lerp(momentum, group["momentum"]).chunk(count)  # Nesterov
        # A convolution's kernel is a matrix from all inputs of a window to the output channels.
        updates = orthogonalize_all([update.flatten(1) for update in updates])
        for matrix, update in zip(matrices, updates, strict=True):
            matrix.add_(update.view_as(matrix), alpha=-group["lr"] * ADAMW_UPDATE_RMS * max(update.shape) ** 0.5)

    def _adam_step(self, value: Tensor, gradient: Tensor, group: dict, row_scale: Tensor | None = None) -> None:
        state = self.state[value]
        if not state:
            state["step"] = torch.zeros(())
            state["mean"], state["square"] = torch.zeros_like(value), torch.zeros_like(value)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        mean = state["mean"].lerp_(gradient, 1 - beta1)
        square = state["square"].lerp_(gradient.square(), 1 - beta2)
        steps = float(state["step"])
        deviation = (square / (1 - beta2**steps)).sqrt_().add_(1e-8)
        step = mean if row_scale is None else mean * row_scale.to(mean)
        value.addcdiv_(step, deviation, value=-group["lr"] / (1 - beta1**steps))


def orthogonalize(matrix: Tensor) -> Tensor:
    """Return approximately the nearest semi-orthogonal matrix (R, S), by Newton-Schulz iteration."""
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def orthogonalize_all(matrices: list[Tensor]) -> list[Tensor]:
    """Return `orthogonalize` of every matrix.

    In distributed training each process computes a share of them and all gather the results (distributed Muon,
    Moonlight, section 2.3), so that the work is not repeated.
    """
    world_size = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if world_size == 1 or not matrices:
        return [orthogonalize(matrix) for matrix in matrices]
    assigned: list[list[int]] = [[] for _ in range(world_size)]
    costs = [0] * world_size
    for index in sorted(range(len(matrices)), key=lambda index: -orthogonalize_cost(matrices[index])):
        rank = costs.index(min(costs))
        assigned[rank].append(index)
        costs[rank] += orthogonalize_cost(matrices[index])
    buffer_size = max(sum(matrices[index].numel() for index in indices) for indices in assigned)
    buffer = matrices[0].new_zeros(buffer_size)
    own = torch.cat([orthogonalize(matrices[index]).flatten() for index in assigned[dist.get_rank()]] or [buffer[:0]])
    buffer[: len(own)] = own
    buffers = [torch.empty_like(buffer) for _ in range(world_size)]
    dist.all_gather(buffers, buffer)
    found: list[Tensor] = [buffer] * len(matrices)
    for indices, gathered in zip(assigned, buffers, strict=True):
        sizes = [matrices[index].numel() for index in indices]
        for index, result in zip(indices, gathered[: sum(sizes)].split(sizes), strict=True):
            found[index] = result.view_as(matrices[index])
    return found


def orthogonalize_cost(matrix: Tensor) -> int:
    """Estimate the FLOPs of orthogonalising a matrix, up to a factor."""
    return min(matrix.shape) * matrix.numel()


def build_muon(muon_params: MuonParams, model: nn.Module, run: Run, scales: Scales | None = None) -> Muon:
    """Return Muon for the layers or weights listed, and AdamW for all other parameters of the model.

    The run gives the learning rate, the betas and the weight decay, which applies to matrices only; `scales` are
    factors of the learning rate (`transfer_scales`).
    """
    hidden = [(layer if isinstance(layer, nn.Parameter) else layer.weight, count) for layer, count in muon_params]
    hidden = [(weight, count) for weight, count in hidden if weight.requires_grad]
    weights = [weight for weight, _ in hidden]
    known = {id(weight) for weight in weights}
    others = [value for value in model.parameters() if value.requires_grad and id(value) not in known]
    groups = [
        {
            "params": weights,
            "muon": True,
            "matrix_counts": [count for _, count in hidden],
            "weight_decay": run.weight_decay,
        },
        {"params": [value for value in others if value.ndim > 1], "muon": False, "weight_decay": run.weight_decay},
        {"params": [value for value in others if value.ndim <= 1], "muon": False},
    ]
    return Muon(split_groups(groups, scales) if scales else groups, run.lr, run.betas)
