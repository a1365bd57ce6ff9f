"""A family of models: how prompts are encoded, how one model evaluation goes, and which noise levels the sampler takes.

All families compute in the variables of `dit.flow`: x = (1 - level) data + level noise, v = noise - data. A model that
was trained on another path has `scale`, `velocity` and `prediction`, which convert.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from dit.adapters.autoencoder import Autoencoder
from dit.adapters.canvas import GivenCanvas
from dit.request import Request

Text = Mapping[str, Tensor]  # the arguments of the transformer that a prompt decides
Condition = Mapping[str, Any]  # those that given frames decide


@dataclass(frozen=True)
class Evaluation:
    """One model evaluation: latents (1, C, T, H, W), the noise level and timestep of the clip, the level of each latent
    (T, H, W), and all that conditions it.
    """

    latents: Tensor
    level: float
    timestep: Tensor
    levels: Tensor
    text: Text
    condition: Condition
    request: Request
    fps: float


class Family:
    """The part of a diffusers pipeline that differs from family to family; `pipe` is the loaded pipeline.

    The defaults of size, frames, steps and guidance are those of the pipeline's own call, unless the class names them.
    """

    pipelines: ClassVar[tuple[str, ...]] = ()
    levels_per_token: bool = False  # whether the model takes a noise level per token
    fps: float = 16.0
    any_fps: bool = False  # whether the model reads the frame rate
    reads_guidance_2: bool = False
    guidance_2: float | None = None  # the default, where it is not that of `guidance`
    text_tokens: int = 512
    defaults: Mapping[str, Any] = MappingProxyType(
        {}
    )  # arguments of the pipeline's call, where None stands for another value
    still: bool = True  # whether one frame is a clip
    uses_guidance: bool = True

    def __init__(self, pipe: Any):
        self.pipe, self.transformer = pipe, pipe.transformer
        self.vae = self.autoencoder()

    def autoencoder(self) -> Autoencoder:
        """Return the VAE behind the interface of ours."""
        ratios = []
        for axis in ("temporal", "spatial"):
            names = (f"vae_scale_factor_{axis}", f"vae_{axis}_compression_ratio", f"vae_{axis}_scale_factor")
            ratios.append(next((value for name in names if (value := getattr(self.pipe, name, None))), None))
        time, space = ratios
        return Autoencoder(self.pipe.vae, (time, space, space) if time and space else None)

    @property
    def config(self) -> Any:
        """The transformer's config."""
        return self.transformer.config

    @property
    def patch(self) -> tuple[int, int, int]:
        """The latents (frames, rows, columns) of one token."""
        size = self.config.patch_size
        if isinstance(size, int):
            return (self.config.get("patch_size_t") or 1, size, size)
        return tuple(size)

    @property
    def networks(self) -> list[torch.nn.Module]:
        """The networks that denoise."""
        return [self.transformer]

    def default(self, name: str) -> Any:
        """Return the default of an argument of the pipeline's call."""
        if name in self.defaults:
            return self.defaults[name]
        known = inspect.signature(type(self.pipe).__call__).parameters
        return known[name].default if name in known else None

    def encode(self, prompt: str) -> Text:
        """Encode a prompt, alone."""
        raise NotImplementedError

    def scheduler(self, request: Request, tokens: int) -> Any:
        """Return a fresh scheduler of the folder's class, with the timesteps of a resolved request."""
        stored, changes = self.pipe.scheduler, {}
        if request.flow_shift is not None:
            name = "flow_shift" if "flow_shift" in stored.config else "shift"
            changes = {name: request.flow_shift, "use_dynamic_shifting": False}
        fresh = type(stored).from_config(stored.config, **changes)
        self.set_timesteps(fresh, request.steps or 1, tokens)
        return fresh

    @property
    def can_shift(self) -> bool:
        """Whether the scheduler takes a flow shift."""
        return any(name in self.pipe.scheduler.config for name in ("flow_shift", "shift"))

    def set_timesteps(self, scheduler: Any, steps: int, tokens: int) -> None:
        """Set a scheduler's timesteps as the family's pipeline does, for a clip of `tokens` tokens."""
        scheduler.set_timesteps(steps)

    def levels(self, scheduler: Any) -> Tensor:
        """Return the noise level at each of the scheduler's timesteps, and the last one, falling from 1."""
        return scheduler.sigmas.float().cpu()

    def timestep(self, level: float) -> Tensor:
        """Return the model's timestep of a noise level."""
        return torch.tensor(level * self.pipe.scheduler.config.num_train_timesteps)

    def scale(self, level: float) -> float:
        """Return the factor from the flow's latents to those of the scheduler."""
        return 1.0

    def prediction(self, x: Tensor, velocity: Tensor, level: float) -> Tensor:
        """Return what the scheduler expects of the model, for the flow's latents and velocity."""
        return velocity

    def step(self, scheduler: Any, prediction: Tensor, index: int, x: Tensor, noise: torch.Generator) -> Tensor:
        """Make the scheduler's step `index`, from its latents to the next."""
        return scheduler.step(prediction, scheduler.timesteps[index], x, return_dict=False)[0]

    def condition(self, canvas: GivenCanvas, request: Request) -> Condition:
        """Return the model's inputs that given frames decide; nothing for a model that only reads noise levels."""
        return {}

    def knows(self, canvas: GivenCanvas) -> Tensor | None:
        """Return which latents (T, H, W) the model is told by `condition`, and need not be at the noise level."""
        return None

    def empty_text(self) -> Text:
        """Return what `encode` returns, for an estimate: zeros on the meta device."""
        raise NotImplementedError

    def empty_condition(self, T: int, H: int, W: int) -> Condition:
        """Return what `condition` returns for latents (T, H, W), for an estimate: zeros on the meta device."""
        return {}

    def guidance(self, request: Request, timestep: Tensor) -> float:
        """Return the scale of classifier-free guidance at a timestep."""
        return 1.0 if request.guidance is None else request.guidance

    def velocity(self, one: Evaluation) -> Tensor:
        """Evaluate the model once; return the flow's velocity (1, C, T, H, W)."""
        raise NotImplementedError

    def batch(self, one: Evaluation) -> Tensor:
        """Return a timestep for a batch of one clip, in the latents' float type."""
        return one.timestep.to(one.latents.device).expand(1)


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return zeros on the meta device."""
    return torch.zeros(shape, dtype=dtype, device="meta")


def stacked(found: Sequence[Tensor | None], names: Sequence[str], dtype: torch.dtype) -> Text:
    """Return encoded prompts by the names of the transformer's arguments, floats in its type."""
    pairs = zip(names, found, strict=True)
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in pairs if value is not None}
