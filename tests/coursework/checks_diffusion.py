"""Hidden checks of assignment 3. They run outside the sandbox and call a submission's functions inside it.

Whatever is expected is computed with NumPy here, and ε by `dp_accounting`, whose RDP is the loosest accountant allowed.
"""

import math
from collections.abc import Iterator
from functools import cache
from itertools import pairwise

import numpy as np
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from dpldm.coursework.checks import (
    Array,
    Finding,
    Student,
    close,
    has_std,
    judge,
    judge_noise,
    named,
    normal,
    tensor,
    told,
)
from dpldm.privacy.mechanisms import gaussian_epsilon

DELTA = 1e-5


def _clipped(rows: Array, clip_norm: float) -> Array:
    return rows * np.minimum(1, clip_norm / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30))


@cache
def epsilon_of(noise_multiplier: float, sample_rate: float, steps: int, loose: bool = False) -> float:
    """ε by privacy loss distributions, or by Rényi orders, which tell a larger one."""
    event = SelfComposedDpEvent(PoissonSampledDpEvent(sample_rate, GaussianDpEvent(noise_multiplier)), steps)
    accountant = RdpAccountant() if loose else PLDAccountant()
    return accountant.compose(event).get_epsilon(DELTA)


def clip_gradients(student: Student) -> Iterator[Finding]:
    random = np.random.default_rng(21)
    rows, clip_norm = random.normal(size=(9, 4)) * random.uniform(0.1, 2, size=(9, 1)), 1.2
    mistakes = {
        "Every gradient gets the same length: short ones have to stay as they are.": rows
        * clip_norm
        / np.linalg.norm(rows, axis=1, keepdims=True),
        "Each number is clipped by itself, which leaves gradients longer than allowed.": np.clip(
            rows, -clip_norm, clip_norm
        ),
        "All gradients are shortened together, and not each.": rows * min(1, clip_norm / np.linalg.norm(rows)),
    }
    got = student.call("clip_gradients", gradients=tensor(rows), clip_norm=clip_norm).array((9, 4))
    yield judge(2, got, _clipped(rows, clip_norm), mistakes, "Some gradient is too long, or was changed though short.")
    zeros = student.call("clip_gradients", gradients=tensor(np.zeros((2, 3))), clip_norm=0.5).array((2, 3))
    yield Finding(1, close(zeros, np.zeros((2, 3))), "A gradient of zeros does not stay one.")


def private_gradient(student: Student) -> Iterator[Finding]:
    random = np.random.default_rng(22)
    count, size, expected, clip_norm, noise_multiplier = 30, 800, 40, 2.0, 1.5
    rows = random.normal(size=(count, size)) * random.uniform(0.01, 0.3, size=(count, 1)) + 0.03
    settings = {"clip_norm": clip_norm, "noise_multiplier": noise_multiplier, "expected_batch": expected}
    mean, total = rows.mean(axis=0), rows.sum(axis=0)
    mistakes = {
        "Clipping after averaging bounds nobody's share: one example moves the mean by any amount.": mean
        * min(1, clip_norm / np.linalg.norm(mean)),
        "Clipping the sum bounds nobody's share.": total * min(1, clip_norm / np.linalg.norm(total)) / expected,
        "The gradients are not clipped.": total / expected,
        "The size of a Poisson batch is private: divide by the expected one.": _clipped(rows, clip_norm).mean(axis=0),
        "The sum is not divided.": _clipped(rows, clip_norm).sum(axis=0),
    }
    quiet = student.call("private_gradient", gradients=tensor(rows), **settings, normal=normal(None, True))
    right = _clipped(rows, clip_norm).sum(axis=0) / expected
    yield judge(2, quiet.array((size,)), right, mistakes, "Without noise, this is not the mean gradient asked for.")
    loud = student.call("private_gradient", gradients=tensor(rows), **settings, normal=normal(7, True))
    noise = (loud.array((size,)) - quiet.array((size,))) * expected
    yield judge_noise(2, noise, loud.asked, clip_norm, noise_multiplier, count, expected)
    with told("With an empty batch"):
        nothing = student.call(
            "private_gradient", gradients=tensor(np.zeros((0, size))), **settings, normal=normal(8, True)
        )
        empty = nothing.array((size,))
    yield Finding(1, bool(np.any(empty)), "An empty batch needs noise too, or it shows that it is one.")


def microbatches(student: Student) -> Iterator[Finding]:
    random = np.random.default_rng(23)
    sizes, size, expected, clip_norm, noise_multiplier = (12, 3, 9, 6), 800, 25, 1.0, 2.0
    parts = [random.normal(size=(count, size)) * 0.05 for count in sizes]
    settings = {"clip_norm": clip_norm, "noise_multiplier": noise_multiplier, "expected_batch": expected}
    short = [_clipped(part, clip_norm) for part in parts]
    totals = [part.sum(axis=0) for part in parts]
    mistakes = {
        "Clipping after adding up a part bounds nobody's share.": sum(
            total * min(1, clip_norm / np.linalg.norm(total)) for total in totals
        )
        / expected,
        "The mean of each part is taken: parts are not equally large.": sum(part.mean(axis=0) for part in short)
        / len(parts),
        "The number of rows is private: divide by the expected one.": sum(part.sum(axis=0) for part in short)
        / sum(sizes),
        "The rows are not clipped.": sum(totals) / expected,
    }
    sent, nothing = [tensor(part) for part in parts], tensor(np.zeros((0, size)))
    quiet = student.call("gradient_from_parts", parts=sent, **settings, normal=normal(None, True))
    right = sum(part.sum(axis=0) for part in short) / expected
    yield judge(2, quiet.array((size,)), right, mistakes, "Without noise, this is not the mean gradient of the batch.")
    with told("With an empty part"):
        loud = student.call("gradient_from_parts", parts=[*sent, nothing], **settings, normal=normal(9, True))
        noise = (loud.array((size,)) - quiet.array((size,))) * expected
    draws = sum(math.prod(shape) for shape, _ in loud.asked)
    each = draws in (len(parts) * size, (len(parts) + 1) * size)  # the empty one may be left out
    if each and not has_std(noise, noise_multiplier * clip_norm):
        yield Finding(2, False, "Noise is added per microbatch: all parts together are one release.")
    else:
        yield judge_noise(2, noise, loud.asked, clip_norm, noise_multiplier, sum(sizes), expected)


def losses(student: Student) -> Iterator[Finding]:
    random = np.random.default_rng(24)
    latents, sigmas = random.normal(1, 1, size=(6, 3)), random.uniform(0.3, 2, size=(6, 5))
    noise = random.normal(size=(6, 5, 3))

    def call(rows: Array) -> Array:
        sent = {"latents": tensor(rows), "sigmas": tensor(sigmas), "noise": tensor(noise)}
        return student.call("denoising_losses", denoise=named("shrink"), **sent).array((6,))

    def errors_of(rows: Array) -> Array:
        return ((rows + sigmas[..., None] * noise) / (1 + sigmas[..., None] ** 2) - rows) ** 2

    errors, weights = errors_of(latents[:, None]), 1 + 1 / sigmas[..., None] ** 2
    right, plain = (weights * errors).mean(axis=(1, 2)), errors.mean(axis=(1, 2))
    mistakes = {
        "The weight of the noise level is left out.": plain,
        "The noises of a latent are added up and not averaged: clipping then bites at other places.": right * 5,
        "The coordinates are added up and not averaged.": right * 3,
        "All latents get the loss of the whole batch.": np.full(6, right.mean()),
        "Only one noise per latent is used.": (weights * errors)[:, 0].mean(axis=1),
    }
    got = call(latents)
    moved = latents.copy()
    moved[1:] += 5
    alone = close(call(moved)[0], got[0])
    sentence = "The loss of a latent changes with the other latents: batch statistics have no place in it."
    if not alone:
        tiled = (weights * errors_of(latents[np.arange(30).reshape(6, 5) % 6])).mean(axis=(1, 2))
        order = "A latent meets the noises of others: look at the order in which the latents are repeated."
        yield Finding(4, False, order if close(got, tiled, 1e-3) else sentence)
        return
    yield judge(3, got, right, mistakes, "The losses are not those of the formula.", relative=1e-3)
    yield Finding(1, alone and bool(np.ptp(got) > 0), sentence)


def sampling(student: Student) -> Iterator[Finding]:
    uniforms = np.random.default_rng(25).uniform(size=40) ** 2  # more low numbers than a rate tells to expect
    for sample_rate in (0.3, 0.15):
        got = student.call("poisson_batch", uniforms=tensor(uniforms), sample_rate=sample_rate).array().ravel()
        right = np.flatnonzero(uniforms < sample_rate)
        fixed = np.sort(np.argsort(uniforms)[: round(40 * sample_rate)])
        sentence = "A batch of fixed size is not a Poisson sample: the accounting does not hold for it."
        if got.shape == fixed.shape and close(np.sort(got), fixed):
            yield Finding(1, False, sentence)
        elif got.shape == uniforms.shape and close(got, uniforms < sample_rate):
            yield Finding(1, False, "What is returned says of each example whether it is in; positions are asked for.")
        else:
            outside = "The positions are not those with a low number, or not in rising order."
            yield Finding(1, got.shape == right.shape and close(got, right), outside)


def training_epsilon(student: Student) -> Iterator[Finding]:
    for points, run in ((2, (1.1, 0.02, 500)), (1, (0.9, 0.01, 1000))):
        settings = dict(zip(("noise_multiplier", "sample_rate", "steps"), run, strict=True))
        got = student.call("training_epsilon", **settings, delta=DELTA).number()
        tight, loose = epsilon_of(*run), epsilon_of(*run, loose=True)
        mistakes = {
            "The sample rate does not take part.": gaussian_epsilon(run[0] / math.sqrt(run[2]), DELTA),
        }
        for accountant, loosely in (("", False), (" (By Rényi orders.)", True)):
            one = epsilon_of(run[0], run[1], 1, loosely)
            mistakes |= {
                "The budget is not composed: this is the ε of one step." + accountant: one,
                "The ε of the steps are added up: composition does better." + accountant: run[2] * one,
            }
        right = got if 0.98 * tight <= got <= 1.02 * loose else tight
        yield judge(points, got, right, mistakes, "This is not the ε of an accountant that is right.", relative=0.02)


def sampler(student: Student) -> Iterator[Finding]:
    noise = np.random.default_rng(26).normal(size=(5, 3))
    sigmas = np.array([9.0, 4.0, 1.5, 0.6, 0.2, 0.0])

    def euler(x: Array, sign: float = 1.0, over_sigma: bool = True) -> Array:
        for now, following in pairwise(sigmas):
            slope = (x - x / (1 + now**2)) / (now if over_sigma else 1.0)
            x = x + sign * (following - now) * slope
        return x

    mistakes = {
        "The start is not scaled by the first noise level.": euler(noise),
        "The steps go the wrong way: away from the data.": euler(sigmas[0] * noise, sign=-1.0),
        "The slope is not divided by the noise level.": euler(sigmas[0] * noise, over_sigma=False),
    }
    sent = {"noise": tensor(noise), "sigmas": tensor(sigmas)}
    got = student.call("sample", denoise=named("shrink"), **sent).array((5, 3))
    yield judge(4, got, euler(sigmas[0] * noise), mistakes, "These are not the Euler steps of the formula.", 1e-3)


def own_noise(student: Student) -> Iterator[Finding]:
    epsilon, got = student.parameters["epsilon"], student.value("own_noise_multiplier").number()
    if not 0.05 < got < 1000:
        yield Finding(2, False, "That is no noise multiplier for such a run.")
    elif epsilon_of(got, 0.1, 100) > epsilon * 1.001:
        one_step = epsilon_of(got, 0.1, 1) <= epsilon
        kept = "The budget is not composed: the run as a whole costs more than your ε."
        yield Finding(2, False, kept if one_step else "With this noise, not even one step keeps your ε.")
    else:
        enough = epsilon_of(got / 1.02, 0.1, 100, loose=True) > epsilon
        yield Finding(2, enough, "The promise is kept, but with more noise than needed.")


QUESTIONS = {
    "clip-gradients": clip_gradients,
    "private-gradient": private_gradient,
    "microbatches": microbatches,
    "losses": losses,
    "sampling": sampling,
    "training-epsilon": training_epsilon,
    "sampler": sampler,
    "own-noise": own_noise,
}
