"""What a model folder says of itself beside its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vae.weights import WeightsError, read_json

SETTINGS = "longtake.json"  # the file's name


@dataclass(frozen=True)
class Settings:
    """What a model was trained for, and what fills a request's gaps.

    `formats` are the (columns, rows, frames) of training; `size` is (columns, rows) in pixels.
    """

    formats: tuple[tuple[int, int, int], ...] = ((64, 64, 17), (64, 64, 1))
    fps: float = 8.0
    size: tuple[int, int] = (64, 64)
    seconds: float = 2.125
    steps: int = 30
    guidance: float = 4.0
    frame_guidance: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0
    method: str = "euler"


def read_settings(path: Path) -> Settings:
    """Read a model's settings; raises WeightsError where they are absent, damaged or another model's."""
    found = read_json(path)
    try:
        formats = tuple((int(columns), int(rows), int(frames)) for columns, rows, frames in found.pop("formats"))
        columns, rows = found.pop("size")
        low, high = found.pop("interval", Settings.interval)
        return Settings(formats=formats, size=(int(columns), int(rows)), interval=(float(low), float(high)), **found)
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path} does not say what the model was trained for: {error}") from error
