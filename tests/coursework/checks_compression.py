"""Hidden checks of assignment 2. They run outside the sandbox and call a submission's functions inside it."""

import math
from collections.abc import Iterator

import numpy as np

from dpldm.coursework.checks import Array, Finding, Student, close, has_std, judge, normal
from dpldm.privacy.mechanisms import gaussian_epsilon, gaussian_noise_multiplier

DELTA = 1e-5


def second_moments(student: Student) -> Iterator[Finding]:
    random = np.random.default_rng(11)
    rows, clip_norm = random.normal(0.3, 1, size=(15, 4)) * random.uniform(0.2, 3, size=(15, 1)), 1.4
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    short = rows * np.minimum(1, clip_norm / lengths)
    right, raw = short.T @ short, rows.T @ rows
    centred = short - short.mean(axis=0)
    scaled = rows / lengths * clip_norm
    entries = np.clip(rows, -clip_norm, clip_norm)
    mistakes = {
        "The rows are not clipped.": raw,
        "Clipping the matrix bounds nobody's share: the rows have to be clipped.": raw
        * min(1, clip_norm**2 / np.linalg.norm(raw)),
        "The sum is divided by the number of rows, which is private.": right / len(rows),
        "The mean of the rows is subtracted: that is one more look at the data, without noise.": centred.T @ centred,
        "Every row gets the same length: short rows have to stay as they are.": scaled.T @ scaled,
        "Each number is clipped by itself, which leaves rows longer than allowed.": entries.T @ entries,
    }
    got = student.call("second_moments", rows=rows, clip_norm=clip_norm).array((4, 4))
    yield judge(3, got, right, mistakes, "This is not the sum of the outer products of the clipped rows.")
    zeros = student.call("second_moments", rows=np.zeros((2, 3)), clip_norm=1.0).array((3, 3))
    yield Finding(1, close(zeros, np.zeros((3, 3))), "Rows of zeros do not give zeros.")


def moment_sensitivity(student: Student) -> Iterator[Finding]:
    clip_norm = 1.7
    square = clip_norm**2
    not_squared = "Rows are squared in an outer product, and so is the bound on their length."
    got = student.call("moment_sensitivity", clip_norm=clip_norm, relation="add-remove").number()
    mistakes = {not_squared: clip_norm, "One record is there or not: nothing is replaced.": 2 * square}
    swapped = "Add-or-remove-one and replace-one look mixed up."
    yield judge(1, got, square, {**mistakes, swapped: math.sqrt(2) * square}, "The bound for add-remove is not right.")
    got = student.call("moment_sensitivity", clip_norm=clip_norm, relation="replace-one").number()
    mistakes = {
        not_squared: math.sqrt(2) * clip_norm,
        not_squared + " Both relations need it.": 2 * clip_norm,
        "One record goes and another one comes: that moves more than one of them alone.": square,
        "That bound holds, but no two rows reach it: how far apart can two outer products be?": 2 * square,
    }
    yield judge(2, got, math.sqrt(2) * square, mistakes, "The bound for replace-one is not right.")


def symmetric_noise(student: Student) -> Iterator[Finding]:
    size, std = 200, 1.5
    quiet = student.call("symmetric_noise", size=5, std=2.0, normal=normal(None)).array((5, 5))
    yield Finding(1, not quiet.any(), "With the noise off, something is left: not all of it comes from normal.")
    answer = student.call("symmetric_noise", size=size, std=std, normal=normal(5))
    noise = answer.array((size, size))
    if not close(noise, noise.T):
        yield Finding(3, False, "The matrix is not symmetric.")
        return
    off, diagonal = noise[np.triu_indices(size, 1)], np.diag(noise)
    yield Finding(2, _off_right(off, std), _off_sentence(off, std))
    on_right = any(has_std(diagonal, factor * std) for factor in (1.0, math.sqrt(2)))
    twice = "The diagonal has its noise twice: it is its own mirror image."
    other = "The diagonal has not the noise that it needs."
    yield Finding(1, on_right, twice if has_std(diagonal, 2 * std) else other)


def _off_right(off: Array, std: float) -> bool:
    """A triangle mirrored, or a full matrix symmetrised to either norm: post-processing of a private matrix."""
    return any(has_std(off, factor * std) for factor in (1.0, math.sqrt(0.5)))


def _off_sentence(off: Array, std: float) -> str:
    if not off.any():
        return "Only the diagonal has noise."
    if has_std(off, math.sqrt(2) * std):
        return "A matrix and its mirror image are added: the noise has grown on the way."
    if has_std(off, std**2):
        return "The standard deviation and the variance look mixed up."
    return "Outside of the diagonal, the noise has not the size asked for, or is not independent."


def components(student: Student) -> Iterator[Finding]:
    random = np.random.default_rng(13)
    basis, _ = np.linalg.qr(random.normal(size=(7, 7)))
    values = np.array([6.0, 5.0, 3.5, 2.0, 0.5, -1.0, -5.5])
    matrix = (basis * values) @ basis.T
    got = student.call("components", noisy_moments=matrix, dimensions=3).array()
    mistakes = {
        "Large negative eigenvalues are taken for large ones.": basis[:, [0, 6, 1]],
        "These belong to the smallest eigenvalues.": basis[:, [6, 5, 4]],
        "These belong to the smallest eigenvalues; which end does the library start from?": basis[:, [4, 5, 6]],
        "The right ones, but not the largest first.": basis[:, [2, 1, 0]],
    }
    if got.shape == (3, 7):
        yield Finding(3, False, "One component per column was asked for, not per row.")
    elif got.shape != (7, 3):
        yield Finding(3, False, "The shape is not (size of the matrix, dimensions).")
    else:
        yield judge(3, _signed(got), _signed(basis[:, :3]), {s: _signed(v) for s, v in mistakes.items()}, "Not these.")


def _signed(vectors: Array) -> Array:
    """Eigenvectors have free signs: make the largest entry of each column positive."""
    largest = np.abs(vectors).argmax(axis=0)
    return vectors * np.where(vectors[largest, np.arange(vectors.shape[1])] < 0, -1.0, 1.0)


def reconstruct(student: Student) -> Iterator[Finding]:
    random = np.random.default_rng(17)
    vectors, _ = np.linalg.qr(random.normal(size=(6, 2)))
    rows, centre = random.normal(size=(5, 6)), random.normal(size=6)
    projector = vectors @ vectors.T
    right = centre + (rows - centre) @ projector
    mistakes = {
        "The centre is not added again.": (rows - centre) @ projector,
        "The centre is added but was not subtracted.": centre + rows @ projector,
        "The centre is not used.": rows @ projector,
        "The centre of these rows is used instead of the one given.": rows.mean(0) + (rows - rows.mean(0)) @ projector,
    }
    got = student.call("reconstruct", rows=rows, centre=centre, vectors=vectors).array((5, 6))
    yield judge(3, got, right, mistakes, "The decoded rows are not right.")


def dimensions(student: Student) -> Iterator[Finding]:
    values = np.concatenate([np.linspace(-95, 95, 97), [130.0, 160.0, 300.0]])
    values = np.random.default_rng(19).permutation(values)
    for points, std in ((2, 2.0), (1, 4.1)):
        right = float((values > 2 * std * 10).sum())
        mistakes = {
            "How large the noise is depends on the size of the matrix too.": float((values > 2 * std).sum()),
            "Large negative eigenvalues are counted.": float((np.abs(values) > 2 * std * 10).sum()),
            "The bound is half of what noise alone can reach.": float((values > std * 10).sum()),
            "The bound does not have the root of the size.": float((values > 2 * std * 100).sum()),
        }
        got = student.call("dimensions_above_noise", eigenvalues=values, std=std).number()
        yield judge(points, got, right, mistakes, "The count is not right for a matrix that is not in the examples.")


def own_noise(student: Student) -> Iterator[Finding]:
    one = gaussian_noise_multiplier(student.parameters["epsilon"], DELTA)
    right = 4 * math.sqrt(2) * one
    mistakes = {
        "The budget is not composed: there are two releases.": 4 * one,
        "The sensitivity is missing: what was asked for is a standard deviation.": math.sqrt(2) * one,
        "The sensitivity is that of the sum of rows, not of their second moments.": 2 * math.sqrt(2) * one,
        "Each release gets half of ε: that keeps the promise, but less noise does too.": 4
        * gaussian_noise_multiplier(student.parameters["epsilon"] / 2, DELTA),
        "The noise is twice that of one release: less is enough.": 8 * one,
        "ε and σ look mixed up.": 4 * gaussian_epsilon(student.parameters["epsilon"], DELTA),
    }
    got = student.value("own_moment_std").number()
    yield judge(2, got, right, mistakes, "This does not fit your own ε (see the cell with your numbers).")


QUESTIONS = {
    "second-moments": second_moments,
    "moment-sensitivity": moment_sensitivity,
    "symmetric-noise": symmetric_noise,
    "components": components,
    "reconstruct": reconstruct,
    "dimensions": dimensions,
    "own-noise": own_noise,
}
