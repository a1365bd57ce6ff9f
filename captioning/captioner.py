"""Clips to words: whoever describes them, a description has the same parts.

A vision-language model behind an OpenAI-compatible endpoint is asked for JSON of one schema; what does not fit it is
sent back with the reason.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from typing import Any
from urllib.parse import urlsplit

import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from vae.pixels import to_bytes

FRAMES = 8  # of a clip that are shown
PARTS = ("subject", "action", "camera", "light", "style")
INSTRUCTIONS = (
    "You see frames of one video clip, in order. Describe what is seen and nothing else: no guesses about what came "
    "before, no opinions, no mention of frames. Answer with JSON: subject (who or what, with colours, shapes, sizes "
    "and counts), action (what moves, how and where to), camera (how it is placed and moves), light (time of day, "
    "weather, where it comes from), style (photograph, drawing, render and the like), and caption: all of that as one "
    "fluent paragraph of two to four sentences."
)
RETURNED = "That does not fit the schema: {reason}. Answer again with the JSON alone."


class CaptionError(ValueError):
    """A clip that could not be described: why, and what would help."""


class Description(BaseModel):
    """What a clip shows, in parts, and all of it as one text."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)

    subject: str = Field(min_length=1)
    action: str = Field(min_length=1)
    camera: str = Field(min_length=1)
    light: str = Field(min_length=1)
    style: str = Field(min_length=1)
    caption: str = Field(min_length=1)


VERSION = hashlib.sha256((INSTRUCTIONS + json.dumps(Description.model_json_schema())).encode()).hexdigest()[:8]


class Endpoint:
    """A vision-language model behind an OpenAI-compatible endpoint, such as vLLM's, Ollama's or OpenAI's own.

    `url` ends where /chat/completions begins; `seconds` is how long it may be silent. What is slow, busy or down is
    asked `tries` times, ever more slowly, and so is what answers with something else than asked for.
    """

    def __init__(self, url: str, model: str, key: str | None = None, seconds: float = 60.0, tries: int = 3):
        from openai import OpenAI

        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise CaptionError(f"an endpoint must be an address such as http://localhost:8000/v1; got {url!r}")
        self.model, self.tries, self.where = model, tries, parts.hostname
        self.client = OpenAI(base_url=url, api_key=key or "none", timeout=seconds, max_retries=tries - 1)

    @property
    def name(self) -> str:
        """What captions say of where they come from."""
        return f"{self.model} at {self.where}"

    def describe(self, video: Tensor) -> Description:
        """Describe a clip (3, F, Y, X) in [-1, 1]. Raises CaptionError where no answer fits."""
        from openai import APIConnectionError, APIStatusError, APITimeoutError, OpenAIError

        messages: list[Any] = [
            {"role": "system", "content": INSTRUCTIONS},
            {"role": "user", "content": [picture_part(video[:, frame]) for frame in spread(video.shape[1])]},
        ]
        schema = {"name": "description", "strict": True, "schema": Description.model_json_schema()}
        wrong = ""
        for _ in range(self.tries):
            try:
                answer = self.client.chat.completions.create(
                    model=self.model,
                    messages=messages,
                    response_format={"type": "json_schema", "json_schema": schema},  # type: ignore[arg-type]
                )
            except APITimeoutError:
                raise CaptionError(f"{self.name} gave no answer in {self.client.timeout:g} seconds") from None
            except APIConnectionError as error:
                raise CaptionError(f"{self.name} cannot be reached: {error.__cause__ or error}") from error
            except APIStatusError as error:
                raise CaptionError(f"{self.name} refused with status {error.status_code}: {error.message}") from error
            except OpenAIError as error:
                raise CaptionError(f"{self.name} cannot be asked: {error}") from error
            try:
                text = answer.choices[0].message.content or ""
            except (AttributeError, IndexError, TypeError):  # not the JSON of this API at all
                text = str(answer)[:1000]
            try:
                return Description.model_validate_json(unfenced(text))
            except ValidationError as error:
                wrong = reason_of(error)
                messages += [
                    {"role": "assistant", "content": text},
                    {"role": "user", "content": RETURNED.format(reason=wrong)},
                ]
        raise CaptionError(f"{self.name} answered {self.tries} times with something else than asked for: {wrong}")


def spread(frames: int, most: int = FRAMES) -> list[int]:
    """Choose frames spread evenly over a clip, the first and the last among them."""
    return torch.linspace(0, frames - 1, min(frames, most)).round().int().tolist()


def picture_part(frame: Tensor) -> dict[str, Any]:
    """Turn a frame (3, Y, X) in [-1, 1] into a part of a message."""
    kept = io.BytesIO()
    Image.fromarray(to_bytes(frame).permute(1, 2, 0).contiguous().numpy()).save(kept, "PNG")
    data = base64.b64encode(kept.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def unfenced(text: str) -> str:
    """Take JSON out of the fence that many models put around it."""
    text = text.strip()
    if text.startswith("```"):
        text = text.split("\n", 1)[-1].rsplit("```", 1)[0]
    return text


def reason_of(error: ValidationError) -> str:
    """Say in one line what does not fit."""
    return "; ".join(f"{'.'.join(map(str, one['loc'])) or 'answer'}: {one['msg']}" for one in error.errors())
