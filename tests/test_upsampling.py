"""The upsampler: its training pairs, its losses, its training, and the measure of what survives of a prompt."""

import json
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from app.cli import main
from captioning.lexicon import match_attributes
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
from training.evaluation.upsampler import FIRST_INDEX, SETS, measure_survival, prompt_cases, read_prompt
from training.prompt_pairs import CaptionChoice, confused_scenes, draw_choice, draw_pair, is_faithful
from training.synonyms import SYNONYMS, draw_prompt, imitate_typing
from training.train_upsampler import preference_loss, train
from training.world.scene import sample_scene
from training.world.words import LANGUAGES, TABLES, write_caption

every_language = pytest.mark.parametrize("language", LANGUAGES)


# Training pairs


@every_language
def test_synonyms_contain_no_reserved_word(language):
    table, separator = TABLES[language], " " if language == "en" else ""
    usual, synonyms = set(table.build_lexicon((table.WORDS,)).meanings), table.build_lexicon((SYNONYMS[language],))
    reserved = set(table.build_lexicon((table.WORDS, table.RESERVED)).meanings) - usual
    phrases = [f"{separator}{separator.join(phrase)}{separator}" for phrase in synonyms.meanings]
    speeds = {word for words in table.RESERVED["speed"].values() for word in words}  # part of any event's phrase
    for phrase in reserved:
        text = separator.join(phrase)
        assert text in speeds or not any(f"{separator}{text}{separator}" in words for words in phrases), text
    words = {word for values in SYNONYMS[language].values() for options in values.values() for word in options}
    assert not any(speed in word for word in words for speed in speeds)


@every_language
def test_synonyms_are_unambiguous_and_new(language):
    table = TABLES[language]
    table.build_lexicon((table.WORDS, table.RESERVED, SYNONYMS[language]))  # raises if a phrase has two meanings
    for name, values in SYNONYMS[language].items():
        for value, words in values.items():
            assert not set(words) & set(table.WORDS[name][value]) and len(set(words)) == len(words)


@every_language
def test_a_prompt_in_synonyms_means_its_scene(language):
    table = TABLES[language]
    lexicon = table.build_lexicon((table.WORDS, SYNONYMS[language]))
    attributes = ("colour", "shape", "event")
    for index in range(60):
        scene = sample_scene(3, "train", index)
        text = draw_prompt(scene, language, np.random.default_rng(index), attributes, synonym_probability=1.0)
        found = {meaning for _, meanings in lexicon.read(text) for meaning in meanings}
        assert {value for name, value in found if name == "event"} == {scene.event}, text
        assert {value for name, value in found if name == "colour"} >= {scene.things[0].colour}, text


def test_imitated_typing_sometimes_drops_articles_or_begins_with_a_phrase():
    texts = [imitate_typing("a red ball on the grass", "en", np.random.default_rng(seed)) for seed in range(200)]
    assert texts.count("a red ball on the grass") > 100
    assert "red ball on grass" in texts and "show me a red ball on the grass" in texts


def test_pairs_are_functions_of_the_sample_index_with_captions_of_their_clip(world):
    bucket = open_bucket(world / "train", (64, 64, 17))
    pairs = [draw_pair(0, bucket, sample % 6, sample) for sample in range(40)]
    assert pairs == [draw_pair(0, bucket, sample % 6, sample) for sample in range(40)]
    assert {pair.task for pair in pairs} == {"<clip>", "<picture>"}
    for sample, (task, prompt, text) in enumerate(pairs):
        assert text in bucket.captions[sample % 6]["moving" if task == "<clip>" else "still"] and text != prompt


def test_pairs_take_the_captioners_captions_unless_they_contradict_the_clip_or_the_prompt(world):
    bucket = open_bucket(world / "train", (64, 64, 17))
    true = [select_captions(bucket.captions[clip], "dense")[0] for clip in range(6)]
    marked = [f"Look! {text}" for text in true]  # as true as the world's, and recognisable
    pairs = [draw_pair(0, bucket, sample % 6, sample, marked) for sample in range(80)]
    without = [draw_pair(0, bucket, sample % 6, sample) for sample in range(80)]
    assert [pair[:2] for pair in pairs] == [pair[:2] for pair in without]
    of_clips = [pair.caption for pair in pairs if pair.task == "<clip>"]
    assert 0.5 < np.mean([text.startswith("Look!") for text in of_clips]) < 1
    assert not any(pair.caption.startswith("Look!") for pair in pairs if pair.task == "<picture>")
    few = [draw_pair(0, bucket, sample % 6, sample, marked[:2]).caption for sample in range(80)]
    assert {sample % 6 for sample, text in enumerate(few) if text.startswith("Look!")} == {0, 1}
    wrong = [draw_pair(0, bucket, sample % 6, sample, true[1:] + true[:1]) for sample in range(80)]
    assert sum(pair != other for pair, other in zip(wrong, without, strict=True)) <= 2
    scene = bucket.scene(0)
    other = "red" if scene.things[0].colour != "red" else "blue"
    assert is_faithful("", true[0], scene) and not is_faithful("", f"A {other} {scene.things[0].shape} rests.", scene)
    assert not is_faithful("at noon", "It is night.", scene) and not is_faithful("正午", "It is night.", scene)


def test_a_captions_file_with_more_captions_than_clips_is_refused(world, tmp_path):
    (tmp_path / "many.jsonl").write_text('"A red ball."\n' * 7)
    run = UpsamplerRun(
        data=world / "train", held_out=world / "test", out=tmp_path, captions_file=tmp_path / "many.jsonl"
    )
    with pytest.raises(ValueError, match=r"must hold captions of at most 6 clips; .* holds 7"):
        train(run)


def test_captions_that_confuse_two_objects_contradict_the_prompt():
    scenes = [scene for index in range(400) if len((scene := sample_scene(0, "train", index)).things) > 1]
    counts = []
    for scene in scenes:
        label = write_caption(scene, "label", rng=np.random.default_rng(0))
        if choice := draw_choice(scene, CLIP_CAPTION, label):
            prompt, true, false = choice
            assert prompt == label and choice == draw_choice(scene, CLIP_CAPTION, label)
            assert all(match_attributes(read_prompt(label), read_prompt(true)).values()), true
            assert all(not all(match_attributes(read_prompt(label), read_prompt(text)).values()) for text in false), (
                false
            )
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
    assert any(sorted(new) == sorted(looks) and new != looks for new in moved)  # two objects swapped places
    assert not any(
        sorted((thing.colour, thing.shape) for thing in other.things) == sorted(looks)
        for other in confused_scenes(scene, False)
    )
    sides = {other.things[1].relation for scene in scenes for other in confused_scenes(scene, True)}
    assert {"left of", "right of", "behind", "in front of"} <= sides


def test_the_preference_loss_is_lower_for_a_model_that_prefers_the_true_caption():
    torch.manual_seed(0)
    right, wrong = "A red cube spins at noon. The camera pans.", "A blue cube spins at noon."
    tokenizer = train_upsampler_tokenizer([right, wrong], 320, 128)
    model = UpsamplerModel(len(tokenizer), 128, 32, 2, 1, tokenizer.eos_token_id, tokenizer.pad_token_id).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    upsampler, device = TrainedUpsampler(tokenizer, model), torch.device("cpu")
    true, false = (float(upsampler.prompt_log_probs("red cube spins", [text]).sum()) for text in (right, wrong))
    one = CaptionChoice("red cube spins", right, [wrong])
    other = CaptionChoice("red cube spins", wrong, [right, right])
    with torch.no_grad():
        found = [float(preference_loss(model, tokenizer, some, device)) for some in ([one], [other], [one, other])]
    expected = [math.log1p(math.exp(false - true)), math.log1p(math.exp(true - false))]
    mean_of_three = (expected[0] + 2 * expected[1]) / 3
    assert abs(true - false) > 0.1 and found == pytest.approx([*expected, mean_of_three], abs=1e-3)
    assert preference_loss(model, tokenizer, [], device) == 0


# The measure


@pytest.mark.parametrize("name", SETS)
def test_true_captions_keep_what_prompts_state_and_captions_of_other_scenes_do_not(name):
    stated = [attributes for _, attributes in prompt_cases(name, 100, 0)]
    scenes = [sample_scene(0, "test", FIRST_INDEX + n) for n in range(100)]
    found = [read_prompt(write_caption(scene, "dense", rng=np.random.default_rng(n))) for n, scene in enumerate(scenes)]
    assert all(all(match_attributes(*pair).values()) for pair in zip(stated, found, strict=True))
    shifted = [all(match_attributes(*pair).values()) for pair in zip(stated, found[1:] + found[:1], strict=True)]
    assert sum(shifted) <= 5


def test_the_measure_finds_changed_colours_and_added_objects():
    @cache
    def true_captions() -> dict[str, str]:
        return {
            prompt: write_caption(sample_scene(0, "test", FIRST_INDEX + n), "dense", rng=np.random.default_rng(n))
            for name in SETS
            for n, (prompt, _) in enumerate(prompt_cases(name, 8, 0))
        }

    class Faithful:
        name = "faithful"

        def upsample(self, prompt, seed, image=False):
            return true_captions()[prompt]

    class ChangesColours(Faithful):
        def upsample(self, prompt, seed, image=False):
            return super().upsample(prompt, seed).replace("red", "blue")

    class AddsObjects(Faithful):
        def upsample(self, prompt, seed, image=False):
            return super().upsample(prompt, seed) + " A tiny pink pill and a tiny black pill are nearby."

    class ChangesNothing(Faithful):
        def upsample(self, prompt, seed, image=False):
            return prompt

    upsamplers = Faithful(), ChangesColours(), AddsObjects(), ChangesNothing()
    faithful, recoloured, extended, unchanged = (measure_survival(upsampler, 8) for upsampler in upsamplers)
    for name in SETS:
        assert faithful[name]["survived"]["mean"] == 1 and faithful[name]["as typed"] == 0
        assert unchanged[name]["survived"]["mean"] == 1 and unchanged[name]["as typed"] == 1
        assert faithful[name]["survived of others"] == 1 and unchanged[name]["survived of others"] is None
        assert extended[name]["attributes"]["count"] == 0
    assert recoloured["plain"]["attributes"]["colour"] < 1 and recoloured["plain"]["attributes"]["event"] == 1


# Training


def test_a_dry_run_prints_the_cost(capsys):
    with pytest.raises(SystemExit):
        main(["train", "upsampler", "--preset", "first", "--dry-run"])
    assert "pairs seen 288,000, each both ways" in capsys.readouterr().out


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """A run of an upsampler, trained, and the report that it returned; not to be changed."""
    run = UpsamplerRun(
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
    return run, train(run)


def test_a_run_writes_an_upsampler_and_a_report(trained):
    run, report = trained
    assert set(report["survival"]) == set(SETS) and report["min_log_prob"] < 0 < report["validation_prompt_loss"]
    loaded = load_upsampler(run.out / "upsampler")
    assert isinstance(loaded, TrainedUpsampler) and loaded.model.config.max_prompt_bytes == report["max_prompt_bytes"]
    assert loaded.model.config.min_log_prob == report["min_log_prob"] and loaded.upsample("a red ball", 0)
    assert json.loads((run.out / "report.json").read_text()) == report


def test_resuming_gives_the_same_upsampler_as_not_stopping(trained, tmp_path):
    run, _ = trained
    resumed = replace(run, out=tmp_path)
    train(replace(resumed, steps=2))
    train(resumed)
    whole, found = (load_upsampler(out / "upsampler").model.state_dict() for out in (run.out, resumed.out))
    assert all(torch.equal(whole[name], found[name]) for name in whole)


def test_a_run_continues_from_an_upsampler_with_its_tokenizer_and_shape(trained, tmp_path):
    first, _ = trained
    run = replace(
        first, init_from=first.out / "upsampler", out=tmp_path / "on", steps=2, lr=0.0, weight_decay=0.0, width=64
    )
    train(run)
    before, after = (load_upsampler(out / "upsampler") for out in (first.out, run.out))
    assert before.tokenizer.get_vocab() == after.tokenizer.get_vocab()
    weights = after.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in before.model.state_dict().items())
    with pytest.raises(ValueError, match="init_from must be the folder of an upsampler trained here; got http"):
        train(replace(run, init_from="http://localhost:8000/v1#pen", out=tmp_path / "off"))
