"""Every way to make a clip: a table, one row a mode. A mode paints a canvas and knows nothing else.

`paint(request, shape, fps, code)` returns the canvas for latents of `shape` (C, T, H, W); `code(path)` gives the
latents (C, 1, H, W) of a picture, fitted to the request's size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dit.request import Request

if TYPE_CHECKING:
    from torch import Tensor

    from dit.canvas import Canvas

Shape = tuple[int, int, int, int]
Code = Callable[[str], "Tensor"]


@dataclass(frozen=True)
class Mode:
    """A row: what it does in one line, how to paint it, which fields of a Request it reads beside the common ones, an
    example.
    """

    line: str
    paint: Callable[[Request, Shape, float, Code], Canvas]
    example: str
    needs: tuple[str, ...] = ()
    still: bool = False  # makes one frame, and reads neither seconds nor fps


def text_to_video(request: Request, shape: Shape, fps: float, code: Code) -> Canvas:
    from dit.canvas import blank

    return blank(shape, fps)


def image_to_video(request: Request, shape: Shape, fps: float, code: Code) -> Canvas:
    canvas = text_to_video(request, shape, fps, code)
    given, level = canvas.given.clone(), canvas.level.clone()
    given[:, :1], level[:1] = code(request.image or ""), 0
    return replace(canvas, given=given, level=level)


MODES: dict[str, Mode] = {
    "text-to-video": Mode(
        "A clip from words.", text_to_video, 'longtake generate "a red ball bounces" --seconds 2 -o clip.mp4'
    ),
    "text-to-image": Mode(
        "A picture from words.",
        text_to_video,
        'longtake generate "a large blue cube" --mode text-to-image -o cube.png',
        still=True,
    ),
    "image-to-video": Mode(
        "A still comes alive: the first frame is the picture.",
        image_to_video,
        'longtake generate "the cube spins" --mode image-to-video --image cube.png -o spin.mp4',
        needs=("image",),
    ),
}
