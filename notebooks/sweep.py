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
# # The ε sweep
#
# *Question: what does a tighter budget cost? At the end you will be able to say how accuracy and fidelity change with ε, how
# sure the figures are, and where the published points lie.*
#
# All lines are our own records, from an independent re-implementation of the abstract of {cite:t}`ge2024latent`. Each is one
# run or more with different seeds; nothing was selected. `dpldm sweep --epsilon … --seeds …` makes more of them,
# `dpldm publish …` adds those that shall stand here to `book/records`, and the next build draws them.

# %%
import os
from pathlib import Path

import pandas as pd
from myst_nb import glue

from dpldm.book import comparison, series, style
from dpldm.methods import profile_title
from dpldm.records.files import read_all
from dpldm.records.names import record_name
from dpldm.runs import words
from dpldm.runs.experiment import Experiment, Folders
from dpldm.runs.run import run

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
# The committed ones, and the run of this build. Of runs that differ in their settings those are shown that `dpldm run` makes
# today; a variant that learned from public data is another method and has a name of its own.

# %%
folders = Folders(records=Path("runs/records"))
record = run(Experiment(dataset, epsilon, seed=seed, profile=profile), folders)
committed = read_all(Path("book/records"))
records = {record_name(one): one for one in [*committed, record]}
table = comparison.measured(records.values())
print("No committed records yet: one point is not a sweep." if not committed else f"{len(records)} records")

# %%
columns = {"dataset": "dataset", "title": "method", "profile": "profile", "epsilon": "ε", "seeds": "seeds"}
scores = {"cnn": "CNN (%)", "cnn_spread": "± (%)", "mlp": "MLP (%)", "logreg": "log. reg. (%)"}
percent = (100 * table[list(scores)]).round(1).rename(columns=scores)
distance = table["fid_classifier"].round(2).rename("FID (classifier)")
told = table[list(columns)].assign(profile=table["profile"].map(profile_title)).rename(columns=columns)
whole = pd.concat([told, percent, distance], axis=1)
whole.astype(object).where(whole.notna(), "–")

# %% [markdown]
# ε is the target; `inf` means no privacy. The spread is one standard deviation over all seeds of the run and of the
# classifiers.
#
# ## Accuracy
#
# The grey points are from the literature, with the same three classifiers and without public data:
# {cite:t}`dockhorn2023dpdm`, {cite:t}`cao2021sinkhorn` and {cite:t}`harder2021dpmerf`; "re-run" is what {cite:t}`hu2024sok`
# measured independently.

# %%
published = (
    pd.read_csv("book/published.csv").query("score == 'cnn' and public_data.isna()").rename(columns={"value": "cnn"})
)
known = ["DPDM (accuracy sampler)", "DPDM (FID sampler)", "DP-Sinkhorn", "DP-Sinkhorn (re-run)", "DP-MERF (re-run)"]
beside = published[published["method"].isin(known) & published["dataset"].isin(table["dataset"])]

# %% mystnb={"figure": {"caption": "Accuracy on real test images of a CNN that was trained on synthetic images only, against ε; published points in grey.", "name": "fig-sweep-accuracy"}, "image": {"alt": "Accuracy against the privacy budget, one panel for each data set; published methods are grey points around the lines of this project."}}
series.accuracy_against_epsilon(table, beside)

# %% [markdown]
# ## Fidelity
#
# The Fréchet distance here uses the features of a classifier of real images. Published distances use other features, so none
# of them belongs into this figure.

# %% mystnb={"figure": {"caption": "Fréchet distance of synthetic images to real test images on classifier features, against ε.", "name": "fig-sweep-fid"}, "image": {"alt": "Frechet distance against the privacy budget, one panel for each data set, with a dot for every seed."}}
series.fid_against_epsilon(table)

# %% [markdown]
# ## What the network adds to the mixture
#
# `class-gaussian`, where there is a record of it, is the same method with one Gaussian per class and no network: the floor
# that a latent diffusion has to beat. Where both lines touch, DP-SGD had too little budget to teach anything.

# %%
rows = table[(table["dataset"] == dataset) & (table["profile"] == profile)]
own = rows[(rows["method"] == "dpldm") & (rows["public_data"] == "")].sort_values("epsilon")
glue("least", f"{own['epsilon'].iloc[0]:g}", display=False)
glue("most", f"{own['epsilon'].iloc[-1]:g}", display=False)
glue("at_least", float(100 * own["cnn"].iloc[0]), display=False)
glue("at_most", float(100 * own["cnn"].iloc[-1]), display=False)
glue("which", style.DATASETS[dataset], display=False)

# %% [markdown]
# On {glue:text}`which`, from ε = {glue:text}`least` to ε = {glue:text}`most`, the CNN goes from {glue:text}`at_least:.1f` % to
# {glue:text}`at_most:.1f` %.
#
# ## What we now know
#
# Every point above is a file that can be checked. The last cell does so for all of them: none spent more than it was given,
# and every ε follows from the mechanisms in the record.

# %%
private = [one for one in records.values() if one["privacy"]["epsilon"] is not None]
claims = [words.statement(one["privacy"], one["dataset"])["epsilon"] for one in private]
assert record_name(record) in {name for names in own["records"] for name in names}
assert all(one["privacy"]["epsilon"] <= (one["privacy"]["epsilon_target"] or float("inf")) for one in private)
assert len(claims) == len(private) > 0
