"""Clips of native size, laid end to end as one sequence of tokens.

A token is a spacetime patch of a clip's latents. Clips are packed in the order given; attention keeps them apart
(`attention.py`).
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
    """Return how many patches a clip of (T, H, W) latents has along each axis.

    Raises ValueError where the patch does not divide the clip.
    """
    if any(size % step for size, step in zip(shape, patch, strict=True)):
        raise ValueError(f"latents (T, H, W) must be multiples of the patch {patch}; got {tuple(shape)}")
    T, H, W = (size // step for size, step in zip(shape, patch, strict=True))
    return T, H, W


def patchify(latents: Tensor, patch: Patch) -> Tensor:
    """Cut (C, T, H, W) into tokens (N, P), P = C times the patch's volume, in order of time, row, column."""
    t, h, w = patch
    grid_of(latents.shape[1:], patch)
    return rearrange(latents, "C (T t) (H h) (W w) -> (T H W) (C t h w)", t=t, h=h, w=w)


def unpatchify(tokens: Tensor, shape: Sequence[int], patch: Patch) -> Tensor:
    """Lay tokens (N, P) back into latents (C, T, H, W); the inverse of `patchify`."""
    t, h, w = patch
    T, H, W = grid_of(shape, patch)
    return rearrange(tokens, "(T H W) (C t h w) -> C (T t) (H h) (W w)", T=T, H=H, W=W, t=t, h=h, w=w)


@dataclass(frozen=True)
class Spans:
    """Where each clip of a pack begins and ends: `tokens[i]` tokens and `words[i]` words belong to clip i.

    `parts` are how many neighbouring clips are summed up together, apart from the rest; none stands for all.
    """

    tokens: tuple[int, ...]
    words: tuple[int, ...]
    parts: tuple[int, ...] = ()

    def apart(self) -> list[Spans]:
        """Return the spans of each part."""
        ends = list(accumulate(self.parts, initial=0))
        return [Spans(self.tokens[a:b], self.words[a:b]) for a, b in pairwise(ends)] or [self]

    @cached_property
    def sums(self) -> tuple[list[int], list[int]]:
        """How many tokens and how many words each part has."""
        parts = self.apart()
        return [sum(part.tokens) for part in parts], [sum(part.words) for part in parts]

    def groups(self) -> list[tuple[slice, slice, slice]]:
        """List the runs of neighbouring clips with equally many tokens, as slices of clips, of tokens and of words."""
        runs, clip, token, word = [], 0, 0, 0
        for _, run in groupby(range(len(self.tokens)), key=lambda i: self.tokens[i]):
            members = list(run)
            tokens = sum(self.tokens[i] for i in members)
            words = sum(self.words[i] for i in members)
            runs.append((slice(clip, clip + len(members)), slice(token, token + tokens), slice(word, word + words)))
            clip, token, word = clip + len(members), token + tokens, word + words
        return runs

    def clip_of_token(self, device=None) -> Tensor:
        """Return the clip number of each token, (N,)."""
        return _counted(self.tokens, device)

    def clip_of_word(self, device=None) -> Tensor:
        """Return the clip number of each word, (L,)."""
        return _counted(self.words, device)


def apart(layer: Callable[[Tensor], Tensor], x: Tensor, sizes: Sequence[int]) -> Tensor:
    """Apply a layer to so many rows at a time: how a sum is rounded may depend on how many are made at once."""
    return layer(x) if len(sizes) < 2 else torch.cat([layer(some) for some in x.split(list(sizes))])


def _counted(lengths: tuple[int, ...], device) -> Tensor:
    return torch.arange(len(lengths), device=device).repeat_interleave(torch.tensor(lengths, device=device))


@dataclass(frozen=True)
class Pack:
    """Clips laid end to end: all a model needs to know of them but the words.

    tokens (N, P); place (N, 3), each token's patch coordinates in its own clip; level (N,), each token's noise level in
    [0, 1]; shapes, each clip's (T, H, W) in latents; fps, each clip's frames a second; parts, as in `Spans`.
    """

    tokens: Tensor
    place: Tensor
    level: Tensor
    shapes: tuple[tuple[int, int, int], ...]
    fps: tuple[float, ...]
    patch: Patch
    parts: tuple[int, ...] = ()

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(T * H * W for T, H, W in (grid_of(shape, self.patch) for shape in self.shapes))


def places(shape: Sequence[int], patch: Patch, device=None) -> Tensor:
    """Return the patch coordinates (N, 3) of a clip of (T, H, W) latents: time, row, column, counted from 0."""
    axes = [torch.arange(size, device=device) for size in grid_of(shape, patch)]
    return torch.cartesian_prod(*axes).reshape(-1, 3)


def pack(
    latents: list[Tensor], levels: list[Tensor], fps: list[float], patch: Patch, parts: Sequence[int] = ()
) -> Pack:
    """Lay clips end to end. `latents[i]` is (C, T, H, W); `levels[i]` is (T, H, W), a noise level for each latent.

    A token's level is the highest in its patch: a patch that is partly dreamed is not yet known.
    Raises ValueError where a patch does not divide a clip.
    """
    tokens = torch.cat([patchify(clip, patch) for clip in latents])
    level = torch.cat([patchify(level[None], patch).amax(1) for level in levels])
    shapes = [(T, H, W) for _, T, H, W in (clip.shape for clip in latents)]
    place = torch.cat([places(shape, patch, tokens.device) for shape in shapes])
    return Pack(tokens, place, level, tuple(shapes), tuple(fps), patch, tuple(parts))


def unpack(tokens: Tensor, shapes: tuple[tuple[int, int, int], ...], patch: Patch) -> list[Tensor]:
    """Cut a pack's tokens (N, P) back into clips, each (C, T, H, W)."""
    lengths = [T * H * W for T, H, W in (grid_of(shape, patch) for shape in shapes)]
    return [unpatchify(clip, shape, patch) for clip, shape in zip(tokens.split(lengths), shapes, strict=True)]
