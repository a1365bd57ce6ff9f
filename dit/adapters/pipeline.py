"""Any folder in diffusers' layout as a `Pipeline`: the same requests, modes, windows, guidance and files.

Sizes and durations are a rule of the family: multiples, and 1 + n frames. `settings.formats` are examples of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor

from dit.adapters.canvas import GivenCanvas
from dit.adapters.denoiser import FamilyDenoiser, FamilyNetworks, sample_with_scheduler
from dit.adapters.family import Family
from dit.adapters.lora import hash_loras, use_loras
from dit.adapters.memory import BY_PART, RESIDENT, WORKING_SHARE, MemoryPlan, plan_memory
from dit.batching import SamplingJob
from dit.canvas import Canvas
from dit.denoiser import Denoiser
from dit.inputs import mode_inputs
from dit.modes import MODES, Mode
from dit.pipeline import Pipeline, PreviewCallback, ProgressCallback, Sample
from dit.request import ALL_SAMPLERS, SCHEDULER, Request, RequestError
from dit.sampler import StepCallback
from dit.settings import Settings

TOY_PARAMETERS = 5_000_000  # a network below this is for tests; a full-size clip would take it hours for nothing
TOY_PIXELS, TOY_STEPS = 64, 4
LONGEST_FRAMES = 129  # at once, of a model whose call does not say


class AdaptedPipeline(Pipeline):
    """A diffusers pipeline behind the interface of ours; `folder_hash` is that of its weights."""

    def __init__(self, inner: Any, family: Family, folder_hash: str | None = None):
        DiffusionPipeline.__init__(self)
        self._internal_dict = FrozenDict({})  # diffusers asks its config before an attribute is set again
        self.inner, self.family, self.hash = inner, family, folder_hash
        self.transformer, self.vae = family.transformer, family.vae
        self.tokenizer, self.text_encoder = getattr(inner, "tokenizer", None), getattr(inner, "text_encoder", None)
        self.scheduler = inner.scheduler
        self.low_memory = False
        self.plan: MemoryPlan | None = None  # of a GPU's memory
        self.settings = self.example_settings()

    def example_settings(self) -> Settings:
        """Return the defaults of the family, with some sizes and durations that follow its rule."""
        family, fps = self.family, self.family.fps
        columns, rows = (self._nearest_side(family.default(name) or 512) for name in ("width", "height"))
        frames = self._nearest_frames(family.default("num_frames") or family.default("video_length") or 49)
        steps = family.default("num_inference_steps") or 50
        if sum(value.numel() for network in family.networks for value in network.parameters()) < TOY_PARAMETERS:
            columns = rows = self._nearest_side(TOY_PIXELS)
            frames, steps = self._nearest_frames(1 + 2 * self.vae.stride[0]), TOY_STEPS
        sizes = [(columns, rows), (rows, columns), (self._nearest_side(min(columns, rows)),) * 2]
        counts = [frames, self._nearest_frames(frames // 2)] + [1] * family.still
        return Settings(
            formats=tuple(dict.fromkeys((*size, count) for size in sizes for count in counts)),
            fps=fps,
            size=(columns, rows),
            seconds=frames / fps,
            steps=steps,
            guidance=float(1.0 if (scale := family.default("guidance_scale")) is None else scale),
            sampler=SCHEDULER,
        )

    @property
    def multiple(self) -> int:
        """What both sides of a frame must be a multiple of."""
        _, down, across = self.vae.stride
        _, h, w = self.patch
        return math.lcm(down * h, across * w, 2)

    def _nearest_side(self, pixels: float) -> int:
        return max(1, round(pixels / self.multiple)) * self.multiple

    def _nearest_frames(self, frames: float) -> int:
        """Return the nearest number of frames that the model can make, at least two latent frames."""
        time, (patch, _, _) = self.vae.stride[0], self.patch
        latent = max(2, round((frames - 1) / time) + 1)
        latent = max(patch, round(latent / patch) * patch)
        return self.vae.frame_count(latent)

    @cached_property
    def longest_frames(self) -> int:
        """The most frames that are sampled at once; longer clips are made in windows."""
        names = ("longest", "num_frames", "video_length")
        named = next((found for name in names if (found := self.family.default(name))), LONGEST_FRAMES)
        return self._nearest_frames(named)

    @property
    def device(self) -> torch.device:
        return self.inner._execution_device

    @property
    def patch(self) -> tuple[int, int, int]:
        return self.family.patch

    @property
    def samplers(self) -> tuple[str, ...]:
        return ALL_SAMPLERS

    @property
    def networks(self) -> FamilyNetworks:
        return FamilyNetworks(self.transformer, self.vae, self.tokenizer, self.text_encoder, True, self.family)  # type: ignore[arg-type]

    @property
    def made_with(self) -> str:
        net = self.transformer
        gpu = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else None
        device = gpu or f"{torch.backends.cpu.get_cpu_capability()} x {torch.get_num_threads()}"
        dtype = str(net.dtype).removeprefix("torch.")
        memory = f", {self.plan.name}" if self.plan and self.plan.name != RESIDENT else ""
        memory += ", low memory" if self.low_memory else ""
        return f"torch {torch.__version__}, diffusers {diffusers.__version__}, {device}, {dtype}{memory}"

    def to(self, *args, **kwargs) -> AdaptedPipeline:
        """Move the model; see diffusers. On a GPU it is offloaded by part or by layer where it would not fit whole."""
        device = next((torch.device(one) for one in args if isinstance(one, (str, torch.device))), None)
        if device is None or device.type != "cuda":
            self.inner.to(*args, **kwargs)
            return self
        parts = {name: part for name, part in self.inner.components.items() if isinstance(part, torch.nn.Module)}
        sizes = {name: sum(value.nbytes for value in part.parameters()) for name, part in parts.items()}
        memory = torch.cuda.get_device_properties(device).total_memory
        self.plan = plan_memory(sizes, round(WORKING_SHARE * memory), memory)
        if self.plan.name == RESIDENT:
            self.inner.to(device)
        elif self.plan.name == BY_PART:
            self.inner.enable_model_cpu_offload(device=device)
        else:
            self.inner.enable_sequential_cpu_offload(device=device)
        return self

    def save_pretrained(self, folder: str | Path, **kwargs) -> None:
        self.inner.save_pretrained(folder, safe_serialization=True, **kwargs)

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Raise ValueError for a prompt over the token limit, which the pipeline would cut."""
        limit = self.family.text_tokens
        if self.tokenizer is None or not hasattr(self.tokenizer, "model_max_length"):
            return
        for prompt in prompts:
            count = len(self.tokenizer(prompt, truncation=False, verbose=False)["input_ids"])
            if count > limit:
                raise RequestError(
                    f"a prompt must be {limit} tokens or fewer for this model; got {count}, so shorten it"
                )

    def check_size(self, size: tuple[int, int], mode: Mode) -> None:
        if any(side < self.multiple or side % self.multiple for side in size):
            nearest = "x".join(str(self._nearest_side(side)) for side in size)
            raise RequestError(
                f"sides of a frame must be multiples of {self.multiple} for this model; got {size[0]}x{size[1]}, the "
                f"nearest is {nearest}"
            )

    def check_special_fields(self, request: Request) -> None:
        family = self.family
        if request.guidance_2 is not None and not family.reads_guidance_2:
            raise RequestError("guidance_2 must be left out for this model, which has one guidance scale")
        if request.flow_shift is not None and not family.can_shift:
            raise RequestError("flow_shift must be left out for this model, whose scheduler has none")
        if request.frame_guidance not in (None, 1.0) and not family.levels_per_token:
            raise RequestError(
                "frame_guidance must be left out for this model, which cannot tell given frames from others"
            )

    def checked_fps(self, request: Request) -> float:
        if self.family.any_fps and request.fps is not None and 1 <= request.fps <= 120:
            return request.fps
        return super().checked_fps(request)

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes that this model can make."""
        return tuple(name for name, mode in MODES.items() if self.family.still or not mode.still)

    def resolve(self, request: Request) -> Request:
        if request.mode in MODES and request.mode not in self.modes:
            raise RequestError(f"this model makes {', '.join(self.modes)}; got {request.mode}, so use another model")
        resolved = super().resolve(request)
        if loras := hash_loras(request):
            resolved = replace(resolved, hashes=(*(resolved.hashes or ()), *loras))
        if self.family.reads_guidance_2 and request.guidance_2 is None:
            second = resolved.guidance if self.family.guidance_2 is None else self.family.guidance_2
            resolved = replace(resolved, guidance_2=second)
        return resolved

    def default_seconds(self, size: tuple[int, int]) -> float:
        return self.settings.seconds

    def trained_frame_count(self, size: tuple[int, int], seconds: float, fps: float) -> int:
        time, wanted = self.vae.stride[0], seconds * fps
        if not math.isfinite(wanted) or wanted >= self.longest_frames + time:
            rule = f"seconds must be at most {self.longest_frames / fps:.3g} for this model; got {seconds:g}"
            raise RequestError(f"{rule}, so use the mode long for more" if "long" in self.modes else rule)
        return self._nearest_frames(wanted)

    def trained_lengths(self, request: Request) -> list[int]:
        patch = self.patch[0]
        longest = self.vae.latent_shape(self.longest_frames, 16, 16)[0]
        return list(range(max(2, patch) if patch > 1 else 2, longest + 1, patch))

    def latent_shape(self, request: Request) -> tuple[tuple[int, int, int, int], float]:
        (channels, T, H, W), fps = super().latent_shape(request)
        patch = self.patch[0]
        return (channels, max(1, round(T / patch)) * patch if T > 1 else T, H, W), fps

    def paint(self, request: Request) -> Canvas:
        """Return the canvas of a resolved request, with its images as pixels. Raises RequestError and MediaError."""
        shape, fps = self.latent_shape(request)
        pixels: dict[str, Tensor] = {}
        inputs = mode_inputs(request, self.vae, self.patch, shape, fps, pixels)  # type: ignore[arg-type]
        canvas = MODES[request.mode].paint(inputs)
        images = tuple(
            (inputs.latent_frame_at(at) * self.vae.stride[0], pixels[path][:, 0].to(self.device))
            for at, path in self._images(request)
        )
        known = {name: getattr(canvas, name) for name in Canvas.__dataclass_fields__}
        return GivenCanvas(**known, images=images).to(self.device)

    @staticmethod
    def _images(request: Request) -> list[tuple[float, str]]:
        """List the images that a request's mode places, (seconds, file)."""
        mode, found = MODES[request.mode], list[tuple[float, str]]()
        if request.image and "image" in mode.reads:
            found.append((0.0, request.image))
        if "keyframes" in mode.reads:
            found += request.keyframes or ()
        if "moments" in mode.reads:
            found += [(moment.at, moment.image) for moment in request.moments or () if moment.image]
        return found

    def generate(
        self,
        requests: list[Request],
        progress: ProgressCallback | None = None,
        preview: PreviewCallback | None = None,
        pack_size: int = 1,
    ) -> Iterator[Sample]:
        """Sample as `Pipeline.generate` does, one clip at a time: these models have no packs."""
        return super().generate(requests, progress, preview)

    def sample_pack(
        self,
        jobs: Sequence[SamplingJob],
        callback: StepCallback | None = None,
        make_denoiser: Callable[..., Denoiser] = FamilyDenoiser,
    ) -> Iterator[list[Tensor]]:
        if make_denoiser is FamilyDenoiser:  # and not one that only counts
            use_loras(self.inner, jobs[0].request.loras or ())
        return super().sample_pack(jobs, callback, make_denoiser)

    def run_sampler(
        self,
        denoiser: Denoiser,
        request: Request,
        canvases: Sequence[Canvas],
        noise: Sequence[Tensor],
        shapes: Sequence[Sequence[int]],
        callback: StepCallback | None,
    ) -> Iterator[list[Tensor]]:
        if request.sampler != SCHEDULER:
            return super().run_sampler(denoiser, request, canvases, noise, shapes, callback)
        assert isinstance(denoiser, FamilyDenoiser)
        scheduler = self.family.scheduler(request, self.token_count(shapes[0]))
        return sample_with_scheduler(denoiser, canvases[0], noise[0], scheduler, request, callback)

    def sigmas(self, request: Request, shape: Sequence[int]) -> Tensor:
        scheduler = self.family.scheduler(request, self.token_count(shape))
        return self.family.levels(scheduler)

    @property
    def decode_latent_frames(self) -> int:
        return 1

    @torch.no_grad()
    def frames(self, sample: Sample, latent_frames: int | None = None) -> Iterator[Tensor]:
        """Decode a sample; yield frames (3, F, Y, X) in [-1, 1]: a latent frame at a time where the VAE streams."""
        latents = sample.latents
        self.vae.set_tiling(self.low_memory or self.vae.is_tiled(*latents.shape[1:]))
        if not sample.periodic:
            yield from self.vae.pieces(latents)
            return
        last = self.vae.encode(self.vae.decode(latents[None])[:, :, -1:])[0]
        seen, first = 0, 1 + self.vae.stride[0] * latents.shape[1]  # of the round before, in which the loop closes
        for piece in self.vae.pieces(torch.cat([last, latents, latents], 1)):
            begin, seen = max(0, first - seen), seen + piece.shape[1]
            if begin < piece.shape[1]:
                yield piece[:, begin:]
