"""The manifest of a prepared folder: one row per clip, with its captions, scores and latents.

`longtake prepare` writes it and training reads it. pyarrow belongs to the extra `data`, so it is imported only when a
manifest is read or written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from training.config import Format
from vae.files import atomic_write

MANIFEST_FILE = "manifest.parquet"  # marks a prepared folder


class PrepareError(ValueError):
    """A folder that cannot be prepared: the rule, what was given, the remedy."""


@dataclass(frozen=True)
class CaptionEntry:
    """One caption of a clip; `source` and `version` name the captioner (or the sidecar file) that it comes from.

    `parts` are the caption split into subject, action, camera, light and style, where the captioner gives them.
    """

    text: str
    source: str
    version: str
    parts: dict[str, str] = field(default_factory=dict)


class LatentSpec(NamedTuple):
    """What the latents of a clip depend on: the hash of the VAE's encoder, frames per second, and the format."""

    encoder: str
    fps: float
    format: Format


@dataclass(frozen=True)
class LatentEntry:
    """Where the latents of one segment of a clip are: float16 numbers of `shape` (C, T, H, W).

    `shard` is the tar file within the prepared folder; the numbers fill `bytes` bytes from `offset` on. The first three
    fields are those of the LatentSpec.
    """

    encoder: str
    fps: float
    format: Format
    shard: str
    offset: int
    bytes: int
    shape: tuple[int, ...]

    @property
    def spec(self) -> LatentSpec:
        return LatentSpec(self.encoder, self.fps, self.format)


@dataclass(frozen=True)
class ClipRow:
    """One clip. `clip` is its name, 16 hexadecimal digits derived from its source; `file` is relative to the folder.

    `begin` and `end` are in seconds of `source`. `dropped` names the thresholds that the clip failed; a dropped clip is
    neither captioned nor encoded nor trained on.
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
    copied: bool  # its packets were copied from the source; otherwise it was encoded again
    scores: dict[str, float] = field(default_factory=dict)
    captions: list[CaptionEntry] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    latents: list[LatentEntry] = field(default_factory=list)


def captions_digest(captions: Iterable[CaptionEntry]) -> str:
    """Return 16 hexadecimal digits of the captions' texts: it changes when a caption does."""
    return hashlib.sha256(json.dumps([caption.text for caption in captions]).encode()).hexdigest()[:16]


def file_bytes(path: Path) -> int:
    """Return the size of a file in bytes, 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


@cache
def manifest_schema() -> Any:
    """Return the pyarrow schema of the manifest; its columns are the fields of ClipRow, in order."""
    import pyarrow as pa

    latent = pa.struct(
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
    caption = pa.struct(
        [
            *((name, pa.string()) for name in ("text", "source", "version")),
            ("parts", pa.map_(pa.string(), pa.string())),
        ]
    )
    schema = pa.schema(
        [
            *((name, pa.string()) for name in ("clip", "file", "sha256", "source", "source_sha256")),
            *((name, pa.float64()) for name in ("begin", "end")),
            ("frames", pa.int64()),
            ("fps", pa.float64()),
            *((name, pa.int64()) for name in ("columns", "rows")),
            ("copied", pa.bool_()),
            ("scores", pa.map_(pa.string(), pa.float64())),
            ("captions", pa.list_(caption)),
            ("dropped", pa.list_(pa.string())),
            ("latents", pa.list_(latent)),
        ]
    )
    assert [column.name for column in latent] == [own.name for own in fields(LatentEntry)]
    assert schema.names == [own.name for own in fields(ClipRow)]
    return schema


def write_manifest(folder: Path, rows: list[ClipRow]) -> None:
    """Write the manifest of a prepared folder, whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    plain: list[dict[str, Any]] = [asdict(row) | {"scores": list(row.scores.items())} for row in rows]
    for row in plain:
        row["captions"] = [caption | {"parts": list(caption["parts"].items())} for caption in row["captions"]]
    with atomic_write(folder / MANIFEST_FILE) as temporary:
        pq.write_table(pa.Table.from_pylist(plain, manifest_schema()), temporary)


def read_manifest(folder: Path) -> list[ClipRow]:
    """Read the rows of a prepared folder. Raises PrepareError where there is no manifest, or a damaged one."""
    path = folder / MANIFEST_FILE
    if not path.exists():
        raise PrepareError(
            f"a prepared folder has a {MANIFEST_FILE}; {folder} has none, so run longtake prepare clips first"
        )
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        found = pq.read_table(path, schema=manifest_schema()).to_pylist()
    except pa.ArrowException as error:
        raise PrepareError(
            f"{path} cannot be read: {error}; remove it, and run longtake prepare clips again"
        ) from error
    return [
        ClipRow(
            **row
            | {
                "scores": dict(row["scores"]),
                "captions": [CaptionEntry(**one | {"parts": dict(one["parts"])}) for one in row["captions"]],
                "dropped": row["dropped"] or [],  # manifests of older versions lack this column and the next
                "latents": [_latent_entry(one) for one in row["latents"] or ()],
            }
        )
        for row in found
    ]


def _latent_entry(plain: dict[str, Any]) -> LatentEntry:
    values = dict(plain)
    values["format"], values["shape"] = tuple(plain["format"]), tuple(plain["shape"])
    return LatentEntry(**values)
