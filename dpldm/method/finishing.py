"""What is known about a kind of image without looking at any, put into synthetic ones: post-processing, free of ε.

Strokes of a pen may be bent a little and stay the same digit, ink is either there or not, and things have edges and
stand on an even ground. A linear decoder knows none of it: it draws strokes grey and edges blurred, and of each shape
only what the mixture's Gaussians span; and what moves and pushes images leaves a trace on the ground, too faint for the
eye, in which decision trees find the label.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CELLS = 4  # displacements per axis, with a smooth field between them
LEAST_STEEPNESS = 0.1  # of a curve that is hardly one


@dataclass(frozen=True)
class FinishSettings:
    """How decoded images are finished; the defaults leave them as they are.

    bend: standard deviation, in pixels >= 0, of a smooth random displacement of the image, a new one for each.
    sharpen: how many times, >= 0, the differences of a pixel to its four neighbours are added to it (unsharp masking).
    ground: grey in [0, 1) below which a pixel becomes 0.
    contrast: steepness >= 0 of a logistic curve through which every pixel goes; 0 for none, 15 is nearly ink or paper.
    middle: the grey, in (0, 1), that the curve pulls apart.
    contrast_share: share of the images, in (0, 1], that get the contrast; which ones is random where it is below 1.
    contrast_varies: whether each image has a steepness of its own, drawn evenly from next to none up to ``contrast``.
    """

    bend: float = 0.0
    sharpen: float = 0.0
    contrast: float = 0.0
    middle: float = 0.4
    contrast_share: float = field(default=1.0, metadata={"unless_default": True})
    contrast_varies: bool = field(default=False, metadata={"unless_default": True})
    ground: float = field(default=0.0, metadata={"unless_default": True})

    def __post_init__(self) -> None:
        if not (self.bend >= 0 and self.sharpen >= 0 and self.contrast >= 0 and 0 < self.middle < 1):
            raise ValueError(
                "expected bend, sharpen and contrast >= 0 and 0 < middle < 1, got "
                f"{self.bend}, {self.sharpen}, {self.contrast} and {self.middle}: use for example 1, 1, 10 and 0.4"
            )
        if not 0 < self.contrast_share <= 1:
            raise ValueError(f"expected contrast_share in (0, 1], got {self.contrast_share}: 1 is every image")
        if not 0 <= self.ground < 1:
            raise ValueError(f"expected ground from 0 to below 1, got {self.ground}: use for example 0.1")

    @property
    def is_random(self) -> bool:
        return self.bend > 0 or (self.contrast > 0 and (self.contrast_share < 1 or self.contrast_varies))


@dataclass(frozen=True)
class Finishing:
    """What another method's images get of what those of this book get; the defaults leave them as they are.

    first: what images that stage 1 decodes get. first_share: share of the images, in [0, 1], that get it, at random.
    last: what all images get after that.
    """

    first: FinishSettings = FinishSettings()
    first_share: float = 1.0
    last: FinishSettings = FinishSettings()

    def __post_init__(self) -> None:
        if not 0 <= self.first_share <= 1:
            raise ValueError(f"expected first_share from 0 to 1, got {self.first_share}: 1 is every image")

    def __call__(self, images: Tensor, random: torch.Generator) -> Tensor:
        """Finished images (B, C, H, W) in [0, 1], each by itself."""
        chosen = torch.rand(len(images), 1, 1, 1, generator=random) < self.first_share
        return finish(torch.where(chosen, finish(images, self.first, random), images), self.last, random)


@dataclass(frozen=True)
class Finishable:
    """Settings of a method whose images can be finished when all is drawn: post-processing, so that the private fit is
    the same with and without it."""

    finishing: Finishing = field(default=Finishing(), kw_only=True, metadata={"unless_default": True})


def unfinished(settings: Any) -> Any:
    """A method's settings without `Finishing`: what decides its fit."""
    return replace(settings, finishing=Finishing()) if isinstance(settings, Finishable) else settings


def finish(images: Tensor, settings: FinishSettings, random: torch.Generator) -> Tensor:
    """Finished images (B, C, H, W) in [0, 1] from decoded ones, each by itself."""
    if settings.bend > 0:
        images = bend(images, settings.bend, random)
    if settings.sharpen > 0:
        images = sharpen(images, settings.sharpen)
    images = images.where(images >= settings.ground, 0.0)
    if settings.contrast > 0:
        steepness: Tensor | float = settings.contrast
        if settings.contrast_varies:
            steepness = (steepness * torch.rand(len(images), 1, 1, 1, generator=random)).clamp_min(LEAST_STEEPNESS)
        raised = raise_contrast(images, steepness, settings.middle)
        if settings.contrast_share == 1:
            return raised
        chosen = torch.rand(len(images), 1, 1, 1, generator=random) < settings.contrast_share
        images = torch.where(chosen, raised, images)
    return images


def bend(images: Tensor, pixels: float, random: torch.Generator) -> Tensor:
    """Images (B, C, H, W) in [0, 1], each seen through a smooth random displacement (elastic distortion, Simard,
    Steinkraus, Platt 2003); ``pixels``: its standard deviation at the knots of a coarse grid."""
    count, _, height, width = images.shape
    knots = torch.randn(count, 2, CELLS, CELLS, generator=random) * pixels
    knots = knots * torch.tensor([2 / width, 2 / height]).view(2, 1, 1)  # images reach from -1 to 1
    field = F.interpolate(knots, size=(height, width), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    still = F.affine_grid(torch.eye(2, 3).expand(count, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, still + field, mode="bicubic", align_corners=False).clamp(0, 1)


def sharpen(images: Tensor, amount: float) -> Tensor:
    """Images (B, C, H, W) in [0, 1] minus ``amount`` times their discrete Laplacian, kept in [0, 1]; at the border
    a pixel is its own neighbour outside."""
    around = F.pad(images, (1, 1, 1, 1), mode="replicate")
    vertical = around[..., :-2, 1:-1] + around[..., 2:, 1:-1]
    level = around[..., 1:-1, :-2] + around[..., 1:-1, 2:]
    return (images + amount * (4 * images - vertical - level)).clamp(0, 1)


def raise_contrast(images: Tensor, steepness: Tensor | float, middle: float) -> Tensor:
    """Pixels in [0, 1] through a logistic curve around ``middle``; 0 and 1 stay where they are.

    >>> raise_contrast(torch.tensor([0.0, 0.5, 1.0]), 10.0, 0.5).round(decimals=3).tolist()
    [0.0, 0.5, 1.0]
    """
    low, high = ((torch.as_tensor(steepness) * (end - middle)).sigmoid() for end in (0, 1))
    return ((((images - middle) * steepness).sigmoid() - low) / (high - low)).clamp(0, 1)
