"""No job is lost or done twice, whoever dies; and a job does what its owner says."""

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
from app.queue.lease import Shift, Superseded, recover, staging
from app.queue.worker import Bench, make, make_room, make_together, work
from app.render import request_in
from dit.request import Request


@pytest.fixture
def queue(tmp_path):
    return Queue(tmp_path / "queue")


def asked(model=None, seeds=1, **fields):
    model = model and str(model)
    return [Request(prompt=f"a red ball {n}", seed=n, steps=2, model=model, **fields) for n in range(seeds)]


def made(job):
    """Leave in a job's staging folder what a worker leaves there."""
    folder = staging(job)
    folder.mkdir()
    (folder / job.output.name).write_text(job.request.prompt)


def test_jobs_are_taken_in_order_each_once_by_whoever_comes(queue):
    jobs = queue.submit(asked(seeds=40))
    taken = []

    def take(device):
        with Shift(queue, device) as shift:
            while job := shift.claim():
                taken.append(job.id)
                made(job)
                shift.keep(job)
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


def test_one_worker_alone_takes_them_in_line_and_the_line_can_be_changed(queue):
    a, b, c, d = queue.submit(asked(seeds=4))
    assert [queue.job(job.id).ahead for job in (a, b, c, d)] == [0, 1, 2, 3]
    assert queue.move(d.id, 0).ahead == 0
    assert queue.move(a.id, 2).ahead == 2
    assert queue.move(c.id, 99).ahead == 3
    for _ in range(200):  # between two neighbours there is always room for another
        queue.move(b.id, 1)
        queue.move(a.id, 1)
    with Shift(queue, "cpu") as shift:
        assert [shift.claim().id for _ in range(4)] == [d.id, a.id, b.id, c.id]
        assert shift.claim() is None
        with pytest.raises(JobError, match="must be waiting"):
            queue.move(a.id, 0)


def test_a_job_that_waits_is_cancelled_at_once_and_can_be_tried_again(queue):
    first, second = queue.submit(asked(seeds=2))
    assert queue.cancel(first.id).state == CANCELLED
    with pytest.raises(JobError, match="must have failed or been cancelled"):
        queue.retry(second.id)
    assert queue.retry(first.id).state == QUEUED
    with Shift(queue, "cpu") as shift:
        assert [shift.claim().id for _ in range(2)] == [second.id, first.id]
        shift.end(second, FAILED, "because")
        assert queue.cancel(second.id).state == FAILED
        assert queue.job(second.id).sentence == "because"


def test_what_a_dead_worker_was_at_waits_again_in_its_place(queue):
    first, second = queue.submit(asked(seeds=2))
    with Shift(queue, "cpu") as shift:
        assert shift.claim().id == first.id
        assert recover(queue) == 0  # it lives
        ((device, silent),) = queue.workers()
        assert device == "cpu" and 0 <= silent < 5
    assert queue.workers() == []
    assert queue.job(first.id).state == INTERRUPTED and queue.job(first.id).ahead == 0
    with Shift(queue, "cpu") as other:
        assert other.claim().id == first.id
        with pytest.raises(Superseded):
            shift.note(first, "dreaming", 1, 2)
        with pytest.raises(Superseded):
            shift.end(first, DONE)
    assert queue.job(second.id).ahead == 1


def test_a_job_that_brings_three_workers_down_has_failed(queue):
    (job,) = queue.submit(asked())
    for state in (INTERRUPTED, INTERRUPTED, FAILED):
        with Shift(queue, "cpu") as shift:
            shift.claim()
        assert queue.job(job.id).state == state
    assert "3 times" in queue.job(job.id).sentence


def test_a_clip_that_was_whole_when_its_worker_died_is_kept(queue):
    (job,) = queue.submit(asked())
    with Shift(queue, "cpu") as shift:
        claimed = shift.claim()
        made(claimed)
        queue.rows.execute("UPDATE jobs SET whole = 1 WHERE id = ?", (job.id,))  # and here it dies
    assert queue.job(job.id).state == DONE
    assert job.output.read_text() == job.request.prompt
    assert not staging(job).exists()


def test_nothing_is_begun_while_the_queue_is_paused(queue):
    queue.submit(asked())
    queue.pause("lunch")
    with Shift(queue, "cpu") as shift:
        assert shift.claim() is None and queue.paused.reason == "lunch"
        queue.resume()
        job = shift.claim()
        assert shift.note(job, "dreaming", 1, 2) == "go"
        queue.pause("tea")
        assert shift.note(job, "dreaming", 1, 2) == "hold"
        assert queue.cancel(job.id).state == RUNNING
        assert shift.note(job, "dreaming", 1, 2) == "stop"


def test_a_pause_for_want_of_room_ends_where_there_is_room(queue):
    queue.pause("the disk is full", 2**60)
    make_room(queue)
    assert queue.paused
    queue.pause("the disk is full", 1)
    make_room(queue)
    assert not queue.paused
    queue.pause("lunch")
    make_room(queue)
    assert queue.paused


def test_how_long_is_left_is_told_from_the_pace_of_the_phase(queue):
    (job,) = queue.submit(asked())
    with Shift(queue, "cpu") as shift:
        shift.claim()
        shift.note(job, "dreaming", 0, 10)
        assert queue.job(job.id).eta is None
        time.sleep(0.2)
        shift.note(job, "dreaming", 2, 10)
        assert 0.7 < queue.job(job.id).eta < 2
        assert (queue.job(job.id).phase, queue.job(job.id).step, queue.job(job.id).steps) == ("dreaming", 2, 10)


def test_jobs_are_listed_latest_first_by_owner_state_and_page(queue):
    mine = queue.submit(asked(seeds=3), owner="me")
    queue.submit(asked(seeds=2), owner="you")
    queue.cancel(mine[0].id)
    listed = queue.jobs(owner="me")
    assert [job.id for job in listed] == [job.id for job in reversed(mine)]
    assert [job.id for job in queue.jobs(states=[CANCELLED])] == [mine[0].id]
    everything = [job.id for job in queue.jobs()]
    assert [job.id for job in queue.jobs(most=2, after=everything[1])] == everything[2:4]
    with pytest.raises(JobError, match="it has no 'nobody'"):
        queue.job("nobody")


def test_a_queue_of_a_later_version_is_left_alone(queue):
    queue.rows.execute("PRAGMA user_version = 99")
    with pytest.raises(JobError, match="has 99"):
        Queue(queue.folder)


def test_a_worker_makes_clips_and_pictures_that_carry_their_requests(queue, tiny_model):
    clip, still = (
        queue.submit(asked(tiny_model, mode=mode), suffix=suffix)[0]
        for mode, suffix in (("text-to-video", ".mp4"), ("text-to-image", ".png"))
    )
    work(queue, until_empty=True)
    assert [queue.job(job.id).state for job in (clip, still)] == [DONE, DONE]
    assert request_in(clip.output).prompt == "a red ball 0"
    assert request_in(still.output).mode == "text-to-image"


def test_a_job_that_fails_says_why_and_the_next_one_is_made(queue, tiny_model):
    (bad,) = queue.submit(asked(tiny_model, size=(64, 66)))
    (gone,) = queue.submit([Request(prompt="a ball", model="nowhere")])
    (good,) = queue.submit(asked(tiny_model))
    work(queue, until_empty=True)
    assert [queue.job(job.id).state for job in (bad, gone, good)] == [FAILED, FAILED, DONE]
    assert "size must be one this model was trained for" in queue.job(bad.id).sentence
    assert "model must be" in queue.job(gone.id).sentence
    assert sorted(path.name for path in queue.clips.iterdir()) == [good.output.name]


class Counting(Bench):
    """A bench whose model says when it is used, and can run out of memory."""

    def __init__(self, looks_that_fit=99, at=lambda call: None):
        super().__init__()
        self.calls, self.fit, self.at = count(1), looks_that_fit, at

    def pipeline_for(self, request):
        fresh = self.pipeline is None
        pipeline = super().pipeline_for(request)
        if fresh:
            pipeline.transformer.register_forward_pre_hook(self.look)
        return pipeline

    def look(self, model, inputs):
        self.at(next(self.calls))
        if len(inputs[0].shapes) > self.fit:
            raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_cancelled_job_stops_after_the_step_it_is_at(queue, tiny_model):
    (job,) = queue.submit(asked(tiny_model))
    queue.rows.execute("UPDATE jobs SET request = replace(request, '\"steps\": 2', '\"steps\": 50')")
    seen = []

    def cancel(call):
        seen.append(call)
        if call == 3:
            queue.cancel(job.id)

    with Shift(queue, "cpu") as shift:
        make(shift, shift.claim(), Counting(at=cancel), threading.Event())
    assert queue.job(job.id).state == CANCELLED and seen == [1, 2, 3]
    assert not list(queue.clips.iterdir())


def test_jobs_of_like_cost_are_taken_together_and_the_others_stay_in_line(queue):
    asks = [
        asked(seeds=1, **fields)[0] for fields in ({}, {"size": (80, 48)}, {}, {"mode": "loop"}, {}, {"fps": 8.0}, {})
    ]
    jobs = queue.submit(asks)
    with Shift(queue, "cpu") as shift:
        taken = shift.claim_company(shift.claim(), 3)
        assert [job.id for job in taken] == [jobs[n].id for n in (0, 2, 4)]
        assert all(queue.job(job.id).state == RUNNING and queue.job(job.id).tries == 1 for job in taken)
        assert [queue.job(jobs[n].id).ahead for n in (1, 3, 5, 6)] == [0, 1, 2, 3]
    with Shift(queue, "cpu") as shift, Shift(queue, "cpu"):  # what a worker died at is taken alone
        assert shift.claim_company(shift.claim(), 3) == [queue.job(jobs[0].id)]
    fresh = queue.submit(asked(seeds=4))
    for job in jobs:
        queue.cancel(job.id)
    with Shift(queue, "cpu") as shift, Shift(queue, "cpu"):  # and another worker is left its half
        assert [job.id for job in shift.claim_company(shift.claim(), 8)] == [job.id for job in fresh[:2]]


def test_clips_made_together_are_the_same_bytes_as_alone(queue, tiny_model):
    jobs = [queue.submit(asked(tiny_model, seeds=3)) for _ in range(2)]
    bench, leave = Bench(), threading.Event()
    with Shift(queue, "cpu") as shift:
        make_together(shift, shift.claim_company(shift.claim(), 3), bench, leave)
        for _ in range(3):
            make(shift, shift.claim(), bench, leave)
    for one, other in zip(*jobs, strict=True):
        assert queue.job(one.id).state == queue.job(other.id).state == DONE
        assert one.output.read_bytes() == other.output.read_bytes()


def test_one_that_is_cancelled_or_wrong_leaves_the_others_of_its_pack_at_work(queue, tiny_model):
    jobs = queue.submit(asked(tiny_model, seeds=3))

    def cancel(call):
        if call == 1:
            queue.cancel(jobs[1].id)
        assert call < 2 or queue.job(jobs[1].id).state == CANCELLED  # within a step

    with Shift(queue, "cpu") as shift:
        make_together(shift, shift.claim_company(shift.claim(), 3), Counting(at=cancel), threading.Event())
    assert [queue.job(job.id).state for job in jobs] == [DONE, CANCELLED, DONE]
    requests = asked(tiny_model, seeds=3)
    requests[1] = replace(requests[1], prompt="red " * 200)
    jobs = queue.submit(requests)
    work(queue, until_empty=True, together=3)
    assert [queue.job(job.id).state for job in jobs] == [DONE, FAILED, DONE]
    assert "tokens for this text encoder" in queue.job(jobs[1].id).sentence
    assert len(list(queue.clips.iterdir())) == 4


def test_where_memory_runs_out_packs_become_smaller(queue, tiny_model):
    jobs = queue.submit(asked(tiny_model, seeds=3))
    bench = Counting(looks_that_fit=2)
    bench.together = 3
    with Shift(queue, "cpu") as shift:
        make_together(shift, shift.claim_company(shift.claim(), 3), bench, threading.Event())
        assert bench.together == 1 and {queue.job(job.id).state for job in jobs} == {INTERRUPTED}
        while job := shift.claim():
            make_together(shift, shift.claim_company(job, 3), bench, threading.Event())
    assert {queue.job(job.id).state for job in jobs} == {DONE}


def test_a_worker_that_is_asked_to_leave_puts_its_job_back(queue, tiny_model):
    (job,) = queue.submit(asked(tiny_model))
    leave = threading.Event()
    with Shift(queue, "cpu") as shift:
        make(shift, shift.claim(), Counting(at=lambda call: leave.set()), leave)
    assert (queue.job(job.id).state, queue.job(job.id).tries) == (QUEUED, 0)


def test_where_memory_runs_out_a_job_is_made_in_smaller_portions_and_says_so(queue, tiny_model):
    (job,) = queue.submit(asked(tiny_model))
    with Shift(queue, "cpu") as shift:
        make(shift, shift.claim(), Counting(looks_that_fit=1), threading.Event())
    assert queue.job(job.id).state == DONE and "memory ran out" in queue.job(job.id).sentence
    assert "one look at a time" in request_in(job.output).made_with
    (job,) = queue.submit(asked(tiny_model))
    with Shift(queue, "cpu") as shift:
        make(shift, shift.claim(), Counting(looks_that_fit=0), threading.Event())
    assert queue.job(job.id).state == FAILED and "out of memory" in queue.job(job.id).sentence


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount the small file system that this fills")
def test_a_full_disk_pauses_the_queue_and_the_job_waits(queue, tiny_model, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        (job,) = queue.submit(asked(tiny_model), outputs=[small / "clip.mp4"])
        with Shift(queue, "cpu") as shift:
            make(shift, shift.claim(), Bench(), threading.Event())
        assert queue.job(job.id).state == QUEUED and queue.job(job.id).tries == 0
        assert "disk" in queue.paused.reason and queue.paused.least_bytes
        assert not list(small.iterdir())
    finally:
        subprocess.run(["umount", small], check=True)


WORKER = """
import sys
from pathlib import Path
from app.queue.jobs import Queue
from app.queue.worker import work
work(Queue(Path(sys.argv[1])), until_empty=True, together=3)
"""


def test_workers_killed_at_random_moments_lose_nothing_and_double_nothing(queue, tiny_model):
    jobs = queue.submit(asked(tiny_model, seeds=8, mode="text-to-image"), suffix=".png")
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
    assert [request_in(job.output).seed for job in jobs] == [job.request.seed for job in jobs]


def test_a_power_cut_in_the_middle_of_a_transaction_changes_nothing(queue):
    queue.submit(asked(seeds=3))
    other = sqlite3.connect(queue.folder / "jobs.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    other.execute("DELETE FROM jobs")
    other.close()  # as the kernel does when a process is gone
    assert queue.counts()[QUEUED] == 3
