"""Hidden checks of assignment 4. They run outside the sandbox and call a submission's functions inside it."""

import math
from collections.abc import Iterator

import numpy as np
from scipy import linalg, optimize, stats

from dpldm.coursework.checks import Array, Finding, Student, close, judge, told
from dpldm.privacy.mechanisms import gaussian_noise_multiplier

DELTA = 1e-5


def frechet(student: Student) -> Iterator[Finding]:
    random = np.random.default_rng(31)
    a = random.normal(size=(60, 4)) @ random.normal(size=(4, 4))
    b = random.normal(size=(50, 4)) @ random.normal(size=(4, 4)) + 0.7
    got, choices = student.call("frechet_distance", a=a, b=b).number(), [_frechet(a, b, ddof) for ddof in (1, 0)]
    right = min((choice[0] for choice in choices), key=lambda value: abs(value - got))
    mistakes = {
        sentence + " " * position: value  # the same sentence for either way to divide
        for position, (_, wrong) in enumerate(choices)
        for sentence, value in wrong.items()
    }
    yield judge(4, got, right, mistakes, "This is not the Fréchet distance of the formula.", relative=1e-3)


def _frechet(a: Array, b: Array, ddof: int) -> tuple[float, dict[str, float]]:
    """The distance, and what mistakes give, with covariances divided by n - ddof."""
    first, second = np.cov(a, rowvar=False, ddof=ddof), np.cov(b, rowvar=False, ddof=ddof)
    far, spread = float(((a.mean(0) - b.mean(0)) ** 2).sum()), float(np.trace(first + second))
    root = float(np.trace(np.real(linalg.sqrtm(first @ second))))
    right = far + spread - 2 * root
    roots = float(np.trace(np.sqrt(np.abs(first @ second))))
    deviations = np.sqrt(np.diag(first)) - np.sqrt(np.diag(second))
    return right, {
        "The root of each entry is not the root of the matrix.": far + spread - 2 * roots,
        "The root of the matrices has a 2 before it.": far + spread - root,
        "The means do not take part.": spread - 2 * root,
        "The distance of the means is not squared.": math.sqrt(far) + spread - 2 * root,
        "The root of the whole is returned; FID is without it.": math.sqrt(right),
        "Only the variances take part, not the covariances.": far + float((deviations**2).sum()),
    }


def downstream(student: Student) -> Iterator[Finding]:
    random = np.random.default_rng(32)
    centres = random.normal(size=(3, 5))
    labels, real_labels = np.arange(60) % 3, np.arange(300) % 3
    synthetic = centres[labels] + random.normal(0, 1.0, size=(60, 5)) + 0.8 * random.normal(size=5)
    real = centres[real_labels] + random.normal(0, 1.0, size=(300, 5))
    right = _accuracy(synthetic, labels, real, real_labels)
    mistakes = {
        "It is trained on real images: then the score says nothing of the synthetic ones.": _accuracy(
            real, real_labels, real, real_labels
        ),
        "It is scored on synthetic images: what counts is how it does on real ones.": _accuracy(
            synthetic, labels, synthetic, labels
        ),
        "Training and scoring are the wrong way round.": _accuracy(real, real_labels, synthetic, labels),
        "The share of wrong labels is returned.": 1 - right,
        "A percentage is returned, and not a share.": 100 * right,
    }
    sent = {"synthetic": synthetic, "synthetic_labels": labels, "real": real, "real_labels": real_labels}
    got = student.call("downstream_accuracy", **sent).number()
    yield judge(3, got, right, mistakes, "This is not the accuracy of nearest class means.", relative=1e-6)


def _accuracy(rows: Array, labels: Array, others: Array, other_labels: Array) -> float:
    means = np.stack([rows[labels == label].mean(axis=0) for label in range(3)])
    guesses = [int(np.linalg.norm(row - means, axis=1).argmin()) for row in others]
    return float(np.mean(np.asarray(guesses) == other_labels))


def membership(student: Student) -> Iterator[Finding]:
    random = np.random.default_rng(33)
    members, others = random.integers(0, 9, size=40) + 1.0, random.integers(0, 9, size=55) + 0.0
    statistic = stats.mannwhitneyu(members, others).statistic / (40 * 55)
    wins = float(np.mean([member > other for member in members for other in others]))
    mistakes = {
        "Members and non-members look mixed up.": 1 - statistic,
        "A tie counts nothing.": wins,
        "A tie counts as a success.": 1 - float(np.mean([m < o for m in members for o in others])),
    }
    got = student.call("membership_auc", member_scores=members, other_scores=others).number()
    yield judge(3, got, statistic, mistakes, "This is not the area under the curve.")


def bound(student: Student) -> Iterator[Finding]:
    for points, false_positive, false_negative, delta in ((2, 0.02, 0.3, 0.01), (1, 0.4, 0.05, 0.001)):
        rates = ((false_positive, false_negative), (false_negative, false_positive))
        both = [math.log((1 - delta - one) / other) for one, other in rates]
        mistakes = {
            "Only one of the two conditions is used.": both[0],
            "Only one of the two conditions is used: it is the other one that rules out more.": both[1],
            "The smaller of the two is returned: each of them holds.": min(both),
            "δ does not take part.": max(math.log((1 - one) / other) for one, other in rates),
        }
        settings = {"false_positive_rate": false_positive, "false_negative_rate": false_negative, "delta": delta}
        got = student.call("epsilon_lower", **settings).number()
        yield judge(points, got, max(both), mistakes, "This is not the largest ε that the two conditions rule out.")
    with told("Where nothing is ruled out"):  # also where 1 - δ - α is below 0, which has no logarithm
        rates = [{"false_positive_rate": rate, "false_negative_rate": 0.6} for rate in (0.9, 1.0)]
        got = [student.call("epsilon_lower", **each, delta=0.01).number() for each in rates]
    yield Finding(1, close(got, [0.0, 0.0]), "Where nothing is ruled out, the bound should be 0.")


def rate(student: Student) -> Iterator[Finding]:
    for points, errors, trials, confidence in ((1, 3, 80, 0.95), (1, 0, 50, 0.99)):
        sides = [errors, trials, 1 - confidence]
        right = float(optimize.brentq(lambda p, s=sides: stats.binom.cdf(s[0], s[1], p) - s[2], 1e-9, 1 - 1e-9))
        share = errors / trials
        wald = share + float(stats.norm.ppf(confidence)) * math.sqrt(share * (1 - share) / trials)
        mistakes = {
            "This is the rate that was seen, not a bound on the true one.": share,
            "A bell curve is taken for the number of errors: too short where errors are few.": wald,
            "This is the end of a two-sided interval.": float(
                stats.beta.ppf((1 + confidence) / 2, errors + 1, trials - errors)
            ),
            "This is the quantile of the lower end.": float(
                stats.beta.ppf(1 - confidence, errors + 1, trials - errors)
            ),
        }
        got = student.call("rate_upper", errors=errors, trials=trials, confidence=confidence).number()
        yield judge(points, got, right, mistakes, "This is not the upper end of the interval.")
    got = student.call("rate_upper", errors=20, trials=20, confidence=0.9).number()
    yield Finding(1, close(got, 1.0), "With nothing but errors, no rate is ruled out.")


def caught(student: Student) -> Iterator[Finding]:
    """Right claims use all of their ε; broken ones have an eighth of the noise, or a record that is not clipped."""
    random = np.random.default_rng(34)
    answers: dict[bool, list[bool]] = {True: [], False: []}
    for epsilon in (0.5, 1.0, 2.0):
        noise = gaussian_noise_multiplier(epsilon, DELTA)
        for broken, shift, std in ((False, 1.0, noise), (True, 1.0, noise / 8), (True, 12.0, noise)):
            runs = {"with_record": random.normal(shift, std, 4000), "without_record": random.normal(0, std, 4000)}
            got = student.call("is_broken", **runs, epsilon=epsilon, delta=DELTA).number()
            answers[broken].append(bool(got) == broken)
    always = [all(answers[broken]) and not any(answers[not broken]) for broken in (True, False)]
    if any(always):
        yield Finding(5, False, "The answer is the same whatever the runs are.")
        return
    yield Finding(2, all(answers[False]), "A claim that holds is called broken: how sure are the error rates?")
    yield Finding(3, all(answers[True]), "A badly broken implementation is not noticed.")


QUESTIONS = {
    "frechet": frechet,
    "downstream": downstream,
    "membership": membership,
    "bound": bound,
    "rate": rate,
    "caught": caught,
}
