"""Probe a clip or an image: its first frame as a poster, its size and duration, and the request in its metadata.

The files may come from strangers: call `probe_file` in a child process, by `vae.video.sandbox.run_sandboxed`.
"""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from dit.request import METADATA_KEY
from vae.video.container import decode_frames, frame_rate, open_video, select_video_stream
from vae.video.convert import FrameConverter
from vae.video.image import read_image
from vae.video.pixels import MediaError, from_uint8, to_uint8
from vae.video.read import read_metadata

POSTER_SIDE = 320  # pixels, at most, of a poster's longer side
POSTER_QUALITY = 82  # of WebP: the lowest without visible blocks at 64 x 64
MEMORY_BYTES, TIMEOUT_SECONDS = 4 * 2**30, 60.0  # limits of the child process
IMAGE_SUFFIXES = (".png", ".jpg", ".webp", ".heic")


def probe_file(path: Path) -> dict[str, Any]:
    """Read what the gallery shows of a file.

    Returns `poster` (the bytes of a WebP), `columns`, `rows`, `frames`, `fps` and `seconds` (None for an image), and
    `request`: the JSON of the request in the file's metadata, or None. Raises MediaError for an unreadable file.
    """
    try:
        found = _probe_image(path) if path.suffix in IMAGE_SUFFIXES else _probe_video(path)
    except (MediaError, MemoryError):
        raise
    except Exception as error:  # decoders raise nearly any exception for a broken file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise MediaError(f"{path} cannot be read: {reason}; make it again") from None
    try:
        return found | {"request": read_metadata(path).get(METADATA_KEY)}
    except MediaError:  # of images, only PNG files have metadata of ours
        return found | {"request": None}


def _probe_image(path: Path) -> dict[str, Any]:
    image = Image.fromarray(_to_array(read_image(path)[:, 0]))
    size = {"columns": image.width, "rows": image.height}
    image.thumbnail((POSTER_SIDE, POSTER_SIDE))
    return size | {"poster": _encode_webp(image), "frames": 1, "fps": None, "seconds": None}


def _probe_video(path: Path) -> dict[str, Any]:
    frames, end, first = 0, Fraction(0), None
    with open_video(path) as container:
        stream = select_video_stream(container, path)
        for frames, (_, end, frame) in enumerate(decode_frames(container, stream), 1):  # noqa: B007
            if first is None:
                first = FrameConverter(path, stream)(frame)
        if first is None:
            raise MediaError(f"{path} holds no frame that can be decoded; export it again")
        fps = frame_rate(container, stream, frames, end)
    image = Image.fromarray(_to_array(first))
    size = {"columns": image.width, "rows": image.height}
    image.thumbnail((POSTER_SIDE, POSTER_SIDE))
    return size | {"poster": _encode_webp(image), "frames": frames, "fps": float(fps), "seconds": float(end)}


def _to_array(image: Tensor):
    """Return a (3, Y, X) image as a uint8 array (Y, X, 3)."""
    return to_uint8(from_uint8(image) if image.dtype.itemsize == 1 else image).permute(1, 2, 0).numpy()


def _encode_webp(image: Image.Image) -> bytes:
    poster = io.BytesIO()
    image.save(poster, "WEBP", quality=POSTER_QUALITY)
    return poster.getvalue()
