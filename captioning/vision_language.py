"""A captioner of transformers: any vision-language model that can be asked about several pictures, by its name."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captioning.captioner import (
    INSTRUCTIONS,
    Caption,
    CaptionError,
    Description,
    asked,
    pictures,
    version_of,
)
from captioning.endpoint import Wrong, returned, shortened
from vae.weights import hash_of_file, weights_in

FITTING = " The answer must be the JSON alone, and fit this schema: "
TOKENS = 768  # of one answer, several times what the schema's six texts take


class VisionLanguage:
    """A vision-language model such as Qwen/Qwen2.5-VL-3B-Instruct, by name or folder.

    It runs on the GPU where there is one, in bfloat16, or else in float32. Its weights, safetensors only, are loaded
    when the first clip is described; no code that comes with them is run. Raises CaptionError for any other model.
    """

    def __init__(self, name: str | Path, tries: int = 3, tokens: int = TOKENS):
        import transformers

        self.place, self.tries, self.tokens = str(name), tries, tokens
        self.name = Path(name).resolve().name if Path(name).is_dir() else str(name)
        self.device, self.dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
        try:
            config = transformers.AutoConfig.from_pretrained(self.place, trust_remote_code=False)
            if type(config) not in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
                raise ValueError(f"a {config.model_type} does not answer about pictures")
            self.processor: Any = transformers.AutoProcessor.from_pretrained(self.place, trust_remote_code=False)
            if not getattr(self.processor, "chat_template", None):
                raise ValueError("it has no chat template, so it cannot be asked")
        except Exception as error:  # models and processors of many makers raise nearly anything
            raise self._refusal(error) from error

    @property
    def version(self) -> str:
        """What changes when the model is asked otherwise, or is another in the same folder."""
        return self._version

    @cached_property
    def _version(self) -> str:
        weights = weights_in(Path(self.place))
        return version_of(FITTING, *([hash_of_file(*weights)] if weights else []))

    @property
    def model(self) -> Any:
        """The model itself. Raises CaptionError where weights are missing or damaged, every time."""
        if isinstance(self._model, CaptionError):
            raise self._model
        return self._model

    @cached_property
    def _model(self) -> Any:
        """The model, or why there is none."""
        from transformers import AutoModelForImageTextToText

        try:
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                self.place, trust_remote_code=False, use_safetensors=True, dtype=self.dtype, output_loading_info=True
            )
            model, told = loaded
            if missing := sorted(told["missing_keys"]):
                raise ValueError(f"{len(missing)} of its weights are missing, {missing[0]} among them")
            return model.to(self.device).eval()
        except Exception as error:  # as above
            return self._refusal(error)

    def _refusal(self, error: Exception) -> CaptionError:
        rule = "a captioner must be a folder of our own, or a vision-language model of transformers by name or folder"
        return CaptionError(f"{rule}; got {self.place!r} ({shortened(error)})")

    def describe(self, video: Tensor) -> Caption:
        """Describe a clip (3, F, Y, X) in [-1, 1]. Raises CaptionError where no answer fits."""
        model, question = self.model, question_about(video)

        def answer(wrong: Wrong) -> str:
            said = [{**turn, "content": [text_part(turn["content"])]} for turn in returned(wrong)]
            return self._answer(model, [question, *said])

        return asked(self.name, answer, self.tries)

    @torch.inference_mode()
    def _answer(self, model: Any, turns: list[dict[str, Any]]) -> str:
        """Return the likeliest answer. Raises CaptionError where the model cannot see or say anything."""
        try:
            given = self.processor.apply_chat_template(
                turns,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                sanitize_control_tokens=True,  # a wrong answer that is sent back is words, whatever it says
            ).to(self.device, self.dtype)
            ids = model.generate(**given, max_new_tokens=self.tokens, do_sample=False)
            return self.processor.batch_decode(ids[:, given["input_ids"].shape[1] :], skip_special_tokens=True)[0]
        except Exception as error:  # as above
            reason = f"{type(error).__name__}: {shortened(error)}"
            raise CaptionError(f"{self.name} cannot describe it: {reason}") from error


def question_about(video: Tensor) -> dict[str, Any]:
    """Return the turn that asks about a clip (3, F, Y, X) in [-1, 1]."""
    shown = [{"type": "image", "image": picture} for picture in pictures(video)]
    words = INSTRUCTIONS + FITTING + json.dumps(Description.model_json_schema())
    return {"role": "user", "content": [*shown, text_part(words)]}


def text_part(text: str) -> dict[str, Any]:
    """Turn words into a part of a turn."""
    return {"type": "text", "text": text}
