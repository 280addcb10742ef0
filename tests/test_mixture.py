"""The mixture: its denoiser against numerical integration, its private fit against plain counting."""

import math

import numpy as np
import pytest
import torch

from dpldm.method.mixture import Mixture, MixtureSettings, fit_mixture
from dpldm.privacy.accounting import Ledger
from dpldm.privacy.budget import Allowance
from dpldm.privacy.guard import PrivateData
from dpldm.privacy.noise import NoiseSource


def two_classes():
    """Two classes of two components each in the plane, with different tilted covariances."""
    angle = torch.tensor([0.3, 1.1])
    vectors = torch.stack([torch.tensor([[a.cos(), -a.sin()], [a.sin(), a.cos()]]) for a in angle])
    return Mixture(
        class_weights=torch.tensor([0.25, 0.75]),
        weights=torch.tensor([[0.3, 0.7], [0.5, 0.5]]),
        means=torch.tensor([[[1.0, 0.0], [-1.0, 0.5]], [[0.0, -1.0], [2.0, 2.0]]]),
        vectors=vectors,
        values=torch.tensor([[0.5, 0.1], [0.2, 0.3]]),
    )


def density(mixture, c, points):
    """Density of class ``c`` at ``points`` (n, 2), written out with NumPy."""
    covariance = (mixture.vectors[c] * mixture.values[c]) @ mixture.vectors[c].T
    inverse, total = np.linalg.inv(covariance.double().numpy()), 0
    for weight, mean in zip(mixture.weights[c], mixture.means[c], strict=True):
        away = points - mean.double().numpy()
        total = total + weight.item() * np.exp(-0.5 * np.einsum("ni,ij,nj->n", away, inverse, away))
    return total / (2 * math.pi * math.sqrt(np.linalg.det(covariance.double().numpy())))


@pytest.mark.parametrize("label", [0, 1, 2])
@pytest.mark.parametrize("sigma", [0.3, 1.5])
def test_denoiser_is_the_posterior_mean_by_numerical_integration(label, sigma):
    mixture, x = two_classes(), np.array([0.4, -0.2])
    axis = np.arange(-6, 6, 0.03)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    if label == 2:
        prior = sum(mixture.class_weights[c].item() * density(mixture, c, grid) for c in (0, 1))
    else:
        prior = density(mixture, label, grid)
    posterior = prior * np.exp(-((grid - x) ** 2).sum(1) / (2 * sigma**2))
    expected = (posterior[:, None] * grid).sum(0) / posterior.sum()
    got = mixture.denoise(torch.tensor(x)[None].float(), torch.tensor([[sigma]]), torch.tensor([label]))
    np.testing.assert_allclose(got[0].numpy(), expected, atol=2e-4)


def test_denoiser_takes_several_noise_draws_per_example():
    mixture, random = two_classes(), torch.Generator().manual_seed(0)
    x, sigma = torch.randn(5, 3, 2, generator=random), torch.rand(5, 3, 1, generator=random) + 0.1
    labels = torch.tensor([0, 1, 2, 1, 0])
    together = mixture.denoise(x, sigma, labels)
    for b in range(5):
        for k in range(3):
            alone = mixture.denoise(x[b, k][None], sigma[b, k][None], labels[b : b + 1])
            torch.testing.assert_close(together[b, k], alone[0])


def test_samples_have_the_moments_of_their_class():
    mixture = two_classes()
    z = mixture.sample(torch.zeros(40_000, dtype=torch.int64), torch.Generator().manual_seed(0))
    mean = (mixture.weights[0][:, None] * mixture.means[0]).sum(0)
    inside = (mixture.vectors[0] * mixture.values[0]) @ mixture.vectors[0].T
    away = mixture.means[0] - mean
    covariance = inside + (mixture.weights[0][:, None, None] * away[:, :, None] * away[:, None, :]).sum(0)
    torch.testing.assert_close(z.mean(0), mean, atol=0.03, rtol=0)
    torch.testing.assert_close(z.T.cov(), covariance, atol=0.04, rtol=0)


def private_points(n=4000, seed=0):
    """Images of one row whose two pixels are the latents shifted into [0, 1]; two classes of known moments."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    points = torch.randn(n, 4, generator=random) * torch.tensor([0.05, 0.1, 0.02, 0.05]) + 0.4 + 0.2 * labels[:, None]
    return points.clamp(0, 1).view(n, 1, 2, 2), labels


def encode(images):
    return (images.flatten(1) - 0.5) * 4


def fit(images, labels, noise_multiplier, seed=0, **changes):
    ledger = Ledger()
    data = PrivateData(images, labels, 2, ledger)
    settings = MixtureSettings(**({"components": 1, "iterations": 1, "floor": 1e-4} | changes))
    allowance = Allowance(noise_multiplier, 1e-5)
    return fit_mixture(data, encode, 4, settings, allowance, NoiseSource.seeded(seed)), ledger


def test_without_noise_one_component_is_the_class_mean_and_covariance():
    images, labels = private_points()
    fitted, _ = fit(images, labels, 0.0)
    for c in (0, 1):
        z = encode(images[labels == c])
        torch.testing.assert_close(fitted.means[c, 0], z.mean(0), atol=1e-4, rtol=0)
        covariance = (fitted.vectors[c] * fitted.values[c]) @ fitted.vectors[c].T
        torch.testing.assert_close(covariance, z.T.cov(correction=0), atol=1e-3, rtol=0)


def test_two_components_find_two_clusters():
    images, _ = private_points()
    labels = torch.zeros(len(images), dtype=torch.int64)  # both classes in one: two clusters
    labels[:4] = 1
    fitted, _ = fit(images, labels, 0.0, seed=1, components=2, iterations=12)
    clusters = torch.stack([encode(images[c::2]).mean(0) for c in (0, 1)])
    distance = torch.cdist(fitted.means[0], clusters)
    assert distance.min(0).values.max() < 0.05


def test_ledger_holds_both_mechanisms_and_uses_the_allowance_up():
    images, labels = private_points(400)
    _, ledger = fit(images, labels, 3.0, components=2, iterations=4)
    assert [m.name for m in ledger.mechanisms] == ["latent second moments", "latent sums"]
    used = sum(m.steps / m.noise_multiplier**2 for m in ledger.mechanisms)
    assert used == pytest.approx(1 / 3.0**2)


def test_no_image_moves_the_released_sums_by_more_than_the_sensitivity():
    """Every image alone, also one far outside the clipping norm, through the same arithmetic as the fit."""
    mixture, radius = two_classes(), 1.3
    z = torch.tensor([[0.1, 0.2], [1.2, -0.4], [30.0, 40.0]])
    z = z * (radius / z.norm(dim=1, keepdim=True)).clamp_max(1)
    extended = torch.cat([z, torch.full((3, 1), radius / 2)], 1)
    shares = mixture.responsibilities(z, torch.tensor([0, 1, 1]))
    moved = (shares[:, :, None] * extended[:, None, :]).flatten(1).norm(dim=1)
    assert (moved <= math.sqrt(radius**2 + (radius / 2) ** 2) + 1e-6).all()


def test_noise_of_the_class_mean_has_the_stated_scale():
    images, labels = private_points(4000)
    exact, _ = fit(images, labels, 0.0)
    noisy = torch.stack([fit(images, labels, 40.0, seed=s)[0].means[:, 0] for s in range(40)])
    radius = 1.1 * math.sqrt(4)
    expected = 40 / math.sqrt(0.5) * math.sqrt(radius**2 + (radius / 2) ** 2) / 2000
    # the count in the denominator is noisy too, but by a fraction that the tolerance covers
    spread = (noisy - exact.means[:, 0]).square().mean().sqrt().item()
    assert spread == pytest.approx(expected, rel=0.25)


def test_an_empty_class_and_pure_noise_still_give_a_proper_mixture():
    images, labels = private_points(60)
    fitted, _ = fit(images, torch.zeros_like(labels), 50.0, components=3, iterations=3)
    for value in fitted.tensors().values():
        assert value.isfinite().all()
    assert (fitted.values > 0).all()
    torch.testing.assert_close(fitted.weights.sum(1), torch.ones(2))


def test_settings_refuse_nonsense():
    with pytest.raises(ValueError, match="components >= 1"):
        MixtureSettings(components=0)
    with pytest.raises(ValueError, match="moment_share"):
        MixtureSettings(moment_share=1.0)
