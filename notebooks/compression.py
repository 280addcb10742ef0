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
# # Stage 1: private compression
#
# *Question: how can images become short vectors, and vectors images, when every look at the images costs? At the end you
# will be able to say what is asked of the private images, what it costs, and what is lost at each ε.*
#
# The abstract of {cite:t}`ge2024latent` calls it privacy-aware information compression, from pixel space to a latent
# vector. This is our own answer, an independent re-implementation from that abstract: principal components, from two
# noisy questions.

# %%
import os
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from myst_nb import glue

from dpldm.book import samples, style
from dpldm.data import datasets
from dpldm.method import compression
from dpldm.method.compressor import Compressor
from dpldm.method.pca import cosine_basis
from dpldm.methods import PROFILES
from dpldm.privacy.accounting import Ledger
from dpldm.privacy.budget import Allowance
from dpldm.privacy.guard import PrivateData
from dpldm.privacy.mechanisms import gaussian_noise_multiplier
from dpldm.privacy.noise import NoiseSource
from dpldm.recipes import settings_for

if Path.cwd().name == "notebooks":  # where JupyterLab starts
    os.chdir("..")

# %% tags=["parameters"]
dataset: str = "mnist"  # data set: mnist or fashion_mnist
epsilon: float = 10.0  # total privacy budget ε of the run, 0.01 or more
seed: int = 0  # of everything random, 0 to 10⁹
profile: str = "quick"  # amount of work: smoke (seconds), quick (minutes) or paper (hours, or a GPU)
# %%
train, test = datasets.load(dataset, "train"), datasets.load(dataset, "test")
train = train.subset(range(PROFILES[profile].limit or len(train)))
settings, delta = settings_for(profile, datasets.DATASETS[dataset].known, epsilon), 1e-5

# %% [markdown]
# ## Few numbers first: cosines
#
# An image has many pixels, but neighbouring ones agree. So every image is first written in its lowest cosine
# frequencies, as JPEG does. That looks at no data and is public. With the rows of $B$ the cosines,
#
# $$c = B\, x\, B^\top .$$

# %%
examples = torch.stack([test.images[test.labels == number][0] for number in range(test.num_classes)])
pca_settings = settings.compression.pca
basis = cosine_basis(train.image_shape[1], pca_settings.frequencies)
smooth = basis.T @ (basis @ examples @ basis.T) @ basis

# %% mystnb={"figure": {"caption": "Test images, and what their lowest cosine frequencies keep.", "name": "fig-cosines"}, "image": {"alt": "A row of real images above the same images, hardly changed, after dropping high cosine frequencies."}}
samples.reconstructions(examples, {"cosines": smooth})

# %% [markdown]
# ## Two questions to the private images
#
# Principal components need the mean and the second moments, and nothing else {cite}`dwork2014analyze`:
#
# $$\bar c = \frac{1}{N} \sum_i c_i, \qquad S = \frac1N \sum_i (c_i - \bar c)(c_i - \bar c)^\top .$$
#
# Both are sums over images. Clip every $c_i - \bar c$ to length $R$, and adding one image changes $N S$ by a matrix of norm
# $\lVert (c - \bar c)(c - \bar c)^\top \rVert_F \le R^2$: that is the sensitivity, however many images there are. So noise
# of a size that does not grow with $N$ is added to a sum that does. The function below gives stage 1 a whole budget of
# its own; in a run it gets a share.


# %%
def fitted(
    chosen: compression.CompressionSettings, budget: float | None, share: float = 1.0
) -> tuple[Compressor, Ledger]:
    """Stage 1 alone on the private images with a share of a budget ε; None for no noise."""
    noise_multiplier = gaussian_noise_multiplier(budget, delta) if budget else 0.0
    guard = PrivateData(train.images, train.labels, train.num_classes, Ledger())
    compressor = compression.build(train.image_shape, chosen, seed)
    random = torch.Generator().manual_seed(seed)
    list(compressor.fit(guard, Allowance(noise_multiplier, delta).part(share), NoiseSource.seeded(seed), random))
    return compressor, guard.ledger


# %%
pca = replace(settings.compression, kind="pca")
budgets = {f"ε = {budget:g}": budget for budget in sorted({0.1, 0.3, 1.0, epsilon})} | {"no noise": None}
compressors = {name: fitted(pca, budget)[0] for name, budget in budgets.items()}
decoded = {name: compressor.decode(compressor.encode(examples)) for name, compressor in compressors.items()}

# %% mystnb={"figure": {"caption": "Test images, compressed and decoded by private principal components at rising ε; the last row has no noise.", "name": "fig-compression-steps"}, "image": {"alt": "Rows of the same images, decoded: blurred at the smallest budget, clearer row by row, close to the original without noise."}}
samples.reconstructions(examples, decoded)

# %% [markdown]
# ## What is lost
#
# The error is the mean squared difference per pixel on test images, which were not used above:
#
# $$\text{MSE} = \frac{1}{N\,\text{pixels}} \sum_i \lVert x_i - \text{decode}(\text{encode}(x_i)) \rVert^2 .$$

# %%
errors = {
    name: float((c.decode(c.encode(test.images)) - test.images).square().mean()) for name, c in compressors.items()
}
dimensions = {name: compressor.dim for name, compressor in compressors.items()}
lost = pd.DataFrame({"latent dimensions": dimensions, "MSE": errors}).round(4)
style.captioned(lost, "What private principal components lose on test images, when stage 1 has the whole ε.")

# %%
fewest, kept = min(dimensions.values()), dimensions["no noise"]
least = next(name for name, count in dimensions.items() if count == fewest)
dropped = f"only {fewest} of {kept} at {least}" if fewest < kept else f"all {kept} at each of these ε"
glue("kept", dropped, display=False)

# %% [markdown]
# Eigenvalues below the largest that noise alone would show are noise, and a direction of noise only adds noise, so it is
# dropped. The threshold follows from the noise's known size, so it costs nothing. Here {glue:text}`kept` are kept.

# %%
glue("pixels", train.images[0].numel(), display=False)
glue("dimensions", dimensions[f"ε = {epsilon:g}"], display=False)
glue("mse", errors[f"ε = {epsilon:g}"], display=False)
glue("mse_open", errors["no noise"], display=False)
linear = min(1.0, errors["no noise"] / errors[f"ε = {epsilon:g}"])
glue("linear", f"{linear:.0%}", display=False)
tightest = next(iter(errors))
glue("tightest", tightest, display=False)
glue("tightest_times", f"{errors[tightest] / errors['no noise']:.1f}", display=False)

# %% [markdown]
# At ε = {glue:text}`own_epsilon`, {glue:text}`pixels` pixels become {glue:text}`dimensions` latents with an error of
# {glue:text}`mse:.4f`, against {glue:text}`mse_open:.4f` without noise. So {glue:text}`linear` of what is lost is lost by being
# linear and short, and the rest by being private. At {glue:text}`tightest` the error is {glue:text}`tightest_times` times that
# without noise.
#
# ## Would a network do better?
#
# The obvious alternative is an autoencoder trained by DP-SGD {cite}`abadi2016deep`. It gets the same budget, and some
# hundred noisy steps instead of two questions.

# %%
steps = replace(settings.compression.autoencoder.fit, batch=min(2048, len(train) // 4), steps=150)
small = profile == "smoke"
network = replace(settings.compression.autoencoder, fit=settings.compression.autoencoder.fit if small else steps)
autoencoder, autoencoder_ledger = fitted(replace(pca, kind="autoencoder", autoencoder=network), epsilon)

# %% mystnb={"figure": {"caption": "The same budget, spent on principal components and on an autoencoder trained by DP-SGD.", "name": "fig-autoencoder"}, "image": {"alt": "Original images, below them sharper decodings by principal components and blurrier ones by the private autoencoder."}}
sides = {"components": compressors[f"ε = {epsilon:g}"], "autoencoder": autoencoder}
samples.reconstructions(examples, {name: side.decode(side.encode(examples)) for name, side in sides.items()})

# %%
error = float((autoencoder.decode(autoencoder.encode(test.images)) - test.images).square().mean())
glue("own_epsilon", f"{epsilon:g}", display=False)
glue("autoencoder_mse", error, display=False)
glue("autoencoder_times", f"{error / errors[f'ε = {epsilon:g}']:.1f}", display=False)
glue("kind", settings.compression.kind, display=False)

# %% [markdown]
# Its error is {glue:text}`autoencoder_mse:.4f`, {glue:text}`autoencoder_times` times that of the components. A network of many weights asks many noisy questions in each step, so this short
# training on this budget is no match for two well-chosen questions. This book's run uses the compressor
# {glue:text}`kind`.
#
# ## What it cost
#
# Every look at the images went through the guard and into the ledger. Above, stage 1 had the whole budget to itself, so
# that compressors can be compared. In a run it gets {glue:text}`share` of it; then its ledger says:

# %%
_, ledger = fitted(settings.compression, epsilon, settings.compression_share)
glue("share", f"{settings.compression_share:.0%}", display=False)
glue("share_epsilon", f"{ledger.epsilon(delta):.3g}", display=False)
asked = pd.DataFrame([vars(mechanism) for mechanism in ledger.mechanisms]).set_index("name").round(3)
asked.columns = [name.replace("_", " ") for name in asked]
style.captioned(asked, "Every look of stage 1 at the private images, at its share of the budget.")

# %% [markdown]
# Alone these would be an ε of {glue:text}`share_epsilon`. Losses compose as $1/\sigma^2$, not as ε, so the ε of all parts add up
# to more than that of the whole.
#
# ## The latents are still private data
#
# The *encoder* is private: it could be published. The latents of private images are not: the decoder turns each back into
# an image of somebody. Nothing above protects them, and [three readings](readings.ipynb) shows an attack. So stage 2 has
# to pay for its own look at them.
#
# ## What we now know
#
# Two noisy sums, once, give a compression that loses less than a network of the same budget. It is linear, so it blurs. The
# last cell checks the claims about cost, that the most noise loses the most, and that the autoencoder is no match.

# %%
assert ledger.epsilon(delta) < epsilon  # a share, not all of it
assert autoencoder_ledger.epsilon(delta) <= epsilon
assert errors[tightest] == max(errors.values())
assert error > errors[f"ε = {epsilon:g}"] or small  # the autoencoder is no match
