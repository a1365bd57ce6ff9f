"""`longtake render --engine ray`: the clips of a batch, made on a Ray cluster.

Each clip is a task of Ray's, for one CPU core, or one GPU where the cluster has any. The process that does it keeps its
model warm for the next. Where it dies, the task is done again elsewhere; what it left half done is removed. The folder
of the batch, the model and what requests name must lie on a disk that all machines share, under the same names.
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
from pathlib import Path
from typing import TYPE_CHECKING

from app.home import HOME, home
from app.policy.policy import add_policy_flags, policy_from_flags, policy_arguments
from app.queue.jobs import DONE, FAILED, RUNNING, Job, new_ids
from app.queue.lease import TRIES, deliver, staging
from dit.request import RequestError

if TYPE_CHECKING:
    from app.batch.batch import Batch
    from app.batch.sweeps import Shot
    from app.queue.worker import Bench

GONE_SECONDS = 10.0  # how long tasks may take to end that were cancelled
OURS = "LONGTAKE_"  # how the names of the variables begin that every machine is to have


def render_on_cluster(
    batch: Batch, workers: int | None = None, latents: bool = False, policy: argparse.Namespace | None = None
) -> Iterator[tuple[Shot, Job]]:
    """Make what is missing of a batch on the cluster of RAY_ADDRESS, or on this machine where there is none, with so
    many tasks at a time, by default as many as it has room for; yields each shot with its job once that ended. `policy`
    are the flags of one, which holds in every process.

    Raises RequestError where Ray is not installed, or for no workers.
    """
    ray, shots = _connected(workers), iter(batch.missing)
    gpus, cores = (int(ray.cluster_resources().get(kind, 0)) for kind in ("GPU", "CPU"))
    workers = min(workers or len(batch.missing), gpus or cores or 1)
    # Ray ends a process with a GPU after each task, and its warm model with it, unless max_calls is 0.
    task = ray.remote(num_cpus=1, num_gpus=int(gpus > 0), max_retries=TRIES - 1, max_calls=0)(make)
    settings = {name: value for name, value in os.environ.items() if name.startswith(OURS)} | {HOME: str(home())}
    running, watched = {}, tuple(policy_arguments(policy)) if policy else ()
    with ExitStack() as ending:
        ending.enter_context(redirect_stdout(_Own(sys.stdout)))
        ending.callback(_stop, ray, running)
        while True:
            for shot in islice(shots, workers - len(running)):
                output = Path(os.path.abspath(batch.path(shot)))
                job = Job(new_ids(1)[0], shot.request, output, RUNNING, latents=latents, began=time.time())
                running[task.remote(job, os.getcwd(), settings, watched)] = shot, job
            if not running:
                return
            (reference,), _ = ray.wait(list(running), num_returns=1)
            shot, job = running.pop(reference)
            job = _ended(ray, reference, job)
            _clear(job)
            yield shot, job


class _Own:
    """Standard output for this thread; what others print, such as Ray its messages, goes to stderr."""

    def __init__(self, out):
        self.out, self.thread = out, threading.get_ident()

    def write(self, text: str) -> int:
        return (self.out if threading.get_ident() == self.thread else sys.stderr).write(text)

    def flush(self) -> None:
        self.out.flush()


def _ended(ray, reference, job: Job) -> Job:
    """Return a job as its task left it."""
    try:
        return ray.get(reference)
    except ray.exceptions.WorkerCrashedError:
        said = f"its worker was killed {TRIES} times while at it; ask for less, or give more memory"
    except ray.exceptions.RayError as error:
        said = f"Ray cannot do it: {error}".splitlines()[0]
    return replace(job, state=FAILED, sentence=said, ended=time.time())


def _stop(ray, running: dict) -> None:
    """End what is still being made, and remove what is left of it."""
    for reference in running:
        ray.cancel(reference, force=True)
    if running:
        ray.wait(list(running), num_returns=len(running), timeout=GONE_SECONDS)
    for _, job in running.values():
        _clear(job)


def _connected(workers: int | None):
    """Return Ray, connected to its cluster; raises RequestError where that cannot be."""
    if workers is not None and workers < 1:
        raise RequestError(f"workers of a cluster must be at least 1; got {workers}")
    try:
        import ray
    except ImportError:
        raise RequestError("engine ray needs the extra cluster: pip install .[cluster]") from None
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
    return ray


@cache
def _bench(watched: tuple[str, ...]) -> Bench:
    """Return the bench of this process, on the GPU that Ray gives it or else the CPU, under the policy of some
    flags.
    """
    from app.queue.worker import Bench

    words = argparse.ArgumentParser()
    add_policy_flags(words)
    return Bench(content_policy=policy_from_flags(words.parse_args(watched)))


def make(job: Job, folder: str, settings: dict[str, str], watched: tuple[str, ...] = ()) -> Job:
    """Make a job's clip in a process of the cluster, as seen from `folder`, with these variables and under this policy;
    returns the job as it ended. Where memory runs out, it is tried once more in smaller portions.
    """
    import torch

    from app.queue.worker import dream_job, out_of_memory

    os.chdir(folder)
    os.environ.update(settings)
    torch.set_num_threads(1)  # so that a clip is the same to the last bit wherever it is made
    mine, sentence = replace(job, id=f"{job.id}-{secrets.token_hex(4)}"), ""  # not the folder of one who died at it
    try:
        try:
            dream_job(mine, _bench(watched), lambda *_: None)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            sentence = "made in smaller portions, because memory ran out"
            error.__traceback__ = None  # which holds on to what filled the memory
            dream_job(mine, _bench(watched), lambda *_: None, sparing=True)
        deliver(mine)
        return replace(job, state=DONE, sentence=sentence, ended=time.time())
    except (ValueError, OSError) as error:  # which say what is the matter
        return replace(job, state=FAILED, sentence=str(error), ended=time.time())
    except Exception as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        return replace(job, state=FAILED, sentence=said, ended=time.time())
    finally:
        shutil.rmtree(staging(mine), ignore_errors=True)


def _clear(job: Job) -> None:
    """Remove what processes that died left of a job."""
    for left in job.output.parent.glob(f"{staging(job).name}-*"):
        shutil.rmtree(left, ignore_errors=True)
