"""Measure the precision and recall of each filter of `longtake prepare` on clips drawn by `drawn_clips.py`.

python -m training.prepare.filter_benchmark [--clips 18] [--seed 0] [--show]
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from training.manifest import read_manifest
from training.prepare.clips import ClipsRun, cut_clips
from training.prepare.drawn_clips import FPS, Drawn, draw_set
from training.prepare.filter import FilterRun, filter_clips
from training.prepare.thresholds import THRESHOLDS
from vae.video.pixels import from_uint8
from vae.video.write import write_video

ON_ALL = ("letterbox", "text", "cut")  # judged on all clips
ON_THEIR_OWN = ("duplicate", "motion", "sharpness", "brightness", "clipped")  # judged on the clips that try them


class FilterCounts(NamedTuple):
    """How often a filter was right: true positives, false positives and false negatives, by name."""

    true: list[str]
    false: list[str]
    missed: list[str]

    @property
    def precision(self) -> float:
        """Share of what was found that has the property; 1 where nothing was found."""
        return len(self.true) / max(1, len(self.true) + len(self.false)) if self.true or self.false else 1.0

    @property
    def recall(self) -> float:
        """Share of what has the property that was found."""
        return len(self.true) / max(1, len(self.true) + len(self.missed))


@dataclass(frozen=True)
class FilterReport:
    """The counts of every filter, and how many clips were drawn."""

    clips: int
    by_filter: dict[str, FilterCounts]


def measure_filters(folder: Path, drawn: Iterable[Drawn], engine: str = "serial") -> FilterReport:
    """Write drawn clips as videos, prepare them, and compare what each filter finds with what was drawn.

    A video is found to have a cut where it becomes several clips. Of a pair of duplicates one must be found.
    """
    (folder / "raw").mkdir()
    labels: dict[str, Drawn] = {}
    for one in drawn:
        pixels = from_uint8(torch.from_numpy(one.clip).permute(3, 0, 1, 2))
        write_video(folder / "raw" / f"{one.name}.mp4", pixels, FPS)
        labels[one.name] = one._replace(clip=one.clip[:0])
    cut_clips(ClipsRun(str(folder / "raw"), folder / "done", engine=engine))
    filter_clips(FilterRun(folder / "done", engine=engine))
    scores: dict[str, list[dict[str, float]]] = defaultdict(list)
    for row in read_manifest(folder / "done"):
        scores[row.source.removesuffix(".mp4")].append(row.scores)
    report = {}
    for name in (*ON_ALL, *ON_THEIR_OWN):
        counts = FilterCounts([], [], [])
        for clip, one in labels.items():
            if name not in ON_ALL and one.tries != name:
                continue
            own = scores[clip] + (scores[one.original] if name == "duplicate" else [])
            found = len(own) > 1 if name == "cut" else any(rejects(name, score) for score in own)
            if found or name in one.has:
                (counts.missed if not found else counts.true if name in one.has else counts.false).append(clip)
        report[name] = counts
    return FilterReport(len(labels), report)


def rejects(name: str, scores: dict[str, float]) -> bool:
    """Return whether scores fail the default threshold of a filter."""
    threshold = THRESHOLDS[name]
    return not threshold.lowest <= scores[name] <= threshold.highest


if __name__ == "__main__":
    parser = argparse.ArgumentParser("training.prepare.filter_benchmark", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clips", type=int, default=18, help="clips of each kind (default 18, 216 in all)")
    parser.add_argument("--seed", type=int, default=0, help="of the set (default 0)")
    parser.add_argument("--show", action="store_true", help="name what was found wrongly and what was missed")
    parser.add_argument("--folder", type=Path, help="keep the videos here (default a temporary folder)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = arguments.folder or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        result = measure_filters(place, draw_set(arguments.clips, arguments.seed), "pool")
    print(f"{result.clips} clips\n{'filter':12} {'precision':>9} {'recall':>7} {'found':>6} {'drawn':>6}")
    for filter_name, counts in result.by_filter.items():
        drawn_clips, found_clips = len(counts.true) + len(counts.missed), len(counts.true) + len(counts.false)
        print(f"{filter_name:12} {counts.precision:9.2f} {counts.recall:7.2f} {found_clips:6} {drawn_clips:6}")
        if arguments.show:
            print(
                "".join(
                    f"    {kind}: {' '.join(names)}\n"
                    for kind, names in counts._asdict().items()
                    if kind != "true" and names
                ),
                end="",
            )
