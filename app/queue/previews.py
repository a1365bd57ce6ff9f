"""A moving picture of what is being dreamed, for those who watch: written while a clip is made, and gone when it is.

Only a queue that has the folder has previews, so that a batch which nobody watches pays nothing for them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

PREVIEWS = "previews"  # the folder, in a queue's
SIDE, FRAMES = 192, 24  # the most pixels of a preview's longer side, and frames
QUALITY = 60  # of WebP
SHARE = 0.03  # of the time that dreaming takes
FIRST_SECONDS = 0.015  # that a preview takes, before one was written: 17 frames of 64 x 64 took 14 to 18 ms


def path_of(folder: Path, id: str) -> Path:
    """Return where the preview of a job lies in a queue's folder."""
    return folder / PREVIEWS / f"{id}.webp"


def preview_of(folder: Path, id: str) -> int | None:
    """Return a number that grows with every new preview of a job; None where there is none."""
    with suppress(FileNotFoundError):
        return path_of(folder, id).stat().st_mtime_ns // 10**6
    return None


def viewer(folder: Path, ids: Sequence[str], fps: float) -> Viewer | None:
    """Return what shows some jobs, by their numbers, to those who watch a queue; None where nobody does."""
    return Viewer(folder, ids, fps) if (folder / PREVIEWS).is_dir() else None


class Viewer:
    """Shows views (3, F, Y, X) of jobs that are dreamed, as often as a small share of the time allows: all that are
    dreamed together, or none of them.
    """

    def __init__(self, folder: Path, ids: Sequence[str], fps: float):
        self.folder, self.ids, self.fps = folder, ids, fps
        self.begun, self.spent, self.takes = time.monotonic(), 0.0, FIRST_SECONDS
        self.seen: set[int] = set()  # jobs of which a view came since it was last asked whether there is time
        self.showing = False

    def __call__(self, number: int, view: Tensor) -> None:
        now = time.monotonic()
        if not self.seen or number in self.seen:
            self.seen = set()
            self.showing = self.spent + len(self.ids) * self.takes <= SHARE * (now - self.begun)
        self.seen.add(number)
        if self.showing:
            show(path_of(self.folder, self.ids[number]), view, self.fps)
            self.takes = time.monotonic() - now
            self.spent += self.takes


def show(path: Path, view: Tensor, fps: float) -> None:
    """Write a view (3, F, Y, X) in [-1, 1] as a small animated WebP, whole or not at all. A disk that is full, or a
    folder that was removed, stops no clip.
    """
    from PIL import Image

    from vae.video.pixels import to_uint8

    every = -(-view.shape[1] // FRAMES)
    pictures = to_uint8(view[:, ::every]).permute(1, 2, 3, 0).cpu().numpy()
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
