"""Clips to words: whoever describes them, a caption has the same parts.

Our own captioner (`coca.py`) writes one text. A vision-language model, behind an OpenAI-compatible endpoint or here by
its transformers name, is asked for JSON of one schema; what does not fit it is sent back with the reason.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from einops import rearrange
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from captioning.endpoint import AnswerError, Chat, Wrong, fitting, returned
from vae.video.pixels import to_uint8
from vae.weights import CONFIG, read_json

FRAMES = 8  # of a clip that a model is shown
MOST_FRAMES, LONGEST_SIDE = 32, 512  # of a file that is read to be described: frames, and pixels of each
PARTS = ("subject", "action", "camera", "light", "style")
OWN = ("captioner", "VideoCoCa")  # our own captioner's folder, and its class as its config.json says
INSTRUCTIONS = (
    "You see frames of one video clip, in order. Describe what is seen and nothing else: no guesses about what came "
    "before, no opinions, no mention of frames. Answer with JSON: subject (who or what, with colours, shapes, sizes "
    "and counts), action (what moves, how and where to), camera (how it is placed and moves), light (time of day, "
    "weather, where it comes from), style (photograph, drawing, render and the like), and caption: all of that as one "
    "fluent paragraph of two to four sentences."
)


class CaptionError(ValueError):
    """A clip that could not be described, or a captioner that cannot be had: why, and what would help."""


@dataclass(frozen=True)
class Caption:
    """What a captioner says of a clip: one text, and what it says of each of PARTS, if it tells them apart."""

    text: str
    parts: dict[str, str] = field(default_factory=dict)


class Captioner(Protocol):
    """Whoever describes clips; captions say its `name`, and the `version` that changes when its words would."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    def describe(self, video: Tensor) -> Caption:
        """Describe a clip (3, F, Y, X) in [-1, 1]. Raises CaptionError where that cannot be done."""
        ...


class Description(BaseModel):
    """What a clip shows, in parts, and all of it as one text: the schema that an answer must fit."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)

    subject: str = Field(min_length=1)
    action: str = Field(min_length=1)
    camera: str = Field(min_length=1)
    light: str = Field(min_length=1)
    style: str = Field(min_length=1)
    caption: str = Field(min_length=1)


def version_of(*said: str) -> str:
    """Return a short name for what a model is asked: instructions, schema and what is `said` beside them."""
    schema = {name: value for name, value in Description.model_json_schema().items() if name != "description"}
    asked = INSTRUCTIONS + json.dumps(schema) + "".join(said)
    return hashlib.sha256(asked.encode()).hexdigest()[:8]


def load_captioner(
    name: str | Path = "", endpoint: str = "", model: str = "", key: str | None = None, seconds: float = 60.0
) -> Captioner:
    """Load our own captioner from its folder, or a vision-language model of transformers by name or folder; or ask a
    `model` behind an `endpoint`, with its `key`, within `seconds` an answer.

    Raises CaptionError where there is none, and WeightsError where its folder is damaged.
    """
    if bool(name) == bool(endpoint or model) or bool(endpoint) != bool(model):
        given = {"captioner": name, "endpoint": endpoint, "model": model}
        got = " and ".join(f"{what} {value}" for what, value in given.items() if value) or "none of them"
        raise CaptionError(f"give a captioner, or an endpoint and the model there; got {got}")
    if not seconds > 0:
        raise CaptionError(f"the seconds for an answer must be above 0; got {seconds:g}")
    if endpoint:
        return Endpoint(endpoint, model, key, seconds)
    folder, (inner, kind) = Path(name), OWN
    if (folder / CONFIG).is_file() and read_json(folder / CONFIG).get("_class_name") == kind:
        folder = folder.parent
    elif not (folder / inner).is_dir():
        from captioning.vision_language import VisionLanguage

        return VisionLanguage(name)
    from captioning.coca import load_coca

    return load_coca(folder)


def asked(name: str, answer: Callable[[Wrong], str], tries: int) -> Caption:
    """Have a model answer until it fits the schema, as `fitting` does. Raises CaptionError where it does not."""
    try:
        found = fitting(name, answer, Description, tries)
    except AnswerError as error:
        raise CaptionError(str(error)) from error
    return Caption(found.caption, {part: getattr(found, part) for part in PARTS})


class Endpoint:
    """A vision-language model behind an OpenAI-compatible endpoint; the arguments are those of `Chat`."""

    version = version_of()

    def __init__(self, url: str, model: str, key: str | None = None, seconds: float = 60.0, tries: int = 3):
        try:
            self.chat = Chat(url, model, key, seconds, tries)
        except ValueError as error:
            raise CaptionError(str(error)) from error

    @property
    def name(self) -> str:
        """What captions say of where they come from."""
        return self.chat.name

    def describe(self, video: Tensor) -> Caption:
        """Describe a clip (3, F, Y, X) in [-1, 1]. Raises CaptionError where no answer fits."""
        shown = [picture_part(picture) for picture in pictures(video)]
        messages: list[Any] = [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": shown}]

        def answer(wrong: Wrong) -> str:
            return self.chat.answer([*messages, *returned(wrong)], Description)

        return asked(self.name, answer, self.chat.tries)


def evenly(frames: int, count: int) -> list[int]:
    """Choose `count` of a clip's frames, spread evenly, the first and the last among them; few ones more than once."""
    return torch.linspace(0, frames - 1, count).round().int().tolist()


def pictures(video: Tensor) -> list[Image.Image]:
    """Choose the frames of a clip (3, F, Y, X) in [-1, 1] that a model is shown."""
    chosen = rearrange(
        to_uint8(video[:, evenly(video.shape[1], min(video.shape[1], FRAMES))]), "c f y x -> f y x c"
    ).contiguous()
    return [Image.fromarray(frame.numpy()) for frame in chosen]


def picture_part(picture: Image.Image) -> dict[str, Any]:
    """Turn a picture into a part of a message that is sent."""
    kept = io.BytesIO()
    picture.save(kept, "PNG")
    data = base64.b64encode(kept.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
