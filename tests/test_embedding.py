"""Mean embeddings: the kernels that features stand for, the release by hand, and what one image may change."""

import math

import pytest
import torch

from dpldm.method import embedding
from dpldm.method.edges import oriented_energies
from dpldm.method.embedding import RandomFeatures
from dpldm.privacy.accounting import Ledger
from dpldm.privacy.budget import Allowance
from dpldm.privacy.guard import PrivateData
from dpldm.privacy.noise import NoiseSource, watched

SHAPE = (1, 12, 12)
NOISELESS = Allowance(0.0, 1e-5)


def images_of(n, shape=SHAPE, seed=0):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


def features_of(count=200, edge_scale=0.4, shape=SHAPE):
    return RandomFeatures(shape, count, 0.4, torch.Generator().manual_seed(1), edge_scale)


def gaussian_kernel(rows, scale):
    return torch.exp(-torch.cdist(rows, rows).square() / (2 * scale**2))


def test_features_stand_for_the_mean_of_the_two_gaussian_kernels():
    images = images_of(10)
    rows = features_of(40_000)(images)
    of_pixels = gaussian_kernel(images.flatten(1), 0.4 * math.sqrt(144 / 6))
    of_edges = gaussian_kernel(oriented_energies(images), 0.4)
    # Each entry is the mean of 2 · 20,000 cosines: standard error at most 0.005.
    torch.testing.assert_close(rows @ rows.T, (of_pixels + of_edges) / 2, atol=0.02, rtol=0)
    assert (of_edges - of_pixels).abs().max() > 0.1  # neither of them alone would pass


@pytest.mark.parametrize("shape", [SHAPE, (3, 13, 9)])
@pytest.mark.parametrize("edge_scale", [0.0, 0.4])
def test_every_row_has_norm_one(shape, edge_scale):
    features = features_of(edge_scale=edge_scale, shape=shape)
    extreme = torch.stack([torch.zeros(shape), torch.ones(shape), *images_of(3, shape)])
    rows = features(extreme)
    assert rows.shape == (5, len(features)) == (5, 400 if edge_scale else 200)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(5))


def test_features_stay_on_the_device_of_the_images():
    elsewhere = torch.device("meta")  # holds no numbers, refuses what comes from another device
    rows = features_of().to(elsewhere)(torch.empty(3, *SHAPE, device=elsewhere))
    assert rows.shape == (3, 400)
    assert rows.device == elsewhere


def test_without_noise_the_release_is_each_class_s_mean_and_an_empty_class_has_none():
    images, labels, features = images_of(30), torch.arange(30) % 2, features_of()
    data = PrivateData(images, labels, 3, Ledger())
    charged = embedding.mechanism(NOISELESS, "here", 0.1)
    found = embedding.mean_embedding(data, features, charged, 0.1, NoiseSource.seeded(0))
    torch.testing.assert_close(found[:2], torch.stack([features(images[labels == c]).mean(0) for c in range(2)]))
    assert not found[2].any()
    assert data.ledger.mechanisms == (charged,)


def test_one_image_moves_the_release_by_its_sensitivity_and_in_its_class_only():
    charged = embedding.mechanism(Allowance(3.0, 1e-5), "here", 0.5)
    images, labels = images_of(31), torch.arange(31) % 3
    with watched() as seen:
        for n in (30, 31):
            data = PrivateData(images[:n], labels[:n], 3, Ledger())
            embedding.mean_embedding(data, features_of(), charged, 0.5, NoiseSource.seeded(0))
    assert [one.mechanism for one in seen] == [charged, charged]
    moved = seen[1].value - seen[0].value
    assert charged.sensitivity == pytest.approx(math.sqrt(1.25))
    assert charged.noise_multiplier == 3.0
    assert moved.norm().item() == pytest.approx(charged.sensitivity, rel=1e-5)
    assert moved.norm().item() <= charged.sensitivity + 1e-9
    assert [bool(row.any()) for row in moved] == [True, False, False]


def test_distance_is_unbiased_however_few_images_there_are():
    """Against the same distribution the expectation is -‖mean‖², the least there is, plus the constant."""
    random, features = torch.Generator().manual_seed(0), features_of()
    rows = features(images_of(2_000))
    target = rows.mean(0, keepdim=True)
    few = [rows[torch.randint(2_000, (4, 1), generator=random)] for _ in range(4_000)]
    found = torch.stack([embedding.distance(some, target) for some in few])
    expected = -target.square().sum() + 1 / 3  # the constant 1/(n - 1)
    assert found.mean().item() == pytest.approx(expected.item(), abs=5 * found.std().item() / math.sqrt(4_000))
