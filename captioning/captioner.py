"""Load a captioner: one trained here, a vision-language model of transformers, or one behind an endpoint."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from captioning.caption import (
    COCA_CLASS,
    COCA_FOLDER,
    INSTRUCTIONS,
    Captioner,
    CaptionError,
    Description,
    VideoCaption,
    instructions_version,
    request_caption,
    sampled_images,
)
from captioning.endpoint import Chat, Rejected, retry_messages
from vae.weights import CONFIG, read_json


def load_captioner(
    name: str | Path = "", endpoint: str = "", model: str = "", key: str | None = None, seconds: float = 60.0
) -> Captioner:
    """Load the captioner `name`: the folder of one trained here, or a vision-language model of transformers; or connect
    to `model` at `endpoint`, with the API `key` and a timeout of `seconds` per answer.

    Raises CaptionError if there is no such captioner, and WeightsError if its folder is damaged.
    """
    if bool(name) == bool(endpoint or model) or bool(endpoint) != bool(model):
        given = {"captioner": name, "endpoint": endpoint, "model": model}
        got = " and ".join(f"{what} {value}" for what, value in given.items() if value) or "none of them"
        raise CaptionError(f"give a captioner, or an endpoint and the model there; got {got}")
    if not seconds > 0:
        raise CaptionError(f"the seconds for an answer must be above 0; got {seconds:g}")
    if endpoint:
        return EndpointCaptioner(endpoint, model, key, seconds)
    folder = Path(name)
    if (folder / CONFIG).is_file() and read_json(folder / CONFIG).get("_class_name") == COCA_CLASS:
        folder = folder.parent
    elif not (folder / COCA_FOLDER).is_dir():
        from captioning.vision_language import VisionLanguageCaptioner

        return VisionLanguageCaptioner(name)
    from captioning.coca import load_coca

    return load_coca(folder)


class EndpointCaptioner:
    """A vision-language model behind an OpenAI-compatible endpoint; takes the arguments of `Chat`."""

    version = instructions_version()

    def __init__(self, url: str, model: str, key: str | None = None, seconds: float = 60.0, tries: int = 3):
        try:
            self.chat = Chat(url, model, key, seconds, tries)
        except ValueError as error:
            raise CaptionError(str(error)) from error

    @property
    def name(self) -> str:
        """The source that captions are stored with."""
        return self.chat.name

    def describe(self, video: Tensor) -> VideoCaption:
        """Caption a clip (3, F, Y, X) in [-1, 1]. Raises CaptionError if no answer fits the schema."""
        images = [image_part(image) for image in sampled_images(video)]
        messages: list[Any] = [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": images}]

        def answer(rejected: Rejected) -> str:
            return self.chat.answer([*messages, *retry_messages(rejected)], Description)

        return request_caption(self.name, answer, self.chat.tries)


def image_part(image: Image.Image) -> dict[str, Any]:
    """Encode an image as a part of a chat message (PNG in a data URL)."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
