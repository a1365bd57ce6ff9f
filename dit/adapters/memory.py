"""Where the parts of a model are while it works: which plan fits a device, and what it keeps there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

RESIDENT, BY_PART, BY_LAYER = "all on the device", "offloaded by part", "offloaded by layer"
LAYER_BYTES = 2**30  # at most on the device at a time, of a model that is offloaded by layer
WORKING_SHARE = 0.25  # of the device's memory, kept free for sampling and decoding when a model is loaded


@dataclass(frozen=True)
class MemoryPlan:
    """A plan, in words, and the bytes of weights that are on the device at a time."""

    name: str
    weight_bytes: int


def plan_memory(sizes: Mapping[str, int], working_bytes: int, available_bytes: int) -> MemoryPlan:
    """Return the fastest plan that fits, for parts of these bytes; the most sparing one where none does.

    Offloading by part moves each network to the device when it is used, and costs seconds a clip; by layer, each of its
    layers at every evaluation, which is many times slower.
    """
    total, largest = sum(sizes.values()), max(sizes.values(), default=0)
    if total + working_bytes <= available_bytes:
        return MemoryPlan(RESIDENT, total)
    if largest + working_bytes <= available_bytes:
        return MemoryPlan(BY_PART, largest)
    return MemoryPlan(BY_LAYER, min(largest, LAYER_BYTES))
