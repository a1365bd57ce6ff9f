"""A worker: one process with a warm model that makes the clips of a queue, one after another."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import torch

from app.policy.policy import ContentPolicy
from app.queue.estimate import likeness
from app.queue.history import History, Stopwatch, device_name
from app.queue.jobs import CANCELLED, FAILED, INTERRUPTED, QUEUED, RUNNING, UPLOADS, WAITING, Job, Queue
from app.queue.lease import Shift, Superseded, recover, staging
from app.queue.previews import clear, viewer
from app.render import UNRESTRICTED, check_latents, load, upsampled, write
from dit.estimate import Cost, Outline
from dit.inputs import keep_latents
from dit.pipeline import Dream, Pipeline
from dit.request import Request
from vae.video.pixels import DiskError

POLL_SECONDS = 0.25  # how often an idle worker looks for work, and a held one for leave to go on
BEAT_SECONDS = 5.0
LEAST_FREE_BYTES = 256 * 2**20  # what a queue that was paused by a full disk waits for
LOG = logging.getLogger("longtake.worker")


class Stopped(Exception):
    """A job that was cancelled while it was made."""


class Leaving(Exception):
    """A worker that was asked to leave while it made a job."""


class Bench:
    """Where models stay warm: the last one used, until another is asked for. Makes `together` clips as a pack; `content_policy`
    says what may be made here.
    """

    def __init__(self, device: str | None = None, content_policy: ContentPolicy = UNRESTRICTED, together: int = 1):
        self.device, self.content_policy, self.together, self.name = device, content_policy, together, None
        self.pipeline: Pipeline | None = None
        self.outline: Outline | None = None
        self.costs: dict[Request, Cost] = {}

    def pipeline_for(self, request: Request) -> Pipeline:
        """Return the model that a request names, loaded."""
        if self.pipeline is None or self.name != request.model:
            self.pipeline = None  # before the other is loaded, so that there is room for it
            self.pipeline, self.name = load(request), request.model
            if self.device:
                self.pipeline.to(self.device)
            self.outline, self.costs = Outline.of(self.pipeline), {}
        return self.pipeline

    def remember(self, dream: Dream, output: Path, clock: Stopwatch, seconds: float, together: int = 1) -> None:
        """Note for later estimates what a clip took that was made here, one of some as a pack."""
        assert self.outline, "a clip was made"
        like = likeness(dream.request)
        with suppress(ValueError, OSError):
            if like not in self.costs:
                self.costs[like] = self.outline.cost(dream.request)
            device = device_name(clock.device, torch.get_num_threads())
            History().note(self.costs[like], device, seconds, clock.peak, output, together)


def work(
    queue: Queue,
    device: str | None = None,
    until_empty: bool = False,
    leave: threading.Event | None = None,
    content_policy: ContentPolicy = UNRESTRICTED,
    together: int = 1,
) -> None:
    """Make the clips of a queue until asked to leave, or `until_empty` until none waits; up to `together` of like cost
    as one pack. Jobs that the content_policy refuses fail, whoever queued them.
    """
    leave, bench = leave or threading.Event(), Bench(device, content_policy, together)
    with Shift(queue, device or "auto") as shift, beating(shift):
        while not leave.is_set():
            recover(queue)
            make_room(queue)
            job = shift.claim()
            if job:
                make_together(shift, shift.claim_company(job, bench.together), bench, leave)
            elif until_empty and not sum(queue.counts()[state] for state in (*WAITING, RUNNING)):
                return
            else:
                leave.wait(POLL_SECONDS)


@contextmanager
def beating(shift: Shift) -> Iterator[None]:
    """Let a worker's heart beat in a thread of its own."""
    still = threading.Event()

    def beat() -> None:
        while not still.wait(BEAT_SECONDS):
            shift.beat()
        shift.queue.close()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        still.set()
        thread.join()


def make_room(queue: Queue) -> None:
    """End a pause for want of room once there is room."""
    pause = queue.paused
    if pause and pause.least_bytes and shutil.disk_usage(queue.folder).free >= pause.least_bytes:
        queue.resume()


def make(shift: Shift, job: Job, bench: Bench, leave: threading.Event) -> None:
    """Make one job's clip and note how it ended; nothing that goes wrong with it goes further.

    Where memory runs out, it is tried once more in smaller portions.
    """

    def obey(phase: str, step: int = 0, steps: int = 0) -> None:
        while (wish := shift.note(job, phase, step, steps)) == "hold" and not leave.is_set():
            make_room(shift.queue)
            leave.wait(POLL_SECONDS)
        if wish == "stop":
            raise Stopped
        if leave.is_set():
            raise Leaving

    sentence = ""
    try:
        try:
            dream_job(job, bench, obey, shift.queue.folder)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            sentence = "made in smaller portions, because memory ran out"
            LOG.warning("%s is %s", job.id, sentence)
            error.__traceback__ = None  # which holds on to what filled the memory
            dream_job(job, bench, obey, shift.queue.folder, sparing=True)
        shift.keep(job, sentence)
    except Superseded:
        LOG.warning("%s is another worker's by now", job.id)
    except Stopped:
        end(shift, job, CANCELLED)
    except Leaving:
        end(shift, job, QUEUED)
    except DiskError as error:
        shift.queue.pause(f"the disk is full or fails: {error}", LEAST_FREE_BYTES)
        end(shift, job, QUEUED, str(error))
    except (ValueError, OSError) as error:  # which say what is the matter
        end(shift, job, FAILED, str(error))
    except Exception as error:
        LOG.warning("%s failed", job.id, exc_info=error)
        end(shift, job, FAILED, f"{type(error).__name__}: {error}".splitlines()[0])
    finally:
        shutil.rmtree(staging(job), ignore_errors=True)
        clear(shift.queue.folder, job.id)


def make_together(shift: Shift, jobs: list[Job], bench: Bench, leave: threading.Event) -> None:
    """Make several jobs' clips as one pack, and note how each ended. One that is cancelled leaves the others at work.

    Where anything goes wrong, they wait again, to be made alone; where memory ran out, later packs are half as large.
    """
    if len(jobs) == 1:
        return make(shift, jobs[0], bench, leave)
    at_work = {job.id: job for job in jobs}

    def obey(phase: str, step: int = 0, steps: int = 0, only: Job | None = None) -> None:
        held = True
        while held and not leave.is_set():
            held = False
            for job in [only] if only else list(at_work.values()):
                try:
                    wish = shift.note(job, phase, step, steps)
                except Superseded:
                    wish = "stop"
                if wish == "stop":
                    del at_work[job.id]
                    end(shift, job, CANCELLED)
                held = held or wish == "hold"
            if not at_work or (only and only.id not in at_work):
                raise Stopped
            if held:
                make_room(shift.queue)
                leave.wait(POLL_SECONDS)
        if leave.is_set():
            raise Leaving

    try:
        bench.content_policy.check_requests(*(job.request for job in jobs))
        obey("loading the model")
        pipeline = bench.pipeline_for(jobs[0].request)
        pipeline.sparing = False
        obey("reading the prompt")
        requests = upsampled([job.request for job in jobs], pipeline)
        bench.content_policy.check_requests(*requests)
        obey("dreaming")
        clock, packed = Stopwatch(str(pipeline.device)), len(jobs)
        show = viewer(shift.queue.folder, [job.id for job in jobs], pipeline.settings.fps)
        dreaming = partial(obey, "dreaming")
        dreams = list(pipeline.generate(requests, dreaming, show, together=packed))
        share = clock.seconds / packed
        for job, dream in zip(jobs, dreams, strict=True):
            if job.id in at_work:
                begun, folder = clock.seconds, fresh(job)
                with suppress(Stopped, Superseded):
                    check_latents(job.request, job.latents)
                    finish(job, bench, dream, folder, partial(obey, only=job))
                    took = share + clock.seconds - begun
                    bench.remember(dream, folder / job.output.name, clock, took, packed)
                    shift.keep(job)
                at_work.pop(job.id, None)
    except Stopped:
        pass
    except Leaving:
        for job in at_work.values():
            end(shift, job, QUEUED)
    except DiskError as error:
        shift.queue.pause(f"the disk is full or fails: {error}", LEAST_FREE_BYTES)
        for job in at_work.values():
            end(shift, job, QUEUED, str(error))
    except Exception as error:
        LOG.warning("%d jobs are made one at a time: %s", len(at_work), error)
        if out_of_memory(error):
            bench.together = max(1, len(jobs) // 2)
        for job in at_work.values():
            end(shift, job, INTERRUPTED)
    finally:
        for job in jobs:
            shutil.rmtree(staging(job), ignore_errors=True)
            clear(shift.queue.folder, job.id)


def end(shift: Shift, job: Job, state: str, sentence: str = "") -> None:
    with suppress(Superseded):
        shift.end(job, state, sentence)


def dream_job(
    job: Job, bench: Bench, obey: Callable[..., None], queue: Path | None = None, sparing: bool = False
) -> None:
    """Make a job's files in its staging folder, obeying between any two steps; who watches the folder of a queue is
    shown what is dreamed.
    """
    folder = fresh(job)
    check_latents(job.request, job.latents)
    bench.content_policy.check_requests(job.request)
    obey("loading the model")
    pipeline = bench.pipeline_for(job.request)
    pipeline.sparing = sparing
    obey("reading the prompt")
    (request,) = upsampled([job.request], pipeline)
    bench.content_policy.check_requests(request)
    obey("dreaming")
    clock = Stopwatch(str(pipeline.device))
    show = viewer(queue, [job.id], pipeline.settings.fps) if queue else None
    (dream,) = pipeline.generate([request], partial(obey, "dreaming"), show)
    finish(job, bench, dream, folder, obey)
    bench.remember(dream, folder / job.output.name, clock, clock.seconds)


def fresh(job: Job) -> Path:
    """Return a job's staging folder, empty."""
    folder = staging(job)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def finish(job: Job, bench: Bench, dream: Dream, folder: Path, obey: Callable[..., None]) -> None:
    """Write what was dreamed for a job to its staging folder."""
    pipeline, output = bench.pipeline_for(job.request), folder / job.output.name
    write(pipeline, dream, output, lambda done, total: obey("writing", done, total), bench.content_policy)
    if job.latents:
        keep_latents(output, dream.latents, pipeline.vae)


def out_of_memory(error: BaseException) -> bool:
    """Say whether an error is a lack of memory, of the GPU's or the machine's."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def serve_queue(
    queue: Queue,
    device: str | None = None,
    until_empty: bool = False,
    with_parent: bool = False,
    content_policy: ContentPolicy = UNRESTRICTED,
    together: int = 1,
) -> None:
    """Work at a queue until told to leave by SIGTERM or SIGINT, or, if asked, until the parent process is gone."""
    logging.basicConfig(format="longtake worker: %(message)s")
    leave = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: leave.set())
    if with_parent:
        threading.Thread(target=follow, args=(os.getppid(), leave), daemon=True).start()
    if (queue.folder / UPLOADS).is_dir():  # a server's, whose requests name files as they are seen from there
        os.chdir(queue.folder)
    work(queue, device, until_empty, leave, content_policy, together)


def follow(parent: int, leave: threading.Event) -> None:
    """Leave once the parent process is gone."""
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    leave.set()
