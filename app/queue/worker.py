"""A worker: one process that keeps a model in memory and makes the clips of a queue, one after another."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import torch

from app.policy.policy import ContentPolicy
from app.queue.database import QueueDiskFull
from app.queue.disk import bytes_to_go_on, full_disk_sentence, full_folder, has_room, when_there_is_room
from app.queue.estimate import cost_key
from app.queue.history import History, Stopwatch, device_name
from app.queue.hung import HungWorkers, stop_with_parent
from app.queue.jobs import (
    CANCELLED,
    ENCODING,
    FAILED,
    INTERRUPTED,
    LOADING,
    QUEUED,
    RUNNING,
    SAMPLING,
    UPLOADS,
    WAITING,
    WRITING,
    Job,
    Queue,
)
from app.queue.lease import Lease, LeaseLost, recover, staging_folder
from app.queue.previews import preview_writer, remove_preview
from app.render import UNRESTRICTED, check_keep_latents, load_pipeline, upsample_prompts, write_sample
from dit.adapters.estimate import cost_model_of
from dit.estimate import Cost, CostModel
from dit.inputs import save_latents
from dit.modes import mode_of
from dit.notes import input_notes
from dit.pipeline import Pipeline
from dit.request import Request
from dit.samples import Sample

POLL_SECONDS = 0.25  # how often an idle worker looks for jobs, and a held one for the end of the pause
HEARTBEAT_SECONDS = 5.0
LOW_MEMORY_NOTE = "made in smaller portions, because memory ran out"
LOG = logging.getLogger("longtake.worker")


class JobCancelled(Exception):
    """The job was cancelled while it ran."""


class WorkerStopping(Exception):
    """The worker was told to stop while it ran a job."""


class WarmModel:
    """The model last used, kept in memory until a request names another.

    `pack_size` is how many clips are made as one pack, `content_policy` the policy that they must pass.
    """

    def __init__(self, device: str | None = None, content_policy: ContentPolicy = UNRESTRICTED, pack_size: int = 1):
        self.device, self.content_policy, self.pack_size = device, content_policy, pack_size
        self.name: str | None = None
        self.pipeline: Pipeline | None = None
        self.cost_model: CostModel | None = None
        self.costs: dict[Request, Cost] = {}

    def load(self, request: Request) -> Pipeline:
        """Return the model that a request names, loaded."""
        if self.pipeline is None or self.name != request.model:
            self.pipeline = None  # release its memory before the other is loaded
            self.pipeline, self.name = load_pipeline(request), request.model
            if self.device:
                self.pipeline.to(self.device)
            self.cost_model, self.costs = cost_model_of(self.pipeline), {}
        return self.pipeline

    def record(self, sample: Sample, output: Path, stopwatch: Stopwatch, seconds: float, pack_size: int = 1) -> None:
        """Record in the history what a clip took, for later estimates."""
        assert self.cost_model, "a clip was made"
        key = cost_key(sample.request)
        with suppress(ValueError, OSError):
            if key not in self.costs:
                self.costs[key] = self.cost_model.cost(sample.request)
            device = device_name(stopwatch.device, torch.get_num_threads())
            History().record(self.costs[key], device, seconds, stopwatch.peak_bytes, output, pack_size)


def run_worker(
    queue: Queue,
    device: str | None = None,
    until_empty: bool = False,
    stop: threading.Event | None = None,
    content_policy: ContentPolicy = UNRESTRICTED,
    pack_size: int = 1,
) -> None:
    """Make the clips of a queue until `stop` is set or, with `until_empty`, until no job is left.

    Up to `pack_size` jobs of similar cost are made as one pack. Jobs that the policy refuses fail, whoever queued them.
    """
    stop, model = stop or threading.Event(), WarmModel(device, content_policy, pack_size)
    hung_workers = HungWorkers(queue)
    while not stop.is_set():
        if serve_lease(queue, device, until_empty, stop, model, hung_workers):
            return


def serve_lease(
    queue: Queue,
    device: str | None,
    until_empty: bool,
    stop: threading.Event,
    model: WarmModel,
    hung_workers: HungWorkers,
) -> bool:
    """Make clips until there is nothing left to do, True; or until the lease is lost to others, False."""
    with Lease(queue, device or "auto", stop) as lease, heartbeats(lease):
        while not stop.is_set() and not lease.lost:
            try:
                when_there_is_room(lambda: recover(queue), queue.folder, stop, QueueDiskFull)
                hung_workers.release()
                resume_if_space(queue)
                job = lease.claim()
                jobs = lease.claim_similar(job, model.pack_size) if job else []
            except QueueDiskFull:  # only once it is told to stop
                return True
            if jobs:
                run_pack(lease, jobs, model, stop)
            elif until_empty and not sum(queue.counts()[state] for state in (*WAITING, RUNNING)):
                return True
            else:
                stop.wait(POLL_SECONDS)
    return False


@contextmanager
def heartbeats(lease: Lease) -> Iterator[None]:
    """Send a worker's heartbeats from a thread of their own."""
    done = threading.Event()

    def send() -> None:
        while not done.wait(HEARTBEAT_SECONDS):
            lease.heartbeat()
        lease.queue.close()

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def resume_if_space(queue: Queue) -> None:
    """End a pause for a full disk once there is space on that disk."""
    pause = queue.paused
    if pause and pause.min_free_bytes and has_room(Path(pause.folder or queue.folder), pause.min_free_bytes):
        with suppress(QueueDiskFull):
            queue.resume()


def pause_if_full(lease: Lease, jobs: list[Job], error: Exception) -> bool:
    """Pause the queue and put jobs back where an error is a lack of disk space that may end; return whether it is.

    Where the first of the jobs ran out of space before, twice as much is waited for, so that a clip which does not fit
    is not made again and again.
    """
    folder, queue = full_folder(error, jobs[0].output.parent), lease.queue
    if folder is None:
        return False
    least = bytes_to_go_on(folder, lease.awaited_bytes.get(jobs[0].id))
    if least is None:
        return False
    lease.awaited_bytes[jobs[0].id] = least
    for job in jobs:
        shutil.rmtree(staging_folder(job), ignore_errors=True)
    sentence = full_disk_sentence(folder)
    with suppress(QueueDiskFull):  # of a worker that is told to stop
        when_there_is_room(lambda: queue.pause(sentence, least, str(folder)), queue.folder, lease.stop, QueueDiskFull)
    for job in jobs:
        finish(lease, job, QUEUED, sentence)
    return True


def run_job(lease: Lease, job: Job, model: WarmModel, stop: threading.Event) -> None:
    """Make one job's clip and record how it ended; no error of the job leaves this function.

    Where memory runs out, the job is tried once more in low-memory mode.
    """

    def check_in(phase: str, step: int = 0, steps: int = 0) -> None:
        while (order := lease.report(job, phase, step, steps)) == "hold" and not stop.is_set():
            resume_if_space(lease.queue)
            stop.wait(POLL_SECONDS)
        if order == "cancel":
            raise JobCancelled
        if stop.is_set():
            raise WorkerStopping

    message = ""
    try:
        try:
            notes = generate_job(job, model, check_in, lease.queue.folder)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            message = LOW_MEMORY_NOTE
            LOG.warning("%s is %s", job.id, message)
            error.__traceback__ = None  # its frames hold the tensors that filled the memory
            notes = generate_job(job, model, check_in, lease.queue.folder, low_memory=True)
        lease.complete(job, "; ".join(filter(None, [message, *notes])))
    except LeaseLost:
        LOG.warning("%s is another worker's by now", job.id)
    except JobCancelled:
        finish(lease, job, CANCELLED)
    except WorkerStopping:
        finish(lease, job, QUEUED)
    except Exception as error:
        if pause_if_full(lease, [job], error):
            return
        message = str(error)
        if not isinstance(error, (ValueError, OSError)):  # whose messages are written for users
            LOG.warning("%s failed", job.id, exc_info=error)
            message = f"{type(error).__name__}: {error}".splitlines()[0]
        finish(lease, job, FAILED, message)
    finally:
        shutil.rmtree(staging_folder(job), ignore_errors=True)
        remove_preview(lease.queue.folder, job.id)


def run_pack(lease: Lease, jobs: list[Job], model: WarmModel, stop: threading.Event) -> None:
    """Make several jobs' clips as one pack and record how each ended; a cancelled one leaves the others running.

    After any error they wait again, to be made alone; where memory ran out, later packs are half as large.
    """
    if len(jobs) == 1:
        return run_job(lease, jobs[0], model, stop)
    running = {job.id: job for job in jobs}

    def check_in(phase: str, step: int = 0, steps: int = 0, only: Job | None = None) -> None:
        held = True
        while held and not stop.is_set():
            held = False
            for job in [only] if only else list(running.values()):
                try:
                    order = lease.report(job, phase, step, steps)
                except LeaseLost:
                    order = "cancel"
                if order == "cancel":
                    del running[job.id]
                    finish(lease, job, CANCELLED)
                held = held or order == "hold"
            if not running or (only and only.id not in running):
                raise JobCancelled
            if held:
                resume_if_space(lease.queue)
                stop.wait(POLL_SECONDS)
        if stop.is_set():
            raise WorkerStopping

    try:
        model.content_policy.check_requests(*(job.request for job in jobs))
        check_in(LOADING)
        pipeline = model.load(jobs[0].request)
        pipeline.low_memory = False
        check_in(ENCODING)
        requests = upsample_prompts([job.request for job in jobs], pipeline)
        model.content_policy.check_requests(*requests)
        check_in(SAMPLING)
        stopwatch, packed = Stopwatch(str(pipeline.device)), len(jobs)
        preview = preview_writer(lease.queue.folder, [job.id for job in jobs], pipeline.settings.fps)
        samples = list(pipeline.generate(requests, partial(check_in, SAMPLING), preview, pack_size=packed))
        share = stopwatch.seconds / packed
        for job, sample in zip(jobs, samples, strict=True):
            if job.id in running:
                before, folder = stopwatch.seconds, empty_staging_folder(job)
                with suppress(JobCancelled, LeaseLost):
                    check_keep_latents(job.request, job.keep_latents)
                    notes = write_job_files(job, model, sample, folder, partial(check_in, only=job))
                    seconds = share + stopwatch.seconds - before
                    model.record(sample, folder / job.output.name, stopwatch, seconds, packed)
                    lease.complete(job, "; ".join(notes))
                running.pop(job.id, None)
    except JobCancelled:
        pass
    except WorkerStopping:
        for job in running.values():
            finish(lease, job, QUEUED)
    except Exception as error:
        if running and pause_if_full(lease, list(running.values()), error):
            return
        LOG.warning("%d jobs are made one at a time: %s", len(running), error)
        if is_out_of_memory(error):
            model.pack_size = max(1, len(jobs) // 2)
        for job in running.values():
            finish(lease, job, INTERRUPTED)
    finally:
        for job in jobs:
            shutil.rmtree(staging_folder(job), ignore_errors=True)
            remove_preview(lease.queue.folder, job.id)


def finish(lease: Lease, job: Job, state: str, message: str = "") -> None:
    """Set a job's final state, unless it is another worker's by now; what it wrote is removed before that.

    A worker that is told to stop while the queue's disk is full leaves the job to the next one.
    """
    shutil.rmtree(staging_folder(job), ignore_errors=True)
    with suppress(LeaseLost, QueueDiskFull):
        lease.finish(job, state, message)


def generate_job(
    job: Job,
    model: WarmModel,
    check_in: Callable[..., None],
    queue_folder: Path | None = None,
    low_memory: bool = False,
) -> list[str]:
    """Make a job's files in its staging folder; call `check_in(phase, step, steps)` between any two steps.

    With `queue_folder`, previews are written there. Returns what is to be said of its inputs.
    """
    folder = empty_staging_folder(job)
    check_keep_latents(job.request, job.keep_latents)
    model.content_policy.check_requests(job.request)
    check_in(LOADING)
    pipeline = model.load(job.request)
    pipeline.low_memory = low_memory
    check_in(ENCODING)
    (request,) = upsample_prompts([job.request], pipeline)
    model.content_policy.check_requests(request)
    check_in(SAMPLING)
    stopwatch = Stopwatch(str(pipeline.device))
    preview = preview_writer(queue_folder, [job.id], pipeline.settings.fps) if queue_folder else None
    (sample,) = pipeline.generate([request], partial(check_in, SAMPLING), preview)
    notes = write_job_files(job, model, sample, folder, check_in)
    model.record(sample, folder / job.output.name, stopwatch, stopwatch.seconds)
    return notes


def empty_staging_folder(job: Job) -> Path:
    """Make a job's staging folder anew, empty."""
    folder = staging_folder(job)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)
    return folder


def write_job_files(
    job: Job, model: WarmModel, sample: Sample, folder: Path, check_in: Callable[..., None]
) -> list[str]:
    """Decode a job's sample and write its files to the staging folder; return what is not kept of its inputs."""
    pipeline, output = model.load(job.request), folder / job.output.name
    write_sample(pipeline, sample, output, lambda done, total: check_in(WRITING, done, total), model.content_policy)
    if job.keep_latents:
        save_latents(output, sample.latents, pipeline.vae, sample.trim)
    return input_notes(sample.request, mode_of(sample.request), job.output.suffix)


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error is a lack of memory, the GPU's or the machine's."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def serve_queue(
    queue: Queue,
    device: str | None = None,
    until_empty: bool = False,
    with_parent: int | None = None,
    content_policy: ContentPolicy = UNRESTRICTED,
    pack_size: int = 1,
) -> None:
    """Run a worker until SIGTERM or SIGINT or, with `with_parent`, until that parent process is gone.

    The parent says its id, 0 standing for the present one: read here, it would be that of another process where the
    parent died in the seconds since it started this one.
    """
    logging.basicConfig(format="longtake worker: %(message)s")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if with_parent is not None:
        threading.Thread(target=stop_with_parent, args=(with_parent or os.getppid(), stop), daemon=True).start()
    if (queue.folder / UPLOADS).is_dir():  # a server's queue, whose requests name files relative to its folder
        os.chdir(queue.folder)
    run_worker(queue, device, until_empty, stop, content_policy, pack_size)
