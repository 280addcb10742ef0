"""What was spent: the ledger of mechanisms, and the ε that three accountants compute from it.

Sources: Gopi, Lee and Wutschitz 2021 (PRV accountant), Mironov, Talwar and Zhang 2019 (RDP), Doroshenko et al. 2022
(PLD, connect the dots), Dong, Roth and Su 2022 (Gaussians compose to a Gaussian).
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np

from dpldm.privacy.checks import PrivacyError, is_number, require
from dpldm.privacy.mechanisms import Mechanism, gaussian_epsilon

Accountant = Literal["prv", "rdp", "pld"]

_FRACTIONAL_ORDERS = (1.1, 1.25, 1.5, 1.75, *(order / 4 for order in range(9, 40) if order % 4))
_WHOLE_ORDERS = (*range(2, 64), 72, 96, 128, 192, 256, 512, 1024)  # Opacus overflows above about 1024
_PRV_SIZES = tuple(2**power for power in range(17, 22))  # mesh points; powers of two for the FFT, 0.1 to 1.5 seconds
_PRV_ERROR, _PRV_LAST_ERROR = 0.002, 0.005  # error bar as a share of ε: wanted, and accepted on the largest mesh
_PRV_WIDEST = 500.0  # beyond about 700 the exponentials overflow and Opacus silently understates ε
LOWEST_NOISE, HIGHEST_NOISE = 0.01, 1e7  # where calibration looks


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
        require(isinstance(mechanism, Mechanism), "a Mechanism", mechanism)
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
        with _quiet():
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
        require(is_number(delta) and 0 < delta < 1, "delta between 0 and 1", delta)
        require(accountant in ("prv", "rdp", "pld"), "accountant 'prv', 'rdp' or 'pld'", accountant)
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


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # orders at the end of the grid, slow quadrature far out in the tails
        yield


@lru_cache(maxsize=1024)
def _spent(parts: tuple[_Part, ...], delta: float, accountant: Accountant) -> Spent:
    if accountant == "prv" and parts[0][1] == 1 and len(parts) == 1:
        return Spent(gaussian_epsilon(parts[0][0], delta), "gaussian")
    answers: dict[str, Callable[[tuple[_Part, ...], float], float]] = {"prv": _prv, "pld": _pld, "rdp": _rdp}
    for name in (accountant, "pld", "rdp") if accountant == "prv" else (accountant,):
        with _quiet():
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


def replace_one_epsilon(ledger: Ledger, delta: float) -> float:
    """An upper bound on ε of the ledger where neighbours *replace* one image instead of adding or removing it.

    To replace is to remove and to add: the definition, applied twice, makes (2ε, (1 + e^ε) δ') of (ε, δ'). The bound
    takes a δ' with (1 + e^ε(δ')) δ' <= δ; infinite after a noiseless mechanism.
    """
    require(is_number(delta) and 0 < delta < 1, "delta between 0 and 1", delta)
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
