"""What the other methods share: the same ``fit / sample``, under the same ledger, as the latent diffusion."""

import secrets
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from dpldm.method import training
from dpldm.method.compressor import Shape
from dpldm.method.drawing import FINISHING_SEED
from dpldm.method.finishing import Finishable
from dpldm.method.settings import SamplingSettings
from dpldm.privacy.budget import Allowance, calibrate
from dpldm.privacy.guard import PrivateData
from dpldm.privacy.mechanisms import Mechanism, PrivacySpec, gaussian_noise_multiplier
from dpldm.privacy.noise import NoiseSource

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

    settings: Finishable

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
