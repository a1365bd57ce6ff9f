"""From rows to shots: lists, sweeps and wildcards are written out, each combination becomes a request with a name.

What is a list of values, and what is one value that is a list: where a field is one word or number, any list is several
values. A size, window, box or interval, a list itself, is several where a member is a list too, or a size in words:
[64, 64] is one size, [[64, 64], [80, 48]] and ["64x64"] are several. Moments are several where a member is a list of
moments; pictures, and hashes, where a member is a list of pairs.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cache
from itertools import product
from typing import Any

from app.batch.names import alike, check_output, digest_of, hash_file, hashes_of, name_of
from app.batch.rows import BOARD, KINDS, OUTPUT, Row, check_names
from app.formats import VIDEO_SUFFIXES
from dit.modes import MODES
from dit.request import Request, RequestError, check_values, parse_size

WAYS = ("product", "zip")
WORDS = ("prompt", "written", "negative")  # fields that may have wildcards
DEEPEST = 20  # wildcards within each other
COUNTABLE = 10**18  # more clips than this are no longer counted out


@dataclass(frozen=True)
class Shot:
    """One clip of a batch: which part of which row, both from 1, and its request and file name, or what is wrong.

    `digest` is the SHA-256 of its content. `twin` is the row and part of an earlier shot that makes the same file.
    """

    row: int
    part: int
    request: Request | None = None
    wrong: str | None = None
    name: str = ""
    digest: str = ""
    twin: tuple[int, int] | None = None


@dataclass(frozen=True)
class Choice:
    """A wildcard: ways to go on, each of texts and further wildcards. A whole text is one of a single way.

    `position` counts the wildcards of a text by where they open.
    """

    position: int
    ways: tuple[tuple[str | Choice, ...], ...]

    @property
    def count(self) -> int:
        """How many texts there are."""
        return sum(math.prod(part.count for part in way if isinstance(part, Choice)) for way in self.ways)

    def texts(self) -> Iterator[str]:
        """Yield every text, the last wildcard changing fastest."""
        for way in self.ways:
            yield from map("".join, product(*([part] if isinstance(part, str) else part.texts() for part in way)))

    def drawn(self, seed: Any) -> str:
        """Return one text: which, is a function of seed and positions alone."""
        drawn = hashlib.sha256(f"{seed!r} {self.position}".encode()).digest()
        way = self.ways[int.from_bytes(drawn[:8], "big") % len(self.ways)]
        return "".join(part if isinstance(part, str) else part.drawn(seed) for part in way)


def read_wildcards(text: str) -> Choice:
    r"""Read "{red|blue} ball" into its alternatives. They may hold others, or nothing; \{, \| and \} stay as they are.

    Raises RequestError for braces that are not closed or not opened.
    """
    stack: list[list[list[str | Choice]]] = [[[]]]
    positions, opened = [0], 0
    for token in re.findall(r"\\[{|}]|[{|}]|[^\\{|}]+|\\", text):
        if token == "{" and len(stack) <= DEEPEST:
            opened += 1
            stack.append([[]])
            positions.append(opened)
        elif token == "{":
            raise RequestError(f"wildcards may lie {DEEPEST} deep within each other; these lie deeper")
        elif token == "}" and len(stack) > 1:
            choice = Choice(positions.pop(), tuple(map(tuple, stack.pop())))
            stack[-1][-1].append(choice)
        elif token == "}":
            raise RequestError(rf"a }} must have a {{ before it; got {text!r}, so write \}} for a brace that is seen")
        elif token == "|" and len(stack) > 1:
            stack[-1].append([])
        else:
            stack[-1][-1].append(token[1:] if len(token) == 2 and token[0] == "\\" else token)
    if len(stack) > 1:
        raise RequestError(rf"a {{ must have a }} behind it; got {text!r}, so write \{{ for a brace that is seen")
    return Choice(0, tuple(map(tuple, stack[0])))


def is_several(name: str, value: Any) -> bool:
    """Say whether a field is given several values, rather than one that is a list."""
    if not isinstance(value, (list, tuple)):
        return False
    if not KINDS[name].startswith("tuple["):
        return True
    lists = [one for one in value if isinstance(one, (list, tuple))]
    if KINDS[name].startswith("tuple[tuple["):
        return any(isinstance(part, (list, tuple)) for one in lists for part in one)
    return bool(lists) or (name == "size" and any(isinstance(one, str) for one in value))


@dataclass(frozen=True)
class _Plan:
    """What a row will make, before it is made: the values of each field, and how many clips that gives."""

    row: int
    axes: dict[str, list[Any]] = field(default_factory=dict)
    output: Any = None
    clips: int = 1
    wrong: str | None = None


def expand(
    rows: list[Row],
    sweeps: dict[str, list] | None = None,
    mode: str = "product",
    draw: bool = False,
    defaults: dict[str, Any] | None = None,
    most: int = 1_000_000,
    suffix: str = VIDEO_SUFFIXES[0],
) -> list[Shot]:
    """Make the shots of some rows, each a request and the name of its file.

    A field that a row leaves out has the values of `sweeps`, or else that of `defaults`. Several values of several
    fields are combined: in mode product each with each, the fields in a Request's order and the last changing fastest;
    in mode zip side by side. A wildcard gives every alternative, or, with `draw`, the one that the seed draws. None in
    a list is the model's own default. A row with moments is a storyboard, unless its mode is given. `suffix` is that of
    clips.

    What is wrong with a row or one of its clips is told in its shot. Files are read for their hashes, each once. Raises
    RequestError for more than `most` clips, before any is made, and for what is wrong with all.
    """
    if mode not in WAYS:
        raise RequestError(f"sweeps are combined in mode {' or '.join(WAYS)}; got {mode!r}")
    if suffix.lower() not in VIDEO_SUFFIXES:
        raise RequestError(f"clips must end in {' or '.join(VIDEO_SUFFIXES)}; got {suffix!r}")
    given = {name: value for name, value in (defaults or {}).items() if value is not None} | (sweeps or {})
    check_names(given, "the settings of all rows")
    if outside := {BOARD, OUTPUT} & given.keys():
        raise RequestError(f"{' and '.join(sorted(outside))} must be said by each row; got one for all")
    plans = [_plan(row, given, mode, draw) for row in rows]
    clips = sum(plan.clips for plan in plans)
    if clips > most:
        counted = f"{clips:,}" if clips < COUNTABLE else f"more than {COUNTABLE:,}"
        raise RequestError(f"a batch may make {most:,} clips; these rows would make {counted}, so part or shorten them")
    hash_of = cache(hash_file)
    return _with_names_of_their_own([shot for plan in plans for shot in _shots(plan, mode, draw, hash_of, suffix)])


def _plan(row: Row, given: dict[str, Any], mode: str, draw: bool) -> _Plan:
    if row.wrong:
        return _Plan(row.number, wrong=row.wrong)
    fields = given | row.fields
    output = fields.pop(OUTPUT, None)
    try:
        check_names(fields)
        axes = {name: _values(name, fields[name]) for name in KINDS if name in fields}
        lengths = {
            name: sum(one.count if isinstance(one, Choice) and not draw else 1 for one in values)
            for name, values in axes.items()
        }
        clips = math.prod(lengths.values()) if mode == "product" else _side_by_side(lengths)
        if output is not None and clips > 1:
            counted = f"{clips:,}" if clips < COUNTABLE else "many"
            raise RequestError(f"output must name one clip; this row makes {counted}, so leave it out or part the row")
    except RequestError as error:
        return _Plan(row.number, wrong=str(error))
    return _Plan(row.number, axes, output, clips)


def _values(name: str, value: Any) -> list[Any]:
    """Return the values of a field, its texts with their wildcards read."""
    values = list(value) if is_several(name, value) else [value]
    if not values:
        raise RequestError(f"a list of {name} must hold one at least; got none, so leave it out")
    return [read_wildcards(one) if name in WORDS and isinstance(one, str) else one for one in values]


def _side_by_side(lengths: dict[str, int]) -> int:
    """Return how many clips there are in mode zip; raises RequestError where lists differ in length."""
    several = {name: length for name, length in lengths.items() if length != 1}
    if len(set(several.values())) > 1:
        got = ", ".join(f"{length if length < COUNTABLE else 'many'} of {name}" for name, length in several.items())
        raise RequestError(f"lists side by side must be equally long; got {got}, so even them out, or take product")
    return max(several.values(), default=1)


def _shots(plan: _Plan, mode: str, draw: bool, hash_of: Callable[[str], str], suffix: str) -> Iterator[Shot]:
    if plan.wrong:
        yield Shot(plan.row, 1, wrong=plan.wrong)
        return
    axes = [
        [text for one in values for text in (one.texts() if isinstance(one, Choice) and not draw else [one])]
        for values in plan.axes.values()
    ]
    if mode == "zip":
        axes = [values * plan.clips if len(values) == 1 else values for values in axes]
    for part, values in enumerate(product(*axes) if mode == "product" else zip(*axes, strict=True), 1):
        found = {name: value for name, value in zip(plan.axes, values, strict=True) if value is not None}
        yield _shot(Shot(plan.row, part), found, plan.output, hash_of, suffix)


def _shot(shot: Shot, found: dict[str, Any], output: Any, hash_of: Callable[[str], str], suffix: str) -> Shot:
    """Fill in a shot's request and name, or what is wrong."""
    seed = found.get("seed", Request.seed)
    found = {name: one.drawn(seed) if isinstance(one, Choice) else one for name, one in found.items()}
    if found.get("moments") and "mode" not in found:
        found["mode"] = "storyboard"
    try:
        if isinstance(found.get("size"), str):
            found["size"] = parse_size(found["size"])
        request = Request.from_dict(found)
        _check_mode(request.mode)
        check_values(request)
        hashes = hashes_of(request, hash_of)
        name = name_of(request, hashes, suffix)
        if output is not None:
            name = check_output(output, MODES[request.mode].still)
        return replace(shot, request=request, name=name, digest=digest_of(request, hashes))
    except RequestError as error:
        return replace(shot, wrong=str(error))


def _check_mode(mode: str) -> None:
    if mode not in MODES:
        near = get_close_matches(mode, MODES, n=1)
        remedy = f"perhaps {near[0]} was meant" if near else "see longtake modes"
        raise RequestError(f"mode must be one of {', '.join(MODES)}; got {mode!r}, and {remedy}")


def _with_names_of_their_own(shots: list[Shot]) -> list[Shot]:
    """Point shots to the first that makes the same file, and refuse those that would overwrite another's."""
    first: dict[str, Shot] = {}
    found = []
    for shot in shots:
        other = first.setdefault(alike(shot.name), shot) if shot.request else shot
        if other is not shot and other.digest == shot.digest:
            shot = replace(shot, twin=(other.row, other.part))
        elif other is not shot:
            sentence = (
                f"a clip must have a name of its own; row {other.row} has {other.name!r} already, so take another"
            )
            shot = Shot(shot.row, shot.part, wrong=sentence)
        found.append(shot)
    return found
