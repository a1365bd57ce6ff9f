"""What sampling costs, counted without sampling: each kind of window once, times how often it occurs.

A forward pass costs what its window's noise levels, its prompts and its guidance ask for. Of a long clip nearly all
windows are alike. So a request is first shortened by whole windows in the middle of its long stretches, where nothing
but the number of windows changes; then the windows of the short canvas are listed for each place at which they can
start, and those that were left out are added. The tests compare this with a denoiser that counts while it samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from captioning.text_encoder import tokenize
from dit.canvas import Canvas, prompt_weights
from dit.flops import encode_flops, forward_flops, linear_preview_flops
from dit.guidance import guidance_scale
from dit.packing import patchify
from dit.request import Request
from dit.sampler import evaluated_levels
from dit.shortening import Painting
from dit.windows import list_windows, samples_first_window_alone, window_phase

if TYPE_CHECKING:
    from dit.pipeline import Pipeline


@dataclass
class Counts:
    """Forward passes, FLOPs, and the most passes in one pack."""

    evaluations: int = 0
    text_flops: int = 0
    denoise_flops: int = 0
    anchor_flops: int = 0
    most_passes: int = 0


@dataclass(frozen=True)
class Region:
    """A part of a canvas that the model sees at once: its tokens and their distinct noise levels.

    `unknown_levels` are those where kept frames are as noisy as the rest; `guided` says for each evaluation whether
    classifier-free guidance applies.
    """

    tokens: int
    levels: int
    unknown_levels: int
    partly_kept: bool
    guided: Tensor


class SamplingCounter:
    """Counts what the sampling of a resolved request costs; `text_flops` gives that of encoding prompts."""

    def __init__(self, pipeline: Pipeline, request: Request, text_flops: Callable[[Sequence[int]], int]):
        self.pipeline, self.request, self.encode = pipeline, request, text_flops
        self.counts, self.token_counts = Counts(), dict[str, int]()

    def count(self, painting: Painting) -> Counts:
        """Count a painted canvas: as one segment, or in windows."""
        canvas, window = painting.canvas, painting.window
        if window == canvas.latent_frames and not canvas.periodic:
            self.count_segment(canvas)
            return self.counts
        rest = canvas
        if samples_first_window_alone(canvas, window):
            self.count_segment(canvas.crop(0, window))
            rest = canvas.keep(canvas.clean_latents[:, :window], 0)
        self.count_windows(rest, canvas, painting)
        if canvas.periodic:
            H, W = canvas.denoise_mask.shape[1:]
            self.counts.anchor_flops += painting.latent_frames * linear_preview_flops(self.pipeline.vae, 3, H, W)
        return self.counts

    def count_segment(self, canvas: Canvas) -> None:
        """Count a canvas that the model sees at once."""
        levels, mask = self.levels(canvas.denoise_mask.shape), canvas.denoise_mask
        prompts = self.active_prompts(canvas)
        active = tuple(sorted({index for frame in prompts for index in frame}))
        region = self.region(mask, levels)
        self.count_text({active}, canvas)
        self.count_passes(region, active, canvas, torch.ones(len(levels), dtype=torch.bool), 1)

    def count_windows(self, rest: Canvas, original: Canvas, painting: Painting) -> None:
        """Count a canvas that the model sees in windows; `original` is the one before its first window was sampled."""
        window, (_, H, W) = painting.window, rest.denoise_mask.shape
        inner, vae = window - 1, self.pipeline.vae
        levels, prompts = self.levels((window, H, W)), self.active_prompts(rest)
        kinds: dict[bytes, int] = {}
        kind_of = [kinds.setdefault(frame.numpy().tobytes(), len(kinds)) for frame in rest.denoise_mask]
        anchor_flops = linear_preview_flops(vae, 2, H, W) + encode_flops(vae, 1, H, W)
        regions, seen = dict[tuple, Region](), set[tuple[int, ...]]()
        phases: dict[int, list[int]] = {}
        for evaluation in range(len(levels)):
            place = 0 if rest.periodic else int(window_phase(evaluation) * inner)
            phases.setdefault(place, []).append(evaluation)
        for evaluations in phases.values():
            chosen = torch.zeros(len(levels), dtype=torch.bool)
            chosen[evaluations] = True
            found = list(list_windows(rest, window, evaluations[0], original))
            times = [1] * len(found)
            if rest.periodic:  # all windows of a loop are alike
                found, times = found[:1], [-(-painting.latent_frames // inner)]
            for frame, left_out in () if rest.periodic else painting.inserted:
                times[max(n for n, (start, _) in enumerate(found) if start < frame)] += left_out
            alike: Counter[tuple] = Counter()
            for (start, indices), count in zip(found, times, strict=True):
                begin = 0 if rest.periodic else start
                active = tuple(sorted({index for frame in prompts[begin : begin + window] for index in frame}))
                key = tuple(kind_of[index] for index in indices)
                alike[key, active] += count
                if key not in regions:
                    regions[key] = self.region(rest.denoise_mask[indices], levels)
                if indices[0] or rest.periodic:
                    self.counts.anchor_flops += anchor_flops * count * len(evaluations)
            for (key, active), count in alike.items():
                self.count_passes(regions[key], active, rest, chosen, count)
                seen.add(active)
        self.count_text(seen, rest)

    def count_passes(
        self, region: Region, active: tuple[int, ...], canvas: Canvas, evaluations: Tensor, times: int
    ) -> None:
        """Count the forward passes over a region that occurs so many times in each of some evaluations (bool)."""
        guided = int((region.guided & evaluations).sum())
        for count, with_guidance in ((guided, True), (int(evaluations.sum()) - guided, False)):
            if not count:
                continue
            passes, flops = self.pack_flops(region, [self.prompts_of(canvas)[index] for index in active], with_guidance)
            self.counts.evaluations += times * count * passes
            self.counts.denoise_flops += times * count * flops
            self.counts.most_passes = max(self.counts.most_passes, passes)

    def pack_flops(self, region: Region, prompts: list[str], guided: bool) -> tuple[int, int]:
        """Return the number of forward passes in one pack over a region (`guidance.plan_passes`), and their FLOPs."""
        frame_guided = self.request.frame_guidance not in (None, 1) and region.partly_kept
        passes = [(region.levels, prompt) for prompt in prompts]
        passes += [(region.levels, self.request.negative_prompt or "")] * guided
        passes += [(region.unknown_levels, prompt) for prompt in prompts] * frame_guided
        counts = [self.token_count(prompt) for _, prompt in passes]
        config, flops = self.pipeline.transformer.dit_config, 0
        for (levels, _), text_tokens in zip(passes, counts, strict=True):
            flops += forward_flops(config, region.tokens, text_tokens, levels, max(counts))
        return len(passes), flops

    def count_text(self, seen: set[tuple[int, ...]], canvas: Canvas) -> None:
        """Count the encoding of each set of prompts, once for each denoiser."""
        prompts = self.prompts_of(canvas)
        sets = {tuple(sorted({*(prompts[index] for index in active), self.negative_prompt})) for active in seen}
        self.counts.text_flops += sum(self.encode([self.token_count(prompt) for prompt in one]) for one in sets)

    @property
    def negative_prompt(self) -> str:
        return self.request.negative_prompt or ""

    def prompts_of(self, canvas: Canvas) -> list[str]:
        """Return the prompts of a canvas, in the order of its schedule."""
        return [prompt for _, prompt in canvas.prompt_schedule] or [self.request.effective_prompt]

    def active_prompts(self, canvas: Canvas) -> list[tuple[int, ...]]:
        """Return the indices of the prompts that have weight in each latent frame."""
        schedule = canvas.prompt_schedule or ((0, self.request.effective_prompt),)
        weights = prompt_weights(schedule, 0, canvas.latent_frames)
        found: list[list[int]] = [[] for _ in range(canvas.latent_frames)]
        for index, frame in weights.nonzero().tolist():
            found[frame].append(index)
        return [tuple(active) for active in found]

    def token_count(self, prompt: str) -> int:
        """Return the number of tokens of a prompt."""
        if prompt not in self.token_counts:
            (self.token_counts[prompt],) = tokenize(self.pipeline.tokenizer, [prompt])[1]
        return self.token_counts[prompt]

    def levels(self, shape: Sequence[int]) -> Tensor:
        """Return the noise level of each evaluation of the model, for latents (T, H, W)."""
        return evaluated_levels(self.pipeline.sigmas(self.request, shape), self.request.sampler or "")

    def region(self, mask: Tensor, levels: Tensor) -> Region:
        """Describe a part of a canvas with a denoise mask (T, H, W)."""
        kept, patch = mask == 0, self.pipeline.transformer.dit_config.patch
        tokens = patchify(mask[None], patch).amax(1)
        unknown = patchify(torch.where(kept, mask.max(), mask)[None], patch).amax(1)
        scale = guidance_scale(self.request, mask.unique()[None] * levels[:, None])
        return Region(
            tokens=len(tokens),
            levels=len(tokens.unique()),
            unknown_levels=len(unknown.unique()),
            partly_kept=bool(kept.any()) and not bool(kept.all()),
            guided=(scale != 1).any(1),
        )
