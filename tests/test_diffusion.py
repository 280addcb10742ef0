"""Noise levels, preconditioning, loss and samplers, checked against closed forms for Gaussian data."""

import pytest
import torch

from dpldm.method import diffusion
from dpldm.method.diffusion import NoiseLevels

MEAN, STD = 0.7, 0.4


def gaussian_denoiser(x, sigma):
    """The exact denoiser of N(MEAN, STD²)."""
    return MEAN + STD**2 / (STD**2 + sigma**2) * (x - MEAN)


def quantiles(n):
    """Exact quantiles of the standard normal: a sample without sampling error."""
    return torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)[:, None]


def test_preconditioning_gives_unit_variance_inputs_and_targets():
    sigma = torch.tensor([0.01, 0.5, 3.0, 50.0], dtype=torch.float64)
    scales = diffusion.precondition(sigma)
    # Input: clean of variance 1 plus noise. Target: (clean - skip · noisy) / out, computed from its definition.
    torch.testing.assert_close(scales.into**2 * (1 + sigma**2), torch.ones_like(sigma))
    target = ((1 - scales.skip) ** 2 + scales.skip**2 * sigma**2) / scales.out**2
    torch.testing.assert_close(target, torch.ones_like(sigma))


def test_schedule_ends_at_zero_and_follows_the_power_law():
    levels = NoiseLevels(sigma_min=0.1, sigma_max=10, rho=3).schedule(5)
    assert levels[0] == pytest.approx(10)
    assert levels[-2] == pytest.approx(0.1)
    assert levels[-1] == 0
    torch.testing.assert_close((levels[:-1] ** (1 / 3)).diff(2), torch.zeros(3), atol=1e-5, rtol=0)


def test_training_levels_follow_the_stated_log_normal():
    drawn = NoiseLevels(log_mean=-0.5, log_std=0.8).draw((20_000,), torch.Generator().manual_seed(0)).log()
    assert abs(drawn.mean() + 0.5) < 4 * 0.8 / 20_000**0.5
    assert abs(drawn.std() - 0.8) < 4 * 0.8 / (2 * 20_000) ** 0.5


@pytest.mark.parametrize(("name", "steps"), [("deterministic", 40), ("stochastic", 600), ("churn", 60)])
def test_samplers_reach_the_exact_gaussian(name, steps):
    sigmas = NoiseLevels(sigma_min=0.01, sigma_max=30).schedule(steps)
    noise = quantiles(4001).float()
    *_, x = diffusion.SAMPLERS[name](gaussian_denoiser, noise, sigmas, torch.Generator().manual_seed(3))
    tolerance = 4 * STD / 4001**0.5 + 0.005
    assert abs(x.mean() - MEAN) < tolerance
    assert abs(x.std() - STD) < tolerance


def test_deterministic_sampler_follows_the_exact_trajectory():
    """For Gaussian data the probability-flow equation has a closed solution: x - m scales with √(s² + σ²)."""
    sigmas = NoiseLevels(sigma_min=0.01, sigma_max=30).schedule(100).double()
    noise = quantiles(9)
    *_, x = diffusion.deterministic(gaussian_denoiser, noise, sigmas, torch.Generator())
    start = noise * sigmas[0]
    exact = MEAN + (start - MEAN) * STD / (STD**2 + sigmas[0] ** 2).sqrt()
    torch.testing.assert_close(x, exact, atol=2e-3, rtol=0)


def test_a_wrong_denoiser_is_noticed():
    sigmas = NoiseLevels(sigma_min=0.01, sigma_max=30).schedule(60)
    *_, x = diffusion.deterministic(lambda x, s: 0.9 * gaussian_denoiser(x, s), quantiles(4001).float(), sigmas, None)
    assert abs(x.mean() - MEAN) > 0.03


def test_loss_is_least_for_the_exact_denoiser_and_has_its_closed_value():
    """With one noise level σ, E|D - z|² = s²σ²/(s²+σ²); divided by out² = σ²/(1+σ²)."""
    clean = MEAN + STD * quantiles(2000).float()
    levels = NoiseLevels(log_mean=0.0, log_std=0.0)  # σ = 1
    random = torch.Generator().manual_seed(0)
    loss = diffusion.denoising_loss(gaussian_denoiser, clean, levels, 16, random)
    assert loss.shape == (2000,)
    expected = STD**2 / (STD**2 + 1) * 2
    assert loss.mean().item() == pytest.approx(expected, rel=4 * (2 / 32_000) ** 0.5)
    worse = diffusion.denoising_loss(lambda x, s: gaussian_denoiser(x, s) + 0.3, clean, levels, 16, random)
    assert worse.mean() > loss.mean() + 0.1


def test_loss_of_an_example_ignores_the_other_examples():
    clean = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    changed = clean.clone()
    changed[3:] += 5
    first, second = (
        diffusion.denoising_loss(gaussian_denoiser, z, NoiseLevels(), 4, torch.Generator().manual_seed(1))
        for z in (clean, changed)
    )
    torch.testing.assert_close(first[:3], second[:3])
    assert (first[3:] != second[3:]).any()


def test_guidance_of_one_is_the_conditional_model_and_two_doubles_the_difference():
    conditional, unconditional = (lambda x, s: x + 1), (lambda x, s: x)
    x = torch.zeros(2, 1)
    assert diffusion.guided(conditional, unconditional, 1.0) is conditional
    assert diffusion.guided(conditional, unconditional, 2.0)(x, x).tolist() == [[2.0], [2.0]]


def test_bad_levels_say_what_was_expected():
    with pytest.raises(ValueError, match="0 < sigma_min < sigma_max"):
        NoiseLevels(sigma_min=2, sigma_max=1)
    with pytest.raises(ValueError, match="at least 2 sampling steps"):
        NoiseLevels().schedule(1)
