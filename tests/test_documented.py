"""What README, the first page of the book and that on own images tell people to type: each line is tried.

Here each is understood by the parser it is for, and those that need no public data set are run, at smoke size. The slow
tests run the rest on the real digits.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from stripes import stripes

import dpldm
from dpldm import cli, recipes
from dpldm.book.notebooks import ROOT
from dpldm.data import datasets
from dpldm.data.images import FEWEST_IMAGES, LARGEST_SIDE, SMALLEST_SIDE, ImageData
from dpldm.data.kinds import KINDS

OWN = "book/own-images.md"
PAGES = ("README.md", "book/index.md", OWN)
SIZED = ("run", "evaluate", "audit", "sweep", "ablation", "book")  # commands with profiles
NAMED = (["publish"], ["release"])  # commands named in a sentence
NOT_OURS = {"source", ".venv/bin/python", ".venv/bin/jupyter"}  # a shell, pip, and what pip is told to install


def blocks(page: str, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


def typed(pages: Sequence[str] = PAGES) -> list[list[str]]:
    """The words of every line of shell, of whole blocks and within sentences, without comments."""
    lines = [
        line
        for page in pages
        for language in ("sh", "bash")
        for text in blocks(page, language)
        for line in text.splitlines()
    ]
    for page in pages:
        prose = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        lines += [re.sub(r"\s+", " ", said) for said in re.findall(r"`((?:dpldm|make) [^`]+)`", prose)]
    words = [shlex.split(line, comments=True) for line in lines]
    return [line for line in words if line]


def ours(pages: Sequence[str] = PAGES) -> list[list[str]]:
    """The lines that are commands of dpldm, without its name."""
    return [words[1:] for words in typed(pages) if words[0].removeprefix(".venv/bin/") == "dpldm"]


def test_no_line_escapes_these_tests() -> None:
    first = {words[0].removeprefix(".venv/bin/") if words[0] == ".venv/bin/dpldm" else words[0] for words in typed()}
    assert {"dpldm", "make"} <= first <= {"dpldm", "make", *NOT_OURS}
    assert len(ours()) > 15
    assert all(blocks(page, "sh" if page == "README.md" else "bash") for page in PAGES)


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
    for name, count, seed in (("my-images", 300, 0), ("my-test-images", 60, 1)):
        images, labels = stripes(count, seed=seed)
        np.savez(folder / f"{name}.npz", images=images.numpy(), labels=labels.numpy())
        for number, (image, label) in enumerate(zip((255 * images[:, 0]).byte().numpy(), labels, strict=True)):
            path = folder / name / ("across", "down")[label] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return folder


def run(words: list[str], place: Path, **environment: str) -> str:
    """A line as printed, at smoke size, with the name of the last run for NAME."""
    made = max((place / "runs").glob("*/synthesizer.safetensors"), key=lambda path: path.stat().st_mtime, default=None)
    words = [word.replace("NAME", made.parent.name) if made else word for word in words]
    sized = ["--profile", "smoke"] if words[0] in SIZED else []  # the last one counts
    paths = {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "dpldm", *words, *sized]
    done = subprocess.run(command, cwd=place, env=os.environ | paths | environment, capture_output=True, text=True)
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


def test_lines_for_own_images_run(place: Path) -> None:
    """From a run of one's own to samples, the table and the guarantee, in the order of the page."""
    wanted = [
        words
        for words in ours(["README.md"])
        if "my-images.npz" in words or words[0] in ("sample", "records", "privacy", "release")
    ]
    said = {words[0]: run(words, place) for words in wanted if words not in (["records", "--help"], ["release"])}
    assert set(said) == {"run", "sample", "records", "privacy", "release"}
    assert (place / "images.npz").is_file()
    assert "ε by PRV" in said["privacy"]
    assert (place / "for-others" / "images.npz").is_file()


@pytest.fixture(scope="module")
def walked(place: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The page on own images as somebody types it from top to bottom, in a folder of its own, and what is printed."""
    folder = tmp_path_factory.mktemp("owner")
    for name in ("my-images", "my-test-images"):
        (folder / name).symlink_to(place / name)
    lines = [shlex.split(line)[1:] for text in blocks(OWN, "bash") for line in text.splitlines()]
    return folder, {" ".join(words): run(words, folder) for words in lines}


def test_the_page_on_own_images_holds_from_the_first_line_to_the_last(walked: tuple[Path, dict[str, str]]) -> None:
    folder, said = walked
    asked, secure, privacy, release, _ = said.values()
    assert all(line in asked for line in ("least ε:", "classes:", "kind:      ink"))
    assert "accuracy:" in secure
    assert "ε by PRV" in privacy
    assert "read back" in release
    more, released = (np.load(folder / name)["images"] for name in ("more.npz", "for-others/images.npz"))
    assert more.shape == released.shape
    assert not np.array_equal(more, released)


def test_the_page_on_own_images_knows_each_kind_and_the_sizes() -> None:
    page = (ROOT / OWN).read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == list(KINDS)
    assert f"{SMALLEST_SIDE} to {LARGEST_SIDE} pixels, and at least {FEWEST_IMAGES} of them" in page


def test_the_lines_that_load_a_release_work(
    walked: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = walked
    monkeypatch.chdir(folder)
    reading, with_torch, with_keras, with_sklearn = blocks(OWN, "python")
    made: dict[str, Any] = {}
    exec(reading + with_torch + with_sklearn, made)
    pixels, labels = made["pixels"], made["labels"]
    assert (pixels.min() >= 0, pixels.max() <= 1, pixels.shape[1:]) == (True, True, (12, 12, 1))
    assert list(made["class_names"]) == ["across", "down"]
    some, classes = next(iter(made["loader"]))
    assert (some.shape[1:], classes.dtype) == ((1, 12, 12), torch.int64)
    assert torch.equal(made["dataset"][7][0][0], torch.from_numpy(pixels[7, ..., 0]))
    assert made["forest"].score(pixels.reshape(len(pixels), -1), labels) > 0.9
    compile(with_keras, OWN, "exec")  # Keras is no package of ours


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
    """But those that build the book, and those for own images, which have tests of their own."""
    wanted = [words for words in ours() if words[0] != "book" and words not in NAMED and "my-" not in " ".join(words)]
    data_folder = str(datasets.data_folder().resolve())
    for words in dict.fromkeys(map(tuple, wanted)):
        if words[0] in ("publish", "release"):  # what was made here is of smoke size, or seeded, and refused
            continue
        run(list(words), place, DPLDM_DATA=data_folder)
