"""What a clip will cost is said before it is made, and is so."""

import json
import weakref

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from app.cli import main
from app.queue.estimate import Estimator, Unfit
from app.queue.history import History
from app.queue.jobs import Queue
from app.queue.worker import work
from dit.estimate import Outline
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
def outline(tiny_model):
    return Outline.read(tiny_model)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    path = tmp_path_factory.mktemp("films") / "film.mp4"
    write_video(path, torch.rand(3, 13, 64, 64) * 2 - 1, 8.0)
    return str(path)


MOMENTS = (Moment(0.0, "a red ball"), Moment(1.5, "the blue cube spins while the camera orbits"))
REQUESTS = {
    "plain": Request(prompt="a red ball", guidance=1.0),
    "guided": Request(prompt="a red ball", seconds=1.1, size=(48, 64)),
    "guided for a while": Request(prompt="a red ball", guidance_interval=(0.4, 0.8), steps=7),
    "heun": Request(prompt="a red ball", sampler="heun"),
    "picture": Request(prompt="a red ball", mode="text-to-image"),
    "long": Request(prompt="a red ball", mode="long", seconds=6.0),
    "storyboard": Request(mode="storyboard", moments=MOMENTS, seconds=4.0),
    "loop": Request(prompt="a ball", mode="loop", seconds=2.0),
    "extend": Request(prompt="a ball", mode="extend", clip="FILM", side="both", seconds=1.0, frame_guidance=2.0),
    "edit": Request(prompt="a ball", mode="edit", clip="FILM"),
    "inpaint": Request(prompt="a ball", mode="inpaint", clip="FILM", box=(16, 16, 48, 48), frame_guidance=2.0),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_the_arithmetic_of_a_clip_is_what_torch_counts(name, pipeline, outline, film):
    request = REQUESTS[name].altered(clip=film if REQUESTS[name].clip else None)
    looks = []
    watch = pipeline.transformer.register_forward_pre_hook(lambda model, inputs: looks.extend(inputs[0].shapes))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        (dream,) = pipeline.generate([request])
        frames = pipeline.pixels(dream).shape[1]
    watch.remove()
    cost = outline.cost(request)
    assert (cost.looks, cost.frames, cost.request) == (len(looks), frames, dream.request)
    assert cost.flops == counter.get_total_flops()


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that are there at once, without those of a model's weights."""

    def __init__(self, model):
        super().__init__()
        self.known = {value.untyped_storage()._cdata: 0 for value in model.state_dict().values()}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for value in tree_leaves(found):
            if (
                isinstance(value, torch.Tensor)
                and (key := (storage := value.untyped_storage())._cdata) not in self.known
            ):
                self.known[key] = storage.nbytes()
                self.now += self.known[key]
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.forget, key)
        return found

    def forget(self, key):
        self.now -= self.known.pop(key)


@pytest.mark.parametrize("width, shapes", [(192, [(5, 8, 8)] * 2), (384, [(3, 16, 16)])])
def test_the_memory_of_a_look_is_what_its_tensors_take(width, shapes):
    shape = DiTConfig(depth=2, width=width, text_dim=32)
    model, many = DiT.from_dit_config(shape).eval(), len(shapes)
    batch = pack(
        [torch.randn(16, *one) for one in shapes], [torch.ones(one) for one in shapes], [8.0] * many, (1, 2, 2)
    )
    with torch.no_grad(), Live(model) as live:
        model(batch, torch.randn(9 * many, 32), torch.randn(many, 32), (9,) * many)
    assert live.peak == pytest.approx(forward_bytes(shape, len(batch.tokens)), rel=0.1)


@pytest.mark.parametrize(
    "widths, blocks, side", [((80, 160), (2, 3), 16), ((32, 64), (2, 2), 16), ((64, 32), (1, 1), 8)]
)
def test_the_memory_of_showing_a_clip_is_what_its_tensors_take(widths, blocks, side):
    vae = VideoVAE(16, widths=widths, decoder_blocks=blocks).eval()
    with torch.no_grad(), Live(vae) as live:
        past = None
        for piece in torch.randn(1, 16, 9, side, side).split(4, 2):
            _, past = vae.decode_piece(piece, past)
    assert live.peak == pytest.approx(decode_bytes(vae, 4, side, side), rel=0.2)


def test_what_does_not_fit_is_refused_with_the_nearest_that_does(tiny_model):
    estimator = Estimator()
    ask = lambda **fields: Request(prompt="a red ball", model=str(tiny_model), **fields)
    short, small, still = (
        estimator.estimate(one).peak()
        for one in (ask(seconds=1.1), ask(seconds=1.1, size=(48, 64)), ask(mode="text-to-image"))
    )
    whole = estimator.check_fits(ask()).peak()
    assert still < small < short < whole
    for room, sentence in ((short, "--size 64x64 --seconds 1.125"), (small, "--size 48x64 --seconds 1.125")):
        estimator.room = room
        with pytest.raises(Unfit, match=f"must fit in memory.*would take.*the nearest that fits is {sentence}"):
            estimator.check_fits(ask(seed=3))
    assert estimator.check_fits(ask(size=(48, 64), seconds=1.1))
    estimator.room = 2**20
    with pytest.raises(Unfit, match="no clip of this model fits"):
        estimator.check_fits(ask())


def test_an_endless_clip_is_estimated_at_once_and_refused(outline, tiny_model):
    ask = lambda seconds: Request(prompt="a red ball", mode="long", seconds=seconds, steps=1, model=str(tiny_model))
    day, minutes = (outline.cost(ask(seconds)) for seconds in (86400.0, 480.0))
    assert day.flops == pytest.approx(180 * minutes.flops, rel=0.02) and day.frames == pytest.approx(
        8 * 86400, rel=0.01
    )
    estimator = Estimator()
    estimator.room = estimator.estimate(ask(43200.0)).peak()
    with pytest.raises(Unfit, match="the nearest that fits is --size 64x64 --seconds 43200"):
        estimator.check_fits(ask(86400.0))


def test_what_was_made_here_says_how_fast_the_next_will_be(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("LONGTAKE_HOME", str(tmp_path / "home"))
    ask = Request(prompt="a red ball", model=str(tiny_model))
    before = Estimator(threads=torch.get_num_threads()).estimate(ask)
    assert before.pace.clips == 0 and "a guess" in before.words()
    queue = Queue(tmp_path / "queue")
    jobs = queue.submit([ask.altered(seed=seed, steps=2) for seed in range(5)])
    work(queue, until_empty=True, together=2)
    took = [queue.job(job.id).ended - queue.job(job.id).began for job in jobs]
    after = Estimator(threads=torch.get_num_threads()).estimate(ask.altered(steps=2))
    assert after.pace.clips == 5 and "the pace of 5 clips made here" in after.words()
    assert 0 < after.seconds < max(took) and after.pace.slow <= after.pace.rate <= after.pace.fast
    assert after.file_bytes == pytest.approx(jobs[0].output.stat().st_size, rel=0.5)
    assert 2**28 < after.pace.program < 2**32
    (tmp_path / "home" / "history.sqlite").write_text("damaged")
    assert Estimator(threads=torch.get_num_threads()).estimate(ask).pace.clips == 0
    History().note(after.cost, "cpu", 1.0, None, jobs[0].output, 1)  # which harms nobody


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
    assert lines[0].startswith("time: 8 looks at 80 tokens ") and "+ 17 frames shown" in lines[0]
    assert main(["estimate", "a red ball", "--model", str(tiny_model), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    cost = found["cost"]
    assert cost["flops"] == sum(cost[part] for part in ("text", "given", "dream", "joins", "show"))
    assert found["seconds"] == pytest.approx(cost["flops"] / found["pace"]["rate"])
    assert found["peak"] == found["pace"]["program"] + cost["working"] and found["fits"]
    assert main(["estimate", "a red ball", "--model", str(tiny_model), "--size", "66x64"]) == 2
    assert "was trained for" in capsys.readouterr().err
