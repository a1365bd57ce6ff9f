"""From a JOBS file to rows: what somebody wrote, one row a clip or a sweep of clips, in whatever format they keep it.

| name ends in | a row is |
|---|---|
| .txt | a line: a prompt; blank lines and those that begin with # are skipped |
| .jsonl .ndjson | a line: a JSON object of a Request's fields |
| .csv .tsv | a row beneath a header of field names; an empty cell is the default |
| .parquet | a row; null is the default |
| .yaml .yml .json | the storyboard that the file is, or an object or a prompt of the list that it is |
| standard input | a line, as of .jsonl where it begins as an object does, else as of .txt |

Beside a Request's fields, a row may have `storyboard`, a file whose fields it begins with, and `output`, a file name of
its own. Files that a row names lie where they are as seen from the folder of JOBS.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import partial
from itertools import count
from pathlib import Path
from typing import IO, Any

from dit.request import Request, RequestError, read_board, read_yaml

# Each field's type as it is declared: str, int, float, or a tuple of something.
KINDS = {each.name: str(each.type).removesuffix(" | None") for each in fields(Request)}
BOARD, OUTPUT = "storyboard", "output"  # what a row may hold beside a Request's fields
FILES = ("image", "clip", "other", "mask")  # fields that are a file's name
STDIN = "-"
FORMATS = (".txt", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".yaml", ".yml", ".json")
EXACT = 2**53  # whole numbers beyond it are rounded where a table keeps them as fractions


@dataclass(frozen=True)
class Row:
    """A row of JOBS, numbered from 1 as an editor or a spreadsheet counts: its fields, or why it cannot be read."""

    number: int
    fields: dict[str, Any] = field(default_factory=dict)
    wrong: str | None = None


def read_rows(path: Path | None, text: IO | None = None) -> list[Row]:
    """Read the rows of a JOBS file, or of `text`, by default standard input, where the path is None or "-".

    A row that cannot be read says why in `wrong` and stops no other. Raises RequestError for what is wrong with the
    file as a whole: no such file, a format or a column that is not known, a damaged table.
    """
    if path is None or str(path) == STDIN:
        stream = text or sys.stdin
        return _read_lines(_decoded(getattr(stream, "buffer", stream).read(), "standard input"), Path(), None)
    kind = path.suffix.lower()
    if kind not in FORMATS:
        raise RequestError(f"JOBS must end in {', '.join(FORMATS)}, or be {STDIN} for standard input; got {path}")
    try:
        if kind == ".parquet":
            return _read_parquet(path)
        words = _decoded(path.read_bytes(), str(path))
    except OSError as error:
        raise RequestError(f"JOBS must be a file that can be read; {path} cannot: {error.strerror or error}") from error
    if kind in (".csv", ".tsv"):
        return _read_table(words, path)
    if kind in (".yaml", ".yml", ".json"):
        return _read_list(words, path)
    return _read_lines(words, path.parent, kind != ".txt")


def check_names(names: Iterable[Any], what: str = "a row") -> None:
    """Raise RequestError for the first name that a row cannot have; the sentence says which one is nearest to it."""
    known = [*KINDS, BOARD, OUTPUT]
    for name in names:
        if name not in known:
            near = get_close_matches(str(name).strip().lower().replace("-", "_"), known, n=1)
            remedy = f"perhaps {near[0]} was meant" if near else f"they are {', '.join(KINDS)}"
            raise RequestError(f"{what} may name a request's fields, {BOARD} and {OUTPUT}; got {str(name)!r}: {remedy}")


def _decoded(found: str | bytes, name: str) -> str:
    """Return text without a byte order mark; what is not UTF-8 is marked, and found again in its own row."""
    if isinstance(found, str):
        return found.removeprefix("\ufeff")
    if found[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise RequestError(f"JOBS must be UTF-8; {name} is UTF-16, so save it as UTF-8")
    return found.decode("utf-8-sig", errors="surrogateescape")


def _read_lines(text: str, folder: Path, objects: bool | None) -> list[Row]:
    """Read a row a line: JSON objects, prompts, or, for None, whatever each line begins as."""
    rows = []
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        line = line.strip()
        # A prompt may begin with a wildcard, {red|blue}; an object begins with a quoted name.
        wrapped = re.match(r'\{\s*["}]', line) is not None if objects is None else objects
        if line and (wrapped or not line.startswith("#")):
            rows.append(_row(number, partial(_object, line) if wrapped else partial(str, line), folder))
    return rows


def _object(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise RequestError(f"a row must be a JSON object on one line; {error}") from error


def _read_list(text: str, path: Path) -> list[Row]:
    """Read YAML or JSON: a storyboard, one object, or a list of objects and prompts."""
    try:
        found = json.loads(text) if path.suffix.lower() == ".json" else read_yaml(text)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else error
        raise RequestError(f"JOBS must be YAML or JSON; {path} is neither: {reason}") from error
    listed = found if isinstance(found, list) else [] if found is None else [found]
    moments = isinstance(found, list) and any(isinstance(one, dict) and "at" in one for one in listed)
    if moments or (isinstance(found, dict) and "moments" in found):
        return [_row(1, lambda: {BOARD: path.name}, path.parent)]
    return [_row(number, lambda one=one: one, path.parent) for number, one in enumerate(listed, 1)]


def _read_table(text: str, path: Path) -> list[Row]:
    """Read CSV or TSV: a header, and a row a record."""
    mark = "\t"
    if path.suffix.lower() == ".csv":  # where decimals have commas, spreadsheets write semicolons, which no field has
        head = text.lstrip().partition("\n")[0]
        mark = ";" if ";" in head and "," not in head else ","
    table = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
    names: list[str] = []
    rows = []
    for number in count(1):
        try:
            cells = next(table)
        except StopIteration:
            break
        except csv.Error as error:
            sentence = f"a row must have its quotes closed and doubled within a cell; {error}"
            if not names:
                raise RequestError(f"{sentence}, in the header of {path}") from error
            rows.append(Row(number, wrong=sentence))
            continue
        while cells and not cells[-1].strip():
            cells.pop()
        if not cells:
            continue
        if names:
            rows.append(_row(number, partial(_cells, names, cells), path.parent))
        else:
            names = [cell.strip() for cell in cells]
            _check_header(names, path)
    if not names:
        raise RequestError(f"a table must begin with a header of field names, such as prompt; {path} is empty")
    return rows


def _read_parquet(path: Path) -> list[Row]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError as error:
        raise RequestError("parquet needs pyarrow, of the extra data; pip install .[data]") from error
    try:
        with ParquetFile(path) as table:
            _check_header(table.schema_arrow.names, path)
            found = [one for batch in table.iter_batches() for one in batch.to_pylist()]
    except (ArrowException, ValueError, OverflowError) as error:
        reason = (str(error).splitlines() or ["it is damaged"])[0]
        raise RequestError(f"JOBS must be a whole table; {path} cannot be read: {reason}") from error
    return [_row(number, partial(_from_columns, one), path.parent) for number, one in enumerate(found, 1)]


def _check_header(names: list[str], path: Path) -> None:
    check_names(names, f"the header of {path}")
    for name in names:
        if names.count(name) > 1:
            raise RequestError(f"a column must have a name of its own; {path} has two named {name}")


def _cells(names: list[str], cells: list[str]) -> dict[str, Any]:
    """Return a record's values by field; cells left off at its end are empty."""
    if len(cells) > len(names):
        raise RequestError(
            f"a row must have a cell for each of {len(names)} columns; got {len(cells)}, so quote what holds a comma"
        )
    return {name: typed(name, cell) for name, cell in zip(names, cells, strict=False)}


def _from_columns(found: dict[str, Any]) -> dict[str, Any]:
    """Return a table's values by field. Columns with holes hold whole numbers as fractions, and holes as nan."""
    read = {name: typed(name, value) if isinstance(value, str) else value for name, value in found.items()}
    for name, value in read.items():
        if isinstance(value, float) and math.isnan(value):
            read[name] = None
        elif isinstance(value, float) and KINDS.get(name) == "int":
            read[name] = _whole(name, value)
    return read


def typed(name: str, cell: str) -> Any:
    """Read a cell into its field's own type; None for an empty one. Lists are JSON, a list of values included."""
    cell, kind = cell.strip(), KINDS.get(name, "str")
    if not cell:
        return None
    if kind == "str" or (name == "size" and cell[0] != "["):  # a size in words is read where all sizes are
        return cell
    if cell[0] == "[":
        try:
            return json.loads(cell)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{name} must be JSON where it is a list; got {cell!r}, {error}") from error
    if kind not in ("int", "float"):
        raise RequestError(f"{name} must be a list in JSON, such as [0, 1]; got {cell!r}")
    try:
        value = int(cell) if re.fullmatch(r"[+-]?\d+", cell) else float(cell)
    except ValueError:
        raise RequestError(f"{name} must be a number; got {cell!r}") from None
    return _whole(name, value) if kind == "int" and isinstance(value, float) else value


def _whole(name: str, value: float) -> int:
    """Return a fraction that is a whole number as one; raises RequestError for what is none, or may be rounded."""
    if value.is_integer() and abs(value) < EXACT:
        return int(value)
    raise RequestError(f"{name} must be a whole number; got {value:g}")


def _row(number: int, read: Callable[[], Any], folder: Path) -> Row:
    """Return the row that `read` gives, or what is wrong with it."""
    try:
        return Row(number, _fields(read(), folder))
    except RequestError as error:
        return Row(number, wrong=str(error))
    except RecursionError:
        return Row(number, wrong="a row must be a plain list of fields; this one is nested too deep")


def _fields(found: Any, folder: Path) -> dict[str, Any]:
    """Return what a row holds, its storyboard's fields among them, its files as seen from here."""
    if isinstance(found, str):
        found = {"prompt": found.strip()}
    if not isinstance(found, dict):
        raise RequestError(f"a row must be a prompt or an object of fields; got a {type(found).__name__}")
    check_names(found)
    given = {name: _beside(folder, name, value) for name, value in found.items() if value is not None}
    if BOARD in given:
        given = _board(given.pop(BOARD), folder) | given
    try:
        json.dumps(given, ensure_ascii=False, allow_nan=False, default=str).encode()
    except UnicodeEncodeError as error:
        raise RequestError("a row must be text in UTF-8; this one has other bytes, so save it as UTF-8") from error
    except (TypeError, ValueError) as error:
        raise RequestError(f"a row must hold text, finite numbers and lists of them; {error}") from error
    return given


def _board(name: Any, folder: Path) -> dict[str, Any]:
    if not isinstance(name, str):
        raise RequestError(f"storyboard must be a file's name; got {name!r}")
    found = read_board(str(folder / name))
    check_names(found, f"the storyboard {folder / name}")
    return {key: value for key, value in found.items() if value is not None and key != BOARD}


def _beside(folder: Path, name: str, value: Any) -> Any:
    """Return a field's value, or a list of values, with the files that it names as seen from the folder of JOBS."""

    def seen(file: Any) -> Any:
        return str(folder / file) if isinstance(file, str) and file else file

    if isinstance(value, (list, tuple)):
        place = {"pictures": 1, "hashes": 0}.get(name)
        if place is not None and len(value) == 2 and not any(isinstance(part, (list, tuple, dict)) for part in value):
            return [seen(part) if at == place else part for at, part in enumerate(value)]
        return [_beside(folder, name, one) for one in value]
    if name == "moments" and isinstance(value, dict):
        return {key: seen(part) if key in FILES else part for key, part in value.items()}
    return seen(value) if name in FILES else value
