"""Command-line options from the fields of a flat dataclass, so that `argparse` reads every command of Longtake.

The option of a field has the field's type, its present value as default, and the comment on the field as help. Types:
int, float, str, Path, bool, a Literal of texts, any of these or None, tuples of these, and tuples of equal tuples.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import io
import textwrap
import tokenize
from collections.abc import Callable
from dataclasses import fields, replace
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")
NONE = "none"  # the text that sets an optional field to None


def add_options(parser: argparse.ArgumentParser, default: Any) -> None:
    """Add one option for each field of a dataclass; an option that is left out keeps the value of `default`."""
    kinds, comments = get_type_hints(type(default)), field_comments(type(default))
    for field in fields(default):
        help = f"{comments[field.name]} (default: {_write(getattr(default, field.name))})".strip().replace("%", "%%")
        name = f"--{field.name.replace('_', '-')}"
        parser.add_argument(
            name, dest=field.name, default=argparse.SUPPRESS, help=help, **_parse_settings(kinds[field.name])
        )


def read_options(args: argparse.Namespace, default: T) -> T:
    """Return `default` with the fields whose options were given; raises ValueError for a tuple of a wrong length."""
    kinds = get_type_hints(type(default))
    changes = {name: _convert(name, kinds[name], value) for name, value in vars(args).items() if name in kinds}
    return replace(default, **changes)  # type: ignore[type-var]


def field_comments(kind: type) -> dict[str, str]:
    """Return the comment on each field of a dataclass and its bases: on the field's line, or within its value."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):  # without object
        source = textwrap.dedent(inspect.getsource(base))
        comments = {
            token.start[0]: token.string.lstrip("# ")
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type == tokenize.COMMENT
        }
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
                found[node.target.id] = " ".join(comments[line] for line in lines if line in comments)
    return found


def _parse_settings(kind: Any) -> dict[str, Any]:
    """Return the keyword arguments of `add_argument` for a type."""
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(kind) is Literal:
        return {"choices": get_args(kind)}
    if get_origin(kind) is tuple:
        member, *others = get_args(kind)
        value = get_args(member)[0] if get_origin(member) is tuple else member
        is_open = others == [Ellipsis]
        return {"nargs": "*" if is_open else 1 + len(others), "type": value, "metavar": value.__name__.upper()}
    value = next((part for part in get_args(kind) if part is not NoneType), kind)
    return {"type": value if value is kind else _or_none(value), "metavar": value.__name__.upper()}


def _convert(name: str, kind: Any, value: Any) -> Any:
    """Convert what argparse parsed to a field's type: lists become tuples, or tuples of tuples."""
    if get_origin(kind) is not tuple:
        return value
    member = get_args(kind)[0]
    if get_origin(member) is not tuple:
        return tuple(value)
    size = len(get_args(member))
    if len(value) % size:
        raise ValueError(f"{name} must be in groups of {size}; got {_write(value)}")
    return tuple(tuple(value[start : start + size]) for start in range(0, len(value), size))


def _or_none(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        return None if text.lower() == NONE else kind(text)

    parse.__name__ = kind.__name__  # argparse names it in errors
    return parse


def _write(value: Any) -> str:
    """Write a value as it is typed on the command line."""
    if isinstance(value, (list, tuple)):
        return " ".join(map(_write, value))
    return NONE if value is None else str(value)
