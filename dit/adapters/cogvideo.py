"""CogVideoX: a variance-preserving diffusion, computed in the variables of the flow.

With a = sqrt(alpha_bar) and s = sqrt(1 - alpha_bar), its latents are a data + s noise: a + s times those of the flow at
the level s / (a + s). A deterministic DDIM step (arXiv 2010.02502, equation 12) is then the flow's Euler step.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import torch
from diffusers.schedulers.scheduling_dpm_cogvideox import CogVideoXDPMScheduler
from torch import Tensor

from dit.adapters.canvas import GivenCanvas, given_video
from dit.adapters.family import Condition, Evaluation, Family, Text, stacked, zeros
from dit.request import Request


class CogVideoX(Family):
    """CogVideoX's text-to-video models."""

    pipelines = ("CogVideoXPipeline", "CogVideoXVideoToVideoPipeline")
    fps = 8.0
    text_tokens = 226
    defaults = MappingProxyType({"width": 720, "height": 480, "num_frames": 49})

    def __init__(self, pipe: Any):
        super().__init__(pipe)
        alpha_bar = pipe.scheduler.alphas_cumprod
        self.data_parts, self.noise_parts = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        self.table = self.noise_parts / (self.data_parts + self.noise_parts)  # the level of each timestep
        self.denoised: Tensor | None = None  # that the multistep scheduler predicted a step before
        if self.config.get("patch_size_t"):
            self.defaults, self.fps = {"width": 1360, "height": 768, "num_frames": 81}, 16.0

    def encode(self, prompt: str) -> Text:
        found = self.pipe._get_t5_prompt_embeds(prompt=prompt, max_sequence_length=self.text_tokens)
        return stacked([found], ["encoder_hidden_states"], self.transformer.dtype)

    def empty_text(self) -> Text:
        return {"encoder_hidden_states": zeros(1, self.text_tokens, self.config.text_embed_dim)}

    @property
    def can_shift(self) -> bool:
        return False

    def levels(self, scheduler: Any) -> Tensor:
        last = scheduler.final_alpha_cumprod
        data, noise = last.sqrt(), (1 - last).sqrt()
        return torch.cat([self.table[scheduler.timesteps.cpu()], (noise / (data + noise))[None]])

    def timestep(self, level: float) -> Tensor:
        return (self.table - level).abs().argmin()

    def _parts(self, level: float) -> tuple[float, float]:
        """Return the parts of data and of noise in the latents at a level; their squares sum to 1."""
        length = ((1 - level) ** 2 + level**2) ** 0.5
        return (1 - level) / length, level / length

    def scale(self, level: float) -> float:
        return sum(self._parts(level))

    def prediction(self, x: Tensor, velocity: Tensor, level: float) -> Tensor:
        data, noise = self._parts(level)
        denoised, noised = x - level * velocity, x + (1 - level) * velocity
        if self.pipe.scheduler.config.prediction_type == "epsilon":
            return noised
        return data * noised - noise * denoised

    def step(self, scheduler: Any, prediction: Tensor, index: int, x: Tensor, noise: torch.Generator) -> Tensor:
        times = scheduler.timesteps
        if type(scheduler) is not CogVideoXDPMScheduler:
            return super().step(scheduler, prediction, index, x, noise)
        before: Any = times[index - 1] if index else None
        known: Any = self.denoised if index else None
        x, self.denoised = scheduler.step(prediction, known, times[index], before, x, generator=noise)
        return x

    def velocity(self, one: Evaluation) -> Tensor:
        _, _, T, H, W = one.latents.shape
        _, down, across = self.vae.stride
        data, noise = self._parts(one.level)
        x, more = one.latents * (data + noise), dict(one.condition)
        inputs = torch.cat([x, more.pop("channels")], 1) if "channels" in more else x
        if self.config.use_rotary_positional_embeddings:
            frames = self.pipe._prepare_rotary_positional_embeddings(H * down, W * across, T, x.device)
            more["image_rotary_emb"] = frames
        if self.config.get("ofs_embed_dim") is not None:
            more["ofs"] = x.new_full((1,), 2.0)
        found = self.transformer(
            hidden_states=inputs.transpose(1, 2).to(self.transformer.dtype),
            timestep=self.batch(one),
            **one.text,
            **more,
            return_dict=False,
        )[0]
        v = found.float().transpose(1, 2)
        if self.pipe.scheduler.config.prediction_type == "epsilon":
            return v - (x - noise * v) / max(data, 1e-6)
        return (data * v + noise * x) - (data * x - noise * v)


class CogVideoXImage(CogVideoX):
    """CogVideoX's image-to-video models: the latents of the first frame are as many more channels."""

    pipelines = ("CogVideoXImageToVideoPipeline",)

    def condition(self, canvas: GivenCanvas, request: Request) -> Condition:
        pixels, given = given_video(canvas, self.vae)
        channels = torch.zeros_like(canvas.clean_latents)[None]
        if given[0]:
            first = self.vae.encode(pixels[None, :, :1])
            if self.pipe.vae.config.get("invert_scale_latents"):
                first = first / self.pipe.vae.config.scaling_factor**2
            channels[:, :, :1] = first
        return {"channels": channels}

    def empty_condition(self, T: int, H: int, W: int) -> Condition:
        return {"channels": zeros(1, self.vae.channels, T, H, W)}

    def knows(self, canvas: GivenCanvas) -> Tensor | None:
        known = torch.zeros_like(canvas.denoise_mask, dtype=torch.bool)
        known[0] = not bool(canvas.denoise_mask[0].any())
        return known
