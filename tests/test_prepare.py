"""Preparing: raw videos become clips, whatever they are; nothing is lost, doubled or silently dropped."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from app.cli import main
from training.manifest import PrepareError, read_manifest
from training.prepare.clips import ClipsRun, cut_clips, failed_clips
from training.prepare.engine import MAX_TRIES, parallel_map
from training.prepare.journal import clip_rows, locked_folder
from training.prepare.sources import find_sources
from vae.video.pixels import to_uint8
from vae.video.read import read_image, read_video
from vae.video.write import write_image, write_video


def shot(hue: float, frames: int, rows: int = 48, columns: int = 64, speed: int = 2):
    """A bright disc on a ground of some hue, moving to the right."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    ground = torch.tensor([np.cos(hue), np.cos(hue + 2), np.cos(hue + 4)], dtype=torch.float32)[:, None, None] * 0.6
    pictures = []
    for frame in range(frames):
        disc = ((y - rows / 2) ** 2 + (x - 8 - speed * frame) ** 2 < 60).float()
        pictures.append(ground * (1 - disc) + disc + 0.1 * torch.sin(x / 3.0 + y / 5.0))
    return torch.stack(pictures, 1).clamp(-1, 1)


@pytest.fixture
def raw(tmp_path):
    """A folder of raw videos: one of three shots, one of a single shot in another format, a picture, and no video."""
    folder = tmp_path / "raw"
    (folder / "more").mkdir(parents=True)
    write_video(folder / "three.mp4", torch.cat([shot(0, 16), shot(2.2, 24), shot(4.4, 12)], 1), 8)
    write_video(folder / "more" / "one.webm", shot(1, 17, 50, 38), 10)
    write_image(folder / "still.png", shot(3, 1))
    (folder / "notes.txt").write_text("no video")
    return folder


def run_of(raw, tmp_path, **changes):
    return replace(ClipsRun(str(raw), tmp_path / "done", engine="serial"), **changes)


def test_a_film_is_cut_at_its_shots_and_keeps_size_rate_and_pictures(raw, tmp_path):
    found = cut_clips(run_of(raw, tmp_path))
    assert found == {"sources": 3, "done before": 0, "clips": 5, "shots too short": 0, "failed": 0}
    rows = {(row.source, row.begin): row for row in read_manifest(tmp_path / "done")}
    assert sorted(rows) == [
        ("more/one.webm", 0),
        ("still.png", 0),
        ("three.mp4", 0),
        ("three.mp4", 2),
        ("three.mp4", 5),
    ]
    film = read_video(raw / "three.mp4").video
    for begin, frames in ((0, 16), (2, 24), (5, 12)):
        row = rows["three.mp4", begin]
        assert (row.frames, row.fps, row.columns, row.rows, row.end) == (frames, 8, 64, 48, begin + frames / 8)
        clip = read_video(tmp_path / "done" / row.file)
        assert clip.fps == 8 and (clip.video - film[:, 8 * begin : 8 * begin + frames]).abs().mean() < 0.02
    webm = rows["more/one.webm", 0]
    assert (webm.frames, webm.fps, webm.columns, webm.rows) == (17, 10, 38, 50)
    assert read_image(tmp_path / "done" / rows["still.png", 0].file).shape == (3, 1, 48, 64)


def test_a_shot_of_whole_groups_of_pictures_is_copied_bit_for_bit(tmp_path):
    (tmp_path / "raw").mkdir()
    write_video(tmp_path / "raw" / "whole.mp4", shot(0, 24), 8)
    cut_clips(run_of(tmp_path / "raw", tmp_path))
    (row,) = read_manifest(tmp_path / "done")
    assert row.copied and torch.equal(
        read_video(tmp_path / "done" / row.file).video, read_video(tmp_path / "raw" / "whole.mp4").video
    )
    cut_clips(run_of(tmp_path / "raw", tmp_path, folder=tmp_path / "parted", longest=2.0))
    parts = read_manifest(tmp_path / "parted")
    assert [part.frames for part in sorted(parts, key=lambda part: part.begin)] == [12, 12]
    assert not any(part.copied for part in parts)  # one group of pictures cannot be copied in two


def test_what_is_done_is_not_done_again_and_what_failed_or_changed_is(raw, tmp_path):
    run = run_of(raw, tmp_path)
    (raw / "broken.mp4").write_bytes((raw / "three.mp4").read_bytes()[:-2000])
    assert cut_clips(run)["failed"] == 1
    first = clip_rows(run.folder)
    files = {row.file: (run.folder / row.file).stat().st_mtime_ns for row in first}
    assert cut_clips(run) == {"sources": 4, "done before": 3, "clips": 5, "shots too short": 0, "failed": 1}
    assert {row.file: (run.folder / row.file).stat().st_mtime_ns for row in clip_rows(run.folder)} == files
    (raw / "broken.mp4").write_bytes((raw / "three.mp4").read_bytes())  # the same film under two names
    assert cut_clips(run) == {"sources": 4, "done before": 3, "clips": 5, "shots too short": 0, "failed": 0}
    write_video(raw / "more" / "one.webm", shot(5, 9), 8)
    assert cut_clips(run)["done before"] == 3
    assert {row.frames for row in clip_rows(run.folder) if row.source == "more/one.webm"} == {9}


def test_the_same_clips_come_out_of_one_process_and_of_a_pool(raw, tmp_path):
    for name, changes in {"here": {}, "pool": {"engine": "pool", "workers": 2}}.items():
        cut_clips(run_of(raw, tmp_path, folder=tmp_path / name, **changes))
    assert read_manifest(tmp_path / "here") == read_manifest(tmp_path / "pool")


def test_a_tar_a_list_and_a_glob_hold_the_same_as_the_folder(raw, tmp_path):
    with tarfile.open(tmp_path / "raw.tar", "w") as tar:
        tar.add(raw / "three.mp4", "0001.mp4")
    (tmp_path / "list.txt").write_text(f"raw/three.mp4\n{raw / 'still.png'}\n")
    assert [one.name for one in find_sources(str(tmp_path / "raw.tar"))] == ["raw.tar/0001.mp4"]
    assert [one.name for one in find_sources(str(tmp_path / "list.txt"))] == ["raw/three.mp4", str(raw / "still.png")]
    assert [one.name for one in find_sources(str(raw / "**" / "*"))] == [
        str(raw / name) for name in ("more/one.webm", "still.png", "three.mp4")
    ]
    cut_clips(run_of(tmp_path / "raw.tar", tmp_path))
    cut_clips(run_of(raw / "three.mp4", tmp_path, folder=tmp_path / "other"))
    assert [r.clip for r in clip_rows(tmp_path / "done")] == [r.clip for r in clip_rows(tmp_path / "other")]


def test_films_of_one_name_in_two_places_are_two(tmp_path):
    for number, place in enumerate(("a", "b")):
        (tmp_path / "raw" / place).mkdir(parents=True)
        write_video(tmp_path / "raw" / place / "film.mp4", shot(number, 16), 8)
        with tarfile.open(tmp_path / "raw" / place / "0.tar", "w") as tar:
            write_video(tmp_path / "member.mp4", shot(3 + number, 16), 8)
            tar.add(tmp_path / "member.mp4", "./0.mp4")
    given = {"folder": str(tmp_path / "raw"), "glob": str(tmp_path / "raw" / "*" / "*")}
    for name, source in given.items():
        run = ClipsRun(source, tmp_path / name, engine="serial")
        assert cut_clips(run) == {"sources": 4, "done before": 0, "clips": 4, "shots too short": 0, "failed": 0}
        assert cut_clips(run)["done before"] == 4
    for place in ("a", "b"):  # into one folder, from two sources
        cut_clips(ClipsRun(str(tmp_path / "raw" / place), tmp_path / "both", engine="serial"))
    assert len(clip_rows(tmp_path / "both")) == 4


def test_a_film_of_odd_size_keeps_it(tmp_path):
    (tmp_path / "raw").mkdir()
    write_video(tmp_path / "raw" / "odd.gif", shot(0, 16, 51, 65), 10)
    assert cut_clips(run_of(tmp_path / "raw", tmp_path))["failed"] == 0
    (row,) = read_manifest(tmp_path / "done")
    assert (
        read_video(tmp_path / "done" / row.file).video.shape
        == (3, 16, 51, 65)
        == (3, row.frames, row.rows, row.columns)
    )


def coded_film(path, pictures, times, keys, options):
    """Write a film frame by frame, with keyframes and time stamps (in hundredths of a second) of one's own."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=100, options=options)
        stream.width, stream.height, stream.pix_fmt = pictures.shape[3], pictures.shape[2], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 100)
        for number, (time_, picture) in enumerate(zip(times, to_uint8(pictures).permute(1, 2, 3, 0), strict=True)):
            frame = av.VideoFrame.from_ndarray(picture.contiguous().numpy(), format="rgb24")
            frame.pts, frame.time_base = time_, Fraction(1, 100)
            if keys and number in keys:
                frame.pict_type = av.video.frame.PictureType.I
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def test_shots_between_keyframes_are_copied_and_those_of_open_groups_are_not(tmp_path):
    film, times = shot(0, 48, speed=1), [12 * n for n in range(48)]
    (tmp_path / "raw").mkdir()
    closed = {"g": "100", "forced-idr": "1", "x264-params": "scenecut=0:bframes=2"}
    coded_film(tmp_path / "raw" / "closed.mp4", film, times, {0, 16, 32}, closed)
    opened = {"x264-params": "keyint=16:min-keyint=16:scenecut=0:bframes=3:b-adapt=0:open-gop=1"}
    coded_film(tmp_path / "raw" / "open.mp4", film, times, None, opened)
    cut_clips(run_of(tmp_path / "raw", tmp_path, shortest=0.9, longest=1.92))
    rows = read_manifest(tmp_path / "done")
    assert len(rows) == 6 and all(row.copied for row in rows if row.source == "closed.mp4")
    for row in rows:
        whole = read_video(tmp_path / "raw" / row.source).video
        first = round(row.begin / 0.12)
        part = read_video(tmp_path / "done" / row.file).video
        off = (part - whole[:, first : first + 16]).abs()
        assert off.max() == 0 if row.copied else off.mean() < 0.02
    assert not all(row.copied for row in rows if row.source == "open.mp4")


def test_the_shots_of_an_uneven_film_keep_their_own_pace(tmp_path):
    film = torch.cat([shot(0, 40), shot(2.2, 10)], 1)
    times = [5 * n for n in range(40)] + [200 + 40 * n for n in range(10)]  # 2 s at 20 a second, 4 s at 2.5
    (tmp_path / "raw").mkdir()
    coded_film(tmp_path / "raw" / "uneven.mp4", film, times, None, {"x264-params": "scenecut=0"})
    cut_clips(run_of(tmp_path / "raw", tmp_path))
    fast, slow = sorted(read_manifest(tmp_path / "done"), key=lambda row: row.begin)
    assert (fast.frames, fast.fps, slow.frames) == (40, 20, 10) and slow.fps == pytest.approx(2.5, rel=0.15)
    assert float(read_video(tmp_path / "done" / fast.file).fps) == 20


def test_words_that_come_later_and_clips_that_went_are_noticed(raw, tmp_path):
    run = run_of(raw, tmp_path)
    cut_clips(run)
    (raw / "three.txt").write_text("three shots")
    assert cut_clips(run)["done before"] == 2
    assert {row.source for row in clip_rows(run.folder) if row.captions} == {"three.mp4"}
    (run.folder / clip_rows(run.folder)[0].file).unlink()
    assert cut_clips(run)["done before"] == 2 and all((run.folder / row.file).exists() for row in clip_rows(run.folder))


def test_odd_names_and_things_that_are_no_files_are_told(raw, tmp_path):
    os.mkfifo(raw / "pipe.mp4")
    (raw / "self.mp4").symlink_to("self.mp4")
    os.link(raw / "three.mp4", os.fsencode(raw) + b"/odd-\xff.mp4")
    found = cut_clips(run_of(raw, tmp_path))
    assert found == {"sources": 5, "done before": 0, "clips": 5, "shots too short": 0, "failed": 1}
    assert dict(failed_clips(run_of(raw, tmp_path)))["pipe.mp4"].startswith(f"{raw / 'pipe.mp4'} must be a file")
    assert len(read_manifest(tmp_path / "done")) == 5


def test_links_out_of_the_source_are_not_followed_unless_asked(raw, tmp_path):
    write_video(tmp_path / "secret.mp4", shot(0, 9), 8)
    (raw / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    assert "link.mp4" not in [one.name for one in find_sources(str(raw))]
    assert "link.mp4" in [one.name for one in find_sources(str(raw), follow=True)]
    (tmp_path / "secret.txt").write_text("a secret")
    (raw / "three.txt").symlink_to(tmp_path / "secret.txt")
    assert all(one.words is None for one in find_sources(str(raw)))
    (raw / "more" / "round").symlink_to(raw)
    assert [one.name for one in find_sources(str(raw), follow=True)].count("three.mp4") == 1
    assert len(find_sources(str(raw), follow=True)) == 4


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"source": "nowhere"}, "a source must be a folder, a glob"),
        ({"detector": "eyes"}, "detector must be one of adaptive, content; got 'eyes'"),
        ({"shortest": 6.0}, "shortest must be above 0, and longest at least twice as much; got 6 and 10"),
        ({"engine": "steam"}, "engine must be one of serial, pool, ray; got 'steam'"),
        ({"workers": 0}, "workers must be at least 1; got 0"),
    ],
)
def test_what_cannot_be_begun_is_said_in_a_sentence(raw, tmp_path, change, rule):
    with pytest.raises(ValueError, match=rule):
        cut_clips(run_of(raw, tmp_path, **change))


def test_a_folder_within_its_source_and_one_that_another_run_has_are_refused(raw, tmp_path):
    with pytest.raises(PrepareError, match="must not lie within the source"):
        cut_clips(run_of(raw, tmp_path, folder=raw / "done"))
    with locked_folder(tmp_path / "done"), pytest.raises(PrepareError, match="one run at a time"):
        cut_clips(run_of(raw, tmp_path))


def test_files_that_are_no_films_are_told_and_the_rest_is_done(raw, tmp_path):
    (raw / "empty.mp4").touch()
    (raw / "wrong.mkv").write_bytes(b"#EXTM3U\nhttp://example.com/x.ts\n" * 50)
    (raw / "bad.tar").write_bytes(b"no tar" * 500)
    assert cut_clips(run_of(raw, tmp_path)) == {
        "sources": 6,
        "done before": 0,
        "clips": 5,
        "shots too short": 0,
        "failed": 3,
    }
    errors = dict(failed_clips(run_of(raw, tmp_path)))
    assert sorted(errors) == ["bad.tar", "empty.mp4", "wrong.mkv"] and "is empty" in errors["empty.mp4"]


def square(item):
    """Work for the engine: what some items do to it."""
    if item == "raise":
        raise ValueError("a reason")
    if item == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if item == "sleep":
        time.sleep(60)
    if isinstance(item, Path):  # dies the first time alone
        if not item.exists():
            item.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return str(item)
    return item**2


@pytest.mark.parametrize(("engine", "workers", "seconds"), [("pool", 1, 2), ("pool", 2, 2), ("ray", 2, 30)])
def test_a_killed_worker_loses_nothing_and_doubles_nothing(tmp_path, monkeypatch, engine, workers, seconds):
    if engine == "ray":
        pytest.importorskip("ray")
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # where its workers find this file
    items = [1, 2, "raise", 3, tmp_path / "once", "die", 4, "sleep", 5]
    found = list(parallel_map(square, items, engine, workers, seconds))
    assert sorted(outcome.number for outcome in found) == list(range(len(items)))
    by = {str(items[outcome.number]): outcome for outcome in found}
    assert [by[str(n)].value for n in range(1, 6)] == [1, 4, 9, 16, 25]
    assert by["raise"].error == "a reason" and f"killed {MAX_TRIES} times" in by["die"].error
    assert f"within {seconds} seconds" in by["sleep"].error and by[str(tmp_path / "once")].value == str(
        tmp_path / "once"
    )


def test_a_run_that_is_killed_is_completed_by_another(raw, tmp_path):
    for number in range(6):
        write_video(raw / f"film-{number}.mp4", shot(number, 20), 8)
    script = "import sys; from pathlib import Path; from training.prepare.clips import ClipsRun, clips; "
    words = script + 'cut_clips(ClipsRun(sys.argv[1], Path(sys.argv[2]), engine="serial"))'
    killed = subprocess.Popen([sys.executable, "-c", words, str(raw), str(tmp_path / "done")])
    journal = tmp_path / "done" / "journal" / "clips.jsonl"
    while killed.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") >= 2):
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    with open(journal, "a") as half:
        half.write('{"source": "half a li')
    found = cut_clips(run_of(raw, tmp_path))
    assert found["failed"] == 0 and found["done before"] >= 2 and found["clips"] == 11
    assert all(json.loads(line) for line in journal.read_text().splitlines())
    assert not list((tmp_path / "done" / "clips").rglob(".*"))


def test_a_disk_that_fills_up_is_told_and_once_there_is_room_the_rest_is_done(raw, tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    if not shutil.which("mount") or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24k", "full", disk]).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        words = ["prepare", "clips", str(raw), str(disk / "done"), "--engine", "serial"]
        assert main(words) == 3
        assert (
            capsys.readouterr()
            .err.rstrip()
            .endswith(f"the disk of {disk / 'done'} is full; what is done is kept, so make room and run this again")
        )
        subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
        assert main(words) == 0
        whole = run_of(raw, tmp_path)
        cut_clips(whole)
        assert read_manifest(disk / "done") == read_manifest(whole.folder)
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)
