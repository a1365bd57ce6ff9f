"""Training data of the upsampler: prompts with captions of their scenes, and captions that contradict a prompt.

All are functions of the seed and a sample index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

import numpy as np

from captioning.lexicon import OPPOSITE
from captioning.upsampler import CLIP_CAPTION, IMAGE_CAPTION
from training.dataset import Bucket, caption_kinds, select_captions
from training.evaluation.captions import true_values
from training.evaluation.upsampler import read_prompt
from training.salience import meanings_of
from training.synonyms import draw_prompt, imitate_typing
from training.world.lexicon import OTHER_SIDE
from training.world.scene import COLOURS, EVENTS, SIZES, Scene
from training.world.words import read_caption, write_caption

IMAGE_PROBABILITY = 0.15  # that a pair is of a single frame
DRAWN_PROMPT_PROBABILITY = 0.5  # that the prompt is drawn by `draw_prompt` rather than taken from the dataset
CHINESE_PROBABILITY = 0.4  # that a drawn prompt is Chinese
CAPTIONER_PROBABILITY = 0.95  # that a caption is the captioner's, where it has one (as for DALL-E 3)
MAX_FALSE_CAPTIONS = 3


class PromptPair(NamedTuple):
    """A prompt and a caption of the same clip or image; `task` is the control token that asks for the caption."""

    task: str
    prompt: str
    caption: str


class CaptionChoice(NamedTuple):
    """A prompt, a caption that agrees with it, and captions that do not."""

    prompt: str
    true_caption: str
    false_captions: list[str]


def draw_pair(seed: int, bucket: Bucket, clip: int, sample: int, captions: Sequence[str] = ()) -> PromptPair:
    """Draw a prompt and a caption of a clip, or of a frame of it.

    `captions` are the captioner's, of the first clips of the bucket. One is used with CAPTIONER_PROBABILITY, unless it
    contradicts the clip or leaves out something of the prompt; the world's caption is used otherwise.
    """
    rng = np.random.default_rng([seed, 5, sample])
    image = bool(rng.random() < IMAGE_PROBABILITY)
    texts = bucket.captions[clip]["still" if image else "moving"]
    kinds = caption_kinds(texts, image)
    dense = select_captions(bucket.captions[clip], "dense", image=image)
    text = dense[rng.integers(len(dense))]
    if not image and rng.random() < DRAWN_PROMPT_PROBABILITY:
        language = "zh" if rng.random() < CHINESE_PROBABILITY else "en"
        prompt = draw_prompt(bucket.scene(clip), language, rng)
    else:
        short = [(own, language) for (kind, language), own in zip(kinds, texts, strict=True) if kind != "dense"]
        prompt, language = short[rng.integers(len(short))]
    prompt = imitate_typing(prompt, language, rng)
    if (
        not image
        and clip < len(captions)
        and rng.random() < CAPTIONER_PROBABILITY
        and is_faithful(prompt, captions[clip], bucket.scene(clip))
    ):
        text = captions[clip]
    return PromptPair(IMAGE_CAPTION if image else CLIP_CAPTION, prompt, text)


def is_faithful(prompt: str, text: str, scene: Scene) -> bool:
    """Return whether a caption keeps all meanings of a prompt, and names no object that is not in the scene."""
    objects = read_caption(text).get("thing", set())
    return objects <= true_values(scene)["thing"] and meanings_of(prompt) <= meanings_of(text)


def draw_choices(pairs: list[tuple[Scene, PromptPair]]) -> list[CaptionChoice]:
    """List the choices that the prompts of these pairs have in their scenes, where they have one."""
    choices = (draw_choice(scene, pair.task, pair.prompt) for scene, pair in pairs)
    return [choice for choice in choices if choice]


def draw_choice(scene: Scene, task: str, prompt: str) -> CaptionChoice | None:
    """Draw a caption of a scene, and up to MAX_FALSE_CAPTIONS that confuse two of its objects, in the same words.

    Returns None where the scene has no two objects to confuse, or the prompt does not tell them apart.
    """
    rng = np.random.default_rng([8, scene.index, len(prompt)])
    spatial = any(name == "relation" for name, _ in meanings_of(prompt))
    if task != CLIP_CAPTION or not (confused := confused_scenes(scene, spatial)):
        return None
    kind, seed = ("dense", "plain")[rng.integers(2)], int(rng.integers(2**31))
    true, *false = (write_caption(one, kind, rng=np.random.default_rng(seed)) for one in (scene, *confused))
    things = read_prompt(prompt).get("thing", set())
    if not spatial and len(things) == len({(thing.colour, thing.shape) for thing in scene.things}):
        false = [text for text in false if not things <= read_prompt(text)["thing"]]
    false = [text for text in dict.fromkeys(false) if text != true]
    if not false:
        return None
    return CaptionChoice(prompt, true, [false[index] for index in rng.permutation(len(false))[:MAX_FALSE_CAPTIONS]])


def confused_scenes(scene: Scene, spatial: bool) -> list[Scene]:
    """List scenes in which two objects have swapped their colours or their shapes.

    With `spatial`, also those in which two objects have swapped places, or one is on the opposite side.
    """
    if scene.event == "topple":  # captions do not name its cubes one by one
        return []
    confused, appearances = [], [(thing.colour, thing.shape) for thing in scene.things]
    for (first, a), (second, b) in combinations(enumerate(appearances), 2):
        swaps = [((b[0], a[1]), (a[0], b[1])), ((a[0], b[1]), (b[0], a[1])), (b, a)]
        for swap in swaps if spatial else swaps[:2]:
            new = list(appearances)
            new[first], new[second] = swap
            things = [replace(thing, colour=c, shape=s) for thing, (c, s) in zip(scene.things, new, strict=True)]
            possible = things[0].shape in EVENTS[scene.event]
            if new != appearances and possible and (spatial or sorted(new) != sorted(appearances)):
                confused.append(replace(scene, things=tuple(things)))
    taken = {thing.relation for thing in scene.things}
    for index, thing in enumerate(scene.things):
        if spatial and thing.relation and OPPOSITE[thing.relation] not in taken:
            moved = replace(thing, relation=OPPOSITE[thing.relation])
            confused.append(replace(scene, things=(*scene.things[:index], moved, *scene.things[index + 1 :])))
    return confused


def draw_near_miss(bucket: Bucket, clip: int, sample: int) -> tuple[str, str]:
    """Draw a prompt of a clip, and a caption that contradicts it in one attribute."""
    rng = np.random.default_rng([6, sample])
    scene, wrong = bucket.scene(clip), []
    if rng.random() < DRAWN_PROMPT_PROBABILITY:
        optional = {name for name in ("size", "direction") if rng.random() < DRAWN_PROMPT_PROBABILITY}
        attributes = {"colour", "shape", "event"} | optional
        prompt = draw_prompt(scene, "zh" if rng.random() < CHINESE_PROBABILITY else "en", rng, tuple(attributes))
    else:
        texts = bucket.captions[clip]["moving"]
        prompts = [text for kind, text in zip(caption_kinds(texts), texts, strict=True) if kind[0] != "dense"]
        prompt = prompts[rng.integers(len(prompts))]
        attributes = set(read_prompt(prompt))
    subject, *others = scene.things
    colour = str(rng.choice([colour for colour in COLOURS if colour != subject.colour]))
    wrong.append(replace(scene, things=(replace(subject, colour=colour), *others)))
    if "size" in attributes and not others:
        size = str(rng.choice([size for size in SIZES if size != subject.size]))
        wrong.append(replace(scene, things=(replace(subject, size=size),)))
    if "direction" in attributes and scene.direction:
        wrong.append(replace(scene, direction=OTHER_SIDE[scene.direction]))
    if others and others[-1].relation:
        wrong.append(replace(scene, things=(subject, *others[:-1])))
    return prompt, write_caption(wrong[rng.integers(len(wrong))], "dense", rng=rng)
