"""Do the same work on many items: here, in a pool of processes, or on a Ray cluster. What happens to an item is told.

Work is a function of one item, importable by name. An item that raises, takes too long, or kills its worker TRIES times
over becomes an Outcome with an error; no other item is lost or done twice for it.
"""

from __future__ import annotations

import logging
import os
import pickle
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_all_start_methods, get_context, parent_process
from queue import Empty, SimpleQueue
from typing import Any

from tqdm import tqdm

from vae.video.sandbox import MAX_MEMORY_BYTES, hide_main_module, limit_memory

ENGINES = ("here", "pool", "ray")
TRIES = 3  # of an item whose worker died, which may not have been its fault
SECONDS = 3600.0  # for one item
LOST = f"Ray gave it up after {TRIES} workers that were killed, or could not begin it; Ray's own ray-data.log says why"

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
        return MAX_MEMORY_BYTES

    @property
    def gpu(self) -> bool:
        """Whether a worker on a Ray cluster gets a GPU where there are any: a model's, whose memory has no limit."""
        return self.memory is None

    @property
    def step(self) -> str:
        """The name of the step that a kind of run is for: of ClipsRun, clips."""
        return type(self).__name__.removesuffix("Run").lower()

    def each(self, work: Work, items: Sequence[Any]) -> Iterator[Outcome]:
        """Do work on all items there, and show on stderr how many are done and how many failed."""
        found = each(work, items, self.engine, self.workers, self.limit, self.memory, self.gpu)
        return shown(found, self.step, len(items))


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
    memory: int | None = MAX_MEMORY_BYTES,
    gpu: bool = False,
) -> Iterator[Outcome]:
    """Do work on all items; yields an Outcome for each as it is done, in any order.

    "here" is this process, without limits of time and memory; on a Ray cluster that has GPUs, each worker gets one if
    `gpu`. Raises ValueError for an unknown engine or no workers.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}; got {engine!r}")
    if workers < 1:
        raise ValueError(f"workers must be at least 1; got {workers}")
    if engine == "here":
        return (_outcome(work, number, item) for number, item in enumerate(items))
    if engine == "pool":
        return _pool(work, items, workers, seconds, memory)
    return _ray(work, items, workers, seconds, memory, gpu)


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

    def __init__(self, work: Work, memory: int | None = MAX_MEMORY_BYTES):
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
        with hide_main_module():
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

    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    if memory is not None:
        limit_memory(memory)
    try:
        connection.send("ready")
        while True:
            connection.send(_outcome(work, *connection.recv()))
    except (EOFError, OSError):
        return


def _end_with_parent() -> None:
    """End this process with the one that started it, whatever it is at."""
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)


def _ray(
    work: Work, items: Sequence[Any], workers: int, seconds: float, memory: int | None, gpu: bool
) -> Iterator[Outcome]:
    """Ray Data's map over the items, each a block of its own, on the cluster of RAY_ADDRESS or on this machine.

    What an item does to a process is left to a Worker beside Ray's: Ray Data knows no limit of time. It begins again
    what a process or a machine of its own was at, and drops what took TRIES of them along, which is missing in the end.
    """
    if not items:
        return
    ray = _connected()
    has = ray.cluster_resources()
    gpus = int(has.get("GPU", 0)) if gpu else 0
    rows = [{"number": number, "item": pickle.dumps(item)} for number, item in enumerate(items)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of max_retries, which has no other name yet
        mapped = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            _errand,
            fn_args=(work, seconds, memory, os.getcwd()),
            compute=ray.data.TaskPoolStrategy(size=min(workers, len(items), gpus or int(has.get("CPU", 1)))),
            num_cpus=1,
            num_gpus=int(gpus > 0),
            max_retries=TRIES - 1,
            max_calls=0,  # else Ray ends a process with a GPU after each item, and its warm model with it
        )
    missing = dict.fromkeys(range(len(items)))
    for block in mapped.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for found in block["outcome"].to_pylist():
            outcome = pickle.loads(found)
            del missing[outcome.number]
            yield outcome
    yield from (Outcome(number, error=LOST) for number in missing)


def _connected() -> Any:
    """Return Ray with its Ray Data, connected, where blocks that fail do not end a run."""
    try:
        import ray
        import ray.data
    except ImportError:
        raise ValueError("engine ray needs the extra cluster: pip install .[cluster]") from None
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars, context.max_errored_blocks = False, -1
    for handler in logging.getLogger("ray.data").handlers:
        if handler.name == "console":  # what it says stays in ray-data.log
            handler.setLevel(logging.CRITICAL)
    return ray


def _errand(row: dict[str, Any], work: Work, seconds: float, memory: int | None, place: str) -> dict[str, bytes]:
    """Have the Worker of this process of Ray's do one item, where the one who asks is, as paths may be relative."""
    os.chdir(place)
    return {"outcome": pickle.dumps(_hired(work, memory).do(row["number"], pickle.loads(row["item"]), seconds))}


@lru_cache(maxsize=1)
def _hired(work: Work, memory: int | None) -> Worker:
    """Return this process's Worker, warm from the last item; another kind of work ends it."""
    return Worker(work, memory)
