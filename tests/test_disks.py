"""Full disks of three sorts: the queue's own, that of a sub-folder, and one without room for staging. Each is named,
and the queue goes on once there is room.
"""

import errno
import json
import threading
import time
from contextlib import contextmanager

import pytest

from app.batch.manifest import Manifest
from app.queue.disk import bytes_to_go_on, full_folder, has_room, is_disk_full
from app.queue.jobs import DONE, FAILED, QUEUED, RUNNING, Queue
from app.queue.lease import Lease
from app.queue.worker import pause_if_full, resume_if_space, run_worker
from tests.serving import wait_for
from tests.small_disk import needs_root, small_disk
from tests.test_jobs import requests_for, write_staged_file

pytestmark = needs_root


@contextmanager
def in_thread(function):
    """Run a function in a thread meanwhile; on exit, wait for it and raise its error, if any."""
    errors = []

    def call():
        try:
            function()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    yield thread
    thread.join(60)
    assert not thread.is_alive() and not errors, errors


def test_a_worker_waits_while_the_queues_own_disk_is_full_and_goes_on(tmp_path, capfd):
    with small_disk(tmp_path / "disk", "2m") as (disk, fill):
        queue = Queue(disk / "queue")
        jobs = queue.submit(requests_for(seeds=30), outputs=[tmp_path / f"{n}.mp4" for n in range(30)])

        def work():
            with Lease(queue, "cpu") as lease:
                while job := lease.claim():
                    write_staged_file(job)
                    lease.complete(job)
                    time.sleep(0.02)
            queue.close()

        with in_thread(work):
            wait_for(lambda: queue.counts()[DONE] >= 3)
            filler = fill()
            told = wait_for(lambda: capfd.readouterr().err)
            before = queue.counts()[DONE]
            assert f"paused: the disk at {disk}" in told and "make room" in told and len(told.splitlines()) == 1
            assert before < 30
            filler.unlink()
        assert queue.counts()[DONE] == 30 and all(queue.job(job.id).output.is_file() for job in jobs)
        queue.close()


def test_a_worker_that_is_told_to_stop_does_not_wait_for_room(tmp_path):
    with small_disk(tmp_path / "disk") as (disk, fill):
        queue, stop = Queue(disk / "queue"), threading.Event()
        (job,) = queue.submit(requests_for())
        with Lease(queue, "cpu", stop) as lease:
            lease.claim()
            filler = fill()
            stop.set()
        filler.unlink()
        assert queue.job(job.id).state in (RUNNING, "interrupted")
        queue.close()


@pytest.mark.slow  # a worker with a model, twice
@pytest.mark.parametrize("sort", ["sub-folder", "staging"])
def test_a_full_disk_under_a_clip_pauses_the_queue_and_the_clip_is_made_once_there_is_room(tmp_path, tiny_model, sort):
    options = ",nr_inodes=20" if sort == "staging" else ""
    with small_disk(tmp_path / "sub", "256k", options) as (disk, fill):
        queue, stop = Queue(tmp_path / ".queue"), threading.Event()
        requests = requests_for(tiny_model, seeds=3, mode="text-to-image")
        jobs = queue.submit(requests, outputs=[disk / f"{n}.png" for n in range(3)])
        if sort == "staging":
            fillers = [disk / f"filler-{n}" for n in range(19)]
            for filler in fillers:
                filler.touch()
        else:
            fillers = [fill()]
        with in_thread(lambda: run_worker(queue, until_empty=True, stop=stop)):
            pause = wait_for(lambda: queue.paused)
            assert f"the disk at {disk}" in pause.reason and pause.folder == str(disk)
            time.sleep(1)
            assert queue.paused == pause and queue.counts()[QUEUED] == 3  # and not one clip again and again
            for filler in fillers:
                filler.unlink()
        assert [queue.job(job.id).state for job in jobs] == [DONE] * 3 and not queue.paused
        assert sorted(path.name for path in disk.iterdir()) == ["0.png", "1.png", "2.png"]


def test_a_clip_that_does_not_fit_on_an_empty_disk_fails_after_a_few_tries(tmp_path):
    with small_disk(tmp_path / "sub", "256k") as (disk, fill):
        queue = Queue(tmp_path / ".queue")
        queue.submit(requests_for(), outputs=[disk / "large.mp4"])
        full, awaited = OSError(errno.ENOSPC, "No space left on device"), []
        with Lease(queue, "cpu") as lease:
            job = lease.claim()
            while pause_if_full(lease, [job], full):
                awaited.append(queue.paused.min_free_bytes)
                filler = fill()
                resume_if_space(queue)
                assert queue.paused.folder == str(disk) and queue.job(job.id).state == QUEUED
                filler.unlink()
                resume_if_space(queue)
                assert not queue.paused and lease.claim().id == job.id
        assert awaited == [2**16, 2**17] and not has_room(disk, 2**19)


def test_errors_of_a_disk_that_is_not_full_are_the_rows_own(tmp_path):
    queue = Queue(tmp_path / ".queue")
    queue.submit(requests_for(), outputs=[tmp_path / "clip.mp4"])
    with Lease(queue, "cpu") as lease:
        job = lease.claim()
        assert not pause_if_full(lease, [job], PermissionError(errno.EACCES, "Permission denied"))
        lease.finish(job, FAILED, "because")
    assert not queue.paused
    wrapped = ValueError("it cannot be signed")
    wrapped.__cause__ = OSError(errno.EDQUOT, "Disk quota exceeded", str(tmp_path / "x" / "y"))
    assert is_disk_full(wrapped) and full_folder(wrapped, tmp_path / "z") == tmp_path / "z"
    assert is_disk_full(RuntimeError("No space left on device (os error 28)"))
    assert bytes_to_go_on(tmp_path) > 0


def test_the_manifest_waits_for_room_and_keeps_whole_lines_only(tmp_path, capfd):
    with small_disk(tmp_path / "disk", "64k") as (disk, fill):
        manifest = Manifest(disk)
        manifest.append({"row": 1, "state": "done", "output": "a.png", "job": "a"})
        filler = fill()
        with open(disk / "manifest.jsonl", "ab", buffering=0) as file:
            file.write(b" " * (4096 - file.tell() - 8) + b"\n")  # the next line needs another page of the disk
        with in_thread(lambda: manifest.append({"row": 2, "state": "done", "output": "b.png", "job": "b"})):
            told = wait_for(lambda: capfd.readouterr().err)
            assert f"the disk at {disk}" in told
            filler.unlink()
        manifest.close()
        lines = (disk / "manifest.jsonl").read_text().split("\n")
        assert [json.loads(line)["row"] for line in lines if line.strip()] == [1, 2] and lines[-1] == ""
