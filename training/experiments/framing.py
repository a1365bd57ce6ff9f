"""Does a model trained on native aspect ratios frame its subjects better than one trained on square crops?

OpenAI's report on Sora claims so (2024, "Improved framing and composition"). Two models of the same shape and steps are
trained, one on wide clips and one on square crops of them, and the clips that do not show all of their subject are
counted. A crop is taken from anywhere across its clip: the world's camera is aimed so well that the middle of a wide
clip would be framed as well.

python -m training.experiments.framing
"""

from __future__ import annotations

import colorsys
import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dit.pipeline import Pipeline
from dit.request import Request
from training.config import DiTRun, WorldRun
from training.dataset import make_world, open_bucket, uint8_to_float
from training.evaluation.evaluate import SETS, prompt_of, scenes_of
from training.evaluation.metrics import bootstrap_interval
from training.presets.first import dit_ablation
from training.train_dit import train
from training.world.scene import COLOURS, Scene
from vae.video.pixels import contact_sheet
from vae.video.write import write_image

WIDE, SQUARE = (80, 48, 17), (48, 48, 17)
CROP_COLUMNS = WIDE[0] - SQUARE[0]
# A pixel belongs to a colour within HUE of its hue, above SATURATION of its saturation, and above VALUE.
HUE, SATURATION, VALUE = 0.06, 0.55, 0.08
GROUND = 0.9  # share of a row: what spans more is ground, hills or sky of the same hue
MIN_PIXELS = 6  # of a visible subject
DATA, RUNS = Path("data/framing"), Path("runs/framing")
CROPS = Path("data/framing-crops")


def world_run() -> WorldRun:
    """Return the run that renders the wide clips."""
    return WorldRun(folder=DATA, formats=(WIDE,), clips=(2_000,))


def held_out(data: Path) -> Path:
    """Return the folder of the held-out clips of a data set."""
    return data.with_name(f"{data.name}-test")


def native_run() -> DiTRun:
    """Return the run that trains on the wide clips, with the shipped model's VAE and text tower."""
    return replace(dit_ablation(), data=DATA, held_out=held_out(DATA), out=RUNS / "native", formats=(WIDE,))


def cropped_run() -> DiTRun:
    """Return the run that trains on the square crops, for as many steps of as many clips."""
    return replace(native_run(), data=CROPS, held_out=held_out(CROPS), out=RUNS / "cropped", formats=(SQUARE,))


def make_crops(source: Path, target: Path) -> None:
    """Make a data set of square crops of another's wide clips, each from a random column, seeded by its number."""
    wide, square = open_bucket(source, WIDE), open_bucket(target, SQUARE)
    if (square.folder / "state.json").exists():
        return
    square.folder.mkdir(parents=True, exist_ok=True)
    lefts = [crop_left(clip) for clip in range(len(wide))]
    crops = [wide.pixels[clip, ..., left : left + SQUARE[0]] for clip, left in enumerate(lefts)]
    np.save(square.folder / "pixels.npy", np.stack(crops))
    for name in ("captions.jsonl", "state.json"):  # the state last: it marks the data set as complete
        (square.folder / name).write_bytes((wide.folder / name).read_bytes())


def crop_left(clip: int) -> int:
    """Return the first column of the crop of a clip."""
    return int(np.random.default_rng([8, clip]).integers(CROP_COLUMNS + 1))


def has_hue(scene: Scene) -> bool:
    """Return whether the subject of a scene has a hue, by which it is found."""
    return scene.things[0].colour not in ("white", "black")


def subject_mask(video: Tensor, colour: str) -> Tensor:
    """Return which pixels of a clip (3, F, Y, X) in [-1, 1] have a colour of the world: (F, Y, X), bool."""
    red, green, blue = pixels = (video + 1) / 2
    most, least = pixels.amax(0), pixels.amin(0)
    spread = (most - least).clamp(min=1e-6)
    sixth = torch.where(
        most == red,
        (green - blue) / spread % 6,
        torch.where(most == green, (blue - red) / spread + 2, (red - green) / spread + 4),
    )
    hue, saturation, _ = colorsys.rgb_to_hsv(*(part ** (1 / 2.2) for part in COLOURS[colour]))
    distance = (sixth / 6 - hue).abs()
    near = torch.minimum(distance, 1 - distance) < HUE
    found = near & (spread / most.clamp(min=1e-6) > SATURATION * saturation) & (most > VALUE)
    return found & (found.float().mean(-1, keepdim=True) < GROUND)


def cut_share(video: Tensor, colour: str) -> float | None:
    """Return the share of frames in which the left or right border cuts the subject, of those that show it.

    None where no frame shows it.
    """
    mask = subject_mask(video, colour)
    visible = mask.sum((1, 2)) >= MIN_PIXELS
    if not visible.any():
        return None
    cut = (mask[..., 0].sum(1) >= 2) | (mask[..., -1].sum(1) >= 2)
    return float(cut[visible].float().mean())


def framing_scores(clips: list[Tensor], colours: list[str]) -> dict[str, float]:
    """Return the share of clips that do not show all of their subject, with its 95 % interval.

    These are the clips that never show it, and those where the border cuts it in most of the frames that do.
    """
    shares = [cut_share(clip, colour) for clip, colour in zip(clips, colours, strict=True)]
    mean, low, high = bootstrap_interval(np.array([share is None or share > 0.5 for share in shares], dtype=float))
    return {"cut or not seen": mean, "low": low, "high": high, "not seen": float(np.mean([s is None for s in shares]))}


def main(prompts: int = 150) -> dict:
    """Make the data, train both models and count; write runs/framing/report.json and a contact sheet of each model."""
    make_world(world_run())
    make_world(replace(world_run(), folder=held_out(DATA), split="test", clips=(64,)))
    make_crops(DATA, CROPS)
    make_crops(held_out(DATA), held_out(CROPS))
    scenes = list(islice(filter(has_hue, scenes_of(SETS[0], 0)), prompts))
    report: dict = {}
    for name, run in (("native", native_run()), ("cropped", cropped_run())):
        bucket = open_bucket(run.data, run.formats[0])
        single = (n for n in range(len(bucket)) if len(bucket.scene(n).things) == 1)
        chosen = [n for n in single if has_hue(bucket.scene(n))][:prompts]
        true = [uint8_to_float(torch.from_numpy(bucket.pixels[n].copy())) for n in chosen]
        report[f"{name}, true clips"] = framing_scores(true, [bucket.scene(n).things[0].colour for n in chosen])
        train(run)
        pipeline = Pipeline.from_pretrained(run.out / "model")
        requests = [Request(prompt=prompt_of(scene), seed=n) for n, scene in enumerate(scenes)]
        clips = [pipeline.pixels(sample) for sample in pipeline.generate(requests, pack_size=8)]
        report[name] = framing_scores(clips, [scene.things[0].colour for scene in scenes])
        sheet = contact_sheet(clips[:16], captions=[request.prompt for request in requests[:16]])
        write_image(RUNS / f"{name}.png", sheet)
        (RUNS / "report.json").write_text(json.dumps(report, indent=2))
    print(json.dumps(report, indent=2))
    return report


if __name__ == "__main__":
    main()
