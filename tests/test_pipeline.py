"""The pipeline from a request to pixels, and what it refuses."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dit.pipeline import Pipeline, Sample
from dit.request import RENAMED, Request, RequestError, parse_size
from dit.settings import SETTINGS, Settings, read_settings
from vae.weights import WeightsError


@pytest.fixture(scope="module")
def pipeline(tiny_model):
    return Pipeline.from_pretrained(tiny_model)


def generate(pipeline, *requests):
    return list(pipeline.generate(list(requests)))


def latents_of(pipeline, **fields):
    (sample,) = generate(pipeline, Request(prompt="a red ball", seconds=1.1, **fields))
    return sample.latents


def test_a_request_becomes_a_clip_of_its_size_and_duration(pipeline):
    (sample,) = generate(pipeline, Request(prompt="a red ball bounces", size=(48, 64), seconds=1.0))
    assert sample.latents.shape == (4, 3, 8, 6)
    video = pipeline.pixels(sample)
    assert video.shape == (3, 9, 64, 48) and video.abs().max() <= 1
    assert sample.request.seconds == 9 / 8


def test_the_same_request_is_the_same_clip_in_any_company(pipeline):
    one, two = (
        Request(prompt="a red ball", seed=3),
        Request(prompt="the blue cube spins", seed=4, size=(48, 64), seconds=1.1),
    )
    alone = generate(pipeline, one)[0].latents
    assert torch.equal(generate(pipeline, two, one)[1].latents, alone)
    assert not torch.equal(generate(pipeline, Request(prompt="a red ball", seed=5))[0].latents, alone)


def test_clips_sampled_as_one_pack_equal_clips_sampled_alone(pipeline):
    short = lambda prompt, **fields: Request(prompt=prompt, seconds=1.1, **fields)
    requests = [
        short("a ball"),
        short("a blue cube", size=(48, 64), seed=1, guidance=2.0),
        Request(prompt="red", mode="text-to-image", seed=2),
        short("green", steps=2),
        short("grey", steps=2, size=(48, 64)),
        Request(prompt="a long clip", mode="long", seconds=4.0),
    ]
    previews: list[int] = []
    progress: list[tuple[int, int]] = []
    packed = pipeline.generate(
        requests, lambda *count: progress.append(count), lambda index, _: previews.append(index), pack_size=4
    )
    for alone, found in zip(generate(pipeline, *requests), packed, strict=True):
        assert alone.request == found.request
        assert torch.equal(alone.latents, found.latents)
    assert previews[:5] == [0, 1, 2, 3, 4]  # a pack of three, then one of two
    assert progress == [(step + 1, progress[-1][1]) for step in range(progress[-1][1])]
    with pytest.raises(ValueError, match="pack_size must be at least 1; got 0"):
        next(pipeline.generate(requests, pack_size=0))


def test_with_low_memory_a_clip_is_nearly_the_same(pipeline):
    (plain,) = generate(pipeline, Request(prompt="a red ball", seed=1))
    pipeline.low_memory = True
    try:
        (sample,) = generate(pipeline, Request(prompt="a red ball", seed=1))
        assert torch.allclose(sample.latents, plain.latents, atol=1e-4)
        assert sample.request.made_with == f"{plain.request.made_with}, low memory"
        assert next(iter(pipeline.frames(sample))).shape[1] == 1
    finally:
        pipeline.low_memory = False


def test_guidance_applies_within_its_interval_alone(pipeline):
    plain = latents_of(pipeline, guidance=1.0)
    assert torch.equal(latents_of(pipeline, guidance=5.0, guidance_interval=(0.0, 0.0)), plain)
    some, all_ = (latents_of(pipeline, guidance=5.0, guidance_interval=(low, 1.0)) for low in (0.5, 0.0))
    assert not torch.equal(some, plain) and not torch.equal(some, all_)


def test_guidance_leads_away_from_the_negative_prompt(pipeline):
    assert torch.equal(latents_of(pipeline, negative_prompt=""), latents_of(pipeline))
    assert not torch.equal(latents_of(pipeline, negative_prompt="a blue cube"), latents_of(pipeline))
    same = latents_of(pipeline, negative_prompt="a red ball", guidance=7.0)
    assert torch.allclose(same, latents_of(pipeline, guidance=1.0), atol=1e-4)


def test_decoding_in_pieces_of_any_length_is_the_same_clip(pipeline):
    (sample,) = generate(pipeline, Request(prompt="a red ball"))
    whole = pipeline.pixels(sample)
    for latent_frames in (1, 2, 5):
        assert torch.allclose(torch.cat(list(pipeline.frames(sample, latent_frames)), dim=1), whole, atol=1e-5)


def test_image_to_video_begins_with_the_image(pipeline, tmp_path):
    Image.radial_gradient("L").convert("RGB").save(tmp_path / "still.png")
    request = Request(mode="image-to-video", prompt="it spins", image=str(tmp_path / "still.png"))
    (sample,) = generate(pipeline, request)
    kept = pipeline.paint(pipeline.resolve(request)).clean_latents[:, :1]
    assert torch.equal(sample.latents[:, :1], kept)
    (guided,) = generate(pipeline, replace(request, frame_guidance=2.0))
    assert torch.equal(guided.latents[:, :1], kept) and not torch.equal(guided.latents, sample.latents)
    assert guided.request.frame_guidance == 2 and sample.request.frame_guidance == 1
    assert torch.allclose(pipeline.pixels(sample)[:, :1], pipeline.pixels(Sample(request, kept)), atol=1e-5)


def test_previews_do_not_change_the_clip(pipeline):
    requests, previews = [Request(prompt="a red ball", steps=7), Request(prompt="a cube", mode="text-to-image")], []
    callback = lambda index, view: previews.append((index, view.shape[1]))
    samples = list(pipeline.generate(requests, preview=callback))
    assert previews == [(0, 17), (0, 17), (1, 1)]
    for sample, other in zip(samples, pipeline.generate(requests), strict=True):
        assert torch.equal(sample.latents, other.latents)


def test_an_image_is_a_clip_of_one_frame(pipeline):
    (sample,) = generate(pipeline, Request(mode="text-to-image", prompt="a blue cube"))
    assert pipeline.pixels(sample).shape == (3, 1, 64, 64)
    assert sample.request.seconds is None


@pytest.mark.parametrize(
    "request_, sentence",
    [
        (Request(prompt=" "), "a prompt must say something; got none"),
        (Request(prompt="red " * 120), "a prompt must be at most about"),
        (
            Request(prompt="x", mode="dream"),
            "mode must be one of text-to-video, text-to-image, image-to-video, ",
        ),
        (Request(prompt="x", mode="image-to-video"), "image-to-video needs image; got none, so give --image"),
        (Request(prompt="x", mode="keyframes"), "keyframes needs keyframes; got none, so give --keyframe"),
        (Request(prompt="x", size=(65, 64)), "size must be one this model was trained for: 64x64, 48x64; got 65x64"),
        (Request(prompt="x", mode="text-to-image", size=(48, 64)), "trained for: 64x64; got 48x64"),
        (
            Request(prompt="x", seconds=60.0),
            "was trained for at 64x64: 1.12, 2.12; got 60; the mode long makes longer clips",
        ),
        (Request(prompt="x", seconds=float("nan")), "seconds must be above 0 and below a million; got nan"),
        (Request(prompt="x", fps=30.0), "fps must be what this model was trained for, 8; got 30"),
        (Request(prompt="x", steps=0), "steps must lie between 1 and 1000; got 0"),
        (Request(prompt="x", guidance=-1.0), "guidance must lie between 0 and 100; got -1"),
        (
            Request(prompt="x", guidance_interval=(0.9, 0.2)),
            "guidance_interval must be two rising noise levels from 0 to 1; got 0.9 and 0.2",
        ),
        (Request(prompt="x", frame_guidance=-1.0), "frame_guidance must lie between 0 and 100; got -1"),
        (Request(prompt="x", guidance_rescale=1.5), "guidance_rescale must lie between 0 and 1; got 1.5"),
        (Request(prompt="x", sampler="magic"), "sampler must be one of euler, heun, dpm; got 'magic'"),
        (Request(prompt="x", watermark="middle"), "watermark must be one of the corners bottom-right, "),
        (Request(prompt="x", seed=-1), "seed must be a whole number from 0"),
        (Request(prompt="x", mode="image-to-video", image="gone.png"), "gone.png"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_made_is_refused_in_one_sentence(pipeline, request_, sentence):
    with pytest.raises(ValueError) as error:
        generate(pipeline, request_)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_nothing_is_sampled_if_one_of_several_requests_is_bad(pipeline):
    steps = []
    with pytest.raises(RequestError):
        list(pipeline.generate([Request(prompt="x"), Request(prompt="")], lambda done, total: steps.append(done)))
    assert not steps


def test_progress_counts_the_steps_of_all_clips(pipeline):
    steps = []
    list(pipeline.generate([Request(prompt="x", steps=2), Request(prompt="y")], lambda *step: steps.append(step)))
    assert steps == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]


def test_a_model_is_known_by_its_weights(tiny_model, pipeline, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    assert Pipeline.from_pretrained(folder).hash == pipeline.hash
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["latent_scale"] = tensors["latent_scale"] * 2
    save_file(tensors, path)
    assert Pipeline.from_pretrained(folder).hash != pipeline.hash


def test_settings_of_version_0_1_are_read_and_do_not_change_the_hash(tiny_model, pipeline, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    stored = json.loads((folder / SETTINGS).read_text()) | {"sampler": "heun", "guidance_rescale": 0.5}
    (folder / SETTINGS).write_text(json.dumps(stored, indent=2))
    current = Pipeline.from_pretrained(folder)
    former = {new: old for old, new in RENAMED.items()}
    (folder / SETTINGS).write_text(json.dumps({former.get(k, k): v for k, v in stored.items()}, indent=2))
    assert {"method", "rescale", "interval"} <= json.loads((folder / SETTINGS).read_text()).keys()
    old = Pipeline.from_pretrained(folder)
    assert old.settings == current.settings and (old.settings.sampler, old.settings.guidance_rescale) == ("heun", 0.5)
    assert old.hash == current.hash != pipeline.hash


def test_settings_that_are_not_a_models_are_refused(tmp_path):
    for text in ('{"fps": 8.0}', '{"formats": [[64, 64, 17]], "size": [64, 64], "method": "euler", "sampler": "dpm"}'):
        (tmp_path / SETTINGS).write_text(text)
        with pytest.raises(WeightsError, match="does not say what the model was trained for"):
            read_settings(tmp_path / SETTINGS)
    (tmp_path / SETTINGS).write_text('{"formats": [[64, 64, 17], [64, 64, 1]], "size": [64, 64]}')
    assert read_settings(tmp_path / SETTINGS) == Settings()


def test_the_folder_is_in_the_layout_of_diffusers(tiny_model):
    index = json.loads((tiny_model / "model_index.json").read_text())
    parts = {"transformer", "vae", "text_encoder", "tokenizer", "scheduler"}
    assert parts <= index.keys() and parts <= {path.name for path in tiny_model.iterdir()}
    assert not [path for path in tiny_model.rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]


@pytest.mark.slow
def test_an_exported_model_needs_no_training_code(tiny_model):
    code = (
        "import sys; sys.modules['training'] = None\n"
        "from dit.pipeline import Pipeline; from dit.request import Request\n"
        f"pipeline = Pipeline.from_pretrained({str(tiny_model)!r})\n"
        "print(next(pipeline.generate([Request(prompt='x', steps=1)])).latents.shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=".")
    assert done.stdout.strip() == "torch.Size([4, 5, 8, 8])", done.stderr


def test_a_request_survives_json():
    request = Request(prompt='一个红色的球 "bounces"\n', size=(64, 48), seconds=2.125, seed=7, guidance=3)
    assert Request.from_json(request.to_json()) == request.altered(guidance=3.0)


def test_fields_of_version_0_1_are_read_by_their_present_names():
    old = {
        **{"prompt": "x", "written": "a red ball", "pictures": [[0, "a.png"]], "interval": [0.1, 0.9], "rescale": 0.5},
        **{"negative": "a cube", "method": "heun", "mark": "top-left"},
    }
    assert old.keys() - {"prompt"} == RENAMED.keys()
    request = Request.from_json(json.dumps(old))
    assert request == Request(
        prompt="x",
        upsampled_prompt="a red ball",
        keyframes=((0.0, "a.png"),),
        guidance_interval=(0.1, 0.9),
        guidance_rescale=0.5,
        negative_prompt="a cube",
        sampler="heun",
        watermark="top-left",
    )
    assert not RENAMED.keys() & json.loads(request.to_json()).keys()
    assert Request(prompt="x").altered(method="dpm").sampler == "dpm"
    with pytest.raises(RequestError, match="method is now named sampler; got both, so leave method out"):
        Request.from_dict({"method": "dpm", "sampler": "dpm"})


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("{", "a request must be JSON"),
        ("[]", "a request must be a JSON object; got a list"),
        ('{"colour": 1}', "got 'colour'"),
        ('{"seed": "1"}', "seed must be int; got '1'"),
        ('{"seed": true}', "seed must be int; got True"),
        ('{"size": [64]}', "size must be two whole numbers"),
    ],
)
def test_invalid_requests_are_refused(text, sentence):
    with pytest.raises(RequestError, match=sentence):
        Request.from_json(text)


@pytest.mark.parametrize("text", ["64", "64x", "64x64x3", "axb", "-64x64", "6.4x64"])
def test_invalid_sizes_are_refused(text):
    with pytest.raises(RequestError, match="size must be COLUMNSxROWS"):
        parse_size(text)
    assert parse_size("128X96") == (128, 96)


def test_a_model_with_a_text_encoder_of_transformers_is_saved_halved_and_loaded(tiny_model, tmp_path):
    import transformers

    from dit.model import DiT, DiTConfig
    from vae.weights import convert_to_float16

    torch.manual_seed(0)
    plain = Pipeline.from_pretrained(tiny_model)
    config = transformers.T5Config(vocab_size=400, d_model=32, d_kv=16, d_ff=48, num_layers=1, num_heads=2)
    dit = DiT.from_dit_config(DiTConfig(depth=1, width=64, head_dim=32, channels=4, text_dim=32))
    torch.nn.init.normal_(dit.proj_out.weight, std=0.1)
    encoder = transformers.T5EncoderModel(config).eval()
    Pipeline(dit, plain.vae, encoder, plain.tokenizer, plain.scheduler, plain.settings).save_pretrained(tmp_path)
    for part in ("transformer", "vae", "text_encoder"):
        convert_to_float16(tmp_path / part)
    loaded = Pipeline.from_pretrained(tmp_path)
    assert next(loaded.text_encoder.parameters()).dtype == torch.float32
    one, other = (next(loaded.generate([Request(prompt=prompt)])).latents for prompt in ("a red ball", "a blue cube"))
    assert one.shape == (4, 5, 8, 8) and not torch.equal(one, other)


@pytest.mark.parametrize("damage", ["tokenizer/tokenizer.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize("how", ["cut", "gone"])
def test_a_damaged_model_folder_is_refused_in_a_sentence(tiny_model, tmp_path, damage, how):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    path = folder / damage
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(WeightsError, match=path.name):
        Pipeline.from_pretrained(folder)


def test_a_clip_says_what_it_was_made_with_and_loading_warns_where_that_differs(tiny_model, capsys):
    from app.render import load_pipeline

    pipeline = load_pipeline(Request(model=str(tiny_model)))
    plain = pipeline.resolve(Request(prompt="a ball"))
    assert plain.made_with is not None
    assert plain.made_with.startswith(f"torch {torch.__version__}, ")
    assert plain.made_with.endswith(", float32, attention auto")
    pipeline.transformer.attention_backend = "one-by-one"
    other = pipeline.resolve(plain)
    assert other.made_with == plain.made_with.replace("auto", "one-by-one")
    load_pipeline(replace(plain, model=str(tiny_model)))
    assert "last bits" not in capsys.readouterr().err
    load_pipeline(replace(other, model=str(tiny_model)))
    assert "attention one-by-one made the clip; this is" in capsys.readouterr().err
