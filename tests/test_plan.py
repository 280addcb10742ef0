"""What a run says before it works: true of the images and of the settings, and nothing is left of it."""

from pathlib import Path

import numpy as np
import pytest

from dpldm import recipes
from dpldm.cli import main
from dpldm.method.settings import SynthesisSettings
from dpldm.runs import plan


def save(path: Path, counts: tuple[int, ...], **changes: np.ndarray) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 12, 12), dtype=np.uint8)
    np.savez(path, **({"images": images, "labels": labels} | changes))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


SMALL = ["--method", "class-gaussian", "--profile", "smoke", "--n-synthetic", "40", "--delta", "1e-4"]


def test_a_dry_run_tells_of_images_and_recipe_and_writes_nothing(here: Path, capsys: pytest.CaptureFixture) -> None:
    save(here / "own.npz", (4_233, 171), class_names=np.array(["cats", "dogs"]))
    assert main(["run", "--data", "own.npz", "--epsilon", "1", "--secure", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "4,404 of 12 × 12 pixels, grey, in 2 classes" in said
    assert "cats: 4,233, dogs: 171" in said
    assert "ε ≤ 1, δ = 1e-05, secret noise" in said
    assert plan.BUDGETS["scarce"].format(tight=8.5) in said  # there are few images, so the noise in a class is large
    assert "for 4,404 images in 2 classes" in said
    assert "least ε:   with 2,202 images a class about 0.46, or noise hides how they differ\n" in said
    assert "--kind gets more out of the same ε" in said
    assert "60,000 synthetic images" in said
    assert "time and memory are not foretold" in said
    assert [path.name for path in here.iterdir()] == ["own.npz"]


def test_a_dry_run_refuses_what_the_run_would(here: Path, capsys: pytest.CaptureFixture) -> None:
    save(here / "own.npz", (60, 60), images=np.zeros((120, 12, 9), np.uint8))
    assert main(["run", "--data", "own.npz", "--dry-run"]) == 2
    assert "expected square images" in capsys.readouterr().err
    save(here / "own.npz", (60, 60))
    assert main(["run", "--data", "own.npz", "--dry-run", "--batch", "121"]) == 2
    assert "expected at least as many images as the batch" in capsys.readouterr().err
    assert [path.name for path in here.iterdir()] == ["own.npz"]


def test_the_same_is_said_before_a_fit_and_the_record_has_no_counts(here: Path, capsys: pytest.CaptureFixture) -> None:
    save(here / "own.npz", (133, 107))
    assert main(["run", "--data", "own.npz", *SMALL, "--epsilon", "2", "--dry-run"]) == 0
    planned = capsys.readouterr().out
    assert "0: 133, 1: 107" in planned
    assert main(["run", "--data", "own.npz", *SMALL, "--epsilon", "2"]) == 0
    said = capsys.readouterr()
    assert planned in said.err
    assert "133" not in said.out
    (record,) = (here / "runs" / "records").glob("*.json")
    assert ": 133" not in record.read_text("utf-8")
    assert ": 107" not in record.read_text("utf-8")


def test_of_many_classes_the_rarest_and_the_commonest_are_told(here: Path, capsys: pytest.CaptureFixture) -> None:
    save(here / "own.npz", (9, *[12] * 40, 15))
    assert main(["run", "--data", "own.npz", *SMALL, "--epsilon", "2", "--dry-run"]) == 0
    assert "from 9 (0) to 15 (41)" in capsys.readouterr().out


@pytest.mark.parametrize("settings", [*recipes.CELLS.values(), SynthesisSettings()], ids=str)
def test_what_is_told_is_what_the_settings_do(settings: SynthesisSettings) -> None:
    lines = list(plan.steps(settings))
    text = "\n".join(lines)
    assert ("classifier of" in text) == settings.selects
    assert ("edges:" in text) == settings.moves
    assert ("decoders matched" in text) == settings.matches
    assert ("pushes it" in text) == settings.pushes
    finished = any(getattr(part, name) for part in (settings.finish, settings.last) for name in ("bend", "contrast"))
    assert ("contrast" in lines[-1] or "bend" in lines[-1]) == finished
    told = sum(float(line.split("%")[0]) for line in lines if "%" in line[:5])
    assert told == pytest.approx(100, abs=3)  # each is rounded


def test_every_budget_has_its_reason() -> None:
    assert set(plan.BUDGETS) == {recipes.band(epsilon) for epsilon in (None, 10, 1, 0.1)}
