"""Decoders that match a mean embedding: small convolutional networks from latents to images, fitted to one release.

A linear decoder of noisy components draws the noise in them. A small convolutional network can hardly draw noise, only
shapes; which shapes, it learns from the noisy mean features of every class, as the generator of DP-MERF does (Harder,
Adamczewski and Park 2021). Two things are new: the features are of pixels and of oriented edges, and several decoders
match the embedding together, as a mixture, which costs nothing and draws more kinds of images than one of them would.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dpldm.method import embedding, training
from dpldm.method.compressor import Shape
from dpldm.method.embedding import RandomFeatures
from dpldm.method.labels import one_hot
from dpldm.privacy.budget import Allowance
from dpldm.privacy.guard import PrivateData
from dpldm.privacy.mechanisms import Mechanism
from dpldm.privacy.noise import NoiseSource

STAGE = "matching"
BATCH = 1_000  # images decoded at a time
START_RATE = 3e-3  # of Adam, while decoders learn to draw what stage 1 draws
START_BATCH = 100


@dataclass(frozen=True)
class MatchingSettings:
    """How decoders are matched to the private images.

    steps: of Adam on the distance of mean embeddings; 0 switches all of this off and costs nothing.
    share: of the budget's 1/σ², for the mean embedding.
    image_share: share of the images, in (0, 1], that these decoders draw; stage 1 draws the others.
    decoders: how many; each draws an equal part of those.
    features: random Fourier features of pixels, and as many of edges; an even number. length_scale, edge_scale: of
        their kernels (:class:`dpldm.method.embedding.RandomFeatures`). count_scale: weight of the class counts in the
        release.
    width, channels: of each decoder's hidden layer and first feature maps.
    images: latents of our own that the decoders learn from. generated: images of them made in each step.
    start: steps in which the decoders first learn to draw what stage 1 draws.
    """

    steps: int = 0
    share: float = 0.4
    image_share: float = 1.0
    decoders: int = 4
    features: int = 4_000
    length_scale: float = 0.4
    edge_scale: float = 0.4
    count_scale: float = 0.1
    width: int = 200
    channels: int = 16
    images: int = 20_000
    generated: int = 240
    start: int = 200
    learning_rate: float = 1e-2

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            least_one = name not in ("steps", "start")
            if value < 0 or (least_one and value == 0):
                raise ValueError(f"expected {name} {'>' if least_one else '>='} 0, got {value}: raise it")
        if self.share >= 1 or self.image_share > 1 or self.features % 2:
            raise ValueError(
                "expected a share below 1, an image_share of at most 1 and an even number of features, got "
                f"{self.share}, {self.image_share} and {self.features}: use for example 0.4, 1 and 4,000"
            )


class Generator(nn.Module):
    """Noise and class → image: two dense layers to a quarter of the size, then two convolutions, each after doubling.

    The small convolutional generator of DP-MERF, for images of any shape (C, H, W); ``inputs``: length of code and
    one-hot class together.
    """

    def __init__(self, shape: Shape, inputs: int, width: int, channels: int) -> None:
        super().__init__()
        self.shape, self.small = shape, (channels, *(math.ceil(side / 4) for side in shape[1:]))
        self.dense = nn.Sequential(
            nn.Linear(inputs, width),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Linear(width, math.prod(self.small)),
        )
        self.convolutions = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear"),
            nn.Conv2d(channels, channels // 2, 5, padding=2),
            nn.ReLU(),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            nn.Conv2d(channels // 2, shape[0], 5, padding=2),
            nn.Sigmoid(),
        )

    def forward(self, code: Tensor, hot: Tensor) -> Tensor:
        """Codes (B, code) and one-hot classes (B, num_classes) → images (B, C, H, W) in [0, 1]."""
        small = self.dense(torch.cat([code, hot], dim=1)).view(-1, *self.small)
        return self.convolutions(small)[..., : self.shape[1], : self.shape[2]]


class Decoders(nn.Module):
    """Several generators whose codes are latents, scaled by the mean and deviation of our own."""

    mean: Tensor
    scale: Tensor

    def __init__(self, shape: Shape, dim: int, num_classes: int, settings: MatchingSettings) -> None:
        super().__init__()
        one = (Generator(shape, dim + num_classes, settings.width, settings.channels) for _ in range(settings.decoders))
        self.each, self.shape, self.num_classes = nn.ModuleList(one), shape, num_classes
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def forward(self, latents: Tensor, labels: Tensor, which: Tensor) -> Tensor:
        """Latents (B, dim), labels (B,) and the decoder for each (B,) → images (B, C, H, W) in [0, 1]."""
        images = latents.new_empty(len(latents), *self.shape)
        codes, hot = (latents - self.mean) / self.scale, one_hot(labels, self.num_classes)
        for index, decoder in enumerate(self.each):
            rows = (which == index).nonzero()[:, 0]
            if len(rows):
                images = images.index_copy(0, rows, decoder(codes[rows], hot[rows]))
        return images


class Matcher:
    """The decoders and how they are fitted. The mean embedding is charged as "mean embedding"; all else follows from it
    and from our own latents."""

    def __init__(
        self, shape: Shape, num_classes: int, settings: MatchingSettings, seed: int, device: torch.device
    ) -> None:
        self.shape, self.num_classes, self.settings, self.seed, self.device = shape, num_classes, settings, seed, device
        self.decoders: Decoders | None = None

    def mechanism(self, allowance: Allowance) -> Mechanism:
        """What `fit` will charge."""
        return embedding.mechanism(allowance, STAGE, self.settings.count_scale)

    def fit(
        self,
        data: PrivateData,
        synthetic: Callable[[], tuple[Tensor, Tensor, Tensor]],
        allowance: Allowance,
        noise: NoiseSource,
        random: torch.Generator,
    ) -> Iterator[int]:
        """Yields the steps done.

        Args:
            synthetic: draws latents (M, dim), what stage 1 makes of them (M, C, H, W) and their labels (M,), every
                class in turn.
        """
        settings = self.settings
        public = torch.Generator().manual_seed(self.seed)
        scales = (settings.length_scale, public, settings.edge_scale)
        features = RandomFeatures(self.shape, settings.features, *scales).to(self.device)
        charged = self.mechanism(allowance)
        target = embedding.mean_embedding(data, features, charged, settings.count_scale, noise).to(self.device)
        yield 1

        latents, images, labels = (own.to(self.device) for own in synthetic())
        decoders = self._build(latents.shape[1])
        decoders.mean.copy_(latents.mean(0))
        decoders.scale.copy_(latents.std(0).clamp_min(1e-6))
        decoders.train()
        count = settings.decoders
        for step in self._descend(decoders, START_RATE, settings.start):
            chosen = torch.randint(len(latents), (START_BATCH * count,), generator=random).to(self.device)
            drawn = decoders(latents[chosen], labels[chosen], torch.arange(len(chosen), device=self.device) % count)
            (drawn - images[chosen]).square().mean().backward()
            yield 1 + step

        each = max(2, settings.generated // (self.num_classes * count)) * count  # of every class
        classes = torch.arange(self.num_classes)
        which = torch.arange(each, device=self.device).repeat_interleave(self.num_classes) % count
        for step in self._descend(decoders, settings.learning_rate, settings.steps, cosine=True):
            rows = torch.randint(len(latents) // self.num_classes, (each, 1), generator=random)
            chosen = (rows * self.num_classes + classes).flatten().to(self.device)
            drawn = decoders(latents[chosen], labels[chosen], which)
            embedding.distance(features(drawn).view(each, self.num_classes, -1), target).backward()
            yield 1 + settings.start + step
        decoders.eval().cpu()

    @staticmethod
    def _descend(network: nn.Module, rate: float, steps: int, cosine: bool = False) -> Iterator[int]:
        """Adam on the gradients that the caller has summed up by the time it asks for the next step."""
        adam = torch.optim.Adam(network.parameters(), lr=rate)
        slower = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps) if cosine else None
        for step in range(1, steps + 1):
            adam.zero_grad()
            yield step
            adam.step()
            if slower is not None:
                slower.step()

    @torch.no_grad()
    def decode(self, latents: Tensor, labels: Tensor, random: torch.Generator) -> Tensor:
        """Latents (B, dim) and labels (B,) → images (B, C, H, W) in [0, 1], each by a decoder chosen at random."""
        assert self.decoders is not None, "fit or restore first"
        which = torch.randint(self.settings.decoders, (len(latents),), generator=random, device=random.device).cpu()
        parts = zip(latents.split(BATCH), labels.split(BATCH), which.split(BATCH), strict=True)
        return torch.cat([self.decoders(*part) for part in parts])

    def _build(self, dim: int) -> Decoders:
        self.decoders = Decoders(self.shape, dim, self.num_classes, self.settings).to(self.device)
        return self.decoders

    def state(self) -> dict[str, Tensor]:
        assert self.decoders is not None, "fit first"
        return training.parameters_of(self.decoders)

    def restore(self, state: dict[str, Tensor]) -> None:
        with torch.random.fork_rng(devices=[]):
            decoders = self._build(len(state["mean"])).cpu()
        decoders.load_state_dict(state)
        decoders.eval()
