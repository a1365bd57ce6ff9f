"""How true and how well put are captions? Measured on clips whose truth is known.

    python -m training.evaluation.captions runs/first/captioner/captioner

Precision is the share of what a caption says that is true, recall the share of what is true that it says; both are
counted over all clips, attribute by attribute, by reading the caption back with the world's lexicon.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from training.dataset import Bucket, open_bucket, select_captions
from training.world.facts import patients
from training.world.scene import Scene
from training.world.words import attributes, said

SCORED_ATTRIBUTES = ("colour", "shape", "thing", "size", "material", "event", "direction", "camera", "count")
SCORED_ATTRIBUTES += ("ground", "sky", "time")
GRAMS = 4  # the longest phrase that CIDEr counts
TOGETHER = 32


def true_values(scene: Scene) -> dict[str, set[str]]:
    """Return what a caption of a moving clip may say: of every attribute the values that are true.

    The cubes of a stack have colours and a shape, but are not named one by one.
    """
    found = {name: {value} for name, value in attributes(scene).items()}
    for name in ("colour", "shape", "size", "material"):
        found[name] = {getattr(thing, name) for thing in scene.things}
    stacked = patients(scene) if scene.event == "topple" else []
    found["thing"] = {f"{thing.colour} {thing.shape}" for thing in scene.things if thing not in stacked}
    return found


def precision_recall(texts: Iterable[str], scenes: Iterable[Scene]) -> dict[str, dict[str, float | None]]:
    """Return precision and recall of English captions, by attribute; None where nothing was said, or was to be said."""
    counts = {name: [0, 0, 0] for name in SCORED_ATTRIBUTES}  # said and true, said, true
    for text, scene in zip(texts, scenes, strict=True):
        spoken, true = said(text), true_values(scene)
        for name, total in counts.items():
            mine, theirs = spoken.get(name, set()), true.get(name, set())
            for place, number in enumerate((len(mine & theirs), len(mine), len(theirs))):
                total[place] += number
    return {
        name: {"precision": _share(both, spoken), "recall": _share(both, true)}
        for name, (both, spoken, true) in counts.items()
    }


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def cider(texts: Sequence[str], references: Sequence[Sequence[str]], sigma: float = 6.0) -> float:
    """Return CIDEr-D (Vedantam et al. 2015, arXiv 1411.5726) of captions against the references of each: 10 where they
    agree in every word, of which there are at least four. Phrases that the references of few clips have count for more,
    those that all have for nothing; so one clip alone scores 0.
    """
    wanted = [[_phrases(text) for text in some] for some in references]
    documents = Counter(phrase for some in wanted for phrase in set().union(*some))
    rarity = math.log(max(1, len(wanted)))

    def weigh(phrases: Counter) -> list[dict[tuple[str, ...], float]]:
        vectors: list[dict[tuple[str, ...], float]] = [{} for _ in range(GRAMS)]
        for phrase, count in phrases.items():
            vectors[len(phrase) - 1][phrase] = count * (rarity - math.log(max(1, documents[phrase])))
        return vectors

    def words(phrases: Counter) -> int:
        return sum(count for phrase, count in phrases.items() if len(phrase) == 1)

    def alike(mine: dict, theirs: dict) -> float:
        dot = sum(min(value, theirs.get(phrase, 0.0)) * theirs.get(phrase, 0.0) for phrase, value in mine.items())
        size = math.hypot(*mine.values()) * math.hypot(*theirs.values())
        return dot / size if size else 0.0

    scores = []
    for text, some in zip(texts, wanted, strict=True):
        own, found = _phrases(text), []
        mine = weigh(own)
        for other in some:
            short = math.exp(-((words(own) - words(other)) ** 2) / (2 * sigma**2))
            found.append(10 * short * float(np.mean([alike(a, b) for a, b in zip(mine, weigh(other), strict=True)])))
        scores.append(np.mean(found))
    return float(np.mean(scores))


def _phrases(text: str) -> Counter:
    """Count a text's phrases of one to GRAMS words."""
    words = "".join(letter if letter.isalnum() or letter == "-" else " " for letter in text.lower()).split()
    return Counter(
        tuple(words[start : start + many]) for many in range(1, GRAMS + 1) for start in range(len(words) - many + 1)
    )


def evaluate_captioner(captioner, bucket: Bucket, clips: int | None = None) -> dict:
    """Return a captioner's scores on the first clips of a bucket, or on all: of those with one object, and of all."""
    numbers = range(min(clips or len(bucket), len(bucket)))
    texts: list[str] = []
    for start in range(0, len(numbers), TOGETHER):
        texts += captioner.caption_batch(bucket.load_clips(numbers[start : start + TOGETHER]))
    scenes = [bucket.scene(number) for number in numbers]
    references = [select_captions(bucket.captions[number], "dense") for number in numbers]
    report: dict = {}
    for name, chosen in (("one object", [len(scene.things) == 1 for scene in scenes]), ("all", [True] * len(scenes))):
        own = [n for n, wanted in enumerate(chosen) if wanted]
        if not own:
            continue
        report[name] = {
            "clips": len(own),
            "cider": round(cider([texts[n] for n in own], [references[n] for n in own]), 4),
            **precision_recall((texts[n] for n in own), (scenes[n] for n in own)),
        }
    report["examples"] = [[text, some[0]] for text, some in zip(texts[:8], references[:8], strict=True)]
    return report


def caption_bucket(captioner, bucket: Bucket, path: Path, clips: int | None = None) -> list[str]:
    """Return the captioner's words on the first clips, or on all, also in `path`, a line each; begun there, it goes
    on.
    """
    count = min(clips or len(bucket), len(bucket))
    path.parent.mkdir(parents=True, exist_ok=True)
    told = path.read_text().splitlines(keepends=True) if path.exists() else []
    whole = [line for line in told if line.endswith("\n")]
    if len(whole) < count:
        whole = whole[: len(whole) // TOGETHER * TOGETHER]  # the same batches again
        path.write_text("".join(whole))
    texts = [json.loads(line) for line in whole]
    with open(path, "a") as lines:
        for start in tqdm(range(len(texts), count, TOGETHER), "describe"):
            written = captioner.caption_batch(bucket.load_clips(range(start, min(start + TOGETHER, count))))
            texts += written
            lines.write("".join(json.dumps(text) + "\n" for text in written))
            lines.flush()
    return texts[:count]


def main(args: list[str] | None = None) -> None:
    """Print a captioner's report on held-out clips, or only write down its captions of any."""
    import argparse

    from captioning.coca import load_coca

    parser = argparse.ArgumentParser(prog="python -m training.evaluation.captions", description=__doc__)
    parser.add_argument("captioner", type=Path, help="a captioner's folder")
    parser.add_argument("--data", type=Path, default=Path("data/first-test"), help="world clips that it never saw")
    parser.add_argument("--clips", type=int, help="how many of the first ones (default 1000; of those to write, all)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="instead: all captions into a .jsonl, a line each")
    chosen = parser.parse_args(args)
    if chosen.write:
        caption_bucket(load_coca(chosen.captioner), open_bucket(chosen.data, (64, 64, 17)), chosen.write, chosen.clips)
        return
    report = evaluate_captioner(
        load_coca(chosen.captioner), open_bucket(chosen.data, (64, 64, 17)), chosen.clips or 1000
    )
    print(json.dumps(report, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
