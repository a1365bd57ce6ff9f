"""Measure whether a clip shows everything that its prompt says, with a judge of edition 2 of the world.

    longtake evaluate MODEL --judge runs/second/judge/judge --sets "one thing" paraphrase

For each set of prompts (`prompt_sets.py`) and each column (`reading.COLUMNS`) the report gives the share of what was
asked for that the clips show, with a 95 % bootstrap interval over prompts; "all" is the share of prompts of which
everything is shown. A column counts only if the judge reads it right in at least TRUSTED_ACCURACY of the true renders
of the same scenes, else it has no judge and its values are null. Apart from the judge, the report says how much of the
variance of the colours of ground and sky the prompt explains.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from captioning.text_encoder import shorten_to_limit
from captioning.upsampler import Upsampler, load_upsampler
from dit.pipeline import Pipeline
from dit.request import Request
from training.evaluation.evaluate import (
    SETS,
    UNTRAINED_PROMPTS,
    draw_report,
    evaluate,
    generate_clips,
    mean_with_interval,
    untrained_like,
)
from training.evaluation.judge import REPORT, TRUSTED_ACCURACY, Judge
from training.evaluation.prompt_sets import (
    MENTIONED,
    SQUARE,
    PromptCase,
    choose_sets,
    clip_formats,
    prompt_cases,
    setting_scenes,
)
from training.evaluation.reading import COLUMNS, Reading, score, visible_keys
from training.world.clip import render_scene
from training.world.scene import Scene, clip_rng, event_seconds
from training.world.words import write_prompt
from vae.weights import load_strictly, read_json

PROMPTS = 300  # of each set
VARIANCE = "variance"  # the name of the measure of ground and sky among the sets
VARIANCE_SEEDS = 4  # clips of each of its prompts
EDGE = 8  # ground and sky are the last and the first of so many strips of rows
Score = dict[str, float]  # by column


def evaluate_model(
    model: Path,
    judge: Path,
    output: Path,
    prompts: int | None = None,
    seed: int = 0,
    sets: Sequence[str] | None = None,
    phrasing: str | None = None,
    upsample: str | None = None,
    captioner: Path | None = None,
) -> dict:
    """Evaluate a model with the judge of a folder, whose edition decides how; write and return the report.

    `sets` names the sets to run, by default all. Wording and alignment scores (`phrasing`, `captioner`) are options of
    edition 1; the sets of edition 2 have a wording each. Raises ValueError for wrong arguments.
    """
    if prompts is not None and prompts < 1:
        raise ValueError(f"prompts must be at least 1; got {prompts}")
    if load_strictly(Judge, judge).edition > 1:
        if phrasing not in (None, "plain"):
            raise ValueError(
                f"the sets of this judge have wordings of their own; got phrasing {phrasing!r}, so use sets"
            )
        return evaluate_widely(model, judge, output, prompts or PROMPTS, seed, sets, upsample)
    known = {one.name: one for one in SETS}
    if unknown := set(sets or ()) - set(known):
        raise ValueError(f"sets of this judge must be among {', '.join(known)}; got {', '.join(sorted(unknown))}")
    chosen = [known[name] for name in (sets or known)]
    return evaluate(model, judge, output, prompts or 200, seed, chosen, phrasing or "plain", upsample, captioner)


def evaluate_widely(
    model: Path,
    judge: Path,
    output: Path,
    prompts: int = PROMPTS,
    seed: int = 0,
    sets: Sequence[str] | None = None,
    upsample: str | None = None,
) -> dict:
    """Evaluate a model folder on the sets of these names, by default all, and on VARIANCE; return the report.

    Writes report.json after each set, and report.png, under `output`. Raises ValueError for unknown sets, and for a
    model whose clips the judge cannot read.
    """
    chosen = choose_sets(None if sets is None else [name for name in sets if name != VARIANCE])
    pipeline, network = Pipeline.from_pretrained(model), load_strictly(Judge, judge)
    upsampler = load_upsampler(upsample) if upsample else None
    usual = clip_formats(SQUARE, pipeline)[0][1]
    if pipeline.settings.fps != network.fps or usual[2] < network.format[2]:
        raise ValueError(
            f"this judge reads clips of at least {network.format[2]} frames at {network.fps:g} fps; "
            f"the model makes {usual[2]} at {pipeline.settings.fps:g}, so use another judge"
        )
    if torch.cuda.is_available():
        pipeline.to("cuda")
        torch.nn.Module.to(network, "cuda")
    output.mkdir(parents=True, exist_ok=True)
    report: dict = {
        "model": pipeline.hash,
        "edition": network.edition,
        "judge": read_json(judge / REPORT),
        "seed": seed,
        "upsample": upsample,
        "settings": asdict(pipeline.settings),
        "sets": {},
        "judged": {},
        "skipped": [],
    }
    shown: list[tuple[str, Tensor]] = []
    references: dict[Scene, dict[str, Reading]] = {}
    for prompt_set in chosen:
        cases = prompt_cases(prompt_set, prompts, seed, pipeline)
        if not cases:
            report["skipped"].append(prompt_set.name)
            print(f"the model makes no clips of the set {prompt_set.name!r}", file=sys.stderr)
            continue
        figure = shown if prompt_set.frame == SQUARE else []  # clips of one size
        rows, judged = evaluate_cases(pipeline, network, cases, prompt_set.name, upsampler, references, figure)
        report["sets"][prompt_set.name], report["judged"][prompt_set.name] = rows, judged
        (output / "report.json").write_text(json.dumps(report, indent=2))
    if sets is None or VARIANCE in sets:
        report[VARIANCE] = evaluate_variance(pipeline, seed, usual)
        (output / "report.json").write_text(json.dumps(report, indent=2))
    if report["sets"]:
        draw_report(report, shown).save(output / "report.png")
    return report


def evaluate_cases(
    pipeline: Pipeline,
    judge: Judge,
    cases: list[PromptCase],
    name: str,
    upsampler: Upsampler | None,
    references: dict[Scene, dict[str, Reading]],
    shown: list[tuple[str, Tensor]],
) -> tuple[dict, dict]:
    """Return the rows of a set, and by column how often the judge is right on its true renders and whether it counts.

    `references` keeps what is read in the true renders of each scene, for sets of the same scenes.
    """
    requests = case_requests(cases, pipeline, upsampler)
    own = read_clips(judge, generate_clips(pipeline, requests, name, shown))
    fresh = generate_clips(untrained_like(pipeline), requests[:UNTRAINED_PROMPTS], f"{name}, untrained")
    untrained = read_clips(judge, fresh)
    for case in cases:
        if case.scene not in references:
            render = true_render(case.scene, case.format, pipeline)
            decoded = pipeline.vae.decode(pipeline.vae.encode(render.to(pipeline.device)))
            both = read_clips(judge, [render, decoded])
            references[case.scene] = dict(zip(("true renders", "renders through the VAE"), both, strict=True))
    judged = judged_columns(cases, [references[case.scene]["true renders"] for case in cases])
    trusted = [column for column, value in judged.items() if value["judged"]]
    shuffled = own[len(own) // 2 :] + own[: len(own) // 2]
    rows = {"model": own}
    rows |= {
        row: [references[case.scene][row] for case in cases] for row in ("true renders", "renders through the VAE")
    }
    rows |= {"shuffled prompts": shuffled, "untrained": untrained}
    return {row: summarize(case_scores(cases, readings, trusted), trusted) for row, readings in rows.items()}, judged


def case_requests(cases: Sequence[PromptCase], pipeline: Pipeline, upsampler: Upsampler | None) -> list[Request]:
    """Return a request for each case, with seeds 0, 1, ...; upsampled prompts are cut to the token limit."""
    requests = []
    for seed, case in enumerate(cases):
        columns, rows, frames = case.format
        seconds = frames / pipeline.settings.fps
        request = Request(prompt=case.text, mode=case.mode, seed=seed, size=(columns, rows), seconds=seconds)
        if upsampler:
            upsampled = shorten_to_limit(pipeline.tokenizer, upsampler.upsample(case.text, seed)) or case.text
            request = replace(request, upsample=upsampler.name, upsampled_prompt=upsampled)
        requests.append(request)
    return requests


def true_render(scene: Scene, format: tuple[int, int, int], pipeline: Pipeline) -> Tensor:
    """Render a scene in a format (1, 3, F, Y, X)."""
    columns, rows, frames = format
    video = render_scene(scene, rows, columns, frames, pipeline.settings.fps, torch.device("cpu")).video
    return video.float()[None] / 127.5 - 1


def fit_clip(pixels: Tensor, format: tuple[int, int, int]) -> Tensor:
    """Cut the middle out of clips (B, 3, F, Y, X) and scale it to a format; of longer clips take frames at even steps.

    The world shows what happens in the middle, as far as the smaller dimension reaches.
    """
    columns, rows, frames = format
    count, height, width = pixels.shape[2:]
    side = min(height / rows, width / columns)
    cut_rows, cut_columns = round(rows * side), round(columns * side)
    top, left = (height - cut_rows) // 2, (width - cut_columns) // 2
    chosen = torch.linspace(0, count - 1, frames).round().long()
    cut = pixels[:, :, chosen, top : top + cut_rows, left : left + cut_columns]
    if cut.shape[3:] == (rows, columns):
        return cut
    flat = F.interpolate(rearrange(cut, "B rgb F Y X -> (B F) rgb Y X"), (rows, columns), mode="area")
    return rearrange(flat, "(B F) rgb Y X -> B rgb F Y X", B=len(pixels))


def read_clips(judge: Judge, clips: Iterable[Tensor]) -> list[Reading]:
    """Return what the judge reads in each clip (1, 3, F, Y, X)."""
    return [judge.read(fit_clip(clip, judge.format).to(judge.device))[0] for clip in clips]


def judged_columns(cases: Sequence[PromptCase], readings: Sequence[Reading]) -> dict[str, dict]:
    """Return by column the judge's accuracy on the true renders of a set, and whether that is enough ("judged").

    All that the scenes show counts, whether a prompt asks for it or not.
    """
    pairs = zip(cases, readings, strict=True)
    found = [score(case.scene, reading, visible_keys(case.scene)) for case, reading in pairs]
    judged = {}
    for column in COLUMNS:
        if values := [one[column] for one in found if column in one]:
            mean = float(np.mean(values))
            judged[column] = {"accuracy": round(mean, 4), "judged": mean >= TRUSTED_ACCURACY, "clips": len(values)}
    return judged


def case_scores(cases: Sequence[PromptCase], readings: Sequence[Reading], trusted: Iterable[str]) -> list[Score]:
    """Return the scores of each case by column, of what its prompt asks for; readings may be fewer than cases."""
    pairs = zip(cases, readings, strict=False)
    return [score(case.scene, reading, case.asked, trusted) for case, reading in pairs]


def summarize(scores: Sequence[Score], trusted: Iterable[str]) -> dict[str, dict]:
    """Return the mean of every column over the prompts that ask for it, with its interval; null without a judge."""
    trusted, found = {*trusted, "all"}, {}
    for column in (*COLUMNS, "all"):
        values = np.array([one[column] for one in scores if column in one])
        if not len(values) or column not in trusted:
            found[column] = {"mean": None, "low": None, "high": None, "prompts": len(values)}
        else:
            found[column] = mean_with_interval(values)
    return found


def evaluate_variance(pipeline: Pipeline, seed: int, format: tuple[int, int, int]) -> dict[str, dict]:
    """Return how much of the variance of ground and sky colour prompts explain, in the model's clips and true renders.

    Each with its 95 % bootstrap interval over prompts.
    """
    columns, rows, frames = format
    seconds = frames / pipeline.settings.fps
    scenes = setting_scenes(seed, VARIANCE_SEEDS, event_seconds(2, frames, pipeline.settings.fps))
    requests = []
    for group in scenes:
        text = write_prompt(group[0], rng=clip_rng(seed, "test", 0, 7), mention=MENTIONED)
        requests += [
            Request(prompt=text, seed=len(requests) + one, size=(columns, rows), seconds=seconds)
            for one in range(VARIANCE_SEEDS)
        ]
    clips = {
        "model": generate_clips(pipeline, requests, VARIANCE),
        "true renders": (true_render(scene, format, pipeline) for group in scenes for scene in group),
    }
    report: dict[str, dict] = {"prompts": {"count": len(scenes), "seeds": VARIANCE_SEEDS}}
    for row, some in clips.items():
        strips = list(map(strip_colours, some))
        report[row] = {}
        for index, name in enumerate(("ground", "sky")):
            colours = rearrange(np.stack([one[index] for one in strips]), "(P S) rgb -> P S rgb", S=VARIANCE_SEEDS)
            report[row][name] = explained_with_interval(colours)
    return report


def strip_colours(pixels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the median colours (3,) of the ground, the lowest strip of a clip (1, 3, F, Y, X), and of the sky."""
    strip = max(1, pixels.shape[3] // EDGE)
    parts = (pixels[0, :, :, -strip:], pixels[0, :, :, :strip])
    ground, sky = (part.flatten(1).median(1).values.double().cpu().numpy() for part in parts)
    return ground, sky


def explained_variance(colours: np.ndarray) -> float:
    """Return the share of the variance of values (prompts, seeds, channels) that lies between prompts.

    The intraclass correlation ICC(1) of Shrout and Fleiss 1979, summed over channels: 0 on average if prompts have no
    effect, unlike the plain ratio of variances.
    """
    seeds = colours.shape[1]
    within = colours.var(axis=1, ddof=1).mean(0).sum()
    between = colours.mean(1).var(axis=0, ddof=1).sum() - within / seeds
    return float(between / (between + within)) if between + within > 0 else 0.0


def explained_with_interval(colours: np.ndarray, draws: int = 1000) -> dict[str, float]:
    """Return the explained variance of colours (prompts, seeds, 3) with its bootstrap interval over prompts."""
    rng = np.random.default_rng(0)
    drawn = [explained_variance(colours[rng.integers(0, len(colours), len(colours))]) for _ in range(draws)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {
        "mean": round(explained_variance(colours), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
        "prompts": len(colours),
    }
