"""Finishing: what it does to pixels, by other routes; each image by itself; off unless something is known."""

import math
from dataclasses import replace

import pytest
import torch

from dpldm import recipes
from dpldm.method.finishing import FinishSettings, bend, finish, raise_contrast, sharpen


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_left_as_they_are_by_default():
    images = torch.rand(3, 1, 9, 9, generator=seeded())
    assert torch.equal(finish(images, FinishSettings(), seeded()), images)


def test_contrast_is_the_logistic_curve_through_both_ends():
    steepness, middle = 10.0, 0.4
    curve = [1 / (1 + math.exp(-steepness * (grey - middle))) for grey in (0, 0.25, 0.4, 0.8, 1)]
    expected = [(value - curve[0]) / (curve[-1] - curve[0]) for value in curve]
    found = raise_contrast(torch.tensor([0, 0.25, 0.4, 0.8, 1]), steepness, middle)
    torch.testing.assert_close(found, torch.tensor(expected))
    assert found[0] == 0
    assert found[1] < 0.25
    assert found[3] > 0.8


def test_contrast_of_a_share_leaves_the_other_images_as_they_are():
    images = torch.rand(400, 1, 5, 5, generator=seeded())
    settings = FinishSettings(contrast=8.0, contrast_share=0.25)
    finished = finish(images, settings, seeded(1))
    same = (finished == images).flatten(1).all(1)
    assert 0.65 < same.float().mean() < 0.85  # 0.75 and 4.6 standard deviations
    torch.testing.assert_close(finished[~same], raise_contrast(images[~same], 8.0, settings.middle))
    assert torch.equal(finished, finish(images, settings, seeded(1)))
    assert not torch.equal(finished, finish(images, settings, seeded(2)))


def test_contrast_that_varies_gives_each_image_a_steepness_up_to_the_one_asked_for():
    """Of a grey above the middle, the curve's height tells the steepness; evenly drawn ones have their mean in half."""
    images = torch.full((2_000, 1, 3, 3), 0.45)
    settings = FinishSettings(contrast=8.0, contrast_varies=True)
    assert settings.is_random
    heights = finish(images, settings, seeded(3))[:, 0, 0, 0]
    steepnesses = torch.linspace(0.1, 8.0, 500)
    curve = raise_contrast(torch.tensor(0.45), steepnesses, settings.middle)
    assert curve.diff().min() > 0  # so that a height has one steepness
    found = steepnesses[torch.searchsorted(curve, heights.clamp(curve[0], curve[-1])).clamp(max=499)]
    assert 3.8 < found.mean() < 4.2  # a standard deviation of 2.3 over √2000 is 0.05
    assert found.min() < 0.3
    assert found.max() > 7.7
    flat = torch.rand(5, 1, 4, 4, generator=seeded())
    nearly = finish(flat, FinishSettings(contrast=1e-6, contrast_varies=True), seeded(1))
    torch.testing.assert_close(nearly, flat, atol=0.02, rtol=0)


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan")])
def test_a_share_of_no_or_more_than_all_images_is_refused(share: float):
    with pytest.raises(ValueError, match="expected contrast_share in"):
        FinishSettings(contrast=8.0, contrast_share=share)


def test_contrast_makes_a_grey_blob_ink_or_paper():
    blurred = torch.linspace(0, 1, 101)
    grey = ((blurred > 0.2) & (blurred < 0.8)).sum()
    finished = raise_contrast(blurred, 15.0, 0.4)
    assert ((finished > 0.2) & (finished < 0.8)).sum() < grey / 2


def test_sharpening_is_the_image_minus_its_laplacian():
    images = torch.rand(2, 3, 6, 7, generator=seeded()) * 0.2 + 0.4
    kernel = torch.tensor([[0.0, -1, 0], [-1, 4, -1], [0, -1, 0]]).expand(3, 1, 3, 3)
    inside = torch.nn.functional.conv2d(images, kernel, groups=3)
    torch.testing.assert_close(sharpen(images, 0.1)[..., 1:-1, 1:-1], images[..., 1:-1, 1:-1] + 0.1 * inside)
    flat = torch.full((1, 1, 5, 5), 0.3)
    torch.testing.assert_close(sharpen(flat, 2.0), flat)  # at the border as well


def test_sharpening_steepens_an_edge_and_keeps_the_range():
    edge = torch.tensor([0.0, 0.0, 0.3, 0.7, 1.0, 1.0]).expand(1, 1, 6, 6)
    sharp = sharpen(edge, 0.8)
    assert (sharp[..., 3] - sharp[..., 2]).min() > 0.4 + 0.1
    assert sharp.min() >= 0
    assert sharp.max() <= 1


def test_bending_moves_a_dot_by_the_pixels_that_are_asked_for():
    """The centre of mass of a wide dot in the middle wanders by about the displacement there, in both directions."""
    side = 29
    axis = torch.arange(side).float()
    dot = torch.exp(-((axis - 14) ** 2) / 8)
    images = (dot[:, None] * dot).expand(2_000, 1, side, side)
    bent = bend(images, 1.5, seeded())
    mass = bent.sum((1, 2, 3))
    rows = (bent.sum((1, 3)) * axis).sum(1) / mass
    columns = (bent.sum((1, 2)) * axis).sum(1) / mass
    for centres in (rows, columns):
        assert abs(centres.mean() - 14) < 0.1
        assert 0.5 < centres.std() < 1.5  # less than at a knot: four of them share the middle
    assert abs(torch.corrcoef(torch.stack([rows, columns]))[0, 1]) < 0.1


def test_bending_keeps_range_and_paper():
    images = torch.rand(20, 3, 12, 10, generator=seeded())
    bent = bend(images, 1.0, seeded(1))
    assert bent.shape == images.shape
    assert bent.min() >= 0
    assert bent.max() <= 1
    assert not torch.allclose(bent, images)
    blank = torch.zeros(2, 1, 28, 28)
    assert torch.equal(bend(blank, 1.0, seeded()), blank)


def test_a_ground_is_even_below_its_level_and_untouched_above():
    faint = torch.tensor([0.0, 0.02, 0.099, 0.1, 0.5, 1.0]).view(1, 1, 2, 3)
    found = finish(faint, FinishSettings(ground=0.1), seeded())
    assert found.flatten().tolist() == pytest.approx([0, 0, 0, 0.1, 0.5, 1])
    inked = finish(faint, FinishSettings(ground=0.1, contrast=8.0), seeded())  # the ground first, then the contrast
    torch.testing.assert_close(inked, raise_contrast(found, 8.0, 0.4))
    for level in (-0.1, 1.0):
        with pytest.raises(ValueError, match="expected ground from 0 to below 1"):
            FinishSettings(ground=level)


def test_each_image_is_finished_by_itself():
    settings = FinishSettings(bend=1.0, contrast=10.0)
    images = torch.rand(4, 1, 12, 12, generator=seeded())
    changed = images.clone()
    changed[2] = 0
    first, second = finish(images, settings, seeded(5)), finish(changed, settings, seeded(5))
    assert torch.equal(first[[0, 1, 3]], second[[0, 1, 3]])
    assert not torch.equal(first[2], second[2])


@pytest.mark.parametrize(
    "changed", [{"bend": -1.0}, {"sharpen": -1.0}, {"contrast": -1.0}, {"middle": 0.0}, {"middle": 1.0}]
)
def test_refuses_what_makes_no_sense(changed):
    with pytest.raises(ValueError, match="expected bend, sharpen"):
        FinishSettings(**changed)


def test_images_of_no_kind_are_not_finished():
    """What is known about pen strokes and garments is not assumed of images of which nobody says so."""
    for profile in ("quick", "paper"):
        digits, garments, own = (
            recipes.settings_for(profile, replace(recipes.CHOSEN_ON, kind=kind), 1.0)
            for kind in ("ink", "object", "photo")
        )
        assert digits.finish.contrast > 0
        assert digits.last.bend > 0
        assert garments.finish.sharpen > 0
        assert garments.last.bend == 0
        assert own.finish == own.last == FinishSettings()
