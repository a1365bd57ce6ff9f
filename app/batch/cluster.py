"""`longtake render --engine ray`: the clips of a batch, made on a Ray cluster.

Each clip is one Ray task, for one CPU core, or one GPU where the cluster has any. A worker process keeps its model for
the next task. Where the process dies, Ray runs the task again elsewhere; its staging folder is removed. The folder of
the batch, the model and the input files must be on a disk that all machines share, under the same paths.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, redirect_stdout
from dataclasses import replace
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING

from app.batch.batch import Batch
from app.batch.sweeps import BatchItem
from app.home import HOME, home
from app.policy.policy import add_policy_flags, policy_arguments, policy_from_flags
from app.queue.jobs import DONE, FAILED, RUNNING, Job, new_ids
from app.queue.lease import MAX_ATTEMPTS, publish, staging_folder
from dit.request import RequestError

if TYPE_CHECKING:
    from app.queue.worker import WarmModel

CANCEL_SECONDS = 10.0  # how long cancelled tasks may take to end
ENVIRONMENT_PREFIX = "LONGTAKE_"  # of the variables that every machine gets


def render_on_cluster(
    batch: Batch, workers: int | None = None, keep_latents: bool = False, policy: argparse.Namespace | None = None
) -> Iterator[tuple[BatchItem, Job]]:
    """Make the missing clips of a batch on the cluster of RAY_ADDRESS, or on this machine without one.

    At most `workers` tasks run at a time, by default as many as the cluster has room for. Yields each item with its job
    once that is finished. `policy` has the flags of a policy, which holds in every process. Raises RequestError where
    Ray is not installed, or for fewer than one worker.
    """
    ray, items = _connect(workers), iter(batch.missing)
    gpus, cores = (int(ray.cluster_resources().get(kind, 0)) for kind in ("GPU", "CPU"))
    workers = min(workers or len(batch.missing), gpus or cores or 1)
    # Ray ends a process with a GPU after each task, and its warm model with it, unless max_calls is 0.
    options = {"num_cpus": 1, "num_gpus": int(gpus > 0), "max_retries": MAX_ATTEMPTS - 1, "max_calls": 0}
    task = ray.remote(**options)(run_task)
    environment = {name: value for name, value in os.environ.items() if name.startswith(ENVIRONMENT_PREFIX)}
    environment[HOME] = str(home())
    running, policy_flags = {}, tuple(policy_arguments(policy)) if policy else ()
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(_ThreadStdout(sys.stdout)))
        stack.callback(_cancel, ray, running)
        while True:
            for item in islice(items, workers - len(running)):
                assert item.request, "an item without an error has a request"
                output = batch.real_path(item)
                (id,) = new_ids(1)
                job = Job(id, item.request, output, RUNNING, keep_latents=keep_latents, started=time.time())
                running[task.remote(job, os.getcwd(), environment, policy_flags)] = item, job
            if not running:
                return
            (reference,), _ = ray.wait(list(running), num_returns=1)
            item, job = running.pop(reference)
            job = _result(ray, reference, job)
            _remove_staging(job)
            yield item, job


class _ThreadStdout:
    """Standard output for this thread; what other threads print, such as Ray its messages, goes to stderr."""

    def __init__(self, stdout):
        self.stdout, self.thread = stdout, threading.get_ident()

    def write(self, text: str) -> int:
        return (self.stdout if threading.get_ident() == self.thread else sys.stderr).write(text)

    def flush(self) -> None:
        self.stdout.flush()


def _result(ray, reference, job: Job) -> Job:
    """Return a job as its task left it, or as failed where the task did not return."""
    try:
        return ray.get(reference)
    except ray.exceptions.WorkerCrashedError:
        message = f"its worker was killed {MAX_ATTEMPTS} times; ask for less, or give more memory"
    except ray.exceptions.RayError as error:
        message = f"Ray cannot do it: {error}".splitlines()[0]
    return replace(job, state=FAILED, message=message, finished=time.time())


def _cancel(ray, running: dict) -> None:
    """Cancel the tasks that still run, and remove their staging folders."""
    for reference in running:
        ray.cancel(reference, force=True)
    if running:
        ray.wait(list(running), num_returns=len(running), timeout=CANCEL_SECONDS)
    for _, job in running.values():
        _remove_staging(job)


def _connect(workers: int | None):
    """Return the ray module, connected to its cluster; raises RequestError where that cannot be."""
    if workers is not None and workers < 1:
        raise RequestError(f"workers of a cluster must be at least 1; got {workers}")
    try:
        import ray  # pyright: ignore[reportMissingImports]  # of the extra cluster
    except ImportError:
        raise RequestError("engine ray needs the extra cluster: pip install .[cluster]") from None
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
    return ray


@cache
def _warm_model(policy_flags: tuple[str, ...]) -> WarmModel:
    """Return the model of this process, on the GPU that Ray gives it or else the CPU, under a policy."""
    from app.queue.worker import WarmModel

    parser = argparse.ArgumentParser()
    add_policy_flags(parser)
    return WarmModel(content_policy=policy_from_flags(parser.parse_args(policy_flags)))


def run_task(job: Job, folder: str, environment: dict[str, str], policy_flags: tuple[str, ...] = ()) -> Job:
    """Make a job's clip in a process of the cluster; return the job in its final state.

    Paths of the request are relative to `folder`. Where memory runs out, the job is tried once more in low-memory mode.
    """
    import torch

    from app.queue.worker import LOW_MEMORY_NOTE, generate_job, is_out_of_memory

    os.chdir(folder)
    os.environ.update(environment)
    torch.set_num_threads(1)  # so that a clip is the same to the last bit wherever it is made
    # A staging folder of its own: an earlier attempt that died may have left one.
    attempt, message = replace(job, id=f"{job.id}-{secrets.token_hex(4)}"), ""
    try:
        model = _warm_model(policy_flags)
        try:
            generate_job(attempt, model, lambda *_: None)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            message = LOW_MEMORY_NOTE
            error.__traceback__ = None  # its frames hold the tensors that filled the memory
            generate_job(attempt, model, lambda *_: None, low_memory=True)
        publish(attempt)
        return replace(job, state=DONE, message=message, finished=time.time())
    except (ValueError, OSError) as error:  # their messages are written for users
        return replace(job, state=FAILED, message=str(error), finished=time.time())
    except Exception as error:
        message = f"{type(error).__name__}: {error}".splitlines()[0]
        return replace(job, state=FAILED, message=message, finished=time.time())
    finally:
        shutil.rmtree(staging_folder(attempt), ignore_errors=True)


def _remove_staging(job: Job) -> None:
    """Remove the staging folders that dead processes left of a job."""
    for folder in job.output.parent.glob(f"{staging_folder(job).name}-*"):
        shutil.rmtree(folder, ignore_errors=True)
