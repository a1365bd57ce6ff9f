"""When clips will be there: what each will take, by `app.queue.estimate`, and who waits for whom."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import replace
from heapq import heapify, heapreplace

from app.formats import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from app.queue.estimate import Estimate, Estimator
from app.queue.jobs import RUNNING, SAMPLING, WAITING, Job, Queue
from dit.modes import MODES
from dit.request import Request

FRESH_SECONDS = 1.0  # for which what was foretold of a line is told to all who ask
LEARN_SECONDS = 60.0  # after which the pace is taken anew from what was made since
MOST_FORETOLD = 500  # jobs of a line


class Forecast:
    """Foretells a queue's line. One thread at a time looks ahead; others are told what was foretold last."""

    def __init__(self, queue: Queue, device: str = "cpu"):
        self.queue, self.estimator, self.lock = queue, Estimator(device), threading.Lock()
        self.learned, self.looked = time.monotonic(), 0.0
        self.line: dict[str, float | None] = {}  # of each job in it, seconds until it is there
        self.takes: dict[str, Estimate | None] = {}

    def estimate(self, request: Request) -> Estimate:
        """Return what a request will take; raises RequestError for what does not fit, and what `Estimator` does."""
        with self.lock:
            self._learn()
            return self.estimator.check_fits(request)

    def eta(self, job: Job) -> float | None:
        """Return in how many whole seconds a job will be there; None where nobody knows."""
        if job.state not in (*WAITING, RUNNING):
            return None
        if time.monotonic() - self.looked > FRESH_SECONDS and self.lock.acquire(blocking=False):
            try:
                self._learn()
                self.line = self._look_ahead()
                self.looked = time.monotonic()
            finally:
                self.lock.release()
        found = self.line.get(job.id)
        if job.state == RUNNING:
            found = self._left(job)
        return None if found is None else float(round(found))

    def _look_ahead(self) -> dict[str, float | None]:
        """Return in how many seconds each job of the line will be there, if all goes on as it does."""
        running = self.queue.jobs((RUNNING,), limit=MOST_FORETOLD)
        line = sorted(self.queue.jobs(WAITING, limit=MOST_FORETOLD, oldest_first=True), key=lambda job: job.ahead or 0)
        takes = {job.id: self.takes.get(job.id) or self._take(job.request) for job in (*running, *line)}
        self.takes = takes
        left = [self._left(job) for job in running]
        workers = max(len(self.queue.workers()), len(left))
        if not workers or self.queue.paused or None in left:
            return {}
        free = [*(one or 0.0 for one in left), *[0.0] * (workers - len(left))]
        heapify(free)
        found: dict[str, float | None] = {}
        for job in line:
            take = takes[job.id]
            if take is None:
                break
            found[job.id] = free[0] + take.seconds
            heapreplace(free, free[0] + take.seconds)
        return found

    def _left(self, job: Job) -> float | None:
        """Return how many seconds a job that is being made still needs: by its own pace once it has one."""
        take = self.takes.get(job.id)
        if job.eta is not None:
            show = take.cost.decode_flops / take.cost.flops * take.seconds if take and job.phase == SAMPLING else 0.0
            return job.eta + show
        return max(0.0, take.seconds - (time.time() - (job.started or 0.0))) if take else None

    def _take(self, request: Request) -> Estimate | None:
        with suppress(ValueError, OSError):  # what is the matter with it its worker will say
            return self.estimator.estimate(request)
        return None

    def _learn(self) -> None:
        """Take the pace anew from what this machine has made."""
        if time.monotonic() - self.learned < LEARN_SECONDS:
            return
        self.learned, estimator = time.monotonic(), self.estimator
        self.takes = {}
        for like, found in estimator.cache.items():
            suffix = IMAGE_SUFFIXES[0] if MODES[like.mode].still else VIDEO_SUFFIXES[0]
            speed = estimator.history.speed(found.cost.request.model_hash, estimator.device, estimator.threads, suffix)
            estimator.cache[like] = replace(found, speed=speed)
