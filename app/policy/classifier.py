"""An image classifier of transformers that looks at what was made, by choice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from app.policy.policy import PolicyError
from captioning.endpoint import shortened
from vae.video.pixels import to_uint8

BAD = ("nsfw", "porn", "hentai", "sexual", "nude", "nudity", "explicit", "unsafe", "gore", "violence", "violent")
BATCH = 16  # frames at a time


class Classifier:
    """An image classifier by name or folder, such as Falconsai/nsfw_image_detection.

    `refuse` are its labels that may not be seen, by default those that are called as classifiers of this kind call
    them; `threshold` is how sure it must be, 0 to 1. Its weights are safetensors, and no code that comes with them is
    run. Raises PolicyError for any other model, and for labels that it does not have.
    """

    def __init__(self, name: str | Path, refuse: list[str] | None = None, threshold: float = 0.5):
        import transformers

        if not 0 < threshold <= 1:
            raise PolicyError(f"a threshold must lie above 0 and be at most 1; got {threshold:g}")
        self.name, self.threshold = Path(name).name, threshold
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self.processor: Any = transformers.AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
            model, told = transformers.AutoModelForImageClassification.from_pretrained(
                name, trust_remote_code=False, use_safetensors=True, output_loading_info=True
            )
            if missing := sorted(told["missing_keys"]):
                raise ValueError(f"{len(missing)} of its weights are missing, {missing[0]} among them")
        except Exception as error:  # models of many makers raise nearly anything
            rule = "a classifier must be an image classifier of transformers, by name or folder"
            raise PolicyError(f"{rule}; got {str(name)!r} ({shortened(error)})") from error
        self.model: Any = model.to(self.device).eval()
        labels = {int(place): str(label) for place, label in model.config.id2label.items()}
        wanted = {label.lower() for label in refuse or BAD}
        self.refused = {place: label for place, label in labels.items() if label.lower() in wanted}
        unknown = wanted - {label.lower() for label in labels.values()} if refuse else not self.refused
        if unknown:
            raise PolicyError(f"labels to refuse must be among {', '.join(labels.values())}; name those with --refuse")

    @torch.inference_mode()
    def worst(self, frames: Tensor) -> tuple[str, float]:
        """Return how sure it is, 0 to 1, that something refused is seen in any of (3, F, Y, X) in [-1, 1], and what."""
        pictures = [Image.fromarray(one) for one in rearrange(to_uint8(frames), "c f y x -> f y x c").cpu().numpy()]
        several = self.model.config.problem_type == "multi_label_classification"
        places = list(self.refused)
        found = "", 0.0
        for start in range(0, len(pictures), BATCH):
            given = self.processor(images=pictures[start : start + BATCH], return_tensors="pt").to(self.device)
            logits = self.model(**given).logits.float()
            shares = (logits.sigmoid() if several else logits.softmax(1))[:, places].cpu()
            if not shares.isfinite().all():
                raise PolicyError(f"a clip to keep must be one that {self.name} can judge; it cannot tell")
            sure = shares.max(1).values if several else shares.sum(1)
            most = int(sure.argmax())
            if sure[most] > found[1]:
                found = self.refused[places[int(shares[most].argmax())]], float(sure[most])
        return found
