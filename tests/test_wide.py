"""The wide evaluation of edition 2: its prompts, its columns, its numbers; with untrained weights."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from captioning.text_encoder import TextTower, train_tokenizer
from dit.pipeline import Pipeline
from training.evaluation import wide
from training.evaluation.judge import REPORT, Judge
from training.evaluation.prompt_sets import (
    PROMPT_SETS,
    choose_sets,
    clip_formats,
    prompt_cases,
    setting_scenes,
)
from training.evaluation.reading import COLUMNS, true_reading
from training.evaluation.wide import (
    case_scores,
    evaluate_model,
    evaluate_variance,
    explained_variance,
    explained_with_interval,
    fit_clip,
    judged_columns,
    strip_colours,
    summarize,
    true_render,
)
from training.world.scene import attribute_pairs


@pytest.fixture(scope="module")
def wide_model(tiny_model, tmp_path_factory):
    """The tiny model with a text tower that reads prompts of edition 2, which name everything."""
    tiny = Pipeline.from_pretrained(tiny_model)
    words = (prompt for one in PROMPT_SETS for case in prompt_cases(one, 40, 1, tiny) for prompt in [case.text])
    torch.manual_seed(0)
    tokenizer = train_tokenizer(words, 600, 200)
    text = TextTower(len(tokenizer), 200, 24, 2, 1)
    folder = tmp_path_factory.mktemp("models") / "wide"
    Pipeline(tiny.transformer, tiny.vae, text, tokenizer, tiny.scheduler, tiny.settings).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipeline(wide_model):
    return Pipeline.from_pretrained(wide_model)


@pytest.fixture(scope="module")
def judge_folder(tmp_path_factory):
    """An untrained judge of edition 2 that fits the tiny model's clips."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("judge")
    Judge(8, 2, (64, 64, 17), 8.0, 4).save_pretrained(folder)
    (folder / REPORT).write_text(json.dumps({"all": {"colour": 0.5}}))
    return folder


def cases_of(name, pipeline, count=16):
    return prompt_cases(choose_sets([name])[0], count, 0, pipeline)


def test_every_set_has_the_scenes_words_and_formats_that_its_name_says(pipeline):
    cases = {one.name: cases_of(one.name, pipeline) for one in PROMPT_SETS}
    assert all(len(some) == 16 for some in cases.values())
    for name, some in cases.items():
        assert all((len(case.scene.things) > 1) == (name == "several things") for case in some)
        assert all(case.scene.edition == 2 for case in some)
        assert len({case.scene.index for case in some}) == 16
    held_out = cases["pairs never seen"][0].scene.rules.held_out_settings
    assert all(case.scene.split == "combinations" for case in cases["pairs never seen"]) and held_out
    assert not any(attribute_pairs(case.scene) & held_out for case in cases["one thing"])
    scenes = [case.scene for case in cases["one thing"]]
    for name in ("chinese", "labels", "dense", "paraphrase"):
        assert [case.scene for case in cases[name]] == scenes
        assert all(a.text != b.text for a, b in zip(cases[name], cases["one thing"], strict=True))
    assert not any(case.text.isascii() for case in cases["chinese"])
    assert {case.format for case in cases["one thing"]} == {(64, 64, 17)}
    assert {(case.mode, case.format) for case in cases["longer"]} == {("long", (64, 64, 33))}
    assert {case.format for case in cases["other shapes"]} == {(48, 64, 9)}


def test_a_model_of_one_shape_has_no_set_of_other_shapes_and_trained_lengths_come_first(pipeline):
    settings = replace(pipeline.settings, formats=((64, 64, 17), (64, 64, 33), (64, 64, 1)))
    only = Pipeline(
        pipeline.transformer, pipeline.vae, pipeline.text_encoder, pipeline.tokenizer, pipeline.scheduler, settings
    )
    assert clip_formats("other shapes", only) == [] and cases_of("other shapes", only) == []
    assert clip_formats("longer", only) == [("text-to-video", (64, 64, 33))]


def test_a_plain_prompt_asks_for_more_than_a_label(pipeline):
    for plain, label in zip(cases_of("one thing", pipeline), cases_of("labels", pipeline), strict=True):
        assert set(label.asked) < set(plain.asked)
        assert {key[-1] for key in label.asked} == {"colour", "shape", "count"}
        assert {"size", "material", "motion", "camera", "ground", "wetness", "sky", "time"} <= {
            key[-1] for key in plain.asked
        }


def test_unknown_sets_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"sets must be among one thing, several things.*; got lies"):
        choose_sets(["one thing", "lies"])


def test_true_readings_score_one_and_a_judge_that_errs_has_no_column(pipeline):
    cases = cases_of("several things", pipeline, 40)
    readings = [true_reading(case.scene) for case in cases]
    judged = judged_columns(cases, readings)
    assert set(judged) == set(COLUMNS) and all(value["judged"] for value in judged.values())
    perfect = summarize(case_scores(cases, readings, COLUMNS), COLUMNS)
    assert all(value["mean"] == 1 for value in perfect.values() if value["prompts"])
    assert perfect["all"]["prompts"] == 40 and perfect["relation"]["prompts"] > 5
    for number in range(2):  # two of forty, or 5 %
        readings[number] = readings[number] | {("sky",): "green"}
    judged = judged_columns(cases, readings)
    assert judged["sky"] == {"accuracy": 0.95, "judged": False, "clips": 40}
    trusted = [name for name, value in judged.items() if value["judged"]]
    assert set(trusted) == set(COLUMNS) - {"sky"}
    without = summarize(case_scores(cases, readings, trusted), trusted)
    assert without["sky"]["mean"] is None and without["all"]["mean"] == 1  # what has no judge decides nothing
    assert summarize(case_scores(cases, readings, COLUMNS), COLUMNS)["all"]["mean"] == 0.95


def test_a_clip_is_fitted_by_its_middle_and_at_even_steps():
    clip = torch.zeros(1, 3, 33, 32, 96)
    clip[:, :, :, :, 32:64] = 1  # the middle square
    clip[:, 0] = torch.arange(33.0)[:, None, None]
    fitted = fit_clip(clip, (16, 16, 17))
    assert fitted.shape == (1, 3, 17, 16, 16) and (fitted[:, 1:] == 1).all()
    assert fitted[0, 0, :, 0, 0].tolist() == list(range(0, 33, 2))
    same = torch.rand(1, 3, 17, 16, 16)
    assert torch.equal(fit_clip(same, (16, 16, 17)), same)


def test_the_variance_explained_is_one_zero_or_the_share_that_was_put_in():
    rng = np.random.default_rng(0)
    prompts, noise = rng.normal(size=(400, 1, 3)), rng.normal(size=(400, 4, 3))
    assert explained_variance(np.repeat(prompts, 4, axis=1)) == pytest.approx(1)
    assert explained_variance(noise) == pytest.approx(0, abs=0.05)
    assert explained_variance(3 * prompts + noise) == pytest.approx(0.9, abs=0.02)
    found = explained_with_interval(3 * prompts[:40] + noise[:40], 200)
    assert found["low"] < found["mean"] < found["high"] and found["high"] - found["low"] < 0.1


def test_prompts_explain_ground_and_sky_of_true_renders(pipeline):
    scenes = setting_scenes(0, 2, 2.0)
    assert len(scenes) == 18 and len({(one[0].ground, one[0].time) for one in scenes}) == 18
    strips = [[strip_colours(true_render(scene, (32, 32, 1), pipeline)) for scene in group] for group in scenes]
    ground, sky = (np.array([[one[index] for one in group] for group in strips]) for index in (0, 1))
    assert explained_variance(ground) > 0.8 and explained_variance(sky) > 0.8
    assert explained_variance(np.random.default_rng(0).permutation(ground.reshape(-1, 3)).reshape(ground.shape)) < 0.4


def test_the_evaluation_reports_every_row_column_and_interval(wide_model, judge_folder, tmp_path):
    report = evaluate_model(wide_model, judge_folder, tmp_path, prompts=2, sets=["one thing", "labels"])
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(report))
    assert report["edition"] == 2 and set(report["sets"]) == {"one thing", "labels"} and not report["skipped"]
    for name, rows in report["sets"].items():
        assert set(rows) == {"model", "true renders", "renders through the VAE", "shuffled prompts", "untrained"}
        judged = report["judged"][name]
        assert not judged["camera"]["judged"] and judged["camera"]["accuracy"] <= 0.5
        for row in rows.values():
            assert set(row) == {*COLUMNS, "all"}
            for column, value in row.items():
                if value["mean"] is None:
                    assert value["prompts"] == 0 or column == "all" or not judged[column]["judged"]
                else:
                    assert 0 <= value["low"] <= value["mean"] <= value["high"] <= 1
    assert report["sets"]["labels"]["model"]["camera"]["prompts"] == 0
    assert "variance" not in report
    with Image.open(tmp_path / "report.png") as page:
        assert page.width > 400 and page.height > 300


def test_the_variance_is_measured_on_pixels(pipeline, monkeypatch):
    monkeypatch.setattr(wide, "setting_scenes", lambda *args: [group[:2] for group in setting_scenes(*args)[:3]])
    monkeypatch.setattr(wide, "VARIANCE_SEEDS", 2)
    report = evaluate_variance(pipeline, 0, (64, 64, 17))
    assert report["prompts"] == {"count": 3, "seeds": 2}
    for row in ("model", "true renders"):
        assert set(report[row]) == {"ground", "sky"} and report[row]["sky"]["prompts"] == 3
    assert report["true renders"]["sky"]["mean"] > report["model"]["sky"]["mean"]


def test_a_judge_that_cannot_read_the_clips_is_refused(tiny_model, tmp_path):
    Judge(8, 2, (64, 64, 33), 12.0, 4).save_pretrained(tmp_path / "judge")
    with pytest.raises(ValueError, match="reads clips of at least 33 frames at 12 fps; the model makes 17 at 8"):
        evaluate_model(tiny_model, tmp_path / "judge", tmp_path / "out", prompts=1)


def test_the_judge_of_edition_1_evaluates_as_before(tiny_model, judge_folder, tmp_path, monkeypatch):
    Judge(8).save_pretrained(tmp_path / "judge")
    seen = []
    monkeypatch.setattr(wide, "evaluate", lambda *args: seen.append(args) or {})
    evaluate_model(tiny_model, tmp_path / "judge", tmp_path, sets=["one object"], phrasing="label")
    assert seen[0][3:7] == (200, 0, [wide.SETS[0]], "label")
    with pytest.raises(ValueError, match="must be among one object"):
        evaluate_model(tiny_model, tmp_path / "judge", tmp_path, sets=["one thing"])
    with pytest.raises(ValueError, match="wordings of their own"):
        evaluate_model(tiny_model, judge_folder, tmp_path, phrasing="label")
