"""A video tower that trains a text tower by contrast: clips against their captions.

CLIP's objective (arXiv 2103.00020), with open_clip's transformer, pooler and loss; attentional pooling over the tokens
of all frames as in CoCa (Yu et al. 2022, arXiv 2205.01917).
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from torch import Tensor, nn

from vae.model import patchify


class VideoTower(ModelMixin, ConfigMixin):
    """Encode a clip as one vector: a small vision transformer over spacetime patches, pooled by attention."""

    old_config_names: ClassVar = {"block": "patch", "most": "max_positions"}
    old_weight_names: ClassVar = {
        "enter": "patch_embed",
        "places": "pos_embed",
        "pool": "attn_pool",
        "exit": "proj",
    }

    @register_to_config
    def __init__(
        self,
        patch: tuple[int, int, int] = (4, 16, 16),
        width: int = 192,
        heads: int = 3,
        layers: int = 4,
        output_width: int = 128,
        max_positions: tuple[int, int, int] = (17, 16, 16),
    ):
        super().__init__()
        from open_clip.transformer import AttentionalPooler, Transformer

        self.patch = (patch[0], patch[1], patch[2])
        self.patch_embed = nn.Linear(3 * math.prod(patch), width)
        self.pos_embed = nn.ParameterList(nn.Parameter(0.02 * torch.randn(count, width)) for count in max_positions)
        self.transformer = Transformer(width, layers, heads)
        self.attn_pool = AttentionalPooler(width, width, n_head=heads, n_queries=1)
        self.proj = nn.Linear(width, output_width, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return one vector per clip (B, D) and its tokens (B, N, width) of pixels (B, 3, F, Y, X) in [-1, 1]."""
        x = self.patch_embed(patchify(rearrange(pixels, "B rgb F Y X -> B F Y X rgb"), self.patch, first=True))
        T, H, W = x.shape[1:4]
        time, row, column = self.pos_embed
        x = x + time[:T, None, None] + row[:H, None] + column[:W]
        tokens = self.transformer(rearrange(x, "B T H W D -> B (T H W) D"))
        return self.proj(self.attn_pool(tokens)[:, 0]), tokens


def contrastive_loss(videos: Tensor, texts: Tensor, logit_scale: Tensor) -> Tensor:
    """Return CLIP's loss of clips (B, D) against their texts (B, D); the batches of all processes count as one."""
    from open_clip.loss import ClipLoss

    distributed = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    rank, processes = (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)
    loss = ClipLoss(local_loss=distributed, gather_with_grad=distributed, rank=rank, world_size=processes)
    return loss(F.normalize(videos, dim=-1), F.normalize(texts, dim=-1), logit_scale.exp().clamp(max=100))
