"""Private PCA: noise on the second moments of clipped images, and axes computed from them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dpldm.method.compressor import STAGE, Shape
from dpldm.privacy.budget import Allowance
from dpldm.privacy.guard import PrivateData
from dpldm.privacy.mechanisms import Mechanism
from dpldm.privacy.noise import NoiseSource, clip_rows, release


def cosine_basis(side: int, frequencies: int) -> Tensor:
    """The lowest ``frequencies`` rows of the orthonormal discrete cosine transform (type II): (frequencies, side).

    >>> basis = cosine_basis(8, 3)
    >>> torch.allclose(basis @ basis.T, torch.eye(3), atol=1e-6)
    True
    """
    points = (torch.arange(side, dtype=torch.float64) + 0.5) * math.pi / side
    basis = torch.cos(torch.arange(frequencies, dtype=torch.float64)[:, None] * points) * math.sqrt(2 / side)
    basis[0] /= math.sqrt(2)
    return basis.float()


@dataclass(frozen=True)
class PCASettings:
    """Private PCA. ``dim`` is the most latent dimensions kept; fewer are where the noise hides the rest.

    ``frequencies``: images are first written in this many public cosine frequencies per axis (fewer entries, less
    noise). ``clip_norm``: bound on a centred image's L2 norm, in units of √pixels. ``whitening``: 1 gives every latent
    unit variance, 0 keeps the pixels' scale. ``visible``: a direction is kept while its variance exceeds this many
    times the largest that noise alone would show. ``floor``: decoded values below it become 0, and what is above is
    stretched to [0, 1]: few components leave faint ghosts on an empty background.
    """

    dim: int = 64
    frequencies: int = 16
    clip_norm: float = 0.22
    whitening: float = 0.7
    visible: float = 0.4
    floor: float = 0.08
    mean_share: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.floor < 1:
            raise ValueError(f"expected a floor from 0 to below 1, got {self.floor}: use for example 0.08")


class PrivatePCA:
    """Principal components from a noisy second-moment matrix (Dwork et al. 2014, "Analyze Gauss").

    Two Gaussian mechanisms over all images: "image mean" (sum of images, clipped) and "image second moments"
    (Σ x xᵀ of clipped centred images; adding an image changes it by at most the squared clipping norm).
    """

    public_data = None

    def __init__(self, shape: Shape, settings: PCASettings = PCASettings()) -> None:
        self.shape, self.settings = shape, settings
        self.frequencies = min(settings.frequencies, shape[1])
        self.basis = cosine_basis(shape[1], self.frequencies)
        size = shape[0] * self.frequencies**2
        self.dim = min(settings.dim, size)
        self.mean = torch.zeros(size)
        self.axes = torch.zeros(size, self.dim)
        self.scale = torch.ones(self.dim)

    def _coefficients(self, images: Tensor) -> Tensor:
        basis = self.basis.to(images.device)
        return torch.einsum("fh,nchw,gw->ncfg", basis, images, basis).flatten(1)

    def _images(self, coefficients: Tensor) -> Tensor:
        basis = self.basis.to(coefficients.device)
        grid = coefficients.view(-1, self.shape[0], self.frequencies, self.frequencies)
        return torch.einsum("fh,ncfg,gw->nchw", basis, grid, basis)

    steps = 2

    def planned(self, allowance: Allowance, n: int) -> list[Mechanism]:
        """The two mechanisms that `fit` will charge."""
        root, share = math.sqrt(math.prod(self.shape)), self.settings.mean_share
        second = (self.settings.clip_norm * root) ** 2
        return [
            allowance.part(share).mechanism("image mean", STAGE, sensitivity=0.5 * root),
            allowance.part(1 - share).mechanism("image second moments", STAGE, sensitivity=second),
        ]

    def fit(
        self, data: PrivateData, allowance: Allowance, noise: NoiseSource, random: torch.Generator
    ) -> Iterator[int]:
        """Two one-shot releases; yields the number done."""
        mechanism, of_moments = self.planned(allowance, len(data))
        images, _ = data.read(mechanism)
        total = clip_rows(self._coefficients(images), mechanism.sensitivity).double().sum(0)
        self.mean = (release(total, mechanism, noise) / len(data)).float()
        yield 1

        radius = self.settings.clip_norm * math.sqrt(math.prod(self.shape))
        images, _ = data.read(of_moments)
        # float64: rounding in a float32 sum over all images is in the order of what one image may change
        centred = clip_rows(self._coefficients(images) - self.mean, radius).double()
        moments = release(centred.T @ centred, of_moments, noise)
        noise_std = of_moments.sensitivity * of_moments.noise_multiplier / len(data)
        self._keep((moments + moments.T) / 2 / len(data), noise_std)
        yield 2

    def _keep(self, moments: Tensor, noise_std: float) -> None:
        """Axes and scales from the noisy moments: post-processing."""
        values, vectors = torch.linalg.eigh(moments)
        values, vectors = values.flip(0).float(), vectors.flip(1).float()
        edge = noise_std * math.sqrt(2 * len(values))  # the largest eigenvalue of the symmetric noise alone
        kept = int((values > max(self.settings.visible * edge, 1e-6)).sum())
        self.dim = max(min(self.settings.dim, kept), 2)
        values = values[: self.dim].clamp_min(1e-6)
        scale = values ** (self.settings.whitening / 2)
        self.scale = scale * (values / scale**2).mean().sqrt()
        self.axes = vectors[:, : self.dim]

    def encode(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] → latents (N, dim)."""
        device = images.device
        return (self._coefficients(images) - self.mean.to(device)) @ self.axes.to(device) / self.scale.to(device)

    def project(self, latents: Tensor) -> Tensor:
        """Latents (N, dim) → images (N, C, H, W), not yet limited to [0, 1]."""
        device = latents.device
        return self._images(self.mean.to(device) + (latents * self.scale.to(device)) @ self.axes.to(device).T)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (N, dim) → images (N, C, H, W) in [0, 1]."""
        return self.limit(self.project(latents))

    def limit(self, images: Tensor) -> Tensor:
        """Projected images of any values → images in [0, 1] without what lies below the floor."""
        return ((images - self.settings.floor) / (1 - self.settings.floor)).clamp(0, 1)

    def state(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "axes": self.axes, "scale": self.scale}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.mean, self.axes, self.scale = state["mean"], state["axes"], state["scale"]
        self.dim = self.axes.shape[1]
