"""How much each word matters to the model: the validation loss with an attribute's words exchanged, minus the true one.

No sampling and no judge. For each attribute of the world, a held-out clip's caption is written again for a scene that
differs in that attribute alone, and the loss of the same noisy latents is compared. A difference of 0 means that the
model does not read these words. Sigma 1 is among the noise levels: there only the text can tell what is to be drawn.

longtake sensitivity MODEL --data DATA
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from captioning.text_encoder import encode_prompts
from dit.flow import interpolate, velocity
from dit.packing import Pack, Patch, pack, patchify
from dit.pipeline import Pipeline
from training.dataset import Bucket, encode_latents, open_bucket
from training.world.lexicon import OTHER_SIDE
from training.world.scene import (
    CAMERAS,
    COLOURS,
    EVENTS,
    GROUNDS,
    MATERIALS,
    RELATIONS,
    SIZES,
    SKIES,
    SOLO_EVENTS,
    TIMES,
    WETNESS,
    Scene,
)
from training.world.words import write_caption

SIGMAS = (1.0, 0.95, 0.8, 0.5, 0.2)
BATCH = 24  # clips per forward pass

Losses = Callable[[Pack, Tensor, list[str]], Tensor]  # pack, target (N, P), captions -> the loss of each clip (B,)


def _another(rng: np.random.Generator, values: Sequence[str], but: Sequence[str]) -> str:
    return str(rng.choice([value for value in values if value not in but]))


def _of_subject(name: str, values: Sequence[str]) -> Callable[[Scene, np.random.Generator], Scene | None]:
    def exchange(scene: Scene, rng: np.random.Generator) -> Scene | None:
        subject = scene.things[0]
        used = [getattr(thing, name) for thing in scene.things] if name == "colour" else [getattr(subject, name)]
        return replace(scene, things=(replace(subject, **{name: _another(rng, values, used)}), *scene.things[1:]))

    return exchange


def _of_scene(name: str, values: Sequence[str]) -> Callable[[Scene, np.random.Generator], Scene | None]:
    return lambda scene, rng: replace(scene, **{name: _another(rng, values, [getattr(scene, name)])})


def _shape(scene: Scene, rng: np.random.Generator) -> Scene | None:
    others = [shape for shape in EVENTS[scene.event] if shape != scene.things[0].shape]
    return _of_subject("shape", others)(scene, rng) if others and scene.event != "topple" else None


def _motion(scene: Scene, rng: np.random.Generator) -> Scene | None:
    if scene.event not in SOLO_EVENTS or scene.direction:
        return None
    others = [event for event in ("rest", "spin", "fall", "bounce", "swing") if event != scene.event]
    others = [event for event in others if scene.things[0].shape in EVENTS[event]]
    return replace(scene, event=str(rng.choice(others)))


def _direction(scene: Scene, rng: np.random.Generator) -> Scene | None:
    return replace(scene, direction=OTHER_SIDE[scene.direction]) if scene.direction else None


def _wetness(scene: Scene, rng: np.random.Generator) -> Scene | None:
    return None if scene.edition < 2 else replace(scene, wetness=_another(rng, WETNESS, [scene.wetness]))


def _relation(scene: Scene, rng: np.random.Generator) -> Scene | None:
    opposite: dict[str, str] = dict(
        zip(RELATIONS, (RELATIONS[1], RELATIONS[0], RELATIONS[3], RELATIONS[2]), strict=True)
    )
    things = tuple(replace(thing, relation=opposite.get(thing.relation or "")) for thing in scene.things)
    return replace(scene, things=things) if any(thing.relation for thing in scene.things) else None


# What to exchange, and how; None where a scene does not have the attribute.
EXCHANGES: dict[str, Callable[[Scene, np.random.Generator], Scene | None]] = {
    "colour": _of_subject("colour", list(COLOURS)),
    "shape": _shape,
    "size": _of_subject("size", list(SIZES)),
    "material": _of_subject("material", MATERIALS),
    "motion": _motion,
    "direction": _direction,
    "relation": _relation,
    "camera": _of_scene("camera", CAMERAS),
    "ground": _of_scene("ground", list(GROUNDS)),
    "wet ground": _wetness,
    "sky": _of_scene("sky", SKIES),
    "time of day": _of_scene("time", TIMES),
}


@dataclass(frozen=True)
class Difference:
    """The mean of a loss difference over clips, its standard error, and the number of clips."""

    mean: float
    error: float
    clips: int


@torch.no_grad()
def sensitivity(
    losses: Losses,
    bucket: Bucket,
    latents: np.ndarray,
    patch: Patch,
    *,
    clips: int = 192,
    sigmas: Sequence[float] = SIGMAS,
    seed: int = 0,
) -> dict[str, dict[str, Difference]]:
    """Return for each attribute, and each sigma as text, by how much exchanged words raise the loss.

    `losses` returns the loss of each clip; `latents` (clips, C, T, H, W) are those of `bucket`'s clips.
    """
    numbers = range(min(clips, len(bucket)))
    found: dict[str, dict[str, Difference]] = {name: {} for name in EXCHANGES}
    scenes = [bucket.scene(number) for number in numbers]
    true = [_caption(scene, seed) for scene in scenes]
    false = {
        name: [
            None if (other := exchange(scene, np.random.default_rng([seed, 8, scene.index]))) is None
            else _caption(other, seed)
            for scene in scenes
        ]
        for name, exchange in EXCHANGES.items()
    }  # fmt: skip
    for sigma in sigmas:
        differences: dict[str, list[float]] = {name: [] for name in EXCHANGES}
        for start in range(0, len(numbers), BATCH):
            batch = numbers[start : start + BATCH]
            packed, target = _noisy(bucket, latents, batch, sigma, patch, seed)
            before = losses(packed, target, [true[i] for i in batch])
            for name, captions in false.items():
                changed = [i for i in batch if captions[i] not in (None, true[i])]
                if changed:
                    after = losses(packed, target, [captions[i] or true[i] for i in batch])
                    differences[name] += [float(after[i - start] - before[i - start]) for i in changed]
        for name, values in differences.items():
            if values:
                error = float(np.std(values) / max(1, len(values) - 1) ** 0.5)
                found[name][f"{sigma:g}"] = Difference(float(np.mean(values)), error, len(values))
    return found


def _caption(scene: Scene, seed: int) -> str:
    """Write the dense caption of a scene, in the same words for scenes that differ in one attribute."""
    return write_caption(scene, "dense", "en", rng=np.random.default_rng([seed, 7, scene.index]))


def _noisy(bucket, latents, numbers, sigma: float, patch: Patch, seed: int) -> tuple[Pack, Tensor]:
    noisy, sigmas, targets = [], [], []
    for number in numbers:
        clean = torch.from_numpy(latents[number].astype(np.float32))
        rng = np.random.default_rng([seed, 9, number])
        noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype=np.float32))
        level = torch.full(clean.shape[1:], sigma)
        noisy.append(interpolate(clean, noise, level))
        sigmas.append(level)
        targets.append(patchify(velocity(clean, noise), patch))
    return pack(noisy, sigmas, [bucket.state["fps"]] * len(noisy), patch), torch.cat(targets)


def per_clip_loss(predicted: Tensor, target: Tensor, token_lens: Sequence[int]) -> Tensor:
    """Return the mean squared error of each clip of a pack (B,)."""
    squares = (predicted.float() - target).square().mean(1)
    return torch.stack([clip.mean() for clip in squares.split(list(token_lens))])


def table(found: dict[str, dict[str, Difference]]) -> str:
    """Format the differences as a Markdown table, a row per attribute."""
    sigmas = list(next(iter(found.values())))
    lines = [
        "| attribute | " + " | ".join(f"sigma {sigma}" for sigma in sigmas) + " |",
        "|---" * (len(sigmas) + 1) + "|",
    ]
    for name, row in found.items():
        cells = [f"{row[s].mean:.4f} ({row[s].error:.4f})" if s in row else "" for s in sigmas]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def measure(model: Path, data: Path, clips: int = 192) -> dict[str, dict[str, Difference]]:
    """Measure a model folder on the first square clips of a held-out dataset of the world."""
    pipeline = Pipeline.from_pretrained(model)
    columns, rows, frames = next(f for f in pipeline.settings.formats if f[2] > 1)
    bucket = open_bucket(data, (columns, rows, frames))

    @torch.no_grad()
    def encode(pixels: Tensor) -> Tensor:
        return pipeline.vae.encode(pixels)

    latents = encode_latents(bucket, encode, pipeline.vae.encoder_hash(), image=False)

    def losses(batch: Pack, target: Tensor, captions: list[str]) -> Tensor:
        text = encode_prompts(captions, pipeline.tokenizer, pipeline.text_encoder, truncate=True)
        predicted = pipeline.transformer(batch, text.token_embeddings, text.pooled, text.token_counts)
        return per_clip_loss(predicted, target, batch.token_lens)

    return sensitivity(losses, bucket, latents, pipeline.transformer.dit_config.patch, clips=clips)


def report(model: Path, data: Path, clips: int = 192, file: Path | None = None) -> None:
    """Print the table of a model folder, and write the numbers as JSON to `file`."""
    found = measure(model, data, clips)
    print(table(found))
    if file:
        numbers = {name: {sigma: vars(one) for sigma, one in row.items()} for name, row in found.items()}
        file.write_text(json.dumps(numbers, indent=1))
