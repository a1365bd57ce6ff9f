"""The samples of a step: dealt to processes by FLOPs, each exactly once, in micro-batches of limited size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from training.step_plan import StepPlan, StepSample, batch_sizes_for, deal

# Of each step 3 long clips, 8 middle ones and 10 images.
SIZES, TOKENS, FLOPS = (3, 8, 10), (576, 144, 16), (900, 150, 12)


def plan(**changes):
    return StepPlan(**{"batch_sizes": SIZES, "tokens": TOKENS, "flops": FLOPS} | changes)


@pytest.mark.parametrize("processes", [*range(1, 9), 13, 21])
def test_every_sample_is_dealt_once_whatever_the_number_of_processes(processes):
    for step in (0, 7):
        wanted = [
            StepSample(number, step * count + offset) for number, count in enumerate(SIZES) for offset in range(count)
        ]
        dealt = [plan(processes=processes).samples(step, process) for process in range(processes)]
        assert sorted(sample for own in dealt for sample in own) == wanted
        assert all(own and own == sorted(own) for own in dealt)
    assert plan().samples(7, 0) == wanted  # one process keeps the order of formats and indices


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_processes_have_similar_flops_and_need_not_have_every_format(processes):
    dealt = [plan(processes=processes).samples(0, process) for process in range(processes)]
    loads = [sum(FLOPS[sample.format] for sample in own) for own in dealt]
    assert max(loads) - min(loads) <= max(FLOPS)
    mean = sum(loads) / processes
    assert max(loads) <= 4 / 3 * max(mean, max(FLOPS))
    few = [plan(batch_sizes=(2, 0, 3), processes=3).samples(0, process) for process in range(3)]
    assert [{sample.format for sample in own} for own in few] == [{0}, {0}, {2}]


def test_the_dearest_items_are_dealt_first():
    assert deal([1, 1, 1, 1, 4], 2) == [[4], [0, 1, 2, 3]]
    assert deal([5.0], 1) == [[0]] and deal([], 2) == [[], []]


def test_batch_sizes_follow_a_budget_of_tokens_and_leave_no_format_out():
    assert batch_sizes_for(2304, [400, 400], [80, 16]) == (24, 24)  # each clip as often, whatever its size
    assert batch_sizes_for(2304, [300, 100], [80, 16]) == (27, 9)
    sizes = batch_sizes_for(1000, [1000, 1], [80, 16])
    assert sizes == (12, 1) and sum(count * each for count, each in zip(sizes, [80, 16], strict=True)) <= 1000
    assert batch_sizes_for(10, [5, 5], [80, 16]) == (1, 1)


@pytest.mark.parametrize("max_tokens", [576, 600, 1000, 5000, 0])
def test_micro_batches_hold_all_samples_in_order_and_at_most_so_many_tokens(max_tokens):
    for processes in (1, 3):
        for process in range(processes):
            one = plan(processes=processes, max_tokens=max_tokens)
            batches = one.micro_batches(4, process)
            assert [sample for batch in batches for sample in batch] == one.samples(4, process)
            sums = [sum(TOKENS[sample.format] for sample in batch) for batch in batches]
            assert all(batches) and (max(sums) <= max_tokens if max_tokens else len(batches) == 1)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"processes": 22}, "each process must get a clip of a step; got 22 processes for 21 clips, so start fewer"),
        ({"max_tokens": 575}, "max_tokens must hold the largest clip, of 576 tokens; got 575; raise it"),
        ({"max_tokens": -1}, "max_tokens must hold the largest clip|max_tokens must be 0"),
    ],
)
def test_a_plan_that_cannot_be_kept_is_refused(changes, rule):
    with pytest.raises(ValueError, match=rule):
        plan(**changes)
    assert plan(batch_sizes=(0, 8, 10), max_tokens=144)


@pytest.mark.slow  # imports torch in a process of its own
def test_a_dry_run_needs_no_trained_weights(tmp_path):
    words = ["-m", "training.command", "dit", "--preset", "tiny", "--dry-run", "--max-tokens", "400"]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run([sys.executable, *words], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    config, end = json.JSONDecoder().raw_decode(done.stdout)
    assert config["max_tokens"] == 400
    assert "not trained yet, and taken from presets: runs/tiny/vae/vae, runs/tiny/text/text" in done.stdout[end:]
    assert "64x64x17: 24 clips of 80 tokens a step" in done.stdout
    assert "tokens a step 2,304, at most 400 at once on one process" in done.stdout
