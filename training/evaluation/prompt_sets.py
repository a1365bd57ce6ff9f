"""The sets of prompts for edition 2 of the world: which scenes, in what words, in which format.

The scenes are beyond those of any data set. Sets of one split and number of things share their scenes, so that Chinese
is compared with English, and paraphrases with usual words, on the same ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import cycle, islice

from dit.pipeline import Pipeline
from dit.settings import Settings
from training.config import Format
from training.evaluation.evaluate import FIRST_INDEX, PromptSet
from training.evaluation.paraphrases import LEXICON, write_paraphrase
from training.evaluation.reading import Key, asked_keys
from training.world.scene import GROUNDS, SKIES, TIMES, Scene, clip_rng, event_seconds, sample_scene
from training.world.words import read_caption, write_caption, write_prompt

EDITION = 2
# What a plain prompt names of the subject and its surroundings.
MENTIONED = ("colour", "shape", "size", "material", "event", "direction", "speed", "camera")
MENTIONED += ("ground", "wetness", "sky", "time")
SQUARE, LONGER, OTHER_SHAPES = "square", "longer", "other shapes"


@dataclass(frozen=True)
class WordedSet(PromptSet):
    """A set of prompts with their wording and the frame of their clips, one of SQUARE, LONGER and OTHER_SHAPES."""

    wording: str = "plain"
    frame: str = SQUARE


PROMPT_SETS = (
    WordedSet("one thing", "test", (1,)),
    WordedSet("several things", "test", (2, 3, 4)),
    WordedSet("pairs never seen", "combinations", (1,)),
    WordedSet("longer", "test", (1,), frame=LONGER),
    WordedSet("other shapes", "test", (1,), frame=OTHER_SHAPES),
    WordedSet("chinese", "test", (1,), "chinese"),
    WordedSet("labels", "test", (1,), "label"),
    WordedSet("dense", "test", (1,), "dense"),
    WordedSet("paraphrase", "test", (1,), "paraphrase"),
)


@dataclass(frozen=True)
class PromptCase:
    """A prompt, its scene, the keys of what it asks for (`reading.py`), and the format and mode of its clip."""

    text: str
    scene: Scene
    asked: tuple[Key, ...]
    format: Format
    mode: str


def choose_sets(names: Iterable[str] | None) -> tuple[WordedSet, ...]:
    """Return the sets of these names, or all; raises ValueError for an unknown name."""
    known = {one.name: one for one in PROMPT_SETS}
    names = list(known) if names is None else list(names)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"sets must be among {', '.join(known)}; got {', '.join(unknown)}")
    return tuple(known[name] for name in names)


def clip_formats(frame: str, pipeline: Pipeline) -> list[tuple[str, Format]]:
    """Return the modes and formats in which a model makes clips of a frame, used in turn; none if it makes none.

    A clip longer than those that the model was trained on is sampled window by window, with twice the usual frames.
    """
    settings: Settings = pipeline.settings
    usual = pipeline.trained_frame_count(settings.size, settings.seconds, settings.fps)
    columns, rows = settings.size
    if frame == SQUARE:
        return [("text-to-video", (columns, rows, usual))]
    videos = [one for one in settings.formats if one[2] > 1]
    if frame == OTHER_SHAPES:
        return [("text-to-video", one) for one in videos if one[0] != one[1]]
    longer = [one for one in videos if one[:2] == settings.size and one[2] > usual]
    return [("text-to-video", one) for one in longer] or [("long", (columns, rows, 2 * usual - 1))]


def write_words(scene: Scene, wording: str) -> tuple[str, tuple[Key, ...]]:
    """Write the prompt of a scene: plain, chinese, label, dense or paraphrase; and the keys of what it asks for."""
    rng = clip_rng(scene.seed, scene.split, scene.index, 7)
    if wording == "paraphrase":
        text = write_paraphrase(scene, rng, MENTIONED)
        return text, tuple(asked_keys(scene, LEXICON.read_attributes(text)))
    language = "zh" if wording == "chinese" else "en"
    if wording in ("label", "dense"):
        text = write_caption(scene, wording, rng=rng)
    else:
        text = write_prompt(scene, language, rng=rng, mention=MENTIONED)
    return text, tuple(asked_keys(scene, read_caption(text, language)))


def prompt_cases(prompt_set: WordedSet, prompts: int, seed: int, pipeline: Pipeline) -> list[PromptCase]:
    """Return the first `prompts` cases of a set; none if the model makes no clips of its frame."""
    formats = clip_formats(prompt_set.frame, pipeline)
    cases, index = [], FIRST_INDEX
    for mode, format in islice(cycle(formats), prompts if formats else 0):
        seconds = event_seconds(EDITION, format[2], pipeline.settings.fps)
        scene = sample_scene(seed, prompt_set.split, index, seconds, EDITION)
        while len(scene.things) not in prompt_set.objects:
            index += 1
            scene = sample_scene(seed, prompt_set.split, index, seconds, EDITION)
        index += 1
        cases.append(PromptCase(*_words_and_scene(scene, prompt_set.wording), format, mode))
    return cases


def _words_and_scene(scene: Scene, wording: str) -> tuple[str, Scene, tuple[Key, ...]]:
    text, asked = write_words(scene, wording)
    return text, scene, asked


def setting_scenes(seed: int, seeds: int, seconds: float) -> list[list[Scene]]:
    """Return scenes (prompts, seeds) of one resting thing that differ in ground, sky and time; the camera is still.

    The scenes of a prompt differ in their light and in the pattern of the ground, which no prompt names.
    """
    bases: list[Scene] = []
    index = FIRST_INDEX
    while len(bases) < seeds:
        scene = sample_scene(seed, "test", index, seconds, EDITION)
        if len(scene.things) == 1 and scene.event == "rest":
            bases.append(replace(scene, camera="still", wetness="dry"))
        index += 1
    rules = bases[0].rules
    settings = [(ground, time) for ground in GROUNDS for time in TIMES if (ground, time) not in rules.held_out_settings]
    return [
        [replace(base, ground=ground, time=time, sky=SKIES[number % len(SKIES)]) for base in bases]
        for number, (ground, time) in enumerate(settings)
    ]
