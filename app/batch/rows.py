"""Read a JOBS file: one row per clip, or per sweep of clips, in any of these formats.

| suffix | a row is |
|---|---|
| .txt | a line: a prompt; blank lines and those that begin with # are skipped |
| .jsonl .ndjson | a line: a JSON object of a Request's fields |
| .csv .tsv | a record below a header of field names; an empty cell is the default |
| .parquet | a row; null is the default |
| .yaml .yml .json | the whole file, a storyboard; or an object or a prompt of the list in it |
| standard input | a line: as in .jsonl where it begins like an object, else as in .txt |

Besides a Request's fields, a row may have `storyboard`, a file whose fields are its defaults, and `output`, the name of
its clip. Paths in a row are relative to the folder of JOBS.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import partial
from itertools import count
from pathlib import Path
from typing import IO, Any

from dit.request import RENAMED, Request, RequestError, with_current_names
from dit.storyboard import read_storyboard, read_yaml

# Each field's declared type: "str", "int", "float", or "tuple[...]".
FIELD_TYPES = {each.name: str(each.type).removesuffix(" | None") for each in fields(Request)}
STORYBOARD, OUTPUT = "storyboard", "output"  # columns that are not fields of a Request
FILE_FIELDS = ("image", "clip", "other", "mask")  # fields whose value is a path
STDIN = "-"
FORMATS = (".txt", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".yaml", ".yml", ".json")
MAX_EXACT_INT = 2**53  # larger whole numbers are rounded in a table that stores them as floats


@dataclass(frozen=True)
class BatchRow:
    """A row of JOBS: its fields, or the error that makes it unreadable. `number` counts from 1, as an editor does."""

    number: int
    fields: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


def read_rows(path: Path | None, text: IO | None = None) -> list[BatchRow]:
    """Read the rows of a JOBS file; of `text`, by default standard input, where the path is None or "-".

    A row that cannot be read has an `error` and does not stop the others. Raises RequestError for the file as a whole:
    not found, an unknown format or column, a damaged table.
    """
    if path is None or str(path) == STDIN:
        stream = text or sys.stdin
        return _read_lines(_decode(getattr(stream, "buffer", stream).read(), "standard input"), Path(), None)
    kind = path.suffix.lower()
    if kind not in FORMATS:
        raise RequestError(f"JOBS must end in {', '.join(FORMATS)}, or be {STDIN} for standard input; got {path}")
    try:
        if kind == ".parquet":
            return _read_parquet(path)
        content = _decode(path.read_bytes(), str(path))
    except OSError as error:
        raise RequestError(f"JOBS must be a file that can be read; {path} cannot: {error.strerror or error}") from error
    if kind in (".csv", ".tsv"):
        return _read_table(content, path)
    if kind in (".yaml", ".yml", ".json"):
        return _read_list(content, path)
    return _read_lines(content, path.parent, kind != ".txt")


def check_field_names(names: Iterable[Any], what: str = "a row") -> None:
    """Raise RequestError for the first unknown field name; the message suggests the nearest known one."""
    known = [*FIELD_TYPES, STORYBOARD, OUTPUT]
    for name in names:
        if name not in known:
            near = get_close_matches(str(name).strip().lower().replace("-", "_"), known, n=1)
            remedy = f"perhaps {near[0]} was meant" if near else f"they are {', '.join(FIELD_TYPES)}"
            raise RequestError(
                f"{what} may name a request's fields, {STORYBOARD} and {OUTPUT}; got {str(name)!r}: {remedy}"
            )


def _decode(content: str | bytes, name: str) -> str:
    """Decode UTF-8 without its byte order mark; other bytes become surrogates, which fail in their own row."""
    if isinstance(content, str):
        return content.removeprefix("\ufeff")
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise RequestError(f"JOBS must be UTF-8; {name} is UTF-16, so save it as UTF-8")
    return content.decode("utf-8-sig", errors="surrogateescape")


def _read_lines(text: str, folder: Path, objects: bool | None) -> list[BatchRow]:
    """Read one row per line: JSON objects, prompts, or, where `objects` is None, what each line begins like."""
    rows = []
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        line = line.strip()
        # A prompt may begin with a wildcard, {red|blue}; an object begins with a quoted name.
        is_object = re.match(r'\{\s*["}]', line) is not None if objects is None else objects
        if line and (is_object or not line.startswith("#")):
            rows.append(_make_row(number, partial(_parse_object, line) if is_object else partial(str, line), folder))
    return rows


def _parse_object(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise RequestError(f"a row must be a JSON object on one line; {error}") from error


def _read_list(text: str, path: Path) -> list[BatchRow]:
    """Read YAML or JSON: a storyboard, one object, or a list of objects and prompts."""
    try:
        found = json.loads(text) if path.suffix.lower() == ".json" else read_yaml(text)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else error
        raise RequestError(f"JOBS must be YAML or JSON; {path} is neither: {reason}") from error
    listed = found if isinstance(found, list) else [] if found is None else [found]
    moments = isinstance(found, list) and any(isinstance(one, dict) and "at" in one for one in listed)
    if moments or (isinstance(found, dict) and "moments" in found):
        return [_make_row(1, lambda: {STORYBOARD: path.name}, path.parent)]
    return [_make_row(number, lambda one=one: one, path.parent) for number, one in enumerate(listed, 1)]


def _read_table(text: str, path: Path) -> list[BatchRow]:
    """Read CSV or TSV: a header, then one row per record."""
    delimiter = "\t"
    if path.suffix.lower() == ".csv":  # spreadsheets write semicolons in locales with decimal commas
        head = text.lstrip().partition("\n")[0]
        delimiter = ";" if ";" in head and "," not in head else ","
    table = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] = []
    rows = []
    for number in count(1):
        try:
            cells = next(table)
        except StopIteration:
            break
        except csv.Error as error:
            message = f"a row must have its quotes closed and doubled within a cell; {error}"
            if not names:
                raise RequestError(f"{message}, in the header of {path}") from error
            rows.append(BatchRow(number, error=message))
            continue
        while cells and not cells[-1].strip():
            cells.pop()
        if not cells:
            continue
        if names:
            rows.append(_make_row(number, partial(_parse_cells, names, cells, delimiter != ","), path.parent))
        else:
            names = [RENAMED.get(cell.strip(), cell.strip()) for cell in cells]
            _check_header(names, path)
    if not names:
        raise RequestError(f"a table must begin with a header of field names, such as prompt; {path} is empty")
    return rows


def _read_parquet(path: Path) -> list[BatchRow]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError as error:
        raise RequestError("parquet needs pyarrow, of the extra data; pip install .[data]") from error
    try:
        with ParquetFile(path) as table:
            _check_header([RENAMED.get(str(name), str(name)) for name in table.schema_arrow.names], path)
            found = [with_current_names(one) for batch in table.iter_batches() for one in batch.to_pylist()]
    except (ArrowException, ValueError, OverflowError) as error:
        reason = (str(error).splitlines() or ["it is damaged"])[0]
        raise RequestError(f"JOBS must be a whole table; {path} cannot be read: {reason}") from error
    return [_make_row(number, partial(_parse_columns, one), path.parent) for number, one in enumerate(found, 1)]


def _check_header(names: list[str], path: Path) -> None:
    check_field_names(names, f"the header of {path}")
    for name in names:
        if names.count(name) > 1:
            raise RequestError(f"a column must have a name of its own; {path} has two named {name}")


def _parse_cells(names: list[str], cells: list[str], decimal_comma: bool) -> dict[str, Any]:
    """Return a record's values by field; missing cells at its end are empty."""
    if len(cells) > len(names):
        raise RequestError(
            f"a row must have a cell for each of {len(names)} columns; got {len(cells)}, so quote what holds a comma"
        )
    return {name: parse_cell(name, cell, decimal_comma) for name, cell in zip(names, cells, strict=False)}


def _parse_columns(found: dict[str, Any]) -> dict[str, Any]:
    """Return a parquet row's values by field. Columns with nulls may store whole numbers as floats, and null as NaN."""
    read = {name: parse_cell(name, value) if isinstance(value, str) else value for name, value in found.items()}
    for name, value in read.items():
        if isinstance(value, float) and math.isnan(value):
            read[name] = None
        elif isinstance(value, float) and FIELD_TYPES.get(name) == "int":
            read[name] = _whole_number(name, value)
    return read


def parse_cell(name: str, cell: str, decimal_comma: bool = False) -> Any:
    """Parse a cell into its field's type; None for an empty one. Lists, and lists of values, are JSON.

    With `decimal_comma`, a comma in a number is a decimal comma, as where it separates no columns. Elsewhere it might
    separate thousands, so it is refused.
    """
    cell, kind = cell.strip(), FIELD_TYPES.get(name, "str")
    if not cell:
        return None
    if kind == "str" or (name == "size" and cell[0] != "["):  # text such as 64x64 is parsed where all sizes are
        return cell
    if cell[0] == "[":
        try:
            return json.loads(cell)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{name} must be JSON where it is a list; got {cell!r}, {error}") from error
    if kind not in ("int", "float"):
        raise RequestError(f"{name} must be a list in JSON, such as [0, 1]; got {cell!r}")
    number = cell
    if re.fullmatch(r"[+-]?(\d+|\d{1,3}(\.\d{3})+),\d+", cell):
        number = cell.replace(".", "").replace(",", ".")
        if not decimal_comma:
            raise RequestError(f"{name} must be a number with a decimal point; got {cell!r}, so write {number}")
    try:
        value = int(number) if re.fullmatch(r"[+-]?\d+", number) else float(number)
    except ValueError:
        raise RequestError(f"{name} must be a number; got {cell!r}") from None
    return _whole_number(name, value) if kind == "int" and isinstance(value, float) else value


def _whole_number(name: str, value: float) -> int:
    """Convert a float to the whole number it holds; raises RequestError for a fraction, or one that may be rounded."""
    if value.is_integer() and abs(value) < MAX_EXACT_INT:
        return int(value)
    raise RequestError(f"{name} must be a whole number; got {value:g}")


def _make_row(number: int, read: Callable[[], Any], folder: Path) -> BatchRow:
    """Return the row that `read` returns, or the error it raises, as a BatchRow."""
    try:
        return BatchRow(number, _parse_fields(read(), folder))
    except RequestError as error:
        return BatchRow(number, error=str(error))
    except RecursionError:
        return BatchRow(number, error="a row must be a plain list of fields; this one is nested too deep")


def _parse_fields(found: Any, folder: Path) -> dict[str, Any]:
    """Return a row's fields with those of its storyboard, paths resolved against the folder of JOBS."""
    if isinstance(found, str):
        found = {"prompt": found.strip()}
    if not isinstance(found, dict):
        raise RequestError(f"a row must be a prompt or an object of fields; got a {type(found).__name__}")
    found = with_current_names(found)
    check_field_names(found)
    values = {name: _resolve_paths(folder, name, value) for name, value in found.items() if value is not None}
    if STORYBOARD in values:
        values = _read_storyboard(values.pop(STORYBOARD), folder) | values
    try:
        json.dumps(values, ensure_ascii=False, allow_nan=False, default=str).encode()
    except UnicodeEncodeError as error:
        raise RequestError("a row must be text in UTF-8; this one has other bytes, so save it as UTF-8") from error
    except (TypeError, ValueError) as error:
        raise RequestError(f"a row must hold text, finite numbers and lists of them; {error}") from error
    return values


def _read_storyboard(name: Any, folder: Path) -> dict[str, Any]:
    if not isinstance(name, str):
        raise RequestError(f"storyboard must be a file's name; got {name!r}")
    found = read_storyboard(str(folder / name))
    check_field_names(found, f"the storyboard {folder / name}")
    return {key: value for key, value in found.items() if value is not None and key != STORYBOARD}


def _resolve_path(folder: Path, name: str, file: str) -> str:
    r"""Return a path relative to the folder of JOBS, also one that is written as on Windows, such as images\start.png.

    Raises RequestError for one with a drive, which no other system has.
    """
    path = folder / file
    if "\\" not in file or os.path.lexists(path):
        return str(path)
    if re.match(r"[A-Za-z]:|\\\\", file):
        raise RequestError(
            f"{name} must be a path of this machine; got {file!r}, of Windows, so write it relative to the table"
        )
    return str(folder / file.replace("\\", "/"))


def _resolve_paths(folder: Path, name: str, value: Any) -> Any:
    """Return a field's value, or list of values, with its paths resolved against the folder of JOBS."""

    def resolve(file: Any) -> Any:
        return _resolve_path(folder, name, file) if isinstance(file, str) and file else file

    if isinstance(value, (list, tuple)):
        path_index = {"keyframes": 1, "hashes": 0}.get(name)
        if (
            path_index is not None
            and len(value) == 2
            and not any(isinstance(part, (list, tuple, dict)) for part in value)
        ):
            return [resolve(part) if n == path_index else part for n, part in enumerate(value)]
        return [_resolve_paths(folder, name, one) for one in value]
    if name == "moments" and isinstance(value, dict):
        return {key: resolve(part) if key in FILE_FIELDS else part for key, part in value.items()}
    return resolve(value) if name in FILE_FIELDS else value
