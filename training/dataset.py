"""Clips on disk: made once, mapped into memory, drawn in an order that is a function of (seed, number) alone.

A data set is a folder with one sub-folder a format, `COLUMNSxROWSxFRAMES`, each holding `pixels.npy` (clips, 3, F, Y,
X) in uint8, `captions.jsonl` with a line a clip, and `state.json`, which says how many clips are whole. Latents are
written beside the pixels they come from, under the hash of the encoder that made them, so that no stale one is used.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from training.config import MANIFEST_FILE, Format, WorldRun
from training.world.scene import Scene, rng_of, sample_scene
from training.world.words import caption
from vae.files import atomic_write

# The captions kept with each clip, and those that are true of any single frame of it.
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
CHUNK = 128  # clips between two notes of progress
SPREAD = 1_000_000  # the first clip of format i of a data set is clip i * SPREAD of its split


class DataError(ValueError):
    """A data set that is absent, unfinished or of another kind."""


@dataclass(frozen=True)
class Bucket:
    """All clips of one format."""

    folder: Path

    @cached_property
    def state(self) -> dict:
        path = self.folder / "state.json"
        if not path.exists():
            raise DataError(
                f"a data set must have clips of {self.folder.name}; "
                f"{self.folder.parent} has none, so make them: longtake world"
            )
        state = json.loads(path.read_text())
        if state["made"] < state["clips"]:
            raise DataError(
                f"a data set must be whole; {self.folder} has {state['made']} of {state['clips']}, "
                "so run longtake world again"
            )
        return state

    @property
    def format(self) -> Format:
        columns, rows, frames = map(int, self.folder.name.split("x"))
        return columns, rows, frames

    def __len__(self) -> int:
        return self.state["clips"]

    @cached_property
    def pixels(self) -> np.ndarray:
        """(clips, 3, F, Y, X), uint8, not in memory."""
        return np.load(self.folder / "pixels.npy", mmap_mode="r")

    @cached_property
    def captions(self) -> list[dict[str, list[str]]]:
        with open(self.folder / "captions.jsonl", encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    def scene(self, number: int) -> Scene:
        """Return what clip `number` shows."""
        return sample_scene(self.state["seed"], self.state["split"], self.state["first"] + number)

    def clips(self, numbers) -> Tensor:
        """Return clips (B, 3, F, Y, X) in [-1, 1]."""
        return uint8_to_float(torch.from_numpy(np.stack([self.pixels[number] for number in numbers])))

    def latents(self, stamp: str, still: bool, mirrored: bool = False) -> np.ndarray:
        """Return the latents (clips, C, T, H, W) that `code` wrote for the encoder `stamp`; T = 1 for stills."""
        return np.load(self.folder / _latents_name(stamp, still, mirrored), mmap_mode="r")


def select_captions(captions: dict[str, list[str]], kind: str, language: str = "en", still: bool = False) -> list[str]:
    """Return those captions of a clip, or of any one frame of it, that are of one kind and language."""
    name, kinds = ("still", IMAGE_CAPTIONS) if still else ("moving", VIDEO_CAPTIONS)
    return [text for text, own in zip(captions[name], kinds, strict=True) if own == (kind, language)]


def uint8_to_float(stored: Tensor) -> Tensor:
    """Return uint8 as float in [-1, 1]."""
    return stored.float().div_(127.5).sub_(1)


def open_bucket(data: Path, format: Format) -> Bucket:
    return Bucket(data / "x".join(map(str, format)))


def data_hash(data: Path, formats: tuple[Format, ...]) -> str:
    """Return 16 hexadecimal digits that tell data sets apart: SHA-256 over their descriptions and captions."""
    digest = hashlib.sha256()
    if (data / MANIFEST_FILE).exists():
        from training.prepare.manifest import read_manifest

        for row in read_manifest(data):  # scores may come later
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
    """Render a data set of world clips with their captions. Killed and started again, it goes on where it was."""
    from training.world import make_clips

    for number, (format, clips) in enumerate(zip(run.formats, run.clips, strict=True)):
        columns, rows, frames = format
        folder = open_bucket(run.folder, format).folder
        folder.mkdir(parents=True, exist_ok=True)
        wanted = {"seed": run.seed, "split": run.split, "first": number * SPREAD, "fps": run.fps, "clips": clips}
        made = _made(folder, wanted)
        path = folder / "pixels.npy"
        shape = (clips, 3, frames, rows, columns)
        pixels = _mapped(path, np.uint8, shape, fresh=not made)
        _keep_lines(folder / "captions.jsonl", made)
        indices = range(wanted["first"] + made, wanted["first"] + clips)
        rendered = make_clips(
            indices, run.seed, run.split, run.workers, rows=rows, columns=columns, frames=frames, fps=run.fps
        )
        with open(folder / "captions.jsonl", "a", encoding="utf-8") as lines:
            for clip in tqdm(rendered, f"world {folder.name}", clips, initial=made):
                pixels[made] = clip.video.numpy()
                lines.write(json.dumps(_captions(clip.scene), ensure_ascii=False) + "\n")
                made += 1
                if made % CHUNK == 0 or made == clips:
                    pixels.flush()
                    lines.flush()
                    _write_json(folder / "state.json", wanted | {"made": made})


def _mapped(path: Path, kind, shape: tuple[int, ...], fresh: bool) -> np.ndarray:
    """Open an array on disk, all of its room taken at once: raises OSError where the disk has too little, which
    writing to a map could not say.
    """
    array = np.lib.format.open_memmap(path, "w+" if fresh else "r+", kind, shape)
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as stored:
            os.posix_fallocate(stored.fileno(), 0, path.stat().st_size)
    return array


def _made(folder: Path, wanted: dict) -> int:
    """Return how many clips are whole; raises DataError where the folder holds other clips than wanted."""
    path = folder / "state.json"
    if not path.exists():
        return 0
    state = json.loads(path.read_text())
    made = state.pop("made")
    if state != wanted:
        raise DataError(f"{folder} holds other clips ({state}) than asked for ({wanted}); name another folder")
    return made


def _captions(scene: Scene) -> dict[str, list[str]]:
    rng = rng_of(scene.seed, scene.split, scene.index, purpose=1)
    return {
        "moving": [caption(scene, kind, language, rng=rng) for kind, language in VIDEO_CAPTIONS],
        "still": [caption(scene, kind, language, moving=False, rng=rng) for kind, language in IMAGE_CAPTIONS],
    }


def _keep_lines(path: Path, count: int) -> None:
    """Cut a file behind its first `count` lines."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[:count] if path.exists() else []
    path.write_text("".join(lines), encoding="utf-8")


def _write_json(path: Path, value: dict) -> None:
    """Write a file whole or not at all."""
    with atomic_write(path, durable=False) as temporary:  # as the pixels that it counts, which are not synced
        temporary.write_text(json.dumps(value))


def _latents_name(stamp: str, still: bool, mirrored: bool) -> str:
    return f"{'stills' if still else 'latents'}{'-mirrored' if mirrored else ''}-{stamp}.npy"


def encode_latents(
    bucket: Bucket,
    encode: Callable[[Tensor], Tensor],
    stamp: str,
    still: bool,
    mirrored: bool = False,
    batch: int = 16,
) -> np.ndarray:
    """Write a bucket's latents in float16 beside its pixels, unless they are there; return them.

    With `still`, one frame of each clip, drawn by its number, is coded as an image; with `mirrored`, left and right are
    exchanged. Killed and started again, it goes on where it was.
    """
    path = bucket.folder / _latents_name(stamp, still, mirrored)
    if path.exists():
        return bucket.load_latents(stamp, still, mirrored)
    partial, note = path.with_suffix(".part"), path.with_suffix(".json")
    made = json.loads(note.read_text())["made"] if note.exists() and partial.exists() else 0
    out = None
    for start in tqdm(range(made, len(bucket), batch), f"code {bucket.folder.name} {path.stem.rsplit('-', 1)[0]}"):
        numbers = range(start, min(start + batch, len(bucket)))
        clips = bucket.load_clips(numbers)
        if still:
            chosen = [int(np.random.default_rng(number).integers(clips.shape[2])) for number in numbers]
            clips = torch.stack([clip[:, frame : frame + 1] for clip, frame in zip(clips, chosen, strict=True)])
        latents = encode(clips.flip(-1) if mirrored else clips).to(torch.float16).numpy()
        if out is None:
            out = _mapped(partial, np.float16, (len(bucket), *latents.shape[1:]), fresh=not made)
        out[numbers.start : numbers.stop] = latents
        if (start // batch) % 32 == 31:
            out.flush()
            _write_json(note, {"made": numbers.stop})
    if out is not None:
        out.flush()
    os.replace(partial, path)
    note.unlink(missing_ok=True)
    return bucket.load_latents(stamp, still, mirrored)


def sample_order(seed: int, stream: str, size: int) -> Callable[[int], int]:
    """Return the function from a sample's number to a clip's: each epoch a fresh shuffle, the same on every machine."""
    shuffles: dict[int, np.ndarray] = {}

    def clip_of(number: int) -> int:
        epoch, place = divmod(number, size)
        if epoch not in shuffles:
            shuffles.clear()
            shuffles[epoch] = np.random.default_rng([seed, *stream.encode(), epoch]).permutation(size)
        return int(shuffles[epoch][place])

    return clip_of


def weighted_sample_order(bucket: Bucket, seed: int, stream: str, crowds: int = 0) -> Callable[[int], int]:
    """Return the function from a sample's number to a clip's, as `order` does, but of clips of n things each n to the
    power of `crowds` times an epoch.
    """
    if not crowds:
        return sample_order(seed, stream, len(bucket))
    often = [len(bucket.scene(clip).things) ** crowds for clip in range(len(bucket))]
    clips = np.arange(len(bucket)).repeat(often)
    place_of = sample_order(seed, stream, len(clips))
    return lambda number: int(clips[place_of(number)])


def shard_samples(count: int, step: int, rank: int, world: int) -> Iterator[int]:
    """List the global numbers of the samples that one of `world` processes takes at a step, of `count` in all.

    Raises ValueError where the processes cannot share them equally.
    """
    if count % world:
        raise ValueError(f"the clips of a step must be a multiple of the {world} processes; got {count}")
    own = count // world
    yield from range(step * count + rank * own, step * count + (rank + 1) * own)
