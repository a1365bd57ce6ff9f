"""How long a clip will take and how much memory, before it is made.

The cost of a request follows from its shapes (`dit/estimate.py`); the speed of this machine from the clips that it made
(`history.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.formats import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from app.queue.history import History, Speed
from dit.modes import MODES
from dit.request import Request, RequestError

if TYPE_CHECKING:
    from dit.estimate import Cost, CostModel

CGROUP = Path("/sys/fs/cgroup")  # where a container finds its memory limit
MAX_CACHED = 1000  # estimates
GFLOP = 1e9


@dataclass(frozen=True)
class Estimate:
    """What a request will take: its cost, the speed of this machine, and the memory that the device has for it."""

    cost: Cost
    speed: Speed
    available_bytes: int
    device: str

    @property
    def seconds(self) -> float:
        """The time with a model that is loaded already."""
        return self.cost.flops / self.speed.flops_per_second

    def peak_bytes(self, pack_size: int = 1) -> int:
        """Return the most bytes in use while `pack_size` such clips are made as one pack."""
        return self.speed.program_bytes + self.cost.working_bytes(pack_size)

    @property
    def fits(self) -> bool:
        """Whether the device has the memory for it."""
        return self.peak_bytes() <= self.available_bytes

    @property
    def file_bytes(self) -> int:
        """The size of the file."""
        return round(self.cost.pixels * self.speed.bytes_per_pixel)

    def as_dict(self) -> dict[str, Any]:
        """Return all parts as values that JSON can hold."""
        names = ("seconds", "file_bytes", "available_bytes", "device", "fits")
        cost = {name: value for name, value in asdict(self.cost).items() if name != "request"}
        cost |= {"flops": self.cost.flops, "working_bytes": self.cost.working_bytes()}
        found = {name: getattr(self, name) for name in names} | {"peak_bytes": self.peak_bytes()}
        request = json.loads(self.cost.request.to_json())
        return found | {"cost": cost, "speed": asdict(self.speed), "request": request}

    def explain(self) -> str:
        """Write out the arithmetic in two lines, time and memory, so that a person can check it."""
        cost, speed = self.cost, self.speed
        other = cost.text_flops + cost.input_flops + cost.anchor_flops
        work = (
            f"{cost.evaluations} model evaluations of {cost.tokens} tokens {_gflop(cost.denoise_flops)} + "
            f"{cost.frames} frames decoded {_gflop(cost.decode_flops)} + text and inputs encoded {_gflop(other)} "
            f"= {_gflop(cost.flops)} GFLOP"
        )
        spread = f"{_short(cost.flops / speed.fast)} to {_short(cost.flops / speed.slow)}"
        sampling, decoding = _mib(cost.forward_bytes), _mib(cost.decode_bytes)
        return (
            f"time: {work}, at {_gflop(speed.flops_per_second)} GFLOP/s ({source_of(speed)}) {_short(self.seconds)} s "
            f"({spread}), without loading the model\n"
            f"memory: weights {_mib(cost.weight_bytes)} + latents {_mib(cost.latent_bytes)} + the larger of sampling "
            f"{sampling} and decoding {decoding} + the program {_mib(speed.program_bytes)} = {_mib(self.peak_bytes())} "
            f"MiB of {_mib(self.available_bytes)} on {self.device}; file size about {self.file_bytes:,} bytes"
        )


def source_of(speed: Speed) -> str:
    """Say in words where a speed comes from."""
    return f"measured on {speed.clips} clips made here" if speed.clips else "a guess, since no clip was made here yet"


class Estimator:
    """Estimates requests on a device; the memory of the processes in `reusable` counts as available."""

    def __init__(
        self, device: str = "cpu", threads: int = 1, reusable: Iterable[int] = (), history: History | None = None
    ):
        self.device, self.threads, self.history = device, threads, history or History()
        self.available_bytes = available_memory(device, reusable)
        self.cache: dict[Request, Estimate] = {}

    def estimate(self, request: Request, suffix: str = VIDEO_SUFFIXES[0], exact: bool = False) -> Estimate:
        """Return what a request will take; unless `exact`, without regard to its prompt and seed, from a cache.

        Raises what `Pipeline.resolve` and the modes raise, and WeightsError for a folder that is no model.
        """
        key = request if exact else cost_key(request)
        if key not in self.cache:
            if len(self.cache) >= MAX_CACHED:
                self.cache.clear()
            cost = load_cost_model(request.model).cost(replace(request, upsample=None))
            suffix = IMAGE_SUFFIXES[0] if MODES[request.mode].still else suffix
            speed = self.history.speed(cost.request.model_hash, self.device, self.threads, suffix)
            self.cache[key] = Estimate(cost, speed, self.available_bytes, self.device)
        return self.cache[key]

    def check_fits(self, request: Request) -> Estimate:
        """Return what a request will take.

        Raises DoesNotFit, naming the nearest request that fits, where memory does not suffice, and what `estimate`
        raises.
        """
        found = self.estimate(request)
        if found.peak_bytes() <= self.available_bytes:
            return found
        rule = f"a request must fit in memory, {_mib(self.available_bytes)} MiB on {self.device}"
        got = f"it would take {_mib(found.peak_bytes())} MiB, {_mib(found.cost.weight_bytes)} of them weights"
        for other in load_cost_model(request.model).cheaper(found.cost.request):
            if self._fits(other):
                columns, rows = other.size or (0, 0)
                duration = f" --seconds {other.seconds:.6g}" if other.seconds else ""
                raise DoesNotFit(f"{rule}; {got}; the nearest that fits is --size {columns}x{rows}{duration}")
        raise DoesNotFit(f"{rule}; {got}; no clip of this model fits, so name a smaller --model or free memory")

    def _fits(self, request: Request) -> bool:
        try:
            return self.estimate(replace(request, hashes=None)).peak_bytes() <= self.available_bytes
        except RequestError:  # the mode may need more frames than the shorter request has
            return False


class DoesNotFit(RequestError):
    """A request that takes more memory than there is."""


@cache
def load_cost_model(model: str | None) -> CostModel:
    """Read of a model what its costs depend on, once."""
    from app.registry import model_folder
    from dit.adapters.estimate import read_cost_model

    return read_cost_model(model_folder(model))


def cost_key(request: Request) -> Request:
    """Return a request without the fields that hardly change its cost."""
    return replace(
        request,
        prompt="likeness" if request.prompt.strip() else "",
        upsampled_prompt=None,
        negative_prompt=None,
        upsample=None,
        seed=0,
        watermark=None,
        made_with=None,
    )


def available_memory(device: str, reusable: Iterable[int] = ()) -> int:
    """Return the bytes that a program can have on a device.

    For a GPU, all of its memory. For the CPU, the machine's free memory, at most what the container's limit leaves,
    plus the memory of the processes in `reusable`, which will release theirs.
    """
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_properties(device).total_memory
    import psutil

    free, released = psutil.virtual_memory().available, 0
    with suppress(OSError, ValueError):
        limit = int((CGROUP / "memory.max").read_text())
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        free = min(free, limit - int((CGROUP / "memory.current").read_text()) + int(stat["inactive_file"]))
    for pid in reusable:
        with suppress(psutil.Error):
            released += psutil.Process(pid).memory_info().rss
    return free + released


def _gflop(flops: float) -> str:
    return f"{flops / GFLOP:.3g}" if flops < 1e3 * GFLOP else f"{flops / GFLOP:,.0f}"


def _mib(count: float) -> str:
    return f"{count / 2**20:,.0f}"


def _short(seconds: float) -> str:
    return f"{seconds:.2g}" if seconds < 10 else f"{seconds:.0f}"
