"""HunyuanVideo: guidance is an input of the model, and classifier-free guidance a second one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from torch import Tensor

from dit.adapters.family import Evaluation, Family, Text, stacked, zeros
from dit.request import Request

NAMES = ("encoder_hidden_states", "pooled_projections", "encoder_attention_mask")


class HunyuanVideo(Family):
    """HunyuanVideo's text-to-video model. `guidance` is embedded, `guidance_2` that of two evaluations, 1 for none."""

    pipelines = ("HunyuanVideoPipeline",)
    fps = 24.0
    text_tokens = 256
    reads_guidance_2, guidance_2 = True, 1.0

    def encode(self, prompt: str) -> Text:
        found = self.pipe.encode_prompt(prompt, prompt_template=DEFAULT_PROMPT_TEMPLATE, max_sequence_length=256)
        embeds, pooled, mask = found
        return stacked([embeds, pooled, mask.to(self.transformer.dtype)], NAMES, self.transformer.dtype)

    def empty_text(self) -> Text:
        config = self.config
        shapes = (
            (1, self.text_tokens, config.text_embed_dim),
            (1, config.pooled_projection_dim),
            (1, self.text_tokens),
        )
        return {name: zeros(*shape) for name, shape in zip(NAMES, shapes, strict=True)}

    def set_timesteps(self, scheduler: Any, steps: int, tokens: int) -> None:
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.0, steps + 1)[:-1])

    def guidance(self, request: Request, timestep: Tensor) -> float:
        return 1.0 if request.guidance_2 is None else request.guidance_2

    def velocity(self, one: Evaluation) -> Tensor:
        dtype, embedded = self.transformer.dtype, {}
        if self.config.get("guidance_embeds", True):
            scale = 1.0 if one.request.guidance is None else one.request.guidance
            embedded["guidance"] = torch.tensor([scale], dtype=dtype, device=one.latents.device) * 1000.0
        inputs, timestep = one.latents.to(dtype), self.batch(one).to(one.latents.dtype)
        model = self.transformer
        return model(hidden_states=inputs, timestep=timestep, **one.text, **embedded, return_dict=False)[0]
