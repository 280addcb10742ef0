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
# %% [markdown] limits={"cell_seconds": 120.0, "all_seconds": 480.0} nbgrader={"grade_id": "assignment", "locked": true}
# # Assignment 3: DP-SGD and latent diffusion
#
# *At the end you can clip and noise per-example gradients, draw several noises per example at no cost in privacy,
# account for a training run, and train and sample a small private latent diffusion.*
#
# - **Before**: assignments 1 and 2; the chapter “Stage 2: latent diffusion”; PyTorch.
# - **Difficulty**: hard. **Points**: 30, of which 3 are for a written answer.
# - **Time**: 2½ to 3 hours, estimated from difficulty and points by the rule on the book's page “Coursework”; no class
#   has been timed.
# - Fill in the cells that say `YOUR CODE HERE`. Keep the names of the functions and of their arguments; add what you
#   like beside them. The cell after each answer has examples to try; the grading calls your functions with others.
# - Each question is graded by itself: none needs the answer to an earlier one.
# - Cells of examples, and those to look at (tagged `explore`), are not run when it is graded: define nothing there that
#   an answer needs.
#
# Neighbouring data sets differ by **one record more or less** (add-or-remove-one). All arrays are PyTorch tensors.

# %% nbgrader={"grade_id": "given-imports", "locked": true}
import math
from itertools import pairwise

import torch

from dpldm.data.datasets import load
from dpldm.privacy.accounting import Ledger
from dpldm.privacy.mechanisms import Mechanism

# %% [markdown] nbgrader={"grade_id": "about-parameters", "locked": true}
# Your own numbers. They may differ from those of your neighbour.

# %% tags=["parameters"] nbgrader={"grade_id": "parameters", "locked": true}
epsilon: float = 1.0  # your privacy budget ε
seed: int = 0  # of what you draw yourself

# %% [markdown] nbgrader={"grade_id": "about-clip-gradients", "locked": true}
# ## Question 1: clip per-example gradients (3 points)
#
# Each row is the gradient of one example. Shorten those longer than `clip_norm`, leave the others as they are.


# %% nbgrader={"grade_id": "clip-gradients", "solution": true}
def clip_gradients(gradients, clip_norm):
    """Gradients (n, p), none longer than clip_norm."""
    ### BEGIN SOLUTION
    lengths = gradients.norm(dim=1, keepdim=True)
    return gradients * (clip_norm / lengths.clamp_min(1e-30)).clamp_max(1.0)
    ### END SOLUTION


# %% nbgrader={"grade_id": "test-clip-gradients", "grade": true, "locked": true, "points": 3}
clipped = clip_gradients(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), clip_norm=1.0)
assert torch.allclose(clipped, torch.tensor([[0.6, 0.8], [0.3, 0.4]]))

# %% [markdown] nbgrader={"grade_id": "about-private-gradient", "locked": true}
# ## Question 2: one private gradient (5 points)
#
# The batch is a Poisson sample, so its size is private. Clip the gradients, add them up, add noise whose standard
# deviation is the noise multiplier times the sensitivity, and divide by the **expected** batch size.
#
# Draw noise **only** by `normal(shape, std)`, which returns a tensor. The grading gives its own. The batch may be
# empty: `gradients` then has no rows, and as many columns as ever.


# %% nbgrader={"grade_id": "private-gradient", "solution": true}
def private_gradient(gradients, clip_norm, noise_multiplier, expected_batch, normal):
    """The noisy mean gradient (p,) of per-example gradients (n, p); noise from normal(shape, std)."""
    ### BEGIN SOLUTION
    lengths = gradients.norm(dim=1, keepdim=True)
    total = (gradients * (clip_norm / lengths.clamp_min(1e-30)).clamp_max(1.0)).sum(dim=0)
    return (total + normal(total.shape, noise_multiplier * clip_norm)) / expected_batch
    ### END SOLUTION


# %% nbgrader={"grade_id": "test-private-gradient", "grade": true, "locked": true, "points": 5}
generator = torch.Generator().manual_seed(seed)


def normal(shape, std):
    return torch.randn(shape, generator=generator) * std


example = private_gradient(torch.eye(2), clip_norm=1.0, noise_multiplier=0.0, expected_batch=4, normal=normal)
assert torch.allclose(example, torch.tensor([0.25, 0.25]))

# %% [markdown] nbgrader={"grade_id": "about-microbatches", "locked": true}
# ## Question 3: a batch that does not fit into memory (4 points)
#
# The same private gradient, but the batch comes in parts, of different sizes, some of them empty. It is still **one**
# release: neighbours differ in one row of one part.


# %% nbgrader={"grade_id": "microbatches", "solution": true}
def gradient_from_parts(parts, clip_norm, noise_multiplier, expected_batch, normal):
    """The noisy mean gradient (p,) of a list of parts (n_i, p) of one batch; noise from normal(shape, std)."""
    ### BEGIN SOLUTION
    total = torch.zeros(parts[0].shape[1])
    for part in parts:
        lengths = part.norm(dim=1, keepdim=True)
        total = total + (part * (clip_norm / lengths.clamp_min(1e-30)).clamp_max(1.0)).sum(dim=0)
    return (total + normal(total.shape, noise_multiplier * clip_norm)) / expected_batch
    ### END SOLUTION


# %% nbgrader={"grade_id": "test-microbatches", "grade": true, "locked": true, "points": 4}
halves = [torch.eye(2), torch.zeros(0, 2)]
example = gradient_from_parts(halves, clip_norm=1.0, noise_multiplier=0.0, expected_batch=4, normal=normal)
assert torch.allclose(example, torch.tensor([0.25, 0.25]))

# %% [markdown] nbgrader={"grade_id": "about-losses", "locked": true}
# ## Question 4: a loss for each example, with several noises (4 points)
#
# A denoiser $D(z, \sigma)$ sees latents with noise, $z = x + \sigma n$, and guesses $x$. Each latent gets $K$ noises,
# the same latent each time, and its loss is the **mean** over its noises and its $d$ coordinates of
#
# $$\left(1 + \frac{1}{\sigma^2}\right) \left(D(x + \sigma n, \sigma) - x\right)^2 .$$
#
# One number per latent, so that its gradient can be clipped; the noises are of one person and cost nothing more.
# Nothing in the loss of one latent may depend on the other latents.
#
# `denoise(noisy, sigmas)` takes (m, d) and (m,) and returns (m, d).


# %% nbgrader={"grade_id": "losses", "solution": true}
def denoising_losses(denoise, latents, sigmas, noise):
    """The loss (n,) of each latent (n, d), with noise levels (n, K) and standard normal noise (n, K, d)."""
    ### BEGIN SOLUTION
    clean = latents[:, None, :].expand_as(noise)
    noisy = clean + sigmas[..., None] * noise
    guess = denoise(noisy.flatten(0, 1), sigmas.flatten()).reshape(noisy.shape)
    weighted = (1 + 1 / sigmas[..., None] ** 2) * (guess - clean) ** 2
    return weighted.mean(dim=(1, 2))
    ### END SOLUTION


# %% nbgrader={"grade_id": "given-denoiser", "locked": true}
def shrink(noisy, sigmas):
    """The best denoiser for latents that are standard normal; for the examples below."""
    return noisy / (1 + sigmas[:, None] ** 2)


# %% nbgrader={"grade_id": "test-losses", "grade": true, "locked": true, "points": 4}
one = denoising_losses(shrink, torch.zeros(1, 2), torch.ones(1, 1), torch.ones(1, 1, 2))
assert torch.allclose(one, torch.tensor([0.5]))

# %% [markdown] nbgrader={"grade_id": "about-sampling", "locked": true}
# ## Question 5: Poisson sampling (2 points)
#
# The accounting holds if each example is in a batch with probability `sample_rate`, on its own. Given one uniform
# number between 0 and 1 for each example, return the positions of those that are in: low numbers are in.


# %% nbgrader={"grade_id": "sampling", "solution": true}
def poisson_batch(uniforms, sample_rate):
    """The positions (m,) of the examples in the batch, rising, from one uniform number (n,) for each."""
    ### BEGIN SOLUTION
    return [position for position, number in enumerate(uniforms.tolist()) if number < sample_rate]
    ### END SOLUTION


# %% nbgrader={"grade_id": "test-sampling", "grade": true, "locked": true, "points": 2}
assert [int(position) for position in poisson_batch(torch.tensor([0.9, 0.05, 0.4]), 0.1)] == [1]

# %% [markdown] nbgrader={"grade_id": "about-training-epsilon", "locked": true}
# ## Question 6: what a training run costs (3 points)
#
# Return ε of a whole run of DP-SGD. Use an accountant: this book's `Ledger` and `Mechanism`, `dp_accounting` or Opacus.
# For the book's: `Mechanism("gradients", "diffusion", noise_multiplier, sample_rate, steps, 1.0)` is recorded by
# `ledger.add(mechanism)`, and `ledger.epsilon(delta)` tells ε.


# %% nbgrader={"grade_id": "training-epsilon", "solution": true}
def training_epsilon(noise_multiplier, sample_rate, steps, delta):
    """ε of that many steps of the Gaussian mechanism on Poisson samples."""
    ### BEGIN SOLUTION
    ledger = Ledger()
    ledger.add(Mechanism("gradients", "diffusion", noise_multiplier, sample_rate, steps, 1.0))
    return ledger.epsilon(delta)
    ### END SOLUTION


# %% nbgrader={"grade_id": "test-training-epsilon", "grade": true, "locked": true, "points": 3}
assert training_epsilon(1.0, 0.01, 100, 1e-5) < training_epsilon(1.0, 0.01, 1000, 1e-5)

# %% [markdown] nbgrader={"grade_id": "about-sampler", "locked": true}
# ## Question 7: sample (4 points)
#
# Sampling follows the curve from noise to a latent. With levels $\sigma_0 > \sigma_1 > \dots > \sigma_T = 0$, start at
# $x_0 = \sigma_0 n$ and take Euler steps along the slope $(x - D(x, \sigma)) / \sigma$:
#
# $$x_{t+1} = x_t + (\sigma_{t+1} - \sigma_t)\, \frac{x_t - D(x_t, \sigma_t)}{\sigma_t}.$$
#
# As in question 4, `denoise(noisy, sigmas)` takes a level for each row.


# %% nbgrader={"grade_id": "sampler", "solution": true}
def sample(denoise, noise, sigmas):
    """Latents (n, d) from standard normal noise (n, d), by Euler steps along falling levels (T + 1,), the last 0."""
    ### BEGIN SOLUTION
    x = sigmas[0] * noise
    for now, following in pairwise(sigmas):
        slope = (x - denoise(x, now.expand(len(x)))) / now
        x = x + (following - now) * slope
    return x
    ### END SOLUTION


# %% nbgrader={"grade_id": "test-sampler", "grade": true, "locked": true, "points": 4}
drawn = sample(
    shrink, torch.randn(2000, 2, generator=generator), torch.cat([torch.logspace(1, -2, 60), torch.zeros(1)])
)
assert 0.8 < drawn.std() < 1.2

# %% [markdown] nbgrader={"grade_id": "about-own-noise", "locked": true}
# ## Question 8: your own budget (2 points)
#
# A run has 100 steps with a sample rate of 0.1, at $\delta = 10^{-5}$. Set `own_noise_multiplier` to a noise multiplier
# with which the run costs no more than your `epsilon`, and at most one part in fifty more noise than needed. A loop
# that halves an interval, around an accountant, is enough.

# %% nbgrader={"grade_id": "own-noise", "solution": true}
### BEGIN SOLUTION
low, high = 0.3, 30.0
while high / low > 1.005:
    middle = math.sqrt(low * high)
    ledger = Ledger()
    ledger.add(Mechanism("gradients", "diffusion", middle, 0.1, 100, 1.0))
    low, high = (low, middle) if ledger.epsilon(1e-5) <= epsilon else (middle, high)
own_noise_multiplier = high
### END SOLUTION

# %% nbgrader={"grade_id": "test-own-noise", "grade": true, "locked": true, "points": 2}
assert own_noise_multiplier > 0

# %% [markdown] nbgrader={"grade_id": "about-looking", "locked": true}
# ## To look at: a small private latent diffusion (no points)
#
# 10,000 handwritten digits become 8 latents by principal components. Those are not private here, so that only the
# training is looked at. A small network learns to denoise the latents by your own functions, and what it samples is
# decoded. This cell takes longer than all others. It asks for the gradient of one latent's loss, and `vmap` of PyTorch
# does so for all of them at once. If it stops there and your examples ran, look in your losses for an `if`, a `float()`
# or an `.item()` on values of a tensor. The grading does not mind them.

# %% tags=["explore"] nbgrader={"grade_id": "explore-training"}
import matplotlib.pyplot as plt
from torch.func import functional_call, grad, vmap

images = load("mnist", "train").images[:10_000, 0, ::2, ::2].flatten(1)
mean, (_, _, directions) = images.mean(0), torch.linalg.svd(images - images.mean(0), full_matrices=False)
latents = (images - mean) @ directions[:8].T
scale = latents.std(0)
latents = latents / scale

network = torch.nn.Sequential(torch.nn.Linear(9, 64), torch.nn.SiLU(), torch.nn.Linear(64, 8))
weights = {name: value.detach() for name, value in network.named_parameters()}
weights["2.weight"].zero_()
weights["2.bias"].zero_()


def denoiser(values):
    def denoise(noisy, sigmas):
        level = sigmas[:, None]
        seen = torch.cat([noisy / (1 + level**2).sqrt(), level.log()], dim=1)
        correction = functional_call(network, values, (seen,))
        return noisy / (1 + level**2) + level / (1 + level**2).sqrt() * correction

    return denoise


def loss_of_one(values, latent, sigmas, noise):
    return denoising_losses(denoiser(values), latent[None], sigmas[None], noise[None])[0]


for _ in range(100):
    rows = torch.as_tensor(poisson_batch(torch.rand(len(latents), generator=generator), 0.1), dtype=torch.long)
    sigmas = torch.exp(torch.randn(len(rows), 4, generator=generator) * 1.2 - 0.4)
    noises = torch.randn(len(rows), 4, 8, generator=generator)
    gradients = vmap(grad(loss_of_one), (None, 0, 0, 0))(weights, latents[rows], sigmas, noises)
    flat = torch.cat([value.flatten(1) for value in gradients.values()], dim=1)
    step = private_gradient(flat, 1.0, own_noise_multiplier, 0.1 * len(latents), normal)
    pieces = step.split([value.numel() for value in weights.values()])
    weights = {
        name: value - 0.5 * piece.reshape(value.shape)
        for (name, value), piece in zip(weights.items(), pieces, strict=True)
    }

levels = torch.cat([torch.logspace(1, -2, 40), torch.zeros(1)])
made = sample(denoiser(weights), torch.randn(16, 8, generator=generator), levels)
figure, axes = plt.subplots(2, 8, figsize=(6, 1.7))
for axis, latent in zip(axes.flat, made, strict=True):
    axis.imshow((mean + (latent * scale) @ directions[:8]).reshape(14, 14), cmap="gray", vmin=0, vmax=1)
    axis.axis("off")
plt.show()

# %% [markdown] nbgrader={"grade_id": "about-why", "locked": true}
# ## Question 9: in your own words (3 points)
#
# Someone puts batch norm into the network, keeps everything else, and reports the same ε. Why does the promise no
# longer hold? And why do $K$ noises per latent not cost $K$ times as much? Six sentences at most.

# %% [markdown] nbgrader={"grade_id": "why", "grade": true, "solution": true, "points": 3}
# With batch norm the output for one example depends on the mean and spread of its batch, so one record changes the
# gradients of all the others. Clipping bounds each gradient but not in how many of them that record shows: the
# sensitivity of the sum is no longer the clipping norm. The K noises belong to one example and are averaged before its
# gradient is clipped, so the record still moves the sum by one clipping norm at most, however many noises there are.
#
# *Rubric: 1 point for saying that an example changes the gradients of others; 1 point for what that does to the
# sensitivity; 1 point for saying that noises are averaged before clipping, within one record.*

# %% [markdown] nbgrader={"grade_id": "open", "locked": true}
# ## An open question (no points, no solution in this book)
#
# Each step spends the same noise. Early steps find the coarse shape, late ones details that noise may hide. Is there a
# schedule of noise multipliers, or of batch sizes, that ends better at the same ε, and how would you look for it
# without spending budget on the search? Bring an idea to class.
