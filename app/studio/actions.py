"""What the page asks for: variations of a clip, an estimate, a prompt written out, a storyboard's text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import yaml  # type: ignore[import-untyped]

from app.formats import IMAGE_SUFFIXES
from app.queue.estimate import load_cost_model
from app.queue.jobs import Job
from app.registry import AUTO, resolve_upsampler
from app.server.parsing import request_fields, short_repr
from app.server.service import Service
from app.studio.forecast import Forecast
from app.studio.gallery import Shelf
from app.studio.remake import again
from captioning.text_encoder import shorten_to_limit
from captioning.upsampler import Upsampler, load_upsampler
from dit.modes import mode_of
from dit.request import INTEGER_LIMIT, Request, RequestError
from dit.storyboard import MAX_STORYBOARD_BYTES, parse_storyboard

VARIATIONS, MOST_VARIATIONS = "variations", 8
BOARD = ("mode", "prompt", "negative_prompt", "size", "seconds", "steps", "guidance", "seed", "moments")


def submit(service: Service, found: dict[str, Any], owner: str) -> list[Job]:
    """Queue a clip, or as many `variations` of it as a client asks for, with the seed and those after it: all or none.

    Raises what `Service.build_request` does, and QueueFull where the owner would have too many in line.
    """
    request, many = _asked(service, found, owner)
    if request.seed + many > INTEGER_LIMIT:
        raise RequestError(f"seeds must lie below 2^63; got {request.seed} and {many - 1} after it")
    requests = [replace(request, seed=request.seed + more) for more in range(many)]
    still = mode_of(request).still
    suffix = IMAGE_SUFFIXES[0] if still else ".mp4"
    return service.queue.submit(requests, suffix, owner=owner, max_open=service.max_open_jobs)


def _asked(service: Service, found: dict[str, Any], owner: str) -> tuple[Request, int]:
    many = _many(found.get(VARIATIONS, 1))
    with plainly():
        return service.build_request({name: value for name, value in found.items() if name != VARIATIONS}, owner), many


@contextmanager
def plainly() -> Iterator[None]:
    """Say what is refused without the flags of the command line, which a page does not have."""
    try:
        yield
    except RequestError as error:
        raise RequestError(without_flags(str(error))) from error


def without_flags(sentence: str) -> str:
    """Name fields as a page does: --seconds is seconds."""
    return re.sub(r"(?<![\w-])--(?=[a-z])", "", sentence)


def _many(told: Any) -> int:
    many = int(told) if isinstance(told, str) and told.isascii() and told.isdecimal() and len(told) < 5 else told
    if isinstance(many, bool) or not isinstance(many, int) or not 1 <= many <= MOST_VARIATIONS:
        raise RequestError(f"variations must be a whole number from 1 to {MOST_VARIATIONS}; got {short_repr(told)}")
    return many


def estimate(service: Service, forecast: Forecast, found: dict[str, Any], owner: str) -> dict[str, Any]:
    """Say how long what a client would ask for takes and how large its files will be; raises what `submit` does."""
    request, many = _asked(service, found, owner)
    with plainly():
        each = forecast.estimate(request)
    seconds, size = many * each.seconds, many * each.file_bytes
    since = f"as fast as {each.speed.clips} clips made here" if each.speed.clips else "a guess until one was made here"
    sentence = f"about {lasting(seconds)}, {since}; {size / 1000:,.0f} kB"
    return {"seconds": round(seconds, 1), "bytes": size, "sentence": sentence, "learned": bool(each.speed.clips)}


def lasting(seconds: float) -> str:
    """Say how long something lasts."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 1 else "a second"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def written_out(service: Service, prompt: Any, seed: Any, still: Any, model: Any = None) -> str:
    """Write a prompt out by the shipped upsampler, in as many sentences as the model can read; what was typed and what
    is written are held to the policy. Raises RequestError where none is shipped, or for no prompt.
    """
    fields = request_fields({"prompt": prompt, "seed": seed} | ({"model": model} if model else {}))
    name = fields.pop("model", next(iter(service.models)))
    if not isinstance(name, str) or name not in service.models:
        raise RequestError(f"model must be one of {', '.join(service.models)}; got {short_repr(name)}")
    request = Request.from_dict(fields | {"model": service.models[name].name})
    if not request.prompt.strip():
        raise RequestError("a prompt must say something; got none, so describe the clip in a sentence")
    named = resolve_upsampler(AUTO)
    service.check_request(request)
    text = writer(str(named)).upsample(request.prompt.strip(), request.seed, bool(still))
    written = shorten_to_limit(load_cost_model(request.model).pipeline.tokenizer, text) or request.prompt.strip()
    service.check_request(replace(request, upsampled_prompt=written))
    return written


@cache
def writer(folder: str) -> Upsampler:
    """Load an upsampler once, and keep it."""
    return load_upsampler(folder)


def board_in(text: Any, shelf: Shelf, owner: str) -> tuple[dict[str, Any], list[str]]:
    """Return the fields of a storyboard's text, and a sentence for each thing that is not there: files go by ids of
    the owner's. Raises RequestError for what is no storyboard.
    """
    if not isinstance(text, str):
        raise RequestError(f"a storyboard must be text, YAML or JSON; got a {type(text).__name__}")
    if len(text.encode(errors="replace")) > MAX_STORYBOARD_BYTES:
        raise RequestError(f"a storyboard must have at most {MAX_STORYBOARD_BYTES:,} bytes; got more; shorten it")
    fields = request_fields({"mode": "storyboard"} | parse_storyboard(text))
    fields.pop("model", None)
    return again(Request.from_dict(fields), shelf, owner)


def board_text(found: Any) -> str:
    """Write a storyboard's fields as YAML; raises RequestError for what is none."""
    if not isinstance(found, dict):
        raise RequestError(f"a storyboard must be an object of fields; got a {type(found).__name__}")
    request = Request.from_dict(request_fields(found))
    if not request.moments:
        raise RequestError("a storyboard must have moments, each with at and prompt; got none, so tell one")
    fields = {name: getattr(request, name) for name in BOARD if name not in ("size", "moments")}
    if request.size:
        fields["size"] = "{}x{}".format(*request.size)
    moments = [{name: value for name, value in vars(one).items() if value is not None} for one in request.moments]
    told = {name: fields[name] for name in BOARD if fields.get(name) not in (None, "")} | {"moments": moments}
    return yaml.safe_dump(told, allow_unicode=True, sort_keys=False, width=100)
