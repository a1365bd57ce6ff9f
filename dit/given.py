"""What modes paint from: a request, and its given clips and images as latents, each for its place on the canvas."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from dit.request import Request, RequestError

if TYPE_CHECKING:
    from torch import Tensor

    from dit.canvas import Canvas

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels
FIRST, ALONE, LAST, MIDDLE = "first", "alone", "last", "middle"  # where a given clip lies on a canvas


@dataclass(frozen=True)
class PlacedClip:
    """A given clip's latents (C, T, H, W) for one place, the first left out where it does not begin the canvas.

    Of its `frames` video frames the first comes after `lead` that pad it, and `tail` come after the last. A `lead` of
    -1 says that the first one is not kept but generated, in the latent frame before.
    """

    latents: Tensor
    lead: int = 0
    tail: int = 0
    frames: int = 0


def padding_frames(frames: int, place: str, stride: int) -> tuple[int, int]:
    """Return how many frames pad a clip before and after to 1 + n times the temporal stride.

    A clip with frames to generate after it (FIRST) ends on a whole latent frame, so it is padded before, where nothing
    is shown; one that is the whole canvas (ALONE), or its end (LAST), is padded after. Where a clip does not begin the
    canvas (LAST, MIDDLE), one more frame stands before it, in the latent frame that is left out; in the MIDDLE of a
    canvas a clip of 1 + n times the stride needs none, and its own first frame is that one.
    """
    missing = -(frames - 1) % stride
    if place == FIRST:
        return missing, 0
    if place == ALONE:
        return 0, missing
    if place == LAST:
        return 1, -frames % stride
    return (0, 0) if not missing and frames > 1 else (1 + -frames % stride, 0)


def place_latents(latents: Tensor, place: str, stride: int, trim: tuple[int, int] = (0, 0)) -> PlacedClip | None:
    """Return a whole clip's latents (C, T, H, W) for a place, or None where its padding would be shown there.

    `trim` is how many of their frames at both ends only pad the clip.
    """
    lead, tail = trim
    frames = 1 + (latents.shape[1] - 1) * stride - lead - tail
    if place == ALONE or (place == FIRST and not tail):
        return PlacedClip(latents, lead, tail, frames)
    if not lead and (place == LAST or (place == MIDDLE and not tail)):
        return PlacedClip(latents[:, 1:], -1, tail, frames)
    return None


@dataclass(frozen=True)
class ModeInputs:
    """What a mode paints from: the request, and functions that encode its files.

    `shape` (C, T, H, W) is that of the requested latents, `stride` the VAE's and `patch` the model's. `image(path)`
    gives latents (C, 1, H, W) for the first latent frame, `later_image(path)` for any other. `clip(path, place, box)`
    gives a clip padded for its place, at the requested size or, where a box is given, in that box of the frame.
    `mask(path, T')` gives a denoise mask (T', H, W), 1 where a mask file is white.
    """

    request: Request
    shape: tuple[int, int, int, int]
    fps: float
    stride: tuple[int, int, int]
    patch: tuple[int, int, int]
    image: Callable[[str], Tensor]
    later_image: Callable[[str], Tensor]
    clip: Callable[[str, str, Box | None], PlacedClip]
    mask: Callable[[str, int], Tensor]

    def latent_frame_at(self, seconds: float) -> int:
        """Return the index of the latent frame that holds the video frame shown at a time."""
        frame = math.floor(seconds * self.fps + 1e-6)
        return -(-frame // self.stride[0])

    def latent_frames_in(self, seconds: float | None) -> int:
        """Return the number of latent frames, the first not counted, in a duration; by default the requested one."""
        if seconds is None:
            return self.shape[1] - 1
        return max(1, round(seconds * self.fps / self.stride[0]))

    def first_frame_of(self, latent_frame: int) -> int:
        """Return the index of the first video frame that a latent frame holds."""
        return 1 + (latent_frame - 1) * self.stride[0] if latent_frame else 0

    def placed_clip(self, path: str, place: str, box: Box | None = None) -> PlacedClip:
        """Return a clip for a place; raises RequestError for a clip of one latent frame after others."""
        placed = self.clip(path, place, box)
        if not placed.latents.shape[1]:
            least = 1 + self.stride[0]
            raise RequestError(f"a clip that follows others must have at least {least} frames; {path} has fewer")
        return placed

    def keep_clip(self, canvas: Canvas, path: str, placed: PlacedClip, start: int) -> Canvas:
        """Keep a placed clip, and its sound, from a latent frame on."""
        return self.keep_sound(canvas.keep(placed.latents, start), path, placed, start)

    def keep_sound(self, canvas: Canvas, path: str, placed: PlacedClip, start: int, until: int | None = None) -> Canvas:
        """Keep the sound of a placed clip from a latent frame on, before the latent frame `until`."""
        at = self.first_frame_of(start) + placed.lead
        frames = placed.frames if until is None else min(placed.frames, self.first_frame_of(until) - at)
        return self.keep_sound_of_frames(canvas, path, at, 0, frames)

    def keep_sound_of_frames(self, canvas: Canvas, path: str, at: int, begin: int, end: int) -> Canvas:
        """Keep the sound of a file's video frames from `begin` to `end`, from video frame `at` on."""
        from dit.canvas import SoundPart

        return replace(canvas, sound=(*canvas.sound, SoundPart(path, *(n / self.fps for n in (at, begin, end)))))

    def prompt_schedule(self) -> list[tuple[int, str]]:
        """Return the moments' prompts by latent frame.

        Raises RequestError where two moments share a latent frame or one is after the end.
        """
        moments = self.request.moments or ()
        schedule = [(self.latent_frame_at(moment.at), moment.prompt) for moment in moments]
        least = self.stride[0] / self.fps
        if any(after <= before for (before, _), (after, _) in pairwise(schedule)):
            raise RequestError(f"moments must lie at least {least:g} s apart for this model; these lie closer")
        if moments and schedule[-1][0] >= self.shape[1]:
            raise RequestError(f"moments must begin before the end; the last begins at {moments[-1].at:g} s")
        return schedule

    def blank(self, latent_frames: int) -> Canvas:
        """Return a canvas of `latent_frames` on which everything is generated."""
        from dit.canvas import blank

        return blank((self.shape[0], latent_frames, *self.shape[2:]), self.fps)
