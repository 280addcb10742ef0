"""Oriented energies: what they see, their length, and whitening."""

import pytest
import torch

from dpldm.energies import oriented_energies, whitened, whitening


def stripes(n, side=12, seed=0):
    """Class 0: lines from left to right; class 1: from top to bottom; random places and strengths."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    images = torch.zeros(n, 1, side, side)
    places = torch.randint(2, side - 2, (n,), generator=random)
    for i, (label, place) in enumerate(zip(labels.tolist(), places.tolist(), strict=True)):
        (images[i, 0, place] if label == 0 else images[i, 0, :, place]).fill_(1.0)
    return (images + 0.1 * torch.rand(images.shape, generator=random)).clamp(0, 1), labels


def test_energies_tell_directions_apart_but_not_light_from_dark():
    images, labels = stripes(40)
    rows = oriented_energies(images)
    assert rows.shape == (40, 49 * (1 + 3 * 8))
    assert rows.norm(dim=1).max() <= 1
    fine = rows[:, 49 : 9 * 49].unflatten(1, (8, 49)).sum(2)
    level, upright = fine[labels == 0].mean(0), fine[labels == 1].mean(0)
    assert level.argmax() == (upright.argmax() + 4) % 8  # a quarter turn
    inverted = oriented_energies(1 - images)[:, 49:]
    inner = torch.zeros(7, 7, dtype=torch.bool)
    inner[2:5, 2:5] = True  # away from the border, outside of which all is dark
    cells = inner.flatten().repeat(8)
    ratio = inverted[:, : 8 * 49][:, cells] / inverted[:, : 8 * 49][:, cells].norm(dim=1, keepdim=True)
    before = rows[:, 49 : 9 * 49][:, cells] / rows[:, 49 : 9 * 49][:, cells].norm(dim=1, keepdim=True)
    torch.testing.assert_close(ratio, before, atol=1e-3, rtol=0)


@pytest.mark.parametrize("shape", [(3, 13, 11), (1, 28, 28), (1, 4, 4)])
def test_energies_of_any_shape(shape):
    rows = oriented_energies(torch.rand(5, *shape))
    assert rows.shape == (5, 49 * (shape[0] + 24))
    assert rows.isfinite().all()


def test_whitened_energies_of_the_images_that_tell_the_axes_have_mean_0_and_variance_1():
    images, _ = stripes(400)
    mean, axes = whitening(images, 12)
    rows = whitened(images, mean, axes)
    assert rows.shape == (400, 12)
    torch.testing.assert_close(rows.mean(0), torch.zeros(12), atol=1e-3, rtol=0)
    torch.testing.assert_close(rows.T.cov(correction=0), torch.eye(12), atol=1e-2, rtol=0)


def test_energies_can_be_followed_back_to_pixels_even_of_blank_images():
    images = torch.cat([torch.zeros(1, 1, 12, 12), stripes(2)[0]]).requires_grad_()
    (slope,) = torch.autograd.grad(oriented_energies(images).sum(), images)
    assert slope.isfinite().all()
