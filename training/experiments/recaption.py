"""Does a model follow prompts better when a captioner recaptions its training clips?

The report on DALL-E 3 claims so (Betker et al. 2023, "Improving Image Generation with Better Captions"). Models of the
same shape and steps are trained on the same clips with (a) their short labels, (b) the captioner's captions, (c) true
dense captions; in (b) and (c) one caption in twenty is the label. Three seeds of each are judged on the same scenes,
prompted plainly, as people type, and with a dense caption, as a perfect upsampler would.

python -m training.experiments.recaption
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import islice, pairwise
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from captioning.coca import load_coca
from dit.pipeline import Pipeline
from training.config import DiTRun, WorldRun
from training.dataset import Bucket, make_world, open_bucket, select_captions
from training.evaluation.captions import caption_bucket
from training.evaluation.evaluate import JUDGED_ATTRIBUTES, SETS, PromptStyle, generate_clips, predict_clips, scenes_of
from training.evaluation.judge import FORMAT, Judge, true_labels
from training.evaluation.metrics import bootstrap_interval
from training.examples import LatentSource
from training.presets.first import dit_ablation
from training.train_dit import train
from training.world.scene import Scene
from vae.files import atomic_write
from vae.model import VideoVAE
from vae.weights import load_strictly

DATA, RUNS, MODELS = Path("data/recaption"), Path("runs/recaption"), Path("app/models")
CAPTION_SETS = ("labels", "recaptioned", "dense")
SEEDS = (0, 1, 2)
OF_TWENTY = 19  # captions that are not the label: 95 %, as for DALL-E 3
PROMPT_STYLES = ("plain", "dense")  # phrasings of the prompts


def world_run() -> WorldRun:
    """Return the run that renders the clips; its seed differs from that of the captioner's clips."""
    return WorldRun(folder=DATA / "world", seed=1, clips=(4_000,))


def dit_run(caption_set: str, seed: int, version: str) -> DiTRun:
    """Return the run that trains on one caption set, with the shipped model's VAE and text tower."""
    return replace(
        dit_ablation(),
        data=DATA / version / caption_set,
        held_out=DATA / "held-out",
        out=RUNS / version / f"{caption_set}-{seed}",
        seed=seed,
        saliency_weight=4.0,
    )


def training_captions(caption_set: str, captions: dict[str, list[str]], recaption: str) -> dict[str, list[str]]:
    """Return the captions of a clip, of which training draws one per step, given the world's and the captioner's."""
    label, dense = select_captions(captions, "label"), select_captions(captions, "dense")[0]
    if caption_set == "labels":
        return {"moving": label}
    return {"moving": OF_TWENTY * [recaption if caption_set == "recaptioned" else dense] + label}


def write_variant(base: Bucket, folder: Path, caption_set: str, recaptions: list[str]) -> None:
    """Make a data set of the same clips and latents with another caption set."""
    variant = open_bucket(folder, base.format)
    variant.folder.mkdir(parents=True, exist_ok=True)
    for path in (base.folder / "pixels.npy", *base.folder.glob("latents-*.npy")):
        link = variant.folder / path.name
        link.unlink(missing_ok=True)
        link.symlink_to(path.resolve())
    lines = [training_captions(caption_set, *pair) for pair in zip(base.captions, recaptions, strict=True)]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (variant.folder / "captions.jsonl").write_text(text, encoding="utf-8")
    (variant.folder / "state.json").write_text(json.dumps(base.state))


def summarize(correct: dict[str, np.ndarray]) -> dict[str, dict]:
    """Return the share of prompts followed, by attribute, given what is correct as (seeds, prompts).

    Each with its 95 % interval over prompts, and the share by seed.
    """
    return {
        name: mean_over_prompts(values.mean(0)) | {"by seed": [round(float(seed), 4) for seed in values.mean(1)]}
        for name, values in correct.items()
    }


def mean_over_prompts(values: np.ndarray) -> dict[str, float]:
    """Return the mean of values (prompts,) and its 95 % interval."""
    return dict(zip(("mean", "low", "high"), (round(value, 4) for value in bootstrap_interval(values)), strict=True))


def compare_sets(correct: dict[str, dict[str, np.ndarray]]) -> dict[str, dict]:
    """Return by how much each caption set is better than the one before it, paired by prompt."""
    return {
        f"{after} over {before}": {
            name: mean_over_prompts((values - correct[before][name]).mean(0)) for name, values in correct[after].items()
        }
        for before, after in pairwise(CAPTION_SETS)
    }


def followed_prompts(pipeline: Pipeline, judge: Judge, scenes: list[Scene], phrasing: str) -> dict[str, list[float]]:
    """Return for every scene whether a generated clip shows it (1 or 0), by attribute and for "all" of them."""
    clips = generate_clips(pipeline, PromptStyle(phrasing).requests(scenes, pipeline), phrasing)
    predictions, labels = list(predict_clips(judge, clips)), [true_labels(scene) for scene in scenes]
    correct = {
        name: [float(found[name] == label[name]) for found, label in zip(predictions, labels, strict=True)]
        for name in JUDGED_ATTRIBUTES
    }
    return correct | {"all": [min(values) for values in zip(*correct.values(), strict=True)]}


def train_and_judge(run: DiTRun, prompts: int, threads: int) -> dict[str, dict[str, list[float]]]:
    """Train one model and judge it; return what it followed, by phrasing and attribute. A stored result is read."""
    path = run.out / f"followed-{prompts}.json"
    if not path.exists():
        torch.set_num_threads(threads)
        train(run)
        pipeline, judge = Pipeline.from_pretrained(run.out / "model"), load_strictly(Judge, MODELS / "judge")
        scenes = list(islice(scenes_of(SETS[0], 0), prompts))
        text = json.dumps({phrasing: followed_prompts(pipeline, judge, scenes, phrasing) for phrasing in PROMPT_STYLES})
        with atomic_write(path) as temporary:
            temporary.write_text(text)
    return json.loads(path.read_text())


def main(prompts: int = 100, captioner: Path = MODELS / "captioner", parallel: int = 1) -> dict:
    """Make the data, train nine models and judge them, `parallel` at a time in processes that share the cores.

    Writes report.json and report.png under runs/recaption/VERSION, with the version of the captioner. Stopped and
    started again, it continues.
    """
    make_world(world_run())
    make_world(replace(world_run(), folder=DATA / "held-out", split="test", clips=(64,)))
    base, recaptioner = open_bucket(world_run().folder, FORMAT), load_coca(captioner)
    version = recaptioner.version
    recaptions = caption_bucket(recaptioner, base, RUNS / version / "written.jsonl")
    first = dit_run("labels", 0, version)
    vae = load_strictly(VideoVAE, first.vae)
    for folder in (world_run().folder, first.held_out):
        LatentSource.open(first, folder, FORMAT, vae, vae.encoder_hash())  # encode once, not nine times
    for caption_set in CAPTION_SETS:
        write_variant(base, DATA / version / caption_set, caption_set, recaptions)
    runs = [(caption_set, dit_run(caption_set, seed, version)) for seed in SEEDS for caption_set in CAPTION_SETS]
    threads = max(1, torch.get_num_threads() // parallel)
    with ProcessPoolExecutor(parallel, get_context("spawn")) as pool:
        futures = [(caption_set, pool.submit(train_and_judge, run, prompts, threads)) for caption_set, run in runs]
        results = [(caption_set, future.result()) for caption_set, future in futures]
    correct = {
        phrasing: {
            caption_set: {
                name: np.array([result[phrasing][name] for own, result in results if own == caption_set])
                for name in (*JUDGED_ATTRIBUTES, "all")
            }
            for caption_set in CAPTION_SETS
        }
        for phrasing in PROMPT_STYLES
    }
    report = {
        phrasing: {caption_set: summarize(own) for caption_set, own in by_set.items()} | compare_sets(by_set)
        for phrasing, by_set in correct.items()
    }
    (RUNS / version / "report.json").write_text(json.dumps(report, indent=2))
    draw_report(report).save(RUNS / version / "report.png")
    print(json.dumps(report, indent=2))
    return report


def draw_report(report: dict) -> Image.Image:
    """Draw the report: for each attribute a bar with its interval per caption set."""
    names, bar, line, gap = (*JUDGED_ATTRIBUTES, "all"), 320, 15, 12
    left, block = 150, len(CAPTION_SETS) * line + gap
    page = Image.new("RGB", (len(PROMPT_STYLES) * (left + bar + 60), 50 + len(names) * block), "white")
    draw, shades = ImageDraw.Draw(page), dict(zip(CAPTION_SETS, ("silver", "steelblue", "darkseagreen"), strict=True))
    for column, phrasing in enumerate(PROMPT_STYLES):
        x = left + column * (left + bar + 60)
        draw.text((x, 10), f"{phrasing} prompts, % followed", "black")
        for row, name in enumerate(names):
            y = 40 + row * block
            draw.text((x - left + 10, y), name, "black")
            for number, caption_set in enumerate(CAPTION_SETS):
                top, value = y + number * line, report[phrasing][caption_set][name]
                low, mean, high = (x + bar * value[key] for key in ("low", "mean", "high"))
                draw.text((x - 82, top), caption_set, "black")
                draw.rectangle((x, top + 2, mean, top + line - 3), fill=shades[caption_set])
                draw.line((low, top + line // 2, high, top + line // 2), "black", 2)
                draw.text((x + bar + 8, top), f"{100 * value['mean']:.0f}", "black")
    return page


if __name__ == "__main__":
    description = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser("python -m training.experiments.recaption", description=description)
    parser.add_argument("--prompts", type=int, default=100, help="judged per model (default 100)")
    parser.add_argument("--captioner", type=Path, default=MODELS / "captioner", help="a captioner's folder")
    parser.add_argument("--parallel", type=int, default=1, metavar="N", help="models trained at once (default 1)")
    main(**vars(parser.parse_args()))
