"""A tower that watches clips, so that a text tower can learn which words go with which.

CLIP's objective (arXiv 2103.00020) with open_clip's own transformer, pooler and loss; the attentional pooling over
frame tokens is CoCa's (Yu et al. 2022, arXiv 2205.01917), with which this tower will share its weights.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from torch import Tensor, nn

from vae.model import patchify


class VideoTower(ModelMixin, ConfigMixin):
    """A small vision transformer over spacetime blocks of pixels, pooled by attention into one vector a clip."""

    @register_to_config
    def __init__(
        self,
        block: tuple[int, int, int] = (4, 16, 16),
        width: int = 192,
        heads: int = 3,
        layers: int = 4,
        output_width: int = 128,
        most: tuple[int, int, int] = (17, 16, 16),
    ):
        super().__init__()
        from open_clip.transformer import AttentionalPooler, Transformer

        self.block = (block[0], block[1], block[2])
        self.enter = nn.Linear(3 * math.prod(block), width)
        self.places = nn.ParameterList(nn.Parameter(0.02 * torch.randn(count, width)) for count in most)
        self.transformer = Transformer(width, layers, heads)
        self.pool = AttentionalPooler(width, width, n_head=heads, n_queries=1)
        self.exit = nn.Linear(width, output_width, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return one vector a clip (B, D) and its tokens (B, N, width) of pixels (B, 3, F, Y, X) in [-1, 1]."""
        x = self.enter(patchify(rearrange(pixels, "B rgb F Y X -> B F Y X rgb"), self.block, first=True))
        T, H, W = x.shape[1:4]
        time, row, column = self.places
        x = x + time[:T, None, None] + row[:H, None] + column[:W]
        tokens = self.transformer(rearrange(x, "B T H W D -> B (T H W) D"))
        return self.exit(self.pool(tokens)[:, 0]), tokens


def contrast(videos: Tensor, texts: Tensor, logit_scale: Tensor) -> Tensor:
    """Return CLIP's loss: each clip (B, D) should know its own text (B, D) among all of the batch, and the reverse.

    The batch is that of all processes.
    """
    from open_clip.loss import ClipLoss

    many = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    rank, processes = (dist.get_rank(), dist.get_world_size()) if many else (0, 1)
    loss = ClipLoss(local_loss=many, gather_with_grad=many, rank=rank, world_size=processes)
    return loss(F.normalize(videos, dim=-1), F.normalize(texts, dim=-1), logit_scale.exp().clamp(max=100))
