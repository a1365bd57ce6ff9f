"""Packing: clips of native size, concatenated to one sequence of tokens.

A token is a spacetime patch of a clip's latents. Clips keep their order in the pack; attention never crosses from one
clip to another (`attention.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby, pairwise

import torch
from einops import rearrange
from torch import Tensor

Patch = tuple[int, int, int]


def grid_of(shape: Sequence[int], patch: Patch) -> tuple[int, int, int]:
    """Return the number of patches along each axis of latents (T, H, W).

    Raises ValueError if the patch does not divide the latents.
    """
    if any(size % step for size, step in zip(shape, patch, strict=True)):
        raise ValueError(f"latents (T, H, W) must be multiples of the patch {patch}; got {tuple(shape)}")
    T, H, W = (size // step for size, step in zip(shape, patch, strict=True))
    return T, H, W


def patchify(latents: Tensor, patch: Patch) -> Tensor:
    """Cut latents (C, T, H, W) into tokens (N, P), ordered by time, row, column; P is C times the patch's volume."""
    t, h, w = patch
    grid_of(latents.shape[1:], patch)
    return rearrange(latents, "C (T t) (H h) (W w) -> (T H W) (C t h w)", t=t, h=h, w=w)


def unpatchify(tokens: Tensor, shape: Sequence[int], patch: Patch) -> Tensor:
    """Join tokens (N, P) to latents (C, T, H, W) of `shape` (T, H, W); the inverse of `patchify`."""
    t, h, w = patch
    T, H, W = grid_of(shape, patch)
    return rearrange(tokens, "(T H W) (C t h w) -> C (T t) (H h) (W w)", T=T, H=H, W=W, t=t, h=h, w=w)


@dataclass(frozen=True)
class SeqLens:
    """Sequence lengths of a pack: clip i has `tokens[i]` tokens and `text[i]` text tokens.

    `parts` gives the number of neighbouring clips in each part of the pack. Layers run on each part separately, so that
    a part is computed bit-identically to a pack of its own. Empty means one part.
    """

    tokens: tuple[int, ...]
    text: tuple[int, ...]
    parts: tuple[int, ...] = ()

    def split_parts(self) -> list[SeqLens]:
        """Return the sequence lengths of each part."""
        ends = list(accumulate(self.parts, initial=0))
        return [SeqLens(self.tokens[a:b], self.text[a:b]) for a, b in pairwise(ends)] or [self]

    @cached_property
    def part_totals(self) -> tuple[list[int], list[int]]:
        """Number of tokens and number of text tokens in each part."""
        parts = self.split_parts()
        return [sum(part.tokens) for part in parts], [sum(part.text) for part in parts]

    def equal_length_runs(self) -> list[tuple[slice, slice, slice]]:
        """List the runs of neighbouring clips with the same number of tokens, as slices of clips, tokens, text."""
        runs, clip, token, text = [], 0, 0, 0
        for _, run in groupby(range(len(self.tokens)), key=lambda i: self.tokens[i]):
            members = list(run)
            token_count = sum(self.tokens[i] for i in members)
            text_count = sum(self.text[i] for i in members)
            runs.append(
                (slice(clip, clip + len(members)), slice(token, token + token_count), slice(text, text + text_count))
            )
            clip, token, text = clip + len(members), token + token_count, text + text_count
        return runs

    def clip_of_token(self, device=None) -> Tensor:
        """Return the clip index of each token, (N,)."""
        return _segment_ids(self.tokens, device)

    def clip_of_text_token(self, device=None) -> Tensor:
        """Return the clip index of each text token, (L,)."""
        return _segment_ids(self.text, device)


def per_part(layer: Callable[[Tensor], Tensor], x: Tensor, part_sizes: Sequence[int]) -> Tensor:
    """Apply a layer to each part of the rows of x separately.

    A matrix product may round differently with a different number of rows, so one product for all parts would not give
    the same bits as one for each.
    """
    return layer(x) if len(part_sizes) < 2 else torch.cat([layer(part) for part in x.split(list(part_sizes))])


def _segment_ids(sizes: tuple[int, ...], device) -> Tensor:
    return torch.arange(len(sizes), device=device).repeat_interleave(torch.tensor(sizes, device=device))


@dataclass(frozen=True)
class Pack:
    """A pack of clips: the whole input of the model except the text.

    tokens (N, P); position_ids (N, 3), each token's (time, row, column) in its clip, in patches; sigma (N,), each
    token's noise level in [0, 1]; shapes, each clip's (T, H, W) in latents; fps, each clip's frames per second; parts,
    as in `SeqLens`. `camera` (frames, CAMERA_VALUES), if any, is the camera velocity of each latent frame of all clips,
    concatenated; its last value is 1 where the velocity is known, and all values are 0 where it is not.
    """

    tokens: Tensor
    position_ids: Tensor
    sigma: Tensor
    shapes: tuple[tuple[int, int, int], ...]
    fps: tuple[float, ...]
    patch: Patch
    parts: tuple[int, ...] = ()
    camera: Tensor | None = None

    @property
    def token_lens(self) -> tuple[int, ...]:
        """Number of tokens of each clip."""
        return tuple(T * H * W for T, H, W in (grid_of(shape, self.patch) for shape in self.shapes))

    @property
    def frame_lens(self) -> tuple[int, ...]:
        """Number of latent frames of each clip."""
        return tuple(T for T, _, _ in self.shapes)


def grid_positions(shape: Sequence[int], patch: Patch, device=None) -> Tensor:
    """Return the position (time, row, column) of each patch of latents (T, H, W), counted from 0: (N, 3)."""
    axes = [torch.arange(size, device=device) for size in grid_of(shape, patch)]
    return torch.cartesian_prod(*axes).reshape(-1, 3)


def pack(
    latents: list[Tensor],
    sigmas: list[Tensor],
    fps: list[float],
    patch: Patch,
    parts: Sequence[int] = (),
    cameras: Sequence[Tensor] | None = None,
) -> Pack:
    """Concatenate clips to a pack. `latents[i]` is (C, T, H, W); `sigmas[i]` (T, H, W) is the noise level per latent;
    `cameras[i]` (T, CAMERA_VALUES) the camera velocity per latent frame.

    A token takes the highest sigma of its patch, because a patch that is partly noise is not known yet.
    Raises ValueError if the patch does not divide a clip.
    """
    tokens = torch.cat([patchify(clip, patch) for clip in latents])
    sigma = torch.cat([patchify(clip_sigma[None], patch).amax(1) for clip_sigma in sigmas])
    shapes = [(T, H, W) for _, T, H, W in (clip.shape for clip in latents)]
    position_ids = torch.cat([grid_positions(shape, patch, tokens.device) for shape in shapes])
    camera = None if cameras is None else torch.cat(list(cameras)).to(tokens)
    return Pack(tokens, position_ids, sigma, tuple(shapes), tuple(fps), patch, tuple(parts), camera)


def unpack(tokens: Tensor, shapes: tuple[tuple[int, int, int], ...], patch: Patch) -> list[Tensor]:
    """Split a pack's tokens (N, P) into clips, each (C, T, H, W)."""
    token_lens = [T * H * W for T, H, W in (grid_of(shape, patch) for shape in shapes)]
    return [unpatchify(clip, shape, patch) for clip, shape in zip(tokens.split(token_lens), shapes, strict=True)]
