"""The latents of a prepared folder, read by random access."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from training.config import Format
from training.dataset import DataError
from training.manifest import LatentEntry, LatentSpec, file_bytes, read_manifest


class LatentDataset:
    """All clips of one format in a prepared folder: `dataset[n]` are latents (C, T, H, W) in float16.

    `captions[n]` holds their captions under "moving", or under "still" for images. A clip that is longer than the
    format counts once per segment. Dropped clips are left out. Raises DataError where there are no clips.
    """

    def __init__(self, folder: Path, format: Format, encoder_hash: str, fps: float):
        self.folder = folder / "x".join(map(str, format))  # its name in the sample order of a run
        caption_key = "still" if format[2] == 1 else "moving"
        spec = LatentSpec(encoder_hash, fps, format)
        rows = [row for row in read_manifest(folder) if not row.dropped]
        wanted = [(row, entry) for row in rows for entry in row.latents if entry.spec == spec]
        sizes = {shard: file_bytes(folder / shard) for shard in {entry.shard for _, entry in wanted}}
        whole = [(row, entry) for row, entry in wanted if entry.offset + entry.bytes <= sizes[entry.shard]]
        self.shards = {shard: map_file(folder / shard) for shard in {entry.shard for _, entry in whole}}
        self.entries = [entry for _, entry in whole]
        self.captions = [{caption_key: [caption.text for caption in row.captions] or [""]} for row, _ in whole]
        if not self.entries:
            name = self.folder.name
            raise DataError(f"a data set must have clips of {name}; {folder} has none, so longtake prepare latents")

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, number: int) -> np.ndarray:
        entry = self.entries[number]
        return read_latents(self.shards[entry.shard], entry)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, T, H, W), N clips."""
        return len(self), *self.entries[0].shape


def clips_of_other_formats(folder: Path, encoder_hash: str, fps: float, formats: Iterable[Format]) -> dict[Format, int]:
    """Count the segments of clips in a prepared folder that are encoded, and whose format is none of these."""
    known = set(formats)
    entries = (entry for row in read_manifest(folder) if not row.dropped for entry in row.latents)
    own = (entry.format for entry in entries if (entry.encoder, entry.fps) == (encoder_hash, fps))
    return dict(Counter(format for format in own if format not in known))


def map_file(path: Path) -> np.ndarray:
    """Map a file into memory, read-only, as uint8.

    It stays readable after the file is removed, and holds no file descriptor.
    """
    found = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8).numpy()
    found.flags.writeable = False
    return found


def read_latents(shard: np.ndarray, entry: LatentEntry) -> np.ndarray:
    """Return the latents (C, T, H, W) of an entry from its mapped shard, without a copy."""
    return shard[entry.offset : entry.offset + entry.bytes].view(np.float16).reshape(entry.shape)
