"""The steps of `longtake prepare`: each runs on a folder and returns a report to print, and what failed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from training.prepare.captions import CaptionsRun, cached_captioner, caption_clips, failed_captions
from training.prepare.clips import ClipsRun, check_clips, cut_clips, failed_clips
from training.prepare.filter import FilterRun, check_filter, dropped_summary, failed_scores, filter_clips
from training.prepare.latents import LatentsRun, cached_vae, cut_captions, encode_latents, failed_latents
from training.text_cache import cached_text_encoder

Failures = list[tuple[str, str]]  # names of files, each with the error
Step = Callable[..., tuple[str, Failures]]


def prepare(step: str, folder: Path, **settings) -> tuple[str, Failures]:
    """Run a step on a folder; return a report to print, and what failed."""
    return STEPS[step](folder, **settings)


def _counting_step(
    run_class: type,
    function: Callable[..., dict[str, int]],
    failed: Callable[..., Failures],
    remarks: Callable[..., list[str]] = lambda run: [],
) -> Step:
    """Make a step from functions that take a run and return counts, what failed, and further lines of the report."""

    def step(folder: Path, **settings) -> tuple[str, Failures]:
        run = run_class(folder=folder, **settings)
        counts = ", ".join(f"{count} {name}" for name, count in function(run).items())
        return "\n".join([counts, *remarks(run)]), failed(run)

    return step


def _filter(folder: Path, **settings) -> tuple[str, Failures]:
    run = FilterRun(folder=folder, **settings)
    lines = [f"{'score':12} {'min':>8} {'median':>8} {'max':>8}  dropped by"]
    for name, row in filter_clips(run).items():
        numbers = " ".join(f"{row[key]:8.3g}" for key in ("min", "median", "max"))
        lines.append(f"{name:12} {numbers}  {row['threshold']}: {row['dropped']} of {row['clips']}")
    return "\n".join([*lines, dropped_summary(folder)]), failed_scores(run)


def _all(folder: Path, **settings) -> tuple[str, Failures]:
    """Run all steps in order; the captions only where a captioner or an endpoint is named.

    Every step is checked before the first one runs.
    """
    reports, failures = [], []
    runs = {"clips": ClipsRun, "captions": CaptionsRun, "filter": FilterRun, "latents": LatentsRun}
    if not settings.keys() & {"captioner", "endpoint", "model"}:
        del runs["captions"]
    own_settings = {
        step: {field.name: settings[field.name] for field in fields(run_class) if field.name in settings}
        for step, run_class in runs.items()
    }
    for step, own in own_settings.items():
        CHECKS[step](runs[step](folder=folder, **own))
    for step, own in own_settings.items():
        report, failed = STEPS[step](folder, **own)
        reports.append(f"{step}: {report}" if step != "filter" else report)
        failures += failed
    return "\n".join(reports), failures


# Each raises ValueError for a run that cannot begin, for example one with a wrong name.
CHECKS: dict[str, Callable] = {
    "clips": check_clips,
    "filter": check_filter,
    "captions": cached_captioner,
    "latents": lambda run: (cached_vae(run.vae), cached_text_encoder(run.text_encoder)),
}
STEPS: dict[str, Step] = {
    "clips": _counting_step(ClipsRun, cut_clips, failed_clips),
    "filter": _filter,
    "captions": _counting_step(CaptionsRun, caption_clips, failed_captions),
    "latents": _counting_step(LatentsRun, encode_latents, failed_latents, cut_captions),
    "all": _all,
}
