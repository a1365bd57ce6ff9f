"""Rectified flow: the path, timesteps, the sigma schedule."""

import pytest
import torch

from dit.flow import (
    denoised_from_velocity,
    interpolate,
    make_scheduler,
    sample_timesteps,
    shift_timesteps,
    sigma_schedule,
    timestep_shift,
    velocity,
)


def test_the_path_starts_at_data_and_ends_at_noise():
    data, noise = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(interpolate(data, noise, torch.tensor(0.0)), data)
    assert torch.equal(interpolate(data, noise, torch.tensor(1.0)), noise)


def test_the_velocity_at_any_point_predicts_the_data():
    data, noise = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    for t in (0.1, 0.5, 1.0):
        x = interpolate(data, noise, torch.tensor(t))
        assert torch.allclose(denoised_from_velocity(x, velocity(data, noise), torch.tensor(t)), data, atol=1e-6)


def test_a_shift_keeps_0_and_1_and_the_order():
    t = torch.linspace(0, 1, 11)
    shifted = shift_timesteps(t, 3.0)
    assert shifted[0] == 0 and shifted[-1] == 1
    assert (shifted.diff() > 0).all() and (shifted[1:-1] > t[1:-1]).all()


def test_the_shift_grows_with_the_square_root_of_the_tokens():
    assert timestep_shift(80, 80, 1.5) == pytest.approx(1.5)
    assert timestep_shift(320, 80, 1.5) == pytest.approx(3.0)


def test_training_timesteps_are_logit_normal():
    uniform = (torch.arange(10000) + 0.5) / 10000
    logits = torch.logit(sample_timesteps(uniform.double()))
    assert logits.mean() == pytest.approx(0, abs=1e-3)
    assert logits.std() == pytest.approx(1, abs=1e-2)


def test_the_schedule_of_diffusers_equals_shift_timesteps():
    sigmas = sigma_schedule(make_scheduler(80, 1.5), 10, 320)
    assert sigmas[0] == 1 and sigmas[-1] == 0 and len(sigmas) == 11
    assert torch.allclose(sigmas, shift_timesteps(torch.linspace(1, 0, 11), 3.0), atol=1e-6)


def test_a_schedule_needs_at_least_one_step():
    with pytest.raises(ValueError, match="steps must be at least 1; got 0"):
        sigma_schedule(make_scheduler(80, 1.0), 0, 80)
