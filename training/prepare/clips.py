"""Cut raw videos into clips of one shot each, at their own size and frame rate.

Shots are found by PySceneDetect. One that begins and ends at keyframes is copied as it is coded; any other is coded
anew, once. What is done is in the journal: a run that is killed or finds broken files is completed by another.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import NamedTuple

import av
import torch
from av.video.frame import VideoFrame
from torch import Tensor

from training.prepare.encrypted import refuse_locked
from training.prepare.engine import Where
from training.prepare.manifest import Caption, Journal, PrepareError, Row, alone, digest_of, write_manifest
from training.prepare.shots import DETECTORS, Look, check_of, look_at, parted
from training.prepare.sources import Source, at_hand, sha256_of, sources, unchanged
from vae.video.pixels import DiskError, MediaError, from_uint8
from vae.video.read import check_readable, decode_frames, frame_to_tensor, open_video, read_image, select_video_stream
from vae.video.write import write_image, write_video

COPIED = ("h264", "hevc", "av1", "mpeg4")  # codecs that an mp4 takes as they are
PIECE = 16  # frames coded at a time
VERSION = 1  # of what a clip's name stands for
PASSING = ".passing"  # within the folder: what is needed only for a while
SIDECAR = "sidecar"  # words that came with the source

Times = tuple[float, float]  # when a shot begins and ends, in seconds


@dataclass(frozen=True)
class ClipsRun(Where):
    """What to cut and how: shots shorter than `shortest` seconds are counted and left out, and those longer than
    `longest` parted evenly.
    """

    source: str = ""
    folder: Path = Path("prepared")
    detector: str = "adaptive"
    shortest: float = 1.0
    longest: float = 10.0
    follow: bool = False  # symbolic links that lead out of the source

    @property
    def cutting(self) -> dict:
        """What a clip depends on, beside its source."""
        return {name: getattr(self, name) for name in ("detector", "shortest", "longest")} | {"version": VERSION}


class Task(NamedTuple):
    """A source, and the run that it is cut for."""

    source: Source
    run: ClipsRun


def clips(run: ClipsRun) -> dict[str, int]:
    """Cut all sources that are not cut yet; returns how many sources and clips there are, how many shots were too short
    to be clips, and how many sources failed.

    Raises PrepareError for what cannot be begun.
    """
    check(run)
    found = listed(run)
    with alone(run.folder):
        tidy(run.folder)
        journal = Journal(run.folder, "clips")
        done = latest(journal)
        todo = [one for one in found if not is_done(done.get(one.key), one, run)]
        with journal.adding() as note:
            for outcome in run.each(cut, [Task(one, run) for one in todo]):
                source = todo[outcome.number]
                about = {"key": source.key, "stamp": source.stamp, "words": source.words, "cutting": run.cutting}
                note(about | outcome.told())
        rows, done = remake_manifest(run.folder), latest(journal)
        return {
            "sources": len(found),
            "done before": len(found) - len(todo),
            "clips": len(rows),
            "shots too short": sum(len(done[one.key].get("short", ())) for one in found),
            "failed": sum("error" in done[one.key] for one in found),
        }


def listed(run: ClipsRun) -> list[Source]:
    """List a run's sources, without what lies in its own folder."""
    own = run.folder.resolve()
    return [one for one in sources(run.source, run.follow) if not Path(one.path).is_relative_to(own)]


def tidy(folder: Path) -> None:
    """Remove what a killed run left half done."""
    shutil.rmtree(folder / PASSING, ignore_errors=True)
    for path in (folder / "clips").glob("*/.*"):
        path.unlink()


def failed_clips(run: ClipsRun) -> list[tuple[str, str]]:
    """List the sources that could not be cut, and why."""
    noted = latest(Journal(run.folder, "clips"))
    found = ((one.name, noted.get(one.key, {}).get("error")) for one in listed(run))
    return [(name, error) for name, error in found if error is not None]


def check(run: ClipsRun) -> None:
    """Raise PrepareError for a run that makes no sense."""
    if run.detector not in DETECTORS:
        raise PrepareError(f"detector must be one of {', '.join(DETECTORS)}; got {run.detector!r}")
    if not 0 < run.shortest <= run.longest / 2:
        got = f"{run.shortest:g} and {run.longest:g}"
        raise PrepareError(f"shortest must be above 0, and longest at least twice as much; got {got}")
    if Path(run.source).is_dir() and run.folder.resolve().is_relative_to(Path(run.source).resolve()):
        raise PrepareError(f"the folder must not lie within the source; got {run.folder} within {run.source}")


def latest(journal: Journal) -> dict[str, dict]:
    """Return the last that was noted of each source, by its key."""
    return {line["key"]: line for line in journal.lines()}


def is_done(noted: dict | None, source: Source, run: ClipsRun) -> bool:
    """Say whether a source was cut as this run would cut it, is still the same file, and its clips are there."""
    if noted is None or "short" not in noted:  # it failed, or was cut when short shots were not counted
        return False
    same = tuple(noted["stamp"]) == source.stamp and noted["words"] == source.words
    return same and noted["cutting"] == run.cutting and all((run.folder / r["file"]).exists() for r in noted["rows"])


def rows_of(folder: Path, begun: bool = False) -> list[Row]:
    """List the clips of a prepared folder with what later steps found; the same clip from two sources is one.

    Raises PrepareError for a folder that must have been `begun` and was not.
    """
    if begun and not Journal(folder, "clips").path.exists():
        raise PrepareError(f"a prepared folder has clips; {folder} has none, so begin with longtake prepare clips")
    # What fails now may have been cut before.
    cut = {line["key"]: line for line in Journal(folder, "clips").lines() if "rows" in line}
    rows = {row["clip"]: row for line in cut.values() for row in line["rows"]}
    for line in Journal(folder, "scores").lines():
        if line["clip"] in rows and "error" not in line:
            rows[line["clip"]]["scores"] = rows[line["clip"]].get("scores", {}) | line["scores"]
    words = {clip: {SIDECAR: row["captions"]} for clip, row in rows.items()}
    for line in Journal(folder, "captions").lines():
        if line["clip"] in rows and "error" not in line:
            said = {name: line[name] for name in ("text", "source", "version", "parts")}
            words[line["clip"]][line["source"]] = [said]  # the last of a source is what it says
    captions = {clip: [Caption(**one) for said in words[clip].values() for one in said] for clip in rows}
    for line in Journal(folder, "matches").lines():
        row = rows.get(line["clip"])
        if row and "error" not in line and line["texts"] == digest_of(captions[line["clip"]]):
            row["scores"] = row.get("scores", {}) | line["scores"]
    dropped: dict[str, list[str]] = {}
    for line in Journal(folder, "dropped").lines():
        dropped = line["dropped"]  # the last that was asked for is what counts
    return [
        Row(**row | {"captions": captions[clip], "dropped": dropped.get(clip, [])})
        for clip, row in sorted(rows.items())
    ]


def remake_manifest(folder: Path) -> list[Row]:
    """Make the manifest of what the journals say; returns its rows."""
    rows = rows_of(folder)
    write_manifest(folder, rows)
    return rows


def cut(task: Task) -> dict:
    """Cut one source; returns its SHA-256, the rows of its clips, and when its shots begin and end, in seconds, that
    are too short to be clips. Raises MediaError for what cannot be read.
    """
    source, run = task
    with unchanged(source), at_hand(source, run.folder / PASSING) as path:
        refuse_locked(check_readable(path))
        if not source.still:
            with open_video(path) as container:  # before a file of any size is read whole
                select_video_stream(container, path)
        sha256 = sha256_of(path)
        make = still if source.still else film
        said = [Caption(source.words, SIDECAR, "1")] if source.words else []
        found, short = make(path, source, sha256, run)
        rows = [replace(row, captions=said) for row in found]
    return {"source_sha256": sha256, "rows": [asdict(row) for row in rows], "short": short}


def still(path: Path, source: Source, sha256: str, run: ClipsRun) -> tuple[list[Row], list[Times]]:
    """Keep a picture as a clip of one frame."""
    picture = read_image(path)
    clip, place = placed(run.folder, sha256, 0, 1, ".png")
    write_image(run.folder / place, picture)
    return [row_of(run.folder, clip, place, source, sha256, (0.0, 0.0), picture, 1, 1.0, copied=False)], []


def film(path: Path, source: Source, sha256: str, run: ClipsRun) -> tuple[list[Row], list[Times]]:
    """Cut a film at its shots; returns the rows of those that are clips, and the times of those that are too short."""
    look, rows, short, at = look_at(path, run.detector), [], [], 0
    with open_video(path) as container:
        stream = select_video_stream(container, path)
        frames = (frame for _, _, frame in decode_frames(container, stream))
        for first, last in parted(look, run.longest):
            times = (float(look.time(first)), float(look.time(last)))
            if look.time(last) - look.time(first) < run.shortest:
                short.append(times)
                continue
            head = next(islice(frames, first - at, None))
            picture, at, fps = frame_to_tensor(head, None), first + 1, look.rate(first, last)
            clip, place = placed(run.folder, sha256, first, last, ".mp4")
            copied = copy(path, run.folder / place, look, first, last)
            if not copied:
                if picture.shape[1] % 2 or picture.shape[2] % 2:  # which H.264 does not take
                    clip, place = placed(run.folder, sha256, first, last, ".webm")
                write_video(run.folder / place, pieces(picture, islice(frames, last - at)), fps)
                at = last
            count = last - first
            rows.append(
                row_of(run.folder, clip, place, source, sha256, times, picture, count, float(fps), copied=copied)
            )
    return rows, short


def placed(folder: Path, sha256: str, first: int, last: int, suffix: str) -> tuple[str, str]:
    """Return a clip's name, which says what it is, and its place within the folder."""
    clip = hashlib.sha256(f"{sha256} {first} {last} {VERSION}".encode()).hexdigest()[:16]
    place = Path("clips") / clip[:2] / f"{clip}{suffix}"
    (folder / place.parent).mkdir(parents=True, exist_ok=True)
    return clip, str(place)


def row_of(
    folder: Path, clip: str, place: str, source: Source, sha256: str, times: Times, picture: Tensor,
    frames: int, fps: float, *, copied: bool,
) -> Row:  # fmt: skip
    """Describe a clip that was written."""
    *_, rows, columns = picture.shape
    name = source.name.encode("utf-8", "backslashreplace").decode()  # names of files may be any bytes
    return Row(clip, place, sha256_of(folder / place), name, sha256, *times, frames, fps, columns, rows, copied)


def pieces(head: Tensor, frames: Iterator[VideoFrame]) -> Iterator[Tensor]:
    """Turn a first picture and frames into pixels (3, F, Y, X) in [-1, 1], PIECE of them at a time."""
    held = [head]
    for frame in frames:
        if len(held) == PIECE:
            yield from_uint8(torch.stack(held, 1))
            held = []
        held.append(frame_to_tensor(frame, None))
    yield from_uint8(torch.stack(held, 1))


def copy(path: Path, target: Path, look: Look, first: int, last: int) -> bool:
    """Copy frames as they are coded, if they are whole groups of pictures and evenly spaced; say whether that was done.

    The copy is decoded once, and stays only if it shows every frame as the film does: the last ones of an open group of
    pictures need what comes after them.
    """
    gaps = {after - before for before, after in pairwise(look.begins[first:last])}
    whole = look.keys[first] and (last == len(look.keys) or look.keys[last])
    begin, end = look.stamps[first], look.stamps[last] if last < len(look.stamps) else None
    if not whole or begin is None or (gaps and max(gaps) > 1.5 * min(gaps)):
        return False
    temporary = target.with_name(f".{target.stem}-{os.getpid()}{target.suffix}")
    try:
        with open_video(path) as container:
            stream = select_video_stream(container, path)
            if stream.codec_context.name not in COPIED:
                return False
            container.seek(begin, stream=stream)
            with av.open(str(temporary), "w", options={"movflags": "+faststart"}) as out:
                written = out.add_stream_from_template(stream)
                for packet in container.demux(stream):
                    if packet.pts is None or packet.dts is None:
                        continue
                    if end is not None and packet.dts >= end:
                        break
                    if packet.pts >= begin and (end is None or packet.pts < end):
                        packet.pts, packet.dts, packet.stream = packet.pts - begin, packet.dts - begin, written
                        out.mux(packet)
        if checks_in(temporary) != look.checks[first:last]:
            return False
        os.replace(temporary, target)
        return True
    except DiskError:
        raise
    except (MediaError, av.error.FFmpegError):
        return False
    finally:
        temporary.unlink(missing_ok=True)


def checks_in(path: Path) -> list[int]:
    """Return the checksums of a film's pictures."""
    with open_video(path) as container:
        shown = decode_frames(container, select_video_stream(container, path))
        return [check_of(frame.to_ndarray(format="bgr24")) for _, _, frame in shown]
