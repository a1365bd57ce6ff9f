"""Near-duplicates: copies of a clip are found however they were made, and other clips are not."""

import numpy as np
import pytest
import torch.nn.functional as F
from PIL import Image

from training.manifest import read_manifest
from training.prepare.clips import ClipsRun, cut_clips
from training.prepare.duplicates import (
    HASH_BYTES,
    MAX_DISTANCE,
    candidate_pairs,
    find_duplicates,
    hamming_distance,
    perceptual_hash,
)
from training.prepare.filter import FilterRun, filter_clips
from training.world import make_clips
from vae.video.pixels import from_uint8
from vae.video.write import write_video

pytestmark = pytest.mark.slow


def scaled(clip, factor):
    return F.interpolate(clip.transpose(0, 1), scale_factor=factor, mode="area").transpose(0, 1)


COPIES = {
    "encoded again.webm": lambda clip: clip,
    "small.mp4": lambda clip: scaled(clip, 0.75),
    "bright.mp4": lambda clip: (clip * 1.1 + 0.06).clamp(-1, 1),
    "starts later.mp4": lambda clip: clip[:, 8:],
    "starts a little later.mp4": lambda clip: clip[:, 5:],
    "ends early.mp4": lambda clip: clip[:, :-8],
    "cropped.mp4": lambda clip: clip[:, :, 2:-2, 2:-2],  # 4 of 80 lines
}


@pytest.fixture(scope="module")
def world_clips():
    """Clips of the world, 4 seconds each."""
    made = make_clips(range(12), split="test", workers=1, rows=80, columns=80, frames=33, fps=8)
    return [from_uint8(clip.video) for clip in made]


def test_copies_are_found_and_other_clips_are_not(world_clips, tmp_path):
    (tmp_path / "raw").mkdir()
    for number, clip in enumerate(world_clips):
        write_video(tmp_path / "raw" / f"{number}.mp4", clip, 8)
    for number in (0, 1, 2):
        for name, make_copy in COPIES.items():
            write_video(tmp_path / "raw" / f"{number} {name}", make_copy(world_clips[number]), 8)
    cut_clips(ClipsRun(str(tmp_path / "raw"), tmp_path / "done", detector="content", engine="serial"))
    filter_clips(FilterRun(tmp_path / "done", engine="serial"))
    rows = read_manifest(tmp_path / "done")
    assert len(rows) == len(world_clips) + 3 * len(COPIES)  # one shot each
    kept = [row.source for row in rows if not row.scores["duplicate"]]
    assert len(kept) == len(world_clips) == len({name.split(".")[0].split(" ")[0] for name in kept})
    trimmed = {row.source for row in rows if row.frames < 33}
    assert len(trimmed) == 9 and not trimmed & set(kept)  # the longest one is kept


def test_a_copy_added_later_is_found_and_no_clip_is_scored_twice(world_clips, tmp_path):
    (tmp_path / "raw").mkdir()
    cut, run = ClipsRun(str(tmp_path / "raw"), tmp_path / "done", engine="serial"), FilterRun(tmp_path / "done")
    for number in (0, 1):
        write_video(tmp_path / "raw" / f"{number}.mp4", world_clips[number], 8)
    cut_clips(cut)
    assert filter_clips(run)["duplicate"]["dropped"] == 0
    journal = tmp_path / "done" / "journal" / "scores.jsonl"
    before = journal.read_text()
    write_video(tmp_path / "raw" / "later.mp4", world_clips[1][:, 6:], 8)
    cut_clips(cut)
    assert filter_clips(run)["duplicate"]["dropped"] == 1
    assert journal.read_text().startswith(before) and "later.mp4" in {
        row.source for row in read_manifest(tmp_path / "done") if row.scores["duplicate"]
    }
    assert journal.read_text().count("\n") == before.count("\n") + 2  # its scores, and that it is a duplicate


def hashes_of(clip):
    return np.stack([perceptual_hash(frame.mean(0).numpy()) for frame in clip.transpose(0, 1)])


def test_an_image_is_no_duplicate_of_the_video_that_it_is_from(world_clips):
    video = hashes_of(world_clips[0])
    assert find_duplicates({"video": video, "image": video[3:4]}) == set()
    assert find_duplicates({"one": video[3:4], "video": video, "other": video[3:4]}) == {"other"}


def test_random_clips_are_no_candidates_and_copies_are():
    rng = np.random.default_rng(0)
    random = [rng.integers(0, 256, (17, HASH_BYTES), np.uint8) for _ in range(1000)]
    copies = [one[5:] for one in random[:10]]
    found = list(candidate_pairs(random + copies))
    assert {(one, other) for one, other, _ in found} == {(number, 1000 + number) for number in range(10)}


def test_similar_images_have_near_hashes_and_different_ones_far_hashes():
    rng = np.random.default_rng(0)
    images = [(rng.random((6, 8)) * 255).astype(np.uint8) for _ in range(8)]
    large = [np.asarray(Image.fromarray(one).resize((160, 120), Image.Resampling.BICUBIC)) for one in images]
    noisy = [np.clip(one + rng.normal(0, 6, one.shape), 0, 255).astype(np.uint8) for one in large]
    near = [hamming_distance(perceptual_hash(a), perceptual_hash(b)) for a, b in zip(large, noisy, strict=True)]
    far = [hamming_distance(perceptual_hash(a), perceptual_hash(b)) for n, a in enumerate(large) for b in large[:n]]
    assert max(near) <= MAX_DISTANCE < min(far), (max(near), min(far))


def test_of_two_copies_the_one_that_passes_is_kept_even_if_it_is_shorter():
    rng = np.random.default_rng(0)
    whole = rng.integers(0, 256, (24, HASH_BYTES), dtype=np.uint8)
    hashes = {"a": whole, "b": whole[4:20], "c": rng.integers(0, 256, (24, HASH_BYTES), dtype=np.uint8)}
    assert find_duplicates(hashes) == {"b"} and find_duplicates(hashes, {"a"}) == {"a"}
    assert find_duplicates(hashes, {"a", "b"}) == {"b"}  # neither passes
    assert find_duplicates({"b": whole, "a": whole}) == {"b"} == find_duplicates({"a": whole, "b": whole})
