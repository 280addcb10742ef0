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
# # Assignment 4: evaluate and attack
#
# *At the end you can score synthetic data by a Fréchet distance and by what a classifier learns from it, attack a
# release by membership inference, turn an attack into a lower bound on ε, and catch an implementation that breaks its
# promise.*
#
# - **Before**: assignment 1; the chapters “Sampling and evaluation” and “Attacking our own releases”; NumPy, SciPy.
# - **Difficulty**: medium. **Points**: 25, of which 3 are for a written answer.
# - **Time**: 1½ to 2½ hours, estimated from difficulty and points by the rule on the book's page “Coursework”; no class
#   has been timed.
# - Fill in the cells that say `YOUR CODE HERE`. Keep the names of the functions and of their arguments; add what you
#   like beside them. The cell after each answer has examples to try; the grading calls your functions with others.
# - Each question is graded by itself: none needs the answer to an earlier one.
# - Cells of examples, and those to look at (tagged `explore`), are not run when it is graded: define nothing there that
#   an answer needs.

# %% nbgrader={"grade_id": "given-imports", "locked": true}
import math

import numpy as np
from scipy import linalg, stats

# %% [markdown] nbgrader={"grade_id": "about-frechet", "locked": true}
# ## Question 1: the Fréchet distance (4 points)
#
# FID compares two sets of features as if both were Gaussian, with means $\mu$ and covariances $\Sigma$:
#
# $$\lVert \mu_a - \mu_b \rVert^2 + \operatorname{tr}\!\left(\Sigma_a + \Sigma_b - 2\, (\Sigma_a
# \Sigma_b)^{1/2}\right).$$
#
# The root is that of a matrix (`scipy.linalg.sqrtm`); tiny imaginary parts are rounding. Dividing by $n$ or by $n - 1$
# is up to you.


# %% nbgrader={"grade_id": "frechet", "solution": true}
def frechet_distance(a, b):
    """The Fréchet distance between Gaussians with the moments of features a (n, d) and b (m, d)."""
    ### BEGIN SOLUTION
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.real(linalg.sqrtm(first @ second))
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second - 2 * root))
    ### END SOLUTION


# %% nbgrader={"grade_id": "test-frechet", "grade": true, "locked": true, "points": 4}
features = np.random.default_rng(0).normal(size=(200, 3))
assert abs(frechet_distance(features, features)) < 1e-6
assert abs(frechet_distance(features, features + 1.0) - 3.0) < 1e-6

# %% [markdown] nbgrader={"grade_id": "about-downstream", "locked": true}
# ## Question 2: what a classifier learns from it (3 points)
#
# Train on synthetic images only, score on real test images only. The classifier is the simplest there is: an image gets
# the label of the nearest class mean. Return the share of real images that get their own label.


# %% nbgrader={"grade_id": "downstream", "solution": true}
def downstream_accuracy(synthetic, synthetic_labels, real, real_labels):
    """Accuracy on real rows (m, d) of nearest class means of synthetic rows (n, d); labels from 0, each class there."""
    ### BEGIN SOLUTION
    classes = np.unique(synthetic_labels)
    means = np.stack([synthetic[synthetic_labels == label].mean(axis=0) for label in classes])
    distances = ((real[:, None] - means) ** 2).sum(axis=2)
    return float((classes[distances.argmin(axis=1)] == real_labels).mean())
    ### END SOLUTION


# %% nbgrader={"grade_id": "test-downstream", "grade": true, "locked": true, "points": 3}
two = np.array([[0.0], [1.0]])
assert downstream_accuracy(two, np.array([0, 1]), np.array([[0.1], [0.2]]), np.array([0, 1])) == 0.5

# %% [markdown] nbgrader={"grade_id": "about-membership", "locked": true}
# ## Question 3: membership inference (3 points)
#
# An attack gives each record a score, higher if it looks like a member of the training data. Return the area under the
# ROC curve: the probability that a member scores higher than a non-member, where a tie counts one half.


# %% nbgrader={"grade_id": "membership", "solution": true}
def membership_auc(member_scores, other_scores):
    """The probability that a member (n,) scores higher than a non-member (m,); a tie counts one half."""
    ### BEGIN SOLUTION
    difference = np.asarray(member_scores)[:, None] - np.asarray(other_scores)
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())
    ### END SOLUTION


# %% nbgrader={"grade_id": "test-membership", "grade": true, "locked": true, "points": 3}
assert membership_auc(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1.0
assert membership_auc(np.array([1.0]), np.array([1.0])) == 0.5

# %% [markdown] nbgrader={"grade_id": "about-bound", "locked": true}
# ## Question 4: what an attack says about ε (4 points)
#
# Under $(\varepsilon, \delta)$ every attack that guesses "was the record there?" has error rates $\alpha$ (says yes,
# was not) and $\beta$ (says no, was there) with
#
# $$\alpha + e^{\varepsilon} \beta \ge 1 - \delta \quad\text{and}\quad \beta + e^{\varepsilon} \alpha \ge 1 - \delta .$$
#
# Return the largest ε that these two rule out: a lower bound on the true ε, and 0 where they rule out nothing.


# %% nbgrader={"grade_id": "bound", "solution": true}
def epsilon_lower(false_positive_rate, false_negative_rate, delta):
    """A lower bound on ε from the error rates of an attack, each above 0 and at most 1."""
    ### BEGIN SOLUTION
    rates = ((false_positive_rate, false_negative_rate), (false_negative_rate, false_positive_rate))
    return max([0.0, *(math.log((1 - delta - one) / other) for one, other in rates if 1 - delta - one > 0)])
    ### END SOLUTION


# %% nbgrader={"grade_id": "test-bound", "grade": true, "locked": true, "points": 4}
assert epsilon_lower(0.5, 0.5, 0.0) == 0.0
assert epsilon_lower(0.1, 0.1, 0.0) > 2.0

# %% [markdown] nbgrader={"grade_id": "about-rate", "locked": true}
# ## Question 5: rates that are not known (3 points)
#
# An attack is tried a number of times and errs a few times; its true rate may be higher. Return the upper end of the
# one-sided Clopper-Pearson interval: the smallest rate $p$ so that seeing so few errors, or fewer, has probability
# $1 - c$ at most, for confidence $c$. It is a quantile of a beta distribution, `stats.beta`; with nothing but errors it
# is 1.


# %% nbgrader={"grade_id": "rate", "solution": true}
def rate_upper(errors, trials, confidence):
    """The one-sided Clopper-Pearson upper bound on an error rate."""
    ### BEGIN SOLUTION
    return 1.0 if errors == trials else float(stats.beta.ppf(confidence, errors + 1, trials - errors))
    ### END SOLUTION


# %% nbgrader={"grade_id": "test-rate", "grade": true, "locked": true, "points": 3}
assert 0.0 < rate_upper(0, 100, 0.95) < 0.05
assert rate_upper(10, 10, 0.95) == 1.0

# %% [markdown] nbgrader={"grade_id": "about-caught", "locked": true}
# ## Question 6: catch a broken implementation (5 points)
#
# Someone releases a noisy sum and claims $(\varepsilon, \delta)$. You may run it as often as you like on two
# neighbours: on data with a certain record, and on the same data without it. Each run gives one number, the sum along
# the direction of that record. Decide from the runs of both kinds whether the claim is **broken**: return `True` only
# if you are sure, for a claim that holds may be called broken at most once in a thousand times.
#
# A threshold tells the two kinds of runs apart; its errors, with bounds on their rates, tell an ε. If you choose the
# threshold by the runs, choose it on one half and count errors on the other. The broken ones in the grading are broken
# badly, the right ones use all the ε that they claim.


# %% nbgrader={"grade_id": "caught", "solution": true}
def is_broken(with_record, without_record, epsilon, delta):
    """Whether runs (n,) with and runs (n,) without a record contradict a claim of (ε, δ)."""
    ### BEGIN SOLUTION
    half = len(with_record) // 2
    best, threshold = -1.0, 0.0
    for candidate in np.quantile(np.concatenate([with_record[:half], without_record[:half]]), np.linspace(0, 1, 101)):
        rates = [(without_record[:half] > candidate).mean(), (with_record[:half] <= candidate).mean()]
        found = max(math.log((1.0001 - one) / (other + 3 / half)) for one, other in (rates, rates[::-1]))
        if found > best:
            best, threshold = found, candidate
    counts = int((without_record[half:] > threshold).sum()), int((with_record[half:] <= threshold).sum())
    tries = len(with_record) - half
    upper = [1.0 if count == tries else stats.beta.ppf(1 - 2e-4, count + 1, tries - count) for count in counts]
    bounds = [math.log((1 - delta - one) / other) for one, other in (upper, upper[::-1]) if 1 - delta - one > 0]
    return max([0.0, *bounds]) > epsilon
    ### END SOLUTION


# %% nbgrader={"grade_id": "test-caught", "grade": true, "locked": true, "points": 5}
random = np.random.default_rng(1)
assert not is_broken(random.normal(1, 3.73, 4000), random.normal(0, 3.73, 4000), epsilon=1.0, delta=1e-5)
assert is_broken(random.normal(1, 0.2, 4000), random.normal(0, 0.2, 4000), epsilon=1.0, delta=1e-5)

# %% [markdown] nbgrader={"grade_id": "about-looking", "locked": true}
# ## To look at (no points)
#
# The same attack on a private mean of digits, with less and less noise than ε = 1 needs: where does your audit notice?

# %% tags=["explore"] nbgrader={"grade_id": "explore-audit"}
from dpldm.privacy.mechanisms import gaussian_noise_multiplier

claimed = gaussian_noise_multiplier(1.0, 1e-5)
for share in (1.0, 0.5, 0.25, 0.125, 0.0625):
    runs = [random.normal(centre, claimed * share, 20_000) for centre in (1, 0)]
    print(f"noise {share:6.1%} of what is claimed: broken = {is_broken(*runs, epsilon=1.0, delta=1e-5)}")

# %% [markdown] nbgrader={"grade_id": "about-why", "locked": true}
# ## Question 7: in your own words (3 points)
#
# A paper reports: "membership inference on our synthetic images has an AUC of 0.51, so they are safe to publish without
# differential privacy." Give two reasons why this does not follow, and say what a lower bound near 0 does and does not
# tell. Six sentences at most.

# %% [markdown] nbgrader={"grade_id": "why", "grade": true, "solution": true, "points": 3}
# AUC is an average: an attack may be nearly always wrong and still be sure about a few unusual people, whom a promise
# has to protect too. And it is one attack: a stronger one, with more knowledge or with records made to stand out, may
# succeed where this one failed. A lower bound near 0 tells that this attack found nothing with these tries; only a
# proof gives an upper bound, and a lower bound above a claimed ε shows that the claim is wrong.
#
# *Rubric: 1 point for averages that hide the few, or low false positive rates; 1 point for one attack not being all
# attacks; 1 point for what a lower bound says and does not say.*

# %% [markdown] nbgrader={"grade_id": "open", "locked": true}
# ## An open question (no points, no solution in this book)
#
# An audit needs many runs of the same training. Could one run tell as much, if many records in it were put in or left
# out at random? What would have to be assumed of how they act on each other? Bring an idea to class.
