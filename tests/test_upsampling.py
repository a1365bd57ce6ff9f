"""What the upsampler learns from, how it is trained, and how much of a prompt survives it."""

import json
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from app.cli import main
from captioning.upsampler import (
    CLIP_CAPTION,
    IMAGE_CAPTION,
    TrainedUpsampler,
    UpsamplerModel,
    load_upsampler,
    train_upsampler_tokenizer,
)
from training.config import UpsamplerRun
from training.dataset import open_bucket, select_captions
from training.evaluation.upsampler import FIRST, SETS, prompt_cases, read_prompt, measure_survival, verdicts
from training.prompt_pairs import confused_scenes, draw_choice, draw_pair
from training.synonyms import SYNONYMS, draw_prompt, imitate_typing
from training.train_upsampler import preference_loss, train
from training.world.scene import sample_scene
from training.world.words import LANGUAGES, TABLES, caption

every_language = pytest.mark.parametrize("language", LANGUAGES)


# What it learns from


@every_language
def test_the_thesaurus_holds_no_word_that_is_kept_back(language):
    table, between = TABLES[language], " " if language == "en" else ""
    usual, mine = set(table.build_lexicon((table.WORDS,)).meanings), table.build_lexicon((SYNONYMS[language],))
    kept_back = set(table.build_lexicon((table.WORDS, table.RESERVED)).meanings) - usual
    said = [f"{between}{between.join(phrase)}{between}" for phrase in mine.meanings]
    paces = {word for words in table.RESERVED["speed"].values() for word in words}  # which fill any event's phrase
    for phrase in kept_back:
        text = between.join(phrase)
        assert text in paces or not any(f"{between}{text}{between}" in words for words in said), text
    words = {word for values in SYNONYMS[language].values() for options in values.values() for word in options}
    assert not any(pace in word for word in words for pace in paces)


@every_language
def test_the_thesaurus_is_not_ambiguous_and_each_of_its_words_is_new(language):
    table = TABLES[language]
    table.build_lexicon((table.WORDS, table.RESERVED, SYNONYMS[language]))  # raises where a phrase has two meanings
    for name, values in SYNONYMS[language].items():
        for value, words in values.items():
            assert not set(words) & set(table.WORDS[name][value]) and len(set(words)) == len(words)


@every_language
def test_what_is_said_in_the_thesaurus_words_means_what_the_scene_is(language):
    table = TABLES[language]
    lexicon = table.build_lexicon((table.WORDS, SYNONYMS[language]))
    for index in range(60):
        scene = sample_scene(3, "train", index)
        text = draw_prompt(
            scene, language, np.random.default_rng(index), ("colour", "shape", "event"), synonym_probability=1.0
        )
        found = {meaning for _, meanings in lexicon.read(text) for meaning in meanings}
        assert {value for name, value in found if name == "event"} == {scene.event}, text
        assert {value for name, value in found if name == "colour"} >= {scene.things[0].colour}, text


def test_typing_leaves_out_articles_and_asks_for_videos_now_and_then():
    texts = [imitate_typing("a red ball on the grass", "en", np.random.default_rng(seed)) for seed in range(200)]
    assert texts.count("a red ball on the grass") > 100
    assert "red ball on grass" in texts and "show me a red ball on the grass" in texts


def test_pairs_are_functions_of_the_number_and_true_of_their_clip(world):
    bucket = open_bucket(world / "train", (64, 64, 17))
    pairs = [draw_pair(0, bucket, number % 6, number) for number in range(40)]
    assert pairs == [draw_pair(0, bucket, number % 6, number) for number in range(40)]
    assert {mark for mark, *_ in pairs} == {"<clip>", "<picture>"}
    for number, (mark, short, text) in enumerate(pairs):
        assert text in bucket.captions[number % 6]["moving" if mark == "<clip>" else "still"] and text != short


def test_pairs_have_the_captioners_words_but_where_they_contradict_the_clip_or_the_short_text(world):
    bucket = open_bucket(world / "train", (64, 64, 17))
    true = [select_captions(bucket.captions[clip], "dense")[0] for clip in range(6)]
    own = [f"Look! {text}" for text in true]  # as true as the world's, and told apart from them
    told = [draw_pair(0, bucket, number % 6, number, own) for number in range(80)]
    plain = [draw_pair(0, bucket, number % 6, number) for number in range(80)]
    assert [pair[:2] for pair in told] == [pair[:2] for pair in plain]
    of_clips = [text for mark, _, text in told if mark == "<clip>"]
    assert 0.5 < np.mean([text.startswith("Look!") for text in of_clips]) < 1
    assert not any(text.startswith("Look!") for mark, _, text in told if mark == "<picture>")
    few = [draw_pair(0, bucket, number % 6, number, own[:2])[2] for number in range(80)]
    assert {number % 6 for number, text in enumerate(few) if text.startswith("Look!")} == {0, 1}
    wrong = [draw_pair(0, bucket, number % 6, number, true[1:] + true[:1]) for number in range(80)]
    assert sum(pair != other for pair, other in zip(wrong, plain, strict=True)) <= 2
    scene = bucket.scene(0)
    other = "red" if scene.things[0].colour != "red" else "blue"
    assert is_faithful("", true[0], scene) and not is_faithful("", f"A {other} {scene.things[0].shape} rests.", scene)
    assert not is_faithful("at noon", "It is night.", scene) and not is_faithful("正午", "It is night.", scene)


def test_captions_of_more_clips_than_there_are_are_refused(world, tmp_path):
    (tmp_path / "many.jsonl").write_text('"A red ball."\n' * 7)
    run = UpsamplerRun(
        data=world / "train", held_out=world / "test", out=tmp_path, captions_file=tmp_path / "many.jsonl"
    )
    with pytest.raises(ValueError, match=r"must hold captions of at most 6 clips; .* holds 7"):
        train(run)


def test_captions_that_take_two_things_for_each_other_contradict_what_is_told_of_both():
    scenes = [scene for index in range(400) if len((scene := sample_scene(0, "train", index)).things) > 1]
    counts = []
    for scene in scenes:
        label = caption(scene, "label", rng=np.random.default_rng(0))
        if choice := draw_choice(scene, CLIP_CAPTION, label):
            short, true, false = choice
            assert short == label and choice == draw_choice(scene, CLIP_CAPTION, label)
            assert all(verdicts(read_prompt(label), read_prompt(true)).values()), true
            assert all(not all(verdicts(read_prompt(label), read_prompt(text)).values()) for text in false), false
            counts.append(len(false))
    assert (
        len(counts) > len(scenes) / 2
        and {1, 2, 3} == set(counts)
        and draw_choice(scenes[0], IMAGE_CAPTION, "red cube, blue ball") is None
    )
    assert not any(confused_scenes(scene, True) for scene in scenes if scene.event == "topple")
    scene = next(scene for scene in scenes if len(set(scene.things)) == 4 and scene.event != "topple")
    looks = [(thing.colour, thing.shape) for thing in scene.things]
    moved = [[(thing.colour, thing.shape) for thing in other.things] for other in confused_scenes(scene, True)]
    assert any(sorted(new) == sorted(looks) and new != looks for new in moved)  # each whole, at another's place
    assert not any(
        sorted((thing.colour, thing.shape) for thing in other.things) == sorted(looks)
        for other in confused_scenes(scene, False)
    )
    sides = {other.things[1].relation for scene in scenes for other in confused_scenes(scene, True)}
    assert {"left of", "right of", "behind", "in front of"} <= sides


def test_a_writer_that_prefers_the_true_caption_has_less_to_learn():
    torch.manual_seed(0)
    right, wrong = "A red cube spins at noon. The camera pans.", "A blue cube spins at noon."
    tokenizer = train_upsampler_tokenizer([right, wrong], 320, 128)
    writer = UpsamplerModel(len(tokenizer), 128, 32, 2, 1, tokenizer.eos_token_id, tokenizer.pad_token_id).eval()
    for weight in writer.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    ours, device = TrainedUpsampler(tokenizer, writer), torch.device("cpu")
    true, false = (float(ours.prompt_log_probs("red cube spins", [text]).sum()) for text in (right, wrong))
    one, other = ("red cube spins", right, [wrong]), ("red cube spins", wrong, [right, right])
    with torch.no_grad():
        found = [float(preference_loss(writer, tokenizer, some, device)) for some in ([one], [other], [one, other])]
    expected = [math.log1p(math.exp(false - true)), math.log1p(math.exp(true - false))]
    all_three = (expected[0] + 2 * expected[1]) / 3
    assert abs(true - false) > 0.1 and found == pytest.approx([*expected, all_three], abs=1e-3)
    assert preference_loss(writer, tokenizer, [], device) == 0


# How it is measured


@pytest.mark.parametrize("words", SETS)
def test_true_captions_keep_all_that_prompts_say_and_those_of_other_scenes_do_not(words):
    told = [told for _, told in prompt_cases(words, 100, 0)]
    scenes = [sample_scene(0, "test", FIRST + n) for n in range(100)]
    dense = [read_prompt(caption(scene, "dense", rng=np.random.default_rng(n))) for n, scene in enumerate(scenes)]
    assert all(all(verdicts(*pair).values()) for pair in zip(told, dense, strict=True))
    mixed = [all(verdicts(*pair).values()) for pair in zip(told, dense[1:] + dense[:1], strict=True)]
    assert sum(mixed) <= 5


def test_a_writer_who_swaps_a_colour_and_adds_things_is_found_out():
    @cache
    def truth() -> dict[str, str]:
        return {
            text: caption(sample_scene(0, "test", FIRST + n), "dense", rng=np.random.default_rng(n))
            for words in SETS
            for n, (text, _) in enumerate(prompt_cases(words, 8, 0))
        }

    class Faithful:
        name = "faithful"

        def write(self, prompt, seed, still=False):
            return truth()[prompt]

    class Painter(Faithful):
        def write(self, prompt, seed, still=False):
            return super().write(prompt, seed).replace("red", "blue")

    class Host(Faithful):
        def write(self, prompt, seed, still=False):
            return super().write(prompt, seed) + " A tiny pink pill and a tiny black pill are nearby."

    class Lazy(Faithful):
        def write(self, prompt, seed, still=False):
            return prompt

    whole, painted, hosted, lazy = (measure_survival(writer, 8) for writer in (Faithful(), Painter(), Host(), Lazy()))
    for words in SETS:
        assert whole[words]["survived"]["mean"] == 1 and whole[words]["as typed"] == 0
        assert lazy[words]["survived"]["mean"] == 1 and lazy[words]["as typed"] == 1
        assert whole[words]["survived of others"] == 1 and lazy[words]["survived of others"] is None
        assert hosted[words]["attributes"]["count"] == 0
    assert painted["plain"]["attributes"]["colour"] < 1 and painted["plain"]["attributes"]["event"] == 1


# How it is trained


def test_the_command_that_trains_it_says_what_it_will_cost(capsys):
    with pytest.raises(SystemExit):
        main(["train", "upsampler", "--preset", "first", "--dry-run"])
    assert "pairs seen 288,000, each both ways" in capsys.readouterr().out


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    return UpsamplerRun(
        data=world / "train",
        held_out=world / "test",
        out=tmp_path_factory.mktemp("run") / "upsampler",
        steps=4,
        warmup_steps=1,
        decay_steps=1,
        vocab_size=500,
        width=32,
        heads=2,
        layers=1,
        batch_size=4,
        evaluation_prompts=1,
        validation_pairs=16,
        validate_every=2,
        checkpoint_minutes=0,
        precision="no",
    )


def test_a_run_leaves_an_upsampler_and_a_report(run):
    report = train(run)
    assert set(report["survival"]) == set(SETS) and report["min_log_prob"] < 0 < report["validation_prompt_loss"]
    loaded = load_upsampler(run.out / "upsampler")
    assert isinstance(loaded, TrainedUpsampler) and loaded.model.config.max_prompt_bytes == report["max_prompt_bytes"]
    assert loaded.model.config.min_log_prob == report["min_log_prob"] and loaded.upsample("a red ball", 0)
    assert json.loads((run.out / "report.json").read_text()) == report


def test_resuming_gives_the_same_upsampler_as_not_stopping(run, tmp_path):
    train(replace(run, out=tmp_path / "u", steps=2))
    train(replace(run, out=tmp_path / "u"))
    if not (run.out / "upsampler").exists():
        train(run)
    one, two = (load_upsampler(out / "upsampler").model.state_dict() for out in (run.out, tmp_path / "u"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_run_goes_on_from_an_upsampler_with_its_words_and_shape(run, tmp_path):
    if not (run.out / "upsampler").exists():
        train(run)
    begun = replace(
        run, init_from=run.out / "upsampler", out=tmp_path / "on", steps=2, lr=0.0, weight_decay=0.0, width=64
    )
    train(begun)
    one, two = (load_upsampler(out / "upsampler") for out in (run.out, begun.out))
    assert one.tokenizer.get_vocab() == two.tokenizer.get_vocab()
    before, after = one.model.state_dict(), two.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(ValueError, match="init_from must be the folder of an upsampler trained here; got http"):
        train(replace(begun, init_from="http://localhost:8000/v1#pen", out=tmp_path / "off"))
