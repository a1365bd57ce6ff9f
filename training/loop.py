"""What all trainers share: where a run lives on disk, how it survives being killed, its rate, its steps, its log.

Each trainer's loop is its own and reads from top to bottom: `for step in course:` is all it delegates.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from training.config import Run
from vae.files import sync

MOST_SKIPPED = 50  # steps in a row that were not finite before a run gives up
LOG_EVERY = 25  # steps


def create_accelerator(run: Run):
    """Return accelerate's Accelerator: bf16 autocast where it is faster, TensorBoard logs under the run's folder."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import set_seed

    precision = run.precision
    if precision == "auto":
        precision = "bf16" if bf16_pays() else "no"
    AcceleratorState._reset_state()  # of a run in another precision, before this one in the same process
    accelerator = Accelerator(mixed_precision=precision, log_with="tensorboard", project_dir=run.out)
    accelerator.init_trackers("log")
    set_seed(run.seed)
    return accelerator


def bf16_pays() -> bool:
    """Say whether this machine multiplies bf16 faster than fp32: a CUDA device that does, or a CPU with AMX or AVX-512
    bf16.

    Without such arithmetic a CPU emulates it: 15 against 110 GFLOP/s on two AVX2 cores.
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def lr_at(step: int, run: Run) -> float:
    """Return the learning rate: a rise, a plateau, and a linear fall to zero (arXiv 2405.18392)."""
    rise = min(1.0, (step + 1) / max(1, run.warmup_steps))
    fall = min(1.0, (run.steps - step) / max(1, run.decay_steps))
    return run.lr * min(rise, fall)


# What may change when a run goes on: its end, its pace, and what it shows on the way.
FREE = {
    *("steps", "rate", "warmup_steps", "decay_steps", "precision", "save_minutes", "keep_checkpoints"),
    *("validate_every", "validation_clips", "prompts", "show_every", "adversarial_from", "adversarial_rate"),
    *("sample_steps", "guidance", "shift", "train_shift", "emphasis", "mirror", "coded_share"),
    *("out", "data", "more_data", "held_out", "vae", "coder"),  # folders may move: what is in them is compared
}


def describe(run: Run, accelerator, **facts) -> None:
    """Write what this run is next to its output: the resolved config, the commit, and whatever else the trainer
    knows.

    Raises ValueError where checkpoints in `run.out` are another run's: of other data, another seed or another shape.
    """
    config = {name: str(value) if isinstance(value, Path) else value for name, value in dataclasses.asdict(run).items()}
    found = json.loads(json.dumps({"config": config, "commit": commit(), "torch": torch.__version__, **facts}))
    if accelerator.is_main_process:  # no other process reads what this one is about to write
        path = run.out / "run.json"
        if path.exists() and (run.out / "checkpoints").exists():
            refuse_another(run.out, json.loads(path.read_text()), found)
        run.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=2))


def refuse_another(out: Path, before: dict, now: dict) -> None:
    """Raise ValueError where the run described `before` cannot go on as the one described `now`."""
    for name in (*before["config"].keys() - FREE, "data", "encoder"):
        value, new = ((run if name in ("data", "encoder") else run["config"]).get(name) for run in (before, now))
        if new != value:
            raise ValueError(
                f"a run must go on as it began; {out} has checkpoints with {name} {value}, got {new}, "
                "so give another --out, or remove that folder"
            )


def commit() -> str | None:
    """Return the commit of the code, with a + where files differ from it; None outside a checkout."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        )
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


class Checkpoints:
    """A run's states on disk: each written under a temporary name, read back and compared, renamed, and only then old
    ones pruned.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep

    def save(self, step: int, tensors: dict[str, dict[str, Tensor]], notes: dict) -> Path:
        """Write a state: named groups of tensors, and notes that JSON can hold. Raises OSError where it did not reach
        the disk whole.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        final, temporary = self.folder / f"step-{step:08d}", self.folder / f"step-{step:08d}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        sums = {}
        for name, group in tensors.items():
            path = temporary / f"{name}.safetensors"
            save_file({key: value.detach().cpu().contiguous() for key, value in group.items()}, path)
            sums[name] = _sha256(path)
            sync(path)
        (temporary / "state.json").write_text(json.dumps({"step": step, "sha256": sums, **notes}))
        sync(temporary / "state.json", temporary)
        if not self.whole(temporary):
            raise OSError(f"a checkpoint must read back as it was written; {temporary} does not, so look at the disk")
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
        sync(self.folder)
        for old in (*self.steps()[: -self.keep], *self.folder.glob("*.tmp")):
            shutil.rmtree(old)
        return final

    def whole(self, state: Path) -> bool:
        """Say whether a state on disk is what was once written."""
        try:
            sums = json.loads((state / "state.json").read_text())["sha256"]
            return all(_sha256(state / f"{name}.safetensors") == found for name, found in sums.items())
        except (OSError, ValueError, KeyError):
            return False

    def steps(self) -> list[Path]:
        """List the states on disk, oldest first; half-written ones have another name."""
        return sorted(path for path in self.folder.glob("step-*") if path.suffix != ".tmp")

    def latest(self) -> tuple[dict, dict[str, dict[str, Tensor]]] | None:
        """Read the newest state that is whole, as (notes, tensors); None where there is none."""
        for state in reversed(self.steps()):
            if self.whole(state):
                notes = json.loads((state / "state.json").read_text())
                return notes, {name: load_file(state / f"{name}.safetensors") for name in notes["sha256"]}
            print(f"checkpoint {state} is damaged: going back to the one before", file=sys.stderr)
        return None


class TrainLoop:
    """The course of a run: iterate over it for the steps still to do; it resumes, saves, logs, and stops when asked to.

    `parts` are everything a step changes: modules, optimizers, diffusers' EMAModel. SIGTERM and SIGINT save the state
    after the current step and raise Stopped; SIGKILL loses the steps since the last checkpoint, which are then done
    again, the same.
    """

    def __init__(self, name: str, run: Run, accelerator, parts: dict[str, object]):
        self.name, self.run, self.accelerator, self.parts = name, run, accelerator, parts
        self.checkpoints = Checkpoints(run.out / "checkpoints", run.keep_checkpoints)
        self.start = self.skipped = self.skipped_in_a_row = 0
        self.seconds = 0.0  # of work, over all the times the run was started
        self.asked_to_stop = False
        self.average = Average()
        found = self.checkpoints.latest()
        if found is not None:
            notes, tensors = found
            self.start, self.skipped, self.seconds = notes["step"], notes["skipped"], notes["seconds"]
            for part, group in tensors.items():
                restore(self.unwrapped(part), group)

    def unwrapped(self, part: str):
        whole = self.parts[part]
        return self.accelerator.unwrap_model(whole) if isinstance(whole, nn.Module) else whole

    def __iter__(self):
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield from self._steps()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _steps(self):
        bar = tqdm(
            desc=self.name, total=self.run.steps, initial=self.start, disable=not self.accelerator.is_main_process,
            file=sys.stderr, mininterval=5,
        )  # fmt: skip
        saved = clock = time.monotonic()
        for step in range(self.start, self.run.steps):
            yield step
            bar.update()
            self.seconds, clock = self.seconds + time.monotonic() - clock, time.monotonic()
            due = time.monotonic() - saved > 60 * self.run.checkpoint_minutes or step + 1 == self.run.steps
            stopping = self._agreed(self.asked_to_stop)
            if self._agreed(due) or stopping:
                self.save(step + 1)
                saved = time.monotonic()
            if stopping and step + 1 < self.run.steps:
                bar.close()
                raise Stopped(
                    f"{self.name} stopped at step {step + 1} of {self.run.steps}; the same command goes on from there"
                )
        bar.close()

    def save(self, step: int) -> None:
        if self.accelerator.is_main_process:
            tensors = {part: state_tensors(self.unwrapped(part)) for part in self.parts}
            self.checkpoints.save(step, tensors, {"skipped": self.skipped, "seconds": round(self.seconds, 1)})
        self.accelerator.wait_for_everyone()

    def note(self, step: int, norm: float | None, **values: float | Tensor) -> None:
        """Add to the log's running means; count a step that was not finite, and give up after too many in a row."""
        if norm is None:
            self.skipped, self.skipped_in_a_row = self.skipped + 1, self.skipped_in_a_row + 1
            if self.skipped_in_a_row > MOST_SKIPPED:
                raise FloatingPointError(
                    f"{MOST_SKIPPED} steps in a row were not finite: lower the rate, or look at the data"
                )
        else:
            self.skipped_in_a_row = 0
            self.average.add(norm=norm, **values)
        if step % LOG_EVERY == LOG_EVERY - 1:
            self.log(step + 1, self.average.take() | {"skipped": self.skipped, "rate": lr_at(step, self.run)})

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write numbers to TensorBoard and to `log.jsonl`."""
        self.accelerator.log(values, step=step)
        if self.accelerator.is_main_process:
            line = {"step": step, "seconds": round(self.seconds, 1)} | {
                name: float(f"{value:.6g}") for name, value in values.items()
            }
            with open(self.run.out / "log.jsonl", "a", encoding="utf-8") as lines:
                lines.write(json.dumps(line) + "\n")

    def _stop(self, number, frame) -> None:
        self.asked_to_stop = True

    def _agreed(self, flag: bool) -> bool:
        """Say whether any process raised its flag, so that all do the same."""
        if self.accelerator.num_processes == 1:
            return flag
        return bool(self.accelerator.reduce(torch.tensor(float(flag), device=self.accelerator.device)).item())


class Stopped(KeyboardInterrupt):
    """A run was asked to stop, and did, with its state saved."""


def state_tensors(part) -> dict[str, Tensor]:
    """Return the state of a module, an optimizer or an EMAModel as named tensors."""
    if isinstance(part, nn.Module):
        return part.state_dict()
    if hasattr(part, "shadow_params"):
        shadows = {str(number): value for number, value in enumerate(part.shadow_params)}
        return shadows | {"optimization_step": torch.tensor(part.optimization_step)}
    state = part.state_dict()["state"]
    return {
        f"{number}.{name}": torch.as_tensor(value) for number, parts in state.items() for name, value in parts.items()
    }


def restore(part, tensors: dict[str, Tensor]) -> None:
    """Put back what `state_tensors` returned."""
    if isinstance(part, nn.Module):
        part.load_state_dict(tensors, strict=True)
    elif hasattr(part, "shadow_params"):
        part.optimization_step = int(tensors["optimization_step"])
        for number, value in enumerate(part.shadow_params):
            value.copy_(tensors[str(number)])
    else:
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            number, name = key.split(".", 1)
            state.setdefault(int(number), {})[name] = value
        part.load_state_dict({"state": state, "param_groups": part.state_dict()["param_groups"]})


def adamw(model: nn.Module, run: Run) -> torch.optim.AdamW:
    """Return AdamW (arXiv 1711.05101), in one kernel a step; weights of matrices decay, the rest does not."""
    matrices = [value for value in model.parameters() if value.requires_grad and value.ndim > 1]
    others = [value for value in model.parameters() if value.requires_grad and value.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": run.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=run.lr, betas=run.betas, fused=True)


def math_attention_on_cpu(device: torch.device) -> AbstractContextManager:
    """Return what to look at short sequences within: on a CPU torch's fused attention takes several times as long to
    go back as plain multiplications, a quarter of a step of the captioner.
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def optimizer_step(
    accelerator, model: nn.Module, optimizer, loss: Tensor, rate: float, clip_norm: float
) -> float | None:
    """Take one step down a loss. Returns the gradient's norm, or None where loss or gradient is not finite and nothing
    was changed.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate
    accelerator.backward(loss)
    norm = float(accelerator.clip_grad_norm_(model.parameters(), clip_norm))
    finite = math.isfinite(norm) and math.isfinite(float(accelerator.gather(loss.detach()).sum()))
    if finite:
        optimizer.step()
    optimizer.zero_grad(set_to_none=False)  # kept memory is far quicker than fresh memory on a CPU
    return norm if finite else None


class Average:
    """A running mean of what a trainer reports between two lines of its log."""

    def __init__(self):
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    def add(self, **values: float | Tensor) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(torch.as_tensor(value).detach())
            self.counts[name] = self.counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        found = {name: self.sums[name] / self.counts[name] for name in self.sums}
        self.__init__()
        return found


def _sha256(path: Path) -> str:
    with open(path, "rb") as stored:
        return hashlib.file_digest(stored, "sha256").hexdigest()
