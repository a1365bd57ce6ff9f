"""Given clips and pictures: every frame is kept, at any length; their own shape and sound; what is lost is said."""

from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image

from app.provenance.verification import verify
from app.queue.jobs import Queue
from app.queue.worker import run_worker
from dit.estimate import CostModel
from dit.given import ALONE, FIRST, LAST, MIDDLE, padding_frames, place_latents
from dit.inputs import load_stored, read_soundtrack, save_latents
from dit.modes import MODES
from dit.notes import input_notes
from dit.pipeline import Pipeline
from dit.request import Moment, Request
from dit.samples import Sample, trim_frames
from vae.video.read import read_sound, read_video
from vae.video.sound import SAMPLE_RATE
from vae.video.write import write_image, write_video

LENGTHS = (1, 3, 17, 18, 19, 20)  # frames; the stride is 4


@pytest.fixture(scope="module")
def pipeline(tiny_model):
    return Pipeline.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with clips of LENGTHS frames, named after them, each with sound that rises from frame to frame."""
    folder = tmp_path_factory.mktemp("given")
    generator = torch.Generator().manual_seed(0)
    for frames in LENGTHS:
        video = torch.rand(3, frames, 64, 64, generator=generator) * 2 - 1
        write_video(folder / f"{frames}.mkv", video, 8, sound=level_of_frames(frames))
    return folder


def level_of_frames(frames: int) -> torch.Tensor:
    """Return a tone whose level in frame n is (n + 1) / 32."""
    levels = ((torch.arange(frames) + 1) / 32).repeat_interleave(SAMPLE_RATE // 8)
    tone = torch.sin(torch.arange(len(levels)) * 2 * torch.pi * 480 / SAMPLE_RATE)
    return (levels * tone).expand(2, -1).contiguous()


def frames_of_sound(sound: torch.Tensor | None) -> list[int]:
    """Return the frame whose sound is heard in the middle of each frame, from 1 on; 0 is silence."""
    assert sound is not None
    pieces = sound[0].split(SAMPLE_RATE // 8)
    return [round(float(piece[1000:-1000].abs().max()) * 32) for piece in pieces if len(piece) > 3000]


@pytest.mark.parametrize("frames", range(1, 14))
def test_a_clip_of_any_length_is_padded_where_nobody_sees_it(frames):
    found = {place: padding_frames(frames, place, 4) for place in (FIRST, ALONE, LAST, MIDDLE)}
    for place, (before, after) in found.items():
        assert (before + frames + after) % 4 == 1 and before + after <= 4, place
    assert found[FIRST][1] == found[MIDDLE][1] == found[ALONE][0] == 0 and found[LAST][0] == 1


def edit(path, **changes):
    return Request(**{"mode": "edit", "prompt": "a ball", "clip": str(path), "strength": 0.0, "steps": 1} | changes)


CASES = {  # request of a clip, frames that it adds before and after
    "edit": ({}, 0, 0),
    "retake": ({"mode": "retake", "window": (0.0, 0.1)}, 0, 0),
    "inpaint": ({"mode": "inpaint", "box": (0, 0, 16, 16)}, 0, 0),
    "outpaint": ({"mode": "outpaint", "box": (16, 16, 48, 48)}, 0, 0),
    "after": ({"mode": "extend", "side": "after", "seconds": 1.0}, 0, 8),
    "before": ({"mode": "extend", "side": "before", "seconds": 1.0}, 9, 0),
}


@pytest.mark.parametrize(
    ("name", "frames"),
    [("edit", 20), ("retake", 19), ("inpaint", 18), ("outpaint", 20), ("after", 20), ("before", 17), ("before", 18)],
)
def test_every_frame_of_a_clip_is_kept_with_its_sound_where_it_lies(pipeline, files, name, frames):
    changes, before, after = CASES[name]
    request = pipeline.resolve(edit(files / f"{frames}.mkv", **changes))
    canvas = pipeline.paint(request)
    shown = pipeline.vae.frame_count(canvas.latent_frames) - sum(canvas.trim)
    assert shown == before + frames + after
    cost_model = CostModel.of(pipeline)
    assert cost_model.cost(request).frames == shown and cost_model.seconds(request) == shown / 8
    sample = Sample.of(request, canvas.clean_latents, canvas)
    with torch.no_grad():
        assert pipeline.pixels(sample).shape[1] == shown
    sound = read_soundtrack(sample.sound, shown / 8)
    assert frames_of_sound(sound) == [0] * before + list(range(1, frames + 1)) + [0] * after


def test_the_end_of_a_clip_is_on_whole_latent_frames_when_it_is_extended_after(pipeline, files):
    video = read_video(files / "20.mkv").video
    canvas = pipeline.paint(pipeline.resolve(edit(files / "20.mkv", mode="extend", side="after", seconds=1.0)))
    padded = torch.cat([video[:, :1], video], 1)
    assert canvas.trim == (1, 0) and torch.equal(canvas.clean_latents[:, :6], pipeline.vae.encode(padded[None])[0])
    assert not canvas.denoise_mask[:6].any() and canvas.denoise_mask[6:].all()
    canvas = pipeline.paint(pipeline.resolve(edit(files / "18.mkv", mode="extend", side="before", seconds=1.0)))
    video = read_video(files / "18.mkv").video
    padded = torch.cat([video[:, :1], video, video[:, -1:], video[:, -1:]], 1)
    assert canvas.trim == (0, 2) and torch.equal(
        canvas.clean_latents[:, 3:], pipeline.vae.encode(padded[None])[0, :, 1:]
    )


def test_a_transition_and_a_storyboard_keep_the_sound_of_each_clip_in_its_place(pipeline, files):
    one, two = str(files / "18.mkv"), str(files / "20.mkv")
    request = Request(mode="connect", prompt="x", clip=one, other=two, seconds=1.0, steps=1)
    (sample,) = pipeline.generate([request])
    assert pipeline.pixels(sample).shape[1] == 18 + 8 + 20
    heard = frames_of_sound(read_soundtrack(sample.sound, 46 / 8))
    assert heard == [*range(1, 19), *[0] * 8, *range(1, 21)]
    moments = (Moment(0, "a", clip=one), Moment(1, "b", clip=two), Moment(3.125, "c"))
    canvas = pipeline.paint(pipeline.resolve(Request(mode="storyboard", seconds=4.125, moments=moments)))
    heard = frames_of_sound(read_soundtrack(canvas.sound, 33 / 8))
    assert heard[:5] == [1, 2, 3, 4, 5] and heard[5:25] == list(range(1, 21)) and not any(heard[25:])


def test_a_recut_keeps_the_sound_of_its_window(pipeline, files):
    request = Request(mode="recut", prompt="x", clip=str(files / "20.mkv"), window=(0.6, 1.5), seconds=3.0)
    canvas = pipeline.paint(pipeline.resolve(request))
    kept = (canvas.denoise_mask.flatten(1).amax(1) == 0).nonzero().flatten()
    begin, end = 1 + (int(kept[0]) - 1) * 4, 1 + int(kept[-1]) * 4
    heard = frames_of_sound(read_soundtrack(canvas.sound, 25 / 8))
    assert heard == [0] * begin + list(range(2, 2 + end - begin)) + [0] * (25 - end)


def test_a_clip_of_few_frames_may_follow_others(pipeline, files):
    for frames in (1, 3):
        canvas = pipeline.paint(
            pipeline.resolve(edit(files / f"{frames}.mkv", mode="extend", side="both", seconds=1.0))
        )
        assert canvas.denoise_mask[:3].all() and not canvas.denoise_mask[3:4].any() and canvas.denoise_mask[4:].all()


def test_stored_latents_are_used_where_their_padding_is_not_shown(pipeline, files, tmp_path):
    clip = tmp_path / "clip.mkv"
    clip.write_bytes((files / "20.mkv").read_bytes())
    latents = torch.randn(4, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    save_latents(clip, latents, pipeline.vae, (1, 0))
    stored = load_stored(clip, pipeline.vae)
    assert stored is not None and stored.trim == (1, 0) and torch.equal(stored.latents, latents)
    after = pipeline.paint(pipeline.resolve(edit(clip, mode="extend", side="after", seconds=1.0)))
    assert torch.equal(after.clean_latents[:, :6], latents) and after.trim == (1, 0)
    both = pipeline.paint(pipeline.resolve(edit(clip, mode="extend", side="both", seconds=1.0)))
    assert not torch.equal(both.clean_latents[:, 3:8], latents[:, 1:])  # from the file: the padding would be shown
    assert place_latents(latents, FIRST, 4, (0, 1)) is None and place_latents(latents, MIDDLE, 4, (0, 1)) is None
    last = place_latents(latents, LAST, 4, (0, 1))
    assert last is not None and (last.lead, last.tail, last.frames) == (-1, 1, 20)


@pytest.mark.parametrize("lead", [0, 3, 6])
@pytest.mark.parametrize("tail", [0, 2, 5])
def test_frames_are_trimmed_at_both_ends_whatever_the_pieces(lead, tail):
    clip = torch.arange(20.0).expand(3, 1, 1, 20).transpose(1, 3)
    for size in (1, 4, 7, 20):
        shown = torch.cat(list(trim_frames(clip.split(size, 1), lead, tail)), 1)
        assert torch.equal(shown, clip[:, lead : 20 - tail])


def test_without_a_size_a_given_picture_or_clip_has_the_nearest_trained_shape(pipeline, files, tmp_path):
    tall = tmp_path / "tall.png"
    write_image(tall, torch.zeros(3, 160, 96))
    request = pipeline.resolve(Request(mode="image-to-video", prompt="x", image=str(tall)))
    assert request.size == (48, 64) and request.seconds == 1.125  # what was trained at that size
    assert input_notes(request, MODES[request.mode]) == [
        "tall.png (96x160): it is cropped at its center to 96x128; it is scaled to 48x64"
    ]
    (tmp_path / "scan").write_bytes(tall.read_bytes())  # what an image is does not depend on its name
    assert pipeline.resolve(
        replace(request, size=None, seconds=None, image=str(tmp_path / "scan"), hashes=None)
    ).size == (48, 64)
    longer = Request(mode="image-to-video", prompt="x", image=str(tall), seconds=2.125)
    assert pipeline.resolve(longer).size == (64, 64)  # the only one with such clips
    chosen = replace(longer, size=(64, 64))
    assert pipeline.resolve(chosen).size == (64, 64)
    square = pipeline.resolve(edit(files / "20.mkv"))
    assert square.size == (64, 64) and not input_notes(square, MODES["edit"])


def test_what_is_resampled_dropped_or_shown_on_black_is_said(pipeline, files, tmp_path):
    write_video(tmp_path / "fast.mp4", torch.zeros(3, 48, 64, 96), 24, sound=level_of_frames(16))
    request = pipeline.resolve(edit(tmp_path / "fast.mp4", size=(64, 64)))
    (note,) = input_notes(request, MODES["edit"], ".gif")
    assert note == (
        "fast.mp4 (96x64): it is cropped at its center to 64x64; its 24 frames a second are read at 8; "
        "its sound is left out, because a .gif file has none"
    )
    (note,) = input_notes(request, MODES["edit"])
    assert "sound" not in note
    cut = np.zeros((64, 64, 4), np.uint8)
    Image.fromarray(cut).save(tmp_path / "cut.png")
    request = pipeline.resolve(Request(mode="image-to-video", prompt="x", image=str(tmp_path / "cut.png")))
    assert input_notes(request, MODES[request.mode]) == ["cut.png (64x64): its transparent parts are shown on black"]


@pytest.mark.slow  # whole commands
@pytest.mark.parametrize(("suffix", "codec"), [(".mp4", "aac"), (".webm", "opus"), (".mkv", "flac"), (".gif", None)])
def test_a_file_has_its_inputs_sound_after_it_was_signed_and_says_what_it_lacks(
    longtake, tiny_model, files, tmp_path, suffix, codec
):
    output = tmp_path / f"longer{suffix}"
    code, _, errors = longtake(
        *("extend", "a ball", "--clip", files / "20.mkv", "--seconds", "0.5", "--steps", "1"),
        *("--model", tiny_model, "-o", output),
    )
    assert code == 0, errors
    assert verify(output).state in ("trusted", "valid")
    with av.open(str(output)) as container:
        assert [stream.codec_context.name for stream in container.streams.audio] == ([codec] if codec else [])
    assert read_video(output).video.shape[1] == 24
    if codec is None:
        assert "longtake: 20.mkv (64x64): its sound is left out, because a .gif file has none" in errors
    else:
        heard = read_sound(output)
        assert heard.shape[1] == pytest.approx(3 * SAMPLE_RATE, abs=1024) and "left out" not in errors
        found, wanted = frames_of_sound(heard)[:23], [*range(1, 21), 0, 0, 0]
        assert max(abs(one - other) for one, other in zip(found, wanted, strict=True)) <= 1


@pytest.mark.slow  # a worker, which loads a model
def test_a_job_says_what_its_worker_did_with_the_inputs(tiny_model, tmp_path):
    write_video(tmp_path / "fast.mp4", torch.zeros(3, 60, 64, 64), 24)
    queue = Queue(tmp_path / "queue")
    request = edit(tmp_path / "fast.mp4", model=str(tiny_model))
    (job,) = queue.submit([request])
    run_worker(queue, until_empty=True)
    done = queue.job(job.id)
    assert done.state == "done", done.message
    assert "fast.mp4 (64x64): its 24 frames a second are read at 8" in done.message
    assert read_video(done.output).video.shape[1] == 20


def test_sound_begins_with_the_first_frame_and_gaps_are_silent(tmp_path):
    path = tmp_path / "late.mkv"
    with av.open(str(path), "w") as out:
        film, track = out.add_stream("libx264", rate=8), out.add_stream("flac", rate=SAMPLE_RATE)
        film.width, film.height, film.pix_fmt = 32, 32, "yuv420p"
        track.codec_context.layout = "mono"
        for number in range(16):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))
            frame.pts, frame.time_base = number, Fraction(1, 8)
            out.mux(film.encode(frame))
        for begin in (0.5, 1.25):  # seconds; a quarter of a second each
            samples = np.full((1, SAMPLE_RATE // 4), 2**14, np.int16)
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.sample_rate, frame.pts = SAMPLE_RATE, round(begin * SAMPLE_RATE)
            frame.time_base = Fraction(1, SAMPLE_RATE)
            out.mux(track.encode(frame))
        for stream in (film, track):
            out.mux(stream.encode(None))
    sound = read_sound(path)
    heard = [round(float(sound[0, round(at * SAMPLE_RATE)]), 1) for at in (0.25, 0.6, 1.0, 1.4)]
    assert heard == [0.0, 0.5, 0.0, 0.5] and read_sound(path, 0.6).shape[1] == round(0.6 * SAMPLE_RATE)
