"""What clients ask for: the fields of a JSON object or a form, read into the values that a Request takes.

Numbers may come as words, as forms send them. Fields that name files hold ids; `service.py` looks them up.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from app.batch.rows import KINDS, typed
from dit.request import NO_UPSAMPLER, RequestError, parse_size, with_current_names

FOR_US = ("hashes", "model_hash", "made_with")  # fields that a model fills in
OFFERED = tuple(name for name in KINDS if name not in FOR_US)
NUMBERS = ("size", "window", "box", "guidance_interval")  # fields that are lists of numbers
FIRST, CLIP = "input_reference", "video"  # what clients call the first picture and the clip to begin with
SENDABLE = (FIRST, CLIP, "image", "clip", "other", "mask")  # parts of a form that may be files
UPSAMPLERS = (NO_UPSAMPLER, "auto")  # that a client may name: others are folders and addresses
SHOWN = 80  # letters of what was given, in a sentence


def read_json(body: bytes) -> dict[str, Any]:
    """Read a JSON object; raises RequestError for anything else."""
    try:
        found = json.loads(body, parse_constant=_no_number)
    except RecursionError:
        raise RequestError("a body must be a plain JSON object; this one is nested too deep") from None
    except ValueError as error:
        raise RequestError(f"a body must be a JSON object in UTF-8; {shown(error)}") from None
    if not isinstance(found, dict):
        raise RequestError(f"a body must be a JSON object; got a {type(found).__name__}")
    return found


def _no_number(word: str) -> None:
    raise ValueError(f"numbers are finite; got {word}")


def read_form(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Read the fields of a form as JSON would have them: a[]=1 and a[]=2 are a list, a[b]=1 is an object, a[][b]=1
    and a[][b]=2 are two objects, and four times a[][] are two pairs.

    Raises RequestError for what cannot be told apart.
    """
    values: dict[str, list[str]] = {}
    for key, value in pairs:
        values.setdefault(key, []).append(value)
    found: dict[str, Any] = {}
    for key, told in values.items():
        match = re.fullmatch(r"(\w+)((?:\[\w*\])*)", key)
        name, parts = (match[1], re.findall(r"\[(\w*)\]", match[2])) if match else (key, [])
        if not parts and len(told) == 1:
            value: Any = told[0]
        elif parts == [""]:
            value = told
        elif parts == ["", ""] and len(told) % 2 == 0:
            value = list(zip(told[::2], told[1::2], strict=True))
        elif len(parts) == 1 and len(told) == 1:
            value = _of(found, name, dict) | {parts[0]: told[0]}
        elif len(parts) == 2 and not parts[0]:
            before = _of(found, name, list) or [{}] * len(told)
            if len(before) != len(told) or not all(isinstance(one, dict) for one in before):
                raise RequestError(f"{name} in a form must have the same fields in each; send it as JSON")
            value = [one | {parts[1]: told[n]} for n, one in enumerate(before)]
        else:
            raise RequestError(f"a form has each field once, and lists as FIELD[]; got {shown(key)}; send JSON")
        if name in found and not isinstance(value, (dict, list)):
            raise RequestError(f"a form has each field once; got {shown(name)} in two ways; send JSON")
        found[name] = value
    return found


def _of(found: dict[str, Any], name: str, kind: type) -> Any:
    value = found.get(name, kind())
    if not isinstance(value, kind):
        raise RequestError(f"a form has each field in one way; got {shown(name)} in two; send JSON")
    return value


def fields_of(found: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a Request among what a client sent, each in its type, `video` and `input_reference` by our
    names for them; what names a file is left as it came.

    Raises RequestError for what a client may not name, and for values of the wrong kind.
    """
    given = with_current_names({name: value for name, value in found.items() if value is not None})
    for name, ours in ((FIRST, "image"), (CLIP, "clip")):
        if name in given:
            if ours in given:
                raise RequestError(f"{name} and {ours} are the same; got both, so leave one out")
            given[ours] = _id_in(given.pop(name))
    unknown = [name for name in given if name not in OFFERED]
    if unknown:
        raise RequestError(f"a video is asked for by {', '.join(OFFERED)}; got {shown(unknown[0])}")
    fields = {name: _value(name, value) for name, value in given.items()}
    if fields.get("upsample") not in (None, *UPSAMPLERS):
        raise RequestError(f"upsample must be {' or '.join(UPSAMPLERS)} here; got {shown(fields['upsample'])}")
    if "mode" not in fields and "image" in fields:
        fields["mode"] = "image-to-video"
    return fields


def _id_in(value: Any) -> Any:
    """Return the id in a reference to a file, or the data: address that holds one."""
    if isinstance(value, dict) and len(value) == 1 and set(value) <= {"id", "file_id", "image_url"}:
        (value,) = value.values()
    return value


def _value(name: str, value: Any) -> Any:
    if isinstance(value, str) and KINDS[name] != "str":
        value = typed(name, value)
    if name == "size" and isinstance(value, str):
        return parse_size(value)
    if isinstance(value, list):
        if name in NUMBERS:
            return [_number(one) for one in value]
        if name == "keyframes":
            return [[_number(one[0]), one[1]] if _is_pair(one) else one for one in value]
        if name == "moments":
            return [one | {"at": _number(one["at"])} if isinstance(one, dict) and "at" in one else one for one in value]
    return value


def _is_pair(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2


def _number(value: Any) -> Any:
    """Return a number that came as words; anything else as it is."""
    try:
        return json.loads(value, parse_constant=_no_number) if isinstance(value, str) else value
    except ValueError:
        return value


def shown(value: Any, most: int = SHOWN) -> str:
    """Return what was given, for a sentence: text in quotes, an error as it is, neither too long."""
    text = " ".join(str(value).split()) if isinstance(value, Exception) else repr(value)
    return text if len(text) <= most else f"{text[:most]}…"
