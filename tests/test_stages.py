"""Stages: what is planned is what is charged, and a new stage is one object."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dpldm import (
    methods,
)
from dpldm.audit import evidence, method
from dpldm.book import charts
from dpldm.method.settings import SynthesisSettings, smoke
from dpldm.method.synthesizer import LatentDiffusion
from dpldm.privacy.accounting import Ledger
from dpldm.privacy.budget import Allowance, budget_shares
from dpldm.privacy.guard import PrivateData
from dpldm.privacy.mechanisms import Mechanism, PrivacySpec
from dpldm.privacy.noise import release
from dpldm.privacy.statement import from_record
from dpldm.records.settings import from_json
from dpldm.runs import experiment, run
from dpldm.runs.experiment import Experiment, Folders
from dpldm.runs.saved import load_synthesizer

RECORDS = sorted(Path("book/records").glob("*-dpldm-*.json"))
WITH_A_PLAN = {json.dumps(json.loads(path.read_text())["settings"]["synthesis"]): path for path in RECORDS}


@pytest.mark.parametrize("path", WITH_A_PLAN.values(), ids=lambda path: path.stem)
def test_the_plan_of_a_recipe_is_the_ledger_of_its_run(path: Path) -> None:
    record = json.loads(path.read_text())
    settings = from_json(SynthesisSettings, record["settings"]["synthesis"])
    spec = PrivacySpec(record["privacy"]["epsilon_target"], record["privacy"]["delta"])
    planned = LatentDiffusion((1, 28, 28), 10, settings, spec, 0).planned(60_000)

    def decisive(mechanism: Mechanism) -> tuple:  # a sensitivity may follow from how many dimensions stage 1 keeps
        return mechanism.name, mechanism.stage, mechanism.sample_rate, mechanism.steps

    charged = from_record(record["privacy"]).mechanisms
    assert [decisive(one) for one in planned] == [decisive(one) for one in charged]
    # Opacus' Fourier transforms differ between processors in the last digits, and so does the noise found with them
    wanted = pytest.approx([one.noise_multiplier for one in charged], rel=1e-9)
    assert [one.noise_multiplier for one in planned] == wanted
    assert Ledger(planned).epsilon(spec.delta) == pytest.approx(record["privacy"]["epsilon"], rel=1e-9)


class Brightness:
    """A sixth stage: the mean brightness of all images."""

    name, share, steps = "brightness", 0.05, 1
    mean = torch.zeros(())

    def planned(self, allowance: Allowance, n: int) -> list[Mechanism]:
        return [allowance.mechanism("brightness", self.name, sensitivity=1.0)]

    def fit(self, data: PrivateData, allowance: Allowance, noise, random) -> Iterator[int]:
        (mechanism,) = self.planned(allowance, len(data))
        images, _ = data.read(mechanism)
        self.mean = release(images.flatten(1).mean(1).clamp(0, 1).sum(), mechanism, noise) / len(data)
        yield 1

    def state(self) -> dict[str, torch.Tensor]:
        return {"mean": self.mean}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        self.mean = state["mean"]


class WithBrightness(LatentDiffusion):
    def build_stages(self) -> list:
        return [*super().build_stages(), Brightness()]


@pytest.fixture
def own_npz(tmp_path: Path) -> Path:
    """400 noisy images of 8 x 8, one class brighter than the other."""
    random, labels = np.random.default_rng(0), np.arange(400) % 2
    images = (random.random((400, 8, 8)) * (100 + 155 * labels[:, None, None])).astype(np.uint8)
    np.savez(tmp_path / "own.npz", images=images, labels=labels)
    return tmp_path / "own.npz"


@pytest.fixture
def six_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(methods.METHODS, "dpldm", replace(methods.METHODS["dpldm"], build=WithBrightness))


def test_a_sixth_stage_is_planned_charged_shown_saved_and_resumed(
    six_stages: None, own_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Experiment(own_npz, 10.0, delta=1e-4, profile="smoke", n_synthetic=20)
    folders, told = Folders(tmp_path / "records", tmp_path / "runs"), []
    progress = experiment.Progress()
    monkeypatch.setattr(progress, "track", lambda stage, share: told.append(stage))
    record = run.run(asked, folders, progress)
    planned = WithBrightness((1, 8, 8), 2, asked.resolved().settings, asked.spec, 0).planned(400)
    assert [m["name"] for m in record["privacy"]["mechanisms"]] == [m.name for m in planned]
    assert planned[-1].name == "brightness"
    assert record["privacy"]["epsilon"] <= 10
    assert record["seconds"]["brightness"] >= 0
    assert "brightness" in told
    shares = budget_shares(from_record(record["privacy"]), 1e-4)
    shown = charts.budget_split(record["privacy"], shares)
    assert "brightness" in " ".join(text.get_text() for text in shown.axes[0].get_yticklabels())
    (folder,) = [path for path in (tmp_path / "runs").iterdir() if path.is_dir()]
    saved = load_synthesizer(folder / "synthesizer.safetensors").synthesizer
    assert saved.state("brightness")["mean"] != 0
    next((tmp_path / "records").glob("*.json")).unlink()
    said = []
    monkeypatch.setattr(progress, "say", said.append)
    again = run.run(asked, folders, progress)
    assert any(line.startswith("brightness: done earlier") for line in said)
    assert again["privacy"] == record["privacy"]


def test_a_sixth_stage_is_audited(six_stages: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method, "LatentDiffusion", WithBrightness)
    random = torch.Generator().manual_seed(1)
    examples = evidence.Examples(torch.rand(240, 1, 8, 8, generator=random), torch.arange(240) % 2, 2)
    found = method.audit_method(examples, smoke(SynthesisSettings()), PrivacySpec(1.0, 1e-4), canaries=20)
    assert "brightness" in found.bounds
    assert not found.contradicted
