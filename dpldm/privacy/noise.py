"""Noise, and the one door through which anything computed from private images leaves: `release`.

Source: Holohan and Braghin 2021 (secure sampling of noise).
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from dpldm.privacy.checks import is_number, is_whole, require
from dpldm.privacy.mechanisms import Mechanism

# ---------------------------------------------------------------------------------------------------------------------
# Noise


class NoiseSource:
    """Where noise and Poisson samples come from: `seeded` for a book that reproduces, `secure` for a real release.

    Seeded noise is only as secret as its seed: whoever knows or guesses the seed subtracts the noise and sees the
    private statistics, so results of a seeded run are private on paper only. Don't release them with real people's
    data. Secure noise comes from the operating system's cryptographic generator and can't be repeated.

    The guarantee is proved for real numbers; floating point is an approximation of them. Which doubles a sampler can
    produce depends on the value the noise is added to, and an attacker who sees all digits can exploit that (Mironov
    2012). Secure mode sums four draws per number, which makes the attack of Holohan and Braghin (2021) on Gaussian
    samplers impractical; it is not a discrete mechanism with an exact proof. Round a release to fewer digits than it
    was computed with.
    """

    def __init__(self, generator: torch.Generator | None) -> None:
        self._generator = generator

    @classmethod
    def seeded(cls, seed: int) -> "NoiseSource":
        """The same noise in every run with this seed (0 to 2⁶³ - 1), drawn on the CPU whatever the device."""
        require(is_whole(seed) and 0 <= seed < 2**63, "a seed from 0 to 2**63 - 1", seed)
        return cls(torch.Generator().manual_seed(seed))

    @classmethod
    def secure(cls) -> "NoiseSource":
        """Noise from the operating system's cryptographic generator."""
        return cls(None)

    @property
    def is_secure(self) -> bool:
        return self._generator is None

    def _uniform(self, count: int) -> Tensor:
        # (k + 1/2) / 2⁵² for k < 2⁵²: exact in float64, never 0 or 1.
        if self._generator is not None:
            bits = torch.randint(2**52, (count,), generator=self._generator)
        else:
            raw = np.frombuffer(bytearray(os.urandom(8 * count)), dtype=np.uint64)
            bits = torch.from_numpy((raw >> np.uint64(12)).astype(np.int64))
        return (bits.double() + 0.5) * 2.0**-52

    def normal(
        self,
        shape: Sequence[int],
        std: float = 1.0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Independent N(0, std²) of the given shape; computed in float64 on the CPU, then rounded once.

        Args:
            shape: any shape.
            std: standard deviation >= 0.
            device: where the result goes.
            dtype: floating type of the result.
        """
        require(is_number(std) and std >= 0, "a standard deviation of 0 or more", std)
        if self._generator is not None:
            draws = torch.randn(tuple(shape), generator=self._generator, dtype=torch.float64)
        else:
            count = math.prod(shape)
            total = torch.zeros(count, dtype=torch.float64)
            for _ in range(4):  # N(0, 4) as a sum of four, each by the inverse distribution function
                total += torch.from_numpy(ndtri(self._uniform(count).numpy()))
            draws = (total / 2).reshape(tuple(shape))
        return (draws * std).to(dtype).to(device)

    def poisson_mask(self, n: int, sample_rate: float) -> Tensor:
        """A Poisson sample: boolean (n,), each entry True independently with probability ``sample_rate`` in [0, 1].

        It may be empty. The sampling that `Mechanism` assumes.
        """
        require(is_number(sample_rate) and 0 <= sample_rate <= 1, "sample_rate in [0, 1]", sample_rate)
        return self._uniform(n) < sample_rate


def gaussian_mechanism(value: Tensor, sensitivity: float, noise_multiplier: float, noise: NoiseSource) -> Tensor:
    """The value plus N(0, (sensitivity · noise_multiplier)²) in every entry.

    Guarantee: that of ``Mechanism(noise_multiplier=…, sensitivity=…)`` with one step, if adding or removing one image
    moves ``value`` by at most ``sensitivity`` in L2 norm over all entries together. Says nothing by itself about how
    often it is called: charge it to a `Ledger`.

    Args:
        value: any shape; whole numbers become float64.
        sensitivity: the L2 bound, > 0, in the unit of ``value``.
        noise_multiplier: >= 0; 0 returns the value without noise and is not private.
        noise: where the noise comes from.

    Returns:
        Same shape, device and floating type.
    """
    require(is_number(sensitivity) and sensitivity > 0, "a sensitivity above 0", sensitivity)
    require(is_number(noise_multiplier) and noise_multiplier >= 0, "noise_multiplier of 0 or more", noise_multiplier)
    dtype = value.dtype if value.is_floating_point() else torch.float64
    exact = value.detach().cpu().double()
    noisy = exact + noise.normal(exact.shape, sensitivity * noise_multiplier, dtype=torch.float64)
    return noisy.to(dtype).to(value.device)


@dataclass(frozen=True)
class Release:
    """One run of a mechanism: the numbers that went in, without noise, and what came out, of the same shape; of
    ``gradients`` of a network, all parameters' as one vector."""

    mechanism: Mechanism
    value: Tensor
    released: Tensor
    gradients: bool = False


Answer = Callable[[Release], Tensor]
_watchers: list[Answer] = []


@contextmanager
def watched(answer: Answer | None = None) -> Iterator[list[Release]]:
    """Every release inside the block, of whatever module, in order: for audits and tests.

    With ``answer``, what it returns is handed on in the place of what was released, which replays, mutes or breaks the
    mechanisms. The noise is drawn in any case, so what else comes from the same source stays the same.
    """
    seen: list[Release] = []

    def watch(one: Release) -> Tensor:
        if answer is not None:
            one = replace(one, released=answer(one).detach().clone())  # what follows may write into it
        seen.append(replace(one, value=one.value.detach().clone(), released=one.released.detach().clone()))
        return one.released

    _watchers.append(watch)
    try:
        yield seen
    finally:
        _watchers.remove(watch)


def _handed_on(one: Release) -> Tensor:
    for watch in _watchers:
        one = replace(one, released=watch(one))
    return one.released


def release(value: Tensor, mechanism: Mechanism, noise: NoiseSource) -> Tensor:
    """One run of a mechanism: the value with its noise. The only way out for a number computed from private images;
    gradients of networks take `release_gradients`.

    Guarantee: as `gaussian_mechanism`, at the mechanism's sensitivity and noise multiplier. Clips nothing: the caller
    has to bound what one image adds, and to have charged the mechanism.

    Args:
        value: any shape; whole numbers become float64.

    Returns:
        Same shape, device and floating type.
    """
    noisy = gaussian_mechanism(value, mechanism.sensitivity, mechanism.noise_multiplier, noise)
    return _handed_on(Release(mechanism, value, noisy))


def release_gradients(sums: Sequence[Tensor], mechanism: Mechanism, noise: NoiseSource) -> list[Tensor]:
    """One step of DP-SGD: sums of clipped gradients, one for each parameter and together of the mechanism's
    sensitivity, with their noise, in the precision and on the device of each."""
    std = mechanism.noise_multiplier * mechanism.sensitivity
    noisy = [total + noise.normal(total.shape, std, device=total.device, dtype=total.dtype) for total in sums]
    if not _watchers:
        return noisy
    value, released = (torch.cat([part.flatten() for part in parts]) for parts in (sums, noisy))
    handed_on = _handed_on(Release(mechanism, value, released, gradients=True))
    parts = handed_on.split([total.numel() for total in sums])
    return [part.view_as(total) for part, total in zip(parts, sums, strict=True)]


def clip_rows(x: Tensor, max_norm: float) -> Tensor:
    """Rows shortened to an L2 norm of at most ``max_norm``, rounding included.

    With it a sum over rows has sensitivity ``max_norm`` under add-or-remove-one.

    Args:
        x: (N, ...) floating; a row is everything after the first axis.
        max_norm: > 0, in the unit of ``x``.

    Returns:
        Same shape and type. Shorter rows are unchanged; rows with NaN or infinity become zero, so that one broken image
        can't show through the noise.
    """
    require(is_number(max_norm) and max_norm > 0, "max_norm above 0", max_norm)
    require(x.ndim >= 2 and x.is_floating_point(), "a floating (N, ...) tensor", (x.dtype, tuple(x.shape)))
    rows = x.flatten(1)
    wide = rows.cpu() if x.device.type == "mps" else rows  # no float64 there
    norms = torch.linalg.vector_norm(wide, dim=1, dtype=torch.float64)
    safe = max_norm * (1 - 8 * torch.finfo(x.dtype).eps)  # room for the rounding of scale and product
    scale = torch.where(norms > max_norm, safe / norms, torch.ones_like(norms))
    clipped = rows * scale.to(x.dtype).to(x.device)[:, None]
    finite = norms.isfinite().to(x.device)[:, None]
    return torch.where(finite, clipped, torch.zeros_like(clipped)).reshape(x.shape)
