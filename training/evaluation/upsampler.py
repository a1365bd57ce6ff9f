"""Measure how much of what a prompt states survives the upsampler.

    python -m training.evaluation.upsampler runs/first/upsampler/upsampler --prompts 125

Prompts of held-out scenes are upsampled, and the world's lexicon reads both texts: the upsampled prompt must state the
same values as the prompt, and for a single object no others.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from captioning.lexicon import Attributes, match_attributes
from captioning.upsampler import Upsampler, load_upsampler
from training.evaluation.metrics import bootstrap_interval
from training.synonyms import draw_prompt
from training.world.facts import places
from training.world.scene import Scene, clip_rng, sample_scene
from training.world.words import language_of, read_caption, write_caption, write_prompt

FIRST_INDEX = 800_000_000  # of the scenes: beyond those of any data set and of `evaluate.py`
MENTIONED = ("colour", "shape", "size", "event", "direction", "camera")  # what prompts in reserved words state
SYNONYM_MENTIONED = ("colour", "shape", "event", "direction")  # what prompts in synonyms state
SETS = ("label", "plain", "reserved", "chinese", "synonyms")


def measure_survival(upsampler: Upsampler, prompts: int, seed: int = 0) -> dict[str, dict]:
    """Return how much survives of `prompts` prompts of each of SETS.

    "survived": the share of prompts of which all survives, with a 95 % interval. "attributes": that share by attribute.
    "as typed": the share of prompts returned unchanged, which lose nothing. "survived of others": the share of the
    changed ones of which all survives, None without any. "seconds": the median time per prompt.
    """
    report = {}
    for name in SETS:
        complete, correct, stated_count, seconds, unchanged = [], Counter(), Counter(), [], 0
        cases = tqdm(prompt_cases(name, prompts, seed), name, prompts, file=sys.stderr)
        for number, (text, stated) in enumerate(cases):
            start = time.monotonic()
            upsampled = upsampler.upsample(text, seed=number)
            seconds.append(time.monotonic() - start)
            unchanged += upsampled == text
            if upsampled == text:
                matches = dict.fromkeys(stated, True)
            else:
                matches = match_attributes(stated, read_prompt(upsampled))
            complete.append(all(matches.values()))
            stated_count.update(matches.keys())
            correct.update(attribute for attribute, matched in matches.items() if matched)
        mean, low, high = bootstrap_interval(np.array(complete, float))
        changed = prompts - unchanged
        report[name] = {
            "prompts": prompts,
            "survived": {"mean": round(mean, 4), "low": round(low, 4), "high": round(high, 4)},
            "attributes": {
                attribute: round(correct[attribute] / stated_count[attribute], 4) for attribute in sorted(stated_count)
            },
            "as typed": round(unchanged / prompts, 4),
            "survived of others": round((sum(complete) - unchanged) / changed, 4) if changed else None,
            "seconds": round(float(np.median(seconds)), 3),
        }
    return report


def prompt_cases(name: str, prompts: int, seed: int) -> Iterator[tuple[str, Attributes]]:
    """Yield prompts of one of SETS, each with the attributes that it states; the same seed gives the same prompts."""
    for index in range(FIRST_INDEX, FIRST_INDEX + prompts):
        scene = sample_scene(seed, "test", index)
        rng = clip_rng(scene.seed, scene.split, scene.index, 8)
        if name == "synonyms":
            text = draw_prompt(scene, "en", rng, SYNONYM_MENTIONED, synonym_probability=1.0)
            relations = places(scene) if "relation" in read_prompt(text) else set()
            yield text, stated_attributes(scene) | ({"place": relations} if relations else {})
            continue
        if name == "reserved":
            text = write_prompt(scene, rng=rng, mention=MENTIONED, reserved=True)
        else:
            kind, language = "label" if name == "label" else "plain", "zh" if name == "chinese" else "en"
            text = write_caption(scene, kind, language, rng=rng)
        yield text, read_prompt(text)


def read_prompt(text: str) -> Attributes:
    """Read the attributes that a text states, in either language."""
    return read_caption(text, language_of(text))


def stated_attributes(scene: Scene) -> Attributes:
    """Return what a prompt in synonyms states of a scene: the lexicon cannot read it there."""
    things = (
        scene.things if scene.event != "topple" else [t for t in scene.things if t.relation or t is scene.things[0]]
    )
    found = {"thing": {f"{thing.colour} {thing.shape}" for thing in things}, "event": {scene.event}}
    found["count"] = {str(len(scene.things))}
    return found | ({"direction": {scene.direction}} if scene.direction else {})


def main() -> None:
    """Print the survival of prompts as JSON."""
    description = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser("python -m training.evaluation.upsampler", description=description)
    parser.add_argument("upsampler", help="a folder, a language model of transformers, or ADDRESS#MODEL")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="also write the report to a .json")
    parser.add_argument("--prompts", type=int, default=125, help=f"of each set: {', '.join(SETS)} (default 125)")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes (default 0)")
    arguments = parser.parse_args()
    upsampler = load_upsampler(arguments.upsampler)
    report = json.dumps(measure_survival(upsampler, arguments.prompts, arguments.seed), indent=2)
    print(report)
    if arguments.output:
        arguments.output.write_text(report)


if __name__ == "__main__":
    main()
