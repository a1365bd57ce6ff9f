"""Divide a batch among machines: which shard is this one's, and which clips are in it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from app.batch.names import DIGEST_DIGITS
from app.batch.sweeps import BatchItem
from dit.request import RequestError


def parse_shard(text: str, environ: Mapping[str, str]) -> tuple[int, int]:
    """Parse a shard and the number of shards: "2/8", or "slurm" for what Slurm's variables say.

    Shards count from 1. Slurm's are the tasks of its job array, or else its processes. Raises RequestError for anything
    else.
    """
    if text.strip().lower() == "slurm":
        return _slurm_shard(environ)
    found = re.fullmatch(r"\s*(\d{1,9})\s*/\s*(\d{1,9})\s*", text, re.ASCII)
    index, total = map(int, found.groups()) if found else (0, 0)
    if not 1 <= index <= total:
        raise RequestError(f"a shard must be one of some, such as 2/8, from 1/8 to 8/8, or slurm; got {text!r}")
    return index, total


def _slurm_shard(environ: Mapping[str, str]) -> tuple[int, int]:
    def number(name: str, default: str = "") -> int:
        value = environ.get(name, default)
        if not re.fullmatch(r"\d{1,9}", value, re.ASCII):
            raise RequestError(f"a shard of Slurm needs a number in {name}; got {value!r}, so write it as 2/8")
        return int(value)

    if "SLURM_ARRAY_TASK_ID" in environ:
        task, first, total = (number(f"SLURM_ARRAY_TASK_{name}") for name in ("ID", "MIN", "COUNT"))
        step = number("SLURM_ARRAY_TASK_STEP", "1")
        last = number("SLURM_ARRAY_TASK_MAX", str(first + step * (total - 1)))
        # A list such as 1,3,7 has no even step, and one of its tasks alone cannot tell which it is.
        if step < 1 or last != first + step * (total - 1) or (task - first) % step or not first <= task <= last:
            raise RequestError(
                f"an array of Slurm must be numbered evenly, such as 1-8; got task {task} of {total} from {first} to "
                f"{last}, so write the shard as 2/8"
            )
        return (task - first) // step + 1, total
    if "SLURM_PROCID" in environ:
        process, total = number("SLURM_PROCID"), number("SLURM_NTASKS")
        if process >= total:
            raise RequestError(f"a process of Slurm must be one of its tasks; got {process}, from 0, of {total}")
        return process + 1, total
    raise RequestError("a shard of Slurm needs SLURM_ARRAY_TASK_ID or SLURM_PROCID; got neither, so write it as 2/8")


def select_shard(items: list[BatchItem], index: int, total: int) -> list[BatchItem]:
    """Return the items of shard `index`, from 1, of `total`, in order.

    An item's digest decides its shard, so it keeps it when rows are added or removed, and items with the same content
    share one. Invalid items belong to the first shard, so that each is reported once. Raises RequestError for an index
    out of range.
    """
    if not 1 <= index <= total:
        raise RequestError(f"a shard must be one of some, from 1 on; got {index} of {total}")
    return [item for item in items if (int(item.digest[:DIGEST_DIGITS], 16) % total if item.digest else 0) == index - 1]
