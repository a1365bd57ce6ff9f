"""Temporal windows: how clips longer than those of training, and loops, are divided for the model.

At each evaluation the denoiser runs the model on overlapping windows of a trained length and averages the velocities
where they overlap. The windows start elsewhere at every evaluation, so that no seam can form, as in Mobius (arXiv
2502.20307). The first latent frame of every training clip encodes one image, so a window needs one too: its anchor. The
anchor is the first frame of the clip or of the present prompt, so that subjects stay the same; after kept frames, the
last of them; on a periodic canvas, the frame before the window. A clip without kept frames is therefore sampled in two
phases: its first window alone, then the rest, with the first window kept. Only anchors are ever decoded and encoded
again.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from dit.canvas import CROSSFADE_FRAMES, Canvas
from vae.model import VideoVAE

GOLDEN_RATIO = (5**0.5 - 1) / 2  # the fractional parts of its multiples are spread evenly, however many there are


def longest_window(latent_frames: int, trained_lengths: list[int]) -> int:
    """Return the window length for a clip: the longest trained length, in latent frames, that is not longer than it.

    Raises ValueError for a clip shorter than all trained lengths.
    """
    fitting = [length for length in trained_lengths if length <= latent_frames]
    if not fitting:
        raise ValueError(f"a clip must have at least {min(trained_lengths)} latent frames; got {latent_frames}")
    return max(fitting)


def window_phase(evaluation: int) -> float:
    """Return how far the windows of the sampler's nth evaluation are shifted, as a part of their distance: 0 to 1."""
    return evaluation * GOLDEN_RATIO % 1


def window_starts(canvas: Canvas, length: int, evaluation: int) -> list[int]:
    """Return the latent frames at which windows of `length` start in the sampler's nth evaluation of the model.

    A window holds its anchor in the place of its first frame, and the `length` - 1 frames after that. Every frame to
    denoise lies in one window or more. A gap between kept frames that leaves room for both sides is in the middle of
    one window; a longer one begins with half a window of the kept frames before it.
    """
    frames, inner = canvas.latent_frames, length - 1
    phase = window_phase(evaluation)
    if canvas.periodic:
        count = -(-frames // inner)
        return [(math.floor(phase * frames) + round(number * frames / count) - 1) % frames for number in range(count)]
    starts: set[int] = set()
    for begin, end in denoised_spans(canvas):
        lowest, highest, room = begin - 1 - inner // 2, end - 1 - (inner + 1) // 2, inner - (end - begin)
        if room >= 2:
            lowest = highest = begin - 1 - (room + 1) // 2
        lowest, highest = (min(max(0, start), frames - length) for start in (lowest, highest))
        first = lowest + math.floor(phase * inner) - inner
        starts |= {min(max(lowest, start), highest) for start in range(first, highest + inner, inner)}
    return sorted(starts)


def denoised_spans(canvas: Canvas) -> list[tuple[int, int]]:
    """List the runs (begin, end) of latent frames that are denoised; `end` is not part of a run."""
    denoised = [False, *canvas.denoised_frames, False]
    edges = [frame for frame, (before, after) in enumerate(pairwise(denoised)) if before != after]
    return list(zip(edges[::2], edges[1::2], strict=True))


def list_windows(
    canvas: Canvas, length: int, evaluation: int, original: Canvas | None = None
) -> Iterator[tuple[int, list[int]]]:
    """Yield each window of an evaluation: its start, and the indices of its `length` latent frames, the anchor first.

    On a periodic canvas the anchor is the frame at the start. Otherwise it is the last frame up to the start that is
    kept, or with which a prompt has taken over; failing that, the first kept frame after it, or the first of the clip.
    `original` is the canvas as it was before the first window was sampled, where it has been.
    """
    known = ((original or canvas).denoise_mask.flatten(1).amin(1) < 1).nonzero().flatten().tolist()
    prompts_begun = [begin + CROSSFADE_FRAMES // 2 for begin, _ in canvas.prompt_schedule[1:]]
    candidates = sorted({0, *known, *prompts_begun})
    for start in window_starts(canvas, length, evaluation):
        anchor = start if canvas.periodic else candidates[bisect_right(candidates, start) - 1]
        if start and not anchor and known and not canvas.periodic:
            anchor = known[0]
        yield start, [anchor, *((start + offset) % canvas.latent_frames for offset in range(1, length))]


def window_indices(
    canvas: Canvas, length: int, evaluation: int, original: Canvas | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Yield the windows of `list_windows` with their indices as a tensor (length,)."""
    for start, indices in list_windows(canvas, length, evaluation, original):
        yield start, torch.tensor(indices, device=canvas.denoise_mask.device)


def samples_first_window_alone(canvas: Canvas, length: int) -> bool:
    """Return whether a clip's first window of `length` is sampled before the rest: where the canvas keeps nothing."""
    return not canvas.periodic and canvas.latent_frames > length and bool((canvas.denoise_mask == 1).all())


def cut_loop(latents: Tensor, vae: VideoVAE) -> Tensor:
    """Rotate periodic latents (C, T, H, W) so that they begin where the change from one latent frame to the next is
    smallest.

    The change is between the last video frame of one and the first of the next, in the linear preview.
    """
    change, last = [], vae.stride[0]
    for frame in range(latents.shape[1]):
        pixels = vae.linear_preview(latents[None, :, [frame - 1, frame - 1, frame]])[0]
        change.append(float((pixels[:, last + 1] - pixels[:, last]).square().mean()))
    return latents.roll(-change.index(min(change)), 1)
