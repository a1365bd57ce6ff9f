"""Does a model follow prompts better when a captioner describes its clips anew?

The report on DALL-E 3 says so (Betker et al. 2023, "Improving Image Generation with Better Captions"). Here it is
measured: models of one shape and as many steps, trained on the same clips with (a) their thin labels, (b) what the
captioner writes of them, (c) a dense caption that is true; in (b) and (c) one caption in twenty is the label. Three
seeds of each are judged on the same scenes, asked for in a line as people type it and in a dense caption, as from an
upsampler that makes no mistakes.

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
from training.presets import dit_ablation
from training.train_dit import train
from training.world.scene import Scene
from vae.files import atomic_write
from vae.model import VideoVAE
from vae.weights import load_strictly

DATA, RUNS, MODELS = Path("data/recaption"), Path("runs/recaption"), Path("app/models")
CAPTION_SETS = ("labels", "recaptioned", "dense")
SEEDS = (0, 1, 2)
OF_TWENTY = 19  # captions are the captioner's: 95 %, as for DALL-E 3
PHRASINGS_TESTED = ("plain", "dense")  # how scenes are asked for


def world() -> WorldRun:
    """Make clips that the captioner never saw: those of another seed."""
    return WorldRun(folder=DATA / "world", seed=1, clips=(4_000,))


def run_of(kind: str, seed: int, version: str) -> DiTRun:
    """Return what is trained on one kind of captions, between the shipped model's VAE and text tower."""
    return replace(
        dit_ablation(),
        data=DATA / version / kind,
        held_out=DATA / "held-out",
        out=RUNS / version / f"{kind}-{seed}",
        seed=seed,
        saliency_weight=4.0,
    )


def captions(kind: str, before: dict[str, list[str]], written: str) -> dict[str, list[str]]:
    """Return the captions of a clip from which one is drawn at every step: of a kind, given the world's and the
    captioner's.
    """
    label, true = select_captions(before, "label"), select_captions(before, "dense")[0]
    return {"moving": label if kind == "labels" else OF_TWENTY * [written if kind == "recaptioned" else true] + label}


def write_variant(base: Bucket, folder: Path, kind: str, written: list[str]) -> None:
    """Make a data set of the same clips and latents with other captions."""
    after = open_bucket(folder, base.format)
    after.folder.mkdir(parents=True, exist_ok=True)
    for path in (base.folder / "pixels.npy", *base.folder.glob("latents-*.npy")):
        link = after.folder / path.name
        link.unlink(missing_ok=True)
        link.symlink_to(path.resolve())
    lines = [captions(kind, *pair) for pair in zip(base.captions, written, strict=True)]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (after.folder / "captions.jsonl").write_text(text, encoding="utf-8")
    (after.folder / "state.json").write_text(json.dumps(base.state))


def summarize(right: dict[str, np.ndarray]) -> dict[str, dict]:
    """Return the share of prompts followed, with its 95 % interval over prompts, of what was right (seeds, prompts) of
    each attribute; and the share by seed.
    """
    found: dict[str, dict] = {}
    for name, values in right.items():
        found[name] = between(values.mean(0)) | {"by seed": [round(float(seed), 4) for seed in values.mean(1)]}
    return found


def between(values: np.ndarray) -> dict[str, float]:
    """Return a mean over prompts and its 95 % interval."""
    return dict(zip(("mean", "low", "high"), (round(value, 4) for value in bootstrap_interval(values)), strict=True))


def compare_sets(rights: dict[str, dict[str, np.ndarray]]) -> dict[str, dict]:
    """Return by how much each kind is better than the one before it, prompt by prompt."""
    return {
        f"{after} over {before}": {
            name: between((right - rights[before][name]).mean(0)) for name, right in rights[after].items()
        }
        for before, after in pairwise(CAPTION_SETS)
    }


def followed(pipeline: Pipeline, eye: Judge, scenes: list[Scene], words: str) -> dict[str, list[float]]:
    """Return of each attribute, and of all together, for which scenes (prompts,) a model's clip shows it."""
    found = list(predict_clips(eye, generate_clips(pipeline, PromptStyle(words).requests(scenes, pipeline), words)))
    truths = [true_labels(scene) for scene in scenes]
    right = {
        name: [float(one[name] == truth[name]) for one, truth in zip(found, truths, strict=True)]
        for name in JUDGED_ATTRIBUTES
    }
    return right | {"all": [min(values) for values in zip(*right.values(), strict=True)]}


def one(run: DiTRun, prompts: int, threads: int) -> dict[str, dict[str, list[float]]]:
    """Train one of the models and judge it, by words asked in and attribute; done before, it is read again."""
    path = run.out / f"followed-{prompts}.json"
    if not path.exists():
        torch.set_num_threads(threads)
        train(run)
        pipeline, eye = Pipeline.from_pretrained(run.out / "model"), load_strictly(Judge, MODELS / "judge")
        scenes = list(islice(scenes_of(SETS[0], 0), prompts))
        text = json.dumps({words: followed(pipeline, eye, scenes, words) for words in PHRASINGS_TESTED})
        with atomic_write(path) as temporary:
            temporary.write_text(text)
    return json.loads(path.read_text())


def main(prompts: int = 100, captioner: Path = MODELS / "captioner", together: int = 1) -> dict:
    """Make the data, train nine models and judge them, so many `together`, in processes that share the cores; writes a
    report.json and a report.png under runs/recaption/VERSION, where the captioner's version is part of it all. Stopped
    and started again, it goes on where it was.
    """
    make_world(world())
    make_world(replace(world(), folder=DATA / "held-out", split="test", clips=(64,)))
    base, writer = open_bucket(world().folder, FORMAT), load_coca(captioner)
    written = caption_bucket(writer, base, RUNS / writer.version / "written.jsonl")
    first = run_of("labels", 0, writer.version)
    vae = load_strictly(VideoVAE, first.vae)
    for folder in (world().folder, first.held_out):
        LatentSource.open(first, folder, FORMAT, vae, vae.encoder_hash())  # coded once, not nine times
    for kind in CAPTION_SETS:
        write_variant(base, DATA / writer.version / kind, kind, written)
    runs = [(kind, run_of(kind, seed, writer.version)) for seed in SEEDS for kind in CAPTION_SETS]
    threads = max(1, torch.get_num_threads() // together)
    with ProcessPoolExecutor(together, get_context("spawn")) as pool:
        asked = [(kind, pool.submit(one, run, prompts, threads)) for kind, run in runs]
        found = [(kind, future.result()) for kind, future in asked]
    rights = {
        words: {
            kind: {
                name: np.array([right[words][name] for own, right in found if own == kind])
                for name in (*JUDGED_ATTRIBUTES, "all")
            }
            for kind in CAPTION_SETS
        }
        for words in PHRASINGS_TESTED
    }
    report = {
        words: {kind: summarize(right) for kind, right in right_of.items()} | compare_sets(right_of)
        for words, right_of in rights.items()
    }
    (RUNS / writer.version / "report.json").write_text(json.dumps(report, indent=2))
    draw_report(report).save(RUNS / writer.version / "report.png")
    print(json.dumps(report, indent=2))
    return report


def draw_report(report: dict) -> Image.Image:
    """Draw the report: of each attribute a bar for each kind of captions, with its interval."""
    names, bar, line, gap = (*JUDGED_ATTRIBUTES, "all"), 320, 15, 12
    left, block = 150, len(CAPTION_SETS) * line + gap
    page = Image.new("RGB", (len(PHRASINGS_TESTED) * (left + bar + 60), 50 + len(names) * block), "white")
    draw, shades = ImageDraw.Draw(page), dict(zip(CAPTION_SETS, ("silver", "steelblue", "darkseagreen"), strict=True))
    for column, words in enumerate(PHRASINGS_TESTED):
        x = left + column * (left + bar + 60)
        draw.text((x, 10), f"asked in {words} words, % of prompts", "black")
        for row, name in enumerate(names):
            y = 40 + row * block
            draw.text((x - left + 10, y), name, "black")
            for number, kind in enumerate(CAPTION_SETS):
                top, value = y + number * line, report[words][kind][name]
                low, mean, high = (x + bar * value[key] for key in ("low", "mean", "high"))
                draw.text((x - 82, top), kind, "black")
                draw.rectangle((x, top + 2, mean, top + line - 3), fill=shades[kind])
                draw.line((low, top + line // 2, high, top + line // 2), "black", 2)
                draw.text((x + bar + 8, top), f"{100 * value['mean']:.0f}", "black")
    return page


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m training.experiments.recaption", description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--captioner", type=Path, default=MODELS / "captioner", help="a captioner's folder")
    parser.add_argument("--together", type=int, default=1, metavar="N", help="models trained at once (default 1)")
    main(**vars(parser.parse_args()))
