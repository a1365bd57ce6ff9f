"""A diffusers pipeline of no known family, through its own call: text, and the images or the video that it takes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from dit.adapters.autoencoder import Autoencoder
from dit.adapters.canvas import GivenCanvas
from dit.adapters.family import Family
from dit.adapters.lora import use_loras
from dit.adapters.pipeline import AdaptedPipeline
from dit.modes import MODES, Mode
from dit.pipeline import PreviewCallback, ProgressCallback, Sample
from dit.request import SCHEDULER, Request, RequestError

FRAME_ARGUMENTS = ("num_frames", "video_length", "frames")  # names of the number of frames, of several pipelines
RATE_ARGUMENTS = ("fps", "frame_rate")
NETWORKS = ("transformer", "unet", "transformer_2", "prior", "dit")
TRAINED_FPS = MappingProxyType(
    {"Cosmos": 16.0, "Allegro": 15.0, "AnimateDiff": 8.0, "TextToVideoSD": 8.0, "Latte": 8.0}
)


class PixelSpace(Autoencoder):
    """Pixels in the place of latents, for a pipeline that encodes and decodes by itself."""

    def __init__(self, device: Callable[[], torch.device]):
        super().__init__(None, (1, 1, 1))
        self._device = device

    @property
    def channels(self) -> int:
        return 3

    @property
    def device(self) -> torch.device:
        return self._device()

    def encode(self, pixels: Tensor) -> Tensor:
        return pixels

    def decode(self, latents: Tensor) -> Tensor:
        return latents

    def linear_preview(self, latents: Tensor) -> Tensor:
        return latents

    def pieces(self, latents: Tensor) -> Iterator[Tensor]:
        yield latents

    def encoder_hash(self) -> str:
        return "pixels"


class CalledFamily(Family):
    """What is known of a pipeline from the arguments of its call and the attributes that pipelines share."""

    def __init__(self, pipe: Any):
        self.pipe = pipe
        parts = (getattr(pipe, name, None) for name in NETWORKS)
        self.transformer = next(
            part for part in (*parts, *pipe.components.values()) if isinstance(part, torch.nn.Module)
        )
        self.arguments: Mapping[str, inspect.Parameter] = inspect.signature(type(pipe).__call__).parameters
        self.vae = PixelSpace(lambda: pipe._execution_device)
        name = type(pipe).__name__
        rate = next((self.default(argument) for argument in RATE_ARGUMENTS if self.default(argument)), None)
        known = next((fps for part, fps in TRAINED_FPS.items() if name.startswith(part)), 24.0)
        self.fps, self.any_fps = float(rate or known), any(argument in self.arguments for argument in RATE_ARGUMENTS)
        self.reads_guidance_2 = any(argument in self.arguments for argument in ("guidance_scale_2", "true_cfg_scale"))
        if self.reads_guidance_2 and "guidance_scale_2" not in self.arguments:
            self.guidance_2 = float(self.default("true_cfg_scale") or 1.0)

    @property
    def patch(self) -> tuple[int, int, int]:
        return 1, 1, 1

    @property
    def can_shift(self) -> bool:
        return False

    def ratio(self, axis: str, fallback: int) -> int:
        """Return the frames ("temporal") or pixels ("spatial") of one latent."""
        names = (f"vae_scale_factor_{axis}", f"vae_{axis}_compression_ratio", f"vae_{axis}_scale_factor")
        found = next((value for name in names if isinstance(value := getattr(self.pipe, name, None), int)), None)
        if found is None and axis == "spatial":
            found = getattr(self.pipe, "vae_scale_factor", None)
        return found or fallback

    @property
    def frames_argument(self) -> str | None:
        """The name of the number of frames."""
        return next((name for name in FRAME_ARGUMENTS if name in self.arguments), None)

    def requires(self, name: str) -> bool:
        """Whether the call cannot do without an argument."""
        return name in self.arguments and self.arguments[name].default is inspect.Parameter.empty


class CalledPipeline(AdaptedPipeline):
    """A pipeline that samples by itself; its canvases and samples hold pixels."""

    family: CalledFamily  # type: ignore[assignment]

    @property
    def modes(self) -> tuple[str, ...]:
        family, found = self.family, list[str]()
        if not family.requires("image") and not family.requires("video"):
            found += ["text-to-video"] + ["text-to-image"] * (family.frames_argument is not None)
        if "image" in family.arguments:
            found.append("image-to-video")
        if "last_image" in family.arguments:
            found.append("keyframes")
        if "video" in family.arguments and "strength" in family.arguments:
            found += ["edit", "remix"]
        return tuple(found)

    @property
    def samplers(self) -> tuple[str, ...]:
        return (SCHEDULER,)

    @property
    def multiple(self) -> int:
        patch = getattr(self.transformer.config, "patch_size", 1)
        side = patch if isinstance(patch, int) else patch[-1]
        return math.lcm(self.family.ratio("spatial", 8) * side, 2)

    def _nearest_frames(self, frames: float) -> int:
        step = self.family.ratio("temporal", 1)
        return 1 + step * max(1, round((frames - 1) / step))

    def check_size(self, size: tuple[int, int], mode: Mode) -> None:
        if mode is not MODES["text-to-image"] or "text-to-image" in self.modes:
            super().check_size(size, mode)

    def window_length(self, request: Request, canvas) -> int:
        return canvas.latent_frames

    @torch.no_grad()
    def generate(
        self,
        requests: list[Request],
        progress: ProgressCallback | None = None,
        preview: PreviewCallback | None = None,
        pack_size: int = 1,
    ) -> Iterator[Sample]:
        """Make the clips of some requests by the pipeline's own call, one after another."""
        resolved = [self.resolve(request) for request in requests]
        canvases = [self.paint(request) for request in resolved]
        all_steps, done = sum(request.steps or 0 for request in resolved), 0
        for request, canvas in zip(resolved, canvases, strict=True):
            steps = request.steps or 0

            def report(step: int, done=done, steps=steps) -> None:
                if progress:
                    progress(done + min(step, steps), all_steps)

            pixels = self.call(request, canvas, report)
            done += steps
            kept = canvas.denoise_mask == 0
            if pixels.shape == canvas.clean_latents.shape:
                pixels = torch.where(kept, canvas.clean_latents, pixels)
            yield Sample.of(request, pixels, canvas)

    def call(self, request: Request, canvas, report: Callable[[int], None]) -> Tensor:
        """Call the pipeline for a resolved request; return pixels (3, F, Y, X) in [-1, 1]."""
        use_loras(self.inner, request.loras or ())
        arguments = self.call_arguments(request, canvas)
        if "callback_on_step_end" in self.family.arguments:

            def step_end(pipe: Any, step: int, timestep: Any, tensors: dict) -> dict:
                report(step + 1)
                return {}

            arguments["callback_on_step_end"] = step_end
            return to_pixels(self.inner(**arguments)).to(self.device)
        with _reported_progress_bar(self.inner, report):
            return to_pixels(self.inner(**arguments)).to(self.device)

    def call_arguments(self, request: Request, canvas) -> dict[str, Any]:
        """Return the arguments of the pipeline's call, of those that it has."""
        family, (columns, rows) = self.family, request.size or self.settings.size
        frames = canvas.latent_frames
        given: dict[str, Any] = {
            "prompt": request.effective_prompt,
            "negative_prompt": request.negative_prompt,
            "height": rows,
            "width": columns,
            "num_inference_steps": request.steps,
            "guidance_scale": request.guidance,
            "guidance_scale_2": request.guidance_2,
            "true_cfg_scale": request.guidance_2,
            "generator": torch.Generator("cpu").manual_seed(request.seed),
            "output_type": "np",
            "use_resolution_binning": False,  # the size is what was asked for
        }
        given |= dict.fromkeys(FRAME_ARGUMENTS, frames) | dict.fromkeys(RATE_ARGUMENTS, request.fps)
        if not isinstance(self._default_of("fps"), float):
            given["fps"] = round(request.fps or family.fps)
        images = dict(canvas.images)
        if 0 in images:
            given["image"] = to_image(images[0])
        if frames - 1 in images and frames > 1:
            given["last_image"] = to_image(images[frames - 1])
        if request.clip:
            given["video"] = [to_image(frame) for frame in canvas.clean_latents.unbind(1)]
            given["strength"] = request.strength
        found = {name: value for name, value in given.items() if name in family.arguments and value is not None}
        if "guidance_scale" not in found and (guider := getattr(self.inner, "guider", None)) is not None:
            self.inner.guider = type(guider).from_config(guider.config, guidance_scale=request.guidance)
        return found

    def _default_of(self, name: str) -> Any:
        return self.family.default(name)

    def resolve(self, request: Request) -> Request:
        resolved = super().resolve(request)
        frames = {0, round((resolved.seconds or 0) * (resolved.fps or 0)) - 1}
        for at, path in self._images(resolved):
            if round(at * (resolved.fps or 0)) not in frames and request.mode == "keyframes":
                raise RequestError(
                    f"keyframes of this model must be the first and the last frame; {path} is at {at:g} s"
                )
        return resolved

    def paint(self, request: Request) -> GivenCanvas:
        canvas = super().paint(request)
        assert isinstance(canvas, GivenCanvas)
        if request.mode == "edit" or request.mode == "remix":  # the pipeline adds the noise of `strength` itself
            return replace(canvas, denoise_mask=torch.ones_like(canvas.denoise_mask))
        return canvas


def to_image(pixels: Tensor) -> Image.Image:
    """Convert pixels (3, Y, X) in [-1, 1] to an image."""
    return Image.fromarray(((pixels.float() + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy())


def to_pixels(output: Any) -> Tensor:
    """Convert a pipeline's output, frames or images as arrays in [0, 1] or as images, to (3, F, Y, X) in [-1, 1]."""
    found = next((value for name in ("frames", "images") if (value := getattr(output, name, None)) is not None), None)
    found = output[0] if found is None else found
    if isinstance(found, (list, tuple)) and isinstance(found[0], (list, tuple)):
        found = found[0]
    if isinstance(found, (list, tuple)):
        parts = [np.asarray(frame) for frame in found]
        found = np.stack([part / 255 if part.dtype == np.uint8 else part for part in parts])
    array = torch.as_tensor(np.asarray(found)).float()
    if array.ndim == 5:
        array = array[0]
    return (rearrange(array, "f y x rgb -> rgb f y x") * 2 - 1).clamp(-1, 1)


@contextmanager
def _reported_progress_bar(pipe: Any, report: Callable[[int], None]) -> Iterator[None]:
    """Report the steps of a pipeline without a step callback by its progress bar."""
    made = pipe.progress_bar

    def progress_bar(*args, **kwargs):
        bar, update = made(*args, **kwargs), None
        update = bar.update

        def counted(count: float = 1):
            counted.steps += int(count)
            report(counted.steps)
            return update(count)

        counted.steps = 0
        bar.update = counted
        return bar

    pipe.progress_bar = progress_bar
    try:
        yield
    finally:
        del pipe.progress_bar
