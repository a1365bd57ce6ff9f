"""Kill batches that share a folder, and fill their disks; count what was lost, made twice, wrong or left behind."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from app.batch.manifest import MANIFEST
from app.queue.jobs import DONE, Queue
from app.queue.schema import BATCH_QUEUE
from app.render import read_request

IMAGES = ("--set", "mode=text-to-image", "--set", "steps=1", "--workers", "1")
TIMEOUT_SECONDS = 1200.0
HOLD_SECONDS = 5.0  # for which a full disk stays full


def start(directory: Path, *argv: str) -> subprocess.Popen:
    """Start a command of longtake in a directory."""
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "app.cli", *map(str, argv)]
    return subprocess.Popen(command, cwd=directory, env=os.environ | {"PYTHONPATH": paths}, stdout=subprocess.DEVNULL)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition; raises TimeoutError that says what was waited for."""
    end = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} must come within {TIMEOUT_SECONDS:g} s; it did not")
        time.sleep(0.05)


def write_prompts(path: Path, numbers: range) -> Path:
    """Write rows whose outputs have names of their own, so that each file can be checked."""
    rows = [{"prompt": f"a red ball {n}", "seed": n, "output": f"{n}.png"} for n in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def count(folder: Path, clips: int) -> dict[str, int]:
    """Count in a batch's folder: clips, those that hold another request, lines and jobs too few or too many."""
    files = {path.name: path for path in folder.rglob("*.png")}
    lines = [json.loads(line) for line in (folder / MANIFEST).read_text().splitlines()]
    noted = Counter(Path(line["output"]).name for line in lines if line["state"] == DONE)
    made = Counter(job.output.name for job in Queue(folder / BATCH_QUEUE).done_jobs())
    return {
        "clips": clips,
        "lost": clips - len(files),
        "wrong": sum(read_request(path).seed != int(path.stem) for path in files.values()),
        "made twice": sum(made.values()) - len(made),
        "lines missing": len(files.keys() - noted.keys()),
        "lines too many": sum(noted.values()) - len(noted),
        "left behind": len(list(folder.rglob(".making-*"))) + len(list(folder.rglob("*.part"))),
    }


def kill_two_batches(folder: Path, clips: int, kills: int, seed: int = 0) -> dict[str, int]:
    """Make two batches, a third of them the same clips, in one folder at the same time, and kill one of them again and
    again.

    One names the folder relative to its directory, the other by a link from another directory.
    """
    rng, started, total = random.Random(seed), time.monotonic(), clips + clips - clips // 3
    one, other = folder / "one", folder / "other"
    for place in (one, other, folder / "clips"):
        place.mkdir()
    (other / "link").symlink_to(folder / "clips")
    write_prompts(one / "jobs.jsonl", range(clips))
    write_prompts(other / "jobs.jsonl", range(total - clips, total))
    commands = [(one, "render", "jobs.jsonl", "-o", "../clips"), (other, "render", "jobs.jsonl", "-o", "link")]
    processes = [start(*command, *IMAGES) for command in commands]
    made = lambda: len(list((folder / "clips").glob("*.png")))
    for number in range(kills):
        wait_until(lambda due=total * number // (kills + 1): made() > due, "a clip")
        time.sleep(rng.uniform(0, 0.5))
        victim = rng.randrange(2)
        processes[victim].send_signal(signal.SIGKILL)
        processes[victim].wait()
        processes[victim] = start(*commands[victim], *IMAGES)
    failed = sum(process.wait(TIMEOUT_SECONDS) != 0 for process in processes)
    return count(folder / "clips", total) | {
        **{"kills": kills, "failed": failed, "seconds": round(time.monotonic() - started)}
    }


def kill_and_work_elsewhere(folder: Path, clips: int) -> dict[str, int]:
    """Kill a batch at its first clip, and let `work`, started by hand in another directory, make the rest."""
    started, home, elsewhere = time.monotonic(), folder / "home", folder / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    write_prompts(home / "jobs.jsonl", range(clips))
    batch = (home, "render", "jobs.jsonl", "-o", "clips", *IMAGES)
    process = start(*batch)
    wait_until(lambda: any((home / "clips").glob("*.png")), "the first clip")
    process.send_signal(signal.SIGKILL)
    process.wait()
    failed = start(elsewhere, "work", "../home/clips", "--until-empty").wait(TIMEOUT_SECONDS) != 0
    made_by_work = len(list((home / "clips").glob("*.png")))
    failed += start(*batch).wait(TIMEOUT_SECONDS) != 0  # which writes the lines
    strays = [path for path in folder.rglob("*.png") if path.parent != home / "clips"]
    found = {"made by work": made_by_work, "strays": len(strays), "failed": int(failed)}
    return count(home / "clips", clips) | found | {"seconds": round(time.monotonic() - started)}


@contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Path]:
    """Mount a small file system, which needs root."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill_disk(folder: Path, sort: str, clips: int) -> dict[str, int]:
    """Fill a disk under a batch for some seconds, and count also whether the batch said which disk is full.

    It is the queue's "own", that of a "sub-folder", or one that has space but no names left, for "staging".
    """
    started, home = time.monotonic(), folder / "home"
    home.mkdir()
    place = home / "clips" if sort == "own" else home / "clips" / "sub"
    with small_disk(place, "size=3m" + (",nr_inodes=64" if sort == "staging" else "")) as disk:
        rows = write_prompts(home / "jobs.jsonl", range(clips))
        if sort != "own":
            rows.write_text(rows.read_text().replace('"output": "', '"output": "sub/'))
        with open(home / "log", "wb") as log:
            fillers = [] if sort == "own" else fill(disk, names=sort == "staging")
            process = subprocess.Popen(
                [sys.executable, "-m", "app.cli", "render", "jobs.jsonl", "-o", "clips", *IMAGES],
                cwd=home,
                env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
            if sort == "own":
                wait_until(lambda: any(disk.glob("*.png")), "the first clip")
                fillers = fill(disk)
            told = lambda: f"the disk at {disk}" in (home / "log").read_text()
            wait_until(lambda: told() or process.poll() is not None, "a word about the disk")
            time.sleep(HOLD_SECONDS)
            for filler in fillers:
                filler.unlink()
            failed = process.wait(TIMEOUT_SECONDS) != 0
        found = {"told": int(told()), "failed": int(failed), "seconds": round(time.monotonic() - started)}
        return count(home / "clips", clips) | found


def fill(disk: Path, names: bool = False) -> list[Path]:
    """Take all space of a disk, or all names; return the files that do."""
    found: list[Path] = []
    try:
        while True:
            found.append(disk / f"filler-{len(found)}")
            with open(found[-1], "wb", buffering=0) as file:
                while not names:
                    if not file.write(bytes(4096)):
                        break
    except OSError:
        return [path for path in found if path.exists()]
