"""Compressors with a network that DP-SGD trains: PCA whose decoder is refined, and an autoencoder."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dpldm.method import training
from dpldm.method.compressor import STAGE, Shape
from dpldm.method.pca import PCASettings, PrivatePCA
from dpldm.method.training import FitSettings
from dpldm.privacy.budget import Allowance
from dpldm.privacy.guard import PrivateData
from dpldm.privacy.mechanisms import Mechanism
from dpldm.privacy.noise import NoiseSource


class Perceptron(nn.Sequential):
    """Linear, SiLU, …, Linear; with ``zero`` the last layer starts at zero."""

    def __init__(self, *sizes: int, zero: bool = False) -> None:
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after), nn.SiLU()]
        super().__init__(*layers[:-1])
        if zero:
            last = layers[-2]
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)


@dataclass(frozen=True)
class RefinedPCASettings:
    """Private PCA whose decoder is refined by DP-SGD with ``decoder_share`` of the stage's budget."""

    pca: PCASettings = field(default_factory=PCASettings)
    width: int = 256
    decoder_share: float = 0.4
    fit: FitSettings = field(default_factory=lambda: FitSettings(learning_rate=1e-3, clip_norm=0.2))


class RefinedPCA:
    """Private PCA, then a one-hidden-layer network that adds to the linear decoding what is not linear.

    The network's output starts at zero and works in the same public cosine coefficients as the PCA; it is fitted to the
    squared error of the images by DP-SGD ("decoder gradients" in the ledger). Encoding stays linear.
    """

    public_data = None

    def __init__(self, shape: Shape, settings: RefinedPCASettings = RefinedPCASettings()) -> None:
        self.settings, self.pca = settings, PrivatePCA(shape, settings.pca)
        self.network: Perceptron | None = None

    @property
    def dim(self) -> int:
        return self.pca.dim

    @property
    def steps(self) -> int:
        return self.pca.steps + self.settings.fit.steps

    def planned(self, allowance: Allowance, n: int) -> list[Mechanism]:
        """What `fit` to ``n`` images will charge: the mechanisms of the PCA and DP-SGD."""
        fit, share = self.settings.fit, self.settings.decoder_share
        gradients = allowance.part(share).sgd("decoder gradients", STAGE, n, fit.batch, fit.steps, fit.clip_norm)
        return [*self.pca.planned(allowance.part(1 - share), n), gradients]

    def _build(self) -> Perceptron:
        self.network = Perceptron(self.dim, self.settings.width, len(self.pca.mean), zero=True)
        return self.network

    def fit(
        self, data: PrivateData, allowance: Allowance, noise: NoiseSource, random: torch.Generator
    ) -> Iterator[int]:
        yield from self.pca.fit(data, allowance.part(1 - self.settings.decoder_share), noise, random)
        settings = self.settings.fit
        *_, mechanism = self.planned(allowance, len(data))
        images, _ = data.read(mechanism)
        latents = self.pca.encode(images)
        missing = self.pca._coefficients(images) - self.pca._coefficients(self.pca.project(latents))

        def loss(network: nn.Module, chosen: Tensor) -> Tensor:
            return (network(latents[chosen]) - missing[chosen]).square().sum(1)

        for step in training.fit(self._build(), loss, len(data), mechanism, settings, noise, random):
            yield 2 + step

    def encode(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] → latents (N, dim)."""
        return self.pca.encode(images)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (N, dim) → images (N, C, H, W) in [0, 1]."""
        assert self.network is not None, "fit or restore first"
        return self.pca.limit(self.pca.project(latents) + self.pca._images(self.network(latents)))

    def state(self) -> dict[str, Tensor]:
        assert self.network is not None, "fit first"
        network = training.parameters_of(self.network)
        return self.pca.state() | {f"network.{name}": value for name, value in network.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.pca.restore(state)
        prefix = "network."
        self._build().load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})


@dataclass(frozen=True)
class AutoencoderSettings:
    """An autoencoder with latents of ``dim`` numbers and hidden layers of ``width``, fitted by DP-SGD as ``fit`` says,
    or to ``public_images`` procedural images."""

    dim: int = 32
    width: int = 256
    fit: FitSettings = field(default_factory=lambda: FitSettings(steps=300, learning_rate=1e-3, clip_norm=1.0))
    public_images: int = 20_000


class Autoencoder:
    """An autoencoder of two-layer perceptrons, fitted by DP-SGD to the private images ("autoencoder gradients").

    Latents are divided by their own root mean square, so every one has L2 norm √dim without looking at other images.
    With ``public=True`` it is fitted to procedural images instead and touches no private image.
    """

    def __init__(
        self, shape: Shape, settings: AutoencoderSettings = AutoencoderSettings(), public: bool = False
    ) -> None:
        self.shape, self.settings, self.dim = shape, settings, settings.dim
        self.public_data = "procedural shapes" if public else None
        size, width = math.prod(shape), settings.width
        self.network = nn.ModuleDict(
            {"encoder": Perceptron(size, width, self.dim), "decoder": Perceptron(self.dim, width, size)}
        )

    @property
    def steps(self) -> int:
        return self.settings.fit.steps

    def planned(self, allowance: Allowance, n: int) -> list[Mechanism]:
        """What `fit` to ``n`` images will charge: DP-SGD, or nothing where only public images are seen."""
        fit = self.settings.fit
        if self.public_data:
            return []
        return [allowance.sgd("autoencoder gradients", STAGE, n, fit.batch, fit.steps, fit.clip_norm)]

    def _encode(self, network: Any, images: Tensor) -> Tensor:
        code = network["encoder"](images.flatten(1) - 0.5)
        return code / code.square().mean(1, keepdim=True).add(1e-6).sqrt()

    def fit(
        self, data: PrivateData, allowance: Allowance, noise: NoiseSource, random: torch.Generator
    ) -> Iterator[int]:
        settings = self.settings.fit
        if self.public_data:
            images = procedural_images(self.settings.public_images, self.shape, random)
            yield from training.fit_ordinary(self.network, self._loss(images), len(images), settings, random)
            return
        (mechanism,) = self.planned(allowance, len(data))
        images, _ = data.read(mechanism)
        yield from training.fit(self.network, self._loss(images), len(data), mechanism, settings, noise, random)

    def _loss(self, images: Tensor) -> training.PerExampleLoss:
        def loss(network: nn.Module, chosen: Tensor) -> Tensor:
            inner: Any = getattr(network, "_module", network)
            decoded = inner["decoder"](self._encode(inner, images[chosen])) + 0.5
            return (decoded - images[chosen].flatten(1)).square().sum(1)

        return loss

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] → latents (N, dim)."""
        return torch.cat([self._encode(self.network, part) for part in images.split(4096)])

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (N, dim) → images (N, C, H, W) in [0, 1]."""
        decoder: Callable[[Tensor], Tensor] = self.network["decoder"]
        return (decoder(latents) + 0.5).clamp(0, 1).view(-1, *self.shape)

    def state(self) -> dict[str, Tensor]:
        return training.parameters_of(self.network)

    def restore(self, state: dict[str, Tensor]) -> None:
        self.network.load_state_dict(state)


def procedural_images(n: int, shape: Shape, random: torch.Generator) -> Tensor:
    """Public pre-training images: blurred strokes, ellipses and boxes at random (n, C, H, W), drawn without any data.

    Each image is the brightest of one to four shapes, each a soft-edged capsule, ellipse or box; colours are random.
    """
    channels, side, _ = shape
    axis = torch.linspace(-1, 1, side)
    y, x = torch.meshgrid(axis, axis, indexing="ij")

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, 1, 1, generator=random)

    canvas = torch.zeros(n, channels, side, side)
    for layer in range(4):
        angle, across, down = uniform(0, math.pi), x - uniform(-0.5, 0.5), y - uniform(-0.5, 0.5)
        u = across * angle.cos() + down * angle.sin()
        v = down * angle.cos() - across * angle.sin()
        long, thin = uniform(0.1, 0.8), uniform(0.04, 0.5)
        stroke = ((u.abs() - long).clamp_min(0).square() + v.square()).sqrt() - thin / 3
        ellipse = ((u / long).square() + (v / thin).square()).sqrt().sub(1) * thin
        box = torch.maximum(u.abs() - long, v.abs() - thin)
        kind = torch.randint(3, (n, 1, 1), generator=random)
        distance = torch.where(kind == 0, stroke, torch.where(kind == 1, ellipse, box))
        drawn = torch.sigmoid(-distance * side / 2) * (uniform(0, 1) < 1 / (1 + layer / 2))
        colour = 0.3 + 0.7 * torch.rand(n, channels, 1, 1, generator=random)
        canvas = torch.maximum(canvas, drawn[:, None] * colour)
    return canvas
