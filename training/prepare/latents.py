"""Code clips for training: latents in WebDataset tars, `shards/VAE/RESOLUTION/ASPECT/FRAMES/NUMBER.tar`.

Every clip is brought to the format of training that is nearest to its own, and coded stretch by stretch. A tar is
written whole before its clips are noted in the journal. Names hold the hashes of clip and encoder, so that nothing
stale is used.
"""

from __future__ import annotations

import io
import json
import math
import os
import tarfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from training.config import Format
from training.dataset import DataError
from training.prepare.clips import rows_of
from training.prepare.engine import Where
from training.prepare.manifest import Journal, Row, alone, read_manifest
from vae.media import MediaError, read_picture, read_video
from vae.model import VideoVAE
from vae.pixels import fit_picture
from vae.weights import load_strictly

FORMATS: tuple[Format, ...] = ((64, 64, 17), (80, 48, 17), (48, 80, 17), (64, 64, 1))


@dataclass(frozen=True)
class LatentsRun(Where):
    """Which prepared folder to code, by the VAE in `vae`, to which `formats` (columns, rows, frames) at `fps`; a tar
    holds `samples`.
    """

    folder: Path = Path("prepared")
    vae: Path = Path("app/models/first/vae")
    formats: tuple[Format, ...] = FORMATS
    fps: float = 8.0
    samples: int = 1000


class Task(NamedTuple):
    """A clip, the run that it is coded for, and the format."""

    row: Row
    run: LatentsRun
    format: Format


def latents(run: LatentsRun) -> dict[str, int]:
    """Code all clips that this encoder has not coded in this format yet; returns how many there are, were done, fit no
    format, and failed, and how many samples there are.
    """
    stamp = encoder_of(run.vae).encoder_hash()
    with alone(run.folder):
        rows = [row for row in rows_of(run.folder, begun=True) if not row.dropped]
        journal = Journal(run.folder, "latents")
        for path in (run.folder / "shards").rglob(".*.tar"):  # a killed run's
            path.unlink()
        fitting = [(row, format) for row in rows if (format := fit(row, run.formats, run.fps))]
        done = coded(run.folder, stamp, run.fps)
        tasks = [Task(row, run, format) for row, format in fitting if (row.clip, format) not in done]
        held: dict[Format, list[tuple[Row, list[np.ndarray]]]] = {format: [] for format in run.formats}
        with journal.adding() as note:
            for outcome in run.each(code_clip, tasks):
                row, _, format = tasks[outcome.number]
                if outcome.error is not None:
                    about = {"clip": row.clip, "encoder": stamp, "fps": run.fps, "format": format}
                    note(about | outcome.told())
                    continue
                held[format].append((row, outcome.value))
                if sum(len(samples) for _, samples in held[format]) >= run.samples:
                    shelve(run, stamp, format, held[format], note)
                    held[format] = []
            for format, clips in held.items():
                if clips:
                    shelve(run, stamp, format, clips, note)
        done = coded(run.folder, stamp, run.fps)
        there = [done[row.clip, format] for row, format in fitting if (row.clip, format) in done]
        return {
            "clips": len(rows),
            "done before": len(fitting) - len(tasks),
            "too short": len(rows) - len(fitting),
            "samples": sum(len(one.samples) for one in there),
            "failed": len(failed_latents(run)),
        }


class Coded(NamedTuple):
    """Where a clip's samples are: a tar, and for each where its numbers begin and their shape."""

    shard: Path
    samples: list[dict]


def coded(folder: Path, stamp: str, fps: float) -> dict[tuple[str, Format], Coded]:
    """Return the clips that an encoder coded at a rate, by name and format, of the tars that are there."""
    found = {}
    for line in Journal(folder, "latents").lines():
        if (line["encoder"], line["fps"]) == (stamp, fps) and "shard" in line and (folder / line["shard"]).exists():
            shard, (columns, rows, frames) = folder / line["shard"], line["format"]
            found |= {(clip, (columns, rows, frames)): Coded(shard, at) for clip, at in line["clips"].items()}
    return found


def failed_latents(run: LatentsRun) -> list[tuple[str, str]]:
    """List the clips that could not be coded, and why."""
    stamp = encoder_of(run.vae).encoder_hash()
    done, errors = coded(run.folder, stamp, run.fps), {}
    for line in Journal(run.folder, "latents").lines():
        if (line["encoder"], line["fps"]) == (stamp, run.fps) and "error" in line:
            errors[line["clip"], tuple(line["format"])] = line["error"]
    wanted = ((row.file, (row.clip, fit(row, run.formats, run.fps))) for row in rows_of(run.folder) if not row.dropped)
    return [(file, errors[key]) for file, key in wanted if key in errors and key not in done]


def fit(row: Row, formats: tuple[Format, ...], fps: float) -> Format | None:
    """Choose the format that is nearest to a clip: of the nearest aspect ratio, then the largest that needs no
    enlarging, then the longest that the clip fills; None where it fills none.
    """
    frames = 1 if row.frames == 1 else math.floor((row.end - row.begin) * fps + 0.5)  # as many as `read_video` shows
    filled = [format for format in formats if format[2] <= frames and (format[2] == 1) == (row.frames == 1)]

    def fitness(format: Format) -> tuple:
        columns, rows, length = format
        enlarged = max(columns / row.columns, rows / row.rows, 1.0)
        return round(abs(math.log(columns / rows * row.rows / row.columns)), 3), enlarged, -columns * rows, -length

    return min(filled, key=fitness, default=None)


@cache
def encoder_of(vae: Path) -> VideoVAE:
    """Return a VAE, loaded once in each process."""
    return load_strictly(VideoVAE, vae).requires_grad_(False).eval()


def code_clip(task: Task) -> list[np.ndarray]:
    """Return the latents (C, T, H, W), in float16, of each stretch of a clip that is as long as its format."""
    row, run, (columns, rows, frames) = task
    path = run.folder / row.file
    if path.suffix == ".png":
        video = fit_picture(read_picture(path), rows, columns)
    else:
        video = read_video(path, run.fps, size=(rows, columns)).video
    vae = encoder_of(run.vae)
    parts = [video[:, start : start + frames] for start in range(0, video.shape[1] - frames + 1, frames)]
    if not parts:
        raise MediaError(f"{row.file} shows {video.shape[1]} frames of the {frames} it should; cut its source again")
    return [vae.encode(part[None])[0].to(torch.float16).numpy() for part in parts]


def shelve(run: LatentsRun, stamp: str, format: Format, clips: list[tuple[Row, list[np.ndarray]]], note) -> None:
    """Write samples of one format as the next tar and note what it holds, in one line; or why it could not be done."""
    about = {"encoder": stamp, "fps": run.fps, "format": format}
    try:
        shard, found = write_shard(run, stamp, format, clips)
    except OSError as error:
        for row, _ in clips:
            note(about | {"clip": row.clip, "error": f"its tar cannot be written: {error}; make room and run again"})
        return
    note(about | {"shard": str(shard), "clips": found})


def write_shard(
    run: LatentsRun, stamp: str, format: Format, clips: list[tuple[Row, list[np.ndarray]]]
) -> tuple[Path, dict[str, list[dict]]]:
    """Write a tar, whole or not at all; returns its place within the folder, and where in it samples are, by clip."""
    columns, rows, frames = format
    common = math.gcd(columns, rows)
    place = Path("shards") / stamp / f"{min(columns, rows)}p" / f"{columns // common}-{rows // common}" / str(frames)
    (run.folder / place).mkdir(parents=True, exist_ok=True)
    used = [int(path.stem) for path in (run.folder / place).glob("[0-9]*.tar")]
    noted = [Path(line["shard"]) for line in Journal(run.folder, "latents").lines() if "shard" in line]
    used += [int(path.stem) for path in noted if path.parent == place]  # what is lost is not written over either
    shard = place / f"{max(used, default=-1) + 1:06d}.tar"
    temporary, found = run.folder / place / f".{shard.name}", {}
    with open(temporary, "wb") as file:
        with tarfile.open(fileobj=file, mode="w") as tar:
            for row, samples in clips:
                found[row.clip] = [_sample(tar, row, part, one, run.fps) for part, one in enumerate(samples)]
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, run.folder / shard)
    return shard, found


def _sample(tar: tarfile.TarFile, row: Row, part: int, latents: np.ndarray, fps: float) -> dict:
    """Add a sample to a tar; returns where its numbers begin, and their shape."""
    about = {"clip": row.clip, "fps": fps, "captions": [caption.text for caption in row.captions]}
    array = io.BytesIO()
    np.save(array, latents)
    offset = _add(tar, f"{row.clip}-{part:03d}.latents.npy", array.getvalue())
    _add(tar, f"{row.clip}-{part:03d}.json", json.dumps(about, ensure_ascii=False).encode())
    return {"offset": offset + len(array.getvalue()) - latents.nbytes, "shape": list(latents.shape)}


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Add a file to a tar; returns where its bytes begin."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    offset = tar.offset + len(member.tobuf(tar.format, tar.encoding, tar.errors))
    tar.addfile(member, io.BytesIO(data))
    return offset


class Shelf:
    """The samples of one format in a prepared folder, read by random access: `shelf[n]` are latents (C, T, H, W), and
    `captions[n]` the words for them. Raises DataError where there are none.
    """

    def __init__(self, folder: Path, format: Format, stamp: str, fps: float):
        self.folder = folder / "x".join(map(str, format))  # what it is called in the order of a run
        kind = "still" if format[2] == 1 else "moving"
        kept = [row for row in read_manifest(folder) if not row.dropped]
        words = {row.clip: [caption.text for caption in row.captions] or [""] for row in kept}
        done = sorted(coded(folder, stamp, fps).items())
        fitting = [(clip, at) for (clip, found), at in done if found == format and clip in words]
        mine = [(clip, at.shard, one) for clip, at in fitting for one in at.samples]
        self.samples = [(shard, one["offset"], one["shape"]) for _, shard, one in mine]
        self.captions = [{kind: words[clip]} for clip, _, _ in mine]
        if not self.samples:
            name = self.folder.name
            raise DataError(f"a data set must have clips of {name}; {folder} has none, so longtake prepare latents")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> np.ndarray:
        path, offset, shape = self.samples[number]
        return np.memmap(path, np.float16, "r", offset, tuple(shape))

    @property
    def shape(self) -> tuple[int, ...]:
        """(samples, C, T, H, W)."""
        return len(self), *self.samples[0][2]
