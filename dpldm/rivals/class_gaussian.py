"""The floor: one Gaussian per class in the space of private PCA; and reading B of the paper, latents with noise.

The statistics are released once, by Gaussian mechanisms; what follows is post-processing, so sampling costs no privacy.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dpldm.method import compression, mixture
from dpldm.method.compression import CompressionSettings
from dpldm.method.compressor import Shape
from dpldm.method.finishing import Finishable
from dpldm.method.labels import one_hot
from dpldm.method.mixture import Mixture, MixtureSettings
from dpldm.method.settings import SamplingSettings
from dpldm.privacy.budget import Allowance
from dpldm.privacy.guard import PrivateData
from dpldm.privacy.mechanisms import Mechanism, PrivacySpec
from dpldm.privacy.noise import NoiseSource, clip_rows, release
from dpldm.rivals.base import BATCH, Rival, whole

# --- one Gaussian per class -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassGaussianSettings(Finishable):
    """``compression_share``: of the budget's 1/σ², for the compressor; the mixture gets the rest."""

    compression: CompressionSettings = field(default_factory=CompressionSettings)
    mixture: MixtureSettings = field(default_factory=lambda: MixtureSettings(1, 1, moment_share=0.85))
    compression_share: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.compression_share < 1:
            raise ValueError(f"expected 0 < compression_share < 1, got {self.compression_share}: use for example 0.2")


class ClassGaussian(Rival):
    """Private PCA, then one Gaussian of the latents per class; no network (or a few, with more components).

    Guarantee: that of the compressor and of :func:`dpldm.method.mixture.fit_mixture`, composed. It is the model that
    the latent diffusion starts from, with the whole budget to itself.
    """

    settings: ClassGaussianSettings
    stages = ("compression", "mixture")

    def __init__(
        self,
        shape: Shape,
        num_classes: int,
        settings: ClassGaussianSettings,
        spec: PrivacySpec | None,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(shape, num_classes, spec, seed, device)
        self.settings = settings
        self.compressor = compression.build(shape, settings.compression, 1000 * seed + 800)
        self.mixture: Mixture | None = None

    def total_steps(self, stage: str) -> int:
        """About how many steps a stage yields, for a progress bar."""
        settings = self.settings.compression
        if stage == "mixture" or settings.kind == "pca":
            return 2
        return settings.refined.fit.steps if settings.kind == "refined-pca" else settings.autoencoder.fit.steps

    def fit_stage(self, stage: str, data: PrivateData) -> Iterator[int]:
        """Fit one stage; yields the steps done."""
        budget, share = whole(self.spec), self.settings.compression_share
        if stage == "compression":
            yield from self.compressor.fit(data, budget.part(share), self._noise(stage), self._random(stage))
        else:
            self.mixture = self._fit_mixture(data, budget.part(1 - share), self._noise(stage))
            yield 2

    def _fit_mixture(self, data: PrivateData, allowance: Allowance, noise: NoiseSource) -> Mixture:
        encode, dim = self.compressor.encode, self.compressor.dim
        return mixture.fit_mixture(data, encode, dim, self.settings.mixture, allowance, noise)

    @torch.no_grad()
    def _drawn(self, labels: Tensor, seed: int, sampling: SamplingSettings | None) -> Iterator[Tensor]:
        assert self.mixture is not None, "fit or restore first"
        random = torch.Generator().manual_seed(seed)
        for part in labels.split(BATCH):
            yield self.compressor.decode(self.mixture.sample(part, random))

    def state(self, stage: str) -> dict[str, Tensor]:
        """A finished stage's tensors."""
        if stage == "compression":
            return self.compressor.state()
        assert self.mixture is not None, "fit first"
        return self.mixture.tensors()

    def restore(self, stage: str, state: dict[str, Tensor]) -> None:
        """Put a finished stage's tensors back, in the order of ``stages``."""
        if stage == "compression":
            self.compressor.restore(state)
        else:
            self.mixture = Mixture(**state)


# --- reading B: noised latents ----------------------------------------------------------------------------------------


class NoisedLatents(ClassGaussian):
    """Reading B of the paper: each latent and its label are clipped and noised once; what follows is post-processing.

    One release, "noised latents": a row per image with its latent (norm at most R) and its class as a vector of length
    R. An image that is left out is a row of zeros, so the sensitivity is √2·R. Noise this strong, with a known
    variance, leaves of the latents their Gaussian and little else; so a Gaussian per class is fitted, which is also
    where a diffusion model that starts there stays.
    """

    def _fit_mixture(self, data: PrivateData, allowance: Allowance, noise: NoiseSource) -> Mixture:
        dim, floor = self.compressor.dim, self.settings.mixture.floor
        radius = self.settings.mixture.clip_norm * math.sqrt(dim)
        mechanism = allowance.mechanism("noised latents", "mixture", sensitivity=math.sqrt(2) * radius)
        images, labels = data.read(mechanism)
        hot = one_hot(labels, data.num_classes) * radius
        rows = torch.cat([clip_rows(self.compressor.encode(images), radius), hot], dim=1)
        rows = release(rows, mechanism, noise)
        return _gaussian_per_class(rows[:, :dim], rows[:, dim:].argmax(1), data.num_classes, mechanism, floor)


def _gaussian_per_class(
    latents: Tensor, classes: Tensor, num_classes: int, mechanism: Mechanism, floor: float
) -> Mixture:
    """One Gaussian for each class of noised latents, with the known variance of the noise taken off."""
    counts = torch.bincount(classes, minlength=num_classes).clamp_min(1).float()
    sums = torch.zeros(num_classes, latents.shape[1]).index_add_(0, classes, latents)
    moments = torch.stack([latents[classes == c].T @ latents[classes == c] for c in range(num_classes)])
    variance = (mechanism.sensitivity * mechanism.noise_multiplier) ** 2
    moments = moments - variance * counts[:, None, None] * torch.eye(latents.shape[1])
    std = variance * math.sqrt(float(counts.mean()))  # of an entry of the sum of noise · noiseᵀ
    return mixture.from_moments(counts[:, None], (sums / counts[:, None])[:, None], moments, 0.0, std, floor)
