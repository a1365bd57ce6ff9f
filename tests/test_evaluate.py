"""The judge and the evaluation with untrained weights: what they compute, not how good it is."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from captioning.coca import CoCaCaptioner, VideoCoCa
from captioning.text_encoder import train_tokenizer
from training.evaluation.evaluate import (
    JUDGED_ATTRIBUTES,
    SETS,
    alignment_scores,
    attribute_accuracy,
    evaluate,
    prompt_of,
    scenes_of,
)
from training.evaluation.judge import ATTRIBUTES, OBJECTS, REPORT, Judge, degrade, judge_loss, targets_of, true_labels
from training.evaluation.metrics import bootstrap_interval
from training.world import sample_scene
from training.world.scene import HELD_OUT, attribute_pairs
from training.world.words import read_caption
from vae.model import VideoVAE
from vae.weights import CONFIG, WEIGHTS, load_strictly, original_name


@pytest.fixture(scope="module")
def judge_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("judge")
    Judge(12).save_pretrained(folder)
    accuracy = dict.fromkeys(ATTRIBUTES, 1.0) | {"motion": 0.5}
    (folder / REPORT).write_text(json.dumps({"one object": accuracy, "all": accuracy}))
    return folder


@pytest.fixture(scope="module")
def captioner_folder(tmp_path_factory):
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["a red ball bounces at noon"], 300, 64)
    shape = {"vocabulary": len(tokenizer), "context": 64, "width": 32, "heads": 2, "layers": 1, "decoder_layers": 1}
    folder = tmp_path_factory.mktemp("captioner")
    CoCaCaptioner(VideoCoCa(**shape, video_width=16, video_layers=1, queries=4), tokenizer).save(folder)
    return folder


def first_scenes(prompt_set, count=40):
    scenes = scenes_of(prompt_set, seed=0)
    return [next(scenes) for _ in range(count)]


@pytest.mark.parametrize("prompt_set", SETS, ids=lambda prompt_set: prompt_set.name)
def test_a_prompt_states_all_judged_attributes_and_no_other_values(prompt_set):
    for scene in first_scenes(prompt_set):
        labels, found = true_labels(scene), read_caption(prompt_of(scene))
        assert found["event"] == {labels["motion"]} and found["camera"] == {labels["camera"]}
        assert all(labels[name] in found[name] for name in ("colour", "shape", "size"))
        if len(scene.things) == 1:
            assert all(len(found[name]) == 1 for name in ("colour", "shape", "size"))


def test_the_scenes_of_each_set_fit_its_name():
    one, held_out, several = (first_scenes(prompt_set) for prompt_set in SETS)
    assert all(len(scene.things) == 1 for scene in one + held_out) and all(len(scene.things) > 1 for scene in several)
    assert all(attribute_pairs(scene) & HELD_OUT for scene in held_out)
    assert not any(attribute_pairs(scene) & HELD_OUT for scene in one + several)


@pytest.mark.slow
@pytest.mark.parametrize("aligned", [False, True])
def test_evaluation_reports_every_row_attribute_and_interval(
    tiny_model, judge_folder, tmp_path, capsys, captioner_folder, aligned
):
    folder = captioner_folder if aligned else None
    report = evaluate(tiny_model, judge_folder, tmp_path / "out", prompts=3, sets=SETS[:1], captioner=folder)
    printed = capsys.readouterr().err
    assert "the judge reads motion right in 50.0% of true renders" in printed and "colour right" not in printed
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == json.loads(json.dumps(report))
    rows = report["sets"]["one object"]
    assert set(rows) == {"model", "true renders", "renders through the VAE", "shuffled prompts", "untrained"}
    for row in rows.values():
        assert set(row) == {*ATTRIBUTES, "all", *(("clip_score", "r_precision") if aligned else ())}
        for name, value in row.items():
            lowest = -1 if name == "clip_score" else 0
            assert lowest <= value["low"] <= value["mean"] <= value["high"] <= 1 and value["prompts"] == 3
    with Image.open(tmp_path / "out" / "report.png") as page:
        assert page.width > 400 and page.height > 300
        assert len(page.convert("RGB").getcolors(2**20)) > 100  # text, bars and clips, not an empty page


def test_right_predictions_score_one_and_a_wrong_one_costs_only_its_attribute():
    labels = [true_labels(scene) for scene in first_scenes(SETS[0], 10)]
    assert all(value["mean"] == 1 for value in attribute_accuracy(labels, labels).values())
    wrong = [label | {"colour": "plaid"} for label in labels[:5]] + labels[5:]
    found = attribute_accuracy(wrong, labels)
    assert found["colour"]["mean"] == found["all"]["mean"] == 0.5
    assert all(found[name]["mean"] == 1 for name in JUDGED_ATTRIBUTES if name != "colour")


def test_r_precision_counts_clips_that_match_no_other_prompt_better():
    found = alignment_scores(torch.tensor([[0.9, 0.2, 0.1], [0.3, 0.5, 0.6]]))
    assert found["clip_score"]["mean"] == pytest.approx(0.7) and found["r_precision"]["mean"] == 0.5
    assert found["r_precision"]["prompts"] == 2


def test_a_bootstrap_interval_is_as_wide_as_the_normal_one():
    values = np.random.default_rng(0).random(400) < 0.8
    mean, low, high = bootstrap_interval(values)
    error = np.sqrt(mean * (1 - mean) / len(values))
    assert low < mean < high
    assert (high - low) == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_the_judge_predicts_every_attribute_of_every_clip():
    torch.manual_seed(0)
    found = Judge(12).eval().predict(torch.rand(2, 3, 17, 64, 64) * 2 - 1)
    assert found.keys() == ATTRIBUTES.keys()
    for name, values in found.items():
        assert len(values) == 2 and set(values) <= set(ATTRIBUTES[name])


def test_predictions_for_a_mirrored_clip_differ_only_in_the_side():
    torch.manual_seed(0)
    judge, clips = Judge(12).eval(), torch.rand(12, 3, 17, 64, 64) * 2 - 1
    plain, mirrored = judge.predict(clips), judge.predict(clips.flip(-1))
    sides = {"left": "right", "right": "left"}
    assert [" ".join(sides.get(w, w) for w in camera.split()) for camera in plain["camera"]] == mirrored["camera"]
    assert all(plain[name] == mirrored[name] for name in ATTRIBUTES if name != "camera")


def test_mirrored_targets_differ_only_in_the_side():
    scenes = [sample_scene(0, "train", index) for index in range(40)]
    plain, mirrored = targets_of(scenes), targets_of(scenes, [True] * 40)
    names = ATTRIBUTES["camera"]
    pairs = {(names[a], names[b]) for a, b in zip(plain["camera"], mirrored["camera"], strict=True)}
    assert {("orbit left", "orbit right"), ("pan right", "pan left"), ("zoom in", "zoom in")} <= pairs
    assert all(torch.equal(plain[name], mirrored[name]) for name in plain if name != "camera")
    assert targets_of(scenes, [False] * 40)["camera"].equal(plain["camera"])


def test_the_targets_of_a_scene_are_its_true_labels():
    scenes = [sample_scene(0, "train", index) for index in range(20)]
    targets = targets_of(scenes)
    for n, scene in enumerate(scenes):
        for name, values in ATTRIBUTES.items():
            assert values[targets[name][n]] == true_labels(scene)[name]
        assert targets["objects"][n].sum() == len({(thing.colour, thing.shape) for thing in scene.things})
    assert targets["objects"].shape == (20, len(OBJECTS))


def test_a_judge_folder_with_the_weight_names_of_version_0_1_loads(judge_folder, tmp_path):
    judge = load_strictly(Judge, judge_folder)
    old = {original_name(name, Judge.old_weight_names): value for name, value in judge.state_dict().items()}
    assert {"enter.mix.weight", "enter.norm.bias", "stages.6.mix.bias", "gather.weight", "answers.6.bias"} <= old.keys()
    (tmp_path / CONFIG).write_bytes((judge_folder / CONFIG).read_bytes())
    save_file(old, tmp_path / WEIGHTS, {"format": "pt"})
    loaded = load_strictly(Judge, tmp_path).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in judge.state_dict().items())


def test_a_judge_learns_to_tell_two_clips_apart():
    torch.manual_seed(0)
    judge, scenes = Judge(12), [sample_scene(0, "train", index) for index in (0, 1)]
    clips = torch.stack([torch.full((3, 17, 64, 64), -0.5), torch.linspace(-1, 1, 64).expand(3, 17, 64, 64)])
    optimizer = torch.optim.AdamW(judge.parameters(), 3e-3)
    losses = []
    for _ in range(12):
        loss = judge_loss(judge(clips), targets_of(scenes))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_a_degraded_clip_stays_close_to_the_original():
    clip = torch.linspace(-1, 1, 64).expand(3, 17, 64, 64).clone()
    changes = [(degrade(clip, np.random.default_rng(n)) - clip).square().mean().sqrt() for n in range(40)]
    assert max(changes) < 0.1 and sum(change == 0 for change in changes) > 10


def test_a_share_of_the_training_clips_is_reconstructed_by_a_vae():
    vae = (
        VideoVAE(channels=4, widths=(8, 16), encoder_blocks=(1, 1), decoder_blocks=(1, 1)).eval().requires_grad_(False)
    )
    clip = torch.rand(3, 17, 64, 64) * 2 - 1
    reconstructed = vae.decode(vae.encode(clip[None]))[0]
    degraded = [degrade(clip, np.random.default_rng(n), vae, 0.2) for n in range(60)]
    assert 4 < sum(torch.equal(one, reconstructed) for one in degraded) < 24
    assert not any(torch.equal(degrade(clip, np.random.default_rng(n), vae, 0.0), reconstructed) for n in range(60))
