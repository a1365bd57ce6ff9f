"""The camera velocity that a forward pass is given: what its prompt names, or what the request sets in its place."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from captioning.camera import CAMERA_VALUES, camera_velocity_of
from captioning.text_encoder import TextEmbeddings
from dit.guidance import ForwardPass
from dit.request import Request, RequestError
from vae.weights import CONFIG


def reads_camera(transformer) -> bool:
    """Tell whether a transformer reads a camera velocity."""
    return bool(getattr(getattr(transformer, "dit_config", None), "camera", False))


def check_camera(request: Request, is_read: bool) -> None:
    """Raise RequestError where a request sets the camera of a model that does not read it."""
    if request.camera is not None and not is_read:
        raise RequestError(
            "camera must be left out for this model, which was trained without a camera velocity; "
            f"got {request.camera!r}, so leave it out, or name another model"
        )


def camera_rows(
    text: Sequence[TextEmbeddings], requests: Sequence[Request], passes: Sequence[ForwardPass]
) -> list[Tensor] | None:
    """Return the camera velocity (T, CAMERA_VALUES) of each forward pass, or None where no prompt or request has one.

    `text` holds the prompts of all passes, in order; `requests[i]` is the request of pass i. A request's camera takes
    the place of what its prompts name, but not of what its negative prompt does.
    """
    named = [
        row
        for own in text
        for row in (own.pooled.new_zeros(len(own.pooled), CAMERA_VALUES) if own.camera is None else own.camera)
    ]
    if all(own.camera is None for own in text) and all(request.camera is None for request in requests):
        return None
    rows = []
    for row, request, one in zip(named, requests, passes, strict=True):
        if request.camera is not None and one.conditional:
            row = row.new_tensor([*camera_velocity_of(request.camera), 1.0])
        rows.append(row.expand(one.latents.shape[1], -1))
    return rows


def folder_reads_camera(folder: Path) -> bool:
    """Tell whether the transformer of a model folder reads a camera velocity; False where it has no such config."""
    try:
        return json.loads((folder / "transformer" / CONFIG).read_text(encoding="utf-8")).get("camera") is True
    except (OSError, ValueError, AttributeError):
        return False
