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
# # Stage 2: latent diffusion
#
# *Question: how does a program that may hardly look at the latents learn to draw new ones? At the end you will be able to
# say what the mixture knows, what the network adds, where the budget goes, and how noise becomes an image.*
#
# A diffusion model {cite}`ho2020denoising,song2021score` learns one skill: to see through noise. Whoever can say what a
# noisy latent most likely looked like before the noise, can start from nothing but noise and walk back, step by step. In
# a latent space this is far cheaper than in pixels {cite}`rombach2022high`, and fewer numbers take less privacy noise. We
# use the form of {cite:t}`karras2022elucidating`. This is an independent re-implementation from the abstract of
# {cite:t}`ge2024latent`; the numbers are our own.

# %%
import os
from pathlib import Path

import pandas as pd
import torch
from myst_nb import glue

from dpldm import recipes
from dpldm.book import charts, samples, style
from dpldm.method import diffusion
from dpldm.method.edges import whitened
from dpldm.method.finishing import finish
from dpldm.method.settings import SamplingSettings
from dpldm.privacy.accounting import Ledger
from dpldm.privacy.budget import budget_shares
from dpldm.privacy.mechanisms import Mechanism
from dpldm.records.names import record_name
from dpldm.runs import ablation
from dpldm.runs.experiment import Experiment, Folders
from dpldm.runs.run import run
from dpldm.runs.saved import load_synthesizer

if Path.cwd().name == "notebooks":  # where JupyterLab starts
    os.chdir("..")

# %% tags=["parameters"]
dataset: str = "mnist"  # data set: mnist or fashion_mnist
epsilon: float = 10.0  # total privacy budget ε of the run, 0.01 or more
seed: int = 0  # of everything random, 0 to 10⁹
profile: str = "quick"  # amount of work: smoke (seconds), quick (minutes) or paper (hours, or a GPU)
# %% [markdown]
# ## The run
#
# One run serves all pages of this build. Whichever page comes first makes it; the others find it finished.

# %%
described = Experiment(dataset, epsilon, seed=seed, profile=profile)
folders = Folders(records=Path("runs/records"))
record = run(described, folders)
saved = load_synthesizer(folders.runs / Path(record_name(record)).stem / "synthesizer.safetensors")
synthesizer, settings = saved.synthesizer, saved.settings

# %% [markdown]
# ## What a noisy latent looks like
#
# Training takes a latent $z$ of a private image, adds noise of a random size, and asks for $z$ back:
#
# $$z_\sigma = z + \sigma n, \qquad n \sim \mathcal N(0, I).$$
#
# To show it without a private image, we draw latents from the model itself and add noise to them.

# %%
classes = torch.arange(len(saved.class_names))
*_, clean = synthesizer.sample_latents(classes, seed, settings.sampling)
levels = [0.0, 0.3, 0.6, 1.2, 2.5, 5.0]
noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
noisy = [synthesizer.compressor.decode(clean + level * noise) for level in levels]

# %% mystnb={"figure": {"caption": "Latents with rising noise, decoded: the forward half of diffusion.", "name": "fig-noising"}, "image": {"alt": "One synthetic image per row; from left to right its latent has more noise, until nothing can be recognised."}}
samples.denoising_steps(noisy, levels, saved.class_names)

# %% [markdown]
# ## First the moments: a private mixture
#
# A network that learns this from clipped, noised gradients learns little. So it does not start from nothing. The latents
# of a class are first described by a mixture of Gaussians, fitted by noisy expectation maximisation, after
# {cite:t}`park2017dpem`. It asks for a second-moment matrix of every class once, and for counts and sums of the
# components in a few rounds. The classes are disjoint, so one image moves only one class's numbers.
#
# For a Gaussian with mean $\mu$ and covariance $V \Lambda V^\top$ the best denoiser is known in closed form,
#
# $$\mathbb E[z \mid z_\sigma] = \mu + V \frac{\Lambda}{\Lambda + \sigma^2} V^\top (z_\sigma - \mu),$$
#
# and for a mixture it is the average of these, weighted by how well each component explains $z_\sigma$.

# %%
mixture = synthesizer.mixture
centres, many = mixture.means[:, :4], 6
draws = mixture.sample(classes.repeat_interleave(many), torch.Generator().manual_seed(seed)).unflatten(0, (-1, many))
latents = torch.cat([centres, draws], dim=1)
glue("components", mixture.means.shape[1], display=False)

# %% mystnb={"figure": {"caption": "What the private mixture knows before any network is trained: centres of its components at the left, which are noisy averages of many images, and then draws from it, decoded.", "name": "fig-centres"}, "image": {"alt": "A grid with one row per class: at the left a soft-edged average of the class, then rougher images drawn around it."}}
known = {name: synthesizer.compressor.decode(row) for name, row in zip(saved.class_names, latents, strict=True)}
samples.image_rows(known, "The mixture alone", "class", f"{centres.shape[1]} of the centres, then {many} draws")

# %% [markdown]
# In this run a class has {glue:text}`components` component(s), and one covariance, which all draws of the class share.

# %% [markdown]
# ## Then the rest: a small network
#
# The denoiser of this book is the mixture's, plus a correction:
#
# $$D(z_\sigma; \sigma, y) = m(z_\sigma; \sigma, y) + c_{\text{out}}(\sigma)\, F_\theta(z_\sigma, m, \sigma, y), \qquad
# c_{\text{out}} = \frac{\sigma}{\sqrt{1 + \sigma^2}} .$$
#
# $F_\theta$ begins as zero, so at the first step the model *is* the private mixture, and DP-SGD can only be asked to learn
# what is not Gaussian. The scalings keep what goes in and out of the network at unit size, whatever the noise.

# %%
sigmas = torch.logspace(-2, 1.3, 20)
scales = diffusion.precondition(sigmas)
lines = {"in": scales.into, "out": scales.out, "skip": scales.skip}

# %% mystnb={"figure": {"caption": "The scalings around the network against the noise level. The network's output counts for little where there is little noise to remove.", "name": "fig-preconditioning"}, "image": {"alt": "Three curves against the noise level: in and skip fall from one to nearly zero, out rises from nearly zero to one."}}
charts.curves(sigmas, {name: line.tolist() for name, line in lines.items()}, "noise level σ", "factor", logarithmic="x")

# %% [markdown]
# It is fitted to minimise the weighted squared error, averaged over $K$ noise levels of each image (noise multiplicity,
# {cite:t}`dockhorn2023dpdm`):
#
# $$\ell_i(\theta) = \frac1K \sum_{k=1}^K \frac{\lVert D(z_i + \sigma_k n_k; \sigma_k, y_i) - z_i \rVert^2}
# {d\; c_{\text{out}}(\sigma_k)^2} .$$
#
# The average is taken *inside* an image, before its gradient is clipped. So $K$ costs time but no privacy. DP-SGD clips
# every image's gradient to length $C$, sums over a Poisson batch, and adds noise {cite}`abadi2016deep`; Opacus does this
# without ever storing one gradient per image {cite}`yousefpour2021opacus`.

# %%
network = sum(parameter.numel() for parameter in synthesizer.network.parameters())
glue("weights", f"{network:,}", display=False)
glue("draws", settings.draws, display=False)
glue("steps", settings.fit.steps, display=False)
glue("batch", f"{settings.fit.batch:,}", display=False)

# %% [markdown]
# Here $K$ = {glue:text}`draws`, the network has {glue:text}`weights` weights, and it takes {glue:text}`steps` steps of about
# {glue:text}`batch` images.
#
# ## Where the budget goes
#
# Every mechanism of both stages is in the record's ledger. Their losses compose as $1/\sigma^2$, so a mechanism's share is
# its own $1/\sigma^2$, of the single Gaussian question that would cost as much.

# %%
mechanisms, delta = [Mechanism(**entry) for entry in record["privacy"]["mechanisms"]], record["privacy"]["delta"]
shares = budget_shares(Ledger(mechanisms), delta)

# %% mystnb={"figure": {"caption": "Every mechanism that looked at the private images, and its share of the budget.", "name": "fig-budget"}, "image": {"alt": "Horizontal bars, one for each mechanism of both stages, with their shares of the privacy budget in per cent."}}
charts.budget_split(record["privacy"], shares)

# %%
composed = Ledger(mechanisms)
accountants = {name: composed.epsilon(delta, name) for name in ("prv", "rdp", "pld")}
style.captioned(
    pd.Series(accountants, name="ε").rename_axis("accountant").round(4), "ε of the run by three accountants."
)

# %% [markdown]
# The library reports the first. The second is looser, the third an independent program that must agree.
#
# ## From noise to images
#
# Sampling starts at the largest noise level and follows the denoiser down {cite}`karras2022elucidating,song2021denoising`:
#
# $$\frac{\mathrm dz}{\mathrm d\sigma} = \frac{z - D(z; \sigma, y)}{\sigma} .$$

# %%
walk = list(synthesizer.sample_latents(classes, seed + 1, settings.sampling))
schedule = settings.levels.schedule(settings.sampling.steps)[1:]
chosen = torch.linspace(0, len(walk) - 1, min(8, len(walk))).round().int().tolist()
pictures = [synthesizer.compressor.decode(walk[step]) for step in chosen]

# %% mystnb={"figure": {"caption": "The same samples on their way from noise to image, one row per class. Each column is a later step with less noise.", "name": "fig-denoising"}, "image": {"alt": "Rows of pictures that start as grey noise at the left and end as recognisable images of each class at the right."}}
samples.denoising_steps(pictures, schedule[chosen].tolist(), saved.class_names)

# %% [markdown]
# ## Drawn again
#
# Such a model knows a class by its density. Where classes overlap, as shirts and coats do, the border between two densities
# is a poor border between classes. A classifier needs far less of the private images to know it better. So an image that
# the classifier does not see as its class is drawn again, up to a number of times. The classifier is a softmax regression on
# features that no data decide: the strength of edges in eight directions at three scales {cite}`bruna2013invariant`, which
# serve private classifiers better than features they learn {cite}`tramer2021better`. It learns from the private images as
# this model would draw them, after stage 1 and back. With features $\phi_i$ of length 1 and $p_t$ the probabilities at step
# $t$, every step releases one noisy sum over all images,
#
# $$g_t = \sum_i \phi_i \, \mathrm{clip}_1 \bigl( p_t(\phi_i) - y_i \bigr)^{\!\top} + \mathcal N(0, \sigma^2 I),$$
#
# in which one image has a share of length 1 at most. On garments the classifier sees every private image a second time, as it
# is; then its share is the mean of two such terms, no longer than before {cite}`de2022unlocking`, so the second look is free
# of charge. The features are centred and whitened first, by synthetic images, and that costs nothing. At small budgets, where
# the classifier would know less than the density, nothing is drawn again.

# %%
drawn_for = classes.repeat(200)
*_, latents = synthesizer.sample_latents(drawn_for, seed + 2, settings.sampling)
candidates = finish(synthesizer.compressor.decode(latents), settings.finish, torch.Generator())
selects = settings.selects
logits = synthesizer.selector.logits(candidates) if selects else torch.eye(len(classes))[drawn_for]
seen_as = logits.log_softmax(1)[torch.arange(len(drawn_for)), drawn_for]
unlike = seen_as.argsort()[:10] if selects else classes  # the first of each
refused = (logits.argmax(1) != drawn_for).double()
by_the_classifier = f"Here the classifier refuses {refused.mean().item():.0%} of the images, and up to"
by_the_classifier += f" {settings.selection.candidates} are drawn for each one."
without = (
    "At this ε there is no classifier: nothing is drawn again, and the row shows one image of each class, unjudged."
)
glue("refusal", by_the_classifier if selects else without, display=False)
by_class = pd.Series([refused[drawn_for == c].mean().item() for c in classes], saved.class_names, name="drawn again")
style.captioned(by_class.map("{:.0%}".format).rename_axis("class"), "How many of each class the classifier refuses.")

# %% mystnb={"figure": {"caption": "The ten images, out of two hundred of each class, that the classifier finds least like what they should be; where there is no classifier, one of each class.", "name": "fig-refused"}, "image": {"alt": "A row of synthetic images, most of which show nothing or something between two classes."}}
names = ", ".join(saved.class_names[c] for c in drawn_for[unlike])
title = "Not seen as what they should be" if selects else "One of each class, unjudged"
samples.image_rows({"refused" if selects else "drawn": candidates[unlike]}, title, "", names)

# %% [markdown]
# {glue:text}`refusal`
#
# ## What is known without looking
#
# Principal components draw blurred edges and grey strokes. Some of it can be mended with what anybody knows about such
# images: strokes bend a little and stay the same digit {cite}`simard2003best`, ink is ink, garments have edges. No private
# image is looked at for that, so it costs no ε. On images of your own it is off, because nothing is known about them. What
# is not random is done before the classifier judges; images are bent at the very end.

# %%
print("after decoding:", settings.finish)
print("at the very end:", settings.last)

# %% [markdown]
# ## Edges moved to where they should be
#
# How strong edges are, where and in which direction: that has a mean and a covariance in every class, and both can be
# released like the moments of latents. So the private images are asked once more, for the moments $(m_y, P_y)$ of their
# {glue:text}`edge-features` strongest edge features, as they are and not as stage 1 would draw them. Our own images have
# moments too, $(s_y, S_y)$, and those are free. Between two Gaussians the shortest way is known
# {cite}`olkin1982distance`: an image with features $f$ should have
#
# $$T_y(f) = m_y + A_y (f - s_y), \qquad A_y = S_y^{-1/2} \bigl( S_y^{1/2} P_y S_y^{1/2} \bigr)^{1/2} S_y^{-1/2} .$$
#
# A few steps of gradient descent on its pixels bring it near to that. Nothing private is looked at while images are moved.

# %%
shown = classes.repeat(3)
before = synthesizer.drawing.selected(shown, seed + 3, settings.sampling, synthesizer.drawing.stage_1)
moves, edges = settings.moves, settings.transport.dim
after = synthesizer.transport.move(before, shown) if moves else before
glue("edge-features", edges, display=False)


# %%
def away(images: torch.Tensor) -> float:
    """Root mean square distance of the images' edge features from those that they should have."""
    transport = synthesizer.transport
    with torch.no_grad():
        start, now = (whitened(some, transport.mean, transport.axes) for some in (before, images))
    wanted = transport.targets[shown] + torch.einsum(
        "bij,bj->bi", transport.maps[shown], start - transport.sources[shown]
    )
    return (now - wanted).square().mean().sqrt().item()


distances = {"before": away(before), "after": away(after)} if moves else {"not moved": 0.0}
far = pd.Series(distances, name="distance").round(3)
style.captioned(far, "How far edges are from where they should be, in standard deviations of a feature.")

# %% [markdown]
# ## A push towards the class
#
# A classifier that has seen real images as they are and as we draw them knows two things: where the borders are, and what
# speaks for a class in a real image. So at last each image is moved up the gradient of $\log p_y$ a little way, in steps of
# equal length, as samples of a diffusion model are led by classifier guidance {cite}`dhariwal2021diffusion`. It brings our
# images nearer to the real ones than edges alone do, and CNNs learn more from garments; from digits they learn about as
# much. A push by a classifier that has seen real images only was no help: the page on
# [what did not work](../book/what-did-not-work.md) has the story. Nothing private is looked at here either.

# %%
pushed = synthesizer.selector.pushed(after, shown) if settings.pushes else after
finished = finish(pushed, settings.last, torch.Generator().manual_seed(seed))
length = after.flatten(1).norm(dim=1).mean().item()
way = f"The way is {settings.selection.push:g} long at most; an image has a length of {length:.1f}, on average."
print(way if settings.pushes else "With these settings no image is pushed.")

# %% mystnb={"figure": {"caption": "One of each class on its way, a row for each step that is on at this ε: selected or only drawn, with its edges moved, pushed, and finished. Moving and pushing leave grain around the strokes; finishing, which raises the contrast where that is on, takes most of it away.", "name": "fig-finished"}, "image": {"alt": "Rows of the same synthetic images: as they were selected, below them with grain around their edges, and at the bottom finished ones."}}
first = "selected" if selects else "drawn"
turns = {first: before} | ({"moved": after} if moves else {}) | ({"pushed": pushed} if settings.pushes else {})
shown_rows = {name: some[: len(classes)] for name, some in (turns | {"finished": finished}).items()}
samples.image_rows(shown_rows, "From stage 1 to the image released", "step", "classes in order")

# %% [markdown]
# ## Decoders that match
#
# At a small budget the moments of edges are mostly noise, and a linear decoder draws the noise of its components into every
# image. A small convolutional network can hardly draw noise, only shapes. So below an ε of about a half such networks
# decode the latents in place of stage 1, and nothing is selected or moved; above it they decode half of the digits, which
# are selected and pushed like the others. They learn from one answer, the mean of features $\varphi$ of length 1 in
# every class,
#
# $$\hat\mu_y = \frac{1}{n_y} \Bigl( \sum_{i :\, y_i = y} \varphi(x_i) + \mathcal N(0, \sigma^2 I) \Bigr),$$
#
# in which one image has a share of length 1 at most, however many features there are (the counts $n_y$ are noisy as well and
# come with it). With random Fourier features of the pixels this is what DP-MERF asks {cite}`harder2021dpmerf`; here half of
# the features are of the oriented edges from above. The decoders start at what stage 1 draws and go down the distance of
# mean features, for as many steps as we like: after the release all of it is free. So is having several decoders, which
# match the mean *together*, each with a part of the images.

# %%
released = torch.cat(list(synthesizer.sample(shown, seed + 3, settings.sampling)))
matching = settings.matching
decided = f"{matching.decoders} matched decoders draw {matching.image_share:.0%} of the images"
print(decided if settings.matches else "At this ε stage 1 draws all images.")

# %% mystnb={"figure": {"caption": "The first of each class as stage 1 draws it, and three others of each as they are released. Nothing was chosen, so some are hard to name.", "name": "fig-released"}, "image": {"alt": "Four rows of synthetic images of every class: one as stage 1 draws them, and three as they are released."}}
count = len(classes)
rows = {"stage 1": before[:count]} | {f"released {1 + turn}": part for turn, part in enumerate(released.split(count))}
samples.image_rows(rows, "As released", "", "classes in order")

# %% [markdown]
# ## Guidance
#
# Guidance exaggerates what makes a class {cite}`ho2022classifier`: the step towards the class is taken $w$ times as far as
# the step without a class says. It makes images purer and more alike. It is post-processing, so trying it is free; choosing
# it by looking at real images would not be.

# %%
guidances = {f"w = {weight:g}": SamplingSettings(steps=settings.sampling.steps, guidance=weight)
             for weight in (0.5, 1, 2, 4)}  # fmt: skip
ends = {name: list(synthesizer.sample_latents(classes, seed, sampling))[-1] for name, sampling in guidances.items()}
rows = {name: synthesizer.compressor.decode(latents) for name, latents in ends.items()}

# %% mystnb={"figure": {"caption": "The same starting noise with rising guidance w; 1 is none. Decoded, nothing done to them.", "name": "fig-guidance"}, "image": {"alt": "Four rows of synthetic images from the same noise; with more guidance they become bolder and more uniform."}}
samples.image_rows(rows, "Guidance", "weight", "classes in order")

# %% [markdown]
# ## What we now know
#
# Moments first, gradients for the rest: the model starts at a private mixture and learns what that misses. The whole of both
# stages is in one ledger, and its ε is within the budget, by every accountant:

# %%
assert accountants["prv"] <= epsilon
assert abs(accountants["prv"] - record["privacy"]["epsilon"]) < 1e-9 * epsilon
assert abs(accountants["pld"] / accountants["prv"] - 1) < 0.02
assert accountants["rdp"] >= accountants["prv"]
if profile != "smoke":  # the sentences about small budgets and about digits are those of the recipes
    scarce = recipes.band(epsilon) == "scarce"
    assert (settings.selects, settings.moves) == (not scarce, not scarce)
    assert settings.matching.image_share == (1.0 if scarce else 0.5) if settings.matches else not scarce
    assert settings.matches == (scarce or dataset == "mnist")
effects = ablation.effects(ablation.table(map(ablation.of_today, ablation.read_all(Path("book/ablation")))))
unpushed = effects[effects["name"] == "no-push"]
assert (unpushed["fid_classifier_gain"] > 0).all()  # the push brings images nearer
assert (unpushed.query("dataset == 'fashion_mnist'")["cnn_gain"] < -0.01).all()  # CNNs learn more from garments
assert (unpushed.query("dataset == 'mnist'")["cnn_gain"].abs() < 0.002).all()  # and about as much from digits
