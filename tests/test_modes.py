"""Every mode from files to latents, on a tiny model: kept latents stay, the rest is generated, at any length."""

import json
from dataclasses import replace

import pytest
import torch

from dit.canvas import prompt_weights
from dit.modes import MODES
from dit.pipeline import Pipeline
from dit.request import Moment, Request, RequestError
from dit.storyboard import read_storyboard
from vae.video.read import read_image, read_video
from vae.video.write import write_image, write_video


@pytest.fixture(scope="module")
def pipeline(tiny_model):
    return Pipeline.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Write two clips of 17 frames, an image and a mask of the right half; return their folder."""
    folder = tmp_path_factory.mktemp("files")
    time, row, column = torch.meshgrid(torch.arange(17.0), torch.arange(64.0), torch.arange(64.0), indexing="ij")
    for name, speed in (("one.mkv", 2), ("two.mkv", -1)):
        ball = ((row - 32) ** 2 + (column - 32 - speed * (time - 8)) ** 2 < 150).float() * 2 - 1
        write_video(folder / name, torch.stack([ball, -ball, row / 32 - 1]), 8)
    write_image(folder / "still.png", torch.rand(3, 64, 64) * 2 - 1)
    write_image(folder / "mask.png", ((column[:1] >= 32).float() * 2 - 1).expand(3, -1, -1))
    return folder


def requests(files) -> dict[str, Request]:
    """Return a request of every mode, with the files that it reads, by mode."""
    one, two, still = (str(files / name) for name in ("one.mkv", "two.mkv", "still.png"))
    special = {
        "text-to-image": {},
        "image-to-video": {"image": still},
        "keyframes": {"keyframes": ((0.0, still), (1.5, still)), "seconds": 2.125},
        "extend": {"clip": one, "side": "both", "seconds": 1.0},
        "loop": {"seconds": 2.0},
        "connect": {"clip": one, "other": two, "seconds": 1.0},
        "edit": {"clip": one, "strength": 0.5},
        "remix": {"clip": one},
        "retake": {"clip": one, "window": (0.5, 1.0)},
        "inpaint": {"clip": one, "mask": str(files / "mask.png")},
        "outpaint": {"clip": one, "box": (16, 16, 48, 48)},
        "recut": {"clip": one, "window": (0.6, 1.5), "seconds": 3.0},
        "storyboard": {"moments": (Moment(0, "a ball"), Moment(1, "a cube", image=still)), "seconds": 2.125},
        "long": {"seconds": 4.0},
    }
    return {
        name: Request(mode=name, prompt="" if name == "storyboard" else "a red ball", seed=1, **special.get(name, {}))
        for name in MODES
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", MODES)
def test_kept_latents_come_out_bit_identical_and_the_rest_is_generated(pipeline, files, name):
    request = pipeline.resolve(requests(files)[name])
    canvas = pipeline.paint(request)
    (sample,) = pipeline.generate([request])
    kept = (canvas.denoise_mask == 0).expand_as(canvas.clean_latents)
    assert not canvas.periodic or not kept.any()
    if not canvas.periodic:
        assert torch.equal(sample.latents[kept], canvas.clean_latents[kept])
        assert not torch.equal(sample.latents[~kept], canvas.clean_latents[~kept])
    frames = pipeline.pixels(sample)
    decoded = 4 * canvas.latent_frames if canvas.periodic else pipeline.vae.frame_count(canvas.latent_frames)
    assert frames.shape[1] == decoded - sum(canvas.trim)
    assert frames.isfinite().all() and frames.abs().max() <= 1


@pytest.mark.parametrize("name", MODES)
def test_a_request_of_any_mode_makes_the_same_clip_again_from_its_metadata(pipeline, files, name):
    (sample,) = pipeline.generate([requests(files)[name]])
    (again,) = pipeline.generate([Request.from_json(sample.request.to_json())])
    assert torch.equal(sample.latents, again.latents)


def test_strength_0_returns_the_clip_and_strength_1_ignores_it(pipeline, files):
    edit = requests(files)["edit"]
    clip = pipeline.paint(pipeline.resolve(edit)).clean_latents
    latents = lambda request: next(iter(pipeline.generate([request]))).latents
    assert torch.equal(latents(replace(edit, strength=0.0)), clip)
    assert torch.equal(latents(replace(edit, strength=1.0)), latents(Request(prompt="a red ball", seed=1)))
    errors = [float((latents(replace(edit, strength=s)) - clip).detach().square().mean()) for s in (0.2, 0.6, 1.0)]
    assert errors == sorted(errors)


def test_a_clip_in_the_middle_of_a_canvas_has_the_same_latents_without_the_first(pipeline, files):
    canvas = pipeline.paint(pipeline.resolve(requests(files)["extend"]))
    clip = pipeline.vae.encode(read_video(files / "one.mkv").video[None])[0]
    assert torch.equal(canvas.clean_latents[:, 3:7], clip[:, 1:]) and not canvas.denoise_mask[3:7].any()
    assert canvas.denoise_mask[:3].all() and canvas.denoise_mask[7:].all()


def test_inpainting_keeps_all_latents_where_the_mask_is_black(pipeline, files):
    mask = pipeline.paint(pipeline.resolve(requests(files)["inpaint"])).denoise_mask
    assert mask[:, :, 4:].all() and not mask[:, :, :4].any()
    boxed = replace(requests(files)["inpaint"], mask=None, box=(10, 0, 17, 8))
    mask = pipeline.paint(pipeline.resolve(boxed)).denoise_mask  # whole patches of 16 pixels, as in training
    assert mask[:, :2, :4].all() and mask.sum() == mask[:, :2, :4].sum()


def test_a_loop_played_twice_has_no_seam(pipeline, files):
    (sample,) = pipeline.generate([requests(files)["loop"]])
    clip = pipeline.pixels(sample)
    twice = pipeline.pixels(replace(sample, latents=sample.latents.repeat(1, 2, 1, 1)))
    assert torch.allclose(twice[:, : clip.shape[1]], twice[:, clip.shape[1] :], atol=0.02)
    changes = (clip - clip.roll(1, 1)).abs().mean((0, 2, 3))
    assert changes[0] <= changes[1:].quantile(0.95) and changes.max() <= 1.5 * changes.quantile(0.9)


def test_prompt_weights_sum_to_1_and_crossfade():
    weights = prompt_weights([(0, "a"), (3, "b"), (6, "c")], 0, 9)
    assert torch.allclose(weights.sum(0), torch.ones(9)) and (weights >= 0).all()
    assert weights[:, 0].tolist() == [1, 0, 0] and weights[:, 8].tolist() == [0, 0, 1]
    assert weights[0, 3] == weights[1, 3] == 0.5
    assert torch.equal(prompt_weights([(0, "a"), (3, "b"), (6, "c")], 4, 3), weights[:, 4:7])


def test_a_storyboard_of_one_prompt_is_a_plain_clip(pipeline):
    plain = Request(prompt="a red ball", seed=2, seconds=2.125)
    board = replace(plain, mode="storyboard", prompt="", moments=(Moment(0, "a red ball"), Moment(1, "a red ball")))
    other = replace(board, moments=(Moment(0, "a red ball"), Moment(1, "the blue cube spins")))
    one, two, three = (sample.latents for sample in pipeline.generate([plain, board, other]))
    assert torch.allclose(one, two, atol=1e-4)
    assert not torch.allclose(one[:, -1], three[:, -1], atol=1e-3)


def test_a_storyboard_is_read_from_yaml_and_json_with_files_relative_to_it(tmp_path):
    (tmp_path / "board.yaml").write_text(
        "seconds: 4\nsize: 64x64\nmoments:\n"
        "- {at: 0, prompt: a ball rolls, image: still.png}\n- {at: 2, prompt: 它停下}\n"
    )
    found = Request(mode="storyboard").altered(**read_storyboard(str(tmp_path / "board.yaml")))
    assert found.seconds == 4 and found.size == (64, 64)
    assert found.moments == (Moment(0, "a ball rolls", str(tmp_path / "still.png")), Moment(2, "它停下"))
    (tmp_path / "board.json").write_text(json.dumps([{"at": 0, "prompt": "x"}]))
    assert Request().altered(**read_storyboard(str(tmp_path / "board.json"))).moments == (Moment(0, "x"),)
    assert Request.from_json(found.to_json()) == found


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("moments: 3", "a storyboard must have moments"),
        ("{", "cannot be read as a storyboard"),
        ("- {at: -1, prompt: x}", "a moment must be at 0 seconds or later; got at -1"),
        ("- {at: .nan, prompt: x}", "a moment must be at 0 seconds or later; got at nan"),
        ("- {at: 2001-99-01, prompt: x}", "cannot be read as a storyboard"),
        ("- {at: 0, prompt: ' '}", "a moment must have a prompt"),
        ("- {at: 0, prompt: x, image: 5}", "a moment's image must be a file's name; got 5"),
        ("title: x\nmoments: []", "a request has the fields .* got 'title'"),
        ("1: x\nmoments: []", "a storyboard's fields must have names"),
        ("- {at: 0}", "a moment has at and prompt"),
        ("- {at: 1, prompt: x}", "moments must begin at 0 and rise; got 1"),
        ("- {at: 0, prompt: x}\n- {at: 0, prompt: y}", "moments must begin at 0 and rise; got 0, 0"),
        ("- {at: 0, prompt: x}\n- {at: 9, prompt: y}", "moments must begin before the end, 2 s; got one at 9"),
    ],
)
def test_an_invalid_storyboard_is_refused(pipeline, tmp_path, text, rule):
    (tmp_path / "board.yaml").write_text(text)
    with pytest.raises(RequestError, match=rule):
        pipeline.resolve(Request(mode="storyboard", seconds=2).altered(**read_storyboard(str(tmp_path / "board.yaml"))))


@pytest.mark.parametrize(
    ("mode", "change", "rule"),
    [
        ("edit", {"strength": 1.5}, "strength must lie between 0 and 1; got 1.5"),
        ("extend", {"side": "left"}, "side must be one of after, before, both; got 'left'"),
        ("retake", {"window": (2.0, 1.0)}, "a window must go from a time to a later one; got 2 to 1"),
        ("retake", {"window": (9.0, 10.0)}, "a window must lie within the clip; got 9 to 10 s"),
        ("recut", {"window": (9.0, 10.0)}, "a window must lie within the clip; got 9 to 10 s"),
        ("outpaint", {"box": (0, 0, 65, 64)}, "a box must be left, top, right, bottom within the frame"),
        ("edit", {"clip": "gone.mp4"}, "gone.mp4"),
        ("retake", {"window": (0.0, float("inf"))}, "a window must go from a time to a later one; got 0 to inf"),
        ("inpaint", {"mask": None}, "inpaint needs box or mask, and not both"),
        ("inpaint", {"size": None, "mask": None, "box": (0, 0, 200, 200)}, "a box must be left, top, right, bottom"),
        ("outpaint", {"box": (1, 1, 9, 9)}, "a box must hold a whole patch"),
        ("storyboard", {"prompt": "a ball"}, "moments have prompts of their own; got another prompt"),
        ("storyboard", {"moments": (Moment(0, "a"), Moment(0.1, "b"), Moment(0.2, "c"))}, "at least 0.5 s apart"),
        ("keyframes", {"keyframes": ((-1.0, "x.png"),)}, "a keyframe must be at 0 seconds or later; got -1"),
        ("keyframes", {"keyframes": ((5.0, "{still}"),)}, "an image must come before the end"),
        ("loop", {"seconds": 0.5}, "a clip must last at least 1 seconds at 64x64; got 0.5"),
        ("long", {"seconds": 0.5}, "a clip must last at least 1.12 seconds at 64x64; got 0.625"),
    ],
)
def test_what_a_mode_cannot_do_is_refused_in_a_sentence(pipeline, files, mode, change, rule):
    change = {name: placed(value, files) for name, value in change.items()}
    with pytest.raises(ValueError, match=rule.replace("(", r"\(")):
        next(iter(pipeline.generate([replace(requests(files)[mode], **change)])))


def placed(value, files):
    """Put a file's name in the place of {still}."""
    return tuple((at, str(files / "still.png")) for at, _ in value) if "{still}" in str(value) else value


def test_an_input_file_that_has_changed_is_refused(pipeline, files, tmp_path):
    path = tmp_path / "still.png"
    path.write_bytes((files / "still.png").read_bytes())
    (sample,) = pipeline.generate([Request(mode="image-to-video", prompt="it spins", image=str(path))])
    write_image(path, -read_image(path))
    with pytest.raises(RequestError, match="its contents have changed since"):
        pipeline.resolve(sample.request)


def test_moments_of_a_long_clip_have_prompts_alone(pipeline, files):
    moments = (Moment(0, "a", image=str(files / "still.png")),)
    with pytest.raises(RequestError, match="moments of a long clip have prompts alone"):
        next(iter(pipeline.generate([Request(mode="long", seconds=4, moments=moments)])))


def test_each_clip_of_a_storyboard_ends_where_the_next_moment_begins(pipeline, files):
    one, two = str(files / "one.mkv"), str(files / "two.mkv")
    moments = (Moment(0, "a", clip=one), Moment(1, "b", clip=two), Moment(2, "c"))
    canvas = pipeline.paint(pipeline.resolve(Request(mode="storyboard", seconds=4.125, moments=moments)))
    clips = [pipeline.vae.encode(read_video(path).video[None])[0] for path in (one, two)]
    assert torch.equal(canvas.clean_latents[:, :2], clips[0][:, :2])
    assert torch.equal(canvas.clean_latents[:, 2:4], clips[1][:, 1:3])
    assert canvas.denoise_mask[:, 0, 0].tolist() == [0] * 4 + [1] * 5
