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
# # Assignment 1: a promise made of noise
#
# *At the end you can say how much noise a promise (ε, δ) takes, find the sensitivity of a sum and of a mean, release a
# mean, and add up what several releases cost, by hand and against an accountant.*
#
# - **Before**: the chapter “Just enough differential privacy”; sums and norms of vectors; NumPy.
# - **Difficulty**: easy. **Points**: 20, of which 2 are for a written answer.
# - **Time**: 1 to 1½ hours, estimated from difficulty and points by the rule on the book's page “Coursework”; no class
#   has been timed.
# - Fill in the cells that say `YOUR CODE HERE`. Keep the names of the functions and of their arguments; add what you
#   like beside them. The cell after each answer has examples to try; the grading calls your functions with others.
# - Each question is graded by itself: none needs the answer to an earlier one.
# - Cells of examples, and those to look at (tagged `explore`), are not run when it is graded: define nothing there that
#   an answer needs.
#
# Neighbouring data sets differ by **one record more or less** (add-or-remove-one), unless a question says otherwise.

# %% nbgrader={"grade_id": "given-imports", "locked": true}
import math

import numpy as np

from dpldm.data.datasets import load
from dpldm.privacy.mechanisms import gaussian_epsilon, gaussian_noise_multiplier

# %% [markdown] nbgrader={"grade_id": "about-parameters", "locked": true}
# Your own numbers. They may differ from those of your neighbour.

# %% tags=["parameters"] nbgrader={"grade_id": "parameters", "locked": true}
epsilon: float = 1.0  # your privacy budget ε
seed: int = 0  # of what you draw yourself

# %% [markdown] nbgrader={"grade_id": "about-gaussian-delta", "locked": true}
# ## Question 1: what a noise is worth (2 points)
#
# Noise of standard deviation $\sigma$ times the sensitivity is added. Such a release is $(\varepsilon, \delta)$ private
# exactly when
#
# $$\delta \ge \Phi\!\left(\frac{1}{2\sigma} - \varepsilon\sigma\right)
#   - e^{\varepsilon}\, \Phi\!\left(-\frac{1}{2\sigma} - \varepsilon\sigma\right),$$
#
# with $\Phi$ the distribution function of the standard normal (Balle and Wang, 2018). Write the right-hand side as a
# function. $\sigma$ is called the noise multiplier. NumPy has no $\Phi$: take one from SciPy (`scipy.stats.norm`), or
# make one of `math.erf` or `math.erfc`.


# %% nbgrader={"grade_id": "gaussian-delta", "solution": true}
def gaussian_delta(noise_multiplier, epsilon):
    """The smallest δ for which one Gaussian release with this noise multiplier is (ε, δ) private."""

    ### BEGIN SOLUTION
    def phi(x):
        return 0.5 * math.erfc(-x / math.sqrt(2))

    near, far = 0.5 / noise_multiplier, epsilon * noise_multiplier
    return phi(near - far) - math.exp(epsilon) * phi(-near - far)
    ### END SOLUTION


# %% nbgrader={"grade_id": "test-gaussian-delta", "grade": true, "locked": true, "points": 2}
assert abs(gaussian_delta(noise_multiplier=1.0, epsilon=1.0) - 0.126937) < 1e-5
assert gaussian_delta(noise_multiplier=2.0, epsilon=1.0) < gaussian_delta(noise_multiplier=1.0, epsilon=1.0)

# %% [markdown] nbgrader={"grade_id": "about-noise-std", "locked": true}
# ## Question 2: how much noise (3 points)
#
# The other way round: an ε and a δ are promised, and a query has a sensitivity. Return the smallest standard deviation
# of the noise to add. `gaussian_epsilon(noise_multiplier, delta)` from the library is an accountant that you may ask as
# often as you like: it tells the ε of a noise multiplier. Find an interval that holds the answer for any ε and δ, and
# halve it until it is short enough (a relative error of $10^{-6}$ will do). `gaussian_noise_multiplier`, which later
# questions use, does just that: compare with it.


# %% nbgrader={"grade_id": "noise-std", "solution": true}
def noise_std(sensitivity, epsilon, delta):
    """The smallest standard deviation of Gaussian noise that makes a query (ε, δ) private."""
    ### BEGIN SOLUTION
    low, high = 1e-3, 1e6
    while high / low > 1 + 1e-9:
        middle = math.sqrt(low * high)
        if gaussian_epsilon(middle, delta) > epsilon:
            low = middle
        else:
            high = middle
    return sensitivity * high
    ### END SOLUTION


# %% nbgrader={"grade_id": "test-noise-std", "grade": true, "locked": true, "points": 3}
assert abs(noise_std(sensitivity=1.0, epsilon=1.0, delta=1e-5) - 3.730632) < 1e-3
assert noise_std(sensitivity=3.0, epsilon=1.0, delta=1e-5) > noise_std(sensitivity=1.0, epsilon=1.0, delta=1e-5)

# %% [markdown] nbgrader={"grade_id": "about-clip-rows", "locked": true}
# ## Question 3: a bound on what one person can do (3 points)
#
# Each row of a table is one person's record, a vector without any bound. Clip it: a row longer than `clip_norm` (in the
# Euclidean norm) is shortened to that length and keeps its direction; a shorter one stays as it is. A row of zeros
# stays a row of zeros.


# %% nbgrader={"grade_id": "clip-rows", "solution": true}
def clip_rows(rows, clip_norm):
    """The rows (n, d), none longer than clip_norm."""
    ### BEGIN SOLUTION
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows * np.minimum(1.0, clip_norm / np.maximum(lengths, 1e-30))
    ### END SOLUTION


# %% nbgrader={"grade_id": "test-clip-rows", "grade": true, "locked": true, "points": 3}
clipped = clip_rows(np.array([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]]), clip_norm=1.0)
assert np.allclose(clipped[0], [0.6, 0.8])
assert np.isfinite(clipped).all()

# %% [markdown] nbgrader={"grade_id": "about-sum-sensitivity", "locked": true}
# ## Question 4: sensitivity (2 points)
#
# How far, in the Euclidean norm, can the **sum** of the clipped rows move between neighbours? Answer for both
# relations: `"add-remove"`, where one record is there or not, and `"replace-one"`, where one record has another value.
# Give the smallest bound that always holds.


# %% nbgrader={"grade_id": "sum-sensitivity", "solution": true}
def sum_sensitivity(clip_norm, relation):
    """The sensitivity of the sum of rows that are no longer than clip_norm; relation: add-remove or replace-one."""
    ### BEGIN SOLUTION
    return {"add-remove": 1, "replace-one": 2}[relation] * clip_norm
    ### END SOLUTION


# %% nbgrader={"grade_id": "test-sum-sensitivity", "grade": true, "locked": true, "points": 2}
assert sum_sensitivity(2.0, "add-remove") > 0
assert sum_sensitivity(2.0, "replace-one") > 0

# %% [markdown] nbgrader={"grade_id": "about-private-mean", "locked": true}
# ## Question 5: a private mean (4 points)
#
# Put it together under add-or-remove-one: the mean of clipped rows, with noise. How many rows there are is private too,
# so divide by `expected_count`, a public number. The noise multiplier is the standard deviation divided by the
# sensitivity of what the noise is added to.
#
# Draw noise **only** by `normal(shape, std)`, which returns independent normal numbers of that shape. The grading gives
# its own `normal`: it looks at what you ask for, and turns the noise off to look at the rest.
# Clip with your `clip_rows`, or write the clipping again if you are not sure of it: a mistake in it counts here too.


# %% nbgrader={"grade_id": "private-mean", "solution": true}
def private_mean(rows, clip_norm, noise_multiplier, expected_count, normal):
    """A noisy mean (d,) of rows (n, d), each clipped to clip_norm; noise from normal(shape, std)."""
    ### BEGIN SOLUTION
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    total = (rows * np.minimum(1.0, clip_norm / np.maximum(lengths, 1e-30))).sum(axis=0)
    return (total + normal(total.shape, noise_multiplier * clip_norm)) / expected_count
    ### END SOLUTION


# %% nbgrader={"grade_id": "test-private-mean", "grade": true, "locked": true, "points": 4}
generator = np.random.default_rng(seed)


def normal(shape, std):
    return generator.normal(0.0, 1.0, shape) * std


example = private_mean(np.eye(3), clip_norm=1.0, noise_multiplier=0.0, expected_count=3, normal=normal)
assert np.allclose(example, [1 / 3, 1 / 3, 1 / 3])

# %% [markdown] nbgrader={"grade_id": "about-composed-epsilon", "locked": true}
# ## Question 6: several releases of the same data (2 points)
#
# Releases with noise multipliers $\sigma_1, \dots, \sigma_k$ on the same records are together as good as **one**
# Gaussian release with noise multiplier $\sigma$, where
#
# $$\frac{1}{\sigma^2} = \sum_i \frac{1}{\sigma_i^2}.$$
#
# Return the ε of all of them at a given δ. The accountant does the last step.


# %% nbgrader={"grade_id": "composed-epsilon", "solution": true}
def composed_epsilon(noise_multipliers, delta):
    """ε of Gaussian releases with these noise multipliers, together."""
    ### BEGIN SOLUTION
    return gaussian_epsilon(sum(sigma**-2 for sigma in noise_multipliers) ** -0.5, delta)
    ### END SOLUTION


# %% nbgrader={"grade_id": "test-composed-epsilon", "grade": true, "locked": true, "points": 2}
assert abs(composed_epsilon([4.0], 1e-5) - gaussian_epsilon(4.0, 1e-5)) < 1e-6
assert composed_epsilon([4.0, 4.0], 1e-5) > composed_epsilon([4.0], 1e-5)

# %% [markdown] nbgrader={"grade_id": "about-own-noise", "locked": true}
# ## Question 7: your own budget (2 points)
#
# You want to release the means of **9 disjoint sets of columns** of one table: nine releases on the same people. All
# nine together may cost your `epsilon` (above) at $\delta = 10^{-5}$, and all get the same noise multiplier. Set
# `own_noise_multiplier` to the smallest that keeps the promise. `gaussian_noise_multiplier(epsilon, delta)` from the
# library gives it for one release.

# %% nbgrader={"grade_id": "own-noise", "solution": true}
### BEGIN SOLUTION
own_noise_multiplier = math.sqrt(9) * gaussian_noise_multiplier(epsilon, 1e-5)
### END SOLUTION

# %% nbgrader={"grade_id": "test-own-noise", "grade": true, "locked": true, "points": 2}
assert own_noise_multiplier > 0

# %% [markdown] nbgrader={"grade_id": "about-looking", "locked": true}
# ## To look at (no points)
#
# The mean of 2,000 handwritten digits, released at three budgets with your own functions. Each image has 784 pixels
# between 0 and 1; one that is longer than 9 is shortened. The digits are fetched the first time.

# %% tags=["explore"] nbgrader={"grade_id": "explore-means"}
import matplotlib.pyplot as plt

images = load("mnist", "train").images[:2000].flatten(1).numpy().astype(float)
figure, axes = plt.subplots(1, 3, figsize=(6, 2.2))
for axis, budget in zip(axes, (0.01, 0.1, 1.0), strict=True):
    mean = private_mean(images, 9.0, gaussian_noise_multiplier(budget, 1e-5), 2000, normal)
    axis.imshow(mean.reshape(28, 28), cmap="gray")
    axis.set(title=f"ε = {budget:g}", xticks=[], yticks=[])
plt.show()

# %% [markdown] nbgrader={"grade_id": "about-why", "locked": true}
# ## Question 8: in your own words (2 points)
#
# A classmate releases the mean with noise for ε = 1, does not like the picture, and draws the noise again, ten times,
# until it looks good. Then she publishes the best one and writes "ε = 1". What is wrong, and what would be right? Five
# sentences at most.

# %% [markdown] nbgrader={"grade_id": "why", "grade": true, "solution": true, "points": 2}
# She has made ten releases and chosen among them by looking at the private data, so what is published depends on all
# ten. Together they have a tenth of one release's squared noise: 1/σ² adds up, and ε is that of σ/√10. Right would be
# to publish the first one, or to plan for ten and give each √10 times the noise.
#
# *Rubric: 1 point for saying that every draw is a release that counts, published or not, or that choosing depends on
# the data; 1 point for a right way out (plan for ten with more noise each, take the first, or pay for a private
# selection).*
# %% [markdown] nbgrader={"grade_id": "open", "locked": true}
# ## An open question (no points, no solution in this book)
#
# The noise of question 5 is the same in every direction. If most people's rows are short, or lie near a plane that
# nobody knows in advance, is there a release of the mean with less error at the same ε, and what does it have to spend
# to find that out? Bring an idea to class.
