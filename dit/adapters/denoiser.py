"""The denoiser of a family: forward passes of a diffusers transformer in the place of ours, and the folder's scheduler.

A model with one noise level per clip gets what is kept at the level of the rest, by fresh noise before each evaluation.
A model with a level per token gets it as it is. Latents with a mask between 0 and 1 wait, at their own level, until the
sampler has come down to it, as in SDEdit (arXiv 2108.01073) and Differential Diffusion (arXiv 2306.00950).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dit.adapters.canvas import GivenCanvas
from dit.adapters.family import Condition, Evaluation, Family, Text
from dit.canvas import Canvas
from dit.denoiser import Denoiser, Networks, Segment
from dit.flow import interpolate
from dit.guidance import ForwardPass
from dit.request import Request
from dit.sampler import StepCallback
from dit.windows import cut_loop


@dataclass(frozen=True)
class FamilyNetworks(Networks):
    """The parts of a foreign model that denoise."""

    family: Family = None  # type: ignore[assignment]


class FamilyDenoiser(Denoiser):
    """The guided velocity of a family's model; `timestep` is that of the folder's scheduler, where it steps."""

    timestep: Tensor | None = None

    def __init__(self, networks: FamilyNetworks, segments: Sequence[Segment], *args, **kwargs):
        super().__init__(networks, segments, *args, **kwargs)
        self.family = networks.family
        self.texts: dict[str, Text] = {}
        self.conditions: dict[int, tuple[Canvas, Condition]] = {}

    def velocities(self, segments: Sequence[Segment], latents: list[Tensor], sigmas: list[Tensor]) -> list[Tensor]:
        guided = []
        for segment, sigma in zip(segments, sigmas, strict=True):
            scale = self.family.guidance(segment.request, self._timestep(float(sigma.max())))
            guided.append(replace(segment, request=replace(segment.request, guidance=scale)))
        self.requests = [segment.request for segment in segments]
        return super().velocities(guided, latents, sigmas)

    def forward(self, segments: Sequence[Segment], passes: list[tuple[int, ForwardPass]]) -> Iterator[Tensor]:
        for index, one in passes:
            segment, level = segments[index], float(one.sigma.max())
            latents, levels, canvas = one.latents, one.sigma, segment.canvas
            if not self.family.levels_per_token:
                behind = levels < level
                known = self.family.knows(as_given(canvas))
                if known is not None:
                    behind = behind & ~known
                latents = torch.where(
                    behind, interpolate(canvas.clean_latents, segment.noise, torch.tensor(level)), latents
                )
            evaluation = Evaluation(
                latents=latents[None],
                level=level,
                timestep=self._timestep(level),
                levels=levels,
                text=self._text(one.prompt),
                condition=self._condition(segment),
                request=self.requests[index],
                fps=canvas.fps,
            )
            yield self.family.velocity(evaluation)[0].float()

    def _timestep(self, level: float) -> Tensor:
        return self.family.timestep(level) if self.timestep is None else self.timestep

    def _text(self, prompt: str) -> Text:
        if prompt not in self.texts:
            self.texts[prompt] = self.family.encode(prompt)
        return self.texts[prompt]

    def _condition(self, segment: Segment) -> Condition:
        """Return what given frames decide, once for each canvas; windows have canvases of their own each time."""
        key = id(segment.canvas)
        if self.window:
            self.conditions.clear()
        if key not in self.conditions:
            found = self.family.condition(as_given(segment.canvas), segment.request)
            self.conditions[key] = segment.canvas, found
        return self.conditions[key][1]

    def encode_anchor(self, frame: int) -> Tensor:
        vae = self.family.vae
        pixels = vae.decode(self.denoised[None, :, [frame, frame]])
        return vae.encode(pixels[:, :, -1:])[0]

    def cut_loop(self, latents: Tensor) -> Tensor:
        return cut_loop(latents, self.family.vae)  # type: ignore[arg-type]


def as_given(canvas: Canvas) -> GivenCanvas:
    """Return a canvas as one with images, of which a plain one has none."""
    if isinstance(canvas, GivenCanvas):
        return canvas
    return GivenCanvas(**{name: getattr(canvas, name) for name in Canvas.__dataclass_fields__})


def sample_with_scheduler(
    denoiser: FamilyDenoiser,
    canvas: Canvas,
    noise: Tensor,
    scheduler: Any,
    request: Request,
    callback: StepCallback | None = None,
) -> Iterator[list[Tensor]]:
    """Sample a canvas by a diffusers scheduler; yield the latents after each step, the last with all that is kept.

    Latents below their mask's level wait there, and enter the scheduler's state as if it had predicted them.
    """
    family, mask, clean = denoiser.family, canvas.denoise_mask, canvas.clean_latents
    levels = [float(level) for level in family.levels(scheduler)]
    random = torch.Generator(noise.device).manual_seed(request.seed)
    known = family.knows(as_given(canvas))
    x, steps = noise * family.scale(levels[0]), len(scheduler.timesteps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    for index in range(steps):
        level = levels[index]
        flow = x / family.scale(level)
        waits = mask < level
        if known is not None:
            waits = waits & ~known
        flow = torch.where(waits, interpolate(clean, noise, torch.tensor(level)), flow)
        inputs, sigma = flow, torch.full_like(mask, level)
        if family.levels_per_token:
            sigma = mask.clamp(max=level)
            inputs = torch.where(waits, interpolate(clean, noise, sigma), flow)
        denoiser.timestep = scheduler.timesteps[index]
        (velocity,) = denoiser([inputs], [sigma])
        denoised = inputs - sigma * velocity
        if family.levels_per_token:
            velocity = torch.where(waits, (flow - denoised) / level, velocity)
        if callback:
            callback(index, [torch.where(mask == 0, clean, denoised)])
        prediction = family.prediction(flow, velocity, level)
        x = family.step(scheduler, prediction[None], index, (flow * family.scale(level))[None], random)[0]
        if index + 1 < steps and (index + 1) % getattr(scheduler, "order", 1):
            continue  # a stage within a step, of Heun's
        yield [torch.where(mask == 0, clean, x / family.scale(levels[index + 1]))]
    denoiser.timestep = None
