"""`longtake models`, and what a folder may hold: no code, no pickles, no missing weights."""

import json
import shutil

import pytest
import torch

from app.licences import licence_of
from app.queue.estimate import Estimator, load_cost_model
from app.registry import added_models, model_folder
from dit.adapters.load import hash_of, load_model, settings_of
from dit.request import Request, RequestError
from tests import tiny_foreign_pipelines, tiny_pipelines
from vae.weights import WeightsError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a tiny Wan pipeline."""
    path = tmp_path_factory.mktemp("weights") / "tiny-wan"
    tiny_pipelines.make(tiny_pipelines.wan).save_pretrained(path)
    return path


@pytest.fixture
def changed(folder, tmp_path):
    """A copy of the folder, to damage."""
    return shutil.copytree(folder, tmp_path / "copy")


def test_a_model_is_added_used_by_name_verified_and_removed(folder, longtake, tmp_path):
    code, out, err = longtake("models", "add", folder, "--name", "cats")
    assert code == 0 and "WanPipeline (Wan)" in out and "apache-2.0" in out, err
    assert model_folder("cats") == folder
    code, out, _ = longtake("models", "list", "--json")
    found = {one["name"]: one for one in map(json.loads, out.splitlines())}
    assert code == 0 and {"first", "cats"} <= found.keys() and found["cats"]["family"] == "Wan"
    assert longtake("models", "verify", "cats")[0] == 0
    code, _, err = longtake(
        *("generate", "a cat plays piano", "--model", "cats", "--size", "32x32", "--seconds", "0.3", "--steps", "1"),
        *("--unsigned", "-o", tmp_path / "cat.mp4"),
    )
    assert code == 0, err
    code, out, _ = longtake("models", "remove", "cats")
    assert code == 0 and "cats" not in added_models() and folder.is_dir()
    with pytest.raises(RequestError, match="longtake models lists"):
        model_folder("cats")


def test_changed_weights_of_an_added_model_are_found(changed, longtake):
    assert longtake("models", "add", changed, "--name", "changed")[0] == 0
    model = load_model(changed)
    model.inner.transformer.proj_out.weight.data += 1
    model.inner.transformer.save_pretrained(changed / "transformer")
    code, _, err = longtake("models", "verify", "changed")
    assert code == 2 and "must be those that were added" in err
    longtake("models", "remove", "changed")


def test_a_licence_with_limits_must_be_agreed_to(changed, longtake):
    card = "---\nlicense: other\nlicense_name: tencent-hunyuan-community\nlicense_link: LICENSE\n---\n# A model\n"
    (changed / "README.md").write_text(card)
    code, _, err = longtake("models", "add", changed, "--name", "limited")
    assert code == 2 and "not for use in the EU, the UK and South Korea" in err and "--agree" in err
    code, out, _ = longtake("models", "add", changed, "--name", "limited", "--agree")
    assert code == 0 and "tencent-hunyuan-community, see LICENSE" in out
    longtake("models", "remove", "limited")


def test_the_licence_is_kept_in_the_credentials(changed):
    from app.provenance.credentials import model_licence

    (changed / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    assert model_licence(str(changed)) == {"licence": "cc-by-nc-4.0", "limits": "not for commercial use"}
    assert model_licence(None) is None and model_licence("gone") is None


def test_the_usual_licence_is_named_where_a_folder_has_none(tmp_path):
    assert licence_of(tmp_path, "HunyuanVideoPipeline").describe().startswith("tencent-hunyuan-community (usual")
    assert licence_of(tmp_path, "UnheardOfPipeline").name == "unknown"


def index_with(folder, **changes) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": ["pipeline", "Mine"]}, "Python code of its own"),
        ({"_class_name": "NoSuchPipeline"}, "diffusers"),
        ({"_class_name": "AutoencoderKLWan"}, "diffusers"),
        ({"transformer": ["my_transformer", "Mine"]}, "never run"),
        ({"vae": ["os", "system"]}, "never run"),
    ],
)
def test_a_folder_cannot_have_code_run(changed, changes, message):
    (changed / "my_transformer.py").write_text("raise SystemExit('it ran')")
    (changed / "pipeline.py").write_text("raise SystemExit('it ran')")
    index_with(changed, **changes)
    with pytest.raises(WeightsError, match=message):
        load_model(changed)


def test_weights_that_are_no_safetensors_are_refused(changed, longtake):
    weights = changed / "transformer" / "diffusion_pytorch_model.safetensors"
    torch.save({}, changed / "transformer" / "diffusion_pytorch_model.bin")
    weights.unlink()
    with pytest.raises(WeightsError, match="cannot be loaded"):
        load_model(changed)
    code, _, err = longtake("models", "add", changed)
    assert code == 2 and "safetensors" in err


def test_a_missing_weight_is_named(changed, longtake):
    from safetensors.torch import load_file, save_file

    path = changed / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights.pop("proj_out.bias")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"proj_out\.bias"):
        load_model(changed)
    code, _, err = longtake("models", "add", changed)
    assert code == 2 and "proj_out.bias" in err


def test_defaults_need_no_file_of_ours_and_may_have_one(changed, folder):
    settings = settings_of(folder)
    assert settings.sampler == "scheduler" and settings.fps == 16.0 and (64, 64, 9) in settings.formats
    own = {"formats": [[32, 32, 5]], "size": [32, 32], "fps": 16.0, "seconds": 0.3125, "steps": 2}
    (changed / "longtake.json").write_text(json.dumps(own))
    assert settings_of(changed).steps == 2 and load_model(changed).resolve(Request(prompt="a cat")).steps == 2


def test_an_estimate_needs_no_weights_and_what_does_not_fit_is_refused(folder):
    load_cost_model.cache_clear()
    estimator = Estimator()
    request = Request(prompt="a cat", model=str(folder), size=(32, 32), seconds=9 / 16, steps=4, guidance=5.0)
    found = estimator.estimate(request)
    assert (found.cost.evaluations, found.cost.tokens, found.cost.frames) == (8, 12, 9)
    assert found.cost.request.model_hash == hash_of(folder)
    assert found.cost.denoise_flops == 8 * load_cost_model(str(folder)).evaluation(3, 4, 4)[0] > 0
    estimator.available_bytes = found.peak_bytes() - 1
    with pytest.raises(RequestError, match=r"must fit in memory.*nearest that fits"):
        estimator.check_fits(request)


def test_the_flops_of_an_evaluation_are_those_that_torch_counts():
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from dit.adapters.counting import count_operations

    model = tiny_pipelines.make(tiny_pipelines.wan).transformer.eval()
    inputs = {
        "hidden_states": torch.zeros(1, 16, 3, 4, 4),
        "timestep": torch.zeros(1),
        "encoder_hidden_states": torch.zeros(1, 8, 32),
    }
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**inputs)
    on_meta = {name: value.to("meta") for name, value in inputs.items()}
    model = model.to("meta")
    flops, peak = count_operations(lambda: model(**on_meta), model)
    assert flops == counter.get_total_flops() and peak > 0


def test_the_fastest_plan_that_fits_is_chosen():
    from dit.adapters.memory import BY_LAYER, BY_PART, RESIDENT, plan_memory

    parts = {"transformer": 28, "text_encoder": 11, "vae": 1}
    found = [plan_memory(parts, 4, available) for available in (44, 43, 32, 31)]
    assert [plan.name for plan in found] == [RESIDENT, BY_PART, BY_PART, BY_LAYER]
    assert [plan.weight_bytes for plan in found[:3]] == [40, 28, 28]


@pytest.mark.parametrize("name", ["wan_5b", "wan_i2v", "wan_vace", "ltx", "hunyuan", "cogvideo", "mochi"])
def test_the_cost_of_every_family_is_known_without_weights(name):
    from dit.adapters.estimate import AdaptedCostModel, load_skeleton_like
    from dit.adapters.load import adapt

    inner = tiny_pipelines.make(getattr(tiny_pipelines, name))
    skeleton = adapt(load_skeleton_like(inner), "hash")
    cost = AdaptedCostModel(skeleton, {"transformer": 10}).cost(Request(prompt="a cat", guidance=3.0, guidance_2=None))
    assert all(value > 0 for value in (cost.denoise_flops, cost.decode_flops, cost.forward_bytes, cost.decode_bytes))
    assert cost.evaluations == cost.request.steps * (1 if name == "hunyuan" else 2)


@pytest.mark.slow  # a queue, and two models loaded
def test_two_foreign_models_make_clips_in_one_queue(folder, tmp_path):
    from app.queue.jobs import DONE, Queue
    from app.queue.worker import run_worker
    from app.render import read_request

    other = tmp_path / "tiny-ltx"
    tiny_pipelines.make(tiny_pipelines.ltx).save_pretrained(other)
    requests = [
        Request(prompt="a cat", model=str(one), size=(32, 32), seconds=0.4, steps=2, seed=seed)
        for seed, one in enumerate((folder, other, folder))
    ]
    queue = Queue(tmp_path / "queue")
    jobs = queue.submit(requests)
    run_worker(queue, until_empty=True)
    done = [queue.job(job.id) for job in jobs]
    assert [job.state for job in done] == [DONE] * 3, [job.message for job in done]
    hashes = [read_request(job.output).model_hash for job in done]
    assert hashes == [hash_of(folder), hash_of(other), hash_of(folder)]


def test_a_pipeline_without_a_family_samples_by_its_own_call(tmp_path):
    from dit.adapters.load import adapt

    pipe = tiny_pipelines.make(tiny_foreign_pipelines.allegro)
    model, steps = adapt(pipe, "hash"), []
    assert model.modes == ("text-to-video", "text-to-image")
    request = Request(prompt="a cat", size=(64, 64), seconds=9 / 15, steps=2, seed=5, guidance=3.0)
    (sample,) = model.generate([request], progress=lambda done, all_steps: steps.append((done, all_steps)))
    expected = pipe(
        prompt="a cat",
        height=64,
        width=64,
        num_frames=9,
        num_inference_steps=2,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(5),
        output_type="np",
    ).frames[0]
    expected = torch.as_tensor(expected).permute(3, 0, 1, 2) * 2 - 1
    torch.testing.assert_close(model.pixels(sample), expected, rtol=0, atol=1e-5)
    assert steps == [(1, 2), (2, 2)]
    with pytest.raises(RequestError, match="this model makes text-to-video, text-to-image; got extend"):
        model.resolve(Request(mode="extend", prompt="a cat", clip="ball.mp4"))


def test_a_call_stops_at_once_when_it_is_cancelled():
    from dit.adapters.load import adapt

    model = adapt(tiny_pipelines.make(tiny_foreign_pipelines.allegro))

    def cancel(done: int, all_steps: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(model.generate([Request(prompt="a cat", size=(64, 64), seconds=0.6, steps=2)], progress=cancel))


def test_the_number_of_frames_may_have_another_name():
    from dit.adapters.load import adapt

    model = adapt(tiny_pipelines.make(tiny_foreign_pipelines.sana))
    (sample,) = model.generate([Request(prompt="a cat", size=(32, 32), seconds=9 / 24, steps=1)])
    assert model.pixels(sample).shape == (3, 9, 32, 32)
