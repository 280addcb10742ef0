"""What was spent: the ledger of mechanisms, and the ε that three accountants compute from it.

Sources: Gopi, Lee and Wutschitz 2021 (PRV accountant), Mironov, Talwar and Zhang 2019 (RDP), Doroshenko et al. 2022
(PLD, connect the dots), Dong, Roth and Su 2022 (Gaussians compose to a Gaussian), Koskela et al. 2021 (what Fourier
transforms of privacy losses cost), Zhu, Dong and Wang 2022 (dominating pairs compose).

**The floor.** PRV and PLD compose by raising a Fourier transform to the number of steps. In double precision each step
moves δ(ε) by up to 4e-16 (the worst of 700 ledgers of 1 to 10⁶ steps, against the same transforms in extended
precision), whatever δ itself is: at a δ of that size their ε is noise, and may lie below the truth. (So it does in
microsoft/prv_accountant#17.) So they are asked for ε at δ less 8e-16 a step, and below 9e-16 a step not at all. What
answers there is RDP, which adds up logarithms and loses nothing at any δ, or the closed form of a Gaussian.
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
_ROUNDING, _FLOOR = 8e-16, 9e-16  # of δ, per step, in PRV and PLD: see above
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

    @property
    def floor(self) -> float:
        """The δ below which ``prv`` and ``pld`` would answer with rounding, and are not asked: about 1e-15 a step."""
        return _floor(_merge(self._mechanisms))

    def spent(self, delta: float, accountant: Accountant = "prv") -> Spent:
        """ε as `epsilon`, with the accountant that answered.

        ``prv`` gives the closed form when no mechanism subsamples. Otherwise it is the least of three bounds: RDP; the
        closed form of the Gaussian that the ledger would be if every step saw all images (sampling only helps: δ(ε) of
        a mixture is at most that of its parts, and dominating pairs compose); and, at a δ above the `floor`, the upper
        end of the PRV accountant's error bar. Where that bar is wider than 0.5% of ε or the accountant fails (small ε
        and many thousand steps) the PLD accountant stands in. PRV looks at removing an image, the worse direction for
        subsampled Gaussians; the tests check that against PLD, which looks at both.

        ε never rises with δ. The mesh of PRV and PLD, and whether they are asked, depend on the power of ten at or
        below δ, so between two powers ε falls as δ(ε) does; at the next power a mesh with a wider error bar may take
        over, and its ε is the least that is reported before. Over a whole power of ten ε falls by several error bars.

        Raises:
            PrivacyError: δ outside (0, 1), unknown accountant, ``pld`` below the `floor`, or a composition that the
                accountant can't handle.
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


def _floor(parts: Sequence[_Part]) -> float:
    return _FLOOR * sum(steps for _, _, steps in parts)


def _rounding(parts: Sequence[_Part], delta: float) -> float:
    # A ten-thousandth of δ is less than both overstate it by: PRV by the tails that it takes from RDP, PLD by its dots.
    return max(0.0, _ROUNDING * sum(steps for _, _, steps in parts) - 1e-4 * delta)


def _decade(delta: float, up: int = 0) -> float:
    """The power of ten at or below δ, or the one that many powers above it."""
    power = math.floor(math.log10(delta))
    power += (float(f"1e{power + 1}") <= delta) - (float(f"1e{power}") > delta)
    return float(f"1e{power + up}") or delta


@lru_cache(maxsize=1024)
def _spent(parts: tuple[_Part, ...], delta: float, accountant: Accountant) -> Spent:
    if accountant != "prv":
        return _asked(parts, delta, accountant)
    proven = _proven(parts, delta)
    if proven.epsilon == 0 or all(rate == 1 for _, rate, _ in parts) or _decade(delta) < _floor(parts):
        return proven
    found = min(_numeric(parts, delta), proven, key=_epsilon)
    above = _decade(delta, 1)
    if _decade(delta) < delta and above < 1 and found.epsilon < _proven(parts, above).epsilon:
        return max(found, _spent(parts, above, "prv"), key=_epsilon)
    return found


def _epsilon(spent: Spent) -> float:
    return spent.epsilon


def _whole(parts: Sequence[_Part]) -> float:
    """The noise multiplier of the one Gaussian that the parts would be if every step saw all images."""
    return 1 / math.hypot(*(math.sqrt(steps) / noise for noise, _, steps in parts))  # nothing overflows


@lru_cache(maxsize=1024)
def _proven(parts: tuple[_Part, ...], delta: float) -> Spent:
    """The bounds that hold at any δ: those without a Fourier transform."""
    gaussian = Spent(gaussian_epsilon(_whole(parts), delta), "gaussian")
    if all(rate == 1 for _, rate, _ in parts):
        return gaussian
    try:
        return min(gaussian, _asked(parts, delta, "rdp"), key=_epsilon)
    except PrivacyError:
        return gaussian


def _numeric(parts: tuple[_Part, ...], delta: float) -> Spent:
    for name in ("prv", "pld"):
        try:
            return _asked(parts, delta, name)
        except PrivacyError:
            continue
    return Spent(math.inf, "none")


def _asked(parts: tuple[_Part, ...], delta: float, accountant: str) -> Spent:
    """What one accountant says, or why it says nothing."""
    if accountant != "rdp" and delta < _floor(parts):
        raise PrivacyError(
            f"the {accountant} accountant expects delta of {_floor(parts):.2g} or more for this ledger, got {delta:g}: "
            "below it rounding decides; ask the rdp accountant"
        )
    answers: dict[str, Callable[[tuple[_Part, ...], float], float]] = {"prv": _prv, "pld": _pld, "rdp": _rdp}
    reason = f"no finite epsilon at delta={delta:g}"
    with _quiet():
        try:
            epsilon = float(answers[accountant](parts, delta))
        except (ArithmeticError, RuntimeError, ValueError, IndexError, MemoryError) as error:
            epsilon, reason = math.nan, str(error) or type(error).__name__
    if math.isfinite(epsilon) and epsilon >= 0:
        return Spent(epsilon, accountant)
    raise PrivacyError(
        f"the {accountant} accountant can't handle this ledger ({reason}): ask another; it is (noise multiplier, "
        f"sample rate, steps) = {parts}"
    )


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
    decade = _decade(delta)  # one mesh for every δ of a power of ten
    delta_error = decade / 1000
    lost = delta_error + _rounding(parts, decade)
    # Half-width of the mesh: Gopi et al. 2021, remark 5.6.
    tails = [_rdp([(noise, rate, 1)], delta_error / (8 * sum(steps)), _WHOLE_ORDERS) for noise, rate, _ in parts]
    half_width = max(_rdp(parts, delta_error / 4, _WHOLE_ORDERS), *tails) + 3
    if half_width > _PRV_WIDEST:
        raise ArithmeticError("the privacy loss is too wide for PRV")
    losses = [prv.PoissonSubsampledGaussianPRV(rate, noise) for noise, rate, _ in parts]
    highest = _rdp(parts, decade, _WHOLE_ORDERS)
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
        _, _, epsilon_upper = composed.compute_epsilon(decade, lost, error)
        if error <= accepted * epsilon_upper:
            return float(epsilon_upper if delta == decade else composed.compute_epsilon(delta, lost, error)[2])
        highest = min(highest, epsilon_upper)
    raise ArithmeticError("the PRV error bar is too wide")


def _pld_interval(parts: Sequence[_Part], delta: float) -> float:
    """Connect the dots is an upper bound for any interval; a share of the loss of a single step makes it tight, where
    dp-accounting's own 1e-4 gives a few percent too much for many small steps."""
    return 3e-3 * _rdp(parts, _decade(delta), _WHOLE_ORDERS) / math.sqrt(sum(steps for _, _, steps in parts))


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
    return composed.get_epsilon_for_delta(delta - _rounding(parts, _decade(delta)))


def replace_one_epsilon(ledger: Ledger, delta: float) -> float:
    """An upper bound on ε of the ledger where neighbours *replace* one image instead of adding or removing it.

    The lesser of two. To replace is to remove and to add: the definition, applied twice, makes (2ε, (1 + e^ε) δ') of
    (ε, δ'), and the bound takes a δ' with (1 + e^ε(δ')) δ' <= δ, if there is one above 1e-300. And two clipped vectors
    lie up to twice the sensitivity apart, so without subsampling (which only helps) it is half the noise multiplier, in
    closed form. Infinite after a noiseless mechanism.
    """
    epsilon = ledger.epsilon(delta)
    if not ledger.mechanisms or math.isinf(epsilon):
        return epsilon
    bound = gaussian_epsilon(_whole(_merge(ledger.mechanisms)) / 2, delta)
    while (smaller := 0.9 * delta * math.exp(-np.logaddexp(0.0, epsilon))) > 1e-300:
        previous, epsilon = epsilon, ledger.epsilon(smaller)
        if np.logaddexp(0.0, epsilon) + math.log(smaller) <= math.log(delta):
            return min(2 * epsilon, bound)
        epsilon = max(epsilon, previous)
    return bound


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
