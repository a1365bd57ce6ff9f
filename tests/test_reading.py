"""What a clip of edition 2 shows, what a prompt asks for, and the judge that reads it."""

import numpy as np
import pytest
import torch

from training.config import JudgeRun, WorldRun
from training.dataset import make_world
from training.evaluation.judge import REPORT, Judge, accuracy, mirrored_targets, train
from training.evaluation.reading import (
    COLUMNS,
    PALETTE,
    asked_keys,
    mirror_reading,
    score,
    true_reading,
    visible_keys,
)
from training.evaluation.thing_reader import IGNORED, MIRRORED, decode_readings, merge_mirrored, reading_loss
from training.world import sample_scene
from training.world.facts import attributes, bystanders, patients
from training.world.scene import Scene, Thing, clip_rng
from training.world.words import mirror_caption, read_caption, write_caption, write_prompt
from vae.weights import load_strictly, read_json

SMALL = (32, 32, 9)


def scenes(count=120, split="test"):
    return [sample_scene(1, split, index, 2.75, 2) for index in range(count)]


def certain(targets):
    """Return logits that are sure of the targets."""
    logits = {}
    for name, value in targets.items():
        if name == "present":
            logits[name] = 20 * value - 10
        else:
            classes = {"camera": 9, "relation": 4}.get(name, 16)
            logits[name] = 20 * torch.nn.functional.one_hot(value.clamp(min=0), classes).float()
    return logits


def test_a_known_scene_shows_just_what_it_is_made_of():
    things = (
        Thing("ball", "red", "large", "metal", 1.08),
        Thing("cube", "blue", "small", "matte", 0.4),
        Thing("capsule", "white", "medium", "glossy", 0.66, "behind"),
    )
    scene = Scene(0, "test", 0, things, "collide", "left", 2.0, "pan right", "sand", "clear", "noon", 2.75, "wet", 2)
    assert true_reading(scene) == {
        ("count",): "3",
        ("direction",): "left",
        ("speed",): "fast",
        ("camera",): "pan right",
        ("ground",): "sand",
        ("wetness",): "wet",
        ("sky",): "clear",
        ("time",): "noon",
        ("red", "colour"): "seen",
        ("red", "shape"): "ball",
        ("red", "size"): "large",
        ("red", "material"): "metal",
        ("red", "motion"): "collide",
        ("blue", "colour"): "seen",
        ("blue", "shape"): "cube",
        ("blue", "size"): "small",
        ("blue", "material"): "matte",
        ("blue", "motion"): "hit",
        ("white", "colour"): "seen",
        ("white", "shape"): "capsule",
        ("white", "size"): "medium",
        ("white", "material"): "glossy",
        ("white", "motion"): "rest",
        ("white", "red", "relation"): "behind",
        ("red", "white", "relation"): "in front of",
    }
    mirrored = mirror_reading(true_reading(scene))
    assert mirrored["direction",] == "right" and mirrored["camera",] == "pan left" and mirrored["sky",] == "clear"
    assert mirrored["white", "red", "relation"] == "behind"


def test_an_attribute_that_does_not_apply_is_not_there():
    for scene in scenes():
        truth = true_reading(scene)
        assert (("direction",) in truth) == (scene.direction is not None)
        assert (("speed",) in truth) == (scene.event != "rest")
        assert sum(key[-1] == "relation" for key in truth) == 2 * len(bystanders(scene))
        assert {key[0] for key in truth if key[-1] == "colour"} == {thing.colour for thing in scene.things}
    huge = [scene for scene in scenes(60, "range") if scene.things[0].size == "huge"]
    assert huge and all((scene.things[0].colour, "size") not in true_reading(scene) for scene in huge)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_prompt_asks_for_what_it_names_and_for_nothing_else(language):
    every = {"colour", "shape", "size", "material", "event", "direction", "speed", "camera"}
    every |= {"ground", "wetness", "sky", "time"}
    for scene in scenes():
        rng = clip_rng(1, "test", scene.index, 7)
        bare = asked_keys(scene, read_caption(write_caption(scene, "label", language, rng=rng), language))
        assert {key[-1] for key in bare} == {"colour", "shape", "count"}
        assert len(bare) == 2 * len(scene.things) + 1
        text = write_prompt(scene, language, rng=rng, mention=every)
        full = asked_keys(scene, read_caption(text, language))
        subject = scene.things[0].colour
        wanted = {(name,) for name in attributes(scene) if name not in ("colour", "shape", "size", "material", "event")}
        wanted |= {(subject, name) for name in ("colour", "shape", "size", "material", "motion")}
        wanted |= {(thing.colour, subject, "relation") for thing in bystanders(scene)}
        if attributes(scene).get("speed") == "normal":
            wanted -= {("speed",)}
        missing = wanted - set(full)
        assert missing <= ({(thing.colour, subject, "relation") for thing in bystanders(scene)}), (text, missing)
        without = asked_keys(
            scene, read_caption(write_prompt(scene, language, rng=rng, mention=every - {"sky"}), language)
        )
        assert ("sky",) not in without


def test_the_truth_scores_one_and_a_wrong_value_costs_only_its_column():
    for scene in scenes(40):
        truth, keys = true_reading(scene), visible_keys(scene)
        assert set(score(scene, truth, keys).values()) == {1.0}
        wrong = score(scene, truth | {("ground",): "lava"}, keys)
        assert wrong["ground"] == 0 and wrong["all"] == 0
        assert all(value == 1 for name, value in wrong.items() if name not in ("ground", "all"))
        assert score(scene, truth | {("ground",): "lava"}, keys, trusted={"sky", "colour"})["all"] == 1


def test_a_thing_that_is_not_seen_has_no_right_attribute():
    scene = next(scene for scene in scenes() if len(scene.things) == 2 and bystanders(scene))
    gone = scene.things[1].colour
    found = {key: value for key, value in true_reading(scene).items() if key != (gone, "colour")}
    scores = score(scene, found, visible_keys(scene))
    assert scores["colour"] == scores["shape"] == scores["size"] == 0.5 and scores["relation"] == 0
    assert scores["motion"] == scores["count"] == 1


def test_a_hit_counts_only_if_both_things_do_their_part():
    scene = next(scene for scene in scenes() if scene.event == "collide")
    struck = patients(scene)[0].colour
    scores = score(scene, true_reading(scene) | {(struck, "motion"): "rest"}, visible_keys(scene))
    assert scores["events"] == 0 and scores["motion"] == 0.5
    assert "events" not in score(next(s for s in scenes() if s.event == "spin"), {}, [("red", "motion")][:0])


def test_targets_mask_what_does_not_apply_and_certain_logits_read_the_truth():
    some = scenes(48)
    targets = mirrored_targets(some, [False] * len(some))
    for number, scene in enumerate(some):
        absent = [PALETTE.index(c) for c in PALETTE if c not in {thing.colour for thing in scene.things}]
        assert (targets["shape"][number, absent] == IGNORED).all() and not targets["present"][number, absent].any()
        assert (targets["direction"][number] == IGNORED) == (scene.direction is None)
    readings = decode_readings(certain(targets))
    for scene, reading in zip(some, readings, strict=True):
        truth = true_reading(scene)
        assert {key: reading[key] for key in truth} == truth
    assert reading_loss(certain(targets), targets) < 0.01
    worse = certain(targets)
    worse["sky"] = -worse["sky"]
    assert reading_loss(worse, targets) > 5


def test_mirrored_targets_are_those_of_the_mirrored_caption():
    for scene in scenes(40):
        text = write_caption(scene, "dense", rng=clip_rng(1, "test", scene.index, 7))
        stated, found = read_caption(mirror_caption(text)), mirror_reading(true_reading(scene))
        for name in ("camera", "direction"):
            assert name not in stated or stated[name] == {found[name,]}


def test_a_clip_and_its_mirror_image_are_read_alike():
    torch.manual_seed(0)
    judge = Judge(8, 2, SMALL, 8.0, 2).eval()
    clips = torch.rand(3, 3, 9, 32, 32) * 2 - 1
    with torch.no_grad():
        plain = merge_mirrored(judge(clips), judge(clips.flip(-1)))
        other = merge_mirrored(judge(clips.flip(-1)), judge(clips))
    assert set(MIRRORED) == {"camera", "direction", "relation"}
    for name, value in plain.items():
        turned = other[name][..., MIRRORED[name]] if name in MIRRORED else other[name]
        torch.testing.assert_close(value, turned, rtol=1e-4, atol=1e-5)
    swapped = plain["relation"].transpose(1, 2)[..., [1, 0, 3, 2]]
    torch.testing.assert_close(plain["relation"], swapped)


def test_the_shipped_judge_keeps_its_weights_and_reads_edition_1():
    from app.registry import JUDGE

    judge = load_strictly(Judge, JUDGE)
    assert judge.edition == 1 and judge.format == (64, 64, 17) and not hasattr(judge, "things")
    assert read_json(JUDGE / REPORT)["one object"]["colour"] == 1.0


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("second")
    make_world(WorldRun(folder, 0, "test", (SMALL,), (24,), fps=8.0, workers=1, edition=2))
    return folder


def test_a_judge_of_edition_2_is_trained_saved_loaded_and_reported(rendered, tmp_path):
    run = JudgeRun(
        rendered,
        rendered,
        tmp_path,
        extra_data=None,
        edition=2,
        format=SMALL,
        frame_stride=2,
        width=8,
        batch_size=8,
        steps=4,
        warmup_steps=1,
        decay_steps=1,
        validate_every=2,
        precision="no",
    )
    report = train(run)
    assert set(report) == {"one object", "several objects", "all"}
    assert set(report["all"]) == {*COLUMNS, "all", "clips"} and report["all"]["clips"] == 24
    assert report["one object"]["clips"] + report["several objects"]["clips"] == 24
    judge = load_strictly(Judge, tmp_path / "judge")
    assert (judge.edition, judge.format, judge.fps, judge.frame_stride) == (2, SMALL, 8.0, 2)
    assert read_json(tmp_path / "judge" / REPORT) == report


def test_a_judge_of_edition_2_learns_what_it_is_shown(rendered):
    from training.dataset import open_bucket

    torch.manual_seed(0)
    bucket = open_bucket(rendered, SMALL)
    judge, clips = Judge(12, 2, SMALL, 8.0), bucket.load_clips(range(12))
    targets = mirrored_targets([bucket.scene(number) for number in range(12)], [False] * 12)
    before = accuracy(judge.eval(), bucket, 12)["all"]
    optimizer = torch.optim.AdamW(judge.train().parameters(), 3e-3)
    for _ in range(60):
        loss = reading_loss(judge(clips), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = decode_readings({name: value.detach() for name, value in judge(clips).items()})
    scores = [score(bucket.scene(n), found, visible_keys(bucket.scene(n))) for n, found in enumerate(after)]
    for name in ("colour", "shape", "camera", "ground", "time"):
        assert np.mean([values[name] for values in scores]) > max(0.8, before[name])
