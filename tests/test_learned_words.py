"""The words that captions hold, and those of a prompt that no caption held."""

import json
import shutil

import pytest
from starlette.testclient import TestClient

from app.queue.jobs import Queue
from app.registry import MODELS, describe_unlearned, unlearned_words
from app.server.service import Service, served_models
from app.studio.options import studio_options
from captioning.learned_words import (
    LEARNED_WORDS,
    LearnedWords,
    base_forms,
    count_words,
    read_learned_words,
)
from dit.pipeline import Pipeline
from dit.request import Moment, Request
from training.caption_words import frequent_words, unheard_attributes, world_captions
from vae.weights import WeightsError

FIRST = read_learned_words(MODELS / "first")


@pytest.fixture(scope="module")
def model_with_words(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("words") / "worded"
    shutil.copytree(tiny_model, folder)
    LearnedWords({"a": 9, "red": 9, "ball": 9, "bounces": 9}, {"en": ("balls", "cubes")}).save(folder)
    return folder


@pytest.mark.parametrize(
    ("prompt", "unlearned"),
    [
        ("a cat playing piano in Paris", ("cat", "playing", "piano", "Paris")),
        ("A LARGE RED BALL bounces on the grass!", ()),
        ("two medium-sized glossy cubes rolled left, then stopped", ("stopped",)),
        ("the Cat's cat chases a cat, it's red", ("Cat", "chases")),
        ("a bear cub", ("bear", "cub")),  # cubes are of cube
        ("3 red balls, 17 blue cubes", ("17",)),
        ("a red ball 🐱 — “near” the wall; 50%", ("🐱", "50")),
        ("una pelota roja", ("una", "pelota", "roja")),
        ("Красный мяч", ("Красный", "мяч")),
        ("一个红色的球在草地上弹跳，镜头向左摇。", ()),
        ("一只猫在巴黎弹钢琴", ("猫", "巴黎弹钢琴")),
        ("两个蓝色方块叠在一起", ()),
        ("红色的汽车和白云", ("汽车", "白云")),
        ("a red ball 和 ネコ", ("ネコ",)),
        ("", ()),
    ],
)
def test_the_shipped_model_names_the_words_it_never_learned(prompt, unlearned):
    assert FIRST and FIRST.unlearned(prompt) == unlearned


def test_every_caption_consists_of_learned_words():
    for edition in (1, 2):
        captions = list(world_captions(edition, 25))
        learned = count_words(captions, min_count=1)
        assert {caption: found for caption in captions if (found := learned.unlearned(caption))} == {}


def test_words_of_fewer_captions_than_the_threshold_are_not_learned():
    captions = ["a dog, a dog", "a dog"] + ["one red ball"] * 3
    assert count_words(captions).counts == {"one": 3, "red": 3, "ball": 3}
    assert count_words(captions, min_count=2).counts["dog"] == 2  # captions, not occurrences


def test_inflections_are_compared_by_their_base_forms():
    for word, base in (("boxes", "box"), ("hopping", "hop"), ("sliding", "slide"), ("carried", "carry")):
        assert base in base_forms(word)
    assert base_forms("glass") == {"glass"} and "cub" not in base_forms("cubes")


def test_the_list_is_saved_with_the_model_and_read_back(model_with_words, tmp_path):
    pipeline = Pipeline.from_pretrained(model_with_words)
    assert pipeline.learned_words and pipeline.learned_words.counts["ball"] == 9
    pipeline.save_pretrained(tmp_path)
    assert read_learned_words(tmp_path) == pipeline.learned_words


def test_a_model_without_a_list_says_nothing_and_a_damaged_list_is_refused(tiny_model, tmp_path):
    assert read_learned_words(tiny_model) is None
    assert unlearned_words(Request(prompt="a cat", model=str(tiny_model))) == ()
    for damaged in ("", "[]", '{"words": ["ball"], "examples": {}}'):
        (tmp_path / LEARNED_WORDS).write_text(damaged)
        with pytest.raises(WeightsError, match=LEARNED_WORDS):
            read_learned_words(tmp_path)


def test_a_continued_model_knows_the_words_of_both_its_trainings():
    both = LearnedWords({"ball": 3, "red": 3}, {"en": ("balls",)}).merged(LearnedWords({"ball": 2, "cat": 5}))
    assert both == LearnedWords({"ball": 5, "red": 3, "cat": 5}, {"en": ("balls",)})


def test_examples_of_unknown_captions_are_their_most_frequent_words():
    learned = count_words(["the dog runs"] * 5 + ["a cat 一只黑猫"] * 3)
    assert frequent_words(learned)["en"] == ("dog", "runs", "cat")


def test_attributes_whose_words_change_nothing_are_known_as_unheard(tmp_path):
    report = {"sensitivity_colour_1.0": 0.0, "sensitivity_colour_0.8": 0.05, "validation": 0.0}
    report |= {"sensitivity_time_of_day_1.0": 0.0003, "sensitivity_time_of_day_0.8": -0.0004}
    assert unheard_attributes(report) == ("time of day",) and unheard_attributes({}) == ()
    LearnedWords({"ball": 3}, {}, ("time of day",)).save(tmp_path)
    assert read_learned_words(tmp_path) == LearnedWords({"ball": 3}, {}, ("time of day",))


def test_the_studio_offers_no_preset_whose_words_change_nothing(tmp_path, tiny_model):
    queue = Queue(tmp_path)
    service = Service(queue, served_models(queue, ["first", str(tiny_model)]))
    first, tiny = studio_options(service, True)["models"]
    assert first["unheard"] == ["camera", "light", "ground"] and tiny["unheard"] == []


@pytest.mark.slow
def test_training_writes_the_words_of_its_captions(trained_dit):
    run, _ = trained_dit
    learned = read_learned_words(run.out / "model")
    assert learned and "ball" in learned.counts and learned.unlearned("a cat") == ("cat",)
    assert "balls" in learned.examples["en"] and "方块" in learned.examples["zh"]


def test_all_prompts_that_are_read_are_looked_at(model_with_words):
    model = str(model_with_words)
    moments = (Moment(0, "a red ball"), Moment(1, "a cat"))
    assert unlearned_words(Request(mode="storyboard", moments=moments, model=model)) == ("cat",)
    assert unlearned_words(Request(prompt="a cat", upsampled_prompt="a red ball", model=model)) == ()
    remark = describe_unlearned([Request(prompt=text, model=model) for text in ("a cat", "a dog", "a cat", "a ball")])
    assert remark == "not learned: cat, dog; the model knows balls, cubes, ..."


def test_a_command_names_unlearned_words_on_one_line_and_makes_the_clip(longtake, model_with_words, tmp_path):
    output = tmp_path / "cat.png"
    code, out, err = longtake("text-to-image", "a red cat", "--model", model_with_words, "--steps", 1, "-o", output)
    assert code == 0 and out.split() == [str(output)] and output.exists()
    assert [line for line in err.splitlines() if "not learned" in line] == [
        "longtake: not learned: cat; the model knows balls, cubes, ..."
    ]
    jobs = tmp_path / "jobs.txt"
    jobs.write_text("a red ball bounces\na dog bounces\n")
    flags = ("--set", f"model={model_with_words}", "--dry-run")
    code, _, err = longtake("render", jobs, "-o", tmp_path / "clips", *flags)
    assert code == 0 and "not learned: dog" in err and "cat" not in err


def test_the_api_names_unlearned_words(model_with_words, tmp_path):
    from app.server.api import create_app

    queue = Queue(tmp_path)
    api = TestClient(
        create_app(Service(queue, served_models(queue, [str(model_with_words)]))), base_url="http://127.0.0.1"
    )
    for prompt, words in (("a red Cat bounces", ["Cat"]), ("a red ball", [])):
        answer = api.post("/v1/videos", json={"prompt": prompt})
        assert answer.status_code == 200, answer.text
        assert answer.json()["unlearned_words"] == words
        assert json.loads(api.get(f"/v1/videos/{answer.json()['id']}").text)["unlearned_words"] == words
