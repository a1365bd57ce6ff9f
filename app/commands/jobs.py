"""`longtake jobs` and `longtake work`: a queue as seen from the command line."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from app.policy.policy import add_policy_flags, policy_from_flags
from app.provenance.signing import is_signing_enabled, prepare_signing

if TYPE_CHECKING:
    from app.queue.jobs import Job, Queue

DATABASE, INSIDE = "jobs.sqlite", ".queue"  # a queue's file, and where a batch's folder has its queue


def add_desk(commands) -> None:
    """Add the commands that look after a queue, and the one that works at it."""
    jobs = commands.add_parser(
        "jobs",
        help="list the jobs of a queue; cancel, retry, move, pause, resume",
        description="List the jobs of a queue, after doing with them what the flags say.",
    )
    jobs.add_argument("folder", type=Path, help="the queue's folder, or that of a batch")
    jobs.add_argument("--cancel", nargs="+", default=[], metavar="ID", help="stop within a step, or do not begin")
    jobs.add_argument("--retry", nargs="+", default=[], metavar="ID", help="try again what failed or was cancelled")
    jobs.add_argument("--move", nargs=2, metavar=("ID", "AHEAD"), help="let so many jobs come before this one")
    jobs.add_argument("--pause", metavar="REASON", help="begin nothing more, and hold what is being made")
    jobs.add_argument("--resume", action="store_true", help="end a pause")
    jobs.add_argument("--state", nargs="+", metavar="STATE", help="list only these")
    jobs.add_argument("--most", type=int, default=50, metavar="N", help="list the latest N (default 50)")
    jobs.add_argument("--json", action="store_true", help="print a JSON object for each job")
    jobs.set_defaults(act=_jobs)

    work = commands.add_parser(
        "work",
        help="make the clips of a queue, one after another",
        description="Make the clips of a queue, one after another, with a warm model. Any number may work at one.",
    )
    work.add_argument("folder", type=Path, help="the queue's folder, or that of a batch")
    work.add_argument("--device", help="such as cuda:0 (default: a GPU where there is one, else the CPU)")
    work.add_argument(
        "--together",
        type=int,
        default=1,
        metavar="N",
        help="clips of like cost that may be made as one pack (default 1)",
    )
    work.add_argument("--until-empty", action="store_true", help="leave when no job waits")
    work.add_argument("--with-parent", action="store_true", help="leave when the process that began it is gone")
    add_policy_flags(work)
    work.set_defaults(act=_work)


def open_queue(folder: Path) -> Queue:
    """Open the queue in a folder, or in a batch's; raises ValueError where there is none."""
    from app.queue.jobs import Queue

    for path in (folder, folder / INSIDE):
        if (path / DATABASE).is_file():
            return Queue(path.resolve())
    raise ValueError(f"a queue's folder has a {DATABASE}; {folder} has none, so name the one given to render or serve")


def _jobs(chosen: argparse.Namespace) -> None:
    from app.queue.jobs import STATES, JobError
    from app.queue.lease import recover

    queue = open_queue(chosen.folder)
    states = chosen.state or STATES
    if unknown := set(states) - set(STATES):
        raise JobError(f"states are {', '.join(STATES)}; got {', '.join(sorted(unknown))}")
    recover(queue)
    for id in chosen.cancel:
        queue.cancel(id)
    for id in chosen.retry:
        queue.retry(id)
    if chosen.move:
        id, ahead = chosen.move
        if not ahead.isdecimal():
            raise JobError(f"a job is moved behind a whole number of others; got {ahead!r}")
        queue.move(id, int(ahead))
    if chosen.pause is not None:
        queue.pause(chosen.pause or "by hand")
    if chosen.resume:
        queue.resume()
    for job in reversed(queue.jobs(states, most=chosen.most)):
        print(json.dumps(as_data(job), ensure_ascii=False) if chosen.json else _line(job))
    if not chosen.json:
        counts = ", ".join(f"{count} {state}" for state, count in queue.counts().items() if count)
        paused = f"; paused: {queue.paused.reason}" if queue.paused else ""
        crew = "".join(f"; at work: {device}, heard of {silent:.0f} s ago" for device, silent in queue.workers())
        print(f"{counts or 'no jobs'}{paused}{crew}")


def as_data(job: Job) -> dict:
    """Return a job as JSON can hold it."""
    left = {"request": json.loads(job.request.to_json()), "output": str(job.output)}
    names = (
        *("id", "state", "owner", "phase", "step", "steps", "sentence", "tries", "cancelling"),
        *("submitted", "began", "ended", "eta", "ahead"),
    )
    return {name: getattr(job, name) for name in names} | left


def _line(job: Job) -> str:
    at = ""
    if job.phase:
        left = f", {job.eta:.0f} s left" if job.eta is not None else ""
        at = f" {job.phase} {job.step}/{job.steps}{left}" if job.steps else f" {job.phase}"
    elif job.ahead is not None:
        at = f" {job.ahead} ahead"
    said = f": {job.sentence}" if job.sentence else ""
    return f"{job.id}  {job.state}{at}  {job.request.prompt!r}  {job.output.name}{said}"


def _work(chosen: argparse.Namespace) -> None:
    from app.queue.worker import serve_queue

    queue, content_policy = open_queue(chosen.folder), policy_from_flags(chosen)
    if is_signing_enabled():
        prepare_signing()
    serve_queue(queue, chosen.device, chosen.until_empty, chosen.with_parent, content_policy, chosen.together)
