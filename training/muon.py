"""Muon: descent whose step, in every hidden matrix, has all singular values alike.

Jordan et al. 2024 (kellerjordan.github.io/posts/muon); decay and the size of a step as in Moonlight (Liu et al. 2025,
arXiv 2502.16982), so that one rate suits it and AdamW. `torch.optim.Muon` does the same in bf16 only, which a processor
without such arithmetic emulates at a tenth of the speed; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # of the quintic, Jordan et al. 2024
ROUNDS = 5
Hidden = Sequence[tuple[nn.Module | nn.Parameter, int]]
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
            for value in group["params"]:
                if value.grad is not None:
                    value.mul_(1 - group["lr"] * group["weight_decay"])
            if group["muon"]:
                self._muon(group)
            else:
                for value in group["params"]:
                    if value.grad is not None:
                        self._adam(value, group)

    def _muon(self, group: dict) -> None:
        matrices, ahead = [], []
        for value, parts in zip(group["params"], group["parts"], strict=True):
            if value.grad is None:
                continue
            state = self.state[value]
            if not state:
                state["momentum"] = torch.zeros_like(value)
            mean = state["momentum"].lerp_(value.grad, 1 - group["momentum"])
            matrices += value.chunk(parts)
            ahead += value.grad.lerp(mean, group["momentum"]).chunk(parts)  # Nesterov's
        # A convolution is a matrix from all it sees to what it says.
        for own, step in zip(matrices, shared([part.flatten(1) for part in ahead]), strict=True):
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


def shared(matrices: list[Tensor]) -> list[Tensor]:
    """Return `orthogonal` of every matrix. Processes that hold the same matrices do each a share of them and hand the
    results around (as the distributed Muon of Moonlight, section 2.3), so that more of them do not repeat the work.
    """
    processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if processes == 1 or not matrices:
        return [orthogonal(matrix) for matrix in matrices]
    hands: list[list[int]] = [[] for _ in range(processes)]
    work = [0] * processes
    for number in sorted(range(len(matrices)), key=lambda number: -effort(matrices[number])):
        hand = work.index(min(work))
        hands[hand].append(number)
        work[hand] += effort(matrices[number])
    room = max(sum(matrices[number].numel() for number in hand) for hand in hands)
    own = matrices[0].new_zeros(room)
    done = torch.cat([orthogonal(matrices[number]).flatten() for number in hands[dist.get_rank()]] or [own[:0]])
    own[: len(done)] = done
    everyones = [torch.empty_like(own) for _ in range(processes)]
    dist.all_gather(everyones, own)
    found: list[Tensor] = [own] * len(matrices)
    for hand, results in zip(hands, everyones, strict=True):
        sizes = [matrices[number].numel() for number in hand]
        for number, result in zip(hand, results[: sum(sizes)].split(sizes), strict=True):
            found[number] = result.view_as(matrices[number])
    return found


def effort(matrix: Tensor) -> int:
    """Estimate what orthogonalising a matrix costs, up to a factor."""
    return min(matrix.shape) * matrix.numel()


def muon(hidden: Hidden, model: nn.Module, run) -> Muon:
    """Return Muon for the hidden layers or matrices named, each with its number of parts, and AdamW for all other
    parameters.

    `run` gives rate, betas and weight decay, which only matrices have.
    """
    found = [(layer if isinstance(layer, nn.Parameter) else layer.weight, parts) for layer, parts in hidden]
    found = [(weight, parts) for weight, parts in found if weight.requires_grad]
    weights = [weight for weight, _ in found]
    known = {id(weight) for weight in weights}
    others = [value for value in model.parameters() if value.requires_grad and id(value) not in known]
    matrices = [value for value in others if value.ndim > 1]
    rest = [value for value in others if value.ndim <= 1]
    groups = [
        {"params": weights, "muon": True, "parts": [parts for _, parts in found], "weight_decay": run.weight_decay},
        {"params": matrices, "muon": False, "weight_decay": run.weight_decay},
        {"params": rest, "muon": False},
    ]
    return Muon(groups, run.lr, run.betas)
