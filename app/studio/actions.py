"""What the page requests: variations of a clip, an estimate, an upsampled prompt, a storyboard as YAML."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import yaml  # type: ignore[import-untyped]

from app.queue.estimate import load_cost_model
from app.queue.jobs import Job
from app.registry import AUTO, learned_words, resolve_upsampler
from app.server.parsing import request_fields, short_repr
from app.server.service import Service
from app.studio.forecast import Forecast
from app.studio.gallery import Gallery
from app.studio.remake import fields_to_remake
from captioning.learned_words import NAMED_EXAMPLES
from captioning.text_encoder import shorten_to_limit
from captioning.upsampler import TrainedUpsampler, Upsampler, load_upsampler
from dit.request import INTEGER_LIMIT, Request, RequestError, check_lengths
from dit.storyboard import MAX_STORYBOARD_BYTES, parse_storyboard

VARIATIONS, MAX_VARIATIONS = "variations", 8
MAX_WORDS_CHARS = 20_000  # of prompts whose words are looked up
STORYBOARD_FIELDS = ("mode", "prompt", "negative_prompt", "size", "seconds", "steps", "guidance", "seed", "moments")


def submit(service: Service, fields: dict[str, Any], owner: str) -> list[Job]:
    """Queue a clip, or as many `variations` of it as the fields say, with consecutive seeds: all or none.

    Raises what `Service.build_request` raises, and QueueFull where the owner would have too many unfinished jobs.
    """
    request, variations = _build_request(service, fields, owner)
    if request.seed + variations > INTEGER_LIMIT:
        raise RequestError(f"seeds must lie below 2^63; got {request.seed} and {variations - 1} after it")
    requests = [replace(request, seed=request.seed + number) for number in range(variations)]
    return service.queue_requests(requests, owner)


def _build_request(service: Service, fields: dict[str, Any], owner: str) -> tuple[Request, int]:
    variations = _parse_variations(fields.get(VARIATIONS, 1))
    with flags_removed():
        request = service.build_request({name: value for name, value in fields.items() if name != VARIATIONS}, owner)
    return request, variations


@contextmanager
def flags_removed() -> Iterator[None]:
    """Remove the dashes of command line flags from the messages of RequestErrors, since a page has no flags."""
    try:
        yield
    except RequestError as error:
        raise RequestError(without_flags(str(error))) from error


def without_flags(message: str) -> str:
    """Write fields as the page does: --seconds becomes seconds."""
    return re.sub(r"(?<![\w-])--(?=[a-z])", "", message)


def _parse_variations(value: Any) -> int:
    count = int(value) if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 5 else value
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MAX_VARIATIONS:
        raise RequestError(f"variations must be a whole number from 1 to {MAX_VARIATIONS}; got {short_repr(value)}")
    return count


def estimate(service: Service, forecast: Forecast, fields: dict[str, Any], owner: str) -> dict[str, Any]:
    """Estimate the duration and the file sizes of what `submit` would queue; raises what `submit` raises."""
    request, variations = _build_request(service, fields, owner)
    with flags_removed():
        found = forecast.estimate(request)
    seconds, size = variations * found.seconds + forecast.loading_seconds(), variations * found.file_bytes
    clips = found.speed.clips
    basis = f"measured on {clips} clips made here" if clips else "a guess until a clip was made here"
    sentence = f"about {format_seconds(seconds)}, {basis}; {size / 1000:,.0f} kB"
    return {"seconds": round(seconds, 1), "bytes": size, "sentence": sentence, "measured": bool(clips)}


def format_seconds(seconds: float) -> str:
    """Write a duration in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 1 else "a second"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def upsample_prompt(service: Service, prompt: Any, seed: Any, still: Any, model: Any = None) -> dict[str, Any]:
    """Upsample a prompt with the shipped upsampler, to at most the token limit of the model's text encoder.

    Returns the upsampled prompt, the attributes that it adds with their values, and why it is the prompt itself where
    it is: "long", "unknown" or "unsure". Prompt and upsampled prompt are both checked by the policy. Raises
    RequestError for an empty prompt, and where no upsampler is shipped.
    """
    fields = request_fields({"prompt": prompt, "seed": seed} | ({"model": model} if model else {}))
    name = fields.pop("model", next(iter(service.models)))
    if not isinstance(name, str) or name not in service.models:
        raise RequestError(f"model must be one of {', '.join(service.models)}; got {short_repr(name)}")
    request = Request.from_dict(fields | {"model": service.models[name].name})
    if not request.prompt.strip():
        raise RequestError("a prompt must say something; got none, so describe the clip in a sentence")
    folder = resolve_upsampler(AUTO)
    service.check_request(request)
    upsampler, typed = cached_upsampler(str(folder)), request.prompt.strip()
    text = upsampler.upsample(typed, request.seed, bool(still))
    upsampled = shorten_to_limit(load_cost_model(request.model).pipeline.tokenizer, text) or typed
    service.check_request(replace(request, upsampled_prompt=upsampled))
    found: dict[str, Any] = {"upsampled_prompt": upsampled, "added": {}, "unchanged": None}
    if isinstance(upsampler, TrainedUpsampler):
        if upsampled == typed:
            found["unchanged"] = upsampler.reason_unchanged(typed)
        elif upsampler.lexicons:
            found["added"] = upsampler.lexicons.added(typed, upsampled)
    return found


def unlearned_words(service: Service, fields: dict[str, Any]) -> dict[str, Any]:
    """Return the words of the `texts` that a model never learned, and examples of its words by language.

    Both are empty for a model of which no list is known. Raises RequestError for other fields.
    """
    texts, name = fields.get("texts"), fields.get("model") or next(iter(service.models))
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise RequestError(f"texts must be a list of prompts; got {short_repr(texts)}")
    if name not in service.models:
        raise RequestError(f"model must be one of {', '.join(service.models)}; got {short_repr(name)}")
    folder = service.models[name].folder
    learned = learned_words(str(folder)) if folder else None
    if learned is None:
        return {"unlearned": [], "examples": {}}
    found = learned.unlearned("\n".join(texts)[:MAX_WORDS_CHARS])
    return {"unlearned": found, "examples": {name: some[:NAMED_EXAMPLES] for name, some in learned.examples.items()}}


@cache
def cached_upsampler(folder: str) -> Upsampler:
    """Load an upsampler once."""
    return load_upsampler(folder)


def storyboard_from_yaml(text: Any, gallery: Gallery, owner: str) -> tuple[dict[str, Any], list[str]]:
    """Return the fields of a storyboard in YAML or JSON, and a sentence for each input file not found.

    Input files are named by ids of the owner's clips and uploads. Raises RequestError for an invalid storyboard.
    """
    if not isinstance(text, str):
        raise RequestError(f"a storyboard must be text, YAML or JSON; got a {type(text).__name__}")
    if len(text.encode(errors="replace")) > MAX_STORYBOARD_BYTES:
        raise RequestError(f"a storyboard must have at most {MAX_STORYBOARD_BYTES:,} bytes; got more; shorten it")
    fields = request_fields({"mode": "storyboard"} | parse_storyboard(text))
    fields.pop("model", None)
    return fields_to_remake(Request.from_dict(fields), gallery, owner)


def storyboard_to_yaml(fields: Any) -> str:
    """Write the fields of a storyboard as YAML; raises RequestError for other fields."""
    if not isinstance(fields, dict):
        raise RequestError(f"a storyboard must be an object of fields; got a {type(fields).__name__}")
    request = Request.from_dict(request_fields(fields))
    check_lengths(request)
    if not request.moments:
        raise RequestError("a storyboard must have moments, each with at and prompt; got none, so add one")
    values = {name: getattr(request, name) for name in STORYBOARD_FIELDS if name not in ("size", "moments")}
    if request.size:
        values["size"] = "{}x{}".format(*request.size)
    moments = [{name: value for name, value in vars(moment).items() if value is not None} for moment in request.moments]
    board = {name: values[name] for name in STORYBOARD_FIELDS if values.get(name) not in (None, "")}
    return yaml.safe_dump(board | {"moments": moments}, allow_unicode=True, sort_keys=False, width=100)
