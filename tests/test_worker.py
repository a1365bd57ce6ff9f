"""A worker makes the clips of a queue alone or as packs, and survives errors, full disks and lack of memory."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import count

import pytest
import torch

from app.queue.jobs import CANCELLED, DONE, FAILED, INTERRUPTED, QUEUED, RUNNING, Queue
from app.queue.lease import Lease
from app.queue.worker import WarmModel, run_job, run_pack, run_worker
from app.render import read_request
from dit.request import Request
from tests.test_jobs import requests_for

pytestmark = pytest.mark.slow


@pytest.fixture
def queue(tmp_path):
    return Queue(tmp_path / "queue")


def test_a_worker_makes_clips_and_images_that_carry_their_requests(queue, tiny_model):
    clip, still = (
        queue.submit(requests_for(tiny_model, mode=mode), suffix=suffix)[0]
        for mode, suffix in (("text-to-video", ".mp4"), ("text-to-image", ".png"))
    )
    run_worker(queue, until_empty=True)
    assert [queue.job(job.id).state for job in (clip, still)] == [DONE, DONE]
    assert read_request(clip.output).prompt == "a red ball 0"
    assert read_request(still.output).mode == "text-to-image"


def test_a_failed_job_has_a_message_and_the_next_one_is_made(queue, tiny_model):
    (bad,) = queue.submit(requests_for(tiny_model, size=(64, 66)))
    (gone,) = queue.submit([Request(prompt="a ball", model="nowhere")])
    (good,) = queue.submit(requests_for(tiny_model))
    run_worker(queue, until_empty=True)
    assert [queue.job(job.id).state for job in (bad, gone, good)] == [FAILED, FAILED, DONE]
    assert "size must be one this model was trained for" in queue.job(bad.id).message
    assert "model must be" in queue.job(gone.id).message
    assert sorted(path.name for path in queue.clips.iterdir()) == [good.output.name]


class InstrumentedModel(WarmModel):
    """A model that calls back before each forward pass, and can run out of memory."""

    def __init__(self, max_clips=99, on_forward=lambda call: None):
        super().__init__()
        self.calls, self.max_clips, self.on_forward = count(1), max_clips, on_forward

    def load(self, request):
        is_new = self.pipeline is None
        pipeline = super().load(request)
        if is_new:
            pipeline.transformer.register_forward_pre_hook(self.before_forward)
        return pipeline

    def before_forward(self, model, inputs):
        self.on_forward(next(self.calls))
        if len(inputs[0].shapes) > self.max_clips:
            raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_cancelled_job_stops_after_the_present_step(queue, tiny_model):
    (job,) = queue.submit(requests_for(tiny_model))
    queue.connection.execute("UPDATE jobs SET request = replace(request, '\"steps\": 2', '\"steps\": 50')")
    seen = []

    def cancel(call):
        seen.append(call)
        if call == 3:
            queue.cancel(job.id)

    with Lease(queue, "cpu") as lease:
        run_job(lease, lease.claim(), InstrumentedModel(on_forward=cancel), threading.Event())
    assert queue.job(job.id).state == CANCELLED and seen == [1, 2, 3]
    assert not list(queue.clips.iterdir())


def test_clips_made_in_one_pack_have_the_same_bytes_as_alone(queue, tiny_model):
    jobs = [queue.submit(requests_for(tiny_model, seeds=3)) for _ in range(2)]
    model, stop = WarmModel(), threading.Event()
    with Lease(queue, "cpu") as lease:
        run_pack(lease, lease.claim_similar(lease.claim(), 3), model, stop)
        for _ in range(3):
            run_job(lease, lease.claim(), model, stop)
    for one, other in zip(*jobs, strict=True):
        assert queue.job(one.id).state == queue.job(other.id).state == DONE
        assert one.output.read_bytes() == other.output.read_bytes()


def test_a_cancelled_or_invalid_job_leaves_the_others_of_its_pack_running(queue, tiny_model):
    jobs = queue.submit(requests_for(tiny_model, seeds=3))

    def cancel(call):
        if call == 1:
            queue.cancel(jobs[1].id)
        assert call < 2 or queue.job(jobs[1].id).state == CANCELLED  # within a step

    with Lease(queue, "cpu") as lease:
        run_pack(lease, lease.claim_similar(lease.claim(), 3), InstrumentedModel(on_forward=cancel), threading.Event())
    assert [queue.job(job.id).state for job in jobs] == [DONE, CANCELLED, DONE]
    requests = requests_for(tiny_model, seeds=3)
    requests[1] = replace(requests[1], prompt="red " * 200)
    jobs = queue.submit(requests)
    run_worker(queue, until_empty=True, pack_size=3)
    assert [queue.job(job.id).state for job in jobs] == [DONE, FAILED, DONE]
    assert "its text encoder reads" in queue.job(jobs[1].id).message
    assert len(list(queue.clips.iterdir())) == 4


def test_packs_become_smaller_where_memory_runs_out(queue, tiny_model):
    jobs = queue.submit(requests_for(tiny_model, seeds=3))
    model = InstrumentedModel(max_clips=2)
    model.pack_size = 3
    with Lease(queue, "cpu") as lease:
        run_pack(lease, lease.claim_similar(lease.claim(), 3), model, threading.Event())
        assert model.pack_size == 1 and {queue.job(job.id).state for job in jobs} == {INTERRUPTED}
        while job := lease.claim():
            run_pack(lease, lease.claim_similar(job, 3), model, threading.Event())
    assert {queue.job(job.id).state for job in jobs} == {DONE}


def test_a_worker_that_is_stopped_puts_its_job_back(queue, tiny_model):
    (job,) = queue.submit(requests_for(tiny_model))
    stop = threading.Event()
    with Lease(queue, "cpu") as lease:
        run_job(lease, lease.claim(), InstrumentedModel(on_forward=lambda call: stop.set()), stop)
    assert (queue.job(job.id).state, queue.job(job.id).attempts) == (QUEUED, 0)


def test_a_job_is_retried_in_low_memory_mode_where_memory_runs_out(queue, tiny_model):
    (job,) = queue.submit(requests_for(tiny_model))
    with Lease(queue, "cpu") as lease:
        run_job(lease, lease.claim(), InstrumentedModel(max_clips=1), threading.Event())
    assert queue.job(job.id).state == DONE and "memory ran out" in queue.job(job.id).message
    assert "low memory" in read_request(job.output).made_with
    (job,) = queue.submit(requests_for(tiny_model))
    with Lease(queue, "cpu") as lease:
        run_job(lease, lease.claim(), InstrumentedModel(max_clips=0), threading.Event())
    assert queue.job(job.id).state == FAILED and "out of memory" in queue.job(job.id).message


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount the small file system that this fills")
def test_a_full_disk_pauses_the_queue_and_the_job_waits(queue, tiny_model, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        (job,) = queue.submit(requests_for(tiny_model), outputs=[small / "clip.mp4"])
        with Lease(queue, "cpu") as lease:
            run_job(lease, lease.claim(), WarmModel(), threading.Event())
        assert queue.job(job.id).state == QUEUED and queue.job(job.id).attempts == 0
        assert "disk" in queue.paused.reason and queue.paused.min_free_bytes
        assert not list(small.iterdir())
    finally:
        subprocess.run(["umount", small], check=True)


WORKER = """
import sys
from pathlib import Path
from app.queue.jobs import Queue
from app.queue.worker import run_worker
run_worker(Queue(Path(sys.argv[1])), until_empty=True, pack_size=3)
"""


def test_workers_killed_at_random_moments_lose_no_job_and_make_none_twice(queue, tiny_model):
    jobs = queue.submit(requests_for(tiny_model, seeds=8, mode="text-to-image"), suffix=".png")
    start = lambda: subprocess.Popen([sys.executable, "-c", WORKER, str(queue.folder)])
    workers, killed = [start()], 0
    generator = torch.Generator().manual_seed(0)
    deadline = time.monotonic() + 240
    while queue.counts()[DONE] < len(jobs) and time.monotonic() < deadline:
        if killed < 2 and queue.counts()[RUNNING]:
            time.sleep(float(torch.rand(1, generator=generator)) * 0.3)
            workers[-1].send_signal(signal.SIGKILL)
            workers[-1].wait()
            killed += 1
            workers.append(start())
        elif workers[-1].poll() is not None:
            workers.append(start())
        time.sleep(0.02)
    for worker in workers:
        worker.wait()
    assert killed == 2 and queue.counts()[DONE] == len(jobs)
    assert sorted(path.name for path in queue.clips.iterdir()) == sorted(job.output.name for job in jobs)
    assert [read_request(job.output).seed for job in jobs] == [job.request.seed for job in jobs]
