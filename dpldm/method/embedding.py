"""Mean embeddings: the mean of random features of the images of every class, released once.

With random features of a characteristic kernel the mean decides the distribution, so a generator that matches it draws
what it was taken of (DP-MERF: Harder, Adamczewski and Park 2021). One image moves a sum of features of norm 1 by 1 at
most, however many features there are.
"""

import math

import torch
from torch import Tensor

from dpldm.method.edges import GRID, LEAST, oriented_energies
from dpldm.method.labels import one_hot
from dpldm.privacy.budget import Allowance
from dpldm.privacy.guard import PrivateData
from dpldm.privacy.mechanisms import Mechanism
from dpldm.privacy.noise import NoiseSource, clip_rows, release


class RandomFeatures:
    """Random Fourier features of images, each row of norm 1 (Rahimi and Recht 2007).

    They stand for the Gaussian kernel exp(-d² / 2l²) of the distance d of pixels, with a length l of ``length_scale`` ·
    √(pixels / 6); √(pixels / 6) is the root mean square distance of two images of independent uniform pixels. With an
    ``edge_scale`` above 0 there are as many features again, for the kernel of that length of the distance of oriented
    energies (:func:`dpldm.method.edges.oriented_energies`); the kernel is then the mean of both.

    Args:
        shape: of an image, (C, H, W). features: an even number. random: draws the frequencies, which are public.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        features: int,
        length_scale: float,
        random: torch.Generator,
        edge_scale: float = 0.0,
    ) -> None:
        pixels, half = math.prod(shape), features // 2
        self.pixels = torch.randn(pixels, half, generator=random) / (length_scale * math.sqrt(pixels / 6))
        self.edges: Tensor | None = None
        if edge_scale > 0:
            size = LEAST + GRID**2 * (shape[0] - 1)
            self.edges = torch.randn(size, half, generator=random) / edge_scale

    def to(self, device: torch.device) -> "RandomFeatures":
        self.pixels = self.pixels.to(device)
        self.edges = None if self.edges is None else self.edges.to(device)
        return self

    def __len__(self) -> int:
        return 2 * self.pixels.shape[1] * (1 if self.edges is None else 2)

    def __call__(self, images: Tensor) -> Tensor:
        """Features of images (B, C, H, W) in [0, 1]: (B, len(self))."""
        angles = [images.flatten(1) @ self.pixels]
        if self.edges is not None:
            angles.append(oriented_energies(images) @ self.edges)
        waves = [wave for angle in angles for wave in (angle.cos(), angle.sin())]
        return torch.cat(waves, dim=1) * math.sqrt(2 / len(self))


def mechanism(allowance: Allowance, stage: str, count_scale: float) -> Mechanism:
    """What `mean_embedding` charges; it uses the allowance up."""
    return allowance.mechanism("mean embedding", stage, sensitivity=math.sqrt(1 + count_scale**2))


def mean_embedding(
    data: PrivateData, features: RandomFeatures, charged: Mechanism, count_scale: float, noise: NoiseSource
) -> Tensor:
    """Noisy mean features of every class (num_classes, len(features)), each row of norm 1 at most.

    One release: Σ [φ(x), a] yᵀ over all images, where φ are the features, y is the one-hot class and a is
    ``count_scale``. An image adds one such row to one class, so the sensitivity is √(1 + a²); the last entry gives the
    class counts.
    """
    images, labels = data.read(charged)
    total = _class_sums(images, labels, features, data.num_classes, count_scale)
    total = release(total, charged, noise)
    least = max(1.0, charged.sensitivity * charged.noise_multiplier / count_scale)  # the noise of a count
    return clip_rows(total[:, :-1] / (total[:, -1:] / count_scale).clamp_min(least), 1.0).float()


@torch.no_grad()
def _class_sums(
    images: Tensor, labels: Tensor, features: RandomFeatures, num_classes: int, count_scale: float
) -> Tensor:
    total = torch.zeros(num_classes, len(features) + 1, dtype=torch.float64)
    for part, classes in zip(images.split(1_000), labels.split(1_000), strict=True):
        rows = clip_rows(features(part.to(features.pixels.device)).cpu(), 1.0)
        rows = torch.cat([rows, rows.new_full((len(rows), 1), count_scale)], dim=1)
        total += (one_hot(classes, num_classes).T @ rows).double()
    return total


def distance(embedded: Tensor, target: Tensor) -> Tensor:
    """Squared distance of mean embeddings (MMD²) but for what does not depend on the images, summed over the classes.

    ‖mean of n features‖² expects too much by (1 - ‖·‖²)/n, as features have norm 1: scaling by n/(n - 1) and a constant
    make up for it (the U-statistic).

    Args:
        embedded: features (n, num_classes, F) of n images of every class. target: (num_classes, F).
    """
    count, means = len(embedded), embedded.mean(0)
    return count / (count - 1) * means.square().sum() - 2 * (means * target).sum()
