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
# # The result at a glance
#
# *Question: how useful are private synthetic images, in one figure and one table? At the end you will be able to say what
# this build reached, at which ε, and beside whom. [The first page](../book/index.md) takes its numbers from here.*
#
# An independent re-implementation from the abstract of {cite:t}`ge2024latent`. Our numbers are our own records; the points
# of others are cited on [the comparison page](comparison.ipynb).

# %%
import os
from pathlib import Path

import pandas as pd
import torch
from IPython.display import HTML
from myst_nb import glue

from dpldm import data, experiment, plots, results
from dpldm.experiment import Experiment, Folders
from dpldm.results import read_all, record_name

if Path.cwd().name == "notebooks":  # where JupyterLab starts
    os.chdir("..")

# %% tags=["parameters"]
dataset: str = "mnist"  # data set: mnist or fashion_mnist
epsilon: float = 10.0  # total privacy budget ε of the run, 0.01 or more
seed: int = 0  # of everything random, 0 to 10⁹
profile: str = "quick"  # amount of work: smoke (seconds), quick (minutes) or paper (hours, or a GPU)
# %% [markdown]
# ## This build's run, and all committed records

# %%
folders = Folders(records=Path("runs/records"))
record = experiment.run(Experiment(dataset, epsilon, seed=seed, profile=profile), folders)
committed = read_all(Path("book/records"))
records = {record_name(one): one for one in [*committed, record]}
table = results.table(records.values()).query("not finished")  # what rivals' images gain by that: see the comparison
print("No committed records yet: this build's run stands alone." if not committed else f"{len(records)} records")

# %%
metrics, spent = record["metrics"], record["privacy"]
meaningless = " (with the profile smoke: its numbers mean nothing)" if profile == "smoke" else ""
glue("dataset", plots.DATASETS[dataset] + meaningless, display=False)
glue("epsilon_spent", f"{spent['epsilon']:.3g}", display=False)
glue("delta", plots.decimal(spent["delta"]), display=False)
glue("n_synthetic", f"{metrics['n_synthetic']:,}", display=False)
glue("cnn", f"{100 * torch.tensor(metrics['accuracy']['cnn']).mean():.1f}", display=False)
glue("fid", f"{metrics['fid_classifier']:.2f}", display=False)
glue("run_time", results.duration(sum(filter(None, record["seconds"].values()))), display=False)
glue("device", record["device"].removeprefix("cpu: "), display=False)

# %% [markdown]
# ## Real and synthetic images

# %%
images, labels, _ = results.load_images(folders.runs / Path(record_name(record)).stem / "synthetic.npz")
train = data.load(dataset, "train")
rows = torch.cat([(labels == number).nonzero()[:6, 0] for number in range(train.num_classes)])
real = torch.cat([(train.labels == number).nonzero()[:6, 0] for number in range(train.num_classes)])
samples = plots.real_beside_synthetic(train.images[real], images[rows], labels[rows], train.class_names)

# %%
text = "Real images at the left, private synthetic images at the right, one row per class."
glue("samples_html", HTML(plots.as_html(samples, text)), display=True)

# %% [markdown]
# ## Accuracy against the budget
#
# Where two variants of the settings share a place, the figure shows the one with more seeds; the table has all.

# %%
published = (
    pd.read_csv("book/published.csv").query("score == 'cnn' and public_data.isna()").rename(columns={"value": "cnn"})
)
known = ["DPDM (accuracy sampler)", "DP-Sinkhorn", "DP-Sinkhorn (re-run)", "DP-MERF (re-run)"]
beside = published[published["method"].isin(known) & published["dataset"].isin(table["dataset"])]
places = ["dataset", "method", "public_data", "profile", "epsilon"]
shown = table.sort_values("seeds", ascending=False).drop_duplicates(places)

# %%
figure = plots.accuracy_against_epsilon(shown, beside)
text = "Test accuracy against the privacy budget: this project's records as lines, published results as grey points."
glue("figure_html", HTML(plots.as_html(figure, text)), display=True)

# %% [markdown]
# ## The table
#
# Mean over every seed; ± is one standard deviation, and empty where there is only one value. No ε means no privacy.

# %%
units = {"cnn": "CNN (%)", "cnn_spread": "± (%)", "fid_classifier": "FID (classifier)", "seconds": "time (s)"}
scaled = table.assign(cnn=100 * table["cnn"], cnn_spread=100 * table["cnn_spread"]).replace(float("inf"), float("nan"))
columns = ["dataset", "method", "profile", "epsilon", "seeds", *units]
frame = scaled[columns].rename(columns=units | {"epsilon": "ε"}).round(2)
glue("table_html", HTML(frame.to_html(index=False, na_rep="–", border=0)), display=True)

# %% [markdown]
# The records behind it, each with all its settings, versions, checksums and every seed's score:

# %%
print(*(name for names in table["records"] for name in names), sep="\n")

# %% [markdown]
# ## What we now know
#
# One run, one budget, one record: whoever repeats this build gets these numbers. The last cell checks that the run kept its
# promise, and that it did better than chance.

# %%
assert spent["epsilon"] <= epsilon
assert table["cnn"].max() > 1 / train.num_classes
assert record_name(record) in records
