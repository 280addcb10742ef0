"""Diffusion in the form of Karras et al. (2022, "EDM"): noise levels, preconditioning, loss and samplers.

Nothing here knows about privacy or files. A *denoiser* is any callable ``denoise(noisy, sigma) -> clean`` that returns
the expected clean latents given noisy ones; latents have unit scale (``sigma_data = 1``).
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class NoiseLevels:
    """Which standard deviations of noise are trained on and sampled through (Karras et al. 2022, table 1).

    Training draws ``log sigma ~ N(log_mean, log_std²)``; sampling walks from ``sigma_max`` down to ``sigma_min`` along
    a power law of exponent ``rho`` and then to zero. All in units of the latents' scale.
    """

    log_mean: float = -0.4
    log_std: float = 1.0
    sigma_min: float = 0.02
    sigma_max: float = 20.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                f"expected 0 < sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}: swap or raise them"
            )

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Noise levels to train on, of the given ``shape``; independent of the data."""
        normal = torch.randn(shape, generator=generator, device=generator.device)
        return (self.log_mean + self.log_std * normal).exp()

    def schedule(self, steps: int) -> Tensor:
        """The ``steps + 1`` decreasing levels of a sampler, the last one zero (Karras et al. 2022, equation 5).

        >>> NoiseLevels(sigma_min=1.0, sigma_max=4.0, rho=1.0).schedule(4).tolist()
        [4.0, 3.0, 2.0, 1.0, 0.0]
        """
        if steps < 2:
            raise ValueError(f"expected at least 2 sampling steps, got {steps}: raise sampling_steps")
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
        levels = (high + ramp * (low - high)) ** self.rho
        return torch.cat([levels, levels.new_zeros(1)]).float()


@dataclass(frozen=True)
class Preconditioning:
    """The scalings around a network F: ``D(x) = skip · x + out · F(into · x, noise)`` (Karras et al. 2022, table 1)."""

    skip: Tensor
    out: Tensor
    into: Tensor
    noise: Tensor


def precondition(sigma: Tensor) -> Preconditioning:
    """Scalings for latents of unit scale at noise levels ``sigma`` (any shape, > 0)."""
    total = (1 + sigma**2).sqrt()
    return Preconditioning(skip=1 / total**2, out=sigma / total, into=1 / total, noise=sigma.log() / 4)


def denoising_loss(denoise: Denoise, latents: Tensor, levels: NoiseLevels, draws: int, random: torch.Generator):
    """Per-example loss of a denoiser, averaged over ``draws`` noise levels each (noise multiplicity, Dockhorn et al.
    2023, equation 7) with the weight ``1 / out²`` of Karras et al. (2022).

    ``latents`` is (B, d); the denoiser sees (B, draws, d) and sigma (B, draws, 1). Returns (B,).
    Averaging inside an example leaves its contribution to the clipped gradient, and so the privacy, unchanged.
    """
    sigma = levels.draw((len(latents), draws, 1), random)
    clean = latents[:, None, :].expand(-1, draws, -1)
    noisy = clean + sigma * torch.randn(clean.shape, generator=random, device=clean.device)
    error = (denoise(noisy, sigma) - clean) / precondition(sigma).out
    return error.square().mean(dim=(1, 2))


def guided(conditional: Denoise, unconditional: Denoise, guidance: float) -> Denoise:
    """Classifier-free guidance (Ho and Salimans 2022): 1 is the plain conditional model, > 1 exaggerates the class."""
    if guidance == 1:
        return conditional

    def denoise(noisy: Tensor, sigma: Tensor) -> Tensor:
        plain = unconditional(noisy, sigma)
        return plain + guidance * (conditional(noisy, sigma) - plain)

    return denoise


def _normal(like: Tensor, random: torch.Generator) -> Tensor:
    """Fresh noise of that shape, drawn where the generator lives."""
    return torch.randn(like.shape, generator=random, device=random.device).to(like.device)


def _heun(denoise: Denoise, noise: Tensor, sigmas: Tensor, random: torch.Generator, churned: float) -> Iterator[Tensor]:
    x = noise * sigmas[0]
    for sigma, following in itertools.pairwise(sigmas):
        raised = sigma * (1 + churned)
        if churned:
            x = x + (raised**2 - sigma**2).sqrt() * _normal(x, random)
        slope = (x - denoise(x, raised)) / raised
        moved = x + (following - raised) * slope
        if following > 0:
            slope = (slope + (moved - denoise(moved, following)) / following) / 2
            moved = x + (following - raised) * slope
        x = moved
        yield x


def deterministic(denoise: Denoise, noise: Tensor, sigmas: Tensor, random: torch.Generator) -> Iterator[Tensor]:
    """Heun's second-order method on the probability-flow equation (Karras et al. 2022, algorithm 1).

    ``noise`` is a standard normal (B, d) start; yields the latents after each of ``len(sigmas) - 1`` steps.
    ``random`` is unused: the samplers share one signature.
    """
    return _heun(denoise, noise, sigmas, random, churned=0.0)


def churn(denoise: Denoise, noise: Tensor, sigmas: Tensor, random: torch.Generator) -> Iterator[Tensor]:
    """Heun's method with noise added before each step (Karras et al. 2022, algorithm 2, with its full churn √2 - 1)."""
    return _heun(denoise, noise, sigmas, random, churned=math.sqrt(2) - 1)


def stochastic(denoise: Denoise, noise: Tensor, sigmas: Tensor, random: torch.Generator) -> Iterator[Tensor]:
    """Ancestral sampling: step to the mean of the posterior and add fresh noise back (Song et al. 2021, DDIM with η=1).

    Arguments as for :func:`deterministic`; forgives errors of the denoiser at the price of more steps.
    """
    x = noise * sigmas[0]
    for sigma, following in itertools.pairwise(sigmas):
        ratio = (following / sigma) ** 2
        clean = denoise(x, sigma)
        x = clean + ratio * (x - clean)
        x = x + following * (1 - ratio).sqrt() * _normal(x, random)
        yield x


SAMPLERS = {"deterministic": deterministic, "stochastic": stochastic, "churn": churn}
