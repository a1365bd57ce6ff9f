"""Score how well texts match a clip, and how good it looks, by models that embed images and texts in one space.

The captioner of `coca.py` scores matches. A CLIP model of open_clip scores both, averaged over frames of the clip.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from captioning.caption import COCA_FOLDER, CaptionError, sampled_images
from vae.weights import CONFIG

AESTHETIC_PROMPTS = ("Beautiful photo.", "Ugly photo.")  # as for CLIP-IQA (Wang et al. 2022, arXiv 2207.12396)


class Matcher(Protocol):
    """Score texts against clips. `name` and `version` are stored with the scores; `version` changes when they would."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    def match(self, videos: Tensor, texts: list[str]) -> Tensor:
        """Return the cosine similarities (B, texts) of clips (B, 3, F, Y, X) in [-1, 1] and texts."""
        ...


class OpenClipMatcher:
    """A CLIP model of open_clip, by the names of its architecture and of its weights there, or a file of weights.

    Raises CaptionError if open_clip does not have it.
    """

    def __init__(self, architecture: str, weights: str):
        import open_clip

        self.name = self.version = f"{architecture}:{weights}"
        try:
            loaded: Any = open_clip.create_model_from_pretrained(architecture, pretrained=weights)
        except (RuntimeError, OSError, ValueError, AssertionError) as error:
            rule = "a matcher must be a captioner's folder, or ARCHITECTURE:WEIGHTS of open_clip"
            raise CaptionError(f"{rule}; got {self.name!r}: {str(error).splitlines()[0]}") from error
        self.model, self.preprocess = loaded
        self.model.eval()
        self.tokenizer: Any = open_clip.get_tokenizer(architecture)

    @torch.no_grad()
    def match(self, videos: Tensor, texts: list[str]) -> Tensor:
        """Return the cosine similarities (B, texts) of clips (B, 3, F, Y, X) in [-1, 1] and texts, averaged over
        frames.
        """
        text_features = F.normalize(self.model.encode_text(self.tokenizer(texts)), dim=-1)
        image_features = [F.normalize(self.model.encode_image(self._frames(video)), dim=-1) for video in videos]
        return torch.stack([(frames @ text_features.T).mean(0) for frames in image_features])

    @torch.no_grad()
    def aesthetic_scores(self, videos: Tensor) -> Tensor:
        """Return the probability (B,) that the first of AESTHETIC_PROMPTS describes a clip, rather than the second."""
        return (self.model.logit_scale.exp() * self.match(videos, list(AESTHETIC_PROMPTS))).softmax(-1)[:, 0]

    def _frames(self, video: Tensor) -> Tensor:
        return torch.stack([self.preprocess(image) for image in sampled_images(video)])


def load_matcher(name: str | Path) -> Matcher:
    """Load a captioner trained here from its folder, or a model of open_clip by ARCHITECTURE:WEIGHTS.

    Raises CaptionError if there is none, and WeightsError if its folder is damaged.
    """
    path = Path(name)
    folder = path.parent if path.name == COCA_FOLDER and (path / CONFIG).is_file() else path
    if (folder / COCA_FOLDER).is_dir():
        from captioning.coca import load_coca

        return load_coca(folder)
    return OpenClipMatcher(*str(name).partition(":")[::2])
