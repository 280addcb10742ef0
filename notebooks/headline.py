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
# An independent re-implementation from the abstract of {cite:t}`ge2024latent`. Our numbers are our own records; the figures
# of others are cited on [the comparison page](comparison.ipynb).

# %%
import os
from pathlib import Path

import torch
from IPython.display import HTML, Markdown
from myst_nb import glue

from dpldm.book import comparison, headline, ingredients, instruments, pipeline, published, series, style, targets
from dpldm.book.samples import real_beside_synthetic
from dpldm.data import datasets
from dpldm.records import numbers
from dpldm.records.files import read_all
from dpldm.records.images import load_images
from dpldm.records.names import record_name
from dpldm.runs import ablation
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
# ## This build's run, and all committed records

# %%
folders = Folders(records=Path("runs/records"))
record = run(Experiment(dataset, epsilon, seed=seed, profile=profile), folders)
committed = [one for one in read_all(Path("book/records")) if one["dataset"] == dataset]
records = {record_name(one): one for one in [*committed, record]}
own, real_images = targets.runs_of(records.values()), targets.runs_of(records.values(), "real")
quoted = published.read_published(Path("book/published.csv")).query("dataset == @dataset")
print("No committed records yet: this build's run stands alone." if not committed else f"{len(records)} records")

# %%
metrics, spent = record["metrics"], record["privacy"]
meaningless = " (with the profile smoke: its numbers mean nothing)" if profile == "smoke" else ""
glue("dataset", style.DATASETS[dataset] + meaningless, display=False)
glue("epsilon_spent", f"{spent['epsilon']:.3g}", display=False)
glue("delta", style.decimal(spent["delta"]), display=False)
glue("n_synthetic", f"{metrics['n_synthetic']:,}", display=False)
glue("cnn", f"{100 * torch.tensor(metrics['accuracy']['cnn']).mean():.1f}", display=False)
glue("fid", f"{metrics['fid_classifier']:.2f}", display=False)
glue("run_time", numbers.duration(sum(filter(None, record["seconds"].values()))), display=False)
glue("device", record["device"].removeprefix("cpu: "), display=False)

# %% [markdown]
# ## Real and synthetic images

# %%
images, labels, _ = load_images(folders.runs / Path(record_name(record)).stem / "synthetic.npz")
train = datasets.load(dataset, "train")
rows = torch.cat([(labels == number).nonzero()[:5, 0] for number in range(train.num_classes)])
real = torch.cat([(train.labels == number).nonzero()[:5, 0] for number in range(train.num_classes)])
samples = real_beside_synthetic(train.images[real], images[rows], labels[rows], train.class_names)

# %%
text = "Real images at the left, private synthetic images at the right, one row per class."
glue("samples_html", HTML(style.as_html(samples, text)), display=True)

# %% [markdown]
# ## Four lines
#
# This book's line is the mean over every seed of the build's profile; that of the profile `smoke`, which means nothing, is
# never drawn. Of the others stands the highest figure that was published at each ε. Where the images are nearly all
# recognised, differences are small and matter most, so the axis is spread there: it is logarithmic in what a classifier gets
# wrong.

# %%
drawn = headline.drawn_profile(own, profile)
points = headline.lines(own, real_images, quoted, drawn)
figure = series.headline(points, headline.title(dataset, drawn))
text = "Test accuracy against the privacy budget: this book, the best published, DP-Sinkhorn, and real images."
glue("figure_html", HTML(style.as_html(figure, text)), display=True)

# %%
standing = headline.standing_in_words(points)
glue("standing", standing, display=False)
Markdown(standing)

# %% [markdown]
# A CNN is the learner that the settings were chosen by. What others learn from the images of this build, beside as many real
# ones:

# %%
yardsticks = [one for one in committed if one["method"] == "real" and one["profile"] == drawn]
kept = instruments.keeps_in_words(metrics, yardsticks[0]["metrics"] if yardsticks else {}, train.class_names)
glue("kept", kept, display=False)
Markdown(kept)

# %% [markdown]
# ## The table
#
# The same, and a second profile: a *long* run makes its images in the same way and trains the classifiers for longer. † the
# best of three larger classifiers, which is a more favourable protocol than a CNN. ‡ as others repeated it, where its authors
# gave no figure. [The comparison](comparison.ipynb) has all methods, each with its source, and how far the seeds differ.

# %%
frame = headline.as_shown(own, real_images, quoted, drawn, epsilon)
glue("table_html", HTML(comparison.as_html(frame)), display=True)

# %% [markdown]
# ## What was added to two stages, and what it buys
#
# From the measurements of [the ablation](choices.ipynb), on images held out from the training set, each a run without one
# thing. FID is the Fréchet distance on the features of our classifier; lower is better.

# %%
effects = ablation.effects(ablation.table([ablation.of_today(one) for one in ablation.read_all(Path("book/ablation"))]))
additions = pipeline.additions_in_words(ingredients.of_one_profile(effects, dataset, drawn), epsilon)
glue("additions", additions, display=False)
Markdown(additions)

# %% [markdown]
# ## What we now know
#
# One run, one budget, one record: whoever repeats this build gets these numbers. The last cell checks that the run kept its
# promise, that this book did better than chance, and that the first page stays short. The records of this data set, each with
# all its settings, versions, checksums and every seed's score:

# %% tags=["hide-output"]
print(*records, sep="\n")

# %%
assert spent["epsilon"] <= epsilon
assert points.query("line == @headline.THIS_BOOK")["accuracy"].gt(1 / train.num_classes).all()
assert points["line"].nunique() <= 4
assert len(frame) <= 6
