"""Fitting a network by DP-SGD or without privacy. The one file that drives Opacus.

Both fits are generators that yield the number of steps done, so that a caller can show progress or stop. They yield no
loss: the loss of a private run is itself computed from private data and no mechanism pays for it.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.optimizers.optimizer_fast_gradient_clipping import DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping
from torch import Tensor, nn

from dpldm.privacy.mechanisms import Mechanism
from dpldm.privacy.noise import NoiseSource, release_gradients

PerExampleLoss = Callable[[nn.Module, Tensor], Tensor]  # (network, chosen indices (B,)) → loss of each example (B,)


@dataclass(frozen=True)
class FitSettings:
    """How a network is fitted. ``batch`` is the expected size of a Poisson batch; at most ``physical_batch`` examples
    are in memory at once, whatever the batch."""

    steps: int = 150
    batch: int = 4096
    physical_batch: int = 1024
    learning_rate: float = 4e-3
    clip_norm: float = 0.1
    ema_decay: float = 0.98

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "physical_batch", "learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"expected {name} > 0, got {getattr(self, name)}: give a positive number")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"expected 0 <= ema_decay < 1, got {self.ema_decay}: use for example 0.98")


class Average:
    """Exponential moving average of a network's parameters, with the usual warm-up (post-processing, so free)."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network, self.decay, self.steps = network, decay, 0
        self.parameters = [parameter.detach().clone() for parameter in network.parameters()]

    @torch.no_grad()
    def update(self) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for kept, parameter in zip(self.parameters, self.network.parameters(), strict=True):
            kept.lerp_(parameter, 1 - decay)

    @torch.no_grad()
    def apply(self) -> None:
        """Put the averaged values into the network."""
        for kept, parameter in zip(self.parameters, self.network.parameters(), strict=True):
            parameter.copy_(kept)


class NoisyOptimizer(DPOptimizerFastGradientClipping):
    """Opacus' optimizer with the library's own noise source, so that every mechanism draws its noise in one place."""

    def __init__(self, optimizer: torch.optim.Optimizer, noise: NoiseSource, mechanism: Mechanism, batch: Any) -> None:
        super().__init__(
            optimizer=optimizer,
            noise_multiplier=mechanism.noise_multiplier,
            max_grad_norm=mechanism.sensitivity,
            expected_batch_size=batch,  # an expectation: not the whole number of Opacus' annotation
        )
        self.noise, self.mechanism = noise, mechanism

    def add_noise(self) -> None:
        sums = [parameter.summed_grad for parameter in self.params]
        for parameter, noisy in zip(self.params, release_gradients(sums, self.mechanism, self.noise), strict=True):
            parameter.grad = noisy


def fit_private(
    network: nn.Module,
    loss: PerExampleLoss,
    n: int,
    mechanism: Mechanism,
    settings: FitSettings,
    noise: NoiseSource,
) -> Iterator[int]:
    """DP-SGD (Abadi et al. 2016, algorithm 1, with Adam): ``network`` is fitted in place to ``n`` private examples.

    Each step takes every example with probability ``mechanism.sample_rate`` (Poisson sampling), clips each example's
    gradient to L2 norm ``mechanism.sensitivity``, adds Gaussian noise of ``noise_multiplier · sensitivity`` to the sum
    and divides by the *expected* batch size. The caller has charged ``mechanism``, whose ``steps`` are run exactly.
    ``loss`` must give each example a loss that depends on no other example. Yields the steps done, 1 to ``steps``;
    at the end the network holds the moving average of its parameters.
    """
    # Opacus hooks every layer, also the first, whose input needs no gradient: torch warns, the norms are right.
    warnings.filterwarnings("ignore", message="Full backward hook is firing", category=UserWarning)
    module = GradSampleModuleFastGradientClipping(network, max_grad_norm=mechanism.sensitivity, use_ghost_clipping=True)
    adam = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
    optimizer = NoisyOptimizer(adam, noise, mechanism, batch=mechanism.sample_rate * n)
    average = Average(network, settings.ema_decay)
    network.train()
    try:
        for step in range(1, mechanism.steps + 1):
            chosen = noise.poisson_mask(n, mechanism.sample_rate).nonzero().flatten()
            _private_step(module, optimizer, loss, chosen.split(settings.physical_batch))
            average.update()
            yield step
    finally:
        module.remove_hooks()
    average.apply()
    network.eval()


def _private_step(
    module: GradSampleModuleFastGradientClipping,
    optimizer: DPOptimizerFastGradientClipping,
    loss: PerExampleLoss,
    parts: tuple[Tensor, ...],
) -> None:
    for part in parts:
        optimizer.signal_skip_step(do_skip=part is not parts[-1])
        optimizer.zero_grad()
        if len(part):
            DPTensorFastGradientClipping(module, optimizer, loss(module, part)).backward()
        else:  # an empty Poisson batch still takes its noisy step
            for parameter in module.parameters():
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()


def generator_on(device: torch.device, random: torch.Generator) -> torch.Generator:
    """A generator for draws on ``device``: the given one on the CPU, else a new one seeded from it."""
    if device.type == "cpu":
        return random
    return torch.Generator(device).manual_seed(int(torch.randint(2**62, (1,), generator=random)))


def fit_ordinary(
    network: nn.Module, loss: PerExampleLoss, n: int, settings: FitSettings, random: torch.Generator
) -> Iterator[int]:
    """Ordinary training on ``n`` examples, without clipping or noise: for public data or as a non-private yardstick."""
    adam = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
    average = Average(network, settings.ema_decay)
    network.train()
    for step in range(1, settings.steps + 1):
        adam.zero_grad()
        chosen = torch.randint(n, (min(settings.batch, n),), generator=random, device=random.device)
        for part in chosen.split(settings.physical_batch):
            (loss(network, part).sum() / len(chosen)).backward()
        adam.step()
        average.update()
        yield step
    average.apply()
    network.eval()


def fit(
    network: nn.Module,
    loss: PerExampleLoss,
    n: int,
    mechanism: Mechanism,
    settings: FitSettings,
    noise: NoiseSource,
    random: torch.Generator,
) -> Iterator[int]:
    """:func:`fit_private`, or :func:`fit_ordinary` where ``mechanism`` has no noise (and so an infinite ε)."""
    if mechanism.noise_multiplier > 0:
        return fit_private(network, loss, n, mechanism, settings, noise)
    return fit_ordinary(network, loss, n, settings, random)


def parameters_of(network: nn.Module) -> dict[str, Tensor]:
    """A network's parameters as plain tensors on the CPU, to be saved."""
    return {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
