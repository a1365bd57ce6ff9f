"""One currency: what a user wants to see.

A `Request` is the command line's flags, a batch row, a job row, an HTTP body and the metadata inside a clip's file.
This module imports nothing heavy.
"""

from __future__ import annotations

import json
import reprlib
import sys
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from typing import Any

from captioning.camera import parse_camera

METADATA_KEY = "longtake"  # under which a clip's file carries its request
LATENTS_SUFFIX = ".latents"  # added to a clip's file name: the file with its latents
SAMPLERS = ("euler", "heun", "dpm")
SCHEDULER = "scheduler"  # the sampler of other makers' models that is in their own folder
ALL_SAMPLERS = (*SAMPLERS, SCHEDULER)
OTHER_MODELS = ("guidance_2", "flow_shift", "loras")  # fields that only other makers' models read
CORNERS = ("bottom-right", "bottom-left", "top-right", "top-left")  # of the frame, for a watermark
SIDES = ("after", "before", "both")  # of a clip to extend; the first is the default
NO_UPSAMPLER = "none"  # the value of `upsample` that stands for none
MAX_SECONDS = 1e6
MAX_TEXT_CHARACTERS = 10_000  # of a prompt: several times what the longest text encoder reads
MAX_ENTRIES = 2000  # moments, keyframes
INTEGER_LIMIT = 2**63  # whole numbers are smaller; SQLite and torch hold 64 bits
MAX_ERROR_CHARACTERS = 1000
RENAMED = {  # fields of version 0.1, in files and calls, and their present names
    "written": "upsampled_prompt",
    "pictures": "keyframes",
    "interval": "guidance_interval",
    "rescale": "guidance_rescale",
    "negative": "negative_prompt",
    "method": "sampler",
    "mark": "watermark",
}


class RequestError(ValueError):
    """A request that cannot be fulfilled: the rule, what was given and the remedy, on one line of bounded length."""

    def __init__(self, sentence: str):
        line = " ".join(sentence.splitlines()).encode(errors="backslashreplace").decode()
        half = MAX_ERROR_CHARACTERS // 2
        super().__init__(line if len(line) <= MAX_ERROR_CHARACTERS else f"{line[:half]} ... {line[-half:]}")


@dataclass(frozen=True)
class Moment:
    """One entry of a storyboard: the prompt from `at` seconds on, and an image or a clip to show there, if any."""

    at: float
    prompt: str
    image: str | None = None
    clip: str | None = None


@dataclass(frozen=True)
class Request:
    """A clip to generate. None means the model's default; `Pipeline.resolve` fills it in.

    Prompts. `prompt` is what the user typed. `upsampled_prompt` is what the model reads in its place, if anything: the
    output of the upsampler that `upsample` names, or a text written by hand. `negative_prompt` is what guidance leads
    away from; by default the empty prompt.

    Inputs, each read by some modes. `image`, `clip`, `other` and `mask` are files; a mask is white where to generate.
    `keyframes` are (seconds, file). `side` of a clip to extend: after, before or both. `strength` of an edit: 0 to 1.
    `window` is (from, to) in seconds, `box` (left, top, right, bottom) in pixels. `moments` are a storyboard.
    `hashes` are (file, SHA-256 of its contents without Content Credentials) of all input files.

    Output. `size` is (columns, rows) in pixels, `seconds` the duration, `fps` the frame rate; a mode that has no use
    for one ignores it. `watermark` is the corner of a visible watermark.

    Sampling. `steps` and `sampler`. `guidance` is the scale of classifier-free guidance; it applies while the noise
    level lies within `guidance_interval`, and `guidance_rescale` (0 to 1) takes back the contrast that it adds.
    `frame_guidance` is the scale of guidance towards the given frames. `camera` is the velocity of the camera, a name
    of `captioning.camera.CAMERA_MOVES` or six numbers; by default what the prompt says.

    Of other makers' models only. `guidance_2` is the scale of the second expert, or that of classifier-free guidance
    where `guidance` is an input of the model. `flow_shift` moves the noise levels towards noise. `loras` are (file,
    weight) pairs.

    Provenance. `model` names a folder or a shipped model, `model_hash` its weights, and `made_with` the software and
    hardware, which decide the last bits.
    """

    mode: str = "text-to-video"
    prompt: str = ""
    upsample: str | None = None
    upsampled_prompt: str | None = None
    image: str | None = None
    clip: str | None = None
    other: str | None = None
    keyframes: tuple[tuple[float, str], ...] | None = None
    side: str | None = None
    strength: float | None = None
    window: tuple[float, float] | None = None
    box: tuple[int, int, int, int] | None = None
    mask: str | None = None
    moments: tuple[Moment, ...] | None = None
    hashes: tuple[tuple[str, str], ...] | None = None
    size: tuple[int, int] | None = None
    seconds: float | None = None
    fps: float | None = None
    steps: int | None = None
    guidance: float | None = None
    frame_guidance: float | None = None
    guidance_interval: tuple[float, float] | None = None
    guidance_rescale: float | None = None
    negative_prompt: str | None = None
    sampler: str | None = None
    camera: str | None = None
    guidance_2: float | None = None
    flow_shift: float | None = None
    loras: tuple[tuple[str, float], ...] | None = None
    seed: int = 0
    watermark: str | None = None
    model: str | None = None
    model_hash: str | None = None
    made_with: str | None = None

    @property
    def effective_prompt(self) -> str:
        """The prompt that the model reads: the upsampled one, or else the typed one."""
        return self.upsampled_prompt or self.prompt

    def to_json(self) -> str:
        """Write the request as one line of JSON, without the fields that are None."""
        given = {name: value for name, value in vars(self).items() if value is not None}  # asdict is slow
        return json.dumps(given, ensure_ascii=False, default=asdict)

    @classmethod
    def from_json(cls, text: str) -> Request:
        """Read a request from JSON; raises RequestError for invalid JSON, fields or values."""
        try:
            values = json.loads(text)
        except ValueError as error:  # of JSON, or of a number of thousands of digits
            raise RequestError(f"a request must be JSON; {error}") from error
        except RecursionError:
            raise RequestError("a request must be a plain object of fields; this one is nested too deep") from None
        if not isinstance(values, dict):
            raise RequestError(f"a request must be a JSON object; got a {type(values).__name__}")
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Request:
        """Build a request from field values; fields may have the names of version 0.1.

        Raises RequestError for an unknown field or a value of the wrong type.
        """
        return cls(**_all_checked(values))

    def altered(self, **changes: Any) -> Request:
        """Return a copy with some fields changed; None leaves a field as it is. Raises as `from_dict` does."""
        return replace(self, **_all_checked({name: value for name, value in changes.items() if value is not None}))


_TYPES: dict[str, tuple[type, ...]] = {
    "mode": (str,),
    "prompt": (str,),
    "upsample": (str,),
    "upsampled_prompt": (str,),
    "image": (str,),
    "clip": (str,),
    "other": (str,),
    "keyframes": (list, tuple),
    "side": (str,),
    "strength": (int, float),
    "window": (list, tuple),
    "box": (list, tuple),
    "mask": (str,),
    "moments": (list, tuple),
    "hashes": (list, tuple),
    "size": (list, tuple),
    "seconds": (int, float),
    "fps": (int, float),
    "steps": (int,),
    "guidance": (int, float),
    "frame_guidance": (int, float),
    "guidance_interval": (list, tuple),
    "guidance_rescale": (int, float),
    "negative_prompt": (str,),
    "sampler": (str,),
    "camera": (str, list, tuple),
    "guidance_2": (int, float),
    "flow_shift": (int, float),
    "loras": (list, tuple),
    "seed": (int,),
    "watermark": (str,),
    "model": (str,),
    "model_hash": (str,),
    "made_with": (str,),
}
assert set(_TYPES) == {field.name for field in fields(Request)}
_OPTIONAL = {field.name for field in fields(Request) if field.default is None}


def with_current_names(values: dict[Any, Any]) -> dict[Any, Any]:
    """Rename the fields of version 0.1; raises RequestError where a field is given under both names."""
    for old, new in RENAMED.items():
        if old in values and new in values:
            raise RequestError(f"{old} is now named {new}; got both, so leave {old} out")
    return {RENAMED.get(name, name): value for name, value in values.items()}


def _all_checked(values: dict[str, Any]) -> dict[str, Any]:
    """Convert each value to its field's type; raises RequestError for an unknown field or a value of another type."""
    values = with_current_names(values)
    unknown = values.keys() - _TYPES.keys()
    if unknown:
        raise RequestError(
            f"a request has the fields {', '.join(_TYPES)}; got {_shortened(sorted(unknown, key=str))[1:-1]}"
        )
    return {name: _checked(name, value) for name, value in values.items()}


def _checked(name: str, value: Any) -> Any:
    """Convert a value to its field's type; raises RequestError where it has another."""
    if value is None and name in _OPTIONAL:
        return None
    if not isinstance(value, _TYPES[name]) or isinstance(value, bool):
        types = " or ".join(kind.__name__ for kind in _TYPES[name])
        raise RequestError(f"{name} must be {types}; got {_shortened(value)}")
    if (name, value) == ("upsample", NO_UPSAMPLER):
        return None
    known: Any = value
    if name == "camera":
        try:
            return parse_camera(known)
        except ValueError as error:
            raise RequestError(str(error)) from None
    if name in _TUPLES:
        types, rule = _TUPLES[name]
        return _tuple(known, types, f"{name} must be {rule}; got {_shortened(value)}")
    if name in _PAIRS:
        types = _PAIRS[name]
        rule = f"{name} must be pairs, each with a file"
        return tuple(_tuple(pair, types, f"{rule}; got {_shortened(pair)}") for pair in known)
    if name == "moments":
        return tuple(moment if isinstance(moment, Moment) else _moment(moment) for moment in known)
    return _scalar(known, float if float in _TYPES[name] else _TYPES[name][0], name)


def _scalar(value: Any, kind: type, name: str) -> Any:
    """Convert a string or number; raises RequestError where it is not UTF-8, not finite or too large."""
    if kind is str and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise RequestError(f"{name} must be text in UTF-8; got half a letter in {_shortened(value)}") from None
    if kind is int and abs(value) >= INTEGER_LIMIT:
        raise RequestError(f"{name} must be a whole number below 2^63; got {_shortened(value)}")
    if kind is float and not abs(value) <= sys.float_info.max:
        raise RequestError(f"{name} must be a finite number; got {_shortened(value)}")
    return kind(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong, _SHORT.maxlevel = 200, 200, 40, 4


def _shortened(value: Any) -> str:
    """Return the repr of a value for an error message, without the middle of a long one."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return f"one that is too long to write, of type {type(value).__name__}"


def check_lengths(request: Request) -> None:
    """Raise RequestError for texts and lists so long that no model can take them: cheap, so checked before all else."""
    texts = {name: getattr(request, name) for name in ("prompt", "upsampled_prompt", "negative_prompt")}
    moments = request.moments or ()
    for name, entries in (("moments", moments), ("keyframes", request.keyframes or ())):
        if len(entries) > MAX_ENTRIES:
            raise RequestError(f"there must be at most {MAX_ENTRIES} {name}; got {len(entries)}; make several clips")
    for name, text in (*texts.items(), *(("a moment's prompt", moment.prompt) for moment in moments)):
        if text and len(text) > MAX_TEXT_CHARACTERS:
            rule = f"{name} must have at most {MAX_TEXT_CHARACTERS:,} characters"
            raise RequestError(f"{rule}; got {len(text):,}, so shorten it")


def check_values(request: Request) -> None:
    """Raise RequestError for values that no model can take."""
    check_lengths(request)
    if not 0 <= request.seed < INTEGER_LIMIT:
        raise RequestError(f"seed must be a whole number from 0 to 2^63 - 1; got {request.seed}")
    columns, rows = request.size or (2**31, 2**31)
    if request.strength is not None and not 0 <= request.strength <= 1:
        raise RequestError(f"strength must lie between 0 and 1; got {request.strength:g}")
    if request.side is not None and request.side not in SIDES:
        raise RequestError(f"side must be one of {', '.join(SIDES)}; got {request.side!r}")
    if request.watermark is not None and request.watermark not in CORNERS:
        raise RequestError(f"watermark must be one of the corners {', '.join(CORNERS)}; got {request.watermark!r}")
    if request.window is not None and not 0 <= request.window[0] < request.window[1] < MAX_SECONDS:
        raise RequestError("a window must go from a time to a later one; got {:g} to {:g}".format(*request.window))
    if request.box is not None:
        left, top, right, bottom = request.box
        if not (0 <= left < right <= columns and 0 <= top < bottom <= rows):
            raise RequestError(f"a box must be left, top, right, bottom within the frame; got {request.box}")
    for at, path in request.keyframes or ():
        if not 0 <= at < MAX_SECONDS:
            raise RequestError(f"a keyframe must be at 0 seconds or later; got {at:g} for {path}")
    if request.guidance_2 is not None and not 0 <= request.guidance_2 <= 100:
        raise RequestError(f"guidance_2 must lie between 0 and 100; got {request.guidance_2:g}")
    if request.flow_shift is not None and not 0 < request.flow_shift <= 100:
        raise RequestError(f"flow_shift must be above 0 and at most 100; got {request.flow_shift:g}")
    for path, weight in request.loras or ():
        if not -10 <= weight <= 10:
            raise RequestError(f"a LoRA's weight must lie between -10 and 10; got {weight:g} for {path}")
    if request.seconds is not None and not 0 < request.seconds < MAX_SECONDS:
        raise RequestError(f"seconds must be above 0 and below a million; got {request.seconds:g}")
    times = [moment.at for moment in request.moments or ()]
    if times and (times[0] != 0 or any(b <= a for a, b in pairwise(times))):
        raise RequestError(f"moments must begin at 0 and rise; got {', '.join(f'{at:g}' for at in times)}")
    if times and request.seconds is not None and times[-1] >= request.seconds:
        raise RequestError(f"moments must begin before the end, {request.seconds:g} s; got one at {times[-1]:g}")


_PAIRS = {"keyframes": (float, str), "hashes": (str, str), "loras": (str, float)}
_TUPLES: dict[str, tuple[tuple[type, ...], str]] = {
    "size": ((int, int), "two whole numbers, columns and rows"),
    "guidance_interval": ((float, float), "two noise levels, from 0 to 1"),
    "window": ((float, float), "two times in seconds, from and to"),
    "box": ((int, int, int, int), "four whole numbers, left, top, right and bottom"),
}


def _tuple(value: Any, types: tuple[type, ...], sentence: str) -> tuple:
    """Convert a sequence to a tuple of these types; integers pass as floats. Raises RequestError(sentence)."""
    if not isinstance(value, (list, tuple)) or len(value) != len(types):
        raise RequestError(sentence)
    for part, kind in zip(value, types, strict=True):
        if isinstance(part, bool) or not isinstance(part, (int, float) if kind is float else kind):
            raise RequestError(sentence)
    name = sentence.partition(" ")[0]
    return tuple(_scalar(part, kind, f"each of {name}") for part, kind in zip(value, types, strict=True))


def _moment(values: Any) -> Moment:
    """Build a moment from field values; raises RequestError for unknown fields or wrong values."""
    names = {field.name for field in fields(Moment)}
    if not isinstance(values, dict) or not {"at", "prompt"} <= values.keys() <= names:
        raise RequestError(f"a moment has at and prompt, and may have image and clip; got {_shortened(values)}")
    at, prompt = values["at"], values["prompt"]
    if isinstance(at, bool) or not isinstance(at, (int, float)) or not 0 <= at < MAX_SECONDS:
        raise RequestError(f"a moment must be at 0 seconds or later; got at {_shortened(at)}")
    if not isinstance(prompt, str) or not prompt.strip():
        raise RequestError(f"a moment must have a prompt; got {_shortened(prompt)}")
    for name in ("image", "clip"):
        if values.get(name) is not None and not (isinstance(values[name], str) and values[name]):
            raise RequestError(f"a moment's {name} must be a file's name; got {_shortened(values[name])}")
    image, clip = (values.get(name) and _scalar(values[name], str, f"a moment's {name}") for name in ("image", "clip"))
    return Moment(float(at), _scalar(prompt, str, "a moment's prompt"), image, clip)


def parse_size(text: str) -> tuple[int, int]:
    """Parse "128x96" as (columns, rows); raises RequestError for anything else."""
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() and len(side) < 10 for side in sides):
        raise RequestError(f"size must be COLUMNSxROWS, such as 64x64; got {text!r}")
    return int(sides[0]), int(sides[1])
