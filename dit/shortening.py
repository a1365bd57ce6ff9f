"""The canvas of a request without its long uniform stretches, for what must be counted and need not be computed.

Where everything is to be generated and one prompt holds, each window is like the one before. So whole windows can be
left out there: what else there is, such as given frames, the ends and the changes of prompts, keeps its distance to the
windows around it, in every evaluation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

from dit.canvas import Canvas
from dit.modes import MODES, ModeInputs
from dit.request import Request
from dit.windows import denoised_spans

KEPT_WINDOWS = 8  # of a stretch that is shortened
NUDGES = (0.0, 1e-6, -1e-6)  # seconds, where rounding to whole latent frames was a tie


@dataclass(frozen=True)
class Painting:
    """The canvas of a request, without long stretches.

    `window` latent frames are sampled at once. `inserted` has (latent frame, windows): so many times `window` - 1
    latent frames, all to be generated, were left out before that latent frame. `latent_frames` is the whole length.
    """

    canvas: Canvas
    window: int
    latent_frames: int
    inserted: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Shortened:
    """A request with fewer seconds: the windows left out before each event, and on both sides of a kept middle."""

    request: Request
    left_out: int = 0
    before_frames: tuple[tuple[int, int], ...] = ()


def paint_shortened(
    request: Request,
    longest: int,
    make_inputs: Callable[[Request], ModeInputs],
    window_length: Callable[[Request, Canvas], int],
) -> Painting:
    """Return the shortest canvas of a resolved request that has a window of each kind.

    `longest` is the longest trained length at its size, in latent frames. Raises what the modes raise.
    """
    inner, kept = longest - 1, KEPT_WINDOWS * longest
    while True:
        short = shorten(request, make_inputs, inner, kept) if inner > 0 else Shortened(request)
        canvas = MODES[request.mode].paint(make_inputs(short.request))
        window = window_length(short.request, canvas)
        if not short.left_out:
            return Painting(canvas, window, canvas.latent_frames)
        inserted = short.before_frames or _middles(canvas, short.left_out, request.mode, inner)
        if window == longest and inserted and all(_is_uniform(canvas, frame, inner) for frame, _ in inserted):
            windows = sum(count for _, count in inserted)
            return Painting(canvas, window, canvas.latent_frames + windows * inner, inserted)
        kept *= 2


def shorten(request: Request, make_inputs: Callable[[Request], ModeInputs], inner: int, kept: int) -> Shortened:
    """Leave out whole windows of `inner` latent frames, so that each stretch has about `kept` latent frames left."""
    mode, inputs = MODES[request.mode], make_inputs(request)
    seconds_of_window = inner * inputs.stride[0] / inputs.fps
    if not mode.any_length or not mode.timed:
        return Shortened(request)
    moments = (request.moments or ()) if "moments" in mode.reads else ()
    keyframes = (request.keyframes or ()) if "keyframes" in mode.reads else ()
    times = [moment.at for moment in moments] or [at for at, _ in keyframes]
    if not times:
        if not request.seconds:
            return Shortened(request)
        sides = 2 if request.mode == "recut" else 1  # new frames before and after the kept ones
        windows = (inputs.latent_frames_in(request.seconds) - kept) // (sides * inner)
        for count in (windows, windows - 1):
            for nudge in NUDGES if count > 0 else ():
                seconds = request.seconds - sides * count * seconds_of_window + nudge
                short = replace(request, seconds=seconds)
                left_out = sides * count * inner
                if _latent_frames(make_inputs(short)) == [n - left_out for n in _latent_frames(inputs)]:
                    return Shortened(short, sides * count)
        return Shortened(request)
    frames = [inputs.latent_frame_at(at) for at in times]
    end = inputs.shape[1] if request.seconds else max(frames) + 1
    bounds = sorted({0, *frames, end})
    left_out, before = {0: 0}, list[tuple[int, int]]()  # windows left out before a latent frame
    for begin, next_begin in pairwise(bounds):
        count = max(0, (next_begin - begin - kept) // inner)
        left_out[next_begin] = left_out[begin] + count
        if count:
            before.append((next_begin - left_out[next_begin] * inner - 3 * inner - 4, count))
    earlier = [left_out[frame] * seconds_of_window for frame in frames]
    total = left_out[end]
    for nudge in NUDGES if total else ():
        short = replace(
            request,
            seconds=request.seconds and request.seconds - total * seconds_of_window + nudge,
            moments=tuple(
                replace(one, at=max(0.0, one.at - shift)) for one, shift in zip(moments, earlier, strict=True)
            )
            if moments
            else request.moments,
            keyframes=tuple((max(0.0, at - shift), path) for (at, path), shift in zip(keyframes, earlier, strict=True))
            if keyframes
            else request.keyframes,
        )
        inputs_of_short = make_inputs(short)
        now = [moment.at for moment in short.moments or ()] if moments else [at for at, _ in short.keyframes or ()]
        wanted = [frame - left_out[frame] * inner for frame in frames]
        right_end = not request.seconds or inputs_of_short.shape[1] == end - total * inner
        if right_end and [inputs_of_short.latent_frame_at(at) for at in now] == wanted:
            return Shortened(short, total, tuple(before))
    return Shortened(request)


def _latent_frames(inputs: ModeInputs) -> list[int]:
    return [inputs.shape[1], 1 + inputs.latent_frames_in(inputs.request.seconds)]


def _middles(canvas: Canvas, left_out: int, mode: str, inner: int) -> tuple[tuple[int, int], ...]:
    """Return a latent frame late in each long span that was shortened, and the windows left out before it."""
    if canvas.periodic:
        return ((canvas.latent_frames, left_out),)
    spans = [(begin, end) for begin, end in denoised_spans(canvas) if end - begin > KEPT_WINDOWS // 2 * inner]
    if mode == "recut" and len(spans) == 2:  # they share what was left out
        left_out //= 2
    return tuple((end - 3 * inner - 4, left_out) for _, end in spans)


def _is_uniform(canvas: Canvas, frame: int, inner: int) -> bool:
    """Return whether all is to be generated in the windows around a latent frame."""
    around = (
        canvas.denoise_mask if canvas.periodic else canvas.denoise_mask[frame - 2 * inner - 2 : frame + 2 * inner + 2]
    )
    return frame > 2 * inner + 2 and bool((around == 1).all())
