"""A study: tiny rungs trained, resumed and compared; what it refuses."""

from dataclasses import replace

import pytest

from tests.conftest import tiny_dit_run
from training.scaling.plan import ScaleOptions, plan_scaling
from training.scaling.results import check_comparable, read_results
from training.scaling.run import check_data, run_study


@pytest.mark.slow  # trains two real rungs of 30 steps
def test_a_study_resumes_finds_changed_data_and_does_not_mix_vaes(world, parts, tmp_path):
    run = replace(tiny_dit_run(world, tmp_path / "base"), formats=((64, 64, 17),), batch_sizes=(1,))
    plan = plan_scaling(run, ScaleOptions(depths=(1,), budgets=(2e9, 4e9), small_seeds=1, branch=True))
    assert len(plan.rungs) == 2 and all(rung.trunk for rung in plan.rungs)
    study = tmp_path / "study"
    assert run_study(plan, study) == {"finished": 2, "failed": 0, "busy": 0}
    results = read_results(study)
    written = [(one.folder / "result.json").stat().st_mtime_ns for one in results]
    assert run_study(plan, study)["finished"] == 2  # and trains nothing again
    assert written == [(one.folder / "result.json").stat().st_mtime_ns for one in results]
    assert [one.rung.held_out for one in results] == [False, True] and results[0].curve()[-1][1] == results[0].loss
    check_comparable(results)
    for fact, words in (("encoder", "VAE"), ("patch", "patch"), ("data", "data"), ("text_encoder", "text encoder")):
        other = replace(results[1], facts=results[1].facts | {fact: "another"})
        with pytest.raises(ValueError, match=f"runs of one law must have the same {words}"):
            check_comparable([results[0], other])
    with pytest.raises(ValueError, match="all rungs of a study must see the same data"):
        check_data(replace(run, data=run.held_out), study)
