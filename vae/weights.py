"""Load a model folder strictly: safetensors only, with exactly the weights and shapes of the model.

A model class may declare the names that its older folders use, old to new, and these folders load as well:

    old_config_names: ClassVar = {"head_width": "head_dim"}
    old_weight_names: ClassVar = {"exit": "proj_out", "blocks.*.out": "blocks.*.attn_out"}

An entry renames a key of the state dict, or all keys that start with it and a dot; "*" stands for a number. The first
matching entry applies. A class that contains another repeats its entries, prefixed with the name of the attribute.

Renaming changes no hash: hashes that cover names use `original_name`, and a rewritten weights file keeps its old header
as metadata, which `hash_of_file` hashes instead of the new one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

WEIGHTS, CONFIG = "diffusion_pytorch_model.safetensors", "config.json"  # diffusers' file names
ORIGINAL_HEADER = "original_header"  # metadata key of a file with renamed weights: its header before
MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit

Model = TypeVar("Model", bound=nn.Module)


class WeightsError(ValueError):
    """A model folder that is missing, damaged, or not of the model class."""


def load_strictly(model_class: type[Model], folder: Path) -> Model:
    """Load a diffusers ModelMixin from its folder, in float32 and in evaluation mode.

    Weights may be stored in any float type. Raises WeightsError naming the first missing, unexpected or misshapen
    weight, or the file that is missing or damaged.
    """
    config = read_config(model_class, folder)
    try:
        model = model_class.from_config(config)  # type: ignore[attr-defined]
    except (TypeError, ValueError, KeyError, ArithmeticError) as error:
        raise WeightsError(f"{folder / CONFIG} does not describe a {model_class.__name__}: {error}") from error
    wanted = model.state_dict()
    path = folder / WEIGHTS
    try:
        with safe_open(path, framework="pt") as stored:
            names = _stored_names(model_class, wanted.keys(), stored.keys())
            have = {name: tuple(stored.get_slice(old).get_shape()) for name, old in names.items()}
            _compare(path, {name: tuple(value.shape) for name, value in wanted.items()}, have)
            for name, value in wanted.items():
                value.copy_(stored.get_tensor(names[name]))
    except FileNotFoundError as error:
        raise WeightsError(f"a {model_class.__name__} folder must hold {WEIGHTS}; {folder} does not") from error
    except SafetensorError as error:
        raise WeightsError(f"{path} is damaged: {error}; fetch or train the model anew") from error
    return model.eval()


def read_config(model_class: type[nn.Module], folder: Path) -> dict:
    """Read a model folder's config and replace its old names. Raises WeightsError if it is missing or damaged."""
    config, renames = read_json(folder / CONFIG), getattr(model_class, "old_config_names", {})
    for old, new in renames.items():
        if old in config:
            if new in config:
                raise WeightsError(f"{folder / CONFIG} gives both {new} and {old}, its old name; remove {old}")
            config[new] = config.pop(old)
    return config


def current_name(name: str, renames: Mapping[str, str]) -> str:
    """Return a state-dict key after `renames` of keys or of their first parts; "*" stands for a number."""
    for old, new in renames.items():
        if match := re.match(re.escape(old).replace(r"\*", r"(\d+)") + r"(?=\.|$)", name):
            numbers = iter(match.groups())
            return re.sub(r"\*", lambda _, numbers=numbers: next(numbers), new) + name[match.end() :]
    return name


def original_name(name: str, renames: Mapping[str, str]) -> str:
    """Return the oldest name of a state-dict key: the inverse of `current_name`."""
    return current_name(name, {new: old for old, new in renames.items()})


def _stored_names(model_class: type[nn.Module], wanted: Iterable[str], stored: Iterable[str]) -> dict[str, str]:
    """Map each weight's current name to its name in a file, which may be an old one."""
    stored = set(stored)
    renames = {} if stored == set(wanted) else getattr(model_class, "old_weight_names", {})
    names = {current_name(name, renames): name for name in stored}
    if len(names) < len(stored):  # a weight under both names, which the comparison refuses
        return {name: name for name in stored}
    return names


def convert_to_float16(folder: Path) -> None:
    """Rewrite a folder's weights in float16: as small as bfloat16 and eight times as precise.

    The weights must lie well within its range.
    """
    for path in weights_in(folder):
        save_file({name: value.half() for name, value in load_file(path).items()}, path, metadata={"format": "pt"})


def weights_in(folder: Path) -> list[Path]:
    """List the weights files of a folder: a single file, or the shards that transformers wrote."""
    return sorted(folder.glob("*.safetensors"))


def hash_of_file(*paths: Path | bytes) -> str:
    """Hash files or their contents to 16 hexadecimal digits (SHA-256).

    A file with renamed weights has the hash from before it was renamed.
    """
    digest = hashlib.sha256()
    for path in paths:
        if isinstance(path, bytes):
            digest.update(path)
            continue
        with open(path, "rb") as stored:
            if path.suffix == ".safetensors":
                digest.update(_original_header(stored))
            while part := stored.read(2**24):
                digest.update(part)
    return digest.hexdigest()[:16]


def _original_header(stored: BinaryIO) -> bytes:
    """Read the header of a safetensors file with its length; return the one from before weights were renamed."""
    size = stored.read(8)
    header = stored.read(min(int.from_bytes(size, "little"), MAX_HEADER_BYTES))
    try:
        original = json.loads(header)["__metadata__"][ORIGINAL_HEADER].encode()
    except (ValueError, TypeError, KeyError, AttributeError):  # never renamed, or damaged, which loading reports
        return size + header
    return len(original).to_bytes(8, "little") + original


def read_json(path: Path) -> dict:
    """Read a JSON object. Raises WeightsError if the file is missing or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WeightsError(f"a model folder must hold {path.name}; {path.parent} does not") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path} is damaged: {error}; fetch or train the model anew") from error
    if not isinstance(found, dict):
        raise WeightsError(f"{path} must hold a JSON object; got a {type(found).__name__}")
    return found


def _compare(path: Path, wanted: dict[str, tuple], have: dict[str, tuple]) -> None:
    for what, names in (("is missing", wanted.keys() - have.keys()), ("is unexpected", have.keys() - wanted.keys())):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise WeightsError(f"{path} does not fit its model: the weight {min(names)!r} {what}{more}")
    for name, shape in wanted.items():
        if shape != have[name]:
            raise WeightsError(f"{path} does not fit its model: the weight {name!r} must be {shape}; got {have[name]}")
