"""What all trainers share: accelerator, learning rate, run description, resumable loop, log, optimizer step.

Each trainer's loop is its own and reads from top to bottom: `for step in loop:` is all it delegates.
"""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from training.checkpoints import Checkpoints, load_state_tensors, state_tensors
from training.config import Run

MAX_CONSECUTIVE_SKIPS = 50  # non-finite steps in a row before a run gives up
LOG_EVERY = 25  # steps

# Fields that may change when a run resumes: its end, its speed, and what it reports.
RESUMABLE_CHANGES = {
    *("steps", "lr", "warmup_steps", "decay_steps", "precision", "checkpoint_minutes", "keep_checkpoints"),
    *("validate_every", "validation_clips", "sensitivity_clips", "evaluation_prompts", "sample_every"),
    *("adversarial_start", "discriminator_lr", "sample_steps", "guidance", "sample_shift", "train_shift"),
    *("saliency_weight", "horizontal_flip", "reconstructed_ratio", "max_tokens"),
    *("out", "data", "extra_data", "held_out", "vae"),  # folders may move: hashes of their contents are compared
}
# Fields in run.json of version 0.1, and what they are called now.
RENAMED_FIELDS = {
    "rate": "lr",
    "clip_norm": "max_grad_norm",
    "save_minutes": "checkpoint_minutes",
    "show_every": "sample_every",
    "start": "init_from",
    "decoder_only": "freeze_encoder",
    "downs": "downsample",
    "batch": "batch_size",
    "clips": "batch_sizes",
    "image_share": "image_ratio",
    "still_share": "image_ratio",
    "adversarial_from": "adversarial_start",
    "adversarial_rate": "discriminator_lr",
    "vocabulary": "vocab_size",
    "context": "context_length",
    "text": "text_encoder",
    "short_steps": "short_caption_steps",
    "watcher_width": "video_width",
    "watcher_layers": "video_layers",
    "emphasis": "saliency_weight",
    "crowds": "object_count_power",
    "written": "captions_file",
    "read": "tokenizer_pairs",
    "prompts": "evaluation_prompts",
    "back": "interpolate_back",
    "window": "window_frames",
    "caption_drop": "caption_dropout",
    "mirror": "horizontal_flip",
    "shift": "sample_shift",
    "coder": "vae",
    "coded_share": "reconstructed_ratio",
    "more_data": "extra_data",
}


def create_accelerator(run: Run) -> Any:
    """Return accelerate's Accelerator in the run's precision, with TensorBoard logs under `run.out` / "log"."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import set_seed

    precision = run.precision
    if precision == "auto":
        precision = "bf16" if has_native_bf16() else "no"
    if precision == "bf16-weights":  # the trainer keeps the copy: accelerate has no autocast to do
        precision = "no"
    AcceleratorState._reset_state()  # an earlier run in this process may have had another precision
    accelerator = Accelerator(mixed_precision=precision, log_with="tensorboard", project_dir=run.out)
    accelerator.init_trackers("log")
    set_seed(run.seed)
    return accelerator


def has_native_bf16() -> bool:
    """Return whether this machine multiplies bf16 faster than fp32: a CUDA device, or a CPU with AMX or AVX-512 bf16.

    A CPU without such instructions emulates them: 15 against 110 GFLOP/s on two AVX2 cores.
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def lr_at(step: int, run: Run) -> float:
    """Return the learning rate at a step: linear warmup, a plateau, linear decay to zero (arXiv 2405.18392)."""
    warmup = min(1.0, (step + 1) / max(1, run.warmup_steps))
    decay = min(1.0, (run.steps - step) / max(1, run.decay_steps))
    return run.lr * min(warmup, decay)


def write_run_description(run: Run, accelerator, **facts) -> None:
    """Write `run.out` / run.json: the resolved config, the commit, torch's version, and facts of the trainer.

    Raises ValueError if `run.out` has checkpoints of a run with other data, another seed or another shape.
    """
    config = {name: str(value) if isinstance(value, Path) else value for name, value in dataclasses.asdict(run).items()}
    description = json.loads(
        json.dumps({"config": config, "commit": git_commit(), "torch": torch.__version__, **facts})
    )
    if accelerator.is_main_process:  # no other process reads what this one is about to write
        path = run.out / "run.json"
        if path.exists() and (run.out / "checkpoints").exists():
            refuse_another(run.out, json.loads(path.read_text()), description)
        run.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(description, indent=2))


def refuse_another(out: Path, before: dict, now: dict) -> None:
    """Raise ValueError if the run described as `before` cannot resume as the one described as `now`."""
    config = {RENAMED_FIELDS.get(name, name): value for name, value in before["config"].items()}
    compared = [(name, config[name], now["config"].get(name)) for name in config.keys() - RESUMABLE_CHANGES]
    for name, old, new in (*compared, *((name, before.get(name), now.get(name)) for name in ("data", "encoder"))):
        if new != old:
            raise ValueError(
                f"a run must resume as it began; {out} has checkpoints with {name} {old}, got {new}, "
                "so give another --out, or remove that folder"
            )


def git_commit() -> str | None:
    """Return the commit of the code, with a + if tracked files differ from it; None outside a checkout."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        )
        changes = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changes.stdout.strip() else "")


class TrainLoop:
    """The steps of a run still to do: iterate over it. It resumes, checkpoints, logs, and stops on request.

    `parts` are all that a step changes: modules, optimizers, diffusers' EMAModel. SIGTERM and SIGINT write a checkpoint
    after the current step and raise TrainingStopped. SIGKILL loses the steps since the last checkpoint, which are then
    repeated identically.
    """

    def __init__(self, name: str, run: Run, accelerator, parts: dict[str, Any]):
        self.name, self.run, self.accelerator, self.parts = name, run, accelerator, parts
        self.checkpoints = Checkpoints(run.out / "checkpoints", run.keep_checkpoints)
        self.start = self.skipped = self.consecutive_skips = 0
        self.seconds = 0.0  # of training, summed over all starts of the run
        self.stop_requested = False
        self.running_means = RunningMeans()
        latest = self.checkpoints.load_latest()
        if latest is not None:
            notes, tensors = latest
            self.start, self.skipped, self.seconds = notes["step"], notes["skipped"], notes["seconds"]
            for part, group in tensors.items():
                load_state_tensors(self.unwrapped(part), group)

    def unwrapped(self, part: str):
        """Return a part without the wrapper that accelerate put around a module."""
        wrapped = self.parts[part]
        return self.accelerator.unwrap_model(wrapped) if isinstance(wrapped, nn.Module) else wrapped

    def __iter__(self) -> Iterator[int]:
        handlers = {number: signal.signal(number, self._request_stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield from self._steps()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _steps(self) -> Iterator[int]:
        progress = tqdm(
            desc=self.name, total=self.run.steps, initial=self.start, disable=not self.accelerator.is_main_process,
            file=sys.stderr, mininterval=5,
        )  # fmt: skip
        saved = clock = time.monotonic()
        for step in range(self.start, self.run.steps):
            yield step
            progress.update()
            self.seconds, clock = self.seconds + time.monotonic() - clock, time.monotonic()
            due = time.monotonic() - saved > 60 * self.run.checkpoint_minutes or step + 1 == self.run.steps
            stopping = self._any_process(self.stop_requested)
            if self._any_process(due) or stopping:
                self.save(step + 1)
                saved = time.monotonic()
            if stopping and step + 1 < self.run.steps:
                progress.close()
                raise TrainingStopped(
                    f"{self.name} stopped at step {step + 1} of {self.run.steps}; the same command resumes it"
                )
        progress.close()

    def save(self, step: int) -> None:
        """Write a checkpoint from the main process; the others wait."""
        if self.accelerator.is_main_process:
            tensors = {part: state_tensors(self.unwrapped(part)) for part in self.parts}
            self.checkpoints.save(step, tensors, {"skipped": self.skipped, "seconds": round(self.seconds, 1)})
        self.accelerator.wait_for_everyone()

    def record(self, step: int, grad_norm: float | None, **values: float | Tensor) -> None:
        """Add a step's values to the running means, and log these every LOG_EVERY steps.

        `grad_norm` is None for a step that was skipped because it was not finite. Raises FloatingPointError after
        MAX_CONSECUTIVE_SKIPS of these in a row.
        """
        if grad_norm is None:
            self.skipped, self.consecutive_skips = self.skipped + 1, self.consecutive_skips + 1
            if self.consecutive_skips > MAX_CONSECUTIVE_SKIPS:
                raise FloatingPointError(
                    f"{MAX_CONSECUTIVE_SKIPS} steps in a row were not finite: lower --lr, or check the data"
                )
        else:
            self.consecutive_skips = 0
            self.running_means.add(grad_norm=grad_norm, **values)
        if step % LOG_EVERY == LOG_EVERY - 1:
            self.log(step + 1, self.running_means.take() | {"skipped": self.skipped, "lr": lr_at(step, self.run)})

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write numbers to TensorBoard and to log.jsonl."""
        self.accelerator.log(values, step=step)
        if self.accelerator.is_main_process:
            line = {"step": step, "seconds": round(self.seconds, 1)} | {
                name: float(f"{value:.6g}") for name, value in values.items()
            }
            with open(self.run.out / "log.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def _request_stop(self, number, frame) -> None:
        self.stop_requested = True

    def _any_process(self, flag: bool) -> bool:
        """Return whether any process raised its flag, so that all do the same."""
        if self.accelerator.num_processes == 1:
            return flag
        return bool(self.accelerator.reduce(torch.tensor(float(flag), device=self.accelerator.device)).item())


class TrainingStopped(KeyboardInterrupt):
    """A run was asked to stop, and did, after it wrote a checkpoint."""


def build_adamw(model: nn.Module, run: Run) -> torch.optim.AdamW:
    """Return fused AdamW (arXiv 1711.05101) with weight decay on matrices only."""
    trained = [value for value in model.parameters() if value.requires_grad]
    groups = [
        {"params": [value for value in trained if value.ndim > 1], "weight_decay": run.weight_decay},
        {"params": [value for value in trained if value.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=run.lr, betas=run.betas, fused=True)


def math_attention_on_cpu(device: torch.device) -> AbstractContextManager:
    """Return a context that uses SDPA's math backend on a CPU.

    On short sequences the backward pass of torch's fused CPU attention takes several times as long as plain matrix
    products, which was a quarter of a captioner's step.
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def optimizer_step(
    accelerator, model: nn.Module, optimizer, loss: Tensor, lr: float, max_grad_norm: float, *, has_gradients=False
) -> float | None:
    """Backpropagate a loss, unless `has_gradients` says that it was, clip the gradients, and step the optimizer.

    Returns the gradients' norm before clipping. If the loss or a gradient is not finite, changes nothing and returns
    None.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
    if not has_gradients:
        accelerator.backward(loss)
    grad_norm = float(accelerator.clip_grad_norm_(model.parameters(), max_grad_norm))
    finite = math.isfinite(grad_norm) and math.isfinite(float(accelerator.gather(loss.detach()).sum()))
    if finite:
        optimizer.step()
    optimizer.zero_grad(set_to_none=False)  # a CPU writes to memory it holds much faster than to fresh memory
    return grad_norm if finite else None


@torch.no_grad()
def average_gradients(accelerator, model: nn.Module) -> None:
    """Average the gradients of a model that accelerate did not wrap over all processes."""
    if accelerator.num_processes > 1:
        gradients = [value.grad for value in model.parameters() if value.grad is not None]
        mean = accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), reduction="mean")
        for gradient, own in zip(gradients, mean.split([one.numel() for one in gradients]), strict=True):
            gradient.copy_(own.view_as(gradient))


class RunningMeans:
    """The means of what a trainer reports between two lines of its log."""

    def __init__(self):
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    def add(self, **values: float | Tensor) -> None:
        """Add one value to each named mean."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(torch.as_tensor(value).detach())
            self.counts[name] = self.counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """Return the means and reset them."""
        means = {name: self.sums[name] / self.counts[name] for name in self.sums}
        self.sums, self.counts = {}, {}
        return means
