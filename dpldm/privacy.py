"""The privacy of a run: what may be spent, what was spent, and the noise that pays for it.

Everything here speaks about one guarantee, (ε, δ)-differential privacy under *add or remove one image with its label*.
Every mechanism is a Gaussian mechanism, either on all images at once (``sample_rate`` 1) or on a Poisson sample, in
which each image takes part independently with probability ``sample_rate``. The number of images, their shape, the value
range [0, 1] and the number of classes are public; everything else about the images is charged to a `Ledger`.

Sources: Balle and Wang 2018 (exact Gaussian mechanism), Dong, Roth and Su 2022 (Gaussians compose to a Gaussian), Gopi,
Lee and Wutschitz 2021 (PRV accountant), Mironov, Talwar and Zhang 2019 (RDP), Doroshenko et al. 2022 (PLD, connect the
dots), Holohan and Braghin 2021 (secure sampling of noise).
"""

import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtri
from torch import Tensor

RELATION = "add or remove one image with its label"
PUBLIC = (
    "number of images",
    "image shape",
    "value range [0, 1]",
    "number and names of the classes",
    "settings of the run",
)
FIRST_STAGE = "compression"
MINIMUM_EPSILON, MAXIMUM_EPSILON = 0.01, 1e5  # between them all three accountants work
MAXIMUM_NOISE_MULTIPLIER = 1e4  # a single step on all images then spends less than MINIMUM_EPSILON
"""Smallest ε that may be asked for: below it the accountants are not tested and the noise drowns everything."""

Accountant = Literal["prv", "rdp", "pld"]

_FRACTIONAL_ORDERS = (1.1, 1.25, 1.5, 1.75, *(order / 4 for order in range(9, 40) if order % 4))
_WHOLE_ORDERS = (*range(2, 64), 72, 96, 128, 192, 256, 512, 1024)  # Opacus overflows above about 1024
_PRV_SIZES = tuple(2**power for power in range(17, 22))  # mesh points; powers of two for the FFT, 0.1 to 1.5 seconds
_PRV_ERROR, _PRV_LAST_ERROR = 0.002, 0.005  # error bar as a share of ε: wanted, and accepted on the largest mesh
_PRV_WIDEST = 500.0  # beyond about 700 the exponentials overflow and Opacus silently understates ε
_CALIBRATION_TOLERANCE = 1e-3  # relative, on the noise multiplier
_LOWEST_NOISE, _HIGHEST_NOISE = 0.01, 1e7  # where calibration looks


class PrivacyError(ValueError):
    """A budget that can't be kept, a broken mechanism or record, or a claim the ledger does not support."""


def _require(holds: bool, expected: str, got: object) -> None:
    if not holds:
        raise PrivacyError(f"expected {expected}, got {got!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


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
        _require(_is_number(self.delta) and 0 < self.delta < 1, "delta between 0 and 1", self.delta)
        if self.epsilon is not None:
            _require(_is_number(self.epsilon) and self.epsilon > 0, "a finite epsilon above 0", self.epsilon)
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
            _require(_is_number(noise) and noise >= 0, "a finite noise_multiplier of 0 or more", noise)
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
        _require(_is_whole(n) and n >= 1, "at least one private image", n)
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
        _require(isinstance(self.name, str) and self.name != "", "a mechanism name", self.name)
        _require(isinstance(self.stage, str) and self.stage != "", "a stage name", self.stage)
        _require(_is_number(noise) and noise >= 0, f"noise_multiplier of {self.name!r} to be 0 or more", noise)
        _require(_is_number(rate) and 0 < rate <= 1, f"sample_rate of {self.name!r} in (0, 1]", rate)
        _require(_is_whole(self.steps) and self.steps >= 1, f"steps of {self.name!r} to be 1 or more", self.steps)
        _require(_is_number(bound) and bound > 0, f"sensitivity of {self.name!r} to be above 0", bound)


# ---------------------------------------------------------------------------------------------------------------------
# The exact Gaussian mechanism


def _gaussian_delta(noise_multiplier: float, epsilon: float) -> float:
    # Balle and Wang 2018, theorem 8: δ(ε) = Φ(1/2σ - εσ) - e^ε Φ(-1/2σ - εσ), in logarithms so that neither overflows.
    log_first = log_ndtr(0.5 / noise_multiplier - epsilon * noise_multiplier)
    log_second = epsilon + log_ndtr(-0.5 / noise_multiplier - epsilon * noise_multiplier)
    return float(-np.exp(log_first) * np.expm1(min(log_second - log_first, 0.0)))


def gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    """ε of one Gaussian mechanism on all images, exact up to rounding (relative 1e-10, never below).

    Guarantee: (ε, δ) under add-or-remove-one, without subsampling. Source: Balle and Wang 2018, theorem 8.

    Args:
        noise_multiplier: standard deviation over sensitivity, >= 0; 0 gives infinity.
        delta: δ in (0, 1).

    >>> round(gaussian_epsilon(3.73, 1e-5), 2)
    1.0
    """
    _require(_is_number(noise_multiplier) and noise_multiplier >= 0, "noise_multiplier of 0 or more", noise_multiplier)
    _require(_is_number(delta) and 0 < delta < 1, "delta between 0 and 1", delta)
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
    _require(_is_number(epsilon) and epsilon > 0, "a finite epsilon above 0", epsilon)
    _require(_is_number(delta) and 0 < delta < 1, "delta between 0 and 1", delta)
    root = brentq(
        lambda log_noise: _gaussian_delta(math.exp(log_noise), epsilon) - delta,
        math.log(1e-4),
        math.log(1e8),
        xtol=1e-13,
        rtol=1e-14,
    )
    return math.exp(root) * (1 + 1e-9)


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
        _require(_is_number(share) and 0 < share <= 1, f"the share of {name!r} in (0, 1]", share)
    _require(sum(shares.values()) <= 1 + 1e-9, "shares that sum to at most 1", sum(shares.values()))
    total = gaussian_noise_multiplier(epsilon, delta)
    return {name: total / math.sqrt(share) for name, share in shares.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Accounting

_Part = tuple[float, float, int]  # noise multiplier, sample rate, steps: what an accountant needs of a mechanism


@dataclass(frozen=True)
class Spent:
    """ε spent and which accountant answered: ``gaussian`` (closed form), ``prv``, ``pld``, ``rdp`` or ``none``."""

    epsilon: float
    accountant: str


class Ledger:
    """Every mechanism that touched private data, in order; entries can be added and never removed.

    Guarantee: the run is (`epsilon`, δ) private under add-or-remove-one if every use of private data is an entry and
    each entry is what it says (see `Mechanism`). What a mechanism computes may depend on the results of earlier ones;
    its noise multiplier, sample rate and steps may not, and neither may the decision to run it at all.
    """

    def __init__(self, mechanisms: Iterable[Mechanism] = ()) -> None:
        self._mechanisms: list[Mechanism] = []
        for mechanism in mechanisms:
            self.add(mechanism)

    @property
    def mechanisms(self) -> tuple[Mechanism, ...]:
        return tuple(self._mechanisms)

    def add(self, mechanism: Mechanism) -> None:
        """Charge one mechanism."""
        _require(isinstance(mechanism, Mechanism), "a Mechanism", mechanism)
        self._mechanisms.append(mechanism)

    def epsilon(self, delta: float, accountant: Accountant = "prv") -> float:
        """ε of everything in the ledger together: an upper bound, 0 if empty, infinite after a noiseless mechanism.

        Args:
            delta: δ in (0, 1).
            accountant: ``prv`` is what is reported, see `spent`; ``rdp`` (Opacus) is looser; ``pld`` (dp-accounting) is
                an independent implementation that looks at adding and at removing.
        """
        return self.spent(delta, accountant).epsilon

    def pld_interval(self, delta: float) -> float:
        """The mesh of privacy losses on which ``pld`` computes ε: as fine as so many steps need."""
        return _pld_interval(_merge(self._mechanisms), delta)

    def spent(self, delta: float, accountant: Accountant = "prv") -> Spent:
        """ε as `epsilon`, with the accountant that answered.

        ``prv`` gives the closed form when no mechanism subsamples, otherwise the upper end of the PRV accountant's
        error bar; where that bar is wider than 0.5% of ε or the accountant fails (small ε and many thousand steps) the
        PLD accountant answers instead, and is named. PRV looks at removing an image, the worse direction for
        subsampled Gaussians; the tests check that against PLD, which looks at both.

        Raises:
            PrivacyError: δ outside (0, 1), unknown accountant, or a composition no accountant can handle.
        """
        _require(_is_number(delta) and 0 < delta < 1, "delta between 0 and 1", delta)
        _require(accountant in ("prv", "rdp", "pld"), "accountant 'prv', 'rdp' or 'pld'", accountant)
        if not self._mechanisms:
            return Spent(0.0, "none")
        if any(mechanism.noise_multiplier == 0 for mechanism in self._mechanisms):
            return Spent(math.inf, "none")
        return _spent(_merge(self._mechanisms), delta, accountant)


def _merge(mechanisms: Iterable[Mechanism]) -> tuple[_Part, ...]:
    # Gaussians on all images are one Gaussian with 1/σ² = Σ steps/σᵢ², exactly; equal subsampled ones only add steps.
    # Sorted, so that the answer does not depend on the order of composition in the last digit.
    precisions = []
    steps: dict[tuple[float, float], int] = {}
    for mechanism in mechanisms:
        if mechanism.sample_rate == 1:
            precisions.append(mechanism.steps / mechanism.noise_multiplier**2)
        else:
            key = (float(mechanism.noise_multiplier), float(mechanism.sample_rate))
            steps[key] = steps.get(key, 0) + mechanism.steps
    parts = [(*key, count) for key, count in sorted(steps.items())]
    return ((1 / math.sqrt(math.fsum(precisions)), 1.0, 1), *parts) if precisions else tuple(parts)


@lru_cache(maxsize=1024)
def _spent(parts: tuple[_Part, ...], delta: float, accountant: Accountant) -> Spent:
    if accountant == "prv" and parts[0][1] == 1 and len(parts) == 1:
        return Spent(gaussian_epsilon(parts[0][0], delta), "gaussian")
    answers: dict[str, Callable[[tuple[_Part, ...], float], float]] = {"prv": _prv, "pld": _pld, "rdp": _rdp}
    for name in (accountant, "pld", "rdp") if accountant == "prv" else (accountant,):
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # orders at the end of the grid, slow quadrature far out in the tails
            try:
                epsilon = float(answers[name](parts, delta))
            except (ArithmeticError, RuntimeError, ValueError, IndexError, MemoryError):
                continue
        if math.isfinite(epsilon) and epsilon >= 0:
            return Spent(epsilon, name)
    raise PrivacyError(f"the {accountant} accountant can't handle (noise multiplier, sample rate, steps) = {parts}")


# The accountants are imported where they are used: together they take as long to load as torch.


def _rdp(parts: Sequence[_Part], delta: float, orders: Sequence[float] = _FRACTIONAL_ORDERS + _WHOLE_ORDERS) -> float:
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = list(parts)
    return max(0.0, accountant.get_epsilon(delta, alphas=list(orders)))


def _prv(parts: Sequence[_Part], delta: float) -> float:
    # Opacus' PRVAccountant takes an error bar and derives the mesh; this goes from mesh to error bar, because a mesh
    # with a power of two of points is several times faster and bounds time and memory.
    from opacus.accountants.analysis import prv

    steps = [count for _, _, count in parts]
    delta_error = delta / 1000
    # Half-width of the mesh: Gopi et al. 2021, remark 5.6.
    tails = [_rdp([(noise, rate, 1)], delta_error / (8 * sum(steps)), _WHOLE_ORDERS) for noise, rate, _ in parts]
    half_width = max(_rdp(parts, delta_error / 4, _WHOLE_ORDERS), *tails) + 3
    if half_width > _PRV_WIDEST:
        raise ArithmeticError("the privacy loss is too wide for PRV")
    losses = [prv.PoissonSubsampledGaussianPRV(rate, noise) for noise, rate, _ in parts]
    highest = _rdp(parts, delta, _WHOLE_ORDERS)
    for size in _PRV_SIZES:
        distance = half_width / (size // 2 - 1.5)  # gives exactly `size` points once Opacus has aligned the mesh
        error = distance * math.sqrt(sum(steps) * math.log(12 / delta_error) / 2)  # Gopi et al. 2021, theorem 5.5
        accepted = _PRV_LAST_ERROR if size == _PRV_SIZES[-1] else _PRV_ERROR
        if error > accepted * highest:
            continue
        mesh = prv.Domain.create_aligned(-half_width, half_width, distance)
        discrete = [
            prv.discretize(prv.TruncatedPrivacyRandomVariable(loss, mesh.t_min, mesh.t_max), mesh) for loss in losses
        ]
        composed = prv.compose_heterogeneous(dprvs=discrete, num_self_compositions=steps)
        _, _, epsilon_upper = composed.compute_epsilon(delta, delta_error, error)
        if error <= accepted * epsilon_upper:
            return float(epsilon_upper)
        highest = min(highest, epsilon_upper)
    raise ArithmeticError("the PRV error bar is too wide")


def _pld_interval(parts: Sequence[_Part], delta: float) -> float:
    """Connect the dots is an upper bound for any interval; a share of the loss of a single step makes it tight, where
    dp-accounting's own 1e-4 gives a few percent too much for many small steps."""
    return 3e-3 * _rdp(parts, delta, _WHOLE_ORDERS) / math.sqrt(sum(steps for _, _, steps in parts))


def _pld(parts: Sequence[_Part], delta: float) -> float:
    from dp_accounting.pld import privacy_loss_distribution

    interval = _pld_interval(parts, delta)
    composed = None
    for noise_multiplier, sample_rate, steps in parts:
        distribution = privacy_loss_distribution.from_gaussian_mechanism(
            noise_multiplier,
            sampling_prob=sample_rate,
            value_discretization_interval=interval,
            use_connect_dots=True,
            neighboring_relation=privacy_loss_distribution.NeighborRel.ADD_OR_REMOVE_ONE,
        ).self_compose(steps)
        composed = distribution if composed is None else composed.compose(distribution)
    assert composed is not None
    return composed.get_epsilon_for_delta(delta)


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
    _require(_is_number(epsilon) and epsilon > 0, "a finite epsilon above 0", epsilon)
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

    lowest, highest, step = math.log(_LOWEST_NOISE), math.log(_HIGHEST_NOISE), 0.05
    low = high = min(max(_rough_log_noise(fixed, template, epsilon, delta), lowest), highest)
    while excess(high) > 0:
        if high == highest:
            raise used_up
        low, high, step = high, min(high + step, highest), 3 * step
    while low == high or excess(low) <= 0:
        if low == lowest:
            return replace(template, noise_multiplier=_LOWEST_NOISE)
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
    _require(math.isfinite(ledger.epsilon(delta)) and bool(ledger.mechanisms), "mechanisms with noise", ledger)
    precisions = []
    for mechanism in ledger.mechanisms:
        alone = Ledger([mechanism]).epsilon(delta)
        precisions.append(gaussian_noise_multiplier(alone, delta) ** -2 if alone > 0 else 0.0)
    return [precision / max(math.fsum(precisions), 1e-300) for precision in precisions]


def replace_one_epsilon(ledger: Ledger, delta: float) -> float:
    """An upper bound on ε of the ledger where neighbours *replace* one image instead of adding or removing it.

    To replace is to remove and to add: the definition, applied twice, makes (2ε, (1 + e^ε) δ') of (ε, δ'). The bound
    takes a δ' with (1 + e^ε(δ')) δ' <= δ; infinite after a noiseless mechanism.
    """
    _require(_is_number(delta) and 0 < delta < 1, "delta between 0 and 1", delta)
    epsilon = ledger.epsilon(delta)
    while math.isfinite(epsilon):
        smaller = 0.9 * delta / (1 + math.exp(min(epsilon, 600.0)))
        previous, epsilon = epsilon, ledger.epsilon(smaller)
        if (1 + math.exp(min(epsilon, 600.0))) * smaller <= delta:
            return 2 * epsilon
        epsilon = max(epsilon, previous)
    return math.inf


def with_more_epochs(ledger: Ledger, epochs: int) -> Ledger:
    """The same ledger if its last subsampled mechanism had run ``epochs`` (1 or more) longer at the same noise; an
    epoch is as many steps as see every image once on average.

    Raises:
        PrivacyError: no mechanism takes samples.
    """
    mechanisms = list(ledger.mechanisms)
    last = max((i for i, mechanism in enumerate(mechanisms) if mechanism.sample_rate < 1), default=None)
    if last is None:
        raise PrivacyError("expected a mechanism with a sample rate below 1, got none: there are no epochs to add")
    more = epochs * max(1, round(1 / mechanisms[last].sample_rate))
    mechanisms[last] = replace(mechanisms[last], steps=mechanisms[last].steps + more)
    return Ledger(mechanisms)


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
        _require(_is_whole(seed) and 0 <= seed < 2**63, "a seed from 0 to 2**63 - 1", seed)
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
        _require(_is_number(std) and std >= 0, "a standard deviation of 0 or more", std)
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
        _require(_is_number(sample_rate) and 0 <= sample_rate <= 1, "sample_rate in [0, 1]", sample_rate)
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
    _require(_is_number(sensitivity) and sensitivity > 0, "a sensitivity above 0", sensitivity)
    _require(_is_number(noise_multiplier) and noise_multiplier >= 0, "noise_multiplier of 0 or more", noise_multiplier)
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
    _require(_is_number(max_norm) and max_norm > 0, "max_norm above 0", max_norm)
    _require(x.ndim >= 2 and x.is_floating_point(), "a floating (N, ...) tensor", (x.dtype, tuple(x.shape)))
    rows = x.flatten(1)
    wide = rows.cpu() if x.device.type == "mps" else rows  # no float64 there
    norms = torch.linalg.vector_norm(wide, dim=1, dtype=torch.float64)
    safe = max_norm * (1 - 8 * torch.finfo(x.dtype).eps)  # room for the rounding of scale and product
    scale = torch.where(norms > max_norm, safe / norms, torch.ones_like(norms))
    clipped = rows * scale.to(x.dtype).to(x.device)[:, None]
    finite = norms.isfinite().to(x.device)[:, None]
    return torch.where(finite, clipped, torch.zeros_like(clipped)).reshape(x.shape)


# ---------------------------------------------------------------------------------------------------------------------
# The guard


class PrivateData:
    """Private images and labels behind a guard: the only way to them is `read`, which charges the ledger first.

    Public: ``len()``, `image_shape`, `num_classes`. Under add-or-remove-one the number of images is not protected by
    the guarantee; it is taken as public, as is usual, and may appear only as a constant (e.g. the expected batch size).
    No attribute, no text form and no copy shows anything else. This guards against forgetting, not against malice:
    a Python program that wants to look inside can.

    Args:
        images: float32 (N, C, H, W) in [0, 1].
        labels: int64 (N,) in 0 .. num_classes - 1.
        num_classes: public number of classes, >= 1.
        ledger: where reads are charged.

    Raises:
        PrivacyError: wrong type, shape or range. This check is the data owner's own and is not part of a release.
    """

    __slots__ = ("_len", "_reader", "_reads", "image_shape", "ledger", "num_classes")

    def __init__(self, images: Tensor, labels: Tensor, num_classes: int, ledger: Ledger) -> None:
        _check_images(images)
        _check_labels(labels, len(images), num_classes)
        reads: list[str] = []

        def reader(mechanism: Mechanism) -> tuple[Tensor, Tensor]:
            ledger.add(mechanism)
            reads.append(mechanism.name)
            return images, labels

        self._reader = reader
        self._reads = reads
        self._len = len(images)
        self.ledger = ledger
        self.image_shape = tuple(images.shape[1:])
        self.num_classes = num_classes

    def __len__(self) -> int:
        return self._len

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the mechanisms that read the data, in order."""
        return tuple(self._reads)

    def read(self, mechanism: Mechanism) -> tuple[Tensor, Tensor]:
        """Charge the mechanism, then hand out (images, labels); treat them as read-only.

        One call serves all ``steps`` of the mechanism. Every call is charged, so call it once per mechanism. A run that
        is deliberately not private reads with a noise multiplier of 0, after which ε is infinite.
        """
        return self._reader(mechanism)

    def __repr__(self) -> str:
        return f"PrivateData({self._len} images of shape {self.image_shape}, {self.num_classes} classes)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise PrivacyError("private data can't be pickled or copied: pass the guard on, or build it anew")


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or images.dtype != torch.float32 or images.numel() == 0:
        raise PrivacyError(
            f"expected images as float32 (N, C, H, W) with N > 0, got {images.dtype} {tuple(images.shape)}"
        )
    lowest, highest = (bound.item() for bound in images.aminmax())
    if not (lowest >= 0 and highest <= 1):  # also catches NaN
        raise PrivacyError(f"expected pixels from 0 to 1, got {lowest:g} to {highest:g}; rescale or repair the images")


def _check_labels(labels: Tensor, n: int, num_classes: int) -> None:
    _require(_is_whole(num_classes) and num_classes >= 1, "at least one class", num_classes)
    if labels.dtype != torch.int64 or labels.shape != (n,):
        raise PrivacyError(f"expected labels as int64 ({n},), one per image, got {labels.dtype} {tuple(labels.shape)}")
    lowest, highest = (int(bound) for bound in labels.aminmax())
    if lowest < 0 or highest >= num_classes:
        raise PrivacyError(f"expected labels from 0 to {num_classes - 1}, got {lowest} to {highest}")


# ---------------------------------------------------------------------------------------------------------------------
# Records and statements


def to_record(spec: PrivacySpec, ledger: Ledger) -> dict[str, Any]:
    """The ``privacy`` object of a run's record, computed from the ledger.

    ``epsilon`` and ``epsilon_rdp`` are None when infinite, and also for an empty ledger, which proves nothing.

    Raises:
        PrivacyError: the ledger spends more than ``spec.epsilon``.
    """
    spent, spent_rdp = ledger.spent(spec.delta), ledger.epsilon(spec.delta, "rdp")
    if spec.epsilon is not None and spent.epsilon > spec.epsilon:
        raise PrivacyError(f"the run spent epsilon={spent.epsilon:.6g}, more than the target {spec.epsilon:.6g}")
    known = bool(ledger.mechanisms) and math.isfinite(spent.epsilon)
    return {
        "epsilon_target": spec.epsilon,
        "epsilon": spent.epsilon if known else None,
        "epsilon_rdp": spent_rdp if known else None,
        "delta": spec.delta,
        "relation": RELATION,
        "accountant": spent.accountant,
        "secure_mode": spec.secure_mode,
        "mechanisms": [asdict(mechanism) for mechanism in ledger.mechanisms],
    }


def from_record(record: Mapping[str, Any]) -> Ledger:
    """The ledger of a record's ``privacy`` object, checked entry by entry.

    Raises:
        PrivacyError: another relation, missing or unknown keys, or values outside their ranges.
    """
    _require(isinstance(record, Mapping) and "mechanisms" in record, "a privacy record with 'mechanisms'", record)
    _require(record.get("relation") == RELATION, f"relation {RELATION!r}", record.get("relation"))
    _require(isinstance(record["mechanisms"], list), "a list of mechanisms", record["mechanisms"])
    names = {field.name for field in fields(Mechanism)}
    for entry in record["mechanisms"]:
        _require(isinstance(entry, Mapping) and set(entry) == names, f"a mechanism with keys {sorted(names)}", entry)
    return Ledger(Mechanism(**entry) for entry in record["mechanisms"])


def check_claim(record: Mapping[str, Any]) -> None:
    """Compute ε again from the mechanisms of a record's ``privacy`` object; it takes a part of a second.

    Raises:
        PrivacyError: the record claims a smaller ε than its mechanisms spend, or they are not as they should be.
    """
    claimed = record.get("epsilon")
    if claimed is None:
        return
    spent = from_record(record).epsilon(record["delta"])
    if spent > claimed * (1 + 1e-6):
        raise PrivacyError(f"the record claims epsilon={claimed:g}, but its mechanisms spend {spent:g}")


_SETTINGS = {
    False: "Settings were fixed without a look at these images; other runs on them are charged on top.",
    True: (
        "This run alone is counted: settings were chosen on training images of this very data set, and scores on its "
        "test images were seen in between."
    ),
    None: (
        "Settings were fixed without a look at these images (those of MNIST and Fashion-MNIST were not); other runs on "
        "them are charged on top."
    ),
}


def statement(record: Mapping[str, Any], settings_saw_images: bool | None = None) -> dict[str, Any]:
    """What may be said about a release, from its ``privacy`` object: machine-readable, with plain words in ``claim``.

    ε is computed again from the mechanisms, so an edited record is not believed. Nor is one that charges stage 1 alone:
    a private encoder does not make the latents private (reading A of the paper).

    Args:
        record: a record's ``privacy`` object.
        settings_saw_images: whether settings were chosen by what they did on the very images; None if that is unknown.

    Returns:
        ``epsilon``, ``delta``, ``relation``, ``accountant``, ``sampling``, ``public``, ``mechanisms`` (names),
        ``noise`` ("secure", "seeded" or "unknown"), ``claim`` and ``assumptions`` (sentences).

    Raises:
        PrivacyError: ε is null, no mechanism or only stage 1 is listed, or ε is smaller than the mechanisms allow.
    """
    ledger = from_record(record)
    epsilon, delta = record.get("epsilon"), record.get("delta")
    if epsilon is None or not ledger.mechanisms:
        raise PrivacyError("this run is not differentially private (epsilon is null or no mechanism is listed)")
    if all(mechanism.stage == FIRST_STAGE for mechanism in ledger.mechanisms):
        raise PrivacyError(
            f"only stage {FIRST_STAGE!r} is charged: a private encoder does not make the latents private, and what is "
            "trained on them without a mechanism is not either; such a run can't be called private"
        )
    _require(_is_number(epsilon) and epsilon >= 0, "epsilon of 0 or more in the record", epsilon)
    if not isinstance(delta, float):
        raise PrivacyError(f"expected delta between 0 and 1 in the record, got {delta!r}")
    check_claim(record)
    noise = {True: "secure", False: "seeded"}.get(record.get("secure_mode", "?"), "unknown")
    return {
        "epsilon": epsilon,
        "delta": delta,
        "relation": RELATION,
        "accountant": record.get("accountant"),
        "noise": noise,
        "sampling": "Poisson: each image takes part in a step independently",
        "public": list(PUBLIC),
        "mechanisms": [mechanism.name for mechanism in ledger.mechanisms],
        "claim": (
            f"Adding or removing any one image with its label raises the probability of any outcome by at most a "
            f"factor e^{epsilon:.4g} = {math.exp(min(epsilon, 700.0)):.4g}, plus {delta:g}."
        ),
        "assumptions": [
            "Every use of the private images is one of the listed mechanisms.",
            "It protects single images, not everything one person contributed.",
            {
                "secure": "The noise is secret: it came from the operating system's cryptographic generator.",
                "seeded": (
                    "The noise is secret: it is NOT, since it follows from a seed of 32 bits; whoever has the result "
                    "can try them all and remove it, so this run protects nobody."
                ),
                "unknown": "The noise is secret: a run with a known seed protects nobody.",
            }[noise],
            "Noise and sums are floating point, an approximation of the real numbers of the proof.",
            _SETTINGS[settings_saw_images],
        ],
    }


def in_words(record: Mapping[str, Any], settings_saw_images: bool | None = None) -> list[str]:
    """What a ``privacy`` object means, for people: lines with the claim, its assumptions, every mechanism with its
    share of the budget, ε by three accountants and under replaced images, and what one more epoch would cost.

    Args: as of `statement`.

    Raises:
        PrivacyError: as `statement`.
    """
    said, ledger = statement(record, settings_saw_images), from_record(record)
    delta = said["delta"]
    lines = [
        said["claim"],
        f"Neighbours: {said['relation']}. Sampling: {said['sampling']}. Public: {', '.join(said['public'])}.",
        "It holds if:",
        *(f"  - {assumption}" for assumption in said["assumptions"]),
        "Mechanisms, and their shares of the budget (of 1/σ²):",
    ]
    for mechanism, share in zip(ledger.mechanisms, budget_shares(ledger, delta), strict=True):
        lines.append(
            f"  {mechanism.stage:<12} {mechanism.name:<24}{share:4.0%}  "
            f"noise multiplier {mechanism.noise_multiplier:.4g}, sample rate {mechanism.sample_rate:.4g}, "
            f"{mechanism.steps} × sensitivity {mechanism.sensitivity:.4g}"
        )
    lines += [
        f"ε by PRV (reported)     {ledger.epsilon(delta):.4f} at δ = {delta:g}",
        f"ε by PLD (independent)  {ledger.epsilon(delta, 'pld'):.4f} in steps of {ledger.pld_interval(delta):.2g}",
        f"ε by RDP (looser)       {ledger.epsilon(delta, 'rdp'):.4f}",
        f"ε if neighbours replace one image instead: at most {replace_one_epsilon(ledger, delta):.4f}",
    ]
    if any(mechanism.sample_rate < 1 for mechanism in ledger.mechanisms):
        lines.append(f"ε after one more epoch  {with_more_epochs(ledger, 1).epsilon(delta):.4f} at the same noise")
    return lines


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
        _require(_is_number(share) and 0 < share <= 1, "a share above 0 and at most 1", share)
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
