# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---
# %% [markdown] nbgrader={"grade_id": "assignment", "locked": true}
# # Assignment 2: private compression
#
# *At the end you can compute principal components under differential privacy from scratch, say what their noise has to
# be, and choose how many of them a budget can carry.*
#
# - **Before**: assignment 1; the chapter “Stage 1: private compression”; eigenvectors of symmetric matrices; NumPy.
# - **Difficulty**: medium. **Points**: 25, of which 3 are for a written answer.
# - **Time**: 1½ to 2½ hours, estimated from difficulty and points by the rule on the book's page “Coursework”; no class
#   has been timed.
# - Fill in the cells that say `YOUR CODE HERE`. Keep the names of the functions and of their arguments; add what you
#   like beside them. The cell after each answer has examples to try; the grading calls your functions with others.
# - Each question is graded by itself: none needs the answer to an earlier one.
# - Cells of examples, and those to look at (tagged `explore`), are not run when it is graded: define nothing there that
#   an answer needs.
#
# Neighbouring data sets differ by **one record more or less** (add-or-remove-one), unless a question says otherwise.
# Each row of a table is one person's record; in this assignment, an image as a vector of numbers.

# %% nbgrader={"grade_id": "given-imports", "locked": true}
import math

import numpy as np

from dpldm.data.datasets import load
from dpldm.privacy.mechanisms import gaussian_noise_multiplier

# %% [markdown] nbgrader={"grade_id": "about-parameters", "locked": true}
# Your own numbers. They may differ from those of your neighbour.

# %% tags=["parameters"] nbgrader={"grade_id": "parameters", "locked": true}
epsilon: float = 1.0  # your privacy budget ε
seed: int = 0  # of what you draw yourself

# %% [markdown] nbgrader={"grade_id": "about-second-moments", "locked": true}
# ## Question 1: second moments of clipped rows (4 points)
#
# Shorten every row that is longer than `clip_norm` (in the Euclidean norm) to that length, then add up the outer
# products:
#
# $$M = \sum_i x_i x_i^\top .$$
#
# No mean of the rows is subtracted and no number of rows divides: both would be one more look at the data.


# %% nbgrader={"grade_id": "second-moments", "solution": true}
def second_moments(rows, clip_norm):
    """The sum (d, d) of the outer products of rows (n, d), each clipped to clip_norm."""
    ### BEGIN SOLUTION
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    short = rows * np.minimum(1.0, clip_norm / np.maximum(lengths, 1e-30))
    return short.T @ short
    ### END SOLUTION


# %% nbgrader={"grade_id": "test-second-moments", "grade": true, "locked": true, "points": 4}
assert np.allclose(second_moments(np.array([[3.0, 4.0]]), clip_norm=5.0), [[9.0, 12.0], [12.0, 16.0]])
assert np.allclose(second_moments(np.zeros((2, 3)), clip_norm=1.0), np.zeros((3, 3)))

# %% [markdown] nbgrader={"grade_id": "about-moment-sensitivity", "locked": true}
# ## Question 2: their sensitivity (3 points)
#
# How far can $M$ move between neighbours, in the Euclidean norm of all its entries (the Frobenius norm)? Answer for
# `"add-remove"` (1 point) and for `"replace-one"` (2 points), with the smallest bound that always holds. A hint for the
# second: which two rows lead to the two outer products that are farthest apart?


# %% nbgrader={"grade_id": "moment-sensitivity", "solution": true}
def moment_sensitivity(clip_norm, relation):
    """The sensitivity of the second moments of rows clipped to clip_norm; relation: add-remove or replace-one."""
    ### BEGIN SOLUTION
    return clip_norm**2 * {"add-remove": 1.0, "replace-one": math.sqrt(2)}[relation]
    ### END SOLUTION


# %% nbgrader={"grade_id": "test-moment-sensitivity", "grade": true, "locked": true, "points": 3}
assert moment_sensitivity(1.0, "add-remove") <= moment_sensitivity(1.0, "replace-one")

# %% [markdown] nbgrader={"grade_id": "about-symmetric-noise", "locked": true}
# ## Question 3: symmetric noise (4 points)
#
# $M$ is symmetric, and its noise has to be so too, or the eigenvectors are no longer orthogonal. Independent noise in
# all entries of $M$, with the standard deviation `std` (the noise multiplier times the sensitivity of question 2),
# keeps the promise, but is not symmetric. Make a symmetric matrix of noise that keeps it too, with no more noise than
# `std` off the diagonal and $\sqrt 2$ `std` on it. There is more than one right way: what does a copy of an entry tell
# that the entry does not? Draw noise **only** by `normal(shape, std)`; the grading gives its own.


# %% nbgrader={"grade_id": "symmetric-noise", "solution": true}
def symmetric_noise(size, std, normal):
    """A symmetric matrix (size, size) of noise with standard deviation std; noise from normal(shape, std)."""
    ### BEGIN SOLUTION
    upper = np.triu(normal((size, size), std))
    return upper + np.triu(upper, 1).T
    ### END SOLUTION


# %% nbgrader={"grade_id": "test-symmetric-noise", "grade": true, "locked": true, "points": 4}
generator = np.random.default_rng(seed)


def normal(shape, std):
    return generator.normal(0.0, 1.0, shape) * std


example = symmetric_noise(4, 2.0, normal)
assert np.allclose(example, np.transpose(example))

# %% [markdown] nbgrader={"grade_id": "about-components", "locked": true}
# ## Question 4: components (3 points)
#
# From noisy second moments, take the eigenvectors of the largest eigenvalues: one per **column**, the largest first.
# Noise makes some eigenvalues negative; a large negative one is noise and not a direction worth keeping.


# %% nbgrader={"grade_id": "components", "solution": true}
def components(noisy_moments, dimensions):
    """The eigenvectors (d, dimensions) of the largest eigenvalues of a symmetric matrix (d, d), largest first."""
    ### BEGIN SOLUTION
    _, vectors = np.linalg.eigh(noisy_moments)
    return vectors[:, ::-1][:, :dimensions]
    ### END SOLUTION


# %% nbgrader={"grade_id": "test-components", "grade": true, "locked": true, "points": 3}
assert np.allclose(np.abs(components(np.diag([1.0, 3.0, -9.0]), 2)), [[0, 1], [1, 0], [0, 0]])

# %% [markdown] nbgrader={"grade_id": "about-reconstruct", "locked": true}
# ## Question 5: there and back (3 points)
#
# Encode rows by their coordinates along the components, seen from a centre, and decode them again. Return the decoded
# rows. The components are columns that are orthogonal to each other and of length one, as in question 4.


# %% nbgrader={"grade_id": "reconstruct", "solution": true}
def reconstruct(rows, centre, vectors):
    """Rows (n, d), encoded around a centre (d,) by components (d, k) and decoded to (n, d)."""
    ### BEGIN SOLUTION
    latents = (rows - centre) @ vectors
    return centre + latents @ vectors.T
    ### END SOLUTION


# %% nbgrader={"grade_id": "test-reconstruct", "grade": true, "locked": true, "points": 3}
assert np.allclose(reconstruct(np.array([[1.0, 2.0]]), np.zeros(2), np.eye(2)), [[1.0, 2.0]])

# %% [markdown] nbgrader={"grade_id": "about-dimensions", "locked": true}
# ## Question 6: how many dimensions can the budget carry? (3 points)
#
# A symmetric matrix (d, d) of noise alone, with standard deviation $s$ off the diagonal, has its largest eigenvalue
# near $2 s \sqrt d$ (Wigner). An eigenvalue of the noisy moments that is not above that may be nothing but noise. Count
# those above it.


# %% nbgrader={"grade_id": "dimensions", "solution": true}
def dimensions_above_noise(eigenvalues, std):
    """How many of all d eigenvalues (d,) are above the largest of a symmetric noise matrix with this std."""
    ### BEGIN SOLUTION
    return int((np.asarray(eigenvalues) > 2 * std * math.sqrt(len(eigenvalues))).sum())
    ### END SOLUTION


# %% nbgrader={"grade_id": "test-dimensions", "grade": true, "locked": true, "points": 3}
assert dimensions_above_noise(np.array([100.0, 0.0, 0.0, 0.0]), std=1.0) == 1

# %% [markdown] nbgrader={"grade_id": "about-own-noise", "locked": true}
# ## Question 7: your own budget (2 points)
#
# Two sums are released from the same rows, clipped to the length 2: the sum of the rows, for a centre, and their second
# moments. Together they may cost your `epsilon` at $\delta = 10^{-5}$, and both get the same noise multiplier. Set
# `own_moment_std` to the smallest standard deviation of the noise in the **second moments** that keeps the promise.
# `gaussian_noise_multiplier(epsilon, delta)` from the library gives the noise multiplier of one release alone.

# %% nbgrader={"grade_id": "own-noise", "solution": true}
### BEGIN SOLUTION
own_moment_std = 2.0**2 * math.sqrt(2) * gaussian_noise_multiplier(epsilon, 1e-5)
### END SOLUTION

# %% nbgrader={"grade_id": "test-own-noise", "grade": true, "locked": true, "points": 2}
assert own_moment_std > 0

# %% [markdown] nbgrader={"grade_id": "about-looking", "locked": true}
# ## To look at (no points)
#
# Handwritten digits, compressed and decoded by your own functions at rising budgets. The centre is a grey image here,
# which looks at no data. The digits are fetched the first time.

# %% tags=["explore"] nbgrader={"grade_id": "explore-digits"}
import matplotlib.pyplot as plt

images = load("mnist", "train").images[:10_000, 0, ::2, ::2].flatten(1).numpy().astype(float)
centre, length = np.full(196, 0.13), 4.0
figure, axes = plt.subplots(4, 6, figsize=(6, 4))
for row, budget in zip(axes, (0.1, 1.0, 10.0, None), strict=True):
    std = 0.0 if budget is None else length**2 * gaussian_noise_multiplier(budget, 1e-5)
    moments = second_moments(images - centre, length) + symmetric_noise(196, std, normal)
    kept = max(1, dimensions_above_noise(np.linalg.eigvalsh(moments), std))
    decoded = reconstruct(images[:6], centre, components(moments, kept))
    for axis, image in zip(row, decoded, strict=True):
        axis.imshow(image.reshape(14, 14), cmap="gray", vmin=0, vmax=1)
        axis.set(xticks=[], yticks=[])
    row[0].set_ylabel(f"{'no noise' if budget is None else f'ε = {budget:g}'}\n{kept} dim.", fontsize=7)
plt.show()

# %% [markdown] nbgrader={"grade_id": "about-why", "locked": true}
# ## Question 8: in your own words (3 points)
#
# The components are private now. A classmate encodes the private images with them and publishes the latents:
# "everything after a private step is post-processing". What is wrong? Name one way to publish latents, or something
# made of them, that does keep a promise, and what it costs. Six sentences at most.

# %% [markdown] nbgrader={"grade_id": "why", "grade": true, "solution": true, "points": 3}
# Post-processing may use the private output and nothing else, but encoding uses the private images again. Removing one
# image removes its latent, which is nearly the image itself. A right way is to clip each latent and add noise to it,
# which is the Gaussian mechanism once for every record and makes latents very noisy; or to train a model of the latents
# by DP-SGD and publish samples, whose ε has to be composed with that of the components.
#
# *Rubric: 1 point for saying that the images are used a second time; 1 point for a way that keeps a promise; 1 point
# for saying what it costs and that the budget is composed with that of the components.*

# %% [markdown] nbgrader={"grade_id": "open", "locked": true}
# ## An open question (no points, no solution in this book)
#
# All rows were clipped to one length, chosen in advance. A short length loses the shape of bright images, a long one
# needs more noise. How would you choose it from the data, what would that cost, and when is it worth it? Bring an idea
# to class.
