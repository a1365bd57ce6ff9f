"""Animated previews of running jobs, for those who watch a queue: written while a clip is sampled, removed afterwards.

Only a queue whose folder has a `previews` subfolder gets previews, so that a batch which nobody watches pays nothing
for them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

PREVIEWS = "previews"  # subfolder of the queue's folder
MAX_SIDE, MAX_FRAMES = 192, 24  # the longer side in pixels, and the frames of a preview
QUALITY = 60  # of WebP
TIME_SHARE = 0.03  # of the sampling time that previews may take
FIRST_SECONDS = 0.015  # assumed for the first preview: 17 frames of 64 x 64 took 14 to 18 ms


def preview_path(folder: Path, id: str) -> Path:
    """Return the path of a job's preview in a queue's folder."""
    return folder / PREVIEWS / f"{id}.webp"


def preview_version(folder: Path, id: str) -> int | None:
    """Return a number that grows with every new preview of a job; None where there is none."""
    with suppress(FileNotFoundError):
        return preview_path(folder, id).stat().st_mtime_ns // 10**6
    return None


def preview_writer(folder: Path, ids: Sequence[str], fps: float) -> PreviewWriter | None:
    """Return a preview callback for jobs of a queue; None where the queue has no previews."""
    return PreviewWriter(folder, ids, fps) if (folder / PREVIEWS).is_dir() else None


class PreviewWriter:
    """Writes previews (3, F, Y, X) of jobs that are sampled as one pack, within a small share of the sampling time.

    A round of previews is written for all jobs of the pack or for none.
    """

    def __init__(self, folder: Path, ids: Sequence[str], fps: float):
        self.folder, self.ids, self.fps = folder, ids, fps
        self.started, self.spent, self.last_seconds = time.monotonic(), 0.0, FIRST_SECONDS
        self.round: set[int] = set()  # jobs that had a preview since the time was last checked
        self.writing = False

    def __call__(self, number: int, preview: Tensor) -> None:
        now = time.monotonic()
        if not self.round or number in self.round:
            self.round = set()
            self.writing = self.spent + len(self.ids) * self.last_seconds <= TIME_SHARE * (now - self.started)
        self.round.add(number)
        if self.writing:
            write_preview(preview_path(self.folder, self.ids[number]), preview, self.fps)
            self.last_seconds = time.monotonic() - now
            self.spent += self.last_seconds


def write_preview(path: Path, preview: Tensor, fps: float) -> None:
    """Write frames (3, F, Y, X) in [-1, 1] as a small animated WebP, whole or not at all.

    A full disk or a removed folder is ignored: it must not stop a clip.
    """
    from PIL import Image

    from vae.files import atomic_write
    from vae.video.pixels import to_uint8

    every = -(-preview.shape[1] // MAX_FRAMES)
    frames = to_uint8(preview[:, ::every]).permute(1, 2, 3, 0).cpu().numpy()
    images = [Image.fromarray(frame) for frame in frames]
    for image in images:
        image.thumbnail((MAX_SIDE, MAX_SIDE))
    with suppress(OSError), atomic_write(path, durable=False) as draft:
        settings = {"quality": QUALITY, "method": 0, "duration": round(1000 * every / fps), "loop": 0}
        draft.chmod(0o600)
        images[0].save(draft, "WEBP", save_all=True, append_images=images[1:], **settings)


def remove_preview(folder: Path, id: str) -> None:
    """Remove a job's preview, if it has one."""
    preview_path(folder, id).unlink(missing_ok=True)
