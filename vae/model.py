"""The spacetime VAE: pixels to a few latent numbers and back, causal in time.

A latent's first time step covers the first frame alone, every later one the next `stride[0]` frames, so an image is a
one-frame video and a clip can be coded in pieces: what a piece must know of the past is an argument (`StreamState`) and a
result.

Beside the network runs a linear code of each block of pixels. Training starts with the network silent and this code at
its best (principal components, `train_vae.py`), so the network learns only what no linear code can do.

Two-dimensional convolutions within a frame, then a causal mix of three time steps: a fifth of the arithmetic of
three-dimensional ones at the same width. Activations keep channels last. Normalisation is per position over channels,
never over time or space, or pieces would differ from the whole.
"""

from __future__ import annotations

import hashlib
import math

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange, repeat
from torch import Tensor, nn

Triple = tuple[int, int, int]
StreamState = dict[
    str, Tensor
]  # the last two time steps that each causal mix has seen, by layer; empty at a clip's first piece

ENCODER_PREFIXES = ("encoder.", "linear_encoder.", "latent_")  # how the names of all weights begin that latents depend on
LOG_VARIANCE = (-20.0, 10.0)  # limits of the posterior's, far outside what training visits
START_LOG_VARIANCE = -6.0  # of a posterior before training: noise of a twentieth of the latents' spread


class VideoVAE(ModelMixin, ConfigMixin):
    """Code clips as latents (C, T, H, W), normalised per channel with statistics that travel inside the model: a
    channel's variance is its share in the picture.

    `patch` is the block of pixels (time, rows, columns) folded into one position before the first stage; `downs` are
    the further reductions between stages of `widths`. The stride is their product: the defaults make 4x8x8.
    """

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
                "a VAE has one width and two numbers of blocks a stage, and one down between two stages; "
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
    def init_linear(self, basis: Tensor, mean: Tensor, spread: Tensor) -> None:
        """Begin as a linear code of blocks of pixels and nothing else: the network is silenced, latents have variance
        1.

        basis (values, channels) orthonormal; mean (values,); spread (channels,), the code's standard deviations.
        """
        self.linear_encoder.weight.copy_((basis / spread).T)
        self.linear_encoder.bias.copy_(-(mean @ basis) / spread)
        self.linear_decoder.weight.copy_(basis * spread)
        self.linear_decoder.bias.copy_(mean)
        for layer in (self.encoder.exit, self.decoder.exit):
            for value in layer.parameters():
                value.zero_()
        self.encoder.exit.bias[self.channels :] = START_LOG_VARIANCE

    def encoder_hash(self) -> str:
        """Return 16 hexadecimal digits (SHA-256) that tell encoders apart: VAEs with the same digits code clips
        alike.
        """
        digest = hashlib.sha256(repr((self.stride, self.channels)).encode())
        for name, value in sorted(self.state_dict().items()):
            if name.startswith(ENCODER_PREFIXES):
                digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def muon_params(self) -> list[tuple[nn.Linear | nn.Conv2d, int]]:
        """List the layers between the first and the last of both nets, each as one matrix: what Muon steps on."""
        layers: list[nn.Linear | nn.Conv2d] = []
        for block in self.modules():
            if isinstance(block, Block):
                layers += [block.frame, block.mix]
        for layer in (*self.encoder.fewer, *self.decoder.more):
            assert isinstance(layer, nn.Linear)
            layers.append(layer)
        return [(layer, 1) for layer in layers]

    def latent_shape(self, frames: int, rows: int, columns: int) -> Triple:
        """Return (T, H, W) of the latents of a clip; raises ValueError where the stride does not fit it."""
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

    def frame_count(self, steps: int) -> int:
        """Return how many frames `steps` latent time steps stand for at the start of a clip."""
        return 1 + (steps - 1) * self.stride[0]

    def forward(self, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Code pixels, draw from the posterior with the noise given, show what was drawn: (shown, mean, log-variance),
        for training.
        """
        mean, log_variance, _ = self.posterior(pixels)
        shown, _ = self.reconstruct(mean + noise * (log_variance / 2).exp())
        return shown, mean, log_variance

    def posterior(self, pixels: Tensor, past: StreamState | None = None) -> tuple[Tensor, Tensor, StreamState]:
        """Return mean and log-variance (B, C, T, H, W) of the raw latents of pixels (B, 3, F, Y, X), and the past for
        the next piece.
        """
        future: StreamState = {}
        blocks = patchify(rearrange(pixels, "B rgb F Y X -> B F Y X rgb"), self.stride, first=not past)
        linear = rearrange(self.linear_encoder(blocks), "B T H W C -> B C T H W")
        mean, log_variance = self.encoder(pixels, past or {}, future).chunk(2, dim=1)
        return linear + mean, log_variance.clamp(*LOG_VARIANCE), future

    def reconstruct(self, raw: Tensor, past: StreamState | None = None) -> tuple[Tensor, StreamState]:
        """Return pixels (B, 3, F, Y, X), not clamped, of raw latents (B, C, T, H, W), and the past for the next
        piece.
        """
        future: StreamState = {}
        blocks = self.linear_decoder(rearrange(raw, "B C T H W -> B T H W C"))
        linear = rearrange(unpatchify(blocks, self.stride, first=not past), "B F Y X rgb -> B rgb F Y X")
        return linear + self.decoder(raw, past or {}, future), future

    def encode_piece(self, pixels: Tensor, past: StreamState | None = None) -> tuple[Tensor, StreamState]:
        """Code the next piece of a clip: normalised latents and the past for the piece after it.

        The first piece has 1 + stride n frames and no past, later ones stride n frames. Raises ValueError otherwise.
        """
        frames, rows, columns = pixels.shape[2:]
        self.latent_shape(frames + 1 if past else frames, rows, columns)
        mean, _, future = self.posterior(pixels, past)
        return self.normalize(mean), future

    def decode_piece(self, latents: Tensor, past: StreamState | None = None) -> tuple[Tensor, StreamState]:
        """Show the next piece of normalised latents (B, C, T, H, W) as pixels in [-1, 1], and the past for the piece
        after it.
        """
        pixels, future = self.reconstruct(self.denormalize(latents), past)
        return pixels.clamp(-1, 1), future

    def encode(self, pixels: Tensor) -> Tensor:
        """Code whole clips: pixels (B, 3, F, Y, X) in [-1, 1] to normalised latents (B, C, T, H, W)."""
        return self.encode_piece(pixels)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """Show whole clips: normalised latents (B, C, T, H, W) to pixels (B, 3, F, Y, X) in [-1, 1]."""
        return self.decode_piece(latents)[0]

    def linear_preview(self, latents: Tensor) -> Tensor:
        """Show normalised latents (B, C, T, H, W) roughly and at once, by the linear code alone: pixels (B, 3, F, Y, X)
        in [-1, 1].
        """
        blocks = self.linear_decoder(rearrange(self.denormalize(latents), "B C T H W -> B T H W C"))
        return rearrange(unpatchify(blocks, self.stride, first=True), "B F Y X rgb -> B rgb F Y X").clamp(-1, 1)

    def normalize(self, raw: Tensor) -> Tensor:
        """Scale each channel to mean 0 over the training set, and to the variance of its share in the picture, 1 on
        average.
        """
        return (raw - _per_channel(self.latent_mean)) / _per_channel(self.latent_scale)

    def denormalize(self, latents: Tensor) -> Tensor:
        """Undo `normalize`."""
        return latents * _per_channel(self.latent_scale) + _per_channel(self.latent_mean)


class Encoder(nn.Module):
    def __init__(self, channels: int, patch: Triple, widths, downs, blocks):
        super().__init__()
        self.patch, self.downs = patch, [tuple(down) for down in downs]
        self.enter = Frame(3 * math.prod(patch), widths[0])
        self.stages = nn.ModuleList(_stage(width, count) for width, count in zip(widths, blocks, strict=True))
        self.fewer = nn.ModuleList(
            nn.Linear(before * math.prod(down), after)
            for before, after, down in zip(widths[:-1], widths[1:], self.downs, strict=True)
        )
        self.norm = nn.LayerNorm(widths[-1])
        self.exit = nn.Linear(widths[-1], 2 * channels)

    def forward(self, pixels: Tensor, past: StreamState, future: StreamState) -> Tensor:
        first = not past
        x = patchify(rearrange(pixels, "B rgb F Y X -> B F Y X rgb"), self.patch, first)
        x = self.enter(x)
        for number, stage in enumerate(self.stages):
            if number:
                x = self.fewer[number - 1](patchify(x, self.downs[number - 1], first))
            x = through(stage, x, f"encoder.{number}", past, future)
        return rearrange(self.exit(F.silu(self.norm(x))), "B T H W C -> B C T H W")


class Decoder(nn.Module):
    def __init__(self, channels: int, patch: Triple, widths, downs, blocks):
        super().__init__()
        self.patch, self.ups = patch, [tuple(down) for down in reversed(downs)]
        widths = tuple(reversed(widths))
        self.enter = Frame(channels, widths[0])
        self.stages = nn.ModuleList(_stage(width, count) for width, count in zip(widths, reversed(blocks), strict=True))
        self.more = nn.ModuleList(
            nn.Linear(before, after * math.prod(up))
            for before, after, up in zip(widths[:-1], widths[1:], self.ups, strict=True)
        )
        self.norm = nn.LayerNorm(widths[-1])
        self.exit = Frame(widths[-1], 3 * math.prod(patch))

    def forward(self, raw: Tensor, past: StreamState, future: StreamState) -> Tensor:
        first = not past
        x = self.enter(rearrange(raw, "B C T H W -> B T H W C"))
        for number, stage in enumerate(self.stages):
            if number:
                x = unpatchify(self.more[number - 1](x), self.ups[number - 1], first)
            x = through(stage, x, f"decoder.{number}", past, future)
        pixels = unpatchify(self.exit(F.silu(self.norm(x))), self.patch, first)
        return rearrange(pixels, "B F Y X rgb -> B rgb F Y X")


class Block(nn.Module):
    """Look around within each frame, then back over two earlier time steps; a residual."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.frame = Frame(width, width)
        self.mix_norm = nn.LayerNorm(width)
        self.mix = nn.Linear(3 * width, width)
        nn.init.zeros_(self.mix.weight)

    def forward(self, x: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (B, T, H, W, D); past (B, 2, H, W, D) or None at a clip's start. Returns the new x and the past for the
        next piece.
        """
        hidden = F.silu(self.mix_norm(self.frame(F.silu(self.norm(x)))))
        if past is None:
            past = torch.zeros_like(hidden[:, :1]).expand(-1, 2, -1, -1, -1)
        seen = torch.cat([past, hidden], dim=1)
        steps = x.shape[1]
        window = torch.cat([seen[:, lag : lag + steps] for lag in range(3)], dim=-1)
        return x + self.mix(window), seen[:, -2:]


class Frame(nn.Conv2d):
    """A 3x3 convolution within each frame of (B, T, H, W, D), channels last."""

    def __init__(self, before: int, after: int):
        super().__init__(before, after, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        B = x.shape[0]
        found = super().forward(rearrange(x, "B T H W D -> (B T) D H W"))
        return rearrange(found, "(B T) D H W -> B T H W D", B=B)


def _stage(width: int, blocks: int) -> nn.ModuleList:
    return nn.ModuleList(Block(width) for _ in range(blocks))


def through(stage: nn.Module, x: Tensor, name: str, past: StreamState, future: StreamState) -> Tensor:
    """Run a stage's blocks, taking each one's past by name and leaving its future."""
    for number, block in enumerate(stage.children()):
        layer = f"{name}.{number}"
        x, future[layer] = block(x, past.get(layer))
    return x


def patchify(x: Tensor, step: Triple, first: bool) -> Tensor:
    """Gather blocks of positions into channels: (B, T t, H h, W w, D) to (B, T, H, W, t h w D).

    At a clip's start the first frame is repeated to fill its own block.
    """
    t, h, w = step
    if first and t > 1:
        x = torch.cat([repeat(x[:, :1], "B 1 H W D -> B t H W D", t=t - 1), x], dim=1)
    return rearrange(x, "B (T t) (H h) (W w) D -> B T H W (t h w D)", t=t, h=h, w=w)


def unpatchify(x: Tensor, step: Triple, first: bool) -> Tensor:
    """Spread channels over blocks of positions; the inverse of `patchify`, also in dropping what it repeated."""
    t, h, w = step
    x = rearrange(x, "B T H W (t h w D) -> B (T t) (H h) (W w) D", t=t, h=h, w=w)
    return x[:, t - 1 :] if first else x


def _per_channel(values: Tensor) -> Tensor:
    return rearrange(values, "C -> C 1 1 1")
