"""The whole recipe in a quarter of an hour: world, VAE, text tower, diffusion transformer, one after the other.

make train-tiny
"""

from __future__ import annotations

import json
import time

from training import presets
from training.config import Recipe


def train(run: Recipe | None = None) -> dict:
    """Make the tiny model from nothing under runs/tiny and return all its figures, also in runs/tiny/report.json.

    Each stage goes on where it was if it was stopped.
    """
    from training.dataset import make_world
    from training.train_dit import train as train_dit
    from training.train_text import train as train_text
    from training.train_vae import train as train_vae

    start = time.monotonic()
    make_world(presets.world_tiny())
    make_world(presets.world_tiny_test())
    report = {
        "vae": train_vae(presets.vae_tiny()),
        "text": train_text(presets.text_tiny()),
        "dit": train_dit(presets.dit_tiny()),
    }
    report["minutes"] = round((time.monotonic() - start) / 60, 1)
    (presets.TINY / "report.json").write_text(json.dumps(report, indent=2))
    print(json.dumps(report, indent=2))
    return report
