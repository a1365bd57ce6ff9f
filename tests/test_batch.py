"""A batch makes each clip once, whatever process is killed, and reports the outcome of every row."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from app.batch.batch import MANIFEST
from app.batch.cluster import run_task
from app.cli import main
from app.queue.jobs import CANCELLED, DONE, QUEUED, RUNNING, Job, Queue, new_ids
from app.registry import UPSAMPLER
from app.render import read_request
from captioning.upsampler import load_upsampler
from dit.request import Request


@pytest.fixture
def batch(tmp_path, tiny_model):
    """A function that runs `longtake render` on a text, always in the same folder."""

    def render(text, *flags, suffix=".txt"):
        path = tmp_path / f"jobs{suffix}"
        path.write_text(text)
        common = ("--set", f"model={tiny_model}", "--set", "steps=2", "--set", "mode=text-to-image")
        return main(["render", str(path), "-o", str(tmp_path / "out"), *common, *flags])

    render.folder, render.model = tmp_path / "out", str(tiny_model)
    return render


def manifest(folder):
    return [json.loads(line) for line in (folder / MANIFEST).read_text().splitlines()]


@pytest.mark.slow
def test_rows_become_files_and_a_second_run_makes_only_what_is_missing(batch, capsys):
    assert batch("a red ball\na {blue|green} cube\n", "--workers", "0") == 0
    paths = capsys.readouterr().out.split()
    assert {read_request(path).prompt for path in paths} == {"a red ball", "a blue cube", "a green cube"}
    assert sorted(paths) == sorted(map(str, batch.folder.glob("*.png")))
    made = {path: os.stat(path).st_mtime_ns for path in paths}
    os.unlink(paths[0])
    assert batch("a red ball\na {blue|green} cube\n", "--workers", "0") == 0
    assert {path for path in paths if os.stat(path).st_mtime_ns == made[path]} == set(paths[1:])
    assert [line["state"] for line in manifest(batch.folder)] == ["done"] * 4


@pytest.mark.slow
def test_prompts_are_upsampled_by_the_upsampler_that_a_row_names(batch):
    rows = [{"prompt": "ruby ball hops", "upsample": name, "seed": 3} for name in ("auto", "none")]
    assert batch("".join(json.dumps(row) + "\n" for row in rows), "--workers", "1", suffix=".jsonl") == 0
    found = [read_request(path) for path in batch.folder.glob("*.png")]
    assert {(one.prompt, one.seed) for one in found} == {("ruby ball hops", 3)} and len(found) == 2
    upsampled = {one.upsample: one.upsampled_prompt for one in found}
    assert upsampled.pop(None) is None
    (text,) = upsampled.values()  # cut to this model's limit
    assert text and load_upsampler(UPSAMPLER).upsample("ruby ball hops", 3, image=True).startswith(text)


def test_a_cluster_task_makes_its_clip_and_leaves_no_other_file(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    request = Request(prompt="a red ball", mode="text-to-image", model=str(tiny_model), steps=2)
    job = Job(new_ids(1)[0], request, tmp_path / "ball.png", RUNNING)
    found = run_task(job, str(tmp_path), {})
    assert (found.state, found.message) == (DONE, "") and read_request(job.output).prompt == "a red ball"
    assert [path.name for path in tmp_path.iterdir()] == ["ball.png"]


@pytest.mark.slow
def test_other_weights_give_other_names(batch, tiny_model, tmp_path):
    assert batch("a red ball\n", "--workers", "0") == 0
    text = (tiny_model / "longtake.json").read_text()
    other = shutil.copytree(tiny_model, tmp_path / "other")
    (other / "longtake.json").write_text(json.dumps(json.loads(text) | {"guidance": 1.5}))
    before = set(batch.folder.glob("*.png"))
    assert batch("a red ball\n", "--workers", "0", "--set", f"model={other}") == 0
    assert len(set(batch.folder.glob("*.png")) - before) == 1
    shutil.copy(other / "longtake.json", tiny_model / "longtake.json")  # the same name, other weights
    try:
        assert batch("a red ball\n", "--workers", "0") == 0
    finally:
        (tiny_model / "longtake.json").write_text(text)
    assert len(list(batch.folder.glob("*.png"))) == 3


def test_an_invalid_or_failed_row_does_not_stop_the_others(batch, capsys):
    rows = '{"prompt": "a red ball"}\n{"prompt": "a ball", "sise": 3}\n{"prompt": "a ball", "size": "66x64"}\n'
    assert batch(rows, "--json", "--workers", "0", suffix=".jsonl") == 3
    found = {line["row"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert {row: line["state"] for row, line in found.items()} == {1: "done", 2: "failed", 3: "failed"}
    assert "perhaps size was meant" in found[2]["message"] and "was trained for" in found[3]["message"]
    assert len(manifest(batch.folder)) == 3


def test_a_dry_run_counts_and_makes_nothing(batch, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LONGTAKE_HOME", str(tmp_path / "home"))  # without a history of what earlier clips took
    assert batch("a ball\na ball\n{broken\n", "--dry-run", "--json", "--seed", "1", "2") == 0
    found = json.loads(capsys.readouterr().out)
    assert [found[name] for name in ("clips", "existing", "duplicates", "invalid")] == [2, 0, 2, 1]
    assert found["seconds"] >= 0 and found["bytes"] > 0 and 2**28 < found["peak_bytes"] < 2**30
    assert not batch.folder.exists()
    assert batch("a ball\n", "--workers", "0") == 0
    capsys.readouterr()
    assert batch("a ball\na cube\na can\n", "--dry-run", "--workers", "0") == 0
    printed = capsys.readouterr().out
    assert "2 clips, 1 existing" in printed and "clips made here) with 1 at once: about" in printed


def test_bad_flags_are_refused_before_anything_is_made(batch, capsys):
    for flags, message in {
        ("--workers", "-1"): "workers must be a number from 0",
        ("--pack-size", "0"): "pack size must be a number from 1",
        ("--shard", "3/2"): "a shard must be one of some",
        ("--set", "seed"): "a setting must be FIELD=VALUE",
        ("--max-clips", "1"): "a batch may make 1 clips",
    }.items():
        assert batch("a ball\na cube\n", *flags) == 2
        assert message in capsys.readouterr().err
    assert batch("") == 2
    assert not batch.folder.exists()


def test_a_row_that_does_not_fit_in_memory_is_refused_and_the_others_are_made(batch, capsys, monkeypatch):
    from app.queue import estimate

    limit = estimate.Estimator().estimate(Request(mode="text-to-image", prompt="a", model=batch.model)).peak_bytes()
    monkeypatch.setattr(estimate, "available_memory", lambda device, reusable=(): limit + 2**18)
    rows = '{"prompt": "a red ball"}\n{"prompt": "a ball", "mode": "text-to-video"}\n'
    assert batch(rows, "--workers", "0", "--json", suffix=".jsonl") == 3
    found = {line["row"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert found[1]["state"] == "done" and "must fit in memory" in found[2]["message"]


@pytest.mark.slow
def test_shards_divide_a_batch_and_make_the_same_bytes(batch, tmp_path):
    text = "".join(f"a ball {n}\n" for n in range(12))
    for n in (1, 2):
        assert batch(text, "--shard", f"{n}/2", "--workers", "0") == 0
    sharded = {path.name: path.read_bytes() for path in batch.folder.glob("*.png")}
    shards = [len(Queue(batch.folder / f".queue-{n}-of-2").jobs(states=[DONE])) for n in (1, 2)]
    assert sum(shards) == len(sharded) == 12 and all(shards)
    batch.folder.rename(tmp_path / "sharded")
    assert batch(text, "--workers", "0") == 0
    assert {path.name: path.read_bytes() for path in batch.folder.glob("*.png")} == sharded


@pytest.mark.slow
def test_a_killed_batch_continues_where_it_was(batch, tmp_path):
    text = "".join(f"a ball {n}\n" for n in range(5))
    (tmp_path / "jobs.txt").write_text(text)
    command = ["render", str(tmp_path / "jobs.txt"), "-o", str(batch.folder), "--workers", "1", "--set", "steps=2"]
    first = subprocess.Popen([sys.executable, "-m", "app.cli", *command, "--set", "mode=text-to-image"])
    deadline = time.monotonic() + 120
    while not list(batch.folder.glob("*.png")) and time.monotonic() < deadline:
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    queue = Queue(batch.folder / ".queue")
    assert main([*command, "--set", "mode=text-to-image"]) == 0
    assert len(list(batch.folder.glob("*.png"))) == 5
    assert queue.counts()[DONE] == 5 and queue.counts()[QUEUED] == queue.counts()[CANCELLED] == 0


def test_jobs_of_a_batch_are_listed_paused_and_retried(batch, capsys):
    assert batch("a red ball\n", "--workers", "0") == 0
    folder = str(batch.folder)
    capsys.readouterr()
    assert main(["jobs", folder, "--pause", "lunch"]) == 0
    printed = capsys.readouterr().out
    assert "a red ball" in printed and "1 done; paused: lunch" in printed
    assert main(["jobs", folder, "--resume", "--json"]) == 0
    (job,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert job["state"] == DONE and job["request"]["prompt"] == "a red ball"
    assert main(["jobs", folder, "--retry", job["id"]]) == 2
    assert "must have failed or been cancelled" in capsys.readouterr().err
    assert main(["jobs", str(batch.folder.parent)]) == 2
    assert main(["work", folder, "--until-empty"]) == 0
