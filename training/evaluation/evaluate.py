"""Measure how well a model follows prompts: prompts from the world's grammar, generated clips, and the judge.

Four reference rows go with the model's: true renders of the same scenes (the limit of what the judge can read), the
same through the model's VAE, the model's clips with shuffled prompts (chance), and an untrained model of its shape.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from tqdm import tqdm

from captioning.coca import CoCaCaptioner, load_coca
from captioning.text_encoder import shorten_to_limit
from captioning.upsampler import Upsampler, load_upsampler
from dit.model import DiT
from dit.pipeline import Pipeline
from dit.request import Request
from training.evaluation.judge import ATTRIBUTES, FORMAT, REPORT, TRUSTED_ACCURACY, Judge, true_labels
from training.evaluation.metrics import bootstrap_interval
from training.synonyms import draw_prompt
from training.world import make_clips
from training.world.scene import SPLITS, Scene, clip_rng, sample_scene
from training.world.words import write_caption, write_prompt
from vae.video.pixels import contact_sheet
from vae.weights import load_strictly, read_json

JUDGED_ATTRIBUTES = ("colour", "shape", "size", "motion", "camera")  # that a prompt states of one object
FIRST_INDEX = 700_000_000  # of the scenes: beyond those of any data set
PACK_SIZE = 8  # clips per pack
UNTRAINED_PROMPTS = 32  # enough for the untrained row, which is chance
SHOWN_CLIPS = 6  # of each set, in the figure
# How prompts are worded: as captions are; with the synonyms that the upsampler trains on; with words that no model
# trains on; in Chinese; as a label, which states less; as a dense caption, which states more.
PHRASINGS = ("plain", "synonyms", "reserved", "chinese", "label", "dense")


@dataclass(frozen=True)
class PromptSet:
    """A set of prompts: the scenes of a split with these numbers of objects."""

    name: str
    split: str
    objects: tuple[int, ...]


SETS = (
    PromptSet("one object", "test", (1,)),
    PromptSet("one object, pairs never seen together", "combinations", (1,)),
    PromptSet("two to four objects", "test", (2, 3, 4)),
)


def scenes_of(prompt_set: PromptSet, seed: int) -> Iterator[Scene]:
    """Yield the scenes of a set without end; the same seed gives the same scenes."""
    assert prompt_set.split in SPLITS
    for index in count(FIRST_INDEX):
        scene = sample_scene(seed, prompt_set.split, index)
        if len(scene.things) in prompt_set.objects:
            yield scene


def prompt_of(scene: Scene, phrasing: str = "plain") -> str:
    """Write the prompt of a scene, in one of PHRASINGS. It states all judged attributes; a label, colour and shape."""
    rng = clip_rng(scene.seed, scene.split, scene.index, 7)
    if phrasing in ("label", "dense"):
        return write_caption(scene, phrasing, rng=rng)
    mention, language = ("colour", "shape", "size", "event", "camera"), "zh" if phrasing == "chinese" else "en"
    if phrasing == "synonyms":
        return draw_prompt(scene, "en", rng, mention, synonym_probability=1.0)
    return write_prompt(scene, language, rng=rng, mention=mention, reserved=phrasing == "reserved")


@dataclass(frozen=True)
class PromptStyle:
    """How prompts are made: their phrasing, one of PHRASINGS, and the upsampler that rewrites them, if any."""

    phrasing: str = "plain"
    upsampler: Upsampler | None = None

    @property
    def stated(self) -> tuple[str, ...]:
        """The judged attributes that a prompt states."""
        return ("colour", "shape") if self.phrasing == "label" else JUDGED_ATTRIBUTES

    def requests(self, scenes: list[Scene], pipeline: Pipeline) -> list[Request]:
        """Return a request for each scene, with seeds 0, 1, ...; upsampled prompts are cut to the token limit."""
        columns, height, frames = FORMAT
        requests = []
        for seed, scene in enumerate(scenes):
            text = prompt_of(scene, self.phrasing)
            request = Request(prompt=text, seed=seed, size=(columns, height), seconds=frames / pipeline.settings.fps)
            if self.upsampler:
                upsampled = shorten_to_limit(pipeline.tokenizer, self.upsampler.upsample(text, seed)) or text
                request = replace(request, upsample=self.upsampler.name, upsampled_prompt=upsampled)
            requests.append(request)
        return requests


def evaluate(
    model: Path,
    judge: Path,
    output: Path,
    prompts: int = 200,
    seed: int = 0,
    sets: Iterable[PromptSet] = SETS,
    phrasing: str = "plain",
    upsample: str | None = None,
    captioner: Path | None = None,
) -> dict:
    """Evaluate a model folder on `prompts` prompts of each set; return the report.

    Writes report.json and report.png under `output`. Prompts are in one of PHRASINGS and rewritten by the upsampler
    named `upsample`, if any. For each attribute, and for all that a prompt states, the report gives the accuracy with a
    95 % bootstrap interval over prompts. With `captioner`, the folder of our own captioner, it also gives alignment
    scores of clips and plain prompts. Raises ValueError for wrong arguments.
    """
    if prompts < 1:
        raise ValueError(f"prompts must be at least 1; got {prompts}")
    if phrasing not in PHRASINGS:
        raise ValueError(f"phrasing must be one of {', '.join(PHRASINGS)}; got {phrasing!r}")
    style = PromptStyle(phrasing, load_upsampler(upsample) if upsample else None)
    output.mkdir(parents=True, exist_ok=True)
    pipeline = Pipeline.from_pretrained(model)
    judges = Judges(load_strictly(Judge, judge), load_coca(captioner) if captioner else None)
    trust = read_json(judge / REPORT)
    for name in JUDGED_ATTRIBUTES:
        if trust["one object"][name] < TRUSTED_ACCURACY:
            print(f"the judge reads {name} right in {trust['one object'][name]:.1%} of true renders", file=sys.stderr)
    if torch.cuda.is_available():
        pipeline.to("cuda")
        networks: list[torch.nn.Module] = [judges.judge, *([judges.captioner.model] if judges.captioner else [])]
        for network in networks:
            network.to("cuda")
    report: dict = {
        "model": pipeline.hash,
        "judge": trust,
        "seed": seed,
        "phrasing": phrasing,
        "upsample": upsample,
        "captioner": judges.captioner and judges.captioner.version,
        "settings": asdict(pipeline.settings),
        "sets": {},
    }
    shown: list[tuple[str, Tensor]] = []
    for prompt_set in sets:
        scenes = list(islice(scenes_of(prompt_set, seed), prompts))
        report["sets"][prompt_set.name] = evaluate_set(pipeline, judges, scenes, prompt_set.name, style, shown)
    (output / "report.json").write_text(json.dumps(report, indent=2))
    draw_report(report, shown).save(output / "report.png")
    return report


def evaluate_set(
    pipeline: Pipeline,
    judges: Judges,
    scenes: list[Scene],
    name: str,
    style: PromptStyle,
    shown: list[tuple[str, Tensor]],
) -> dict:
    """Return the rows of one set of prompts, the model's and its references; append the first clips to `shown`."""
    labels = [true_labels(scene) for scene in scenes]
    texts = judges.captioner.encode_texts([prompt_of(scene) for scene in scenes]) if judges.captioner else None
    requests = style.requests(scenes, pipeline)
    own = judges.evaluate(generate_clips(pipeline, requests, name, shown))
    renders = [clip.video.float()[None] / 127.5 - 1 for clip in true_clips(scenes)]
    reconstructed = (pipeline.vae.decode(pipeline.vae.encode(clip.to(pipeline.device))) for clip in renders)
    shuffled = np.roll(np.arange(len(labels)), -(len(labels) // 2))
    untrained = generate_clips(untrained_like(pipeline), requests[:UNTRAINED_PROMPTS], f"{name}, untrained")
    few = judges.evaluate(untrained)

    def row(clips: JudgedClips, order: np.ndarray | slice = slice(None)) -> dict[str, dict]:
        wanted = [labels[n] for n in np.arange(len(labels))[order][: len(clips.predictions)]]
        scores = attribute_accuracy(clips.predictions, wanted, style.stated)
        return scores if texts is None else scores | alignment_scores(clips.embeddings @ texts[order].T)

    return {
        "model": row(own),
        "true renders": row(judges.evaluate(renders)),
        "renders through the VAE": row(judges.evaluate(reconstructed)),
        "shuffled prompts": row(own, shuffled),
        "untrained": row(few),
    }


def untrained_like(pipeline: Pipeline) -> Pipeline:
    """Return the same pipeline around a transformer with fresh weights."""
    parts = (pipeline.vae, pipeline.text_encoder, pipeline.tokenizer, pipeline.scheduler)
    fresh: Any = DiT.from_dit_config(pipeline.transformer.dit_config)
    return Pipeline(fresh.to(pipeline.device), *parts, pipeline.settings)


def generate_clips(
    pipeline: Pipeline, requests: list[Request], name: str, shown: list[tuple[str, Tensor]] | None = None
) -> Iterator[Tensor]:
    """Generate a clip (1, 3, F, Y, X) for each request; append the first ones with their prompts to `shown`."""
    for sample in tqdm(pipeline.generate(requests, pack_size=PACK_SIZE), name, len(requests)):
        clip = pipeline.pixels(sample)
        if shown is not None and sample.request.seed < SHOWN_CLIPS:
            shown.append((sample.request.prompt, clip.cpu()))
        yield clip[None]


def true_clips(scenes: list[Scene]):
    """Render the scenes themselves."""
    columns, height, frames = FORMAT
    first = scenes[0]
    indices = [scene.index for scene in scenes]
    return make_clips(indices, first.seed, first.split, rows=height, columns=columns, frames=frames)


def predict_clips(judge: Judge, clips: Iterable[Tensor]) -> Iterator[dict[str, str]]:
    """Return the judge's predictions for each clip (1, 3, F, Y, X)."""
    for clip in clips:
        yield {name: values[0] for name, values in judge.predict(clip.to(judge.device)).items()}


@dataclass(frozen=True)
class JudgedClips:
    """The judge's predictions for clips, and the captioner's embeddings (N, D) of them, empty without a captioner."""

    predictions: list[dict[str, str]]
    embeddings: Tensor


@dataclass(frozen=True)
class Judges:
    """The models that evaluate clips: a judge, and a captioner for alignment scores, if any."""

    judge: Judge
    captioner: CoCaCaptioner | None = None

    def evaluate(self, clips: Iterable[Tensor]) -> JudgedClips:
        """Evaluate clips (1, 3, F, Y, X), each generated or decoded only once."""
        predictions, embeddings = [], []
        for clip in clips:
            predictions += predict_clips(self.judge, [clip])
            embeddings += [self.captioner.encode_videos(clip)] if self.captioner else []
        return JudgedClips(predictions, torch.cat(embeddings) if embeddings else torch.empty(0))


def alignment_scores(cosines: Tensor) -> dict[str, dict]:
    """Return how well clips match their prompts, given cosine similarities (clips, prompts), own ones on the diagonal.

    "clip_score" is the mean similarity to the own prompt (CLIPScore, Hessel et al. 2021, arXiv 2104.08718).
    "r_precision" is the share of clips that match no other prompt better (R-precision, Xu et al. 2018, arXiv
    1711.10485).
    """
    own = cosines.diagonal()
    best = cosines.amax(1) <= own
    return {
        "clip_score": mean_with_interval(own.double().numpy()),
        "r_precision": mean_with_interval(best.double().numpy()),
    }


def attribute_accuracy(
    predictions: Iterable[dict[str, str]], labels: list[dict[str, str]], stated: tuple[str, ...] = JUDGED_ATTRIBUTES
) -> dict[str, dict]:
    """Return the share of clips with the right prediction, by attribute, and in "all" of the `stated` attributes."""
    table = np.array(
        [[found[name] == label[name] for name in ATTRIBUTES] for found, label in zip(predictions, labels, strict=True)]
    )
    correct = {name: table[:, n] for n, name in enumerate(ATTRIBUTES)}
    correct["all"] = np.all([correct[name] for name in stated], axis=0)
    return {name: mean_with_interval(values) for name, values in correct.items()}


def mean_with_interval(values: np.ndarray) -> dict[str, float]:
    """Return the mean over prompts, its 95 % bootstrap interval, and the number of prompts."""
    mean, low, high = bootstrap_interval(values)
    return {"mean": round(mean, 4), "low": round(low, 4), "high": round(high, 4), "prompts": len(values)}


def draw_report(report: dict, shown: list[tuple[str, Tensor]]) -> Image.Image:
    """Draw the report: a bar with its interval for every attribute and row, and some of the clips.

    A value of None, where no prompt asks or the judge cannot be trusted, is a dash.
    """
    names = list(next(iter(report["sets"].values()))["model"])
    clips = Image.new("RGB", (1, 1), "white")
    if shown:
        sheet = contact_sheet([clip for _, clip in shown], captions=[text for text, _ in shown], scale=2)
        clips = Image.fromarray(sheet.permute(1, 2, 0).numpy())
    left, bar, line = 190, 90, 16
    height = sum(3 + len(rows) for rows in report["sets"].values()) * line + 20
    page = Image.new("RGB", (max(left + len(names) * (bar + 12) + 20, clips.width), height + clips.height), "white")
    page.paste(clips, (0, height))
    draw = ImageDraw.Draw(page)
    y = 8
    for title, rows in report["sets"].items():
        draw.text((8, y), title, "black")
        for n, name in enumerate(names):
            draw.text((left + n * (bar + 12), y + line), name, "black")
        y += 2 * line
        for row, values in rows.items():
            draw.text((8, y), row, "black")
            for n, name in enumerate(names):
                x, value = left + n * (bar + 12), values[name]
                draw.rectangle((x, y + 2, x + bar, y + line - 4), outline="lightgrey")
                if value["mean"] is None:
                    draw.text((x + bar - 24, y), "-", "black")
                    continue
                low, mean, high = (x + bar * max(0.0, value[key]) for key in ("low", "mean", "high"))
                draw.rectangle((x, y + 2, mean, y + line - 4), fill="steelblue" if row == "model" else "silver")
                draw.line((low, y + line // 2 - 1, high, y + line // 2 - 1), "black", 2)
                draw.text((x + bar - 24, y), f"{100 * value['mean']:.0f}", "black")
            y += line
        y += line
    return page
