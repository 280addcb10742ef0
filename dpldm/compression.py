"""Stage 1: images ↔ latent vectors. Several compressors behind one ``fit / encode / decode``.

A compressor is fitted to private images through mechanisms that it charges itself. Its `encode` may then be applied to
private images only inside another mechanism: a private encoder does not make the latents private. `decode` and
everything computed from it is post-processing.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dpldm import training
from dpldm.privacy import Allowance, Mechanism, NoiseSource, PrivateData, clip_rows, release
from dpldm.training import FitSettings

STAGE = "compression"
Shape = tuple[int, int, int]


class Compressor(Protocol):
    """What stage 2 needs of stage 1. Latents are (N, dim) with entries of about unit size."""

    public_data: str | None
    dim: int

    @property
    def steps(self) -> int:
        """How many steps `fit` yields."""

    def planned(self, allowance: Allowance, n: int) -> list[Mechanism]:
        """What `fit` to ``n`` images will charge, in order."""

    def fit(
        self, data: PrivateData, allowance: Allowance, noise: NoiseSource, random: torch.Generator
    ) -> Iterator[int]: ...

    def encode(self, images: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor: ...

    def state(self) -> dict[str, Tensor]: ...

    def restore(self, state: dict[str, Tensor]) -> None: ...


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


@dataclass(frozen=True)
class CompressionSettings:
    """Which compressor and the settings of each: ``pca``, ``refined-pca``, ``autoencoder``, ``public-autoencoder``."""

    kind: str = "pca"
    pca: PCASettings = field(default_factory=PCASettings)
    refined: RefinedPCASettings = field(default_factory=RefinedPCASettings)
    autoencoder: AutoencoderSettings = field(default_factory=AutoencoderSettings)

    def __post_init__(self) -> None:
        if self.kind not in COMPRESSORS:
            raise ValueError(f"expected a compressor out of {', '.join(COMPRESSORS)}, got {self.kind!r}: choose one")


COMPRESSORS: dict[str, Callable[[Shape, CompressionSettings], Any]] = {
    "pca": lambda shape, settings: PrivatePCA(shape, settings.pca),
    "refined-pca": lambda shape, settings: RefinedPCA(shape, settings.refined),
    "autoencoder": lambda shape, settings: Autoencoder(shape, settings.autoencoder),
    "public-autoencoder": lambda shape, settings: Autoencoder(shape, settings.autoencoder, public=True),
}


def build(shape: Shape, settings: CompressionSettings, seed: int = 0) -> Compressor:
    """An unfitted compressor for images of ``shape`` (C, H, W); ``seed`` decides the first weights where it has any."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return COMPRESSORS[settings.kind](shape, settings)
