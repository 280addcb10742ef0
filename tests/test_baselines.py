"""Every method behind one interface: its private step by hand, its ledger, its run and record, and what it refuses."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dp_accounting import GaussianDpEvent
from dp_accounting.pld import PLDAccountant
from scipy import stats
from torch import Tensor

from dpldm import cli, commands, methods, recipes
from dpldm.cli import main
from dpldm.data import datasets
from dpldm.method.drawing import FINISHING_SEED
from dpldm.method.finishing import Finishable, Finishing, FinishSettings
from dpldm.methods import METHODS
from dpldm.privacy import statement as privacy_statement
from dpldm.privacy.accounting import Ledger
from dpldm.privacy.guard import PrivateData
from dpldm.privacy.mechanisms import PrivacySpec
from dpldm.privacy.noise import watched
from dpldm.records import environment, files, schema, stages
from dpldm.records.images import load_images
from dpldm.records.names import record_name
from dpldm.records.settings import from_json, to_json
from dpldm.rivals import base, class_gaussian, dp_merf, real
from dpldm.rivals.class_gaussian import ClassGaussian, NoisedLatents
from dpldm.rivals.dp_merf import MeanEmbedding
from dpldm.rivals.real import RealImages
from dpldm.runs import experiment, job, sweep
from dpldm.runs.experiment import Experiment, ExperimentError, Folders
from dpldm.runs.run import Stopped, run
from dpldm.runs.saved import load_synthesizer, sample
from dpldm.runs.words import statement

SHAPE, CLASSES = (1, 12, 12), 3
PRIVATE = [name for name, method in METHODS.items() if method.private]
YARDSTICKS = [name for name in METHODS if name not in PRIVATE]
OURS = ["class-gaussian", "dp-merf", "reading-b"]  # private, and in `baselines`
TWO = PrivacySpec(epsilon=2.0, delta=1e-4)


@pytest.fixture(scope="module", autouse=True)
def _one_commit() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environment, "_commit", lambda root: "0" * 40)
        yield


def bars(n: int = 600, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Class c is a bright bar at rows 4c and 4c + 1 on a dark, noisy ground."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % CLASSES
    images = torch.rand(n, *SHAPE, generator=random) * 0.3
    for c in range(CLASSES):
        images[labels == c, :, 4 * c : 4 * c + 2] += 0.7
    return images.clamp(0, 1), labels


def guard(images: Tensor, labels: Tensor, n: int | None = None) -> PrivateData:
    """A guard whose public number of images is ``n``, however many there are."""
    data = PrivateData(images, labels, CLASSES, Ledger())
    data._len = n or len(images)
    return data


def build(name: str, spec: PrivacySpec | None = TWO, seed: int = 0, shape: tuple[int, int, int] = SHAPE):
    method = METHODS[name]
    return method.build(
        shape, CLASSES, method.choose("smoke", recipes.CHOSEN_ON, spec and spec.epsilon, 1e-5), spec, seed, "cpu"
    )


def fitted(name: str, spec: PrivacySpec | None = TWO, seed: int = 0, data: PrivateData | None = None):
    data = data or guard(*bars())
    synthesizer = build(name, spec, seed)
    synthesizer.check(len(data))
    for stage in synthesizer.stages:
        for _ in synthesizer.fit_stage(stage, data):
            pass
    return synthesizer, data.ledger


def draw(synthesizer, n: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    labels = torch.arange(n) % CLASSES
    return torch.cat(list(synthesizer.sample(labels, seed))), labels


# --- every registered method ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("methods")
    for name, seed in (("bars", 0), ("test", 1)):
        images, labels = bars(600, seed)
        np.savez(folder / f"{name}.npz", images=(images[:, 0] * 255).to(torch.uint8).numpy(), labels=labels.numpy())
    return folder


@pytest.fixture(scope="module", params=list(METHODS))
def made(request: pytest.FixtureRequest, place: Path) -> tuple[Experiment, Folders, dict]:
    """A whole smoke run of each method, and its record."""
    described = Experiment(
        dataset=place / "bars.npz",
        epsilon=2.0 if METHODS[request.param].private else None,
        delta=1e-4,
        method=request.param,
        profile="smoke",
        n_synthetic=150,
    )
    folders = Folders(place / "records", place / "runs")
    return described, folders, run(described, folders)


def model_of(folders: Folders, record: dict) -> Path:
    return folders.runs / record_name(record).removesuffix(".json") / "synthesizer.safetensors"


def test_every_method_leaves_a_record_within_its_budget(made: tuple) -> None:
    described, folders, record = made
    schema.validate(record)
    assert files.find(folders.records, record) == job.check(described, folders)
    assert record["method"] == described.method
    assert {"compression", "diffusion", "sampling", "evaluation"} <= set(record["seconds"])
    spent = record["privacy"]
    if not METHODS[described.method].private:
        assert spent["epsilon"] is None
        assert record_name(record).startswith(f"own-bars-{described.method}-epsnone")
        return
    assert 0.97 * 2 < spent["epsilon"] <= 2
    assert all(mechanism["noise_multiplier"] > 0 for mechanism in spent["mechanisms"])
    independent = privacy_statement.from_record(spent).epsilon(1e-4, "pld")
    assert independent == pytest.approx(spent["epsilon"], rel=0.01)


def test_every_saved_method_draws_the_images_of_its_run(made: tuple) -> None:
    described, folders, record = made
    saved = load_synthesizer(model_of(folders, record))
    assert (saved.method, saved.privacy) == (described.method, record["privacy"])
    assert to_json(saved.settings) == record["settings"]["synthesis"]
    images = sample(saved, experiment.balanced_labels(150, CLASSES), saved.seed)
    kept, _, said = load_images(model_of(folders, record).with_name("synthetic.npz"))
    assert torch.equal((images * 255).round(), (kept * 255).round())
    assert said == statement(record["privacy"], record["dataset"])
    assert ("No differential privacy" in said["claim"]) == (record["privacy"]["epsilon"] is None)


def test_every_interrupted_method_ends_as_one_that_was_not(made: tuple, tmp_path: Path) -> None:
    described, folders, record = made
    first = (
        METHODS[described.method]
        .build(SHAPE, CLASSES, METHODS[described.method].choose("smoke", recipes.CHOSEN_ON, 2.0, 1e-5), None, 0)
        .stages[0]
    )

    class Stop(experiment.Progress):
        def say(self, line: str) -> None:
            if line.startswith(f"{first}:"):
                raise KeyboardInterrupt

    again = Folders(tmp_path / "records", tmp_path / "runs")
    again.runs.mkdir()
    (again.runs / ".secret").write_bytes((folders.runs / ".secret").read_bytes())
    with pytest.raises(Stopped):
        run(described, again, Stop())
    resumed = run(described, again)
    assert {**resumed, "seconds": 0} == {**record, "seconds": 0}
    images = [load_images(model_of(f, record).with_name("synthetic.npz"))[0] for f in (again, folders)]
    assert torch.equal(*images)


@pytest.mark.parametrize("profile", list(methods.PROFILES))
@pytest.mark.parametrize("name", list(METHODS))
def test_settings_of_every_method_go_to_json_and_back(name: str, profile: str) -> None:
    for kind, epsilon in (("ink", 10.0), ("object", 0.2), ("none", None)):
        settings = METHODS[name].choose(profile, replace(recipes.CHOSEN_ON, kind=kind), epsilon, 1e-5)
        assert from_json(METHODS[name].settings, json.loads(json.dumps(to_json(settings)))) == settings
        hash(settings)


def test_the_command_line_names_every_method(capsys: pytest.CaptureFixture) -> None:
    assert set(commands.METHODS) == set(METHODS)
    assert set(commands.YARDSTICKS) == set(YARDSTICKS)
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    said = " ".join(capsys.readouterr().out.replace("-\n", "-").split())
    assert all(name in re.sub(r"- ", "-", said) for name in METHODS)


# --- images finished like ours ----------------------------------------------------------------------------------------

RIVALS = ("class-gaussian", "dp-merf", "dp-sinkhorn", "gs-wgan", "dpdm", "reading-b")
SEEN = Finishing(FinishSettings(contrast=20.0), 0.5, FinishSettings(bend=1.0, sharpen=0.4, contrast=14.0))


def finished_by(described: Experiment, finishing: Finishing = SEEN) -> Experiment:
    settings = described.resolved().settings
    assert isinstance(settings, Finishable)
    return replace(described, settings=replace(settings, finishing=finishing))


def test_a_rival_can_be_finished_and_no_other_method() -> None:
    with_it = {name for name, method in METHODS.items() if issubclass(method.settings, Finishable)}
    assert with_it == set(RIVALS)


def test_finished_images_are_those_of_the_same_fit(made: tuple, tmp_path: Path) -> None:
    """One private fit under one ledger, whether it is made anew or taken over: only the images differ, and only by
    what `Finishing` makes of them."""
    described, folders, record = made
    if described.method not in RIVALS:
        pytest.skip("ours is always finished, a yardstick never")
    wanted, anew = finished_by(described), Folders(tmp_path / "records", tmp_path / "runs")
    anew.runs.mkdir()
    (anew.runs / ".secret").write_bytes((folders.runs / ".secret").read_bytes())
    lines: list[str] = []
    progress = experiment.Progress()
    progress.say = lines.append  # type: ignore[method-assign]
    finished = run(wanted, folders, progress)
    again = run(wanted, anew)
    assert {**again, "seconds": 0} == {**finished, "seconds": 0}
    assert finished["privacy"] == record["privacy"]
    assert record_name(finished) != record_name(record)
    models = [load_synthesizer(model_of(f, r)).synthesizer for f, r in ((anew, finished), (folders, record))]
    assert [line.split(":")[0] for line in lines if "done earlier" in line] == list(models[0].stages)
    for stage in models[0].stages:
        one, other = (model.state(stage) for model in models)
        assert list(one) == list(other)
        assert all(torch.equal(one[name], other[name]) for name in one)
    labels = experiment.balanced_labels(150, CLASSES)
    plain = torch.cat(list(models[1].sample(labels, 5)))
    with_it = torch.cat(list(models[0].sample(labels, 5)))
    assert not torch.equal(plain, with_it)
    assert torch.equal(SEEN(plain, torch.Generator().manual_seed(FINISHING_SEED + 50_000)), with_it)


def test_a_run_of_its_own_goes_on_with_its_own_stages(place: Path, tmp_path: Path) -> None:
    """What the run without finished images has is not mixed into one that was begun."""
    described = Experiment(
        place / "bars.npz", 2.0, delta=1e-4, secure_mode=True, method="class-gaussian", profile="smoke", n_synthetic=60
    )
    folders, wanted = Folders(tmp_path / "records", tmp_path / "runs"), finished_by(described)

    class Stop(experiment.Progress):
        def say(self, line: str) -> None:
            if line.startswith("compression:"):
                raise KeyboardInterrupt

    with pytest.raises(Stopped):
        run(wanted, folders, Stop())
    begun = stages.StageFolder(folders.runs / job.check(wanted, folders).stem)
    own = begun.load("compression")[0]
    run(described, folders)
    run(wanted, folders)
    assert all(torch.equal(own[name], value) for name, value in begun.load("compression")[0].items())
    other = stages.StageFolder(folders.runs / job.check(described, folders).stem).load("mixture")[0]
    assert not torch.equal(other["means"], begun.load("mixture")[0]["means"])


@pytest.mark.parametrize("name", RIVALS)
def test_what_is_not_finished_keeps_its_digest_and_seed(name: str) -> None:
    for dataset, epsilon in (("mnist", 10.0), ("fashion_mnist", 0.2)):
        plain = Experiment(dataset, epsilon, method=name).resolved()
        finished = finished_by(plain, recipes.finishing_for(plain.known, epsilon))
        assert "finishing" not in to_json(plain.settings)
        assert experiment.fit_seed(plain, {"a": "b"}) == experiment.fit_seed(finished, {"a": "b"})
        written = json.loads(json.dumps(to_json(finished.settings)))
        assert from_json(METHODS[name].settings, written) == finished.settings
        del written["finishing"]
        assert written == json.loads(json.dumps(to_json(plain.settings)))


@pytest.mark.parametrize("epsilon", [10.0, 1.0, 0.2])
@pytest.mark.parametrize("dataset", ["mnist", "fashion_mnist"])
def test_rivals_get_what_our_recipe_applies(dataset: str, epsilon: float, capsys: pytest.CaptureFixture) -> None:
    ours = recipes.settings_for("quick", datasets.DATASETS[dataset].known, epsilon)
    words = ["run", "--dataset", dataset, "--epsilon", str(epsilon), "--method", "dp-merf", "--finished"]
    given = cli._parser().parse_args(words)
    settings = commands._experiment(given, commands._epsilon(given)).settings
    assert isinstance(settings, Finishable)
    assert (settings.finishing.first, settings.finishing.last) == (ours.finish, ours.last)
    assert settings.finishing.first_share == (1 - ours.matching.image_share if ours.matches else 1)
    assert "--finished does not apply to method 'dpldm'" in refused(capsys, *words[:5], "--finished")


def test_other_images_are_not_finished(place: Path, capsys: pytest.CaptureFixture) -> None:
    own = ["run", "--data", place / "bars.npz", "--method", "dp-merf", "--delta", "1e-4", "--finished"]
    for epsilon in ("0.5", "200"):  # with many decoders of other images, and with none
        assert "are not finished: say --kind ink or object" in refused(capsys, *own, "--epsilon", epsilon)


# --- what is refused --------------------------------------------------------------------------------------------------


def refused(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    capsys.readouterr()
    assert main([str(word) for word in argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("name", YARDSTICKS)
@pytest.mark.parametrize("words", [["--epsilon", "3"], ["--noise-multiplier", "1"]])
def test_a_yardstick_takes_no_budget(place: Path, name: str, words: list, capsys: pytest.CaptureFixture) -> None:
    data = ["run", "--data", place / "bars.npz", "--profile", "smoke", "--delta", "1e-4", "--method", name]
    assert "yardstick without privacy" in refused(capsys, *data, *words)
    assert commands._epsilon(cli._parser().parse_args([str(word) for word in data])) is None


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("dp-merf", ["--compressor", "pca"], "--compressor does not apply to method 'dp-merf'"),
        ("dp-merf", ["--batch", "100"], "--batch does not apply to method 'dp-merf'"),
        ("class-gaussian", ["--batch", "100"], "--batch does not apply"),
        ("class-gaussian", ["--guidance", "2"], "method 'class-gaussian' has no sampler"),
        ("real", ["--sampler", "churn"], "method 'real' has no sampler"),
        ("class-gaussian", ["--compressor", "zip"], "expected a compressor out of"),
        ("reading-c", [], "unknown method 'reading-c'"),
        ("dp-merf", ["--delta", "0.01"], "must be below 1/N"),
    ],
)
def test_what_does_not_apply_is_refused_in_a_line(
    place: Path, tmp_path: Path, name: str, words: list, message: str, capsys: pytest.CaptureFixture
) -> None:
    where = ["--out", tmp_path / "records", "--runs", tmp_path / "runs"]
    data = ["run", "--data", place / "bars.npz", "--profile", "smoke", "--delta", "1e-4", "--method", name]
    assert message in refused(capsys, *data, *where, *words)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_sampling_options_need_a_sampler(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    described = Experiment(place / "bars.npz", 2.0, delta=1e-4, method="class-gaussian", profile="smoke")
    folders = Folders(place / "records", place / "runs")
    model = model_of(folders, run(replace(described, n_synthetic=150), folders))
    assert "has no sampler" in refused(capsys, "sample", model, "--out", tmp_path / "s.npz", "--steps", "9")
    assert main(["sample", str(model), "--n", "9", "--out", str(tmp_path / "s.npz")]) == 0


def test_a_sweep_makes_a_yardstick_once(tmp_path: Path) -> None:
    runs = sweep.Sweep(("mnist",), (1.0, 3.0), methods=("real", "dp-merf")).experiments
    assert [(one.method, one.epsilon) for one in runs] == [("real", None), ("dp-merf", 1.0), ("dp-merf", 3.0)]
    words = sweep.command(runs[0], Folders(tmp_path, tmp_path))
    given = cli._parser().parse_args(words[3:])
    assert commands._experiment(given, commands._epsilon(given)) == runs[0].resolved()


def test_settings_of_another_method_are_refused(place: Path) -> None:
    with pytest.raises(ExperimentError, match="expected MeanEmbeddingSettings for method 'dp-merf', got ClassGauss"):
        Experiment(place / "bars.npz", 2.0, method="dp-merf", settings=class_gaussian.ClassGaussianSettings())


def test_a_saved_yardstick_can_not_be_called_private(place: Path, tmp_path: Path) -> None:
    folders = Folders(place / "records", place / "runs")
    described = Experiment(place / "bars.npz", None, method="real", profile="smoke", n_synthetic=150)
    model = model_of(folders, run(described, folders))
    tensors, facts = stages.StageFolder(model.parent).load(model.stem)
    forged = fitted("class-gaussian")[1]
    facts["privacy"] = privacy_statement.to_record(TWO, forged)
    path = stages.StageFolder(tmp_path).save("forged", tensors, facts)
    with pytest.raises(ExperimentError, match="which gives no privacy"):
        load_synthesizer(path)


def test_real_images_take_no_spec_and_need_every_class() -> None:
    with pytest.raises(ValueError, match="real images can't be private"):
        build("real", TWO)
    images, labels = bars(60)
    with pytest.raises(ValueError, match="none of class 1"):
        fitted("real", None, data=guard(images[labels != 1], labels[labels != 1]))


@pytest.mark.parametrize("change", [{"features": 3}, {"steps": 0}, {"length_scale": 0.0}])
def test_mean_embedding_settings_refuse_nonsense(change: dict) -> None:
    with pytest.raises(ValueError, match="expected"):
        dp_merf.MeanEmbeddingSettings(**change)


@pytest.mark.parametrize("share", [0.0, 1.0, float("nan")])
def test_class_gaussian_settings_refuse_nonsense(share: float) -> None:
    with pytest.raises(ValueError, match="compression_share"):
        class_gaussian.ClassGaussianSettings(compression_share=share)


# --- the fits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("epsilon", [0.3, 10.0])
def test_ledgers_agree_with_another_accountant(name: str, epsilon: float) -> None:
    """One-shot Gaussians: dp-accounting composes the ledger's noise multipliers and finds the target."""
    _, ledger = fitted(name, PrivacySpec(epsilon=epsilon, delta=1e-5))
    accountant = PLDAccountant()
    for mechanism in ledger.mechanisms:
        assert mechanism.sample_rate == 1
        accountant.compose(GaussianDpEvent(mechanism.noise_multiplier), mechanism.steps)
    assert accountant.get_epsilon(1e-5) == pytest.approx(epsilon, rel=2e-3)
    assert ledger.epsilon(1e-5) <= epsilon


@pytest.mark.parametrize("name", OURS)
def test_a_given_noise_multiplier_is_that_of_all_releases_together(name: str) -> None:
    _, ledger = fitted(name, PrivacySpec(noise_multiplier=3.0, delta=1e-5))
    precision = sum(m.steps / m.noise_multiplier**2 for m in ledger.mechanisms)
    assert precision == pytest.approx(1 / 9)


@pytest.mark.parametrize("name", OURS)
def test_the_seed_decides_and_secure_mode_does_not_repeat(name: str) -> None:
    images = draw(fitted(name)[0])[0]
    assert torch.equal(draw(fitted(name)[0])[0], images)
    assert not torch.equal(draw(fitted(name, seed=1)[0])[0], images)
    secure = replace(TWO, secure_mode=True)
    assert not torch.equal(draw(fitted(name, secure)[0])[0], draw(fitted(name, secure)[0])[0])


@pytest.mark.parametrize("name", [*OURS, "real"])
def test_a_restored_fit_draws_the_same_in_batches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fitted(name, None)[0]
    again = build(name, None, seed=0)
    for stage in again.stages:
        again.restore(stage, first.state(stage))
    images, _ = draw(again, 64)
    assert images.shape == (64, *SHAPE)
    assert 0 <= float(images.min()) <= float(images.max()) <= 1
    assert torch.equal(images, draw(first, 64)[0])
    for module in (base, class_gaussian, dp_merf, real):
        monkeypatch.setattr(module, "BATCH", 7, raising=False)
    assert [len(part) for part in again.sample(torch.zeros(16, dtype=torch.int64), 0)] == [7, 7, 2]


@pytest.mark.parametrize("name", ["class-gaussian", "reading-b"])
def test_samples_are_images_of_their_class(name: str) -> None:
    images, labels = draw(fitted(name, PrivacySpec(epsilon=40.0, delta=1e-5), data=guard(*bars(3000)))[0], 300)
    found = torch.stack([images[:, 0, 4 * c : 4 * c + 2].mean((1, 2)) for c in range(CLASSES)], 1).argmax(1)
    assert (found == labels).float().mean() > 0.9


def test_dp_merf_learns_its_classes() -> None:
    settings = dp_merf.MeanEmbeddingSettings(features=400, width=64, channels=4, steps=150, generated=90)
    synthesizer = MeanEmbedding(SHAPE, CLASSES, settings, PrivacySpec(epsilon=10.0, delta=1e-4), 0)
    synthesizer.fit(guard(*bars()))
    images, labels = draw(synthesizer, 300)
    found = torch.stack([images[:, 0, 4 * c : 4 * c + 2].mean((1, 2)) for c in range(CLASSES)], 1).argmax(1)
    assert (found == labels).float().mean() > 0.9


@pytest.mark.parametrize("name", OURS)
def test_a_class_without_images_does_not_stop_a_private_fit(name: str) -> None:
    """Whether a class is empty is private, so it may show in no error."""
    images, labels = bars()
    images, _ = draw(fitted(name, data=guard(images[labels != 1], labels[labels != 1]))[0])
    assert images.isfinite().all()


@pytest.mark.parametrize("name", OURS)
def test_colour_and_odd_sides(name: str) -> None:
    synthesizer = build(name, shape=(3, 13, 13))
    random = torch.Generator().manual_seed(0)
    synthesizer.fit(PrivateData(torch.rand(300, 3, 13, 13, generator=random), torch.arange(300) % 3, 3, Ledger()))
    assert draw(synthesizer, 6)[0].shape == (6, 3, 13, 13)


# --- the private steps by hand ----------------------------------------------------------------------------------------


EXTREME = {
    "white": torch.ones(1, *SHAPE),
    "black": torch.zeros(1, *SHAPE),
    "checks": (torch.arange(144) % 2).float().view(1, *SHAPE),
}


@pytest.mark.parametrize("image", list(EXTREME))
def test_one_image_moves_the_mean_embedding_by_exactly_its_sensitivity(image: str) -> None:
    images, labels = bars(90)
    more = torch.cat([images, EXTREME[image]]), torch.cat([labels, torch.tensor([2])])
    with watched() as seen:
        _, ledger = fitted("dp-merf", data=guard(images, labels))
        fitted("dp-merf", data=guard(*more, n=90))
    first, second = (one.value for one in seen)
    bound = ledger.mechanisms[0].sensitivity
    assert float((second - first).norm()) == pytest.approx(bound, rel=1e-5)
    assert float((second - first).norm()) <= bound + 1e-9
    assert [name for name, moved in zip("012", (second - first).abs().sum(1) > 0, strict=True) if moved] == ["2"]


def test_fourier_features_approximate_the_gaussian_kernel() -> None:
    settings = dp_merf.MeanEmbeddingSettings(features=20_000, length_scale=0.5)
    synthesizer = MeanEmbedding(SHAPE, CLASSES, settings, None, 0)
    images, _ = bars(12)
    rows = synthesizer.features(images)
    exact = torch.exp(-torch.cdist(images.flatten(1), images.flatten(1)).square() / (2 * 0.5**2 * 144 / 6))
    # Each entry is a mean of 10,000 cosines: standard error at most 0.01 · √½.
    torch.testing.assert_close(rows @ rows.T, exact, atol=5 * 0.0071, rtol=0)


def test_mean_embedding_by_hand() -> None:
    """A naive loop over images gives the sum that is released, and counts come back from its last entry."""
    images, labels = bars(50)
    with watched() as seen:
        synthesizer, _ = fitted("dp-merf", None, data=guard(images, labels))
    expected = torch.zeros(CLASSES, synthesizer.settings.features + 1, dtype=torch.float64)
    for picture, label in zip(images, labels.tolist(), strict=True):
        angles = picture.flatten().double() @ synthesizer.features.pixels.double()
        row = torch.cat([angles.cos(), angles.sin()]) * math.sqrt(2 / synthesizer.settings.features)
        expected[label, :-1] += row
        expected[label, -1] += synthesizer.settings.count_scale
    torch.testing.assert_close(seen[0].value, expected, atol=1e-4, rtol=0)
    means = expected[:, :-1] / labels.bincount()[:, None]
    torch.testing.assert_close(synthesizer.embedding.double(), means, atol=1e-6, rtol=0)


def test_reading_b_rows_have_at_most_the_norm_that_is_charged() -> None:
    images, labels = bars(90)
    more = torch.cat([images, torch.cat(list(EXTREME.values()))]), torch.cat([labels, torch.tensor([0, 1, 2])])
    with watched() as seen:
        _, ledger = fitted("reading-b", data=guard(*more))
    rows, bound = seen[-1].value, ledger.mechanisms[-1].sensitivity
    assert len(rows) == 93  # one row per image, so leaving one out takes one row away
    assert float(rows.norm(dim=1).max()) <= bound * (1 + 1e-6)
    assert float(rows.norm(dim=1).max()) > 0.99 * bound  # the extreme ones need all of it


@pytest.mark.parametrize(("name", "releases"), [("dp-merf", 1), ("reading-b", 3), ("class-gaussian", 4)])
def test_every_release_is_in_the_ledger_with_its_noise(name: str, releases: int) -> None:
    """The noise has the scale that is charged: its sum of squares is chi-squared, within 1 in 10,000 on both sides."""
    with watched() as seen:
        _, ledger = fitted(name)
    assert len(seen) == releases
    assert [one.mechanism for one in seen] == [m for m in ledger.mechanisms for _ in range(m.steps)]
    for one in seen:
        std = one.mechanism.sensitivity * one.mechanism.noise_multiplier
        noise = (one.released.double() - one.value.double()).flatten()
        low, high = stats.chi2.ppf([5e-5, 1 - 5e-5], len(noise))
        assert low < float((noise / std).square().sum()) < high
        if len(noise) > 2_000:  # a scale that is 15% off would show
            assert not low < float((noise / (1.15 * std)).square().sum()) < high


def test_reading_b_takes_the_noise_of_its_latents_off() -> None:
    """Fitted to the same images, the Gaussians of noised latents have about the spread of those without noise."""
    data = bars(6000)
    spec = PrivacySpec(noise_multiplier=0.05, delta=1e-5)
    noisy, exact = (fitted("reading-b", given, data=guard(*data))[0] for given in (spec, None))
    assert isinstance(noisy, NoisedLatents)
    first, second = (float(one.mixture.values.sum(1).mean()) for one in (noisy, exact))
    assert first == pytest.approx(second, rel=0.2)


def test_class_gaussian_is_the_mixture_with_the_whole_budget() -> None:
    synthesizer, ledger = fitted("class-gaussian")
    assert isinstance(synthesizer, ClassGaussian)
    assert synthesizer.mixture.means.shape[:2] == (CLASSES, 1)
    names = [mechanism.name for mechanism in ledger.mechanisms]
    assert names == ["image mean", "image second moments", "latent second moments", "latent sums"]


# --- the yardstick ----------------------------------------------------------------------------------------------------


def test_real_images_are_drawn_without_repetition_until_all_are_used() -> None:
    images, labels = bars(60)
    synthesizer, ledger = fitted("real", None, data=guard(images, labels))
    assert isinstance(synthesizer, RealImages)
    assert ledger.epsilon(1e-5) == math.inf
    drawn = torch.cat(list(synthesizer.sample(labels.flip(0), 0)))
    codes = [tuple(row) for row in (drawn.flatten(1) * 255).round().int().tolist()]
    assert sorted(codes) == sorted(tuple(row) for row in (images.flatten(1) * 255).round().int().tolist())
    twice = torch.cat(list(synthesizer.sample(torch.cat([labels, labels]), 0))).flatten(1)
    assert all(count == 2 for count in torch.unique(twice, dim=0, return_counts=True)[1].tolist())
    class_one = torch.cat(list(synthesizer.sample(torch.ones(20, dtype=torch.int64), 3)))
    assert float(class_one[:, 0, 4:6].mean()) > 0.7
