"""The audit: bounds that hold and bite, honest mechanisms that pass, broken ones that are caught, and a closed guard.

Broken mechanisms are made here, by patching or by subclasses; the library has no switch for them.
"""

import ast
import math
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import nn

from dpldm.audit import attacks, evidence, method, releases
from dpldm.audit.attacks import gradient_canaries
from dpldm.audit.bounds import CanaryScores, LowerBound, gaussian_bound, many_runs_bound, one_run_bound, one_run_p_value
from dpldm.audit.evidence import Examples, coins, guarded
from dpldm.audit.readings import _first_stage, _whole, reading
from dpldm.method import classifier, compression, training
from dpldm.method import pca as pca_module
from dpldm.method.classifier import SelectionSettings
from dpldm.method.edge_transport import TransportSettings
from dpldm.method.mixture import MixtureSettings
from dpldm.method.pca import PCASettings, PrivatePCA
from dpldm.method.settings import SynthesisSettings, smoke
from dpldm.method.synthesizer import LatentDiffusion
from dpldm.method.training import FitSettings
from dpldm.privacy import budget
from dpldm.privacy import statement as privacy_statement
from dpldm.privacy.accounting import Ledger
from dpldm.privacy.budget import Allowance
from dpldm.privacy.checks import PrivacyError
from dpldm.privacy.guard import PrivateData
from dpldm.privacy.mechanisms import Mechanism, PrivacySpec, gaussian_epsilon, gaussian_noise_multiplier
from dpldm.privacy.noise import NoiseSource, Release, watched
from dpldm.runs import experiment
from dpldm.runs.saved import SavedSynthesizer, save_synthesizer

DELTA = 1e-5
SHAPE = (1, 8, 8)
RUNS = 100


def toy(n: int, seed: int = 0) -> Examples:
    """Class c is a bright bar two rows high on a dark, noisy ground."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    images = 0.2 * torch.rand(n, *SHAPE, generator=random)
    for c in range(3):
        images[labels == c, :, 2 * c : 2 * c + 2] += 0.7
    return Examples(images, labels, 3)


def odd(n: int, seed: int = 1) -> Examples:
    return Examples(evidence.odd_images(n, SHAPE, seed), torch.arange(n) % 3, 3)


def gaussian_scores(separation: float, n: int, seed: int) -> CanaryScores:
    included = coins(n, seed)
    noise = torch.randn(n, generator=torch.Generator().manual_seed(seed + 10_000))
    return CanaryScores(noise + separation * included, included)


# Bounds --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.0, 1.0, 4.0])
@pytest.mark.parametrize(("guesses", "correct"), [(20, 20), (50, 31), (7, 0)])
def test_p_value_is_the_sum_of_the_theorem(epsilon, guesses, correct):
    delta, m, right = 1e-3, 60, 1 / (1 + math.exp(-epsilon))
    mass = [math.comb(guesses, w) * right**w * (1 - right) ** (guesses - w) for w in range(guesses + 1)]
    near = max([sum(mass[max(correct - i, 0) : correct]) / i for i in range(1, m + 1)])
    expected = min(1.0, sum(mass[correct:]) + 2 * m * delta * near)
    assert one_run_p_value(m, guesses, correct, epsilon, delta) == pytest.approx(expected)


def test_p_value_rises_with_epsilon():
    values = [one_run_p_value(500, 200, 150, e / 10, 1e-4) for e in range(80)]
    assert values == sorted(values)


def test_p_value_refuses_impossible_counts():
    with pytest.raises(PrivacyError, match="correct <= guesses <= canaries"):
        one_run_p_value(10, 20, 5, 1.0, DELTA)


def randomised_response(epsilon: float, leak: float, n: int, seed: int) -> CanaryScores:
    """Every coin is told truly with probability 1/(1 + e^-ε), and with probability ``leak`` told for certain."""
    random = torch.Generator().manual_seed(seed)
    included = torch.rand(n, generator=random) < 0.5
    true = torch.rand(n, generator=random) < 1 / (1 + math.exp(-epsilon))
    leaked = torch.rand(n, generator=random) < leak
    told = torch.where(true | leaked, included, ~included)
    return CanaryScores((2.0 * told - 1) * (1 + leaked) + 1e-3 * torch.rand(n, generator=random), included)


@pytest.mark.parametrize("epsilon", [0.0, 1.0, 3.0])
def test_one_run_bound_holds_and_bites_for_randomised_response(epsilon):
    bounds = [one_run_bound(randomised_response(epsilon, 0.0, 1000, s), 0.0).epsilon_lower for s in range(40)]
    assert sum(bound > epsilon for bound in bounds) <= 5  # 5% of 40 are 2; more than 5 has probability 1%
    assert min(bounds) >= 0.65 * epsilon


def test_one_run_bound_needs_its_delta():
    """ε = 0 with δ = 0.02: the few leaked coins are guessed, and only the δ of the theorem explains them."""
    found = [randomised_response(0.0, 0.02, 2000, seed) for seed in range(30)]
    assert sum(one_run_bound(f, 0.02).epsilon_lower > 0 for f in found) <= 4
    assert all(one_run_bound(f, 0.0).epsilon_lower > 0 for f in found)


@pytest.mark.parametrize("epsilon", [1.0, 10.0])
def test_all_bounds_hold_and_bite_for_the_gaussian_mechanism(epsilon):
    separation = 1 / gaussian_noise_multiplier(epsilon, DELTA)
    found = [gaussian_scores(separation, 4000, seed) for seed in range(40)]
    bounds = {
        "one run": [one_run_bound(f, DELTA).epsilon_lower for f in found],
        "many runs": [many_runs_bound(f.present, f.absent, DELTA).epsilon_lower for f in found],
        "Gaussian": [gaussian_bound(f.present, f.absent, DELTA).epsilon_lower for f in found],
        "fixed": [gaussian_bound(f.present, f.absent, DELTA, threshold=separation / 2).epsilon_lower for f in found],
    }
    for name, values in bounds.items():
        assert sum(value > epsilon for value in values) <= 5, name  # 5% of 40 are 2; more than 5 has probability 1%
    assert torch.tensor(bounds["one run"]).median() > 0.2 * epsilon
    assert torch.tensor(bounds["fixed"]).median() > 0.5 * epsilon
    if epsilon == 10.0:
        assert min(bounds["one run"]) > 0.3 * epsilon
        assert min(bounds["many runs"]) > 0.1 * epsilon
        assert min(bounds["Gaussian"]) > 0.7 * epsilon


def test_many_runs_bound_of_a_perfect_attack_is_that_of_the_error_rates_alone():
    present, absent = torch.ones(400), torch.zeros(400)
    highest_rate = 1 - (0.05 / 2) ** (1 / 200)  # Clopper-Pearson for no error in 200
    expected = math.log((1 - DELTA - highest_rate) / highest_rate)
    assert many_runs_bound(present, absent, DELTA).epsilon_lower == pytest.approx(expected)


def test_gaussian_bound_of_a_perfect_attack():
    present, absent = torch.ones(50), torch.zeros(50)
    bound = gaussian_bound(present, absent, DELTA, threshold=0.5)
    assert (bound.correct, bound.guesses) == (100, 100)
    separation = 2 * stats.norm.ppf(0.05 ** (1 / 100))
    assert bound.epsilon_lower == pytest.approx(gaussian_epsilon(1 / separation, DELTA))


def test_scores_that_say_nothing_prove_nothing():
    same = torch.zeros(100)
    assert one_run_bound(CanaryScores(same, torch.arange(100) % 2 == 0), DELTA).epsilon_lower == 0
    assert many_runs_bound(same, same, DELTA).epsilon_lower == 0
    assert gaussian_bound(same, same, DELTA).epsilon_lower == 0
    with pytest.raises(PrivacyError, match="at least 4 scores"):
        many_runs_bound(same[:3], same, DELTA)


def test_roc_is_that_of_counting():
    random = torch.Generator().manual_seed(0)
    members, others = torch.randn(70, generator=random) + 1, torch.randn(90, generator=random)
    curve = attacks.roc(members, others)
    wins = ((members[:, None] > others).double() + 0.5 * (members[:, None] == others).double()).mean()
    assert curve.area == pytest.approx(float(wins))
    strict = others.sort().values[-9]  # nine of ninety at or above: 10%
    assert curve.at(0.1) == pytest.approx(float((members >= strict).double().mean()))
    assert curve.at(0.0) == pytest.approx(float((members > others.max()).double().mean()))


# Attacks on published things ------------------------------------------------------------------------------------------


def test_copies_are_found_by_their_nearest_synthetic_image():
    members, others = toy(60, 1).images, toy(60, 2).images
    copied = attacks.roc(attacks.synthetic_scores(members, members), attacks.synthetic_scores(others, members))
    assert copied.at(0.001) == 1
    fresh = toy(60, 3).images
    honest = attacks.roc(attacks.synthetic_scores(members, fresh), attacks.synthetic_scores(others, fresh))
    assert abs(honest.area - 0.5) < 4 / math.sqrt(12 * 60 / 2)  # four standard errors of an area of one half


def fitted_on(members: Examples, spec: PrivacySpec | None) -> LatentDiffusion:
    settings = replace(small(), fit=FitSettings(steps=30, batch=60, physical_batch=400))
    synthesizer = LatentDiffusion(SHAPE, 3, settings, spec, 0)
    synthesizer.fit(PrivateData(members.images, members.labels, 3, Ledger()))
    return synthesizer


def membership(spec: PrivacySpec | None) -> dict[str, attacks.Roc]:
    """Attacks by the model's loss and by the nearest synthetic image, on images that are all alike in kind."""
    members, others = (Examples(evidence.odd_images(300, SHAPE, seed), torch.arange(300) % 3, 3) for seed in (1, 2))
    model = fitted_on(members, spec)
    drawn = torch.cat(list(model.sample(torch.arange(300) % 3, 0)))
    found = {"loss": [attacks.model_scores(model, group, draws=16) for group in (members, others)]}
    found["nearest"] = [attacks.synthetic_scores(group.images, drawn) for group in (members, others)]
    return {name: attacks.roc(*scores) for name, scores in found.items()}


def test_members_of_a_model_without_privacy_are_found_and_those_of_a_private_one_are_not():
    error = math.sqrt(1 / (6 * 300))  # of an area of one half with 300 of each
    loose, private = membership(None), membership(PrivacySpec(epsilon=1.0))
    for name, curve in private.items():
        assert loose[name].area > 0.5 + 4 * error
        assert abs(curve.area - 0.5) < 4 * error
        assert curve.at(0.01) <= math.e * 0.01 + 4 * math.sqrt(math.e * 0.01 / 300)  # e^ε times, and chance


def small(**changes) -> SynthesisSettings:
    base = smoke(SynthesisSettings())
    fit = FitSettings(steps=10, batch=60, physical_batch=400)
    pca = replace(base.compression, pca=PCASettings(dim=24, frequencies=8))
    return replace(base, compression=pca, fit=fit, **changes)


@pytest.fixture(scope="module")
def readings():
    """Reading → (its first fit, scores of 200 canaries in one run), all claiming ε = 1."""
    found = {}
    for name in "ABC":
        fits = []

        def fit(examples, seed, name=name, fits=fits):
            fits.append(reading(name, examples, small(), PrivacySpec(epsilon=1.0, delta=DELTA), seed))
            return fits[-1].synthesizer

        found[name] = fits, attacks.model_in_one_run(fit, toy(60), odd(200), seed=3)
    return found


def test_reading_a_leaks_beyond_its_claim_and_its_ledger_says_so(readings):
    fits, found = readings["A"]
    assert all(0.9 < fit.epsilon_claimed <= 1.0 for fit in fits)
    assert all(fit.epsilon_ledger == math.inf for fit in fits)
    bound = one_run_bound(found["moments"], DELTA)
    assert bound.contradicts(fits[0].epsilon_claimed)
    assert bound.epsilon_lower > 2.5  # almost all of 200 coins read off the model


@pytest.mark.parametrize("name", ["B", "C"])
def test_readings_b_and_c_stay_within_their_claim(readings, name):
    fits, found = readings[name]
    for fit in fits:
        assert 0.9 < fit.epsilon_ledger == fit.epsilon_claimed <= 1.0
    for scores in found.values():
        assert not one_run_bound(scores, DELTA).contradicts(1.0)


def test_reading_a_is_never_sampled_under_a_privacy_label(tmp_path, capsys):
    """Somebody saves reading A with the ledger of its encoder, which is private, and asks for labelled images."""
    from dpldm import cli

    spec, settings = PrivacySpec(epsilon=1.0), small()
    synthesizer = reading("A", toy(100), settings, spec, seed=0).synthesizer
    encoder = PrivateData(toy(100).images, toy(100).labels, 3, Ledger())
    _first_stage(encoder, settings, _whole(spec), 0)
    for name, ledger in {"encoder": encoder.ledger, "none": Ledger()}.items():
        path = tmp_path / f"{name}.safetensors"
        claimed = privacy_statement.to_record(spec, ledger) | {"epsilon": 1.0}
        saved = SavedSynthesizer(synthesizer, synthesizer.settings, ("a", "b", "c"), claimed, 0)
        save_synthesizer(path, saved, shape=SHAPE)
        assert cli.main(["sample", str(path), "--n", "3", "--out", str(tmp_path / "images.npz")]) == 2
        assert not (tmp_path / "images.npz").exists()
        said = capsys.readouterr().err
        assert ("a private encoder does not make the latents private" in said) == (name == "encoder")
        assert "private" in said


def test_reading_b_releases_every_latent_once_within_its_sensitivity():
    spec = PrivacySpec(epsilon=2.0)
    with watched() as seen:
        result = reading("B", toy(60), small(), spec, seed=0)
    row = seen[-1]
    assert row.value.norm(dim=1).max() <= row.mechanism.sensitivity * (1 + 1e-6)
    assert row.value.norm(dim=1).min() > 0.5 * row.mechanism.sensitivity
    images = torch.cat(list(result.synthesizer.sample(torch.arange(6) % 3, 0)))
    assert images.isfinite().all()


def test_unknown_reading_or_no_target_is_refused():
    with pytest.raises(PrivacyError, match="reading A, B or C"):
        reading("D", toy(10), small(), PrivacySpec(epsilon=1.0), 0)
    with pytest.raises(PrivacyError, match="target epsilon"):
        reading("A", toy(10), small(), PrivacySpec(noise_multiplier=1.0), 0)


# Statistics: honest and broken ----------------------------------------------------------------------------------------


def pca_fit(epsilon: float, kind: type[PrivatePCA] = PrivatePCA, mean_share: float = 0.3):
    """A fit of the private PCA alone with the whole of a budget."""
    allowance = Allowance(gaussian_noise_multiplier(epsilon, DELTA), DELTA)

    def fit(data: PrivateData, noise: NoiseSource) -> None:
        settings = PCASettings(dim=8, frequencies=8, mean_share=mean_share)
        for _ in kind(SHAPE, settings).fit(data, allowance, noise, torch.Generator()):
            pass

    return fit


BRIGHT = Examples(torch.ones(1, *SHAPE), torch.tensor([1]), 3)  # longer than both clipping norms


def pca_bound(epsilon: float, key: str = "all", runs: int = RUNS, **changes) -> LowerBound:
    fit = pca_fit(epsilon, **changes)
    present, absent = releases.statistics_in_many_runs(fit, toy(40), BRIGHT, runs, seed=7)[key]
    threshold = 0.5 / gaussian_noise_multiplier(epsilon, DELTA)
    return gaussian_bound(present, absent, DELTA, threshold=threshold)


def test_honest_scores_are_gaussian_with_the_separation_of_the_ledger():
    """The extreme image uses the whole sensitivity, so the audit is as sharp as an attack can be."""
    found = releases.statistics_in_many_runs(pca_fit(3.0), toy(40), BRIGHT, 200, seed=7)
    sigma = gaussian_noise_multiplier(3.0, DELTA)
    for name, share in {"image mean": 0.3, "image second moments": 0.7, "all": 1.0}.items():
        present, absent = found[name]
        error = math.sqrt(2 / 200)
        assert abs(float(present.mean() - absent.mean()) - math.sqrt(share) / sigma) < 4 * error, name
        assert abs(float(absent.std()) - 1) < 4 / math.sqrt(2 * 200), name
        assert abs(float(present.std()) - 1) < 4 / math.sqrt(2 * 200), name


@pytest.mark.parametrize("epsilon", [1.0, 10.0])
def test_honest_statistics_stay_below_the_claim(epsilon):
    bound = pca_bound(epsilon)
    assert not bound.contradicts(epsilon)
    if epsilon == 10.0:
        assert bound.epsilon_lower > 5  # nor is it trivial


def without_noise(one: Release) -> torch.Tensor:
    return one.value


def without_noise_on_statistics(one: Release) -> torch.Tensor:
    return one.released if one.gradients else one.value


def without_noise_on_gradients(one: Release) -> torch.Tensor:
    return one.value if one.gradients else one.released


def with_half_the_noise(one: Release) -> torch.Tensor:
    return (one.value + one.released) / 2


@pytest.mark.parametrize(
    ("broken", "epsilon"), [(without_noise, 1.0), (without_noise, 10.0), (with_half_the_noise, 3.0)]
)
def test_missing_and_halved_noise_are_caught(broken, epsilon):
    with watched(broken):
        assert pca_bound(epsilon).contradicts(epsilon)


@pytest.mark.parametrize("epsilon", [1.0, 3.0])
def test_clipping_left_out_is_caught(monkeypatch, epsilon):
    monkeypatch.setattr(pca_module, "clip_rows", lambda x, max_norm: x)
    assert pca_bound(epsilon, "image second moments", mean_share=0.05).contradicts(epsilon)


class Uncharged(PrivatePCA):
    """Releases the mean and the moments, and writes only the mean into the ledger."""

    def fit(self, data, allowance, noise, random):
        class Once:
            def __init__(self):
                self.first = None

            def __len__(self):
                return len(data)

            def read(self, mechanism):
                self.first = self.first or data.read(mechanism)
                return self.first

        yield from super().fit(Once(), allowance, noise, random)


def test_ledger_that_counts_one_of_two_releases_is_caught():
    def look(kind):
        guard = guarded(toy(40), 40)
        with watched() as seen:
            pca_fit(10.0, kind, mean_share=0.5)(guard, NoiseSource.seeded(0))
        return guard.ledger, releases.uncharged(guard.ledger, seen)

    honest, nothing = look(PrivatePCA)
    assert nothing == []
    broken, missing = look(Uncharged)
    assert missing == ["release 2 of 2 is not in the ledger"]
    claimed = broken.epsilon(DELTA)
    assert claimed < 0.8 * honest.epsilon(DELTA)
    bound = pca_bound(10.0, runs=200, kind=Uncharged, mean_share=0.5)
    assert bound.contradicts(claimed)
    assert not bound.contradicts(10.0)


def test_a_release_with_other_noise_than_charged_is_named():
    book = Ledger([Mechanism("mean", "compression", 2.0)])
    value, (charged,) = torch.zeros(2), book.mechanisms
    assert releases.uncharged(book, [Release(charged, value, value)]) == []
    assert releases.uncharged(book, [Release(replace(charged, noise_multiplier=1.0), value, value)]) == [
        "release 1 is not the 'mean' that the ledger says"
    ]


def statistics(epsilon: float):
    prior, off = MixtureSettings(components=2, iterations=3), SelectionSettings(candidates=1)
    still = TransportSettings(steps=0)
    settings = small(mixture=prior, compression_share=0.3, mixture_share=0.69, selection=off, transport=still)
    allowance = Allowance(gaussian_noise_multiplier(epsilon, DELTA), DELTA)
    return releases.statistics_fit(SHAPE, settings, allowance)


def test_one_run_over_all_statistics_is_below_the_claim_and_sees_missing_noise():
    found = releases.statistics_in_one_run(statistics(10.0), toy(60), odd(120), seed=3)
    assert set(found) == {"image mean", "image second moments", "latent second moments", "latent sums", "all"}
    for scores in found.values():
        assert not one_run_bound(scores, DELTA).contradicts(10.0)
    assert one_run_bound(found["all"], DELTA).epsilon_lower > 0.5
    with watched(lambda one: one.value if one.mechanism.name.startswith("latent") else one.released):
        broken = releases.statistics_in_one_run(statistics(1.0), toy(60), odd(120), seed=3, trust=1e-3)
    assert one_run_bound(broken["latent second moments"], DELTA).contradicts(1.0)


# Gradients: honest and broken -----------------------------------------------------------------------------------------

CANARIES = 3000


def sgd(epsilon: float, sample_rate: float, steps: int) -> Mechanism:
    return budget.calibrate([], Mechanism("gradients", "test", 1.0, sample_rate, steps, 0.5), epsilon, DELTA)


def gradient_bound(mechanism: Mechanism, seed: int = 0) -> LowerBound:
    found = gradient_canaries(mechanism, CANARIES, seed)
    middle = mechanism.steps * mechanism.sample_rate * mechanism.sensitivity / 2
    return gaussian_bound(found.present, found.absent, DELTA, threshold=middle)


@pytest.mark.parametrize(("sample_rate", "steps"), [(1.0, 1), (1.0, 8), (0.2, 30)])
@pytest.mark.parametrize("epsilon", [1.0, 10.0])
def test_honest_gradients_stay_below_the_claim(epsilon, sample_rate, steps):
    mechanism = sgd(epsilon, sample_rate, steps)
    found = gradient_canaries(mechanism, CANARIES, seed=0)
    assert not one_run_bound(found, DELTA).contradicts(epsilon)
    bound = gradient_bound(mechanism)
    assert not bound.contradicts(epsilon)
    if sample_rate == 1:
        assert bound.epsilon_lower > 0.4 * epsilon


def test_gradient_canaries_have_the_clipping_norm_and_no_more():
    mechanism = Mechanism("gradients", "test", 1e-3, 1.0, 3, 0.5)
    found = gradient_canaries(mechanism, 100, seed=0)
    assert found.present.sub(1.5).abs().max() < 0.02
    assert found.absent.abs().max() < 0.02


def test_gradients_without_noise_are_caught():
    mechanism = sgd(1.0, 0.5, 5)
    with watched(without_noise):
        assert one_run_bound(gradient_canaries(mechanism, 500, seed=0), DELTA).contradicts(1.0)
        assert gradient_bound(mechanism).contradicts(1.0)


class HalfNoise(NoiseSource):
    def normal(self, shape, std=1.0, device="cpu", dtype=torch.float32):
        return super().normal(shape, std / 2, device, dtype)


def test_gradients_with_half_the_noise_are_caught():
    mechanism = sgd(1.0, 1.0, 4)
    half = HalfNoise(torch.Generator().manual_seed(1))
    found = gradient_canaries(mechanism, CANARIES, 0, noise=half)
    assert gaussian_bound(found.present, found.absent, DELTA, threshold=1.0).contradicts(1.0)


@pytest.mark.parametrize("epsilon", [1.0, 10.0])
def test_gradients_without_clipping_are_caught(monkeypatch, epsilon):
    module = training.GradSampleModuleFastGradientClipping
    monkeypatch.setattr(module, "get_clipping_coef", lambda self: torch.ones_like(self.get_norm_sample()))
    mechanism = sgd(epsilon, 1.0, 1)
    assert gradient_bound(mechanism).contradicts(epsilon)


def batch_sizes(n: int = 400, steps: int = 60) -> list[int]:
    """Sizes of the batches that `fit_private` draws at a sample rate of one half."""
    sizes = []

    def loss(module, chosen):
        sizes.append(len(chosen))
        return module(torch.zeros(len(chosen), 1))[:, 0]

    mechanism = Mechanism("gradients", "test", 1.0, 0.5, steps)
    settings = FitSettings(steps=steps, batch=n // 2, physical_batch=n)
    for _ in training.fit_private(nn.Linear(1, 1), loss, n, mechanism, settings, NoiseSource.seeded(0)):
        pass
    return sizes


def spread_like_a_binomial(sizes: list[int], n: int = 400) -> bool:
    expected = n / 4
    return abs(torch.tensor(sizes).double().var().item() / expected - 1) < 5 * math.sqrt(2 / len(sizes))


def test_batches_are_poisson_samples_and_shuffled_ones_are_noticed(monkeypatch):
    assert spread_like_a_binomial(batch_sizes())

    def fixed(self, n, sample_rate):
        mask = torch.zeros(n, dtype=torch.bool)
        mask[torch.randperm(n, generator=self._generator)[: int(n * sample_rate)]] = True
        return mask

    monkeypatch.setattr(NoiseSource, "poisson_mask", fixed)
    assert not spread_like_a_binomial(batch_sizes())


def test_shuffling_claimed_as_poisson_is_an_accounting_gap():
    """Chua et al. 2024, figure 1: at σ = 0.4 and 10,000 batches ε = 4 holds for Poisson, not for shuffling."""
    poisson = Ledger([Mechanism("gradients", "test", 0.4, 1e-4, 10_000)])
    assert poisson.epsilon(1.2e-5) < 4.1
    assert releases.shuffled_delta_lower(0.4, 10_000, 4.0) == pytest.approx(0.226, abs=0.001)


def test_shuffled_delta_is_that_of_counting():
    noise, steps, epsilon, n = 0.5, 20, 1.0, 200_000
    random = torch.Generator().manual_seed(0)
    sums = noise * torch.randn(n, steps, generator=random)
    more, one = sums.clone(), sums
    more[:, 0] += 2
    one[:, 0] += 1
    more, one = more.max(1).values, one.max(1).values
    cuts = torch.linspace(0, 3, 61)
    counted = max(float((more > c).double().mean() - math.e**epsilon * (one > c).double().mean()) for c in cuts)
    assert releases.shuffled_delta_lower(noise, steps, epsilon) == pytest.approx(counted, abs=0.01)


# Nothing outside a mechanism ------------------------------------------------------------------------------------------


@pytest.fixture
def muted():
    """Every mechanism releases its noise alone. Whatever still depends on the images got past the mechanisms."""
    random = torch.Generator()

    def noise_alone(one: Release) -> torch.Tensor:
        random.manual_seed(0)
        noise = torch.randn(one.value.shape, generator=random, dtype=one.value.dtype)
        return one.mechanism.sensitivity * one.mechanism.noise_multiplier * noise

    with watched(noise_alone):
        yield


def fitted(examples: Examples, kind: str) -> tuple[dict[str, torch.Tensor], PrivateData]:
    settings = smoke(SynthesisSettings())
    settings = replace(settings, compression=replace(settings.compression, kind=kind))
    torch.manual_seed(0)  # an autoencoder draws its first weights when it is built
    synthesizer = LatentDiffusion(SHAPE, 3, settings, PrivacySpec(epsilon=5.0), seed=0)
    data = PrivateData(examples.images, examples.labels, 3, Ledger())
    synthesizer.fit(data)
    state = {f"{stage}/{k}": v for stage in synthesizer.stages for k, v in synthesizer.state(stage).items()}
    state["samples"] = torch.cat(list(synthesizer.sample(torch.arange(12) % 3, 1)))
    return state, data


def different() -> Examples:
    """As many images as `toy`, nothing else alike: other pixels, other shares of the classes."""
    return Examples(
        torch.rand(300, *SHAPE, generator=torch.Generator().manual_seed(9)), (torch.arange(300) > 20).long(), 3
    )


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.usefixtures("muted")
@pytest.mark.parametrize("kind", list(compression.COMPRESSORS))
def test_with_the_mechanisms_muted_nothing_depends_on_the_images(kind):
    one, data = fitted(toy(300), kind)
    other, _ = fitted(different(), kind)
    assert same(one, other)
    assert data.reads == tuple(m.name for m in data.ledger.mechanisms)
    assert len(set(data.reads)) == len(data.reads)  # every mechanism reads once


def test_without_muting_it_does():
    assert not same(fitted(toy(300), "pca")[0], fitted(different(), "pca")[0])


class ForgottenScale(PrivatePCA):
    """Divides by the brightest value of the private images, which no mechanism releases."""

    def fit(self, data, allowance, noise, random):
        yield from super().fit(data, allowance, noise, random)
        images, _ = data.read(Mechanism("image mean", "compression", 1e6))  # even when the guard was asked
        self.scale = self.scale / images.std()


@pytest.mark.usefixtures("muted")
def test_a_forgotten_statistic_is_caught(monkeypatch):
    monkeypatch.setitem(compression.COMPRESSORS, "pca", lambda shape, s: ForgottenScale(shape, s.pca))
    one, data = fitted(toy(300), "pca")
    assert not same(one, fitted(different(), "pca")[0])
    assert len(set(data.reads)) < len(data.reads)


class Sneaky(PrivatePCA):
    """Looks at the images without asking."""

    def fit(self, data, allowance, noise, random):
        self.mean = self._coefficients(data.images).mean(0)
        yield from super().fit(data, allowance, noise, random)


def test_an_unguarded_read_fails(monkeypatch):
    monkeypatch.setitem(compression.COMPRESSORS, "pca", lambda shape, s: Sneaky(shape, s.pca))
    with pytest.raises(AttributeError, match="images"):
        fitted(toy(300), "pca")


@pytest.mark.usefixtures("muted")
@pytest.mark.parametrize("extra", ["white", "odd", "black", "real"])
def test_one_more_image_moves_no_sum_by_more_than_its_sensitivity(extra):
    """The same releases for both data sets, so what goes into a mechanism differs by the image's contribution alone."""
    images = {"white": BRIGHT.images, "odd": odd(1).images, "black": 1 - BRIGHT.images, "real": toy(1, 5).images}
    moved: list[float] = []
    values = []
    for examples in (toy(90), toy(90) + Examples(images[extra], torch.tensor([1]), 3)):
        with watched() as seen:
            statistics(3.0)(guarded(examples, 91), NoiseSource.seeded(0))
        values.append(seen)
    for less, more in zip(*values, strict=True):
        moved.append(float((more.value.double() - less.value.double()).norm()) / more.mechanism.sensitivity)
    assert max(moved) <= 1 + 1e-4  # float32 sums
    if extra == "white":
        assert moved[0] > 0.99  # the mean's and the moments' bounds are reached, so they are not loose either
        assert moved[1] > 0.99


LIBRARY = Path(find_spec("dpldm").origin).parent
GUARDED = [file for file in LIBRARY.rglob("*.py") if ": PrivateData" in file.read_text(encoding="utf-8")]


@pytest.mark.parametrize("file", sorted(GUARDED), ids=lambda file: file.stem)
def test_private_data_is_asked_for_nothing_but_reads_and_public_facts(file):
    """Of a `PrivateData` the modules use only these, and keep what they read in no attribute."""
    allowed = {"read", "ledger", "num_classes", "image_shape"}
    tree = ast.parse(file.read_text(encoding="utf-8"))
    takers = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and any(getattr(a.annotation, "id", None) == "PrivateData" for a in node.args.args)
    ]
    assert takers
    reads = 0
    for function in takers:
        (name,) = [a.arg for a in function.args.args if getattr(a.annotation, "id", None) == "PrivateData"]
        raw = set()
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", None) == name:
                assert node.attr in allowed, (function.name, node.attr)
            if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith(f"{name}.read("):
                raw |= {n.id for n in ast.walk(node.targets[0]) if isinstance(n, ast.Name)}
            reads += isinstance(node, ast.Call) and ast.unparse(node.func) == f"{name}.read"
        for node in ast.walk(function):  # no `self.x = images`
            if isinstance(node, ast.Assign) and any(isinstance(t, ast.Attribute) for t in node.targets):
                assert not {n.id for n in ast.walk(node.value) if isinstance(n, ast.Name)} & (raw - {"_"}), (
                    function.name
                )
    assert reads == file.read_text(encoding="utf-8").count("data.read(")


# The whole method -----------------------------------------------------------------------------------------------------


def method_audit(epsilon: float, canaries: int = 100, **changes) -> method.Audit:
    settings = small(mixture=MixtureSettings(components=2, iterations=3), **changes)
    return method.audit_method(toy(400), settings, PrivacySpec(epsilon=epsilon), seed=1, canaries=canaries)


@pytest.fixture(scope="module")
def honest_audit():
    return method_audit(10.0)


def test_audit_of_the_method_has_every_mechanism_and_the_saved_model(honest_audit):
    expected = {"image mean", "image second moments", "latent second moments", "latent sums"}
    expected |= {"denoiser gradients", "selector gradients", "energy second moments", "energy sums"}
    together = {"all statistics", "statistics, doubted"}
    assert set(honest_audit.bounds) == expected | together | {"saved model, loss", "saved model, moments"}
    assert 9.5 < honest_audit.epsilon_claimed <= 10.0
    assert {bound.confidence for bound in honest_audit.bounds.values()} == {1 - 0.05 / 12}
    assert honest_audit.seconds > 0


def test_audit_of_the_method_is_below_the_claim_and_not_trivial(honest_audit):
    assert not honest_audit.contradicted
    strongest = honest_audit.bounds[honest_audit.strongest]
    assert strongest.epsilon_lower == max(bound.epsilon_lower for bound in honest_audit.bounds.values()) > 0.3


def test_audit_attacks_the_release_that_decoders_are_matched_to():
    matching = replace(smoke(SynthesisSettings()).matching, steps=3, share=0.5)
    idle = {"selection": SelectionSettings(candidates=1), "transport": TransportSettings(steps=0)}
    found = method_audit(10.0, **idle, matching=matching, mixture_share=0.2)
    assert not found.contradicted
    assert found.bounds["mean embedding"].epsilon_lower > 0.3


def test_audit_in_words_has_claim_bounds_verdict_and_time(honest_audit):
    lines = method.in_words(honest_audit)
    assert f"claimed: ε = {honest_audit.epsilon_claimed:.4g} at δ = 1e-05" in lines[0]
    assert "100 canaries among 400 images" in lines[0]
    assert "95% confidence" in lines[1]
    for name, bound in honest_audit.bounds.items():
        assert any(name in line and f"{bound.correct} of {bound.guesses}" in line for line in lines)
    assert "beside the mechanisms: nothing moves" in lines
    assert "not disproved" in lines[-2]
    wrong = replace(honest_audit, epsilon_claimed=1e-3)
    assert wrong.contradicted
    assert "DISPROVED" in method.in_words(wrong)[-2]
    assert lines[-1].endswith(" s")


def test_audit_states_its_power_beside_its_verdict(honest_audit):
    """What an attacker would prove who is right about every coin; more with more canaries."""
    knows = torch.arange(100) % 2 == 0
    each = 1 - 0.05 / len(honest_audit.bounds)
    perfect = one_run_bound(CanaryScores(knows.double(), knows), honest_audit.delta, each)
    assert honest_audit.power == pytest.approx(perfect.epsilon_lower, abs=1e-5)
    assert honest_audit.gradient_power > honest_audit.power > 1
    power, verdict = method.in_words(honest_audit)[-3:-1]
    assert f"ε ≥ {honest_audit.power:.3f} by 100 images" in power
    assert verdict.startswith("lower bound")


def test_audit_of_a_method_whose_statistics_have_no_noise_disproves_it():
    with watched(without_noise_on_statistics):
        found = method_audit(1.0, canaries=60)
    assert found.contradicted
    assert found.bounds["statistics, doubted"].contradicts(1.0)
    assert not found.bounds["denoiser gradients"].contradicts(1.0)  # that one is honest


def test_audit_of_a_method_whose_gradients_have_no_noise_disproves_it():
    with watched(without_noise_on_gradients):
        found = method_audit(1.0, canaries=40)
    assert found.bounds["denoiser gradients"].contradicts(1.0)
    assert not found.bounds["all statistics"].contradicts(1.0)


@pytest.mark.parametrize("kind", ["pca", "refined-pca"])
def test_a_replay_puts_in_what_the_run_put_in(kind):
    """All who took part, replayed, give the run's own sums: the attacker's model of the run is exact."""
    settings = small()
    settings = replace(settings, compression=replace(smoke(settings).compression, kind=kind))

    def build():
        return LatentDiffusion(SHAPE, 3, settings, PrivacySpec(epsilon=5.0), 0)

    attacked, guard = build(), guarded(toy(300), 320)
    with watched() as every, evidence.only_the_first(300):
        attacked.fit(guard)
    seen = evidence.full_batch(every)
    answers = [release.released for release in seen]
    again = releases.replay(build(), toy(300), 320, attacked, answers, guard.ledger)
    assert len(again) == len(seen) > 0
    for values, release in zip(again, seen, strict=True):
        torch.testing.assert_close(values, release.value.flatten(), rtol=1e-5, atol=1e-4)


def test_the_command_prints_the_audit_and_fails_where_it_disproves_the_claim(monkeypatch, capsys):
    from dpldm import cli
    from dpldm.data import datasets as datasets_module
    from dpldm.data.images import ImageData

    public = toy(600)
    loaded = ImageData("mnist", public.images, public.labels, ("a", "b", "c"), {})
    monkeypatch.setattr(datasets_module, "load", lambda name, split: loaded)
    command = ["audit", "--profile", "smoke", "--epsilon", "1", "--canaries", "60", "--seed", "2"]
    assert cli.main(command) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "mnist, smoke, seed 2"
    assert "60 canaries among 600 images" in said[1]
    assert "not disproved" in said[-2]
    with watched(without_noise_on_statistics):
        assert cli.main(command) == 2
    said = capsys.readouterr()
    assert "DISPROVED" in said.out
    assert said.err.startswith("dpldm: the audit disproves ε = ")
    assert cli.main(["audit", "--profile", "big"]) == 2
    assert cli.main(["audit", "--canaries", "5", "--profile", "smoke"]) == 2
    assert "expected 20 canaries or more" in capsys.readouterr().err


def test_audit_sees_a_seed_that_tells_who_took_part(monkeypatch):
    """The fault that no canary shows: the noise is there, and what is public names the images."""
    seed_of = experiment.fit_seed
    monkeypatch.setattr(experiment, "fit_seed", lambda asked, sums: seed_of(replace(asked, secure_mode=False), sums))
    found = method_audit(1.0, canaries=20)
    assert found.told == ("public draws",)
    assert found.contradicted
    lines = "\n".join(method.in_words(found))
    assert "beside the mechanisms: public draws tell of single images, so no ε holds" in lines
    assert "DISPROVED" in lines


def test_audit_sees_features_that_are_scaled_by_private_images(monkeypatch):
    read, whitening, private = PrivateData.read, classifier.whitening, []

    def remembering(self, mechanism):
        images, labels = read(self, mechanism)
        private.append(images)
        return images, labels

    monkeypatch.setattr(PrivateData, "read", remembering)
    monkeypatch.setattr(classifier, "whitening", lambda images, dim: whitening(images * private[-1].mean(), dim))
    seen = method_audit(1.0, canaries=20)
    assert seen.told == ("features of the selection",)


def test_blank_images_take_part_in_no_batch():
    noise = NoiseSource.seeded(0)
    with evidence.only_the_first(30):
        assert noise.poisson_mask(100, 1.0).nonzero().flatten().tolist() == list(range(30))
    assert noise.poisson_mask(100, 1.0).all()


def test_too_few_or_too_many_canaries_are_refused():
    for canaries in (10, 300):
        with pytest.raises(PrivacyError, match="20 canaries or more") as error:
            method_audit(1.0, canaries=canaries)
        assert "\n" not in str(error.value)


# Real size ------------------------------------------------------------------------------------------------------------


def real_audit(dataset: str, epsilon: float, seed: int, limit: int | None, canaries: int) -> method.Audit:
    """The settings of the `quick` profile; with a limit, on that many images and with fewer, smaller batches."""
    from dpldm.data.datasets import load
    from dpldm.recipes import settings_for

    train = load(dataset, "train")
    settings = settings_for("quick", train.known, epsilon)
    if limit is not None:
        settings = replace(settings, fit=replace(settings.fit, steps=20, batch=limit // 15))
    examples = Examples(train.images[:limit], train.labels[:limit], train.num_classes)
    found = method.audit_method(examples, settings, PrivacySpec(epsilon=epsilon), seed, canaries)
    print(f"\n{dataset}, seed {seed}", *method.in_words(found), sep="\n")  # shown by pytest -s
    return found


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["mnist", "fashion_mnist"])
@pytest.mark.parametrize("epsilon", [1.0, 10.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_whole_method_on_real_images_stays_below_its_claim(dataset, epsilon, seed):
    found = real_audit(dataset, epsilon, seed, limit=6000, canaries=500)
    assert found.epsilon_claimed <= epsilon
    assert not found.contradicted
    if epsilon == 10.0:
        assert found.bounds[found.strongest].epsilon_lower > 0.5  # it does bite


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["mnist", "fashion_mnist"])
def test_the_quick_pipeline_is_audited_within_15_minutes(dataset):
    found = real_audit(dataset, 10.0, 0, limit=None, canaries=400)
    assert found.images == 60_000
    assert not found.contradicted
    assert found.bounds[found.strongest].epsilon_lower > 0.5
    assert found.seconds < 15 * 60
