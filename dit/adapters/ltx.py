"""LTX-Video: a noise level per token, so given frames at any place are what a canvas says they are."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.ltx.pipeline_ltx import LTXPipeline, calculate_shift
from torch import Tensor

from dit.adapters.autoencoder import Autoencoder
from dit.adapters.family import Evaluation, Family, Text, stacked, zeros


class LTXAutoencoder(Autoencoder):
    """A VAE whose decoder may take a timestep, which is 0 as in the pipeline's own call."""

    def decode(self, latents: Tensor) -> Tensor:
        timed = self.model.config.timestep_conditioning
        timestep = torch.zeros(len(latents), device=latents.device, dtype=self.model.dtype) if timed else None
        return self.model.decode(self.raw(latents), timestep, return_dict=False)[0].float().clamp(-1, 1)


class LTX(Family):
    """LTX-Video 0.9; its transformer takes packed tokens, and the frame rate by the scale of its positions."""

    pipelines = ("LTXPipeline", "LTXImageToVideoPipeline", "LTXConditionPipeline")
    levels_per_token = True
    fps, any_fps = 25.0, True
    text_tokens = 128
    defaults = MappingProxyType({"longest": 257})

    def autoencoder(self) -> Autoencoder:
        vae = self.pipe.vae
        space = vae.spatial_compression_ratio
        return LTXAutoencoder(vae, (vae.temporal_compression_ratio, space, space))

    def encode(self, prompt: str) -> Text:
        found = LTXPipeline._get_t5_prompt_embeds(
            self.pipe, prompt=prompt, max_sequence_length=self.text_tokens, device=self.pipe._execution_device
        )
        return stacked(found, ["encoder_hidden_states", "encoder_attention_mask"], self.transformer.dtype)

    def empty_text(self) -> Text:
        mask = zeros(1, self.text_tokens, dtype=torch.long)
        return {
            "encoder_hidden_states": zeros(1, self.text_tokens, self.config.caption_channels),
            "encoder_attention_mask": mask,
        }

    def set_timesteps(self, scheduler: Any, steps: int, tokens: int) -> None:
        known, names = scheduler.config, ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        mu = calculate_shift(tokens, *(known.get(name, value) for name, value in zip(names, SHIFT, strict=True)))
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)

    def velocity(self, one: Evaluation) -> Tensor:
        _, _, T, H, W = one.latents.shape
        time, space, _ = self.vae.stride
        sizes = self.patch[1], self.patch[0]
        levels = one.levels[None, None].expand(1, 1, T, H, W)
        tokens = LTXPipeline._pack_latents(levels, *sizes)[..., 0]
        own = one.timestep.to(tokens.device)
        timestep = torch.where(tokens == one.level, own, tokens * self.timestep(1.0).to(tokens))
        found = self.transformer(
            hidden_states=LTXPipeline._pack_latents(one.latents, *sizes).to(self.transformer.dtype),
            timestep=timestep,
            num_frames=T // sizes[1],
            height=H // sizes[0],
            width=W // sizes[0],
            rope_interpolation_scale=(time / one.fps, space, space),
            **one.text,
            return_dict=False,
        )[0]
        return LTXPipeline._unpack_latents(found.float(), T // sizes[1], H // sizes[0], W // sizes[0], *sizes)


SHIFT = (256, 4096, 0.5, 1.15)  # of the noise levels by tokens, where the scheduler's config names none
