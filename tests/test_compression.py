"""Compressors: there and back, against plain PCA, their ledger, and what noise may not break."""

import pytest
import torch

from dpldm.method import autoencoder, compression, pca
from dpldm.method.compression import CompressionSettings
from dpldm.method.pca import PCASettings, PrivatePCA
from dpldm.method.settings import SynthesisSettings, smoke
from dpldm.method.training import FitSettings
from dpldm.privacy.accounting import Ledger
from dpldm.privacy.budget import Allowance
from dpldm.privacy.guard import PrivateData
from dpldm.privacy.noise import NoiseSource, clip_rows

SHAPES = [(1, 8, 8), (1, 15, 15), (3, 16, 16), (1, 64, 64)]
TINY = smoke(SynthesisSettings()).compression


def smooth_images(n, shape, seed=0):
    """Images of three public cosine waves with random amplitudes: exactly three latent dimensions."""
    random = torch.Generator().manual_seed(seed)
    basis = pca.cosine_basis(shape[1], 3)
    patterns = torch.stack([torch.outer(basis[i], basis[j]) for i, j in ((1, 0), (0, 2), (2, 1))])
    patterns = patterns / patterns.flatten(1).norm(dim=1).amax() / patterns.abs().amax() * 0.12
    amplitudes = torch.randn(n, 3, generator=random).clamp(-1.3, 1.3)
    grey = 0.5 + torch.einsum("nk,khw->nhw", amplitudes, patterns)
    return grey[:, None].expand(-1, shape[0], -1, -1).clamp(0, 1).contiguous()


def guard(images):
    return PrivateData(images, torch.zeros(len(images), dtype=torch.int64), 1, Ledger())


def fit(compressor, images, noise_multiplier=0.0, seed=0):
    data = guard(images)
    random = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    steps = list(compressor.fit(data, Allowance(noise_multiplier, 1e-5), NoiseSource.seeded(seed), random))
    return data.ledger, steps


@pytest.mark.parametrize("kind", list(compression.COMPRESSORS))
@pytest.mark.parametrize("shape", SHAPES)
def test_every_compressor_fits_encodes_decodes_and_is_restored(kind, shape):
    images = smooth_images(300, shape)
    settings = CompressionSettings(kind, TINY.pca, TINY.refined, TINY.autoencoder)
    compressor = compression.build(shape, settings)
    ledger, steps = fit(compressor, images, noise_multiplier=2.0)
    assert steps == sorted(steps)
    latents = compressor.encode(images)
    decoded = compressor.decode(latents)
    assert latents.shape == (300, compressor.dim)
    assert decoded.shape == images.shape
    assert decoded.min() >= 0
    assert decoded.max() <= 1
    assert bool(ledger.mechanisms) == (compressor.public_data is None)
    again = compression.build(shape, settings)
    again.restore(compressor.state())
    torch.testing.assert_close(again.decode(again.encode(images)), decoded)


@pytest.mark.parametrize("shape", SHAPES)
def test_without_noise_pca_recovers_images_of_few_dimensions(shape):
    images = smooth_images(500, shape)
    compressor = PrivatePCA(shape, PCASettings(dim=8, floor=0.0))
    fit(compressor, images)
    assert compressor.dim <= 4
    torch.testing.assert_close(compressor.decode(compressor.encode(images)), images, atol=0.01, rtol=0)


def test_the_floor_takes_ghosts_away_and_keeps_black_and_white():
    compressor = PrivatePCA((1, 4, 4), PCASettings(floor=0.1))
    values = torch.tensor([-0.5, 0.0, 0.1, 0.55, 1.0, 1.5])
    torch.testing.assert_close(compressor.limit(values), torch.tensor([0.0, 0.0, 0.0, 0.5, 1.0, 1.0]))
    with pytest.raises(ValueError, match="expected a floor from 0 to below 1, got 1"):
        PCASettings(floor=1.0)


def test_without_noise_or_whitening_axes_are_those_of_torch_pca():
    images = (
        torch.rand(400, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.2
    )  # dark: nothing is clipped
    images[:, :, :4] += 0.08 * torch.randn(400, 1, 1, 1, generator=torch.Generator().manual_seed(1)).clamp(-2, 2)
    compressor = PrivatePCA((1, 8, 8), PCASettings(dim=2, frequencies=8, whitening=0.0, clip_norm=9))
    fit(compressor, images)
    _, _, axes = torch.pca_lowrank(images.flatten(1), q=1, niter=10)
    ours = compressor._images(compressor.axes[:, :1].T).flatten()
    assert abs(ours @ axes[:, 0]) > 0.999


def test_cosine_basis_is_orthonormal_and_complete():
    basis = pca.cosine_basis(9, 9)
    torch.testing.assert_close(basis @ basis.T, torch.eye(9), atol=1e-5, rtol=0)


def test_pca_charges_the_mean_and_the_moments_and_uses_its_allowance_up():
    ledger, _ = fit(PrivatePCA((1, 8, 8)), smooth_images(300, (1, 8, 8)), noise_multiplier=5.0)
    assert [m.name for m in ledger.mechanisms] == ["image mean", "image second moments"]
    assert sum(1 / m.noise_multiplier**2 for m in ledger.mechanisms) == pytest.approx(1 / 25)


def test_an_extreme_image_moves_the_moments_by_at_most_the_sensitivity():
    """White images have the largest norm there is; without noise the effect of one more is seen exactly."""
    images = smooth_images(300, (1, 8, 8))
    settings = PCASettings(dim=4, frequencies=8)
    compressor = PrivatePCA((1, 8, 8), settings)
    fit(compressor, images)
    white = compressor._coefficients(torch.ones(1, 1, 8, 8)) - compressor.mean
    radius = settings.clip_norm * 8
    assert white.norm() > radius  # so clipping matters
    clipped = clip_rows(white, radius)
    assert (clipped.T @ clipped).norm() <= radius**2 * (1 + 1e-6)


def test_heavy_noise_keeps_few_directions_and_light_noise_many():
    images = torch.rand(600, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    kept = []
    for noise_multiplier in (0.01, 50.0):
        compressor = PrivatePCA((1, 8, 8), PCASettings(dim=32, visible=1.0))
        fit(compressor, images, noise_multiplier)
        kept.append(compressor.dim)
    assert kept[0] > 4 * kept[1]
    assert kept[1] >= 2


def test_refined_decoder_starts_at_the_linear_one_and_learns_what_it_misses():
    random = torch.Generator().manual_seed(0)
    angle = torch.rand(2000, generator=random) * 6.28  # a circle bent in a third direction: no plane holds it
    basis = pca.cosine_basis(8, 3)
    waves = torch.stack([angle.cos(), angle.sin(), 0.7 * (2 * angle).cos()], 1) * 0.8
    images = 0.5 + torch.einsum("nk,kh,w->nhw", waves, basis, basis[0])[:, None].clamp(-0.5, 0.5)
    settings = autoencoder.RefinedPCASettings(
        pca=PCASettings(dim=2, frequencies=8),
        width=64,
        fit=FitSettings(steps=600, batch=256, learning_rate=0.01),
    )
    compressor = autoencoder.RefinedPCA((1, 8, 8), settings)
    fit(compressor, images)
    error = (compressor.decode(compressor.encode(images)) - images).square().mean()
    linear = (compressor.pca.decode(compressor.pca.encode(images)) - images).square().mean()
    assert error < 0.5 * linear
    compressor._build()
    torch.testing.assert_close(
        compressor.decode(compressor.encode(images)), compressor.pca.decode(compressor.encode(images))
    )


def test_first_weights_come_from_the_seed_alone():
    settings = CompressionSettings("autoencoder", autoencoder=TINY.autoencoder)
    first, again, other = (compression.build((1, 8, 8), settings, seed).state() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_autoencoder_latents_have_unit_scale_whatever_the_image():
    compressor = compression.build((1, 8, 8), CompressionSettings("autoencoder", autoencoder=TINY.autoencoder))
    latents = compressor.encode(torch.rand(10, 1, 8, 8))
    torch.testing.assert_close(latents.square().mean(1), torch.ones(10), atol=1e-2, rtol=0)


def test_procedural_images_are_images_varied_and_repeatable():
    images = autoencoder.procedural_images(200, (3, 20, 20), torch.Generator().manual_seed(0))
    assert images.shape == (200, 3, 20, 20)
    assert images.min() >= 0
    assert images.max() <= 1
    assert images.flatten(1).std(0).median() > 0.1
    assert images.flatten(1).std(1).median() > 0.05
    again = autoencoder.procedural_images(200, (3, 20, 20), torch.Generator().manual_seed(0))
    torch.testing.assert_close(images, again)


def test_unknown_compressor_is_refused():
    with pytest.raises(ValueError, match="expected a compressor out of pca"):
        CompressionSettings("jpeg")
