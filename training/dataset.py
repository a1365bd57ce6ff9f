"""Clips on disk: rendered once, memory-mapped, read in an order that is a function of (seed, sample index) alone.

A dataset is a folder with one sub-folder per format, `COLUMNSxROWSxFRAMES`, a bucket. Each holds `pixels.npy` (clips,
3, F, Y, X) in uint8, `captions.jsonl` and `scenes.jsonl` with a line per clip, and `state.json`, which says how many
clips are complete; from edition 2 of the world on also `camera.npy` (clips, F, 6), the velocity of the camera.
Latents are written next to their pixels, under the hash of the encoder that made them, so that stale ones are not used.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from training.config import Format, WorldRun
from training.manifest import MANIFEST_FILE, read_manifest
from training.world.scene import Scene, clip_rng, event_seconds, sample_scene
from training.world.words import write_caption
from vae.files import atomic_write

# Kind and language of the captions stored for each clip, and of those that are true of any single frame of it.
VIDEO_CAPTIONS = (
    ("label", "en"),
    ("plain", "en"),
    ("plain", "en"),
    ("plain", "en"),
    ("dense", "en"),
    ("dense", "en"),
    ("plain", "zh"),
    ("dense", "zh"),
)
IMAGE_CAPTIONS = (("label", "en"), ("plain", "en"), ("plain", "en"), ("dense", "en"), ("plain", "zh"))
# The same from edition 2 of the world on: a quarter is Chinese, and an eighth says little.
VIDEO_CAPTIONS_2 = (
    ("label", "en"),
    *[("plain", "en")] * 8,
    ("short", "en"),
    *[("dense", "en")] * 8,
    *[("plain", "zh")] * 2,
    ("short", "zh"),
    *[("dense", "zh")] * 3,
)
IMAGE_CAPTIONS_2 = (
    ("label", "en"),
    *[("plain", "en")] * 4,
    ("short", "en"),
    *[("dense", "en")] * 3,
    *[("plain", "zh")] * 2,
    ("dense", "zh"),
)
CAPTIONS = {False: (VIDEO_CAPTIONS, VIDEO_CAPTIONS_2), True: (IMAGE_CAPTIONS, IMAGE_CAPTIONS_2)}
FLUSH_EVERY = 128  # rendered clips between two updates of state.json
FLUSH_BATCHES = 32  # encoded batches between two notes of progress
FORMAT_STRIDE = 1_000_000  # the first clip of format i of a dataset is scene i * FORMAT_STRIDE of its split


class DataError(ValueError):
    """A dataset that is absent, unfinished, or of another kind."""


@dataclass(frozen=True)
class Bucket:
    """All clips of one format."""

    folder: Path

    @cached_property
    def state(self) -> dict:
        """The content of state.json; raises DataError if the bucket is absent or unfinished."""
        path = self.folder / "state.json"
        if not path.exists():
            raise DataError(
                f"a dataset must have clips of {self.folder.name}; "
                f"{self.folder.parent} has none, so render them: longtake world"
            )
        state = json.loads(path.read_text())
        if state["made"] < state["clips"]:
            raise DataError(
                f"a dataset must be complete; {self.folder} has {state['made']} of {state['clips']}, "
                "so run longtake world again"
            )
        return state

    @property
    def format(self) -> Format:
        """Columns, rows and frames, as the folder's name says."""
        columns, rows, frames = map(int, self.folder.name.split("x"))
        return columns, rows, frames

    def __len__(self) -> int:
        return self.state["clips"]

    @cached_property
    def pixels(self) -> np.ndarray:
        """(clips, 3, F, Y, X), uint8, memory-mapped."""
        return np.load(self.folder / "pixels.npy", mmap_mode="r")

    @cached_property
    def captions(self) -> list[dict[str, list[str]]]:
        """The captions of each clip: "moving" of the video, "still" of any of its frames."""
        with open(self.folder / "captions.jsonl", encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    def scene(self, index: int) -> Scene:
        """Return the scene of a clip."""
        state, frames = self.state, self.format[2]
        edition = state.get("edition", 1)
        seconds = event_seconds(edition, frames, state["fps"])
        return sample_scene(state["seed"], state["split"], state["first"] + index, seconds, edition)

    @cached_property
    def camera(self) -> np.ndarray | None:
        """Velocity of the camera (clips, F, 6), float32, memory-mapped; None in a dataset of edition 1.

        `world.camera.camera_velocity` defines its columns.
        """
        path = self.folder / "camera.npy"
        return np.load(path, mmap_mode="r") if path.exists() else None

    def load_clips(self, indices: Iterable[int]) -> Tensor:
        """Return clips (B, 3, F, Y, X) in [-1, 1]."""
        return uint8_to_float(torch.from_numpy(np.stack([self.pixels[index] for index in indices])))

    def load_latents(self, encoder_hash: str, image: bool, flipped: bool = False) -> np.ndarray:
        """Return the latents (clips, C, T, H, W) that `encode_latents` wrote, memory-mapped; T = 1 for images."""
        return np.load(self.folder / _latents_name(encoder_hash, image, flipped), mmap_mode="r")


def select_captions(captions: dict[str, list[str]], kind: str, language: str = "en", image: bool = False) -> list[str]:
    """Return the captions of a clip, or with `image` of any frame of it, that are of one kind and language."""
    texts = captions["still" if image else "moving"]
    return [text for text, found in zip(texts, caption_kinds(texts, image), strict=True) if found == (kind, language)]


def caption_kinds(texts: list[str], image: bool = False) -> tuple[tuple[str, str], ...]:
    """Return kind and language of each of a clip's captions, or with `image` of those of its frames."""
    return next(kinds for kinds in CAPTIONS[image] if len(kinds) == len(texts))


def uint8_to_float(pixels: Tensor) -> Tensor:
    """Return uint8 pixels as float in [-1, 1]."""
    return pixels.float().div_(127.5).sub_(1)


def open_bucket(data: Path, format: Format) -> Bucket:
    """Return the bucket of a format of a dataset; reads nothing yet."""
    return Bucket(data / "x".join(map(str, format)))


def data_hash(data: Path, formats: tuple[Format, ...]) -> str:
    """Return 16 hexadecimal digits of SHA-256 over a dataset's states and captions, which identify it."""
    digest = hashlib.sha256()
    if (data / MANIFEST_FILE).exists():
        for row in read_manifest(data):  # without the scores, which may be added later
            if row.dropped:
                continue
            digest.update(json.dumps([row.clip, [caption.text for caption in row.captions]]).encode())
        return digest.hexdigest()[:16]
    for format in formats:
        bucket = open_bucket(data, format)
        digest.update(json.dumps(bucket.state, sort_keys=True).encode())
        digest.update((bucket.folder / "captions.jsonl").read_bytes())
    return digest.hexdigest()[:16]


def make_world(run: WorldRun) -> None:
    """Render a dataset of world clips with their captions; resumes an interrupted one.

    Raises DataError if the folder holds other clips.
    """
    from training.world import make_clips

    for format_index, (format, clips) in enumerate(zip(run.formats, run.clips, strict=True)):
        columns, rows, frames = format
        folder = open_bucket(run.folder, format).folder
        folder.mkdir(parents=True, exist_ok=True)
        first = format_index * FORMAT_STRIDE
        wanted = {"seed": run.seed, "split": run.split, "first": first, "fps": run.fps, "clips": clips}
        if run.edition > 1:
            wanted["edition"] = run.edition
        made = _count_made(folder, wanted)
        pixels = _open_memmap(folder / "pixels.npy", np.uint8, (clips, 3, frames, rows, columns), create=not made)
        _truncate_lines(folder / "scenes.jsonl", made)
        camera = None
        if run.edition > 1:
            camera = _open_memmap(folder / "camera.npy", np.float32, (clips, frames, 6), create=not made)
        _truncate_lines(folder / "captions.jsonl", made)
        rendered = make_clips(
            range(first + made, first + clips),
            run.seed,
            run.split,
            run.workers,
            rows=rows,
            columns=columns,
            frames=frames,
            fps=run.fps,
            edition=run.edition,
        )
        with (
            open(folder / "captions.jsonl", "a", encoding="utf-8") as lines,
            open(folder / "scenes.jsonl", "a", encoding="utf-8") as records,
        ):
            for clip in tqdm(rendered, f"world {folder.name}", clips, initial=made):
                pixels[made] = clip.video.numpy()
                records.write(
                    json.dumps(asdict(clip.scene) | {"physics_events": clip.truth.to_json()["physics_events"]}) + "\n"
                )
                if camera is not None:
                    camera[made] = clip.truth.camera
                lines.write(json.dumps(write_captions(clip.scene), ensure_ascii=False) + "\n")
                made += 1
                if made % FLUSH_EVERY == 0 or made == clips:
                    pixels.flush()
                    if camera is not None:
                        camera.flush()
                    lines.flush()
                    records.flush()
                    _write_json(folder / "state.json", wanted | {"made": made})


def encode_latents(
    bucket: Bucket,
    encode: Callable[[Tensor], Tensor],
    encoder_hash: str,
    image: bool,
    flipped: bool = False,
    batch_size: int = 16,
) -> np.ndarray:
    """Encode a bucket's clips and write the latents in float16 next to its pixels, unless they are there; return them.

    `encode` maps pixels (B, 3, F, Y, X) to latents (B, C, T, H, W). With `image`, one frame of each clip, drawn by its
    index, is encoded as an image; with `flipped`, clips are mirrored. Resumes an interrupted encoding.
    """
    path = bucket.folder / _latents_name(encoder_hash, image, flipped)
    if path.exists():
        return bucket.load_latents(encoder_hash, image, flipped)
    partial, progress = path.with_suffix(".part"), path.with_suffix(".json")
    made = json.loads(progress.read_text())["made"] if progress.exists() and partial.exists() else 0
    out = None
    name = f"encode {bucket.folder.name} {path.stem.rsplit('-', 1)[0]}"
    for start in tqdm(range(made, len(bucket), batch_size), name):
        indices = range(start, min(start + batch_size, len(bucket)))
        clips = bucket.load_clips(indices)
        if image:
            frames = [int(np.random.default_rng(index).integers(clips.shape[2])) for index in indices]
            clips = torch.stack([clip[:, frame : frame + 1] for clip, frame in zip(clips, frames, strict=True)])
        latents = encode(clips.flip(-1) if flipped else clips).to(torch.float16).numpy()
        if out is None:
            out = _open_memmap(partial, np.float16, (len(bucket), *latents.shape[1:]), create=not made)
        out[indices.start : indices.stop] = latents
        if (start // batch_size) % FLUSH_BATCHES == FLUSH_BATCHES - 1:
            out.flush()
            _write_json(progress, {"made": indices.stop})
    if out is not None:
        out.flush()
    os.replace(partial, path)
    progress.unlink(missing_ok=True)
    return bucket.load_latents(encoder_hash, image, flipped)


def sample_order(seed: int, stream: str, size: int) -> Callable[[int], int]:
    """Return the function from a global sample index to a clip index: a fresh shuffle for each epoch.

    It is the same on every machine. `stream` names what is drawn, so that two uses of one seed differ.
    """
    shuffles: dict[int, np.ndarray] = {}

    def clip_of(sample: int) -> int:
        epoch, position = divmod(sample, size)
        if epoch not in shuffles:
            shuffles.clear()
            shuffles[epoch] = np.random.default_rng([seed, *stream.encode(), epoch]).permutation(size)
        return int(shuffles[epoch][position])

    return clip_of


def weighted_sample_order(bucket: Bucket, seed: int, stream: str, object_count_power: int = 0) -> Callable[[int], int]:
    """Return a `sample_order` in which a clip of n objects occurs n ** object_count_power times per epoch."""
    if not object_count_power:
        return sample_order(seed, stream, len(bucket))
    counts = [len(bucket.scene(clip).things) ** object_count_power for clip in range(len(bucket))]
    clips = np.arange(len(bucket)).repeat(counts)
    position_of = sample_order(seed, stream, len(clips))
    return lambda sample: int(clips[position_of(sample)])


def shard_samples(count: int, step: int, rank: int, world_size: int) -> Iterator[int]:
    """List the global indices of the samples of one process at a step that takes `count` samples over all processes.

    Raises ValueError if the processes cannot take equally many.
    """
    if count % world_size:
        raise ValueError(f"the clips of a step must be a multiple of the {world_size} processes; got {count}")
    per_process = count // world_size
    yield from range(step * count + rank * per_process, step * count + (rank + 1) * per_process)


def _open_memmap(path: Path, dtype, shape: tuple[int, ...], create: bool) -> np.memmap:
    """Open an array on disk and allocate all of its blocks.

    Raises OSError if the disk has too little room, which a write to a memory map could not report.
    """
    array = np.lib.format.open_memmap(path, "w+" if create else "r+", dtype, shape)
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def _count_made(folder: Path, wanted: dict) -> int:
    """Return how many clips are complete; raises DataError if the folder holds other clips than wanted."""
    path = folder / "state.json"
    if not path.exists():
        return 0
    state = json.loads(path.read_text())
    made = state.pop("made")
    if state != wanted:
        raise DataError(f"{folder} holds other clips ({state}) than asked for ({wanted}); name another folder")
    return made


def write_captions(scene: Scene) -> dict[str, list[str]]:
    """Write the captions of a clip, "moving" of the video and "still" of any frame: a function of the scene alone."""
    rng = clip_rng(scene.seed, scene.split, scene.index, purpose=1)
    video, image = (CAPTIONS[of_image][scene.edition - 1] for of_image in (False, True))
    return {
        "moving": [write_caption(scene, kind, language, rng=rng) for kind, language in video],
        "still": [write_caption(scene, kind, language, moving=False, rng=rng) for kind, language in image],
    }


def _truncate_lines(path: Path, count: int) -> None:
    """Keep the first `count` lines of a file."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[:count] if path.exists() else []
    path.write_text("".join(lines), encoding="utf-8")


def _write_json(path: Path, value: dict) -> None:
    with atomic_write(path, durable=False) as temporary:
        temporary.write_text(json.dumps(value))


def _latents_name(encoder_hash: str, image: bool, flipped: bool) -> str:
    return f"{'stills' if image else 'latents'}{'-mirrored' if flipped else ''}-{encoder_hash}.npy"
