"""Caption with any vision-language model of transformers that accepts several images."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captioning.caption import (
    INSTRUCTIONS,
    CaptionError,
    Description,
    VideoCaption,
    instructions_version,
    request_caption,
    sampled_images,
)
from captioning.endpoint import Rejected, one_line, retry_messages
from vae.weights import hash_of_file, weights_in

SCHEMA_INSTRUCTION = " The answer must be the JSON alone, and fit this schema: "
MAX_NEW_TOKENS = 768  # several times what the schema's six texts take


class VisionLanguageCaptioner:
    """A vision-language model such as Qwen/Qwen2.5-VL-3B-Instruct, by name or folder.

    Runs on the GPU in bfloat16 if there is one, else on the CPU in float32. Weights (safetensors only) are loaded for
    the first clip; code from the model's repository is never run. Raises CaptionError for any other kind of model.
    """

    def __init__(self, name: str | Path, tries: int = 3, max_new_tokens: int = MAX_NEW_TOKENS):
        import transformers

        self.name_or_path, self.tries, self.max_new_tokens = str(name), tries, max_new_tokens
        self.name = Path(name).resolve().name if Path(name).is_dir() else str(name)
        self.device, self.dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
        try:
            config = transformers.AutoConfig.from_pretrained(self.name_or_path, trust_remote_code=False)
            if type(config) not in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
                raise ValueError(f"a {config.model_type} does not answer about images")
            self.processor: Any = transformers.AutoProcessor.from_pretrained(self.name_or_path, trust_remote_code=False)
            if not getattr(self.processor, "chat_template", None):
                raise ValueError("it has no chat template, so it cannot be asked")
        except Exception as error:  # models and processors of many authors raise nearly anything
            raise self._load_error(error) from error

    @property
    def version(self) -> str:
        """A hash that changes with the instructions and with the weights in the folder."""
        return self._version

    @cached_property
    def _version(self) -> str:
        weights = weights_in(Path(self.name_or_path))
        return instructions_version(SCHEMA_INSTRUCTION, *([hash_of_file(*weights)] if weights else []))

    @property
    def model(self) -> Any:
        """The model. Raises CaptionError at every access if weights are missing or damaged."""
        if isinstance(self._model, CaptionError):
            raise self._model
        return self._model

    @cached_property
    def _model(self) -> Any:
        """The model, or the error that loading it raised."""
        from transformers import AutoModelForImageTextToText

        try:
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                self.name_or_path,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=self.dtype,
                output_loading_info=True,
            )
            model, info = loaded
            if missing := sorted(info["missing_keys"]):
                raise ValueError(f"{len(missing)} of its weights are missing, {missing[0]} among them")
            return model.to(self.device).eval()
        except Exception as error:  # as above
            return self._load_error(error)

    def _load_error(self, error: Exception) -> CaptionError:
        rule = "a captioner must be the folder of a trained one, or a vision-language model of transformers"
        return CaptionError(f"{rule}; got {self.name_or_path!r} ({one_line(error)})")

    def describe(self, video: Tensor) -> VideoCaption:
        """Caption a clip (3, F, Y, X) in [-1, 1]. Raises CaptionError if no answer fits the schema."""
        model, question = self.model, question_turn(video)

        def answer(rejected: Rejected) -> str:
            retries = [{**turn, "content": [text_part(turn["content"])]} for turn in retry_messages(rejected)]
            return self._answer(model, [question, *retries])

        return request_caption(self.name, answer, self.tries)

    @torch.inference_mode()
    def _answer(self, model: Any, turns: list[dict[str, Any]]) -> str:
        """Return the greedy answer. Raises CaptionError if the model fails on these inputs."""
        try:
            inputs = self.processor.apply_chat_template(
                turns,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                sanitize_control_tokens=True,  # a rejected answer that is sent back is text, whatever it contains
            ).to(self.device, self.dtype)
            ids = model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False)
            return self.processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
        except Exception as error:  # as above
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise CaptionError(f"{self.name} cannot describe it: {reason}") from error


def question_turn(video: Tensor) -> dict[str, Any]:
    """Return the chat turn that asks for the caption of a clip (3, F, Y, X) in [-1, 1]."""
    images = [{"type": "image", "image": image} for image in sampled_images(video)]
    instructions = INSTRUCTIONS + SCHEMA_INSTRUCTION + json.dumps(Description.model_json_schema())
    return {"role": "user", "content": [*images, text_part(instructions)]}


def text_part(text: str) -> dict[str, Any]:
    """Wrap text as a part of a chat turn."""
    return {"type": "text", "text": text}
