"""Which models exist: those shipped in `app/models`, and any model folder on disk."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from dit.request import NO_UPSAMPLER, Request, RequestError

MODELS = Path(__file__).parent / "models"
DEFAULT_MODEL = "first"
CAPTIONER = MODELS / "captioner"
JUDGE = MODELS / "judge"
UPSAMPLER = MODELS / "upsampler"
AUTO = "auto"  # the name of the shipped upsampler


def model_folder(name: str | None) -> Path:
    """Find a model by the name it is shipped under, or by its folder; raises RequestError where neither exists."""
    name = name or DEFAULT_MODEL
    for folder in (MODELS / name, Path(name)):
        if (folder / "model_index.json").is_file():
            return folder
    shipped = ", ".join(sorted(path.parent.name for path in MODELS.glob("*/model_index.json"))) or "none"
    raise RequestError(f"model must be a folder with a model_index.json or a shipped model ({shipped}); got {name!r}")


def resolve_upsampler(name: str | None) -> str | None:
    """Return what `load_upsampler` loads for the upsampler that a request names, or None for no upsampler.

    Raises RequestError where the shipped upsampler is named and missing.
    """
    if name != AUTO:
        return None if name == NO_UPSAMPLER else name
    if not any(UPSAMPLER.glob("*/config.json")):
        raise RequestError(
            f"upsample {AUTO} needs the shipped upsampler; there is none in this copy, so name another: "
            "the folder that longtake train upsampler leaves, a language model of transformers, or ADDRESS#MODEL"
        )
    return str(UPSAMPLER)


def check_upsampler_choice(request: Request, chosen: Collection[str | None] = ()) -> None:
    """Raise RequestError where a request that a file or a row holds would load an upsampler that nobody chose.

    An upsampler may be an address that gets the prompts and OPENAI_API_KEY, so only the command line, whose choices are
    `chosen`, may name one. Any file or row may name none or the shipped one, or hold the upsampled prompt already.
    """
    if not (request.upsampled_prompt or request.upsample in (None, NO_UPSAMPLER, AUTO, *chosen)):
        raise RequestError(
            f"a file or row may name the upsamplers {NO_UPSAMPLER} and {AUTO} only; got {request.upsample!r}, so give "
            "--upsample NAME on the command line"
        )


def shipped_captioner() -> Path:
    """Return the shipped captioner's folder; raises ValueError where none is shipped."""
    if not CAPTIONER.is_dir():
        raise ValueError("a captioner must be named where none is shipped; give --captioner, or --endpoint and --model")
    return CAPTIONER
