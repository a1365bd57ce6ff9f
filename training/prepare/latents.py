"""Code clips for training: latents in WebDataset tars, `shards/VAE/RESOLUTION/ASPECT/FRAMES/NUMBER.tar`.

Every clip is brought to the format of training that is nearest to its own, and coded stretch by stretch, its captions
beside it; where these change, its tar is written anew, and nothing is coded again. A tar is whole when it is noted in
the journal, and from the journal the manifest says where in it what is. Names hold the hashes of clip and encoder, so
that nothing stale is used. Captions are encoded as well (`glossary.py`).
"""

from __future__ import annotations

import io
import json
import math
import os
import tarfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from training.config import Format
from training.dataset import DataError
from training.prepare.clips import rows_of
from training.prepare.engine import Where, each, shown
from training.prepare.manifest import (
    Journal,
    Kind,
    Row,
    Sample,
    alone,
    coded,
    digest_of,
    kind_of,
    read_manifest,
    size_of,
    tars,
    write_manifest,
)
from training.prepare.text_cache import WORDS, key_of, portions, speaker_of, stored, write_words
from vae.model import VideoVAE
from vae.video.pixels import MediaError, fit_image
from vae.video.read import read_image, read_video
from vae.weights import load_strictly

FORMATS: tuple[Format, ...] = ((64, 64, 17), (80, 48, 17), (48, 80, 17), (64, 64, 1))


@dataclass(frozen=True)
class LatentsRun(Where):
    """Which prepared folder to code, by the VAE in `vae`, to which `formats` (columns, rows, frames) at `fps`; a tar
    holds `samples`. Captions are encoded by the text encoder of `text`, a folder or a name.
    """

    folder: Path = Path("prepared")
    vae: Path = Path("app/models/first/vae")
    text: Path = Path("app/models/first")
    formats: tuple[Format, ...] = FORMATS
    fps: float = 8.0
    samples: int = 1000


class Task(NamedTuple):
    """A clip, the run that it is coded for, and as what kind of latents."""

    row: Row
    run: LatentsRun
    kind: Kind


Coded = tuple[Row, list[np.ndarray]]  # a clip, and its samples
Note = Callable[[dict[str, Any]], None]  # of a journal


def latents(run: LatentsRun) -> dict[str, int]:
    """Code all clips that this encoder has not coded in this format yet, and encode captions that are new; returns how
    many clips there are, were done, fit no format, how many samples there are, how many were written anew as other
    captions go with them now, how many captions are encoded, and how much failed.
    """
    stamp, (*_, speaker) = encoder_of(run.vae).encoder_hash(), speaker_of(run.text)
    with alone(run.folder):
        rows = rows_of(run.folder, begun=True)
        for path in (run.folder / "shards").rglob(".*.tar"):  # a killed run's
            path.unlink()
        fitting = [(row, kind) for row in rows if (kind := kind_for(run, row, stamp))]
        before = coded(run.folder)
        tasks = [Task(row, run, kind) for row, kind in fitting if (row.clip, kind) not in before]
        with Journal(run.folder, "latents").adding() as note:
            code_clips(run, tasks, note)
            retold, past = retell(run.folder, rows, note)
        write_manifest(run.folder, rows)
        for path in past:  # now that nothing names them any more
            path.unlink()
        encode_captions(run, [row for row, _ in fitting])
        done, kept = coded(run.folder), sum(not row.dropped for row in rows)
        return {
            "clips": kept,
            "done before": len(fitting) - len(tasks),
            "too short": kept - len(fitting),
            "samples": sum(len(done[row.clip, kind].samples) for row, kind in fitting if (row.clip, kind) in done),
            "told anew": retold,
            "captions": len(said_of([row for row, _ in fitting]) & dict(stored(run.folder, speaker)).keys()),
            "failed": len(failed_latents(run)),
        }


def failed_latents(run: LatentsRun) -> list[tuple[str, str]]:
    """List the clips that could not be coded, or not with the captions that they have now, or whose captions could not
    be encoded, and why.
    """
    stamp, rows = encoder_of(run.vae).encoder_hash(), rows_of(run.folder)
    lines = Journal(run.folder, "latents").lines()
    errors = {(line["clip"], kind_of(line)): line["error"] for line in lines if "error" in line}
    done = {key: held.texts for key, held in coded(run.folder).items()}
    wanted = [(row, (row.clip, kind)) for row in rows if (kind := kind_for(run, row, stamp))]
    undone = [(row.file, key) for row, key in wanted if done.get(key) != digest_of(row.captions)]
    failed = [(file, errors[key]) for file, key in undone if key in errors]
    return failed + failed_words(run, [row for row, _ in wanted])


def encode_captions(run: LatentsRun, rows: list[Row]) -> None:
    """Encode the captions of clips that are not encoded yet, and no words at all, which training shows as well."""
    for path in (run.folder / WORDS).rglob(".*.safetensors"):  # a killed run's
        path.unlink()
    todo = portions(run.folder, run.text, said_of(rows).values())
    with Journal(run.folder, WORDS).adding() as note:
        found = each(write_words, todo, run.engine, run.workers, run.limit, memory=None)
        for outcome in shown(found, WORDS, len(todo)):
            if outcome.error is not None:
                keys = [key_of(text) for text in todo[outcome.number].texts]
                note({"encoder": speaker_of(run.text)[2], "captions": keys, "error": outcome.error})


def failed_words(run: LatentsRun, rows: list[Row]) -> list[tuple[str, str]]:
    """List the clips that have captions which could not be encoded, and why."""
    *_, stamp = speaker_of(run.text)
    lines = [line for line in Journal(run.folder, WORDS).lines() if line["encoder"] == stamp]
    errors = {key: line["error"] for line in lines for key in line["captions"]}
    for key in errors.keys() & dict(stored(run.folder, stamp)).keys():
        del errors[key]
    found = [(row.file, [errors[key] for key in said_of([row]) if key in errors]) for row in rows]
    return [(file, f"its captions cannot be encoded: {told[0]}") for file, told in found if told]


def said_of(rows: list[Row]) -> dict[str, str]:
    """Return all that is said of clips in training, by its key."""
    return {key_of(text): text for text in ["", *(said.text for row in rows for said in row.captions)]}


def kind_for(run: LatentsRun, row: Row, stamp: str) -> Kind | None:
    """Return the kind of latents that a run makes of a clip; None where it fits no format, or is dropped."""
    format = None if row.dropped else fit(row, run.formats, run.fps)
    return format and Kind(stamp, run.fps, format)


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
    row, run, (_, fps, (columns, rows, frames)) = task
    path = run.folder / row.file
    if path.suffix == ".png":
        video = fit_image(read_image(path), rows, columns)
    else:
        video = read_video(path, fps, size=(rows, columns)).video
    vae = encoder_of(run.vae)
    parts = [video[:, start : start + frames] for start in range(0, video.shape[1] - frames + 1, frames)]
    if not parts:
        raise MediaError(f"{row.file} shows {video.shape[1]} frames of the {frames} it should; cut its source again")
    return [vae.encode(part[None])[0].to(torch.float16).numpy() for part in parts]


def code_clips(run: LatentsRun, tasks: list[Task], note: Note) -> None:
    """Code clips, and write tars of them."""
    waiting: defaultdict[Kind, list[Coded]] = defaultdict(list)
    for outcome in run.each(code_clip, tasks):
        row, _, kind = tasks[outcome.number]
        if outcome.error is not None:
            note({"clip": row.clip, **kind._asdict(), **outcome.told()})
            continue
        waiting[kind].append((row, outcome.value))
        if sum(len(samples) for _, samples in waiting[kind]) >= run.samples:
            shelve(run.folder, kind, waiting.pop(kind), note)
    for kind, clips in waiting.items():
        shelve(run.folder, kind, clips, note)


def retell(folder: Path, rows: list[Row], note: Note) -> tuple[int, list[Path]]:
    """Write anew the tars that tell other captions than their clips have now, or that hold what is gone or elsewhere;
    returns how many samples that were, and the tars that may go once the manifest is made anew.
    """
    known, done = {row.clip: row for row in rows}, coded(folder)
    retold, past = 0, []
    for line in list(tars(folder)):
        kind = kind_of(line)
        held = {clip: done[clip, kind] for clip in line["clips"] if clip in known}
        held = {clip: one for clip, one in held.items() if one.samples[0].shard == line["shard"]}
        texts = {clip: digest_of(known[clip].captions) for clip in held}
        if len(held) == len(line["clips"]) and all(held[clip].texts == texts[clip] for clip in held):
            continue
        tar = mapped(folder / line["shard"])
        clips = [(known[clip], [numbers(tar, one) for one in held[clip].samples]) for clip in held]
        if not clips or shelve(folder, kind, clips, note):
            retold += sum(len(samples) for _, samples in clips)
            past.append(folder / line["shard"])
    return retold, past


def shelve(folder: Path, kind: Kind, clips: list[Coded], note: Note) -> bool:
    """Write samples of one kind as the next tar and note what it holds, in one line; or why it could not be done. Says
    whether it was.
    """
    columns, rows, frames = kind.format
    common = math.gcd(columns, rows)
    place = Path("shards", kind.encoder, f"{min(columns, rows)}p", f"{columns // common}-{rows // common}", str(frames))
    noted = [Path(line["shard"]) for line in Journal(folder, "latents").lines() if "shard" in line]
    used = [int(path.stem) for path in noted if path.parent == place]  # what is lost is not written over either
    try:
        (folder / place).mkdir(parents=True, exist_ok=True)
        used += [int(path.stem) for path in (folder / place).glob("[0-9]*.tar")]
        shard = place / f"{max(used, default=-1) + 1:06d}.tar"
        temporary = folder / place / f".{shard.name}"
        found = write_tar(temporary, kind.fps, clips)
    except OSError as error:
        said = f"its tar cannot be written: {error}; make room and run again"
        for row, _ in clips:
            note({"clip": row.clip, **kind._asdict(), "error": said})
        return False
    texts = {row.clip: digest_of(row.captions) for row, _ in clips}
    note({**kind._asdict(), "shard": str(shard), "clips": found, "texts": texts})
    os.replace(temporary, folder / shard)  # after it is noted: no tar is there that nothing names
    return True


def write_tar(path: Path, fps: float, clips: list[Coded]) -> dict[str, list[dict]]:
    """Write a tar, to stay; returns where in it samples are, by clip."""
    with open(path, "wb") as file:
        with tarfile.open(fileobj=file, mode="w") as tar:
            found = {row.clip: [_sample(tar, row, *one, fps) for one in enumerate(parts)] for row, parts in clips}
        file.flush()
        os.fsync(file.fileno())
    return found


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


def mapped(path: Path) -> np.ndarray:
    """Return a file's bytes, not in memory, to be read even when it is removed meanwhile; takes no file descriptor."""
    found = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8).numpy()
    found.flags.writeable = False
    return found


def numbers(tar: np.ndarray, sample: Sample) -> np.ndarray:
    """Return the latents (C, T, H, W) of a sample in a mapped tar."""
    return tar[sample.offset : sample.offset + sample.bytes].view(np.float16).reshape(sample.shape)


class Shelf:
    """The samples of one format in a prepared folder, read by random access: `shelf[n]` are latents (C, T, H, W), and
    `captions[n]` the words for them. Raises DataError where there are none.
    """

    def __init__(self, folder: Path, format: Format, stamp: str, fps: float):
        self.folder = folder / "x".join(map(str, format))  # what it is called in the order of a run
        kind = "still" if format[2] == 1 else "moving"
        asked = Kind(stamp, fps, format)
        found = [(row, one) for row in read_manifest(folder) if not row.dropped for one in row.latents]
        mine = [(row, one) for row, one in found if Kind(one.encoder, one.fps, one.format) == asked]
        sizes = {shard: size_of(folder / shard) for shard in {one.shard for _, one in mine}}
        there = [(row, one) for row, one in mine if one.offset + one.bytes <= sizes[one.shard]]
        self.tars = {shard: mapped(folder / shard) for shard in {one.shard for _, one in there}}
        self.samples = [one for _, one in there]
        self.captions = [{kind: [caption.text for caption in row.captions] or [""]} for row, _ in there]
        if not self.samples:
            name = self.folder.name
            raise DataError(f"a data set must have clips of {name}; {folder} has none, so longtake prepare latents")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> np.ndarray:
        sample = self.samples[number]
        return numbers(self.tars[sample.shard], sample)

    @property
    def shape(self) -> tuple[int, ...]:
        """(samples, C, T, H, W)."""
        return len(self), *self.samples[0].shape
