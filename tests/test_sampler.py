"""The sampler, on a velocity that is known in closed form: for data ~ N(mu, sd^2) no network is needed."""

from dataclasses import replace

import pytest
import torch

from dit.canvas import Canvas, blank
from dit.flow import make_scheduler, sigma_schedule
from dit.guidance import Script, plan
from dit.modes import MODES, Ask
from dit.request import SAMPLERS, Moment, Request
from dit.sampler import classifier_free_guidance, sample, seeded_noise

MEAN, SPREAD = 3.0, 0.5


def exact(xs, levels):
    """Return E[noise - data | x] at each level, for data ~ N(MEAN, SPREAD^2)."""
    found = []
    for x, level in zip(xs, levels, strict=True):
        t = level[None]
        variance = ((1 - t) * SPREAD) ** 2 + t**2
        off = x - (1 - t) * MEAN
        found.append((t - (1 - t) * SPREAD**2) * off / variance - MEAN)
    return found


def dream(canvas, steps=50, method="euler", seed=0):
    times = sigma_schedule(make_scheduler(80, 1.0), steps, 80)
    *_, (latents,) = sample(exact, [canvas], [seeded_noise(seed, canvas.clean_latents.shape)], [times], method)
    return latents


@pytest.mark.parametrize("method", SAMPLERS)
def test_samples_have_the_mean_and_spread_of_the_data(method):
    found = dream(blank((8, 4, 16, 16), 8.0), method=method)
    assert found.mean() == pytest.approx(MEAN, abs=0.03)
    assert found.std() == pytest.approx(SPREAD, abs=0.03)


def test_second_order_is_closer_to_the_exact_end_than_euler_with_as_many_looks():
    canvas = blank((4, 2, 8, 8), 8.0)
    goal = MEAN + SPREAD * seeded_noise(0, canvas.clean_latents.shape)  # the flow of a normal law is linear
    looks = {"euler": 16, "heun": 8, "dpm": 16}
    error = {method: (dream(canvas, steps, method) - goal).abs().max() for method, steps in looks.items()}
    assert error["heun"] < error["euler"] and error["dpm"] < error["euler"]


def test_dpm_goes_where_diffusers_goes_when_all_latents_are_equally_noisy():
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    theirs = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0, final_sigmas_type="zero"
    )
    theirs.set_timesteps(12)
    x = start = seeded_noise(0, (4, 2, 8, 8))
    for time, level in zip(theirs.timesteps, theirs.sigmas, strict=False):
        (v,) = exact([x], [level.expand(2, 8, 8)])
        x = theirs.step(v, time, x).prev_sample
    # theirs begins a thousandth below pure noise
    canvas = blank((4, 2, 8, 8), 8.0)
    *_, (ours,) = sample(exact, [canvas], [start], [theirs.sigmas], "dpm")
    assert theirs.sigmas[0] > 0.99
    torch.testing.assert_close(ours, x, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", SAMPLERS)
def test_where_a_clip_is_heading_is_where_it_ends(method):
    canvas, seen = blank((4, 2, 8, 8), 8.0), []
    times = sigma_schedule(make_scheduler(80, 1.0), 6, 80)
    look = lambda step, clean: seen.append(clean[0])
    *_, (found,) = sample(exact, [canvas], [seeded_noise(0, canvas.clean_latents.shape)], [times], method, look)
    errors = [float((clean - found).abs().mean()) for clean in seen]
    assert len(errors) == 6 and errors[-1] < 1e-6 and errors == sorted(errors, reverse=True)


def paintings():
    """List the canvases of all modes on a picture and a film, and some more."""
    shape = (4, 3, 4, 6)
    picture = torch.randn(4, 1, 4, 6, generator=torch.Generator().manual_seed(1))
    film = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    request = Request(
        prompt="x",
        image="x.png",
        clip="a.mp4",
        other="b.mp4",
        keyframes=((0.0, "a.png"), (1.0, "b.png")),
        window=(0.5, 0.8),
        box=(16, 16, 32, 32),
        strength=0.5,
        side="both",
        moments=(Moment(0.0, "y"), Moment(0.5, "z", image="c.png")),
        seconds=1.0,
    )
    mask = lambda path, steps: film[0].sign().relu()
    looks = (lambda path: picture, lambda path: picture, lambda path: film, lambda path, box: film, mask)
    canvases = {}
    for name, mode in MODES.items():
        asked = replace(request, mode=name, moments=request.moments if name == "storyboard" else None)
        canvases[name] = mode.paint(Ask(asked, shape, 8.0, (4, 8, 8), (1, 2, 2), *looks))
    given = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    region = torch.zeros(shape[1:])
    region[:, 1:3, 2:4] = 1
    window = torch.zeros(shape[1:])
    window[1] = 0.6
    return canvases | {"region": Canvas(given, region, 8.0), "window": Canvas(given, window, 8.0)}


@pytest.mark.parametrize("method", SAMPLERS)
@pytest.mark.parametrize("name", paintings())
def test_given_latents_come_out_bit_identical(name, method):
    canvas = paintings()[name]
    found = dream(canvas, steps=7, method=method)
    kept = (canvas.denoise_mask == 0).expand_as(found)
    assert torch.equal(found[kept], canvas.clean_latents[kept])
    assert not torch.equal(found[~kept], canvas.clean_latents[~kept])


def test_image_to_video_keeps_the_first_latent_and_dreams_the_rest():
    level = paintings()["image-to-video"].denoise_mask
    assert not level[0].any() and (level[1:] == 1).all()


def test_guidance_of_one_is_the_prompt_alone_and_of_zero_none():
    a, b = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(classifier_free_guidance(a, b, 1.0), a)
    assert torch.equal(classifier_free_guidance(a, b, 0.0), b)
    assert torch.allclose(classifier_free_guidance(a, b, 3.0) - b, 3 * (a - b))


def test_rescaled_guidance_has_the_spread_of_the_prompt_alone():
    a, b = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0))
    assert classifier_free_guidance(a, b, 5.0).std() > 3 * a.std()
    assert classifier_free_guidance(a, b, 5.0, rescale=1.0).std() == pytest.approx(a.std())
    assert torch.allclose(
        classifier_free_guidance(a, b, 5.0, 0.5),
        (classifier_free_guidance(a, b, 5.0) + classifier_free_guidance(a, b, 5.0, 1.0)) / 2,
    )


def test_frames_that_are_given_are_guided_to_as_words_are():
    canvas = paintings()["image-to-video"]
    noise = seeded_noise(0, canvas.clean_latents.shape)
    level = canvas.denoise_mask * 0.7
    x = canvas.add_noise(noise)
    plans = {}
    for held in (None, 1.0, 3.0):
        request = Request(prompt="a ball", guidance=4.0, frame_guidance=held)
        plans[held] = plan(Script.of(request, canvas, 0), request, canvas, noise, x, level)
    assert [len(looks) for looks, _ in plans.values()] == [2, 2, 3]
    looks, join = plans[3.0]
    assert [look.prompt for look in looks] == ["a ball", "", "a ball"]
    assert (looks[2].level == 0.7).all() and not torch.equal(looks[2].x[:, 0], canvas.clean_latents[:, 0])
    assert torch.equal(looks[2].x[:, 1:], x[:, 1:]) and torch.equal(looks[0].x, x)
    asked, unasked, free = torch.randn(3, *x.shape, generator=torch.Generator().manual_seed(0))
    guided = plans[None][1]([asked, unasked])
    assert torch.allclose(guided[:, 1:], (unasked + 4 * (asked - unasked))[:, 1:], atol=1e-5)
    assert torch.allclose(join([asked, unasked, free]), guided + 2 * (asked - free), atol=1e-5)
    blank_plan = plan(Script.of(request, blank(x.shape, 8.0), 0), request, blank(x.shape, 8.0), noise, x, level)
    assert len(blank_plan[0]) == 2  # nothing is given


def test_a_longer_taller_or_wider_clip_begins_with_the_same_noise():
    small, large = seeded_noise(5, (4, 2, 3, 4)), seeded_noise(5, (4, 6, 7, 9))
    assert torch.equal(large[:, :2, :3, :4], small)


def test_noise_is_normal_and_differs_between_seeds_and_places():
    noise = seeded_noise(1, (16, 8, 32, 32))
    assert noise.mean() == pytest.approx(0, abs=0.01) and noise.std() == pytest.approx(1, abs=0.01)
    assert noise.pow(4).mean() == pytest.approx(3, abs=0.1)
    for axis in range(4):
        assert (noise * noise.roll(1, dims=axis)).mean() == pytest.approx(0, abs=0.01)
    assert (noise * seeded_noise(2, noise.shape)).mean() == pytest.approx(0, abs=0.01)


def test_a_canvas_must_have_a_level_for_every_latent():
    with pytest.raises(ValueError, match="one value for each latent"):
        Canvas(torch.zeros(4, 2, 3, 3), torch.zeros(2, 3, 4), 8.0)
    with pytest.raises(ValueError, match=r"denoise_mask must lie in \[0, 1\]; got 0 to 1.5"):
        Canvas(torch.zeros(4, 2, 2, 2), torch.tensor([0.0, 1.5]).reshape(2, 1, 1).expand(2, 2, 2), 8.0)


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="sampler must be one of euler, heun, dpm; got 'rk4'"):
        dream(blank((4, 1, 2, 2), 8.0), method="rk4")
