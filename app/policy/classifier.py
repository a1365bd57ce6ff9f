"""An optional image classifier (transformers) that checks generated clips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from app.policy.errors import PolicyError
from captioning.endpoint import one_line
from vae.video.pixels import to_uint8

DEFAULT_REFUSED = (
    "nsfw",
    "porn",
    "hentai",
    "sexual",
    "nude",
    "nudity",
    "explicit",
    "unsafe",
    "gore",
    "violence",
    "violent",
)
BATCH = 16  # frames at a time


class Classifier:
    """An image classifier by hub name or folder, such as Falconsai/nsfw_image_detection.

    `refuse` are the labels to refuse, by default those of `DEFAULT_REFUSED` that the model has; `threshold` is the
    probability, 0 to 1, from which on a frame is refused. Only safetensors are loaded, and no remote code is run.
    Raises PolicyError for a model that cannot be loaded, and for labels that it does not have.
    """

    def __init__(self, name: str | Path, refuse: list[str] | None = None, threshold: float = 0.5):
        import transformers

        if not 0 < threshold <= 1:
            raise PolicyError(f"a threshold must be above 0 and at most 1; got {threshold:g}")
        self.name, self.threshold = Path(name).name, threshold
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self.processor: Any = transformers.AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
            model, loading_info = transformers.AutoModelForImageClassification.from_pretrained(
                name, trust_remote_code=False, use_safetensors=True, output_loading_info=True
            )
            if missing := sorted(loading_info["missing_keys"]):
                raise ValueError(f"{len(missing)} of its weights are missing, {missing[0]} among them")
        except Exception as error:  # loading a third-party model can raise nearly anything
            rule = "a classifier must be an image classifier of transformers, by name or folder"
            raise PolicyError(f"{rule}; got {str(name)!r} ({one_line(error)})") from error
        self.model: Any = model.to(self.device).eval()
        labels = {int(index): str(label) for index, label in model.config.id2label.items()}
        wanted = {label.lower() for label in refuse or DEFAULT_REFUSED}
        self.refused = {index: label for index, label in labels.items() if label.lower() in wanted}
        unknown = wanted - {label.lower() for label in labels.values()} if refuse else not self.refused
        if unknown:
            raise PolicyError(f"labels to refuse must be among {', '.join(labels.values())}; name those with --refuse")

    @torch.inference_mode()
    def worst(self, frames: Tensor) -> tuple[str, float]:
        """Return the refused label with the highest probability in any of the frames (3, F, Y, X) in [-1, 1], and that
        probability.
        """
        images = [Image.fromarray(one) for one in rearrange(to_uint8(frames), "c f y x -> f y x c").cpu().numpy()]
        multi_label = self.model.config.problem_type == "multi_label_classification"
        indices = list(self.refused)
        worst = "", 0.0
        for start in range(0, len(images), BATCH):
            inputs = self.processor(images=images[start : start + BATCH], return_tensors="pt").to(self.device)
            logits = self.model(**inputs).logits.float()
            probabilities = (logits.sigmoid() if multi_label else logits.softmax(1))[:, indices].cpu()
            if not probabilities.isfinite().all():
                raise PolicyError(f"{self.name} must give finite probabilities to keep a clip; got NaN or infinity")
            per_frame = probabilities.max(1).values if multi_label else probabilities.sum(1)
            frame = int(per_frame.argmax())
            if per_frame[frame] > worst[1]:
                worst = self.refused[indices[int(probabilities[frame].argmax())]], float(per_frame[frame])
        return worst
