"""The settings of a model folder, what the model was trained for and the defaults of a request; and its hash."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from captioning.text_encoder import SUBFOLDERS as TEXT_SUBFOLDERS
from dit.request import RENAMED, with_current_names
from vae.weights import WeightsError, hash_of_file, read_json, weights_in

SETTINGS = "longtake.json"  # the file's name in a model folder


@dataclass(frozen=True)
class Settings:
    """What a model was trained for, and the defaults that it fills into a request.

    `formats` are the (columns, rows, frames) of training; `size` is (columns, rows) in pixels.
    """

    formats: tuple[tuple[int, int, int], ...] = ((64, 64, 17), (64, 64, 1))
    fps: float = 8.0
    size: tuple[int, int] = (64, 64)
    seconds: float = 2.125
    steps: int = 30
    guidance: float = 4.0
    frame_guidance: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_rescale: float = 0.0
    sampler: str = "euler"


def read_settings(path: Path) -> Settings:
    """Read a model's settings, also those of version 0.1; raises WeightsError where they are absent or invalid."""
    stored = read_json(path)
    try:
        stored = with_current_names(stored)
        formats = tuple((int(columns), int(rows), int(frames)) for columns, rows, frames in stored.pop("formats"))
        columns, rows = stored.pop("size")
        low, high = stored.pop("guidance_interval", Settings.guidance_interval)
        interval = float(low), float(high)
        return Settings(formats=formats, size=(int(columns), int(rows)), guidance_interval=interval, **stored)
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path} does not say what the model was trained for: {error}") from error


def hash_of_model(folder: Path) -> str:
    """Return the hash of a model folder's weights and settings; fields renamed since version 0.1 do not change it."""
    settings = (folder / SETTINGS).read_bytes()
    for old, new in RENAMED.items():
        settings = settings.replace(f'"{new}":'.encode(), f'"{old}":'.encode())
    weights = (path for part in ("transformer", "vae", TEXT_SUBFOLDERS[0]) for path in weights_in(folder / part))
    return hash_of_file(settings, *weights)
