"""A batch of clips in one folder, made through a queue.

The folder holds the clips, the append-only `manifest.jsonl`, and the queue in `.queue`, one for each shard. File names
come from content, so a clip that exists is done: running a batch again makes the rest.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.batch.sweeps import BatchItem
from app.queue.processes import worker_processes

if TYPE_CHECKING:
    from app.queue.estimate import Estimate
    from app.queue.jobs import Job

MANIFEST = "manifest.jsonl"
POLL_SECONDS = 0.1  # between two polls of the queue
PACK_SIZE = 4  # clips of similar cost that are made as one pack


@dataclass(frozen=True)
class Batch:
    """What is to be made where: the items of this shard, and which of how many shards it is."""

    folder: Path
    items: list[BatchItem]
    shard: tuple[int, int] = (1, 1)

    @property
    def queue_folder(self) -> Path:
        """The folder of this shard's queue."""
        index, total = self.shard
        return self.folder / (".queue" if total == 1 else f".queue-{index}-of-{total}")

    def path(self, item: BatchItem) -> Path:
        """Return the path of an item's clip."""
        return self.folder / item.name

    @property
    def invalid(self) -> list[BatchItem]:
        """The items that cannot be made."""
        return [item for item in self.items if item.error]

    @cached_property
    def missing(self) -> list[BatchItem]:
        """The items that were still to be made when first asked, each file once."""
        return [item for item in self.items if not (item.error or item.duplicate_of or self.path(item).exists())]

    @property
    def existing(self) -> list[BatchItem]:
        """The items whose clips existed before."""
        missing = {(item.row, item.part) for item in self.missing}
        return [
            item
            for item in self.items
            if not item.error and not item.duplicate_of and (item.row, item.part) not in missing
        ]


def render_batch(
    batch: Batch,
    workers: int = 1,
    keep_latents: bool = False,
    devices: tuple[str, ...] = ("cpu",),
    policy: argparse.Namespace | None = None,
    pack_size: int = PACK_SIZE,
) -> Iterator[tuple[BatchItem, Job]]:
    """Make the missing clips of a batch with worker processes; yield each item with its job once that is finished.

    Up to `pack_size` clips of similar cost are made as one pack. Killed at any moment and run again, it continues.
    Clips that another run of the same batch is making are waited for, not made twice. `policy` has the flags of a
    policy, for the workers. Raises OSError where all workers exit before the end.
    """
    from app.queue.jobs import Queue
    from app.queue.lease import recover

    batch.folder.mkdir(parents=True, exist_ok=True)
    queue = Queue(batch.queue_folder)
    recover(queue)
    items = {str(batch.path(item)): item for item in batch.missing}
    for folder in {Path(path).parent for path in items}:
        folder.mkdir(parents=True, exist_ok=True)
    requests = [item.request for item in items.values() if item.request]
    jobs = queue.submit_missing(requests, [Path(path) for path in items], keep_latents=keep_latents)
    waiting = {job.id: items[str(job.output)] for job in jobs}
    paused = None
    with worker_processes(batch.queue_folder, min(workers, len(waiting)), devices, policy, pack_size) as any_alive:
        while waiting:
            alive, pause = any_alive(), queue.paused
            if pause != paused and (paused := pause):
                print(f"longtake: the queue is paused: {pause.reason}", file=sys.stderr)
            for job in queue.finished(list(waiting)):
                yield waiting.pop(job.id), job
            if waiting and not alive:
                raise OSError(
                    f"a batch needs workers; all have exited with {len(waiting)} clips to make, see their messages"
                )
            time.sleep(POLL_SECONDS)


def refuse_too_large(batch: Batch, device: str, workers: int) -> tuple[Batch, list[Estimate]]:
    """Mark the items that do not fit in memory as invalid; return the batch and the estimates of the missing items.

    Other errors of an item are left to its job.
    """
    import torch

    from app.queue.estimate import DoesNotFit, Estimator

    estimator, estimates, errors = Estimator(device, 1 if workers else torch.get_num_threads()), [], {}
    for item in batch.missing:
        assert item.request, "an item without an error has a request"
        try:
            estimates.append(estimator.check_fits(item.request))
        except DoesNotFit as error:
            errors[item.row, item.part] = str(error)
        except (ValueError, OSError):
            pass
    items = [replace(item, error=errors.get((item.row, item.part), item.error)) for item in batch.items]
    return replace(batch, items=items), estimates


def fit_workers(estimates: list[Estimate], workers: int, devices: int, pack_size: int) -> tuple[int, int]:
    """Reduce the pack size first, then the number of workers, until they fit in memory; return both."""
    available, kinds = estimates[0].available_bytes, set(estimates)

    def fits(workers: int, pack_size: int) -> bool:
        return -(-workers // devices) * max(estimate.peak_bytes(pack_size) for estimate in kinds) <= available

    while pack_size > 1 and not fits(max(1, workers), pack_size):
        pack_size //= 2
    while workers > 1 and not fits(workers, pack_size):
        workers -= 1
        print(f"longtake: {workers} workers are what fits in {available / 2**20:,.0f} MiB", file=sys.stderr)
    return workers, pack_size


def summarize(batch: Batch, estimates: list[Estimate], workers: int) -> tuple[dict[str, Any], str]:
    """Return what a batch would make and what that takes: as values, and as a sentence."""
    from app.queue.estimate import source_of

    duplicates = sum(item.duplicate_of is not None for item in batch.items)
    valid = sum(not item.error and not item.duplicate_of for item in batch.items)
    found: dict[str, Any] = {
        **{"clips": len(batch.missing), "existing": valid - len(batch.missing)},
        **{"duplicates": duplicates, "invalid": len(batch.invalid)},
    }
    counts = ", ".join(f"{count} {name}" for name, count in found.items())
    if not estimates:
        return found, f"{counts}; nothing to estimate"
    flops, seconds = (sum(values) for values in zip(*((e.cost.flops, e.seconds) for e in estimates), strict=True))
    peak, size = max(e.peak_bytes() for e in estimates), sum(e.file_bytes for e in estimates)
    speed, workers = estimates[0].speed, max(1, workers)
    found |= {"seconds": round(seconds / workers, 1), "bytes": size, "peak_bytes": peak, "flops": flops}
    return found, (
        f"{counts}; {flops / 1e9:,.0f} GFLOP at {speed.flops_per_second / 1e9:.3g} GFLOP/s ({source_of(speed)}) with "
        f"{workers} at once: about {found['seconds']} s, without loading the model; {peak / 2**20:,.0f} MiB of memory "
        f"each, {size:,} bytes on the disk"
    )
