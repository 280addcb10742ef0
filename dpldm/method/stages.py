"""The stages of the method, one object each: all that a run, its plan, its progress and its files ask of a stage.

A stage is added by one more object in `LatentDiffusion.build_stages`; nothing else keeps a list of stages.
"""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from dpldm.method import classifier, compressor, decoders, diffusion, edge_transport, mixture, training
from dpldm.method.denoiser import ResidualMLP, denoise
from dpldm.method.mixture import Mixture
from dpldm.privacy.budget import Allowance, calibrate
from dpldm.privacy.guard import PrivateData
from dpldm.privacy.mechanisms import Mechanism
from dpldm.privacy.noise import NoiseSource, clip_rows

if TYPE_CHECKING:
    from dpldm.method.synthesizer import LatentDiffusion


DIFFUSION = "diffusion"


class Stage(Protocol):
    """One stage of a fit.

    name: as in ledgers, files and progress. share: of the budget's 1/σ², 0 for what costs nothing.
    """

    name: str
    share: float

    @property
    def steps(self) -> int:
        """About how many steps `fit` yields."""

    def planned(self, allowance: Allowance, n: int) -> list[Mechanism]:
        """What `fit` to ``n`` images will charge, in order; known without them. A sensitivity may follow from how many
        dimensions an earlier release keeps; before that it is planned for all of them. ε does not depend on it."""

    def fit(
        self, data: PrivateData, allowance: Allowance, noise: NoiseSource, random: torch.Generator
    ) -> Iterator[int]:
        """Yields the steps done; ``random``: of draws other than noise."""

    def state(self) -> dict[str, Tensor]:
        """Its tensors, once it is fitted."""

    def restore(self, state: dict[str, Tensor]) -> None:
        """Put its tensors back; the stages before it have theirs."""


class Compression:
    """Stage 1: images become latents."""

    name = compressor.STAGE

    def __init__(self, model: "LatentDiffusion") -> None:
        self.model, self.share = model, model.settings.shares["compression"]

    @property
    def steps(self) -> int:
        return self.model.compressor.steps

    def planned(self, allowance: Allowance, n: int) -> list[Mechanism]:
        return self.model.compressor.planned(allowance, n)

    def fit(
        self, data: PrivateData, allowance: Allowance, noise: NoiseSource, random: torch.Generator
    ) -> Iterator[int]:
        yield from self.model.compressor.fit(data, allowance, noise, random)

    def state(self) -> dict[str, Tensor]:
        return self.model.compressor.state()

    def restore(self, state: dict[str, Tensor]) -> None:
        self.model.compressor.restore(state)


class Diffusion:
    """Stage 2: a private mixture of the latents, and a denoiser that starts there and learns the rest by DP-SGD."""

    name = DIFFUSION

    def __init__(self, model: "LatentDiffusion") -> None:
        self.model, self.share = model, model.settings.shares["mixture"]

    @property
    def steps(self) -> int:
        return self.model.settings.fit.steps + 1

    def planned(self, allowance: Allowance, n: int) -> list[Mechanism]:
        moments = mixture.mechanisms(self.model.compressor.dim, self.model.settings.mixture, allowance)
        before = self.model.planned(n, before=self.name)
        return [*moments, self.gradients(n, [*before, *moments])]

    def gradients(self, n: int, charged: list[Mechanism]) -> Mechanism:
        """DP-SGD with the least noise that keeps it, what is charged and what is still to come within the target."""
        fit, spec = self.model.settings.fit, self.model.spec
        rate = min(1.0, fit.batch / n)

        def template(noise_multiplier: float) -> Mechanism:
            return Mechanism("denoiser gradients", DIFFUSION, noise_multiplier, rate, fit.steps, fit.clip_norm)

        if spec is None or spec.epsilon is None:
            return template(0.0 if spec is None else spec.noise_multiplier or 0.0)
        later = self.model.planned(n, after=self.name)
        # matching last: the order decides the last digit of the noise that is found
        later.sort(key=lambda mechanism: mechanism.stage == decoders.STAGE)
        return calibrate([*charged, *later], template(1.0), spec.epsilon, spec.delta)

    def fit(
        self, data: PrivateData, allowance: Allowance, noise: NoiseSource, random: torch.Generator
    ) -> Iterator[int]:
        model, settings, encode = self.model, self.model.settings, self.model.compressor.encode
        dim = model.compressor.dim
        model.mixture = mixture.fit_mixture(data, encode, dim, settings.mixture, allowance, noise)
        yield 1

        mechanism = self.gradients(len(data), list(data.ledger.mechanisms))
        images, labels = data.read(mechanism)
        radius = settings.mixture.clip_norm * math.sqrt(dim)
        latents = clip_rows(encode(images), radius).to(model.device)
        labels = labels.to(model.device)
        base = model.mixture.to(model.device)
        random = training.generator_on(model.device, random)

        def loss(network: nn.Module, chosen: Tensor) -> Tensor:
            known = torch.rand(len(chosen), generator=random, device=model.device) >= settings.label_dropout
            classes = torch.where(known, labels[chosen], model.num_classes)

            def of_mixture(noisy: Tensor, sigma: Tensor) -> Tensor:
                return denoise(base, network, noisy, sigma, classes)

            return diffusion.denoising_loss(of_mixture, latents[chosen], settings.levels, settings.draws, random)

        network = self.build_network()
        for step in training.fit(network, loss, len(data), mechanism, settings.fit, noise, random):
            yield 1 + step
        network.cpu()

    def build_network(self) -> ResidualMLP:
        """The denoiser with its first weights, which becomes the model's; it corrects nothing yet."""
        model, settings = self.model, self.model.settings
        model.network = ResidualMLP(model.compressor.dim, model.num_classes, settings.width, settings.depth)
        return model.network.to(model.device)

    def state(self) -> dict[str, Tensor]:
        assert self.model.mixture is not None
        assert self.model.network is not None, "fit first"
        prior = {f"mixture.{name}": value for name, value in self.model.mixture.tensors().items()}
        network = training.parameters_of(self.model.network)
        return prior | {f"network.{name}": value for name, value in network.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        parts = {name.split(".", 1)[1]: value for name, value in state.items() if name.startswith("mixture.")}
        self.model.mixture = Mixture(**parts)
        weights = {name.split(".", 1)[1]: value for name, value in state.items() if name.startswith("network.")}
        self.build_network().load_state_dict(weights)


class Matching:
    """Decoders matched to mean features of the private images."""

    name = decoders.STAGE

    def __init__(self, model: "LatentDiffusion") -> None:
        self.model, self.share = model, model.settings.shares["matching"]

    @property
    def steps(self) -> int:
        return 1 + self.model.settings.matching.start + self.model.settings.matching.steps

    def planned(self, allowance: Allowance, n: int) -> list[Mechanism]:
        return [self.model.matcher.mechanism(allowance)]

    def fit(
        self, data: PrivateData, allowance: Allowance, noise: NoiseSource, random: torch.Generator
    ) -> Iterator[int]:
        count = self.model.settings.matching.images
        yield from self.model.matcher.fit(data, lambda: self.model.drawing.own_latents(count), allowance, noise, random)

    def state(self) -> dict[str, Tensor]:
        return self.model.matcher.state()

    def restore(self, state: dict[str, Tensor]) -> None:
        self.model.matcher.restore(state)


class Selection:
    """A private classifier that has images drawn again, and pushes them."""

    name = classifier.STAGE

    def __init__(self, model: "LatentDiffusion") -> None:
        self.model, self.share = model, model.settings.shares["selection"]

    @property
    def steps(self) -> int:
        return self.model.settings.selection.steps

    def planned(self, allowance: Allowance, n: int) -> list[Mechanism]:
        return [self.model.selector.mechanism(allowance)]

    def fit(
        self, data: PrivateData, allowance: Allowance, noise: NoiseSource, random: torch.Generator
    ) -> Iterator[int]:
        settings, drawing = self.model.settings, self.model.drawing
        view = drawing.as_drawn if settings.stage_1_draws else None
        count = settings.selection.images
        yield from self.model.selector.fit(data, lambda: drawing.own_candidates(count), view, allowance, noise)

    def state(self) -> dict[str, Tensor]:
        return self.model.selector.state()

    def restore(self, state: dict[str, Tensor]) -> None:
        self.model.selector.restore(state)


class EdgeTransport:
    """Private moments of edges, to which images are moved."""

    name = edge_transport.STAGE
    steps = 2

    def __init__(self, model: "LatentDiffusion") -> None:
        self.model, self.share = model, model.settings.shares["transport"]

    def planned(self, allowance: Allowance, n: int) -> list[Mechanism]:
        return self.model.transport.mechanisms(allowance)

    def fit(
        self, data: PrivateData, allowance: Allowance, noise: NoiseSource, random: torch.Generator
    ) -> Iterator[int]:
        count = self.model.transport.images_needed
        yield from self.model.transport.fit(data, lambda: self.model.drawing.own_images(count), allowance, noise)

    def state(self) -> dict[str, Tensor]:
        return self.model.transport.state()

    def restore(self, state: dict[str, Tensor]) -> None:
        self.model.transport.restore(state)
