"""The cost of a clip is known before it is made."""

import json
import weakref

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from app.cli import main
from app.queue.estimate import DoesNotFit, Estimator
from app.queue.history import History
from app.queue.jobs import Queue
from app.queue.worker import run_worker
from dit.estimate import CostModel
from dit.flops import decode_bytes, forward_bytes
from dit.model import DiT, DiTConfig
from dit.packing import pack
from dit.pipeline import Pipeline
from dit.request import Moment, Request
from vae.model import VideoVAE
from vae.video.write import write_video


@pytest.fixture(scope="module")
def pipeline(tiny_model):
    return Pipeline.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def cost_model(tiny_model):
    return CostModel.read(tiny_model)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    write_video(path, torch.rand(3, 13, 64, 64) * 2 - 1, 8.0)
    return str(path)


MOMENTS = (Moment(0.0, "a red ball"), Moment(1.5, "the blue cube spins while the camera orbits"))
REQUESTS = {
    "plain": Request(prompt="a red ball", guidance=1.0),
    "guided": Request(prompt="a red ball", seconds=1.1, size=(48, 64)),
    "guided in an interval": Request(prompt="a red ball", guidance_interval=(0.4, 0.8), steps=7),
    "heun": Request(prompt="a red ball", sampler="heun"),
    "image": Request(prompt="a red ball", mode="text-to-image"),
    "long": Request(prompt="a red ball", mode="long", seconds=6.0),
    "storyboard": Request(mode="storyboard", moments=MOMENTS, seconds=4.0),
    "loop": Request(prompt="a ball", mode="loop", seconds=2.0),
    "extend": Request(prompt="a ball", mode="extend", clip="CLIP", side="both", seconds=1.0, frame_guidance=2.0),
    "edit": Request(prompt="a ball", mode="edit", clip="CLIP"),
    "inpaint": Request(prompt="a ball", mode="inpaint", clip="CLIP", box=(16, 16, 48, 48), frame_guidance=2.0),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_the_flops_of_a_clip_equal_torchs_count(name, pipeline, cost_model, clip):
    request = REQUESTS[name].altered(clip=clip if REQUESTS[name].clip else None)
    passes = []
    hook = pipeline.transformer.register_forward_pre_hook(lambda model, inputs: passes.extend(inputs[0].shapes))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        (sample,) = pipeline.generate([request])
        frames = pipeline.pixels(sample).shape[1]
    hook.remove()
    cost = cost_model.cost(request)
    assert (cost.evaluations, cost.frames, cost.request) == (len(passes), frames, sample.request)
    assert cost.flops == counter.get_total_flops()
    assert CostModel.of(pipeline).cost(request) == cost  # a loaded model costs the same


class LiveBytes(TorchDispatchMode):
    """Count the bytes of the tensors that exist at once, without a model's weights."""

    def __init__(self, model):
        super().__init__()
        self.known = {value.untyped_storage()._cdata: 0 for value in model.state_dict().values()}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if (
                isinstance(value, torch.Tensor)
                and (key := (storage := value.untyped_storage())._cdata) not in self.known
            ):
                self.known[key] = storage.nbytes()
                self.now += self.known[key]
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.forget, key)
        return result

    def forget(self, key):
        self.now -= self.known.pop(key)


@pytest.mark.parametrize("width, shapes", [(192, [(5, 8, 8)] * 2), (384, [(3, 16, 16)])])
def test_the_memory_of_a_forward_pass_is_that_of_its_tensors(width, shapes):
    config = DiTConfig(depth=2, width=width, text_dim=32)
    model, clips = DiT.from_dit_config(config).eval(), len(shapes)
    latents, sigmas = [torch.randn(16, *shape) for shape in shapes], [torch.ones(shape) for shape in shapes]
    batch = pack(latents, sigmas, [8.0] * clips, (1, 2, 2))
    with torch.no_grad(), LiveBytes(model) as live:
        model(batch, torch.randn(9 * clips, 32), torch.randn(clips, 32), (9,) * clips)
    assert live.peak == pytest.approx(forward_bytes(config, len(batch.tokens)), rel=0.1)


@pytest.mark.parametrize(
    "widths, blocks, side", [((80, 160), (2, 3), 16), ((32, 64), (2, 2), 16), ((64, 32), (1, 1), 8)]
)
def test_the_memory_of_decoding_is_that_of_its_tensors(widths, blocks, side):
    vae = VideoVAE(16, widths=widths, decoder_blocks=blocks).eval()
    with torch.no_grad(), LiveBytes(vae) as live:
        state = None
        for piece in torch.randn(1, 16, 9, side, side).split(4, 2):
            _, state = vae.decode_piece(piece, state)
    assert live.peak == pytest.approx(decode_bytes(vae, 4, side, side), rel=0.2)


def test_what_does_not_fit_is_refused_with_the_nearest_that_does(tiny_model):
    estimator = Estimator()
    request_with = lambda **fields: Request(prompt="a red ball", model=str(tiny_model), **fields)
    short, small, still = (
        estimator.estimate(one).peak_bytes()
        for one in (
            request_with(seconds=1.1),
            request_with(seconds=1.1, size=(48, 64)),
            request_with(mode="text-to-image"),
        )
    )
    whole = estimator.check_fits(request_with()).peak_bytes()
    assert still < small < short < whole
    for room, sentence in ((short, "--size 64x64 --seconds 1.125"), (small, "--size 48x64 --seconds 1.125")):
        estimator.available_bytes = room
        with pytest.raises(DoesNotFit, match=f"must fit in memory.*would take.*the nearest that fits is {sentence}"):
            estimator.check_fits(request_with(seed=3))
    assert estimator.check_fits(request_with(size=(48, 64), seconds=1.1))
    estimator.available_bytes = 2**20
    with pytest.raises(DoesNotFit, match="no clip of this model fits"):
        estimator.check_fits(request_with())


def test_a_very_long_clip_is_estimated_at_once_and_refused(cost_model, tiny_model):
    request_with = lambda seconds: Request(
        prompt="a red ball", mode="long", seconds=seconds, steps=1, model=str(tiny_model)
    )
    day, minutes = (cost_model.cost(request_with(seconds)) for seconds in (86400.0, 480.0))
    assert day.flops == pytest.approx(180 * minutes.flops, rel=0.02) and day.frames == pytest.approx(
        8 * 86400, rel=0.01
    )
    estimator = Estimator()
    estimator.available_bytes = estimator.estimate(request_with(43200.0)).peak_bytes()
    with pytest.raises(DoesNotFit, match="the nearest that fits is --size 64x64 --seconds 43200"):
        estimator.check_fits(request_with(86400.0))


def test_clips_made_here_calibrate_the_next_estimate(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("LONGTAKE_HOME", str(tmp_path / "home"))
    request = Request(prompt="a red ball", model=str(tiny_model))
    before = Estimator(threads=torch.get_num_threads()).estimate(request)
    assert before.speed.clips == 0 and "a guess" in before.explain()
    queue = Queue(tmp_path / "queue")
    jobs = queue.submit([request.altered(seed=seed, steps=2) for seed in range(5)])
    run_worker(queue, until_empty=True, pack_size=2)
    took = [queue.job(job.id).finished - queue.job(job.id).started for job in jobs]
    after = Estimator(threads=torch.get_num_threads()).estimate(request.altered(steps=2))
    assert after.speed.clips == 5 and "measured on 5 clips made here" in after.explain()
    assert 0 < after.seconds < max(took) and after.speed.slow <= after.speed.flops_per_second <= after.speed.fast
    assert after.file_bytes == pytest.approx(jobs[0].output.stat().st_size, rel=0.5)
    assert 2**28 < after.speed.program_bytes < 2**32
    (tmp_path / "home" / "history.sqlite").write_text("damaged")
    assert Estimator(threads=torch.get_num_threads()).estimate(request).speed.clips == 0
    History().record(after.cost, "cpu", 1.0, None, jobs[0].output, 1)  # a damaged history is ignored


def test_the_command_shows_its_arithmetic(tiny_model, capsys):
    assert (
        main(
            [
                "estimate",
                "a red ball",
                "--model",
                str(tiny_model),
                "--size",
                "64x64",
                "--steps",
                "4",
                "--seed",
                "1",
                "2",
            ]
        )
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["time", "memory"] * 2
    assert lines[0].startswith("time: 8 model evaluations of 80 tokens ") and "+ 17 frames decoded" in lines[0]
    assert main(["estimate", "a red ball", "--model", str(tiny_model), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    cost = found["cost"]
    assert cost["flops"] == sum(
        cost[part] for part in ("text_flops", "input_flops", "denoise_flops", "anchor_flops", "decode_flops")
    )
    assert found["seconds"] == pytest.approx(cost["flops"] / found["speed"]["flops_per_second"])
    assert found["peak_bytes"] == found["speed"]["program_bytes"] + cost["working_bytes"] and found["fits"]
    assert main(["estimate", "a red ball", "--model", str(tiny_model), "--size", "66x64"]) == 2
    assert "was trained for" in capsys.readouterr().err
