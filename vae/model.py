"""The spacetime VAE: pixels to latents and back, causal in time.

The first latent frame covers the first frame, every later one the next `stride[0]` frames. So an image is a one-frame
video, and a clip can be encoded in pieces: what a piece needs of earlier ones is an argument and a result
(`StreamState`).

In parallel to the network, a linear code maps each block of pixels to latents and back. Training starts with the
network's output zero and with the best linear code (principal components, `train_vae.py`), so that the network learns
what a linear code cannot do.

A block is a 2D convolution within each frame, then a causal mix of three latent frames: a fifth of the FLOPs of a 3D
convolution of the same width. Activations are channels-last. Norms are per position over channels, never over time or
space, or pieces would differ from the whole clip.
"""

from __future__ import annotations

import hashlib
import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange, repeat
from torch import Tensor, nn

from vae.weights import original_name

Triple = tuple[int, int, int]
StreamState = dict[str, Tensor]  # layer -> the last two latent frames that its temporal mix has seen

ENCODER_PREFIXES = ("encoder.", "linear_encoder.", "latent_")  # of the weights that latents depend on
LOG_VARIANCE_RANGE = (-20.0, 10.0)  # of the posterior, far outside what training visits
INITIAL_LOG_VARIANCE = -6.0  # of the posterior: noise with a twentieth of the latents' standard deviation


class VideoVAE(ModelMixin, ConfigMixin):
    """Encode clips as latents (C, T, H, W), and decode them.

    Latents are normalized per channel with statistics stored in the model; the variance of a channel is its importance
    to the image, 1 on average.

    `patch` is the block of pixels (time, rows, columns) that one position of the first stage holds; `downs` are the
    reductions between stages of `widths`. The stride is the product of all: the defaults give 4x8x8.
    """

    old_weight_names: ClassVar = {
        "encoder.enter": "encoder.conv_in",
        "encoder.fewer": "encoder.downsamplers",
        "encoder.norm": "encoder.norm_out",
        "encoder.exit": "encoder.proj_out",
        "decoder.enter": "decoder.conv_in",
        "decoder.more": "decoder.upsamplers",
        "decoder.norm": "decoder.norm_out",
        "decoder.exit": "decoder.conv_out",
    } | {
        f"{part}.stages.*.*.{old}": f"{part}.stages.*.*.{new}"
        for part in ("encoder", "decoder")
        for old, new in (
            ("norm", "spatial_norm"),
            ("frame", "spatial_conv"),
            ("mix_norm", "temporal_norm"),
            ("mix", "temporal_mix"),
        )
    }

    @register_to_config
    def __init__(
        self,
        channels: int = 16,
        patch: Triple = (4, 4, 4),
        widths: tuple[int, ...] = (96, 192),
        downs: tuple[Triple, ...] = ((1, 2, 2),),
        encoder_blocks: tuple[int, ...] = (1, 2),
        decoder_blocks: tuple[int, ...] = (2, 3),
    ):
        super().__init__()
        if not len(widths) == len(encoder_blocks) == len(decoder_blocks) == len(downs) + 1:
            raise ValueError(
                "a VAE has one width and two numbers of blocks per stage, and one down between two stages; "
                f"got {len(widths)} widths, {len(encoder_blocks)} and {len(decoder_blocks)} numbers, {len(downs)} downs"
            )
        time, down, across = (math.prod(axis) for axis in zip(patch, *downs, strict=True))
        self.stride: Triple = (time, down, across)
        self.channels = channels
        values = 3 * math.prod(self.stride)
        self.linear_encoder = nn.Linear(values, channels)
        self.linear_decoder = nn.Linear(channels, values)
        self.encoder = Encoder(channels, patch, widths, downs, encoder_blocks)
        self.decoder = Decoder(channels, patch, widths, downs, decoder_blocks)
        self.register_buffer("latent_mean", torch.zeros(channels))
        self.register_buffer("latent_scale", torch.ones(channels))

    @torch.no_grad()
    def init_linear(self, basis: Tensor, mean: Tensor, std: Tensor) -> None:
        """Initialize as a linear code of blocks of pixels whose latents have variance 1; zero the network's output.

        basis (values, channels) orthonormal; mean (values,); std (channels,), the standard deviations of the code.
        """
        self.linear_encoder.weight.copy_((basis / std).T)
        self.linear_encoder.bias.copy_(-(mean @ basis) / std)
        self.linear_decoder.weight.copy_(basis * std)
        self.linear_decoder.bias.copy_(mean)
        for layer in (self.encoder.proj_out, self.decoder.conv_out):
            for value in layer.parameters():
                value.zero_()
        self.encoder.proj_out.bias[self.channels :] = INITIAL_LOG_VARIANCE

    def encoder_hash(self) -> str:
        """Hash the encoder to 16 hexadecimal digits (SHA-256): VAEs with equal hashes encode clips equally.

        The hash covers the old names of the weights, so that latents stored before the renaming stay valid.
        """
        digest = hashlib.sha256(repr((self.stride, self.channels)).encode())
        weights = {original_name(name, self.old_weight_names): value for name, value in self.state_dict().items()}
        for name, value in sorted(weights.items()):
            if name.startswith(ENCODER_PREFIXES):
                digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def muon_params(self) -> list[tuple[nn.Linear | nn.Conv2d, int]]:
        """List the layers that Muon updates, each as one matrix: all but the first and last of encoder and decoder."""
        layers: list[nn.Linear | nn.Conv2d] = []
        for block in self.modules():
            if isinstance(block, CausalBlock):
                layers += [block.spatial_conv, block.temporal_mix]
        for layer in (*self.encoder.downsamplers, *self.decoder.upsamplers):
            assert isinstance(layer, nn.Linear)
            layers.append(layer)
        return [(layer, 1) for layer in layers]

    def latent_shape(self, frames: int, rows: int, columns: int) -> Triple:
        """Return (T, H, W) of the latents of a clip. Raises ValueError if the size does not fit the stride."""
        time, down, across = self.stride
        if frames < 1 or (frames - 1) % time:
            lower = max(1, 1 + (frames - 1) // time * time)
            raise ValueError(
                f"frames must be 1 + {time}n for this VAE; got {frames}, nearest are {lower} and {lower + time}"
            )
        if rows < down or columns < across or rows % down or columns % across:
            raise ValueError(
                f"a frame must be multiples of {down} rows and {across} columns for this VAE; got {rows}x{columns}"
            )
        return 1 + (frames - 1) // time, rows // down, columns // across

    def frame_count(self, latent_frames: int) -> int:
        """Return how many frames the first `latent_frames` of a clip cover."""
        return 1 + (latent_frames - 1) * self.stride[0]

    def forward(self, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode pixels, sample the posterior with the given noise, decode; return (pixels, mean, log-variance).

        Used in training only. The pixels are not clamped.
        """
        mean, log_variance, _ = self.posterior(pixels)
        reconstruction, _ = self.reconstruct(mean + noise * (log_variance / 2).exp())
        return reconstruction, mean, log_variance

    def posterior(self, pixels: Tensor, state: StreamState | None = None) -> tuple[Tensor, Tensor, StreamState]:
        """Return mean and log-variance (B, C, T, H, W) of the raw latents of pixels (B, 3, F, Y, X), and the state for
        the next piece.
        """
        next_state: StreamState = {}
        blocks = patchify(rearrange(pixels, "B rgb F Y X -> B F Y X rgb"), self.stride, first=not state)
        linear = rearrange(self.linear_encoder(blocks), "B T H W C -> B C T H W")
        mean, log_variance = self.encoder(pixels, state or {}, next_state).chunk(2, dim=1)
        return linear + mean, log_variance.clamp(*LOG_VARIANCE_RANGE), next_state

    def reconstruct(self, raw: Tensor, state: StreamState | None = None) -> tuple[Tensor, StreamState]:
        """Decode raw latents (B, C, T, H, W) to pixels (B, 3, F, Y, X), not clamped; also return the state for the next
        piece.
        """
        next_state: StreamState = {}
        blocks = self.linear_decoder(rearrange(raw, "B C T H W -> B T H W C"))
        linear = rearrange(unpatchify(blocks, self.stride, first=not state), "B F Y X rgb -> B rgb F Y X")
        return linear + self.decoder(raw, state or {}, next_state), next_state

    def encode_piece(self, pixels: Tensor, state: StreamState | None = None) -> tuple[Tensor, StreamState]:
        """Encode the next piece of a clip; return normalized latents and the state for the piece after it.

        The first piece has 1 + stride n frames and no state, later ones stride n frames. Raises ValueError otherwise.
        """
        frames, rows, columns = pixels.shape[2:]
        self.latent_shape(frames + 1 if state else frames, rows, columns)
        mean, _, next_state = self.posterior(pixels.to(self.dtype), state)
        return self.normalize(mean.float()), next_state

    def decode_piece(self, latents: Tensor, state: StreamState | None = None) -> tuple[Tensor, StreamState]:
        """Decode the next piece of normalized latents (B, C, T, H, W); return pixels (B, 3, F, Y, X) in [-1, 1] and the
        state for the piece after it.
        """
        pixels, next_state = self.reconstruct(self.denormalize(latents).to(self.dtype), state)
        return pixels.float().clamp(-1, 1), next_state

    def encode(self, pixels: Tensor) -> Tensor:
        """Encode whole clips: pixels (B, 3, F, Y, X) in [-1, 1] to normalized latents (B, C, T, H, W)."""
        return self.encode_piece(pixels)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """Decode whole clips: normalized latents (B, C, T, H, W) to pixels (B, 3, F, Y, X) in [-1, 1]."""
        return self.decode_piece(latents)[0]

    def linear_preview(self, latents: Tensor) -> Tensor:
        """Decode normalized latents (B, C, T, H, W) with the linear code only: fast, rough pixels (B, 3, F, Y, X) in
        [-1, 1].
        """
        blocks = self.linear_decoder(rearrange(self.denormalize(latents).to(self.dtype), "B C T H W -> B T H W C"))
        pixels = rearrange(unpatchify(blocks, self.stride, first=True), "B F Y X rgb -> B rgb F Y X")
        return pixels.float().clamp(-1, 1)

    def normalize(self, raw: Tensor) -> Tensor:
        """Normalize raw latents per channel: mean 0 over the training set, variance as described for the class."""
        return (raw - _per_channel(self.latent_mean)) / _per_channel(self.latent_scale)

    def denormalize(self, latents: Tensor) -> Tensor:
        """Undo `normalize`."""
        return latents * _per_channel(self.latent_scale) + _per_channel(self.latent_mean)


class Encoder(nn.Module):
    """Map pixels (B, 3, F, Y, X) to the mean and log-variance of raw latents, (B, 2 C, T, H, W)."""

    def __init__(self, channels: int, patch: Triple, widths, downs, blocks):
        super().__init__()
        self.patch, self.downs = patch, [tuple(down) for down in downs]
        self.conv_in = FrameConv2d(3 * math.prod(patch), widths[0])
        self.stages = nn.ModuleList(_build_stage(width, count) for width, count in zip(widths, blocks, strict=True))
        self.downsamplers = nn.ModuleList(
            nn.Linear(width * math.prod(down), next_width)
            for width, next_width, down in zip(widths[:-1], widths[1:], self.downs, strict=True)
        )
        self.norm_out = nn.LayerNorm(widths[-1])
        self.proj_out = nn.Linear(widths[-1], 2 * channels)

    def forward(self, pixels: Tensor, state: StreamState, next_state: StreamState) -> Tensor:
        """Encode a piece; `next_state` is filled in."""
        first = not state
        x = patchify(rearrange(pixels, "B rgb F Y X -> B F Y X rgb"), self.patch, first)
        x = self.conv_in(x)
        for index, stage in enumerate(self.stages):
            if index:
                x = self.downsamplers[index - 1](patchify(x, self.downs[index - 1], first))
            x = run_stage(stage, x, f"encoder.{index}", state, next_state)
        return rearrange(self.proj_out(F.silu(self.norm_out(x))), "B T H W C -> B C T H W")


class Decoder(nn.Module):
    """Map raw latents (B, C, T, H, W) to pixels (B, 3, F, Y, X)."""

    def __init__(self, channels: int, patch: Triple, widths, downs, blocks):
        super().__init__()
        self.patch, self.ups = patch, [tuple(down) for down in reversed(downs)]
        widths = tuple(reversed(widths))
        self.conv_in = FrameConv2d(channels, widths[0])
        self.stages = nn.ModuleList(
            _build_stage(width, count) for width, count in zip(widths, reversed(blocks), strict=True)
        )
        self.upsamplers = nn.ModuleList(
            nn.Linear(width, next_width * math.prod(up))
            for width, next_width, up in zip(widths[:-1], widths[1:], self.ups, strict=True)
        )
        self.norm_out = nn.LayerNorm(widths[-1])
        self.conv_out = FrameConv2d(widths[-1], 3 * math.prod(patch))

    def forward(self, raw: Tensor, state: StreamState, next_state: StreamState) -> Tensor:
        """Decode a piece; `next_state` is filled in."""
        first = not state
        x = self.conv_in(rearrange(raw, "B C T H W -> B T H W C"))
        for index, stage in enumerate(self.stages):
            if index:
                x = unpatchify(self.upsamplers[index - 1](x), self.ups[index - 1], first)
            x = run_stage(stage, x, f"decoder.{index}", state, next_state)
        pixels = unpatchify(self.conv_out(F.silu(self.norm_out(x))), self.patch, first)
        return rearrange(pixels, "B F Y X rgb -> B rgb F Y X")


class CausalBlock(nn.Module):
    """A residual block: a convolution within each frame, then a linear mix of a frame and the two before it."""

    def __init__(self, width: int):
        super().__init__()
        self.spatial_norm = nn.LayerNorm(width)
        self.spatial_conv = FrameConv2d(width, width)
        self.temporal_norm = nn.LayerNorm(width)
        self.temporal_mix = nn.Linear(3 * width, width)
        nn.init.zeros_(self.temporal_mix.weight)

    def forward(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Process x (B, T, H, W, D); state (B, 2, H, W, D), None at a clip's start. Returns x and the next state."""
        hidden = F.silu(self.temporal_norm(self.spatial_conv(F.silu(self.spatial_norm(x)))))
        if state is None:
            state = torch.zeros_like(hidden[:, :1]).expand(-1, 2, -1, -1, -1)
        padded = torch.cat([state, hidden], dim=1)
        T = x.shape[1]
        window = torch.cat([padded[:, offset : offset + T] for offset in range(3)], dim=-1)
        return x + self.temporal_mix(window), padded[:, -2:]


class FrameConv2d(nn.Conv2d):
    """A 3x3 convolution within each frame of (B, T, H, W, D), channels last."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        B = x.shape[0]
        y = super().forward(rearrange(x, "B T H W D -> (B T) D H W"))
        return rearrange(y, "(B T) D H W -> B T H W D", B=B)


def _build_stage(width: int, blocks: int) -> nn.ModuleList:
    return nn.ModuleList(CausalBlock(width) for _ in range(blocks))


def run_stage(stage: nn.Module, x: Tensor, name: str, state: StreamState, next_state: StreamState) -> Tensor:
    """Run the blocks of a stage; each reads its entry of `state` and writes that of `next_state`."""
    for index, block in enumerate(stage.children()):
        layer = f"{name}.{index}"
        x, next_state[layer] = block(x, state.get(layer))
    return x


def patchify(x: Tensor, patch: Triple, first: bool) -> Tensor:
    """Gather blocks of positions into channels: (B, T t, H h, W w, D) to (B, T, H, W, t h w D).

    At a clip's start (`first`), the first frame is repeated to fill a block of its own.
    """
    t, h, w = patch
    if first and t > 1:
        x = torch.cat([repeat(x[:, :1], "B 1 H W D -> B t H W D", t=t - 1), x], dim=1)
    return rearrange(x, "B (T t) (H h) (W w) D -> B T H W (t h w D)", t=t, h=h, w=w)


def unpatchify(x: Tensor, patch: Triple, first: bool) -> Tensor:
    """Spread channels over blocks of positions: the inverse of `patchify`, without the repeated frames."""
    t, h, w = patch
    x = rearrange(x, "B T H W (t h w D) -> B (T t) (H h) (W w) D", t=t, h=h, w=w)
    return x[:, t - 1 :] if first else x


def _per_channel(values: Tensor) -> Tensor:
    return rearrange(values, "C -> C 1 1 1")
