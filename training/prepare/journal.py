"""What a prepared folder holds: journals that record results as they come, and the manifest that is built from them.

DST/journal/STEP.jsonl   one line per result, flushed to disk at once, so that a killed run loses only the unfinished
DST/manifest.parquet     one row per clip (`training/manifest.py`), rebuilt from the journals at the end of every step
DST/clips/               the clips, named by a hash of their source
DST/shards/              their latents
DST/text_embeddings/     the text embeddings of their captions
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from training.manifest import (
    CaptionEntry,
    ClipRow,
    LatentEntry,
    LatentSpec,
    PrepareError,
    captions_digest,
    file_bytes,
    write_manifest,
)

SIDECAR = "sidecar"  # the source of captions that came in a .txt next to a video

Append = Callable[[dict[str, Any]], None]  # adds one entry to a journal


class Journal:
    """The results of one step, one JSON object per line. A line that a killed run left unfinished is dropped."""

    def __init__(self, folder: Path, step: str):
        self.path = folder / "journal" / f"{step}.jsonl"

    def entries(self) -> Iterator[dict[str, Any]]:
        """Read all entries, oldest first."""
        if not self.path.exists():
            return
        with open(self.path, encoding="utf-8") as lines:
            for line in lines:
                if line.endswith("\n"):
                    yield json.loads(line)

    @contextmanager
    def appending(self) -> Iterator[Append]:
        """Open the journal for appending; yields a function that adds one entry and forces it to the disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a+b") as file:
            file.seek(0)
            file.truncate(sum(len(line) for line in file if line.endswith(b"\n")))

            def append(entry: dict[str, Any]) -> None:
                file.write(json.dumps(entry).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())

            yield append


class StoredLatents(NamedTuple):
    """What a shard holds of one clip: its segments, and the digest of the captions stored with them."""

    segments: list[LatentEntry]
    captions: str | None


def latent_shards(folder: Path) -> Iterator[dict[str, Any]]:
    """List the journal entries of those shards of latents that exist in full."""
    for entry in Journal(folder, "latents").entries():
        if "shard" in entry:
            ends = [one["offset"] + 2 * math.prod(one["shape"]) for parts in entry["clips"].values() for one in parts]
            if file_bytes(folder / entry["shard"]) >= max(ends):
                yield entry


def spec_of(entry: dict[str, Any]) -> LatentSpec:
    """Return the LatentSpec that an entry of the journal "latents" is about."""
    columns, rows, frames = entry["format"]
    return LatentSpec(entry["encoder"], entry["fps"], (columns, rows, frames))


def stored_latents(folder: Path) -> dict[tuple[str, LatentSpec], StoredLatents]:
    """Return where latents are, by clip and LatentSpec; of several shards that hold a clip, the last counts."""
    found = {}
    for entry in latent_shards(folder):
        spec, digests = spec_of(entry), entry.get("texts", {})
        for clip, parts in entry["clips"].items():
            places = [(one["offset"], 2 * math.prod(one["shape"]), tuple(one["shape"])) for one in parts]
            segments = [LatentEntry(*spec, entry["shard"], *place) for place in places]
            found[clip, spec] = StoredLatents(segments, digests.get(clip))
    return found


def update_manifest(folder: Path, rows: list[ClipRow]) -> None:
    """Write the manifest; where the latents of each clip are is taken from the journal."""
    latents = defaultdict(list)
    for (clip, _), stored in sorted(stored_latents(folder).items()):
        latents[clip] += stored.segments
    write_manifest(folder, [replace(row, latents=latents[row.clip]) for row in rows])


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold a prepared folder for one run, and create it if needed.

    Raises PrepareError where another run holds it, where it cannot be written, and where a link in it leads out of it.
    """
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


def clip_rows(folder: Path, required: bool = False) -> list[ClipRow]:
    """List the clips of a prepared folder with their scores, captions and drops; a clip from two sources is one.

    Raises PrepareError for a folder without clips, if they are `required`.
    """
    if required and not Journal(folder, "clips").path.exists():
        raise PrepareError(f"a prepared folder has clips; {folder} has none, so begin with longtake prepare clips")
    # By source: a later failure does not undo an earlier cut.
    cut = {entry["key"]: entry for entry in Journal(folder, "clips").entries() if "rows" in entry}
    rows = {row["clip"]: row for entry in cut.values() for row in entry["rows"]}
    for entry in Journal(folder, "scores").entries():
        if entry["clip"] in rows and "error" not in entry:
            rows[entry["clip"]]["scores"] = rows[entry["clip"]].get("scores", {}) | entry["scores"]
    captions = _captions(folder, rows)
    for entry in Journal(folder, "matches").entries():
        row = rows.get(entry["clip"])
        if row and "error" not in entry and entry["texts"] == captions_digest(captions[entry["clip"]]):
            row["scores"] = row.get("scores", {}) | entry["scores"]
    dropped: dict[str, list[str]] = {}
    for entry in Journal(folder, "dropped").entries():
        dropped = entry["dropped"]  # the last entry counts
    return [
        ClipRow(**row | {"captions": captions[clip], "dropped": dropped.get(clip, [])})
        for clip, row in sorted(rows.items())
    ]


def _captions(folder: Path, rows: dict[str, dict[str, Any]]) -> dict[str, list[CaptionEntry]]:
    """Return the captions of every clip: that of its sidecar file, then the latest of every captioner."""
    by_source = {clip: {SIDECAR: row["captions"]} for clip, row in rows.items()}
    for entry in Journal(folder, "captions").entries():
        if entry["clip"] in rows and "error" not in entry:
            caption = {name: entry[name] for name in ("text", "source", "version", "parts")}
            by_source[entry["clip"]][entry["source"]] = [caption]
    return {
        clip: [CaptionEntry(**caption) for captions in sources.values() for caption in captions]
        for clip, sources in by_source.items()
    }


def rebuild_manifest(folder: Path) -> list[ClipRow]:
    """Rebuild the manifest from the journals; return its rows."""
    rows = clip_rows(folder)
    update_manifest(folder, rows)
    return rows
