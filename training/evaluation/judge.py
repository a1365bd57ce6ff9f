"""The judge: a small network that reads what a clip shows from its pixels alone, trained on true renders.

    longtake train judge --preset first

It never sees what a model dreamed, nor a prompt. It learns all pairs of attributes, those held out from the models
included, and most of its clips blurred, noisy or through a VAE, so that it judges what is shown and not how crisply.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

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
from training.world.lexicon import SIDES
from training.world.scene import CAMERAS, COLOURS, EVENTS, SHAPES, SIZES, Scene
from vae.model import VideoVAE
from vae.weights import hash_of_file, load_strictly, weights_in

FORMAT = (64, 64, 17)
REPORT = "report.json"
TRUSTED_ACCURACY = 0.97  # right on held-out renders with one object, or an attribute's judge is none
# What is read of the subject, or of the clip. "count" is how many things there are.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "size": tuple(SIZES),
    "motion": tuple(EVENTS),
    "camera": CAMERAS,
    "count": ("1", "2", "3", "4"),
}
SWAPPED = [CAMERAS.index(" ".join(SIDES.get(word, word) for word in name.split())) for name in CAMERAS]  # in a mirror
THINGS = tuple(
    (colour, shape) for colour in COLOURS for shape in SHAPES
)  # read of everything in sight: which are there


class Judge(ModelMixin, ConfigMixin):
    """Convolutions within frames and between them, then what was seen where, what was seen most, and one linear layer
    an attribute.
    """

    @register_to_config
    def __init__(self, width: int = 48):
        super().__init__()
        self.enter = FrameConv(3, width, 8, 4)
        self.stages = conv_stages(width)
        places = FORMAT[0] * FORMAT[1] // 16**2
        self.gather = nn.Linear((places + 2) * 3 * width, 6 * width)
        answers = [len(values) for values in ATTRIBUTES.values()] + [len(THINGS)]
        self.answers = nn.ModuleList(nn.Linear(6 * width, count) for count in answers)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return logits (B, values) for every attribute, and (B, THINGS) for "things", of pixels (B, 3, 17, 64, 64) in
        [-1, 1].
        """
        found = self.features(pixels)
        return {name: answer(found) for name, answer in zip([*ATTRIBUTES, "things"], self.answers, strict=True)}

    def features(self, pixels: Tensor) -> Tensor:
        """Return what was seen (B, D), before it is put into words."""
        x = self.stages(self.enter(rearrange(pixels, "B rgb F Y X -> B F rgb Y X")))
        where = rearrange(x.mean(1), "B D H W -> B (D H W)")
        per_frame = x.amax((3, 4))
        return F.relu(self.gather(torch.cat([where, per_frame.amax(1), per_frame.mean(1)], dim=1)))

    def muon_params(self) -> list[tuple[nn.Linear | nn.Conv2d, int]]:
        """List the layers that Muon steps on."""
        return [(stage.mix, 1) for stage in self.stages] + [(self.gather, 1)]

    @torch.no_grad()
    def predict(self, pixels: Tensor) -> dict[str, list[str]]:
        """Return the most likely value of every attribute of each clip, looked at as it is and in a mirror."""
        plain, mirrored = self(pixels), self(pixels.flip(-1))
        mirrored["camera"] = mirrored["camera"][:, SWAPPED]
        found = {name: plain[name].log_softmax(1) + mirrored[name].log_softmax(1) for name in ATTRIBUTES}
        return {name: [values[n] for n in found[name].argmax(1).tolist()] for name, values in ATTRIBUTES.items()}


def true_labels(scene: Scene) -> dict[str, str]:
    """Return what the judge should read of a scene."""
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
    """Return the classes (B,) of every attribute and the things in sight (B, THINGS) of clips, some seen in a
    mirror.
    """
    truths = [true_labels(scene) for scene in scenes]
    classes = {
        name: torch.tensor([values.index(truth[name]) for truth in truths]) for name, values in ATTRIBUTES.items()
    }
    if mirrored:
        camera = classes["camera"]
        classes["camera"] = torch.where(torch.tensor(mirrored), torch.tensor(SWAPPED)[camera], camera)
    things = [[float(pair in {(t.colour, t.shape) for t in scene.things}) for pair in THINGS] for scene in scenes]
    return classes | {"things": torch.tensor(things)}


def judge_loss(logits: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    """Return the sum of the cross-entropies of all attributes, and of the things in sight."""
    attributes = sum(F.cross_entropy(logits[name], targets[name]) for name in ATTRIBUTES)
    return attributes + 10 * F.binary_cross_entropy_with_logits(logits["things"], targets["things"])


def train(run: JudgeRun) -> dict:
    """Train a judge from a preset; leaves it in `run.out` / "judge" and returns its accuracy on held-out renders, also
    in report.json.
    """
    accelerator = create_accelerator(run)
    buckets = [open_bucket(folder, FORMAT) for folder in (run.data, run.extra_data)]
    hashes = [data_hash(folder, (FORMAT,)) for folder in (run.data, run.extra_data)]
    write_run_description(run, accelerator, data=hashes, coder=hash_of_file(*weights_in(run.vae)) if run.vae else None)
    coder = load_strictly(VideoVAE, run.vae).requires_grad_(False).to(accelerator.device) if run.vae else None
    torch.manual_seed(run.seed)
    judge = Judge(run.width)
    judge, optimizer = accelerator.prepare(judge, build_muon(judge.muon_params(), judge, run))
    loop = TrainLoop("train judge", run, accelerator, {"judge": judge, "optimizer": optimizer})
    unwrapped = accelerator.unwrap_model(judge)

    for step in loop:
        pixels, targets = batch(run, buckets, coder, step, accelerator)
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
        for folder in (run.out, run.out / "judge"):  # the judge carries how far it can be trusted
            (folder / REPORT).write_text(json.dumps(report, indent=2))
    accelerator.end_training()
    return report


def batch(
    run: JudgeRun, buckets: list[Bucket], coder: VideoVAE | None, step: int, accelerator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return a step's clips, most of them spoilt a little and half of them mirrored, and what there is to read:
    functions of the seed and each sample's number alone.
    """
    clip_of = sample_order(run.seed, "judge", sum(map(len, buckets)))
    clips, scenes, mirrored = [], [], []
    for number in shard_samples(run.batch_size, step, accelerator.process_index, accelerator.num_processes):
        clip = clip_of(number)
        bucket = buckets[0] if clip < len(buckets[0]) else buckets[1]
        clip = clip if bucket is buckets[0] else clip - len(buckets[0])
        rng = np.random.default_rng([run.seed, 6, number])
        spoilt = degrade(bucket.load_clips([clip])[0], rng, coder, run.reconstructed_ratio)
        mirrored.append(bool(rng.random() < 0.5))
        clips.append(spoilt.flip(-1) if mirrored[-1] else spoilt)
        scenes.append(bucket.scene(clip))
    return torch.stack(clips), targets_of(scenes, mirrored)


def degrade(clip: Tensor, rng: np.random.Generator, coder: VideoVAE | None = None, coded_share: float = 0.0) -> Tensor:
    """Leave a clip as it is, or blur it by less than a pixel, or add noise, or send it through a VAE."""
    fate = rng.random()
    if fate < 0.25:
        softness = float(rng.uniform(0.1, 0.5))
        around = F.avg_pool2d(F.pad(clip, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        return (1 - softness) * clip + softness * around
    if fate < 0.5:
        return clip + float(rng.uniform(0.01, 0.06)) * torch.from_numpy(
            rng.standard_normal(clip.shape, dtype=np.float32)
        )
    if coder and fate < 0.5 + coded_share:
        return coder.decode(coder.encode(clip[None].to(coder.device)))[0].to(clip)
    return clip


@torch.no_grad()
def accuracy(judge: Judge, bucket: Bucket, clips: int | None = None) -> dict[str, dict[str, float]]:
    """Return the share of held-out renders that the judge reads right, by attribute: of those with one object, and of
    all.
    """
    numbers = range(min(clips or len(bucket), len(bucket)))
    right: dict[str, list[float]] = {name: [] for name in ATTRIBUTES}
    alone = []
    for start in range(0, len(numbers), 32):
        chosen = numbers[start : start + 32]
        scenes = [bucket.scene(number) for number in chosen]
        found = judge.predict(bucket.load_clips(chosen).to(judge.device))
        alone += [len(scene.things) == 1 for scene in scenes]
        for name in ATTRIBUTES:
            right[name] += [float(a == true_labels(scene)[name]) for a, scene in zip(found[name], scenes, strict=True)]
    one = np.array(alone)
    return {
        "one object": {name: float(np.array(values)[one].mean()) for name, values in right.items()}
        | {"clips": int(one.sum())},
        "all": {name: float(np.mean(values)) for name, values in right.items()} | {"clips": len(one)},
    }
