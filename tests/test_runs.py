"""Several batches in one folder leave each other alone; names of a folder and working directories do not matter."""

import os

import pytest

from app.queue.database import QueueDamaged
from app.queue.jobs import CANCELLED, DONE, FAILED, QUEUED, RUNNING, Queue
from app.queue.lease import Lease, publish, recover, staging_folder
from app.queue.runs import BatchRun
from app.queue.worker import finish
from tests.test_jobs import requests_for, write_staged_file


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture
def queue(folder):
    return Queue(folder / ".queue")


def wanted(folder, *numbers):
    requests = requests_for(seeds=10)
    return [(requests[n], folder / f"{n}.mp4") for n in numbers]


def test_runs_do_not_cancel_each_others_jobs_and_share_what_both_want(queue, folder):
    with BatchRun(queue) as one, BatchRun(queue) as other:
        mine = one.submit_missing(wanted(folder, 0, 1, 2))
        theirs = other.submit_missing(wanted(folder, 2, 3))
        assert theirs[0].id == mine[2].id and queue.counts()[QUEUED] == 4
        again = one.submit_missing(wanted(folder, 0, 1, 2))
        assert [job.id for job in again] == [job.id for job in mine] and queue.counts()[CANCELLED] == 0


def test_what_no_living_run_wants_is_cancelled_by_the_next_run(queue, folder):
    with BatchRun(queue) as other:
        (kept,) = other.submit_missing(wanted(folder, 5))
        with BatchRun(queue) as dead:
            left, shared, running = dead.submit_missing(wanted(folder, 0, 5, 1))
        queue.move(running.id, 0)
        with Lease(queue, "cpu") as lease:
            assert lease.claim().id == running.id
            with BatchRun(queue) as run:
                run.submit_missing(wanted(folder, 2))
            assert shared.id == kept.id
            assert [queue.job(job.id).state for job in (left, kept, running)] == [CANCELLED, QUEUED, RUNNING]
            assert lease.report(running, "sampling", 1, 2) == "cancel"
    with BatchRun(queue, everything=True), BatchRun(queue) as run:  # a worker that was started by hand
        run.submit_missing(wanted(folder, 3))
        assert queue.job(kept.id).state == QUEUED


def test_another_clip_under_the_same_name_is_refused_while_a_run_wants_the_first(queue, folder):
    other = [(requests_for(seeds=9)[8], folder / "0.mp4")]
    with BatchRun(queue) as run:
        with BatchRun(queue) as first:
            (job,) = first.submit_missing(wanted(folder, 0))
            (refused,) = run.submit_missing(other)
            assert "another command is making" in refused and queue.job(job.id).state == QUEUED
        (new,) = run.submit_missing(other)
        assert new.id != job.id and queue.job(job.id).state == CANCELLED
        twice = [(request, folder / "x.mp4") for request in requests_for(seeds=2)]
        assert "that of another row" in run.submit_missing([*other, *twice])[2]


def test_a_clip_that_appears_before_it_is_queued_is_not_queued(queue, folder):
    def deliver(number):  # as the worker of a killed run does at the last moment
        assert queue.connection.in_transaction  # no worker can note anything meanwhile
        return number == 1

    with BatchRun(queue) as run:
        first, there, third = run.submit_missing(wanted(folder, 0, 1, 2), deliver)
        assert there is None and [job.output.name for job in (first, third)] == ["0.mp4", "2.mp4"]
        assert queue.counts()[QUEUED] == 2


def test_an_output_is_the_same_under_any_name_of_its_folder_and_from_any_directory(folder, tmp_path, monkeypatch):
    (tmp_path / "alias").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    names = [folder, tmp_path / "alias", *map(type(folder), ("out", "alias/../out", "./alias"))]
    jobs = []
    for name in names:
        queue = Queue(name / ".queue")
        with BatchRun(queue) as run:
            jobs += run.submit_missing([(requests_for()[0], name / "clip.mp4")])
    assert {job.id for job in jobs} == {jobs[0].id} and {job.output for job in jobs} == {folder / "clip.mp4"}
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert Queue(folder / ".queue").job(jobs[0].id).output == folder / "clip.mp4"
    folder.rename(tmp_path / "moved")
    assert Queue(tmp_path / "moved" / ".queue").job(jobs[0].id).output == tmp_path / "moved" / "clip.mp4"


def test_outputs_of_an_earlier_version_are_found_whatever_directory_they_were_relative_to(queue, folder):
    given = ("out/a.mp4", "../x/out/sub/b.mp4", str(folder / "c.mp4"), "d.mp4", "/elsewhere/e.mp4")
    jobs = queue.submit(requests_for(seeds=5))
    connection = queue.connection
    for job, output in zip(jobs, given, strict=True):
        connection.execute("UPDATE jobs SET output = ? WHERE id = ?", (output, job.id))
    for name in ("tally_new", "tally_deleted", "tally_changed"):
        connection.execute(f"DROP TRIGGER {name}")
    for name in ("by_state", "by_owner", "by_owner_and_state", "by_end"):
        connection.execute(f"DROP INDEX {name}")
    for name in ("tally", "wants"):
        connection.execute(f"DROP TABLE {name}")
    connection.execute("ALTER TABLE pause DROP COLUMN folder")
    connection.execute("PRAGMA user_version = 1")
    found = [str(Queue(queue.folder).job(job.id).output) for job in jobs]
    assert found == [*(f"{folder}/{name}.mp4" for name in ("a", "sub/b", "c", "d")), "/elsewhere/e.mp4"]
    assert queue.counts()[QUEUED] == 5


def test_a_clip_is_moved_last_so_that_what_belongs_to_it_is_never_missing(queue, folder, monkeypatch):
    queue.submit(requests_for(), outputs=[folder / "clip.webm"])
    with Lease(queue, "cpu") as lease:
        claimed = lease.claim()
        write_staged_file(claimed)
        for name in ("clip.webm.c2pa", "a.latents", "clip.webm.latents", "z"):
            (staging_folder(claimed) / name).write_text(name)
        replace, moved = os.replace, []
        monkeypatch.setattr(os, "replace", lambda old, new: (moved.append(new.name), replace(old, new)))
        publish(claimed)
    assert moved[-1] == "clip.webm" and len(moved) == 5


def test_a_leaving_worker_does_not_remove_what_the_next_one_writes(queue, folder):
    (job,) = queue.submit(requests_for(), outputs=[folder / "clip.mp4"])
    with Lease(queue, "cpu") as old, Lease(queue, "cpu") as new:
        first = old.claim()
        write_staged_file(first)
        old.finish(first, QUEUED)
        second = new.claim()
        write_staged_file(second)
        finish(old, first, QUEUED)  # as it does at its end
        assert not staging_folder(first).exists()
        new.complete(second)
    assert queue.job(job.id).state == DONE and job.output.read_text() == job.request.prompt


def test_the_files_of_a_dead_worker_are_removed_before_its_job_is_given_away(queue, folder):
    queue.submit(requests_for(), outputs=[folder / "clip.mp4"])
    lease = Lease(queue, "cpu")
    lease.__enter__()
    write_staged_file(lease.claim())
    lease.lock.close()  # as the kernel does when it dies
    assert recover(queue) == 1
    assert [path.name for path in folder.iterdir()] == [".queue"]


def test_a_row_that_cannot_be_read_fails_with_a_sentence_and_the_others_go_on(queue, capsys):
    jobs = queue.submit(requests_for(seeds=4))
    for job, text in zip(jobs, ("{broken", '{"prompt": "a", "from_the_future": 1}', "5"), strict=False):
        queue.connection.execute("UPDATE jobs SET request = ? WHERE id = ?", (text, job.id))
    assert [job.unreadable for job in queue.jobs(oldest_first=True)] == [True, True, True, False]
    with Lease(queue, "cpu") as lease:
        assert lease.claim().id == jobs[3].id and lease.claim() is None
        for job in jobs[:3]:
            found = queue.job(job.id)
            assert found.state == FAILED and "cannot be read, so queue it again" in found.message


@pytest.mark.parametrize("damage", ["head", "page"])
def test_a_damaged_database_is_named_with_the_remedy(queue, longtake, damage):
    queue.submit(requests_for(seeds=200))
    queue.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    queue.close()
    with open(queue.folder / "jobs.sqlite", "r+b") as file:
        if damage == "page":
            file.seek(2 * 4096)
        file.write(b"no database " * 2000)
    with pytest.raises(QueueDamaged, match="rename it"):
        Queue(queue.folder).jobs()
    code, _, err = longtake("jobs", queue.folder)
    assert code == 2 and len(err.splitlines()) == 1 and "jobs.sqlite is damaged" in err and "run the command" in err
