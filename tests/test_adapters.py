"""Other makers' models: clips equal to those of diffusers' own pipelines, and every mode on every family."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from PIL import Image

from dit.adapters.load import adapt
from dit.modes import MODES
from dit.request import Moment, Request, RequestError
from dit.sampler import seeded_noise
from tests import tiny_pipelines
from vae.video import read
from vae.video.write import write_image, write_video

PROMPT, NEGATIVE = "a cat plays piano in Paris", "blurred"
STEPS = 3
# The side of a frame and the number of frames of each tiny pipeline.
FAMILIES = {
    "wan": (32, 9),
    "wan_5b": (64, 9),
    "wan_two_experts": (32, 9),
    "wan_i2v": (32, 9),
    "wan_vace": (32, 9),
    "ltx": (32, 9),
    "hunyuan": (16, 9),
    "cogvideo": (32, 9),
    "mochi": (32, 13),
    "skyreels": (32, 9),
}
# Rounding: diffusers evaluates both prompts of these in one batch, or converts to and from its own variables.
TOLERANCE = {"ltx": 1e-5, "cogvideo": 1e-5, "mochi": 1e-5}


@cache
def pipeline(name: str):
    return adapt(tiny_pipelines.make(getattr(tiny_pipelines, name)), name)


@pytest.fixture(autouse=True)
def read_in_this_process(monkeypatch):
    """Read files by the readers themselves: the child process for untrusted files takes seconds to start."""
    monkeypatch.setattr("dit.inputs.read_image", read.read_image)
    monkeypatch.setattr("dit.inputs.read_video", read.read_video)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Write two clips and two images of smooth colours for each size; return a function that names them."""
    folder = tmp_path_factory.mktemp("given")

    @cache
    def make(side: int, frames: int, fps: float) -> dict[str, str]:
        random, names = torch.Generator().manual_seed(0), {}
        for name, count in (("one", frames), ("two", frames), ("first", 1), ("last", 1)):
            coarse = torch.rand(1, 3, 3, 4, 4, generator=random) * 2 - 1
            pixels = torch.nn.functional.interpolate(coarse, size=(count, side, side), mode="trilinear")[0]
            path = folder / f"{name}-{side}-{frames}-{fps:g}{'.mkv' if count > 1 else '.png'}"
            write_video(path, pixels, fps) if count > 1 else write_image(path, pixels)
            names[name] = str(path)
        return names

    return make


def request_for(name: str, **changes) -> Request:
    side, frames = FAMILIES[name]
    seconds = frames / pipeline(name).settings.fps
    return Request(
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        size=(side, side),
        seconds=seconds,
        steps=STEPS,
        guidance=4.0,
        seed=3,
    ).altered(**changes)


def diffusers_call(name: str, request: Request, shape, **more):
    """Return the latents (C, T, H, W) that the pipeline's own call gives from our noise."""
    model, noise = pipeline(name), seeded_noise(request.seed, shape)[None]
    pipe, given = model.inner, noise
    if name == "cogvideo":
        given = noise.transpose(1, 2)
    if name == "ltx":
        given = pipe._pack_latents(noise, 1, 1)
    columns, rows = request.size
    found = pipe(
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        height=rows,
        width=columns,
        num_frames=FAMILIES[name][1],
        num_inference_steps=STEPS,
        guidance_scale=request.guidance,
        latents=given,
        output_type="latent",
        **more,
    ).frames
    if name == "cogvideo":
        return found[0].transpose(0, 1)
    if name == "ltx":
        return pipe._unpack_latents(found, *shape[1:], 1, 1)[0]
    return found[0]


@pytest.mark.parametrize(
    "name", ["wan", "wan_5b", "wan_two_experts", "ltx", "hunyuan", "cogvideo", "mochi", "skyreels"]
)
def test_text_to_video_equals_that_of_diffusers(name):
    changes, more = {}, {}
    if name == "wan_two_experts":
        changes, more = {"guidance_2": 2.0}, {"guidance_scale_2": 2.0}
    if name == "hunyuan":
        changes, more = {"guidance_2": 2.0}, {"true_cfg_scale": 2.0}
    request = request_for(name, **changes)
    (sample,) = pipeline(name).generate([request])
    expected = diffusers_call(name, request, sample.latents.shape, **more)
    assert expected.std() > 0.1
    torch.testing.assert_close(sample.latents, expected, rtol=0, atol=TOLERANCE.get(name, 1e-6))


def test_decoded_frames_equal_those_of_diffusers():
    request = request_for("wan")
    (sample,) = pipeline("wan").generate([request])
    pixels = pipeline("wan").pixels(sample)
    latents = pipeline("wan").vae.raw(sample.latents[None])
    expected = pipeline("wan").inner.vae.decode(latents, return_dict=False)[0][0]
    torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-5)


def image(path: str) -> Image.Image:
    return Image.open(path).convert("RGB")


def test_a_model_with_a_level_per_token_makes_the_image_to_video_of_diffusers(files):
    import diffusers

    given = files(64, 9, 24.0)
    request = request_for("wan_5b", mode="image-to-video", image=given["first"])
    (sample,) = pipeline("wan_5b").generate([request])
    parts = dict(pipeline("wan_5b").inner.components)
    own = diffusers.WanImageToVideoPipeline(**parts, image_encoder=None, image_processor=None, expand_timesteps=True)
    own.set_progress_bar_config(disable=True)
    expected = own(
        image=image(given["first"]),
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        height=64,
        width=64,
        num_frames=9,
        num_inference_steps=STEPS,
        guidance_scale=4.0,
        latents=seeded_noise(3, sample.latents.shape)[None],
        output_type="latent",
    ).frames[0]
    torch.testing.assert_close(sample.latents, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["wan_i2v", "wan_flf"])
def test_a_model_with_channels_for_given_frames_makes_the_clip_of_diffusers(name, files, monkeypatch):
    monkeypatch.setitem(FAMILIES, name, (32, 9))
    given = files(32, 9, 16.0)
    more = {"image": image(given["first"])}
    request = request_for(name, mode="image-to-video", image=given["first"])
    if name == "wan_flf":
        keyframes = ((0.0, given["first"]), (8 / 16, given["last"]))
        request, more["last_image"] = request_for(name, mode="keyframes", keyframes=keyframes), image(given["last"])
    (sample,) = pipeline(name).generate([request])
    expected = diffusers_call(name, request, sample.latents.shape, **more)
    kept = 2 if name == "wan_flf" else 3
    torch.testing.assert_close(sample.latents[:, 1:kept], expected[:, 1:kept], rtol=0, atol=1e-5)
    canvas = pipeline(name).paint(pipeline(name).resolve(request))
    assert torch.equal(sample.latents[:, 0], canvas.clean_latents[:, 0]), "the given frame is kept as it is"


def test_vace_makes_the_inpainting_of_diffusers(files):
    given = files(32, 9, 16.0)
    model = pipeline("wan_vace")
    request = request_for("wan_vace", mode="image-to-video", image=given["first"])
    (sample,) = model.generate([request])
    video = [image(given["first"]), *[Image.new("RGB", (32, 32), (127,) * 3)] * 8]
    mask = [Image.new("L", (32, 32), 0), *[Image.new("L", (32, 32), 255)] * 8]
    expected = diffusers_call("wan_vace", request, sample.latents.shape, video=video, mask=mask)
    # The gray of an image of whole numbers is not quite the 0 of ours.
    torch.testing.assert_close(sample.latents[:, 1:], expected[:, 1:], rtol=0, atol=0.02)


def requests_of_all_modes(name: str, files) -> dict[str, Request]:
    side, frames = FAMILIES[name]
    fps = pipeline(name).settings.fps
    given, seconds, half = files(side, frames, fps), frames / fps, side // 2
    special = {
        "image-to-video": {"image": given["first"]},
        "keyframes": {"keyframes": ((0.0, given["first"]), ((frames - 1) / fps, given["last"]))},
        "extend": {"clip": given["one"]},
        "connect": {"clip": given["one"], "other": given["two"]},
        "edit": {"clip": given["one"], "strength": 0.6},
        "remix": {"clip": given["one"]},
        "retake": {"clip": given["one"], "window": (seconds / 2, seconds)},
        "inpaint": {"clip": given["one"], "box": (0, 0, half, side)},
        "outpaint": {"clip": given["one"], "box": (0, 0, half, side)},
        "recut": {"clip": given["one"], "window": (seconds / 2, seconds)},
        "storyboard": {"moments": (Moment(0.0, "a"), Moment((frames - 1) / fps, "b", image=given["last"]))},
        "long": {"seconds": (pipeline(name).longest_frames + frames) / fps},
    }
    found = {}
    for mode in MODES:
        base = replace(request_for(name), steps=2, mode=mode, **special.get(mode, {}))
        found[mode] = replace(base, prompt="") if mode == "storyboard" else base
    return found


@pytest.mark.slow  # fifteen modes for each kind of model, each a whole clip: half a minute
@pytest.mark.parametrize("name", FAMILIES)
def test_every_mode_works_and_keeps_what_is_given(name, files):
    model, side = pipeline(name), FAMILIES[name][0]
    for mode, request in requests_of_all_modes(name, files).items():
        if mode == "long":
            model.__dict__["longest_frames"] = FAMILIES[name][1]  # windows of a few frames, not of the trained length
            request = replace(request, seconds=3 * request_for(name).seconds)
        resolved = model.resolve(request)
        canvas = model.paint(resolved)
        (sample,) = model.generate([request])
        pixels = model.pixels(sample)
        model.__dict__.pop("longest_frames", None)
        assert sample.latents.isfinite().all() and pixels.isfinite().all(), mode
        assert pixels.shape[0] == 3 and pixels.shape[2:] == (side, side), mode
        kept = canvas.denoise_mask == 0
        assert torch.equal(sample.latents[:, kept], canvas.clean_latents[:, kept]), mode
        assert mode in ("text-to-video", "text-to-image", "loop", "edit", "remix", "long") or kept.any(), mode


@pytest.mark.parametrize("name", ["wan", "wan_5b"])
def test_strength_zero_returns_the_clip_and_one_ignores_it(name, files):
    side, frames = FAMILIES[name]
    given, model = files(side, frames, pipeline(name).settings.fps), pipeline(name)
    edit = request_for(name, mode="edit", clip=given["one"])
    clean = model.paint(model.resolve(edit)).clean_latents
    (same,), (other,) = (model.generate([replace(edit, strength=value)]) for value in (0.0, 1.0))
    (fresh,) = model.generate([request_for(name)])
    assert torch.equal(same.latents, clean)
    assert torch.equal(other.latents, fresh.latents)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm"])
def test_our_samplers_work_on_other_models(sampler):
    (sample,) = pipeline("wan").generate([request_for("wan", sampler=sampler)])
    assert sample.latents.isfinite().all() and sample.request.sampler == sampler


def test_euler_steps_are_those_of_the_deterministic_diffusion_in_other_variables():
    (ddim,) = pipeline("cogvideo").generate([request_for("cogvideo")])
    (euler,) = pipeline("cogvideo").generate([request_for("cogvideo", sampler="euler")])
    torch.testing.assert_close(euler.latents, ddim.latents, rtol=0, atol=2e-3)


def test_flow_shift_and_second_guidance_change_the_clip_and_are_recorded():
    model = pipeline("wan_two_experts")
    (plain,) = model.generate([request_for("wan_two_experts")])
    (shifted,) = model.generate([request_for("wan_two_experts", flow_shift=1.0)])
    (guided,) = model.generate([request_for("wan_two_experts", guidance_2=1.0)])
    assert not torch.equal(plain.latents, shifted.latents) and not torch.equal(plain.latents, guided.latents)
    assert (shifted.request.flow_shift, guided.request.guidance_2, plain.request.guidance_2) == (1.0, 1.0, 4.0)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("wan", {"size": (40, 32)}, "multiples of 16 for this model; got 40x32, the nearest is 32x32"),
        ("wan", {"seconds": 60.0}, "use the mode long"),
        ("wan", {"guidance_2": 2.0}, "one guidance scale"),
        ("wan", {"frame_guidance": 2.0}, "cannot tell given frames"),
        ("cogvideo", {"flow_shift": 2.0}, "whose scheduler has none"),
        ("wan", {"fps": 30.0}, "trained for, 16"),
        ("wan", {"prompt": "a ball " * 600}, "512 tokens or fewer"),
    ],
)
def test_what_a_model_cannot_do_is_refused_with_a_remedy(name, changes, message):
    with pytest.raises((RequestError, ValueError), match=message):
        pipeline(name).resolve(request_for(name, **changes))


def test_durations_are_a_rule_of_the_family():
    wan, mochi = pipeline("wan"), pipeline("mochi")
    frames = [round(wan.resolve(request_for("wan", seconds=count / 16)).seconds * 16) for count in (6, 10, 12, 77)]
    assert frames == [5, 9, 13, 77]
    assert round(mochi.resolve(request_for("mochi", seconds=15 / 30)).seconds * 30) == 13


@pytest.fixture
def lora(tmp_path):
    """The file of a LoRA of the tiny Wan, as diffusers writes it."""
    from diffusers import WanPipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipe = tiny_pipelines.make(tiny_pipelines.wan)
    pipe.transformer.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_v"]))
    random = torch.Generator().manual_seed(1)
    weights = get_peft_model_state_dict(pipe.transformer)
    weights = {name: torch.randn(value.shape, generator=random) for name, value in weights.items()}
    WanPipeline.save_lora_weights(tmp_path, weights)
    return tmp_path / "pytorch_lora_weights.safetensors"


def test_a_lora_makes_the_clip_that_it_makes_in_diffusers_and_leaves_no_trace(lora):
    model = adapt(tiny_pipelines.make(tiny_pipelines.wan))
    request = request_for("wan", loras=((str(lora), 0.5),))
    (plain,), (with_lora,), (again,) = (
        model.generate([one]) for one in (request_for("wan"), request, request_for("wan"))
    )
    assert torch.equal(plain.latents, again.latents)
    assert not torch.equal(plain.latents, with_lora.latents)
    assert dict(with_lora.request.hashes)[str(lora)]
    pipe = pipeline("wan").inner
    pipe.load_lora_weights(lora.parent, weight_name=lora.name, adapter_name="one")
    pipe.set_adapters(["one"], [0.5])
    expected = diffusers_call("wan", request, with_lora.latents.shape)
    pipe.unload_lora_weights()
    torch.testing.assert_close(with_lora.latents, expected, rtol=0, atol=1e-6)


def test_a_lora_that_changed_or_is_no_safetensors_is_refused(lora):
    request = pipeline("wan").resolve(request_for("wan", loras=((str(lora), 1.0),)))
    lora.write_bytes(lora.read_bytes()[:-1] + b"x")
    with pytest.raises(RequestError, match="has changed since"):
        pipeline("wan").resolve(request)
    with pytest.raises(RequestError, match="safetensors file"):
        pipeline("wan").resolve(request_for("wan", loras=(("weights.bin", 1.0),)))
