"""What `longtake prepare` runs: a step, and a report that can be read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from training.prepare.captions import CaptionsRun, captioner_of, captions, failed_captions
from training.prepare.clips import ClipsRun, check, clips, failed_clips
from training.prepare.filter import FilterRun, check_filter, dropped_in, failed_scores, filter_clips
from training.prepare.latents import LatentsRun, encoder_of, failed_latents, latents
from training.prepare.text_cache import speaker_of

Failures = list[tuple[str, str]]  # what failed, and why
Step = Callable[..., tuple[str, Failures]]


def prepare(step: str, folder: Path, **given) -> tuple[str, Failures]:
    """Run a step on a folder; returns what to print, and what failed."""
    return STEPS[step](folder, **given)


def _counted(kind: type, act: Callable[..., dict[str, int]], failed: Callable[..., Failures]) -> Step:
    """Make a step of a kind of run, of what it does, and of what says afterwards what failed."""

    def step(folder: Path, **given) -> tuple[str, Failures]:
        run = kind(folder=folder, **given)
        return ", ".join(f"{count} {name}" for name, count in act(run).items()), failed(run)

    return step


def _filter(folder: Path, **given) -> tuple[str, Failures]:
    run = FilterRun(folder=folder, **given)
    lines = [f"{'score':12} {'least':>8} {'median':>8} {'most':>8}  dropped by"]
    for name, found in filter_clips(run).items():
        numbers = " ".join(f"{found[key]:8.3g}" for key in ("least", "median", "most"))
        lines.append(f"{name:12} {numbers}  {found['threshold']}: {found['dropped']} of {found['clips']}")
    return "\n".join([*lines, dropped_in(folder)]), failed_scores(run)


def _all(folder: Path, **given) -> tuple[str, Failures]:
    """Take one step after the other; captions where there is a captioner or an endpoint to ask."""
    reports, failures = [], []
    kinds = {"clips": ClipsRun, "captions": CaptionsRun, "filter": FilterRun, "latents": LatentsRun}
    if not given.keys() & {"captioner", "endpoint", "model"}:
        del kinds["captions"]
    own = {
        step: {field.name: given[field.name] for field in fields(kind) if field.name in given}
        for step, kind in kinds.items()
    }
    for step, settings in own.items():
        CHECKS[step](kinds[step](folder=folder, **settings))
    for step, settings in own.items():
        report, failed = STEPS[step](folder, **settings)
        reports.append(f"{step}: {report}" if step != "filter" else report)
        failures += failed
    return "\n".join(reports), failures


# What is asked before any step is taken: each raises ValueError for a run that cannot be begun, as of a wrong name.
CHECKS: dict[str, Callable] = {
    "clips": check,
    "filter": check_filter,
    "captions": captioner_of,
    "latents": lambda run: (encoder_of(run.vae), speaker_of(run.text)),
}
STEPS: dict[str, Step] = {
    "clips": _counted(ClipsRun, clips, failed_clips),
    "filter": _filter,
    "captions": _counted(CaptionsRun, captions, failed_captions),
    "latents": _counted(LatentsRun, latents, failed_latents),
    "all": _all,
}
