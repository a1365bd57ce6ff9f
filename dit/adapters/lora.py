"""LoRAs of other makers' models (arXiv 2106.09685): safetensors files, each with a weight."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from dit.request import Request, RequestError
from vae.weights import hash_of_file

SUFFIX = ".safetensors"
LORAS_KEY = "longtake"  # before the number of each adapter, in its name


def hash_loras(request: Request) -> tuple[tuple[str, str], ...]:
    """Return (file, hash) of each LoRA of a request.

    Raises RequestError for a file that is not safetensors, is missing, or is not the one in the request's own hashes.
    """
    known, found = dict(request.hashes or ()), list[tuple[str, str]]()
    for name, _ in request.loras or ():
        path = Path(name)
        if path.suffix != SUFFIX or not path.is_file():
            raise RequestError(f"a LoRA must be a {SUFFIX} file; got {name!r}")
        try:
            with safe_open(path, framework="pt") as weights:
                weights.keys()
        except SafetensorError as error:
            raise RequestError(f"a LoRA must be a whole {SUFFIX} file; {name} is damaged: {error}") from error
        digest = hash_of_file(path)
        if known.get(name, digest) != digest:
            raise RequestError(f"{name} must be the LoRA that the clip was made with; it has changed since")
        found.append((name, digest))
    return tuple(found)


def use_loras(pipe: Any, loras: Sequence[tuple[str, float]]) -> None:
    """Give a diffusers pipeline these LoRAs in the place of any before.

    Raises RequestError where the pipeline takes none, or one does not fit it.
    """
    if getattr(pipe, "longtake_loras", ()) == tuple(loras):
        return
    if not hasattr(pipe, "load_lora_weights"):
        raise RequestError("loras must be left out for this model: diffusers loads none for it")
    if getattr(pipe, "longtake_loras", ()):
        pipe.unload_lora_weights()
    pipe.longtake_loras, names = (), [f"{LORAS_KEY}{number}" for number in range(len(loras))]
    for adapter, (name, _) in zip(names, loras, strict=True):
        path = Path(name)
        try:
            pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name=adapter, local_files_only=True)
        except (ValueError, KeyError, RuntimeError, OSError) as error:
            pipe.unload_lora_weights()
            reason = " ".join(str(error).split())[:300]
            raise RequestError(f"a LoRA must be one of this model; {name} does not fit: {reason}") from error
    if names:
        pipe.set_adapters(names, [weight for _, weight in loras])
    pipe.longtake_loras = tuple(loras)
