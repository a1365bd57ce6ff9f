"""Worker processes at a queue: how many, on which devices, started, watched and stopped together."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from app.policy.policy import ContentPolicy, policy_arguments, policy_from_flags
from app.queue.hung import HungWorkers
from app.queue.jobs import Queue
from app.queue.lease import release
from dit.request import RequestError

LONGTAKE = (sys.executable, "-m", "app.cli")
STOP_SECONDS = 30.0  # that workers have for the present step when they are told to stop


def available_devices() -> tuple[str, ...]:
    """Return every GPU, or else the CPU."""
    import torch

    return tuple(f"cuda:{n}" for n in range(torch.cuda.device_count())) or ("cpu",)


def plan_workers(workers: int | None) -> tuple[int, tuple[str, ...]]:
    """Return the number of workers, by default one per GPU or one per CPU core, and their devices.

    Raises RequestError for a negative number.
    """
    if workers is not None and workers < 0:
        raise RequestError(f"workers must be a number from 0; got {workers}")
    devices = available_devices()
    default = len(devices) if devices != ("cpu",) else os.cpu_count() or 1
    return default if workers is None else workers, devices


@contextmanager
def worker_processes(
    queue: Path,
    workers: int,
    devices: tuple[str, ...],
    policy: argparse.Namespace | None = None,
    pack_size: int = 1,
    restart: bool = False,
) -> Iterator[Callable[[], bool]]:
    """Run worker processes at a queue, the devices taken in turn; with 0 workers, one thread of this process.

    Yields a function that says whether any worker is alive. The workers leave when no job waits; with `restart` they
    stay, and each call of that function replaces those that died. It also ends and replaces those that hang. On exit
    they are told to stop, and ended where they do not: unfinished jobs wait for the next run. `policy` has the flags of
    a policy.
    """
    if not workers:
        from app.queue.worker import run_worker

        stop = threading.Event()
        content_policy = policy_from_flags(policy) if policy else ContentPolicy()
        thread = threading.Thread(
            target=run_worker, args=(Queue(queue), devices[0], True, stop, content_policy, pack_size)
        )
        thread.start()
        try:
            yield thread.is_alive
        finally:
            stop.set()
            thread.join()
        return
    # One thread each, so that a clip is the same to the last bit whatever the number of workers.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

    def start(number: int) -> subprocess.Popen:
        command = [*LONGTAKE, "work", str(queue), "--device", devices[number % len(devices)], "--with-parent"]
        command += [str(os.getpid())]
        command += ["--pack-size", str(pack_size), *(policy_arguments(policy) if policy else ())]
        return subprocess.Popen(
            command if restart else [*command, "--until-empty"],
            env=environment,
            start_new_session=True,  # Ctrl+C is for this process, which stops them
        )

    hung_workers = HungWorkers(Queue(queue))

    def any_alive() -> bool:
        hung = hung_workers.release()
        for number, process in enumerate(processes):
            if process.pid in hung and process.poll() is None:
                print(f"longtake: worker {number} does not answer; another is started", file=sys.stderr)
                process.kill()
                process.wait()
                processes[number] = start(number)
        for number, process in enumerate(processes if restart else ()):
            if process.poll() is not None:
                print(
                    f"longtake: worker {number} exited with {process.returncode}; another is started", file=sys.stderr
                )
                processes[number] = start(number)
        return any(process.poll() is None for process in processes)

    processes = [start(number) for number in range(workers)]
    try:
        yield any_alive
    finally:
        stop_workers(Queue(queue), processes)


def stop_workers(queue: Queue, processes: Sequence[subprocess.Popen], seconds: float = STOP_SECONDS) -> None:
    """Tell worker processes to stop, also stopped ones, and end those that do not; their jobs wait as before."""
    for process in processes:
        for number in (signal.SIGTERM, signal.SIGCONT):
            with suppress(ProcessLookupError):
                process.send_signal(number)
    ended, deadline = set[int](), time.monotonic() + seconds
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            ended.add(process.pid)
    if ended:
        for row in queue.connection.execute("SELECT id, pid FROM workers").fetchall():
            if row["pid"] in ended:
                release(queue, row["id"], counted=False)
