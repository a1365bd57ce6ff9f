"""The prompt encoder that is trained together with the diffusion transformer, from nothing.

A text tower trained by contrast forgets what only one of two captions of a clip says, such as ground, light and camera;
a small bidirectional transformer whose only loss is the video's keeps what the pixels need (training/NOTES.md).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from torch import Tensor, nn

from captioning.camera import CAMERA_AXES, CAMERA_VALUES


class PromptEncoder(ModelMixin, ConfigMixin):
    """Encode token ids with a bidirectional pre-norm transformer; predict the camera velocity that a prompt names."""

    @register_to_config
    def __init__(
        self,
        vocab_size: int = 2048,
        context_length: int = 256,
        width: int = 128,
        heads: int = 4,
        layers: int = 2,
        pad_id: int = 0,
    ):
        super().__init__()
        if width % heads:
            raise ValueError(f"width must be a multiple of heads {heads}; got {width}")
        self.width = width
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.position_embedding = nn.Parameter(torch.empty(context_length, width))
        self.blocks = nn.ModuleList(EncoderLayer(width, heads) for _ in range(layers))
        self.final_norm = nn.LayerNorm(width)
        self.camera_head = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, CAMERA_VALUES))
        nn.init.normal_(self.token_embedding.weight, std=0.2)
        nn.init.normal_(self.position_embedding, std=0.02)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return token embeddings (B, L, D) and pooled vectors (B, D) of token ids (B, L); `mask` is True on tokens.

        The pooled vector is the mean over a prompt's tokens.
        """
        x = self.token_embedding(ids) + self.position_embedding[: ids.shape[1]]
        for layer in self.blocks:
            x = layer(x, mask)
        x = self.final_norm(x)
        weight = mask[..., None].to(x.dtype)
        return x, (x * weight).sum(1) / weight.sum(1)

    def camera(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Predict from pooled vectors (B, D) the camera velocity (B, 6), and the logit (B,) that the prompt names one.

        Axes and units: `captioning/camera.py`.
        """
        velocity, named = self.camera_head(pooled).split([len(CAMERA_AXES), 1], dim=-1)
        return velocity, named[:, 0]

    def camera_of(self, pooled: Tensor) -> Tensor:
        """Return the camera velocity (B, CAMERA_VALUES) that prompts name, all 0 for a prompt that names none."""
        velocity, named = self.camera(pooled)
        known = (named > 0).to(velocity.dtype)[:, None]
        return torch.cat([velocity * known, known], dim=-1)

    def muon_params(self) -> list[tuple[nn.Linear, int]]:
        """List the layers that Muon optimises, each with the number of matrices stacked in its weight."""
        found: list[tuple[nn.Linear, int]] = []
        for layer in self.blocks:
            assert isinstance(layer, EncoderLayer)
            found += [(layer.qkv, 3), (layer.attn_out, 1), (layer.mlp_in, 1), (layer.mlp_out, 1)]
        return found


class EncoderLayer(nn.Module):
    """Self-attention over a prompt's tokens, then an MLP; both output layers start at zero."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attn_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.mlp_in = nn.Linear(width, 4 * width, bias=False)
        self.mlp_out = nn.Linear(4 * width, width, bias=False)
        nn.init.zeros_(self.attn_out.weight)
        nn.init.zeros_(self.mlp_out.weight)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        qkv = rearrange(self.qkv(self.attn_norm(x)), "B L (three K E) -> three B K L E", three=3, K=self.heads)
        attended = F.scaled_dot_product_attention(*qkv, attn_mask=mask[:, None, None])
        x = x + self.attn_out(rearrange(attended, "B K L E -> B L (K E)"))
        return x + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x))))
