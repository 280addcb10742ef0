"""Things: drawn from a seed alone, in whole numbers, each of a kind that can be told."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier

from dpldm.data import datasets, fetch, things


@pytest.mark.parametrize("side", [32, 64])
def test_bytes_follow_from_the_seed(side: int) -> None:
    images, labels = things.draw(30, side, 0)
    assert images.shape == (30, side, side, 3)
    assert images.dtype == labels.dtype == np.uint8
    again, _ = things.draw(30, side, 0)
    assert np.array_equal(images, again)
    other, _ = things.draw(30, side, 1)
    assert not np.array_equal(images, other)
    known = {32: "43b75cda7144", 64: "2bee65e1230d"}  # as on any machine: whole numbers are not rounded
    assert hashlib.sha256(images.tobytes()).hexdigest()[:12] == known[side]


def test_a_thing_stands_on_a_light_and_even_ground() -> None:
    images, _ = things.draw(200, 32, 3)
    corners = images[:, [0, 0, -1, -1], [0, -1, 0, -1]].reshape(200, -1)
    assert np.median(corners) > 220
    ground = np.median(images.reshape(200, -1, 3), axis=1, keepdims=True)[:, None]
    assert 0.1 < (np.abs(images - ground) > 12).any(-1).mean() < 0.6  # the thing itself


def test_classes_can_be_told_and_none_is_missing() -> None:
    (images, labels), (others, wanted) = things.draw(1_500, 32, 0), things.draw(500, 32, 1)
    assert set(labels) == set(wanted) == set(range(len(things.CLASSES)))
    forest = RandomForestClassifier(50, random_state=0).fit(images.reshape(1_500, -1), labels)
    assert forest.score(others.reshape(500, -1), wanted) > 0.5  # a tenth is chance


def test_the_set_is_fetched_verified_and_loaded_in_colour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = datasets.DATASETS["things"]
    assert (known.known.count, known.known.image_shape, known.kind, known.tuned_on) == (20_000, (3, 32, 32), "object",
                                                                                       False)  # fmt: skip
    assert datasets.DATASETS["things64"].known.image_shape == (3, 64, 64)
    monkeypatch.setattr(things, "COUNTS", (30, 20))
    small = replace(known, counts=(30, 20))
    made = dict(things.give(32)(small.sizes))
    assert {name: len(content) for name, content in made.items()} == small.sizes
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in made.items()}
    monkeypatch.setitem(datasets.DATASETS, "things", replace(small, sha256=sums))
    train, test = (datasets.load("things", split, tmp_path) for split in ("train", "test"))
    images, labels = things.draw(30, 32, 0)
    assert torch.equal((train.images * 255).round().to(torch.uint8), torch.from_numpy(images).permute(0, 3, 1, 2))
    assert torch.equal(train.labels, torch.from_numpy(labels).long())
    assert train.images.is_contiguous()
    assert len(test) == 20
    assert train.class_names == things.CLASSES


@pytest.mark.slow
@pytest.mark.parametrize("name", ["things", "things64"])
def test_things_have_the_sums_that_are_pinned(name: str, tmp_path: Path) -> None:
    assert len(datasets.fetch(name, tmp_path)) == 4
    assert fetch.file_sha256(tmp_path / name.capitalize() / "raw" / "t10k-labels-idx1-ubyte").isalnum()
