"""The whole recipe, one part after the other: world, VAE, diffusion transformer, and the models around it.

make train-tiny
longtake train recipe --preset first
"""

from __future__ import annotations

import importlib
import json
import time
from pathlib import Path

from training.config import Recipe
from training.presets import PRESETS

# The module and the function that runs each kind of preset; imported when called.
PARTS = {
    "world": ("training.dataset", "make_world"),
    "vae": ("training.train_vae", "train"),
    "judge": ("training.evaluation.judge", "train"),
    "text": ("training.train_text", "train"),
    "dit": ("training.train_dit", "train"),
    "captioner": ("training.train_captioner", "train"),
    "upsampler": ("training.train_upsampler", "train"),
}


def train(recipe: Recipe) -> dict:
    """Train a model from nothing: run every preset of the recipe's name, part by part.

    Returns all reports, which are also written to `runs`/NAME/report.json. An interrupted part resumes; a finished one
    only repeats its report.
    """
    start = time.monotonic()
    report: dict = {}
    for kind in recipe.parts:
        module, function = PARTS[kind]
        for name, preset in PRESETS[kind].items():
            if name.split("-")[0] == recipe.name:
                report[f"{kind} {name}"] = getattr(importlib.import_module(module), function)(preset())
    report["minutes"] = round((time.monotonic() - start) / 60, 1)
    path = Path("runs") / recipe.name / "report.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2))
    print(json.dumps(report, indent=2))
    return report
