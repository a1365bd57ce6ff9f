"""Read images: upright, in sRGB by their colour profile, over black where they are transparent."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange, repeat
from PIL import Image, ImageCms, ImageOps
from torch import Tensor

from vae.video.container import MAX_FRAME_PIXELS, check_readable
from vae.video.pixels import MediaError, from_uint8

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "HEIF")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".heif")  # others are videos
HEIF_SUFFIXES = (".heic", ".heif")
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
PROFILE_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # Pillow's modes by the colour space of a profile


class ImageInfo(NamedTuple):
    """Rows and columns of an image as it is shown, and whether some of it is transparent."""

    rows: int
    columns: int
    transparent: bool


def read_image(path: str | Path) -> Tensor:
    """Read an image as (3, 1, Y, X) in [-1, 1], rotated by its EXIF tag, alpha over black, 16-bit values kept.

    Colours are converted from an embedded ICC profile to sRGB; without one, RGB is taken as sRGB. Raises MediaError
    naming the file if it is missing, broken, truncated, too large or no image.
    """
    with _opened(path) as image:
        if image.mode == "F":
            raise MediaError(f"{path} must hold whole numbers; got floating point; save it as PNG with 16 bits")
        if image.mode.startswith("I"):
            grey = torch.from_numpy(np.asarray(image).astype(np.float32)) / 65535 * 2 - 1
            return repeat(grey.clamp(-1, 1), "y x -> c 1 y x", c=3).contiguous()
        alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
        colours = to_srgb(image)
        if alpha is not None:
            colours.putalpha(alpha)
            colours = Image.alpha_composite(Image.new("RGBA", image.size, "black"), colours).convert("RGB")
        pixels = torch.from_numpy(np.array(colours))
    return from_uint8(rearrange(pixels, "y x c -> c 1 y x").contiguous())


def describe_image(path: str | Path) -> ImageInfo:
    """Return the size of an image as it is shown, and whether it is transparent. Raises as `read_image` does."""
    with _opened(path) as image:
        alpha = np.asarray(image.convert("RGBA"))[..., 3] if image.has_transparency_data else np.array(255)
        return ImageInfo(image.height, image.width, bool(alpha.min() < 255))


class _opened:
    """Open and decode an image, upright; raise MediaError for anything that goes wrong within the block."""

    def __init__(self, path: str | Path):
        self.path, self.file = check_readable(path), None

    def __enter__(self) -> Image.Image:
        try:
            if is_heif(self.path):
                register_heif(self.path)
            self.file = Image.open(self.path, formats=IMAGE_FORMATS)
            if self.file.width * self.file.height > MAX_FRAME_PIXELS:
                rule = f"{self.path} must have at most {MAX_FRAME_PIXELS} pixels"
                raise MediaError(f"{rule}; got {self.file.size}; shrink it first")
            self.file.load()
            return ImageOps.exif_transpose(self.file)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise

    def __exit__(self, kind, error, traceback) -> None:
        if self.file is not None:
            self.file.close()
        if isinstance(error, Exception) and not isinstance(error, (MediaError, MemoryError)):
            kinds = ", ".join(IMAGE_FORMATS)  # Pillow raises nearly any exception for a broken file
            raise MediaError(
                f"{self.path} cannot be read as an image ({kinds}): {error}; save it again as PNG"
            ) from error


def is_heif(path: Path) -> bool:
    """Say whether a file is HEIF, as iPhones take pictures, by its first bytes."""
    with path.open("rb") as file:
        head = file.read(12)
    return head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS


def register_heif(path: str | Path) -> None:
    """Let Pillow read HEIF. Raises MediaError naming the file where pillow-heif is not installed."""
    try:
        import pillow_heif
    except ImportError:
        remedy = "pip install pillow-heif, or save it as JPEG"
        raise MediaError(
            f"{path} is HEIC, which needs the package pillow-heif; it is not installed; {remedy}"
        ) from None
    pillow_heif.register_heif_opener(thumbnails=False)


def to_srgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB in sRGB, by its ICC profile if it has a sound one; alpha is dropped."""
    profile = image.info.get("icc_profile")
    if profile:
        try:
            given: Any = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            mode = PROFILE_MODES.get(given.profile.xcolor_space.strip())
            if mode is not None and (mode == "CMYK") == (image.mode == "CMYK"):
                found = ImageCms.profileToProfile(
                    image if image.mode == mode else image.convert(mode),
                    given,
                    ImageCms.createProfile("sRGB"),
                    renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
                    outputMode="RGB",
                    flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
                )
                assert found is not None, "only a conversion in place returns nothing"
                return found
        except (ImageCms.PyCMSError, OSError, ValueError):  # a damaged profile says nothing
            pass
    return (image.convert("RGBA") if image.has_transparency_data else image).convert("RGB")
