"""The same prompts and seeds at growing compute, side by side and moving.

After "Video generation models as world simulators" (OpenAI 2024), which shows one sample at 1x, 4x and 32x compute.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw

from dit.pipeline import Pipeline
from dit.request import Request
from training.scaling.report import best_of_budgets
from training.scaling.results import RungResult, read_results

FACTORS = (1.0, 4.0, 32.0)  # times the compute of the smallest run
LABEL = 14  # pixels of the line above a column


def runs_at(results: list[RungResult], factors: tuple[float, ...] = FACTORS) -> list[RungResult]:
    """Return the best runs whose compute is nearest to `factors` times the least; each once."""
    best = best_of_budgets([one for one in results if {"isoflop", "ladder"} & set(one.rung.grids)])
    least = best[0].rung.flops
    nearest = [min(best, key=lambda one: abs(one.rung.flops / least / factor - 1)) for factor in factors]
    return list({one.rung.name: one for one in nearest}.values())


def write_samples(study: Path, prompts: list[str], seed: int = 0, steps: int | None = None) -> Path:
    """Generate every prompt with each of these runs' models, and write `study` / report / samples.webp.

    A row per prompt, a column per run; all videos play at once.
    """
    chosen = runs_at(read_results(study))
    columns, fps = [], 8.0
    for one in chosen:
        pipeline = Pipeline.from_pretrained(one.folder / "model")
        fps = pipeline.settings.fps
        requests = [
            pipeline.resolve(Request(prompt=prompt, seed=seed + n, steps=steps)) for n, prompt in enumerate(prompts)
        ]
        samples = pipeline.generate(requests)
        columns.append([((pipeline.pixels(sample) + 1) * 127.5).clamp(0, 255).byte() for sample in samples])
    _, frames, rows, width = columns[0][0].shape
    pages = []
    for frame in range(frames):
        page = Image.new("RGB", (width * len(columns), LABEL + rows * len(prompts)), "white")
        draw = ImageDraw.Draw(page)
        for x, (one, column) in enumerate(zip(chosen, columns, strict=True)):
            draw.text((x * width + 2, 1), f"{one.rung.flops:.1e}", fill="black")
            for y, video in enumerate(column):
                page.paste(Image.fromarray(video[:, frame].permute(1, 2, 0).numpy()), (x * width, LABEL + y * rows))
        pages.append(page)
    path = study / "report" / "samples.webp"
    path.parent.mkdir(parents=True, exist_ok=True)
    pages[0].save(path, save_all=True, append_images=pages[1:], duration=int(1000 / fps), loop=0, quality=90)
    return path
