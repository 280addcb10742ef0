"""Synthetic images moved until their edges are spread as those of the private images are.

A linear decoder draws blurred edges, and a Gaussian of latents knows no others. How strong edges are, where and in what
direction, has a mean and a covariance in every class that can be released like those of latents. Optimal transport says
what each synthetic image's edges should be then, and some steps of gradient descent on its pixels get it there.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dpldm.method import mixture
from dpldm.method.edges import BATCH, LEAST, whitened, whitening
from dpldm.method.mixture import MixtureSettings
from dpldm.privacy.budget import Allowance
from dpldm.privacy.guard import PrivateData
from dpldm.privacy.mechanisms import Mechanism
from dpldm.privacy.noise import NoiseSource

STAGE = "transport"
PER_FEATURE = 20
SMALLEST = 1e-3  # least variance of an edge feature, when the square root of a covariance is taken


@dataclass(frozen=True)
class TransportSettings:
    """How images are moved.

    steps: of gradient descent on the pixels; 0 switches all of this off and costs nothing.
    share: of the budget's 1/σ², for the moments of the private images' edges.
    dim: most edge features whose moments are matched, the strongest principal axes of the synthetic images' energies.
    images: synthetic images that tell those axes and their own moments; more are drawn where that is
        less than `PER_FEATURE` for each feature of each class.
    rate: L2 length of an image's first step, in [0, 1] pixels; the last ones are shorter. momentum: in [0, 1).
    moments: how the private moments are taken, with one component.
    """

    steps: int = 6
    share: float = 0.25
    dim: int = 100
    images: int = 20_000
    rate: float = 1.0
    momentum: float = 0.7
    moments: MixtureSettings = field(default_factory=lambda: MixtureSettings(1, 1, moment_share=0.6))

    def __post_init__(self) -> None:
        if self.steps < 0 or not 1 <= self.dim <= LEAST or self.images < 1:
            raise ValueError(
                f"expected steps >= 0, dim of 1 to {LEAST} and images >= 1, got {self.steps}, {self.dim} and "
                f"{self.images}: use for example 6, 100 and 20,000"
            )
        if not (0 < self.share < 1 and self.rate > 0 and 0 <= self.momentum < 1):
            raise ValueError(
                "expected 0 < share < 1, rate > 0 and 0 <= momentum < 1, got "
                f"{self.share}, {self.rate} and {self.momentum}: use for example 0.25, 1 and 0.7"
            )
        if self.moments.components != 1:
            raise ValueError(f"expected moments of 1 component, got {self.moments.components}: set it to 1")


class Transport:
    """Moves images of a class, which are spread in one way, to be spread in another.

    In whitened oriented energies f, a synthetic image of class c gets the target T_c(f) = m + A (f - s), the optimal
    transport between two Gaussians (Olkin and Pukelsheim 1982): s is the synthetic mean, m the private one, and
    A = S^-½ (S^½ P S^½)^½ S^-½ with the covariances S and P. Whitening and S, s come from synthetic images; P, m come
    from :func:`dpldm.method.mixture.fit_mixture` and are charged as "energy second moments" and "energy sums".
    """

    def __init__(self, num_classes: int, settings: TransportSettings) -> None:
        self.num_classes, self.settings = num_classes, settings
        self.mean = self.axes = self.sources = self.covariances = self.targets = self.maps = torch.zeros(0)

    @property
    def images_needed(self) -> int:
        """How many synthetic images `fit` wants to see."""
        return max(self.settings.images, PER_FEATURE * self.settings.dim * self.num_classes)

    def mechanisms(self, allowance: Allowance) -> list[Mechanism]:
        """What `fit` will charge."""
        return list(mixture.mechanisms(self.settings.dim, self.settings.moments, allowance, STAGE, "energy"))

    def fit(
        self,
        data: PrivateData,
        synthetic: Callable[[], tuple[Tensor, Tensor]],
        allowance: Allowance,
        noise: NoiseSource,
    ) -> Iterator[int]:
        """Yields the steps done.

        Args:
            synthetic: draws images (M, C, H, W) in [0, 1] and their labels (M,), as they are to be moved; is called if
                their moments are not known yet.
        """
        settings = self.settings
        if not self.axes.numel():
            self.look_at(*synthetic())
        yield 1

        def encode(images: Tensor) -> Tensor:
            with torch.no_grad():
                return whitened(images, self.mean, self.axes)

        target = mixture.fit_mixture(data, encode, settings.dim, settings.moments, allowance, noise, STAGE, "energy")
        self.targets = target.means[:, 0]
        wanted = target.vectors @ torch.diag_embed(target.values) @ target.vectors.mT
        self.maps = torch.stack([_between(*pair) for pair in zip(self.covariances, wanted, strict=True)])
        yield 2

    def look_at(self, images: Tensor, labels: Tensor) -> None:
        """Learn how synthetic images are spread: post-processing."""
        self.mean, self.axes = whitening(images, self.settings.dim)
        features = whitened(images, self.mean, self.axes)
        by_class = [features[labels == c] for c in range(self.num_classes)]
        self.sources = torch.stack([rows.mean(0) for rows in by_class])
        self.covariances = torch.stack([rows.T.cov(correction=0) for rows in by_class])

    def move(self, images: Tensor, labels: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] of classes ``labels`` (N,), moved: post-processing."""
        parts = zip(images.split(BATCH), labels.split(BATCH), strict=True)
        return torch.cat([self._move(part, classes) for part, classes in parts])

    def _move(self, images: Tensor, labels: Tensor) -> Tensor:
        settings = self.settings
        with torch.no_grad():
            away = whitened(images, self.mean, self.axes) - self.sources[labels]
            wanted = self.targets[labels] + torch.einsum("bij,bj->bi", self.maps[labels], away)
        velocity = torch.zeros_like(images)
        for step in range(settings.steps):
            with torch.enable_grad():
                images = images.detach().requires_grad_()
                distance = (whitened(images, self.mean, self.axes) - wanted).square().sum()
                (slope,) = torch.autograd.grad(distance, images)
            slope = slope / slope.flatten(1).norm(dim=1).clamp_min(1e-6).view(-1, 1, 1, 1)
            velocity = settings.momentum * velocity + slope
            images = (images.detach() - settings.rate * (1 - step / settings.steps) * velocity).clamp(0, 1)
        return images

    def state(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in _STATE}

    def restore(self, state: dict[str, Tensor]) -> None:
        for name in _STATE:
            setattr(self, name, state[name])


_STATE = ("mean", "axes", "sources", "covariances", "targets", "maps")


def _between(source: Tensor, target: Tensor) -> Tensor:
    """The matrix that takes one covariance (d, d) to the other by the shortest way."""
    root = _power(source.double(), 0.5)
    back = _power(source.double(), -0.5)
    return (back @ _power(root @ target.double() @ root, 0.5) @ back).float()


def _power(matrix: Tensor, exponent: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(SMALLEST) ** exponent) @ vectors.mT
