"""Scores that older records lack: added where the images are those of the run, and nothing else is changed."""

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_evaluation import Colours
from test_experiment import Lines, folders_in, shapes
from torch import Tensor

from dpldm.cli import main
from dpldm.data import datasets, own
from dpldm.data.fetch import file_sha256
from dpldm.data.images import ImageData
from dpldm.evaluation import inception, protocol
from dpldm.records import environment, files
from dpldm.records.images import load_images, save_images
from dpldm.records.names import record_name
from dpldm.runs import rescoring
from dpldm.runs.chosen import experiment_of
from dpldm.runs.experiment import Experiment, ExperimentError, Folders
from dpldm.runs.rescoring import RescoringError, add_missing
from dpldm.runs.run import redraw, run

NEW = [part for part in protocol.PARTS if part in (*protocol.LEARNERS, *protocol.TWO_SAMPLE, "memorisation")]


@pytest.fixture(scope="module", autouse=True)
def public(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Bars and boxes stand in for the public digits; one version of the library throughout."""
    folder = tmp_path_factory.mktemp("data")
    paths = {"train": shapes(folder / "train.npz", 600), "test": shapes(folder / "test.npz", 210, seed=1)}

    def load(name: str, split: str, place: Path | None = None) -> ImageData:
        assert name == "mnist"
        return replace(own.load_own(paths[split]), name=name, sha256={split: {"train": "a", "test": "b"}[split] * 64})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load", load)
        patch.setattr(environment, "_commit", lambda root: "0" * 40)
        yield


@pytest.fixture(scope="module")
def made(public: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Folders]:
    """A whole run, made once; tests must not change it."""
    folders = folders_in(tmp_path_factory.mktemp("made"))
    asked = Experiment("mnist", 2.0, delta=1e-4, method="class-gaussian", profile="smoke", n_synthetic=200)
    return run(asked, folders), folders


def aged(record: dict[str, Any]) -> dict[str, Any]:
    """The record as older versions left it."""
    old = copy.deepcopy(record)
    for key in ("learners", "two_sample"):
        del old["metrics"][key]
    del old["metrics"]["memorisation"]["share_copied"]
    return old


@pytest.fixture
def older(made: tuple[dict[str, Any], Folders], tmp_path: Path) -> tuple[Path, Folders]:
    """An older record with its run, to be changed at will: its path, and the folders."""
    record, folders = made
    here = Folders(tmp_path / "records", tmp_path / "runs")
    path = files.write(aged(record), here.records)
    shutil.copy((folders.records / path.name).with_suffix(".png"), here.records)
    shutil.copytree(folders.runs / path.stem, here.runs / path.stem)
    return path, here


def without_note(record: dict[str, Any]) -> dict[str, Any]:
    metrics = {key: value for key, value in record["metrics"].items() if key != "added"}
    return record | {"metrics": metrics}


def forbidden(*_: object, **__: object) -> None:
    raise AssertionError("this was not to be done")


# --- what is added ----------------------------------------------------------------------------------------------------


def test_an_older_record_becomes_that_of_a_new_run(made: tuple[dict, Folders], older: tuple[Path, Folders]) -> None:
    path, folders = older
    assert add_missing(path, folders, Lines()) == NEW
    filled = files.read(path)
    assert without_note(filled) == made[0]
    assert set(filled["metrics"]["added"]) == set(NEW)
    assert filled["metrics"]["added"]["knn"]["commit"] == "0" * 40
    assert add_missing(path, folders, Lines()) == []
    assert [file.name for file in folders.records.iterdir() if file.suffix == ".json"] == [path.name]


def test_what_was_there_stays_and_is_not_scored_again(
    older: tuple[Path, Folders], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, folders = older
    old = files.read(path)
    old["metrics"]["accuracy"] = {"cnn": [0.125], "mlp": [0.25], "logreg": []}
    old["metrics"]["memorisation"]["share_closer_to_train"] = 0.0625
    old["metrics"]["learners"] = {"knn": [0.5]}
    old["metrics"]["two_sample"] = {f"forest{view}": {"auc": 0.75, "low": 0.5, "high": 1.0} for view in protocol.VIEWS}
    files.write(old, path.parent)
    for name in ("_train_and_score", "fidelity", "inception_part"):
        monkeypatch.setattr(protocol, name, forbidden)
    asked: list[str] = []
    learn = protocol.learner_rights
    monkeypatch.setattr(protocol, "learner_rights", lambda kind, *rest: asked.append(kind) or learn(kind, *rest))
    expected = [part for part in NEW if part not in ("knn", "two_sample_forest")]
    assert add_missing(path, folders, Lines()) == expected
    assert sorted(asked) == sorted(set(protocol.LEARNERS) - {"knn"})
    filled = files.read(path)

    def kept(before: Any, after: Any) -> bool:
        if isinstance(before, dict):
            return all(key in after and kept(before[key], after[key]) for key in before)
        return before == after

    assert kept(old, filled)
    assert filled["metrics"]["learners"]["cnn"] == [0.125]
    assert "logreg" not in filled["metrics"]["learners"]
    assert 0 <= filled["metrics"]["memorisation"]["share_copied"] <= 1


def test_after_ctrl_c_only_the_rest_is_scored(older: tuple[Path, Folders], monkeypatch: pytest.MonkeyPatch) -> None:
    path, folders = older
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # so that parts end one after the other
    write, written = files.write, []

    def write_two(record: dict, folder: Path) -> Path:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(write(record, folder))
        return written[-1]

    with monkeypatch.context() as patch:
        patch.setattr(files, "write", write_two)
        with pytest.raises(KeyboardInterrupt):
            add_missing(path, folders, Lines())
    done = set(files.read(path)["metrics"]["added"])
    assert len(done) == 2
    assert add_missing(path, folders, Lines()) == [part for part in NEW if part not in done]
    assert set(files.read(path)["metrics"]["added"]) == set(NEW)


def test_the_inception_distance_is_added_once_its_weights_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Experiment("mnist", 2.0, delta=1e-4, method="class-gaussian", profile="smoke", n_synthetic=200).resolved()
    assert asked.evaluation is not None
    folders = folders_in(tmp_path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.delenv(inception.INCEPTION_VARIABLE, raising=False)
    record = run(replace(asked, evaluation=replace(asked.evaluation, inception="if-file")), folders)
    path = folders.records / record_name(record)
    assert record["metrics"]["fid_inception"] is None
    assert add_missing(path, folders, Lines()) == []
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"x")
    monkeypatch.setenv(inception.INCEPTION_VARIABLE, str(weights))
    monkeypatch.setattr(inception, "INCEPTION_SHA256", file_sha256(weights))
    monkeypatch.setattr(inception, "load_inception", lambda path, device: (Colours(), "0123456789abcdef"))
    for module in (inception, protocol):
        monkeypatch.setattr(module, "INCEPTION_DIMENSIONS", 4)
    assert add_missing(path, folders, Lines()) == ["fid_inception"]
    metrics = files.read(path)["metrics"]
    assert metrics["fid_inception"] > 0
    assert "weights sha256 0123456789ab" in metrics["fid_inception_note"]
    unchanged = {key: value for key, value in metrics.items() if key not in ("added", *inception_keys())}
    assert unchanged == {key: value for key, value in record["metrics"].items() if key not in inception_keys()}


def inception_keys() -> tuple[str, ...]:
    return "fid_inception", "fid_inception_note"


# --- whose images -----------------------------------------------------------------------------------------------------


def test_images_that_are_gone_are_made_again_only_where_that_is_asked_for(
    made: tuple[dict, Folders], older: tuple[Path, Folders]
) -> None:
    path, folders = older
    drawn = load_images(folders.runs / path.stem / "synthetic.npz")[0]
    shutil.rmtree(folders.runs)
    with pytest.raises(RescoringError, match="are gone: make them again with --remake"):
        add_missing(path, folders, Lines())
    assert add_missing(path, folders, Lines(), remake=True) == NEW
    assert torch.equal(load_images(folders.runs / path.stem / "synthetic.npz")[0], drawn)
    assert without_note(files.read(path)) == made[0]


def moved(images: Tensor) -> Tensor:
    return images.roll(1, -1)


def fewer(images: Tensor) -> Tensor:
    return images[:-1]


@pytest.mark.parametrize("change", [moved, fewer])
def test_images_of_another_run_are_refused(change: Callable[[Tensor], Tensor], older: tuple[Path, Folders]) -> None:
    path, folders = older
    place = folders.runs / path.stem / "synthetic.npz"
    images, labels, said = load_images(place)
    before = path.read_bytes()
    save_images(place, change(images), labels[: len(change(images))], said)
    with pytest.raises(RescoringError, match="expected its own images, got others"):
        add_missing(path, folders, Lines())
    assert path.read_bytes() == before


def test_only_public_data_sets_and_known_settings_are_made_again(made: tuple[dict, Folders], tmp_path: Path) -> None:
    record, folders = made
    assert experiment_of(record).resolved() == experiment_of(record)
    with pytest.raises(ExperimentError, match="expected a run of a public data set"):
        experiment_of(record | {"dataset": "own-bars"})
    other = copy.deepcopy(record)
    other["settings"]["synthesis"]["what is this"] = 1
    with pytest.raises(ExperimentError, match="expected settings of a run of this version"):
        experiment_of(other)
    with pytest.raises(ExperimentError, match="its noise is gone"):
        redraw(replace(experiment_of(record), secure_mode=True), folders, Lines())
    path = files.write(aged(record) | {"dataset": "own-bars"}, tmp_path)
    with pytest.raises(RescoringError, match="your own images are in no record"):
        add_missing(path, folders, Lines())


def test_real_images_that_are_others_are_refused(older: tuple[Path, Folders]) -> None:
    path, folders = older
    record = files.read(path) | {"data_sha256": {"train": "c" * 64}}
    other = files.write(record, path.parent)
    shutil.copytree(folders.runs / path.stem, folders.runs / other.stem)
    with pytest.raises(RescoringError, match="expected the files that the run was made of"):
        add_missing(other, folders, Lines())


# --- as a command -----------------------------------------------------------------------------------------------------


def test_a_run_whose_record_lacks_scores_names_the_command(
    made: tuple[dict, Folders], older: tuple[Path, Folders]
) -> None:
    path, folders = older
    told, done = Lines(), Lines()
    run(experiment_of(files.read(path)), folders, told)
    assert "done earlier" in told.lines[0]
    assert "it lacks the accuracy of " in told.lines[1]
    assert "3-NN" in told.lines[1]
    assert f"`dpldm evaluate --records {path}`" in told.lines[1]
    run(experiment_of(made[0]), made[1], done)
    assert len(done.lines) == 1


def test_one_command_adds_to_all_whose_images_are_there(
    made: tuple[dict, Folders],
    older: tuple[Path, Folders],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    path, folders = older
    monkeypatch.chdir(tmp_path)
    shutil.move(folders.records, folders.runs / "records")
    gone = files.write(aged(made[0]) | {"seed": 5}, tmp_path / "book" / "records")
    monkeypatch.setattr(rescoring, "opened", watched := Watched(rescoring.opened))
    assert main(["evaluate", "--records"]) == 0
    said = capsys.readouterr()
    assert "1 left out, as their images are gone: --remake" in said.err
    assert "1 of 1" in said.err
    assert "parts added in" in said.err
    assert "1 of 1 records lack nothing now" in said.out
    assert watched.calls == 1
    assert main(["evaluate", "--records", path.stem, gone.stem]) == 2
    said = capsys.readouterr()
    assert "1 of 2" in said.err
    assert "lacks nothing" in said.err
    assert "1 of 2 were refused, the first: runs/" in said.err.splitlines()[-1]
    assert "make them again with --remake" in said.err.splitlines()[-1]
    assert watched.calls == 2
    assert "two_sample" not in json.loads(gone.read_text())["metrics"]


class Watched:
    """Counts the calls of a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.calls = function, 0

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        return self.function(*arguments)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected FILE with --dataset, or --records"),
        (["some.npz"], "expected FILE with --dataset, or --records"),
        (["some.npz", "--dataset", "mnist", "--remake"], "--remake is for --records"),
        (["some.npz", "--records"], "a record says how it is scored"),
        (["--records", "--seed", "1"], "a record says how it is scored"),
        (["--records", "nobody"], "expected a record, or its name"),
    ],
)
def test_what_does_not_fit_together_is_one_line(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
