"""Sampled clips, before they are decoded and written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dit.canvas import Canvas, SoundPart
from dit.request import Request


@dataclass(frozen=True)
class Sample:
    """A sampled clip: the resolved request, and the latents (C, T, H, W); the first follow the last if `periodic`.

    `trim` is how many frames at both ends are not shown, `sound` what is kept of given soundtracks, placed in the clip.
    """

    request: Request
    latents: Tensor
    periodic: bool = False
    trim: tuple[int, int] = (0, 0)
    sound: tuple[SoundPart, ...] = ()

    @classmethod
    def of(cls, request: Request, latents: Tensor, canvas: Canvas) -> Sample:
        """Return the sample of a canvas, whose sound is placed from the first frame that is shown."""
        sound = tuple(replace(part, at=part.at - canvas.trim[0] / canvas.fps) for part in canvas.sound)
        return cls(request, latents, canvas.periodic, canvas.trim, sound)


def trim_frames(pieces: Iterable[Tensor], lead: int, tail: int) -> Iterator[Tensor]:
    """Leave out the first and last frames of a clip that comes in pieces (3, F, Y, X)."""
    held: Tensor | None = None
    for piece in pieces:
        skipped = min(lead, piece.shape[1])
        piece, lead = piece[:, skipped:], lead - skipped
        held = piece if held is None else torch.cat([held, piece], 1)
        ready = held.shape[1] - tail
        if ready > 0:
            yield held[:, :ready]
            held = held[:, ready:]
