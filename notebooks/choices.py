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
# # Which settings, and what each buys
#
# *Question: why this compressor, this many components, this split of the budget? At the end you will be able to say what
# each ingredient buys, what privacy and compression cost, and what did not pay.*
#
# Each line below is a whole fit with one thing changed. None of them looks at the test set: a sixth of the training images
# is held out, and classifiers trained on synthetic images alone are scored on that sixth. This is an independent
# re-implementation; these are our measurements.

# %%
import os
from dataclasses import replace
from pathlib import Path

import pandas as pd
from IPython.display import HTML, Markdown
from myst_nb import glue

from dpldm import recipes
from dpldm.book import charts, comparison, ingredients, pipeline, style
from dpldm.data import datasets
from dpldm.runs import ablation, experiment, validation, variations
from dpldm.runs.run import run

if Path.cwd().name == "notebooks":  # where JupyterLab starts
    os.chdir("..")

# %% tags=["parameters"]
dataset: str = "mnist"  # data set: mnist or fashion_mnist
epsilon: float = 10.0  # total privacy budget ε of the run, 0.01 or more
seed: int = 0  # of everything random, 0 to 10⁹
profile: str = "quick"  # amount of work: smoke (seconds), quick (minutes) or paper (hours, or a GPU)
# %% [markdown]
# ## One thing at a time
#
# Settings are frozen; a variation is a `replace`. Here the budget of the network goes up, and that of the mixture, which
# the network starts from, is cut in half:

# %%
base = recipes.settings_for(profile, datasets.DATASETS[dataset].known, epsilon)
starved = replace(base, mixture_share=base.mixture_share / 2)
f"of the budget to DP-SGD: {base.diffusion_share:.0%}, then {starved.diffusion_share:.0%}"

# %% [markdown]
# The library keeps a list of such variations. What is on in the settings of the profile is switched off there, and what is
# off is switched on; a few yardsticks without privacy stand beside them.

# %%
rows = variations.variations(dataset, epsilon, profile, seed)
assert rows["more-gradients"].experiment.settings == starved
titles = pd.Series({name: row.title for name, row in rows.items()}, name="what is changed")
style.captioned(titles.rename_axis("variation"), "Every variation, by the name that `dpldm ablation --only` takes.")

# %% [markdown]
# ## Two of them, now
#
# Fitted while this page was built, and scored with a small classifier: the settings as they are, and the private mixture
# alone, with the whole budget and without any network.

# %%
live = [rows["default"], rows["mixture-alone"]]
scores = {row.title: validation.validate(row.experiment) for row in live}
table = pd.DataFrame({name: vars(score) for name, score in scores.items()}).T
forms = {"accuracy": "{:.1%}", "reconstruction_error": "{:.4f}", "dim": "{:.0f}", "seconds": "{:.0f}"}
shown = pd.DataFrame({column: table[column].map(form.format) for column, form in forms.items()})
shown = shown.set_axis(["MLP accuracy", "error per pixel", "dimensions", "fit (s)"], axis="columns")
style.captioned(shown, "Two fits, scored by a small classifier on images held out.")

# %% [markdown]
# ## All of them
#
# The whole list takes longer than a page should, so its measurements are committed, one small file for each data set, ε and
# seed. Each line has a third of the profile's synthetic images; the CNN is that of the evaluation protocol, and the distance
# is taken on the features of our classifier, to the images held out. Lines of settings that the profile no longer has are left
# out. Every change is told as one reads it: in accuracy + is better, and for the distance it says lower, which is better, or
# higher.

# %%
files = [ablation.of_today(made) for made in ablation.read_all(Path("book/ablation"))]
effects = ablation.effects(ablation.table(files))
here = ingredients.of_one_profile(effects, dataset, profile)
HTML(comparison.as_html(ingredients.ingredients_as_shown(here)))

# %% mystnb={"markdown_format": "myst"}
Markdown(ingredients.commands_for_ingredients(here, dataset, profile, [10.0, 1.0]))

# %% mystnb={"figure": {"caption": "What each ingredient buys: a mark for every seed, an upright dash at the mean, a dotted line through the settings as they are. Held-out images, logarithmic axes.", "name": "fig-ingredients"}, "image": {"alt": "A line for every variation with marks for the errors of a CNN and for the Frechet distance, one colour and shape for each budget."}}
charts.ingredients(here) if len(here) else None

# %% [markdown]
# In words, written by the library from the same measurements:

# %%
said = [
    " ".join(ingredients.ingredients_in_words(here, budget)) for budget in sorted(set(here["epsilon"]), reverse=True)
]
Markdown(comparison.as_text(said))

# %% [markdown]
# The last three lines of the table are no release. *Without privacy* is the same architecture, fitted without noise: what is
# missing there, no budget brings back. *Real images through stage 1* are encoded and decoded by the private compressor: what
# is missing there is lost before the diffusion begins. What was tried and gave no line at all, because it was given up
# earlier, is told in [what did not work](../book/what-did-not-work.md).
#
# ## The whole way of an image
#
# The same measurements, in the order in which an image is made: what each step spends of this run's ε, and what it buys. A
# dash is a step that nothing is left without, or that was not measured at this ε. [The first page](../book/index.md) shows
# this figure.

# %%
described = experiment.Experiment(dataset, epsilon, seed=seed, profile=profile)
record = run(described, experiment.Folders(records=Path("runs/records")))
at_this_epsilon = here[here["epsilon"] == epsilon]
steps = pipeline.steps(record["privacy"], at_this_epsilon)

# %%
text = (
    "The steps from private to synthetic images from above to below, with each one's share of the budget and its gain."
)
glue("pipeline_html", HTML(style.as_html(charts.pipeline(steps, record["privacy"]["epsilon"]), text)), display=True)

# %% [markdown]
# ## What we now know
#
# The conclusion, drawn by the library from the table above:

# %% mystnb={"markdown_format": "myst"}
Markdown(pipeline.conclusion(at_this_epsilon, steps, epsilon))

# %% [markdown]
# Two noisy sums give private PCA at once what an autoencoder has to learn from many noisy gradients; the table shows what
# either gets for the same budget. Choosing by such figures has looked at held-out private images without paying for it; [the
# page on limits](../book/limits.md) says what that means. The last cell checks that no line in the table was measured without
# the settings it is compared with.

# %%
assert here.groupby("epsilon")["name"].agg(lambda names: "default" in set(names)).all()
