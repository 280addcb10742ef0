"""From labels to images, step by step: latents, decoded, drawn again, moved, pushed, finished. All of it is free."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dpldm.method import classifier, diffusion
from dpldm.method.denoiser import denoise
from dpldm.method.finishing import finish
from dpldm.method.settings import SamplingSettings

if TYPE_CHECKING:
    from dpldm.method.synthesizer import LatentDiffusion


FEATURES_SEED = 900_000_000  # of the images that scale features; no run samples with it
FINISHING_SEED = 2**62  # added to that of the latents
MATCHING_SEED = 2**61  # added to that of the latents that stage 1 decodes

Decode = Callable[[Tensor, Tensor], Tensor]  # latents (B, dim) and labels (B,) → images
Step = Callable[[Tensor, int, SamplingSettings | None, Decode], Tensor]  # labels (B,), seed, … → images


class Drawing:
    """Draws images from a fitted `LatentDiffusion`: post-processing, so it costs no privacy.

    Steps take labels (B,), a seed, sampling settings (None: the model's own) and a decoder, and give images
    (B, C, H, W) in [0, 1]; each does what the one before it does, and one thing more: `decoded`, `selected`, `moved`.
    """

    def __init__(self, model: "LatentDiffusion") -> None:
        self.model = model

    # -- latents ------------------------------------------------------------------------------------------------------

    def latents(self, labels: Tensor, seed: int, sampling: SamplingSettings | None = None) -> Iterator[Tensor]:
        """The latents (B, dim) of one batch after every sampling step."""
        start, random = self.start(len(labels), seed)
        yield from self.walk(labels, start, random, sampling)

    def start(self, count: int, seed: int) -> tuple[Tensor, torch.Generator]:
        """Where sampling starts, standard normal (count, dim), and the generator of what is drawn after that; on the
        CPU, so that a seed draws the same images on every device."""
        random = torch.Generator().manual_seed(seed)
        start = torch.randn(count, self.model.compressor.dim, generator=random)
        return start.to(self.model.device), random

    @torch.no_grad()
    def walk(
        self, labels: Tensor, start: Tensor, random: torch.Generator, sampling: SamplingSettings | None
    ) -> Iterator[Tensor]:
        """The latents (B, dim) after every sampling step from ``start`` (B, dim) on."""
        model = self.model
        assert model.mixture is not None
        assert model.network is not None, "fit or restore first"
        sampling = sampling or model.settings.sampling
        base, network, labels = (
            model.mixture.to(model.device),
            model.network.to(model.device),
            labels.to(model.device),
        )
        sigmas = model.settings.levels.schedule(sampling.steps).to(model.device)

        def denoiser(classes: Tensor) -> diffusion.Denoise:
            return lambda noisy, sigma: denoise(base, network, noisy, sigma.expand(len(noisy), 1), classes)

        any_class = torch.full_like(labels, model.num_classes)
        guided = diffusion.guided(denoiser(labels), denoiser(any_class), sampling.guidance)
        yield from diffusion.SAMPLERS[sampling.sampler](guided, start, sigmas, random)

    # -- images -------------------------------------------------------------------------------------------------------

    def stage_1(self, latents: Tensor, labels: Tensor) -> Tensor:
        """Latents (B, dim) as stage 1 decodes and finishes them; a `Decode`."""
        return self.finished(self.model.compressor.decode(latents))

    def finished(self, images: Tensor) -> Tensor:
        """What is done to every image of stage 1, from what is publicly known about its kind."""
        return finish(images, self.model.settings.finish, torch.Generator())

    def as_drawn(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) after stage 1 and back, each by itself: what the model could make of them."""
        return self.finished(self.model.compressor.decode(self.model.compressor.encode(images)))

    def decoded(self, labels: Tensor, seed: int, sampling: SamplingSettings | None, decode: Decode) -> Tensor:
        """Latents, decoded."""
        *_, latents = self.latents(labels, seed, sampling)
        return decode(latents.cpu(), labels)

    @torch.no_grad()
    def selected(self, labels: Tensor, seed: int, sampling: SamplingSettings | None, decode: Decode) -> Tensor:
        """Decoded images, drawn again where the private classifier does not see their labels in them."""
        if not self.model.settings.selects:
            return self.decoded(labels, seed, sampling, decode)
        candidates = self.model.settings.selection.candidates
        starts, random = self.start(candidates * len(labels), seed)

        def draw(rows: Tensor, turn: int) -> Tensor:
            *_, latents = self.walk(labels[rows], starts[turn * len(labels) + rows], random, sampling)
            return decode(latents.cpu(), labels[rows])

        return classifier.drawn_again(draw, self.model.selector.logits, labels, candidates)

    def moved(self, labels: Tensor, seed: int, sampling: SamplingSettings | None, decode: Decode) -> Tensor:
        """Selected images with their edges moved."""
        images = self.selected(labels, seed, sampling, decode)
        return self.model.transport.move(images, labels) if self.model.settings.moves else images

    def released(self, labels: Tensor, seed: int, sampling: SamplingSettings | None = None) -> Iterator[Tensor]:
        """Images as they are released, for ``labels`` (N,), in batches (B, C, H, W)."""
        settings = self.model.settings
        for index, part in self.batches(labels, seed, sampling):
            chance = self.chance(index)
            images = self.by_both(part, index, sampling, self.moved, self.selected, chance)
            if settings.pushes:
                images = self.model.selector.pushed(images, part)
            yield finish(images, settings.last, chance)

    def by_both(
        self,
        labels: Tensor,
        seed: int,
        sampling: SamplingSettings | None,
        of_stage_1: Step,
        of_matched: Step,
        chance: torch.Generator,
    ) -> Tensor:
        """Images for ``labels``, of which matched decoders draw their share, chosen by ``chance``, and stage 1 the
        others; each kind by a step of its own."""
        settings = self.model.settings
        matched = torch.zeros(len(labels), dtype=torch.bool)
        if settings.matches:
            matched = torch.rand(len(labels), generator=chance) < settings.matching.image_share
        images = torch.empty(len(labels), *self.model.shape)
        if not matched.all():
            images[~matched] = of_stage_1(labels[~matched], seed, sampling, self.stage_1)
        if matched.any():

            def decode(latents: Tensor, classes: Tensor) -> Tensor:
                return self.model.matcher.decode(latents, classes, chance)

            images[matched] = of_matched(labels[matched], MATCHING_SEED + seed, sampling, decode)
        return images

    def batches(
        self, labels: Tensor, seed: int, sampling: SamplingSettings | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """The labels in batches, each with a seed of its own."""
        size = (sampling or self.model.settings.sampling).batch
        for index, part in enumerate(labels.split(size)):
            yield 10_000 * seed + index, part

    @staticmethod
    def chance(seed: int) -> torch.Generator:
        """Of what is random after the latents."""
        return torch.Generator().manual_seed(FINISHING_SEED + seed)

    # -- images of our own, from which later stages learn --------------------------------------------------------------

    def own_latents(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Synthetic latents (count, dim), what stage 1 makes of them, and their labels."""
        labels = torch.arange(count) % self.model.num_classes
        walks = [list(self.latents(part, index))[-1] for index, part in self.batches(labels, FEATURES_SEED)]
        latents = torch.cat(walks).cpu()
        return latents, self.finished(self.model.compressor.decode(latents)), labels

    def own_candidates(self, count: int) -> Tensor:
        """Synthetic images (count, C, H, W) as they are before selection."""
        labels = torch.arange(count) % self.model.num_classes
        drawn = [
            self.by_both(part, index, None, self.decoded, self.decoded, self.chance(index))
            for index, part in self.batches(labels, FEATURES_SEED)
        ]
        return torch.cat(drawn)

    def own_images(self, count: int) -> tuple[Tensor, Tensor]:
        """Synthetic images (count, C, H, W) as they are before they are moved, and their labels."""
        labels = torch.arange(count) % self.model.num_classes
        batches = self.batches(labels, FEATURES_SEED)
        drawn = [self.selected(part, index, None, self.stage_1) for index, part in batches]
        return torch.cat(drawn), labels
