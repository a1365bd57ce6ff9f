"""On a Ray cluster, batches and prepared clips are the same as on one machine, whatever process dies."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch

from app.batch.batch import MANIFEST
from app.cli import main
from tests.test_prepare import shot
from training.manifest import read_manifest
from training.prepare.engine import parallel_map
from vae.video.write import write_video

pytestmark = pytest.mark.slow

ROWS = "".join(f"a red ball {n}\n" for n in range(6))


@pytest.fixture
def render(tmp_path, tiny_model):
    """A function that renders a few images into a folder, with one thread as on a cluster."""
    (tmp_path / "jobs.txt").write_text(ROWS)
    settings = [f"--set={one}" for one in (f"model={tiny_model}", "steps=2", "mode=text-to-image")]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield lambda folder, *flags: main(["render", str(tmp_path / "jobs.txt"), "-o", str(folder), *settings, *flags])
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def cluster():
    """A Ray cluster of two cores, whose processes run at normal priority."""
    ray = pytest.importorskip("ray")
    ray.shutdown()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
        yield
        ray.shutdown()


def kill_a_running_task(folder: Path, killed: list[int]) -> None:
    """Kill one process of the cluster as soon as a clip is being made, once the first is done."""
    until = time.monotonic() + 300
    while not killed and time.monotonic() < until:
        if list(folder.glob("*.png")) and list(folder.glob(".making-*")):
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    is_running = (process / "cmdline").read_bytes().startswith(b"ray::run_task")
                    if is_running and not killed and process.stat().st_uid == os.getuid():
                        os.kill(int(process.name), signal.SIGKILL)
                        killed.append(int(process.name))
                except (FileNotFoundError, ProcessLookupError):
                    continue
        time.sleep(0.002)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the process to kill in /proc")
def test_the_task_of_a_killed_process_runs_elsewhere_and_all_clips_have_the_same_bytes(
    render, cluster, tmp_path, capsys
):
    out, killed = tmp_path / "out", []
    killer = threading.Thread(target=kill_a_running_task, args=(out, killed), daemon=True)
    killer.start()
    assert render(out, "--engine", "ray", "--json") == 0
    killer.join()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(killed) == 1 and {line["state"] for line in lines} == {"done"}
    assert sorted(line["row"] for line in lines) == [1, 2, 3, 4, 5, 6]
    assert len((out / MANIFEST).read_text().splitlines()) == 6
    assert render(tmp_path / "here", "--workers", "0") == 0
    made = {path.name: path.read_bytes() for path in (tmp_path / "here").glob("*.png")}
    assert len(made) == 6 and {path.name: path.read_bytes() for path in out.iterdir() if path.suffix == ".png"} == made
    assert sorted(path.name for path in out.iterdir()) == sorted([*made, MANIFEST])
    assert render(out, "--engine", "ray", "--json") == 0  # all exist
    assert {json.loads(line)["state"] for line in capsys.readouterr().out.splitlines() if "exists" in line} == {
        "exists"
    }


def test_a_row_that_fails_on_the_cluster_has_a_message(render, cluster, tmp_path, capsys):
    (tmp_path / "jobs.txt").write_text("a red ball\n")
    assert render(tmp_path / "out", "--engine", "ray", "--set", "size=66x64") == 3
    assert "was trained for" in capsys.readouterr().err
    assert render(tmp_path / "out", "--engine", "ray", "--workers", "0") == 2
    assert "workers of a cluster must be at least 1; got 0" in capsys.readouterr().err


@pytest.fixture
def raw(tmp_path):
    """A folder of two videos, one of two shots and one of one."""
    (tmp_path / "raw").mkdir()
    write_video(tmp_path / "raw" / "two.mp4", torch.cat([shot(0, 64, 144, 256), shot(2.2, 64, 144, 256)], 1), 24)
    write_video(tmp_path / "raw" / "one.mp4", shot(4.4, 64, 144, 256), 24)
    return tmp_path / "raw"


def cut_by(engine: str, raw: Path, folder: Path) -> int:
    """Cut videos; return the exit code."""
    return main(["prepare", "clips", str(raw), str(folder), "--engine", engine])


def journaled(folder: Path) -> list[str]:
    """Return the names of the sources that were cut, once for each time."""
    lines = (folder / "journal" / "clips.jsonl").read_text().splitlines()
    return sorted(Path(json.loads(line)["key"]).name for line in lines if "error" not in json.loads(line))


def processes_cutting(video: Path) -> list[psutil.Process]:
    """Return the Ray process and its worker process that cut a video; nothing where none does."""
    for one in psutil.Process().children(recursive=True):
        try:
            if one.cmdline()[:1] == ["ray::Map(_run_on_ray)"]:
                for worker in one.children(recursive=True):
                    if str(video) in (file.path for file in worker.open_files()):
                        return [one, worker]
        except psutil.Error:
            continue
    return []


def test_videos_are_cut_on_the_cluster_as_in_a_pool(raw, cluster, tmp_path, capsys):
    (raw / "broken.mp4").write_bytes(b"no video")
    assert cut_by("pool", raw, tmp_path / "pool") == 3 and cut_by("ray", raw, tmp_path / "ray") == 3
    rows = read_manifest(tmp_path / "ray")
    assert len(rows) == 3 and rows == read_manifest(tmp_path / "pool")
    for row in rows:
        assert (tmp_path / "ray" / row.file).read_bytes() == (tmp_path / "pool" / row.file).read_bytes()
    assert journaled(tmp_path / "ray") == ["one.mp4", "two.mp4"] and capsys.readouterr().err.count("broken.mp4: ") == 2
    assert cut_by("ray", raw, tmp_path / "ray") == 3 and "2 done before" in capsys.readouterr().out


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the process to kill in /proc")
@pytest.mark.parametrize("victim", [0, 1], ids=["ray process", "worker process"])
def test_a_video_whose_process_is_killed_is_neither_lost_nor_cut_twice(raw, cluster, tmp_path, victim):
    killed = []

    def kill() -> None:
        until = time.monotonic() + 300
        while not killed and time.monotonic() < until:
            if found := processes_cutting(raw / "two.mp4"):
                found[victim].kill()
                killed.append(found[victim].pid)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    assert cut_by("ray", raw, tmp_path / "ray") == 0
    killer.join()
    assert cut_by("serial", raw, tmp_path / "here") == 0
    assert len(killed) == 1 and journaled(tmp_path / "ray") == ["one.mp4", "two.mp4"]
    assert len(read_manifest(tmp_path / "ray")) == 3 and read_manifest(tmp_path / "ray") == read_manifest(
        tmp_path / "here"
    )
    left = sorted(path.relative_to(tmp_path / "ray") for path in (tmp_path / "ray" / "clips").rglob("*.*"))
    assert left == sorted(Path(row.file) for row in read_manifest(tmp_path / "ray"))


def test_models_get_a_gpu_where_the_cluster_has_one_and_other_tasks_get_none():
    ray = pytest.importorskip("ray")
    ray.shutdown()
    ray.init(num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        for gpu, seen in ((True, "0"), (False, "")):
            (found,) = parallel_map(os.getenv, ["CUDA_VISIBLE_DEVICES"], "ray", gpu=gpu)
            assert (found.value or "") == seen
    finally:
        ray.shutdown()
