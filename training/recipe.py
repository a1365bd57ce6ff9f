"""The whole recipe, one part after the other: worlds, VAE, judge, text tower, diffusion transformer.

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

PARTS = {
    "world": ("training.dataset", "make_world"),
    "vae": ("training.train_vae", "train"),
    "judge": ("training.evaluation.judge", "train"),
    "text": ("training.train_text", "train"),
    "dit": ("training.train_dit", "train"),
}


def train(recipe: Recipe) -> dict:
    """Make a model from nothing: run every preset of the recipe's name, in order; return all reports, also in
    `runs`/NAME/report.json.

    Each part goes on where it was if it was stopped, and one that is done only measures itself again.
    """
    start = time.monotonic()
    report: dict = {}
    for kind, (module, function) in PARTS.items():
        for name, preset in PRESETS[kind].items():
            if name.split("-")[0] == recipe.name:
                report[f"{kind} {name}"] = getattr(importlib.import_module(module), function)(preset())
    report["minutes"] = round((time.monotonic() - start) / 60, 1)
    path = Path("runs") / recipe.name / "report.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2))
    print(json.dumps(report, indent=2))
    return report
