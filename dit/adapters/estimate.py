"""The cost of a clip on another maker's model: the same way as in sampling, with a model on the meta device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from dit.adapters.counting import count_operations
from dit.adapters.denoiser import FamilyDenoiser
from dit.adapters.family import Evaluation
from dit.adapters.load import adapt, components, default_dtype, hash_of_folder, is_ours, load_skeleton, skeleton_of
from dit.adapters.memory import plan_memory
from dit.adapters.pipeline import AdaptedPipeline
from dit.batching import SamplingJob
from dit.denoiser import Segment
from dit.estimate import LATENT_COPIES, MAX_LATENT_FRAMES, Cost, CostModel, EmptyInputs, count_values
from dit.guidance import ForwardPass
from dit.modes import MODES
from dit.pipeline import Pipeline
from dit.request import Request, RequestError
from vae.weights import weights_in

SCALES = (1.0, 0.75, 0.5, 0.35, 0.25, 0.125)  # of sides and durations, to find a clip that fits
PREVIEW_CHANNELS = 1  # of the canvases that are sampled while counting: nothing counted depends on values


def read_cost_model(folder: Path) -> CostModel:
    """Return the cost model of a folder, ours or another maker's, of which no large weights are loaded."""
    if is_ours(folder):
        return CostModel.read(folder)
    sizes = {part: sum(map(count_values, weights_in(folder / part))) for part, _, _ in components(folder)}
    return AdaptedCostModel(adapt(load_skeleton(folder), hash_of_folder(folder), folder), sizes)


def cost_model_of(pipeline: Pipeline) -> CostModel:
    """Return the cost model of a loaded model."""
    if not isinstance(pipeline, AdaptedPipeline):
        return CostModel.of(pipeline)
    parts = {name: part for name, part in pipeline.inner.components.items() if isinstance(part, nn.Module)}
    sizes = {name: sum(value.numel() for value in part.parameters()) for name, part in parts.items()}
    skeleton = adapt(load_skeleton_like(pipeline.inner), pipeline.hash)
    return AdaptedCostModel(skeleton, sizes)


def load_skeleton_like(inner: Any) -> Any:
    """Return a pipeline like a loaded one, with its diffusers networks on the meta device and no others."""
    parts: dict[str, Any] = {}
    for name, part in inner.components.items():
        if not isinstance(part, nn.Module):
            parts[name] = part
        else:
            parts[name] = skeleton_of(type(part), part.config) if isinstance(part, ModelMixin) else None
    settings = {name: value for name, value in inner.config.items() if name not in parts and not name.startswith("_")}
    return type(inner)(**parts, **settings)


class AdaptedCostModel(CostModel):
    """A pipeline whose networks are on the meta device, and the number of values of each of its parts."""

    def __init__(self, pipeline: AdaptedPipeline, sizes: dict[str, int]):
        self.pipeline, self.sizes, self.family = pipeline, sizes, pipeline.family
        self.itemsize = default_dtype().itemsize
        self.weight_bytes = self.itemsize * sum(sizes.values())
        self.text_parameters = sum(count for part, count in sizes.items() if part.startswith("text_encoder"))
        self.evaluation = cache(self._evaluation)
        self.decoding = cache(partial(self._per_frame, "decode"))
        self.encoding = cache(partial(self._per_frame, "encode"))

    def cost(self, request: Request) -> Cost:
        pipeline, vae = self.pipeline, self.family.vae
        request = pipeline.resolve(request)
        shape, fps = pipeline.latent_shape(request)
        if shape[1] > MAX_LATENT_FRAMES and not request.moments:
            return self.extrapolated(request, shape[1], fps)
        inputs = self.empty_inputs(request, {})
        canvas = MODES[request.mode].paint(inputs)
        window = pipeline.window_length(request, canvas)
        T, H, W = canvas.denoise_mask.shape
        thin = replace(canvas, clean_latents=canvas.clean_latents[:PREVIEW_CHANNELS])
        counts = FamilyCounts()
        job = SamplingJob(0, request, thin, window, max(pipeline.trained_lengths(request), default=1))
        make = partial(CountingFamilyDenoiser, self, counts)
        for _ in pipeline.sample_pack([job], make_denoiser=make):
            pass
        decoding, decode_bytes = self._vae_cost("decode", 1 + 2 * T if canvas.periodic else T, H, W)
        frames = T * vae.stride[0] if canvas.periodic else vae.frame_count(T)
        columns, rows = request.size or pipeline.settings.size
        return Cost(
            request=request,
            tokens=pipeline.token_count((window, H, W)),
            evaluations=counts.evaluations,
            frames=frames,
            pixels=frames * columns * rows,
            text_flops=2 * self.text_parameters * self.family.text_tokens * max(1, len(counts.prompts)),
            input_flops=sum(inputs.encode_flops),
            denoise_flops=counts.denoise_flops,
            anchor_flops=counts.anchor_flops,
            decode_flops=decoding,
            weight_bytes=self.weights_on_device(max(decode_bytes, self.evaluation(window, H, W)[1])),
            forward_bytes=self.evaluation(window, H, W)[1],
            decode_bytes=decode_bytes,
            latent_bytes=4 * LATENT_COPIES * canvas.clean_latents.numel(),
        )

    def empty_inputs(self, request: Request, durations: dict[str, float]) -> EmptyInputs:
        shape, fps = self.pipeline.latent_shape(request)
        encode = lambda vae, T, H, W: self._vae_cost("encode", T, H, W)[0]
        return EmptyInputs.of(request, self.pipeline, shape, fps, encode, durations)

    def weights_on_device(self, working_bytes: int) -> int:
        """Return the bytes of weights that are in memory at a time; a GPU may hold a part of them."""
        if not torch.cuda.is_available():
            return self.weight_bytes
        sizes = {name: count * self.itemsize for name, count in self.sizes.items()}
        return plan_memory(sizes, working_bytes, torch.cuda.get_device_properties(0).total_memory).weight_bytes

    def cheaper(self, request: Request) -> list[Request]:
        """List requests like a resolved one with smaller frames or fewer of them, the most similar first."""
        pipeline, found = self.pipeline, list[tuple[float, Request]]()
        columns, rows = request.size or pipeline.settings.size
        for scale in SCALES:
            size = tuple(max(1, int(side * scale) // pipeline.multiple) * pipeline.multiple for side in (columns, rows))
            for share in SCALES if request.seconds else (1.0,):
                seconds = request.seconds and request.seconds * share
                if scale < 1 or share < 1:
                    found.append((scale * scale * share, replace(request, size=size, seconds=seconds)))
        return [request for _, request in sorted(found, key=lambda one: -one[0])]

    def _evaluation(self, T: int, H: int, W: int) -> tuple[int, int]:
        """Return the FLOPs and bytes of one model evaluation on latents (T, H, W)."""
        family = self.family
        one = Evaluation(
            latents=torch.zeros(1, family.vae.channels, T, H, W, device="meta"),
            level=1.0,
            timestep=family.timestep(1.0),
            levels=torch.ones(T, H, W, device="meta"),
            text=family.empty_text(),
            condition=family.empty_condition(T, H, W),
            request=Request(guidance=1.0),
            fps=family.fps,
        )
        try:
            flops, peak = count_operations(lambda: family.velocity(one), *family.networks)
        except (RuntimeError, ValueError, IndexError) as error:  # of a table of positions that is too short, say
            _, down, across = family.vae.stride
            size, reason = f"{W * across}x{H * down}", " ".join(str(error).split())[:200]
            raise RequestError(
                f"a clip must be smaller for this model; {size} is too large for it: {reason}"
            ) from error
        return flops, peak * self.itemsize // 4

    def _per_frame(self, way: str, frames: int, H: int, W: int) -> tuple[int, int]:
        """Return the FLOPs and bytes of decoding or encoding 1 or 2 latent frames."""
        vae = self.family.vae
        time, down, across = vae.stride
        if way == "decode":
            latents = torch.zeros(1, vae.channels, frames, H, W, device="meta")
            return count_operations(lambda: vae.decode(latents))
        pixels = torch.zeros(1, 3, 1 + (frames - 1) * time, H * down, W * across, device="meta")
        return count_operations(lambda: vae.encode(pixels))

    def _pixels(self, T: int, H: int, W: int) -> int:
        """Return the pixels of a clip of latents (T, H, W)."""
        _, down, across = self.family.vae.stride
        return self.family.vae.frame_count(T) * H * down * W * across

    def _vae_cost(self, way: str, T: int, H: int, W: int) -> tuple[int, int]:
        """Return the FLOPs and bytes of decoding or encoding a clip, in tiles where it would be."""
        flops, size = self._whole_cost(way, T, H, W)
        if way == "decode" and self.family.vae.is_tiled(T, H, W):
            tile = [min(own, whole) for own, whole in zip(self.family.vae.tile, (T, H, W), strict=True)]
            size = self._whole_cost(way, *tile)[1] + 8 * 3 * self._pixels(T, H, W)
        return flops, size * self.itemsize // 4

    def _whole_cost(self, way: str, T: int, H: int, W: int) -> tuple[int, int]:
        """Return the same in float32 and without tiles: each latent frame after the first costs the same."""
        known = self.decoding if way == "decode" else self.encoding
        first = known(1, H, W)
        if T == 1:
            return first
        two = known(2, H, W)
        flops, size = (after + (T - 2) * (after - before) for before, after in zip(first, two, strict=True))
        return flops, two[1] if self.family.vae.streams else size


@dataclass
class FamilyCounts:
    """What counting denoisers add up."""

    evaluations: int = 0
    denoise_flops: int = 0
    anchor_flops: int = 0
    prompts: set[str] = field(default_factory=set)


class CountingFamilyDenoiser(FamilyDenoiser):
    """A denoiser of a family whose velocities are zero, and which counts what the real ones would cost."""

    def __init__(self, model: AdaptedCostModel, counts: FamilyCounts, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.model, self.counts = model, counts

    def forward(self, segments: Sequence[Segment], passes: list[tuple[int, ForwardPass]]) -> Iterator[Tensor]:
        for _, one in passes:
            self.counts.evaluations += 1
            self.counts.prompts.add(one.prompt)
            self.counts.denoise_flops += self.model.evaluation(*one.sigma.shape)[0]
            yield torch.zeros_like(one.latents)

    def encode_anchor(self, frame: int) -> Tensor:
        _, H, W = self.segments[0].canvas.denoise_mask.shape
        self.counts.anchor_flops += self.model._vae_cost("decode", 2, H, W)[0]
        self.counts.anchor_flops += self.model._vae_cost("encode", 1, H, W)[0]
        return torch.zeros(PREVIEW_CHANNELS, 1, H, W)

    def cut_loop(self, latents: Tensor) -> Tensor:
        return latents
