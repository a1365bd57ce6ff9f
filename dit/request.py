"""One currency: what somebody wants to see.

A Request is the command line's flags, the batch line, the job row and the metadata inside the file. It imports nothing
heavy.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

KEY = "longtake"  # the metadata key under which a clip carries its request
METHODS = ("euler", "heun")


class RequestError(ValueError):
    """A request that cannot be fulfilled: the rule, what was given, the remedy."""


@dataclass(frozen=True)
class Request:
    """A clip to be made. None means the model's own default; `Pipeline.resolve` fills it in.

    `size` is (columns, rows) in pixels, `seconds` the duration and `fps` the frame rate; each is unused where a
    mode does not read it. `guidance` pushes from `negative` (no words, unless given) to `prompt` where the noise level
    lies within `interval`, and the spread it adds is taken back in part, `rescale`. `model` names a folder or a shipped
    model, `model_hash` the weights that made the clip.
    """

    mode: str = "text-to-video"
    prompt: str = ""
    image: str | None = None
    size: tuple[int, int] | None = None
    seconds: float | None = None
    fps: float | None = None
    steps: int | None = None
    guidance: float | None = None
    interval: tuple[float, float] | None = None
    rescale: float | None = None
    negative: str | None = None
    method: str | None = None
    seed: int = 0
    model: str | None = None
    model_hash: str | None = None

    def to_json(self) -> str:
        """Write the request as one line of JSON, without the fields left to default."""
        return json.dumps({k: v for k, v in asdict(self).items() if v is not None}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Request:
        """Read a request back; raises RequestError for what is not one."""
        try:
            found = json.loads(text)
        except json.JSONDecodeError as error:
            raise RequestError(f"a request must be JSON; {error}") from error
        if not isinstance(found, dict):
            raise RequestError(f"a request must be a JSON object; got a {type(found).__name__}")
        return cls.from_dict(found)

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Request:
        """Make a request of named values; raises RequestError for an unknown name or a value of the wrong type."""
        unknown = found.keys() - _TYPES.keys()
        if unknown:
            raise RequestError(
                f"a request has the fields {', '.join(_TYPES)}; got {', '.join(sorted(map(repr, unknown)))}"
            )
        return cls(**{name: _checked(name, value) for name, value in found.items()})

    def altered(self, **changes: Any) -> Request:
        """Return the request with some fields changed; None leaves a field as it is. Raises RequestError as `from_dict`
        does.
        """
        kept = {name: _checked(name, value) for name, value in changes.items() if value is not None}
        return replace(self, **kept)


_TYPES: dict[str, tuple[type, ...]] = {
    "mode": (str,),
    "prompt": (str,),
    "image": (str,),
    "size": (list, tuple),
    "seconds": (int, float),
    "fps": (int, float),
    "steps": (int,),
    "guidance": (int, float),
    "interval": (list, tuple),
    "rescale": (int, float),
    "negative": (str,),
    "method": (str,),
    "seed": (int,),
    "model": (str,),
    "model_hash": (str,),
}
assert set(_TYPES) == {field.name for field in fields(Request)}
_OPTIONAL = {field.name for field in fields(Request) if field.default is None}


def _checked(name: str, value: Any) -> Any:
    """Return a field's value in its own type, or raise RequestError."""
    if value is None and name in _OPTIONAL:
        return None
    if not isinstance(value, _TYPES[name]) or isinstance(value, bool):
        raise RequestError(f"{name} must be {' or '.join(kind.__name__ for kind in _TYPES[name])}; got {value!r}")
    known: Any = value
    if name == "size":
        if len(known) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) for side in known):
            raise RequestError(f"size must be two whole numbers, columns and rows; got {value!r}")
        return tuple(known)
    if name == "interval":
        if len(known) != 2 or not all(isinstance(end, (int, float)) and not isinstance(end, bool) for end in known):
            raise RequestError(f"interval must be two noise levels, from 0 to 1; got {value!r}")
        return float(known[0]), float(known[1])
    return float(known) if float in _TYPES[name] else known


def parse_size(text: str) -> tuple[int, int]:
    """Read "128x96" as (columns, rows); raises RequestError for anything else."""
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() for side in sides):
        raise RequestError(f"size must be COLUMNSxROWS, such as 64x64; got {text!r}")
    return int(sides[0]), int(sides[1])
