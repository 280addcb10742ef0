"""The command line: what each command prints and leaves, and every bad input as one line and exit code 2."""

import contextlib
import errno
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from dpldm import cli, methods
from dpldm.cli import main
from dpldm.commands import DATASETS, PROFILES, RECORDS, _epsilon, _experiment
from dpldm.data import datasets, own
from dpldm.method.synthesizer import LatentDiffusion
from dpldm.records import environment as environment_module
from dpldm.records import files
from dpldm.records.images import load_images
from dpldm.runs import experiment, run
from dpldm.runs.saved import labels_in_turn

BUDGET = ["--epsilon", "2", "--delta", "1e-4"]
SMALL = ["--profile", "smoke", "--n-synthetic", "200"]


@pytest.fixture(scope="module", autouse=True)
def _one_commit() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environment_module, "_commit", lambda root: "0" * 40)
        yield


def save(path: Path, seed: int = 0, **changes: np.ndarray) -> Path:
    """An .npz of 12 x 12 grey bars in three classes, or with something wrong."""
    random = np.random.default_rng(seed)
    labels = np.arange(600) % 3
    images = random.random((600, 12, 12)).astype(np.float32) / 2
    images[labels == 0, :, 5:7] += 0.4
    images[labels == 1, 5:7, :] += 0.4
    np.savez(path, **({"images": images, "labels": labels} | changes))
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, as a user would have it; no network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DPLDM_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(datasets.Dataset, "sources", lambda self: [])
    return tmp_path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `dpldm run` was run once; tests must not change it."""
    place = tmp_path_factory.mktemp("made")
    save(place / "bars.npz")
    save(place / "test.npz", seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert main(["run", "--data", "bars.npz", "--test-data", "test.npz", *BUDGET, *SMALL]) == 0
    return place


def record_of(place: Path) -> Path:
    return next((place / "runs" / "records").glob("*.json"))


def model_of(place: Path) -> Path:
    return next((place / "runs").glob("*/synthesizer.safetensors"))


def refused(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """The one line that a command answers a bad input with."""
    capsys.readouterr()
    assert main([str(word) for word in argv]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    assert len(lines) == 1, said.err
    assert "Traceback" not in said.err
    return lines[0]


# --- run --------------------------------------------------------------------------------------------------------------


def test_a_run_says_what_it_made(made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(made)
    files.read(record_of(made))
    capsys.readouterr()
    assert main(["run", "--data", "bars.npz", "--test-data", "test.npz", *BUDGET, *SMALL]) == 0
    said = capsys.readouterr()
    assert "done earlier" in said.err
    for expected in ("200 synthetic images", "of 2 spent", "CNN", "FID", "seed 0", record_of(made).name):
        assert expected in said.out


def test_options_reach_the_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(here / "bars.npz")
    choices = ["--compressor", "autoencoder", "--sampler", "stochastic", "--guidance", "1.5", "--batch", "150"]
    where = ["--out", "there", "--runs", "work", "--seed", "7", "--sampling-steps", "3", "--device", "cpu"]
    assert main(["run", "--data", "bars.npz", *SMALL, *BUDGET, *choices, *where, "--secure"]) == 0
    record = files.read_all(here / "there")[0]
    synthesis = record["settings"]["synthesis"]
    assert synthesis["compression"]["kind"] == "autoencoder"
    assert synthesis["sampling"] | {"batch": 0} == {"sampler": "stochastic", "guidance": 1.5, "steps": 3, "batch": 0}
    assert (synthesis["fit"]["batch"], record["seed"], record["settings"]["secure_mode"]) == (150, 7, True)
    assert len(list((here / "work").glob("*/synthesizer.safetensors"))) == 1
    assert "scores:    not measured" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--non-private"], ["--epsilon", "none"]])
def test_a_run_without_privacy_must_be_asked_for(here: Path, words: list, capsys: pytest.CaptureFixture) -> None:
    save(here / "bars.npz")
    assert main(["run", "--data", "bars.npz", *SMALL, *words]) == 0
    assert "privacy:   none" in capsys.readouterr().out
    assert "not differentially private" in refused(capsys, "privacy", record_of(here))
    assert main(["sample", str(model_of(here)), "--n", "9", "--out", "s.npz"]) == 0
    assert "No differential privacy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epsilon", "0"], "finite epsilon above 0, got 0"),
        (["--epsilon", "-1"], "finite epsilon above 0, got -1"),
        (["--epsilon", "nan"], "finite epsilon above 0, got nan"),
        (["--epsilon", "inf"], "finite epsilon above 0, got inf"),
        (["--epsilon", "1e-9"], "too small to reach"),
        (["--delta", "0"], "delta between 0 and 1"),
        (["--delta", "nan"], "delta between 0 and 1"),
        (["--delta", "0.01"], "must be below 1/N"),
        (["--noise-multiplier", "0"], "noise multiplier above 0"),
        (["--noise-multiplier", "-1"], "noise_multiplier"),
        (["--compressor", "zip"], "expected a compressor out of"),
        (["--sampler", "dice"], "expected a sampler out of"),
        (["--guidance", "-1"], "guidance"),
        (["--device", "abacus"], "device 'abacus' can't be used here"),
        (["--profile", "huge"], "unknown profile"),
        (["--method", "magic"], "unknown method"),
        (["--seed", "-1"], "expected a seed"),
        (["--batch", "601"], "at least as many images as the batch of 601, got 600"),
        (["--n-synthetic", "0"], "synthetic images"),
        (["--classifier-seeds", "0"], "classifier_seeds must be above 0"),
        (["--out", "bars.npz/records"], "cannot write into bars.npz/records"),
        (["--runs", "bars.npz"], "cannot write into bars.npz: expected a folder"),
    ],
)
def test_a_bad_option_is_one_line(here: Path, words: list, message: str, capsys: pytest.CaptureFixture) -> None:
    save(here / "bars.npz")
    given = ["run", "--data", "bars.npz", "--profile", "smoke", "--delta", "1e-4", *words]
    assert message in refused(capsys, *given)
    left = {path.name for path in here.rglob("*") if path.is_file()}
    assert left in ({"bars.npz"}, {"bars.npz", ".secret", ".secret.lock"})
    assert not list(here.glob("runs/records/*"))


def nan_at(position: int) -> np.ndarray:
    images = np.zeros((600, 12, 12), np.float32)
    images[position, 3, 3] = np.nan
    return images


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.arange(600) % 3 - 1}, "label -1 is out of range"),
        ({"labels": np.arange(600) % 3 * 2}, "class 1 of 0..4 has no image"),
        ({"labels": np.arange(599) % 3}, "expected integer labels of shape (600,)"),
        ({"images": nan_at(17)}, "image 17 has NaN"),
        ({"images": np.zeros((600, 12, 9), np.uint8)}, "expected square images"),
        ({"images": np.zeros((600, 12, 12), np.float32) - 1}, "expected pixels in [0, 1]"),
    ],
)
def test_bad_images_are_one_line(here: Path, changes: dict, message: str, capsys: pytest.CaptureFixture) -> None:
    save(here / "bad.npz", **changes)
    assert message in refused(capsys, "run", "--data", "bad.npz", "--profile", "smoke")
    assert [path.name for path in here.iterdir()] == ["bad.npz"]


def test_too_few_images_and_unknown_places_are_one_line(here: Path, capsys: pytest.CaptureFixture) -> None:
    labels = np.arange(150) % 3
    save(here / "few.npz", images=np.zeros((150, 12, 12), np.uint8), labels=labels)
    small = ["--profile", "smoke", "--delta", "1e-4"]
    assert "batch of 200, got 150" in refused(capsys, "run", "--data", "few.npz", *small, "--batch", "200")
    assert "does not exist" in refused(capsys, "run", "--data", "nowhere.npz")
    assert "unknown dataset 'cats'" in refused(capsys, "run", "--dataset", "cats")
    assert "no source could give mnist" in refused(capsys, "run", "--dataset", "mnist", "--profile", "smoke")
    (here / "broken.npz").write_bytes(b"PK\x03\x04 not really")
    assert "broken.npz" in refused(capsys, "run", "--data", "broken.npz")


def test_a_smoke_run_drops_no_rare_class(here: Path) -> None:
    """More images than the profile's limit, which is for public data: one's own are all taken."""
    labels = np.concatenate([np.arange(3_000) % 2, np.arange(2, 22)])  # twenty classes of one image each
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 8, 8), np.uint8)
    save(here / "rare.npz", images=images, labels=labels)
    assert len(labels) > methods.PROFILES["smoke"].limit
    words = ["--profile", "smoke", "--method", "real", "--n-synthetic", "200"]
    assert main(["run", "--data", "rare.npz", *words]) == 0
    drawn, classes, _ = load_images(next(here.glob("runs/*/synthetic.npz")))
    assert (drawn[classes == 21] * 255).round().numpy().astype(np.uint8)[0, 0].tolist() == images[-1].tolist()


def test_test_images_that_are_trained_on_are_refused_before_any_work(here: Path, capsys) -> None:
    """Under whatever name, and also where nothing would be done."""
    shutil.copyfile(save(here / "bars.npz"), here / "other.npz")
    for name in ("bars.npz", "other.npz"):
        for more in ([], ["--dry-run"]):
            said = refused(capsys, "run", "--data", "bars.npz", "--test-data", name, *BUDGET, *SMALL, *more)
            assert f"{name}: expected test images that are not trained on, got what is in bars.npz" in said
    assert not list(here.glob("runs/**/*"))


def test_shared_images_are_counted_for_their_owner_and_for_nobody_else(here: Path, capsys) -> None:
    with np.load(save(here / "bars.npz")) as train, np.load(save(here / "test.npz", seed=1)) as test:
        images, labels = test["images"], test["labels"]
        images[100:137] = train["images"][[*range(41, 78)]][::-1] + 1e-6  # as floats that went through other hands
    save(here / "test.npz", images=images, labels=labels)
    words = ["--data", "bars.npz", *BUDGET, *SMALL, "--method", "class-gaussian", "--n-synthetic", "1000"]
    assert main(["run", *words, "--test-data", "test.npz"]) == 0
    said = capsys.readouterr()
    (warning,) = [line for line in said.err.splitlines() if "among the training images" in line]
    assert warning.startswith("warning: 37 of the 600 test images are also among the training images")
    assert "training images" not in said.out
    alone = next((here / "runs" / "records").glob("*.json")).read_text()
    assert "37 of" not in alone
    clean = save(here / "test.npz", seed=1)
    assert main(["run", *words, "--test-data", str(clean)]) == 0
    assert "among the training images" not in capsys.readouterr().err


def test_a_full_disk_loses_nothing(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    save(here / "bars.npz")
    command = ["run", "--data", "bars.npz", *BUDGET, *SMALL]
    flush, written = os.fsync, []

    def full(file: int) -> None:
        written.append(file)
        if len(written) > 7:  # the secret, two probes, the note on the code, two stages and the synthesizer had room
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(file)

    monkeypatch.setattr(files.os, "fsync", full)
    assert main(command) == 2
    said = capsys.readouterr().err.splitlines()
    assert "No space left on device" in said[-1]
    assert "free some space" in said[-1]
    assert not list(here.rglob("*.part"))
    assert not list(here.glob("runs/records/*.json"))
    monkeypatch.setattr(files.os, "fsync", flush)
    assert main(command) == 0
    again = capsys.readouterr().err
    assert "compression: done earlier" in again
    assert "diffusion: done earlier" in again


def test_a_disk_full_from_the_start_is_one_line(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    save(here / "bars.npz")

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    assert "No space left on device" in refused(capsys, "run", "--data", "bars.npz", *BUDGET, *SMALL)


def test_ctrl_c_says_how_to_go_on(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    save(here / "bars.npz")

    def press(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "_samples", press)
    assert main(["run", "--data", "bars.npz", *BUDGET, *SMALL]) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert "finished stages are kept in runs" in last
    assert "run the same command to go on" in last


# --- sample -----------------------------------------------------------------------------------------------------------


def test_sample_leaves_images_with_a_statement(made: Path, here: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["sample", str(model_of(made)), "--n", "20", "--labels", "2,0", "--out", "new/s.npz"]) == 0
    assert "factor e^" in capsys.readouterr().out
    images, labels, said = load_images(here / "new" / "s.npz")
    assert images.shape == (20, 1, 12, 12)
    assert labels.tolist() == [2, 0] * 10
    with Image.open(here / "new" / "s.png") as grid:
        assert json.loads(grid.text["privacy"]) == said
    assert said["epsilon"] <= 2


def test_labels_are_names_and_numbers_only_where_no_name_is_one(capsys: pytest.CaptureFixture) -> None:
    """Folders 1 to 10: class 2 is the one named so, and the third is no class 2."""
    assert labels_in_turn("10,2", 4, [str(number) for number in range(1, 11)]).tolist() == [9, 1, 9, 1]
    with pytest.raises(ValueError, match=r"unknown class '0' in --labels: expected .* out of 1, 2, 3$"):
        labels_in_turn("0", 4, ["1", "2", "3"])
    animals = ["cat", "dog", "newt"]
    assert labels_in_turn("newt,cat", 3, animals).tolist() == labels_in_turn("2,0", 3, animals).tolist() == [2, 0, 2]
    for wrong in ("dog,1", "dog,dog", "3", "", "owl"):
        with pytest.raises(ValueError, match="out of cat, dog, newt, or 0 to 2 for these in turn"):
            labels_in_turn(wrong, 4, animals)


def test_numbered_folders_come_out_under_their_numbers(here: Path) -> None:
    for number in range(12):
        (here / "digits" / str(number)).mkdir(parents=True)
        pixels = np.full((12, 12), 20 * number, np.uint8)  # a grey level for each class, so that it can be told
        for copy in range(20):
            Image.fromarray(pixels).save(here / "digits" / str(number) / f"{copy}.png")
    assert main(["run", "--data", "digits", "--profile", "smoke", "--method", "real", "--n-synthetic", "24"]) == 0
    for number in (2, 10):
        assert main(["sample", str(model_of(here)), "--n", "3", "--labels", str(number), "--out", "s.npz"]) == 0
        with np.load(here / "s.npz") as drawn:
            assert drawn["class_names"].tolist() == [str(label) for label in range(12)]
            assert drawn["labels"].tolist() == [number] * 3
            assert (drawn["images"] == 20 * number).all()


def test_sample_repeats_and_varies_by_seed(made: Path, here: Path) -> None:
    def draw(*words: str) -> np.ndarray:
        assert main(["sample", str(model_of(made)), "--n", "30", "--out", "s.npz", *words]) == 0
        return load_images(here / "s.npz")[0].numpy()

    assert (draw("--seed", "1") == draw("--seed", "1")).all()
    assert (draw("--seed", "1") != draw("--seed", "2")).any()
    assert (draw("--seed", "1", "--sampler", "churn", "--steps", "9") != draw("--seed", "1")).any()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--n", "0"], "expected 1 or more images"),
        (["--labels", "7"], "unknown class '7'"),
        (["--labels", "-1"], "unknown class '-1'"),
        (["--labels", "2,0,2"], "class '2' twice in --labels: expected balanced, or each class once, out of 0, 1, 2"),
        (["--sampler", "dice"], "expected a sampler out of"),
        (["--steps", "1"], "expected 2 to 10000 steps"),
        (["--out", "s.png"], "ends in .npz"),
        (["--device", "abacus"], "device 'abacus'"),
    ],
)
def test_sample_refuses_in_a_line(made: Path, here: Path, words: list, message: str, capsys) -> None:
    joined = [f"{words[0]}={words[1]}"]
    assert message in refused(capsys, "sample", model_of(made), "--out", "s.npz", *joined)
    assert not list(here.iterdir())


def test_a_corrupt_model_is_one_line(made: Path, here: Path, capsys: pytest.CaptureFixture) -> None:
    (here / "bad.safetensors").write_bytes(model_of(made).read_bytes()[:-9])
    assert "expected a synthesizer" in refused(capsys, "sample", "bad.safetensors", "--out", "s.npz")
    assert "found no file" in refused(capsys, "sample", "none.safetensors", "--out", "s.npz")


# --- evaluate, records, data, privacy ---------------------------------------------------------------------------------


def test_evaluate_scores_any_images(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    real = own.load_own(save(here / "real.npz"))
    monkeypatch.setattr(datasets, "load", lambda name, split: real)
    save(here / "any.npz")
    words = ["evaluate", "any.npz", "--dataset", "mnist", "--profile", "smoke"]
    assert main([*words, "--json", "scores.json"]) == 0
    said = capsys.readouterr().out
    assert "CNN" in said
    assert "FID" in said
    scores = json.loads((here / "scores.json").read_text())
    assert scores["fid_classifier"] == pytest.approx(0, abs=1e-6)  # the same images
    assert "unknown profile" in refused(capsys, *words[:4], "--profile", "x")
    assert "nothing.npz does not exist" in refused(capsys, "evaluate", "nothing.npz", "--dataset", "mnist")


def test_records_in_three_forms(made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(made)
    capsys.readouterr()
    assert main(["records"]) == 0
    assert record_of(made).name in capsys.readouterr().out
    accuracy = files.read(record_of(made))["metrics"]["accuracy"]["cnn"]
    assert main(["records", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)[0]
    assert row["dataset"] == "own-bars"
    assert row["cnn_values"] == pytest.approx(accuracy)
    assert main(["records", "--csv"]) == 0
    capsys_out = capsys.readouterr().out
    (made / "table.csv").write_text(capsys_out)
    assert pd.read_csv(made / "table.csv")["cnn"].tolist() == pytest.approx(accuracy)


def test_records_are_those_of_the_runs_and_of_the_book(made: Path, here: Path, capsys: pytest.CaptureFixture) -> None:
    record = files.read(record_of(made))
    files.write(record, here / "runs" / "records")
    files.write(record | {"seed": 1}, here / "book" / "records")
    (here / "book" / "records" / "._x.json").write_text("left by another system")
    assert main(["records"]) == 0
    said = capsys.readouterr().out
    assert said.count("-seed0-") == said.count("-seed1-") == 1
    assert main(["records", "--folder", "book/records"]) == 0
    assert "-seed0-" not in capsys.readouterr().out


def test_records_where_there_are_none_and_corrupt_ones(here: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["records"]) == 0
    assert "No records yet" in capsys.readouterr().out
    assert "expected a folder of records" in refused(capsys, "records", "--folder", "nowhere")
    (here / "records").mkdir()
    (here / "records" / "x.json").write_text('{"schema": 1')
    assert "expected a record in JSON" in refused(capsys, "records", "--folder", "records")


def test_publish_takes_what_belongs_in_the_book_and_names_what_does_not(
    made: Path, here: Path, capsys: pytest.CaptureFixture
) -> None:
    good = next((Path(cli.__file__).parent.parent / "book" / "records").glob("*-real-*.json"))
    for source in (good, record_of(made)):
        for file in (source, source.with_suffix(".png")):
            (here / "runs" / "records").mkdir(parents=True, exist_ok=True)
            shutil.copy(file, here / "runs" / "records")
    assert main(["publish", record_of(made).stem, good.stem]) == 2
    said = capsys.readouterr()
    assert said.out.splitlines() == [f"book/records/{good.name}"]
    assert "1 of 2 were refused, the first: " in said.err
    assert "a smoke run" in said.err
    assert sorted(path.name for path in (here / "book" / "records").iterdir()) == [good.name, f"{good.stem}.png"]
    assert "expected a record, or its name in runs/records" in refused(capsys, "publish", "none")


def test_data_says_what_is_there(here: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["data"]) == 0
    said = capsys.readouterr().out
    assert [line.split()[:2] for line in said.splitlines()] == [[name, "absent"] for name in DATASETS]
    assert "train-images" in refused(capsys, "data", "verify", "mnist")
    assert "expected a dataset to fetch" in refused(capsys, "data", "fetch")
    assert "unknown dataset 'cats'" in refused(capsys, "data", "fetch", "cats")
    assert "did you mean mnist?" in refused(capsys, "data", "fetch", "mnits")


def test_what_is_suggested_is_what_the_command_takes(here: Path, capsys: pytest.CaptureFixture) -> None:
    """By `make book DATASET=MNIST` among others; images of one's own are suggested where they can be given."""
    for command in ("book", "run"):
        assert refused(capsys, command, "--dataset", "MNIST").endswith("unknown dataset 'MNIST': did you mean mnist?")
        assert refused(capsys, command, "--dataset", "Fashion-MNIST").endswith("did you mean fashion_mnist?")
    assert refused(capsys, "run", "--dataset", "cats").endswith("or your own images with --data PATH")
    assert refused(capsys, "book", "--dataset", "cats").endswith(
        "expected mnist or fashion_mnist or letters or things or things64"
    )


def test_privacy_explains_a_record(made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(made)
    capsys.readouterr()
    assert main(["privacy", record_of(made).stem]) == 0
    said = capsys.readouterr().out
    assert main(["privacy", record_of(made).name]) == 0
    assert capsys.readouterr().out == said
    assert main(["privacy", str(record_of(made))]) == 0
    said = capsys.readouterr().out
    record = files.read(record_of(made))
    for mechanism in record["privacy"]["mechanisms"]:
        assert mechanism["name"] in said
    reported = record["privacy"]["epsilon"]
    values = {line.split()[2]: float(line.split(")")[1].split()[0]) for line in said.splitlines() if "ε by" in line}
    assert values["PRV"] == pytest.approx(reported, abs=1e-4)
    assert values["PLD"] == pytest.approx(reported, rel=0.01)
    assert values["RDP"] > reported


def test_privacy_does_not_believe_an_edited_record(made: Path, here: Path, capsys: pytest.CaptureFixture) -> None:
    record = files.read(record_of(made))
    record["privacy"]["epsilon"] /= 2
    (here / "edited.json").write_text(json.dumps(record))
    assert "its mechanisms spend" in refused(capsys, "privacy", "edited.json")
    assert "`dpldm records` lists them" in refused(capsys, "privacy", "none.json")


# --- the parser -------------------------------------------------------------------------------------------------------


def test_help_and_mistyped_options_do_not_load_the_library() -> None:
    script = (
        "import sys\nfrom dpldm.cli import main\n"
        "for words in (['--help'], ['run', '--help'], ['run', '--dataset', 'mnist', '--epsilom', '3'], [],\n"
        "              ['--version'], ['run', '--dataset', 'mnits'], ['sweep', '--epsilon', '1', '--method', 'x']):\n"
        "    try: main(words)\n"
        "    except SystemExit: pass\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert "unrecognized arguments: --epsilom" in done.stderr
    assert "unknown dataset 'mnits': did you mean mnist?" in done.stderr
    assert "unknown method 'x'" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["run", "--dataset", "mnist", "--data", "x.npz"],
        ["run", "--dataset", "mnist", "--epsilon", "1", "--noise-multiplier", "1"],
        ["run", "--dataset", "mnist", "--epsilon", "many"],
        ["data", "burn"],
        ["sample", "model.safetensors"],
        ["privacy"],
        ["fly"],
    ],
)
def test_what_the_parser_refuses(words: list, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as refusal:
        main(words)
    assert refusal.value.code == 2
    assert "error" in capsys.readouterr().err


def test_a_run_of_which_nothing_is_said_is_of_digits_at_the_default_budget() -> None:
    given = cli._parser().parse_args(["run"])
    assert _epsilon(given) == 10
    assert _experiment(given, 10.0).dataset == "mnist"


def test_what_is_known_before_the_library_is_loaded_is_what_it_knows() -> None:
    assert tuple(datasets.DATASETS) == DATASETS
    assert tuple(methods.PROFILES) == PROFILES
    assert experiment.LARGEST_SEED == cli.LARGEST_SEED
    assert experiment.Folders().records == RECORDS


def test_every_command_has_examples_that_it_understands(capsys: pytest.CaptureFixture) -> None:
    parser = cli._parser()
    commands = next(action.choices for action in parser._actions if action.dest == "==SUPPRESS==" or action.choices)
    assert set(commands) == set(cli.EXAMPLES)
    for name, lines in cli.EXAMPLES.items():
        for line in lines:
            words = shlex.split(re.split(r"  +| > ", line)[0])
            assert words[:2] == ["dpldm", name]
            parser.parse_args(words[1:])
        with pytest.raises(SystemExit):
            main([name, "--help"])
        said = capsys.readouterr().out
        assert all(line in said for line in lines)
        assert ("DPLDM_INCEPTION_WEIGHTS" in said) == (name in ("run", "evaluate"))


# --- the world outside ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--n-synthetic", 10**15], "which fit the memory here"),
        (["--guidance", "1e30"], "guidance from 0 to 100"),
        (["--sampling-steps", 10**12], "expected 2 to 10000 steps"),
        (["--classifier-seeds", 10**12], "expected 1 to 1,000 classifiers"),
        (["--seed", 10**400], "got a number of 401 digits"),
        (["--batch", 10**15], "batch of"),
        (["--epsilon", "1e308"], "ask for 100000 or less"),
        (["--noise-multiplier", "1e9"], "ask for 10000 or less"),
    ],
)
def test_huge_numbers_are_one_line_before_any_work(here: Path, words: list, message: str, capsys) -> None:
    save(here / "bars.npz")
    asked = ["run", "--data", "bars.npz", "--delta", "1e-4", "--profile", "smoke", *words]
    assert message in refused(capsys, *asked)
    assert [path.name for path in here.iterdir() if path.name != "runs"] == ["bars.npz"]
    assert not list(here.glob("runs/*"))


def test_more_samples_than_fit_are_refused(made: Path, here: Path, capsys: pytest.CaptureFixture) -> None:
    assert "which fit the memory" in refused(capsys, "sample", model_of(made), "--n", 10**15, "--out", "s.npz")


def dpldm(words: str, place: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """The command in a shell, so that streams can be closed or sent elsewhere."""
    command = f"{shlex.quote(sys.executable)} -m dpldm {words}"
    paths = {"PYTHONPATH": str(Path(cli.__file__).parent.parent)}
    return subprocess.run(["sh", "-c", command], cwd=place, env=os.environ | paths | environment, capture_output=True)


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}],
)
def test_a_terminal_without_utf_8_gets_other_letters(made: Path, environment: dict) -> None:
    if "LC_ALL" in environment:
        environment |= {"PYTHONCOERCECLOCALE": "0"}
    helped = dpldm("run --help", made, **environment)
    assert helped.returncode == 0
    assert b"total budget epsilon" in helped.stdout
    done = dpldm(f"privacy {record_of(made).stem}", made, **environment)
    assert done.returncode == 0, done.stderr
    assert b"epsilon by PRV" in done.stdout
    assert b"Traceback" not in done.stderr + helped.stderr


def test_closed_streams_stop_nothing(made: Path) -> None:
    assert dpldm("--version >&-", made).returncode == 0
    quiet = dpldm(f"privacy {record_of(made).stem} >&-", made)
    assert (quiet.returncode, quiet.stderr) == (0, b"")
    deaf = dpldm(f"privacy {record_of(made).stem} 2>&-", made)
    assert deaf.returncode == 0
    assert b"by PRV" in deaf.stdout
    refused_in_silence = dpldm("run --dataset mnits 2>&-", made)
    assert (refused_in_silence.returncode, refused_in_silence.stdout) == (2, b"")


def test_a_run_with_closed_streams_is_a_run(here: Path) -> None:
    """The numbers of closed streams must not go to the run's own files."""
    save(here / "bars.npz")
    words = " ".join(["run", "--data", "bars.npz", *BUDGET, *SMALL, "--method", "class-gaussian"])
    assert dpldm(f"{words} <&- >&- 2>&-", here).returncode == 0
    assert len(files.read_all(here / "runs" / "records")) == 1
    assert load_images(next(here.glob("runs/*/synthetic.npz")))[0].shape == (200, 1, 12, 12)


def test_ctrl_c_while_it_loads_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def press(given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_check_names", press)
    assert main(["records"]) == 130
    assert capsys.readouterr().err.strip() == "dpldm: stopped; the same command begins again"


@pytest.mark.slow
def test_the_same_secure_run_started_twice_draws_once(here: Path) -> None:
    save(here / "bars.npz")
    words = ["run", "--data", "bars.npz", *BUDGET, *SMALL, "--method", "class-gaussian", "--secure"]
    command = [sys.executable, "-m", "dpldm", *words]
    both = [subprocess.Popen(command, cwd=here, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("done earlier: runs/records" in lines for lines in said) == 1, said
    assert sum("compression: " in lines for lines in said) == 1, said


def test_python_m_dpldm_is_the_command(here: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "dpldm", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: dpldm")


# --- the machine ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fails",
    [
        lambda: np.empty(2**50),
        lambda: torch.empty(2**50),  # really too much: torch's own words
        lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")),
        lambda: (_ for _ in ()).throw(RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9")),
        lambda: (_ for _ in ()).throw(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")),
    ],
    ids=["numpy", "torch", "cuda", "windows", "cublas"],
)
def test_no_memory_is_one_line_whoever_asked_for_it(fails, monkeypatch, capsys: pytest.CaptureFixture) -> None:
    def show(given: object) -> None:
        with contextlib.suppress(StopIteration):
            next(iter(fails()))

    monkeypatch.setattr(cli, "show_records", show)
    assert refused(capsys, "records") == "dpldm: out of memory: use fewer images, or a machine with more"


def test_another_error_of_torch_is_no_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "show_records", lambda given: torch.zeros(2, 3) @ torch.zeros(2, 3))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        main(["records"])


def test_a_model_that_does_not_fit_the_memory_is_not_called_damaged(
    made: Path, here: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(LatentDiffusion, "restore", lambda *stage: torch.empty(2**50))
    assert "out of memory" in refused(capsys, "sample", model_of(made), "--out", "s.npz")


SEEN = """
import os, runpy, sys
class Finder:
    def find_spec(self, name, *rest):
        if name == "torch":
            sys.exit("torch finds " + os.environ.get("OMP_WAIT_POLICY", "nothing"))
sys.meta_path.insert(0, Finder())
sys.argv = ["dpldm", "run", "--profile", "smoke"]
runpy.run_module("dpldm", run_name="__main__")
"""


@pytest.mark.parametrize(("chosen", "policy"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_threads_wait_without_spinning_unless_told_to(here: Path, chosen: dict[str, str], policy: str) -> None:
    """OpenMP looks once, when torch loads it."""
    kept = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    paths = {"PYTHONPATH": str(Path(cli.__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", SEEN], env=kept | paths | chosen, capture_output=True, text=True)
    assert done.stderr.strip() == f"torch finds {policy}"
