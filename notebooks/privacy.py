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
# %% tags=["remove-cell"]
# ruff: noqa: E501 - captions stand in one line with their cells

# %% [markdown]
# # Just enough differential privacy
#
# *Question: what does ε promise, and what does a program have to do to keep the promise? At the end you will be able to
# say what neighbouring data sets are, how much noise an ε asks for, why two questions cost less than twice one, why
# small batches help, and what an attacker gains at each ε.*
#
# No images yet. Everything on this page takes seconds, so change the numbers and run it again. It is our own
# implementation, as all of this book: an independent one, from the abstract of {cite:t}`ge2024latent`.

# %%
import os
from dataclasses import replace
from pathlib import Path

import torch
from myst_nb import glue
from scipy.stats import norm

from dpldm.book import charts
from dpldm.privacy.accounting import Ledger
from dpldm.privacy.guard import PrivateData
from dpldm.privacy.mechanisms import Mechanism, gaussian_epsilon, gaussian_noise_multiplier
from dpldm.privacy.noise import NoiseSource, gaussian_mechanism

if Path.cwd().name == "notebooks":  # where JupyterLab starts
    os.chdir("..")

# %% tags=["parameters"]
dataset: str = "mnist"  # data set: mnist or fashion_mnist
epsilon: float = 10.0  # total privacy budget ε of the run, 0.01 or more
seed: int = 0  # of everything random, 0 to 10⁹
profile: str = "quick"  # amount of work: smoke (seconds), quick (minutes) or paper (hours, or a GPU)
# %% [markdown]
# ## Neighbours, and how far a question can tell them apart
#
# Somebody asks: *how many of your images show a seven?* Two data sets that differ by one image and its label are
# neighbours. For them the answer differs by one at most. This largest difference is the **sensitivity** of the
# question:
#
# $$\Delta = \max_{D \sim D'} \lVert f(D) - f(D') \rVert_2 .$$
#
# Published exactly, the count betrays the one image to whoever knows all others. So the answer gets noise, measured in
# sensitivities. That is the **Gaussian mechanism** {cite}`dwork2006ourselves,balle2018improving`:
#
# $$M(D) = f(D) + \mathcal N(0, (\sigma \Delta)^2), \qquad \sigma \text{ is the noise multiplier.}$$

# %%
noise = NoiseSource.seeded(seed)
sevens, delta, times = 600.0, 1e-5, 20_000
without = gaussian_mechanism(torch.full((times,), sevens), 1.0, 2.0, noise)
with_one_more = gaussian_mechanism(torch.full((times,), sevens + 1), 1.0, 2.0, noise)

# %% mystnb={"figure": {"caption": "The noisy count, asked many times of two neighbouring data sets. One answer tells almost nothing about which of the two it came from.", "name": "fig-neighbours"}, "image": {"alt": "Two bell-shaped histograms of noisy counts, one shifted by a single image, that overlap almost entirely."}}
charts.histograms({"without the image": without, "with it": with_one_more}, "published count (images)", "Neighbours")

# %% [markdown]
# ## What ε and δ say
#
# For an answer $o$, the **privacy loss** is the logarithm of how much likelier one data set makes it than the other:
#
# $$L(o) = \log \frac{\Pr[M(D') = o]}{\Pr[M(D) = o]} .$$
#
# $(\varepsilon, \delta)$-privacy is {eq}`eq-dp` of [the problem page](../book/problem.md). It allows the loss to pass ε,
# but only so rarely that
#
# $$\Pr_{D'}[L > \varepsilon] - e^{\varepsilon} \Pr_{D}[L > \varepsilon] \le \delta .$$
#
# For Gaussian noise the smallest δ has a closed form {cite}`balle2018improving`, and the library turns it round: from ε
# and δ to the noise multiplier. We ask for ε = 1 with a δ so large that we can see it happen, and count.

# %%
visible_delta = 0.01
noise_multiplier = gaussian_noise_multiplier(1.0, visible_delta)
outputs = noise.normal((2_000_000,), noise_multiplier, dtype=torch.float64)
losses = ((outputs + 1) ** 2 - outputs**2) / (2 * noise_multiplier**2)  # of outputs under D'
beyond_there = (losses > 1).double().mean()
beyond_here = (losses - 1 / noise_multiplier**2 > 1).double().mean()  # of outputs under D
measured_delta = float(beyond_there - torch.e * beyond_here)
glue("measured_delta", measured_delta, display=False)
glue("visible_delta", visible_delta, display=False)

# %% [markdown]
# Counted: {glue:text}`measured_delta:.4f`. Asked for: {glue:text}`visible_delta:.4f`. In earnest δ is far smaller than one over
# the number of images. How much noise does an ε need then?

# %%
budgets = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20]
multipliers = [gaussian_noise_multiplier(budget, delta) for budget in budgets]
glue("own_multiplier", gaussian_noise_multiplier(epsilon, delta), display=False)
glue("own_epsilon", epsilon, display=False)

# %% mystnb={"figure": {"caption": "Noise that one question needs, against ε. Below one, half the ε takes twice the noise; above ten, a little noise already does.", "name": "fig-noise"}, "image": {"alt": "The noise multiplier falls steeply as the budget grows, on two logarithmic axes."}}
charts.curves(budgets, {"one question": multipliers}, "ε (δ = 0.00001)", "noise multiplier", "One question", "xy")

# %% [markdown]
# This book's run may spend ε = {glue:text}`own_epsilon`. If that were one question, its noise multiplier would be
# {glue:text}`own_multiplier:.3f`.
#
# ## Composition: questions add up, but less than you fear
#
# A fit asks many questions. Adding their ε is allowed and wasteful: losses are random, and many random numbers seldom all
# come out large together. For Gaussian mechanisms on all images the exact rule is short {cite}`dong2022gaussian`:
#
# $$\frac{1}{\sigma_{\text{total}}^2} = \sum_i \frac{1}{\sigma_i^2} .$$
#
# A `Ledger` holds every mechanism and applies that rule, or a numerical accountant {cite}`gopi2021numerical` where
# there is no short one.

# %%
question = Mechanism("a count", stage="example", noise_multiplier=20.0)
asked = [1, 3, 10, 30, 100, 300]
composed = [Ledger([replace(question, steps=steps)]).epsilon(delta) for steps in asked]
added_up = [steps * composed[0] for steps in asked]

# %% mystnb={"figure": {"caption": "ε of many equal questions: simply added up, and composed as the ledger does.", "name": "fig-composition"}, "image": {"alt": "Added up, epsilon grows in proportion to the number of questions; composed it grows like the square root and stays far below."}}
charts.curves(asked, {"added up": added_up, "composed": composed}, "questions asked", "ε", "Composition", "xy")

# %% [markdown]
# ## Subsampling: a question that an image may not even hear
#
# DP-SGD {cite}`abadi2016deep` asks hundreds of questions ("where is downhill?"), but each step takes every image only
# with probability $q$, by the toss of a coin (Poisson sampling). Nobody knows who was in a batch, and that hides
# everyone a second time. There is no closed form; the ledger asks the PRV accountant. The looser Rényi accountant
# {cite}`mironov2017renyi,mironov2019renyi` and an independent one {cite}`doroshenko2022connect` stand beside it in the
# tests.

# %%
step = Mechanism("a gradient", stage="example", noise_multiplier=4.0, steps=200)
rates = [0.01, 0.03, 0.1, 0.3, 1.0]
ledgers = [Ledger([replace(step, sample_rate=rate)]) for rate in rates]
prv = [ledger.epsilon(delta, "prv") for ledger in ledgers]
rdp = [ledger.epsilon(delta, "rdp") for ledger in ledgers]

# %% mystnb={"figure": {"caption": "ε of the same number of noisy steps against the share of images that each of them sees, by two accountants.", "name": "fig-subsampling"}, "image": {"alt": "Epsilon rises with the sample rate; the Renyi accountant lies slightly above the PRV accountant everywhere."}}
charts.curves(rates, {"PRV": prv, "Rényi": rdp}, "sample rate q", "ε", "Subsampling", "xy")

# %% [markdown]
# Small batches are not free, though: the noise is the same for a sum over fewer images, so each step is noisier. Which
# batch is best is an experiment, not a theorem.
#
# ## What an attacker gains
#
# Somebody knows everything but whether *your* image was in. Before the release their best guess is a coin. After it, no
# test whatsoever can be right more often than {cite}`wasserman2010statistical,kairouz2015composition`
#
# $$\text{accuracy} \;\le\; 1 - \frac{1 - \delta}{1 + e^{\varepsilon}} .$$
#
# For one Gaussian mechanism the best test is known, and so is its accuracy: $\Phi(1 / 2\sigma)$.

# %%
bounds = [1 - (1 - delta) / (1 + torch.tensor(budget).exp().item()) for budget in budgets]
best = [float(norm.cdf(0.5 / multiplier)) for multiplier in multipliers]
guesses = torch.cat([without < sevens + 0.5, with_one_more > sevens + 0.5])  # the best test against the first figure
glue("guessed", 100 * guesses.double().mean().item(), display=False)
glue("possible", 100 * float(norm.cdf(0.25)), display=False)

# %% mystnb={"figure": {"caption": "How often the best attacker guesses right whether an image was there: what ε allows, and what Gaussian noise of that ε concedes.", "name": "fig-attacker"}, "image": {"alt": "The bound rises from one half to nearly one as epsilon grows; the best attack on Gaussian noise stays clearly below it."}}
charts.curves(
    budgets,
    {"allowed by ε": bounds, "Gaussian mechanism": best},
    "ε",
    "right guesses (share)",
    "The best attacker",
    "x",
)

# %% [markdown]
# The counts of {numref}`fig-neighbours` can be guessed right in {glue:text}`possible:.1f` % of all cases, theory says; our attacker
# reached {glue:text}`guessed:.1f` %. Averages flatter, though. What matters to the person in the image is how *sure* an
# attacker can be: how many members can be named while hardly ever accusing somebody who was not there?

# %%
own_noise = gaussian_noise_multiplier(epsilon, delta)
false_positive = torch.logspace(-5, 0, 200).double()
true_positive = norm.cdf(norm.ppf(false_positive) + 1 / own_noise)

# %% mystnb={"figure": {"caption": "The best attack on one Gaussian mechanism at this book's ε: members found against innocents accused. The dashed line is guessing.", "name": "fig-roc"}, "image": {"alt": "True positive rate of the best attack against its false positive rate on logarithmic axes, above the diagonal of guessing."}}
charts.roc(false_positive.tolist(), true_positive.tolist())

# %% [markdown]
# At an ε of ten such an attacker would do well. Keep that in mind when you read it in a table. That attacker knows all
# other images and sees the mechanism itself; attackers who see synthetic images only are far weaker in practice, but
# nobody has a proof of how much.
#
# ## The guard
#
# In the library the private images sit behind a guard. The only way to them is to name the mechanism that pays.

# %%
ledger = Ledger()
guard = PrivateData(torch.rand(100, 1, 8, 8), torch.zeros(100, dtype=torch.int64), 1, ledger)
images, labels = guard.read(Mechanism("mean image", "example", noise_multiplier=own_noise, sensitivity=8.0))
print(guard, guard.reads, f"spent so far: ε = {ledger.epsilon(delta):.4g}", sep="\n")

# %% [markdown]
# ## What we now know
#
# Noise is measured in sensitivities; the accountant, not the author, says what many noisy answers cost together; small
# batches are cheaper and noisier; and ε limits every attacker, gently at one, hardly at ten. The last cell asserts what
# this page said.

# %%
assert abs(measured_delta - visible_delta) < 5e-4
assert gaussian_epsilon(own_noise, delta) <= epsilon
assert ledger.epsilon(delta) <= epsilon
assert abs(multipliers[0] / multipliers[1] / 2 - 1) < 0.1  # half the ε takes twice the noise
assert multipliers[-1] < 0.5  # a little noise
assert all(exact <= added for exact, added in zip(composed, added_up, strict=True))
assert composed[-1] < 2 * (asked[-1] / asked[0]) ** 0.5 * composed[0] < added_up[-1] / 5  # like the root, far below
assert prv == sorted(prv)
assert all(tight <= loose for tight, loose in zip(prv, rdp, strict=True))
assert all(reached <= allowed for reached, allowed in zip(best, bounds, strict=True))
