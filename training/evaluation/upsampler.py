"""How much of what a user said survives the upsampler?

    python -m training.evaluation.upsampler runs/first/upsampler/upsampler --prompts 125

Prompts of held-out scenes are written out, and both texts read back by the world's lexicon: what the prompt says, what
is written must say too, of the same value, and of one thing alone nothing else.
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
from training.world.scene import Scene, rng_of, sample_scene
from training.world.words import caption, prompt, said

FIRST = 800_000_000  # the first index looked at: far beyond any clip that a data set holds, or that is evaluated
MENTIONED = ("colour", "shape", "size", "event", "direction", "camera")  # what prompts in other words say
SETS = ("label", "plain", "reserved", "chinese", "synonyms")


def measure_survival(upsampler: Upsampler, prompts: int, seed: int = 0) -> dict[str, dict]:
    """Return, for `prompts` prompts of each of SETS, the share of which all survives, with a 95 % interval, and the
    share by attribute; how many stayed as they were typed, which loses nothing, and the share of the others of which
    all survives (None where there are none); and the seconds that half of them took at most.
    """
    found = {}
    for words in SETS:
        whole, right, asked, seconds, kept = [], Counter(), Counter(), [], 0
        for number, (text, told) in enumerate(
            tqdm(prompt_cases(words, prompts, seed), words, prompts, file=sys.stderr)
        ):
            start = time.monotonic()
            written = upsampler.upsample(text, seed=number)
            seconds.append(time.monotonic() - start)
            kept += written == text
            verdict = match_attributes(told, read_prompt(written)) if written != text else dict.fromkeys(told, True)
            whole.append(all(verdict.values()))
            asked.update(verdict.keys())
            right.update(name for name, fine in verdict.items() if fine)
        mean, low, high = bootstrap_interval(np.array(whole, float))
        found[words] = {
            "prompts": prompts,
            "survived": {"mean": round(mean, 4), "low": round(low, 4), "high": round(high, 4)},
            "attributes": {name: round(right[name] / asked[name], 4) for name in sorted(asked)},
            "as typed": round(kept / prompts, 4),
            "survived of others": round((sum(whole) - kept) / (prompts - kept), 4) if kept < prompts else None,
            "seconds": round(float(np.median(seconds)), 3),
        }
    return found


def prompt_cases(words: str, prompts: int, seed: int) -> Iterator[tuple[str, Attributes]]:
    """List prompts of one of SETS, each with what it says; the same seed lists the same."""
    for index in range(FIRST, FIRST + prompts):
        scene = sample_scene(seed, "test", index)
        rng = rng_of(scene.seed, scene.split, scene.index, 8)
        if words == "synonyms":
            told = ("colour", "shape", "event", "direction")
            text = draw_prompt(scene, "en", rng, told, synonym_probability=1.0)
            stands = places(scene) if "relation" in read_prompt(text) else set()
            yield text, stated_attributes(scene) | ({"place": stands} if stands else {})
            continue
        if words == "reserved":
            text = prompt(scene, rng=rng, mention=MENTIONED, reserved=True)
        else:
            text = caption(
                scene, "label" if words == "label" else "plain", "zh" if words == "chinese" else "en", rng=rng
            )
        yield text, read_prompt(text)


def read_prompt(text: str) -> Attributes:
    """Read a text of either language."""
    return said(text, language_of(text))


def language_of(text: str) -> str:
    """Say in which of the world's languages a text is."""
    return "en" if text.isascii() else "zh"


def stated_attributes(scene: Scene) -> Attributes:
    """State what a prompt in words of the thesaurus says, which the lexicon cannot read."""
    things = (
        scene.things if scene.event != "topple" else [t for t in scene.things if t.relation or t is scene.things[0]]
    )
    found = {"thing": {f"{thing.colour} {thing.shape}" for thing in things}, "event": {scene.event}}
    found["count"] = {str(len(scene.things))}
    return found | ({"direction": {scene.direction}} if scene.direction else {})


def main() -> None:
    parser = argparse.ArgumentParser("python -m training.evaluation.upsampler", description=__doc__.split("\n")[0])
    parser.add_argument("upsampler", help="a folder, a language model of transformers, or ADDRESS#MODEL")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="a .json, beside what is printed")
    parser.add_argument("--prompts", type=int, default=125, help=f"of each set: {', '.join(SETS)} (default 125)")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    found = json.dumps(measure_survival(load_upsampler(chosen.upsampler), chosen.prompts, chosen.seed), indent=2)
    print(found)
    if chosen.output:
        chosen.output.write_text(found)


if __name__ == "__main__":
    main()
