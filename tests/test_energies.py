"""Oriented energies: what they see, their length, and whitening."""

import pytest
import torch
from stripes import stripes

from dpldm.method.edges import oriented_energies, whitened, whitening


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
