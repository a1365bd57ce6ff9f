"""The camera velocity of a request: which there are, what it overrides, and which models take it."""

import pytest
import torch
from starlette.testclient import TestClient

from app.cli import main
from app.queue.jobs import Queue
from app.render import read_request
from app.server.service import Service, served_models
from captioning.camera import CAMERA_AXES, CAMERA_MOVES, CAMERA_VALUES, camera_velocity_of, parse_camera
from captioning.prompt_encoder import PromptEncoder
from captioning.text_encoder import TextEmbeddings, train_tokenizer
from dit.camera import camera_rows, folder_reads_camera
from dit.flow import make_scheduler
from dit.guidance import ForwardPass
from dit.model import DiT, DiTConfig
from dit.pipeline import Pipeline
from dit.request import Request, RequestError
from dit.settings import Settings
from training.world.camera import camera_velocity, sample_placement
from training.world.editions import EDITIONS
from vae.model import VideoVAE


@pytest.fixture(scope="module")
def camera_model(tmp_path_factory):
    """The folder of a tiny model that reads a camera velocity, with a text encoder that reads one in prompts."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["a red ball bounces while the camera pans left"], 300, 96)
    text = PromptEncoder(len(tokenizer), 96, 32, 2, 1, tokenizer.pad_token_id)
    vae = VideoVAE(channels=4, widths=(16, 32), encoder_blocks=(1, 1), decoder_blocks=(1, 1))
    dit = DiT.from_dit_config(DiTConfig(depth=1, width=64, head_dim=32, channels=4, text_dim=32, camera=True))
    for module in (vae, dit, text):
        for value in module.parameters():
            if not value.any():
                torch.nn.init.normal_(value, std=0.1)
    settings = Settings(((32, 32, 5), (32, 32, 1)), fps=8.0, size=(32, 32), seconds=0.625, steps=2, guidance=2.0)
    folder = tmp_path_factory.mktemp("models") / "camera"
    Pipeline(dit, vae, text, tokenizer, make_scheduler(8, 1.0), settings).save_pretrained(folder)
    return folder


def latents_of(pipeline, **fields):
    (sample,) = pipeline.generate([Request(prompt="a red ball", **fields)])
    return sample.latents


def test_moves_and_numbers_have_one_spelling_each():
    assert parse_camera(" Pan  LEFT+zoom in") == "pan left + zoom in"
    assert parse_camera("0,0, 1 0 -.5,0") == parse_camera([0, 0, 1, 0, -0.5, 0]) == "0, 0, 1, 0, -0.5, 0"
    both = [one + other for one, other in zip(CAMERA_MOVES["pan left"], CAMERA_MOVES["zoom in"], strict=True)]
    assert camera_velocity_of("zoom in + pan left") == pytest.approx(both)
    assert Request.from_json(Request(camera="pan left").to_json()).camera == "pan left"
    assert Request.from_dict({"camera": [0, 0, 1, 0, 0, 0]}).camera == "0, 0, 1, 0, 0, 0"


@pytest.mark.parametrize("wrong", ["fly", "", "+", [1, 2], [True] * 6, "nan 0 0 0 0 0", [9, 0, 0, 0, 0, 0]])
def test_another_camera_is_refused_in_a_sentence_that_lists_them(wrong):
    with pytest.raises(RequestError, match="camera must be still, pan left"):
        Request.from_dict({"camera": wrong})


def test_named_moves_are_those_of_the_world():
    import numpy as np

    rng = np.random.default_rng(0)
    for move, named in CAMERA_MOVES.items():
        placements = [sample_placement(rng, 0.3, EDITIONS[2]) for _ in range(30)]
        velocities = [camera_velocity(move, one, np.linspace(0, 1, 33), 32 / 12).mean(0) for one in placements]
        assert np.abs(np.mean(velocities, 0) - named).max() < 0.08, move  # placements differ by 4 % in distance


def test_a_camera_takes_the_place_of_what_the_prompt_says_but_not_of_the_negative_prompt():
    said = torch.zeros(2, CAMERA_VALUES)
    said[:, 0], said[:, -1] = 1, 1
    text = TextEmbeddings(torch.zeros(2, 4), torch.zeros(2, 4), (1, 1), said)
    passes = [ForwardPass(torch.zeros(4, 3, 2, 2), torch.ones(3, 2, 2), "a ball"), None]
    passes[1] = ForwardPass(*(getattr(passes[0], name) for name in ("latents", "sigma", "prompt")), conditional=False)
    given, negative = camera_rows([text], [Request(camera="zoom in")] * 2, passes) or ()
    assert given.shape == (3, CAMERA_VALUES) and torch.equal(negative, said[[1]].expand(3, -1))
    assert given[0].tolist() == pytest.approx([*CAMERA_MOVES["zoom in"], 1.0])
    plain, _ = camera_rows([text], [Request()] * 2, passes) or ()
    assert torch.equal(plain, said[[0]].expand(3, -1))
    silent = TextEmbeddings(torch.zeros(2, 4), torch.zeros(2, 4), (1, 1))  # of an encoder that reads no camera
    assert camera_rows([silent], [Request()] * 2, passes) is None
    given, negative = camera_rows([silent], [Request(camera="still")] * 2, passes) or ()
    assert given[:, CAMERA_AXES.index("roll") + 1].tolist() == [1, 1, 1] and not negative.any()


def test_the_camera_changes_the_clip_and_another_prompt_in_the_pack_keeps_its_own(camera_model):
    pipeline = Pipeline.from_pretrained(camera_model)
    plain, left = latents_of(pipeline), latents_of(pipeline, camera="pan left")
    assert not torch.equal(plain, left)
    assert torch.equal(left, latents_of(pipeline, camera="0, 0, 0, 0, -0.4, -0.14"))
    assert not torch.equal(left, latents_of(pipeline, camera="pan right"))
    requests = [Request(prompt="a red ball", camera=camera) for camera in ("pan left", None)]
    together = [sample.latents for sample in pipeline.generate(requests, pack_size=2)]
    torch.testing.assert_close(together, [left, plain])


def test_a_command_records_the_camera_in_the_file(camera_model, tmp_path, capsys):
    output = tmp_path / "clip.mp4"
    words = ["generate", "a red ball", "--camera", "Pan left", "--model", str(camera_model), "-o", str(output)]
    assert main(words) == 0, capsys.readouterr().err
    assert read_request(output).camera == "pan left"
    assert main([*words[:3], "spin", *words[4:]]) == 2
    assert "camera must be still, pan left" in capsys.readouterr().err


def test_a_model_without_a_camera_refuses_it_in_one_sentence(tiny_model, camera_model, generate, tmp_path):
    assert folder_reads_camera(camera_model) and not folder_reads_camera(tiny_model)
    code, _, err = generate("a red ball", "--camera", "pan left", "-o", tmp_path / "clip.mp4")
    assert code == 2 and "camera must be left out for this model" in err and not (tmp_path / "clip.mp4").exists()


def test_the_api_checks_the_camera_before_it_queues(tiny_model, camera_model, tmp_path):
    from app.server.api import create_app

    queue = Queue(tmp_path)
    service = Service(queue, served_models(queue, [str(tiny_model), str(camera_model)]))
    api = TestClient(create_app(service), base_url="http://127.0.0.1")
    ask = lambda model, camera: api.post("/v1/videos", json={"prompt": "a ball", "model": model, "camera": camera})
    refused = ask("tiny", "pan left")
    assert refused.status_code == 400 and "camera must be left out" in refused.json()["error"]["message"]
    assert ask("camera", "fly").status_code == 400
    job = queue.job(ask("camera", [0, 0, 1, 0, 0, 0]).json()["id"])
    assert job.request.camera == "0, 0, 1, 0, 0, 0"
