"""The files that a request names: images, clips and masks, resized to the frame and encoded for a canvas.

A clip that was generated here may have its latents in a file next to it. They are used in its place, without the loss
of the video codec.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, cat

from dit.canvas import SoundPart
from dit.given import LAST, MIDDLE, Box, ModeInputs, PlacedClip, padding_frames, place_latents
from dit.modes import Mode
from dit.request import LATENTS_SUFFIX, Request, RequestError
from vae.files import atomic_write
from vae.model import VideoVAE
from vae.video.container import SUFFIXES as VIDEO_MASKS  # a mask of another suffix is an image
from vae.video.container import check_readable
from vae.video.credentials import hash_of_contents
from vae.video.pixels import DiskError, fit_image
from vae.video.sandbox import read_image, read_sound, read_video
from vae.video.sound import SAMPLE_RATE, silence

TRIM_KEY = "trim"  # in the metadata of stored latents: how many frames at both ends the file does not have


class GivenLatents(NamedTuple):
    """The latents (C, T, H, W) of a clip's file, and how many of their frames at both ends it does not have."""

    latents: Tensor
    trim: tuple[int, int]


def mode_inputs(
    request: Request,
    vae: VideoVAE,
    patch: tuple[int, int, int],
    shape,
    fps: float,
    images: dict[str, Tensor] | None = None,
) -> ModeInputs:
    """Return the inputs of a resolved request's mode, for latents of `shape` (C, T, H, W).

    A file is read when the mode asks for it; the pixels of its images are kept in `images`, if given.
    """
    stride, down, across = vae.stride
    rows, columns = shape[2] * down, shape[3] * across
    hashes = dict(request.hashes or ())

    def encode(pixels: Tensor) -> Tensor:
        return vae.encode(pixels[None].to(vae.device))[0].cpu()

    known = {} if images is None else images

    def image(path: str) -> Tensor:
        if path not in known:
            known[path] = fit_image(read_image(path), rows, columns)
        return known[path]

    def video(path: str, box: Box) -> Tensor:
        left, top, right, bottom = box
        return read_video(path, fps, size=(bottom - top, right - left)).video

    def clip(path: str, where: str, box: Box | None) -> PlacedClip:
        stored = load_stored(path, vae) if box is None and path + LATENTS_SUFFIX in hashes else None
        if stored is not None and stored.latents.shape[2:] == shape[2:]:
            placed = place_latents(stored.latents, where, stride, stored.trim)
            if placed is not None:
                return placed
        left, top, right, bottom = box or (0, 0, columns, rows)
        pixels = video(path, (left, top, right, bottom))
        before, after = padding_frames(pixels.shape[1], where, stride)
        margins = (left, columns - right, top, rows - bottom, before, after)
        latents = encode(F.pad(pixels, margins, mode="replicate") if any(margins) else pixels)
        if where in (LAST, MIDDLE):
            return PlacedClip(latents[:, 1:], before - 1, after, pixels.shape[1])
        return PlacedClip(latents, before, after, pixels.shape[1])

    def mask(path: str, latent_frames: int) -> Tensor:
        is_video = path.lower().endswith(VIDEO_MASKS)
        pixels = video(path, (0, 0, columns, rows)) if is_video else image(path)
        return mask_to_latents(pixels, latent_frames, vae.stride)

    return ModeInputs(
        request,
        shape,
        fps,
        vae.stride,
        patch,
        image=lambda path: encode(image(path)),
        later_image=lambda path: encode(image(path).expand(-1, 1 + stride, -1, -1))[:, 1:],
        clip=clip,
        mask=mask,
    )


def save_latents(path: Path, latents: Tensor, vae: VideoVAE, trim: tuple[int, int] = (0, 0)) -> Path:
    """Write the latents (C, T, H, W) of a finished clip next to its file; return their path.

    `trim` is how many of their frames at both ends the file does not have. The file appears when it is whole. Raises
    DiskError if the disk is full.
    """
    target = path.with_name(path.name + LATENTS_SUFFIX)
    metadata = _metadata(path, vae) | ({TRIM_KEY: "{} {}".format(*trim)} if any(trim) else {})
    try:
        with atomic_write(target) as draft:
            save_file({"latents": latents.cpu().contiguous()}, draft, metadata=metadata)
    except (OSError, SafetensorError) as error:
        raise DiskError(f"{target} cannot be written: {error}; make room") from error
    return target


def load_latents(path: str | Path, vae: VideoVAE) -> Tensor | None:
    """Return the latents (C, T, H, W) next to a clip's file, or None, as `load_stored` does."""
    stored = load_stored(path, vae)
    return None if stored is None else stored.latents


def load_stored(path: str | Path, vae: VideoVAE) -> GivenLatents | None:
    """Return the latents next to a clip's file.

    Returns None if there are none, or if they belong to other contents or another VAE. Raises RequestError if their
    file is damaged.
    """
    source = Path(f"{path}{LATENTS_SUFFIX}")
    if not source.is_file():
        return None
    try:
        with safe_open(source, framework="pt") as stored:
            found = dict(stored.metadata() or {})
            lead, _, tail = found.pop(TRIM_KEY, "0 0").partition(" ")
            if found == _metadata(path, vae):
                return GivenLatents(stored.get_tensor("latents"), (int(lead), int(tail)))
    except (SafetensorError, ValueError) as error:
        raise RequestError(f"{source} is damaged: {error}; remove it, and the clip itself is read") from error
    return None


def _metadata(path: str | Path, vae: VideoVAE) -> dict[str, str]:
    return {"clip": _sha256(path), "encoder": vae.encoder_hash()}


def _sha256(path: str | Path) -> str:
    return hash_of_contents(check_readable(path))


def read_soundtrack(parts: Sequence[SoundPart], seconds: float) -> Tensor | None:
    """Read the soundtrack (2, N) of a clip of some seconds: parts of its inputs' ones, and silence where there is none.

    Returns None where no input has sound. Where parts overlap they are added.
    """
    track, heard = silence(seconds), False
    for part in parts:
        sound = read_sound(part.path, part.end)[:, round(part.begin * SAMPLE_RATE) :]
        at = round(part.at * SAMPLE_RATE)
        sound = sound[:, max(0, -at) :][:, : max(0, track.shape[1] - max(0, at))]
        heard = heard or bool(sound.shape[1])
        track[:, max(0, at) : max(0, at) + sound.shape[1]] += sound
    return track if heard else None


def mask_to_latents(video: Tensor, latent_frames: int, stride: tuple[int, int, int]) -> Tensor:
    """Convert a mask's pixels (3, F, Y, X) in [-1, 1] to a denoise mask (T, H, W): 1 where any pixel is white.

    The last frame of a mask that is shorter than the clip is repeated.
    """
    time, down, across = stride
    white = (video.mean(0) > 0).float()
    frames = 1 + (latent_frames - 1) * time
    white = cat([white, white[-1:].expand(max(0, frames - len(white)), -1, -1)])[:frames]
    first = F.max_pool2d(white[None, :1], (down, across))
    if latent_frames == 1:
        return first[0]
    later = F.max_pool3d(white[None, 1:], (time, down, across))
    return cat([first, later], dim=1)[0]


def hash_inputs(request: Request, mode: Mode, vae: VideoVAE) -> tuple[tuple[str, str], ...] | None:
    """Return (file, SHA-256 of its contents without Content Credentials) of each input file that the mode reads.

    Latents next to a clip are listed if they will be used. Raises RequestError for a file whose contents are not those
    in the request's own hashes, MediaError for one that is missing.
    """
    reads = lambda name: getattr(request, name) if name in mode.reads else None
    moments = reads("moments") or ()
    clips = [path for path in (reads("clip"), reads("other"), *(moment.clip for moment in moments)) if path]
    images = [reads("image"), reads("mask"), *(path for _, path in reads("keyframes") or ())]
    images += [moment.image for moment in moments]
    expected, files = dict(request.hashes or ()), [*clips, *(path for path in images if path)]
    for path in clips:
        latents = path + LATENTS_SUFFIX
        if latents in expected or (path not in expected and load_latents(path, vae) is not None):
            files.append(latents)
    hashes = {path: _sha256(path) for path in files}
    for path, digest in hashes.items():
        if expected.get(path, digest) != digest:
            raise RequestError(f"{path} must be the file that the clip was made with; its contents have changed since")
    return tuple(hashes.items()) or None
