"""How well words fit a clip, and how it looks: by models that see pictures and words in one space.

Our own captioner tells the first. Any model of open_clip tells both, of some frames, averaged over the clip.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from captioning.captioner import OWN, CaptionError, pictures
from vae.weights import CONFIG

LOOKS = ("Beautiful photo.", "Ugly photo.")  # as for CLIP-IQA (Wang et al. 2022, arXiv 2207.12396)


class Matcher(Protocol):
    """Whoever says how well words fit; scores say its `name`, and the `version` that changes when they would."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    def match(self, videos: Tensor, texts: list[str]) -> Tensor:
        """Return the cosines (B, texts) between clips (B, 3, F, Y, X) in [-1, 1] and texts."""
        ...


class OpenClip:
    """A model of open_clip's, of some architecture with some weights, both by their names there; or weights of a file.

    Raises CaptionError for what open_clip does not have.
    """

    def __init__(self, architecture: str, weights: str):
        import open_clip

        self.name = self.version = f"{architecture}:{weights}"
        try:
            made: Any = open_clip.create_model_from_pretrained(architecture, pretrained=weights)
        except (RuntimeError, OSError, ValueError, AssertionError) as error:
            rule = "a matcher must be a captioner's folder, or ARCHITECTURE:WEIGHTS of open_clip"
            raise CaptionError(f"{rule}; got {self.name!r}: {str(error).splitlines()[0]}") from error
        self.model, self.prepare = made
        self.model.eval()
        self.words: Any = open_clip.get_tokenizer(architecture)

    @torch.no_grad()
    def match(self, videos: Tensor, texts: list[str]) -> Tensor:
        """Return the cosines (B, texts) between clips (B, 3, F, Y, X) in [-1, 1] and texts, averaged over frames."""
        said = F.normalize(self.model.encode_text(self.words(texts)), dim=-1)
        seen = [F.normalize(self.model.encode_image(self._frames(video)), dim=-1) for video in videos]
        return torch.stack([(frames @ said.T).mean(0) for frames in seen])

    @torch.no_grad()
    def beauty(self, videos: Tensor) -> Tensor:
        """Return how much likelier clips (B, 3, F, Y, X) in [-1, 1] are to be called beautiful than ugly, from 0 to
        1.
        """
        return (self.model.logit_scale.exp() * self.match(videos, list(LOOKS))).softmax(-1)[:, 0]

    def _frames(self, video: Tensor) -> Tensor:
        return torch.stack([self.prepare(picture) for picture in pictures(video)])


def load_matcher(name: str | Path) -> Matcher:
    """Load our own captioner from its folder, or a model of open_clip by ARCHITECTURE:WEIGHTS.

    Raises CaptionError where there is none, and WeightsError where its folder is damaged.
    """
    folder = Path(name)
    inner = folder.parent if folder.name == OWN[0] and (folder / CONFIG).is_file() else folder
    if (inner / OWN[0]).is_dir():
        from captioning.coca import load_coca

        return load_coca(inner)
    return OpenClip(*str(name).partition(":")[::2])
