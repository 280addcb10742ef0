"""Attacks on the library's own releases, and what their success proves: lower bounds on ε with a stated confidence.

An accountant bounds ε from above, if every mechanism is what the ledger says it is. An audit bounds ε from below,
whatever the code does: it lets an attacker guess who took part, and a private release limits how often guesses are
right. A lower bound above the claimed ε proves a mistake. One below it proves nothing, only that this attack failed.

Attackers here know much: all images but the canaries, the canaries themselves, and every number a mechanism releases.
They don't know the noise. A canary that is left out adds nothing while the public number of images stays as it is.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from scipy import stats
from scipy.optimize import brentq
from scipy.special import bdtrc, expit, ndtri
from torch import Tensor, nn

from dpldm import compression, denoiser, diffusion, experiment, mixture, selection, training, transport
from dpldm.baselines import ClassGaussianSettings, NoisedLatents
from dpldm.privacy import (
    Allowance,
    Answer,
    Ledger,
    Mechanism,
    NoiseSource,
    PrivacyError,
    PrivacySpec,
    PrivateData,
    Release,
    clip_rows,
    gaussian_epsilon,
    gaussian_noise_multiplier,
    watched,
)
from dpldm.settings import SynthesisSettings
from dpldm.synthesis import LatentDiffusion
from dpldm.training import FitSettings

CONFIDENCE = 0.95
_SHARES = (0.02, 0.1, 0.4, 1.0)  # of canaries on which a one-run attacker guesses; fixed before the scores are seen
_LARGEST_EPSILON = 40.0
GRADIENT_CANARIES = 2_000  # in the audit of a method, for each of its DP-SGDs
_ANOTHER_SEED = 500_000_000  # of what the attacker makes himself: he does not know the seed of the run

# --- lower bounds -----------------------------------------------------------------------------------------------------


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


def shuffled_delta_lower(noise_multiplier: float, steps: int, epsilon: float) -> float:
    """Lower bound on δ(ε) of one epoch of DP-SGD that shuffles into ``steps`` batches instead of Poisson sampling.

    No attack on one image's gradient sees this gap; it shows against gradients that all point the other way. Then the
    batch sums are N(2e, σ²) or N(e, σ²) for one random batch e, and "the largest exceeds C" tells them apart.
    Source: Chua et al. 2024, "How private are DP-SGD implementations?", section 4.3 (zero-out neighbours).
    """
    cuts = np.linspace(0, 2 + 6 * noise_multiplier, 2_000)
    others = (steps - 1) * stats.norm.logcdf(cuts / noise_multiplier)

    def exceeds(shift: float) -> np.ndarray:
        return -np.expm1(others + stats.norm.logcdf((cuts - shift) / noise_multiplier))

    return max(0.0, float((exceeds(2.0) - math.exp(epsilon) * exceeds(1.0)).max()))


# --- what an attacker sees --------------------------------------------------------------------------------------------


def in_turn(answers: Iterable[Tensor]) -> Answer:
    """Answers for `privacy.watched` that replay an earlier run on other images: one for each full-batch release, in
    order. What DP-SGD releases stays as it is."""
    following = iter(answers)
    return lambda one: one.released if one.gradients else next(following)


def full_batch(releases: Iterable[Release]) -> list[Release]:
    """Those of mechanisms on all images at once."""
    return [one for one in releases if not one.gradients]


def uncharged(ledger: Ledger, releases: Sequence[Release]) -> list[str]:
    """What the ledger leaves out or says wrong about full-batch releases, one line each; empty if all is charged."""
    charged = [m for m in ledger.mechanisms if m.sample_rate == 1 for _ in range(m.steps)]
    lines, releases = [], full_batch(releases)
    for index, release in enumerate(releases):
        said = charged[index] if index < len(charged) else None
        if said is None:
            lines.append(f"release {index + 1} of {len(releases)} is not in the ledger")
        elif said != release.mechanism:
            lines.append(f"release {index + 1} is not the {said.name!r} that the ledger says")
    return lines


# A fit of statistics: reads private data, draws from the noise source, releases only by Gaussian mechanisms.
Fit = Callable[[PrivateData, NoiseSource], Any]


def statistics_fit(shape: tuple[int, int, int], settings: SynthesisSettings, allowance: Allowance) -> Fit:
    """The compressor and the mixture of the method, fitted with their shares of ``allowance``."""

    def fit(data: PrivateData, noise: NoiseSource) -> None:
        compressor = compression.build(shape, settings.compression)
        random = torch.Generator().manual_seed(0)
        for _ in compressor.fit(data, allowance.part(settings.compression_share), noise, random):
            pass
        part = allowance.part(settings.mixture_share)
        mixture.fit_mixture(data, compressor.encode, compressor.dim, settings.mixture, part, noise)

    return fit


@dataclass(frozen=True)
class Examples:
    """Images (n, C, H, W) in [0, 1] with labels (n,) of ``num_classes`` classes."""

    images: Tensor
    labels: Tensor
    num_classes: int

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, chosen: Tensor | slice) -> "Examples":
        return Examples(self.images[chosen], self.labels[chosen], self.num_classes)

    def __add__(self, other: "Examples") -> "Examples":
        images, labels = torch.cat([self.images, other.images]), torch.cat([self.labels, other.labels])
        return Examples(images, labels, self.num_classes)


def guarded(examples: Examples, n: int) -> PrivateData:
    """A guard around ``examples`` whose public number of images is ``n``, however many there are: the rest is blank.

    Where a fit takes Poisson samples, it needs `_only_the_first` as well.
    """
    guard = PrivateData(examples.images, examples.labels, examples.num_classes, Ledger())
    guard._len = n
    return guard


@contextmanager
def _only_the_first(present: int) -> Iterator[None]:
    """Poisson samples inside the block skip all but the first images: the others are blank and add nothing to a sum."""
    real = NoiseSource.poisson_mask

    def poisson_mask(self: NoiseSource, n: int, sample_rate: float) -> Tensor:
        return real(self, n, sample_rate) & (torch.arange(n) < present)

    with patch.object(NoiseSource, "poisson_mask", poisson_mask):
        yield


def odd_images(n: int, shape: tuple[int, int, int], seed: int) -> Tensor:
    """Canaries unlike any real image (n, C, H, W): random coarse patterns of black and white."""
    channels, side, _ = shape
    coarse = torch.randn(n, channels, 6, 6, generator=torch.Generator().manual_seed(seed))
    fine = nn.functional.interpolate(coarse, size=(side, side), mode="bilinear", align_corners=True)
    return (fine > 0).float()


def mislabelled(examples: Examples, seed: int) -> Examples:
    """The same images, each with a wrong class at random: canaries that look real."""
    random = torch.Generator().manual_seed(seed)
    shift = torch.randint(1, examples.num_classes, (len(examples),), generator=random)
    return Examples(examples.images, (examples.labels + shift) % examples.num_classes, examples.num_classes)


def coins(n: int, seed: int) -> Tensor:
    """Who takes part: n independent fair coins, boolean (n,)."""
    return torch.rand(n, generator=torch.Generator().manual_seed(seed)) < 0.5


# --- attacks on the statistics ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Evidence:
    """For m canaries and noise of unit variance: signal · signalᵀ (m, m), and signal · (release - what is known)."""

    gram: Tensor
    match: Tensor


def _evidence(
    fit: Fit, taking_part: Examples, known: Examples, canaries: Examples, n: int, seed: int
) -> dict[str, _Evidence]:
    """What one run tells about each canary, by mechanism and (under "all") together.

    A canary's contribution to each release is what goes into the mechanism when the run is replayed, with the same
    releases, on the canary alone; that of the known images likewise. So no formula of the library is repeated here.
    """

    def go(examples: Examples, answers: Sequence[Tensor] | None = None) -> tuple[list[Release], Ledger]:
        guard = guarded(examples, n)
        with watched(None if answers is None else in_turn(answers)) as seen, _only_the_first(len(examples)):
            fit(guard, NoiseSource.seeded(seed))
        return full_batch(seen), guard.ledger

    releases, ledger = go(taking_part)
    answers = [release.released for release in releases]
    background = _values(go(known, answers)[0])
    alone = [_values(go(canaries[i : i + 1], answers)[0]) for i in range(len(canaries))]
    return _weigh(releases, ledger, background, alone)


def _values(releases: Sequence[Release]) -> list[Tensor]:
    return [release.value.flatten() for release in releases]


def _weigh(
    releases: Sequence[Release], ledger: Ledger, background: list[Tensor], alone: list[list[Tensor]]
) -> dict[str, _Evidence]:
    names = [m.name for m in ledger.mechanisms if m.sample_rate == 1 for _ in range(m.steps)]
    names += ["not in the ledger"] * (len(releases) - len(names))
    found: dict[str, _Evidence] = {}
    for j, (name, release) in enumerate(zip(names, releases, strict=True)):
        std = release.mechanism.sensitivity * max(release.mechanism.noise_multiplier, 1e-6)
        signal = torch.stack([values[j] for values in alone]).double() / std
        rest = (release.released.flatten().double() - background[j].double()) / std
        one = _Evidence(signal @ signal.T, signal @ rest)
        for key in (name, "all"):
            before = found.get(key)
            found[key] = one if before is None else _Evidence(before.gram + one.gram, before.match + one.match)
    return found


def statistics_in_one_run(
    fit: Fit, known: Examples, canaries: Examples, seed: int, trust: float = 1.0
) -> dict[str, CanaryScores]:
    """Scores of m canaries after a single run, by mechanism and together ("all"): for `one_run_bound`.

    The attacker's guess is the linear least-squares estimate of all coins at once, from one release or all of them,
    with the charged noise times ``trust``: an attacker who doubts that there is noise takes a number near 0.
    """
    included = coins(len(canaries), seed)
    found = _evidence(fit, known + canaries[included], known, canaries, len(known) + len(canaries), seed)
    return {name: CanaryScores(_decode(evidence, trust).float(), included) for name, evidence in found.items()}


def _decode(evidence: _Evidence, trust: float) -> Tensor:
    # With coins s = ±1 and signals C, the rest is y = ½ Cᵀ(s + 1) + noise; the best linear estimate of s is then
    # (¼ CCᵀ + I)⁻¹ ½ C(y - ½ Cᵀ1) for noise of unit variance.
    gram = evidence.gram
    noise = trust**2 * torch.eye(len(gram), dtype=gram.dtype)
    return torch.linalg.solve(gram / 4 + noise, (evidence.match - gram.sum(1) / 2) / 2)


def statistics_in_many_runs(
    fit: Fit, known: Examples, canary: Examples, runs: int, seed: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Scores (runs,) of one canary with and without it, by mechanism and together: for `gaussian_bound`.

    Honest scores are exactly Gaussian: N(μ, 1) with the canary and N(0, 1) without, where μ is at most 1 / noise
    multiplier, reached by an image that uses the whole sensitivity.
    """
    scores: dict[str, tuple[list[float], list[float]]] = {}
    for run in range(2 * runs):
        taking_part = known + canary if run % 2 == 0 else known
        for name, evidence in _evidence(fit, taking_part, known, canary, len(known) + 1, seed + run).items():
            score = float(evidence.match[0] / evidence.gram[0, 0].sqrt().clamp_min(1e-12))
            scores.setdefault(name, ([], []))[run % 2].append(score)
    return {name: (torch.tensor(present), torch.tensor(absent)) for name, (present, absent) in scores.items()}


# --- attack on DP-SGD -------------------------------------------------------------------------------------------------


def gradient_canaries(mechanism: Mechanism, canaries: int, seed: int, noise: NoiseSource | None = None) -> CanaryScores:
    """Canaries for `training.fit_private`: each has a weight of its own and a gradient ten times the clipping norm.

    The attacker sees every noisy gradient (as the guarantee of DP-SGD allows) and adds up each canary's own coordinate.
    The coordinates have independent noise, so with a sample rate of 1 the scores are Gaussian and fit for
    `gaussian_bound`; for smaller rates use `one_run_bound`. Source: "Dirac canaries" of Nasr et al. 2023.

    Args:
        mechanism: noise, sample rate, steps and clipping norm to audit.
        canaries: how many, all of the private data; those whose coin says no have a gradient of zero.
        seed: of the coins and, unless ``noise`` is given, of the noise.
    """
    included = coins(canaries, seed)
    network = nn.Linear(canaries, 1, bias=False)
    nn.init.zeros_(network.weight)
    size = 10 * mechanism.sensitivity * included.float()

    def loss(module: nn.Module, chosen: Tensor) -> Tensor:
        rows = nn.functional.one_hot(chosen, canaries).float() * size[chosen, None]
        return module(rows)[:, 0]

    settings = FitSettings(steps=mechanism.steps, batch=canaries, ema_decay=0.0)
    source = noise or NoiseSource.seeded(seed + 1)
    with watched() as seen:
        for _ in training.fit_private(network, loss, canaries, mechanism, settings, source):
            pass
    return CanaryScores(torch.stack([one.released for one in seen]).sum(0), included)


# --- attacks on what is published -------------------------------------------------------------------------------------


@torch.no_grad()
def model_scores(synthesizer: LatentDiffusion, examples: Examples, draws: int = 64, seed: int = 0) -> Tensor:
    """Minus the released model's denoising loss on each example (n,): high for what it was trained on.

    Source: loss-based membership inference, Yeom et al. 2018; for diffusion models Matsumoto, Miura and Yanai 2023.
    """
    assert synthesizer.mixture is not None
    assert synthesizer.network is not None, "fit or restore first"
    base, network, settings = synthesizer.mixture, synthesizer.network, synthesizer.settings
    radius = settings.mixture.clip_norm * math.sqrt(synthesizer.compressor.dim)
    latents = clip_rows(synthesizer.compressor.encode(examples.images), radius)
    scores = []
    for part, labels in zip(latents.split(1024), examples.labels.split(1024), strict=True):
        random = torch.Generator().manual_seed(seed)

        def denoise(noisy: Tensor, sigma: Tensor, labels: Tensor = labels) -> Tensor:
            return denoiser.denoise(base, network, noisy, sigma, labels)

        scores.append(-diffusion.denoising_loss(denoise, part, settings.levels, draws, random))
    return torch.cat(scores)


def synthetic_scores(images: Tensor, synthetic: Tensor) -> Tensor:
    """Minus the distance of each image (n,) to the nearest of the published synthetic images, in pixels."""
    flat = synthetic.flatten(1)
    return torch.cat([-torch.cdist(part, flat).min(1).values for part in images.flatten(1).split(512)])


@dataclass(frozen=True)
class Roc:
    """An attack's rates at every threshold, from strict to lax; both not falling from 0 to 1."""

    false_positive: np.ndarray
    true_positive: np.ndarray

    def at(self, false_positive: float) -> float:
        """The true positive rate at a false positive rate of at most that (0 to 1)."""
        return float(self.true_positive[self.false_positive <= false_positive].max())

    @property
    def area(self) -> float:
        """Area under the curve: 0.5 for guessing."""
        return float(np.trapezoid(self.true_positive, self.false_positive))


def roc(members: Tensor, others: Tensor) -> Roc:
    """The curve of "a high score means member"; scores that are equal fall on the same side.

    >>> roc(torch.tensor([3.0, 2.0]), torch.tensor([2.0, 1.0])).area
    0.875
    """
    cuts = torch.cat([members, others]).unique(sorted=True).flip(0)
    rates = [[0.0, *((scores[None] >= cuts[:, None]).double().mean(1).tolist())] for scores in (others, members)]
    return Roc(np.array(rates[0]), np.array(rates[1]))


def model_in_one_run(
    fit: Callable[[Examples, int], LatentDiffusion], known: Examples, canaries: Examples, seed: int
) -> dict[str, CanaryScores]:
    """Canaries for a whole method: those whose coin says yes join the training images; one run, for `one_run_bound`.

    The attacker has the saved model and nothing else. "loss": how much better the model fits a canary than one fitted
    without any canary. "moments": which canaries explain, by least squares, what the mixture in the model says about
    the counts, sums and second moments of its classes beyond those of the known images. ``fit`` gets the images and a
    seed; the attacker's own fit has another one, because nobody outside knows the noise.
    """
    included = coins(len(canaries), seed)
    attacked, reference = fit(known + canaries[included], seed), fit(known, seed + _ANOTHER_SEED)
    n = len(known) + int(included.sum())
    return _model_attacks(attacked, reference, known, canaries, included, n)


def _model_attacks(
    attacked: LatentDiffusion, reference: LatentDiffusion, known: Examples, canaries: Examples, included: Tensor, n: int
) -> dict[str, CanaryScores]:
    losses = model_scores(attacked, canaries) - model_scores(reference, canaries)
    return {
        "loss": CanaryScores(losses, included),
        "moments": CanaryScores(_moment_scores(attacked, known, canaries, n), included),
    }


def _moment_scores(synthesizer: LatentDiffusion, known: Examples, canaries: Examples, n: int) -> Tensor:
    assert synthesizer.mixture is not None, "fit or restore first"
    radius = synthesizer.settings.mixture.clip_norm * math.sqrt(synthesizer.compressor.dim)
    totals = n * synthesizer.mixture.class_weights
    means, weights = synthesizer.mixture.means, synthesizer.mixture.weights
    vectors, values = synthesizer.mixture.vectors, synthesizer.mixture.values
    covariances = (vectors * values[:, None]) @ vectors.mT
    second = covariances + torch.einsum("ck,cki,ckj->cij", weights, means, means)
    blocks = torch.cat([torch.ones(len(totals), 1), torch.einsum("ck,cki->ci", weights, means), second.flatten(1)], 1)

    def extended(examples: Examples) -> Tensor:
        latents = clip_rows(synthesizer.compressor.encode(examples.images), radius).double()
        return torch.cat([torch.ones(len(latents), 1, dtype=latents.dtype), latents], dim=1)

    def class_sums(examples: Examples) -> Tensor:
        rows = [extended(examples)[examples.labels == c] for c in range(examples.num_classes)]
        return torch.stack([torch.cat([row.sum(0), (row[:, 1:].T @ row[:, 1:]).flatten()]) for row in rows])

    rows = extended(canaries)
    one = torch.cat([rows, (rows[:, 1:, None] * rows[:, None, 1:]).flatten(1)], dim=1)
    hot = nn.functional.one_hot(canaries.labels, canaries.num_classes)
    signal = (hot[:, :, None] * one[:, None]).flatten(1)
    rest = (totals[:, None] * blocks - class_sums(known)).flatten()
    gram = signal @ signal.T
    return _decode(_Evidence(gram, signal @ rest), 1e-3 * float(gram.diagonal().mean().sqrt())).float()


# --- the whole method, as it is run -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Audit:
    """What several attacks on one fit prove together.

    ``epsilon_claimed``: ε of the fit's own ledger. ``bounds``: attack → lower bound; with probability ``confidence``
    over the run, none of them lies above the true ε. ``images``, ``canaries``: how many there were. ``told``: what
    tells of single images beside the mechanisms, so that no ε holds at all; empty if the audit found nothing.
    """

    epsilon_claimed: float
    delta: float
    confidence: float
    bounds: dict[str, LowerBound]
    images: int
    canaries: int
    seconds: float
    told: tuple[str, ...] = ()

    @property
    def strongest(self) -> str:
        """The attack that proves most."""
        return max(self.bounds, key=lambda name: self.bounds[name].epsilon_lower)

    @property
    def power(self) -> float:
        """The largest ε that attacks by canaries among the images could have proved, had every guess been right."""
        return self._power(self.canaries)

    @property
    def gradient_power(self) -> float:
        """The same for attacks by gradients on DP-SGD."""
        return self._power(GRADIENT_CANARIES)

    def _power(self, canaries: int) -> float:
        return one_run_power(canaries, self.delta, 1 - (1 - self.confidence) / len(self.bounds))

    @property
    def contradicted(self) -> bool:
        """Whether any attack disproves the claim."""
        return bool(self.told) or self.bounds[self.strongest].contradicts(self.epsilon_claimed)


def audit_method(
    examples: Examples,
    settings: SynthesisSettings,
    spec: PrivacySpec,
    seed: int = 0,
    canaries: int = 400,
    confidence: float = CONFIDENCE,
) -> Audit:
    """Attack `LatentDiffusion` with the settings and the budget of a real run, by canaries in a single fit.

    The last ``canaries`` of the images make way for odd ones, each with a random class, of which a fair coin decides
    whether it takes part; a canary that does not is blank, so that the public number of images tells nothing. Attacks:

    - on each full-batch mechanism, and on all of them together: the attacker sees what was released and knows all
      images but the coins (`statistics_in_one_run`), and once more by one who doubts that there is noise;
    - on each DP-SGD of the ledger: gradients of the clipping norm (`gradient_canaries`), 2,000 of them;
    - on the saved model: "loss" and "moments" (`model_in_one_run`);
    - on what is beside the mechanisms: the public draws of a secure run, which may not follow from who takes part, and
      what later stages learn from synthetic images, which may follow from the releases alone.

    The fit is seeded as `experiment.run` seeds a secure one, with its noise seeded as well, so that it can be replayed.
    The confidence is divided among the attacks (Bonferroni). Seeds: ``seed`` of the fit, the coins and the canaries.

    Raises:
        PrivacyError: fewer than 20 canaries, or more than half of the images.
        ValueError: settings and budget that can't work with that many images.
    """
    if not 20 <= canaries <= len(examples) // 2:
        raise PrivacyError(
            f"expected 20 canaries or more and at most half of {len(examples)} images, got {canaries}: choose others"
        )
    start, n = time.monotonic(), len(examples)
    known = examples[: n - canaries]
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(examples.num_classes, (canaries,), generator=random)
    _, channels, height, width = examples.images.shape
    odd = Examples(odd_images(canaries, (channels, height, width), seed + 1), labels, examples.num_classes)
    included = coins(canaries, seed + 2)

    seeded = replace(spec, secure_mode=False)  # a replay needs the same first components

    def build(part: Examples, seed: int) -> LatentDiffusion:
        shape, its_seed = (channels, height, width), _seed_of_a_secure_run(part, settings, spec, seed)
        return LatentDiffusion(shape, examples.num_classes, settings, seeded, its_seed)

    def fitted(part: Examples, seed: int) -> tuple[LatentDiffusion, list[Release], Ledger]:
        synthesizer, guard = build(part, seed), guarded(part, n)
        synthesizer.check(n)
        with watched() as seen, _only_the_first(len(part)):
            for stage in synthesizer.stages:
                for _ in synthesizer.fit_stage(stage, guard):
                    pass
                _take_up(synthesizer, stage, synthesizer)
        return synthesizer, full_batch(seen), guard.ledger

    taking_part = known + odd[included]
    attacked, releases, ledger = fitted(taking_part, seed)
    reference = fitted(known, seed + _ANOTHER_SEED)[0]
    found = _model_attacks(attacked, reference, known, odd, included, len(known) + canaries // 2)
    found = {f"saved model, {name}": scores for name, scores in found.items()}

    answers = [release.released for release in releases]
    told = [] if build(taking_part[1:], seed).seed == attacked.seed else ["public draws"]
    told += _what_else_moved(build(taking_part, seed), known, n, attacked, answers, ledger)
    replays = [_replay(build(taking_part, seed), part, n, attacked, answers, ledger) for part in (known, *_ones(odd))]
    evidence = _weigh(releases, ledger, replays[0], replays[1:])
    evidence["all statistics"] = evidence.pop("all")
    found |= {name: CanaryScores(_decode(one, 1.0).float(), included) for name, one in evidence.items()}
    doubting = _decode(evidence["all statistics"], 0.01).float()
    found["statistics, doubted"] = CanaryScores(doubting, included)
    for mechanism in ledger.mechanisms:
        if mechanism.sample_rate < 1:
            found[mechanism.name] = gradient_canaries(mechanism, GRADIENT_CANARIES, seed + 3)

    each = 1 - (1 - confidence) / len(found)
    bounds = {name: one_run_bound(scores, spec.delta, each) for name, scores in found.items()}
    claimed, seconds = ledger.epsilon(spec.delta), time.monotonic() - start
    return Audit(claimed, spec.delta, confidence, bounds, n, canaries, seconds, tuple(told))


def _seed_of_a_secure_run(part: Examples, settings: SynthesisSettings, spec: PrivacySpec, seed: int) -> int:
    """Of all that is public in a secure run on these images."""
    asked = experiment.Experiment(
        Path("audited"),
        spec.epsilon,
        noise_multiplier=spec.noise_multiplier,
        delta=spec.delta,
        secure_mode=True,
        seed=seed % experiment.LARGEST_SEED,
        settings=settings,
    )
    content = {"images": part.images, "labels": part.labels}
    sums = {name: hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest() for name, value in content.items()}
    return experiment.fit_seed(asked, sums)


def in_words(found: Audit) -> list[str]:
    """An audit for people: the claim, what each attack proves, the verdict and the time; one line each."""
    lines = [
        f"claimed: ε = {found.epsilon_claimed:.4g} at δ = {found.delta:g}; "
        f"attacked with {found.canaries} canaries among {found.images:,} images",
        f"proved, all lines together at {found.confidence:.0%} confidence:",
    ]
    for name, bound in found.bounds.items():
        lines.append(f"  ε ≥ {bound.epsilon_lower:<6.3f} {name:<24} {bound.correct} of {bound.guesses} guesses right")
    beside = f"{' and '.join(found.told)} tell of single images, so no ε holds" if found.told else "nothing moves"
    lines.append(f"beside the mechanisms: {beside}")
    strongest = found.bounds[found.strongest].epsilon_lower
    verdict = "below the claim, which is not disproved"
    if found.contradicted:
        verdict = "but the claim is DISPROVED" if found.told else "above the claim: DISPROVED"
    power = (
        f"if every guess had been right: ε ≥ {found.power:.3f} by {found.canaries} images, "
        f"{found.gradient_power:.3f} by {GRADIENT_CANARIES:,} gradients, and no more"
    )
    return [*lines, power, f"lower bound: ε ≥ {strongest:.3f}, {verdict}", f"time: {found.seconds:.0f} s"]


def _ones(examples: Examples) -> Iterator[Examples]:
    for i in range(len(examples)):
        yield examples[i : i + 1]


def _replay(
    synthesizer: LatentDiffusion,
    part: Examples,
    n: int,
    attacked: LatentDiffusion,
    answers: Sequence[Tensor],
    ledger: Ledger,
) -> list[Tensor]:
    """What ``part`` alone puts into each full-batch mechanism of a run that releases ``answers``; no DP-SGD is done."""
    with watched(in_turn(answers)) as seen:
        for stage in _replayed(synthesizer, part, n, attacked, seen, ledger, take_over=True):
            _take_up(synthesizer, stage, attacked)
    return _values(full_batch(seen))


def _what_else_moved(
    synthesizer: LatentDiffusion,
    part: Examples,
    n: int,
    attacked: LatentDiffusion,
    answers: Sequence[Tensor],
    ledger: Ledger,
) -> list[str]:
    """What other images (``part``) change in a run that releases the same ``answers``: of all that comes from synthetic
    images, which `_replay` takes over from the attacked run because it is the same for all, nothing may."""
    moved = []
    learned = {selection.STAGE: "selector", transport.STAGE: "transport"}
    with watched(in_turn(answers)) as seen:
        for stage in _replayed(synthesizer, part, n, attacked, seen, ledger, take_over=False):
            if stage in learned:
                ours, theirs = (getattr(one, learned[stage]) for one in (synthesizer, attacked))
                if not (torch.equal(ours.mean, theirs.mean) and torch.equal(ours.axes, theirs.axes)):
                    moved.append(f"features of the {stage}")
            _take_up(synthesizer, stage, attacked)
    return moved


def _take_up(synthesizer: LatentDiffusion, stage: str, fitted: LatentDiffusion) -> None:
    """Go on from a finished stage as a run does from its file: how tensors lie in memory changes the last digits."""
    synthesizer.restore(stage, {name: value.contiguous().clone() for name, value in fitted.state(stage).items()})


def _replayed(
    synthesizer: LatentDiffusion,
    part: Examples,
    n: int,
    attacked: LatentDiffusion,
    seen: list[Release],
    ledger: Ledger,
    take_over: bool,
) -> Iterator[str]:
    """Each stage after its last full-batch release; the caller then restores it."""
    last, guard = 0, guarded(part, n)
    for stage in synthesizer.stages:
        last += sum(m.steps for m in ledger.mechanisms if m.stage == stage and m.sample_rate == 1)
        if take_over:
            synthesizer.selector.restore(attacked.selector.state())
            synthesizer.transport.restore(attacked.transport.state())
        if len(full_batch(seen)) < last:
            with _only_the_first(len(part)):
                for _ in synthesizer.fit_stage(stage, guard):
                    if len(full_batch(seen)) == last:
                        break
        yield stage


# --- three readings of the paper --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """A fitted synthesizer, the ε that a reading of the abstract claims, and what the ledger says (may be infinite)."""

    synthesizer: LatentDiffusion
    epsilon_claimed: float
    epsilon_ledger: float


def reading(name: str, examples: Examples, settings: SynthesisSettings, spec: PrivacySpec, seed: int) -> Reading:
    """Fit one of three readings of "privacy-aware compression, then latent diffusion", all with the same claim.

    "A": only the encoder is private (it gets the whole budget), the rest is ordinary training on its latents. The
    claimed ε is that of the encoder, and it is not true: latents of private images are private data. "B": each latent
    and its label are clipped and noised once; what follows is post-processing. "C": both stages are private and
    composed, as `LatentDiffusion` does. Only for comparison: nothing here can write a record.
    """
    if spec.epsilon is None or name not in _READINGS:
        raise PrivacyError(f"expected reading A, B or C and a target epsilon, got {name!r} and {spec.epsilon}")
    data = PrivateData(examples.images, examples.labels, examples.num_classes, Ledger())
    synthesizer, claimed = _READINGS[name](data, settings, spec, seed)
    return Reading(synthesizer, claimed, data.ledger.epsilon(spec.delta))


def _first_stage(
    data: PrivateData, settings: SynthesisSettings, allowance: Allowance, seed: int
) -> compression.Compressor:
    compressor = compression.build(_shape(data), settings.compression, seed)
    random = torch.Generator().manual_seed(seed)
    for _ in compressor.fit(data, allowance, NoiseSource.seeded(seed), random):
        pass
    return compressor


def _whole(spec: PrivacySpec) -> Allowance:
    assert spec.epsilon is not None
    return Allowance(gaussian_noise_multiplier(spec.epsilon, spec.delta), spec.delta)


def _unfitted(data: PrivateData, settings: SynthesisSettings, spec: PrivacySpec | None, seed: int) -> LatentDiffusion:
    return LatentDiffusion(_shape(data), data.num_classes, settings, spec, seed)


def _two_stages(settings: SynthesisSettings) -> SynthesisSettings:
    """Without matching, selection and transport: readings A and B are of the paper's two stages only."""
    return replace(
        settings,
        selection=replace(settings.selection, candidates=1),
        transport=replace(settings.transport, steps=0),
        matching=replace(settings.matching, steps=0),
    )


def _shape(data: PrivateData) -> tuple[int, int, int]:
    channels, height, width = data.image_shape
    return channels, height, width


def _reading_a(
    data: PrivateData, settings: SynthesisSettings, spec: PrivacySpec, seed: int
) -> tuple[LatentDiffusion, float]:
    ordinary = _unfitted(data, _two_stages(settings), None, seed)
    ordinary.compressor = _first_stage(data, settings, _whole(spec), seed)
    claimed = data.ledger.epsilon(spec.delta)
    for _ in ordinary.fit_stage("diffusion", data):
        pass
    return ordinary, claimed


def _reading_b(
    data: PrivateData, settings: SynthesisSettings, spec: PrivacySpec, seed: int
) -> tuple[LatentDiffusion, float]:
    chosen = ClassGaussianSettings(settings.compression, settings.mixture, settings.compression_share)
    noised = NoisedLatents(_shape(data), data.num_classes, chosen, spec, seed)
    noised.fit(data)
    result = _unfitted(data, _two_stages(settings), spec, seed)
    result.compressor, result.mixture = noised.compressor, noised.mixture
    result.diffusion.build_network()  # starts at zero: what noise this strong leaves of the latents is their Gaussian
    return result, data.ledger.epsilon(spec.delta)


def _reading_c(
    data: PrivateData, settings: SynthesisSettings, spec: PrivacySpec, seed: int
) -> tuple[LatentDiffusion, float]:
    composed = _unfitted(data, settings, spec, seed)
    composed.fit(data)
    return composed, data.ledger.epsilon(spec.delta)


_READINGS = {"A": _reading_a, "B": _reading_b, "C": _reading_c}
