"""The cost of a clip of any length is counted without sampling it, and equals the count of a whole sampling."""

import time

import pytest
import torch
from PIL import Image

from dit.estimate import CostModel
from dit.request import Moment, Request
from dit.sampler import evaluated_levels, sample
from dit.sampling_cost import SamplingCounter
from tests.counting_denoiser import count_by_sampling
from vae.video.write import write_video


@pytest.fixture(scope="module")
def cost_model(tiny_model):
    return CostModel.read(tiny_model)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write_video(folder / "clip.mp4", torch.rand(3, 25, 64, 64) * 2 - 1, 8.0)
    Image.new("RGB", (64, 64)).save(folder / "still.png")
    return {"clip": str(folder / "clip.mp4"), "still": str(folder / "still.png")}


def moments(*times, **files):
    prompts = ("a red ball", "the blue cube spins while the camera orbits left", "it stops")
    return tuple(Moment(at, prompts[n % 3], **files if n == 1 else {}) for n, at in enumerate(times))


INTERVAL = {"guidance_interval": (0.3, 0.8)}
REQUESTS = {
    "long": lambda **_: {
        "mode": "long",
        "prompt": "a ball",
        "seconds": 61.3,
        "sampler": "heun",
        "steps": 4,
        **INTERVAL,
    },
    "long, of a tie in rounding": lambda **_: {"mode": "long", "prompt": "a ball", "seconds": 60.375},
    "moments": lambda **_: {"mode": "long", "moments": moments(0, 3.2, 31.7), "seconds": 70.0},
    "storyboard": lambda clip, still: {
        **{"mode": "storyboard", "moments": moments(0, 25.1, 55.5, clip=clip), "seconds": 80.0, "frame_guidance": 2.0}
    },
    "keyframes": lambda clip, still: {
        **{"mode": "keyframes", "prompt": "a ball", "keyframes": [(40.0, still), (1.0, still)], **INTERVAL}
    },
    "loop": lambda **_: {"mode": "loop", "prompt": "a ball", "seconds": 45.0, "sampler": "dpm"},
    "after": lambda clip, **_: {"mode": "extend", "prompt": "a ball", "clip": clip, "seconds": 40.2},
    "both": lambda clip, **_: {
        **{"mode": "extend", "prompt": "a ball", "clip": clip, "side": "both", "seconds": 40.2, "frame_guidance": 2.0}
    },
    "connect": lambda clip, **_: {"mode": "connect", "prompt": "a", "clip": clip, "other": clip, "seconds": 41.0},
    "recut": lambda clip, **_: {"mode": "recut", "prompt": "a ball", "clip": clip, "window": (1, 2), "seconds": 81.0},
    "recut from 0": lambda clip, **_: {
        **{"mode": "recut", "prompt": "a ball", "clip": clip, "window": (0, 2), "seconds": 50.0}
    },
}


@pytest.mark.parametrize("name", REQUESTS)
def test_the_cost_of_a_shortened_canvas_equals_that_of_sampling_the_whole(name, cost_model, files):
    pipeline, fields = cost_model.pipeline, REQUESTS[name](**files)
    request = pipeline.resolve(Request(**({"steps": 2} | fields)))
    painting, _ = cost_model.paint(request)
    assert painting.inserted and painting.canvas.latent_frames < painting.latent_frames
    counter = SamplingCounter(pipeline, request, cost_model.text_flops)
    counts = counter.count(painting)
    assert (painting.latent_frames, counts) == count_by_sampling(cost_model, request, counter)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm"])
def test_the_levels_of_a_schedule_are_those_that_the_sampler_evaluates(sampler, cost_model):
    canvas, seen = cost_model.paint(cost_model.pipeline.resolve(Request(prompt="a ball")))[0].canvas, []

    def velocity(latents, sigmas):
        seen.append(float(sigmas[0].max()))
        return [torch.zeros_like(latents[0])]

    schedule = torch.tensor([1.0, 0.7, 0.4, 0.0])
    list(sample(velocity, [canvas], [canvas.clean_latents], [schedule], sampler))
    assert evaluated_levels(schedule, sampler).tolist() == pytest.approx(seen)


def test_an_estimate_takes_no_longer_for_a_longer_clip(cost_model):
    def seconds_of(length):
        request = Request(prompt="a red ball", mode="long", seconds=length, steps=30)
        started = time.thread_time()
        for _ in range(3):
            cost_model.cost(request)
        return (time.thread_time() - started) / 3

    seconds_of(60.0)
    assert seconds_of(30_000.0) < 0.05 and seconds_of(900_000.0) < 3 * seconds_of(60.0) + 0.01
    hour, two = (cost_model.cost(Request(prompt="a", mode="long", seconds=s, steps=1)) for s in (3600.0, 7200.0))
    assert two.flops > 1.99 * hour.flops and two.frames - hour.frames == 8 * 3600
