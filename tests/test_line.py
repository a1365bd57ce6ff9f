"""Listing a page, taking a job and finding its place cost the same in a long queue as in a short one."""

import random

import pytest

from app.queue.jobs import CANCELLED, DONE, FAILED, INTERRUPTED, QUEUED, RUNNING, STATES, WAITING, Queue
from app.queue.lease import Lease
from tests.test_jobs import requests_for


def instructions(queue, action):
    """Return how many thousands of instructions SQLite's virtual machine runs during a call."""
    counted = [0]

    def count():
        counted[0] += 1

    queue.connection.set_progress_handler(count, 100)
    try:
        action()
    finally:
        queue.connection.set_progress_handler(None, 0)
    return counted[0] / 10


@pytest.fixture(scope="module")
def queues(tmp_path_factory):
    """A queue of 1,000 jobs and one of 8,000."""
    found = []
    for rows in (1_000, 8_000):
        queue = Queue(tmp_path_factory.mktemp("queue"))
        found.append((queue, queue.submit(requests_for(seeds=1) * rows, owner="me")))
    return found


@pytest.mark.parametrize("owner", [None, "me", "you"])
@pytest.mark.parametrize("states", [STATES, WAITING, (FAILED, DONE), (QUEUED,)])
def test_a_page_costs_the_same_in_a_queue_of_any_length(queues, owner, states):
    costs = []
    for queue, jobs in queues:
        pages = (
            lambda after=after, oldest=oldest, queue=queue: queue.jobs(states, owner, 50, after, oldest)
            for after in (None, jobs[len(jobs) // 2].id)
            for oldest in (True, False)
        )
        costs.append(max(instructions(queue, page) for page in pages))
    assert costs[1] < 2 * costs[0] + 1


def test_one_job_costs_the_same_in_a_queue_of_any_length(queues):
    costs = []
    for queue, jobs in queues:
        middle = jobs[len(jobs) // 2].id
        with Lease(queue, "cpu") as lease:
            actions = (
                *(lambda queue=queue, id=middle: queue.job(id), queue.counts, lease.claim),
                lambda queue=queue: queue.submit(requests_for(), owner="you", max_open=10**6),
                lambda queue=queue, id=middle: queue.move(id, 3),
            )
            costs.append([instructions(queue, action) for action in actions])
    assert all(long < 2 * short + 2 for short, long in zip(*costs, strict=True)), costs


def test_places_and_counts_are_right_after_any_changes(tmp_path):
    queue, rng = Queue(tmp_path), random.Random(0)
    ids = [job.id for job in queue.submit(requests_for(seeds=1) * 1100)]
    for _ in range(150):
        queue.move(rng.choice(ids), rng.choice((0, 1, 5, 600, 1099, 2000)))
    for state in (RUNNING, DONE, CANCELLED, INTERRUPTED):
        for id in rng.sample(ids, 40):
            queue.connection.execute("UPDATE jobs SET state = ? WHERE id = ?", (state, id))
    for id in rng.sample(ids, 60):
        job = queue.job(id)
        if job.state in (DONE, CANCELLED):
            queue.retry(id) if job.state == CANCELLED else queue.delete(id)
    rows = queue.connection.execute("SELECT id, state FROM jobs ORDER BY place").fetchall()
    line = [row["id"] for row in rows if row["state"] in WAITING]
    assert {job.id: job.ahead for job in queue.jobs(WAITING, limit=2000)} == {id: n for n, id in enumerate(line)}
    assert all(queue.job(id).ahead == line.index(id) for id in rng.sample(line, 20))
    states = [row["state"] for row in rows]
    assert queue.counts() == {state: states.count(state) for state in STATES}
