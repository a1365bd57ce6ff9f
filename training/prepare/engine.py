"""Run one function over many items: in this process, in a pool of processes, or on a Ray cluster.

The function takes one item and must be importable by name. An item that raises, takes too long, or kills its worker
MAX_TRIES times becomes an Outcome with an error. No other item is lost or done twice because of it.
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

ENGINES = ("serial", "pool", "ray")
MAX_TRIES = 3  # per item whose worker died: the worker may have died for another reason
ITEM_SECONDS = 3600.0
RAY_GAVE_UP = (
    f"Ray gave it up after {MAX_TRIES} workers that were killed or could not start; see Ray's own ray-data.log"
)

Function = Callable[[Any], Any]


@dataclass(frozen=True)
class Outcome:
    """The result of item `number`: a value, or the error that left it without one."""

    number: int
    value: Any = None
    error: str | None = None

    def journal_entry(self) -> dict[str, Any]:
        """Return what a journal records: the value, which must be a dict, or the error."""
        return self.value if self.error is None else {"error": self.error}


@dataclass(frozen=True, kw_only=True)
class PrepareRun:
    """What all steps share: the `engine`, the number of `workers`, and the `timeout` of one item in seconds."""

    engine: str = "pool"
    workers: int = 2
    timeout: float = ITEM_SECONDS

    @property
    def memory_bytes(self) -> int | None:
        """The memory limit of a worker; None for no limit."""
        return MAX_MEMORY_BYTES

    @property
    def gpu(self) -> bool:
        """Whether a worker on a Ray cluster gets a GPU. A step that runs a model does, and has no memory limit."""
        return self.memory_bytes is None

    @property
    def step(self) -> str:
        """The name of the step: "clips" for ClipsRun."""
        return type(self).__name__.removesuffix("Run").lower()

    def map(self, function: Function, items: Sequence[Any]) -> Iterator[Outcome]:
        """Apply a function to all items with this run's engine, and show the progress on stderr."""
        outcomes = parallel_map(
            function, items, self.engine, self.workers, self.timeout, self.memory_bytes, gpu=self.gpu
        )
        return with_progress(outcomes, self.step, len(items))


def with_progress(outcomes: Iterator[Outcome], step: str, total: int) -> Iterator[Outcome]:
    """Pass outcomes on and show on stderr how many of `total` are done and how many failed; no bar for none."""
    failed = 0
    with tqdm(desc=step, total=total, unit="item", file=sys.stderr, disable=not total) as bar:
        for outcome in outcomes:
            failed += outcome.error is not None
            bar.set_postfix(failed=failed, refresh=False)
            bar.update()
            yield outcome


def parallel_map(
    function: Function,
    items: Sequence[Any],
    engine: str = "pool",
    workers: int = 2,
    timeout: float = ITEM_SECONDS,
    memory_bytes: int | None = MAX_MEMORY_BYTES,
    gpu: bool = False,
) -> Iterator[Outcome]:
    """Apply a function to all items; yield an Outcome for each as it is done, in any order.

    "serial" runs in this process, without limits of time and memory. With `gpu`, each worker gets one GPU on a Ray
    cluster that has GPUs. Raises ValueError for an unknown engine or fewer than one worker.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}; got {engine!r}")
    if workers < 1:
        raise ValueError(f"workers must be at least 1; got {workers}")
    if engine == "serial":
        return (_apply(function, number, item) for number, item in enumerate(items))
    if engine == "pool":
        return _pool(function, items, workers, timeout, memory_bytes)
    return _ray(function, items, workers, timeout, memory_bytes, gpu)


def _apply(function: Function, number: int, item: Any) -> Outcome:
    try:
        return Outcome(number, function(item))
    except (ValueError, OSError) as error:  # their messages explain what is wrong with the item
        return Outcome(number, error=str(error))
    except Exception as error:
        return Outcome(number, error=f"{type(error).__name__}: {error} (unexpected)")


def _killed_error(times: int) -> str:
    return f"its worker was killed {times} times; check that the file is intact, or give the worker more memory"


def _timeout_error(seconds: float) -> str:
    return f"it must be done within {seconds:g} seconds; it was not; give a larger timeout, or leave the file out"


def _pool(
    function: Function, items: Sequence[Any], workers: int, timeout: float, memory_bytes: int | None
) -> Iterator[Outcome]:
    """Run a pool: one thread per worker hands it items and restarts it when it dies."""
    tasks: SimpleQueue[tuple[int, Any]] = SimpleQueue()
    outcomes: SimpleQueue[Outcome | BaseException] = SimpleQueue()
    for task in enumerate(items):
        tasks.put(task)
    closing = threading.Event()
    pool = [Worker(function, memory_bytes) for _ in range(min(workers, len(items)))]

    def feed(worker: Worker) -> None:
        try:
            while not closing.is_set():
                outcomes.put(worker.run(*tasks.get_nowait(), timeout))
        except Empty:
            pass
        except BaseException as error:  # an error of the engine, not of the item: raise it in the caller
            outcomes.put(error)

    threads = [threading.Thread(target=feed, args=(worker,), daemon=True) for worker in pool]
    for thread in threads:
        thread.start()
    try:
        for _ in items:
            outcome = outcomes.get()
            if isinstance(outcome, BaseException):
                raise outcome
            yield outcome
    finally:
        closing.set()
        for worker in pool:
            worker.stop()


class Worker:
    """A process that applies a function to one item after another. It starts when it is needed."""

    def __init__(self, function: Function, memory_bytes: int | None = MAX_MEMORY_BYTES):
        self.function, self.memory_bytes = function, memory_bytes
        self.process: Any = None
        self.connection: Any = None
        self.stopped = False

    def run(self, number: int, item: Any, timeout: float) -> Outcome:
        """Run one item, in a fresh process after each death; never raises for what the item does."""
        for _ in range(MAX_TRIES):
            if self.stopped:
                return Outcome(number, error="stopped")
            try:
                self.start()
                self.connection.send((number, item))
                if not self.connection.poll(timeout):
                    self.kill()
                    return Outcome(number, error=_timeout_error(timeout))
                return self.connection.recv()
            except (EOFError, OSError):
                self.kill()
        return Outcome(number, error=_killed_error(MAX_TRIES))

    def start(self) -> None:
        """Start the process if it does not run, and wait until it is ready. Raises EOFError where it dies before."""
        if self.process is not None and self.process.is_alive():
            return
        context: Any = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
        context.set_forkserver_preload([__name__, self.function.__module__])
        self.connection, child = context.Pipe()
        process = context.Process(target=_serve, args=(child, self.function, self.memory_bytes), daemon=True)
        with hide_main_module():
            process.start()
        child.close()
        self.process = process
        if self.stopped:  # while it was starting
            raise EOFError
        self.connection.recv()

    def kill(self) -> None:
        """Kill the process, if it runs."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.connection.close()
            self.process = None

    def stop(self) -> None:
        """Kill the process for good: no other is started."""
        self.stopped = True
        if (process := self.process) is not None:
            process.kill()


def _serve(connection, function: Function, memory_bytes: int | None) -> None:
    """Answer requests until the connection closes."""
    import torch

    threading.Thread(target=_exit_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    if memory_bytes is not None:
        limit_memory(memory_bytes)
    try:
        connection.send("ready")
        while True:
            connection.send(_apply(function, *connection.recv()))
    except (EOFError, OSError):
        return


def _exit_with_parent() -> None:
    """Exit as soon as the parent process ends, in the middle of an item too."""
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)


def _ray(
    function: Function, items: Sequence[Any], workers: int, timeout: float, memory_bytes: int | None, gpu: bool
) -> Iterator[Outcome]:
    """Map over the items with Ray Data, one block per item, on the cluster of RAY_ADDRESS or on this machine.

    Each process of Ray runs its items in a Worker, a child process, because Ray Data has no timeout. Ray restarts what
    was running when its own process or machine died; it drops an item after MAX_TRIES such deaths, and a dropped item
    is missing from the result.
    """
    if not items:
        return
    ray = _connect_ray()
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0)) if gpu else 0
    rows = [{"number": number, "item": pickle.dumps(item)} for number, item in enumerate(items)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of max_retries, which has no other name yet
        mapped = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            _run_on_ray,
            fn_args=(function, timeout, memory_bytes, os.getcwd()),
            compute=ray.data.TaskPoolStrategy(size=min(workers, len(items), gpus or int(resources.get("CPU", 1)))),
            num_cpus=1,
            num_gpus=int(gpus > 0),
            max_retries=MAX_TRIES - 1,
            max_calls=0,  # otherwise Ray ends a GPU process after each item, and its loaded model with it
        )
    missing = dict.fromkeys(range(len(items)))
    for block in mapped.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for pickled in block["outcome"].to_pylist():
            outcome = pickle.loads(pickled)
            del missing[outcome.number]
            yield outcome
    yield from (Outcome(number, error=RAY_GAVE_UP) for number in missing)


def _connect_ray() -> Any:
    """Connect to Ray and return it, with Ray Data set so that failed blocks do not end a run."""
    try:
        import ray  # pyright: ignore[reportMissingImports]  # the extra `cluster`
        import ray.data  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError("engine ray needs the extra cluster: pip install .[cluster]") from None
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars, context.max_errored_blocks = False, -1
    for handler in logging.getLogger("ray.data").handlers:
        if handler.name == "console":  # its messages stay in ray-data.log
            handler.setLevel(logging.CRITICAL)
    return ray


def _run_on_ray(
    row: dict[str, Any], function: Function, timeout: float, memory_bytes: int | None, folder: str
) -> dict[str, bytes]:
    """Run one item in this Ray process's Worker, in the caller's working directory, as paths may be relative."""
    os.chdir(folder)
    outcome = _process_worker(function, memory_bytes).run(row["number"], pickle.loads(row["item"]), timeout)
    return {"outcome": pickle.dumps(outcome)}


@lru_cache(maxsize=1)
def _process_worker(function: Function, memory_bytes: int | None) -> Worker:
    """Return this process's Worker, kept between items; another function replaces it."""
    return Worker(function, memory_bytes)
