"""The modes: every way to make a clip, one row of a table each. A mode paints a canvas and knows nothing else.

`paint(inputs)` returns the canvas; `ModeInputs` has the request and its files as latents. The first latent frame of a
clip holds one video frame. Where a clip does not begin the canvas, that latent frame is left out. Clips are padded to
whole latent frames where the padding is not shown, so that every given frame is kept (`given.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dit.given import ALONE, FIRST, LAST, MIDDLE, Box, ModeInputs, PlacedClip
from dit.request import Request, RequestError

if TYPE_CHECKING:
    from torch import Tensor

    from dit.canvas import Canvas


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
    if inputs.request.side == "after":
        clip = inputs.placed_clip(path, FIRST)
        canvas = inputs.keep_clip(inputs.blank(clip.latents.shape[1] + added), path, clip, 0)
        return replace(canvas, trim=(clip.lead, 0))
    both = inputs.request.side == "both"
    clip = inputs.placed_clip(path, MIDDLE if both else LAST)
    blank = inputs.blank(added + 1 + clip.latents.shape[1] + (added if both else 0))
    return replace(inputs.keep_clip(blank, path, clip, added + 1), trim=(0, 0 if both else clip.tail))


def connect(inputs: ModeInputs) -> Canvas:
    path, other = inputs.request.clip or "", inputs.request.other or ""
    first, second = inputs.placed_clip(path, FIRST), inputs.placed_clip(other, LAST)
    start = first.latents.shape[1] + inputs.latent_frames_in(inputs.request.seconds)
    canvas = inputs.keep_clip(inputs.blank(start + second.latents.shape[1]), path, first, 0)
    return replace(inputs.keep_clip(canvas, other, second, start), trim=(first.lead, second.tail))


def loop(inputs: ModeInputs) -> Canvas:
    seconds = inputs.request.seconds
    period = inputs.latent_frames_in(seconds) if seconds else inputs.shape[1]
    return replace(inputs.blank(period), periodic=True)


def whole_clip(inputs: ModeInputs, box: Box | None = None) -> tuple[Canvas, PlacedClip]:
    """Return a canvas that keeps a whole clip, in a box if one is given, and its sound; and the clip."""
    path = inputs.request.clip or ""
    clip = inputs.placed_clip(path, ALONE, box)
    canvas = inputs.keep_clip(inputs.blank(clip.latents.shape[1]), path, clip, 0)
    return replace(canvas, trim=(clip.lead, clip.tail)), clip


def edit(inputs: ModeInputs) -> Canvas:
    canvas, _ = whole_clip(inputs)
    strength = inputs.request.strength or 0.0
    return replace(canvas, denoise_mask=inputs.blank(canvas.latent_frames).denoise_mask * strength)


def retake(inputs: ModeInputs) -> Canvas:
    (canvas, clip), (begin, end) = whole_clip(inputs), inputs.request.window or (0.0, 0.0)
    mask, shift = canvas.denoise_mask.clone(), clip.lead / inputs.fps
    mask[inputs.latent_frame_at(begin + shift) : inputs.latent_frame_at(end + shift) + 1] = 1
    if not mask.any():
        raise RequestError(f"a window must lie within the clip; got {begin:g} to {end:g} s")
    return replace(canvas, denoise_mask=mask)


def inpaint(inputs: ModeInputs) -> Canvas:
    request, (canvas, _) = inputs.request, whole_clip(inputs)
    if (request.box is None) == (request.mask is None):
        raise RequestError("inpaint needs box or mask, and not both, so give one of --box and --mask")
    if request.mask:
        mask = inputs.mask(request.mask, canvas.latent_frames)
        return replace(canvas, denoise_mask=to_whole_patches(mask, inputs.patch))
    mask = canvas.denoise_mask.clone()
    left, top, right, bottom = request.box or (0, 0, 0, 0)
    down, across = inputs.stride[1:]
    mask[:, top // down : -(-bottom // down), left // across : -(-right // across)] = 1
    return replace(canvas, denoise_mask=to_whole_patches(mask, inputs.patch))


def outpaint(inputs: ModeInputs) -> Canvas:
    left, top, right, bottom = box = inputs.request.box or (0, 0, 0, 0)
    canvas, _ = whole_clip(inputs, box)
    mask = inputs.blank(canvas.latent_frames).denoise_mask
    down, across = inputs.stride[1:]
    mask[:, -(-top // down) : bottom // down, -(-left // across) : right // across] = 0
    mask = to_whole_patches(mask, inputs.patch)
    if mask.all():
        raise RequestError("a box must hold a whole patch of the model, or nothing of the clip is kept; make it larger")
    return replace(canvas, denoise_mask=mask)


def to_whole_patches(mask: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """Raise each value of a mask (T, H, W) to the highest of its patch: in training, regions end where patches end."""
    from einops import reduce, repeat

    _, h, w = patch
    highest = reduce(mask, "T (H h) (W w) -> T H W", "max", h=h, w=w)
    return repeat(highest, "T H W -> T (H h) (W w)", h=h, w=w)


def recut(inputs: ModeInputs) -> Canvas:
    path, (begin, end) = inputs.request.clip or "", inputs.request.window or (0.0, 0.0)
    clip = inputs.placed_clip(path, ALONE)
    shift = clip.lead / inputs.fps
    first, last = inputs.latent_frame_at(begin + shift), inputs.latent_frame_at(end + shift) + 1
    kept = clip.latents[:, first:last]
    if not kept.shape[1]:
        raise RequestError(f"a window must lie within the clip; got {begin:g} to {end:g} s")
    latent_frames = inputs.shape[1] if inputs.request.seconds else clip.latents.shape[1]
    lead = max(1, (latent_frames - kept.shape[1]) // 2) if first else 0
    canvas = inputs.blank(max(latent_frames, lead + kept.shape[1])).keep(kept, lead)
    begin_frame, end_frame = (inputs.first_frame_of(n) - clip.lead for n in (first, first + kept.shape[1]))
    at = inputs.first_frame_of(lead) + max(0, -begin_frame)
    return inputs.keep_sound_of_frames(canvas, path, at, max(0, begin_frame), min(clip.frames, end_frame))


def storyboard(inputs: ModeInputs) -> Canvas:
    canvas, schedule = inputs.blank(inputs.shape[1]), inputs.prompt_schedule()
    ends = [frame for frame, _ in schedule[1:]] + [canvas.latent_frames]
    for moment, (frame, _), end in zip(inputs.request.moments or (), schedule, ends, strict=True):
        if moment.clip:
            clip = inputs.placed_clip(moment.clip, MIDDLE if frame else ALONE)
            canvas = canvas.keep(clip.latents[:, : end - frame], frame)
            canvas = inputs.keep_sound(canvas, moment.clip, clip, frame, end)
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
