"""Storyboards: files in YAML or JSON that hold the moments of a clip, and any other field of its request.

The shortest, in YAML: `moments: [{at: 0, prompt: a ball rolls}, {at: 2, prompt: it stops}]`.
"""

from __future__ import annotations

import json
import os
import stat
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from dit.request import RequestError, parse_size, with_current_names

MAX_STORYBOARD_BYTES = 2**18  # PyYAML takes seconds for as many


def read_storyboard(path: str) -> dict[str, Any]:
    """Read a storyboard's file: the fields of a Request with its moments, or a list of moments alone.

    Files that it names are relative to its folder. Raises RequestError where it is not a storyboard.
    """
    try:
        text = _text_of(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RequestError(f"{path} cannot be read as a storyboard: {reason}") from error
    fields = parse_storyboard(text, path)
    for holder in (fields, *fields["moments"]):
        for name in ("image", "clip", "other", "mask"):
            if isinstance(holder, dict) and isinstance(holder.get(name), str) and holder[name]:
                holder[name] = str(Path(path).parent / holder[name])
    return fields


def parse_storyboard(text: str, path: str = "the text") -> dict[str, Any]:
    """Parse a storyboard's text into fields of a Request; names of files stay as they are.

    `path` names the text in errors. Raises RequestError where it is not a storyboard.
    """
    try:
        content = read_yaml(text)
    except ValueError as error:
        raise RequestError(f"{path} cannot be read as a storyboard: {error}") from error
    fields: Any = {"moments": content} if isinstance(content, list) else content
    if not isinstance(fields, dict) or not isinstance(fields.get("moments"), list):
        raise RequestError(f"a storyboard must have moments, each with at and prompt; {path} has none")
    if not all(isinstance(name, str) for name in fields):
        raise RequestError(f"a storyboard's fields must have names; {path} has one without")
    fields = with_current_names(fields)
    if isinstance(fields.get("size"), str):
        fields["size"] = parse_size(fields["size"])
    return fields


def _text_of(path: str) -> str:
    with open(path, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # a device might never end
            raise ValueError("it is not a regular file")
        content = file.read(MAX_STORYBOARD_BYTES + 1)
    if len(content) > MAX_STORYBOARD_BYTES:
        raise ValueError(f"it has more than {MAX_STORYBOARD_BYTES:,} bytes")
    return content.decode()


def read_yaml(text: str) -> Any:
    """Parse JSON, or YAML without aliases: a few lines with aliases can expand to terabytes.

    Raises ValueError for invalid text, for an alias and for deep nesting.
    """
    import yaml  # type: ignore[import-untyped]

    try:
        with suppress(json.JSONDecodeError):  # a hundred times as fast
            return json.loads(text)
        return yaml.load(text, _loader())
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    # PyYAML lets the others out of its constructors.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, ArithmeticError) as error:
        raise ValueError((str(error).splitlines() or ["it is damaged"])[0]) from error


@cache
def _loader() -> type:
    """Build a PyYAML loader of plain values that refuses aliases."""
    import yaml  # type: ignore[import-untyped]

    class SafeLoaderWithoutAliases(yaml.SafeLoader):
        def compose_node(self, parent, index):
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("it has an alias, such as *name, so write out what that stands for")
            return super().compose_node(parent, index)

    return SafeLoaderWithoutAliases
