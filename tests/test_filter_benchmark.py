"""Filters on drawn clips: what each must find, and what only looks like it; twins of what people reported."""

from fractions import Fraction

import cv2
import numpy as np
import pytest

from training.prepare.drawn_clips import (
    also_has,
    copies,
    draw_set,
    lookalikes,
    with_bars,
    with_cut,
    with_text,
    without_bars,
    without_cut,
    without_text,
)
from training.prepare.duplicates import find_duplicates, fingerprints
from training.prepare.filter_benchmark import ON_ALL, ON_THEIR_OWN, measure_filters
from training.prepare.flashes import THUMB_SIZE, without_flashes
from training.prepare.measures import letterbox_share, text_share


def grey(clip):
    return np.stack([cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in clip[::4]])


def rng_of(number):
    return np.random.default_rng([99, number])


@pytest.mark.parametrize("number", range(6))
def test_bars_are_found_and_night_lamp_stage_dusk_skyline_and_tunnel_have_none(number):
    clip = with_bars(rng_of(number), number)
    assert letterbox_share(grey(clip)) > 0.02
    assert letterbox_share(grey(without_bars(rng_of(number), number))) == 0
    assert letterbox_share(grey(np.zeros_like(clip))) == 0  # black from end to end
    one_bar = clip.copy()
    one_bar[:, clip.shape[1] // 2 :] = without_text(rng_of(number), 1)[:, :1, :1]
    assert letterbox_share(grey(one_bar)) == 0 or number % 3 != 0  # a dark sky is at one end only


def test_the_share_under_bars_is_exact():
    clip = without_text(rng_of(0), 4)
    clip[:, :20] = clip[:, -20:] = 0
    assert letterbox_share(grey(clip)) == pytest.approx(40 / clip.shape[1])


@pytest.mark.parametrize("number", range(12))
def test_letters_are_text_and_windows_fences_keys_bricks_and_blinds_are_not(number):
    assert text_share(grey(with_text(rng_of(number), number))) > 0.02
    assert text_share(grey(without_text(rng_of(number), number))) <= 0.02


@pytest.mark.parametrize("number", range(5))
def test_copies_are_duplicates_and_clips_of_one_layout_hue_or_frame_are_not(number):
    def duplicates(pair):
        prints = {name: fingerprints(list(clip[::2])) for name, clip in zip("ab", pair, strict=True)}
        hashes, colours = ({name: one[place] for name, one in prints.items()} for place in range(2))
        return find_duplicates(hashes, frozenset(), colours)

    assert len(duplicates(copies(rng_of(number), number))) == 1
    assert not duplicates(lookalikes(rng_of(number), number))


def test_flat_clips_of_near_greys_are_no_duplicates_and_equal_ones_are():
    def prints(level):
        return fingerprints([np.full((72, 128, 3), level, np.uint8)] * 8)

    both = {"a": prints(90), "b": prints(105), "c": prints(90)}
    hashes, colours = ({name: one[place] for name, one in both.items()} for place in range(2))
    assert find_duplicates(hashes, frozenset(), colours) == {"c"}


def test_a_fence_and_blinds_are_no_duplicates_though_a_hash_cannot_tell_them():
    posts, slats = (np.full((72, 128, 3), 150, np.uint8) for _ in "12")
    posts[10:50, ::6], slats[10:50:6] = 20, 20
    prints = {name: fingerprints([image] * 8) for name, image in (("a", posts), ("b", slats), ("c", posts))}
    hashes, colours = ({name: one[place] for name, one in prints.items()} for place in range(2))
    assert "b" in find_duplicates(hashes) and find_duplicates(hashes, frozenset(), colours) == {"c"}


def kept_cuts(clip, cuts, fps=24):
    thumbs = [cv2.resize(image, THUMB_SIZE, interpolation=cv2.INTER_AREA) for image in clip]
    return without_flashes(cuts, [Fraction(frame, fps) for frame in range(len(clip))], thumbs)


def flashed(begin, frames, level=250):
    clip = without_cut(rng_of(0), 4)  # one shot
    clip[:] = clip[:1]
    clip[begin : begin + frames] = level
    return clip


@pytest.mark.parametrize(("cuts", "frames"), [([30, 32], 2), ([32], 2), ([30], 2), ([30, 31], 1), ([30, 36], 6)])
def test_a_flash_is_no_cut_whether_its_begin_its_end_or_both_are_reported(cuts, frames):
    assert kept_cuts(flashed(30, frames), cuts) == []
    assert kept_cuts(flashed(30, frames, 0), cuts) == []


def test_cuts_stay_where_the_image_does_not_come_back():
    clip = with_cut(rng_of(1), 1)
    assert kept_cuts(clip, [32]) == [32]
    flash_between = with_cut(rng_of(4), 4)
    assert kept_cuts(flash_between, [32, 34]) == [32, 34]
    assert kept_cuts(flashed(30, 20), [30, 50]) == [30, 50]  # 0.8 s of white is a shot


def test_a_set_is_half_traps_and_its_names_and_properties_agree():
    drawn = list(draw_set(1))
    traps = [one for one in drawn if "-trap-" in one.name]
    assert len(drawn) == 18 == 2 * len(traps) == len({one.name for one in drawn})
    assert all(one.tries in one.has for one in drawn if "-true-" in one.name and one.tries)
    assert all(one.tries not in one.has for one in traps)
    assert also_has(0, 4) == ["letterbox"] and also_has(1, 3) == ["text"]


@pytest.mark.slow  # writes, cuts and scores 18 videos
def test_each_filter_finds_what_it_must_and_nothing_else_in_videos(tmp_path):
    report = measure_filters(tmp_path, draw_set(1, seed=3))
    assert report.clips == 18 and set(report.by_filter) == {*ON_ALL, *ON_THEIR_OWN}
    wrong = {name: counts[1:] for name, counts in report.by_filter.items() if counts.false or counts.missed}
    assert wrong == {}
    assert all(counts.precision == counts.recall == 1 and counts.true for counts in report.by_filter.values())
