"""Engines: work on many items goes on whatever one of them does, and shows how far it is."""

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


def odd_alone(number: int) -> int:
    """Work for the engine: even numbers fail."""
    if number % 2 == 0:
        raise ValueError("a number must be odd")
    return number


def test_a_bar_on_stderr_tells_the_total_what_is_done_and_what_failed(capsys):
    bar = with_progress(PrepareRun(engine="serial").map(odd_alone, []), "nothing", 0)
    assert list(bar) == [] and capsys.readouterr().err == ""
    seen = list(PrepareRun(engine="serial").map(odd_alone, range(5)))
    printed = capsys.readouterr()
    assert [outcome.value for outcome in seen] == [None, 1, None, 3, None]
    assert re.search(r"100%.* 5/5 \[.*failed=3\]\n$", printed.err) and printed.out == ""


def test_a_run_that_stops_halfway_leaves_its_bar_where_it_was(capsys):
    run = PrepareRun(engine="serial").map(odd_alone, range(1, 9, 2))
    assert next(run).value == 1
    run.close()
    assert re.search(r"1/4 \[.*failed=0\]\n$", capsys.readouterr().err)


def test_each_step_of_preparing_shows_its_bar(tmp_path, capsys):
    (tmp_path / "raw").mkdir()
    write_video(tmp_path / "raw" / "film.mp4", shot(0, 16), 8)
    (tmp_path / "raw" / "broken.mp4").write_bytes(b"no film")
    for step, source, failed in (("clips", [str(tmp_path / "raw")], 1), ("filter", [], 0)):
        assert main(["prepare", step, *source, str(tmp_path / "done"), "--engine", "serial"]) == (3 if failed else 0)
        done = len(source) + 1
        assert re.search(rf"{step}: 100%.* {done}/{done} \[.*failed={failed}\]\n", capsys.readouterr().err)


@pytest.mark.parametrize("engine", ["pool", "ray"])
def test_the_pace_is_measured_and_workers_killed_meanwhile_lose_nothing(tmp_path, engine):
    if engine == "ray":
        ray = pytest.importorskip("ray")
        ray.shutdown()
    told = measure_throughput(
        tmp_path, 2, 0.1, engine, most=MAX_TRIES - 1
    )  # or one film could meet its end in all its tries
    assert all(told.pop(f"a minute, {name}") > 0 for name in ("one worker", "two", "killed"))
    assert told == {"films": 2, "clips": 4, "killed": MAX_TRIES - 1, "lost or changed": 0, "doubled": 0}
    if engine == "ray":
        ray.shutdown()


def asleep(path: Path) -> str:
    """Work for the engine: leave word which process does this, and take long."""
    path.write_text(str(os.getpid()))
    time.sleep(600)
    return "done"


def test_a_worker_ends_with_the_process_that_has_it_whatever_it_is_at(tmp_path):
    words = "import sys; from pathlib import Path; from training.prepare.engine import parallel_map; "
    words += "from tests.test_engine import asleep; "
    words += "list(parallel_map(asleep, [Path(sys.argv[1])], 'pool', 1))"
    killed = subprocess.Popen([sys.executable, "-c", words, str(tmp_path / "pid")])
    while killed.poll() is None and not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()):
        time.sleep(0.05)
    worker = psutil.Process(int((tmp_path / "pid").read_text()))
    killed.kill()
    killed.wait()
    assert psutil.wait_procs([worker], timeout=60)[1] == []
