"""How well does a model follow prompts? Prompts from the world's grammar, clips from the model, a judge that reads
pixels.

Four reference rows stand beside the model: true renders of the same scenes (what the judge can read at best), the same
through the model's VAE, the model's clips against each other's prompts (chance), and the same architecture untrained.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import count, islice
from pathlib import Path

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
from training.world.scene import SPLITS, Scene, rng_of, sample_scene
from training.world.words import caption, prompt
from vae.video.pixels import contact_sheet
from vae.weights import load_strictly, read_json

JUDGED_ATTRIBUTES = ("colour", "shape", "size", "motion", "camera")  # what a prompt says of one object
FIRST = 700_000_000  # the first index looked at: far beyond any clip that a data set holds
TOGETHER = 8  # clips in a pack
UNTRAINED = 32  # prompts for the untrained row, which chance settles
# How prompts are said: in the words of captions, of the thesaurus, or in ones that were taught to nothing; in Chinese;
# and with less in them, or more.
PHRASINGS = ("plain", "synonyms", "reserved", "chinese", "label", "dense")


@dataclass(frozen=True)
class PromptSet:
    """Which prompts: scenes of a split with so many objects."""

    name: str
    split: str
    objects: tuple[int, ...]


SETS = (
    PromptSet("one object", "test", (1,)),
    PromptSet("one object, pairs never seen together", "combinations", (1,)),
    PromptSet("two to four objects", "test", (2, 3, 4)),
)


def scenes_of(chosen: PromptSet, seed: int) -> Iterator[Scene]:
    """List a set's scenes without end; the same seed lists the same."""
    assert chosen.split in SPLITS
    for index in count(FIRST):
        scene = sample_scene(seed, chosen.split, index)
        if len(scene.things) in chosen.objects:
            yield scene


def prompt_of(scene: Scene, words: str = "plain") -> str:
    """Write a prompt in one of PHRASINGS. It says all that is judged, but for a label, which says colour and shape."""
    rng = rng_of(scene.seed, scene.split, scene.index, 7)
    if words in ("label", "dense"):
        return caption(scene, words, rng=rng)
    mention = ("colour", "shape", "size", "event", "camera")
    if words == "synonyms":
        return draw_prompt(scene, "en", rng, mention, synonym_probability=1.0)
    return prompt(scene, "zh" if words == "chinese" else "en", rng=rng, mention=mention, reserved=words == "reserved")


@dataclass(frozen=True)
class PromptStyle:
    """How prompts are said, in one of PHRASINGS, and who writes them out before the model reads them, if anybody."""

    words: str = "plain"
    upsampler: Upsampler | None = None

    @property
    def stated(self) -> tuple[str, ...]:
        """What a prompt says of what is judged."""
        return ("colour", "shape") if self.words == "label" else JUDGED_ATTRIBUTES

    def requests(self, scenes: list[Scene], pipeline: Pipeline) -> list[Request]:
        """Ask for a clip of each scene, each with a seed of its own, in no more words than a model reads."""
        columns, height, frames = FORMAT
        found = []
        for seed, scene in enumerate(scenes):
            said = prompt_of(scene, self.words)
            asked = Request(prompt=said, seed=seed, size=(columns, height), seconds=frames / pipeline.settings.fps)
            if self.upsampler:
                written = shorten_to_limit(pipeline.tokenizer, self.upsampler.upsample(said, seed)) or said
                asked = replace(asked, upsample=self.upsampler.name, upsampled_prompt=written)
            found.append(asked)
        return found


def evaluate(
    model: Path,
    judge: Path,
    output: Path,
    prompts: int = 200,
    seed: int = 0,
    sets: Iterable[PromptSet] = SETS,
    words: str = "plain",
    upsample: str | None = None,
    captioner: Path | None = None,
) -> dict:
    """Judge a model folder on `prompts` prompts of each set, said in one of PHRASINGS and written out by the upsampler that
    `upsample` names, if any; writes report.json and report.png under `output`, and returns the report. A `captioner` of
    ours, by its folder, says besides how well clips fit their prompts, as these are said in plain words.

    A prompt's motion, camera, size, colour and shape are each right or wrong, and all that it says together; means come
    with 95 % bootstrap intervals over prompts.
    """
    if prompts < 1:
        raise ValueError(f"prompts must be at least 1; got {prompts}")
    if words not in PHRASINGS:
        raise ValueError(f"words must be one of {', '.join(PHRASINGS)}; got {words!r}")
    asking = PromptStyle(words, load_upsampler(upsample) if upsample else None)
    output.mkdir(parents=True, exist_ok=True)
    pipeline = Pipeline.from_pretrained(model)
    eye, listener = load_strictly(Judge, judge), load_coca(captioner) if captioner else None
    trust = read_json(judge / REPORT)
    for name in JUDGED_ATTRIBUTES:
        if trust["one object"][name] < TRUSTED_ACCURACY:
            print(f"the judge reads {name} right in {trust['one object'][name]:.1%} of true renders", file=sys.stderr)
    if torch.cuda.is_available():
        pipeline.to("cuda"), eye.to("cuda")
        if listener:
            listener.model.to("cuda")
    report: dict = {
        "model": pipeline.hash,
        "judge": trust,
        "seed": seed,
        "words": words,
        "upsample": upsample,
        "captioner": listener and listener.version,
        "settings": asdict(pipeline.settings),
        "sets": {},
    }
    shown: list[tuple[str, Tensor]] = []
    for chosen in sets:
        scenes = list(islice(scenes_of(chosen, seed), prompts))
        report["sets"][chosen.name] = rows(pipeline, eye, listener, scenes, chosen.name, shown, asking)
    (output / "report.json").write_text(json.dumps(report, indent=2))
    draw_report(report, shown).save(output / "report.png")
    return report


def rows(
    pipeline: Pipeline,
    eye: Judge,
    listener: CoCaCaptioner | None,
    scenes: list[Scene],
    name: str,
    shown: list,
    asking: PromptStyle,
) -> dict:
    """Return the rows of one set of prompts: the model and its references."""
    truths = [true_labels(scene) for scene in scenes]
    meant = listener.encode_texts([prompt_of(scene) for scene in scenes]) if listener else None
    requests = asking.requests(scenes, pipeline)
    own = judge_clips(eye, listener, generate_clips(pipeline, requests, name, shown))
    renders = [clip.video.float()[None] / 127.5 - 1 for clip in true_clips(scenes)]
    through = (pipeline.vae.decode(pipeline.vae.encode(clip.to(pipeline.device))) for clip in renders)
    other = np.roll(np.arange(len(truths)), -(len(truths) // 2))
    few = judge_clips(
        eye, listener, generate_clips(untrained_like(pipeline), requests[:UNTRAINED], f"{name}, untrained")
    )

    def row(watched: JudgedClips, wanted: np.ndarray | slice = slice(None)) -> dict[str, dict]:
        asked = [truths[n] for n in np.arange(len(truths))[wanted][: len(watched.readings)]]
        found = attribute_accuracy(watched.readings, asked, asking.stated)
        return found if meant is None else found | alignment_scores(watched.seen @ meant[wanted].T)

    return {
        "model": row(own),
        "true renders": row(judge_clips(eye, listener, renders)),
        "renders through the VAE": row(judge_clips(eye, listener, through)),
        "shuffled prompts": row(own, other),
        "untrained": row(few),
    }


def untrained_like(pipeline: Pipeline) -> Pipeline:
    """Return the same pipeline around a transformer with fresh weights."""
    parts = (pipeline.vae, pipeline.text_encoder, pipeline.tokenizer, pipeline.scheduler)
    return Pipeline(DiT.from_dit_config(pipeline.transformer.dit_config).to(pipeline.device), *parts, pipeline.settings)


def generate_clips(
    pipeline: Pipeline, requests: list[Request], name: str, shown: list | None = None
) -> Iterator[Tensor]:
    """Make a clip (1, 3, F, Y, X) of each request; the first ones are `shown`."""
    for dream in tqdm(pipeline.generate(requests, together=TOGETHER), name, len(requests)):
        clip = pipeline.pixels(dream)
        if shown is not None and dream.request.seed < 6:
            shown.append((dream.request.prompt, clip.cpu()))
        yield clip[None]


def true_clips(scenes: list[Scene]):
    """Render the scenes themselves."""
    columns, height, frames = FORMAT
    first = scenes[0]
    indices = [scene.index for scene in scenes]
    return make_clips(indices, first.seed, first.split, rows=height, columns=columns, frames=frames)


def predict_clips(eye: Judge, clips: Iterable[Tensor]) -> Iterator[dict[str, str]]:
    """Return what the judge reads of each clip (1, 3, F, Y, X)."""
    for clip in clips:
        yield {name: values[0] for name, values in eye.predict(clip.to(eye.device)).items()}


@dataclass(frozen=True)
class JudgedClips:
    """What a judge reads of clips, and where a captioner sees them, vectors (N, D), if one watched."""

    readings: list[dict[str, str]]
    seen: Tensor


def judge_clips(eye: Judge, listener: CoCaCaptioner | None, clips: Iterable[Tensor]) -> JudgedClips:
    """Have clips (1, 3, F, Y, X) watched, each only once."""
    readings, seen = [], []
    for clip in clips:
        readings += predict_clips(eye, [clip])
        seen += [listener.encode_videos(clip)] if listener else []
    return JudgedClips(readings, torch.cat(seen) if seen else torch.empty(0))


def alignment_scores(cosines: Tensor) -> dict[str, dict]:
    """Return how well clips fit the prompts of a set (clips, prompts), each its own on the diagonal: that cosine
    (CLIPScore, Hessel et al. 2021, arXiv 2104.08718), and the share of clips that no other prompt fits better
    (R-precision, Xu et al. 2018, arXiv 1711.10485).
    """
    own = cosines.diagonal()
    best = cosines.amax(1) <= own
    return {"match": average(own.double().numpy()), "found": average(best.double().numpy())}


def attribute_accuracy(
    readings: Iterable[dict[str, str]], truths: list[dict[str, str]], told: tuple[str, ...] = JUDGED_ATTRIBUTES
) -> dict[str, dict]:
    """Return the share of clips that show what is true, by attribute and in all that prompts `told`, with 95 %
    intervals.
    """
    table = np.array(
        [[found[name] == truth[name] for name in ATTRIBUTES] for found, truth in zip(readings, truths, strict=True)]
    )
    columns = {name: table[:, n] for n, name in enumerate(ATTRIBUTES)}
    columns["all"] = np.all([columns[name] for name in told], axis=0)
    return {name: average(values) for name, values in columns.items()}


def average(values: np.ndarray) -> dict[str, float]:
    """Return a mean over prompts, its 95 % interval, and how many they are."""
    mean, low, high = bootstrap_interval(values)
    return {"mean": round(mean, 4), "low": round(low, 4), "high": round(high, 4), "prompts": len(values)}


def draw_report(report: dict, shown: list[tuple[str, Tensor]]) -> Image.Image:
    """Draw the report: a bar with its interval for every attribute and row, and some of the clips."""
    names = list(next(iter(report["sets"].values()))["model"])
    sheet = contact_sheet([clip for _, clip in shown], captions=[text for text, _ in shown], scale=2)
    clips = Image.fromarray(sheet.permute(1, 2, 0).numpy())
    left, bar, line = 190, 90, 16
    height = sum(3 + len(found) for found in report["sets"].values()) * line + 20
    page = Image.new("RGB", (max(left + len(names) * (bar + 12) + 20, clips.width), height + clips.height), "white")
    page.paste(clips, (0, height))
    draw = ImageDraw.Draw(page)
    y = 8
    for title, found in report["sets"].items():
        draw.text((8, y), title, "black")
        for n, name in enumerate(names):
            draw.text((left + n * (bar + 12), y + line), name, "black")
        y += 2 * line
        for row, values in found.items():
            draw.text((8, y), row, "black")
            for n, name in enumerate(names):
                x, value = left + n * (bar + 12), values[name]
                low, mean, high = (x + bar * max(0.0, value[key]) for key in ("low", "mean", "high"))
                draw.rectangle((x, y + 2, x + bar, y + line - 4), outline="lightgrey")
                draw.rectangle((x, y + 2, mean, y + line - 4), fill="steelblue" if row == "model" else "silver")
                draw.line((low, y + line // 2 - 1, high, y + line // 2 - 1), "black", 2)
                draw.text((x + bar - 24, y), f"{100 * value['mean']:.0f}", "black")
            y += line
        y += line
    return page
