"""Wan 2.1 and 2.2: text to video, image to video, first and last frame, VACE, and two experts."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from torch import Tensor

from dit.adapters.canvas import GivenCanvas, given_video
from dit.adapters.family import Condition, Evaluation, Family, Text, stacked, zeros
from dit.request import Request

CLIP_TOKENS = 257  # of an image, by the CLIP encoder of Wan 2.1


class Wan(Family):
    """Wan's text-to-video models; of Wan 2.2, the 5B model takes a timestep per token and A14B has two experts."""

    pipelines = ("WanPipeline", "WanVideoToVideoPipeline", "SkyReelsV2Pipeline")

    def __init__(self, pipe: Any):
        super().__init__(pipe)
        self.levels_per_token = bool(pipe.config.get("expand_timesteps"))
        self.fps = 24.0 if self.levels_per_token or "SkyReels" in type(pipe).__name__ else 16.0
        boundary = pipe.config.get("boundary_ratio")
        self.boundary = None if boundary is None else boundary * pipe.scheduler.config.num_train_timesteps
        if pipe.transformer is None:
            self.transformer = pipe.transformer_2
        self.reads_guidance_2 = self.boundary is not None

    @property
    def networks(self) -> list[torch.nn.Module]:
        return [one for one in (self.pipe.transformer, getattr(self.pipe, "transformer_2", None)) if one is not None]

    def encode(self, prompt: str) -> Text:
        found = self.pipe._get_t5_prompt_embeds(prompt=prompt_clean(prompt), max_sequence_length=self.text_tokens)
        return stacked([found], ["encoder_hidden_states"], self.transformer.dtype)

    def empty_text(self) -> Text:
        return {"encoder_hidden_states": zeros(1, self.text_tokens, self.config.text_dim)}

    def expert(self, timestep: Tensor) -> Any:
        """Return the model of a timestep: the first one of high noise, the second of low."""
        if self.boundary is None or float(timestep) >= self.boundary:
            return self.pipe.transformer or self.transformer
        return self.pipe.transformer_2

    def guidance(self, request: Request, timestep: Tensor) -> float:
        first = super().guidance(request, timestep)
        if self.boundary is None or float(timestep) >= self.boundary or request.guidance_2 is None:
            return first
        return request.guidance_2

    def velocity(self, one: Evaluation) -> Tensor:
        model, inputs, timestep = self.expert(one.timestep), one.latents, self.batch(one)
        if self.levels_per_token:
            tokens = one.levels[:, :: self.patch[1], :: self.patch[2]]
            each = torch.where(tokens == one.level, timestep, tokens * self.timestep(1.0).to(timestep.device))
            timestep = each.flatten()[None]
        more = dict(one.condition)
        if "channels" in more:
            inputs = torch.cat([inputs, more.pop("channels")], 1)
        found = model(hidden_states=inputs.to(model.dtype), timestep=timestep, **one.text, **more, return_dict=False)
        return found[0]


class WanImage(Wan):
    """Wan's image-to-video and first-and-last-frame models: given frames and their mask are 20 more channels."""

    pipelines = ("WanImageToVideoPipeline", "SkyReelsV2ImageToVideoPipeline")

    def condition(self, canvas: GivenCanvas, request: Request) -> Condition:
        if self.levels_per_token:
            return {}
        pixels, given = given_video(canvas, self.vae)
        latents, time = self.vae.encode(pixels[None]), self.vae.stride[0]
        spread = torch.cat([given[:1].repeat(time), given[1:]]).view(-1, time).T
        mask = spread[None, :, :, None, None].to(latents).expand(1, -1, -1, *latents.shape[3:])
        found: dict[str, Any] = {"channels": torch.cat([mask, latents], 1).to(self.transformer.dtype)}
        if self.config.get("image_dim") is not None and self.pipe.image_encoder is not None:
            frames = given.nonzero().flatten().tolist() or [0]
            ends = (frames[0], frames[-1]) if self.config.get("pos_embed_seq_len") else frames[:1]
            images = [to_uint8(pixels[:, frame]) for frame in ends]
            inputs = self.pipe.image_processor(images=images, return_tensors="pt")
            encoder = self.pipe.image_encoder
            hidden = encoder(**inputs.to(encoder.device), output_hidden_states=True).hidden_states[-2]
            found["encoder_hidden_states_image"] = hidden.to(self.transformer.dtype)
        return found

    def empty_condition(self, T: int, H: int, W: int) -> Condition:
        if self.levels_per_token:
            return {}
        found = {"channels": zeros(1, self.config.in_channels - self.vae.channels, T, H, W)}
        if self.config.get("image_dim") is not None:
            images = 2 if self.config.get("pos_embed_seq_len") else 1
            found["encoder_hidden_states_image"] = zeros(images, CLIP_TOKENS, self.config.image_dim)
        return found

    def knows(self, canvas: GivenCanvas) -> Tensor | None:
        if self.levels_per_token:
            return None
        return (canvas.denoise_mask.flatten(1) == 0).all(1)[:, None, None].expand_as(canvas.denoise_mask)


def to_uint8(image: Tensor) -> Tensor:
    """Return pixels (3, Y, X) in [-1, 1] as whole numbers from 0 to 255, as image processors read them."""
    return ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()


class WanVACE(Wan):
    """VACE: kept frames and regions are a control video and its mask."""

    pipelines = ("WanVACEPipeline",)

    def condition(self, canvas: GivenCanvas, request: Request) -> Condition:
        pixels, _ = given_video(canvas, self.vae)
        time, down, across = self.vae.stride
        mask = (canvas.denoise_mask > 0).float()
        if bool(((mask == 0).flatten(1).any(1) & (mask > 0).flatten(1).any(1)).any()):  # some frames are kept in part
            pixels = self.vae.decode(canvas.clean_latents[None])[0].to(pixels)
        frames = torch.cat([mask[:1], mask[1:].repeat_interleave(time, 0)])
        for frame, image in canvas.images:  # one image is one frame, not all that its latent covers
            if frame and frame < len(frames):
                frames[max(0, 1 + (frame - 1) // time * time) : frame] = 1
                pixels[:, frame] = image.to(pixels)
        frames = frames.repeat_interleave(down, 1).repeat_interleave(across, 2)
        video, white = pixels[None], frames.expand(3, -1, -1, -1)[None]
        latents = self.pipe.prepare_video_latents(video, white, [[]], None, pixels.device)
        control = torch.cat([latents, self.pipe.prepare_masks(white, [[]])], 1)
        strength = torch.ones(len(self.config.vace_layers), dtype=self.transformer.dtype, device=pixels.device)
        return {"control_hidden_states": control.to(self.transformer.dtype), "control_hidden_states_scale": strength}

    def empty_condition(self, T: int, H: int, W: int) -> Condition:
        strength = torch.ones(len(self.config.vace_layers))
        control = zeros(1, self.config.vace_in_channels, T, H, W)
        return {"control_hidden_states": control, "control_hidden_states_scale": strength}

    def knows(self, canvas: GivenCanvas) -> Tensor | None:
        return canvas.denoise_mask == 0
