"""Does a model trained on native sizes frame its subjects better than one trained on square crops?

OpenAI's report on Sora says so (2024, "Improved framing and composition"). Here it is counted: two models of the same
shape and steps, one trained on wide clips and one on squares cut out of them, and the share of clips that do not show
all of their subject. A square is taken from anywhere across its clip: the world's camera aims so well that the middle
of a wide clip is what a square one would be.

python -m training.experiments.framing
"""

from __future__ import annotations

import colorsys
import json
from collections.abc import Iterable
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
from training.presets import dit_ablation
from training.train_dit import train
from training.world.scene import COLOURS, Scene
from vae.video.pixels import contact_sheet
from vae.video.write import write_image

WIDE, SQUARE = (80, 48, 17), (48, 48, 17)
HUE, SATURATION, VALUE = 0.06, 0.55, 0.08  # how near a pixel is to a colour, how saturated beside it, how bright
GROUND = 0.9  # of a row: what spans as much is ground, hills or sky of the same hue
SMALLEST = 6  # pixels of a subject that is there


def world() -> WorldRun:
    return WorldRun(folder=Path("data/framing"), formats=(WIDE,), clips=(2_000,))


def native() -> DiTRun:
    """Train on the wide clips themselves, between the shipped model's VAE and text tower."""
    return replace(
        dit_ablation(),
        data=Path("data/framing"),
        held_out=Path("data/framing-test"),
        out=Path("runs/framing/native"),
        formats=(WIDE,),
    )


def cropped() -> DiTRun:
    """Train on squares cut out of them, for as many steps of as many clips."""
    return replace(
        native(),
        data=Path("data/framing-crops"),
        held_out=Path("data/framing-crops-test"),
        out=Path("runs/framing/cropped"),
        formats=(SQUARE,),
    )


def make_crops(source: Path, target: Path) -> None:
    """Make a data set of squares from another's wide clips, each from a place across that its number draws."""
    before, after = open_bucket(source, WIDE), open_bucket(target, SQUARE)
    if (after.folder / "state.json").exists():
        return
    after.folder.mkdir(parents=True, exist_ok=True)
    lefts = [crop_left(clip) for clip in range(len(before))]
    squares = [before.pixels[clip, ..., left : left + SQUARE[0]] for clip, left in enumerate(lefts)]
    np.save(after.folder / "pixels.npy", np.stack(squares))
    for name in ("captions.jsonl", "state.json"):  # the state last: it says that all is there
        (after.folder / name).write_bytes((before.folder / name).read_bytes())


def crop_left(clip: int) -> int:
    """Return where a clip's square begins."""
    return int(np.random.default_rng([8, clip]).integers(WIDE[0] - SQUARE[0] + 1))


def with_hue(scenes: Iterable[Scene]) -> Iterable[Scene]:
    """Keep scenes whose subject has a hue to find it by."""
    return (scene for scene in scenes if scene.things[0].colour not in ("white", "black"))


def subject_mask(video: Tensor, colour: str) -> Tensor:
    """Return where a clip (3, F, Y, X) in [-1, 1] has a colour of the world's: (F, Y, X), of bool."""
    red, green, blue = pixels = (video + 1) / 2
    most, least = pixels.amax(0), pixels.amin(0)
    spread = (most - least).clamp(min=1e-6)
    sixth = torch.where(
        most == red,
        (green - blue) / spread % 6,
        torch.where(most == green, (blue - red) / spread + 2, (red - green) / spread + 4),
    )
    hue, saturation, _ = colorsys.rgb_to_hsv(*(part ** (1 / 2.2) for part in COLOURS[colour]))
    away = (sixth / 6 - hue).abs()
    near = torch.minimum(away, 1 - away) < HUE
    found = near & (spread / most.clamp(min=1e-6) > SATURATION * saturation) & (most > VALUE)
    return found & (found.float().mean(-1, keepdim=True) < GROUND)


def cut_share(video: Tensor, colour: str) -> float | None:
    """Return the share of frames in which the left or right border cuts the subject, of those in which it is seen;
    None where it never is.
    """
    found = subject_mask(video, colour)
    seen = found.sum((1, 2)) >= SMALLEST
    if not seen.any():
        return None
    touched = (found[..., 0].sum(1) >= 2) | (found[..., -1].sum(1) >= 2)
    return float(touched[seen].float().mean())


def framing_scores(clips: list[Tensor], colours: list[str]) -> dict[str, float]:
    """Return the share of clips that do not show all of their subject, with its 95 % interval: those that never show
    it, and those where the border cuts it in most of the frames that do.
    """
    shares = [cut_share(clip, colour) for clip, colour in zip(clips, colours, strict=True)]
    mean, low, high = bootstrap_interval(np.array([share is None or share > 0.5 for share in shares], dtype=float))
    return {"cut or not seen": mean, "low": low, "high": high, "not seen": float(np.mean([s is None for s in shares]))}


def main(prompts: int = 150) -> dict:
    """Make the data, train both models and count; writes runs/framing/report.json and two pictures."""
    make_world(world())
    make_world(replace(world(), folder=Path("data/framing-test"), split="test", clips=(64,)))
    make_crops(Path("data/framing"), Path("data/framing-crops"))
    make_crops(Path("data/framing-test"), Path("data/framing-crops-test"))
    scenes = list(islice(with_hue(scenes_of(SETS[0], 0)), prompts))
    report: dict = {}
    for name, run in (("native", native()), ("cropped", cropped())):
        bucket = open_bucket(run.data, run.formats[0])
        alone = (n for n in range(len(bucket)) if len(bucket.scene(n).things) == 1)
        known = [n for n in alone if bucket.scene(n).things[0].colour not in ("white", "black")][:prompts]
        true = [uint8_to_float(torch.from_numpy(bucket.pixels[n].copy())) for n in known]
        report[f"{name}, true clips"] = framing_scores(true, [bucket.scene(n).things[0].colour for n in known])
        train(run)
        pipeline = Pipeline.from_pretrained(run.out / "model")
        requests = [Request(prompt=prompt_of(scene), seed=n) for n, scene in enumerate(scenes)]
        clips = [pipeline.pixels(dream) for dream in pipeline.generate(requests, pack_size=8)]
        report[name] = framing_scores(clips, [scene.things[0].colour for scene in scenes])
        write_image(
            run.out.parent / f"{name}.png", contact_sheet(clips[:16], captions=[r.prompt for r in requests[:16]])
        )
        (run.out.parent / "report.json").write_text(json.dumps(report, indent=2))
    print(json.dumps(report, indent=2))
    return report


if __name__ == "__main__":
    main()
