"""The two stages under one budget: fit to private images and labels, then sample synthetic ones."""

import math
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dpldm import compression, diffusion, mixture, selection, training
from dpldm.compression import CompressionSettings
from dpldm.denoiser import ResidualMLP, one_hot
from dpldm.diffusion import NoiseLevels
from dpldm.finishing import FinishSettings, finish
from dpldm.matching import Matcher, MatchingSettings
from dpldm.mixture import Mixture, MixtureSettings
from dpldm.privacy import (
    Allowance,
    Ledger,
    Mechanism,
    NoiseSource,
    PrivacySpec,
    PrivateData,
    calibrate,
    clip_rows,
    gaussian_noise_multiplier,
)
from dpldm.selection import SelectionSettings, Selector
from dpldm.training import FitSettings
from dpldm.transport import Transport, TransportSettings

STAGE = "diffusion"
OWN_SEED = 900_000_000  # of the images that scale features; no run samples with it
FINISHING_SEED = 2**62  # added to that of the latents
MATCHING_SEED = 2**61  # added to that of the latents that stage 1 decodes


@dataclass(frozen=True)
class SamplingSettings:
    """How latents are drawn. ``guidance``: 0 to 100, 1 is none. ``sampler``: a key of `dpldm.diffusion.SAMPLERS`."""

    sampler: str = "deterministic"
    steps: int = 16
    guidance: float = 1.0
    batch: int = 5_000

    def __post_init__(self) -> None:
        if self.sampler not in diffusion.SAMPLERS:
            raise ValueError(
                f"expected a sampler out of {', '.join(diffusion.SAMPLERS)}, got {self.sampler!r}: choose one"
            )
        if not 2 <= self.steps <= 10_000 or self.batch < 1 or not 0 <= self.guidance <= 100:
            raise ValueError(
                f"expected 2 to 10000 steps, batch >= 1 and guidance from 0 to 100, got {self.steps}, {self.batch} and "
                f"{self.guidance}"
            )


Decode = Callable[[Tensor, Tensor], Tensor]  # latents (B, dim) and labels (B,) → images
Draw = Callable[[Tensor, int, SamplingSettings | None, Decode], Tensor]  # labels (B,), seed, … → images


@dataclass(frozen=True)
class SynthesisSettings:
    """Everything that decides a synthesizer beside the data, the budget and the seed.

    The shares are of the budget's 1/σ²: ``compression_share`` for stage 1, ``mixture_share`` for the mixture that the
    diffusion starts from; ``selection`` and ``transport`` have their own; DP-SGD of the diffusion network gets what is
    left.

    ``finish``: what is done to every decoded image, from what is publicly known about its kind; free, and never random.

    ``selection``: with 2 or more candidates for each image released, the first is taken that a private classifier
    sees as what it should be; that classifier may also push images towards their class, after they are moved.

    ``transport``: with 1 or more steps, images are moved until their edges are spread as those of private images.

    ``last``: what is done to images at the very end, like ``finish``.

    ``matching``: with 1 or more steps, all or some of the latents are decoded by small networks that match mean
    features of the private images, and such images are selected and pushed, but not moved.
    """

    compression: CompressionSettings = field(default_factory=CompressionSettings)
    mixture: MixtureSettings = field(default_factory=MixtureSettings)
    levels: NoiseLevels = field(default_factory=NoiseLevels)
    width: int = 192
    depth: int = 1
    draws: int = 2
    label_dropout: float = 0.1
    fit: FitSettings = field(default_factory=FitSettings)
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    compression_share: float = 0.1
    mixture_share: float = 0.3
    selection: SelectionSettings = field(default_factory=SelectionSettings)
    transport: TransportSettings = field(default_factory=TransportSettings)
    finish: FinishSettings = field(default_factory=FinishSettings)
    last: FinishSettings = field(default_factory=FinishSettings)
    matching: MatchingSettings = field(default=MatchingSettings(), metadata={"later": True})

    def __post_init__(self) -> None:
        if not (self.compression_share > 0 and self.mixture_share > 0 and self.diffusion_share > 0):
            raise ValueError(
                "expected positive shares of compression, mixture, selection, transport and matching that leave "
                f"something for DP-SGD, got {self.compression_share}, {self.mixture_share}, {self.selection_share}, "
                f"{self.transport_share} and {self.matching_share}: lower one"
            )
        if self.finish.is_random:
            raise ValueError(f"expected finish without chance, got {self.finish}: bend images, or some, in `last`")

    @property
    def selects(self) -> bool:
        return self.selection.candidates > 1

    @property
    def pushes(self) -> bool:
        return self.selects and self.selection.push > 0

    @property
    def selection_share(self) -> float:
        return self.selection.share if self.selects else 0.0

    @property
    def moves(self) -> bool:
        return self.transport.steps > 0

    @property
    def transport_share(self) -> float:
        return self.transport.share if self.moves else 0.0

    @property
    def matches(self) -> bool:
        return self.matching.steps > 0

    @property
    def stage_1_draws(self) -> bool:
        """Whether stage 1 decodes any image that is released."""
        return not self.matches or self.matching.image_share < 1

    @property
    def matching_share(self) -> float:
        return self.matching.share if self.matches else 0.0

    @property
    def diffusion_share(self) -> float:
        taken = self.compression_share + self.mixture_share + self.selection_share + self.transport_share
        return 1 - taken - self.matching_share


class LatentDiffusion:
    """Two-stage private synthesizer; reading C of the paper: both stages are private and composed.

    ``fit`` charges every mechanism to ``ledger``; afterwards ``ledger.epsilon(spec.delta) <= spec.epsilon``. Without a
    ``spec`` nothing is noised or clipped and the ledger's ε is infinite.
    """

    method = "dpldm"

    def __init__(
        self,
        shape: tuple[int, int, int],
        num_classes: int,
        settings: SynthesisSettings,
        spec: PrivacySpec | None,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.shape, self.num_classes, self.settings, self.spec, self.seed = shape, num_classes, settings, spec, seed
        self.device = torch.device(device)
        self.compressor = compression.build(shape, settings.compression, 1000 * seed + 800)
        self.mixture: Mixture | None = None
        self.network: ResidualMLP | None = None
        self.selector = Selector(num_classes, settings.selection)
        self.transport = Transport(num_classes, settings.transport)
        self.matcher = Matcher(shape, num_classes, settings.matching, 1000 * seed + 700, self.device)

    # -- fitting ------------------------------------------------------------------------------------------------------

    @property
    def stages(self) -> Sequence[str]:
        """The stages of the fit, in order; each is one call of :meth:`fit_stage`."""
        settings = self.settings
        chosen = (("matching", settings.matches), ("selection", settings.selects), ("transport", settings.moves))
        return ("compression", "diffusion", *(stage for stage, wanted in chosen if wanted))

    def total_steps(self, stage: str) -> int:
        """About how many steps a stage yields, for a progress bar."""
        if stage == "diffusion":
            return self.settings.fit.steps + 1
        if stage == "selection":
            return self.settings.selection.steps
        if stage == "transport":
            return 2
        if stage == "matching":
            return 1 + self.settings.matching.start + self.settings.matching.steps
        kind, settings = self.settings.compression.kind, self.settings.compression
        return {"pca": 2, "refined-pca": 2 + settings.refined.fit.steps}.get(kind, settings.autoencoder.fit.steps)

    def check(self, n: int) -> None:
        """Refuse what can't work with ``n`` private images, before anything is read."""
        batch = self.settings.fit.batch
        if n < batch:
            raise ValueError(f"expected at least as many images as the batch of {batch}, got {n}: lower the batch")
        if self.spec is not None:
            self.spec.check(n)
            self._allowance(n)

    def fit(self, data: PrivateData) -> None:
        """All stages, one after the other."""
        self.check(len(data))
        for stage in self.stages:
            for _ in self.fit_stage(stage, data):
                pass

    def fit_stage(self, stage: str, data: PrivateData) -> Iterator[int]:
        """Fit one stage; yields the steps done. Noise and batches depend on the seed and the stage only, so a run that
        resumes after the first stage ends as one that was never interrupted."""
        index = self.stages.index(stage)
        secure = self.spec is not None and self.spec.secure_mode
        noise = NoiseSource.secure() if secure else NoiseSource.seeded(1000 * self.seed + index)
        # Which noise levels an example is trained on depends on who else is in the batch, so they must be secret too.
        random = torch.Generator().manual_seed(secrets.randbits(63) if secure else 1000 * self.seed + 500 + index)
        with torch.random.fork_rng(devices=[]):  # the initial weights: public, but reproducible
            torch.manual_seed(1000 * self.seed + 900 + index)
            if stage == "compression":
                self.selector = Selector(self.num_classes, self.settings.selection)  # nothing stays of an earlier fit
                self.transport = Transport(self.num_classes, self.settings.transport)
                part = self._allowance(len(data)).part(self.settings.compression_share)
                yield from self.compressor.fit(data, part, noise, random)
            elif stage == "diffusion":
                yield from self._fit_diffusion(data, noise, random)
            elif stage == "selection":
                part = self._allowance(len(data)).part(self.settings.selection_share)
                view = self._as_drawn if self.settings.stage_1_draws else None
                yield from self.selector.fit(data, self._own_candidates, view, part, noise)
            elif stage == "transport":
                part = self._allowance(len(data)).part(self.settings.transport_share)
                yield from self.transport.fit(data, self._own_images, part, noise)
            else:
                part = self._allowance(len(data)).part(self.settings.matching_share)
                yield from self.matcher.fit(data, self._own_latents, part, noise, random)

    def _allowance(self, n: int) -> Allowance:
        if self.spec is None:
            return Allowance(0.0, 1e-5)
        if self.spec.epsilon is not None:
            return Allowance(gaussian_noise_multiplier(self.spec.epsilon, self.spec.delta), self.spec.delta)
        mechanism = self._template(n, self.spec.noise_multiplier or 0.0)
        epsilon = Ledger([mechanism]).epsilon(self.spec.delta)
        alone = gaussian_noise_multiplier(epsilon, self.spec.delta)
        return Allowance(alone * math.sqrt(self.settings.diffusion_share), self.spec.delta)

    def _template(self, n: int, noise_multiplier: float) -> Mechanism:
        fit = self.settings.fit
        return Mechanism(
            "denoiser gradients", STAGE, noise_multiplier, min(1.0, fit.batch / n), fit.steps, fit.clip_norm
        )

    def _sgd_mechanism(self, data: PrivateData) -> Mechanism:
        """DP-SGD with the least noise that keeps the whole composition within the target."""
        if self.spec is None:
            return self._template(len(data), 0.0)
        if self.spec.epsilon is None:
            return self._template(len(data), self.spec.noise_multiplier or 0.0)
        charged = [*data.ledger.mechanisms, *self._still_to_come(len(data))]
        return calibrate(charged, self._template(len(data), 1.0), self.spec.epsilon, self.spec.delta)

    def _still_to_come(self, n: int) -> list[Mechanism]:
        """What the stages after the diffusion will cost."""
        settings, whole, coming = self.settings, self._allowance(n), list[Mechanism]()
        if settings.selects:
            coming.append(self.selector.mechanism(whole.part(settings.selection_share)))
        if settings.moves:
            coming += self.transport.mechanisms(whole.part(settings.transport_share))
        if settings.matches:
            coming.append(self.matcher.mechanism(whole.part(settings.matching_share)))
        return coming

    def _fit_diffusion(self, data: PrivateData, noise: NoiseSource, random: torch.Generator) -> Iterator[int]:
        settings, encode = self.settings, self.compressor.encode
        part = self._allowance(len(data)).part(settings.mixture_share)
        self.mixture = mixture.fit_mixture(data, encode, self.compressor.dim, settings.mixture, part, noise)
        yield 1

        mechanism = self._sgd_mechanism(data)
        images, labels = data.read(mechanism)
        radius = settings.mixture.clip_norm * math.sqrt(self.compressor.dim)
        latents = clip_rows(encode(images), radius).to(self.device)
        labels = labels.to(self.device)
        base = self.mixture.to(self.device)
        random = training.generator_on(self.device, random)

        def loss(network: torch.nn.Module, chosen: Tensor) -> Tensor:
            known = torch.rand(len(chosen), generator=random, device=self.device) >= settings.label_dropout
            classes = torch.where(known, labels[chosen], self.num_classes)

            def denoise(noisy: Tensor, sigma: Tensor) -> Tensor:
                return _denoise(base, network, noisy, sigma, classes)

            return diffusion.denoising_loss(denoise, latents[chosen], settings.levels, settings.draws, random)

        network = self._build_network()
        for step in training.fit(network, loss, len(data), mechanism, settings.fit, noise, random):
            yield 1 + step
        network.cpu()

    def _build_network(self) -> ResidualMLP:
        self.network = ResidualMLP(self.compressor.dim, self.num_classes, self.settings.width, self.settings.depth)
        return self.network.to(self.device)

    def _own_latents(self) -> tuple[Tensor, Tensor, Tensor]:
        """Synthetic latents, what stage 1 makes of them, and their labels."""
        labels = torch.arange(self.settings.matching.images) % self.num_classes
        walks = [list(self.sample_latents(part, index))[-1] for index, part in self._batches(labels, OWN_SEED)]
        latents = torch.cat(walks).cpu()
        return latents, self._finished(self.compressor.decode(latents)), labels

    def _own_candidates(self) -> Tensor:
        """Synthetic images as they are before selection."""
        labels = torch.arange(self.settings.selection.images) % self.num_classes
        drawn = [
            self._by_both(part, index, None, self._decoded, self._decoded, self._chance(index))
            for index, part in self._batches(labels, OWN_SEED)
        ]
        return torch.cat(drawn)

    def _own_images(self) -> tuple[Tensor, Tensor]:
        """Synthetic images as they are before they are moved, and their labels."""
        labels = torch.arange(self.transport.images_needed) % self.num_classes
        batches = self._batches(labels, OWN_SEED)
        drawn = [self._selected(part, index, None, self._stage_1) for index, part in batches]
        return torch.cat(drawn), labels

    def _as_drawn(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) after stage 1 and back, each by itself: what this synthesizer could make of them."""
        return self._finished(self.compressor.decode(self.compressor.encode(images)))

    # -- sampling -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(self, labels: Tensor, seed: int, sampling: SamplingSettings | None = None) -> Iterator[Tensor]:
        """Synthetic images for ``labels`` (N,), in batches (B, C, H, W) in [0, 1] in the labels' order.

        Post-processing: costs no privacy, however many images are drawn.
        """
        for index, part in self._batches(labels, seed, sampling):
            chance = self._chance(index)
            images = self._by_both(part, index, sampling, self._moved, self._selected, chance)
            if self.settings.pushes:
                images = self.selector.pushed(images, part)
            yield finish(images, self.settings.last, chance)

    def _by_both(
        self,
        labels: Tensor,
        seed: int,
        sampling: SamplingSettings | None,
        of_stage_1: Draw,
        of_matched: Draw,
        chance: torch.Generator,
    ) -> Tensor:
        """Images for ``labels``, of which matched decoders draw their share, chosen by ``chance``, and stage 1 the
        others."""
        matched = torch.zeros(len(labels), dtype=torch.bool)
        if self.settings.matches:
            matched = torch.rand(len(labels), generator=chance) < self.settings.matching.image_share
        images = torch.empty(len(labels), *self.shape)
        if not matched.all():
            images[~matched] = of_stage_1(labels[~matched], seed, sampling, self._stage_1)
        if matched.any():

            def decode(latents: Tensor, classes: Tensor) -> Tensor:
                return self.matcher.decode(latents, classes, chance)

            images[matched] = of_matched(labels[matched], MATCHING_SEED + seed, sampling, decode)
        return images

    @staticmethod
    def _chance(seed: int) -> torch.Generator:
        """Of what is random after the latents."""
        return torch.Generator().manual_seed(FINISHING_SEED + seed)

    def _stage_1(self, latents: Tensor, labels: Tensor) -> Tensor:
        return self._finished(self.compressor.decode(latents))

    def _moved(self, labels: Tensor, seed: int, sampling: SamplingSettings | None, decode: Decode) -> Tensor:
        """Images as stage 1 draws them, selected, with their edges moved."""
        images = self._selected(labels, seed, sampling, decode)
        return self.transport.move(images, labels) if self.settings.moves else images

    @torch.no_grad()
    def _selected(self, labels: Tensor, seed: int, sampling: SamplingSettings | None, decode: Decode) -> Tensor:
        """Decoded images for a batch of labels, drawn again where the private classifier does not see them."""
        if not self.settings.selects:
            return self._decoded(labels, seed, sampling, decode)
        candidates = self.settings.selection.candidates
        starts, random = self._start(candidates * len(labels), seed)

        def draw(rows: Tensor, turn: int) -> Tensor:
            *_, latents = self._walk(labels[rows], starts[turn * len(labels) + rows], random, sampling)
            return decode(latents.cpu(), labels[rows])

        return selection.drawn_again(draw, self.selector.logits, labels, candidates)

    def _batches(
        self, labels: Tensor, seed: int, sampling: SamplingSettings | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """The labels in batches, each with a seed of its own."""
        size = (sampling or self.settings.sampling).batch
        for index, part in enumerate(labels.split(size)):
            yield 10_000 * seed + index, part

    def _decoded(self, labels: Tensor, seed: int, sampling: SamplingSettings | None, decode: Decode) -> Tensor:
        *_, latents = self.sample_latents(labels, seed, sampling)
        return decode(latents.cpu(), labels)

    def _finished(self, images: Tensor) -> Tensor:
        return finish(images, self.settings.finish, torch.Generator())

    def sample_latents(self, labels: Tensor, seed: int, sampling: SamplingSettings | None = None) -> Iterator[Tensor]:
        """The latents (B, dim) of one batch after every sampling step."""
        start, random = self._start(len(labels), seed)
        yield from self._walk(labels, start, random, sampling)

    def _start(self, count: int, seed: int) -> tuple[Tensor, torch.Generator]:
        """Where sampling starts, standard normal (count, dim), and the generator of what is drawn after that; on the
        CPU, so that a seed draws the same images on every device."""
        random = torch.Generator().manual_seed(seed)
        return torch.randn(count, self.compressor.dim, generator=random).to(self.device), random

    @torch.no_grad()
    def _walk(
        self, labels: Tensor, start: Tensor, random: torch.Generator, sampling: SamplingSettings | None
    ) -> Iterator[Tensor]:
        assert self.mixture is not None
        assert self.network is not None, "fit or restore first"
        sampling = sampling or self.settings.sampling
        base, network, labels = self.mixture.to(self.device), self.network.to(self.device), labels.to(self.device)
        sigmas = self.settings.levels.schedule(sampling.steps).to(self.device)

        def denoiser(classes: Tensor) -> diffusion.Denoise:
            return lambda noisy, sigma: _denoise(base, network, noisy, sigma.expand(len(noisy), 1), classes)

        any_class = torch.full_like(labels, self.num_classes)
        denoise = diffusion.guided(denoiser(labels), denoiser(any_class), sampling.guidance)
        yield from diffusion.SAMPLERS[sampling.sampler](denoise, start, sigmas, random)

    # -- saving -------------------------------------------------------------------------------------------------------

    def state(self, stage: str) -> dict[str, Tensor]:
        """A finished stage's tensors."""
        if stage == "compression":
            return self.compressor.state()
        if stage == "selection":
            return self.selector.state()
        if stage == "transport":
            return self.transport.state()
        if stage == "matching":
            return self.matcher.state()
        assert self.mixture is not None
        assert self.network is not None, "fit first"
        prior = {f"mixture.{name}": value for name, value in self.mixture.tensors().items()}
        return prior | {f"network.{name}": value for name, value in training.parameters_of(self.network).items()}

    def restore(self, stage: str, state: dict[str, Tensor]) -> None:
        """Put a finished stage's tensors back, in the order of :attr:`stages`."""
        if stage == "compression":
            return self.compressor.restore(state)
        if stage == "selection":
            return self.selector.restore(state)
        if stage == "transport":
            return self.transport.restore(state)
        if stage == "matching":
            return self.matcher.restore(state)
        parts = {name.split(".", 1)[1]: value for name, value in state.items() if name.startswith("mixture.")}
        self.mixture = Mixture(**parts)
        weights = {name.split(".", 1)[1]: value for name, value in state.items() if name.startswith("network.")}
        self._build_network().load_state_dict(weights)
        return None


def _denoise(base: Mixture, network: torch.nn.Module, noisy: Tensor, sigma: Tensor, classes: Tensor) -> Tensor:
    """The mixture's exact denoiser plus the network's correction; ``noisy`` (B, …, d), ``sigma`` (B, …, 1)."""
    with torch.no_grad():
        estimate = base.denoise(noisy, sigma, classes)
    hot = one_hot(classes, base.num_classes)
    hot = hot.view(len(hot), *[1] * (noisy.dim() - 2), -1).expand(*noisy.shape[:-1], -1)
    return estimate + diffusion.precondition(sigma).out * network(noisy, estimate, sigma, hot)


def smoke(settings: SynthesisSettings) -> SynthesisSettings:
    """The same settings at toy size, for tests."""
    tiny = FitSettings(steps=5, batch=200, physical_batch=128)
    few = {"start": 2, "features": 200, "width": 16, "channels": 4, "images": 200, "generated": 60}
    chosen = settings.compression
    return replace(
        settings,
        compression=replace(
            chosen,
            pca=replace(chosen.pca, dim=8, frequencies=8),
            refined=replace(chosen.refined, pca=replace(chosen.pca, dim=8, frequencies=8), width=16, fit=tiny),
            autoencoder=replace(chosen.autoencoder, dim=8, width=16, fit=tiny, public_images=300),
        ),
        mixture=replace(settings.mixture, components=2, iterations=2),
        width=32,
        depth=1,
        fit=tiny,
        selection=replace(settings.selection, images=200, dim=8, steps=5),
        transport=replace(settings.transport, images=200, dim=4, steps=2),
        matching=replace(settings.matching, steps=min(settings.matching.steps, 5), **few),
        sampling=replace(settings.sampling, steps=4),
    )
