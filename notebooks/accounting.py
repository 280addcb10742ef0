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
# # Where the ε of a run comes from
#
# *Question: a record says "ε = 10". Must I believe it? At the end you will be able to compute the ε of any record anew
# from its ledger, by three accountants, and to say which mechanism took how much of the budget, what one more epoch
# would cost, and what the number is worth under another definition of neighbours.*
#
# `dpldm privacy RECORD` prints the core of this page for any record.

# %%
import os
from itertools import pairwise
from pathlib import Path

import pandas as pd
from myst_nb import glue

from dpldm.book import charts, floors
from dpldm.data import datasets
from dpldm.method.synthesizer import LatentDiffusion
from dpldm.privacy.accounting import Ledger, replace_one_epsilon, with_more_epochs
from dpldm.privacy.budget import budget_shares
from dpldm.privacy.mechanisms import Mechanism, PrivacySpec, gaussian_epsilon, gaussian_noise_multiplier
from dpldm.privacy.statement import from_record, statement, to_record
from dpldm.recipes import settings_for
from dpldm.records import files, names
from dpldm.runs import chosen
from dpldm.runs.experiment import Experiment

if Path.cwd().name == "notebooks":  # where JupyterLab starts
    os.chdir("..")

# %% tags=["parameters"]
dataset: str = "mnist"  # data set: mnist or fashion_mnist
epsilon: float = 10.0  # total privacy budget ε of the run, 0.01 or more
seed: int = 0  # of everything random, 0 to 10⁹
profile: str = "quick"  # amount of work: smoke (seconds), quick (minutes) or paper (hours, or a GPU)
# %% [markdown]
# ## A ledger
#
# We look for the record of this book's run: method, data set, ε and seed, and every setting, because a variant of the
# method is another run with another ledger. Where there is none, the page goes on with the ledger that such a run is
# *planned* to have. Nothing in a ledger depends on the images, so it can be written before anybody looks at one.


# %%
def planned(n: int = 60_000, delta: float = 1e-5) -> dict:
    """The `privacy` of a run with the profile's settings on ``n`` images, without the run: each stage says its part."""
    spec = PrivacySpec(epsilon, delta)
    model = LatentDiffusion(
        (1, 28, 28), 10, settings_for(profile, datasets.DATASETS[dataset].known, epsilon), spec, seed
    )
    return to_record(spec, Ledger(model.planned(n)))


described = Experiment(dataset, epsilon, seed=seed, profile=profile)
record = chosen.choose(files.read_all(Path("book/records")), described)
privacy = record["privacy"] if record else planned()
source = f"the record `{names.record_name(record)}`" if record else "the plan of a run, because its record is not here"
ledger, delta = from_record(privacy), privacy["delta"]
glue("source", source, display=False)
glue("delta", f"{delta:g}", display=False)

# %% [markdown]
# What follows is about {glue:text}`source`. These are the mechanisms that touched the images, all of them:

# %%
pd.DataFrame(privacy["mechanisms"]).drop(columns="sensitivity").round(5)

# %% [markdown]
# And this is what they guarantee together, in words that travel with every released file:

# %%
said = statement(privacy, settings_saw_images=True)
print(said["claim"], *said["assumptions"], sep="\n- ")

# %% [markdown]
# Two of these say what does not hold for this book itself, and does not have to, because its data are public: everything is
# seeded, and the settings were chosen on the same training images ([limits](../book/limits.md)). For your own release both
# must hold.
#
# ## Three accountants
#
# The **PRV** accountant follows the distribution of the privacy loss numerically {cite}`gopi2021numerical`; its upper
# error bar is what we report. **PLD** does the same by other mathematics and other people's code
# {cite}`doroshenko2022connect`. **RDP** bounds the moments of the loss {cite}`mironov2017renyi,mironov2019renyi`: fast,
# old, and looser. They read the same ledger, and none of them knows the answer that the record gives.

# %%
answers = {name: ledger.epsilon(delta, name) for name in ("prv", "pld", "rdp")}
for name, answer in answers.items():
    glue(f"epsilon_{name}", answer, display=False)
glue("claimed", privacy["epsilon"], display=False)
glue("pld_interval", f"{ledger.pld_interval(delta):.2g}", display=False)
pd.DataFrame({"ε": answers}).rename(index=str.upper).round(4)

# %% [markdown]
# The record claims {glue:text}`claimed:.4f`; PRV gives {glue:text}`epsilon_prv:.4f`, PLD {glue:text}`epsilon_pld:.4f` and RDP
# {glue:text}`epsilon_rdp:.4f`, all at δ = {glue:text}`delta`. PLD puts privacy losses on a mesh and rounds so that ε can only come
# out too large. The interval of the mesh that this claim needs is {glue:text}`pld_interval`: a small share of ε over the square
# root of the number of steps, since roundings of many steps add up. `Ledger.pld_interval` says it for any ledger.
#
# Where do they part? Below, each step sees each image with a small probability. RDP bounds moments, and for few steps
# the loss is far from what any moment can describe: almost always nothing, seldom a lot. With more steps the loss becomes
# Gaussian and all agree. The tests compare PRV and PLD on a grid from ε = 0.05 to 20, sample rates from 0.001 to 1 and
# 1 to 20,000 steps.

# %%
steps = [1, 10, 100, 1000]
few = [Ledger([Mechanism("a step", "example", 1.0, 0.01, count)]) for count in steps]
lines = {name.upper(): [book.epsilon(delta, name) for book in few] for name in ("rdp", "prv", "pld")}
glue("looser", lines["RDP"][0] / lines["PRV"][0], display=False)

# %% mystnb={"figure": {"caption": "The same steps of DP-SGD (noise multiplier 1, one image in a hundred) by three accountants. PRV and PLD lie on each other; RDP needs many steps to come near.", "name": "fig-accountants"}, "image": {"alt": "Epsilon against the number of steps on logarithmic axes: the curves of PRV and PLD coincide, that of RDP lies far above them for one step and close for a thousand."}}
charts.curves(steps, lines, "steps", "ε (δ as above)", "Three accountants", "xy")

# %% [markdown]
# For a single step RDP says {glue:text}`looser:.1f` times as much as PRV. An author who only has RDP adds noise for that.
#
# ## Where rounding decides
#
# PRV and PLD compose many steps by a Fourier transform, raised to the number of steps {cite}`koskela2021tight`. A computer's
# numbers end after some digits, so each step moves δ(ε) by a little, whatever δ is; at a δ of that size the answer is
# noise. A ledger whose answer we know shows it: as many steps as below, each of which sees *nearly* all images, are one
# Gaussian in all but name, with an exact ε at every δ.

# %%
many = 100_000
one = floors.one_gaussian(1.0, many)
alone = floors.against_delta(1.0, many, [10.0**-power for power in range(7, 16)])
off = (alone[["PRV", "PLD"]].div(alone["exact"], axis=0) - 1).abs().max(axis=1)
believed = alone["delta"] >= one.floor
glue("many", f"{many:,}", display=False)
glue("floor", f"{one.floor:.1g}", display=False)
glue("off_above", float(100 * off[believed].max()), display=False)
glue("off_below", float(100 * off[~believed].max()), display=False)
reported = [one.epsilon(delta) for delta in alone["delta"]]

# %% mystnb={"figure": {"caption": "One Gaussian, taken in very many steps: ε of three accountants left to themselves, and the exact curve. Below their floor PRV and PLD follow their own rounding, until they refuse (the line ends); RDP stays above the exact curve at any δ.", "name": "fig-floors"}, "image": {"alt": "Epsilon against delta on a logarithmic axis: right of a dashed line, the floor, PRV and PLD lie on the exact curve; left of it they leave it, with hollow marks. RDP lies a little above the exact curve everywhere."}}
charts.floors(alone, one.floor)

# %% [markdown]
# After {glue:text}`many` steps PRV and PLD are within {glue:text}`off_above:.2g` % of the exact ε above δ = {glue:text}`floor`, and off
# by as much as {glue:text}`off_below:.0f` % below it. So this book's ledger takes what rounding may have cost off δ, does not ask
# them below that floor (`Ledger.floor`; it grows with the steps), and never reports more than RDP proves.
#
# ## Who spends what
#
# ε does not add up, so "its share" needs a definition. Two of them:
#
# - **share of 1/σ²**: Gaussian mechanisms compose by adding $1/\sigma^2$. A subsampled mechanism counts as the Gaussian
#   that has the same ε alone.
# - **leave one out**: by how much would ε fall without the mechanism? Divided by the sum of all such falls.

# %%
mechanisms = ledger.mechanisms
falls = [answers["prv"] - Ledger(m for m in mechanisms if m is not left).epsilon(delta) for left in mechanisms]
columns = {"share of 1/σ²": budget_shares(ledger, delta), "leave one out": falls}
shares = pd.DataFrame(columns, index=[m.name for m in mechanisms])
shares = shares / shares.sum()
shares.round(3)

# %% mystnb={"figure": {"caption": "Who spends the budget, by leaving one out.", "name": "fig-split"}, "image": {"alt": "One bar for each mechanism with its share of the budget in per cent, coloured by stage."}}
charts.budget_split(privacy, shares["leave one out"].tolist())

# %% [markdown]
# ## One more epoch
#
# An epoch is as many steps as it takes to see every image once on average, $1/q$. Another one is never free:

# %%
extra = [0, 1, 2, 5, 10] if profile != "smoke" else [0, 1, 2]
costs = [(with_more_epochs(ledger, more) if more else ledger).epsilon(delta) for more in extra]
sampled = [mechanism for mechanism in mechanisms if mechanism.sample_rate < 1][-1]
glue("epoch_cost", costs[1] - costs[0], display=False)
glue("last_cost", (costs[-1] - costs[-2]) / (extra[-1] - extra[-2]), display=False)
glue("last_epochs", f"{extra[-2]} to {extra[-1]}", display=False)
glue("epochs_run", sampled.steps * sampled.sample_rate, display=False)

# %% mystnb={"figure": {"caption": "What the run would have spent with more epochs of DP-SGD at the same noise.", "name": "fig-epochs"}, "image": {"alt": "Epsilon rises with the number of additional epochs."}}
charts.curves(extra, {"whole run": costs}, "additional epochs", "ε", "One more epoch")

# %% [markdown]
# After {glue:text}`epochs_run:.1f` epochs one more costs {glue:text}`epoch_cost:.3f`; from {glue:text}`last_epochs` additional
# ones, each costs {glue:text}`last_cost:.3f`.
#
# ## Other neighbours
#
# Our neighbours differ by **adding or removing** one image, where the number of images is public and stays as it is. (One
# may think of the image as blanked out of every sum; with another $N$ in the formulas the comparison would mean
# nothing.) Other authors let one image be **replaced** by another. That is a removal and an addition, so it is the
# stronger promise for the same number, and the same run has a larger ε under it. In general
#
# $$(\varepsilon, \delta') \text{ add or remove} \;\Rightarrow\; (2\varepsilon, (1 + e^{\varepsilon})\,\delta') \text{ replace}.$$
#
# For one Gaussian sum it is the noise multiplier that halves: two vectors of length one lie up to two apart. (Second
# moments do better: $\lVert zz^\top - ww^\top \rVert \le \sqrt 2$.) Compare ε only under the same neighbours.

# %%
replaced = replace_one_epsilon(ledger, delta)
noise_multiplier = gaussian_noise_multiplier(epsilon, delta)
replaced_gaussian = gaussian_epsilon(noise_multiplier / 2, delta)
glue("replaced", replaced, display=False)
glue("replaced_gaussian", replaced_gaussian, display=False)

# %% [markdown]
# By the general rule this run is {glue:text}`replaced:.2f` under replacement. If it were a single Gaussian sum of the same ε, the
# exact answer would be {glue:text}`replaced_gaussian:.2f`.
#
# ## What no accountant sees
#
# The ledger is believed. It can't see a statistic that was read without an entry, noise that was not added, batches
# that were shuffled where Poisson sampling was promised, or a second run on the same images. Several runs, for example
# with several seeds, compose like any mechanisms: whoever holds two such records of the same private images holds

# %%
both = Ledger([*mechanisms, *mechanisms]).epsilon(delta)
glue("both", both, display=False)

# %% [markdown]
# ε = {glue:text}`both:.2f` together, provided that nobody knows the seeds of their noise. [The next page](audit.ipynb) looks for such mistakes from the outside.
#
# ## What we now know
#
# ε is a function of the ledger that anybody can compute, by independent ways that agree. It depends on what counts as a
# neighbour, and on the ledger being complete. The last cell asserts the claims.

# %%
assert answers["prv"] <= privacy["epsilon"] * (1 + 1e-6)
assert abs(answers["pld"] / answers["prv"] - 1) < 0.01
assert answers["rdp"] >= answers["prv"] * 0.999
assert all(abs(a / b - 1) < 0.01 for a, b in zip(lines["PRV"], lines["PLD"], strict=True))
assert lines["RDP"][0] > 1.5 * lines["PRV"][0]
assert off[believed].max() < 0.01
assert (alone["RDP"] >= alone["exact"]).all()
assert off[~believed].max() > 2 * off[believed].max()
assert all(
    exact * (1 - 1e-9) <= told <= rdp for told, exact, rdp in zip(reported, alone["exact"], alone["RDP"], strict=True)
)
assert min(after - before for before, after in pairwise(costs)) > 0  # never free
assert lines["RDP"][-1] / lines["PRV"][-1] < lines["RDP"][0] / lines["PRV"][0]
assert replaced > answers["prv"]
assert answers["prv"] < both < 2 * answers["prv"]
