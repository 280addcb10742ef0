"""Other methods behind the same ``fit / sample``, under the same ledger: what the latent diffusion is compared with.

The floor (one Gaussian per class), DP-MERF, reading B of the paper, and real images as a yardstick. `dpldm.experiment`
lists them by name. All but the yardstick release their statistics once, by Gaussian mechanisms; what follows is
post-processing, so sampling costs no privacy.
"""

import math
import secrets
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from dpldm import compression, embedding, mixture, recipes, training
from dpldm.compression import CompressionSettings, PCASettings, Shape
from dpldm.denoiser import one_hot
from dpldm.drawing import FINISHING_SEED
from dpldm.embedding import RandomFeatures
from dpldm.finishing import FinishedLater
from dpldm.matching import Generator
from dpldm.mixture import Mixture, MixtureSettings
from dpldm.privacy import (
    Allowance,
    Mechanism,
    NoiseSource,
    PrivacyError,
    PrivacySpec,
    PrivateData,
    calibrate,
    clip_rows,
    gaussian_noise_multiplier,
    release,
)
from dpldm.settings import SamplingSettings

BATCH = 5_000  # images drawn at a time


def whole(spec: PrivacySpec | None) -> Allowance:
    """The whole budget as one Gaussian mechanism: with the noise multiplier that is asked for, or that ε needs; without
    noise where there is no budget."""
    if spec is None:
        return Allowance(0.0, 1e-5)
    if spec.noise_multiplier is not None:
        return Allowance(spec.noise_multiplier, spec.delta)
    assert spec.epsilon is not None
    return Allowance(gaussian_noise_multiplier(spec.epsilon, spec.delta), spec.delta)


class Baseline:
    """What the methods here have in common: their arguments, their noise, and images in batches.

    Args:
        shape: of an image, (C, H, W). num_classes: public. spec: the budget; None for no noise and no privacy.
        seed: of noise and weights, unless the spec asks for secure mode. device: where networks are fitted.
    """

    stages: Sequence[str]

    def __init__(
        self,
        shape: Shape,
        num_classes: int,
        spec: PrivacySpec | None,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.shape, self.num_classes, self.spec, self.seed = shape, num_classes, spec, seed
        self.device = torch.device(device)

    def check(self, n: int) -> None:
        """Refuse what can't work with ``n`` private images, before anything is read."""
        if self.spec is not None:
            self.spec.check(n)

    def total_steps(self, stage: str) -> int:
        """About how many steps a stage yields, for a progress bar."""
        return 2

    def fit(self, data: PrivateData) -> None:
        """All stages, one after the other."""
        self.check(len(data))
        for stage in self.stages:
            for _ in self.fit_stage(stage, data):
                pass

    def fit_stage(self, stage: str, data: PrivateData) -> Iterator[int]:
        """Fit one stage; yields the steps done."""
        raise NotImplementedError

    @property
    def _secure(self) -> bool:
        return self.spec is not None and self.spec.secure_mode

    def _noise(self, stage: str) -> NoiseSource:
        return NoiseSource.secure() if self._secure else NoiseSource.seeded(self._seed(stage, 0))

    def _random(self, stage: str) -> torch.Generator:
        """Draws of the training other than noise."""
        return torch.Generator().manual_seed(secrets.randbits(63) if self._secure else self._seed(stage, 500))

    def _seed(self, stage: str, purpose: int) -> int:
        return 1000 * self.seed + purpose + self.stages.index(stage)


class Rival(Baseline):
    """A method whose images may be finished like those of this book, by ``settings.finishing``."""

    settings: FinishedLater

    @abstractmethod
    def _drawn(self, labels: Tensor, seed: int, sampling: SamplingSettings | None) -> Iterator[Tensor]:
        """What the method itself draws: images for ``labels`` (N,) in batches (B, C, H, W) in [0, 1], on the CPU."""

    def sample(self, labels: Tensor, seed: int, sampling: SamplingSettings | None = None) -> Iterator[Tensor]:
        """Synthetic images for ``labels`` (N,), in batches (B, C, H, W) in [0, 1] in the labels' order, finished.

        Post-processing: costs no privacy, however many images are drawn. A method without a sampler makes no use of
        ``sampling``, or only of its batch.
        """
        for index, images in enumerate(self._drawn(labels, seed, sampling)):
            random = torch.Generator().manual_seed(FINISHING_SEED + 10_000 * seed + index)
            yield self.settings.finishing(images, random)


class NetworkBaseline(Rival):
    """A method that is one network, fitted in one stage by one mechanism."""

    network: nn.Module | None = None

    @abstractmethod
    def template(self, n: int) -> Mechanism:
        """The whole fit to ``n`` images as a mechanism, all but its noise multiplier."""

    @abstractmethod
    def _build_network(self) -> nn.Module:
        """A network with its first weights, which becomes `network`."""

    def mechanism(self, n: int) -> Mechanism:
        """`template` with the noise multiplier that is asked for, or the least that keeps the target ε, or none."""
        template = self.template(n)
        if self.spec is None:
            return replace(template, noise_multiplier=0.0)
        if self.spec.epsilon is None:
            return replace(template, noise_multiplier=self.spec.noise_multiplier or 0.0)
        return calibrate([], template, self.spec.epsilon, self.spec.delta)

    def state(self, stage: str) -> dict[str, Tensor]:
        """A finished stage's tensors: the network's, and nothing else."""
        assert self.network is not None, "fit first"
        return training.parameters_of(self.network)

    def restore(self, stage: str, state: dict[str, Tensor]) -> None:
        """Put a finished stage's tensors back."""
        with torch.random.fork_rng(devices=[]):
            self._build_network().load_state_dict(state)


# --- one Gaussian per class -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassGaussianSettings(FinishedLater):
    """``compression_share``: of the budget's 1/σ², for the compressor; the mixture gets the rest."""

    compression: CompressionSettings = field(default_factory=CompressionSettings)
    mixture: MixtureSettings = field(default_factory=lambda: MixtureSettings(1, 1, moment_share=0.85))
    compression_share: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.compression_share < 1:
            raise ValueError(f"expected 0 < compression_share < 1, got {self.compression_share}: use for example 0.2")


def class_gaussian_settings(profile: str, dataset: str, epsilon: float | None) -> ClassGaussianSettings:
    """The settings in a profile: stage 1 and moments of the recipes, the same for every data set.

    Chosen on a validation split (the last 10,000) of both sets' training images, seed 1, by the Fréchet distance at
    ε = 10 and 1 and by accuracy at 0.2, where wider bounds bring the distance down and cost accuracy; between these the
    nearest one's are taken.
    """
    if profile == "smoke":
        return noised_latents_settings(profile, dataset, epsilon)
    chosen = recipes.band(epsilon)
    return ClassGaussianSettings(recipes.stage_1(recipes.PCA[chosen]), recipes.MIXTURE[chosen])


def noised_latents_settings(profile: str, dataset: str, epsilon: float | None) -> ClassGaussianSettings:
    """The settings of reading B: clipped tightly at every budget, as the noise on a latent grows with its bound."""
    pca = PCASettings()
    if profile == "smoke":
        pca = PCASettings(dim=8, frequencies=8)
    elif recipes.band(epsilon) == "scarce":
        pca = recipes.PCA["scarce"]
    return ClassGaussianSettings(recipes.stage_1(pca), recipes.MIXTURE["scarce"])


class ClassGaussian(Rival):
    """Private PCA, then one Gaussian of the latents per class; no network (or a few, with more components).

    Guarantee: that of the compressor and of :func:`dpldm.mixture.fit_mixture`, composed. It is the model that the
    latent diffusion starts from, with the whole budget to itself.
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


# --- DP-MERF ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MeanEmbeddingSettings(FinishedLater):
    """``features``: random Fourier features, cosines and sines together. ``length_scale``: of the Gaussian kernel, in
    units of √(pixels / 6), the root mean square distance of two images of independent uniform pixels; public, where the
    paper takes the median distance of private images. ``count_scale``: weight of the class counts in the release.
    ``code``, ``width``, ``channels``: of the generator's input noise, hidden layer and first feature maps.
    ``generated``: images made in each of its ``steps``."""

    features: int = 10_000
    length_scale: float = 0.4
    count_scale: float = 0.1
    code: int = 5
    width: int = 200
    channels: int = 16
    steps: int = 1_000
    generated: int = 200
    learning_rate: float = 1e-2

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name != "finishing" and not value > 0:
                raise ValueError(f"expected {name} > 0, got {value}: give a positive number")
        if self.features % 2:
            raise ValueError(f"expected an even number of features, got {self.features}: add one")


def mean_embedding_settings(profile: str, dataset: str, epsilon: float | None) -> MeanEmbeddingSettings:
    """The settings in a profile; the data set and ε make no difference.

    The length scale was chosen with a small classifier on a validation split of both sets' training images: larger ones
    blur the classes, much smaller ones leave the first generated images without a gradient.
    """
    if profile == "smoke":
        return MeanEmbeddingSettings(features=200, width=32, channels=4, steps=5, generated=60)
    return MeanEmbeddingSettings(steps=4_000, generated=500) if profile == "paper" else MeanEmbeddingSettings()


class MeanEmbedding(Rival):
    """DP-MERF (Harder, Adamczewski and Park 2021): a noisy mean embedding per class, then a generator that matches it.

    Private part, one release ("mean embedding"): :func:`dpldm.embedding.mean_embedding` of pixels. The generator sees
    only that.
    """

    settings: MeanEmbeddingSettings
    stages = ("embedding", "generator")

    def __init__(
        self,
        shape: Shape,
        num_classes: int,
        settings: MeanEmbeddingSettings,
        spec: PrivacySpec | None,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(shape, num_classes, spec, seed, device)
        self.settings = settings
        self.embedding: Tensor | None = None
        self.network: Generator | None = None
        random = torch.Generator().manual_seed(1000 * seed + 700)
        self.features = RandomFeatures(shape, settings.features, settings.length_scale, random).to(self.device)

    def total_steps(self, stage: str) -> int:
        """About how many steps a stage yields, for a progress bar."""
        return self.settings.steps if stage == "generator" else 1

    def fit_stage(self, stage: str, data: PrivateData) -> Iterator[int]:
        """Fit one stage; yields the steps done."""
        if stage == "embedding":
            charged = embedding.mechanism(whole(self.spec), stage, self.settings.count_scale)
            counted = self.settings.count_scale
            self.embedding = embedding.mean_embedding(data, self.features, charged, counted, self._noise(stage))
            yield 1
        else:
            with torch.random.fork_rng(devices=[]):  # initial weights
                torch.manual_seed(1000 * self.seed + 900)
                self._build()
            yield from self._match(self._random(stage))

    def _build(self) -> Generator:
        settings, inputs = self.settings, self.settings.code + self.num_classes
        self.network = Generator(self.shape, inputs, settings.width, settings.channels).to(self.device)
        return self.network

    def _match(self, random: torch.Generator) -> Iterator[int]:
        """Adam on the squared distance of mean embeddings (MMD²), from as many generated images of every class."""
        settings, network, classes = self.settings, self.network, self.num_classes
        assert network is not None
        assert self.embedding is not None, "fit the embedding first"
        target, each = self.embedding.to(self.device), max(2, settings.generated // classes)
        hot = torch.eye(classes, device=self.device).repeat(each, 1)
        adam = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
        slower = torch.optim.lr_scheduler.CosineAnnealingLR(adam, settings.steps)
        network.train()
        for step in range(1, settings.steps + 1):
            code = torch.randn(len(hot), settings.code, generator=random).to(self.device)
            embedded = self.features(network(code, hot)).view(each, classes, -1)
            loss = embedding.distance(embedded, target)
            adam.zero_grad()
            loss.backward()
            adam.step()
            slower.step()
            yield step
        network.eval()

    @torch.no_grad()
    def _drawn(self, labels: Tensor, seed: int, sampling: SamplingSettings | None) -> Iterator[Tensor]:
        assert self.network is not None, "fit or restore first"
        random = torch.Generator().manual_seed(seed)
        for part in labels.split(BATCH):
            code = torch.randn(len(part), self.settings.code, generator=random).to(self.device)
            yield self.network(code, one_hot(part, self.num_classes).to(self.device)).cpu()

    def state(self, stage: str) -> dict[str, Tensor]:
        """A finished stage's tensors."""
        if stage == "embedding":
            assert self.embedding is not None, "fit first"
            return {"embedding": self.embedding}
        assert self.network is not None, "fit first"
        return training.parameters_of(self.network)

    def restore(self, stage: str, state: dict[str, Tensor]) -> None:
        """Put a finished stage's tensors back, in the order of ``stages``."""
        if stage == "embedding":
            self.embedding = state["embedding"]
        else:
            network = self._build()
            network.load_state_dict(state)
            network.eval()


# --- real images ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RealImagesSettings:
    """There is nothing to set."""


def real_images_settings(profile: str, dataset: str, epsilon: float | None) -> RealImagesSettings:
    """The same in every profile."""
    return RealImagesSettings()


class RealImages(Baseline):
    """The yardstick: "samples" are the training images themselves. No privacy, and no use but to compare scores.

    Raises:
        PrivacyError: a budget is given.
    """

    stages = ("copy",)

    def __init__(
        self,
        shape: Shape,
        num_classes: int,
        settings: RealImagesSettings,
        spec: PrivacySpec | None,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        if spec is not None:
            raise PrivacyError("real images can't be private: expected no budget, got one; leave out ε and noise")
        super().__init__(shape, num_classes, spec, seed, device)
        self.settings = settings
        self.images = torch.zeros(0, *shape, dtype=torch.uint8)
        self.labels = torch.zeros(0, dtype=torch.int64)

    def fit_stage(self, stage: str, data: PrivateData) -> Iterator[int]:
        """Keep the images, in 8 bits; read without noise, so the ledger's ε is infinite."""
        images, labels = data.read(whole(None).mechanism("real images", stage, sensitivity=1.0))
        missing = set(range(self.num_classes)) - set(labels.unique().tolist())
        if missing:
            raise ValueError(f"expected images of every class, got none of class {min(missing)}: add some")
        self.images, self.labels = (images * 255).round().to(torch.uint8), labels
        yield 1

    def sample(self, labels: Tensor, seed: int, sampling: SamplingSettings | None = None) -> Iterator[Tensor]:
        """Real images for ``labels`` (N,), in batches (B, C, H, W) in [0, 1]: each of a class once, in random order,
        before any is repeated."""
        random = torch.Generator().manual_seed(seed)
        chosen = torch.empty_like(labels)
        for c in labels.unique().tolist():
            own, wanted = (self.labels == c).nonzero()[:, 0], int((labels == c).sum())
            rounds = [own[torch.randperm(len(own), generator=random)] for _ in range(math.ceil(wanted / len(own)))]
            chosen[labels == c] = torch.cat(rounds)[:wanted]
        for part in chosen.split(BATCH):
            yield self.images[part].float() / 255

    def state(self, stage: str) -> dict[str, Tensor]:
        """A finished stage's tensors: the real images and labels."""
        return {"images": self.images, "labels": self.labels}

    def restore(self, stage: str, state: dict[str, Tensor]) -> None:
        """Put a finished stage's tensors back."""
        self.images, self.labels = state["images"], state["labels"]
