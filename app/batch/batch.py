"""`longtake render JOBS -o DIR`: a batch of clips, made through the queue.

DIR holds the clips, `manifest.jsonl`, which is only ever added to, and the queue in `.queue`, one of its own for each
shard. Names come from content, so what lies in DIR is done: running again makes the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.batch.names import parse_shard, shard_of
from app.batch.rows import STDIN, Row, read_rows
from app.batch.sweeps import WAYS, Shot, expand
from app.exit_codes import PARTIAL
from app.formats import VIDEO_SUFFIXES
from app.policy.policy import ContentPolicy, add_policy_flags, refusal_reason, policy_from_flags, policy_arguments
from app.provenance.signing import UNSIGNED_HELP, prepare_signing
from dit.request import RequestError, parse_size

if TYPE_CHECKING:
    from app.queue.estimate import Estimate
    from app.queue.jobs import Job

MANIFEST = "manifest.jsonl"
COMMAND = (sys.executable, "-m", "app.cli")
LOOK_SECONDS = 0.1  # between two looks at the queue
TOGETHER = 4  # clips of like cost that are made as one pack


@dataclass(frozen=True)
class Batch:
    """What is to be made where: the shots of this shard, and which of how many shards it is."""

    folder: Path
    shots: list[Shot]
    shard: tuple[int, int] = (1, 1)

    @property
    def queue(self) -> Path:
        """The folder of this shard's queue."""
        index, total = self.shard
        return self.folder / (".queue" if total == 1 else f".queue-{index}-of-{total}")

    def path(self, shot: Shot) -> Path:
        """Return where a shot's clip will lie."""
        return self.folder / shot.name

    @property
    def wrong(self) -> list[Shot]:
        """The shots that cannot be made, whatever happens."""
        return [shot for shot in self.shots if shot.wrong]

    @cached_property
    def missing(self) -> list[Shot]:
        """The shots that were still to be made when first asked, each file once."""
        return [shot for shot in self.shots if not (shot.wrong or shot.twin or self.path(shot).exists())]


def render_batch(
    batch: Batch,
    workers: int = 1,
    latents: bool = False,
    devices: tuple[str, ...] = ("cpu",),
    policy: argparse.Namespace | None = None,
    together: int = TOGETHER,
) -> Iterator[tuple[Shot, Job]]:
    """Make what is missing of a batch, with so many worker processes, up to `together` clips of like cost as one pack;
    yields each shot with its job once that ended.

    Killed at any moment, it goes on where it was. Shots that another run of the same batch is making are waited for,
    and not made twice. `policy` has the flags of a policy, for the workers. Raises OSError where all of these left
    before the end.
    """
    from app.queue.jobs import Queue
    from app.queue.lease import recover

    batch.folder.mkdir(parents=True, exist_ok=True)
    queue = Queue(batch.queue)
    recover(queue)
    shots = {str(batch.path(shot)): shot for shot in batch.missing}
    for folder in {Path(path).parent for path in shots}:
        folder.mkdir(parents=True, exist_ok=True)
    requests = [shot.request for shot in shots.values() if shot.request]
    jobs = queue.submit_missing(requests, [Path(path) for path in shots], latents=latents)
    waited = {job.id: shots[str(job.output)] for job in jobs}
    paused = None
    with crew(batch.queue, min(workers, len(waited)), devices, policy, together) as alive:
        while waited:
            there, pause = alive(), queue.paused
            if pause != paused and (paused := pause):
                print(f"longtake: the queue is paused: {pause.reason}", file=sys.stderr)
            for job in queue.ended(list(waited)):
                yield waited.pop(job.id), job
            if waited and not there:
                raise OSError(
                    f"a batch needs workers; all have left with {len(waited)} clips to make, see what they say"
                )
            time.sleep(LOOK_SECONDS)


def crew_for(workers: int | None) -> tuple[int, tuple[str, ...]]:
    """Return how many workers there are to be, by default one a GPU or one a CPU core, and on which devices; raises
    RequestError for fewer than none.
    """
    if workers is not None and workers < 0:
        raise RequestError(f"workers must be a number from 0; got {workers}")
    devices = _devices()
    ours = len(devices) if devices != ("cpu",) else os.cpu_count() or 1
    return ours if workers is None else workers, devices


@contextmanager
def crew(
    queue: Path,
    workers: int,
    devices: tuple[str, ...],
    policy: argparse.Namespace | None = None,
    together: int = 1,
    lasting: bool = False,
) -> Iterator[Callable[[], bool]]:
    """Have worker processes at a queue, in turn on each device, or with none this process itself; yields what says
    whether any is there. They are let finish nothing on leaving: what they are at waits for the next run.

    They leave when no job waits, or, if `lasting`, never, and whoever died is replaced when asked who is there.
    """
    if not workers:
        from app.queue.jobs import Queue
        from app.queue.worker import work

        leave = threading.Event()
        content_policy = policy_from_flags(policy) if policy else ContentPolicy()
        thread = threading.Thread(target=work, args=(Queue(queue), devices[0], True, leave, content_policy, together))
        thread.start()
        try:
            yield thread.is_alive
        finally:
            leave.set()
            thread.join()
        return
    # One thread each, so that a clip is the same to the last bit however many workers there are.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

    def start(n: int) -> subprocess.Popen:
        words = [*COMMAND, "work", str(queue), "--device", devices[n % len(devices)], "--with-parent"]
        words += ["--together", str(together), *(policy_arguments(policy) if policy else ())]
        return subprocess.Popen(
            words if lasting else [*words, "--until-empty"],
            env=environment,
            start_new_session=True,  # Ctrl+C is for this process, which tells them
        )

    def alive() -> bool:
        for n, process in enumerate(processes if lasting else ()):
            if process.poll() is not None:
                print(f"longtake: worker {n} left with {process.returncode}; another comes", file=sys.stderr)
                processes[n] = start(n)
        return any(process.poll() is None for process in processes)

    processes = [start(n) for n in range(workers)]
    try:
        yield alive
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait()


def add_render(commands) -> None:
    """Add the command that renders a batch."""
    render = commands.add_parser(
        "render",
        help="make a batch of clips from a file of prompts or requests",
        description="Make a batch of clips. Run again, it makes only what is missing.",
        epilog="Exit codes: 0 all are there, 1 a failure, 2 nothing could be begun, 3 some failed, 130 interrupted.",
    )
    render.add_argument(
        "jobs",
        metavar="JOBS",
        help=".txt with a prompt a line, .jsonl, .csv, .tsv or .parquet with a request a row, a storyboard in .yaml or "
        f".json, or {STDIN} for standard input",
    )
    render.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="the folder for the clips")
    render.add_argument("--mode", choices=WAYS, default=WAYS[0], help="lists of values: each with each, or in step")
    render.add_argument("--draw", action="store_true", help="take one alternative of each {a|b}, which the seed draws")
    render.add_argument("--seed", type=int, nargs="+", help="seeds, for rows without")
    render.add_argument("--size", nargs="+", metavar="COLUMNSxROWS", help="sizes, for rows without")
    render.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="a field, for rows without")
    render.add_argument("--suffix", choices=VIDEO_SUFFIXES, default=VIDEO_SUFFIXES[0], help="of clips (default .mp4)")
    render.add_argument("--keep-latents", action="store_true", help="also write each clip's latents")
    render.add_argument("--shard", metavar="I/N", help="make one of N parts, from 1; or slurm, for its variables")
    render.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes (default: one a GPU, or one a CPU core); 0 works in this one",
    )
    render.add_argument(
        "--engine", choices=("queue", "ray"), default="queue", help="where: this machine's queue, or a Ray cluster"
    )
    render.add_argument(
        "--together",
        type=int,
        default=TOGETHER,
        metavar="N",
        help=f"clips of like cost that may be made as one pack, the same bytes as alone (default {TOGETHER})",
    )
    render.add_argument("--most", type=int, default=1_000_000, help="refuse more clips than this")
    render.add_argument(
        "--dry-run", action="store_true", help="say how many clips, how long, how large and how much memory"
    )
    render.add_argument("--unsigned", action="store_true", help=UNSIGNED_HELP)
    render.add_argument("--json", action="store_true", help="print a JSON object for each clip")
    add_policy_flags(render)
    render.set_defaults(act=_render)


def _render(chosen: argparse.Namespace) -> int:
    batch = _batch(chosen)
    workers, devices = crew_for(chosen.workers)
    if chosen.together < 1:
        raise RequestError(f"together must be a number from 1; got {chosen.together}")
    here = chosen.engine == "queue"  # else nobody knows the machines
    batch, estimates = _fitting(batch, devices[0], workers) if here or chosen.dry_run else (batch, [])
    if chosen.dry_run:
        return _dry_run(batch, estimates, workers, chosen.json)
    if estimates:
        workers, chosen.together = _that_fit(estimates, workers, len(devices), chosen.together)
    from tqdm import tqdm

    prepare_signing()
    batch.folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    with open(batch.folder / MANIFEST, "a", encoding="utf-8") as manifest:

        def tell(shot: Shot, state: str, **more: Any) -> None:
            line = {"row": shot.row, "part": shot.part, "state": state, "output": shot.name or None, **more}
            if state != "there":
                manifest.write(json.dumps(line, ensure_ascii=False) + "\n")
                manifest.flush()
            if chosen.json:
                tqdm.write(json.dumps(line, ensure_ascii=False))
            elif state in ("done", "there"):
                tqdm.write(str(batch.path(shot)))
            if sentence := more.get("sentence"):
                tqdm.write(f"longtake: row {shot.row}: {sentence}", file=sys.stderr)

        for shot in batch.wrong:
            tell(shot, "failed", sentence=shot.wrong)
            failed += 1
        missing = {(shot.row, shot.part) for shot in batch.missing}
        for shot in batch.shots:
            if not shot.wrong and not shot.twin and (shot.row, shot.part) not in missing:
                tell(shot, "there")
        if missing:
            if chosen.engine == "ray":
                from app.batch.cluster import render_on_cluster

                made = render_on_cluster(batch, chosen.workers, chosen.keep_latents, chosen)
            else:
                made = render_batch(batch, workers, chosen.keep_latents, devices, chosen, chosen.together)
            for shot, job in tqdm(made, "rendering", len(missing), unit="clip", file=sys.stderr):
                took = round((job.ended or 0) - (job.began or 0), 2)
                tell(shot, job.state, seconds=took, **({"sentence": job.sentence} if job.sentence else {}))
                failed += job.state != "done"
    return PARTIAL if failed else 0


def _batch(chosen: argparse.Namespace) -> Batch:
    rows = read_rows(None if chosen.jobs == STDIN else Path(chosen.jobs))
    if not rows:
        raise RequestError(f"a batch must have rows; {chosen.jobs} has none")
    sweeps: dict[str, list] = {}
    if chosen.seed:
        sweeps["seed"] = chosen.seed
    if chosen.size:
        sweeps["size"] = [parse_size(size) for size in chosen.size]
    defaults = {}
    for setting in chosen.set:
        name, equals, value = setting.partition("=")
        if not equals:
            raise RequestError(f"a setting must be FIELD=VALUE; got {setting!r}")
        try:
            defaults[name] = json.loads(value)
        except ValueError:
            defaults[name] = value
    shots = expand(
        _with_weights(rows, defaults), sweeps, chosen.mode, chosen.draw, defaults, chosen.most, chosen.suffix
    )
    shots = [replace(shot, wrong=shot.wrong or refusal_reason(shot.request, chosen.policy)) for shot in shots]
    shard = parse_shard(chosen.shard, os.environ) if chosen.shard else (1, 1)
    return Batch(chosen.output, shard_of(shots, *shard), shard)


def _with_weights(rows: list[Row], defaults: dict[str, Any]) -> list[Row]:
    """Say in each row which weights are meant, so that those of another model have other names."""
    from app.registry import model_folder
    from dit.pipeline import hash_of_model

    @cache
    def weights(name: str | None) -> dict[str, str]:
        try:
            return {"model_hash": hash_of_model(model_folder(name))}
        except (ValueError, OSError):
            return {}  # which the clip's own job says

    models = [row.fields.get("model", defaults.get("model")) for row in rows]
    return [
        replace(row, fields=weights(model) | row.fields) if model is None or isinstance(model, str) else row
        for row, model in zip(rows, models, strict=True)
    ]


def _devices() -> tuple[str, ...]:
    """Return every GPU, or else the CPU."""
    import torch

    return tuple(f"cuda:{n}" for n in range(torch.cuda.device_count())) or ("cpu",)


def _fitting(batch: Batch, device: str, workers: int) -> tuple[Batch, list[Estimate]]:
    """Return a batch in which shots that do not fit in memory are wrong, and what each of the missing will take. What
    else is the matter with a shot its job will say.
    """
    import torch

    from app.queue.estimate import Estimator, Unfit

    estimator, found, unfit = Estimator(device, 1 if workers else torch.get_num_threads()), [], {}
    for shot in batch.missing:
        assert shot.request, "a shot that is not wrong has a request"
        try:
            found.append(estimator.check_fits(shot.request))
        except Unfit as error:
            unfit[shot.row, shot.part] = str(error)
        except (ValueError, OSError):
            pass
    shots = [replace(shot, wrong=unfit.get((shot.row, shot.part), shot.wrong)) for shot in batch.shots]
    return replace(batch, shots=shots), found


def _that_fit(estimates: list[Estimate], workers: int, devices: int, together: int) -> tuple[int, int]:
    """Return how many workers, and clips as one pack, fit in memory of those asked for: workers matter more."""
    room, kinds = estimates[0].room, set(estimates)
    fits = lambda many, packed: -(-many // devices) * max(one.peak(packed) for one in kinds) <= room
    while together > 1 and not fits(max(1, workers), together):
        together //= 2
    while workers > 1 and not fits(workers, together):
        workers -= 1
        print(f"longtake: {workers} workers are what fits in {room / 2**20:,.0f} MiB", file=sys.stderr)
    return workers, together


def _dry_run(batch: Batch, estimates: list[Estimate], workers: int, as_json: bool) -> int:
    """Print what a batch would make, and what that takes."""
    there = sum(not shot.wrong and not shot.twin for shot in batch.shots) - len(batch.missing)
    twins = sum(shot.twin is not None for shot in batch.shots)
    found = {"clips": len(batch.missing), "there": there, "twins": twins, "wrong": len(batch.wrong)}
    counts = ", ".join(f"{found[name]} {name}" for name in found)
    told = "nothing to estimate"
    if estimates:
        flops, seconds = (sum(values) for values in zip(*((e.cost.flops, e.seconds) for e in estimates), strict=True))
        peak, size, pace = max(e.peak() for e in estimates), sum(e.file_bytes for e in estimates), estimates[0].pace
        found |= {"seconds": round(seconds / max(1, workers), 1), "bytes": size, "peak": peak, "flops": flops}
        since = f"the pace of {pace.clips} clips made here" if pace.clips else "a guess, since none was made here yet"
        told = (
            f"{flops / 1e9:,.0f} GFLOP at {pace.rate / 1e9:.3g} GFLOP/s ({since}) by {max(1, workers)} at once: about "
            f"{found['seconds']} s and the loading; {peak / 2**20:,.0f} MiB of memory each, {size:,} bytes on the disk"
        )
    print(json.dumps(found) if as_json else f"{counts}; {told}")
    return 0
