"""`longtake prepare clips` with films as people have them: clips are upright, square, progressive and in time."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from tests.test_media import picture, set_display_matrix, write_film
from tests.test_prepare import encode_video, run_of
from training.prepare.clips import cut_clips
from training.prepare.journal import clip_rows
from vae.video.pixels import from_uint8, to_uint8
from vae.video.read import read_video


def prepared_rows(tmp_path):
    found = cut_clips(run_of(tmp_path / "raw", tmp_path))
    assert not found["failed"]
    return {row.source: row for row in clip_rows(tmp_path / "done")}


@pytest.fixture
def raw(tmp_path):
    (tmp_path / "raw").mkdir()
    return tmp_path / "raw"


def test_motion_of_a_video_of_variable_rate_begins_when_it_does_and_keeps_its_speed(raw, tmp_path):
    still, moving = picture(0, 32, 96), [picture(number, 32, 96) for number in range(30)]
    pixels = from_uint8(torch.from_numpy(np.stack([still, *moving]))).permute(3, 0, 1, 2)
    times = [0] + [200 + round(number * 10 / 3) for number in range(30)]  # hundredths of a second
    encode_video(raw / "screen.mp4", pixels, times, None, {"x264-params": "scenecut=0"})
    row = prepared_rows(tmp_path)["screen.mp4"]
    assert row.fps == pytest.approx(30, rel=0.02) and row.frames == pytest.approx(90, abs=3) and not row.copied
    red = to_uint8(read_video(tmp_path / "done" / row.file).video)[0, :, 18:22].float().mean(1)
    begin = [int((red[frame] > 150).nonzero().min()) for frame in range(len(red))]
    assert max(begin[:58]) - begin[0] <= 1 and begin[85] - begin[61] == pytest.approx(2 * 24, abs=6)


def test_clips_of_films_that_need_conversion_are_encoded_anew_as_they_are_shown(raw, tmp_path):
    pictures = [picture(number) for number in range(16)]
    write_film(raw / "tape.mp4", pictures, fps=8, tags={"sample_aspect_ratio": Fraction(2)})
    write_film(raw / "field.mp4", pictures, fps=8, options={"crf": "4", "x264-params": "interlaced=1:tff=1"})
    for name, matrix in (("mirror.mp4", (-1, 0, 0, 1)), ("turned.mp4", (0, 1, -1, 0))):
        set_display_matrix(write_film(raw / name, pictures, fps=8), matrix)
    rows = prepared_rows(tmp_path)
    assert {name: (row.columns, row.rows, row.frames, row.copied) for name, row in rows.items()} == {
        "tape.mp4": (96, 32, 16, False),
        "field.mp4": (48, 32, 16, False),
        "mirror.mp4": (48, 32, 16, False),
        "turned.mp4": (32, 48, 16, True),
    }
    for name, row in rows.items():
        clip, source = (read_video(path).video for path in (tmp_path / "done" / row.file, raw / name))
        assert clip.shape == source.shape and (clip - source).abs().mean() < 0.03, name


def test_films_of_cameras_and_tapes_become_clips(raw, tmp_path):
    for count, (name, muxer, codec) in enumerate(
        [
            *(("a.MTS", "mpegts", "libx264"), ("b.ts", "mpegts", "libx264"), ("c.mpg", "mpeg", "mpeg2video")),
            *(("d.flv", "flv", "libx264"), ("e.3gp", "3gp", "libx264")),
        ]
    ):
        pictures = [picture(number, 32, 96) for number in range(30 + count)]  # of other lengths, so of other contents
        options = {"b": "3M"} if codec == "mpeg2video" else None
        write_film(raw / name, pictures, codec, fps=25, options=options, format=muxer)
    rows = prepared_rows(tmp_path)
    assert {name: (row.frames, row.fps) for name, row in rows.items()} == {
        name: (30 + count, 25.0) for count, name in enumerate(["a.MTS", "b.ts", "c.mpg", "d.flv", "e.3gp"])
    }
