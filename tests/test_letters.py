"""Letters from fonts: the same from the same fonts, families apart, and a known data set that is fetched by name."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

from dpldm.data import datasets, fetch, letters
from dpldm.data.images import DataError

FONTS = sorted((Path(matplotlib.get_data_path()) / "fonts" / "ttf").glob("*.ttf"))


@pytest.fixture(scope="module")
def families() -> dict[str, list[letters.Glyphs]]:
    return letters.read_fonts((path.name, path.read_bytes()) for path in FONTS)


def test_fonts_are_read_by_family_and_what_is_no_font_is_passed_over(families: dict) -> None:
    assert len(families["DejaVu Sans"]) >= 4
    assert letters.read_fonts([("none.ttf", b"not a font")]) == {}


def test_no_family_is_on_both_sides(families: dict) -> None:
    many = {f"family {number}": list(faces) for number, faces in enumerate(families.values())}
    sides = letters.split(many)
    kept = {side: {id(face) for face in faces} for side, faces in sides.items()}
    for faces in many.values():
        assert {side for side in kept if {id(face) for face in faces} & kept[side]} in ({"train"}, {"test"})
    assert len(kept["train"]) > len(kept["test"]) > 0
    with pytest.raises(DataError, match="expected at least 5 families"):
        letters.split({"one": []})


def test_letters_are_the_same_from_the_same_seed_and_otherwise_not(families: dict) -> None:
    faces = [face for name in sorted(families) for face in families[name]]
    images, labels = letters.draw(faces, 300, 0)
    again, other = letters.draw(faces, 300, 0)[0], letters.draw(faces, 300, 1)[0]
    assert np.array_equal(images, again)
    assert not np.array_equal(images, other)
    assert (images.shape, images.dtype, set(labels)) == ((300, 28, 28), np.uint8, set(range(10)))
    ink = images.reshape(300, -1).max(1)
    assert ink.min() > 60  # even the thinnest stroke is there
    assert (images[:, [0, -1]] > 0).mean() < 0.01  # and next to nothing is cut off


def test_letters_turn_about_the_middle(families: dict) -> None:
    """Without a turn and a shift a letter is its glyph made smaller, in the middle."""
    glyph = families["DejaVu Sans"][0][7]  # H
    upright = letters._placed(glyph, 200, letters.Fraction(0), (0, 0)).astype(float)
    rows, columns = (np.nonzero(upright.sum(axis) > 100)[0] for axis in (1, 0))
    assert (rows[0] + rows[-1], columns[0] + columns[-1]) == (27, 27)
    assert rows[-1] - rows[0] + 1 == 20
    moved = letters._placed(glyph, 200, letters.Fraction(0), (20, 0)).astype(float)
    assert np.allclose(moved[:, 2:], upright[:, :-2], atol=1)


def test_letters_come_from_packages_of_fonts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "unpacked").mkdir()
    for path in FONTS:
        (tmp_path / "unpacked" / path.name).write_bytes(path.read_bytes())

    class Unpacked:
        def __init__(self, packages: tuple[str, ...], size: int) -> None:
            assert packages == letters.PACKAGES

        def __enter__(self) -> Path:
            return tmp_path / "unpacked"

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(letters, "unpacked", Unpacked)
    monkeypatch.setattr(letters, "COUNTS", (40, 20))
    known = datasets.DATASETS["letters"]
    assert (known.kind, known.tuned_on, known.known.count) == ("ink", False, 30_000)
    given = dict(letters.give(known.sizes))
    assert {name: len(content) for name, content in given.items()} == {
        "train-images-idx3-ubyte": 16 + 40 * 784,
        "train-labels-idx1-ubyte": 8 + 40,
        "t10k-images-idx3-ubyte": 16 + 20 * 784,
        "t10k-labels-idx1-ubyte": 8 + 20,
    }
    assert not torch.equal(*(torch.frombuffer(bytearray(given[f"{p}-images-idx3-ubyte"][16:16016]), dtype=torch.uint8)
                             for p in ("train", "t10k")))  # fmt: skip


@pytest.mark.slow
def test_letters_can_be_fetched(tmp_path: Path) -> None:
    assert len(datasets.fetch("letters", tmp_path)) == 4
    assert datasets.load("letters", "test", tmp_path).known.count == 6_000
    assert fetch.file_sha256(tmp_path / "Letters" / "raw" / "t10k-labels-idx1-ubyte").isalnum()
