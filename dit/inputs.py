"""The files that a request names: pictures, films and masks, fitted to the frame and coded for a canvas.

A clip of ours may have its latents in a file beside it: then these are given, and nothing is lost to the file's codec.
"""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, cat

from dit.modes import Ask, Mode
from dit.request import Request, RequestError
from vae.files import atomic_write
from vae.model import VideoVAE
from vae.video.credentials import hash_of_contents
from vae.video.pixels import DiskError, fit_image
from vae.video.read import check_readable
from vae.video.sandbox import read_image, read_video

FILMS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif")  # a mask of another name is a picture
LATENTS = ".latents"  # added to a clip's name
Box = tuple[int, int, int, int]


def ask_of(request: Request, vae: VideoVAE, patch: tuple[int, int, int], shape, fps: float) -> Ask:
    """Return what a mode may look at, for latents of `shape` (C, T, H, W) and a resolved request; its files are read
    when it looks.
    """
    time, down, across = vae.stride
    rows, columns = shape[2] * down, shape[3] * across
    taken = dict(request.hashes or ())

    def code(pixels: Tensor) -> Tensor:
        return vae.encode(pixels[None].to(vae.device))[0].cpu()

    def picture(path: str) -> Tensor:
        return fit_image(read_image(path), rows, columns)

    def video(path: str, box: Box) -> Tensor:
        left, top, right, bottom = box
        return whole(read_video(path, fps, size=(bottom - top, right - left)).video, time)

    def film(path: str) -> Tensor:
        if path + LATENTS in taken:
            kept = kept_latents(path, vae)
            if kept is not None and kept.shape[2:] == shape[2:]:
                return kept
        return code(video(path, (0, 0, columns, rows)))

    def placed(path: str, box: Box) -> Tensor:
        left, top, right, bottom = box
        around = (left, columns - right, top, rows - bottom)
        return code(F.pad(video(path, box), around, mode="replicate"))

    def mask(path: str, steps: int) -> Tensor:
        moving = path.lower().endswith(FILMS)
        return mask_levels(video(path, (0, 0, columns, rows)) if moving else picture(path), steps, vae.stride)

    return Ask(
        request,
        shape,
        fps,
        vae.stride,
        patch,
        picture=lambda path: code(picture(path)),
        still=lambda path: code(picture(path).expand(-1, 1 + time, -1, -1))[:, 1:],
        film=film,
        placed=placed,
        mask=mask,
    )


def keep_latents(path: Path, latents: Tensor, vae: VideoVAE) -> Path:
    """Write the latents (C, T, H, W) of a clip that was just written beside it, whole or not at all; return their path.

    Raises DiskError when the disk fills up.
    """
    beside = path.with_name(path.name + LATENTS)
    try:
        with atomic_write(beside) as draft:
            save_file({"latents": latents.cpu().contiguous()}, draft, metadata={"clip": _sha256(path), **_maker(vae)})
    except (OSError, SafetensorError) as error:
        raise DiskError(f"{beside} cannot be written: {error}; make room") from error
    return beside


def kept_latents(path: str | Path, vae: VideoVAE) -> Tensor | None:
    """Return the latents (C, T, H, W) beside a clip; None where there are none, or they are another clip's or another
    VAE's.
    """
    beside = Path(f"{path}{LATENTS}")
    if not beside.is_file():
        return None
    try:
        with safe_open(beside, framework="pt") as stored:
            if stored.metadata() == {"clip": _sha256(path), **_maker(vae)}:
                return stored.get_tensor("latents")
    except SafetensorError as error:
        raise RequestError(f"{beside} is damaged: {error}; remove it, and the clip itself is read") from error
    return None


def _maker(vae: VideoVAE) -> dict[str, str]:
    return {"encoder": vae.encoder_hash()}


def _sha256(path: str | Path) -> str:
    return hash_of_contents(check_readable(path))


def whole(video: Tensor, time: int) -> Tensor:
    """Cut a film (3, F, Y, X) to 1 + n `time` frames, dropping the fewest."""
    return video[:, : 1 + (video.shape[1] - 1) // time * time]


def mask_levels(video: Tensor, steps: int, stride: tuple[int, int, int]) -> Tensor:
    """Turn a mask (3, F, Y, X) in [-1, 1], white where to dream, into levels (T, H, W): 1 where any pixel is white.

    A mask that is shorter than the clip stays as it ends.
    """
    time, down, across = stride
    white = (video.mean(0) > 0).float()
    frames = 1 + (steps - 1) * time
    white = cat([white, white[-1:].expand(max(0, frames - len(white)), -1, -1)])[:frames]
    first = F.max_pool2d(white[None, :1], (down, across))
    if steps == 1:
        return first[0]
    later = F.max_pool3d(white[None, 1:], (time, down, across))
    return cat([first, later], dim=1)[0]


def hashed(request: Request, mode: Mode, vae: VideoVAE) -> tuple[tuple[str, str], ...] | None:
    """Return each file that a request names, with the SHA-256 of its contents, credentials aside; and the latents
    beside a film, where these will be taken.

    Raises RequestError for a file whose contents are not those that the request was made with, MediaError for one that
    is gone.
    """
    reads = lambda name: getattr(request, name) if name in mode.reads else None
    moments = reads("moments") or ()
    films = [path for path in (reads("clip"), reads("other"), *(moment.clip for moment in moments)) if path]
    stills = [reads("image"), reads("mask"), *(path for _, path in reads("keyframes") or ())]
    stills += [moment.image for moment in moments]
    before, files = dict(request.hashes or ()), [*films, *(path for path in stills if path)]
    for path in films:
        if path + LATENTS in before or (path not in before and kept_latents(path, vae) is not None):
            files.append(path + LATENTS)
    found = {path: _sha256(path) for path in files}
    for path, digest in found.items():
        if before.get(path, digest) != digest:
            raise RequestError(f"{path} must be the file that the clip was made with; its contents have changed since")
    return tuple(found.items()) or None
