"""Training examples of the diffusion transformer: latents, captions, noise, masks and times of a step.

All are functions of the seed and a global sample index, so that resuming and sharding change nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from captioning.camera import CAMERA_VALUES
from dit.flow import interpolate, sample_timesteps, timestep_shift, velocity
from dit.model import DiTConfig
from dit.packing import Pack, Patch, grid_of, pack, patchify
from training.canvases import draw_denoise_mask
from training.config import DiTRun, Format
from training.dataset import Bucket, encode_latents, open_bucket, sample_order
from training.latent_dataset import LatentDataset
from training.manifest import MANIFEST_FILE
from training.world.camera import mirror_velocity
from training.world.words import mirror_caption, read_caption
from vae.model import VideoVAE

GOLDEN_RATIO = (5**0.5 - 1) / 2  # the fractional parts of its multiples fill [0, 1) evenly, however many there are


@dataclass(frozen=True)
class LatentSource:
    """The latents and captions of one format: its clips, or for images single frames of clips of the same size.

    `shape` (C, T, H, W) is that of an example, which may have fewer latent frames than a clip.
    """

    bucket: Bucket | LatentDataset
    latents: np.ndarray | LatentDataset
    caption_key: str  # "moving" for clips, "still" for images
    fps: float
    shape: tuple[int, int, int, int]
    flipped: np.ndarray | None = None  # the latents of the mirrored clips
    camera: np.ndarray | None = None  # (clips, T, 6), the camera velocity of each latent frame

    @classmethod
    def open(
        cls, run: DiTRun, data: Path, format: Format, vae: VideoVAE, encoder_hash: str, horizontal_flip: bool = False
    ) -> LatentSource:
        """Open the latents of a format, after encoding its clips where that was not done yet.

        Those of a prepared folder must be encoded already. Raises ValueError for `horizontal_flip` of such a folder,
        and DataError if clips are absent.
        """
        image = format[2] == 1
        caption_key = "still" if image else "moving"
        if (data / MANIFEST_FILE).exists():
            if horizontal_flip:
                raise ValueError(
                    f"horizontal_flip needs clips of the world, whose captions can be flipped; {data} was prepared, "
                    "so leave it out"
                )
            dataset = LatentDataset(data, format, encoder_hash, run.fps)
            return cls(dataset, dataset, caption_key, run.fps, example_shape(dataset.shape, run, vae))
        if image:
            format = next(video for video in video_formats(run.formats) if video[:2] == format[:2])
        bucket = open_bucket(data, format)

        @torch.no_grad()
        def encode(clips: Tensor) -> Tensor:
            return vae.encode(clips.to(vae.device)).cpu()

        latents = encode_latents(bucket, encode, encoder_hash, image)
        flipped = encode_latents(bucket, encode, encoder_hash, image, flipped=True) if horizontal_flip else None
        shape = example_shape(latents.shape, run, vae)
        camera = None if image or bucket.camera is None else mean_per_latent_frame(bucket.camera, vae.stride[0])
        return cls(bucket, latents, caption_key, bucket.state["fps"], shape, flipped, camera)

    def validation_caption(self, clip: int) -> str:
        """Return the caption for validation and samples: the second, which is a plain one in the world."""
        captions = self.bucket.captions[clip][self.caption_key]
        return captions[min(1, len(captions) - 1)]

    def draw_latent_frames(self, rng: np.random.Generator) -> np.ndarray:
        """Draw the latent frames of an example: all of the clip's, or the first and a random stretch of later ones."""
        available, wanted = self.latents.shape[2], self.shape[1]
        start = int(rng.integers(1, available - wanted + 2)) if wanted < available else 1
        return np.r_[0, start : start + wanted - 1]


def example_shape(shape: tuple[int, ...], run: DiTRun, vae: VideoVAE) -> tuple[int, int, int, int]:
    """Return the shape (C, T, H, W) of an example of latents (N, C, T, H, W)."""
    _, C, T, H, W = shape
    limit = vae.latent_shape(run.window_frames, *vae.stride[1:])[0] if run.window_frames else T
    return C, min(T, limit), H, W


def mean_per_latent_frame(values: np.ndarray, stride: int) -> np.ndarray:
    """Average values (clips, F, D) per frame over the frames of each latent frame: (clips, T, D).

    The first latent frame covers one frame, every other one `stride` frames.
    """
    first, rest = values[:, :1], values[:, 1:]
    rest = rest.reshape(len(rest), -1, stride, rest.shape[-1]).mean(2)
    return np.concatenate([first, rest], axis=1).astype(np.float32)


def token_count(source: LatentSource, config: DiTConfig) -> int:
    """Return the number of tokens of an example."""
    return math.prod(grid_of(source.shape[1:], config.patch))


def video_formats(formats: tuple[Format, ...]) -> tuple[Format, ...]:
    """List the formats of more than one frame; images are frames of these."""
    return tuple(format for format in formats if format[2] > 1)


@dataclass(frozen=True)
class TrainingExample:
    """A clip of a step: latents and noise (C, T, H, W), denoise_mask (T, H, W); `uniform` in [0, 1) sets its time."""

    latents: Tensor
    noise: Tensor
    denoise_mask: Tensor
    uniform: float
    caption: str
    fps: float
    camera: Tensor | None = None  # (T, CAMERA_VALUES), what the model is given
    camera_target: Tensor | None = None  # (CAMERA_VALUES), what a prompt encoder shall read in the caption
    time_uniform: float = 0.5  # chooses how the time is drawn, see `sample_time`


@lru_cache(maxsize=64)
def cached_sample_order(seed: int, stream: str, size: int) -> Callable[[int], int]:
    """Return a `sample_order` that keeps its shuffle of the last epoch between steps."""
    return sample_order(seed, stream, size)


def draw_examples(run: DiTRun, source: LatentSource, patch: Patch, samples: Iterable[int]) -> list[TrainingExample]:
    """Draw the examples of one format that have these global sample indices."""
    stream = f"dit {source.bucket.folder.name} {source.caption_key}"
    clip_of = cached_sample_order(run.seed, stream, len(source.bucket))
    phase = float(np.random.default_rng([run.seed, *stream.encode()]).random())
    examples = []
    for sample in samples:
        rng = np.random.default_rng([run.seed, *stream.encode(), sample])
        clip = clip_of(sample)
        caption = str(rng.choice(source.bucket.captions[clip][source.caption_key]))
        noise = torch.from_numpy(rng.standard_normal(source.shape, dtype=np.float32))
        denoise_mask = torch.from_numpy(draw_denoise_mask(rng, source.shape[1:], patch))
        unconditional = rng.random() < run.caption_dropout
        latent_frames = source.draw_latent_frames(rng)
        if latent_frames[-1] >= len(
            latent_frames
        ):  # a distant first frame is always given, as when long clips are made
            denoise_mask[0] = 0
            denoise_mask[1:] = denoise_mask[1:] if denoise_mask.any() else 1
        latents, flip = source.latents, source.flipped is not None and rng.random() < 0.5
        if flip and source.flipped is not None:
            latents, caption = source.flipped, mirror_caption(caption)
        camera = camera_target = None
        if run.camera_ratio:
            camera, camera_target = draw_camera(rng, source, clip, latent_frames, flip, caption, run.camera_ratio)
        examples.append(
            TrainingExample(
                latents=torch.from_numpy(latents[clip][:, latent_frames].astype(np.float32)),
                noise=noise,
                denoise_mask=denoise_mask,
                uniform=(phase + sample * GOLDEN_RATIO) % 1,
                caption="" if unconditional else caption,
                fps=source.fps,
                camera=torch.zeros_like(camera) if unconditional and camera is not None else camera,
                camera_target=camera_target,
                time_uniform=float(rng.random()),
            )
        )
    return examples


@lru_cache(maxsize=100_000)
def names_camera(caption: str) -> bool:
    """Return whether a caption of the world names the camera's move, or says that it stands still."""
    language = "zh" if re.search(r"[\u4e00-\u9fff]", caption) else "en"
    return "camera" in read_caption(caption, language)


def draw_camera(
    rng: np.random.Generator,
    source: LatentSource,
    clip: int,
    latent_frames: np.ndarray,
    flip: bool,
    caption: str,
    ratio: float,
) -> tuple[Tensor, Tensor]:
    """Draw what the model is given of a clip's camera (T, CAMERA_VALUES), and what its caption says (CAMERA_VALUES).

    A fraction `ratio` of the clips give their camera velocity, the others zeros, as all do that have none.
    """
    given, said = torch.zeros(len(latent_frames), CAMERA_VALUES), torch.zeros(CAMERA_VALUES)
    known = rng.random() < ratio
    if source.camera is None:
        return given, said
    velocity = source.camera[clip][latent_frames]
    velocity = torch.from_numpy(mirror_velocity(velocity) if flip else velocity)
    if known:
        given = torch.cat([velocity, torch.ones(len(velocity), 1)], dim=1)
    if names_camera(caption):
        said = torch.cat([velocity.mean(0), torch.ones(1)])
    return given, said


def sample_time(example: TrainingExample, tokens: int, run: DiTRun) -> Tensor:
    """Draw the time of an example: logit-normal with the run's shift, or for fractions of the examples with the shift
    for high noise, or exactly 1.
    """
    uniform = torch.tensor(example.uniform, dtype=torch.float64)
    if example.time_uniform < run.pure_noise_ratio:
        return torch.tensor(1.0)
    high_noise = example.time_uniform < run.pure_noise_ratio + run.high_noise_ratio
    shift = timestep_shift(tokens, run.base_tokens, run.high_noise_shift if high_noise else run.train_shift)
    return sample_timesteps(uniform, shift).float()


def pack_noisy(
    examples: list[TrainingExample],
    config: DiTConfig,
    run: DiTRun,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> tuple[Pack, Tensor, Tensor]:
    """Add noise to examples and pack them.

    Returns the pack in `dtype`, the velocity (N, P) to predict, and a mask (N, P) that is 1 where the denoise mask is
    above 0.
    """
    noisy, sigmas, targets, masks = [], [], [], []
    for example in examples:
        tokens = math.prod(grid_of(tuple(example.denoise_mask.shape), config.patch))
        sigma = example.denoise_mask * sample_time(example, tokens, run)
        noisy.append(interpolate(example.latents, example.noise, sigma))
        sigmas.append(sigma)
        targets.append(patchify(velocity(example.latents, example.noise), config.patch))
        masks.append(patchify((example.denoise_mask > 0).float().expand_as(example.latents), config.patch))
    batch = pack(
        [latents.to(device, dtype) for latents in noisy],
        [sigma.to(device) for sigma in sigmas],
        [example.fps for example in examples],
        config.patch,
        cameras=[example.camera.to(device) for example in examples if example.camera is not None] or None,
    )
    return batch, torch.cat(targets).to(device), torch.cat(masks).to(device)
