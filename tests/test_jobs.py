"""No job is lost or made twice, whatever process dies; and clients can cancel, retry and move their jobs."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import count

import pytest
import torch

from app.queue.jobs import CANCELLED, DONE, FAILED, INTERRUPTED, QUEUED, RUNNING, JobError, Queue
from app.queue.lease import Lease, LeaseLost, recover, staging_folder
from app.queue.worker import WarmModel, resume_if_space, run_job, run_pack, run_worker
from app.render import read_request
from dit.request import Request


@pytest.fixture
def queue(tmp_path):
    return Queue(tmp_path / "queue")


def requests_for(model=None, seeds=1, **fields):
    model = model and str(model)
    return [Request(prompt=f"a red ball {n}", seed=n, steps=2, model=model, **fields) for n in range(seeds)]


def write_staged_file(job):
    """Write a file to a job's staging folder, as a worker does."""
    folder = staging_folder(job)
    folder.mkdir()
    (folder / job.output.name).write_text(job.request.prompt)


def test_every_job_is_claimed_once_by_any_of_several_workers(queue):
    jobs = queue.submit(requests_for(seeds=40))
    taken = []

    def take(device):
        with Lease(queue, device) as lease:
            while job := lease.claim():
                taken.append(job.id)
                write_staged_file(job)
                lease.complete(job)
        queue.close()

    threads = [threading.Thread(target=take, args=(f"cpu:{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(job.id for job in jobs)
    assert queue.counts()[DONE] == 40
    assert all(job.output.read_text() == job.request.prompt for job in jobs)
    assert not list(queue.clips.glob(".*"))


def test_one_worker_claims_jobs_in_line_and_the_line_can_be_changed(queue):
    a, b, c, d = queue.submit(requests_for(seeds=4))
    assert [queue.job(job.id).ahead for job in (a, b, c, d)] == [0, 1, 2, 3]
    assert queue.move(d.id, 0).ahead == 0
    assert queue.move(a.id, 2).ahead == 2
    assert queue.move(c.id, 99).ahead == 3
    for _ in range(200):  # between two neighbours there is always room for another
        queue.move(b.id, 1)
        queue.move(a.id, 1)
    with Lease(queue, "cpu") as lease:
        assert [lease.claim().id for _ in range(4)] == [d.id, a.id, b.id, c.id]
        assert lease.claim() is None
        with pytest.raises(JobError, match="must be waiting"):
            queue.move(a.id, 0)


def test_a_waiting_job_is_cancelled_at_once_and_can_be_retried(queue):
    first, second = queue.submit(requests_for(seeds=2))
    assert queue.cancel(first.id).state == CANCELLED
    with pytest.raises(JobError, match="must have failed or been cancelled"):
        queue.retry(second.id)
    assert queue.retry(first.id).state == QUEUED
    with Lease(queue, "cpu") as lease:
        assert [lease.claim().id for _ in range(2)] == [second.id, first.id]
        lease.finish(second, FAILED, "because")
        assert queue.cancel(second.id).state == FAILED
        assert queue.job(second.id).message == "because"


def test_the_job_of_a_dead_worker_waits_again_at_its_place(queue):
    first, second = queue.submit(requests_for(seeds=2))
    with Lease(queue, "cpu") as lease:
        assert lease.claim().id == first.id
        assert recover(queue) == 0  # the worker is alive
        ((device, seconds),) = queue.workers()
        assert device == "cpu" and 0 <= seconds < 5
    assert queue.workers() == []
    assert queue.job(first.id).state == INTERRUPTED and queue.job(first.id).ahead == 0
    with Lease(queue, "cpu") as other:
        assert other.claim().id == first.id
        with pytest.raises(LeaseLost):
            lease.report(first, "sampling", 1, 2)
        with pytest.raises(LeaseLost):
            lease.finish(first, DONE)
    assert queue.job(second.id).ahead == 1


def test_a_job_that_crashes_three_workers_has_failed(queue):
    (job,) = queue.submit(requests_for())
    for state in (INTERRUPTED, INTERRUPTED, FAILED):
        with Lease(queue, "cpu") as lease:
            lease.claim()
        assert queue.job(job.id).state == state
    assert "3 times" in queue.job(job.id).message


def test_a_clip_that_was_whole_when_its_worker_died_is_published(queue):
    (job,) = queue.submit(requests_for())
    with Lease(queue, "cpu") as lease:
        claimed = lease.claim()
        write_staged_file(claimed)
        queue.connection.execute("UPDATE jobs SET whole = 1 WHERE id = ?", (job.id,))  # and here it dies
    assert queue.job(job.id).state == DONE
    assert job.output.read_text() == job.request.prompt
    assert not staging_folder(job).exists()


def test_no_job_is_started_while_the_queue_is_paused(queue):
    queue.submit(requests_for())
    queue.pause("lunch")
    with Lease(queue, "cpu") as lease:
        assert lease.claim() is None and queue.paused.reason == "lunch"
        queue.resume()
        job = lease.claim()
        assert lease.report(job, "sampling", 1, 2) == "continue"
        queue.pause("tea")
        assert lease.report(job, "sampling", 1, 2) == "hold"
        assert queue.cancel(job.id).state == RUNNING
        assert lease.report(job, "sampling", 1, 2) == "cancel"


def test_a_pause_for_lack_of_space_ends_once_there_is_space(queue):
    queue.pause("the disk is full", 2**60)
    resume_if_space(queue)
    assert queue.paused
    queue.pause("the disk is full", 1)
    resume_if_space(queue)
    assert not queue.paused
    queue.pause("lunch")
    resume_if_space(queue)
    assert queue.paused


def test_the_time_left_is_extrapolated_from_the_steps_of_the_phase(queue):
    (job,) = queue.submit(requests_for())
    with Lease(queue, "cpu") as lease:
        lease.claim()
        lease.report(job, "sampling", 0, 10)
        assert queue.job(job.id).eta is None
        time.sleep(0.2)
        lease.report(job, "sampling", 2, 10)
        assert 0.7 < queue.job(job.id).eta < 2
        assert (queue.job(job.id).phase, queue.job(job.id).step, queue.job(job.id).steps) == ("sampling", 2, 10)


def test_jobs_are_listed_latest_first_by_owner_state_and_page(queue):
    mine = queue.submit(requests_for(seeds=3), owner="me")
    queue.submit(requests_for(seeds=2), owner="you")
    queue.cancel(mine[0].id)
    listed = queue.jobs(owner="me")
    assert [job.id for job in listed] == [job.id for job in reversed(mine)]
    assert [job.id for job in queue.jobs(states=[CANCELLED])] == [mine[0].id]
    everything = [job.id for job in queue.jobs()]
    assert [job.id for job in queue.jobs(limit=2, after=everything[1])] == everything[2:4]
    with pytest.raises(JobError, match="it has no 'nobody'"):
        queue.job("nobody")


def test_a_queue_of_a_later_schema_is_refused(queue):
    queue.connection.execute("PRAGMA user_version = 99")
    with pytest.raises(JobError, match="has 99"):
        Queue(queue.folder)


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


def test_jobs_of_similar_cost_are_claimed_together_and_the_others_stay_in_line(queue):
    submitted = [
        requests_for(seeds=1, **fields)[0]
        for fields in ({}, {"size": (80, 48)}, {}, {"mode": "loop"}, {}, {"fps": 8.0}, {})
    ]
    jobs = queue.submit(submitted)
    with Lease(queue, "cpu") as lease:
        taken = lease.claim_similar(lease.claim(), 3)
        assert [job.id for job in taken] == [jobs[n].id for n in (0, 2, 4)]
        assert all(queue.job(job.id).state == RUNNING and queue.job(job.id).attempts == 1 for job in taken)
        assert [queue.job(jobs[n].id).ahead for n in (1, 3, 5, 6)] == [0, 1, 2, 3]
    with Lease(queue, "cpu") as lease, Lease(queue, "cpu"):  # an interrupted job is claimed alone
        assert lease.claim_similar(lease.claim(), 3) == [queue.job(jobs[0].id)]
    new_jobs = queue.submit(requests_for(seeds=4))
    for job in jobs:
        queue.cancel(job.id)
    with Lease(queue, "cpu") as lease, Lease(queue, "cpu"):  # half of the line is left to the other worker
        assert [job.id for job in lease.claim_similar(lease.claim(), 8)] == [job.id for job in new_jobs[:2]]


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
    assert "tokens for this text encoder" in queue.job(jobs[1].id).message
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


def test_a_power_failure_within_a_transaction_changes_nothing(queue):
    queue.submit(requests_for(seeds=3))
    other = sqlite3.connect(queue.folder / "jobs.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    other.execute("DELETE FROM jobs")
    other.close()  # as the kernel does when a process dies
    assert queue.counts()[QUEUED] == 3
