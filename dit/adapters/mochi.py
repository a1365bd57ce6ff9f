"""Mochi: time runs from noise to data, and the model's velocity the other way."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule
from torch import Tensor

from dit.adapters.family import Evaluation, Family, Text, stacked, zeros

LINEAR_NOISE = 0.025  # that is taken away in the first half of the steps, of equal size


class Mochi(Family):
    """Mochi's text-to-video model."""

    pipelines = ("MochiPipeline",)
    fps = 30.0
    text_tokens = 256
    defaults = MappingProxyType({"width": 848, "height": 480, "longest": 163})

    def encode(self, prompt: str) -> Text:
        found = self.pipe._get_t5_prompt_embeds(prompt=prompt, max_sequence_length=self.text_tokens)
        return stacked(found, ["encoder_hidden_states", "encoder_attention_mask"], self.transformer.dtype)

    def empty_text(self) -> Text:
        mask = zeros(1, self.text_tokens, dtype=torch.bool)
        embeds = zeros(1, self.text_tokens, self.config.text_embed_dim)
        return {"encoder_hidden_states": embeds, "encoder_attention_mask": mask}

    def set_timesteps(self, scheduler: Any, steps: int, tokens: int) -> None:
        sigmas = linear_quadratic_schedule(steps, LINEAR_NOISE) if steps > 1 else [1.0]
        scheduler.set_timesteps(sigmas=np.array(sigmas))

    def levels(self, scheduler: Any) -> Tensor:
        return 1 - scheduler.sigmas.float().cpu()

    def timestep(self, level: float) -> Tensor:
        return super().timestep(1 - level)

    def prediction(self, x: Tensor, velocity: Tensor, level: float) -> Tensor:
        return -velocity

    def velocity(self, one: Evaluation) -> Tensor:
        inputs, timestep = one.latents.to(self.transformer.dtype), self.batch(one).to(one.latents.dtype)
        found = self.transformer(hidden_states=inputs, timestep=timestep, **one.text, return_dict=False)
        return -found[0].float()
