"""How long whole clips last: an extension with what it extends, an edit as long as its input."""

from __future__ import annotations

from dataclasses import replace

from app.queue.estimate import load_cost_model
from app.queue.jobs import DONE, Job
from dit.modes import MODES
from dit.request import SIDES
from vae.video.read import read_duration

MAX_KNOWN = 10_000


class Durations:
    """Durations of clips in seconds: of a finished one by its file, of another by its request, each found once."""

    def __init__(self):
        self.known: dict[tuple[str, bool], float] = {}

    def seconds(self, job: Job, default: float) -> float:
        """Return how long a job's clip lasts, 0 for an image; `default` is the duration of a request without one."""
        request, mode = job.request, MODES.get(job.request.mode)
        asked = request.seconds or default
        if mode is None or mode.still or "clip" not in mode.reads:
            return 0.0 if mode and mode.still else asked
        key = job.id, job.state == DONE
        if key not in self.known:
            if len(self.known) >= MAX_KNOWN:
                self.known.clear()
            try:
                if job.state == DONE:
                    found = read_duration(job.output)
                else:
                    found = load_cost_model(request.model).seconds(replace(request, side=request.side or SIDES[0]))
                self.known[key] = round(found, 3)
            except (ValueError, OSError):  # of a file that was removed: the job says so
                self.known[key] = asked
        return self.known[key]
