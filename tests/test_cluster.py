"""On a Ray cluster a batch is the same as on one machine, whoever dies."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from app.batch import MANIFEST
from app.cli import main

ROWS = "".join(f"a red ball {n}\n" for n in range(6))


@pytest.fixture
def render(tmp_path, tiny_model):
    """What renders a few pictures into a folder, with one thread as on a cluster."""
    (tmp_path / "jobs.txt").write_text(ROWS)
    settings = [f"--set={one}" for one in (f"model={tiny_model}", "steps=2", "mode=text-to-image")]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield lambda folder, *words: main(["render", str(tmp_path / "jobs.txt"), "-o", str(folder), *settings, *words])
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def cluster():
    """A Ray of two cores, whose processes do not stand back behind all others."""
    ray = pytest.importorskip("ray")
    ray.shutdown()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
        yield
        ray.shutdown()


def kill_one_at_work(folder: Path, killed: list[int]) -> None:
    """Kill one process of the cluster as soon as a clip is being made, once the first is done."""
    until = time.monotonic() + 300
    while not killed and time.monotonic() < until:
        if list(folder.glob("*.png")) and list(folder.glob(".making-*")):
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    at_work = (process / "cmdline").read_bytes().startswith(b"ray::make")
                    if at_work and not killed and process.stat().st_uid == os.getuid():
                        os.kill(int(process.name), signal.SIGKILL)
                        killed.append(int(process.name))
                except (FileNotFoundError, ProcessLookupError):
                    continue
        time.sleep(0.002)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the process to kill in /proc")
def test_a_killed_workers_rows_are_done_elsewhere_and_all_are_the_same_bytes(render, cluster, tmp_path, capsys):
    out, killed = tmp_path / "out", []
    killer = threading.Thread(target=kill_one_at_work, args=(out, killed), daemon=True)
    killer.start()
    assert render(out, "--engine", "ray", "--json") == 0
    killer.join()
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(killed) == 1 and {line["state"] for line in told} == {"done"}
    assert sorted(line["row"] for line in told) == [1, 2, 3, 4, 5, 6]
    assert len((out / MANIFEST).read_text().splitlines()) == 6
    assert render(tmp_path / "here", "--workers", "0") == 0
    made = {path.name: path.read_bytes() for path in (tmp_path / "here").glob("*.png")}
    assert len(made) == 6 and {path.name: path.read_bytes() for path in out.iterdir() if path.suffix == ".png"} == made
    assert sorted(path.name for path in out.iterdir()) == sorted([*made, MANIFEST])
    assert render(out, "--engine", "ray", "--json") == 0  # all are there
    assert {json.loads(line)["state"] for line in capsys.readouterr().out.splitlines() if "there" in line} == {"there"}


def test_a_row_that_fails_on_the_cluster_says_why(render, cluster, tmp_path, capsys):
    (tmp_path / "jobs.txt").write_text("a red ball\n")
    assert render(tmp_path / "out", "--engine", "ray", "--set", "size=66x64") == 3
    assert "was trained for" in capsys.readouterr().err
    assert render(tmp_path / "out", "--engine", "ray", "--workers", "0") == 2
    assert "workers of a cluster must be at least 1; got 0" in capsys.readouterr().err
