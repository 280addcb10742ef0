"""DP-MERF: a generator that matches one noisy mean embedding of every class (Harder, Adamczewski and Park, 2021)."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dpldm.method import embedding, training
from dpldm.method.compressor import Shape
from dpldm.method.decoders import Generator
from dpldm.method.embedding import RandomFeatures
from dpldm.method.finishing import Finishable
from dpldm.method.labels import one_hot
from dpldm.method.settings import SamplingSettings
from dpldm.privacy.guard import PrivateData
from dpldm.privacy.mechanisms import PrivacySpec
from dpldm.rivals.base import BATCH, Rival, whole


@dataclass(frozen=True)
class MeanEmbeddingSettings(Finishable):
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


class MeanEmbedding(Rival):
    """DP-MERF (Harder, Adamczewski and Park 2021): a noisy mean embedding per class, then a generator that matches it.

    Private part, one release ("mean embedding"): :func:`dpldm.method.embedding.mean_embedding` of pixels. The generator
    sees only that.
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
