"""Measure how true and how well worded captions are, on clips whose scenes are known.

    python -m training.evaluation.captions runs/first/captioner/captioner

Precision is the share of what captions state that is true, recall the share of what is true that they state. Both are
counted by attribute over all clips, by reading the captions with the world's lexicon.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor
from tqdm import tqdm

from captioning.coca import load_coca
from training.dataset import Bucket, open_bucket, select_captions
from training.world.facts import patients
from training.world.scene import Scene
from training.world.words import attributes, read_caption

SCORED_ATTRIBUTES = ("colour", "shape", "thing", "size", "material", "event", "direction", "camera", "count")
SCORED_ATTRIBUTES += ("ground", "sky", "time")
MAX_NGRAM = 4  # words of the longest n-gram that CIDEr counts
BATCH = 32  # clips captioned at once
FORMAT = (64, 64, 17)


class BatchCaptioner(Protocol):
    """What captions several clips at once."""

    def caption_batch(self, videos: Tensor) -> list[str]:
        """Return a caption of each clip (B, 3, F, Y, X) in [-1, 1]."""
        ...


def true_values(scene: Scene) -> dict[str, set[str]]:
    """Return the true values of every attribute that a caption of a clip may state.

    Of the cubes of a stack, colours and shape count, but not the single cubes.
    """
    found = {name: {value} for name, value in attributes(scene).items()}
    for name in ("colour", "shape", "size", "material"):
        found[name] = {getattr(thing, name) for thing in scene.things}
    stacked = patients(scene) if scene.event == "topple" else []
    found["thing"] = {f"{thing.colour} {thing.shape}" for thing in scene.things if thing not in stacked}
    return found


def precision_recall(texts: Iterable[str], scenes: Iterable[Scene]) -> dict[str, dict[str, float | None]]:
    """Return precision and recall of English captions, by attribute; None where nothing is stated, or true."""
    counts = {name: [0, 0, 0] for name in SCORED_ATTRIBUTES}  # stated and true, stated, true
    for text, scene in zip(texts, scenes, strict=True):
        stated, true = read_caption(text), true_values(scene)
        for name, total in counts.items():
            mine, theirs = stated.get(name, set()), true.get(name, set())
            for place, number in enumerate((len(mine & theirs), len(mine), len(theirs))):
                total[place] += number
    return {
        name: {"precision": _share(both, stated), "recall": _share(both, true)}
        for name, (both, stated, true) in counts.items()
    }


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def cider(texts: Sequence[str], references: Sequence[Sequence[str]], sigma: float = 6.0) -> float:
    """Return the CIDEr-D (Vedantam et al. 2015, arXiv 1411.5726) of captions, given the references of each.

    It is 10 for captions equal to their references, if these have at least MAX_NGRAM words. N-grams in the references
    of few clips weigh more, those in the references of all clips nothing, so a single clip scores 0.
    """
    wanted = [[_ngrams(text) for text in some] for some in references]
    documents = Counter(ngram for some in wanted for ngram in set().union(*some))
    log_documents = math.log(max(1, len(wanted)))

    def weigh(ngrams: Counter) -> list[dict[tuple[str, ...], float]]:
        vectors: list[dict[tuple[str, ...], float]] = [{} for _ in range(MAX_NGRAM)]
        for ngram, count in ngrams.items():
            vectors[len(ngram) - 1][ngram] = count * (log_documents - math.log(max(1, documents[ngram])))
        return vectors

    def word_count(ngrams: Counter) -> int:
        return sum(count for ngram, count in ngrams.items() if len(ngram) == 1)

    def similarity(mine: dict, theirs: dict) -> float:
        dot = sum(min(value, theirs.get(ngram, 0.0)) * theirs.get(ngram, 0.0) for ngram, value in mine.items())
        norm = math.hypot(*mine.values()) * math.hypot(*theirs.values())
        return dot / norm if norm else 0.0

    scores = []
    for text, some in zip(texts, wanted, strict=True):
        own, found = _ngrams(text), []
        mine = weigh(own)
        for other in some:
            penalty = math.exp(-((word_count(own) - word_count(other)) ** 2) / (2 * sigma**2))
            by_length = [similarity(a, b) for a, b in zip(mine, weigh(other), strict=True)]
            found.append(10 * penalty * float(np.mean(by_length)))
        scores.append(np.mean(found))
    return float(np.mean(scores))


def _ngrams(text: str) -> Counter:
    """Count the n-grams of a text, of one to MAX_NGRAM words."""
    words = "".join(letter if letter.isalnum() or letter == "-" else " " for letter in text.lower()).split()
    return Counter(
        tuple(words[start : start + length])
        for length in range(1, MAX_NGRAM + 1)
        for start in range(len(words) - length + 1)
    )


def evaluate_captioner(captioner: BatchCaptioner, bucket: Bucket, clips: int | None = None) -> dict:
    """Return a captioner's scores on the first clips of a bucket, or on all: on those with one object, and on all."""
    numbers = range(min(clips or len(bucket), len(bucket)))
    texts: list[str] = []
    for start in range(0, len(numbers), BATCH):
        texts += captioner.caption_batch(bucket.load_clips(numbers[start : start + BATCH]))
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


def caption_bucket(captioner: BatchCaptioner, bucket: Bucket, path: Path, clips: int | None = None) -> list[str]:
    """Caption the first clips of a bucket, or all; return the captions, also written to `path` as JSON lines.

    Where `path` has lines already, it continues after them.
    """
    count = min(clips or len(bucket), len(bucket))
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    if len(whole) < count:
        whole = whole[: len(whole) // BATCH * BATCH]  # so that the batches are the same again
        path.write_text("".join(whole))
    texts = [json.loads(line) for line in whole]
    with open(path, "a") as file:
        for start in tqdm(range(len(texts), count, BATCH), "caption"):
            captions = captioner.caption_batch(bucket.load_clips(range(start, min(start + BATCH, count))))
            texts += captions
            file.write("".join(json.dumps(text) + "\n" for text in captions))
            file.flush()
    return texts[:count]


def main(args: list[str] | None = None) -> None:
    """Print a captioner's scores on held-out clips, or write its captions of any data set."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluation.captions", description=__doc__)
    parser.add_argument("captioner", type=Path, help="a captioner's folder")
    parser.add_argument("--data", type=Path, default=Path("data/first-test"), help="held-out clips of the world")
    parser.add_argument("--clips", type=int, help="how many of the first clips (default 1000; with --write, all)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write all captions to a .jsonl instead")
    arguments = parser.parse_args(args)
    captioner, bucket = load_coca(arguments.captioner), open_bucket(arguments.data, FORMAT)
    if arguments.write:
        caption_bucket(captioner, bucket, arguments.write, arguments.clips)
        return
    report = evaluate_captioner(captioner, bucket, arguments.clips or 1000)
    print(json.dumps(report, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
