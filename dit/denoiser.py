"""The denoiser, between pipeline and sampler: one callable, (latents, sigmas) -> velocities.

It owns what the sampler need not know: text embeddings, prompt schedules, guidance, windows, and how forward passes are
packed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from captioning.text_encoder import TextEmbeddings, encode_prompts
from dit.camera import camera_rows, reads_camera
from dit.canvas import Canvas
from dit.flow import denoised_from_velocity, interpolate
from dit.guidance import ForwardPass, WeightedPrompts, plan_passes
from dit.model import DiT
from dit.packing import pack, unpack
from dit.request import Request
from dit.windows import cut_loop, window_indices
from vae.model import VideoVAE


@dataclass(frozen=True)
class Networks:
    """The parts of a model that denoise; with `low_memory`, one forward pass at a time, which is slower."""

    transformer: DiT
    vae: VideoVAE
    tokenizer: Any
    text_encoder: Any
    low_memory: bool = False


@dataclass(frozen=True)
class Segment:
    """A canvas, or a window of one, and its noise (C, T, H, W).

    The request is resolved; `start` is the segment's first latent frame within the request's clip.
    """

    request: Request
    canvas: Canvas
    noise: Tensor
    start: int = 0

    @cached_property
    def prompts(self) -> WeightedPrompts:
        """The prompts of these latent frames, with their weights."""
        return WeightedPrompts.of(self.request, self.canvas, self.start)


class Denoiser:
    """The guided velocity of some segments, as one pack; or of one segment, in windows of `window` latent frames.

    `original` is the canvas of a windowed segment as it was before its first window was sampled.
    """

    def __init__(
        self,
        networks: Networks,
        segments: Sequence[Segment],
        window: int | None = None,
        original: Canvas | None = None,
    ):
        self.networks, self.segments, self.window, self.original = networks, segments, window, original
        self.embeddings: dict[tuple[str, ...], TextEmbeddings] = {}
        self.evaluations = 0
        if window:  # the denoised latents that anchors are taken from
            (segment,) = segments
            mask = segment.canvas.denoise_mask
            self.denoised = torch.where(mask < 1, segment.canvas.clean_latents, segment.noise)

    def __call__(self, latents: list[Tensor], sigmas: list[Tensor]) -> list[Tensor]:
        """Return the velocity (C, T, H, W) of each segment's latents (C, T, H, W) at noise levels (T, H, W)."""
        if self.window:
            (segment,), (x,), (sigma,) = self.segments, latents, sigmas
            return [self.windowed_velocity(segment, x, sigma, self.window)]
        return self.velocities(self.segments, latents, sigmas)

    def velocities(self, segments: Sequence[Segment], latents: list[Tensor], sigmas: list[Tensor]) -> list[Tensor]:
        """Return the guided velocity of each segment; all forward passes are one pack, unless memory is low."""
        plans = [
            plan_passes(segment.prompts, segment.request, segment.canvas, segment.noise, x, sigma)
            for segment, x, sigma in zip(segments, latents, sigmas, strict=True)
        ]
        passes = [(index, one) for index, (own, _) in enumerate(plans) for one in own]
        packs = [[one] for one in passes] if self.networks.low_memory else [passes]
        found = (velocity for one in packs for velocity in self.forward(segments, one))
        return [combine([next(found) for _ in own]) for own, combine in plans]

    def windowed_velocity(self, segment: Segment, x: Tensor, sigma: Tensor, window: int) -> Tensor:
        """Return the velocity of a long or periodic segment: the mean over the windows that hold a latent frame."""
        canvas, noise = segment.canvas, segment.noise
        total, count = torch.zeros_like(x), x.new_zeros(canvas.latent_frames)
        for start, indices in window_indices(canvas, window, self.evaluations, self.original):
            anchor = int(indices[0])
            clean, noisy = canvas.clean_latents[:, indices], x[:, indices]
            if anchor or canvas.periodic:  # the clip's own first latent frame encodes one image already
                clean[:, :1] = self.encode_anchor(anchor)
                noisy[:, :1] = interpolate(clean[:, :1], noise[:, [anchor]], sigma[[anchor]])
            mask = canvas.denoise_mask[indices]
            part = replace(canvas, clean_latents=clean, denoise_mask=mask, periodic=False)
            own = Segment(segment.request, part, noise[:, indices], start)
            (velocity,) = self.velocities([own], [noisy], [sigma[indices]])
            first = 1 if start or canvas.periodic else 0  # an anchor's velocity is not that of its frame
            total.index_add_(1, indices[first:], velocity[:, first:])
            count.index_add_(0, indices[first:], count.new_ones(window - first))
        velocity = total / count.clamp(min=1)[:, None, None]
        self.evaluations, self.denoised = self.evaluations + 1, denoised_from_velocity(x, velocity, sigma)
        return velocity

    def encode_prompts(self, prompts: tuple[str, ...]) -> TextEmbeddings:
        """Encode a segment's prompts, once: by themselves, so that company changes no bit."""
        if prompts not in self.embeddings:
            encoded = encode_prompts(list(prompts), self.networks.tokenizer, self.networks.text_encoder)
            self.embeddings[prompts] = encoded
        return self.embeddings[prompts]

    def forward(self, segments: Sequence[Segment], passes: list[tuple[int, ForwardPass]]) -> Iterator[Tensor]:
        """Yield the velocity of each forward pass, given with the index of its segment; all are one pack."""
        patch, dtype = self.networks.transformer.dit_config.patch, self.networks.transformer.dtype
        parts = [(segments[index], [one.prompt for _, one in own]) for index, own in groupby(passes, itemgetter(0))]
        text = []
        for segment, prompts in parts:
            distinct = segment.prompts.distinct
            text.append(self.encode_prompts(distinct).repeat([distinct.index(prompt) for prompt in prompts]))
        batch = pack(
            [one.latents.to(dtype) for _, one in passes],
            [one.sigma for _, one in passes],
            [segments[index].canvas.fps for index, _ in passes],
            patch,
            [len(prompts) for _, prompts in parts],
            cameras=self.cameras(segments, text, passes),
        )
        token_embeddings = torch.cat([own.token_embeddings for own in text]).to(dtype)
        pooled = torch.cat([own.pooled for own in text]).to(dtype)
        token_counts = tuple(count for own in text for count in own.token_counts)
        tokens = self.networks.transformer(batch, token_embeddings, pooled, token_counts)
        yield from unpack(tokens.float(), batch.shapes, patch)

    def cameras(
        self, segments: Sequence[Segment], text: list[TextEmbeddings], passes: list[tuple[int, ForwardPass]]
    ) -> list[Tensor] | None:
        """Return the camera velocity per latent frame of each forward pass, if the model reads one."""
        if not reads_camera(self.networks.transformer):
            return None
        return camera_rows(text, [segments[index].request for index, _ in passes], [one for _, one in passes])

    def encode_anchor(self, frame: int) -> Tensor:
        """Return the last video frame of a latent frame, as denoised so far, encoded as an image (C, 1, H, W)."""
        preview = self.networks.vae.linear_preview(self.denoised[None, :, [frame, frame]])
        return self.networks.vae.encode(preview[:, :, -1:])[0]

    def cut_loop(self, latents: Tensor) -> Tensor:
        """Rotate periodic latents (C, T, H, W) so that they begin where the change is smallest."""
        return cut_loop(latents, self.networks.vae)
