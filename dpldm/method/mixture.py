"""A class-conditional Gaussian mixture of latents: fitted by private EM, and its exact denoiser.

One covariance per class, shared by the class's components. It is the starting point of the diffusion (what the network
learns is the difference from it) and, with one component, the class-Gaussian baseline.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dpldm.privacy.budget import Allowance
from dpldm.privacy.guard import PrivateData
from dpldm.privacy.mechanisms import Mechanism
from dpldm.privacy.noise import NoiseSource, clip_rows, release

Encode = Callable[[Tensor], Tensor]
STAGE = "diffusion"


@dataclass(frozen=True)
class MixtureSettings:
    """How a mixture is fitted. ``clip_norm`` bounds a latent's L2 norm, in units of √dim."""

    components: int = 8
    iterations: int = 4
    clip_norm: float = 1.2
    moment_share: float = 0.5
    floor: float = 0.02

    def __post_init__(self) -> None:
        if self.components < 1 or self.iterations < 1:
            raise ValueError(
                f"expected components >= 1 and iterations >= 1, got {self.components} and {self.iterations}: raise them"
            )
        if not 0 < self.moment_share < 1:
            raise ValueError(f"expected 0 < moment_share < 1, got {self.moment_share}: use for example 0.5")


@dataclass(frozen=True)
class Mixture:
    """Components of each of C classes in d dimensions: ``weights`` (C, K) summing to 1 in a class, ``means`` (C, K, d),
    one covariance per class as ``vectors`` (C, d, d, eigenvectors in columns) and ``values`` (C, d), and the classes'
    shares ``class_weights`` (C,)."""

    class_weights: Tensor
    weights: Tensor
    means: Tensor
    vectors: Tensor
    values: Tensor

    @property
    def num_classes(self) -> int:
        return len(self.weights)

    @property
    def dim(self) -> int:
        return self.means.shape[-1]

    def to(self, device: torch.device | str) -> "Mixture":
        return Mixture(**{name: value.to(device) for name, value in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """The parameters by name, as :class:`Mixture` takes them."""
        return dict(vars(self))

    def _in_class(self, c: int, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Log densities of ``x`` (..., d) under each component blurred by noise ``sigma`` (..., 1), and the expected
        clean latents under each class: (..., K) and (..., d)."""
        rotated, means = x @ self.vectors[c], self.means[c] @ self.vectors[c]
        total = self.values[c] + sigma**2
        precise = rotated / total
        distance = (rotated * precise).sum(-1, keepdim=True) - 2 * precise @ means.T + (1 / total) @ means.square().T
        log_density = self.weights[c].log() - (distance + total.log().sum(-1, keepdim=True)) / 2
        mean = log_density.softmax(-1) @ means
        clean = mean + self.values[c] / total * (rotated - mean)
        return log_density, clean @ self.vectors[c].T

    def denoise(self, x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        """Expected clean latents E[z | z + σ·noise = x], exactly.

        Args:
            x: noisy latents (B, ..., d).
            sigma: noise levels > 0, broadcastable to (B, ..., 1).
            labels: classes (B,); the label ``num_classes`` means "any class" and averages over all.
        """
        sigma = sigma.expand(*x.shape[:-1], 1)
        clean = torch.empty_like(x)
        for c in labels.unique().tolist():
            chosen = labels == c
            if c < self.num_classes:
                clean[chosen] = self._in_class(c, x[chosen], sigma[chosen])[1]
            else:
                clean[chosen] = self._any_class(x[chosen], sigma[chosen])
        return clean

    def _any_class(self, x: Tensor, sigma: Tensor) -> Tensor:
        terms = [self._in_class(c, x, sigma) for c in range(self.num_classes)]
        log_density = torch.stack([density.logsumexp(-1) for density, _ in terms], -1) + self.class_weights.log()
        return (log_density.softmax(-1)[..., None] * torch.stack([clean for _, clean in terms], -2)).sum(-2)

    def responsibilities(self, x: Tensor, labels: Tensor) -> Tensor:
        """Posterior probability (B, K) of each component of its own class for latents (B, d)."""
        result = x.new_empty(len(x), self.weights.shape[1])
        for c in range(self.num_classes):
            chosen = labels == c
            result[chosen] = self._in_class(c, x[chosen], x.new_zeros(1))[0].softmax(-1)
        return result

    def sample(self, labels: Tensor, random: torch.Generator) -> Tensor:
        """Latents (B, d) of the given classes (B,), drawn from the mixture itself."""
        component = torch.multinomial(self.weights[labels], 1, generator=random)[:, 0]
        noise = torch.randn(len(labels), self.dim, generator=random) * self.values[labels].sqrt()
        spread = torch.einsum("bij,bj->bi", self.vectors[labels], noise)
        return self.means[labels, component] + spread


def mechanisms(
    dim: int, settings: MixtureSettings, allowance: Allowance, stage: str = STAGE, what: str = "latent"
) -> tuple[Mechanism, Mechanism]:
    """What :func:`fit_mixture` charges: "<what> second moments" and "<what> sums"."""
    radius = settings.clip_norm * math.sqrt(dim)
    return (
        allowance.part(settings.moment_share).mechanism(f"{what} second moments", stage, sensitivity=radius**2),
        allowance.part(1 - settings.moment_share).mechanism(
            f"{what} sums", stage, sensitivity=math.sqrt(radius**2 + (radius / 2) ** 2), steps=settings.iterations
        ),
    )


def fit_mixture(
    data: PrivateData,
    encode: Encode,
    dim: int,
    settings: MixtureSettings,
    allowance: Allowance,
    noise: NoiseSource,
    stage: str = STAGE,
    what: str = "latent",
) -> Mixture:
    """Fit a mixture to the latents of private images by noisy EM (after Park et al. 2017, DP-EM).

    Two mechanisms of ``stage``, both full-batch Gaussian, named after ``what``: "latent second moments" releases Σ z zᵀ
    of every class once; "latent sums" releases, in each of ``iterations`` rounds, every component's count and sum of z.
    An image adds to one class only and its responsibilities r sum to 1, so with ‖z‖ ≤ R it moves all of a round's
    numbers together by at most √(R² + a²)·‖r‖ ≤ √(R² + a²), with the count scaled by a = R/2, and the second moments
    by R². Covariances come from both by the law of total covariance, shrunk towards the classes' average by how noisy
    they are (James-Stein).

    ``encode`` maps images (N, C, H, W) to latents (N, dim) row by row and must itself be private already.
    """
    radius = settings.clip_norm * math.sqrt(dim)
    count_scale = radius / 2

    of_moments, mechanism = mechanisms(dim, settings, allowance, stage, what)
    data.read(of_moments)
    images, labels = data.read(mechanism)
    latents = clip_rows(encode(images), radius)
    moments = _symmetric_noise(_class_moments(latents, labels, data.num_classes), of_moments, noise)
    moment_std = of_moments.sensitivity * of_moments.noise_multiplier

    extended = torch.cat([latents, latents.new_full((len(latents), 1), count_scale)], dim=1).double()

    def estimate(shares: Tensor) -> Mixture:
        sums = torch.stack([shares[labels == c].double().T @ extended[labels == c] for c in range(data.num_classes)])
        sums = release(sums, mechanism, noise).float()
        sum_std = mechanism.sensitivity * mechanism.noise_multiplier
        least = max(1.0, sum_std / count_scale)
        counts = (sums[..., -1] / count_scale).clamp_min(least)
        means = clip_rows((sums[..., :-1] / counts[..., None]).flatten(0, 1), radius).view(*counts.shape, dim)
        return from_moments(counts, means, moments, sum_std, moment_std, settings.floor)

    mixture = estimate(latents.new_ones(len(latents), 1))
    if settings.components > 1 and settings.iterations > 1:
        mixture = _spread(mixture, settings.components, noise)
    for _ in range(settings.iterations - 1):
        mixture = estimate(mixture.responsibilities(latents, labels))
    return mixture


def _class_moments(latents: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Σ z zᵀ of every class (classes, d, d), summed in float64: rounding in a float32 sum over many images is in the
    order of what one image may change."""
    latents = latents.double()
    return torch.stack([latents[labels == c].T @ latents[labels == c] for c in range(num_classes)])


def _symmetric_noise(moments: Tensor, mechanism: Mechanism, noise: NoiseSource) -> Tensor:
    """The Gaussian mechanism for symmetric matrices: all entries are noised, then averaged with the transpose (which is
    post-processing)."""
    noisy = release(moments, mechanism, noise)
    return (noisy + noisy.mT).float() / 2


def from_moments(
    counts: Tensor, means: Tensor, moments: Tensor, sum_std: float, moment_std: float, floor: float
) -> Mixture:
    """A mixture from noisy statistics: post-processing.

    Args:
        counts: (classes, components), above 0. means: (classes, components, dim).
        moments: second moments Σ z zᵀ of every class (classes, dim, dim), symmetric.
        sum_std, moment_std: standard deviation of the noise in an entry of the sums and of the second moments.
        floor: least variance in any direction.
    """
    totals, dim = counts.sum(1), means.shape[-1]
    weights = counts / totals[:, None]
    between = torch.einsum("ck,cki,ckj->cij", weights, means, means)
    from_noise = (weights * (sum_std / counts).square()).sum(1)  # what the means' noise adds to `between`, expected
    covariances = moments / totals[:, None, None] - between + from_noise[:, None, None] * torch.eye(dim)
    class_weights = totals / totals.sum()
    average = (class_weights[:, None, None] * covariances).sum(0)
    noise_energy = (moment_std / totals) ** 2 * dim * (dim + 1) / 2
    energy = (covariances - average).square().sum((1, 2))
    shrink = (noise_energy / energy.clamp_min(1e-12)).clamp(0, 1)[:, None, None]
    values, vectors = torch.linalg.eigh(shrink * average + (1 - shrink) * covariances)
    return Mixture(class_weights, weights, means, vectors, values.clamp_min(floor))


def _spread(mixture: Mixture, components: int, noise: NoiseSource) -> Mixture:
    """Split every class's Gaussian into equal components at points drawn from it."""
    labels = torch.arange(mixture.num_classes).repeat_interleave(components)
    steps = noise.normal((len(labels), mixture.dim)) * mixture.values[labels].sqrt()
    points = mixture.means[labels, 0] + torch.einsum("bij,bj->bi", mixture.vectors[labels], steps)
    return Mixture(
        mixture.class_weights,
        torch.full((mixture.num_classes, components), 1 / components),
        points.view(mixture.num_classes, components, -1),
        mixture.vectors,
        mixture.values / 2,
    )
