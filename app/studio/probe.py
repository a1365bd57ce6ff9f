"""One look at a clip or a picture: its first frame as a poster, how long and large it is, and the request it carries.

Files may be strangers', so `glance` is to be called in a child process, by `vae.video.sandbox.run_sandboxed`.
"""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps
from torch import Tensor

from dit.request import METADATA_KEY
from vae.video.pixels import MediaError, from_uint8, to_uint8
from vae.video.read import (
    check_readable,
    decode_frames,
    frame_rate,
    frame_to_tensor,
    open_video,
    read_metadata,
    select_video_stream,
)

POSTER_SIDE = 320  # the most pixels of a poster's longer side
POSTER_QUALITY = 82  # of WebP, where no blocks are to be seen at 64 x 64 yet
MEMORY, SECONDS = 4 * 2**30, 60.0  # for the child
PICTURES = {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP"}


def glance(path: Path) -> dict[str, Any]:
    """Return `poster` (bytes of a WebP), `columns`, `rows`, `frames`, `fps` and `seconds` (None of a picture), and
    `request`, the text that longtake left in the file, if any.

    Raises MediaError for what cannot be read.
    """
    try:
        found = _picture(path) if path.suffix in PICTURES else _film(path)
    except (MediaError, MemoryError):
        raise
    except Exception as error:  # readers raise nearly anything on a broken file
        what = (str(error).splitlines() or [type(error).__name__])[0]
        raise MediaError(f"{path} cannot be read: {what}; make it again") from None
    try:
        return found | {"request": read_metadata(path).get(METADATA_KEY)}
    except MediaError:  # pictures that are no PNG have no words of ours
        return found | {"request": None}


def _picture(path: Path) -> dict[str, Any]:
    with Image.open(check_readable(path), formats=[PICTURES[path.suffix]]) as image:
        image.load()
        image = ImageOps.exif_transpose(image)
        size = {"columns": image.width, "rows": image.height}
        image = image.convert("RGBA")
        image.thumbnail((POSTER_SIDE, POSTER_SIDE))
        return size | {"poster": _webp(image), "frames": 1, "fps": None, "seconds": None}


def _film(path: Path) -> dict[str, Any]:
    frames, end, first = 0, Fraction(0), None
    with open_video(path) as container:
        stream = select_video_stream(container, path)
        for frames, (_, end, frame) in enumerate(decode_frames(container, stream), 1):  # noqa: B007
            if first is None:
                first = frame_to_tensor(frame, None)
        if first is None:
            raise MediaError(f"{path} holds no frame that can be decoded; export it again")
        fps = frame_rate(container, stream, frames, end)
    image = Image.fromarray(_bytes(first))
    size = {"columns": image.width, "rows": image.height}
    image.thumbnail((POSTER_SIDE, POSTER_SIDE))
    return size | {"poster": _webp(image), "frames": frames, "fps": float(fps), "seconds": float(end)}


def _bytes(picture: Tensor):
    return to_uint8(from_uint8(picture) if picture.dtype.itemsize == 1 else picture).permute(1, 2, 0).numpy()


def _webp(image: Image.Image) -> bytes:
    poster = io.BytesIO()
    image.save(poster, "WEBP", quality=POSTER_QUALITY)
    return poster.getvalue()
