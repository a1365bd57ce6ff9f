"""Parse request bodies: the fields of a JSON object or a form, converted to the types of a Request's fields.

Numbers may be strings, as in forms. Fields that name files hold ids; `service.py` resolves them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from app.batch.rows import FIELD_TYPES, parse_cell
from dit.request import NO_UPSAMPLER, RequestError, parse_size, with_current_names

SERVER_FIELDS = ("hashes", "model_hash", "made_with")  # filled in when a clip is rendered
OWNER_FIELDS = ("loras",)  # files of the server's owner
CLIENT_FIELDS = tuple(name for name in FIELD_TYPES if name not in (*SERVER_FIELDS, *OWNER_FIELDS))
NUMBER_LISTS = ("size", "window", "box", "guidance_interval")  # fields that are lists of numbers
IMAGE_ALIAS, CLIP_ALIAS = "input_reference", "video"  # the OpenAI API's names of `image` and `clip`
FILE_FIELDS = (IMAGE_ALIAS, CLIP_ALIAS, "image", "clip", "other", "mask")  # parts of a form that may be files
UPSAMPLERS = (NO_UPSAMPLER, "auto")  # that a client may name: others are folders and URLs
MAX_VALUES = 100_000  # of a JSON body
MAX_QUOTED_CHARS = 80  # of a value, in an error message


def parse_json(body: bytes) -> dict[str, Any]:
    """Parse a JSON object; raises RequestError for anything else, and for one of too many values."""
    if len(body) > MAX_VALUES and sum(map(body.count, (b",", b":", b"[", b"{"))) > MAX_VALUES:  # fast: parsing is not
        raise RequestError(f"a body must have at most {MAX_VALUES:,} values; this one has more; send less")
    try:
        found = json.loads(body, parse_constant=_reject_constant)
    except RecursionError:
        raise RequestError("a body must be a plain JSON object; this one is nested too deep") from None
    except ValueError as error:
        raise RequestError(f"a body must be a JSON object in UTF-8; {short_repr(error)}") from None
    if not isinstance(found, dict):
        raise RequestError(f"a body must be a JSON object; got a {type(found).__name__}")
    return found


def _reject_constant(name: str) -> None:
    raise ValueError(f"numbers must be finite; got {name}")


def parse_form(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Convert the fields of a form to a JSON object.

    a[]=1 and a[]=2 make a list, a[b]=1 makes an object, a[][b]=1 and a[][b]=2 make two objects, and four a[][] make two
    pairs. Raises RequestError where this is ambiguous.
    """
    values: dict[str, list[str]] = {}
    for key, value in pairs:
        values.setdefault(key, []).append(value)
    found: dict[str, Any] = {}
    for key, texts in values.items():
        match = re.fullmatch(r"(\w+)((?:\[\w*\])*)", key)
        name, parts = (match[1], re.findall(r"\[(\w*)\]", match[2])) if match else (key, [])
        if not parts and len(texts) == 1:
            value: Any = texts[0]
        elif parts == [""]:
            value = texts
        elif parts == ["", ""] and len(texts) % 2 == 0:
            value = list(zip(texts[::2], texts[1::2], strict=True))
        elif len(parts) == 1 and len(texts) == 1:
            value = _existing(found, name, dict) | {parts[0]: texts[0]}
        elif len(parts) == 2 and not parts[0]:
            before = _existing(found, name, list) or [{}] * len(texts)
            if len(before) != len(texts) or not all(isinstance(one, dict) for one in before):
                raise RequestError(f"{name} in a form must have the same fields in each object; send it as JSON")
            value = [one | {parts[1]: texts[n]} for n, one in enumerate(before)]
        else:
            raise RequestError(f"a form has each field once, and lists as FIELD[]; got {short_repr(key)}; send JSON")
        if name in found and not isinstance(value, (dict, list)):
            raise RequestError(f"a form has each field once; got {short_repr(name)} in two forms; send JSON")
        found[name] = value
    return found


def _existing(found: dict[str, Any], name: str, kind: type) -> Any:
    """Return the field's value so far, or an empty one; raises RequestError where it has another type."""
    value = found.get(name, kind())
    if not isinstance(value, kind):
        raise RequestError(f"a form has each field in one form; got {short_repr(name)} in two; send JSON")
    return value


def request_fields(found: dict[str, Any]) -> dict[str, Any]:
    """Convert a client's fields to a Request's fields, each in its type; ids of files are left as they are.

    `video` and `input_reference` become `clip` and `image`; names of version 0.1 are accepted. Raises RequestError for
    fields that a client may not set, and for values of the wrong type.
    """
    given = with_current_names({name: value for name, value in found.items() if value is not None})
    for alias, name in ((IMAGE_ALIAS, "image"), (CLIP_ALIAS, "clip")):
        if alias in given:
            if name in given:
                raise RequestError(f"{alias} and {name} are the same; got both, so leave one out")
            given[name] = _file_id(given.pop(alias))
    unknown = [name for name in given if name not in CLIENT_FIELDS]
    if unknown:
        raise RequestError(f"a video request has the fields {', '.join(CLIENT_FIELDS)}; got {short_repr(unknown[0])}")
    fields = {name: _typed_value(name, value) for name, value in given.items()}
    if fields.get("upsample") not in (None, *UPSAMPLERS):
        raise RequestError(f"upsample must be {' or '.join(UPSAMPLERS)} here; got {short_repr(fields['upsample'])}")
    if "mode" not in fields and "image" in fields:
        fields["mode"] = "image-to-video"
    return fields


def _file_id(value: Any) -> Any:
    """Return the id, or the data: URL, in a reference to a file."""
    if isinstance(value, dict) and len(value) == 1 and set(value) <= {"id", "file_id", "image_url"}:
        (value,) = value.values()
    return value


def _typed_value(name: str, value: Any) -> Any:
    if isinstance(value, str) and FIELD_TYPES[name] != "str":
        value = parse_cell(name, value)
    if name == "size" and isinstance(value, str):
        return parse_size(value)
    if isinstance(value, list):
        if name in NUMBER_LISTS:
            return [_number(one) for one in value]
        if name == "keyframes":
            return [[_number(one[0]), one[1]] if _is_pair(one) else one for one in value]
        if name == "moments":
            return [one | {"at": _number(one["at"])} if isinstance(one, dict) and "at" in one else one for one in value]
    return value


def _is_pair(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2


def _number(value: Any) -> Any:
    """Parse a number that is a string; return anything else unchanged."""
    try:
        return json.loads(value, parse_constant=_reject_constant) if isinstance(value, str) else value
    except ValueError:
        return value


def short_repr(value: Any, max_chars: int = MAX_QUOTED_CHARS) -> str:
    """Return a value for an error message, on one line of limited length: repr of a value, message of an exception."""
    text = " ".join(str(value).split()) if isinstance(value, Exception) else repr(value)
    return text if len(text) <= max_chars else f"{text[:max_chars]}…"
