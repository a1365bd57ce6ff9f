"""No job is lost or made twice, whatever process dies; and clients can cancel, retry and move their jobs."""

import sqlite3
import threading
import time

import pytest

from app.queue.jobs import CANCELLED, DONE, FAILED, INTERRUPTED, QUEUED, RUNNING, JobError, Queue
from app.queue.lease import Lease, LeaseLost, recover, staging_folder
from app.queue.worker import resume_if_space
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


SCHEMA_0_1 = """
CREATE TABLE jobs (
    id TEXT PRIMARY KEY, place REAL NOT NULL, state TEXT NOT NULL, request TEXT NOT NULL, output TEXT NOT NULL,
    owner TEXT NOT NULL, latents INTEGER NOT NULL, phase TEXT NOT NULL DEFAULT '', step INTEGER NOT NULL DEFAULT 0,
    steps INTEGER NOT NULL DEFAULT 0, sentence TEXT NOT NULL DEFAULT '', worker TEXT, tries INTEGER NOT NULL DEFAULT 0,
    cancelling INTEGER NOT NULL DEFAULT 0, whole INTEGER NOT NULL DEFAULT 0,
    submitted REAL NOT NULL, began REAL, phase_began REAL, ended REAL
);
CREATE INDEX line ON jobs (state, place);
CREATE TABLE workers (id TEXT PRIMARY KEY, pid INTEGER NOT NULL, device TEXT NOT NULL, beat REAL NOT NULL);
CREATE TABLE pause (reason TEXT NOT NULL, least_bytes INTEGER NOT NULL);
PRAGMA user_version = 1;
INSERT INTO workers VALUES ('dead', 1, 'cpu', 5.0);
INSERT INTO pause VALUES ('the disk is full', 1);
INSERT INTO jobs VALUES ('a', 1, 'failed', '{"prompt": "a ball", "method": "heun"}', '/clips/a.mp4', 'me', 1, '', 3, 5,
    'because', NULL, 2, 1, 0, 5.0, 6.0, 6.5, 7.0);
INSERT INTO jobs VALUES ('b', 2, 'running', '{"prompt": "a cube"}', '/clips/b.mp4', '', 0, 'dreaming', 3, 5,
    '', 'dead', 1, 0, 0, 5.0, 6.0, 6.5, NULL);
"""


def test_a_queue_of_version_0_1_is_read_and_goes_on(tmp_path):
    with sqlite3.connect(tmp_path / "jobs.sqlite") as database:
        database.executescript(SCHEMA_0_1)
    queue = Queue(tmp_path)
    job = queue.job("a")
    assert job.request == Request(prompt="a ball", sampler="heun") and (job.state, job.owner) == (FAILED, "me")
    assert (job.message, job.attempts, job.keep_latents, job.cancel_requested) == ("because", 2, True, True)
    assert (job.submitted, job.started, job.finished) == (5.0, 6.0, 7.0)
    assert queue.paused.min_free_bytes == 1
    resume_if_space(queue)
    assert recover(queue) == 1 and queue.job("b").state == INTERRUPTED
    queue.retry("a")
    with Lease(queue, "cpu") as lease:
        assert [lease.claim().id for _ in range(2)] == ["b", "a"]


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


def test_a_power_failure_within_a_transaction_changes_nothing(queue):
    queue.submit(requests_for(seeds=3))
    other = sqlite3.connect(queue.folder / "jobs.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    other.execute("DELETE FROM jobs")
    other.close()  # as the kernel does when a process dies
    assert queue.counts()[QUEUED] == 3
