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
# # Move ε
#
# *Question: how do the images change with the budget? At the end you will have seen it, and can say what little ε costs.*
#
# These are committed runs of our own independent re-implementation of the idea in {cite:t}`ge2024latent`; nothing is computed
# while you move the slider, and nothing is asked of any other computer.

# %%
import os
from pathlib import Path

from IPython.display import HTML

from dpldm.book import slider, style
from dpldm.records import files

if Path.cwd().name == "notebooks":  # where JupyterLab starts
    os.chdir("..")

# %% tags=["parameters"]
dataset: str = "mnist"  # data set: mnist or fashion_mnist
epsilon: float = 10.0  # total privacy budget ε of the run, 0.01 or more
seed: int = 0  # of everything random, 0 to 10⁹
profile: str = "quick"  # amount of work: smoke (seconds), quick (minutes) or paper (hours, or a GPU)
# %% [markdown]
# ## The records
#
# A run of this book's method at each ε that is committed, without public data. Scores are means over all seeds; the images
# are those of the first seed, and were not chosen.

# %%
records = files.read_all(Path("book/records"))
runs = {name: slider.runs_by_epsilon(records, name) for name in style.DATASETS}

# %% [markdown]
# ## Digits

# %%
HTML(slider.as_html(runs["mnist"], Path("book/records"), epsilon))

# %% [markdown]
# ## Garments

# %%
HTML(slider.as_html(runs["fashion_mnist"], Path("book/records"), epsilon))

# %% [markdown]
# ## What we now know
#
# A larger budget gives images that are nearer to real ones and of more use; [the sweep](sweep.ipynb) has the curves. The last
# cell checks this for the scores shown here: at the largest ε a CNN gets more right than at the smallest, and the distance
# to the real images is less.

# %%
for found in runs.values():
    first, last = found[min(found)], found[max(found)]
    for one, other in zip(first, last, strict=False):
        assert min(other["metrics"]["accuracy"]["cnn"]) > max(one["metrics"]["accuracy"]["cnn"])
        assert other["metrics"]["fid_classifier"] < one["metrics"]["fid_classifier"]
