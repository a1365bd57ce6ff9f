"""What one client may ask of a server, and how much of its threads it may hold at a time.

Cheap checks come first: what a request's fields alone forbid is refused before a file is stored, a prompt is matched
or a clip is estimated. What takes time runs in a few threads, of which each client has fewer still; the rest waits
without a thread, so that the answers to others never do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from anyio import CapacityLimiter, to_thread

from app.queue.jobs import QueueFull
from dit.modes import MODES
from dit.request import Request, RequestError

GIGABYTE = 10**9


@dataclass(frozen=True)
class RequestLimits:
    """The most that one request may ask: seconds of its clip, moments, and input files.

    `owner_bytes` is what the finished videos and the uploads of one client may take on the disk.
    """

    seconds: float = 600.0
    moments: int = 240
    files: int = 24
    owner_bytes: float = 100 * GIGABYTE


def check_limits(request: Request, limits: RequestLimits) -> None:
    """Raise RequestError where a request's fields alone show that it asks for too much."""
    moments, keyframes = request.moments or (), request.keyframes or ()
    for name, value, most in (
        ("moments", len(moments), limits.moments),
        ("input files", len(input_paths(request)), limits.files),
    ):
        if value > most:
            raise RequestError(f"a request must have at most {most} {name} here; got {value}, so make several clips")
    times = [request.seconds or 0.0, *(moment.at for moment in moments), *(at for at, _ in keyframes)]
    if max(times) > limits.seconds and request.mode in MODES and not MODES[request.mode].still:
        raise too_long(max(times), limits)


def input_paths(request: Request) -> list[str]:
    """Return the files that a request names."""
    named = [request.image, request.clip, request.other, request.mask, *(path for _, path in request.keyframes or ())]
    named += [path for moment in request.moments or () for path in (moment.image, moment.clip)]
    return [path for path in named if path]


def too_long(seconds: float, limits: RequestLimits) -> RequestError:
    """Return the error for a clip that would last too long."""
    return RequestError(f"a clip must last at most {limits.seconds:g} s here; got {seconds:g}, so ask for less")


class TooBusy(QueueFull):
    """A client that waits for the results of too many calls."""


class ClientGate:
    """Runs work of clients in threads: `total` at a time, `per_client` of each client; the rest waits in line.

    A client may have `waiting` calls in line.
    """

    def __init__(self, per_client: int = 2, total: int = 4, waiting: int = 100):
        self.per_client, self.waiting = per_client, waiting
        self.threads = CapacityLimiter(total)
        self.lines: dict[str, tuple[CapacityLimiter, list[object]]] = {}

    async def run(self, owner: str, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function in a thread once it is the client's turn; raises TooBusy where its line is full."""
        limiter, line = self.lines.setdefault(owner, (CapacityLimiter(self.per_client), []))
        if len(line) >= self.waiting + self.per_client:
            raise TooBusy(f"at most {self.waiting} calls of yours may wait here at a time; ask again later")
        entry = object()
        line.append(entry)
        try:
            async with limiter:
                return await to_thread.run_sync(function, *args, limiter=self.threads)
        finally:
            line.remove(entry)
            if not line:
                del self.lines[owner]
