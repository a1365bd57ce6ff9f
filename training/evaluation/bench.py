"""Measure the cost of long clips, and their drift; also by the usual way, which decodes the end and encodes it again.

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
from dit.denoiser import Segment
from dit.pipeline import Pipeline, Sample
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
IN_LATENT_SPACE, WITH_REENCODING = "in latent space", "with re-encoding"
# Runs in a process of its own and prints its cost as one line of JSON.
CHILD = """
import json, resource, sys, time
from pathlib import Path
from dit.pipeline import Pipeline
from dit.request import Request
from vae.video.write import write_video
folder, request, output = sys.argv[1:]
start = time.monotonic()
pipeline = Pipeline.from_pretrained(folder)
(sample,) = pipeline.generate([Request.from_json(request)])
write_video(Path(output), pipeline.frames(sample), sample.request.fps)
kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"seconds": time.monotonic() - start, "MiB": kilobytes / 1024}))
"""


def bench_long(model: Path, durations: Iterable[float] = (10.0, 20.0, 60.0), steps: int = 4) -> list[dict]:
    """Generate clips of some durations in seconds, each in its own process; print and return time and peak memory."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for duration in durations:
            request = Request(mode="long", prompt=PROMPTS[0], seconds=duration, steps=steps)
            command = [sys.executable, "-c", CHILD, str(model), request.to_json(), f"{folder}/{duration:g}.mp4"]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            rows.append({"clip": duration, **json.loads(done.stdout.splitlines()[-1])})
    first = rows[0]
    print(f"{'clip':>8} {'seconds':>9} {'per s':>9} {'peak MiB':>9} {'of first':>9}")
    for row in rows:
        per_second, share = row["seconds"] / row["clip"], row["MiB"] / first["MiB"]
        print(f"{row['clip']:7g}s {row['seconds']:9.1f} {per_second:9.2f} {row['MiB']:9.0f} {share:9.2f}")
    return rows


def bench_drift(model: Path, judge: Path, seconds: float = 60.0, prompts: Iterable[str] = PROMPTS) -> dict:
    """Print and return how far long clips drift from their first segment, extended in latent space and by re-encoding.

    Both ways use the same prompts and noise.
    """
    pipeline, network = Pipeline.from_pretrained(model), load_strictly(Judge, judge).eval()
    drifts: dict[str, list[dict]] = {IN_LATENT_SPACE: [], WITH_REENCODING: []}
    for seed, prompt in enumerate(prompts):
        request = pipeline.resolve(Request(mode="long", prompt=prompt, seconds=seconds, seed=seed))
        start = time.monotonic()
        (sample,) = pipeline.generate([request])
        drifts[IN_LATENT_SPACE].append(measure_drift(pipeline.pixels(sample), network))
        drifts[WITH_REENCODING].append(measure_drift(sample_with_reencoding(pipeline, request), network))
        print(f"{prompt}: {time.monotonic() - start:.0f} s", file=sys.stderr)
    report = {
        way: {name: float(np.mean([row[name] for row in rows])) for name in MEASURES} for way, rows in drifts.items()
    }
    print(f"{'':24} " + " ".join(f"{name:>10}" for name in MEASURES))
    for way, row in report.items():
        print(f"{way:24} " + " ".join(f"{row[name]:10.3f}" for name in MEASURES))
    return report


@torch.no_grad()
def sample_with_reencoding(pipeline: Pipeline, request: Request) -> Tensor:
    """Sample a long clip (3, F, Y, X) segment by segment; each begins with the last frames of the previous one, decoded
    and encoded again.
    """
    canvas, stride = pipeline.paint(request), pipeline.vae.stride[0]
    channels, _, height, width = canvas.clean_latents.shape
    window = pipeline.window_length(request, canvas)
    overlap_frames = pipeline.vae.frame_count((window + 1) // 2)
    total_frames = pipeline.vae.frame_count(canvas.latent_frames)
    noise = seeded_noise(request.seed, (channels, canvas.latent_frames + window, height, width))
    video = torch.zeros(3, 0, 1, 1)
    while video.shape[1] < total_frames:
        segment, start = blank((channels, window, height, width), canvas.fps), 0
        if video.shape[1]:
            segment = segment.keep(pipeline.vae.encode(video[None, :, -overlap_frames:])[0], 0)
            start = (video.shape[1] - overlap_frames) // stride
        own_noise = noise[:, start : start + window]
        *_, (latents,) = pipeline.sample_segments([Segment(request, segment, own_noise, start)])
        pixels = pipeline.pixels(Sample(request, latents))
        video = torch.cat([video, pixels[:, overlap_frames:]], dim=1) if video.shape[1] else pixels
    return video[:, :total_frames]


@torch.no_grad()
def measure_drift(video: Tensor, judge: Judge) -> dict[str, float]:
    """Return the mean distance of the segments of a clip (3, F, Y, X) from its first segment; 0 is no change.

    Of mean colour and of contrast (as shares of the pixel range), sharpness (log ratio), and the judge's features
    ("identity", 1 - cosine similarity).
    """
    columns, height, frames = FORMAT
    segments = [video[:, start : start + frames] for start in range(0, video.shape[1] - frames + 1, frames)]
    measured = []
    for segment in segments:
        blurred = F.avg_pool2d(segment, 3, stride=1)
        sharpness = (segment[..., 1:-1, 1:-1] - blurred).abs().mean()
        resized = F.interpolate(segment.transpose(0, 1), size=(height, columns), mode="area").transpose(0, 1)
        features = judge.features(resized[None])[0]
        measured.append((segment.mean((1, 2, 3)) / 2, segment.std() / 2, sharpness, features))
    colour, contrast, sharpness, features = measured[0]
    later = measured[1:] or measured
    return {
        "colour": float(np.mean([float((c - colour).abs().mean()) for c, _, _, _ in later])),
        "contrast": float(np.mean([float((c - contrast).abs()) for _, c, _, _ in later])),
        "sharpness": float(np.mean([float((s / sharpness).log().abs()) for _, _, s, _ in later])),
        "identity": float(np.mean([1 - float(F.cosine_similarity(f, features, dim=0)) for _, _, _, f in later])),
    }
