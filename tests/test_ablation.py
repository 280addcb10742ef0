"""The ablation: one thing changed in each row, rows kept and resumed, measured again when settings change."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from dpldm import cli, methods, recipes
from dpldm.data import datasets
from dpldm.data.images import ImageData, validation_split
from dpldm.evaluation import classifiers, settings
from dpldm.method.pca import PrivatePCA
from dpldm.method.synthesizer import LatentDiffusion
from dpldm.privacy.accounting import Ledger
from dpldm.privacy.guard import PrivateData
from dpldm.records import environment
from dpldm.runs import ablation, experiment, validation, variations
from dpldm.runs.experiment import Experiment, Folders
from dpldm.runs.variations import AblationError


@pytest.fixture(autouse=True)
def bars(monkeypatch):
    """Three classes of bars on 12 x 12 pixels in place of the real data; one commit throughout."""
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(1_200) % 3
    images = torch.rand(1_200, 1, 12, 12, generator=random) / 3
    images[labels == 0, :, :, 5:7] += 0.6
    images[labels == 1, :, 5:7, :] += 0.6
    made = ImageData("mnist", images, labels, ("upright", "level", "none"), {"bars": "0" * 64})
    test = replace(made, images=torch.full_like(images, torch.nan))  # a look at it would show
    monkeypatch.setattr(datasets, "load", lambda name, split, *_: made if split == "train" else test)
    monkeypatch.setattr(environment, "_commit", lambda root: "0" * 40)
    scoring = replace(settings.EVALUATION["smoke"], classifier_seeds=1, cnn_epochs=3, mlp_epochs=3)
    monkeypatch.setitem(methods.PROFILES, "smoke", methods.Profile("toy", None, 900, scoring))
    return made


def measured(folder, *only, epsilon=5.0, **options):
    said = []
    made = ablation.run("mnist", epsilon, 0, "smoke", only=only, folder=folder, say=said.append, **options)
    return made, said


# --- what is varied ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", list(methods.PROFILES))
@pytest.mark.parametrize(
    ("dataset", "epsilon"), [("mnist", 10.0), ("mnist", 1.0), ("mnist", 0.2), ("fashion_mnist", 1.0)]
)
def test_each_row_differs_from_the_default_in_what_it_says(profile, dataset, epsilon):
    found = variations.variations(dataset, epsilon, profile)
    base = found[variations.DEFAULT].experiment.settings
    assert base == recipes.settings_for(profile, datasets.DATASETS[dataset].known, epsilon)
    changed = {
        name: {key for key, value in asdict(base).items() if asdict(row.experiment.settings)[key] != value}
        for name, row in found.items()
        if row.experiment.method == "dpldm"
    }
    components = "one-gaussian" if base.mixture.components > 1 else "eight-components"
    selection = "no-selection" if base.selects else "selection"
    transport = "no-transport" if base.moves else "transport"
    freed = {name for name, on in (("selection", base.selects), ("transport", base.moves)) if on}
    matching = {"matching": {"matching"} | (freed or {"mixture_share"})}
    if base.matches:
        matching = {"no-matching": {"matching", "mixture_share"}}
    bent = "no-bend" if base.last.bend else "bend"
    contrasts = {name for name in ("finish", "last") if getattr(base, name).contrast}
    inked = "no-contrast" if contrasts else "contrast"
    sharp = "no-sharpening" if base.finish.sharpen else "sharpening"
    level = "no-ground" if base.last.ground else "ground"
    lit = "contrast-of-half" if base.last.contrast_share == 1 else "contrast-of-all"
    judged = {"no-push" if base.selection.push else "push", "one-view" if base.selection.as_they_are else "two-views"}
    stage_1 = {"compression", "compression_share"}
    refined = base.compression.kind == "refined-pca"
    decoder = {"linear-decoder": {"compression"}} if refined else {"refined-decoder": stage_1}
    expected = {
        "default": set(), components: {"mixture"}, selection: {"selection", "mixture_share"},
        transport: {"transport", "mixture_share"}, bent: {"last"}, level: {"last"},
        inked: contrasts or {"finish"}, sharp: {"finish"}, "no-floor": {"compression"},
        "half-dimensions": {"compression"}, "all-frequencies": {"compression"}, "more-gradients": {"mixture_share"},
        lit: {"last"}, **decoder, "autoencoder": stage_1, "public-autoencoder": {"compression"}, **matching,
    }  # fmt: skip
    if base.selects:
        expected |= {name: {"selection"} for name in judged}
    if base.matches and base.matching.image_share == 1:  # what is done to images of stage 1 is done to none
        expected = {
            name: rows for name, rows in expected.items() if name not in (selection, transport, sharp, "no-floor")
        }
    assert changed == expected
    assert {name: found[name].experiment.epsilon for name in variations.YARDSTICKS} == {
        "non-private": None, "reconstructed": epsilon, "real": None,
    }  # fmt: skip
    assert found["non-private"].experiment.settings == base
    assert len({row.title for row in found.values()}) == len(found)


@pytest.mark.parametrize("name", ["mixture-alone", "refined-decoder", "more-gradients"])
def test_a_row_spends_no_more_than_its_epsilon(bars, name):
    """By another accountant than the one that calibrates."""
    described = variations.variations("mnist", 2.0, "smoke")[name].experiment
    method = methods.METHODS[described.method]
    guard = PrivateData(bars.images, bars.labels, 3, Ledger())
    method.build(bars.image_shape, 3, described.settings, described.spec, 0).fit(guard)
    assert 1.8 < guard.ledger.epsilon(1e-5, "pld") <= 2.0 * 1.001


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("mnst", 1.0), "unknown dataset 'mnst'"),
        (("mnist", 0.0), "expected a finite epsilon above 0"),
        (("mnist", None), "expected a public data set and an ε"),
        (("mnist", 1.0, "long"), "unknown profile 'long'"),
        (("mnist", 1.0, "quick", -1), "expected a seed from 0"),
    ],
)
def test_what_can_not_work_is_refused_in_one_line(asked, message):
    with pytest.raises(ValueError, match=message) as caught:
        variations.variations(*asked)
    assert "\n" not in str(caught.value)


# --- measuring --------------------------------------------------------------------------------------------------------


def test_a_row_says_what_a_longer_way_finds(bars, tmp_path):
    """The default and the reconstructed images once more, step by step."""
    made, _ = measured(tmp_path, "default", "reconstructed")
    asked = Experiment("mnist", 5.0, profile="smoke").resolved()
    rest, held_out = validation_split(bars, 1 / 6, experiment.derived_seed(0, "validation"))
    assert len(held_out) == 200
    synthesizer = LatentDiffusion(bars.image_shape, 3, asked.settings, asked.spec, 0)
    synthesizer.fit(PrivateData(rest.images, rest.labels, 3, Ledger()))
    labels = torch.arange(300) % 3
    images = torch.cat(list(synthesizer.sample(labels, 0)))
    cnn = classifiers.train_classifier("cnn", images, labels, 3, asked.evaluation, seed=0).network
    right = (cnn(held_out.images * 2 - 1).argmax(1) == held_out.labels).float().mean().item()
    scores = made["rows"]["default"]["scores"]
    assert scores["cnn"] == pytest.approx(right, abs=1e-6)
    assert scores["dim"] == synthesizer.compressor.dim
    pca = synthesizer.compressor
    assert isinstance(pca, PrivatePCA)
    error = np.mean((pca.decode(pca.encode(held_out.images)) - held_out.images).numpy() ** 2)
    assert scores["error"] == pytest.approx(float(error), rel=1e-5)
    assert made["rows"]["reconstructed"]["scores"]["error"] == pytest.approx(float(error), rel=1e-5)


def test_real_images_teach_more_than_their_copies_at_a_tiny_budget(tmp_path):
    scores = {
        name: row["scores"] for name, row in measured(tmp_path, "real", "default", epsilon=0.05)[0]["rows"].items()
    }
    assert scores["real"]["cnn"] > 0.9 > scores["default"]["cnn"]
    assert scores["real"]["fid_classifier"] < scores["default"]["fid_classifier"]
    assert scores["real"]["dim"] is None


def test_an_interrupted_run_goes_on_where_it_was(tmp_path, monkeypatch):
    validate = validation.validate
    calls = []

    def second_is_stopped(asked, *others, **more):
        calls.append(asked)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return validate(asked, *others, **more)

    monkeypatch.setattr(validation, "validate", second_is_stopped)
    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path, "default", "real")
    (path,) = tmp_path.iterdir()
    assert list(ablation.read(path)["rows"]) == ["default"]
    first = ablation.read(path)["rows"]["default"]
    made, said = measured(tmp_path, "default", "real")
    assert list(made["rows"]) == ["default", "real"]
    assert made == ablation.read(path)
    assert made["rows"]["default"] == first
    assert not any(line.startswith("default") for line in said)
    assert len(calls) == 3
    measured(tmp_path, "real", force=True)
    assert len(calls) == 4
    assert [file.name for file in tmp_path.iterdir()] == [ablation.file_name("mnist", 5.0, "smoke", 0)]


def test_rows_of_other_settings_are_measured_again(tmp_path, monkeypatch):
    made, _ = measured(tmp_path, "mixture-alone", "real")
    before, settings_for = made["rows"], recipes.settings_for
    changed = replace(methods.METHODS["dpldm"], choose=lambda *a: replace(settings_for(*a), compression_share=0.12))
    monkeypatch.setitem(methods.METHODS, "dpldm", changed)
    made, said = measured(tmp_path, "real")
    assert "left out: mixture-alone" in said[0]
    assert made["rows"] == {"real": before["real"]}  # nothing of it has changed
    assert ablation.read_all(tmp_path) == [made]
    made, _ = measured(tmp_path, "mixture-alone")
    assert made["rows"]["mixture-alone"]["digest"] != before["mixture-alone"]["digest"]
    assert made["settings"]["synthesis.compression_share"] == 0.12


def test_a_page_shows_no_row_of_other_settings(tmp_path, monkeypatch):
    made, _ = measured(tmp_path, "default", "no-floor", "real")
    assert ablation.of_today(made) == made
    old = made["rows"]["no-floor"] | {"digest": "of another day"}
    assert list(ablation.of_today(made | {"rows": made["rows"] | {"no-floor": old}})["rows"]) == ["default", "real"]
    settings_for = recipes.settings_for
    changed = replace(methods.METHODS["dpldm"], choose=lambda *a: replace(settings_for(*a), compression_share=0.12))
    monkeypatch.setitem(methods.METHODS, "dpldm", changed)
    assert ablation.of_today(made)["rows"] == {}  # the real images are as they were, but compared with nothing


def test_a_row_names_what_differs(tmp_path):
    made, _ = measured(tmp_path, "no-floor", "real")
    assert made["rows"]["no-floor"]["differs"] == {
        "synthesis.compression.pca.floor": 0.0, "synthesis.compression.refined.pca.floor": 0.0,
    }  # fmt: skip
    assert made["rows"]["real"]["differs"] == {"method": "real", "epsilon": None}
    found = variations.variations("fashion_mnist", 1.0, "quick")  # a default that records leave out is told as well
    unpushed, base = found["no-push"], found[variations.DEFAULT]
    assert ablation._difference(unpushed, base) == {"synthesis.selection.push": 0.0}
    frame = ablation.table([made])
    assert list(frame["name"]) == ["no-floor", "real"]
    assert frame["cnn"].between(0, 1).all()
    assert np.isnan(frame["dim"].iloc[1])
    assert list(frame["public_data"]) == ["", ""]
    assert ablation.table([]).empty


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1}', "damage", "half"])
def test_a_file_that_is_not_whole_is_named(tmp_path, text):
    path = tmp_path / ablation.file_name("mnist", 5.0, "smoke", 0)
    if text in ("damage", "half"):
        made, _ = measured(tmp_path, "real")
        whole = json.dumps(made)
        text = whole[: len(whole) // 2] if text == "half" else whole.replace('"cnn"', '"cmm"')
    path.write_text(text)
    with pytest.raises(AblationError, match="restore the file, or delete and repeat") as caught:
        measured(tmp_path, "real")
    assert "\n" not in str(caught.value)
    assert path.read_text() == text


def test_unknown_rows_classifiers_and_methods_without_stage_1_are_refused(tmp_path):
    with pytest.raises(AblationError, match="no variation 'x' here: expected default, "):
        measured(tmp_path, "x")
    assert list(tmp_path.iterdir()) == []
    asked = Experiment("mnist", 5.0, profile="smoke")
    for kinds in ("svm", (), ("cnn", "svm")):
        with pytest.raises(ValueError, match="expected classifiers out of cnn or mlp or logreg"):
            validation.validate(asked, Folders(), kinds)
    with pytest.raises(ValueError, match="compresses nothing"):
        validation.validate(replace(asked, epsilon=None, method="real"), reconstruct=True)


def test_the_command_says_what_it_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["ablation", "--dataset", "mnist", "--epsilon", "5", "--profile", "smoke", "--only", "real"]
    assert cli.main(words) == 0
    said = capsys.readouterr()
    assert "real: real images, 1 of 1" in said.err
    assert "runs/ablation/mnist-eps5-smoke-seed0.json" in said.out
    assert (tmp_path / "runs" / "ablation" / "mnist-eps5-smoke-seed0.json").is_file()
    for bad, message in (
        ([*words, "selection?"], "no variation 'selection?'"),
        ([*words[:4], "nan"], "epsilon"),
        ([*words[:2], "x", "--epsilon", "1"], "unknown dataset 'x'"),
        ([*words, "--out", str(tmp_path / "runs" / "ablation" / "mnist-eps5-smoke-seed0.json")], "cannot write"),
    ):
        assert cli.main(bad) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert message in said.err
        assert said.err.count("\n") == 1
