"""What a run costs on a cluster: GPU-hours, money, wall time and memory, from assumptions that are stated."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from dit.flops import count_parameters
from dit.model import DiTConfig

PETAFLOP_DAY = 1e15 * 86_400  # FLOPs


class Accelerator(NamedTuple):
    """Peak dense FLOP/s in bf16 (fp16 before the A100; fp32 of a CPU), bytes of memory, dollars an hour."""

    flops: float
    bytes: float
    dollars: float


# Peaks are those of the makers' data sheets, without sparsity. 2 dollars an hour of an H100 or H200 is what Open-Sora
# 2.0 paid (arXiv 2503.09642) and what DeepSeek-V3 reckons with for an H800 (arXiv 2412.19437); the other prices are
# assumptions. A CPU is one core of about 50 GFLOP/s, which all runs of the README were made on.
ACCELERATORS = {
    "V100": Accelerator(125e12, 32e9, 1.5),
    "A100": Accelerator(312e12, 80e9, 1.5),
    "H100": Accelerator(989e12, 80e9, 2.0),
    "H800": Accelerator(989e12, 80e9, 2.0),
    "H200": Accelerator(989e12, 141e9, 2.0),
    "B200": Accelerator(2250e12, 192e9, 4.0),
    "TPUv4": Accelerator(275e12, 32e9, 2.0),
    "CPU": Accelerator(50e9, 4e9, 0.03),
}
MFU = 0.33  # model FLOPs utilisation of training: Wan-14B on H100
STATE_BYTES = 20  # per parameter, sharded: weight, gradient, two moments and EMA in fp32
SAVED_BYTES = 12.6  # per token, block and width, with activation checkpointing (measured)
BLOCK_BYTES = 146  # per token and width, of the one block that is recomputed (measured)


@dataclass(frozen=True)
class Cluster:
    """A number of equal accelerators, what share of their peak training uses, and their price."""

    count: int
    kind: str
    mfu: float = MFU
    dollars_per_hour: float = 0.0

    @classmethod
    def parse(cls, text: str, mfu: float = MFU, dollars_per_hour: float = 0.0) -> Cluster:
        """Read "64xH100". Raises ValueError for another form, an unknown accelerator, or shares that cannot be."""
        found = re.fullmatch(r"(\d+)x(\w+)", text)
        kinds = {name.lower(): name for name in ACCELERATORS}
        if not found or int(found[1]) < 1 or found[2].lower() not in kinds:
            raise ValueError(f"gpus must be a number, x, and one of {', '.join(ACCELERATORS)}; got {text}")
        if not 0 < mfu <= 1:
            raise ValueError(f"mfu must be above 0 and at most 1; got {mfu:g}")
        kind = kinds[found[2].lower()]
        return cls(int(found[1]), kind, mfu, dollars_per_hour or ACCELERATORS[kind].dollars)

    @property
    def accelerator(self) -> Accelerator:
        return ACCELERATORS[self.kind]

    def assumptions(self) -> str:
        """Say what an estimate assumes, in one line."""
        return (
            f"{self.count} {self.kind} of {self.accelerator.flops:.3g} FLOP/s at {self.mfu:.0%} MFU, "
            f"{self.dollars_per_hour:.2f} dollars an hour each, {STATE_BYTES} bytes a parameter sharded over all, "
            "activation checkpointing"
        )


class RunCost(NamedTuple):
    """The cost of a run on a cluster; `bytes` is the memory of each accelerator, `used` how many of them work."""

    petaflop_days: float
    gpu_hours: float
    wall_hours: float
    dollars: float
    bytes: float
    used: int
    fits: bool


def run_cost(flops: float, cluster: Cluster, clips_per_step: int = 0) -> RunCost:
    """Return the cost of `flops`. A clip is not divided, so no more accelerators work than a step has clips."""
    used = min(cluster.count, clips_per_step or cluster.count)
    gpu_hours = flops / (cluster.accelerator.flops * cluster.mfu) / 3600
    wall_hours = gpu_hours / used
    reserved = wall_hours * cluster.count
    return RunCost(
        flops / PETAFLOP_DAY, reserved, wall_hours, reserved * cluster.dollars_per_hour, 0.0, used, fits=True
    )


def training_memory(config: DiTConfig, cluster: Cluster, largest_clip: int) -> float:
    """Estimate the bytes of memory of each accelerator, with a micro-batch of one clip of `largest_clip` tokens.

    Weights are sharded over all; two blocks of them are gathered in bf16 at a time.
    """
    parameters = count_parameters(config)
    gathered = 2 * 2 * parameters / config.depth
    activations = largest_clip * config.width * (SAVED_BYTES * config.depth + BLOCK_BYTES)
    return STATE_BYTES * parameters / cluster.count + gathered + activations


def planned_cost(flops: float, config: DiTConfig, cluster: Cluster, clips_per_step: int, largest_clip: int) -> RunCost:
    """Return the cost of a run of a model, with the memory that each accelerator needs."""
    needed = training_memory(config, cluster, largest_clip)
    cost = run_cost(flops, cluster, clips_per_step)
    return cost._replace(bytes=needed, fits=needed < 0.9 * cluster.accelerator.bytes)
