"""Which models there are: those shipped in `app/models`, and any model folder on disk."""

from __future__ import annotations

from pathlib import Path

from dit.request import NONE, RequestError

MODELS = Path(__file__).parent / "models"
DEFAULT_MODEL = "first"
CAPTIONER = MODELS / "captioner"
JUDGE = MODELS / "judge"
UPSAMPLER = MODELS / "upsampler"
AUTO = "auto"  # the name of the shipped upsampler


def model_folder(name: str | None) -> Path:
    """Find a model by the name it is shipped under, or by its folder; raises RequestError where neither is one."""
    name = name or DEFAULT_MODEL
    for folder in (MODELS / name, Path(name)):
        if (folder / "model_index.json").is_file():
            return folder
    shipped = ", ".join(sorted(path.parent.name for path in MODELS.glob("*/model_index.json"))) or "none"
    raise RequestError(f"model must be a folder with a model_index.json or a shipped model ({shipped}); got {name!r}")


def upsampler_named(name: str | None) -> str | None:
    """Return the upsampler that a request names, None for none; raises RequestError where the shipped one is not
    there.
    """
    if name != AUTO:
        return None if name == NONE else name
    if not any(UPSAMPLER.glob("*/config.json")):
        raise RequestError(
            f"upsample {AUTO} needs the shipped upsampler; there is none in this copy, so name another: "
            "the folder that longtake train upsampler leaves, a language model of transformers, or ADDRESS#MODEL"
        )
    return str(UPSAMPLER)
