"""A moving picture of what is being dreamed, for those who watch: written while a clip is made, and gone when it is.

Only a queue that has the folder has previews, so that a batch which nobody watches pays nothing for them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

PREVIEWS = "previews"  # the folder, in a queue's
SIDE, FRAMES = 192, 24  # the most pixels of a preview's longer side, and frames
LEAST_SIDE = 64
QUALITY = 60  # of WebP


def path_of(folder: Path, id: str) -> Path:
    """Return where the preview of a job lies in a queue's folder."""
    return folder / PREVIEWS / f"{id}.webp"


def preview_of(folder: Path, id: str) -> int | None:
    """Return a number that grows with every new preview of a job; None where there is none."""
    with suppress(FileNotFoundError):
        return path_of(folder, id).stat().st_mtime_ns // 10**6
    return None


def viewer(folder: Path, fps: float) -> Callable[[str, Tensor], None] | None:
    """Return what shows a job's view (3, F, Y, X) to those who watch a queue; None where nobody does."""
    if not (folder / PREVIEWS).is_dir():
        return None
    return lambda id, view: show(path_of(folder, id), view, fps)


def show(path: Path, view: Tensor, fps: float) -> None:
    """Write a view (3, F, Y, X) in [-1, 1] as a small animated WebP, whole or not at all. A disk that is full, or a
    folder that was removed, stops no clip.
    """
    from PIL import Image

    from vae.pixels import to_bytes

    every = -(-view.shape[1] // FRAMES)
    pictures = to_bytes(view[:, ::every]).permute(1, 2, 3, 0).cpu().numpy()
    images = [Image.fromarray(picture) for picture in pictures]
    for image in images:
        image.thumbnail((SIDE, SIDE))
    draft = path.with_name(f".{path.name}")
    with suppress(OSError):
        settings = {"quality": QUALITY, "method": 0, "duration": round(1000 * every / fps), "loop": 0}
        images[0].save(draft, "WEBP", save_all=True, append_images=images[1:], **settings)
        os.replace(draft, path)


def clear(folder: Path, id: str) -> None:
    """Remove a job's preview, if it has one."""
    path_of(folder, id).unlink(missing_ok=True)
