"""The judge: a small classifier that reads the attributes of a clip from its pixels alone, trained on true renders.

    longtake train judge --preset first
    longtake train judge --preset second

A judge of edition 1 of the world reads the subject and the camera; one of edition 2 reads everything that a caption can
say, of every thing (`reading.py`). It never sees generated clips or prompts. It trains on all pairs of attributes,
including those held out from the models, and most of its clips are blurred, noisy or reconstructed by a VAE, so that it
ignores how sharp a clip is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from torch import Tensor, nn

from captioning.video_encoder import FrameConv, conv_stages
from training.config import Format, JudgeRun
from training.dataset import Bucket, data_hash, open_bucket, sample_order, shard_samples
from training.evaluation.reading import (
    COLUMNS,
    SCENE_CLASSES,
    Reading,
    mirror_reading,
    score,
    true_reading,
    visible_keys,
)
from training.evaluation.thing_reader import (
    ThingReader,
    decode_readings,
    merge_mirrored,
    reading_loss,
    reading_targets,
)
from training.loop import TrainLoop, create_accelerator, lr_at, optimizer_step, write_run_description
from training.muon import build_muon
from training.world.lexicon import OTHER_SIDE
from training.world.scene import CAMERAS, COLOURS, EVENTS, SHAPES, SIZES, Scene
from vae.model import VideoVAE
from vae.weights import hash_of_file, load_strictly, weights_in

FORMAT = (64, 64, 17)  # columns, rows, frames of the clips of edition 1
REPORT = "report.json"  # the judge's own accuracy, in its folder
TRUSTED_ACCURACY = 0.97  # on held-out renders with one object; below it, an attribute is not judged reliably
# The classes of each attribute: of the subject, or of the whole clip. "count" is the number of objects.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "size": tuple(SIZES),
    "motion": tuple(EVENTS),
    "camera": CAMERAS,
    "count": ("1", "2", "3", "4"),
}
MAP_STAGES = 5  # the first stages, after which the things are read
# The class of each camera motion after mirroring.
MIRRORED_CAMERAS = [CAMERAS.index(" ".join(OTHER_SIDE.get(word, word) for word in name.split())) for name in CAMERAS]
# A second task: which of these are visible, as subject or not.
OBJECTS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)


class Judge(ModelMixin, ConfigMixin):
    """Classify clips: convolutions within and between frames, average and maximum pooling, one linear head per
    attribute; from edition 2 of the world on also a reader of single things.

    `format` is that of its clips, at `fps` frames per second, of which it reads every `frame_stride`-th.
    """

    old_weight_names: ClassVar = {
        "enter.mix": "stem.conv",
        "enter": "stem",
        "stages.*.mix": "stages.*.conv",
        "gather": "proj",
        "answers": "heads",
    }

    @register_to_config
    def __init__(
        self, width: int = 48, edition: int = 1, format: Format = FORMAT, fps: float = 8.0, frame_stride: int = 1
    ):
        super().__init__()
        columns, rows, frames = format
        self.edition, self.fps, self.frame_stride = edition, fps, frame_stride
        self.format: Format = (columns, rows, frames)
        self.stem = FrameConv(3, width, 8, 4)
        self.stages = conv_stages(width)
        positions = columns * rows // 16**2
        self.proj = nn.Linear((positions + 2) * 3 * width, 6 * width)
        tables = ATTRIBUTES if edition == 1 else SCENE_CLASSES
        classes = [len(values) for values in tables.values()] + ([len(OBJECTS)] if edition == 1 else [])
        self.head_names = [*tables, "objects"] if edition == 1 else [*tables]
        self.heads = nn.ModuleList(nn.Linear(6 * width, count) for count in classes)
        if edition > 1:
            self.things = ThingReader(2 * width, 6 * width, len(range(0, frames, frame_stride)))

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return logits of pixels (B, 3, F, Y, X) in [-1, 1]: (B, classes) by attribute.

        Edition 1: also (B, OBJECTS) as "objects". From edition 2 on: also those of `ThingReader`.
        """
        maps, features = self._encode(pixels)
        logits = {name: head(features) for name, head in zip(self.head_names, self.heads, strict=True)}
        return logits if self.edition == 1 else logits | self.things(maps, features)

    def features(self, pixels: Tensor) -> Tensor:
        """Return the features (B, D) that the heads read: those of the layer before the last."""
        return self._encode(pixels)[1]

    def _encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return maps (B, F, D, Y / 8, X / 8) and features (B, D)."""
        pixels = pixels[:, :, :: self.frame_stride]
        maps = self.stages[:MAP_STAGES](self.stem(rearrange(pixels, "B rgb F Y X -> B F rgb Y X")))
        x = self.stages[MAP_STAGES:](maps)
        positions = rearrange(x.mean(1), "B D H W -> B (D H W)")
        per_frame = x.amax((3, 4))
        return maps, F.relu(self.proj(torch.cat([positions, per_frame.amax(1), per_frame.mean(1)], dim=1)))

    def muon_params(self) -> list[tuple[nn.Linear | nn.Conv2d, int]]:
        """List the layers that Muon optimizes, each with the number of matrices in its weight."""
        stages: Any = self.stages
        things = self.things.muon_params() if self.edition > 1 else []
        return [*((stage.conv, 1) for stage in stages), (self.proj, 1), *things]

    @torch.no_grad()
    def predict(self, pixels: Tensor) -> dict[str, list[str]]:
        """Return the most likely class of the attributes of edition 1, averaged over a clip and its mirror image."""
        plain, mirrored = self(pixels), self(pixels.flip(-1))
        mirrored["camera"] = mirrored["camera"][:, MIRRORED_CAMERAS]
        scores = {name: plain[name].log_softmax(1) + mirrored[name].log_softmax(1) for name in ATTRIBUTES}
        return {name: [classes[n] for n in scores[name].argmax(1).tolist()] for name, classes in ATTRIBUTES.items()}

    @torch.no_grad()
    def read(self, pixels: Tensor) -> list[Reading]:
        """Return all that a judge of edition 2 reads in each clip, averaged over the clip and its mirror image."""
        return decode_readings(merge_mirrored(self(pixels), self(pixels.flip(-1))))


def true_labels(scene: Scene) -> dict[str, str]:
    """Return the true class of every attribute of a scene."""
    subject = scene.things[0]
    return {
        "colour": subject.colour,
        "shape": subject.shape,
        "size": subject.size,
        "motion": scene.event,
        "camera": scene.camera,
        "count": str(len(scene.things)),
    }


def targets_of(scenes: list[Scene], mirrored: Sequence[bool] = ()) -> dict[str, Tensor]:
    """Return training targets: class indices (B,) by attribute, and visible objects (B, OBJECTS) as "objects".

    `mirrored` marks the clips that are mirrored.
    """
    labels = [true_labels(scene) for scene in scenes]
    targets = {
        name: torch.tensor([classes.index(label[name]) for label in labels]) for name, classes in ATTRIBUTES.items()
    }
    if mirrored:
        camera = targets["camera"]
        targets["camera"] = torch.where(torch.tensor(mirrored), torch.tensor(MIRRORED_CAMERAS)[camera], camera)
    visible = [{(thing.colour, thing.shape) for thing in scene.things} for scene in scenes]
    return targets | {"objects": torch.tensor([[float(pair in pairs) for pair in OBJECTS] for pairs in visible])}


def judge_loss(logits: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    """Return the sum of the cross-entropies of all attributes, and ten times that of the visible objects."""
    attributes = sum(F.cross_entropy(logits[name], targets[name]) for name in ATTRIBUTES)
    return attributes + 10 * F.binary_cross_entropy_with_logits(logits["objects"], targets["objects"])


def train(run: JudgeRun) -> dict:
    """Train a judge and save it in `run.out` / "judge"; return its accuracy on held-out renders, as in report.json."""
    accelerator = create_accelerator(run)
    folders = [folder for folder in (run.data, run.extra_data) if folder]
    buckets = [open_bucket(folder, run.format) for folder in folders]
    hashes = [data_hash(folder, (run.format,)) for folder in folders]
    write_run_description(run, accelerator, data=hashes, vae=hash_of_file(*weights_in(run.vae)) if run.vae else None)
    vae = load_strictly(VideoVAE, run.vae).requires_grad_(False).to(accelerator.device) if run.vae else None
    torch.manual_seed(run.seed)
    judge = Judge(run.width, run.edition, run.format, buckets[0].state["fps"], run.frame_stride)
    targets_for = targets_of if run.edition == 1 else mirrored_targets
    shown = "one object" if run.edition == 1 else "all"  # of the report, in the log
    loss_of = judge_loss if run.edition == 1 else reading_loss
    judge, optimizer = accelerator.prepare(judge, build_muon(judge.muon_params(), judge, run))
    loop = TrainLoop("train judge", run, accelerator, {"judge": judge, "optimizer": optimizer})
    unwrapped = accelerator.unwrap_model(judge)

    for step in loop:
        pixels, scenes, mirrored = batch(run, buckets, vae, step, accelerator)
        targets = {name: value.to(accelerator.device) for name, value in targets_for(scenes, mirrored).items()}
        loss = loss_of(judge(pixels.to(accelerator.device)), targets)
        grad_norm = optimizer_step(accelerator, judge, optimizer, loss, lr_at(step, run), run.max_grad_norm)
        loop.record(step, grad_norm, loss=loss)
        if step % run.validate_every == run.validate_every - 1:
            loop.log(step + 1, accuracy(unwrapped.eval(), open_bucket(run.held_out, run.format), 512)[shown])
            unwrapped.train()

    report = accuracy(unwrapped.eval(), open_bucket(run.held_out, run.format))
    if accelerator.is_main_process:
        unwrapped.to(torch.float16).save_pretrained(run.out / "judge")
        for folder in (run.out, run.out / "judge"):  # the judge's folder shows which attributes can be trusted
            (folder / REPORT).write_text(json.dumps(report, indent=2))
    accelerator.end_training()
    return report


def batch(
    run: JudgeRun, buckets: list[Bucket], vae: VideoVAE | None, step: int, accelerator
) -> tuple[Tensor, list[Scene], list[bool]]:
    """Return the clips (B, 3, F, Y, X) of a step, degraded and half of them mirrored, their scenes, and which are.

    All depend only on the seed and on the number of each sample.
    """
    clip_of = sample_order(run.seed, "judge", sum(map(len, buckets)))
    clips, scenes, mirrored = [], [], []
    for number in shard_samples(run.batch_size, step, accelerator.process_index, accelerator.num_processes):
        clip = clip_of(number)
        bucket = buckets[0] if clip < len(buckets[0]) else buckets[1]
        clip = clip if bucket is buckets[0] else clip - len(buckets[0])
        rng = np.random.default_rng([run.seed, 6, number])
        degraded = degrade(bucket.load_clips([clip])[0], rng, vae, run.reconstructed_ratio)
        mirrored.append(bool(rng.random() < 0.5))
        clips.append(degraded.flip(-1) if mirrored[-1] else degraded)
        scenes.append(bucket.scene(clip))
    return torch.stack(clips), scenes, mirrored


def mirrored_targets(scenes: Sequence[Scene], mirrored: Sequence[bool]) -> dict[str, Tensor]:
    """Return the training targets of edition 2; `mirrored` says which clips are mirrored."""
    readings = [true_reading(scene) for scene in scenes]
    pairs = zip(readings, mirrored, strict=True)
    return reading_targets([mirror_reading(reading) if flipped else reading for reading, flipped in pairs])


def degrade(
    clip: Tensor, rng: np.random.Generator, vae: VideoVAE | None = None, reconstructed_ratio: float = 0.0
) -> Tensor:
    """Blur a clip by less than a pixel (1 in 4), add noise (1 in 4), reconstruct it with a VAE, or leave it alone."""
    chance = rng.random()
    if chance < 0.25:
        strength = float(rng.uniform(0.1, 0.5))
        blurred = F.avg_pool2d(F.pad(clip, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        return (1 - strength) * clip + strength * blurred
    if chance < 0.5:
        return clip + float(rng.uniform(0.01, 0.06)) * torch.from_numpy(
            rng.standard_normal(clip.shape, dtype=np.float32)
        )
    if vae and chance < 0.5 + reconstructed_ratio:
        return vae.decode(vae.encode(clip[None].to(vae.device)))[0].to(clip)
    return clip


@torch.no_grad()
def accuracy(judge: Judge, bucket: Bucket, clips: int | None = None) -> dict[str, dict[str, float]]:
    """Return the judge's accuracy on the first clips of a bucket, or on all, by attribute.

    "one object" holds that on clips with one object, "all" that on every clip; from edition 2 on also "several
    objects".
    """
    numbers = range(min(clips or len(bucket), len(bucket)))
    if judge.edition > 1:
        return _reading_accuracy(judge, bucket, numbers)
    correct: dict[str, list[float]] = {name: [] for name in ATTRIBUTES}
    single = []
    for start in range(0, len(numbers), 32):
        chosen = numbers[start : start + 32]
        scenes = [bucket.scene(number) for number in chosen]
        predictions = judge.predict(bucket.load_clips(chosen).to(judge.device))
        single += [len(scene.things) == 1 for scene in scenes]
        for name, predicted in predictions.items():
            correct[name] += [float(a == true_labels(scene)[name]) for a, scene in zip(predicted, scenes, strict=True)]
    mask = np.array(single)
    return {
        "one object": {name: float(np.array(values)[mask].mean()) for name, values in correct.items()}
        | {"clips": int(mask.sum())},
        "all": {name: float(np.mean(values)) for name, values in correct.items()} | {"clips": len(mask)},
    }


def _reading_accuracy(judge: Judge, bucket: Bucket, numbers: range) -> dict[str, dict[str, float]]:
    scenes, scores = [bucket.scene(number) for number in numbers], []
    for start in range(0, len(numbers), 32):
        readings = judge.read(bucket.load_clips(numbers[start : start + 32]).to(judge.device))
        chosen = scenes[start : start + 32]
        scores += [score(scene, found, visible_keys(scene)) for scene, found in zip(chosen, readings, strict=True)]
    alone = np.array([len(scene.things) == 1 for scene in scenes])
    report: dict[str, dict[str, float]] = {}
    for name, mask in (("one object", alone), ("several objects", ~alone), ("all", alone | True)):
        own = [values for values, chosen in zip(scores, mask, strict=True) if chosen]
        found = {column: [values[column] for values in own if column in values] for column in (*COLUMNS, "all")}
        report[name] = {column: float(np.mean(values)) for column, values in found.items() if values}
        report[name]["clips"] = len(own)
    return report
