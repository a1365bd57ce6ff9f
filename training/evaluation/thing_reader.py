"""The part of the judge that reads single things: it follows the thing of each colour, and compares two of them.

Attention of one query per colour finds a thing in every frame; the same layers then classify the things of all colours,
so that what is learned of red things holds for green ones. Targets, loss and decoding are those of `reading.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from training.evaluation.reading import (
    CLASSES,
    PAIR_CLASSES,
    PALETTE,
    SCENE_CLASSES,
    SEEN,
    THING_CLASSES,
    Key,
    Reading,
    mirror_value,
    opposite,
)

IGNORED = -100  # target of an attribute that does not apply, as in `cross_entropy`
PRESENT = "present"
# The index of each class after mirroring, for attributes that have a side.
MIRRORED = {
    name: [classes.index(mirror_value(value)) for value in classes]
    for name, classes in CLASSES.items()
    if any(mirror_value(value) != value for value in classes)
}
OPPOSITE_RELATIONS = [PAIR_CLASSES["relation"].index(opposite(value)) for value in PAIR_CLASSES["relation"]]


class ThingReader(nn.Module):
    """Classify the thing of each colour of PALETTE, and the relation of every two, from feature maps (B, F, D, H, W).

    `context` is the size of the features of the whole clip.
    """

    def __init__(self, in_channels: int, context: int, frames: int, width: int = 64, hidden: int = 256):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(len(PALETTE), width))
        self.key, self.value = nn.Linear(in_channels, width), nn.Linear(in_channels, width)
        per_frame = width + 4  # features, centre x and y, spread, and how well the colour fits
        self.track = nn.Linear(frames * per_frame, hidden)
        self.context = nn.Linear(context, hidden)
        self.thing = nn.Linear(hidden, hidden)
        self.figure, self.ground = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.present = nn.Linear(hidden, 1)
        self.heads = nn.ModuleList(nn.Linear(hidden, len(classes)) for classes in THING_CLASSES.values())
        self.relation = nn.Linear(hidden, len(PAIR_CLASSES["relation"]))

    def forward(self, maps: Tensor, context: Tensor) -> dict[str, Tensor]:
        """Return logits: "present" (B, colours), (B, colours, classes) of THING_CLASSES, and "relation" (B, colours,
        colours, classes) of the first to the second.
        """
        _, _, _, H, W = maps.shape
        tokens = rearrange(maps, "B F D H W -> B F (H W) D")
        fit = torch.einsum("qd,bfnd->bfqn", self.queries, self.key(tokens)) / self.queries.shape[1] ** 0.5
        attention = fit.softmax(-1)
        features = attention @ self.value(tokens)  # (B, F, colours, width)
        y, x = torch.meshgrid(*(torch.linspace(-1, 1, size, device=maps.device) for size in (H, W)), indexing="ij")
        places = torch.stack([x.flatten(), y.flatten()], dim=1).to(attention)
        centre = attention @ places
        spread = (attention @ places.square()).sum(-1) - centre.square().sum(-1)
        seen = torch.stack([spread, fit.amax(-1)], dim=-1)
        track = rearrange(torch.cat([features, centre, seen], dim=-1), "B F Q D -> B Q (F D)")
        things = F.relu(self.track(track) + self.context(context)[:, None])
        things = things + F.relu(self.thing(things))
        pairs = F.relu(self.figure(things)[:, :, None] + self.ground(things)[:, None])
        logits = {name: head(things) for name, head in zip(THING_CLASSES, self.heads, strict=True)}
        return {PRESENT: self.present(things)[..., 0], **logits, "relation": self.relation(pairs)}

    def muon_params(self) -> list[tuple[nn.Linear, int]]:
        """List the layers that Muon optimizes, each with the number of matrices in its weight."""
        return [(one, 1) for one in (self.key, self.value, self.track, self.context, self.thing)]


def reading_targets(readings: Sequence[Reading]) -> dict[str, Tensor]:
    """Return training targets of clips: class indices, or IGNORED where an attribute does not apply.

    (B,) of SCENE_CLASSES, (B, colours) of THING_CLASSES, (B, colours, colours) of PAIR_CLASSES, and "present" (B,
    colours), 1 for the colours that are seen.
    """
    colours = len(PALETTE)
    targets = {name: torch.full((len(readings),), IGNORED) for name in SCENE_CLASSES}
    targets |= {name: torch.full((len(readings), colours), IGNORED) for name in THING_CLASSES}
    targets |= {name: torch.full((len(readings), colours, colours), IGNORED) for name in PAIR_CLASSES}
    targets[PRESENT] = torch.zeros(len(readings), colours)
    for number, reading in enumerate(readings):
        for key, value in reading.items():
            place = (number, *(PALETTE.index(colour) for colour in key[:-1]))
            if key[-1] == "colour":
                targets[PRESENT][place] = 1
            else:
                targets[key[-1]][place] = CLASSES[key[-1]].index(value)
    return targets


def reading_loss(logits: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    """Return the sum of the mean cross-entropies of all attributes where they apply, and five times that of
    "present".
    """
    loss = 5 * F.binary_cross_entropy_with_logits(logits[PRESENT].float(), targets[PRESENT])
    for name in CLASSES:
        total = F.cross_entropy(
            logits[name].float().flatten(0, -2), targets[name].flatten(), ignore_index=IGNORED, reduction="sum"
        )
        loss = loss + total / (targets[name] != IGNORED).sum().clamp(min=1)
    return loss


def merge_mirrored(plain: dict[str, Tensor], mirrored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the mean log-probabilities of clips and of their mirror images, given the logits of both.

    The relation of a to b also takes part in that of b to a.
    """
    merged = {PRESENT: (plain[PRESENT] + mirrored[PRESENT]) / 2}
    for name in CLASSES:
        other = mirrored[name][..., MIRRORED[name]] if name in MIRRORED else mirrored[name]
        merged[name] = (plain[name].log_softmax(-1) + other.log_softmax(-1)) / 2
    swapped = rearrange(merged["relation"], "B a b K -> B b a K")[..., OPPOSITE_RELATIONS]
    merged["relation"] = (merged["relation"] + swapped) / 2
    return merged


def decode_readings(scores: dict[str, Tensor]) -> list[Reading]:
    """Return the most likely value of every key of each clip; keys of colours that are not seen are left out."""
    chosen = {name: scores[name].argmax(-1).cpu() for name in CLASSES}
    readings = []
    for number, present in enumerate((scores[PRESENT] > 0).tolist()):
        seen = [index for index, found in enumerate(present) if found]
        reading: Reading = {(PALETTE[index], "colour"): SEEN for index in seen}
        keys: list[tuple[Key, tuple[int, ...]]] = [((name,), ()) for name in SCENE_CLASSES]
        keys += [((PALETTE[i], name), (i,)) for i in seen for name in THING_CLASSES]
        keys += [
            ((PALETTE[i], PALETTE[j], name), (i, j)) for i in seen for j in seen if i != j for name in PAIR_CLASSES
        ]
        for key, place in keys:
            reading[key] = CLASSES[key[-1]][int(chosen[key[-1]][(number, *place)])]
        readings.append(reading)
    return readings
