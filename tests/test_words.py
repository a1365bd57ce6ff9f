"""Captions of the procedural world: true, complete where they are dense, and without reserved words."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from training.world.facts import MOTION_ATTRIBUTES, STATIONARY_EVENTS, appearances, bystanders, places, struck
from training.world.scene import EVENTS, SPLITS, Scene, Thing, clip_rng, sample_scene
from training.world.words import (
    CAPTION_KINDS,
    LANGUAGES,
    LEXICONS,
    TABLES,
    attributes,
    mirror_caption,
    read_caption,
    write_caption,
    write_prompt,
)

SCENES = 150  # of every split
GLOBAL = ("event", "direction", "speed", "camera", "ground", "sky", "time")
every_language = pytest.mark.parametrize("language", LANGUAGES)


@cache
def scenes() -> list[Scene]:
    return [sample_scene(1, split, index) for split in SPLITS for index in range(SCENES)]


@cache
def captions(kind: str, language: str, moving: bool) -> list[tuple[Scene, str, dict[str, set[str]]]]:
    texts = [
        (s, write_caption(s, kind, language, moving=moving, rng=clip_rng(1, s.split, s.index, 7))) for s in scenes()
    ]
    return [(scene, text, read_caption(text, language)) for scene, text in texts]


def all_captions(language: str):
    for kind in CAPTION_KINDS:
        for moving in (True, False):
            for scene, text, found in captions(kind, language, moving):
                yield kind, moving, scene, text, found


def names(things: tuple[Thing, ...]) -> set[str]:
    return {f"{thing.colour} {thing.shape}" for thing in things}


def contradictions(scene: Scene, found: dict[str, set[str]]) -> dict[str, set[str]]:
    allowed = {name: {value} for name, value in attributes(scene).items()}
    for name in ("colour", "shape", "size", "material", "relation"):
        allowed[name] = {getattr(thing, name) for thing in scene.things}
    allowed["thing"] = names(scene.things)
    allowed["count"] = {str(len(scene.things))}
    allowed["place"], allowed["appearance"], allowed["struck"] = places(scene), appearances(scene), struck(scene)
    allowed["stack"] = {thing.shape for thing in scene.things[1:] if scene.event == "topple"}
    return {
        name: values - allowed.get(name, set()) for name, values in found.items() if values - allowed.get(name, set())
    }


@every_language
def test_captions_never_contradict_the_scene(language):
    for _, _, scene, text, found in all_captions(language):
        assert not contradictions(scene, found), (text, contradictions(scene, found))


@every_language
def test_a_dense_caption_names_every_attribute_of_every_thing(language):
    for moving in (True, False):
        for scene, text, found in captions("dense", language, moving):
            for name, value in attributes(scene, moving).items():
                assert value in found.get(name, ()) or (name, value) == ("speed", "normal"), (name, value, text)
            stacked = scene.event == "topple"
            for thing in scene.things:
                placed = thing.relation and (moving or scene.event in STATIONARY_EVENTS)
                expected = {thing.colour, thing.size, thing.material} | ({thing.relation} if placed else set())
                assert expected <= set().union(*found.values()), (thing, text)
            assert names((scene.things[0], *bystanders(scene)) if stacked else scene.things) <= found["thing"], text


@every_language
def test_plain_captions_and_labels_name_everything_by_colour_and_shape(language):
    for kind in ("plain", "label"):
        for scene, text, found in captions(kind, language, True):
            stacked = kind == "plain" and scene.event == "topple"
            wanted = (scene.things[0], *bystanders(scene)) if stacked else scene.things
            assert names(wanted) == found["thing"], text
            assert kind == "label" or found["event"] == {scene.event}, text


@every_language
def test_relations_are_never_swapped(language):
    for scene, text, found in captions("dense", language, True):
        assert found.get("relation", set()) == {thing.relation for thing in bystanders(scene)}, text
    for scene, text, found in captions("plain", language, True):
        if len(bystanders(scene)) == 1:
            assert found.get("relation", set()) <= {bystanders(scene)[0].relation}, text


@every_language
def test_a_mirrored_scene_has_the_mirrored_caption(language):
    def mirror(value):
        return mirror_caption(value) if value else value

    for scene in scenes():
        things = tuple(replace(thing, relation=mirror(thing.relation)) for thing in scene.things)
        other = replace(scene, things=things, direction=mirror(scene.direction), camera=mirror(scene.camera))
        for kind in CAPTION_KINDS:
            here, there = (
                write_caption(s, kind, language, rng=np.random.default_rng(scene.index)) for s in (scene, other)
            )
            assert mirror(here) == there


@every_language
def test_a_still_has_no_event_direction_speed_or_camera(language):
    for kind in CAPTION_KINDS:
        for scene, text, found in captions(kind, language, False):
            assert not set(MOTION_ATTRIBUTES) & set(found), (scene.event, text)
            assert scene.event in STATIONARY_EVENTS or "relation" not in found, text  # things may have moved on by then
            assert not re.search("camera|video|clip|镜头|视频", text), text


@every_language
def test_dense_captions_are_short_enough_for_a_text_encoder(language):
    for moving in (True, False):
        for _, text, _ in captions("dense", language, moving):
            assert len(text.split()) <= 75
            assert len(text) <= (500 if language == "en" else 160)


@every_language
def test_reserved_words_are_never_used_in_captions(language):
    lexicon, table = LEXICONS[language], TABLES[language]
    usual = table.build_lexicon((table.WORDS, table.WETNESS))
    held_out = set(lexicon.meanings) - set(usual.meanings)
    assert len(held_out) > 50
    for _, _, _, text, _ in all_captions(language):
        assert not {phrase for phrase, _ in lexicon.read(text)} & held_out, text


@every_language
def test_prompts_in_reserved_words_are_true_and_use_them(language):
    table = TABLES[language]
    usual = set(table.build_lexicon((table.WORDS, table.WETNESS)).meanings)
    for scene in scenes():
        text = write_prompt(scene, language, rng=np.random.default_rng(scene.index), reserved=True)
        assert not contradictions(scene, read_caption(text, language)), text
        assert {phrase for phrase, meanings in LEXICONS[language].read(text) if meanings} - usual, text


@every_language
def test_a_prompt_names_exactly_the_requested_attributes(language):
    rng = np.random.default_rng(5)
    asked = ("colour", "shape", "size", "material", *GLOBAL)
    for scene in scenes():
        mention = {name for name in asked if rng.random() < 0.5}
        text = write_prompt(scene, language, rng=rng, mention=mention)
        found, truth = read_caption(text, language), attributes(scene)
        whole = {"colour", "shape"} <= mention  # else not all things can be expected apart and counted
        assert not contradictions(scene, found if whole else found | {"count": set()}), text
        for name in GLOBAL:
            wanted = {truth[name]} if name in mention and name in truth else set()
            assert found.get(name, set()) == wanted - {"normal"}, (name, text)
        if len(scene.things) == 1:
            for name in ("colour", "shape", "size", "material"):
                assert found.get(name, set()) == ({truth[name]} if name in mention else set()), (name, text)


@every_language
def test_the_same_random_state_gives_the_same_words_and_others_give_others(language):
    for scene in scenes()[:6]:
        for kind, least in (("plain", 60), ("dense", 190)):
            texts = [write_caption(scene, kind, language, rng=np.random.default_rng(seed)) for seed in range(200)]
            assert texts[:20] == [write_caption(scene, kind, language, rng=np.random.default_rng(n)) for n in range(20)]
            assert len(set(texts)) > least


def test_english_is_well_formed():
    for kind, _, _, text, _ in all_captions("en"):
        assert re.fullmatch("[A-Za-z,. -]+", text), text
        assert not re.search(r"  | [,.]|,\S|,,|\.\S|\bnone\b", text), text
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|\b(\w+) \1\b", text, re.IGNORECASE), text
        assert kind != "dense" or all(s[0].isupper() for s in text.removesuffix(".").split(". ")), text
        assert not re.search(
            r"(?<!the )(?<!to )(?<!its )\bright (behind|on|over|off|in front|through|at|under)\b", text
        ), text


def test_chinese_is_well_formed():
    for kind, _, _, text, _ in all_captions("zh"):
        assert re.fullmatch("[\u4e00-\u9fff，。、]+", text), text
        assert not re.search("[，。、]{2}|的的|地地|在在|^[，。、]", text), text
        assert text.endswith("。") or kind != "dense", text


def test_the_words_stay_few():
    english = {word for *_, text, _ in all_captions("en") for word in re.findall("[a-z-]+", text.lower())}
    chinese = {letter for *_, text, _ in all_captions("zh") for letter in text}
    assert len(english) < 700 and len(chinese) < 500


READINGS = {  # written by hand, not by the grammar
    "a big crimson ball rolls toward the right": "large, red ball, roll, right",
    "a tiny metallic box sliding left": "tiny, metal, cube, slide, left",
    "a shiny purple pill spins in place at dusk": "glossy, purple capsule, spin, sunset",
    "a little can drops from above": "small, cylinder, fall",
    "a medium-sized sphere is quickly hopping up and down": "medium, ball, fast, bounce",
    "a cube is tossed from left to right over grass": "cube, throw, right, grass",
    "a giant orb sways on a string above the sand": "huge, ball, swing, sand",
    "a cube disappears behind a wall and reappears on the left": "cube, occlude, left",
    "a cube slides off the left edge of a platform": "cube, edge, left",
    "a pink drum very slowly bumps into a white block": "pink cylinder, very slow, collide, white cube, 2",
    "a green ball topples a stack of three cubes": "green ball, topple, cube, 4",
    "a ball sits still on a wooden floor, static shot": "ball, rest, wood, still",
    "the camera circles right around noon under a clear sky": "orbit right, noon, clear",
    "camera turning left on a cloudy night": "pan left, cloudy, night",
    "the camera rises": "crane up",
    "the camera moves down": "crane down",
    "the camera narrows the view": "zoom in",
    "the camera widens the view": "zoom out",
    "a ball with a can behind it and a cube to its left": "ball, cylinder, cube, behind, left of",
    "a ball in front of a can": "ball, cylinder, behind",
    "a ball right of a can": "ball, cylinder, left of",
    "in front of the ball stands a can, a cube on its right": "ball, cylinder, cube, in front of, right of",
    "一个绯红色的大球朝右滚动": "large, red ball, roll, right",
    "一个小金属方块向左滑行，固定镜头": "small, metal, cube, slide, left, still",
    "一个紫色胶囊原地打转": "purple capsule, spin",
    "一个巨大的圆柱非常缓慢地从空中落下": "huge, cylinder, very slow, fall",
    "一个球快速地上下弹跳": "ball, fast, bounce",
    "一个球被从左向右抛出": "ball, throw, right",
    "一个球像钟摆一样摆动，地面是沙地": "ball, swing, sand",
    "一个方块消失在一堵墙后面，又在左边出现": "cube, occlude, left",
    "一个方块从平台的左边缘滑落": "cube, edge, left",
    "一个粉色圆柱从左边过来，撞上一个白色方块": "pink cylinder, collide, right, white cube, 2",
    "一个绿球把三个叠在一起的方块撞倒": "green ball, topple, cube, 4",
    "日落时分的草地上，一个球一动不动": "sunset, grass, ball, rest",
    "镜头向左环绕，一个球，后面有一个圆柱，左边是一个方块": "orbit left, ball, cylinder, cube, behind, left of",
    "一个球在一个圆柱前面，镜头上升": "ball, cylinder, behind, crane up",
    "多云的早晨，镜头向右摇": "cloudy, morning, pan right",
    "镜头下降": "crane down",
    "镜头拉近": "zoom in",
    "镜头拉远": "zoom out",
}


@pytest.mark.parametrize("text", READINGS)
def test_handwritten_captions_are_read_right(text):
    language = "en" if text.isascii() else "zh"
    found = read_caption(text, language)
    wanted = set(READINGS[text].split(", "))
    implied = (
        {word for thing in found.get("thing", ()) for word in thing.split()} | {"1"} | found.get("appearance", set())
    )
    values = set().union(*found.values())
    assert wanted <= values and values - wanted <= implied


@every_language
def test_every_event_occurs_in_captions(language):
    assert {scene.event for scene, *_ in captions("plain", language, True)} == set(EVENTS)


SECOND = (*CAPTION_KINDS, "short")  # the kinds of captions of edition 2


@cache
def second_edition(moving: bool) -> list[tuple[Scene, str, str, str]]:
    """Write two captions of each kind and language for scenes of edition 2: scene, kind, language, caption."""
    found = []
    for split in SPLITS:
        for index in range(60):
            scene, rng = sample_scene(3, split, index, edition=2), clip_rng(3, split, index, 7)
            for kind in (*SECOND, *SECOND):
                texts = [
                    (language, write_caption(scene, kind, language, moving=moving, rng=rng)) for language in LANGUAGES
                ]
                found += [(scene, kind, language, text) for language, text in texts]
    return found


@pytest.mark.parametrize("moving", [True, False])
def test_nothing_in_captions_of_edition_2_contradicts_the_scene(moving):
    for scene, _, language, text in second_edition(moving):
        found = read_caption(text, language)
        whole = {"colour", "shape"} <= found.keys()  # else not all things can be expected apart and counted
        assert not contradictions(scene, found if whole else found | {"count": set()}), text
        assert is_well_formed(text, language), text


def is_well_formed(text: str, language: str) -> bool:
    """Tell whether a caption is well formed and fits a text encoder."""
    if language == "zh":
        return not re.search("[，。、]{2}|的的|地地|在在|地面地面|^[，。、]", text) and len(text) <= 180
    faults = r"  | [,.]|,\S|,,|\.\S|\bnone\b|\b[Aa] [aeiou]|\b[Aa]n [^aeiou]|\b(\w+) \1\b"
    return not re.search(faults, text) and len(text.split()) <= 80


def test_captions_of_edition_2_name_each_attribute_in_85_percent_and_leave_each_out_in_some():
    named: dict[str, list[bool]] = {}
    for scene, kind, language, text in second_edition(True):
        if kind not in ("plain", "dense"):
            continue
        found, truth = read_caption(text, language), attributes(scene)
        for name in ("size", "material"):
            for thing in scene.things:
                if thing.relation or thing is scene.things[0]:
                    named.setdefault(name, []).append(getattr(thing, name) in found.get(name, ()))
        for name in (*GLOBAL, "wetness"):
            if name in truth and truth[name] not in ("normal", "dry"):
                named.setdefault(name, []).append(truth[name] in found.get(name, ()))
    shares = {name: np.mean(values) for name, values in named.items()}
    assert set(shares) == {"size", "material", *GLOBAL, "wetness"}
    assert all(0.95 < share < 1 for share in shares.values()), shares  # labels and short ones are an eighth of all


def test_unknown_kinds_languages_and_attributes_are_refused():
    scene, rng = sample_scene(0, "train", 0), np.random.default_rng(0)
    with pytest.raises(ValueError, match="kind must be one of label, plain, dense"):
        write_caption(scene, "long", rng=rng)
    with pytest.raises(ValueError, match="language must be one of en, zh"):
        write_caption(scene, "plain", "fr", rng=rng)
    with pytest.raises(ValueError, match="attributes of a scene"):
        write_prompt(scene, rng=rng, mention=("colour", "mood"))


def test_a_phrase_cannot_mean_two_things():
    lexicon = TABLES["en"].build_lexicon()
    with pytest.raises(ValueError, match="one meaning"):
        lexicon.add("red", ("colour", "blue"))
