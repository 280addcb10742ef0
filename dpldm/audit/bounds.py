"""From right guesses to lower bounds on ε, with a stated confidence."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from scipy.optimize import brentq
from scipy.special import bdtrc, expit, ndtri
from torch import Tensor

from dpldm.privacy.checks import PrivacyError
from dpldm.privacy.mechanisms import gaussian_epsilon

CONFIDENCE = 0.95
_SHARES = (0.02, 0.1, 0.4, 1.0)  # of canaries on which a one-run attacker guesses; fixed before the scores are seen
_LARGEST_EPSILON = 40.0


@dataclass(frozen=True)
class LowerBound:
    """With probability ``confidence`` over the runs, no (ε, ``delta``) below ``epsilon_lower`` holds.

    ``correct`` of ``guesses`` guesses about who took part were right; ``method`` says which theorem was used.
    """

    epsilon_lower: float
    confidence: float
    delta: float
    method: str
    guesses: int
    correct: int

    def contradicts(self, epsilon: float) -> bool:
        """Whether the bound disproves a claimed ε."""
        return self.epsilon_lower > epsilon


@dataclass(frozen=True)
class CanaryScores:
    """One number for each of m canaries, (m,), high where the attacker believes it took part; and whether it did."""

    scores: Tensor
    included: Tensor

    @property
    def present(self) -> Tensor:
        return self.scores[self.included]

    @property
    def absent(self) -> Tensor:
        return self.scores[~self.included]


def one_run_p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """How probable ``correct`` or more right guesses are at most, if the release is (ε, δ) private.

    Each of ``canaries`` examples was included by a fair coin of its own; the attacker guesses ``guesses`` of the coins.
    Source: Steinke, Nasr and Jagielski 2023, "Privacy auditing with one (1) training run", theorem 5.2: with
    W ~ Binomial(guesses, 1/(1 + e^-ε)) it is P[W >= v] + 2mδ · max over i of P[v - i <= W < v] / i.

    >>> round(one_run_p_value(10, 10, 10, 0.0, 0.0), 6)  # ten coins guessed by chance
    0.000977
    """
    if not 0 <= correct <= guesses <= canaries:
        raise PrivacyError(f"expected correct <= guesses <= canaries, got {correct}, {guesses} and {canaries}")
    if correct == 0:
        return 1.0
    below = stats.binom.pmf(np.arange(correct - 1, -1, -1), guesses, expit(epsilon))  # P[W = v - 1], P[W = v - 2], …
    largest = float((below.cumsum() / np.arange(1, correct + 1)).max())
    return min(1.0, float(bdtrc(correct - 1, guesses, expit(epsilon))) + 2 * canaries * delta * largest)


def one_run_bound(
    found: CanaryScores, delta: float, confidence: float = CONFIDENCE, shares: Sequence[float] = _SHARES
) -> LowerBound:
    """Lower bound from a single run with many canaries (`one_run_p_value`), whatever the scores are.

    For each share, the attacker guesses "in" for the highest scores and "out" for as many lowest ones, and abstains on
    the rest. The best of the shares counts, at the price of a confidence that is divided among them (Bonferroni).
    Assumes independent fair coins; the scores may depend on each other.
    """
    order, m = found.scores.argsort(descending=True), len(found.scores)
    level = (1 - confidence) / len(shares)
    best = LowerBound(0.0, confidence, delta, "one run", 0, 0)
    for share in shares:
        half = max(1, round(share * m / 2))
        correct = int(found.included[order[:half]].sum()) + int((~found.included[order[-half:]]).sum())
        epsilon = _largest_rejected(m, 2 * half, correct, delta, level)
        if best.guesses == 0 or epsilon > best.epsilon_lower:
            best = LowerBound(epsilon, confidence, delta, "one run", 2 * half, correct)
    return best


def one_run_power(
    canaries: int, delta: float, confidence: float = CONFIDENCE, shares: Sequence[float] = _SHARES
) -> float:
    """The largest bound that `one_run_bound` could give: that of an attacker whose guesses are all right.

    A claim above it can't be disproved with so few canaries, however wrong it is.

    >>> one_run_power(20, 1e-5) < one_run_power(400, 1e-5)
    True
    """
    guesses = (2 * max(1, round(share * canaries / 2)) for share in shares)
    level = (1 - confidence) / len(shares)
    return max(_largest_rejected(canaries, count, count, delta, level) for count in guesses)


def _largest_rejected(canaries: int, guesses: int, correct: int, delta: float, level: float) -> float:
    def excess(epsilon: float) -> float:
        return one_run_p_value(canaries, guesses, correct, epsilon, delta) - level

    if excess(0.0) >= 0:
        return 0.0
    if excess(_LARGEST_EPSILON) < 0:
        return _LARGEST_EPSILON
    return float(brentq(excess, 0.0, _LARGEST_EPSILON, xtol=1e-6))


def many_runs_bound(present: Tensor, absent: Tensor, delta: float, confidence: float = CONFIDENCE) -> LowerBound:
    """Lower bound from many runs, one canary: ``present`` and ``absent`` are its scores (n,) with and without it.

    Half of the scores choose a threshold, the other half count its errors. With upper bounds on both error rates (exact
    binomial, Clopper and Pearson 1934), ε >= log((1 - δ - FNR) / FPR), and the same with the two exchanged.
    Sources: Kairouz, Oh and Viswanath 2015; Jagielski, Ullman and Oprea 2020. Assumes independent runs.
    """
    errors = _errors(present, absent, confidence, _best_threshold(present[::2], absent[::2], delta))
    epsilon = _from_errors(errors.false_positive, errors.false_negative, delta)
    return LowerBound(epsilon, confidence, delta, "many runs", errors.guesses, errors.correct)


def gaussian_bound(
    present: Tensor,
    absent: Tensor,
    delta: float,
    confidence: float = CONFIDENCE,
    threshold: float | None = None,
) -> LowerBound:
    """Lower bound for releases that are claimed to be Gaussian: much sharper than `many_runs_bound`.

    Whatever the attack, an example that took part by a fair coin is guessed right with probability at most Φ(μ/2) if
    the release is μ-Gaussian private; the exact binomial lower bound on that probability gives μ, and μ the ε of a
    Gaussian mechanism with noise multiplier 1/μ. A contradiction proves that the release is not the Gaussian mechanism
    it is said to be. Sources: Dong, Roth and Su 2022 (μ-GDP); Nasr et al. 2023, section 4 (ε by way of μ).

    Args:
        present: scores with the canary, (n,). absent: without it, about as many.
            The scores must be independent: separate runs, or canaries whose noise is independent.
        threshold: guess "in" above it; fixed without a look at the scores. None: chosen on half of them, which then
            don't count.
    """
    if threshold is None:
        _enough(present, absent)
        threshold = float(present[::2].mean() + absent[::2].mean()) / 2
        present, absent = present[1::2], absent[1::2]
    correct, guesses = int((present > threshold).sum() + (absent <= threshold).sum()), len(present) + len(absent)
    accuracy = float(stats.beta.isf(confidence, correct, guesses - correct + 1)) if correct else 0.0
    separation = 2 * float(ndtri(accuracy))
    epsilon = gaussian_epsilon(1 / separation, delta) if separation > 1e-9 else 0.0
    return LowerBound(epsilon, confidence, delta, "Gaussian", guesses, correct)


@dataclass(frozen=True)
class _Errors:
    """Upper bounds on the error rates of a threshold, and how it did."""

    false_positive: float
    false_negative: float
    guesses: int
    correct: int


def _errors(present: Tensor, absent: Tensor, confidence: float, threshold: float) -> _Errors:
    _enough(present, absent)
    missed = int((present[1::2] <= threshold).sum())
    alarms = int((absent[1::2] > threshold).sum())
    n, m = len(present[1::2]), len(absent[1::2])
    level = (1 - confidence) / 2
    return _Errors(_rate_upper(alarms, m, level), _rate_upper(missed, n, level), n + m, n + m - missed - alarms)


def _rate_upper(hits: int, trials: int, level: float) -> float:
    return 1.0 if hits == trials else float(stats.beta.isf(level, hits + 1, trials - hits))


def _from_errors(false_positive: float, false_negative: float, delta: float) -> float:
    first = math.log(max(1 - delta - false_negative, 1e-300) / false_positive)
    return max(0.0, first, math.log(max(1 - delta - false_positive, 1e-300) / false_negative))


def _best_threshold(present: Tensor, absent: Tensor, delta: float) -> float:
    """The threshold with the largest bound on the scores given, errors counted with one added."""
    points = torch.cat([present, absent]).sort().values.double()
    alarms = (absent.double()[None] > points[:, None]).sum(1).add(1.0) / (len(absent) + 1)
    missed = (present.double()[None] <= points[:, None]).sum(1).add(1.0) / (len(present) + 1)
    pairs = zip(alarms.clamp_max(1).tolist(), missed.clamp_max(1).tolist(), strict=True)
    return float(points[int(np.argmax([_from_errors(a, b, delta) for a, b in pairs]))])


def _enough(present: Tensor, absent: Tensor) -> None:
    if min(len(present), len(absent)) < 4:
        raise PrivacyError(f"expected at least 4 scores of each kind, got {len(present)} and {len(absent)}: run more")
