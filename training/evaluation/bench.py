"""What long clips cost, and how far they drift: beside what others do, who decode the end of a clip and code it again.

longtake bench long
longtake bench drift
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dit.canvas import blank
from dit.pipeline import Dream, Pipeline
from dit.request import Request
from dit.sampler import seeded_noise
from training.evaluation.judge import FORMAT, Judge
from vae.weights import load_strictly

PROMPTS = (
    *("a large red ball rolls on the grass", "a medium-sized blue cube rests on sand", "a big green capsule spins"),
    *("a small yellow cylinder stands still on sand", "a large green cube slides on a wooden floor"),
    "a large pink ball bounces on the grass",
)
MEASURES = ("colour", "contrast", "sharpness", "identity")
# In a process of its own: what it took, as one line of JSON.
CHILD = """
import json, resource, sys, time
from pathlib import Path
from dit.pipeline import Pipeline
from dit.request import Request
from vae.video.write import write_video
folder, request, output = sys.argv[1:]
start = time.monotonic()
pipeline = Pipeline.from_pretrained(folder)
(dream,) = pipeline.generate([Request.from_json(request)])
write_video(Path(output), pipeline.frames(dream), dream.request.fps)
kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"seconds": time.monotonic() - start, "MiB": kilobytes / 1024}))
"""


def bench_long(model: Path, durations: Iterable[float] = (10.0, 20.0, 60.0), steps: int = 4) -> list[dict]:
    """Render clips of some durations in seconds, each in a process of its own; print and return what each took."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for duration in durations:
            request = Request(mode="long", prompt=PROMPTS[0], seconds=duration, steps=steps)
            words = [sys.executable, "-c", CHILD, str(model), request.to_json(), f"{folder}/{duration:g}.mp4"]
            done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
            rows.append({"clip": duration, **json.loads(done.stdout.splitlines()[-1])})
    first = rows[0]
    print(f"{'clip':>8} {'seconds':>9} {'a second':>9} {'peak MiB':>9} {'of first':>9}")
    for row in rows:
        a_second, share = row["seconds"] / row["clip"], row["MiB"] / first["MiB"]
        print(f"{row['clip']:7g}s {row['seconds']:9.1f} {a_second:9.2f} {row['MiB']:9.0f} {share:9.2f}")
    return rows


def bench_drift(model: Path, judge: Path, seconds: float = 60.0, prompts: Iterable[str] = PROMPTS) -> dict:
    """Print and return how far long clips drift from their first stretch: dreamed on in latent space, and decoded and
    coded again at every join, from the same prompts and noise.
    """
    pipeline, eye = Pipeline.from_pretrained(model), load_strictly(Judge, judge).eval()
    found: dict[str, list[dict]] = {"in latent space": [], "decoded and coded again": []}
    for seed, prompt in enumerate(prompts):
        request = pipeline.resolve(Request(mode="long", prompt=prompt, seconds=seconds, seed=seed))
        start = time.monotonic()
        (dream,) = pipeline.generate([request])
        found["in latent space"].append(measure_drift(pipeline.pixels(dream), eye))
        found["decoded and coded again"].append(measure_drift(sample_with_reencoding(pipeline, request), eye))
        print(f"{prompt}: {time.monotonic() - start:.0f} s", file=sys.stderr)
    report = {
        way: {name: float(np.mean([row[name] for row in rows])) for name in MEASURES} for way, rows in found.items()
    }
    print(f"{'':24} " + " ".join(f"{name:>10}" for name in MEASURES))
    for way, row in report.items():
        print(f"{way:24} " + " ".join(f"{row[name]:10.3f}" for name in MEASURES))
    return report


@torch.no_grad()
def sample_with_reencoding(pipeline: Pipeline, request: Request) -> Tensor:
    """Dream a long clip (3, F, Y, X) as others do: show each stretch, code its last frames, and dream on from these."""
    canvas, time_ = pipeline.paint(request), pipeline.vae.stride[0]
    window = pipeline.window_for(request, canvas)
    kept = (window + 1) // 2
    frames = pipeline.vae.frame_count(kept)
    noise = seeded_noise(
        request.seed, (*canvas.clean_latents.shape[:1], canvas.latent_frames + window, *canvas.clean_latents.shape[2:])
    )
    shown = torch.zeros(3, 0, 1, 1)
    while shown.shape[1] < pipeline.vae.frame_count(canvas.latent_frames):
        part = blank((canvas.clean_latents.shape[0], window, *canvas.clean_latents.shape[2:]), canvas.fps)
        at = 0
        if shown.shape[1]:
            part = part.keep(pipeline.vae.encode(shown[None, :, -frames:])[0], 0)
            at = (shown.shape[1] - frames) // time_
        *_, (latents,) = pipeline.dream([part], [request], [at], [noise[:, at : at + window]])
        pixels = pipeline.pixels(Dream(request, latents))
        shown = torch.cat([shown, pixels[:, frames:]], dim=1) if shown.shape[1] else pixels
    return shown[:, : pipeline.vae.frame_count(canvas.latent_frames)]


@torch.no_grad()
def measure_drift(video: Tensor, eye: Judge) -> dict[str, float]:
    """Return how far the stretches of a clip (3, F, Y, X) lie from its first, on average, each 0 where nothing changed:
    mean colour and contrast (of the range of pixels), sharpness (relative), and what the judge's inner layer sees (1 -
    cosine).
    """
    columns, height, frames = FORMAT
    stretches = [video[:, start : start + frames] for start in range(0, video.shape[1] - frames + 1, frames)]
    seen = []
    for stretch in stretches:
        blurred = F.avg_pool2d(stretch, 3, stride=1)
        fine = (stretch[..., 1:-1, 1:-1] - blurred).abs().mean()
        frame = F.interpolate(stretch.transpose(0, 1), size=(height, columns), mode="area").transpose(0, 1)
        seen.append((stretch.mean((1, 2, 3)) / 2, stretch.std() / 2, fine, eye.features(frame[None])[0]))
    colour, contrast, sharp, sight = seen[0]
    later = seen[1:] or seen
    return {
        "colour": float(np.mean([float((c - colour).abs().mean()) for c, _, _, _ in later])),
        "contrast": float(np.mean([float((c - contrast).abs()) for _, c, _, _ in later])),
        "sharpness": float(np.mean([float((s / sharp).log().abs()) for _, _, s, _ in later])),
        "identity": float(np.mean([1 - float(F.cosine_similarity(s, sight, dim=0)) for _, _, _, s in later])),
    }
