"""One image more or less, in every method: releases move by their sensitivity at most, and nothing else moves."""

import shutil
from dataclasses import replace
from pathlib import Path

import neighbours
import pytest

from dpldm import methods
from dpldm.method.mixture import Mixture
from dpldm.privacy.budget import Allowance
from dpldm.privacy.guard import PrivateData
from dpldm.privacy.noise import NoiseSource
from dpldm.rivals import class_gaussian


@pytest.mark.parametrize("case", list(neighbours.cases()))
def test_one_image_moves_releases_by_their_sensitivity_and_nothing_else(case: str, tmp_path: Path) -> None:
    assert list(neighbours.check(case, tmp_path)) == []


def test_every_function_that_reads_private_images_is_in_some_run(tmp_path: Path) -> None:
    """No list: what may read them is found in the source, what does read them in the runs that are followed above."""
    readers: set[tuple[str, str]] = set()
    for number, case in enumerate(neighbours.cases().values()):
        readers |= neighbours.follow(neighbours.pictures(), case, tmp_path / str(number), []).readers
    assert readers
    assert neighbours.unread(readers) == set()


def test_a_new_module_that_reads_images_and_is_in_no_run_is_found(tmp_path: Path) -> None:
    library = tmp_path / "dpldm"
    shutil.copytree(neighbours.LIBRARY, library, ignore=shutil.ignore_patterns("__pycache__"))
    (library / "toy.py").write_text(
        "from dpldm.privacy import Mechanism, PrivateData\n\n\n"
        "class Toy:\n"
        "    def brightest(self, data: PrivateData, charged: Mechanism) -> float:\n"
        "        return float(data.read(charged)[0].max())\n"
    )
    found = neighbours.unread(neighbours.reading(), library)
    assert found == {("toy.py", "Toy.brightest")}


class Exact(class_gaussian.ClassGaussian):
    """Charges a mechanism, and lets the images' mean out beside it."""

    def _fit_mixture(self, data: PrivateData, allowance: Allowance, noise: NoiseSource) -> Mixture:
        images, _ = data.read(allowance.part(0.5).mechanism("mean", "mixture", sensitivity=1.0))
        fitted = super()._fit_mixture(data, allowance.part(0.5), noise)
        return replace(fitted, means=fitted.means + images.mean())


def test_a_new_method_that_lets_a_number_out_beside_its_mechanisms_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = methods.METHODS["class-gaussian"]
    toy = methods.Method(Exact, known.settings, known.choose)
    monkeypatch.setitem(methods.METHODS, "toy", toy)
    complaints = neighbours.check("toy", tmp_path)
    assert any("means moves" in line for line in complaints)


def test_noise_is_added_to_private_numbers_in_one_place() -> None:
    """`release` and `release_gradients`: what watches, mutes or replays them misses nothing."""
    elsewhere = [file for file in neighbours.LIBRARY.rglob("*.py") if file.name != "noise.py"]
    assert [file for file in elsewhere if " gaussian_mechanism(" in file.read_text(encoding="utf-8")] == []
    adding = [file for file in elsewhere if "def add_noise" in file.read_text(encoding="utf-8")]
    assert all("release_gradients" in file.read_text(encoding="utf-8") for file in adding)
