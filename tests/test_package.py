"""The package itself: what `from dpldm import …` gives, how fast, and which version it is."""

import re
import subprocess
import sys
import tomllib
from importlib import import_module, resources
from pathlib import Path

import pytest

import dpldm
from dpldm.book import freshness, notebooks

PACKAGE = Path(dpldm.__file__).parent


@pytest.mark.parametrize("name", dpldm.EXPORTS)
def test_what_is_exported_is_what_its_module_has(name: str) -> None:
    module = import_module(f"dpldm.{dpldm.EXPORTS[name]}")
    assert getattr(dpldm, name) is getattr(module, name)
    assert name in dir(dpldm)
    file = Path(*dpldm.EXPORTS[name].split(".")).with_suffix(".py")
    found = freshness.imported_files(f"from dpldm import {name}", Path(), PACKAGE)
    assert PACKAGE / file in found  # so that pages are made again


def test_what_is_not_there_is_named_with_what_is() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'LatentDifusion': expected a module, or Experiment, "):
        _ = dpldm.LatentDifusion


def test_import_loads_nothing() -> None:
    script = "import sys, dpldm; dpldm.__version__; print({'torch', 'numpy', 'dpldm.data'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_one_version_everywhere() -> None:
    project = tomllib.loads((notebooks.ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    cited = re.search(r"^version: (.+)$", (notebooks.ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert dpldm.__version__ == project["project"]["version"]
    assert cited is not None
    assert dpldm.__version__ == cited[1]


def test_types_are_declared() -> None:
    assert resources.files("dpldm").joinpath("py.typed").is_file()
    project = tomllib.loads((notebooks.ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "py.typed" in project["tool"]["setuptools"]["package-data"]["dpldm"]
