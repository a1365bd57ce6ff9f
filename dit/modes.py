"""Every way to make a clip: a table, one row a mode. A mode paints a canvas and knows nothing else.

`paint(ask)` returns the canvas; `Ask` has the request and what may be looked at. Where a film stands first on a canvas,
its first latent is one frame; where something is before it, that latent is left out (`Ask.later`).
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
class Ask:
    """What a mode may look at: `shape` (C, T, H, W) of the latents asked for, `stride` of the VAE, `patch` of the
    model, and files.

    `picture(path)` gives latents (C, 1, H, W), `still(path)` a later time step (C, 1, H, W) of nothing but a picture,
    and `film(path)` (C, T', H, W), all fitted to the frame; `placed(path, box)` a film within a part of the frame;
    `mask(path, T')` levels (T', H, W), 1 where a mask is white.
    """

    request: Request
    shape: tuple[int, int, int, int]
    fps: float
    stride: tuple[int, int, int]
    patch: tuple[int, int, int]
    picture: Callable[[str], Tensor]
    still: Callable[[str], Tensor]
    film: Callable[[str], Tensor]
    placed: Callable[[str, tuple[int, int, int, int]], Tensor]
    mask: Callable[[str, int], Tensor]

    def step(self, seconds: float) -> int:
        """Return the time step of latents that holds the frame seen at a moment."""
        frame = math.floor(seconds * self.fps + 1e-6)
        return -(-frame // self.stride[0])

    def stretch(self, seconds: float | None) -> int:
        """Return how many time steps behind the first last so long, by default as long as a clip of the model's."""
        if seconds is None:
            return self.shape[1] - 1
        return max(1, round(seconds * self.fps / self.stride[0]))

    def later(self, path: str) -> Tensor:
        """Return a film as it stands behind something else, without its first frame. Raises RequestError for a short
        one.
        """
        film = self.film(path)[:, 1:]
        if not film.shape[1]:
            raise RequestError(
                f"a clip behind another must have at least {1 + self.stride[0]} frames; {path} has fewer"
            )
        return film

    def told(self) -> list[tuple[int, str]]:
        """Return the moments' words by time step; raises RequestError where two share one or one is beyond the end."""
        moments = self.request.moments or ()
        told = [(self.step(moment.at), moment.prompt) for moment in moments]
        least = self.stride[0] / self.fps
        if any(after <= before for (before, _), (after, _) in pairwise(told)):
            raise RequestError(f"moments must lie at least {least:g} s apart for this model; these lie closer")
        if moments and told[-1][0] >= self.shape[1]:
            raise RequestError(f"moments must begin before the end; the last begins at {moments[-1].at:g} s")
        return told

    def blank(self, steps: int) -> Canvas:
        """Return a canvas of so many time steps on which all is to be dreamed."""
        from dit.canvas import blank

        return blank((self.shape[0], steps, *self.shape[2:]), self.fps)


@dataclass(frozen=True)
class Mode:
    """A row: what it does in one line, how to paint it, an example, which fields of a Request it reads beside the
    common ones, and which fields it needs.
    """

    line: str
    paint: Callable[[Ask], Canvas]
    example: str
    reads: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    still: bool = False  # makes one frame, and reads neither seconds nor fps
    timed: bool = True  # reads seconds
    free: bool = False  # makes clips of any length, not only of training's
    strength: float | None = None  # of the edit, unless a request says another


def text_to_video(ask: Ask) -> Canvas:
    return ask.blank(ask.shape[1])


def image_to_video(ask: Ask) -> Canvas:
    return text_to_video(ask).keep(ask.picture(ask.request.image or ""), 0)


def keyframes(ask: Ask) -> Canvas:
    images = ask.request.keyframes or ()
    last = max(ask.step(at) for at, _ in images)
    canvas = ask.blank(ask.shape[1] if ask.request.seconds or not last else last + 1)
    for at, path in images:
        canvas = show(ask, canvas, path, ask.step(at))
    return canvas


def show(ask: Ask, canvas: Canvas, path: str, step: int) -> Canvas:
    """Keep a picture at a time step of a canvas."""
    if step >= canvas.latent_frames:
        raise RequestError(f"a picture must come before the end of the clip; {path} comes behind it")
    return canvas.keep(ask.still(path) if step else ask.picture(path), step)


def extend(ask: Ask) -> Canvas:
    path, added = ask.request.clip or "", ask.stretch(ask.request.seconds)
    after = added if ask.request.side != "before" else 0
    if ask.request.side == "after":
        film = ask.film(path)
        return ask.blank(film.shape[1] + after).keep(film, 0)
    film = ask.later(path)
    return ask.blank(added + 1 + film.shape[1] + after).keep(film, added + 1)


def connect(ask: Ask) -> Canvas:
    one, two = ask.film(ask.request.clip or ""), ask.later(ask.request.other or "")
    behind = one.shape[1] + ask.stretch(ask.request.seconds)
    return ask.blank(behind + two.shape[1]).keep(one, 0).keep(two, behind)


def loop(ask: Ask) -> Canvas:
    period = ask.stretch(ask.request.seconds) if ask.request.seconds else ask.shape[1]
    return replace(ask.blank(period), periodic=True)


def edit(ask: Ask) -> Canvas:
    film = ask.film(ask.request.clip or "")
    canvas = ask.blank(film.shape[1])
    return replace(canvas, clean_latents=film, denoise_mask=canvas.denoise_mask * (ask.request.strength or 0.0))


def retake(ask: Ask) -> Canvas:
    film, (begin, end) = ask.film(ask.request.clip or ""), ask.request.window or (0.0, 0.0)
    canvas = ask.blank(film.shape[1]).keep(film, 0)
    level = canvas.denoise_mask.clone()
    level[ask.step(begin) : ask.step(end) + 1] = 1
    if not level.any():
        raise RequestError(f"a window must lie within the clip; got {begin:g} to {end:g} s")
    return replace(canvas, denoise_mask=level)


def inpaint(ask: Ask) -> Canvas:
    request, film = ask.request, ask.film(ask.request.clip or "")
    if (request.box is None) == (request.mask is None):
        raise RequestError("inpaint needs box or mask, and not both, so give one of --box and --mask")
    canvas = ask.blank(film.shape[1]).keep(film, 0)
    if request.mask:
        return replace(canvas, denoise_mask=whole_patches(ask.mask(request.mask, film.shape[1]), ask.patch))
    level = canvas.denoise_mask.clone()
    left, top, right, bottom = request.box or (0, 0, 0, 0)
    down, across = ask.stride[1:]
    level[:, top // down : -(-bottom // down), left // across : -(-right // across)] = 1
    return replace(canvas, denoise_mask=whole_patches(level, ask.patch))


def outpaint(ask: Ask) -> Canvas:
    left, top, right, bottom = box = ask.request.box or (0, 0, 0, 0)
    film = ask.placed(ask.request.clip or "", box)
    level = ask.blank(film.shape[1]).denoise_mask
    down, across = ask.stride[1:]
    level[:, -(-top // down) : bottom // down, -(-left // across) : right // across] = 0
    level = whole_patches(level, ask.patch)
    if level.all():
        raise RequestError("a box must hold a whole patch of the model, or nothing of the clip stays; make it larger")
    return replace(ask.blank(film.shape[1]), clean_latents=film, denoise_mask=level)


def whole_patches(level: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """Raise each level (T, H, W) to the highest in its patch: in training, regions end where patches end."""
    from einops import reduce, repeat

    _, h, w = patch
    highest = reduce(level, "T (H h) (W w) -> T H W", "max", h=h, w=w)
    return repeat(highest, "T H W -> T (H h) (W w)", h=h, w=w)


def recut(ask: Ask) -> Canvas:
    film, (begin, end) = ask.film(ask.request.clip or ""), ask.request.window or (0.0, 0.0)
    first, last = ask.step(begin), ask.step(end) + 1
    kept = film[:, first:last]
    if not kept.shape[1]:
        raise RequestError(f"a window must lie within the clip; got {begin:g} to {end:g} s")
    steps = ask.shape[1] if ask.request.seconds else film.shape[1]
    lead = max(1, (steps - kept.shape[1]) // 2) if first else 0
    return ask.blank(max(steps, lead + kept.shape[1])).keep(kept, lead)


def storyboard(ask: Ask) -> Canvas:
    canvas, told = ask.blank(ask.shape[1]), ask.told()
    ends = [step for step, _ in told[1:]] + [canvas.latent_frames]
    for moment, (step, _), end in zip(ask.request.moments or (), told, ends, strict=True):
        if moment.clip:
            film = ask.later(moment.clip) if step else ask.film(moment.clip)
            canvas = canvas.keep(film[:, : end - step], step)
        if moment.image:
            canvas = show(ask, canvas, moment.image, step)
    return canvas.with_prompts(told)


def long(ask: Ask) -> Canvas:
    if any(moment.image or moment.clip for moment in ask.request.moments or ()):
        raise RequestError("moments of a long clip have words alone; a storyboard's may show pictures and clips")
    return ask.blank(ask.shape[1]).with_prompts(ask.told())


MODES: dict[str, Mode] = {
    "text-to-video": Mode(
        "A clip from words.", text_to_video, 'longtake generate "a red ball bounces" --seconds 2 -o clip.mp4'
    ),
    "text-to-image": Mode(
        "A picture from words.",
        text_to_video,
        'longtake text-to-image "a large blue cube" -o cube.png',
        still=True,
    ),
    "image-to-video": Mode(
        "A still comes alive: the first frame is the picture.",
        image_to_video,
        'longtake image-to-video "the cube spins" --image cube.png -o spin.mp4',
        reads=("image",),
        needs=("image",),
    ),
    "keyframes": Mode(
        "Pictures at given seconds, and what happens between them.",
        keyframes,
        'longtake keyframes "the ball rolls" --keyframe 0 first.png --keyframe 2 last.png -o between.mp4',
        reads=("keyframes",),
        needs=("keyframes",),
        free=True,
    ),
    "extend": Mode(
        "More of a clip: after it, before it, or both. Seconds are those to add on each side.",
        extend,
        'longtake extend "the ball bounces on" --clip ball.mp4 --side after --seconds 2 -o longer.mp4',
        reads=("clip", "side"),
        needs=("clip",),
        free=True,
    ),
    "loop": Mode(
        "A clip without beginning or end.",
        loop,
        'longtake loop "a cube spins" --seconds 3 -o loop.mp4',
        free=True,
    ),
    "connect": Mode(
        "A passage from one clip to another. Seconds are those of the passage.",
        connect,
        'longtake connect "the camera pans" --clip one.mp4 --other two.mp4 --seconds 2 -o joined.mp4',
        reads=("clip", "other"),
        needs=("clip", "other"),
        free=True,
    ),
    "edit": Mode(
        "A clip again, altered by new words: strength 0 returns it, 1 forgets it.",
        edit,
        'longtake edit "a green ball bounces" --clip ball.mp4 --strength 0.7 -o green.mp4',
        reads=("clip", "strength"),
        needs=("clip",),
        timed=False,
        free=True,
        strength=0.6,
    ),
    "remix": Mode(
        "A clip told in other words: an edit that keeps little but where things are.",
        edit,
        'longtake remix "a green ball bounces" --clip ball.mp4 -o remix.mp4',
        reads=("clip", "strength"),
        needs=("clip",),
        timed=False,
        free=True,
        strength=0.95,
    ),
    "retake": Mode(
        "A stretch of a clip made anew, the rest untouched.",
        retake,
        'longtake retake "the ball stops" --clip ball.mp4 --window 1 2 -o retaken.mp4',
        reads=("clip", "window"),
        needs=("clip", "window"),
        timed=False,
        free=True,
    ),
    "inpaint": Mode(
        "A region of a clip made anew: a box, or where a mask is white.",
        inpaint,
        'longtake inpaint "a blue cube" --clip ball.mp4 --box 16 16 48 48 -o cube.mp4',
        reads=("clip", "box", "mask"),
        needs=("clip",),
        timed=False,
        free=True,
    ),
    "outpaint": Mode(
        "A larger frame around a clip, which fills the box.",
        outpaint,
        'longtake outpaint "a ball on grass" --clip ball.mp4 --box 32 32 96 96 --size 128x128 -o wide.mp4',
        reads=("clip", "box"),
        needs=("clip", "box"),
        timed=False,
        free=True,
    ),
    "recut": Mode(
        "The best stretch of a clip, and a new beginning and end around it.",
        recut,
        'longtake recut "the ball bounces" --clip ball.mp4 --window 0.5 1.5 --seconds 4 -o recut.mp4',
        reads=("clip", "window"),
        needs=("clip", "window"),
        free=True,
    ),
    "storyboard": Mode(
        "Moments in one clip, each with words, and a picture or a clip, of its own.",
        storyboard,
        "longtake storyboard --moments board.yaml --seconds 4 -o story.mp4",
        reads=("moments",),
        needs=("moments", "seconds"),
        free=True,
    ),
    "long": Mode(
        "A minute and more, dreamed window by window; moments may change the words.",
        long,
        'longtake long "a red ball rolls" --seconds 60 -o minute.mp4',
        reads=("moments",),
        needs=("seconds",),
        free=True,
    ),
}
