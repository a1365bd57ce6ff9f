"""Which models exist: those shipped in `app/models`, and any model folder on disk."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from dit.request import NO_UPSAMPLER, Request, RequestError

if TYPE_CHECKING:
    from captioning.learned_words import LearnedWords

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


def learned_words(model: str | None) -> LearnedWords | None:
    """Return the words that a model's captions hold; None where it is not known, or no model has that name.

    Raises WeightsError where the list is damaged.
    """
    from captioning.learned_words import LEARNED_WORDS

    with suppress(RequestError, FileNotFoundError):
        folder = model_folder(model)
        return _read_learned_words(folder, (folder / LEARNED_WORDS).stat().st_mtime_ns)
    return None


@lru_cache(maxsize=32)
def _read_learned_words(folder: Path, changed: int) -> LearnedWords | None:
    from captioning.learned_words import read_learned_words

    return read_learned_words(folder)


def unlearned_words(request: Request) -> tuple[str, ...]:
    """Return the words that a request has its model read, of all its prompts, and that the model never learned."""
    learned = learned_words(request.model)
    return learned.unlearned(prompts_of(request)) if learned else ()


def prompts_of(request: Request) -> str:
    """Return all that a request asks to see, as lines: the prompt that is read, or those of its moments."""
    return "\n".join(filter(None, (request.effective_prompt, *(moment.prompt for moment in request.moments or ()))))


def describe_unlearned(requests: Iterable[Request]) -> str | None:
    """Say on one line which words of requests their models never learned; None where there are none."""
    found = dict[str | None, dict[str, None]]()
    for request in requests:
        if words := unlearned_words(request):
            found.setdefault(request.model, {}).update(dict.fromkeys(words))
    lines = [learned.describe(tuple(words)) for model, words in found.items() if (learned := learned_words(model))]
    return " | ".join(lines) or None


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
