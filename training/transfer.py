"""Transfer rules: learning rates by parameter, so that the best rate of a small transformer is that of a large one.

Maximal update parametrisation (Yang et al. 2022, arXiv 2203.03466; for diffusion transformers arXiv 2505.15270) for the
width, CompleteP (arXiv 2505.01618) for the depth, both as factors of the learning rate. Weights start with a standard
deviation of fan-in^-0.5, and the output layer at zero, as both ask for.

* A matrix that AdamW steps and whose fan-in is the width: base_width / width.
* A hidden matrix, which Muon steps and whose fan-in is the width: sqrt(base_width / width). `Muon` scales an update to
  the size of AdamW's elements, and so its spectral norm with the square root of the width, which this takes back
  (arXiv 2310.17813: the norm of an update shall follow sqrt(fan-out / fan-in)).
* The gates of residual branches, also base_depth / depth. CompleteP multiplies each branch by base_depth / depth. Here
  a gate starts at zero and AdamW, which steps it, ignores the scale of gradients, so a slower gate is the same thing,
  and the trained model needs no factor of its own.
* All else (biases, scales, embeddings of inputs whose size is fixed): 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from dit.model import DiT

# Linear layers of a DiT that AdamW steps and whose fan-in is the width.
WIDTH_FAN_IN = (
    *("conditioning.sigma_mlp.2", "conditioning.format_mlp.2", "cond_in", "modulation", "out_scale", "proj_out"),
)
HIDDEN = ("qkv", "attn_out", "mlp_in", "mlp_out")  # those of a block that Muon steps and whose fan-in is the width
GATES = (1, 3)  # of the four parts of the modulation: scale and gate of attention, scale and gate of the MLP

Scales = dict[int, float | Tensor]  # by the id of a parameter: the factor of its learning rate, or one per row


def transfer_scales(dit: DiT, base_width: int, base_depth: int) -> Scales:
    """Return the factor of the learning rate of each parameter of a DiT that has another than 1.

    The rate is then that of a model of `base_width` and `base_depth`; 0 leaves width or depth alone.
    """
    config = dit.dit_config
    by_width = base_width / config.width if base_width else 1.0
    by_depth = base_depth / config.depth if base_depth else 1.0
    scales: Scales = {}
    for name in WIDTH_FAN_IN:
        layer = dit.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        scales[id(layer.weight)] = by_width
    for block in dit.blocks:
        scales |= {id(block.get_submodule(name).weight): by_width**0.5 for name in HIDDEN}
    gates = torch.ones(4)
    gates[list(GATES)] = by_depth
    scales[id(dit.modulation.weight)] = by_width * gates.repeat_interleave(config.width)[:, None]
    scales[id(dit.modulation.bias)] = gates.repeat_interleave(config.width)
    for block in dit.blocks:
        offset = block.modulation
        assert isinstance(offset, nn.Parameter)
        scales[id(offset)] = gates[:, None]
    return {key: scale for key, scale in scales.items() if not _is_one(scale)}


def split_groups(groups: list[dict], scales: Scales) -> list[dict]:
    """Split an optimizer's groups so that each has one `lr_scale`, and its weight decay acts as at the plain rate.

    Factors per row are given to the optimizer as `row_scales`, a tensor for each parameter.
    """
    found = []
    for group in groups:
        keys: dict[float | None, list[int]] = {}
        for index, value in enumerate(group["params"]):
            scale = scales.get(id(value), 1.0)
            keys.setdefault(scale if isinstance(scale, float) else None, []).append(index)
        for key, indices in keys.items():
            pick: Callable[[list], list] = lambda values, indices=indices: [values[index] for index in indices]
            part = {**group, "params": pick(group["params"])}
            if group.get("matrix_counts"):
                part["matrix_counts"] = pick(group["matrix_counts"])
            if key is None:
                part["row_scales"] = [scales[id(value)] for value in part["params"]]
            else:
                # arXiv 2505.01618: the decay follows the rate of the schedule, not that of the group.
                part |= {"lr_scale": key, "weight_decay": group.get("weight_decay", 0.0) / key}
            found.append(part)
    return found


def _is_one(scale: float | Tensor) -> bool:
    return bool((scale == 1).all()) if isinstance(scale, Tensor) else scale == 1.0
