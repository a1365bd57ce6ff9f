"""The samplers, on a velocity known in closed form: for data ~ N(mean, std^2) no network is needed."""

from dataclasses import replace

import pytest
import torch

from dit.canvas import Canvas, blank
from dit.flow import make_scheduler, sigma_schedule
from dit.given import ModeInputs, place_latents
from dit.guidance import WeightedPrompts, plan_passes
from dit.modes import MODES
from dit.request import SAMPLERS, Moment, Request
from dit.sampler import classifier_free_guidance, sample, seeded_noise

MEAN, STD = 3.0, 0.5


def exact_velocity(xs, sigmas):
    """Return E[noise - data | x] at each sigma, for data ~ N(MEAN, STD^2)."""
    velocities = []
    for x, sigma in zip(xs, sigmas, strict=True):
        t = sigma[None]
        variance = ((1 - t) * STD) ** 2 + t**2
        deviation = x - (1 - t) * MEAN
        velocities.append((t - (1 - t) * STD**2) * deviation / variance - MEAN)
    return velocities


def sample_exactly(canvas, steps=50, sampler="euler", seed=0, callback=None):
    sigmas, noise = sigma_schedule(make_scheduler(80, 1.0), steps, 80), seeded_noise(seed, canvas.clean_latents.shape)
    *_, (latents,) = sample(exact_velocity, [canvas], [noise], [sigmas], sampler, callback)
    return latents


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples_have_the_mean_and_standard_deviation_of_the_data(sampler):
    latents = sample_exactly(blank((8, 4, 16, 16), 8.0), sampler=sampler)
    assert latents.mean() == pytest.approx(MEAN, abs=0.03)
    assert latents.std() == pytest.approx(STD, abs=0.03)


def test_second_order_samplers_are_more_accurate_than_euler_at_equal_nfe():
    canvas = blank((4, 2, 8, 8), 8.0)
    expected = MEAN + STD * seeded_noise(0, canvas.clean_latents.shape)  # the flow of a normal distribution is linear
    steps = {"euler": 16, "heun": 8, "dpm": 16}  # Heun evaluates the model twice in each step
    error = {name: (sample_exactly(canvas, count, name) - expected).abs().max() for name, count in steps.items()}
    assert error["heun"] < error["euler"] and error["dpm"] < error["euler"]


def test_dpm_equals_the_dpm_solver_of_diffusers_where_all_latents_have_one_sigma():
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    theirs = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0, final_sigmas_type="zero"
    )
    theirs.set_timesteps(12)
    x = start = seeded_noise(0, (4, 2, 8, 8))
    for timestep, sigma in zip(theirs.timesteps, theirs.sigmas, strict=False):
        (v,) = exact_velocity([x], [sigma.expand(2, 8, 8)])
        x = theirs.step(v, timestep, x, return_dict=False)[0]
    canvas = blank((4, 2, 8, 8), 8.0)
    *_, (ours,) = sample(exact_velocity, [canvas], [start], [theirs.sigmas], "dpm")
    assert theirs.sigmas[0] > 0.99  # it starts a thousandth below pure noise
    torch.testing.assert_close(ours, x, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_denoised_latents_of_each_step_approach_the_result(sampler):
    predictions = []
    callback = lambda step, denoised: predictions.append(denoised[0])
    latents = sample_exactly(blank((4, 2, 8, 8), 8.0), 6, sampler, callback=callback)
    errors = [float((denoised - latents).abs().mean()) for denoised in predictions]
    assert len(errors) == 6 and errors[-1] < 1e-6 and errors == sorted(errors, reverse=True)


def canvases_of_all_modes():
    """Return the canvas of each mode, from one image and one video, and two soft or regional masks, by name."""
    shape = (4, 3, 4, 6)
    image = torch.randn(4, 1, 4, 6, generator=torch.Generator().manual_seed(1))
    video = torch.randn(shape, generator=torch.Generator().manual_seed(3))
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
    mask = lambda path, latent_frames: video[0].sign().relu()
    readers = (lambda path: image, lambda path: image, lambda path, place, box: place_latents(video, place, 4), mask)
    canvases = {}
    for name, mode in MODES.items():
        mode_request = replace(request, mode=name, moments=request.moments if name == "storyboard" else None)
        canvases[name] = mode.paint(ModeInputs(mode_request, shape, 8.0, (4, 8, 8), (1, 2, 2), *readers))
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    region = torch.zeros(shape[1:])
    region[:, 1:3, 2:4] = 1
    window = torch.zeros(shape[1:])
    window[1] = 0.6
    return canvases | {"region": Canvas(latents, region, 8.0), "window": Canvas(latents, window, 8.0)}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", canvases_of_all_modes())
def test_kept_latents_come_out_bit_identical(name, sampler):
    canvas = canvases_of_all_modes()[name]
    latents = sample_exactly(canvas, steps=7, sampler=sampler)
    kept = (canvas.denoise_mask == 0).expand_as(latents)
    assert torch.equal(latents[kept], canvas.clean_latents[kept])
    assert not torch.equal(latents[~kept], canvas.clean_latents[~kept])


def test_image_to_video_keeps_the_first_latent_frame_and_generates_the_rest():
    mask = canvases_of_all_modes()["image-to-video"].denoise_mask
    assert not mask[0].any() and (mask[1:] == 1).all()


def test_guidance_1_is_the_conditional_velocity_and_0_the_unconditional():
    a, b = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(classifier_free_guidance(a, b, 1.0), a)
    assert torch.equal(classifier_free_guidance(a, b, 0.0), b)
    assert torch.allclose(classifier_free_guidance(a, b, 3.0) - b, 3 * (a - b))


def test_rescaled_guidance_has_the_standard_deviation_of_the_conditional_velocity():
    a, b = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0))
    assert classifier_free_guidance(a, b, 5.0).std() > 3 * a.std()
    assert classifier_free_guidance(a, b, 5.0, rescale=1.0).std() == pytest.approx(a.std())
    assert torch.allclose(
        classifier_free_guidance(a, b, 5.0, 0.5),
        (classifier_free_guidance(a, b, 5.0) + classifier_free_guidance(a, b, 5.0, 1.0)) / 2,
    )


def test_frame_guidance_adds_a_pass_that_does_not_know_the_kept_frames():
    canvas = canvases_of_all_modes()["image-to-video"]
    noise = seeded_noise(0, canvas.clean_latents.shape)
    sigma = canvas.denoise_mask * 0.7
    x = canvas.add_noise(noise)
    plans = {}
    for scale in (None, 1.0, 3.0):
        request = Request(prompt="a ball", guidance=4.0, frame_guidance=scale)
        plans[scale] = plan_passes(WeightedPrompts.of(request, canvas, 0), request, canvas, noise, x, sigma)
    assert [len(passes) for passes, _ in plans.values()] == [2, 2, 3]
    passes, combine = plans[3.0]
    assert [one.prompt for one in passes] == ["a ball", "", "a ball"]
    assert (passes[2].sigma == 0.7).all() and not torch.equal(passes[2].latents[:, 0], canvas.clean_latents[:, 0])
    assert torch.equal(passes[2].latents[:, 1:], x[:, 1:]) and torch.equal(passes[0].latents, x)
    conditional, unconditional, unaware = torch.randn(3, *x.shape, generator=torch.Generator().manual_seed(0))
    guided = plans[None][1]([conditional, unconditional])
    assert torch.allclose(guided[:, 1:], (unconditional + 4 * (conditional - unconditional))[:, 1:], atol=1e-5)
    expected = guided + 2 * (conditional - unaware)
    assert torch.allclose(combine([conditional, unconditional, unaware]), expected, atol=1e-5)
    nothing_kept = blank((4, 3, 4, 6), 8.0)
    passes, _ = plan_passes(WeightedPrompts.of(request, nothing_kept, 0), request, nothing_kept, noise, x, sigma)
    assert len(passes) == 2


def test_a_longer_taller_or_wider_clip_begins_with_the_same_noise():
    small, large = seeded_noise(5, (4, 2, 3, 4)), seeded_noise(5, (4, 6, 7, 9))
    assert torch.equal(large[:, :2, :3, :4], small)


def test_noise_is_standard_normal_and_differs_between_seeds_and_positions():
    noise = seeded_noise(1, (16, 8, 32, 32))
    assert noise.mean() == pytest.approx(0, abs=0.01) and noise.std() == pytest.approx(1, abs=0.01)
    assert noise.pow(4).mean() == pytest.approx(3, abs=0.1)
    for axis in range(4):
        assert (noise * noise.roll(1, dims=axis)).mean() == pytest.approx(0, abs=0.01)
    assert (noise * seeded_noise(2, noise.shape)).mean() == pytest.approx(0, abs=0.01)


def test_a_canvas_needs_a_mask_value_in_0_to_1_for_every_latent():
    with pytest.raises(ValueError, match="one value for each latent"):
        Canvas(torch.zeros(4, 2, 3, 3), torch.zeros(2, 3, 4), 8.0)
    with pytest.raises(ValueError, match=r"denoise_mask must lie in \[0, 1\]; got 0 to 1.5"):
        Canvas(torch.zeros(4, 2, 2, 2), torch.tensor([0.0, 1.5]).reshape(2, 1, 1).expand(2, 2, 2), 8.0)


def test_an_unknown_sampler_is_refused_by_name():
    with pytest.raises(ValueError, match="sampler must be one of euler, heun, dpm; got 'rk4'"):
        sample_exactly(blank((4, 1, 2, 2), 8.0), sampler="rk4")
