"""What a prepared folder holds: journals that workers' results are added to, and a manifest made of them.

DST/journal/STEP.jsonl   a line for each thing done, added and flushed at once: what a killed run leaves is whole
DST/manifest.parquet     a row a clip, made anew from the journals at the end of every step
DST/clips/               the clips, named after what they hold
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from training.dataset import PREPARED


class PrepareError(ValueError):
    """A folder that cannot be prepared: the rule, what was given, the remedy."""


@dataclass(frozen=True)
class Row:
    """A clip: `clip`, 16 hexadecimal digits of what it is; `file` within the folder; `source`, `begin` and `end` in
    seconds of it; its size; `scores` by name; `captions`; the names of the thresholds that it is `dropped` for.
    """

    clip: str
    file: str
    sha256: str
    source: str
    source_sha256: str
    begin: float
    end: float
    frames: int
    fps: float
    columns: int
    rows: int
    copied: bool  # as it was coded in the source, or else coded anew
    scores: dict[str, float] = field(default_factory=dict)
    captions: list[Caption] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Caption:
    """Words for a clip, where they come from, and the version of that; and what they say of subject, action, camera,
    light and style.
    """

    text: str
    source: str
    version: str
    parts: dict[str, str] = field(default_factory=dict)


def digest_of(captions: Iterable[Caption]) -> str:
    """Return a short name of what captions say, by which scores of other words are told."""
    return hashlib.sha256(json.dumps([said.text for said in captions]).encode()).hexdigest()[:16]


PARTS = ("parts", pa.map_(pa.string(), pa.string()))
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("clip", "file", "sha256", "source", "source_sha256")),
        *((name, pa.float64()) for name in ("begin", "end")),
        ("frames", pa.int64()),
        ("fps", pa.float64()),
        *((name, pa.int64()) for name in ("columns", "rows")),
        ("copied", pa.bool_()),
        ("scores", pa.map_(pa.string(), pa.float64())),
        ("captions", pa.list_(pa.struct([*((name, pa.string()) for name in ("text", "source", "version")), PARTS]))),
        ("dropped", pa.list_(pa.string())),
    ]
)
assert SCHEMA.names == [one.name for one in fields(Row)]


def write_manifest(folder: Path, rows: list[Row]) -> None:
    """Write the manifest, whole or not at all."""
    plain = [asdict(row) | {"scores": list(row.scores.items())} for row in rows]
    for row in plain:
        row["captions"] = [one | {"parts": list(one["parts"].items())} for one in row["captions"]]
    temporary = folder / f".{PREPARED}"
    pq.write_table(pa.Table.from_pylist(plain, SCHEMA), temporary)
    os.replace(temporary, folder / PREPARED)


def read_manifest(folder: Path) -> list[Row]:
    """Read a prepared folder's rows; raises PrepareError where there are none."""
    path = folder / PREPARED
    if not path.exists():
        raise PrepareError(
            f"a prepared folder has a {PREPARED}; {folder} has none, so run longtake prepare clips first"
        )
    try:
        found = pq.read_table(path, schema=SCHEMA).to_pylist()
    except pa.ArrowException as error:
        raise PrepareError(
            f"{path} cannot be read: {error}; remove it, and run longtake prepare clips again"
        ) from error
    return [
        Row(
            **row
            | {
                "scores": dict(row["scores"]),
                "captions": [Caption(**one | {"parts": dict(one["parts"])}) for one in row["captions"]],
                "dropped": row["dropped"] or [],  # a manifest of before has none
            }
        )
        for row in found
    ]


class Journal:
    """What a step has done, a line each. A line that a killed run left half written is dropped."""

    def __init__(self, folder: Path, step: str):
        self.path = folder / "journal" / f"{step}.jsonl"

    def lines(self) -> Iterator[dict[str, Any]]:
        """Read all that was noted."""
        if not self.path.exists():
            return
        with open(self.path, encoding="utf-8") as lines:
            for line in lines:
                if line.endswith("\n"):
                    yield json.loads(line)

    @contextmanager
    def adding(self) -> Iterator[Any]:
        """Open the journal for more: yields the function that notes one thing, to stay."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a+b") as file:
            file.seek(0)
            file.truncate(sum(len(line) for line in file if line.endswith(b"\n")))

            def note(thing: dict[str, Any]) -> None:
                file.write(json.dumps(thing).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())

            yield note


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Have a folder to oneself; raises PrepareError where another run has it, or a link in it leads out of it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.fdopen(os.open(folder / ".lock", os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666), "w")
    except OSError as error:
        raise PrepareError(f"{folder} must be a folder that can be written; {error.strerror}; name another") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PrepareError(f"one run at a time writes to {folder}, and another does; wait for it") from None
        _refuse_links_out(folder)
        yield


def _refuse_links_out(folder: Path) -> None:
    top = folder.resolve()
    for link in _links_in(top):
        if not Path(os.path.realpath(link)).is_relative_to(top):
            raise PrepareError(
                f"nothing is written outside of {folder}; {link} is a link out of it, so remove that link"
            )


def _links_in(folder: Path | str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink():
                yield entry.path
            elif entry.is_dir():
                yield from _links_in(entry.path)
