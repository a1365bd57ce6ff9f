"""Cut raw videos into clips of one shot each, at their own size and frame rate.

PySceneDetect finds the shots. A shot that begins and ends at keyframes is copied without decoding; any other shot is
encoded again, once. The journal records what is done, so that another run completes a killed or partly failed one.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import NamedTuple

import av
import torch
from av.error import FFmpegError
from av.video.frame import VideoFrame
from torch import Tensor

from captioning.text_files import check_encoding
from training.manifest import CaptionEntry, ClipRow, PrepareError
from training.prepare.encrypted import refuse_encrypted
from training.prepare.engine import PrepareRun
from training.prepare.journal import SIDECAR, Journal, locked_folder, rebuild_manifest
from training.prepare.shots import DETECTORS, ShotScan, frame_checksum, scan_shots, split_shots
from training.prepare.sources import (
    SourceFile,
    Survey,
    ensure_unchanged,
    file_sha256,
    local_file,
    survey_sources,
)
from vae.files import atomic_write
from vae.video.container import check_readable, decode_frames, open_video, resample_frames, select_video_stream
from vae.video.convert import FrameConverter
from vae.video.image import read_image
from vae.video.pixels import DiskError, MediaError, from_uint8
from vae.video.write import write_image, write_video

COPYABLE_CODECS = ("h264", "hevc", "av1", "mpeg4")  # codecs that an mp4 can hold
CHUNK_FRAMES = 16  # frames that are in memory at a time while a clip is encoded
VERSION = 1  # of the meaning of a clip's name
TEMPORARY = ".temporary"  # subfolder for files that are needed only while a source is cut
OLD_TEMPORARY = ".passing"  # its name in version 0.1, which a killed run may have left

Times = tuple[float, float]  # begin and end of a shot in seconds


@dataclass(frozen=True)
class ClipsRun(PrepareRun):
    """Cut `source` (a folder, a glob, a list or a tar) into clips of a prepared folder.

    Shots under `shortest` seconds are counted and left out; shots over `longest` seconds are split evenly.
    """

    source: str = ""
    folder: Path = Path("prepared")
    detector: str = "adaptive"
    shortest: float = 1.0
    longest: float = 10.0
    follow: bool = False  # follow symbolic links that lead out of the source
    encoding: str = ""  # of captions that are neither UTF-8 nor UTF-16; found out if it is not given

    @property
    def cut_settings(self) -> dict:
        """What the clips of a source depend on, besides the source; the journal calls it "cutting"."""
        return {name: getattr(self, name) for name in ("detector", "shortest", "longest")} | {"version": VERSION}


class CutTask(NamedTuple):
    """One source to cut."""

    source: SourceFile
    run: ClipsRun


def cut_clips(run: ClipsRun) -> dict[str, int]:
    """Cut all sources that are not cut yet; return counts for the report.

    The counts: sources, sources cut before, clips, shots that are too short, sources and captions that failed, sources
    with captions if any, and files left out by suffix. Raises PrepareError for wrong settings and for a folder that
    cannot be used.
    """
    check_clips(run)
    survey = survey_of(run)
    found = survey.sources
    with locked_folder(run.folder):
        remove_partial_files(run.folder)
        journal = Journal(run.folder, "clips")
        latest = latest_entries(journal)
        todo = [source for source in found if not is_cut(latest.get(source.key), source, run)]
        with journal.appending() as append:
            for outcome in run.map(cut_source, [CutTask(source, run) for source in todo]):
                source = todo[outcome.number]
                about = {
                    "key": source.key,
                    "stamp": source.stamp,
                    "words": source.sidecar,
                    "cutting": run.cut_settings,
                }
                append(about | outcome.journal_entry())
        rows, latest = rebuild_manifest(run.folder), latest_entries(journal)
        counts = {
            "sources": len(found),
            "done before": len(found) - len(todo),
            "clips": len(rows),
            "shots too short": sum(len(latest[source.key].get("short", ())) for source in found),
            "failed": sum("error" in latest[source.key] for source in found) + len(survey.errors),
        }
        captioned = sum(bool(source.captions) for source in found)
        left_out = {f"{suffix} left out": count for suffix, count in sorted(survey.left_out.items())}
        return counts | ({"with captions": captioned} if captioned else {}) | left_out


def survey_of(run: ClipsRun) -> Survey:
    """List the sources of a run, without files of its own prepared folder."""
    survey, own = survey_sources(run.source, run.follow, run.encoding), run.folder.resolve()
    survey.sources = [source for source in survey.sources if not Path(source.path).is_relative_to(own)]
    return survey


def remove_partial_files(folder: Path) -> None:
    """Remove what a killed run left unfinished."""
    for name in (TEMPORARY, OLD_TEMPORARY):
        shutil.rmtree(folder / name, ignore_errors=True)
    for path in (folder / "clips").glob("*/.*"):
        path.unlink()


def failed_clips(run: ClipsRun) -> list[tuple[str, str]]:
    """List the sources that could not be cut, and the captions that could not be read, each with the error."""
    latest, survey = latest_entries(Journal(run.folder, "clips")), survey_of(run)
    found = ((source.name, latest.get(source.key, {}).get("error")) for source in survey.sources)
    return [*((name, error) for name, error in found if error is not None), *survey.errors.items()]


def check_clips(run: ClipsRun) -> None:
    """Raise PrepareError for wrong settings."""
    if run.detector not in DETECTORS:
        raise PrepareError(f"detector must be one of {', '.join(DETECTORS)}; got {run.detector!r}")
    if not 0 < run.shortest <= run.longest / 2:
        got = f"{run.shortest:g} and {run.longest:g}"
        raise PrepareError(f"shortest must be above 0, and longest at least twice as much; got {got}")
    check_encoding(run.encoding)
    if Path(run.source).is_dir() and run.folder.resolve().is_relative_to(Path(run.source).resolve()):
        raise PrepareError(f"the folder must not lie within the source; got {run.folder} within {run.source}")


def latest_entries(journal: Journal) -> dict[str, dict]:
    """Return the last journal entry of every source, by its key."""
    return {entry["key"]: entry for entry in journal.entries()}


def is_cut(entry: dict | None, source: SourceFile, run: ClipsRun) -> bool:
    """Return whether a source is unchanged, was cut with these settings, and its clips still exist."""
    if entry is None or "short" not in entry:  # it failed, or was cut before short shots were counted
        return False
    same = tuple(entry["stamp"]) == source.stamp and entry["words"] == source.sidecar
    exist = all((run.folder / row["file"]).exists() for row in entry["rows"])
    return same and entry["cutting"] == run.cut_settings and exist


def cut_source(task: CutTask) -> dict:
    """Cut one source; return its SHA-256, the rows of its clips, and the times of shots that are too short.

    Raises MediaError for a source that cannot be read.
    """
    source, run = task
    with ensure_unchanged(source), local_file(source, run.folder / TEMPORARY) as path:
        refuse_encrypted(check_readable(path))
        if not source.is_image:
            with open_video(path) as container:  # fail early: the hash below reads the whole file
                select_video_stream(container, path)
        sha256 = file_sha256(path)
        cut = keep_image if source.is_image else cut_video
        captions = [CaptionEntry(text, SIDECAR, "1") for text in source.captions]
        found, short = cut(path, source, sha256, run)
        rows = [replace(row, captions=captions) for row in found]
    return {"source_sha256": sha256, "rows": [asdict(row) for row in rows], "short": short}


def keep_image(path: Path, source: SourceFile, sha256: str, run: ClipsRun) -> tuple[list[ClipRow], list[Times]]:
    """Store an image as a clip of one frame."""
    image = read_image(path)
    clip, file = new_clip(run.folder, sha256, 0, 1, ".png")
    write_image(run.folder / file, image)
    return [describe_clip(run.folder, clip, file, source, sha256, (0.0, 0.0), image, 1, 1.0, copied=False)], []


def cut_video(path: Path, source: SourceFile, sha256: str, run: ClipsRun) -> tuple[list[ClipRow], list[Times]]:
    """Cut a video into its shots; return the rows of the clips, and the times of the shots that are too short.

    A shot of variable frame rate is resampled by its time stamps.
    """
    scan, rows, short, position = scan_shots(path, run.detector), [], [], 0
    with open_video(path) as container:
        stream = select_video_stream(container, path)
        decoded, convert = decode_frames(container, stream), FrameConverter(path, stream)
        for first, end in split_shots(scan, run.longest):
            begin_time, end_time = scan.time(first), scan.time(end)
            times = (float(begin_time), float(end_time))
            if end_time - begin_time < run.shortest:
                short.append(times)
                continue
            head = next(islice(decoded, first - position, None))
            image, position, count, fps = convert(head[-1]), first + 1, end - first, scan.rate(first, end)
            clip, file = new_clip(run.folder, sha256, first, end, ".mp4")
            copied = scan.is_plain and copy_shot(path, run.folder / file, scan, first, end)
            if not copied:
                if image.shape[1] % 2 or image.shape[2] % 2:  # H.264 needs even sizes
                    clip, file = new_clip(run.folder, sha256, first, end, ".webm")
                shot = (frame for _, _, frame in chain([head], islice(decoded, end - position)))
                if not scan.is_even(first, end):
                    times_of = (scan.time(frame) - begin_time for frame in range(first, end + 1))
                    timed = (
                        (start, until, frame) for (start, until), frame in zip(pairwise(times_of), shot, strict=False)
                    )
                    shot = resample_frames(timed, fps, end_time - begin_time)
                    count = max(1, int((end_time - begin_time) * fps + Fraction(1, 2)))
                write_video(run.folder / file, pixel_chunks(shot, convert), fps)
                position = end
            rows.append(
                describe_clip(run.folder, clip, file, source, sha256, times, image, count, float(fps), copied=copied)
            )
    return rows, short


def new_clip(folder: Path, sha256: str, first: int, end: int, suffix: str) -> tuple[str, str]:
    """Return the name of a clip, a hash of source and frames, and its file within the folder, which gets a folder."""
    clip = hashlib.sha256(f"{sha256} {first} {end} {VERSION}".encode()).hexdigest()[:16]
    file = Path("clips") / clip[:2] / f"{clip}{suffix}"
    (folder / file.parent).mkdir(parents=True, exist_ok=True)
    return clip, str(file)


def describe_clip(
    folder: Path, clip: str, file: str, source: SourceFile, sha256: str, times: Times, image: Tensor,
    frames: int, fps: float, *, copied: bool,
) -> ClipRow:  # fmt: skip
    """Return the row of a clip that was written; `image` is its first frame (3, Y, X) or an image (3, 1, Y, X)."""
    *_, rows, columns = image.shape
    name = source.name.encode("utf-8", "backslashreplace").decode()  # names of files may be any bytes
    return ClipRow(clip, file, file_sha256(folder / file), name, sha256, *times, frames, fps, columns, rows, copied)


def pixel_chunks(frames: Iterator[VideoFrame], convert: Callable[[VideoFrame], Tensor]) -> Iterator[Tensor]:
    """Yield all frames as pixels (3, F, Y, X) in [-1, 1], CHUNK_FRAMES at a time; convert a repeated frame once."""
    chunk, last, image = [], None, torch.empty(0)
    for frame in frames:
        if len(chunk) == CHUNK_FRAMES:
            yield from_uint8(torch.stack(chunk, 1))
            chunk = []
        if frame is not last:
            last, image = frame, convert(frame)
        chunk.append(image)
    yield from_uint8(torch.stack(chunk, 1))


def copy_shot(path: Path, target: Path, scan: ShotScan, first: int, end: int) -> bool:
    """Copy the packets of a shot without encoding, if it is whole groups of pictures (GOPs) with even frame times.

    The copy is decoded once and kept only if every frame equals the source's: the last frames of an open GOP need the
    next one. Returns whether the shot was copied.
    """
    gaps = {after - before for before, after in pairwise(scan.times[first:end])}
    whole = scan.keyframes[first] and (end == len(scan.keyframes) or scan.keyframes[end])
    begin_pts, end_pts = scan.pts[first], scan.pts[end] if end < len(scan.pts) else None
    if not whole or begin_pts is None or (gaps and max(gaps) > 1.5 * min(gaps)):
        return False
    try:
        with open_video(path) as container, atomic_write(target) as temporary:
            stream = select_video_stream(container, path)
            if stream.codec_context.name not in COPYABLE_CODECS:
                raise MediaError(f"a stream to copy must be one of {', '.join(COPYABLE_CODECS)}")
            container.seek(begin_pts, stream=stream)
            with av.open(str(temporary), "w", format="mp4", options={"movflags": "+faststart"}) as out:
                copy = out.add_stream_from_template(stream)
                for packet in container.demux(stream):
                    if packet.pts is None or packet.dts is None:
                        continue
                    if end_pts is not None and packet.dts >= end_pts:
                        break
                    if packet.pts >= begin_pts and (end_pts is None or packet.pts < end_pts):
                        packet.pts, packet.dts, packet.stream = packet.pts - begin_pts, packet.dts - begin_pts, copy
                        out.mux(packet)
            if frame_checksums(temporary) != scan.checksums[first:end]:
                raise MediaError("a copy must show every frame as its source does")
        return True
    except DiskError:
        raise
    except (MediaError, FFmpegError):
        return False


def frame_checksums(path: Path) -> list[int]:
    """Return the checksums of all frames of a video."""
    with open_video(path) as container:
        frames = container.decode(select_video_stream(container, path))  # interlaced ones as they are: not to be copied
        return [frame_checksum(frame.to_ndarray(format="bgr24")) for frame in frames]
