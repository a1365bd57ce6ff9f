"""`longtake jobs` and `longtake work`: look after a queue, run a worker. Heavy modules are imported when they run."""

from __future__ import annotations

import argparse
import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from app.commands.request_flags import add_flag
from app.policy.policy import add_policy_flags, policy_from_flags
from app.provenance.signing import is_signing_enabled, prepare_signing

if TYPE_CHECKING:
    from app.queue.jobs import Job, Queue

DATABASE, BATCH_QUEUE = "jobs.sqlite", ".queue"  # a queue's file, and the queue's folder in a batch's


def add_jobs(commands) -> None:
    """Add the commands that look after a queue and work at it."""
    jobs = commands.add_parser(
        "jobs",
        help="list the jobs of a queue; cancel, retry, move, pause, resume",
        description="Do what the flags say with the jobs of a queue, then list them.",
    )
    jobs.add_argument("folder", type=Path, help="the queue's folder, or that of a batch")
    jobs.add_argument("--cancel", nargs="+", default=[], metavar="ID", help="stop within one step, or do not start")
    jobs.add_argument("--retry", nargs="+", default=[], metavar="ID", help="queue failed or cancelled jobs again")
    jobs.add_argument("--move", nargs=2, metavar=("ID", "AHEAD"), help="let AHEAD jobs come before this one")
    jobs.add_argument("--pause", metavar="REASON", help="start no further job, and hold the running ones")
    jobs.add_argument("--resume", action="store_true", help="end a pause")
    jobs.add_argument("--state", nargs="+", metavar="STATE", help="list only these")
    add_flag(jobs, "limit", "most", type=int, default=50, metavar="N", help="list the latest N (default 50)")
    jobs.add_argument("--json", action="store_true", help="print a JSON object for each job")
    jobs.set_defaults(run=_jobs)

    work = commands.add_parser(
        "work",
        help="make the clips of a queue, one after another",
        description="Make the clips of a queue, one after another, with one model in memory. Any number of workers "
        "may share a queue.",
    )
    work.add_argument("folder", type=Path, help="the queue's folder, or that of a batch")
    work.add_argument("--device", help="such as cuda:0 (default: a GPU where there is one, else the CPU)")
    add_flag(
        work,
        "pack-size",
        "together",
        type=int,
        default=1,
        metavar="N",
        help="clips of similar cost that may be made as one pack (default 1)",
    )
    work.add_argument("--until-empty", action="store_true", help="exit when no job waits")
    work.add_argument(
        "--with-parent",
        type=int,
        nargs="?",
        const=0,
        metavar="PID",
        help="exit when the process that started it, PID, is gone",
    )
    add_policy_flags(work)
    work.set_defaults(run=_work)


def open_queue(folder: Path) -> Queue:
    """Open the queue in a folder, or in that of a batch; raises ValueError where there is none."""
    from app.queue.jobs import Queue

    for path in (folder, folder / BATCH_QUEUE):
        if (path / DATABASE).is_file():
            return Queue(path.resolve())
    raise ValueError(f"a queue's folder has a {DATABASE}; {folder} has none, so name the one given to render or serve")


def _jobs(args: argparse.Namespace) -> None:
    from app.queue.hung import HungWorkers
    from app.queue.jobs import STATES, JobError
    from app.queue.lease import recover

    queue = open_queue(args.folder)
    states = args.state or STATES
    if unknown := set(states) - set(STATES):
        raise JobError(f"states are {', '.join(STATES)}; got {', '.join(sorted(unknown))}")
    recover(queue)
    HungWorkers(queue).release()
    for id in args.cancel:
        queue.cancel(id)
    for id in args.retry:
        queue.retry(id)
    if args.move:
        id, ahead = args.move
        if not ahead.isdecimal():
            raise JobError(f"the jobs ahead must be a whole number; got {ahead!r}")
        queue.move(id, int(ahead))
    if args.pause is not None:
        queue.pause(args.pause or "by hand")
    if args.resume:
        queue.resume()
    for job in reversed(queue.jobs(states, limit=args.limit)):
        print(json.dumps(job_as_dict(job), ensure_ascii=False) if args.json else _describe(job))
    if not args.json:
        counts = ", ".join(f"{count} {state}" for state, count in queue.counts().items() if count)
        paused = f"; paused: {queue.paused.reason}" if queue.paused else ""
        workers = "".join(_describe_worker(device, seconds) for device, seconds in queue.workers())
        print(f"{counts or 'no jobs'}{paused}{workers}")


def _describe_worker(device: str, seconds: float) -> str:
    from app.queue.hung import SILENT_SECONDS

    hangs = ", does not answer" if seconds >= SILENT_SECONDS else ""
    return f"; worker on {device}, seen {seconds:.0f} s ago{hangs}"


def job_as_dict(job: Job) -> dict:
    """Return a job as values that JSON can hold."""
    names = (
        *("id", "state", "owner", "phase", "step", "steps", "message", "attempts", "cancel_requested"),
        *("submitted", "started", "finished", "eta", "ahead"),
    )
    found = {name: getattr(job, name) for name in names}
    return found | {"request": json.loads(job.request.to_json()), "output": str(job.output)}


def _describe(job: Job) -> str:
    progress = ""
    if job.phase:
        left = f", {job.eta:.0f} s left" if job.eta is not None else ""
        progress = f" {job.phase} {job.step}/{job.steps}{left}" if job.steps else f" {job.phase}"
    elif job.ahead is not None:
        progress = f" {job.ahead} ahead"
    message = f": {job.message}" if job.message else ""
    return f"{job.id}  {job.state}{progress}  {job.request.prompt!r}  {job.output.name}{message}"


def _work(args: argparse.Namespace) -> None:
    from app.queue.runs import BatchRun
    from app.queue.worker import serve_queue

    queue, content_policy = open_queue(args.folder), policy_from_flags(args)
    if is_signing_enabled():
        prepare_signing()
    # A worker that was started by hand wants every job, also those of a batch that is over.
    with nullcontext() if args.with_parent is not None else BatchRun(queue, everything=True):
        serve_queue(queue, args.device, args.until_empty, args.with_parent, content_policy, args.pack_size)
