"""A worker that lives and does nothing loses its jobs, and no process outlives those who started it for long."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest

from app.queue.hung import HungWorkers, is_stopped, silence, stop_with_parent
from app.queue.jobs import CANCELLED, INTERRUPTED, QUEUED, Queue
from app.queue.lease import Lease, LeaseLost
from app.queue.processes import stop_workers
from tests.serving import wait_for
from tests.test_jobs import requests_for

IGNORES = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
SLEEPS = "import time; print(flush=True); time.sleep(60)"


@pytest.fixture
def queue(tmp_path):
    return Queue(tmp_path / "queue")


@pytest.fixture
def start():
    """A function that starts a Python program and waits for its first line; all are killed afterwards."""
    started = []

    def run(program):
        process = subprocess.Popen([sys.executable, "-S", "-c", program], stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout and process.stdout.readline()
        return process

    yield run
    for process in started:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()


def set_back(queue, seconds):
    queue.connection.execute("UPDATE workers SET beat = beat - ?", (seconds,))


def test_a_worker_without_heartbeats_loses_its_jobs_to_another(queue):
    first, second = queue.submit(requests_for(seeds=2))
    watch = HungWorkers(queue, seconds=0.2)
    with Lease(queue, "cpu") as hung, Lease(queue, "cpu") as other:
        assert hung.claim().id == first.id
        queue.cancel(other.claim().id)
        assert watch.release() == []  # both are seen for the first time
        time.sleep(0.1)
        other.heartbeat()
        time.sleep(0.15)
        assert watch.release() == [os.getpid()]
        assert queue.job(first.id).state == INTERRUPTED and queue.job(second.id).cancel_requested
        assert other.claim().id == first.id
        with pytest.raises(LeaseLost):  # it wakes up
            hung.report(first, "sampling", 1, 2)
        queue.submit(requests_for())
        assert hung.claim() is None and not hung.lost
        hung.heartbeat()
        assert hung.lost


def test_the_job_of_a_hung_worker_can_be_cancelled(queue):
    (job,) = queue.submit(requests_for())
    watch = HungWorkers(queue, seconds=0.1)
    with Lease(queue, "cpu") as lease:
        lease.claim()
        watch.release()
        queue.cancel(job.id)
        time.sleep(0.15)
        watch.release()
        assert queue.job(job.id).state == CANCELLED


def test_a_machine_that_slept_takes_no_job_from_its_workers_but_a_stopped_process_loses_them_at_once(queue, start):
    (job,) = queue.submit(requests_for())
    process = start(SLEEPS)
    with Lease(queue, "cpu") as lease:
        claimed = lease.claim()
        assert silence(queue, claimed) is None
        set_back(queue, 3600)  # as a clock does while everything sleeps
        assert "has not answered for 3600 s" in (silence(queue, claimed) or "")
        assert HungWorkers(queue).release() == []
        queue.connection.execute("UPDATE workers SET pid = ?", (process.pid,))
        assert HungWorkers(queue).release() == []
        process.send_signal(signal.SIGSTOP)
        wait_for(lambda: is_stopped(process.pid))
        assert HungWorkers(queue).release() == [process.pid]
        assert queue.job(job.id).state == INTERRUPTED


def test_stopping_workers_takes_a_bounded_time_and_costs_their_jobs_no_attempt(queue, start):
    willing, unwilling = start(SLEEPS), start(IGNORES)
    willing.send_signal(signal.SIGSTOP)
    (job,) = queue.submit(requests_for())
    with Lease(queue, "cpu") as lease:
        lease.claim()
        queue.connection.execute("UPDATE workers SET pid = ?", (unwilling.pid,))
        started = time.monotonic()
        stop_workers(queue, [willing, unwilling], seconds=1.0)
        assert time.monotonic() - started < 10
        assert (willing.returncode, unwilling.returncode) == (-signal.SIGTERM, -signal.SIGKILL)
        assert (queue.job(job.id).state, queue.job(job.id).attempts) == (QUEUED, 0)


def test_a_worker_whose_parent_is_already_gone_stops_at_once():
    stop, ended = threading.Event(), []
    stop_with_parent(2**22 + 1, stop, 0.0, ended.append)  # a process id of nobody
    assert stop.is_set() and ended == [1]


PARENT = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, '-m', 'app.cli', 'work', sys.argv[1], '--with-parent', str(os.getpid())])
print(child.pid, flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.mark.slow  # starts a worker, whose imports take seconds
def test_the_orphan_of_a_server_that_was_killed_while_it_started_ends(queue):
    process = subprocess.Popen([sys.executable, "-c", PARENT, str(queue.folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    orphan = int(process.stdout.readline())
    process.wait()

    def is_gone():
        try:
            os.kill(orphan, 0)
        except ProcessLookupError:
            return True
        with open(f"/proc/{orphan}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "Z"

    wait_for(is_gone, 120)
    assert queue.workers() == []
