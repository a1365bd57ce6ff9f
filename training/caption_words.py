"""The words of the captions that a model is trained on, for its folder (`captioning/learned_words.py`).

Training writes them with the model. For a model that is trained already, from its data set or the world's grammar:

    python -m training.caption_words runs/second/dit/model --data data/second
    python -m training.caption_words app/models/first --edition 1 --clips 4000 --unheard camera ground sky "time of day"
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

from captioning.learned_words import STOP_WORDS, LearnedWords, count_words
from training.dataset import Bucket, write_captions
from training.latent_dataset import LatentDataset
from training.manifest import MANIFEST_FILE, read_manifest
from training.world import words_en, words_zh
from training.world.scene import sample_scene

LEAST_DIFFERENCE = 0.002  # of the loss when an attribute's words are exchanged, for it to be heard
EXAMPLES = 12  # most frequent words that are named of captions of unknown content


def learned_words_of(buckets: Iterable[Bucket | LatentDataset]) -> LearnedWords:
    """Count the words of all captions of some datasets, with examples of what they show."""
    buckets = list(buckets)
    found = count_words(caption for bucket in buckets for caption in captions_of(bucket))
    world = all(isinstance(bucket, Bucket) for bucket in buckets)
    return LearnedWords(found.counts, world_examples(found) if world else frequent_words(found))


def frequent_words(learned: LearnedWords) -> dict[str, tuple[str, ...]]:
    """Return the most frequent English and Chinese words, as examples of captions of unknown content."""
    frequent = sorted(learned.counts, key=lambda word: (-learned.counts[word], word))
    content = [word for word in frequent if word not in STOP_WORDS and not word.isdecimal() and len(word) > 1]
    english, chinese = ([word for word in content if word.isascii() == ascii] for ascii in (True, False))
    return {name: tuple(words[:EXAMPLES]) for name, words in (("en", english), ("zh", chinese)) if words}


def unheard_attributes(report: Mapping[str, float]) -> tuple[str, ...]:
    """Return the attributes whose exchanged words raise the loss too little at every noise level of a report.

    Its keys are those of `training.train_dit.log_sensitivity`; without any, nothing is known to be unheard.
    """
    highest = dict[str, float]()
    for key, difference in report.items():
        if match := re.fullmatch(r"sensitivity_(.+)_[\d.]+", key):
            highest[match[1]] = max(difference, highest.get(match[1], -1.0))
    return tuple(name.replace("_", " ") for name, difference in highest.items() if difference < LEAST_DIFFERENCE)


def captions_of(bucket: Bucket | LatentDataset) -> Iterator[str]:
    """Yield each caption of a dataset, once per clip."""
    for clip in bucket.captions:
        yield from dict.fromkeys(text for texts in clip.values() for text in texts)


def world_examples(learned: LearnedWords) -> dict[str, tuple[str, ...]]:
    """Return the usual words for shapes, and by turns colours and events of the world, as far as they are learned."""
    shapes, colours, events = (words_en.WORDS[name] for name in ("shape", "colour", "event"))
    verbs = [words_en.inflect(phrases[0], "participle").split()[0] for phrases in events.values()]
    english = [f"{phrases[0]}s" for phrases in shapes.values()]
    english += by_turns([phrases[0] for phrases in colours.values()], verbs)
    shapes, colours, events = (words_zh.WORDS[name] for name in ("shape", "colour", "event"))
    moves = [re.sub("{.*?}|~|，.*", "", phrases[0]) for phrases in events.values()]
    chinese = [phrases[0] for phrases in shapes.values()]
    chinese += by_turns([phrases[0] for phrases in colours.values()], moves)
    chosen = {"en": english, "zh": chinese}
    return {
        name: tuple(word for word in dict.fromkeys(words) if not learned.unlearned(word))
        for name, words in chosen.items()
    }


def by_turns(one: list[str], other: list[str]) -> list[str]:
    """Return the items of two lists by turns."""
    return [item for pair in zip_longest(one, other) for item in pair if item]


def world_captions(edition: int, clips: int) -> Iterator[str]:
    """Write the captions of clips of an edition of the world, as its training split has them."""
    for index in range(clips):
        for texts in write_captions(sample_scene(0, "train", index, edition=edition)).values():
            yield from texts


def main() -> None:
    """Write the learned words into the folder of a model."""
    parser = argparse.ArgumentParser(prog="python -m training.caption_words", description=__doc__)
    parser.add_argument("model", type=Path, help="folder of the model")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, nargs="+", help="folders of its training data")
    source.add_argument("--edition", type=int, help="the edition of the world that its captions were written of")
    parser.add_argument("--clips", type=int, default=6000, help="clips of that edition (default: %(default)s)")
    parser.add_argument("--unheard", nargs="*", default=[], help="attributes that were measured to change nothing")
    args = parser.parse_args()
    if args.edition:
        found = count_words(world_captions(args.edition, args.clips))
        learned = LearnedWords(found.counts, world_examples(found))
    elif any((folder / MANIFEST_FILE).exists() for folder in args.data):
        rows = (row for folder in args.data for row in read_manifest(folder) if not row.dropped)
        found = count_words(caption.text for row in rows for caption in row.captions)
        learned = LearnedWords(found.counts, frequent_words(found))
    else:
        paths = [path for folder in args.data for path in sorted(folder.glob("*/captions.jsonl"))]
        learned = learned_words_of(Bucket(path.parent) for path in paths)
    replace(learned, unheard=tuple(args.unheard)).save(args.model)
    print(f"{args.model} has {len(learned.counts)} learned words")


if __name__ == "__main__":
    main()
