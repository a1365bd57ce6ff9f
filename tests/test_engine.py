"""The engine of prepare: one item that fails stops no other, and a progress bar shows what is done."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from app.cli import main
from tests.test_prepare import shot
from training.prepare.engine import MAX_TRIES, PrepareRun, with_progress
from training.prepare.throughput import measure_throughput
from vae.video.write import write_video


def only_odd(number: int) -> int:
    """Return an odd number; fail for an even one."""
    if number % 2 == 0:
        raise ValueError("a number must be odd")
    return number


def test_a_progress_bar_on_stderr_shows_total_done_and_failed(capsys):
    outcomes = with_progress(PrepareRun(engine="serial").map(only_odd, []), "nothing", 0)
    assert list(outcomes) == [] and capsys.readouterr().err == ""
    outcomes = list(PrepareRun(engine="serial").map(only_odd, range(5)))
    printed = capsys.readouterr()
    assert [outcome.value for outcome in outcomes] == [None, 1, None, 3, None]
    assert re.search(r"100%.* 5/5 \[.*failed=3\]\n$", printed.err) and printed.out == ""


def test_a_run_that_stops_early_leaves_its_progress_bar_where_it_was(capsys):
    outcomes = PrepareRun(engine="serial").map(only_odd, range(1, 9, 2))
    assert next(outcomes).value == 1
    outcomes.close()
    assert re.search(r"1/4 \[.*failed=0\]\n$", capsys.readouterr().err)


def test_each_step_of_prepare_shows_a_progress_bar(tmp_path, capsys):
    (tmp_path / "raw").mkdir()
    write_video(tmp_path / "raw" / "video.mp4", shot(0, 16), 8)
    (tmp_path / "raw" / "broken.mp4").write_bytes(b"no video")
    for step, source, failed in (("clips", [str(tmp_path / "raw")], 1), ("filter", [], 0)):
        assert main(["prepare", step, *source, str(tmp_path / "done"), "--engine", "serial"]) == (3 if failed else 0)
        done = len(source) + 1
        assert re.search(rf"{step}: 100%.* {done}/{done} \[.*failed={failed}\]\n", capsys.readouterr().err)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["pool", "ray"])
def test_throughput_is_measured_and_killed_workers_lose_nothing(tmp_path, engine):
    if engine == "ray":
        ray = pytest.importorskip("ray")
        ray.shutdown()
    # One kill fewer than the tries: otherwise one video could use up all of its own.
    report = measure_throughput(tmp_path, 2, 0.1, engine, most=MAX_TRIES - 1)
    assert all(report.pop(f"per minute, {name}") > 0 for name in ("one worker", "two workers", "killed"))
    assert report == {"videos": 2, "clips": 4, "killed": MAX_TRIES - 1, "lost or changed": 0, "doubled": 0}
    if engine == "ray":
        ray.shutdown()


def write_pid_and_sleep(path: Path) -> str:
    """Write the process id to a file and sleep."""
    path.write_text(str(os.getpid()))
    time.sleep(600)
    return "done"


@pytest.mark.slow
def test_a_worker_ends_with_its_parent_process(tmp_path):
    words = "import sys; from pathlib import Path; from training.prepare.engine import parallel_map; "
    words += "from tests.test_engine import write_pid_and_sleep; "
    words += "list(parallel_map(write_pid_and_sleep, [Path(sys.argv[1])], 'pool', 1))"
    killed = subprocess.Popen([sys.executable, "-c", words, str(tmp_path / "pid")])
    while killed.poll() is None and not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()):
        time.sleep(0.05)
    worker = psutil.Process(int((tmp_path / "pid").read_text()))
    killed.kill()
    killed.wait()
    assert psutil.wait_procs([worker], timeout=60)[1] == []
