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
# # The data
#
# *Question: what are the images, where do they come from, and what of them is public? At the end you will be able to
# say what the synthesizer is given, and what it is not.*
#
# MNIST {cite}`lecun1998gradient` and Fashion-MNIST {cite}`xiao2017fashion` are public. We pretend that they are not:
# only so can everybody check what a private method makes of them.

# %%
import os
from pathlib import Path

import pandas as pd
import torch
from myst_nb import glue

from dpldm.book import charts, samples, style
from dpldm.data import datasets, images
from dpldm.privacy.statement import PUBLIC, RELATION

if Path.cwd().name == "notebooks":  # where JupyterLab starts
    os.chdir("..")

# %% tags=["parameters"]
dataset: str = "mnist"  # data set: mnist or fashion_mnist
epsilon: float = 10.0  # total privacy budget ε of the run, 0.01 or more
seed: int = 0  # of everything random, 0 to 10⁹
profile: str = "quick"  # amount of work: smoke (seconds), quick (minutes) or paper (hours, or a GPU)
# %% [markdown]
# ## Load, and check every byte
#
# `load` reads the original files and compares their SHA-256 with the known ones, each time. What is absent is fetched;
# what is damaged is refused.

# %%
train, test = datasets.load(dataset, "train"), datasets.load(dataset, "test")
print("\n".join(datasets.verify(dataset)).replace(f"{datasets.data_folder()}{os.sep}", ""))

# %%
glue("train_count", f"{len(train):,}", display=False)
glue("test_count", f"{len(test):,}", display=False)
glue("class_count", train.num_classes, display=False)
glue("shape", " × ".join(map(str, train.image_shape)), display=False)

# %% [markdown]
# There are {glue:text}`train_count` training images and {glue:text}`test_count` test images of {glue:text}`class_count` classes,
# each a tensor of {glue:text}`shape` (channels × height × width) with values from 0 to 1. The training images are the private
# ones. The test images are not used until the very end, for scores.

# %% mystnb={"figure": {"caption": "Training images, one row per class: what must not be published.", "name": "fig-data"}, "image": {"alt": "A grid of real training images with one row for each of the classes."}}
samples.sample_grid(train.images[:400], train.labels[:400], train.class_names, title="Real images")

# %% [markdown]
# ## How many of each?
#
# The classes are about equally large. Their exact sizes are private: a count changes when somebody joins. The
# synthesizer therefore draws the same number for every class, and where it needs counts, it pays for noisy ones.

# %%
counts = {"training": train.labels.bincount(), "test": test.labels.bincount()}
table = pd.DataFrame({name: values.tolist() for name, values in counts.items()}, index=list(train.class_names))
style.captioned(table.rename_axis("class"), "Images of each class.")

# %% [markdown]
# ## What a linear compression can hope for
#
# The mean image of each class shows what a Gaussian per class starts from. Where the mean is a blur, images of the class
# differ among themselves, and the spread below it says where.

# %%
classes = range(train.num_classes)
means = torch.stack([train.images[train.labels == number].mean(0) for number in classes])
spreads = torch.stack([train.images[train.labels == number].std(0) for number in classes])

# %% mystnb={"figure": {"caption": "Mean and (doubled, to be seen) standard deviation of each class, pixel by pixel, computed without privacy for this page only.", "name": "fig-means"}, "image": {"alt": "Two rows of images: the average image of each class, and below it where images of the class differ."}}
samples.image_rows({"mean": means, "spread": spreads * 2}, "Classes on average", "over the class", "classes in order")

# %% mystnb={"figure": {"caption": "Pixel values of a thousand images, in 32 bins.", "name": "fig-pixels"}, "image": {"alt": "Histogram of pixel values with its highest peak at black."}}
pixels = train.images[:1000]
charts.histograms({"pixels": pixels}, "pixel value", "Not at all Gaussian", bins=32)

# %%
black, white = (pixels < 1 / 32).double().mean().item(), (pixels > 31 / 32).double().mean().item()
glue("black", f"{black:.0%}", display=False)
glue("white", f"{white:.1%}", display=False)
glue("grey", f"{1 - black - white:.0%}", display=False)

# %% [markdown]
# Black, the first bin, are {glue:text}`black` of the pixels, white, the last bin, {glue:text}`white`, and {glue:text}`grey` lie
# between. That is not Gaussian at all, which is one reason to model latents and not pixels.
#
# ## What is public
#
# The guarantee covers everything about the images except this list; the library knows it, and prints it with every
# release:

# %%
print(f"neighbours: {RELATION}", "public: " + "; ".join(PUBLIC), sep="\n")

# %% [markdown]
# Your own images come in the same form: `load_own` takes a folder per class or an `.npz` file and checks shape,
# range and labels before anything else happens.
#
# ## What we now know
#
# The input is labelled grey images in a known range. Their number, size and classes are public, and nothing else is.

# %%
assert float(train.images.min()) == 0
assert float(train.images.max()) == 1
assert images.check(test) is test
assert all(values.max() < 1.5 * values.min() for values in counts.values())  # about equally large
assert black > 0.4  # one value takes so many: not at all Gaussian
