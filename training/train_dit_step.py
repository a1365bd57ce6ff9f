"""One step of the diffusion transformer: the loss of each micro-batch, and its gradients.

A step's losses are divided by what all of its samples sum to over all processes, so that the gradients are the same
however the samples are dealt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import groupby
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from captioning.text_encoder import TextEmbeddings
from dit.model import DiTConfig
from dit.packing import Pack, patchify
from training.config import DiTRun
from training.examples import LatentSource, TrainingExample, draw_examples, pack_noisy
from training.low_precision import LowPrecisionCopy
from training.step_plan import StepSample
from training.text_conditioned import camera_loss

Text = TextEmbeddings | tuple[Tensor, tuple[int, ...]]  # embeddings, or token ids (B, L) and token counts
Cameras = tuple[Tensor, Tensor]  # velocity (B, 6) and logit (B,)


class StepTotals(NamedTuple):
    """What the losses of a step are divided by: sums over all processes, divided by their number.

    `values` are those to denoise, `captions` those whose camera is read, `named` those of them that name it (at least
    one in all).
    """

    values: Tensor
    captions: Tensor
    named: Tensor


class StepLoss(NamedTuple):
    """The loss of a step, the mean over all processes, and that of the cameras read in captions, if there is one."""

    flow: Tensor
    camera: Tensor | None


def draw_micro_batches(
    run: DiTRun, sources: Sequence[LatentSource], config: DiTConfig, micro_batches: list[list[StepSample]]
) -> list[list[TrainingExample]]:
    """Draw the examples of a process's micro-batches; `sources` are those of the run's formats."""
    return [
        [
            example
            for number, samples in groupby(batch, lambda sample: sample.format)
            for example in draw_examples(run, sources[number], config.patch, [sample.index for sample in samples])
        ]
        for batch in micro_batches
    ]


def step_totals(accelerator, examples: Sequence[TrainingExample]) -> StepTotals:
    """Return the totals of a step from the examples of each process."""
    values = sum(int((one.denoise_mask > 0).sum()) * len(one.latents) for one in examples)
    targets = [one.camera_target for one in examples if one.camera_target is not None]
    named = sum(float(target[-1]) for target in targets)
    own = torch.tensor([values, len(targets), named], dtype=torch.float64)
    if accelerator.num_processes > 1:
        own = accelerator.reduce(own.to(accelerator.device), reduction="mean")
    own[2].clamp_(min=1 / accelerator.num_processes)
    return StepTotals(*own.float().to(accelerator.device))


def backpropagate(
    run: DiTRun,
    config: DiTConfig,
    accelerator,
    model: nn.Module,
    micro_batches: list[list[TrainingExample]],
    encode: Callable[[list[str]], Text],
    low_precision: LowPrecisionCopy | None,
) -> StepLoss:
    """Accumulate the gradients of a step's loss, and return the loss.

    `encode` returns the text embeddings or token ids of captions. With `low_precision`, the copy that computes, the
    gradients are in its master's weights, and are not averaged over processes yet.
    """
    totals = step_totals(accelerator, [example for batch in micro_batches for example in batch])
    dtype = torch.bfloat16 if low_precision else torch.float32
    flow = torch.zeros((), device=accelerator.device)
    camera = None
    for number, examples in enumerate(micro_batches, 1):
        text = encode([example.caption for example in examples])
        if isinstance(text, TextEmbeddings):  # of a frozen encoder, in fp32
            tokens, pooled = text.token_embeddings.to(dtype), text.pooled.to(dtype)
            text = replace(text, token_embeddings=tokens, pooled=pooled)
        batch, target, mask = pack_noisy(examples, config, run, accelerator.device, dtype)
        weight = mask * loss_weights(examples, batch, run.saliency_weight)
        last = number == len(micro_batches)  # only then are gradients averaged over processes
        with nullcontext() if last else accelerator.no_sync(model):
            loss, cameras = flow_matching_loss(model, batch, target, weight, text, totals.values)
            own = cameras and camera_term(cameras, examples, totals)
            accelerator.backward(loss if own is None else loss + run.camera_loss_weight * own)
        if low_precision:
            low_precision.take_gradients()
        flow = flow + loss.detach()
        camera = own if own is None else own.detach() + (0 if camera is None else camera)
    if accelerator.num_processes > 1:
        both = accelerator.reduce(torch.stack([flow, flow if camera is None else camera]), reduction="mean")
        flow, camera = both[0], None if camera is None else both[1]
    return StepLoss(flow, camera)


def loss_weights(examples: list[TrainingExample], batch: Pack, saliency_weight: float) -> Tensor:
    """Return the loss weight of each token of a pack (N, 1), with mean 1 over the tokens to denoise of each clip.

    Salient tokens count more, and more so at low sigma. At high sigma their position is not yet determined, and a
    weight that depends on it would bias the model towards more objects than the prompt asks for.
    """
    strength = saliency_weight * (1 - batch.sigma[:, None])
    relative = []
    for example, sigma in zip(examples, batch.sigma.split(batch.token_lens), strict=True):
        salient, denoised = saliency(example.latents, batch.patch).to(sigma), (sigma > 0)[:, None]
        mean = (salient * denoised).sum() / denoised.sum()
        relative.append(salient / mean if mean > 0 else torch.ones_like(salient))
    return (1 + strength * torch.cat(relative)) / (1 + strength)


def saliency(latents: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """Return the saliency of each token (N, 1) of a clip's latents (C, T, H, W).

    It is the token's mean square distance from the median of its rows over columns and time.
    """
    median = rearrange(latents, "C T H W -> C H (T W)").median(-1).values
    return patchify(latents - median[:, None, :, None], patch).square().mean(-1, keepdim=True)


def flow_matching_loss(
    model, batch: Pack, target: Tensor, weight: Tensor, text: Text, total_weight: Tensor | None = None
) -> tuple[Tensor, Cameras | None]:
    """Return the weighted mean squared error of the velocity (N, P): equation 1 of arXiv 2209.03003; and the cameras
    that a trained text encoder reads in the captions.

    `weight` (N, P) is 0 where nothing is denoised. The sum is divided by `total_weight`, or else by the pack's weight.
    """
    inputs, token_counts = (text, text.token_counts) if isinstance(text, TextEmbeddings) else text
    predicted, cameras = model(batch, inputs, token_counts)
    total = weight.sum() if total_weight is None else total_weight
    return ((predicted.float() - target).square() * weight).sum() / total, cameras


def camera_term(cameras: Cameras, examples: list[TrainingExample], totals: StepTotals) -> Tensor:
    """Return the loss of the cameras read in captions; 0 where the run gives no cameras."""
    targets = [example.camera_target for example in examples if example.camera_target is not None]
    if not targets:
        return 0 * torch.stack([value.float().sum() for value in cameras]).sum()  # DDP needs every weight in the loss
    return camera_loss(cameras, torch.stack(targets).to(cameras[0].device), totals.captions, totals.named)
