"""Which models exist: those shipped in `app/models`, those that were added by name, and any model folder on disk."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from app.home import home, make_private_folder
from dit.request import NO_UPSAMPLER, Request, RequestError
from vae.files import atomic_write

if TYPE_CHECKING:
    from captioning.learned_words import LearnedWords

MODELS = Path(__file__).parent / "models"
DEFAULT_MODEL = "first"
INDEX = "model_index.json"  # which every model folder has
ADDED = "models.json"  # in LONGTAKE_HOME: the models that were added
CAPTIONER = MODELS / "captioner"
JUDGE = MODELS / "judge"
UPSAMPLER = MODELS / "upsampler"
AUTO = "auto"  # the name of the shipped upsampler


def model_folder(name: str | None) -> Path:
    """Find a model by the name it is shipped or was added under, or by its folder.

    Raises RequestError where there is none.
    """
    name = name or DEFAULT_MODEL
    if (MODELS / name / INDEX).is_file():
        return MODELS / name
    added = added_models()
    for folder in (*([added[name].folder] if name in added else []), Path(name)):
        if (folder / INDEX).is_file():
            return folder
    known = ", ".join([*shipped_models(), *added]) or "none"
    raise RequestError(
        f"model must be a folder with a {INDEX}, or one that longtake models lists ({known}); got {name!r}"
    )


@dataclass(frozen=True)
class AddedModel:
    """A model that a user added: its folder, and the hash of its weights then."""

    folder: Path
    hash: str


def shipped_models() -> list[str]:
    """Return the names of the shipped models."""
    return sorted(path.parent.name for path in MODELS.glob(f"*/{INDEX}"))


def added_models() -> dict[str, AddedModel]:
    """Return the models that were added, by name; raises RequestError where their list is damaged."""
    path = home() / ADDED
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return {name: AddedModel(Path(one["folder"]), one["hash"]) for name, one in stored.items()}
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return {}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RequestError(f"{path} must list models by name; it is damaged: {error}; remove it") from None


def write_added_models(models: dict[str, AddedModel]) -> None:
    """Write the list of added models."""
    make_private_folder(home())
    stored = {name: {"folder": str(one.folder), "hash": one.hash} for name, one in sorted(models.items())}
    with atomic_write(home() / ADDED) as draft:
        draft.write_text(json.dumps(stored, indent=2, ensure_ascii=False), encoding="utf-8")


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
