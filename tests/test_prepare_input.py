"""`longtake prepare` with bad input: every failure has a reason, the rest is done, nothing else changes."""

import subprocess
import sys
import tarfile
import threading
import zipfile
import zlib

import av
import pytest
import torch

from app.cli import main
from tests.chat_server import DESCRIPTION, ChatServer
from tests.test_prepare import encode_video, run_of, shot
from training.manifest import PrepareError, read_manifest
from training.prepare.clips import ClipsRun, cut_clips, failed_clips
from training.prepare.journal import Journal, clip_rows
from training.prepare.sources import find_sources
from vae.video.write import write_image, write_video

pytestmark = pytest.mark.slow


@pytest.fixture
def raw(tmp_path):
    """A folder with one intact video of one shot."""
    folder = tmp_path / "raw"
    folder.mkdir()
    write_video(folder / "sound.mp4", shot(0, 16), 8)
    return folder


def test_shots_that_are_too_short_are_counted_and_do_not_fail(raw, tmp_path, capsys):
    write_video(raw / "flash.mp4", shot(1, 4), 8)
    write_video(raw / "two.mp4", torch.cat([shot(0, 16), shot(2.2, 4)], 1), 8)
    command = ["prepare", "clips", str(raw), str(tmp_path / "done"), "--engine", "serial"]
    for before in (0, 3):
        assert main(command) == 0
        printed = capsys.readouterr().out
        assert printed == f"3 sources, {before} done before, 2 clips, 2 shots too short, 0 failed\n"
    assert {row.source for row in clip_rows(tmp_path / "done")} == {"sound.mp4", "two.mp4"}
    short = {line["key"].rsplit("/", 1)[1]: line["short"] for line in Journal(tmp_path / "done", "clips").entries()}
    assert short == {"flash.mp4": [[0, 0.5]], "two.mp4": [[2, 2.5]], "sound.mp4": []}
    assert cut_clips(run_of(raw, tmp_path, shortest=0.4))["shots too short"] == 0


@pytest.fixture
def linked(raw, tmp_path):
    """A source with links out of it, to a folder and to a video, and a list that names both and a third video."""
    (tmp_path / "away").mkdir()
    for name in ("secret.mp4", "open.mp4"):
        write_video(tmp_path / "away" / name, shot(2, 9), 8)
    (raw / "linked").symlink_to(tmp_path / "away")
    (raw / "video.mp4").symlink_to(tmp_path / "away" / "secret.mp4")
    (raw / "list.txt").write_text(f"sound.mp4\nlinked/secret.mp4\nvideo.mp4\n{tmp_path / 'away' / 'open.mp4'}\n")
    return raw


def test_a_glob_follows_links_out_of_its_fixed_part_only_when_asked(linked):
    inside = {str(linked / "sound.mp4")}
    secret = {str(linked / "linked" / name) for name in ("open.mp4", "secret.mp4")}
    for pattern, followed in {
        "*": {str(linked / "video.mp4")} | inside,
        "*/*": secret,
        "[l]inked/*.mp4": secret,
    }.items():
        assert {one.name for one in find_sources(str(linked / pattern), follow=True)} == followed
        if followed & inside:
            assert {one.name for one in find_sources(str(linked / pattern))} == inside
        else:
            with pytest.raises(PrepareError, match="a source must be"):
                find_sources(str(linked / pattern))
    assert {one.name for one in find_sources(str(linked / "linked" / "*"))} == secret  # the glob names the link itself


def test_a_list_refuses_links_out_of_its_folder_unless_asked(linked, tmp_path):
    run = run_of(linked / "list.txt", tmp_path)
    assert cut_clips(run) == {"sources": 4, "done before": 0, "clips": 2, "shots too short": 0, "failed": 2}
    errors = dict(failed_clips(run))
    assert sorted(errors) == ["linked/secret.mp4", "video.mp4"]
    assert all(error.endswith(f"got {name}; give --follow") for name, error in errors.items())
    assert cut_clips(run_of(linked / "list.txt", tmp_path, follow=True))["failed"] == 0


@pytest.mark.parametrize("place", ["clips", "journal", ".lock", ".temporary", "clips/ab", ".manifest.parquet"])
def test_nothing_is_written_outside_the_prepared_folder(raw, tmp_path, place, capsys):
    outside, link = tmp_path / "outside", tmp_path / "done" / place
    outside.mkdir()
    (outside / ".kept").write_text("as it was")
    link.parent.mkdir(parents=True)
    link.symlink_to(outside / ".kept" if place in (".lock", ".manifest.parquet") else outside)
    assert main(["prepare", "clips", str(raw), str(tmp_path / "done"), "--engine", "serial"]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and str(tmp_path / "done") in printed
    assert [path.name for path in outside.iterdir()] == [".kept"] and (outside / ".kept").read_text() == "as it was"


def test_links_within_the_prepared_folder_are_followed(raw, tmp_path):
    (tmp_path / "done" / "elsewhere").mkdir(parents=True)
    (tmp_path / "done" / "clips").symlink_to("elsewhere")
    (tmp_path / "here").symlink_to("done")
    assert cut_clips(run_of(raw, tmp_path, folder=tmp_path / "here"))["clips"] == 1


@pytest.mark.parametrize("kind", ["video", "tar"])
def test_a_file_that_grows_while_it_is_read_fails_and_is_cut_once_it_is_whole(raw, tmp_path, kind):
    write_video(raw / "sound.mp4", shot(0, 64), 8)
    grown = raw / "sound.mp4"
    if kind == "tar":
        with tarfile.open(raw / "videos.tar", "w") as tar:
            tar.add(grown, "0.mp4")
        grown.unlink()
        grown = raw / "videos.tar"
    over = threading.Event()

    def grow():
        with open(grown, "ab") as file:
            while not over.wait(0.002):
                file.write(b"\0" * 512)
                file.flush()

    writer, whole, run = threading.Thread(target=grow), grown.stat().st_size, run_of(raw, tmp_path)
    writer.start()
    try:
        assert cut_clips(run)["failed"] == 1
    finally:
        over.set()
        writer.join()
    ((name, error),) = failed_clips(run)
    assert error == f"{name} changed while it was read; run again when it is whole"
    with open(grown, "ab") as file:
        file.truncate(whole)
    assert cut_clips(run)["failed"] == 0


def remux(video, path, **options):
    """Copy the packets of a video into another container."""
    with av.open(video) as before, av.open(path, "w", **options) as after:
        stream = before.streams.video[0]
        written = after.add_stream_from_template(stream)
        for packet in before.demux(stream):
            if packet.dts is not None:
                packet.stream = written
                after.mux(packet)


def test_encrypted_videos_and_archives_are_named_as_such(raw, tmp_path, capsys):
    scheme = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "01" * 16, "encryption_kid": "02" * 16}
    for name, options in {"late.mp4": scheme, "early.mov": scheme | {"movflags": "+faststart"}}.items():
        remux(raw / "sound.mp4", raw / name, format="mp4", options=options)
    header = b"PK\x03\x04\x14\0\1\0\0\0" + b"\0" * 20
    (raw / "locked.mp4").write_bytes(header + b"\0" * 999)
    with zipfile.ZipFile(raw / "plain.mp4", "w") as archive:
        archive.write(raw / "sound.mp4")
    assert main(["prepare", "clips", str(raw), str(tmp_path / "done"), "--engine", "serial"]) == 3
    assert "1 clips, 0 shots too short, 4 failed" in capsys.readouterr().out
    rules = {
        "early.mov": "must not be encrypted; it is",
        "late.mp4": "must not be encrypted; it is",
        "locked.mp4": "it is a zip archive with a password; unpack it first",
        "plain.mp4": "it is a zip archive; unpack it first",
    }
    errors = dict(failed_clips(run_of(raw, tmp_path)))
    assert errors.keys() == rules.keys()
    assert {name: error for name, error in errors.items() if rules[name] not in error} == {}


def test_the_suffix_of_a_tar_may_be_upper_case(raw, tmp_path):
    with tarfile.open(tmp_path / "FILMS.TAR", "w") as tar:
        tar.add(raw / "sound.mp4", "0.mp4")
    (tmp_path / "list.txt").write_text("FILMS.TAR\n")
    for given in ("FILMS.TAR", "list.txt", "F*"):
        assert [one.member for one in find_sources(str(tmp_path / given))] == ["0.mp4"]


@pytest.mark.parametrize("cut", ["in the last video", "in the second header", "after the first"])
def test_a_truncated_tar_fails_and_its_intact_videos_are_used(raw, tmp_path, cut):
    with tarfile.open(tmp_path / "videos.tar", "w") as tar:
        for name in ("0.mp4", "1.mp4"):
            tar.add(raw / "sound.mp4", name)
    with tarfile.open(tmp_path / "videos.tar") as tar:
        second = tar.getmember("1.mp4").offset
    whole = (tmp_path / "videos.tar").read_bytes()
    places = {"in the last video": second + 900, "in the second header": second + 100, "after the first": second}
    broken = whole[: places[cut]] + (b"noise" * 400 if cut == "after the first" else b"")
    (tmp_path / "videos.tar").write_bytes(broken)
    run = run_of(tmp_path / "videos.tar", tmp_path)
    assert cut_clips(run) == {"sources": 2, "done before": 0, "clips": 1, "shots too short": 0, "failed": 1}
    ((name, error),) = failed_clips(run)
    assert name == "videos.tar" and error.startswith("videos.tar must be a whole tar; ")
    (tmp_path / "videos.tar").write_bytes(whole)
    assert cut_clips(run)["failed"] == 0


def png_header(columns, rows):
    """A PNG that declares a size and has no pixels."""
    chunks = {b"IHDR": columns.to_bytes(4) + rows.to_bytes(4) + b"\x08\x02\0\0\0", b"IDAT": b"", b"IEND": b""}
    parts = (len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4) for kind, data in chunks.items())
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_enormous_files_fail_within_limits_and_the_rest_is_done(raw, tmp_path, capsys):
    (raw / "wide.png").write_bytes(png_header(9_000, 9_000))
    video = (raw / "sound.mp4").read_bytes()
    write_video(tmp_path / "wide.gif", shot(0, 16), 8)
    animation = (tmp_path / "wide.gif").read_bytes()
    (raw / "wide.gif").write_bytes(animation[:6] + b"\x28\x23" * 2 + animation[10:])  # GIF89a, 18: its size
    for name, head in {"nothing.mp4": b"", "endless.mp4": video}.items():
        (raw / name).write_bytes(head)
        with open(raw / name, "ab") as file:
            file.truncate(1 << 40)  # a sparse file: its bytes take no room
    command = ["prepare", "clips", str(raw), str(tmp_path / "done"), "--workers", "1", "--timeout", "20"]
    assert main(command) == 3
    printed = capsys.readouterr()
    assert printed.out == "5 sources, 0 done before, 1 clips, 0 shots too short, 4 failed\n"
    errors = dict(failed_clips(run_of(raw, tmp_path)))
    rules = {"wide.png": "at most 67108864 pixels", "wide.gif": "at most 67108864 pixels per frame; got 9000 x 9000"}
    rules |= {"nothing.mp4": "cannot be read as a video", "endless.mp4": "it must be done within 20 seconds"}
    assert errors.keys() == rules.keys()
    assert {name: error for name, error in errors.items() if rules[name] not in error} == {}
    for name in rules:
        (raw / name).unlink()
    assert main(command) == 0


def test_a_video_is_not_split_within_a_frame(raw, tmp_path):
    encode_video(raw / "ages.mkv", shot(0, 3), [0, 10**12, 2 * 10**12], None, {})  # hundredths of a second
    encode_video(raw / "slow.mkv", shot(0, 3), [0, 10**4, 2 * 10**4], None, {})
    found = cut_clips(run_of(raw, tmp_path))
    slow = [row.frames for row in clip_rows(tmp_path / "done") if row.source == "slow.mkv"]
    assert found["failed"] == 1 and slow == [1, 1]  # a mkv does not give the duration of its last frame
    ((name, error),) = failed_clips(run_of(raw, tmp_path))
    assert name == "ages.mkv" and error.startswith("a frame must last at most 1001 seconds; got 1e+10")


def test_videos_of_any_container_are_read_and_other_files_fail(tmp_path, capsys):
    (tmp_path / "raw").mkdir()
    for name in ("video.mp4", "video.webm"):
        write_video(tmp_path / "raw" / name, shot(0, 16), 8)
    for name in ("video.mkv", "video.mov"):
        remux(tmp_path / "raw" / "video.mp4", tmp_path / "raw" / name)
    (tmp_path / "raw" / "really-mp4.webm").write_bytes((tmp_path / "raw" / "video.mp4").read_bytes())
    (tmp_path / "raw" / "really-png.jpg").write_bytes(png_bytes(tmp_path, shot(1, 1)))
    (tmp_path / "raw" / "really-png.mp4").write_bytes(png_bytes(tmp_path, shot(1, 1)))
    (tmp_path / "raw" / "really-mp4.png").write_bytes((tmp_path / "raw" / "video.mp4").read_bytes())
    assert main(["prepare", "clips", str(tmp_path / "raw"), str(tmp_path / "done"), "--engine", "serial"]) == 3
    videos = ("video.mkv", "video.mov", "video.mp4", "video.webm", "really-mp4.webm")
    made = {row.clip: (row.source, row.frames, row.columns) for row in read_manifest(tmp_path / "done")}
    expected = {(name, 16, 64) for name in videos} | {("really-png.jpg", 1, 64)}
    assert len(made) == 5 and set(made.values()) < expected  # the same video twice is one clip
    errors = dict(failed_clips(run_of(tmp_path / "raw", tmp_path)))
    assert errors.keys() == {"really-png.mp4", "really-mp4.png"}
    assert "cannot be read as a video" in errors["really-png.mp4"]
    assert "cannot be read as an image" in errors["really-mp4.png"]


def png_bytes(folder, image):
    write_image(folder / "image.png", image)
    return (folder / "image.png").read_bytes()


HOLD_FOLDER = """
import sys
from pathlib import Path
from training.prepare.journal import locked_folder
with locked_folder(Path(sys.argv[1])):
    print("begun", flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_locked_by_one_process_until_it_ends(raw, tmp_path, capsys):
    command = ["prepare", "clips", str(raw), str(tmp_path / "done"), "--engine", "serial"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HOLD_FOLDER, str(tmp_path / "done")], **pipes) as other:
        assert other.stdout.readline() == b"begun\n"
        assert main(command) == 2
        rule = f"longtake: one run at a time writes to {tmp_path / 'done'}, and another does; wait for it\n"
        assert capsys.readouterr().err == rule and not (tmp_path / "done" / "journal").exists()
        other.kill()
    assert main(command) == 0


@pytest.mark.parametrize(
    ("flag", "value", "rule"),
    [
        ("--matcher", "nowhere", "a matcher must be"),
        ("--vae", "nowhere", "nowhere"),
        ("--text-encoder", "nowhere", "nowhere"),
        ("--drop", "beauty", "a threshold must be one of motion"),
        ("--threshold", "beauty=1", "a threshold must be one of motion"),
        ("--threshold", "all=0.5", "a threshold must be one of motion"),
        ("--model", "vlm", "an endpoint and the model there"),
        ("--captioner", "/nowhere/at/all", "a captioner must be"),
        ("--endpoint", "http://127.0.0.1:9/v1", "an endpoint and the model there"),
    ],
)
def test_prepare_all_refuses_a_wrong_name_before_its_first_step(raw, tmp_path, capsys, flag, value, rule):
    assert main(["prepare", "all", str(raw), str(tmp_path / "done"), "--engine", "serial", flag, value]) == 2
    assert rule in capsys.readouterr().err and not (tmp_path / "done").exists()


def test_clips_stay_while_their_source_is_broken(raw, tmp_path):
    write_video(raw / "video.mp4", shot(0, 20), 8)
    run = ClipsRun(str(raw), tmp_path / "done", engine="serial")
    cut_clips(run)
    before, whole = [row.clip for row in clip_rows(run.folder)], (raw / "video.mp4").read_bytes()
    (raw / "video.mp4").write_bytes(whole[:-500])
    assert cut_clips(run)["failed"] == 1 and [row.clip for row in clip_rows(run.folder)] == before
    (raw / "video.mp4").write_bytes(whole)
    assert cut_clips(run)["failed"] == 0 and [row.clip for row in clip_rows(run.folder)] == before


def test_the_flags_of_version_0_1_still_work(raw, tmp_path, capsys):
    command = ["prepare", "all", str(raw), str(tmp_path / "done")]
    old = ["--engine", "here", "--limit", "0.5", "--answer", "0.5", "--text", "nowhere", "--captioner", "/nowhere"]
    assert main([*command, *old]) == 2 and "a captioner must be" in capsys.readouterr().err
    assert main(["prepare", "clips", str(raw), str(tmp_path / "done"), "--engine", "here", "--limit", "60"]) == 0
    with pytest.raises(SystemExit):
        main(["prepare", "all", "--help"])
    shown = capsys.readouterr().out
    assert "--timeout" in shown and "--limit" not in shown and "--answer " not in shown


@pytest.fixture
def done(raw, tmp_path):
    """A prepared folder with two clips."""
    write_video(raw / "other.mp4", shot(2, 20), 8)
    cut_clips(ClipsRun(str(raw), tmp_path / "done", engine="serial"))
    return tmp_path / "done"


@pytest.mark.parametrize("step", ["filter", "latents"])
def test_a_step_with_a_damaged_clip_exits_with_3_and_completes_once_it_is_intact(done, capsys, step):
    row = max(clip_rows(done), key=lambda row: row.frames)
    kept = (done / row.file).read_bytes()
    (done / row.file).write_bytes(kept[: len(kept) // 2])
    command = ["prepare", step, str(done), "--engine", "serial"]
    assert main(command) == 3
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("longtake: ")]
    assert line.startswith(f"longtake: {row.file}: ")
    (done / row.file).write_bytes(kept)
    assert main(command) == 0


def test_clips_are_captioned_once_an_unreachable_endpoint_is_back(done, capsys):
    with ChatServer(DESCRIPTION) as server:
        url = server.url
    command = ["prepare", "captions", str(done), "--engine", "serial", "--model", "vlm", "--endpoint"]
    assert main([*command, url]) == 3
    printed = capsys.readouterr()
    assert "2 failed" in printed.out and printed.err.count("vlm at 127.0.0.1 cannot be reached") == 2
    assert not any(row.captions for row in read_manifest(done))
    with ChatServer(DESCRIPTION) as server:
        assert main([*command, server.url]) == 0
    assert [caption.text for row in read_manifest(done) for caption in row.captions] == [DESCRIPTION["caption"]] * 2
