"""Settings follow from what may be known of images, by one rule for all of them; a name decides nothing."""

import inspect
import json
import math
import shutil
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dpldm import recipes
from dpldm.cli import main
from dpldm.data import datasets, own
from dpldm.data.images import DataError, Known
from dpldm.data.kinds import KINDS
from dpldm.method.mixture import mechanisms
from dpldm.methods import METHODS, PROFILES
from dpldm.privacy import statement
from dpldm.privacy.budget import Allowance
from dpldm.privacy.mechanisms import gaussian_noise_multiplier
from dpldm.records import files
from dpldm.records.images import load_images
from dpldm.records.schema import RecordError
from dpldm.runs import cards
from dpldm.runs.experiment import Experiment, ExperimentError, Folders
from dpldm.runs.run import run

EPSILONS = (None, 10.0, 3.0, 1.0, 0.5, 0.2)


def save(path: Path, count: int = 240, side: int = 12) -> Path:
    random = np.random.default_rng(3)
    images = (random.random((count, side, side)) ** 2 * 255).astype(np.uint8)
    labels = np.arange(count) % 3
    images[np.arange(count), :, labels] = 255
    np.savez(path, images=images, labels=labels)
    return path


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_a_recipe_takes_no_name(name: str) -> None:
    assert list(inspect.signature(METHODS[name].choose).parameters) == ["profile", "known", "epsilon", "delta"]
    assert {field.name for field in fields(Known)} == {"count", "image_shape", "num_classes", "kind"}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(("dataset", "kind"), [("mnist", "ink"), ("fashion_mnist", "object")])
def test_known_sets_are_run_as_any_set_of_their_kind(name: str, profile: str, dataset: str, kind: str) -> None:
    same = Known(60_000, (1, 28, 28), 10, kind)
    for epsilon in EPSILONS if METHODS[name].private else [None]:
        settings = Experiment(dataset, epsilon, method=name, profile=profile).resolved().settings
        assert settings == METHODS[name].choose(profile, same, epsilon, 1e-5)


@pytest.mark.parametrize("method", ["dpldm", "class-gaussian"])
def test_the_same_images_under_another_name_get_the_same_bytes(method: str, tmp_path: Path) -> None:
    first = save(tmp_path / "mnist.npz")
    second = Path(shutil.copyfile(first, tmp_path / "holiday.npz"))
    drawn = []
    for path in (first, second):
        asked = Experiment(path, 3.0, delta=1e-4, method=method, profile="smoke", n_synthetic=30, kind="ink")
        record = run(asked, Folders(tmp_path / "records", tmp_path / "runs"))
        (made,) = (tmp_path / "runs").glob(f"{record['dataset']}-{method}-*/synthetic.npz")
        drawn.append(load_images(made)[0])
        assert record["settings"]["synthesis"] is not None
    assert torch.equal(*drawn)


def test_own_images_are_read_once_until_a_file_changes(tmp_path: Path) -> None:
    path = save(tmp_path / "own.npz")
    first = own.load_own(path)
    assert own.load_own(path, "ink").images is first.images
    assert (first.kind, own.load_own(path, "ink").known) == ("none", Known(240, (1, 12, 12), 3, "ink"))
    save(path, count=210)
    assert len(own.load_own(path)) == 210


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_bands_begin_where_a_class_has_as_much_noise() -> None:
    for count, classes, delta in ((60_000, 10, 1e-5), (28_566, 10, 1e-5), (60_000, 100, 1e-6), (1_797, 2, 1e-4)):
        known = Known(count, (1, 28, 28), classes)
        for name, least in recipes.least_epsilons(known, delta).items():
            below = {"ample": "tight", "tight": "scarce"}[name]
            assert recipes.band(least * 1.001, known, delta) == name
            assert recipes.band(least * 0.999, known, delta) == below
    few = [recipes.band(3.0, replace(recipes.CHOSEN_ON, count=count)) for count in (60_000, 20_000, 6_000)]
    assert few == ["ample", "tight", "scarce"]
    fewer = [recipes.band(1.0, replace(recipes.CHOSEN_ON, num_classes=classes)) for classes in (1, 2, 10)]
    assert fewer == ["tight"] * 3  # stage 1 sees all images, however few classes there are


@pytest.mark.parametrize("known", [recipes.CHOSEN_ON, Known(20_000, (3, 32, 32), 10), Known(1_797, (1, 8, 8), 10)])
def test_least_useful_epsilon_is_where_noise_hides_the_spread_of_latents(known: Known) -> None:
    """The noise that the mixture adds there, drawn: its largest eigenvalue is the variance of latents, 1."""
    settings = recipes.settings_for("quick", known, recipes.least_useful_epsilon(known) / 100)
    assert settings.compression == recipes.CELLS["none", "scarce"].compression
    dim = settings.compression.pca.dim
    whole = Allowance(gaussian_noise_multiplier(recipes.least_useful_epsilon(known), 1e-5), 1e-5)
    moments, _ = mechanisms(dim, settings.mixture, whole.part(settings.mixture_share))
    noise = torch.randn(400, dim, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = (noise + noise.mT) / 2 * moments.sensitivity * moments.noise_multiplier
    largest = torch.linalg.eigvalsh(noise)[:, -1] / (known.count / known.num_classes)
    assert float(largest.mean()) == pytest.approx(1, abs=0.1)  # at 24 dimensions it is below its limit by a few %


@pytest.mark.parametrize("name", METHODS)
def test_no_batch_is_larger_than_the_set(name: str) -> None:
    for profile in PROFILES:
        few = Known(130, (1, 12, 12), 2)
        method = METHODS[name]
        chosen = method.choose(profile, few, None, 1e-5)
        method.build(few.image_shape, 2, chosen, None, 0, "cpu").check(few.count)


# --- the word ---------------------------------------------------------------------------------------------------------


def test_the_kind_is_in_the_record_and_in_all_that_is_said_of_it(tmp_path: Path) -> None:
    asked = Experiment(save(tmp_path / "own.npz"), 3.0, delta=1e-4, method="class-gaussian", profile="smoke",
                       n_synthetic=30, kind="ink")  # fmt: skip
    folders = Folders(tmp_path / "records", tmp_path / "runs")
    record = run(asked, folders)
    assert record["settings"]["kind"] == record["privacy"]["kind"] == "ink"
    assert "kind of the images, as their owner said: ink" in statement.statement(record["privacy"])["public"]
    assert "as their owner said: ink" in "\n".join(statement.in_words(record["privacy"]))
    facts = cards.covered(record, (1, 12, 12), ("0", "1", "2"), (10, 10, 10))
    assert "as their owner said without a look at any: ink." in cards.data_card(facts)
    with pytest.raises(RecordError, match=r"privacy\.kind: expected 'ink'"):
        files.write(record | {"privacy": record["privacy"] | {"kind": "photo"}}, tmp_path)
    silent = run(replace(asked, kind="none"), folders)
    assert "kind" not in silent["settings"] | silent["privacy"]
    assert not any("kind" in fact for fact in statement.statement(silent["privacy"])["public"])


def test_committed_records_have_no_kind() -> None:
    for path in Path("book/records").glob("[!.]*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        assert "kind" not in record["settings"] | record["privacy"]


def test_other_words_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(ExperimentError, match="the kind of mnist is known"):
        Experiment("mnist", 1.0, kind="ink")
    with pytest.raises(DataError, match="unknown kind 'pencil'"):
        Experiment(tmp_path, 1.0, kind="pencil")
    assert main(["run", "--data", str(tmp_path), "--kind", "inc"]) == 2
    assert "unknown kind 'inc': did you mean ink?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    said = capsys.readouterr().out
    assert all(about in said for about in KINDS.values())


def test_settings_are_told_to_have_seen_only_the_sets_they_were_chosen_on() -> None:
    assert [name for name in (*datasets.DATASETS, "own-mnist") if datasets.tuned_on(name)] == ["mnist", "fashion_mnist"]
    assert math.isfinite(recipes.least_useful_epsilon(recipes.CHOSEN_ON))
