"""Does a model follow prompts better when a captioner describes its clips anew?

The report on DALL-E 3 says so (Betker et al. 2023, "Improving Image Generation with Better Captions"). Here it is
measured: models of one shape and as many steps, trained on the same clips with (a) their thin labels, (b) what the
captioner writes of them, one caption in twenty still the label, (c) dense captions that are true; three seeds of each,
all judged on the same prompts.

python -m training.recaption
"""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from captioning.coca import CoCaCaptioner, load_coca
from dit.pipeline import Pipeline
from training.config import DiTRun, WorldRun
from training.dataset import Bucket, bucket_of, make_world
from training.evaluate import JUDGED, SETS, dreams, read, scenes_of
from training.judge import FORMAT, Judge, truth_of
from training.metrics import interval
from training.train_dit import Source, train
from vae.model import VideoVAE
from vae.weights import load_strictly

DATA, RUNS, MODELS = Path("data/recaption"), Path("runs/recaption"), Path("app/models")
KINDS = ("labels", "recaptioned", "dense")
SEEDS = (0, 1, 2)
OF_TWENTY = 19  # captions are the captioner's: 95 %, as for DALL-E 3
TOGETHER = 32


def world() -> WorldRun:
    """Make clips that the captioner never saw: those of another seed."""
    return WorldRun(folder=DATA / "world", seed=1, clips=(4_000,))


def run_of(kind: str, seed: int) -> DiTRun:
    """Return what is trained on one kind of captions, between the shipped model's VAE and text tower."""
    return DiTRun(
        data=DATA / kind,
        held_out=DATA / "held-out",
        out=RUNS / f"{kind}-{seed}",
        seed=seed,
        vae=MODELS / "first" / "vae",
        text=MODELS / "first",
        depth=4,
        steps=800,
        rate=5e-3,
        warmup_steps=50,
        decay_steps=300,
        ema_decay=0.99,
        guidance=5.0,
        shift=2.0,
        emphasis=4.0,
        formats=(FORMAT,),
        clips=(24,),
    )


def describe(captioner: CoCaCaptioner, bucket: Bucket, path: Path) -> list[str]:
    """Return the captioner's words on every clip, also in `path`, a line each; begun there, it goes on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    with open(path, "a") as lines:
        for start in tqdm(range(len(texts), len(bucket), TOGETHER), "describe"):
            for text in captioner.write(bucket.clips(range(start, min(start + TOGETHER, len(bucket))))):
                texts.append(text)
                lines.write(json.dumps(text) + "\n")
            lines.flush()
    return texts


def captions(kind: str, before: dict[str, list[str]], written: str) -> dict[str, list[str]]:
    """Return the captions of a clip from which one is drawn at every step: of a kind, given the world's and the
    captioner's.
    """
    label, dense = before["moving"][:1], before["moving"][4:6]
    return {"moving": {"labels": label, "recaptioned": OF_TWENTY * [written] + label, "dense": dense}[kind]}


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
    each attribute.
    """
    found = {}
    for name, values in (right | {"all": np.all(list(right.values()), axis=0)}).items():
        mean, low, high = interval(values.mean(0))
        found[name] = {"mean": round(mean, 4), "low": round(low, 4), "high": round(high, 4)}
        found[name]["by seed"] = [round(float(seed), 4) for seed in values.mean(1)]
    return found


def main(prompts: int = 100, captioner: Path = MODELS / "captioner") -> dict:
    """Make the data, train nine models and judge them; writes runs/recaption/report.json. Stopped and started again, it
    goes on where it was.
    """
    make_world(world())
    make_world(replace(world(), folder=DATA / "held-out", split="test", clips=(64,)))
    base = bucket_of(world().folder, FORMAT)
    written = describe(load_coca(captioner), base, RUNS / "written.jsonl")
    first = run_of("labels", 0)
    vae = load_strictly(VideoVAE, first.vae)
    Source.open(first, world().folder, FORMAT, vae, vae.encoder_hash())  # coded once, not nine times
    scenes = list(islice(scenes_of(SETS[0], 0), prompts))
    truths = [truth_of(scene) for scene in scenes]
    eye = load_strictly(Judge, MODELS / "judge")
    report: dict = {}
    for kind in KINDS:
        variant(base, DATA / kind, kind, written)
    for kind in KINDS:
        right: dict[str, list] = {name: [] for name in JUDGED}
        for seed in SEEDS:
            run = run_of(kind, seed)
            if not (run.out / "report.json").exists():
                train(run)
            pipeline = Pipeline.from_pretrained(run.out / "model")
            found = list(read(eye, dreams(pipeline, scenes, f"{kind} {seed}")))
            for name, rows in right.items():
                rows.append([one[name] == truth[name] for one, truth in zip(found, truths, strict=True)])
        report[kind] = summary({name: np.array(rows, dtype=float) for name, rows in right.items()})
        (RUNS / "report.json").write_text(json.dumps(report, indent=2))
    print(json.dumps(report, indent=2))
    return report


if __name__ == "__main__":
    main()
