"""GS-WGAN: a generator that follows the noisy gradients of many discriminators (Chen, Orekondy and Fritz, 2020)."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dpldm.method.finishing import Finishable
from dpldm.method.labels import one_hot
from dpldm.privacy.mechanisms import Mechanism, PrivacySpec
from dpldm.privacy.noise import NoiseSource, clip_rows, release
from dpldm.rivals.sanitised import (
    STAGE,
    GeneratorSettings,
    GeneratorTrainer,
    ImageGradientMethod,
    Shape,
    fused,
    require_positive,
)


@dataclass(frozen=True)
class GANSettings(Finishable):
    """GS-WGAN. parts: D, of the private images, each with a discriminator of its own. width: of a discriminator's two
    hidden layers. warm_up_updates: of every discriminator, before the generator's first step. updates: of the one whose
    turn it is, before each further step. batch: private images in an update. penalty: on slopes other than 1.
    clip_norm: C, of the gradient at one generated image.
    """

    generator: GeneratorSettings = field(default_factory=lambda: GeneratorSettings(steps=20_000))
    parts: int = 100
    width: int = 64
    warm_up_updates: int = 100
    updates: int = 3
    batch: int = 32
    learning_rate: float = 5e-4
    penalty: float = 10.0
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        require_positive(self, "width", "updates", "batch", "learning_rate", "penalty", "clip_norm")
        if self.parts < 2 or self.warm_up_updates < 0:
            raise ValueError(
                f"expected parts >= 2 and warm_up_updates >= 0, got {self.parts} and {self.warm_up_updates}: change it"
            )


class Discriminator:
    """The secret half of the GAN: a network that rates images of a part of the private ones above generated ones.

    It has an output for each class, of which the label chooses one; a label that is only a further input is ignored for
    long, and the generator then draws one shape for all classes.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, num_classes: int, settings: GANSettings, random: torch.Generator
    ) -> None:
        self.images, self.labels, self.num_classes, self.settings = images, labels, num_classes, settings
        width, pixels = settings.width, images.shape[1:].numel()
        layers = nn.Linear(pixels, width), nn.LeakyReLU(0.2), nn.Linear(width, width), nn.LeakyReLU(0.2)
        self.network = nn.Sequential(nn.Flatten(), *layers, nn.Linear(width, num_classes)).to(images.device)
        self.adam = torch.optim.Adam(
            self.network.parameters(), lr=settings.learning_rate, betas=(0.5, 0.9), fused=fused(self.network)
        )
        self.random = random

    def rate(self, images: Tensor, labels: Tensor) -> Tensor:
        """Ratings (B,) of images (B, C, H, W) with labels (B,)."""
        return (self.network(images) * one_hot(labels, self.num_classes)).sum(1)

    def batch(self) -> tuple[Tensor, Tensor]:
        """Private images and labels of this part, drawn with replacement."""
        chosen = torch.randint(len(self.images), (self.settings.batch,), generator=self.random).to(self.images.device)
        return self.images[chosen], self.labels[chosen]

    def update(self, real: Tensor, fake: Tensor, labels: Tensor) -> None:
        """One step of Adam on WGAN-GP's loss (Gulrajani et al. 2017)."""
        mix = torch.rand(len(real), 1, 1, 1, generator=self.random).to(real.device)
        between = real.lerp(fake, mix).requires_grad_()
        (slopes,) = torch.autograd.grad(self.rate(between, labels).sum(), between, create_graph=True)
        penalty = (slopes.flatten(1).norm(dim=1) - 1).square().mean()
        gap = self.rate(fake, labels).mean() - self.rate(real, labels).mean()
        self.adam.zero_grad()
        (gap + self.settings.penalty * penalty).backward()
        self.adam.step()

    def gradient(self, generated: Tensor, labels: Tensor) -> Tensor:
        """How the rating of each generated image falls: (B, C, H, W), each image's gradient clipped to C."""
        images = generated.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(-self.rate(images, labels).sum(), images)
        return clip_rows(gradient, self.settings.clip_norm)


class GradientSanitizedGAN(ImageGradientMethod):
    """GS-WGAN (Chen, Orekondy, Fritz 2020): discriminators that stay secret, and a generator that sees through noise.

    Every private image joins one of D parts at random, for good, and each part trains its own WGAN-GP discriminator:
    all before the generator's first step, then one before each step, in turn. Each step picks a discriminator at random
    and in secret, takes the gradient of its rating at B generated images, clips each image's to C, adds noise, and
    hands it to the generator. Discriminators, parts and picks are never released.

    Guarantee (add or remove one image): a step costs no more than two Poisson-subsampled Gaussian mechanisms of rate
    1/D and sensitivity 2C√B, and is charged as both. Given the parts and the earlier releases, the image's own
    discriminator would give g with it and g' without it (any two trainings on it differ), and the others give something
    the image has no part in: the release is drawn from (1 - 1/D) A + N(g, s²)/D or (1 - 1/D) A + N(g', s²)/D, where A
    is a mixture of N(h, s²) and all of g, g', h lie in a ball of radius C√B. To replace g by g' is to remove a
    discriminator and to add another; by joint convexity (Balle, Barthe, Gaboardi 2018, theorem 2) the pair is dominated
    for budgets above 0 by "one removed" and for those below by "one added" of a subsampled Gaussian, so both together
    dominate it (Zhu, Dong, Wang 2022, for composition). The ledger sees this as twice as many steps. It counts the
    worse direction for each, and a test compares that with one removal and one addition a step.

    That needs the pick of a step to be independent of everything released later. So which discriminator is trained
    follows a public order, not the pick: else the discriminators' states would tell later which of them were picked.

    Where this differs from the published code (DingfanChen/GS-WGAN): there the discriminator that is picked is the one
    that is trained; the step is charged as B mechanisms, each subsampled on its own, while all B rows share one pick,
    which saves far less. Its discriminators are convolutional.
    """

    settings: GANSettings
    method = "gs-wgan"

    def __init__(
        self,
        shape: Shape,
        num_classes: int,
        settings: GANSettings,
        spec: PrivacySpec | None,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(shape, num_classes, settings.generator, spec, seed, device)
        self.settings = settings

    def check(self, n: int) -> None:
        """Refuse what can't work with ``n`` private images, before anything is read."""
        super().check(n)
        if n < self.settings.parts:
            expected = f"at least one image for each of {self.settings.parts} parts"
            raise ValueError(f"expected {expected}, got {n}: lower the number of parts")

    def template(self, n: int) -> Mechanism:
        """The whole fit as a mechanism, all but its noise multiplier: two steps for each step of the generator."""
        settings, generator = self.settings, self.generator_settings
        sensitivity = 2 * settings.clip_norm * generator.images**0.5
        rate, steps = 1 / settings.parts, 2 * generator.steps
        return Mechanism("discriminator gradients, two charges a step", STAGE, 1.0, rate, steps, sensitivity)

    def fit_gradients(
        self, images: Tensor, labels: Tensor, mechanism: Mechanism, noise: NoiseSource, random: torch.Generator
    ) -> Iterator[int]:
        """Train the generator on private images with ``mechanism``, already charged; yields the steps done."""
        assert self.network is not None
        settings, steps = self.settings, mechanism.steps // 2
        trainer = GeneratorTrainer(self.network, self.generator_settings, steps)
        discriminators = self._discriminators(images, labels, random)
        for discriminator in discriminators:
            self._train(discriminator, settings.warm_up_updates, random)
        for step in range(1, steps + 1):
            self._train(discriminators[(step - 1) % settings.parts], settings.updates, random)
            picked = discriminators[pick(settings.parts, noise)]
            classes = self.some_labels(self.generator_settings.images, random)
            generated = self.draw(classes, random)
            gradient = picked.gradient(generated, classes)
            trainer.step(generated, release(gradient, mechanism, noise))
            yield step
        trainer.average.apply()

    def _discriminators(self, images: Tensor, labels: Tensor, random: torch.Generator) -> list[Discriminator]:
        # each image's part is drawn by itself, so that one image less leaves the others where they are
        part = torch.randint(self.settings.parts, (len(images),), generator=random).to(images.device)
        seeds = torch.randint(2**62, (self.settings.parts,), generator=random).tolist()
        return [
            Discriminator(
                images[part == number],
                labels[part == number],
                self.num_classes,
                self.settings,
                torch.Generator().manual_seed(seed),
            )
            for number, seed in enumerate(seeds)
        ]

    def _train(self, discriminator: Discriminator, updates: int, random: torch.Generator) -> None:
        if not len(discriminator.images):
            return
        for _ in range(updates):
            real, classes = discriminator.batch()
            with torch.no_grad():
                fake = self.draw(classes, discriminator.random)
            discriminator.update(real, fake, classes)


def pick(count: int, noise: NoiseSource) -> int:
    """A secret number from 0 to ``count`` - 1, all equally likely: the place of the largest of ``count`` draws."""
    return int(noise.normal((count,), dtype=torch.float64).argmax())
