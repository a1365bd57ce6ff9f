"""Does a model follow prompts better when a captioner describes its clips anew?

The report on DALL-E 3 says so (Betker et al. 2023, "Improving Image Generation with Better Captions"). Here it is
measured: models of one shape and as many steps, trained on the same clips with (a) their thin labels, (b) what the
captioner writes of them, (c) a dense caption that is true; in (b) and (c) one caption in twenty is the label. Three
seeds of each are judged on the same scenes, asked for in a line as people type it and in a dense caption, as from an
upsampler that makes no mistakes.

python -m training.recaption
"""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
from tqdm import tqdm

from captioning.coca import CoCaCaptioner, load_coca
from dit.pipeline import Pipeline
from training.config import DiTRun, WorldRun
from training.dataset import Bucket, bucket_of, make_world, texts_of
from training.evaluate import JUDGED, SETS, Asking, dreams, read, scenes_of
from training.judge import FORMAT, Judge, truth_of
from training.metrics import interval
from training.presets import dit_probe
from training.train_dit import Source, train
from training.world.scene import Scene
from vae.model import VideoVAE
from vae.weights import load_strictly

DATA, RUNS, MODELS = Path("data/recaption"), Path("runs/recaption"), Path("app/models")
KINDS = ("labels", "recaptioned", "dense")
SEEDS = (0, 1, 2)
OF_TWENTY = 19  # captions are the captioner's: 95 %, as for DALL-E 3
ASKED = ("plain", "dense")  # how scenes are asked for
TOGETHER = 32


def world() -> WorldRun:
    """Make clips that the captioner never saw: those of another seed."""
    return WorldRun(folder=DATA / "world", seed=1, clips=(4_000,))


def run_of(kind: str, seed: int, version: str) -> DiTRun:
    """Return what is trained on one kind of captions, between the shipped model's VAE and text tower."""
    return replace(
        dit_probe(),
        data=DATA / version / kind,
        held_out=DATA / "held-out",
        out=RUNS / version / f"{kind}-{seed}",
        seed=seed,
        emphasis=4.0,
    )


def describe(captioner: CoCaCaptioner, bucket: Bucket, path: Path) -> list[str]:
    """Return the captioner's words on every clip, also in `path`, a line each; begun there, it goes on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = (
        [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")] if path.exists() else []
    )
    whole = whole[: len(whole) // TOGETHER * TOGETHER] if len(whole) < len(bucket) else whole  # the same batches again
    path.write_text("".join(whole))
    texts = [json.loads(line) for line in whole]
    with open(path, "a") as lines:
        for start in tqdm(range(len(texts), len(bucket), TOGETHER), "describe"):
            written = captioner.write(bucket.clips(range(start, min(start + TOGETHER, len(bucket)))))
            texts += written
            lines.write("".join(json.dumps(text) + "\n" for text in written))
            lines.flush()
    return texts


def captions(kind: str, before: dict[str, list[str]], written: str) -> dict[str, list[str]]:
    """Return the captions of a clip from which one is drawn at every step: of a kind, given the world's and the
    captioner's.
    """
    label, true = texts_of(before, "label"), texts_of(before, "dense")[0]
    return {"moving": label if kind == "labels" else OF_TWENTY * [written if kind == "recaptioned" else true] + label}


def variant(base: Bucket, folder: Path, kind: str, written: list[str]) -> None:
    """Make a data set of the same clips and latents with other captions."""
    after = bucket_of(folder, base.format)
    after.folder.mkdir(parents=True, exist_ok=True)
    for path in (base.folder / "pixels.npy", *base.folder.glob("latents-*.npy")):
        link = after.folder / path.name
        link.unlink(missing_ok=True)
        link.symlink_to(path.resolve())
    lines = [captions(kind, *pair) for pair in zip(base.captions, written, strict=True)]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (after.folder / "captions.jsonl").write_text(text, encoding="utf-8")
    (after.folder / "state.json").write_text(json.dumps(base.state))


def summary(right: dict[str, np.ndarray]) -> dict[str, dict]:
    """Return the share of prompts followed, with its 95 % interval over prompts, of what was right (seeds, prompts) of
    each attribute; and the share by seed.
    """
    found: dict[str, dict] = {}
    for name, values in right.items():
        found[name] = between(values.mean(0)) | {"by seed": [round(float(seed), 4) for seed in values.mean(1)]}
    return found


def between(values: np.ndarray) -> dict[str, float]:
    """Return a mean over prompts and its 95 % interval."""
    return dict(zip(("mean", "low", "high"), (round(value, 4) for value in interval(values)), strict=True))


def compare(rights: dict[str, dict[str, np.ndarray]]) -> dict[str, dict]:
    """Return by how much each kind is better than the one before it, prompt by prompt."""
    return {
        f"{after} over {before}": {
            name: between((right - rights[before][name]).mean(0)) for name, right in rights[after].items()
        }
        for before, after in pairwise(KINDS)
    }


def followed(pipeline: Pipeline, eye: Judge, scenes: list[Scene], words: str) -> dict[str, np.ndarray]:
    """Return of each attribute, and of all together, for which scenes (prompts,) a model's clip shows it."""
    found = list(read(eye, dreams(pipeline, Asking(words).requests(scenes, pipeline), words)))
    truths = [truth_of(scene) for scene in scenes]
    right = {
        name: np.array([one[name] == truth[name] for one, truth in zip(found, truths, strict=True)], dtype=float)
        for name in JUDGED
    }
    return right | {"all": np.min(list(right.values()), axis=0)}


def main(prompts: int = 100, captioner: Path = MODELS / "captioner") -> dict:
    """Make the data, train nine models and judge them; writes a report.json under runs/recaption/VERSION, where the
    captioner's version is part of it all. Stopped and started again, it goes on where it was.
    """
    make_world(world())
    make_world(replace(world(), folder=DATA / "held-out", split="test", clips=(64,)))
    base, writer = bucket_of(world().folder, FORMAT), load_coca(captioner)
    written = describe(writer, base, RUNS / writer.version / "written.jsonl")
    first = run_of("labels", 0, writer.version)
    vae = load_strictly(VideoVAE, first.vae)
    Source.open(first, world().folder, FORMAT, vae, vae.encoder_hash())  # coded once, not nine times
    scenes = list(islice(scenes_of(SETS[0], 0), prompts))
    eye = load_strictly(Judge, MODELS / "judge")
    rights: dict[str, dict[str, dict]] = {words: {} for words in ASKED}
    for kind in KINDS:
        variant(base, DATA / writer.version / kind, kind, written)
        seeds: dict[str, list] = {words: [] for words in ASKED}
        for seed in SEEDS:
            run = run_of(kind, seed, writer.version)
            train(run)  # one that is done only measures itself again
            pipeline = Pipeline.from_pretrained(run.out / "model")
            for words, rows in seeds.items():
                rows.append(followed(pipeline, eye, scenes, words))
        for words, rows in seeds.items():
            rights[words][kind] = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    report = {
        words: {kind: summary(right) for kind, right in found.items()} | compare(found)
        for words, found in rights.items()
    }
    (RUNS / writer.version / "report.json").write_text(json.dumps(report, indent=2))
    print(json.dumps(report, indent=2))
    return report


if __name__ == "__main__":
    main()
