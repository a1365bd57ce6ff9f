"""The judge: a small classifier that reads the attributes of a clip from its pixels alone, trained on true renders.

    longtake train judge --preset first

It never sees generated clips or prompts. It trains on all pairs of attributes, including those held out from the
models, and most of its clips are blurred, noisy or reconstructed by a VAE, so that it ignores how sharp a clip is.
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
from training.config import JudgeRun
from training.dataset import Bucket, data_hash, open_bucket, sample_order, shard_samples
from training.loop import TrainLoop, create_accelerator, lr_at, optimizer_step, write_run_description
from training.muon import build_muon
from training.world.lexicon import OTHER_SIDE
from training.world.scene import CAMERAS, COLOURS, EVENTS, SHAPES, SIZES, Scene
from vae.model import VideoVAE
from vae.weights import hash_of_file, load_strictly, weights_in

FORMAT = (64, 64, 17)  # columns, rows, frames of its clips
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
# The class of each camera motion after mirroring.
MIRRORED_CAMERAS = [CAMERAS.index(" ".join(OTHER_SIDE.get(word, word) for word in name.split())) for name in CAMERAS]
# A second task: which of these are visible, as subject or not.
OBJECTS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)


class Judge(ModelMixin, ConfigMixin):
    """Classify clips: convolutions within and between frames, average and maximum pooling, one linear head per
    attribute.
    """

    old_weight_names: ClassVar = {
        "enter.mix": "stem.conv",
        "enter": "stem",
        "stages.*.mix": "stages.*.conv",
        "gather": "proj",
        "answers": "heads",
    }

    @register_to_config
    def __init__(self, width: int = 48):
        super().__init__()
        self.stem = FrameConv(3, width, 8, 4)
        self.stages = conv_stages(width)
        positions = FORMAT[0] * FORMAT[1] // 16**2
        self.proj = nn.Linear((positions + 2) * 3 * width, 6 * width)
        classes = [len(values) for values in ATTRIBUTES.values()] + [len(OBJECTS)]
        self.heads = nn.ModuleList(nn.Linear(6 * width, count) for count in classes)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return logits of pixels (B, 3, 17, 64, 64) in [-1, 1]: (B, classes) by attribute, and (B, OBJECTS) as
        "objects".
        """
        features = self.features(pixels)
        return {name: head(features) for name, head in zip([*ATTRIBUTES, "objects"], self.heads, strict=True)}

    def features(self, pixels: Tensor) -> Tensor:
        """Return the features (B, D) that the heads read: those of the layer before the last."""
        x = self.stages(self.stem(rearrange(pixels, "B rgb F Y X -> B F rgb Y X")))
        positions = rearrange(x.mean(1), "B D H W -> B (D H W)")
        per_frame = x.amax((3, 4))
        return F.relu(self.proj(torch.cat([positions, per_frame.amax(1), per_frame.mean(1)], dim=1)))

    def muon_params(self) -> list[tuple[nn.Linear | nn.Conv2d, int]]:
        """List the layers that Muon optimizes, each with the number of matrices in its weight."""
        stages: Any = self.stages
        return [*((stage.conv, 1) for stage in stages), (self.proj, 1)]

    @torch.no_grad()
    def predict(self, pixels: Tensor) -> dict[str, list[str]]:
        """Return the most likely class of every attribute of each clip, averaged over the clip and its mirror image."""
        plain, mirrored = self(pixels), self(pixels.flip(-1))
        mirrored["camera"] = mirrored["camera"][:, MIRRORED_CAMERAS]
        scores = {name: plain[name].log_softmax(1) + mirrored[name].log_softmax(1) for name in ATTRIBUTES}
        return {name: [classes[n] for n in scores[name].argmax(1).tolist()] for name, classes in ATTRIBUTES.items()}


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

    `mirrored` says which clips are mirrored.
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
    buckets = [open_bucket(folder, FORMAT) for folder in (run.data, run.extra_data)]
    hashes = [data_hash(folder, (FORMAT,)) for folder in (run.data, run.extra_data)]
    write_run_description(run, accelerator, data=hashes, vae=hash_of_file(*weights_in(run.vae)) if run.vae else None)
    vae = load_strictly(VideoVAE, run.vae).requires_grad_(False).to(accelerator.device) if run.vae else None
    torch.manual_seed(run.seed)
    judge = Judge(run.width)
    judge, optimizer = accelerator.prepare(judge, build_muon(judge.muon_params(), judge, run))
    loop = TrainLoop("train judge", run, accelerator, {"judge": judge, "optimizer": optimizer})
    unwrapped = accelerator.unwrap_model(judge)

    for step in loop:
        pixels, targets = batch(run, buckets, vae, step, accelerator)
        targets = {name: value.to(accelerator.device) for name, value in targets.items()}
        loss = judge_loss(judge(pixels.to(accelerator.device)), targets)
        grad_norm = optimizer_step(accelerator, judge, optimizer, loss, lr_at(step, run), run.max_grad_norm)
        loop.record(step, grad_norm, loss=loss)
        if step % run.validate_every == run.validate_every - 1:
            loop.log(step + 1, accuracy(unwrapped.eval(), open_bucket(run.held_out, FORMAT), 512)["one object"])
            unwrapped.train()

    report = accuracy(unwrapped.eval(), open_bucket(run.held_out, FORMAT))
    if accelerator.is_main_process:
        unwrapped.to(torch.float16).save_pretrained(run.out / "judge")
        for folder in (run.out, run.out / "judge"):  # the judge's folder says which attributes can be trusted
            (folder / REPORT).write_text(json.dumps(report, indent=2))
    accelerator.end_training()
    return report


def batch(
    run: JudgeRun, buckets: list[Bucket], vae: VideoVAE | None, step: int, accelerator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the clips (B, 3, F, Y, X) of a step, degraded and half of them mirrored, and their targets.

    Both depend only on the seed and on the number of each sample.
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
    return torch.stack(clips), targets_of(scenes, mirrored)


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

    "one object" holds that on clips with one object, "all" that on every clip.
    """
    numbers = range(min(clips or len(bucket), len(bucket)))
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
