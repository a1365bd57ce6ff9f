"""One currency: what somebody wants to see.

A Request is the command line's flags, the batch line, the job row and the metadata inside the file. It imports nothing
heavy.
"""

from __future__ import annotations

import json
import os
import reprlib
import stat
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

KEY = "longtake"  # the metadata key under which a clip carries its request
SAMPLERS = ("euler", "heun", "dpm")
CORNERS = ("bottom-right", "bottom-left", "top-right", "top-left")  # for a badge
SIDES = ("after", "before", "both")  # of a clip to extend, the first by default
LONGEST = 1e6  # seconds
NONE = "none"  # an upsampler's name that stands for no upsampler
LARGEST = 2**63  # whole numbers lie below it
BOARD_BYTES = 2**18  # the most that a storyboard may have; PyYAML takes seconds for it
SENTENCE = 1000  # letters that a refusal may have


class RequestError(ValueError):
    """A request that cannot be fulfilled: the rule, what was given, the remedy; on one line, whatever was given."""

    def __init__(self, sentence: str):
        line = " ".join(sentence.splitlines()).encode(errors="backslashreplace").decode()
        cut = f"{line[: SENTENCE // 2]} ... {line[-SENTENCE // 2 :]}"
        super().__init__(line if len(line) <= SENTENCE else cut)


@dataclass(frozen=True)
class Moment:
    """What is to be seen from `at` seconds on: a prompt, and a picture or a clip that is shown there, if any."""

    at: float
    prompt: str
    image: str | None = None
    clip: str | None = None


@dataclass(frozen=True)
class Request:
    """A clip to be made. None means the model's own default; `Pipeline.resolve` fills it in.

    What a mode reads beside the prompt: `image`, `clip` and `other`, files; `pictures`, (seconds, file) of each;
    `side` of the clip to extend, after, before or both; `strength` of an edit, 0 to 1; `window`, from and to in
    seconds; `box`, left, top, right and bottom in pixels; `mask`, a file, white where to make anew; `moments` of a
    storyboard. `hashes` are the files and the SHA-256 of their contents, who signed them aside.

    `prompt` is what somebody typed. `written` is what the model reads in its place, if anything: what the upsampler
    named in `upsample` made of it, or what was written by hand.

    `size` is (columns, rows) in pixels, `seconds` the duration and `fps` the frame rate; each is unused where a
    mode does not read it. `guidance` pushes from `negative` (no words, unless given) to `prompt` where the noise level
    lies within `interval`, and the spread it adds is taken back in part, `rescale`; `frame_guidance` pushes on from
    what would be without the frames that are given. `mark` is the corner of a badge that anybody can see. `model`
    names a folder or a shipped model, `model_hash` the weights that made the clip, and `made_with` what they ran on,
    which moves its last bits.
    """

    mode: str = "text-to-video"
    prompt: str = ""
    upsample: str | None = None
    written: str | None = None
    image: str | None = None
    clip: str | None = None
    other: str | None = None
    pictures: tuple[tuple[float, str], ...] | None = None
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
    interval: tuple[float, float] | None = None
    rescale: float | None = None
    negative: str | None = None
    method: str | None = None
    seed: int = 0
    mark: str | None = None
    model: str | None = None
    model_hash: str | None = None
    made_with: str | None = None

    @property
    def words(self) -> str:
        """What the model reads: what was written of the prompt, or else the prompt."""
        return self.written or self.prompt

    def to_json(self) -> str:
        """Write the request as one line of JSON, without the fields left to default."""
        return json.dumps({k: v for k, v in asdict(self).items() if v is not None}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Request:
        """Read a request back; raises RequestError for what is not one."""
        try:
            found = json.loads(text)
        except ValueError as error:  # of JSON, or of a number of thousands of digits
            raise RequestError(f"a request must be JSON; {error}") from error
        except RecursionError:
            raise RequestError("a request must be a plain object of fields; this one is nested too deep") from None
        if not isinstance(found, dict):
            raise RequestError(f"a request must be a JSON object; got a {type(found).__name__}")
        return cls.from_dict(found)

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Request:
        """Make a request of named values; raises RequestError for an unknown name or a value of the wrong type."""
        return cls(**_all_checked(found))

    def altered(self, **changes: Any) -> Request:
        """Return the request with some fields changed; None leaves a field as it is. Raises RequestError as `from_dict`
        does.
        """
        return replace(self, **_all_checked({name: value for name, value in changes.items() if value is not None}))


_TYPES: dict[str, tuple[type, ...]] = {
    "mode": (str,),
    "prompt": (str,),
    "upsample": (str,),
    "written": (str,),
    "image": (str,),
    "clip": (str,),
    "other": (str,),
    "pictures": (list, tuple),
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
    "interval": (list, tuple),
    "rescale": (int, float),
    "negative": (str,),
    "method": (str,),
    "seed": (int,),
    "mark": (str,),
    "model": (str,),
    "model_hash": (str,),
    "made_with": (str,),
}
assert set(_TYPES) == {field.name for field in fields(Request)}
_OPTIONAL = {field.name for field in fields(Request) if field.default is None}


def _all_checked(found: dict[str, Any]) -> dict[str, Any]:
    """Return values by field, each in its own type; raises RequestError for an unknown field or a value of another."""
    unknown = found.keys() - _TYPES.keys()
    if unknown:
        raise RequestError(
            f"a request has the fields {', '.join(_TYPES)}; got {_shown(sorted(unknown, key=str))[1:-1]}"
        )
    return {name: _checked(name, value) for name, value in found.items()}


def _checked(name: str, value: Any) -> Any:
    """Return a field's value in its own type, or raise RequestError."""
    if value is None and name in _OPTIONAL:
        return None
    if not isinstance(value, _TYPES[name]) or isinstance(value, bool):
        raise RequestError(f"{name} must be {' or '.join(kind.__name__ for kind in _TYPES[name])}; got {_shown(value)}")
    if (name, value) == ("upsample", NONE):
        return None
    known: Any = value
    if name in _TUPLES:
        kinds, rule = _TUPLES[name]
        return _tuple(known, kinds, f"{name} must be {rule}; got {_shown(value)}")
    if name in ("pictures", "hashes"):
        kinds = (float, str) if name == "pictures" else (str, str)
        return tuple(
            _tuple(pair, kinds, f"{name} must be pairs, each with a file; got {_shown(pair)}") for pair in known
        )
    if name == "moments":
        return tuple(moment if isinstance(moment, Moment) else _moment(moment) for moment in known)
    return _plain(known, float if float in _TYPES[name] else _TYPES[name][0], name)


def _plain(value: Any, kind: type, name: str) -> Any:
    """Return a text or number as its kind; raises RequestError where it cannot be written, or is too large."""
    if kind is str and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise RequestError(f"{name} must be text in UTF-8; got half a letter in {_shown(value)}") from None
    if kind is int and abs(value) >= LARGEST:
        raise RequestError(f"{name} must be a whole number below 2^63; got {_shown(value)}")
    if kind is float and not abs(value) <= sys.float_info.max:
        raise RequestError(f"{name} must be a finite number; got {_shown(value)}")
    return kind(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong, _SHORT.maxlevel = 200, 200, 40, 4


def _shown(value: Any) -> str:
    """Return how a value is told to whoever gave it: as it is written, and the middle left out where it is long."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return f"one that is too long to write, of type {type(value).__name__}"


def check_values(request: Request) -> None:
    """Raise RequestError for values that no model can take."""
    columns, rows = request.size or (2**31, 2**31)
    if request.strength is not None and not 0 <= request.strength <= 1:
        raise RequestError(f"strength must lie between 0 and 1; got {request.strength:g}")
    if request.side is not None and request.side not in SIDES:
        raise RequestError(f"side must be one of {', '.join(SIDES)}; got {request.side!r}")
    if request.mark is not None and request.mark not in CORNERS:
        raise RequestError(f"mark must be one of the corners {', '.join(CORNERS)}; got {request.mark!r}")
    if request.window is not None and not 0 <= request.window[0] < request.window[1] < LONGEST:
        raise RequestError("a window must go from a moment to a later one; got {:g} to {:g}".format(*request.window))
    if request.box is not None:
        left, top, right, bottom = request.box
        if not (0 <= left < right <= columns and 0 <= top < bottom <= rows):
            raise RequestError(f"a box must be left, top, right, bottom within the frame; got {request.box}")
    for at, path in request.pictures or ():
        if not 0 <= at < LONGEST:
            raise RequestError(f"a picture has seconds from 0 on; got {at:g} for {path}")
    if request.seconds is not None and not 0 < request.seconds < LONGEST:
        raise RequestError(f"seconds must be above 0 and below a million; got {request.seconds:g}")
    times = [moment.at for moment in request.moments or ()]
    if times and (times[0] != 0 or any(b <= a for a, b in pairwise(times))):
        raise RequestError(f"moments must begin at 0 and rise; got {', '.join(f'{at:g}' for at in times)}")
    if times and request.seconds is not None and times[-1] >= request.seconds:
        raise RequestError(f"moments must begin before the end, {request.seconds:g} s; got one at {times[-1]:g}")


_TUPLES: dict[str, tuple[tuple[type, ...], str]] = {
    "size": ((int, int), "two whole numbers, columns and rows"),
    "interval": ((float, float), "two noise levels, from 0 to 1"),
    "window": ((float, float), "two moments in seconds, from and to"),
    "box": ((int, int, int, int), "four whole numbers, left, top, right and bottom"),
}


def _tuple(value: Any, kinds: tuple[type, ...], sentence: str) -> tuple:
    """Return a value as a tuple of these kinds, whole numbers passing for others; raises RequestError(sentence)."""
    if not isinstance(value, (list, tuple)) or len(value) != len(kinds):
        raise RequestError(sentence)
    for part, kind in zip(value, kinds, strict=True):
        if isinstance(part, bool) or not isinstance(part, (int, float) if kind is float else kind):
            raise RequestError(sentence)
    name = sentence.partition(" ")[0]
    return tuple(_plain(part, kind, f"each of {name}") for part, kind in zip(value, kinds, strict=True))


def _moment(found: Any) -> Moment:
    """Make a moment of named values; raises RequestError for what is none."""
    names = {field.name for field in fields(Moment)}
    if not isinstance(found, dict) or not {"at", "prompt"} <= found.keys() <= names:
        raise RequestError(f"a moment has at and prompt, and may have image and clip; got {_shown(found)}")
    at, prompt = found["at"], found["prompt"]
    if isinstance(at, bool) or not isinstance(at, (int, float)) or not 0 <= at < LONGEST:
        raise RequestError(f"a moment has seconds from 0 on; got at {_shown(at)}")
    if not isinstance(prompt, str) or not prompt.strip():
        raise RequestError(f"a moment has words; got prompt {_shown(prompt)}")
    for name in ("image", "clip"):
        if found.get(name) is not None and not (isinstance(found[name], str) and found[name]):
            raise RequestError(f"a moment's {name} is a file's name; got {_shown(found[name])}")
    image, clip = (found.get(name) and _plain(found[name], str, f"a moment's {name}") for name in ("image", "clip"))
    return Moment(float(at), _plain(prompt, str, "a moment's prompt"), image, clip)


def read_board(path: str) -> dict[str, Any]:
    """Read a storyboard, YAML or JSON: the fields of a Request, moments among them, or only a list of moments.

    Files that it names lie where they are as seen from its folder. Raises RequestError for what is no storyboard.
    """
    try:
        text = _board_text(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RequestError(f"{path} cannot be read as a storyboard: {reason}") from error
    found = parse_board(text, path)
    for holder in (found, *found["moments"]):
        for name in ("image", "clip", "other", "mask"):
            if isinstance(holder, dict) and isinstance(holder.get(name), str) and holder[name]:
                holder[name] = str(Path(path).parent / holder[name])
    return found


def parse_board(text: str, path: str = "the text") -> dict[str, Any]:
    """Read a storyboard's text, from a file that lies at `path`; files that it names are left as they are told. Raises
    RequestError for what is no storyboard.
    """
    try:
        found = read_yaml(text)
    except ValueError as error:
        raise RequestError(f"{path} cannot be read as a storyboard: {error}") from error
    found: Any = {"moments": found} if isinstance(found, list) else found
    if not isinstance(found, dict) or not isinstance(found.get("moments"), list):
        raise RequestError(f"a storyboard must be moments, each with at and prompt; {path} holds none")
    if not all(isinstance(name, str) for name in found):
        raise RequestError(f"a storyboard's fields have names; {path} has one that is none")
    if isinstance(found.get("size"), str):
        found["size"] = parse_size(found["size"])
    return found


def _board_text(path: str) -> str:
    with open(path, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # a device might never end
            raise ValueError("it is no file")
        content = file.read(BOARD_BYTES + 1)
    if len(content) > BOARD_BYTES:
        raise ValueError(f"it has more than {BOARD_BYTES:,} bytes")
    return content.decode()


def read_yaml(text: str) -> Any:
    """Read JSON, or YAML without aliases, by which a few lines could stand for terabytes.

    Raises ValueError for what is no such YAML, or is nested too deep.
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
    """Return PyYAML's loader of plain values that refuses aliases."""
    import yaml  # type: ignore[import-untyped]

    class Plain(yaml.SafeLoader):
        def compose_node(self, parent, index):
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("it has an alias, such as *name, so write out what that stands for")
            return super().compose_node(parent, index)

    return Plain


def parse_size(text: str) -> tuple[int, int]:
    """Read "128x96" as (columns, rows); raises RequestError for anything else."""
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() and len(side) < 10 for side in sides):
        raise RequestError(f"size must be COLUMNSxROWS, such as 64x64; got {text!r}")
    return int(sides[0]), int(sides[1])
