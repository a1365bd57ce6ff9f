"""Run the rungs of a plan: a queue that any number of workers share, and that resumes.

Each rung has a folder, STUDY/rungs/HASH, whose lock a worker holds while it trains; a finished one has a result there.
Under Slurm an array job starts the same command several times. Held-out rungs come last, and are predicted before.

longtake scale run plan.json --study runs/scale
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
import torch

from dit.flops import count_parameters, training_bytes
from training.config import DiTRun
from training.dataset import data_hash
from training.examples import video_formats
from training.loop import TrainingStopped
from training.scaling.fit import freeze_prediction
from training.scaling.plan import ScaleOptions, Workload, open_workload
from training.scaling.results import LOG, RESULT
from training.scaling.rungs import Rung, ScalingPlan, command_words
from training.scaling.shapes import ModelShape
from training.train_dit import train
from vae.files import atomic_write

LOCK, FAILED, FACTS = "lock", "failed.txt", "facts.json"
STATE_COPIES = 4 * (5 + 1)  # bytes per parameter of a checkpoint (weights, moments, EMA) and of a model
MEMORY_SHARE = 0.9  # of the memory that is there

Train = Callable[[DiTRun], dict]


def run_study(
    plan: ScalingPlan, study: Path, engine: str = "here", processes: int = 1, grids: tuple[str, ...] = ()
) -> dict[str, int]:
    """Train all rungs that are not finished and not another worker's; return counts of finished, failed and busy.

    Raises ValueError before anything is trained if a rung cannot be: too little memory or disk, or other data than the
    finished runs had.
    """
    rungs = [rung for rung in plan.rungs if not grids or set(rung.grids) & set(grids)]
    if not rungs:
        raise ValueError(f"grids must be some of the plan's; got {' '.join(grids)}")
    work = open_workload(plan.base, ScaleOptions(data_clips=1))
    check_machine(plan, work, [rung for rung in rungs if not _result(plan, study, rung).exists()], study, processes)
    check_data(plan.base, study)
    if engine == "ray":
        return _run_by_ray(plan, study, rungs)
    trainer: Train = train if engine == "here" else lambda run: _launch(run, processes)
    counts = {"finished": 0, "failed": 0, "busy": 0}
    for rung in sorted(rungs, key=lambda rung: (rung.held_out, rung.flops)):
        counts[run_rung(plan, study, rung, trainer, processes)] += 1
    return counts


def run_rung(plan: ScalingPlan, study: Path, rung: Rung, trainer: Train, processes: int = 1) -> str:
    """Train a rung unless it is finished or another worker's; return finished, failed or busy."""
    result = _result(plan, study, rung)
    if result.exists():
        return "finished"
    folder = result.parent
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / LOCK) as own:
        if not own:
            return "busy"
        if result.exists():
            return "finished"
        others = [one for one in plan.rungs if not one.held_out and {"isoflop", "ladder"} & set(one.grids)]
        if rung.held_out and all(_result(plan, study, one).exists() for one in others):
            freeze_prediction(study, [one for one in plan.rungs if one.held_out])
        print(f"scale run: {rung.name}, {rung.flops:.3g} FLOPs, {rung.steps} steps", file=sys.stderr)
        start = time.monotonic()
        run = plan.run_of(rung, folder)
        try:
            if rung.trunk:
                _branch(plan, study, rung, run, trainer)
            report = trainer(run)
            write_result(result, rung, run, report, time.monotonic() - start, processes)
        except (TrainingStopped, KeyboardInterrupt):
            raise
        except Exception as error:  # one rung's failure is no reason to leave the others
            (folder / FAILED).write_text(f"{type(error).__name__}: {error}\n")
            print(f"scale run: {rung.name} failed: {error}", file=sys.stderr)
            return "failed"
        (folder / FAILED).unlink(missing_ok=True)
    return "finished"


def write_result(path: Path, rung: Rung, run: DiTRun, report: dict, seconds: float, processes: int) -> None:
    """Write the result of a rung; raises FloatingPointError if its loss is no number."""
    loss = float(report["validation"])
    if not loss < float("inf"):
        raise FloatingPointError(f"the loss must be a number; got {loss}, so lower --lr, or check the data for NaN")
    description = json.loads((run.out / "run.json").read_text())
    seconds_logged = [json.loads(line)["seconds"] for line in _lines(run.out / LOG)]
    row = {
        "rung": asdict(rung),
        "loss": loss,
        "report": report,
        "facts": {
            "encoder": description["encoder"],
            "data": description["data"],
            "held_out": data_hash(run.held_out, video_formats(run.formats)[:1]),
            "text_encoder": text_encoder_hash(run),
            "patch": json.loads((run.out / "model" / "transformer" / "config.json").read_text())["patch"],
            "validation": [run.validation_seed, run.validation_clips],
            "saliency": run.saliency_weight,
        },
        "seconds": round(max([*seconds_logged, seconds]), 1),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores",
        "processes": processes,
    }
    with atomic_write(path) as draft:
        draft.write_text(json.dumps(row, indent=1))
    shutil.rmtree(run.out / "checkpoints", ignore_errors=True)  # the model stays, the training state is done with


def text_encoder_hash(run: DiTRun) -> str:
    """Identify a text encoder: a frozen one by its weights, one that is trained along by its sizes."""
    if run.prompt_encoder_layers:
        return f"trained, {run.prompt_encoder_layers}x{run.prompt_encoder_width}, {run.vocab_size} tokens"
    digest = hashlib.sha256()
    whole_model = run.text_encoder / "text_encoder"
    for path in sorted((whole_model if whole_model.exists() else run.text_encoder).rglob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def check_machine(plan: ScalingPlan, work: Workload, rungs: list[Rung], study: Path, processes: int) -> None:
    """Raise ValueError if a rung to run needs more memory than this machine has, or the rungs more disk."""
    disk = 0
    for rung in rungs:
        config = work.config_of(ModelShape(rung.depth, rung.width, rung.head_dim))
        share = -(-work.tokens_of(rung.batch_sizes) // processes)
        tokens = max(max(work.tokens), min(share, plan.base.max_tokens or share))
        needed = training_bytes(config, tokens) * (1 if torch.cuda.is_available() else processes)
        if torch.cuda.is_available():
            there = torch.cuda.get_device_properties(0).total_memory
        else:
            there = psutil.virtual_memory().total
        if needed > MEMORY_SHARE * there:
            raise ValueError(
                f"a rung must fit into memory; {rung.name} needs {needed / 2**30:.1f} GiB and this machine has "
                f"{there / 2**30:.1f}, so plan with --max-tokens, or leave it out"
            )
        disk += STATE_COPIES * count_parameters(config)
    there = shutil.disk_usage(next(one for one in (study, *study.absolute().parents) if one.exists())).free
    if disk > there:
        raise ValueError(
            f"a study must fit on the disk; {len(rungs)} rungs need {disk / 2**30:.1f} GiB and {study} has "
            f"{there / 2**30:.1f} free, so make room, or name another --study"
        )
    if processes > (torch.cuda.device_count() if torch.cuda.is_available() else os.cpu_count() or 1):
        raise ValueError(f"processes must be at most the devices of this machine; got {processes}")


def check_data(run: DiTRun, study: Path) -> None:
    """Raise ValueError if the data of a study changed since its first run."""
    found = {
        "data": data_hash(run.data, video_formats(run.formats)),
        "held_out": data_hash(run.held_out, video_formats(run.formats)[:1]),
    }
    path = study / FACTS
    if not path.exists():
        study.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as draft:
            draft.write_text(json.dumps(found))
    before = json.loads(path.read_text())
    for name, value in found.items():
        if before[name] != value:
            raise ValueError(
                f"all rungs of a study must see the same data; {study} began with {name} {before[name]}, now it is "
                f"{value}, so give another --study, or the first data"
            )


def _result(plan: ScalingPlan, study: Path, rung: Rung) -> Path:
    return study / "rungs" / plan.hash_of(rung) / RESULT


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Yield whether this process got the lock; the system gives it back when the process ends, however it does."""
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _branch(plan: ScalingPlan, study: Path, rung: Rung, run: DiTRun, trainer: Train) -> None:
    """Bring a rung to the start of its decay: by its trunk, which other rungs continue, unless it has begun already.

    The trunk keeps a milestone for every branch.
    """
    if (run.out / "checkpoints").exists():
        return
    start = rung.steps - rung.decay_steps
    trunk = study / "trunks" / f"{rung.trunk}-{hashlib.sha256(str((run.lr, run.batch_sizes)).encode()).hexdigest()[:8]}"
    trunk.mkdir(parents=True, exist_ok=True)
    milestone = trunk / "milestones" / f"step-{start:08d}"
    if not milestone.exists():
        with _locked(trunk / LOCK) as own:
            if not own:
                raise RuntimeError(f"the trunk {rung.trunk} is another worker's: run again when it is done")
            if any(int(one.name.removeprefix("step-")) > start for one in trunk.glob("milestones/step-*")):
                return  # past it: the rung trains from nothing
            trainer(replace(run, out=trunk, steps=start, decay_steps=0, sample_every=start + 1))
            shutil.copytree(trunk / "checkpoints" / milestone.name, milestone)
    run.out.mkdir(parents=True, exist_ok=True)
    draft = run.out / "checkpoints.part"
    shutil.rmtree(draft, ignore_errors=True)
    shutil.copytree(milestone, draft / milestone.name)
    if (trunk / LOG).exists():
        shutil.copy(trunk / LOG, run.out / LOG)
    if (trunk / "tokenizer").exists():
        shutil.copytree(trunk / "tokenizer", run.out / "tokenizer", dirs_exist_ok=True)
    os.replace(draft, run.out / "checkpoints")


def _launch(run: DiTRun, processes: int) -> dict:
    """Train in processes of their own by `accelerate launch`, and return the report.

    accelerate starts several processes on CPUs only where it is told that it has several devices.
    """
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes)]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    environment = os.environ.copy()
    if processes > 1:
        command.append("--multi_gpu")
    if not torch.cuda.is_available():
        environment["ACCELERATE_USE_CPU"] = "true"
    command += ["-m", "training.command", "dit", *command_words(run)]
    ended = subprocess.run(command, env=environment, stdout=sys.stderr)
    if ended.returncode in (-2, -15, 130):
        raise TrainingStopped("scale run stopped; the same command resumes it")
    if ended.returncode:
        raise RuntimeError(f"accelerate launch ended with {ended.returncode}; its messages are above")
    return json.loads((run.out / "report.json").read_text())


def _run_by_ray(plan: ScalingPlan, study: Path, rungs: list[Rung]) -> dict[str, int]:
    """Train each rung as a task of a Ray cluster that shares the file system; held-out ones after the others."""
    try:
        ray: Any = import_module("ray")
    except ImportError:
        raise ValueError("engine ray needs ray, which is not installed: pip install longtake[cluster]") from None
    ray.init(ignore_reinit_error=True, include_dashboard=False)
    task = ray.remote(num_gpus=1 if torch.cuda.is_available() else 0)(run_rung)
    counts = {"finished": 0, "failed": 0, "busy": 0}
    for later in (False, True):
        waiting = [task.remote(plan, study.absolute(), rung, train) for rung in rungs if rung.held_out == later]
        for ended in ray.get(waiting):
            counts[ended] += 1
    return counts


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []
