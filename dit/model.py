"""The diffusion transformer: noisy spacetime patches and text embeddings in, the velocity out.

DiT: Peebles & Xie 2022 (arXiv 2212.09748). One modulation network for all blocks: PixArt-alpha (arXiv 2310.00426).
QK-norm: arXiv 2302.05442. ReLU^2: Primer (arXiv 2109.08668). Rotary positions on three axes: RoFormer (arXiv
2104.09864).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from torch import Tensor, nn

from captioning.camera import CAMERA_VALUES
from dit.attention import attend
from dit.neighbours import NEIGHBOURS, depthwise_mix, find_neighbours
from dit.packing import Pack, SeqLens, per_part


@dataclass(frozen=True)
class DiTConfig:
    """Sizes of a DiT: `channels` and `patch` follow the VAE, `text_dim` the text encoder, the rest `depth`."""

    depth: int = 6
    width: int = 320
    head_dim: int = 64
    channels: int = 16
    patch: tuple[int, int, int] = (1, 2, 2)
    text_dim: int = 192
    mlp_ratio: int = 4
    rope_theta: float = 1000.0  # the longest rotary wavelength, in patches, over 2 pi
    camera: bool = False  # reads a camera velocity per latent frame

    @classmethod
    def from_depth(cls, depth: int, **others) -> DiTConfig:
        """Derive a model from its depth, the one dial: about 53 of width per block, as in Wan (1536 for 30).

        Heads are 128 wide, or 64 below a width of 1024.
        """
        width = 64 * round(depth * 53 / 64)
        if width >= 1024:
            width = 128 * round(width / 128)
        return cls(depth=depth, width=width, head_dim=128 if width >= 1024 else 64, **others)

    @property
    def heads(self) -> int:
        return self.width // self.head_dim

    @property
    def patch_values(self) -> int:
        return self.channels * math.prod(self.patch)


class DiT(ModelMixin, ConfigMixin):
    """Predict the velocity of every token of a pack, each at its own noise level."""

    old_config_names: ClassVar = {
        "head_width": "head_dim",
        "words_width": "text_dim",
        "expansion": "mlp_ratio",
        "theta": "rope_theta",
    }
    old_weight_names: ClassVar = {
        "embed": "patch_embed",
        "whereabouts": "pos_embed",
        "condition.level": "conditioning.sigma_mlp",
        "condition.caption": "conditioning.text_proj",
        "condition.format": "conditioning.format_mlp",
        "entry": "cond_in",
        "exit_scale": "out_scale",
        "exit": "proj_out",
        "blocks.*.words": "blocks.*.text_kv",
        "blocks.*.words_norm": "blocks.*.text_norm",
        "blocks.*.out": "blocks.*.attn_out",
        "blocks.*.widen": "blocks.*.mlp_in",
        "blocks.*.narrow": "blocks.*.mlp_out",
        "blocks.*.near": "blocks.*.neighbour_weights",
    }

    @register_to_config
    def __init__(
        self,
        depth: int = 6,
        width: int = 320,
        head_dim: int = 64,
        channels: int = 16,
        patch: tuple[int, int, int] = (1, 2, 2),
        text_dim: int = 192,
        mlp_ratio: int = 4,
        rope_theta: float = 1000.0,
        camera: bool = False,
    ):
        super().__init__()
        if width % head_dim:
            raise ValueError(f"width must be a multiple of head_dim {head_dim}; got {width}")
        self.dit_config = DiTConfig(
            depth, width, head_dim, channels, (patch[0], patch[1], patch[2]), text_dim, mlp_ratio, rope_theta, camera
        )
        self.attention_backend = "auto"
        self.patch_embed = nn.Linear(self.dit_config.patch_values, width)
        self.pos_embed = nn.Linear(4 * FOURIER_FREQUENCIES, width, bias=False)
        self.camera_in = nn.Linear(CAMERA_VALUES, width, bias=False) if camera else None
        self.conditioning = Conditioning(width, text_dim)
        self.cond_in = nn.Linear(width, width)
        self.modulation = nn.Linear(width, 4 * width)
        self.blocks = nn.ModuleList(Block(self.dit_config) for _ in range(depth))
        self.out_scale = nn.Linear(width, width)
        self.proj_out = nn.Linear(width, self.dit_config.patch_values)
        self._init_weights()

    @classmethod
    def from_dit_config(cls, config: DiTConfig) -> DiT:
        """Build a model with fresh weights."""
        return cls(**asdict(config))

    def forward(self, pack: Pack, text: Tensor, pooled_text: Tensor, text_lens: tuple[int, ...]) -> Tensor:
        """Return the velocity (N, P) of a pack's tokens.

        text (L, text_dim), the text embeddings of all clips, concatenated; pooled_text (B, text_dim), one vector per
        clip; text_lens, the number of text tokens of each clip (at least one). On one thread, each part of the pack is
        bit-identical to a pack of its own.
        """
        seq_lens = SeqLens(pack.token_lens, tuple(text_lens), pack.parts)
        token_lens, _ = seq_lens.part_totals
        # A pack has few distinct (clip, sigma): modulate those, then gather, rather than modulate every token.
        conditions, condition_of_token = distinct_conditions(seq_lens.clip_of_token(pack.tokens.device), pack.sigma)
        condition_lens = conditions_per_part(conditions, pack.parts)
        cond = self.conditioning(conditions, pooled_text, pack, condition_lens)
        modulation = per_part(lambda part: self.modulation(F.silu(part)), cond, condition_lens)
        modulation = rearrange(modulation, "R (four D) -> R four D", four=4)
        rope = rope_cos_sin(pack.position_ids, self.dit_config.head_dim, self.dit_config.rope_theta)
        neighbour_index = find_neighbours(pack)

        x = (
            per_part(self.patch_embed, pack.tokens, token_lens)
            + per_part(self.pos_embed, frame_position_features(pack), token_lens)
            + per_part(self.cond_in, cond, condition_lens).index_select(0, condition_of_token)
        )
        if self.camera_in is not None and pack.camera is not None:
            x = x + per_part(self.camera_in, pack.camera.index_select(0, frame_of_token(pack)), token_lens)
        for block in self.blocks:
            x = block(x, modulation, condition_of_token, text, rope, neighbour_index, seq_lens, self.attention_backend)
        scale = per_part(lambda part: self.out_scale(F.silu(part)), cond, condition_lens)
        return per_part(self.proj_out, layer_norm(x) * (1 + scale.index_select(0, condition_of_token)), token_lens)

    def muon_params(self) -> list[tuple[nn.Linear, int]]:
        """List the layers that Muon optimises, each with the number of matrices stacked in its weight."""
        layers: list[tuple[nn.Linear, int]] = []
        for block in self.blocks:
            assert isinstance(block, Block)
            layers += [(block.qkv, 3), (block.text_kv, 2), (block.attn_out, 1), (block.mlp_in, 1), (block.mlp_out, 1)]
        return layers

    def grow_depth(self, depth: int) -> DiT:
        """Return a model of `depth` blocks that computes the same at first: block expansion, arXiv 2401.02415.

        Each new block is a copy of the block before it, with zeros in its two output layers.
        Raises ValueError if this model has more blocks.
        """
        trained = self.dit_config.depth
        if depth < trained:
            raise ValueError(f"depth must be at least the {trained} blocks that are trained; got {depth}")
        model = DiT.from_dit_config(replace(self.dit_config, depth=depth))
        model.load_state_dict(self.state_dict(), strict=False)
        sources = [number * trained // depth for number in range(depth)]
        for number, (source, block) in enumerate(zip(sources, model.blocks, strict=True)):
            assert isinstance(block, Block)
            block.load_state_dict(self.blocks[source].state_dict())
            if source in sources[:number]:
                nn.init.zeros_(block.attn_out.weight)
                nn.init.zeros_(block.mlp_out.weight)
        return model

    def with_text_dim(self, text_dim: int, camera: bool = False) -> DiT:
        """Return this model for text embeddings of `text_dim`, with or without a camera input.

        Layers that read text are fresh, with small values, so that the model draws as before at first; all other
        weights are this model's. A camera input that it lacks starts at zero.
        """
        if text_dim == self.dit_config.text_dim and camera == self.dit_config.camera:
            return self
        model = DiT.from_dit_config(replace(self.dit_config, text_dim=text_dim, camera=camera))
        if text_dim == self.dit_config.text_dim:
            model.load_state_dict(self.state_dict(), strict=False)
            return model
        kept = {name: value for name, value in self.state_dict().items() if "text_" not in name}
        model.load_state_dict(kept, strict=False)
        with torch.no_grad():
            for block in model.blocks:
                assert isinstance(block, Block)
                block.text_kv.weight[self.dit_config.width :] *= FRESH_TEXT_SCALE
            text_proj = model.conditioning.text_proj[1]
            assert isinstance(text_proj, nn.Linear)
            text_proj.weight.mul_(FRESH_TEXT_SCALE)
        return model

    def _init_weights(self) -> None:
        """Start with every block an identity and the output zero; other weights scale with fan-in, biases are zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in (self.modulation, self.out_scale, self.proj_out, self.camera_in):
            if module is not None:
                nn.init.zeros_(module.weight)


class Conditioning(nn.Module):
    """Embed what holds for a whole clip at one noise level: sigma, pooled text, size, duration, frame rate."""

    def __init__(self, width: int, text_dim: int):
        super().__init__()
        self.sigma_mlp = nn.Sequential(nn.Linear(2 * FOURIER_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.text_proj = nn.Sequential(nn.LayerNorm(text_dim), nn.Linear(text_dim, width))
        self.format_mlp = nn.Sequential(nn.Linear(4, width), nn.SiLU(), nn.Linear(width, width))

    def forward(
        self, conditions: Tensor, pooled_text: Tensor, pack: Pack, condition_lens: Sequence[int] = ()
    ) -> Tensor:
        """Return the conditioning vectors (R, width).

        conditions (R, 2), (clip index, sigma); condition_lens, the number of conditions in each part of the pack.
        """
        clip, sigma = conditions[:, 0].long(), conditions[:, 1]
        formats = [(*shape, fps) for shape, fps in zip(pack.shapes, pack.fps, strict=True)]
        formats = torch.tensor(formats, device=pooled_text.device, dtype=torch.float32)
        dtype = pooled_text.dtype
        format = per_part(lambda part: self.format_mlp(part.log2().to(dtype)), formats, pack.parts)
        sigma = per_part(lambda part: self.sigma_mlp(fourier_features(part).to(dtype)), sigma, condition_lens)
        return sigma + (per_part(self.text_proj, pooled_text, pack.parts) + format).index_select(0, clip)


class Block(nn.Module):
    """Attention over the clip and its text, then an MLP, each with a modulated scale before it and a gate after it."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        width, self.heads = config.width, config.heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.text_kv = nn.Linear(config.text_dim, 2 * width, bias=False)
        self.text_norm = nn.LayerNorm(config.text_dim)
        self.query_scale = nn.Parameter(torch.ones(config.head_dim))
        self.key_scale = nn.Parameter(torch.ones(config.head_dim))
        self.attn_out = nn.Linear(width, width, bias=False)
        self.mlp_in = nn.Linear(width, config.mlp_ratio * width, bias=False)
        self.mlp_out = nn.Linear(config.mlp_ratio * width, width, bias=False)
        self.modulation = nn.Parameter(torch.zeros(4, width))  # this block's offset to the shared modulation
        self.neighbour_weights = nn.Parameter(torch.zeros(2, NEIGHBOURS, width))  # before attention, before the MLP

    def forward(
        self, x, modulation, condition_of_token, text, rope, neighbour_index, seq_lens: SeqLens, backend: str
    ) -> Tensor:
        modulation = (modulation + self.modulation).index_select(0, condition_of_token)
        attn_scale, attn_gate, mlp_scale, mlp_gate = modulation.unbind(1)
        attn_neighbours, mlp_neighbours = self.neighbour_weights
        token_lens, _ = seq_lens.part_totals
        y = depthwise_mix(layer_norm(x) * (1 + attn_scale), attn_neighbours, neighbour_index)
        x = x + attn_gate * self.attention(y, text, rope, seq_lens, backend)
        y = depthwise_mix(layer_norm(x) * (1 + mlp_scale), mlp_neighbours, neighbour_index)
        y = per_part(self.mlp_in, y, token_lens)
        return x + mlp_gate * per_part(self.mlp_out, F.relu(y).square(), token_lens)

    def attention(self, x, text, rope, seq_lens: SeqLens, backend: str) -> Tensor:
        token_lens, text_lens = seq_lens.part_totals
        q, k, v = rearrange(per_part(self.qkv, x, token_lens), "N (three K E) -> three N K E", three=3, K=self.heads)
        text_kv = per_part(self.text_kv, self.text_norm(text), text_lens)
        text_k, text_v = rearrange(text_kv, "L (two K E) -> two L K E", two=2, K=self.heads)
        q, k = (apply_rope(layer_norm(y) * scale, rope) for y, scale in ((q, self.query_scale), (k, self.key_scale)))
        text_k = layer_norm(text_k) * self.key_scale
        q, k, text_k = (y.to(v.dtype) for y in (q, k, text_k))  # autocast runs layer norms in float32
        attended = attend(q, k, v, text_k, text_v, seq_lens, backend)
        return per_part(self.attn_out, rearrange(attended, "N K E -> N (K E)"), token_lens)


FOURIER_FREQUENCIES = 64
FRESH_TEXT_SCALE = 0.3  # of the values of text layers that replace trained ones


def layer_norm(x: Tensor) -> Tensor:
    """Normalise the last axis to mean 0 and variance 1; modulation supplies scales, so there are no weights."""
    return F.layer_norm(x, x.shape[-1:])


def fourier_features(values: Tensor, lowest: float = 0.5, highest: float = 500.0) -> Tensor:
    """Embed numbers in [-1, 1] as cosines and sines of logarithmically spaced angular frequencies.

    (...) to (..., 2 FOURIER_FREQUENCIES).
    """
    frequency = torch.logspace(math.log10(lowest), math.log10(highest), FOURIER_FREQUENCIES, device=values.device)
    angle = values.float()[..., None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def distinct_conditions(clip: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct (clip index, sigma) of a pack's tokens, (R, 2), and each token's row in them, (N,)."""
    keys, row = (2 * clip.double() + sigma).unique(return_inverse=True)
    pairs = torch.stack([clip.to(sigma.dtype), sigma], dim=1)
    return pairs.new_empty(len(keys), 2).index_copy_(0, row, pairs), row


def frame_of_token(pack: Pack) -> Tensor:
    """Return the index of each token's latent frame among those of all clips, (N,): the first of a token's patch."""
    device = pack.position_ids.device
    starts = torch.tensor([0, *pack.frame_lens[:-1]], device=device).cumsum(0)
    starts = starts.repeat_interleave(torch.tensor(pack.token_lens, device=device))
    return starts + pack.position_ids[:, 0] * pack.patch[0]


def conditions_per_part(conditions: Tensor, parts: Sequence[int]) -> list[int]:
    """Return how many of the conditions (R, 2) belong to each part of a pack."""
    if len(parts) < 2:
        return [len(conditions)]
    part_of_clip = torch.arange(len(parts), device=conditions.device).repeat_interleave(
        torch.tensor(parts, device=conditions.device)
    )
    return part_of_clip[conditions[:, 0].long()].bincount(minlength=len(parts)).tolist()


def frame_position_features(pack: Pack) -> Tensor:
    """Return Fourier features of each token's row and column, scaled to [-1, 1] whatever the frame's size: (N, 256)."""
    device = pack.position_ids.device
    size = torch.tensor(pack.shapes, device=device)[:, 1:] // torch.tensor(pack.patch[1:], device=device)
    size = size.repeat_interleave(torch.tensor(pack.token_lens, device=device), dim=0)
    relative = (2 * pack.position_ids[:, 1:] + 1) / size - 1
    return rearrange(fourier_features(relative, 0.5, 50.0), "N two F -> N (two F)").to(pack.tokens.dtype)


def rope_cos_sin(position_ids: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines (N, 1, E / 2) of the rotary embedding of position_ids (N, 3).

    A quarter of the pairs rotates with time, three eighths with row and with column each.
    """
    pairs = head_dim // 2
    space = 3 * pairs // 8
    angles = []
    for axis, count in enumerate((pairs - 2 * space, space, space)):
        frequency = theta ** -(torch.arange(count, device=position_ids.device) / count)
        angles.append(position_ids[:, axis, None] * frequency)
    angle = torch.cat(angles, dim=-1)[:, None]
    return angle.cos(), angle.sin()


def apply_rope(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the pairs of x (N, K, E): the first half of each head with the second half, by each token's angles."""
    cos, sin = (part.to(x.dtype) for part in rope)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
