"""`longtake estimate`: how long a clip will take and how much memory, before it is made, with the arithmetic.

What it costs follows from the request (`dit/estimate.py`), how fast this machine is from what it made (`history.py`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.formats import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from app.queue.history import History, Pace
from dit.modes import MODES
from dit.request import Request, RequestError

if TYPE_CHECKING:
    from dit.estimate import Cost, Outline

LIMIT = Path("/sys/fs/cgroup")  # where a container's limit of memory is
MOST_KNOWN = 1000  # kinds of requests of which an estimate is kept
GFLOP = 1e9


@dataclass(frozen=True)
class Estimate:
    """What a request will take: its cost, the pace of this machine, the bytes that the device has for it, and what the
    device is.
    """

    cost: Cost
    pace: Pace
    room: int
    device: str

    @property
    def seconds(self) -> float:
        """How long it takes with a warm model."""
        return self.cost.flops / self.pace.rate

    def peak(self, together: int = 1) -> int:
        """Return the most bytes in use, where so many clips like it are one pack."""
        return self.pace.program + self.cost.working(together)

    @property
    def file_bytes(self) -> int:
        """How large its file will be."""
        return round(self.cost.pixels * self.pace.file_bytes)

    def data(self) -> dict[str, Any]:
        """Return all parts, as JSON can hold them."""
        names = ("seconds", "file_bytes", "room", "device")
        cost = {name: value for name, value in asdict(self.cost).items() if name != "request"}
        cost |= {"flops": self.cost.flops, "working": self.cost.working()}
        request = {"request": json.loads(self.cost.request.to_json())}
        found = {name: getattr(self, name) for name in names} | {"peak": self.peak(), "fits": self.peak() <= self.room}
        return found | {"cost": cost, "pace": asdict(self.pace)} | request

    def words(self) -> str:
        """Say all of it in two lines that a person can check."""
        cost, pace = self.cost, self.pace
        other = cost.text + cost.given + cost.joins
        work = (
            f"{cost.looks} looks at {cost.tokens} tokens {_gflop(cost.dream)} + {cost.frames} frames shown "
            f"{_gflop(cost.show)} + words and files {_gflop(other)} = {_gflop(cost.flops)} GFLOP"
        )
        since = f"the pace of {pace.clips} clips made here" if pace.clips else "a guess, since none was made here yet"
        spread = f"{_short(cost.flops / pace.fast)} to {_short(cost.flops / pace.slow)}"
        dream, show = _mib(cost.dreaming), _mib(cost.showing)
        return (
            f"time: {work}, at {_gflop(pace.rate)} GFLOP/s ({since}) {_short(self.seconds)} s ({spread}), and loading\n"
            f"memory: weights {_mib(cost.weights)} + latents {_mib(cost.latents)} + the larger of dreaming {dream} and "
            f"showing {show} + the program {_mib(pace.program)} = {_mib(self.peak())} MiB of {_mib(self.room)} on "
            f"{self.device}; the file about {self.file_bytes:,} bytes"
        )


class Estimator:
    """Says what requests will take on a device; `holders` are the processes whose memory they will have."""

    def __init__(
        self, device: str = "cpu", threads: int = 1, holders: Iterable[int] = (), history: History | None = None
    ):
        self.device, self.threads, self.history = device, threads, history or History()
        self.room = room_on(device, holders)
        self.known: dict[Request, Estimate] = {}

    def estimate(self, request: Request, suffix: str = VIDEO_SUFFIXES[0], exact: bool = False) -> Estimate:
        """Return what a request will take, or, unless `exact`, what one like it in all but words and seed does.

        Raises what `Pipeline.resolve` and the modes raise, and WeightsError for what is no model.
        """
        like = request if exact else likeness(request)
        if like not in self.known:
            if len(self.known) >= MOST_KNOWN:
                self.known.clear()
            cost = outline_of(request.model).cost(replace(request, upsample=None))
            suffix = IMAGE_SUFFIXES[0] if MODES[request.mode].still else suffix
            pace = self.history.pace(cost.request.model_hash, self.device, self.threads, suffix)
            self.known[like] = Estimate(cost, pace, self.room, self.device)
        return self.known[like]

    def check_fits(self, request: Request) -> Estimate:
        """Return what a request will take; raises RequestError where it takes more memory than there is, naming the
        nearest that fits, and what `estimate` raises.
        """
        from dit.estimate import shorter

        found = self.estimate(request)
        if found.peak() <= self.room:
            return found
        rule = f"a request must fit in memory, {_mib(self.room)} MiB on {self.device}"
        got = f"it would take {_mib(found.peak())} MiB, {_mib(found.cost.weights)} of them weights"
        for other in shorter(outline_of(request.model).pipeline, found.cost.request):
            if self._fits(other):
                columns, rows = other.size or (0, 0)
                duration = f" --seconds {other.seconds:.6g}" if other.seconds else ""
                raise Unfit(f"{rule}; {got}; the nearest that fits is --size {columns}x{rows}{duration}")
        raise Unfit(f"{rule}; {got}; no clip of this model fits, so name a smaller --model or free memory")

    def _fits(self, request: Request) -> bool:
        try:
            return self.estimate(replace(request, hashes=None)).peak() <= self.room
        except RequestError:  # a mode may need more than what is left
            return False


class Unfit(RequestError):
    """A request that takes more memory than there is."""


@cache
def outline_of(model: str | None) -> Outline:
    """Read a model as far as costs go, once."""
    from app.registry import model_folder
    from dit.estimate import Outline

    return Outline.read(model_folder(model))


def likeness(request: Request) -> Request:
    """Return a request without what hardly changes its cost."""
    prompt = "likeness" if request.prompt.strip() else ""
    return replace(
        request, prompt=prompt, written=None, negative=None, upsample=None, seed=0, mark=None, made_with=None
    )


def room_on(device: str, holders: Iterable[int] = ()) -> int:
    """Return how many bytes a program can have on a device: all of a GPU's; of the machine's, those that are free, also
    by a container's limit, and those of processes that will give theirs.
    """
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_properties(device).total_memory
    import psutil

    free, held = psutil.virtual_memory().available, 0
    with suppress(OSError, ValueError):
        most = int((LIMIT / "memory.max").read_text())
        stat = dict(line.split() for line in (LIMIT / "memory.stat").read_text().splitlines())
        free = min(free, most - int((LIMIT / "memory.current").read_text()) + int(stat["inactive_file"]))
    for pid in holders:
        with suppress(psutil.Error):
            held += psutil.Process(pid).memory_info().rss
    return free + held


def _gflop(flops: float) -> str:
    return f"{flops / GFLOP:.3g}" if flops < 1e3 * GFLOP else f"{flops / GFLOP:,.0f}"


def _mib(count: float) -> str:
    return f"{count / 2**20:,.0f}"


def _short(seconds: float) -> str:
    return f"{seconds:.2g}" if seconds < 10 else f"{seconds:.0f}"


def add_estimate(commands, asked: Callable[[argparse.Namespace], list[Request]], *add_flags: Callable) -> None:
    """Add the command that says what `generate` would take, with its flags."""
    estimate = commands.add_parser(
        "estimate",
        help="say how long clips take and how much memory, before they are made",
        description="Say how long clips would take and how much memory, by which arithmetic. Takes every flag of "
        "generate; exit code 2 where a clip does not fit.",
    )
    estimate.add_argument("prompt", nargs="*", help="what to show")
    for add in add_flags:
        add(estimate)
    estimate.add_argument("--json", action="store_true", help="print a JSON object for each clip, with all parts")
    estimate.set_defaults(act=_estimate, asked=asked)


def _estimate(chosen: argparse.Namespace) -> None:
    import torch

    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    estimator = Estimator(device, torch.get_num_threads())
    suffix = chosen.output.suffix if chosen.output else VIDEO_SUFFIXES[0]
    requests = chosen.asked(chosen)
    for request in requests:
        found = estimator.estimate(request, suffix, exact=True)
        print(json.dumps(found.data(), ensure_ascii=False) if chosen.json else found.words())
    for request in requests:
        estimator.check_fits(request)
