"""What stands around the second model: its words of wet ground, its presets, and its recipe."""

import numpy as np

from training.config import Recipe
from training.presets import PRESETS
from training.recipe import PARTS
from training.salience import build_lexicon_set, lexicon_of, meanings_of
from training.synonyms import draw_prompt
from training.world.scene import sample_scene


def test_wet_ground_is_read_in_captions_and_prompts_of_both_languages():
    lexicons = build_lexicon_set()
    for text in ("a red ball rolls on the wet grass", "一个红球在湿漉漉的草地上滚动"):
        assert ("wetness", "wet") in meanings_of(text)
    assert lexicons.captions.read_attributes("A red ball rests on wet sand.")["wetness"] == {"wet"}
    assert not lexicons.is_faithful("a red ball on the wet sand", "A red ball rests on dry sand.")
    assert lexicons.is_faithful("a red ball on the wet sand", "A red ball rests on wet sand.")
    assert lexicons.prompts["zh"].read_attributes("潮湿的沙地")["wetness"] == {"wet"}


def test_prompts_of_edition_2_name_wet_ground_and_those_of_edition_1_never_do():
    for language in ("en", "zh"):
        lexicon, named = lexicon_of(language), {1: 0, 2: 0}
        for edition in named:
            for index in range(120):
                scene = sample_scene(0, "train", index, edition=edition)
                prompt = draw_prompt(scene, language, np.random.default_rng(index))
                named[edition] += "wetness" in lexicon.read_attributes(prompt)
        assert named[1] == 0 and named[2] > 5, (language, named)


def test_a_recipe_trains_each_part_after_those_it_needs():
    for name, preset in PRESETS["recipe"].items():
        recipe = preset()
        assert isinstance(recipe, Recipe) and recipe.name == name and set(recipe.parts) <= PARTS.keys()
        done = []  # folders that a part can take a model from
        for part in recipe.parts:
            runs = [make() for own, make in PRESETS[part].items() if own.split("-")[0] == name]
            for run in runs:
                for field in ("vae", "text_encoder", "init_from", "data", "held_out"):
                    needed = getattr(run, field, None)
                    if (
                        needed
                        and str(needed).startswith(("runs/", "data/"))
                        and not getattr(run, "prompt_encoder_layers", 0)
                    ):
                        assert any(needed.is_relative_to(folder) for folder in done), (part, field, needed)
                done.append(getattr(run, "out", None) or run.folder)
    assert {"captioner", "upsampler", "judge"} <= set(PRESETS["recipe"]["second"]().parts)


def test_the_models_around_the_second_see_its_clips():
    format = PRESETS["dit"]["second"]().formats[0]
    for kind in ("text", "captioner", "upsampler", "judge"):
        run = PRESETS[kind]["second"]()
        assert run.format == format and str(run.data) == "data/second"
