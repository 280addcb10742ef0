"""What README and the first page of the book tell people to type: each line is tried.

Here each is understood by the parser it is for, and those that need no public data set are run, at smoke size. The slow
tests run the rest on the real digits.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from stripes import stripes

import dpldm
from dpldm import cli, recipes
from dpldm.book.notebooks import ROOT
from dpldm.data import datasets
from dpldm.data.images import ImageData

PAGES = ("README.md", "book/index.md")
SIZED = ("run", "evaluate", "audit", "sweep", "ablation", "book")  # commands with profiles
NAMED = (["publish"], ["release"])  # commands named in a sentence
NOT_OURS = {"source", ".venv/bin/python", ".venv/bin/jupyter"}  # a shell, pip, and what pip is told to install


def blocks(page: str, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


def typed() -> list[list[str]]:
    """The words of every line of shell, of whole blocks and within sentences, without comments."""
    lines = [
        line
        for page in PAGES
        for language in ("sh", "bash")
        for text in blocks(page, language)
        for line in text.splitlines()
    ]
    for page in PAGES:
        prose = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        lines += [re.sub(r"\s+", " ", said) for said in re.findall(r"`((?:dpldm|make) [^`]+)`", prose)]
    words = [shlex.split(line, comments=True) for line in lines]
    return [line for line in words if line]


def ours() -> list[list[str]]:
    """The lines that are commands of dpldm, without its name."""
    return [words[1:] for words in typed() if words[0].removeprefix(".venv/bin/") == "dpldm"]


def test_no_line_escapes_these_tests() -> None:
    first = {words[0].removeprefix(".venv/bin/") if words[0] == ".venv/bin/dpldm" else words[0] for words in typed()}
    assert {"dpldm", "make"} <= first <= {"dpldm", "make", *NOT_OURS}
    assert len(ours()) > 15
    assert all(blocks(page, language) for page, language in (("README.md", "sh"), ("book/index.md", "bash")))


@pytest.mark.parametrize("words", ours(), ids=" ".join)
def test_each_line_is_understood(words: list[str]) -> None:
    if words in NAMED:
        assert words[0] in cli.EXAMPLES
    else:
        cli._check_names(cli._parser().parse_args(words))


def test_each_make_line_is_understood() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.search(r"^TARGETS := (.*)$", makefile, re.MULTILINE)
    assert targets is not None
    for words in (words for words in typed() if words[0] == "make"):
        assert words[1] in targets[1].split()
        for setting in words[2:]:
            assert re.fullmatch(r"(EPSILON|DATASET|SEED|PROFILE|SUBMISSIONS)=\S+", setting), words


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the images that the lines name."""
    folder = tmp_path_factory.mktemp("reader")
    images, labels = stripes(300)
    np.savez(folder / "my-images.npz", images=images.numpy(), labels=labels.numpy())
    return folder


def run(words: list[str], place: Path, **environment: str) -> str:
    """A line as printed, at smoke size, with the name of the last run for NAME."""
    made = max((place / "runs").glob("*/synthesizer.safetensors"), key=lambda path: path.stat().st_mtime, default=None)
    words = [word.replace("NAME", made.parent.name) if made else word for word in words]
    sized = ["--profile", "smoke"] if words[0] in SIZED and "--profile" not in words else []
    paths = {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "dpldm", *words, *sized]
    done = subprocess.run(command, cwd=place, env=os.environ | paths | environment, capture_output=True, text=True)
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


def test_lines_for_own_images_run(place: Path) -> None:
    """From a run of one's own to samples, the table and the guarantee, in the order of the page."""
    wanted = [
        words for words in ours() if "my-images.npz" in words or words[0] in ("sample", "records", "privacy", "release")
    ]
    said = {words[0]: run(words, place) for words in wanted if words not in (["records", "--help"], ["release"])}
    assert set(said) == {"run", "sample", "records", "privacy", "release"}
    assert (place / "images.npz").is_file()
    assert "ε by PRV" in said["privacy"]
    assert (place / "for-others" / "images.npz").is_file()


def test_the_python_example_draws_what_it_says(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    (example,) = blocks("README.md", "python")
    images, labels = stripes(2_000, side=28)
    toy = ImageData("mnist", images, labels, ("across", "down"), {})
    monkeypatch.setattr(datasets, "load", lambda name, split: toy)
    small = recipes.settings_for("smoke", recipes.CHOSEN_ON, 3.0)
    monkeypatch.setattr(recipes, "settings_for", lambda profile, known, epsilon: small)
    made: dict[str, object] = {}
    exec(compile(example.replace("% 10", "% 2"), "README.md", "exec"), made)
    assert isinstance(made["images"], torch.Tensor)
    assert made["images"].shape == (100, 1, 28, 28)
    said = capfd.readouterr()
    assert 0 < float(said.out) <= 3
    assert "compression" in said.err  # it is not silent
    assert isinstance(made["synthesizer"], dpldm.LatentDiffusion)


@pytest.mark.slow
def test_every_line_runs_on_the_real_digits(place: Path) -> None:
    """But those that build the book, which has tests of its own, and own images in a folder that nobody has."""
    wanted = [words for words in ours() if words[0] != "book" and "my-images/" not in words and words not in NAMED]
    data_folder = str(datasets.data_folder().resolve())
    for words in dict.fromkeys(map(tuple, wanted)):
        if words[0] in ("publish", "release"):  # what was made here is of smoke size, or seeded, and refused
            continue
        run(list(words), place, DPLDM_DATA=data_folder)
