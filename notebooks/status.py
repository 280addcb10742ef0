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
# # Status of this build
#
# *Question: when, where and with what was all this computed? At the end you will be able to repeat it, or to see why your
# numbers differ.*
#
# An independent re-implementation from the abstract of {cite:t}`ge2024latent`; this page is about the copy of the book in
# front of you.

# %%
import os
from pathlib import Path

import pandas as pd

from dpldm.book import freshness, style
from dpldm.data import datasets
from dpldm.methods import profile_title
from dpldm.records import environment
from dpldm.records.files import read_all
from dpldm.records.names import record_name
from dpldm.runs.experiment import Experiment, Folders
from dpldm.runs.run import run

if Path.cwd().name == "notebooks":  # where JupyterLab starts
    os.chdir("..")

# %% tags=["parameters"]
dataset: str = "mnist"  # data set: mnist or fashion_mnist
epsilon: float = 10.0  # total privacy budget ε of the run, 0.01 or more
seed: int = 0  # of everything random, 0 to 10⁹
profile: str = "quick"  # amount of work: smoke (seconds), quick (minutes) or paper (hours, or a GPU)
# %%
folders = Folders(records=Path("runs/records"))
record = run(Experiment(dataset, epsilon, seed=seed, profile=profile), folders)
facts = environment.environment_facts()

# %% [markdown]
# ## The run

# %%
described = {key: record[key] for key in ("dataset", "method", "profile", "seed", "device", "commit")}
described["profile"] = profile_title(profile)
described |= {key: record["privacy"][key] for key in ("epsilon_target", "epsilon", "delta", "accountant")}
style.captioned(pd.Series({key: str(value) for key, value in described.items()}, name="value"), "The reference run.")

# %% [markdown]
# Seconds of each stage:

# %%
style.captioned(pd.Series(record["seconds"], name="seconds").round(1), "Wall time of each stage of the run.")

# %% [markdown]
# ## The notebooks
#
# Wall time of each page of this book when it was last executed; a page that others have paid for is quick. Only pages
# executed before this one are listed.

# %%
done = [(page.name, page.seconds, page.finished) for page in freshness.executions() if page.name != "status"]
times = pd.DataFrame(done, columns=["notebook", "seconds", "finished"]).set_index("notebook")
style.captioned(times, "Wall time of each page that was executed before this one.")

# %% [markdown]
# ## The machine and the versions

# %%
print(facts["device"], facts["commit"], sep="\n")

# %%
style.captioned(pd.Series(facts["versions"], name="version"), "The packages that decide the numbers.")

# %% [markdown]
# ## The data
#
# SHA-256 of every file that the run read:

# %%
print(*(f"{value}  {name}" for name, value in record["data_sha256"].items()), sep="\n")

# %% [markdown]
# ## The records
#
# Every committed record with the commit and the machine that made it. A commit that ends in `-dirty` had changes that were not
# committed.

# %%
records = {record_name(one): one for one in [*read_all(Path("book/records")), record]}
made = {name: [one["commit"][:14], one["device"]] for name, one in records.items()}
origins = pd.DataFrame.from_dict(made, orient="index", columns=["commit", "device"]).rename_axis("record")
style.captioned(origins, "Where every record on these pages comes from.")

# %% [markdown]
# ## What we now know
#
# With this commit, these versions and these files, `make book` gives these pages again; on another processor the last digits
# of scores may differ. The last cell checks that the files are the known ones.

# %%
assert set(record["data_sha256"].values()) <= set(datasets.DATASETS[dataset].sha256.values())
assert record["versions"].keys() <= facts["versions"].keys()
