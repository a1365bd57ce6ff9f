"""Muon: descent whose step, in every hidden matrix, has all singular values alike.

Jordan et al. 2024 (kellerjordan.github.io/posts/muon); decay and the size of a step as in Moonlight (Liu et al. 2025,
arXiv 2502.16982), so that one rate suits it and AdamW. `torch.optim.Muon` does the same in bf16 only, which a processor
without such arithmetic emulates at a tenth of the speed; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # of the quintic, Jordan et al. 2024
ROUNDS = 5
Hidden = Sequence[tuple[nn.Linear | nn.Conv2d, int]]
LIKE_ADAM = 0.2  # the root mean square of an AdamW step, over its rate (Moonlight, section 2.2)


class Muon(torch.optim.Optimizer):
    """Muon for hidden matrices, AdamW (arXiv 1711.05101) for all else: groups say which with `muon`.

    A matrix that is several, one below the other, such as the q, k and v of attention, is as many matrices here as its
    entry of `parts` says.
    """

    def __init__(self, groups: list[dict], rate: float, betas: tuple[float, float], momentum: float = 0.95):
        super().__init__(groups, {"lr": rate, "betas": betas, "momentum": momentum, "weight_decay": 0.0, "parts": ()})

    @torch.no_grad()
    def step(self, closure=None) -> None:  # type: ignore[override]
        """Change all parameters that have a gradient."""
        assert closure is None, "a loss that is evaluated again is not supported"
        for group in self.param_groups:
            for number, value in enumerate(group["params"]):
                if value.grad is None:
                    continue
                value.mul_(1 - group["lr"] * group["weight_decay"])
                if group["muon"]:
                    self._muon(value, group, group["parts"][number])
                else:
                    self._adam(value, group)

    def _muon(self, value: Tensor, group: dict, parts: int) -> None:
        state = self.state[value]
        if not state:
            state["momentum"] = torch.zeros_like(value)
        mean = state["momentum"].lerp_(value.grad, 1 - group["momentum"])
        ahead = value.grad.lerp(mean, group["momentum"])  # Nesterov's
        for own, direction in zip(value.chunk(parts), ahead.chunk(parts), strict=True):
            step = orthogonal(direction.flatten(1))  # a convolution is a matrix from all it sees to what it says
            own.add_(step.view_as(own), alpha=-group["lr"] * LIKE_ADAM * max(step.shape) ** 0.5)

    def _adam(self, value: Tensor, group: dict) -> None:
        state = self.state[value]
        if not state:
            state["step"] = torch.zeros(())
            state["mean"], state["square"] = torch.zeros_like(value), torch.zeros_like(value)
        state["step"] += 1
        first, second = group["betas"]
        mean = state["mean"].lerp_(value.grad, 1 - first)
        square = state["square"].lerp_(value.grad.square(), 1 - second)
        steps = float(state["step"])
        deviation = (square / (1 - second**steps)).sqrt_().add_(1e-8)
        value.addcdiv_(mean, deviation, value=-group["lr"] / (1 - first**steps))


def orthogonal(matrix: Tensor) -> Tensor:
    """Return about the nearest matrix (R, S) with all singular values alike, near 1, by Newton and Schulz's
    iteration.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(ROUNDS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def muon(hidden: Hidden, model: nn.Module, run) -> Muon:
    """Return Muon for the hidden layers named, each with its number of parts, and AdamW for a model's other parameters.

    `run` gives rate, betas and weight decay, which only matrices have.
    """
    hidden = [(layer, parts) for layer, parts in hidden if layer.weight.requires_grad]
    weights = [layer.weight for layer, _ in hidden]
    known = {id(weight) for weight in weights}
    others = [value for value in model.parameters() if value.requires_grad and id(value) not in known]
    matrices = [value for value in others if value.ndim > 1]
    rest = [value for value in others if value.ndim <= 1]
    groups = [
        {"params": weights, "muon": True, "parts": [parts for _, parts in hidden], "weight_decay": run.weight_decay},
        {"params": matrices, "muon": False, "weight_decay": run.weight_decay},
        {"params": rest, "muon": False},
    ]
    return Muon(groups, run.rate, run.betas)
