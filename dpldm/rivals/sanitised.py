"""Generators trained through sanitised image gradients: what DP-Sinkhorn and GS-WGAN share.

In both, private images meet the generator in one place: the gradient of a loss with respect to a batch of *generated*
images. That gradient is clipped and noised, as one vector of all images and pixels; what the generator makes of it
(back-propagation, Adam, averaging, sampling) is post-processing and costs nothing.

How far one private image can move that gradient is the whole question. It acts on every generated image at once: a
transport plan changes everywhere, and a discriminator has been trained on it. So nothing smaller than the worst case
holds, in which the two gradients are opposite points of the ball that clipping leaves. In a ball of radius R for the
whole batch the sensitivity is 2R, whichever rows the length is in: R = C where the batch is clipped as one vector
(DP-Sinkhorn), R = C·√B where each of B rows is clipped to C (GS-WGAN).
"""

import secrets
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dpldm.method import training
from dpldm.method.labels import one_hot
from dpldm.method.settings import SamplingSettings
from dpldm.privacy.guard import PrivateData
from dpldm.privacy.mechanisms import Mechanism, PrivacySpec
from dpldm.privacy.noise import NoiseSource
from dpldm.rivals.base import NetworkBaseline

STAGE = "generator"
Shape = tuple[int, int, int]


def require_positive(settings: object, *names: str) -> None:
    """ValueError unless each of these settings is above 0."""
    for name in names:
        if not getattr(settings, name) > 0:
            raise ValueError(f"expected {name} > 0, got {getattr(settings, name)}: give a positive number")


@dataclass(frozen=True)
class GeneratorSettings:
    """The generator and how it is trained; public, since it sees sanitised gradients only.

    latent: numbers drawn for an image. label_scale: the length of a label among them; a long one makes classes
    differ early, while noise still drowns the differences within a class. width: of its two hidden layers.
    steps: releases of a gradient. images: generated for each of them. learning_rate: of Adam, falling to 0 in a line.
    ema_decay: of the average of the weights that is kept. sampling_batch: images drawn at a time.
    """

    latent: int = 8
    label_scale: float = 5.0
    width: int = 256
    steps: int = 40_000
    images: int = 30
    learning_rate: float = 1e-3
    ema_decay: float = 0.999
    sampling_batch: int = 2_000

    def __post_init__(self) -> None:
        names = ("latent", "label_scale", "width", "steps", "images", "learning_rate", "sampling_batch")
        require_positive(self, *names)
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"expected 0 <= ema_decay < 1, got {self.ema_decay}: use for example 0.999")


class ConditionalGenerator(nn.Module):
    """(B, latent) normal numbers and (B, classes) one-hot labels → images (B, C, H, W) in [0, 1].

    Dense layers give the image at half its side, which is then doubled by interpolation: what lies between neighbouring
    pixels is not learned, so that much of the gradients' noise averages out. Small enough for a CPU; the papers use
    convolutions.
    """

    def __init__(self, shape: Shape, num_classes: int, settings: GeneratorSettings) -> None:
        super().__init__()
        colours, height, width = shape
        self.small, self.label_scale = (colours, height // 2, width // 2), settings.label_scale
        self.dense = nn.Sequential(
            nn.Linear(settings.latent + num_classes, settings.width),
            nn.ReLU(),
            nn.Linear(settings.width, settings.width),
            nn.ReLU(),
            nn.Linear(settings.width, colours * (height // 2) * (width // 2)),
        )
        self.enlarge = nn.Upsample(scale_factor=2, mode="bilinear")

    def forward(self, latents: Tensor, hot: Tensor) -> Tensor:
        small = self.dense(torch.cat([latents, self.label_scale * hot], dim=1)).unflatten(1, self.small)
        return self.enlarge(small).sigmoid()


class ImageGradientMethod(NetworkBaseline):
    """A conditional generator that learns from sanitised gradients; the two methods say how the gradients come about.

    Args:
        shape: (C, H, W) of the images, even sides. num_classes: public. spec: the budget; None for
        no noise and no privacy. seed: of everything random but a secure run's noise. device: where to work.

    Raises:
        ValueError: an odd side.
    """

    method: str
    stages = (STAGE,)

    def __init__(
        self,
        shape: Shape,
        num_classes: int,
        generator: GeneratorSettings,
        spec: PrivacySpec | None,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        if shape[1] % 2 or shape[2] % 2:
            raise ValueError(
                f"{self.method} draws images with even sides, got {shape[1]} x {shape[2]}: pad or crop the images"
            )
        super().__init__(shape, num_classes, spec, seed, device)
        self.generator_settings = generator
        self.network: ConditionalGenerator | None = None

    @abstractmethod
    def fit_gradients(
        self, images: Tensor, labels: Tensor, mechanism: Mechanism, noise: NoiseSource, random: torch.Generator
    ) -> Iterator[int]:
        """Train `network` on private images with ``mechanism``, already charged; yields the steps done."""

    def total_steps(self, stage: str) -> int:
        """How many steps a stage yields, for a progress bar."""
        return self.generator_settings.steps

    def fit_stage(self, stage: str, data: PrivateData) -> Iterator[int]:
        """Fit the generator; yields the steps done, 1 to ``steps``."""
        mechanism = self.mechanism(len(data))
        images, labels = data.read(mechanism)
        noise, random = self._noise(stage), self._random(stage)
        if noise.is_secure:
            random.manual_seed(secrets.randbits(63))
        with torch.random.fork_rng(devices=[]):  # the initial weights
            torch.manual_seed(int(torch.randint(2**62, (), generator=random)))
            network = self._build_network()
            yield from self.fit_gradients(images.to(self.device), labels.to(self.device), mechanism, noise, random)
        network.cpu().eval()

    def _build_network(self) -> ConditionalGenerator:
        self.network = ConditionalGenerator(self.shape, self.num_classes, self.generator_settings).to(self.device)
        return self.network

    def draw(self, labels: Tensor, random: torch.Generator) -> Tensor:
        """Generated images for ``labels`` (B,): (B, C, H, W), with their graph."""
        assert self.network is not None, "fit or restore first"
        latents = torch.randn(len(labels), self.generator_settings.latent, generator=random).to(self.device)
        return self.network(latents, one_hot(labels.to(self.device), self.num_classes))

    def some_labels(self, count: int, random: torch.Generator) -> Tensor:
        """Public labels (count,): every class equally often, up to one, those one too many at random."""
        order = torch.randperm(self.num_classes, generator=random)
        return order[torch.arange(count) % self.num_classes].to(self.device)

    @torch.no_grad()
    def _drawn(self, labels: Tensor, seed: int, sampling: SamplingSettings | None) -> Iterator[Tensor]:
        if self.network is not None:
            self.network.to(self.device)
        batch = sampling.batch if sampling else self.generator_settings.sampling_batch
        for index, part in enumerate(labels.split(batch)):
            yield self.draw(part, torch.Generator().manual_seed(10_000 * seed + index)).cpu().clamp(0, 1)


def fused(network: nn.Module) -> bool:
    """Whether Adam has one kernel for all parameters there: three times as fast for small networks."""
    return next(network.parameters()).device.type in ("cpu", "cuda")


class GeneratorTrainer:
    """Adam with a rate that falls to 0 in a line, and the average of the weights; all of it post-processing."""

    def __init__(self, network: nn.Module, settings: GeneratorSettings, steps: int) -> None:
        self.adam = torch.optim.Adam(
            network.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99), fused=fused(network)
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.adam, lambda step: max(1e-3, 1 - step / steps))
        self.average = training.Average(network, settings.ema_decay)

    def step(self, generated: Tensor, gradient: Tensor) -> None:
        """Follow a released gradient with respect to the generated images (both (B, C, H, W))."""
        self.adam.zero_grad()
        generated.backward(gradient)
        self.adam.step()
        self.schedule.step()
        self.average.update()
