"""Which samples of a step each process takes, and in which micro-batches.

A step is a number of global samples of each format. They are dealt to the processes by their FLOPs, so any number of
processes computes the same sum, and none needs a clip of every format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class StepSample(NamedTuple):
    """One sample of a step: the number of its format, and its global index within that format."""

    format: int
    index: int


@dataclass(frozen=True)
class StepPlan:
    """How the samples of every step are dealt.

    Of each format, a step takes `batch_sizes` samples of `tokens` tokens and `flops` FLOPs each. A micro-batch of a
    process has at most `max_tokens` tokens; 0 is for no limit. Raises ValueError where a process would get nothing, or
    a sample is larger than a micro-batch.
    """

    batch_sizes: tuple[int, ...]
    tokens: tuple[int, ...]
    flops: tuple[int, ...]
    processes: int = 1
    max_tokens: int = 0

    def __post_init__(self) -> None:
        if sum(self.batch_sizes) < self.processes:
            raise ValueError(
                f"each process must get a clip of a step; got {self.processes} processes for {sum(self.batch_sizes)} "
                "clips, so start fewer, or raise --batch-sizes"
            )
        largest = max(count for count, size in zip(self.tokens, self.batch_sizes, strict=True) if size)
        if self.max_tokens and largest > self.max_tokens:
            raise ValueError(
                f"max_tokens must hold the largest clip, of {largest} tokens; got {self.max_tokens}; raise it, or "
                "give smaller --formats"
            )
        if self.max_tokens < 0:
            raise ValueError(f"max_tokens must be 0, for no limit, or more; got {self.max_tokens}")

    def samples(self, step: int, process: int) -> list[StepSample]:
        """List the samples of one process at a step, in the order of formats and indices."""
        slots = [(number, offset) for number, count in enumerate(self.batch_sizes) for offset in range(count)]
        own = deal([self.flops[number] for number, _ in slots], self.processes)[process]
        return [
            StepSample(number, step * self.batch_sizes[number] + offset)
            for number, offset in map(slots.__getitem__, own)
        ]

    def micro_batches(self, step: int, process: int) -> list[list[StepSample]]:
        """Divide the samples of one process at a step into micro-batches, in order."""
        batches: list[list[StepSample]] = []
        room = 0
        for sample in self.samples(step, process):
            if not batches or (self.max_tokens and self.tokens[sample.format] > room):
                batches.append([])
                room = self.max_tokens
            batches[-1].append(sample)
            room -= self.tokens[sample.format]
        return batches


def batch_sizes_for(tokens_per_step: int, clips: Sequence[int], tokens: Sequence[int]) -> tuple[int, ...]:
    """Return how many samples of each format a step takes, for about so many tokens in all.

    In proportion to the clips of each format, so that all clips are seen about equally often; at least one, so that
    none is left out. `tokens` are those of one sample of each format.
    """
    per_clip = tokens_per_step / sum(count * each for count, each in zip(clips, tokens, strict=True))
    return tuple(max(1, round(per_clip * count)) for count in clips)


def deal(costs: Sequence[float], processes: int) -> list[list[int]]:
    """Deal items to processes so that the largest sum of costs is small: each, the dearest first, to the least loaded.

    This greedy rule is at most 4/3 off the best (Graham 1969). Returns ascending indices for each process; of at least
    as many items as processes, each process gets one.
    """
    dealt: list[list[int]] = [[] for _ in range(processes)]
    loads = [0.0] * processes
    for item in sorted(range(len(costs)), key=lambda item: -costs[item]):
        process = min(range(processes), key=lambda number: (loads[number], len(dealt[number])))
        dealt[process].append(item)
        loads[process] += costs[item]
    return [sorted(own) for own in dealt]
