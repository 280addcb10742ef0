"""One image more or less, in every method: releases move by their sensitivity at most, and nothing else moves."""

from pathlib import Path

import neighbours
import pytest


@pytest.mark.parametrize("case", list(neighbours.cases()))
def test_one_image_moves_releases_by_their_sensitivity_and_nothing_else(case: str, tmp_path: Path) -> None:
    assert list(neighbours.check(case, tmp_path)) == []
