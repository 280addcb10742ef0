"""Privacy: accountants against closed forms, integrals and each other; noise, guard, records."""

import copy
import itertools
import json
import math
import os
import pickle
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from dpldm.privacy import accounting, budget
from dpldm.privacy import statement as privacy_statement
from dpldm.privacy.accounting import Ledger
from dpldm.privacy.budget import Allowance, calibrate, split
from dpldm.privacy.checks import PrivacyError
from dpldm.privacy.guard import PrivateData
from dpldm.privacy.mechanisms import Mechanism, PrivacySpec, gaussian_epsilon, gaussian_noise_multiplier
from dpldm.privacy.noise import NoiseSource, clip_rows, gaussian_mechanism
from dpldm.privacy.statement import RELATION, from_record, statement, to_record

DELTA = 1e-5


def mechanism(noise_multiplier: float, sample_rate: float = 1.0, steps: int = 1) -> Mechanism:
    return Mechanism("release", "stage", noise_multiplier, sample_rate, steps)


def ledger(*parts: tuple) -> Ledger:
    return Ledger(mechanism(*part) for part in parts)


def integrated_delta(noise_multiplier: float, sample_rate: float, epsilon: float, remove: bool = True) -> float:
    """δ(ε) of one subsampled Gaussian step, as the integral of max(0, p - e^ε q) over the real line."""
    x = np.linspace(-12 * noise_multiplier, 1 + 12 * noise_multiplier, 40_001)
    without = stats.norm.pdf(x, 0, noise_multiplier)
    with_image = (1 - sample_rate) * without + sample_rate * stats.norm.pdf(x, 1, noise_multiplier)
    p, q = (with_image, without) if remove else (without, with_image)
    return float(integrate.trapezoid(np.maximum(p - math.exp(epsilon) * q, 0.0), x))


# Closed form ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise_multiplier", [0.4, 1.0, 4.0])
def test_gaussian_epsilon_is_the_integral_of_the_privacy_loss(noise_multiplier):
    epsilon = gaussian_epsilon(noise_multiplier, DELTA)
    assert integrated_delta(noise_multiplier, 1.0, epsilon) == pytest.approx(DELTA, rel=1e-5)
    assert integrated_delta(noise_multiplier, 1.0, 0.99 * epsilon) > 1.01 * DELTA  # a wrong ε is seen


@given(st.floats(0.01, 50), st.sampled_from([1e-3, 1e-5, 1e-9]))
def test_gaussian_noise_there_and_back(epsilon, delta):
    noise_multiplier = gaussian_noise_multiplier(epsilon, delta)
    back = gaussian_epsilon(noise_multiplier, delta)
    assert epsilon * (1 - 1e-6) <= back <= epsilon


def test_gaussian_limits():
    assert gaussian_epsilon(0.0, DELTA) == math.inf
    assert gaussian_epsilon(1e6, DELTA) == 0.0  # the two outputs differ by less than δ
    assert gaussian_epsilon(0.05, DELTA) < 0.5 / 0.05**2 + math.sqrt(2 * math.log(1 / DELTA)) / 0.05


def test_split_spends_the_whole_budget_and_no_more():
    noise = split(2.0, DELTA, {"counts": 0.1, "mean": 0.3, "moment": 0.6})
    spent = ledger(*((value,) for value in noise.values())).spent(DELTA)
    assert spent.accountant == "gaussian"
    assert 2.0 * (1 - 1e-6) <= spent.epsilon <= 2.0
    assert noise["counts"] == pytest.approx(noise["mean"] * math.sqrt(3))


def test_split_in_tenths_is_not_stopped_by_rounding():
    noise = split(1.0, DELTA, {str(index): 0.1 for index in range(10)})
    assert ledger(*((value,) for value in noise.values())).epsilon(DELTA) <= 1.0


@pytest.mark.parametrize("shares", [{"a": 0.5, "b": 0.6}, {"a": 0.0}, {"a": -0.1}, {"a": math.nan}])
def test_split_refuses(shares):
    with pytest.raises(PrivacyError, match="share"):
        split(1.0, DELTA, shares)


# Accountants ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("noise_multiplier", "sample_rate"), [(0.7, 0.1), (1.2, 0.5), (0.9, 0.01)])
def test_one_subsampled_step_is_the_integral_of_the_privacy_loss(noise_multiplier, sample_rate):
    def worse_direction(epsilon):
        return max(integrated_delta(noise_multiplier, sample_rate, epsilon, remove) for remove in (True, False))

    for accountant in ("prv", "pld"):
        epsilon = ledger((noise_multiplier, sample_rate)).epsilon(DELTA, accountant)
        assert worse_direction(epsilon) <= DELTA * (1 + 1e-4), accountant
        assert worse_direction(0.99 * epsilon) > DELTA, accountant


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("noise_multiplier", [0.3, 4.0, 60.0])
def test_no_accountant_goes_below_the_exact_gaussian(noise_multiplier):
    exact = gaussian_epsilon(noise_multiplier, DELTA)
    parts = ((noise_multiplier, 1.0, 1),)
    assert exact <= accounting._prv(parts, DELTA) <= 1.01 * exact
    assert exact <= accounting._pld(parts, DELTA) <= 1.01 * exact
    assert exact <= accounting._rdp(parts, DELTA)


def agree(*parts: tuple, delta: float = DELTA) -> None:
    book = ledger(*parts)
    prv, pld, rdp = (book.epsilon(delta, accountant) for accountant in ("prv", "pld", "rdp"))
    assert prv == pytest.approx(pld, rel=0.01)
    assert prv >= 0.999 * pld  # never below an independent accountant by more than rounding
    assert rdp >= 0.999 * prv


@pytest.mark.parametrize(
    "parts",
    [
        ((3.0, 0.001, 100),),
        ((0.45, 0.01, 100),),
        ((1.5, 0.1, 1000),),
        ((0.6, 0.5, 1),),
        ((20.0,), (30.0,), (1.5, 0.1, 1000)),
        ((4.0,), (4.0, 0.05, 500), (2.0, 0.2, 10)),
    ],
)
def test_prv_and_pld_agree(parts):
    agree(*parts)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("epsilon", [0.05, 1.0, 20.0])
@pytest.mark.parametrize("steps", [1, 100, 20_000])
@pytest.mark.parametrize("sample_rate", [0.001, 0.01, 0.1, 0.5, 1.0])
def test_prv_and_pld_agree_at_extremes(epsilon, steps, sample_rate):
    found = calibrate([], mechanism(1.0, sample_rate, steps), epsilon, DELTA)
    spent = Ledger([found]).spent(DELTA)
    assert 0.98 * epsilon <= spent.epsilon <= epsilon
    agree((found.noise_multiplier, sample_rate, steps))
    agree((2 * gaussian_noise_multiplier(epsilon, DELTA),), (found.noise_multiplier, sample_rate, steps))
    if spent.accountant == "pld":  # PRV's error bar is too wide; the middle of it must still agree
        assert opacus_prv([(found.noise_multiplier, sample_rate, steps)], 0.002) - 0.002 == pytest.approx(
            spent.epsilon, rel=0.01
        )


def opacus_prv(history: list[tuple[float, float, int]], error: float) -> float:
    """The upper end of the error bar by Opacus' accountant, left to itself."""
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = history
    return accountant.get_epsilon(DELTA, eps_error=error)


@pytest.mark.filterwarnings("ignore")
def test_opacus_own_accountant_gives_the_same_epsilon():
    parts = [(20.0, 1.0, 1), (1.5, 0.1, 200)]
    assert ledger(*parts).epsilon(DELTA) == pytest.approx(opacus_prv(parts, 0.005), abs=0.01)


def test_rdp_is_clearly_looser_for_one_small_sample():
    book = ledger((1.0, 0.001))
    assert book.epsilon(DELTA, "rdp") > 10 * book.epsilon(DELTA)


def test_where_prv_is_too_wide_pld_answers_and_is_named():
    spent = ledger((100.0, 0.01, 20_000)).spent(DELTA)
    assert spent.accountant == "pld"
    assert spent.epsilon == pytest.approx(
        ledger((1.0 / math.sqrt(2e4 * math.expm1(1e-4) * 1e-4),)).epsilon(DELTA), 0.01
    )


@pytest.mark.parametrize("noise_multiplier", [0.01, 0.03])
def test_huge_losses_are_not_understated(noise_multiplier):
    # Opacus' PRV overflows here and would answer 708 instead of 5373 for the first.
    spent = ledger((noise_multiplier, 0.1)).spent(DELTA)
    assert spent.accountant == "pld"
    # sampled with probability 0.1, the Gaussian has to keep δ/0.1: ε = log(1 + 0.1 (e^ε' - 1)), here ε' + log 0.1
    exact = gaussian_epsilon(noise_multiplier, DELTA / 0.1) + math.log(0.1)
    assert exact <= spent.epsilon <= 1.01 * exact


@pytest.mark.parametrize("broken", [lambda parts, delta: math.nan, lambda parts, delta: 1 / 0])
def test_broken_prv_falls_back(monkeypatch, broken):
    monkeypatch.setattr(accounting, "_prv", broken)
    spent = ledger((1.234, 0.1, 10)).spent(3e-5)
    assert spent == accounting.Spent(ledger((1.234, 0.1, 10)).epsilon(3e-5, "pld"), "pld")
    accounting._spent.cache_clear()


def test_gaussians_compose_to_one_gaussian():
    merged = ledger((3.0,), (4.0, 1.0, 2)).epsilon(DELTA)
    assert merged == pytest.approx(gaussian_epsilon(1 / math.sqrt(1 / 9 + 2 / 16), DELTA))
    # dp-accounting composes them one by one
    assert merged == pytest.approx(accounting._pld(((3.0, 1.0, 1), (4.0, 1.0, 2)), DELTA), rel=0.003)


def test_order_of_composition_does_not_matter():
    parts = [(20.0,), (1.5, 0.1, 100), (30.0,), (2.0, 0.05, 50), (1.5, 0.1, 20)]
    answers = {ledger(*order).epsilon(DELTA) for order in itertools.islice(itertools.permutations(parts), 0, 120, 17)}
    assert len(answers) == 1
    assert answers == {ledger((20.0,), (30.0,), (2.0, 0.05, 50), (1.5, 0.1, 120)).epsilon(DELTA)}


@settings(max_examples=5, deadline=None, derandomize=True)
@given(st.floats(0.6, 5), st.floats(0.01, 0.3), st.integers(1, 300))
def test_epsilon_is_monotone(noise_multiplier, sample_rate, steps):
    base = ledger((noise_multiplier, sample_rate, steps)).epsilon(DELTA)
    assert ledger((1.2 * noise_multiplier, sample_rate, steps)).epsilon(DELTA) < base
    assert ledger((noise_multiplier, 1.2 * sample_rate, steps)).epsilon(DELTA) > base
    assert ledger((noise_multiplier, sample_rate, 2 * steps)).epsilon(DELTA) > base
    assert ledger((noise_multiplier, sample_rate, steps), (5.0,)).epsilon(DELTA) > base


@given(st.lists(st.tuples(st.floats(0.5, 50), st.integers(1, 20)), min_size=1, max_size=6))
def test_composition_lies_between_the_worst_part_and_the_sum(parts):
    alone = [ledger((noise, 1.0, steps)).epsilon(DELTA) for noise, steps in parts]
    together = ledger(*((noise, 1.0, steps) for noise, steps in parts)).epsilon(DELTA)
    precision = math.fsum(steps / noise**2 for noise, steps in parts)
    assert together == pytest.approx(gaussian_epsilon(precision**-0.5, DELTA), rel=1e-6, abs=1e-9)
    assert together >= max(alone) * (1 - 1e-9)
    # basic composition adds δ as well as ε, so the sum is taken at a smaller δ
    smaller = [ledger((noise, 1.0, steps)).epsilon(DELTA / len(parts)) for noise, steps in parts]
    assert together <= sum(smaller) * (1 + 1e-9)


@given(st.floats(0.05, 20), st.lists(st.floats(0.05, 1), min_size=1, max_size=5), st.integers(1, 30))
def test_parts_of_an_allowance_add_up_to_it(epsilon, weights, steps):
    whole = Allowance(gaussian_noise_multiplier(epsilon, DELTA), DELTA)
    shares = [weight / sum(weights) for weight in weights]
    book = Ledger(whole.part(min(share, 1.0)).mechanism("sum", "stage", 2.0, steps) for share in shares)
    assert book.epsilon(DELTA) == pytest.approx(epsilon, rel=1e-6)


def test_allowance_for_dp_sgd_costs_what_the_gaussian_would():
    whole = Allowance(gaussian_noise_multiplier(2.0, DELTA), DELTA)
    found = whole.part(0.5).sgd("gradients", "stage", n=10_000, batch=500, steps=100, clip_norm=0.5)
    assert (found.sample_rate, found.steps, found.sensitivity) == (0.05, 100, 0.5)
    gaussian = ledger((whole.part(0.5).noise_multiplier,)).epsilon(DELTA)
    assert Ledger([found]).epsilon(DELTA) == pytest.approx(gaussian, rel=0.05)


@pytest.mark.parametrize(("epsilon", "share"), [(1.0, 0.08), (10.0, 0.3)])
def test_dp_sgd_and_gaussians_of_one_allowance_stay_within_it(epsilon, share):
    """DP-SGD with the ε of its part would not do: at ε = 1 the two together would spend 0.07% too much."""
    whole = Allowance(gaussian_noise_multiplier(epsilon, DELTA), DELTA)
    sums = whole.part(1 - share)
    fixed = [sums.part(0.4).mechanism("sums", "stage", 1.0), sums.part(0.6).mechanism("more", "stage", 1.0, 3)]
    found = whole.part(share).sgd("gradients", "stage", n=60_000, batch=4096, steps=150, clip_norm=0.2)
    assert 0.98 * epsilon <= Ledger([*fixed, found]).epsilon(DELTA) <= epsilon
    alone = whole.sgd("gradients", "stage", n=60_000, batch=4096, steps=150, clip_norm=0.2)
    assert 0.98 * epsilon <= Ledger([alone]).epsilon(DELTA) <= epsilon


@pytest.mark.parametrize("share", [0.0, 1.1, math.nan])
def test_allowance_refuses_other_shares(share):
    with pytest.raises(PrivacyError, match="share"):
        Allowance(1.0, DELTA).part(share)


def test_empty_and_noiseless_ledgers():
    assert Ledger().epsilon(DELTA) == 0.0
    assert ledger((0.0, 1e-6), (5.0,)).epsilon(DELTA) == math.inf
    assert ledger((0.0,)).epsilon(DELTA, "pld") == math.inf


def test_ledger_entries_cannot_be_removed_or_be_anything_else():
    book = ledger((1.0,))
    assert isinstance(book.mechanisms, tuple)
    with pytest.raises(PrivacyError, match="Mechanism"):
        book.add("release")
    with pytest.raises(PrivacyError, match="accountant"):
        book.epsilon(DELTA, "gdp")
    with pytest.raises(PrivacyError, match="delta"):
        book.epsilon(0.0)


# Calibration ---------------------------------------------------------------------------------------------------------


def check_calibration(fixed: list[Mechanism], template: Mechanism, epsilon: float, delta: float = DELTA) -> None:
    found = calibrate(fixed, template, epsilon, delta)
    assert 0.98 * epsilon <= Ledger([*fixed, found]).epsilon(delta) <= epsilon
    assert replace(found, noise_multiplier=1.0) == replace(template, noise_multiplier=1.0)
    less = replace(found, noise_multiplier=found.noise_multiplier * (1 - 5e-3))
    assert Ledger([*fixed, less]).epsilon(delta) > epsilon


@settings(max_examples=3, deadline=None, derandomize=True)
@given(st.floats(0.5, 12), st.floats(0.01, 0.3), st.integers(1, 500), st.floats(0.05, 0.5))
def test_calibrate_reaches_the_target_and_no_more(epsilon, sample_rate, steps, share):
    fixed = [mechanism(split(epsilon, DELTA, {"statistics": share})["statistics"])]
    check_calibration(fixed, mechanism(1.0, sample_rate, steps), epsilon)


@pytest.mark.slow
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    st.floats(0.05, 20),
    st.floats(0.001, 0.6),
    st.integers(1, 5000),
    st.floats(0.05, 0.9),
    st.sampled_from([1e-5, 1e-7]),
)
def test_calibrate_reaches_the_target_and_no_more_widely(epsilon, sample_rate, steps, share, delta):
    fixed = [mechanism(split(epsilon, delta, {"statistics": share})["statistics"])]
    check_calibration(fixed, mechanism(1.0, sample_rate, steps), epsilon, delta)


def test_calibrate_gaussians_is_exact():
    found = calibrate([mechanism(5.0)], mechanism(1.0, steps=3), 1.0, DELTA)
    expected = math.sqrt(3 / (gaussian_noise_multiplier(1.0, DELTA) ** -2 - 1 / 25))
    assert found.noise_multiplier == pytest.approx(expected, rel=1e-6)
    assert Ledger([mechanism(5.0), found]).epsilon(DELTA) <= 1.0


def test_calibrate_when_nothing_is_left_names_what_is_spent():
    with pytest.raises(PrivacyError, match=r"already spend epsilon=4\.3\d+ of 1;"):
        calibrate([mechanism(1.0)], mechanism(1.0, 0.1, 10), 1.0, DELTA)
    with pytest.raises(PrivacyError, match="epsilon=inf"):
        calibrate([mechanism(0.0)], mechanism(1.0, 0.1, 10), 1.0, DELTA)


def test_calibrate_when_any_noise_will_do_stays_finite():
    found = calibrate([], mechanism(1.0, 1e-6, 1), 1.0, DELTA)  # the image is seen with probability below δ
    assert 0 < found.noise_multiplier <= 0.02


# Specification -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"epsilon": 1.0, "noise_multiplier": 1.0},
        {"epsilon": 0.0},
        {"epsilon": -1.0},
        {"epsilon": math.nan},
        {"epsilon": math.inf},
        {"epsilon": 1e-4},
        {"epsilon": "3"},
        {"epsilon": True},
        {"noise_multiplier": -1.0},
        {"noise_multiplier": math.inf},
        {"epsilon": 1.0, "delta": 0.0},
        {"epsilon": 1.0, "delta": 1.0},
        {"epsilon": 1.0, "delta": math.nan},
    ],
)
def test_spec_refuses_in_one_line(arguments):
    with pytest.raises(PrivacyError) as error:
        PrivacySpec(**arguments)
    assert "\n" not in str(error.value)


def test_spec_checks_delta_against_the_number_of_images():
    spec = PrivacySpec(epsilon=1.0, delta=1e-5)
    spec.check(60_000)
    with pytest.raises(PrivacyError, match="below 1/N"):
        spec.check(100_000)
    with pytest.raises(PrivacyError, match="at least one"):
        spec.check(0)
    PrivacySpec(noise_multiplier=0.0).check(60_000)


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""},
        {"stage": ""},
        {"noise_multiplier": -0.1},
        {"noise_multiplier": math.nan},
        {"sample_rate": 0.0},
        {"sample_rate": 1.01},
        {"steps": 0},
        {"steps": 1.5},
        {"steps": True},
        {"sensitivity": 0.0},
        {"sensitivity": math.inf},
    ],
)
def test_mechanism_refuses_in_one_line(change):
    with pytest.raises(PrivacyError) as error:
        replace(mechanism(1.0), **change)
    assert "\n" not in str(error.value)


# Noise ---------------------------------------------------------------------------------------------------------------

SOURCES = [pytest.param(lambda: NoiseSource.seeded(7), id="seeded"), pytest.param(NoiseSource.secure, id="secure")]


def variance_is(draws: torch.Tensor, std: float) -> bool:
    """Within 5 standard errors, sqrt(2/n), of std²; a right source fails once in two million."""
    return abs(float(draws.double().square().mean()) / std**2 - 1) < 5 * math.sqrt(2 / draws.numel())


@pytest.mark.parametrize("source", SOURCES)
def test_normal_has_the_right_distribution(source):
    draws = source().normal((200, 1000), std=3.0)
    assert draws.dtype == torch.float32
    assert variance_is(draws, 3.0)
    assert not variance_is(draws, 2.9)
    assert not variance_is(draws, 3.1)
    assert abs(float(draws.mean())) < 5 * 3 / math.sqrt(draws.numel())
    # Kolmogorov-Smirnov: sqrt(n) D exceeds 2.7 with probability 1e-6
    distance = stats.kstest(draws.flatten().numpy(), stats.norm(0, 3).cdf).statistic
    assert distance * math.sqrt(draws.numel()) < 2.7
    wrong = stats.kstest(draws.flatten().numpy(), stats.t(20, 0, 3).cdf).statistic
    assert wrong * math.sqrt(draws.numel()) > 2.7


@pytest.mark.parametrize("source", SOURCES)
def test_poisson_mask_takes_each_element_independently(source):
    noise = source()
    sizes = torch.stack([noise.poisson_mask(1000, 0.1) for _ in range(2000)])
    share = float(sizes.double().mean())
    assert abs(share - 0.1) < 5 * math.sqrt(0.09 / sizes.numel())
    # a fixed batch size would have no variance; Poisson sampling has n q (1-q)
    assert float(sizes.sum(1).double().var()) == pytest.approx(90, rel=5 * math.sqrt(2 / 2000))
    assert noise.poisson_mask(50, 1.0).all()
    assert not noise.poisson_mask(50, 0.0).any()
    assert noise.poisson_mask(0, 0.5).shape == (0,)


def test_seeded_repeats_and_secure_does_not():
    def draw(noise):
        return torch.cat([noise.normal((5,)), noise.normal((5,)), noise.poisson_mask(5, 0.5).float()])

    assert torch.equal(draw(NoiseSource.seeded(3)), draw(NoiseSource.seeded(3)))
    assert not torch.equal(draw(NoiseSource.seeded(3)), draw(NoiseSource.seeded(4)))
    assert not torch.equal(draw(NoiseSource.secure()), draw(NoiseSource.secure()))
    assert NoiseSource.secure().is_secure
    assert not NoiseSource.seeded(0).is_secure
    with pytest.raises(PrivacyError, match="seed"):
        NoiseSource.seeded(-1)


@pytest.mark.parametrize("byte", [b"\x00", b"\xff"])
def test_secure_noise_is_finite_at_both_ends_of_the_generator(monkeypatch, byte):
    monkeypatch.setattr(os, "urandom", lambda count: byte * count)
    noise = NoiseSource.secure()
    assert 16 < abs(noise.normal((1,)).item()) < 17
    assert 0 < noise._uniform(1).item() < 1


def test_gaussian_mechanism_adds_only_noise_of_the_stated_scale():
    value = torch.zeros(400, 500)
    noisy = gaussian_mechanism(value, sensitivity=0.5, noise_multiplier=4.0, noise=NoiseSource.seeded(1))
    assert variance_is(noisy, 2.0)
    assert not variance_is(noisy, 0.5)
    assert not variance_is(noisy, 4.0)
    assert noisy.dtype == torch.float32
    assert noisy.shape == value.shape


def test_gaussian_mechanism_on_counts_and_without_noise():
    counts = torch.tensor([5, 7])
    noisy = gaussian_mechanism(counts, 1.0, 1.0, NoiseSource.seeded(1))
    assert noisy.dtype == torch.float64
    assert torch.equal(counts, torch.tensor([5, 7]))
    assert torch.equal(gaussian_mechanism(counts, 1.0, 0.0, NoiseSource.seeded(1)), counts.double())
    with pytest.raises(PrivacyError, match="sensitivity"):
        gaussian_mechanism(counts, 0.0, 1.0, NoiseSource.seeded(1))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-3, 1e3), st.sampled_from([torch.float32, torch.float64]))
def test_clip_rows_never_exceeds_the_bound(seed, max_norm, dtype):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(50, 3, 7, generator=generator, dtype=dtype) * max_norm / 4
    norms = x.double().flatten(1).norm(dim=1)
    clipped = clip_rows(x, max_norm)
    assert clipped.dtype == dtype
    exact = [math.sqrt(math.fsum(value * value for value in row)) for row in clipped.flatten(1).double().tolist()]
    assert max(exact) <= max_norm
    short = norms <= max_norm
    assert torch.equal(clipped[short], x[short])
    torch.testing.assert_close(
        clipped[~short].double().flatten(1).norm(dim=1), norms[~short].clamp(max=max_norm), rtol=1e-5, atol=0
    )


def test_plain_float32_clipping_does_exceed_the_bound():
    x = torch.randn(1000, 21, generator=torch.Generator().manual_seed(0)) * 10
    plain = x / x.norm(dim=1, keepdim=True)
    assert (plain.double().norm(dim=1) > 1).any()
    assert (clip_rows(x, 1.0).double().norm(dim=1) <= 1).all()


def test_clip_rows_with_zero_broken_and_no_rows():
    x = torch.tensor([[0.0, 0.0], [math.nan, 1.0], [math.inf, 0.0], [3.0, 4.0], [1e30, 1e30]])
    clipped = clip_rows(x, 1.0)
    assert torch.equal(clipped[:3], torch.zeros(3, 2))
    torch.testing.assert_close(clipped[3], torch.tensor([0.6, 0.8]))
    assert clipped.isfinite().all()
    assert clip_rows(torch.zeros(0, 4), 1.0).shape == (0, 4)


# Guard ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def images():
    return torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def labels():
    return torch.arange(12) % 3


def test_reading_charges_the_ledger_first(images, labels):
    book = Ledger()
    data = PrivateData(images, labels, 3, book)
    assert book.epsilon(DELTA) == 0
    got_images, got_labels = data.read(mechanism(2.0, 0.5, 10))
    assert got_images is images
    assert got_labels is labels
    assert book.mechanisms == (mechanism(2.0, 0.5, 10),)
    assert data.reads == ("release",)
    with pytest.raises(PrivacyError):
        data.read("release")
    assert data.reads == ("release",)
    data.read(mechanism(0.0))
    assert book.epsilon(DELTA) == math.inf


def test_guard_shows_nothing_else(images, labels):
    other = PrivateData(1 - images, (labels + 1) % 3, 3, Ledger())
    data = PrivateData(images, labels, 3, Ledger())
    assert (len(data), data.image_shape, data.num_classes) == (12, (1, 4, 4), 3)
    assert repr(data) == repr(other) == "PrivateData(12 images of shape (1, 4, 4), 3 classes)"
    assert str(data) == str(other)
    with pytest.raises(TypeError):
        vars(data)
    plain = 0
    for name in dir(data):  # every attribute that is not code is the same for other images
        value = getattr(data, name)
        assert not isinstance(value, torch.Tensor | np.ndarray)
        if isinstance(value, int | str | tuple | list) and name != "__doc__":
            assert value == getattr(other, name)
            plain += 1
    assert plain >= 4


@pytest.mark.parametrize("copier", [pickle.dumps, copy.copy, copy.deepcopy])
def test_guard_cannot_be_copied(images, labels, copier):
    with pytest.raises(PrivacyError, match="pickled or copied"):
        copier(PrivateData(images, labels, 3, Ledger()))


def test_guard_cannot_be_iterated_or_indexed(images, labels):
    data = PrivateData(images, labels, 3, Ledger())
    with pytest.raises(TypeError):
        list(data)
    with pytest.raises(TypeError):
        data[0]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x, y: (x[0], y, 3), "float32"),
        (lambda x, y: (x.double(), y, 3), "float32"),
        (lambda x, y: (x[:0], y[:0], 3), "N > 0"),
        (lambda x, y: (x * 255, y, 3), "from 0 to 1"),
        (lambda x, y: (x - 1, y, 3), "from 0 to 1"),
        (lambda x, y: (x.where(x < x.max(), torch.tensor(math.nan)), y, 3), "from 0 to 1"),
        (lambda x, y: (x, y[:-1], 3), "one per image"),
        (lambda x, y: (x, y.float(), 3), "int64"),
        (lambda x, y: (x, y, 2), "labels from 0 to 1"),
        (lambda x, y: (x, y - 1, 3), "labels from 0 to 2"),
        (lambda x, y: (x, y, 0), "at least one class"),
    ],
)
def test_guard_refuses_bad_input_in_one_line(images, labels, spoil, message):
    with pytest.raises(PrivacyError, match=message) as error:
        PrivateData(*spoil(images, labels), Ledger())
    assert "\n" not in str(error.value)


# Records -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def record():
    book = Ledger([Mechanism("counts", "compression", 20.0), Mechanism("network", "diffusion", 2.0, 0.1, 50, 0.5)])
    return to_record(PrivacySpec(epsilon=10.0), book)


def test_record_has_the_agreed_keys_and_comes_back(record):
    assert set(record) == {
        "epsilon_target",
        "epsilon",
        "epsilon_rdp",
        "delta",
        "relation",
        "accountant",
        "secure_mode",
        "mechanisms",
    }
    assert set(record["mechanisms"][0]) == {
        "name",
        "stage",
        "noise_multiplier",
        "sample_rate",
        "steps",
        "sensitivity",
    }
    read_back = json.loads(json.dumps(record, allow_nan=False))
    assert read_back == record
    book = from_record(read_back)
    assert [asdict(entry) for entry in book.mechanisms] == record["mechanisms"]
    assert book.epsilon(DELTA) == record["epsilon"] <= record["epsilon_rdp"]
    assert record["accountant"] == "prv"
    assert record["relation"] == RELATION


def test_record_of_a_run_without_privacy_has_no_epsilon():
    spec = PrivacySpec(noise_multiplier=0.0)
    for book in (ledger((0.0,)), Ledger()):
        written = to_record(spec, book)
        assert written["epsilon"] is written["epsilon_rdp"] is written["epsilon_target"] is None
        with pytest.raises(PrivacyError, match="not differentially private"):
            statement(written)


def test_record_refuses_to_exceed_the_target():
    with pytest.raises(PrivacyError, match="more than the target"):
        to_record(PrivacySpec(epsilon=1.0), ledger((3.7,)))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda record: record.pop("mechanisms"),
        lambda record: record.update(relation="replace one"),
        lambda record: record.update(mechanisms="none"),
        lambda record: record["mechanisms"][0].pop("steps"),
        lambda record: record["mechanisms"][0].update(extra=1),
        lambda record: record["mechanisms"][0].update(steps=-1),
    ],
)
def test_broken_record_is_refused(record, spoil):
    spoil(record)
    with pytest.raises(PrivacyError):
        from_record(record)


def test_statement_says_what_is_guaranteed(record):
    said = statement(record)
    json.dumps(said, allow_nan=False)
    assert said["epsilon"] == record["epsilon"]
    assert said["delta"] == DELTA
    assert said["relation"] == RELATION
    assert f"e^{record['epsilon']:.4g}" in said["claim"]
    assert "1e-05" in said["claim"]
    assert said["mechanisms"] == ["counts", "network"]


@pytest.mark.parametrize(("written", "noise"), [(True, "secure"), (False, "seeded"), (None, "unknown")])
def test_statement_says_where_the_noise_came_from(record, written, noise):
    if written is None:
        del record["secure_mode"]  # as in records of earlier versions
    else:
        record["secure_mode"] = written
    said = statement(record)
    assert said["noise"] == noise
    assert ("protects nobody" in said["assumptions"][2]) == (noise != "secure")
    assert ("it is NOT" in said["assumptions"][2]) == (noise == "seeded")


@pytest.mark.parametrize("secure", [True, False])
def test_record_keeps_where_the_noise_came_from(secure):
    spec = PrivacySpec(epsilon=10.0, secure_mode=secure)
    assert statement(to_record(spec, Ledger([Mechanism("sums", "diffusion", 2.0)])))["noise"] == (
        "secure" if secure else "seeded"
    )


def test_statement_refuses_reading_a():
    """Only the encoder is charged: what is trained on its latents is not private, whatever the ledger adds up to."""
    encoder = Ledger([Mechanism("image mean", "compression", 9.0), Mechanism("second moments", "compression", 4.0)])
    written = to_record(PrivacySpec(epsilon=10.0), encoder)
    with pytest.raises(PrivacyError, match="a private encoder does not make the latents private"):
        statement(written)
    honest = Ledger([*encoder.mechanisms, Mechanism("latent sums", "diffusion", 4.0)])
    assert statement(to_record(PrivacySpec(epsilon=10.0), honest))["epsilon"] > written["epsilon"]


def test_a_ledger_with_a_free_look_becomes_no_record():
    """The true ledger of reading A: the latents are read without noise."""
    book = Ledger([Mechanism("image mean", "compression", 9.0), Mechanism("latent sums", "diffusion", 0.0)])
    with pytest.raises(PrivacyError, match="spent epsilon=inf, more than the target"):
        to_record(PrivacySpec(epsilon=10.0), book)


@pytest.mark.parametrize(
    ("epsilon", "said"), [(5.0, "e^5 = 148.4,"), (999.9, "e^999.9, about 10^434,"), (1e5, "10^43429,")]
)
def test_the_factor_of_a_large_epsilon_is_not_that_of_700(record, epsilon, said):
    claim = statement({**record, "epsilon": epsilon})["claim"]
    assert f"{said} plus 1e-05" in claim


@pytest.mark.parametrize(
    ("epsilon", "delta", "reported", "pld"),
    [
        (10.0, 1e-15, "RDP", False),
        (1e5, 1e-5, "PLD", True),
        (0.5, 1e-300, "closed form", False),
        (3.0, 1e-5, "PRV", True),
    ],
)
def test_statement_in_words_names_who_answered_and_who_cannot(epsilon, delta, reported, pld):
    whole = Allowance(gaussian_noise_multiplier(epsilon, delta), delta)
    sums = whole.part(0.3).mechanism("sums", "compression", 1.0)
    gradients = whole.part(0.7).sgd("gradients", "diffusion", n=60_000, batch=4096, steps=150, clip_norm=1.0)
    written = to_record(PrivacySpec(epsilon, delta), Ledger([sums, gradients]))
    lines = [line for line in privacy_statement.in_words(written) if line.startswith("ε by")]
    assert lines[0].startswith(f"ε by {reported} (reported) ")
    assert f"{written['epsilon']:.4f} at δ = {delta:g}" in lines[0]
    assert ["PLD: not available here: " in line for line in lines if "PLD" in line][-1] is not pld
    assert sum("(reported)" in line for line in lines) == 1


def test_statement_in_words_has_the_whole_ledger(record):
    lines = privacy_statement.in_words(record)
    text, book = "\n".join(lines), from_record(record)
    said = statement(record)
    assert lines[0] == said["claim"]
    for part in (said["relation"], said["sampling"], *said["public"], *said["assumptions"]):
        assert part in text
    for entry, share in zip(book.mechanisms, budget.budget_shares(book, DELTA), strict=True):
        (line,) = [line for line in lines if f" {entry.name} " in line]
        assert f"{share:.0%}" in line
        assert (
            f"noise multiplier {entry.noise_multiplier:g}, sample rate {entry.sample_rate:g}, {entry.steps} ×" in line
        )
    for accountant in ("prv", "pld", "rdp"):
        (line,) = [line for line in lines if f"by {accountant.upper()} " in line]
        assert f"{book.epsilon(DELTA, accountant):.4f}" in line
    assert f"{accounting.replace_one_epsilon(book, DELTA):.4f}" in text
    assert f"{accounting.with_more_epochs(book, 1).epsilon(DELTA):.4f}" in text


# Shares, other neighbours, more epochs -------------------------------------------------------------------------------


@given(st.lists(st.floats(0.5, 50), min_size=1, max_size=6))
def test_shares_of_gaussians_are_their_precisions(noise):
    shares = budget.budget_shares(ledger(*((value,) for value in noise)), DELTA)
    total = math.fsum(value**-2 for value in noise)
    # where a mechanism alone already has ε = 0 at this δ, nothing is left to compare
    expected = [value**-2 / total for value in noise]
    if all(gaussian_epsilon(value, DELTA) > 1e-6 for value in noise):
        assert shares == pytest.approx(expected, rel=1e-4)
    assert sum(shares) == pytest.approx(1)


def test_shares_of_a_subsampled_mechanism_are_those_of_the_gaussian_with_its_epsilon():
    sgd = mechanism(1.5, 0.1, 100)
    alike = mechanism(gaussian_noise_multiplier(Ledger([sgd]).epsilon(DELTA), DELTA))
    assert budget.budget_shares(Ledger([sgd, alike]), DELTA) == pytest.approx([0.5, 0.5], rel=1e-6)
    with pytest.raises(PrivacyError, match="mechanisms with noise"):
        budget.budget_shares(ledger((0.0,)), DELTA)
    with pytest.raises(PrivacyError, match="mechanisms with noise"):
        budget.budget_shares(Ledger(), DELTA)


@pytest.mark.parametrize("noise_multiplier", [0.02, 0.5, 2.0, 10.0])
def test_replacing_an_image_costs_the_exact_answer_for_one_sum(noise_multiplier):
    """Two clipped vectors lie up to twice the sensitivity apart: half the noise multiplier, exactly; also for a loss
    in the thousands, of which e^ε can't be computed."""
    found = accounting.replace_one_epsilon(ledger((noise_multiplier,)), DELTA)
    exact = gaussian_epsilon(noise_multiplier / 2, DELTA)
    assert exact * (1 - 1e-9) <= found <= exact * (1 + 1e-9)


def test_replacing_an_image_of_a_sample_is_to_remove_it_and_to_add_another():
    found = accounting.replace_one_epsilon(ledger((1.0, 0.05)), DELTA)
    assert found < gaussian_epsilon(0.5, DELTA)
    # the two steps it is made of: at ε/2 the δ' leaves room for the factor 1 + e^ε
    half = max(integrated_delta(1.0, 0.05, found / 2, remove) for remove in (True, False))
    assert 0.5 * DELTA < half * (1 + math.exp(found / 2)) <= DELTA


def test_replacing_an_image_after_a_noiseless_mechanism_is_not_bounded():
    assert accounting.replace_one_epsilon(ledger((0.0,)), DELTA) == math.inf
    assert accounting.replace_one_epsilon(Ledger(), DELTA) == 0.0


def test_more_epochs_are_more_steps_of_the_last_subsampled_mechanism():
    book = ledger((5.0,), (2.0, 0.3, 7), (1.5, 0.1, 50), (9.0,))
    assert (
        accounting.with_more_epochs(book, 2).mechanisms
        == ledger((5.0,), (2.0, 0.3, 7), (1.5, 0.1, 70), (9.0,)).mechanisms
    )
    assert book.mechanisms[2].steps == 50
    with pytest.raises(PrivacyError, match="no epochs"):
        accounting.with_more_epochs(ledger((5.0,)), 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsilon": None}, "not differentially private"),
        ({"epsilon": 0.1}, "mechanisms spend"),
        ({"epsilon": math.nan}, "epsilon"),
        ({"delta": None}, "delta"),
        ({"mechanisms": []}, "not differentially private"),
    ],
)
def test_statement_refuses_what_the_ledger_does_not_support(record, change, message):
    with pytest.raises(PrivacyError, match=message):
        statement({**record, **change})


def test_statement_does_not_believe_a_record_with_a_noiseless_mechanism(record):
    record["mechanisms"][0]["noise_multiplier"] = 0.0
    with pytest.raises(PrivacyError, match="mechanisms spend inf"):
        statement(record)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"epsilon": 1e308}, "ask for 100000 or less"),
        ({"noise_multiplier": 1e9}, "noise_multiplier=1e[+]09 drowns everything"),
    ],
)
def test_budgets_beyond_the_accountants_are_refused_in_plain_words(asked, message):
    with pytest.raises(PrivacyError, match=message):
        PrivacySpec(**asked)
    with pytest.raises(PrivacyError, match="lower the noise multiplier"):
        gaussian_noise_multiplier(gaussian_epsilon(1e5, 1e-5), 1e-5)


def test_the_interval_of_few_noisy_steps_is_told_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    """Opacus warns of such ledgers, and a page with a warning is not built."""
    book = Ledger([Mechanism("m", "s", 0.3, 1.0, 1)])
    assert book.pld_interval(1e-5) > 0
    assert not recwarn.list


@pytest.mark.parametrize("path", sorted(Path("book/records").glob("*-dp-sinkhorn-eps0.2-*.json")), ids=lambda p: p.stem)
def test_pld_agrees_with_what_records_of_many_small_steps_claim(path: Path) -> None:
    """At dp-accounting's own interval it gives 0.203 for them; the one that is used is named where ε is shown."""
    record = json.loads(path.read_text())["privacy"]
    book = privacy_statement.from_record(record)
    assert book.epsilon(record["delta"], "pld") == pytest.approx(record["epsilon_target"], rel=1e-3)
    interval = book.pld_interval(record["delta"])
    assert interval < 1e-4 / 10
    assert any("PLD" in line and f"in steps of {interval:.2g}" in line for line in privacy_statement.in_words(record))
