"""Lexicons: which attributes they read, which prompts they can be trusted with, and how the upsampler uses them."""

import copy
import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from app.registry import UPSAMPLER
from captioning.lexicon import Lexicon, match_attributes
from captioning.lexicon_set import LexiconSet, load_lexicon_set
from captioning.upsampler import LEXICON_FILE, OLD_LEXICON_FILE, TrainedUpsampler, load_upsampler, save_upsampler
from training.prompt_pairs import confused_scenes
from training.salience import build_lexicon_set
from training.synonyms import SHORT_EVENTS, STOP_WORDS, SYNONYMS, draw_prompt
from training.world.facts import appearances, patients, places, struck
from training.world.scene import sample_scene
from training.world.words import LANGUAGES, TABLES, write_caption
from vae.weights import WeightsError

pytestmark = pytest.mark.slow

SCENES = [sample_scene(0, "test", index) for index in range(600)]
PLACED = [scene for scene in SCENES if places(scene)]
LEXICONS = build_lexicon_set()

HANDWRITTEN = {
    "a green cylinder behind a yellow box": "green cylinder behind yellow cube",
    "blue cube left of a red ball": "blue cube left of red ball",
    "red ball to the right of the blue cube": "blue cube left of red ball",
    "the red cube is in front of the green cube": "green cube behind red cube",
    "the green ball is behind the red cube": "green ball behind red cube",
    "behind the red ball is a blue cube": "blue cube behind red ball",
    "a red ball, to its left a blue cube": "blue cube left of red ball",
    "red ball with a blue cube in front of it": "red ball behind blue cube",
    "orange cube, purple ball to its left, yellow drum behind it": (
        "purple ball left of orange cube, yellow cylinder behind orange cube"
    ),
    "黑球在红色方块左边": "black ball left of red cube",
    "一个黄色方块，左边有一个紫色的球": "purple ball left of yellow cube",
    "红球后面有一个蓝色方块": "blue cube behind red ball",
}


def rng(scene) -> np.random.Generator:
    return np.random.default_rng(scene.index)


@pytest.mark.parametrize("text", HANDWRITTEN)
def test_spatial_relations_are_read_from_handwritten_prompts(text):
    lexicon = LEXICONS.prompts["en" if text.isascii() else "zh"]
    assert lexicon.read_attributes(text)["place"] == set(HANDWRITTEN[text].split(", "))
    assert LEXICONS.is_literal(text)


@pytest.mark.parametrize("language", LANGUAGES)
def test_spatial_relations_are_read_from_captions_without_error(language):
    assert len(PLACED) > 100
    table = TABLES[language].build_lexicon()
    for scene in PLACED:
        assert table.read_attributes(write_caption(scene, "dense", language, rng=rng(scene)))["place"] == places(scene)
        for text in (
            write_caption(scene, "plain", language, rng=rng(scene)),
            draw_prompt(scene, language, rng(scene), synonym_probability=1.0),
        ):
            assert LEXICONS.prompts[language].read_attributes(text).get("place", set()) <= places(scene), text


@pytest.mark.parametrize("language", LANGUAGES)
def test_size_and_material_of_each_object_are_read_from_captions_without_error(language):
    table = TABLES[language].build_lexicon()
    for scene in SCENES:
        stacked = patients(scene) if scene.event == "topple" else []
        of_one = replace(scene, things=tuple(thing for thing in scene.things if thing not in stacked))
        assert table.read_attributes(write_caption(scene, "dense", language, rng=rng(scene)))[
            "appearance"
        ] == appearances(of_one)


def test_the_struck_object_is_read_from_captions_without_error():
    hits = [scene for scene in SCENES if scene.event == "collide"]
    assert len(hits) > 20
    for scene in hits:
        assert LEXICONS.captions.read_attributes(write_caption(scene, "dense", rng=rng(scene)))["struck"] == struck(
            scene
        )


def test_swapped_sizes_are_not_faithful_and_counted_objects_are_read():
    prompt, kept = "a small red ball and a large blue cube", "A small red ball hits a big blue box."
    assert LEXICONS.is_faithful(prompt, kept) and not LEXICONS.is_faithful(
        prompt, "A large red ball hits a small blue cube."
    )
    assert not LEXICONS.is_faithful(prompt, "A red ball hits a large blue cube. It is big. A small can is nearby.")
    two = LEXICONS.prompts["en"].read_attributes("two red balls")
    assert two["count"] == {"2"} and two["stack"] == {"ball"} and two["thing"] == {"red ball"}
    assert LEXICONS.captions.read_attributes("A red ball hits a stack of two cubes. The cubes are red and blue.")[
        "count"
    ] == {"3"}


def test_a_caption_with_props_that_the_prompt_lacks_is_not_faithful():
    hidden, free = "A red ball passes behind a wall and comes out on the other side.", "A red ball rolls to the left."
    assert LEXICONS.is_faithful("red ball", free) and not LEXICONS.is_faithful("red ball", hidden)
    for prompt in ("a red ball passes behind a wall and comes out on the other side", "红球从墙后穿过"):
        assert LEXICONS.is_faithful(prompt, hidden)
    assert not LEXICONS.is_faithful("一个红球", "A red ball swings on a string.")


@pytest.mark.parametrize("language", LANGUAGES)
def test_true_captions_are_faithful_and_those_with_swapped_objects_are_not(language):
    swaps, lexicons = 0, replace(LEXICONS, props=())
    for scene in SCENES:
        true = write_caption(scene, "dense", rng=rng(scene))
        for prompt in (
            write_caption(scene, "plain", language, rng=rng(scene)),
            draw_prompt(scene, language, rng(scene)),
        ):
            assert lexicons.is_faithful(prompt, true), (prompt, true)
        prompt = write_caption(scene, "plain", language, rng=rng(scene))
        if places(scene) and LEXICONS.prompts[language].read_attributes(prompt).get("place", set()) == places(scene):
            for other in confused_scenes(scene, True):
                swapped = write_caption(other, "dense", rng=rng(scene))
                if not places(scene) <= places(other):  # unless only equal objects were swapped
                    swaps += 1
                    assert not lexicons.is_faithful(prompt, swapped), (prompt, swapped)
    assert swaps > 100


@pytest.mark.parametrize("language", LANGUAGES)
def test_most_prompts_of_the_world_are_literal_and_reserved_words_are_unknown(language):
    known = [LEXICONS.is_literal(write_caption(scene, "plain", language, rng=rng(scene))) for scene in SCENES]
    known += [
        LEXICONS.is_literal(draw_prompt(scene, language, rng(scene), synonym_probability=1.0)) for scene in SCENES
    ]
    assert np.mean(known) > (0.9 if language == "en" else 0.85)
    lexicon = LEXICONS.prompts[language]
    for values in TABLES[language].RESERVED.values():
        for phrases in values.values():
            for phrase in phrases:
                words = tuple(lexicon.split(phrase.replace("~", "").replace("{}", "")))
                assert "{" in phrase or words not in lexicon.meanings, phrase


@pytest.mark.parametrize(
    "prompt",
    [
        *(
            "a cat",
            "red ball and a dog",
            "a crimson ball",
            "a ball bouncing like crazy",
            "not a red ball",
            "a video",
            "",
        ),
        *("2 red balls", "一只猫", "一个红球和一只狗", "behind", "a ball behind a cube"),
    ],
)
def test_prompts_with_unknown_words_or_without_objects_are_not_literal(prompt):
    assert not LEXICONS.is_literal(prompt)


# Prompts of known words that the lexicon misreads: none of them may count as literal.
MISREAD = """
    a grey ball | a clear ball | a concrete block falls | the ball is red and the cube is blue | a red, shiny ball
    ball, red | a ball under a red sky | an orange rolls | a red marble cube | a red ball rolls a little to the left
    a red ball rises | a red ball floats upward | a red ball turns left | camera spins around a red ball
    camera to the left, a red ball | the camera pans left slowly, a red ball | 镜头向左，红球滚动 | 镜头旋转，红球
    a red ball on the left | left ball | a red ball with a blue cube to the left | a blue cube right next to a red ball
    a red ball on a blue cube | a red ball over the big blue cube | a red ball with a blue cube on it | 红球在蓝色方块上
    红方块的上面有一个蓝球 | a red ball left of a blue cube behind a green cylinder | a moving ball
    a red ball left of a blue cube in front of the camera | red balls bouncing | a stack of red cubes | two red balls
    a red ball and a red ball | 一个红球和一个红球 | a large ball and a small cube | a ball behind a cube
    two blue cubes and a red ball | two cubes and a red ball | a ball hits the ground | red ball rolls, blue cube rests
    球是红色的，方块是蓝色的 | 红球很大，旁边有一个蓝方块
"""


@pytest.mark.parametrize(
    "prompt", [one.strip() for line in MISREAD.split("\n") for one in line.split("|") if one.strip()]
)
def test_prompts_that_the_lexicon_misreads_are_not_literal(prompt):
    assert not LEXICONS.is_literal(prompt)


def test_faithful_captions_keep_the_roles_of_a_collision_and_of_a_relation():
    true, other = (
        "A red ball moves to the left and hits a blue cube.",
        "A blue cube moves to the left and hits a red ball.",
    )
    for prompt in ("a red ball hits a blue cube", "红球撞上蓝色方块"):
        assert LEXICONS.is_faithful(prompt, true) and not LEXICONS.is_faithful(prompt, other)
    prompt, behind = "a red ball in front of the blue cube", "A red ball rests. Behind the red ball is a blue cube."
    assert LEXICONS.is_faithful(prompt, behind) and not LEXICONS.is_faithful(
        prompt, behind.replace("Behind", "In front of")
    )
    for prompt in ("red ball", "a red ball", "一个红球", "a ball"):
        assert LEXICONS.is_faithful(prompt, "A red ball rests. The red ball is large. The ball is made of metal.")
        assert not LEXICONS.is_faithful(prompt, "A red ball hits a red ball.")
        assert not LEXICONS.is_faithful(prompt, "A red ball hits a blue ball.")


def test_stop_words_have_no_meaning():
    for language in LANGUAGES:
        lexicon = TABLES[language].build_lexicon((TABLES[language].WORDS, SYNONYMS[language], SHORT_EVENTS[language]))
        assert not {tuple(lexicon.split(phrase)) for phrase in STOP_WORDS[language]} & set(lexicon.meanings)


def test_attributes_of_one_object_must_be_equal_and_of_several_be_among_those_found():
    one, two = {"colour": {"red"}, "count": {"1"}}, {"colour": {"red", "blue"}, "count": {"2"}}
    assert match_attributes(one, {"colour": {"red", "blue"}, "count": {"1"}}) == {"colour": False, "count": True}
    assert match_attributes(two, {"colour": {"red", "blue", "green"}, "count": {"3"}}) == {
        "colour": True,
        "count": False,
    }
    stack = {"colour": {"red", "blue"}, "thing": {"blue ball"}, "stack": {"cube"}}
    assert (
        match_attributes({"thing": {"red cube"}}, stack)["thing"]
        and not match_attributes({"thing": {"red ball"}}, stack)["thing"]
    )


def test_a_saved_lexicon_set_loads_as_it_was(tmp_path):
    LEXICONS.save(tmp_path / LEXICON_FILE)
    loaded = load_lexicon_set(tmp_path / LEXICON_FILE)
    pairs = [(LEXICONS.captions, loaded.captions)]
    pairs += [(LEXICONS.prompts[language], loaded.prompts[language]) for language in LANGUAGES]
    for one, two in pairs:
        assert vars(one) == vars(two)
    assert loaded.props == LEXICONS.props


def test_the_shipped_upsampler_has_the_lexicons_of_the_world():
    shipped = load_upsampler(UPSAMPLER).lexicons
    assert shipped.props == LEXICONS.props and shipped.prompts.keys() == LEXICONS.prompts.keys()
    pairs = [(shipped.captions, LEXICONS.captions)]
    for own, world in [*pairs, *((shipped.prompts[name], LEXICONS.prompts[name]) for name in LANGUAGES)]:
        assert own.meanings.items() <= world.meanings.items()
        newer = {name for phrase in world.meanings.keys() - own.meanings for name, _ in world.meanings[phrase]}
        assert newer <= {"ground", "wetness"}  # edition 2 of the world, newer than the upsampler, has more words
        assert (own.per_character, own.fillers, own.objects) == (world.per_character, world.fillers, world.objects)


def test_an_upsampler_folder_with_the_old_name_of_its_lexicon_file_loads(toy_upsampler, tmp_path):
    save_upsampler(with_lexicons(toy_upsampler, {}), tmp_path)
    expected = load_upsampler(tmp_path).lexicons
    (tmp_path / LEXICON_FILE).rename(tmp_path / OLD_LEXICON_FILE)
    assert vars(load_upsampler(tmp_path).lexicons.captions) == vars(expected.captions)


@pytest.mark.parametrize("text", ["", "[]", '{"captions": {}}', '{"captions": 3, "prompts": []}', "[" * 100_000])
def test_a_file_that_is_no_lexicon_set_is_refused_by_name(tmp_path, text):
    (tmp_path / LEXICON_FILE).write_text(text)
    with pytest.raises(WeightsError, match=r"lexicon.json must hold the meanings of phrases"):
        load_lexicon_set(tmp_path / LEXICON_FILE)
    for phrases in ({"relation=on": ["on"]}, {"stack=many": ["many"]}, {"colour=red": "red"}):
        parts = {"letters": False, "fillers": [], "objects": [], "phrases": phrases}
        (tmp_path / LEXICON_FILE).write_text(json.dumps({"captions": parts, "prompts": {}, "props": []}))
        with pytest.raises(WeightsError, match=r"lexicon.json must hold"):
            load_lexicon_set(tmp_path / LEXICON_FILE)
    whole = {"letters": False, "fillers": [], "objects": [], "phrases": {"colour": ["red"]}}
    (tmp_path / LEXICON_FILE).write_text(json.dumps({"captions": whole, "prompts": {}}))
    with pytest.raises(WeightsError, match=r"lexicon.json must hold"):
        load_lexicon_set(tmp_path / LEXICON_FILE)


# How the upsampler uses lexicons


def with_lexicons(toy_upsampler: TrainedUpsampler, wanted: dict[str, str], **config: float) -> TrainedUpsampler:
    """Give a copy of the toy upsampler lexicons in which these words of prompts mean a time of day or a colour."""
    captions, prompts = Lexicon(), Lexicon()
    names = {"red": "colour", "blue": "colour", "noon": "time", "night": "time", "ball": "shape"}
    for word, name in names.items():
        captions.add(word, (name, word))
    for word, value in ({"red": "red", "ball": "ball"} | wanted).items():
        prompts.add(word, (names[value], value))
    model = copy.deepcopy(toy_upsampler.model)
    model.register_to_config(**config)
    return TrainedUpsampler(toy_upsampler.tokenizer, model, LexiconSet(captions, {"en": prompts}))


def test_the_most_probable_of_the_faithful_captions_is_chosen(toy_upsampler):
    prompt, others = "red ball falls", 0
    for seed, time in product(range(8), ("noon", "night")):
        reader = with_lexicons(toy_upsampler, {"falls": time})
        kept = [text for text in toy_upsampler.candidates(prompt, seed) if time in text and "red ball falls" in text]
        wanted = kept[toy_upsampler.prompt_log_probs(prompt, kept).sum(1).argmax()] if kept else prompt
        assert reader.upsample(prompt, seed) == wanted
        others += wanted != toy_upsampler.upsample(prompt, seed)
    assert others >= 8  # of each seed's two times at least one is not the most probable of all


def test_a_prompt_without_a_faithful_caption_stays_unchanged(toy_upsampler):
    reader = with_lexicons(toy_upsampler, {"red": "blue"})
    for seed in range(4):
        assert toy_upsampler.upsample("red ball", seed) != "red ball" == reader.upsample("red ball", seed)


def test_confidence_thresholds_apply_only_to_prompts_that_are_not_literal(toy_upsampler):
    strict = with_lexicons(toy_upsampler, {"falls": "noon"}, min_gain=99.0)
    assert "red ball" in strict.upsample("red ball", 1) != "red ball"
    assert strict.upsample("red ball spins", 1) == "red ball spins"
    assert with_lexicons(toy_upsampler, {"falls": "noon"}).upsample("red ball spins", 1) != "red ball spins"
