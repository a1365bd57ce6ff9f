"""A diffusion transformer with the text encoder that is trained together with it, as one module.

One module, so that accelerate synchronizes the gradients of both, and a bf16 copy or an EMA covers both.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captioning.prompt_encoder import PromptEncoder
from captioning.text_encoder import TextEmbeddings, tokenize
from dit.model import DiT
from dit.packing import Pack
from training.muon import MuonParams


class TextConditionedDiT(nn.Module):
    """Predict the velocity of a pack from its captions; with a prompt encoder also the cameras that they name."""

    # Checkpoints of version 0.1 hold the weights of the DiT alone.
    old_weight_names: ClassVar = {
        **{old: f"dit.{new}" for old, new in DiT.old_weight_names.items()},
        **{part: f"dit.{part}" for part in ("patch_embed", "pos_embed", "conditioning", "cond_in", "modulation")},
        **{part: f"dit.{part}" for part in ("blocks", "out_scale", "proj_out")},
    }

    def __init__(self, dit: DiT, prompt_encoder: PromptEncoder | None = None):
        super().__init__()
        self.dit, self.prompt_encoder = dit, prompt_encoder

    def forward(self, batch: Pack, text: TextEmbeddings | Tensor, token_counts: tuple[int, ...]):
        """Return the velocity (N, P), and the camera velocity (B, 6) and logit (B,) read in the captions, or None.

        `text` is embeddings, or token ids (B, L) for the prompt encoder.
        """
        if isinstance(text, TextEmbeddings):
            return self.dit(batch, text.token_embeddings, text.pooled, text.token_counts), None
        assert self.prompt_encoder is not None, "token ids need a prompt encoder"
        lengths = torch.tensor(token_counts, device=text.device)
        mask = torch.arange(text.shape[1], device=text.device) < lengths[:, None]
        embeddings, pooled = self.prompt_encoder(text, mask)
        velocity = self.dit(batch, embeddings[mask], pooled, token_counts)
        return velocity, self.prompt_encoder.camera(pooled)

    def muon_params(self) -> MuonParams:
        """List the layers that Muon optimises, each with the number of matrices stacked in its weight."""
        own = [] if self.prompt_encoder is None else self.prompt_encoder.muon_params()
        return [*self.dit.muon_params(), *own]


class CaptionTokens:
    """What `TextCache` is for a frozen text encoder: token ids of captions, truncated, for one that is trained."""

    def __init__(self, tokenizer, device: torch.device):
        self.tokenizer, self.device = tokenizer, device

    def encode(self, captions: list[str]) -> tuple[Tensor, tuple[int, ...]]:
        """Return token ids (B, L) and each caption's token count."""
        ids, counts = tokenize(self.tokenizer, captions, truncate=True)
        return ids.to(self.device), counts


def camera_loss(
    predicted: tuple[Tensor, Tensor], target: Tensor, captions: Tensor | None = None, named: Tensor | None = None
) -> Tensor:
    """Return the loss of the camera that a prompt encoder reads: whether a caption names one, and which.

    `target` (B, CAMERA_VALUES) ends with 1 where the caption names the camera. The sums are divided by the number of
    `captions`, and of those that name the camera, or else by those of `target`.
    """
    velocity, logit = (value.float() for value in predicted)
    names = target[:, -1]
    captions = names.new_tensor(float(len(names))) if captions is None else captions
    named = names.sum().clamp(min=1) if named is None else named
    which = ((velocity - target[:, :-1]).square().mean(1) * names).sum() / named
    return which + F.binary_cross_entropy_with_logits(logit, names, reduction="sum") / captions
