"""Hidden checks of assignment 1. They run outside the sandbox and call a submission's functions inside it.

An expected value comes from a second way to the answer where there is one: numerical integration for δ, the library's
accountant (tested against two others) for ε.
"""

import math
from collections.abc import Iterator

import numpy as np
from scipy import stats

from dpldm.coursework.checks import Finding, Student, close, judge, judge_noise, normal
from dpldm.privacy.mechanisms import gaussian_epsilon, gaussian_noise_multiplier

DELTA = 1e-5


def integrated_delta(noise_multiplier: float, epsilon: float) -> float:
    """δ(ε) = ∫ max(0, p - e^ε q), the definition, between two normal densities at distance 1."""
    grid = np.linspace(-12 * noise_multiplier, 1 + 12 * noise_multiplier, 400_001)
    p, q = stats.norm.pdf(grid, 1, noise_multiplier), stats.norm.pdf(grid, 0, noise_multiplier)
    return float(np.trapezoid(np.maximum(p - math.exp(epsilon) * q, 0), grid))


def gaussian_delta(student: Student) -> Iterator[Finding]:
    for noise_multiplier, epsilon in ((0.8, 1.7), (2.3, 0.4)):
        near, far, phi = 0.5 / noise_multiplier, epsilon * noise_multiplier, stats.norm.cdf
        first, second = phi(near - far), phi(-near - far)
        got = student.call("gaussian_delta", noise_multiplier=noise_multiplier, epsilon=epsilon).number()
        mistakes = {
            "ε and σ look mixed up: which of the two is the noise?": integrated_delta(epsilon, noise_multiplier),
            "The second term has a factor in front of it that is missing here.": first - second,
            "The factor in front of the second term is not the ε itself.": first - epsilon * second,
            "The fraction with σ has a 2 in it.": phi(2 * near - far) - math.exp(epsilon) * phi(-2 * near - far),
        }
        otherwise = "δ is not what the definition gives for a noise multiplier and an ε that are not in the examples."
        yield judge(1, got, integrated_delta(noise_multiplier, epsilon), mistakes, otherwise)


def noise_std(student: Student) -> Iterator[Finding]:
    for points, sensitivity, epsilon, delta in ((1, 1.0, 0.7, 1e-6), (1, 2.5, 1.9, 1e-5), (1, 0.2, 3.0, 1e-4)):
        multiplier = gaussian_noise_multiplier(epsilon, delta)
        classical = math.sqrt(2 * math.log(1.25 / delta)) / epsilon
        got = student.call("noise_std", sensitivity=sensitivity, epsilon=epsilon, delta=delta).number()
        mistakes = {
            "The noise does not grow with the sensitivity as it has to.": multiplier,
            "The noise gets smaller with a larger sensitivity.": multiplier / sensitivity,
            "This looks like a variance, and a standard deviation was asked for.": (sensitivity * multiplier) ** 2,
            "This is the classical bound: not the smallest, and only proved below ε = 1.": sensitivity * classical,
            "ε and σ look mixed up: the ε of a noise is returned, not the noise.": gaussian_epsilon(epsilon, delta),
        }
        otherwise = "The noise is not the smallest that keeps the promise, or does not keep it."
        yield judge(points, got, sensitivity * multiplier, mistakes, otherwise)


def clip_rows(student: Student) -> Iterator[Finding]:
    random = np.random.default_rng(1)
    rows = random.normal(size=(12, 5)) * random.uniform(0.1, 3, size=(12, 1))
    clip_norm = 1.3
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    right = rows * np.minimum(1, clip_norm / lengths)
    got = student.call("clip_rows", rows=rows, clip_norm=clip_norm).array(rows.shape)
    mistakes = {
        "Every row gets the same length: short rows have to stay as they are.": rows * clip_norm / lengths,
        "Each number is clipped by itself, which leaves rows longer than allowed.": np.clip(
            rows, -clip_norm, clip_norm
        ),
        "The table is shortened as a whole, and not each row.": rows * min(1, clip_norm / np.linalg.norm(rows)),
        "Each column is clipped: a person is a row.": rows
        * np.minimum(1, clip_norm / np.linalg.norm(rows, axis=0, keepdims=True)),
        "Lengths are measured in another norm than the Euclidean one.": rows
        * np.minimum(1, clip_norm / np.abs(rows).sum(axis=1, keepdims=True)),
    }
    yield judge(2, got, right, mistakes, "Some row is too long, or was changed although it is short.")
    zeros = student.call("clip_rows", rows=np.zeros((2, 3)), clip_norm=0.5).array((2, 3))
    yield Finding(1, close(zeros, np.zeros((2, 3))), "A row of zeros does not stay a row of zeros.")


def sum_sensitivity(student: Student) -> Iterator[Finding]:
    for relation, factor, sentence in (
        ("add-remove", 1, "Add-or-remove-one is answered as if a record were replaced: what can one record add?"),
        ("replace-one", 2, "Replace-one is answered as add-or-remove-one: one record goes and another one comes."),
    ):
        got = student.call("sum_sensitivity", clip_norm=1.7, relation=relation).number()
        yield judge(1, got, factor * 1.7, {sentence: (3 - factor) * 1.7}, f"The bound for {relation} is not right.")


def private_mean(student: Student) -> Iterator[Finding]:
    random = np.random.default_rng(2)
    count, size, expected, clip_norm, noise_multiplier = 40, 900, 50, 2.0, 1.5
    rows = random.normal(size=(count, size)) * random.uniform(0.01, 0.3, size=(count, 1)) + 0.03
    settings = {"rows": rows, "clip_norm": clip_norm, "noise_multiplier": noise_multiplier, "expected_count": expected}
    clipped = rows * np.minimum(1, clip_norm / np.linalg.norm(rows, axis=1, keepdims=True))
    mean = rows.mean(axis=0)
    after = mean * min(1, clip_norm / np.linalg.norm(mean))
    total = rows.sum(axis=0)
    quiet = student.call("private_mean", **settings, normal=normal(None)).array((size,))
    mistakes = {
        "Clipping after averaging bounds nobody's share: one row can still move the mean by any amount.": after,
        "Clipping the sum bounds nobody's share.": total * min(1, clip_norm / np.linalg.norm(total)) / expected,
        "The rows are not clipped.": total / expected,
        "The number of rows is private: divide by the public number.": clipped.mean(axis=0),
        "The sum is not divided.": clipped.sum(axis=0),
    }
    yield judge(2, quiet, clipped.sum(axis=0) / expected, mistakes, "Without noise, this is not the mean asked for.")
    answer = student.call("private_mean", **settings, normal=normal(7))
    noise = (answer.array((size,)) - quiet) * expected
    yield judge_noise(2, noise, answer.asked, clip_norm, noise_multiplier, count, expected)


def composed_epsilon(student: Student) -> Iterator[Finding]:
    for sigmas in ([3.0, 5.0, 4.0], [2.0, 9.0]):
        single = [gaussian_epsilon(sigma, DELTA) for sigma in sigmas]
        right = gaussian_epsilon(sum(sigma**-2 for sigma in sigmas) ** -0.5, DELTA)
        got = student.call("composed_epsilon", noise_multipliers=sigmas, delta=DELTA).number()
        not_composed = "The budget is not composed: this is the ε of one of the releases."
        mistakes = {
            not_composed: max(single),
            not_composed + " The least noisy one is not all.": single[-1],
            "The ε are added up: true as a bound, but not what all of them cost together.": sum(single),
            "Noise multipliers are averaged; more releases would then cost no more.": gaussian_epsilon(
                float(np.mean(sigmas)), DELTA
            ),
            "The squares of the noise multipliers add up the other way round.": gaussian_epsilon(
                sum(sigma**2 for sigma in sigmas) ** 0.5, DELTA
            ),
        }
        yield judge(1, got, right, mistakes, "This is not the ε of all releases together.")


def own_noise(student: Student) -> Iterator[Finding]:
    epsilon = student.parameters["epsilon"]
    one = gaussian_noise_multiplier(epsilon, DELTA)
    mistakes = {
        "The budget is not composed: nine releases with this noise cost more than your ε.": one,
        "Each release gets a ninth of ε: that keeps the promise, but less noise does too.": gaussian_noise_multiplier(
            epsilon / 9, DELTA
        ),
        "The noise is nine times that of one release: less is enough.": 9 * one,
        "The noise goes down with the number of releases.": one / 3,
        "ε and σ look mixed up.": gaussian_epsilon(epsilon, DELTA),
    }
    got = student.value("own_noise_multiplier").number()
    yield judge(2, got, 3 * one, mistakes, "This does not fit your own ε (see the cell with your numbers).")


QUESTIONS = {
    "gaussian-delta": gaussian_delta,
    "noise-std": noise_std,
    "clip-rows": clip_rows,
    "sum-sensitivity": sum_sensitivity,
    "private-mean": private_mean,
    "composed-epsilon": composed_epsilon,
    "own-noise": own_noise,
}
