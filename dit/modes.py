"""The modes: every way to make a clip, one row of a table each. A mode paints a canvas and knows nothing else.

`paint(inputs)` returns the canvas; `ModeInputs` has the request and its files as latents. The first latent frame of a
clip holds one video frame. Where a clip does not begin the canvas, that latent frame is left out
(`ModeInputs.clip_tail`).
"""

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


@dataclass(frozen=True)
class ModeInputs:
    """What a mode paints from: the request, and functions that encode its files.

    `shape` (C, T, H, W) is that of the requested latents, `stride` the VAE's and `patch` the model's. `image(path)`
    gives latents (C, 1, H, W) for the first latent frame, `later_image(path)` for any other. `clip(path)` gives latents
    (C, T', H, W) at the requested size, `clip_in_box(path, box)` with the clip in a box of the frame. `mask(path, T')`
    gives a denoise mask (T', H, W), 1 where a mask file is white.
    """

    request: Request
    shape: tuple[int, int, int, int]
    fps: float
    stride: tuple[int, int, int]
    patch: tuple[int, int, int]
    image: Callable[[str], Tensor]
    later_image: Callable[[str], Tensor]
    clip: Callable[[str], Tensor]
    clip_in_box: Callable[[str, tuple[int, int, int, int]], Tensor]
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

    def clip_tail(self, path: str) -> Tensor:
        """Return a clip's latents without the first frame; raises RequestError for a clip of one latent frame."""
        tail = self.clip(path)[:, 1:]
        if not tail.shape[1]:
            least = 1 + self.stride[0]
            raise RequestError(f"a clip that follows others must have at least {least} frames; {path} has fewer")
        return tail

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


@dataclass(frozen=True)
class Mode:
    """A row of the table: a summary, how to paint the canvas, an example, and the fields of a Request that only some
    modes read, or need.
    """

    summary: str
    paint: Callable[[ModeInputs], Canvas]
    example: str
    reads: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    still: bool = False  # makes an image, and reads neither seconds nor fps
    timed: bool = True  # reads seconds
    any_length: bool = False  # makes clips of any length, not only of trained ones
    strength: float | None = None  # the default of the request's


def text_to_video(inputs: ModeInputs) -> Canvas:
    return inputs.blank(inputs.shape[1])


def image_to_video(inputs: ModeInputs) -> Canvas:
    return text_to_video(inputs).keep(inputs.image(inputs.request.image or ""), 0)


def keyframes(inputs: ModeInputs) -> Canvas:
    images = inputs.request.keyframes or ()
    last = max(inputs.latent_frame_at(at) for at, _ in images)
    canvas = inputs.blank(inputs.shape[1] if inputs.request.seconds or not last else last + 1)
    for at, path in images:
        canvas = keep_image(inputs, canvas, path, inputs.latent_frame_at(at))
    return canvas


def keep_image(inputs: ModeInputs, canvas: Canvas, path: str, frame: int) -> Canvas:
    """Keep an image at a latent frame; raises RequestError where that is after the end."""
    if frame >= canvas.latent_frames:
        raise RequestError(f"an image must come before the end of the clip; {path} comes after it")
    return canvas.keep(inputs.later_image(path) if frame else inputs.image(path), frame)


def extend(inputs: ModeInputs) -> Canvas:
    path, added = inputs.request.clip or "", inputs.latent_frames_in(inputs.request.seconds)
    after = added if inputs.request.side != "before" else 0
    if inputs.request.side == "after":
        clip = inputs.clip(path)
        return inputs.blank(clip.shape[1] + after).keep(clip, 0)
    clip = inputs.clip_tail(path)
    return inputs.blank(added + 1 + clip.shape[1] + after).keep(clip, added + 1)


def connect(inputs: ModeInputs) -> Canvas:
    first, second = inputs.clip(inputs.request.clip or ""), inputs.clip_tail(inputs.request.other or "")
    start = first.shape[1] + inputs.latent_frames_in(inputs.request.seconds)
    return inputs.blank(start + second.shape[1]).keep(first, 0).keep(second, start)


def loop(inputs: ModeInputs) -> Canvas:
    seconds = inputs.request.seconds
    period = inputs.latent_frames_in(seconds) if seconds else inputs.shape[1]
    return replace(inputs.blank(period), periodic=True)


def edit(inputs: ModeInputs) -> Canvas:
    clip = inputs.clip(inputs.request.clip or "")
    canvas = inputs.blank(clip.shape[1])
    return replace(canvas, clean_latents=clip, denoise_mask=canvas.denoise_mask * (inputs.request.strength or 0.0))


def retake(inputs: ModeInputs) -> Canvas:
    clip, (begin, end) = inputs.clip(inputs.request.clip or ""), inputs.request.window or (0.0, 0.0)
    canvas = inputs.blank(clip.shape[1]).keep(clip, 0)
    mask = canvas.denoise_mask.clone()
    mask[inputs.latent_frame_at(begin) : inputs.latent_frame_at(end) + 1] = 1
    if not mask.any():
        raise RequestError(f"a window must lie within the clip; got {begin:g} to {end:g} s")
    return replace(canvas, denoise_mask=mask)


def inpaint(inputs: ModeInputs) -> Canvas:
    request, clip = inputs.request, inputs.clip(inputs.request.clip or "")
    if (request.box is None) == (request.mask is None):
        raise RequestError("inpaint needs box or mask, and not both, so give one of --box and --mask")
    canvas = inputs.blank(clip.shape[1]).keep(clip, 0)
    if request.mask:
        return replace(canvas, denoise_mask=to_whole_patches(inputs.mask(request.mask, clip.shape[1]), inputs.patch))
    mask = canvas.denoise_mask.clone()
    left, top, right, bottom = request.box or (0, 0, 0, 0)
    down, across = inputs.stride[1:]
    mask[:, top // down : -(-bottom // down), left // across : -(-right // across)] = 1
    return replace(canvas, denoise_mask=to_whole_patches(mask, inputs.patch))


def outpaint(inputs: ModeInputs) -> Canvas:
    left, top, right, bottom = box = inputs.request.box or (0, 0, 0, 0)
    clip = inputs.clip_in_box(inputs.request.clip or "", box)
    mask = inputs.blank(clip.shape[1]).denoise_mask
    down, across = inputs.stride[1:]
    mask[:, -(-top // down) : bottom // down, -(-left // across) : right // across] = 0
    mask = to_whole_patches(mask, inputs.patch)
    if mask.all():
        raise RequestError("a box must hold a whole patch of the model, or nothing of the clip is kept; make it larger")
    return replace(inputs.blank(clip.shape[1]), clean_latents=clip, denoise_mask=mask)


def to_whole_patches(mask: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """Raise each value of a mask (T, H, W) to the highest of its patch: in training, regions end where patches end."""
    from einops import reduce, repeat

    _, h, w = patch
    highest = reduce(mask, "T (H h) (W w) -> T H W", "max", h=h, w=w)
    return repeat(highest, "T H W -> T (H h) (W w)", h=h, w=w)


def recut(inputs: ModeInputs) -> Canvas:
    clip, (begin, end) = inputs.clip(inputs.request.clip or ""), inputs.request.window or (0.0, 0.0)
    first, last = inputs.latent_frame_at(begin), inputs.latent_frame_at(end) + 1
    kept = clip[:, first:last]
    if not kept.shape[1]:
        raise RequestError(f"a window must lie within the clip; got {begin:g} to {end:g} s")
    latent_frames = inputs.shape[1] if inputs.request.seconds else clip.shape[1]
    lead = max(1, (latent_frames - kept.shape[1]) // 2) if first else 0
    return inputs.blank(max(latent_frames, lead + kept.shape[1])).keep(kept, lead)


def storyboard(inputs: ModeInputs) -> Canvas:
    canvas, schedule = inputs.blank(inputs.shape[1]), inputs.prompt_schedule()
    ends = [frame for frame, _ in schedule[1:]] + [canvas.latent_frames]
    for moment, (frame, _), end in zip(inputs.request.moments or (), schedule, ends, strict=True):
        if moment.clip:
            clip = inputs.clip_tail(moment.clip) if frame else inputs.clip(moment.clip)
            canvas = canvas.keep(clip[:, : end - frame], frame)
        if moment.image:
            canvas = keep_image(inputs, canvas, moment.image, frame)
    return canvas.with_prompts(schedule)


def long(inputs: ModeInputs) -> Canvas:
    if any(moment.image or moment.clip for moment in inputs.request.moments or ()):
        raise RequestError("moments of a long clip have prompts alone; a storyboard's may have images and clips")
    return inputs.blank(inputs.shape[1]).with_prompts(inputs.prompt_schedule())


MODES: dict[str, Mode] = {
    "text-to-video": Mode(
        "A video from a prompt.", text_to_video, 'longtake generate "a red ball bounces" --seconds 2 -o clip.mp4'
    ),
    "text-to-image": Mode(
        "An image from a prompt.",
        text_to_video,
        'longtake text-to-image "a large blue cube" -o cube.png',
        still=True,
    ),
    "image-to-video": Mode(
        "A video that begins with an image.",
        image_to_video,
        'longtake image-to-video "the cube spins" --image cube.png -o spin.mp4',
        reads=("image",),
        needs=("image",),
    ),
    "keyframes": Mode(
        "A video with images at given seconds, and motion between them.",
        keyframes,
        'longtake keyframes "the ball rolls" --keyframe 0 first.png --keyframe 2 last.png -o between.mp4',
        reads=("keyframes",),
        needs=("keyframes",),
        any_length=True,
    ),
    "extend": Mode(
        "A longer clip: new frames after it, before it, or both. Seconds are those to add on each side.",
        extend,
        'longtake extend "the ball bounces on" --clip ball.mp4 --side after --seconds 2 -o longer.mp4',
        reads=("clip", "side"),
        needs=("clip",),
        any_length=True,
    ),
    "loop": Mode(
        "A video that loops without a seam.",
        loop,
        'longtake loop "a cube spins" --seconds 3 -o loop.mp4',
        any_length=True,
    ),
    "connect": Mode(
        "A transition from one clip to another. Seconds are those of the transition.",
        connect,
        'longtake connect "the camera pans" --clip one.mp4 --other two.mp4 --seconds 2 -o joined.mp4',
        reads=("clip", "other"),
        needs=("clip", "other"),
        any_length=True,
    ),
    "edit": Mode(
        "A clip changed by a new prompt: strength 0 returns it, 1 ignores it.",
        edit,
        'longtake edit "a green ball bounces" --clip ball.mp4 --strength 0.7 -o green.mp4',
        reads=("clip", "strength"),
        needs=("clip",),
        timed=False,
        any_length=True,
        strength=0.6,
    ),
    "remix": Mode(
        "A clip with a new prompt that keeps little but its layout: an edit of high strength.",
        edit,
        'longtake remix "a green ball bounces" --clip ball.mp4 -o remix.mp4',
        reads=("clip", "strength"),
        needs=("clip",),
        timed=False,
        any_length=True,
        strength=0.95,
    ),
    "retake": Mode(
        "A clip with one time window generated anew; the rest is kept.",
        retake,
        'longtake retake "the ball stops" --clip ball.mp4 --window 1 2 -o retaken.mp4',
        reads=("clip", "window"),
        needs=("clip", "window"),
        timed=False,
        any_length=True,
    ),
    "inpaint": Mode(
        "A clip with a region generated anew: a box, or where a mask is white.",
        inpaint,
        'longtake inpaint "a blue cube" --clip ball.mp4 --box 16 16 48 48 -o cube.mp4',
        reads=("clip", "box", "mask"),
        needs=("clip",),
        timed=False,
        any_length=True,
    ),
    "outpaint": Mode(
        "A larger frame around a clip, which fills the box.",
        outpaint,
        'longtake outpaint "a ball on grass" --clip ball.mp4 --box 32 32 96 96 --size 128x128 -o wide.mp4',
        reads=("clip", "box"),
        needs=("clip", "box"),
        timed=False,
        any_length=True,
    ),
    "recut": Mode(
        "One time window of a clip, with a new beginning and end around it.",
        recut,
        'longtake recut "the ball bounces" --clip ball.mp4 --window 0.5 1.5 --seconds 4 -o recut.mp4',
        reads=("clip", "window"),
        needs=("clip", "window"),
        any_length=True,
    ),
    "storyboard": Mode(
        "Moments in one clip, each with a prompt, and an image or a clip if wanted.",
        storyboard,
        "longtake storyboard --moments board.yaml --seconds 4 -o story.mp4",
        reads=("moments",),
        needs=("moments", "seconds"),
        any_length=True,
    ),
    "long": Mode(
        "A minute or more, sampled window by window; moments may change the prompt.",
        long,
        'longtake long "a red ball rolls" --seconds 60 -o minute.mp4',
        reads=("moments",),
        needs=("seconds",),
        any_length=True,
    ),
}


def mode_of(request: Request) -> Mode:
    """Return a request's mode; raises RequestError for an unknown one."""
    if request.mode not in MODES:
        raise RequestError(f"mode must be one of {', '.join(MODES)}; got {request.mode!r}")
    return MODES[request.mode]
