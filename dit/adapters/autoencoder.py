"""A video autoencoder of diffusers behind the interface of ours: clips to normalized latents and back."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

MAX_WHOLE_PIXELS = 2**22  # of all frames: 16 of 512x512; larger clips are decoded in tiles, or streamed
TILE_FRAMES, TILE_PIXELS = 16, 256  # of a tile, where the model does not say
FIT_FRAMES, FIT_CELLS, FIT_CLIPS = 5, 6, 8  # latent frames and cells of the clips that the preview is fitted to


class Autoencoder:
    """Encode and decode with `model`; latents are normalized per channel by the mean and deviation of its config.

    `stride` is the (frames, rows, columns) of one latent, by default what the model says.
    """

    def __init__(self, model: Any, stride: tuple[int, int, int] | None = None):
        self.model = model
        if stride:
            self.stride = stride

    @cached_property
    def stride(self) -> tuple[int, int, int]:
        """The (frames, rows, columns) of one latent."""
        time = self._ratio("scale_factor_temporal", "temporal_compression_ratio")
        space = self._ratio("scale_factor_spatial", "spatial_compression_ratio")
        return time, space, space

    def _ratio(self, *names: str) -> int:
        for name in names:
            found = self.model.config.get(name) or getattr(self.model, name, None)
            if isinstance(found, int):
                return found
        raise ValueError(f"a VAE must say its {names[-1]}; {type(self.model).__name__} does not")

    @property
    def channels(self) -> int:
        """The number of latent channels."""
        return self.model.config.get("z_dim") or self.model.config["latent_channels"]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    def latent_shape(self, frames: int, rows: int, columns: int) -> tuple[int, int, int]:
        """Return (T, H, W) of the latents of a clip."""
        time, down, across = self.stride
        return 1 + (frames - 1) // time, rows // down, columns // across

    def frame_count(self, latent_frames: int) -> int:
        """Return how many frames the first `latent_frames` of a clip cover."""
        return 1 + (latent_frames - 1) * self.stride[0]

    def _moments(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and deviation of raw latents, (1, C, 1, 1, 1)."""
        config, factor = self.model.config, self.model.config.get("scaling_factor") or 1.0
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is None or std is None:
            buffers = dict(self.model.named_buffers(recurse=False))
            mean, std = buffers.get("latents_mean"), buffers.get("latents_std")
        if mean is None or std is None:
            shift = config.get("shift_factor") or 0.0
            return torch.full((1, 1, 1, 1, 1), shift).to(like), torch.full((1, 1, 1, 1, 1), 1 / factor).to(like)
        pair = (torch.as_tensor(value).to(like).view(1, -1, 1, 1, 1) for value in (mean, std))
        centre, spread = pair
        return centre, spread / factor

    def encode(self, pixels: Tensor) -> Tensor:
        """Encode pixels (B, 3, F, Y, X) in [-1, 1] to the means of their latents (B, C, T, H, W), normalized."""
        raw = self.model.encode(pixels.to(self.model.dtype)).latent_dist.mode().float()
        mean, std = self._moments(raw)
        return (raw - mean) / std

    def raw(self, latents: Tensor) -> Tensor:
        """Undo the normalization; the result has the model's float type."""
        mean, std = self._moments(latents)
        return (latents * std + mean).to(self.model.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents (B, C, T, H, W) to pixels (B, 3, F, Y, X) in [-1, 1]."""
        return self.model.decode(self.raw(latents), return_dict=False)[0].float().clamp(-1, 1)

    @property
    def streams(self) -> bool:
        """Whether `pieces` decodes in constant memory: the decoder has a feature cache."""
        return hasattr(self.model, "_feat_map") or hasattr(self.model, "clear_cache")

    def is_tiled(self, T: int, H: int, W: int) -> bool:
        """Whether a clip of latents (T, H, W) is decoded in tiles: a large one, by a decoder that does not stream."""
        pixels = math.prod((T, H, W)) * math.prod(self.stride)
        return not self.streams and hasattr(self.model, "enable_tiling") and pixels > MAX_WHOLE_PIXELS

    @property
    def tile(self) -> tuple[int, int, int]:
        """The most latents (T, H, W) that are decoded at a time in tiles."""
        time, down, across = self.stride
        frames = getattr(self.model, "tile_sample_min_num_frames", TILE_FRAMES)
        rows, columns = (getattr(self.model, f"tile_sample_min_{side}", TILE_PIXELS) for side in ("height", "width"))
        return 1 + frames // time, rows // down, columns // across

    def set_tiling(self, on: bool) -> None:
        """Let the model decode in tiles, whose seams are blended, or whole."""
        if hasattr(self.model, "enable_tiling"):
            self.model.enable_tiling() if on else self.model.disable_tiling()

    def pieces(self, latents: Tensor) -> Iterator[Tensor]:
        """Decode latents (C, T, H, W) piece by piece; yield frames (3, F, Y, X).

        With a feature cache (Wan's), a latent frame at a time in constant memory. Other decoders take the clip whole.
        """
        model = self.model
        if not self.streams or getattr(model, "use_tiling", False):
            yield self.decode(latents[None])[0]
            return
        from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

        model.clear_cache()
        raw = model.post_quant_conv(self.raw(latents[None]))
        for frame in range(raw.shape[2]):
            model._conv_idx, first = [0], {"first_chunk": True} if frame == 0 else {}
            out = model.decoder(
                raw[:, :, frame : frame + 1], feat_cache=model._feat_map, feat_idx=model._conv_idx, **first
            )
            if model.config.get("patch_size"):
                out = unpatchify(out, patch_size=model.config.patch_size)
            yield out[0].float().clamp(-1, 1)
        model.clear_cache()

    def linear_preview(self, latents: Tensor) -> Tensor:
        """Map normalized latents (B, C, T, H, W) to rough pixels (B, 3, F, Y, X) by one linear map per channel.

        The map is fitted to clips of smooth colours when it is first used.
        """
        weights = self._preview_weights.to(latents)
        rgb = torch.einsum("b c t y x, d c -> b d t y x", latents, weights[:, :-1]) + weights[:, -1, None, None, None]
        time, down, across = self.stride
        frames = torch.cat([rgb[:, :, :1], rgb[:, :, 1:].repeat_interleave(time, 2)], 2)
        size = (frames.shape[2], rgb.shape[3] * down, rgb.shape[4] * across)
        return F.interpolate(frames, size=size, mode="nearest").clamp(-1, 1)

    @cached_property
    def _preview_weights(self) -> Tensor:
        """The linear map (3, C + 1) from a latent and one to the mean colour of its pixels, by least squares."""
        random = torch.Generator().manual_seed(0)
        time, down, across = self.stride
        coarse = torch.rand(FIT_CLIPS, 3, 2, 3, 3, generator=random) * 2 - 1
        size = (1 + (FIT_FRAMES - 1) * time, FIT_CELLS * down, FIT_CELLS * across)
        pixels = F.interpolate(coarse, size=size, mode="trilinear").to(self.device)
        with torch.no_grad():
            latents = torch.cat([self.encode(clip[None]) for clip in pixels])
        kept = torch.cat([pixels[:, :, :1], pixels[:, :, 1:].unfold(2, time, time).mean(-1)], 2)
        colours = F.adaptive_avg_pool3d(kept, (latents.shape[2], latents.shape[3], latents.shape[4]))
        rows = rearrange(latents, "b c t y x -> (b t y x) c").double().cpu()
        wanted = rearrange(colours, "b c t y x -> (b t y x) c").double().cpu()
        rows = torch.cat([rows, torch.ones(len(rows), 1, dtype=rows.dtype)], 1)
        return torch.linalg.lstsq(rows, wanted, driver="gelsd").solution.T.float()

    def encoder_hash(self) -> str:
        """Hash the weights to 16 hexadecimal digits (SHA-256): VAEs with equal hashes encode clips equally."""
        digest = hashlib.sha256(repr((type(self.model).__name__, self.stride, self.channels)).encode())
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(name.encode() + value.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]
