"""Secure runs: no byte of the private file decides anything outside a mechanism, and none is drawn twice in silence."""

import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dpldm import methods, recipes
from dpldm.method.classifier import SelectionSettings
from dpldm.method.edge_transport import TransportSettings
from dpldm.method.settings import SynthesisSettings
from dpldm.privacy import accounting, mechanisms
from dpldm.privacy import statement as privacy_statement
from dpldm.privacy.noise import NoiseSource, Release, watched
from dpldm.records import environment, names, stages
from dpldm.records.files import read
from dpldm.records.images import load_images
from dpldm.runs import experiment, words
from dpldm.runs.experiment import Experiment, ExperimentError, Folders, Progress
from dpldm.runs.job import prepare
from dpldm.runs.run import run
from dpldm.runs.saved import load_synthesizer

PRIVATE = [name for name, method in methods.METHODS.items() if method.private]


@pytest.fixture(autouse=True)
def _one_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_commit", lambda root: "0" * 40)


def store(path: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, images=images, labels=labels)
    return path


def pictures(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Grey noise with a bar in another place for each of three classes."""
    random = np.random.default_rng(seed)
    images, labels = (random.random((n, 12, 12)) * 120).astype(np.uint8), np.arange(n) % 3
    for c in range(3):
        images[labels == c, :, 3 * c + 1 : 3 * c + 3] += 120
    return images, labels


def small(method: str) -> methods.MethodSettings:
    """The smoke settings of a method, with batches for 240 images and every stage that ours has."""
    settings = methods.METHODS[method].choose("smoke", recipes.CHOSEN_ON, 2.0, 1e-5)
    if isinstance(settings, SynthesisSettings):
        settings = replace(
            settings,
            mixture_share=0.2,
            matching=replace(settings.matching, steps=3, share=0.1, image_share=0.5, start=1),
            selection=replace(settings.selection, as_they_are=True, push=1.0),
        )
    return settings


def described(path: Path, method: str = "dpldm", **changes) -> Experiment:
    made = Experiment(path, 2.0, delta=1e-4, secure_mode=True, method=method, profile="smoke", n_synthetic=30)
    return replace(made, settings=small(method), **changes)


def folders_in(place: Path) -> Folders:
    return Folders(place / "records", place / "runs")


def made(asked: Experiment, place: Path, force: bool = False) -> Path:
    """The folder of a run."""
    record = run(asked, folders_in(place), force=force)
    return place / "runs" / Path(names.record_name(record)).stem


# --- nothing outside a mechanism --------------------------------------------------------------------------------------


@pytest.fixture
def muted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every release is a constant, and what a secure run draws from the operating system is the same in every run."""
    monkeypatch.setattr(NoiseSource, "secure", lambda: NoiseSource.seeded(1))
    monkeypatch.setattr(secrets, "randbits", lambda bits: 2)
    random = torch.Generator()

    def constant(one: Release) -> torch.Tensor:
        noise = torch.randn(one.value.shape, generator=random.manual_seed(3), dtype=one.value.dtype)
        return one.mechanism.sensitivity * one.mechanism.noise_multiplier * noise

    with watched(constant):
        yield


@pytest.mark.usefixtures("muted")
@pytest.mark.parametrize("method", PRIVATE)
def test_muted_secure_runs_of_two_files_give_the_same_bytes(method: str, tmp_path: Path) -> None:
    """Other pixels and other shares of the classes, in as many images: all else that a run leaves is the same."""
    images, labels = pictures(240)
    other = np.random.default_rng(5).integers(0, 256, images.shape, dtype=np.uint8), np.sort(labels)[::-1]
    files = [store(tmp_path / name / "own.npz", *data) for name, data in (("a", (images, labels)), ("b", other))]
    first, second = (made(described(file, method), file.parent) for file in files)
    (tensors, facts), (others, other_facts) = (stages.StageFolder(one).load("synthesizer") for one in (first, second))
    assert facts == other_facts
    assert tensors.keys() == others.keys()
    assert all(torch.equal(value, others[name]) for name, value in tensors.items())
    assert (first / "synthetic.npz").read_bytes() == (second / "synthetic.npz").read_bytes()
    records = [read(folder.parents[1] / "records" / f"{folder.name}.json") for folder in (first, second)]
    keyed = [record.pop("data_sha256") for record in records]
    assert all(record.pop("seconds") for record in records)
    assert records[0] == records[1]
    assert keyed[0] != keyed[1]


def test_a_secure_run_is_not_muted_by_itself(tmp_path: Path) -> None:
    file = store(tmp_path / "own.npz", *pictures(240))
    first, second = (made(described(file, "class-gaussian"), tmp_path / name) for name in "ab")
    assert (first / "synthetic.npz").read_bytes() != (second / "synthetic.npz").read_bytes()


# --- the attack: which file was it? -----------------------------------------------------------------------------------


def alike(first: torch.Tensor, second: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([first.flatten().double(), second.flatten().double()]))[0, 1])


def first_layer(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """The denoiser's: its first weights, moved by a few noisy steps."""
    return next(value for name, value in tensors.items() if name.startswith("diffusion/network") and value.ndim == 2)


def embedding(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """DP-MERF's: noisy means of random features."""
    return tensors["embedding/embedding"]


@pytest.mark.parametrize(("method", "look"), [("dpldm", first_layer), ("dp-merf", embedding)])
def test_a_release_does_not_tell_which_file_it_was_made_from(
    method: str, look: Callable[[dict[str, torch.Tensor]], torch.Tensor], tmp_path: Path
) -> None:
    """Whoever has the release runs the library on every file that it may have been made from and compares what follows
    from the seed: the true file gives nothing that its neighbours don't. Where the seed hashed the file, the true one
    stood out by 0.7."""
    images, labels = pictures(240)
    asked = replace(described(tmp_path, method), epsilon=20.0)
    if method == "dpldm":
        idle = {"selection": SelectionSettings(candidates=1), "transport": TransportSettings(steps=0)}
        asked = replace(asked, settings=recipes.settings_for("smoke", recipes.CHOSEN_ON, 20.0))
        asked = replace(asked, settings=replace(asked.settings, **idle))

    def released(name: str, keep: np.ndarray) -> torch.Tensor:
        file = store(tmp_path / name / "own.npz", images[keep], labels[keep])
        return look(load_file(made(replace(asked, dataset=file), file.parent) / "synthesizer.safetensors"))

    everyone = np.arange(240)
    target = released("released", everyone)
    candidates = [everyone, everyone[1:], everyone[:-1], np.delete(everyone, 100)]
    scores = [alike(target, released(f"candidate{i}", keep)) for i, keep in enumerate(candidates)]
    assert max(scores) - min(scores) < 0.2, scores
    assert min(scores) > 0.5, scores  # so what is compared does follow from the seed


def test_a_seeded_run_of_other_data_still_shares_no_noise_and_says_whom_it_protects(tmp_path: Path) -> None:
    asked = replace(described(tmp_path / "own.npz"), secure_mode=False)
    seeds = [experiment.fit_seed(asked, {"own.npz": digest}) for digest in ("aa", "ab")]
    assert seeds[0] != seeds[1]
    assert len({experiment.fit_seed(replace(asked, secure_mode=True), {"own.npz": d}) for d in ("aa", "ab")}) == 1

    said: list[str] = []

    class Lines(Progress):
        def say(self, line: str) -> None:
            said.append(line)

    store(tmp_path / "own.npz", *pictures(240))
    asked = replace(asked, method="class-gaussian", settings=small("class-gaussian"))
    record = run(asked, folders_in(tmp_path), Lines())
    assert any("protects nobody" in line and "32 bits" in line and "--secure" in line for line in said)
    assert "protects nobody" in " ".join(words.statement(record["privacy"], record["dataset"])["assumptions"])


def test_seeds_of_seeded_runs_are_what_they_were() -> None:
    """The committed records were made with them."""
    asked = Experiment("mnist", 1.0, method="class-gaussian").resolved()
    assert experiment.fit_seed(asked, {"images": "aa", "labels": "bb"}) == SEED_BEFORE


SEED_BEFORE = 3018490733


# --- own data are not cut ---------------------------------------------------------------------------------------------


def test_one_image_fewer_takes_one_image_away(tmp_path: Path) -> None:
    """Also where the profile limits the images of the known sets: the choice would follow from their number."""
    images, labels = pictures(2_100)
    sets = []
    for name, keep in (("all", np.arange(2_100)), ("less", np.delete(np.arange(2_100), 700))):
        file = store(tmp_path / f"{name}.npz", images[keep], labels[keep])
        job = prepare(described(file, "class-gaussian"), folders_in(tmp_path))
        assert job.description["settings"]["limit"] is None
        sets.append({picture.numpy().tobytes() for picture in job.train.images})
    assert len(sets[0] - sets[1]) == 1
    assert not sets[1] - sets[0]


# --- one draw ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store(tmp_path_factory.mktemp("data") / "own.npz", *pictures(240))


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 0xFF
    path.write_bytes(content)


def forced(asked: Experiment, folder: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    return True


def damaged(asked: Experiment, folder: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    spoil(folder / "mixture.safetensors")
    return False


def deleted(asked: Experiment, folder: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    (folder / "compression.safetensors").unlink()
    return False


def all_stages_deleted(asked: Experiment, folder: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    for stage in ("compression", "mixture", "samples"):
        (folder / f"{stage}.safetensors").unlink()
    return False


def outdated(asked: Experiment, folder: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(environment, "_commit", lambda root: "1" * 40)
    return False


@pytest.mark.parametrize("change", [forced, damaged, deleted, all_stages_deleted, outdated])
def test_a_secure_run_is_not_drawn_again_in_silence(
    change: Callable, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = described(file, "class-gaussian")
    folder = made(asked, tmp_path)
    (tmp_path / "records" / f"{folder.name}.json").unlink()
    force = change(asked, folder, monkeypatch)
    kept = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ExperimentError, match=r"--seed.* add up") as refused:
        made(asked, tmp_path, force)
    assert "\n" not in str(refused.value)
    assert {path: path.read_bytes() for path in folder.iterdir()} == kept
    knowingly = made(replace(asked, seed=1), tmp_path)
    assert knowingly != folder
    made(replace(asked, secure_mode=False), tmp_path, force=True)  # seeded runs draw the same again


def test_a_recorded_secure_run_is_not_forced_either_and_a_first_one_may_be(file: Path, tmp_path: Path) -> None:
    asked = described(file, "class-gaussian")
    folder = made(asked, tmp_path, force=True)
    with pytest.raises(ExperimentError, match="was drawn in secure mode before"):
        made(asked, tmp_path, force=True)
    assert made(asked, tmp_path) == folder


@pytest.mark.parametrize("what", [{"epsilon": 1.0}, {"seed": 1}])
def test_another_secure_run_on_the_same_images_says_that_budgets_add_up(what: dict, file: Path, tmp_path: Path) -> None:
    """Whatever makes it another run, its noise is drawn anew."""
    asked, said = described(file, "class-gaussian"), []

    class Lines(Progress):
        def say(self, line: str) -> None:
            said.append(line)

    folder = made(asked, tmp_path)
    other = store(tmp_path / "other.npz", *pictures(240, seed=1))
    run(replace(asked, dataset=other, **what), folders_in(tmp_path), Lines())
    assert not any("add up" in line for line in said)
    copy = tmp_path / "renamed.npz"
    copy.write_bytes(file.read_bytes())
    run(replace(asked, dataset=copy, **what), folders_in(tmp_path), Lines())
    spent = read(tmp_path / "records" / f"{folder.name}.json")["privacy"]["epsilon"]
    (warned,) = (line for line in said if "add up" in line)
    assert f"drawn from these images before ({folder.name}; together ε = {spent:.4g} at δ = 0.0001)" in warned
    said.clear()
    run(replace(asked, n_synthetic=32), folders_in(tmp_path), Lines())  # shares the fit of the first, not the other's
    (warned,) = (line for line in said if "add up" in line)
    assert warned.count("class-gaussian-eps") == 1
    assert folder.name not in warned


@pytest.mark.parametrize("method", ["dpldm", "class-gaussian"])
def test_a_secure_run_that_differs_in_scores_or_numbers_only_draws_no_noise_anew(
    method: str, file: Path, tmp_path: Path
) -> None:
    """More images, scores and a renamed file need no second look at the private images: one fit, released once."""
    asked, said = described(file, method), []

    class Lines(Progress):
        def say(self, line: str) -> None:
            said.append(line)

    folder = made(asked, tmp_path)
    spent = read(tmp_path / "records" / f"{folder.name}.json")["privacy"]
    renamed = tmp_path / "renamed.npz"
    renamed.write_bytes(file.read_bytes())
    test_data = store(tmp_path / "test.npz", *pictures(240, seed=1))
    for change in ({"n_synthetic": 31}, {"dataset": renamed}, {"n_synthetic": 150, "test_data": test_data}):
        record = run(replace(asked, **change), folders_in(tmp_path), Lines())
        other = tmp_path / "runs" / names.record_name(record).removesuffix(".json")
        assert other != folder
        assert record["privacy"] == spent
        for stage in load_synthesizer(folder / "synthesizer.safetensors").synthesizer.stages:
            assert (other / f"{stage}.safetensors").read_bytes() == (folder / f"{stage}.safetensors").read_bytes()
    assert not any("add up" in line for line in said)


def test_a_secure_run_that_is_forced_shares_no_fit_and_says_so(file: Path, tmp_path: Path) -> None:
    asked, said = described(file, "class-gaussian"), []

    class Lines(Progress):
        def say(self, line: str) -> None:
            said.append(line)

    folder = made(asked, tmp_path)
    record = run(replace(asked, n_synthetic=31), folders_in(tmp_path), Lines(), force=True)
    other = tmp_path / "runs" / names.record_name(record).removesuffix(".json")
    assert (other / "compression.safetensors").read_bytes() != (folder / "compression.safetensors").read_bytes()
    (warned,) = (line for line in said if "add up" in line)
    assert folder.name in warned


def test_a_secure_run_takes_over_a_whole_fit_or_none(file: Path, tmp_path: Path) -> None:
    """Where another run has drawn the first stage only, both would draw the others: their budgets add up."""
    asked = described(file, "class-gaussian")
    folder = made(asked, tmp_path)
    last = load_synthesizer(folder / "synthesizer.safetensors").synthesizer.stages[-1]
    (folder / f"{last}.safetensors").unlink()
    said = []

    class Lines(Progress):
        def say(self, line: str) -> None:
            said.append(line)

    record = run(replace(asked, n_synthetic=31), folders_in(tmp_path), Lines())
    other = tmp_path / "runs" / names.record_name(record).removesuffix(".json")
    assert (other / "compression.safetensors").read_bytes() != (folder / "compression.safetensors").read_bytes()
    assert any("add up" in line for line in said)


def test_what_costs_nothing_is_done_again(file: Path, tmp_path: Path) -> None:
    """Images follow from the model: drawn again they are the same, and no private image is read."""
    asked = described(file, "class-gaussian")
    folder = made(asked, tmp_path)
    before = (folder / "synthetic.npz").read_bytes()
    (tmp_path / "records" / f"{folder.name}.json").unlink()
    spoil(folder / "synthetic.npz")
    assert made(asked, tmp_path) == folder
    assert (folder / "synthetic.npz").read_bytes() == before


# --- what the statement says of the settings --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        ("mnist", "This run alone is counted: settings were chosen on training images of this very data set"),
        ("fashion_mnist", "This run alone is counted: settings were chosen on training images of this very data set"),
        ("own-mnist", "Settings were fixed without a look at these images; other runs"),
        (None, "(those of MNIST and Fashion-MNIST were not)"),
    ],
)
def test_the_statement_says_whether_settings_saw_the_images(dataset: str | None, said: str) -> None:
    ledger = accounting.Ledger([mechanisms.Mechanism("sums", "diffusion", 2.0)])
    record = privacy_statement.to_record(mechanisms.PrivacySpec(epsilon=10.0), ledger)
    assert said in words.statement(record, dataset)["assumptions"][-1]


def test_model_and_images_carry_the_statement_of_their_data(file: Path, tmp_path: Path) -> None:
    folder = made(described(file, "class-gaussian"), tmp_path)
    saved = load_synthesizer(folder / "synthesizer.safetensors")
    assert saved.dataset == "own-own"
    assert load_images(folder / "synthetic.npz")[2] == saved.statement
