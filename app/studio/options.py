"""What the page may offer: sizes and durations that models were trained for, modes, and short cuts to good words."""

from __future__ import annotations

from typing import Any

from app.registry import AUTO, UPSAMPLER
from app.server.service import ServedModel, Service
from app.studio.actions import MOST_VARIATIONS
from app.studio.gallery import LONGEST_NOTE
from captioning.upsampler import SUBFOLDERS as UPSAMPLER_FILES
from dit.modes import MODES
from dit.request import CORNERS, NO_UPSAMPLER, RENAMED, SAMPLERS, SIDES

DEFAULTS = ("steps", "guidance", "frame_guidance", "guidance_rescale", "sampler", "fps", "seconds")

# Words as captions of the world that models are trained on have them, to be added to a prompt.
WORDS = {
    "camera": {
        "still": "the camera holds still",
        "orbit": "the camera orbits to the left",
        "pan": "the camera pans to the right",
        "rise": "the camera cranes up",
        "zoom": "the camera zooms in",
    },
    "light": {
        "morning": "in the morning",
        "noon": "at noon under a clear sky",
        "sunset": "at sunset",
        "night": "at night",
    },
    "ground": {"grass": "on the grass", "sand": "on sand", "wood": "on a wooden floor", "concrete": "on concrete"},
}
PACES = {"draft": 1 / 3, "fine": 2.0}  # of a model's own number of steps


def offered(service: Service, alone: bool) -> dict[str, Any]:
    """Return what GET /studio/offer tells; `alone` where there are no tokens."""
    models = [_model(name, model) for name, model in service.models.items()]
    modes = ("summary", "reads", "needs", "still", "timed", "any_length", "strength")
    shipped = (UPSAMPLER / UPSAMPLER_FILES[0]).is_dir()
    return {
        "models": models,
        "modes": [{"name": name} | {part: getattr(mode, part) for part in modes} for name, mode in MODES.items()],
        "samplers": list(SAMPLERS),
        "renamed": RENAMED,
        "upsamplers": [NO_UPSAMPLER, AUTO] if shipped else [NO_UPSAMPLER],
        "corners": list(CORNERS),
        "sides": list(SIDES),
        "alone": alone,
        "presets": _presets(models[0]["defaults"]["steps"]),
        "limits": {"variations": MOST_VARIATIONS, "note": LONGEST_NOTE, "bytes": service.upload_limits.bytes},
    }


def _model(name: str, model: ServedModel) -> dict[str, Any]:
    settings = model.settings
    sizes: dict[str, dict[str, Any]] = {}
    for columns, rows, frames in settings.formats:
        told = f"{columns}x{rows}"
        size = sizes.setdefault(told, {"size": told, "stills": False, "clips": False, "seconds": []})
        if frames == 1:
            size["stills"] = True
        else:
            size["clips"] = True
            size["seconds"] = sorted({*size["seconds"], frames / settings.fps})
    defaults = {part: getattr(settings, part) for part in DEFAULTS}
    defaults |= {"size": "{}x{}".format(*settings.size), "guidance_interval": list(settings.guidance_interval)}
    return {"name": name, "sizes": list(sizes.values()), "defaults": defaults}


def _presets(steps: int) -> list[dict[str, Any]]:
    """Return short cuts: some fill fields, some add words to the prompt."""
    paces = [
        {"group": "pace", "name": name, "fields": {"steps": max(1, round(share * steps))}}
        for name, share in PACES.items()
    ]
    words = [
        {"group": group, "name": name, "words": said} for group, some in WORDS.items() for name, said in some.items()
    ]
    return paces + words
