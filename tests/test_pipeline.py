"""From a request to pixels, and what is refused on the way."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image

from dit.pipeline import Dream, Pipeline
from dit.request import Request, RequestError, parse_size
from vae.weights import WeightsError


@pytest.fixture(scope="module")
def pipeline(tiny_model):
    return Pipeline.from_pretrained(tiny_model)


def make(pipeline, *requests):
    return list(pipeline.generate(list(requests)))


def test_a_request_becomes_a_clip_of_its_size_and_duration(pipeline):
    (dream,) = make(pipeline, Request(prompt="a red ball bounces", size=(48, 64), seconds=1.0))
    assert dream.latents.shape == (4, 3, 8, 6)
    video = pipeline.pixels(dream)
    assert video.shape == (3, 9, 64, 48) and video.abs().max() <= 1
    assert dream.request.seconds == 9 / 8


def test_the_same_request_is_the_same_clip_in_any_company(pipeline):
    one, two = (
        Request(prompt="a red ball", seed=3),
        Request(prompt="the blue cube spins", seed=4, size=(48, 64), seconds=1.1),
    )
    alone = make(pipeline, one)[0].latents
    assert torch.equal(make(pipeline, two, one)[1].latents, alone)
    assert not torch.equal(make(pipeline, Request(prompt="a red ball", seed=5))[0].latents, alone)


def test_clips_dreamed_as_one_pack_equal_clips_dreamed_alone(pipeline):
    ask = lambda prompt, **settings: Request(prompt=prompt, seconds=1.1, **settings)
    requests = [
        ask("a ball"),
        ask("a blue cube", size=(48, 64), seed=1, guidance=2.0),
        Request(prompt="red", mode="text-to-image", seed=2),
        ask("green", steps=2),
        ask("grey", steps=2, size=(48, 64)),
        Request(prompt="a long clip", mode="long", seconds=4.0),
    ]
    views: list[int] = []
    told: list[tuple[int, int]] = []
    packs = pipeline.generate(requests, lambda *count: told.append(count), lambda number, _: views.append(number), 4)
    for dream, found in zip(make(pipeline, *requests), packs, strict=True):
        assert dream.request == found.request
        assert torch.equal(dream.latents, found.latents)
    assert views[:5] == [0, 1, 2, 3, 4]  # three at once, then two
    assert told == [(step + 1, told[-1][1]) for step in range(told[-1][1])]
    with pytest.raises(ValueError, match="together must be at least 1; got 0"):
        next(pipeline.generate(requests, together=0))


def test_guidance_counts_within_its_interval_alone(pipeline):
    ask = lambda **changes: (
        make(pipeline, Request(prompt="a red ball", seconds=1.1, guidance=5.0, **changes))[0].latents
    )
    plain = make(pipeline, Request(prompt="a red ball", seconds=1.1, guidance=1.0))[0].latents
    assert torch.equal(ask(guidance_interval=(0.0, 0.0)), plain)
    assert not torch.equal(ask(guidance_interval=(0.5, 1.0)), plain)
    assert not torch.equal(ask(guidance_interval=(0.5, 1.0)), ask())


def test_a_negative_prompt_is_what_guidance_leads_away_from(pipeline):
    ask = lambda **changes: make(pipeline, Request(prompt="a red ball", seconds=1.1, **changes))[0].latents
    assert torch.equal(ask(negative_prompt=""), ask())
    assert not torch.equal(ask(negative_prompt="a blue cube"), ask())
    assert torch.allclose(ask(negative_prompt="a red ball", guidance=7.0), ask(guidance=1.0), atol=1e-4)


def test_decoding_in_pieces_of_any_length_is_the_same_clip(pipeline):
    (dream,) = make(pipeline, Request(prompt="a red ball"))
    whole = pipeline.pixels(dream)
    for steps in (1, 2, 5):
        assert torch.allclose(torch.cat(list(pipeline.frames(dream, steps)), dim=1), whole, atol=1e-5)


def test_image_to_video_begins_with_the_picture(pipeline, tmp_path):
    Image.radial_gradient("L").convert("RGB").save(tmp_path / "still.png")
    request = Request(mode="image-to-video", prompt="it spins", image=str(tmp_path / "still.png"))
    (dream,) = make(pipeline, request)
    given = pipeline.paint(pipeline.resolve(request)).clean_latents
    assert torch.equal(dream.latents[:, :1], given[:, :1])
    (held,) = make(pipeline, replace(request, frame_guidance=2.0))
    assert torch.equal(held.latents[:, :1], given[:, :1]) and not torch.equal(held.latents, dream.latents)
    assert held.request.frame_guidance == 2 and dream.request.frame_guidance == 1
    assert torch.allclose(pipeline.pixels(dream)[:, :1], pipeline.pixels(Dream(request, given[:, :1])), atol=1e-5)


def test_a_dream_can_be_watched_and_stays_the_same(pipeline):
    requests, seen = [Request(prompt="a red ball", steps=7), Request(prompt="a cube", mode="text-to-image")], []
    watched = list(pipeline.generate(requests, watch=lambda number, view: seen.append((number, view.shape[1]))))
    assert seen == [(0, 17), (0, 17), (1, 1)]
    for dream, other in zip(watched, pipeline.generate(requests), strict=True):
        assert torch.equal(dream.latents, other.latents)


def test_a_picture_is_a_clip_of_one_frame(pipeline):
    (dream,) = make(pipeline, Request(mode="text-to-image", prompt="a blue cube"))
    assert pipeline.pixels(dream).shape == (3, 1, 64, 64)
    assert dream.request.seconds is None


@pytest.mark.parametrize(
    "request_, sentence",
    [
        (Request(prompt=" "), "a prompt must say something; got none"),
        (Request(prompt="red " * 120), "a prompt must be at most 96 tokens for this text encoder; got"),
        (
            Request(prompt="x", mode="dream"),
            "mode must be one of text-to-video, text-to-image, image-to-video, ",
        ),
        (Request(prompt="x", mode="image-to-video"), "image-to-video needs image; got none, so give --image"),
        (Request(prompt="x", size=(65, 64)), "size must be one this model was trained for: 64x64, 48x64; got 65x64"),
        (Request(prompt="x", mode="text-to-image", size=(48, 64)), "trained for: 64x64; got 48x64"),
        (
            Request(prompt="x", seconds=60.0),
            "seconds must be one this model was trained for at 64x64: 1.12, 2.12; got 60",
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
        (Request(prompt="x", seed=-1), "seed must be a whole number from 0"),
        (Request(prompt="x", mode="image-to-video", image="gone.png"), "gone.png"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_made_is_refused_in_one_sentence(pipeline, request_, sentence):
    with pytest.raises(ValueError) as error:
        make(pipeline, request_)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_nothing_is_made_when_one_of_several_requests_is_bad(pipeline):
    steps = []
    with pytest.raises(RequestError):
        list(pipeline.generate([Request(prompt="x"), Request(prompt="")], lambda done, total: steps.append(done)))
    assert not steps


def test_progress_counts_every_step_of_all_clips(pipeline):
    steps = []
    list(pipeline.generate([Request(prompt="x", steps=2), Request(prompt="y")], lambda *step: steps.append(step)))
    assert steps == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]


def test_a_model_is_known_by_its_weights(tiny_model, pipeline, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_model, tmp_path / "model")
    assert Pipeline.from_pretrained(folder).hash == pipeline.hash
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["latent_scale"] = tensors["latent_scale"] * 2
    save_file(tensors, path)
    assert Pipeline.from_pretrained(folder).hash != pipeline.hash


def test_the_folder_is_in_the_layout_of_diffusers(tiny_model):
    index = json.loads((tiny_model / "model_index.json").read_text())
    parts = {"transformer", "vae", "text_encoder", "tokenizer", "scheduler"}
    assert parts <= index.keys() and parts <= {path.name for path in tiny_model.iterdir()}
    assert not [path for path in tiny_model.rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]


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
def test_what_is_no_request_is_refused(text, sentence):
    with pytest.raises(RequestError, match=sentence):
        Request.from_json(text)


@pytest.mark.parametrize("text", ["64", "64x", "64x64x3", "axb", "-64x64", "6.4x64"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(RequestError, match="size must be COLUMNSxROWS"):
        parse_size(text)
    assert parse_size("128X96") == (128, 96)


def test_a_model_with_an_encoder_of_transformers_is_saved_halved_and_loaded(tiny_model, tmp_path):
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


def test_what_a_clip_was_made_with_is_in_its_file_and_said_where_it_is_another(tiny_model, capsys):
    from app.render import load
    from dit.request import Request

    pipeline = load(Request(model=str(tiny_model)))
    plain = pipeline.resolve(Request(prompt="a ball"))
    assert plain.made_with.startswith(f"torch {torch.__version__}, ")
    assert plain.made_with.endswith(", float32, attention auto")
    pipeline.transformer.attention_backend = "one-by-one"
    other = pipeline.resolve(plain)
    assert other.made_with == plain.made_with.replace("auto", "one-by-one")
    load(replace(plain, model=str(tiny_model)))
    assert "last bits" not in capsys.readouterr().err
    load(replace(other, model=str(tiny_model)))
    assert "attention one-by-one made the clip; this is" in capsys.readouterr().err
