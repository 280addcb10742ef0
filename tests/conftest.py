"""A small book that has everything the real one has, for the tests of the machinery and of the pages."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from dpldm.book import build, notebooks
from dpldm.book.site import site_digest

# Most tests compare what the CPU computes, bit for bit; the one that wants a GPU gives it to a process of its own.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

# Where a shell starts the tests in the background, it has Ctrl-C ignored, and every child would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent

PAGE = """\
# A small book

Noise is added once, see {eq}`gauss`, {numref}`fig-dots` and {cite}`dwork2014`. The answer is
{glue:text}`/executed/toy.ipynb::answer:.2f`.

```{math}
:label: gauss
f(D) + \\mathcal{N}(0, \\sigma^2 S^2 I)
```

{doc}`Back </book/index>`, [a section](#noise-multiplicity), [the notebook](/executed/toy.ipynb).

## Noise multiplicity

Several draws of noise multiplicity per image. 差分隐私合成数据。

| symbol | code name |
|---|---|
| $\\sigma$ | `noise_multiplier` |

```{bibliography}
```
"""

TOY = """\
# %% [markdown]
# # A toy notebook
# It asks what {math}`2 x` is.

# %% tags=["parameters"]
epsilon: float = 10.0  # privacy budget, above 0
seed: int = 0  # whole number

# %%
import matplotlib.pyplot as plt
from myst_nb import glue
from toy import double

print(double(epsilon) + seed)
glue("answer", double(epsilon), display=False)

# %% mystnb={"figure": {"caption": "Dots.", "name": "fig-dots"}, "image": {"alt": "Three dots on a line"}}
figure, axes = plt.subplots(figsize=(3, 2))
axes.plot([1, 2, 3], "o");
"""

BIBLIOGRAPHY = """\
@book{dwork2014,
  author = {Dwork, Cynthia and Roth, Aaron},
  title = {The Algorithmic Foundations of Differential Privacy},
  publisher = {Now Publishers},
  year = {2014}
}
"""

TOC = """\
format: jb-book
root: book/index
chapters:
  - file: executed/toy
"""


def make_book(folder: Path, **files: str) -> Path:
    """The real configuration with a page and a notebook; ``files``: further contents, by path with / as __."""
    shutil.copy(ROOT / "_config.yml", folder)
    for name in ("book/_ext", "book/static"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    contents = {
        "_toc.yml": TOC,
        "book/index.md": PAGE,
        "book/references.bib": BIBLIOGRAPHY,
        "notebooks/toy.py": TOY,
        "toy.py": "def double(number):\n    return 2 * number\n",
    }
    for name, text in (contents | files).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def small_book(tmp_path_factory) -> Path:
    """The folder of a small book, executed and built."""
    folder = make_book(tmp_path_factory.mktemp("book"))
    build.build({}, root=folder, say=lambda line: None)
    return folder


@pytest.fixture(scope="session")
def small_site(small_book) -> Path:
    return small_book / "_build" / "html"


@pytest.fixture(scope="session")
def real_site() -> Path:
    """The real site, where it is up to date."""
    stamp, site = notebooks.ROOT / "_build" / "site.stamp", notebooks.ROOT / "_build" / "html"
    if not stamp.exists() or stamp.read_text() != site_digest(notebooks.ROOT) or not site.exists():
        pytest.skip("no up-to-date site in _build/html: build it with `make book`")
    return site
