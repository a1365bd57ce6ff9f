"""What a prepared folder holds: journals that workers' results are added to, and a manifest made of them.

DST/journal/STEP.jsonl   a line for each thing done, added and flushed at once: what a killed run leaves is whole
DST/manifest.parquet     a row a clip, made anew from the journals at the end of every step
DST/clips/               the clips, named after what they hold
DST/shards/              their latents
DST/words/               what a text encoder says of their captions
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from training.config import MANIFEST_FILE, Format
from vae.files import atomic_write


class PrepareError(ValueError):
    """A folder that cannot be prepared: the rule, what was given, the remedy."""


@dataclass(frozen=True)
class Row:
    """A clip: `clip`, 16 hexadecimal digits of what it is; `file` within the folder; `source`, `begin` and `end` in
    seconds of it; its size; `scores` by name; `captions`; the names of the thresholds that it is `dropped` for; where
    its `latents` are.
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
    latents: list[Sample] = field(default_factory=list)


@dataclass(frozen=True)
class Caption:
    """Words for a clip, where they come from, and the version of that; and what they say of subject, action, camera,
    light and style.
    """

    text: str
    source: str
    version: str
    parts: dict[str, str] = field(default_factory=dict)


class Kind(NamedTuple):
    """What latents depend on, beside their clip: the hash of the encoder, frames a second, and the format."""

    encoder: str
    fps: float
    format: Format


@dataclass(frozen=True)
class Sample:
    """Latents of a clip, or of a stretch of it, as numbers in float16: of which kind they are, the tar that holds them,
    where in it they begin and how many bytes they are, and their shape (C, T, H, W).
    """

    encoder: str
    fps: float
    format: Format
    shard: str
    offset: int
    bytes: int
    shape: tuple[int, ...]


def digest_of(captions: Iterable[Caption]) -> str:
    """Return a short name of what captions say, by which scores of other words are told."""
    return hashlib.sha256(json.dumps([said.text for said in captions]).encode()).hexdigest()[:16]


PARTS = ("parts", pa.map_(pa.string(), pa.string()))
SAMPLE = pa.struct(
    [
        ("encoder", pa.string()),
        ("fps", pa.float64()),
        ("format", pa.list_(pa.int64())),
        ("shard", pa.string()),
        ("offset", pa.int64()),
        ("bytes", pa.int64()),
        ("shape", pa.list_(pa.int64())),
    ]
)
assert [one.name for one in SAMPLE] == [one.name for one in fields(Sample)]
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
        ("latents", pa.list_(SAMPLE)),
    ]
)
assert SCHEMA.names == [one.name for one in fields(Row)]


def write_manifest(folder: Path, rows: list[Row]) -> None:
    """Write the manifest, whole or not at all; where latents are is as the journal says."""
    latents = defaultdict(list)
    for (clip, _), held in sorted(coded(folder).items()):
        latents[clip] += held.samples
    rows = [replace(row, latents=latents[row.clip]) for row in rows]
    plain = [asdict(row) | {"scores": list(row.scores.items())} for row in rows]
    for row in plain:
        row["captions"] = [one | {"parts": list(one["parts"].items())} for one in row["captions"]]
    with atomic_write(folder / MANIFEST_FILE) as temporary:
        pq.write_table(pa.Table.from_pylist(plain, SCHEMA), temporary)


def read_manifest(folder: Path) -> list[Row]:
    """Read a prepared folder's rows; raises PrepareError where there are none."""
    path = folder / MANIFEST_FILE
    if not path.exists():
        raise PrepareError(
            f"a prepared folder has a {MANIFEST_FILE}; {folder} has none, so run longtake prepare clips first"
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
                "latents": [_sample(one) for one in row["latents"] or ()],  # older manifests have none
            }
        )
        for row in found
    ]


def _sample(plain: dict[str, Any]) -> Sample:
    return Sample(**plain | {"format": tuple(plain["format"]), "shape": tuple(plain["shape"])})


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


class Held(NamedTuple):
    """What a tar holds of a clip: its samples, and the digest of the captions beside them."""

    samples: list[Sample]
    texts: str | None


def tars(folder: Path) -> Iterator[dict[str, Any]]:
    """List what was noted of the tars of latents that are there, whole."""
    for line in Journal(folder, "latents").lines():
        if "shard" in line:
            ends = [
                one["offset"] + 2 * math.prod(one["shape"]) for samples in line["clips"].values() for one in samples
            ]
            if size_of(folder / line["shard"]) >= max(ends):
                yield line


def size_of(path: Path) -> int:
    """Return how many bytes a file is, 0 for none."""
    return path.stat().st_size if path.exists() else 0


def kind_of(line: dict[str, Any]) -> Kind:
    """Return the kind of latents that a line of their journal is about."""
    columns, rows, frames = line["format"]
    return Kind(line["encoder"], line["fps"], (columns, rows, frames))


def coded(folder: Path) -> dict[tuple[str, Kind], Held]:
    """Return where latents are, by clip and kind: of the tars that are there, in the last that holds them."""
    found = {}
    for line in tars(folder):
        kind, texts = kind_of(line), line.get("texts", {})
        for clip, samples in line["clips"].items():
            places = [(one["offset"], 2 * math.prod(one["shape"]), tuple(one["shape"])) for one in samples]
            found[clip, kind] = Held([Sample(*kind, line["shard"], *place) for place in places], texts.get(clip))
    return found


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
