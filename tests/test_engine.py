"""Engines: work on many items goes on whatever one of them does, and shows how far it is."""

import re

from app.cli import main
from tests.test_prepare import shot
from training.prepare.engine import Where, shown
from vae.recorder import write_video


def odd_alone(number: int) -> int:
    """Work for the engine: even numbers fail."""
    if number % 2 == 0:
        raise ValueError("a number must be odd")
    return number


def test_a_bar_on_stderr_tells_the_total_what_is_done_and_what_failed(capsys):
    bar = shown(Where(engine="here").each(odd_alone, []), "nothing", 0)
    assert list(bar) == [] and capsys.readouterr().err == ""
    seen = list(Where(engine="here").each(odd_alone, range(5)))
    printed = capsys.readouterr()
    assert [outcome.value for outcome in seen] == [None, 1, None, 3, None]
    assert re.search(r"100%.* 5/5 \[.*failed=3\]\n$", printed.err) and printed.out == ""


def test_a_run_that_stops_halfway_leaves_its_bar_where_it_was(capsys):
    run = Where(engine="here").each(odd_alone, range(1, 9, 2))
    assert next(run).value == 1
    run.close()
    assert re.search(r"1/4 \[.*failed=0\]\n$", capsys.readouterr().err)


def test_each_step_of_preparing_shows_its_bar(tmp_path, capsys):
    (tmp_path / "raw").mkdir()
    write_video(tmp_path / "raw" / "film.mp4", shot(0, 16), 8)
    (tmp_path / "raw" / "broken.mp4").write_bytes(b"no film")
    for step, source, failed in (("clips", [str(tmp_path / "raw")], 1), ("filter", [], 0)):
        assert main(["prepare", step, *source, str(tmp_path / "done"), "--engine", "here"]) == (3 if failed else 0)
        done = len(source) + 1
        assert re.search(rf"{step}: 100%.* {done}/{done} \[.*failed={failed}\]\n", capsys.readouterr().err)
