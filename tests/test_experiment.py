"""One description → one run → one record: resumed, repeated, damaged and refused runs."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from dpldm import methods, recipes
from dpldm.data import own
from dpldm.evaluation import protocol
from dpldm.evaluation.settings import EvaluationSettings
from dpldm.method.finishing import FinishSettings
from dpldm.method.settings import SamplingSettings, SynthesisSettings
from dpldm.privacy import mechanisms
from dpldm.privacy import statement as privacy_statement
from dpldm.privacy.checks import PrivacyError
from dpldm.privacy.guard import PrivateData
from dpldm.records import environment, files, grids, schema, stages
from dpldm.records.images import load_images
from dpldm.records.names import record_name
from dpldm.records.schema import RecordError
from dpldm.records.settings import SettingsError, from_json, to_json
from dpldm.runs import experiment, job, words
from dpldm.runs.chosen import _own_name, _secret, choose, made_today
from dpldm.runs.experiment import Experiment, ExperimentError, Folders, Progress
from dpldm.runs.run import Stopped, run
from dpldm.runs.saved import load_synthesizer, sample, write_samples

ROOT = Path(__file__).resolve().parent.parent
FIT = ["compression", "diffusion", "selection", "transport"]
STAGES = [*FIT, "samples", *(f"evaluation-{part}" for part in protocol.PARTS)]


@pytest.fixture(scope="module", autouse=True)
def _one_commit() -> Iterator[None]:
    """The same version of the library throughout, whatever happens to the checkout while the tests run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environment, "_commit", lambda root: "0" * 40)
        yield


def shapes(path: Path, n: int, seed: int = 0) -> Path:
    """An .npz of bars and boxes: three classes, 12 x 12 grey pixels."""
    random = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    images = random.random((n, 12, 12)) * 0.3
    images[labels == 0, :, 5:7] += 0.6
    images[labels == 1, 5:7, :] += 0.6
    images[labels == 2, 3:9, 3:9] += 0.6
    np.savez(path, images=(images * 255).astype(np.uint8), labels=labels)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    shapes(folder / "test.npz", 210, seed=1)
    return shapes(folder / "shapes.npz", 600)


@pytest.fixture(scope="module")
def described(data: Path) -> Experiment:
    return Experiment(data, 2.0, delta=1e-4, profile="smoke", n_synthetic=200, test_data=data.with_name("test.npz"))


class Lines(Progress):
    """Keeps what is said, and presses Ctrl-C at the first line or stage that starts with ``stop_at``."""

    def __init__(self, stop_at: str = "never") -> None:
        self.lines: list[str] = []
        self.stop_at = stop_at

    def say(self, line: str) -> None:
        self.lines.append(line)
        if line.startswith(self.stop_at):
            raise KeyboardInterrupt

    def track(self, stage: str, share: float) -> None:
        if stage == self.stop_at:
            raise KeyboardInterrupt


@dataclass(frozen=True)
class Made:
    """A run and where it lies. ``secret`` is shared, so that equal data have equal names everywhere."""

    folders: Folders
    record: dict
    lines: list[str]

    @property
    def path(self) -> Path:
        return self.folders.records / record_name(self.record)

    @property
    def run_folder(self) -> Path:
        return self.folders.runs / self.path.stem

    def images(self) -> Tensor:
        return load_images(self.run_folder / "synthetic.npz")[0]


def folders_in(place: Path, like: Folders | None = None) -> Folders:
    folders = Folders(place / "records", place / "runs")
    if like is not None:
        folders.runs.mkdir()
        (folders.runs / ".secret").write_bytes((like.runs / ".secret").read_bytes())
    return folders


def make(wanted: Experiment, folders: Folders, force: bool = False) -> Made:
    progress = Lines()
    return Made(folders, run(wanted, folders, progress, force), progress.lines)


@pytest.fixture(scope="module")
def made(described: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A whole run, made once; tests must not change it."""
    return make(described, folders_in(tmp_path_factory.mktemp("made")))


def without_seconds(record: dict) -> dict:
    return {key: value for key, value in record.items() if key != "seconds"}


# --- a whole run ------------------------------------------------------------------------------------------------------


def test_a_run_leaves_a_whole_record_within_its_budget(made: Made) -> None:
    schema.validate(made.record)
    assert files.read(made.path) == made.record
    spent = made.record["privacy"]
    assert 0 < spent["epsilon"] <= 2.0
    independent = privacy_statement.from_record(spent).epsilon(1e-4, "pld")
    assert independent == pytest.approx(spent["epsilon"], rel=0.01)
    assert independent <= spent["epsilon"]
    assert {mechanism["stage"] for mechanism in spent["mechanisms"]} == set(FIT)
    assert made.record["metrics"]["n_synthetic"] == 200
    fitted = load_file(made.run_folder / "synthesizer.safetensors")
    assert made.record["metrics"]["parameters"] == sum(np.prod(tensor.shape, dtype=int) for tensor in fitted.values())
    assert [len(made.record["metrics"]["accuracy"][kind]) for kind in schema.CLASSIFIERS] == [1, 1, 1]
    assert "not covered" in made.record["metrics"]["note"]
    assert set(made.record["seconds"]) == {*FIT, "sampling", "evaluation"}


def test_a_run_leaves_images_grid_and_statement(made: Made) -> None:
    images, labels, said = load_images(made.run_folder / "synthetic.npz")
    assert images.shape == (200, 1, 12, 12)
    assert labels.bincount().tolist() == [67, 67, 66]
    assert said == privacy_statement.statement(made.record["privacy"], settings_saw_images=False)
    with Image.open(made.path.with_suffix(".png")) as grid:
        assert json.loads(grid.text["privacy"]) == said


def test_a_line_for_each_stage_and_the_end_in_plain_words(made: Made) -> None:
    told = [line.split(":")[0] for line in made.lines]
    assert sorted(told[-len(STAGES) :]) == sorted(STAGES)
    assert any("not covered by ε" in line for line in made.lines)
    assert any("--secure" in line for line in made.lines)
    text = words.summary(made.record, made.folders)
    for expected in ("own-shapes: 200 synthetic images", "of 2 spent", "CNN", "FID", str(made.path), "cpu"):
        assert expected in text


def test_training_images_are_read_only_through_the_ledger(
    described: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[dict] = []
    original = PrivateData.read

    def watched(self: PrivateData, mechanism: mechanisms.Mechanism) -> tuple[Tensor, Tensor]:
        read.append(asdict(mechanism))
        return original(self, mechanism)

    monkeypatch.setattr(PrivateData, "read", watched)
    monkeypatch.setattr(protocol, "evaluation_parts", None)  # would fail if it were called
    done = make(replace(described, test_data=None), folders_in(tmp_path))
    assert done.record["privacy"]["mechanisms"] == read
    assert done.record["metrics"]["accuracy"] == {"cnn": [], "mlp": [], "logreg": []}
    assert done.record["seconds"]["evaluation"] is None
    assert any("not scored" in line for line in done.lines)


# --- interrupted, repeated, damaged -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "moment", ["compression:", "diffusion", "selection:", "transport:", "samples:", "evaluation", "evaluation-cnn:"]
)
def test_an_interrupted_run_ends_as_one_that_was_not(
    described: Experiment, made: Made, tmp_path: Path, moment: str
) -> None:
    folders = folders_in(tmp_path, made.folders)
    interrupted = Lines(moment)
    with pytest.raises(Stopped, match="finished stages are kept") as stopped:
        run(described, folders, interrupted)
    assert stopped.value.folder == folders.runs / made.path.stem
    assert not list(folders.records.iterdir())
    finished = {path.stem for path in stopped.value.folder.glob("*.safetensors")} - {"synthesizer"}
    assert finished < set(STAGES)
    assert "compression" in finished
    before = {stage: stages.StageFolder(stopped.value.folder).load(stage)[1]["seconds"] for stage in finished}

    done = make(described, folders)
    assert without_seconds(done.record) == without_seconds(made.record)
    assert torch.equal(done.images(), made.images())
    assert {line.split(":")[0] for line in done.lines if "done earlier" in line} == finished
    assert done.record["seconds"]["compression"] == before["compression"]  # measured once


@pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="no GPU of NVIDIA here")
def test_a_synthesizer_of_a_gpu_draws_nearly_the_same_on_the_cpu(data: Path, tmp_path: Path) -> None:
    seen = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}

    def dpldm(*arguments: str | Path) -> None:
        subprocess.run([sys.executable, "-m", "dpldm", *arguments], env=seen, check=True, cwd=ROOT)

    asked = ["--data", data, "--epsilon", "2", "--delta", "1e-4", "--profile", "smoke", "--n-synthetic", "200"]
    dpldm("run", *asked, "--device", "cuda", "--out", tmp_path / "records", "--runs", tmp_path / "runs")
    (made,) = (tmp_path / "runs").glob("*/synthetic.npz")
    drawn = tmp_path / "drawn.npz"
    model = made.with_name("synthesizer.safetensors")
    dpldm("sample", model, "--n", "200", "--device", "cpu", "--out", drawn)
    first, second = (load_images(path)[0] for path in (made, drawn))
    assert (first - second).abs().mean() < 0.02  # rounding may take another candidate here and there


def test_a_recorded_run_is_not_made_again(described: Experiment, made: Made) -> None:
    before = made.path.stat().st_mtime_ns
    again = make(described, made.folders)
    assert again.record == made.record
    assert len(again.lines) == 1
    assert "done earlier" in again.lines[0]
    assert made.path.stat().st_mtime_ns == before


def test_force_begins_anew(described: Experiment, made: Made, tmp_path: Path) -> None:
    folders = folders_in(tmp_path, made.folders)
    make(described, folders)
    again = make(described, folders, force=True)
    assert not any("done earlier" in line for line in again.lines)
    assert without_seconds(again.record) == without_seconds(made.record)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize("file", ["compression.safetensors", "synthetic.npz", "evaluation-mlp.safetensors"])
def test_a_damaged_stage_and_what_rests_on_it_are_done_again(
    described: Experiment, made: Made, tmp_path: Path, file: str
) -> None:
    folders = folders_in(tmp_path, made.folders)
    first = make(described, folders)
    damage(first.run_folder / file)
    first.path.unlink()
    again = make(described, folders)
    assert without_seconds(again.record) == without_seconds(made.record)
    kept = {line.split(":")[0] for line in again.lines if "done earlier" in line}
    expected = {
        "compression.safetensors": set(),
        "synthetic.npz": set(FIT),
        "evaluation-mlp.safetensors": set(STAGES) - {"evaluation-mlp"},
    }
    assert kept == expected[file]
    assert sum("done again" in line for line in again.lines) == 1


def test_stages_of_another_version_are_done_again(
    described: Experiment, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = folders_in(tmp_path, made.folders)
    with pytest.raises(Stopped):
        run(described, folders, Lines("samples:"))
    monkeypatch.setattr(environment, "_commit", lambda root: "1" * 40)
    again = make(described, folders)
    assert not any("done earlier" in line for line in again.lines)
    assert any("another version" in line for line in again.lines)
    assert again.record["commit"] == "1" * 40


# --- seeds and budgets ------------------------------------------------------------------------------------------------


def test_the_seed_decides_the_images(described: Experiment, made: Made, tmp_path: Path) -> None:
    unscored = replace(described, test_data=None)
    same = make(unscored, folders_in(tmp_path / "same"))
    other = make(replace(unscored, seed=1), folders_in(tmp_path / "other"))
    assert torch.equal(same.images(), made.images())
    assert not torch.equal(other.images(), made.images())


def test_secure_noise_is_not_repeated(described: Experiment, made: Made, tmp_path: Path) -> None:
    secure = make(replace(described, test_data=None, secure_mode=True), folders_in(tmp_path))
    assert not torch.equal(secure.images(), made.images())
    assert secure.record["settings"]["secure_mode"] is True
    assert not any("seeded" in line for line in secure.lines)


def test_derived_seeds_differ_by_purpose_and_seed() -> None:
    derived = [experiment.derived_seed(seed, purpose) for seed in range(50) for purpose in ("sampling", "evaluation")]
    assert len(set(derived)) == 100


def test_two_runs_share_their_noise_only_if_they_are_the_same(described: Experiment) -> None:
    base, sums = described.resolved(), {"train": "aa"}
    others = [replace(base, epsilon=2.5), replace(base, seed=1), replace(base, delta=1e-6)]
    others.append(replace(base, settings=None, profile="quick").resolved())
    seeds = [experiment.fit_seed(one, sums) for one in [base, *others]] + [experiment.fit_seed(base, {"train": "ab"})]
    assert len(set(seeds)) == len(seeds)
    assert experiment.fit_seed(replace(base, n_synthetic=7, device="cpu"), sums) == seeds[0]


def test_a_run_without_privacy_is_not_called_private(described: Experiment, tmp_path: Path) -> None:
    done = make(replace(described, epsilon=None, test_data=None), folders_in(tmp_path))
    schema.validate(done.record)
    assert done.record["privacy"]["epsilon"] is None
    assert done.path.name.startswith("own-shapes-dpldm-epsnone-smoke")
    assert all(mechanism["noise_multiplier"] == 0 for mechanism in done.record["privacy"]["mechanisms"])
    with pytest.raises(PrivacyError):
        privacy_statement.statement(done.record["privacy"])
    said = load_images(done.run_folder / "synthetic.npz")[2]
    assert said["epsilon"] is None
    assert said["claim"].startswith("No differential privacy")
    assert "privacy:   none" in words.summary(done.record, done.folders)


def test_a_run_with_given_noise_says_what_it_spent(described: Experiment, tmp_path: Path) -> None:
    done = make(replace(described, epsilon=None, noise_multiplier=3.0, test_data=None), folders_in(tmp_path))
    spent = done.record["privacy"]
    gradients = [mechanism for mechanism in spent["mechanisms"] if mechanism["name"] == "denoiser gradients"]
    assert [mechanism["noise_multiplier"] for mechanism in gradients] == [3.0]
    assert spent["epsilon_target"] is None
    assert spent["epsilon"] > 0
    assert "eps_of_noise3-" in done.path.name


# --- refused before anything is written -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "magic"}, "unknown method 'magic'"),
        ({"profile": "huge"}, "unknown profile 'huge'"),
        ({"dataset": "cats", "test_data": None}, "unknown dataset 'cats': expected mnist or fashion_mnist"),
        ({"dataset": "mnist"}, "give both or neither"),
        ({"seed": -1}, "expected a seed from 0"),
        ({"n_synthetic": 0}, "expected 1 or more synthetic images"),
        ({"epsilon": None, "noise_multiplier": 0}, "noise multiplier above 0"),
        ({"noise_multiplier": 1.0}, "exactly one of epsilon and noise_multiplier"),
        ({"epsilon": float("nan")}, "finite epsilon above 0"),
        ({"delta": 0.01}, "must be below 1/N"),
        ({"n_synthetic": 100}, "100 synthetic images are too few"),
        ({"device": "abacus"}, "device 'abacus' can't be used here"),
        ({"test_data": Path("nowhere.npz")}, "does not exist"),
    ],
)
def test_what_can_not_work_is_refused_first(described: Experiment, tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        run(replace(described, **change), folders_in(tmp_path))
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_test_images_of_other_classes_are_refused(described: Experiment, tmp_path: Path) -> None:
    images = np.zeros((30, 12, 12), np.uint8)
    np.savez(tmp_path / "two.npz", images=images, labels=np.arange(30) % 2)
    with pytest.raises(ExperimentError, match=r"classes 0, 1, 2, got .* 0, 1"):
        run(replace(described, test_data=tmp_path / "two.npz"), folders_in(tmp_path))


def test_too_little_room_is_refused_first(
    described: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: files.shutil._ntuple_diskusage(100, 100, 0))
    with pytest.raises(OSError, match="room"):
        run(described, folders_in(tmp_path))
    assert not list(tmp_path.rglob("*.safetensors"))


# --- data -------------------------------------------------------------------------------------------------------------


def test_a_record_does_not_confirm_guesses_about_private_files(made: Made, data: Path, described: Experiment) -> None:
    plain = hashlib.sha256(data.read_bytes()).hexdigest()
    assert plain not in made.path.read_text()
    assert len(made.record["data_sha256"]) == 2
    assert (made.folders.runs / ".secret").stat().st_mode & 0o077 == 0


def test_own_data_is_never_named_like_a_public_set() -> None:
    assert _own_name("mnist") == "own-mnist"
    assert _own_name("ma photos/été!") == "own-ma-photos-été-"


def test_a_limit_takes_the_same_images_whatever_they_are(data: Path) -> None:
    images = own.load_own(data)
    some = job.limited(images, 50)
    order = torch.randperm(600, generator=torch.Generator().manual_seed(0))[:50]
    assert torch.equal(some.images, images.images[order])
    assert job.limited(images, 600) is images


# --- saved synthesizers -----------------------------------------------------------------------------------------------


def test_a_saved_synthesizer_draws_the_images_of_its_run(made: Made) -> None:
    saved = load_synthesizer(made.run_folder / "synthesizer.safetensors")
    labels = experiment.balanced_labels(200, 3)
    images = sample(saved, labels, saved.seed, saved.settings.sampling)
    assert torch.equal((images * 255).round(), (made.images() * 255).round())
    assert saved.privacy == made.record["privacy"]
    assert saved.class_names == ("0", "1", "2")
    assert to_json(saved.settings) == made.record["settings"]["synthesis"]


def test_damaged_and_foreign_models_are_refused_in_a_line(made: Made, tmp_path: Path) -> None:
    whole = (made.run_folder / "synthesizer.safetensors").read_bytes()
    cut, flipped, foreign = (tmp_path / f"{name}.safetensors" for name in ("cut", "flipped", "foreign"))
    cut.write_bytes(whole[:1000])
    flipped.write_bytes(whole)
    damage(flipped)
    save_file({"a": torch.zeros(3)}, foreign)
    stage = made.run_folder / "diffusion.safetensors"  # whole, but not a synthesizer
    text = tmp_path / "text.txt"
    text.write_text("hello")
    for path in (cut, flipped, foreign, stage, text):
        with pytest.raises(ExperimentError, match=re.escape(f"{path}: expected a synthesizer")) as refused:
            load_synthesizer(path)
        assert "\n" not in str(refused.value)
    with pytest.raises(FileNotFoundError, match="found no file"):
        load_synthesizer(tmp_path / "absent.safetensors")


def test_weights_that_are_no_numbers_are_refused_as_such(made: Made, tmp_path: Path) -> None:
    tensors, facts = stages.StageFolder(made.run_folder).load("synthesizer")
    tensors["compression/axes"][0, 0] = float("nan")
    path = stages.StageFolder(tmp_path).save("model", tensors, facts)
    with pytest.raises(ExperimentError, match=r"no finite numbers \(compression/axes\); restore the file or repeat"):
        load_synthesizer(path)


def test_samples_carry_names_and_a_row_for_each_class_drawn(made: Made, tmp_path: Path) -> None:
    saved = replace(load_synthesizer(made.run_folder / "synthesizer.safetensors"), class_names=("cat", "dog", "newt"))
    labels = torch.tensor([2, 0]).repeat(10)
    grid = write_samples(tmp_path / "s.npz", sample(saved, labels, 0), labels, saved)
    with Image.open(grid) as picture:
        assert picture.height == 16 + 2 * (2 * 12 + grids.GAP)  # two rows of twice 12 pixels
    with np.load(tmp_path / "s.npz") as arrays:
        assert arrays["class_names"].tolist() == ["cat", "dog", "newt"]
        assert arrays["labels"].tolist() == labels.tolist()


def test_a_summary_says_which_score_was_left_out(made: Made) -> None:
    (said,) = (line for line in words.scores_in_words(made.record["metrics"]) if line.startswith("FID:"))
    assert said.endswith("(classifier features); left out by Inception features: not asked for")


def test_a_summary_names_learners_and_two_sample_tests_where_they_were_measured(made: Made) -> None:
    metrics = made.record["metrics"]
    told = {
        "forest": {"auc": 0.9996, "low": 0.9991, "high": 1.0},
        "forest_real": {"auc": 0.495, "low": 0.4, "high": 0.6},
    }
    said = words.scores_in_words(metrics | {"learners": {"cnn": [0.9], "knn": [0.9, 0.91]}, "two_sample": told})
    assert said[1] == "learners:  3-NN 90.5% on real test images (nobody tuned for these)"
    assert said[2].startswith("AUC:       forest 1.000 (0.999 to 1.000), real 0.495 at telling them from real images")
    assert len(words.scores_in_words(metrics)) == 5
    old = {key: value for key, value in metrics.items() if key not in ("learners", "two_sample")}
    assert len(words.scores_in_words(old)) == 3


def test_two_processes_do_not_make_one_run_at_once(tmp_path: Path) -> None:
    progress, order = Lines(), []

    def second() -> None:
        with files.locked(tmp_path / ".lock", lambda: progress.say("waiting")):
            order.append("second")

    with files.locked(tmp_path / ".lock"):
        other = threading.Thread(target=second)
        other.start()
        while not progress.lines:
            time.sleep(0.01)
        assert progress.lines == ["waiting"]
        order.append("first")
    other.join()
    assert order == ["first", "second"]


def test_processes_that_begin_at_once_have_one_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the same run would have two names, and be made twice."""
    write = files.write_atomically

    def slowly(path: Path, write_to: Callable[[Path], object]) -> Path:
        time.sleep(0.2)
        return write(path, write_to)

    monkeypatch.setattr(files, "write_atomically", slowly)
    with ThreadPoolExecutor(4) as threads:
        assert len(set(threads.map(_secret, [tmp_path / "runs"] * 4))) == 1


@pytest.mark.parametrize("wanted", [10**9, 10**15])
def test_more_images_than_fit_are_refused_at_once(described: Experiment, tmp_path: Path, wanted: int) -> None:
    start = time.monotonic()
    with pytest.raises(RecordError, match="which fit the memory here"):
        run(replace(described, n_synthetic=wanted), folders_in(tmp_path))
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("fault", ["setting", "shape", "tensor", "claim"])
def test_a_model_that_does_not_fit_itself_is_refused(made: Made, tmp_path: Path, fault: str) -> None:
    tensors, facts = stages.StageFolder(made.run_folder).load("synthesizer")
    if fault == "setting":
        facts["settings"]["width"] = "wide"
    elif fault == "claim":
        facts["privacy"]["epsilon"] /= 2
    elif fault == "shape":
        facts["image_shape"] = [3, 12, 12]
    else:
        tensors["compression/axes"] = tensors["compression/axes"][:5]
    path = stages.StageFolder(tmp_path).save("model", tensors, facts)
    with pytest.raises(ExperimentError, match="expected a synthesizer"):
        load_synthesizer(path)


def test_models_hold_only_what_is_charged(made: Made) -> None:
    """Every tensor of a model is one of its stages', so nothing else of the data can have slipped in."""
    names = set(load_file(made.run_folder / "synthesizer.safetensors"))
    states = {f"{stage}/{name}" for stage in FIT for name in stages.StageFolder(made.run_folder).load(stage)[0]}
    assert names == states


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", list(methods.PROFILES))
def test_settings_go_to_json_and_back(profile: str) -> None:
    settings = recipes.settings_for(profile, recipes.CHOSEN_ON, 3.0)
    assert from_json(SynthesisSettings, json.loads(json.dumps(to_json(settings)))) == settings
    scoring = methods.PROFILES[profile].evaluation
    assert from_json(EvaluationSettings, json.loads(json.dumps(to_json(scoring)))) == scoring


def test_a_setting_that_came_later_changes_nothing_that_was_made_before() -> None:
    """At its default it is not written, so digests, names and seeds of earlier runs stand; else it is."""
    before, after = FinishSettings(contrast=3.0), FinishSettings(contrast=3.0, contrast_share=0.5)
    assert to_json(before) == {"bend": 0.0, "sharpen": 0.0, "contrast": 3.0, "middle": 0.4}
    assert to_json(after) == to_json(before) | {"contrast_share": 0.5}
    for settings in (before, after):
        whole = SynthesisSettings(last=settings)
        assert to_json(whole)["last"] == to_json(settings)
        assert from_json(SynthesisSettings, json.loads(json.dumps(to_json(whole)))) == whole
        assert from_json(FinishSettings, asdict(settings)) == settings  # read where it is written although needless


def test_wrong_settings_are_refused() -> None:
    right = asdict(SamplingSettings())
    for wrong, message in (
        (right | {"stepps": 3}, "unknown key 'stepps'"),
        ({"steps": 3}, "expected a value for sampler"),
        (right | {"steps": "3"}, "settings.steps: expected int, got '3'"),
        (right | {"steps": True}, "settings.steps: expected int, got True"),
        ([], "expected an object"),
    ):
        with pytest.raises(SettingsError, match=message):
            from_json(SamplingSettings, wrong)
    assert from_json(SamplingSettings, right | {"guidance": 2}).guidance == 2.0


def test_a_corrupt_record_stops_the_run(described: Experiment, made: Made, tmp_path: Path) -> None:
    folders = folders_in(tmp_path, made.folders)
    folders.records.mkdir()
    (folders.records / made.path.name).write_text("{")
    with pytest.raises(RecordError, match="delete it and repeat the run"):
        run(described, folders)


def test_a_record_is_chosen_by_all_that_decides_its_run() -> None:
    """Two committed records agree in method, data set, profile, seed and ε; one of them learned from public shapes."""
    committed = files.read_all(Path(__file__).parent.parent / "book" / "records")
    twins = [one for one in committed if record_name(one).startswith("mnist-dpldm-eps10-quick-seed0-")]
    assert len(twins) == 2
    wanted = Experiment("mnist", 10.0)
    chosen = choose(committed, wanted)
    assert chosen is not None
    assert record_name(chosen) == "mnist-dpldm-eps10-quick-seed0-d5c95e7e.json"
    assert chosen["public_data"] is None
    assert [one for one in twins if made_today(one)] == [chosen]
    (variant,) = [one for one in twins if one != chosen]
    settings = from_json(SynthesisSettings, variant["settings"]["synthesis"])
    assert choose(committed, replace(wanted, settings=settings)) == variant
    for other in ({"seed": 1}, {"epsilon": 9.0}, {"delta": 1e-6}, {"n_synthetic": 9}, {"secure_mode": True}):
        assert choose(twins, replace(wanted, **other)) is None


def test_two_records_of_one_run_are_refused_and_a_copy_is_not() -> None:
    committed = files.read_all(Path(__file__).parent.parent / "book" / "records")
    wanted = Experiment("mnist", 10.0)
    chosen = choose(committed, wanted)
    assert chosen is not None
    assert choose([chosen, dict(chosen)], wanted) == chosen
    with pytest.raises(ExperimentError, match=r"expected one record of the run, got .*d5c95e7e\.json and mnist-"):
        choose([chosen, {**chosen, "data_sha256": {"train": "a" * 64}}], wanted)
