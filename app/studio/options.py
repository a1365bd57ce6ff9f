"""The options of the page: the sizes and durations that models were trained for, modes, and presets."""

from __future__ import annotations

from typing import Any

from app.registry import AUTO, UPSAMPLER, learned_words
from app.server.service import ServedModel, Service
from app.studio.actions import MAX_VARIATIONS
from app.studio.gallery import MAX_NOTE_CHARS
from captioning.camera import CAMERA_MOVES
from captioning.upsampler import SUBFOLDERS as UPSAMPLER_FILES
from dit.modes import MODES
from dit.request import ALL_SAMPLERS, CORNERS, NO_UPSAMPLER, RENAMED, SIDES

DEFAULTS = ("steps", "guidance", "frame_guidance", "guidance_rescale", "sampler", "fps", "seconds")

# Phrases in the style of the training captions, to be added to a prompt.
PROMPT_PRESETS = {
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
PRESET_ATTRIBUTES = {"camera": ("camera",), "light": ("time of day", "sky"), "ground": ("ground",)}
STEP_PRESETS = {"draft": 1 / 3, "fine": 2.0}  # factors of the model's default steps


def studio_options(service: Service, single_user: bool) -> dict[str, Any]:
    """Return the body of GET /studio/options; `single_user` where there are no tokens."""
    models = [_describe_model(name, model) for name, model in service.models.items()]
    mode_fields = ("summary", "reads", "needs", "still", "timed", "any_length", "strength")
    shipped = (UPSAMPLER / UPSAMPLER_FILES[0]).is_dir()
    return {
        "models": models,
        "modes": [
            {"name": name} | {field: getattr(mode, field) for field in mode_fields} for name, mode in MODES.items()
        ],
        "samplers": list(ALL_SAMPLERS),
        "renamed": RENAMED,
        "upsamplers": [NO_UPSAMPLER, AUTO] if shipped else [NO_UPSAMPLER],
        "corners": list(CORNERS),
        "sides": list(SIDES),
        "single_user": single_user,
        "presets": _presets(models[0]["defaults"]["steps"]),
        "limits": {"variations": MAX_VARIATIONS, "note": MAX_NOTE_CHARS, "bytes": service.upload_limits.bytes},
    }


def _describe_model(name: str, model: ServedModel) -> dict[str, Any]:
    settings = model.settings
    sizes: dict[str, dict[str, Any]] = {}
    for columns, rows, frames in settings.formats:
        size_name = f"{columns}x{rows}"
        size = sizes.setdefault(size_name, {"size": size_name, "stills": False, "clips": False, "seconds": []})
        if frames == 1:
            size["stills"] = True
        else:
            size["clips"] = True
            size["seconds"] = sorted({*size["seconds"], frames / settings.fps})
    defaults = {field: getattr(settings, field) for field in DEFAULTS}
    defaults |= {"size": "{}x{}".format(*settings.size), "guidance_interval": list(settings.guidance_interval)}
    moves = list(CAMERA_MOVES) if model.camera else []
    learned = learned_words(str(model.folder)) if model.folder else None
    unheard = [group for group, names in PRESET_ATTRIBUTES.items() if learned and set(names) <= set(learned.unheard)]
    return {"name": name, "sizes": list(sizes.values()), "defaults": defaults, "camera": moves, "unheard": unheard}


def _presets(steps: int) -> list[dict[str, Any]]:
    """Return the presets: some set fields, some add a phrase to the prompt."""
    step_presets = [
        {"group": "quality", "name": name, "fields": {"steps": max(1, round(factor * steps))}}
        for name, factor in STEP_PRESETS.items()
    ]
    prompt_presets = [
        {"group": group, "name": name, "phrase": phrase}
        for group, phrases in PROMPT_PRESETS.items()
        for name, phrase in phrases.items()
    ]
    return step_presets + prompt_presets
