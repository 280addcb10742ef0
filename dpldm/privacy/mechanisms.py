"""What may be spent, and the mechanisms that spend it: budgets and Gaussian mechanisms.

Everything here speaks about one guarantee, (ε, δ)-differential privacy under *add or remove one image with its label*.
Every mechanism is a Gaussian mechanism, either on all images at once (``sample_rate`` 1) or on a Poisson sample, in
which each image takes part independently with probability ``sample_rate``. The number of images, their shape, the value
range [0, 1] and the number of classes are public; everything else about the images is charged to a `Ledger`.

Sources: Balle and Wang 2018 (exact Gaussian mechanism), Dong, Roth and Su 2022 (Gaussians compose to a Gaussian).
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import log_ndtr

from dpldm.privacy.checks import PrivacyError, is_number, is_whole, require

FIRST_STAGE = "compression"
MINIMUM_EPSILON, MAXIMUM_EPSILON = 0.01, 1e5  # between them all three accountants work
MAXIMUM_NOISE_MULTIPLIER = 1e4  # a single step on all images then spends less than MINIMUM_EPSILON


# ---------------------------------------------------------------------------------------------------------------------
# What may be spent, and the mechanisms that spend it


@dataclass(frozen=True)
class PrivacySpec:
    """What a run may spend: exactly one of a target ``epsilon`` or a ``noise_multiplier``.

    Args:
        epsilon: total budget ε of everything that touches private data, `MINIMUM_EPSILON` to `MAXIMUM_EPSILON`.
        delta: δ in (0, 1), the same for the whole run; `check` also asks for δ < 1/N.
        noise_multiplier: noise of the diffusion stage (standard deviation over sensitivity, 0 to
            `MAXIMUM_NOISE_MULTIPLIER`); ε then follows. 0 means no privacy.
        secure_mode: draw noise from the operating system's cryptographic generator (see `NoiseSource`).

    Raises:
        PrivacyError: both or neither given, or a value outside its range.
    """

    epsilon: float | None = None
    delta: float = 1e-5
    noise_multiplier: float | None = None
    secure_mode: bool = False

    def __post_init__(self) -> None:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise PrivacyError(
                "expected exactly one of epsilon and noise_multiplier, "
                f"got epsilon={self.epsilon}, noise_multiplier={self.noise_multiplier}"
            )
        require(is_number(self.delta) and 0 < self.delta < 1, "delta between 0 and 1", self.delta)
        if self.epsilon is not None:
            require(is_number(self.epsilon) and self.epsilon > 0, "a finite epsilon above 0", self.epsilon)
            if self.epsilon < MINIMUM_EPSILON:
                raise PrivacyError(
                    f"epsilon={self.epsilon} is too small to reach: the accountants are tested from "
                    f"{MINIMUM_EPSILON} on; ask for {MINIMUM_EPSILON} or more"
                )
            if self.epsilon > MAXIMUM_EPSILON:
                raise PrivacyError(
                    f"epsilon={self.epsilon:g} promises nothing and is beyond what the accountants can compute: ask "
                    f"for {MAXIMUM_EPSILON:g} or less (usual are 0.1 to 10), or for a run without privacy"
                )
        if self.noise_multiplier is not None:
            noise = self.noise_multiplier
            require(is_number(noise) and noise >= 0, "a finite noise_multiplier of 0 or more", noise)
            if noise > MAXIMUM_NOISE_MULTIPLIER:
                raise PrivacyError(
                    f"noise_multiplier={noise:g} drowns everything, and its epsilon is too small to compute: ask for "
                    f"{MAXIMUM_NOISE_MULTIPLIER:g} or less (usual are 0.5 to 50), or for an epsilon"
                )

    def check(self, n: int) -> None:
        """Refuse a budget that means nothing for ``n`` images.

        With δ >= 1/n, publishing one image at random would already count as private.

        Raises:
            PrivacyError: ``n`` < 1, or δ outside (0, 1/n).
        """
        require(is_whole(n) and n >= 1, "at least one private image", n)
        if self.delta >= 1 / n:
            raise PrivacyError(
                f"delta={self.delta:g} must be below 1/N = {1 / n:g} for N = {n} images: choose a smaller delta"
            )


@dataclass(frozen=True)
class Mechanism:
    """One (Poisson-subsampled) Gaussian mechanism, run ``steps`` times; what a ledger charges for.

    Guarantee: each step releases a sum over the sampled images, in which adding or removing one image moves the sum by
    at most ``sensitivity`` in L2 norm, plus N(0, (noise_multiplier · sensitivity)²) in every coordinate. Steps may
    depend on earlier results. Assumes add-or-remove-one neighbours and Poisson sampling; shuffled batches of fixed size
    are not covered. The caller has to make the sum and the noise what they are declared to be.

    Args:
        name: what is released, e.g. ``"second moment"``.
        stage: the stage that needs it, e.g. ``"compression"``.
        noise_multiplier: standard deviation over sensitivity, >= 0; 0 means no noise, no privacy and infinite ε.
        sample_rate: probability in (0, 1] that an image takes part in a step; 1 for all images.
        steps: how many times it runs, >= 1.
        sensitivity: the L2 bound above, > 0. For DP-SGD the clipping norm.

    Raises:
        PrivacyError: a value outside its range.
    """

    name: str
    stage: str
    noise_multiplier: float
    sample_rate: float = 1.0
    steps: int = 1
    sensitivity: float = 1.0

    def __post_init__(self) -> None:
        noise, rate, bound = self.noise_multiplier, self.sample_rate, self.sensitivity
        require(isinstance(self.name, str) and self.name != "", "a mechanism name", self.name)
        require(isinstance(self.stage, str) and self.stage != "", "a stage name", self.stage)
        require(is_number(noise) and noise >= 0, f"noise_multiplier of {self.name!r} to be 0 or more", noise)
        require(is_number(rate) and 0 < rate <= 1, f"sample_rate of {self.name!r} in (0, 1]", rate)
        require(is_whole(self.steps) and self.steps >= 1, f"steps of {self.name!r} to be 1 or more", self.steps)
        require(is_number(bound) and bound > 0, f"sensitivity of {self.name!r} to be above 0", bound)


# ---------------------------------------------------------------------------------------------------------------------
# The exact Gaussian mechanism


def _gaussian_delta(noise_multiplier: float, epsilon: float) -> float:
    # Balle and Wang 2018, theorem 8: δ(ε) = Φ(1/2σ - εσ) - e^ε Φ(-1/2σ - εσ), in logarithms so that neither overflows.
    log_first = log_ndtr(0.5 / noise_multiplier - epsilon * noise_multiplier)
    log_second = epsilon + log_ndtr(-0.5 / noise_multiplier - epsilon * noise_multiplier)
    return float(-np.exp(log_first) * np.expm1(min(log_second - log_first, 0.0)))


def gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    """ε of one Gaussian mechanism on all images, exact up to rounding: relative 1e-10, and never below for noise
    multipliers up to 1e4, at any δ.

    Guarantee: (ε, δ) under add-or-remove-one, without subsampling. Source: Balle and Wang 2018, theorem 8.

    Args:
        noise_multiplier: standard deviation over sensitivity, >= 0; 0 gives infinity.
        delta: δ in (0, 1).

    >>> round(gaussian_epsilon(3.73, 1e-5), 2)
    1.0
    """
    require(is_number(noise_multiplier) and noise_multiplier >= 0, "noise_multiplier of 0 or more", noise_multiplier)
    require(is_number(delta) and 0 < delta < 1, "delta between 0 and 1", delta)
    if noise_multiplier == 0:
        return math.inf
    if _gaussian_delta(noise_multiplier, 0.0) <= delta:
        return 0.0
    # Bun and Steinke 2016: ε <= ρ + 2 sqrt(ρ log(1/δ)) with ρ = 1/2σ².
    highest = 0.5 / noise_multiplier**2 + math.sqrt(2 * math.log(1 / delta)) / noise_multiplier
    root = brentq(lambda epsilon: _gaussian_delta(noise_multiplier, epsilon) - delta, 0.0, highest, xtol=1e-15)
    return float(root) * (1 + 1e-10)


def gaussian_noise_multiplier(epsilon: float, delta: float) -> float:
    """Smallest noise multiplier with which one Gaussian mechanism is (ε, δ) private (relative 1e-9, never below).

    Guarantee: as `gaussian_epsilon`, its inverse. Tested for ε from 0.01 to 50.

    >>> round(gaussian_noise_multiplier(1.0, 1e-5), 2)
    3.73
    """
    if epsilon == 0:  # computed from a noise multiplier
        raise PrivacyError("so much noise spends an epsilon too small to compute: lower the noise multiplier")
    require(is_number(epsilon) and epsilon > 0, "a finite epsilon above 0", epsilon)
    require(is_number(delta) and 0 < delta < 1, "delta between 0 and 1", delta)
    root = brentq(
        lambda log_noise: _gaussian_delta(math.exp(log_noise), epsilon) - delta,
        math.log(1e-4),
        math.log(1e8),
        xtol=1e-13,
        rtol=1e-14,
    )
    return math.exp(root) * (1 + 1e-9)
