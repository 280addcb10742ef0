"""How one budget is divided: shares of stages, and the noise of the mechanism that takes what is left."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from scipy.optimize import brentq

from dpldm.privacy.accounting import HIGHEST_NOISE, LOWEST_NOISE, Ledger
from dpldm.privacy.checks import PrivacyError, is_number, require
from dpldm.privacy.mechanisms import Mechanism, gaussian_epsilon, gaussian_noise_multiplier

_CALIBRATION_TOLERANCE = 1e-3  # relative, on the noise multiplier


def split(epsilon: float, delta: float, shares: Mapping[str, float]) -> dict[str, float]:
    """Noise multipliers of one-shot Gaussian mechanisms that share one budget.

    Guarantee: together they are (ε, δ) private under add-or-remove-one, each run once on all images. Gaussian
    mechanisms compose exactly, by adding 1/σ²: with σ the multiplier of the whole budget, share w gets σ / sqrt(w).

    Args:
        epsilon: the whole budget ε > 0.
        delta: δ in (0, 1).
        shares: name → share of 1/σ² in (0, 1]; the sum is at most 1, and what is missing stays unspent.

    Returns:
        name → noise multiplier.

    Raises:
        PrivacyError: a share outside (0, 1] or a sum above 1.
    """
    for name, share in shares.items():
        require(is_number(share) and 0 < share <= 1, f"the share of {name!r} in (0, 1]", share)
    require(sum(shares.values()) <= 1 + 1e-9, "shares that sum to at most 1", sum(shares.values()))
    total = gaussian_noise_multiplier(epsilon, delta)
    return {name: total / math.sqrt(share) for name, share in shares.items()}


def _rough_precision(mechanism: Mechanism) -> float:
    # Many subsampled Gaussians are about one Gaussian with 1/σ² = q² T (exp(1/σᵢ²) - 1): Bu, Dong, Long and Su 2020.
    precision = min(mechanism.noise_multiplier**-2, 100.0)
    growth = precision if mechanism.sample_rate == 1 else math.expm1(precision)
    return mechanism.sample_rate**2 * mechanism.steps * growth


def _rough_log_noise(fixed: Sequence[Mechanism], template: Mechanism, epsilon: float, delta: float) -> float:
    budget = gaussian_noise_multiplier(epsilon, delta) ** -2
    left = max(budget - sum(map(_rough_precision, fixed)), 1e-3 * budget)
    return -0.5 * math.log(math.log1p(left / (template.sample_rate**2 * template.steps)))


def calibrate(fixed: Sequence[Mechanism], template: Mechanism, epsilon: float, delta: float) -> Mechanism:
    """The template with the smallest noise multiplier that keeps it and the fixed mechanisms within the budget.

    Guarantee: ``Ledger([*fixed, result]).epsilon(delta)`` is at most ``epsilon`` (add-or-remove-one, Poisson sampling);
    the noise multiplier is within 0.1% of the smallest for which that holds.

    Args:
        fixed: mechanisms whose noise is settled.
        template: name, stage, sample rate, steps and sensitivity of the mechanism to calibrate; its noise is ignored.
        epsilon: the whole budget ε > 0.
        delta: δ in (0, 1).

    Raises:
        PrivacyError: the fixed mechanisms alone use up the budget.
    """
    require(is_number(epsilon) and epsilon > 0, "a finite epsilon above 0", epsilon)
    already = Ledger(fixed).epsilon(delta)
    used_up = PrivacyError(
        f"too little is left for {template.name!r}: the other mechanisms already spend epsilon={already:.4g} "
        f"of {epsilon:.4g}; raise epsilon or give them more noise"
    )
    if already >= epsilon:
        raise used_up
    if template.sample_rate == 1 and all(mechanism.sample_rate == 1 for mechanism in fixed):
        precision = gaussian_noise_multiplier(epsilon, delta) ** -2
        precision -= math.fsum(mechanism.steps / mechanism.noise_multiplier**2 for mechanism in fixed)
        if precision > 0:
            return replace(template, noise_multiplier=math.sqrt(template.steps / precision) * (1 + 1e-9))

    def excess(log_noise: float) -> float:
        candidate = replace(template, noise_multiplier=math.exp(log_noise))
        return math.log(max(Ledger([*fixed, candidate]).epsilon(delta), 1e-9) / epsilon)

    lowest, highest, step = math.log(LOWEST_NOISE), math.log(HIGHEST_NOISE), 0.05
    low = high = min(max(_rough_log_noise(fixed, template, epsilon, delta), lowest), highest)
    while excess(high) > 0:
        if high == highest:
            raise used_up
        low, high, step = high, min(high + step, highest), 3 * step
    while low == high or excess(low) <= 0:
        if low == lowest:
            return replace(template, noise_multiplier=LOWEST_NOISE)
        high, low, step = low, max(low - step, lowest), 3 * step
    half = _CALIBRATION_TOLERANCE / 2
    log_noise = brentq(excess, low, high, xtol=half / 2) + half / 2
    while excess(log_noise) > 0:  # the root may lie on the unsafe side
        log_noise += half / 2
    return replace(template, noise_multiplier=math.exp(log_noise))


def budget_shares(ledger: Ledger, delta: float) -> list[float]:
    """Each mechanism's share of the budget, in the order of the ledger: numbers from 0 to 1 that sum to 1.

    ε does not add up, 1/σ² does: a mechanism counts as the one Gaussian on all images that has the same ε at δ.

    Args:
        ledger: at least one mechanism, all with noise.
        delta: δ in (0, 1).

    >>> [round(share, 2) for share in budget_shares(Ledger([Mechanism("a", "s", 2.0), Mechanism("b", "s", 4.0)]), 1e-5)]
    [0.8, 0.2]
    """
    require(math.isfinite(ledger.epsilon(delta)) and bool(ledger.mechanisms), "mechanisms with noise", ledger)
    precisions = []
    for mechanism in ledger.mechanisms:
        alone = Ledger([mechanism]).epsilon(delta)
        precisions.append(gaussian_noise_multiplier(alone, delta) ** -2 if alone > 0 else 0.0)
    return [precision / max(math.fsum(precisions), 1e-300) for precision in precisions]


@dataclass(frozen=True)
class Allowance:
    """A part of a budget that is still to be spent: as much privacy loss as one Gaussian mechanism with this noise.

    Parts of parts add up: mechanisms made from ``part(a)`` and ``part(b)`` with a + b <= 1 together cost no more than
    the whole, at this δ, as long as at most one of them is DP-SGD. Full-batch Gaussian mechanisms add up exactly (by
    1/σ²); DP-SGD is calibrated so that it fits beside Gaussians that use up the rest. What a run really spent is
    computed from its ledger. ``noise_multiplier`` 0 means no privacy; ``whole``: that of what this is a part of.
    """

    noise_multiplier: float
    delta: float
    whole: float | None = None

    def part(self, share: float) -> "Allowance":
        """The given share (0 < share <= 1) of 1/σ²."""
        require(is_number(share) and 0 < share <= 1, "a share above 0 and at most 1", share)
        return Allowance(self.noise_multiplier / math.sqrt(share), self.delta, self.whole or self.noise_multiplier)

    def mechanism(self, name: str, stage: str, sensitivity: float, steps: int = 1) -> Mechanism:
        """A full-batch Gaussian mechanism, released ``steps`` times, that uses this allowance up."""
        return Mechanism(name, stage, self.noise_multiplier * math.sqrt(steps), 1.0, steps, sensitivity)

    def sgd(self, name: str, stage: str, n: int, batch: int, steps: int, clip_norm: float) -> Mechanism:
        """DP-SGD on ``n`` examples with Poisson batches of expected size ``batch`` that uses this allowance up."""
        template = Mechanism(name, stage, self.noise_multiplier, min(1.0, batch / n), steps, clip_norm)
        if self.noise_multiplier == 0:
            return template
        whole = self.whole or self.noise_multiplier
        rest = whole**-2 - self.noise_multiplier**-2
        beside = [Mechanism("the rest", stage, rest**-0.5)] if rest > 1e-9 * whole**-2 else []
        return calibrate(beside, template, gaussian_epsilon(whole, self.delta), self.delta)
