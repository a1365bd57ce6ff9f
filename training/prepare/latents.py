"""Encode clips for training: latents in WebDataset shards, `shards/VAE/RESOLUTION/ASPECT/FRAMES/NUMBER.tar`.

Every clip is resized to the training format nearest to its own and split into segments of that format's length. Each
segment is one sample of a shard: its latents and its captions. When captions change, their shards are written again
with the same latents. A shard is valid once the journal has an entry for it; the manifest takes the place of every
segment from there. Names hold the hashes of the clip and of the encoder, so that stale latents are never used.
Captions are encoded too (`training/text_cache.py`).
"""

from __future__ import annotations

import io
import json
import math
import tarfile
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from training.config import Format
from training.latent_dataset import map_file, read_latents
from training.manifest import ClipRow, LatentSpec, captions_digest
from training.prepare.engine import PrepareRun, parallel_map, with_progress
from training.prepare.journal import (
    Append,
    Journal,
    clip_rows,
    latent_shards,
    locked_folder,
    spec_of,
    stored_latents,
    update_manifest,
)
from training.text_cache import (
    TEXT_EMBEDDINGS,
    cached_embeddings,
    cached_text_encoder,
    pending_batches,
    text_key,
    write_embeddings,
)
from vae.files import atomic_write
from vae.model import VideoVAE
from vae.video.pixels import MediaError, fit_image
from vae.video.read import read_image, read_video
from vae.weights import load_strictly

FORMATS: tuple[Format, ...] = ((64, 64, 17), (80, 48, 17), (48, 80, 17), (64, 64, 1))


@dataclass(frozen=True)
class LatentsRun(PrepareRun):
    """Encode the clips of a prepared folder with the VAE in `vae` at `fps`, each to the nearest of `formats`.

    A format is (columns, rows, frames). Captions are encoded by `text_encoder`, a model folder or a name of
    transformers. A shard holds about `shard_samples` samples.
    """

    folder: Path = Path("prepared")
    vae: Path = Path("app/models/first/vae")
    text_encoder: Path = Path("app/models/first")
    formats: tuple[Format, ...] = FORMATS
    fps: float = 8.0
    shard_samples: int = 1000


class EncodeTask(NamedTuple):
    """One clip to encode."""

    row: ClipRow
    run: LatentsRun
    spec: LatentSpec


EncodedClip = tuple[ClipRow, list[np.ndarray]]  # a clip, and the latents of its segments


def encode_latents(run: LatentsRun) -> dict[str, int]:
    """Encode all clips and captions that lack latents or embeddings of these encoders; return counts for the report.

    The counts: clips, clips encoded before, clips too short for every format, samples, samples whose captions were
    updated, captions encoded, failures, and captions that the text encoder cuts, if any.
    """
    encoder_hash, (*_, text_hash) = cached_vae(run.vae).encoder_hash(), cached_text_encoder(run.text_encoder)
    with locked_folder(run.folder):
        rows = clip_rows(run.folder, required=True)
        for path in (run.folder / "shards").rglob(".*"):  # left by a killed run
            path.unlink()
        fitting = [(row, spec) for row in rows if (spec := spec_for(run, row, encoder_hash))]
        before = stored_latents(run.folder)
        tasks = [EncodeTask(row, run, spec) for row, spec in fitting if (row.clip, spec) not in before]
        with Journal(run.folder, "latents").appending() as append:
            encode_clips(run, tasks, append)
            updated, stale = rewrite_stale_shards(run.folder, rows, append)
        update_manifest(run.folder, rows)
        for path in stale:  # the manifest does not name them any more
            path.unlink()
        encode_captions(run, [row for row, _ in fitting])
        stored, kept = stored_latents(run.folder), sum(not row.dropped for row in rows)
        embedded = training_texts([row for row, _ in fitting]) & dict(cached_embeddings(run.folder, text_hash)).keys()
        cut = {"captions cut": len(found)} if (found := cut_captions(run)) else {}
        return {
            "clips": kept,
            "done before": len(fitting) - len(tasks),
            "too short": kept - len(fitting),
            "samples": sum(len(stored[row.clip, spec].segments) for row, spec in fitting if (row.clip, spec) in stored),
            "captions updated": updated,
            "captions": len(embedded),
            "failed": len(failed_latents(run)),
        } | cut


def cut_captions(run: LatentsRun) -> list[str]:
    """Describe the captions of kept clips that are longer than the text encoder reads: file, source and tokens."""
    tokenizer, *_ = cached_text_encoder(run.text_encoder)
    limit, found = tokenizer.model_max_length, []
    for row in clip_rows(run.folder):
        for caption in () if row.dropped else row.captions:
            if len(caption.text.encode()) > limit // 2:  # a token is a byte or more, and each end may be one
                tokens = len(tokenizer(caption.text, truncation=False, verbose=False)["input_ids"])
                if tokens > limit:
                    found.append(f"{row.file} of {row.source}: its caption is cut at {limit} of {tokens} tokens")
    return found


def failed_latents(run: LatentsRun) -> list[tuple[str, str]]:
    """List the clips that lack latents, current captions in their shards, or text embeddings, each with the error."""
    encoder_hash, rows = cached_vae(run.vae).encoder_hash(), clip_rows(run.folder)
    entries = Journal(run.folder, "latents").entries()
    errors = {(entry["clip"], spec_of(entry)): entry["error"] for entry in entries if "error" in entry}
    stored = {key: latents.captions for key, latents in stored_latents(run.folder).items()}
    wanted = [(row, (row.clip, spec)) for row in rows if (spec := spec_for(run, row, encoder_hash))]
    missing = [(row.file, key) for row, key in wanted if stored.get(key) != captions_digest(row.captions)]
    failed = [(file, errors[key]) for file, key in missing if key in errors]
    return failed + failed_embeddings(run, [row for row, _ in wanted])


def encode_captions(run: LatentsRun, rows: list[ClipRow]) -> None:
    """Encode the captions that are not cached yet, and the empty caption, which training uses for guidance."""
    for path in (run.folder / TEXT_EMBEDDINGS).rglob(".*"):  # left by a killed run
        path.unlink()
    batches = pending_batches(run.folder, run.text_encoder, training_texts(rows).values())
    with Journal(run.folder, TEXT_EMBEDDINGS).appending() as append:
        outcomes = parallel_map(write_embeddings, batches, run.engine, run.workers, run.timeout, memory_bytes=None)
        for outcome in with_progress(outcomes, TEXT_EMBEDDINGS, len(batches)):
            if outcome.error is not None:
                keys = [text_key(text) for text in batches[outcome.number].texts]
                append({"encoder": cached_text_encoder(run.text_encoder)[2], "captions": keys, "error": outcome.error})


def failed_embeddings(run: LatentsRun, rows: list[ClipRow]) -> list[tuple[str, str]]:
    """List the clips with captions that could not be encoded, each with the error."""
    *_, text_hash = cached_text_encoder(run.text_encoder)
    entries = [entry for entry in Journal(run.folder, TEXT_EMBEDDINGS).entries() if entry["encoder"] == text_hash]
    errors = {key: entry["error"] for entry in entries for key in entry["captions"]}
    for key in errors.keys() & dict(cached_embeddings(run.folder, text_hash)).keys():
        del errors[key]
    found = [(row.file, [errors[key] for key in training_texts([row]) if key in errors]) for row in rows]
    return [(file, f"its captions cannot be encoded: {own[0]}") for file, own in found if own]


def training_texts(rows: list[ClipRow]) -> dict[str, str]:
    """Return all captions of some clips, and the empty one, by their keys in the text cache."""
    return {text_key(text): text for text in ["", *(caption.text for row in rows for caption in row.captions)]}


def spec_for(run: LatentsRun, row: ClipRow, encoder_hash: str) -> LatentSpec | None:
    """Return the LatentSpec that a run encodes a clip with; None where it is dropped or fits no format."""
    format = None if row.dropped else nearest_format(row, run.formats, run.fps)
    return format and LatentSpec(encoder_hash, run.fps, format)


def nearest_format(row: ClipRow, formats: tuple[Format, ...], fps: float) -> Format | None:
    """Choose the format that is nearest to a clip; None where the clip is too short for every format.

    The nearest aspect ratio wins, then the largest size that needs no upscaling, then the most frames. Images go only
    to formats of one frame.
    """
    frames = 1 if row.frames == 1 else math.floor((row.end - row.begin) * fps + 0.5)  # as many as `read_video` returns
    filled = [format for format in formats if format[2] <= frames and (format[2] == 1) == (row.frames == 1)]

    def cost(format: Format) -> tuple:
        columns, rows, length = format
        upscaling = max(columns / row.columns, rows / row.rows, 1.0)
        return round(abs(math.log(columns / rows * row.rows / row.columns)), 3), upscaling, -columns * rows, -length

    return min(filled, key=cost, default=None)


@cache
def cached_vae(folder: Path) -> VideoVAE:
    """Return a VAE for inference, loaded once per process."""
    return load_strictly(VideoVAE, folder).requires_grad_(False).eval()


def encode_clip(task: EncodeTask) -> list[np.ndarray]:
    """Return the latents (C, T, H, W), in float16, of every full segment of a clip.

    Raises MediaError where the clip is shorter than in the manifest.
    """
    row, run, (_, fps, (columns, rows, frames)) = task
    path = run.folder / row.file
    if path.suffix == ".png":
        video = fit_image(read_image(path), rows, columns)
    else:
        video = read_video(path, fps, size=(rows, columns)).video
    vae = cached_vae(run.vae)
    segments = [video[:, start : start + frames] for start in range(0, video.shape[1] - frames + 1, frames)]
    if not segments:
        raise MediaError(f"{row.file} shows {video.shape[1]} frames of the {frames} it should; cut its source again")
    return [vae.encode(segment[None])[0].to(torch.float16).numpy() for segment in segments]


def encode_clips(run: LatentsRun, tasks: list[EncodeTask], append: Append) -> None:
    """Encode clips and write their shards."""
    waiting: defaultdict[LatentSpec, list[EncodedClip]] = defaultdict(list)
    for outcome in run.map(encode_clip, tasks):
        row, _, spec = tasks[outcome.number]
        if outcome.error is not None:
            append({"clip": row.clip, **spec._asdict(), **outcome.journal_entry()})
            continue
        waiting[spec].append((row, outcome.value))
        if sum(len(segments) for _, segments in waiting[spec]) >= run.shard_samples:
            write_shard(run.folder, spec, waiting.pop(spec), append)
    for spec, clips in waiting.items():
        write_shard(run.folder, spec, clips, append)


def rewrite_stale_shards(folder: Path, rows: list[ClipRow], append: Append) -> tuple[int, list[Path]]:
    """Write shards again whose captions are not the current ones, or which hold removed or duplicate clips.

    Returns the number of samples written, and the old shards, to be removed once the manifest is updated.
    """
    known, stored = {row.clip: row for row in rows}, stored_latents(folder)
    updated, stale = 0, []
    for entry in list(latent_shards(folder)):
        spec = spec_of(entry)
        held = {clip: stored[clip, spec] for clip in entry["clips"] if clip in known}
        held = {clip: latents for clip, latents in held.items() if latents.segments[0].shard == entry["shard"]}
        digests = {clip: captions_digest(known[clip].captions) for clip in held}
        if len(held) == len(entry["clips"]) and all(held[clip].captions == digests[clip] for clip in held):
            continue
        shard = map_file(folder / entry["shard"])
        clips = [(known[clip], [read_latents(shard, segment) for segment in held[clip].segments]) for clip in held]
        if not clips or write_shard(folder, spec, clips, append):
            updated += sum(len(segments) for _, segments in clips)
            stale.append(folder / entry["shard"])
    return updated, stale


def write_shard(folder: Path, spec: LatentSpec, clips: list[EncodedClip], append: Append) -> bool:
    """Write clips of one LatentSpec as the next shard, and add one journal entry for it, or one per clip on failure.

    Returns whether it was written.
    """
    columns, rows, frames = spec.format
    common = math.gcd(columns, rows)
    place = Path("shards", spec.encoder, f"{min(columns, rows)}p", f"{columns // common}-{rows // common}", str(frames))
    entries = [Path(entry["shard"]) for entry in Journal(folder, "latents").entries() if "shard" in entry]
    used = [int(path.stem) for path in entries if path.parent == place]  # numbers of lost shards are not used again
    digests = {row.clip: captions_digest(row.captions) for row, _ in clips}
    try:
        (folder / place).mkdir(parents=True, exist_ok=True)
        used += [int(path.stem) for path in (folder / place).glob("[0-9]*.tar")]
        shard = place / f"{max(used, default=-1) + 1:06d}.tar"
        with atomic_write(folder / shard) as temporary:
            places = write_tar(temporary, spec.fps, clips)
            # The entry comes before the rename, so that every shard on disk has an entry.
            append({**spec._asdict(), "shard": str(shard), "clips": places, "texts": digests})
    except OSError as error:
        reason = f"its tar cannot be written: {error}; make room and run again"
        for row, _ in clips:
            append({"clip": row.clip, **spec._asdict(), "error": reason})
        return False
    return True


def write_tar(path: Path, fps: float, clips: list[EncodedClip]) -> dict[str, list[dict]]:
    """Write a WebDataset tar; return the offset and shape of the latents of every segment, by clip."""
    with tarfile.open(path, mode="w") as tar:
        return {
            row.clip: [_add_sample(tar, row, number, latents, fps) for number, latents in enumerate(segments)]
            for row, segments in clips
        }


def _add_sample(tar: tarfile.TarFile, row: ClipRow, number: int, latents: np.ndarray, fps: float) -> dict:
    """Add the files of one sample to a tar; return the byte offset of its numbers, and their shape."""
    about = {"clip": row.clip, "fps": fps, "captions": [caption.text for caption in row.captions]}
    array = io.BytesIO()
    np.save(array, latents)
    offset = _add_file(tar, f"{row.clip}-{number:03d}.latents.npy", array.getvalue())
    _add_file(tar, f"{row.clip}-{number:03d}.json", json.dumps(about, ensure_ascii=False).encode())
    return {"offset": offset + len(array.getvalue()) - latents.nbytes, "shape": list(latents.shape)}


def _add_file(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Add a file to a tar; return the byte offset of its content."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    offset = tar.offset + len(member.tobuf(tar.format, tar.encoding or "utf-8", tar.errors))
    tar.addfile(member, io.BytesIO(data))
    return offset
