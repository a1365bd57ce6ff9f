"""Predict when the jobs of a queue will be done, from the estimates of `app.queue.estimate` and the queue's order."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import replace
from heapq import heapify, heapreplace

from app.formats import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from app.queue.estimate import Estimate, Estimator
from app.queue.history import Speed
from app.queue.jobs import RUNNING, SAMPLING, WAITING, Job, Queue
from dit.modes import MODES
from dit.request import Request

CACHE_SECONDS = 1.0  # for which a prediction of the queue is reused
SPEED_SECONDS = 60.0  # after which the measured speed is read again
MAX_JOBS = 500  # jobs of a queue that are predicted
MAX_NEW = 20  # jobs that are estimated at a time
LOAD_SECONDS = 8.0  # that a worker needs before its first clip: measured on two cores with the shipped model


class Forecast:
    """Predict the waiting times of a queue; one thread at a time computes them, the others get the last result."""

    def __init__(self, queue: Queue, device: str = "cpu"):
        self.queue, self.estimator, self.lock = queue, Estimator(device), threading.Lock()
        self.speed_read_at, self.predicted_at = time.monotonic(), 0.0
        self.opened_at = time.time()
        self.remaining: dict[str, float | None] = {}  # seconds until each waiting job is done
        self.estimates: dict[str, Estimate | None] = {}

    def estimate(self, request: Request) -> Estimate:
        """Estimate the duration and file size of a request.

        Raises RequestError where it does not fit into memory, and what `Estimator` raises.
        """
        with self.lock:
            self._refresh_speed()
        return self.estimator.check_fits(request)

    def loading_seconds(self) -> float:
        """Return how long a worker has to load before the next clip: not at all once it worked on one."""
        (worked,) = self.queue.connection.execute(
            "SELECT count(*) FROM jobs WHERE began > ? AND (ended IS NOT NULL OR step > 0)", (self.opened_at,)
        ).fetchone()
        return 0.0 if worked else LOAD_SECONDS

    def eta(self, job: Job) -> float | None:
        """Return in how many whole seconds a job will be done; None where that is unknown."""
        if job.state not in (*WAITING, RUNNING):
            return None
        if time.monotonic() - self.predicted_at > CACHE_SECONDS and self.lock.acquire(blocking=False):
            try:
                self._refresh_speed()
                self.remaining = self._predict_queue()
                self.predicted_at = time.monotonic()
            finally:
                self.lock.release()
        seconds = self._remaining_seconds(job) if job.state == RUNNING else self.remaining.get(job.id)
        return None if seconds is None else float(round(seconds))

    def _predict_queue(self) -> dict[str, float | None]:
        """Return in how many seconds each waiting job will be done, each given to the first free worker."""
        running = self.queue.jobs((RUNNING,), limit=MAX_JOBS)
        waiting = sorted(self.queue.jobs(WAITING, limit=MAX_JOBS, oldest_first=True), key=lambda job: job.ahead or 0)
        estimates, new = dict[str, Estimate | None](), 0
        for job in (*running, *waiting):
            if job.id not in self.estimates:
                new += 1
                if new > MAX_NEW:  # the rest of them next time
                    break
            estimates[job.id] = self.estimates.get(job.id) or self._try_estimate(job.request)
        self.estimates = estimates
        busy = [self._remaining_seconds(job) for job in running]
        workers = max(len(self.queue.workers()), len(busy))
        if not workers or self.queue.paused or None in busy:
            return {}
        free_in = [*(seconds or 0.0 for seconds in busy), *[0.0] * (workers - len(busy))]
        heapify(free_in)
        remaining: dict[str, float | None] = {}
        for job in waiting:
            estimate = estimates.get(job.id)
            if estimate is None:
                break
            remaining[job.id] = free_in[0] + estimate.seconds
            heapreplace(free_in, free_in[0] + estimate.seconds)
        return remaining

    def _remaining_seconds(self, job: Job) -> float | None:
        """Return how many seconds a running job still needs, by its own speed once that is measured."""
        estimate = self.estimates.get(job.id)
        if job.eta is not None:
            decode = 0.0
            if estimate and job.phase == SAMPLING:
                decode = estimate.cost.decode_flops / estimate.cost.flops * estimate.seconds
            return job.eta + decode
        return max(0.0, estimate.seconds - (time.time() - (job.started or 0.0))) if estimate else None

    def _try_estimate(self, request: Request) -> Estimate | None:
        with suppress(ValueError, OSError):  # the worker will report what is wrong with the request
            return self.estimator.estimate(request)
        return None

    def _refresh_speed(self) -> None:
        """Read the measured speed of this machine again, at most every SPEED_SECONDS."""
        if time.monotonic() - self.speed_read_at < SPEED_SECONDS:
            return
        self.speed_read_at, estimator = time.monotonic(), self.estimator
        self.estimates = {}
        speeds: dict[tuple[str | None, str], Speed] = {}
        for request, estimate in list(estimator.cache.items()):
            suffix = IMAGE_SUFFIXES[0] if MODES[request.mode].still else VIDEO_SUFFIXES[0]
            key = estimate.cost.request.model_hash, suffix
            if key not in speeds:
                speeds[key] = estimator.history.speed(key[0], estimator.device, estimator.threads, suffix)
            estimator.cache[request] = replace(estimate, speed=speeds[key])
