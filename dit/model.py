"""The diffusion transformer: from noisy spacetime patches and words to the velocity that cleans them.

DiT: Peebles & Xie 2022 (arXiv 2212.09748). One modulation network for all blocks: PixArt-alpha (arXiv 2310.00426).
QK-norm: arXiv 2302.05442. ReLU^2: Primer (arXiv 2109.08668). Rotary positions on three axes: RoFormer (arXiv
2104.09864).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from torch import Tensor, nn

from dit.attention import attend
from dit.packing import Pack, Spans, apart, grid_of


@dataclass(frozen=True)
class DiTConfig:
    """The shape of a DiT. `channels` and `patch` follow the VAE, `words_width` the text encoder; `from_depth` sets the
    rest.
    """

    depth: int = 6
    width: int = 320
    head_width: int = 64
    channels: int = 16
    patch: tuple[int, int, int] = (1, 2, 2)
    words_width: int = 192
    expansion: int = 4  # feed-forward width over width
    theta: float = 1000.0  # the slowest rotary wavelength, in patches, over 2 pi

    @classmethod
    def from_depth(cls, depth: int, **others) -> DiTConfig:
        """Derive a whole model from its depth, the one dial: about 53 of width a block, as in Wan (1536 for 30).

        Heads are 128 wide, or 64 below a width of 1024.
        """
        width = 64 * round(depth * 53 / 64)
        if width >= 1024:
            width = 128 * round(width / 128)
        return cls(depth=depth, width=width, head_width=128 if width >= 1024 else 64, **others)

    @property
    def heads(self) -> int:
        return self.width // self.head_width

    @property
    def patch_values(self) -> int:
        return self.channels * math.prod(self.patch)


class DiT(ModelMixin, ConfigMixin):
    """Predict the velocity of every token of a pack, each at its own noise level."""

    @register_to_config
    def __init__(
        self,
        depth: int = 6,
        width: int = 320,
        head_width: int = 64,
        channels: int = 16,
        patch: tuple[int, int, int] = (1, 2, 2),
        words_width: int = 192,
        expansion: int = 4,
        theta: float = 1000.0,
    ):
        super().__init__()
        if width % head_width:
            raise ValueError(f"width must be a multiple of head_width {head_width}; got {width}")
        self.shape = DiTConfig(
            depth, width, head_width, channels, (patch[0], patch[1], patch[2]), words_width, expansion, theta
        )
        self.attention_backend = "auto"
        self.embed = nn.Linear(self.shape.patch_values, width)
        self.whereabouts = nn.Linear(4 * FREQUENCIES, width, bias=False)
        self.condition = Condition(width, words_width)
        self.entry = nn.Linear(width, width)
        self.modulation = nn.Linear(width, 4 * width)
        self.blocks = nn.ModuleList(Block(self.shape) for _ in range(depth))
        self.exit_scale = nn.Linear(width, width)
        self.exit = nn.Linear(width, self.shape.patch_values)
        self._initialise()

    @classmethod
    def from_shape(cls, shape: DiTConfig) -> DiT:
        """Build the model a config describes, with fresh weights."""
        return cls(**asdict(shape))

    def forward(self, pack: Pack, words: Tensor, pooled: Tensor, word_counts: tuple[int, ...]) -> Tensor:
        """Return the velocity (N, P) of a pack's tokens.

        words (L, words_width), all clips' words end to end; pooled (B, words_width), one vector a clip; word_counts,
        how many words each clip has (at least one). Each part of the pack comes out the same to the last bit as alone,
        where one thread works.
        """
        spans = Spans(pack.lengths, tuple(word_counts), pack.parts)
        clip = spans.clip_of_token(pack.tokens.device)
        rows, row = distinct(clip, pack.level)  # a pack holds few distinct (clip, level): modulate those, then gather
        counts, (sizes, _) = rows_apart(rows, pack.parts), spans.sums
        condition = self.condition(rows, pooled, pack, counts)
        modulation = apart(lambda some: self.modulation(F.silu(some)), condition, counts)
        modulation = rearrange(modulation, "R (four D) -> R four D", four=4)
        turn = rotations(pack.place, self.shape.head_width, self.shape.theta)
        beside = neighbours(pack)

        x = (
            apart(self.embed, pack.tokens, sizes)
            + apart(self.whereabouts, relative_places(pack), sizes)
            + apart(self.entry, condition, counts).index_select(0, row)
        )
        for block in self.blocks:
            x = block(x, modulation, row, words, turn, beside, spans, self.attention_backend)
        scale = apart(lambda some: self.exit_scale(F.silu(some)), condition, counts)
        return apart(self.exit, normalise(x) * (1 + scale.index_select(0, row)), sizes)

    def hidden(self) -> list[tuple[nn.Linear, int]]:
        """List the linear layers of all blocks, each with how many matrices its weight is: what Muon steps on."""
        layers: list[tuple[nn.Linear, int]] = []
        for block in self.blocks:
            assert isinstance(block, Block)
            layers += [(block.qkv, 3), (block.words, 2), (block.out, 1), (block.widen, 1), (block.narrow, 1)]
        return layers

    def deeper(self, depth: int) -> DiT:
        """Return this model with `depth` blocks, which at first computes the same: each new block is a copy of the one
        before it whose two ways out are zero (block expansion, arXiv 2401.02415).

        Raises ValueError where it already has more.
        """
        trained = self.shape.depth
        if depth < trained:
            raise ValueError(f"depth must be at least the {trained} blocks that are trained; got {depth}")
        model = DiT.from_shape(replace(self.shape, depth=depth))
        model.load_state_dict(self.state_dict(), strict=False)
        sources = [number * trained // depth for number in range(depth)]
        for number, (source, block) in enumerate(zip(sources, model.blocks, strict=True)):
            assert isinstance(block, Block)
            block.load_state_dict(self.blocks[source].state_dict())
            if source in sources[:number]:
                nn.init.zeros_(block.out.weight)
                nn.init.zeros_(block.narrow.weight)
        return model

    def _initialise(self) -> None:
        """Start as the identity: gates, scales and the exit at zero; other weights by fan-in, without their biases."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in (self.modulation, self.exit_scale, self.exit):
            nn.init.zeros_(module.weight)


class Condition(nn.Module):
    """Make one vector of all that holds for a whole clip at one noise level: level, caption, size, duration, frame
    rate.
    """

    def __init__(self, width: int, words_width: int):
        super().__init__()
        self.level = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.caption = nn.Sequential(nn.LayerNorm(words_width), nn.Linear(words_width, width))
        self.format = nn.Sequential(nn.Linear(4, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, rows: Tensor, pooled: Tensor, pack: Pack, counts: Sequence[int] = ()) -> Tensor:
        """rows (R, 2): a clip's number and a noise level; counts, how many of them each part of the pack has; returns
        (R, width).
        """
        clip, level = rows[:, 0].long(), rows[:, 1]
        formats = [(*shape, fps) for shape, fps in zip(pack.shapes, pack.fps, strict=True)]
        formats = torch.tensor(formats, device=pooled.device, dtype=torch.float32)
        format = apart(lambda some: self.format(some.log2().to(pooled.dtype)), formats, pack.parts)
        level = apart(lambda some: self.level(waves(some).to(pooled.dtype)), level, counts)
        return level + (apart(self.caption, pooled, pack.parts) + format).index_select(0, clip)


class Block(nn.Module):
    """Attention over the clip and its words, then a feed-forward net, each scaled on entry and gated on exit."""

    def __init__(self, shape: DiTConfig):
        super().__init__()
        width, self.heads = shape.width, shape.heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.words = nn.Linear(shape.words_width, 2 * width, bias=False)
        self.words_norm = nn.LayerNorm(shape.words_width)
        self.query_scale = nn.Parameter(torch.ones(shape.head_width))
        self.key_scale = nn.Parameter(torch.ones(shape.head_width))
        self.out = nn.Linear(width, width, bias=False)
        self.widen = nn.Linear(width, shape.expansion * width, bias=False)
        self.narrow = nn.Linear(shape.expansion * width, width, bias=False)
        self.modulation = nn.Parameter(torch.zeros(4, width))  # this block's own part of the shared modulation
        self.near = nn.Parameter(torch.zeros(2, SIDES, width))  # how much of its neighbours a token takes in

    def forward(self, x, modulation, row, words, turn, beside, spans: Spans, backend: str) -> Tensor:
        scale, gate, wide_scale, wide_gate = (modulation + self.modulation).index_select(0, row).unbind(1)
        near, wide_near = self.near
        x = x + gate * self.attention(mix(normalise(x) * (1 + scale), near, beside), words, turn, spans, backend)
        wide = apart(self.widen, mix(normalise(x) * (1 + wide_scale), wide_near, beside), spans.sums[0])
        return x + wide_gate * apart(self.narrow, F.relu(wide).square(), spans.sums[0])

    def attention(self, x, words, turn, spans: Spans, backend: str) -> Tensor:
        tokens, count = spans.sums
        q, k, v = rearrange(apart(self.qkv, x, tokens), "N (three K E) -> three N K E", three=3, K=self.heads)
        words = apart(self.words, self.words_norm(words), count)
        word_k, word_v = rearrange(words, "L (two K E) -> two L K E", two=2, K=self.heads)
        q, k = (rotate(normalise(y) * scale, turn) for y, scale in ((q, self.query_scale), (k, self.key_scale)))
        q, k, word_k = (y.to(v.dtype) for y in (q, k, normalise(word_k) * self.key_scale))  # under autocast: v's
        found = attend(q, k, v, word_k, word_v, spans, backend)
        return apart(self.out, rearrange(found, "N K E -> N (K E)"), tokens)


FREQUENCIES = 64
SIDES = 6


def normalise(x: Tensor) -> Tensor:
    """Give each row mean 0 and variance 1 over its last axis; without weights, which modulation supplies."""
    return F.layer_norm(x, x.shape[-1:])


def waves(values: Tensor, lowest: float = 0.5, highest: float = 500.0) -> Tensor:
    """Spread numbers in [-1, 1] over sines and cosines of FREQUENCIES angular frequencies: (..., ) to (..., 2
    FREQUENCIES).
    """
    frequency = torch.logspace(math.log10(lowest), math.log10(highest), FREQUENCIES, device=values.device)
    angle = values.float()[..., None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def distinct(clip: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    """List the distinct (clip, level) of a pack's tokens, (R, 2), and say which of them each token has, (N,)."""
    keys, row = (2 * clip.double() + level).unique(return_inverse=True)
    pairs = torch.stack([clip.to(level.dtype), level], dim=1)
    return pairs.new_empty(len(keys), 2).index_copy_(0, row, pairs), row


def neighbours(pack: Pack) -> Tensor:
    """Say which tokens lie before and behind each along time, row and column: (SIDES, N), N where there is none.

    Opposite sides stand next to each other.
    """
    device, lengths = pack.place.device, torch.tensor(pack.lengths, device=pack.place.device)
    grids = torch.tensor([grid_of(shape, pack.patch) for shape in pack.shapes], device=device)
    grids = grids.repeat_interleave(lengths, dim=0)
    N = len(pack.place)
    number = torch.arange(N, device=device)
    beside = []
    for axis, step in enumerate((grids[:, 1] * grids[:, 2], grids[:, 2], torch.ones_like(number))):
        place = pack.place[:, axis]
        beside.append(torch.where(place > 0, number - step, N))
        beside.append(torch.where(place < grids[:, axis] - 1, number + step, N))
    return torch.stack(beside)


def rows_apart(rows: Tensor, parts: Sequence[int]) -> list[int]:
    """Return how many of the distinct (clip, level), (R, 2), each part of a pack has."""
    if len(parts) < 2:
        return [len(rows)]
    owner = torch.arange(len(parts), device=rows.device).repeat_interleave(torch.tensor(parts, device=rows.device))
    return owner[rows[:, 0].long()].bincount(minlength=len(parts)).tolist()


class Mix(torch.autograd.Function):
    """`mix`, whose gradient is the same sum over the opposite sides: gathered, where autograd would scatter."""

    @staticmethod
    def forward(ctx, x: Tensor, near: Tensor, beside: Tensor) -> Tensor:
        ctx.save_for_backward(x, near, beside)
        return _mixed(x, near, beside)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        x, near, beside = ctx.saved_tensors
        padded = F.pad(x, (0, 0, 0, 1))
        opposite = near.unflatten(0, (SIDES // 2, 2)).flip(1).flatten(0, 1)
        grad_near = torch.stack([(grad * padded.index_select(0, side)).sum(0) for side in beside])
        return _mixed(grad, opposite, beside), grad_near, None


def _mixed(x: Tensor, near: Tensor, beside: Tensor) -> Tensor:
    padded, found = F.pad(x, (0, 0, 0, 1)), x.clone()
    for weight, side in zip(near, beside, strict=True):
        found.addcmul_(weight, padded.index_select(0, side))
    return found


def mix(x: Tensor, near: Tensor, beside: Tensor) -> Tensor:
    """Add to each token (N, D) its six neighbours' values, each scaled by `near` (SIDES, D): a depthwise convolution
    over the grid of whatever size, as in Mix-FFN (SANA, arXiv 2410.10629), so that neighbours agree early in training.
    """
    return Mix.apply(x, near, beside)  # type: ignore[return-value]


def relative_places(pack: Pack) -> Tensor:
    """Say where in the frame each token lies, whatever the frame's size: waves of row and column in [-1, 1]."""
    size = torch.tensor(pack.shapes, device=pack.place.device)[:, 1:] // torch.tensor(
        pack.patch[1:], device=pack.place.device
    )
    size = size.repeat_interleave(torch.tensor(pack.lengths, device=size.device), dim=0)
    relative = (2 * pack.place[:, 1:] + 1) / size - 1
    return rearrange(waves(relative, 0.5, 50.0), "N side waves -> N (side waves)").to(pack.tokens.dtype)


def rotations(place: Tensor, head_width: int, theta: float) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines (N, 1, E / 2) that turn each head by a token's time, row and column.

    A quarter of the pairs of values turns with time, three eighths with row and with column each.
    """
    pairs = head_width // 2
    space = 3 * pairs // 8
    angles = []
    for axis, count in enumerate((pairs - 2 * space, space, space)):
        frequency = theta ** -(torch.arange(count, device=place.device) / count)
        angles.append(place[:, axis, None] * frequency)
    angle = torch.cat(angles, dim=-1)[:, None]
    return angle.cos(), angle.sin()


def rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair of values of x (N, K, E), first half with second half, by a token's angles."""
    cos, sin = (part.to(x.dtype) for part in turn)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
