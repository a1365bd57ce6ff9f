"""`longtake prepare clips`: raw videos of any kind become clips; nothing is lost, doubled or silently dropped."""

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
    """A bright disc that moves to the right, on a background of some hue."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    background = torch.tensor([np.cos(hue), np.cos(hue + 2), np.cos(hue + 4)], dtype=torch.float32)[:, None, None] * 0.6
    images = []
    for frame in range(frames):
        disc = ((y - rows / 2) ** 2 + (x - 8 - speed * frame) ** 2 < 60).float()
        images.append(background * (1 - disc) + disc + 0.1 * torch.sin(x / 3.0 + y / 5.0))
    return torch.stack(images, 1).clamp(-1, 1)


@pytest.fixture
def raw(tmp_path):
    """A folder of raw files: a video of three shots, one of a single shot in another format, an image, and a text."""
    folder = tmp_path / "raw"
    (folder / "more").mkdir(parents=True)
    write_video(folder / "three.mp4", torch.cat([shot(0, 16), shot(2.2, 24), shot(4.4, 12)], 1), 8)
    write_video(folder / "more" / "one.webm", shot(1, 17, 50, 38), 10)
    write_image(folder / "still.png", shot(3, 1))
    (folder / ".notes.txt").write_text("no video")
    return folder


def run_of(raw, tmp_path, **changes):
    return replace(ClipsRun(str(raw), tmp_path / "done", engine="serial"), **changes)


def test_a_video_is_cut_at_its_shots_and_keeps_size_frame_rate_and_frames(raw, tmp_path):
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
    whole = read_video(raw / "three.mp4").video
    for begin, frames in ((0, 16), (2, 24), (5, 12)):
        row = rows["three.mp4", begin]
        assert (row.frames, row.fps, row.columns, row.rows, row.end) == (frames, 8, 64, 48, begin + frames / 8)
        clip = read_video(tmp_path / "done" / row.file)
        assert clip.fps == 8 and (clip.video - whole[:, 8 * begin : 8 * begin + frames]).abs().mean() < 0.02
    webm = rows["more/one.webm", 0]
    assert (webm.frames, webm.fps, webm.columns, webm.rows) == (17, 10, 38, 50)
    assert read_image(tmp_path / "done" / rows["still.png", 0].file).shape == (3, 1, 48, 64)


def test_a_shot_of_whole_gops_is_copied_bit_for_bit(tmp_path):
    (tmp_path / "raw").mkdir()
    write_video(tmp_path / "raw" / "whole.mp4", shot(0, 24), 8)
    cut_clips(run_of(tmp_path / "raw", tmp_path))
    (row,) = read_manifest(tmp_path / "done")
    assert row.copied and torch.equal(
        read_video(tmp_path / "done" / row.file).video, read_video(tmp_path / "raw" / "whole.mp4").video
    )
    cut_clips(run_of(tmp_path / "raw", tmp_path, folder=tmp_path / "split", longest=2.0))
    parts = read_manifest(tmp_path / "split")
    assert [part.frames for part in sorted(parts, key=lambda part: part.begin)] == [12, 12]
    assert not any(part.copied for part in parts)  # one GOP cannot be copied in two


def test_only_failed_and_changed_sources_are_cut_again(raw, tmp_path):
    run = run_of(raw, tmp_path)
    (raw / "broken.mp4").write_bytes((raw / "three.mp4").read_bytes()[:-2000])
    assert cut_clips(run)["failed"] == 1
    first = clip_rows(run.folder)
    files = {row.file: (run.folder / row.file).stat().st_mtime_ns for row in first}
    assert cut_clips(run) == {"sources": 4, "done before": 3, "clips": 5, "shots too short": 0, "failed": 1}
    assert {row.file: (run.folder / row.file).stat().st_mtime_ns for row in clip_rows(run.folder)} == files
    (raw / "broken.mp4").write_bytes((raw / "three.mp4").read_bytes())  # the same video under two names
    assert cut_clips(run) == {"sources": 4, "done before": 3, "clips": 5, "shots too short": 0, "failed": 0}
    write_video(raw / "more" / "one.webm", shot(5, 9), 8)
    assert cut_clips(run)["done before"] == 3
    assert {row.frames for row in clip_rows(run.folder) if row.source == "more/one.webm"} == {9}


def test_serial_and_pool_make_the_same_clips(raw, tmp_path):
    for name, changes in {"serial": {}, "pool": {"engine": "pool", "workers": 2}}.items():
        cut_clips(run_of(raw, tmp_path, folder=tmp_path / name, **changes))
    assert read_manifest(tmp_path / "serial") == read_manifest(tmp_path / "pool")


def test_a_tar_a_list_and_a_glob_give_the_same_sources_as_the_folder(raw, tmp_path):
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


def test_files_of_one_name_in_two_folders_are_two_sources(tmp_path):
    for number, place in enumerate(("a", "b")):
        (tmp_path / "raw" / place).mkdir(parents=True)
        write_video(tmp_path / "raw" / place / "video.mp4", shot(number, 16), 8)
        with tarfile.open(tmp_path / "raw" / place / "0.tar", "w") as tar:
            write_video(tmp_path / "member.mp4", shot(3 + number, 16), 8)
            tar.add(tmp_path / "member.mp4", "./0.mp4")
    places = {"folder": str(tmp_path / "raw"), "glob": str(tmp_path / "raw" / "*" / "*")}
    for name, source in places.items():
        run = ClipsRun(source, tmp_path / name, engine="serial")
        assert cut_clips(run) == {"sources": 4, "done before": 0, "clips": 4, "shots too short": 0, "failed": 0}
        assert cut_clips(run)["done before"] == 4
    for place in ("a", "b"):  # two sources into one prepared folder
        cut_clips(ClipsRun(str(tmp_path / "raw" / place), tmp_path / "both", engine="serial"))
    assert len(clip_rows(tmp_path / "both")) == 4


def test_a_video_of_odd_size_keeps_its_size(tmp_path):
    (tmp_path / "raw").mkdir()
    write_video(tmp_path / "raw" / "odd.gif", shot(0, 16, 51, 65), 10)
    assert cut_clips(run_of(tmp_path / "raw", tmp_path))["failed"] == 0
    (row,) = read_manifest(tmp_path / "done")
    assert (
        read_video(tmp_path / "done" / row.file).video.shape
        == (3, 16, 51, 65)
        == (3, row.frames, row.rows, row.columns)
    )


def encode_video(path, pixels, times, keyframes, options):
    """Encode a video with chosen keyframes and frame times, in hundredths of a second."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=100, options=options)
        stream.width, stream.height, stream.pix_fmt = pixels.shape[3], pixels.shape[2], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 100)
        for number, (time_, image) in enumerate(zip(times, to_uint8(pixels).permute(1, 2, 3, 0), strict=True)):
            frame = av.VideoFrame.from_ndarray(image.contiguous().numpy(), format="rgb24")
            frame.pts, frame.time_base = time_, Fraction(1, 100)
            if keyframes and number in keyframes:
                frame.pict_type = av.video.frame.PictureType.I
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def test_shots_between_keyframes_are_copied_unless_their_gops_are_open(tmp_path):
    pixels, times = shot(0, 48, speed=1), [12 * n for n in range(48)]
    (tmp_path / "raw").mkdir()
    closed = {"g": "100", "forced-idr": "1", "x264-params": "scenecut=0:bframes=2"}
    encode_video(tmp_path / "raw" / "closed.mp4", pixels, times, {0, 16, 32}, closed)
    opened = {"x264-params": "keyint=16:min-keyint=16:scenecut=0:bframes=3:b-adapt=0:open-gop=1"}
    encode_video(tmp_path / "raw" / "open.mp4", pixels, times, None, opened)
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


def test_the_shots_of_a_video_of_variable_frame_rate_keep_their_own_rates(tmp_path):
    pixels = torch.cat([shot(0, 40), shot(2.2, 10)], 1)
    times = [5 * n for n in range(40)] + [200 + 40 * n for n in range(10)]  # 2 s at 20 fps, 4 s at 2.5 fps
    (tmp_path / "raw").mkdir()
    encode_video(tmp_path / "raw" / "uneven.mp4", pixels, times, None, {"x264-params": "scenecut=0"})
    cut_clips(run_of(tmp_path / "raw", tmp_path))
    fast, slow = sorted(read_manifest(tmp_path / "done"), key=lambda row: row.begin)
    assert (fast.frames, fast.fps, slow.frames) == (40, 20, 10) and slow.fps == pytest.approx(2.5, rel=0.15)
    assert float(read_video(tmp_path / "done" / fast.file).fps) == 20


def test_new_sidecars_and_lost_clips_are_noticed(raw, tmp_path):
    run = run_of(raw, tmp_path)
    cut_clips(run)
    (raw / "three.txt").write_text("three shots")
    assert cut_clips(run)["done before"] == 2
    assert {row.source for row in clip_rows(run.folder) if row.captions} == {"three.mp4"}
    (run.folder / clip_rows(run.folder)[0].file).unlink()
    assert cut_clips(run)["done before"] == 2 and all((run.folder / row.file).exists() for row in clip_rows(run.folder))


def test_odd_names_are_read_and_things_that_are_no_files_fail(raw, tmp_path):
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
    assert all(source.sidecar is None for source in find_sources(str(raw)))
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
def test_wrong_settings_are_refused_with_a_reason(raw, tmp_path, change, rule):
    with pytest.raises(ValueError, match=rule):
        cut_clips(run_of(raw, tmp_path, **change))


def test_a_folder_within_its_source_and_a_locked_folder_are_refused(raw, tmp_path):
    with pytest.raises(PrepareError, match="must not lie within the source"):
        cut_clips(run_of(raw, tmp_path, folder=raw / "done"))
    with locked_folder(tmp_path / "done"), pytest.raises(PrepareError, match="one run at a time"):
        cut_clips(run_of(raw, tmp_path))


def test_files_that_are_no_videos_fail_and_the_rest_is_done(raw, tmp_path):
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
    """Square a number; other items raise, sleep, or kill the worker."""
    if item == "raise":
        raise ValueError("a reason")
    if item == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if item == "sleep":
        time.sleep(60)
    if isinstance(item, Path):  # kills only its first worker
        if not item.exists():
            item.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return str(item)
    return item**2


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "workers", "seconds"), [("pool", 1, 2), ("pool", 2, 2), ("ray", 2, 30)])
def test_a_killed_worker_loses_nothing_and_doubles_nothing(tmp_path, monkeypatch, engine, workers, seconds):
    if engine == "ray":
        pytest.importorskip("ray")
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # so that its workers find this file
    items = [1, 2, "raise", 3, tmp_path / "once", "die", 4, "sleep", 5]
    outcomes = list(parallel_map(square, items, engine, workers, seconds))
    assert sorted(outcome.number for outcome in outcomes) == list(range(len(items)))
    by_item = {str(items[outcome.number]): outcome for outcome in outcomes}
    assert [by_item[str(n)].value for n in range(1, 6)] == [1, 4, 9, 16, 25]
    assert by_item["raise"].error == "a reason" and f"killed {MAX_TRIES} times" in by_item["die"].error
    assert f"within {seconds} seconds" in by_item["sleep"].error and by_item[str(tmp_path / "once")].value == str(
        tmp_path / "once"
    )


@pytest.mark.slow
def test_a_killed_run_is_completed_by_another(raw, tmp_path):
    for number in range(6):
        write_video(raw / f"video-{number}.mp4", shot(number, 20), 8)
    code = "import sys; from pathlib import Path; from training.prepare.clips import ClipsRun, cut_clips; "
    code += 'cut_clips(ClipsRun(sys.argv[1], Path(sys.argv[2]), engine="serial"))'
    killed = subprocess.Popen([sys.executable, "-c", code, str(raw), str(tmp_path / "done")])
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


def test_a_full_disk_is_reported_and_the_rest_is_done_once_there_is_room(raw, tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    if not shutil.which("mount") or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24k", "full", disk]).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        command = ["prepare", "clips", str(raw), str(disk / "done"), "--engine", "serial"]
        assert main(command) == 3
        assert (
            capsys.readouterr()
            .err.rstrip()
            .endswith(
                f"the disk of {disk / 'done'} is full; what is done is kept, so free disk space and run this again"
            )
        )
        subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
        assert main(command) == 0
        whole = run_of(raw, tmp_path)
        cut_clips(whole)
        assert read_manifest(disk / "done") == read_manifest(whole.folder)
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)
