"""What all captioners share: the caption, its schema, and the frames that a model sees.

The captioner of `coca.py` writes one text. A vision-language model, behind an OpenAI-compatible endpoint or loaded by
transformers, returns JSON of one schema; an answer that does not fit is sent back with the reason.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from einops import rearrange
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from captioning.endpoint import AnswerError, Rejected, ask_until_valid
from vae.video.pixels import to_uint8

SHOWN_FRAMES = 8  # of a clip, sent to a vision-language model
MAX_FRAMES, MAX_SIDE = 32, 512  # of a file to caption: frames read, and pixels of their longer side
PARTS = ("subject", "action", "camera", "light", "style")
COCA_FOLDER, COCA_CLASS = (
    "captioner",
    "VideoCoCa",
)  # of a trained captioner: its subfolder, and its class in config.json
INSTRUCTIONS = (
    "You see frames of one video clip, in order. Describe what is seen and nothing else: no guesses about what came "
    "before, no opinions, no mention of frames. Answer with JSON: subject (who or what, with colours, shapes, sizes "
    "and counts), action (what moves, how and where to), camera (how it is placed and moves), light (time of day, "
    "weather, where it comes from), style (photograph, drawing, render and the like), and caption: all of that as one "
    "fluent paragraph of two to four sentences."
)


class CaptionError(ValueError):
    """A clip that could not be captioned, or a captioner that could not be loaded."""


@dataclass(frozen=True)
class VideoCaption:
    """A caption: the text, and one text per part of PARTS if the captioner separates them."""

    text: str
    parts: dict[str, str] = field(default_factory=dict)


class Captioner(Protocol):
    """Caption clips. `name` and `version` are stored with the captions; `version` changes when the output would."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    def describe(self, video: Tensor) -> VideoCaption:
        """Caption a clip (3, F, Y, X) in [-1, 1]. Raises CaptionError on failure."""
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


def instructions_version(*extra: str) -> str:
    """Hash the instructions, the schema and `extra` texts to 8 hexadecimal digits (SHA-256)."""
    schema = {name: value for name, value in Description.model_json_schema().items() if name != "description"}
    text = INSTRUCTIONS + json.dumps(schema) + "".join(extra)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def request_caption(name: str, answer: Callable[[Rejected], str], tries: int) -> VideoCaption:
    """Ask a model until its answer fits the schema (see `ask_until_valid`). Raises CaptionError if none does."""
    try:
        found = ask_until_valid(name, answer, Description, tries)
    except AnswerError as error:
        raise CaptionError(str(error)) from error
    return VideoCaption(found.caption, {part: getattr(found, part) for part in PARTS})


def even_indices(frames: int, count: int) -> list[int]:
    """Return `count` frame indices, evenly spaced from first to last; indices repeat if there are fewer frames."""
    return torch.linspace(0, frames - 1, count).round().int().tolist()


def sampled_images(video: Tensor) -> list[Image.Image]:
    """Return up to SHOWN_FRAMES evenly spaced frames of a clip (3, F, Y, X) in [-1, 1]."""
    indices = even_indices(video.shape[1], min(video.shape[1], SHOWN_FRAMES))
    frames = rearrange(to_uint8(video[:, indices]), "c f y x -> f y x c").contiguous()
    return [Image.fromarray(frame.numpy()) for frame in frames]
