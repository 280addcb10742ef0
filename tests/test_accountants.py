"""Accountants at any δ: a bound that is a bound where Fourier transforms see nothing but their own rounding."""

import json
import math
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.fft import irfft, rfft

from dpldm.privacy import accounting
from dpldm.privacy.accounting import Ledger
from dpldm.privacy.checks import PrivacyError
from dpldm.privacy.mechanisms import Mechanism, gaussian_epsilon
from dpldm.privacy.statement import from_record

NEARLY_ALL = 1 - 1e-12  # of the images, in every step: no accountant may use the closed form as if it were exact
DIGITS = 1e-9


def ledger(*parts: tuple) -> Ledger:
    return Ledger(Mechanism("release", "stage", *part) for part in parts)


def one_gaussian(whole: float, steps: int) -> Ledger:
    return ledger((whole * math.sqrt(steps), NEARLY_ALL, steps))


powers = st.one_of(st.floats(3, 15), st.floats(3, 300))
deltas = st.lists(powers.map(lambda power: 10.0**-power), min_size=2, max_size=3, unique=True).map(sorted)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.floats(-0.5, 1.5), st.floats(0, 6), deltas)
@example(0.0, 5.0, [1e-12, 1e-10])
@example(math.log10(0.5), 0.0, [2e-15, 4e-14])
@example(math.log10(3.0), 3.0, [1e-13, 1e-10])
@example(0.3, 2.0, [1e-300, 1e-13, 1.001e-13, 1e-4, 1.001e-4])
def test_one_gaussian_in_all_but_name_is_never_below_the_exact_epsilon(size, power, falling):
    whole, steps = 10**size, round(10**power)
    book = one_gaussian(whole, steps)
    epsilons = [book.epsilon(delta) for delta in falling]
    for delta, epsilon in zip(falling, epsilons, strict=True):
        assert epsilon >= gaussian_epsilon(whole, delta) * (1 - DIGITS), delta
        assert epsilon <= book.epsilon(delta, "rdp") * (1 + DIGITS), delta
        if delta > book.floor:  # each on its own, too
            assert book.epsilon(delta, "pld") >= gaussian_epsilon(whole, delta) * (1 - DIGITS), delta
    assert all(after <= before * (1 + DIGITS) for before, after in pairwise(epsilons))


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.floats(0.5, 3), st.floats(-3.0, -0.3), st.floats(0, 3), st.sampled_from([(), ((8.0,),)]), deltas)
@example(1.0, -2.0, 3.0, (), [1e-15, 2e-15, 1e-13, 9e-13, 1e-12, 2e-12, 9.99e-6, 1e-5, 1.01e-5])
@example(0.5, -1.0, 1.0, ((8.0,),), [1e-14, 9.6e-9, 9.8e-9, 9.99e-9, 1e-8, 1.01e-8])
def test_epsilon_never_rises_with_delta_and_is_never_above_rdp(noise_multiplier, rate, power, beside, rising):
    book = ledger((noise_multiplier, 10**rate, round(10**power)), *beside)
    epsilons = [book.epsilon(delta) for delta in rising]
    assert all(after <= before * (1 + DIGITS) for before, after in pairwise(epsilons))
    assert all(e <= book.epsilon(delta, "rdp") * (1 + DIGITS) for e, delta in zip(epsilons, rising, strict=True))


def test_where_the_mesh_changes_epsilon_does_not_rise(monkeypatch):
    """The error bar of the next power of ten may be wider; planted here, with room for it over a whole power only."""
    prv = accounting._prv

    def wider(parts, delta):
        return prv(parts, delta) * (1.005 if delta >= 1e-7 else 1.0)

    monkeypatch.setattr(accounting, "_prv", wider)
    book = ledger((1.25, 0.125, 50))
    assert book.epsilon(9.9e-8) >= book.epsilon(1e-7) > prv(((1.25, 0.125, 50),), 9.9e-8)
    accounting._spent.cache_clear()


@pytest.mark.parametrize("delta", [1e-13, 2e-15])
def test_below_the_floor_rdp_answers_and_is_named(delta):
    book = ledger((1.0, 0.01, 1000))
    assert delta < book.floor < 1e-12
    assert book.spent(delta) == accounting.Spent(book.epsilon(delta, "rdp"), "rdp")
    assert book.spent(1e-12).accountant == "prv"
    with pytest.raises(PrivacyError, match="expects delta of 9e-13 or more for this ledger"):
        book.epsilon(delta, "pld")


def test_a_recorded_ledger_is_never_reported_above_what_rdp_proves():
    path = min(Path("book/records").glob("*-dp-sinkhorn-eps1-*.json"))
    book = from_record(json.loads(path.read_text())["privacy"])
    for delta in (1e-11, 1e-12, 1e-13):
        assert book.epsilon(delta) <= book.epsilon(delta, "rdp")


@pytest.mark.skipif(np.finfo(np.longdouble).eps > 1e-18, reason="no extended precision on this machine")
@pytest.mark.parametrize(
    ("noise_multiplier", "rate", "steps"), [(0.47, 0.0038, 186), (0.52, 4.4e-4, 48_533), (1e3, NEARLY_ALL, 10**6)]
)
def test_rounding_stays_below_what_is_taken_from_delta(noise_multiplier, rate, steps):
    """The same transforms in extended precision; these are among the worst of 700 ledgers."""
    from opacus.accountants.analysis import prv

    width = accounting._rdp([(noise_multiplier, rate, steps)], 1e-12) + 3
    mesh = prv.Domain.create_aligned(-width, width, width / (2**14 - 1.5))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        loss = prv.PoissonSubsampledGaussianPRV(rate, noise_multiplier)
        step = prv.discretize(prv.TruncatedPrivacyRandomVariable(loss, mesh.t_min, mesh.t_max), mesh)
        rounded = prv.compose_heterogeneous([step], [steps])
    exact = irfft(np.exp(steps * np.log(rfft(step.pmf.astype(np.longdouble)))))
    error = rounded.pmf - np.roll(exact, steps - 1 + (len(exact) // 2 if steps % 2 == 0 else 0))
    losses = rounded.domain.ts.astype(np.longdouble)
    above = [np.flip(np.flip(weighted).cumsum()) for weighted in (error, error * np.exp(-losses))]
    delta_error = np.abs(above[0] - np.exp(losses) * above[1])[losses >= 0].max()
    assert steps * 1e-17 < delta_error < steps * accounting._ROUNDING < ledger((1.0, 0.5, steps)).floor
