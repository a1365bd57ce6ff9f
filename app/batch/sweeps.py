"""Expand rows into items: lists, sweeps and wildcards are multiplied out; each combination is a request with a name.

When a list is several values, and when it is one value: in a field of one text or number, any list is several values.
A size, window, box or guidance interval is a list itself; it is several values where a member is a list too, or a size
as text: [64, 64] is one size, [[64, 64], [80, 48]] and ["64x64"] are several. Moments are several values where a member
is a list of moments; keyframes, and hashes, where a member is a list of pairs.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cache
from itertools import product
from typing import Any

from app.batch.names import check_output_name, collision_key, file_name, hash_file, hash_inputs, request_digest
from app.batch.rows import FIELD_TYPES, OUTPUT, STORYBOARD, BatchRow, check_field_names
from app.formats import VIDEO_SUFFIXES
from app.registry import check_upsampler_choice
from dit.modes import MODES
from dit.request import Request, RequestError, check_values, parse_size

SWEEP_MODES = ("product", "zip")
WILDCARD_FIELDS = ("prompt", "upsampled_prompt", "negative_prompt")
MAX_DEPTH = 20  # wildcards within each other
MAX_COUNTED = 10**18  # a larger number of clips is not written out


@dataclass(frozen=True)
class BatchItem:
    """One clip of a batch: its request and file name, or the error that makes it invalid.

    `row` and `part` count from 1: the row of JOBS, and the clip of that row. `digest` is the SHA-256 of the content.
    `duplicate_of` is the row and part of an earlier item that makes the same file.
    """

    row: int
    part: int
    request: Request | None = None
    error: str | None = None
    name: str = ""
    digest: str = ""
    duplicate_of: tuple[int, int] | None = None


@dataclass(frozen=True)
class Wildcard:
    """A wildcard's alternatives, each a sequence of texts and nested wildcards. A whole text has a single alternative.

    `position` numbers the wildcards of a text in the order in which they open.
    """

    position: int
    alternatives: tuple[tuple[str | Wildcard, ...], ...]

    @property
    def count(self) -> int:
        """The number of texts it expands to."""
        return sum(
            math.prod(part.count for part in alternative if isinstance(part, Wildcard))
            for alternative in self.alternatives
        )

    def texts(self) -> Iterator[str]:
        """Yield every text, the last wildcard changing fastest."""
        for alternative in self.alternatives:
            parts = ([part] if isinstance(part, str) else part.texts() for part in alternative)
            yield from map("".join, product(*parts))

    def draw(self, seed: Any) -> str:
        """Return one text, a function of the seed and the positions alone."""
        digest = hashlib.sha256(f"{seed!r} {self.position}".encode()).digest()
        alternative = self.alternatives[int.from_bytes(digest[:8], "big") % len(self.alternatives)]
        return "".join(part if isinstance(part, str) else part.draw(seed) for part in alternative)


def parse_wildcards(text: str) -> Wildcard:
    r"""Parse "{red|blue} ball" into its alternatives, which may nest or be empty; \{, \| and \} are literal.

    Raises RequestError for unbalanced braces.
    """
    stack: list[list[list[str | Wildcard]]] = [[[]]]
    positions, opened = [0], 0
    for token in re.findall(r"\\[{|}]|[{|}]|[^\\{|}]+|\\", text):
        if token == "{" and len(stack) <= MAX_DEPTH:
            opened += 1
            stack.append([[]])
            positions.append(opened)
        elif token == "{":
            raise RequestError(f"wildcards may be nested {MAX_DEPTH} deep; these are deeper")
        elif token == "}" and len(stack) > 1:
            wildcard = Wildcard(positions.pop(), tuple(map(tuple, stack.pop())))
            stack[-1][-1].append(wildcard)
        elif token == "}":
            raise RequestError(rf"a }} must have a {{ before it; got {text!r}, so write \}} for a literal brace")
        elif token == "|" and len(stack) > 1:
            stack[-1].append([])
        else:
            stack[-1][-1].append(token[1:] if len(token) == 2 and token[0] == "\\" else token)
    if len(stack) > 1:
        raise RequestError(rf"a {{ must have a }} after it; got {text!r}, so write \{{ for a literal brace")
    return Wildcard(0, tuple(map(tuple, stack[0])))


def is_value_list(name: str, value: Any) -> bool:
    """Say whether a field has several values, rather than one that is a list."""
    if not isinstance(value, (list, tuple)):
        return False
    if not FIELD_TYPES[name].startswith("tuple["):
        return True
    lists = [member for member in value if isinstance(member, (list, tuple))]
    if FIELD_TYPES[name].startswith("tuple[tuple["):
        return any(isinstance(part, (list, tuple)) for member in lists for part in member)
    return bool(lists) or (name == "size" and any(isinstance(member, str) for member in value))


@dataclass(frozen=True)
class _RowPlan:
    """The values of each field of a row, and the number of clips they give, before any is made."""

    row: int
    axes: dict[str, list[Any]] = field(default_factory=dict)
    output: Any = None
    clips: int = 1
    error: str | None = None


def expand_rows(
    rows: list[BatchRow],
    sweeps: dict[str, list] | None = None,
    mode: str = "product",
    draw: bool = False,
    defaults: dict[str, Any] | None = None,
    max_clips: int = 1_000_000,
    suffix: str = VIDEO_SUFFIXES[0],
) -> list[BatchItem]:
    """Expand rows into items, each with a request and the name of its file.

    A field that a row leaves out has the values of `sweeps`, or else that of `defaults`. Lists of several fields are
    combined: with mode "product" each with each, the fields in a Request's order and the last changing fastest; with
    mode "zip" in step. A wildcard gives every alternative or, with `draw`, the one that the seed draws. None in a list
    is the model's own default. A row with moments is a storyboard, unless it sets a mode. `suffix` is that of videos.

    A row names no upsampler of its own but none and auto; `defaults` may name others, which rows may then name as well.
    An invalid row or clip becomes an item with an `error`. Input files are read for their hashes, each once. Raises
    RequestError for more than `max_clips` clips, before any is expanded, and for an error of all rows.
    """
    if mode not in SWEEP_MODES:
        raise RequestError(f"sweeps are combined in mode {' or '.join(SWEEP_MODES)}; got {mode!r}")
    if suffix.lower() not in VIDEO_SUFFIXES:
        raise RequestError(f"clips must end in {' or '.join(VIDEO_SUFFIXES)}; got {suffix!r}")
    shared = {name: value for name, value in (defaults or {}).items() if value is not None} | (sweeps or {})
    check_field_names(shared, "the settings of all rows")
    if per_row := {STORYBOARD, OUTPUT} & shared.keys():
        raise RequestError(f"{' and '.join(sorted(per_row))} must be set by each row; got one for all")
    plans = [_plan_row(row, shared, mode, draw) for row in rows]
    clips = sum(plan.clips for plan in plans)
    if clips > max_clips:
        raise RequestError(
            f"a batch may make {max_clips:,} clips; these rows would make {_counted(clips)}, so split or shorten them"
        )
    hash_of = cache(hash_file)
    items = (item for plan in plans for item in _expand_plan(plan, mode, draw, hash_of, suffix))
    upsamplers = shared.get("upsample")
    chosen = upsamplers if isinstance(upsamplers, (list, tuple)) else (upsamplers,)
    return _mark_collisions([_check_upsampler(item, chosen) for item in items])


def _counted(clips: int) -> str:
    return f"{clips:,}" if clips < MAX_COUNTED else f"more than {MAX_COUNTED:,}"


def _plan_row(row: BatchRow, shared: dict[str, Any], mode: str, draw: bool) -> _RowPlan:
    if row.error:
        return _RowPlan(row.number, error=row.error)
    fields = shared | row.fields
    output = fields.pop(OUTPUT, None)
    try:
        check_field_names(fields)
        axes = {name: _values(name, fields[name]) for name in FIELD_TYPES if name in fields}
        lengths = {
            name: sum(one.count if isinstance(one, Wildcard) and not draw else 1 for one in values)
            for name, values in axes.items()
        }
        clips = math.prod(lengths.values()) if mode == "product" else _zip_length(lengths)
        if output is not None and clips > 1:
            raise RequestError(
                f"output must name one clip; this row makes {_counted(clips)}, so leave it out or split the row"
            )
    except RequestError as error:
        return _RowPlan(row.number, error=str(error))
    return _RowPlan(row.number, axes, output, clips)


def _values(name: str, value: Any) -> list[Any]:
    """Return the values of a field, its texts with their wildcards parsed."""
    values = list(value) if is_value_list(name, value) else [value]
    if not values:
        raise RequestError(f"a list of {name} must have a member; got none, so leave it out")
    return [parse_wildcards(one) if name in WILDCARD_FIELDS and isinstance(one, str) else one for one in values]


def _zip_length(lengths: dict[str, int]) -> int:
    """Return the number of clips in mode zip; raises RequestError where lists differ in length."""
    several = {name: length for name, length in lengths.items() if length != 1}
    if len(set(several.values())) > 1:
        got = ", ".join(f"{length if length < MAX_COUNTED else 'many'} of {name}" for name, length in several.items())
        raise RequestError(f"zipped lists must be equally long; got {got}, so even them out, or use --mode product")
    return max(several.values(), default=1)


def _expand_plan(
    plan: _RowPlan, mode: str, draw: bool, hash_of: Callable[[str], str], suffix: str
) -> Iterator[BatchItem]:
    if plan.error:
        yield BatchItem(plan.row, 1, error=plan.error)
        return
    axes = [
        [text for one in values for text in (one.texts() if isinstance(one, Wildcard) and not draw else [one])]
        for values in plan.axes.values()
    ]
    if mode == "zip":
        axes = [values * plan.clips if len(values) == 1 else values for values in axes]
    for part, values in enumerate(product(*axes) if mode == "product" else zip(*axes, strict=True), 1):
        fields = {name: value for name, value in zip(plan.axes, values, strict=True) if value is not None}
        yield _make_item(BatchItem(plan.row, part), fields, plan.output, hash_of, suffix)


def _make_item(
    item: BatchItem, fields: dict[str, Any], output: Any, hash_of: Callable[[str], str], suffix: str
) -> BatchItem:
    """Fill in an item's request and name, or its error."""
    seed = fields.get("seed", Request.seed)
    fields = {name: one.draw(seed) if isinstance(one, Wildcard) else one for name, one in fields.items()}
    if fields.get("moments") and "mode" not in fields:
        fields["mode"] = "storyboard"
    try:
        if isinstance(fields.get("size"), str):
            fields["size"] = parse_size(fields["size"])
        request = Request.from_dict(fields)
        _check_mode(request.mode)
        check_values(request)
        hashes = hash_inputs(request, hash_of)
        name = file_name(request, hashes, suffix)
        if output is not None:
            name = check_output_name(output, MODES[request.mode].still)
        return replace(item, request=request, name=name, digest=request_digest(request, hashes))
    except RequestError as error:
        return replace(item, error=str(error))


def _check_upsampler(item: BatchItem, chosen: Sequence[Any]) -> BatchItem:
    try:
        if item.request:
            check_upsampler_choice(item.request, chosen)
        return item
    except RequestError as error:
        return BatchItem(item.row, item.part, error=str(error))


def _check_mode(mode: str) -> None:
    if mode not in MODES:
        near = get_close_matches(mode, MODES, n=1)
        remedy = f"perhaps {near[0]} was meant" if near else "see longtake modes"
        raise RequestError(f"mode must be one of {', '.join(MODES)}; got {mode!r}, and {remedy}")


def _mark_collisions(items: list[BatchItem]) -> list[BatchItem]:
    """Mark items that make the same file as an earlier one, and those that would overwrite another's."""
    first: dict[str, BatchItem] = {}
    found = []
    for item in items:
        other = first.setdefault(collision_key(item.name), item) if item.request else item
        if other is not item and other.digest == item.digest:
            item = replace(item, duplicate_of=(other.row, other.part))
        elif other is not item:
            message = f"a clip must have a name of its own; row {other.row} has {other.name!r} already, so take another"
            item = BatchItem(item.row, item.part, error=message)
        found.append(item)
    return found
