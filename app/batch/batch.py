"""A batch of clips in one folder, made through a queue.

The folder holds the clips, the append-only `manifest.jsonl`, and the queue in `.queue`, one for each shard. File names
come from content, so a clip that exists is done: running a batch again makes the rest. Several batches may be made in
one folder at the same time.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.batch.existing import Examiner
from app.batch.manifest import MANIFEST as MANIFEST
from app.batch.sweeps import BatchItem
from app.queue.disk import when_there_is_room
from app.queue.processes import worker_processes
from app.queue.schema import BATCH_QUEUE

if TYPE_CHECKING:
    from app.queue.estimate import Estimate
    from app.queue.jobs import Job

POLL_SECONDS = 0.1  # between two polls of the queue
RECHECK_SECONDS = 10.0  # between two polls that do not rely on the clock
CLOCK_SECONDS = 60.0  # by which the clock may be set back between them
PACK_SIZE = 4  # clips of similar cost that are made as one pack
EXISTS = "exists"  # the state, in a report, of a clip that an earlier run made


@dataclass(frozen=True)
class Batch:
    """What is to be made where: the items of this shard, and which of how many shards it is.

    `there` has the row and part of each item whose clip exists.
    """

    folder: Path
    items: list[BatchItem]
    shard: tuple[int, int] = (1, 1)
    there: frozenset[tuple[int, int]] = frozenset()

    @cached_property
    def real_folder(self) -> Path:
        """The folder as an absolute path without links, the same under whatever name it was given."""
        return Path(os.path.realpath(self.folder))

    @property
    def queue_folder(self) -> Path:
        """The folder of this shard's queue."""
        index, total = self.shard
        return self.real_folder / (BATCH_QUEUE if total == 1 else f"{BATCH_QUEUE}-{index}-of-{total}")

    def path(self, item: BatchItem) -> Path:
        """Return the path of an item's clip, as it is printed."""
        return self.folder / item.name

    def real_path(self, item: BatchItem) -> Path:
        """Return the absolute path of an item's clip."""
        return self.real_folder / item.name

    @property
    def invalid(self) -> list[BatchItem]:
        """The items that cannot be made."""
        return [item for item in self.items if item.error]

    @cached_property
    def missing(self) -> list[BatchItem]:
        """The items that are still to be made, each file once."""
        return [item for item in self._valid if (item.row, item.part) not in self.there]

    @cached_property
    def existing(self) -> list[BatchItem]:
        """The items whose clips exist."""
        return [item for item in self._valid if (item.row, item.part) in self.there]

    @property
    def _valid(self) -> list[BatchItem]:
        return [item for item in self.items if not item.error and not item.duplicate_of]


def find_existing(batch: Batch, examiner: Examiner) -> Batch:
    """Return a batch that knows which of its clips exist; an item is invalid where no file can be at its path.

    Says on stderr which files will be replaced, and why.
    """
    valid = [item for item in batch.items if not item.error and not item.duplicate_of]
    findings = {(item.row, item.part): found for item, found in zip(valid, examiner.examine(valid), strict=True)}
    items, there = list[BatchItem](), set[tuple[int, int]]()
    for item in batch.items:
        finding = findings.get((item.row, item.part))
        if finding and finding.error:
            item = replace(item, error=finding.error)
        if finding and finding.there:
            there.add((item.row, item.part))
        if finding and finding.remark:
            print(f"longtake: {batch.path(item)} is made anew: {finding.remark}", file=sys.stderr)
        items.append(item)
    return replace(batch, items=items, there=frozenset(there))


def render_batch(
    batch: Batch,
    examiner: Examiner,
    workers: int = 1,
    keep_latents: bool = False,
    devices: tuple[str, ...] = ("cpu",),
    policy: argparse.Namespace | None = None,
    pack_size: int = PACK_SIZE,
) -> Iterator[tuple[BatchItem, Job]]:
    """Make the missing clips of a batch with worker processes; yield each item with its job once that is finished.

    Up to `pack_size` clips of similar cost are made as one pack. Killed at any moment and run again, it continues.
    Clips that another run is making are waited for, not made twice, and what another run wants is left alone. A clip
    that appears before it is queued has a job in state EXISTS. `policy` has the flags of a policy, for the workers.
    Raises OSError where all workers exit before the end.
    """
    from app.queue.jobs import FAILED, Job, Queue
    from app.queue.lease import recover
    from app.queue.runs import BatchRun

    items = batch.missing
    queue = when_there_is_room(lambda: Queue(batch.queue_folder), batch.real_folder)
    for folder in {batch.real_path(item).parent for item in items}:
        when_there_is_room(lambda folder=folder: folder.mkdir(parents=True, exist_ok=True), folder)
    wanted = [(item.request, batch.real_path(item)) for item in items if item.request]
    is_there = lambda number: examiner.is_there(items[number])
    with BatchRun(queue) as run:
        when_there_is_room(lambda: recover(queue), queue.folder)
        found = when_there_is_room(lambda: run.submit_missing(wanted, is_there, keep_latents), queue.folder)
        waiting = {job.id: item for item, job in zip(items, found, strict=True) if isinstance(job, Job)}
        for item, (request, output), job in zip(items, wanted, found, strict=True):
            if job is None:
                yield item, Job("", request, output, EXISTS)
            elif isinstance(job, str):
                yield item, Job("", request, output, FAILED, message=job)
        paused, since, checked = None, time.time() - CLOCK_SECONDS, time.monotonic()
        with worker_processes(queue.folder, min(workers, len(waiting)), devices, policy, pack_size) as any_alive:
            while waiting:
                alive, pause, now = any_alive(), queue.paused, time.time()
                if pause != paused and (paused := pause):
                    print(f"longtake: the queue is paused: {pause.reason}", file=sys.stderr)
                if all_of_them := not alive or time.monotonic() - checked > RECHECK_SECONDS:
                    checked = time.monotonic()
                for job in queue.finished(waiting, None if all_of_them else since):
                    yield waiting.pop(job.id), job
                since = now - CLOCK_SECONDS
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
