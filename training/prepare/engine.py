"""Do the same work on many items: here, in a pool of processes, or on a Ray cluster. What happens to an item is told.

Work is a function of one item, importable by name. An item that raises, takes too long, or kills its worker TRIES times
over becomes an Outcome with an error; no other item is lost or done twice for it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_all_start_methods, get_context
from queue import Empty, SimpleQueue
from typing import Any

from tqdm import tqdm

from vae.guard import MEMORY, limit_memory, without_main

ENGINES = ("here", "pool", "ray")
TRIES = 3  # of an item whose worker died, which may not have been its fault
SECONDS = 3600.0  # for one item

Work = Callable[[Any], Any]


@dataclass(frozen=True)
class Outcome:
    """What became of item `number`: a value, or the reason why there is none."""

    number: int
    value: Any = None
    error: str | None = None

    def told(self) -> dict[str, Any]:
        """Return what a journal notes of it: the value, itself a dict, or the error."""
        return self.value if self.error is None else {"error": self.error}


@dataclass(frozen=True, kw_only=True)
class Where:
    """Where the work of a run is done: by which `engine`, how many `workers`, and within how many seconds an item."""

    engine: str = "pool"
    workers: int = 2
    limit: float = SECONDS

    @property
    def memory(self) -> int | None:
        """Bytes that a worker may take; None for as many as there are."""
        return MEMORY

    @property
    def step(self) -> str:
        """The name of the step that a kind of run is for: of ClipsRun, clips."""
        return type(self).__name__.removesuffix("Run").lower()

    def each(self, work: Work, items: Sequence[Any]) -> Iterator[Outcome]:
        """Do work on all items there, and show on stderr how many are done and how many failed."""
        return shown(each(work, items, self.engine, self.workers, self.limit, self.memory), self.step, len(items))


def shown(outcomes: Iterator[Outcome], step: str, total: int) -> Iterator[Outcome]:
    """Pass outcomes on, and show on stderr how many of `total` are done and how many failed; nothing where none are."""
    failed = 0
    with tqdm(desc=step, total=total, unit="item", file=sys.stderr, disable=not total) as bar:
        for outcome in outcomes:
            failed += outcome.error is not None
            bar.set_postfix(failed=failed, refresh=False)
            bar.update()
            yield outcome


def each(
    work: Work,
    items: Sequence[Any],
    engine: str = "pool",
    workers: int = 2,
    seconds: float = SECONDS,
    memory: int | None = MEMORY,
) -> Iterator[Outcome]:
    """Do work on all items; yields an Outcome for each as it is done, in any order.

    "here" is this process, without limits of time and memory; `memory` is a limit of the pool alone. Raises ValueError
    for an unknown engine or no workers.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}; got {engine!r}")
    if workers < 1:
        raise ValueError(f"workers must be at least 1; got {workers}")
    if engine == "here":
        return (_outcome(work, number, item) for number, item in enumerate(items))
    return _pool(work, items, workers, seconds, memory) if engine == "pool" else _ray(work, items, workers, seconds)


def _outcome(work: Work, number: int, item: Any) -> Outcome:
    try:
        return Outcome(number, work(item))
    except (ValueError, OSError) as error:  # which say what is the matter with an item
        return Outcome(number, error=str(error))
    except Exception as error:
        return Outcome(number, error=f"{type(error).__name__}: {error} (unexpected)")


def _killed(times: int) -> str:
    return f"its worker was killed {times} times while at it; look whether the file is sound, or give more memory"


def _late(seconds: float) -> str:
    return f"it must be done within {seconds:g} seconds; it was not; give a larger limit, or leave the file out"


def _pool(work: Work, items: Sequence[Any], workers: int, seconds: float, memory: int | None) -> Iterator[Outcome]:
    """One thread a worker hands it items and starts it anew when it dies."""
    tasks: SimpleQueue[tuple[int, Any]] = SimpleQueue()
    found: SimpleQueue[Outcome | BaseException] = SimpleQueue()
    for task in enumerate(items):
        tasks.put(task)
    closing, alive = threading.Event(), [Worker(work, memory) for _ in range(min(workers, len(items)))]

    def tend(worker: Worker) -> None:
        try:
            while not closing.is_set():
                found.put(worker.do(*tasks.get_nowait(), seconds))
        except Empty:
            pass
        except BaseException as error:  # ours, not the item's: the one who waits shall know
            found.put(error)

    threads = [threading.Thread(target=tend, args=(worker,), daemon=True) for worker in alive]
    for thread in threads:
        thread.start()
    try:
        for _ in items:
            outcome = found.get()
            if isinstance(outcome, BaseException):
                raise outcome
            yield outcome
    finally:
        closing.set()
        for worker in alive:
            worker.stop()


class Worker:
    """A process that does work on one item after the other, started when needed."""

    def __init__(self, work: Work, memory: int | None = MEMORY):
        self.work, self.memory = work, memory
        self.process, self.connection, self.stopped = None, None, False

    def do(self, number: int, item: Any, seconds: float) -> Outcome:
        """Have an item done, in a fresh process each time the last one died; never raises for what the item does."""
        for _ in range(TRIES):
            if self.stopped:
                return Outcome(number, error="stopped")
            try:
                self.start()
                self.connection.send((number, item))
                if not self.connection.poll(seconds):
                    self.end()
                    return Outcome(number, error=_late(seconds))
                return self.connection.recv()
            except (EOFError, OSError):
                self.end()
        return Outcome(number, error=_killed(TRIES))

    def start(self) -> None:
        """Start the process, unless it runs, and wait until it can work; raises EOFError where it dies before."""
        if self.process is not None and self.process.is_alive():
            return
        context: Any = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
        context.set_forkserver_preload([__name__, self.work.__module__])
        self.connection, there = context.Pipe()
        process = context.Process(target=_serve, args=(there, self.work, self.memory), daemon=True)
        with without_main():
            process.start()
        there.close()
        self.process = process
        if self.stopped:  # meanwhile
            raise EOFError
        self.connection.recv()

    def end(self) -> None:
        """End the process, if there is one."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.connection.close()
            self.process = None

    def stop(self) -> None:
        """End the process and start no other."""
        self.stopped = True
        if (process := self.process) is not None:
            process.kill()


def _serve(connection, work: Work, memory: int | None) -> None:
    """Do what is asked until nobody asks any more."""
    import torch

    torch.set_num_threads(1)
    if memory is not None:
        limit_memory(memory)
    try:
        connection.send("ready")
        while True:
            connection.send(_outcome(work, *connection.recv()))
    except (EOFError, OSError):
        return


def _ray(work: Work, items: Sequence[Any], workers: int, seconds: float) -> Iterator[Outcome]:
    """One task an item, on the cluster of RAY_ADDRESS or on this machine; Ray repeats those whose worker dies.

    Tasks rather than Ray Data, which gives up on all items when one has killed its worker too often.
    """
    try:
        import ray
    except ImportError:
        raise ValueError("engine ray needs the extra cluster: pip install .[cluster]") from None
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
    task = ray.remote(num_cpus=1, max_retries=TRIES - 1)(_outcome)
    numbers, workers = iter(range(len(items))), min(workers, int(ray.cluster_resources().get("CPU", 1)))
    running: dict[Any, tuple[int, float]] = {}  # the item's number, and until when it may take
    try:
        while True:
            while len(running) < workers and (number := next(numbers, None)) is not None:
                running[task.remote(work, number, items[number])] = number, time.monotonic() + seconds
            if not running:
                return
            first = min(until for _, until in running.values())
            done, _ = ray.wait(list(running), num_returns=1, timeout=max(0.0, first - time.monotonic()))
            for reference in done:
                number, _ = running.pop(reference)
                try:
                    yield ray.get(reference)
                except ray.exceptions.WorkerCrashedError:
                    yield Outcome(number, error=_killed(TRIES))
                except ray.exceptions.RayError as error:
                    yield Outcome(number, error=f"Ray cannot do it: {error}")
            for reference in [one for one, (_, until) in running.items() if until <= time.monotonic()]:
                number, _ = running.pop(reference)
                ray.cancel(reference, force=True)
                yield Outcome(number, error=_late(seconds))
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
